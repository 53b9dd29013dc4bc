"""Linear-Gaussian rows that are all alike: the data enter by their first two moments alone.

With v = (z, x), x the inputs of a row (factor analysis, PPCA), the factors of a row are one
quadratic in v. What is left of it once z is integrated out is a quadratic in x, whose sum over
rows needs the mean and the covariance of the rows, by pattern of missing cells: no row is visited
twice, however many there are. A few atoms with the joint moments of (z, x) stand for all rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob.evaluation import Plate
from emprob.integral import steady
from emprob.integral.integral import Integral, cell_sums
from emprob.integral.steady import Atoms
from emprob.model import LatentModel, log_factor
from emprob.partition import gaussian

EXACT = 1e-9
CHECKED = 64  # rows on which the claim is checked
LEAST = 8  # rows, below which there is nothing to gain


@dataclass(frozen=True)
class Rows:
    """The static side.

    Attributes:
        leaves: which of the program's arrays are inputs of the rows.
        shapes: of each at one row.
        plates: that count the rows.
    """

    leaves: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    plates: tuple[str, ...]

    def log_integral(self, model: LatentModel, params: Mapping, index: int) -> Array:
        """The log-integral of all rows together, (1, 1), differentiable in the parameters."""
        return _integrated(model, params, index)[0].reshape(1, 1)

    def solve(self, model: LatentModel, params: Mapping, index: int) -> tuple[Array, Atoms]:
        """The log-integral (1, 1) and the atoms."""
        value, near, curve = _integrated(model, params, index)
        return value.reshape(1, 1), _atoms(model, index, near, curve)

    def single(self, integral: Integral) -> Integral:
        """The integral over one row."""
        return replace(integral, block=integral.block.resized((1,)))

    def one_step(self, plates: Mapping[str, Plate]) -> dict[str, Plate]:
        """The plates of a program of one row."""
        return {k: replace(p, size=1) if k in self.plates else p for k, p in plates.items()}


class RowsData(NamedTuple):
    """The arrays, by pattern of missing cells.

    Attributes:
        seen: (M, P).
        counts: (M,), number of rows.
        means: (M, P), missing cells at the middle.
        covariances: (M, P, P).
        middle: (P,), a point near the inputs.
    """

    seen: Array
    counts: Array
    means: Array
    covariances: Array
    middle: Array


def _at_row(integral: Integral, leaves: Sequence[Array], v: Array, seen: Array) -> dict:
    """Values of the latents and of the program's arrays at one row."""
    width = integral.block.width
    one = integral.block.resized((1,))
    values: dict[str, Array] = dict(one.unpack(v[:width].reshape(1, 1, width)))
    return values | steady.placed(integral.steady, leaves, jnp.where(seen, v[width:], jnp.nan))


def _row(model: LatentModel, params: Mapping, index: int, v: Array, seen: Array) -> Array:
    """Log-factors of one row."""
    integral, data = model.structure.integrals[index], model.data.integrals[index]
    one = integral.steady.single(integral)
    changed, latents = steady.with_leaves(model, _at_row(integral, model.data.leaves, v, seen))
    out = changed.evaluate(params, latents)
    tables = {k: log_factor(out.terms[k], out.specs[k]) for k in integral.terms}
    parts = [cell_sums(one, data.cells, out, k, t).sum() for k, t in tables.items()]
    return sum(parts, jnp.zeros(()))


def _integrated(model: LatentModel, params: Mapping, index: int):
    """Total log-integral, the Gaussian at each pattern's mean row, the quadratic's curvature."""
    integral, data = model.structure.integrals[index], model.data.integrals[index].steady
    d = integral.block.width
    v0 = jnp.concatenate([jnp.zeros(d), data.middle])

    def pattern(seen: Array):
        return steady.derivatives(lambda v: _row(model, params, index, v, seen), v0)

    value, slope, curve = jax.vmap(pattern)(data.seen)
    x = data.means - data.middle
    h = slope[:, :d] + jnp.einsum("mij,mj->mi", curve[:, :d, d:], x)
    near = gaussian.dense(-curve[:, :d, :d], h)
    across = jnp.einsum("mij,mjk->mik", near.covariance, curve[:, :d, d:])
    bent = curve[:, d:, d:] + jnp.einsum("mji,mjk->mik", curve[:, :d, d:], across)
    own = jnp.einsum("mi,mij,mj->m", x, curve[:, d:, d:], x)
    spread = jnp.einsum("mij,mij->m", bent, data.covariances)
    each = value + (slope[:, d:] * x).sum(1) + 0.5 * (own + spread) + near.log_integral
    return (data.counts * each).sum(), near, curve


