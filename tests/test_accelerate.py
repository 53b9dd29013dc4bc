"""Accelerators: what they compute, what they cost, what they say of it, and what they refuse."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import emprob as ep
from emprob.accelerate import anderson, annealed, quasi_newton, safeguard, secants
from emprob.curvature import information
from emprob.em import Step
from emprob.estep.enumerate import posterior_of
from emprob.types import Capabilities

START = {"pi": np.array([0.5, 0.5]), "mu": np.array([-0.5, 1.0]), "s": np.array(1.0)}
ACCELERATORS = {
    "Squarem": ep.Squarem,
    "Damped": ep.Damped,
    "Anderson": ep.Anderson,
    "QuasiNewton": ep.QuasiNewton,
}


def mixture(y):
    pi = numpyro.sample("pi", dist.Dirichlet(2.0 * jnp.ones(2)))
    with numpyro.plate("k", 2):
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    s = numpyro.sample("s", dist.InverseGamma(2.0, 1.0))
    with numpyro.plate("n", y.shape[0]):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.Normal(mu[z], jnp.sqrt(s)), obs=y)


def overlapping():
    rng = np.random.default_rng(7)
    return np.where(rng.random(800) < 0.4, rng.normal(-0.8, 1.0, 800), rng.normal(0.8, 1.0, 800))


@pytest.fixture(scope="module")
def model():
    """A mixture of two laws 1.6 standard deviations apart: EM is slow."""
    return ep.bind(mixture, overlapping())


@pytest.fixture(scope="module")
def slow(model):
    return run(model, ep.EM())


def run(model, method, **more):
    options = {"init": START, "max_steps": 5000, "progress": False} | more
    return ep.fit(model, method, **options)


# -- against EM ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCELERATORS)
def test_fewer_maps_to_the_same_optimum(name, model, slow):
    found = run(model, ACCELERATORS[name](ep.EM()))
    assert found.converged
    assert found.objective == pytest.approx(slow.objective, abs=1e-8)
    assert found.num_maps < slow.num_maps / (1.5 if name == "Damped" else 5)


@pytest.mark.slow
def test_a_factor_of_one_is_em(model, slow):
    with pytest.warns(ep.ConvergenceWarning):
        found = run(model, ep.Damped(ep.EM(), factor=1.0), max_steps=50)
    np.testing.assert_allclose(
        found.trace["objective"][:50], slow.trace["objective"][:50], rtol=1e-12
    )


@dataclass(frozen=True)
class Counted:
    """The exact E-step, which counts how often it runs."""

    calls: tuple = ("a name for the counter",)

    @property
    def capabilities(self):
        return Capabilities(exact=True, deterministic=True, memoryless=True)

    def __call__(self, model, params):
        COUNTED.append(0) if not COUNTED else None
        posterior = ep.Enumerate()(model, params)
        jax.debug.callback(_count, posterior.log_partition)
        return posterior


COUNTED = [0]


def _count(_):
    COUNTED[0] += 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCELERATORS)
def test_every_map_is_counted(name, model):
    COUNTED[0] = 0
    found = run(model, ACCELERATORS[name](ep.EM(Counted())))
    jax.effects_barrier()
    assert COUNTED[0] == found.num_maps


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCELERATORS)
def test_the_distance_that_is_told_is_the_distance(name, model):
    """Along the run, against the exact score and information at the same parameters."""
    ratios, params = [], {k: jnp.asarray(v) for k, v in START.items()}
    for state, info in ep.steps(model, ACCELERATORS[name](ep.EM()), init=START):
        exact = information(model, {k: np.asarray(v) for k, v in params.items()}).score_norm
        if exact < 1e-7:
            break
        if exact < 0.05:
            ratios.append(float(info.score_norm) / exact)
        params = state.params
    assert len(ratios) > 2
    assert np.min(ratios) > 0.3, ratios
    assert np.max(ratios[-2:]) < 20.0, ratios


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::emprob.errors.ConvergenceWarning")
def test_a_run_in_float32():
    """Near the optimum, as far as float32 sees; and whatever it says of that is no exception."""
    model = ep.bind(mixture, overlapping()[:100])
    best = run(model, ep.EM())
    for method in (ep.Anderson(), ep.QuasiNewton(), ep.HandOver(), ep.Annealed(start=0.7)):
        found = run(model, method, dtype="float32", tol=1e-2)
        assert found.objective == pytest.approx(best.objective, abs=1e-3), method


@pytest.mark.exhaustive
def test_common_random_numbers_are_accelerated():
    """The remedy that a refusal names works: both climb one simulated likelihood."""

    def effects(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        with numpyro.plate("n", len(y)):
            b = numpyro.sample("b", dist.Normal(mu, 1.0))
            numpyro.sample("y", dist.Normal(b, 1.0), obs=y)

    model = ep.bind(effects, np.array([-1.0, 0.5, 2.0, 4.0]))
    estep = ep.FixedKey(ep.MonteCarlo(ep.Importance()))
    plain, fast = (
        ep.fit(model, m, progress=False) for m in (ep.EM(estep), ep.Anderson(ep.EM(estep)))
    )
    assert fast.objective >= plain.objective - 1e-6
    assert fast.params["mu"] == pytest.approx(plain.params["mu"], abs=1e-3)


# -- the algebra ---------------------------------------------------------------------------------


@pytest.fixture
def quadratic():
    """Differences and a point on a quadratic objective whose EM is exact: move = score / I_c."""
    rng = np.random.default_rng(3)
    size, rows = 6, 4
    root = rng.normal(size=(size, size))
    observed = root @ root.T + np.eye(size)
    complete = observed + np.diag(rng.uniform(1.0, 5.0, size))
    u = rng.normal(size=(rows, size))
    score = -u @ observed
    here = rng.normal(size=size)
    slope = -observed @ here
    one = jnp.ones(())
    memory = secants.Secants(
        jnp.asarray(u), jnp.asarray(score), jnp.asarray(np.linalg.solve(complete, score.T).T),
        jnp.asarray(rows), one,
    )  # fmt: skip
    step = Step(
        one, one, {"x": jnp.asarray(here)}, {"x": jnp.asarray(slope)},
        {"x": jnp.asarray(np.linalg.solve(complete, slope))},
    )  # fmt: skip
    return memory, safeguard.Point({}, {}, step), observed, complete


def test_the_two_loops_are_bfgs(quadratic):
    memory, point, _, complete = quadratic
    inverse = np.linalg.inv(complete)
    for s, y in zip(np.asarray(memory.u), -np.asarray(memory.score), strict=True):
        rho = 1.0 / (s @ y)
        left = np.eye(len(s)) - rho * np.outer(s, y)
        inverse = left @ inverse @ left.T + rho * np.outer(s, s)
    want = inverse @ np.asarray(point.score)
    np.testing.assert_allclose(quasi_newton._direction(memory, point), want, rtol=1e-9)


def test_anderson_is_least_squares_in_the_metric_of_the_complete_data(quadratic):
    memory, point, _, complete = quadratic
    root = np.linalg.cholesky(complete).T
    F, f = root @ np.asarray(memory.move).T, root @ np.asarray(point.move)
    want = np.linalg.lstsq(F, f, rcond=None)[0]
    free, ridged = anderson._coefficients(memory, point, jnp.asarray(0.3))
    np.testing.assert_allclose(free, want, rtol=1e-8)
    size = np.linalg.norm(F, axis=0)
    assert np.sum((ridged * size) ** 2) == pytest.approx(0.3 * np.sum((want * size) ** 2), rel=1e-6)


@pytest.mark.slow
def test_rows_that_are_not_in_use_do_not_count(quadratic):
    memory, point, *_ = quadratic
    short = memory._replace(count=jnp.asarray(2))
    cut = secants.Secants(*(x[2:] for x in memory[:3]), jnp.asarray(2), memory.stretch)
    np.testing.assert_allclose(
        quasi_newton._direction(short, point), quasi_newton._direction(cut, point), rtol=1e-12
    )
    share = jnp.asarray(1.0)
    a, b = (anderson._coefficients(s, point, share)[0] for s in (short, cut))
    np.testing.assert_allclose(a[2:], b, rtol=1e-8)
    np.testing.assert_array_equal(a[:2], 0.0)


def test_order_adapts_to_the_number_of_parameters(model):
    params = {k: jnp.asarray(v) for k, v in START.items()}
    state = ep.Anderson(ep.EM(), memory=10).init(model, params)
    assert len(state.memory.memory.secants.u) == 2  # half of four parameters


def test_what_em_holds_at_zero_stays_there():
    safe = {"a": jnp.array([0.0, 1.0, 2.0])}
    got = safeguard.kept({"a": jnp.array([0.1, jnp.nan, 3.0])}, safe)
    np.testing.assert_array_equal(got["a"], [0.0, 1.0, 3.0])


# -- handing over to Newton ----------------------------------------------------------------------


@pytest.mark.slow
def test_newton_takes_over_and_doubles_the_digits(model, slow):
    found = run(model, ep.HandOver(ep.EM()), tol=1e-9)
    assert found.converged
    assert found.objective == pytest.approx(slow.objective, abs=1e-8)
    maps = found.trace["num_maps"]
    newton = maps > 1
    assert set(maps[newton]) == {1 + 4}  # a gradient, and a column for each parameter
    assert 1 < newton.sum() < 8
    assert newton[np.argmax(newton) :].all(), "EM came back"
    assert np.all(np.diff(found.trace["objective"]) > -1e-9)
    norms = found.trace["score_norm"][newton]
    assert norms[-1] < max(10 * norms[-2] ** 2, 1e-11)


@pytest.mark.slow
def test_the_distance_says_when(model):
    early = run(model, ep.HandOver(ep.EM(), distance=1.0))
    late = run(model, ep.HandOver(ep.EM(), distance=1e-3))
    assert early.num_steps < late.num_steps


# -- annealing -----------------------------------------------------------------------------------


def clusters(y, K):
    pi = numpyro.sample("pi", dist.Dirichlet(5.0 * jnp.ones(K)))
    with numpyro.plate("k", K):
        mu = numpyro.sample("mu", dist.Normal(0.0, 20.0))
    with numpyro.plate("n", y.shape[0]):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


CENTRES = [-15.0, -5.0, 5.0, 15.0]


@pytest.fixture(scope="module")
def far_apart():
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(m, 1.0, 50) for m in CENTRES])
    bad = {"pi": np.full(4, 0.25), "mu": np.array([-16.0, -14.0, -5.0, 10.0])}
    return ep.bind(clusters, y, 4), bad


@pytest.mark.slow
def test_annealing_leaves_a_local_optimum(far_apart):
    model, bad = far_apart
    stuck = run(model, ep.EM(), init=bad)
    found = run(model, ep.Annealed(ep.EM(), start=0.02), init=bad)
    assert stuck.converged
    assert found.converged
    assert found.objective > stuck.objective + 1000
    np.testing.assert_allclose(np.sort(found.params["mu"]), CENTRES, atol=0.5)


@pytest.mark.slow
def test_while_annealing_the_objective_is_told_as_it_is(far_apart):
    model, bad = far_apart
    method = ep.Annealed(ep.EM(), start=0.02)
    params, fell = {k: jnp.asarray(v) for k, v in bad.items()}, 0
    for i, (state, info) in enumerate(ep.steps(model, method, init=bad)):
        assert float(info.objective) == pytest.approx(float(model.objective(params)), rel=1e-12)
        fell += float(model.objective(state.params)) < float(info.objective)
        assert np.isinf(info.score_norm) == (i < method.warmup)
        params = state.params
        if i == method.warmup + 2:
            break
    assert fell > 0


@pytest.mark.slow
def test_a_flat_posterior_is_a_power_of_the_joint():
    y = np.array([-1.0, 0.5, 2.0])
    model = ep.bind(mixture, y)
    params = {k: jnp.asarray(v) for k, v in START.items()}
    got = posterior_of(annealed.tempered(model.evaluate(params), jnp.asarray(0.3))).weights["z"]
    joint = START["pi"] * np.exp(-0.5 * (y[:, None] - START["mu"]) ** 2)
    want = joint**0.3 / (joint**0.3).sum(1, keepdims=True)
    np.testing.assert_allclose(np.asarray(got).reshape(2, -1).sum(1), want.sum(0), rtol=1e-12)


def test_annealing_stopped_halfway_says_so(far_apart):
    model, bad = far_apart
    with pytest.warns(ep.ConvergenceWarning):
        found = run(model, ep.Annealed(ep.EM(), start=0.02), init=bad, max_steps=10)
    assert found.status is ep.Status.MAX_STEPS


@pytest.mark.slow
def test_components_that_are_one_part_again(far_apart):
    """At a low beta all components become the same; without noise, a saddle point is the end."""
    model, bad = far_apart
    same = {"pi": np.full(4, 0.25), "mu": np.zeros(4)}
    found = run(model, ep.Annealed(ep.EM(), start=0.002), init=same)
    np.testing.assert_allclose(np.sort(found.params["mu"]), CENTRES, atol=0.5)
    with pytest.warns(ep.ConvergenceWarning):
        stuck = run(model, ep.Annealed(ep.EM(), start=0.002, jitter=0.0), init=same)
    assert stuck.status is ep.Status.SADDLE


@pytest.mark.exhaustive
def test_chains_are_annealed():
    """Noise and power reach the log-factors of a chain; its end is an optimum of the chain."""

    def chain(y):
        with numpyro.plate("k", 2):
            A = numpyro.sample("A", dist.Dirichlet(2.0 * jnp.ones(2)))
            mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))

        def body(z, y):
            z = numpyro.sample("z", dist.Categorical(A[z]))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
            return z, None

        scan(body, 0, y)

    rng = np.random.default_rng(1)
    y = np.repeat([0.0, 4.0, 0.0, 4.0], 20) + rng.normal(size=80)
    model = ep.bind(chain, y)
    same = {"A": np.full((2, 2), 0.5), "mu": np.array([2.0, 2.0])}
    found = run(model, ep.Annealed(ep.EM(), start=0.1), init=same)
    assert found.converged
    np.testing.assert_allclose(np.sort(found.params["mu"]), [0.0, 4.0], atol=0.5)


@pytest.mark.slow
def test_starts_are_annealed_once(far_apart):
    """The race runs past the annealing; the best goes on as plain EM."""
    model, _ = far_apart
    method = ep.Annealed(ep.EM(), start=0.02)
    found = ep.fit(model, method, key=3, num_starts=3, progress=False)
    assert found.converged
    assert np.isinf(found.trace["score_norm"]).sum() == method.warmup
    np.testing.assert_allclose(np.sort(found.params["mu"]), CENTRES, atol=0.5)


# -- what makes no sense -------------------------------------------------------------------------


@dataclass(frozen=True)
class Fresh:
    """An E-step that draws anew each time."""

    @property
    def capabilities(self):
        return Capabilities(exact=False, deterministic=False, memoryless=True)

    def __call__(self, model, params):
        raise AssertionError("never called")


@dataclass(frozen=True)
class Steady(Fresh):
    """One that draws the same each time, of an objective that is not the model's."""

    @property
    def capabilities(self):
        return Capabilities(exact=False, deterministic=True, memoryless=True)


