"""A fit beside NUTS: the numbers of the table, what is marked, and what the verdict says."""

from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import emprob as ep
from emprob.bayes import nuts
from emprob.compare import compare, gaussian_khat, overlap
from emprob.errors import ConvergenceWarning, ModelError
from emprob.types import Status

RNG = np.random.default_rng(0)
LEVELS = 3.0 + 2.0 * RNG.normal(size=20)
COUNTS = np.array([1.0, 0.0, 2.0])
COMPONENTS = np.where(RNG.random(300) < 0.4, RNG.normal(-2, 0.6, 300), RNG.normal(2, 0.8, 300))


def normal(x):
    mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(mu, 2.0), obs=x)


def counts(x):
    rate = numpyro.sample("rate", dist.Gamma(1.1, 0.1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Poisson(rate), obs=x)


def mixture(x):
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("components", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        sd = numpyro.sample("sd", dist.HalfNormal(3.0))
    numpyro.deterministic("variance", sd**2)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], sd[z]), obs=x)


def a_fit(model, params, status=Status.CONVERGED):
    """What `compare` asks of a fit, at parameters that are known."""
    return SimpleNamespace(
        model=model, method=SimpleNamespace(), params=params, information=None, status=status,
        seconds={"compile": 1.0, "run": 0.01, "total": 1.01},
    )  # fmt: skip


def normal_case(num_samples=2000):
    model = ep.bind(normal, LEVELS)
    precision = 1 / 4 + len(LEVELS) / 4
    mean = (1 / 4 + LEVELS.sum() / 4) / precision
    fit = a_fit(model, {"mu": np.array(mean)})
    bayes = nuts(model, key=0, init=fit, num_warmup=200, num_samples=num_samples, progress=False)
    return fit, bayes, precision**-0.5


@pytest.fixture(scope="module")
def gaussian():
    return normal_case()


@pytest.fixture(scope="module")
def components():
    model = ep.bind(mixture, COMPONENTS)
    fit = ep.fit(model, key=0, progress=False)
    return fit, nuts(model, key=0, init=fit, num_warmup=200, num_samples=1000, progress=False)


def test_overlap_of_two_normals():
    draws = np.random.default_rng(1).normal(size=20_000)
    for shift in (0.0, 0.5, 2.0):
        expected = 2 * stats.norm.cdf(-shift / 2)
        assert overlap(shift, 1.0, draws) == pytest.approx(expected, abs=0.03)
    crossing = np.sqrt(np.log(4) * 4 / 3)  # where N(0, 1) and N(0, 2) have the same density
    expected = 2 * (stats.norm.cdf(crossing / 2) - 0.5) + 2 * stats.norm.cdf(-crossing)
    assert overlap(0.0, 2.0, draws) == pytest.approx(expected, abs=0.03)
    assert overlap(0.0, 1e-4, draws) < 0.01
    assert np.isnan(overlap(0.0, np.nan, draws))


@pytest.mark.slow
def test_a_gaussian_posterior_is_its_own_approximation(gaussian):
    fit, bayes, sd = gaussian
    comparison = compare(fit, bayes)
    row = comparison.table.loc["mu"]
    assert row["se"] == pytest.approx(sd, rel=1e-6)
    assert abs(row["z_shift"]) < 0.1
    assert row["overlap"] > 0.93
    assert row["note"] == ""
    (khat,) = comparison.khat.values()
    assert khat < 0.2
    assert "± SE is enough" in comparison.verdict
    assert "compiling left out" in comparison.verdict
    assert comparison.table.attrs["seconds"]["NUTS"] == comparison.seconds["NUTS"]


@pytest.mark.slow
def test_a_skewed_posterior_is_not(key):
    """Three counts: the posterior is Gamma(4.1, 3.1), its mode a third of an sd below its mean."""
    model = ep.bind(counts, COUNTS)
    law = stats.gamma(1.1 + COUNTS.sum(), scale=1 / (0.1 + len(COUNTS)))
    mode = (0.1 + COUNTS.sum()) / (0.1 + len(COUNTS))
    fit = a_fit(model, {"rate": np.array(mode)})
    bayes = nuts(model, key=key, num_warmup=300, num_samples=2000, progress=False)
    comparison = compare(fit, bayes)
    row = comparison.table.loc["rate"]
    assert row["z_shift"] == pytest.approx((law.mean() - mode) / law.std(), abs=0.08)
    assert "is enough" not in comparison.verdict
    assert "rate" in comparison.verdict


def test_khat_of_too_narrow_a_gaussian_is_large(gaussian):
    fit, bayes, _ = gaussian
    report = ep.uncertainty.information(fit.model, fit.params)
    assert gaussian_khat(bayes, fit.model, fit.params, report) < 0.2
    narrow = replace(report, information=report.information * 9)
    assert gaussian_khat(bayes, fit.model, fit.params, narrow) > 0.7
    at_edge = replace(report, boundary=("mu",))
    assert np.isnan(gaussian_khat(bayes, fit.model, fit.params, at_edge))


