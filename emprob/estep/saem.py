"""Stochastic approximation EM: few draws at each step, averaged over the steps."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.estep.simulated import Kernel, Stochastic
from emprob.model import LatentModel
from emprob.simulation.draws import alike, posterior_at
from emprob.simulation.nuts import NUTS
from emprob.simulation.statistics import (
    MANY,
    Reference,
    number_of_statistics,
    reference,
    shares,
)
from emprob.types import Atoms, Params, Posterior, Sample


class Memory(NamedTuple):
    """What SAEM carries.

    Attributes:
        key: of the next draws.
        state: of the kernel.
        count: steps taken.
        atoms: reference draws, or the last draws themselves, (R, ...) by site.
        shares: (R,), what each counts in Q.
        reference: how draws become shares, or None.
    """

    key: Array
    state: Any
    count: Array
    atoms: Atoms
    shares: Array
    reference: Reference | None


@dataclass(frozen=True)
class SAEM(Stochastic):
    """Average the statistics of a few draws over the steps of EM.

    With step lengths g = 1 for `burn_in` steps and then 1, 2^-a, 3^-a, ..., Q becomes
    (1 - g) Q + g (its mean over the fresh draws). Where the log-joint has few sufficient statistics
    (found by evaluating it, see `simulation/statistics.py`) that is an average of statistics;
    where it has not, the draws of the last steps are kept with their shares.

    Attributes:
        kernel: `ep.NUTS()` or `ep.ParticleGibbs()`; one draw of each of its chains at a step.
        burn_in: steps that forget the start.
        averaging: steps after them.
        exponent: a, in (0.5, 1]; 1 averages all draws after the burn-in alike.
        annealing: the least share of its last value that a positive parameter keeps in a step of
            the burn-in, so that no variance collapses before the latents have moved; 0: none.
        window: draws that are kept where there are no statistics.
        final_draws: of the sample at the end, which gives standard errors and Monte Carlo errors.
        statistics: how many there are; 0: keep the draws; None: found.

    Source: Delyon, Lavielle and Moulines (1999), Annals of Statistics 27(1); Kuhn and Lavielle
    (2005), CSDA 49(4).
    """

    kernel: Kernel = field(default_factory=NUTS)
    burn_in: int = 60
    averaging: int = 100
    exponent: float = 1.0
    annealing: float = 0.9
    window: int = 512
    final_draws: int = 4096
    statistics: int | None = None

    def __post_init__(self):
        if self.burn_in < 1 or self.averaging < 1:
            raise ValueError(
                f"SAEM(burn_in={self.burn_in}, averaging={self.averaging}): expected integers >= 1."
            )
        if not 0.5 < self.exponent <= 1.0:
            raise ValueError(f"SAEM(exponent={self.exponent}): expected a number in (0.5, 1].")
        if not 0.0 <= self.annealing < 1.0:
            raise ValueError(f"SAEM(annealing={self.annealing}): expected a number in [0, 1).")

    @property
    def evidence(self) -> bool:
        return False

    @property
    def num_batches(self) -> int:
        return self.kernel.num_batches

    def prepared(self, model: LatentModel, params: Params, key: Array) -> "SAEM":
        """With the number of statistics found, from a first sample."""
        if self.statistics is not None:
            return self
        atoms = _first(model, self.kernel, params, key)
        return replace(self, statistics=number_of_statistics(model, params, atoms, key))

    def init(self, model: LatentModel, params: Params, key: Array) -> Memory:
        first, second, third, key = jax.random.split(key, 4)
        state = self.kernel.init(model, params, first)
        atoms, _, state = self.kernel.draw(model, params, state, second, self._pool)
        found = None
        if self.statistics:
            found = reference(model, params, atoms, third, self.statistics)
            atoms = found.atoms
        count = len(next(iter(atoms.values())))
        return Memory(key, state, jnp.zeros((), int), atoms, jnp.zeros(count), found)

    @property
    def _pool(self) -> int:
        return self.window if self.statistics == 0 else 2 * MANY

    def update(
        self, model: LatentModel, params: Params, memory: Memory
    ) -> tuple[Posterior, Memory]:
        """One draw of each chain, averaged with those before."""
        key, now = jax.random.split(memory.key)
        num = self.kernel.num_batches
        fresh, _, state = self.kernel.draw(model, params, memory.state, now, num)
        after = jnp.maximum(memory.count - self.burn_in + 1, 1).astype(float)
        gamma = after**-self.exponent
        if memory.reference is not None:
            atoms = memory.atoms
            new = (1.0 - gamma) * memory.shares + gamma * shares(model, memory.reference, fresh)
        else:
            blocks = len(memory.shares) // num
            at = (memory.count % blocks) * num
            put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, at, 0)  # noqa: E731
            atoms = {k: put(v, fresh[k]) for k, v in memory.atoms.items()}
            new = put((1.0 - gamma) * memory.shares, jnp.full(num, gamma / num))
            new = new / new.sum()
        memory = Memory(key, state, memory.count + 1, atoms, new, memory.reference)
        return posterior_at(model, params, atoms, new, jnp.full((), jnp.nan)), memory

    def sample(self, model: LatentModel, params: Params, memory: Memory) -> tuple[Sample, Memory]:
        key, now = jax.random.split(memory.key)
        atoms, value, state = self.kernel.draw(
            model, params, memory.state, now, self.final_draws
        )  # fmt: skip
        return Sample(atoms, alike(self.num_batches), value), memory._replace(key=key, state=state)

    def promise(self, rises: Array, memory: Memory) -> tuple[Array, Array]:
        """The increase of the averaged Q; its error is infinite when the schedule is over."""
        over = memory.count > self.burn_in + self.averaging
        return memory.shares @ rises, jnp.where(over, jnp.inf, 0.0)

    def adopts(self, gain: Array, error: Array) -> Array:
        return jnp.isfinite(gain) & jnp.isfinite(error)

    def confined(self, model: LatentModel, old: Params, new: Params, memory: Memory) -> Params:
        """No positive parameter falls by more than its share in a step of the burn-in."""
        hot = memory.count <= self.burn_in
        limited = {}
        for name, value in new.items():
            support: Any = model.data.transforms[name].codomain
            bound = getattr(support, "lower_bound", None)
            if bound is not None and not hasattr(support, "upper_bound"):
                least = bound + self.annealing * (old[name] - bound)
                value = jnp.where(hot, jnp.maximum(value, least), value)
            limited[name] = value
        return limited

    def grown(self) -> None:
        return None

    def final(self) -> "SAEM":
        return self


@partial(jax.jit, static_argnames="kernel")
def _first(model: LatentModel, kernel: Kernel, params: Params, key: Array) -> Atoms:
    """A first sample of the latents."""
    first, second = jax.random.split(key)
    state = kernel.init(model, params, first)
    return kernel.draw(model, params, state, second, 2 * MANY)[0]
