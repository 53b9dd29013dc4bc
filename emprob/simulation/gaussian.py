"""The Gaussian around the mode of the latents, as a proposal and as coordinates to sample in."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.integral import quadrature
from emprob.integral.expectation import Problem
from emprob.integral.quadrature import Precision
from emprob.partition import gaussian_chain


class Near(NamedTuple):
    """A Gaussian: mode (B, S, T, D), precision, and which coordinates are real (B, S, T, D)."""

    mode: Array
    precision: Precision
    real: Array


def near(p: Problem, centre: Array | None = None) -> Near:
    """Around the mode of an integral; derivatives in the parameters are cut off."""
    find = quadrature.gaussian_around if p.integral.quadratic else quadrature.laplace_around
    start = p.centre if centre is None else centre
    around = lax.stop_gradient(find(p.fixed, p.fixed, start, p.real))
    move = quadrature.solve(around.precision, around.gradient * p.real)[0] * p.real
    return Near(around.z + move, around.precision, p.real)


def _twice(f):
    return jax.vmap(jax.vmap(f))


def coloured(g: Near, noise: Array) -> Array:
    """Mode plus root of the covariance times noise (B, S, T, D)."""
    zero = jnp.zeros_like(noise)
    diag, below = g.precision
    return g.mode + _twice(gaussian_chain.draw)(diag, below, zero, noise * g.real) * g.real


def whitened(g: Near, z: Array) -> Array:
    """The noise that `coloured` makes z of: with A its linear map, A' J (z - mode)."""
    move = (z - g.mode) * g.real
    _, pull = jax.vjp(lambda e: coloured(g, e), jnp.zeros_like(z))
    return pull(times(g.precision, move))[0]


def times(p: Precision, x: Array) -> Array:
    """J x for vectors (B, S, T, D)."""
    out = jnp.einsum("bstij,bstj->bsti", p.diag, x)
    if x.shape[2] == 1:
        return out
    down = jnp.einsum("bstij,bstj->bsti", p.below, x[:, :, :-1])
    up = jnp.einsum("bstji,bstj->bsti", p.below, x[:, :, 1:])
    return out.at[:, :, 1:].add(down).at[:, :, :-1].add(up)


def log_volume(g: Near) -> Array:
    """log of the integral of exp(-x'Jx/2) over what is real, (B, S)."""
    return quadrature.log_gaussian(g.precision, jnp.zeros_like(g.mode), g.real)
