"""NumPyro distributions seen as exponential families.

A family writes the log-density of an unwrapped distribution `d` as

    log p(x) = statistics(d, x, c) . eta - A(eta) + log h(x),

so that the log-factors of all rows and cells are one matrix product, and the expected
log-joint needs the rows only through `S = sum_i w_i T(x_i)` and `n = sum_i w_i`. Maximising over
one argument with the others fixed is then a ratio of sums, also over tied cells.

Conventions
    origin: families with a location use statistics of `x - c` and natural parameters of
        `loc - c`, which keeps the digits of data far from zero. `c` has the event's shape, or is
        0.0; it is any constant, best near the data. The other families ignore it.
    d in `statistics`: gives sizes and constants only (the number of categories, total counts).
        Constants may vary along the rows, because they are part of the statistics.
    log 0: logarithms are cut at `finfo.min / 1000`, so that an absent category contributes
        `0 * log 0 = 0` and an impossible value about -1e305 (float64) or -1e35 (float32), which
        is -inf for every purpose, but gives no NaN under a zero weight.
    shapes: results broadcast to the batch shape, and are not expanded along dimensions on which
        the parameters do not vary.
    missing values: replace NaN before calling; `0 * NaN` is NaN.

M-step: `Argument.ratio` gives `(num, den)` per cell in canonical form (variance for a scale,
probabilities for logits); sum both over the tied cells, add the pseudo-counts of the prior, and
`Argument.maximiser(num, den)` is the canonical value. A `View` is a parametrisation that the user
may have written: variance, precision, logits. To find the view, compare
`view.to_canonical(parameter)` with `argument.canonical(d)` at probe values. Modes are those of the
density in the user's own parametrisation, in the constrained space, without Jacobian. If a prior
pulls `num` or `den` below zero there is no interior mode: callers must check the sign.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln, i0e
from numpyro.distributions import constraints

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Natural(NamedTuple):
    """Natural parameters, flattened event: eta (*batch, P), log_normalizer (*batch,)."""

    eta: Array
    log_normalizer: Array


class Pseudo(NamedTuple):
    """Pseudo-counts of a prior, in the shape of the canonical parameter.

    `bounded` says that the prior cuts the parameter's natural range: the ratio is the mode only
    if it lies inside the prior's support.
    """

    num: Any
    den: Any
    bounded: bool = False


def _elementwise(support):
    """The constraint under NumPyro's reinterpreted batch dimensions."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


@dataclass(frozen=True, eq=False)
class View:
    """One parametrisation of an argument.

    Attributes:
        to_canonical, from_canonical: the maps to and from the canonical value.
        support: where the parameter lives.
        pseudo_counts: of a proper conjugate prior on this parametrisation, or None.
    """

    to_canonical: Callable[[Any], Array]
    from_canonical: Callable[[Any], Array]
    support: Any
    pseudo_counts: Callable[[Any, tuple[int, ...]], Pseudo | None] = lambda prior, shape: None

    def conjugate(
        self, prior: dist.Distribution | None, shape: tuple[int, ...] = ()
    ) -> Pseudo | None:
        """Pseudo-counts of a prior.

        Args:
            prior: unwrapped; None is no prior at all.
            shape: of the parameter, for a vector whose unwrapped prior is a scalar.

        Returns:
            Pseudo-counts that broadcast to the parameter's shape; None if not conjugate.
        """
        if prior is None:
            return Pseudo(0.0, 0.0)
        if isinstance(prior, dist.ImproperUniform):
            return Pseudo(
                0.0, 0.0, bounded=_elementwise(prior.support) != _elementwise(self.support)
            )
        if type(prior) is dist.Uniform:
            return Pseudo(0.0, 0.0, bounded=True)
        return self.pseudo_counts(prior, shape)


