"""The gallery: every program on data drawn from it, every data set, every `main`."""

import subprocess
import sys

import jax
import matplotlib
import numpy as np
import pytest

import emprob as ep
from emprob.models import (
    count_regimes,
    gaussian_mixture,
    latent_class,
    markov_switching_ar,
    regimes,
)

FOUR = 4.0  # standard errors


def by_rank(found, site, order_by):
    """Estimates and standard errors of a site, its labels in the order of another site."""
    order = np.argsort(found.params[order_by].reshape(len(found.params[order_by]), -1)[:, 0])
    estimate, error = found.params[site], found.standard_errors()[site]
    if site == "A":
        return estimate[np.ix_(order, order)], error[np.ix_(order, order)]
    return estimate[order], error[order]


def assert_recovered(found, truth, order_by, sites):
    """Every estimate within four of its standard errors of the truth."""
    assert found.converged, found.message
    first = np.argsort(truth[order_by].reshape(len(truth[order_by]), -1)[:, 0])
    for site in sites:
        estimate, error = by_rank(found, site, order_by)
        expected = truth[site]
        expected = expected[np.ix_(first, first)] if site == "A" else expected[first]
        assert np.isfinite(error).all(), (site, error)
        assert error.max() < 0.5 * (1 + np.abs(expected).max()), (site, error)
        distance = np.abs(estimate - expected) / error
        assert distance.max() < FOUR, (site, estimate, expected, error)


def run(program, *args, num_starts=4):
    return ep.fit(ep.bind(program, *args), key=1, num_starts=num_starts, progress=False)


# -- what was put in comes out ------------------------------------------------------------------


@pytest.mark.exhaustive
def test_univariate_mixture_recovers_the_truth():
    y, _ = gaussian_mixture.simulate(3, 1500)
    found = run(gaussian_mixture.gaussian_mixture, y, 3)
    assert_recovered(found, gaussian_mixture.TRUTH, "mu", ("weights", "mu", "variance"))


@pytest.mark.exhaustive
def test_multivariate_mixture_recovers_the_truth():
    y, z = gaussian_mixture.simulate(3, 800, gaussian_mixture.TRUTH_2D)
    found = run(gaussian_mixture.multivariate_mixture, y, 2)
    assert_recovered(found, gaussian_mixture.TRUTH_2D, "mu", ("weights", "mu", "Sigma"))
    order = np.argsort(found.params["mu"][:, 0])
    hits = found.posterior["z"].probs[:, order].argmax(1) == z
    assert hits.mean() > 0.9


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("program", "truth"),
    [
        (gaussian_mixture.shared_variance, {"variance": np.array(0.6)}),
        (
            gaussian_mixture.shared_covariance,
            {"Sigma": np.array([[0.7, 0.2], [0.2, 0.5]])},
        ),
    ],
)
def test_shared_covariances_recover_the_truth(program, truth):
    site, value = next(iter(truth.items()))
    base = gaussian_mixture.TRUTH if site == "variance" else gaussian_mixture.TRUTH_2D
    k = len(base["weights"])
    own = {**base, site: np.broadcast_to(value, (k, *value.shape))}
    y, _ = gaussian_mixture.simulate(5, 1000, own)
    found = run(program, y, k)
    assert_recovered(found, own, "mu", ("weights", "mu"))
    distance = np.abs(found.params[site] - value) / found.standard_errors()[site]
    assert distance.max() < FOUR


@pytest.mark.exhaustive
def test_gaussian_regimes_recover_the_truth_and_their_durations():
    y, states = regimes.simulate(11, 3000)
    found = run(regimes.gaussian_regimes, y, 3)
    assert_recovered(found, regimes.TRUTH, "variance", ("A", "mu", "variance"))
    order = regimes.order(found)
    rows = found.summary()
    for k, label in enumerate(order):
        row = rows.loc[f"duration[{label}]"]
        truth = 1 / (1 - regimes.TRUTH["A"][k, k])
        assert abs(np.log(row["estimate"] / truth)) < FOUR * row["se"] / row["estimate"]
    hits = found.posterior["z"].probs[:, order].argmax(1) == states
    assert hits.mean() > 0.85


@pytest.mark.exhaustive
def test_student_regimes_recover_the_truth():
    truth = {
        "initial": np.array([0.5, 0.5]),
        "A": np.array([[0.98, 0.02], [0.04, 0.96]]),
        "mu": np.array([0.1, -0.1]),
        "variance": np.array([0.3, 3.0]),
    }
    y, _ = regimes.simulate(7, 2000, df=6.0, truth=truth)
    found = run(regimes.student_regimes, y, 2)
    assert_recovered(found, truth, "variance", ("A", "mu", "variance"))
    assert abs(found.params["df"] - 6.0) < FOUR * found.standard_errors()["df"]


