"""The float width of a run, whatever the notebook has set."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


@contextlib.contextmanager
def working(model: Any) -> Iterator[None]:
    """Compute in the model's float width; the caller's global setting is left alone."""
    with jax.enable_x64(model.structure.dtype == "float64"):
        yield


def to_numpy(tree: Any) -> Any:
    """Arrays of a pytree as NumPy arrays, floats as float64."""

    def convert(x: Any) -> Any:
        x = np.asarray(x)
        return x.astype(np.float64) if x.dtype.kind == "f" else x

    return jax.tree.map(convert, tree)
