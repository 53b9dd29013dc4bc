"""What "eliminate" means: sum, maximise, or draw along one axis of a log-factor."""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax


class Reduce(Protocol):
    """Eliminate one axis of a log-factor, keeping it with size one."""

    def __call__(self, x: Array, axis: int) -> Array: ...


@jax.custom_jvp
def _log_sum_exp_first(x: Array) -> Array:
    peak = lax.stop_gradient(x.max(0))
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    return jnp.log(jnp.exp(x - peak).sum(0)) + peak


@_log_sum_exp_first.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    value = _log_sum_exp_first(x)
    weights = jnp.exp(x - jnp.where(jnp.isfinite(value), value, 0.0))
    return value, (weights * t).sum(0)


def log_sum_exp(x: Array, axis: int) -> Array:
    """log sum exp along one axis, kept; -inf with gradient zero where every entry is -inf."""
    x = jnp.moveaxis(x, axis, 0)
    flat = x.reshape(len(x), -1)  # with axes of size one the compiled loop is 15 times slower
    return jnp.moveaxis(_log_sum_exp_first(flat).reshape(1, *x.shape[1:]), 0, axis)


def maximum(x: Array, axis: int) -> Array:
    """max along one axis, kept; its gradient is one at the first maximiser and zero elsewhere."""
    best = jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis], axis=axis, dtype=x.dtype)
    return jnp.where(best > 0, x, 0.0).sum(axis, keepdims=True)


class Sampler:
    """log-sum-exp whose gradient is a draw: one-hot, from the softmax, by Gumbel noise."""

    def __init__(self, key: Array):
        self.key = key

    def __call__(self, x: Array, axis: int) -> Array:
        self.key, key = jax.random.split(self.key)
        noise = jax.random.gumbel(key, x.shape, x.dtype)
        return _sampled(x, noise, axis)


def _sampled(x: Array, noise: Array, axis: int) -> Array:
    pick = jax.nn.one_hot(jnp.argmax(x + noise, axis), x.shape[axis], axis=axis, dtype=x.dtype)
    drawn = jnp.where(pick > 0, x, 0.0).sum(axis, keepdims=True)
    value = lax.stop_gradient(log_sum_exp(x, axis))
    return drawn + lax.stop_gradient(value - drawn)