@pytest.mark.exhaustive
def test_a_missing_day_is_integrated_out():
    y, _ = regimes.simulate(2, 400)
    y = y.copy()
    y[[50, 51, 200]] = np.nan
    model = ep.bind(regimes.gaussian_regimes, y, 2)
    found = ep.fit(model, key=1, progress=False)
    assert model.notes.value.num_observations == 397
    assert np.isfinite(found.posterior["z"].probs).all()


@pytest.mark.exhaustive
def test_count_regimes_recover_the_truth():
    y, states = count_regimes.simulate(4, 800)
    for program in (count_regimes.free_start, count_regimes.stationary_start):
        found = run(program, y, 2)
        assert_recovered(found, count_regimes.TRUTH, "rate", ("A", "rate"))
        hits = found.posterior["z"].probs[:, np.argsort(found.params["rate"])].argmax(1) == states
        assert hits.mean() > 0.9


def test_stationary_law_is_stationary():
    matrix = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    law = np.asarray(count_regimes.stationary_law(matrix))
    np.testing.assert_allclose(law @ matrix, law, atol=1e-14)
    np.testing.assert_allclose(np.linalg.matrix_power(matrix, 200)[0], law, atol=1e-12)
    both = count_regimes.stationary_law(np.stack([matrix, matrix.T / matrix.sum(0)[:, None]]))
    np.testing.assert_allclose(both[0], law, atol=1e-14)


@pytest.mark.exhaustive
def test_switching_autoregression_recovers_the_truth():
    truth = markov_switching_ar.TRUTH
    y, _ = markov_switching_ar.simulate(5, 1500)
    found = run(markov_switching_ar.switching_mean, *markov_switching_ar.with_lags(y))
    assert_recovered(found, truth, "mu", ("A", "mu"))
    for site in ("phi", "variance"):
        distance = np.abs(found.params[site] - truth[site]) / found.standard_errors()[site]
        assert distance.max() < FOUR


def test_lags_are_the_past():
    y, lags = markov_switching_ar.with_lags(np.arange(10.0), 3)
    np.testing.assert_array_equal(y, np.arange(3.0, 10.0))
    np.testing.assert_array_equal(lags, y[:, None] - np.array([1.0, 2.0, 3.0]))


@pytest.mark.exhaustive
def test_latent_classes_recover_the_truth():
    answers, z = latent_class.simulate(6, 2000)
    found = run(latent_class.latent_class, answers, 2)
    assert_recovered(found, latent_class.TRUTH, "probs", ("weights", "probs"))


# -- the same program elsewhere -----------------------------------------------------------------


