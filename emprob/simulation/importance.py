"""Draws of the latents from the Gaussian around their mean, weighted and resampled."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.errors import ModelError
from emprob.estep.conjugate import Conjugate
from emprob.estep.unsolved import Unsolved
from emprob.integral.expectation import problem, rest_factors
from emprob.integral.integral import values_of
from emprob.model import LatentModel, layout
from emprob.partition.plates import log_partition
from emprob.simulation.gaussian import around_mean_fixed, mirrored
from emprob.types import Atoms, Params


@dataclass(frozen=True)
class Importance:
    """Sampling importance resampling, series by series.

    Every draw comes with its mirror image through the centre. The log of the mean weight estimates
    log Z. Independent draws at every E-step; exact up to noise where the latents are Gaussian, and
    degenerate (few distinct draws) where a long chain is far from it: `ep.importance` tells by its
    k-hat, and `NUTS` does not mind.

    Attributes:
        num_batches: independent batches; their spread tells the Monte Carlo error.
        oversampling: weighted draws for each one that is kept.

    Source: Rubin (1987); Durbin and Koopman (1997), Biometrika 84(3), for the mirror images.
    """

    num_batches: int = 16
    oversampling: int = 4

    @property
    def evidence(self) -> bool:
        return True

    def init(self, model: LatentModel, params: Params, key: Array) -> tuple:
        groups = model.structure.integrals
        bad = [g for g in groups if g.branches or isinstance(g.rule, Unsolved | Conjugate)]
        if bad:
            names = ", ".join(repr(s) for g in bad for s in g.sites)
            raise ModelError(
                f"Importance(): latents {names} have no single Gaussian around a mode "
                f"({bad[0].why}). Use ep.MonteCarlo(ep.NUTS())."
            )
        return ()

    def draw(
        self, model: LatentModel, params: Params, state: tuple, key: Array, num: int
    ) -> tuple[Atoms, Array, tuple]:
        """`num` draws by site, (num, ...), batch after batch, and log Z by all of them."""
        each = -(-num // self.num_batches)
        many = max(each * self.oversampling // 2, 4)
        atoms: Atoms = {}
        tables = []
        for i, k in enumerate(jax.random.split(key, len(model.structure.integrals))):
            drawn, table = self._group(model, params, i, k, each, many)
            atoms |= drawn
            tables.append(table)
        out = model.evaluate(params)
        return atoms, log_partition(rest_factors(model, out, tables), layout(out)), state

    def _group(
        self, model, params, index: int, key: Array, each: int, many: int
    ) -> tuple[Atoms, Array]:
        """Of one group of latents: draws (num_batches * each, ...), and its table (1, S)."""
        p = problem(model, params, index)
        g = around_mean_fixed(p)

        def batch(key: Array) -> tuple[Array, Array, Array]:
            first, second = jax.random.split(key)
            noise = jax.random.normal(first, (many, *g.centre.shape), g.centre.dtype)
            z, logs = jax.vmap(lambda e: mirrored(g, p.fixed, e))(noise)
            z, logs = (x.swapaxes(0, 1).reshape(2 * many, *x.shape[2:]) for x in (z, logs))
            return z, logs, self._pick(second, logs[:, 0], each)

        z, logs, picks = lax.map(batch, jax.random.split(key, self.num_batches))
        table = jax.nn.logsumexp(logs, (0, 1)) - jnp.log(logs.shape[0] * logs.shape[1])
        chosen = jnp.take_along_axis(z[:, :, 0], picks[..., None, None], 1)
        chosen = chosen.reshape(-1, *chosen.shape[2:])
        values: Any = jax.vmap(lambda x: values_of(p.integral, model.data.integrals[index], x))
        return values(chosen), table

    def _pick(self, key: Array, logs: Array, num: int) -> Array:
        """Indices (num, S) of draws by their weights, systematic for each series, shuffled."""
        first, second = jax.random.split(key)
        shares = jnp.cumsum(jax.nn.softmax(logs, 0), 0)
        count = logs.shape[1]
        offset = jax.random.uniform(first, (count,))
        at = (jnp.arange(num)[:, None] + offset) / num * shares[-1]
        found = jax.vmap(jnp.searchsorted, in_axes=1, out_axes=1)(shares, at)
        found = jnp.minimum(found, len(logs) - 1)
        return jax.random.permutation(second, found, axis=0, independent=True)
