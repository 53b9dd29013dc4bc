"""Normal, log-normal and half-normal."""

import math

import jax.numpy as jnp

from emprob.families.family import Argument, Family, Natural
from emprob.families.numerics import HALF_LOG_2PI, log, real, stack, zero_base
from emprob.families.views import REAL, SCALE


def _square_statistics(y):
    return stack(y, y * y)


def _normal_natural(d, origin):
    scale = real(d.scale)
    shift, precision = d.loc - origin, 1 / scale**2
    log_normalizer = 0.5 * shift**2 * precision + jnp.log(scale) + HALF_LOG_2PI
    return Natural(stack(shift * precision, -0.5 * precision), log_normalizer)


def _mean_ratio(S, n, d, origin):
    return S[..., 0] + n * origin, n


def _normal_loc_ratio(S, n, d, origin):
    num, den = _mean_ratio(S, n, d, origin)
    precision = 1 / real(d.scale) ** 2
    return num * precision, den * precision


def _normal_variance_ratio(S, n, d, origin):
    shift = d.loc - origin
    return jnp.maximum(S[..., 1] - shift * (2 * S[..., 0] - n * shift), 0.0), n


_NORMAL_ARGUMENTS = {
    "loc": Argument(
        _normal_loc_ratio,
        lambda d: real(d.loc),
        REAL,
        exact_given=("scale",),
        shared_ratio=_mean_ratio,
    ),
    "scale": Argument(_normal_variance_ratio, lambda d: real(d.scale) ** 2, SCALE),
}
NORMAL = Family(
    "normal",
    lambda d, x, origin: _square_statistics(real(x) - origin),
    _normal_natural,
    zero_base(0),
    _NORMAL_ARGUMENTS,
)
LOG_NORMAL = Family(
    "log_normal",
    lambda d, x, origin: _square_statistics(log(x) - origin),
    _normal_natural,
    lambda d, x: -log(x),
    _NORMAL_ARGUMENTS,
)


def _half_normal_natural(d, origin):
    scale = real(d.scale)
    log_normalizer = jnp.log(scale) + HALF_LOG_2PI - math.log(2)
    return Natural((-0.5 / scale**2)[..., None], log_normalizer)


HALF_NORMAL = Family(
    "half_normal",
    lambda d, x, origin: real(x)[..., None] ** 2,
    _half_normal_natural,
    zero_base(0),
    {"scale": Argument(lambda S, n, d, c: (S[..., 0], n), lambda d: real(d.scale) ** 2, SCALE)},
)
