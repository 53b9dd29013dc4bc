"""Paths, exotics and American options against closed forms, QuantLib and published tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from emprob.models.pricing import affine
from emprob.models.pricing import american as am
from emprob.models.pricing import exotics as ex
from emprob.models.pricing import paths as pa
from emprob.models.pricing.characteristic import Bates, BlackScholes, Heston, Merton

FOUR = 4.0  # standard errors
HESTON = Heston(0.09, 2.0, 0.06, 0.6, -0.7)
LAWS = {
    "black_scholes": BlackScholes(0.3),
    "merton": Merton(0.2, 1.5, -0.08, 0.1),
    "heston": HESTON,
    "bates": Bates(HESTON, 0.8, -0.1, 0.15),
}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())

# Andersen (2008), table 1, and calls at strikes 70, 100, 140 by quadrature with 30 digits; r = 0.
ANDERSEN = {
    "I": (Heston(0.04, 0.5, 0.04, 1.0, -0.9), 10.0, [35.8497697038, 13.084670137, 0.295774435798]),
    "II": (Heston(0.04, 0.3, 0.04, 0.9, -0.5), 15.0, [37.1696647178, 16.6492229204, 5.13819049378]),
    "III": (Heston(0.09, 1.0, 0.09, 1.0, -0.3), 5.0, [38.772044103, 21.7952877425, 9.9830678238]),
}


def dates(years, count):
    return jnp.arange(1, count + 1) * years / count


def growing(spot, drift, grid):
    """Forwards, the spot first."""
    return spot * jnp.exp(drift * jnp.concatenate([jnp.zeros(1), grid]))


def black(forward, strike, deviation, sign):
    d = np.log(forward / strike) / deviation
    upper, lower = (stats.norm.cdf(sign * (d + h * deviation)) for h in (0.5, -0.5))
    return sign * (forward * upper - strike * lower)


def assert_near(found, expected, bias=0.0):
    """Within four standard errors, and an error that says something."""
    value, error = (np.asarray(x) for x in found)
    expected = np.asarray(expected)
    assert (error < 0.02 * np.abs(expected) + 0.05).all(), error
    gap = np.abs(value - expected) - bias
    assert (gap <= FOUR * error).all(), (value, expected, error)


# -- schemes -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("law", [a[0] for a in ANDERSEN.values()] + [HESTON])
@pytest.mark.parametrize("variance", [1e-4, 0.04, 0.5])
def test_quadratic_exponential_step_has_the_moments_it_should(law, variance):
    """By quadrature over its normal: mean, variance, exponential moment."""
    dt, slope = 0.25, -0.7

    def moment(function, shape):
        def integrand(z):
            later, _ = pa._variance_step(law, variance, dt, z, slope)
            return function(np.asarray(later)) * stats.norm.pdf(z)

        z = np.linspace(-9, 9, 200_001)
        return integrate.simpson(integrand(z), x=z) / shape

    decay = np.exp(-law.kappa * dt)
    mean = law.theta + (variance - law.theta) * decay
    spread = law.sigma**2 * (1 - decay) / law.kappa
    spread *= variance * decay + 0.5 * law.theta * (1 - decay)
    _, log_mean = pa._variance_step(law, variance, dt, 0.0, slope)
    assert moment(lambda v: v, mean) == pytest.approx(1, rel=1e-5)
    assert moment(lambda v: (v - mean) ** 2, spread) == pytest.approx(1, rel=1e-4)
    assert moment(lambda v: np.exp(slope * v), np.exp(log_mean)) == pytest.approx(1, rel=1e-6)


def calls(law, years, key, scheme, num_pairs):
    """At 70, 100 and 140 on a forward of 100, the forward as control."""
    paths = pa.simulate(law, key, dates(years, int(4 * years)), num_pairs, scheme)
    control = jnp.exp(paths.log_ratio[-1])[None]
    return jax.vmap(lambda k: ex.estimate(ex.vanilla(paths, 100.0, k), 1.0, control, (1.0,)))(
        jnp.array([70.0, 100.0, 140.0])
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ANDERSEN)
def test_quadratic_exponential_prices_andersens_cases(case, key):
    law, years, expected = ANDERSEN[case]
    assert_near(calls(law, years, key, pa.QuadraticExponential(), 20_000), expected, bias=0.05)


@pytest.mark.slow
def test_full_truncation_has_a_bias_that_goes_with_the_step(key):
    law, years, expected = ANDERSEN["III"]
    errors = [
        np.abs(calls(law, years, key, pa.FullTruncation(n), 10_000).value - np.array(expected))
        for n in (1, 16)
    ]
    assert errors[1].max() < 0.15
    assert errors[0].max() > 4 * errors[1].max()


@pytest.mark.slow
@every_law
def test_forward_is_a_martingale_at_every_date(law, key):
    paths = pa.simulate(law, key, dates(2.0, 6), 20_000)
    for ratio in jnp.exp(paths.log_ratio[1:]):
        assert_near(ex.estimate(ratio), 1.0)


@pytest.mark.slow
def test_smile_without_volatility_of_variance_is_flat(key):
    paths = pa.simulate(Heston(0.04, 1.0, 0.04, 1e-5, -0.5), key, dates(1.0, 4), 20_000)
    control = jnp.exp(paths.log_ratio[-1])[None]
    found = ex.estimate(ex.vanilla(paths, 100.0, 110.0), 1.0, control, (1.0,))
    assert_near(found, black(100.0, 110.0, 0.2, 1.0))


@pytest.mark.slow
def test_pairs_are_mirrored_and_single_paths_are_single(key):
    law, grid = BlackScholes(0.3), dates(1.0, 3)
    pairs = pa.simulate(law, key, grid, 50)
    assert pairs.log_ratio.shape == (4, 50, 2) and pairs.integrated.shape == (3, 50, 2)
    np.testing.assert_allclose(
        pairs.log_ratio.mean(-1), -0.045 * pairs.times[:, None] * np.ones(50)
    )
    single = pa.simulate(law, key, grid, 50, noise=pa.Independent())
    assert single.log_ratio.shape == (4, 50, 1)


@pytest.mark.slow
def test_error_is_that_of_repeated_runs(key):
    def run(key):
        return ex.price(lambda p: ex.asian(p, 100.0, 105.0), HESTON, key, dates(1.0, 4), 500)

    found = jax.vmap(run)(jax.random.split(key, 400))
    ratio = found.value.std(ddof=1) / found.error.mean()
    assert abs(ratio - 1) < FOUR / np.sqrt(2 * 400)


@pytest.mark.slow
def test_laws_go_through_vmap_without_another_trace(key):
    sigma = jnp.array([0.1, 0.3])
    laws = Heston(jnp.array([0.04, 0.09]), 2.0, 0.06, 0.6, -0.7)

    def run(law):
        return ex.price(lambda p: ex.vanilla(p, 1.0, 1.0), law, key, dates(1.0, 4), 2000).value

    each = [run(Heston(v, 2.0, 0.06, 0.6, -0.7)) for v in laws.v0]
    axes = Heston(0, None, None, None, None)
    np.testing.assert_allclose(jax.vmap(run, in_axes=(axes,))(laws), each)
    assert np.isfinite(jax.vmap(lambda s: run(BlackScholes(s)))(sigma)).all()
    before = pa.simulate._cache_size()
    run(Heston(jnp.asarray(0.05), 2.0, 0.06, 0.6, -0.7))
    run(Heston(jnp.asarray(0.06), 2.0, 0.06, 0.6, -0.7))
    assert pa.simulate._cache_size() <= before + 1


def test_what_is_no_law_is_refused(key):
    with pytest.raises(TypeError, match="expected BlackScholes"):
        pa.simulate(0.3, key, dates(1.0, 2), 10)


# -- derivatives -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_pathwise_greeks_of_heston_are_those_of_quantlib(key):
    ql = pytest.importorskip("QuantLib")
    p = np.array([0.09, 2.0, 0.06, 0.6, -0.7])

    @jax.jit
    def found(params, key):
        paths = pa.simulate(Heston(*params), key, dates(1.0, 32), 4000)
        control = jnp.exp(paths.log_ratio[-1])[None]
        return ex.estimate(ex.vanilla(paths, 1.0, 1.05), 1.0, control, (1.0,)).value

    keys = jax.random.split(key, 8)
    each = jax.jit(jax.vmap(jax.jacfwd(found), (None, 0)))(jnp.array(p), keys)
    up, down = (
        np.array([_quantlib_heston(ql, *(p + h * step)) for step in np.eye(5)])
        for h in (1e-4, -1e-4)
    )
    expected, error = (up - down) / 2e-4, each.std(0, ddof=1) / np.sqrt(8)
    assert (error < 0.03 * np.abs(expected) + 4e-4).all()
    gap = np.abs(each.mean(0) - expected)
    assert (gap < FOUR * error + 0.01 * np.abs(expected)).all()


def _quantlib_heston(ql, v0, kappa, theta, sigma, rho, jumps=None):
    """A call at 1.05 on a forward of one in a year of 365 days."""
    today = ql.Date(1, 1, 2021)
    ql.Settings.instance().evaluationDate = today
    flat = ql.YieldTermStructureHandle(ql.FlatForward(today, 0.0, ql.Actual365Fixed()))
    spot = ql.QuoteHandle(ql.SimpleQuote(1.0))
    args = (flat, flat, spot, v0, kappa, theta, sigma, rho)
    if jumps is None:
        engine = ql.AnalyticHestonEngine(ql.HestonModel(ql.HestonProcess(*args)), 192)
    else:
        model = ql.BatesModel(ql.BatesProcess(*args, *(float(x) for x in jumps)))
        engine = ql.BatesEngine(model, 192)
    option = ql.VanillaOption(
        ql.PlainVanillaPayoff(ql.Option.Call, 1.05), ql.EuropeanExercise(today + 365)
    )
    option.setPricingEngine(engine)
    return option.NPV()


@pytest.mark.slow
def test_weights_carry_the_derivative_in_the_intensity(key):
    ql = pytest.importorskip("QuantLib")
    base, jumps = (0.09, 2.0, 0.06, 0.6, -0.7), np.array([0.8, -0.1, 0.15])

    def run(jumps, key):
        law = Bates(Heston(*base), *jumps)
        return ex.price(lambda p: ex.vanilla(p, 1.0, 1.05), law, key, dates(1.0, 4), 4000)

    keys = jax.random.split(key, 16)
    assert_near(ex.estimate(jax.vmap(lambda k: run(jumps, k).value)(keys)[:, None]),
                _quantlib_heston(ql, *base, jumps=jumps), bias=2e-4)  # fmt: skip
    slopes = jax.vmap(lambda k: jax.jacfwd(lambda j: run(j, k).value)(jumps))(keys)
    up, down = (
        np.array([_quantlib_heston(ql, *base, jumps=jumps + h * step) for step in np.eye(3)])
        for h in (1e-4, -1e-4)
    )
    expected, error = (up - down) / 2e-4, slopes.std(0, ddof=1) / 4
    assert (error < 0.02).all()
    assert (np.abs(slopes.mean(0) - expected) < FOUR * error + 1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [pa.QuadraticExponential(), pa.FullTruncation(2)])
def test_no_gradient_is_nan(scheme, key):
    def run(params):
        paths = pa.simulate(Heston(*params), key, dates(1.0, 4), 200, scheme)
        payoffs = [
            ex.knock_out(paths, 100.0, 100.0, 120.0, 1.0),
            ex.lookback(paths, 100.0, key, 100.0),
            ex.realised_variance(paths, 100.0),
            ex.cliquet(paths, 100.0, -0.05, 0.05),
        ]
        return jnp.stack([x.mean() for x in payoffs])

    forward, reverse = jax.jit(jax.jacfwd(run)), jax.jit(jax.jacrev(run))
    for rho in (-1.0, 0.0, 1.0):
        params = jnp.array([1e-6, 0.3, 0.02, 1.0, rho])
        assert np.isfinite(forward(params)).all()
        np.testing.assert_allclose(reverse(params), forward(params), rtol=1e-8, atol=1e-9)


# -- Asian -----------------------------------------------------------------------------------------


@pytest.mark.slow
@every_law
def test_transform_of_one_step_is_the_characteristic_function(law):
    u = np.array([0.3, 2.0, 15.0])
    expected = jax.vmap(lambda x: law.log_characteristic(x, 1.5))(u)
    for times in ([0.0, 1.5], [0.0, 0.2, 0.7, 1.5]):  # what is equal at all dates adds up
        slopes = 1j * u[:, None] * np.ones(len(times) - 1)
        one = jax.vmap(affine.log_transform, (None, None, 0))(law, jnp.array(times), slopes)
        np.testing.assert_allclose(one, expected, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_geometric_asian_is_kemnas_and_vorsts(sign):
    grid, sigma = np.array([0.1, 0.4, 1.0]), 0.3
    forwards = growing(100.0, 0.05, grid)
    spread = sigma**2 * np.minimum.outer(grid, grid).mean()
    middle = np.log(forwards[1:]).mean() - 0.5 * sigma**2 * grid.mean()
    expected = black(np.exp(middle + 0.5 * spread), 105.0, np.sqrt(spread), sign)
    found = affine.geometric_asian_price(BlackScholes(sigma), grid, forwards, 105.0, sign)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_geometric_asian_under_heston_is_quantlibs():
    ql = pytest.importorskip("QuantLib")
    today = ql.Date(1, 1, 2021)
    ql.Settings.instance().evaluationDate = today
    days = [73, 146, 219, 292, 365]
    flat = ql.YieldTermStructureHandle(ql.FlatForward(today, 0.0, ql.Actual365Fixed()))
    spot = ql.QuoteHandle(ql.SimpleQuote(100.0))
    process = ql.HestonProcess(flat, flat, spot, 0.09, 2.0, 0.06, 0.6, -0.7)
    engine = ql.AnalyticDiscreteGeometricAveragePriceAsianHestonEngine(process)
    for strike in (80.0, 100.0, 120.0):
        option = ql.DiscreteAveragingAsianOption(
            ql.Average.Geometric, 1.0, 0, [today + d for d in days],
            ql.PlainVanillaPayoff(ql.Option.Call, strike), ql.EuropeanExercise(today + 365),
        )  # fmt: skip
        option.setPricingEngine(engine)
        found = affine.geometric_asian_price(HESTON, np.array(days) / 365, 100.0, strike)
        assert found == pytest.approx(option.NPV(), abs=2e-5)


@pytest.mark.slow
@every_law
def test_geometric_asian_is_that_of_paths(law, key):
    grid = dates(1.0, 6)
    forwards = growing(100.0, 0.03, grid)
    paths = pa.simulate(law, key, grid, 20_000, pa.QuadraticExponential(2))
    for strike, sign in ((100.0, 1.0), (110.0, -1.0)):
        found = ex.estimate(ex.geometric_asian(paths, forwards, strike, sign), paths.weights)
        assert_near(found, affine.geometric_asian_price(law, grid, forwards, strike, sign))


@pytest.mark.slow
def test_arithmetic_asian_of_two_dates_is_an_integral(key):
    """Given the first level, a call on the mean is a call on the second."""
    sigma, grid, strike = 0.4, np.array([0.5, 1.0]), 105.0
    step = sigma * np.sqrt(0.5)

    def given(z):
        s = 100 * np.exp(step * z - 0.5 * step**2)
        rest = 2 * strike - s
        value = black(s, rest, step, 1.0) if rest > 0 else 2 * s - 2 * strike
        return 0.5 * value * stats.norm.pdf(z)

    expected, _ = integrate.quad(given, -9, 9, epsabs=1e-10, limit=200)
    found = ex.asian_price(BlackScholes(sigma), key, grid, 100.0, strike, num_pairs=20_000)
    assert_near(found, expected)
    plain = ex.price(
        lambda p: ex.asian(p, 100.0, strike), BlackScholes(sigma), key, grid, 20_000
    )  # fmt: skip
    assert found.error < 0.25 * plain.error


def test_controls_leave_the_mean_and_a_constant_control_does_nothing(key):
    y, x = np.asarray(jax.random.normal(key, (2, 5000, 2)))
    plain = ex.estimate(y)
    same = ex.estimate(y, 1.0, np.ones((1, 5000, 2)), (1.0,))
    np.testing.assert_allclose(same, plain, rtol=1e-9)
    both = ex.estimate(y + 3 * x, 1.0, x[None], (0.0,))
    assert_near(both, 0.0)
    assert float(both.error) == pytest.approx(float(plain.error), rel=0.02)


# -- barriers and lookbacks ------------------------------------------------------------------------


def _quantlib_flat(ql, spot, rate, sigma):
    today = ql.Date(1, 1, 2021)
    ql.Settings.instance().evaluationDate = today
    count = ql.Actual365Fixed()
    # The drift is a negative dividend and the rate zero: nothing is discounted.
    none, carry = (
        ql.YieldTermStructureHandle(ql.FlatForward(today, r, count)) for r in (0.0, -rate)
    )
    vol = ql.BlackConstantVol(today, ql.NullCalendar(), sigma, count)
    return today, ql.BlackScholesMertonProcess(
        ql.QuoteHandle(ql.SimpleQuote(spot)), carry, none, ql.BlackVolTermStructureHandle(vol)
    )


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("barrier", "direction"), [(125.0, 1.0), (85.0, -1.0)])
def test_barriers_are_reiners_and_rubinsteins(barrier, direction, sign, key):
    """With three dates only: the bridge leaves no bias."""
    ql = pytest.importorskip("QuantLib")
    today, process = _quantlib_flat(ql, 100.0, 0.04, 0.25)
    kinds = ((ql.Barrier.UpOut, ql.Barrier.UpIn) if direction > 0
             else (ql.Barrier.DownOut, ql.Barrier.DownIn))  # fmt: skip
    grid = dates(1.0, 3)
    forwards = growing(100.0, 0.04, grid)
    paths = pa.simulate(BlackScholes(0.25), key, grid, 40_000)
    for payoff, kind in zip((ex.knock_out, ex.knock_in), kinds):
        option = ql.BarrierOption(
            kind, barrier, 0.0,
            ql.PlainVanillaPayoff(ql.Option.Call if sign > 0 else ql.Option.Put, 98.0),
            ql.EuropeanExercise(today + 365),
        )  # fmt: skip
        option.setPricingEngine(ql.AnalyticBarrierEngine(process))
        found = ex.estimate(payoff(paths, forwards, 98.0, barrier, direction, sign))
        assert_near(found, option.NPV())


@pytest.mark.slow
def test_a_barrier_looked_at_on_dates_is_one_further_away(key):
    """Broadie, Glasserman and Kou (1997): by exp(.5826 sigma sqrt(dt))."""
    sigma, grid = 0.3, dates(1.0, 50)
    paths = pa.simulate(BlackScholes(sigma), key, grid, 20_000)
    shift = np.exp(0.5825971579 * sigma * np.sqrt(1 / 50))
    there = ex.knock_out(paths, 100.0, 100.0, 130.0, 1.0, monitor=ex.AtDates())
    moved = ex.knock_out(paths, 100.0, 100.0, 130.0 * shift, 1.0)
    always = ex.knock_out(paths, 100.0, 100.0, 130.0, 1.0)
    gap = ex.estimate(there - moved)
    assert abs(gap.value) < FOUR * gap.error + 0.02
    assert ex.estimate(there - always).value > 10 * abs(gap.value)


@pytest.mark.slow
def test_barrier_delta_is_that_of_bumps(key):
    ql = pytest.importorskip("QuantLib")
    grid = dates(1.0, 4)

    def found(spot):
        paths = pa.simulate(BlackScholes(0.25), key, grid, 40_000)
        return ex.estimate(ex.knock_out(paths, spot, 95.0, 85.0, -1.0)).value

    def closed(spot):
        today, process = _quantlib_flat(ql, spot, 0.0, 0.25)
        option = ql.BarrierOption(
            ql.Barrier.DownOut, 85.0, 0.0, ql.PlainVanillaPayoff(ql.Option.Call, 95.0),
            ql.EuropeanExercise(today + 365),
        )  # fmt: skip
        option.setPricingEngine(ql.AnalyticBarrierEngine(process))
        return option.NPV()

    assert jax.grad(found)(100.0) == pytest.approx((closed(100.1) - closed(99.9)) / 0.2, rel=0.02)


@pytest.mark.exhaustive
def test_barrier_under_heston_is_that_of_finite_differences(key):
    ql = pytest.importorskip("QuantLib")
    today = ql.Date(1, 1, 2021)
    ql.Settings.instance().evaluationDate = today
    flat = ql.YieldTermStructureHandle(ql.FlatForward(today, 0.0, ql.Actual365Fixed()))
    spot = ql.QuoteHandle(ql.SimpleQuote(100.0))
    process = ql.HestonProcess(flat, flat, spot, 0.09, 2.0, 0.06, 0.6, -0.7)
    option = ql.BarrierOption(
        ql.Barrier.DownOut, 85.0, 0.0, ql.PlainVanillaPayoff(ql.Option.Call, 100.0),
        ql.EuropeanExercise(today + 365),
    )  # fmt: skip
    option.setPricingEngine(
        ql.FdHestonBarrierEngine(ql.HestonModel(process), 200, 400, 100)
    )  # fmt: skip
    paths = pa.simulate(HESTON, key, dates(1.0, 100), 50_000)
    control = ex.vanilla(paths, 100.0, 100.0)[None]
    known = _quantlib_european(ql, process, today)
    out = ex.knock_out(paths, 100.0, 100.0, 85.0, -1.0)
    assert_near(ex.estimate(out, 1.0, control, (known,)), option.NPV(), bias=0.02)


def _quantlib_european(ql, process, today):
    option = ql.VanillaOption(
        ql.PlainVanillaPayoff(ql.Option.Call, 100.0), ql.EuropeanExercise(today + 365)
    )
    option.setPricingEngine(ql.AnalyticHestonEngine(ql.HestonModel(process), 192))
    return option.NPV()


@pytest.mark.slow
def test_bridge_ends_before_the_jump(key):
    """Without diffusion a path drifts up and jumps down, at the end of a step."""
    law, grid = Merton(1e-4, 2.0, -0.3, 1e-6), dates(1.0, 2)
    paths = pa.simulate(law, key, grid, 5000)
    s = pa.levels(paths, 100.0)
    below = ex.Always().survival(paths, 100.0, 95.0, -1.0)
    np.testing.assert_array_equal(below, (s > 95.0).all(0))
    above = ex.Always().survival(paths, 100.0, 125.0, 1.0)
    peaks = s[1:] * np.exp(-paths.jumps)
    np.testing.assert_array_equal(above, (peaks < 125.0).all(0))
    assert ((s < 125.0).all(0) & (above == 0)).any() and (below == 0).any() and (below == 1).any()
    top = ex.extreme(paths, 100.0, key, 1.0)
    np.testing.assert_allclose(top, np.maximum(peaks.max(0), 100.0), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_lookbacks_are_those_of_quantlib(sign, key):
    ql = pytest.importorskip("QuantLib")
    today, process = _quantlib_flat(ql, 100.0, 0.06, 0.3)
    kind = ql.Option.Call if sign > 0 else ql.Option.Put
    end = ql.EuropeanExercise(today + 365)
    fixed = ql.ContinuousFixedLookbackOption(100.0, ql.PlainVanillaPayoff(kind, 105.0), end)
    fixed.setPricingEngine(ql.AnalyticContinuousFixedLookbackEngine(process))
    floating = ql.ContinuousFloatingLookbackOption(100.0, ql.FloatingTypePayoff(kind), end)
    floating.setPricingEngine(ql.AnalyticContinuousFloatingLookbackEngine(process))
    grid = dates(1.0, 2)
    forwards = growing(100.0, 0.06, grid)
    first, second = jax.random.split(key)
    paths = pa.simulate(BlackScholes(0.3), first, grid, 40_000)
    assert_near(ex.estimate(ex.lookback(paths, forwards, second, 105.0, sign)), fixed.NPV())
    assert_near(ex.estimate(ex.floating_lookback(paths, forwards, second, sign)), floating.NPV())


# -- cliquets, variance ----------------------------------------------------------------------------


def test_cliquet_without_global_bounds_is_a_sum_of_call_spreads(key):
    sigma, grid = 0.2, dates(1.0, 4)
    forwards = growing(100.0, 0.08, grid)
    ratio = np.exp(0.02)
    spread = sigma * np.sqrt(0.25)
    one = -0.03 + black(ratio, 0.97, spread, 1.0) - black(ratio, 1.05, spread, 1.0)
    paths = pa.simulate(BlackScholes(sigma), key, grid, 20_000)
    found = ex.cliquet(paths, forwards, -0.03, 0.05)
    assert_near(ex.estimate(found), 4 * one)
    bounded = ex.cliquet(paths, forwards, -0.03, 0.05, 0.0, 0.12)
    np.testing.assert_allclose(bounded, np.clip(found, 0.0, 0.12))


@pytest.mark.slow
def test_forward_start_under_heston_is_an_integral(key):
    """One return far in the future, by its transform: what a cliquet is made of."""
    times, slopes = jnp.array([0.0, 1.0, 1.25]), np.array([0.0, 1.0])

    def inner(u):
        s = (0.5 + 1j * u) * slopes
        return np.exp(complex(affine.log_transform(HESTON, times, s))).real / (u**2 + 0.25)

    nodes, weights = np.polynomial.legendre.leggauss(120)
    u, w = 60 * (nodes + 1), 60 * weights
    expected = 1 - sum(x * inner(v) for x, v in zip(w, u)) / np.pi
    paths = pa.simulate(HESTON, key, times[1:], 40_000, pa.QuadraticExponential(8))
    found = jnp.maximum(jnp.exp(paths.log_ratio[2] - paths.log_ratio[1]) - 1, 0.0)
    assert_near(ex.estimate(found), expected)


@pytest.mark.slow
@every_law
def test_variance_swap_strike_is_the_mean_of_realised_variance(law, key):
    grid = dates(1.0, 6)
    forwards = growing(100.0, 0.1, grid)
    paths = pa.simulate(law, key, grid, 40_000, pa.QuadraticExponential(4))
    found = ex.estimate(ex.realised_variance(paths, forwards), paths.weights)
    assert_near(found, affine.variance_swap_strike(law, grid, forwards))
    limit = affine.variance_swap_strike(law, dates(2.0, 20_000))
    assert limit == pytest.approx(float(affine.expected_variance(law, 2.0)) / 2.0, rel=1e-4)


def test_variance_swap_of_heston_is_the_log_contract():
    """Without jumps the expected variance is -2 E x, a derivative of the transform."""
    step = 1e-5
    mean = affine.log_transform(HESTON, jnp.array([0.0, 2.0]), jnp.array([step])).real / step
    assert affine.expected_variance(HESTON, 2.0) == pytest.approx(-2 * float(mean), rel=1e-4)
    assert affine.expected_variance(HESTON, 2.0) == pytest.approx(
        0.06 * 2 + 0.03 * (1 - np.exp(-4)) / 2
    )  # fmt: skip


# -- American --------------------------------------------------------------------------------------

# Longstaff and Schwartz (2001), table 1: spot, volatility, years, finite differences, their
# simulation and its error. Puts at 40, rate 6 %, 50 dates a year.
TABLE = np.array([
    (36, 0.2, 1, 4.478, 4.472, 0.010), (36, 0.2, 2, 4.840, 4.821, 0.012),
    (36, 0.4, 1, 7.101, 7.091, 0.020), (36, 0.4, 2, 8.508, 8.488, 0.024),
    (38, 0.2, 1, 3.250, 3.244, 0.009), (38, 0.2, 2, 3.745, 3.735, 0.011),
    (38, 0.4, 1, 6.148, 6.139, 0.019), (38, 0.4, 2, 7.670, 7.669, 0.022),
    (40, 0.2, 1, 2.314, 2.313, 0.009), (40, 0.2, 2, 2.885, 2.879, 0.010),
    (40, 0.4, 1, 5.312, 5.308, 0.018), (40, 0.4, 2, 6.920, 6.921, 0.022),
    (42, 0.2, 1, 1.617, 1.617, 0.007), (42, 0.2, 2, 2.212, 2.206, 0.010),
    (42, 0.4, 1, 4.582, 4.588, 0.017), (42, 0.4, 2, 6.248, 6.243, 0.021),
    (44, 0.2, 1, 1.110, 1.118, 0.007), (44, 0.2, 2, 1.690, 1.675, 0.009),
    (44, 0.4, 1, 3.948, 3.957, 0.017), (44, 0.4, 2, 5.647, 5.622, 0.021),
])  # fmt: skip


def put(spot, sigma, years, key, num_pairs, **settings):
    grid = dates(years, int(50 * years))
    discounts = jnp.exp(-0.06 * grid)
    forwards = growing(spot, 0.06, grid)
    law = BlackScholes(sigma)
    return am.american(law, key, grid, forwards, discounts, 40.0, -1.0, num_pairs, **settings)


def assert_lower_bound(found, exact, loss):
    assert found.value <= exact + FOUR * found.error, (found, exact)
    assert found.value >= exact * (1 - loss) - FOUR * found.error, (found, exact)


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 8, 18])
def test_some_of_longstaffs_and_schwartzs_table(row, key):
    spot, sigma, years, exact, _, error = TABLE[row]
    found = put(spot, sigma, years, key, 20_000)
    assert found.error < 1.5 * error
    assert_lower_bound(found, exact, 0.008)


@pytest.mark.exhaustive
def test_longstaffs_and_schwartzs_table(key):
    for spot, sigma, years, exact, theirs, error in TABLE:
        found = put(spot, sigma, int(years), key, 50_000)
        assert_lower_bound(found, exact, 0.008)
        assert abs(found.value - theirs) < FOUR * np.hypot(found.error, error)


@pytest.mark.slow
def test_greeks_of_an_american_put_are_those_of_finite_differences(key):
    ql = pytest.importorskip("QuantLib")
    slope = jax.grad(lambda s, v: put(s, v, 1, key, 20_000).value, (0, 1))(38.0, 0.3)

    def grid(spot, sigma):
        today = ql.Date(1, 1, 2021)
        ql.Settings.instance().evaluationDate = today
        count = ql.Actual365Fixed()
        none, rate = (
            ql.YieldTermStructureHandle(ql.FlatForward(today, r, count)) for r in (0.0, 0.06)
        )
        vol = ql.BlackConstantVol(today, ql.NullCalendar(), sigma, count)
        process = ql.BlackScholesMertonProcess(
            ql.QuoteHandle(ql.SimpleQuote(spot)), none, rate, ql.BlackVolTermStructureHandle(vol)
        )
        option = ql.VanillaOption(
            ql.PlainVanillaPayoff(ql.Option.Put, 40.0), ql.AmericanExercise(today, today + 365)
        )
        option.setPricingEngine(ql.FdBlackScholesVanillaEngine(process, 200, 400))
        return option.NPV()

    assert slope[0] == pytest.approx((grid(38.1, 0.3) - grid(37.9, 0.3)) / 0.2, rel=0.03)
    assert slope[1] == pytest.approx((grid(38, 0.301) - grid(38, 0.299)) / 0.002, rel=0.03)


@pytest.mark.exhaustive
def test_american_put_under_heston_is_that_of_finite_differences(key):
    ql = pytest.importorskip("QuantLib")
    today = ql.Date(1, 1, 2021)
    ql.Settings.instance().evaluationDate = today
    none, rate = (
        ql.YieldTermStructureHandle(ql.FlatForward(today, r, ql.Actual365Fixed()))
        for r in (0.0, 0.05)
    )
    spot = ql.QuoteHandle(ql.SimpleQuote(100.0))
    process = ql.HestonProcess(rate, none, spot, 0.09, 2.0, 0.06, 0.6, -0.7)
    option = ql.VanillaOption(
        ql.PlainVanillaPayoff(ql.Option.Put, 105.0), ql.AmericanExercise(today, today + 365)
    )
    option.setPricingEngine(ql.FdHestonVanillaEngine(ql.HestonModel(process), 200, 300, 100))
    grid = dates(1.0, 50)
    settings = (growing(100.0, 0.05, grid), jnp.exp(-0.05 * grid), 105.0, -1.0, 40_000)
    plain = am.american(HESTON, key, grid, *settings)
    both = am.american(HESTON, key, grid, *settings, am.Polynomials(4, 2))
    assert_lower_bound(both, option.NPV(), 0.01)
    assert both.value > plain.value - both.error  # the variance is worth knowing


@pytest.mark.slow
def test_american_call_without_dividends_is_european(key):
    grid = dates(1.0, 10)
    found = am.american(BlackScholes(0.3), key, grid, growing(100.0, 0.05, grid),
                        jnp.exp(-0.05 * grid), 100.0, 1.0, 20_000)  # fmt: skip
    european = np.exp(-0.05) * black(100 * np.exp(0.05), 100.0, 0.3, 1.0)
    assert_near(found, european)


def test_deep_in_the_money_it_is_exercised_now(key):
    found = put(20.0, 0.2, 1, key, 1000)
    assert found.value == 20.0 and found.error == 0.0


@pytest.mark.slow
def test_policy_is_used_on_other_paths_and_pays_what_it_says(key):
    grid = dates(1.0, 5)
    discounts = jnp.exp(-0.06 * grid)
    first, second = jax.random.split(key)
    law, forwards, basis = BlackScholes(0.3), growing(38.0, 0.06, grid), am.Polynomials()
    learn, paths = (pa.simulate(law, k, grid, 2000) for k in (first, second))
    rules = am.policy(learn, forwards, discounts, 40.0, -1.0, basis)
    out = am.exercise(rules, paths, forwards, discounts, 40.0, -1.0, basis)
    s = np.asarray(pa.levels(paths, forwards))
    when = np.asarray(out.date)
    paid = when < 5
    n, p = np.nonzero(paid)
    expected = discounts[when[paid]] * (40.0 - s[when[paid] + 1, n, p])
    np.testing.assert_allclose(np.asarray(out.cash)[paid], expected)
    assert (np.asarray(out.cash)[~paid] == 0).all()
    assert_near(ex.estimate(out.ratio), 1.0)
    # The price of too few learning paths is lower, never higher: they do not price themselves.
    few = [put(40.0, 0.2, 1, k, 100, basis=am.Polynomials(8)).value
           for k in jax.random.split(key, 40)]  # fmt: skip
    assert np.mean(few) < 2.314 + FOUR * np.std(few) / np.sqrt(40)
