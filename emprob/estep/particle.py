"""The E-step by particles: filter forwards, draw paths backwards."""

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob.estep.simulated import Simulated
from emprob.keys import as_key
from emprob.model import LatentModel
from emprob.particle.alarm import alarms
from emprob.particle.guided import Automatic
from emprob.particle.paths import Paths, smooth
from emprob.particle.proposal import Proposal
from emprob.particle.settings import Settings
from emprob.settle import Evidence
from emprob.types import Atoms, Params

REPLICATES = 4  # of all filters, for the evidence at the estimate


class Memory(NamedTuple):
    """The key of the next draws."""

    key: Array


@dataclass(frozen=True)
class Particle(Simulated):
    """Particle filters on the program's own scan, and paths drawn backwards through them.

    For any scan: no density has to be smooth, the carry may hold anything, discrete latents are
    particles too (and summed out again at every path). Independent filters tell the Monte Carlo
    error; log Z is estimated without bias on the scale of Z.

    Attributes:
        proposal: `ep.Guided()` looks ahead through a Gaussian around the mode, and needs smooth
            densities of continuous latents; `ep.Bootstrap()` needs nothing. The default takes the
            first where it applies.
        num_particles: of each filter.
        num_filters: independent filters.
        num_draws, max_draws, final_draws: paths through all of them, see `ep.MonteCarlo`.
        threshold: resample where the effective sample size is below this share.
        horizon: steps that a backward draw looks ahead where the carry never forgets.
        confidence: with which the objective increases at every step that is taken.

    Source: Godsill, Doucet and West (2004), JASA 99, for the paths.
    """

    proposal: Proposal = field(default_factory=Automatic)
    num_particles: int = 128
    num_filters: int = 16
    num_draws: int = 128
    max_draws: int = 1024
    final_draws: int = 4096
    threshold: float = 0.5
    horizon: int | None = None
    confidence: float = 0.9

    def __post_init__(self):
        self._check_draws()
        if self.num_filters < 2 or self.num_particles < 2:
            raise ValueError(
                f"Particle(num_particles={self.num_particles}, num_filters={self.num_filters}): "
                "expected two or more of each."
            )

    @property
    def evidence(self) -> bool:
        return True

    @property
    def num_batches(self) -> int:
        return self.num_filters

    def init(self, model: LatentModel, params: Params, key: Array) -> Memory:
        return Memory(key)

    def sample(
        self, model: LatentModel, params: Params, memory: Memory
    ) -> tuple[Atoms, Array, Memory]:
        key, now = jax.random.split(memory.key)
        paths = self.paths(model, params, now)
        atoms = {k: v.reshape(-1, *v.shape[2:]) for k, v in paths.atoms.items()}
        value = jax.nn.logsumexp(paths.log_evidence) - jnp.log(self.num_filters)
        return atoms, value, Memory(key)

    def paths(self, model: LatentModel, params: Params, key: Array) -> Paths:
        """Of every filter, with a first axis of filters."""
        each = -(-self.num_draws // self.num_filters)
        settings = Settings(
            num_particles=self.num_particles, num_paths=each, num_islands=1,
            threshold=self.threshold, proposal=self.proposal, horizon=self.horizon,
        )  # fmt: skip
        keys = jax.random.split(as_key(key), self.num_filters)
        return jax.vmap(lambda k: smooth(model, params, k, settings))(keys)

    def log_evidence(
        self, model: LatentModel, params: Params, memory: Memory | None, key: Array
    ) -> Evidence:
        """From all filters, several times over, with the error that their spread tells."""
        found = np.concatenate(
            [
                np.asarray(_some(model, self, params, k).log_evidence)
                for k in jax.random.split(key, REPLICATES)
            ]
        )
        z = np.exp(found - found.max())
        value = float(found.max() + np.log(z.mean()))
        error = float(z.std(ddof=1) / z.mean() / np.sqrt(len(z)))
        how = f"{len(z)} particle filters of {self.num_particles} particles"
        return Evidence(value, error, float("nan"), how)

    def alarms(self, model: LatentModel, params: Params, memory: Memory) -> tuple[str, ...]:
        paths = jax.tree.map(np.asarray, _some(model, self, params, memory.key))
        first = jax.tree.map(lambda x: x[0], paths)
        return alarms(first, self.num_particles)


@partial(jax.jit, static_argnames="estep")
def _some(model: LatentModel, estep: Particle, params: Params, key: Array) -> Paths:
    return estep.paths(model, params, key)
