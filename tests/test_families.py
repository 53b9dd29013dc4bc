"""Families against NumPyro's own log-densities, and M-steps against numerical optimisation."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints
from scipy.optimize import minimize
from scipy.stats import beta, nbinom

from emprob.families import family_of
from emprob.families.binary import BERNOULLI

K, N, D = 3, 40, 3


def simplex(rng, *shape):
    return rng.dirichlet(np.full(shape[-1], 2.0), shape[:-1])


def spd(rng, *batch):
    a = rng.normal(size=(*batch, D, D))
    return a @ np.swapaxes(a, -1, -2) + np.eye(D)


def positive(rng, *shape):
    return rng.gamma(3.0, 0.5, shape) + 0.1


CASES = {
    "normal": lambda r, *s: dist.Normal(r.normal(size=s), positive(r, *s)),
    "lognormal": lambda r, *s: dist.LogNormal(r.normal(size=s), positive(r, *s)),
    "halfnormal": lambda r, *s: dist.HalfNormal(positive(r, *s)),
    "mvn_covariance": lambda r, *s: dist.MultivariateNormal(
        r.normal(size=(*s, D)), covariance_matrix=spd(r, *s)
    ),
    "mvn_tril": lambda r, *s: dist.MultivariateNormal(
        r.normal(size=(*s, D)), scale_tril=np.linalg.cholesky(spd(r, *s))
    ),
    "mvn_precision": lambda r, *s: dist.MultivariateNormal(
        r.normal(size=(*s, D)), precision_matrix=spd(r, *s)
    ),
    "mvn_shared": lambda r, *s: dist.MultivariateNormal(
        r.normal(size=(*s, D)), covariance_matrix=spd(r)
    ),
    "poisson": lambda r, *s: dist.Poisson(positive(r, *s)),
    "bernoulli_probs": lambda r, *s: dist.BernoulliProbs(r.uniform(0.1, 0.9, s)),
    "bernoulli_logits": lambda r, *s: dist.BernoulliLogits(r.normal(size=s)),
    "binomial_probs": lambda r, *s: dist.BinomialProbs(r.uniform(0.1, 0.9, s), 7),
    "binomial_logits": lambda r, *s: dist.BinomialLogits(r.normal(size=s), 7),
    "geometric_probs": lambda r, *s: dist.GeometricProbs(r.uniform(0.1, 0.9, s)),
    "geometric_logits": lambda r, *s: dist.GeometricLogits(r.normal(size=s)),
    "negbin_probs": lambda r, *s: dist.NegativeBinomialProbs(4.0, r.uniform(0.1, 0.9, s)),
    "negbin_logits": lambda r, *s: dist.NegativeBinomialLogits(4.0, r.normal(size=s)),
    "negbin2": lambda r, *s: dist.NegativeBinomial2(positive(r, *s), 2.5),
    "gamma_poisson": lambda r, *s: dist.GammaPoisson(2.5, positive(r, *s)),
    "categorical_probs": lambda r, *s: dist.CategoricalProbs(simplex(r, *s, 4)),
    "categorical_logits": lambda r, *s: dist.CategoricalLogits(r.normal(size=(*s, 4))),
    "multinomial_probs": lambda r, *s: dist.MultinomialProbs(simplex(r, *s, 4), 9),
    "multinomial_logits": lambda r, *s: dist.MultinomialLogits(r.normal(size=(*s, 4)), 9),
    "exponential": lambda r, *s: dist.Exponential(positive(r, *s)),
    "gamma": lambda r, *s: dist.Gamma(positive(r, *s), positive(r, *s)),
    "chi2": lambda r, *s: dist.Chi2(positive(r, *s)),
    "inverse_gamma": lambda r, *s: dist.InverseGamma(positive(r, *s) + 2, positive(r, *s)),
    "laplace": lambda r, *s: dist.Laplace(0.3, positive(r, *s)),
    "pareto": lambda r, *s: dist.Pareto(1.5, positive(r, *s)),
    "beta": lambda r, *s: dist.Beta(positive(r, *s), positive(r, *s)),
    "dirichlet": lambda r, *s: dist.Dirichlet(positive(r, *s, 4)),
    "vonmises": lambda r, *s: dist.VonMises(r.uniform(-3, 3, s), positive(r, *s)),
}


def draw(name, key, *shape, seed=0):
    rng = np.random.default_rng(seed)
    data = CASES[name](rng, *shape).sample(key, (N,))
    return CASES[name](rng, K, 1), data


def reference(d, x):
    """NumPyro's log-density, or SciPy's where jax's `betaln` loses it: 1e-6 from counts of 7 on."""
    if isinstance(d, dist.GammaPoisson):
        return nbinom(np.asarray(d.concentration), d.rate / (1 + d.rate)).logpmf(x)
    return d.log_prob(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_identity_with_an_origin(name, key):
    d, x = draw(name, key)
    origin = np.full(d.event_shape, 1.7)
    family = family_of(d)
    np.testing.assert_allclose(
        family.log_prob(d, x, origin), reference(d, x), rtol=1e-10, atol=1e-11
    )
    assert family.log_prob(d, x, origin).shape == (K, N)


@pytest.mark.parametrize("name", CASES)
def test_log_factors_are_one_matrix_product(name, key):
    d, x = draw(name, key)
    family = family_of(d)
    natural = jax.jit(family.natural)(d, 0.0)
    T = jax.jit(family.statistics)(d, x, 0.0).reshape(N, -1)
    eta = natural.eta.reshape(K, -1)
    factors = T @ eta.T - natural.log_normalizer.reshape(-1) + family.log_base(d, x).reshape(N, 1)
    np.testing.assert_allclose(factors.T, reference(d, x), rtol=1e-10, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_score_is_that_of_numpyro(name, key):
    d, x = draw(name, key)
    parameters = [
        p
        for p in type(d).arg_constraints
        if p in vars(d) and p != "total_count" and jnp.ndim(getattr(d, p)) >= 2
    ]
    assert parameters
    others = {p: vars(d)[p] for p in type(d).arg_constraints if p in vars(d) and p != "scale_tril"}
    if name == "mvn_tril":
        others["scale_tril"] = d.scale_tril
    if name == "negbin2":
        others = {"concentration": 2.5, "mean": d.mean}

    def total(log_prob, values):
        return log_prob(type(d)(**values), x).sum()

    family = family_of(d)
    mine = jax.grad(lambda v: total(family.log_prob, v), allow_int=True)(others)
    theirs = jax.grad(lambda v: total(lambda e, y: e.log_prob(y), v), allow_int=True)(others)
    for p in others:
        if p != "total_count":
            np.testing.assert_allclose(mine[p], theirs[p], rtol=1e-8, atol=1e-9)


def test_not_families():
    for d in (
        dist.StudentT(3.0),
        dist.ZeroInflatedPoisson(0.2, 1.0),
        dist.Delta(0.0),
        dist.Normal(jnp.zeros(3), 1.0).to_event(1),
        dist.Normal(0.0, 1.0).expand((3,)),
        dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.zeros(2), 1.0)),
    ):
        assert family_of(d) is None


