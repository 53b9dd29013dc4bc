"""NUTS with latents among its coordinates: where it starts, in which metric, and beside a fit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro.contrib.control_flow import scan
from scipy import integrate, stats

import emprob as ep
from emprob import start_point
from emprob.bind import with_latents_as_parameters

PARAMS = {"mu": np.array(1.1), "tau": np.array(0.6)}


def intercepts(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("units", len(y)):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
        numpyro.sample("y", dist.Poisson(jnp.exp(mu + b)), obs=y)


def frailties(y):
    shape = numpyro.sample("shape", dist.Gamma(4.0, 2.0))
    with numpyro.plate("units", len(y)):
        f = numpyro.sample("f", dist.LogNormal(0.0, 1 / shape))
        numpyro.sample("y", dist.Poisson(3.0 * f), obs=y)


def volatility(r):
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))

    def day(h, x):
        h = numpyro.sample("h", dist.Normal(phi * h, 0.4))
        numpyro.sample("r", dist.Normal(0.0, jnp.exp(h / 2)), obs=x)
        return h, None

    scan(day, numpyro.sample("h0", dist.Normal(0.0, 1.0)), r)


def counts(size, seed=3):
    rng = np.random.default_rng(seed)
    return rng.poisson(np.exp(1.1 + 0.6 * rng.normal(size=size)))


@pytest.fixture(scope="module")
def few():
    model = ep.bind(intercepts, counts(25))
    return ep.fit(model, key=0, progress=False)


@pytest.fixture(scope="module")
def draws(few):
    return ep.nuts(few.model, key=1, init=few, num_warmup=400, num_samples=1000, progress=False)


def exact(log_density, low, high):
    """Mean and variance of a density on a line, by quadrature."""
    top = max(log_density(x) for x in np.linspace(low, high, 400))
    raw = [
        integrate.quad(lambda x, k=k: x**k * np.exp(log_density(x) - top), low, high, limit=200)[0]
        for k in range(3)
    ]
    mean = raw[1] / raw[0]
    return mean, raw[2] / raw[0] - mean**2


@pytest.mark.exhaustive
def test_a_fit_starts_the_latents_it_integrated_out(few, draws):
    sampled = with_latents_as_parameters(few.model)
    assert sampled.params == ("mu", "tau", "b")
    found = start_point.given(sampled, few, few.model)
    np.testing.assert_array_equal(found["b"], few.posterior["b"].mean)
    assert draws.settings.dense_mass
    assert draws.divergences == 0
    b = draws.samples["b"].mean((0, 1))
    # the posterior at the estimate is the same but for the parameters' own uncertainty
    np.testing.assert_allclose(b, few.posterior["b"].mean, atol=0.15)


@pytest.mark.exhaustive
def test_many_latents_have_the_variances_of_their_own_posteriors(key):
    y = counts(210)
    integrated = start_point.with_prior(ep.bind(intercepts, y))
    sampled = start_point.with_prior(with_latents_as_parameters(integrated))
    at = start_point.prepare(sampled, key, PARAMS, 3, integrated)
    assert at.chains.shape == (3, 212)
    assert at.covariance.shape == (212,)
    for i in (0, 7, 100):

        def log_density(b, i=i):
            return stats.poisson.logpmf(y[i], np.exp(1.1 + b)) + stats.norm.logpdf(b, 0, 0.6)

        mean, variance = exact(log_density, -4.0, 4.0)
        np.testing.assert_allclose(at.params["b"][i], mean, atol=1e-8)
        np.testing.assert_allclose(at.covariance[2 + i], variance, rtol=1e-7)
    own = start_point.hessian(integrated, jnp.array([1.1, np.log(0.6)]))
    np.testing.assert_allclose(at.covariance[:2], np.diag(np.linalg.inv(own)), rtol=1e-6)
    apart = np.asarray(at.chains[:, 2:]) - at.params["b"]
    z = apart / np.sqrt(np.asarray(at.covariance[2:]))
    assert 0.8 < z.std() < 1.2  # draws of the posterior, not the mean again
    bayes = ep.nuts(
        integrated, key=0, init=PARAMS, num_warmup=100, num_samples=100, num_chains=1,
        progress=False,
    )  # fmt: skip
    assert not bayes.settings.dense_mass
    assert bayes.divergences == 0
    assert abs(bayes.samples["mu"].mean() - 1.1) < 0.25


@pytest.mark.exhaustive
def test_positive_latents_are_started_on_their_log(key):
    y = counts(205)
    integrated = start_point.with_prior(ep.bind(frailties, y))
    sampled = start_point.with_prior(with_latents_as_parameters(integrated))
    at = start_point.prepare(sampled, key, {"shape": np.array(2.0)}, 2, integrated)

    def log_density(f):
        return stats.poisson.logpmf(y[4], 3 * f) + stats.lognorm.logpdf(f, 0.5)

    mean, variance = exact(log_density, 1e-9, 12.0)
    np.testing.assert_allclose(at.params["f"][4], mean, rtol=1e-6)
    np.testing.assert_allclose(at.covariance[1 + 4], variance / mean**2, rtol=1e-5)
    assert np.isfinite(start_point.potentials(sampled, at.chains)).all()


@pytest.mark.exhaustive
def test_a_long_chain_starts_without_a_matrix_of_its_size(key):
    rng = np.random.default_rng(0)
    integrated = start_point.with_prior(ep.bind(volatility, rng.normal(size=230)))
    sampled = start_point.with_prior(with_latents_as_parameters(integrated))
    with pytest.MonkeyPatch.context() as patch:
        sizes = []
        plain = start_point.hessian
        patch.setattr(start_point, "hessian", lambda m, u: (sizes.append(u.size), plain(m, u))[1])
        at = start_point.prepare(sampled, key, {"phi": np.array(0.8)}, 2, integrated)
    assert set(sizes) == {1}
    assert at.chains.shape == (2, 232)
    assert at.covariance.shape == (232,)
    # a path that is drawn, so rough as the law says: var(h_t - 0.8 h_{t-1}) = 0.16
    u = start_point.unravel(sampled, at.chains[0])
    phi = jnp.tanh(u["phi"] / 2)
    path = np.concatenate([[u["h0"]], u["h"]])
    assert 0.1 < np.var(path[1:] - float(phi) * path[:-1]) < 0.3
    assert np.isfinite(start_point.potentials(sampled, at.chains)).all()


@pytest.mark.slow
def test_given_values_of_latents_are_kept_and_names_checked(few):
    sampled = with_latents_as_parameters(few.model)
    values = {**few.params, "b": np.full(25, 0.3)}
    found = start_point.given(sampled, values, few.model)
    np.testing.assert_array_equal(found["b"], values["b"])
    with pytest.raises(ep.ModelError, match=r"'b' has shape \(25,\), got \(3,\)"):
        start_point.given(sampled, {**few.params, "b": np.zeros(3)}, few.model)
    with pytest.raises(ep.ModelError, match="parameter 'tau' of shape .* is missing"):
        start_point.given(sampled, {"mu": np.array(1.0)}, few.model)


@pytest.mark.slow
def test_comparison_leaves_sampled_latents_out(few, draws):
    found = ep.compare(few, draws)
    assert list(found.table.index) == ["mu", "tau"]
    assert "sampled the latents 'b'" in found.verdict
    assert found.table["z_shift"].abs().max() < 0.6
    (khat,) = found.khat.values()
    assert khat < 0.7
    shared = {k: v for k, v in draws.samples.items() if k != "b"}
    without = ep.compare(few, replace(draws, samples=shared))
    pd.testing.assert_frame_equal(without.table, found.table)
    several = ep.compare({"first": few, "second": few}, draws)
    assert several.khat["first"] == khat


@pytest.mark.exhaustive
def test_nothing_is_said_of_latents_that_are_summed_out(key):
    def mixture(x):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.3, 0.7])))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    x = np.asarray(jax.random.normal(key, (60,))) + np.where(np.arange(60) < 18, -3.0, 3.0)
    fit = ep.fit(ep.bind(mixture, x), key=0, num_starts=4, progress=False)
    bayes = ep.nuts(fit.model, key=0, init=fit, num_warmup=100, num_samples=300, progress=False)
    assert "sampled the latents" not in ep.compare(fit, bayes).verdict
