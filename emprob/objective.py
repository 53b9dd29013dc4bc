"""Q, its score, and what is done with parameters by site."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from emprob.estep.enumerate import inner
from emprob.model import LatentModel, naturals
from emprob.types import Params, Posterior


def expected_log_joint(model: LatentModel, params: Mapping[str, Array], posterior: Posterior):
    """Q(params) + log prior: sum_s <w_s, l_s(params)>, w fixed."""
    values, log_prior = naturals(model, params, posterior.atoms)
    return inner(posterior.weights, values) + log_prior


def score(model: LatentModel, u: Params, posterior: Posterior) -> tuple[Params, Array]:
    """Gradient of the objective at u (unconstrained), by Fisher's identity that of Q; log prior."""

    def q(v: Params) -> tuple[Array, Array]:
        values, log_prior = naturals(model, model.constrain(v), posterior.atoms)
        return inner(posterior.weights, values) + log_prior, log_prior

    return jax.grad(q, has_aux=True)(u)


def dot(a: Mapping[str, Array], b: Mapping[str, Array]) -> Array:
    """Inner product of two parameter trees."""
    return sum((jnp.sum(a[k] * b[k]) for k in a), jnp.zeros(()))


def subtract(a: Mapping[str, Array], b: Mapping[str, Array]) -> Params:
    """a - b, by site."""
    return {k: a[k] - b[k] for k in a}