@pytest.mark.parametrize("location", [1e8, -3e8])
def test_far_from_zero_keeps_its_digits(location):
    rng = np.random.default_rng(1)
    noise = rng.normal(size=N)
    x = location + noise
    d = dist.Normal(location + np.arange(K)[:, None], np.array([[1.0], [0.7], [2.0]]))
    family = family_of(d)
    np.testing.assert_allclose(family.log_prob(d, x, location), d.log_prob(x), rtol=1e-9)
    cov = spd(rng)
    y = location + rng.normal(size=(N, D))
    m = dist.MultivariateNormal(np.full(D, location), covariance_matrix=cov)
    np.testing.assert_allclose(
        family_of(m).log_prob(m, y, np.full(D, location)), m.log_prob(y), rtol=1e-9
    )


IMPOSSIBLE = [
    (dist.BernoulliProbs(0.0), 1, 0),
    (dist.BernoulliProbs(1.0), 0, 1),
    (dist.BernoulliLogits(jnp.inf, validate_args=False), 0, 1),
    (dist.BinomialProbs(0.0, 5), 2, 0),
    (dist.BinomialProbs(1.0, 5), 4, 5),
    (dist.GeometricProbs(1.0), 1, 0),
    (dist.CategoricalProbs(jnp.array([0.0, 1.0])), 0, 1),
    (dist.CategoricalLogits(jnp.array([-jnp.inf, 2.0]), validate_args=False), 0, 1),
    (dist.MultinomialProbs(jnp.array([0.0, 1.0]), 3), jnp.array([1, 2]), jnp.array([0, 3])),
    (dist.Poisson(0.0), 1, 0),
]


