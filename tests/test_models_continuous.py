"""The state-space gallery: every program on data drawn from it, every data set, every `main`."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import optimize, stats

import emprob as ep
from emprob.models import (
    dynamic_factor,
    heston_returns,
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


@pytest.mark.exhaustive
def test_local_level_recovers_the_truth():
    y, x = local_level.simulate(3, 1000, missing=0.2)
    found = run(local_level.local_level, y)
    assert_recovered(found, local_level.TRUTH, ("level_sd", "noise_sd"))
    assert_covered(found.posterior["x"], x)


@pytest.mark.exhaustive
def test_dynamic_factor_recovers_the_truth():
    y, f = dynamic_factor.simulate(3, 600, missing=0.1)
    found = run(dynamic_factor.dynamic_factor, y)
    assert_recovered(found, dynamic_factor.TRUTH, ("first", "others", "variance", "phi"))
    assert_covered(found.posterior["f"], f)


@pytest.mark.exhaustive
def test_linear_gaussian_recovers_the_truth():
    y, x = linear_gaussian.simulate(3, 1000, missing=0.1)
    found = run(linear_gaussian.linear_gaussian, y)
    assert_recovered(found, linear_gaussian.TRUTH, ("Phi", "Q", "noise_sd"))
    assert_covered(found.posterior["x"], x)


@pytest.mark.exhaustive
def test_nelson_siegel_recovers_the_truth():
    y, x = term_structure.simulate(3, 240, missing=0.1)
    months = np.array(term_structure.MATURITIES, float)
    found = run(term_structure.nelson_siegel, y, months)
    sites = ("decay", "mean", "phi", "Q", "noise_sd")
    assert_recovered(found, term_structure.TRUTH, sites)
    assert_covered(found.posterior["x"], x)


@pytest.mark.exhaustive
def test_stochastic_volatility_recovers_the_truth():
    r, h = stochastic_volatility.simulate(3, 1500, missing=0.05)
    found = run(stochastic_volatility.stochastic_volatility, r)
    assert_recovered(found, stochastic_volatility.TRUTH, ("mu", "stay", "sigma"))
    assert_covered(found.posterior["h"], h)


@pytest.mark.exhaustive
def test_leverage_recovers_the_truth():
    truth = stochastic_volatility.LEVERAGE_TRUTH
    r, h = stochastic_volatility.simulate(4, 1500, missing=0.05, truth=truth)
    found = run(stochastic_volatility.leverage, r)
    assert_recovered(found, truth, ("mu", "stay", "sigma", "rho"))
    later = found.posterior["h"]
    inside = np.abs(later.mean[:-1] - h[1:]) < 1.96 * later.sd[:-1]
    assert 0.88 < inside.mean() <= 0.995


@pytest.mark.exhaustive
def test_heavy_tails_recover_the_truth():
    truth = stochastic_volatility.HEAVY_TRUTH
    r, h = stochastic_volatility.simulate(5, 1500, missing=0.05, truth=truth)
    found = run(stochastic_volatility.heavy_tails, r)
    assert found.converged, found.message
    table = found.summary()
    for site in ("mu", "stay", "sigma"):
        assert abs(table.loc[site, "estimate"] - truth[site]) < FOUR * table.loc[site, "se"]
    # the error of degrees of freedom is one of their logarithm
    gap = np.log(table.loc["df", "estimate"] / truth["df"])
    assert abs(gap) < FOUR * table.loc["df", "se"] / table.loc["df", "estimate"]
    assert_covered(found.posterior["h"], h)


@pytest.mark.exhaustive
def test_heston_recovers_the_diffusion_it_was_drawn_from():
    r, v = heston_returns.simulate(6, 2000)
    model = ep.bind(heston_returns.heston, r, prior=False)
    found = ep.fit(model, key=1, init=heston_returns.start(r), progress=False)
    assert_recovered(found, heston_returns.TRUTH, ("drift", "theta", "kappa", "xi", "rho"))
    assert_covered(found.posterior["x"], np.sqrt(v))


@pytest.mark.exhaustive
def test_heston_by_particles_is_the_exact_optimum():
    """Of the likelihood on a grid; Laplace's optimum is more than a standard error off."""
    r, _ = heston_returns.simulate(6, 500)
    model = ep.bind(heston_returns.heston, r)
    laplace = ep.fit(model, key=1, init=heston_returns.start(r), progress=False)
    found = ep.fit(model, ep.EM(ep.Particle()), key=1, init=laplace.params, progress=False)
    table = heston_returns.side_by_side(laplace, found).iloc[:5]
    error, noise = table["se by particles"], table["Monte Carlo error"]
    truth = [float(heston_returns.TRUTH[k]) for k in table.index]
    assert ((table["Particle"] - truth).abs() < FOUR * error).all(), table
    best = exact_optimum(model, r, laplace.params)
    gap = (table["Particle"] - [best[k] for k in table.index]).abs()
    assert (gap < 3 * noise).all(), (table, best)
    assert (noise < 0.3 * error).all(), table
    assert "differences of the score" in found.simulated.information
    exact = heston_returns.log_likelihood_by_grid(r, found.params)
    assert abs(found.log_likelihood - exact) < FOUR * found.simulated.error + 0.01
    assert laplace.log_likelihood == pytest.approx(exact, abs=2.0)


