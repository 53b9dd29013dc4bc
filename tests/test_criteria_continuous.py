"""Criteria of programs with continuous latents, against quadrature and dense algebra."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import integrate, stats

import emprob as ep
from emprob import criteria

COUNTS = np.array([0, 3, 1, 7, 0, 2])


def units(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("units", len(y)):
        b = numpyro.sample("b", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)


def branched(y):
    weight = numpyro.sample("weight", dist.Beta(2.0, 2.0))
    with numpyro.plate("units", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(weight))
        b = numpyro.sample("b", dist.Normal(2.0 * z - 1.0, 0.8))
        numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)


def grouped(y, group):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", 3):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(b[group], 1.0), obs=y)


def panel(y):
    """Independent Gaussian chains: a plate in a scan."""
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))

    def step(z, y):
        with numpyro.plate("units", y.shape[0]):
            z = numpyro.sample("z", dist.Normal(phi * z, 0.7))
            numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    scan(step, jnp.zeros(y.shape[1]), y)


def chain(y):
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))

    def step(z, y):
        z = numpyro.sample("z", dist.Normal(phi * z, 0.7))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    scan(step, jnp.array(0.0), y)


def evidence(y, mean, sd):
    """log p(y) of one count whose log-rate is normal."""
    density = lambda b: stats.poisson.pmf(y, np.exp(b)) * stats.norm.pdf(b, mean, sd)  # noqa: E731
    return np.log(integrate.quad(density, mean - 10 * sd, mean + 10 * sd, limit=200)[0])


PARAMS = {"mu": np.array(0.4), "tau": np.array(0.9)}


@pytest.mark.exhaustive
def test_pointwise_of_integrated_units():
    model = ep.bind(units, COUNTS)
    found = criteria.pointwise(model, PARAMS)
    assert found.plates == ("units",)
    assert found.sites == ("y",)
    np.testing.assert_allclose(found.values, [evidence(y, 0.4, 0.9) for y in COUNTS], atol=1e-6)


@pytest.mark.exhaustive
def test_scores_of_integrated_units():
    model = ep.bind(units, COUNTS)
    scores = criteria.pointwise_scores(model, PARAMS)
    step = 1e-4

    def at(mu, log_tau):
        return np.array([evidence(y, mu, np.exp(log_tau)) for y in COUNTS])

    here = 0.4, np.log(0.9)
    slopes = [
        (at(here[0] + a, here[1] + b) - at(here[0] - a, here[1] - b)) / (2 * step)
        for a, b in ((step, 0.0), (0.0, step))
    ]
    np.testing.assert_allclose(scores, np.transpose(slopes), atol=2e-5)


@pytest.mark.exhaustive
def test_a_fit_tells_aic_bic_and_arviz_but_no_entropy():
    fit = ep.fit(ep.bind(units, COUNTS, prior=False), key=0, progress=False)
    value = sum(evidence(y, fit.params["mu"], fit.params["tau"]) for y in COUNTS)
    assert fit.aic == pytest.approx(-2 * value + 4, abs=1e-5)
    assert fit.bic == pytest.approx(-2 * value + 2 * np.log(6), abs=1e-5)
    tree = fit.to_arviz(key=0, n=7)
    found = tree["log_likelihood"]["y"]
    assert found.dims == ("chain", "draw", "units")
    draw = {k: float(tree["posterior"][k][0, 3]) for k in ("mu", "tau")}
    expected = [evidence(y, draw["mu"], draw["tau"]) for y in COUNTS]
    np.testing.assert_allclose(found[0, 3], expected, atol=1e-5)
    for what in ("entropy", "icl"):
        with pytest.raises(ep.ModelError, match="entropy, icl: .* only continuous ones: 'b'"):
            getattr(fit, what)


@pytest.mark.exhaustive
def test_discrete_latents_beside_continuous_ones():
    model = ep.bind(branched, COUNTS)
    params = {"weight": np.array(0.3)}
    tables = np.array(
        [[np.log(1 - 0.3) + evidence(y, -1.0, 0.8), np.log(0.3) + evidence(y, 1.0, 0.8)]
         for y in COUNTS]
    )  # fmt: skip
    values = np.logaddexp(*tables.T)
    probs = np.exp(tables - values[:, None])
    entropy = -(probs * np.log(probs)).sum()
    assert criteria.posterior_entropy(model, params) == pytest.approx(entropy, abs=1e-6)
    np.testing.assert_allclose(criteria.pointwise(model, params).values, values, atol=1e-6)
    drawn = criteria.pointwise_draws(model, {"weight": np.array([0.3, 0.3])}).values
    np.testing.assert_allclose(drawn, [values, values], atol=1e-6)


@pytest.mark.slow
def test_pointwise_of_a_panel_of_chains():
    y = np.random.default_rng(2).normal(size=(4, 3))
    model = ep.bind(panel, y)
    found = criteria.pointwise(model, {"phi": np.array(0.6)})
    assert found.plates == ("units",)
    mix = np.tril(0.6 ** np.subtract.outer(np.arange(4), np.arange(4)).clip(0))
    law = stats.multivariate_normal(np.zeros(4), 0.49 * mix @ mix.T + 0.25 * np.eye(4))
    np.testing.assert_allclose(found.values, law.logpdf(y.T), atol=1e-9)


@pytest.mark.slow
def test_what_is_integrated_together_has_no_pointwise_likelihood():
    rng = np.random.default_rng(0)
    model = ep.bind(chain, rng.normal(size=5))
    with pytest.raises(ValueError, match="no plate that all its latents and observations"):
        criteria.pointwise(model, {"phi": np.array(0.5)})
    model = ep.bind(grouped, rng.normal(size=8), np.arange(8) % 3)
    with pytest.raises(ValueError, match="no plate that all its latents and observations"):
        criteria.pointwise(model, {"tau": np.array(0.5)})