@pytest.mark.parametrize(("d", "impossible", "sure"), IMPOSSIBLE)
def test_probability_zero_and_one(d, impossible, sure):
    family = family_of(d)
    assert family.log_prob(d, impossible) < -1e290
    np.testing.assert_allclose(family.log_prob(d, sure), 0.0, atol=1e-15)
    gradient = jax.grad(lambda e: family.log_prob(e, sure).sum(), allow_int=True)(d)
    for leaf in jax.tree.leaves(gradient):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.all(np.isfinite(leaf))


def test_beta_of_large_counts():
    d = dist.Beta(np.array([9.0, 40.0, 0.5]), np.array([12.0, 300.0, 80.0]))
    x = np.array([0.4, 0.1, 0.01])
    expected = beta(d.concentration1, d.concentration0).logpdf(x)
    np.testing.assert_allclose(family_of(d).log_prob(d, x), expected, rtol=1e-11)


def test_category_out_of_range_is_impossible():
    d = dist.CategoricalProbs(jnp.array([0.4, 0.6]))
    assert np.all(family_of(d).log_prob(d, jnp.array([-1, 2])) < -1e290)
    np.testing.assert_allclose(family_of(d).log_prob(d, 1), np.log(0.6), rtol=1e-14)


# name, argument, view of the parameter, distribution of that parameter, proper priors
MSTEPS = [
    ("normal", "loc", "loc", lambda v: dist.Normal(v, np.array([[0.5], [1.0], [2.0]])),
     [dist.Normal(0.7, 0.2)]),
    ("normal", "scale", "scale", lambda v: dist.Normal(0.4, v), []),
    ("normal", "scale", "log_scale", lambda v: dist.Normal(0.4, jnp.exp(v)), []),
    ("normal", "scale", "variance", lambda v: dist.Normal(0.4, jnp.sqrt(v)),
     [dist.InverseGamma(3.0, 2.0)]),
    ("normal", "scale", "log_variance", lambda v: dist.Normal(0.4, jnp.exp(0.5 * v)), []),
    ("normal", "scale", "precision", lambda v: dist.Normal(0.4, 1 / jnp.sqrt(v)),
     [dist.Gamma(3.0, 2.0), dist.Exponential(4.0), dist.Chi2(5.0)]),
    ("lognormal", "loc", "loc", lambda v: dist.LogNormal(v, 0.8), [dist.Normal(-0.5, 0.1)]),
    ("lognormal", "scale", "variance", lambda v: dist.LogNormal(0.1, jnp.sqrt(v)),
     [dist.InverseGamma(4.0, 3.0)]),
    ("halfnormal", "scale", "scale", dist.HalfNormal, []),
    ("halfnormal", "scale", "variance", lambda v: dist.HalfNormal(jnp.sqrt(v)),
     [dist.InverseGamma(4.0, 3.0)]),
    ("halfnormal", "scale", "precision", lambda v: dist.HalfNormal(1 / jnp.sqrt(v)),
     [dist.Gamma(4.0, 3.0)]),
    ("poisson", "rate", "rate", dist.Poisson, [dist.Gamma(3.0, 2.0), dist.Exponential(2.0)]),
    ("poisson", "rate", "log_rate", lambda v: dist.Poisson(jnp.exp(v)), []),
    ("bernoulli_probs", "probs", "probs", dist.BernoulliProbs, [dist.Beta(3.0, 5.0)]),
    ("bernoulli_logits", "probs", "logits", dist.BernoulliLogits, []),
    ("binomial_probs", "probs", "probs", lambda v: dist.BinomialProbs(v, 7), [dist.Beta(3.0, 5.0)]),
    ("binomial_logits", "probs", "logits", lambda v: dist.BinomialLogits(v, 7), []),
    ("geometric_probs", "probs", "probs", dist.GeometricProbs, [dist.Beta(3.0, 5.0)]),
    ("geometric_logits", "probs", "logits", dist.GeometricLogits, []),
    ("negbin_probs", "probs", "probs", lambda v: dist.NegativeBinomialProbs(4.0, v),
     [dist.Beta(3.0, 5.0)]),
    ("negbin_logits", "probs", "logits", lambda v: dist.NegativeBinomialLogits(4.0, v), []),
    ("negbin2", "mean", "mean", lambda v: dist.NegativeBinomial2(v, 2.5), []),
    ("gamma_poisson", "rate", "rate", lambda v: dist.GammaPoisson(2.5, v), []),
    ("exponential", "rate", "rate", dist.Exponential, [dist.Gamma(30.0, 2.0)]),
    ("exponential", "rate", "mean", lambda v: dist.Exponential(1 / v),
     [dist.InverseGamma(30.0, 20.0)]),
    ("gamma", "rate", "rate", lambda v: dist.Gamma(np.array([[2.0], [3.0], [0.7]]), v),
     [dist.Gamma(30.0, 2.0)]),
    ("gamma", "rate", "scale", lambda v: dist.Gamma(2.0, 1 / v), [dist.InverseGamma(30.0, 20.0)]),
    ("inverse_gamma", "rate", "rate", lambda v: dist.InverseGamma(2.0, v), [dist.Gamma(30.0, 2.0)]),
    ("laplace", "scale", "scale", lambda v: dist.Laplace(0.3, v), [dist.InverseGamma(30.0, 20.0)]),
    ("laplace", "scale", "rate", lambda v: dist.Laplace(0.3, 1 / v), [dist.Gamma(30.0, 20.0)]),
    ("pareto", "alpha", "alpha", lambda v: dist.Pareto(1.5, v), [dist.Gamma(30.0, 2.0)]),
    ("categorical_probs", "probs", "probs", dist.CategoricalProbs,
     [dist.Dirichlet(np.array([3.0, 9.0, 2.0, 5.0]))]),
    ("multinomial_probs", "probs", "probs", lambda v: dist.MultinomialProbs(v, 9),
     [dist.Dirichlet(np.array([3.0, 99.0, 2.0, 5.0]))]),
]  # fmt: skip
WITH_PRIORS = [
    pytest.param(*case[:4], prior, id="-".join([case[0], case[2], type(prior).__name__]))
    for case in MSTEPS
    for prior in [None, *case[4]]
]


