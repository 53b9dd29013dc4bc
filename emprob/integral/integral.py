"""A group of continuous latents that is integrated together, and its log-density as a function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions.transforms import Transform

from emprob.evaluation import Evaluation
from emprob.integral.block import Block
from emprob.model import LatentModel, log_factor
from emprob.space import forward

Field = Callable[[Array], Array]  # (B, S, T, D) -> (B, S)


@dataclass(frozen=True)
class Integral:
    """What is static about a group of continuous latents.

    Attributes:
        block: the layout of its coordinates.
        terms: names of the log-factors that it enters.
        moving: (term, array) pairs that depend on its values.
        plates: names of the plates that count the series.
        gathered: whether a table says to which series each cell of a factor belongs (`b[group]`);
            else the cells stand in the plates of the series.
        branches: discrete variables that enter the same factors, and their sizes.
        quadratic: whether the log-density is quadratic in the coordinates at any parameters.
        rule: the E-step's settings; says how to integrate.
        why: why that rule.
        steady: steady.Steady where all steps of a chain are one quadratic.
    """

    block: Block
    terms: tuple[str, ...]
    moving: frozenset[tuple[str, str]]
    plates: tuple[str, ...]
    gathered: bool
    branches: tuple[tuple[str, int], ...]
    quadratic: bool
    rule: Any
    why: str = ""
    steady: Any = None

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(s.site for s in self.block.slots)

    @property
    def num_branches(self) -> int:
        return prod(n for _, n in self.branches)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.num_branches, *self.block.shape)


class IntegralData(NamedTuple):
    """The arrays of an integral.

    Attributes:
        centre: (S, T, D), where the search for the mode begins.
        real: (S, T, D), 1 for a coordinate of a latent, 0 for padding and masked latents.
        cells: by term, the series of each cell (empty unless `gathered`).
        transforms: by site, coordinates -> values.
        steady: steady.SteadyData, or None.
    """

    centre: Array
    real: Array
    cells: dict[str, Array]
    transforms: dict[str, Transform]
    steady: Any = None


def values_of(integral: Integral, data: IntegralData, z: Array) -> dict[str, Array]:
    """(S, T, D) coordinates -> values by site, in their supports."""
    return {k: forward(data.transforms[k], u) for k, u in integral.block.unpack(z).items()}


def log_jacobian(integral: Integral, data: IntegralData, z: Array) -> Array:
    """log |d values / d coordinates| of each series, (S,)."""
    total = jnp.zeros(integral.block.num_series, z.dtype)
    coordinates = integral.block.unpack(z)
    for slot in integral.block.slots:
        u, transform = coordinates[slot.site], data.transforms[slot.site]
        slopes = jnp.asarray(transform.log_abs_det_jacobian(u, forward(transform, u)))
        lost = u.ndim - slopes.ndim
        slopes = slopes.reshape(slopes.shape + (1,) * lost)
        steps = slopes if slot.timed else slopes[None]
        order = [i + 1 for i in slot.axes]
        rest = [i for i in range(steps.ndim) if i not in order]
        moved = steps.transpose(*order, *rest)
        total = total + moved.reshape(integral.block.num_series, -1).sum(1)
    return total


def field(model: LatentModel, params: Mapping[str, Array], index: int) -> Field:
    """The log-density of the coordinates and of what hangs on them, by branch and series."""
    integral, data = model.structure.integrals[index], model.data.integrals[index]

    def at(z: Array) -> Array:
        out = model.evaluate(params, values_of(integral, data, z))
        sums = series_sums(integral, data.cells, out)
        return sums.reshape(integral.num_branches, -1) + log_jacobian(integral, data, z)

    if not integral.branches:
        return lambda z: at(z[0])
    numbers = jnp.arange(integral.num_branches)
    return lambda z: jax.vmap(lambda x, b: at(x)[b])(z, numbers)


def series_sums(integral: Integral, cells: Mapping[str, Array], out: Evaluation) -> Array:
    """The log-factors that an integral enters, summed by branch and series: (branches..., S)."""
    total = jnp.zeros(())
    for name in integral.terms:
        table = log_factor(out.terms[name], out.specs[name])
        total = total + cell_sums(integral, cells, out, name, table)
    return total


def cell_sums(
    integral: Integral, cells: Mapping[str, Array], out: Evaluation, name: str, table: Array
) -> Array:
    """The cells of one factor's table, summed by branch and series."""
    series = integral.block.num_series
    if integral.gathered:
        table = _repeated(table, out, name, ())
        return jax.ops.segment_sum(table.ravel(), cells[name].ravel(), series)
    branches = [out.variables[v].dim for v, _ in integral.branches]
    plates = [out.plates[p].dim for p in integral.plates]
    table = _repeated(table, out, name, plates)
    rank = table.ndim
    kept = [rank + d for d in (*branches, *plates)]
    others = [i for i in range(rank) if i not in kept]
    summed = table.transpose(*kept, *others).sum(tuple(range(len(kept), rank)))
    sizes = [n for _, n in integral.branches] + list(integral.block.series)
    full = jnp.broadcast_to(summed, sizes)
    return full.reshape(*sizes[: len(branches)], series)


def _repeated(table: Array, out: Evaluation, name: str, kept: list[int] | tuple) -> Array:
    """Multiply by the size of every plate along which a factor is repeated without varying."""
    for p in out.specs[name].plates:
        plate = out.plates[p]
        if plate.dim not in kept and table.shape[plate.dim] == 1:
            table = table * plate.size
    return table