WRAPPERS = (*ACCELERATORS.values(), ep.HandOver, ep.Annealed)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_fresh_draws_are_refused_with_the_remedy(wrapper):
    with pytest.raises(ValueError, match=r"ep\.FixedKey\(Fresh\(\)\)"):
        wrapper(ep.EM(Fresh()))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("inner", [ep.MAP(), None, ep.EM, "em"])
def test_what_is_no_em_is_refused(wrapper, inner):
    with pytest.raises(ValueError, match=r"expected an EM.*ep\.EM\(\)"):
        wrapper(inner)


@pytest.mark.parametrize("wrapper", ACCELERATORS.values())
def test_accelerators_do_not_stack(wrapper):
    with pytest.raises(ValueError, match="do not stack"):
        wrapper(ep.Squarem(ep.EM()))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ep.Anderson(ep.EM(), memory=0), r"memory=0.*integer >= 1"),
        (lambda: ep.QuasiNewton(ep.EM(), memory=2.5), r"memory=2\.5.*integer"),
        (lambda: ep.Damped(ep.EM(), factor=2.0), r"factor=2\.0.*factor < 2"),
        (lambda: ep.HandOver(ep.EM(), distance=0.0), r"distance=0\.0"),
        (lambda: ep.HandOver(ep.EM(), finish=ep.EM()), r"ep\.MAP\(\)"),
        (lambda: ep.HandOver(ep.EM(Steady())), r"ep\.QuasiNewton"),
        (lambda: ep.HandOver(ep.HandOver(ep.EM())), "expected an EM"),
        (lambda: ep.HandOver(ep.Annealed(ep.EM())), "expected an EM"),
        (lambda: ep.Annealed(ep.EM(), start=1.0), r"start < 1"),
        (lambda: ep.Annealed(ep.EM(), growth=0.9), r"growth=0\.9"),
        (lambda: ep.Annealed(ep.EM(), jitter=-1.0), r"jitter=-1\.0"),
        (lambda: ep.Annealed(ep.EM(ep.Laplace())), "num_starts"),
        (lambda: ep.Annealed(ep.Annealed(ep.EM())), "expected an EM"),
    ],
)
def test_settings_that_make_no_sense_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_annealing_over_continuous_latents_is_refused_by_name():
    def effects(y):
        tau = numpyro.sample("tau", dist.HalfNormal(2.0))
        with numpyro.plate("n", len(y)):
            b = numpyro.sample("b", dist.Normal(0.0, tau))
            numpyro.sample("y", dist.Normal(b, 1.0), obs=y)

    model = ep.bind(effects, np.array([-1.0, 0.5, 2.0]))
    with pytest.raises(ep.ModelError, match=r"b.*continuous.*num_starts"):
        ep.fit(model, ep.Annealed(ep.EM()), progress=False)


@pytest.mark.exhaustive
def test_the_rule_of_an_inner_estep_reaches_the_model():
    """Laplace's order is the E-step's, however deep the accelerators."""

    def counts(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfNormal(2.0))
        with numpyro.plate("n", len(y)):
            b = numpyro.sample("b", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)

    model = ep.bind(counts, np.array([0, 1, 3, 8, 2, 2, 30, 1]))
    method = ep.HandOver(ep.QuasiNewton(ep.EM(ep.Laplace(5))))
    found = ep.fit(model, method, progress=False)
    assert found.model.structure.integrals[0].rule == ep.Laplace(5)
    best = ep.fit(replace(found.model), ep.MAP(), progress=False)
    assert found.objective == pytest.approx(best.objective, abs=1e-8)
