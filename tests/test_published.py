"""Published optima, reached from random starts, on data that the package or a dependency ships.

Unless a test says otherwise the numbers are maxima of the likelihood (`prior=False`).
"""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import gammaln

import emprob as ep
from emprob.models import count_regimes, gaussian_mixture, latent_class, markov_switching_ar


def fit(program, *args, num_starts=8, **kwargs):
    model = ep.bind(program, *args, prior=False)
    return ep.fit(model, key=0, num_starts=num_starts, max_steps=3000, progress=False, **kwargs)


# -- Dempster, Laird and Rubin 1977 -------------------------------------------------------------


def linkage(cells):
    """Every animal has one of five genotypes; the first two look alike.

    Source: Dempster, Laird and Rubin (1977), JRSS B 39(1), section 1, after Rao (1965).
    """
    theta = numpyro.sample("theta", dist.Uniform(0, 1))
    law = jnp.stack([jnp.full_like(theta, 2), theta, 1 - theta, 1 - theta, theta]) / 4
    with numpyro.plate("animal", len(cells)):
        z = numpyro.sample("z", dist.Categorical(law))
        looks = jnp.array([0, 0, 1, 2, 3])[z]
        numpyro.factor("seen", jnp.where(looks == cells, 0.0, -jnp.inf))


CELLS = np.repeat(np.arange(4), [125, 18, 20, 34])
# The positive root of 197 t^2 - 15 t - 68, of which the score is a multiple.
LINKAGE = (15 + np.sqrt(15**2 + 4 * 197 * 68)) / (2 * 197)


@pytest.mark.exhaustive
def test_linkage_follows_the_published_iterates():
    model = ep.bind(linkage, CELLS, prior=False)
    exact = ep.EM(mstep=ep.Newton(steps=6))  # to the maximum of Q
    steps = ep.steps(model, exact, init={"theta": 0.5})
    found = [float(next(steps)[0].params["theta"]) for _ in range(8)]
    table = [0.608247423, 0.624321051, 0.626488879, 0.626777323, 0.626815632, 0.626820719,
             0.626821395, 0.626821484]  # fmt: skip
    np.testing.assert_allclose(found, table, atol=1e-8)
    # the recursion that the paper derives by hand
    theta = 0.5
    for value in found:
        split = 125 * theta / (2 + theta)
        theta = (split + 34) / (split + 18 + 20 + 34)
        assert value == pytest.approx(theta, abs=1e-9)


@pytest.mark.slow
def test_linkage_converges_at_the_published_rate():
    model = ep.bind(linkage, CELLS, prior=False)
    exact = ep.EM(mstep=ep.Newton(steps=6))
    found = ep.fit(model, exact, init={"theta": 0.5}, tol=1e-8, progress=False)
    assert found.converged
    assert found.params["theta"] == pytest.approx(LINKAGE, abs=1e-8)
    steps = ep.steps(model, exact, init={"theta": 0.5})
    gap = [float(next(steps)[0].params["theta"]) - LINKAGE for _ in range(6)]
    assert gap[5] / gap[4] == pytest.approx(0.1328, abs=1e-3)  # the paper's rate


# -- mixtures -----------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("program", "k", "log_likelihood"),
    [
        (gaussian_mixture.gaussian_mixture, 2, -220.057973),
        (gaussian_mixture.gaussian_mixture, 3, -203.179228),
        (gaussian_mixture.shared_variance, 3, -212.351855),
    ],
)
def test_galaxies(program, k, log_likelihood):
    """Maxima of mclust and scikit-learn; mclust's own start ends at -212.080 with k = 3."""
    found = fit(program, gaussian_mixture.load(), k, num_starts=30)
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(log_likelihood, abs=1e-4)


