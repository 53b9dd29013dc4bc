"""Random numbers of the gallery's `simulate` functions."""

from typing import Any

import jax
import numpy as np


def generator(key: Any) -> np.random.Generator:
    """A NumPy generator that a key of `jax.random`, or an integer, determines."""
    key = jax.random.key(key) if isinstance(key, int) else key
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
