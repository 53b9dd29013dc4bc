"""Standard errors on the user's scale: of parameters, and of anything computed from them.

The delta method on the observed information (`curvature.py`). What the data do not determine has
the standard error NaN, and so has an entry at the boundary of its support, where the others are
computed with that entry held.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from scipy.stats import norm

from emprob import chart
from emprob.coordinates import as_arrays, coordinates_of, in_double, outputs_jacobian
from emprob.curvature import TooManyParameters, information
from emprob.report import UncertaintyReport, jackknife

__all__ = [
    "TooManyParameters",
    "UncertaintyReport",
    "covariance",
    "information",
    "report",
    "standard_errors",
]

report = information

METHODS = ("observed", "score", "sandwich")


class Outputs(NamedTuple):
    """Constrained parameters, then deterministics, as one vector of M numbers.

    Attributes:
        shapes: by site.
        labels: (M,) names of the entries.
        value: (M,).
        jacobian: (M, F) in all coordinates.
        low, high: (M,) bounds of each entry's support; infinite for deterministics.
        score: (M,) derivative of the objective in the entry's own coordinate; NaN if it has none.
        boundary: (M,) whether the entry lies at the boundary of its support.
        num_params: how many of the M are parameters.
    """

    shapes: dict[str, tuple[int, ...]]
    labels: list[str]
    value: np.ndarray
    jacobian: np.ndarray
    low: np.ndarray
    high: np.ndarray
    score: np.ndarray
    boundary: np.ndarray
    num_params: int


def outputs(model: Any, params: Mapping[str, Any], report: UncertaintyReport) -> Outputs:
    """Evaluate what standard errors are wanted of, with derivatives."""
    with jax.enable_x64(True):
        model, values = in_double(model), as_arrays(params)
        w = coordinates_of(model, values)
        found, slopes = jax.tree.map(np.asarray, outputs_jacobian(model, w))
        names = [*model.params, *found["deterministics"]]
        found = {**found["deterministics"], **{n: np.asarray(values[n]) for n in model.params}}
        low, high = _limits(model, found, names)
    slopes = {**slopes["deterministics"], **slopes["params"]}
    sizes = [found[n].size for n in names]
    score = np.full(sum(sizes), np.nan)
    count = sum(found[n].size for n in model.params)
    score[:count] = _own_scores(model, found, w, report.score)
    labels = [label for n in names for label in chart.entry_labels(n, found[n].shape)]
    held = set(report.boundary)
    return Outputs(
        shapes={n: found[n].shape for n in names},
        labels=labels,
        value=np.concatenate([found[n].ravel() for n in names]),
        jacobian=np.concatenate(
            [slopes[n].reshape(s, -1) for n, s in zip(names, sizes, strict=True)]
        ),
        low=low,
        high=high,
        score=score,
        boundary=np.array([i < count and label in held for i, label in enumerate(labels)], bool),
        num_params=count,
    )


def _limits(model: Any, found: Mapping[str, np.ndarray], names: list[str]):
    lows, highs = [], []
    for n in names:
        if n in model.params:
            low, high = chart.bounds(model.data.transforms[n], found[n].shape)
        else:
            low, high = np.full(found[n].shape, -np.inf), np.full(found[n].shape, np.inf)
        lows.append(low.ravel())
        highs.append(high.ravel())
    return np.concatenate(lows), np.concatenate(highs)


def _own_scores(model: Any, found: Mapping, w: Mapping, score: np.ndarray) -> np.ndarray:
    out, start = [], 0
    for n in model.params:
        part = score[start : start + w[n].size]
        start += w[n].size
        out.append(part if w[n].shape == found[n].shape else np.full(found[n].size, np.nan))
    return np.concatenate(out)


def _covariance(
    model: Any, params: Mapping, report: UncertaintyReport, out: Outputs, method: str
) -> np.ndarray:
    """(M, M) by one of `METHODS`."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if method == "observed":
        cov = report.covariance_of(out.jacobian)
    else:
        cov = _score_covariance(model, params, report, out.jacobian, method)
    cov[out.boundary, :] = np.nan
    cov[:, out.boundary] = np.nan
    return cov


def _score_covariance(model, params, report, jacobian: np.ndarray, method: str) -> np.ndarray:
    from emprob.criteria import pointwise_scores

    scores = pointwise_scores(model, params)[:, report.free]
    outer = scores.T @ scores
    if method == "score":
        return replace(report, information=outer).covariance_of(jacobian)
    return report.covariance_of(jacobian, middle=outer)


def covariance(
    model: Any,
    params: Mapping[str, Any],
    method: str = "observed",
    report: UncertaintyReport | None = None,
) -> pd.DataFrame:
    """Covariance of the estimated parameters, constrained scale.

    Args:
        model: a bound model.
        params: by site, constrained: the optimum.
        method: as of `standard_errors`.
        report: the information, if it is at hand.

    Returns:
        Labelled 'mu[0]' and so on; NaN for entries that are at a boundary or not determined.
    """
    report = information(model, params) if report is None else report
    out = outputs(model, params, report)
    n = out.num_params
    cov = _covariance(model, params, report, out, method)[:n, :n]
    return pd.DataFrame(cov, index=out.labels[:n], columns=out.labels[:n])


