"""The integral of a Gaussian Markov chain, and everything that its elimination gives.

The density is exp(-z'Jz/2 + h'z) over z_0..z_{T-1} in D dimensions each, with a block-tridiagonal
precision J: blocks ``diag[t] = J[t, t]`` and ``below[t] = J[t+1, t]``. One recursion forwards in
time eliminates the steps, one backwards gives the moments. Several series are a vmap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.partition.gaussian import (
    apply,
    cholesky,
    inverse,
    outer,
    product,
    symmetric,
    transposed,
)

SMALL_LOOP = 2  # measured: XLA runs the loop of up to so many dimensions as one piece of code


class _Elimination(NamedTuple):
    """What is left of each step once the earlier ones are integrated out.

    Attributes:
        inverse: of the precision of z_t that is left: cov(z_t | z_{t+1}), (T, D, D).
        pivots: of that precision, (T, D).
        linear: the linear term that is left, (T, D).
        gain: below[t-1] inverse[t-1], zero at t = 0, (T, D, D).
    """

    inverse: Array
    pivots: Array
    linear: Array
    gain: Array


class Moments(NamedTuple):
    """First and second moments of a Gaussian chain.

    Attributes:
        means: (T, D).
        covariances: of z_t, (T, D, D).
        cross: cov(z_t, z_{t+1}), (T - 1, D, D).
        positive_definite: bool. Where it is False everything else is NaN.
    """

    means: Array
    covariances: Array
    cross: Array
    positive_definite: Array


class Potentials(NamedTuple):
    """Factors of a chain by the step they stand in; J's diagonal block is own[t] + carried[t].

    Attributes:
        own: what the factors of step t add to J[t, t], (T, D, D).
        below: what the factors of step t + 1 add to J[t+1, t], (T - 1, D, D).
        carried: what the factors of step t + 1 add to J[t, t], (T - 1, D, D).
        h_own: what the factors of step t add to h[t], (T, D).
        h_carried: what the factors of step t + 1 add to h[t], (T - 1, D).
    """

    own: Array
    below: Array
    carried: Array
    h_own: Array
    h_carried: Array


class Filtered(NamedTuple):
    """What is known of z_t without the future.

    Attributes:
        means: given the factors of the steps up to t, (T, D).
        covariances: likewise, (T, D, D).
        predicted_means: given the factors of the steps before t and the prior ones of t, (T, D).
        predicted_covariances: likewise, (T, D, D).
        positive_definite: bool. Where it is False some of the rest is NaN.
    """

    means: Array
    covariances: Array
    predicted_means: Array
    predicted_covariances: Array
    positive_definite: Array


def _check(diag: Array, below: Array, h: Array) -> None:
    steps, size = h.shape
    expected = (steps, size, size), (steps - 1, size, size)
    if (diag.shape, below.shape) != expected:
        raise ValueError(
            f"diag, below: expected {expected[0]} and {expected[1]} beside h {h.shape}, got "
            f"{diag.shape} and {below.shape}; below[t] is the block J[t+1, t]."
        )


def _after_nothing(x: Array) -> Array:
    """Put a zero before the first step."""
    return jnp.concatenate([jnp.zeros((1, *x.shape[1:]), x.dtype), x])


def _eliminate_small(diag: Array, below: Array, h: Array) -> _Elimination:
    """As ``_eliminate``: the loop does the least, the rest is done for all steps at once."""

    def step(carry, xs):
        left, linear = carry
        block, side, term = xs
        gain = product(side, inverse(left)[0])
        carry = block - product(gain, transposed(side)), term - apply(gain, linear)
        return carry, carry

    first = diag[0], h[0]
    _, rest = lax.scan(step, first, (diag[1:], below, h[1:]))
    left, linear = (jnp.concatenate([x[None], y]) for x, y in zip(first, rest))
    inverses, pivots = inverse(left)
    gain = product(below, inverses[:-1])
    return _Elimination(inverses, pivots, linear, _after_nothing(gain))


def _eliminate(diag: Array, below: Array, h: Array) -> _Elimination:
    """Integrate the steps out from the first to the last."""
    if h.shape[1] <= SMALL_LOOP:
        return _eliminate_small(diag, below, h)

    def step(carry, xs):
        before, linear = carry
        block, side, term = xs
        gain = product(side, before)
        inverses, pivots = inverse(block - product(gain, transposed(side)))
        linear = term - apply(gain, linear)
        return (inverses, linear), _Elimination(inverses, pivots, linear, gain)

    nothing = jnp.zeros_like(diag[0]), jnp.zeros_like(h[0])
    return lax.scan(step, nothing, (diag, _after_nothing(below), h))[1]


def _smooth(eliminated: _Elimination) -> Moments:
    """The moments, from the last step to the first."""
    inverses, pivots, linear, gain = eliminated
    # z_t given z_{t+1} has mean alone[t] - back[t] z_{t+1} and covariance inverses[t]
    alone = apply(inverses, linear)
    back = transposed(gain[1:])

    def step(carry, xs):
        mean, covariance = carry
        own, weight, offset = xs
        # not fused into the second product, which would compute it once per row
        moved = lax.optimization_barrier(product(weight, covariance))
        carry = offset - apply(weight, mean), own + product(moved, transposed(weight))
        return carry, carry

    last = alone[-1], inverses[-1]
    _, rest = lax.scan(step, last, (inverses[:-1], back, alone[:-1]), reverse=True)
    means, covariances = (jnp.concatenate([y, x[None]]) for x, y in zip(last, rest))
    covariances = symmetric(covariances)
    return Moments(means, covariances, -product(back, covariances[1:]), jnp.all(pivots > 0.0))


def _value(eliminated: _Elimination) -> Array:
    inverses, pivots, linear, _ = eliminated
    quadratic = jnp.sum(linear * apply(inverses, linear))
    return 0.5 * (quadratic - jnp.sum(jnp.log(pivots)) + linear.size * math.log(2.0 * math.pi))


@jax.custom_jvp
def _log_integral(diag, below, h):
    return _value(_eliminate(diag, below, h))


@_log_integral.defjvp
def _log_integral_jvp(primals, tangents):
    eliminated = _eliminate(*primals)
    means, covariances, cross, _ = _smooth(eliminated)
    diag, below, h = tangents
    squares = covariances + outer(means, means)
    pairs = transposed(cross) + outer(means[1:], means[:-1])
    slope = jnp.sum(means * h) - 0.5 * jnp.sum(squares * diag) - jnp.sum(pairs * below)
    return _value(eliminated), slope


def log_integral(diag: Array, below: Array, h: Array) -> Array:
    """Log of the integral of exp(-z'Jz/2 + h'z) over a chain.

    Differentiable any number of times; its gradient is the moments (``smooth``): E[z_t] in h,
    -E[z_t z_t']/2 in ``diag`` and -E[z_{t+1} z_t'] in ``below``.

    Args:
        diag: J[t, t], (T, D, D); the symmetric parts count.
        below: J[t+1, t], (T - 1, D, D).
        h: linear term, (T, D).

    Returns:
        A scalar; NaN where J is not positive definite.

    Raises:
        ValueError: shapes that do not fit together.

    Source: Rue and Held (2005), Gaussian Markov Random Fields, sections 2.2 and 2.4.
    """
    _check(diag, below, h)
    return _log_integral(symmetric(diag), below, h)


def smooth(diag: Array, below: Array, h: Array) -> Moments:
    """Means, covariances and neighbours' covariances: the selected inverse of J.

    Args:
        diag: J[t, t], (T, D, D); the symmetric parts count.
        below: J[t+1, t], (T - 1, D, D).
        h: linear term, (T, D).

    Returns:
        The moments, see ``Moments``.

    Raises:
        ValueError: shapes that do not fit together.

    Source: Takahashi, Fagan and Chen (1973); Rue and Held (2005), section 2.4 and eq. 2.34.
    """
    _check(diag, below, h)
    return _smooth(_eliminate(symmetric(diag), below, h))


def integrate(diag: Array, below: Array, h: Array) -> tuple[Array, Moments]:
    """`log_integral` and `smooth` in one elimination."""
    _check(diag, below, h)
    eliminated = _eliminate(symmetric(diag), below, h)
    return _value(eliminated), _smooth(eliminated)


def draw(diag: Array, below: Array, h: Array, noise: Array) -> Array:
    """A draw of the whole chain, exact; the mean where the noise is zero.

    Args:
        diag: J[t, t], (T, D, D); the symmetric parts count.
        below: J[t+1, t], (T - 1, D, D).
        h: linear term, (T, D).
        noise: independent standard normal numbers, (T, D).

    Returns:
        The path (T, D), affine in the noise; NaN where J is not positive definite.

    Raises:
        ValueError: shapes that do not fit together.

    Source: Rue (2001), Fast sampling of Gaussian Markov random fields, JRSS B 63.
    """
    _check(diag, below, h)
    if noise.shape != h.shape:
        raise ValueError(f"noise: expected {h.shape}, got {noise.shape}; one number per latent.")
    inverses, _, linear, gain = _eliminate(symmetric(diag), below, h)
    alone = apply(inverses, linear) + apply(cholesky(symmetric(inverses)), noise)

    def step(after, xs):
        weight, offset = xs
        here = offset - apply(weight, after)
        return here, here

    _, path = lax.scan(step, alone[-1], (transposed(gain[1:]), alone[:-1]), reverse=True)
    return jnp.concatenate([path, alone[-1:]])


def filter(full: Potentials, prior: Potentials) -> Filtered:
    """What each step knows without the later ones, and before its own observations.

    Args:
        full: all factors.
        prior: those of ``full`` that are the latents' own prior, without the observations.

    Returns:
        Filtered and predicted moments, see ``Filtered``.

    Raises:
        ValueError: shapes that do not fit together.

    Source: Anderson and Moore (1979), Optimal Filtering, section 6.3 (the information filter).
    """
    carried = jnp.concatenate([full.carried, jnp.zeros_like(full.own[:1])])
    h_carried = jnp.concatenate([full.h_carried, jnp.zeros_like(full.h_own[:1])])
    diag, h = symmetric(full.own + carried), full.h_own + h_carried
    _check(diag, full.below, h)
    _, pivots, linear, gain = _eliminate(diag, full.below, h)
    # not by taking ``carried`` off again, which would cancel
    left = symmetric(full.own) - product(gain, transposed(_after_nothing(full.below)))
    term = full.h_own - apply(gain, _after_nothing(linear[:-1]))
    inverses, here = inverse(left)

    before, ahead = inverse(left[:-1] + symmetric(prior.carried))
    gain = _after_nothing(product(prior.below, before))
    left = symmetric(prior.own) - product(gain, transposed(_after_nothing(prior.below)))
    predicted, there = inverse(left)
    means = prior.h_own - apply(gain, _after_nothing(term[:-1] + prior.h_carried))
    flags = [jnp.all(x > 0.0) for x in (pivots, here, ahead, there)]
    return Filtered(
        apply(inverses, term),
        symmetric(inverses),
        apply(predicted, means),
        symmetric(predicted),
        jnp.all(jnp.stack(flags)),
    )
