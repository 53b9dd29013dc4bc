"""Bates' surface: Heston's variance, and jumps of the price for the short maturities.

    dF / F = sqrt(v) dW + (e^J - 1) dN - drift dt,   J ~ Normal(jump_mean, jump_sd^2),   N at rate
    `intensity`,   dv = kappa (theta - v) dt + sigma sqrt(v) dZ,   dW dZ = rho dt

The same noise of the quotes as everywhere. Rare jumps and steep smiles of the first maturity are
hard to tell from a large `sigma`: the priors say that jumps come some times a year.

Source: Bates (1996), Review of Financial Studies 9(1).
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

import emprob as ep
from emprob.models import _report, _starts, calibration, quote_noise, surface_heston, surfaces
from emprob.models.arbitrage import Surface
from emprob.models.pricing.characteristic import Bates
from emprob.models.quotes import Quotes

JUMPS = ("intensity", "jump_mean", "jump_sd")


def law(params: surfaces.Params) -> Bates:
    """The law of the price of parameters by name."""
    return Bates(surface_heston.law(params), *(params[name] for name in JUMPS))


def surface(params: surfaces.Params, quotes: Quotes) -> Surface:
    """Volatility at (log-moneyness, code); `quotes` give the times."""
    return surface_heston.implied(law(params), quotes.times)


def surface_bates(
    quotes: Quotes, noise: Callable[[Quotes, Array], None] = quote_noise.indicator
) -> None:
    """One Bates law for all quotes.

    Args:
        quotes: N options at E expiries, NaN mids are missing.
        noise: law of the mids, a function of `quote_noise`.
    """
    params = surface_heston.variances(quotes)
    month = surfaces.level(quotes) / jnp.sqrt(12.0)
    laws = {
        "intensity": dist.LogNormal(jnp.log(2.0), 0.8),
        "jump_mean": dist.Normal(0.0, month),
        "jump_sd": dist.LogNormal(jnp.log(month / 2), 0.7),
    }
    params |= {name: numpyro.sample(name, law) for name, law in laws.items()}
    noise(quotes, calibration.volatilities(law(params), quotes))


MODEL = surfaces.Model("surface_bates", surface_bates, surface, parts=_starts.LAW)


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Bitcoin's surface of 21 October 2021; returns the robust fit."""
    return surfaces.run(MODEL, argv, "Bates' surface of Bitcoin options, robust to bad quotes")


if __name__ == "__main__":
    main()
