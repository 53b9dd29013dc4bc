"""The E-step of independent rows, block by block.

Where all latents stand in one plate, log Z is a sum over its rows, and so is its gradient. Rows are
taken in blocks that stay in the cache: their statistics are made, used twice (log-factors,
expected statistics: two matrix products) and forgotten, so no array of rows times statistics is
ever in memory.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.evaluation import Evaluation, Plate, Term

MIN_ROWS = 4096
BLOCK_BYTES = 1 << 20  # working set of one block


def plate_of(out: Evaluation) -> Plate | None:
    """The plate to cut, if every latent stands in it and it is long; None: do not cut."""
    if out.chains or not out.variables:
        return None
    common = frozenset.intersection(*(v.plates for v in out.variables.values()))
    plates = [out.plates[p] for p in common]
    if not plates:
        return None
    plate = max(plates, key=lambda p: p.size)
    return plate if plate.size >= MIN_ROWS else None


def _axis(x: Array, tail: int, plate: Plate) -> int | None:
    """The axis of `x` that runs along the plate; None if it does not vary there."""
    axis = x.ndim - tail + plate.dim
    return axis if axis >= 0 and x.shape[axis] == plate.size else None


def _axes(out: Evaluation, name: str, plate: Plate) -> Any:
    """A `Term` of ints: for each array its axis along the plate, -1 where it has none."""
    term, spec = out.terms[name], out.specs[name]
    if plate.name not in spec.plates:
        return jax.tree.map(lambda _: -1, term)
    r, limits = spec.reinterpreted, spec.cls.arg_constraints

    def axis(x: Array, tail: int) -> Any:
        found = _axis(x, tail, plate)
        return -1 if found is None else found

    return Term(
        axis(term.natural, int(spec.in_family_form)),
        axis(term.coefficient, r if spec.in_family_form else 0),
        axis(term.offset, 0),
        {k: axis(v, r + limits[k].event_dim) for k, v in term.arguments.items()},
        axis(term.value, 0 if spec.own else spec.event_dim + r),
        cast(Any, -1),
    )


def _block_rows(out: Evaluation, plate: Plate) -> int:
    """Rows per block so that the block's tables and statistics fit the cache."""
    cells = 1
    for v in out.variables.values():
        cells *= v.size
    width = cells * 4
    for name, term in out.terms.items():
        if out.specs[name].in_family_form:
            width += 2 * term.natural.shape[-1]
    rows = max(BLOCK_BYTES // (8 * width), 64)
    return min(1 << (rows.bit_length() - 1), plate.size)


def value_and_grad(
    out: Evaluation, plate: Plate, log_partition: Callable[[Evaluation], Array]
) -> tuple[Array, dict[str, Array]]:
    """log Z and its gradient in the naturals, summed over blocks of rows.

    Args:
        out: an evaluated program whose latents all stand in `plate`.
        plate: to cut.
        log_partition: log Z of an evaluation.
    """
    axes = {name: _axes(out, name, plate) for name in out.terms}
    rows = _block_rows(out, plate)
    count, rest = divmod(plate.size, rows)

    def block(start: Array, size: int, others: bool) -> tuple[Array, dict[str, Array]]:
        """log Z and gradient of some rows; `others`: with the terms outside the plate."""
        terms = {
            k: jax.tree.map(lambda x, a: _slice(x, a, start, size), t, axes[k])
            for k, t in out.terms.items()
            if others or plate.name in out.specs[k].plates
        }
        plates = {**out.plates, plate.name: replace(plate, size=size)}
        cut = replace(out, terms=terms, plates=plates)

        def log_z(naturals: dict[str, Array]) -> Array:
            changed = {k: t._replace(natural=naturals[k]) for k, t in terms.items()}
            return log_partition(replace(cut, terms=changed))

        return jax.value_and_grad(log_z)({k: t.natural for k, t in terms.items()})

    def add(carry: tuple[Array, dict], start: Array, size: int, others: bool = False):
        total, weights = carry
        value, grads = block(start, size, others)
        for k, g in grads.items():
            a = axes[k].natural
            weights = {**weights, k: _merge(weights[k], g, a, start)}
        return total + value, weights

    weights = {k: jnp.zeros_like(t.natural) for k, t in out.terms.items()}
    carry = add((jnp.zeros(()), weights), jnp.zeros((), int), rows, others=True)
    carry, _ = lax.scan(lambda c, i: (add(c, i * rows, rows), None), carry, jnp.arange(1, count))
    if rest:
        carry = add(carry, jnp.asarray(count * rows), rest)
    return carry


def _slice(x: Array, axis: int, start: Array, size: int) -> Array:
    return x if axis < 0 else lax.dynamic_slice_in_dim(x, start, size, axis)


def _merge(total: Array, part: Array, axis: int, start: Array) -> Array:
    """Rows of their own are put in place, shared ones added."""
    if axis < 0:
        return total + part
    return lax.dynamic_update_slice_in_dim(total, part, start, axis)
