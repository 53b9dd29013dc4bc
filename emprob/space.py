"""Constrained and unconstrained space.

Users see constrained values, algorithms unconstrained ones. The maps are NumPyro's bijections,
with one change: a simplex is parametrised by log-ratios to its last entry instead of by stick
breaking, because log-ratios stay exact at the corners, where the start law of most hidden Markov
fits ends.
"""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import IndependentTransform, Transform

TINY = 1e-300  # what a zero probability counts as in unconstrained space
TINY32 = 1e-37


class LogRatioTransform(Transform):
    """R^(K-1) -> simplex: x = softmax([u, 0])."""

    # NumPyro declares properties here, and overrides them by values as well.
    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    codomain = constraints.simplex  # pyright: ignore[reportAssignmentType]

    def __call__(self, x: Array) -> Array:
        zero = jnp.zeros((*x.shape[:-1], 1), x.dtype)
        return jax.nn.softmax(jnp.concatenate([x, zero], -1), -1)

    def _inverse(self, y: Array) -> Array:
        logs = jnp.log(jnp.maximum(y, _tiny(y)))
        return logs[..., :-1] - logs[..., -1:]

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """log |d(y_1..y_{K-1}) / dx| = sum_k log y_k."""
        zero = jnp.zeros((*x.shape[:-1], 1), x.dtype)
        return jax.nn.log_softmax(jnp.concatenate([x, zero], -1), -1).sum(-1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] - 1)

    def tree_flatten(self):
        return (), ((), {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogRatioTransform)

    def __hash__(self) -> int:
        return hash(LogRatioTransform)


def _tiny(x: Array) -> float:
    return TINY if x.dtype == jnp.float64 else TINY32


def bijection(support: Any) -> Transform:
    """The map from unconstrained space onto a support."""
    if support is constraints.simplex or isinstance(support, type(constraints.simplex)):
        return LogRatioTransform()
    if isinstance(support, type(constraints.independent(constraints.real, 1))):
        return IndependentTransform(
            bijection(support.base_constraint), support.reinterpreted_batch_ndims
        )
    return biject_to(support)


def nudge_inside(value: Array, transform: Transform) -> Array:
    """Move values that sit exactly on an open boundary inside by the least amount."""
    inner = transform.base_transform if isinstance(transform, IndependentTransform) else transform
    if isinstance(inner, LogRatioTransform):
        return value
    codomain = inner.codomain
    tiny = _tiny(value)
    lower = getattr(codomain, "lower_bound", None)
    upper = getattr(codomain, "upper_bound", None)
    if lower is not None:
        room = tiny if upper is None else 1e-16
        value = jnp.maximum(value, lower + jnp.maximum(tiny, room * jnp.abs(lower)))
    if upper is not None:
        value = jnp.minimum(value, upper - 1e-16 * jnp.maximum(1.0, jnp.abs(upper)))
    return value


def forward(transform: Transform, x: Array) -> Array:
    """The constrained value of an array; NumPyro's signature also allows Python numbers."""
    return cast(Array, transform(x))


def constrain(transforms: Mapping[str, Transform], u: Mapping[str, Array]) -> dict[str, Array]:
    """Unconstrained values by site -> constrained values by site."""
    return {k: forward(transforms[k], v) for k, v in u.items()}


def unconstrain(transforms: Mapping[str, Transform], params: Mapping[str, Array]) -> dict:
    """Constrained values by site -> unconstrained values by site; boundaries are moved inside."""
    return {k: transforms[k].inv(nudge_inside(v, transforms[k])) for k, v in params.items()}


def log_jacobian(transforms: Mapping[str, Transform], u: Mapping[str, Array]) -> Array:
    """log |d params / du|, summed over sites."""
    total = jnp.zeros(())
    for k, v in u.items():
        total = total + jnp.sum(transforms[k].log_abs_det_jacobian(v, transforms[k](v)))
    return total
