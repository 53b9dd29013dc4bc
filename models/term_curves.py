"""Curves of a smile's parameters over the maturities: random walks in the log of the time.

    x_1 ~ Normal(centre, spread),   x_e ~ Normal(x_{e-1}, roughness * sqrt(log(t_e / t_{e-1})))

A maturity with few quotes, or none, borrows from its neighbours. With a given roughness the curves
are parameters with a smoothing prior. With a roughness that is a parameter too (`estimated`) they
are latents: integrated around their mode by Laplace's approximation, of which the roughness is the
maximum, with its errors. `fit.posterior` has means and variances of the curves. The law of the mids
must have no state of its own for each quote: `quote_noise.gaussian`, or `quote_noise.mixture`,
which sums the states out; with `quote_noise.indicator` a fit is refused.

    model = ep.bind(smile_sabr.smile_sabr, quotes, quote_noise.mixture, None)
    fit = ep.fit(model, init=smile_sabr.MODEL.start(quotes, 0))

With wrong quotes under `mixture` the curves have several modes, and from the centre of the prior
the search may end at another one at every roughness: then a fit says that it has not converged. So
begin it at curves of least trimmed squares, as above, or at those of another day or another fit.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform

POSITIVE = (ExpTransform(),)
CORRELATION = (  # tanh
    AffineTransform(0.0, 2.0),
    SigmoidTransform(),
    AffineTransform(-1.0, 2.0, domain=dist.constraints.unit_interval),
)
REAL = ()


def walk(times: Array, centre: Any, spread: Any, roughness: Any) -> dist.MultivariateNormal:
    """The law (E,) of a random walk at the given times.

    Args:
        times: (E,), years, ascending.
        centre, spread: of the walk at the first maturity.
        roughness: standard deviation of the change while the time grows e-fold.
    """
    elapsed = jnp.log(times / times[0])
    root = jnp.sqrt(jnp.concatenate([jnp.zeros(1), jnp.diff(elapsed)]))
    columns = (roughness * root).at[0].set(spread)
    factor = jnp.tril(jnp.broadcast_to(columns, (len(times), len(times))))
    return dist.MultivariateNormal(centre * jnp.ones(len(times)), scale_tril=factor)


def curve(
    name: str, times: Array, centre: Any, spread: Any, roughness: Any, transforms: tuple = REAL
) -> Array:
    """Sample a curve (E,) of a constrained parameter; `centre` and the rest are unconstrained."""
    law = walk(times, centre, spread, roughness)
    law = dist.TransformedDistribution(law, list(transforms)) if transforms else law
    return numpyro.sample(name, law)


def curves(times: Array, roughness: Any, rows: Mapping[str, tuple]) -> dict[str, Array]:
    """Sample several curves (E,).

    Args:
        times: (E,), years, ascending.
        roughness: (D,), one for each row.
        rows: by name (centre, spread, transforms), see `curve`.
    """
    return {
        name: curve(name, times, centre, spread, rough, transforms)
        for rough, (name, (centre, spread, transforms)) in zip(roughness, rows.items())
    }


def estimated(typical: Any) -> Array:
    """A roughness (D,) to be estimated, within a factor of about 3 of a typical one."""
    typical = jnp.asarray(typical, float)
    return numpyro.sample("roughness", dist.LogNormal(jnp.log(typical), 0.6).to_event(1))
