"""Programs of volatility surfaces: truth found again, bad quotes flagged, no arbitrage."""

import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpyro import handlers
from scipy import stats

import emprob as ep
from emprob.estep.enumerate import log_partition_of
from emprob.models import (
    _draws,
    _report,
    _starts,
    arbitrage,
    implied_density,
    quote_noise,
    smile_sabr,
    surface_heston,
    surface_svi,
    surfaces,
)
from emprob.models.pricing import svi
from emprob.models.quotes import Quotes, by_expiry, take

NAMES = ("smile_sabr", "surface_svi", "surface_heston", "surface_bates", "implied_density")
SABR = {
    "alpha": np.array([0.95, 1.0, 1.05]),
    "nu": np.array([0.5, 0.55, 0.6]),
    "rho": np.array([-0.3, -0.25, -0.2]),
}


def places(num_strikes=15, level=0.6):
    """Quotes (45,) at 3 maturities whose mids are to be filled in."""
    times = np.array([0.1, 0.3, 0.9])
    code = np.repeat(np.arange(3), num_strikes)
    k = np.tile(np.linspace(-1.5, 1.5, num_strikes), 3) * level * np.sqrt(times)[code]
    flat = np.full(len(k), level)
    return Quotes(*(jnp.asarray(x) for x in (k, times, code, np.ones(3), flat, 0.01 * flat,
                                             np.where(k < 0, -1.0, 1.0))))  # fmt: skip


def with_mids(quotes, mid):
    return Quotes(**{**vars(quotes), "mid": jnp.asarray(mid)})


@pytest.fixture(scope="module")
def sabr_quotes():
    """Mids of SABR with noise, four wrong, one missing; true volatilities; which are wrong."""
    rng = np.random.default_rng(5)
    quotes = places()
    true = np.asarray(smile_sabr.surface(SABR, quotes)(quotes.log_moneyness, quotes.expiry))
    mid = true + np.asarray(quotes.half_spread) * rng.normal(size=len(true)) / 3
    wrong = np.array([3, 20, 33, 40])
    mid[wrong] += np.array([0.08, -0.1, 0.3, -0.07])
    mid[10] = np.nan
    return with_mids(quotes, mid), true, wrong


@pytest.fixture(scope="module")
def sabr_fit(sabr_quotes):
    return ep.fit(ep.bind(smile_sabr.smile_sabr, sabr_quotes[0]), progress=False)


@pytest.mark.exhaustive
def test_bad_quotes_are_found(sabr_fit, sabr_quotes):
    called = np.flatnonzero(surfaces.bad_probability(sabr_fit) > 0.5)
    assert sabr_fit.converged
    assert list(called) == list(sabr_quotes[2])


@pytest.mark.exhaustive
def test_bad_quotes_do_not_move_the_fit(sabr_fit, sabr_quotes):
    quotes, true, wrong = sabr_quotes
    fitted = smile_sabr.MODEL.volatility(sabr_fit.params, quotes)
    least_squares = ep.fit(ep.bind(smile_sabr.smile_sabr, quotes, quote_noise.gaussian),
                           progress=False)  # fmt: skip
    off = smile_sabr.MODEL.volatility(least_squares.params, quotes)
    robust = np.sqrt(np.mean((np.asarray(fitted) - true) ** 2))
    assert robust < 0.002
    assert robust < np.sqrt(np.mean((np.asarray(off) - true) ** 2)) / 4


@pytest.mark.slow
def test_standard_errors_cover_the_truth(sabr_fit, sabr_quotes):
    """Curves in units of the level, which is a median of the mids: compare the volatilities."""
    quotes, true, _ = sabr_quotes
    unit = float(surfaces.level(quotes)) / 0.6
    table = sabr_fit.summary()
    for name, scale in (("alpha", unit), ("nu", 1.0), ("rho", 1.0)):
        rows = table.loc[[f"{name}[{e}]" for e in range(3)]]
        z = (rows["estimate"].to_numpy() * scale - SABR[name]) / (rows["se"].to_numpy() * scale)
        assert (np.abs(z) < 3.5).all(), (name, z)


