"""Black's formula and its inverse: 60 digits, QuantLib, round trips, bounds, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import QuantLib as ql
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erfcx, ndtri

from emprob.models.pricing import black as module
from emprob.models.pricing.black import (
    black,
    black_scholes,
    implied_deviation,
    implied_volatility,
    vega,
)

# forward, strike, deviation, sign, price by mpmath with 60 digits
ROWS = (
    (100.0, 100.0, 0.0001, 1.0, 0.0039894228023520674695),
    (100.0, 100.0, 0.2, -1.0, 7.9655674554057967338),
    (100.0, 100.01, 0.0001, 1.0, 0.00083327569123810937298),
    (100.0, 100.25, 0.0001, 1.0, 2.6672874200245114046e-141),
    (100.0, 120.0, 0.02, 1.0, 9.1467865258633777533e-21),
    (100.0, 2000.0, 0.1, 1.0, 2.6275676182977982294e-197),
    (100.0, 2000.0, 0.5, 1.0, 3.5813356864932468632e-8),
    (100.0, 2000.0, 3.0, 1.0, 56.727022170951103326),
    (100.0, 5.0, 0.15, -1.0, 8.1145349529109017513e-90),
    (100.0, 5.0, 1.5, -1.0, 0.23027808797960239414),
    (100.0, 80.0, 0.4, -1.0, 6.3911835245144299723),
    (100.0, 80.0, 0.4, 1.0, 26.391183524514429972),
    (100.0, 130.0, 3.0, 1.0, 84.803896457828857918),
    (1.0, 1.0, 8.0, 1.0, 0.99993665751633376016),
    (60000.0, 100000.0, 0.75, 1.0, 8239.7287172823828899),
)
EPS = np.finfo(float).eps
price_jit, implied_jit, vega_jit = jax.jit(black), jax.jit(implied_deviation), jax.jit(vega)
moneyness = st.floats(-3.0, 3.0)
deviations = st.floats(np.log(1e-4), np.log(3.0)).map(np.exp)


def condition(forward, strike, s, price):
    """Relative change of the deviation by a relative change of the price, at least 1."""
    slope = np.asarray(vega_jit(forward, strike, s)) * s
    return np.maximum(1.0, price / np.maximum(slope, 1e-300))


# -- the price ------------------------------------------------------------------------------------


def test_prices_have_sixty_digits_behind_them():
    forward, strike, s, sign, expected = np.array(ROWS).T
    found = np.asarray(black(forward, strike, s, sign))
    # The exponent, half the squared distance, has its own rounding.
    distance = np.abs(np.log(strike / forward)) / s
    assert (np.abs(found / expected - 1) < 8 * EPS * (1 + distance**2)).all()


def test_implied_deviations_of_sixty_digits():
    forward, strike, s, sign, price = np.array(ROWS).T
    found = np.asarray(implied_deviation(price, forward, strike, sign))
    wrong = np.abs(found / s - 1) / condition(forward, strike, s, price)
    assert wrong.max() < 8 * EPS, wrong


def test_the_difference_of_mills_ratios_does_not_cancel():
    low = np.concatenate([np.linspace(-1, 5, 200), np.geomspace(5, 40, 50)])
    ratio = np.sqrt(np.pi / 2) * erfcx(low / np.sqrt(2))
    less, more = module._mills(jnp.asarray(low), jnp.asarray(low + 1.5), jnp.asarray(1.5))
    above = np.sqrt(np.pi / 2) * erfcx((low + 1.5) / np.sqrt(2))
    np.testing.assert_allclose(more, ratio + above, rtol=4e-15)
    np.testing.assert_allclose(less, ratio - above, rtol=2e-14)
    width = 1e-9  # by the derivative, of which -M' = 1 - z M
    less, _ = module._mills(jnp.asarray(low[:200]), jnp.asarray(low[:200] + width), width)
    np.testing.assert_allclose(less / width, 1 - low[:200] * ratio[:200], rtol=3e-8)


def test_prices_agree_with_quantlib():
    rng = np.random.default_rng(0)
    forward = np.exp(rng.normal(size=10_000))
    strike = forward * np.exp(rng.uniform(-2, 2, 10_000))
    s, sign = rng.uniform(0.01, 3, 10_000), rng.choice([-1.0, 1.0], 10_000)
    found = np.asarray(price_jit(forward, strike, s, sign))
    kind = {1.0: ql.Option.Call, -1.0: ql.Option.Put}
    expected = [ql.blackFormula(kind[w], k, f, d) for f, k, d, w in zip(forward, strike, s, sign)]
    np.testing.assert_allclose(found, expected, atol=4e-15 * strike.max(), rtol=1e-13)


def test_black_scholes_discounts_and_carries():
    option = ql.EuropeanOption(
        ql.PlainVanillaPayoff(ql.Option.Put, 95.0), ql.EuropeanExercise(ql.Date(1, 1, 2027))
    )
    ql.Settings.instance().evaluationDate = ql.Date(1, 1, 2026)
    days = ql.Actual365Fixed()
    flat = [
        ql.YieldTermStructureHandle(ql.FlatForward(ql.Date(1, 1, 2026), r, days))
        for r in (0.01, 0.03)
    ]
    vol = ql.BlackConstantVol(ql.Date(1, 1, 2026), ql.NullCalendar(), 0.25, days)
    process = ql.BlackScholesMertonProcess(
        ql.QuoteHandle(ql.SimpleQuote(100.0)), *flat, ql.BlackVolTermStructureHandle(vol)
    )
    option.setPricingEngine(ql.AnalyticEuropeanEngine(process))
    found = black_scholes(100.0, 95.0, 1.0, 0.25, rate=0.03, dividend=0.01, sign=-1.0)
    assert abs(found - option.NPV()) < 1e-13
    assert (
        abs(jax.grad(black_scholes, 3)(100.0, 95.0, 1.0, 0.25, 0.03, 0.01) - option.vega()) < 1e-12
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(moneyness, deviations)
def test_parity_bounds_and_monotone(x, s):
    forward, strike = 100.0, 100.0 * np.exp(x)
    call, put = (float(price_jit(forward, strike, s, w)) for w in (1.0, -1.0))
    assert abs(call - put - (forward - strike)) < 4 * EPS * (forward + strike)
    assert max(forward - strike, 0) <= call <= forward
    assert max(strike - forward, 0) <= put <= strike
    more = float(price_jit(forward, strike, 1.01 * s, 1.0))
    higher = float(price_jit(forward, 1.01 * strike, s, 1.0))
    assert more >= call >= higher
    assert more > call or vega_jit(forward, strike, s) * s < 1e-10


# -- the inverse ----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, derandomize=True)
@given(moneyness, deviations)
def test_round_trip_out_of_the_money(x, s):
    strike = 100.0 * np.exp(x)
    sign = 1.0 if strike >= 100.0 else -1.0
    price = float(price_jit(100.0, strike, s, sign))
    if price > 1e-290:
        found = float(implied_jit(price, 100.0, strike, sign))
        assert abs(found / s - 1) < 30 * EPS * condition(100.0, strike, s, price)


def test_round_trip_of_many():
    """Every corner of e^+-3 and 1e-4..3, far more wings and money than strikes on a grid have."""
    rng = np.random.default_rng(1)
    n = 200_000
    s = np.exp(rng.uniform(np.log(1e-4), np.log(3), n))
    x = np.where(rng.random(n) < 0.5, rng.uniform(-3, 3, n), 8 * s * rng.normal(size=n))
    x = np.clip(x, -3, 3)
    x[::100] = 0
    strike = np.exp(x)
    sign = np.where(x > 0, 1.0, -1.0)
    price = np.asarray(price_jit(1.0, strike, s, sign))
    kept = price > 1e-290
    assert kept.mean() > 0.7
    found = np.asarray(implied_jit(price, 1.0, strike, sign))[kept]
    wrong = np.abs(found / s[kept] - 1) / condition(1.0, strike, s, price)[kept]
    assert np.quantile(wrong, 0.999) < 10 * EPS
    assert wrong.max() < 30 * EPS


@settings(max_examples=100, deadline=None, derandomize=True)
@given(moneyness, st.floats(0.05, 2.0), st.sampled_from([-1.0, 1.0]))
def test_round_trip_in_the_money_is_as_good_as_the_price(x, s, sign):
    strike = np.exp(x)
    price = float(price_jit(1.0, strike, s, sign))
    slope = float(vega_jit(1.0, strike, s))
    if slope > 1e-6:
        found = float(implied_jit(price, 1.0, strike, sign))
        assert abs(found - s) < 4 * EPS * (price + s) / slope + 1e-8 * EPS / slope**2 + 30 * EPS * s


def test_beyond_the_stated_range():
    """A total volatility of 1e-9, of 8, and a moneyness of e^5."""
    for x, s in ((0.0, 1e-9), (0.0, 8.0), (5.0, 0.3), (-5.0, 4.0), (1e-12, 1e-12)):
        strike = np.exp(x)
        sign = 1.0 if x >= 0 else -1.0
        price = float(black(1.0, strike, s, sign))
        found = float(implied_deviation(price, 1.0, strike, sign))
        assert abs(found / s - 1) < 100 * EPS * condition(1.0, strike, s, price), (x, s, found)


def test_a_third_step_moves_nothing(monkeypatch):
    x, s = np.meshgrid(np.linspace(-3, 3, 121), np.geomspace(0.02, 3, 60))
    strike, sign = np.exp(x), np.where(x > 0, 1.0, -1.0)
    price = np.asarray(price_jit(1.0, strike, s, sign))
    two = np.asarray(implied_jit(price, 1.0, strike, sign))
    monkeypatch.setattr(module, "STEPS", 3)
    three = np.asarray(jax.jit(lambda *a: implied_deviation(*a))(price, 1.0, strike, sign))
    some = price > 1e-290
    assert np.abs(two[some] / three[some] - 1).max() < 30 * EPS
    monkeypatch.setattr(module, "STEPS", 0)
    start = np.asarray(jax.jit(lambda *a: 1.0 * implied_deviation(*a))(price, 1.0, strike, sign))
    assert np.abs(start[some] / s[some] - 1).max() < 2e-3


def test_bounds_and_missing():
    prices = np.array([-0.1, 0.0, 1e-3, 100.0, 100.1, np.nan])
    found = np.asarray(implied_volatility(prices, 100.0, 120.0, 0.5))
    assert np.isnan(found[[0, 4, 5]]).all()
    assert found[1] == 0 and found[3] == np.inf and 0 < found[2] < 1
    put = np.asarray(implied_deviation([20.0 - 1e-9, 20.0, 120.0, 121.0], 100.0, 120.0, -1.0))
    assert np.isnan(put[[0, 3]]).all() and put[1] == 0 and put[2] == np.inf
    for illegal in ((1.0, -100.0, 100.0, 1.0), (1.0, 100.0, 0.0, 1.0), (1.0, 100.0, 100.0, 0.0)):
        assert np.isnan(implied_volatility(*illegal))
    assert np.isnan(black(100.0, 100.0, -0.1)) and np.isnan(black(-1.0, 100.0, 0.1))
    assert np.isnan(black(np.nan, 100.0, 0.1)) and np.isnan(black(100.0, 100.0, np.nan))


def test_limits_of_the_price():
    strikes = np.array([80.0, 100.0, 120.0])
    np.testing.assert_array_equal(black(100.0, strikes, 0.0), [20.0, 0.0, 0.0])
    np.testing.assert_array_equal(black(100.0, strikes, np.inf), 100.0)
    np.testing.assert_array_equal(black(100.0, strikes, np.inf, -1.0), strikes)
    assert black(100.0, 0.0, 0.3) == 100.0


# -- derivatives ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_derivatives_of_the_inverse_are_implicit():
    forward, strike, time, s = 100.0, 115.0, 0.7, 0.3
    price = float(black(forward, strike, s * np.sqrt(time)))
    slope = float(vega(forward, strike, s * np.sqrt(time))) * np.sqrt(time)
    by_price, by_forward, by_strike, by_time = jax.grad(implied_volatility, (0, 1, 2, 3))(
        price, forward, strike, time
    )
    assert abs(by_price - 1 / slope) < 1e-14
    delta, dual = jax.grad(black, (0, 1))(forward, strike, s * np.sqrt(time))
    np.testing.assert_allclose([by_forward, by_strike], [-delta / slope, -dual / slope], rtol=1e-13)
    assert abs(by_time + s / (2 * time)) < 1e-14
    volga = jax.grad(jax.grad(lambda v: black(forward, strike, v * jnp.sqrt(time))))(s)
    second = jax.grad(jax.grad(implied_volatility))(price, forward, strike, time)
    np.testing.assert_allclose(second, -volga / slope**3, rtol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(-1.0, 1.0), st.floats(0.05, 1.0))
def test_the_inverse_undoes_the_price_with_its_derivatives(x, s):
    """s(black(s, F, K), F, K) is s: its derivatives by F and K vanish, by s it is 1."""

    def there_and_back(forward, strike, s):
        return implied_deviation(black(forward, strike, s), forward, strike)

    if vega_jit(1.0, np.exp(x), s) > 1e-3:
        slopes = jax.grad(there_and_back, (0, 1, 2))(1.0, np.exp(x), s)
        np.testing.assert_allclose(slopes, [0.0, 0.0, 1.0], atol=1e-9)


@pytest.mark.parametrize("strike", [90.0, 100.0, 100.0 + 1e-9, 110.0])
def test_second_derivatives_have_no_kink_at_the_money(strike):
    """Gamma, vanna and volga in closed form, and of the inverse by the strike."""
    s = 0.2
    upper = np.log(100.0 / strike) / s + s / 2
    density = np.exp(-upper * upper / 2) / np.sqrt(2 * np.pi)
    found = second_derivatives(jnp.array([100.0, strike, s]))
    gamma, vanna = density / (100.0 * s), -density * (upper - s) / s
    volga = 100.0 * density * upper * (upper - s) / s
    np.testing.assert_allclose(found[0, 0], gamma, rtol=1e-12)
    np.testing.assert_allclose(found[0, 2], vanna, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found[2, 2], volga, rtol=1e-12)
    np.testing.assert_allclose(found[1, 1], gamma * (100.0 / strike) ** 2, rtol=1e-12)


@jax.jit
def second_derivatives(v):
    return jax.hessian(lambda v: black(v[0], v[1], v[2]))(v)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("strike", [80.0, 100.0, 120.0])
def test_no_derivative_is_nan_at_expiry(strike, sign):
    slopes = jax.grad(black, (0, 1, 2))(100.0, strike, 0.0, sign)
    assert np.isfinite(slopes).all()
    worth = 0.5 if strike == 100.0 else float(sign * (100.0 - strike) > 0)
    np.testing.assert_array_equal(slopes[:2], [sign * worth, -sign * worth])
    assert np.isfinite(jax.hessian(lambda v: black(v[0], v[1], v[2], sign))(
        jnp.array([100.0, strike, 0.0])
    )).all()  # fmt: skip
    assert np.isfinite(jax.grad(black_scholes, (0, 2, 3))(100.0, strike, 0.0, 0.2)).all()


@pytest.mark.slow
def test_masked_quotes_leave_the_gradient_alone():
    prices = jnp.array([5.0, -1.0, jnp.nan, 100.0, 0.0])

    def total(prices, forward, time):
        found = implied_volatility(prices, forward, 110.0, time)
        return jnp.where(jnp.isfinite(found), found, 0.0).sum()

    by_price, by_forward, by_time = jax.grad(total, (0, 1, 2))(prices, 100.0, 0.5)
    one = jax.grad(implied_volatility, (0, 1, 3))(5.0, 100.0, 110.0, 0.5)
    np.testing.assert_allclose(by_price, [one[0], 0, 0, 0, 0], rtol=1e-14)
    np.testing.assert_allclose([by_forward, by_time], [one[1], one[2]], rtol=1e-14)


@pytest.mark.slow
def test_transformations_and_shapes():
    strikes = jnp.linspace(80.0, 120.0, 12).reshape(3, 4)
    prices = black(100.0, strikes, 0.2)
    found = implied_deviation(prices, 100.0, strikes)
    assert found.shape == (3, 4)
    mapped = jax.vmap(jax.vmap(lambda p, k: implied_deviation(p, 100.0, k)))(prices, strikes)
    np.testing.assert_allclose(mapped, found, rtol=1e-15)
    tangent = jax.jvp(lambda p: implied_deviation(p, 100.0, strikes), (prices,), (prices,))[1]
    np.testing.assert_allclose(tangent, prices / vega(100.0, strikes, 0.2), rtol=1e-12)
    single = implied_volatility(jnp.float32(8.0), jnp.float32(100.0), jnp.float32(100.0), 1.0)
    assert single.dtype == jnp.float32 and abs(single - 2 * ndtri(0.54)) < 1e-6
    assert implied_volatility(8, 100, 100, 1).dtype == jnp.float64
