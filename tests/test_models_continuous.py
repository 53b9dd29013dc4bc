"""The state-space gallery: every program on data drawn from it, every data set, every `main`."""

import jax
import matplotlib
import numpy as np
import pytest

import emprob as ep
from emprob.models import (
    dynamic_factor,
    linear_gaussian,
    local_level,
    stochastic_volatility,
    term_structure,
)

FOUR = 4.0  # standard errors


def run(program, *args):
    return ep.fit(ep.bind(program, *args, prior=False), key=1, progress=False)


def assert_recovered(found, truth, sites):
    """Every estimate within four of its standard errors of the truth, and those not absurd."""
    assert found.converged, found.message
    table = found.summary()
    for site in sites:
        rows = table[table.index.str.match(rf"{site}(\[|$)")]
        estimate, error = rows["estimate"].to_numpy(), rows["se"].to_numpy()
        expected = np.ravel(truth[site])
        assert len(rows) == expected.size, site
        assert np.isfinite(error).all() and error.max() < 0.5 * (1 + np.abs(expected).max()), site
        assert (np.abs(estimate - expected) / error).max() < FOUR, (site, rows, expected)


def assert_covered(state, truth):
    """About 95 % of the states within their bands: too few and too many are both wrong."""
    inside = np.abs(state.mean.reshape(truth.shape) - truth) < 1.96 * state.sd.reshape(truth.shape)
    assert 0.88 < inside.mean() <= 0.995, inside.mean()


# -- what was put in comes out ------------------------------------------------------------------


def test_local_level_recovers_the_truth():
    y, x = local_level.simulate(3, 1000, missing=0.2)
    found = run(local_level.local_level, y)
    assert_recovered(found, local_level.TRUTH, ("level_sd", "noise_sd"))
    assert_covered(found.posterior["x"], x)


@pytest.mark.slow
def test_dynamic_factor_recovers_the_truth():
    y, f = dynamic_factor.simulate(3, 600, missing=0.1)
    found = run(dynamic_factor.dynamic_factor, y)
    assert_recovered(found, dynamic_factor.TRUTH, ("first", "others", "variance", "phi"))
    assert_covered(found.posterior["f"], f)


@pytest.mark.slow
def test_linear_gaussian_recovers_the_truth():
    y, x = linear_gaussian.simulate(3, 1000, missing=0.1)
    found = run(linear_gaussian.linear_gaussian, y)
    assert_recovered(found, linear_gaussian.TRUTH, ("Phi", "Q", "noise_sd"))
    assert_covered(found.posterior["x"], x)


@pytest.mark.slow
def test_nelson_siegel_recovers_the_truth():
    y, x = term_structure.simulate(3, 240, missing=0.1)
    months = np.array(term_structure.MATURITIES, float)
    found = run(term_structure.nelson_siegel, y, months)
    sites = ("decay", "mean", "phi", "Q", "noise_sd")
    assert_recovered(found, term_structure.TRUTH, sites)
    assert_covered(found.posterior["x"], x)


@pytest.mark.slow
def test_stochastic_volatility_recovers_the_truth():
    r, h = stochastic_volatility.simulate(3, 1500, missing=0.05)
    found = run(stochastic_volatility.stochastic_volatility, r)
    assert_recovered(found, stochastic_volatility.TRUTH, ("mu", "stay", "sigma"))
    assert_covered(found.posterior["h"], h)


