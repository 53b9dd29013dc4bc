"""Pseudo-counts of conjugate priors."""

import jax.numpy as jnp
import numpyro.distributions as dist

from emprob.families.family import Pseudo
from emprob.families.numerics import inverse_from_cholesky, precision_of, real


def gamma_prior(prior):
    """(shape, rate) of a Gamma prior, of which Exponential and Chi2 are cases; else None."""
    if type(prior) in (dist.Gamma, dist.Chi2):
        return prior.concentration, prior.rate
    return (1.0, prior.rate) if type(prior) is dist.Exponential else None


def inverse_gamma_prior(prior):
    """(shape, rate) of an InverseGamma prior; else None."""
    is_one = type(prior) is dist.InverseGamma
    return (prior.concentration, prior.rate) if is_one else None


def counts(parameters, rule):
    """Pseudo-counts by `rule` from the parameters that `parameters` finds in a prior."""

    def pseudo_counts(prior, shape):
        found = parameters(prior)
        return None if found is None else Pseudo(*rule(*map(real, found)))

    return pseudo_counts


def beta_counts(prior, shape):
    """Successes and trials of a Beta prior, on a probability."""
    if type(prior) is not dist.Beta:
        return None
    a, b = real(prior.concentration1), real(prior.concentration0)
    return Pseudo(a - 1, a + b - 2)


def dirichlet_counts(prior, shape):
    """Outcomes of a Dirichlet prior, on a simplex."""
    if type(prior) is not dist.Dirichlet:
        return None
    extra = real(prior.concentration) - 1
    return Pseudo(extra, extra.sum(-1, keepdims=True))


def normal_counts(prior, shape):
    """Precision-weighted location and precision of a Normal prior, on a location."""
    if type(prior) is not dist.Normal:
        return None
    precision = 1 / real(prior.scale) ** 2
    return Pseudo(real(prior.loc) * precision, precision)


def vector_normal_counts(prior, shape):
    """The same of a normal prior on a vector."""
    if type(prior) is dist.Normal:
        shape = jnp.broadcast_shapes(prior.batch_shape, shape)
        if not shape:
            return None
        precision = jnp.broadcast_to(1 / real(prior.scale) ** 2, shape)
        return Pseudo(prior.loc * precision, precision[..., None] * jnp.eye(shape[-1]))
    if type(prior) is not dist.MultivariateNormal:
        return None
    precision = precision_of(prior)
    return Pseudo((precision @ prior.loc[..., None])[..., 0], precision)


def wishart_counts(prior, shape):
    """Scatter and degrees of freedom of a Wishart prior, on a precision matrix."""
    if type(prior) is not dist.Wishart:
        return None
    extra = real(prior.concentration) - prior.event_shape[-1] - 1
    return Pseudo(inverse_from_cholesky(prior.scale_tril), extra[..., None, None])


def inverse_wishart_counts(prior, shape):
    """The same of an InverseWishart prior, on a covariance matrix."""
    if type(prior) is not dist.InverseWishart:
        return None
    extra = real(prior.concentration) + prior.event_shape[-1] + 1
    return Pseudo(prior.scale_matrix, extra[..., None, None])
