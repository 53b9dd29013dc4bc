"""The E-step by simulation: draws of the latents instead of an integral."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from scipy.special import ndtri

from emprob.model import LatentModel
from emprob.settle import ENOUGH, Evidence, evidence
from emprob.simulation.draws import mean_and_error, plain, posterior_at
from emprob.simulation.nuts import NUTS
from emprob.types import Atoms, Capabilities, Params, Posterior


GROWTH = 8


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


class Memory(NamedTuple):
    """Of a simulated E-step: the key of its next draws, and where its chains stand."""

    key: Array
    state: Any


@dataclass(frozen=True)
class MonteCarlo:
    """Draw the continuous latents given data and parameters; sum the discrete ones out at each.

    A step of EM is taken if the increase of Q that it promises is positive at the stated
    confidence; else the number of draws is eight times as large from then on (the ascent-based rule). When the largest
    number cannot tell the increase from noise, the run is on its plateau.

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
        if not 1 <= self.num_draws <= self.max_draws:
            raise ValueError(
                f"MonteCarlo(num_draws={self.num_draws}, max_draws={self.max_draws}): expected "
                "1 <= num_draws <= max_draws."
            )
        if not 0.5 < self.confidence < 1.0:
            raise ValueError(
                f"MonteCarlo(confidence={self.confidence}): expected a number in (0.5, 1)."
            )

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exact=False, deterministic=False, memoryless=False)

    @property
    def evidence(self) -> bool:
        """Whether the E-step estimates log Z."""
        return self.kernel.evidence

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def num_batches(self) -> int:
        return self.kernel.num_batches

    def adapted(self, model: LatentModel) -> LatentModel:
        return plain(model)

    def init(self, model: LatentModel, params: Params, key: Array) -> Memory:
        first, second = jax.random.split(key)
        return Memory(second, self.kernel.init(model, params, first))

    def update(
        self, model: LatentModel, params: Params, memory: Memory
    ) -> tuple[Posterior, Memory]:
        """The posterior by fresh draws, and the memory after them."""
        atoms, value, memory = self.sample(model, params, memory)
        count = len(next(iter(atoms.values())))
        shares = jnp.full(count, 1.0 / count)
        return posterior_at(model, params, atoms, shares, value), memory

    def sample(
        self, model: LatentModel, params: Params, memory: Memory
    ) -> tuple[Atoms, Array, Memory]:
        """Draws by site (A, ...), log Z or NaN, and the memory after them."""
        key, now = jax.random.split(memory.key)
        atoms, value, state = self.kernel.draw(model, params, memory.state, now, self.num_draws)
        return atoms, value, Memory(key, state)

    def final(self) -> "MonteCarlo":
        """As it draws at the end of a run."""
        return replace(self, num_draws=self.final_draws, max_draws=self.final_draws)

    def log_evidence(self, model: LatentModel, params: Mapping, key: Array) -> Evidence:
        """log Z at an estimate."""
        return evidence(model, params, key, ENOUGH)

    def promise(self, rises: Array, memory: Memory) -> tuple[Array, Array]:
        return mean_and_error(rises, self.num_batches)

    def adopts(self, gain: Array, error: Array) -> Array:
        return gain > float(ndtri(self.confidence)) * error

    def confined(self, model: LatentModel, old: Params, new: Params, memory: Memory) -> Params:
        return new

    def grown(self) -> "MonteCarlo | None":
        """The same with eight times as many draws; None at the largest number."""
        if self.num_draws >= self.max_draws:
            return None
        return replace(self, num_draws=min(GROWTH * self.num_draws, self.max_draws))
