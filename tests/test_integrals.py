"""Continuous latents: integrals, moments, scores and Q against dense algebra and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density
from scipy import integrate, stats
from scipy.integrate import quad
from scipy.special import expit, gammaln, logsumexp

import emprob as ep
from emprob.estep.auto import Auto
from emprob.objective import expected_log_joint
from emprob.posterior import marginals

positive = dist.constraints.positive
RNG = np.random.default_rng(5)


class Dense:
    """The Gaussian posterior of a program by one dense Hessian of NumPyro's own log-density."""

    def __init__(self, program, args, params, shapes):
        self.program, self.args, self.params = program, args, params
        self.zero, self.unravel = ravel_pytree({k: jnp.zeros(s) for k, s in shapes.items()})

    def log_joint(self, z, params):
        return log_density(self.program, self.args, {}, {**params, **self.unravel(z)})[0]

    def log_partition(self, params):
        f = lambda z: self.log_joint(z, params)  # noqa: E731
        precision = -jax.hessian(f)(self.zero)
        mean = jnp.linalg.solve(precision, jax.grad(f)(self.zero))
        sign = jnp.linalg.slogdet(precision)[1]
        return f(mean) + 0.5 * len(mean) * jnp.log(2 * jnp.pi) - 0.5 * sign

    def moments(self):
        f = lambda z: self.log_joint(z, self.params)  # noqa: E731
        covariance = jnp.linalg.inv(-jax.hessian(f)(self.zero))
        return covariance @ jax.grad(f)(self.zero), np.asarray(covariance)


def param(name, value, constraint=dist.constraints.real):
    return numpyro.param(name, value, constraint=constraint)


# -- Gaussian programs --------------------------------------------------------------------------

GROUPS = RNG.integers(0, 4, 15)
X = RNG.normal(size=15)


def intercepts(y, g):
    mu, tau, s = param("mu", 1.0), param("tau", 0.7, positive), param("s", 1.3, positive)
    with numpyro.plate("groups", 4):
        b = numpyro.sample("b", dist.Normal(0, tau))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(mu + b[g], s), obs=y)


def slopes(y, g, x):
    beta = param("beta", jnp.array([1.0, -0.5]))
    root = param("root", jnp.array([[0.8, 0.0], [0.3, 0.6]]), dist.constraints.lower_cholesky)
    with numpyro.plate("groups", 4):
        b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), scale_tril=root))
    with numpyro.plate("obs", len(y)):
        loc = beta[0] + b[g, 0] + (beta[1] + b[g, 1]) * x
        numpyro.sample("y", dist.Normal(loc, param("s", 0.9, positive)), obs=y)


def factors(y):
    loading = param("loading", jnp.array([[1.0, 0.2], [0.5, -0.7], [0.1, 0.9]]))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        noise = param("s", jnp.array([0.5, 0.8, 1.1]), positive)
        numpyro.sample("y", dist.Normal(z @ loading.T, noise).to_event(1), obs=y)


def nested(y):
    tau = param("tau", jnp.array([0.8, 0.5]), positive)
    with numpyro.plate("schools", 3, dim=-2):
        u = numpyro.sample("u", dist.Normal(0.0, tau[0]))
        with numpyro.plate("classes", 2, dim=-1):
            v = numpyro.sample("v", dist.Normal(0.0, tau[1]))
            numpyro.sample("y", dist.Normal(u + v, param("s", 1.0, positive)).expand([3, 2]), obs=y)


def crossed(y, g, h):
    with numpyro.plate("a", 4):
        a = numpyro.sample("a_", dist.Normal(0.0, param("ta", 0.6, positive)))
    with numpyro.plate("b", 3):
        b = numpyro.sample("b_", dist.Normal(0.0, param("tb", 0.9, positive)))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(a[g] + b[h], param("s", 0.8, positive)), obs=y)


def process(y, x):
    scale, length = param("scale", 1.2, positive), param("length", 0.7, positive)
    kernel = scale**2 * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + 1e-4 * jnp.eye(len(x))
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(len(x)), kernel))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(f, param("s", 0.5, positive)), obs=y)


