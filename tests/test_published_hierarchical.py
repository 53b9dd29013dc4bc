"""Published optima of hierarchical, factor and item response models, on data that is at hand.

Numbers are maxima of the likelihood (`prior=False`) unless a test says otherwise.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import optimize, special, stats

import emprob as ep
from emprob.models import (
    eight_schools,
    factor_analysis,
    item_response,
    logistic_random_effects,
    missing_data_normal,
    random_effects,
    student_t,
)


def fit(program, *args, method=None, fixed=None, **kwargs):
    model = ep.bind(program, *args, prior=False, fixed=fixed)
    return ep.fit(model, method, key=0, max_steps=3000, progress=False, **kwargs)


# -- linear mixed models: lme4, maximum likelihood ------------------------------------------------


def sleep_study():
    frame = random_effects.load()
    x, y = frame["days"].to_numpy(), frame["reaction"].to_numpy()
    return y, x, *random_effects.codes(frame["subject"])


def yields(table):
    frame = random_effects.load_dyestuff(table)
    return frame["yield"].to_numpy(), *random_effects.codes(frame["batch"])


@pytest.mark.exhaustive
def test_dyestuff_has_the_closed_form_of_a_balanced_layout():
    """lme4: -163.66353, 1388.3333 and 2451.25."""
    y, group, num_groups = yields(random_effects.DYESTUFF)
    found = fit(random_effects.random_intercept, y, group, num_groups)
    assert found.converged, found.message
    table = y.reshape(num_groups, -1)
    within = ((table - table.mean(1, keepdims=True)) ** 2).sum() / (table.size - num_groups)
    between = table.mean(1).var() - within / table.shape[1]
    assert found.params["sigma"] ** 2 == pytest.approx(within, rel=1e-6)
    assert found.params["tau"] ** 2 == pytest.approx(between, rel=1e-5)
    assert found.log_likelihood == pytest.approx(-163.66353, abs=1e-5)
    assert found.params["tau"] ** 2 == pytest.approx(1388.3333, rel=1e-5)
    np.testing.assert_allclose(
        found.posterior["b"].mean,
        [-16.62822, 0.36952, 26.97467, -21.80145, 53.57983, -42.49434], atol=1e-4,
    )  # fmt: skip


@pytest.mark.slow
def test_dyestuff2_ends_at_the_boundary():
    """lme4: -81.436518, variance 0, residual 13.3460993. Without batches this is one normal law."""
    y, group, num_groups = yields(random_effects.DYESTUFF2)
    found = fit(random_effects.random_intercept, y, group, num_groups)
    assert found.status is ep.Status.AT_BOUNDARY, found.message
    assert "tau" in found.message
    expected = stats.norm.logpdf(y, y.mean(), y.std()).sum()
    assert found.log_likelihood == pytest.approx(expected, abs=1e-6)
    assert found.log_likelihood == pytest.approx(-81.436518, abs=1e-5)
    assert found.params["tau"] < 1e-2
    assert found.params["sigma"] ** 2 == pytest.approx(13.3460993, rel=1e-4)
    errors = found.standard_errors()
    assert np.isnan(errors["tau"])
    assert errors["mu"] == pytest.approx(y.std() / np.sqrt(len(y)), rel=1e-4)
    assert errors["sigma"] == pytest.approx(y.std() / np.sqrt(2 * len(y)), rel=1e-3)


@pytest.mark.exhaustive
def test_sleep_study_with_correlated_slopes():
    """Bates et al. (2015), section 5, by maximum likelihood."""
    found = fit(random_effects.random_slopes, *sleep_study())
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(-875.969672, abs=1e-5)
    np.testing.assert_allclose(found.params["beta"], [251.405105, 10.467286], atol=1e-4)
    np.testing.assert_allclose(found.params["sd"] ** 2, [565.477, 32.6818], rtol=1e-3)
    covariance = found.params["R"][1, 0] * found.params["sd"].prod()
    assert covariance == pytest.approx(11.0551, rel=2e-3)
    assert found.params["sigma"] ** 2 == pytest.approx(654.946, rel=1e-3)
    # lme4 prints 6.632 and 1.502
    np.testing.assert_allclose(found.standard_errors()["beta"], [6.632, 1.502], atol=1e-3)


@pytest.mark.exhaustive
def test_sleep_study_with_uncorrelated_slopes():
    found = fit(random_effects.uncorrelated_slopes, *sleep_study())
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(-876.001628, abs=1e-5)
    np.testing.assert_allclose(found.params["sd"] ** 2, [584.266, 33.6326], rtol=1e-3)
    assert found.params["sigma"] ** 2 == pytest.approx(653.115, rel=1e-3)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")  # of statsmodels
def test_sleep_study_is_that_of_statsmodels():
    mixed = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    y, x, group, _ = sleep_study()
    design = np.column_stack([np.ones_like(x), x])
    peer = mixed.MixedLM(y, design, group, exog_re=design).fit(reml=False)
    found = fit(random_effects.random_slopes, *sleep_study())
    assert found.log_likelihood == pytest.approx(peer.llf, abs=1e-6)
    np.testing.assert_allclose(found.params["beta"], peer.fe_params, rtol=1e-6)
    effects = np.array([peer.random_effects[j] for j in range(18)])
    np.testing.assert_allclose(found.posterior["b"].mean, effects, atol=0.02)


# -- nested and crossed effects: lme4, maximum likelihood ----------------------------------------

# Davies and Goldsmith (1972), table 6.5: two assays of each of three casks of ten batches.
PASTES = """
62.8 62.6 60.1 62.3 62.7 63.1 60.0 61.4 57.5 56.9 61.1 58.9 58.7 57.5 63.9 63.1 65.4 63.7 57.1 56.4
56.9 58.6 64.7 64.5 55.1 55.1 54.7 54.2 58.8 57.5 63.4 64.9 59.3 58.1 60.5 60.0 62.5 62.6 61.0 58.7
56.9 57.7 59.2 59.4 65.2 66.0 64.8 64.1 54.8 54.8 64.0 64.0 57.7 56.8 58.3 59.3 59.2 59.2 58.9 56.6
"""

# Davies and Goldsmith (1972), table 6.6: diameters on 24 plates, of each of the samples A to F.
PENICILLIN = """
272326232321 272326232321 252125242420 262325232320 252226222320 242225232219 242023212219
262226242421 242124222220 242124232219 262326242421 252226242420 262426242522 262326232320
262325242422 252225232320 252124232320 252224232319 242123212119 262326242421 252124222218
252225222220 242124222419 242124222118
"""


def two_effects(y, one, two, num_one, num_two):
    """Normal data with two effects each, whichever way their groups lie."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
    tau = numpyro.sample("tau", dist.HalfNormal(10.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    with numpyro.plate("first", num_one):
        u = numpyro.sample("u", dist.Normal(0.0, tau[0]))
    with numpyro.plate("second", num_two):
        v = numpyro.sample("v", dist.Normal(0.0, tau[1]))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu + u[one] + v[two], sigma), obs=y)


