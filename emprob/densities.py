"""Log-densities as NumPyro has them, but with derivatives of every order, and counts made cheap."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import gammaln, xlog1py, xlogy
from numpyro.distributions.util import clamp_probs

from emprob.families.numerics import log_binomial, log_factorial, real, softplus


def log_density(base: Any, value: Any) -> Array:
    """The log-density of a distribution at a value.

    Newton's method asks for second derivatives, Laplace's approximation for third ones. NumPyro's
    Student-t squares by `y**2.0`, whose third derivative is 0 * inf where y is zero: at every
    observation that is equal to its location, such as a return of zero, and wherever a missing
    value is filled. Its laws of log-odds are `max(x, 0) + ...`, whose derivatives are wrong where
    the log-odds are zero: where a search begins. And the factorials of counts are log-gamma
    functions, ten times as dear as all the rest of such a law.

    Args:
        base: a NumPyro distribution.
        value: in its support.
    """
    law = _LAWS.get(type(base))
    if law is None or getattr(base, "is_sparse", False):
        return base.log_prob(value)
    return law(base, value)


def _student_t(base: Any, value: Any) -> Array:
    df = jnp.asarray(base.df)
    y = (value - base.loc) / base.scale
    constant = gammaln(0.5 * (df + 1.0)) - gammaln(0.5 * df) - 0.5 * jnp.log(jnp.pi * df)
    tail = -0.5 * (df + 1.0) * jnp.log1p(y * y / df)
    return tail + constant - jnp.log(base.scale)


def _log_odds(logits: Any, successes: Any, trials: Any) -> Array:
    """successes * x - trials * softplus(x); infinite log-odds are as good as the largest ones."""
    limit = 1e-3 * jnp.finfo(real(logits).dtype).max
    x = jnp.clip(real(logits), -limit, limit)
    return real(successes) * x - real(trials) * softplus(x)


def _bernoulli_logits(base: Any, value: Any) -> Array:
    return _log_odds(base.logits, value, 1.0)


def _binomial_logits(base: Any, value: Any) -> Array:
    total = base.total_count
    return _log_odds(base.logits, value, total) + log_binomial(total, value)


def _binomial_probs(base: Any, value: Any) -> Array:
    x, total, p = real(value), real(base.total_count), clamp_probs(base.probs)
    return xlogy(x, p) + xlog1py(total - x, -p) + log_binomial(total, x)


def _poisson(base: Any, value: Any) -> Array:
    x, rate = real(value), real(base.rate)
    return xlogy(x, rate) - rate - log_factorial(x)


_LAWS: Mapping[type, Callable[[Any, Any], Array]] = {
    dist.StudentT: _student_t,
    dist.BernoulliLogits: _bernoulli_logits,
    dist.BinomialLogits: _binomial_logits,
    dist.BinomialProbs: _binomial_probs,
    dist.Poisson: _poisson,
}
