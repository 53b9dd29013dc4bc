"""The array layout that all terms of a program share.

Aligned from the right: [times..., enumerated variables..., plates...][statistics].
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from emprob.errors import ModelError
from emprob.evaluation import Evaluation, Term, TermSpec, Variable


def align(x: Array, rank: int, tail: int = 0) -> Array:
    """Insert axes at the left so that `x` has `rank` dimensions before its last `tail` ones."""
    missing = rank + tail - x.ndim
    return x.reshape((1,) * missing + x.shape) if missing > 0 else x


def fold_loose(term: Term, name: str, out: Evaluation) -> Term:
    """Sum a table over batch dimensions that stand in no plate of its site."""
    spec = out.specs[name]
    if spec.in_family_form:
        return term
    plated = {out.plates[p].dim for p in spec.plates}
    variables = {v.dim: v for v in out.variables.values()}
    shape = jnp.broadcast_shapes(term.natural.shape, term.coefficient.shape, term.offset.shape)
    rank = len(shape)
    loose = [
        d
        for d in range(-rank, 0)
        if shape[d] > 1 and d not in plated and not _owned(d, variables, out)
    ]
    if not loose:
        return term
    for v in variables.values():
        depends = shape[v.dim] > 1
        inside = any(out.plates[p].dim in loose for p in v.plates)
        if v.name == spec.own or (depends and inside):
            raise ModelError(
                f"site '{spec.site}': batch dimension {loose[-1]} of size {shape[loose[-1]]} is "
                f"not in a plate. Put it under numpyro.plate (in the plate of '{v.site}')."
            )
    natural, coefficient = jnp.broadcast_arrays(term.natural, term.coefficient)
    table = coefficient * jnp.where(coefficient == 0, 0.0, natural) + term.offset
    axes = tuple(rank + d for d in loose)
    total = jnp.broadcast_to(table, shape).sum(axes, keepdims=True)
    one = (1,) * rank
    return term._replace(natural=total, coefficient=jnp.ones(one), offset=jnp.zeros(one))


def _owned(dim: int, variables: Mapping[int, Variable], out: Evaluation) -> bool:
    """Whether a dimension belongs to a variable, a slot of a chain or a time axis."""
    slots = {s.previous for c in out.chains.values() for s in c.slots}
    times = {out.plates[t].dim for t in out.chains}
    return dim in variables or dim in slots or dim in times


def aligned(term: Term, spec: TermSpec, rank: int, times: list[str]) -> Term:
    """Bring every array of a term to the layout of the module's head."""
    place = 1 + times.index(spec.time) if spec.time is not None else 0

    def layout(x: Array, tail: int) -> Array:
        if spec.time is None:
            return align(x, rank, tail)
        # the scan has put the time axis first
        front, rest = x.shape[:1], x.shape[1:]
        body = (1,) * (rank + tail - len(rest)) + rest
        return x.reshape(front + (1,) * (place - 1) + body)

    r, constraints = spec.reinterpreted, spec.cls.arg_constraints
    return Term(
        layout(term.natural, int(spec.in_family_form)),
        layout(term.coefficient, r if spec.in_family_form else 0),
        layout(term.offset, 0),
        {k: layout(v, r + constraints[k].event_dim) for k, v in term.arguments.items()},
        layout(term.value, 0 if spec.own else spec.event_dim + r),
        term.origin if spec.time is None else term.origin[0],
    )
