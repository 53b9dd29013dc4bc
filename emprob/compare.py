"""A fit beside full Bayesian inference of the same program: where to trust the fast answer."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.stats import gaussian_kde, norm

from emprob import _arviz, agreement, chart, start_point
from emprob.agreement import CONSTANT
from emprob.bayes import RHAT_LIMIT, Bayes, constant
from emprob.errors import ConvergenceWarning, ModelError
from emprob.estep.unsolved import is_solved
from emprob.labels import LabelGroup, apply_labels, find_labels
from emprob.precision import working
from emprob.uncertainty import (
    TooManyParameters,
    information,
    table,
    table_without_errors,
    unconstrained_covariance,
)

NUM_RATIOS = 2000  # draws of the Gaussian approximation that its k-hat is judged by
GRID = 800
MAX_KDE = 4000
BAYES = "NUTS"


@dataclass(frozen=True)
class Comparison:
    """Fits and NUTS, parameter by parameter.

    Attributes:
        table: one row per scalar. Of a fit: estimate, se, z_shift = (posterior mean - estimate) /
            posterior sd, overlap of N(estimate, se) with the posterior (1: the same; on the log or
            logit scale where the support asks for it). Of NUTS: mean, sd, rhat, ess. `note` marks
            what cannot be trusted; entries that are the same number in every draw ('constant') are
            not judged. With a dict of fits the columns have the method as first level.
        fits: by name; labels of components aligned to those of the first.
        bayes: the draws, aligned likewise.
        khat: by name of the fit, Pareto k of the importance ratios of the posterior to the Gaussian
            approximation, latents integrated as in the fit if NUTS sampled them; NaN where there is
            no Gaussian (a boundary, a flat direction).
        seconds: by method; `attrs["what"]` says whether compiling is included.
        estimates: by name of the fit, what `table` is made of, with the bounds of the supports.
        verdict: in words, whether estimate and standard error are enough.
    """

    table: pd.DataFrame
    fits: Mapping[str, Any]
    bayes: Bayes
    khat: Mapping[str, float]
    seconds: pd.Series
    estimates: Mapping[str, pd.DataFrame]
    verdict: str
    draws: Mapping[str, np.ndarray] = field(repr=False, default_factory=dict)

    def plot(self, ax: Any = None) -> Any:
        """Both intervals of every parameter in one figure; returns matplotlib Axes."""
        from emprob.plot import plot_forest

        return plot_forest(self, ax=ax)

    def __repr__(self) -> str:
        return f"{self.table.to_string(float_format='{:.4g}'.format)}\n\n{self.verdict}"

    def _repr_html_(self) -> str:
        rows = self.table.to_html(float_format="{:.4g}".format)
        times = ", ".join(f"{k} {v:.3g} s" for k, v in self.seconds.items())
        what = self.seconds.attrs["what"]
        return f"{rows}<p><b>Time</b>, {what}: {times}.</p><p>{self.verdict}</p>"


def compare(
    fit_or_fits: Any, bayes: Bayes, labels: Sequence[LabelGroup] | None = None
) -> Comparison:
    """Lay a fit, or several, beside the posterior of the same program.

    Labels of exchangeable components are aligned to the first fit. The draws for k-hat are the
    same every time.

    Args:
        fit_or_fits: a `Fit`, or fits by name.
        bayes: made by `nuts`, of the same program and data.
        labels: groups of exchangeable labels; None: as found by `nuts`.

    Returns:
        The table, the verdict and a plot.

    Raises:
        ModelError: the parameters of fits and draws are not the same sites and shapes.

    Warns:
        ConvergenceWarning: NUTS diverged or has an R-hat above 1.01; its rows are marked.

    Source: Vehtari et al. (2024), JMLR 25(72), for k-hat; Inman and Bradley (1989), Communications
    in Statistics 18(10), for the overlap.
    """
    several = isinstance(fit_or_fits, Mapping)
    fits = dict(fit_or_fits) if several else {_method_name(fit_or_fits): fit_or_fits}
    if not fits or BAYES in fits:
        raise ModelError(f"compare: expected one fit or more, none named {BAYES!r}.")
    for name, fit in fits.items():
        _check_same(name, fit, bayes)
    groups = bayes.groups if labels is None else tuple(labels)
    reference = next(iter(fits.values())).params
    bayes = bayes.aligned(reference, groups)
    params = {name: _aligned(fit, reference, groups) for name, fit in fits.items()}
    reports = {name: _report(fits[name], params[name]) for name in fits}
    estimates = {n: _estimates(fits[n].model, params[n], reports[n]) for n in fits}
    draws = bayes.scalar_draws()
    parts = {name: _against(rows, draws) for name, rows in estimates.items()}
    own = _posterior(bayes, draws, estimates)
    khat = {n: gaussian_khat(bayes, fits[n].model, params[n], reports[n]) for n in fits}
    seconds = _seconds(fits, bayes)
    _warn(bayes)
    latents = next(iter(fits.values())).model.latents
    sampled = [n for n in bayes.model.params if n in latents]
    words = agreement.verdict(fits, parts, own, khat, seconds, bayes, sampled)
    frame = _joined(parts, own) if several else _side_by_side(next(iter(parts.values())), own)
    frame.attrs["seconds"] = seconds.to_dict()
    return Comparison(frame, fits, bayes, khat, seconds, estimates, words, draws)


def _method_name(fit: Any) -> str:
    return type(getattr(fit, "method", fit)).__name__


def _check_same(name: str, fit: Any, bayes: Bayes) -> None:
    for site, value in fit.params.items():
        have = bayes.samples.get(site)
        if have is None or have.shape[2:] != np.shape(value):
            got = "no such site" if have is None else f"shape {have.shape[2:]}"
            raise ModelError(
                f"compare: '{site}' has shape {np.shape(value)} in {name} and {got} in the draws. "
                "Compare a fit with draws of the same program and data."
            )


def _aligned(fit: Any, reference: Mapping, groups: Sequence[LabelGroup]) -> dict[str, np.ndarray]:
    params = {k: np.asarray(v) for k, v in fit.params.items()}
    return apply_labels(params, groups, find_labels(reference, params, groups))


# -- the parts of the table ---------------------------------------------------------------------


def _report(fit: Any, params: Mapping) -> Any:
    same = all(np.array_equal(params[k], fit.params[k]) for k in params)
    if same and fit.information is not None:
        return fit.information
    try:
        return information(fit.model, params)
    except TooManyParameters:
        return None


def _estimates(model: Any, params: Mapping, report: Any) -> pd.DataFrame:
    """By scalar: estimate, se, low and high bound of the support, note."""
    if report is None:
        rows = table_without_errors(model, params, "too many for an SE")
        return rows.assign(low=-np.inf, high=np.inf)
    return table(model, params, report)


def _against(rows: pd.DataFrame, draws: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """A fit's columns: estimate, se, shift and overlap with the draws."""
    out = {}
    for label, row in rows.iterrows():
        x = draws[str(label)].ravel()
        if constant(x):
            out[label] = (row["estimate"], row["se"], np.nan, np.nan, CONSTANT)
            continue
        spread = x.std(ddof=1)
        shift = (x.mean() - row["estimate"]) / spread if spread > 0 else np.nan
        out[label] = (row["estimate"], row["se"], shift, _row_overlap(row, x), row["note"])
    return pd.DataFrame.from_dict(
        out, orient="index", columns=["estimate", "se", "z_shift", "overlap", "note"]
    )


