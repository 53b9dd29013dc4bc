"""Bad input and faults of programs with continuous latents: found, named, with what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import emprob as ep
from emprob.densities import log_density
from emprob.estep.unsolved import Unsolved

RNG = np.random.default_rng(11)


def autoregression(y):
    """A scalar state from zero, seen with noise; a column of `y` a series."""
    phi = numpyro.sample("phi", dist.Normal(0.0, 1.0))
    q = numpyro.sample("q", dist.HalfNormal(1.0))
    r = numpyro.sample("r", dist.HalfNormal(1.0).expand(y.shape[1:]).to_event(y.ndim - 1))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(phi * x, q).to_event(y.ndim))
        numpyro.sample("y", dist.Normal(x, r).to_event(y.ndim), obs=y)
        return x, None

    scan(step, jnp.zeros(y.shape[1:]), y)


def fit(program, *args, prior=False, **options):
    return ep.fit(ep.bind(program, *args, prior=prior), progress=False, **options)


def refused(program, *args, words, error=ep.ModelError):
    with pytest.raises(error) as caught:
        ep.bind(program, *args)
    for word in words:
        assert word in str(caught.value), str(caught.value)


# -- chains -------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])
def test_a_singular_innovation_covariance_is_named(covariance):
    def program(y):
        A = numpyro.sample("A", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))

        def step(x, y):
            x = numpyro.sample("x", dist.MultivariateNormal(A @ x, jnp.array(covariance)))
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
            return x, None

        scan(step, jnp.zeros(2), y)

    refused(program, np.zeros((9, 2)), words=("'x'", "covariance_matrix", "outside"))


def test_an_innovation_of_zero_is_named():
    def program(y):
        r = numpyro.sample("r", dist.HalfNormal(1.0))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, 0.0))
            numpyro.sample("y", dist.Normal(x, r), obs=y)
            return x, None

        scan(step, jnp.zeros(()), y)

    refused(program, np.zeros(9), words=("scale", "Normal", "outside"))


@pytest.mark.exhaustive
def test_an_unstable_transition_is_a_transition():
    """It is nowhere assumed to be stable: an explosive series has its growth as the estimate."""
    t = np.arange(60)
    found = fit(autoregression, np.exp(0.1 * t) + RNG.normal(size=60))
    assert found.params["phi"] == pytest.approx(np.exp(0.1), rel=1e-2)
    assert np.isfinite(found.log_likelihood)
    assert np.isfinite(found.posterior["x"].variance).all()


@pytest.mark.slow
def test_a_stationary_start_refuses_an_unstable_transition_by_name():
    def program(y):
        phi = numpyro.sample("phi", dist.Normal(0.0, 1.0))
        first = numpyro.sample("x0", dist.Normal(0.0, 1.0 / jnp.sqrt(1.0 - phi**2)))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(phi * x, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, first, y)

    model = ep.bind(program, RNG.normal(size=20))
    with pytest.raises((ep.FitError, ValueError), match="x0"):
        ep.fit(model, init={"phi": 1.2}, progress=False)


@pytest.mark.exhaustive
def test_a_chain_of_one_step_is_one_normal():
    model = ep.bind(autoregression, np.array([0.7]), prior=False)
    params = {"phi": jnp.array(0.3), "q": jnp.array(0.5), "r": jnp.array(0.4)}
    expected = stats.norm.logpdf(0.7, 0.0, np.hypot(0.5, 0.4))
    assert float(model.log_partition(params)) == pytest.approx(expected, rel=1e-12)
    with pytest.warns(ep.IdentifiabilityWarning, match="phi"):
        found = ep.fit(model, progress=False)
    assert np.isnan(found.standard_errors()["phi"])
    refused(autoregression, np.zeros(0), words=("length 0",))


@pytest.mark.exhaustive
def test_a_series_that_is_wholly_missing():
    """Alone it is refused; beside others it has no say, and its own parameter no estimate."""
    refused(autoregression, np.full(9, np.nan), words=("'y'", "all 9", "missing"),
            error=ep.DataError)  # fmt: skip
    y = np.cumsum(RNG.normal(size=(30, 2)), 0)
    y = y + RNG.normal(size=y.shape)
    with_blank = np.c_[y, np.full(30, np.nan)]
    params = {"phi": jnp.array(0.9), "q": jnp.array(1.1), "r": jnp.array([0.5, 0.8])}
    alone = ep.bind(autoregression, y, prior=False)
    beside = ep.bind(autoregression, with_blank, prior=False)
    more = params | {"r": jnp.array([0.5, 0.8, 0.3])}
    assert float(beside.log_partition(more)) == pytest.approx(
        float(alone.log_partition(params)), rel=1e-12
    )
    with pytest.warns(UserWarning) as told:
        found = ep.fit(beside, progress=False, init=more, max_steps=50)
    assert any("r[2]" in str(w.message) for w in told if w.category is ep.IdentifiabilityWarning)
    assert "r[2]" not in found.information.boundary
    assert found.params["r"][2] == pytest.approx(0.3)
    assert np.isnan(found.standard_errors()["r"][2])


# -- shapes -------------------------------------------------------------------------------------


def test_a_latent_of_a_shape_that_would_broadcast():
    def column(y):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        with numpyro.plate("rows", len(y), dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, tau))
        with numpyro.plate("n", len(y), dim=-1):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    words = ("'y'", "(8,)", "(8, 8)", "(n, 1) beside (n,)")
    refused(column, np.zeros(8), words=words, error=ep.DataError)

    def wide_carry(y):
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, numpyro.sample("q", dist.HalfNormal(1.0))))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, jnp.zeros(1), y)

    refused(wide_carry, np.zeros(8), words=("'y'", "(1,)", "()"), error=ep.DataError)


# -- what the data do not determine -------------------------------------------------------------


@pytest.mark.exhaustive
def test_separated_logistic_data_name_the_coefficient():
    def program(y, x, group):
        beta = numpyro.sample("beta", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        with numpyro.plate("groups", 8):
            u = numpyro.sample("u", dist.Normal(0.0, tau))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=beta[0] + beta[1] * x + u[group]), obs=y)

    x = RNG.normal(size=48)
    x = x + 0.3 * np.sign(x)
    with pytest.warns(ep.IdentifiabilityWarning, match=r"beta\[1\] \(the estimate diverges\)"):
        found = fit(program, (x > 0).astype(float), x, np.repeat(np.arange(8), 6))
    assert "beta[1]" in found.message
    assert np.isnan(found.standard_errors()["beta"][1])


@pytest.mark.exhaustive
def test_more_factors_than_variables_are_not_identified():
    """The law is any normal one then: its likelihood is that of the sample covariance."""

    def program(x):
        W = numpyro.sample("W", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        sd = numpyro.sample("sd", dist.HalfNormal(1.0).expand([2]).to_event(1))
        with numpyro.plate("n", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z @ W.T, sd).to_event(1), obs=x)

    x = RNG.normal(size=(40, 2)) @ np.array([[1.0, 0.6], [0.0, 1.0]])
    with pytest.warns(UserWarning) as told:
        found = fit(program, x)
    named = [str(w.message) for w in told if w.category is ep.IdentifiabilityWarning]
    assert named and "do not determine" in named[0] and "W[" in named[0]
    best = stats.multivariate_normal(np.zeros(2), x.T @ x / 40).logpdf(x).sum()
    assert found.log_likelihood == pytest.approx(best, abs=1e-6)


# -- Laplace ------------------------------------------------------------------------------------


def test_a_kink_in_the_mean_is_refused_by_name():
    def program(y):
        s = numpyro.sample("s", dist.HalfNormal(1.0))
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(jnp.abs(z), s), obs=y)

    model = ep.bind(program, RNG.normal(size=12))
    with pytest.raises(ep.ModelError, match=r"not smooth in 'z'.*ep\.nuts"):
        ep.fit(model, progress=False)


@pytest.mark.slow
def test_student_t_has_third_derivatives_at_its_location():
    laws = [lambda h: dist.StudentT(5.0, 0.2, jnp.exp(h / 2)), lambda h: dist.StudentT(4.0, h, 1.5)]
    for law, h in zip(laws, (0.3, 0.2), strict=True):
        for y in (0.2, 1.7):
            assert log_density(law(h), y) == pytest.approx(float(law(h).log_prob(y)), abs=1e-13)
            third = jax.grad(jax.grad(jax.grad(lambda h, y=y, law=law: log_density(law(h), y))))
            slope = jax.grad(jax.grad(lambda h, y=y, law=law: log_density(law(h), y)))
            differences = (slope(h + 1e-5) - slope(h - 1e-5)) / 2e-5
            assert third(h) == pytest.approx(float(differences), abs=1e-6)


@pytest.mark.exhaustive
def test_heavy_tails_with_zeros_and_holes_have_a_score():
    """Where y equals its location a power's third derivative is not a number."""

    def program(r):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        df = numpyro.sample("df", dist.Gamma(2.0, 0.1))
        with numpyro.plate("days", len(r)):
            h = numpyro.sample("h", dist.Normal(0.0, tau))
            numpyro.sample("r", dist.StudentT(df, 0.0, jnp.exp(h / 2)), obs=r)

    r = RNG.standard_t(5, size=40)
    r[3], r[7] = np.nan, 0.0
    model = ep.Laplace(3).adapted(ep.bind(program, r))
    point = {"tau": jnp.asarray(0.6), "df": jnp.asarray(6.0)}
    slope = jax.grad(model.objective)(point)
    for name, value in point.items():
        up, down = (model.objective({**point, name: value + e}) for e in (1e-5, -1e-5))
        assert slope[name] == pytest.approx(float(up - down) / 2e-5, rel=1e-5, abs=1e-6)


