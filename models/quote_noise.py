"""The noise of option quotes: good ones within the spread, stale ones, crossed ones.

    state_n ~ share,   mid_n ~ Normal(volatility_n, width[state_n] * half_spread_n)

A good quote's mid is off by about its half-spread, a stale one by several, one of a crossed market
by dozens. Everything is in implied volatility, so a spread in prices is divided by vega
(`option_chain.quotes`). `indicator` leaves the state of a quote a latent, for EM; `mixture` sums it
out in the law of the mid, where another latent must be integrated.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

from emprob.models.quotes import Quotes

STATES = ("good", "stale", "crossed")
SHARE = jnp.array([30.0, 3.0, 1.5])  # Dirichlet
WIDTH = jnp.array([0.7, 8.0, 40.0])  # half-spreads, medians of log-normals
WIDTH_SPREAD = jnp.array([0.7, 0.4, 0.4])
LEAST_SPREAD = 2e-4  # volatility; a spread below a tick is not known that well


def spreads(quotes: Quotes) -> Array:
    """Half-spreads (N,) as volatility, the median where there is none, never below a tick."""
    known = jnp.isfinite(quotes.half_spread)
    usual = jnp.nanmedian(jnp.where(known, quotes.half_spread, jnp.nan))
    usual = jnp.where(jnp.isfinite(usual), usual, 0.005)
    return jnp.maximum(jnp.where(known, quotes.half_spread, usual), LEAST_SPREAD)


def _widths() -> tuple[Any, Any]:
    """Shares (3,) and widths (3,), in half-spreads, of the three kinds of quotes."""
    share = numpyro.sample("share", dist.Dirichlet(SHARE))
    width = numpyro.sample("width", dist.LogNormal(jnp.log(WIDTH), WIDTH_SPREAD).to_event(1))
    return share, width


def indicator(quotes: Quotes, volatility: Any) -> None:
    """Mids (N,) around model volatilities (N,), every quote with a latent `state`.

    Quotes that are missing (NaN) stay in the plate and say nothing.
    """
    share, width = _widths()
    with numpyro.plate("quote", quotes.num_quotes):
        law = dist.Categorical(share)
        state = numpyro.sample("state", law, infer={"enumerate": "parallel"})
        numpyro.sample("mid", dist.Normal(volatility, width[state] * spreads(quotes)),
                       obs=quotes.mid)  # fmt: skip


def mixture(quotes: Quotes, volatility: Any) -> None:
    """The same law of the mids with the states summed out."""
    share, width = _widths()
    with numpyro.plate("quote", quotes.num_quotes):
        scale = width * spreads(quotes)[:, None]
        each = dist.Normal(jnp.asarray(volatility)[:, None], scale)
        law = dist.MixtureSameFamily(dist.Categorical(share), each)
        numpyro.sample("mid", law, obs=quotes.mid)


def gaussian(quotes: Quotes, volatility: Any) -> None:
    """All quotes good: (weighted) least squares, for comparison."""
    width = numpyro.sample("width", dist.LogNormal(jnp.log(WIDTH[0]), 2.0))
    with numpyro.plate("quote", quotes.num_quotes):
        law = dist.Normal(volatility, width * spreads(quotes))
        numpyro.sample("mid", law, obs=quotes.mid)


def responsibilities(quotes: Quotes, volatility: Array, share: Array, width: Array) -> Array:
    """Probabilities (N, 3) of good, stale and crossed at given parameters.

    Args:
        quotes: N options; missing ones have the prior shares.
        volatility: (N,), of the model.
        share: (3,).
        width: (3,), half-spreads.
    """
    scale = width * spreads(quotes)[:, None]
    residual = jnp.nan_to_num(quotes.mid - volatility)[:, None]
    log_density = -0.5 * (residual / scale) ** 2 - jnp.log(scale)
    log_density = jnp.where(quotes.observed[:, None], log_density, 0.0)
    return jax.nn.softmax(jnp.log(share) + log_density, axis=-1)
