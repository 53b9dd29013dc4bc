"""SABR, SVI, SSVI and the Greeks: published tables, QuantLib, limits, arbitrage conditions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import QuantLib as ql
from hypothesis import given, settings
from hypothesis import strategies as st

from emprob.errors import ModelError
from emprob.models.pricing import sabr, svi
from emprob.models.pricing.black import black, black_scholes
from emprob.models.pricing.greeks import greeks

# Strike and volatility of QuantLib's test of SABR (interpolations.cpp, testSabrInterpolation; BSD):
# forward .039, one year, alpha .3, beta .6, nu .02, rho .01.
QUANTLIB = (
    (0.03, 1.16725837321531),
    (0.032, 1.15226075991385),
    (0.034, 1.13829711098834),
    (0.036, 1.12524190877505),
    (0.038, 1.11299079244474),
    (0.04, 1.10145609357162),
    (0.042, 1.09056348513411),
    (0.044, 1.08024942745106),
    (0.05, 1.05226642581503),
    (0.06, 1.01326171139321),
    (0.066, 0.993292584155381),
)
# A slice of raw SVI with a butterfly arbitrage (Axel Vogt; Gatheral and Jacquier, example 3.1), and
# their example 5.1 of jump wings of it.
VOGT = (-0.0410, 0.1331, 0.3060, 0.3586, 0.4153)
VOGT_WINGS = (0.01742625, -0.1752111, 0.6997381, 1.316798, 0.0116249)
correlations = st.floats(-0.98, 0.98)


def random_sabr(count, seed=0):
    """Forward, strike, time, alpha, beta, nu, rho; some at the money, some beta at its limits."""
    rng = np.random.default_rng(seed)
    forward = rng.uniform(0.005, 0.2, count)
    strike = forward * np.exp(rng.uniform(-1.5, 1.5, count))
    strike[::50] = forward[::50]
    beta = np.clip(rng.uniform(-0.1, 1.1, count), 0, 1)
    alpha = rng.uniform(0.05, 1, count) * forward ** (1 - beta)
    time, nu = rng.uniform(0.02, 20, count), rng.uniform(1e-3, 2, count)
    return forward, strike, time, alpha, beta, nu, rng.uniform(-0.99, 0.99, count)


# -- SABR -----------------------------------------------------------------------------------------


def test_sabr_reproduces_quantlibs_table():
    strike, expected = np.array(QUANTLIB).T
    found = sabr.hagan(0.039, strike, 1.0, 0.3, 0.6, 0.02, 0.01)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "kind"), [(sabr.hagan, ql.ShiftedLognormal), (sabr.normal_hagan, ql.Normal)]
)
def test_sabr_is_quantlibs_on_ten_thousand_sets(ours, kind):
    """Near the money QuantLib's logarithm cancels; there the tolerance is that of its rounding."""
    sets = random_sabr(10_000)
    found = np.asarray(jax.jit(ours)(*sets))
    forward, strike, *rest = (a.tolist() for a in sets)
    expected = [ql.sabrVolatility(k, f, *r, kind) for k, f, *r in zip(strike, forward, *rest)]
    error = np.abs(found / expected - 1)
    assert error.max() < 1e-10
    assert np.quantile(error, 0.99) < 1e-13


def test_shifted_sabr_is_quantlibs():
    forward, strike, time, alpha, beta, nu, rho = (0.002, -0.005, 2.0, 0.05, 0.4, 0.6, -0.3)
    found = sabr.hagan(forward, strike, time, alpha, beta, nu, rho, 0.02)
    expected = ql.shiftedSabrVolatility(strike, forward, time, alpha, beta, nu, rho, 0.02)
    assert abs(found - expected) < 1e-14
    assert np.isnan(sabr.hagan(forward, -0.03, time, alpha, beta, nu, rho, 0.02))