@pytest.mark.slow
def test_a_fit_can_be_looked_at_on_a_grid(sabr_fit, sabr_quotes):
    quotes = sabr_quotes[0]
    law = smile_sabr.surface(sabr_fit.params, quotes)
    assert arbitrage.check(law, quotes.times, 0.6, points=101)["free"].all()


@pytest.mark.slow
def test_responsibilities_are_those_of_the_fit(sabr_fit, sabr_quotes):
    quotes = sabr_quotes[0]
    p = sabr_fit.params
    widths = quote_noise.widths(p["width"], p["excess"])
    volatility = smile_sabr.MODEL.volatility(p, quotes)
    ours = quote_noise.responsibilities(quotes, volatility, p["share"], widths)
    np.testing.assert_allclose(ours, sabr_fit.posterior["state"].smoothed, atol=1e-10)


def test_a_missing_maturity_borrows_from_its_neighbours(sabr_quotes):
    quotes, true, _ = sabr_quotes
    middle = np.asarray(quotes.expiry) == 1
    kept = with_mids(quotes, jnp.where(middle, jnp.nan, quotes.mid))
    found = ep.fit(ep.bind(smile_sabr.smile_sabr, kept), progress=False)
    fitted = np.asarray(smile_sabr.MODEL.volatility(found.params, quotes))
    assert found.converged
    assert np.abs(fitted - true)[middle].max() < 0.03
    se = found.summary()["se"]
    assert se["alpha[1]"] > 3 * se["alpha[0]"]


def test_the_band_has_the_draws_of_all_chains(sabr_quotes):
    names, factors = tuple(SABR), np.array([[0.9, 1.0], [1.0, 1.1]])  # two chains of two draws
    samples = {k: (factors[..., None] if k == "alpha" else 1.0) * np.ones((2, 2, 3)) * v
               for k, v in SABR.items()}  # fmt: skip
    bayes = SimpleNamespace(samples=samples, model=SimpleNamespace(params=names))
    k = np.zeros((3, 1))
    low, high = surfaces.band(
        smile_sabr.MODEL, sabr_quotes[0], k, _draws.nuts_draws(bayes), share=1.0
    )
    for end, factor in ((low, 0.9), (high, 1.1)):
        params = SABR | {"alpha": factor * SABR["alpha"]}
        want = smile_sabr.surface(params, sabr_quotes[0])(k[:, 0], np.arange(3))
        np.testing.assert_allclose(end[:, 0], want, rtol=1e-12)


def test_bad_quotes_over_draws_are_the_mean_of_their_probabilities(sabr_quotes):
    quotes = sabr_quotes[0]
    draws = {k: np.array([v, 1.02 * v]) for k, v in SABR.items()}
    draws |= {"width": np.array([0.2, 0.5]), "excess": np.array([[10.0, 4.0], [6.0, 3.0]]),
              "share": np.array([[0.9, 0.06, 0.04], [0.7, 0.2, 0.1]])}  # fmt: skip
    found = surfaces.bad_over_draws(smile_sabr.MODEL, quotes, draws)
    want = 0.0
    for s in range(2):
        p = {k: v[s] for k, v in draws.items()}
        volatility = np.asarray(smile_sabr.MODEL.volatility(p, quotes))
        scale = np.asarray(quote_noise.spreads(quotes))[:, None] * np.asarray(
            quote_noise.widths(p["width"], p["excess"])
        )
        each = p["share"] * stats.norm.pdf(np.asarray(quotes.mid)[:, None], volatility[:, None],
                                           scale)  # fmt: skip
        each[10] = p["share"]  # is missing
        want = want + (1 - each[:, 0] / each.sum(1)) / 2
    np.testing.assert_allclose(found, want, atol=1e-9)
    assert 10 not in surfaces.doubtful(quotes, 0 * found, found).index