@pytest.mark.exhaustive
def test_one_component_is_the_normal_law():
    y = gaussian_mixture.load()
    found = fit(gaussian_mixture.gaussian_mixture, y, 1, num_starts=1)
    expected = -0.5 * len(y) * (np.log(2 * np.pi * y.var()) + 1)
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(expected, abs=1e-9)
    assert found.params["weights"] == pytest.approx([1.0])


@pytest.mark.exhaustive
def test_galaxies_with_three_components_has_the_published_means():
    found = fit(gaussian_mixture.gaussian_mixture, gaussian_mixture.load(), 3, num_starts=30)
    order = np.argsort(found.params["mu"])
    np.testing.assert_allclose(found.params["mu"][order], [9.71014, 21.4001, 33.04438], atol=1e-3)
    np.testing.assert_allclose(
        found.params["weights"][order], [0.08537, 0.87805, 0.03658], atol=1e-4
    )


# -- latent classes -----------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_goodmans_two_classes():
    """Goodman (1974), Biometrika 61(2), table 4; R's poLCA prints -504.4677 and 2.719922."""
    answers = latent_class.load().to_numpy()
    found = fit(latent_class.latent_class, answers, 2)
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(-504.4677, abs=1e-4)
    assert latent_class.likelihood_ratio(found, answers) == pytest.approx(2.719922, abs=1e-5)
    duty = np.argmax(found.params["probs"][:, 0, 0])
    assert found.params["weights"][duty] == pytest.approx(0.2792, abs=2e-4)
    np.testing.assert_allclose(
        found.params["probs"][[duty, 1 - duty], :, 0],
        [[0.993, 0.940, 0.927, 0.769], [0.714, 0.330, 0.354, 0.132]],
        atol=6e-4,
    )


# -- hidden Markov models of the book of Zucchini, MacDonald and Langrock -------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("program", "k", "log_likelihood", "rates"),
    [
        (count_regimes.free_start, 2, -341.8787, [15.421, 26.018]),
        (count_regimes.free_start, 3, -328.5275, [13.134, 19.713, 29.710]),
        (count_regimes.stationary_start, 2, -342.3183, [15.472, 26.125]),
        (count_regimes.stationary_start, 3, -329.4603, [13.146, 19.721, 29.714]),
    ],
)  # fmt: skip
def test_earthquakes(program, k, log_likelihood, rates):
    found = fit(program, count_regimes.load().to_numpy(), k)
    assert found.log_likelihood == pytest.approx(log_likelihood, abs=1e-4)
    np.testing.assert_allclose(np.sort(found.params["rate"]), rates, atol=6e-4)
    rows = found.params["A"].sum(-1)
    np.testing.assert_allclose(rows, 1, atol=1e-12)


# -- regime switching in economics ----------------------------------------------------------------


@pytest.fixture(scope="module")
def hamilton():
    y, lags = markov_switching_ar.with_lags(markov_switching_ar.load())
    return fit(markov_switching_ar.switching_mean, y, lags, num_starts=4)


@pytest.fixture(scope="module")
def hamilton_of_statsmodels():
    """statsmodels at its own optimum; its standard errors are by complex differences."""
    api = pytest.importorskip("statsmodels.tsa.api")
    growth = np.array(markov_switching_ar.GNP_GROWTH)
    peer = api.MarkovAutoregression(growth, k_regimes=2, order=4, switching_ar=False)
    return peer.fit(disp=0)


@pytest.mark.exhaustive
def test_hamilton_1989(hamilton):
    """-181.26339 in EViews' manual and statsmodels' tests."""
    found = hamilton
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(-181.26339, abs=1e-4)
    high = int(np.argmax(found.params["mu"]))
    np.testing.assert_allclose(
        found.params["mu"][[high, 1 - high]], [1.163515, -0.358796], atol=5e-4
    )
    np.testing.assert_allclose(
        [found.params["A"][high, high], found.params["A"][1 - high, high]],
        [0.904082, 0.245336], atol=5e-4,
    )  # fmt: skip
    np.testing.assert_allclose(
        found.params["phi"], [0.013492, -0.057514, -0.246993, -0.212912], atol=5e-4
    )
    assert found.params["variance"] == pytest.approx(0.591372, abs=5e-4)