def _row_overlap(row: pd.Series, draws: np.ndarray) -> float:
    limits = chart.Bounds(np.asarray(row["low"], float), np.asarray(row["high"], float))
    centre, slope = chart.link(np.asarray(row["estimate"], float), limits)
    se = np.asarray(row["se"], float)
    return overlap(float(centre), float(se * slope), chart.link(draws, limits)[0])


def overlap(mean: float, sd: float, draws: np.ndarray) -> float:
    """Area under the lower of N(mean, sd) and a kernel density of draws (n,); NaN without an sd."""
    draws = draws[np.isfinite(draws)]
    if not (np.isfinite(mean) and sd > 0) or draws.size < 10 or np.ptp(draws) == 0:
        return float("nan")
    draws = draws[:: max(1, draws.size // MAX_KDE)]
    density = gaussian_kde(draws)
    reach = 4 * np.sqrt(density.covariance[0, 0])
    low = min(mean - 6 * sd, draws.min() - reach)
    high = max(mean + 6 * sd, draws.max() + reach)
    # Evenly spaced points would miss a spike: half of them follow each of the two laws.
    levels = np.linspace(0, 1, GRID // 2)[1:-1]
    grid = np.concatenate(
        [norm.ppf(levels, mean, sd), np.quantile(draws, levels), np.linspace(low, high, GRID)]
    )
    grid = np.unique(grid)
    lower = np.minimum(norm.pdf(grid, mean, sd), density(grid))
    return float(min(1.0, np.trapezoid(lower, grid)))


def _posterior(bayes: Bayes, draws: Mapping, estimates: Mapping) -> pd.DataFrame:
    """The columns of NUTS: mean, sd, rhat, ess, and what cannot be trusted."""
    labels = list(next(iter(estimates.values())).index)
    rhat, ess = bayes.rhat[labels], bayes.ess[labels]
    mark = np.where(rhat > RHAT_LIMIT, [f"R-hat {r:.3f}" for r in rhat], "")
    if bayes.divergences:
        found = f"{bayes.divergences} divergences"
        mark = np.array([f"{m}, {found}" if m else found for m in mark])
    return pd.DataFrame(
        {
            "mean": [draws[k].mean() for k in labels],
            "sd": [draws[k].std(ddof=1) for k in labels],
            "rhat": np.asarray(rhat),
            "ess": np.asarray(ess),
            "note": mark,
        },
        index=labels,
    )


def _side_by_side(part: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    notes = [", ".join(filter(None, pair)) for pair in zip(part["note"], own["note"])]
    columns = ["estimate", "se", "mean", "sd", "z_shift", "overlap", "rhat", "ess"]
    frame = pd.concat([part.drop(columns="note"), own.drop(columns="note")], axis=1)[columns]
    frame.index.name = "parameter"
    return frame.assign(note=notes)


def _joined(parts: Mapping[str, pd.DataFrame], own: pd.DataFrame) -> pd.DataFrame:
    frame = pd.concat({**parts, BAYES: own}, axis=1, names=["method", "quantity"])
    frame.index.name = "parameter"
    return frame


# -- the Gaussian approximation as a whole --------------------------------------------------------


def gaussian_khat(bayes: Bayes, model: Any, params: Mapping, report: Any) -> float:
    """Pareto k of exact posterior over N(estimate, covariance), in unconstrained space.

    Args:
        bayes: has the program whose posterior is meant, its prior included.
        model: of the fit; its integrals count where the draws have latents among them.
        params: of the fit, constrained, by site.
        report: the information there.

    Returns:
        Below 0.7 importance weights can correct the Gaussian; NaN where there is none.
    """
    if report is None or report.boundary or not report.identified:
        return float("nan")
    if set(bayes.model.params) != set(model.params) and not is_solved(model):
        return float("nan")
    covariance = unconstrained_covariance(model, params, report)
    try:
        root = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return float("nan")
    noise = np.random.default_rng(20260101).standard_normal((NUM_RATIOS, len(root)))
    same = set(bayes.model.params) == set(model.params)
    target = start_point.with_prior(bayes.model if same else model)
    with working(target):
        sites = {k: jnp.asarray(params[k]) for k in target.params}
        centre = start_point.ravel(target, target.unconstrain(sites))
        points = centre + jnp.asarray(noise @ root.T)
        log_target = -np.asarray(start_point.potentials(target, points), float)
    return _arviz.pareto_khat(log_target + 0.5 * (noise**2).sum(1))[1]


def _seconds(fits: Mapping[str, Any], bayes: Bayes) -> pd.Series:
    """By method; compiling left out where every fit says how long it ran without."""
    clocks = {name: fit.seconds for name, fit in fits.items()}
    split = all("run" in clock for clock in clocks.values())
    own = bayes.seconds["warmup"] + bayes.seconds["sample"] if split else bayes.seconds["total"]
    kind = "run" if split else "total"
    out = pd.Series({**{n: c[kind] for n, c in clocks.items()}, BAYES: own}, name="seconds")
    out.attrs["what"] = "compiling left out" if split else "compiling included"
    return out


def _warn(bayes: Bayes) -> None:
    problems = agreement.problems(bayes)
    if problems:
        warnings.warn(
            f"the draws are no yardstick yet: {problems}. Their rows are marked in the table.",
            ConvergenceWarning,
            stacklevel=3,
        )
