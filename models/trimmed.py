"""Least trimmed squares: a surface that a minority of wild quotes cannot move, as a start.

    minimise sum of the h smallest weights_n (volatility_n(params) - mid_n)²

by fits to small random subsets, each followed by steps of concentration: fit the h quotes that the
last fit is closest to, at last those that are good under the usual noise. A subset without a bad
quote leads to the surface, and among a few dozen there is one. Robust EM climbs to whichever
optimum is near, and half a smile explained to the last digit while the other half is called bad is
an optimum too; begun here, it has no valley to cross.

Source: Rousseeuw & Van Driessen (2006), Computing LTS regression for large data sets, Data Mining
and Knowledge Discovery 12(1); Rousseeuw (1984), Journal of the American Statistical Association 79.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from emprob.models.calibration import COLD, WARM, Calibration, least_squares
from emprob.models.quote_noise import USUAL, log_density, responsibilities, spreads
from emprob.models.quotes import Quotes

KEPT = 0.6  # share of the quotes that a fit answers for
SPARE = 2  # quotes of a subset beyond the number of parameters


def least_trimmed_squares(
    volatility_function: Callable[[Any, Quotes], Array],
    params: Any,
    quotes: Quotes,
    key: Array,
    supports: Any = None,
    log_prior: Callable[[Any], Any] = lambda params: 0.0,
    num_subsets: int = 32,
    num_steps: int = 3,
) -> Calibration:
    """The best of many fits to subsets of the quotes, with weights 1 / half_spread².

    Many surfaces go through `jax.vmap`.

    Args:
        volatility_function: (params, quotes) to volatilities (N,), defined once.
        params: where every fit to a subset starts, inside the supports.
        quotes: N options; a NaN mid is missing.
        key: of the subsets.
        supports: as for `calibration.least_squares`.
        log_prior: of the params; where a few bad quotes side by side could be a kink of the smile,
            it decides.
        num_subsets: of 7 quotes, one in twelve has no bad one where 30 % are bad.
        num_steps: of concentration.

    Returns:
        The fit to the quotes that were kept with the highest `quote_noise.log_density` and prior;
        not finite where no fit was.
    """
    weights = jnp.where(quotes.observed, spreads(quotes) ** -2, 0.0)
    params = jax.tree.map(lambda x: jnp.asarray(x, float), params)
    size = len(jax.tree.leaves(params)) + SPARE

    def fit(start, kept, boldness):
        return least_squares(volatility_function, start, quotes, weights * kept, supports,
                             boldness, tolerance=1e-4, max_steps=50)  # fmt: skip

    def one(key):
        kept = _first(jax.random.uniform(key, weights.shape), weights > 0, size)
        return _concentrated(fit, params, kept, quotes, weights, num_steps)

    fits = jax.vmap(one)(jax.random.split(key, num_subsets))
    score = jax.vmap(
        lambda fit: log_density(quotes, fit.volatility, *USUAL) + log_prior(fit.params)
    )(fits)
    at = jnp.argmax(jnp.where(jnp.isfinite(score), score, -jnp.inf))
    return jax.tree.map(lambda x: x[at], fits)


def _concentrated(
    fit: Callable[..., Calibration],
    params: Any,
    kept: Array,
    quotes: Quotes,
    weights: Array,
    num_steps: int,
) -> Calibration:
    """A fit to a subset, to the nearest quotes again and again, at last to the good ones."""

    def step(state, this):
        boldness, last = this
        found = fit(*state, boldness)
        gap = weights * (found.volatility - quotes.mid) ** 2
        nearest = _first(gap, weights > 0, jnp.ceil(KEPT * jnp.sum(weights > 0)))
        good = responsibilities(quotes, found.volatility, *USUAL)[:, 0] > 0.5
        return (found.params, jnp.where(last, good, nearest)), found

    boldness = jnp.array([COLD] + [WARM] * (num_steps + 1))
    last = jnp.arange(num_steps + 2) >= num_steps
    _, fits = jax.lax.scan(step, (params, kept), (boldness, last))
    return jax.tree.map(lambda x: x[-1], fits)


def _first(order: Array, there: Array, num: Any) -> Array:
    """Which (N,) have the `num` smallest finite values of those that are there."""
    order = jnp.where(there & jnp.isfinite(order), order, jnp.inf)
    return jnp.argsort(jnp.argsort(order)) < num