def test_obloj_is_exact_for_short_times():
    """QuantLib's ZABR with gamma = 1 has the geodesic distance of SABR."""
    sets = [a[:200] for a in random_sabr(200, 3)]
    sets[4] = np.clip(sets[4], 0.05, 0.95)
    found = np.asarray(sabr.obloj(sets[0], sets[1], 0.0, *sets[3:]))
    forward, strike, time, *params = (a.tolist() for a in sets)
    expected = [
        ql.ZabrShortMaturityLognormalSmileSection(t, f, [*p, 1.0]).volatility(k)
        for f, k, t, *p in zip(forward, strike, time, *params)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    lognormal = (sets[0], sets[1], sets[2], sets[3], 1.0, sets[5], sets[6])
    np.testing.assert_allclose(sabr.obloj(*lognormal), sabr.hagan(*lognormal), rtol=1e-14)


def test_sabr_without_volatility_of_volatility():
    """nu = 0 and beta = 1 is Black's law, nu = 0 and beta = 0 the normal one."""
    strike = np.linspace(50.0, 200.0, 7)
    np.testing.assert_allclose(sabr.hagan(100.0, strike, 1.0, 0.2, 1.0, 0.0, 0.3), 0.2, rtol=1e-15)
    flat = sabr.normal_hagan(100.0, strike, 1.0, 20.0, 0.0, 0.0, 0.3)
    np.testing.assert_allclose(flat, 20.0, rtol=2e-4)  # (A.59) is an expansion in log(F / K)
    leading = sabr.obloj(100.0, strike, 0.0, 20.0, 0.0, 0.0, 0.3)
    at = np.where(strike == 100, 1.0, strike)
    exact = np.where(strike == 100, 0.2, 20 * np.log(100 / at) / (100 - at))
    np.testing.assert_allclose(leading, exact, rtol=1e-13)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(-30, 30), correlations)
def test_the_distance_is_its_integral(z, rho):
    """chi(z) = integral of 1 / sqrt(1 - 2 rho x + x^2) from 0 to z, by Gauss–Legendre panels."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    edges = z * np.linspace(0, 1, 41)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    x = middle + half * nodes
    integral = (half * weights / np.sqrt(1 - 2 * rho * x + x * x)).sum()
    found = float(distance(z, rho))
    assert abs(found * z - integral) < 1e-12 * abs(integral) + 1e-300


distance = jax.jit(lambda z, rho: sabr._distance(jnp.asarray(z), jnp.asarray(rho)))


def test_the_distance_at_the_limits_of_rho():
    """chi is -log(1 - z) for rho = 1 and log(1 + z) for rho = -1; around 0 it has no seam."""
    z = np.array([-50.0, -0.5, 0.1, 0.5, 0.99])
    np.testing.assert_allclose(z * distance(z, 1.0), -np.log1p(-z), rtol=1e-13)
    np.testing.assert_allclose(-z * distance(-z, -1.0), np.log1p(-z), rtol=1e-13)
    for rho in (-0.99, -0.3, 0.0, 0.7):
        seam = np.array([sabr.NEAR * (1 - 1e-12), sabr.NEAR * (1 + 1e-12)])
        for sign in (1, -1):
            first, second = np.asarray(distance(sign * seam, rho))
            assert abs(first / second - 1) < 1e-13
            slope = jax.vmap(jax.grad(jax.grad(distance)), (0, None))(sign * seam, rho)
            assert abs(slope[0] - slope[1]) < 1e-7


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True)
@given(correlations, st.floats(0.0, 1.0))
def test_the_smile_is_smooth_at_the_money(rho, beta):
    """Value, slope and curvature at the money are the limits from both sides; all are finite."""
    at, left, right = (np.asarray(curve(100.0 * np.exp(x), rho, beta)) for x in (0, -1e-4, 1e-4))
    assert np.isfinite(at).all()
    np.testing.assert_allclose((left + right) / 2, at, rtol=1e-5, atol=1e-8)


@jax.jit
def curve(strike, rho, beta):
    """Value, slope and curvature of Hagan's smile, and the derivatives by its parameters."""

    def smile(k, rho, beta, nu):
        return sabr.hagan(100.0, k, 1.0, 0.2 * 100 ** (1 - beta), beta, nu, rho)

    slopes = jax.value_and_grad(smile, (0, 1, 2, 3))
    (value, by), (_, second) = jax.jvp(lambda k: slopes(k, rho, beta, 0.6), (strike,), (1.0,))
    return jnp.array([value, *by, *second])