def level(y):
    q, r = param("q", 0.6, positive), param("r", 0.9, positive)

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, q))
        numpyro.sample("y", dist.Normal(x, r), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 3.0)), y)


def two_lags(y):
    a, q = param("a", jnp.array([0.9, -0.3])), param("q", 0.6, positive)

    def step(carry, y):
        x = numpyro.sample("x", dist.Normal(a[0] * carry[0] + a[1] * carry[1], q))
        numpyro.sample("y", dist.Normal(x, 0.7), obs=y)
        return (x, carry[0]), None

    scan(step, (jnp.zeros(()), jnp.zeros(())), y)


def vector_chain(y, u):
    A = param("A", jnp.array([[0.7, 0.2], [-0.1, 0.5]]))
    C = param("C", jnp.array([[1.0, 0.3], [0.0, 1.0], [0.5, -0.5]]))
    q, r = param("q", jnp.array([0.5, 0.8]), positive), param("r", 0.6, positive)

    def step(x, inputs):
        y, u = inputs
        x = numpyro.sample("x", dist.Normal(A @ x + u, q).to_event(1))
        numpyro.sample("y", dist.Normal(C @ x, r).to_event(1), obs=y)
        return x, None

    start = numpyro.sample("x0", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
    scan(step, start, (y, u))


def panel(y):
    q, r = param("q", 0.6, positive), param("r", 0.9, positive)
    with numpyro.plate("series", 3):
        start = numpyro.sample("x0", dist.Normal(0.0, 2.0))

    def step(x, y):
        with numpyro.plate("series", 3):
            x = numpyro.sample("x", dist.Normal(0.8 * x, q))
            numpyro.sample("y", dist.Normal(x, r), obs=y)
        return x, None

    scan(step, start, y)


def with_holes(y, every=3):
    y = np.array(y, float)
    y.reshape(-1)[::every] = np.nan
    return y


Y15 = RNG.normal(1.0, 2.0, 15)
GAUSSIAN = {
    "intercepts": (intercepts, (Y15, GROUPS), {"b": (4,)}),
    "slopes": (slopes, (Y15, GROUPS, X), {"b": (4, 2)}),
    "factors": (factors, (RNG.normal(size=(6, 3)),), {"z": (6, 2)}),
    "nested": (nested, (RNG.normal(size=(3, 2)),), {"u": (3, 1), "v": (3, 2)}),
    "crossed": (crossed, (Y15, GROUPS, RNG.integers(0, 3, 15)), {"a_": (4,), "b_": (3,)}),
    "process": (process, (Y15[:8], np.linspace(0, 2, 8)), {"f": (8,)}),
    "level": (level, (RNG.normal(size=7),), {"x0": (), "x": (7,)}),
    "level, one step": (level, (RNG.normal(size=1),), {"x0": (), "x": (1,)}),
    "two_lags": (two_lags, (RNG.normal(size=9),), {"x": (9,)}),
    "vector_chain": (
        vector_chain, (RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2))), {"x0": (2,), "x": (6, 2)},
    ),
    "level, alike": (level, (RNG.normal(size=12),), {"x0": (), "x": (12,)}),
    "vector_chain, alike": (
        vector_chain, (RNG.normal(size=(12, 3)), RNG.normal(size=(12, 2))),
        {"x0": (2,), "x": (12, 2)},
    ),
    "factors, alike": (factors, (RNG.normal(size=(14, 3)),), {"z": (14, 2)}),
    "panel": (panel, (RNG.normal(size=(5, 3)),), {"x0": (3,), "x": (5, 3)}),
}  # fmt: skip


def start_of(model):
    return {k: jnp.asarray(v, float) for k, v in model.notes.value.initial.items()}


QUICK = {"intercepts", "nested", "two_lags", "level, alike", "factors, alike"}  # the rest: -m ""


def some(names, quick):
    """Names as parameters, all but a few of them slow."""
    slow = pytest.mark.exhaustive
    return [n if n in quick else pytest.param(n, marks=slow) for n in names]


