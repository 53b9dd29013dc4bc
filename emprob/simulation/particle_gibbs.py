"""Draws of the latents by particle Gibbs with ancestor sampling."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.keys import as_key
from emprob.model import LatentModel
from emprob.particle.gibbs import init_path, sweep
from emprob.particle.guided import Automatic
from emprob.particle.proposal import Proposal
from emprob.particle.settings import Settings
from emprob.types import Atoms, Params

Paths = dict[str, Array]


@dataclass(frozen=True)
class ParticleGibbs:
    """Whole paths of a scan's latents, each by a particle filter around the last.

    Exact for any number of particles, and for any scan; a few dozen particles mix well, because
    ancestors are drawn anew at every step.

    Attributes:
        proposal: `ep.Guided()` or `ep.Bootstrap()`; by default the first where it applies.
        num_particles: of each filter.
        num_chains: independent chains; their means tell the Monte Carlo error.
        num_discarded: sweeps at the start of each E-step.
        horizon: steps that an ancestor's weight looks ahead where the carry never forgets.

    Source: Lindsten, Jordan and Schon (2014), JMLR 15.
    """

    proposal: Proposal = field(default_factory=Automatic)
    num_particles: int = 16
    num_chains: int = 16
    num_discarded: int = 1
    horizon: int | None = None

    @property
    def num_batches(self) -> int:
        return self.num_chains

    @property
    def evidence(self) -> bool:
        return False

    @property
    def _settings(self) -> Settings:
        return Settings(
            num_particles=self.num_particles, num_paths=1, num_islands=1,
            proposal=self.proposal, horizon=self.horizon,
        )  # fmt: skip

    def init(self, model: LatentModel, params: Params, key: Array) -> Paths:
        """A path for every chain, from a particle filter."""
        keys = jax.random.split(as_key(key), self.num_chains)
        return jax.vmap(lambda k: init_path(model, params, k, self._settings))(keys)

    def draw(
        self, model: LatentModel, params: Params, state: Paths, key: Array, num: int
    ) -> tuple[Atoms, Array, Paths]:
        """`num` draws by site, (num, ...), chain after chain; NaN; and the paths after them."""
        each = -(-num // self.num_chains)
        first, second = jax.random.split(as_key(key))

        def step(paths: Paths, key: Array) -> tuple[Paths, Atoms]:
            keys = jax.random.split(key, self.num_chains)
            one = lambda k, p: sweep(model, params, k, p, self._settings)  # noqa: E731
            paths = jax.vmap(one)(keys, paths)
            return paths, {k: paths[k] for k in model.structure.continuous}

        paths, _ = lax.scan(step, state, jax.random.split(first, self.num_discarded))
        paths, drawn = lax.scan(step, paths, jax.random.split(second, each))
        atoms = {k: jnp.swapaxes(v, 0, 1).reshape(-1, *v.shape[2:]) for k, v in drawn.items()}
        return atoms, jnp.full((), jnp.nan), paths
