"""The evidence of a program, its parameters integrated out: what priors are compared by."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import logsumexp

import emprob as ep
from emprob import _arviz, start_point
from emprob.precision import working
from emprob.uncertainty import unconstrained_covariance

NUM_DRAWS = 4000
FREEDOM = 5.0  # of the proposal: a posterior of shares and widths has tails


class Evidence(NamedTuple):
    """Logarithm of the integral of likelihood times prior.

    Attributes:
        log: by importance sampling from a Student t at the estimate, with the fit's covariance;
            of the neighbourhood of one optimum, where there are several far apart.
        error: its Monte Carlo standard error.
        khat: Pareto k of the weights; above .7 neither number can be relied on.
    """

    log: float
    error: float
    khat: float


def log_evidence(found: ep.Fit, key: int = 0, num_draws: int = NUM_DRAWS) -> Evidence:
    """Evidence of a fit's program, NaN where the fit has no covariance.

    Args:
        found: a fit whose program has priors and whose latents are integrated exactly.
        key: of the draws.
        num_draws: in unconstrained space.

    Source: Geweke (1989), Econometrica 57(6); k-hat: Vehtari et al. (2024), JMLR 25(72).
    """
    model, report = found.model, found.uncertainty
    if report.boundary or not report.identified:
        return Evidence(np.nan, np.nan, np.nan)
    root = np.linalg.cholesky(unconstrained_covariance(model, found.params, report))
    rng, size = np.random.default_rng(key), len(root)
    noise = rng.standard_normal((num_draws, size))
    noise /= np.sqrt(rng.chisquare(FREEDOM, (num_draws, 1)) / FREEDOM)
    with working(model):
        sites = {name: jnp.asarray(found.params[name]) for name in model.params}
        points = start_point.ravel(model, model.unconstrain(sites)) + jnp.asarray(noise @ root.T)
        log_target = -np.asarray(start_point.potentials(model, points), float)
    log_law = stats.multivariate_t(np.zeros(size), np.eye(size), FREEDOM).logpdf(noise)
    ratios = log_target - np.reshape(log_law, num_draws) + np.log(np.diag(root)).sum()
    weights = np.exp(ratios - ratios.max())
    error = weights.std() / weights.mean() / np.sqrt(num_draws)
    log = logsumexp(ratios) - np.log(num_draws)
    with np.errstate(over="ignore"):  # ArviZ, where one weight is most of the sum
        khat = _arviz.pareto_khat(ratios)[1]
    return Evidence(float(log), float(error), khat)
