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

Places = tuple[Array, Array]
"""Log-moneyness and the expiries' codes, which broadcast."""

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


def at_once(surface: Surface, *places: Places) -> list[Array]:
    """Volatility at several places from one call, so that one call is differentiated and compiled.

    Args:
        surface: volatility at (k, code).
        places: log-moneyness and codes of any shape.

    Returns:
        An array for each, of its shape.
    """
    places = tuple(jnp.broadcast_arrays(*place) for place in places)
    k, code = (jnp.concatenate([jnp.ravel(x) for x in part]) for part in zip(*places))
    ends = np.cumsum([np.prod(k.shape, dtype=int) for k, _ in places])[:-1]
    parts = jnp.split(surface(k, code), ends)
    return [part.reshape(k.shape) for part, (k, _) in zip(parts, places)]


def _codes(times: Array) -> Array:
    return jnp.arange(len(times))[:, None]


def butterfly_grid(level: Any, times: Array, points: int = 33) -> Places:
    """Even log-moneyness (E, G) of each maturity, `REACH` standard deviations wide, and codes."""
    unit = jnp.linspace(-REACH, REACH, points)
    return level * jnp.sqrt(times)[:, None] * unit, _codes(times)


def calendar_grid(level: Any, times: Array) -> Places:
    """Log-moneyness (1, G) that all maturities have in common, and codes."""
    return grid(level, times)[None], _codes(times)


def butterflies(k: Array, w: Array, weight: float = 1e3) -> Array:
    """Minus a log-density of smiles: zero where Durrleman's function is positive.

    With differences for derivatives: a fit takes two derivatives more, and four of a formula are
    slow to compile.

    Args:
        k: (E, G), from `butterfly_grid`.
        w: (E, G), total variance there.
        weight: of the squared violations.
    """
    width = k[:, 1:2] - k[:, :1]
    low, middle, high = w[:, :-2], w[:, 1:-1], w[:, 2:]
    first, second = (high - low) / (2 * width), (high - 2 * middle + low) / width**2
    g = _function(k[:, 1:-1], middle, first, second)
    return weight * (jnp.minimum(g, 0.0) ** 2).sum()


def calendars(w: Array, weight: float = 1e3) -> Array:
    """Minus a log-density of a surface: zero where total variance (E, G) grows with the time.

    A fall counts relative to the mean growth at the money.

    Args:
        w: (E, G), on a grid that the maturities have in common.
        weight: of the squared violations.
    """
    if len(w) == 1:
        return jnp.zeros(())
    grown = jnp.diff(w, axis=0)
    typical = jnp.abs(grown[:, w.shape[1] // 2]).mean()
    return weight * (jnp.minimum(grown / typical, 0.0) ** 2).sum()


def butterfly_penalty(surface: Surface, times: Array, level: Any, points: int = 33) -> Array:
    """As `butterflies`, of a surface whose volatility at the money is about `level`."""
    k, code = butterfly_grid(level, times, points)
    code = jnp.broadcast_to(code, k.shape)
    return butterflies(k, _variance(surface, times)(k, code))


def calendar_penalty(surface: Surface, times: Array, k: Array) -> Array:
    """As `calendars`, of a surface on k (G,)."""
    k, code = jnp.broadcast_arrays(k, _codes(times))
    return calendars(_variance(surface, times)(k, code))


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
