"""The one module that touches ArviZ, on whichever of its two interfaces is installed."""

import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.special import logsumexp

from emprob import _arviz

ROOT = Path(__file__).resolve().parents[1]
OLD = sys.version_info < (3, 12)


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)


@pytest.fixture
def az():
    return _arviz._arviz()


def autoregression(rng, chains, draws, rho):
    """Stationary AR(1) with unit variance: effective sample size n (1 - rho) / (1 + rho)."""
    x = np.empty((chains, draws))
    x[:, 0] = rng.standard_normal(chains)
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.standard_normal(chains)
    return x


def gaussian_mean_tree(rng, n=40):
    """Exact posterior draws of a Gaussian mean (flat prior, unit variance), and more."""
    y = rng.normal(0.5, 1.0, n)
    mu = rng.normal(y.mean(), n**-0.5, (4, 1000))
    tree = _arviz.to_datatree(
        {"mu": mu, "A": rng.dirichlet(np.ones(3), (4, 1000, 2))},
        log_likelihood={"y": stats.norm.logpdf(y, mu[..., None])},
        observed_data={"y": y},
        sample_stats={"diverging": np.zeros((4, 1000), bool)},
        constant_data={"x": np.arange(n)},
        dims={"A": ("from", "to"), "y": ("time",), "x": ("time",)},
        coords={"to": ["a", "b", "c"], "elsewhere": [1]},
        attrs={"seconds": 1.5, "converged": True, "start": None, "sites": ("mu", "A"), "n": 3},
    )
    return tree, y, mu


def test_groups_dimensions_and_labels(rng):
    tree, y, mu = gaussian_mean_tree(rng)
    assert isinstance(tree, xr.DataTree)
    assert set(tree.children) == {
        "posterior",
        "log_likelihood",
        "observed_data",
        "sample_stats",
        "constant_data",
    }
    assert tree["posterior"]["A"].dims == ("chain", "draw", "from", "to")
    assert tree["posterior"]["A"].coords["to"].values.tolist() == ["a", "b", "c"]
    assert tree["posterior"]["A"].coords["from"].values.tolist() == [0, 1]
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "time")
    assert tree["observed_data"]["y"].dims == ("time",)
    assert "elsewhere" not in tree["posterior"].coords
    np.testing.assert_array_equal(tree["posterior"]["mu"].values, mu)
    plain = _arviz.to_datatree({"b": np.zeros((1, 2, 3))})
    assert plain["posterior"]["b"].dims == ("chain", "draw", "b_dim_0")
    assert set(plain.children) == {"posterior"}


