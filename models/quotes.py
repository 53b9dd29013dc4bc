"""Quotes of a volatility surface as arrays: what every pricing program and calibration reads.

`emprob.models.option_chain` makes them from a table of an option chain; `from_arrays` from arrays.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from emprob.errors import DataError


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Quotes:
    """Implied volatilities of N options at E expiries; a pytree, all fields are arrays.

    A missing quote has NaN in `mid`; its place is kept, so that surfaces of one shape share
    compiled code.

    Attributes:
        log_moneyness: (N,), log(strike / forward).
        times: (E,), years to expiry, ascending.
        expiry: (N,), integers 0..E-1.
        forwards: (E,), positive.
        mid: (N,), implied volatility between bid and ask; NaN is missing.
        half_spread: (N,), half the distance from bid to ask, as volatility; NaN if there is none.
        sign: (N,), +1.0 is a call, -1.0 a put.
    """

    log_moneyness: Any
    times: Any
    expiry: Any
    forwards: Any
    mid: Any
    half_spread: Any
    sign: Any

    def __post_init__(self):
        # A tracer cannot index a NumPy array.
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                object.__setattr__(self, name, jnp.asarray(value))

    def tree_flatten_with_keys(self) -> tuple:
        """Leaves by name; arrays leave as NumPy's, which `ep.bind` knows to be data."""
        leaves = ((jax.tree_util.GetAttrKey(f.name), getattr(self, f.name)) for f in fields(self))
        return tuple((key, _leaf(x)) for key, x in leaves), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: Any) -> "Quotes":
        """The inverse."""
        return cls(*leaves)

    @property
    def num_quotes(self) -> int:
        """N."""
        return self.log_moneyness.shape[-1]

    @property
    def num_expiries(self) -> int:
        """E."""
        return self.times.shape[-1]

    @property
    def observed(self) -> Any:
        """(N,), which quotes are there."""
        return jnp.isfinite(self.mid)

    @property
    def time(self) -> Any:
        """(N,), years to the expiry of every quote."""
        return jnp.take_along_axis(self.times, self.expiry, axis=-1)

    @property
    def forward(self) -> Any:
        """(N,), forward to the expiry of every quote."""
        return jnp.take_along_axis(self.forwards, self.expiry, axis=-1)

    @property
    def strike(self) -> Any:
        """(N,), strikes."""
        return self.forward * jnp.exp(self.log_moneyness)

    @property
    def total_variance(self) -> Any:
        """(N,), squared volatility times years."""
        return self.mid**2 * self.time

    @property
    def bid(self) -> Any:
        """(N,), volatility of the bid."""
        return self.mid - self.half_spread

    @property
    def ask(self) -> Any:
        """(N,), volatility of the ask."""
        return self.mid + self.half_spread


def _leaf(x: Any) -> Any:
    concrete = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return np.asarray(x) if concrete else x


def from_arrays(
    strike: Any, time: Any, forward: Any, mid: Any, half_spread: Any = None, sign: Any = None
) -> Quotes:
    """Quotes from one entry per option; expiries are the distinct times.

    Args:
        strike: (N,), positive.
        time: (N,), years, positive.
        forward: (N,) or scalar, positive, one value per expiry.
        mid: (N,), implied volatilities; NaN is missing.
        half_spread: (N,) or scalar, as volatility; NaN everywhere by default.
        sign: (N,), +1 call, -1 put; out of the money by default.

    Returns:
        Quotes in the order of the arguments.

    Raises:
        DataError: where an entry is not positive or an expiry has two forwards.
    """
    strike = np.atleast_1d(np.asarray(strike, float))
    shape = strike.shape
    time = np.broadcast_to(np.asarray(time, float), shape)
    forward = np.broadcast_to(np.asarray(forward, float), shape)
    for name, value in (("strike", strike), ("time", time), ("forward", forward)):
        if not (np.isfinite(value) & (value > 0)).all():
            raise DataError(f"{name}: expected positive numbers, got {value.min()}; leave such "
                              "options out")  # fmt: skip
    times, first, expiry = np.unique(time, return_index=True, return_inverse=True)
    forwards = forward[first]
    if not np.allclose(forwards[expiry], forward, rtol=1e-12, atol=0):
        raise DataError("forward: expected one value per expiry, got several; give every expiry "
                          "its own time or its own forward")  # fmt: skip
    k = np.log(strike / forward)
    sign = np.where(k >= 0, 1.0, -1.0) if sign is None else sign
    spread = np.nan if half_spread is None else half_spread
    return Quotes(
        log_moneyness=jnp.asarray(k), times=jnp.asarray(times), expiry=jnp.asarray(expiry),
        forwards=jnp.asarray(forwards), mid=jnp.broadcast_to(jnp.asarray(mid, float), shape),
        half_spread=jnp.broadcast_to(jnp.asarray(spread, float), shape),
        sign=jnp.broadcast_to(jnp.asarray(sign, float), shape),
    )  # fmt: skip


