"""E-steps by simulation: their draws, weights, statistics and Monte Carlo errors."""

import importlib
import warnings
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.autoguide import AutoMultivariateNormal
from scipy.integrate import quad
from scipy.optimize import minimize

import emprob as ep
from emprob import settle
from emprob.bind import random_params
from emprob.estep.simulated import Simulated
from emprob.integral.expectation import problem
from emprob.louis import batch_moments_at, louis
from emprob.objective import score
from emprob.posterior import marginals
from emprob.report import jackknife
from emprob.secant import End, secant
from emprob.simulation.draws import alike, log_joint, mean_and_error, plain, posterior_at
from emprob.simulation.gaussian import coloured, near, whitened
from emprob.simulation.pathwise import pathwise
from emprob.simulation.statistics import number_of_statistics, reference, shares
from emprob.types import Sample, SimulatedEStep

RNG = np.random.default_rng(0)
RNG_KEY = jax.random.key(0)
GROUP = np.repeat(np.arange(6), 5)
Y = 1.0 + 1.5 * RNG.normal(size=6)[GROUP] + RNG.normal(size=30)
SMALL = {"num_draws": 64, "max_draws": 512, "final_draws": 2048}


def intercepts(y, g):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    s = numpyro.sample("s", dist.HalfNormal(5.0))
    with numpyro.plate("groups", 6):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu + b[g], s), obs=y)


def volatility(y):
    phi = numpyro.sample("phi", dist.Beta(20.0, 1.5))
    s = numpyro.sample("s", dist.HalfNormal(1.0))

    def step(h, y):
        h = numpyro.sample("h", dist.Normal(phi * h, s))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=y)
        return h, None

    h0 = numpyro.sample("h0", dist.Normal(0.0, s / jnp.sqrt(1 - phi**2)))
    scan(step, h0, y)


def outliers(y, g):
    """A discrete latent deeper than the continuous one: no exact E-step."""
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    rate = numpyro.sample("rate", dist.Beta(1.0, 3.0))
    with numpyro.plate("groups", 6):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("n", len(y)):
        o = numpyro.sample("o", dist.Bernoulli(rate))
        numpyro.sample("y", dist.Normal(b[g], 0.7 + 4.0 * o), obs=y)


def series(seed, length=40):
    rng = np.random.default_rng(seed)
    h = np.zeros(length)
    for t in range(1, length):
        h[t] = 0.9 * h[t - 1] + 0.4 * rng.normal()
    return np.exp(h / 2) * rng.normal(size=length)


def at(**params):
    return {k: jnp.asarray(v, float) for k, v in params.items()}


@pytest.fixture(scope="module")
def random_effects():
    return plain(ep.bind(intercepts, Y, GROUP))


@pytest.fixture(scope="module")
def chain():
    return plain(ep.bind(volatility, series(1)))


PARAMS = at(mu=1.0, tau=1.2, s=0.9)
VOL = at(phi=0.9, s=0.4)


def drawn(kernel, model, params, num, key=0):
    """Draws of a kernel, and log Z or NaN."""
    run = jax.jit(lambda m, p, k: kernel.draw(m, p, kernel.init(m, p, k), jax.random.fold_in(k, 1),
                                              num))  # fmt: skip
    atoms, value, _ = run(model, params, jax.random.PRNGKey(key))
    return atoms, value


# -- draws ----------------------------------------------------------------------------------------


KERNELS = {"NUTS": ep.NUTS(), "Importance": ep.Importance()}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_draws_have_the_moments_of_the_posterior(kernel, random_effects):
    exact = marginals(random_effects, PARAMS)["b"]
    atoms, _ = drawn(kernel, random_effects, PARAMS, 1600)
    for f, want in ((lambda z: z, exact.mean), (lambda z: z**2, exact.variance + exact.mean**2)):
        mean, error = mean_and_error(f(atoms["b"]), jnp.ones(kernel.num_batches))
        assert (np.abs(mean - want) < 4.5 * error + 1e-9).all()
        assert (error < 0.1).all()


