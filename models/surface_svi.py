"""A volatility surface of SVI slices, smooth over the maturities and free of arbitrage.

    w(k) = a + b (rho (k - m) + sqrt((k - m)^2 + sigma^2)),   volatility = sqrt(w / t)

A slice is described by what is seen: its lowest volatility, the slopes of the put and the call
wing, where its lowest point lies and how round it is, each in units of the volatility or the
standard deviation at the money, so that they change little with the maturity. Both slopes stay
below Lee's bound, the lowest variance is positive, and arbitrage on a grid is penalised: a slice
cannot degenerate. Good, stale and crossed quotes are told apart by `quote_noise`.

Source: Gatheral (2004), A parsimonious arbitrage-free implied volatility parameterization; Gatheral
& Jacquier (2014), Quantitative Finance 14(1); Lee (2004), Mathematical Finance 14(3), for wings.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

import emprob as ep
from emprob.models import _report, arbitrage, quote_noise, surfaces
from emprob.models.arbitrage import Surface
from emprob.models.pricing import svi
from emprob.models.quotes import Quotes
from emprob.models.term_curves import POSITIVE, REAL, curves, estimated

CURVES = ("lowest", "put_slope", "call_slope", "centre", "roundness")
CENTRE = (-0.1, -1.2, -1.4, 0.0, -0.7)
SPREAD = (0.4, 0.8, 0.8, 0.5, 0.7)
ROUGHNESS = (0.15, 0.3, 0.3, 0.2, 0.3)
TRANSFORMS = (POSITIVE, POSITIVE, POSITIVE, REAL, POSITIVE)
LEE = 2.0  # bound of the slopes of w


class Slices(NamedTuple):
    """Raw SVI of every maturity, each (E,)."""

    a: Array
    b: Array
    rho: Array
    m: Array
    sigma: Array


def slices(params: surfaces.Params, unit: Any, times: Array) -> Slices:
    """Raw parameters of the curves in `params`.

    Args:
        params: (E,) each, by the names in `CURVES`.
        unit: volatility at the money, a scalar.
        times: (E,), years.
    """
    deviation = unit * jnp.sqrt(times)
    wings = (params[name] * deviation / LEE for name in ("put_slope", "call_slope"))
    put, call = (LEE * jnp.tanh(x) for x in wings)
    b, rho = (put + call) / 2, (call - put) / (call + put)
    m, sigma = params["centre"] * deviation, params["roundness"] * deviation
    a = (params["lowest"] * unit) ** 2 * times - b * sigma * jnp.sqrt(1 - rho**2)
    return Slices(a, b, rho, m, sigma)


def surface(params: surfaces.Params, quotes: Quotes) -> Surface:
    """Volatility at (log-moneyness, code) of curves; `quotes` give the unit and the times."""
    times = jnp.asarray(quotes.times)
    raw = slices(params, surfaces.level(quotes), times)

    def volatility(k: Array, code: Array) -> Array:
        w = svi.total_variance(k, *(x[code] for x in raw))
        return jnp.sqrt(w / times[code])

    return volatility


def surface_svi(
    quotes: Quotes,
    noise: Callable[[Quotes, Array], None] = quote_noise.indicator,
    roughness: Any = ROUGHNESS,
) -> None:
    """Slices whose parameters are smooth over the maturities.

    Args:
        quotes: N options at E expiries, NaN mids are missing.
        noise: law of the mids, a function of `quote_noise`.
        roughness: (5,), of the curves; None: to be estimated, the curves being latents. Then the
            noise is `gaussian` or `mixture`, see `term_curves`.
    """
    roughness = estimated(ROUGHNESS) if roughness is None else roughness
    rows = dict(zip(CURVES, zip(CENTRE, SPREAD, TRANSFORMS)))
    params = curves(quotes.times, roughness, rows)
    law = surface(params, quotes)
    unit = surfaces.level(quotes)
    wings = arbitrage.butterfly_grid(unit, quotes.times)
    common = arbitrage.calendar_grid(unit, quotes.times)
    here = (quotes.log_moneyness, quotes.expiry)
    *at_grids, volatility = arbitrage.at_once(law, wings, common, here)
    on_wings, on_common = (v**2 * quotes.times[:, None] for v in at_grids)
    numpyro.factor("butterfly", -arbitrage.butterflies(wings[0], on_wings))
    numpyro.factor("calendar", -arbitrage.calendars(on_common))
    noise(quotes, volatility)


def separate_svi(
    quotes: Quotes, noise: Callable[[Quotes, Array], None] = quote_noise.indicator
) -> None:
    """Slices that share nothing but the noise: many smiles at once, of one day or of many.

    Args:
        quotes: N options of E smiles, NaN mids are missing.
        noise: law of the mids, a function of `quote_noise`.
    """
    with numpyro.plate("slice", quotes.num_expiries):
        rows = zip(CURVES, CENTRE, SPREAD, TRANSFORMS)
        laws = {name: (dist.LogNormal if t else dist.Normal)(c, s) for name, c, s, t in rows}
        params = {name: numpyro.sample(name, law) for name, law in laws.items()}
    law = surface(params, quotes)
    unit = surfaces.level(quotes)
    numpyro.factor("butterfly", -arbitrage.butterfly_penalty(law, quotes.times, unit))
    noise(quotes, law(quotes.log_moneyness, quotes.expiry))


PRIORS = {
    "as given": {"roughness": np.array(ROUGHNESS)},
    "a third as rough": {"roughness": np.array(ROUGHNESS) / 3},
    "three times as rough": {"roughness": np.array(ROUGHNESS) * 3},
}
MODEL = surfaces.Model("surface_svi", surface_svi, surface, PRIORS, in_units=CURVES)
SEPARATE = surfaces.Model("separate_svi", separate_svi, surface, in_units=CURVES)


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Bitcoin's surface of 21 October 2021; returns the robust fit."""
    return surfaces.run(MODEL, argv, "SVI surface of Bitcoin options, robust to bad quotes")


if __name__ == "__main__":
    main()
