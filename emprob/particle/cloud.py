"""Particles at one time, and how they move."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.particle.body import Body, Latents, Stage
from emprob.particle.layout import take, take_sites
from emprob.particle.proposal import Plan, Sampler


class Cloud(NamedTuple):
    """Particles after a step; every leaf has them first, (P, ...).

    Attributes:
        carry: of the program's scan.
        latents: of this step, by site.
        memory: of the proposal.
        log_weight: (P, S); never normalised: the log of its mean is the log-evidence so far.
        log_ahead: (P, S), the lookahead in it.
    """

    carry: Any
    latents: Latents
    memory: Any
    log_weight: Array
    log_ahead: Array


def entered(body: Body, plan: Plan, key: Array, num: int, pinned: Latents | None = None) -> Cloud:
    """The cloud before the scan's first step; the last particle at given latents, if any."""
    memory = jax.tree.map(lambda m: jnp.broadcast_to(m, (num, *m.shape)), plan.memory)
    zero = jnp.zeros((num, body.layout.num_series))
    start = Cloud((), {}, memory, zero, zero)
    return _moved(body.entry, plan.entry, plan.at_entry, (), key, start, pinned)


def advanced(
    body: Body, plan: Plan, at: Any, x: Any, key: Array, cloud: Cloud, pinned: Latents | None = None
) -> Cloud:
    """The cloud after a step of the scan."""
    return _moved(body.step, plan.step, at, x, key, cloud, pinned)


def _moved(
    stage: Stage, sampler: Sampler, at: Any, x: Any, key: Array, cloud: Cloud,
    pinned: Latents | None,
) -> Cloud:  # fmt: skip
    num = len(cloud.log_weight)
    keys = jax.random.split(key, num)
    latents = jax.vmap(lambda k, c, m: sampler.draw(at, k, c, x, m))(
        keys, cloud.carry, cloud.memory
    )
    if pinned is not None:
        latents = {k: v.at[-1].set(pinned[k]) for k, v in latents.items()}
    weighed = jax.vmap(lambda c, z: stage.weigh(c, x, z), axis_size=num)(cloud.carry, latents)
    judged = jax.vmap(partial(sampler.judge, at))(latents, weighed, cloud.memory, cloud.log_ahead)
    # a particle whose density is not a number has none
    moved = jnp.where(jnp.isnan(judged.log_weight), -jnp.inf, judged.log_weight)
    log_weight = cloud.log_weight + moved
    return Cloud(weighed.carry, latents, judged.memory, log_weight, judged.log_ahead)


def chosen(body: Body, cloud: Cloud, index: Array) -> Cloud:
    """What the next step needs of the particles of an index (M, S), each series its own."""
    carry, treedef = jax.tree.flatten(cloud.carry)
    carry = [take(v, a, index) for v, a in zip(carry, body.layout.carry, strict=True)]
    own = lambda v: jnp.take_along_axis(  # noqa: E731
        v, index.reshape(index.shape + (1,) * (v.ndim - 2)), 0
    )
    return Cloud(
        treedef.unflatten(carry), {}, jax.tree.map(own, cloud.memory),
        own(cloud.log_weight), own(cloud.log_ahead),
    )  # fmt: skip


def latents_of(body: Body, latents: Latents, index: Array) -> Latents:
    """Latents of a step for an index (M, S)."""
    return take_sites(latents, body.layout.step, index)
