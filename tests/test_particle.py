"""Particle filters, backward simulation and particle Gibbs, against exact sums and integrals."""

import itertools
from functools import partial

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
from emprob.errors import ModelError
from emprob.integral.moments import moments
from emprob.particle.alarm import alarms
from emprob.particle.body import body_of
from emprob.particle.gibbs import init_path, sweep
from emprob.particle.guided import Automatic, Guided
from emprob.particle.paths import smooth
from emprob.particle.proposal import Bootstrap
from emprob.particle.settings import Settings
from emprob.simulation.draws import evened, mean_and_error


def walk(y):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def step(z, y):
        z = numpyro.sample("z", dist.Normal(phi * z, 0.7))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    scan(step, numpyro.sample("z0", dist.Normal(0.0, 1.0)), y)


def two_lags(y):
    a = numpyro.sample("a", dist.Uniform(0.0, 1.0))

    def step(carry, y):
        z1, z2, t = carry
        z = numpyro.sample("z", dist.Normal(a * z1 - 0.4 * z2 + 0.1 * t, 0.6))
        numpyro.sample("y", dist.Normal(z + 0.3 * z1, 0.5), obs=y)
        return (z, z1, t + 1), None

    first = numpyro.sample("first", dist.Normal(0.0, 1.0))
    scan(step, (first, numpyro.sample("second", dist.Normal(first, 1.0)), 0), y)


def volatility(r):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def day(h, x):
        h = numpyro.sample("h", dist.Normal(phi * h, 0.4))
        numpyro.sample("r", dist.Normal(0.0, jnp.exp(h / 2)), obs=x)
        return h, None

    scan(day, numpyro.sample("h0", dist.Normal(0.0, 1.0)), r)


def regimes(y):
    stay = numpyro.sample("stay", dist.Beta(8.0, 2.0).expand([2]).to_event(1))
    rows = jnp.stack([jnp.array([stay[0], 1 - stay[0]]), jnp.array([1 - stay[1], stay[1]])])

    def step(s, y):
        s = numpyro.sample("s", dist.Categorical(rows[s]))
        numpyro.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[s], 1.0), obs=y)
        return s, None

    scan(step, numpyro.sample("s0", dist.Categorical(jnp.array([0.5, 0.5]))), y)


def panel(y):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def step(z, y):
        with numpyro.plate("series", 3):
            z = numpyro.sample("z", dist.Normal(phi * z, 0.7))
            numpyro.sample("y", dist.Normal(z, 0.3), obs=y)
        return z, None

    with numpyro.plate("series", 3):
        start = numpyro.sample("z0", dist.Normal(0.0, 1.0))
    scan(step, start, y)


def switching(y):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def step(carry, y):
        s, z = carry
        s = numpyro.sample("s", dist.Bernoulli(jnp.where(s == 1, 0.8, 0.3)))
        z = numpyro.sample("z", dist.Normal(jnp.where(s == 1, phi, -0.2) * z + s, 0.5))
        numpyro.sample("y", dist.Normal(z, 0.4), obs=y)
        return (s, z), None

    scan(step, (jnp.array(1), jnp.array(0.5)), y)


def series(length, holes=(), seed=0):
    y = np.cumsum(np.random.default_rng(seed).normal(size=length)) * 0.5
    y[list(holes)] = np.nan
    return y


def smoothed(model, params, settings):
    """The smoother, for many keys."""
    run = partial(smooth, model, params, settings=settings)
    return jax.jit(lambda keys: jax.lax.map(run, keys, batch_size=8))


PHI = {"phi": jnp.array(0.8)}
LAGS = {"a": jnp.array(0.7)}


