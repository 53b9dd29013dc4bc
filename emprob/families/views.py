"""Parametrisations in which a user may have written an argument."""

from types import MappingProxyType

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints

from emprob.families.family import View
from emprob.families.numerics import inverse_of, real
from emprob.families.priors import (
    beta_counts,
    counts,
    dirichlet_counts,
    gamma_prior,
    inverse_gamma_prior,
    inverse_wishart_counts,
    normal_counts,
    vector_normal_counts,
    wishart_counts,
)


def _identity(x):
    return real(x)


def _reciprocal(x):
    return 1 / real(x)


def _views(**views):
    return MappingProxyType(views)


_POSITIVE = constraints.positive
REAL = _views(loc=View(_identity, _identity, constraints.real, normal_counts))
SCALE = _views(
    scale=View(lambda s: real(s) ** 2, jnp.sqrt, _POSITIVE),
    variance=View(
        _identity,
        _identity,
        _POSITIVE,
        counts(inverse_gamma_prior, lambda a, b: (2 * b, 2 * (a + 1))),
    ),
    precision=View(
        _reciprocal, _reciprocal, _POSITIVE, counts(gamma_prior, lambda a, b: (2 * b, 2 * (a - 1)))
    ),
    log_scale=View(lambda s: jnp.exp(2 * real(s)), lambda v: 0.5 * jnp.log(v), constraints.real),
    log_variance=View(lambda s: jnp.exp(real(s)), jnp.log, constraints.real),
)
_RATE = View(_identity, _identity, _POSITIVE, counts(gamma_prior, lambda a, b: (a - 1, b)))
_LOG_RATE = View(lambda r: jnp.exp(real(r)), jnp.log, constraints.real)
_MEAN_OF_RATE = View(
    _reciprocal, _reciprocal, _POSITIVE, counts(inverse_gamma_prior, lambda a, b: (a + 1, b))
)
INTENSITY = _views(rate=_RATE, log_rate=_LOG_RATE)
RATE = _views(rate=_RATE, mean=_MEAN_OF_RATE, log_rate=_LOG_RATE)
GAMMA_RATE = _views(rate=_RATE, scale=_MEAN_OF_RATE, log_rate=_LOG_RATE)
ALPHA = _views(alpha=_RATE, log_alpha=_LOG_RATE)
LAPLACE_SCALE = _views(
    scale=View(
        _identity, _identity, _POSITIVE, counts(inverse_gamma_prior, lambda a, b: (b, a + 1))
    ),
    rate=View(_reciprocal, _reciprocal, _POSITIVE, counts(gamma_prior, lambda a, b: (b, a - 1))),
    log_scale=_LOG_RATE,
)
PROBS = _views(
    probs=View(_identity, _identity, constraints.unit_interval, beta_counts),
    logits=View(lambda v: jax.nn.sigmoid(real(v)), jax.scipy.special.logit, constraints.real),
)
SIMPLEX = _views(
    probs=View(_identity, _identity, constraints.simplex, dirichlet_counts),
    logits=View(lambda v: jax.nn.softmax(real(v), -1), jnp.log, constraints.real_vector),
)
MEAN = _views(mean=View(_identity, _identity, _POSITIVE), log_mean=_LOG_RATE)
ODDS = _views(rate=View(_identity, _identity, _POSITIVE), log_rate=_LOG_RATE)
VECTOR = _views(loc=View(_identity, _identity, constraints.real_vector, vector_normal_counts))
COVARIANCE = _views(
    covariance_matrix=View(
        _identity, _identity, constraints.positive_definite, inverse_wishart_counts
    ),
    scale_tril=View(
        lambda m: m @ jnp.swapaxes(m, -1, -2), jnp.linalg.cholesky, constraints.lower_cholesky
    ),
    precision_matrix=View(inverse_of, inverse_of, constraints.positive_definite, wishart_counts),
)
