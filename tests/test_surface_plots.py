"""Figures of surfaces and hedges: what is drawn is what was given."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from emprob.models import quotes as quote_arrays
from emprob.models import surface_plots as plots

RNG = np.random.default_rng(0)
TIMES = np.array([0.05, 0.3, 1.2])
K = np.linspace(-0.3, 0.3, 7)


@pytest.fixture(autouse=True)
def _no_window_no_global_change(monkeypatch):
    before = dict(mpl.rcParams)
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("a figure was shown"))
    yield
    assert dict(mpl.rcParams) == before


def smile(k, time):
    return 0.3 + 0.2 * k**2 / np.sqrt(time)


def some_quotes(half_spread=0.004):
    k, time = np.tile(K, 3), np.repeat(TIMES, 7)
    mid = smile(k, time) + 0.002 * RNG.normal(size=21)
    mid[3] = np.nan
    return quote_arrays.from_arrays(100 * np.exp(k), time, 100.0, mid, half_spread)


def drawn(figure):
    """Panels with something on them."""
    figure.canvas.draw()
    assert isinstance(figure, Figure)
    return [ax for ax in figure.axes if ax.axison]


def legend(figure):
    return {t.get_text() for t in figure.legends[0].get_texts()}


def test_smiles_show_bars_fit_band_and_what_the_fit_did_not_see():
    quotes = some_quotes()
    held_out = np.arange(21) == 5
    grid = plots.grid(quotes, 31)
    fit = smile(grid, TIMES[:, None])
    outlier = np.where(np.arange(21) == 8, 0.9, 0.1)
    figure = plots.plot_smiles(
        quote_arrays.hold_out(quotes, held_out), grid, fit, (fit - 0.01, fit + 0.01), outlier,
        quote_arrays.take(quotes, held_out), labels=["first", "second", "third"],
    )  # fmt: skip
    axes = drawn(figure)
    assert [ax.get_title(loc="left") for ax in axes] == ["first", "second", "third"]
    assert legend(figure) == {"bid to ask", "bad quote", "fit", "band", "held out"}
    for e, ax in enumerate(axes):
        (curve,) = [line for line in ax.get_lines() if line.get_label() == "fit"]
        np.testing.assert_allclose(curve.get_ydata(), 100 * fit[e])
        np.testing.assert_allclose(curve.get_xdata(), grid[e])
    shown = [
        sum(len(c.lines[0].get_xdata()) for c in ax.containers if hasattr(c, "lines"))
        for ax in axes
    ]
    assert shown == [5, 7, 7]
    low, high = axes[1].containers[0].lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(high - low, 0.8)


def test_smiles_without_fit_and_spread():
    figure = plots.plot_smiles(some_quotes(None))
    assert [ax.get_title(loc="left") for ax in drawn(figure)] == ["18.2 d", "3.6 m", "1.2 y"]
    assert legend(figure) == {"quote"}


def test_the_grid_spans_the_quotes_of_every_expiry():
    quotes = quote_arrays.hold_out(some_quotes(), np.arange(21) < 14)
    grid = plots.grid(quotes, 11, margin=0.0)
    assert grid.shape == (3, 11)
    np.testing.assert_allclose(grid[:, [0, -1]], [[-0.3, 0.3]] * 3)


def test_surface():
    quotes = some_quotes()
    times = np.linspace(0.05, 1.2, 12)
    figure = plots.plot_surface(times, K, smile(K[None], times[:, None]), quotes)
    figure.canvas.draw()
    (ax,) = figure.axes
    assert ax.get_zlabel() == "implied volatility, %"
    points = ax.collections[-1]
    assert len(points.get_offsets()) == 20


def test_residuals_are_in_half_spreads_and_missing_quotes_leave_a_gap():
    quotes = some_quotes()
    fit = smile(np.tile(K, 3), np.repeat(TIMES, 7))
    outlier = RNG.uniform(size=21)
    figure = plots.plot_residuals(quotes, fit, outlier)
    errors, probabilities, *_ = drawn(figure)
    shown = np.isfinite(np.asarray(quotes.mid))
    expected = (fit - np.asarray(quotes.mid))[shown] / 0.004
    np.testing.assert_allclose(errors.collections[0].get_array(), expected, rtol=1e-6)
    np.testing.assert_allclose(probabilities.collections[0].get_array(), outlier[shown])
    assert [t.get_text() for t in errors.get_yticklabels()] == ["18.2 d", "3.6 m", "1.2 y"]
    assert probabilities.collections[0].get_clim() == (0.0, 1.0)


def test_residuals_without_a_spread_are_volatility_points():
    quotes = some_quotes(None)
    fit = smile(np.tile(K, 3), np.repeat(TIMES, 7))
    figure = plots.plot_residuals(quotes, fit)
    ax, bar = drawn(figure)
    assert "volatility points" in bar.get_ylabel()
    shown = np.isfinite(np.asarray(quotes.mid))
    expected = 100 * (fit - np.asarray(quotes.mid))[shown]
    np.testing.assert_allclose(ax.collections[0].get_array(), expected, rtol=1e-6)


def test_term_structure():
    value = {"alpha": np.array([0.3, 0.31, 0.33]), "rho": np.array([-0.5, -0.4, -0.4])}
    low, high = ({k: v + s for k, v in value.items()} for s in (-0.1, 0.1))
    figure = plots.plot_term_structure(TIMES, value, low, high, {"rho": value["rho"] + 0.05})
    axes = drawn(figure)
    assert [ax.get_title(loc="left") for ax in axes] == ["alpha", "rho"]
    assert legend(figure) == {"estimate", "interval", "alone"}
    np.testing.assert_array_equal(axes[1].get_lines()[0].get_ydata(), value["rho"])


def test_prices_of_an_exotic():
    draws = {"Gaussian": RNG.normal(10, 1, 500), "NUTS": RNG.normal(10, 1, 400)}
    draws["NUTS"][0] = np.nan
    (ax,) = drawn(plots.plot_exotic_prices(draws, 10.0, 0.05, "price of a cliquet"))
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts[0].startswith("Gaussian: ") and texts[1].startswith("NUTS: ")
    assert f"{np.nanmean(draws['NUTS']):.4g}" in texts[1]
    assert ax.get_xlabel() == "price of a cliquet"


def test_hedges():
    times = np.linspace(0, 1, 20)
    walk = np.cumsum(RNG.normal(size=(200, 20)), 1)
    figure = plots.plot_hedge(times, {"none": walk, "delta": 0.1 * walk})
    paths, law = drawn(figure)
    np.testing.assert_allclose(paths.get_lines()[1].get_ydata(), np.median(0.1 * walk, axis=0))
    texts = [t.get_text() for t in law.get_legend().get_texts()]
    assert texts == [f"none: sd {walk[:, -1].std():.3g}", f"delta: sd {walk[:, -1].std() / 10:.3g}"]
