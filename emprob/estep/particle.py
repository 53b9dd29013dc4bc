"""The E-step by particles: filter forwards, draw paths backwards."""

from dataclasses import dataclass, field, replace
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
from emprob.particle.resampling import log_mean
from emprob.particle.settings import Settings
from emprob.settle import Evidence
from emprob.simulation.draws import batch_weights, mean_and_error
from emprob.types import Params, Sample

REPLICATES = 4  # of all filters, for the evidence at the estimate
MOST_VARIANCE = 0.5  # of a filter's log-evidence, for draws that standard errors are told from
MOST_GROWTH = 8  # of the number of particles that was asked for
LEAST_PATHS = 32  # of each filter
LEAST_FILTERS = 4.0  # that count, of those whose spread tells the Monte Carlo error


class Memory(NamedTuple):
    """The key of the next draws, and what each filter of the last counted, (num_filters,)."""

    key: Array
    weights: Array


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
        return Memory(key, jnp.ones(self.num_filters))

    def sample(self, model: LatentModel, params: Params, memory: Memory) -> tuple[Sample, Memory]:
        """Paths, each filter's as far as its estimate of the evidence goes."""
        key, now = jax.random.split(memory.key)
        paths = self.paths(model, params, now)
        atoms = {k: v.reshape(-1, *v.shape[2:]) for k, v in paths.atoms.items()}
        logs = paths.by_series
        drawn = Sample(atoms, logs, log_mean(logs).sum())
        return drawn, Memory(key, batch_weights(logs))

    def promise(self, rises: Array, memory: Memory) -> tuple[Array, Array]:
        return mean_and_error(rises, memory.weights)

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
        logs = self._evidences(model, params, key)
        value, error = _evidence(logs)
        how = f"{len(logs)} particle filters of {self.num_particles} particles"
        return Evidence(value, error, float("nan"), how)

    def _evidences(self, model: LatentModel, params: Params, key: Array) -> np.ndarray:
        """log Z of each series by independent filters, (REPLICATES * num_filters, S)."""
        keys = jax.random.split(key, REPLICATES)
        return np.concatenate([_logs(model, self, params, k) for k in keys])

    def sized(self, model: LatentModel, params: Params, key: Array) -> "Particle":
        """With so many particles that independent filters count about alike at an estimate.

        The variance of the log-evidence falls like one over their number. Paths are fewer as
        particles are more, so that a sample takes as long as before.

        Source: Pitt, Silva, Giordani and Kohn (2012), Journal of Econometrics 171.
        """
        logs = self._evidences(model, params, key)
        spread = float(logs.var(0, ddof=1).sum())
        if not spread > MOST_VARIANCE:
            return self
        times = 2 ** int(np.ceil(np.log2(min(spread / MOST_VARIANCE, MOST_GROWTH))))
        num = self.num_particles * times
        least = min(LEAST_PATHS * self.num_filters, self.num_draws)
        draws = max(self.num_draws * self.num_particles // num, least)
        return replace(self, num_particles=num, num_draws=draws, max_draws=draws)

    def alarms(self, model: LatentModel, params: Params, memory: Memory) -> tuple[str, ...]:
        paths = jax.tree.map(np.asarray, _some(model, self, params, memory.key))
        _, error = _evidence(paths.by_series)
        first = jax.tree.map(lambda x: x[0], paths)._replace(log_evidence_variance=error**2)
        said = alarms(first, self.num_particles)
        count = len(paths.by_series) / np.mean(batch_weights(paths.by_series) ** 2)
        if count >= LEAST_FILTERS:
            return said
        uneven = (
            f"Filters: {self.num_filters} filters count like {count:.1f}, so uneven are their "
            "estimates of the evidence: Monte Carlo errors lean low. Use more particles, or "
            "Guided()."
        )
        return (*said, uneven)


def _evidence(logs: np.ndarray) -> tuple[float, float]:
    """log Z and its standard error from independent filters, (G, S)."""
    z = np.exp(logs - logs.max(0))
    mean = z.mean(0)
    error = z.std(0, ddof=1) / mean / np.sqrt(len(z))
    return float((logs.max(0) + np.log(mean)).sum()), float(np.sqrt((error**2).sum()))


@partial(jax.jit, static_argnames="estep")
def _logs(model: LatentModel, estep: Particle, params: Params, key: Array) -> Array:
    return estep.paths(model, params, key).by_series  # the paths are not computed


@partial(jax.jit, static_argnames="estep")
def _some(model: LatentModel, estep: Particle, params: Params, key: Array) -> Paths:
    return estep.paths(model, params, key)
