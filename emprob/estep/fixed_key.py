"""Common random numbers: an E-step by simulation as a function of the parameters."""

from dataclasses import dataclass

import jax

from emprob.model import LatentModel
from emprob.types import Capabilities, Params, Posterior, SimulatedEStep


@dataclass(frozen=True)
class FixedKey:
    """An E-step that draws the same random numbers at every step, and remembers nothing.

    The objective is then the simulated likelihood of these numbers: it can be extrapolated and
    compared between steps. Its optimum is that far from the exact one as the numbers are few; run
    it with another seed to see how far.

    Attributes:
        estep: one that estimates log Z: `ep.MonteCarlo(ep.Importance())`, `ep.Particle()`,
            `ep.Variational()`.
        seed: of the random numbers.
    """

    estep: SimulatedEStep
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.estep, SimulatedEStep) or isinstance(self.estep, type):
            raise ValueError(
                f"FixedKey({self.estep!r}): expected an E-step by simulation, such as "
                "ep.MonteCarlo(ep.Importance()). The others draw nothing: leave FixedKey out."
            )
        if not self.estep.evidence:
            raise ValueError(
                f"FixedKey({self.estep!r}): this E-step does not estimate log Z, so there is no "
                "objective to compare. Use ep.MonteCarlo(ep.Importance()) or ep.Particle()."
            )

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exact=False, deterministic=True, memoryless=True)

    def adapted(self, model: LatentModel) -> LatentModel:
        return self.estep.adapted(model)

    def __call__(self, model: LatentModel, params: Params) -> Posterior:
        key = jax.random.key_data(jax.random.key(self.seed))
        memory = self.estep.init(model, params, key)
        return self.estep.update(model, params, memory)[0]