def hold_out(quotes: Quotes, held_out: Any) -> Quotes:
    """The same quotes with some missing.

    Args:
        quotes: N options.
        held_out: (N,), booleans; true is made missing.
    """
    return replace(quotes, mid=jnp.where(jnp.asarray(held_out, bool), jnp.nan, quotes.mid))


def take(quotes: Quotes, rows: Any) -> Quotes:
    """Some of the quotes; expiries without a quote stay, so that codes keep their meaning.

    Args:
        quotes: N options.
        rows: indices or booleans (N,), concrete.
    """
    rows = np.asarray(rows)
    per_quote = ("log_moneyness", "expiry", "mid", "half_spread", "sign")
    return replace(quotes, **{name: getattr(quotes, name)[rows] for name in per_quote})


def call_delta(quotes: Quotes) -> Any:
    """Forward delta of the call of every strike at the mid (N,), in (0, 1); NaN if missing."""
    deviation = quotes.mid * jnp.sqrt(quotes.time)
    return ndtr(-quotes.log_moneyness / deviation + deviation / 2)


def select(
    quotes: Quotes,
    deltas: tuple[float, float] = (0.0, 1.0),
    times: tuple[float, float] = (0.0, np.inf),
) -> Quotes:
    """The observed quotes near enough to the money and to today, expiries without one left out.

    Args:
        quotes: N options.
        deltas: least and largest delta of the call of the strike: (0.05, 0.95) takes
            out-of-the-money options of 5 delta and more.
        times: least and largest years to expiry, both included.
    """
    delta, time = np.asarray(call_delta(quotes)), np.asarray(quotes.time)
    inside = (delta >= deltas[0]) & (delta <= deltas[1])
    return compact(take(quotes, inside & (time >= times[0]) & (time <= times[1])))


def compact(quotes: Quotes) -> Quotes:
    """Without the missing quotes and the expiries that have none; concrete arrays only."""
    quotes = take(quotes, np.asarray(quotes.observed))
    used, code = np.unique(np.asarray(quotes.expiry), return_inverse=True)
    return replace(
        quotes, times=quotes.times[used], forwards=quotes.forwards[used],
        expiry=jnp.asarray(code.astype(np.asarray(quotes.expiry).dtype)),
    )  # fmt: skip


def pad(quotes: Quotes, num_quotes: int, num_expiries: int) -> Quotes:
    """The same quotes with missing ones behind them: chains of one shape share compiled code.

    Args:
        quotes: N options, E expiries.
        num_quotes: at least N.
        num_expiries: at least E; added expiries are a year apart and have the last forward.

    Raises:
        DataError: where there are more already.
    """
    n, e = num_quotes - quotes.num_quotes, num_expiries - quotes.num_expiries
    if n < 0 or e < 0:
        got = f"{quotes.num_quotes} and {quotes.num_expiries}"
        raise DataError(f"pad: expected at most {num_quotes} quotes and {num_expiries} expiries, "
                        f"got {got}; pad to more")  # fmt: skip
    fill = {"log_moneyness": 0.0, "mid": jnp.nan, "half_spread": jnp.nan, "sign": 1.0, "expiry": 0}
    longer = {k: jnp.pad(getattr(quotes, k), (0, n), constant_values=v) for k, v in fill.items()}
    later = quotes.times[-1] + jnp.arange(1, e + 1, dtype=quotes.times.dtype)
    return replace(
        quotes, **longer, times=jnp.concatenate([quotes.times, later]),
        forwards=jnp.pad(quotes.forwards, (0, e), mode="edge"),
    )  # fmt: skip


def by_expiry(quotes: Quotes) -> Quotes:
    """A batch (E, ...) of surfaces of one expiry each, filled up with missing quotes; for `vmap`.

    Args:
        quotes: N options at E expiries, concrete.
    """
    code = np.asarray(quotes.expiry)
    longest, parts = int(np.bincount(code, minlength=1).max()), []
    for e in range(quotes.num_expiries):
        own = take(quotes, code == e)
        own = replace(own, times=own.times[e : e + 1], forwards=own.forwards[e : e + 1],
                      expiry=jnp.zeros_like(own.expiry))  # fmt: skip
        parts.append(pad(own, longest, 1))
    return jax.tree.map(lambda *x: jnp.stack(x), *parts)


def errors_in_spreads(quotes: Quotes, volatility: Any, least: Any = 1e-4) -> Any:
    """Distance of a fit from the mid in half-spreads: within the quotes where at most one.

    Args:
        quotes: N options.
        volatility: (N,), of the fit.
        least: smallest half-spread that is divided by, as volatility; also of missing spreads.

    Returns:
        (N,), NaN where the quote is missing.
    """
    spread = jnp.where(jnp.isfinite(quotes.half_spread), quotes.half_spread, least)
    return (volatility - quotes.mid) / jnp.maximum(spread, least)