def exact_optimum(model, r, start):
    """Parameters at the maximum of the grid's log-likelihood plus log prior."""
    names = list(heston_returns.TRUTH)
    ways = {"drift": (float, float), "rho": (np.arctanh, np.tanh)}
    to = [ways.get(k, (np.log, np.exp)) for k in names]

    def params(u):
        return {k: back(x) for k, (_, back), x in zip(names, to, u, strict=True)}

    def loss(u):
        at = params(u)
        return -heston_returns.log_likelihood_by_grid(r, at) - float(model.log_prior(at))

    def slope(u):  # over steps that are wide beside the grid's own roughness
        steps = np.diag([0.01, 0.05, 0.05, 0.05, 0.05])
        return np.array([(loss(u + h) - loss(u - h)) / (2 * h.sum()) for h in steps])

    u = [there(float(start[k])) for k, (there, _) in zip(names, to, strict=True)]
    found = optimize.minimize(loss, u, jac=slope, method="BFGS", options={"gtol": 0.2})
    assert np.abs(found.jac).max() < 0.5, found  # a hundredth of a standard error
    return params(found.x)


# -- densities that can be written another way --------------------------------------------------


def test_leverage_is_that_of_the_next_day():
    """Omori et al. (2007): tomorrow's log-variance given today's return."""
    p, rng = stochastic_volatility.LEVERAGE_TRUTH, np.random.default_rng(0)
    h, r = jnp.asarray(rng.normal(size=7)), jnp.asarray(rng.normal(size=6))
    latents = {"first": h[0], "h": h[1:]}
    found, _ = log_density(stochastic_volatility.leverage, (r,), {}, {**p, **latents})
    nothing = {k: v for k, v in p.items() if k != "rho"}
    plain, _ = log_density(
        stochastic_volatility.stochastic_volatility, (r,), {},
        {**nothing, "h0": h[0], "h": h[1:]},
    )  # fmt: skip
    h, r = np.asarray(h), np.asarray(r)
    phi, sd = 2 * p["stay"] - 1, np.exp(h / 2)
    ahead = p["mu"] + phi * (h[:-1] - p["mu"])
    steps = stats.norm.logpdf(h[1:], ahead, p["sigma"]).sum()
    plain = plain - stats.norm.logpdf(r, 0, sd[1:]).sum() - steps  # the priors and the start
    law = stats.norm.logpdf(r, 0, sd[:-1]).sum()
    tilted = ahead + p["rho"] * p["sigma"] * r / sd[:-1]
    law += stats.norm.logpdf(h[1:], tilted, p["sigma"] * np.sqrt(1 - p["rho"] ** 2)).sum()
    expected = float(plain + law + np.log(0.5))
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_heston_has_the_moments_of_the_square_root_diffusion():
    p, v = heston_returns.TRUTH, np.array([0.05, 0.4, 1.0, 3.0, 12.0])
    theta, kappa, xi = (float(p[k]) for k in ("theta", "kappa", "xi"))
    scale = xi**2 * -np.expm1(-kappa) / (4 * kappa)
    exact = stats.ncx2(4 * kappa * theta / xi**2, v * np.exp(-kappa) / scale, scale=scale)
    mean = theta + (v - theta) * np.exp(-kappa)
    variance = np.asarray(heston_returns._variance_of_variance(v, theta, kappa, xi))
    np.testing.assert_allclose(mean, exact.mean(), rtol=1e-10)
    np.testing.assert_allclose(variance, exact.var(), rtol=1e-10)
    law = heston_returns._root_law(mean, variance)
    ratio = np.asarray(law.loc / law.scale) ** 2  # the square is a scaled noncentral chi-squared
    square = stats.ncx2(1, ratio, scale=np.asarray(law.scale) ** 2)
    np.testing.assert_allclose(square.mean(), exact.mean(), rtol=1e-10)
    np.testing.assert_allclose(square.var(), exact.var(), rtol=1e-8)


