"""Least squares on implied volatilities: a point estimate in milliseconds, again and again.

    minimise sum_n weights_n (volatility_n(params) - mid_n)²

by Levenberg and Marquardt's method (package optimistix) in unconstrained coordinates. It is the
fast neighbour of the probabilistic programs of the gallery: for starts, for live recalibration from
the last solution, and for many surfaces at once by `jax.vmap`. A function compiles once for each
shape of quotes; missing quotes (NaN) keep the shape. The solution is differentiable in the quotes
and the weights by the implicit function theorem.

Sources: Levenberg (1944), Quarterly of Applied Mathematics 2(2); Marquardt (1963), SIAM Journal on
Applied Mathematics 11(2); Cui, del Baño Rollin and Germano (2017), European Journal of Operational
Research 263(2), for the calibration of Heston's law with exact derivatives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from emprob.models.pricing import fourier
from emprob.models.pricing.characteristic import Bates, BlackScholes, Heston, Merton
from emprob.models.quotes import Quotes

REAL, POSITIVE, CORRELATION = "real", "positive", "correlation"
_HESTON = Heston(POSITIVE, POSITIVE, POSITIVE, POSITIVE, CORRELATION)
SUPPORTS = {
    BlackScholes: BlackScholes(POSITIVE),
    Merton: Merton(POSITIVE, POSITIVE, REAL, POSITIVE),
    Heston: _HESTON,
    Bates: Bates(_HESTON, POSITIVE, REAL, POSITIVE),
}
_TO_FREE = {REAL: jnp.asarray, POSITIVE: jnp.log, CORRELATION: jnp.arctanh}
_FROM_FREE = {REAL: jnp.asarray, POSITIVE: jnp.exp, CORRELATION: jnp.tanh}
LEAST_PRICE = 1e-9  # over the forward; what a search passes must have a volatility
# Size of the residuals for the solver, whose first damping is 1: how bold its first steps are.
COLD, WARM = 3.0, 100.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Calibration:
    """A least-squares fit; a pytree, batched where the quotes were.

    Attributes:
        params: as given, at the minimum.
        volatility: (N,), of the fit, at missing quotes too.
        sse: sum of weighted squared errors of the volatilities.
        covariance: (P, P) of the flattened params, for errors of one variance over the weights,
            estimated from the fit; not finite where the quotes do not determine them.
        steps: taken by the solver, rejected ones included.
        converged: whether it stopped on its tolerance.
    """

    params: Any
    volatility: jax.Array
    sse: jax.Array
    covariance: jax.Array
    steps: jax.Array
    converged: jax.Array

    @property
    def standard_errors(self) -> Any:
        """Of the params, in their structure."""
        variance = jnp.diagonal(self.covariance, axis1=-2, axis2=-1)
        leaves, structure = jax.tree.flatten(self.params)
        ends = np.cumsum([x[(0,) * (variance.ndim - 1)].size for x in map(jnp.asarray, leaves)])
        parts = jnp.split(jnp.sqrt(variance), ends[:-1], axis=-1)
        shaped = [p.reshape(jnp.shape(x)) for p, x in zip(parts, leaves)]
        return jax.tree.unflatten(structure, shaped)


def volatilities(law: Any, quotes: Quotes) -> jax.Array:
    """Implied volatilities (N,) of a law with a characteristic function, finite on the way."""
    return fourier.volatilities(
        law, quotes.log_moneyness, quotes.times, quotes.expiry, least=LEAST_PRICE
    )


def least_squares(
    volatility_function: Callable[[Any, Quotes], jax.Array],
    params: Any,
    quotes: Quotes,
    weights: Any = 1.0,
    supports: Any = None,
    boldness: float = COLD,
    tolerance: float = 1e-6,
    max_steps: int = 300,
) -> Calibration:
    """Fit volatilities from a start.

    Many surfaces, or many starts, go through `jax.vmap`.

    Args:
        volatility_function: (params, quotes) to volatilities (N,), such as `volatilities`. Define
            it once: another function object compiles again.
        params: where to start, a pytree of floats inside their supports.
        quotes: N options; a NaN mid is missing.
        weights: (N,) or scalar, nonnegative, such as 1 / half_spread².
        supports: names in the structure of `params`: "real", "positive", "correlation". By default
            those of the law (`SUPPORTS`), or all real.
        boldness: of the first steps: `COLD` from far away, `WARM` from the last solution.
        tolerance: of a step, relative and absolute, in unconstrained coordinates.
        max_steps: after which the solver gives up.

    Returns:
        The fit; `converged` is false after `max_steps`, and where no volatility was finite.

    Raises:
        ImportError: without optimistix.
        ValueError: where `supports` does not have the structure of `params`, or another name.
    """
    _optimistix()
    names = _names(params, supports)
    params = jax.tree.map(lambda x: jnp.asarray(x, float), params)
    weights = jnp.broadcast_to(jnp.asarray(weights, float), quotes.mid.shape)
    settings = (volatility_function, names, tolerance, max_steps)
    return _solve(*settings, jnp.asarray(boldness, float), params, quotes, weights)


def best(fits: Calibration) -> Calibration:
    """The fit with the least error of a batch of fits along the first axis."""
    at = jnp.nanargmin(fits.sse)
    return jax.tree.map(lambda x: x[at], fits)


def heston_starts(key: Any, quotes: Quotes, num: int) -> Heston:
    """Laws (num,) spread widely around the level of the quotes, as starts.

    Args:
        key: a key of `jax.random`, or an integer.
        quotes: of one surface.
        num: how many.
    """
    keys = jax.random.split(jax.random.key(key) if isinstance(key, int) else key, 5)
    level = jnp.nanmedian(quotes.mid) ** 2

    def spread(key, low, high):
        return jnp.exp(jax.random.uniform(key, (num,), minval=jnp.log(low), maxval=jnp.log(high)))

    return Heston(
        v0=level * spread(keys[0], 0.25, 4.0), kappa=spread(keys[1], 0.5, 20.0),
        theta=level * spread(keys[2], 0.25, 4.0),
        sigma=jnp.sqrt(level) * spread(keys[3], 0.5, 10.0),
        rho=jax.random.uniform(keys[4], (num,), minval=-0.9, maxval=0.5),
    )  # fmt: skip


def _names(params: Any, supports: Any) -> tuple[str, ...]:
    """Names of the supports, one for each leaf."""
    if supports is None:
        supports = SUPPORTS.get(type(params), jax.tree.map(lambda _: REAL, params))
    if jax.tree.structure(supports) != jax.tree.structure(params):
        raise ValueError(
            f"supports: expected the structure of params, {jax.tree.structure(params)}, got "
            f"{jax.tree.structure(supports)}; give one name for each leaf"
        )
    names = tuple(jax.tree.leaves(supports))
    for name in names:
        if name not in _TO_FREE:
            raise ValueError(f"supports: expected one of {sorted(_TO_FREE)}, got {name!r}")
    return names


def _map(links: dict, names: tuple[str, ...], tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [links[n](x) for n, x in zip(names, leaves)])


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _solve(
    function: Callable[[Any, Quotes], jax.Array],
    names: tuple[str, ...],
    tolerance: float,
    max_steps: int,
    boldness: jax.Array,
    params: Any,
    quotes: Quotes,
    weights: jax.Array,
) -> Calibration:
    optx = _optimistix()
    seen = quotes.observed
    mid = jnp.where(seen, quotes.mid, 0.0)
    root = jnp.where(seen, jnp.sqrt(weights), 0.0)
    scale = boldness / jnp.linalg.norm(root * mid)

    def residuals(free, known):
        quotes, mid, root, scale = known
        found = function(_map(_FROM_FREE, names, free), quotes)
        return scale * root * (jnp.where(seen, found, 0.0) - mid)

    solver = optx.LevenbergMarquardt(rtol=tolerance, atol=tolerance)
    known = (quotes, mid, root, jax.lax.stop_gradient(scale))
    start = _map(_TO_FREE, names, jax.tree.map(jax.lax.stop_gradient, params))
    end = optx.least_squares(residuals, solver, start, known, max_steps=max_steps, throw=False)
    params = _map(_FROM_FREE, names, end.value)
    fitted = function(params, quotes)
    sse = jnp.sum((root * (jnp.where(seen, fitted, 0.0) - mid)) ** 2)
    count = jnp.sum(root > 0)
    return Calibration(
        params=params, volatility=fitted, sse=sse,
        covariance=_covariance(lambda p: root * function(p, quotes), params, sse, count),
        steps=end.stats["num_steps"],
        converged=(end.result == optx.RESULTS.successful) & jnp.isfinite(sse),
    )  # fmt: skip


def _covariance(weighted: Callable, params: Any, sse: jax.Array, count: jax.Array) -> jax.Array:
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jacfwd(lambda x: weighted(unravel(x)))(flat)
    jacobian = jnp.where(jnp.isfinite(jacobian), jacobian, 0.0)
    # Parameters may differ by orders of magnitude: invert what has a unit diagonal.
    size = jnp.linalg.norm(jacobian, axis=0)
    unit = jacobian / size
    inverse = jnp.linalg.inv(unit.T @ unit) / jnp.outer(size, size)
    return sse / (count - flat.size) * inverse


def _optimistix() -> Any:
    try:
        import optimistix
    except ImportError as error:
        raise ImportError(
            "least_squares needs the package optimistix: pip install 'emprob[gallery]'"
        ) from error
    return optimistix