def test_a_wrong_estimate_is_called_wrong(gaussian):
    fit, bayes, sd = gaussian
    off = a_fit(fit.model, {"mu": fit.params["mu"] + 2 * sd})
    comparison = compare({"right": fit, "wrong": off}, bayes)
    assert "right ± SE is enough" in comparison.verdict
    assert "wrong ± SE is not enough" in comparison.verdict
    assert comparison.table[("wrong", "z_shift")].loc["mu"] == pytest.approx(-2, abs=0.1)


def test_a_fit_that_did_not_converge_is_named(gaussian):
    fit, bayes, _ = gaussian
    stopped = a_fit(fit.model, fit.params, Status.MAX_STEPS)
    assert "did not end at an optimum (max_steps)" in compare(stopped, bayes).verdict


def test_draws_that_diverged_are_marked_and_warned_about(gaussian):
    fit, bayes, _ = gaussian
    flags = bayes.stats["diverging"].copy()
    flags[0, :3] = True
    broken = replace(bayes, stats={**bayes.stats, "diverging": flags})
    with pytest.warns(ConvergenceWarning, match="3 divergent"):
        comparison = compare(fit, broken)
    assert comparison.table.loc["mu", "note"] == "3 divergences"
    assert "no yardstick" in comparison.verdict


def test_chains_that_disagree_are_marked_and_warned_about(gaussian):
    fit, bayes, sd = gaussian
    apart = bayes.samples["mu"] + np.array([[0.0], [sd]])
    broken = replace(bayes, samples={"mu": apart})
    with pytest.warns(ConvergenceWarning, match="R-hat up to"):
        comparison = compare(fit, broken)
    assert comparison.table.loc["mu", "note"].startswith("R-hat 1.")
    assert "no yardstick" in comparison.verdict


@pytest.mark.slow
def test_a_real_fit_with_deterministic_sites(components):
    fit, bayes = components
    comparison = compare(fit, bayes)
    table = comparison.table
    assert list(table.index[-2:]) == ["variance[0]", "variance[1]"]
    np.testing.assert_allclose(table["se"] / table["sd"], 1, atol=0.25)
    assert (table["overlap"] > 0.8).all()
    assert table["z_shift"].abs().max() < 0.6
    assert "<table" in comparison._repr_html_()
    assert comparison.verdict in repr(comparison)


@pytest.mark.slow
def test_labels_of_fits_and_draws_are_aligned_to_the_first_fit(components):
    fit, bayes = components
    flipped = {k: v[::-1].copy() for k, v in fit.params.items()}
    other = a_fit(fit.model, flipped)
    comparison = compare({"a": fit, "b": other}, bayes)
    table = comparison.table
    np.testing.assert_allclose(table[("a", "estimate")], table[("b", "estimate")])
    np.testing.assert_allclose(table[("a", "se")], table[("b", "se")], rtol=1e-5)
    turned = compare(other, bayes).table
    np.testing.assert_allclose(
        turned.loc[["mu[1]", "mu[0]"], "mean"],
        table.loc[["mu[0]", "mu[1]"], ("NUTS", "mean")],
    )
    np.testing.assert_allclose(
        turned.loc["variance[1]", "mean"], table.loc["variance[0]", ("NUTS", "mean")]
    )


@pytest.mark.slow
def test_another_program_is_refused(gaussian, components):
    with pytest.raises(ModelError, match="'pi' has shape .* no such site"):
        compare(components[0], gaussian[1])
    with pytest.raises(ModelError, match="none named 'NUTS'"):
        compare({"NUTS": gaussian[0]}, gaussian[1])


# -- entries that cannot vary -------------------------------------------------------------------


def correlated(x):
    root = numpyro.sample("root", dist.LKJCholesky(2, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), scale_tril=root), obs=x)


@pytest.mark.slow
def test_the_corner_of_a_correlation_is_not_judged():
    x = np.random.default_rng(2).multivariate_normal(np.zeros(2), [[1, 0.5], [0.5, 1]], 150)
    fit = ep.fit(ep.bind(correlated, x), key=0, progress=False)
    bayes = nuts(fit.model, key=0, init=fit, num_warmup=200, num_samples=500, progress=False)
    found = compare(fit, bayes)
    fixed = ["root[0,0]", "root[0,1]"]
    assert (found.table.loc[fixed, "note"] == "constant").all()
    assert found.table.loc[fixed, ["z_shift", "overlap", "rhat", "ess"]].isna().to_numpy().all()
    assert bayes.ess[fixed].isna().all()
    assert (found.table.loc[["root[1,0]", "root[1,1]"], "overlap"] > 0.75).all()
    assert "root[0," not in found.verdict
    drawn = [t.get_text() for t in found.plot().get_yticklabels()]
    assert [t.removesuffix(" *") for t in drawn] == ["root[1,0]", "root[1,1]"]