@dataclass(frozen=True, eq=False)
class Argument:
    """An argument of a distribution whose conditional M-step is a ratio of sums.

    Attributes:
        ratio: `(S, n, d, origin) -> (num, den)` per cell, S (*batch, P), n (*batch,); `d` holds
            the current values of the other arguments. `den` broadcasts against `num`, except
            with `solve`, where num is (*batch, D) and den (*batch, D, D).
        canonical: the canonical value that `d` has now.
        views: parametrisations by name; the first is the argument itself.
        event_dim: trailing dimensions that belong to the argument.
        exact_given: if the cells of a tie group share these arguments, they cancel, and taking
            the arguments in their order reaches the joint maximum (under flat priors). Otherwise
            the update is the conditional maximum.
        shared_ratio: the ratio without what cancels, for that case and a flat prior; it is
            better conditioned. None: the same as `ratio`.
        requires: if the cells of a tie group, or the rows of a cell, do not share these, the
            ratio is not the maximum at all.
        solve: canonical = den^-1 num with a matrix den.
    """

    ratio: Callable[[Array, Array, Any, Any], tuple[Array, Array]]
    canonical: Callable[[Any], Array]
    views: Mapping[str, View]
    event_dim: int = 0
    exact_given: tuple[str, ...] = ()
    shared_ratio: Callable[[Array, Array, Any, Any], tuple[Array, Array]] | None = None
    requires: tuple[str, ...] = ()
    solve: bool = False

    def maximiser(self, num: Array, den: Array) -> Array:
        """The canonical value at which the summed numerators and denominators balance."""
        if not self.solve or jnp.ndim(den) < jnp.ndim(num) + 1:
            return num / den
        return jnp.linalg.solve(den, num[..., None])[..., 0]


@dataclass(frozen=True, eq=False)
class Family:
    """An exponential family.

    Attributes:
        statistics: `(d, x, origin) -> (*shape, P)` for x of (*shape, *event).
        natural: `(d, origin) -> Natural`.
        log_base: `(d, x) -> log h(x)`, (*shape,); depends on `constants` at most.
        arguments: those with a closed form, in the order of updating.
        constants: attributes that must be known constants for the family to apply.
    """

    name: str
    statistics: Callable[[Any, Any, Any], Array]
    natural: Callable[[Any, Any], Natural]
    log_base: Callable[[Any, Any], Array]
    arguments: Mapping[str, Argument]
    constants: tuple[str, ...] = ()

    def log_prob(self, d: dist.Distribution, x: Any, origin: Any = 0.0) -> Array:
        """The log-density by way of statistics and natural parameters."""
        natural = self.natural(d, origin)
        product = (self.statistics(d, x, origin) * natural.eta).sum(-1)
        return product - natural.log_normalizer + self.log_base(d, x)


# --- numerical helpers ---------------------------------------------------------------------


def _real(x):
    x = jnp.asarray(x)
    return x.astype(jnp.result_type(x.dtype, float))


def _floor(log_value):
    return jnp.maximum(log_value, jnp.finfo(log_value.dtype).min / 1e3)


def _log(x):
    """The logarithm with `log 0` cut off; the inner `where` keeps gradients at 0 finite."""
    x = _real(x)
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), jnp.finfo(x.dtype).min / 1e3)


def _stack(*columns):
    dtype = jnp.result_type(float, *columns)
    return jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(c, dtype) for c in columns)), -1)


def _zero_base(event_dim):
    def log_base(d, x):
        x = _real(x)
        return jnp.zeros(x.shape[: x.ndim - event_dim], x.dtype)

    return log_base


def _uses_logits(d):
    return "logits" in type(d).arg_constraints


def _log_odds_pair(d):
    """(log p, log(1 - p)) from whichever of logits and probs was given."""
    if _uses_logits(d):
        logits = _real(d.logits)
        return _floor(jax.nn.log_sigmoid(logits)), _floor(jax.nn.log_sigmoid(-logits))
    probs = _real(d.probs)
    return _log(probs), _log1m(probs)


def _log1m(p):
    p = _real(p)
    inside = jnp.where(p < 1, p, 0.0)
    return jnp.where(p < 1, jnp.log1p(-inside), jnp.finfo(p.dtype).min / 1e3)


def _success_probs(d):
    return jax.nn.sigmoid(_real(d.logits)) if _uses_logits(d) else _real(d.probs)


def _symmetric(matrix):
    return 0.5 * (matrix + jnp.swapaxes(matrix, -1, -2))


