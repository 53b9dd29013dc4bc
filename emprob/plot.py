"""Figures of a fit and of a comparison, in matplotlib.

Every function takes `ax=None` and returns the Axes it drew on; none of them shows a figure or
changes a global setting.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm

from emprob import chart
from emprob.bayes import constant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008), told apart by colour-blind readers; black and yellow are left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY = "#555555"
LEVEL = 0.9
LEAST_SPAN = 1.0  # of an axis of objectives: less than one unit of log-density matters little


def _axes(ax: Any, width: float = 7.0, height: float = 4.0) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _plain(ax: Any) -> Any:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def _color(k: int) -> str:
    return COLORS[k % len(COLORS)]


# -- a fit --------------------------------------------------------------------------------------


def plot_trace(fit: Any, ax: Any = None) -> "Axes":
    """Distance of the objective to its end and score norm against the step, on a log scale.

    Args:
        fit: has `trace` with per-step `objective` and `score_norm`.
        ax: to draw on.
    """
    ax = _axes(ax)
    objective = np.asarray(fit.trace["objective"], float)
    score = np.asarray(fit.trace["score_norm"], float)
    steps = np.arange(1, len(objective) + 1)
    best = np.nanmax([np.nanmax(objective), fit.objective])
    gap = best - objective
    for y, color, label, marker in (
        (gap, COLORS[0], f"objective below its end, {best:.6g}", "o"),
        (score, COLORS[1], "score norm (standard errors)", "s"),
    ):
        shown = np.isfinite(y) & (y > 0)
        few = marker if shown.sum() <= 60 else None
        ax.plot(steps[shown], y[shown], color=color, label=label, marker=few, markersize=4)
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_title(f"{fit.status.word}, {fit.num_steps} steps", loc="left", fontsize="medium")
    ax.legend(frameon=False)
    return _plain(ax)


def plot_starts(fit: Any, ax: Any = None) -> "Axes":
    """Objective at the end of every start, best first: how many found the same optimum.

    Args:
        fit: has `starts`, a DataFrame with a column `objective`.
        ax: to draw on.
    """
    ax = _axes(ax)
    rows = fit.starts
    values = np.sort(rows["objective"].to_numpy(float))[::-1]
    finite = values[np.isfinite(values)]
    order = np.arange(1, len(finite) + 1)
    near = np.isclose(finite, finite.max(), rtol=1e-8, atol=1e-3) if finite.size else order > 0
    groups = (
        (near, COLORS[0], "o", f"at the best optimum ({int(near.sum())} of {len(values)})"),
        (~near, COLORS[1], "s", f"elsewhere ({len(values) - int(near.sum())})"),
    )
    for which, color, marker, label in groups:
        if which.any():
            ax.plot(order[which], finite[which], marker, color=color, label=label)
    ax.set_xlabel("start, best first")
    ax.set_ylabel("objective")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.ticklabel_format(axis="y", useOffset=False)
    if finite.size and finite.max() - finite.min() < LEAST_SPAN:
        middle = (finite.max() + finite.min()) / 2
        ax.set_ylim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)
    _legend_above(ax, 2)
    return _plain(ax)


# -- latents ------------------------------------------------------------------------------------


def plot_marginals(
    fit: Any,
    x: Any = None,
    ax: Any = None,
    site: str | None = None,
    index: tuple[int, ...] = (),
    labels: Sequence[str] | None = None,
    y: Any = None,
) -> "Axes":
    """The observed data with the posterior of one discrete latent.

    A chain: the series, its background shaded by the probability of each state. Elsewhere: a
    histogram split by responsibility, or, for data in two dimensions and more, a scatter of the
    first two coloured by it.

    Args:
        fit: has `posterior[site].probs`, (T or N, ..., K).
        x: positions on the time axis of a chain (dates, say); (T,).
        ax: to draw on.
        site: of the latent; the longest one by default.
        index: which element, where the latent has further plates after the first axis.
        labels: names of the K states.
        y: observed values, (T or N, ...); those of the program's observed site by default.

    Raises:
        ValueError: the data are not along the latent's first axis, or the index is wrong.
    """
    site = _longest(fit) if site is None else site
    marginal = fit.posterior[site]
    probs = np.asarray(marginal.probs, float)
    probs = probs[(slice(None), *index)]
    if probs.ndim != 2:
        need = max(np.ndim(marginal.probs) - 2, 0)
        raise ValueError(
            f"index: latent '{site}' has probabilities of shape {np.shape(marginal.probs)}; "
            f"expected {need} indices, for the axes between first and last, got {tuple(index)}."
        )
    values = _observed(fit, len(probs)) if y is None else np.asarray(y, float)
    if values is not None and len(values) != len(probs):
        raise ValueError(f"y: expected {len(probs)} rows, as latent '{site}', got {len(values)}.")
    names = list(labels) if labels is not None else [f"{site} = {k}" for k in range(probs.shape[1])]
    ax = _axes(ax)
    if getattr(marginal, "is_chain", False):
        return _plot_regimes(ax, probs, values, x, names)
    if values is None:
        return _plot_regimes(ax, probs, None, None, names)
    return _plot_components(ax, probs, values.reshape(len(values), -1), names)


def _longest(fit: Any) -> str:
    sizes = {name: np.size(fit.posterior[name].probs) for name in fit.posterior}
    if not sizes:
        raise ValueError("plot_marginals: the model has no discrete latent.")
    return max(sizes, key=lambda name: sizes[name])


def _observed(fit: Any, length: int) -> np.ndarray | None:
    for value in fit.model.notes.value.observed.values():
        value = np.asarray(value, float)
        if value.ndim and len(value) == length:
            return value
    return None


def _plot_regimes(ax: Any, probs: np.ndarray, values: Any, x: Any, names: list[str]) -> "Axes":
    times = np.arange(len(probs)) if x is None else np.asarray(x)
    edges = np.concatenate([np.zeros((len(probs), 1)), probs.cumsum(1)], 1)
    for k, name in enumerate(names):
        ax.fill_between(
            times, edges[:, k], edges[:, k + 1], step="mid", alpha=0.35, linewidth=0,
            color=_color(k), label=name, transform=ax.get_xaxis_transform(),
        )  # fmt: skip
    if values is None:
        ax.set_ylabel("probability")
    else:
        ax.plot(times, values.reshape(len(values), -1), color="#222222", linewidth=0.8)
        ax.set_ylabel("observed")
    ax.set_xlabel("time")
    ax.margins(x=0)
    _legend_above(ax, len(names))
    return _plain(ax)


def _legend_above(ax: Any, count: int) -> None:
    ax.legend(
        frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(count, 4),
        borderaxespad=0.2,
    )  # fmt: skip


def _plot_components(ax: Any, probs: np.ndarray, values: np.ndarray, names: list[str]) -> "Axes":
    seen = np.isfinite(values).all(1)
    probs, values = probs[seen], values[seen]
    colors = [_color(k) for k in range(len(names))]
    if values.shape[1] == 1:
        count = int(np.clip(2 * np.cbrt(len(values)) * 2, 15, 80))
        columns = [values[:, 0]] * len(names)
        ax.hist(columns, bins=count, weights=list(probs.T), stacked=True, color=colors,
                label=names, alpha=0.8)  # fmt: skip
        ax.set_xlabel("observed")
        ax.set_ylabel("expected count")
    else:
        _scatter(ax, probs, values, colors, names)
    _legend_above(ax, len(names))
    return _plain(ax)


def _scatter(ax: Any, probs: np.ndarray, values: np.ndarray, colors: list, names: list) -> None:
    from matplotlib.colors import to_rgb

    mixed = np.clip(probs @ np.array([to_rgb(c) for c in colors]), 0, 1)
    ax.scatter(values[:, 0], values[:, 1], c=mixed, s=12, linewidths=0)
    for color, name in zip(colors, names):
        ax.scatter([], [], color=color, s=20, label=name)
    ax.set_xlabel("observed, first coordinate")
    ax.set_ylabel("observed, second coordinate")


# -- a comparison -------------------------------------------------------------------------------


def plot_forest(comparison: Any, ax: Any = None, names: Sequence[str] | None = None) -> "Axes":
    """Intervals of every parameter, 90 %: of each fit (Wald) and of NUTS (equal tails).

    Parameters are put on one scale, (value - posterior mean) / posterior sd, so that a location of
    100 and a probability can stand in one figure. The posterior mean and sd are written beside.

    Args:
        comparison: made by `compare`.
        ax: to draw on.
        names: the scalars to draw, in order; by default all that are not constant.
    """
    first = next(iter(comparison.estimates.values()))
    varies = [str(label) for label in first.index if not constant(comparison.draws[str(label)])]
    rows = varies if names is None else list(names)
    methods = [*comparison.estimates, "NUTS"]
    ax = _axes(ax, 7.0, 1.2 + (0.14 + 0.14 * len(methods)) * len(rows))
    offsets = np.linspace(-0.22, 0.22, len(methods))
    for m, method in enumerate(methods):
        triples = np.array([_interval(comparison, method, label) for label in rows], float)
        low, middle, high = triples.T
        place = np.arange(len(rows)) + offsets[m]
        color = GREY if method == "NUTS" else _color(m)
        errors = np.maximum([middle - low, high - middle], 0)
        ax.errorbar(middle, place, xerr=errors, fmt="D" if method == "NUTS" else "o",
                    markersize=4, color=color, label=method, linewidth=1.6)  # fmt: skip
    _forest_frame(ax, comparison, rows)
    return ax


def _interval(comparison: Any, method: str, label: str) -> tuple[float, float, float]:
    """Low end, middle and high end in posterior standard deviations from the posterior mean."""
    draws = comparison.draws[label].ravel()
    mean, sd = draws.mean(), draws.std(ddof=1) or 1.0
    if method == "NUTS":
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return (low - mean) / sd, 0.0, (high - mean) / sd
    row = comparison.estimates[method].loc[label]
    limits = chart.Bounds(np.asarray(float(row["low"])), np.asarray(float(row["high"])))
    centre, slope = chart.link(np.asarray(float(row["estimate"])), limits)
    with np.errstate(all="ignore"):
        half = norm.ppf((1 + LEVEL) / 2) * float(row["se"]) * slope
        ends = [float(chart.unlink(centre + s * half, limits)) for s in (-1, 1)]
    low, middle, high = ((v - mean) / sd for v in (ends[0], float(row["estimate"]), ends[1]))
    return low, middle, high


def _forest_frame(ax: Any, comparison: Any, rows: Sequence[str]) -> None:
    ax.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    marked = set(comparison.bayes.unreliable)
    texts = [f"{label} *" if label in marked else label for label in rows]
    ax.set_yticks(range(len(rows)), texts)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(f"(value - posterior mean) / posterior sd, {LEVEL:.0%} intervals")
    for i, label in enumerate(rows):
        draws = comparison.draws[label]
        text = f"{draws.mean():.3g} ± {draws.std(ddof=1):.2g}"
        ax.text(1.02, i, text, transform=ax.get_yaxis_transform(), va="center", color=GREY,
                fontsize="small")  # fmt: skip
    ax.text(1.02, 1.02, "NUTS mean ± sd", transform=ax.transAxes, color=GREY, fontsize="small")
    title = "* R-hat above 1.01" if marked & set(rows) else ""
    ax.set_title(title, loc="right", fontsize="small")
    _legend_above(ax, 4)
    _plain(ax)


# -- continuous chains --------------------------------------------------------------------------


def plot_states(fit: Any, name: str | None = None, ax: Any = None) -> "Axes":
    """The smoothed path of a continuous latent with its 95 % band, over the data where they fit.

    Args:
        fit: of a program with a continuous chain.
        name: of the latent; None: the first one in a scan.
        ax: axes to draw in; None: a new figure.
    """
    ax = _axes(ax)
    chains = [k for k in fit.posterior if k in fit.model.structure.continuous]
    name = name if name is not None else next(k for k in chains if fit.posterior[k].is_chain)
    state = fit.posterior[name]
    length = len(state.mean)
    mean, sd = state.mean.reshape(length, -1), state.sd.reshape(length, -1)
    y, x = _observed(fit, length), _times(fit, length)
    if y is not None and mean.shape[1] == 1:
        dots = ax.plot(x, y.reshape(length, -1), ".", color="0.6", markersize=4, zorder=1)
        dots[0].set_label("data")  # once, however many columns
    for k in range(min(mean.shape[1], 6)):
        label = f"{name}" if mean.shape[1] == 1 else f"{name}[{k}]"
        _band(ax, x, mean[:, k], 1.96 * sd[:, k], _color(k), label)
    ax.legend(frameon=False)
    ax.set_title(f"{name}: smoothed mean and 95 % band", loc="left", fontsize=10)
    return _plain(ax)


def plot_forecast(
    fit: Any, ahead: Any, name: str | None = None, ax: Any = None, entry: int | None = None
) -> "Axes":
    """The end of an observed series and what is forecast of it, with its 95 % interval.

    Args:
        fit: the fit that `ahead` comes from.
        ahead: from `fit.forecast`.
        name: an observed site; None: the first.
        ax: axes to draw in; None: a new figure.
        entry: which of several series, in C order; None: the first six, each past in the colour
            of its forecast.

    Raises:
        ValueError: there is no such entry.
    """
    ax = _axes(ax)
    name = name or next(k for k in fit.model.notes.value.observed if k in ahead.draws)
    y = np.asarray(fit.model.notes.value.observed[name], float).reshape(ahead.length, -1)
    shown = min(ahead.length, max(6 * ahead.steps, 40))
    table = ahead.summary(name)
    width = y.shape[1]
    x = _times(fit, ahead.length)
    after = x[-1] + (x[-1] - x[-2]) * np.arange(1, ahead.steps + 1)
    if entry is not None and not 0 <= entry < width:
        raise ValueError(f"entry: expected 0 to {width - 1}, series of '{name}', got {entry!r}.")
    entries = range(min(width, 6)) if entry is None else [entry]
    for i, k in enumerate(entries):
        rows = table.iloc[k::width]
        past = "0.35" if len(entries) == 1 else _color(i)
        ax.plot(x[-shown:], y[-shown:, k], color=past, lw=1)
        middle = (rows["upper"] + rows["lower"]) / 2
        _band(ax, after, rows["mean"], rows["upper"] - middle, _color(i),
              f"forecast of {name}" if width == 1 else f"{name}[{k}]")  # fmt: skip
    ax.legend(frameon=False)
    ax.set_title("Forecast with its 95 % interval", loc="left", fontsize=10)
    return _plain(ax)


def _band(ax: Any, x: Any, middle: Any, half: Any, color: str, label: str) -> None:
    ax.plot(x, middle, color=color, lw=1.5, label=label, zorder=3)
    ax.fill_between(x, middle - half, middle + half, color=color, alpha=0.2, lw=0, zorder=2)


def _times(fit: Any, length: int) -> np.ndarray:
    """The labels of the steps if the data came with numbers for labels, else 0, 1, ..."""
    for coords in fit.model.notes.value.coords.values():
        for values in coords.values() if isinstance(coords, dict) else [coords]:
            values = np.asarray(values)
            if values.shape == (length,) and values.dtype.kind in "if":
                return values.astype(float)
    return np.arange(float(length))
