"""Integrals of a log-density around its mode: exact for Gaussians, Laplace, adaptive quadrature.

Everything is done for all branches and series at once, on arrays (B, S, T, D). The mode is found
by damped Newton steps with derivatives cut off; two chord steps with the same factor, which are
differentiable, then carry the mode's first and second derivatives in the parameters (each one
gains an order), so that scores, standard errors and NUTS see the exact derivatives of the integral.

Source: Pinheiro & Bates (1995) for the adaptive rule; Kristensen et al. (2016, TMB) for Laplace.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from emprob.choice import choose
from emprob.integral.integral import Field
from emprob.partition import gaussian, gaussian_chain, gaussian_paths

LOG_2PI = float(np.log(2 * np.pi))
MAX_ITERATIONS = 300  # where a density has walls, such as a penalty, steps are short
TOLERANCE = 1e-18  # of the squared Newton decrement: quadratic convergence has passed 1e-9


class Precision(NamedTuple):
    """Minus the Hessian: diagonal blocks (B, S, T, D, D) and those below, (B, S, T - 1, D, D)."""

    diag: Array
    below: Array


class Mode(NamedTuple):
    """Where a log-density has its maximum.

    Attributes:
        z: (B, S, T, D).
        decrement: (B, S), squared distance to the maximum in posterior standard deviations.
        precision: of the last look, where the last step begins.
        value: (B, S), of the last look.
    """

    z: Array
    decrement: Array
    precision: Precision
    value: Array


def gradient(f: Field, z: Array) -> Array:
    """(B, S, T, D)."""
    return jax.grad(lambda x: f(x).sum())(z)


def value_and_gradient(f: Field, z: Array) -> tuple[Array, Array]:
    """(B, S) and (B, S, T, D)."""
    value, pull = jax.vjp(f, z)
    return value, pull(jnp.ones_like(value))[0]


def precision(f: Field, z: Array, real: Array) -> Precision:
    """Minus the Hessian of every series; one for each coordinate that is not real."""
    return _filled(plain_precision(f, z, real), real)


def _filled(p: Precision, real: Array) -> Precision:
    diag = p.diag * real[..., None] + jnp.eye(real.shape[-1]) * (1.0 - real)[..., None]
    return Precision(diag, p.below)


def plain_precision(f: Field, z: Array, real: Array) -> Precision:
    """Minus the Hessian of every series."""
    return _columns(jax.linearize(lambda x: gradient(f, x), z)[1], z, real)


def _columns(push: Callable[[Array], Array], z: Array, real: Array) -> Precision:
    """Minus a Hessian from its products with vectors, three positions apart at a time."""
    steps, width = z.shape[2:]
    colours = min(steps, 3)
    number = jnp.arange(steps) % colours
    directions = jnp.eye(colours)[:, number][:, None, :, None] * jnp.eye(width)[None, :, None, :]
    directions = directions.reshape(-1, 1, 1, steps, width) * real
    columns = jax.vmap(lambda v: push(jnp.broadcast_to(v, z.shape)))(directions)
    columns = -columns.reshape(colours, width, *z.shape)  # (colour, column, B, S, T, row)
    diag = jnp.moveaxis(_chosen(columns, number), 0, -1)
    if steps == 1:
        return Precision(diag, jnp.zeros((*z.shape[:2], 0, width, width), z.dtype))
    after = columns[..., 1:, :]
    return Precision(diag, jnp.moveaxis(_chosen(after, number[:-1]), 0, -1))


def _chosen(columns: Array, number: Array) -> Array:
    """(colour, column, B, S, T, row) -> (column, B, S, T, row), each position's own colour."""
    colours = columns.shape[0]
    pick = (jnp.arange(colours)[:, None] == number)[:, None, None, None, :, None]
    return jnp.where(pick, columns, 0.0).sum(0)


def _twice(f):
    """Vectorise over branches and series."""
    return jax.vmap(jax.vmap(f))


def solve(p: Precision, g: Array) -> tuple[Array, Array]:
    """J^-1 g (B, S, T, D), and whether J is positive definite (B, S)."""
    if g.shape[2] == 1:
        one = gaussian.dense(p.diag[:, :, 0], g[:, :, 0])
        return one.mean[:, :, None], one.positive_definite
    moments = _twice(gaussian_chain.smooth)(p.diag, p.below, g)
    return moments.means, moments.positive_definite


