"""What a Markov chain on the latents has to leave invariant: potentials, lane by lane.

A lane is one independent chain on a vector of coordinates. Series that are independent given the
parameters are lanes of their own, so that each has its own trajectory length and step size. Where
the latents have a Gaussian around their mode, the coordinates are those in which it is standard.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import eval_jaxpr  # pyright: ignore
from jax.custom_batching import custom_vmap
from numpyro.distributions import biject_to

from emprob.estep.conjugate import Conjugate
from emprob.estep.unsolved import Unsolved
from emprob.integral.expectation import problem
from emprob.integral.integral import log_jacobian, values_of
from emprob.model import LatentModel
from emprob.simulation.draws import log_joint
from emprob.simulation.gaussian import Near, coloured, near_fixed, whitened
from emprob.types import Params


@dataclass(frozen=True)
class Target:
    """A density on lanes.

    Attributes:
        log_density: (C, L, P) coordinates of C chains of L lanes -> (C, L).
        values: (C, L, P) -> latents by site, (C, ...).
        coordinates: the inverse, the latents' own coordinates in between (see `own`).
        start: (L, P), somewhere in the bulk.
    """

    log_density: Callable[[Array], Array]
    values: Callable[[Array], dict[str, Array]]
    coordinates: Callable[[Any], Array]
    own: Callable[[Array], Any]
    start: Array


def targets(model: LatentModel, params: Params) -> list[Target]:
    """One target for each group of latents, or a single one for all where they hang together.

    Args:
        model: see `plain`.
        params: constrained space.
    """
    groups = model.structure.integrals
    if any(isinstance(g.rule, Unsolved) or g.branches for g in groups):
        return [joint_target(model, params)]
    found = []
    for i, g in enumerate(groups):
        if isinstance(g.rule, Conjugate):
            found.append(_plain(model, params, i))
        else:
            found.append(_whitened(model, params, i))
    return found


def _whitened(model: LatentModel, params: Params, index: int) -> Target:
    """Series by series, in the coordinates in which the Gaussian around the mode is standard."""
    p = problem(model, params, index)
    g = near_fixed(p)
    _, series, steps, width = p.integral.shape
    one = lambda e: coloured(g, e.reshape(1, series, steps, width))  # noqa: E731

    def density(e: Array) -> Array:
        z = one(e)
        padding = 0.5 * ((1.0 - p.real) * z**2).sum((2, 3))
        return (p.fixed(z) - padding)[0] - 0.5 * _unused(g, e)

    def values(e: Array) -> dict[str, Array]:
        return values_of(p.integral, model.data.integrals[index], one(e)[0])

    return Target(
        jax.vmap(density),
        jax.vmap(values),
        jax.vmap(lambda z: whitened(g, z).reshape(series, -1)),
        jax.vmap(one),
        jnp.zeros((series, steps * width), g.centre.dtype),
    )


def _unused(g: Near, e: Array) -> Array:
    """Squares of the noise that moves nothing, (L,): a standard normal, so that it stays put."""
    rest = (1.0 - g.real[0]).reshape(e.shape)
    return (rest * e**2).sum(-1)


def joint_target(model: LatentModel, params: Params) -> Target:
    """All latents as one lane, the discrete ones summed out."""
    groups, data = model.structure.integrals, model.data.integrals
    params = jax.lax.stop_gradient(dict(params))
    sizes = [g.block.num_series * g.block.num_positions * g.block.width for g in groups]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]

    def split(u: Array) -> list[Array]:
        parts = jnp.split(u, ends, -1)
        return [x.reshape(g.block.shape) for g, x in zip(groups, parts, strict=True)]

    def values(u: Array) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for g, d, z in zip(groups, data, split(u), strict=True):
            found |= values_of(g, d, z)
        return found

    def density(u: Array) -> Array:
        u = u[0]
        total = log_joint(model, params, values(u))
        for g, d, z in zip(groups, data, split(u), strict=True):
            total = total + log_jacobian(g, d, z).sum() - 0.5 * ((1.0 - d.real) * z**2).sum()
        return total[None]

    start = jnp.concatenate([d.centre.ravel() for d in data])[None]
    same = lambda u: u  # noqa: E731
    return Target(jax.vmap(density), jax.vmap(lambda u: values(u[0])), same, same, start)


def _plain(model: LatentModel, params: Params, index: int) -> Target:
    """A conjugate group: its coordinates are its values, so their logarithm or log-odds is used."""
    p = problem(model, params, index)
    integral, data = p.integral, model.data.integrals[index]
    kernel = integral.rule.kernel
    assert kernel is not None
    transform = biject_to(kernel.support)
    series = integral.block.num_series

    def own(u: Array) -> Array:
        return transform(u)[None, :, None, :]

    def density(u: Array) -> Array:
        z = transform(u)
        slope = jnp.asarray(transform.log_abs_det_jacobian(u, z)).reshape(series, -1).sum(-1)
        return p.fixed(z[None, :, None, :])[0] + slope

    middle = transform.inv(jnp.asarray(kernel.atoms(integral.block.width).mean(0)))
    start = jnp.broadcast_to(middle, (series, middle.shape[-1]))
    return Target(
        jax.vmap(density),
        jax.vmap(lambda u: values_of(integral, data, own(u)[0])),
        jax.vmap(lambda z: transform.inv(z[0, :, 0, :])),
        jax.vmap(own),
        start,
    )


def potential_of(target: Target, num_chains: int) -> Callable[[Array], Array]:
    """Minus the log-density of one lane (P,), to be called under `vmap` over C * L lanes.

    The program evaluates all lanes at once; `custom_vmap` hands it the whole batch.
    """
    lanes = target.start.shape[0]

    def total(u: Array) -> tuple[Array, Array]:
        shaped = u.reshape(num_chains, lanes, -1)
        value, pull = jax.vjp(target.log_density, shaped)
        slope = pull(jnp.ones_like(value))[0]
        return -value.reshape(-1), -slope.reshape(u.shape)

    # what the density closes over becomes an argument, to go through the sampler's loops
    closed = jax.make_jaxpr(total)(jnp.tile(target.start, (num_chains, 1)))

    @custom_vmap
    def both(u: Array, consts: list) -> tuple[Array, Array]:
        return jnp.zeros((), u.dtype), jnp.zeros_like(u)  # only its shapes count

    @both.def_vmap
    def _(size: int, batched: list, u: Array, consts: list):
        return tuple(eval_jaxpr(closed.jaxpr, consts, u)), (True, True)

    @jax.custom_vjp
    def potential(u: Array, consts: list) -> Array:
        return both(u, consts)[0]

    def forward(u: Array, consts: list) -> tuple[Array, tuple]:
        value, slope = both(u, consts)
        return value, (slope, consts)

    def backward(kept: tuple, ct: Array) -> tuple:
        slope, consts = kept
        return ct * slope, [None for _ in consts]

    potential.defvjp(forward, backward)
    return lambda u: potential(u, closed.consts)
