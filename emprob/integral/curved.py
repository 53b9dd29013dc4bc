"""Laplace's evidence of one wide block, with derivatives from gradients of the program alone.

The evidence has a Hessian in it, so its gradient is a third derivative of the program and its
Hessian a fourth: where a dozen latents meet in one formula, many minutes of compiling. But the
derivative of log |J| is the trace of J^-1 dJ, the sum of second derivatives along the columns of a
root of the covariance; and those are differences of the program's first gradient at points a few
hundredths of a standard deviation apart. With five points to a line they have eight digits or more.
The Hessian of the evidence is a difference of that gradient, with six.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from emprob.integral.hoist import Hoisted
from emprob.integral.quadrature import Precision, find_mode, gradient, log_gaussian, solve
from emprob.partition import gaussian

APART = 0.03  # points of a line, in posterior standard deviations
PLACES = APART * np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
FIRST = np.array([1.0, -8.0, 0.0, 8.0, -1.0]) / (12 * APART)  # derivative from values there
SECOND = np.array([-1.0, 16.0, -30.0, 16.0, -1.0]) / (12 * APART**2)
NEAR = 1e-4  # step along a direction of the parameters, relative to the values of the log-density
MOVED = 1e-3  # and, at most, of the mode, in posterior standard deviations

Values = list[Array]


class _Seen(NamedTuple):
    """Evidence, its gradient in the values, the mode (1, 1, 1, D) and the precision there."""

    evidence: Array
    slope: Values
    mode: Array
    precision: Precision


def evidence_of_one(f: Hoisted, centre: Array, real: Array) -> Array:
    """Laplace's log-integral (1, 1) of one block, differentiable twice in the values of `f`.

    Args:
        f: log-density of (1, 1, 1, D).
        centre: (1, 1, 1, D), where the search for the mode begins.
        real: (1, 1, 1, D).

    Source: Kristensen et al. (2016), Journal of Statistical Software 70(5), for the gradient.
    """
    smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in f.values]
    floats = [x for x, s in zip(f.values, smooth, strict=True) if s]

    def density(v: Values) -> Hoisted:
        left = iter(v)
        pairs = zip(f.values, smooth, strict=True)
        return f._replace(values=[next(left) if s else x for x, s in pairs])

    def look(v: Values, start: Array) -> _Seen:
        return lax.stop_gradient(_look(density, v, start, real))

    def pull(v: Values, at: _Seen) -> Array:
        return gradient(density(v), at.mode) * real

    return _twice_differentiable(look, pull, floats, centre).reshape(1, 1)


def _look(density: Callable[[Values], Hoisted], v: Values, start: Array, real: Array) -> _Seen:
    """The evidence and its gradient.

    The one is exact, the other

        d/dv [f + 1/2 sum_i l_i' f'' l_i + d' f'],   d = J^-1 d/dz of the sum,

    with l_i the columns of a root of J^-1; f' and f'' along a line by differences of five points.
    """
    mode = find_mode(density(lax.stop_gradient(v)), start, real, after=1)
    evidence = mode.value + log_gaussian(mode.precision, jnp.zeros_like(start), real)

    def weighted(v: Values, z: Array, moves: Array, weights: Array) -> Array:
        return (weights * jax.vmap(lambda x: density(v)(z + x).sum())(moves)).sum()

    root = gaussian.dense(mode.precision.diag[0, 0, 0], jnp.zeros_like(start[0, 0, 0])).root
    lines = jnp.asarray(PLACES, start.dtype)[:, None, None] * root.T
    shape = (-1, *start.shape)
    spread = jnp.repeat(jnp.asarray(SECOND, start.dtype) / 2, len(root))
    plain = jnp.zeros_like(lines[:1, 0])  # the log-density itself, at the mode
    moves = jnp.concatenate([plain, lines.reshape(-1, len(root))]).reshape(shape)
    weights = jnp.concatenate([jnp.ones_like(spread[:1]), spread])
    own, tilt = jax.grad(weighted, (0, 1))(v, mode.z, moves, weights)
    drift = solve(mode.precision, tilt * real)[0]  # of the mode, per unit of a force on it
    size = jnp.sqrt(jnp.maximum((drift * tilt).sum(), 1e-300))
    along = jnp.asarray(PLACES, start.dtype)[:, None] * (drift / size).ravel()
    rates = jnp.asarray(FIRST, start.dtype) * size
    forced = jax.grad(weighted)(v, mode.z, along.reshape(shape), rates)
    return _Seen(evidence.sum(), jax.tree.map(jnp.add, own, forced), mode.z, mode.precision)


def _twice_differentiable(look: Callable, pull: Callable, floats: Values, centre: Array) -> Array:
    """The evidence, whose gradient is `look`'s, and whose Hessian differences of that."""

    @jax.custom_jvp
    def both(v: Values) -> _Seen:
        return look(v, centre)

    def both_moved(primals: tuple, tangents: tuple) -> tuple[_Seen, _Seen]:
        (v,), (t,) = primals, tangents
        at, move = both(v), [jnp.zeros_like(x) if _rests(d) else d for x, d in zip(v, t)]
        step = _step(v, move, at, jax.jvp(lambda x: pull(x, at), (v,), (move,))[1])

        def end(sign: Array) -> Values:
            return look([x + sign * step * d for x, d in zip(v, move)], at.mode).slope

        ends = lax.map(end, jnp.array([1.0, -1.0], at.evidence.dtype))
        change = [(e[0] - e[1]) / (2 * step) for e in ends]
        still = jax.tree.map(jnp.zeros_like, at)
        return at, still._replace(evidence=_inner(at.slope, t), slope=change)

    @jax.custom_jvp
    def value(v: Values) -> Array:
        return look(v, centre).evidence

    def value_moved(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        at = both(primals[0])
        return at.evidence, _inner(at.slope, tangents[0])

    both.defjvp(both_moved, symbolic_zeros=True)
    value.defjvp(value_moved, symbolic_zeros=True)
    return value(floats)


def _rests(tangent: Any) -> bool:
    """Whether a value does not move: data, which may be missing and have no slope."""
    return isinstance(tangent, SymbolicZero)


def _inner(slope: Values, move: list[Any]) -> Array:
    """The product of two lists."""
    parts = [(s * m).sum() for s, m in zip(slope, move, strict=True) if not _rests(m)]
    return sum(parts, jnp.zeros(()))


def _step(v: Values, t: Values, at: _Seen, pull: Array) -> Array:
    """How far to go along a direction so that little changes: no value, and not the mode."""
    shares = [_size(d) / jnp.where((size := _size(x)) > 0, size, 1.0) for x, d in zip(v, t)]
    largest = jnp.stack(shares).max()
    moved = jnp.sqrt(jnp.maximum((solve(at.precision, pull)[0] * pull).sum(), 0.0))
    worst = jnp.maximum(largest / NEAR, moved / MOVED)
    return jnp.where((worst > 0) & jnp.isfinite(worst), 1.0 / worst, 1.0)


def _size(x: Array) -> Array:
    """The largest finite absolute value."""
    return jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0).max(initial=0.0)
