"""State-space programs against statsmodels and published answers.

Log-likelihoods, smoothed, filtered and predicted moments are those of statsmodels' Kalman smoother
at the same parameters; optima are published ones or statsmodels'.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.optimize import minimize

import emprob as ep
from emprob.models import (
    dynamic_factor,
    linear_gaussian,
    local_level,
    stochastic_volatility,
    term_structure,
)
from emprob.posterior import marginals

pytest.importorskip("statsmodels")
RNG = np.random.default_rng(20260101)
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def kalman(
    y, transition, state_cov, design, obs_cov, mean, cov, intercept=None, obs_intercept=None
):
    """statsmodels' smoother; `mean` and `cov` are those of the state at the first observation."""
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    d, k = design.shape
    peer = KalmanSmoother(d, k, k_posdef=k)
    peer.bind(np.ascontiguousarray(np.reshape(y, (-1, d))))
    peer["transition"], peer["design"], peer["selection"] = transition, design, np.eye(k)
    peer["state_cov"], peer["obs_cov"] = state_cov, obs_cov
    if intercept is not None:
        peer["state_intercept"] = intercept[:, None]
    peer.initialize_known(np.asarray(mean, float), np.asarray(cov, float))
    return peer.smooth()


def bound(program, params, *args):
    """The log-likelihood and the posterior of a program at given parameters."""
    model = ep.bind(program, *args, prior=False)
    values = {k: jnp.asarray(params[k], float) for k in model.params}
    return float(model.log_partition(values)), marginals(model, values)


def assert_moments(found, peer, k):
    """Smoothed, filtered and predicted moments and lag-one covariances of a (T, k) state."""
    diagonal = lambda x: np.diagonal(x[:k, :k]).reshape(-1, k)  # noqa: E731
    shape = lambda x: x.reshape(-1, k)  # noqa: E731
    np.testing.assert_allclose(shape(found.mean), peer.smoothed_state[:k].T, **TIGHT)
    np.testing.assert_allclose(shape(found.variance), diagonal(peer.smoothed_state_cov), **TIGHT)
    np.testing.assert_allclose(shape(found.filtered_mean), peer.filtered_state[:k].T, **TIGHT)
    np.testing.assert_allclose(
        shape(found.filtered_variance), diagonal(peer.filtered_state_cov), **TIGHT
    )
    np.testing.assert_allclose(
        shape(found.predicted_mean), peer.predicted_state[:k, :-1].T, **TIGHT
    )
    np.testing.assert_allclose(
        shape(found.predicted_variance), diagonal(peer.predicted_state_cov[:, :, :-1]), **TIGHT
    )
    full = np.moveaxis(peer.smoothed_state_cov[:k, :k], -1, 0)
    np.testing.assert_allclose(found.covariance.reshape(full.shape), full, **TIGHT)


def holes(y, share, whole=()):
    """The same data with a share of the cells missing, and some rows wholly."""
    y = np.where(RNG.uniform(size=y.shape) < share, np.nan, y)
    y[list(whole)] = np.nan
    return y


# -- moments and likelihoods at given parameters --------------------------------------------------


def level_peer(y, level_variance, noise_variance):
    wide = (local_level.DIFFUSE * np.nanstd(y)) ** 2
    eye = np.eye(1)
    return kalman(y, eye, level_variance * eye, eye, noise_variance * eye, [np.nanmean(y)],
                  (wide + level_variance) * eye)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("gaps", [False, True])
def test_nile_is_that_of_statsmodels_and_of_the_book(gaps):
    flow = local_level.with_gaps(local_level.load()) if gaps else local_level.load()
    params = {"level_sd": np.sqrt(1469.1), "noise_sd": np.sqrt(15099.0)}
    log_z, posterior = bound(local_level.local_level, params, flow)
    peer = level_peer(flow.to_numpy(), 1469.1, 15099.0)
    np.testing.assert_allclose(log_z, peer.llf, **TIGHT)
    assert_moments(posterior["x"], peer, 1)
    if gaps:  # KFAS, exactly diffuse, in the middle of each gap
        x = posterior["x"]
        np.testing.assert_allclose(x.mean[[29, 69]], [903.421103, 837.177324], atol=1e-3)
        np.testing.assert_allclose(x.variance[[29, 69]], [9715.0059, 9715.0055], atol=1e-2)


@pytest.mark.exhaustive
def test_a_vector_autoregression_with_holes_is_that_of_statsmodels():
    truth = linear_gaussian.TRUTH
    y, _ = linear_gaussian.simulate(3, 80)
    y = holes(y, 0.3, whole=[0, 20, 21, 22, 79])
    sd = np.sqrt(np.diag(truth["Q"]))
    params = {
        "Phi": truth["Phi"], "noise_sd": truth["noise_sd"], "state_sd": sd,
        "R": np.linalg.cholesky(truth["Q"] / np.outer(sd, sd)),
    }  # fmt: skip
    log_z, posterior = bound(linear_gaussian.linear_gaussian, params, y)
    first = linear_gaussian.START**2 * truth["Phi"] @ truth["Phi"].T + truth["Q"]
    peer = kalman(y, truth["Phi"], truth["Q"], np.eye(3), np.diag(truth["noise_sd"] ** 2),
                  np.zeros(3), first)  # fmt: skip
    np.testing.assert_allclose(log_z, peer.llf, **TIGHT)
    assert_moments(posterior["x"], peer, 3)
    lagged = np.moveaxis(peer.smoothed_state_autocov, -1, 0)  # cov(x_{t+1}, x_t)
    found = posterior["x"].pairwise_covariance.reshape(79, 3, 3)
    np.testing.assert_allclose(found, np.swapaxes(lagged[:79], -1, -2), **TIGHT)


