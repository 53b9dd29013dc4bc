"""Forward recursions: filtered probabilities, one-step-ahead densities and pairwise marginals.

`filtered` uses no later observation than the step it describes; `smoothed` (a gradient of log Z)
uses all. They have different names so that a backtest cannot take one for the other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.estep.enumerate import log_partition_of
from emprob.evaluation import Chain, Evaluation, Variable
from emprob.model import factor_of, layout
from emprob.partition.chains import move_axes, split_time
from emprob.partition.factors import Factor, eliminate, sum_plates
from emprob.partition.reduce import log_sum_exp


class Steps(NamedTuple):
    """The vectorised steps of a scan with everything but its carried latents summed out."""

    arrays: list[Array]  # (T or 1, common layout without this time axis)
    new: list[int]  # dimensions of the variables that each step adds
    moves: list[tuple[int, int]]  # slots: (previous, following)


def _carried(out: Evaluation, chain: Chain) -> list[int]:
    before = {s.previous for s in chain.slots}
    return list(dict.fromkeys(s.following for s in chain.slots if s.following not in before))


def _body(out: Evaluation, chain: Chain) -> Steps:
    """Sum out of a scan's body what is not carried, as the elimination does."""
    shape = layout(out)
    todo = [factor_of(out, n) for n, s in out.specs.items() if s.time == chain.name]
    keep = set(_carried(out, chain))
    done: list[Factor] = []
    while todo:
        leaf = max((f.plates for f in todo), key=len)
        here = [f for f in todo if f.plates == leaf]
        todo = [f for f in todo if f.plates != leaf]
        local = [d for d, plates in shape.variables.items() if plates == leaf and d not in keep]
        for f in eliminate(here, local, log_sum_exp):
            summed = sum_plates(f, shape, keep=frozenset([chain.name]))
            (done if summed.plates == f.plates else todo).append(summed)
    axis = out.plates[chain.name]
    arrays = [split_time(f.dense(), axis) for f in done]
    rank = max(a.ndim for a in arrays)
    arrays = [a.reshape(a.shape[:1] + (1,) * (rank - a.ndim) + a.shape[1:]) for a in arrays]
    return Steps(arrays, _carried(out, chain), [(s.previous, s.following) for s in chain.slots])


def _head(out: Evaluation, chain: Chain, last: int) -> list[Factor]:
    """Factors outside the scan's vectorised part, up to unrolled step `last`."""
    names = []
    for name, spec in out.specs.items():
        step = int(name.rsplit("@", 1)[1]) if "@" in name else -1
        if spec.time is None and step <= last:
            names.append(name)
    plates = {p for n in names for p in out.specs[n].plates}
    return [factor_of(out, n) for n in names] if plates is not None else []


def _message(out: Evaluation, chain: Chain, last: int, keep: list[int]) -> Array:
    """Log-message over some variables from everything before the vectorised part."""
    shape = layout(out)
    todo = _head(out, chain, last)
    plates = [shape.variables[d] for d in keep]
    target = frozenset().union(*plates) if plates else frozenset()
    while any(f.plates - target for f in todo):
        leaf = max((f.plates for f in todo if f.plates - target), key=len)
        here = [f for f in todo if f.plates == leaf]
        todo = [f for f in todo if f.plates != leaf]
        local = [d for d, p in shape.variables.items() if p == leaf and d not in keep]
        todo += [sum_plates(f, shape) for f in eliminate(here, local, log_sum_exp)]
    rest = [d for d in shape.variables if d not in keep]
    merged = eliminate([f._replace(plates=target) for f in todo], rest, log_sum_exp)
    rank = max([f.array.ndim for f in merged] + [-d for d in shape.variables])
    total = jnp.zeros((1,) * rank)
    for f in merged:
        total = total + f.dense()
    return total


def _over(x: Array, dims) -> Array:
    for d in dims:
        if x.ndim >= -d and x.shape[d] > 1:
            x = log_sum_exp(x, d)
    return x


def filter_chains(out: Evaluation) -> tuple[dict[str, Array], dict[str, Array]]:
    """Filtered probabilities of every chain variable, and one-step-ahead log-densities.

    Returns:
        by variable: (common layout) probabilities given the data up to the variable's own step;
        by scan: (T, common layout without time) log p(y_t | y_1..y_{t-1}) of the vectorised
        steps, the unrolled ones before them.
    """
    filtered: dict[str, Array] = {}
    densities: dict[str, Array] = {}
    for chain in out.chains.values():
        if not chain.slots:
            continue
        heads = sorted((int(n.rsplit("@", 1)[1]), n) for n in out.variables if "@" in n)
        levels = []
        for step, name in heads:
            dim = out.variables[name].dim
            message = _message(out, chain, step, [dim])
            levels.append((step, _over(message, [dim])))
            filtered[name] = jnp.exp(message - levels[-1][1])
        entry = list(dict.fromkeys(s.entry for s in chain.slots))
        message = _message(out, chain, chain.start - 1, entry)
        values, steps = _forward(out, chain, message)
        filtered.update(values)
        densities[chain.name] = _joined(levels, steps)
    return filtered, densities


