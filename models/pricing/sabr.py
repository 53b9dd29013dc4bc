"""SABR: smiles in closed form, their density, and where they admit arbitrage.

    dF = alpha_t F^beta dW,   d alpha = nu alpha dZ,   dW dZ = rho dt

All formulas go through chi(z) / z, the integral of the generating function of Legendre's
polynomials; near z = 0 its series is taken, so that values and derivatives of any order are smooth
at the money, and chi is written without cancellation up to rho = -1 and 1. With `shift`, forward
and strike are both moved by it, and the lognormal volatility is that of the moved forward.

Source: Hagan, Kumar, Lesniewski and Woodward (2002), Managing smile risk, Wilmott, (2.17) and
(A.59); Obłój (2008), Fine-tune your smile, arXiv:0708.0998.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.models.pricing.black import black, compiled

# Below it the series of chi has its error under the rounding with nine terms.
NEAR = 0.02
TERMS = 9


def _distance(z: Array, rho: Array) -> Array:
    """chi(z) / z, with chi(z) = log((sqrt(1 - 2 rho z + z^2) + z - rho) / (1 - rho))."""
    near = jnp.abs(z) < NEAR
    small, large = jnp.where(near, z, 0), jnp.where(near, 1, z)
    before, legendre, power = jnp.ones_like(z), rho * jnp.ones_like(z), small
    series = before + legendre * power / 2
    for n in range(2, TERMS):
        before, legendre = legendre, ((2 * n - 1) * rho * legendre - (n - 1) * before) / n
        power = power * small
        series = series + legendre * power / (n + 1)
    # 1 - 2 rho z + z^2 without cancellation at rho = 1, z = 1
    root = jnp.sqrt((large - rho) ** 2 + (1 - rho) * (1 + rho))
    excess = large * (large - 2 * rho) / (1 + root)
    above = large > rho
    up = jnp.log1p(jnp.where(above, excess + large, 0) / jnp.where(above, 1 - rho, 1))
    down = -jnp.log1p(jnp.where(above, 0, excess - large) / jnp.where(above, 1, 1 + rho))
    return jnp.where(near, series, jnp.where(above, up, down) / large)


def _log_ratio(forward: Array, strike: Array) -> Array:
    """log(F / K), exact in the difference."""
    return jnp.log1p((forward - strike) / strike)


def _shifted(forward: Any, strike: Any, shift: Any) -> tuple[Array, Array, Array]:
    """Moved forward and strike, NaN where not positive, and log(F / K)."""
    forward, strike = forward + jnp.asarray(shift), strike + jnp.asarray(shift)
    legal = (forward > 0) & (strike > 0)
    ratio = _log_ratio(jnp.where(legal, forward, 1), jnp.where(legal, strike, 1))
    return (
        jnp.where(legal, forward, jnp.nan),
        jnp.where(legal, strike, jnp.nan),
        jnp.where(legal, ratio, jnp.nan),
    )


def _growth(level: Array, beta: Any, alpha: Any, nu: Any, rho: Any) -> Array:
    """The parts of the correction in time that all lognormal formulas share; level (F K)^(..)."""
    return (
        (1 - beta) ** 2 / 24 * (alpha / level) ** 2
        + rho * beta * nu * alpha / (4 * level)
        + (2 - 3 * rho**2) / 24 * nu**2
    )


@compiled
def hagan(
    forward: Any,
    strike: Any,
    time: Any,
    alpha: Any,
    beta: Any,
    nu: Any,
    rho: Any,
    shift: Any = 0.0,
) -> Array:
    """Hagan's lognormal volatility.

    Args:
        forward, strike: both above `-shift`, else NaN; all arguments broadcast.
        time: years to expiry.
        alpha: positive.
        beta: in [0, 1].
        nu: not negative.
        rho: in (-1, 1).
        shift: moves forward and strike.
    """
    forward, strike, ratio = _shifted(forward, strike, shift)
    level = jnp.sqrt(forward * strike) ** (1 - beta)
    z = nu / alpha * level * ratio
    w = ((1 - beta) * ratio / 2) ** 2
    spread = 1 + w / 6 + w * w / 120
    first = alpha / (level * spread * _distance(z, jnp.asarray(rho)))
    return first * (1 + _growth(level, beta, alpha, nu, rho) * time)


@compiled
def obloj(
    forward: Any,
    strike: Any,
    time: Any,
    alpha: Any,
    beta: Any,
    nu: Any,
    rho: Any,
    shift: Any = 0.0,
) -> Array:
    """Hagan's volatility with the leading order that is exact as the time goes to 0 (Obłój 2008).

    For beta = 1 it is `hagan`. Arguments as there.
    """
    forward, strike, ratio = _shifted(forward, strike, shift)
    level = jnp.sqrt(forward * strike) ** (1 - beta)
    exact = level * _sinhc((1 - beta) * ratio / 2)
    first = alpha / (exact * _distance(nu / alpha * exact * ratio, jnp.asarray(rho)))
    return first * (1 + _growth(level, beta, alpha, nu, rho) * time)


def _sinhc(x: Array) -> Array:
    """sinh(x) / x."""
    near = jnp.abs(x) < 0.1
    small, large = jnp.where(near, x, 0) ** 2, jnp.where(near, 1, x)
    series = 1 + small / 6 * (1 + small / 20 * (1 + small / 42 * (1 + small / 72)))
    return jnp.where(near, series, jnp.sinh(large) / large)


@compiled
def normal_hagan(
    forward: Any,
    strike: Any,
    time: Any,
    alpha: Any,
    beta: Any,
    nu: Any,
    rho: Any,
    shift: Any = 0.0,
) -> Array:
    """Hagan's normal (Bachelier) volatility, in units of the forward; arguments as for `hagan`."""
    forward, strike, ratio = _shifted(forward, strike, shift)
    level = jnp.sqrt(forward * strike) ** (1 - beta)
    w, v = ((1 - beta) * ratio / 2) ** 2, (ratio / 2) ** 2
    spread = (1 + v / 6 + v * v / 120) / (1 + w / 6 + w * w / 120)
    first = alpha * jnp.sqrt(forward * strike) ** beta * spread
    first = first / _distance(nu / alpha * level * ratio, jnp.asarray(rho))
    growth = (
        -beta * (2 - beta) / 24 * (alpha / level) ** 2
        + rho * beta * nu * alpha / (4 * level)
        + (2 - 3 * rho**2) / 24 * nu**2
    )
    return first * (1 + growth * time)