# -- the evidence -------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "proposal",
    [
        pytest.param(Bootstrap(), id="bootstrap"),
        pytest.param(Guided(6.0), id="guided", marks=pytest.mark.exhaustive),
    ],
)
def test_evidence_is_unbiased_and_its_variance_is_told(proposal, key):
    model = ep.bind(walk, series(16, holes=(4, 5)))
    exact = float(model.log_partition(PHI))
    settings = Settings(num_particles=128, num_paths=1, proposal=proposal)
    out = smoothed(model, PHI, settings)(jax.random.split(key, 200))
    ratio = np.exp(np.asarray(out.log_evidence) - exact)
    error = ratio.std() / np.sqrt(200)
    assert error < 0.05
    assert abs(ratio.mean() - 1.0) < 3 * error
    told, seen = np.mean(out.log_evidence_variance), np.var(out.log_evidence)
    assert 0.7 < told / seen < 1.4


@pytest.mark.slow
def test_guided_is_exact_for_a_gaussian_chain(key):
    model = ep.bind(walk, series(16, holes=(4,)))
    settings = Settings(num_particles=32, num_paths=4, proposal=Guided())
    out = smooth(model, PHI, key, settings)
    assert float(out.log_evidence) == pytest.approx(float(model.log_partition(PHI)), abs=1e-10)
    assert float(out.log_evidence_variance) < 1e-20
    np.testing.assert_allclose(out.ess, 32.0)


def grid_evidence(r, phi):
    """log p(r) of `volatility` by a grid on h."""
    h, width = np.linspace(-6.0, 6.0, 801, retstep=True)
    move = stats.norm.logpdf(h, phi * h[:, None], 0.4) + np.log(width)
    law = stats.norm.logpdf(h) + np.log(width)
    total = 0.0
    for x in r:
        law = logsumexp(law[:, None] + move, 0) + stats.norm.logpdf(x, 0.0, np.exp(h / 2))
        total += logsumexp(law)
        law = law - logsumexp(law)
    return total


@pytest.mark.exhaustive
def test_guided_beats_bootstrap_on_stochastic_volatility(key):
    r = np.random.default_rng(3).normal(size=60) * np.exp(0.5 * np.sin(np.arange(60) / 6.0))
    r[30] = 6.0  # an outlier that the bootstrap does not see coming
    model = ep.bind(volatility, r)
    exact = grid_evidence(r, 0.9)
    params = {"phi": jnp.array(0.9)}
    spread = {}
    for proposal in (Bootstrap(), Guided()):
        settings = Settings(num_particles=64, num_paths=1, num_islands=1, proposal=proposal)
        out = smoothed(model, params, settings)(jax.random.split(key, 100))
        ratio = np.exp(np.asarray(out.log_evidence) - exact)
        assert abs(ratio.mean() - 1.0) < 3.5 * ratio.std() / 10
        spread[proposal] = np.asarray(out.log_evidence).var()
    assert spread[Guided()] < spread[Bootstrap()] / 10


@pytest.mark.slow
def test_one_island_has_no_variance(key):
    settings = Settings(num_particles=16, num_paths=1, num_islands=1)
    out = smooth(ep.bind(walk, series(4)), PHI, key, settings)
    assert np.isnan(out.log_evidence_variance)


# -- the smoother -------------------------------------------------------------------------------