def test_the_density_of_sabr_is_one():
    strike = jnp.linspace(0.5, 600.0, 60_001)
    found = sabr.density(100.0, strike, 0.5, 0.2, 1.0, 0.5, -0.3)
    assert abs(jnp.trapezoid(found, strike) - 1) < 1e-8
    assert abs(jnp.trapezoid(found * strike, strike) - 100) < 1e-6
    flat = sabr.density(100.0, strike, 0.5, 0.2, 1.0, 0.0, 0.0)
    s = 0.2 * np.sqrt(0.5)
    normal = np.exp(-((np.log(strike / 100) + s * s / 2) ** 2) / (2 * s * s))
    np.testing.assert_allclose(flat, normal / (strike * s * np.sqrt(2 * np.pi)), atol=1e-15)


@pytest.mark.slow
def test_arbitrage_of_sabr_is_found():
    """Hagan's formula has a negative density at low strikes of long expiries, not at short ones."""
    good = sabr.arbitrage(100.0, 0.5, 0.2, 1.0, 0.5, -0.3)
    assert good.free
    bad = sabr.arbitrage(0.03, 10.0, 0.03, 0.5, 0.4, -0.2)
    assert not bad.free and bad.butterfly < -0.5
    assert bad.at < 0.003
    strike = float(bad.at)
    bump = 1e-3 * strike

    def call(k):
        return black(0.03, k, sabr.hagan(0.03, k, 10.0, 0.03, 0.5, 0.4, -0.2) * np.sqrt(10.0))

    butterfly = call(strike - bump) - 2 * call(strike) + call(strike + bump)
    assert butterfly < 0
    assert abs(0.03 * butterfly / bump**2 / bad.butterfly - 1) < 1e-3
    shifted = sabr.arbitrage(0.01, 1.0, 0.01, 0.3, 0.3, 0.0, 0.03)
    assert np.isfinite(shifted.butterfly)


# -- SVI ------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.floats(0.001, 0.2), st.floats(0.01, 0.8), correlations, st.floats(-0.5, 0.5),
    st.floats(0.02, 1.0), st.floats(0.02, 3.0),
)  # fmt: skip
def test_parametrisations_of_svi_come_back(level, b, rho, m, sigma, time):
    raw = (level, b, rho, m, sigma)
    np.testing.assert_allclose(svi.from_natural(*svi.to_natural(*raw)), raw, atol=1e-12)
    wings = svi.to_jump_wings(*raw, time)
    # Where the minimum is at the money, jump wings leave the roundness open.
    if abs(m / np.hypot(m, sigma) - rho) > 1e-2:
        np.testing.assert_allclose(svi.from_jump_wings(*wings, time), raw, atol=1e-7)
    w = svi.total_variance(0.0, *raw)
    assert abs(wings.variance * time - w) < 1e-14
    slope = jax.grad(lambda k: jnp.sqrt(svi.total_variance(k, *raw)))(0.0)
    assert abs(wings.skew - slope) < 1e-12
    k = np.linspace(-3, 3, 2001)
    assert svi.total_variance(k, *raw).min() >= wings.minimum * time - 1e-12


def test_svi_of_the_paper():
    """Jump wings of Vogt's slice as printed, its arbitrage, and that of the repaired slice gone."""
    np.testing.assert_allclose(svi.to_jump_wings(*VOGT, 1.0), VOGT_WINGS, rtol=2e-6)
    np.testing.assert_allclose(svi.from_jump_wings(*VOGT_WINGS, 1.0), VOGT, rtol=2e-5)
    assert svi.butterfly(*VOGT) < -0.03
    variance, skew, put, _, _ = VOGT_WINGS
    call = put + 2 * skew
    least = variance * 4 * put * call / (put + call) ** 2
    repaired = svi.from_jump_wings(variance, skew, put, call, least, 1.0)
    assert svi.butterfly(*repaired) > 0
    assert abs(call - 0.3493158) < 1e-6 and abs(least - 0.01548182) < 1e-6


