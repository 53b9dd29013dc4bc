"""Laws of a price by their characteristic function: Black–Scholes, Merton, Heston, Bates.

A law is a frozen dataclass of arrays, registered as a pytree: it goes through `jit`, `grad` and
`vmap` (a batch of laws is a law whose leaves have a leading axis). All parameters are in their
natural, constrained space, per year. `log_characteristic(u, time)` is

    log E exp(i u x),   x = log(S_T / F_T),   u complex, time in years,

broadcast over both, so that the value at u = 0 and at u = -i is 0 (the forward is a martingale).

Sources: Black and Scholes (1973), Journal of Political Economy 81(3); Merton (1976), Journal of
Financial Economics 3; Heston (1993), Review of Financial Studies 6(2); Bates (1996), Review of
Financial Studies 9(1); Albrecher, Mayer, Schoutens and Tistaert (2007), "The little Heston trap",
Wilmott, for the branch that stays continuous.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

SMALL = 0.01  # |z| below which log(1 + z) / z is summed as a series, exact to float64
TINY = 1e-12  # what stands for no mean reversion; prices do not see it
LEAST_SIGMA = 0.02  # of a diffusion that the integral is cut by


class Law(Protocol):
    """What has a characteristic function."""

    def log_characteristic(self, u: Any, time: Any) -> jax.Array:
        """Log E exp(i u log(S_T / F_T)), complex, in the shape of `u` and `time` broadcast."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlackScholes:
    """A lognormal price.

    Attributes:
        sigma: volatility a year, nonnegative.
    """

    sigma: Any

    def log_characteristic(self, u: Any, time: Any) -> jax.Array:
        """See `Law`."""
        return _diffusion(u, time, self.sigma)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Merton:
    """A lognormal price with normal jumps of its logarithm, compensated.

    Attributes:
        sigma: volatility a year without the jumps, nonnegative.
        intensity: expected jumps a year, nonnegative.
        jump_mean, jump_sd: of the jump of the log price; the latter nonnegative.
    """

    sigma: Any
    intensity: Any
    jump_mean: Any
    jump_sd: Any

    @property
    def without_jumps(self) -> BlackScholes:
        """The law between the jumps, never quite still: its characteristic function decays."""
        return BlackScholes(jnp.maximum(self.sigma, LEAST_SIGMA))

    def log_characteristic(self, u: Any, time: Any) -> jax.Array:
        """See `Law`."""
        jumps = _jumps(u, time, self.intensity, self.jump_mean, self.jump_sd)
        return _diffusion(u, time, self.sigma) + jumps


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Heston:
    """A price whose variance is a square-root diffusion.

        dS / S = sqrt(v) dB,   dv = kappa (theta - v) dt + sigma sqrt(v) dW,   dB dW = rho dt

    Attributes:
        v0: variance now, nonnegative.
        kappa: speed of mean reversion a year, nonnegative.
        theta: variance in the long run, nonnegative.
        sigma: volatility of the variance, nonnegative; 0 is its limit, a known path of v.
        rho: correlation, in [-1, 1].
    """

    v0: Any
    kappa: Any
    theta: Any
    sigma: Any
    rho: Any

    def log_characteristic(self, u: Any, time: Any) -> jax.Array:
        """See `Law`."""
        return _square_root(u, time, self.v0, self.kappa, self.theta, self.sigma, self.rho)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bates:
    """Heston's price with Merton's jumps.

    Attributes:
        heston: the price between the jumps.
        intensity: expected jumps a year, nonnegative.
        jump_mean, jump_sd: of the jump of the log price; the latter nonnegative.
    """

    heston: Heston
    intensity: Any
    jump_mean: Any
    jump_sd: Any

    @property
    def without_jumps(self) -> Heston:
        """The law between the jumps."""
        return self.heston

    def log_characteristic(self, u: Any, time: Any) -> jax.Array:
        """See `Law`."""
        jumps = _jumps(u, time, self.intensity, self.jump_mean, self.jump_sd)
        return self.heston.log_characteristic(u, time) + jumps


def _diffusion(u: Any, time: Any, sigma: Any) -> jax.Array:
    return -0.5 * sigma**2 * time * (u * u + 1j * u)


def _jumps(u: Any, time: Any, intensity: Any, mean: Any, sd: Any) -> jax.Array:
    """Of the compensated jumps: each has the characteristic function exp(i u mean - u² sd² / 2)."""
    expected = jnp.expm1(mean + 0.5 * sd**2)
    one = jnp.expm1(1j * u * mean - 0.5 * (u * sd) ** 2)
    return intensity * time * (one - 1j * u * expected)


def _square_root(u: Any, time: Any, v0: Any, kappa: Any, theta: Any, sigma: Any, rho: Any) -> Any:
    """The exponent v0 D + kappa theta C of Heston's law, as a quotient that stands sigma -> 0.

    With xi = kappa - i rho sigma u and d the root of xi² + sigma² (u² + iu), the textbook's
    (xi - d) / sigma² is -(u² + iu) / (xi + d), and its logarithm is log(1 - sigma² y).
    """
    kappa = jnp.where(kappa < TINY, kappa + TINY, kappa)
    quadratic = u * u + 1j * u
    xi = kappa - 1j * rho * sigma * u
    d = jnp.sqrt(xi * xi + sigma**2 * quadratic)
    decay = jnp.exp(-d * time)
    span = -jnp.expm1(-d * time) / d
    slope = quadratic / (xi + d)
    y = 0.5 * slope * span
    level = 2 * y * _log_ratio(-(sigma**2) * y) - slope * time
    return kappa * theta * level - v0 * quadratic * span / (1 + decay + xi * span)


def _log_ratio(z: jax.Array) -> jax.Array:
    """log(1 + z) / z for complex z; finite, with its derivatives, at zero."""
    near = jnp.abs(z.real) + jnp.abs(z.imag) < SMALL
    small, large = jnp.where(near, z, 0.0), jnp.where(near, 1.0, z)
    series = _horner(small, lambda n: (-1.0) ** n / (n + 1), 9)
    return jnp.where(near, series, jnp.log(1 + large) / large)


def _horner(z: jax.Array, coefficient: Callable[[int], float], degree: int) -> jax.Array:
    total = jnp.full_like(z, coefficient(degree))
    for n in reversed(range(degree)):
        total = total * z + coefficient(n)
    return total
