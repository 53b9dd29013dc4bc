"""The E-step on common nodes: against scipy's quadrature, `Laplace`, and published values."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import integrate, special, stats

import emprob as ep
from emprob import curvature, loop
from emprob.curvature import information
from emprob.model import naturals
from emprob.models import item_response
from emprob.objective import score
from emprob.posterior import marginals


def answers(n=40, items=6, missing=0.2, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=items) + rng.uniform(0.5, 2.0, items) * rng.normal(size=(n, 1))
    y = (rng.uniform(size=logits.shape) < special.expit(logits)).astype(float)
    return np.where(rng.uniform(size=y.shape) < missing, np.nan, y)


def counts(y):
    """A count with a random log-rate and its spread."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, tau))
        numpyro.sample("y", dist.Poisson(jnp.exp(mu + z)), obs=y)


def on_grid(program, *args, grid=None, **kwargs):
    return (ep.Grid() if grid is None else grid).adapted(ep.bind(program, *args, **kwargs))


def fitted(program, *args, grid=None, **kwargs):
    model = ep.bind(program, *args, prior=False, **kwargs)
    method = ep.Squarem(ep.EM(ep.Grid() if grid is None else grid))
    return ep.fit(model, method, max_steps=3000, progress=False)


# -- log Z, score, posterior ----------------------------------------------------------------------


def by_scipy(y, mu, tau):
    """log Z, and posterior mean and variance of each z."""
    value, moments = 0.0, []
    for k in y:

        def f(z, power, k=k):
            return z**power * np.exp(
                stats.poisson.logpmf(k, np.exp(mu + z)) + stats.norm.logpdf(z, 0, tau)
            )

        m = [integrate.quad(f, -8, 8, args=(p,), epsabs=1e-14, limit=200)[0] for p in range(3)]
        value += np.log(m[0])
        moments.append((m[1] / m[0], m[2] / m[0] - (m[1] / m[0]) ** 2))
    return value, np.array(moments).T


@pytest.mark.exhaustive
def test_log_z_and_moments_are_scipys():
    y = np.array([0.0, 2.0, 5.0, 1.0, 9.0])
    model = on_grid(counts, y)
    params = {"mu": jnp.asarray(0.4), "tau": jnp.asarray(0.8)}
    value, (mean, variance) = by_scipy(y, 0.4, 0.8)
    assert float(model.log_partition(params)) == pytest.approx(value, abs=1e-9)
    found = ep.Grid()(model, params)
    assert float(found.log_partition) == pytest.approx(value, abs=1e-9)
    z = marginals(model, params)["z"]
    np.testing.assert_allclose(z.mean, mean, atol=1e-8)
    np.testing.assert_allclose(z.variance, variance, atol=1e-8)
    np.testing.assert_allclose(z.sd**2, variance, atol=1e-8)
    np.testing.assert_allclose((z.density * np.gradient(z.values)).sum(-1), 1.0)
    draws = z.sample(3, 4000)
    assert draws.shape == (4000, 5)
    np.testing.assert_allclose(draws.mean(0), mean, atol=5 * np.sqrt(variance.max() / 4000))


@pytest.mark.exhaustive
def test_score_and_hessian_are_those_of_laplace_with_many_nodes():
    model = ep.bind(item_response.two_parameter, answers())
    rng = np.random.default_rng(1)
    u = {k: jnp.asarray(0.5 * rng.normal(size=6)) for k in ("slope", "intercept")}
    laplace, grid = ep.Laplace(31).adapted(model), ep.Grid().adapted(model)
    values = [jax.value_and_grad(lambda v, m=m: m.objective(m.constrain(v)))(u)
              for m in (laplace, grid)]  # fmt: skip
    assert float(values[0][0]) == pytest.approx(float(values[1][0]), abs=1e-5)
    for k in u:
        np.testing.assert_allclose(values[0][1][k], values[1][1][k], atol=2e-5)
    params = grid.constrain(u)
    one, two = (information(m, params).information for m in (laplace, grid))
    np.testing.assert_allclose(one, two, atol=2e-4)