@pytest.mark.slow
@pytest.mark.parametrize("name", some(GAUSSIAN, QUICK))
def test_gaussian_equals_dense_algebra(name):
    program, args, shapes = GAUSSIAN[name]
    model = ep.bind(program, *args, prior=False)
    assert {type(i.rule) for i in model.structure.integrals} == {ep.Gaussian}
    assert ("alike" in name) == (model.structure.integrals[0].steady is not None)
    params = start_of(model)
    dense = Dense(program, args, params, shapes)
    value, slope = jax.jit(jax.value_and_grad(model.log_partition))(params)
    expected, expected_slope = jax.value_and_grad(dense.log_partition)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    for k in params:
        np.testing.assert_allclose(slope[k], expected_slope[k], rtol=1e-8, atol=1e-9)
    posterior = jax.jit(Auto().__call__)(model, params)
    q = jax.grad(lambda p: expected_log_joint(model, p, posterior))(params)
    for k in params:
        np.testing.assert_allclose(q[k], slope[k], rtol=1e-8, atol=1e-9)
    mean, covariance = dense.moments()
    numbers = dense.unravel(jnp.arange(len(mean), dtype=float))
    found = marginals(model, params)
    for k, shape in shapes.items():
        index = np.asarray(numbers[k], int)
        np.testing.assert_allclose(found[k].mean, np.asarray(mean)[index], rtol=1e-9, atol=1e-10)
        variances = covariance.diagonal()[index]
        np.testing.assert_allclose(found[k].variance, variances, rtol=1e-9, atol=1e-12)
        if found[k].is_chain and shape[0] > 1:
            rows = index.reshape(shape[0], -1)
            pairs = covariance[rows[:-1, :, None], rows[1:, None, :]]
            pairwise = np.asarray(found[k].pairwise_covariance)
            if pairwise.shape[-1] == 1:  # scalar events, a plate of series
                pairs = np.stack([np.diag(p) for p in pairs])
            pairwise = pairwise.reshape(pairs.shape)
            np.testing.assert_allclose(pairwise, pairs, rtol=1e-9, atol=1e-11)


