"""NUTS with the latents summed out, against closed forms, quadrature and NumPyro itself."""

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import biject_to, constraints
from numpyro.infer.util import initialize_model
from scipy import stats

import emprob as ep
from emprob import sampler
from emprob.bayes import nuts
from emprob.errors import ConvergenceWarning, ModelError
from emprob.start_point import potential, ravel, regularized_inverse, unravel, with_prior

RNG = np.random.default_rng(0)
LEVELS = 3.0 + 2.0 * RNG.normal(size=20)
COMPONENTS = np.where(RNG.random(120) < 0.4, RNG.normal(-2, 0.6, 120), RNG.normal(2, 0.8, 120))
FLIPS = (RNG.random(60) < np.where(RNG.random(60) < 0.7, 0.9, 0.2)).astype(float)


def normal(x):
    mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
    numpyro.deterministic("double", 2 * mu)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(mu, 2.0), obs=x)


def noisy_coin(x):
    """A latent coin, seen through errors: p has a one-dimensional posterior."""
    p = numpyro.sample("p", dist.Beta(2.0, 3.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.sample("x", dist.Bernoulli(jnp.array([0.2, 0.9])[z.astype(int)]), obs=x)


def flat_scale(x):
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(3.0, sd), obs=x)


def mixture(x):
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("components", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        sd = numpyro.sample("sd", dist.HalfNormal(3.0))
    numpyro.deterministic("variance", sd**2)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], sd[z]), obs=x)


