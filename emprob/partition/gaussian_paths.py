"""A few paths of a Gaussian chain whose averages are expectations of everything quadratic."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from emprob.partition.gaussian import (
    WRITTEN_OUT,
    apply,
    cholesky,
    outer,
    product,
    solve_lower,
    symmetric,
    transposed,
)


def _corners(size: int) -> np.ndarray:
    """Columns of a regular simplex: rows orthonormal, and orthogonal to ones, (size, size + 1)."""
    rows = np.tril(np.ones((size, size + 1)))
    rows[np.arange(size), np.arange(1, size + 1)] = -np.arange(1.0, size + 1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _semidefinite_root(a: Array) -> Array:
    """Lower triangular root of a matrix that may be singular, and by rounding indefinite."""
    size = a.shape[-1]
    columns = []
    for k in range(size):
        pivot = a[..., k, k, None]
        scale = jnp.where(pivot > 0.0, 1.0 / jnp.sqrt(jnp.where(pivot > 0.0, pivot, 1.0)), 0.0)
        columns.append(jnp.where(np.arange(size) >= k, a[..., :, k] * scale, 0.0))
        a = a - outer(columns[-1], columns[-1])
    return jnp.stack(columns, -1)


def _completed(columns: Array) -> Array:
    """An orthogonal matrix (..., 2D, 2D) that begins with given orthonormal columns (..., 2D, D).

    Householder's reflections. Each reduces a vector of length one, so that none is degenerate.
    """
    rows, size = columns.shape[-2:]
    basis = jnp.broadcast_to(jnp.eye(rows, dtype=columns.dtype), (*columns.shape[:-1], rows))
    signs = []
    for k in range(size):
        tail = jnp.where(np.arange(rows) >= k, columns[..., :, k], 0.0)
        sign = jnp.where(tail[..., k] < 0.0, 1.0, -1.0)
        length = jnp.sqrt(jnp.sum(tail**2, -1))
        normal = tail - (sign * length)[..., None] * (np.arange(rows) == k)
        scaled = normal * (2.0 / jnp.sum(normal**2, -1))[..., None]
        columns = columns - outer(scaled, jnp.sum(columns * normal[..., None], -2))
        basis = basis - outer(jnp.sum(basis * normal[..., None, :], -1), scaled)
        signs.append(sign)
    signs.extend([jnp.ones_like(signs[0])] * (rows - size))
    return basis * jnp.stack(signs, -1)[..., None, :]


def _turn(correlation: Array) -> Array:
    """The rotation (..., 2D, 2D) from the frame of one step to that of the next.

    Its first rows are [R', S] with S S' = I - R'R, so that the new frame has correlation R with
    the old one and unit variance.
    """
    size = correlation.shape[-1]
    rest = jnp.eye(size, dtype=correlation.dtype) - product(transposed(correlation), correlation)
    columns = jnp.concatenate([correlation, transposed(_semidefinite_root(rest))], -2)
    return transposed(_completed(columns))


def _frames(correlations: Array) -> Array:
    """Rows U_t, orthonormal, with U_{t-1} U_t' = R_t, (T, D, 2D), from R (T - 1, D, D)."""
    size = correlations.shape[-1]
    ready = size <= WRITTEN_OUT
    turns = _turn(correlations) if ready else correlations

    def step(frame, turn):
        frame = product(turn if ready else _turn(turn), frame)
        return frame, frame[:size]

    start = jnp.eye(2 * size, dtype=correlations.dtype)
    _, frames = lax.scan(step, start, turns)
    return jnp.concatenate([start[None, :size], frames])


def paths(means: Array, covariances: Array, cross: Array) -> Array:
    """Equally weighted paths with the moments of a Gaussian chain, 2D + 1 of them.

    Means, covariances and covariances of neighbouring steps are exact, so that the average over
    the paths of any function quadratic in (z_{t-1}, z_t) is its expectation. Steps further apart
    are not meant to be right.

    A path is z_t = m_t + sqrt(2D + 1) L_t U_t c_j with L_t a root of the covariance, c_j the
    corners of a simplex, and U_t orthonormal rows advanced by a rotation that completes [R', S],
    R the correlation of the two steps: it exists because R is a contraction.

    Args:
        means: (T, D).
        covariances: (T, D, D), positive definite.
        cross: cov(z_t, z_{t+1}), (T - 1, D, D); a step may be deterministic given the one before.

    Returns:
        The paths, (2D + 1, T, D).

    Raises:
        ValueError: shapes that do not fit together.

    Source: Halmos (1950), Normal dilations and extensions of operators; Julier and Uhlmann
        (2002), Reduced sigma point filters, for the simplex.
    """
    steps, size = means.shape
    expected = (steps, size, size), (steps - 1, size, size)
    if (covariances.shape, cross.shape) != expected:
        raise ValueError(
            f"covariances, cross: expected {expected[0]} and {expected[1]} beside means "
            f"{means.shape}, got {covariances.shape} and {cross.shape}."
        )
    roots = cholesky(symmetric(covariances))
    half = solve_lower(roots[:-1], cross)
    correlations = transposed(solve_lower(roots[1:], transposed(half)))
    corners = jnp.asarray(_corners(2 * size) * np.sqrt(2 * size + 1), means.dtype)
    frames = jnp.einsum("tij,jn->tin", _frames(correlations), corners)
    return jnp.stack([means + apply(roots, frames[..., j]) for j in range(2 * size + 1)])
