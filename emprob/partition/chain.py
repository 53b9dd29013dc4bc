"""Log-partition of a discrete Markov chain, and its gradient.

The primal is the backward recursion; its gradient is a forward recursion of smoothed
probabilities. Both run on scaled probabilities, which is fast, and verify themselves: where a
scaled number comes near the smallest float, the same quantities are formed again in log-space.

Inside this file every array is *canonical*: ``log_trans`` is (T or 1, K, K, B or 1), ``log_emit``
is (T, K, B), ``active`` is None or (T, B or 1).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from emprob.partition import chain_blocks as blocks
from emprob.partition.chain_blocks import Split
from emprob.partition.chain_log import log_value, log_weights, log_zero, reachable
from emprob.partition.chain_scaled import Messages, messages, normalised, tiny_of, weights


class _Residual(NamedTuple):
    """What the reverse pass needs; the probabilities are kept, as a second exp costs a scan."""

    messages: Messages
    trusted: Array  # (B,), 1 where they can be relied on, else 0
    trans: Array  # (T or 1, K, K, B or 1)
    emit: Array  # (T, K, B)


class _BlockResidual(NamedTuple):
    """The same of one long sequence that is taken in blocks of time; see ``chain_blocks.py``."""

    blocks: Messages
    tail: Messages
    trusted: Array  # (1,)
    trans: Array  # (1, K, K, 1)
    emit: Split
    product: Array  # (K, K, number of blocks), transfer matrices


class _Scaled(NamedTuple):
    """Factors as probabilities with maximum one, and the logs of what was taken out."""

    trans: Array  # (T or 1, K, K, B or 1)
    emit: Array  # (T, K, B)
    log_scale: Array  # (B,)


def _max_shift(x: Array, axis) -> tuple[Array, Array]:
    """Divide exp(x) by its maximum over ``axis``; an all-impossible slice keeps the shift zero."""
    top = jnp.max(x, axis=axis, keepdims=True)
    top = jnp.where(top < log_zero(top), 0.0, top)
    return jnp.exp(x - top), top


def _scale_factors(log_trans: Array, log_emit: Array, active: Array | None) -> _Scaled:
    """Exponentiate both tables after taking their maxima out."""
    emit, emit_shift = _max_shift(log_emit, 1)
    trans, trans_shift = _max_shift(log_trans, (1, 2))
    trans_shift = jnp.broadcast_to(trans_shift[:, 0, 0], (log_emit.shape[0], trans.shape[3]))
    if active is not None:
        trans_shift = jnp.where(active, trans_shift, 0.0)
    log_scale = jnp.sum(emit_shift[:, 0] + trans_shift, 0)
    return _Scaled(trans, emit, log_scale)


def _once_if(needed: Array, compute, default):
    """``compute()`` if ``needed`` else ``default``: a loop, as a cond would run both under vmap."""

    def body(carry):
        return jnp.zeros_like(carry[0]), compute(carry[1])

    return lax.while_loop(lambda carry: carry[0], body, (needed, default))[1]


def _lost(small: Array, mass, log_trans: Array, log_emit: Array, active: Array | None) -> Array:
    """Sequences (B,) in which a scaled message is too small although its true value is not zero.

    Args:
        small: (B,), where some message is too small.
        mass: function that gives the masses (T, K, B); called only if any is.
        log_trans: see `chain_factor`, canonical.
        log_emit: likewise.
        active: likewise.
    """

    def check(_):
        lost = (mass() < tiny_of(log_emit)) & reachable(log_trans, log_emit, active)
        return jnp.any(lost, axis=(0, 1))

    return _once_if(jnp.any(small), check, small)


def _one_by_one(fun):
    """Let vmap map ``fun``: a leading axis on its tables costs more than the loops save.

    It also keeps the log-space recursions to the members of the batch that need them.
    """
    mapped = custom_vmap(fun)

    @mapped.def_vmap
    def rule(size, batched, *args):
        leaves, tree = jax.tree.flatten(args)
        flags = jax.tree.leaves(batched)
        moving = [x for x, flag in zip(leaves, flags) if flag]

        def one(parts):
            parts = iter(parts)
            full = [next(parts) if flag else x for x, flag in zip(leaves, flags)]
            return mapped(*jax.tree.unflatten(tree, full))

        out = lax.map(one, moving)
        return out, jax.tree.map(lambda _: True, out)

    return mapped


def _step_by_step(log_trans: Array, log_emit: Array, active: Array | None):
    """log_beta (K, B), where it cannot be relied on (B,), and the residual, on probabilities."""
    scaled = _scale_factors(log_trans, log_emit, active)
    last = jnp.ones(log_emit.shape[1:], log_emit.dtype)
    found = messages(scaled.trans, scaled.emit, active, last)
    log_beta = jnp.log(found.first) + found.log_totals() + scaled.log_scale
    failed = _lost(found.small(), found.masses, log_trans, log_emit, active)
    return log_beta, failed, _Residual(found, failed, scaled.trans, scaled.emit)


def _in_blocks(log_trans: Array, log_emit: Array):
    """The same for one long sequence, all blocks of time side by side."""
    trans, trans_shift = _max_shift(log_trans, (1, 2))
    cut = blocks.split(log_emit)
    (body, shift), (end, end_shift) = _max_shift(cut.blocks, 1), _max_shift(cut.tail, 1)
    log_scale = jnp.sum(shift) + jnp.sum(end_shift) + log_emit.shape[0] * jnp.sum(trans_shift)
    tail = messages(trans, end, None, jnp.ones(log_emit.shape[1:], log_emit.dtype))
    last, total = normalised(tail.first)
    product = blocks.transfer(trans, body)
    entries = blocks.entries_from_behind(product, last)
    found = messages(trans, body, None, entries)
    totals = jnp.append(jnp.sum(found.first[:, 1:], 0), total)
    log_totals = jnp.sum(jnp.log(totals)) + jnp.sum(found.log_totals()) + jnp.sum(tail.log_totals())
    log_beta = jnp.log(found.first[:, :1]) + log_totals + log_scale
    small = jnp.any(found.small()) | jnp.any(tail.small())
    masses = lambda: blocks.join(Split(found.masses(), tail.masses()))  # noqa: E731
    failed = _lost(small[None], masses, log_trans, log_emit, None)
    failed = failed | blocks.disagree(found.first, entries)
    return log_beta, failed, _BlockResidual(found, tail, failed, trans, Split(body, end), product)


@jax.custom_jvp
@_one_by_one
def _forward(log_trans: Array, log_emit: Array, active: Array | None):
    """log_beta (K, B) and the residual of the reverse pass."""
    if blocks.suits(log_trans, log_emit, active):
        fast, failed, residual = _in_blocks(log_trans, log_emit)
    else:
        fast, failed, residual = _step_by_step(log_trans, log_emit, active)

    def careful(value):
        return jnp.where(failed, log_value(log_trans, log_emit, active), value)

    log_beta = _once_if(jnp.any(failed), careful, fast)
    return log_beta, residual._replace(trusted=1.0 - failed.astype(log_emit.dtype))


@_forward.defjvp
def _forward_jvp(primals, tangents):
    # The residual only steers arithmetic whose own derivative rule starts from the tables again.
    log_trans, log_emit, active = primals
    out = _forward(*primals)
    value = partial(log_value, active=active)
    tangent = jax.jvp(value, (log_trans, log_emit), tangents[:2])[1]
    return out, (tangent, jax.tree.map(jnp.zeros_like, out[1]))


def _first_rate(mass: Array, trusted: Array, cotangent: Array) -> Array:
    alive = (mass > 0.0) & (trusted > 0.0)
    return jnp.where(alive, cotangent / jnp.where(alive, mass, 1.0), 0.0)


def _scaled_weights(residual: _Residual, active, cotangent, shared: bool):
    """Gradient of <cotangent, log_beta> over the trusted sequences, on scaled probabilities."""
    found, trusted, trans, emit = residual
    first = _first_rate(found.first, trusted, cotangent)
    return weights(trans, emit, active, found, first, shared)


def _block_weights(residual: _BlockResidual, cotangent):
    """The same for one long sequence, all blocks of time side by side."""
    found, tail, trusted, trans, emit, product = residual
    first = _first_rate(found.first[:, :1], trusted, cotangent)
    entries = blocks.entries_from_before(product, found, first)
    pairs, marginals = weights(trans, emit.blocks, None, found, entries, True)
    after = marginals[-1, :, -1:]  # of the state before the tail
    rest = _Residual(tail, trusted, trans, emit.tail)
    tail_pairs, tail_marginals = _scaled_weights(rest, None, after, True)
    return pairs + tail_pairs, blocks.join(Split(marginals, tail_marginals))


@jax.custom_jvp
@_one_by_one
def _weights(log_trans, log_emit, active, residual: _Residual, cotangent):
    """Gradient of <cotangent, log_beta> with respect to both tables."""
    if isinstance(residual, _BlockResidual):
        fast = _block_weights(residual, cotangent)
    else:
        fast = _scaled_weights(residual, active, cotangent, log_trans.shape[3] == 1)

    def careful(weights):
        rest = cotangent * (1.0 - residual.trusted)
        return jax.tree.map(jnp.add, weights, log_weights(log_trans, log_emit, active, rest))

    return _once_if(jnp.any(residual.trusted == 0.0), careful, fast)


@_weights.defjvp
def _weights_jvp(primals, tangents):
    log_trans, log_emit, active, _, cotangent = primals

    def weights(log_trans, log_emit, cotangent):
        return log_weights(log_trans, log_emit, active, cotangent)

    moved = (tangents[0], tangents[1], tangents[4])
    return _weights(*primals), jax.jvp(weights, (log_trans, log_emit, cotangent), moved)[1]


@jax.custom_vjp
def _log_beta(log_trans, log_emit, active):
    return _forward(log_trans, log_emit, active)[0]


def _log_beta_forward(log_trans, log_emit, active):
    log_beta, residual = _forward(log_trans, log_emit, active)
    return log_beta, (log_trans, log_emit, active, residual)


def _log_beta_reverse(saved, cotangent):
    return *_weights(*saved, cotangent), None


_log_beta.defvjp(_log_beta_forward, _log_beta_reverse)


def _clean(x: Array) -> Array:
    """Clipped logarithms of zero become -inf, which cuts them off from every gradient."""
    return jnp.where(x < log_zero(x), -jnp.inf, x)


def canonical(log_trans, log_emit, active):
    """Check the shapes and bring them to (T or 1, K, K, B or 1), (T, K, B), None or (T, B or 1)."""
    if log_emit.ndim not in (2, 3):
        raise ValueError(
            f"log_emit: expected (T, K) or (T, K, B), got {log_emit.shape}; add the missing axis."
        )
    steps, num_states = log_emit.shape[:2]
    batch = log_emit.shape[2] if log_emit.ndim == 3 else 1
    table = log_trans
    if table.ndim == 2:
        table = table[None, :, :, None]
    elif table.ndim == 3 and log_emit.ndim == 2:
        table = table[..., None]
    fits = table.ndim == 4 and table.shape[0] in (1, steps) and table.shape[3] in (1, batch)
    if not fits or table.shape[1:3] != (num_states, num_states):
        expected = "(K, K) or (T, K, K)" if log_emit.ndim == 2 else "(K, K) or (T|1, K, K, B|1)"
        raise ValueError(
            f"log_trans: expected {expected} beside log_emit {log_emit.shape}, "
            f"got {log_trans.shape}; expand or transpose it."
        )
    if active is not None:
        expected_active = (steps,) if log_emit.ndim == 2 else (steps, batch)
        if active.shape != expected_active:
            raise ValueError(
                f"active: expected {expected_active} beside log_emit {log_emit.shape}, "
                f"got {active.shape}; one flag per step and sequence is needed."
            )
        active = active.reshape(steps, batch)
    return _clean(table), _clean(log_emit.reshape(steps, num_states, batch)), active


def chain_factor(log_trans: Array, log_emit: Array, active: Array | None = None) -> Array:
    """Log-partition of a chain, as a function of the state before its first step.

    ``log_beta[i] = log sum_{z_0..z_{T-1}} prod_t exp(trans_t[z_{t-1}, z_t] + emit_t[z_t])`` with
    ``z_{-1} = i``. Its gradient is the smoothed posterior: ``d log_beta / d log_emit[t]`` are the
    marginals of z_t, ``d log_beta / d log_trans`` the (summed) pair marginals. Differentiable
    twice (forward or reverse over reverse), exact also where scaled probabilities underflow.

    Args:
        log_trans: log-factors of (z_{t-1}, z_t), not necessarily normalised, entries may be -inf.
            Beside a 2-d ``log_emit``: (K, K), or (T, K, K) varying in time. Beside a 3-d one:
            (K, K), or (T or 1, K, K, B or 1).
        log_emit: log-factors of z_t alone, (T, K) or (T, K, B) for B sequences.
        active: None or bool (T,) / (T, B). Where False the transition is uniform, log(1/K), so
            that steps after the end of a sequence with ``log_emit`` zero contribute a factor 1.

    Returns:
        log_beta, (K,) or (K, B); -inf where no path is possible; zeros if T is 0.

    Raises:
        ValueError: shapes that do not fit together.

    Source: Rabiner (1989), A tutorial on hidden Markov models, eqs. 24-27 and section V.A;
        the recursion of r is the scaled forward pass, divided by the masses of the backward one.
    """
    table, emit, live = canonical(log_trans, log_emit, active)
    if log_emit.shape[0] == 0:
        return jnp.zeros(log_emit.shape[1:], log_emit.dtype)
    return _log_beta(table, emit, live).reshape(log_emit.shape[1:])