def assert_two_effects(found, log_likelihood, variances):
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(log_likelihood, abs=1e-5)
    variance = np.r_[found.params["tau"], found.params["sigma"]] ** 2
    np.testing.assert_allclose(variance, variances, rtol=1e-4)


@pytest.mark.exhaustive
def test_casks_nested_in_batches():
    y = np.array(PASTES.split(), float)
    cask = np.arange(60) // 2
    found = fit(two_effects, y, cask // 3, cask, 10, 30)
    assert_two_effects(found, -123.997233, [1.199179, 8.433617, 0.678002])


@pytest.mark.exhaustive
def test_samples_crossed_with_plates():
    y = np.array([plate[i : i + 2] for plate in PENICILLIN.split() for i in range(0, 12, 2)], float)
    number = np.arange(144)
    found = fit(two_effects, y, number // 6, number % 6, 24, 6)
    assert_two_effects(found, -166.094174, [0.714993, 3.135192, 0.302425])


# -- eight schools --------------------------------------------------------------------------------


def test_exact_posterior_of_eight_schools():
    """posteriordb's reference draws: mu 4.41 (3.31), tau 3.60 (3.20)."""
    found = eight_schools.exact_posterior(eight_schools.EFFECTS, eight_schools.ERRORS)
    expected = {"mu": 4.41052, "sd of mu": 3.3093, "tau": 3.60206, "sd of tau": 3.19848}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.05), name


@pytest.mark.slow
def test_mode_of_eight_schools_is_at_zero():
    frame = eight_schools.load()
    model = ep.bind(eight_schools.schools, frame["effect"].to_numpy(), frame["error"].to_numpy())
    found = ep.fit(model, progress=False)
    assert found.status is ep.Status.AT_BOUNDARY, found.message
    assert found.params["tau"] < 0.1
    # with tau = 0 there is one normal mean: mu ~ Normal(0, 5^2), y_j ~ Normal(mu, s_j^2)
    precision = 1 / frame["error"] ** 2
    total = 1 / 25 + precision.sum()
    mu = (precision * frame["effect"]).sum() / total
    assert found.params["mu"] == pytest.approx(mu, abs=1e-3)
    assert found.standard_errors()["mu"] == pytest.approx(total**-0.5, rel=1e-3)


@pytest.mark.exhaustive
def test_nuts_with_the_schools_integrated_out_is_exact():
    frame = eight_schools.load()
    y, s = frame["effect"].to_numpy(), frame["error"].to_numpy()
    bayes = ep.nuts(
        ep.bind(eight_schools.schools, y, s), key=1, num_warmup=1000, num_samples=4000,
        progress=False,
    )  # fmt: skip
    table, exact = bayes.summary(), eight_schools.exact_posterior(y, s)
    for name in ("mu", "tau"):
        assert abs(table.loc[name, "mean"] - exact[name]) < 4 * table.loc[name, "mcse"], name
        assert table.loc[name, "sd"] == pytest.approx(exact[f"sd of {name}"], rel=0.1)


# -- logistic random effects: lme4 ----------------------------------------------------------------


def herds_by_grid(beta, tau, num_nodes=401):
    """The marginal log-likelihood on a dense grid, the constants of the binomial included."""
    y, size, x, group, num_groups = logistic_random_effects.arguments(
        logistic_random_effects.load()
    )
    b = np.linspace(-9 * tau, 9 * tau, num_nodes)
    rate = special.expit((x @ beta)[:, None] + b)
    cells = stats.binom.logpmf(y[:, None], size[:, None], rate)
    groups = np.stack([cells[group == g].sum(0) for g in range(num_groups)])
    step = np.log(b[1] - b[0])
    return special.logsumexp(groups + stats.norm.logpdf(b, 0, tau) + step, axis=1).sum()


@pytest.mark.exhaustive
def test_herds_by_number_of_nodes():
    """lme4: Laplace sd 0.642261; 25 nodes -91.983369 and 0.647518."""
    args = logistic_random_effects.arguments(logistic_random_effects.load())
    table = logistic_random_effects.by_order(args, (1, 7, 15))
    assert (table["status"] == "converged").all()
    assert table.loc[1, "tau"] == pytest.approx(0.642261, abs=1e-5)
    assert table.loc[15, "tau"] == pytest.approx(0.647518, abs=1e-5)
    assert table.loc[15, "log-likelihood"] == pytest.approx(-91.983369, abs=1e-6)
    beta = table.loc[15, [f"beta[{j}]" for j in range(4)]].to_numpy(float)
    np.testing.assert_allclose(beta, [-1.39923, -0.991404, -1.127819, -1.579471], atol=1e-5)
    gaps = (table["log-likelihood"] - herds_by_grid(beta, float(table.loc[15, "tau"]))).abs()
    assert gaps[1] > 0.04 > 1e-4 > gaps[7] > gaps[15]
    assert gaps[15] < 1e-6


# -- item response: Bock and Lieberman 1970, ltm --------------------------------------------------


def lsat():
    return item_response.load().to_numpy()


@pytest.mark.exhaustive
def test_rasch():
    found = fit(item_response.one_parameter, lsat(), fixed={"slope": 1.0})
    assert found.converged, found.message
    # what seven nodes leave out is 3.4e-4
    assert found.log_likelihood == pytest.approx(-2473.053847, abs=5e-4)


@pytest.mark.exhaustive
def test_one_parameter():
    found = fit(item_response.one_parameter, lsat())
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(-2466.9376, abs=1e-4)
    assert found.params["slope"] == pytest.approx(0.755134, abs=1e-4)
    difficulty = [-3.61527, -1.32242, -0.31763, -1.73009, -2.78017]
    np.testing.assert_allclose(found.params["difficulty"], difficulty, atol=1e-4)


@pytest.mark.exhaustive
def test_two_parameters():
    exact = ep.Squarem(ep.EM(ep.Laplace(15)))
    found = fit(item_response.two_parameter, lsat(), method=exact)
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(-2466.653377, abs=1e-5)
    intercept = [2.77323, 0.9902, 0.24915, 1.28476, 2.05327]
    slope = [0.82566, 0.72274, 0.89088, 0.68837, 0.65686]
    np.testing.assert_allclose(found.params["intercept"], intercept, atol=1e-4)
    np.testing.assert_allclose(found.params["slope"], slope, atol=1e-4)


def two_parameters_by_quadrature(answers, slope, intercept, num_nodes=81):
    """The marginal log-likelihood on fixed nodes; NaN is left out."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    logits = intercept + slope * nodes[:, None]
    seen = np.isfinite(answers)
    y = np.where(seen, answers, 0)
    right, wrong = special.log_expit(logits), special.log_expit(-logits)
    cells = y @ right.T + (seen - y) @ wrong.T
    return special.logsumexp(cells + np.log(weights / weights.sum()), axis=1).sum()


@pytest.mark.exhaustive
def test_two_parameters_with_a_fifth_missing_is_a_maximum_by_other_means():
    answers = item_response.with_missing(lsat(), 0.2, np.random.default_rng(0))
    exact = ep.Squarem(ep.EM(ep.Laplace(15)))
    found = fit(item_response.two_parameter, answers, method=exact)
    assert found.converged, found.message

    def loss(u):
        return -two_parameters_by_quadrature(answers, np.exp(u[:5]), u[5:])

    u = np.concatenate([np.log(found.params["slope"]), found.params["intercept"]])
    assert found.log_likelihood == pytest.approx(-loss(u), abs=1e-4)
    peer = optimize.minimize(loss, np.concatenate([np.zeros(5), np.ones(5)]), method="BFGS")
    assert found.log_likelihood == pytest.approx(-peer.fun, abs=1e-4)
    np.testing.assert_allclose(u, peer.x, atol=2e-3)


# -- factors --------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("k", "principal", "noise", "factors"),
    [
        (1, -3026.795084, 0.69117915, -2894.270284),
        (2, -2875.63626, 0.527016, -2747.191052),
        (3, -2794.918972, 0.4351104, -2684.284457),
    ],
)
def test_wine(k, principal, noise, factors):
    """The closed form of Tipping and Bishop, and scikit-learn's FactorAnalysis."""
    x = factor_analysis.load().to_numpy()
    found = fit(factor_analysis.principal_components, x, k)
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(principal, abs=1e-5)
    least = np.linalg.eigvalsh(np.cov(x.T, ddof=0))[:-k]
    assert found.params["sd"] ** 2 == pytest.approx(least.mean(), rel=1e-5)
    assert found.params["sd"] ** 2 == pytest.approx(noise, rel=1e-5)
    found = fit(factor_analysis.factor_analysis, x, k)
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(factors, abs=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("k", "chi_square"), [(1, 75.179591), (2, 6.106616)])
def test_six_tests_of_ability(k, chi_square):
    """R's factanal, on the help page of ability.cov."""
    correlation = factor_analysis.load_ability()
    rows = factor_analysis.rows_with(correlation, 112)
    np.testing.assert_allclose(rows.T @ rows / 112, correlation, atol=1e-12)
    found = fit(factor_analysis.factor_analysis, rows, k)
    assert found.converged, found.message
    assert factor_analysis.chi_square(found, correlation, 112) == pytest.approx(
        chi_square, abs=1e-4
    )
    if k == 2:
        np.testing.assert_allclose(
            found.params["sd"] ** 2,
            [0.4552241696, 0.5893321928, 0.2181795351, 0.7694214429, 0.0524517647, 0.3335883294],
            atol=1e-4,
        )


# -- normal data with holes -----------------------------------------------------------------------


@pytest.mark.exhaustive
def test_murrays_twelve_rows_have_two_maxima():
    """Murray (1977): variances 8/3 and correlation 1/2 or -1/2."""
    found = fit(missing_data_normal.saturated, missing_data_normal.MURRAY)
    assert found.converged, found.message
    Sigma = covariance_of(found, "Sigma", 2)
    np.testing.assert_allclose(np.diag(Sigma), 8 / 3, rtol=1e-4)
    assert abs(Sigma[0, 1]) == pytest.approx(4 / 3, rel=1e-4)


@pytest.mark.slow
def test_murrays_saddle_is_called_one():
    """Independence is a fixed point of EM: variances 5/2."""
    start = {"mu": np.zeros(2), "loading": np.array([1.0, 0.0]), "sd": np.array(0.8)}
    with pytest.warns(ep.ConvergenceWarning, match="saddle"):
        found = fit(missing_data_normal.saturated, missing_data_normal.MURRAY, init=start)
    assert found.status is ep.Status.SADDLE
    Sigma = covariance_of(found, "Sigma", 2)
    np.testing.assert_allclose(Sigma, 2.5 * np.eye(2), atol=1e-3)


def covariance_of(found, site, width):
    rows = found.summary()["estimate"]
    return np.array([[rows[f"{site}[{i},{j}]"] for j in range(width)] for i in range(width)])


@pytest.mark.exhaustive
def test_holes_by_factors_and_by_patterns_are_the_same_law():
    y, _ = missing_data_normal.simulate(4, 200)
    one = fit(missing_data_normal.saturated, y)
    two = fit(missing_data_normal.by_pattern, *flat(missing_data_normal.split(y)),
              init={"mu": np.nanmean(y, 0), "sd": np.nanstd(y, 0), "R": np.eye(3)})  # fmt: skip
    assert one.converged and two.converged
    Sigma = covariance_of(one, "Sigma", 3)
    expected = sum(
        stats.multivariate_normal.logpdf(
            row[np.isfinite(row)], one.params["mu"][np.isfinite(row)],
            Sigma[np.ix_(np.isfinite(row), np.isfinite(row))],
        ) for row in y
    )  # fmt: skip
    assert one.log_likelihood == pytest.approx(expected, abs=1e-7)
    assert two.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-7)
    np.testing.assert_allclose(two.params["mu"], one.params["mu"], atol=1e-4)
    np.testing.assert_allclose(covariance_of(two, "Sigma", 3), Sigma, atol=1e-3)
    errors = [f.standard_errors() for f in (one, two)]
    np.testing.assert_allclose(errors[1]["mu"], errors[0]["mu"], rtol=1e-3)
    np.testing.assert_allclose(errors[1]["Sigma"], errors[0]["Sigma"], rtol=1e-3)