@pytest.mark.exhaustive
def test_kernels_on_a_chain_agree(chain):
    """NUTS, importance sampling and particle Gibbs of a stochastic volatility, moment by moment."""
    kernels = [ep.NUTS(), ep.Importance(), ep.ParticleGibbs(), ep.ParticleGibbs(ep.Bootstrap(), 64)]
    found = []
    for kernel in kernels:
        atoms, _ = drawn(kernel, chain, VOL, 3200)
        found.append(mean_and_error(atoms["h"], jnp.ones(kernel.num_batches)))
    for mean, error in found[1:]:
        gap = np.abs(mean - found[0][0]) / np.hypot(error, found[0][1])
        assert gap.max() < 5.0 and gap.mean() < 1.3


@pytest.mark.slow
def test_whitening_is_the_inverse_of_colouring(chain):
    p = problem(chain, VOL, 0)
    g = near(p)
    noise = jnp.asarray(RNG.normal(size=g.centre.shape)) * g.real
    np.testing.assert_allclose(whitened(g, coloured(g, noise)), noise, atol=1e-9)


@pytest.mark.slow
def test_importance_sampling_is_exact_for_gaussians(random_effects):
    _, value = drawn(ep.Importance(), random_effects, PARAMS, 64)
    assert float(value) == pytest.approx(float(random_effects.log_partition(PARAMS)), abs=1e-9)


# -- weights --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("program", [intercepts, outliers])
def test_the_score_of_weights_is_the_mean_score_of_the_draws(program):
    """Fisher's identity at draws, discrete latents summed out at each, signed shares and all."""
    model = plain(ep.bind(program, Y, GROUP))
    params = random_params(model, 3)
    atoms = {"b": jnp.asarray(RNG.normal(size=(7, 6)))}
    share = jnp.asarray([0.5, -0.2, 0.3, 0.1, 0.1, 0.3, -0.1])
    u = model.unconstrain(params)
    found, _ = score(model, u, posterior_at(model, params, atoms, share, jnp.zeros(())))

    def objective(u):
        p = model.constrain(u)
        each = jax.vmap(lambda z: log_joint(model, p, z))(atoms)
        return share @ each + model.log_prior(p)

    want = jax.grad(objective)(u)
    for name in want:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-9, atol=1e-9)


# -- statistics -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_statistics_are_found_and_stand_for_the_draws(random_effects):
    """1, sum b^2, sum (y - b), sum (y - b)^2 are all that the random-intercept model asks for."""
    model, key = random_effects, jax.random.PRNGKey(0)
    atoms = {"b": jnp.asarray(RNG.normal(size=(96, 6)))}
    assert number_of_statistics(model, PARAMS, atoms, key) == 4
    ref = reference(model, PARAMS, atoms, key, 4)
    new = {"b": jnp.asarray(2.0 + 0.3 * RNG.normal(size=(5, 6)))}
    share = shares(model, ref, new)
    for seed in (1, 2, 3):
        p = random_params(model, seed)
        want = jax.vmap(lambda z, p=p: log_joint(model, p, z))(new).mean()
        got = share @ jax.vmap(lambda z, p=p: log_joint(model, p, z))(ref.atoms)
        assert float(got) == pytest.approx(float(want), rel=1e-7)


def test_a_log_joint_without_statistics_is_told():
    def curved(y, g):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("groups", 6):
            b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Normal(jnp.tanh(3.0 * a * b[g] + jnp.arange(30) * a), 0.3),
                           obs=y)  # fmt: skip

    model = plain(ep.bind(curved, Y, GROUP))
    atoms = {"b": jnp.asarray(RNG.normal(size=(96, 6)))}
    assert number_of_statistics(model, at(a=0.3), atoms, jax.random.PRNGKey(0)) == 0


