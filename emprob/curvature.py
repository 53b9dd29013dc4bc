"""The observed information at an optimum.

It is minus the Hessian of the objective in the coordinates of `chart.py`. Second derivatives at a
stationary point are those of any chart, so the delta method carries them to the user's scale.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array, lax

from emprob import chart
from emprob.coordinates import as_arrays, coordinates_of, flatten, in_double, unflatten
from emprob.hurried import Hurried
from emprob.report import ALIGNED, LARGEST, System, UncertaintyReport, decompose, tolerance_of
from emprob.work import cells, is_little

MAX_COORDINATES = 2000
MAX_BATCH_CELLS = 4_000_000  # columns of the Hessian that are formed together: memory
NO_INFORMATION = 1e-13  # relative to the objective: the rounding error of a second derivative
LEAST_FALL, MOST_FALL = 0.005, 50.0  # of a parabola, one conditional SE away, it is 0.5


class TooManyParameters(ValueError):
    """The information matrix would be too large to form."""


class NoCurvature(ValueError):
    """The second derivatives are not finite."""


# -- derivatives --------------------------------------------------------------------------------


class _Curvature(NamedTuple):
    """Objective, gradient (F,) and Hessian (F, F) in all coordinates."""

    value: np.ndarray | Array
    score: np.ndarray | Array
    hessian: np.ndarray | Array


def _objective(model: Any, like: Mapping[str, Array], flat: Array) -> Array:
    w = unflatten(model, flat, like)
    return model.objective(chart.from_coordinates(model.data.transforms, w))


def _derivatives(model: Any, coordinates: Mapping[str, Array], batch: int) -> _Curvature:
    """Derivatives at a point: forward over reverse, the columns in batches."""
    point = flatten(model, coordinates)
    both = jax.value_and_grad(partial(_objective, model, coordinates))
    (value, score), push = jax.linearize(both, point)
    column = lambda e: push(e)[1]  # noqa: E731
    basis = jnp.eye(point.size)
    if batch >= point.size:
        return _Curvature(value, score, jax.vmap(column)(basis))
    return _Curvature(value, score, lax.map(column, basis, batch_size=batch))


_curvature = Hurried(_derivatives, lambda model, w, _: is_little(model, w), static_argnums=2)


def _fall(
    model: Any, coordinates: Mapping[str, Array], at: _Curvature, step: Array, asked: Array
) -> Array:
    """How far the objective stays below its tangent a step up and down each coordinate, (2, F).

    Zero where it is not asked for (F,).
    """
    point = flatten(model, coordinates)
    value, score = jnp.asarray(at.value), jnp.asarray(at.score)

    def fall(e: Array, move: Array) -> Array:
        far = _objective(model, coordinates, point + move * e)
        return value + move * (score @ e) - far

    moves = jnp.concatenate([step, -step])
    basis = jnp.tile(jnp.eye(point.size), (2, 1))

    def fall_if(x: tuple[Array, Array, Array]) -> Array:
        e, move, wanted = x
        return lax.cond(wanted, lambda: fall(e, move), lambda: jnp.zeros_like(value))

    return lax.map(fall_if, (basis, moves, jnp.tile(asked, 2))).reshape(2, -1)


_falls = Hurried(_fall, lambda model, w, *_: is_little(model, w))


def _batch(model: Any, params: Mapping[str, Array], size: int) -> int:
    return int(np.clip(MAX_BATCH_CELLS // cells(model, params), 1, size))


# -- the report ---------------------------------------------------------------------------------


def information(
    model: Any, params: Mapping[str, Any], edge: Collection[str] = ()
) -> UncertaintyReport:
    """Observed information at an optimum, in float64.

    Args:
        model: a bound model.
        params: by site, constrained: a stationary point of the objective.
        edge: labels of entries that are known to be at the end of their half-line.

    Raises:
        TooManyParameters: more than 2000 coordinates.
        NoCurvature: a second derivative is not finite.
    """
    with jax.enable_x64(True):
        model, values = in_double(model), as_arrays(params)
        w = coordinates_of(model, values)
        size = sum(x.size for x in w.values())
        _check_size(size)
        layout = _layout(model, values, w)
        layout = layout._replace(hard=layout.hard | np.isin(layout.labels, list(edge)))
        found = _curvature(model, w, _batch(model, values, size))
        at = _Curvature(*map(np.asarray, found))
        if not np.isfinite(at.hessian).all():
            bad = ~np.isfinite(at.hessian).all(0)
            names = ", ".join(np.asarray(layout.labels)[bad][:6])
            raise NoCurvature(
                f"the second derivatives of the objective are not finite along {names}: there are "
                "no standard errors. Start elsewhere (init=), or use ep.nuts."
            )
        return _report(layout, at, _diverging(model, w, layout, at))


def report_of(
    model: Any, params: Mapping, w: Mapping, score: np.ndarray, matrix: np.ndarray,
    replicas: tuple[np.ndarray, np.ndarray],
) -> UncertaintyReport:  # fmt: skip
    """The report of an information matrix over all coordinates that was found by simulation."""
    layout = _layout(model, params, w)
    at = _Curvature(np.zeros(()), score, -matrix)
    found = _report(layout, at, np.zeros(len(score), bool))
    return replace(found, replicas=replicas)


def _check_size(size: int) -> None:
    if size > MAX_COORDINATES:
        raise TooManyParameters(
            f"the model has {size} free coordinates, and the information matrix is formed up to "
            f"{MAX_COORDINATES}. Standard errors are not available; fix or pool parameters, or "
            "make the effects latent."
        )


class _Layout(NamedTuple):
    """All F coordinates: names, magnitudes, which are at a boundary, which rows are simplexes."""

    labels: list[str]
    value: np.ndarray
    hard: np.ndarray  # at the end of an interval
    soft: np.ndarray  # near the end of a half-line: at the boundary if it carries no information
    reference: np.ndarray  # the largest entry of each simplex row
    bounded: np.ndarray  # a log or log-odds


def _layout(model: Any, params: Mapping[str, Array], w: Mapping[str, Array]) -> _Layout:
    labels, parts = [], []
    for name in model.params:
        value, x = np.asarray(params[name]), np.asarray(w[name])
        labels += chart.coordinate_labels(name, value.shape, x.shape)
        parts.append([p.ravel() for p in (x, *_site_marks(model.data.transforms[name], value, x))])
    return _Layout(labels, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def _site_marks(transform: Any, value: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
    none = np.zeros(x.shape, bool)
    if chart.is_simplex(transform):
        largest = np.arange(value.shape[-1]) == value.argmax(-1)[..., None]
        zero = value < chart.BOUNDARY
        alone = (zero | largest).all(-1, keepdims=True) & (value.shape[-1] > 1)
        return zero | (alone & largest), none, largest & ~alone, ~none
    if value.shape != x.shape:
        return none, none, none, none
    limits = chart.bounds(transform, value.shape)
    near, ends = chart.at_bound(value, limits), np.isfinite(limits)
    interval = ends[0] & ends[1]
    return near & interval, near & ~interval, none, ends[0] | ends[1]


def _report(layout: _Layout, at: _Curvature, diverging: np.ndarray) -> UncertaintyReport:
    full = -0.5 * (at.hessian + at.hessian.T)
    diagonal = np.abs(np.diag(full))
    edge = layout.hard | (layout.soft & (diagonal < 1e-6))
    free = ~(edge | layout.reference)
    diverging = free & diverging
    void = diverging | _is_flat(layout, at)
    matrix = np.where(void | void[:, None], 0.0, full)
    matrix = matrix[np.ix_(free, free)]
    labels = tuple(label for label, f in zip(layout.labels, free, strict=True) if f)
    score_norm = _decrement(matrix, np.asarray(at.score)[free])
    limit = tolerance_of(score_norm)
    system = decompose(matrix, limit)
    relative = system.values / max(system.values.max(initial=0.0), 1e-300)
    negative = relative < -limit
    null = _directions(system, labels, ~system.determined & ~negative)
    runaway = {label for label, d in zip(layout.labels, diverging, strict=True) if d}
    return UncertaintyReport(
        labels=labels,
        information=matrix,
        eigenvalues=relative,
        null_directions=tuple(_in_words(v, runaway) for v in null),
        negative_directions=tuple(map(_in_words, _directions(system, labels, negative))),
        null_vectors=null,
        boundary=tuple(label for label, e in zip(layout.labels, edge, strict=True) if e),
        score_norm=score_norm,
        free=free,
        score=np.asarray(at.score),
    )


def _diverging(model: Any, w: Mapping, layout: _Layout, at: _Curvature) -> np.ndarray:
    """Coordinates along which the objective is no parabola, not even roughly, one SE away.

    A likelihood that rises for ever (separated classes, a rate that goes to zero) has a curvature
    that dies out along the way: its inverse would be a large, finite, meaningless variance. Where
    none is left, it still falls on the way back to zero.
    """
    diagonal = -np.diag(at.hessian)
    flat = _is_flat(layout, at) & ~layout.hard & ~layout.bounded
    curved = (diagonal > 0) & ~flat
    size = np.abs(layout.value)
    step = np.where(curved, 1 / np.sqrt(np.where(curved, diagonal, 1.0)), np.where(flat, size, 0.0))
    near = np.abs(at.score) * step < 0.1  # elsewhere this is no stationary point
    suspect = curved & near & ~layout.hard & (step > np.where(layout.bounded, 1.0, size))
    if not (suspect | flat).any():
        return suspect
    falls = np.asarray(_falls(model, w, at, jnp.asarray(step), jnp.asarray(suspect | flat)))
    falls = np.where(np.isnan(falls), np.inf, falls)
    odd = (falls < LEAST_FALL).any(0) | (falls > MOST_FALL).all(0)
    return (suspect & odd) | (flat & (falls > 0.5).any(0))


def _is_flat(layout: _Layout, at: _Curvature) -> np.ndarray:
    """Coordinates without information, to rounding."""
    diagonal = np.abs(np.diag(at.hessian))
    return diagonal * (1 + layout.value**2) < NO_INFORMATION * (1 + abs(at.value))


def _decrement(matrix: np.ndarray, score: np.ndarray) -> float:
    system = decompose(matrix, LARGEST)
    along = (score / system.scale) @ system.vectors[:, system.determined]
    return float(np.sqrt(np.sum(along**2 / system.values[system.determined])))


def _directions(system: System, labels, which: np.ndarray) -> tuple[dict[str, float], ...]:
    """Eigenvectors in the coordinates' own units, combined so that few labels stand in each."""
    if not which.any():
        return ()
    basis = system.vectors[:, which]
    if which.sum() > 1:
        pivots = scipy.linalg.qr(basis.T, mode="r", pivoting=True)[-1][: which.sum()]
        basis = basis @ np.linalg.inv(basis[pivots])
    out = []
    for scaled in basis.T:
        shown = np.flatnonzero(np.abs(scaled) > ALIGNED * np.abs(scaled).max())
        vector = scaled / system.scale
        vector = vector / np.linalg.norm(vector[shown]) * np.sign(vector[shown[0]])
        out.append({labels[i]: float(vector[i]) for i in shown})
    return tuple(out)


def _in_words(coefficients: Mapping[str, float], runaway: Collection[str] = ()) -> str:
    if len(coefficients) == 1 and set(coefficients) <= set(runaway):
        return f"{next(iter(coefficients))} (the estimate diverges)"
    terms = [f"{c:+.3g} {label}" for label, c in coefficients.items()]
    return " ".join(terms).removeprefix("+")