HOLED = ["level", "level, alike", "two_lags", "panel", "vector_chain", "vector_chain, alike"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", some(HOLED, {"vector_chain, alike"}))
def test_missing_observations_are_left_out(name):
    """As if the masked entries had a variance beyond all bounds, up to their constants."""
    program, args, shapes = GAUSSIAN[name]
    holed = (with_holes(args[0]), *args[1:])
    model = ep.bind(program, *holed, prior=False)
    params = start_of(model)
    seen = ~np.isnan(holed[0])

    def masked(*a):  # the same program, its holes masked by NumPyro
        filled = (np.nan_to_num(holed[0]), *args[1:])

        class Masked(numpyro.primitives.Messenger):
            def process_message(self, msg):
                if msg["type"] == "control_flow":
                    body, init, xs, length, rev = msg["args"]
                    xs = (xs, jnp.asarray(seen))
                    msg["args"] = (lambda c, x: hidden(body, c, x), init, xs, length, rev)

        def hidden(body, carry, inputs):
            x, keep = inputs
            with Hide(keep):
                return body(carry, x)

        class Hide(numpyro.primitives.Messenger):
            def __init__(self, keep):
                super().__init__(None)
                self.keep = keep

            def process_message(self, msg):
                if msg["type"] == "sample" and msg["name"] == "y":
                    fn = msg["fn"]
                    if fn.event_dim:
                        fn = fn.base_dist.mask(self.keep).to_event(1)
                    else:
                        fn = fn.mask(self.keep)
                    msg["fn"] = fn

        with Masked():
            return program(*filled)

    dense = Dense(masked, args, params, shapes)
    value = jax.jit(model.log_partition)(params)
    np.testing.assert_allclose(value, dense.log_partition(params), rtol=1e-10)
    mean, covariance = dense.moments()
    numbers = dense.unravel(jnp.arange(len(mean), dtype=float))
    found = marginals(model, params)["x"]
    index = np.asarray(numbers["x"], int)
    np.testing.assert_allclose(found.mean, np.asarray(mean)[index], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.variance, covariance.diagonal()[index], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", some(["level", "two_lags", "vector_chain"], {"level"}))
def test_filtered_and_predicted_do_not_see_the_future(name):
    """The filter at t is the smoother of the data up to t, the rest missing."""
    program, args, _ = GAUSSIAN[name]
    model = ep.bind(program, *args, prior=False)
    params = start_of(model)
    x = marginals(model, params)["x"]
    for t in (0, 2, len(args[0]) - 1):
        for until, mean, variance in (
            (t + 1, x.filtered_mean, x.filtered_variance),
            (t, x.predicted_mean, x.predicted_variance),
        ):
            y = np.array(args[0], float)
            y[until:] = np.nan
            if not np.isfinite(y).any():
                continue
            cut = marginals(ep.bind(program, y, *args[1:], prior=False), params)["x"]
            np.testing.assert_allclose(mean[t], cut.mean[t], rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(variance[t], cut.variance[t], rtol=1e-9)


@pytest.mark.exhaustive
def test_draws_have_the_posterior_s_moments(key):
    for name in ("level", "slopes"):
        program, args, _ = GAUSSIAN[name]
        model = ep.bind(program, *args, prior=False)
        site = "x" if name == "level" else "b"
        found = marginals(model, start_of(model))[site]
        x = found.sample(key, 20000)
        np.testing.assert_allclose(x.mean(0), found.mean, atol=5 * found.sd.max() / 140)
        np.testing.assert_allclose(x.var(0), found.variance, rtol=0.06)


# -- conjugate programs -------------------------------------------------------------------------


def t_regression(y, x):
    beta, s, nu = param("beta", 0.7), param("s", 1.1, positive), param("nu", 5.0, positive)
    with numpyro.plate("n", len(y)):
        w = numpyro.sample("w", dist.Gamma(nu / 2, nu / 2))
        numpyro.sample("y", dist.Normal(beta * x, s / jnp.sqrt(w)), obs=y)


def negative_binomial(y, x):
    shape, beta = param("shape", 2.5, positive), param("beta", 0.4)
    with numpyro.plate("n", len(y)):
        rate = numpyro.sample("rate", dist.Gamma(shape, shape))
        numpyro.sample("y", dist.Poisson(rate * jnp.exp(beta * x)), obs=y)


def beta_binomial(y, n):
    a, b = param("a", 1.5, positive), param("b", 2.5, positive)
    with numpyro.plate("n", len(y)):
        p = numpyro.sample("p", dist.Beta(a, b))
        numpyro.sample("y", dist.Binomial(n, p), obs=y)


def inverse_gamma(y):
    a, b = param("a", 3.0, positive), param("b", 2.0, positive)
    with numpyro.plate("groups", len(y)):
        v = numpyro.sample("v", dist.InverseGamma(a, b))
        numpyro.sample("y", dist.Normal(0.3 * jnp.ones(3), jnp.sqrt(v)[:, None]).to_event(1), obs=y)


def dirichlet(y):
    a = param("a", jnp.array([1.5, 0.8, 2.0]), positive)
    with numpyro.plate("rows", len(y)):
        p = numpyro.sample("p", dist.Dirichlet(a))
        numpyro.sample("y", dist.Multinomial(total_count=6, probs=p), obs=y)


def integral(f, low, high):
    return integrate.quad(f, low, high, epsabs=0, epsrel=1e-12, limit=400)[0]


def t_expected(y, x):
    def f(y, x):
        return lambda w: (
            stats.gamma.pdf(w, 2.5, scale=0.4) * stats.norm.pdf(y, 0.7 * x, 1.1 / np.sqrt(w))
        )

    return sum(np.log(integral(f(a, b), 0, np.inf)) for a, b in zip(y, x))


def nb_expected(y, x):
    def f(y, x):
        return lambda r: (
            stats.gamma.pdf(r, 2.5, scale=0.4) * stats.poisson.pmf(y, r * np.exp(0.4 * x))
        )

    return sum(np.log(integral(f(a, b), 0, np.inf)) for a, b in zip(y, x))


def bb_expected(y, n):
    f = lambda y, n: lambda p: stats.beta.pdf(p, 1.5, 2.5) * stats.binom.pmf(y, n, p)  # noqa: E731
    return sum(np.log(integral(f(a, b), 0, 1)) for a, b in zip(y, n))


def ig_expected(y):
    def f(row):
        return lambda v: (
            stats.invgamma.pdf(v, 3.0, scale=2.0) * np.prod(stats.norm.pdf(row, 0.3, np.sqrt(v)))
        )

    return sum(np.log(integral(f(row), 0, np.inf)) for row in y)


def dirichlet_expected(y):
    a = np.array([1.5, 0.8, 2.0])
    choose = gammaln(7.0) - gammaln(y + 1.0).sum(1)
    ratio = gammaln(a + y).sum(1) - gammaln((a + y).sum(1)) - gammaln(a).sum() + gammaln(a.sum())
    return (choose + ratio).sum()


COUNTS = RNG.integers(0, 9, 6)
CONJUGATE = {
    "t": (t_regression, (Y15[:6], X[:6]), t_expected, "Gamma"),
    "negative binomial": (negative_binomial, (COUNTS, X[:6]), nb_expected, "Gamma"),
    "beta binomial": (beta_binomial, (COUNTS, COUNTS + 4), bb_expected, "Beta"),
    "inverse gamma": (inverse_gamma, (Y15.reshape(5, 3),), ig_expected, "InverseGamma"),
    "dirichlet": (
        dirichlet, (RNG.multinomial(6, [0.3, 0.2, 0.5], 4),), dirichlet_expected, "Dirichlet",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", some(CONJUGATE, {"t", "beta binomial"}))
def test_conjugate_equals_quadrature(name):
    program, args, expected, family = CONJUGATE[name]
    model = ep.bind(program, *args, prior=False)
    rule = model.structure.integrals[0].rule
    assert isinstance(rule, ep.Conjugate) and rule.kernel.name == family
    params = start_of(model)
    value, slope = jax.jit(jax.value_and_grad(model.log_partition))(params)
    np.testing.assert_allclose(value, expected(*args), rtol=1e-10)
    posterior = jax.jit(Auto().__call__)(model, params)
    q = jax.grad(lambda p: expected_log_joint(model, p, posterior))(params)
    for k in params:
        np.testing.assert_allclose(q[k], slope[k], rtol=1e-8, atol=1e-10)


@pytest.mark.exhaustive
def test_student_t_by_em_equals_direct_maximisation():
    y, x = RNG.standard_t(4, 80), RNG.normal(size=80)
    fit = ep.fit(ep.bind(t_regression, y, x, prior=False), progress=False)

    def direct(y, x):
        beta, s, nu = param("beta", 0.7), param("s", 1.1, positive), param("nu", 5.0, positive)
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.StudentT(nu, beta * x, s), obs=y)

    other = ep.fit(ep.bind(direct, y, x, prior=False), ep.MAP(), progress=False)
    assert fit.converged and other.converged
    np.testing.assert_allclose(fit.log_likelihood, other.log_likelihood, rtol=1e-10)
    for k in fit.params:
        np.testing.assert_allclose(fit.params[k], other.params[k], rtol=1e-5)
        a, b = fit.standard_errors()[k], other.standard_errors()[k]
        np.testing.assert_allclose(a, b, rtol=1e-4)


def counted(y):
    mu, tau = param("mu", 0.3), param("tau", 0.8, positive)
    with numpyro.plate("n", len(y)):
        b = numpyro.sample("b", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)


def test_map_climbs_by_the_rule_that_is_asked_for():
    model = ep.bind(counted, np.random.default_rng(3).poisson(np.exp([0.0, 1.0, 2.0] * 8)))
    by = {
        order: ep.fit(model, ep.MAP(estep=ep.Laplace(order)), progress=False) for order in (1, 15)
    }
    for order, found in by.items():
        assert found.converged
        other = ep.fit(model, ep.EM(ep.Laplace(order)), progress=False)
        np.testing.assert_allclose(found.objective, other.objective, rtol=1e-10)
        for k in found.params:
            np.testing.assert_allclose(found.params[k], other.params[k], rtol=1e-5)
    assert abs(by[1].objective - by[15].objective) > 1e-3


@pytest.mark.parametrize(
    "estep", [ep.MonteCarlo(), ep.FixedKey(ep.Particle()), ep.Laplace, "laplace"]
)
def test_map_refuses_what_draws(estep):
    with pytest.raises(ValueError, match=r"MAP\(estep=.*deterministic.*ep.EM"):
        ep.MAP(estep=estep)


# -- with discrete latents in the same plate ----------------------------------------------------


def t_mixture(y):
    pi = param("pi", jnp.array([0.3, 0.7]), dist.constraints.simplex)
    mu = param("mu", jnp.array([-1.0, 2.0]))
    with numpyro.plate("n", len(y)):
        k = numpyro.sample("k", dist.Categorical(pi))
        w = numpyro.sample("w", dist.Gamma(2.0, 2.0))
        numpyro.sample("y", dist.Normal(mu[k], 0.8 / jnp.sqrt(w)), obs=y)


def factor_mixture(y):
    pi = param("pi", jnp.array([0.3, 0.7]), dist.constraints.simplex)
    mu = param("mu", jnp.array([[-1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]))
    W = param("W", jnp.array([[1.0, 0.5, -0.3], [0.2, 0.8, 0.6]]))
    with numpyro.plate("n", len(y)):
        k = numpyro.sample("k", dist.Categorical(pi))
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu[k] + W[k] * z[..., None], 0.7).to_event(1), obs=y)


@pytest.mark.exhaustive
def test_mixtures_with_integrals_in_each_branch():
    y = RNG.normal(size=9)
    model = ep.bind(t_mixture, y, prior=False)
    parts = [np.log(p) + stats.t.logpdf(y, 4.0, m, 0.8) for p, m in ((0.3, -1.0), (0.7, 2.0))]
    np.testing.assert_allclose(
        jax.jit(model.log_partition)(start_of(model)), logsumexp(parts, 0).sum(), rtol=1e-10
    )
    y = RNG.normal(size=(9, 3))
    model = ep.bind(factor_mixture, y, prior=False)
    params = start_of(model)
    parts = [
        np.log(params["pi"][k]) + stats.multivariate_normal.logpdf(
            y, params["mu"][k], np.outer(params["W"][k], params["W"][k]) + 0.49 * np.eye(3))
        for k in (0, 1)
    ]  # fmt: skip
    value, slope = jax.jit(jax.value_and_grad(model.log_partition))(params)
    np.testing.assert_allclose(value, logsumexp(parts, 0).sum(), rtol=1e-10)
    posterior = jax.jit(Auto().__call__)(model, params)
    q = jax.grad(lambda p: expected_log_joint(model, p, posterior))(params)
    for k in params:
        np.testing.assert_allclose(q[k], slope[k], rtol=1e-8, atol=1e-10)
    probs = marginals(model, params)["k"].probs
    expected = np.exp(np.array(parts).T - logsumexp(parts, 0)[:, None])
    np.testing.assert_allclose(probs, expected, rtol=1e-9)


# -- around the mode ----------------------------------------------------------------------------


def logistic(y, g):
    a, tau = param("a", -0.3), param("tau", 1.4, positive)
    with numpyro.plate("groups", 4):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=a + b[g]), obs=y)


def volatility(y):
    phi, s = param("phi", 0.9, dist.constraints.interval(-1.0, 1.0)), param("s", 0.3, positive)

    def step(h, y):
        h = numpyro.sample("h", dist.Normal(phi * h, s))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=y)
        return h, None

    scan(step, numpyro.sample("h0", dist.Normal(0.0, 0.6)), y)


