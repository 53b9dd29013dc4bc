"""Particles that see the data to come, through a Gaussian around the mode of the latents."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln

from emprob.errors import ModelError
from emprob.model import LatentModel
from emprob.particle.body import Body, Latents, Weighed
from emprob.particle.coordinates import Coordinates, coordinates_of
from emprob.particle.guide import Guide, guides, mode_of, obstacle
from emprob.particle.proposal import Bootstrap, Judged, Plan, Sampler
from emprob.partition.gaussian import apply, solve_lower
from emprob.types import Params

LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Guided:
    """Draw each step from the Gaussian around the mode of the whole path, given the past.

    The intermediate targets have the Gaussian's own lookahead in them, so that particles are kept
    for what the later data say too. Where the latents are Gaussian all weights are equal and the
    evidence is exact; where they are nearly so, a few hundred particles follow thousands of steps.
    Latents must be continuous, with a smooth log-density.

    Attributes:
        degrees: of freedom of a Student-t in place of the normal, for a posterior with heavier
            tails than its Gaussian; None: normal.

    Source: Shephard and Pitt (1997), Biometrika 84(3), for the Gaussian; Guarniero, Johansen and
    Lee (2017), Journal of the American Statistical Association 112, for the lookahead.
    """

    degrees: float | None = None

    def __post_init__(self):
        if self.degrees is not None and not self.degrees > 0:
            raise ValueError(f"Guided(degrees={self.degrees}): expected a positive number.")

    def plan(self, model: LatentModel, params: Params, body: Body) -> Plan:
        if body.reach is None:
            raise ModelError(
                "Guided(): the scan's carry is a function of all latents so far, so no step is "
                "Gaussian given a few before it. Carry the state itself (centred: z_t ~ "
                "Normal(f(z_{t-1}), q)), or use Bootstrap()."
            )
        transforms = {k: t for d in model.data.integrals for k, t in d.transforms.items()}
        mode = mode_of(model, params)
        layout = body.layout
        own = transforms, layout.num_series
        outside = coordinates_of(body.entry, layout.entry, *own)
        inside = coordinates_of(body.step, layout.step, *own, outside.width)
        outside = coordinates_of(body.entry, layout.entry, *own, inside.width)
        entry, steps = guides(body, mode, outside, inside, body.reach)
        memory = jnp.zeros((layout.num_series, body.reach * inside.width))
        return Plan(self._sampler(outside), self._sampler(inside), entry, steps, memory)

    def _sampler(self, coordinates: Coordinates) -> Sampler:
        def draw(at: Guide, key: Array, carry: Any, x: Any, window: Array) -> Latents:
            noise = _noise(key, at.real.shape, self.degrees)
            move = (_mean(at, window) + apply(at.root, noise)) * at.real
            return coordinates.unpack(at.mode + move)

        def judge(
            at: Guide, latents: Latents, weighed: Weighed, window: Array, log_ahead: Array
        ) -> Judged:
            u = coordinates.pack(latents)
            move = (u - at.mode) * at.real
            target = weighed.own + weighed.observed + coordinates.log_jacobian(u)
            noise = solve_lower(at.root, (move - _mean(at, window))[..., None])[..., 0]
            log_root = jnp.log(jnp.diagonal(at.root, axis1=-2, axis2=-1)).sum(-1)
            log_q = _log_density(noise * at.real, at.real.sum(-1), self.degrees) - log_root
            window = jnp.concatenate([window[:, move.shape[1] :], move], -1)
            bent = jnp.einsum("si,sij,sj->s", window, at.precision, window)
            ahead = (at.linear * window).sum(-1) - 0.5 * bent
            return Judged(target - log_q + ahead - log_ahead, ahead, window)

        return Sampler(draw, judge)


@dataclass(frozen=True)
class Automatic:
    """`Guided` where the latents have a Gaussian around their mode, else `Bootstrap`."""

    def plan(self, model: LatentModel, params: Params, body: Body) -> Plan:
        guided = body.reach is not None and obstacle(model) is None
        return (Guided() if guided else Bootstrap()).plan(model, params, body)


def _mean(at: Guide, window: Array) -> Array:
    return at.offset - jnp.einsum("sij,sj->si", at.gain, window)


def _noise(key: Array, shape: tuple[int, ...], degrees: float | None) -> Array:
    """Standard normal (S, D), or Student-t with one chi-square a series."""
    first, second = jax.random.split(key)
    noise = jax.random.normal(first, shape)
    if degrees is None:
        return noise
    chi2 = 2.0 * jax.random.gamma(second, degrees / 2.0, shape[:1])
    return noise * jnp.sqrt(degrees / chi2)[:, None]


def _log_density(noise: Array, size: Array, degrees: float | None) -> Array:
    """Of `_noise`, over as many coordinates as are real, (S,)."""
    squares = (noise**2).sum(-1)
    if degrees is None:
        return -0.5 * squares - 0.5 * size * LOG_2PI
    half = 0.5 * (degrees + size)
    return (
        gammaln(half)
        - gammaln(0.5 * degrees)
        - 0.5 * size * jnp.log(degrees * jnp.pi)
        - half * jnp.log1p(squares / degrees)
    )