def log_gaussian(p: Precision, g: Array, real: Array) -> Array:
    """log of the integral of exp(-x'Jx/2 + g'x) over what is real (B, S); NaN if it diverges."""
    if g.shape[2] == 1:
        total = gaussian.dense(p.diag[:, :, 0], g[:, :, 0]).log_integral
    else:
        total = _twice(gaussian_chain.log_integral)(p.diag, p.below, g)
    return total - 0.5 * LOG_2PI * (1.0 - real).sum((-2, -1))


class _Look(NamedTuple):
    """A log-density at a point: value (B, S), gradient (B, S, T, D) and precision."""

    value: Array
    gradient: Array
    precision: Precision


def _look(f: Field, z: Array, real: Array) -> _Look:
    """All three from one pass."""
    (value, g), push = jax.linearize(partial(value_and_gradient, f), z)
    return _Look(value, g * real, _filled(_columns(lambda v: push(v)[1], z, real), real))


class _Move(NamedTuple):
    """A Newton step (B, S, T, D), whether it is one, and its squared length in sds (B, S)."""

    move: Array
    good: Array
    decrement: Array


def _newton(at: _Look, damping: Array) -> _Move:
    p = at.precision
    size = jnp.abs(jnp.diagonal(p.diag, axis1=-2, axis2=-1)) + 1e-8
    ridge = damping[..., None, None] * size
    damped = Precision(p.diag + ridge[..., None] * jnp.eye(size.shape[-1]), p.below)
    move, good = solve(damped, at.gradient)
    move = jnp.where(good[..., None, None] & jnp.isfinite(move), move, 0.0)
    decrement = (move * at.gradient).sum((2, 3)) * (1.0 + damping)
    return _Move(move, good, jnp.where(good, decrement, jnp.inf))


def _unseen(z: Array) -> _Look:
    """A point that was not looked at, worse than any other."""
    batch, series, steps, width = z.shape
    diag = jnp.zeros((batch, series, steps, width, width), z.dtype)
    below = jnp.zeros((batch, series, steps - 1, width, width), z.dtype)
    return _Look(
        jnp.full(z.shape[:2], -jnp.inf, z.dtype), jnp.zeros_like(z), Precision(diag, below)
    )


def _stay(z: Array) -> _Move:
    """The step to where one is: so the first look is one of the loop's, and is compiled once."""
    far = jnp.full(z.shape[:2], jnp.inf, z.dtype)
    return _Move(jnp.zeros_like(z), jnp.isinf(far), far)


def find_mode(f: Field, z: Array, real: Array, after: int = 0) -> Mode:
    """Damped Newton ascent of every branch and series by itself.

    Args:
        f: log-density.
        z: (B, S, T, D), where it begins.
        real: (B, S, T, D).
        after: looks once the maximum is near: with one, the last look is at the maximum itself.
    """

    def going(carry):
        i, _, _, damping, planned, left = carry
        far = (planned.decrement > TOLERANCE) | (left > 0)
        return (i < MAX_ITERATIONS) & jnp.any(far & (damping <= 1e12))

    def step(carry):
        i, z, at, damping, planned, left = carry
        new = z + planned.move
        ahead = _look(f, new, real)
        slack = 1e-12 * (1.0 + jnp.abs(at.value))
        accepted = planned.good & (ahead.value >= at.value - slack)
        left = left - (accepted & (planned.decrement <= TOLERANCE))
        z, at = choose(accepted, (new, ahead), (z, at))
        less = jnp.where(damping > 1e-6, 0.1 * damping, 0.0)
        damping = jnp.where(accepted, less, jnp.maximum(10 * damping, 1e-3))
        return i + 1, z, at, damping, _newton(at, damping), left

    damping, left = jnp.zeros(z.shape[:2], z.dtype), jnp.full(z.shape[:2], after)
    carry = (jnp.full((), -1), z, _unseen(z), damping, _stay(z), left)
    _, z, at, _, last, _ = lax.while_loop(going, step, carry)
    move = choose(last.decrement <= TOLERANCE, last.move, jnp.zeros_like(z))  # else it is not tried
    return Mode(z + move, last.decrement, at.precision, at.value)


