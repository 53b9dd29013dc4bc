"""Paths drawn backwards from a filter's history, and how far to look ahead for them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.errors import ModelError
from emprob.particle.body import Body, Latents
from emprob.particle.cloud import Cloud, latents_of
from emprob.particle.filter import History
from emprob.particle.layout import take_sites
from emprob.particle.resampling import systematic

UNROLLED = 4  # steps ahead that are written out


class Drawn(NamedTuple):
    """Paths of the latents.

    Attributes:
        entry: latents outside the scan, (M, ...).
        steps: latents of the scan, (M, T, ...).
        distinct: (T,), how many different particles of each step the paths go through, of the
            worst series.
    """

    entry: Latents
    steps: Latents
    distinct: Array


class Future(NamedTuple):
    """The latents of the next L steps of M paths, (L, M, ...), and which steps there are, (L,)."""

    latents: Latents
    xs: Any
    exists: Array


def reach_of(body: Body, horizon: int | None) -> int:
    """Steps that a backward draw has to look ahead.

    Raises:
        ModelError: the carry never forgets, and no horizon is set.
    """
    if body.reach is not None:
        return min(body.reach, body.length)
    if horizon is None:
        raise ModelError(
            "backward simulation: the scan's carry is a function of all latents so far, so every "
            "step ahead counts. Carry the state itself (centred: z_t ~ Normal(f(z_{t-1}), q)), or "
            "set horizon= to the number of steps to look ahead."
        )
    return min(horizon, body.length)


def log_ahead_of(body: Body, carry: Any, future: Future) -> Array:
    """Log-density of a path's next steps from one carry, by series (S,).

    Args:
        body: of the program.
        carry: of one particle.
        future: of one path, (L, ...).
    """

    def step(state: tuple, inputs: tuple) -> tuple[tuple, None]:
        carry, total = state
        latents, x, exists = inputs
        found = body.step.weigh(carry, x, latents)
        total = total + jnp.where(exists, found.own + found.observed, 0.0)
        return (found.carry, total), None

    zero = jnp.zeros(body.layout.num_series)
    steps = len(future.exists)
    (_, total), _ = lax.scan(step, (carry, zero), tuple(future), unroll=min(steps, UNROLLED))
    return total


def inputs_after(body: Body, t: Array, reach: int) -> tuple[Any, Array]:
    """Inputs of the steps t + 1, ..., t + L, and which of them there are."""
    steps = t + 1 + jnp.arange(reach)
    index = jnp.minimum(steps, body.length - 1)
    return jax.tree.map(lambda v: v[index], body.xs), steps < body.length


def draw_paths(body: Body, history: History, key: Array, num: int, reach: int) -> Drawn:
    """Draw whole paths of the latents from the last step to the first.

    Source: Godsill, Doucet and West (2004), Journal of the American Statistical Association 99,
    algorithm 1, with as many steps ahead as the carry remembers.
    """
    first, second, third = jax.random.split(key, 3)
    last = jax.tree.map(lambda v: v[-1], history.clouds)
    index = systematic(first, last.log_weight, num)
    final = latents_of(body, last.latents, index)
    ahead = {k: jnp.broadcast_to(v, (reach, *v.shape)) for k, v in final.items()}

    def step(ahead: Latents, inputs: tuple) -> tuple[Latents, Any]:
        t, cloud, key = inputs
        index = _backwards(body, cloud, ahead, t, key, reach)
        here = latents_of(body, cloud.latents, index)
        ahead = {k: jnp.concatenate([here[k][None], v[:-1]]) for k, v in ahead.items()}
        return ahead, (here, index)

    times = jnp.arange(body.length - 1)
    clouds = jax.tree.map(lambda v: v[:-1], history.clouds)
    keys = jax.random.split(second, body.length - 1)
    ahead, (rest, indices) = lax.scan(step, ahead, (times, clouds, keys), reverse=True)
    steps = {k: jnp.moveaxis(jnp.concatenate([rest[k], v[None]]), 0, 1) for k, v in final.items()}
    entry: Latents = {}
    if history.entry.latents:
        start = _backwards(body, history.entry, ahead, jnp.array(-1), third, reach)
        entry = take_sites(history.entry.latents, body.layout.entry, start)
    return Drawn(entry, steps, _distinct(jnp.concatenate([indices, index[None]])))


def _backwards(body: Body, cloud: Cloud, ahead: Latents, t: Array, key: Array, reach: int) -> Array:
    """For each path, one of the particles of a step, (M, S)."""
    xs, exists = inputs_after(body, t, reach)

    def of_path(latents: Latents) -> Array:
        future = Future(latents, xs, exists)
        return jax.vmap(lambda carry: log_ahead_of(body, carry, future))(cloud.carry)

    scores = jax.vmap(of_path, in_axes=1)(ahead)  # (M, P, S)
    logits = scores + cloud.log_weight - cloud.log_ahead
    return jax.random.categorical(key, logits, axis=1)


def _distinct(index: Array) -> Array:
    """(T, M, S) -> (T,), different indices of the worst series."""
    ordered = jnp.sort(index, 1)
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1).min(1)
