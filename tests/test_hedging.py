"""Exotic prices under uncertain parameters and hedges along paths."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import emprob as ep
from emprob.errors import ModelError
from emprob.models import exotic_prices as xp
from emprob.models import hedging as he
from emprob.models.pricing import affine, black, exotics, fourier
from emprob.models.pricing.characteristic import Heston
from emprob.models.quotes import from_arrays

FOUR = 4.0  # standard errors
LAW = Heston(0.09, 2.0, 0.06, 0.6, -0.7)


# -- derivatives through the calibration ---------------------------------------------------------


def lines(fields):
    """Volatilities on a line in log-moneyness: least squares in closed form."""
    a = numpyro.sample("a", dist.Normal(0.0, 10.0))
    b = numpyro.sample("b", dist.Normal(0.0, 10.0))
    loc = a + b * fields["k"]
    with numpyro.plate("quote", len(fields["k"])):
        numpyro.sample("mid", dist.Normal(loc, fields["noise"]), obs=fields["mid"])


def fitted_line():
    rng = np.random.default_rng(0)
    k = np.linspace(-0.3, 0.3, 7)
    fields = {"k": k, "mid": 0.5 - 0.4 * k + 0.02 * rng.normal(size=7), "noise": np.full(7, 0.02)}
    return fields, ep.fit(ep.bind(lines, fields), key=0, progress=False)


@pytest.mark.slow
def test_sensitivities_are_those_of_least_squares():
    fields, found = fitted_line()

    def price(p):
        return jnp.stack([p["a"] ** 2, jnp.exp(p["b"]), p["a"] * p["b"]])

    design = np.stack([np.ones(7), fields["k"]], 1)
    precision = design.T @ design / 0.02**2 + np.eye(2) / 100
    solve = np.linalg.solve(precision, design.T / 0.02**2)  # d (a, b) / d mid
    a, b = (float(found.params[n]) for n in "ab")
    slope = np.array([[2 * a, 0], [0, np.exp(b)], [b, a]])
    found_slope = xp.sensitivities(price, found)[0]
    np.testing.assert_allclose(found_slope["mid"], slope @ solve, rtol=1e-8, atol=1e-10)
    assert found_slope["k"].shape == found_slope["noise"].shape == (3, 7)
    np.testing.assert_allclose(xp.slopes(price, found), slope, rtol=1e-9)
    expected = np.sqrt(np.diag(slope @ np.linalg.inv(precision) @ slope.T))
    np.testing.assert_allclose(xp.spread(price, found), expected, rtol=1e-8)
    draws = xp.gaussian_draws(found, 1, 4000)
    assert set(draws) == {"a", "b"}
    values = xp.distribution(price, draws)
    np.testing.assert_allclose(values.std(0), expected, rtol=FOUR / np.sqrt(2 * 4000) + 0.02)


def test_what_moves_the_abscissae_is_a_derivative_too():
    fields, found = fitted_line()
    slope = xp.sensitivities(lambda p: jnp.stack([p["a"], p["b"]]), found)[0]["k"]
    step, moved = 1e-5, []
    for h in (step, -step):
        k = fields["k"] + h * np.eye(7)[2]
        other = ep.fit(ep.bind(lines, fields | {"k": k}), key=0, init=found.params, progress=False)
        moved.append(np.array([other.params["a"], other.params["b"]]))
    np.testing.assert_allclose(slope[:, 2], (moved[0] - moved[1]) / (2 * step), rtol=1e-4)


def test_a_program_without_data_is_refused():
    k = np.linspace(-0.3, 0.3, 7)
    noise = 0.02 * np.random.default_rng(0).normal(size=7)

    def program():
        lines({"k": k, "mid": 0.5 - 0.4 * k + noise, "noise": np.full(7, 0.02)})

    found = ep.fit(ep.bind(program), key=0, progress=False)
    with pytest.raises(ModelError, match="Pass them to"):
        xp.sensitivities(lambda p: p["a"][None], found)


def heston_quotes():
    strike = np.tile([80.0, 90.0, 100.0, 110.0, 125.0], 3)
    time = np.repeat([0.1, 0.4, 1.0], 5)
    clean = from_arrays(strike, time, 100.0, 0.3, 0.004)
    exact = fourier.volatilities(LAW, clean.log_moneyness, clean.times, clean.expiry)
    noise = 0.003 * np.random.default_rng(1).normal(size=15)
    mid = np.asarray(exact) + noise
    mid[7] = np.nan
    return replace(clean, mid=jnp.asarray(mid))


def plain_heston(quotes):
    """Heston with known noise: five parameters."""
    from emprob.models import surface_heston

    params = surface_heston.variances(quotes)
    volatility = surface_heston.surface(params, quotes)(quotes.log_moneyness, quotes.expiry)
    with numpyro.plate("quote", 15):
        numpyro.sample("mid", dist.Normal(volatility, quotes.half_spread), obs=quotes.mid)


def exact_prices(quotes):
    """Exotics that need no simulation, so that bumps have no noise."""
    from emprob.models import surface_heston

    dates = np.arange(1, 7) / 6

    def price(params):
        law = surface_heston.law(params)
        return jnp.stack([
            affine.geometric_asian_price(law, dates, 100.0, 105.0),
            1e4 * affine.variance_swap_strike(law, dates),
            fourier.price(law, 100.0, 95.0, 0.7, -1.0),
        ])  # fmt: skip

    return price


@pytest.mark.exhaustive
def test_sensitivities_of_a_heston_surface_are_those_of_bumps():
    """Recalibrated for every bump; a missing quote moves nothing."""
    quotes = heston_quotes()
    start = {k: getattr(LAW, k) for k in ("v0", "kappa", "theta", "sigma", "rho")}
    found = ep.fit(ep.bind(plain_heston, quotes), key=0, init=start, progress=False)
    assert found.converged
    price = exact_prices(quotes)
    slope = np.asarray(xp.sensitivities(price, found)[0].mid)
    assert slope.shape == (3, 15) and np.isfinite(slope).all()
    assert (slope[:, 7] == 0).all()
    for row in (0, 6, 12):
        moved = []
        for h in (1e-4, -1e-4):
            bumped = replace(quotes, mid=quotes.mid + h * np.eye(15)[row])
            other = ep.fit(ep.bind(plain_heston, bumped), key=0, tol=1e-10,
                           init=found.params, progress=False)  # fmt: skip
            moved.append(np.asarray(price(other.params)))
        bump = (moved[0] - moved[1]) / 2e-4
        np.testing.assert_allclose(slope[:, row], bump, rtol=2e-3, atol=1e-3 * np.abs(slope).max())
    units = xp.vanilla_hedge(slope, quotes)
    vega = black.vega(quotes.forward, quotes.strike, quotes.mid * jnp.sqrt(quotes.time))
    value = units * np.where(np.isnan(vega), 0.0, vega * np.sqrt(quotes.time))
    np.testing.assert_allclose(value, slope, rtol=1e-10, atol=1e-12)
    # The fit explains a vanilla by its neighbours: what moves it is mostly the quotes near it.
    near = np.abs(np.asarray(quotes.time) - 0.7) < 0.4
    assert np.abs(slope[2, near]).sum() > np.abs(slope[2, ~near]).sum()


def test_hedge_ratios_leave_what_the_instruments_do_not_span():
    rng = np.random.default_rng(3)
    root, used = rng.normal(size=(4, 4)), rng.normal(size=(2, 4))
    spanned = np.array([[0.5, -2.0]]) @ used
    units, left = xp.hedge_ratios(np.concatenate([spanned, rng.normal(size=(1, 4))]), used, root)
    np.testing.assert_allclose(units[0], [0.5, -2.0], rtol=1e-9)
    assert left[0] < 1e-9 < left[1]
    target = rng.normal(size=(1, 4))
    units, left = xp.hedge_ratios(target, used, root)
    for move in (np.array([[0.1, 0]]), np.array([[0, -0.1]])):
        assert np.linalg.norm((target - (units + move) @ used) @ root) > left[0]


@pytest.mark.exhaustive
def test_contracts_are_priced_as_one_by_one(key):
    """The simulation's controls leave every price where it was, with a smaller error."""
    quotes = heston_quotes()
    price, estimate = xp.valuation(quotes, key, 0.5, num_dates=6, num_pairs=4000)
    params = {k: jnp.asarray(getattr(LAW, k)) for k in ("v0", "kappa", "theta", "sigma", "rho")}
    found = estimate(params)
    np.testing.assert_array_equal(price(params), found.value)
    dates = 0.5 * np.arange(1, 7) / 6
    first, second = jax.random.split(key)
    drawn = exotics.simulate(LAW, first, dates, 4000)
    payoffs = xp.contracts(drawn, jnp.full(7, 100.0), second)
    plain = jax.vmap(exotics.estimate)(payoffs)
    assert (np.abs(found.value - plain.value) < FOUR * plain.error).all()
    assert (found.error < plain.error).all() and found.error[0] < 0.2 * plain.error[0]
    swap = 100 * affine.variance_swap_strike(LAW, dates)
    assert float(found.value[-1]) == pytest.approx(float(swap), rel=1e-6)


