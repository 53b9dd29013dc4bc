"""Exponential families on the supports of conjugate latents, by their log-partitions alone.

A latent whose log-density, prior and everything that hangs on it together, is
c + <eta, T(z)> has the log-integral c + A(eta). T and A depend on the support only: nothing here
knows which likelihood goes with which prior.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln
from numpyro.distributions import constraints


@dataclass(frozen=True)
class Kernel:
    """A family exp(<eta, T(z)>) on a support.

    Attributes:
        name: of the distribution that it normalises to.
        statistics: z (..., D) -> T (..., P).
        log_partition: eta (..., P) -> log of the integral of exp(<eta, T>), NaN if it diverges.
        atoms: number of coordinates -> atoms (P + 1, D) at which [T, 1] is invertible, for a latent
            whose mean is about one (or the middle of its support).
        draw: key, eta (..., P) -> a draw (..., D).
        scaled: whether z / mean(z) is a coordinate as good (a half-line).
        support: of z.
    """

    name: str
    statistics: Callable[[Array], Array]
    log_partition: Callable[[Array], Array]
    atoms: Callable[[int], np.ndarray]
    draw: Callable[[Array, Array], Array]
    scaled: bool
    support: Any = field(hash=False)  # constraints compare, but have no hash


def _inside(ok: Array, value: Array) -> Array:
    return jnp.where(ok, value, jnp.nan)


def _gamma(eta: Array) -> Array:
    shape, rate = eta[..., 0] + 1.0, -eta[..., 1]
    ok = (shape > 0) & (rate > 0)
    shape, rate = jnp.where(ok, shape, 1.0), jnp.where(ok, rate, 1.0)
    return _inside(ok, gammaln(shape) - shape * jnp.log(rate))


def _inverse_gamma(eta: Array) -> Array:
    return _gamma(jnp.stack([-eta[..., 0] - 2.0, eta[..., 1]], -1))


def _beta(eta: Array) -> Array:
    shapes = eta + 1.0
    ok = (shapes > 0).all(-1)
    shapes = jnp.where(ok[..., None], shapes, 1.0)
    return _inside(ok, gammaln(shapes).sum(-1) - gammaln(shapes.sum(-1)))


def _simplex_atoms(width: int) -> np.ndarray:
    points = np.full((width + 1, width), 1.0) + np.vstack([np.zeros(width), 2.0 * np.eye(width)])
    return points / points.sum(-1, keepdims=True)


def _draw_gamma(key: Array, eta: Array) -> Array:
    return (jax.random.gamma(key, eta[..., 0] + 1.0) / -eta[..., 1])[..., None]


def _draw_inverse_gamma(key: Array, eta: Array) -> Array:
    return 1.0 / _draw_gamma(key, jnp.stack([-eta[..., 0] - 2.0, eta[..., 1]], -1))


def _draw_dirichlet(key: Array, eta: Array) -> Array:
    return jax.random.dirichlet(key, eta + 1.0)


def _draw_beta(key: Array, eta: Array) -> Array:
    return _draw_dirichlet(key, eta)[..., :1]


GAMMA = Kernel(
    "Gamma", lambda z: jnp.concatenate([jnp.log(z), z], -1), _gamma,
    lambda _: np.array([[0.4], [1.0], [2.0]]), _draw_gamma, True, constraints.positive,
)  # fmt: skip
INVERSE_GAMMA = Kernel(
    "InverseGamma", lambda z: jnp.concatenate([jnp.log(z), 1.0 / z], -1), _inverse_gamma,
    lambda _: np.array([[0.4], [1.0], [2.0]]), _draw_inverse_gamma, True, constraints.positive,
)  # fmt: skip
BETA = Kernel(
    "Beta", lambda z: jnp.concatenate([jnp.log(z), jnp.log1p(-z)], -1), _beta,
    lambda _: np.array([[0.2], [0.5], [0.8]]), _draw_beta, False, constraints.unit_interval,
)  # fmt: skip
DIRICHLET = Kernel(
    "Dirichlet", jnp.log, _beta, _simplex_atoms, _draw_dirichlet, False, constraints.simplex
)  # fmt: skip


def candidates(support: Any, width: int) -> tuple[Kernel, ...]:
    """The kernels of a support, for a latent of `width` coordinates."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.simplex:
        return (DIRICHLET,)
    if width != 1:
        return ()
    if support is constraints.unit_interval:
        return (BETA,)
    if support in (constraints.positive, constraints.nonnegative):
        return (GAMMA, INVERSE_GAMMA)
    return ()
