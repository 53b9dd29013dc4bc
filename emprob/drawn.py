"""The posterior of the latents as draws: after an E-step by simulation."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emprob.errors import ModelError
from emprob.integral.moments import Moments
from emprob.keys import as_key
from emprob.model import LatentModel
from emprob.posterior import Marginals, marginals
from emprob.precision import working

MOST = 256  # draws at which discrete latents are summed out


class DrawnPosterior(Marginals):
    """Posteriors of all latents: the continuous ones drawn, the discrete ones exact at each draw.

    Args:
        model: with plain integrals.
        params: by site, constrained.
        draws: of the continuous latents, by site (A, ...).
    """

    def __init__(
        self, model: LatentModel, params: Mapping[str, Any], draws: Mapping[str, np.ndarray]
    ):
        self.model, self.params, self.draws = model, dict(params), dict(draws)

    def moments(self, site: str) -> Moments:
        """Means and covariances of the draws."""
        x = self.draws[site]
        apart = x - x.mean(0)
        event = apart if self._has_event(site) else apart[..., None]
        covariance = np.einsum("a...i,a...j->...ij", event, event) / len(x)
        pairwise = None
        if site in self.model.structure.timed:
            pairwise = np.einsum("at...i,at...j->t...ij", event[:, :-1], event[:, 1:]) / len(x)
        return Moments(x.mean(0), x.var(0), covariance, pairwise)  # pyright: ignore

    def _has_event(self, site: str) -> bool:
        slots = [s for i in self.model.structure.integrals for s in i.block.slots]
        slot = next(s for s in slots if s.site == site)
        return bool(slot.shape) and len(slot.shape) - 1 not in slot.axes

    def filtered_moments(self, site: str) -> Any:
        raise ModelError(
            f"latent '{site}': draws of the latents given all data tell nothing of the filter. Fit "
            "with ep.Laplace(), or run the filter of ep.Particle() on the data up to t."
        )

    def draw(self, key: Any, num: int) -> dict[str, np.ndarray]:
        """Draws of all continuous latents together, (num, ...)."""
        rows = self._rows(key, num)
        return {k: v[rows] for k, v in self.draws.items()}

    def joint(self, key: Any, num: int) -> dict[str, np.ndarray]:
        """Draws of all latents together, (num, ...), the discrete ones given the others."""
        first, second = jax.random.split(as_key(key))
        rows = self._rows(first, num)
        drawn = {k: v[rows] for k, v in self.draws.items()}
        return drawn | {k: self[k].values[i] for k, i in self._indices(rows, second).items()}

    def _rows(self, key: Any, num: int) -> np.ndarray:
        count = len(next(iter(self.draws.values())))
        return np.asarray(jax.random.randint(as_key(key), (num,), 0, count))

    def _given(self, row: int) -> Any:
        """The posterior of the discrete latents at one draw of the others."""
        with working(self.model):
            held = {k: jnp.asarray(v[row]) for k, v in self.draws.items()}
            data = replace(self.model.data, held={**self.model.data.held, **held}, integrals=())
            structure = replace(self.model.structure, integrals=())
            return marginals(replace(self.model, data=data, structure=structure), self.params)

    @cached_property
    def smoothed(self) -> dict[str, np.ndarray]:
        """Probabilities of the discrete latents, averaged over draws of the others."""
        count = len(next(iter(self.draws.values())))
        rows = np.linspace(0, count - 1, min(count, MOST)).astype(int)
        found = [self._given(r).smoothed for r in rows]
        return {k: np.mean([f[k] for f in found], 0) for k in found[0]}

    def sample_indices(self, key: Any, num: int) -> dict[str, np.ndarray]:
        """Draws of the discrete latents, each at a draw of the others."""
        first, second = jax.random.split(as_key(key))
        return self._indices(self._rows(first, num), second)

    def _indices(self, rows: np.ndarray, key: Any) -> dict[str, np.ndarray]:
        keys = jax.random.split(key, len(rows))
        found = [self._given(r).sample_indices(k, 1) for r, k in zip(rows, keys, strict=True)]
        return {k: np.concatenate([f[k] for f in found]) for k in found[0]}

    def pairwise(self, site: str) -> Any:
        raise ModelError(f"latent '{site}': no pair probabilities from draws. Use sample().")

    @property
    def filtered(self) -> Any:
        raise ModelError("no filter from draws of the latents given all data. See ep.Particle().")

    @property
    def most_likely(self) -> Any:
        raise ModelError("no most likely path from draws of the latents. Use sample().")
