"""The noise of option quotes: good ones within the spread, stale ones, crossed ones.

    state_n ~ share,   mid_n ~ Normal(volatility_n, widths[state_n] * half_spread_n)

A good quote's mid is off by less than its half-spread, a stale one by several, one of a crossed
market by dozens. The widths are in this order whatever the data say. Everything is in implied
volatility, so a spread in prices is divided by vega (`option_chain.quotes`). `indicator` leaves the
state of a quote a latent, for EM; `mixture` sums it out in the law of the mid, where another latent
must be integrated.

Where a model misses many quotes by a little, it is open whether the good ones are wide and none is
bad, or narrow and ten are: optima less than one log unit apart. Use a dozen starts, or a few from
`_starts` (`surfaces.Model.starts`), and look at NUTS before a quote is thrown away.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

from emprob.models.quotes import Quotes

SHARE = jnp.array([30.0, 3.0, 1.5])  # Dirichlet of good, stale, crossed
GOOD = 0.5  # half-spreads, the median of a log-normal
EXCESS = jnp.array([10.0, 4.0])  # of the next width over the last, likewise, relative
SPREAD = 0.5  # of the logarithm of the excess
LEAST = 0.1  # half-spreads; nobody knows a mid better, and a class of quotes cannot collapse
NORMAL_QUARTILE = 0.6745
FAR = 4.0  # widths of good quotes
LEAST_SPREAD = 2e-4  # volatility; a spread below a tick is not known that well


def spreads(quotes: Quotes) -> Array:
    """Half-spreads (N,) as volatility, the median where there is none, never below a tick."""
    known = jnp.isfinite(quotes.half_spread)
    usual = jnp.nanmedian(jnp.where(known, quotes.half_spread, jnp.nan))
    usual = jnp.where(jnp.isfinite(usual), usual, 0.005)
    return jnp.maximum(jnp.where(known, quotes.half_spread, usual), LEAST_SPREAD)


def widths(good: Any, excess: Any) -> Array:
    """Widths (3,), in half-spreads, of the three kinds of quotes.

    Args:
        good: positive, a scalar: the width of good quotes above `LEAST`.
        excess: (2,), positive: stale over good less 1, crossed over stale less 1.
    """
    return (LEAST + good) * jnp.concatenate([jnp.ones(1), jnp.cumprod(1.0 + jnp.asarray(excess))])


def _priors() -> dict[str, dist.Distribution]:
    """Laws of the noise's parameters."""
    return {
        "share": dist.Dirichlet(SHARE),
        "width": dist.LogNormal(jnp.log(GOOD), 0.7),
        "excess": dist.LogNormal(jnp.log(EXCESS), SPREAD).to_event(1),
    }


def _law() -> tuple[Array, Array]:
    """Shares (3,) and widths (3,) by their priors."""
    noise = {name: numpyro.sample(name, law) for name, law in _priors().items()}
    return noise["share"], widths(noise["width"], noise["excess"])


def indicator(quotes: Quotes, volatility: Any) -> None:
    """Mids (N,) around model volatilities (N,), every quote with a latent `state`.

    Quotes that are missing (NaN) stay in the plate and say nothing.
    """
    share, width = _law()
    with numpyro.plate("quote", quotes.num_quotes):
        law = dist.Categorical(share)
        state = numpyro.sample("state", law, infer={"enumerate": "parallel"})
        numpyro.sample("mid", dist.Normal(volatility, width[state] * spreads(quotes)),
                       obs=quotes.mid)  # fmt: skip


def mixture(quotes: Quotes, volatility: Any) -> None:
    """The same law of the mids with the states summed out."""
    share, width = _law()
    with numpyro.plate("quote", quotes.num_quotes):
        scale = width * spreads(quotes)[:, None]
        each = dist.Normal(jnp.asarray(volatility)[:, None], scale)
        law = dist.MixtureSameFamily(dist.Categorical(share), each)
        numpyro.sample("mid", law, obs=quotes.mid)


def gaussian(quotes: Quotes, volatility: Any) -> None:
    """All quotes good: (weighted) least squares, for comparison."""
    width = numpyro.sample("width", dist.LogNormal(jnp.log(GOOD), 2.0))
    with numpyro.plate("quote", quotes.num_quotes):
        law = dist.Normal(volatility, (LEAST + width) * spreads(quotes))
        numpyro.sample("mid", law, obs=quotes.mid)


def start(quotes: Quotes, volatility: Any) -> dict[str, Any]:
    """Shares and widths to begin with at a surface (N,) that bad quotes did not move.

    The width of good quotes is the median distance, as a standard deviation, whatever half of the
    quotes do; that of stale ones the median of the distances that are `FAR` beyond. From widths
    that are far off, the first steps would move the surface too.
    """
    distance = jnp.abs(quotes.mid - volatility) / spreads(quotes)
    good = jnp.maximum(jnp.nanmedian(distance) / NORMAL_QUARTILE, 1.1 * LEAST)
    stale = jnp.nanmedian(jnp.where(distance > FAR * good, distance, jnp.nan)) / NORMAL_QUARTILE
    usual = EXCESS[0] * jnp.exp(jnp.array([-2.0, 2.0]) * SPREAD)
    first = jnp.where(jnp.isfinite(stale), jnp.clip(stale / good - 1.0, *usual), EXCESS[0])
    excess = jnp.stack([first, EXCESS[1]])
    return {"share": SHARE / SHARE.sum(), "width": good - LEAST, "excess": excess}


def responsibilities(quotes: Quotes, volatility: Array, share: Array, width: Array) -> Array:
    """Probabilities (N, 3) of good, stale and crossed at given parameters.

    Args:
        quotes: N options; missing ones have the prior shares.
        volatility: (N,), of the model.
        share: (3,).
        width: (3,), half-spreads, see `widths`.
    """
    log_joint = _log_joint(quotes, volatility, share, width)
    return jax.nn.softmax(jnp.where(quotes.observed[:, None], log_joint, jnp.log(share)), axis=-1)


def log_density(quotes: Quotes, volatility: Array, share: Array, width: Array) -> Array:
    """Log-density of the observed mids, a scalar, up to a constant; arguments as above.

    A bad quote lowers it only so much.
    """
    each = jax.nn.logsumexp(_log_joint(quotes, volatility, share, width), axis=-1)
    return jnp.sum(jnp.where(quotes.observed, each, 0.0))


def score(quotes: Quotes, volatility: Array) -> Array:
    """Log-density of the mids and of the noise that `start` finds, a scalar, up to a constant.

    To rank surfaces by that fit more or fewer quotes more or less closely: a surface through a few
    quotes would have a noise that its prior does not believe.
    """
    noise = start(quotes, volatility)
    prior = sum(law.log_prob(noise[name]) for name, law in _priors().items())
    width = widths(noise["width"], noise["excess"])
    return prior + log_density(quotes, volatility, noise["share"], width)


def _log_joint(quotes: Quotes, volatility: Array, share: Array, width: Array) -> Array:
    scale = width * spreads(quotes)[:, None]
    residual = jnp.where(quotes.observed, quotes.mid - volatility, 0.0)[:, None]
    return jnp.log(share) - 0.5 * (residual / scale) ** 2 - jnp.log(scale)