@pytest.mark.slow
def test_adaptive_quadrature_converges_to_the_integral():
    y = RNG.binomial(1, 0.4, 15)

    def one(j):
        rows = y[j == GROUPS]

        def f(b):
            return stats.norm.pdf(b, 0, 1.4) * np.prod(
                np.where(rows, expit(-0.3 + b), expit(0.3 - b))
            )

        return np.log(integral(f, -15, 15))

    expected = sum(map(one, range(4)))
    model = ep.bind(logistic, y, GROUPS, prior=False)
    errors = []
    for order in (1, 3, 7, 15):
        found = driver_rule(model, ep.Laplace(order=order))
        errors.append(abs(float(jax.jit(found.log_partition)(start_of(model))) - expected))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[2] < 1e-3 and errors[3] < 1e-6


def driver_rule(model, rule):
    import importlib

    return importlib.import_module("emprob.fit").with_rule(model, ep.EM(rule))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", some(["logistic", "logistic, order 1", "volatility"], {"logistic"})
)
def test_derivatives_of_the_approximations_are_exact(name):
    """Gradient and Hessian in the parameters against finite differences of the value alone."""
    if name == "volatility":
        model = ep.bind(volatility, RNG.normal(size=12), prior=False)
    else:
        model = ep.bind(logistic, RNG.binomial(1, 0.4, 15), GROUPS, prior=False)
        model = driver_rule(model, ep.Laplace(order=1 if "1" in name else 7))
    flat, unravel = ravel_pytree(start_of(model))
    f = jax.jit(lambda x: model.log_partition(unravel(x)))
    gradient = np.asarray(jax.jit(jax.grad(f))(flat))
    hessian = np.asarray(jax.jit(jax.hessian(f))(flat))
    step = 1e-4
    for i, e in enumerate(np.eye(len(flat)) * step):
        slope = (f(flat - 2 * e) - 8 * f(flat - e) + 8 * f(flat + e) - f(flat + 2 * e)) / 12 / step
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-7, atol=1e-8)
        g = jax.jit(jax.grad(f))
        curve = (g(flat - 2 * e) - 8 * g(flat - e) + 8 * g(flat + e) - g(flat + 2 * e)) / 12 / step
        np.testing.assert_allclose(hessian[i], curve, rtol=1e-6, atol=1e-7)


