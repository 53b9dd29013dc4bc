"""What E-steps by simulation have in common."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Protocol, Self

import jax.numpy as jnp
from jax import Array
from scipy.special import ndtri

from emprob.estep.unsolved import is_solved
from emprob.model import LatentModel
from emprob.particle.proposal import Bootstrap
from emprob.settle import ENOUGH, Evidence, evidence
from emprob.simulation.draws import batch_weights, mean_and_error, plain, posterior_at
from emprob.types import Atoms, Capabilities, Params, Posterior, Sample

GROWTH = 8  # of the number of draws, when noise hides the gain: few sizes are compiled


class Kernel(Protocol):
    """Draws of the continuous latents. A frozen, hashable dataclass of settings.

    `init` gives the state of its chains; `draw` draws by site (num, ...), batch after batch, log Z
    or NaN, and the state after them. `num` is rounded up to a multiple of the batches.
    """

    @property
    def num_batches(self) -> int: ...

    @property
    def evidence(self) -> bool: ...

    def init(self, model: LatentModel, params: Params, key: Array) -> Any: ...

    def draw(
        self, model: LatentModel, params: Params, state: Any, key: Array, num: int
    ) -> tuple[Atoms, Array, Any]: ...


class Stochastic(ABC):
    """What holds for every E-step that draws."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exact=False, deterministic=False, memoryless=False)

    @property
    def unbiased(self) -> bool:
        return True

    @property
    @abstractmethod
    def num_batches(self) -> int:
        """Independent batches of the draws."""

    @property
    @abstractmethod
    def evidence(self) -> bool:
        """Whether log Z is estimated."""

    @abstractmethod
    def init(self, model: LatentModel, params: Params, key: Array) -> Any:
        """The memory before the first step."""

    @abstractmethod
    def sample(self, model: LatentModel, params: Params, memory: Any) -> tuple[Sample, Any]:
        """Draws, and the memory after them."""

    def adapted(self, model: LatentModel) -> LatentModel:
        return plain(model)

    def log_evidence(self, model: LatentModel, params: Params, memory: Any, key: Array) -> Evidence:
        if is_solved(model) or not model.structure.timed:
            return evidence(model, params, key, ENOUGH)
        from emprob.estep.particle import Particle  # a particle filter for any scan

        filters = Particle(proposal=Bootstrap(), num_particles=1024)
        return filters.log_evidence(model, params, None, key)

    def alarms(self, model: LatentModel, params: Params, memory: Any) -> tuple[str, ...]:
        """What is wrong with the draws at an estimate, in words."""
        return ()

    def confined(self, model: LatentModel, old: Params, new: Params, memory: Any) -> Params:
        return new


class Simulated(Stochastic):
    """An E-step whose draws grow in number when noise hides the gain."""

    num_draws: int
    max_draws: int
    final_draws: int
    confidence: float

    def _check_draws(self) -> None:
        name = type(self).__name__
        if not 1 <= self.num_draws <= self.max_draws:
            raise ValueError(
                f"{name}(num_draws={self.num_draws}, max_draws={self.max_draws}): expected "
                "1 <= num_draws <= max_draws."
            )
        if self.final_draws < 1:
            raise ValueError(f"{name}(final_draws={self.final_draws}): expected an integer >= 1.")
        if not 0.5 < self.confidence < 1.0:
            raise ValueError(
                f"{name}(confidence={self.confidence}): expected a number in (0.5, 1)."
            )

    def update(self, model: LatentModel, params: Params, memory: Any) -> tuple[Posterior, Any]:
        """The posterior by fresh draws, and the memory after them."""
        drawn, memory = self.sample(model, params, memory)
        count = len(next(iter(drawn.atoms.values())))
        weights = batch_weights(drawn.log_weights)
        shares = jnp.repeat(weights / count, count // len(weights))
        value = drawn.log_partition
        return posterior_at(model, params, drawn.atoms, shares, value), memory

    def promise(self, rises: Array, memory: Any) -> tuple[Array, Array]:
        return mean_and_error(rises, jnp.ones(self.num_batches))

    def adopts(self, gain: Array, error: Array) -> Array:
        return gain > float(ndtri(self.confidence)) * error

    def grown(self) -> Self | None:
        if self.num_draws >= self.max_draws:
            return None
        return replace(self, num_draws=min(GROWTH * self.num_draws, self.max_draws))  # pyright: ignore

    def final(self) -> Self:
        return replace(self, num_draws=self.final_draws, max_draws=self.final_draws)  # pyright: ignore
