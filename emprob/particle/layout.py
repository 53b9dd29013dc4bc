"""Which axes of a particle's arrays number the series that are filtered one by one.

Series are independent given the parameters: the elements of the plates that hold every latent and
every observation of the scan, unless some factor ties them. Each has weights, and ancestors, of
its own; a filter of S series jointly would need exponentially many particles in S.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from emprob.particle.sites import Factor

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where the series are.

    Attributes:
        plates: (name, dimension, size), from the outermost; none: one series.
        entry, step: by latent outside and inside the scan, the axes of its value.
        carry: of each leaf of the carry; None where all particles have the same value.
    """

    plates: tuple[tuple[str, int, int], ...]
    entry: Mapping[str, Axes]
    step: Mapping[str, Axes]
    carry: tuple[Axes | None, ...]

    @property
    def num_series(self) -> int:
        return math.prod(n for _, _, n in self.plates)

    def joint(self) -> "Layout":
        """All series as one."""
        none = lambda axes: dict.fromkeys(axes, ())  # noqa: E731
        carry = tuple(None if a is None else () for a in self.carry)
        return Layout((), none(self.entry), none(self.step), carry)


def common_plates(factors: Sequence[Factor]) -> tuple[tuple[str, int, int], ...]:
    """The plates that all factors stand in."""
    if not factors:
        return ()
    shared = frozenset.intersection(*(frozenset(f.plates) for f in factors))
    return tuple(sorted((p for p in shared if p[2] > 1), key=lambda p: p[1]))


def latent_axes(factor: Factor, plates: Sequence[tuple[str, int, int]]) -> Axes:
    """Axes of a latent's value that number the series."""
    return tuple(factor.batch_ndim + dim for _, dim, _ in plates)


def leaf_axes(shape: tuple[int, ...], plates: Sequence[tuple[str, int, int]]) -> Axes | None:
    """Axes of an array computed from latents, if its shape leaves no doubt."""
    fits = []
    for event in range(len(shape)):
        axes = tuple(len(shape) - event + dim for _, dim, _ in plates)
        if all(a >= 0 for a in axes) and all(shape[a] == p[2] for a, p in zip(axes, plates)):
            fits.append(axes)
    return fits[0] if len(fits) == 1 else None


def by_series(layout: Layout, factors: Sequence[Factor]) -> Array:
    """The log-densities of several sites, summed by series, (S,).

    What stands outside the plates of the series does not vary by particle; it is spread over them.
    """
    total = jnp.zeros(layout.num_series)
    for f in factors:
        if set(layout.plates) <= set(f.plates):
            axes = [f.table.ndim + dim for _, dim, _ in layout.plates]
            total = total + fold(f.table, tuple(axes)).sum(-1)
        else:
            total = total + f.table.sum() / layout.num_series
    return total


def fold(x: Array, axes: Axes) -> Array:
    """(...) -> (S, rest), the series first."""
    moved = jnp.moveaxis(x, axes, range(len(axes)))
    sizes = math.prod(moved.shape[: len(axes)])
    return moved.reshape(sizes, math.prod(moved.shape[len(axes) :]))


def unfold(x: Array, axes: Axes, shape: tuple[int, ...]) -> Array:
    """The inverse of `fold`, to an array of the shape."""
    series = [shape[a] for a in axes]
    rest = [n for i, n in enumerate(shape) if i not in axes]
    return jnp.moveaxis(x.reshape(*series, *rest), range(len(axes)), axes)


def take(x: Array, axes: Axes | None, index: Array) -> Array:
    """Particles (P, ...) by index (M, S), each series its own, (M, ...)."""
    if axes is None:
        return jnp.broadcast_to(x[:1], (len(index), *x.shape[1:]))
    if not axes:
        return x[index[:, 0]]
    ahead = tuple(a + 1 for a in axes)
    moved = jnp.moveaxis(x, ahead, range(1, 1 + len(axes)))
    flat = moved.reshape(len(x), index.shape[1], -1)
    chosen = jnp.take_along_axis(flat, index[:, :, None], 0)
    chosen = chosen.reshape(len(index), *moved.shape[1:])
    return jnp.moveaxis(chosen, range(1, 1 + len(axes)), ahead)


def take_sites(values: Mapping[str, Array], axes: Mapping[str, Axes], index: Array) -> dict:
    """`take` of every latent."""
    return {k: take(v, axes[k], index) for k, v in values.items()}
