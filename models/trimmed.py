"""Least trimmed squares: a surface that a minority of wild quotes cannot move, as a start.

    minimise sum of the h smallest weights_n (volatility_n(params) - mid_n)²

by fits to small random subsets, each followed by steps of concentration: fit the h quotes that the
last fit is closest to, at last those that are good under the noise as it then looks. A subset
without a bad quote leads to the surface, and among a few dozen there is one. Robust EM climbs to
whichever optimum is near, and half a smile explained to the last digit while the other half is
called bad is an optimum too; begun here, it has no valley to cross.

Source: Rousseeuw & Van Driessen (2006), Computing LTS regression for large data sets, Data Mining
and Knowledge Discovery 12(1); Rousseeuw (1984), Journal of the American Statistical Association 79.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.models import quote_noise
from emprob.models.calibration import COLD, WARM, least_squares
from emprob.models.quotes import Quotes

KEPT = 0.6  # share of the quotes that a fit answers for
SPARE = 2  # quotes of a subset beyond the number of parameters


class Trimmed(NamedTuple):
    """A fit to the quotes that were kept.

    Attributes:
        params: in unconstrained space.
        volatility: (N,), of the fit, at all quotes.
    """

    params: Any
    volatility: Array


def least_trimmed_squares(
    volatility_function: Callable[[Any, Quotes], Array],
    starts: Any,
    quotes: Quotes,
    key: Array,
    num_steps: int = 3,
) -> Trimmed:
    """Many fits (S, ...) that began at subsets of the quotes, with weights 1 / half_spread².

    Many surfaces go through `jax.vmap`.

    Args:
        volatility_function: (params, quotes) to volatilities (N,); params in unconstrained space.
        starts: params (S, ...), where the fit to each of S subsets begins. Of 7 quotes, one subset
            in twelve has no bad one where 30 % are bad.
        quotes: N options; a NaN mid is missing.
        key: of the subsets.
        num_steps: of concentration.

    Returns:
        A batch (S, ...) for `quote_noise.score` and a prior to choose from: where a few bad quotes
        side by side could be a kink of the smile, the prior decides. Not finite where there was no
        fit.
    """
    weights = jnp.where(quotes.observed, quote_noise.spreads(quotes) ** -2, 0.0)
    leaves = jax.tree.leaves(starts)
    size = SPARE + sum(x[0].size for x in leaves)

    def fit(start, kept, boldness):
        found = least_squares(volatility_function, start, quotes, weights * kept,
                              boldness=boldness, tolerance=1e-4, max_steps=20)  # fmt: skip
        return Trimmed(found.params, found.volatility)

    def one(start, key):
        kept = _first(jax.random.uniform(key, weights.shape), weights > 0, size)
        return _concentrated(fit, start, kept, quotes, weights, num_steps)

    return jax.vmap(one)(starts, jax.random.split(key, len(leaves[0])))


def _concentrated(
    fit: Callable[..., Trimmed],
    params: Any,
    kept: Array,
    quotes: Quotes,
    weights: Array,
    num_steps: int,
) -> Trimmed:
    """A fit to a subset, to the nearest quotes again and again, at last to the good ones."""

    def step(state, this):
        boldness, last = this
        found = fit(*state, boldness)
        gap = weights * (found.volatility - quotes.mid) ** 2
        nearest = _first(gap, weights > 0, jnp.ceil(KEPT * jnp.sum(weights > 0)))
        return (found.params, jnp.where(last, _good(quotes, found.volatility), nearest)), found

    boldness = jnp.array([COLD] + [WARM] * (num_steps + 1))
    last = jnp.arange(num_steps + 2) >= num_steps
    _, fits = jax.lax.scan(step, (params, kept), (boldness, last))
    return jax.tree.map(lambda x: x[-1], fits)


def _good(quotes: Quotes, volatility: Array) -> Array:
    """Which quotes (N,) are good, by the noise as it looks from these volatilities (N,)."""
    noise = quote_noise.start(quotes, volatility)
    width = quote_noise.widths(noise["width"], noise["excess"])
    return quote_noise.responsibilities(quotes, volatility, noise["share"], width)[:, 0] > 0.5


def _first(order: Array, there: Array, num: Any) -> Array:
    """Which (N,) have the `num` smallest finite values of those that are there."""
    order = jnp.where(there & jnp.isfinite(order), order, jnp.inf)
    return jnp.argsort(jnp.argsort(order)) < num
