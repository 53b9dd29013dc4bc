"""Black's formula, and its inverse to machine precision without a branch.

With x = |log(K / F)|, s the deviation (volatility times the root of the time), h = x / s, t = s / 2
and Mills' ratio M(z) = Phi(-z) / phi(z), the out-of-the-money price over sqrt(F K) is

    b(x, s) = exp(-(h^2 + t^2) / 2) / sqrt(2 pi) * (M(h - t) - M(h + t))

and what it lacks to its bound exp(-x / 2) is the same factor times M(t - h) + M(h + t). M is one
polynomial in a Moebius map of z, so that the difference is a divided difference: nothing cancels,
however small the deviation.

The inverse starts from the normal (Bachelier) inverse, corrected in x and s by polynomials, or from
the inverse at the money, close to the upper bound; two of Householder's steps of fourth order on
1 / log b, or on the logarithm of what is lacking, then leave the rounding only.

Source: Black (1976), Journal of Financial Economics 3; Jäckel (2015), Let's be rational, Wilmott
75, for the scaling and the objectives; Choi, Kim and Kwak (2009), Applied Mathematical Finance
16(3), for the variable of the normal inverse. The coefficients are our own, from 60 digits.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr

# One program each when called outside of `jax.jit`, nothing inside.
compiled = functools.partial(jax.jit, inline=True)
LOG_ROOT_2PI = 0.9189385332046727
ROOT_2PI = 2.5066282746310002
# (z + 5) M(z) = sum of c_i ((z - 5) / (z + 5))^i for every z >= -1, to 2e-17.
POLE = 5.0
MILLS = (
    1.9280810471531575, -1.6678665951889597, 1.2415470615738677, -0.7859110755465787,
    0.4136447157326482, -0.17325473408617234, 0.052125502412579405, -0.0075032828339574534,
    -0.0019999619756019093, 0.0013658592625915087, -0.0001488330564627618,
    -0.00012473614342845398, 4.181461291235928e-05, 9.976306451744539e-06, -6.945093144236328e-06,
    -8.39319172257217e-07, 1.0936958281226884e-06, 1.0140464326654351e-07,
    -1.7630203345439816e-07, -2.1998491834675842e-08, 2.7911715893166518e-08,
    6.0659357262637336e-09, -3.591577687026782e-09, -1.3789011092771987e-09,
    1.9115599398508507e-10, 1.6728898789793313e-10, 2.3705298478222446e-11,
)  # fmt: skip
# Normal deviation over its value at the money times the root of u, by u: numerator, denominator.
NORMAL = (
    (0.5006131326034156, 17.350488140630585, 33.0550032480831, 40.33177780259209,
     22.980473565205646),
    (1.0, 32.00748771021589, 11.676706880360156, 46.439360430663534),
)  # fmt: skip
# The deviation over the normal one, by x^2 (rows) and the squared normal deviation.
SKEW = (
    (0.999951137, 0.0411486388, 0.0042109559, 0.000376827688, 7.15905285e-06),
    (0.000195977098, -0.00399397609, -0.000827340665, -3.95160855e-05),
    (-5.04681444e-05, 0.000292740704, 4.86155237e-05),
    (2.58732585e-06, -1.26783959e-05),
    (5.21893463e-08,),
)
# The square of the deviation at the money over w = -log(1 - r^2), by w.
MONEY = (
    (6.2831915277747505, 1.21557457926151, 0.20962113046979397, 0.014816262199719493),
    (1.0, 0.1698564416376758, 0.029914719380063712, 0.0018618770668485305),
)
# What the square of the deviation has more, over x, by x (rows) and 1 / (1 + that at the money).
WIDE = (
    (4.72606265, -7.41148313, 3.07697136, -0.323016451),
    (-0.143032154, 0.0357169727, 0.504959824),
    (0.0206470653, -0.0326675991),
    (-0.000611735107,),
)
STEPS = 2
# Beyond this share of the upper bound, what is lacking is inverted in place of the price.
UPPER = 1 / 3


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    value = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


def _surface(rows: tuple[tuple[float, ...], ...], x: Array, y: Array) -> Array:
    value = jnp.zeros_like(x)
    for row in rows[::-1]:
        value = value * x + _polynomial(row, y)
    return value


def _mills(low: Array, high: Array, width: Array) -> tuple[Array, Array]:
    """M(low) - M(high) for high = low + width, and M(low) + M(high); both from -1 on.

    The difference is right to rounding for any width; the sum does not look at it.
    """
    first, second = 1 / (low + POLE), 1 / (high + POLE)
    one, two = 1 - 2 * POLE * first, 1 - 2 * POLE * second
    value, slope = jnp.full_like(one, MILLS[-1]), jnp.zeros_like(one)
    for c in MILLS[-2::-1]:
        slope = slope * one + value
        value = value * two + c
    top = value + (one - two) * slope
    less = width * first * second * (top - 2 * POLE * second * slope)
    return less, first * top + second * value


def _log_moneyness(forward: Array, strike: Array) -> Array:
    """log(K / F), right to rounding at the money too, and smooth there (no absolute value)."""
    gap, above = strike - forward, strike >= forward
    up = jnp.log1p(jnp.where(above, gap, 0) / forward)
    return jnp.where(above, up, -jnp.log1p(jnp.where(above, 0, -gap) / strike))


def _above_intrinsic(forward: Array, strike: Array, s: Array) -> Array:
    """Price of the option that is out of the money, for s > 0."""
    h, t = jnp.abs(_log_moneyness(forward, strike)) / s, s / 2
    near = h - t
    inside = near > -0.5
    less, more = _mills(jnp.where(inside, near, -near), h + t, s)
    root = jnp.sqrt(forward) * jnp.sqrt(strike)
    factor = root * jnp.exp(-(h * h + t * t) / 2) / ROOT_2PI
    return jnp.where(inside, factor * less, jnp.minimum(forward, strike) - factor * more)


def _intrinsic(forward: Array, strike: Array, sign: Array) -> Array:
    return jnp.maximum(sign * (forward - strike), 0)


@jax.custom_jvp
@compiled
def _black(forward: Array, strike: Array, s: Array, sign: Array) -> Array:
    positive = s > 0
    above = _above_intrinsic(forward, strike, jnp.where(positive, s, 1))
    price = _intrinsic(forward, strike, sign) + jnp.where(positive, above, 0)
    legal = (s >= 0) & (forward > 0) & (strike >= 0)
    return jnp.where(legal, price, jnp.nan)


@compiled
def _partials(forward: Array, strike: Array, s: Array, sign: Array) -> tuple[Array, Array]:
    """Derivatives by the forward and the strike; at s = 0 those of the intrinsic value."""
    positive = s > 0
    safe = jnp.where(positive, s, 1)
    d = -_log_moneyness(forward, strike) / safe
    settled = (1 + jnp.sign(sign * (forward - strike))) / 2
    delta = jnp.where(positive, ndtr(sign * (d + safe / 2)), settled)
    dual = jnp.where(positive, ndtr(sign * (d - safe / 2)), settled)
    return sign * delta, -sign * dual


@_black.defjvp
def _black_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    forward, strike, s, sign = primals
    by_forward, by_strike = _partials(*primals)
    tangent = by_forward * tangents[0] + by_strike * tangents[1]
    return _black(*primals), tangent + _vega(forward, strike, s) * tangents[2] + 0 * tangents[3]


def black(forward: Any, strike: Any, deviation: Any, sign: Any = 1.0) -> Array:
    """Undiscounted price of a European option under Black's law of the forward.

    Args:
        forward: positive; all arguments broadcast.
        strike: not negative.
        deviation: volatility times the root of the time, not negative.
        sign: 1 for a call, -1 for a put.

    Returns:
        The price; NaN for illegal arguments. The time value alone is right to a few units of
        rounding relative to itself, so that a price out of the money is, however small.
    """
    return _black(*_arrays(forward, strike, deviation, sign))


def black_scholes(
    spot: Any,
    strike: Any,
    time: Any,
    volatility: Any,
    rate: Any = 0.0,
    dividend: Any = 0.0,
    sign: Any = 1.0,
) -> Array:
    """Price today of a European option on a spot.

    Args:
        spot, strike: positive; all arguments broadcast.
        time: years to expiry.
        volatility: per root of a year.
        rate, dividend: continuously compounded, per year.
        sign: 1 for a call, -1 for a put.
    """
    spot, time, rate = (jnp.asarray(a) for a in (spot, time, rate))
    forward = spot * jnp.exp((rate - dividend) * time)
    return jnp.exp(-rate * time) * black(forward, strike, deviation(volatility, time), sign)


def deviation(volatility: Any, time: Any) -> Array:
    """The volatility times the root of the time, without a NaN in the gradient at time 0."""
    volatility, time = _arrays(volatility, time)
    positive = time > 0
    root = jnp.where(
        positive, jnp.sqrt(jnp.where(positive, time, 1)), jnp.where(time < 0, jnp.nan, 0)
    )
    return volatility * root


def vega(forward: Any, strike: Any, deviation: Any) -> Array:
    """Derivative of the undiscounted price, call or put, by the deviation.

    By the volatility it is that times the root of the time.
    """
    return _vega(*_arrays(forward, strike, deviation))


@compiled
def _vega(forward: Array, strike: Array, s: Array) -> Array:
    positive = s > 0
    safe = jnp.where(positive, s, 1)
    h, t = _log_moneyness(forward, strike) / safe, safe / 2
    density = jnp.exp(-(h * h + t * t) / 2)
    density = jnp.where(positive, density, jnp.where(forward == strike, 1.0, 0.0))
    return jnp.sqrt(forward) * jnp.sqrt(strike) * density / ROOT_2PI


def _arrays(*values: Any) -> list[Array]:
    arrays = [jnp.asarray(v) for v in values]
    dtype = jnp.result_type(*arrays, float)
    return jnp.broadcast_arrays(*(a.astype(dtype) for a in arrays))


def _start(above: Array, gap: Array, low: Array, root: Array, x: Array) -> Array:
    """A deviation within a thousandth of the solution for x up to 3.3."""
    share = above / low
    upper = share > UPPER
    level = jnp.log1p(jnp.where(upper, -share * share, gap / above))
    w = jnp.where(upper, -level, 1)
    money = w * _polynomial(MONEY[0], w) / _polynomial(MONEY[1], w)
    far = jnp.minimum(x, 3.3)
    wide = jnp.sqrt(money + x * _surface(WIDE, far, 1 / (1 + jnp.sqrt(money))))
    straddle = 2 * above + gap
    apart = (gap > 0) & ~upper
    u = jnp.where(apart, 2 * gap / (straddle * jnp.where(apart, level, 1)), 1)
    ratio = _polynomial(NORMAL[0], u) / _polynomial(NORMAL[1], u)
    normal = straddle / root * jnp.sqrt(u) * ratio
    narrow = jnp.where(apart, x * root / jnp.where(apart, gap, 1), 1) * normal
    narrow = narrow * _surface(SKEW, far * far, jnp.minimum(normal * normal, 10))
    return jnp.where(upper, wide, narrow)


def _step(s: Array, x: Array, target: Array, upper: Array) -> Array:
    """One of Householder's steps of fourth order on 1 / log b, or on log of what is lacking."""
    h, t = x / s, s / 2
    near = h - t
    less, more = _mills(jnp.maximum(jnp.where(upper, -near, near), -1), h + t, s)
    part = jnp.where(upper, more, less)
    value = jnp.log(part) - (h * h + t * t) / 2
    slope = jnp.where(upper, -1, 1) / part
    inverse = jnp.where(upper, 0, 1 / value)
    move = (target - value) / slope * jnp.where(upper, 1, value / target)
    second = h * h / s - s / 4
    third = second * second - 3 * (h / s) ** 2 - 0.25
    bend = second - slope
    twist = third - 3 * second * slope + 2 * slope * slope
    twist = twist - 6 * slope * inverse * (bend - slope * inverse)
    bend = bend - 2 * slope * inverse
    return s + move * (1 + bend * move / 2) / (1 + move * (bend + twist * move / 6))