@pytest.mark.exhaustive
def test_laplace_finds_the_maximum_of_its_own_evidence():
    y = np.exp(0.2 * np.cumsum(RNG.normal(size=60))) * RNG.normal(size=60)
    fit = ep.fit(ep.bind(volatility, y, prior=False), progress=False)
    assert fit.converged and fit.score_norm < 1e-6


@pytest.mark.exhaustive
def test_cells_of_a_slope_that_has_decayed_belong_to_their_series():
    """exp(-k t) at large t barely moves with k: its rows are their group's all the same."""
    times = np.tile([0.5, 2.0, 40.0, 80.0], 4)
    group = np.repeat(np.arange(4), 4)

    def decay(y, t, g):
        tau = param("tau", 0.4, positive)
        with numpyro.plate("groups", 4):
            b = numpyro.sample("b", dist.Normal(0.0, tau))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Normal(jnp.exp(-jnp.exp(b[g]) * t), 0.2), obs=y)

    y = np.exp(-times) + 0.2 * np.random.default_rng(4).normal(size=16)
    model = ep.bind(decay, y, times, group, prior=False)

    def integrand(b, g):
        rest = y[group == g] - np.exp(-np.exp(b) * times[group == g])
        return np.exp(-0.5 * (rest / 0.2) ** 2 - np.log(0.2 * np.sqrt(2 * np.pi))).prod() * (
            np.exp(-0.5 * (b / 0.4) ** 2) / 0.4 / np.sqrt(2 * np.pi)
        )

    want = sum(np.log(quad(integrand, -4, 4, args=(g,))[0]) for g in range(4))
    model = ep.Laplace(31).adapted(model)
    assert float(model.log_partition({"tau": jnp.asarray(0.4)})) == pytest.approx(want, abs=1e-5)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_kink_is_refused_by_name():
    def median(y):
        with numpyro.plate("n", len(y)):
            b = numpyro.sample("b", dist.Normal(0.0, param("tau", 1.0, positive)))
            numpyro.sample("y", dist.Laplace(b, 1.0), obs=y)

    model = ep.bind(median, Y15, prior=False)
    for method in (None, ep.EM(ep.Laplace())):
        with pytest.raises(ep.ModelError, match="not smooth in 'b'"):
            ep.fit(model, method, progress=False)


