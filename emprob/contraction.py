"""The product of natural parameters and statistics, the inner loop of every exponential family.

Many statistics are a matrix product. Few are not: a dot of three columns takes five times as long
as the same sums written out, and its gradient, a sum over rows, wants the table transposed.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

FEW_STATISTICS = 8  # measured: as many products are added faster than a dot is called
FEW_COLUMNS = 5  # measured: so narrow a table is transposed before a dot over its rows
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVW"  # of the layout's axes in an einsum


def contract(natural: Array, statistics: Array, summed: tuple[int, ...] = ()) -> Array:
    """Sum over the last axis of a broadcast product, as a matrix product where that is faster.

    Args:
        natural: (layout, P).
        statistics: (layout, P).
        summed: dimensions of the layout (negative) that are summed over as well, and kept.
    """
    if summed or natural.shape[-1] > FEW_STATISTICS:
        return _dot(natural, statistics, summed)
    return _few(natural, statistics)


@jax.custom_jvp
def _few(natural: Array, statistics: Array) -> Array:
    """The products of few statistics, added one by one; derivatives are still sums over rows."""
    return sum(natural[..., p] * statistics[..., p] for p in range(natural.shape[-1]))  # pyright: ignore


@partial(_few.defjvp, symbolic_zeros=True)
def _few_jvp(primals, tangents):
    natural, statistics = primals
    value, moved = _few(natural, statistics), []
    if not isinstance(tangents[0], SymbolicZero):
        moved.append(_dot(tangents[0], statistics))
    if not isinstance(tangents[1], SymbolicZero):
        moved.append(_dot(natural, tangents[1]))
    return value, sum(moved, jnp.zeros_like(value))


def _dot(natural: Array, statistics: Array, summed: tuple[int, ...] = ()) -> Array:
    """As `contract`, by a matrix product."""
    rank = natural.ndim - 1
    shape = jnp.broadcast_shapes(natural.shape[:-1], statistics.shape[:-1])

    a, ia = squeezed(natural, rank)
    b, ib = squeezed(statistics, rank)
    shape = tuple(1 if i - rank in summed else n for i, n in enumerate(shape))
    out = "".join(LETTERS[i] for i in range(rank) if shape[i] > 1)
    narrow = not set(ia) & set(ib) and math.prod(a.shape[:-1]) <= FEW_COLUMNS
    if not narrow or summed or not ib:
        return jnp.einsum(f"{ia}Z,{ib}Z->{out}", a, b).reshape(shape)
    table = lax.optimization_barrier(jnp.einsum(f"{ia}Z,{ib}Z->{ia}{ib}", a, b))
    return table.transpose([(ia + ib).index(x) for x in out]).reshape(shape)


def squeezed(x: Array, rank: int) -> tuple[Array, str]:
    """An array (layout, ...) without axes of size one among its first `rank`, and their letters."""
    axes = [i for i in range(rank) if x.shape[i] > 1]
    shape = [x.shape[i] for i in axes] + list(x.shape[rank:])
    return x.reshape(shape), "".join(LETTERS[i] for i in axes)
