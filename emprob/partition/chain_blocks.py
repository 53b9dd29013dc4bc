"""One long chain as many short ones: the recursions of ``chain.py`` over blocks of time at once.

A recursion over T steps waits for its own result T times; over B blocks of L steps, side by side,
it waits L times. What each block needs from its neighbours is found first, from the products of
the blocks' transfer matrices (K times the arithmetic, which is why few states are asked for).

Arrays are those of ``chain.py`` with the blocks where sequences stand: (L, K, B), and a tail of
fewer than B steps, (R, K, 1), that is taken step by step. T = L B + R.
"""

from __future__ import annotations

import operator
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

MIN_STEPS = 4000  # measured: below this the loops of one step each are as fast
MAX_STATES = 3  # measured: at four the products of matrices cost what they save


class Split(NamedTuple):
    """A series (T, K, 1) in two parts: blocks (L, K, B) and tail (R, K, 1)."""

    blocks: Array
    tail: Array


def num_blocks(steps: int) -> int:
    """A multiple of 8 near twice the square root of T, of those around it with the least tail."""
    target = min(max(int(2 * steps**0.5) // 8, 2), 64)
    return min((8 * i for i in range(max(target // 2, 2), target + 1)), key=lambda b: steps % b)


def suits(log_trans: Array, log_emit: Array, active: Array | None) -> bool:
    """Whether blocks pay: one long sequence, few states, one transition matrix for all steps."""
    steps, num_states, batch = log_emit.shape
    one = batch == 1 and log_trans.shape[0] == 1 and active is None
    return one and steps >= MIN_STEPS and num_states <= MAX_STATES


def split(x: Array) -> Split:
    """Cut (T, K, 1) into blocks and tail."""
    count = num_blocks(x.shape[0])
    length = x.shape[0] // count
    body = x[: count * length, :, 0].reshape(count, length, -1)
    return Split(body.transpose(1, 2, 0), x[count * length :])


def join(x: Split) -> Array:
    """The series of a split, (T, K, 1)."""
    length, num_states, count = x.blocks.shape
    body = x.blocks.transpose(2, 0, 1).reshape(count * length, num_states, 1)
    return jnp.concatenate([body, x.tail])


def _push(trans: Array, u: Array) -> Array:
    """``sum_j trans[i, j] u[j]``, written out: see ``chain.py``."""
    return reduce(operator.add, [trans[:, j] * u[j] for j in range(u.shape[0])])


def transfer(trans: Array, emit: Array, tiny: float) -> Array:
    """Product over the steps of a block of A diag(b_t), of sum near one, (K, K, B).

    A step is scaled by the sum of the one before it, which keeps the division out of its way.

    Args:
        trans: (K, K, 1).
        emit: (L, K, B).
        tiny: smallest number to divide by.
    """
    num_states = emit.shape[1]

    def step(carry, b):
        product, scale = carry
        u = (b * scale)[:, None] * product
        new = sum(trans[:, j, None] * u[j] for j in range(num_states))
        return (new, 1.0 / jnp.maximum(jnp.sum(new, (0, 1)), tiny)), None

    start = jnp.broadcast_to(jnp.eye(num_states)[..., None], (num_states, *emit.shape[1:]))
    start = (start.astype(emit.dtype), jnp.ones(emit.shape[2:], emit.dtype))
    (product, scale), _ = lax.scan(step, start, emit, reverse=True)
    return product * scale


class Masses(NamedTuple):
    """Backward recursion over the blocks: masses (L, K, B), their sums (L, B), the least mass."""

    mass: Array
    total: Array
    least: Array


def masses(trans: Array, emit: Array, entries: Array, tiny: float) -> Masses:
    """mass[t, i] = sum_j A_ij b_t(j) beta_t(j), beta the next mass divided by its sum.

    Args:
        trans: (K, K, 1).
        emit: (L, K, B).
        entries: beta after the last step of each block (K, B).
        tiny: smallest number to divide by.
    """

    def step(carry, b):
        mass, scale, least = carry
        mass = _push(trans, (b * scale) * mass)
        total = jnp.sum(mass, 0)
        least = jnp.minimum(least, jnp.min(mass, 0))
        return (mass, 1.0 / jnp.maximum(total, tiny), least), (mass, total)

    one = jnp.ones(emit.shape[2:], emit.dtype)
    (_, _, least), (mass, total) = lax.scan(step, (entries, one, one), emit, reverse=True)
    return Masses(mass, total, jnp.min(least))


def weights(trans: Array, emit: Array, mass: Array, behind: tuple[Array, Array], entries: Array):
    """Forward recursion: sums of r_t(i) u_t(j) over all steps (K, K), marginals, last rates.

    The pairs are added up on the way, while their factors are at hand.

    Args:
        trans: (K, K, 1).
        emit: (L, K, B), zero throughout where nothing is to be summed.
        mass: (L, K, B).
        behind: the masses that follow each block (K, B), and their sums (B,).
        entries: the rate before the first step of each block (K, B).
    """
    num_states = emit.shape[1]

    def step(carry, inputs):
        rate, pairs = carry
        b, ahead, total = inputs
        scale = jnp.where(total > 0.0, 1.0 / jnp.where(total > 0.0, total, 1.0), 0.0)
        gain = jnp.where(ahead > 0.0, b * scale, 0.0)
        pairs = pairs + rate[:, None] * (gain * ahead)
        rate = gain * sum(rate[i] * trans[i] for i in range(num_states))
        return (rate, pairs), rate * ahead

    ahead = jnp.concatenate([mass[1:], behind[0][None]])
    total = jnp.concatenate([jnp.sum(mass[1:], 1), behind[1][None]])
    start = (entries, jnp.zeros((num_states, *emit.shape[1:]), emit.dtype))
    (rate, pairs), marginals = lax.scan(step, start, (emit, ahead, total))
    return jnp.sum(pairs, 2), marginals, rate


def entries_from_behind(product: Array, last: Array, tiny: float) -> Array:
    """The backward message with which each block starts, of sum one, (K, B).

    Args:
        product: transfer matrices (K, K, B).
        last: the message after the last block, (K, 1).
        tiny: smallest number to divide by.
    """

    def step(message, matrix):
        new = jnp.sum(matrix * message, 1)
        return new / jnp.maximum(jnp.sum(new), tiny), message

    messages = lax.scan(step, last[:, 0], jnp.moveaxis(product, 2, 0), reverse=True)[1]
    return messages.T


def entries_from_before(product: Array, first: Array, behind: Array, rate: Array) -> Array:
    """The forward rate with which each block starts, (K, B).

    The scale that the transfer matrices have lost is read off the masses: rate times mass is the
    same at every step.

    Args:
        product: transfer matrices (K, K, B).
        first: masses at the blocks' first steps (K, B).
        behind: masses at the first step after each block (K, B).
        rate: before the first block, (K, 1).
    """
    moved = jnp.sum(jnp.sum(product * behind, 1), 0)
    scale = jnp.where(moved > 0.0, jnp.sum(first, 0) / jnp.where(moved > 0.0, moved, 1.0), 0.0)

    def step(rate, inputs):
        matrix, factor = inputs
        return factor * jnp.sum(rate[:, None] * matrix, 0), rate

    inputs = (jnp.moveaxis(product, 2, 0), scale)
    return lax.scan(step, rate[:, 0], inputs)[1].T


def disagree(first: Array, entries: Array, tiny: float) -> Array:
    """Whether a message made from transfer matrices is not the one found step by step.

    Args:
        first: masses at the blocks' first steps (K, B).
        entries: the messages with which the blocks start (K, B).
        tiny: what is smaller need not agree.
    """
    found = first / jnp.maximum(jnp.sum(first, 0), tiny)
    tolerance = float(jnp.finfo(first.dtype).eps) ** 0.5
    gap = jnp.abs(found[:, 1:] - entries[:, :-1])
    return jnp.any(gap > tolerance * found[:, 1:] + tiny)
