"""Where particles are drawn from: a proposal draws the latents of a step and judges the draw."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array

from emprob.model import LatentModel
from emprob.particle.body import Body, Latents, Stage, Weighed
from emprob.types import Params


class Judged(NamedTuple):
    """A draw as the target sees it.

    Attributes:
        log_weight: target over proposal, (S,).
        log_ahead: log of the lookahead that is in the target so far, (S,): the filter's own law
            has exp(-log_ahead) of the weight.
        memory: of the particle, for its next draw.
    """

    log_weight: Array
    log_ahead: Array
    memory: Any


class Sampler(NamedTuple):
    """A proposal for one kind of step, of one particle.

    Attributes:
        draw: (at, key, carry, x, memory) -> latents.
        judge: (at, latents, weighed, memory, log_ahead) -> Judged.
    """

    draw: Callable[[Any, Array, Any, Any, Any], Latents]
    judge: Callable[[Any, Latents, Weighed, Any, Array], Judged]


class Plan(NamedTuple):
    """A proposal that knows the whole series, before the first particle is drawn.

    Attributes:
        entry, step: how latents outside and inside the scan are drawn.
        at_entry, at_steps: arrays for the first, and for each step, time first.
        memory: what a particle remembers before the entry; leaves (S, ...).
    """

    entry: Sampler
    step: Sampler
    at_entry: Any
    at_steps: Any
    memory: Any


@runtime_checkable
class Proposal(Protocol):
    """A frozen, hashable dataclass of settings."""

    def plan(self, model: LatentModel, params: Params, body: Body) -> Plan: ...


@dataclass(frozen=True)
class Bootstrap:
    """Draw from the program itself; the weight is the density of the observations.

    Works for every program. Where one observation says much about the state (small noise, many
    series observed at once), nearly all particles are lost at each step: see `Guided`.

    Source: Gordon, Salmond and Smith (1993), IEE Proceedings F 140(2).
    """

    def plan(self, model: LatentModel, params: Params, body: Body) -> Plan:
        return Plan(_prior(body.entry), _prior(body.step), (), (), ())


def _prior(stage: Stage) -> Sampler:
    def draw(at: Any, key: Array, carry: Any, x: Any, memory: Any) -> Latents:
        return stage.propose(key, carry, x)

    def judge(at: Any, latents: Latents, weighed: Weighed, memory: Any, log_ahead: Array) -> Judged:
        return Judged(weighed.observed, jnp.zeros_like(weighed.observed), memory)

    return Sampler(draw, judge)
