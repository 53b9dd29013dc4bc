"""Figures of volatility surfaces, exotic prices and hedges.

Every function takes arrays or `Quotes` and returns a Figure; none shows it or changes a setting.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emprob.models.quotes import Quotes, errors_in_spreads
from emprob.plot import COLORS, GREY

OUTLIER = 0.5  # a quote is marked from this probability on
LIMIT = 3.0  # half-spreads at the ends of the colour scale
DAYS, MONTHS = 365.0, 12.0


def tenor(time: float) -> str:
    """Years as the name of a tenor: "13 d", "5.2 m", "1.4 y"."""
    if time * DAYS < 60:
        return f"{time * DAYS:.3g} d"
    return f"{time * MONTHS:.2g} m" if time < 1 else f"{time:.2g} y"


def grid(quotes: Quotes, num_points: int = 101, margin: float = 0.05) -> np.ndarray:
    """Log-moneyness to draw each expiry at (E, G): the range of its quotes and a little more.

    Args:
        quotes: N options; an expiry without a quote has the range of all.
        num_points: G.
        margin: added at both ends, as a share of the range.
    """
    k, code = np.asarray(quotes.log_moneyness, float), np.asarray(quotes.expiry)
    shown = np.asarray(quotes.observed)
    rows = []
    for e in range(quotes.num_expiries):
        own = k[(code == e) & shown] if ((code == e) & shown).any() else k
        low, high = own.min(), own.max()
        more = margin * max(high - low, 1e-3)
        rows.append(np.linspace(low - more, high + more, num_points))
    return np.stack(rows)


def _figure(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple:
    import matplotlib.pyplot as plt

    return plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained",
        squeeze=False, **options,
    )  # fmt: skip


def _plain(ax: Any) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _color(i: int) -> str:
    return COLORS[i % len(COLORS)]


# -- smiles -------------------------------------------------------------------------------------


def plot_smiles(
    quotes: Quotes,
    log_moneyness: Any = None,
    volatility: Any = None,
    band: tuple[Any, Any] | None = None,
    outlier: Any = None,
    held_out: Any = None,
    labels: Sequence[str] | None = None,
) -> Any:
    """One panel per expiry: bid-ask bars, the fit and its band, in percent.

    Args:
        quotes: N options; missing ones are not drawn.
        log_moneyness: (E, G), where the fit is drawn, as from `grid`.
        volatility: (E, G), of the fit.
        band: lower and upper (E, G), of the posterior.
        outlier: (N,), probabilities that a quote is bad; from one half on it is a cross.
        held_out: Quotes that the fit did not see, drawn as open circles.
        labels: E names of the expiries.
    """
    count = quotes.num_expiries
    columns = min(count, 2 if count in (2, 4) else 3)
    figure, axes = _figure(-(-count // columns), columns, 3.7, 2.7)
    names = labels or [tenor(float(t)) for t in np.asarray(quotes.times)]
    for e, ax in enumerate(axes.flat):
        if e >= count:
            ax.set_axis_off()
            continue
        _draw_quotes(ax, quotes, e, outlier)
        if held_out is not None:
            _draw_held_out(ax, held_out, e)
        if volatility is not None:
            _draw_fit(ax, e, log_moneyness, volatility, band)
        ax.set_title(names[e], loc="left", fontsize="medium")
        ax.locator_params(axis="x", nbins=5)
        _plain(ax)
    _shared_legend(figure, axes)
    figure.supxlabel("log(strike / forward)", fontsize="medium")
    figure.supylabel("implied volatility, %", fontsize="medium")
    return figure


def _draw_quotes(ax: Any, quotes: Quotes, e: int, outlier: Any) -> None:
    k, mid, half = (np.asarray(x, float) for x in
                    (quotes.log_moneyness, quotes.mid, quotes.half_spread))  # fmt: skip
    here = (np.asarray(quotes.expiry) == e) & np.isfinite(mid)
    bad = np.zeros(len(k), bool) if outlier is None else np.asarray(outlier) >= OUTLIER
    half = np.nan_to_num(half)
    for which, marker, color, label in (
        (here & ~bad, ".", GREY, "bid to ask" if half.any() else "quote"),
        (here & bad, "x", COLORS[1], "bad quote"),
    ):
        if which.any():
            bars = 100 * half[which]
            ax.errorbar(
                k[which], 100 * mid[which], bars if bars.any() else None, fmt=marker, color=color,
                markersize=5, elinewidth=1.2, capsize=2, label=label, zorder=3,
            )  # fmt: skip


def _draw_held_out(ax: Any, held_out: Quotes, e: int) -> None:
    here = (np.asarray(held_out.expiry) == e) & np.asarray(held_out.observed)
    if here.any():
        ax.plot(
            np.asarray(held_out.log_moneyness)[here], 100 * np.asarray(held_out.mid)[here], "o",
            color=COLORS[2], markerfacecolor="none", markersize=5, label="held out", zorder=4,
        )  # fmt: skip


def _draw_fit(ax: Any, e: int, log_moneyness: Any, volatility: Any, band: Any) -> None:
    k = np.asarray(log_moneyness)[e]
    if band is not None:
        low, high = (100 * np.asarray(side)[e] for side in band)
        ax.fill_between(k, low, high, color=COLORS[0], alpha=0.2, linewidth=0, label="band")
    ax.plot(k, 100 * np.asarray(volatility)[e], color=COLORS[0], linewidth=1.5, label="fit")


def _shared_legend(figure: Any, axes: Any) -> None:
    """One legend for all panels, above them."""
    entries: dict[str, Any] = {}
    for ax in np.ravel(axes):
        entries.update(zip(*reversed(ax.get_legend_handles_labels())))
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper right", ncols=len(entries),
        frameon=False, fontsize="small",
    )  # fmt: skip


def plot_surface(
    times: Any, log_moneyness: Any, volatility: Any, quotes: Quotes | None = None
) -> Any:
    """The surface in three dimensions, with the quotes as points.

    Args:
        times: (T,), years.
        log_moneyness: (G,) or (T, G).
        volatility: (T, G), of the fit.
        quotes: N options.
    """
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(7.5, 5.2), layout="constrained")
    ax: Any = figure.add_subplot(projection="3d")
    z = 100 * np.asarray(volatility, float)
    x = np.broadcast_to(np.asarray(log_moneyness, float), z.shape)
    y = np.broadcast_to(np.asarray(times, float)[:, None], z.shape)
    ax.plot_surface(x, y, z, cmap="viridis", alpha=0.8, linewidth=0, rcount=60, ccount=60)
    if quotes is not None:
        here = np.asarray(quotes.observed)
        ax.scatter(
            np.asarray(quotes.log_moneyness)[here], np.asarray(quotes.time)[here],
            100 * np.asarray(quotes.mid)[here], color="black", s=8, depthshade=False,
            label="quotes",
        )  # fmt: skip
        ax.legend(frameon=False, loc="upper right")
    ax.set_xlabel("log(strike / forward)")
    ax.set_ylabel("years to expiry")
    ax.set_zlabel("implied volatility, %")
    ax.view_init(elev=24, azim=-125)
    ax.set_box_aspect(None, zoom=0.9)
    return figure


# -- residuals ----------------------------------------------------------------------------------


def plot_residuals(
    quotes: Quotes,
    volatility: Any,
    outlier: Any = None,
    labels: Sequence[str] | None = None,
    least: float = 1e-4,
) -> Any:
    """Heat map of the fit's errors in half-spreads by expiry and moneyness; outliers beside it.

    Moneyness is in standard deviations to expiry, so that expiries can be compared. Quotes without
    any spread are shown in volatility points.

    Args:
        quotes: N options.
        volatility: (N,), of the fit.
        outlier: (N,), probabilities that a quote is bad.
        labels: E names of the expiries.
        least: smallest half-spread that is divided by, as volatility.
    """
    error, label, limit = _errors(quotes, volatility, least)
    deviation = np.asarray(volatility * np.sqrt(quotes.time), float)
    x, row = np.asarray(quotes.log_moneyness, float) / deviation, np.asarray(quotes.expiry)
    panels = [(label, error, "RdBu_r", -limit, limit, "both")]
    if outlier is not None:
        shown = np.where(np.isfinite(error), np.asarray(outlier, float), np.nan)
        panels.append(("probability of a bad quote", shown, "magma_r", 0.0, 1.0, "neither"))
    figure, axes = _figure(
        1, len(panels), 5.4, max(2.4, 0.36 * quotes.num_expiries + 1.2), sharey=True
    )
    names = labels or [tenor(float(t)) for t in np.asarray(quotes.times)]
    for ax, (label, value, colors, low, high, extend) in zip(axes.flat, panels):
        _heat(ax, x, row, value, colors, low, high)
        figure.colorbar(ax.collections[0], ax=ax, label=label, extend=extend)
        ax.set_xlabel("log(strike / forward) / deviation")
        ax.set_facecolor("#eeeeee")
        _plain(ax)
    axes[0, 0].set_yticks(range(quotes.num_expiries), names)
    axes[0, 0].set_ylim(quotes.num_expiries - 0.5, -0.5)
    axes[0, 0].set_ylabel("expiry")
    return figure


def _errors(quotes: Quotes, volatility: Any, least: float) -> tuple[np.ndarray, str, float]:
    """Errors (N,), their name and the end of their colour scale."""
    if bool(np.isfinite(np.asarray(quotes.half_spread)).any()):
        error = np.asarray(errors_in_spreads(quotes, volatility, least), float)
        return error, "fit less mid, half-spreads", LIMIT
    error = 100 * np.asarray(volatility - quotes.mid, float)
    return error, "fit less mid, volatility points", float(np.nanquantile(np.abs(error), 0.98))


def _heat(ax: Any, x: np.ndarray, row: np.ndarray, value: np.ndarray, colors: str, low: float,
          high: float) -> None:  # fmt: skip
    """One cell per quote, from halfway to its neighbour before to halfway to that after it."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    cells, numbers = [], []
    widest = 0.06 * max(np.nanmax(x) - np.nanmin(x), 1e-6)
    for e in np.unique(row):
        own = np.flatnonzero(row == e)
        own = own[np.argsort(x[own])]
        between = np.diff(x[own]) / 2
        left = np.minimum(np.concatenate([[widest], between]), widest)
        right = np.minimum(np.concatenate([between, [widest]]), widest)
        for i, before, after in zip(own, left, right):
            if np.isfinite(value[i]):
                cells.append(Rectangle((x[i] - before, e - 0.4), before + after, 0.8))
                numbers.append(value[i])
    drawn = PatchCollection(cells, cmap=colors, edgecolor="white", linewidth=0.4)
    drawn.set_array(np.asarray(numbers))
    drawn.set_clim(low, high)
    ax.add_collection(drawn)
    ax.set_xlim(np.nanmin(x) - 2 * widest, np.nanmax(x) + 2 * widest)


