"""Coordinates around an optimum: what second derivatives are taken in, and what entries are called.

As `space.py`, with one change: a simplex row has the log of each entry as its coordinates,
p = softmax(w). They are one too many, and any one of them can be held to get a chart. Holding the
largest entry, and every entry that is zero, is then a deletion of rows and columns: log-ratios to
a last entry that is zero would all be infinite.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import IndependentTransform, Transform

from emprob.space import LogRatioTransform, forward, nudge_inside

BOUNDARY = 1e-8  # nearer to a bound than this, in units of the interval, is at the bound
FLOOR = 1e-100  # what a zero probability counts as: its square must not underflow


class Bounds(NamedTuple):
    """Elementwise limits of a constrained value, infinite where there are none."""

    low: np.ndarray
    high: np.ndarray


def is_simplex(transform: Transform) -> bool:
    """Whether the last axis of the constrained value sums to one."""
    return isinstance(_stripped(transform), LogRatioTransform)


def _stripped(transform: Transform) -> Transform:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return transform


def to_coordinates(
    transforms: Mapping[str, Transform], params: Mapping[str, Array]
) -> dict[str, Array]:
    """Constrained values by site -> coordinates by site; boundary values are moved inside."""
    out = {}
    for name, value in params.items():
        transform = transforms[name]
        if is_simplex(transform):
            out[name] = jnp.log(jnp.maximum(value, FLOOR))
        else:
            out[name] = transform.inv(nudge_inside(value, transform))
    return out


def from_coordinates(
    transforms: Mapping[str, Transform], coordinates: Mapping[str, Array]
) -> dict[str, Array]:
    """Coordinates by site -> constrained values by site."""

    def value(transform: Transform, w: Array) -> Array:
        return jax.nn.softmax(w, -1) if is_simplex(transform) else forward(transform, w)

    return {name: value(transforms[name], w) for name, w in coordinates.items()}


def entry_labels(name: str, shape: tuple[int, ...]) -> list[str]:
    """'mu' for a scalar, 'mu[0]', 'A[0,1]' for the entries of an array, in C order."""
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def coordinate_labels(name: str, value_shape: tuple, shape: tuple) -> list[str]:
    """The entries' names where each entry has its own coordinate, else 'Sigma~[0]'."""
    return entry_labels(name if value_shape == shape else f"{name}~", shape)


def bounds(transform: Transform, shape: tuple[int, ...]) -> Bounds:
    """Elementwise limits of the values of a site.

    Args:
        transform: onto the site's support.
        shape: of the constrained value.
    """
    support: Any = _stripped(transform).codomain
    while isinstance(support, type(constraints.independent(constraints.real, 1))):
        support = support.base_constraint
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    if is_simplex(transform):
        return Bounds(np.zeros(shape), np.ones(shape))
    kind = type(support).__name__.lower().strip("_")
    if len(shape) >= 2 and any(word in kind for word in ("cholesky", "positivedefinite", "corr")):
        return _matrix_bounds(kind, low, high)
    if "positiveordered" in kind:
        low = np.zeros(shape)
    low = np.broadcast_to(np.asarray(getattr(support, "lower_bound", low), float), shape)
    high = np.broadcast_to(np.asarray(getattr(support, "upper_bound", high), float), shape)
    return Bounds(low, high)


def _matrix_bounds(kind: str, low: np.ndarray, high: np.ndarray) -> Bounds:
    diagonal = np.eye(low.shape[-1], dtype=bool)
    if "corr" in kind:
        low = np.where(diagonal & ("cholesky" in kind), 0.0, np.where(diagonal, low, -1.0))
        high = np.where(diagonal & ("cholesky" not in kind), high, 1.0)
        return Bounds(low, high)
    return Bounds(np.where(diagonal, 0.0, low), high)


def at_bound(value: np.ndarray, limits: Bounds) -> np.ndarray:
    """Which entries lie at a bound: within `BOUNDARY` of the interval, or of a half-line's end."""
    width = limits.high - limits.low
    room = BOUNDARY * np.where(np.isfinite(width), width, 1.0)
    return (value - limits.low < room) | (limits.high - value < room)


def link(value: np.ndarray, limits: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """An entry on the whole line (identity, log or logit by its bounds), and d link / d value."""
    low, high = limits
    with np.errstate(all="ignore"):
        above, below = value - low, high - value
        lower, upper = np.isfinite(low), np.isfinite(high)
        log_above, log_below = np.log(above), np.log(below)
        out = np.where(lower, log_above, np.where(upper, -log_below, value))
        slope = np.where(lower, 1 / above, np.where(upper, 1 / below, 1.0))
        both = lower & upper
        return (
            np.where(both, log_above - log_below, out),
            np.where(both, 1 / above + 1 / below, slope),
        )


def unlink(x: np.ndarray, limits: Bounds) -> np.ndarray:
    """The inverse of `link`."""
    low, high = limits
    with np.errstate(all="ignore"):
        lower, upper = np.isfinite(low), np.isfinite(high)
        out = np.where(lower, low + np.exp(x), np.where(upper, high - np.exp(-x), x))
        return np.where(lower & upper, low + (high - low) / (1 + np.exp(-x)), out)