@pytest.mark.slow
def test_branches_deeper_than_the_latent_are_refused_by_name():
    def outliers(y, g):
        with numpyro.plate("groups", 4):
            b = numpyro.sample("b", dist.Normal(0.0, param("tau", 1.0, positive)))
        with numpyro.plate("obs", len(y)):
            o = numpyro.sample("o", dist.Bernoulli(0.1))
            numpyro.sample("y", dist.Normal(b[g], 1.0 + 9.0 * o), obs=y)

    model = ep.bind(outliers, Y15, GROUPS, prior=False)
    with pytest.raises(ep.ModelError, match="'b'.*'o'.*MonteCarlo"):
        ep.fit(model, progress=False)


def test_gaussian_is_refused_where_nothing_is_gaussian():
    model = ep.bind(logistic, RNG.binomial(1, 0.4, 15), GROUPS, prior=False)
    with pytest.raises(ep.ModelError, match="not quadratic in 'b'"):
        ep.fit(model, ep.EM(ep.Gaussian()), progress=False)


@pytest.mark.slow
def test_noises_of_a_whole_chain_are_one_dense_block_or_refused():
    def noncentred(y):
        q = param("q", 0.5, positive)

        def step(x, y):
            e = numpyro.sample("e", dist.Normal(0.0, 1.0))
            x = 0.9 * x + q * e
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, jnp.zeros(()), y)

    short = ep.bind(noncentred, RNG.normal(size=30), prior=False)
    assert short.structure.integrals[0].block.shape == (1, 1, 30)
    long = ep.bind(noncentred, RNG.normal(size=2500), prior=False)
    with pytest.raises(ep.ModelError, match="Carry the state itself"):
        ep.fit(long, progress=False)


