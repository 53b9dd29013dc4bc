"""Figures: what is drawn is what was given, on the Axes that was given."""

from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from emprob.plot import (
    COLORS,
    plot_forecast,
    plot_forest,
    plot_marginals,
    plot_starts,
    plot_states,
    plot_trace,
)
from emprob.types import Status

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_window_no_global_change(monkeypatch):
    before = dict(mpl.rcParams)
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("a figure was shown"))
    yield
    assert dict(mpl.rcParams) == before


def a_fit(probs=None, observed=None, is_chain=True):
    steps = np.arange(1, 21)
    posterior = {} if probs is None else {"z": SimpleNamespace(probs=probs, is_chain=is_chain)}
    notes = SimpleNamespace(value=SimpleNamespace(observed={} if observed is None else observed))
    return SimpleNamespace(
        trace={"objective": -100 - 0.5**steps, "score_norm": 0.7**steps},
        objective=-100.0, status=Status.CONVERGED, num_steps=20, posterior=posterior,
        model=SimpleNamespace(notes=notes),
        starts=pd.DataFrame({"objective": [-101.0, -100.0, -100.0, np.nan, -105.0]}),
    )  # fmt: skip


def texts(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def test_trace():
    ax = plot_trace(a_fit())
    assert isinstance(ax, Axes)
    gap, score = ax.get_lines()
    np.testing.assert_allclose(gap.get_ydata(), 0.5 ** np.arange(1, 21))
    np.testing.assert_allclose(score.get_ydata(), 0.7 ** np.arange(1, 21))
    assert ax.get_yscale() == "log"
    assert ax.get_title(loc="left") == "converged, 20 steps"


def test_starts_count_the_best_optimum():
    ax = plot_starts(a_fit())
    best, others = ax.get_lines()
    np.testing.assert_array_equal(best.get_ydata(), [-100, -100])
    np.testing.assert_array_equal(others.get_ydata(), [-101, -105])
    assert texts(ax)[0] == "at the best optimum (2 of 5)"


def test_starts_that_agree_show_no_rounding_errors():
    rows = pd.DataFrame({"objective": -220.058 + 1e-9 * np.arange(10)})
    ax = plot_starts(SimpleNamespace(starts=rows))
    low, high = ax.get_ylim()
    assert high - low == pytest.approx(1) and (low + high) / 2 == pytest.approx(-220.058)
    ax.figure.draw_without_rendering()
    assert all(len(t.get_text()) <= 7 for t in ax.get_yticklabels())


@pytest.mark.parametrize("draw", [plot_trace, plot_starts])
def test_the_axes_given_are_used(draw):
    ax = plt.figure().subplots()
    assert draw(a_fit(), ax=ax) is ax


def test_a_chain_is_a_series_on_shaded_ground():
    probs = RNG.dirichlet(np.ones(3), 50)
    series = RNG.normal(size=50)
    ax = plot_marginals(a_fit(probs, {"y": series}), labels=["a", "b", "c"])
    (line,) = ax.get_lines()
    np.testing.assert_allclose(line.get_ydata(), series)
    assert texts(ax) == ["a", "b", "c"]
    edges = np.unique(np.round(ax.collections[0].get_paths()[0].vertices[:, 1], 12))
    assert set(np.round(probs[:, 0], 12)) <= set(edges)


def test_dates_on_the_axis():
    probs = RNG.dirichlet(np.ones(2), 30)
    days = pd.date_range("2020-01-01", periods=30)
    ax = plot_marginals(a_fit(probs, {"y": np.zeros(30)}), x=days)
    assert len(ax.get_lines()[0].get_xdata()) == 30


def test_a_mixture_in_one_dimension_is_a_histogram_of_expected_counts():
    probs = RNG.dirichlet(np.ones(2), 200)
    ax = plot_marginals(a_fit(probs, {"x": RNG.normal(size=200)}, is_chain=False))
    heights = [sum(p.get_height() for p in c.patches) for c in ax.containers]
    np.testing.assert_allclose(heights, probs.sum(0))
    assert texts(ax) == ["z = 0", "z = 1"]


def test_a_mixture_in_two_dimensions_is_a_scatter_in_mixed_colours():
    probs = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    values = RNG.normal(size=(3, 2))
    ax = plot_marginals(a_fit(probs, {"x": values}, is_chain=False))
    points = ax.collections[0]
    np.testing.assert_allclose(points.get_offsets(), values)
    first, second = (np.array(mpl.colors.to_rgb(c)) for c in COLORS[:2])
    expected = [first, second, (first + second) / 2]
    np.testing.assert_allclose(points.get_facecolors()[:, :3], expected)


def test_missing_values_are_left_out_of_the_histogram():
    probs = RNG.dirichlet(np.ones(2), 10)
    values = np.array([np.nan, *range(9)])
    ax = plot_marginals(a_fit(probs, {"x": values}, is_chain=False))
    total = sum(p.get_height() for c in ax.containers for p in c.patches)
    assert total == pytest.approx(9)


def test_an_element_of_a_panel():
    probs = RNG.dirichlet(np.ones(2), (20, 4))
    fit = a_fit(probs, {"y": RNG.normal(size=(20, 4))})
    plot_marginals(fit, index=(2,), y=np.zeros(20))
    with pytest.raises(ValueError, match="expected 1 indices"):
        plot_marginals(fit)
    with pytest.raises(ValueError, match="expected 20 rows"):
        plot_marginals(fit, index=(2,), y=np.zeros(3))


def test_forest_puts_parameters_on_one_scale():
    draws = {"mu": 100 + 2 * RNG.normal(size=(2, 500)), "p": RNG.beta(5, 5, (2, 500))}
    rows = pd.DataFrame(
        {"estimate": [101.0, 0.5], "se": [2.0, np.nan], "low": [-np.inf, 0.0],
         "high": [np.inf, 1.0]}, index=["mu", "p"],
    )  # fmt: skip
    comparison = SimpleNamespace(
        estimates={"EM": rows}, draws=draws, bayes=SimpleNamespace(unreliable=["p"])
    )
    ax = plot_forest(comparison)
    assert texts(ax) == ["EM", "NUTS"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["mu", "p *"]
    em, bayes = ax.containers
    mean, sd = draws["mu"].mean(), draws["mu"].std(ddof=1)
    assert em[0].get_xdata()[0] == pytest.approx((101 - mean) / sd)
    (low, _), (high, _) = em[2][0].get_segments()[0]
    assert high - low == pytest.approx(2 * 1.6448536 * 2 / sd)
    (low, _), (high, _) = bayes[2][0].get_segments()[1]
    assert low == pytest.approx((np.quantile(draws["p"], 0.05) - draws["p"].mean())
                                / draws["p"].std(ddof=1))  # fmt: skip


# -- several series -----------------------------------------------------------------------------


def a_chain(width):
    """What the figures of continuous chains ask of a fit, T = 30, and a forecast of 5 steps."""
    y = RNG.normal(size=(30, width)) if width else RNG.normal(size=30)
    state = SimpleNamespace(mean=np.linspace(0, 1, 30), sd=np.full(30, 0.1), is_chain=True)
    notes = SimpleNamespace(value=SimpleNamespace(observed={"y": y}, coords={}))
    model = SimpleNamespace(notes=notes, structure=SimpleNamespace(continuous=("h",)))
    fit = SimpleNamespace(model=model, posterior={"h": state})
    rows = 5 * max(width, 1)
    table = pd.DataFrame({"mean": np.arange(rows), "lower": -1.0, "upper": 1.0 * rows})
    ahead = SimpleNamespace(draws={"y": None}, length=30, steps=5, summary=lambda name: table)
    return fit, ahead, y


def test_states_name_the_data_once():
    fit, _, y = a_chain(3)
    ax = plot_states(fit)
    assert texts(ax) == ["data", "h"]
    np.testing.assert_array_equal([line.get_ydata() for line in ax.get_lines()[:3]], y.T)


def test_forecast_of_several_series_goes_on_in_the_colour_of_its_past():
    fit, ahead, y = a_chain(3)
    ax = plot_forecast(fit, ahead)
    lines = ax.get_lines()
    assert texts(ax) == ["y[0]", "y[1]", "y[2]"]
    for k in range(3):
        past, future = lines[2 * k : 2 * k + 2]
        assert past.get_color() == future.get_color() == COLORS[k]
        np.testing.assert_array_equal(past.get_ydata(), y[:, k])
        np.testing.assert_array_equal(future.get_ydata(), np.arange(k, 15, 3))


def test_forecast_of_one_series_among_several():
    fit, ahead, y = a_chain(3)
    past, future = plot_forecast(fit, ahead, entry=2).get_lines()
    np.testing.assert_array_equal(past.get_ydata(), y[:, 2])
    np.testing.assert_array_equal(future.get_ydata(), np.arange(2, 15, 3))
    with pytest.raises(ValueError, match="entry: expected 0 to 2, series of 'y', got 3"):
        plot_forecast(fit, ahead, entry=3)
    single, ahead, _ = a_chain(0)
    assert texts(plot_forecast(single, ahead)) == ["forecast of y"]