@pytest.mark.parametrize(
    ("posterior", "more"),
    [
        ({"mu": np.zeros(3)}, {}),
        ({"mu": np.zeros((1, 2, 3))}, {"dims": {"mu": ()}}),
        ({"mu": np.zeros((1, 2, 3))}, {"dims": {"mu": ("k",)}, "coords": {"k": ["a"]}}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(posterior, more):
    with pytest.raises(ValueError, match="mu|k"):
        _arviz.to_datatree(posterior, **more)


def test_the_installed_arviz_takes_the_tree(rng, az):
    tree, _, mu = gaussian_mean_tree(rng)
    data = _arviz.to_inference_data(tree)
    assert isinstance(data, xr.DataTree) == (not OLD)
    table = az.summary(data, var_names=["mu"], round_to=None if OLD else "none")
    np.testing.assert_allclose(float(table.loc["mu", "mean"]), mu.mean(), atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what ArviZ' plots say is not our matter
        if OLD:
            assert az.plot_trace(data, var_names=["mu"]).size == 2
        else:
            plots = az.plot_trace_dist(data, var_names=["mu"], backend="matplotlib")
            assert plots.viz["figure"].item() is not None
    assert plt.get_fignums()


def test_diagnostics_of_white_noise_and_of_an_autoregression(rng):
    draws = np.stack([rng.standard_normal((4, 2000)), autoregression(rng, 4, 2000, 0.8)], axis=-1)
    sizes = _arviz.ess(draws)
    assert sizes.shape == (2,)
    np.testing.assert_allclose(sizes, [8000, 8000 * 0.2 / 1.8], rtol=0.15)
    np.testing.assert_allclose(_arviz.mcse(draws), (8000 / np.array([1.0, 9.0])) ** -0.5, rtol=0.1)
    np.testing.assert_array_less(np.abs(_arviz.rhat(draws) - 1.0), 0.02)


def classic_rhat(draws):
    """Split R-hat of Gelman et al. (2013) on rank-normalised draws, written out."""
    chains, count = draws.shape
    split = draws.reshape(chains * 2, count // 2)

    def plain(values):
        z = stats.norm.ppf(
            (stats.rankdata(values).reshape(values.shape) - 0.375) / (values.size + 0.25)
        )
        n = z.shape[1]
        within, between = z.var(axis=1, ddof=1).mean(), z.mean(axis=1).var(ddof=1)
        return np.sqrt(((n - 1) / n * within + between) / within)

    return max(plain(split), plain(np.abs(split - np.median(split))))


@pytest.mark.parametrize("shift", [0.0, 0.3, 3.0])
def test_rhat_is_the_published_formula(rng, shift):
    draws = rng.standard_normal((3, 400))
    draws[0] += shift
    np.testing.assert_allclose(_arviz.rhat(draws), classic_rhat(draws), rtol=1e-10)
    assert (_arviz.rhat(draws) > 1.01) == (shift > 0.0)


def test_diagnostics_are_those_of_a_direct_call_for_each_element(rng, az):
    draws = np.cumsum(rng.standard_normal((2, 300, 2, 2)), axis=1) * 0.1
    for ours, theirs in [(_arviz.rhat, az.rhat), (_arviz.ess, az.ess), (_arviz.mcse, az.mcse)]:
        direct = [[float(theirs(draws[..., i, j])) for j in range(2)] for i in range(2)]
        np.testing.assert_allclose(ours(draws), direct, rtol=1e-12)
    assert np.isnan(_arviz.rhat(draws[:1])).all() and _arviz.rhat(draws[:1]).shape == (2, 2)
    with pytest.raises(ValueError, match="chain, draw"):
        _arviz.ess(draws[0, :, 0, 0])


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_khat_finds_the_tail_of_a_pareto(rng, shape):
    ratios = stats.genpareto.rvs(shape, size=40_000, random_state=rng)
    weights, k = _arviz.pareto_khat(np.log(ratios))
    np.testing.assert_allclose(k, shape, atol=0.12)
    np.testing.assert_allclose(logsumexp(weights), 0.0, atol=1e-12)
    # Smoothing keeps the order of the ratios, and all but the tail to a common factor.
    assert (np.diff(weights[np.argsort(ratios)]) >= -1e-12).all()
    body = ratios < np.quantile(ratios, 0.9)
    assert np.ptp((weights - np.log(ratios))[body]) < 1e-9


def test_pareto_khat_tells_a_good_proposal_from_a_bad_one(rng):
    def ratios(proposal, target):
        x = proposal.rvs(20_000, random_state=rng)
        return target.logpdf(x) - proposal.logpdf(x), x

    good, x = ratios(stats.t(5), stats.norm())
    weights, k = _arviz.pareto_khat(good + 1e4)  # a constant does not count
    assert k < 0.3
    np.testing.assert_allclose((np.exp(weights) * x**2).sum(), 1.0, rtol=0.05)
    # A normal proposal of variance v < 1: P(r > u) ~ u^(-1 / (1 - v)), so the shape is 1 - v.
    for variance in [0.25, 0.5]:
        bad, _ = ratios(stats.norm(scale=variance**0.5), stats.norm())
        _, k = _arviz.pareto_khat(bad)
        np.testing.assert_allclose(k, 1.0 - variance, atol=0.15)


def test_pareto_khat_with_weights_of_nought_and_input_left_alone(rng):
    ratios = np.log(stats.genpareto.rvs(0.4, size=5000, random_state=rng))
    with_nought = np.concatenate([ratios, np.full(100, -np.inf)])
    before = with_nought.copy()
    weights, k = _arviz.pareto_khat(with_nought)
    np.testing.assert_array_equal(with_nought, before)
    alone, k_alone = _arviz.pareto_khat(ratios)
    assert k == k_alone
    np.testing.assert_array_equal(weights[:-100], alone)
    assert (weights[-100:] == -np.inf).all()


@pytest.mark.parametrize("ratios", [[], np.zeros((2, 2)), [0.0, np.nan], [np.inf, 0.0]])
def test_pareto_khat_refuses_what_has_no_answer(ratios):
    with pytest.raises(ValueError, match="log_ratios"):
        _arviz.pareto_khat(ratios)


def test_loo_is_exact_leave_one_out(rng):
    tree, y, _ = gaussian_mean_tree(rng)
    result = _arviz.loo(tree)
    n = y.size
    # Without y_i, the posterior of the mean is N(mean of the rest, 1/(n-1)).
    exact = stats.norm.logpdf(y, (y.sum() - y) / (n - 1), np.sqrt(1 + 1 / (n - 1)))
    np.testing.assert_allclose(result.pointwise.values, exact, atol=0.02)
    np.testing.assert_allclose(result.elpd, exact.sum(), atol=0.2)
    np.testing.assert_allclose(result.se, np.sqrt(n * exact.var()), rtol=0.05)
    np.testing.assert_allclose(result.p, 1.0, atol=0.35)
    assert result.pareto_k.shape == (n,) and result.pareto_k.max() < result.good_k


def test_loo_asks_for_the_site_where_there_are_several(rng):
    y = rng.standard_normal((2, 500, 8))
    both = _arviz.to_datatree({"m": y[..., 0]}, log_likelihood={"y": -(y**2), "x": -(y**2)})
    with pytest.raises(ValueError, match=r"\['y', 'x'\], got None"):
        _arviz.loo(both)
    with pytest.warns(UserWarning, match="shape parameter"):  # r = exp(y^2) has no mean
        result = _arviz.loo(both, var_name="x")
    assert np.isfinite(result.elpd) and result.pareto_k.max() > result.good_k
    with pytest.raises(ValueError, match="observed sites"):
        _arviz.loo(_arviz.to_datatree({"m": y}))


def test_netcdf_round_trip_and_arviz_reads_it(rng, az, tmp_path):
    tree, _, mu = gaussian_mean_tree(rng)
    path = tmp_path / "fit.nc"
    _arviz.write_netcdf(tree, path)
    back = _arviz.read_netcdf(path)
    path.rename(tmp_path / "moved.nc")  # not held open
    xr.testing.assert_identical(back["posterior"].to_dataset(), tree["posterior"].to_dataset())
    assert back["sample_stats"]["diverging"].dtype == bool
    assert back.attrs == {
        "seconds": 1.5,
        "converged": "true",
        "start": "null",
        "sites": '["mu", "A"]',
        "n": 3,
    }
    theirs = az.from_netcdf(tmp_path / "moved.nc")
    np.testing.assert_array_equal(theirs["posterior"]["mu"].values, mu)


@pytest.mark.slow
def test_arviz_is_imported_late_and_quietly():
    code = """
import sys, warnings
import xarray, scipy.special
warnings.simplefilter("error")
from emprob import _arviz
assert "arviz" not in sys.modules
_arviz._arviz()
assert "arviz" in sys.modules
warnings.warn("others still count", FutureWarning)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.strip().endswith("FutureWarning: others still count"), done.stderr


@pytest.mark.parametrize("count", [1, 2, 29, 30, 31, 60, 230])
def test_pareto_khat_of_few_draws(rng, count):
    ratios = rng.standard_normal(count)
    weights, k = _arviz.pareto_khat(ratios)
    np.testing.assert_allclose(logsumexp(weights), 0.0, atol=1e-12)
    assert np.isfinite(k) == (count >= 30)
    if count < 30:
        np.testing.assert_allclose(weights, ratios - logsumexp(ratios))


def test_pareto_khat_of_an_exact_proposal_is_good(rng):
    weights, k = _arviz.pareto_khat(1e3 + 1e-11 * rng.standard_normal(1000))
    np.testing.assert_allclose(weights, -np.log(1000))
    assert k == 0.0
    weights, k = _arviz.pareto_khat(np.full(10, -np.inf))
    assert k == np.inf and (weights == -np.inf).all()