# -- the driver ---------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_variance_of_zero_ends_at_the_boundary():
    """Groups that differ less than chance: tau is estimated as zero, the rest by least squares."""
    y = np.tile([-1.0, 0.0, 1.0, 0.5, -0.5], 4)
    g = np.repeat(np.arange(4), 5)
    fit = ep.fit(ep.bind(intercepts, y, g, prior=False), progress=False)
    assert fit.status is ep.Status.AT_BOUNDARY and "tau" in fit.message
    assert fit.params["tau"] < 1e-4
    np.testing.assert_allclose(fit.params["s"], y.std(), rtol=1e-5)
    np.testing.assert_allclose(fit.standard_errors()["mu"], y.std() / np.sqrt(20), rtol=1e-4)
    assert np.isnan(fit.standard_errors()["tau"])


@pytest.mark.slow
def test_a_second_fit_traces_nothing():
    calls = []

    def counted(y, g):
        calls.append(1)
        intercepts(y, g)

    ep.fit(ep.bind(counted, Y15, GROUPS, prior=False), progress=False)
    model = ep.bind(counted, Y15 + 1.0, GROUPS, prior=False)
    before = len(calls)
    ep.fit(model, progress=False)
    assert len(calls) == before


@pytest.mark.slow
def test_newton_by_units_is_newton():
    """Items have parameters of their own: blocks of the Hessian give the step of the whole."""
    from dataclasses import replace

    def items(y):
        slope, easy = param("slope", jnp.ones(9)), param("easy", jnp.zeros(9))
        with numpyro.plate("persons", len(y)):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            logits = theta[:, None] * slope + easy
            numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    model = ep.bind(items, RNG.binomial(1, 0.6, (40, 9)).astype(float), prior=False)
    assert model.structure.separable == ("slope", "easy")
    dense = replace(model, structure=replace(model.structure, separable=()))
    params = start_of(model)
    posterior = jax.jit(Auto().__call__)(model, params)
    step = jax.jit(ep.Newton(1).__call__)
    found, expected = step(model, params, posterior), step(dense, params, posterior)
    for k in params:
        np.testing.assert_allclose(found[k], expected[k], rtol=1e-10)
