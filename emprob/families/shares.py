"""Shares and angles: Beta, Dirichlet, von Mises. No argument has a closed form."""

import jax.numpy as jnp
from jax.scipy.special import gammaln, i0e

from emprob.families.family import Family, Natural
from emprob.families.numerics import HALF_LOG_2PI, log, log1m, real, stack, zero_base


def _beta_natural(d, origin):
    a, b = real(d.concentration1), real(d.concentration0)
    # jax's betaln is wrong by 1e-6 once an argument reaches 8
    log_normalizer = gammaln(a) + gammaln(b) - gammaln(a + b)
    return Natural(stack(a - 1, b - 1), log_normalizer)


def _dirichlet_natural(d, origin):
    concentration = real(d.concentration)
    log_normalizer = gammaln(concentration).sum(-1) - gammaln(concentration.sum(-1))
    return Natural(concentration - 1, log_normalizer)


def _angle_statistics(d, x, origin):
    """(cos y - 1, sin y): the -1 keeps the digits of concentrated angles."""
    y = real(x) - origin
    return stack(-2 * jnp.sin(0.5 * y) ** 2, jnp.sin(y))


def _von_mises_natural(d, origin):
    kappa, shift = real(d.concentration), d.loc - origin
    log_normalizer = 2 * HALF_LOG_2PI + jnp.log(i0e(kappa)) + 2 * kappa * jnp.sin(0.5 * shift) ** 2
    return Natural(stack(kappa * jnp.cos(shift), kappa * jnp.sin(shift)), log_normalizer)


BETA = Family(
    "beta",
    lambda d, x, origin: stack(log(x), log1m(x)),
    _beta_natural,
    zero_base(0),
    {},
)
DIRICHLET = Family("dirichlet", lambda d, x, origin: log(x), _dirichlet_natural, zero_base(1), {})
VON_MISES = Family("von_mises", _angle_statistics, _von_mises_natural, zero_base(0), {})