def unidentified(x):
    a = numpyro.param("a", 0.0)
    b = numpyro.param("b", 0.0)
    c = numpyro.sample("c", dist.Normal(0, 1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(a + b + 0 * c, 1.0), obs=x)


def draw(program, *args, key=0, num_warmup=300, num_samples=1000, **settings):
    model = ep.bind(program, *args)
    settings = {"progress": False, "num_warmup": num_warmup, "num_samples": num_samples} | settings
    return nuts(model, key=key, **settings)


def check_moments(x, mean, sd, ess, name=""):
    """Within four Monte Carlo errors."""
    assert abs(x.mean() - mean) < 4 * sd / np.sqrt(ess), name
    assert abs(x.std() / sd - 1) < 4 / np.sqrt(ess), name


@pytest.mark.slow
def test_conjugate_normal():
    bayes = draw(normal, LEVELS)
    precision = 1 / 4 + len(LEVELS) / 4
    mean = (1 / 4 + LEVELS.sum() / 4) / precision
    x = bayes.samples["mu"]
    assert x.shape == (2, 1000)
    check_moments(x, mean, precision**-0.5, bayes.ess["mu"])
    np.testing.assert_allclose(bayes.samples["double"], 2 * x)
    thinned = x.ravel()[:: int(np.ceil(x.size / bayes.ess["mu"]))]
    assert stats.kstest(thinned, stats.norm(mean, precision**-0.5).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_latents_are_summed_out_and_the_jacobian_counts():
    bayes = draw(noisy_coin, FLIPS)
    p = np.linspace(0, 1, 20001)[1:-1]
    one = 0.9 * p + 0.2 * (1 - p)
    log_density = FLIPS.sum() * np.log(one) + (1 - FLIPS).sum() * np.log1p(-one)
    weight = np.exp(log_density - log_density.max()) * stats.beta(2, 3).pdf(p)
    weight /= weight.sum()
    mean = (weight * p).sum()
    check_moments(
        bayes.samples["p"], mean, np.sqrt((weight * (p - mean) ** 2).sum()), bayes.ess["p"]
    )


@pytest.mark.slow
def test_a_param_site_is_flat_on_the_constrained_scale():
    """Then sd^-2 is Gamma((n-1)/2, S/2)."""
    bayes = draw(flat_scale, LEVELS, num_samples=2000)
    law = stats.gamma((len(LEVELS) - 1) / 2, scale=2 / ((LEVELS - 3.0) ** 2).sum())
    check_moments(bayes.samples["sd"] ** -2, law.mean(), law.std(), bayes.ess["sd"])


@pytest.mark.slow
def test_the_prior_counts_whatever_the_model_was_bound_with():
    with_prior = nuts(ep.bind(normal, LEVELS), key=3, num_samples=50, num_warmup=100,
                      num_chains=1, progress=False)  # fmt: skip
    without = nuts(ep.bind(normal, LEVELS, prior=False), key=3, num_samples=50, num_warmup=100,
                   num_chains=1, progress=False)  # fmt: skip
    np.testing.assert_allclose(with_prior.samples["mu"], without.samples["mu"])


@pytest.mark.slow
def test_an_improper_posterior_is_refused_by_name():
    with pytest.raises(ModelError, match=r"improper.* a .* b|improper.* b .* a") as error:
        draw(unidentified, LEVELS)
    assert "Without a proper prior: a, b" in str(error.value)
    with pytest.raises(ModelError, match="improper"):
        draw(unidentified, LEVELS, init={"a": 1.0, "b": 2.0, "c": 0.0})


@pytest.mark.exhaustive
def test_a_fit_is_a_start_and_a_metric():
    model = ep.bind(mixture, COMPONENTS)
    fit = ep.fit(model, key=0, progress=False)
    bayes = nuts(model, key=0, init=fit, num_warmup=150, num_samples=500, progress=False)
    for name, value in fit.params.items():
        spread = bayes.samples[name].std((0, 1))
        assert (np.abs(bayes.samples[name].mean((0, 1)) - value) < 1.5 * spread).all(), name
    assert (bayes.rhat < 1.01).all()
    np.testing.assert_allclose(bayes.samples["variance"], bayes.samples["sd"] ** 2)


@pytest.mark.slow
def test_labels_are_aligned_to_the_start():
    model = ep.bind(mixture, COMPONENTS)
    init = {"pi": np.array([0.4, 0.6]), "mu": np.array([-2.0, 2.0]), "sd": np.array([0.6, 0.8])}
    flipped = {k: v[::-1] for k, v in init.items()}
    settings = {"num_warmup": 150, "num_samples": 300, "progress": False}
    one = nuts(model, key=1, init=init, **settings)
    two = nuts(model, key=1, init=flipped, **settings)
    assert (np.diff(one.samples["mu"]) > 0).all()
    assert (np.diff(two.samples["mu"]) < 0).all()
    back = two.aligned(init)
    assert (np.diff(back.samples["mu"]) > 0).all()
    np.testing.assert_allclose(back.samples["variance"], back.samples["sd"] ** 2)


@pytest.mark.slow
def test_chains_in_different_modes_agree_after_alignment():
    """Without a common start the chains of a mixture end in either labelling."""
    bayes = draw(mixture, COMPONENTS, num_chains=4, num_samples=500)
    mu = bayes.samples["mu"]
    assert np.ptp(mu.mean(1), axis=0).max() < 0.1
    assert bayes.groups[0].labels == (0, 1)


@pytest.mark.slow
def test_a_second_run_on_other_data_compiles_nothing():
    settings = {"num_warmup": 200, "num_chains": 1}
    draw(mixture, COMPONENTS, num_samples=50, **settings)
    before = sampler._advance._cache_size(), sampler._begin._cache_size()
    again = draw(mixture, COMPONENTS[::-1] + 1, key=5, num_samples=130, **settings)
    assert (sampler._advance._cache_size(), sampler._begin._cache_size()) == before
    assert again.samples["mu"].shape == (1, 130, 2)


@pytest.mark.slow
def test_the_same_key_gives_the_same_draws_in_float64_whatever_the_notebook_has_set():
    one = draw(normal, LEVELS, num_samples=40, num_warmup=40, num_chains=1)
    with jax.enable_x64(False):
        two = draw(normal, LEVELS, num_samples=40, num_warmup=40, num_chains=1)
    assert two.samples["mu"].dtype == np.float64
    np.testing.assert_array_equal(one.samples["mu"], two.samples["mu"])


def test_gradients_are_counted():
    bayes = draw(normal, LEVELS, num_samples=60, num_warmup=0, num_chains=1)
    assert bayes.num_gradients == bayes.stats["n_steps"].sum()
    assert set(bayes.seconds) == {"compile", "warmup", "sample", "total"}


@pytest.mark.slow
def test_short_runs_are_not_passed_off_as_the_truth():
    with pytest.warns(ConvergenceWarning, match="R-hat above"):
        bayes = draw(mixture, COMPONENTS, num_samples=6, num_warmup=4)
    assert bayes.unreliable


@pytest.mark.slow
def test_summary_and_tree():
    bayes = draw(normal, LEVELS, num_samples=800)
    table = bayes.summary()
    assert list(table.index) == ["mu", "double"]
    assert table.loc["mu", "mean"] == pytest.approx(bayes.samples["mu"].mean())
    tree = bayes.to_arviz()
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data"}
    np.testing.assert_array_equal(tree["observed_data"]["x"].values, LEVELS)
    assert "2 chains x 800 draws" in repr(bayes)
    assert "<table" in bayes._repr_html_()


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"mv": 0.0}, "no free parameter 'mv'.*did you mean|no free parameter 'mv'"),
        ({}, "'mu' of shape .* is missing"),
        ({"mu": np.zeros(2)}, r"has shape \(\), got \(2,\)"),
        ({"mu": np.nan}, "not finite"),
    ],
)
def test_bad_starts_are_refused(init, message):
    with pytest.raises(ModelError, match=message):
        draw(normal, LEVELS, init=init)


@pytest.mark.parametrize("name", ["num_warmup", "num_samples", "num_chains"])
def test_bad_counts_are_refused(name):
    with pytest.raises(ValueError, match=name):
        draw(normal, LEVELS, **{name: -1})