@pytest.mark.exhaustive
def test_numpyro_runs_a_program_unchanged():
    from numpyro.infer import MCMC, NUTS

    y, _ = gaussian_mixture.simulate(3, 60)
    mcmc = MCMC(NUTS(gaussian_mixture.gaussian_mixture), num_warmup=20, num_samples=10,
                progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(0), y, 2)
    assert mcmc.get_samples()["mu"].shape == (10, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "args", "nesting"),
    [
        (regimes.gaussian_regimes, (regimes.simulate(1, 6)[0], 2), 1),
        (regimes.student_regimes, (regimes.simulate(1, 6)[0], 2), 1),
        (count_regimes.free_start, (np.array([3, 9, 4, 12, 2]), 2), 1),
        (count_regimes.stationary_start, (np.array([3, 9, 4, 12, 2]), 2), 1),
        (latent_class.latent_class, (latent_class.load().to_numpy()[:7], 2), 2),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_log_partition_is_that_of_numpyros_enumeration(program, args, nesting):
    pytest.importorskip("funsor")
    from numpyro.contrib.funsor import config_enumerate, enum
    from numpyro.contrib.funsor.infer_util import log_density

    model = ep.bind(program, *args)
    params = {k: jax.numpy.asarray(v) for k, v in model.notes.value.initial.items()}
    known = enum(config_enumerate(program), first_available_dim=-1 - nesting)
    expected, _ = log_density(known, args, {}, params)
    np.testing.assert_allclose(float(model.objective(params)), float(expected), rtol=1e-10)


@pytest.mark.slow
def test_lagged_regimes_are_summed_over_all_their_paths():
    """NumPyro's enumeration has no history in a scan: here every path of the regimes."""
    y, lags = markov_switching_ar.with_lags(markov_switching_ar.GNP_GROWTH[:7], 2)
    model = ep.bind(markov_switching_ar.switching_mean, y, lags, prior=False)
    p = {"A": np.array([[0.8, 0.2], [0.4, 0.6]]), "mu": np.array([1.0, -0.5]),
         "phi": np.array([0.3, -0.2]), "variance": np.array(0.7)}  # fmt: skip
    law = np.asarray(count_regimes.stationary_law(p["A"]))
    total = 0.0
    for path in np.ndindex(*(2,) * (len(y) + 2)):
        weight = law[path[0]] * np.prod([p["A"][i, j] for i, j in zip(path, path[1:])])
        mu = p["mu"][np.array(path)]
        swings = sum(p["phi"][j] * (lags[:, j] - mu[1 - j : len(mu) - j - 1]) for j in (0, 1))
        gap = y - mu[2:] - swings
        variance = p["variance"]
        total += weight * np.prod(np.exp(-0.5 * gap**2 / variance) / np.sqrt(2 * np.pi * variance))
    found = model.log_partition({k: jax.numpy.asarray(v) for k, v in p.items()})
    np.testing.assert_allclose(float(found), np.log(total), rtol=1e-12)


# -- data -----------------------------------------------------------------------------------------


def test_data_sets_are_what_they_say():
    galaxies = gaussian_mixture.load()
    assert galaxies.shape == (82,) and (np.diff(galaxies) >= 0).all()
    assert galaxies.mean() == pytest.approx(20.83, abs=0.005)
    quakes = count_regimes.load()
    assert len(quakes) == 107 and quakes.index[-1] == 2006
    assert quakes.mean() == pytest.approx(19.36, abs=0.005)
    assert quakes.var() == pytest.approx(51.57, abs=0.005)  # both printed in the book
    growth = markov_switching_ar.load()
    assert len(growth) == 135 and str(growth.index[-1]) == "1984Q4"
    answers = latent_class.load()
    assert answers.shape == (216, 4) and set(np.unique(answers)) == {0, 1}


@pytest.mark.exhaustive
def test_gnp_growth_is_that_of_statsmodels():
    pytest.importorskip("statsmodels")
    code = (
        "from statsmodels.tsa.regime_switching.tests import test_markov_autoregression as m;"
        "print(*m.rgnp)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    peer = np.array(done.stdout.split(), float)
    np.testing.assert_array_equal(peer, markov_switching_ar.load())


def test_returns_come_from_arch():
    pytest.importorskip("arch")
    returns = regimes.load()
    assert len(returns) == 5030 and len(regimes.load(2.0)) == 504
    assert returns.index.is_monotonic_increasing and np.isfinite(returns).all()
    crash = returns.loc["2008-10-15"]
    assert crash == pytest.approx(100 * np.log(1 - 0.0903), abs=0.02)  # a fall of 9.03 %


# -- main ---------------------------------------------------------------------------------------

MAINS = {
    "gaussian_mixture": gaussian_mixture.main,
    "count_regimes": count_regimes.main,
    "latent_class": latent_class.main,
    "markov_switching_ar": markov_switching_ar.main,
    "regimes": regimes.main,
}


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::emprob.ConvergenceWarning")  # forty draws are not a posterior
@pytest.mark.parametrize("name", MAINS)
def test_main_fits_compares_draws_and_says_where(name, tmp_path, capsys):
    if name == "regimes":
        pytest.importorskip("arch")
    with jax.enable_x64(False):  # as it is where nobody asked
        MAINS[name](["--quick", "--no-progress", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    for phrase in ("handled by", "converged", "EM beside NUTS", "estimate", "overlap"):
        assert phrase in text, phrase
    image = tmp_path / f"{name}.png"
    draws = tmp_path / f"{name}.nc"
    assert str(image) in text and str(draws) in text
    assert matplotlib.image.imread(image).std() > 0.05
    import xarray

    tree = xarray.open_datatree(draws)
    assert tree["posterior"].sizes["draw"] == 40
    tree.close()


@pytest.mark.exhaustive
def test_main_without_nuts(tmp_path, capsys):
    found = gaussian_mixture.main(
        ["--quick", "--draws", "0", "--no-progress", "--out", str(tmp_path)]
    )
    assert found.converged
    assert "NUTS" not in capsys.readouterr().out
    assert (tmp_path / "gaussian_mixture.png").exists()