@pytest.mark.slow
def test_forward_curve_goes_through_the_forwards():
    quotes = replace(heston_quotes(), forwards=jnp.array([100.0, 103.0, 110.0]))
    times = jnp.array([0.0, 0.1, 0.25, 0.4, 1.0, 2.0])
    expected = [100.0, 100.0, np.sqrt(100 * 103), 103.0, 110.0, 110.0]
    np.testing.assert_allclose(xp.forward_curve(quotes, times), expected)


@pytest.mark.exhaustive
def test_exotic_prices_main_prints_and_draws(tmp_path, capsys):
    with jax.enable_x64(False):  # as it is where nobody asked
        table = xp.main(["--quick", "--no-progress", "--starts", "1", "--out", str(tmp_path)])
    assert list(table.index) == list(xp.NAMES) and np.isfinite(table.to_numpy()).all()
    ratio = table["sd, Gaussian approximation"] / table["sd, delta method"]
    assert ((ratio > 0.7) & (ratio < 1.4)).all()
    assert len(list(tmp_path.glob("exotic_*.png"))) == len(xp.NAMES)
    assert "One volatility point more" in capsys.readouterr().out


# -- hedges along paths ----------------------------------------------------------------------------

SOLD, USED = he.Vanilla(105.0, 0.25), he.Vanilla(100.0, 0.5)


