"""The arguments of a program: named, made into arrays, and split from what is static."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emprob.errors import ModelError
from emprob.model import Slot, Static, StaticArray
from emprob.prepare import prepare


def _argument_names(program: Callable, count: int) -> list[str]:
    """The program's own names of its positional arguments, for messages."""
    try:
        known = list(inspect.signature(program).parameters)
    except (TypeError, ValueError):
        known = []
    return [known[i] if i < len(known) else f"argument {i}" for i in range(count)]


def prepared(program: Callable, args: tuple, kwargs: Mapping) -> tuple[tuple, dict, dict]:
    """Positional and named arguments as arrays, and the coordinates that they came with."""
    names = _argument_names(program, len(args))
    found = [prepare(n, a) for n, a in zip(names, args, strict=True)]
    named = {k: prepare(k, v) for k, v in kwargs.items()}
    coords = {n: p.coords for n, p in zip(names, found, strict=True) if p.coords}
    coords |= {k: p.coords for k, p in named.items() if p.coords}
    if not callable(program):
        raise ModelError(
            f"bind: expected a NumPyro program (a function), got {type(program).__name__}."
        )
    return tuple(p.value for p in found), {k: p.value for k, p in named.items()}, coords


def split(args: tuple, kwargs: Mapping, frozen: bool) -> tuple[Any, tuple, tuple]:
    """Arguments -> (treedef, static leaves, arrays); `frozen`: arrays become static too."""
    leaves, treedef = jax.tree.flatten((args, dict(kwargs)), is_leaf=lambda x: x is None)
    arrays, static = [], []
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            leaf = np.asarray(leaf)  # a dataclass of the user's that converts what it holds
        if isinstance(leaf, np.ndarray):
            if frozen:
                static.append(StaticArray(leaf))
                continue
            static.append(Slot(len(arrays)))
            arrays.append(jnp.asarray(leaf))
        else:
            static.append(Static(leaf))
    return treedef, tuple(static), tuple(arrays)
