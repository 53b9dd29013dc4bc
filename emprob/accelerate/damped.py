"""EM's step, taken longer or shorter."""

from dataclasses import dataclass, field

import jax.numpy as jnp
from jax import Array

from emprob.accelerate.composition import check_em, check_share
from emprob.accelerate.safeguard import Point, Proposal, advance, begin
from emprob.em import EM
from emprob.model import LatentModel
from emprob.types import Info, Params, State


@dataclass(frozen=True)
class Damped:
    """u + factor * (EM's move), in unconstrained space; EM's own step where that is lower.

    A factor between 1 and 2 relaxes over: where EM's rate is near one, so many times faster. One
    below 1 shortens steps, for an M-step that goes too far.

    Attributes:
        method: the EM; its E-step must be deterministic and memoryless.
        factor: of EM's move, between 0 and 2.

    Source: Peters & Walker (1978), SIAM Journal on Applied Mathematics 35(2).
    """

    method: EM = field(default_factory=EM)
    factor: float = 1.8

    def __post_init__(self):
        check_em("Damped", self.method)
        check_share("Damped", "factor", self.factor, 0.0, 2.0)

    def init(self, model: LatentModel, params: Params) -> State:
        return begin(self, model, params)

    def step(self, model: LatentModel, state: State) -> tuple[State, Info]:
        return advance(self, model, state)

    def blank(self, point: Point) -> tuple:
        return ()

    def learn(self, memory: tuple, old: Point, new: Point, accepted: Array) -> tuple:
        return memory

    def propose(self, memory: tuple, point: Point) -> Proposal:
        return Proposal(self.factor * point.move, jnp.zeros_like(point.step.gain), memory)