@pytest.mark.exhaustive
def test_hamilton_standard_errors_are_those_of_statsmodels(hamilton, hamilton_of_statsmodels):
    peer = hamilton_of_statsmodels
    assert hamilton.log_likelihood == pytest.approx(peer.llf, abs=1e-5)
    by_name = dict(zip(peer.model.param_names, zip(peer.params, peer.bse)))
    expected_order = [by_name["const[0]"][0], by_name["const[1]"][0]]
    labels = np.argsort(np.argsort(expected_order))  # rank of statsmodels' regime 0 and 1
    ours = np.argsort(hamilton.params["mu"])[labels]
    errors, low = hamilton.standard_errors(), ours
    pairs = {
        "const[0]": errors["mu"][low[0]], "const[1]": errors["mu"][low[1]],
        "p[0->0]": errors["A"][low[0], low[0]], "p[1->0]": errors["A"][low[1], low[0]],
        "sigma2": errors["variance"],
        **{f"ar.L{j + 1}": errors["phi"][j] for j in range(4)},
    }  # fmt: skip
    for name, value in pairs.items():
        assert float(value) == pytest.approx(by_name[name][1], rel=1e-3), name


@pytest.mark.exhaustive
def test_hamilton_smoothed_probabilities_are_those_of_statsmodels(
    hamilton, hamilton_of_statsmodels
):
    peer = hamilton_of_statsmodels
    high = int(np.argmax(hamilton.params["mu"]))
    peer_high = int(np.argmax([peer.params[list(peer.model.param_names).index(f"const[{k}]")]
                               for k in (0, 1)]))  # fmt: skip
    marginal = hamilton.posterior["z"]
    smoothed = np.asarray(peer.smoothed_marginal_probabilities)[:, peer_high]
    filtered = np.asarray(peer.filtered_marginal_probabilities)[:, peer_high]
    np.testing.assert_allclose(marginal.probs[:, high], smoothed, atol=1e-3)
    np.testing.assert_allclose(marginal.filtered[:, high], filtered, atol=1e-3)