def test_optima_are_counted():
    rows = [
        (193.77, "converged"),
        (194.036, "converged"),
        (194.0361, "converged"),
        (9.0, "dropped"),
    ]
    table = pd.DataFrame(rows, columns=["objective", "status"])
    found = surfaces.optima(SimpleNamespace(starts=table))
    np.testing.assert_allclose(found["below the best"], [0.0, 0.27], atol=1e-9)
    assert list(found["starts"]) == [2, 1]


@pytest.mark.slow
def test_mixture_noise_is_the_indicator_summed_out(sabr_quotes):
    quotes = sabr_quotes[0]
    both = [
        ep.bind(smile_sabr.smile_sabr, quotes, noise)
        for noise in (quote_noise.indicator, quote_noise.mixture)
    ]
    start = {"alpha": np.ones(3), "nu": 0.5 * np.ones(3), "rho": np.zeros(3), "width": 0.5,
             "excess": np.array([9.0, 5.0]), "share": np.array([0.9, 0.08, 0.02])}  # fmt: skip
    values = [float(log_partition_of(m.evaluate(start))) for m in both]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.parametrize(
    "program",
    [
        smile_sabr.smile_sabr,
        pytest.param(surface_heston.surface_heston, marks=pytest.mark.slow),  # has a loop in it
    ],
)
def test_binding_the_next_quotes_compiles_nothing(program, sabr_quotes):
    """Recalibration: what bind finds by evaluating the program is compiled once."""
    quotes, compiled = sabr_quotes[0], []
    tomorrow = with_mids(quotes, quotes.mid + 0.001)
    ep.bind(program, quotes)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    ep.bind(program, tomorrow)
    jax.monitoring.clear_event_listeners()
    assert not compiled


@pytest.mark.exhaustive
def test_separate_slices_are_as_good_as_one_by_one():
    """Slices share only the noise, so that a wild one does not spoil another."""
    quotes = places()
    rng = np.random.default_rng(1)
    curves = {"lowest": np.array([0.9, 1.0, 1.1]), "put_slope": np.array([0.3, 0.5, 0.2]),
              "call_slope": np.array([0.2, 0.3, 0.4]), "centre": np.array([0.2, -0.3, 0.0]),
              "roundness": np.array([0.4, 0.6, 0.5])}  # fmt: skip
    true = np.asarray(surface_svi.surface(curves, quotes)(quotes.log_moneyness, quotes.expiry))
    mid = true + np.asarray(quotes.half_spread) * rng.normal(size=len(true)) / 3
    mid[5] *= 2
    quotes = with_mids(quotes, mid)
    found = ep.fit(ep.bind(surface_svi.separate_svi, quotes), progress=False)
    assert list(np.flatnonzero(surfaces.bad_probability(found) > 0.5)) == [5]
    fitted = np.asarray(surface_svi.surface(found.params, quotes)(quotes.log_moneyness,
                                                                  quotes.expiry))  # fmt: skip
    assert np.sqrt(np.mean((fitted - true) ** 2)) < 0.004


# -- starts -----------------------------------------------------------------------------------

SLICES = {"lowest": np.array([0.8, 0.57]), "put_slope": np.array([0.4, 0.59]),
          "call_slope": np.array([0.36, 0.45]), "centre": np.array([-0.46, -0.18]),
          "roundness": np.array([0.53, 0.65])}  # fmt: skip


def scattered(rng):
    """Two smiles of 25 quotes with one in five bad, to either side; true volatilities, bad."""
    k = np.concatenate([np.sort(rng.uniform(-1.4, 1.4, 25)) for _ in range(2)])
    code, times = np.repeat([0, 1], 25), np.array([1.8, 1.9])
    blank = np.full(50, 0.55)
    half = blank * rng.uniform(0.005, 0.02, 50)
    quotes = Quotes(*(jnp.asarray(x) for x in (k, times, code, np.ones(2), blank, half,
                                               np.where(k < 0, -1.0, 1.0))))  # fmt: skip
    raw = surface_svi.slices(SLICES, 0.55, times)
    true = np.sqrt(svi.total_variance(k, *(np.asarray(x)[code] for x in raw)) / times[code])
    bad = rng.uniform(size=50) < 0.2
    wild = rng.uniform(8, 60, 50) * rng.choice([-1, 1], 50)
    error = np.where(bad, wild, rng.normal(size=50) / 3)
    return with_mids(quotes, np.maximum(true + error * half, 0.02)), true, bad


