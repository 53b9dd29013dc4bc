"""Fourier prices: the literature, 30 digits, QuantLib, limits, no arbitrage, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import QuantLib as ql
from hypothesis import given, settings
from hypothesis import strategies as st

from emprob.models.pricing import black, fourier
from emprob.models.pricing.characteristic import Bates, BlackScholes, Heston, Merton

LAWS = {
    "black-scholes": BlackScholes(0.25),
    "merton": Merton(0.15, 0.9, -0.1, 0.2),
    "heston": Heston(0.04, 2.0, 0.06, 0.5, -0.6),
    "bates": Bates(Heston(0.04, 2.0, 0.06, 0.5, -0.6), 0.8, -0.1, 0.15),
}
laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
price = jax.jit(fourier.price, static_argnames="nodes")
calls = jax.jit(fourier.calls, static_argnames="nodes")
volatilities = jax.jit(fourier.volatilities, static_argnames=("nodes", "least"))
WIDTH, MANY = 32, fourier.MANY_NODES
series_price = jax.jit(fourier.merton_series)


def one_expiry(law, k, time, nodes=fourier.NODES):
    """Calls at one maturity; of one shape, so that a kind of law compiles once."""
    padded = np.resize(np.asarray(k, float), WIDTH)
    found = calls(law, padded, jnp.array([time]), np.zeros(WIDTH, int), nodes)
    return np.asarray(found)[: len(k)]


# -- published and high-precision prices -----------------------------------------------------------

# Lewis (2000) as in QuantLib's tests; Fang & Oosterlee (2008); Andersen (2008): 30-digit values.
# law, forward, discount, time, strikes, prices
HESTON = (
    ((0.04, 4.0, 0.25, 1.0, -0.5), 100 * np.exp(-0.01), np.exp(-0.01), 1.0,
     (80, 90, 100, 110, 120),
     (26.774758743998856, 20.93334900059671, 16.070154917028834, 12.132211516709845,
      9.024913483457835)),
    ((0.0175, 1.5768, 0.0398, 0.5751, -0.5711), 100.0, 1.0, 1.0, (100,), (5.785155434376189,)),
    ((0.0175, 1.5768, 0.0398, 0.5751, -0.5711), 100.0, 1.0, 10.0, (100,), (22.31894579115449,)),
    ((0.04, 0.5, 0.04, 1.0, -0.9), 100.0, 1.0, 10.0, (70, 100, 140),
     (35.8497697038, 13.084670137, 0.295774435798)),
    ((0.04, 0.3, 0.04, 0.9, -0.5), 100.0, 1.0, 15.0, (70, 100, 140),
     (37.1696647178, 16.6492229204, 5.13819049378)),
    ((0.09, 1.0, 0.09, 1.0, -0.3), 100.0, 1.0, 5.0, (70, 100, 140),
     (38.772044103, 21.7952877425, 9.9830678238)),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("row", HESTON)
def test_published_heston_prices(row):
    law, forward, discount, time, strikes, expected = row
    k = np.log(np.array(strikes) / forward)
    found = discount * forward * one_expiry(Heston(*law), k, time)
    assert np.abs(found - expected).max() < 1e-8


@pytest.mark.slow
def test_published_bates_prices():
    strikes = np.array([70.0, 85.0, 100.0, 115.0, 130.0])
    expected = (32.504920470675, 20.629582546095, 11.284080134094, 5.0703832425159, 1.852108336343)
    forward = 100 * np.exp(0.02)
    found = np.exp(-0.03) * forward * one_expiry(LAWS["bates"], np.log(strikes / forward), 1.0)
    assert np.abs(found / expected - 1).max() < 1e-8


def test_published_merton_prices_by_both_ways():
    law, strikes = Merton(0.55, 12.0, -0.04, 0.07), np.array([4e4, 5e4, 6e4, 7e4, 9e4])
    expected = np.array(
        [20046.311475537, 10786.694338855, 4189.3394605018, 1144.5258557449, 38.207180421651]
    )
    found = 6e4 * one_expiry(law, np.log(strikes / 6e4), 30 / 365)
    assert np.abs(found / expected - 1).max() < 1e-8
    series = np.asarray(fourier.merton_series(law, 6e4, strikes, 30 / 365))
    assert np.abs(series / expected - 1).max() < 1e-12
    put = np.asarray(fourier.merton_series(law, 6e4, strikes, 30 / 365, -1.0))
    assert np.abs(series - put - (6e4 - strikes)).max() < 1e-8


# v0, kappa, theta, sigma, rho; log(K / F); years; call over the forward, by mpmath, 30 digits:
# long, nearly known variance, short, both ends of rho, heavy tails, a day, no mean reversion, and
# one where QuantLib's adaptive rule is off by 1e-6.
DIGITS = (
    ((0.04, 0.5, 0.04, 1.0, -0.9), -0.25, 10.0, 0.29412776679985303),
    ((0.04, 1.5, 0.06, 0.001, -0.7), 0.1, 0.5, 0.024293775917674053),
    ((0.09, 2.0, 0.04, 0.5, 0.3), 0.05, 0.01, 0.00067063355043840384),
    ((0.04, 1.0, 0.09, 0.4, -1.0), -0.1, 1.0, 0.14857051386187311),
    ((0.04, 1.0, 0.09, 0.4, 1.0), 0.1, 1.0, 0.065197906628400173),
    ((0.01, 0.3, 0.02, 2.0, 0.9), 0.3, 0.25, 0.0018303377040754326),
    ((0.5, 10.0, 0.4, 3.0, -0.6), 0.02, 1 / 365, 0.0066601473943112729),
    ((0.19, 15.6, 0.0746, 3.3, -0.51), -0.27, 13 / 365, 0.23692532213027139),
    ((0.04, 0.0, 0.04, 0.5, -0.5), 0.2, 2.0, 0.017107246539834231),
    ((0.04, 20.0, 0.09, 0.2, 0.8), 1.0, 15.0, 0.18856642402976535),
    ((0.28476, 9.8789, 0.010469, 0.069152, -0.11113), 0.14977, 1963 / 365, 0.059804390073966476),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("row", DIGITS)
def test_thirty_digits(row):
    law, k, time, expected = row
    found = one_expiry(Heston(*law), np.array([k]), time, MANY)[0]
    assert abs(found - expected) < 1e-9


# -- QuantLib --------------------------------------------------------------------------------------

TODAY = ql.Date(1, 1, 2020)


def random_laws(num, seed):
    """Heston parameters (5, N), days, log-moneyness within 2.5 standard deviations, signs."""
    rng = np.random.default_rng(seed)

    def between(low, high):
        return np.exp(rng.uniform(np.log(low), np.log(high), num))

    v0, kappa, theta, sigma = (
        between(*e) for e in ((0.01, 0.5), (0.1, 10), (0.01, 0.5), (0.05, 2.0))
    )
    days = np.round(between(4, 5475)).astype(int)
    time = days / 365
    variance = theta * time + (v0 - theta) * -np.expm1(-kappa * time) / kappa
    k = np.sqrt(variance) * rng.uniform(-2.5, 2.5, num)
    rho = rng.uniform(-0.95, 0.95, num)
    return np.array([v0, kappa, theta, sigma, rho]), days, k, rng.choice([-1.0, 1.0], num)


def quantlib(law, jumps, days, strikes, signs):
    """Prices (N,) on a forward of 1 by adaptive integration; `jumps` is (3, N) or None."""
    ql.Settings.instance().evaluationDate = TODAY
    curve = ql.FlatForward(TODAY, 0.0, ql.Actual365Fixed())
    curve, spot = ql.YieldTermStructureHandle(curve), ql.QuoteHandle(ql.SimpleQuote(1.0))
    prices = []
    for i in range(len(days)):
        if jumps is None:
            process = ql.HestonProcess(curve, curve, spot, *law[:, i])
            engine = ql.AnalyticHestonEngine(ql.HestonModel(process), 1e-12, 100_000)
        else:
            process = ql.BatesProcess(curve, curve, spot, *law[:, i], *jumps[:, i])
            engine = ql.BatesEngine(ql.BatesModel(process), 1e-12, 100_000)
        kind = ql.Option.Call if signs[i] > 0 else ql.Option.Put
        exercise = ql.EuropeanExercise(TODAY + int(days[i]))
        option = ql.VanillaOption(ql.PlainVanillaPayoff(kind, strikes[i]), exercise)
        option.setPricingEngine(engine)
        prices.append(option.NPV())
    return np.array(prices)


def ours(law, jumps, days, strikes, signs, nodes=MANY):
    """The same prices, as a batch of laws."""
    law = Heston(*law)
    law = law if jumps is None else Bates(law, *jumps)
    batch = jax.jit(jax.vmap(lambda *a: fourier.price(a[0], 1.0, *a[1:], nodes=nodes)))
    return np.asarray(batch(law, strikes, days / 365, signs))


def random_jumps(num, seed):
    rng = np.random.default_rng(seed)
    return np.array(
        [rng.uniform(0.05, 5.0, num), rng.uniform(-0.3, 0.2, num), rng.uniform(0.01, 0.3, num)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("with_jumps", [False, True])
def test_random_laws_against_quantlib(with_jumps):
    law, days, k, signs = random_laws(150, 1)
    jumps = random_jumps(150, 2) if with_jumps else None
    args = (law, jumps, days, np.exp(k), signs)
    error = np.abs(ours(*args) - quantlib(*args))
    assert np.quantile(error, 0.95) < 1e-10
    assert error.max() < 1e-8


@pytest.mark.exhaustive
@pytest.mark.parametrize("with_jumps", [False, True])
def test_ten_thousand_random_laws_against_quantlib(with_jumps):
    law, days, k, signs = random_laws(10_000, 3)
    jumps = random_jumps(10_000, 4) if with_jumps else None
    args = (law, jumps, days, np.exp(k), signs)
    found, exact = ours(*args), ours(*args, nodes=1024)
    assert np.abs(found - exact).max() < 1e-9
    error = np.abs(found - quantlib(*args))
    print(np.quantile(error, [0.5, 0.9, 0.99, 0.999, 1.0]))
    assert np.quantile(error, 0.99) < 1e-9
    # the rest is QuantLib's: its adaptive rule stops early, see the last row of DIGITS
    assert np.quantile(error, 0.998) < 1e-7 and error.max() < 1e-5
    fewer = np.abs(ours(*args, nodes=fourier.NODES) - exact)
    print(np.quantile(fewer, [0.5, 0.9, 0.99, 0.999, 1.0]))
    assert np.quantile(fewer, 0.95) < 1e-8


# -- limits ----------------------------------------------------------------------------------------

K = np.linspace(-0.5, 0.4, 10)


@pytest.mark.parametrize("time", [1e-6, 0.01, 1.0, 15.0])
def test_a_volatility_that_is_known_is_black_scholes(time):
    sigma, scale = 0.3, np.sqrt(max(time, 0.01)) * min(1.0, 1e2 * np.sqrt(time))
    k = K * scale
    expected = np.asarray(black.black(1.0, np.exp(k), sigma * np.sqrt(time)))
    for law in (
        BlackScholes(sigma),
        Heston(sigma**2, 1.3, sigma**2, 0.0, 0.4),
        Merton(sigma, 0.0, -0.1, 0.1),
    ):
        assert np.abs(one_expiry(law, k, time) - expected).max() < 1e-14
    still = Heston(sigma**2, 0.0, 0.5, 0.0, 0.4)
    assert np.abs(one_expiry(still, k, time) - expected).max() < 1e-14 + 1e-12 * time


@pytest.mark.slow
def test_vanishing_volatility_of_variance_is_its_limit_and_smooth():
    years, expiry = jnp.array([0.7]), np.zeros(len(K), int)

    def heston(sigma):
        return Heston(0.04, 1.5, 0.09, sigma, -0.7)

    def value(sigma):
        return one_expiry(heston(sigma), K, 0.7)

    variance = 0.09 * 0.7 + (0.04 - 0.09) * -np.expm1(-1.5 * 0.7) / 1.5
    known = np.asarray(black.black(1.0, np.exp(K), np.sqrt(variance)))
    assert np.abs(value(0.0) - known).max() < 1e-14
    slope = jax.jvp(lambda s: calls(heston(s), K, years, expiry), (0.0,), (1.0,))[1]
    for sigma in (1e-9, 1e-6, 1e-4, 3e-3, 1e-2):  # both sides of the series
        assert np.abs(value(sigma) - known - sigma * slope).max() < 3 * sigma**2 + 1e-12


@pytest.mark.parametrize("rho", [-1.0, 1.0])
def test_perfect_correlation_is_the_limit_of_a_strong_one(rho):
    def value(r):
        return one_expiry(Heston(0.04, 1.0, 0.09, 0.4, r), K, 1.0, 512)

    near = [np.abs(value(rho * (1 - gap)) - value(rho)).max() for gap in (1e-2, 1e-4, 1e-6)]
    assert near[0] < 1e-3
    assert near[1] < 0.02 * near[0]
    assert near[2] < 0.02 * near[1] + 1e-9


def test_no_jumps_is_heston_and_a_still_variance_is_merton():
    heston = LAWS["heston"]
    for jumps in ((0.0, -0.1, 0.2), (3.0, 0.0, 0.0)):
        found = one_expiry(Bates(heston, *jumps), K, 0.5)
        assert np.abs(found - one_expiry(heston, K, 0.5)).max() < 1e-14
    jumps = (0.9, -0.1, 0.2)
    still = one_expiry(Bates(Heston(0.04, 1.0, 0.04, 0.0, 0.0), *jumps), K, 0.5)
    assert np.abs(still - one_expiry(Merton(0.2, *jumps), K, 0.5)).max() < 1e-14


def test_at_expiry_a_price_is_its_payoff():
    for law in LAWS.values():
        assert np.abs(one_expiry(law, K, 0.0) - np.maximum(1 - np.exp(K), 0)).max() < 1e-15
    tiny = one_expiry(LAWS["heston"], np.array([-0.01, 0.0, 0.01]), 1e-7)
    expected = [1 - np.exp(-0.01), 0.2 * np.sqrt(1e-7 / (2 * np.pi)), 0.0]
    assert np.abs(tiny - expected).max() < 1e-9


@settings(max_examples=60, deadline=None)
@given(
    sigma=st.floats(0.0, 0.8), intensity=st.floats(0.0, 8.0), mean=st.floats(-0.4, 0.3),
    sd=st.floats(0.0, 0.4), time=st.floats(0.01, 3.0),
)  # fmt: skip
def test_merton_has_the_price_of_its_series(sigma, intensity, mean, sd, time):
    # a distribution with atoms is for the series alone
    law = Merton(max(sigma, 0.05), intensity, mean, sd)
    k = np.array([-0.4, -0.1, 0.0, 0.2, 0.5])
    series = np.asarray(series_price(law, 1.0, np.exp(k), time))
    assert np.abs(one_expiry(law, k, time, MANY) - series).max() < 1e-8


def test_jumps_of_one_size_are_not_cut_short():
    """|f| falls and rises again: the cut is that of the diffusion."""
    law = Merton(0.05, 3.0, 0.25, 0.0)
    k = np.array([-0.4, -0.1, 0.0, 0.2, 0.5])
    series = np.asarray(series_price(law, 1.0, np.exp(k), 3.0))
    assert np.abs(one_expiry(law, k, 3.0, MANY) - series).max() < 1e-8


# -- what no law may break -------------------------------------------------------------------------

hestons = st.builds(
    Heston, v0=st.floats(0.02, 0.6), kappa=st.floats(0.05, 10.0), theta=st.floats(0.02, 0.6),
    sigma=st.floats(0.0, 1.0), rho=st.floats(-0.9, 0.9),
)  # fmt: skip
batess = st.builds(
    Bates, heston=hestons, intensity=st.floats(0.0, 4.0), jump_mean=st.floats(-0.3, 0.2),
    jump_sd=st.floats(0.0, 0.3),
)  # fmt: skip
times = st.floats(0.02, 10.0)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(law=batess, time=times)
def test_prices_fall_and_are_convex_in_the_strike_and_within_their_bounds(law, time):
    strikes = np.linspace(0.6, 1.7, 31)
    value = one_expiry(law, np.log(strikes), time, MANY)
    slope = np.diff(value) / np.diff(strikes)
    assert (slope < 1e-7).all() and (slope > -1 - 1e-7).all()
    assert (np.diff(slope) > -1e-6).all()
    assert (value > np.maximum(1 - strikes, 0) - 1e-8).all() and (value < 1).all()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(law=batess, time=times, longer=st.floats(1.05, 3.0))
def test_prices_rise_with_time_and_variance(law, time, longer):
    k = np.linspace(-0.6, 0.6, 13)
    pair = jnp.array([time, time * longer])
    value = np.asarray(calls(law, np.tile(k, 2), pair, np.repeat([0, 1], 13), MANY))
    assert (value[13:] > value[:13] - 1e-8).all()
    h = law.heston
    more = Bates(
        Heston(h.v0 * 1.1, h.kappa, h.theta, h.sigma, h.rho), law.intensity, law.jump_mean,
        law.jump_sd,
    )  # fmt: skip
    # at the money a price rises with the variance now, whatever the correlation
    assert one_expiry(more, k[6:7], time, MANY)[0] > value[6] - 1e-8


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(law=batess, time=times, k=st.floats(-1.0, 1.0))
def test_puts_and_calls_are_in_parity(law, time, k):
    forward, strike = 87.0, 87.0 * np.exp(k)
    call, put = (float(price(law, forward, strike, time, s)) for s in (1.0, -1.0))
    assert abs(call - put - (forward - strike)) < 1e-10


@laws
def test_the_forward_is_a_martingale_and_the_law_has_total_mass_one(law):
    at = np.asarray(law.log_characteristic(jnp.array([0.0 + 0j, -1j]), 2.0))
    assert np.abs(at).max() < 1e-14


@pytest.mark.slow
@laws
def test_volatilities_reprice(law):
    k, expiry = np.tile(np.linspace(-0.3, 0.3, 7), 3), np.repeat([0, 1, 2], 7)
    years = jnp.array([0.1, 0.5, 2.0])
    vol = np.asarray(volatilities(law, k, years, expiry))
    back = black.black(1.0, np.exp(k), vol * np.sqrt(np.asarray(years)[expiry]))
    assert np.abs(back - calls(law, k, years, expiry)).max() < 1e-14
    assert np.isfinite(vol).all()


# -- derivatives, shapes, bad input ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heston", pytest.param("bates", marks=pytest.mark.exhaustive)])
def test_derivatives_are_those_of_differences(name):
    law = LAWS[name]
    k, expiry, years = np.array([-0.2, 0.0, 0.1]), np.array([0, 1, 1]), jnp.array([0.25, 2.0])

    def value(law):
        return fourier.calls(law, k, years, expiry)

    forward, reverse = (jax.tree.leaves(jax.jit(d(value))(law)) for d in (jax.jacfwd, jax.jacrev))
    leaves, structure = jax.tree.flatten(law)
    value = jax.jit(value)
    for i, slope in enumerate(forward):
        step = 1e-5 * max(abs(leaves[i]), 0.1)
        moved = [structure.unflatten(leaves[:i] + [leaves[i] + s] + leaves[i + 1 :])
                 for s in (step, -step)]  # fmt: skip
        up, down = (np.asarray(value(m)) for m in moved)
        assert np.abs((up - down) / (2 * step) - slope).max() < 2e-7
        assert np.abs(slope - reverse[i]).max() < 1e-12


EDGES = (
    Heston(0.04, 2.0, 0.06, 0.0, -0.6), Heston(0.04, 0.0, 0.06, 0.3, -0.6),
    Heston(0.04, 0.0, 0.06, 0.0, 0.0), Heston(0.0, 2.0, 0.06, 0.3, 0.0),
    Heston(0.04, 2.0, 0.0, 0.3, 0.0), Heston(0.04, 2.0, 0.06, 0.3, 1.0),
    Heston(0.04, 2.0, 0.06, 0.3, -1.0), Heston(0.0, 2.0, 0.0, 0.3, 0.0),
    Merton(0.0, 1.0, -0.1, 0.1), Merton(0.2, 0.0, 0.0, 0.0), BlackScholes(0.0),
)  # fmt: skip


slopes_of_calls = jax.jit(jax.jacrev(fourier.calls))
slopes_of_series = jax.jit(jax.jacfwd(fourier.merton_series))


@pytest.mark.slow
@pytest.mark.parametrize("law", EDGES)
def test_nothing_is_nan_at_the_edges(law):
    k, years, expiry = np.array([-0.1, 0.0, 0.1]), jnp.array([0.0, 0.5]), np.array([0, 1, 1])
    value, slopes = calls(law, k, years, expiry), slopes_of_calls(law, k, years, expiry)
    for x in (value, *jax.tree.leaves(slopes)):
        assert np.isfinite(x).all()
    if isinstance(law, Merton):
        for x in jax.tree.leaves(slopes_of_series(law, 1.0, np.exp(k), 0.5)):
            assert np.isfinite(x).all()


@pytest.mark.slow
def test_at_the_money_the_slope_in_the_strike_has_no_kink():
    slope = jax.grad(
        lambda k: calls(LAWS["heston"], k[None], jnp.array([0.5]), np.zeros(1, int))[0]
    )
    left, middle, right = (float(slope(jnp.array(k))) for k in (-1e-7, 0.0, 1e-7))
    assert abs(left - middle) < 1e-5 and abs(right - middle) < 1e-5


@pytest.mark.slow
def test_mean_reversion_that_vanishes_leaves_a_derivative():
    def value(law):
        return fourier.calls(law, jnp.array([0.1]), jnp.array([1.0]), np.zeros(1, int))[0]

    gradient = jax.jit(jax.grad(value))

    def slope(sigma, kappa):
        return float(gradient(Heston(0.04, kappa, 0.09, sigma, 0.0)).kappa)

    assert abs(slope(0.0, 0.0) / slope(0.0, 1e-6) - 1) < 1e-3
    assert abs(slope(0.3, 0.0) / slope(0.3, 1e-6) - 1) < 1e-4


def test_nan_in_nan_out():
    years, expiry = jnp.array([0.5, jnp.nan]), np.array([0, 0, 1])
    value = np.asarray(calls(LAWS["heston"], jnp.array([0.0, jnp.nan, 0.0]), years, expiry))
    assert np.isfinite(value[0]) and np.isnan(value[1:]).all()
    bad = Heston(0.04, 2.0, jnp.nan, 0.3, 0.0)
    assert np.isnan(one_expiry(bad, np.zeros(2), 1.0)).all()


@pytest.mark.slow
def test_worthless_options_have_no_volatility_unless_one_is_asked_for():
    k, years, expiry = np.array([-0.1, 0.0]), jnp.array([0.01]), np.zeros(2, int)
    law = Heston(1e-4, 1.0, 1e-4, 0.01, 0.9)
    floored = np.asarray(volatilities(law, k, years, expiry, least=1e-9))
    assert np.isfinite(floored).all() and (floored > 0).all()
    free = np.asarray(volatilities(law, k, years, expiry))
    assert abs(free[1] / 0.01 - 1) < 1e-3 and not free[0] > 0.02


@pytest.mark.slow
def test_shapes_broadcast_and_laws_batch():
    found = price(LAWS["heston"], 100.0, jnp.array([90.0, 110.0]), jnp.array([[0.5], [1.0], [2.0]]))
    assert found.shape == (3, 2)
    expected = 100 * one_expiry(LAWS["heston"], np.log([0.9, 1.1]), 1.0, MANY)
    assert np.abs(found[1] - expected).max() < 1e-12
    batch = Heston(*(jnp.array([x, x * 0.9]) for x in (0.04, 2.0, 0.06, 0.5, -0.6)))
    k, years, expiry = np.array([-0.1, 0.1]), jnp.array([0.3, 1.0]), np.array([0, 1])
    both = jax.jit(jax.vmap(lambda law: fourier.calls(law, k, years, expiry)))(batch)
    assert np.abs(both[0] - calls(LAWS["heston"], k, years, expiry)).max() < 1e-14


@pytest.mark.slow
def test_single_precision_has_single_precision_digits():
    law = jax.tree.map(lambda x: jnp.float32(x), LAWS["bates"])
    k, years = jnp.array([-0.2, 0.0, 0.2], jnp.float32), jnp.array([0.5], jnp.float32)
    found = calls(law, k, years, np.zeros(3, int))
    expected = one_expiry(LAWS["bates"], np.array([-0.2, 0.0, 0.2]), 0.5)
    assert np.abs(np.asarray(found) - expected).max() < 1e-5
