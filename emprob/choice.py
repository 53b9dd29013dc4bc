"""One of two trees of arrays, by a condition that is known only when the code runs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def choose(condition: Array, new: Any, old: Any) -> Any:
    """`new` where the condition holds, else `old`.

    Args:
        condition: a scalar, or the first axes of every array.
        new: a tree of arrays.
        old: a tree alike.
    """

    def chosen(a: Any, b: Any) -> Array:
        a, b = jnp.asarray(a), jnp.asarray(b)
        return jnp.where(
            condition.reshape(*condition.shape, *[1] * (a.ndim - condition.ndim)), a, b
        )

    return jax.tree.map(chosen, new, old)
