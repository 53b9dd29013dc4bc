"""The correction of Laplace's approximation, against numerical integration."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import integrate, stats
from scipy.special import logsumexp

import emprob as ep
from emprob.importance import _worst_khat
from emprob.integral.expectation import problem
from emprob.simulation.draws import plain
from emprob.simulation.gaussian import around_mean, mirrored, near


def a_fit(model, params):
    """What `importance` asks of a fit, at parameters that are known."""
    return SimpleNamespace(params=params, _bound=lambda what: model)


def walk(y):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def step(z, y):
        z = numpyro.sample("z", dist.Normal(phi * z, 0.7))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    scan(step, numpyro.sample("z0", dist.Normal(0.0, 1.0)), y)


def volatility(r):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def day(h, x):
        h = numpyro.sample("h", dist.Normal(phi * h, 0.6))
        numpyro.sample("r", dist.Normal(0.0, jnp.exp(h / 2)), obs=x)
        return h, None

    scan(day, jnp.array(0.3), r)


def units(y):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("units", len(y)):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
        numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)


def branched(y):
    weight = numpyro.sample("weight", dist.Beta(2.0, 2.0))
    with numpyro.plate("units", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(weight))
        b = numpyro.sample("b", dist.Normal(2.0 * z - 1.0, 0.8))
        numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)


@pytest.mark.exhaustive
def test_a_gaussian_chain_needs_no_correction():
    y = np.random.default_rng(1).normal(size=12)
    model = ep.bind(walk, np.where(np.arange(12) == 4, np.nan, y))
    found = ep.importance(a_fit(model, {"phi": np.array(0.8)}), key=0, n=200)
    assert found.error < 1e-12
    assert found.khat == 0
    assert found.log_evidence == pytest.approx(found.laplace, abs=1e-10)
    times = np.arange(13)
    variance = [1.0]
    for _ in range(12):
        variance.append(0.64 * variance[-1] + 0.49)
    lower = np.minimum.outer(times, times)
    cov = 0.8 ** abs(times[:, None] - times) * np.array(variance)[lower]
    cov = (cov + 0.25 * np.eye(13))[1:, 1:]
    seen = np.arange(12) != 4
    exact = stats.multivariate_normal.logpdf(y[seen], np.zeros(11), cov[np.ix_(seen, seen)])
    assert found.log_evidence == pytest.approx(exact, abs=1e-9)
    assert "no difference" in found.sentence


@pytest.mark.slow
def test_stochastic_volatility_against_a_grid():
    r = np.array([1.0, -2.5, 1.0])
    model = ep.bind(volatility, r)
    found = ep.importance(a_fit(model, {"phi": np.array(0.9)}), key=3, n=4000)
    h, step = np.linspace(-6.0, 6.5, 141, retstep=True)
    first = stats.norm.logpdf(h, 0.27, 0.6) + stats.norm.logpdf(r[0], 0, np.exp(h / 2))
    move = stats.norm.logpdf(h, 0.9 * h[:, None], 0.6)
    second, third = (move + stats.norm.logpdf(x, 0, np.exp(h / 2)) for x in r[1:])
    joint = first[:, None, None] + second[:, :, None] + third
    exact = logsumexp(joint) + 3 * np.log(step)
    assert abs(found.laplace - exact) > 0.005  # there is something to correct
    assert 0 < found.error < 0.001
    assert abs(found.log_evidence - exact) < 4 * found.error
    assert found.khat < 0.7
    assert "can be relied on" in found.sentence
    assert found == ep.importance(a_fit(model, {"phi": np.array(0.9)}), key=3, n=4000)


def unit_evidence(y, mean, sd):
    """log p(y) of one count whose log-rate is normal."""
    density = lambda b: stats.poisson.pmf(y, np.exp(b)) * stats.norm.pdf(b, mean, sd)  # noqa: E731
    return np.log(integrate.quad(density, mean - 10 * sd, mean + 10 * sd, limit=200)[0])


@pytest.mark.slow
def test_a_plate_sums_its_series():
    y = np.array([0, 3, 1, 7, 0])
    model = ep.bind(units, y)
    found = ep.importance(a_fit(model, {"tau": np.array(0.9)}), key=1, n=2000)
    exact = sum(unit_evidence(v, 0.0, 0.9) for v in y)
    assert abs(found.log_evidence - exact) < 4 * found.error < 0.02
    assert found.laplace == pytest.approx(exact, abs=1e-5)  # quadrature


@pytest.mark.slow
def test_branches_are_summed_exactly():
    y = np.array([0, 3, 1, 7])
    model = ep.bind(branched, y)
    found = ep.importance(a_fit(model, {"weight": np.array(0.3)}), key=1, n=2000)
    exact = sum(
        np.logaddexp(
            np.log(0.7) + unit_evidence(v, -1.0, 0.8), np.log(0.3) + unit_evidence(v, 1.0, 0.8)
        )
        for v in y
    )
    assert 0 < found.error < 0.01
    assert abs(found.log_evidence - exact) < 4 * found.error


@pytest.mark.slow
def test_what_cannot_be_corrected_is_refused():
    def mixture(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(mu * z, 1.0), obs=x)

    model = ep.bind(mixture, np.array([0.1, 2.0, -1.0]))
    with pytest.raises(ep.ModelError, match="expected a model with continuous latents, got .*'z'"):
        ep.importance(a_fit(model, {"mu": np.array(1.0)}), key=0)
    model = ep.bind(units, np.array([1, 2]))
    with pytest.raises(ValueError, match="n: expected 100 draws or more, got 10"):
        ep.importance(a_fit(model, {"tau": np.array(1.0)}), key=0, n=10)


# -- the proposal and what is said of its weights -----------------------------------------------


@pytest.mark.slow
def test_proposal_is_around_the_mean_of_a_skewed_density():
    y = np.array([0, 1, 4])
    model = plain(ep.bind(units, y))
    p = problem(model, {"tau": jnp.asarray(1.5)}, 0)
    at_mode, found = near(p), around_mean(p)
    b, step = np.linspace(-12.0, 8.0, 20001, retstep=True)
    log_density = stats.norm.logpdf(b, 0, 1.5) + stats.poisson.logpmf(y[:, None], np.exp(b))
    density = np.exp(log_density - logsumexp(log_density, axis=1, keepdims=True))
    mean = (density * b).sum(1)
    far = np.abs(at_mode.centre.ravel() - mean)
    assert (np.abs(found.centre.ravel() - mean) < 0.2 * far).all()


@pytest.mark.slow
def test_weights_of_a_long_series_vary_less_around_the_mean():
    rng, h = np.random.default_rng(0), 0.0
    r = np.array(
        [np.exp((h := 0.9 * h + 0.6 * rng.normal()) / 2) * rng.normal() for _ in range(400)]
    )
    p = problem(plain(ep.bind(volatility, r)), {"phi": jnp.asarray(0.9)}, 0)
    at_mode, found = near(p), around_mean(p)
    noise = jax.random.normal(jax.random.key(0), (500, *found.centre.shape))
    spread = [
        jax.vmap(lambda e, g=g: mirrored(g, p.f, e)[1])(noise).std() for g in (at_mode, found)
    ]
    assert spread[1] < 0.7 * spread[0]


@pytest.mark.slow
def test_proposal_stays_at_the_mode_where_there_is_no_way_to_the_mean():
    """A wall beside a wide plain: over the Gaussian the mean gradient is that of the wall."""

    def wall(y):
        scale = numpyro.sample("scale", dist.HalfNormal(10.0))
        with numpyro.plate("n", len(y)):
            x = numpyro.sample("x", dist.Normal(0.0, scale))
            numpyro.sample("y", dist.Poisson(jnp.exp(8.0 * x)), obs=y)

    p = problem(plain(ep.bind(wall, np.array([0, 0]))), {"scale": jnp.asarray(10.0)}, 0)
    at_mode, found = near(p), around_mean(p)
    np.testing.assert_array_equal(found.centre, at_mode.centre)
    np.testing.assert_allclose(found.precision.diag, at_mode.precision.diag, rtol=1e-9)


def test_khat_tells_a_tail_and_not_weights_that_are_nearly_alike():
    rng = np.random.default_rng(0)
    shape = (2000, 2, 1, 1)
    alike = rng.normal(0.0, 0.1, shape)
    largest = np.exp(alike).max() / np.exp(alike).mean()
    assert _worst_khat(alike) == pytest.approx(np.log(largest) / np.log(4000), abs=1e-6)
    assert 0.7 < _worst_khat(np.log(rng.pareto(1.0, shape) + 1.0)) < 1.3
    both = np.concatenate([alike, np.log(rng.pareto(1.0, shape) + 1.0)], -1)
    assert _worst_khat(both) > 0.7
    assert _worst_khat(np.zeros(shape)) == 0.0
