"""Exotic options on simulated paths: payoffs, and prices with their Monte Carlo error.

A payoff is a function of paths, one value for each (N, P); `estimate` makes a price of it. All are
undiscounted, in units of the underlying unless it says otherwise, and differentiable in everything
that moves the paths: `jax.jacfwd` of `price` gives the greeks.

What has an exact price, the geometric Asian (the control of the arithmetic one) and the variance
swap, is in `affine`.

Source: Kemna and Vorst (1990), Journal of Banking and Finance 14(1) (geometric control); Andersen
and Brotherton-Ratcliffe (1996) and Beaglehole, Dybvig and Zhou (1997), Financial Analysts Journal
53(1) (bridges for barriers and extremes); Glasserman (2003), section 4.1 (controls).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emprob.models.pricing.affine import geometric_asian_price
from emprob.models.pricing.paths import (
    Antithetic,
    Noise,
    Paths,
    QuadraticExponential,
    Scheme,
    levels,
    root,
    simulate,
)


class Estimate(NamedTuple):
    """A Monte Carlo mean and its standard error, scalars."""

    value: Any
    error: Any


def estimate(payoffs: Any, weights: Any = 1.0, controls: Any = (), means: Any = ()) -> Estimate:
    """The mean over paths; pairs are averaged first, so that the error knows they are mirrored.

    Args:
        payoffs: (N, P).
        weights: (N, P), those of `Paths`.
        controls: (C, N, P), variables of known mean; their coefficients are by least squares.
        means: (C,).

    Returns:
        The mean and its standard error. The coefficients cost a bias of order 1 / N, and are held
        when it is differentiated.
    """
    y = (payoffs * weights).mean(-1)
    if len(controls) == 0:
        return Estimate(y.mean(), y.std(ddof=1) / jnp.sqrt(y.size))
    x = jnp.stack([(c * weights).mean(-1) for c in controls], -1)
    known = jnp.stack([jnp.asarray(m, y.dtype) for m in means])
    slope = _slope(*jax.lax.stop_gradient((x, y)))
    y = y - (x - known) @ slope
    return Estimate(y.mean(), y.std(ddof=1) / jnp.sqrt(y.size))


def _slope(x: Any, y: Any) -> Any:
    """Coefficients (C,) of a regression with intercept; a constant control has none."""
    x = x - x.mean(0)
    scale = jnp.sqrt((x**2).mean(0))
    scale = jnp.where(scale > 0, scale, 1.0)
    x = x / scale
    gram = x.T @ x / len(y) + 1e-12 * jnp.eye(x.shape[1])
    return jnp.linalg.solve(gram, x.T @ (y - y.mean()) / len(y)) / scale


def price(
    payoff: Callable[[Paths], Any],
    law: Any,
    key: Any,
    dates: Any,
    num_pairs: int = 10_000,
    scheme: Scheme = QuadraticExponential(),
    noise: Noise = Antithetic(),
) -> Estimate:
    """The undiscounted price of a payoff of paths.

    Args:
        payoff: from `Paths` to values (N, P).
        law, key, dates, num_pairs, scheme, noise: see `paths.simulate`.
    """
    paths = simulate(law, key, dates, num_pairs, scheme, noise)
    return estimate(payoff(paths), paths.weights)


def vanilla(paths: Paths, forwards: Any, strike: Any, sign: Any = 1.0) -> Any:
    """A European option at the last date, (N, P)."""
    return jnp.maximum(sign * (levels(paths, forwards)[-1] - strike), 0.0)


# -- Asian ----------------------------------------------------------------------------------------


def asian(paths: Paths, forwards: Any, strike: Any, sign: Any = 1.0) -> Any:
    """On the arithmetic mean of the level at the D dates, (N, P)."""
    return jnp.maximum(sign * (levels(paths, forwards)[1:].mean(0) - strike), 0.0)


def geometric_asian(paths: Paths, forwards: Any, strike: Any, sign: Any = 1.0) -> Any:
    """On the geometric mean of the level at the D dates, (N, P)."""
    mean = jnp.exp(jnp.log(levels(paths, forwards)[1:]).mean(0))
    return jnp.maximum(sign * (mean - strike), 0.0)


def asian_price(
    law: Any,
    key: Any,
    dates: Any,
    forwards: Any,
    strike: Any,
    sign: Any = 1.0,
    num_pairs: int = 10_000,
    scheme: Scheme = QuadraticExponential(),
    noise: Noise = Antithetic(),
) -> Estimate:
    """The arithmetic Asian with the geometric one as control.

    Args:
        law, key, dates, num_pairs, scheme, noise: see `paths.simulate`.
        forwards: scalar, or (D + 1,) with the spot first.
        strike, sign: scalars.
    """
    paths = simulate(law, key, dates, num_pairs, scheme, noise)
    own = asian(paths, forwards, strike, sign)
    control = geometric_asian(paths, forwards, strike, sign)
    known = geometric_asian_price(law, dates, forwards, strike, sign)
    return estimate(own, paths.weights, control[None], (known,))


# -- barriers and extremes ----------------------------------------------------------------------


class Monitor(Protocol):
    """When a barrier is looked at."""

    def survival(self, paths: Paths, forwards: Any, barrier: Any, direction: Any) -> Any:
        """Probability (N, P), given the paths, that the barrier was not touched."""
        ...


@dataclass(frozen=True)
class AtDates:
    """At time zero and the D dates only."""

    def survival(self, paths: Paths, forwards: Any, barrier: Any, direction: Any) -> Any:
        inside = direction * (barrier - levels(paths, forwards)) > 0
        return inside.all(0).astype(paths.log_ratio.dtype)


@dataclass(frozen=True)
class Always:
    """All the time: between two dates by the probability of a Brownian bridge.

    Exact under Black–Scholes for any dates; elsewhere an approximation that gets better with more
    of them, because the variance within an interval is taken as constant and jumps at its end.
    """

    def survival(self, paths: Paths, forwards: Any, barrier: Any, direction: Any) -> Any:
        y = jnp.log(levels(paths, forwards))
        gaps = jnp.maximum(direction * (jnp.log(barrier) - y), 0.0)
        before = jnp.maximum(gaps[1:] + direction * paths.jumps, 0.0)  # the end, before it jumps
        touched = jnp.exp(-2 * gaps[:-1] * before / jnp.maximum(paths.integrated, 1e-14))
        touched = jnp.where((gaps[:-1] > 0) & (gaps[1:] > 0), touched, 1.0)
        return jnp.prod(1.0 - touched, axis=0)


def knock_out(
    paths: Paths,
    forwards: Any,
    strike: Any,
    barrier: Any,
    direction: Any,
    sign: Any = 1.0,
    monitor: Monitor = Always(),
) -> Any:
    """A European option that dies at the barrier, (N, P).

    Args:
        paths: (N, P) of them.
        forwards: scalar, or (D + 1,) with the spot first.
        strike, barrier: scalars.
        direction: +1.0 for a barrier above, -1.0 for one below.
        sign: +1.0 call, -1.0 put.
        monitor: `Always()` or `AtDates()`.
    """
    alive = monitor.survival(paths, forwards, barrier, direction)
    return alive * vanilla(paths, forwards, strike, sign)


def knock_in(
    paths: Paths,
    forwards: Any,
    strike: Any,
    barrier: Any,
    direction: Any,
    sign: Any = 1.0,
    monitor: Monitor = Always(),
) -> Any:
    """A European option that begins at the barrier, (N, P); see `knock_out`."""
    alive = monitor.survival(paths, forwards, barrier, direction)
    return (1.0 - alive) * vanilla(paths, forwards, strike, sign)


def extreme(
    paths: Paths, forwards: Any, key: Any, direction: Any, noise: Noise = Antithetic()
) -> Any:
    """The highest (direction 1.0) or lowest (-1.0) level, watched all the time; (N, P).

    Drawn from the extremes of Brownian bridges between the dates; exact where `Always` is.

    Args:
        paths: (N, P) of them.
        forwards: scalar, or (D + 1,) with the spot first.
        key: of `jax.random`; not that of the paths.
        direction: +1.0 or -1.0.
        noise: that of the paths.
    """
    y = direction * jnp.log(levels(paths, forwards))
    ends = y[1:] - direction * paths.jumps
    u = noise.uniforms(key, paths.log_ratio[1:, :, 0].shape)
    spread = root((ends - y[:-1]) ** 2 - 2 * paths.integrated * jnp.log(jnp.maximum(u, 1e-300)))
    top = jnp.maximum(0.5 * (y[:-1] + ends + spread), y[1:]).max(0)
    return jnp.exp(direction * top)


def lookback(
    paths: Paths,
    forwards: Any,
    key: Any,
    strike: Any,
    sign: Any = 1.0,
    noise: Noise = Antithetic(),
) -> Any:
    """A call on the highest or a put on the lowest level at a fixed strike, (N, P)."""
    top = extreme(paths, forwards, key, sign, noise)
    return jnp.maximum(sign * (top - strike), 0.0)


def floating_lookback(
    paths: Paths, forwards: Any, key: Any, sign: Any = 1.0, noise: Noise = Antithetic()
) -> Any:
    """A call struck at the lowest or a put struck at the highest level, (N, P)."""
    bottom = extreme(paths, forwards, key, -jnp.asarray(sign), noise)
    return sign * (levels(paths, forwards)[-1] - bottom)


# -- cliquets and variance ----------------------------------------------------------------------


def cliquet(
    paths: Paths,
    forwards: Any,
    local_floor: Any,
    local_cap: Any,
    floor: Any = -jnp.inf,
    cap: Any = jnp.inf,
) -> Any:
    """The clipped sum of clipped returns from date to date, per unit of notional; (N, P)."""
    s = levels(paths, forwards)
    returns = jnp.clip(s[1:] / s[:-1] - 1.0, local_floor, local_cap)
    return jnp.clip(returns.sum(0), floor, cap)


def realised_variance(paths: Paths, forwards: Any) -> Any:
    """Squared log returns from date to date, summed, a year; (N, P). Its mean is not taken off."""
    y = jnp.log(levels(paths, forwards))
    return (jnp.diff(y, axis=0) ** 2).sum(0) / paths.times[-1]