@pytest.mark.slow
def test_fisher_and_columns_of_the_items_enter_as_a_matrix_product():
    """The score by the weights is the gradient of log Z, whichever way the items are summed."""
    model = on_grid(item_response.two_parameter, answers())
    assert "answer" in model.structure.families
    u = {k: jnp.linspace(-0.5, 0.5, 6) for k in ("slope", "intercept")}
    gradient, _ = score(model, u, ep.Grid()(model, model.constrain(u)))
    direct = jax.grad(lambda v: model.objective(model.constrain(v)))(u)
    for k in u:
        np.testing.assert_allclose(gradient[k], direct[k], atol=1e-9)


@pytest.mark.slow
def test_long_plates_in_blocks_are_the_whole():
    y = answers(n=4300, items=3)
    model = on_grid(item_response.two_parameter, y)
    params = {"slope": jnp.array([0.8, 1.0, 1.4]), "intercept": jnp.array([0.2, -0.3, 0.6])}
    whole = jax.jit(jax.grad(lambda p: model.log_partition(p)))(params)
    found = jax.jit(lambda p: ep.Grid()(model, p))(params)
    assert float(found.log_partition) == pytest.approx(
        float(model.log_partition(params)), rel=1e-12
    )
    q = jax.grad(lambda p: sum(jnp.vdot(found.weights[k], v)
                               for k, v in naturals(model, p)[0].items()))(params)  # fmt: skip
    for k in params:
        np.testing.assert_allclose(q[k], whole[k], atol=1e-7)


@pytest.mark.slow
def test_a_masked_latent_counts_for_nothing():
    y, there = np.array([0.0, 3.0, 1.0]), np.array([True, True, False])

    def program(y, there):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        with numpyro.plate("n", len(y)), numpyro.handlers.mask(mask=there):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Poisson(jnp.exp(mu + z)), obs=y)

    params = {"mu": jnp.asarray(0.3)}
    value, _ = by_scipy(y[:2], 0.3, 1.0)
    model = on_grid(program, y, there)
    assert float(model.log_partition(params)) == pytest.approx(value, abs=1e-8)


@pytest.mark.exhaustive
def test_beside_a_discrete_latent_of_the_same_plate():
    y = np.array([0.0, 3.0, 8.0, 1.0])

    def program(y):
        pi = numpyro.sample("pi", dist.Beta(2.0, 2.0))
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        with numpyro.plate("n", len(y)):
            k = numpyro.sample("k", dist.Bernoulli(pi))
            z = numpyro.sample("z", dist.Normal(0.0, 0.7))
            numpyro.sample("y", dist.Poisson(jnp.exp(mu[k] + z)), obs=y)

    params = {"pi": jnp.asarray(0.3), "mu": jnp.array([-0.2, 1.5])}
    parts = np.array([[by_scipy([v], m, 0.7)[0] for m in (-0.2, 1.5)] for v in y])
    value = special.logsumexp(parts + np.log([0.7, 0.3]), axis=1).sum()
    assert float(on_grid(program, y).log_partition(params)) == pytest.approx(value, abs=1e-9)


# -- fits -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_law_school_one_parameter():
    found = fitted(item_response.one_parameter, item_response.load().to_numpy())
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(-2466.9376, abs=1e-4)
    assert found.params["slope"] == pytest.approx(0.755134, abs=1e-4)


@pytest.mark.slow
def test_law_school_two_parameters():
    found = fitted(item_response.two_parameter, item_response.load().to_numpy())
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(-2466.653377, abs=1e-5)
    intercept = [2.77323, 0.9902, 0.24915, 1.28476, 2.05327]
    slope = [0.82566, 0.72274, 0.89088, 0.68837, 0.65686]
    np.testing.assert_allclose(found.params["intercept"], intercept, atol=1e-4)
    np.testing.assert_allclose(found.params["slope"], slope, atol=1e-4)
    theta = found.posterior["theta"]
    assert theta.mean.shape == theta.sd.shape == (1000, 1)
    assert "Grid: 61 nodes from -6 to 6" in str(found.model.plan)


