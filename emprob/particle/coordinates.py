"""Latents of one step as unconstrained vectors, by series."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import jax.numpy as jnp
from jax import Array
from numpyro.distributions.transforms import Transform

from emprob.particle.body import Latents, Stage
from emprob.particle.layout import Axes, fold, unfold
from emprob.space import forward


@dataclass(frozen=True)
class Coordinates:
    """The layout of a vector (S, D).

    Attributes:
        sites: names, in the vector's order.
        shapes: of each site in unconstrained space.
        axes: of each, those that number the series.
        transforms: coordinates -> values.
        width: D, room included.
        num_series: S.
    """

    sites: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, Axes]
    transforms: Mapping[str, Transform]
    width: int
    num_series: int

    def pack(self, latents: Latents) -> Array:
        """Values by site -> (S, D), zero where there is room."""
        parts = [
            fold(jnp.asarray(self.transforms[k].inv(latents[k])), self.axes[k]) for k in self.sites
        ]
        x = jnp.concatenate([jnp.zeros((self.num_series, 0)), *parts], -1)
        return jnp.pad(x, ((0, 0), (0, self.width - x.shape[1])))

    def _parts(self, u: Array) -> dict[str, Array]:
        found, at = {}, 0
        for k in self.sites:
            size = prod(self.shapes[k]) // self.num_series
            found[k] = unfold(u[:, at : at + size], self.axes[k], self.shapes[k])
            at += size
        return found

    def unpack(self, u: Array) -> Latents:
        """(S, D) -> values by site."""
        return {k: forward(self.transforms[k], v) for k, v in self._parts(u).items()}

    def log_jacobian(self, u: Array) -> Array:
        """log |d values / d coordinates| by series, (S,)."""
        total = jnp.zeros(self.num_series)
        for k, v in self._parts(u).items():
            t = self.transforms[k]
            slopes = jnp.asarray(t.log_abs_det_jacobian(v, forward(t, v)))
            total = total + fold(slopes, self.axes[k]).sum(-1)
        return total


def coordinates_of(
    stage: Stage, axes: Mapping[str, Axes], transforms: Mapping, num_series: int, width: int = 0
) -> Coordinates:
    """The coordinates of a stage's latents, as wide as they are or wider."""
    sites = tuple(sorted(stage.shapes))
    shapes = {k: tuple(transforms[k].inverse_shape(stage.shapes[k].shape)) for k in sites}
    total = sum(prod(s) for s in shapes.values()) // num_series
    return Coordinates(sites, shapes, axes, transforms, max(total, width), num_series)
