"""How much a model computes: what memory and compiling are planned by."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob import chart
from emprob.model import factors

FEW = 30_000  # numbers; with many more, code compiled in a hurry costs what it saves
LONG = 600  # operations; a plain mixture or chain has half as many


class Size(NamedTuple):
    """Of a model: cells of its tables, and operations that its program is made of."""

    cells: int
    operations: int


def cells(model: Any, params: Mapping[str, Array]) -> int:
    """Number of cells of a model's tables.

    Args:
        model: a bound model.
        params: by site; their shapes and types count.
    """
    return size_of(model, params).cells


def is_little(model: Any, coordinates: Mapping[str, Array]) -> bool:
    """Whether the tables of a model, once for each of its coordinates, hold few numbers."""
    constrain = lambda m, w: chart.from_coordinates(m.data.transforms, w)  # noqa: E731
    params = jax.eval_shape(constrain, model, dict(coordinates))
    return cells(model, params) * sum(x.size for x in coordinates.values()) <= FEW


def is_compiling(model: Any, params: Mapping[str, Array]) -> bool:
    """Whether compiling takes much longer than a whole fit: a long program of short tables.

    Integrals are left out: how often their search looks at the program is not known.
    """
    size = size_of(model, params)
    numbers = size.cells * sum(np.size(x) for x in params.values())
    return size.operations >= LONG and numbers <= FEW and not model.structure.continuous


def size_of(model: Any, params: Mapping[str, Array]) -> Size:
    """What a model's tables and program amount to; traced once per model and shape."""
    leaves, treedef = jax.tree.flatten((model, dict(params)))
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
    return _size(treedef, shapes)


@lru_cache(maxsize=16)
def _size(treedef: Any, shapes: tuple) -> Size:
    def tables(m: Any, p: Mapping[str, Array]) -> list[Array]:
        return [f.array for f in factors(m.evaluate(p))]

    closed, out = jax.make_jaxpr(tables, return_shape=True)(*jax.tree.unflatten(treedef, shapes))
    return Size(sum(int(np.prod(x.shape)) for x in out) + 1, _operations(closed.jaxpr))


def _operations(jaxpr: Any) -> int:
    """Equations of a jaxpr; of one that calls others, those of the others."""
    return sum(max(sum(map(_operations, _inside(eqn))), 1) for eqn in jaxpr.eqns)


def _inside(eqn: Any) -> Iterator[Any]:
    for value in eqn.params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(x, "jaxpr", x)
            if hasattr(inner, "eqns"):
                yield inner
