"""Information criteria and pointwise likelihoods, against brute force and scikit-learn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats
from scipy.special import logsumexp

import emprob as ep
from emprob import criteria

MIXED = {
    "weights": np.array([0.3, 0.7]),
    "loc": np.array([-1.0, 1.5]),
    "scale": np.array([0.8, 1.2]),
}


def mixture(x):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("components", 2):
        loc = numpyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def chain(y):
    with numpyro.plate("states", 2):
        move = numpyro.sample("move", dist.Dirichlet(jnp.ones(2)))
        loc = numpyro.sample("loc", dist.Normal(0.0, 10.0))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(move[z]))
        numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)
        return z, None

    z = numpyro.sample("z0", dist.Categorical(jnp.array([0.4, 0.6])))
    numpyro.sample("y0", dist.Normal(loc[z], 1.0), obs=y[0])
    scan(step, z, y[1:])


def panel(y):
    """Independent sequences: a plate of chains."""
    move = numpyro.sample("move", dist.Dirichlet(jnp.ones(2)).expand([2]).to_event(1))
    loc = numpyro.sample("loc", dist.Normal(0.0, 10.0).expand([2]).to_event(1))

    def step(z, y):
        with numpyro.plate("units", y.shape[0]):
            z = numpyro.sample("z", dist.Categorical(move[z]))
            numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)
        return z, None

    with numpyro.plate("units", y.shape[1]):
        z = numpyro.sample("z0", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("y0", dist.Normal(loc[z], 1.0), obs=y[0])
    scan(step, z, y[1:])


def groups(y):
    """A latent class for each group, shared by its members."""
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    loc = numpyro.sample("loc", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    with numpyro.plate("groups", y.shape[1], dim=-1):
        z = numpyro.sample("z", dist.Categorical(weights))
        with numpyro.plate("members", y.shape[0], dim=-2):
            numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


def linear(x, y):
    b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), (2,)))
    s = numpyro.sample("s", dist.HalfNormal(5.0))
    with numpyro.plate("n", x.shape[0]):
        numpyro.sample("y", dist.Normal(b[0] + b[1] * x, s), obs=y)


def paths_of(params, y):
    """log p(z, y) of every path of a two-state chain."""
    move, loc = params["move"], params["loc"]
    out = []
    for z in itertools.product(range(2), repeat=len(y)):
        total = np.log([0.4, 0.6][z[0]])
        total += sum(np.log(move[a, b]) for a, b in itertools.pairwise(z))
        out.append(total + stats.norm.logpdf(y, loc[list(z)], 1.0).sum())
    return np.array(out)


CHAIN = {"move": np.array([[0.8, 0.2], [0.3, 0.7]]), "loc": np.array([-0.5, 1.0])}


def entropy_of(log_joint):
    p = np.exp(log_joint - logsumexp(log_joint))
    return -np.sum(p * np.log(p))


@pytest.mark.slow
def test_entropy_of_a_mixture_is_that_of_the_responsibilities():
    x = np.random.default_rng(0).normal(size=25)
    parts = np.log(MIXED["weights"]) + stats.norm.logpdf(x[:, None], MIXED["loc"], MIXED["scale"])
    p = np.exp(parts - logsumexp(parts, 1, keepdims=True))
    got = criteria.posterior_entropy(ep.bind(mixture, x), MIXED)
    assert got == pytest.approx(-np.sum(p * np.log(p)), rel=1e-10)


@pytest.mark.slow
def test_entropy_of_a_chain_is_that_of_its_paths():
    y = np.random.default_rng(1).normal(size=7)
    got = criteria.posterior_entropy(ep.bind(chain, y), CHAIN)
    assert got == pytest.approx(entropy_of(paths_of(CHAIN, y)), rel=1e-9)


@pytest.mark.slow
def test_entropy_without_overlap_and_without_latents_is_zero():
    x = np.r_[np.full(5, -300.0), np.full(5, 300.0)]
    apart = {**MIXED, "loc": np.array([-300.0, 300.0])}
    assert criteria.posterior_entropy(ep.bind(mixture, x), apart) == pytest.approx(0.0, abs=1e-9)
    y = np.random.default_rng(0).normal(size=12)
    model = ep.bind(linear, np.arange(12.0), y)
    got = criteria.posterior_entropy(model, {"b": np.array([0.1, 0.2]), "s": 1.3})
    assert got == pytest.approx(0.0, abs=1e-9)


def test_entropy_with_missing_observations_counts_their_latents():
    x = np.random.default_rng(0).normal(size=6)
    x[2] = np.nan
    w = MIXED["weights"]
    seen = np.delete(x, 2)
    full = criteria.posterior_entropy(ep.bind(mixture, x), MIXED)
    rest = criteria.posterior_entropy(ep.bind(mixture, seen), MIXED)
    assert full - rest == pytest.approx(-np.sum(w * np.log(w)), rel=1e-9)


@pytest.mark.slow
def test_pointwise_of_a_mixture_is_the_mixture_density():
    x = np.random.default_rng(0).normal(size=25)
    model = ep.bind(mixture, x)
    found = criteria.pointwise(model, MIXED)
    density = stats.norm.pdf(x[:, None], MIXED["loc"], MIXED["scale"]) @ MIXED["weights"]
    np.testing.assert_allclose(found.values, np.log(density), rtol=1e-12)
    assert (found.plates, found.sites) == (("n",), ("x",))
    whole = model.log_partition({k: jnp.asarray(v) for k, v in MIXED.items()})
    assert found.values.sum() == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.slow
def test_pointwise_of_a_panel_is_the_likelihood_of_each_sequence():
    y = np.random.default_rng(2).normal(size=(5, 3))
    found = criteria.pointwise(ep.bind(panel, y), CHAIN)
    want = [logsumexp(paths_of(CHAIN, y[:, i])) for i in range(3)]
    np.testing.assert_allclose(found.values, want, rtol=1e-10)
    assert found.plates == ("units",)


def test_pointwise_of_groups_sums_over_their_members():
    y = np.random.default_rng(2).normal(size=(4, 3))
    params = {"weights": np.array([0.3, 0.7]), "loc": np.array([-1.0, 1.0])}
    found = criteria.pointwise(ep.bind(groups, y), params)
    parts = stats.norm.logpdf(y[..., None], params["loc"], 1.0).sum(0) + np.log(params["weights"])
    np.testing.assert_allclose(found.values, logsumexp(parts, 1), rtol=1e-12)
    assert found.plates == ("groups",)


def test_pointwise_without_latents_and_with_one_element():
    x, y = np.arange(12.0), np.random.default_rng(0).normal(size=12)
    params = {"b": np.array([0.1, 0.2]), "s": 1.3}
    want = stats.norm.logpdf(y, 0.1 + 0.2 * x, 1.3)
    np.testing.assert_allclose(
        criteria.pointwise(ep.bind(linear, x, y), params).values, want, rtol=1e-12
    )
    one = criteria.pointwise(ep.bind(linear, x[:1], y[:1]), params)
    np.testing.assert_allclose(one.values, want[:1], rtol=1e-12)


def test_pointwise_of_many_parameters():
    x = np.random.default_rng(0).normal(size=8)
    model = ep.bind(mixture, x)
    draws = {k: np.stack([v, v[::-1]]) for k, v in MIXED.items()}
    found = criteria.pointwise_draws(model, draws)
    one = criteria.pointwise(model, MIXED).values
    np.testing.assert_allclose(found.values, np.stack([one, one]), rtol=1e-12)


def test_pointwise_of_one_chain_is_refused():
    model = ep.bind(chain, np.random.default_rng(0).normal(size=5))
    with pytest.raises(ValueError, match="no plate that all its latents"):
        criteria.pointwise(model, CHAIN)


@pytest.mark.slow
def test_scores_sum_to_the_gradient_and_are_those_of_each_element():
    x = np.random.default_rng(0).normal(size=9)
    model = ep.bind(mixture, x)
    scores = criteria.pointwise_scores(model, MIXED)

    def single(loc):
        parts = jnp.log(jnp.asarray(MIXED["weights"])) + jax.scipy.stats.norm.logpdf(
            x[:, None], loc, jnp.asarray(MIXED["scale"])
        )
        return jax.scipy.special.logsumexp(parts, 1)

    want = np.asarray(jax.jacfwd(single)(jnp.asarray(MIXED["loc"])))
    np.testing.assert_allclose(scores[:, 2:4], want, rtol=1e-9)
    assert scores.shape == (9, 6)


@pytest.mark.slow
def test_scores_of_a_panel_of_chains_are_finite_differences():
    y = np.random.default_rng(2).normal(size=(5, 3))
    model = ep.bind(panel, y)
    scores = criteria.pointwise_scores(model, CHAIN)
    h = 1e-6
    for k in range(2):
        step = {**CHAIN, "loc": CHAIN["loc"] + h * np.eye(2)[k]}
        back = {**CHAIN, "loc": CHAIN["loc"] - h * np.eye(2)[k]}
        slope = criteria.pointwise(model, step).values - criteria.pointwise(model, back).values
        np.testing.assert_allclose(scores[:, 4 + k], slope / (2 * h), atol=1e-7)


def test_degrees_of_freedom_count_a_simplex_once_less():
    model = ep.bind(mixture, np.random.default_rng(0).normal(size=10))
    assert criteria.degrees_of_freedom(model, MIXED) == 1 + 2 + 2


def test_aic_and_bic_agree_with_scikit_learn():
    sk = pytest.importorskip("sklearn.mixture")
    x = np.random.default_rng(0).normal(size=60)
    peer = sk.GaussianMixture(2, random_state=0).fit(x[:, None])
    params = {
        "weights": peer.weights_,
        "loc": peer.means_[:, 0],
        "scale": np.sqrt(peer.covariances_[:, 0, 0]),
    }
    model = ep.bind(mixture, x)
    log_likelihood = criteria.pointwise(model, params).values.sum()
    df = criteria.degrees_of_freedom(model, params)
    assert criteria.aic(log_likelihood, df) == pytest.approx(peer.aic(x[:, None]), rel=1e-10)
    assert criteria.bic(log_likelihood, df, 60) == pytest.approx(peer.bic(x[:, None]), rel=1e-10)
    assert model.notes.value.num_observations == 60
    entropy = criteria.posterior_entropy(model, params)
    p = peer.predict_proba(x[:, None])
    want = peer.bic(x[:, None]) - 2 * np.sum(p * np.log(p))
    assert criteria.icl(log_likelihood, df, 60, entropy) == pytest.approx(want, rel=1e-9)
