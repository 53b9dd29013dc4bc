"""Log-factors over named dimensions, and how a variable or a plate is summed out of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array

from emprob.partition.reduce import Reduce


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