@pytest.fixture(scope="module")
def started():
    quotes, true, bad = scattered(np.random.default_rng(13))
    return quotes, true, bad, surface_svi.SEPARATE.start(quotes, 0)


@pytest.mark.slow
def test_a_start_is_not_moved_by_bad_quotes(started):
    quotes, true, bad, start = started
    law = surface_svi.surface(start, quotes)
    at = law(quotes.log_moneyness, quotes.expiry)
    assert np.abs(np.asarray(at) - true).max() < 0.005
    good = quote_noise.responsibilities(
        quotes, at, start["share"], quote_noise.widths(start["width"], start["excess"])
    )[:, 0]
    assert list(np.flatnonzero(np.asarray(good) < 0.5)) == list(np.flatnonzero(bad))


@pytest.mark.exhaustive
def test_a_robust_fit_from_there_finds_the_better_optimum(started):
    """The usual start ends where half of a smile is explained and the rest is called bad."""
    quotes, true, bad, start = started
    model = ep.bind(surface_svi.separate_svi, quotes)
    usual, found = (ep.fit(model, init=init, progress=False) for init in (None, start))
    assert found.converged
    assert found.objective > usual.objective + 10
    assert list(np.flatnonzero(surfaces.bad_probability(found) > 0.5)) == list(np.flatnonzero(bad))
    fitted = surface_svi.surface(found.params, quotes)(quotes.log_moneyness, quotes.expiry)
    assert np.sqrt(np.mean((np.asarray(fitted) - true) ** 2)) < 0.003


@pytest.mark.slow
def test_a_start_exists_for_a_smile_without_quotes(started):
    quotes, true = started[:2]
    empty = with_mids(quotes, jnp.where(quotes.expiry == 1, jnp.nan, quotes.mid))
    start = surface_svi.SEPARATE.start(empty, 0)
    assert all(np.isfinite(np.asarray(x)).all() for x in start.values())
    assert start["roundness"][1] == pytest.approx(np.exp(-0.7), rel=0.2)  # the prior's centre
    off = np.asarray(surface_svi.SEPARATE.volatility(start, empty)) - true
    assert np.abs(off[:25]).max() < 0.005


HESTON = {"v0": 0.25, "kappa": 3.0, "theta": 0.3, "sigma": 1.2, "rho": -0.4}
TRUTHS = {
    "smile_sabr": SABR,
    "surface_svi": {"lowest": np.array([0.9, 0.95, 1.0]), "put_slope": np.array([0.5, 0.4, 0.4]),
                    "call_slope": np.array([0.2, 0.3, 0.3]), "centre": np.array([0.2, 0.1, 0.0]),
                    "roundness": np.array([0.4, 0.5, 0.5])},
    "surface_heston": HESTON,
    "surface_bates": HESTON | {"intensity": 2.0, "jump_mean": -0.1, "jump_sd": 0.1},
    "implied_density": {"weight": np.array([[0.3, 0.7]] * 3), "gap": np.full((3, 1), 0.8),
                        "deviation": np.array([[1.2, 0.7]] * 3)},
}  # fmt: skip
WILD = np.array([2, 8, 11, 17, 23, 28, 33, 36, 42])  # one in five, three at every maturity


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_a_start_that_bad_quotes_do_not_move(name):
    model = importlib.import_module(f"emprob.models.{name}").MODEL
    rng, quotes = np.random.default_rng(3), places()
    true = np.asarray(model.volatility(TRUTHS[name], quotes))
    error = rng.normal(size=45) / 3
    error[WILD] = rng.uniform(8, 30, len(WILD)) * rng.choice([-1, 1], len(WILD))
    quotes = with_mids(quotes, true + error * np.asarray(quotes.half_spread))
    start = model.start(quotes, 0)
    trace = handlers.trace(handlers.seed(model.program, 0)).get_trace(quotes, **model.usual)
    wanted = {n: np.shape(s["value"]) for n, s in trace.items()
              if s["type"] == "sample" and not s["is_observed"] and n != "state"}  # fmt: skip
    assert {n: np.shape(x) for n, x in start.items()} == wanted
    off = np.abs(np.asarray(model.volatility(start, quotes)) - true)
    assert off.max() < 0.012  # two half-spreads, at the ends of a smile
    width = quote_noise.widths(start["width"], start["excess"])
    good = quote_noise.responsibilities(quotes, true, start["share"], width)[:, 0]
    called = set(np.flatnonzero(np.asarray(good) < 0.5))
    assert called >= set(WILD)
    assert len(called) <= len(WILD) + 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("key", [0, 1])