@pytest.fixture(scope="module")
def seen():
    return he.market(LAW, jax.random.key(5), 0.25, num_dates=64, num_paths=400)


@pytest.fixture(scope="module")
def race(seen):
    return he.race(LAW, LAW, seen, SOLD, USED)


@pytest.mark.slow
def test_exposures_are_prices_and_their_derivatives(seen):
    found = he.exposure(LAW, SOLD, seen)
    day, path, step = 20, 7, 1e-4
    f, v = float(seen.forward[day, path]), float(seen.variance[day, path])
    left = 0.25 - float(seen.times[day])

    @jax.jit
    def price(f, v):
        return fourier.price(replace(LAW, v0=v), f, 105.0, left)

    assert float(found.value[day, path]) == pytest.approx(float(price(f, v)), abs=1e-6)
    slope = (price(f + 0.01, v) - price(f - 0.01, v)) / 0.02
    assert float(found.delta[day, path]) == pytest.approx(float(slope), abs=1e-4)
    slope = (price(f, v + step) - price(f, v - step)) / (2 * step)
    assert float(found.vega[day, path]) == pytest.approx(float(slope), rel=1e-3)
    np.testing.assert_allclose(found.value[-1], np.maximum(seen.forward[-1] - 105.0, 0.0))
    assert all(np.isfinite(x).all() for x in found)


