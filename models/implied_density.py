"""What the market expects: the density of the price at each expiry as a mixture of lognormals.

    F_T / F ~ sum_j weight_j LogNormal(mean f_j, deviation d_j),   sum_j weight_j f_j = 1

Prices of options are then sums of Black's, the forward is right by construction, and no butterfly
has a negative price. Moments and probabilities follow from the fit, with standard errors. Good,
stale and crossed quotes are told apart by `quote_noise`.

Source: Bahra (1997), Implied risk-neutral probability density functions from option prices, Bank of
England working paper 66; Melick & Thomas (1997), JFQA 32(1).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from jax import Array
from jax.scipy.stats import norm

import emprob as ep
from emprob.models import _report, quote_noise, surfaces
from emprob.models.arbitrage import Surface
from emprob.models.pricing import black
from emprob.models.quotes import Quotes


class Mixture(NamedTuple):
    """Lognormal components of F_T / F, each (E, J)."""

    weight: Array
    forward: Array
    deviation: Array


def mixture(params: surfaces.Params, quotes: Quotes) -> Mixture:
    """Components of parameters; `quotes` give the unit and the times."""
    unit = (surfaces.level(quotes) * jnp.sqrt(quotes.times))[:, None]
    gap = params["gap"] * unit
    grown = jnp.exp(jnp.concatenate([jnp.zeros_like(unit), jnp.cumsum(gap, axis=-1)], axis=-1))
    weight = jnp.asarray(params["weight"])
    forward = grown / (weight * grown).sum(-1, keepdims=True)
    return Mixture(weight, forward, params["deviation"] * unit)


def surface(params: surfaces.Params, quotes: Quotes) -> Surface:
    """Volatility at (log-moneyness, code)."""
    law, times = mixture(params, quotes), jnp.asarray(quotes.times)

    def volatility(k: Array, code: Array) -> Array:
        strike, sign = jnp.exp(k), jnp.where(k < 0, -1.0, 1.0)
        each = black.black(law.forward[code], strike[..., None], law.deviation[code],
                           sign[..., None])  # fmt: skip
        price = (law.weight[code] * each).sum(-1)
        return black.implied_volatility(price, 1.0, strike, times[code], sign)

    return volatility


def implied_density(
    quotes: Quotes,
    noise: Callable[[Quotes, Array], None] = quote_noise.indicator,
    num_components: int = 2,
) -> None:
    """A mixture for each expiry.

    Args:
        quotes: N options at E expiries, NaN mids are missing.
        noise: law of the mids, a function of `quote_noise`.
        num_components: J; the gaps between their forwards, in standard deviations at the money,
            are likely positive by the prior, so that they are in order.
    """
    usual = jnp.full(num_components - 1, 1.0 / (num_components - 1))
    with numpyro.plate("maturity", quotes.num_expiries):
        params = {
            "weight": numpyro.sample("weight", dist.Dirichlet(3 * jnp.ones(num_components))),
            "gap": numpyro.sample("gap", dist.Normal(usual, 0.7).to_event(1)),
            "deviation": numpyro.sample(
                "deviation", dist.LogNormal(-0.2 * jnp.ones(num_components), 0.5).to_event(1)
            ),
        }
    noise(quotes, surface(params, quotes)(quotes.log_moneyness, quotes.expiry))


def density(params: surfaces.Params, quotes: Quotes, log_return: Any) -> Array:
    """Risk-neutral density (E, G) of log(F_T / F) at (G,) points."""
    law, x = mixture(params, quotes), jnp.asarray(log_return)[:, None]
    centre = jnp.log(law.forward) - law.deviation**2 / 2
    each = norm.pdf(x, centre[:, None], law.deviation[:, None])
    return (law.weight[:, None] * each).sum(-1)


def expectations(params: surfaces.Params, quotes: Quotes, move: float = 0.1) -> pd.DataFrame:
    """What the market expects, a row per expiry.

    Returns:
        Columns: years; of the log-return mean, standard deviation (a year), skewness and excess
        kurtosis; risk-neutral probability of a fall and of a rise by more than `move`.
    """
    law = Mixture(*(np.asarray(x) for x in mixture(params, quotes)))
    years = np.asarray(quotes.times)
    centre = np.log(law.forward) - law.deviation**2 / 2
    mean = (law.weight * centre).sum(1)
    d = centre - mean[:, None]
    variance = (law.weight * (law.deviation**2 + d**2)).sum(1)
    third = (law.weight * (d**3 + 3 * d * law.deviation**2)).sum(1)
    fourth = (law.weight * (d**4 + 6 * d**2 * law.deviation**2 + 3 * law.deviation**4)).sum(1)
    below, above = np.log1p(-move), np.log1p(move)
    tail = norm.cdf((np.array([below, above])[:, None, None] - centre) / law.deviation)
    fall, rise = np.asarray((law.weight * tail).sum(-1))
    return pd.DataFrame({
        "years": years, "mean": mean, "volatility": np.sqrt(variance / years),
        "skewness": third / variance**1.5, "kurtosis": fourth / variance**2 - 3,
        f"fall > {move:.0%}": fall, f"rise > {move:.0%}": 1 - rise,
    })  # fmt: skip


MODEL = surfaces.Model("implied_density", implied_density, surface, in_units=("gap", "deviation"))


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Expectations in Bitcoin's options of 21 October 2021; returns the robust fit."""
    found = surfaces.run(MODEL, argv, "What Bitcoin's options expect, robust to bad quotes")
    _report.heading("What the market expects")
    _report.show(expectations(found.params, surfaces.load("btc_2021")))
    return found


if __name__ == "__main__":
    main()
