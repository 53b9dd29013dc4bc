"""Two outcomes, and counts of them: Bernoulli, binomial, geometric, negative binomial."""

import jax.numpy as jnp
from jax.scipy.special import gammaln

from emprob.families.family import Argument, Family, Natural
from emprob.families.numerics import (
    floor,
    log_binomial,
    log_factorial,
    log_odds_pair,
    real,
    stack,
    success_probs,
    zero_base,
)
from emprob.families.views import MEAN, ODDS, PROBS


def _pair_natural(d, origin):
    eta = stack(*log_odds_pair(d))
    return Natural(eta, jnp.zeros(eta.shape[:-1], eta.dtype))


def _share_ratio(S, n, d, origin):
    return S[..., 0], S[..., 0] + S[..., 1]


_PROBS_ARGUMENT = {"probs": Argument(_share_ratio, success_probs, PROBS)}


def _log_negative_binomial(shape_name):
    def log_base(d, x):
        x, shape = real(x), real(getattr(d, shape_name))
        return gammaln(x + shape) - gammaln(shape) - log_factorial(x)

    return log_base


BERNOULLI = Family(
    "bernoulli",
    lambda d, x, origin: stack(x, 1 - real(x)),
    _pair_natural,
    zero_base(0),
    _PROBS_ARGUMENT,
)
BINOMIAL = Family(
    "binomial",
    lambda d, x, origin: stack(x, d.total_count - real(x)),
    _pair_natural,
    lambda d, x: log_binomial(d.total_count, x),
    _PROBS_ARGUMENT,
    constants=("total_count",),
)
# x counts the outcomes other than the first success, hence the pair (1, x)
GEOMETRIC = Family(
    "geometric",
    lambda d, x, origin: stack(1.0, x),
    _pair_natural,
    zero_base(0),
    _PROBS_ARGUMENT,
)
NEGATIVE_BINOMIAL = Family(
    "negative_binomial",
    lambda d, x, origin: stack(x, d.total_count),
    _pair_natural,
    _log_negative_binomial("total_count"),
    _PROBS_ARGUMENT,
    constants=("total_count",),
)


def _gamma_poisson_natural(d, origin):
    rate = real(d.rate)
    eta = stack(floor(-jnp.log1p(rate)), floor(-jnp.log1p(1 / rate)))
    return Natural(eta, jnp.zeros(eta.shape[:-1], eta.dtype))


def _gamma_poisson(name, arguments):
    return Family(
        name,
        lambda d, x, origin: stack(x, d.concentration),
        _gamma_poisson_natural,
        _log_negative_binomial("concentration"),
        arguments,
        constants=("concentration",),
    )


GAMMA_POISSON = _gamma_poisson(
    "gamma_poisson",
    {"rate": Argument(lambda S, n, d, c: (S[..., 1], S[..., 0]), lambda d: real(d.rate), ODDS)},
)
NEGATIVE_BINOMIAL2 = _gamma_poisson(
    "negative_binomial2",
    {
        "mean": Argument(
            lambda S, n, d, c: (S[..., 0], n),
            lambda d: d.concentration / real(d.rate),
            MEAN,
            requires=("concentration",),
        )
    },
)
