"""The Gaussian around the mode of the latents, as a proposal and as coordinates to sample in."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.integral import quadrature
from emprob.integral.expectation import Problem
from emprob.integral.quadrature import Precision
from emprob.partition import gaussian_chain


class Near(NamedTuple):
    """A Gaussian.

    Attributes:
        mode: (B, S, T, D).
        precision: J.
        real: which coordinates are real, (B, S, T, D).
        log_volume: log of the integral of exp(-x'Jx/2) over what is real, (B, S).
    """

    mode: Array
    precision: Precision
    real: Array
    log_volume: Array


def near(p: Problem, centre: Array | None = None) -> Near:
    """Around the mode of an integral, as a function of the parameters."""
    find = quadrature.gaussian_around if p.integral.quadratic else quadrature.laplace_around
    start = p.centre if centre is None else centre
    around = find(p.f, p.fixed, start, p.real)
    move = quadrature.solve(around.precision, around.gradient * p.real)[0] * p.real
    volume = quadrature.log_gaussian(around.precision, jnp.zeros_like(around.z), p.real)
    return Near(around.z + move, around.precision, p.real, volume)


def near_fixed(p: Problem, centre: Array | None = None) -> Near:
    """The same, derivatives in the parameters cut off."""
    return lax.stop_gradient(near(p._replace(f=p.fixed), centre))


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


def mirrored(g: Near, f: Callable[[Array], Array], noise: Array) -> tuple[Array, Array]:
    """A draw and its mirror image through the mode, and log(f / Gaussian) at both.

    Args:
        g: the Gaussian.
        f: log-density of values (B, S, T, D), (B, S).
        noise: standard normal, (B, S, T, D).

    Returns:
        (2, B, S, T, D) and (2, B, S).

    Source: Durbin and Koopman (1997), Biometrika 84(3), for the mirror images.
    """
    move = coloured(g, noise) - g.mode
    both = jnp.stack([g.mode + move, g.mode - move])
    values = jnp.stack([f(both[0]), f(both[1])])
    return both, values + g.log_volume + 0.5 * ((noise * g.real) ** 2).sum((2, 3))
