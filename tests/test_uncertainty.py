"""Information and standard errors, against closed forms, finite differences and statsmodels."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emprob as ep
from emprob import chart, coordinates, curvature, uncertainty
from emprob.space import LogRatioTransform


def flat(name, support=constraints.real, shape=()):
    return numpyro.sample(name, dist.ImproperUniform(support, shape, ()))


def normal(x):
    mu, sd = flat("mu"), flat("sd", constraints.positive)
    numpyro.deterministic("signal", mu / sd)
    with numpyro.plate("n", x.shape[0]):
        numpyro.sample("x", dist.Normal(mu, sd), obs=x)


def ridge(x):
    a, b = flat("a"), flat("b")
    numpyro.deterministic("total", a + b)
    with numpyro.plate("n", x.shape[0]):
        numpyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


def mixture(x, k=2):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(k)))
    with numpyro.plate("components", k):
        loc = numpyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def regimes(y):
    start = numpyro.sample("start", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("states", 2):
        move = numpyro.sample("move", dist.Dirichlet(jnp.ones(2)))
        loc = numpyro.sample("loc", dist.Normal(0.0, 10.0))
    sd = numpyro.sample("sd", dist.LogNormal(0.0, 1.0))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(move[z]))
        numpyro.sample("y", dist.Normal(loc[z], sd), obs=y)
        return z, None

    z = numpyro.sample("z0", dist.Categorical(start))
    numpyro.sample("y0", dist.Normal(loc[z], sd), obs=y[0])
    scan(step, z, y[1:])


def climb(model, start, steps=400):
    """EM, to rounding error."""
    step = jax.jit(lambda m, s: ep.EM().step(m, s)[0])
    state = ep.EM().init(model, {k: jnp.asarray(v, float) for k, v in start.items()})
    for _ in range(steps):
        state = step(model, state)
    return {k: np.asarray(state.params[k]) for k in model.params}


@pytest.fixture(scope="module")
def two_normals():
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(-2, 1, 120), rng.normal(2, 0.7, 180)])
    model = ep.bind(mixture, x)
    start = {"weights": [0.5, 0.5], "loc": [-1.0, 1.0], "scale": [1.0, 1.0]}
    return model, climb(model, start)


@pytest.fixture(scope="module")
def switching():
    rng = np.random.default_rng(4)
    z = [0]
    for _ in range(299):
        z.append(z[-1] if rng.random() < 0.92 else 1 - z[-1])
    y = np.where(np.array(z) == 0, -1.0, 1.5) + 0.8 * rng.normal(size=300)
    model = ep.bind(regimes, y)
    start = {"start": [0.6, 0.4], "move": [[0.8, 0.2], [0.2, 0.8]], "loc": [-0.5, 1.0], "sd": 1.0}
    return model, climb(model, start)


# -- closed forms -------------------------------------------------------------------------------


def test_normal_mean_and_sd_have_their_textbook_errors():
    x = np.random.default_rng(0).normal(1.5, 2.0, 200)
    model = ep.bind(normal, x)
    params = {"mu": x.mean(), "sd": x.std()}
    se = uncertainty.standard_errors(model, params)
    sd, n = x.std(), 200
    assert se["mu"] == pytest.approx(sd / np.sqrt(n), rel=1e-10)
    assert se["sd"] == pytest.approx(sd / np.sqrt(2 * n), rel=1e-10)
    ratio = x.mean() / sd
    assert se["signal"] == pytest.approx(np.sqrt((1 + ratio**2 / 2) / n), rel=1e-10)
    assert uncertainty.report(model, params).score_norm < 1e-12


def test_sandwich_of_a_normal_uses_the_fourth_moment():
    x = np.random.default_rng(0).standard_t(6, 400)
    model = ep.bind(normal, x, prior=False)
    se = uncertainty.standard_errors(model, {"mu": x.mean(), "sd": x.std()}, "sandwich")
    centred = x - x.mean()
    spread = np.sqrt((np.mean(centred**4) - x.var() ** 2) / 400) / (2 * x.std())
    assert se["mu"] == pytest.approx(x.std() / np.sqrt(400), rel=1e-9)
    assert se["sd"] == pytest.approx(spread, rel=1e-9)


def test_score_method_is_the_outer_product_of_scores():
    x = np.random.default_rng(0).standard_t(6, 400)
    model = ep.bind(normal, x, prior=False)
    se = uncertainty.standard_errors(model, {"mu": x.mean(), "sd": x.std()}, "score")
    r = (x - x.mean()) / x.std()
    scores = np.stack([r / x.std(), (r**2 - 1) / x.std()], 1)
    want = np.sqrt(np.diag(np.linalg.inv(scores.T @ scores)))
    np.testing.assert_allclose([se["mu"], se["sd"]], want, rtol=1e-9)


def test_bernoulli():
    def coin(x):
        p = numpyro.sample("p", dist.Uniform(0, 1))
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("x", dist.Bernoulli(p), obs=x)

    x = (np.random.default_rng(1).random(150) < 0.3).astype(float)
    model = ep.bind(coin, x)
    p = x.mean()
    se = uncertainty.standard_errors(model, {"p": p})
    assert se["p"] == pytest.approx(np.sqrt(p * (1 - p) / 150), rel=1e-10)


def test_multinomial_covariance_in_every_chart():
    def die(x):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(4)))
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("x", dist.Categorical(p), obs=x)

    x = np.repeat([0, 1, 2, 3], [10, 60, 25, 5])
    model, p = ep.bind(die, x), np.array([0.10, 0.60, 0.25, 0.05])
    cov = uncertainty.covariance(model, {"p": p})
    np.testing.assert_allclose(cov, (np.diag(p) - np.outer(p, p)) / 100, atol=1e-15)
    assert list(cov.columns) == ["p[0]", "p[1]", "p[2]", "p[3]"]
    u = uncertainty.unconstrained_covariance(model, {"p": p})
    want = (np.diag(1 / p[:3]) + 1 / p[3]) / 100  # of log p_k / p_3
    np.testing.assert_allclose(u, want, rtol=1e-10)


@pytest.mark.slow
def test_logistic_regression_agrees_with_statsmodels():
    sm = pytest.importorskip("statsmodels.api")

    def logistic(x, y):
        b = flat_vector("b", 3)
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    rng = np.random.default_rng(5)
    x = np.column_stack([np.ones(300), rng.normal(size=(300, 2))])
    y = (rng.random(300) < 1 / (1 + np.exp(-x @ [0.3, 1.0, -0.7]))).astype(float)
    peer = sm.Logit(y, x).fit(disp=0, tol=1e-12)
    model = ep.bind(logistic, x, y)
    se = uncertainty.standard_errors(model, {"b": peer.params})
    np.testing.assert_allclose(se["b"], peer.bse, rtol=1e-7)
    robust = uncertainty.standard_errors(model, {"b": peer.params}, "sandwich")
    hc0 = sm.Logit(y, x).fit(disp=0, tol=1e-12, cov_type="HC0")
    np.testing.assert_allclose(robust["b"], hc0.bse, rtol=1e-6)


def flat_vector(name, size):
    return numpyro.sample(name, dist.ImproperUniform(constraints.real, (), (size,)))


# -- finite differences -------------------------------------------------------------------------


def differences_of_the_score(model, params):
    """Central differences of the gradient of the objective, log coordinates (F, F)."""
    w = chart.to_coordinates(model.data.transforms, {k: jnp.asarray(v) for k, v in params.items()})
    point = np.asarray(coordinates.flatten(model, w))

    def score(flat):
        by_site = coordinates.unflatten(model, jnp.asarray(flat), w)
        return np.asarray(curvature._curvature(model, by_site, point.size).score)

    out, h = [], 1e-5
    for e in np.eye(point.size):
        out.append((score(point + h * e) - score(point - h * e)) / (2 * h))
    return np.array(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_normals", "switching"])
def test_information_is_the_slope_of_the_score(name, request):
    model, params = request.getfixturevalue(name)
    report = uncertainty.report(model, params)
    want = -differences_of_the_score(model, params)[np.ix_(report.free, report.free)]
    scale = np.sqrt(np.diag(want))
    difference = (report.information - want) / scale / scale[:, None]
    assert np.abs(difference).max() < 1e-5
    assert report.identified


def test_blocks_of_columns_give_the_same_matrix(two_normals, monkeypatch):
    model, params = two_normals
    whole = uncertainty.report(model, params).information
    monkeypatch.setattr(curvature, "MAX_BATCH_CELLS", 4000)
    np.testing.assert_allclose(uncertainty.report(model, params).information, whole, rtol=1e-10)


@pytest.mark.slow
def test_mixture_errors_agree_with_a_hessian_written_by_hand(two_normals):
    model, params = two_normals
    x = np.asarray(model.data.leaves[0])

    def objective(theta):
        w = jnp.array([theta[0], 1 - theta[0]])
        loc, scale = theta[1:3], theta[3:5]
        parts = jnp.log(w) + jax.scipy.stats.norm.logpdf(x[:, None], loc, scale)
        prior = jax.scipy.stats.norm.logpdf(loc, 0, 10).sum()
        prior += (jax.scipy.stats.norm.logpdf(jnp.log(scale), 0, 2) - jnp.log(scale)).sum()
        return jax.scipy.special.logsumexp(parts, 1).sum() + prior

    theta = np.r_[params["weights"][0], params["loc"], params["scale"]]
    want = np.sqrt(np.diag(np.linalg.inv(-np.asarray(jax.hessian(objective)(theta)))))
    se = uncertainty.standard_errors(model, params)
    got = np.r_[se["weights"][0], se["loc"], se["scale"]]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert se["weights"][0] == pytest.approx(se["weights"][1], rel=1e-9)


# -- what is not determined ---------------------------------------------------------------------


def test_a_ridge_is_named_and_has_no_standard_errors():
    x = np.random.default_rng(0).normal(1.0, 1.0, 50)
    model = ep.bind(ridge, x)
    params = {"a": 0.3, "b": x.mean() - 0.3}
    report = uncertainty.report(model, params)
    (vector,) = report.null_vectors
    assert vector == pytest.approx({"a": np.sqrt(0.5), "b": -np.sqrt(0.5)}, rel=1e-6)
    assert report.null_directions == ("0.707 a -0.707 b",)
    assert "do not determine" in report.describe()
    se = uncertainty.standard_errors(model, params, report=report)
    assert np.isnan(se["a"]) and np.isnan(se["b"])
    assert se["total"] == pytest.approx(1 / np.sqrt(50), rel=1e-8)


def test_a_curved_ridge_is_found_at_an_approximate_optimum():
    def product(x):
        a, b = flat("a", constraints.positive), flat("b", constraints.positive)
        numpyro.deterministic("ab", a * b)
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("x", dist.Normal(a * b, 1.0), obs=x)

    x = np.random.default_rng(0).normal(2.0, 1.0, 400)
    model = ep.bind(product, x)
    for error in (0.0, 1e-7, -1e-7):
        report = uncertainty.report(model, {"a": 0.5, "b": 2 * (x.mean() + error)})
        assert len(report.null_directions) == 1 and not report.negative_directions


def test_two_null_directions_are_told_apart():
    def two(x, y):
        b = flat_vector("b", 4)
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("x", dist.Normal(b[0] + b[2], 1.0), obs=x)
            numpyro.sample("y", dist.Normal(b[1] - 3 * b[3], 1.0), obs=y)

    x, y = np.random.default_rng(0).normal(size=(2, 60))
    report = uncertainty.report(ep.bind(two, x, y), {"b": np.r_[x.mean(), y.mean(), 0, 0]})
    found = {frozenset(v) for v in report.null_vectors}
    assert found == {frozenset({"b[0]", "b[2]"}), frozenset({"b[1]", "b[3]"})}


def test_bad_scales_are_not_taken_for_a_ridge():
    def scales(x, y):
        a, b = flat("a"), flat("b")
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("x", dist.Normal(a, 1e8), obs=x)
            numpyro.sample("y", dist.Normal(b, 1e-8), obs=y)

    rng = np.random.default_rng(0)
    x, y = rng.normal(1e8, 1e8, 50), rng.normal(1e-8, 1e-8, 50)
    model = ep.bind(scales, x, y)
    report = uncertainty.report(model, {"a": x.mean(), "b": y.mean()})
    assert report.identified
    se = uncertainty.standard_errors(model, {"a": x.mean(), "b": y.mean()})
    assert se["a"] == pytest.approx(1e8 / np.sqrt(50), rel=1e-9)
    assert se["b"] == pytest.approx(1e-8 / np.sqrt(50), rel=1e-9)


def test_a_parameter_that_does_nothing():
    def idle(x):
        a, _ = flat("a"), flat("unused")
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("x", dist.Normal(a, 1.0), obs=x)

    x = np.random.default_rng(0).normal(size=30)
    model = ep.bind(idle, x)
    report = uncertainty.report(model, {"a": x.mean(), "unused": 3.0})
    assert report.null_directions == ("1 unused",)
    se = uncertainty.standard_errors(model, {"a": x.mean(), "unused": 3.0})
    assert np.isnan(se["unused"]) and se["a"] == pytest.approx(1 / np.sqrt(30))


@pytest.mark.slow
def test_separated_classes_have_no_finite_estimate():
    def logistic(x, y):
        a, b = flat("a"), flat("b")
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=a + b * x), obs=y)

    x = np.linspace(-1, 1, 40)
    model = ep.bind(logistic, x, (x > 0).astype(float))
    params = {"a": 0.0, "b": 600.0}  # where an ascent gives up
    report = uncertainty.report(model, params)
    assert "b (the estimate diverges)" in report.null_directions
    assert np.isnan(uncertainty.standard_errors(model, params)["b"])
    overlapping = ep.bind(logistic, x, ((x > 0) ^ (np.arange(40) % 7 == 0)).astype(float))
    found = climb_newton(overlapping, {"a": 0.0, "b": 1.0})
    assert uncertainty.report(overlapping, found).identified


def climb_newton(model, params):
    """MAP steps, to rounding error."""
    state = ep.MAP().init(model, {k: jnp.asarray(v, float) for k, v in params.items()})
    step = jax.jit(lambda m, s: ep.MAP().step(m, s)[0])
    for _ in range(50):
        state = step(model, state)
    return {k: np.asarray(v) for k, v in state.params.items()}


def test_a_rate_without_counts_diverges_and_one_with_a_single_count_does_not():
    def rates(y):
        with numpyro.plate("n", y.shape[0]):
            log_rate = flat("log_rate")
            numpyro.sample("y", dist.Poisson(jnp.exp(log_rate)), obs=y)

    model = ep.bind(rates, np.array([0.0, 1.0, 5.0]), latents=())
    params = {"log_rate": np.array([-15.0, 0.0, np.log(5.0)])}
    report = uncertainty.report(model, params)
    assert report.null_directions == ("log_rate[0] (the estimate diverges)",)
    se = uncertainty.standard_errors(model, params)["log_rate"]
    np.testing.assert_allclose(se[1:], [1.0, 1 / np.sqrt(5)], rtol=1e-9)


def test_a_saddle_is_named(two_normals):
    model, _ = two_normals
    x = np.asarray(model.data.leaves[0])
    same = {
        "weights": np.array([0.5, 0.5]),
        "loc": np.full(2, x.mean()),
        "scale": np.full(2, x.std()),
    }
    report = uncertainty.report(model, climb(model, same, 50))
    assert report.negative_directions and not report.identified
    assert "loc" in " ".join(report.negative_directions)


def test_newton_decrement_is_the_distance_in_standard_errors():
    x = np.random.default_rng(0).normal(size=100)
    model = ep.bind(ridge, x)
    report = uncertainty.report(model, {"a": 1.0, "b": x.mean() - 1.0 + 0.05})
    assert report.score_norm == pytest.approx(0.05 * np.sqrt(100), rel=1e-8)


# -- the boundary -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_an_empty_class_is_held_wherever_it_stands(order):
    def die(x):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("x", dist.Categorical(p), obs=x)

    p = np.array([0.7, 0.3, 0.0])[list(order)]
    x = np.repeat(np.arange(3), (100 * p).round().astype(int))
    model = ep.bind(die, x)
    zero = int(np.flatnonzero(p == 0)[0])
    report = uncertainty.report(model, {"p": p})
    assert report.boundary == (f"p[{zero}]",) and report.identified
    se = uncertainty.standard_errors(model, {"p": p})["p"]
    assert np.isnan(se[zero])
    np.testing.assert_allclose(np.delete(se, zero), np.sqrt(0.7 * 0.3 / 100), rtol=1e-9)


@pytest.mark.slow
def test_the_start_law_of_a_markov_chain_ends_in_a_corner(switching):
    model, params = switching
    assert params["start"].min() < 1e-8
    report = uncertainty.report(model, params)
    assert set(report.boundary) == {"start[0]", "start[1]"}
    se = uncertainty.standard_errors(model, params)
    assert np.isnan(se["start"]).all()
    others = np.concatenate([se[n].ravel() for n in ("move", "loc", "sd")])
    assert np.isfinite(others).all() and (others > 0).all()


def test_a_probability_at_one_and_a_scale_at_zero():
    def both(x, y):
        p = numpyro.sample("p", dist.Uniform(0, 1))
        tau = flat("tau", constraints.positive)
        with numpyro.plate("n", x.shape[0]):
            numpyro.sample("x", dist.Bernoulli(p), obs=x)
            numpyro.sample("y", dist.Normal(0, jnp.sqrt(1 + tau**2)), obs=y)

    y = 0.5 * np.random.default_rng(0).normal(size=40)  # spread below one: tau is zero
    model = ep.bind(both, np.ones(40), y)
    report = uncertainty.report(model, {"p": 1.0, "tau": 1e-12})
    assert set(report.boundary) == {"p", "tau"}
    se = uncertainty.standard_errors(model, {"p": 1.0, "tau": 1e-12})
    assert np.isnan(se["p"]) and np.isnan(se["tau"])


def test_a_small_scale_that_is_determined_is_no_boundary():
    x = np.random.default_rng(0).normal(0.0, 1e-10, 50)
    model = ep.bind(normal, x)
    params = {"mu": x.mean(), "sd": x.std()}
    report = uncertainty.report(model, params)
    assert not report.boundary
    assert uncertainty.standard_errors(model, params)["sd"] == pytest.approx(x.std() / 10, rel=1e-6)


# -- limits and messages ------------------------------------------------------------------------


def test_unknown_method_names_the_allowed_ones():
    x = np.random.default_rng(0).normal(size=20)
    model = ep.bind(normal, x)
    with pytest.raises(ValueError, match="'observed', 'score', 'sandwich'"):
        uncertainty.standard_errors(model, {"mu": x.mean(), "sd": x.std()}, "bootstrap")


@pytest.mark.slow
def test_scores_of_a_chain_are_refused_in_words(switching):
    model, params = switching
    with pytest.raises(ValueError, match="no independent observations"):
        uncertainty.standard_errors(model, params, "sandwich")


def test_too_many_parameters_are_refused(monkeypatch):
    monkeypatch.setattr(curvature, "MAX_COORDINATES", 1)
    x = np.random.default_rng(0).normal(size=20)
    with pytest.raises(uncertainty.TooManyParameters, match="2 free coordinates"):
        uncertainty.report(ep.bind(normal, x), {"mu": 0.0, "sd": 1.0})


def test_nothing_is_traced_again_for_new_data():
    models = [ep.bind(normal, np.random.default_rng(i).normal(size=37)) for i in (1, 2)]
    for i, model in enumerate(models):
        uncertainty.standard_errors(model, {"mu": 0.1 * i, "sd": 1.0})
        if i == 0:
            before = curvature._curvature._cache_size(), coordinates.outputs_jacobian._cache_size()
    after = curvature._curvature._cache_size(), coordinates.outputs_jacobian._cache_size()
    assert after == before


@pytest.mark.parametrize(
    ("support", "shape", "value"),
    [
        (constraints.positive, (2,), [0.5, 3.0]),
        (constraints.interval(-1.0, 3.0), (2,), [0.0, 2.9]),
        (constraints.greater_than(2.0), (), 2.5),
        (constraints.real, (), -4.0),
    ],
)
def test_link_and_its_slope(support, shape, value):
    limits = chart.bounds(ep.space.bijection(support), shape)
    value = np.asarray(value)
    x, slope = chart.link(value, limits)
    np.testing.assert_allclose(chart.unlink(x, limits), value, rtol=1e-12)
    up, down = chart.unlink(x + 1e-6, limits), chart.unlink(x - 1e-6, limits)
    np.testing.assert_allclose((up - down) / 2e-6 * slope, 1.0, rtol=1e-6)


def test_bounds_of_matrices_and_simplexes():
    cov = chart.bounds(ep.space.bijection(constraints.positive_definite), (2, 2))
    np.testing.assert_array_equal(cov.low, [[0, -np.inf], [-np.inf, 0]])
    corr = chart.bounds(ep.space.bijection(constraints.corr_matrix), (2, 2))
    np.testing.assert_array_equal(corr.high, [[np.inf, 1], [1, np.inf]])
    assert chart.is_simplex(LogRatioTransform())
    simplex = chart.bounds(LogRatioTransform(), (3,))
    np.testing.assert_array_equal(simplex.high, np.ones(3))


@pytest.mark.slow
def test_bounds_are_read_in_the_width_of_the_fit():
    def program(x):
        a = numpyro.sample("a", dist.Uniform(-1.0, 1.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(a, 1.0), obs=x)

    x = np.array([0.1, 0.4, -0.2, 0.7])
    with jax.enable_x64(False):  # what a notebook has; a truncated float64 would be a warning
        rows = ep.fit(ep.bind(program, x), key=0, progress=False).summary()
    assert rows.loc["a", "estimate"] == pytest.approx(x.mean(), abs=1e-8)
    assert -1 < rows.loc["a", "lower"] < rows.loc["a", "upper"] < 1