def test_svi_is_quantlibs():
    k = np.linspace(-1, 1, 21)
    raw = (0.04, 0.1, -0.3, 0.05, 0.2)
    smile = ql.SviSmileSection(2.0, 100.0, [raw[0], raw[1], raw[4], raw[2], raw[3]])
    expected = [smile.variance(100.0 * np.exp(x)) for x in k.tolist()]
    np.testing.assert_allclose(svi.total_variance(k, *raw), expected, rtol=1e-13)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(correlations, st.floats(0.05, 1.0), st.floats(-0.4, 0.4))
def test_durrleman_is_the_sign_of_the_density(rho, sigma, m):
    raw = (0.02, 0.3, rho, m, sigma)
    k = jnp.linspace(-1.0, 1.0, 41)
    found = np.asarray(factors(k, *raw))
    np.testing.assert_allclose(found[0], found[1], atol=1e-11)
    # the density of log S by prices: C'' in k, less C', over the discount of the change of variable
    np.testing.assert_allclose(found[2], found[3], atol=1e-8)


@jax.jit
def factors(k, *raw):
    def variance(x):
        return svi.total_variance(x, *raw)

    def call(x):
        return black(1.0, jnp.exp(x), jnp.sqrt(variance(x)))

    first, second = jax.grad(call), jax.grad(jax.grad(call))
    prices = jax.vmap(lambda x: jnp.exp(-x) * (second(x) - first(x)))(k)
    return jnp.stack([
        svi.durrleman(k, *raw), svi.durrleman_of(variance, k), svi.density(k, variance), prices,
    ])  # fmt: skip


def test_ssvi_is_a_natural_slice():
    k = np.linspace(-2, 2, 41)
    theta, rho, phi = 0.09, -0.4, 2.5
    raw = svi.from_natural(0.0, 0.0, rho, theta, phi)
    np.testing.assert_allclose(
        svi.ssvi(k, theta, rho, phi), svi.total_variance(k, *raw), rtol=1e-13
    )
    assert abs(svi.ssvi(0.0, theta, rho, phi) - theta) < 1e-16


@settings(max_examples=60, deadline=None, derandomize=True)
@given(correlations, st.floats(0.02, 0.99), st.floats(0.005, 3.0))
def test_conditions_of_ssvi_are_sufficient(rho, share, theta):
    """Theorems 4.1 and 4.2: within them no slice has a butterfly, no two cross."""
    eta = 2 * share / (1 + abs(rho))
    for phi in (
        lambda t: svi.power_law(t, eta),
        lambda t: svi.heston_like(t, (1 + abs(rho)) / 4 / share),
    ):
        thetas = jnp.array([theta, 1.1 * theta])
        assert (svi.ssvi_butterfly(thetas, rho, phi(thetas)) >= -1e-12).all()
        assert (svi.ssvi_calendar(thetas, rho, phi) >= -1e-12).all()
        raw = svi.from_natural(0.0, 0.0, rho, thetas, phi(thetas))
        a, b, m, sigma = (jnp.broadcast_to(p, 2) for p in (raw.a, raw.b, raw.m, raw.sigma))
        slices = (a, b, jnp.full(2, rho), m, sigma)
        assert (svi.butterfly(*slices) > -1e-12).all()
        assert (svi.calendar(*slices) > -1e-14).all()


def test_what_breaks_the_conditions_is_seen():
    """Steep wings have a butterfly; slices that cross have calendar arbitrage, with its margin."""
    assert svi.ssvi_butterfly(1.0, -0.5, 4.0) < 0
    steep = svi.from_natural(0.0, 0.0, -0.5, 1.0, 4.0)
    assert svi.butterfly(*steep) < 0
    assert svi.ssvi_calendar(jnp.array([0.5]), -0.9, lambda t: 1.0 / t**2) < 0
    first, second = (0.04, 0.1, -0.3, 0.0, 0.2), (0.05, 0.05, -0.3, 0.0, 0.2)
    slices = np.array([first, second]).T
    k = np.linspace(-1, 1, 201)
    rise = svi.total_variance(k, *second) - svi.total_variance(k, *first)
    np.testing.assert_allclose(svi.calendar(*slices, k), [rise.min()], atol=1e-15)
    assert rise.min() < 0
    assert svi.butterfly(-0.1, 0.1, 0.0, 0.0, 0.2) < 0  # negative variance
    assert svi.butterfly(0.04, 1.5, 0.5, 0.0, 0.2) < 0  # moments gone