def expected_statistics(family, d, x, weights, origin):
    """S (K, 1, P) and n (K, 1) of K cells, each a sum over the rows."""
    T = family.statistics(d, x, origin)
    T = jnp.broadcast_to(T.reshape((-1, N, T.shape[-1])), (K, N, T.shape[-1]))
    return jnp.einsum("kn,knp->kp", weights, T)[:, None], weights.sum(-1)[:, None]


def numerical_maximum(objective, support, start):
    """BFGS in the unconstrained space on the density of the constrained one, no Jacobian."""
    transform = biject_to(support)
    start = jnp.atleast_1d(transform.inv(start))
    shape = start.shape

    def negative(u):
        value = transform(u.reshape(shape))
        return -objective(value if value.shape != (1,) else value[0])

    value_and_grad = jax.jit(jax.value_and_grad(negative))
    found = minimize(
        lambda u: tuple(np.asarray(a, float) for a in value_and_grad(jnp.asarray(u))),
        np.asarray(start).ravel(), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 500},
    )  # fmt: skip
    best = transform(jnp.asarray(found.x).reshape(shape))
    return best if best.shape != (1,) else best[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "argument", "view", "build", "prior"), WITH_PRIORS)
def test_tied_m_step_is_the_weighted_maximum(name, argument, view, build, prior, key):
    """One parameter shared by K cells: a ratio of sums against BFGS, prior included."""
    _, x = draw(name, key)
    weights = jnp.asarray(np.random.default_rng(3).uniform(size=(K, N)))
    current, _ = draw(name, key)
    family = family_of(current)
    arg = family.arguments[argument]
    how = arg.views[view]
    start = how.from_canonical(arg.canonical(current).reshape(K, -1)[0])
    start = start[0] if arg.event_dim == 0 else start
    d = build(start)
    S, n = expected_statistics(family, d, x, weights, 0.3)
    num, den = arg.ratio(S, n, d, 0.3)
    extra = how.conjugate(prior)
    rows = tuple(range(jnp.ndim(num) - arg.event_dim))
    num, den = jnp.broadcast_arrays(num, den)
    value = how.from_canonical(arg.maximiser(num.sum(rows) + extra.num, den.sum(rows) + extra.den))

    def objective(v):
        penalty = 0.0 if prior is None else prior.log_prob(v).sum()
        return (weights * build(v).log_prob(x)).sum() + penalty

    best = numerical_maximum(objective, how.support, start)
    np.testing.assert_allclose(value, best, rtol=2e-6)
    assert objective(value) >= objective(best) - 1e-9


