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

from collections.abc import Mapping
from types import MappingProxyType

import numpyro.distributions as dist

from emprob.families.binary import (
    BERNOULLI,
    BINOMIAL,
    GAMMA_POISSON,
    GEOMETRIC,
    NEGATIVE_BINOMIAL,
    NEGATIVE_BINOMIAL2,
)
from emprob.families.family import Argument, Family, Natural, Pseudo, View
from emprob.families.location_scale import HALF_NORMAL, LOG_NORMAL, NORMAL
from emprob.families.multivariate import MULTIVARIATE_NORMAL
from emprob.families.rates import EXPONENTIAL, GAMMA, INVERSE_GAMMA, LAPLACE, PARETO, POISSON
from emprob.families.shares import BETA, DIRICHLET, VON_MISES
from emprob.families.simplex import CATEGORICAL, MULTINOMIAL

__all__ = ["Argument", "Family", "Natural", "Pseudo", "View", "family_of"]


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