@pytest.mark.exhaustive
def test_nelson_siegel_with_holes_is_that_of_statsmodels():
    truth = term_structure.TRUTH
    y, _ = term_structure.simulate(3, 60)
    y = holes(y, 0.3, whole=[10, 11])
    sd, phi = np.sqrt(np.diag(truth["Q"])), truth["phi"]
    params = {k: truth[k] for k in ("decay", "mean", "phi", "noise_sd")} | {
        "shock_sd": sd, "R": np.linalg.cholesky(truth["Q"] / np.outer(sd, sd))
    }  # fmt: skip
    months = np.array(term_structure.MATURITIES, float)
    log_z, posterior = bound(term_structure.nelson_siegel, params, y, months)
    peer = kalman(
        y, np.diag(phi), truth["Q"], np.asarray(term_structure.loadings(0.06, months)),
        np.diag(truth["noise_sd"] ** 2), truth["mean"], truth["Q"] / (1 - np.outer(phi, phi)),
        (1 - phi) * truth["mean"],
    )  # fmt: skip
    np.testing.assert_allclose(log_z, peer.llf, **TIGHT)
    assert_moments(posterior["x"], peer, 3)


def panel(y):
    """Local levels side by side, with common variances."""
    level_sd = numpyro.sample("level_sd", dist.HalfNormal(1.0))
    noise_sd = numpyro.sample("noise_sd", dist.HalfNormal(1.0))
    count = y.shape[1]
    with numpyro.plate("series", count):
        x0 = numpyro.sample("x0", dist.Normal(0.0, 2.0))

    def step(x, y):
        with numpyro.plate("series", count):
            x = numpyro.sample("x", dist.Normal(x, level_sd))
            numpyro.sample("y", dist.Normal(x, noise_sd), obs=y)
        return x, None

    scan(step, x0, y)


@pytest.mark.exhaustive
def test_a_plate_of_series_of_different_lengths_is_that_of_statsmodels():
    y = np.cumsum(0.5 * RNG.normal(size=(40, 12)), 0) + RNG.normal(size=(40, 12))
    y = holes(y, 0.2)
    for j, length in enumerate(range(5, 40, 5)):
        y[length:, j] = np.nan  # a short history
    y[:, 11] = np.nan  # nothing at all is known of one
    log_z, posterior = bound(panel, {"level_sd": 0.5, "noise_sd": 1.0}, y)
    eye, total = np.eye(1), 0.0
    for j in range(12):
        peer = kalman(y[:, j], eye, 0.25 * eye, eye, eye, [0.0], [[4.25]])
        x, total = posterior["x"], total + peer.llf
        np.testing.assert_allclose(x.mean[:, j], peer.smoothed_state[0], **TIGHT)
        np.testing.assert_allclose(x.variance[:, j], peer.smoothed_state_cov[0, 0], **TIGHT)
        np.testing.assert_allclose(x.filtered_mean[:, j], peer.filtered_state[0], **TIGHT)
    np.testing.assert_allclose(log_z, total, **TIGHT)


