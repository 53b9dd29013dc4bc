"""One long chain as many short ones: the recursions of ``chain.py`` over blocks of time at once.

A recursion over T steps waits for its own result T times; over B blocks of L steps, side by side,
it waits L times. What each block needs from its neighbours is found first, from the products of
the blocks' transfer matrices (K times the arithmetic, which is why few states are asked for).

Arrays are those of ``chain.py`` with the blocks where sequences stand: (L, K, B), and a tail of
fewer than B steps, (R, K, 1), that is taken step by step. T = L B + R.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from emprob.partition.chain_scaled import Messages, add, normalised, tiny_of

MIN_STEPS = 4000  # measured: below this the loops of one step each are as fast
MAX_STATES = 8  # measured: above, the products of matrices cost what they save


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


def transfer(trans: Array, emit: Array) -> Array:
    """Product over the steps of a block of A diag(b_t), of sum near one, (K, K, B).

    A step is scaled by the sum of the one before it, which keeps the division out of its way.

    Args:
        trans: (1, K, K, 1).
        emit: (L, K, B).
    """
    tiny, (_, num_states, count) = tiny_of(emit), emit.shape

    def step(carry, b):
        product, scale = carry
        u = (b * scale)[:, None] * product
        product = (trans[0, ..., 0] @ u.reshape(num_states, -1)).reshape(product.shape)
        total = add(add(product))
        return (product, 1.0 / jnp.maximum(total, tiny)), None

    start = jnp.broadcast_to(jnp.eye(num_states)[..., None], (num_states, num_states, count))
    start = (start.astype(emit.dtype), jnp.ones(count, emit.dtype))
    (product, scale), _ = lax.scan(step, start, emit, reverse=True)
    return product * scale


def entries_from_behind(product: Array, last: Array) -> Array:
    """The backward message with which each block starts, of sum one, (K, B).

    Args:
        product: transfer matrices (K, K, B).
        last: the message after the last block, (K, 1).
    """
    tiny = tiny_of(last)

    def step(message, matrix):
        new = jnp.sum(matrix * message, 1)
        return new / jnp.maximum(jnp.sum(new), tiny), message

    return lax.scan(step, last[:, 0], jnp.moveaxis(product, 2, 0), reverse=True)[1].T


def entries_from_before(product: Array, found: Messages, rate: Array) -> Array:
    """The forward rate with which each block starts, (K, B).

    The scale that the transfer matrices have lost is read off the messages: the sum of rate times
    message is the same at every step.

    Args:
        product: transfer matrices (K, K, B).
        found: messages of the blocks.
        rate: before the first block, (K, 1).
    """
    totals = jnp.sum(found.first, 0)
    moved = jnp.sum(product * found.ahead[-1], (0, 1)) * jnp.append(totals[1:], 1.0)
    scale = jnp.where(moved > 0.0, totals / jnp.where(moved > 0.0, moved, 1.0), 0.0)

    def step(rate, inputs):
        matrix, factor = inputs
        return factor * jnp.sum(rate[:, None] * matrix, 0), rate

    return lax.scan(step, rate[:, 0], (jnp.moveaxis(product, 2, 0), scale))[1].T


def disagree(first: Array, entries: Array) -> Array:
    """Whether a message made from transfer matrices is not the one found step by step.

    Args:
        first: masses at the blocks' first steps (K, B).
        entries: the messages with which the blocks start (K, B).
    """
    found, _ = normalised(first)
    tolerance = float(jnp.finfo(first.dtype).eps) ** 0.5
    gap = jnp.abs(found[:, 1:] - entries[:, :-1])
    return jnp.any(gap > tolerance * found[:, 1:] + tiny_of(first))