def series_of_statsmodels(name):
    """In a process of its own: those tests have marks that ours do not know."""
    pytest.importorskip("statsmodels")
    code = (
        "from emprob.models import markov_switching_ar as m;"
        f"print(*m.load_from_statsmodels({name!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return np.array(done.stdout.split(), float)


@pytest.mark.exhaustive
def test_federal_funds_rate():
    """Stata's manual of mswitch, example 1: const 3.71 and 9.56, p11 .9821, sigma 2.1075."""
    found = fit(markov_switching_ar.switching_intercept, series_of_statsmodels("fedfunds"))
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(-508.63592, abs=1e-4)
    low = int(np.argmin(found.params["mu"]))
    estimates = [
        found.params["mu"][low], found.params["mu"][1 - low], np.sqrt(found.params["variance"]),
        found.params["A"][low, low], found.params["A"][1 - low, low],
    ]  # fmt: skip
    np.testing.assert_allclose(
        estimates, [3.708776, 9.556763, 2.107562, 0.9820939, 0.0503587], atol=2e-4
    )


@pytest.mark.exhaustive
def test_new_york_stock_exchange():
    """Kim, Nelson and Startz (1998), Journal of Empirical Finance 5(2), with two variances."""
    found = fit(markov_switching_ar.switching_variance, series_of_statsmodels("areturns"))
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(-1009.488157, abs=1e-4)
    calm = int(np.argmin(found.params["variance"]))
    estimates = [
        *found.params["variance"][[calm, 1 - calm]],
        found.params["A"][calm, calm], found.params["A"][1 - calm, calm],
    ]  # fmt: skip
    np.testing.assert_allclose(estimates, [1.780579, 12.621343, 0.989495, 0.046967], rtol=1e-3)


# -- zero-inflated counts -------------------------------------------------------------------------


def zero_inflated_poisson(y, x, w):
    """Lambert (1992), Technometrics 34(1): either never, or a Poisson number.

    Args:
        y: counts (N,).
        x: covariates of the rate (N, P).
        w: covariates of the inflation (N, R).
    """
    beta = numpyro.sample("beta", flat_vector(x.shape[1]))
    gamma = numpyro.sample("gamma", flat_vector(w.shape[1]))
    with numpyro.plate("observation", len(y)):
        never = numpyro.sample("never", dist.Bernoulli(logits=w @ gamma))
        rate = jnp.where(never == 1, 0.0, jnp.exp(x @ beta))
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def flat_vector(size):
    return dist.ImproperUniform(dist.constraints.real_vector, (), (size,))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of statsmodels
def test_zero_inflated_poisson_is_that_of_statsmodels():
    count = pytest.importorskip("statsmodels.discrete.count_model")
    rng = np.random.default_rng(8)
    x = np.column_stack([np.ones(600), rng.normal(size=600), rng.integers(0, 2, 600)])
    never = rng.uniform(size=600) < 1 / (1 + np.exp(-x[:, :2] @ [-0.5, 0.7]))
    y = np.where(never, 0, rng.poisson(np.exp(x @ [0.6, 0.3, -0.4])))
    peer = count.ZeroInflatedPoisson(y, x, exog_infl=x[:, :2]).fit(
        method="bfgs", maxiter=500, gtol=1e-8, disp=0
    )
    zeros = {"beta": np.zeros(3), "gamma": np.zeros(2)}
    found = fit(zero_inflated_poisson, y, x, x[:, :2], num_starts=1, init=zeros)
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(peer.llf, abs=1e-6)
    np.testing.assert_allclose(found.params["gamma"], peer.params[:2], atol=1e-4)
    np.testing.assert_allclose(found.params["beta"], peer.params[2:], atol=1e-4)
    # statsmodels' own errors are BFGS's approximation here; the likelihood written out is exact
    errors = found.standard_errors()
    information = -jax.hessian(partial(_inflated_log_likelihood, y, x))(jnp.asarray(peer.params))
    exact = np.sqrt(np.diag(np.linalg.inv(information)))
    np.testing.assert_allclose(errors["beta"], exact[2:], rtol=1e-4)
    np.testing.assert_allclose(errors["gamma"], exact[:2], rtol=1e-4)


def _inflated_log_likelihood(y, x, params):
    gate, rate = x[:, :2] @ params[:2], jnp.exp(x @ params[2:])
    never = jax.nn.log_sigmoid(gate)
    counted = jax.nn.log_sigmoid(-gate) + y * jnp.log(rate) - rate - gammaln(y + 1.0)
    return jnp.where(y == 0, jnp.logaddexp(never, counted), counted).sum()


@pytest.mark.slow
def test_zero_inflated_poisson_with_constants_is_numpyros_distribution():
    rng = np.random.default_rng(2)
    y = np.where(rng.uniform(size=300) < 0.3, 0, rng.poisson(2.5, 300))
    one = np.ones((300, 1))
    start = {"beta": np.zeros(1), "gamma": np.zeros(1)}
    found = fit(zero_inflated_poisson, y, one, one, num_starts=1, init=start)
    gate = jax.nn.sigmoid(found.params["gamma"][0])
    law = dist.ZeroInflatedPoisson(gate, rate=jnp.exp(found.params["beta"][0]))
    assert found.log_likelihood == pytest.approx(float(law.log_prob(y).sum()), abs=1e-8)
    # at the optimum the mean and the share of zeros are those of the data
    assert float(law.mean) == pytest.approx(y.mean(), rel=1e-6)
    assert float(jnp.exp(law.log_prob(0))) == pytest.approx((y == 0).mean(), rel=1e-6)