@pytest.mark.exhaustive
def test_cells_as_latents_are_the_same_law_and_their_posterior_fills_the_holes():
    y, _ = missing_data_normal.simulate(4, 50)
    row, column = np.nonzero(np.isnan(y))
    init = {"mu": np.nanmean(y, 0), "sd": np.nanstd(y, 0), "R": np.eye(3)}
    whole = np.nan_to_num(y)
    model = ep.bind(
        missing_data_normal.imputed, whole, row, column, latents=("x",), prior=False
    )  # fmt: skip
    found = ep.fit(model, init=init, progress=False)
    other = fit(missing_data_normal.saturated, y)
    assert found.converged, found.message
    assert found.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-6)
    np.testing.assert_allclose(found.params["mu"], other.params["mu"], atol=1e-3)
    values, sd = missing_data_normal.filled(found, y)
    cell = found.posterior["x"]
    np.testing.assert_allclose(cell.mean, values[row, column], rtol=1e-7)
    np.testing.assert_allclose(np.sqrt(cell.variance), sd[row, column], rtol=1e-7)


def flat(split):
    patterns, rows = split
    return patterns, *rows


# -- Student-t ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("df", "coefficients", "scale2", "log_likelihood"),
    [
        (1.1, [-38.44427, 0.85196, 0.49097, -0.07119], 0.859176, -49.568784),
        (4.0, [-40.06809, 0.85709, 0.74527, -0.11512], 4.098738, -51.423337),
        (None, [-38.48266, 0.85199, 0.49025, -0.07056], 0.836799, -49.567677),
    ],
)
def test_stack_loss(df, coefficients, scale2, log_likelihood):
    """Lange, Little and Taylor (1989), table 1: -38.5, .85, .49, -.07 with df = 1.1."""
    y, x = student_t.load()
    init = student_t.least_squares(y, x) | ({"df": np.array(4.0)} if df is None else {})
    fixed = None if df is None else {"df": df}
    found = fit(student_t.student_regression, y, x, fixed=fixed, init=init)
    assert found.converged, found.message
    df = found.params.get("df", df)
    direct = stats.t.logpdf(y, df, x @ found.params["beta"], found.params["sigma"]).sum()
    assert found.log_likelihood == pytest.approx(direct, abs=1e-9)
    assert found.log_likelihood == pytest.approx(log_likelihood, abs=1e-5)
    np.testing.assert_allclose(found.params["beta"], coefficients, atol=2e-4)
    assert found.params["sigma"] ** 2 == pytest.approx(scale2, rel=1e-4)
    # the weight that the textbook's EM would give to each observation
    r = (y - x @ found.params["beta"]) / found.params["sigma"]
    np.testing.assert_allclose(found.posterior["w"].mean, (df + 1) / (df + r**2), rtol=1e-8)


@pytest.mark.slow
def test_heavy_tailed_returns_have_scipys_law():
    returns = student_t.load_returns().to_numpy()
    found = fit(student_t.student_regression, returns, np.ones((len(returns), 1)))
    assert found.converged, found.message
    df, location, scale = stats.t.fit(returns)
    assert found.params["df"] == pytest.approx(df, rel=1e-3)
    assert found.params["beta"][0] == pytest.approx(location, rel=1e-3)
    assert found.params["sigma"] == pytest.approx(scale, rel=1e-3)
    assert found.log_likelihood >= stats.t.logpdf(returns, df, location, scale).sum() - 1e-8
