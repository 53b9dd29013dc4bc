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
SWEEPS = 3  # over the parts, to choose fits that agree
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
def starts(
    program: Callable[..., None],
    subsets: int,
    level: Callable[[Quotes], Array],
    in_units: tuple[str, ...],
    given: Params,
    quotes: Quotes,
    parts: Quotes,
    key: Array,
) -> dict[str, Array]:
    """Every part by least trimmed squares, put together in two ways, and the noise for each.

    First the best fit to every part by itself, then fits that agree on a noise and a prior: where
    parts have few quotes, either can lead to the better optimum.

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
        Values (2, ...) of all parameters with the noise `quote_noise.indicator`, no further than
        `REACH` from the centre of their prior, and there where a part has no quotes.
    """
    free = _free(program, given, quotes)
    keys = jax.random.split(key, len(parts.mid))
    # Each part ends when its own fits have, and is traced once.
    fits, score = jax.lax.map(lambda part: _part(free, subsets, *part), (parts, keys))
    scale = jax.vmap(level)(parts) / level(quotes)
    found = jax.vmap(jax.vmap(free.params))(fits.params)
    found |= {name: jax.vmap(jnp.multiply)(found[name], scale) for name in in_units}
    prior = free.draws(quotes, jax.random.split(key, DRAWS))

    def together(chosen: Array) -> dict[str, Array]:
        own = {name: x[jnp.arange(len(chosen)), chosen] for name, x in found.items()}
        shaped = {name: own[name].reshape(like.shape[1:]) for name, like in shapes.items()}
        return {n: _within_reach(to.inv(shaped[n]), prior[n]) for n, to in free.transforms.items()}

    shapes = jax.eval_shape(jax.vmap(free.params), prior)

    def total(chosen: Array) -> Array:
        inside = together(chosen)
        seen = quote_noise.score(quotes, free.volatility(inside, quotes))
        return seen + free.log_prior(inside, quotes)

    def values(chosen: Array) -> dict[str, Array]:
        inside = together(chosen)
        return free.params(inside) | quote_noise.start(quotes, free.volatility(inside, quotes))

    apart = jnp.argmax(score, axis=1)
    return jax.vmap(values)(jnp.stack([apart, _agreed(total, apart, subsets)]))


def _part(free: Free, subsets: int, quotes: Quotes, key: Array) -> tuple[trimmed.Trimmed, Array]:
    """Fits (S, ...) to a part and how good they are (S,); not finite where there are no quotes."""
    first, second = jax.random.split(key)
    begin = free.draws(quotes, jax.random.split(first, subsets))
    fits = trimmed.least_trimmed_squares(free.volatility, begin, quotes, second)
    score = jax.vmap(
        lambda f: quote_noise.score(quotes, f.volatility) + free.log_prior(f.params, quotes)
    )(fits)
    return fits, _or_never(score)


def _agreed(total: Callable[[Array], Array], chosen: Array, num: int) -> Array:
    """Which fit (P,) of each part, now that they share a noise and a prior.

    One part after the other, given the rest: Besag's iterated conditional modes.

    Args:
        total: how good a choice (P,) is.
        chosen: (P,), where to begin.
        num: of fits to each part.
    """

    def choose(chosen, p):
        others = jax.vmap(lambda s: chosen.at[p].set(s))(jnp.arange(num))
        return others[jnp.argmax(_or_never(jax.vmap(total)(others)))], None

    order = jnp.tile(jnp.arange(len(chosen)), SWEEPS)
    return jax.lax.scan(choose, chosen, order)[0]


def _or_never(score: Array) -> Array:
    """The score, lowest where there is none."""
    return jnp.where(jnp.isfinite(score), score, -jnp.inf)


def _within_reach(x: Array, draws: Array) -> Array:
    """Values (...) near draws (S, ...) of their prior."""
    centre, reach = jnp.median(draws, 0), REACH * draws.std(0)
    return jnp.clip(jnp.where(jnp.isfinite(x), x, centre), centre - reach, centre + reach)