def two_lags(y):
    """An autoregression of the second order in noise, from zero."""
    phi = numpyro.sample("phi", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    noise_sd = numpyro.sample("noise_sd", dist.HalfNormal(1.0))

    def step(carry, y):
        before, last = carry
        x = numpyro.sample("x", dist.Normal(phi[0] * last + phi[1] * before, sd))
        numpyro.sample("y", dist.Normal(x, noise_sd), obs=y)
        return (last, x), None

    scan(step, (jnp.zeros(()), jnp.zeros(())), y)


@pytest.mark.exhaustive
def test_two_lags_are_those_of_statsmodels():
    y = holes(RNG.normal(size=60).cumsum(), 0.2, whole=[0, 1, 30, 31, 32])
    log_z, posterior = bound(
        two_lags, {"phi": np.array([1.2, -0.5]), "sd": 0.8, "noise_sd": 0.4}, y
    )
    companion = np.array([[1.2, -0.5], [1.0, 0.0]])
    shock = np.diag([0.64, 0.0])
    peer = kalman(y, companion, shock, np.array([[1.0, 0.0]]), np.array([[0.16]]), np.zeros(2),
                  shock)  # fmt: skip
    np.testing.assert_allclose(log_z, peer.llf, **TIGHT)
    assert_moments(posterior["x"], peer, 1)


# -- optima ---------------------------------------------------------------------------------------

NILE = {  # variances of the level and the noise; the log-likelihood as KFAS prints it
    False: (1469.176, 15098.52, -632.5456251),
    True: (685.821, 17899.84, -380.0077291),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("gaps", NILE)
def test_nile_is_durbin_and_koopmans(gaps):
    flow = local_level.with_gaps(local_level.load()) if gaps else local_level.load()
    found = ep.fit(ep.bind(local_level.local_level, flow, prior=False), progress=False)
    level, noise, log_likelihood = NILE[gaps]
    assert found.converged, found.message
    assert found.params["level_sd"] ** 2 == pytest.approx(level, rel=1e-4)
    assert found.params["noise_sd"] ** 2 == pytest.approx(noise, rel=1e-4)
    diffuse = local_level.diffuse_log_likelihood(found)
    assert diffuse == pytest.approx(log_likelihood, abs=1e-4)
    if not gaps:
        years = found.posterior["x"].mean[[0, 29, 69, 99]]
        table = [1111.66868, 919.48768, 806.9236, 798.36728]
        np.testing.assert_allclose(years, table, atol=0.01)


@pytest.mark.exhaustive
@pytest.mark.parametrize("gaps", [False, True])
def test_dynamic_factor_is_that_of_statsmodels(gaps):
    from statsmodels.tsa.api import DynamicFactor

    y, _ = dynamic_factor.simulate(7, 150)
    y = holes(y, 0.1, whole=[40, 41]) if gaps else y
    found = ep.fit(ep.bind(dynamic_factor.dynamic_factor, y, prior=False), progress=False)
    assert found.converged, found.message
    p = found.params
    ours = np.r_[p["first"], p["others"], p["variance"], p["phi"]]
    model = DynamicFactor(y, k_factors=1, factor_order=1)
    assert model.loglike(ours) == pytest.approx(found.log_likelihood, abs=1e-8)
    theirs = model.fit(ours + 0.05, disp=False, maxiter=500, method="bfgs", gtol=1e-7)
    assert theirs.llf <= found.log_likelihood + 1e-7
    assert theirs.llf == pytest.approx(found.log_likelihood, abs=1e-4)
    np.testing.assert_allclose(ours, theirs.params, atol=5e-3)


# -- forecasts ------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_forecast_at_given_parameters_is_that_of_statsmodels():
    flow, steps, n = local_level.load(), 5, 40_000
    found = ep.fit(ep.bind(local_level.local_level, flow, prior=False), progress=False)
    draws = {k: np.full(n, v) for k, v in found.params.items()}
    ahead = found.forecast(steps, 0, n, draws=draws)
    more = np.r_[flow.to_numpy(), np.full(steps, np.nan)]
    peer = level_peer(more, found.params["level_sd"] ** 2, found.params["noise_sd"] ** 2)
    mean = peer.forecasts[0, -steps:]
    sd = np.sqrt(peer.forecasts_error_cov[0, 0, -steps:])
    table = ahead.summary("y")
    assert np.abs(table["mean"] - mean).max() < 4 * sd.max() / np.sqrt(n)
    np.testing.assert_allclose(table["sd"], sd, rtol=4 / np.sqrt(2 * n))
    np.testing.assert_allclose(table["upper"], mean + 1.96 * sd, atol=0.05 * sd.max())


# -- stochastic volatility ------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_laplace_is_near_the_exact_likelihood_of_stochastic_volatility():
    """The exact one by a grid on the log-variance, and its maximum by a search."""
    returns, _ = stochastic_volatility.simulate(5, 800)
    model = ep.bind(stochastic_volatility.stochastic_volatility, returns, prior=False)
    found = ep.fit(model, progress=False)
    assert found.converged, found.message

    def exact(u):
        phi, sigma = np.tanh(u[1]), np.exp(u[2])
        return -stochastic_volatility.log_likelihood_by_grid(returns, u[0], phi, sigma, 201)

    p = found.params
    at = np.array([p["mu"], np.arctanh(2 * p["stay"] - 1), np.log(p["sigma"])])
    assert -exact(at) == pytest.approx(found.log_likelihood, abs=1.0)
    best = minimize(exact, at, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-5})
    assert -best.fun + exact(at) < 0.1  # what Laplace's estimate loses of the exact likelihood
    error = found.standard_errors()
    assert abs(best.x[0] - p["mu"]) < 0.25 * error["mu"]
    assert abs((1 + np.tanh(best.x[1])) / 2 - p["stay"]) < 0.25 * error["stay"]
    assert abs(np.exp(best.x[2]) - p["sigma"]) < 0.25 * error["sigma"]


@pytest.mark.slow
def test_the_grid_is_exact_where_the_answer_is_known():
    """One return: an integral over one normal log-variance, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    h = -0.3 + nodes * 0.3 / np.sqrt(1 - 0.9**2)
    density = np.exp(-0.5 * (h + 1.7**2 * np.exp(-h))) / np.sqrt(2 * np.pi)
    expected = np.log(weights @ density / weights.sum())
    found = stochastic_volatility.log_likelihood_by_grid([1.7], -0.3, 0.9, 0.3)
    assert found == pytest.approx(expected, abs=1e-6)
