"""Random numbers of the gallery's `simulate` functions, and draws of NUTS in one row."""

from typing import Any

import jax
import numpy as np

import emprob as ep


def generator(key: Any) -> np.random.Generator:
    """A NumPy generator that a key of `jax.random`, or an integer, determines."""
    key = jax.random.key(key) if isinstance(key, int) else key
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def nuts_draws(bayes: ep.Bayes, n: int | None = None) -> dict[str, np.ndarray]:
    """Draws (n, ...) by site of all chains, parameters only, evenly thinned; all by default."""
    rows = {k: np.concatenate(list(bayes.samples[k])) for k in bayes.model.params}
    total = len(next(iter(rows.values())))
    kept = np.linspace(0, total - 1, min(n or total, total)).astype(int)
    return {k: v[kept] for k, v in rows.items()}