def _inverse_from_cholesky(tril):
    identity = jnp.broadcast_to(jnp.eye(tril.shape[-1], dtype=tril.dtype), tril.shape)
    inverse = solve_triangular(tril, identity, lower=True)
    return jnp.swapaxes(inverse, -1, -2) @ inverse


def _inverse(matrix):
    return _inverse_from_cholesky(jnp.linalg.cholesky(matrix))


# --- conjugate priors ----------------------------------------------------------------------


def _gamma(prior):
    """(shape, rate) of a Gamma prior, of which Exponential and Chi2 are cases; else None."""
    if type(prior) in (dist.Gamma, dist.Chi2):
        return prior.concentration, prior.rate
    return (1.0, prior.rate) if type(prior) is dist.Exponential else None


def _inverse_gamma(prior):
    is_one = type(prior) is dist.InverseGamma
    return (prior.concentration, prior.rate) if is_one else None


def _counts(parameters, rule):
    """Pseudo-counts by `rule` from the parameters that `parameters` finds in a prior."""

    def pseudo_counts(prior, shape):
        found = parameters(prior)
        return None if found is None else Pseudo(*rule(*map(_real, found)))

    return pseudo_counts


def _beta_counts(prior, shape):
    if type(prior) is not dist.Beta:
        return None
    a, b = _real(prior.concentration1), _real(prior.concentration0)
    return Pseudo(a - 1, a + b - 2)


def _dirichlet_counts(prior, shape):
    if type(prior) is not dist.Dirichlet:
        return None
    extra = _real(prior.concentration) - 1
    return Pseudo(extra, extra.sum(-1, keepdims=True))


def _normal_counts(prior, shape):
    if type(prior) is not dist.Normal:
        return None
    precision = 1 / _real(prior.scale) ** 2
    return Pseudo(_real(prior.loc) * precision, precision)


def _vector_normal_counts(prior, shape):
    if type(prior) is dist.Normal:
        shape = jnp.broadcast_shapes(prior.batch_shape, shape)
        if not shape:
            return None
        precision = jnp.broadcast_to(1 / _real(prior.scale) ** 2, shape)
        return Pseudo(prior.loc * precision, precision[..., None] * jnp.eye(shape[-1]))
    if type(prior) is not dist.MultivariateNormal:
        return None
    precision = _mvn_precision(prior)
    return Pseudo((precision @ prior.loc[..., None])[..., 0], precision)


def _wishart_counts(prior, shape):
    if type(prior) is not dist.Wishart:
        return None
    extra = _real(prior.concentration) - prior.event_shape[-1] - 1
    return Pseudo(_inverse_from_cholesky(prior.scale_tril), extra[..., None, None])


def _inverse_wishart_counts(prior, shape):
    if type(prior) is not dist.InverseWishart:
        return None
    extra = _real(prior.concentration) + prior.event_shape[-1] + 1
    return Pseudo(prior.scale_matrix, extra[..., None, None])


# --- views ---------------------------------------------------------------------------------


def _identity(x):
    return _real(x)


def _reciprocal(x):
    return 1 / _real(x)


def _views(**views):
    return MappingProxyType(views)


