"""SVI and SSVI: total variance in the log-moneyness k, its parametrisations and no arbitrage.

    w(k) = a + b (rho (k - m) + sqrt((k - m)^2 + sigma^2))

A check returns a margin: positive where there is no arbitrage, so that its negative part is a
penalty and its sign a verdict. Parameters broadcast with k.

Source: Gatheral and Jacquier (2014), Arbitrage-free SVI volatility surfaces, Quantitative Finance
14(1); Lee (2004), Mathematical Finance 14(3), for the wings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.models.pricing.black import compiled


class Raw(NamedTuple):
    """Raw SVI: level, slope of the wings, their asymmetry, place and roundness of the minimum."""

    a: Array
    b: Array
    rho: Array
    m: Array
    sigma: Array


class Natural(NamedTuple):
    """Natural SVI; with `delta` = `mu` = 0 it is a slice of SSVI."""

    delta: Array
    mu: Array
    rho: Array
    omega: Array
    zeta: Array


class JumpWings(NamedTuple):
    """SVI by what traders quote.

    Attributes:
        variance: at the money, per year.
        skew: derivative of the deviation sqrt(w) by k at the money.
        put, call: slopes of the left and the right wing of w, over the deviation at the money.
        minimum: smallest variance, per year.
    """

    variance: Array
    skew: Array
    put: Array
    call: Array
    minimum: Array


@compiled
def total_variance(k: Any, a: Any, b: Any, rho: Any, m: Any, sigma: Any) -> Array:
    """Volatility squared times the time, of raw SVI.

    Args:
        k: log(K / F).
        a: with a + b sigma sqrt(1 - rho^2) >= 0, the smallest variance.
        b: not negative.
        rho: in (-1, 1).
        m: real.
        sigma: positive.
    """
    y = jnp.asarray(k) - m
    return a + b * (rho * y + jnp.sqrt(y * y + sigma * sigma))


@compiled
def from_natural(delta: Any, mu: Any, rho: Any, omega: Any, zeta: Any) -> Raw:
    """Raw parameters of natural ones."""
    left = 1 - jnp.square(rho)
    return Raw(
        delta + omega / 2 * left, omega * zeta / 2, rho, mu - rho / zeta, jnp.sqrt(left) / zeta
    )


@compiled
def to_natural(a: Any, b: Any, rho: Any, m: Any, sigma: Any) -> Natural:
    """Natural parameters of raw ones."""
    root = jnp.sqrt(1 - jnp.square(rho))
    return Natural(
        a - b * sigma * root, m + rho * sigma / root, rho, 2 * b * sigma / root, root / sigma
    )


@compiled
def from_jump_wings(variance: Any, skew: Any, put: Any, call: Any, minimum: Any, time: Any) -> Raw:
    """Raw parameters of jump wings.

    Args:
        variance, skew, put, call, minimum: as in `JumpWings`; NaN comes out where no raw SVI has
            them, and where the minimum is at the money, which leaves its roundness open.
        time: years to expiry.
    """
    root = jnp.sqrt(variance * time)
    b = root * (call + put) / 2
    rho = 1 - put * root / b
    # m and sigma in polar form, which needs no case of its own for m = 0
    sine = rho - 2 * skew * root / b
    cosine = jnp.sqrt(1 - sine * sine)
    flat = jnp.sqrt(1 - rho * rho)
    length = (variance - minimum) * time / (b * (1 - rho * sine - flat * cosine))
    m, sigma = length * sine, length * cosine
    return Raw(minimum * time - b * sigma * flat, b, rho, m, sigma)


@compiled
def to_jump_wings(a: Any, b: Any, rho: Any, m: Any, sigma: Any, time: Any) -> JumpWings:
    """Jump wings of raw parameters; `time` in years."""
    length = jnp.sqrt(jnp.square(m) + jnp.square(sigma))
    w = a + b * (length - rho * m)
    root = jnp.sqrt(w)
    lowest = a + b * sigma * jnp.sqrt(1 - jnp.square(rho))
    return JumpWings(
        w / time,
        b / (2 * root) * (rho - m / length),
        b * (1 - rho) / root,
        b * (1 + rho) / root,
        lowest / time,
    )


# -- SSVI ------------------------------------------------------------------------------------------


@compiled
def ssvi(k: Any, theta: Any, rho: Any, phi: Any) -> Array:
    """Total variance of SSVI.

    Args:
        k: log(K / F).
        theta: total variance at the money, positive.
        rho: in (-1, 1).
        phi: curvature at this theta, of `power_law`, `heston_like` or another; positive.
    """
    y = phi * jnp.asarray(k)
    return theta / 2 * (1 + rho * y + jnp.sqrt(y * y + 2 * rho * y + 1))


@compiled
def power_law(theta: Any, eta: Any, gamma: Any = 0.5) -> Array:
    """phi = eta / (theta^gamma (1 + theta)^(1 - gamma)).

    With gamma = 1/2 there is no arbitrage, static or between expiries, for eta (1 + |rho|) <= 2.
    """
    theta = jnp.asarray(theta)
    return eta * theta**-gamma * (1 + theta) ** (gamma - 1)


@compiled
def heston_like(theta: Any, scale: Any) -> Array:
    """phi = (1 - (1 - exp(-x)) / x) / x with x = scale theta; free for scale >= (1 + |rho|) / 4."""
    x = jnp.asarray(theta) * scale
    near = jnp.abs(x) < 0.02
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    series = 0.5 - small / 6 * (1 - small / 4 * (1 - small / 5 * (1 - small / 6 * (1 - small / 7))))
    return jnp.where(near, series, (large + jnp.expm1(-large)) / large**2)


def ssvi_butterfly(theta: Any, rho: Any, phi: Any) -> Array:
    """Margin of the sufficient conditions theta phi (1 + |rho|) < 4, theta phi^2 (1 + |rho|) <= 4.

    Gatheral and Jacquier, theorem 4.2. The first is necessary.
    """
    product = theta * phi * (1 + jnp.abs(rho))
    return 4 - jnp.maximum(product, product * phi)


def ssvi_calendar(theta: Any, rho: Any, phi: Callable[[Array], Array]) -> Array:
    """Margin of no arbitrage between expiries, given that theta does not fall (theorem 4.1).

    Args:
        theta: total variance at the money, any shape.
        rho: in (-1, 1).
        phi: the function of theta.
    """
    theta = jnp.asarray(theta, jnp.result_type(theta, float))
    _, slope = jax.jvp(lambda t: t * phi(t), (theta,), (jnp.ones_like(theta),))
    # (1 + sqrt(1 - rho^2)) / rho^2 is 1 / (1 - sqrt(1 - rho^2)); multiplied out it bears rho = 0.
    bound = phi(theta) - slope * (1 - jnp.sqrt(1 - jnp.square(rho)))
    return jnp.minimum(slope, bound)


# -- checks on a grid ------------------------------------------------------------------------------


def _durrleman(k: Array, w: Array, slope: Array, curvature: Array) -> Array:
    return (
        jnp.square(1 - k * slope / (2 * w)) - jnp.square(slope) / 4 * (1 / w + 0.25) + curvature / 2
    )


@compiled
def durrleman(k: Any, a: Any, b: Any, rho: Any, m: Any, sigma: Any) -> Array:
    """Durrleman's function of raw SVI: its sign is that of the implied density.

    Arguments as for `total_variance`.
    """
    k = jnp.asarray(k)
    y = k - m
    root = jnp.sqrt(y * y + sigma * sigma)
    w = a + b * (rho * y + root)
    return _durrleman(k, w, b * (rho + y / root), b * jnp.square(sigma) / root**3)


def durrleman_of(variance: Callable[[Array], Array], k: Any) -> Array:
    """Durrleman's function of any total variance, by automatic differentiation.

    Args:
        variance: total variance of each log-moneyness, elementwise.
        k: log(K / F), any shape.
    """
    k = jnp.asarray(k, jnp.result_type(k, float))

    def slope(x: Array) -> Array:
        return jax.jvp(variance, (x,), (jnp.ones_like(x),))[1]

    first, second = jax.jvp(slope, (k,), (jnp.ones_like(k),))
    return _durrleman(k, variance(k), first, second)


def density(k: Any, variance: Callable[[Array], Array]) -> Array:
    """Density of log(S_T / F) that a total variance implies; negative where there is arbitrage."""
    k = jnp.asarray(k, jnp.result_type(k, float))
    root = jnp.sqrt(variance(k))
    lower = -k / root - root / 2
    gaussian = jnp.exp(-lower * lower / 2) / jnp.sqrt(2 * jnp.pi)
    return durrleman_of(variance, k) * gaussian / root


def grid(width: float = 3.0, points: int = 1001) -> Array:
    """Log-moneyness from -width to width, on which the checks are dense."""
    return jnp.linspace(-width, width, points)


@compiled
def butterfly(a: Any, b: Any, rho: Any, m: Any, sigma: Any, k: Any = None) -> Array:
    """Margin of no butterfly arbitrage of slices of raw SVI.

    Args:
        a, b, rho, m, sigma: any shape (...).
        k: grid (N,); `grid()` by default.

    Returns:
        (...) the smallest of Durrleman's function on the grid, of the variance, and of what the
        steeper wing's slope lacks to 2, beyond which the moments are gone (Lee).
    """
    k = grid() if k is None else jnp.asarray(k)
    raw = tuple(jnp.asarray(p)[..., None] for p in (a, b, rho, m, sigma))
    factor = jnp.min(durrleman(k, *raw), -1)
    lowest = a + b * sigma * jnp.sqrt(1 - jnp.square(rho))
    wings = 2 - b * (1 + jnp.abs(rho))
    return jnp.minimum(jnp.minimum(factor, lowest), wings)


@compiled
def calendar(a: Any, b: Any, rho: Any, m: Any, sigma: Any, k: Any = None) -> Array:
    """Margin of no arbitrage between neighbouring expiries of raw SVI.

    Args:
        a, b, rho, m, sigma: (E,), in the order of the expiries.
        k: grid (N,); `grid()` by default.

    Returns:
        (E - 1,) the smallest rise of the total variance to the next expiry.
    """
    k = grid() if k is None else jnp.asarray(k)
    raw = tuple(jnp.asarray(p)[:, None] for p in (a, b, rho, m, sigma))
    return jnp.min(jnp.diff(total_variance(k, *raw), axis=0), -1)