# -- information ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact_fit():
    return ep.fit(ep.bind(intercepts, Y, GROUP), ep.EM(), tol=1e-9, progress=False)


@pytest.mark.slow
def test_louis_information_is_the_observed_information(random_effects, exact_fit):
    """From independent exact draws, within the errors that it states."""
    params = {k: jnp.asarray(v) for k, v in exact_fit.params.items()}
    draws = exact_fit.posterior["b"].sample(0, 8192)
    drawn = Sample({"b": jnp.asarray(draws)}, alike(16), jnp.nan)
    report = louis(random_effects, params, [batch_moments_at(random_effects, params, drawn)])
    jacobian = np.eye(3)
    want = np.sqrt(np.diag(exact_fit.uncertainty.covariance_of(jacobian)))
    found = np.sqrt(np.diag(report.covariance_of(jacobian)))
    spread = [np.sqrt(np.diag(r.covariance_of(jacobian))) for r in report.without]
    error = np.sqrt(15 / 16 * ((np.stack(spread) - np.mean(spread, 0)) ** 2).sum(0))
    assert (np.abs(found - want) < 4.0 * error).all()
    assert (error < 0.2 * want).all()
    assert 0.0 < settle.noise_of(report) < 0.3


@pytest.mark.slow
def test_differences_of_the_score_are_the_observed_information(random_effects, exact_fit):
    """Of exactly linear scores to rounding, from draws within the errors that they state."""
    estep = ep.MonteCarlo(ep.Importance(), num_draws=4096, max_draws=4096)
    params = {k: jnp.asarray(v) for k, v in exact_fit.params.items()}
    looks = settle.Samples(random_effects, estep, estep.init(random_effects, params, RNG_KEY))
    samples = [batch_moments_at(random_effects, params, looks._draw(params)) for _ in range(2)]
    report = louis(random_effects, params, samples)
    want = exact_fit.uncertainty

    def line(step):
        scores = np.tile(-want.information @ step, (16, 1))
        return End(step, scores, np.zeros((16, 1)))

    exact = secant(random_effects, params, samples, report, line)
    np.testing.assert_allclose(exact.information, want.information, rtol=1e-9, atol=1e-9)

    found = secant(random_effects, params, samples, report, partial(looks._look, params))
    error = jackknife([r.information for r in found.without])
    scale = np.sqrt(np.outer(*[np.diag(want.information)] * 2))
    # at a standard error's distance, the third derivatives of six groups count too
    assert (np.abs(found.information - want.information) < 4 * error + 0.25 * scale).all()
    assert (error < 0.1 * scale).all()


@pytest.mark.slow
def test_the_simulated_likelihood_has_exact_derivatives(random_effects, exact_fit):
    """Of a Gaussian: those of log Z, without noise."""
    report, value = pathwise(random_effects, exact_fit.params, jax.random.PRNGKey(0), 2)
    assert value == pytest.approx(exact_fit.log_likelihood, abs=1e-8)
    np.testing.assert_allclose(report.information, exact_fit.uncertainty.information, rtol=1e-6)
    assert settle.noise_of(report) < 1e-6


# -- fits -----------------------------------------------------------------------------------------


def small():
    """E-steps by simulation, small."""
    return {
        "NUTS": ep.MonteCarlo(**SMALL),
        "Importance": ep.MonteCarlo(ep.Importance(), **SMALL),
        "SAEM": ep.SAEM(burn_in=30, averaging=50, final_draws=2048),
        "SAEM, no statistics": ep.SAEM(burn_in=30, averaging=50, final_draws=2048, statistics=0,
                                       window=128),
        "Variational": ep.Variational(AutoMultivariateNormal, **SMALL),
    }  # fmt: skip