_POSITIVE = constraints.positive
REAL = _views(loc=View(_identity, _identity, constraints.real, _normal_counts))
SCALE = _views(
    scale=View(lambda s: _real(s) ** 2, jnp.sqrt, _POSITIVE),
    variance=View(
        _identity,
        _identity,
        _POSITIVE,
        _counts(_inverse_gamma, lambda a, b: (2 * b, 2 * (a + 1))),
    ),
    precision=View(
        _reciprocal, _reciprocal, _POSITIVE, _counts(_gamma, lambda a, b: (2 * b, 2 * (a - 1)))
    ),
    log_scale=View(lambda s: jnp.exp(2 * _real(s)), lambda v: 0.5 * jnp.log(v), constraints.real),
    log_variance=View(lambda s: jnp.exp(_real(s)), jnp.log, constraints.real),
)
_RATE = View(_identity, _identity, _POSITIVE, _counts(_gamma, lambda a, b: (a - 1, b)))
_LOG_RATE = View(lambda r: jnp.exp(_real(r)), jnp.log, constraints.real)
_MEAN_OF_RATE = View(
    _reciprocal, _reciprocal, _POSITIVE, _counts(_inverse_gamma, lambda a, b: (a + 1, b))
)
INTENSITY = _views(rate=_RATE, log_rate=_LOG_RATE)
RATE = _views(rate=_RATE, mean=_MEAN_OF_RATE, log_rate=_LOG_RATE)
GAMMA_RATE = _views(rate=_RATE, scale=_MEAN_OF_RATE, log_rate=_LOG_RATE)
ALPHA = _views(alpha=_RATE, log_alpha=_LOG_RATE)
LAPLACE_SCALE = _views(
    scale=View(_identity, _identity, _POSITIVE, _counts(_inverse_gamma, lambda a, b: (b, a + 1))),
    rate=View(_reciprocal, _reciprocal, _POSITIVE, _counts(_gamma, lambda a, b: (b, a - 1))),
    log_scale=_LOG_RATE,
)
PROBS = _views(
    probs=View(_identity, _identity, constraints.unit_interval, _beta_counts),
    logits=View(lambda v: jax.nn.sigmoid(_real(v)), jax.scipy.special.logit, constraints.real),
)
SIMPLEX = _views(
    probs=View(_identity, _identity, constraints.simplex, _dirichlet_counts),
    logits=View(lambda v: jax.nn.softmax(_real(v), -1), jnp.log, constraints.real_vector),
)
MEAN = _views(mean=View(_identity, _identity, _POSITIVE), log_mean=_LOG_RATE)
ODDS = _views(rate=View(_identity, _identity, _POSITIVE), log_rate=_LOG_RATE)
VECTOR = _views(loc=View(_identity, _identity, constraints.real_vector, _vector_normal_counts))
COVARIANCE = _views(
    covariance_matrix=View(
        _identity, _identity, constraints.positive_definite, _inverse_wishart_counts
    ),
    scale_tril=View(
        lambda m: m @ jnp.swapaxes(m, -1, -2), jnp.linalg.cholesky, constraints.lower_cholesky
    ),
    precision_matrix=View(_inverse, _inverse, constraints.positive_definite, _wishart_counts),
)


# --- normal --------------------------------------------------------------------------------


def _square_statistics(y):
    return _stack(y, y * y)


def _normal_natural(d, origin):
    scale = _real(d.scale)
    shift, precision = d.loc - origin, 1 / scale**2
    log_normalizer = 0.5 * shift**2 * precision + jnp.log(scale) + HALF_LOG_2PI
    return Natural(_stack(shift * precision, -0.5 * precision), log_normalizer)


def _mean_ratio(S, n, d, origin):
    return S[..., 0] + n * origin, n


def _normal_loc_ratio(S, n, d, origin):
    num, den = _mean_ratio(S, n, d, origin)
    precision = 1 / _real(d.scale) ** 2
    return num * precision, den * precision


def _normal_variance_ratio(S, n, d, origin):
    shift = d.loc - origin
    return jnp.maximum(S[..., 1] - shift * (2 * S[..., 0] - n * shift), 0.0), n


_NORMAL_ARGUMENTS = {
    "loc": Argument(
        _normal_loc_ratio,
        lambda d: _real(d.loc),
        REAL,
        exact_given=("scale",),
        shared_ratio=_mean_ratio,
    ),
    "scale": Argument(_normal_variance_ratio, lambda d: _real(d.scale) ** 2, SCALE),
}
NORMAL = Family(
    "normal",
    lambda d, x, origin: _square_statistics(_real(x) - origin),
    _normal_natural,
    _zero_base(0),
    _NORMAL_ARGUMENTS,
)
LOG_NORMAL = Family(
    "log_normal",
    lambda d, x, origin: _square_statistics(_log(x) - origin),
    _normal_natural,
    lambda d, x: -_log(x),
    _NORMAL_ARGUMENTS,
)


def _half_normal_natural(d, origin):
    scale = _real(d.scale)
    log_normalizer = jnp.log(scale) + HALF_LOG_2PI - math.log(2)
    return Natural((-0.5 / scale**2)[..., None], log_normalizer)


