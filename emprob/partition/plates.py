"""The log-partition of a program with plates and chains, by variable elimination.

The plated sum-product of Obermeyer et al. (2019), "Tensor variable elimination for plated factor
graphs", with one more rule: the time axis of a scan is a plate whose variables are eliminated by a
chain recursion. Pure array code. What "eliminate" means is a parameter (`Reduce`): with
log-sum-exp the gradient of the result in a factor is its posterior weight; with the maximum, the
most likely configuration; with a sampled weight, an exact draw from the posterior.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.partition.chain import chain_factor


class Factor(NamedTuple):
    """A log-factor over the dimensions along which its array is longer than one.

    Attributes:
        array: (times..., variables..., plates...), any of size one where it does not vary.
        plates: names of the plates (and scans) it is repeated over.
        active: None, or where the factor counts; elsewhere it is the uniform log(1/K).
        size: that K.
    """

    array: Array
    plates: frozenset[str]
    active: Array | None = None
    size: int = 1

    def dense(self) -> Array:
        if self.active is None:
            return self.array
        return jnp.where(self.active, self.array, -jnp.log(float(self.size)))


MAX_TABLE_BYTES = 2 * 10**9


class TableTooLarge(ValueError):
    """Eliminating a variable would need a table over the limit.

    Attributes:
        shape: of the table.
    """

    def __init__(self, message: str, shape: tuple[int, ...] = ()):
        super().__init__(message)
        self.shape = shape


class Axis(Protocol):
    """One array dimension: where it is (negative) and how long."""

    @property
    def dim(self) -> int: ...

    @property
    def size(self) -> int: ...


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


class Layout(NamedTuple):
    """The static side of a partition: names to dimensions."""

    plates: Mapping[str, Axis]
    variables: Mapping[int, frozenset[str]]  # dimension -> plates of the variable
    chains: Mapping[str, "ChainAxes"]

    @property
    def owners(self) -> dict[int, frozenset[str]]:
        """Dimension -> plates of what varies along it: variables, and slots of chains."""
        owners = dict(self.variables)
        slots = [s for c in self.chains.values() for s in c.slots]
        for _ in slots:  # a lag is filled by another slot
            owners |= {s.previous: owners[s.following] for s in slots if s.following in owners}
        return owners


class ChainAxes(Protocol):
    """The dimensions of a scan's carry: each slot has `previous`, `following`, `entry`, `size`."""

    @property
    def slots(self) -> Sequence[Any]: ...


def log_partition(factors: Sequence[Factor], layout: Layout, reduce: Reduce = log_sum_exp) -> Array:
    """log of the sum over all variables of exp(sum of factors), a scalar.

    Raises:
        ValueError: if the plates cannot be eliminated one after the other.
    """
    total = jnp.zeros(())
    todo = list(factors)
    carried = {s.following for c in layout.chains.values() for s in c.slots}
    while todo:
        leaf = max((f.plates for f in todo), key=len)
        here = [f for f in todo if f.plates == leaf]
        todo = [f for f in todo if f.plates != leaf]
        local = [d for d, plates in layout.variables.items() if plates == leaf]
        here = eliminate(here, [d for d in local if d not in carried], reduce)
        for time in leaf & set(layout.chains):
            here = _eliminate_chains(here, layout, time, leaf, reduce)
        for factor in here:
            summed = sum_plates(factor, layout)
            if summed.plates or any(n > 1 for n in summed.array.shape):
                todo.append(summed)
            else:
                total = total + summed.array.reshape(())
        if todo and max((f.plates for f in todo), key=len) == leaf:
            total, todo = _eliminate_global(total, todo, layout, leaf, reduce)
    return total


def _eliminate_global(total, todo, layout, leaf, reduce):
    if leaf:
        raise ValueError(
            f"plates {sorted(leaf)} cannot be eliminated: two latents of different plates meet in "
            "one factor, and neither plate contains the other."
        )
    here = eliminate(todo, list(layout.variables), reduce)
    return total + sum(f.array.reshape(()) for f in here), []


def involves(factor: Factor, dim: int) -> bool:
    """Whether a factor varies along a dimension."""
    shape = factor.array.shape
    return len(shape) >= -dim and shape[dim] > 1


def eliminate(factors: list[Factor], dims: Sequence[int], reduce: Reduce) -> list[Factor]:
    """Sum variables out of factors of one plate context, cheapest first."""
    dims, factors = list(dims), list(factors)
    while dims:
        dim = min(dims, key=lambda d: _cost(factors, d))
        dims.remove(dim)
        touched = [f for f in factors if involves(f, dim)]
        if not touched:
            continue
        factors = [f for f in factors if not involves(f, dim)]
        _check_size(touched)
        joint = add(touched)
        factors.append(Factor(reduce(joint.array, dim), joint.plates))
    return factors


def _cost(factors: list[Factor], dim: int) -> int:
    shapes = [f.array.shape for f in factors if involves(f, dim)]
    cells = 1
    for n in jnp.broadcast_shapes(*shapes) if shapes else ():
        cells *= n
    return cells


def _check_size(factors: Sequence[Factor]) -> None:
    """Refuse a joint table over the limit before it is compiled."""
    shape = jnp.broadcast_shapes(*[f.array.shape for f in factors])
    cells = 1
    for n in shape:
        cells *= n
    if 8 * cells > MAX_TABLE_BYTES:
        raise TableTooLarge(
            f"enumerating the latents needs a table of {cells:.3g} cells ({8 * cells:.3g} bytes), "
            f"the limit is {MAX_TABLE_BYTES:.3g} bytes. Factors of shapes "
            f"{[f.array.shape for f in factors][:6]} meet in one sum. Give the latents plates, or "
            "break the dependence between them.",
            shape,
        )


def add(factors: Sequence[Factor]) -> Factor:
    """The sum of log-factors of one plate context."""
    array = factors[0].dense()
    for f in factors[1:]:
        array = array + f.dense()
    return Factor(array, factors[0].plates)


def sum_plates(factor: Factor, layout: Layout, keep: frozenset[str] = frozenset()) -> Factor:
    """Sum a factor over the plates that none of its remaining variables stands in."""
    array = factor.dense()
    kept = keep & factor.plates
    for dim, plates in layout.owners.items():
        if involves(Factor(array, factor.plates), dim):
            kept = kept | plates
    if not kept <= factor.plates:
        raise ValueError(
            f"a factor in plates {sorted(factor.plates)} depends on a latent in plates "
            f"{sorted(kept)}."
        )
    for name in factor.plates - kept:
        axis = layout.plates[name]
        if array.ndim >= -axis.dim and array.shape[axis.dim] > 1:
            array = array.sum(axis.dim, keepdims=True)
        else:
            array = array * axis.size
    return Factor(array, factor.plates & kept)


# -- chains -------------------------------------------------------------------------------------


def _eliminate_chains(
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
