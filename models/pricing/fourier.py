"""Prices of European options from a characteristic function.

Lewis' formula with Black–Scholes as control variate. With k = log(K / F),

    C / F = B(k, w) + e^(k/2) / pi ∫_0^∞ Re[e^(-iuk) (g(u) - f(u))] du / (u² + 1/4),

f(u) = E exp(i (u - i/2) x), g the same of a lognormal law of total variance w, and B its price. The
variance w = -8 log f(0) makes the integrand vanish at 0 and takes away its poles at ±i/2. The
integral is cut where f(u) / (1 + u²) has fallen to exp(-DEPTH), which a few steps of the secant
method find for each maturity, and summed at Gauss–Legendre nodes, denser towards 0. So one rule
serves maturities from minutes to decades, with the error of the cut, 1e-10 of the forward.

Where the centre of the law is narrow and the strike far from it, the integrand oscillates more
often than there are nodes for. Under Heston's law 64 nodes are right to 1e-8 as long as
|log K / F| sigma / (v0 + kappa theta T) is below 5 to 8; 128 nodes below 15, 512 below 40. Surfaces
of indices and currencies have 1 to 4. `nodes` is the only setting.

Prices are of a forward of 1 and undiscounted unless a function says otherwise. Their error is
absolute: what is worth less than 1e-10 of the forward has no digits.

Sources: Lewis (2000), Option Valuation under Stochastic Volatility; Andersen and Piterbarg (2010),
Interest Rate Modeling 1, for the control variate; Merton (1976), Journal of Financial Economics 3,
for the series.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from emprob.models.pricing import black
from emprob.models.pricing.characteristic import Law, Merton

NODES = 64
MANY_NODES = 512  # where options are few
TERMS = 128  # of Merton's series
DEPTH = 26.0  # where the integral is cut: log(1 + u²) - log |f(u)|
CROWDING = 3.0  # of the nodes towards 0: u = cut * sinh(CROWDING x) / sinh(CROWDING)
STEPS = 6  # of the search for the cut
LEAST = 1e-20  # total variance below which a price is its intrinsic value


def calls(law: Law, log_moneyness: Any, times: Any, expiry: Any, nodes: int = NODES) -> jax.Array:
    """Undiscounted prices of calls, over the forward.

    The characteristic function is evaluated once for each maturity and node; what is left for each
    option is a sum of sines and cosines.

    Args:
        law: of the price, see `characteristic`.
        log_moneyness: (N,), log(strike / forward).
        times: (E,), years to each maturity, nonnegative.
        expiry: (N,), integers 0..E-1.
        nodes: of the integral, static.

    Returns:
        (N,), differentiable in the law and the log-moneyness; NaN where an input is.
    """
    k = jnp.asarray(log_moneyness)
    value, sign = _time_values(law, k, times, expiry, nodes)
    return value + jnp.where(sign > 0, 0.0, -jnp.expm1(k))


def volatilities(
    law: Law,
    log_moneyness: Any,
    times: Any,
    expiry: Any,
    nodes: int = NODES,
    least: float = 0.0,
) -> jax.Array:
    """Implied volatilities, by the option that is out of the money.

    Args:
        law, log_moneyness, times, expiry, nodes: as in `calls`.
        least: what stands for lower prices, over the forward: 1e-9, say, keeps finite what a search
            passes on its way.

    Returns:
        (N,), NaN where the price is negative: within its error of worthless.
    """
    k, times, expiry = jnp.asarray(log_moneyness), jnp.asarray(times), jnp.asarray(expiry)
    value, sign = _time_values(law, k, times, expiry, nodes)
    value = jnp.maximum(value, least) if least else value
    return black.implied_volatility(value, 1.0, jnp.exp(k), times[expiry], sign)


def price(
    law: Law, forward: Any, strike: Any, time: Any, sign: Any = 1.0, nodes: int = MANY_NODES
) -> jax.Array:
    """Undiscounted prices of single options, each with its own maturity.

    Args:
        law: of the price, see `characteristic`.
        forward, strike: positive; all arguments but the law are broadcast.
        time: years to maturity, nonnegative.
        sign: 1 for a call, -1 for a put.
        nodes: of the integral, static.

    Returns:
        Prices in the shape of the arguments.
    """
    forward, strike, time, sign = jnp.broadcast_arrays(forward, strike, time, sign)
    k = jnp.log(strike / forward).ravel()
    value, out = (
        a.reshape(forward.shape)
        for a in _time_values(law, k, time.ravel(), np.arange(k.size), nodes)
    )
    return forward * value + jnp.where(sign == out, 0.0, sign * (forward - strike))


def merton_series(
    law: Merton, forward: Any, strike: Any, time: Any, sign: Any = 1.0, terms: int = TERMS
) -> jax.Array:
    """Undiscounted prices under Merton's law, as Black's formula given the number of jumps.

    Args:
        law: of the price.
        forward, strike, time, sign: as in `price`.
        terms: numbers of jumps summed over, 0..terms-1, static. They must reach well beyond the
            expected number of jumps.

    Returns:
        Prices in the shape of the arguments, right to rounding, however small.
    """
    forward, strike, time, sign = jnp.broadcast_arrays(forward, strike, time, sign)
    jumps = jnp.arange(terms, dtype=float).reshape((terms,) + (1,) * forward.ndim)
    growth = law.jump_mean + 0.5 * law.jump_sd**2
    expected = law.intensity * time
    # Without jumps the logarithm, times none of them, must be finite.
    log_expected = jnp.log(expected + jnp.finfo(jumps.dtype).tiny ** 0.5)
    weight = jnp.exp(jumps * log_expected - expected - gammaln(jumps + 1))
    level = forward * jnp.exp(jumps * growth - expected * jnp.expm1(growth))
    variance = law.sigma**2 * time + jumps * law.jump_sd**2
    known = variance > 0
    deviation = jnp.where(known, jnp.sqrt(jnp.where(known, variance, 1.0)), 0.0)
    return (weight * black.black(level, strike, deviation, sign)).sum(0)


def _time_values(
    law: Law, k: jax.Array, times: Any, expiry: Any, nodes: int
) -> tuple[jax.Array, jax.Array]:
    """Prices of options out of the money over the forward (N,), and the sign of each."""
    expiry = jnp.asarray(expiry)
    u, real, imaginary, variance = _transform(law, jnp.asarray(times), nodes)
    angle = u[expiry] * k[:, None]
    waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
    # A product of matrices: a plain sum takes five times as long to differentiate.
    integral = jnp.einsum("nm,nm->n", jnp.concatenate([real, imaginary], -1)[expiry], waves)
    sign = jnp.where(k >= 0, 1.0, -1.0)
    deviation = jnp.where(variance > LEAST, jnp.sqrt(variance), 0.0)
    control = black.black(1.0, jnp.exp(k), deviation[expiry], sign)
    return control + jnp.exp(0.5 * k) * integral, sign


def _transform(law: Law, times: jax.Array, nodes: int) -> tuple[jax.Array, ...]:
    """Nodes u (E, M), real and imaginary part of the weighted integrand, and w (E,).

    Nodes and w are constants of differentiation: the integral does not depend on them.
    """
    fixed = jax.tree.map(jax.lax.stop_gradient, law)
    variance = -8 * fixed.log_characteristic(-0.5j, times).real
    variance = jax.lax.stop_gradient(jnp.maximum(variance, LEAST))[:, None]
    # Jumps of nearly one size make |f| rise again: what is sure to fall is the law without them.
    falling = getattr(fixed, "without_jumps", fixed)
    cut = jax.lax.stop_gradient(_cut(falling, times, variance[:, 0]))[:, None]
    place, weight = _rule(nodes)
    u = cut * place
    quadratic = u * u + 0.25
    value = jnp.exp(law.log_characteristic(u - 0.5j, times[:, None]))
    # Nothing moves: the integral is 0, and so are its derivatives.
    scale = jnp.where(variance > LEAST, cut * weight / (np.pi * quadratic), 0.0)
    real = scale * (jnp.exp(-0.5 * variance * quadratic) - value.real)
    return u, real, -scale * value.imag, variance[:, 0]


@functools.cache
def _rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    x = 0.5 * CROWDING * (x + 1)
    scale = np.sinh(CROWDING)
    return np.sinh(x) / scale, 0.5 * CROWDING * weight * np.cosh(x) / scale


@jax.jit
def _cut(law: Law, times: jax.Array, variance: jax.Array) -> jax.Array:
    """Where the depth is about DEPTH, (E,): it grows nearly like a power of u, up to the second.

    Compiled by itself, or a loop met outside of `jit` would be compiled at every call.
    """

    def step(_, state):
        u, before, h_before = state
        h = -law.log_characteristic(u - 0.5j, times).real + jnp.log1p(u * u)
        h = jnp.maximum(h, 1e-3)
        power = jnp.log(h / h_before) / jnp.log(u / before)
        power = jnp.where(jnp.isfinite(power), jnp.clip(power, 0.4, 2.0), 1.0)
        return u * jnp.clip((DEPTH / h) ** (1 / power), 0.02, 50.0), u, h

    start = jnp.sqrt(2 * DEPTH / variance)
    before = 0.1 * start
    normal = 0.5 * variance * before**2 + jnp.log1p(before**2)
    return jax.lax.fori_loop(0, STEPS, step, (start, before, normal))[0]