HALF_NORMAL = Family(
    "half_normal",
    lambda d, x, origin: _real(x)[..., None] ** 2,
    _half_normal_natural,
    _zero_base(0),
    {"scale": Argument(lambda S, n, d, c: (S[..., 0], n), lambda d: _real(d.scale) ** 2, SCALE)},
)


# --- multivariate normal -------------------------------------------------------------------


def _mvn_statistics(d, x, origin):
    y = _real(x) - origin
    rows, cols = jnp.tril_indices(y.shape[-1])
    return jnp.concatenate([y, y[..., rows] * y[..., cols]], -1)


def _mvn_precision(d):
    given = vars(d).get("precision_matrix")
    return _inverse_from_cholesky(_real(d.scale_tril)) if given is None else _symmetric(given)


def _mvn_natural(d, origin):
    tril, precision = _real(d.scale_tril), _mvn_precision(d)
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
    precision = _mvn_precision(d)
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
    return _real(d.scale_tril) @ jnp.swapaxes(d.scale_tril, -1, -2)


MULTIVARIATE_NORMAL = Family(
    "multivariate_normal",
    _mvn_statistics,
    _mvn_natural,
    _zero_base(1),
    {
        "loc": Argument(
            _mvn_loc_ratio,
            lambda d: _real(d.loc),
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


# --- two outcomes --------------------------------------------------------------------------


def _pair_natural(d, origin):
    eta = _stack(*_log_odds_pair(d))
    return Natural(eta, jnp.zeros(eta.shape[:-1], eta.dtype))


def _share_ratio(S, n, d, origin):
    return S[..., 0], S[..., 0] + S[..., 1]


_PROBS_ARGUMENT = {"probs": Argument(_share_ratio, _success_probs, PROBS)}


def _log_binomial(d, x):
    x, total = _real(x), _real(d.total_count)
    return gammaln(total + 1) - gammaln(x + 1) - gammaln(total - x + 1)


def _log_negative_binomial(shape_name):
    def log_base(d, x):
        x, shape = _real(x), _real(getattr(d, shape_name))
        return gammaln(x + shape) - gammaln(shape) - gammaln(x + 1)

    return log_base


BERNOULLI = Family(
    "bernoulli",
    lambda d, x, origin: _stack(x, 1 - _real(x)),
    _pair_natural,
    _zero_base(0),
    _PROBS_ARGUMENT,
)
BINOMIAL = Family(
    "binomial",
    lambda d, x, origin: _stack(x, d.total_count - _real(x)),
    _pair_natural,
    _log_binomial,
    _PROBS_ARGUMENT,
    constants=("total_count",),
)
# x counts the outcomes other than the first success, hence the pair (1, x)
GEOMETRIC = Family(
    "geometric",
    lambda d, x, origin: _stack(1.0, x),
    _pair_natural,
    _zero_base(0),
    _PROBS_ARGUMENT,
)
NEGATIVE_BINOMIAL = Family(
    "negative_binomial",
    lambda d, x, origin: _stack(x, d.total_count),
    _pair_natural,
    _log_negative_binomial("total_count"),
    _PROBS_ARGUMENT,
    constants=("total_count",),
)


def _gamma_poisson_natural(d, origin):
    rate = _real(d.rate)
    eta = _stack(_floor(-jnp.log1p(rate)), _floor(-jnp.log1p(1 / rate)))
    return Natural(eta, jnp.zeros(eta.shape[:-1], eta.dtype))


def _gamma_poisson(name, arguments):
    return Family(
        name,
        lambda d, x, origin: _stack(x, d.concentration),
        _gamma_poisson_natural,
        _log_negative_binomial("concentration"),
        arguments,
        constants=("concentration",),
    )


GAMMA_POISSON = _gamma_poisson(
    "gamma_poisson",
    {"rate": Argument(lambda S, n, d, c: (S[..., 1], S[..., 0]), lambda d: _real(d.rate), ODDS)},
)
NEGATIVE_BINOMIAL2 = _gamma_poisson(
    "negative_binomial2",
    {
        "mean": Argument(
            lambda S, n, d, c: (S[..., 0], n),
            lambda d: d.concentration / _real(d.rate),
            MEAN,
            requires=("concentration",),
        )
    },
)


# --- several outcomes ----------------------------------------------------------------------


def _simplex_natural(d, origin):
    log_probs = (
        _floor(jax.nn.log_softmax(_real(d.logits), -1)) if _uses_logits(d) else _log(d.probs)
    )
    return Natural(log_probs, jnp.zeros(log_probs.shape[:-1], log_probs.dtype))


def _simplex_probs(d):
    return jax.nn.softmax(_real(d.logits), -1) if _uses_logits(d) else _real(d.probs)


def _one_hot(d, x, origin):
    values = _real(d.logits if _uses_logits(d) else d.probs)
    return jax.nn.one_hot(jnp.asarray(x).astype(int), values.shape[-1], dtype=values.dtype)


def _categorical_base(d, x):
    """An index out of range has no one-hot column: it must not pass as probability one."""
    size = jnp.shape(d.logits if _uses_logits(d) else d.probs)[-1]
    inside = (jnp.asarray(x) >= 0) & (jnp.asarray(x) < size)
    return _log(inside.astype(float))


def _log_multinomial(d, x):
    x = _real(x)
    return gammaln(_real(d.total_count) + 1) - gammaln(x + 1).sum(-1)


_SIMPLEX_ARGUMENT = {
    "probs": Argument(
        lambda S, n, d, c: (S, S.sum(-1, keepdims=True)), _simplex_probs, SIMPLEX, event_dim=1
    )
}
CATEGORICAL = Family(
    "categorical", _one_hot, _simplex_natural, _categorical_base, _SIMPLEX_ARGUMENT
)
MULTINOMIAL = Family(
    "multinomial",
    lambda d, x, origin: _real(x),
    _simplex_natural,
    _log_multinomial,
    _SIMPLEX_ARGUMENT,
    constants=("total_count",),
)


# --- counts and waiting times --------------------------------------------------------------


def _exponential_natural(d, origin):
    rate = _real(d.rate)
    return Natural(-rate[..., None], -_log(rate))


def _gamma_natural(d, origin):
    shape, rate = _real(d.concentration), _real(d.rate)
    return Natural(_stack(shape - 1, -rate), gammaln(shape) - shape * jnp.log(rate))


def _inverse_gamma_natural(d, origin):
    shape, rate = _real(d.concentration), _real(d.rate)
    return Natural(_stack(-shape - 1, -rate), gammaln(shape) - shape * jnp.log(rate))


def _gamma_rate_ratio(S, n, d, origin):
    return n * d.concentration, S[..., 1]


_GAMMA_ARGUMENTS = {"rate": Argument(_gamma_rate_ratio, lambda d: _real(d.rate), GAMMA_RATE)}
POISSON = Family(
    "poisson",
    lambda d, x, origin: _real(x)[..., None],
    lambda d, origin: Natural(_log(d.rate)[..., None], _real(d.rate)),
    lambda d, x: -gammaln(_real(x) + 1),
    {"rate": Argument(lambda S, n, d, c: (S[..., 0], n), lambda d: _real(d.rate), INTENSITY)},
)
EXPONENTIAL = Family(
    "exponential",
    lambda d, x, origin: _real(x)[..., None],
    _exponential_natural,
    _zero_base(0),
    {"rate": Argument(lambda S, n, d, c: (n, S[..., 0]), lambda d: _real(d.rate), RATE)},
)
GAMMA = Family(
    "gamma",
    lambda d, x, origin: _stack(_log(x), x),
    _gamma_natural,
    _zero_base(0),
    _GAMMA_ARGUMENTS,
)
INVERSE_GAMMA = Family(
    "inverse_gamma",
    lambda d, x, origin: _stack(_log(x), 1 / _real(x)),
    _inverse_gamma_natural,
    _zero_base(0),
    _GAMMA_ARGUMENTS,
)
LAPLACE = Family(
    "laplace",
    lambda d, x, origin: jnp.abs(_real(x) - d.loc)[..., None],
    lambda d, origin: Natural(-1 / _real(d.scale)[..., None], jnp.log(2 * _real(d.scale))),
    _zero_base(0),
    {"scale": Argument(lambda S, n, d, c: (S[..., 0], n), lambda d: _real(d.scale), LAPLACE_SCALE)},
    constants=("loc",),
)
PARETO = Family(
    "pareto",
    lambda d, x, origin: (_log(x) - _log(d.scale))[..., None],
    lambda d, origin: Natural(-_real(d.alpha)[..., None], -jnp.log(_real(d.alpha))),
    lambda d, x: -_log(x),
    {"alpha": Argument(lambda S, n, d, c: (n, S[..., 0]), lambda d: _real(d.alpha), ALPHA)},
    constants=("scale",),
)


# --- shares and angles ---------------------------------------------------------------------


def _beta_natural(d, origin):
    a, b = _real(d.concentration1), _real(d.concentration0)
    # jax's betaln is wrong by 1e-6 once an argument reaches 8
    log_normalizer = gammaln(a) + gammaln(b) - gammaln(a + b)
    return Natural(_stack(a - 1, b - 1), log_normalizer)


def _dirichlet_natural(d, origin):
    concentration = _real(d.concentration)
    log_normalizer = gammaln(concentration).sum(-1) - gammaln(concentration.sum(-1))
    return Natural(concentration - 1, log_normalizer)


def _angle_statistics(d, x, origin):
    """(cos y - 1, sin y): the -1 keeps the digits of concentrated angles."""
    y = _real(x) - origin
    return _stack(-2 * jnp.sin(0.5 * y) ** 2, jnp.sin(y))


def _von_mises_natural(d, origin):
    kappa, shift = _real(d.concentration), d.loc - origin
    log_normalizer = 2 * HALF_LOG_2PI + jnp.log(i0e(kappa)) + 2 * kappa * jnp.sin(0.5 * shift) ** 2
    return Natural(_stack(kappa * jnp.cos(shift), kappa * jnp.sin(shift)), log_normalizer)


BETA = Family(
    "beta",
    lambda d, x, origin: _stack(_log(x), _log1m(x)),
    _beta_natural,
    _zero_base(0),
    {},
)
DIRICHLET = Family("dirichlet", lambda d, x, origin: _log(x), _dirichlet_natural, _zero_base(1), {})
VON_MISES = Family("von_mises", _angle_statistics, _von_mises_natural, _zero_base(0), {})


_REGISTRY: Mapping[type, Family] = MappingProxyType(
    {
        dist.Normal: NORMAL,
        dist.LogNormal: LOG_NORMAL,
        dist.HalfNormal: HALF_NORMAL,
        dist.MultivariateNormal: MULTIVARIATE_NORMAL,
        dist.BernoulliProbs: BERNOULLI,
        dist.BernoulliLogits: BERNOULLI,
        dist.BinomialProbs: BINOMIAL,
        dist.BinomialLogits: BINOMIAL,
        dist.GeometricProbs: GEOMETRIC,
        dist.GeometricLogits: GEOMETRIC,
        dist.NegativeBinomialProbs: NEGATIVE_BINOMIAL,
        dist.NegativeBinomialLogits: NEGATIVE_BINOMIAL,
        dist.NegativeBinomial2: NEGATIVE_BINOMIAL2,
        dist.GammaPoisson: GAMMA_POISSON,
        dist.CategoricalProbs: CATEGORICAL,
        dist.CategoricalLogits: CATEGORICAL,
        dist.MultinomialProbs: MULTINOMIAL,
        dist.MultinomialLogits: MULTINOMIAL,
        dist.Poisson: POISSON,
        dist.Exponential: EXPONENTIAL,
        dist.Gamma: GAMMA,
        dist.Chi2: GAMMA,
        dist.InverseGamma: INVERSE_GAMMA,
        dist.Laplace: LAPLACE,
        dist.Pareto: PARETO,
        dist.Beta: BETA,
        dist.Dirichlet: DIRICHLET,
        dist.VonMises: VON_MISES,
    }
)


def family_of(d: dist.Distribution) -> Family | None:
    """The family of an unwrapped distribution by its exact class; None if it has none."""
    return _REGISTRY.get(type(d))