# -- the same program elsewhere -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "args"),
    [
        (local_level.local_level, (local_level.simulate(1, 8)[0],)),
        (dynamic_factor.dynamic_factor, (dynamic_factor.simulate(1, 8)[0],)),
        (linear_gaussian.linear_gaussian, (linear_gaussian.simulate(1, 8)[0],)),
        (
            term_structure.nelson_siegel,
            (term_structure.simulate(1, 8)[0], np.array(term_structure.MATURITIES, float)),
        ),
        (stochastic_volatility.stochastic_volatility, (stochastic_volatility.simulate(1, 8)[0],)),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_numpyro_runs_the_program_unchanged(program, args):
    from numpyro.infer import MCMC, NUTS

    mcmc = MCMC(NUTS(program, max_tree_depth=4), num_warmup=5, num_samples=3, progress_bar=False)
    mcmc.run(jax.random.key(0), *args)
    assert all(np.isfinite(v).all() for v in mcmc.get_samples().values())


# -- data -----------------------------------------------------------------------------------------


def test_the_nile_is_what_it_says():
    pytest.importorskip("statsmodels")
    flow = local_level.load()
    assert len(flow) == 100 and flow.index[0] == 1871 and flow.index[-1] == 1970
    assert flow.loc[1871] == 1120 and flow.loc[1913] == 456  # the driest year
    gaps = local_level.with_gaps(flow)
    assert gaps.isna().sum() == 40 and flow.notna().all()
    assert gaps.loc[1891:1910].isna().all() and gaps.loc[1931:1950].isna().all()


def test_macroeconomic_series_are_what_they_say():
    pytest.importorskip("statsmodels")
    frame = dynamic_factor.load()
    assert frame.shape == (202, 5) and frame.index[0] == 1959.25 and frame.index[-1] == 2009.5
    np.testing.assert_allclose(frame.mean(), 0, atol=1e-12)
    np.testing.assert_allclose(frame.std(ddof=0), 1, atol=1e-12)
    assert frame["unemp"].idxmax() == 1975.0  # the recession after the oil shock
    gaps = dynamic_factor.with_gaps(frame)
    assert gaps.loc[1995:1995.75].isna().all(axis=None)
    assert gaps["tbilrate"].first_valid_index() == 1965
    assert gaps.iloc[-1].isna().tolist() == [True, True, True, False, False]
    holes = linear_gaussian.with_gaps(linear_gaussian.load())
    assert holes.loc[1974:1974.75].isna().all(axis=None) and 0.05 < holes.isna().mean().mean() < 0.2


def test_loadings_of_the_curve_have_the_known_limits():
    F = np.asarray(term_structure.loadings(0.06, np.array([1e-6, 1e6])))
    np.testing.assert_allclose(F, [[1, 1, 0], [1, 0, 0]], atol=1e-4)
    # Diebold and Li chose .0609 because the curvature's loading is then largest at 30 months
    months = np.linspace(1, 120, 1191)
    peak = months[np.asarray(term_structure.loadings(0.0609, months))[:, 2].argmax()]
    assert peak == pytest.approx(29.4, abs=0.2)
    frame, factors = term_structure.load()
    assert frame.shape == (240, 8) and factors.shape == (240, 3)
    assert frame[120].iloc[120:180].isna().all()


# -- main ---------------------------------------------------------------------------------------

MAINS = {
    "local_level": local_level.main,
    "dynamic_factor": dynamic_factor.main,
    "linear_gaussian": linear_gaussian.main,
    "term_structure": term_structure.main,
    "stochastic_volatility": stochastic_volatility.main,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::emprob.ConvergenceWarning")  # forty draws are not a posterior
@pytest.mark.parametrize("name", MAINS)
def test_main_fits_compares_draws_and_says_where(name, tmp_path, capsys):
    pytest.importorskip("arch" if name == "stochastic_volatility" else "statsmodels")
    MAINS[name](["--quick", "--no-progress", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    for phrase in ("handled by", "converged", "EM beside NUTS", "estimate", "overlap"):
        assert phrase in text, phrase
    image, draws = tmp_path / f"{name}.png", tmp_path / f"{name}.nc"
    assert str(image) in text and str(draws) in text
    assert matplotlib.image.imread(image).std() > 0.05
    import xarray

    tree = xarray.open_datatree(draws)
    assert tree["posterior"].sizes["draw"] == 40
    tree.close()
