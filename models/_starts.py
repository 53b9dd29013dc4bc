"""Where a robust fit of a surface begins: its parts by least trimmed squares.

A program says all that is needed. Its priors give unconstrained coordinates, places where fits may
begin, and how far they may end from there; a noise that only listens hears its volatilities. A part
is what is fitted by itself: the smile of an expiry, or all quotes under one law.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import log_density

from emprob.models import quote_noise, trimmed
from emprob.models.quotes import Quotes, by_expiry

Params = Mapping[str, Any]
REACH = 3.0  # standard deviations of the prior that a start may be off
DRAWS = 200  # of the prior, for its centre and its standard deviations


@dataclass(frozen=True)
class Parts:
    """How a surface comes apart.

    Attributes:
        of: quotes to a batch (P, ...) of them, by part.
        subsets: of the quotes of each that are tried. A smile has few quotes, and many subsets of
            them must be tried for one without a bad quote; a law has many.
    """

    of: Callable[[Quotes], Quotes]
    subsets: int


def whole(quotes: Quotes) -> Quotes:
    """A batch (1, ...) of all quotes."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], quotes)


SMILES = Parts(by_expiry, 32)
LAW = Parts(whole, 8)


def listen(quotes: Quotes, volatility: Array) -> None:
    """A noise that hears the volatilities (N,) and says nothing of the mids."""
    numpyro.deterministic("volatility", volatility)


@dataclass(frozen=True)
class Free:
    """A program in unconstrained coordinates.

    Attributes:
        program: of quotes and a noise.
        given: further arguments by name.
        transforms: of every parameter, to its support.
    """

    program: Callable[..., None]
    given: Params
    transforms: Mapping[str, Any]

    def params(self, free: Params) -> dict[str, Array]:
        """Constrained values."""
        return {name: to(free[name]) for name, to in self.transforms.items()}

    def draws(self, quotes: Quotes, keys: Array) -> dict[str, Array]:
        """Draws (S, ...) of the prior."""

        def one(key):
            sites = _sites(self.program, self.given, quotes, key)
            return {n: to.inv(sites[n]["value"]) for n, to in self.transforms.items()}

        return jax.vmap(one)(keys)

    def volatility(self, free: Params, quotes: Quotes) -> Array:
        """Volatilities (N,)."""
        known = handlers.substitute(self.program, self.params(free))
        return _sites(known, self.given, quotes, 0)["volatility"]["value"]

    def log_prior(self, free: Params, quotes: Quotes) -> Array:
        """Log-density of the constrained parameters, penalties included."""
        return log_density(self.program, (quotes, listen), self.given, self.params(free))[0]


def _sites(program: Callable, given: Params, quotes: Quotes, key: Any) -> dict[str, dict]:
    """What happens in a run of the program, by site."""
    return handlers.trace(handlers.seed(program, key)).get_trace(quotes, listen, **given)


def _free(program: Callable, given: Params, quotes: Quotes) -> Free:
    """The coordinates of a program, whatever quotes it gets."""
    sites = _sites(program, given, quotes, 0).items()
    sampled = {n: s for n, s in sites if s["type"] == "sample" and not s["is_observed"]}
    return Free(program, given, {n: biject_to(s["fn"].support) for n, s in sampled.items()})


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def start(
    program: Callable[..., None],
    subsets: int,
    level: Callable[[Quotes], Array],
    in_units: tuple[str, ...],
    given: Params,
    quotes: Quotes,
    parts: Quotes,
    key: Array,
) -> dict[str, Array]:
    """Every part by least trimmed squares, put together, and the noise for that surface.

    Args:
        program: of quotes and a noise.
        subsets: of the quotes of a part that are tried.
        level: the unit of volatility of quotes.
        in_units: names of the parameters that are in this unit.
        given: further arguments of the program, by name.
        quotes: N options, NaN mids are missing.
        parts: the same as a batch (P, ...).
        key: of the subsets.

    Returns:
        Values of all parameters with the noise `quote_noise.indicator`, no further than `REACH`
        from the centre of their prior, and there where a part has no quotes.
    """
    free = _free(program, given, quotes)
    keys = jax.random.split(key, len(parts.mid))
    # Each part ends when its own fits have, and is traced once.
    found = jax.lax.map(lambda part: _part(free, subsets, *part), (parts, keys))
    scale = jax.vmap(level)(parts) / level(quotes)
    for name in in_units:
        found[name] = jax.vmap(jnp.multiply)(found[name], scale)
    prior = free.draws(quotes, jax.random.split(key, DRAWS))
    shapes = {name: x.shape[1:] for name, x in jax.eval_shape(jax.vmap(free.params), prior).items()}
    together = {n: to.inv(found[n].reshape(shapes[n])) for n, to in free.transforms.items()}
    inside = {name: _within_reach(x, prior[name]) for name, x in together.items()}
    return free.params(inside) | quote_noise.start(quotes, free.volatility(inside, quotes))


def _part(free: Free, subsets: int, quotes: Quotes, key: Array) -> dict[str, Array]:
    """Parameters of a part; not finite where there are no quotes."""
    first, second = jax.random.split(key)
    begin = free.draws(quotes, jax.random.split(first, subsets))
    log_prior = partial(free.log_prior, quotes=quotes)
    found = trimmed.least_trimmed_squares(free.volatility, begin, quotes, second, log_prior)
    return free.params(found.params)


def _within_reach(x: Array, draws: Array) -> Array:
    """Values (...) near draws (S, ...) of their prior."""
    centre, reach = jnp.median(draws, 0), REACH * draws.std(0)
    return jnp.clip(jnp.where(jnp.isfinite(x), x, centre), centre - reach, centre + reach)
