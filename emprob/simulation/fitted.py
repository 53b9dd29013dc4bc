"""log Z by importance sampling from a Gaussian fitted to draws of the latents."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob import _arviz
from emprob.model import LatentModel
from emprob.simulation.target import joint_target
from emprob.types import Params

WIDEST = 200  # coordinates of which a covariance is told from draws
WIDER = 1.3  # variance of the proposal over that of the draws, so that the weights stay bounded
NUM = 4000


def fitted_evidence(
    model: LatentModel, params: Mapping[str, Any], draws: Mapping[str, np.ndarray], key: Array
) -> tuple[float, float, float] | None:
    """log Z, its standard error and Pareto k-hat; None where there are too many coordinates.

    Args:
        model: with plain integrals.
        params: by site, constrained.
        draws: of all continuous latents given the data, by site (A, ...).
        key: of the importance sampler.
    """
    real = np.concatenate([np.asarray(d.real).ravel() for d in model.data.integrals]) > 0
    count = len(next(iter(draws.values())))
    if real.sum() > WIDEST or count < 10 * real.sum():
        return None
    u = np.asarray(_packed(model, {k: jnp.asarray(v) for k, v in draws.items()}))[:, real]
    covariance = WIDER * np.cov(u, rowvar=False).reshape(real.sum(), -1)
    root = np.linalg.cholesky(covariance + 1e-12 * np.trace(covariance) * np.eye(len(covariance)))
    noise = np.asarray(jax.random.normal(key, (NUM, len(root)), "float64"))
    points = np.zeros((NUM, len(real)))
    points[:, real] = u.mean(0) + noise @ root.T
    log_q = -0.5 * (noise**2).sum(1) - np.log(np.diag(root)).sum()
    log_q = log_q - 0.5 * len(root) * np.log(2 * np.pi)
    arrays = {k: jnp.asarray(v) for k, v in params.items()}
    logs = np.asarray(_densities(model, arrays, jnp.asarray(points))) - log_q
    weights = np.exp(logs - logs.max())
    value = float(logs.max() + np.log(weights.mean()))
    error = float(weights.std(ddof=1) / weights.mean() / np.sqrt(NUM))
    return value, error, float(_arviz.pareto_khat(logs)[1])


@jax.jit
def _packed(model: LatentModel, draws: Mapping[str, Array]) -> Array:
    """Draws by site -> coordinates of all groups, (A, P)."""

    def one(values: Mapping[str, Array]) -> Array:
        parts = []
        for g, d in zip(model.structure.integrals, model.data.integrals, strict=True):
            u = {k: d.transforms[k].inv(values[k]) for k in g.sites}
            parts.append(g.block.pack(u).ravel())
        return jnp.concatenate(parts)

    return jax.vmap(one)(draws)


@jax.jit
def _densities(model: LatentModel, params: Params, points: Array) -> Array:
    """The log-joint at coordinates (A, P), what is not real left out, (A,)."""
    target = joint_target(model, params)
    return target.log_density(points[:, None])[:, 0]