def test_the_heston_like_curvature_has_no_seam():
    theta = np.array([1e-8, 0.0199999, 0.0200001, 5.0])
    found = np.asarray(svi.heston_like(theta, 1.0))
    x = theta[1:]
    np.testing.assert_allclose(found[1:], (x + np.expm1(-x)) / x**2, rtol=1e-11)
    assert abs(found[0] - 0.5) < 1e-8
    slope = jax.vmap(jax.grad(svi.heston_like), (0, None))(theta, 1.0)
    np.testing.assert_allclose(slope[:3], -1 / 6, rtol=2e-2)


# -- Greeks ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_greeks_are_quantlibs():
    today = ql.Date(1, 1, 2026)
    ql.Settings.instance().evaluationDate = today
    days = ql.Actual365Fixed()
    option = ql.EuropeanOption(
        ql.PlainVanillaPayoff(ql.Option.Call, 110.0), ql.EuropeanExercise(today + 365)
    )
    curves = [ql.YieldTermStructureHandle(ql.FlatForward(today, r, days)) for r in (0.01, 0.03)]
    vol = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), 0.25, days))
    process = ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(100.0)), *curves, vol)
    option.setPricingEngine(ql.AnalyticEuropeanEngine(process))
    found = greeks(
        black_scholes, spot=100.0, strike=110.0, time=1.0, volatility=0.25, rate=0.03, dividend=0.01
    )
    for name in ("delta", "gamma", "vega", "rho", "theta"):
        assert abs(found[name] - getattr(option, name)()) < 1e-11, name
    assert set(found) == {"delta", "gamma", "vega", "theta", "rho", "vanna", "volga", "charm"}


@pytest.mark.slow
def test_greeks_of_many_options_and_mixed_orders():
    strikes = jnp.linspace(80.0, 120.0, 5)
    found = greeks(
        black_scholes,
        {"vanna": "spot volatility", "same": "volatility spot", "speed": "spot spot spot"},
        spot=100.0, strike=strikes, time=0.5, volatility=0.2,
    )  # fmt: skip
    assert found["vanna"].shape == (5,)
    np.testing.assert_allclose(found["vanna"], found["same"], atol=1e-12)

    def gamma(spot):
        return jax.grad(jax.grad(black_scholes))(spot, 90.0, 0.5, 0.2)

    bump = (gamma(100.01) - gamma(99.99)) / 0.02
    np.testing.assert_allclose(found["speed"][1], bump, rtol=1e-6)
    # The middle strike is the spot: nothing is special there.
    inner = np.delete(np.asarray(found["speed"]), 2)
    assert inner.min() < found["speed"][2] < inner.max()


def test_greeks_reach_into_a_law():
    law = Slice(alpha=0.2, nu=0.5)
    found = greeks(
        sabr_price, {"alpha": "law.alpha", "nu": "law.nu", "delta": "forward"},
        law=law, forward=100.0, strike=jnp.array([90.0, 110.0]),
    )  # fmt: skip
    for name in ("alpha", "nu"):
        up, down = (
            sabr_price(Slice(**{**vars(law), name: getattr(law, name) + h}), 100.0, 110.0)
            for h in (1e-5, -1e-5)
        )
        np.testing.assert_allclose(found[name][1], (up - down) / 2e-5, rtol=1e-7)


def test_greeks_name_what_is_missing():
    with pytest.raises(ModelError, match="'rho'.*expected arguments among.*'rate'"):
        greeks(black_scholes, {"rho": "rate"}, spot=1.0, strike=1.0, time=1.0, volatility=0.2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slice:
    alpha: float
    nu: float


def sabr_price(law, forward, strike):
    return black(forward, strike, sabr.hagan(forward, strike, 1.0, law.alpha, 1.0, law.nu, -0.3))
