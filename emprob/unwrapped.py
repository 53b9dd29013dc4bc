"""A NumPyro distribution without its wrappers."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.distribution import (
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)

from emprob.evaluation import Unwrapped

LEAST_RATE = 1e-300


def unwrap(fn: Any, given: Sequence[Any] = ()) -> Unwrapped:
    """Strip mask, expand and to_event from a distribution.

    Args:
        fn: the distribution.
        given: masks of `handlers.mask` around the site, outermost first, as the program wrote
            them: a distribution keeps its mask broadcast to its whole batch, latents included.
    """
    masks: list[tuple[Array, int]] = []
    reinterpreted, outer = 0, iter(given)
    while True:
        if isinstance(fn, MaskedDistribution):
            masks.append((_as_written(fn._mask, next(outer, None)), reinterpreted))
        elif isinstance(fn, Independent):
            reinterpreted += fn.reinterpreted_batch_ndims
        elif not isinstance(fn, ExpandedDistribution):
            break
        fn = fn.base_dist
    mask = None
    for m, inner in masks:
        m = m.reshape(m.shape + (1,) * (reinterpreted - inner))
        mask = m if mask is None else mask & m
    return Unwrapped(_guarded(fn), mask, reinterpreted)


def _guarded(fn: Any) -> Any:
    """A rate of exactly zero (an inflated zero) has no second derivative: the least positive."""
    if type(fn) is dist.Poisson:
        return dist.Poisson(jnp.maximum(fn.rate, LEAST_RATE), validate_args=False)
    return fn


def _as_written(mask: Any, given: Any) -> Array:
    if (
        given is not None
        and jnp.ndim(given) <= jnp.ndim(mask)
        and jnp.broadcast_shapes(jnp.shape(given), jnp.shape(mask)) == jnp.shape(mask)
    ):
        return jnp.asarray(given)
    return jnp.asarray(mask)