@jax.custom_jvp
@compiled
def _implied(price: Array, forward: Array, strike: Array, sign: Array) -> Array:
    gap, low = jnp.abs(forward - strike), jnp.minimum(forward, strike)
    above = price - _intrinsic(forward, strike, sign)
    legal = (above >= 0) & (above <= low) & (low > 0)
    inner = legal & (above > 0) & (above < low)
    low = jnp.where(low > 0, low, 1)
    above = jnp.where(inner, above, low / 4)
    root, x = jnp.sqrt(forward) * jnp.sqrt(strike), jnp.log1p(gap / low)
    upper = above > UPPER * low
    target = jnp.log(jnp.where(upper, low - above, above) / root) + LOG_ROOT_2PI
    s = _start(above, gap, low, root, x)
    for _ in range(STEPS):
        s = _step(s, x, target, upper)
    edge = jnp.where(price > _intrinsic(forward, strike, sign), jnp.inf, 0)
    return jnp.where(inner, s, jnp.where(legal, edge, jnp.nan))


@_implied.defjvp
def _implied_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    _, forward, strike, sign = primals
    s = _implied(*primals)
    inner = (s > 0) & (s < jnp.inf)
    safe = jnp.where(inner, s, 1)
    by_forward, by_strike = _partials(forward, strike, safe, sign)
    left = tangents[0] - by_forward * tangents[1] - by_strike * tangents[2] + 0 * tangents[3]
    slope = _vega(forward, strike, safe)
    seen = inner & (slope > 0)
    tangent = jnp.where(seen, left / jnp.where(seen, slope, 1), 0 * left)
    return s, jnp.where(jnp.isnan(s), jnp.nan, tangent)


