"""What a fit hands back: tables, draws, replicates, files, trees."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import emprob as ep
from emprob import keys, predictive, store
from emprob.errors import CheckpointError, ModelError
from emprob.result import Fit, load
from emprob.types import Status


def mixture(x):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("components", 2):
        loc = numpyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = numpyro.sample("scale", dist.HalfNormal(5.0))
    numpyro.deterministic("gap", loc[1] - loc[0])
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(loc[z], scale), obs=x)


def other_mixture(x):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("components", 2):
        loc = numpyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = numpyro.sample("scale", dist.HalfNormal(5.0))
    numpyro.deterministic("gap", loc[1] - loc[0])
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Laplace(loc[z], scale), obs=x)


other_mixture.__qualname__ = mixture.__qualname__


def regression(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    rate = numpyro.deterministic("rate", jnp.exp(b[0] + b[1] * x))
    with numpyro.plate("n", x.shape[0]):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def regimes(y):
    with numpyro.plate("states", 2):
        move = numpyro.sample("move", dist.Dirichlet(jnp.ones(2)))
        loc = numpyro.sample("loc", dist.Normal(0.0, 10.0))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(move[z]))
        numpyro.sample("y", dist.Normal(loc[z], 0.5), obs=y)
        return z, None

    z = numpyro.sample("z0", dist.Categorical(jnp.array([0.5, 0.5])))
    numpyro.sample("y0", dist.Normal(loc[z], 0.5), obs=y[0])
    scan(step, z, y[1:])


def autoregression(y):
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))

    def step(before, y):
        new = numpyro.sample("y", dist.Normal(phi * before, 1.0), obs=y)
        return new, None

    scan(step, jnp.zeros(()), y)


def made(model, params, **changes):
    """A fit by hand, for tests that are not about the driver."""
    params = {k: np.asarray(params[k], float) for k in model.params}
    jaxed = {k: jnp.asarray(v) for k, v in params.items()}
    settings = {
        "objective": float(model.objective(jaxed)),
        "log_likelihood": float(model.log_partition(jaxed)),
        "status": Status.CONVERGED,
        "message": Status.CONVERGED.sentence,
        "score_norm": 1e-9,
        "num_steps": 3,
        "trace": {"objective": np.array([-5.0, -2.0, -1.0])},
        "seconds": {"total": 0.5},
        "start_rows": ({"start": 0, "objective": -1.0, "status": "converged"},),
    }
    return Fit(model, ep.EM(), params, **{**settings, **changes})


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    return np.concatenate([rng.normal(-2, 1, 150), rng.normal(2, 1, 150)])


@pytest.fixture(scope="module")
def fitted(data):
    model = ep.bind(mixture, data)
    step = jax.jit(lambda m, s: ep.EM().step(m, s)[0])
    start = {"weights": [0.4, 0.6], "loc": [-1.0, 1.0], "scale": 1.0}
    state = ep.EM().init(model, {k: jnp.asarray(v) for k, v in start.items()})
    for _ in range(300):
        state = step(model, state)
    return made(model, state.params)


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(2)
    x = rng.normal(size=80)
    y = rng.poisson(np.exp(0.5 + 0.4 * x)).astype(float)
    sm = pytest.importorskip("statsmodels.api")
    b = sm.GLM(y, np.column_stack([np.ones(80), x]), family=sm.families.Poisson()).fit().params
    return made(ep.bind(regression, x, y), {"b": b}), x


@pytest.fixture(scope="module")
def switching():
    rng = np.random.default_rng(0)
    y = np.where(np.arange(60) % 20 < 10, -1.0, 1.0) + 0.5 * rng.normal(size=60)
    params = {"move": [[0.9, 0.1], [0.1, 0.9]], "loc": [-1.0, 1.0]}
    return made(ep.bind(regimes, y), params)


# -- tables -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_summary_has_every_entry_and_stays_inside_the_support(fitted):
    table = fitted.summary()
    labels = ["weights[0]", "weights[1]", "loc[0]", "loc[1]", "scale", "gap"]
    assert list(table.index) == labels
    assert list(table.columns) == ["estimate", "se", "lower", "upper", "gradient", "note"]
    assert ((table["lower"] < table["estimate"]) & (table["estimate"] < table["upper"])).all()
    wide = fitted.summary(level=1 - 1e-12)
    assert wide.loc["weights[0]", "lower"] > 0 and wide.loc["weights[0]", "upper"] < 1
    assert wide.loc["scale", "lower"] > 0
    assert np.abs(table["gradient"].iloc[:5]).max() < 1e-6 and np.isnan(table["gradient"]["gap"])
    assert table.attrs["status"] == "converged" and "log" in table.attrs["intervals"]
    assert (table["note"] == "").all()


def test_intervals_are_wald_on_the_scale_of_the_support(fitted):
    table, z = fitted.summary(0.9), stats.norm.ppf(0.95)
    loc, se = fitted.params["loc"][0], fitted.standard_errors()["loc"][0]
    assert table.loc["loc[0]", "lower"] == pytest.approx(loc - z * se, rel=1e-10)
    scale, se = fitted.params["scale"], fitted.standard_errors()["scale"]
    assert table.loc["scale", "upper"] == pytest.approx(scale * np.exp(z * se / scale), rel=1e-10)
    with pytest.raises(ValueError, match="between 0 and 1"):
        fitted.summary(95)


@pytest.mark.slow
def test_summary_notes_boundary_and_ridge():
    def program(x, k):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("k", dist.Categorical(p), obs=k)
            numpyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    x = np.random.default_rng(0).normal(size=10)
    k = np.repeat([0, 1], 5)
    fit = made(ep.bind(program, x, k), {"p": [0.5, 0.5, 0.0], "a": 0.0, "b": x.mean()})
    assert list(fit.summary()["note"]) == ["", "", "boundary", "unidentified", "unidentified"]
    assert fit.summary()["se"].isna().tolist() == [False, False, True, True, True]


def test_covariance_and_standard_errors_agree(fitted):
    roots = np.sqrt(np.diag(fitted.covariance()))
    se = fitted.standard_errors()
    np.testing.assert_allclose(roots[2:4], se["loc"], rtol=1e-12)
    cov = fitted.covariance()
    gap = cov.loc["loc[0]", "loc[0]"] + cov.loc["loc[1]", "loc[1]"]
    gap -= 2 * cov.loc["loc[0]", "loc[1]"]
    assert se["gap"] == pytest.approx(np.sqrt(gap), rel=1e-10)


def test_criteria(fitted):
    assert fitted.df == 4 and fitted.num_observations == 300
    assert fitted.aic == pytest.approx(-2 * fitted.log_likelihood + 8)
    assert fitted.bic == pytest.approx(-2 * fitted.log_likelihood + 4 * np.log(300))
    assert fitted.icl == pytest.approx(fitted.bic + 2 * fitted.entropy)
    probs = fitted.posterior["z"].probs
    assert fitted.entropy == pytest.approx(-np.sum(probs * np.log(probs)), rel=1e-8)


@pytest.mark.slow
def test_a_deterministic_site_with_an_entry_per_state_is_in_the_tables():
    def program(y):
        with numpyro.plate("states", 2):
            move = numpyro.sample("move", dist.Dirichlet(jnp.ones(2)))
            loc = numpyro.sample("loc", dist.Normal(0.0, 10.0))
        numpyro.deterministic("square", loc**2)
        z = numpyro.sample("z0", dist.Categorical(jnp.array([0.5, 0.5])))
        numpyro.deterministic("of the latent", loc[z])

        def step(z, y):
            z = numpyro.sample("z", dist.Categorical(move[z]))
            numpyro.sample("y", dist.Normal(loc[z], 0.5), obs=y)
            return z, None

        scan(step, z, y)

    model = ep.bind(program, np.array([1.0, 1.2, -0.9, -1.1, 1.1]))
    loc = jnp.array([1.0, -1.5])
    found = model.deterministics({"move": jnp.array([[0.6, 0.4], [0.3, 0.7]]), "loc": loc})
    assert list(found) == ["square"]
    np.testing.assert_allclose(found["square"], loc**2, rtol=1e-12)


def test_looks(fitted):
    text = repr(fitted)
    assert "\n" not in text and "converged" in text and "mixture" in text
    page = fitted._repr_html_()
    assert "<svg" in page and "loc[0]" in page and "converged" in page
    assert list(fitted.starts["status"]) == ["converged"] and fitted.converged


def test_names_are_escaped_in_html(data):
    def program(x):
        a = numpyro.sample("<b>a</b>", dist.Normal(0, 1))
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("x", dist.Normal(a, 1.0), obs=x)

    fit = made(ep.bind(program, data), {"<b>a</b>": 0.1}, message="at <b>a</b>")
    assert "<b>a</b>" not in fit._repr_html_() and "&lt;b&gt;" in fit._repr_html_()


# -- draws --------------------------------------------------------------------------------------


def test_sample_has_the_moments_of_the_approximation(fitted, key):
    draws = fitted.sample(key, 4000)
    se = fitted.standard_errors()
    assert list(draws) == ["weights", "loc", "scale", "z"]
    np.testing.assert_allclose(draws["loc"].std(0), se["loc"], rtol=0.06)
    np.testing.assert_allclose(draws["loc"].mean(0), fitted.params["loc"], atol=0.01)
    np.testing.assert_allclose(draws["weights"].sum(1), 1.0)
    cov = fitted.covariance().to_numpy()
    got = np.corrcoef(draws["loc"].T)[0, 1]
    assert got == pytest.approx(cov[2, 3] / np.sqrt(cov[2, 2] * cov[3, 3]), abs=0.06)
    assert draws["z"].shape == (4000, 300)
    np.testing.assert_allclose(draws["z"].mean(0), fitted.posterior["z"].mean, atol=0.06)


@pytest.mark.slow
def test_the_same_key_gives_the_same_numbers(fitted):
    for draw in (lambda k: fitted.sample(k, 5), lambda k: fitted.predict(k, 5)):
        first, again, other = draw(7), draw(jax.random.key(7)), draw(8)
        for name in first:
            np.testing.assert_array_equal(first[name], again[name])
        assert any((first[n] != other[n]).any() for n in first)


@pytest.mark.slow
def test_sample_of_a_chain_follows_its_posterior(switching, key):
    fit = switching
    draws = fit.sample(key, 200)
    assert draws["z"].shape == (200, 59) and draws["z0"].shape == (200,)
    assert (draws["z"].mean(0) > 0.5).astype(int).tolist()[:5] == [0] * 5
    replicates = fit.predict(key, 200)
    assert replicates["y"].shape == (200, 59) and replicates["y0"].shape == (200,)
    stay = np.mean((replicates["y"][:, 1:] > 0) == (replicates["y"][:, :-1] > 0))
    assert 0.8 < stay < 0.95  # the draws keep the chain's memory


@pytest.mark.slow
def test_predict_hides_the_data(counts, key):
    fit, x = counts
    out = fit.predict(key, 3000, draws=fit.params)
    assert list(out) == ["y"] and out["y"].shape == (3000, 80)
    rate = np.exp(fit.params["b"][0] + fit.params["b"][1] * x)
    np.testing.assert_allclose(out["y"].mean(0), rate, atol=6 * np.sqrt(rate.max() / 3000))
    np.testing.assert_allclose(out["y"].var(0).mean(), rate.mean(), rtol=0.05)
    with_doubt = fit.predict(key, 3000)["y"].mean(1).var()
    assert with_doubt > 1.5 * out["y"].mean(1).var()


def test_predict_at_new_covariates(counts, key):
    fit, _ = counts
    new = np.array([-1.0, 0.0, 2.0])
    out = fit.predict(key, 2000, args=(new,), draws=fit.params)["y"]
    rate = np.exp(fit.params["b"][0] + fit.params["b"][1] * new)
    np.testing.assert_allclose(out.mean(0), rate, rtol=0.1)


@pytest.mark.slow
def test_predict_feeds_its_own_draws_forward(key):
    y = np.zeros(200)
    fit = made(ep.bind(autoregression, y), {"phi": 0.9})
    out = fit.predict(key, 300, draws=fit.params)["y"]
    assert out.shape == (300, 200)
    np.testing.assert_allclose(out[:, -1].var(), 1 / (1 - 0.81), rtol=0.25)


def test_predict_checks_its_draws(counts, key):
    fit, _ = counts
    with pytest.raises(ValueError, match="these differ"):
        fit.predict(key, 5, draws={"c": np.zeros(2)})
    with pytest.raises(ValueError, match="expected shape"):
        fit.predict(key, 5, draws={"b": np.zeros((2, 3))})


@pytest.mark.slow
def test_boundary_entries_keep_their_estimate(key):
    def die(x):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("x", dist.Categorical(p), obs=x)

    fit = made(ep.bind(die, np.repeat([0, 1], 50)), {"p": [0.5, 0.5, 0.0]})
    p = fit.sample(key, 500)["p"]
    assert p[:, 2].max() < 1e-30
    assert p[:, 0].std() == pytest.approx(0.05, rel=0.1)


def test_spread_normals_have_exact_moments():
    x = predictive.spread_normals(1000, 5)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(x.T @ x / 1000, np.eye(5), atol=1e-10)
    assert stats.kstest(x[:, 3], "norm").statistic < 0.02


# -- keys ---------------------------------------------------------------------------------------


def test_keys_of_every_kind_are_one():
    want = jax.random.key_data(jax.random.key(3))
    forms = [3, np.int64(3), jax.random.key(3), jax.random.PRNGKey(3), np.asarray(want)]
    for form in forms:
        np.testing.assert_array_equal(jax.random.key_data(keys.as_key(form)), want)


@pytest.mark.parametrize("bad", [None, 1.5, "0", True, np.zeros(2)])
def test_what_is_no_key_is_refused(bad, fitted):
    with pytest.raises(TypeError, match="expected an integer or a JAX key"):
        fitted.sample(bad, 2)


def test_an_array_of_keys_is_refused():
    with pytest.raises(TypeError, match="one key"):
        keys.as_key(jax.random.split(jax.random.key(0), 3))


# -- files --------------------------------------------------------------------------------------


def test_a_saved_fit_comes_back_with_its_model(fitted, tmp_path, key):
    path = tmp_path / "fit.npz"
    fitted.save(path)
    again = load(path, fitted.model)
    assert list(again.params) == list(fitted.params)
    for name, value in fitted.params.items():
        np.testing.assert_array_equal(again.params[name], value)
    assert again.status is fitted.status and again.message == fitted.message
    np.testing.assert_array_equal(again.trace["objective"], fitted.trace["objective"])
    np.testing.assert_allclose(again.covariance(), fitted.covariance(), rtol=1e-12)
    draws, same = fitted.sample(key, 4), again.sample(key, 4)
    np.testing.assert_array_equal(draws["z"], same["z"])


def test_without_its_model_a_fit_has_its_numbers_and_says_what_is_missing(fitted, tmp_path):
    path = tmp_path / "fit.npz"
    fitted.save(path)
    again = load(path)
    for level in (0.95, 0.8):
        np.testing.assert_allclose(
            again.summary(level)["lower"], fitted.summary(level)["lower"], rtol=1e-12
        )
    assert again.bic == fitted.bic and again.df == 4
    assert again.uncertainty.labels == fitted.uncertainty.labels
    assert "loaded" in repr(again) and "<svg" in again._repr_html_()
    for ask in (lambda: again.posterior, lambda: again.sample(0), lambda: again.icl,
                again.standard_errors, again.to_arviz, lambda: again.save(path)):  # fmt: skip
        with pytest.raises(ModelError, match="loaded without its model"):
            ask()


def test_a_file_of_another_model_or_data_is_refused(fitted, data, tmp_path):
    path = tmp_path / "fit.npz"
    fitted.save(path)
    with pytest.raises(CheckpointError, match="data_hash"):
        load(path, ep.bind(mixture, data + 1))
    with pytest.raises(CheckpointError, match="objective"):
        load(path, ep.bind(other_mixture, data))
    with pytest.raises(CheckpointError, match="program"):
        load(path, ep.bind(regimes, data))
    store.write(tmp_path / "other.npz", {}, {"kind": "checkpoint"})
    with pytest.raises(CheckpointError, match="kind"):
        load(tmp_path / "other.npz")


# -- ArviZ --------------------------------------------------------------------------------------


def test_arviz_tree_without_random_numbers(fitted):
    tree = fitted.to_arviz(n=512)
    assert tree.attrs["status"] == "converged" and tree.attrs["program"] == "mixture"
    posterior = tree["posterior"]
    assert posterior["loc"].shape == (1, 512, 2) and "z" not in posterior
    np.testing.assert_allclose(
        posterior["loc"].values.std((0, 1)), fitted.standard_errors()["loc"], rtol=1e-6
    )
    pointwise = tree["log_likelihood"]["x"]
    assert pointwise.dims == ("chain", "draw", "n") and pointwise.shape == (1, 512, 300)
    np.testing.assert_array_equal(tree["observed_data"]["x"], fitted.model.data.leaves[0])


def test_arviz_tree_with_latents(fitted, key):
    tree = fitted.to_arviz(key, n=20)
    assert tree["posterior"]["z"].shape == (1, 20, 300)
    totals = tree["log_likelihood"]["x"].values.sum(-1)[0]
    first = {k: jnp.asarray(tree["posterior"][k].values[0, 0]) for k in fitted.params}
    assert totals[0] == pytest.approx(float(fitted.model.log_partition(first)), rel=1e-10)


@pytest.mark.slow
def test_arviz_tree_of_a_chain_has_no_pointwise_group(switching):
    tree = switching.to_arviz(n=8)
    assert "log_likelihood" not in tree.children
