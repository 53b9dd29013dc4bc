"""The multivariate normal."""

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from emprob.families.family import Argument, Family, Natural
from emprob.families.numerics import HALF_LOG_2PI, precision_of, real, zero_base
from emprob.families.views import COVARIANCE, VECTOR


def _mvn_statistics(d, x, origin):
    y = real(x) - origin
    rows, cols = jnp.tril_indices(y.shape[-1])
    return jnp.concatenate([y, y[..., rows] * y[..., cols]], -1)


def _mvn_natural(d, origin):
    tril, precision = real(d.scale_tril), precision_of(d)
    size = tril.shape[-1]
    shift = d.loc - origin
    batch = jnp.broadcast_shapes(shift.shape[:-1], tril.shape[:-2])
    shift = jnp.broadcast_to(shift, (*batch, size))[..., None]
    white = solve_triangular(jnp.broadcast_to(tril, (*batch, size, size)), shift, lower=True)
    log_det = jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)).sum(-1)
    log_normalizer = 0.5 * (white**2).sum((-1, -2)) + log_det + size * HALF_LOG_2PI
    rows, cols = jnp.tril_indices(size)
    quadratic = jnp.where(rows == cols, -0.5, -1.0) * precision[..., rows, cols]
    quadratic = jnp.broadcast_to(quadratic, (*batch, rows.size))
    return Natural(jnp.concatenate([(precision @ shift)[..., 0], quadratic], -1), log_normalizer)


def _vector_mean_ratio(S, n, d, origin):
    size = d.event_shape[-1]
    return S[..., :size] + n[..., None] * origin, n[..., None]


def _mvn_loc_ratio(S, n, d, origin):
    num, den = _vector_mean_ratio(S, n, d, origin)
    precision = precision_of(d)
    return (precision @ num[..., None])[..., 0], den[..., None] * precision


def _mvn_covariance_ratio(S, n, d, origin):
    size = d.event_shape[-1]
    first, products = S[..., :size], S[..., size:]
    i, j = jnp.indices((size, size))
    low, high = jnp.minimum(i, j), jnp.maximum(i, j)
    second = products[..., high * (high + 1) // 2 + low]
    shift = d.loc - origin
    cross = (first - 0.5 * n[..., None] * shift)[..., :, None] * shift[..., None, :]
    return second - cross - jnp.swapaxes(cross, -1, -2), n[..., None, None]


def _mvn_covariance(d):
    return real(d.scale_tril) @ jnp.swapaxes(d.scale_tril, -1, -2)


MULTIVARIATE_NORMAL = Family(
    "multivariate_normal",
    _mvn_statistics,
    _mvn_natural,
    zero_base(1),
    {
        "loc": Argument(
            _mvn_loc_ratio,
            lambda d: real(d.loc),
            VECTOR,
            event_dim=1,
            exact_given=("covariance_matrix",),
            shared_ratio=_vector_mean_ratio,
            solve=True,
        ),
        "covariance_matrix": Argument(
            _mvn_covariance_ratio, _mvn_covariance, COVARIANCE, event_dim=2
        ),
    },
)
