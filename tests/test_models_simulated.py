"""The gallery of simulated E-steps: the same law by exact means, published fits, every `main`."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from scipy import stats

import emprob as ep
from emprob import settle
from emprob.models import jump_diffusion, pharmacokinetics, switching_linear_dynamics

# Whole runs of the simulated E-steps warn that few particles or draws degenerate.
pytestmark = pytest.mark.filterwarnings("ignore::emprob.DegeneracyWarning")


def log_z(estep, program, *args, **params):
    """log Z of a program at given parameters."""
    model = ep.bind(program, *args, prior=False)
    if isinstance(estep, ep.Laplace):
        model = estep.adapted(model)
    return float(estep(model, {k: jnp.asarray(v, float) for k, v in params.items()}).log_partition)


# -- jump-diffusion -------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_jumps_summed_out_and_integrated_are_the_law_that_scipy_sums():
    r, _ = jump_diffusion.simulate(3, 60)
    expected = jump_diffusion.log_likelihood(r, jump_diffusion.TRUTH)
    counts = log_z(ep.Enumerate(), jump_diffusion.jump_counts, r, **jump_diffusion.TRUTH)
    assert counts == pytest.approx(expected, abs=1e-7)
    sizes = log_z(ep.Gaussian(), jump_diffusion.jump_sizes, r, **jump_diffusion.TRUTH)
    assert sizes == pytest.approx(expected, abs=1e-7)


@pytest.mark.slow
def test_one_jump_a_day_at_most_is_a_mixture_of_two():
    r, _ = jump_diffusion.simulate(5, 40)
    mu, sigma, rate, m, d = (jump_diffusion.TRUTH[k] for k in ("mu", "sigma", "rate", "m", "d"))
    w = rate / (1 + rate)
    law = (1 - w) * stats.norm.pdf(r, mu, sigma)
    law += w * stats.norm.pdf(r, mu + m, np.sqrt(sigma**2 + d**2))
    found = log_z(ep.Enumerate(), jump_diffusion.jump_counts, r, 1, **jump_diffusion.TRUTH)
    assert found == pytest.approx(np.log(law).sum(), abs=1e-9)


@pytest.mark.exhaustive
def test_the_maximum_on_real_returns_is_that_of_quasi_newton_steps():
    pytest.importorskip("arch")
    r = jump_diffusion.load(4.0).to_numpy()
    found = ep.fit(ep.bind(jump_diffusion.jump_counts, r, prior=False), key=0, progress=False)
    assert found.converged, found.message
    best, value = jump_diffusion.maximum(r, jump_diffusion.TRUTH)
    assert found.log_likelihood == pytest.approx(value, abs=1e-5)
    errors = found.standard_errors()
    for site, expected in best.items():
        assert abs(found.params[site] - expected) < 0.01 * errors[site], site


@pytest.mark.exhaustive
@pytest.mark.parametrize("told_by", ["the simulated likelihood", "Louis' identity"])
def test_saem_on_the_sizes_of_jumps_arrives_where_the_sum_over_counts_does(told_by, monkeypatch):
    """Given the counts the sizes are Gaussian, so the simulated likelihood has no noise here.

    Then the end of SAEM is exact, and says so; without it, draws tell the error.
    """
    r, n = jump_diffusion.simulate(1, 400)
    exact = ep.fit(ep.bind(jump_diffusion.jump_counts, r), key=0, tol=1e-8, progress=False)
    assert exact.converged, exact.message
    days = exact.posterior["n"].probs @ np.arange(jump_diffusion.MAX_JUMPS + 1)
    assert days[n > 0].mean() > 2 * days[n == 0].mean()
    if told_by == "Louis' identity":
        monkeypatch.setattr(settle, "is_solved", lambda _: False)
    estep = ep.SAEM(kernel=ep.NUTS(num_chains=8), window=128, final_draws=1024)
    model = ep.bind(jump_diffusion.jump_sizes, r)
    drawn = ep.fit(model, ep.EM(estep), key=0, init=jump_diffusion.TRUTH, progress=False)
    assert drawn.simulated.information.startswith(told_by)
    table = jump_diffusion.agreement(exact, drawn)
    error = np.maximum(table["Monte Carlo error"], 1e-4 * table["se"])  # 1e-4: where EM stops
    assert ((table["SAEM"] - table["exact"]).abs() < 2 * error).all(), table
    assert (error < 0.3 * table["se"]).all(), table


# -- pharmacokinetics -----------------------------------------------------------------------------

NEAR_THE_FIT = {
    "theta": np.array([0.46, 3.456, 1.007]), "omega": np.array([0.64, 0.136, 0.266]),
    "a": np.array(0.7),
}  # fmt: skip


def test_concentration_solves_its_differential_equations():
    from scipy.integrate import solve_ivp

    time = np.linspace(0, 24, 9)
    for ka, V, CL in ((1.5, 32.0, 2.8), (0.05, 30.0, 4.0), (0.1, 30.0, 3.0)):  # the last: ka = k

        def slope(t, z, ka=ka, V=V, CL=CL):
            return [-ka * z[0], ka * z[0] / V - CL / V * z[1]]

        run = solve_ivp(slope, (0, 24), [320.0, 0.0], t_eval=time, rtol=1e-10, atol=1e-12)
        ours = pharmacokinetics.concentration(320.0, time, ka, V, CL)
        np.testing.assert_allclose(ours, run.y[1], rtol=1e-7, atol=1e-9)


@pytest.mark.exhaustive
def test_quadrature_is_the_likelihood_by_a_grid_around_every_mode():
    data = pharmacokinetics.arguments(pharmacokinetics.load())
    expected = pharmacokinetics.log_likelihood(data, NEAR_THE_FIT)
    coarse = pharmacokinetics.log_likelihood(data, NEAR_THE_FIT, num=31)
    assert expected == pytest.approx(coarse, abs=1e-5)
    found = log_z(ep.Laplace(7), pharmacokinetics.one_compartment, *data, **NEAR_THE_FIT)
    assert found == pytest.approx(expected, abs=3e-3)  # seven nodes a coordinate
    rough = log_z(ep.Laplace(1), pharmacokinetics.one_compartment, *data, **NEAR_THE_FIT)
    assert abs(rough - expected) > 0.1


def test_theophylline_is_what_it_says():
    frame = pharmacokinetics.load()
    assert frame.shape == (132, 5) and frame["subject"].nunique() == 12
    assert (frame.groupby("subject").size() == 11).all()
    # R, summary(Theoph): means of weight, dose, time and concentration
    means = frame[["weight", "dose", "time", "conc"]].mean()
    np.testing.assert_allclose(means, [69.58, 4.626, 5.895, 4.960], atol=6e-3)


@pytest.mark.exhaustive
def test_the_model_of_saemix_has_the_maximum_that_saemix_printed():
    from types import SimpleNamespace

    opt = SimpleNamespace(seed=0, progress=False)
    table = pharmacokinetics.beside_saemix(opt)
    gap = table["quadrature"] / table["saemix"] - 1
    assert gap[["V", "a"]].abs().max() < 0.01, table
    assert gap[["ka", "omega^2 ka"]].abs().max() < 0.02, table
    assert abs(table.loc["-2 log L", "quadrature"] - 344.8896) < 0.3, table  # importance sampling


@pytest.mark.exhaustive
def test_saem_on_theophylline_is_adaptive_quadrature():
    model = ep.bind(
        pharmacokinetics.one_compartment, *pharmacokinetics.arguments(pharmacokinetics.load())
    )
    exact = ep.fit(model, ep.Squarem(ep.EM(ep.Laplace(7))), key=0, progress=False)
    assert exact.converged, exact.message
    estep = ep.SAEM(kernel=ep.NUTS(num_chains=8), final_draws=1024)
    drawn = ep.fit(model, ep.EM(estep), key=0, progress=False)
    # quadrature with seven nodes has an error of its own, below a hundredth of a standard error
    one, two = exact.summary(), drawn.summary()
    allowed = 4 * two["mc_error"] + 0.01 * one["se"]
    assert ((two["estimate"] - one["estimate"]).abs() < allowed).all()


@pytest.mark.exhaustive
def test_pharmacokinetics_recovers_the_truth():
    *data, _ = pharmacokinetics.simulate(3, 60)
    model = ep.bind(pharmacokinetics.one_compartment, *data)
    found = ep.fit(model, ep.Squarem(ep.EM(ep.Laplace(3))), key=0, progress=False)
    assert found.converged, found.message
    errors = found.standard_errors()
    for site, truth in pharmacokinetics.TRUTH.items():
        gap = np.abs(found.params[site] - truth) / errors[site]
        assert (gap < 4.0).all(), (site, gap)


# -- switching linear dynamics --------------------------------------------------------------------


def test_regimes_that_are_alike_leave_one_kalman_filter():
    y, *_ = switching_linear_dynamics.simulate(3, 8)
    params = {**switching_linear_dynamics.TRUTH, "ratio": np.ones(2)}
    found = switching_linear_dynamics.log_likelihood_by_paths(y, params)
    q, r = params["sd"]
    steps = np.minimum.outer(np.arange(1, 9), np.arange(1, 9))
    covariance = 4 * y.var() + q**2 * steps + r**2 * np.eye(8)
    law = stats.multivariate_normal(np.full(8, y.mean()), covariance)
    assert found == pytest.approx(law.logpdf(y), abs=1e-9)


@pytest.mark.exhaustive
def test_the_exact_sum_over_regimes_is_refused_by_name():
    y, *_ = switching_linear_dynamics.simulate(3, 8)
    model = ep.bind(switching_linear_dynamics.switching_level, y)
    assert "only by simulation" in str(model)
    with pytest.raises(ep.ModelError, match="branch for every combination"):
        ep.fit(model, ep.EM(), progress=False)


def test_inflation_is_what_it_says():
    pytest.importorskip("statsmodels")
    inflation = switching_linear_dynamics.load()
    assert len(inflation) == 202 and f"{inflation.index[0]:%Y-%m}" == "1959-04"
    assert inflation.idxmin().year == 2008 and inflation.mean() == pytest.approx(3.98, abs=0.02)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", switching_linear_dynamics.SIMULATIONS)
def test_simulated_fits_of_a_short_series_reach_the_maximum_over_all_paths(name):
    from scipy.optimize import minimize

    program = switching_linear_dynamics
    y, *_ = program.simulate(5, 12)
    # So few quarters say nothing of the regimes' lengths: those stay at the truth.
    known = {k: program.TRUTH[k] for k in ("A", "ratio")}
    model = ep.bind(program.switching_level, y, fixed=known)

    def objective(sd):
        prior = stats.halfnorm.logpdf(sd, scale=y.std()).sum()
        return program.log_likelihood_by_paths(y, {**known, "sd": sd}) + prior

    best = minimize(lambda w: -objective(np.exp(w)), np.log(program.TRUTH["sd"]), method="BFGS")
    method, start = ep.EM(program.SIMULATIONS[name]), {"sd": program.TRUTH["sd"]}
    found = ep.fit(model, method, key=0, init=start, progress=False)
    rows = found.summary()
    gap = np.abs(rows["estimate"].to_numpy() - np.exp(best.x))
    assert (gap < 4 * rows["mc_error"]).all(), (rows, np.exp(best.x))
    assert objective(found.params["sd"]) == pytest.approx(-best.fun, abs=0.05)
    told = found.simulated
    if np.isfinite(told.log_likelihood):
        exact = program.log_likelihood_by_paths(y, {**known, **found.params})
        assert abs(told.log_likelihood - exact) < 4 * told.error


# -- all ------------------------------------------------------------------------------------------

ALL = (jump_diffusion, pharmacokinetics, switching_linear_dynamics)


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.__name__.rpartition(".")[2])
def test_simulations_are_reproducible(module):
    import jax

    one, two = module.simulate(3), module.simulate(jax.random.key(3))
    np.testing.assert_array_equal(one[0], two[0])
    assert not np.array_equal(one[0], module.simulate(4)[0])


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::emprob.ConvergenceWarning")  # a look, not a result
@pytest.mark.parametrize("module", ALL, ids=lambda m: m.__name__.rpartition(".")[2])
def test_main_fits_compares_draws_and_says_where(module, tmp_path, capsys):
    pytest.importorskip("arch" if module is jump_diffusion else "statsmodels")
    name = module.__name__.rpartition(".")[2]
    years = ["--years", "1"] if module is jump_diffusion else []
    with jax.enable_x64(False):  # as it is where nobody asked
        module.main(["--quick", "--no-progress", "--out", str(tmp_path), *years])
    text = capsys.readouterr().out
    for phrase in ("handled by", "gap in errors", "EM beside NUTS", "estimate"):
        assert phrase in text, phrase
    image = tmp_path / f"{name}.png"
    assert str(image) in text and str(tmp_path / f"{name}.nc") in text
    assert matplotlib.image.imread(image).std() > 0.05
