"""The default E-step, by a documented list over what the program holds."""

from dataclasses import dataclass

from emprob.estep.enumerate import Enumerate
from emprob.integral.expectation import expectation
from emprob.model import LatentModel
from emprob.types import Capabilities, EStep, Params, Posterior


@dataclass(frozen=True)
class Auto:
    """Decide by the program, for each group of latents that meet in a factor.

    1. discrete: `Enumerate`, exact;
    2. a log-density quadratic in the latents at any parameters: `Gaussian`, exact;
    3. one whose posterior is a Gamma, inverse Gamma, Beta or Dirichlet: `Conjugate`, exact;
    4. any other smooth one: `Laplace`.

    On request only: `Grid`, for one real latent to each element of a large plate.

    Discrete latents of the same plate are summed over what the others integrate to.
    """

    @property
    def capabilities(self) -> Capabilities:
        return Enumerate().capabilities

    def choose(self, model: LatentModel) -> EStep:
        return model.structure.integrals[0].rule if model.structure.integrals else Enumerate()

    def __call__(self, model: LatentModel, params: Params) -> Posterior:
        if model.structure.integrals:
            return expectation(model, params)
        return Enumerate()(model, params)