def against_exact(atoms, exact, site, slack):
    """Means, variances and neighbours' covariances of pooled paths, in Monte Carlo errors."""
    z = np.asarray(atoms).reshape(-1, *np.shape(exact.mean))
    sd = np.sqrt(np.asarray(exact.variance))
    assert np.abs((z.mean(0) - exact.mean) / sd).max() < slack, site
    assert np.abs(z.var(0) / exact.variance - 1.0).max() < 2 * slack, site
    if exact.pairwise is not None and z.ndim == 2:
        d = z - z.mean(0)
        lagged = (d[:, 1:] * d[:, :-1]).mean(0) / (sd[1:] * sd[:-1])
        expected = np.asarray(exact.pairwise).ravel() / (sd[1:] * sd[:-1])
        assert np.abs(lagged - expected).max() < 2 * slack, site


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("program", "params", "reach", "proposal"),
    [
        pytest.param(walk, PHI, 1, Bootstrap(), id="one lag"),
        pytest.param(walk, PHI, 1, Guided(6.0), id="one lag guided", marks=pytest.mark.exhaustive),
        pytest.param(two_lags, LAGS, 2, Bootstrap(), id="two lags"),
        pytest.param(
            two_lags, LAGS, 2, Guided(6.0), id="two lags guided", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_paths_have_the_exact_moments(program, params, reach, proposal, key):
    model = ep.bind(program, series(10, holes=(3,)))
    assert body_of(model, params).reach == reach
    settings = Settings(num_particles=256, num_paths=64, proposal=proposal)
    out = smoothed(model, params, settings)(jax.random.split(key, 40))
    for site, exact in moments(model, params, 0).items():
        against_exact(out.atoms[site], exact, site, slack=0.1)
    ratio = np.exp(np.asarray(out.log_evidence) - float(model.log_partition(params)))
    assert abs(ratio.mean() - 1.0) < 3.5 * ratio.std() / np.sqrt(40)


@pytest.mark.slow
def test_paths_go_where_evaluate_takes_them(key):
    model = ep.bind(walk, series(7))
    out = smooth(model, PHI, key, Settings(num_particles=64, num_paths=5))
    assert {k: v.shape for k, v in out.atoms.items()} == {"z": (5, 7), "z0": (5,)}
    found = jax.vmap(lambda z: model.evaluate(PHI, z).terms["z"].natural)(out.atoms)
    assert np.isfinite(found).all()
    assert out.ess.shape == out.distinct.shape == out.ancestors.shape == (7,)


@pytest.mark.exhaustive
def test_a_discrete_chain_against_forward_backward(key):
    y = np.array([-1.2, -0.3, 0.8, np.nan, 1.5, 0.1, -0.9])
    model = ep.bind(regimes, y)
    params = {"stay": jnp.array([0.8, 0.7])}
    settings = Settings(num_particles=256, num_paths=64, proposal=Bootstrap())
    out = smoothed(model, params, settings)(jax.random.split(key, 64))
    ratio = np.exp(np.asarray(out.log_evidence) - float(model.log_partition(params)))
    assert abs(ratio.mean() - 1.0) < 3 * ratio.std() / 8
    rows = np.array([[0.8, 0.2], [0.3, 0.7]])
    joint = np.zeros((2,) * 8)
    for path in itertools.product((0, 1), repeat=8):
        terms = [np.log(0.5)]
        for t, x in enumerate(y):
            terms.append(np.log(rows[path[t], path[t + 1]]))
            terms.append(0.0 if np.isnan(x) else stats.norm.logpdf(x, 2.0 * path[t + 1] - 1, 1.0))
        joint[path] = np.exp(sum(terms))
    joint /= joint.sum()
    assert out.atoms == {}
    s = np.asarray(out.discrete["s"]).reshape(-1, 7)
    for t in range(7):
        others = tuple(i for i in range(8) if i != t + 1)
        assert abs(s[:, t].mean() - joint.sum(others)[1]) < 0.02
        if t:
            pair = joint.sum(tuple(i for i in range(8) if i not in (t, t + 1)))
            assert abs((s[:, t] * s[:, t - 1]).mean() - pair[1, 1]) < 0.02
    assert abs(np.mean(out.discrete["s0"]) - joint.sum(tuple(range(1, 8)))[1]) < 0.02


@pytest.mark.exhaustive
def test_discrete_and_continuous_states_together(key):
    y = np.array([0.9, 1.4, -0.2, 0.3, 1.8])
    model = ep.bind(switching, y)
    logs, means = [], []
    for path in itertools.product((0, 1), repeat=5):  # a Kalman filter for each path
        previous, mean, var, total = 1, 0.5, 0.0, 0.0
        for s, x in zip(path, y, strict=True):
            total += stats.bernoulli.logpmf(s, 0.8 if previous else 0.3)
            slope = 0.8 if s else -0.2
            mean, var, previous = slope * mean + s, slope**2 * var + 0.25, s
            total += stats.norm.logpdf(x, mean, np.sqrt(var + 0.16))
            gain = var / (var + 0.16)
            mean, var = mean + gain * (x - mean), var * (1 - gain)
        logs.append(total)
        means.append(mean)
    weights = np.exp(logs - logsumexp(logs))
    settings = Settings(num_particles=512, num_paths=64)
    out = smoothed(model, PHI, settings)(jax.random.split(key, 64))
    ratio = np.exp(np.asarray(out.log_evidence) - logsumexp(logs))
    assert abs(ratio.mean() - 1.0) < 3 * ratio.std() / 8
    assert abs(np.mean(out.atoms["z"][..., -1]) - weights @ means) < 0.02
    paths = np.array(list(itertools.product((0, 1), repeat=5)))
    np.testing.assert_allclose(
        np.asarray(out.discrete["s"]).reshape(-1, 5).mean(0), weights @ paths, atol=0.02
    )


# -- independent filters --------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("program", [walk, panel])
def test_filters_count_by_their_evidence(program, key):
    """A few particles: filters that count alike are biased; by their evidence they are not."""
    y = 2.0 * np.stack([series(12, seed=s) for s in range(3)], 1)
    model = ep.bind(program, y if program is panel else y[:, 0])
    many = ep.Particle(
        proposal=Bootstrap(), num_particles=8, num_filters=4096, num_draws=4096, max_draws=4096
    )
    sample = jax.jit(lambda key: many.sample(model, PHI, many.init(model, PHI, key)))
    drawn, memory = sample(key)
    z = drawn.atoms["z"]
    values = (z[:, 1:] * z[:, :-1]).reshape(len(z), -1).sum(1)  # what the score of phi is made of
    exact = moments(model, PHI, 0)["z"]
    want = (exact.mean[1:] * exact.mean[:-1] + exact.pairwise.reshape(exact.mean[1:].shape)).sum()
    alike, error = mean_and_error(values, jnp.ones(4096))
    assert abs(alike - want) > 20 * error
    mean, error = mean_and_error(values, memory.weights)
    assert abs(mean - want) < 3.5 * error
    assert error < 0.25 * abs(alike - want)
    assert drawn.log_partition == pytest.approx(float(model.log_partition(PHI)), abs=0.2)
    even = evened(drawn)["z"]
    there = (even[:, 1:] * even[:, :-1]).reshape(len(even), -1).sum(1).mean()
    assert abs(there - want) < 0.25 * abs(alike - want) + 4 * error


@pytest.mark.exhaustive
def test_particles_grow_where_filters_disagree(key):
    y = np.cumsum(np.random.default_rng(3).normal(size=40)) * 0.6
    model, params = ep.bind(walk, y), PHI
    few = ep.Particle(proposal=Bootstrap(), num_particles=8, num_draws=1024).final()
    logs = few._evidences(model, params, key)
    assert logs.var(0).sum() > 1.0
    more = few.sized(model, params, key)
    assert more.num_particles > 8 and more.num_draws < few.num_draws
    assert more._evidences(model, params, key).var(0).sum() < 1.0
    assert any("count like" in s for s in few.alarms(model, params, few.init(model, params, key)))


# -- series in a plate --------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_series_are_filtered_one_by_one(key):
    y = np.stack([series(12, seed=s) for s in range(3)], 1)
    y[3, 1] = np.nan
    model = ep.bind(panel, y)
    assert body_of(model, PHI).layout.num_series == 3
    settings = Settings(num_particles=256, num_paths=64, proposal=Bootstrap())
    out = smoothed(model, PHI, settings)(jax.random.split(key, 64))
    for site, exact in moments(model, PHI, 0).items():
        against_exact(out.atoms[site], exact, site, slack=0.08)
    ratio = np.exp(np.asarray(out.log_evidence) - float(model.log_partition(PHI)))
    assert abs(ratio.mean() - 1.0) < 3.5 * ratio.std() / 8
    assert 0.6 < np.mean(out.log_evidence_variance) / np.var(out.log_evidence) < 1.6


@pytest.mark.exhaustive
def test_series_that_meet_are_one(key):
    def program(y):
        phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

        def step(z, y):
            with numpyro.plate("series", 3):
                z = numpyro.sample("z", dist.Normal(phi * z.mean(), 0.7))
                numpyro.sample("y", dist.Normal(z, 0.8), obs=y)
            return z, None

        scan(step, jnp.zeros(3), y)

    model = ep.bind(program, np.stack([series(6, seed=s) for s in range(3)], 1))
    assert body_of(model, PHI).layout.num_series == 1
    out = smooth(model, PHI, key, Settings(32, 4, proposal=Guided()))
    assert float(out.log_evidence) == pytest.approx(float(model.log_partition(PHI)), abs=1e-9)


@pytest.mark.exhaustive
def test_guided_series(key):
    y = np.stack([series(12, seed=s) for s in range(3)], 1)
    model = ep.bind(panel, y)
    settings = Settings(num_particles=32, num_paths=4, proposal=Guided())
    out = smooth(model, PHI, key, settings)
    assert float(out.log_evidence) == pytest.approx(float(model.log_partition(PHI)), abs=1e-9)


# -- particle Gibbs -----------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("program", "params", "proposal"),
    [
        pytest.param(walk, PHI, Bootstrap(), id="one lag"),
        pytest.param(walk, PHI, Guided(6.0), id="one lag guided", marks=pytest.mark.exhaustive),
        pytest.param(two_lags, LAGS, Bootstrap(), id="two lags", marks=pytest.mark.exhaustive),
        pytest.param(
            two_lags, LAGS, Guided(6.0), id="two lags guided", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_sweeps_leave_the_smoother_invariant(program, params, proposal, key):
    model = ep.bind(program, series(8, holes=(3,)))
    settings = Settings(num_particles=6, num_islands=1, num_paths=1, proposal=proposal)
    starts = jax.vmap(lambda k: init_path(model, params, k, settings))(jax.random.split(key, 32))

    @jax.jit
    def chains(paths, key):
        def step(paths, key):
            one = partial(sweep, model, params, settings=settings)
            paths = jax.vmap(one)(jax.random.split(key, 32), paths)
            return paths, paths

        return jax.lax.scan(step, paths, jax.random.split(key, 300))[1]

    drawn = chains(starts, key)
    for site, exact in moments(model, params, 0).items():
        against_exact(drawn[site][20:], exact, site, slack=0.08)
    z = np.asarray(drawn["z"])
    moved = (z[1:, :, 0] != z[:-1, :, 0]).mean()  # the first step, which a plain one would keep
    assert moved > 0.5


def test_sweep_wants_a_whole_path(key):
    model = ep.bind(walk, series(4))
    with pytest.raises(ModelError, match="expected a path with the latents"):
        sweep(model, PHI, key, {"z": jnp.zeros(4)}, Settings(16, 1, 1))


# -- programs of other shapes -------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_filter_that_degenerates_says_so(key):
    def program(y):
        q = numpyro.sample("q", dist.HalfNormal(1.0))

        def step(z, y):
            z = numpyro.sample("z", dist.Normal(z, q).to_event(1))
            numpyro.sample("y", dist.Normal(z, 0.02).to_event(1), obs=y)
            return z, None

        scan(step, jnp.zeros(6), y)

    y = np.cumsum(np.random.default_rng(4).normal(size=(15, 6)), 0)
    model, params = ep.bind(program, y), {"q": jnp.array(1.0)}
    settings = Settings(256, 32, proposal=Bootstrap())
    said = alarms(smooth(model, params, key, settings), 256)
    assert any("effective sample size" in s and "at step" in s for s in said)
    assert any("Log-evidence" in s for s in said)
    alone = Settings(256, 32, num_islands=1, proposal=Bootstrap())
    said = alarms(smooth(model, params, key, alone), 256)
    assert any("different particles" in s for s in said)
    settings = Settings(64, 16, proposal=Guided())
    assert alarms(smooth(model, params, key, settings), 64) == ()


def noises(y):
    """The state is a function of all noises so far."""
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def step(z, y):
        z = phi * z + 0.7 * numpyro.sample("e", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    scan(step, jnp.array(0.3), y)


@pytest.mark.exhaustive
def test_a_carry_that_never_forgets(key):
    y = series(8)
    model = ep.bind(noises, y)
    assert body_of(model, PHI).reach is None
    with pytest.raises(ModelError, match="Carry the state itself"):
        smooth(model, PHI, key, Settings(64, 4))
    with pytest.raises(ModelError, match="Carry the state itself"):
        smooth(model, PHI, key, Settings(64, 4, horizon=8, proposal=Guided()))
    out = smoothed(model, PHI, Settings(256, 64, horizon=8))(jax.random.split(key, 64))
    root = np.tril(0.8 ** np.subtract.outer(np.arange(8), np.arange(8)))  # z = mean + 0.7 root e
    mean = 0.3 * 0.8 ** np.arange(1, 9)
    precision = np.eye(8) + 0.49 * root.T @ root / 0.25
    cov = np.linalg.inv(precision)
    expected = cov @ (0.7 * root.T @ (y - mean) / 0.25)
    e = np.asarray(out.atoms["e"]).reshape(-1, 8)
    assert np.abs(e.mean(0) - expected).max() < 0.06
    assert np.abs(np.cov(e.T) - cov).max() < 0.08


@pytest.mark.exhaustive
def test_positive_latents_and_counts(key):
    def program(n):
        phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

        def step(rate, n):
            rate = numpyro.sample("rate", dist.LogNormal(phi * jnp.log(rate), 0.4))
            numpyro.sample("n", dist.Poisson(rate), obs=n)
            return rate, None

        scan(step, jnp.array(1.0), n)

    model = ep.bind(program, np.array([1, 0, 2, 5, 3, 0, 1]))
    settings = Settings(512, 64, proposal=Bootstrap())
    plain = smoothed(model, PHI, settings)(jax.random.split(key, 32))
    guided = Settings(512, 64, proposal=Guided(8.0))
    other = smoothed(model, PHI, guided)(jax.random.split(key, 32))
    for f in (np.log, np.square):
        a, b = (f(np.asarray(x.atoms["rate"])).reshape(-1, 7) for x in (plain, other))
        np.testing.assert_allclose(a.mean(0), b.mean(0), atol=0.1 * a.std(0).max())
    a, b = (np.exp(np.asarray(x.log_evidence)) for x in (plain, other))
    gap = np.hypot(a.std(), b.std()) / np.sqrt(32)
    assert abs(a.mean() - b.mean()) < 3.5 * gap
    assert b.std() < a.std() / 3


@pytest.mark.exhaustive
def test_data_in_the_carry_and_masks(key):
    """An autoregression on the data beside a hidden level, in a ragged panel."""

    def program(y, seen):
        phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

        def step(carry, x):
            z, before = carry
            y, seen = x
            with numpyro.plate("series", 2), numpyro.handlers.mask(mask=seen):
                z = numpyro.sample("z", dist.Normal(phi * z, 0.5))
                numpyro.sample("y", dist.Normal(z + 0.4 * before, 0.6), obs=y)
            return (z, y), None

        scan(step, (jnp.zeros(2), jnp.zeros(2)), (y, seen))

    y = np.stack([series(9), series(9, seed=1)], 1)
    seen = np.ones((9, 2), bool)
    seen[6:, 1] = False
    model = ep.bind(program, y, seen)
    exact = float(model.log_partition(PHI))
    out = smooth(model, PHI, key, Settings(32, 4, proposal=Guided()))
    assert float(out.log_evidence) == pytest.approx(exact, abs=1e-9)
    out = smoothed(model, PHI, Settings(256, 1, proposal=Bootstrap()))(jax.random.split(key, 64))
    ratio = np.exp(np.asarray(out.log_evidence) - exact)
    assert abs(ratio.mean() - 1.0) < 3.5 * ratio.std() / 8


@pytest.mark.exhaustive
def test_observations_outside_the_scan_count(key):
    def program(y, x):
        phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
        start = numpyro.sample("z0", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(start, 0.5), obs=x)

        def step(z, y):
            z = numpyro.sample("z", dist.Normal(phi * z, 0.7))
            numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
            return z, None

        scan(step, start, y)
        numpyro.sample("more", dist.Normal(phi, 1.0), obs=1.3)

    model = ep.bind(program, series(5), np.array(0.7))
    out = smooth(model, PHI, key, Settings(32, 4, proposal=Guided()))
    assert float(out.log_evidence) == pytest.approx(float(model.log_partition(PHI)), abs=1e-9)


@pytest.mark.exhaustive
def test_parameters_with_a_value_for_each_step(key):
    def program(y):
        phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

        def step(z, y):
            shift = numpyro.param("shift", jnp.array(0.0))
            z = numpyro.sample("z", dist.Normal(phi * z + shift, 0.7))
            numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
            return z, None

        scan(step, jnp.array(0.0), y)

    model = ep.bind(program, series(5))
    params = PHI | {"shift": jnp.array([0.3, -1.0, 0.5, 2.0, 0.0])}
    assert np.shape(model.notes.value.initial["shift"]) == (5,)
    out = smooth(model, params, key, Settings(32, 4))
    assert float(out.log_evidence) == pytest.approx(float(model.log_partition(params)), abs=1e-9)


@pytest.mark.exhaustive
def test_automatic_guides_what_it_can(key):
    chain, switch = ep.bind(walk, series(6)), ep.bind(switching, series(6))
    settings = Settings(32, 4, proposal=Automatic())
    assert float(smooth(chain, PHI, key, settings).log_evidence_variance) < 1e-20
    assert float(smooth(switch, PHI, key, settings).log_evidence_variance) > 1e-6


# -- refused ------------------------------------------------------------------------------------


def used_after(y):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def step(z, y):
        z = numpyro.sample("z", dist.Normal(phi * z, 0.7))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, z

    last, path = scan(step, jnp.array(0.0), y)
    numpyro.sample("sum", dist.Normal(path.sum(), 1.0), obs=2.0)


def captured(y):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
    shift = numpyro.sample("shift", dist.Normal(phi, 1.0))

    def step(z, y):
        z = numpyro.sample("z", dist.Normal(phi * z + shift, 0.7))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    scan(step, jnp.array(0.0), y)


def no_scan(y):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, tau))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (used_after, "site 'sum' stands after the scan"),
        (captured, "latent 'shift' stands outside the scan"),
        (no_scan, "the program has no scan"),
    ],
)
def test_refused_by_name(program, said, key):
    model = ep.bind(program, series(6))
    params = {k: jnp.array(0.5) for k in model.params}
    with pytest.raises(ModelError, match=said):
        smooth(model, params, key, Settings(16, 2))


def test_guided_refuses_discrete_latents(key):
    model = ep.bind(regimes, series(6))
    with pytest.raises(ModelError, match="latent 's0' is discrete"):
        smooth(model, {"stay": jnp.full(2, 0.8)}, key, Settings(16, 2, proposal=Guided()))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="share evenly"):
        Settings(num_particles=100, num_islands=8)
    with pytest.raises(ValueError, match="threshold"):
        Settings(threshold=2.0)
    with pytest.raises(ValueError, match="degrees"):
        Guided(degrees=-1.0)


@pytest.mark.slow
def test_one_key_one_answer_and_no_retrace(key):
    model = ep.bind(walk, series(6))
    count = []

    @jax.jit
    def run(model, params, key):
        count.append(1)
        return smooth(model, params, key, Settings(32, 4))

    a, b = run(model, PHI, key), run(model, PHI, key)
    np.testing.assert_array_equal(a.atoms["z"], b.atoms["z"])
    run(ep.bind(walk, series(6)), {"phi": jnp.array(0.5)}, key)
    assert len(count) == 1
