"""SABR smiles of every maturity, their parameters smooth over the maturities.

    dF = alpha F^beta dW,   d alpha = nu alpha dZ,   dW dZ = rho dt,   beta = 1 by default

with Hagan's formula for the volatility. `alpha` is in units of the volatility at the money, `nu`
for a year: volatility of volatility falls about with the root of the time. Good, stale and crossed
quotes are told apart by `quote_noise`. Hagan's formula has arbitrage far from the money; what a
fit has is looked at on a grid, and a penalty keeps it away from the middle.

Source: Hagan, Kumar, Lesniewski & Woodward (2002), Managing smile risk, Wilmott Magazine 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array

import emprob as ep
from emprob.models import _report, arbitrage, quote_noise, surfaces
from emprob.models.arbitrage import Surface
from emprob.models.pricing import sabr
from emprob.models.quotes import Quotes
from emprob.models.term_curves import CORRELATION, POSITIVE, curves, estimated

CURVES = ("alpha", "nu", "rho")
CENTRE = (0.0, -0.7, 0.0)
SPREAD = (0.4, 0.7, 0.5)
ROUGHNESS = (0.15, 0.25, 0.2)
TRANSFORMS = (POSITIVE, POSITIVE, CORRELATION)


def surface(params: surfaces.Params, quotes: Quotes, beta: float = 1.0) -> Surface:
    """Volatility at (log-moneyness, code); `quotes` give the unit, the times and the forwards."""
    times, forward = jnp.asarray(quotes.times), jnp.asarray(quotes.forwards)
    alpha = params["alpha"] * surfaces.level(quotes) * forward ** (1 - beta)
    nu, rho = params["nu"] / jnp.sqrt(times), jnp.asarray(params["rho"])

    def volatility(k: Array, code: Array) -> Array:
        f = forward[code]
        return sabr.hagan(f, f * jnp.exp(k), times[code], alpha[code], beta, nu[code], rho[code])

    return volatility


def smile_sabr(
    quotes: Quotes,
    noise: Callable[[Quotes, Array], None] = quote_noise.indicator,
    roughness: Any = ROUGHNESS,
    beta: float = 1.0,
) -> None:
    """A smile for each maturity.

    Args:
        quotes: N options at E expiries, NaN mids are missing.
        noise: law of the mids, a function of `quote_noise`.
        roughness: (3,), of the curves; None: to be estimated, the curves being latents. Then the
            noise is `gaussian` or `mixture`, see `term_curves`.
        beta: exponent of the forward, 0 to 1.
    """
    roughness = estimated(ROUGHNESS) if roughness is None else roughness
    rows = dict(zip(CURVES, zip(CENTRE, SPREAD, TRANSFORMS)))
    params = curves(quotes.times, roughness, rows)
    law = surface(params, quotes, beta)
    wings = arbitrage.butterfly_grid(surfaces.level(quotes), quotes.times)
    here = (quotes.log_moneyness, quotes.expiry)
    at_wings, volatility = arbitrage.at_once(law, wings, here)
    variance = at_wings**2 * quotes.times[:, None]
    numpyro.factor("butterfly", -arbitrage.butterflies(wings[0], variance))
    noise(quotes, volatility)


PRIORS = {
    "as given": {"roughness": np.array(ROUGHNESS)},
    "a third as rough": {"roughness": np.array(ROUGHNESS) / 3},
    "three times as rough": {"roughness": np.array(ROUGHNESS) * 3},
}
MODEL = surfaces.Model("smile_sabr", smile_sabr, surface, PRIORS, in_units=("alpha",))


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Bitcoin's smiles of 21 October 2021; returns the robust fit."""
    return surfaces.run(MODEL, argv, "SABR smiles of Bitcoin options, robust to bad quotes")


if __name__ == "__main__":
    main()
