"""Random keys, as users give them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def as_key(key: Any) -> Array:
    """A typed key from an integer seed, a typed key or an old-style uint32 key.

    Args:
        key: `0`, `jax.random.key(0)` or `jax.random.PRNGKey(0)`.

    Raises:
        TypeError: anything else, None included: randomness is asked for, never assumed.
    """
    if isinstance(key, bool | np.bool_) or key is None:
        raise _refused(key)
    if isinstance(key, int | np.integer):
        return jax.random.key(int(key))
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape:
            raise TypeError(f"key: expected one key, got an array of keys of shape {key.shape}.")
        return key
    if isinstance(key, jax.Array | np.ndarray):
        if key.dtype == np.uint32 and key.shape == (2,):
            return jax.random.wrap_key_data(jnp.asarray(key))
        if key.shape == () and np.issubdtype(key.dtype, np.integer):
            return jax.random.key(int(key))
    raise _refused(key)


def _refused(key: Any) -> TypeError:
    return TypeError(
        f"key: expected an integer or a JAX key such as jax.random.key(0), got "
        f"{type(key).__name__}: {key!r}. The same key gives the same numbers."
    )
