"""Counts and waiting times: Poisson, exponential, Gamma, Laplace, Pareto."""

import jax.numpy as jnp
from jax.scipy.special import gammaln

from emprob.families.family import Argument, Family, Natural
from emprob.families.numerics import log, log_factorial, real, stack, zero_base
from emprob.families.views import ALPHA, GAMMA_RATE, INTENSITY, LAPLACE_SCALE, RATE


def _exponential_natural(d, origin):
    rate = real(d.rate)
    return Natural(-rate[..., None], -log(rate))


def _gamma_natural(d, origin):
    shape, rate = real(d.concentration), real(d.rate)
    return Natural(stack(shape - 1, -rate), gammaln(shape) - shape * jnp.log(rate))


def _inverse_gamma_natural(d, origin):
    shape, rate = real(d.concentration), real(d.rate)
    return Natural(stack(-shape - 1, -rate), gammaln(shape) - shape * jnp.log(rate))


def _gamma_rate_ratio(S, n, d, origin):
    return n * d.concentration, S[..., 1]


_GAMMA_ARGUMENTS = {"rate": Argument(_gamma_rate_ratio, lambda d: real(d.rate), GAMMA_RATE)}
POISSON = Family(
    "poisson",
    lambda d, x, origin: real(x)[..., None],
    lambda d, origin: Natural(log(d.rate)[..., None], real(d.rate)),
    lambda d, x: -log_factorial(real(x)),
    {"rate": Argument(lambda S, n, d, c: (S[..., 0], n), lambda d: real(d.rate), INTENSITY)},
)
EXPONENTIAL = Family(
    "exponential",
    lambda d, x, origin: real(x)[..., None],
    _exponential_natural,
    zero_base(0),
    {"rate": Argument(lambda S, n, d, c: (n, S[..., 0]), lambda d: real(d.rate), RATE)},
)
GAMMA = Family(
    "gamma",
    lambda d, x, origin: stack(log(x), x),
    _gamma_natural,
    zero_base(0),
    _GAMMA_ARGUMENTS,
)
INVERSE_GAMMA = Family(
    "inverse_gamma",
    lambda d, x, origin: stack(log(x), 1 / real(x)),
    _inverse_gamma_natural,
    zero_base(0),
    _GAMMA_ARGUMENTS,
)
LAPLACE = Family(
    "laplace",
    lambda d, x, origin: jnp.abs(real(x) - d.loc)[..., None],
    lambda d, origin: Natural(-1 / real(d.scale)[..., None], jnp.log(2 * real(d.scale))),
    zero_base(0),
    {"scale": Argument(lambda S, n, d, c: (S[..., 0], n), lambda d: real(d.scale), LAPLACE_SCALE)},
    constants=("loc",),
)
PARETO = Family(
    "pareto",
    lambda d, x, origin: (log(x) - log(d.scale))[..., None],
    lambda d, origin: Natural(-real(d.alpha)[..., None], -jnp.log(real(d.alpha))),
    lambda d, x: -log(x),
    {"alpha": Argument(lambda S, n, d, c: (n, S[..., 0]), lambda d: real(d.alpha), ALPHA)},
    constants=("scale",),
)
