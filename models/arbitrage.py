"""Static arbitrage of a volatility surface, on a grid: butterflies and calendar spreads.

A smile w(k), total variance against log-moneyness, has a density at every strike where Durrleman's
function

    g(k) = (1 - k w' / (2 w))^2 - w'^2 / 4 (1 / w + 1 / 4) + w'' / 2

is not negative; a surface has no calendar arbitrage where w grows with the time at every k.
Derivatives are taken of the program, so that any surface can be looked at.

Source: Gatheral & Jacquier (2014), Quantitative Finance 14(1), lemma 2.2 and section 2.1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array

Surface = Callable[[Array, Array], Array]
"""Volatility at log-moneyness (...,) and the expiry's code (...,)."""

WIDTH = 5.0  # of a grid, in standard deviations at the money
REACH = 4.0  # of the penalised range, likewise
TOLERANCE = 1e-10  # of what counts as negative


def grid(level: Any, times: Array, points: int = 61) -> Array:
    """Log-moneyness (G,) that covers every maturity up to `WIDTH` standard deviations.

    Args:
        level: volatility at the money, a number.
        times: (E,), years.
        points: G, odd, so that the money is in it. Dense in the middle: short maturities.
    """
    reach = WIDTH * level * jnp.sqrt(jnp.max(times))
    u = jnp.linspace(-1.0, 1.0, points)
    return reach * jnp.sinh(4.0 * u) / jnp.sinh(4.0)


def _variance(surface: Surface, times: Array) -> Callable[[Array, Array], Array]:
    """Total variance as a function of log-moneyness and code."""
    return lambda k, e: surface(k, e) ** 2 * times[e]


def _function(k: Array, w: Array, first: Array, second: Array) -> Array:
    """Durrleman's function of a smile and its derivatives."""
    return (1 - 0.5 * k * first / w) ** 2 - 0.25 * first**2 * (1 / w + 0.25) + 0.5 * second


def durrleman(surface: Surface, times: Array, k: Array) -> Array:
    """Durrleman's function (E, G); negative where a butterfly has a negative price.

    Args:
        surface: volatility at (k, code).
        times: (E,), years.
        k: (G,) or (E, G), log-moneyness.
    """
    total = _variance(surface, times)
    code = jnp.broadcast_to(jnp.arange(len(times))[:, None], (len(times), k.shape[-1]))
    k = jnp.broadcast_to(k, code.shape)
    ones = jnp.ones_like(k)

    def slope(x):
        return jax.jvp(lambda y: total(y, code), (x,), (ones,))

    (w, first), (_, second) = jax.jvp(slope, (k,), (ones,))
    return _function(k, w, first, second)


def growth(surface: Surface, times: Array, k: Array) -> Array:
    """Growth (E - 1, G) of the total variance from one maturity to the next, at k (G,)."""
    code = jnp.broadcast_to(jnp.arange(len(times))[:, None], (len(times), len(k)))
    return jnp.diff(_variance(surface, times)(jnp.broadcast_to(k, code.shape), code), axis=0)


def butterfly_penalty(
    surface: Surface, times: Array, level: Any, points: int = 33, weight: float = 1e3
) -> Array:
    """Minus a log-density of smiles: zero where Durrleman's function is positive.

    On a grid of its own for each maturity, `REACH` standard deviations wide, with differences for
    derivatives: a fit takes two derivatives more, and four of a formula are slow to compile.

    Args:
        surface: volatility at (k, code).
        times: (E,), years.
        level: volatility at the money, a number.
        points: of the grid.
        weight: of the squared violations.
    """
    unit = jnp.linspace(-REACH, REACH, points)
    k = level * jnp.sqrt(times)[:, None] * unit
    width = k[:, 1:2] - k[:, :1]
    code = jnp.broadcast_to(jnp.arange(len(times))[:, None], k.shape)
    w = _variance(surface, times)(k, code)
    low, middle, high = w[:, :-2], w[:, 1:-1], w[:, 2:]
    first, second = (high - low) / (2 * width), (high - 2 * middle + low) / width**2
    g = _function(k[:, 1:-1], middle, first, second)
    return weight * (jnp.minimum(g, 0.0) ** 2).sum()


def calendar_penalty(surface: Surface, times: Array, k: Array, weight: float = 1e3) -> Array:
    """Minus a log-density of a surface: zero where total variance grows with the time on k (G,).

    A fall counts relative to the mean growth at the money.
    """
    if len(times) == 1:
        return jnp.zeros(())
    grown = growth(surface, times, k)
    typical = jax.lax.stop_gradient(jnp.abs(grown[:, len(k) // 2]).mean())
    return weight * (jnp.minimum(grown / typical, 0.0) ** 2).sum()


def check(surface: Surface, times: Array, level: Any, points: int = 2001) -> pd.DataFrame:
    """What a dense grid finds, a row per maturity.

    Butterflies are looked at within `REACH` standard deviations of each maturity, calendar spreads
    within those of the shorter one. Where a price has no digits its volatility is NaN, and nothing
    is said there.

    Args:
        surface: volatility at (k, code).
        times: (E,), years.
        level: volatility at the money, a number.
        points: of the grid of a maturity.

    Returns:
        Columns: years; the lowest Durrleman's function and where; the least growth of total
        variance from this maturity to the next and where; whether both are free of arbitrage.
    """
    times = jnp.asarray(times)
    k = level * jnp.sqrt(times)[:, None] * jnp.linspace(-REACH, REACH, points)
    k, g, grown = (np.asarray(x) for x in (k, *jax.jit(_seen, static_argnums=0)(surface, times, k)))
    rows = []
    for e, year in enumerate(np.asarray(times)):
        low, where = _least(g[e], k[e])
        least, at = _least(grown[e], k[e]) if e + 1 < len(times) else (np.nan, np.nan)
        free = low > -TOLERANCE and not least < -TOLERANCE
        rows.append((year, low, where, least, at, free))
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = ("years", "butterfly", "at k", "calendar", "at k ", "free")


def _seen(surface: Surface, times: Array, k: Array) -> tuple[Array, Array]:
    """Durrleman's function (E, G), and growth to the next maturity (E, G), 0 for the last."""
    code = jnp.broadcast_to(jnp.arange(len(times))[:, None], k.shape)
    total = _variance(surface, times)
    after = jnp.minimum(code + 1, len(times) - 1)
    return durrleman(surface, times, k), total(k, after) - total(k, code)


def _least(value: np.ndarray, k: np.ndarray) -> tuple[float, float]:
    """The lowest value that is a number, and where."""
    if not np.isfinite(value).any():
        return np.nan, np.nan
    return float(np.nanmin(value)), float(k[np.nanargmin(value)])
