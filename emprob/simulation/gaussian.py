"""Gaussians near a density of the latents, as a proposal and as coordinates to sample in.

One is around the mode. A skewed density has its mean elsewhere, and the one around the mean is the
better proposal: of 2780 days of stochastic volatility the variance of the weights is a twentieth.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.choice import choose
from emprob.integral import quadrature
from emprob.integral.expectation import Problem
from emprob.integral.quadrature import Around, Precision
from emprob.partition import gaussian_chain

TO_THE_MEAN = 3  # steps from the mode: each gains a digit
SETTLED = 0.1  # squared length of the last, in standard deviations


class Near(NamedTuple):
    """A Gaussian.

    Attributes:
        centre: (B, S, T, D), its mean.
        precision: J.
        real: which coordinates are real, (B, S, T, D).
        log_volume: log of the integral of exp(-x'Jx/2) over what is real, (B, S).
    """

    centre: Array
    precision: Precision
    real: Array
    log_volume: Array


def near(p: Problem, centre: Array | None = None) -> Near:
    """Around the mode of an integral, as a function of the parameters."""
    find = quadrature.gaussian_around if p.integral.quadratic else quadrature.laplace_around
    start = p.centre if centre is None else centre
    around = find(p.f, p.fixed, start, p.real)
    move = quadrature.solve(around.precision, around.gradient * p.real)[0] * p.real
    return _gaussian(around.z + move, around.precision, p.real)


def near_fixed(p: Problem, centre: Array | None = None) -> Near:
    """The same, derivatives in the parameters cut off."""
    return lax.stop_gradient(near(p._replace(f=p.fixed), centre))


def _gaussian(centre: Array, precision: Precision, real: Array) -> Near:
    volume = quadrature.log_gaussian(precision, jnp.zeros_like(centre), real)
    return Near(centre, precision, real, volume)


def around_mean(p: Problem) -> Near:
    """The Gaussian around about the mean of the density, as a function of the parameters.

    Its centre is where the gradient of the log-density is zero in the mean over the Gaussian, which
    has the curvature at its centre; means are over a few atoms with the Gaussian's moments. A
    series in which the steps there do not settle keeps the Gaussian around its mode. With the
    parameters the centre moves as the mode does: weights make up for any difference, and so do
    their derivatives.

    Source: Opper and Archambeau (2009), Neural Computation 21(3), for the mean gradient.
    """
    g = near(p)
    if p.integral.quadratic:
        return g
    away = lax.stop_gradient(_way_to_mean(p, g))
    z = g.centre + away
    return _gaussian(z, quadrature.precision(p.f, z, p.real), p.real)


def around_mean_fixed(p: Problem) -> Near:
    """The same, derivatives in the parameters cut off."""
    return lax.stop_gradient(around_mean(p._replace(f=p.fixed)))


def _way_to_mean(p: Problem, g: Near) -> Array:
    """From the mode, (B, S, T, D)."""

    def step(z: Array, _: None) -> tuple[Array, Array]:
        curve = quadrature.precision(p.fixed, z, p.real)
        atoms = quadrature.gaussian_atoms(Around(g.log_volume, z, jnp.zeros_like(z), curve))
        slopes = lax.map(lambda x: quadrature.gradient(p.fixed, x), atoms)
        slope = slopes.mean(0) * p.real
        move, good = quadrature.solve(curve, slope)
        length = (move * slope).sum((2, 3))  # squared, in standard deviations
        return z + move * p.real, jnp.where(good, length, jnp.inf)

    end, lengths = lax.scan(step, g.centre, None, length=TO_THE_MEAN)
    last = quadrature.precision(p.fixed, end, p.real)
    there = _gaussian(end, last, p.real).log_volume
    settled = jnp.isfinite(lengths).all(0) & (lengths[-1] < SETTLED) & jnp.isfinite(there)
    return choose(settled, end - g.centre, jnp.zeros_like(end))


def _twice(f):
    return jax.vmap(jax.vmap(f))


def coloured(g: Near, noise: Array) -> Array:
    """Centre plus root of the covariance times noise (B, S, T, D)."""
    zero = jnp.zeros_like(noise)
    diag, below = g.precision
    return g.centre + _twice(gaussian_chain.draw)(diag, below, zero, noise * g.real) * g.real


def whitened(g: Near, z: Array) -> Array:
    """The noise that `coloured` makes z of: with A its linear map, A' J (z - centre)."""
    move = (z - g.centre) * g.real
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
    """A draw and its mirror image through the centre, and log(f / Gaussian) at both.

    Args:
        g: the Gaussian.
        f: log-density of values (B, S, T, D), (B, S).
        noise: standard normal, (B, S, T, D).

    Returns:
        (2, B, S, T, D) and (2, B, S).

    Source: Durbin and Koopman (1997), Biometrika 84(3), for the mirror images.
    """
    move = coloured(g, noise) - g.centre
    both = jnp.stack([g.centre + move, g.centre - move])
    values = jnp.stack([f(both[0]), f(both[1])])
    return both, values + g.log_volume + 0.5 * ((noise * g.real) ** 2).sum((2, 3))