def bent(f):
    def program(y):
        s = numpyro.sample("s", dist.HalfNormal(1.0))
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(f(z), s), obs=y)

    return program


KINKS = {
    "max": lambda z: jnp.maximum(z, 0.0),
    "relu": jax.nn.relu,
    "clip": lambda z: jnp.clip(z, -0.5, 0.5),
    "where": lambda z: jnp.where(z > 0.3, 2.0 * z, z + 0.3),
}
SMOOTH = {
    "softplus": jax.nn.softplus,  # which has a maximum inside
    "logaddexp": lambda z: jnp.logaddexp(2.0 * z, 0.3),
    "a steep step": lambda z: jax.nn.sigmoid(200.0 * z),
    "a hinge with a round corner": lambda z: jnp.sqrt(z**2 + 1e-4),
    "waves": lambda z: jnp.sin(20.0 * z),
    "a corner of the second derivative": lambda z: jnp.maximum(z, 0.0) ** 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("f", KINKS.values(), ids=KINKS)
@pytest.mark.parametrize("size", [1, 12])
def test_kinks_are_found_wherever_they_stand(f, size):
    model = ep.bind(bent(f), np.linspace(-1.1, 2.0, size))
    assert isinstance(model.structure.integrals[0].rule, Unsolved)
    assert "maximum" in str(model.plan)
    with pytest.raises(ep.ModelError, match=r"not smooth in 'z'.*ep\.nuts"):
        ep.fit(model, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("f", SMOOTH.values(), ids=SMOOTH)
@pytest.mark.parametrize("size", [1, 12])
def test_what_is_smooth_is_integrated_around_its_mode(f, size):
    model = ep.bind(bent(f), np.linspace(-1.1, 2.0, size))
    assert isinstance(model.structure.integrals[0].rule, ep.Laplace)


def log_scales(y, tail):
    """Normal data whose log scales have heavy tails: where y is 0 their density has no top."""
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.StudentT(tail, 0.0, s))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(z)), obs=y)


