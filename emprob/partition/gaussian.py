"""Integrals of Gaussians in information form: exp(-z'Jz/2 + h'z), dense blocks of any number.

Small matrices are written out as sums of broadcast products: on a CPU, a call of LAPACK for each of
many blocks of two or three, or a dot inside a scan, costs ten times what it computes.
"""

from __future__ import annotations

import math
import operator
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

WRITTEN_OUT = 3  # measured: from four on, batches of LAPACK calls are as fast


def transposed(a: Array) -> Array:
    """The transposes of a batch of matrices."""
    return jnp.swapaxes(a, -1, -2)


def symmetric(a: Array) -> Array:
    """The symmetric parts of a batch of matrices."""
    return 0.5 * (a + transposed(a))


def product(a: Array, b: Array) -> Array:
    """Matrix products (..., I, K) (..., K, J), written out."""
    terms = [a[..., :, k, None] * b[..., None, k, :] for k in range(a.shape[-1])]
    return reduce(operator.add, terms)


def apply(a: Array, x: Array) -> Array:
    """Matrices (..., I, K) times vectors (..., K), written out."""
    return reduce(operator.add, [a[..., :, k] * x[..., None, k] for k in range(a.shape[-1])])


def outer(x: Array, y: Array) -> Array:
    """Outer products of vectors (..., I), (..., J)."""
    return x[..., :, None] * y[..., None, :]


def positive(pivot: Array) -> Array:
    """NaN in place of a pivot that no positive definite matrix has, so that it is never silent."""
    return jnp.where(pivot > 0.0, pivot, jnp.nan)


def _inverse_of_two(a: Array) -> tuple[Array, Array]:
    first = positive(a[..., 0, 0])
    slope = a[..., 1, 0] / first
    second = positive(a[..., 1, 1] - slope * a[..., 1, 0])
    corner = 1.0 / second
    side = -slope * corner
    rows = [1.0 / first - slope * side, side, side, corner]
    inverses = jnp.stack(rows, -1).reshape(a.shape)
    return inverses, jnp.stack([first, second], -1)


def inverse(a: Array) -> tuple[Array, Array]:
    """Inverses of symmetric positive definite matrices, and the pivots met on the way.

    The sweep operator: the result does not depend on how the variables are scaled.

    Args:
        a: (..., D, D), symmetric.

    Returns:
        The inverses, and the pivots (..., D), whose product is the determinant. Where ``a`` is
        not positive definite a pivot is NaN, and with it the inverse.

    Source: Goodnight (1979), A tutorial on the SWEEP operator, The American Statistician 33.
    """
    size = a.shape[-1]
    if size == 2:
        return _inverse_of_two(a)
    pivots = []
    for k in range(size):
        here = np.arange(size) == k
        pivot = positive(a[..., k, k])
        scale = 1.0 / pivot
        row = a[..., k, :]
        scaled = row * scale[..., None]
        swept = a - outer(row, scaled)
        swept = jnp.where(here[:, None], scaled[..., None, :], swept)
        swept = jnp.where(here, scaled[..., :, None], swept)
        a = jnp.where(here[:, None] & here, -scale[..., None, None], swept)
        pivots.append(pivot)
    return -a, jnp.stack(pivots, -1)


def cholesky(a: Array) -> Array:
    """Lower triangular roots of symmetric positive definite matrices; NaN where they are not.

    Args:
        a: (..., D, D), symmetric.
    """
    size = a.shape[-1]
    if size > WRITTEN_OUT:
        return lax.linalg.cholesky(a, symmetrize_input=False)
    columns = []
    for k in range(size):
        column = a[..., :, k] / jnp.sqrt(positive(a[..., k, k]))[..., None]
        column = jnp.where(np.arange(size) >= k, column, 0.0)
        a = a - outer(column, column)
        columns.append(column)
    return jnp.stack(columns, -1)


def solve_lower(root: Array, right: Array) -> Array:
    """Solution X of L X = B for lower triangular L (..., D, D) and B (..., D, E)."""
    size = root.shape[-1]
    if size > WRITTEN_OUT:
        return lax.linalg.triangular_solve(root, right, left_side=True, lower=True)
    rows = []
    for k in range(size):
        rows.append(right[..., k, :] / root[..., k, k, None])
        right = right - outer(root[..., :, k], rows[-1])
    return jnp.stack(rows, -2)


class Dense(NamedTuple):
    """A batch of Gaussians in M dimensions, one per block.

    Attributes:
        log_integral: log of the integral of exp(-z'Jz/2 + h'z), (...).
        mean: (..., M).
        covariance: the inverse of J, (..., M, M).
        root: upper triangular, root root' is the covariance, (..., M, M).
        positive_definite: bool (...). Where it is False everything else is NaN.
    """

    log_integral: Array
    mean: Array
    covariance: Array
    root: Array
    positive_definite: Array


def dense(precision: Array, linear: Array) -> Dense:
    """Integrate exp(-z'Jz/2 + h'z) over z, block by block.

    Differentiable any number of times. ``log_integral``'s gradient is the mean in h, and
    -(covariance + mean mean')/2 in J.

    Args:
        precision: J, (..., M, M); its symmetric part counts.
        linear: h, (..., M).

    Returns:
        The Gaussians, see ``Dense``.

    Raises:
        ValueError: shapes that do not fit together.

    Source: Rue and Held (2005), Gaussian Markov Random Fields, section 2.2.
    """
    if precision.shape != (*linear.shape, linear.shape[-1]):
        raise ValueError(
            f"precision: expected {(*linear.shape, linear.shape[-1])} beside linear "
            f"{linear.shape}, got {precision.shape}; one square matrix per vector is needed."
        )
    size = linear.shape[-1]
    lower = cholesky(symmetric(precision))
    diagonal = jnp.diagonal(lower, axis1=-2, axis2=-1)
    identity = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
    root = transposed(solve_lower(lower, identity))
    multiply = product if size <= WRITTEN_OUT else jnp.matmul
    white = multiply(transposed(root), linear[..., None])
    log_integral = 0.5 * jnp.sum(white[..., 0] ** 2, -1) - jnp.sum(jnp.log(diagonal), -1)
    return Dense(
        log_integral + 0.5 * size * math.log(2.0 * math.pi),
        multiply(root, white)[..., 0],
        multiply(root, transposed(root)),
        root,
        jnp.all(diagonal > 0.0, -1),
    )
