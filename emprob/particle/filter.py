"""The particle filter: islands of particles that move, are weighted and resampled."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.particle.body import Body
from emprob.particle.cloud import Cloud, advanced, chosen, entered
from emprob.particle.proposal import Plan
from emprob.particle.resampling import effective_size, log_mean, systematic
from emprob.particle.settings import Settings


class History(NamedTuple):
    """All that a filter has seen; P particles, S series.

    Attributes:
        entry: the cloud before the first step.
        clouds: after each step, time first.
        ancestors: (T, P, S), the particle each one comes from.
    """

    entry: Cloud
    clouds: Cloud
    ancestors: Array


def run_filter(body: Body, plan: Plan, key: Array, settings: Settings) -> History:
    """Filter the whole series.

    Args:
        body: of the program at some parameters.
        plan: of the settings' proposal.
        key: of `jax.random`.
        settings: how.

    Returns:
        The history. Weights are unnormalised: their mean over all particles is an unbiased
        estimate of the evidence so far (times the proposal's lookahead), whatever the resampling
        decided; after the last step the lookahead is none.

    Source: Doucet and Johansen (2011), A tutorial on particle filtering, section 3.5.
    """
    first, rest = jax.random.split(key)
    cloud = entered(body, plan, first, settings.num_particles)

    def step(cloud: Cloud, inputs: tuple) -> tuple[Cloud, Any]:
        x, at, key = inputs
        key, again = jax.random.split(key)
        index, log_weight = resampled(again, cloud.log_weight, settings)
        ready = chosen(body, cloud, index)._replace(log_weight=log_weight)
        moved = advanced(body, plan, at, x, key, ready)
        return moved, (moved, index)

    keys = jax.random.split(rest, body.length)
    blank = cloud._replace(latents=_no_latents(body, settings.num_particles))
    _, (clouds, ancestors) = lax.scan(step, blank, (body.xs, plan.at_steps, keys))
    return History(cloud, clouds, ancestors)


def _no_latents(body: Body, num: int) -> dict[str, Array]:
    return {k: jnp.zeros((num, *a.shape), a.dtype) for k, a in body.step.shapes.items()}


def resampled(key: Array, log_weight: Array, settings: Settings) -> tuple[Array, Array]:
    """Ancestors (P, S) and their weights, in the islands and series whose weights are uneven."""
    islands, series = settings.num_islands, log_weight.shape[1]
    size = settings.num_particles // islands
    weights = log_weight.reshape(islands, size, series)

    def one(key: Array, w: Array, start: Array) -> tuple[Array, Array]:
        uneven = effective_size(w) < settings.threshold * size
        own = jnp.broadcast_to(jnp.arange(size)[:, None], w.shape)
        index = jnp.where(uneven, systematic(key, w, size), own)
        return start + index, jnp.where(uneven, log_mean(w), w)

    starts = size * jnp.arange(islands)
    index, new = jax.vmap(one)(jax.random.split(key, islands), weights, starts)
    return index.reshape(-1, series), new.reshape(-1, series)


def log_evidence(history: History, num_islands: int) -> tuple[Array, Array]:
    """The log-evidence of each series (S,), and its variance from the spread of the islands (S,).

    The evidence is the mean over independent islands; the variance of its logarithm is the
    jackknife's, for any resampling and any proposal. (Estimates from the genealogy of one filter
    need many survivors of the first step, which long series do not leave.) NaN with one island.

    Source: Efron and Stein (1981), Annals of Statistics 9(3), eq. 1.4.
    """
    weights = history.clouds.log_weight[-1]
    each = jax.vmap(log_mean)(weights.reshape(num_islands, -1, weights.shape[1]))
    if num_islands == 1:
        return each[0], jnp.full_like(each[0], jnp.nan)
    others = jnp.where(jnp.eye(num_islands, dtype=bool)[:, :, None], -jnp.inf, each)
    without = jax.nn.logsumexp(others, 1)
    variance = (num_islands - 1) * jnp.var(without, 0)
    return log_mean(each), jnp.where(jnp.isfinite(each).all(0), variance, jnp.inf)


def effective_sizes(history: History) -> Array:
    """Effective sample size after each step, of the worst series, (T,)."""
    return jax.vmap(effective_size)(history.clouds.log_weight).min(1)


def num_ancestors(history: History) -> Array:
    """How many particles of each step have offspring at the end, of the worst series, (T,).

    It falls towards one as the series grows: the reason to draw paths backwards.
    """
    num, series = history.ancestors.shape[1:]
    column = jnp.arange(series)

    def step(alive: Array, index: Array) -> tuple[Array, Array]:
        before = jnp.zeros((num, series), bool).at[index, column].max(alive)
        return before, alive.sum(0).min()

    return lax.scan(step, jnp.ones((num, series), bool), history.ancestors, reverse=True)[1]