# -- parameters, exotics, hedges ----------------------------------------------------------------


def plot_term_structure(
    times: Any,
    estimates: Mapping[str, Any],
    lower: Mapping[str, Any] | None = None,
    upper: Mapping[str, Any] | None = None,
    separate: Mapping[str, Any] | None = None,
) -> Any:
    """A panel for every parameter against the time to expiry, with intervals.

    Args:
        times: (E,), years.
        estimates: (E,) by parameter.
        lower, upper: (E,) by parameter, of the intervals.
        separate: (E,) by parameter, of fits to each expiry alone.
    """
    times, names = np.asarray(times, float), list(estimates)
    columns = min(len(names), 3)
    figure, axes = _figure(-(-len(names) // columns), columns, 3.6, 2.6)
    for i, ax in enumerate(axes.flat):
        if i >= len(names):
            ax.set_axis_off()
            continue
        name, value = names[i], np.asarray(estimates[names[i]], float)
        if lower is not None and upper is not None:
            low, high = np.asarray(lower[name], float), np.asarray(upper[name], float)
            ax.fill_between(times, low, high, color=COLORS[0], alpha=0.2, linewidth=0,
                            label="interval")  # fmt: skip
        ax.plot(times, value, "o-", color=COLORS[0], markersize=4, label="estimate")
        if separate is not None and name in separate:
            ax.plot(times, np.asarray(separate[name]), "x", color=COLORS[1], label="alone")
        ax.set_title(name, loc="left", fontsize="medium")
        _plain(ax)
    _shared_legend(figure, axes)
    figure.supxlabel("years to expiry", fontsize="medium")
    return figure


def plot_exotic_prices(
    draws: Mapping[str, Any], point: float | None = None, error: float | None = None,
    label: str = "price", num_bins: int = 40,
) -> Any:  # fmt: skip
    """Histograms of the price of an exotic over the uncertainty of the parameters.

    Args:
        draws: (S,) prices by source, as {"Gaussian approximation": ..., "NUTS": ...}.
        point: price at the estimate.
        error: standard error of its simulation, drawn as a band of two of them.
        label: of the axis.
        num_bins: shared by all histograms.
    """
    figure, axes = _figure(1, 1, 6.5, 3.8)
    ax = axes[0, 0]
    values = {name: np.asarray(v, float)[np.isfinite(v)] for name, v in draws.items()}
    both = np.concatenate(list(values.values()))
    # A few draws far out must not squeeze the rest into one bar.
    low, high = np.quantile(both, [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1e-12, num_bins + 1)
    for i, (name, v) in enumerate(values.items()):
        middle, spread = np.mean(v), np.std(v)
        ax.hist(v, edges, density=True, histtype="stepfilled", color=_color(i), alpha=0.25)
        ax.hist(v, edges, density=True, histtype="step", color=_color(i), linewidth=1.4,
                label=f"{name}: {middle:.4g} ± {spread:.2g}")  # fmt: skip
    if point is not None:
        ax.axvline(point, color=GREY, linewidth=1.2, label=f"at the estimate: {point:.4g}")
        if error is not None:
            ax.axvspan(point - 2 * error, point + 2 * error, color=GREY, alpha=0.25, linewidth=0,
                       label="± 2 errors of the simulation")  # fmt: skip
    ax.set_xlabel(label)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    _plain(ax)
    return figure


def plot_hedge(times: Any, wealth: Mapping[str, Any], label: str = "profit and loss") -> Any:
    """Profit and loss of hedges: bands of the paths, and the law at the end.

    Args:
        times: (T,), years.
        wealth: (P, T) by strategy, as {"none": ..., "delta": ..., "delta and vega": ...}.
        label: of the axis of money.
    """
    times = np.asarray(times, float)
    figure, axes = _figure(1, 2, 4.8, 3.6, sharey=True, width_ratios=[1.5, 1])
    paths, law = axes[0]
    last = np.concatenate([np.asarray(v, float)[:, -1] for v in wealth.values()])
    edges = np.linspace(*np.quantile(last, [0.002, 0.998]), 50)
    for i, (name, value) in enumerate(wealth.items()):
        value = np.asarray(value, float)
        low, middle, high = np.quantile(value, [0.05, 0.5, 0.95], axis=0)
        paths.fill_between(times, low, high, color=_color(i), alpha=0.2, linewidth=0)
        paths.plot(times, middle, color=_color(i), linewidth=1.4)
        law.hist(
            value[:, -1], edges, density=True, orientation="horizontal", histtype="step",
            color=_color(i), linewidth=1.4, label=f"{name}: sd {value[:, -1].std():.3g}",
        )  # fmt: skip
    for ax in (paths, law):
        ax.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
        _plain(ax)
    paths.set_xlabel("years")
    paths.set_ylabel(label)
    paths.set_title("median and 5 to 95 % of the paths", loc="left", fontsize="medium")
    law.set_title("at the end", loc="left", fontsize="medium")
    law.set_xticks([])
    law.legend(frameon=False, fontsize="small")
    return figure
