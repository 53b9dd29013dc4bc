"""Choose particles in proportion to their weights, every series by itself."""

import jax
import jax.numpy as jnp
from jax import Array


def effective_size(log_weights: Array) -> Array:
    """1 / sum of squared normalised weights, over the first axis: (P, ...) -> (...)."""
    w = jax.nn.softmax(log_weights, 0)
    return 1.0 / jnp.sum(w**2, 0)


def log_mean(log_weights: Array) -> Array:
    """Log of the mean weight over the first axis."""
    return jax.nn.logsumexp(log_weights, 0) - jnp.log(log_weights.shape[0])


def systematic(key: Array, log_weights: Array, num: int) -> Array:
    """Indices drawn with one uniform number a series: particle i about num W_i times.

    Args:
        key: of `jax.random`.
        log_weights: (P, S).
        num: how many to draw.

    Returns:
        (num, S), in increasing order.

    Source: Kitagawa (1996), Journal of Computational and Graphical Statistics 5.
    """
    series = log_weights.shape[1]
    start = jax.random.uniform(key, (series,), log_weights.dtype)
    points = (jnp.arange(num)[:, None] + start) / num
    return _at(log_weights, points)


def multinomial(key: Array, log_weights: Array, num: int) -> Array:
    """Independent indices (num, S) from weights (P, S)."""
    shape = (num, log_weights.shape[1])
    return _at(log_weights, jax.random.uniform(key, shape, log_weights.dtype))


def _at(log_weights: Array, points: Array) -> Array:
    """Quantiles of the weights: (P, S) and (num, S) in [0, 1) -> (num, S)."""
    total = jnp.cumsum(jax.nn.softmax(log_weights, 0), 0)
    points = points * total[-1]  # which rounding leaves next to one
    find = jax.vmap(lambda t, u: jnp.searchsorted(t, u, side="right"), 1, 1)
    return jnp.minimum(find(total, points), len(log_weights) - 1)
