"""Particle Gibbs with ancestor sampling: a Markov kernel on whole paths of the latents."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.errors import ModelError
from emprob.model import LatentModel
from emprob.particle.body import Body, Latents, body_of
from emprob.particle.cloud import Cloud, advanced, chosen, entered, latents_of
from emprob.particle.filter import run_filter
from emprob.particle.layout import take_sites
from emprob.particle.proposal import Plan
from emprob.particle.resampling import log_mean, multinomial
from emprob.particle.settings import Settings
from emprob.particle.smoother import (
    Future,
    draw_paths,
    inputs_after,
    log_ahead_of,
    reach_of,
)
from emprob.types import Params


class _Trail(NamedTuple):
    """Latents of each step and where each particle comes from."""

    latents: Latents
    ancestors: Array


@partial(jax.jit, static_argnames="settings")
def init_path(
    model: LatentModel, params: Params, key: Array, settings: Settings = Settings()
) -> Latents:
    """A path to start from: one drawn backwards from a particle filter.

    Args:
        model: a bound model whose program has one scan.
        params: constrained space.
        key: of `jax.random`.
        settings: how.

    Returns:
        All latents, the discrete ones included, by site: (T, ...) or (...).
    """
    model, params = lax.stop_gradient((model, dict(params)))
    body = body_of(model, params)
    plan = settings.proposal.plan(model, params, body)
    first, second = jax.random.split(key)
    history = run_filter(body, plan, first, settings)
    drawn = draw_paths(body, history, second, 1, reach_of(body, settings.horizon))
    return {k: v[0] for k, v in {**drawn.entry, **drawn.steps}.items()}


@partial(jax.jit, static_argnames="settings")
def sweep(
    model: LatentModel, params: Params, key: Array, path: Latents, settings: Settings = Settings()
) -> Latents:
    """Draw a path given another; the posterior of the latents stays invariant.

    A particle filter in which the last particle follows the given path, whose ancestry is drawn
    afresh at every step, so that the kernel moves even where the filter has forgotten its first
    steps. A few dozen particles do.

    Args:
        model: a bound model whose program has one scan.
        params: constrained space.
        key: of `jax.random`.
        path: from `init_path` or `sweep`.
        settings: particles and proposal; the islands are one and resampling is at every step.

    Returns:
        The next path, by site.

    Raises:
        ModelError: the path does not name the program's latents.

    Source: Lindsten, Jordan and Schon (2014), Journal of Machine Learning Research 15, algorithm
    2, with as many steps ahead in the ancestor's weight as the carry remembers.
    """
    model, params = lax.stop_gradient((model, dict(params)))
    body = body_of(model, params)
    outside, inside = _parts(body, path)
    plan = settings.proposal.plan(model, params, body)
    reach = reach_of(body, settings.horizon)
    first, second, third = jax.random.split(key, 3)
    cloud = entered(body, plan, first, settings.num_particles, outside)
    last, trail = _followed(body, plan, second, cloud, inside, reach)
    index = multinomial(third, last.log_weight, 1)
    start, steps = _traced(body, trail, index)
    entry = take_sites(cloud.latents, body.layout.entry, start)
    return {k: v[0] for k, v in {**entry, **steps}.items()}


def _parts(body: Body, path: Latents) -> tuple[Latents, Latents]:
    """The latents of a path outside and inside the scan."""
    known = {*body.entry.shapes, *body.step.shapes}
    if set(path) != known:
        raise ModelError(
            f"sweep: expected a path with the latents {sorted(known)}, got {sorted(path)}. Start "
            "from init_path, which draws all of them."
        )
    inside = {k: path[k] for k in body.step.shapes}
    return {k: path[k] for k in body.entry.shapes}, inside


def _followed(
    body: Body, plan: Plan, key: Array, cloud: Cloud, path: Latents, reach: int
) -> tuple[Cloud, _Trail]:
    """The conditional filter: the last cloud, and how it came about."""
    num = len(cloud.log_weight)

    def step(cloud: Cloud, inputs: tuple) -> tuple[Cloud, _Trail]:
        t, x, at, key = inputs
        first, second, third = jax.random.split(key, 3)
        index = multinomial(first, cloud.log_weight, num)
        own = _ancestor(body, cloud, path, t, second, reach)
        index = index.at[-1].set(own.astype(index.dtype))
        even = jnp.broadcast_to(log_mean(cloud.log_weight), cloud.log_weight.shape)
        ready = chosen(body, cloud, index)._replace(log_weight=even)
        pinned = {k: v[t] for k, v in path.items()}
        moved = advanced(body, plan, at, x, third, ready, pinned)
        return moved._replace(latents={}), _Trail(moved.latents, index)

    keys = jax.random.split(key, body.length)
    inputs: Any = (jnp.arange(body.length), body.xs, plan.at_steps, keys)
    return lax.scan(step, cloud._replace(latents={}), inputs)


def _ancestor(body: Body, cloud: Cloud, path: Latents, t: Array, key: Array, reach: int) -> Array:
    """For the given path from step t on, a particle that it may come from, (S,)."""
    xs, exists = inputs_after(body, t - 1, reach)
    index = jnp.minimum(t + jnp.arange(reach), body.length - 1)
    future = Future({k: v[index] for k, v in path.items()}, xs, exists)
    ahead = jax.vmap(
        lambda carry: log_ahead_of(body, carry, future), axis_size=len(cloud.log_ahead)
    )
    logits = ahead(cloud.carry) + cloud.log_weight - cloud.log_ahead
    return jax.random.categorical(key, logits, axis=0)


def _traced(body: Body, trail: _Trail, index: Array) -> tuple[Array, Latents]:
    """Follow ancestors back: the index (1, S) at the entry, and latents (1, T, ...)."""

    def step(index: Array, trail: _Trail) -> tuple[Array, Latents]:
        here = latents_of(body, trail.latents, index)
        return jnp.take_along_axis(trail.ancestors, index, 0), here

    start, steps = lax.scan(step, index, trail, reverse=True)
    return start, {k: jnp.moveaxis(v, 0, 1) for k, v in steps.items()}