def standard_errors(
    model: Any,
    params: Mapping[str, Any],
    method: str = "observed",
    report: UncertaintyReport | None = None,
) -> dict[str, np.ndarray]:
    """Standard errors by site, deterministic sites included, constrained scale.

    Args:
        model: a bound model.
        params: by site, constrained: the optimum.
        method: "observed": inverse of minus the Hessian of the objective. "score": inverse of the
            outer product of the scores of the independent observations. "sandwich": both, valid
            where the program is not the law of the data (prior left out of the middle).
        report: the information, if it is at hand.

    Returns:
        NaN for what is at a boundary of its support or not determined by the data.

    Raises:
        ValueError: an unknown method; or scores are asked for where the observations are not
            independent.

    Source: Louis (1982), JRSS B 44(2); Huber (1967); White (1982), Econometrica 50.
    """
    report = information(model, params) if report is None else report
    out = outputs(model, params, report)
    se = _roots(_covariance(model, params, report, out, method))
    cuts = np.cumsum([int(np.prod(s)) for s in out.shapes.values()])[:-1]
    return {
        name: part.reshape(shape)
        for (name, shape), part in zip(out.shapes.items(), np.split(se, cuts), strict=True)
    }


def _roots(cov: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.diag(cov), 0.0))


# -- the table ----------------------------------------------------------------------------------

COLUMNS = ("estimate", "se", "low", "high", "score", "note")


def table(model: Any, params: Mapping[str, Any], report: UncertaintyReport) -> pd.DataFrame:
    """What a summary is made of, by entry: estimate, SE, bounds of the support, score, a note."""
    out = outputs(model, params, report)
    se = _roots(_covariance(model, params, report, out, "observed"))
    note = np.where(out.boundary, "boundary", np.where(np.isnan(se), "unidentified", ""))
    columns = (out.value, se, out.low, out.high, out.score, note)
    frame = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)), index=out.labels)
    if report.replicas is not None:
        frame["mc_error"] = report.noise_of(out.jacobian)
        frame["se_error"] = jackknife(
            [_roots(r.covariance_of(out.jacobian)) for r in report.without]
        )
    return frame


def table_without_errors(model: Any, params: Mapping[str, Any], note: str) -> pd.DataFrame:
    """The same table where no information matrix can be formed."""
    labels = [c for n in model.params for c in chart.entry_labels(n, np.shape(params[n]))]
    value = np.concatenate([np.ravel(params[n]) for n in model.params])
    blank = np.full(len(labels), np.nan)
    columns = (value, blank, blank, blank, blank, [note] * len(labels))
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)), index=labels)


def summary_of(rows: pd.DataFrame, level: float) -> pd.DataFrame:
    """Estimates with Wald intervals that stay inside the support.

    An interval is symmetric on the scale of the entry's bounds: the log above a lower bound, the
    log-odds in an interval, else the entry itself.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level!r}")
    limits = chart.Bounds(rows["low"].to_numpy(float), rows["high"].to_numpy(float))
    estimate = rows["estimate"].to_numpy(float)
    centre, slope = chart.link(estimate, limits)
    with np.errstate(all="ignore"):
        half = norm.ppf(0.5 + level / 2) * rows["se"].to_numpy(float) * slope
    frame = pd.DataFrame(
        {
            "estimate": estimate,
            "se": rows["se"],
            "lower": chart.unlink(centre - half, limits),
            "upper": chart.unlink(centre + half, limits),
            "gradient": rows["score"],
            "note": rows["note"],
        },
        index=rows.index,
    )
    for column in ("mc_error", "se_error"):
        if column in rows:
            frame.insert(len(frame.columns) - 1, column, rows[column])
    frame.attrs["level"] = level
    frame.attrs["intervals"] = (
        "Wald, symmetric on the log scale above a bound and on the log-odds scale in an interval, "
        "else on the scale of the estimate; se and estimate are on the constrained scale; gradient "
        "is the score on the unconstrained scale"
    )
    return frame


def unconstrained_covariance(
    model: Any, params: Mapping[str, Any], report: UncertaintyReport | None = None
) -> np.ndarray:
    """Covariance in the model's unconstrained space, (D, D), the program's order.

    Zero along what is at a boundary or not determined: add to the diagonal for a mass matrix.
    """
    report = information(model, params) if report is None else report
    with jax.enable_x64(True):
        values = as_arrays(params)
        w = coordinates_of(in_double(model), values)
    root, parts, start = report.square_root(), [], 0
    for name in model.params:
        size = w[name].size
        block = root[start : start + size].reshape(*w[name].shape, -1)
        start += size
        if chart.is_simplex(model.data.transforms[name]):
            block = block[..., :-1, :] - block[..., -1:, :]
        parts.append(block.reshape(-1, root.shape[1]))
    root = np.concatenate(parts)
    return root @ root.T
