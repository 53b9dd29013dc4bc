"""Log-partition of a discrete Markov chain, and its gradient.

The primal is the backward recursion; its gradient is a forward recursion of smoothed
probabilities. Both run on scaled probabilities, which is fast, and verify themselves: where a
scaled number comes near the smallest float, the same quantities are formed again in log-space.

Inside this file every array is *canonical*: ``log_trans`` is (T or 1, K, K, B or 1), ``log_emit``
is (T, K, B), ``active`` is None or (T, B or 1).
"""

from __future__ import annotations

import operator
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from emprob.partition import chain_blocks as blocks
from emprob.partition.chain_blocks import Split
from emprob.partition.chain_log import log_value, log_weights, log_zero, reachable


def _tiny(x: Array) -> float:
    """Below this a scaled message may have lost what it stands for: 1e-200 in float64."""
    return float(jnp.finfo(x.dtype).tiny) ** 0.65


class _Residual(NamedTuple):
    """What the reverse pass needs; the probabilities are kept, as a second exp costs a scan."""

    mass: Array  # (T, K, B), scaled messages before they are normalised
    trusted: Array  # (B,), 1 where they can be relied on, else 0
    trans: Array  # (T or 1, K, K, B or 1)
    emit: Array  # (T, K, B)


class _BlockResidual(NamedTuple):
    """The same of one long sequence that is taken in blocks of time; see ``chain_blocks.py``."""

    mass: Split
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
    num_states = log_emit.shape[1]
    emit, emit_shift = _max_shift(log_emit, 1)
    trans, trans_shift = _max_shift(log_trans, (1, 2))
    trans_shift = jnp.broadcast_to(trans_shift[:, 0, 0], (log_emit.shape[0], trans.shape[3]))
    if active is not None:
        trans_shift = jnp.where(active, trans_shift, 0.0)
        if trans.shape[0] > 1:
            trans = jnp.where(active[:, None, None], trans, 1.0 / num_states)
    log_scale = jnp.sum(emit_shift[:, 0] + trans_shift, 0)
    return _Scaled(trans, emit, log_scale)


def _push(trans: Array, u: Array) -> Array:
    """``sum_j trans[i, j] u[j]`` without a dot, whose call costs more than the arithmetic."""
    if u.shape[0] > 4:  # measured: one reduction beats many terms from here on
        return jnp.sum(trans * u[None], 1)
    return reduce(operator.add, [trans[:, j] * u[j] for j in range(u.shape[0])])


def _pull(r: Array, trans: Array) -> Array:
    """``sum_i r[i] trans[i, j]`` without a dot."""
    if r.shape[0] > 4:
        return jnp.sum(r[:, None] * trans, 0)
    return reduce(operator.add, [r[i] * trans[i] for i in range(r.shape[0])])


def _static_mask(trans: Array, active: Array | None) -> Array | None:
    """The mask the loops still have to apply: a varying table already holds uniform rows."""
    return active if trans.shape[0] == 1 else None


def _scan_inputs(trans: Array, active: Array | None):
    """Per-step parts of the transition: (table or None, mask or None), and the fixed table."""
    varying = trans if trans.shape[0] > 1 else None
    return trans[0], varying, _static_mask(trans, active)


def _scaled_masses(trans: Array, emit: Array, active: Array | None, start: Array) -> Array:
    """Backward recursion from beta_T = start: masses[t, i] = sum_j A_ij b_t(j) beta_t(j)."""
    fixed, varying, mask = _scan_inputs(trans, active)

    def step(beta, xs):
        b, table, live = xs
        u = b * beta
        mass = _push(fixed if table is None else table, u)
        if live is not None:
            mass = jnp.where(live, mass, jnp.mean(u, 0))
        total = jnp.sum(mass, 0)
        return mass / jnp.maximum(total, _tiny(total)), mass

    return lax.scan(step, start, (emit, varying, mask), reverse=True)[1]


def _scaled_rates(trans: Array, gain: Array, active: Array | None, rate: Array) -> Array:
    """Forward recursion r_{t+1}(j) = gain_t(j) sum_i r_t(i) A_ij; returns r_1 .. r_T, (T, K, B)."""
    fixed, varying, mask = _scan_inputs(trans, active)

    def step(r, xs):
        c, table, live = xs
        mixed = _pull(r, fixed if table is None else table)
        if live is not None:
            mixed = jnp.where(live, mixed, jnp.mean(r, 0))
        r = c * mixed
        return r, r

    return lax.scan(step, rate, (gain, varying, mask))[1]


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
        lost = (mass() < _tiny(log_emit)) & reachable(log_trans, log_emit, active)
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
    start = jnp.ones(log_emit.shape[1:], log_emit.dtype)
    mass = _scaled_masses(scaled.trans, scaled.emit, active, start)
    log_totals = _sum_of_logs(jnp.sum(mass[1:], 1))
    log_beta = jnp.log(mass[0]) + log_totals + scaled.log_scale
    small = jnp.min(mass, axis=(0, 1)) < _tiny(mass)
    failed = _lost(small, lambda: mass, log_trans, log_emit, active)
    return log_beta, failed, _Residual(mass, failed, scaled.trans, scaled.emit)