def test_one_start_finds_the_best_optimum_of_bitcoin(key):
    """Of a dozen starts without least trimmed squares the best ends at 194.036."""
    quotes, model = surfaces.load("btc_2021"), smile_sabr.MODEL
    bound = ep.bind(model.program, quotes, **model.usual)
    found = ep.fit(bound, init=model.start(quotes, key), progress=False)
    assert found.converged
    assert found.objective == pytest.approx(194.826, abs=0.001)


def test_a_start_stays_within_reach_of_its_prior():
    draws = jnp.asarray(np.random.default_rng(0).normal(2.0, 0.5, (20000, 3)))
    found = _starts._within_reach(jnp.array([jnp.nan, 2.9, 100.0]), draws)
    np.testing.assert_allclose(found, [2.0, 2.9, 2.0 + _starts.REACH * 0.5], atol=0.02)


def test_parts_agree_on_the_best_choice_together():
    """Each part would rather have its own, but a part in disagreement loses more."""
    own = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.5, 1.0], [jnp.nan, 2.0, 1.9]])

    def total(chosen):
        return own[jnp.arange(3), chosen].sum() - 3.0 * jnp.abs(jnp.diff(chosen)).sum()

    choices = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    best = choices[np.nanargmax(jax.vmap(total)(jnp.asarray(choices)))]
    found = _starts._agreed(total, jnp.array([0, 1, 1]), 3)
    np.testing.assert_array_equal(found, best)


@pytest.mark.exhaustive
def test_a_few_starts_of_the_dax_are_as_good_as_a_dozen(tmp_path):
    """Of a dozen starts without least trimmed squares the best ends at 530.072."""
    opt = _report.Options(tmp_path, 1, 4, 0, 0, 0, progress=False)
    found = surfaces.fit(surface_svi.MODEL, surfaces.load("dax_2002"), opt)
    assert found.objective > 530.07
    assert len(found.starts) == 4
    assert found.starts["objective"].max() == found.objective


def test_score_is_the_density_of_mids_and_noise(sabr_quotes):
    quotes, true, _ = sabr_quotes
    noise = quote_noise.start(quotes, true)
    width = quote_noise.widths(noise["width"], noise["excess"])
    fixed = quote_noise.log_density(quotes, true, noise["share"], width)
    prior = stats.dirichlet.logpdf(np.asarray(noise["share"]), np.asarray(quote_noise.SHARE))
    prior += stats.lognorm.logpdf(noise["width"], 0.7, scale=quote_noise.GOOD)
    prior += stats.lognorm.logpdf(
        np.asarray(noise["excess"]), quote_noise.SPREAD, scale=np.asarray(quote_noise.EXCESS)
    ).sum()
    assert float(quote_noise.score(quotes, true)) == pytest.approx(float(fixed) + prior, rel=1e-10)


def test_a_surface_through_few_quotes_scores_less_than_the_true_one(sabr_quotes):
    """It is a hair from two thirds of the quotes, and the prior of the width asks why."""
    quotes, true, _ = sabr_quotes
    rng = np.random.default_rng(1)
    through = np.where(rng.uniform(size=45) < 0.6, quotes.mid, true + 0.05)
    through = np.where(np.isfinite(through), through, true)
    assert quote_noise.score(quotes, true) > quote_noise.score(quotes, through) + 10