def test_wealth_is_what_the_trades_add_up_to(seen):
    """One path by hand, with costs and a change of positions every third date."""
    sold, used = he.exposure(LAW, SOLD, seen), he.exposure(LAW, USED, seen)
    costs = he.Costs(0.001, 0.02)
    found = he.backtest(he.DeltaVega(), seen, sold, used, LAW, every=3, costs=costs)
    deltas, units = he.DeltaVega().positions(LAW, seen.forward, sold, used)
    p, cash, held, paid = 11, float(sold.value[0, 11]), (0.0, 0.0), 0.0
    prices = (np.asarray(seen.forward)[:, p], np.asarray(used.value)[:, p])
    for j in range(64):
        wanted = (float(deltas[j, p]), float(units[j, p])) if j % 3 == 0 else held
        for price, new, old, share in zip(prices, wanted, held, (0.001, 0.02)):
            cash -= (new - old) * price[j]
            paid += share * abs(new - old) * price[j]
        held = wanted
    for price, old, share in zip(prices, held, (0.001, 0.02)):
        cash += old * price[-1]
        paid += share * abs(old) * price[-1]
    final = cash - paid - max(float(seen.forward[-1, p]) - 105.0, 0.0)
    assert float(found.costs[p]) == pytest.approx(paid)
    assert float(found.wealth[-1, p]) == pytest.approx(final)
    assert (found.wealth[0] <= 0).all()


def test_the_mean_is_fair_and_each_hedge_is_better_than_the_last(race, seen):
    spread = {}
    for name, result in race.items():
        profit = np.asarray(result.wealth[-1])
        spread[name] = profit.std(ddof=1)
        assert abs(profit.mean()) < FOUR * spread[name] / np.sqrt(len(profit)), name
        assert (np.asarray(result.costs) == 0).all()
    assert spread["delta"] < 0.4 * spread["unhedged"]
    assert spread["minimum variance"] < 0.9 * spread["delta"]
    assert spread["delta and vega"] < 0.5 * spread["minimum variance"]


def test_error_of_a_complete_hedge_falls_with_the_root_of_the_dates(race, seen):
    sold, used = he.exposure(LAW, SOLD, seen), he.exposure(LAW, USED, seen)
    spread = [
        float(he.backtest(he.DeltaVega(), seen, sold, used, LAW, every=n).wealth[-1].std())
        for n in (1, 4, 16)
    ]
    orders = np.diff(np.log(spread)) / np.log(4)
    assert ((orders > 0.3) & (orders < 0.75)).all(), spread


def test_costs_are_taken_off_the_mean_and_nothing_else(seen):
    sold, used = he.exposure(LAW, SOLD, seen), he.exposure(LAW, USED, seen)
    free = he.backtest(he.DeltaVega(), seen, sold, used, LAW)
    dear = he.backtest(he.DeltaVega(), seen, sold, used, LAW, costs=he.Costs(0.001, 0.01))
    np.testing.assert_allclose(dear.wealth[-1], free.wealth[-1] - dear.costs, rtol=1e-9, atol=1e-9)
    assert (np.diff(np.asarray(free.wealth - dear.wealth), axis=0) > -1e-12).all()


@pytest.mark.slow
def test_a_wrong_law_hedges_worse(seen, race):
    wrong = Heston(0.09, 0.2, 0.2, 0.1, 0.5)
    found = he.race(LAW, wrong, seen, SOLD, USED)
    for name in ("minimum variance", "delta and vega"):
        assert found[name].wealth[-1].std() > 1.15 * race[name].wealth[-1].std(), name
    described = he.describe(found["delta"], 5.0)
    assert described["5 % quantile"] > described["mean below it"]


@pytest.mark.exhaustive
def test_hedging_main_prints_and_draws(tmp_path, capsys):
    with jax.enable_x64(False):  # as it is where nobody asked
        table = he.main(["--quick", "--no-progress", "--out", str(tmp_path)])
    assert (tmp_path / "hedging.png").exists() and np.isfinite(table.to_numpy()).all()
    assert "percent of the premium" in capsys.readouterr().out