def _in_blocks(log_trans: Array, log_emit: Array):
    """The same for one long sequence, all blocks of time side by side."""
    tiny = _tiny(log_emit)
    trans, trans_shift = _max_shift(log_trans, (1, 2))
    cut = blocks.split(log_emit)
    (body, shift), (tail, tail_shift) = _max_shift(cut.blocks, 1), _max_shift(cut.tail, 1)
    log_scale = jnp.sum(shift) + jnp.sum(tail_shift) + log_emit.shape[0] * jnp.sum(trans_shift)
    last = jnp.ones(log_emit.shape[1:], log_emit.dtype)
    tail_mass = _scaled_masses(trans, tail, None, last)
    if tail.shape[0]:
        last = tail_mass[0] / jnp.maximum(jnp.sum(tail_mass[0]), tiny)
    product = blocks.transfer(trans[0], body, tiny)
    entries = blocks.entries_from_behind(product, last, tiny)
    found = blocks.masses(trans[0], body, entries, tiny)
    totals = found.total.at[0, 0].set(1.0)
    log_totals = jnp.sum(_sum_of_logs(totals)) + jnp.sum(_sum_of_logs(jnp.sum(tail_mass, 1)))
    log_beta = jnp.log(found.mass[0, :, :1]) + log_totals + log_scale
    mass = Split(found.mass, tail_mass)
    small = (found.least < tiny) | jnp.any(tail_mass < tiny)
    failed = _lost(small[None], lambda: blocks.join(mass), log_trans, log_emit, None)
    failed = failed | blocks.disagree(found.mass[0], entries, tiny)
    return log_beta, failed, _BlockResidual(mass, failed, trans, Split(body, tail), product)


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


def _pair_weights(trans, rates, u, active, shared: bool):
    """Gradient of the transition's log-factors, trans * sum_t r_t(i) u_t(j), in their shape."""
    if active is not None:
        rates = jnp.where(active[:, None], rates, 0.0)
    if trans.shape[0] > 1:
        pairs = trans * rates[:, :, None] * u[:, None]
        return jnp.sum(pairs, -1, keepdims=True) if shared else pairs
    if shared:
        return trans * jnp.einsum("tib,tjb->ij", rates, u)[None, :, :, None]
    return trans * jnp.einsum("tib,tjb->ijb", rates, u)[None]


def _first_rate(mass: Array, trusted: Array, cotangent: Array) -> Array:
    alive = (mass > 0.0) & (trusted > 0.0)
    return jnp.where(alive, cotangent / jnp.where(alive, mass, 1.0), 0.0)


def _scaled_weights(log_trans, active, residual: _Residual, cotangent):
    """Gradient of <cotangent, log_beta> over the trusted sequences, on scaled probabilities."""
    mass, trusted, trans, emit = residual
    ones = jnp.ones_like(mass[:1])
    ahead = jnp.concatenate([mass[1:], ones])
    total = jnp.concatenate([jnp.sum(mass[1:], 1, keepdims=True), ones[:, :1]])
    alive = (ahead > 0.0) & (trusted > 0.0)
    gain = jnp.where(alive, emit / jnp.where(total > 0.0, total, 1.0), 0.0)
    first = _first_rate(mass[0], trusted, cotangent)
    rates = _scaled_rates(trans, gain, active, first)
    before = jnp.concatenate([first[None], rates[:-1]])
    shared = log_trans.shape[3] == 1
    pairs = _pair_weights(trans, before, gain * ahead, active, shared)
    return pairs, rates * ahead


def _block_weights(residual: _BlockResidual, cotangent):
    """The same for one long sequence, all blocks of time side by side."""
    (mass, tail), trusted, trans, emit, product = residual
    one = jnp.ones_like(cotangent)
    after = (tail[0], jnp.sum(tail[0], 0)) if tail.shape[0] else (one, one[0])
    behind = jnp.concatenate([mass[0, :, 1:], after[0]], 1)
    totals = jnp.concatenate([jnp.sum(mass[0, :, 1:], 0), after[1]])
    first = _first_rate(mass[0, :, :1], trusted, cotangent)
    entries = blocks.entries_from_before(product, mass[0], behind, first)
    sums, marginals, rate = blocks.weights(trans[0], emit.blocks, mass, (behind, totals), entries)
    pairs = trans * sums[None, :, :, None]
    if not tail.shape[0]:
        return pairs, blocks.join(Split(marginals, tail))
    rest = _Residual(tail, trusted, trans, emit.tail)
    # a rate before the tail is what a cotangent divided by its first mass would have been
    tail_pairs, tail_marginals = _scaled_weights(trans, None, rest, rate[:, -1:] * tail[0])
    return pairs + tail_pairs, blocks.join(Split(marginals, tail_marginals))


@jax.custom_jvp
@_one_by_one
def _weights(log_trans, log_emit, active, residual: _Residual, cotangent):
    """Gradient of <cotangent, log_beta> with respect to both tables."""
    if isinstance(residual, _BlockResidual):
        fast = _block_weights(residual, cotangent)
    else:
        fast = _scaled_weights(log_trans, active, residual, cotangent)

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