def implied_deviation(price: Any, forward: Any, strike: Any, sign: Any = 1.0) -> Array:
    """The volatility times the root of the time that gives an undiscounted price.

    Args:
        price: undiscounted; all arguments broadcast.
        forward, strike: positive.
        sign: 1 for a call, -1 for a put.

    Returns:
        The deviation to the precision that the price allows, for |log(K / F)| up to 3 and beyond; 0
        for the intrinsic value, infinite for the upper bound, NaN outside of the two. Derivatives,
        of every order, are implicit; those at the bounds, infinite, are given as 0.
    """
    return _implied(*_arrays(price, forward, strike, sign))


def implied_volatility(price: Any, forward: Any, strike: Any, time: Any, sign: Any = 1.0) -> Array:
    """Black's volatility of an undiscounted price; see `implied_deviation`.

    Args:
        price: undiscounted; all arguments broadcast.
        forward, strike: positive.
        time: years to expiry, positive; NaN comes out for others.
        sign: 1 for a call, -1 for a put.
    """
    time = jnp.asarray(time)
    positive = time > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, time, 1)), jnp.nan)
    s = implied_deviation(price, forward, strike, sign)
    # A NaN here must not reach the gradient of those who mask it.
    known = jnp.isfinite(s)
    return jnp.where(known, jnp.where(known, s, 1) / root, s)