def test_expiries_apart_are_the_same_quotes():
    quotes = take(places(), np.array([0, 1, 2, 15, 16, 30]))
    apart = by_expiry(quotes)
    assert apart.mid.shape == (3, 3)
    np.testing.assert_array_equal(apart.observed.sum(1), [3, 2, 1])
    np.testing.assert_array_equal(apart.strike[1, :2], quotes.strike[3:5])
    np.testing.assert_array_equal(apart.time[2, :1], quotes.time[5:])


def test_log_density_is_that_of_the_mixture(sabr_quotes):
    quotes, true, _ = sabr_quotes
    share, excess = np.array([0.8, 0.15, 0.05]), np.array([6.0, 3.0])

    def total(volatility):
        width = quote_noise.widths(0.4, excess)
        return quote_noise.log_density(quotes, volatility, share, width)

    def exact(volatility):
        noise = handlers.condition(
            quote_noise.mixture, {"share": share, "width": 0.4, "excess": excess}
        )
        trace = handlers.trace(noise).get_trace(quotes, volatility)
        site = trace["mid"]
        there = np.asarray(quotes.observed)
        return site["fn"].log_prob(jnp.where(there, quotes.mid, 0.0))[there].sum()

    ours, theirs = (f(true) - f(true + 0.01) for f in (total, exact))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-10)


# -- arbitrage --------------------------------------------------------------------------------

VOGT = {"a": -0.0410, "b": 0.1331, "rho": 0.3060, "m": 0.3586, "sigma": 0.4153}


def vogt(k, code):
    """Vogt's slice, which has butterfly arbitrage (Gatheral & Jacquier 2014, example 3.1)."""
    return jnp.sqrt(svi.total_variance(k, **VOGT))


def test_durrleman_is_the_closed_form_of_svi():
    k = jnp.linspace(-1.0, 1.5, 41)
    ours = arbitrage.durrleman(vogt, jnp.ones(1), k)[0]
    np.testing.assert_allclose(ours, svi.durrleman(k, **VOGT), rtol=1e-10, atol=1e-12)


def test_arbitrage_is_seen_and_penalised():
    table = arbitrage.check(vogt, jnp.ones(1), 0.25)
    assert not table["free"].iloc[0]
    assert 0.5 < table["at k"].iloc[0] < 1.0
    assert arbitrage.butterfly_penalty(vogt, jnp.ones(1), 0.25) > 1e-3
    flat = arbitrage.check(lambda k, code: 0.2 + 0 * k, jnp.array([0.5, 1.0]), 0.2)
    assert flat["free"].all()
    np.testing.assert_allclose(flat["butterfly"], 1.0, atol=1e-8)  # of a lognormal density


def test_calendar_arbitrage_is_seen_and_penalised():
    times = jnp.array([0.5, 1.0])

    def falling(k, code):
        return jnp.where(code == 0, 0.4, 0.2) + 0 * k

    assert list(arbitrage.check(falling, times, 0.3)["free"]) == [False, True]
    k = arbitrage.grid(0.3, times)
    assert arbitrage.calendar_penalty(falling, times, k) > 1.0
    assert arbitrage.calendar_penalty(lambda k, c: 0.2 + 0 * k, times, k) == 0.0


# -- densities --------------------------------------------------------------------------------


def test_a_mixture_is_a_martingale_and_a_density():
    quotes = places()
    params = {"weight": np.array([[0.3, 0.7]] * 3), "gap": np.full((3, 1), 0.8),
              "deviation": np.array([[1.2, 0.7]] * 3)}  # fmt: skip
    x = jnp.linspace(-8, 8, 20001)
    pdf = implied_density.density(params, quotes, x)
    weight = (x[1] - x[0]) * pdf
    np.testing.assert_allclose(weight.sum(-1), 1.0, rtol=1e-8)
    np.testing.assert_allclose((weight * jnp.exp(x)).sum(-1), 1.0, rtol=1e-8)
    table = implied_density.expectations(params, quotes)
    mean = (weight * x).sum(-1)
    sd = jnp.sqrt((weight * (x - mean[:, None]) ** 2).sum(-1))
    skew = (weight * (x - mean[:, None]) ** 3).sum(-1) / sd**3
    np.testing.assert_allclose(table["volatility"], sd / jnp.sqrt(quotes.times), rtol=1e-7)
    np.testing.assert_allclose(table["skewness"], skew, rtol=1e-6)