def _atoms(model: LatentModel, index: int, near: gaussian.Dense, curve: Array) -> Atoms:
    integral, data = model.structure.integrals[index], model.data.integrals[index].steady
    d = integral.block.width
    across = jnp.einsum("mij,mjk->mik", near.covariance, curve[:, :d, d:])
    mixed = jnp.einsum("mij,mjk->mik", across, data.covariances)
    inner = near.covariance + jnp.einsum("mij,mkj->mik", mixed, across)
    top = jnp.concatenate([inner, mixed], 2)
    bottom = jnp.concatenate([jnp.swapaxes(mixed, 1, 2), data.covariances], 2)
    covariance = jnp.concatenate([top, bottom], 1)
    points = jax.vmap(steady.cloud)(jnp.concatenate([near.mean, data.means], 1), covariance)
    place = lambda v, seen: _at_row(integral, model.data.leaves, v, seen)  # noqa: E731
    values = jax.vmap(lambda row, seen: jax.vmap(lambda v: place(v, seen))(row))(points, data.seen)
    count, each = points.shape[:2]
    values = jax.tree.map(lambda a: a.reshape(count * each, *a.shape[2:]), values)
    weight = jnp.repeat(data.counts / each, each)
    return Atoms(values, weight, weight)


# -- is it so? ----------------------------------------------------------------------------------


def found(
    model: LatentModel, points: Sequence[Mapping], integral: Integral, data: Any
) -> tuple[Integral, Any]:
    """The integral with its rows' common quadratic, if they have one; else as it is."""
    block = integral.block
    rows = block.num_series
    plain = (
        integral.quadratic and not block.is_chain and rows > LEAST and len(block.series) == 1
        and not integral.branches and not integral.gathered and bool(jnp.all(data.real == 1))
    )  # fmt: skip
    leaves = [np.asarray(x) for x in model.data.leaves]
    inputs = [i for i, x in enumerate(leaves) if x.ndim and len(x) == rows]
    if not plain or not inputs or any(leaves[i].dtype.kind != "f" for i in inputs):
        return integral, data
    shapes = tuple(leaves[i].shape[1:] for i in inputs)
    alike = Rows(tuple(inputs), shapes, integral.plates)
    arrays = _data(np.concatenate([leaves[i].reshape(rows, -1) for i in inputs], 1))
    if arrays is None:
        return integral, data
    try:
        moving = integral.moving | steady.moving_with(model, points[0], alike, integral)
        changed = replace(integral, steady=alike, moving=moving)
        more = data._replace(steady=arrays)
        good = _agrees(model, points, changed, more, inputs)
    except Exception:  # a program that needs to know how many rows there are
        good = False
    return (changed, more) if good else (integral, data)


def _data(x: np.ndarray) -> RowsData | None:
    seen = ~np.isnan(x)
    patterns, index, counts = np.unique(seen, axis=0, return_inverse=True, return_counts=True)
    if len(patterns) > steady.MAX_PATTERNS:
        return None
    middle = np.where(seen, x, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
    filled = np.where(seen, x, middle)
    means, covariances = [], []
    for m in range(len(patterns)):
        rows = filled[index.reshape(-1) == m]
        means.append(rows.mean(0))
        apart = rows - means[-1]
        covariances.append(apart.T @ apart / len(rows))
    parts = (patterns, counts.astype(float), np.array(means), np.array(covariances), middle)
    return RowsData(*map(jnp.asarray, parts))


def _agrees(
    model: LatentModel, points: Sequence[Mapping], integral: Integral, data: Any, inputs: list[int]
) -> bool:
    """Whether moments give the log-integral that the rows give, on some of the rows."""
    some = slice(0, min(integral.block.num_series, CHECKED))
    block = integral.block.resized((some.stop,))
    leaves = tuple(x[some] if i in inputs else x for i, x in enumerate(model.data.leaves))
    held = {k: v[some] for k, v in model.data.held.items()}
    rows = np.concatenate([np.asarray(leaves[i]).reshape(some.stop, -1) for i in inputs], 1)
    less = data._replace(
        centre=data.centre[some], real=data.real[some], steady=_data(rows), cells={}
    )
    integral = replace(integral, block=block)
    values = []
    for group in (integral, replace(integral, steady=None)):
        structure = replace(model.structure, integrals=(group,))
        arrays = replace(model.data, integrals=(less,), leaves=leaves, held=held)
        probe = replace(model, structure=structure, data=arrays)
        values.append([float(_total(probe, dict(p))) for p in points])
    found, expected = np.array(values)
    return bool((np.abs(found - expected) < EXACT * (1.0 + np.abs(expected))).all())


@jax.jit
def _total(model: LatentModel, params: Mapping) -> Array:
    from emprob.integral.expectation import log_integral

    return log_integral(model, params, 0).sum()
