"""The time axis of a scan as a plate whose variables are eliminated by a chain recursion."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.partition.chain import chain_factor
from emprob.partition.factors import Axis, Factor, Layout, involves
from emprob.partition.reduce import Reduce, Sampler, log_sum_exp


def eliminate_chains(
    here: list[Factor], layout: Layout, time: str, leaf: frozenset[str], reduce: Reduce
):
    """Replace the factors of a scan that touch its carried latents by one factor at its entry.

    Only latents whose own plates are `leaf`: factors of deeper plates join them later.
    """
    owners = layout.owners
    own = [s for s in layout.chains[time].slots if owners[s.previous] == leaf]
    for slots in _components(here, own):
        dims = {d for s in slots for d in (s.previous, s.following)}
        touched = [f for f in here if any(involves(f, d) for d in dims)]
        here = [f for f in here if not any(involves(f, d) for d in dims)]
        if touched:
            here.append(_chain(touched, slots, layout, time, reduce))
    return here


def _components(factors: list[Factor], slots: Sequence) -> list[list]:
    """Group the slots that meet in some factor (or are lags of one another)."""
    groups = [([s], {s.previous, s.following}) for s in slots]
    links = [
        {d for s in slots for d in (s.previous, s.following) if involves(f, d)} for f in factors
    ]
    merged = True
    while merged:
        merged = False
        for i in range(len(groups)):
            for j in range(i + 1, len(groups)):
                a, b = groups[i], groups[j]
                if a[1] & b[1] or any(a[1] & link and b[1] & link for link in links):
                    groups[i] = (a[0] + b[0], a[1] | b[1])
                    del groups[j]
                    merged = True
                    break
            if merged:
                break
    return [g[0] for g in groups]


def _chain(factors: list[Factor], slots: list, layout: Layout, time: str, reduce: Reduce) -> Factor:
    """One factor over the entry variables for all steps of a scan."""
    axis = layout.plates[time]
    first_order = len(slots) == 1 and slots[0].following != slots[0].previous
    if first_order and reduce is log_sum_exp:
        array = _first_order(factors, slots[0], axis)
    else:
        array = _any_order(factors, slots, axis, reduce)
    moved = move_axes(array, [(s.previous, s.entry) for s in slots])
    return Factor(moved, factors[0].plates - {time})


def move_axes(x: Array, moves: Sequence[tuple[int, int]]) -> Array:
    """Carry axes (negative) from source to target positions; targets not moved have size one."""
    rank = max([x.ndim] + [-d for pair in moves for d in pair])
    x = x.reshape((1,) * (rank - x.ndim) + x.shape)
    moves = [(s, t) for s, t in moves if s != t]
    targets, sources = {t: s for s, t in moves}, {s for s, _ in moves}
    free = [t for t in targets if t not in sources]
    spare = iter(free)
    order = []
    for d in range(-rank, 0):
        if d in targets:
            order.append(targets[d])
        elif d in sources:
            order.append(next(spare))
        else:
            order.append(d)
    return x.transpose([rank + d for d in order])


def split_time(x: Array, axis: Axis) -> Array:
    """Put the time axis first (size one if absent), every other time axis left as it is."""
    if x.ndim < -axis.dim:
        return x[None]
    return jnp.moveaxis(x, axis.dim, 0)[:, ...]


def _any_order(factors: list[Factor], slots: list, axis: Axis, reduce: Reduce) -> Array:
    """Backward recursion over any number of carried latents and lags."""
    arrays = [split_time(f.dense(), axis) for f in factors]
    rank = max(a.ndim for a in arrays) - 1
    arrays = [a.reshape(a.shape[:1] + (1,) * (rank + 1 - a.ndim) + a.shape[1:]) for a in arrays]
    still = sum((a[0] for a in arrays if a.shape[0] == 1), jnp.zeros((1,) * rank))
    moving = [a for a in arrays if a.shape[0] > 1]
    new = [s.following for s in slots if s.following not in {s.previous for s in slots}]
    shape = list(jnp.broadcast_shapes(*[a.shape[1:] for a in arrays]))
    for d in new:
        shape[d] = 1
    for s in slots:
        shape[s.previous] = s.size
    moves = [(s.previous, s.following) for s in slots]
    keys = getattr(reduce, "key", None)

    def step(carry, inputs):
        message, key = carry
        if keys is not None:
            key, use = jax.random.split(key)
            step_reduce: Reduce = Sampler(use)
        else:
            step_reduce = reduce
        joint = still + sum(inputs, jnp.zeros(())) + move_axes(message, moves)
        for d in new:
            joint = step_reduce(joint, d)
        return (jnp.broadcast_to(joint, shape), key), None

    start = (jnp.zeros(shape), keys if keys is not None else jnp.zeros(()))
    (message, _), _ = lax.scan(step, start, moving, length=axis.size, reverse=True)
    return message


def _first_order(factors: list[Factor], slot, axis: Axis) -> Array:
    """The fast path: one latent carried one step, through the fused chain recursion."""
    moving = [f for f in factors if involves(f, slot.previous)]
    emission = [f for f in factors if not involves(f, slot.previous)]
    active = None
    mask = moving[0].active if len(moving) == 1 else None
    states = (slot.previous, slot.following)
    if mask is not None and not any(involves(Factor(mask, frozenset()), d) for d in states):
        active, moving = moving[0].active, [moving[0]._replace(active=None)]
    arrays = [f.dense() for f in moving + emission]
    rank = max([a.ndim for a in arrays] + [-axis.dim, -slot.previous, -slot.following])
    arrays = [a.reshape((1,) * (rank - a.ndim) + a.shape) for a in arrays]
    batch = _batch_shape(arrays, active, slot, axis, rank)
    to_kernel = lambda a, dims: _kernel_layout(a, dims, axis, batch, rank)  # noqa: E731
    zero = jnp.zeros((1,) * rank)
    trans = sum(arrays[: len(moving)], zero)
    emit = sum(arrays[len(moving) :], zero)
    k = slot.size
    log_emit = to_kernel(emit, [(slot.following, k)])
    log_emit = jnp.broadcast_to(log_emit, (axis.size, k, _size(batch)))
    log_trans = to_kernel(trans, [(slot.previous, k), (slot.following, k)])
    if active is not None:
        active = active.reshape((1,) * (rank - active.ndim) + active.shape)
        active = to_kernel(active, [])
        active = jnp.broadcast_to(active, (axis.size, _size(batch)))
    log_beta = _call_kernel(log_trans, log_emit, active)
    shape = [1] * rank
    for d, n in batch:
        shape[d] = n
    shape[axis.dim] = 1
    out = log_beta.reshape([k] + [shape[d] for d in range(-rank, 0)])
    return jnp.moveaxis(out, 0, _index(slot.previous, rank)).reshape(
        [k if d == slot.previous else shape[d] for d in range(-rank, 0)]
    )


def _index(dim: int, rank: int) -> int:
    return rank + dim


def _size(batch: list[tuple[int, int]]) -> int:
    out = 1
    for _, n in batch:
        out *= n
    return out


def _batch_shape(arrays, active, slot, axis: Axis, rank: int) -> list[tuple[int, int]]:
    shapes = [a.shape for a in arrays] + ([active.shape] if active is not None else [])
    joint = jnp.broadcast_shapes(*shapes, (1,) * rank)
    skip = {axis.dim, slot.previous, slot.following}
    return [(d, int(joint[d])) for d in range(-rank, 0) if d not in skip and joint[d] > 1]


def _kernel_layout(a: Array, dims, axis: Axis, batch, rank: int) -> Array:
    """(time, states..., batch): batch flattened, size one where the array does not vary."""
    front = [axis.dim] + [d for d, _ in dims]
    rest = [d for d in range(-rank, 0) if d not in front]
    a = a.transpose([rank + d for d in front + rest])
    states = [n for _, n in dims]
    sizes = dict(batch)
    lead = a.shape[:1]
    a = jnp.broadcast_to(a, (*lead, *states, *a.shape[1 + len(states) :]))
    tail = a.shape[1 + len(states) :]
    if any(n > 1 for n in tail):
        full = [sizes.get(d, 1) for d in rest]
        a = jnp.broadcast_to(a, (*lead, *states, *full))
    return a.reshape(*lead, *states, -1)


def _call_kernel(log_trans: Array, log_emit: Array, active: Array | None) -> Array:
    """Drop the axes that the kernel knows as absent: no batch, no time in the transition."""
    if log_emit.shape[-1] == 1:
        trans = log_trans[..., 0]
        trans = trans[0] if trans.shape[0] == 1 else trans
        return chain_factor(trans, log_emit[..., 0], None if active is None else active[..., 0])
    if log_trans.shape[0] == 1 and log_trans.shape[-1] == 1:
        log_trans = log_trans[0, ..., 0]
    return chain_factor(log_trans, log_emit, active)