@pytest.mark.exhaustive
def test_the_scale_of_the_latent_has_a_closed_form():
    rng = np.random.default_rng(4)
    y = rng.poisson(np.exp(1.0 + 0.6 * rng.normal(size=200))).astype(float)
    found = fitted(counts, y, grid=ep.Grid(-6.0, 6.0, 121))
    other = ep.fit(ep.bind(counts, y, prior=False), ep.EM(ep.Laplace(25)), progress=False)
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-5)
    assert found.params["tau"] == pytest.approx(float(other.params["tau"]), rel=1e-4)
    errors = found.standard_errors(), other.standard_errors()
    assert errors[0]["tau"] == pytest.approx(errors[1]["tau"], rel=1e-3)


@pytest.mark.slow
def test_a_second_fit_traces_nothing():
    model = ep.bind(item_response.two_parameter, answers())
    method = ep.Squarem(ep.EM(ep.Grid()))
    first = ep.fit(model, method, progress=False)
    sizes = loop.advance._cache_size(), curvature._curvature._cache_size()
    again = ep.fit(model, ep.Squarem(ep.EM(ep.Grid())), progress=False)
    assert (loop.advance._cache_size(), curvature._curvature._cache_size()) == sizes
    assert again.model is first.model
    np.testing.assert_array_equal(first.params["slope"], again.params["slope"])


# -- what is refused, what is told ----------------------------------------------------------------


def two_in_a_row(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("n", len(y)):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Poisson(jnp.exp(mu + a * b)), obs=y)


def a_path(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))

    def step(z, y):
        z = numpyro.sample("z", dist.Normal(0.9 * z, 0.3))
        numpyro.sample("y", dist.Poisson(jnp.exp(mu + z)), obs=y)
        return z, None

    scan(step, 0.0, y)


def a_positive_one(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + z, 1.0), obs=y)


def a_looked_up_one(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("group", 3):
        z = numpyro.sample("z", dist.Normal(0.0, tau))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Poisson(jnp.exp(mu + z[jnp.arange(len(y)) % 3])), obs=y)


def a_vector(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("y", dist.Poisson(jnp.exp(mu + z[..., 0] * z[..., 1])), obs=y)


def nothing_continuous(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("n", len(y)):
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Poisson(jnp.exp(mu + k)), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (two_in_a_row, "'a', 'b' meet in a factor"),
        (a_path, "'z' is a path in a scan"),
        (a_positive_one, "'z' does not take all real values"),
        (a_looked_up_one, "'z' is read by an index"),
        (a_vector, "'z' has more than one dimension"),
        (nothing_continuous, "no latent is continuous"),
    ],
)
def test_refused_by_name(program, words):
    y = np.array([0.0, 1.0, 3.0, 2.0, 1.0, 4.0])
    with pytest.raises(ep.ModelError, match=words) as error:
        fitted(program, y)
    assert "ep.Laplace()" in str(error.value)


def test_a_reshaped_latent_is_refused():
    def program(y):
        n, items = y.shape
        b = numpyro.sample("b", dist.Normal(0.0, 3.0).expand([items]).to_event(1))
        with numpyro.plate("person", n):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            logits = b + jnp.outer(theta, jnp.ones(items))
            numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    with pytest.raises(ep.ModelError, match="element by element from the latent 'theta'"):
        fitted(program, answers(missing=0.0))


@pytest.mark.parametrize("settings", [{"low": 1.0, "high": 0.0}, {"num": 2}, {"high": np.inf}])
def test_impossible_grids(settings):
    with pytest.raises(ValueError, match="Grid"):
        ep.Grid(**settings)


@pytest.mark.slow
def test_mass_outside_of_the_grid_is_told():
    y = answers(n=60, missing=0.0)
    with pytest.warns(ep.DegeneracyWarning, match="'theta' has mass outside"):
        found = fitted(item_response.one_parameter, y, grid=ep.Grid(-1.5, 1.5, 31))
    assert "outside of the grid" in found.message


@pytest.mark.slow
def test_nodes_that_are_too_far_apart_are_told():
    y = np.random.default_rng(3).poisson(40.0, size=30).astype(float)
    with pytest.warns(ep.DegeneracyWarning, match="too far apart for latent 'z'"):
        fitted(counts, y, grid=ep.Grid(-6.0, 6.0, 13), fixed={"tau": 1.0})