ESTEPS = small()
QUICK = {"Importance", "SAEM"}
CASES = [
    pytest.param(e, id=n, marks=() if n in QUICK else pytest.mark.exhaustive)
    for n, e in ESTEPS.items()
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("estep", CASES)
def test_a_fit_lands_within_its_own_monte_carlo_error(estep, exact_fit):
    assert isinstance(estep, SimulatedEStep)
    model = ep.bind(intercepts, Y, GROUP)
    fit = ep.fit(model, ep.EM(estep), progress=False, key=3)
    assert fit.status is ep.Status.STOCHASTIC_PLATEAU and fit.converged
    want, got = exact_fit.summary(), fit.summary()
    assert (np.abs(got["estimate"] - want["estimate"]) < 4.0 * got["mc_error"] + 0.01).all()
    assert (np.abs(got["se"] / want["se"] - 1.0) < 0.25).all()
    assert fit.log_likelihood == pytest.approx(exact_fit.log_likelihood, abs=0.05)
    assert fit.trace["error"].shape == fit.trace["gain"].shape
    if isinstance(estep, Simulated):
        taken = fit.trace["gain"][:-1] > 0
        assert taken[: len(taken) // 2].all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["NUTS", "Importance", "SAEM"])
def test_stated_monte_carlo_errors_cover_the_optimum(name, exact_fit, monkeypatch):
    """Twenty keys: the estimates spread as they say, within two of their own errors."""
    model = ep.bind(intercepts, Y, GROUP)
    want = exact_fit.summary()["estimate"]
    method = ep.EM(ESTEPS[name])
    # by Louis' identity, although the simulated likelihood would be without noise here
    monkeypatch.setattr(settle, "is_solved", lambda model: False)
    found = []
    for key in range(20):
        table = ep.fit(model, method, progress=False, key=key).summary()
        found.append((table["estimate"] - want) / table["mc_error"])
    z = np.array(found)
    assert (np.abs(z) < 2).mean() > 0.85
    assert 0.5 < z.std() < 1.5


def level(y):
    q = numpyro.sample("q", dist.HalfNormal(2.0))
    r = numpyro.sample("r", dist.HalfNormal(2.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, q))
        numpyro.sample("y", dist.Normal(x, r), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 3.0)), y)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::emprob.errors.DegeneracyWarning")  # few particles say so
def test_stated_errors_of_few_particles_cover_the_optimum(monkeypatch):
    """Bootstrap filters whose log-evidence has a standard deviation of one, twenty keys."""
    rng = np.random.default_rng(5)
    y = np.cumsum(0.5 * rng.normal(size=60)) + 0.8 * rng.normal(size=60)
    model = ep.bind(level, y)
    want = ep.fit(model, ep.EM(), tol=1e-9, progress=False).summary()
    monkeypatch.setattr(settle, "is_solved", lambda model: False)
    method = ep.EM(ep.Particle(proposal=ep.Bootstrap(), num_particles=64))
    found = [ep.fit(model, method, progress=False, key=k).summary() for k in range(20)]
    z = np.array([(f["estimate"] - want["estimate"]) / f["mc_error"] for f in found])
    assert (np.abs(z) < 2).mean() > 0.85
    assert 0.5 < z.std() < 1.5
    assert (np.array([f["mc_error"] / want["se"] for f in found]) < 0.2).all()


@pytest.mark.slow
def test_nothing_is_traced_twice():
    calls = []

    def counted(y, g):
        calls.append(1)
        intercepts(y, g)

    method = ep.EM(ep.MonteCarlo(ep.Importance(), **SMALL))
    ep.fit(ep.bind(counted, Y, GROUP), method, progress=False)
    model = ep.bind(counted, Y + 0.3, GROUP)
    before = len(calls)
    ep.fit(model, method, progress=False, key=1)
    assert len(calls) == before