@pytest.mark.slow
def test_grid_for_heston_integrates_its_program():
    p = heston_returns.TRUTH
    x = np.linspace(-2.61, 4.4, 281)  # zero itself has no density
    first, later = (jnp.asarray(v.ravel()) for v in np.meshgrid(x, x))

    def log_evidence(r):
        def density(a, b):
            latents = {"first": a, "x": b[None]}
            return log_density(heston_returns.heston, (jnp.array([r]),), {}, {**p, **latents})[0]

        return float(jax.nn.logsumexp(jax.vmap(density)(first, later)))

    grid = [heston_returns.log_likelihood_by_grid([r], p) for r in (1.0, -2.5)]
    found = log_evidence(1.0) - log_evidence(-2.5)  # the priors cancel
    assert grid[0] - grid[1] == pytest.approx(found, abs=1e-6)


def test_heston_draws_take_steps_of_the_diffusion():
    r, v = heston_returns.simulate(1, 4000, per_day=20)
    p = {k: float(x) for k, x in heston_returns.TRUTH.items()}
    before, after, r = v[:-1], v[1:], r[1:]
    mean = p["theta"] + (before - p["theta"]) * np.exp(-p["kappa"])
    law = heston_returns._variance_of_variance(before, p["theta"], p["kappa"], p["xi"])
    u = (after - mean) / np.sqrt(np.asarray(law))
    middle = (before + after) / 2
    e = (r - p["drift"] + middle / 200) / np.sqrt(middle)
    count = len(u)
    for x in (u, e):
        assert abs(x.mean()) < FOUR / np.sqrt(count)
        assert abs((x**2).mean() - 1) < FOUR * np.std(x**2) / np.sqrt(count)
    assert abs((u * e).mean() - p["rho"]) < FOUR * np.std(u * e) / np.sqrt(count)


# -- the same program elsewhere -----------------------------------------------------------------


@pytest.mark.exhaustive
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
        (stochastic_volatility.leverage, (stochastic_volatility.simulate(1, 8)[0],)),
        (stochastic_volatility.heavy_tails, (stochastic_volatility.simulate(1, 8)[0],)),
        (heston_returns.heston, (heston_returns.simulate(1, 8)[0],)),
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
    "heston_returns": heston_returns.main,
}
RETURNS = ("stochastic_volatility", "heston_returns")


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::emprob.ConvergenceWarning")  # forty draws are not a posterior
@pytest.mark.filterwarnings("ignore::emprob.DegeneracyWarning")  # nor is a filter of 32 particles
@pytest.mark.parametrize("name", MAINS)
def test_main_fits_compares_draws_and_says_where(name, tmp_path, capsys):
    pytest.importorskip("arch" if name in RETURNS else "statsmodels")
    with jax.enable_x64(False):  # as it is where nobody asked
        MAINS[name](["--quick", "--no-progress", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    for phrase in ("handled by", "converged", "EM beside NUTS", "estimate", "overlap"):
        assert phrase in text, phrase
    assert name not in RETURNS or "Particle" in text
    image, draws = tmp_path / f"{name}.png", tmp_path / f"{name}.nc"
    assert str(image) in text and str(draws) in text
    assert matplotlib.image.imread(image).std() > 0.05
    import xarray

    tree = xarray.open_datatree(draws)
    assert tree["posterior"].sizes["draw"] == 40
    tree.close()
