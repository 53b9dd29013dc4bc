"""The E-step by a variational family: a bound on the objective, and draws of a guide."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from numpyro.infer.autoguide import AutoNormal

from emprob.estep.simulated import Simulated
from emprob.model import LatentModel
from emprob.settle import Evidence
from emprob.simulation.draws import alike, log_joint, mean_and_error
from emprob.simulation.guide import Guide, guide_of
from emprob.types import Params, Sample

ADAM = optax.adam(0.02)
BATCHES = 16


class Memory(NamedTuple):
    """The key of the next draws, the guide's unconstrained parameters, the optimiser's state."""

    key: Array
    free: dict[str, Array]
    state: Any


@dataclass(frozen=True)
class Variational(Simulated):
    """Draw the latents from a guide that is kept near their posterior.

    Each step moves the guide up the bound E_q[log p(y, z | params) - log q(z)] by reparameterised
    gradients, the discrete latents summed out, and hands its draws to the M-step: variational EM.
    What it climbs is a bound on the objective, below it by the divergence of the guide from the
    posterior; estimates and standard errors are those of the bound, and Monte Carlo errors leave
    out how far the guide is from its own optimum.

    Attributes:
        guide: a NumPyro AutoGuide class, or a guide of your own (called with the program's
            arguments; amortised ones included) whose sites are named as the continuous latents.
        optimizer: an Optax transformation for the guide. Create it once.
        num_steps: of the optimiser before each M-step; twenty times as many at the end.
        num_first: of the optimiser before the first one.
        num_particles: draws for each of its gradients.
        num_draws: for the first M-steps; eight times as many once noise hides the gain.
        max_draws: for the last.
        final_draws: of the sample at the end, for the bound and the standard errors.
        num_importance: draws inside the logarithm of the bound that is reported; with more than
            one it is the importance-weighted bound, closer to log Z.
        confidence: with which the bound increases at every step that is taken.

    Source: Kucukelbir et al. (2017), JMLR 18, for reparameterised gradients through a program;
    Burda, Grosse and Salakhutdinov (2016), ICLR, for the importance-weighted bound.
    """

    guide: Any = AutoNormal
    optimizer: Any = ADAM
    num_steps: int = 20
    num_first: int = 1000
    num_particles: int = 8
    num_draws: int = 128
    max_draws: int = 1024
    final_draws: int = 4096
    num_importance: int = 1
    confidence: float = 0.9

    def __post_init__(self):
        self._check_draws()
        if not callable(self.guide):
            raise ValueError(f"Variational(guide={self.guide!r}): expected a class or a function.")
        if not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise ValueError(
                f"Variational(optimizer={self.optimizer!r}): expected an optax transformation."
            )

    @property
    def evidence(self) -> bool:
        return True

    @property
    def unbiased(self) -> bool:
        return False

    @property
    def num_batches(self) -> int:
        return BATCHES

    def prepared(self, model: LatentModel, params: Params, key: Array) -> "Variational":
        """Make the guide where nothing is traced."""
        guide_of(model, self.guide)
        return self

    def init(self, model: LatentModel, params: Params, key: Array) -> Memory:
        guide = guide_of(model, self.guide)
        memory = Memory(key, guide.start, self.optimizer.init(guide.start))
        return self._climbed(model, params, guide, memory, self.num_first)

    def sample(self, model: LatentModel, params: Params, memory: Memory) -> tuple[Sample, Memory]:
        """Move the guide, and draw from it: by site (A, ...), the bound, the memory after them."""
        guide = guide_of(model, self.guide)
        memory = self._climbed(model, params, guide, memory, self.num_steps)
        key, now = jax.random.split(memory.key)
        num = -(-self.num_draws // BATCHES) * BATCHES
        drawn = jax.vmap(lambda k: guide.draw(memory.free, k))(jax.random.split(now, num))
        gaps = jax.vmap(lambda z: log_joint(model, params, z))(drawn.latents) - drawn.log_density
        return Sample(drawn.latents, alike(BATCHES), gaps.mean()), memory._replace(key=key)

    def _climbed(
        self, model: LatentModel, params: Params, guide: Guide, memory: Memory, num: int
    ) -> Memory:
        def loss(free: dict[str, Array], key: Array) -> Array:
            def one(key: Array) -> Array:
                z, log_density = guide.draw(free, key)
                return log_density - log_joint(model, params, z)

            return jax.vmap(one)(jax.random.split(key, self.num_particles)).mean()

        def step(i: Array, carry: tuple[Memory, Any]) -> tuple[Memory, Any]:
            memory, mean = carry
            key, now = jax.random.split(memory.key)
            slope = jax.grad(loss)(memory.free, now)
            slope = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0.0), slope)
            move, state = self.optimizer.update(slope, memory.state, memory.free)
            free: Any = optax.apply_updates(memory.free, move)
            share = 1.0 / jnp.maximum(i - num // 2 + 1, 1)
            mean = jax.tree.map(lambda m, x: m + share * (x - m), mean, free)
            return Memory(key, free, state), mean

        memory, mean = lax.fori_loop(0, num, step, (memory, memory.free))
        return memory._replace(free=mean)  # of the last half: the optimiser's noise averaged

    def final(self) -> "Variational":
        return replace(super().final(), num_steps=20 * self.num_steps)

    def log_evidence(
        self, model: LatentModel, params: Params, memory: Memory, key: Array
    ) -> Evidence:
        """The bound at an estimate, importance-weighted if asked for, and its error."""
        params = {k: jnp.asarray(v) for k, v in params.items()}
        logs = _log_ratios(model, self, params, memory, key)
        inner = jax.nn.logsumexp(logs, 1) - jnp.log(logs.shape[1])
        value, error = mean_and_error(inner, jnp.ones(BATCHES))
        name = "ELBO" if self.num_importance == 1 else f"importance-weighted, {logs.shape[1]} draws"
        return Evidence(float(value), float(error), float("nan"), f"a lower bound ({name})")


@partial(jax.jit, static_argnames="estep")
def _log_ratios(
    model: LatentModel, estep: Variational, params: Params, memory: Memory, key: Array
) -> Array:
    """log p(y, z | params) - log q(z), (draws, draws inside the logarithm)."""
    guide = guide_of(model, estep.guide)
    inside = estep.num_importance
    outside = -(-max(estep.final_draws // inside, 1) // BATCHES) * BATCHES

    def one(key: Array) -> Array:
        z, log_density = guide.draw(memory.free, key)
        return log_joint(model, params, z) - log_density

    keys = jax.random.split(key, outside * inside)
    return lax.map(one, keys, batch_size=256).reshape(outside, inside)
