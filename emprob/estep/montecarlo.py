"""The E-step by simulation: draws of the latents instead of an integral."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jax import Array

from emprob.estep.simulated import Kernel, Simulated
from emprob.model import LatentModel
from emprob.simulation.draws import alike
from emprob.simulation.nuts import NUTS
from emprob.types import Params, Sample


class Memory(NamedTuple):
    """The key of the next draws, and where the chains stand."""

    key: Array
    state: Any


@dataclass(frozen=True)
class MonteCarlo(Simulated):
    """Draw the continuous latents given data and parameters; sum the discrete ones out at each.

    A step of EM is taken if the increase of Q that it promises is positive at the stated
    confidence; else there are eight times as many draws from then on (the ascent-based rule). When
    the largest number cannot tell the increase from noise, the run is on its plateau.

    Attributes:
        kernel: `ep.NUTS()`, `ep.Importance()` or `ep.ParticleGibbs()`.
        num_draws: of the first E-steps.
        max_draws: of the last.
        final_draws: of the sample at the end, which gives standard errors and Monte Carlo errors.
        confidence: with which the objective increases at every step that is taken.

    Source: Wei and Tanner (1990), JASA 85; Caffo, Jank and Jones (2005), JRSS B 67(2).
    """

    kernel: Kernel = field(default_factory=NUTS)
    num_draws: int = 128
    max_draws: int = 1024
    final_draws: int = 4096
    confidence: float = 0.9

    def __post_init__(self):
        self._check_draws()

    @property
    def evidence(self) -> bool:
        return self.kernel.evidence

    @property
    def num_batches(self) -> int:
        return self.kernel.num_batches

    def init(self, model: LatentModel, params: Params, key: Array) -> Memory:
        first, second = jax.random.split(key)
        return Memory(second, self.kernel.init(model, params, first))

    def sample(self, model: LatentModel, params: Params, memory: Memory) -> tuple[Sample, Memory]:
        key, now = jax.random.split(memory.key)
        atoms, value, state = self.kernel.draw(model, params, memory.state, now, self.num_draws)
        return Sample(atoms, alike(self.num_batches), value), Memory(key, state)
