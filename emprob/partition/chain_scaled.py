"""The recursions of a discrete Markov chain on scaled probabilities, sequences side by side.

Arrays are canonical as in ``chain.py``, but probabilities: ``trans`` (T or 1, K, K, B or 1),
``emit`` (T, K, B), ``active`` None or (T, B or 1). The loops are written so that a step is few
kernels: what a step needs of its neighbours is carried, not looked up, and pairs of states are
added up on the way.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

WRITTEN = 3  # states; measured: up to here the products are added faster than a dot is called


def tiny_of(x: Array) -> float:
    """Below this a scaled message may have lost what it stands for: 1e-200 in float64."""
    return float(jnp.finfo(x.dtype).tiny) ** 0.65


def add(x: Array | Sequence[Array]) -> Array:
    """Sum over the first axis, which is short: written out, it is one kernel with what follows."""
    return reduce(operator.add, x)


def push(table: Array, u: Array) -> Array:
    """``sum_j table[i, j] u[j]`` of (K, K, B or 1) and (K, B)."""
    if u.shape[0] <= WRITTEN:
        return add([table[:, j] * u[j] for j in range(u.shape[0])])
    if table.shape[2] == 1:
        return (u.T @ table[..., 0].T).T
    return jnp.sum(table * u[None], 1)


def pull(r: Array, table: Array) -> Array:
    """``sum_i r[i] table[i, j]`` of (K, B) and (K, K, B or 1)."""
    if r.shape[0] <= WRITTEN:
        return add([r[i] * table[i] for i in range(r.shape[0])])
    if table.shape[2] == 1:
        return (r.T @ table[..., 0]).T
    return jnp.sum(r[:, None] * table, 0)


def _per_step(trans: Array, active: Array | None) -> tuple[Array | None, Array | None]:
    """What a loop reads of the transition at each step; a fixed one is not repeated."""
    return (trans if trans.shape[0] > 1 else None), active


class Messages(NamedTuple):
    """Backward messages: sums over what follows, before they are scaled.

    Attributes:
        ahead: (T, K, B), what follows each step, up to a factor.
        scale: (T, B), one over the sum of ``ahead``; one at the last step.
        first: (K, B), what all steps make of the state before the first, divided by every sum.
    """

    ahead: Array
    scale: Array
    first: Array

    def log_totals(self) -> Array:
        """Log of what ``first`` was divided by on its way, (B,)."""
        return -_sum_of_logs(self.scale)

    def small(self) -> Array:
        """Sequences (B,) in which a message is so small that it may have lost its meaning."""
        least = jnp.min(self.ahead, (0, 1), initial=jnp.inf)
        least = jnp.minimum(least, jnp.min(self.first, 0))
        return least < tiny_of(least)

    def masses(self) -> Array:
        """What each step and those behind it make of the state before, (T, K, B)."""
        return jnp.concatenate([self.first[None], self.ahead])[: self.ahead.shape[0]]


def normalised(mass: Array) -> tuple[Array, Array]:
    """A message (K, B) of sum one, and the sum (B,)."""
    total = jnp.sum(mass, 0)
    return mass / jnp.maximum(total, tiny_of(total)), total


def messages(trans: Array, emit: Array, active: Array | None, last: Array) -> Messages:
    """Backward recursion: mass_t(i) = sum_j A_ij b_t(j) beta_t(j), beta the mass behind, scaled.

    Args:
        trans: (T or 1, K, K, B or 1).
        emit: (T, K, B).
        active: None or (T, B or 1).
        last: (K, B), beta after the last step.
    """
    tiny = tiny_of(emit)

    def step(carry, inputs):
        ahead, scale = carry
        b, (table, live) = inputs
        u = (b * scale) * ahead
        mass = push(trans[0] if table is None else table, u)
        if live is not None:
            mass = jnp.where(live, mass, jnp.mean(u, 0))
        return (mass, 1.0 / jnp.maximum(add(mass), tiny)), carry

    inputs = (emit, _per_step(trans, active))
    (first, _), (ahead, scale) = lax.scan(
        step, (last, jnp.ones_like(last[0])), inputs, reverse=True
    )
    return Messages(ahead, scale, first)


def weights(
    trans: Array, emit: Array, active: Array | None, found: Messages, rate: Array, shared: bool
) -> tuple[Array, Array]:
    """Posterior pairs of states, in the shape of the transition's table, and marginals (T, K, B).

    Args:
        trans: (T or 1, K, K, B or 1).
        emit: (T, K, B).
        active: None or (T, B or 1).
        found: the backward messages.
        rate: (K, B), posterior of the state before the first step over ``found.first``.
        shared: whether the table is the same for all sequences, whose pairs are then added up.

    Source: the scaled forward pass of Rabiner (1989), section V.A, divided by the backward one.
    """
    varying = trans.shape[0] > 1

    def step(carry, inputs):
        rate, pairs = carry
        b, ahead, scale, (table, live) = inputs
        gain = jnp.where(ahead > 0.0, b * scale, 0.0)  # a dead end's rate would grow for ever
        mixed = pull(rate, trans[0] if table is None else table)
        outer = rate[:, None] * (gain * ahead)
        if live is not None:
            mixed = jnp.where(live, mixed, jnp.mean(rate, 0))
            outer = jnp.where(live, outer, 0.0)
        rate = gain * mixed
        if table is None:
            return (rate, pairs + outer), (rate * ahead, None)
        outer = table * outer
        outer = jnp.sum(outer, -1, keepdims=True) if shared else outer
        return (rate, pairs), (rate * ahead, outer)

    num_states, batch = rate.shape
    none = jnp.zeros((num_states, num_states, 0 if varying else batch), rate.dtype)
    inputs = (emit, found.ahead, found.scale, _per_step(trans, active))
    (_, pairs), (marginals, each) = lax.scan(step, (rate, none), inputs)
    if varying:
        return each, marginals
    return trans * (jnp.sum(pairs, -1, keepdims=True) if shared else pairs)[None], marginals


def _sum_of_logs(x: Array, width: int = 64) -> Array:
    """Sum of log x over the first axis, one log for the product of ``width`` mantissas."""
    if x.shape[0] == 0:
        return jnp.zeros(x.shape[1:], x.dtype)
    mantissa, exponent = jnp.frexp(x)
    pad = ((0, -x.shape[0] % width), (0, 0))
    mantissa = jnp.pad(mantissa, pad, constant_values=1.0).reshape(width, -1, x.shape[1])
    # width mantissas of at least 1/2 stay above the smallest normal float32
    logs = jnp.sum(jnp.log(jnp.prod(mantissa, 0)), 0)
    powers = jnp.sum(exponent.astype(x.dtype), 0)
    return logs + powers * jnp.log(jnp.asarray(2.0, x.dtype))