@pytest.mark.slow
def test_a_search_for_a_mode_that_fails_is_counted_and_named():
    y = RNG.normal(size=12)
    y[[3, 7]] = 0.0
    with pytest.raises(ep.FitError, match="mode of 'z' was not found in 2 of 12 series, .* 3"):
        fit(log_scales, y, 3.0)


@pytest.mark.slow
def test_a_search_that_fails_is_told_at_the_end():
    """Here the approximation stays finite, so the run goes on: only the verdict can say it."""
    from emprob.integral.quadrature import MAX_ITERATIONS
    from emprob.integral.search import failures

    def slow(y):
        s = numpyro.sample("s", dist.HalfNormal(1.0))
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, 1e3))
            numpyro.factor("f", -jnp.exp(z - y) - 1e-9 * z**2)
            numpyro.sample("y", dist.Normal(0.0, s), obs=y)

    y = RNG.normal(size=6)
    y[2] = -2.0 * MAX_ITERATIONS
    model = ep.bind(slow, y)
    assert "1 of 6 series, first in number 2" in failures(model, {"s": 1.0})


# -- the driver ---------------------------------------------------------------------------------


class Still:
    """An M-step that does not move."""

    def __call__(self, model, params, posterior):
        return params

    def __hash__(self):
        return 1

    def __eq__(self, other):
        return isinstance(other, Still)


@pytest.mark.slow
def test_a_run_that_does_not_move_is_not_called_converged():
    with pytest.warns(ep.ConvergenceWarning, match="max_steps"):
        found = fit(autoregression, np.cumsum(RNG.normal(size=20)), method=ep.EM(mstep=Still()),
                    max_steps=3)  # fmt: skip
    assert not found.converged and found.score_norm > 1e-3


@pytest.mark.slow
def test_a_collapse_is_said_where_rounding_lowers_the_objective():
    """Two series that are one: noise and innovation collapse together."""

    def program(y):
        q = numpyro.sample("q", dist.HalfNormal(1.0))
        r = numpyro.sample("r", dist.HalfNormal(1.0))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, q))
            numpyro.sample("y", dist.Normal(x, r).expand([2]).to_event(1), obs=y)
            return x, None

        scan(step, jnp.zeros(()), y)

    one = np.cumsum(RNG.normal(size=30))
    with pytest.warns(UserWarning) as told:
        found = fit(program, np.c_[one, one], max_steps=300)
    assert any("r collapsed" in str(w.message) for w in told)
    assert found.status is ep.Status.DEGENERATE and "r collapsed" in found.message


@pytest.mark.slow
def test_newton_by_units_goes_on_where_one_unit_has_no_hessian():
    from emprob.ascent import newton_step_by_units

    def f(u):
        bent = jnp.maximum(u["a"][1] - 3.0, 0.0) ** 1.5  # its second derivative is inf times 0
        return -((u["a"] - 1.0) ** 2).sum() - bent

    start = {"a": jnp.array([0.0, 3.0, 0.5])}
    assert not np.isfinite(jax.hessian(lambda x: f({"a": x}))(start["a"])).all()
    moved = newton_step_by_units(f, start).u["a"]
    np.testing.assert_allclose(moved[jnp.array([0, 2])], 1.0)
