"""The default E-step, by a documented list over what the program holds."""

from dataclasses import dataclass

from emprob.estep.enumerate import Enumerate
from emprob.model import LatentModel
from emprob.plan import require_enumerable
from emprob.types import Capabilities, EStep, Params, Posterior


@dataclass(frozen=True)
class Auto:
    """Decide by the program.

    1. no latent, or all latents discrete: `Enumerate`, exact.
    2. anything else is refused by name; later versions integrate it.
    """

    @property
    def capabilities(self) -> Capabilities:
        return Enumerate().capabilities

    def choose(self, model: LatentModel) -> EStep:
        require_enumerable(model)
        return Enumerate()

    def __call__(self, model: LatentModel, params: Params) -> Posterior:
        return self.choose(model)(model, params)