class Around(NamedTuple):
    """A log-density near its mode: value (B, S), point, gradient and precision there."""

    value: Array
    z: Array
    gradient: Array
    precision: Precision


def gaussian_around(f: Field, fixed: Field, centre: Array, real: Array) -> Around:
    """At the mode of a quadratic, found in one Newton step; differentiable in the parameters.

    Args:
        f: the log-density.
        fixed: the same with the parameters' derivatives cut off.
        centre: (B, S, T, D), anywhere.
        real: (B, S, T, D).
    """
    p = precision(f, centre, real)
    move, _ = solve(lax.stop_gradient(p), gradient(fixed, centre) * real)
    z = lax.stop_gradient(centre + move)
    value, slope = value_and_gradient(f, z)
    return Around(value, z, slope * real, p)


def laplace_around(f: Field, fixed: Field, centre: Array, real: Array) -> Around:
    """At the mode, with its derivatives up to the second order in the parameters."""
    mode = lax.stop_gradient(find_mode(fixed, centre, real))

    def chord(_, z: Array) -> Array:
        return z + solve(mode.precision, gradient(f, z) * real)[0]

    z = lax.fori_loop(0, 2, chord, mode.z)
    return Around(f(z), z, jnp.zeros_like(z), precision(f, z, real))


def evidence(around: Around, real: Array) -> Array:
    """Laplace's approximation of the log-integral of every series (B, S); exact for a quadratic."""
    return around.value + log_gaussian(around.precision, around.gradient, real)


def mode_of(around: Around) -> Array:
    """The mode (B, S, T, D)."""
    return around.z + solve(around.precision, around.gradient)[0]


def gaussian_atoms(around: Around) -> Array:
    """Equally weighted atoms (A, B, S, T, D) with the moments that a quadratic asks for."""
    z, g, (diag, below) = around.z, around.gradient, around.precision
    if z.shape[2] > 1:
        moments = _twice(gaussian_chain.smooth)(diag, below, g)
        paths = _twice(gaussian_paths.paths)
        atoms = paths(z + moments.means, moments.covariances, moments.cross)
        return jnp.moveaxis(atoms, 2, 0)
    one = gaussian.dense(diag[:, :, 0], g[:, :, 0])
    moves = jnp.moveaxis(one.root, -1, 0) * np.sqrt(z.shape[-1])
    centre = z[:, :, 0] + one.mean
    return jnp.concatenate([centre + moves, centre - moves])[:, :, :, None]


@lru_cache(maxsize=32)
def nodes(order: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Hermite nodes (A, D) and log-weights (A,) for a standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(order)
    grid = np.stack(np.meshgrid(*[x] * width, indexing="ij"), -1).reshape(-1, width)
    logs = np.log(w / w.sum())
    weights = np.stack(np.meshgrid(*[logs] * width, indexing="ij"), -1).reshape(-1, width)
    return grid, weights.sum(-1)


def node_values(around: Around, order: int) -> tuple[Array, Array]:
    """Adaptive nodes (A, B, S, 1, D), and what to add to the log-density at each, (A, B, S)."""
    grid, logs = nodes(order, around.z.shape[-1])
    near = gaussian.dense(around.precision.diag[:, :, 0], around.gradient[:, :, 0])
    spread = jnp.einsum("bsij,aj->absi", near.root, jnp.asarray(grid, near.root.dtype))
    half = 0.5 * (grid**2).sum(-1) + logs  # log_integral is the volume: -log|J|/2 + D log(2 pi)/2
    volume = near.log_integral - 0.5 * (near.mean * around.gradient[:, :, 0]).sum(-1)
    extra = jnp.asarray(half)[:, None, None] + volume
    return around.z[None] + spread[:, :, :, None, :], extra


def adaptive(f: Field, around: Around, order: int) -> tuple[Array, Array, Array]:
    """Log-integral (B, S), nodes (A, B, S, 1, D) and their posterior weights (A, B, S)."""
    z, extra = node_values(around, order)
    logs = lax.map(f, z) if z.size > 10**7 else jax.vmap(f)(z)
    logs = logs + extra
    total = jax.nn.logsumexp(logs, 0)
    return total, z, jnp.exp(logs - total)