def test_the_metric_is_positive_definite_whatever_the_information():
    matrix = np.array([[4.0, 1.0, 0.0], [1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    covariance = regularized_inverse(matrix, np.array([False, True, True]))
    assert (np.linalg.eigvalsh(covariance) > 0).all()
    assert np.sqrt(np.diagonal(covariance))[1:].max() <= 3.0 + 1e-12
    good = np.array([[4.0, 1.0], [1.0, 2.0]])
    np.testing.assert_allclose(
        regularized_inverse(good, np.array([False, True])), np.linalg.inv(good)
    )


# -- against NumPyro ------------------------------------------------------------------------------


def ordered_hmm(y):
    """Means in order, so that NumPyro's chains do not switch labels."""
    with numpyro.plate("states", 3):
        transition = numpyro.sample("A", dist.Dirichlet(jnp.ones(3)))
    base = numpyro.sample("base", dist.Normal(-2, 2))
    steps = numpyro.sample("steps", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    mu = base + jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)])
    sd = numpyro.sample("sd", dist.HalfNormal(2.0))
    first = numpyro.sample("z0", dist.Categorical(jnp.ones(3) / 3),
                           infer={"enumerate": "parallel"})  # fmt: skip

    def step(z, row):
        z = numpyro.sample("z", dist.Categorical(transition[z]), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(mu[z], sd), obs=row)
        return z, None

    scan(step, first, y)


def simulated_hmm(length):
    rng = np.random.default_rng(1)
    matrix = np.array([[0.9, 0.06, 0.04], [0.05, 0.9, 0.05], [0.03, 0.07, 0.9]])
    states = [0]
    for _ in range(length - 1):
        states.append(rng.choice(3, p=matrix[states[-1]]))
    return np.array([-2.0, 0.5, 3.0])[states] + 0.8 * rng.normal(size=length)


def seconds_by_turns(calls, rounds=60):
    """Least wall time of each call, compiled before, taken by turns."""
    best = [np.inf] * len(calls)
    for call in calls:
        jax.block_until_ready(call())
    for _ in range(rounds):
        for i, call in enumerate(calls):
            begun = time.perf_counter()
            jax.block_until_ready(call())
            best[i] = min(best[i], time.perf_counter() - begun)
    return best


@pytest.mark.exhaustive
def test_a_gradient_is_cheaper_than_numpyros_and_the_same():
    pytest.importorskip("funsor")
    y = jnp.asarray(simulated_hmm(300))
    info = initialize_model(jax.random.key(0), ordered_hmm, model_args=(y,))
    theirs = jax.jit(jax.value_and_grad(info.potential_fn))
    model = with_prior(ep.bind(ordered_hmm, np.asarray(y)))
    ours = jax.jit(jax.value_and_grad(potential, argnums=1))
    where = {k: jnp.asarray(v) for k, v in info.param_info.z.items()}
    params = {k: v for k, v in info.postprocess_fn(where).items() if k in model.params}
    u = ravel(model, model.unconstrain(params))
    # The simplex has another unconstrained scale here: what is equal is the density without it.
    log_joint = -ours(model, u)[0] - model.log_jacobian(unravel(model, u))
    transforms = {
        k: biject_to(constraints.simplex if k == "A" else model_support(k)) for k in where
    }
    jacobian = sum(
        transforms[k].log_abs_det_jacobian(where[k], params[k]).sum() for k in where
    )  # fmt: skip
    assert float(log_joint) == pytest.approx(float(-theirs(where)[0] - jacobian), rel=1e-10)
    mine, other = seconds_by_turns([lambda: ours(model, u), lambda: theirs(where)])
    print(f"a gradient: NumPyro {other:.2e} s, here {mine:.2e} s, ratio {other / mine:.1f}")
    assert mine < other


def model_support(name):
    return constraints.real if name == "base" else constraints.positive


@pytest.mark.exhaustive
def test_same_posterior_as_numpyro_on_the_enumerated_program():
    pytest.importorskip("funsor")
    y = simulated_hmm(300)
    bayes = draw(ordered_hmm, y, num_warmup=500, num_samples=1000)
    kernel = numpyro.infer.NUTS(ordered_hmm)
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=400, num_samples=800, num_chains=1,
                              progress_bar=False)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro's own
        mcmc.run(jax.random.key(3), jnp.asarray(y))
    for name in ("base", "steps", "A", "sd"):
        mine, other = bayes.samples[name], np.asarray(mcmc.get_samples()[name])
        sd = other.std(0)
        error = sd * np.sqrt(2 / 300)  # both have an effective size well above 300
        assert (np.abs(mine.mean((0, 1)) - other.mean(0)) < 4 * error).all(), name
        assert (np.abs(mine.std((0, 1)) / sd - 1) < 4 / np.sqrt(300)).all(), name
