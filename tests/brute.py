"""Full enumeration: the joint density at every configuration of the latents, one by one.

Nothing here knows emprob. A configuration is a value for every discrete site, and its joint density
is what NumPyro's own `log_density` says of the program at those values.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from numpyro.infer.util import log_density


def configurations(latents: Mapping[str, tuple[tuple[int, ...], int]]) -> dict[str, np.ndarray]:
    """All values of all latents, by site: (configurations, *shape).

    Args:
        latents: by site, its shape (time first in a scan) and number of values.
    """
    cells = [(name, size) for name, (shape, size) in latents.items() for _ in range(_prod(shape))]
    table = np.array(list(itertools.product(*(range(size) for _, size in cells))), dtype=int)
    values, start = {}, 0
    for name, (shape, _) in latents.items():
        stop = start + _prod(shape)
        values[name] = table[:, start:stop].reshape(-1, *shape)
        start = stop
    return values


def _prod(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=int))


def moved(params: Mapping[str, Any], shift: Mapping[str, Any], simplices: tuple[str, ...]) -> dict:
    """Parameters after a small move: additive, or of the logarithms where rows sum to one."""
    new = {k: jnp.asarray(v) + shift[k] for k, v in params.items()}
    return new | {k: jax.nn.softmax(jnp.log(params[k]) + shift[k]) for k in simplices}


class Brute:
    """The exact posterior of a program by enumeration.

    Args:
        program, args: the NumPyro program and its arguments.
        params: values of the parameters.
        latents: by site, shape and number of values.
        dtype: of the latents' values, where the program's carry asks for one.
    """

    def __init__(
        self, program: Callable, args: tuple, params: Mapping, latents: Mapping, dtype: Any = int
    ):
        self.program, self.args, self.dtype = program, args, dtype
        self.params = {k: jnp.asarray(v, float) for k, v in params.items()}
        self.latents = dict(latents)
        self.values = configurations(latents)
        self._compiled = jax.jit(self._joint)
        self.joint = np.asarray(self._compiled(self.params))
        self.log_z = float(logsumexp(self.joint))
        self.probs = np.exp(self.joint - self.log_z)

    def _joint(self, params: Mapping) -> jax.Array:
        def one(z: dict) -> jax.Array:
            return log_density(self.program, self.args, {}, {**params, **z})[0]

        if not self.latents:
            return one({})[None]
        return jax.vmap(one)({k: jnp.asarray(v, self.dtype) for k, v in self.values.items()})

    def log_z_at(self, params: Mapping) -> float:
        """log Z at other values of the parameters."""
        return float(logsumexp(self._compiled(dict(params))))

    def score(self, simplices: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Gradient of log Z in the move of `moved`, at no move."""
        zero = {k: jnp.zeros_like(v) for k, v in self.params.items()}

        def log_z(shift: dict) -> jax.Array:
            return logsumexp(self._joint(moved(self.params, shift, simplices)))

        return {k: np.asarray(v) for k, v in jax.jit(jax.grad(log_z))(zero).items()}

    def marginal(self, name: str) -> np.ndarray:
        """P(z = k | data), (*shape, K)."""
        size = self.latents[name][1]
        hot = self.values[name][..., None] == np.arange(size)
        return np.tensordot(self.probs, hot, axes=1)

    def pairwise(self, name: str) -> np.ndarray:
        """P(z_{t-1} = i, z_t = j | data), (T - 1, ..., K, K), time first."""
        size = self.latents[name][1]
        hot = (self.values[name][..., None] == np.arange(size)).astype(float)
        pairs = hot[:, :-1, ..., :, None] * hot[:, 1:, ..., None, :]
        return np.tensordot(self.probs, pairs, axes=1)

    def best(self) -> dict[str, np.ndarray]:
        """The most likely configuration."""
        return {k: v[self.joint.argmax()] for k, v in self.values.items()}

    def index_of(self, draws: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which configuration each draw is."""
        code = 0
        for name, (shape, size) in self.latents.items():
            for cell in draws[name].reshape(len(draws[name]), _prod(shape)).T:
                code = code * size + cell
        return np.asarray(code)
