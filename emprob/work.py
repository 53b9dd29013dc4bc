"""How many numbers a model's tables hold: what memory and compiling are planned by."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob import chart
from emprob.model import factors


def work_of(model: Any, coordinates: Mapping[str, Array]) -> int:
    """Numbers in the tables of a model, once for each of its coordinates."""
    constrain = lambda m, w: chart.from_coordinates(m.data.transforms, w)  # noqa: E731
    params = jax.eval_shape(constrain, model, dict(coordinates))
    return cells(model, params) * sum(x.size for x in coordinates.values())


def cells(model: Any, params: Mapping[str, Array]) -> int:
    """Number of cells of a model's tables.

    Args:
        model: a bound model.
        params: by site; their shapes and types count.
    """
    leaves, treedef = jax.tree.flatten((model, dict(params)))
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
    return _cells(treedef, shapes)


@lru_cache(maxsize=16)
def _cells(treedef: Any, shapes: tuple) -> int:
    """As `cells`; the program is traced once per model and shape."""
    out = jax.eval_shape(lambda m, p: [f.array for f in factors(m.evaluate(p))],
                         *jax.tree.unflatten(treedef, shapes))  # fmt: skip
    return sum(int(np.prod(x.shape)) for x in out) + 1