@pytest.mark.slow
def test_a_fit_is_the_same_for_the_same_key_and_survives_a_file(tmp_path):
    model = ep.bind(intercepts, Y, GROUP)
    method = ep.EM(ep.MonteCarlo(ep.Importance(), **SMALL))
    one, two = (ep.fit(model, method, progress=False, key=5) for _ in range(2))
    for name in one.params:
        np.testing.assert_array_equal(one.params[name], two.params[name])
    one.save(tmp_path / "fit")
    loaded = ep.load(tmp_path / "fit")
    np.testing.assert_array_equal(loaded.summary()["mc_error"], one.summary()["mc_error"])


def test_what_a_run_found_is_not_lost_when_its_end_fails(monkeypatch):
    """A second Ctrl-C, or a curvature that is not finite, while the end is settled."""
    noisy = importlib.import_module("emprob.noisy")
    model = ep.bind(intercepts, Y, GROUP)
    method = ep.EM(ep.MonteCarlo(ep.Importance(), **SMALL))
    for error, status in (
        (KeyboardInterrupt, ep.Status.INTERRUPTED),
        (np.linalg.LinAlgError, ep.Status.MAX_STEPS),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(noisy, "settle", fail)
        with pytest.warns(ep.ConvergenceWarning, match="settled"):
            fit = ep.fit(model, method, progress=False)
        assert fit.status is status and np.isfinite(fit.params["mu"])


@pytest.mark.slow
def test_steps_are_in_the_users_hands():
    model = ep.bind(intercepts, Y, GROUP)
    method = ep.EM(ep.MonteCarlo(ep.Importance(), **SMALL))
    infos = [info for _, info in islice(ep.steps(model, method, key=0), 4)]
    assert all(np.isfinite(i.gain) and i.error > 0 for i in infos)


# -- where nothing is exact -----------------------------------------------------------------------


@pytest.mark.exhaustive
def test_discrete_latents_deeper_than_the_continuous_ones():
    """The likelihood by one-dimensional quadrature, group by group, maximised by scipy."""

    y_out = Y + np.where(np.arange(30) % 7 == 3, 6.0, 0.0)

    def log_density(y, b, rate):
        def normal(x, s):
            return np.exp(-0.5 * (x / s) ** 2) / s / np.sqrt(2 * np.pi)

        return (1 - rate) * normal(y - b, 0.7) + rate * normal(y - b, 4.7)

    def minus_objective(u):
        tau, rate = np.exp(u[0]), 1 / (1 + np.exp(-u[1]))
        total = 0.0
        for g in range(6):

            def f(b, y=y_out[g == GROUP]):
                return np.prod(log_density(y, b, rate)) * np.exp(-0.5 * (b / tau) ** 2) / tau

            total += np.log(quad(f, -8 * tau, 8 * tau, points=[y_out[g == GROUP].mean()])[0])
        prior = -0.5 * (tau / 5.0) ** 2 + 2.0 * np.log(1 - rate)
        return -(total + prior)

    best = minimize(minus_objective, [0.5, -2.0], method="Nelder-Mead", options={"xatol": 1e-5})
    fit = ep.fit(ep.bind(outliers, y_out, GROUP), ep.EM(ep.MonteCarlo()), progress=False)
    table = fit.summary()
    want = [np.exp(best.x[0]), 1 / (1 + np.exp(-best.x[1]))]
    assert (np.abs(table["estimate"] - want) < 4 * table["mc_error"]).all()
    probs = fit.posterior["o"].probs
    assert probs.shape == (30, 2) and np.allclose(probs.sum(-1), 1.0)
    assert fit.posterior["b"].mean.shape == (6,)


@pytest.mark.exhaustive
def test_stochastic_volatility_by_five_e_steps():
    """All land where the simulated likelihood has its maximum, within their errors."""
    model = ep.bind(volatility, series(2, 120))
    fits = [
        ep.fit(model, ep.EM(e), progress=False)
        for e in (ep.MonteCarlo(), ep.SAEM(), ep.Particle(), ep.MonteCarlo(ep.Importance()))
    ]
    tables = [f.summary() for f in fits]
    for table in tables[1:]:
        gap = np.abs(table["estimate"] - tables[0]["estimate"])
        assert (gap < 4.0 * np.hypot(table["mc_error"], tables[0]["mc_error"]) + 1e-3).all()
    assert all(f.log_likelihood == pytest.approx(fits[0].log_likelihood, abs=0.3) for f in fits)


# -- what is refused ------------------------------------------------------------------------------


def test_accelerators_refuse_fresh_draws():
    for wrap in (ep.Squarem, ep.Anderson, ep.QuasiNewton):
        with pytest.raises(ValueError, match="FixedKey"):
            wrap(ep.EM(ep.MonteCarlo()))


def test_a_fixed_key_needs_an_objective():
    with pytest.raises(ValueError, match="does not estimate log Z"):
        ep.FixedKey(ep.MonteCarlo())
    with pytest.raises(ValueError, match="draw nothing"):
        ep.FixedKey(ep.Laplace())


@pytest.mark.slow
def test_common_random_numbers_can_be_accelerated(exact_fit):
    """Importance sampling is exact for Gaussians, but for the draws that the M-step sees."""
    estep = ep.FixedKey(ep.MonteCarlo(ep.Importance(), num_draws=2048, max_draws=2048))
    model = ep.bind(intercepts, Y, GROUP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ep.ConvergenceWarning)
        one, two = (ep.fit(model, ep.Squarem(ep.EM(estep)), progress=False) for _ in range(2))
    assert one.objective == two.objective
    assert one.objective == pytest.approx(exact_fit.objective, abs=0.01)


@pytest.mark.exhaustive
def test_a_fit_with_a_fixed_key_is_of_its_own_objective():
    """Not of Laplace's approximation, which the model would be integrated by without it."""
    estep = ep.FixedKey(ep.MonteCarlo(ep.Importance(), num_draws=256, max_draws=256))
    model = ep.bind(volatility, series(3, 30))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ep.ConvergenceWarning)
        fit = ep.fit(model, ep.EM(estep), progress=False)
    assert fit.status in (ep.Status.CONVERGED, ep.Status.OBJECTIVE_DECREASED)
    params = {k: jnp.asarray(v) for k, v in fit.params.items()}
    own = jax.jit(estep)(plain(model), params).log_partition
    assert fit.log_likelihood == pytest.approx(float(own), abs=1e-6)
    assert abs(float(own) - float(model.log_partition(params))) > 1e-3