@pytest.mark.slow
def test_density_is_the_second_derivative_of_the_prices():
    """Breeden & Litzenberger (1978): the density of the price is d2 C / dK2."""
    from emprob.models.pricing import black

    quotes = places()
    params = {"weight": np.array([[0.3, 0.7]] * 3), "gap": np.full((3, 1), 0.8),
              "deviation": np.array([[1.2, 0.7]] * 3)}  # fmt: skip
    law = implied_density.surface(params, quotes)

    def call(strike):
        volatility = law(jnp.log(strike), jnp.array(1))
        return black.black(1.0, strike, volatility * jnp.sqrt(quotes.times[1]))

    for strike in (0.8, 1.1, 1.4):
        ours = implied_density.density(params, quotes, jnp.array([jnp.log(strike)]))[1, 0] / strike
        assert float(jax.grad(jax.grad(call))(strike)) == pytest.approx(float(ours), rel=1e-6)


def test_real_tables_are_loaded_whole():
    assert surfaces.load("btc_2021").num_quotes == 49
    assert int(np.sum(surfaces.load("dax_2002").observed)) == 104


# -- all programs -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_draw_from_the_prior_is_a_surface(name, key):
    model = importlib.import_module(f"emprob.models.{name}").MODEL
    quotes = places()
    for k in jax.random.split(key, 3):
        trace = handlers.trace(handlers.seed(model.program, k)).get_trace(
            quotes, lambda quotes, volatility: None
        )
        params = {n: s["value"] for n, s in trace.items()
                  if s["type"] == "sample" and not s.get("is_observed")}  # fmt: skip
        volatility = np.asarray(model.volatility(params, quotes))
        inside = np.abs(np.asarray(quotes.log_moneyness)) < 0.5
        assert np.isfinite(volatility[inside]).all()
        assert (volatility[inside] > 0).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_main_runs(name, tmp_path, capsys):
    module = importlib.import_module(f"emprob.models.{name}")
    with jax.enable_x64(False):  # as it is where nobody asked
        found = module.main(["--quick", "--no-progress", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert np.isfinite(found.objective)
    assert "held out" in text
    assert "butterfly" in text
    assert ("log-evidence" in text) == bool(module.MODEL.priors)
    assert (tmp_path / f"{name}.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["surface_heston", "surface_bates"])
def test_far_strikes_of_the_dax_have_a_volatility_wherever_a_search_begins(name):
    """A price without digits has none, and `bind` refuses a program that has no value."""
    model = importlib.import_module(f"emprob.models.{name}").MODEL
    bound = ep.bind(model.program, surfaces.load("dax_2002"))
    assert np.isfinite(float(log_partition_of(bound.evaluate(bound.notes.value.initial))))


@pytest.mark.exhaustive
def test_heston_finds_its_own_parameters():
    """Mids of a Heston law with noise and bad quotes: the truth within the errors."""
    from emprob.models import surface_heston

    rng = np.random.default_rng(2)
    quotes = places(level=0.5)
    truth = {"v0": 0.25, "kappa": 3.0, "theta": 0.3, "sigma": 1.2, "rho": -0.4}
    true = surface_heston.MODEL.volatility(truth, quotes)
    mid = np.array(true + quotes.half_spread * rng.normal(size=45) / 3)
    mid[[7, 25]] += [0.1, -0.08]
    found = ep.fit(ep.bind(surface_heston.surface_heston, with_mids(quotes, mid)), progress=False)
    table = found.summary()
    assert found.converged
    for name, value in truth.items():
        assert abs(table.loc[name, "estimate"] - value) < 3 * table.loc[name, "se"], name
    assert list(np.flatnonzero(surfaces.bad_probability(found) > 0.5)) == [7, 25]