def mvn_build(view):
    return lambda loc, v: dist.MultivariateNormal(loc, **{view: v})


COVARIANCE_PRIORS = [
    ("covariance_matrix", None),
    ("scale_tril", None),
    ("precision_matrix", None),
    ("covariance_matrix", dist.InverseWishart(7.0, scale_matrix=2.0 * jnp.eye(D) + 0.5)),
    ("precision_matrix", dist.Wishart(7.0, scale_matrix=0.2 * jnp.eye(D) + 0.1)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("view", "prior"), COVARIANCE_PRIORS)
def test_tied_covariance(view, prior):
    rng = np.random.default_rng(5)
    x, weights = rng.normal(size=(N, D)) @ spd(rng), jnp.asarray(rng.uniform(size=(K, N)))
    loc = rng.normal(size=(K, 1, D))
    d = mvn_build("covariance_matrix")(loc, spd(rng))
    family = family_of(d)
    arg = family.arguments["covariance_matrix"]
    how = arg.views[view]
    S, n = expected_statistics(family, d, x, weights, 0.3)
    num, den = arg.ratio(S, n, d, 0.3)
    extra = how.conjugate(prior)
    value = how.from_canonical(
        arg.maximiser(num.sum((0, 1)) + extra.num, den.sum((0, 1)) + extra.den)
    )

    def objective(v):
        penalty = 0.0 if prior is None else prior.log_prob(v)
        return (weights * mvn_build(view)(loc, v).log_prob(x)).sum() + penalty

    best = numerical_maximum(objective, how.support, how.from_canonical(jnp.eye(D) * 4.0))
    np.testing.assert_allclose(value, best, rtol=1e-5, atol=1e-7)


LOC_PRIORS = [
    None,
    dist.Normal(0.5, 0.1),
    dist.Normal(jnp.array([1.0, -1.0, 0.5]), jnp.array([0.1, 0.2, 0.3])),
    dist.MultivariateNormal(jnp.ones(D), jnp.eye(D) * 0.02 + 0.01),
]


@pytest.mark.parametrize("prior", LOC_PRIORS)
def test_tied_vector_location_with_different_covariances(prior):
    rng = np.random.default_rng(6)
    x, weights = rng.normal(size=(K, N, D)), jnp.asarray(rng.uniform(size=(K, N)))
    d = dist.MultivariateNormal(jnp.zeros(D), covariance_matrix=spd(rng, K, 1))
    family = family_of(d)
    arg = family.arguments["loc"]
    S, n = expected_statistics(family, d, x, weights, 0.3)
    num, den = arg.ratio(S, n, d, 0.3)
    extra = arg.views["loc"].conjugate(prior, (D,))
    value = arg.maximiser(num.sum((0, 1)) + extra.num, den.sum((0, 1)) + extra.den)

    def objective(v):
        e = dist.MultivariateNormal(v, scale_tril=d.scale_tril)
        penalty = 0.0 if prior is None else prior.log_prob(v).sum()
        return (weights * e.log_prob(x)).sum() + penalty

    best = numerical_maximum(objective, constraints.real_vector, jnp.zeros(D))
    np.testing.assert_allclose(value, best, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["normal", "mvn_covariance"])
def test_shared_ratio_is_the_weighted_mean(name, key):
    d, x = draw(name, key)
    family, weights = family_of(d), jnp.asarray(np.random.default_rng(3).uniform(size=(K, N)))
    S, n = expected_statistics(family, d, x, weights, 1e3)
    num, den = family.arguments["loc"].shared_ratio(S, n, d, 1e3)
    mean = np.stack([np.average(x, axis=0, weights=w) for w in weights])
    np.testing.assert_allclose((num / den)[:, 0], mean, rtol=1e-10, atol=1e-10)


def test_arguments_in_order_reach_the_joint_maximum():
    rng = np.random.default_rng(8)
    x, weights = rng.normal(2.0, 3.0, N), jnp.ones((K, N))
    d = dist.Normal(jnp.full((K, 1), -5.0), 9.0)
    family = family_of(d)
    S, n = expected_statistics(family, d, x, weights, 2.0)
    num, den = family.arguments["loc"].ratio(S, n, d, 2.0)
    d = dist.Normal(num / den, 9.0)
    num, den = family.arguments["scale"].ratio(S, n, d, 2.0)
    np.testing.assert_allclose(num.sum() / den.sum(), x.var(), rtol=1e-12)
    np.testing.assert_allclose(d.loc[:, 0], np.full(K, x.mean()), rtol=1e-12)


def test_varying_counts_are_part_of_the_statistics():
    rng = np.random.default_rng(9)
    total = rng.integers(1, 20, N)
    x = rng.binomial(total, 0.3)
    d = dist.BinomialProbs(jnp.array([[0.2], [0.5], [0.7]]), total)
    family = family_of(d)
    np.testing.assert_allclose(family.log_prob(d, x), d.log_prob(x), rtol=1e-10)
    assert family.natural(d, 0.0).eta.shape == (K, 1, 2)
    S, n = expected_statistics(family, d, x, jnp.ones((K, N)), 0.0)
    num, den = family.arguments["probs"].ratio(S, n, d, 0.0)
    np.testing.assert_allclose(num / den, np.full((K, 1), x.sum() / total.sum()), rtol=1e-12)


def test_priors_that_are_not_conjugate():
    normal, poisson = family_of(dist.Normal()), family_of(dist.Poisson(1.0))
    scale, rate = normal.arguments["scale"].views, poisson.arguments["rate"].views
    assert scale["scale"].conjugate(dist.InverseGamma(2.0, 1.0)) is None
    assert scale["scale"].conjugate(dist.HalfNormal(2.0)) is None
    assert scale["variance"].conjugate(dist.Gamma(2.0, 1.0)) is None
    assert rate["rate"].conjugate(dist.LogNormal(2.0, 1.0)) is None
    assert rate["log_rate"].conjugate(dist.Normal(2.0, 1.0)) is None


def test_flat_priors():
    scale = family_of(dist.Normal()).arguments["scale"].views["scale"]
    flat = dist.ImproperUniform(constraints.positive, (), ())
    vector = dist.ImproperUniform(constraints.positive, (), (3,))
    assert scale.conjugate(vector) == (0.0, 0.0, False)
    cut = dist.ImproperUniform(constraints.interval(1.0, 2.0), (), ())
    assert scale.conjugate(flat) == (0.0, 0.0, False)
    assert scale.conjugate(cut) == (0.0, 0.0, True)
    assert scale.conjugate(dist.Uniform(0.1, 2.0)) == (0.0, 0.0, True)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_stays_single(name, key):
    def single(a):
        return a.astype(jnp.float32) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a

    d, x = draw(name, key)
    d, x = jax.tree.map(lambda a: single(jnp.asarray(a)), d), single(x)
    natural = family_of(d).natural(d, np.float32(0.0))
    T = family_of(d).statistics(d, x, np.float32(0.0))
    assert natural.eta.dtype == natural.log_normalizer.dtype == jnp.float32
    assert T.dtype == jnp.float32 or not jnp.issubdtype(x.dtype, jnp.floating)


def test_statistics_are_differentiable_and_jit():
    d = dist.MultivariateNormal(jnp.zeros(D), jnp.eye(D))
    family = family_of(d)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(N, D)))
    mine = jax.jit(jax.grad(lambda e: family.log_prob(e, x).sum()))(d)
    theirs = jax.grad(lambda e: e.log_prob(x).sum())(d)
    np.testing.assert_allclose(mine.loc, theirs.loc, rtol=1e-10)


@pytest.mark.slow
def test_log_of_a_tiny_probability_has_finite_derivatives():
    """A probit link written as Bernoulli(cdf(x)): NumPyro users have no stable one."""
    x = jnp.linspace(-37.0, 5.0, 43)

    def plain(x):
        d = dist.Bernoulli(probs=jax.scipy.stats.norm.cdf(x))
        return BERNOULLI.natural(d, None).eta[..., 0]

    exact = jax.scipy.special.log_ndtr
    for order in range(4):
        f, g = plain, exact
        for _ in range(order):
            f, g = jax.grad(f), jax.grad(g)
        found, expected = jax.jit(jax.vmap(f))(x), jax.jit(jax.vmap(g))(x)
        if order < 3:  # the exact one loses digits
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)
        assert np.isfinite(found).all()
    assert (jax.vmap(jax.hessian(plain))(jnp.array([-37.5, -38.0, -60.0])) == 0.0).all()
