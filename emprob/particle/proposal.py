"""Where particles are drawn from: a proposal draws the latents of a step and judges the draw."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array

from emprob.model import LatentModel
from emprob.particle.body import Body, Latents, Stage, Weighed
from emprob.types import Params


class Plan(NamedTuple):
    """What a proposal knows of the whole series before the first particle is drawn.

    Attributes:
        entry: arrays for the latents outside the scan.
        steps: arrays for each step, time first.
        memory: what a particle remembers for its next draw, before the entry; leaves (S, ...).
    """

    entry: Any
    steps: Any
    memory: Any


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


@runtime_checkable
class Proposal(Protocol):
    """A frozen, hashable dataclass of settings."""

    def plan(self, model: LatentModel, params: Params, body: Body) -> Plan: ...

    def draw(
        self, stage: Stage, at: Any, key: Array, carry: Any, x: Any, memory: Any
    ) -> Latents: ...

    def judge(
        self, at: Any, latents: Latents, weighed: Weighed, memory: Any, log_ahead: Array
    ) -> Judged: ...


@dataclass(frozen=True)
class Bootstrap:
    """Draw from the program itself; the weight is the density of the observations.

    Works for every program. Where one observation says much about the state (small noise, many
    series observed at once), nearly all particles are lost at each step: see `Guided`.

    Source: Gordon, Salmond and Smith (1993), IEE Proceedings F 140(2).
    """

    def plan(self, model: LatentModel, params: Params, body: Body) -> Plan:
        return Plan((), (), ())

    def draw(self, stage: Stage, at: Any, key: Array, carry: Any, x: Any, memory: Any) -> Latents:
        return stage.propose(key, carry, x)

    def judge(
        self, at: Any, latents: Latents, weighed: Weighed, memory: Any, log_ahead: Array
    ) -> Judged:
        return Judged(weighed.observed, jnp.zeros_like(weighed.observed), memory)
