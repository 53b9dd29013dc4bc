"""The observed information at an optimum, and what the data do not determine.

The information is minus the Hessian of the objective in the coordinates of `chart.py`. Second
derivatives at a stationary point are those of any chart, so the delta method carries them to the
user's scale. It is scaled to unit diagonal before its rank is judged: a direction with no
information gets NaN and a name, never a large number.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array, lax

from emprob import chart
from emprob.hurried import Hurried
from emprob.work import cells, work_of

MAX_COORDINATES = 2000
MAX_BATCH_CELLS = 4_000_000  # columns of the Hessian that are formed together: memory
NO_INFORMATION = 1e-13  # relative to the objective: the rounding error of a second derivative
SMALLEST, LARGEST = 1e-8, 1e-6  # limits of the tolerance on relative eigenvalues
LEAST_FALL, MOST_FALL = 0.005, 50.0  # of a parabola, one conditional SE away, it is 0.5
ALIGNED = 1e-4  # an output that leans this much on an undetermined direction is undetermined


class TooManyParameters(ValueError):
    """The information matrix would be too large to form."""


class NoCurvature(ValueError):
    """The second derivatives are not finite."""


@dataclass(frozen=True, eq=False)
class UncertaintyReport:
    """What the curvature at an optimum says.

    Attributes:
        labels: of the P free coordinates: log of a positive entry, log-odds of one in an interval,
            log-ratio of a probability to the largest of its row; 'Sigma~[0]' where a coordinate
            is not an entry's own.
        information: (P, P), minus the Hessian of the objective over them.
        eigenvalues: (P,), ascending, of the information scaled to unit diagonal, relative to the
            largest.
        null_directions: along which the objective is flat, in words: '0.707 a -0.707 b'.
        negative_directions: along which it curves upwards: not a maximum.
        null_vectors: the null directions as coefficients by label, unit length.
        boundary: entries at the boundary of their support, held fixed; they have no SE.
        score_norm: sqrt(g' I^-1 g), distance to the optimum in standard errors, over what is
            determined.
        free: (F,) bool, which of all coordinates are free.
        score: (F,) gradient of the objective over all coordinates.
        replicas: where both are means over draws: scores (G, F) and information (G, F, F) without
            each of G batches of the draws.
    """

    labels: tuple[str, ...]
    information: np.ndarray
    eigenvalues: np.ndarray
    null_directions: tuple[str, ...]
    negative_directions: tuple[str, ...]
    null_vectors: tuple[dict[str, float], ...]
    boundary: tuple[str, ...]
    score_norm: float
    free: np.ndarray
    score: np.ndarray
    replicas: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def identified(self) -> bool:
        """Whether the objective has a strict maximum over the free coordinates."""
        return not self.null_directions and not self.negative_directions

    def describe(self) -> str:
        """Sentences; empty if there is nothing to say."""
        parts = []
        if self.null_directions:
            flat = "; ".join(self.null_directions)
            parts.append(f"the data do not determine the direction {flat}")
        if self.negative_directions:
            up = "; ".join(self.negative_directions)
            parts.append(f"the objective curves upwards along {up}")
        if self.boundary:
            shown = ", ".join(self.boundary[:8]) + (", ..." if len(self.boundary) > 8 else "")
            parts.append(f"at the boundary, held fixed: {shown}")
        return ". ".join(p[0].upper() + p[1:] for p in parts) + ("." if parts else "")

    def covariance_of(self, jacobian: np.ndarray, middle: np.ndarray | None = None) -> np.ndarray:
        """Delta method: covariance of outputs with a given Jacobian in all coordinates.

        Args:
            jacobian: (M, F).
            middle: (P, P) outer product of the scores, for the sandwich; None: the information.

        Returns:
            (M, M); NaN in rows and columns of outputs that the data do not determine.
        """
        system = _decompose(self.information, _tolerance(self))
        rows = jacobian[:, self.free] / system.scale
        loose = system.vectors[:, ~system.determined]
        length = np.linalg.norm(rows, axis=1)
        unknown = np.linalg.norm(rows @ loose, axis=1) > ALIGNED * np.maximum(length, 1e-300)
        kept, values = system.vectors[:, system.determined], system.values[system.determined]
        if middle is None:
            half = (rows @ kept) / np.sqrt(values)
            out = half @ half.T
        else:
            bread = (rows @ kept) / values @ kept.T / system.scale
            out = bread @ middle @ bread.T
        out[unknown, :] = np.nan
        out[:, unknown] = np.nan
        return out

    def newton_step(self) -> np.ndarray:
        """I^-1 score (F,), zero along what is at a boundary or not determined."""
        root = self.square_root()
        return root @ (root.T @ self.score)

    @cached_property
    def without(self) -> list["UncertaintyReport"]:
        """The reports without each batch of the draws."""
        if self.replicas is None:
            return []
        free = np.ix_(self.free, self.free)
        return [
            replace(self, score=s, information=i[free], replicas=None)
            for s, i in zip(*self.replicas, strict=True)
        ]

    def noise_of(self, jacobian: np.ndarray) -> np.ndarray:
        """Monte Carlo standard errors (M,) of outputs with a given Jacobian (M, F), by jackknife.

        Of the outputs a Newton step away, so that the error of the information counts as well as
        that of the score; zero where nothing was drawn.
        """
        return jackknife([jacobian @ r.newton_step() for r in self.without])

    def square_root(self) -> np.ndarray:
        """(F, P') with B B' = covariance of all coordinates; zero along what is not determined."""
        system = _decompose(self.information, _tolerance(self))
        kept, values = system.vectors[:, system.determined], system.values[system.determined]
        root = np.zeros((len(self.free), len(values)))
        root[self.free] = kept / np.sqrt(values) / system.scale[:, None]
        return root


def jackknife(values: Sequence[np.ndarray]) -> np.ndarray:
    """Standard error of a statistic from its values without each of G batches."""
    if not values:
        return np.zeros(())
    x, count = np.stack(values), len(values)
    return np.sqrt((count - 1) / count * ((x - x.mean(0)) ** 2).sum(0))


class _System(NamedTuple):
    """Eigen-decomposition of an information matrix scaled to unit diagonal."""

    scale: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    determined: np.ndarray


def _decompose(information: np.ndarray, tolerance: float) -> _System:
    diagonal = np.abs(np.diag(information))
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(information / scale / scale[:, None])
    largest = max(values.max(initial=0.0), 1e-300)
    return _System(scale, values, vectors, values > tolerance * largest)


def _tolerance(report: UncertaintyReport) -> float:
    return _tolerance_of(report.score_norm)


def _tolerance_of(score_norm: float) -> float:
    # A flat direction that is curved (a * b) has an eigenvalue as large as the score that is left.
    return float(np.clip(0.1 * score_norm, SMALLEST, LARGEST))


# -- derivatives --------------------------------------------------------------------------------


def in_double(model: Any) -> Any:
    """The same model with float64 arrays: second derivatives in single precision say nothing."""

    def cast(x: Any) -> Any:
        x = jnp.asarray(x)
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, model)


def flatten(model: Any, by_site: Mapping[str, Array]) -> Array:
    """Coordinates by site as one vector (F,), the program's order."""
    return jnp.concatenate([jnp.ravel(by_site[n]) for n in model.params])


def unflatten(model: Any, flat: Array, like: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse of `flatten`; `like` has the shapes."""
    out, start = {}, 0
    for name in model.params:
        size = like[name].size
        out[name] = flat[start : start + size].reshape(like[name].shape)
        start += size
    return out


@jax.jit
def coordinates_of(model: Any, params: Mapping[str, Array]) -> dict[str, Array]:
    """Coordinates by site of constrained values by site."""
    return chart.to_coordinates(model.data.transforms, params)


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


_curvature = Hurried(_derivatives, lambda model, w, _: work_of(model, w), static_argnums=2)


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


_falls = Hurried(_fall, lambda model, w, *_: work_of(model, w))


@jax.jit
def outputs_jacobian(model: Any, coordinates: Mapping[str, Array]):
    """Constrained parameters and deterministics, each with its Jacobian (M, F)."""

    def outputs(flat: Array) -> dict[str, dict[str, Array]]:
        w = unflatten(model, flat, coordinates)
        params = chart.from_coordinates(model.data.transforms, w)
        found = model.deterministics(params)
        return {"params": params, "deterministics": {k: v + 0.0 for k, v in found.items()}}

    point = flatten(model, coordinates)
    return outputs(point), jax.jacfwd(outputs)(point)


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


def as_arrays(params: Mapping[str, Any]) -> dict[str, Array]:
    """Values by site as float64 arrays; call inside `jax.enable_x64(True)`."""
    return {k: jnp.asarray(v, jnp.float64) for k, v in params.items()}


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
    flat = diagonal * (1 + layout.value**2) < NO_INFORMATION * (1 + abs(at.value))
    diverging = free & ~flat & diverging
    matrix = np.where((flat | diverging) | (flat | diverging)[:, None], 0.0, full)
    matrix = matrix[np.ix_(free, free)]
    labels = tuple(label for label, f in zip(layout.labels, free, strict=True) if f)
    score_norm = _decrement(matrix, np.asarray(at.score)[free])
    limit = _tolerance_of(score_norm)
    system = _decompose(matrix, limit)
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
    that dies out along the way: its inverse would be a large, finite, meaningless variance.
    """
    diagonal = -np.diag(at.hessian)
    curved = diagonal > 0
    step = np.where(curved, 1 / np.sqrt(np.where(curved, diagonal, 1.0)), 0.0)
    near = np.abs(at.score) * step < 0.1  # elsewhere this is no stationary point
    suspect = (
        curved & near & ~layout.hard & (step > np.where(layout.bounded, 1.0, np.abs(layout.value)))
    )
    if not suspect.any():
        return suspect
    falls = np.asarray(_falls(model, w, at, jnp.asarray(step), jnp.asarray(suspect)))
    falls = np.where(np.isnan(falls), np.inf, falls)
    return suspect & ((falls < LEAST_FALL).any(0) | (falls > MOST_FALL).all(0))


def _decrement(matrix: np.ndarray, score: np.ndarray) -> float:
    system = _decompose(matrix, LARGEST)
    along = (score / system.scale) @ system.vectors[:, system.determined]
    return float(np.sqrt(np.sum(along**2 / system.values[system.determined])))


def _directions(system: _System, labels, which: np.ndarray) -> tuple[dict[str, float], ...]:
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
