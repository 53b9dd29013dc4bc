"""The recursions of a discrete Markov chain in log-space: exact, slower, safe to differentiate.

They stand in where scaled probabilities underflow, and they are what second derivatives are
taken of. Arrays are canonical as in ``chain.py``: ``log_trans`` (T or 1, K, K, B or 1),
``log_emit`` (T, K, B), ``active`` None or (T, B or 1).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def log_zero(x: Array) -> float:
    """Under this an event is impossible: NumPyro clips log 0 to the smallest float of its type."""
    return 1e-8 * float(jnp.finfo(x.dtype).min)


def log_sum_exp(x: Array, axis: int) -> Array:
    """log sum exp with finite derivatives of every order where all entries are -inf."""
    top = lax.stop_gradient(jnp.max(x, axis=axis))
    top = jnp.where(top < log_zero(top), 0.0, top)
    total = jnp.sum(jnp.exp(x - jnp.expand_dims(top, axis)), axis)
    alive = total != 0.0
    return jnp.where(alive, jnp.log(jnp.where(alive, total, 1.0)) + top, -jnp.inf)


def log_table(log_trans: Array, step: Array | None, live: Array | None) -> Array:
    """The (K, K, B or 1) log-table of one step, uniform where the step is inactive."""
    table = log_trans[0] if step is None else step
    return table if live is None else jnp.where(live, table, -jnp.log(float(table.shape[0])))


def log_inputs(log_trans: Array, log_emit: Array, active: Array | None):
    """What a scan over time reads at each step; a fixed transition is not repeated."""
    return log_emit, (log_trans if log_trans.shape[0] > 1 else None), active


def log_messages(log_trans: Array, log_emit: Array, active: Array | None):
    """Backward recursion in log-space: (log_beta (K, B), messages entering each step (T, K, B))."""

    def step(carry, xs):
        message, offset = carry
        emit, table, live = xs
        joint = log_table(log_trans, table, live) + (emit + message)[None]
        log_mass = log_sum_exp(joint, 1)
        top = jnp.max(log_mass, 0)
        top = lax.stop_gradient(jnp.where(top < log_zero(top), 0.0, top))
        return (log_mass - top, offset + top), message

    start = (jnp.zeros_like(log_emit[0]), jnp.zeros_like(log_emit[0, 0]))
    xs = log_inputs(log_trans, log_emit, active)
    (message, offset), messages = lax.scan(step, start, xs, reverse=True)
    return message + offset, messages


def log_value(log_trans: Array, log_emit: Array, active: Array | None) -> Array:
    """log_beta (K, B), differentiable to any order."""
    return log_messages(log_trans, log_emit, active)[0]


def log_weights(log_trans: Array, log_emit: Array, active: Array | None, cotangent: Array):
    """Gradient of <cotangent, log_beta>, with the transition probabilities formed in log-space."""
    _, messages = log_messages(log_trans, log_emit, active)
    static = log_trans.shape[0] == 1

    def step(carry, xs):
        gamma, total = carry
        message, (emit, table, live) = xs
        joint = log_table(log_trans, table, live) + (emit + message)[None]
        log_mass = log_sum_exp(joint, 1)
        alive = log_mass > log_zero(log_mass)
        ratio = jnp.exp(joint - jnp.where(alive, log_mass, 0.0)[:, None])
        pair = gamma[:, None] * jnp.where(alive[:, None], ratio, 0.0)
        gamma = jnp.sum(pair, 0)
        pair = pair if live is None else jnp.where(live, pair, 0.0)
        pair = jnp.sum(pair, -1, keepdims=True) if log_trans.shape[3] == 1 else pair
        return (gamma, total + pair if static else total), (gamma, None if static else pair)

    start = (cotangent, jnp.zeros_like(log_trans[0]))
    xs = (messages, log_inputs(log_trans, log_emit, active))
    (_, total), (gammas, pairs) = lax.scan(step, start, xs)
    return (total[None] if static else pairs), gammas


def reachable(log_trans: Array, log_emit: Array, active: Array | None) -> Array:
    """Whether any possible path continues from each state into step t: bool (T, K, B)."""

    def step(alive, xs):
        emit, table, live = xs
        possible = log_table(log_trans, table, live) > log_zero(emit)
        alive = jnp.any(possible & ((emit > log_zero(emit)) & alive)[None], 1)
        return alive, alive

    start = jnp.ones(log_emit.shape[1:], bool)
    return lax.scan(step, start, log_inputs(log_trans, log_emit, active), reverse=True)[1]