def _call(
    strike: Array, forward: Any, time: Any, params: tuple, shift: Any, smile: Callable
) -> Array:
    sigma = smile(forward, strike, time, *params, shift)
    return black(forward + shift, strike + shift, sigma * jnp.sqrt(time))


def _slopes(
    strike: Any, forward: Any, time: Any, params: tuple, shift: Any, smile: Callable
) -> tuple[Array, Array]:
    """First and second derivative of the undiscounted call by the strike."""

    def price(k: Array) -> Array:
        return _call(k, forward, time, params, shift, smile)

    def slope(k: Array) -> Array:
        return jax.jvp(price, (k,), (jnp.ones_like(k),))[1]

    strike = jnp.asarray(strike, jnp.result_type(strike, float))
    return jax.jvp(slope, (strike,), (jnp.ones_like(strike),))


@functools.partial(jax.jit, static_argnames="smile", inline=True)
def density(
    forward: Any,
    strike: Any,
    time: Any,
    alpha: Any,
    beta: Any,
    nu: Any,
    rho: Any,
    shift: Any = 0.0,
    smile: Callable = hagan,
) -> Array:
    """Density of the forward at expiry that a smile implies: the call's second derivative.

    Args:
        forward, time, alpha, beta, nu, rho, shift: as for `hagan`; they broadcast with `strike`.
        strike: where, any shape.
        smile: `hagan`, `obloj` or any other lognormal volatility of these arguments.

    Returns:
        The density at the strikes; negative where the smile admits a butterfly arbitrage.
    """
    return _slopes(strike, forward, time, (alpha, beta, nu, rho), shift, smile)[1]


class Arbitrage(NamedTuple):
    """How far a smile is from arbitrage on a grid of strikes; negative margins are arbitrage.

    Attributes:
        butterfly: smallest density times the forward.
        spread: smallest of the probabilities above and below a strike, less than 0 where a call
            spread costs less than nothing or more than its width.
        at: strike of the smallest density.
    """

    butterfly: Array
    spread: Array
    at: Array

    @property
    def free(self) -> Array:
        """Whether both margins are above the rounding."""
        return (self.butterfly > -1e-9) & (self.spread > -1e-9)


@functools.partial(jax.jit, static_argnames=("smile", "points"), inline=True)
def arbitrage(
    forward: Any,
    time: Any,
    alpha: Any,
    beta: Any,
    nu: Any,
    rho: Any,
    shift: Any = 0.0,
    smile: Callable = hagan,
    width: float = 5.0,
    points: int = 801,
) -> Arbitrage:
    """Look for butterfly and call-spread arbitrage of one smile.

    Args:
        forward, time, alpha, beta, nu, rho, shift: scalars, as for `hagan`; `jax.vmap` for more.
        smile: the lognormal volatility.
        width: of the grid of strikes, in deviations at the money to either side.
        points: strikes on it, even in the logarithm.
    """
    params = (alpha, beta, nu, rho)
    deviation = smile(forward, forward, time, *params, shift) * jnp.sqrt(time)
    strikes = (forward + shift) * jnp.exp(deviation * jnp.linspace(-width, width, points)) - shift
    slope, curvature = _slopes(strikes, forward, time, params, shift, smile)
    scaled = curvature * (forward + shift)
    spread = jnp.minimum(jnp.min(-slope), jnp.min(1 + slope))
    return Arbitrage(jnp.min(scaled), spread, strikes[jnp.argmin(scaled)])
