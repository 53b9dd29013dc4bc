"""What has an exact price from date to date: geometric Asians and variance swaps.

The steps of the log level between dates are affine in the variance under every law here, so the
transform of any weighted sum of them is exact: a Riccati equation backwards over the dates. These
prices stand beside the simulated ones, and serve them as controls.

Source: Lewis (2000), Option Valuation under Stochastic Volatility (the integral); Broadie and Jain
(2008), International Journal of Theoretical and Applied Finance 11(8) (discrete variance swaps).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emprob.models.pricing.characteristic import BlackScholes
from emprob.models.pricing.paths import parts


def log_transform(law: Any, times: Any, slopes: Any) -> Any:
    """log E exp(sum of slopes times the steps of x), exact.

    Args:
        law: BlackScholes, Merton, Heston or Bates.
        times: (D + 1,), from zero.
        slopes: (D,), complex; real parts between 0 and 1.
    """
    diffusion, jumps = parts(law)
    lengths, slopes = jnp.diff(times), jnp.asarray(slopes) + 0j
    total = 0.0
    if jumps is not None:
        size = jumps.mean + 0.5 * jumps.sd**2
        leap = jnp.exp(slopes * jumps.mean + 0.5 * (slopes * jumps.sd) ** 2) - 1
        total = (jumps.intensity * lengths * (leap - slopes * jnp.expm1(size))).sum()
    if isinstance(diffusion, BlackScholes):
        return total + 0.5 * (diffusion.sigma**2 * lengths * (slopes**2 - slopes)).sum()

    def back(after: tuple, step: tuple) -> tuple[tuple, None]:
        constant, slope = riccati(diffusion, step[0], step[1], after[1])
        return (after[0] + constant, slope), None

    zero = jnp.zeros((), slopes.dtype)
    (constant, slope), _ = jax.lax.scan(back, (zero, zero), (lengths, slopes), reverse=True)
    return total + constant + slope * diffusion.v0


def riccati(law: Any, time: Any, u: Any, w: Any) -> tuple[Any, Any]:
    """(C, D) of log E exp(u (x_t - x_0) + w v_t) = C + D v_0 under Heston, in the stable branch.

    Args:
        law: Heston.
        time: t, years.
        u, w: complex.

    Returns:
        Two complex scalars.
    """
    s2 = law.sigma**2
    b = law.kappa - law.rho * law.sigma * u
    d = jnp.sqrt(b * b - s2 * (u * u - u))
    safe = b.real > 0
    # Both are (b - d) / sigma^2; the first loses no digits where sigma is small.
    low = jnp.where(safe, (u * u - u) / jnp.where(safe, b + d, 1.0), (b - d) / s2)
    gap = w - low
    below = b + d - s2 * w
    decay = jnp.exp(-d * time)
    g = -s2 * gap / below
    left = 1 - g * decay
    slope = low + gap * 2 * d / below * decay / left
    constant = law.kappa * law.theta * (low * time - 2 / s2 * jnp.log(left / (1 - g)))
    return constant, slope


def geometric_asian_price(
    law: Any, dates: Any, forwards: Any, strike: Any, sign: Any = 1.0, num_nodes: int = 160
) -> Any:
    """The geometric Asian without simulation, by Lewis' integral.

    The mean is affine in the log level, so its characteristic function is exact: a Riccati
    equation from date to date, backwards.

    Args:
        law: BlackScholes, Merton, Heston or Bates.
        dates: (D,), years.
        forwards: scalar, or (D + 1,) with the spot first.
        strike, sign: scalars.
        num_nodes: of Gauss and Legendre's rule on the half line.

    Returns:
        A scalar, undiscounted.
    """
    times = jnp.concatenate([jnp.zeros(1), jnp.asarray(dates, float)])
    forwards = jnp.broadcast_to(jnp.asarray(forwards, float), times.shape)
    middle = jnp.log(forwards[1:]).mean()
    share = jnp.arange(len(times) - 1, 0, -1.0) / (len(times) - 1)  # of what a step moves
    mean = jnp.exp(middle + log_transform(law, times, share).real)
    width = jnp.sqrt(expected_variance(law, times[-1]) / 3)
    x, w = np.polynomial.legendre.leggauss(num_nodes)
    u = (1 + x) / (1 - x) * 2 / width
    measure = 4 * w / (1 - x) ** 2 / width
    transform = jax.vmap(lambda s: log_transform(law, times, s * share))(0.5 + 1j * u)
    k = jnp.log(strike) - middle
    inner = jnp.exp(transform - 1j * u * k).real / (u**2 + 0.25)
    smaller = jnp.exp(middle) * jnp.exp(0.5 * k) / jnp.pi * (measure * inner).sum()
    # E min(G, K) is what a call leaves of G and a put of K.
    return jnp.where(sign > 0, mean, strike) - smaller


def expected_variance(law: Any, time: Any) -> Any:
    """Expected quadratic variation of the log level up to `time`, not divided by it."""
    diffusion, jumps = parts(law)
    if isinstance(diffusion, BlackScholes):
        total = diffusion.sigma**2 * time
    else:
        share = -jnp.expm1(-diffusion.kappa * time) / diffusion.kappa
        total = diffusion.theta * time + (diffusion.v0 - diffusion.theta) * share
    if jumps is None:
        return total
    return total + jumps.intensity * time * (jumps.mean**2 + jumps.sd**2)


def variance_swap_strike(law: Any, dates: Any, forwards: Any = 1.0) -> Any:
    """The fair strike of a variance swap with returns at the dates: the mean of
    `realised_variance`, exact.

    The square of a step is the second derivative of its transform, which is affine in the variance
    at its beginning, whose first two moments are known.

    Args:
        law: BlackScholes, Merton, Heston or Bates.
        dates: (D,), years.
        forwards: scalar, or (D + 1,) with the spot first.

    Returns:
        A variance a year; for ever closer dates `expected_variance(law, T) / T`.
    """
    times = jnp.concatenate([jnp.zeros(1), jnp.asarray(dates, float)])
    forwards = jnp.broadcast_to(jnp.asarray(forwards, float), times.shape)
    drift = jnp.diff(jnp.log(forwards))
    first, second = jax.vmap(lambda t, dt: _step_moments(law, t, dt))(times[:-1], jnp.diff(times))
    return (second + 2 * drift * first + drift**2).sum() / times[-1]


def _step_moments(law: Any, start: Any, length: Any) -> tuple[Any, Any]:
    """E r and E r^2 of the step of x from `start` to `start + length`."""
    diffusion, jumps = parts(law)
    mean = second = 0.0
    if jumps is not None:
        rate = jumps.intensity * length
        mean = rate * (jumps.mean - jnp.expm1(jumps.mean + 0.5 * jumps.sd**2))
        second = rate * (jumps.mean**2 + jumps.sd**2)
    if isinstance(diffusion, BlackScholes):
        total = diffusion.sigma**2 * length
        mean = mean - 0.5 * total
        return mean, second + total + mean**2
    v = jnp.stack(_variance_moments(diffusion, start))  # mean, variance

    def coefficients(u: Any) -> Any:
        return jnp.stack([part.real for part in riccati(diffusion, length, u + 0j, 0j)])

    slope = jax.jacfwd(coefficients)
    c1, d1 = slope(0.0)
    c2, d2 = jax.jacfwd(slope)(0.0)
    middle = mean + c1 + d1 * v[0]
    return middle, second + c2 + d2 * v[0] + middle**2 + d1**2 * v[1]


def _variance_moments(law: Any, time: Any) -> tuple[Any, Any]:
    """Mean and variance of Heston's variance at `time`."""
    gone = -jnp.expm1(-law.kappa * time)
    mean = law.v0 + (law.theta - law.v0) * gone
    spread = law.sigma**2 / law.kappa * gone * (law.v0 * (1 - gone) + 0.5 * law.theta * gone)
    return mean, spread