def test_several_starts_checkpoints_and_discrete_programs_are_refused(tmp_path):
    model = ep.bind(intercepts, Y, GROUP)
    method = ep.EM(ep.MonteCarlo())
    with pytest.raises(ValueError, match="num_starts=3.*Laplace"):
        ep.fit(model, method, num_starts=3, progress=False)
    with pytest.raises(ValueError, match="checkpoint"):
        ep.fit(model, method, checkpoint=tmp_path / "c", progress=False)

    def mixture(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]))
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    with pytest.raises(ep.ModelError, match="'z'.*exact: use ep.EM"):
        ep.fit(ep.bind(mixture, Y), method, progress=False)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="num_draws"):
        ep.MonteCarlo(num_draws=100, max_draws=10)
    with pytest.raises(ValueError, match="confidence"):
        ep.Particle(confidence=0.2)
    with pytest.raises(ValueError, match="exponent"):
        ep.SAEM(exponent=0.3)
    with pytest.raises(ValueError, match="optax"):
        ep.Variational(optimizer=3)
    assert ep.Variational(optimizer=optax.sgd(0.1)).num_batches == 16


@pytest.mark.slow
def test_a_guide_without_the_latents_is_named():
    def guide(y, g):
        numpyro.sample("c", dist.Normal(0.0, 1.0))

    with pytest.raises(ep.ModelError, match="expected a sample site 'b' of shape"):
        ep.fit(ep.bind(intercepts, Y, GROUP), ep.EM(ep.Variational(guide)), progress=False)
