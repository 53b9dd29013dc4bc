"""Heston's surface: one law of the price for every strike and maturity.

    dF = F sqrt(v) dW,   dv = kappa (theta - v) dt + sigma sqrt(v) dZ,   dW dZ = rho dt

Five parameters for all quotes, by Fourier inversion of the characteristic function. The priors are
wide but proper: `kappa`, `sigma` and `theta` are ill-determined together, and least squares runs to
wherever it stops. Good, stale and crossed quotes are told apart by `quote_noise`.

Source: Heston (1993), Review of Financial Studies 6(2).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

import emprob as ep
from emprob.models import _report, _starts, calibration, quote_noise, surfaces
from emprob.models.arbitrage import Surface
from emprob.models.pricing import fourier
from emprob.models.pricing.characteristic import Heston
from emprob.models.quotes import Quotes


def law(params: surfaces.Params) -> Heston:
    """The law of the price of parameters by name."""
    return Heston(*(params[name] for name in ("v0", "kappa", "theta", "sigma", "rho")))


def surface(params: surfaces.Params, quotes: Quotes) -> Surface:
    """Volatility at (log-moneyness, code); `quotes` give the times."""
    return implied(law(params), quotes.times)


def implied(law: fourier.Law, times: Array) -> Surface:
    """Volatility at (log-moneyness, code) of a law with a characteristic function."""

    def volatility(k: Array, code: Array) -> Array:
        flat = fourier.volatilities(law, jnp.ravel(k), times, jnp.ravel(code))
        return flat.reshape(jnp.shape(k))

    return volatility


def variances(quotes: Quotes, width: Any = 1.0) -> surfaces.Params:
    """Priors of Heston's variance: sites `v0`, `kappa`, `theta`, `sigma`, `rho`, scalars.

    Args:
        quotes: N options, which give the unit.
        width: of the priors of the positive ones, over the usual.
    """
    usual = 2 * jnp.log(surfaces.level(quotes))
    laws = {
        "v0": dist.LogNormal(usual, 0.7 * width),
        "kappa": dist.LogNormal(jnp.log(3.0), 1.0 * width),
        "theta": dist.LogNormal(usual, 0.7 * width),
        "sigma": dist.LogNormal(usual / 2 + jnp.log(3.0), 1.0 * width),
        "rho": dist.Uniform(-1.0, 1.0),
    }
    return {name: numpyro.sample(name, law) for name, law in laws.items()}


def surface_heston(
    quotes: Quotes,
    noise: Callable[[Quotes, Array], None] = quote_noise.indicator,
    width: Any = 1.0,
) -> None:
    """One Heston law for all quotes.

    Args:
        quotes: N options at E expiries, NaN mids are missing.
        noise: law of the mids, a function of `quote_noise`.
        width: of the priors, see `variances`.
    """
    noise(quotes, calibration.volatilities(law(variances(quotes, width)), quotes))


PRIORS = {
    "as given": {"width": np.array(1.0)},
    "half as wide": {"width": np.array(0.5)},
    "three times as wide": {"width": np.array(3.0)},
}
MODEL = surfaces.Model("surface_heston", surface_heston, surface, PRIORS, _starts.LAW)


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Bitcoin's surface of 21 October 2021; returns the robust fit."""
    return surfaces.run(MODEL, argv, "Heston's surface of Bitcoin options, robust to bad quotes")


if __name__ == "__main__":
    main()