def _joined(levels: list[tuple[int, Array]], steps: Array) -> Array:
    """Differences of the head's running totals, then the vectorised steps."""
    totals = list(dict(levels).values())
    first = [b - a for a, b in zip([0.0, *totals], totals)]
    shape = steps.shape[1:]
    rows = [
        jnp.broadcast_to(f.reshape((1,) * (len(shape) - f.ndim) + f.shape), shape) for f in first
    ]
    return jnp.concatenate([jnp.stack(rows), steps]) if rows else steps


def _forward(out: Evaluation, chain: Chain, message: Array) -> tuple[dict[str, Array], Array]:
    body = _body(out, chain)
    rank = body.arrays[0].ndim - 1
    message = message.reshape((1,) * (rank - message.ndim) + message.shape)
    message = move_axes(message, [(s.entry, s.previous) for s in chain.slots])
    old = [s.previous for s in chain.slots]
    still = sum((a[0] for a in body.arrays if a.shape[0] == 1), jnp.zeros((1,) * rank))
    moving = [a for a in body.arrays if a.shape[0] > 1]
    kept = {t for _, t in body.moves}
    drop = [d for d in old if d not in kept]
    back = [(t, s) for s, t in body.moves]
    full = list(jnp.broadcast_shapes(message.shape, *[a.shape[1:] for a in body.arrays]))
    for d in body.new:
        full[d] = 1
    for s in chain.slots:
        full[s.previous] = s.size

    def step(message: Array, inputs: list[Array]):
        joint = message + still + sum(inputs, jnp.zeros(()))
        level = _over(joint, [*old, *body.new])
        joint = joint - jnp.where(jnp.isfinite(level), level, 0.0)
        marginals = [
            jnp.exp(_over(joint, [e for e in [*old, *body.new] if e != d])) for d in body.new
        ]
        after = move_axes(_over(joint, drop), back)
        return jnp.broadcast_to(after, full), (marginals, level)

    level0 = _over(message, old)
    message = jnp.broadcast_to(message - level0, full)
    _, (marginals, levels) = lax.scan(step, message, moving, length=chain.length)
    axis = out.plates[chain.name]
    names = {v.dim: n for n, v in out.variables.items()}
    place = lambda x: jnp.moveaxis(  # noqa: E731
        x.reshape(x.shape[:1] + (1,) * max(-axis.dim - x.ndim, 0) + x.shape[1:]), 0,
        0,
    )  # fmt: skip
    return {names[d]: place(m) for d, m in zip(body.new, marginals, strict=True)}, levels


def pairwise(out: Evaluation, site: str) -> Array:
    """P(z_{t-1} = i, z_t = j | all data) of one chain, from t = 1 on: (T-1, plates..., K, K).

    The gradient of log Z in a tilt on each pair; this is the one place with T x K x K numbers.
    """
    chain, variable = _chain_of(out, site)
    slot = next(s for s in chain.slots if s.following == variable.dim)
    heads = sorted((int(n.rsplit("@", 1)[1]), n) for n, v in out.variables.items()
                   if v.site == site and "@" in n)  # fmt: skip
    first = [out.variables[n] for _, n in heads]
    pairs = [(a.dim, a.size, b) for a, b in zip(first, first[1:])]
    parts = [pair_table(out, *p)[None] for p in pairs]
    steps = pair_table(out, slot.previous, slot.size, variable)
    # without a step of its own before it, the first pair reaches out of the scan
    parts.append(steps if heads else steps[1:])
    return jnp.concatenate(parts)


def pair_table(out: Evaluation, before: int, size: int, variable: Variable) -> Array:
    """Joint posterior of a variable and the one on dimension `before`: (plates..., K, K)."""
    dims = [p.dim for p in out.plates.values()] + [v.dim for v in out.variables.values()]
    dims += [s.previous for c in out.chains.values() for s in c.slots]
    shape = [1] * -min(dims)
    shape[variable.dim], shape[before] = variable.size, size
    for p in variable.plates:
        shape[out.plates[p].dim] = out.plates[p].size
    tilt = {variable.name: jnp.zeros(shape)}
    grad = jax.grad(lambda t: log_partition_of(out, tilts=t))(tilt)[variable.name]
    plates = sorted((out.plates[p] for p in variable.plates), key=lambda p: p.dim)
    order = [grad.ndim + d for d in [p.dim for p in plates] + [before, variable.dim]]
    rest = [i for i in range(grad.ndim) if i not in order]
    table = grad.transpose(*order, *rest)
    return table.reshape(*[p.size for p in plates], size, variable.size)


def _chain_of(out: Evaluation, site: str):
    for chain in out.chains.values():
        for slot in chain.slots:
            for v in out.variables.values():
                if v.dim == slot.following and v.site == site:
                    return chain, v
    raise ValueError(f"latent '{site}' is not carried by a scan.")
