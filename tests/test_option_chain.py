"""Option chains: what is read, what is named as bad, and that nothing is lost without a word."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from emprob.errors import DataError
from emprob.models import _faults, option_chain, option_tables
from emprob.models import quotes as quote_arrays
from emprob.models.option_chain import Clock, Limits, years

NOW = pd.Timestamp("2026-01-05 08:00", tz="UTC")
DAYS = (25, 81, 172)
FORWARDS = (100.0, 101.0, 103.0)
STRIKES = np.array([70.0, 80.0, 90.0, 95.0, 100.0, 105.0, 110.0, 120.0, 140.0])


def smile(strike, forward, time):
    k = np.log(strike / forward)
    return 0.5 + 0.1 * time - 0.1 * k + 0.3 * k**2


def price(forward, strike, deviation, sign):
    """Black's formula by SciPy, independent of the project's."""
    d = np.log(forward / strike) / deviation + deviation / 2
    return sign * (forward * norm.cdf(sign * d) - strike * norm.cdf(sign * (d - deviation)))


def a_chain(unit="cash", discount=0.97, half_spread=0.005):
    """Calls and puts at every strike and expiry with a known smile and a spread in volatility."""
    rows = []
    for days, forward in zip(DAYS, FORWARDS):
        time = days / 365
        scale = {"cash": discount, "coin": 1 / forward}[unit]
        for strike in STRIKES:
            for kind, sign in (("call", 1.0), ("put", -1.0)):
                low, high = (smile(strike, forward, time) + s * half_spread for s in (-1, 1))
                bid, ask = (price(forward, strike, v * np.sqrt(time), sign) for v in (low, high))
                rows.append(
                    {
                        "expiry": NOW + pd.Timedelta(days=days), "strike": strike, "type": kind,
                        "bid": scale * bid, "ask": scale * ask, "unit": unit, "timestamp": NOW,
                        "discount": discount,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


# -- names and files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "underlying", "expiry", "strike", "sign", "unit"),
    [
        ("BTC-27MAR26-100000-C", "BTC", "2026-03-27 08:00", 100000.0, 1.0, "coin"),
        ("ETH-3JAN25-3400-P", "ETH", "2025-01-03 08:00", 3400.0, -1.0, "coin"),
        ("XRP_USDC-30JUN26-0d625-C", "XRP_USDC", "2026-06-30 08:00", 0.625, 1.0, "cash"),
    ],
)
def test_names_of_instruments(name, underlying, expiry, strike, sign, unit):
    found = option_chain.deribit_instrument(name)
    expected = (underlying, pd.Timestamp(expiry, tz="UTC"), strike, sign, unit)
    assert (found.underlying, found.expiry, found.strike, found.sign, found.unit) == expected


@pytest.mark.parametrize(
    "name",
    ["BTC-27MAR26", "BTC-PERPETUAL", "BTC-27MAR26-100000", "BTC-27MAR26-1e5-C", "", None,
     "BTC-31FEB26-100000-C", "BTC-27XYZ26-100000-C", "BTC-27MAR26-100000-X"],
)  # fmt: skip
def test_what_is_no_option_is_refused(name):
    with pytest.raises(DataError, match="instrument"):
        option_chain.deribit_instrument(name)


def a_summary():
    """An exchange's answer for a chain of inverse options, with a future and an empty book."""
    chain = a_chain("coin", 1.0)
    millis = int(NOW.timestamp() * 1000)
    entries = [
        {
            "instrument_name": f"BTC-{row.expiry:%d%b%y}-{row.strike:g}-{row.type[0]}".upper(),
            "bid_price": row.bid, "ask_price": row.ask, "mark_price": (row.bid + row.ask) / 2,
            "mark_iv": 50.0, "underlying_price": FORWARDS[DAYS.index((row.expiry - NOW).days)],
            "creation_timestamp": millis, "open_interest": 3.5,
        }
        for row in chain.itertuples()
    ]  # fmt: skip
    entries[4]["bid_price"] = None
    future = {"instrument_name": "BTC-27MAR26", "bid_price": 1e5, "creation_timestamp": millis}
    return {"jsonrpc": "2.0", "result": [*entries, future]}


@pytest.mark.slow
def test_book_summary_of_inverse_options_gives_the_smile_back(tmp_path):
    answer = a_summary()
    path = tmp_path / "book.json"
    path.write_text(json.dumps(answer))
    table = option_chain.deribit_book_summary(answer)
    for source in (answer["result"], json.dumps(answer), path, str(path)):
        pd.testing.assert_frame_equal(option_chain.deribit_book_summary(source), table)
    assert set(table["open_interest"].dropna()) == {3.5}
    cleaned, report = option_chain.clean(table)
    named = dict(zip(report["instrument"], report["reason"]))
    assert named[answer["result"][4]["instrument_name"]] == "no bid"
    future = report[report["instrument"] == "BTC-27MAR26"]
    assert "no strike" in set(future["reason"]) and set(future["action"]) == {"dropped"}
    quotes = option_chain.quotes(cleaned, side="both")
    truth = smile(quotes.strike, quotes.forward, quotes.time)
    assert int(quotes.observed.sum()) == len(DAYS) * len(STRIKES) * 2 - 1
    seen = np.asarray(quotes.observed)
    np.testing.assert_allclose(quotes.mid[seen], truth[seen], atol=2e-9)
    np.testing.assert_allclose(quotes.half_spread[seen], 0.005, atol=2e-9)
    marked = option_chain.quotes(option_chain.clean(table, level="mark")[0], level="mark")
    np.testing.assert_array_equal(marked.mid, 0.5)


def test_an_answer_that_is_none_is_refused():
    with pytest.raises(DataError, match="list of instruments"):
        option_chain.deribit_book_summary({"result": {"error": 1}})
    with pytest.raises(DataError, match="empty"):
        option_chain.deribit_book_summary([])


def test_files_hold_what_a_frame_holds(tmp_path):
    chain = a_chain()
    expected = option_chain.read(chain)
    chain.rename(columns={"bid": "b"}).to_csv(tmp_path / "chain.csv", index=False)
    found = option_chain.read(tmp_path / "chain.csv", names={"b": "bid"})
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-14)
    with pytest.raises(DataError, match="csv"):
        option_chain.read(tmp_path / "chain.xlsx")


def test_parquet_holds_what_a_frame_holds(tmp_path):
    pytest.importorskip("pyarrow")
    chain = a_chain()
    chain.to_parquet(tmp_path / "chain.parquet")
    found = option_chain.read(str(tmp_path / "chain.parquet"))
    pd.testing.assert_frame_equal(found, option_chain.read(chain), check_dtype=False)


def test_reading_says_what_is_missing_and_takes_types_as_people_write_them():
    chain = a_chain().head(6)
    with pytest.raises(DataError, match="'strike'.*Did you mean 'strikes'"):
        option_chain.read(chain.rename(columns={"strike": "strikes"}))
    written = ["C", "p", "1", "-1", "Call", "neither"]
    types = option_chain.read(chain.assign(type=written))["type"]
    assert types.iloc[:5].tolist() == ["call", "put", "call", "put", "call"]
    assert types.isna().iloc[5]
    before = chain.copy()
    option_chain.clean(chain)
    pd.testing.assert_frame_equal(chain, before)


# -- bad rows -------------------------------------------------------------------------------------


def test_a_sound_chain_has_nothing_to_report_and_gives_the_smile_back():
    table, report = option_chain.clean(a_chain())
    assert report.empty and len(table) == len(DAYS) * len(STRIKES) * 2
    assert set(table["forward_from"]) == {"parity"}
    quotes = option_chain.quotes(table)
    np.testing.assert_allclose(quotes.forwards, FORWARDS, rtol=1e-12)
    np.testing.assert_allclose(quotes.times, np.array(DAYS) / 365, rtol=1e-12)
    assert quotes.num_quotes == len(DAYS) * len(STRIKES)
    truth = smile(np.asarray(quotes.strike), np.asarray(quotes.forward), np.asarray(quotes.time))
    np.testing.assert_allclose(quotes.mid, truth, atol=1e-9)
    np.testing.assert_allclose(quotes.bid, truth - 0.005, atol=1e-9)
    np.testing.assert_allclose(quotes.ask, truth + 0.005, atol=1e-9)


FAULTS = {
    "no bid": {"bid": 0.0},
    "no ask": {"ask": np.nan},
    "crossed": {"bid": 3.0, "ask": 2.9},
    "no strike": {"strike": np.nan},
    "no type": {"type": "straddle"},
    "no unit": {"unit": "euro"},
    "no discount": {"discount": -1.0},
    "no time": {"timestamp": pd.NaT},
    "expired": {"timestamp": NOW + pd.Timedelta(days=200)},
    "absurd volatility": {"bid": 60.0, "ask": 61.0},
    "ask without an implied volatility": {"ask": 500.0},
    "bid without an implied volatility": {"bid": -1.0, "ask": 500.0},
    "wide": {"bid": 0.3},
}


@pytest.mark.parametrize("reason", sorted(set(FAULTS) - {"bid without an implied volatility"}))
@pytest.mark.parametrize("bad", ["missing", "drop"])
def test_every_fault_is_named_and_marks_only_its_row(reason, bad):
    chain = a_chain()
    row = chain.index[(chain["strike"] == 110) & (chain["type"] == "call")][0]
    for column, value in FAULTS[reason].items():
        chain.loc[row, column] = value
    table, report = option_chain.clean(chain, bad=bad, limits=Limits(widest=0.2))
    assert set(report["row"]) == {row}
    assert reason in set(report["reason"])
    unplaced = reason in _faults.UNPLACED
    assert set(report["action"]) == {"dropped" if unplaced or bad == "drop" else "missing"}
    assert (row in table.index) == (bad == "missing" and not unplaced)
    if row in table.index:
        assert table.loc[row, ["bid", "ask", "bid_volatility", "ask_volatility"]].isna().all()
    others = table.drop(index=row, errors="ignore")
    assert len(others) == len(chain) - 1 and np.isfinite(others["bid_volatility"]).all()


def test_a_bid_below_the_intrinsic_value_has_no_volatility():
    chain = a_chain()
    row = chain.index[(chain["strike"] == 140) & (chain["type"] == "put")][0]
    chain.loc[row, "bid"] = 0.9 * 40 * 0.97
    report = option_chain.clean(chain)[1]
    assert report["reason"].tolist() == ["bid without an implied volatility"]


def test_of_doubles_the_tightest_sound_one_stays():
    chain = a_chain()
    row = chain.index[(chain["strike"] == 110) & (chain["type"] == "call")][0]
    middle = chain.loc[row, ["bid", "ask"]].mean()
    crossed = chain.loc[[row]].assign(bid=middle + 1e-3, ask=middle)
    tight = chain.loc[[row]].assign(bid=middle - 1e-3, ask=middle + 1e-3)
    both = pd.concat([tight, chain, crossed], ignore_index=True)
    table, report = option_chain.clean(both, bad="drop")
    assert 0 in table.index and row + 1 not in table.index
    reasons = report.groupby("row")["reason"].agg(set).to_dict()
    assert reasons[row + 1] == {"duplicated"}
    assert reasons[len(both) - 1] == {"crossed", "duplicated"}


def test_marks_are_judged_where_marks_are_asked_for():
    chain = a_chain().assign(mark=lambda c: (c["bid"] + c["ask"]) / 2, bid=np.nan, ask=np.nan)
    chain = chain.assign(forward=np.repeat(FORWARDS, 2 * len(STRIKES)))
    chain.loc[7, "mark"] = np.nan
    table, report = option_chain.clean(chain, level="mark")
    assert report[["row", "reason", "action"]].values.tolist() == [[7, "no mark", "missing"]]
    quotes = option_chain.quotes(table, level="mark")
    assert np.isnan(np.asarray(quotes.half_spread)).all()
    seen = np.asarray(quotes.observed)
    truth = smile(np.asarray(quotes.strike), np.asarray(quotes.forward), np.asarray(quotes.time))
    np.testing.assert_allclose(quotes.mid[seen], truth[seen], atol=2e-4)
    assert option_chain.clean(chain)[1]["row"].nunique() == len(chain)


CORRUPTIONS = st.lists(
    st.tuples(st.integers(0, len(a_chain()) - 1), st.sampled_from(sorted(FAULTS))), max_size=12
)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(CORRUPTIONS, st.sampled_from(["missing", "drop"]), st.integers(0, 5))
def test_nothing_vanishes_without_a_word(corruptions, bad, doubles):
    chain = a_chain()
    for row, reason in corruptions:
        for column, value in FAULTS[reason].items():
            chain.loc[row, column] = value
    chain = pd.concat([chain, chain.head(doubles)], ignore_index=True)
    table, report = option_chain.clean(chain, bad=bad)
    dropped = set(report.loc[report["action"] == "dropped", "row"])
    assert set(table.index) | dropped == set(chain.index)
    assert not set(table.index) & dropped
    empty = table.index[table["bid_volatility"].isna() | table["ask_volatility"].isna()]
    assert set(empty) == set(report["row"]) - dropped
    if len(table):
        quotes = option_chain.quotes(table, side="both")
        assert quotes.num_quotes == len(table)
        assert int((~quotes.observed).sum()) == len(empty)
        assert np.isfinite(np.asarray(quotes.log_moneyness)).all()
        assert (np.diff(np.asarray(quotes.times)) > 0).all()


def test_words_that_are_no_option_are_refused():
    with pytest.raises(DataError, match="bad.*'drop'"):
        option_chain.clean(a_chain(), bad="dorp")
    with pytest.raises(DataError, match="one underlying"):
        option_chain.clean(a_chain().assign(underlying=["A", "B"] * 27))
    with pytest.raises(DataError, match="clean"):
        option_chain.quotes(option_chain.read(a_chain()))
    with pytest.raises(DataError, match="side"):
        option_chain.quotes(option_chain.clean(a_chain())[0], side="in")


# -- forwards and time ----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["cash", "coin"])
def test_forwards_by_parity_bear_stale_pairs(unit):
    chain = a_chain(unit, 0.97 if unit == "cash" else 1.0)
    scale = 1.0 if unit == "cash" else 0.01
    stale = (chain["strike"] == 95) & (chain["type"] == "call")
    chain.loc[stale, ["bid", "ask"]] += 4.0 * scale
    chain.loc[chain["strike"] == 120, "bid"] = np.nan
    found = option_chain.parity_forwards(option_chain.read(chain))
    assert found["pairs"].tolist() == [len(STRIKES) - 1] * 3
    assert (np.abs(found["forward"] - np.array(FORWARDS)) < 1e-9).all()
    assert (found["error"] > 0).all()


def test_the_discount_by_parity():
    chain = a_chain(discount=0.93).assign(discount=np.nan)
    chain.loc[(chain["strike"] == 95) & (chain["type"] == "put"), ["bid", "ask"]] += 3.0
    table, report = option_chain.clean(chain)
    np.testing.assert_allclose(table["discount"], 0.93, rtol=1e-10)
    assert not report["reason"].str.contains("discount").any()
    calls_only = a_chain().query("type == 'call'").assign(spot=np.nan)
    _, report = option_chain.clean(calls_only)
    assert set(report["reason"]) >= {"no forward"} and len(set(report["row"])) == len(calls_only)
    table, report = option_chain.clean(calls_only.assign(spot=97.0))
    assert report.empty and set(table["forward_from"]) == {"spot"}
    np.testing.assert_allclose(table["forward"], 97.0 / 0.97)


def instants(*texts):
    return np.array(texts, "datetime64[ns]")


def test_the_default_clock_is_the_calendar():
    start, end = instants("2026-01-05T08:00"), instants("2026-03-27T08:00", "2025-12-30T20:00")
    np.testing.assert_allclose(years(Clock(), start, end), [81 / 365, -5.5 / 365], rtol=1e-12)
    assert np.isnan(years(Clock(), np.datetime64("NaT", "ns"), end)).all()


def test_weekends_holidays_and_nights_weigh_what_they_are_told():
    clock = Clock(weekdays=(1, 1, 1, 1, 1, 0.25, 0.25))
    friday, monday = instants("2026-01-09T12:00"), instants("2026-01-12T12:00")
    year = 5.5 / 7 * 365
    np.testing.assert_allclose(years(clock, friday, monday), 1.5 / year, rtol=1e-12)
    holiday = replace(clock, holidays=("2026-01-12",))
    np.testing.assert_allclose(years(holiday, friday, monday), 1.0 / year, rtol=1e-12)
    hours = Clock(weekdays=(1,) * 5 + (0,) * 2, sessions=((14.5, 21.0),), closed=0.1)
    day = 6.5 + 0.1 * 17.5
    # Friday from noon: 2.5 closed, 6.5 open, 3 closed; Monday to five: 14.5 closed, 2.5 open.
    found = years(hours, friday, instants("2026-01-12T17:00"))
    expected = (0.1 * 5.5 + 6.5 + 0.1 * 14.5 + 2.5) / (day * 5 / 7 * 365)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 10**6), min_size=3, max_size=3, unique=True).map(sorted),
    st.lists(st.floats(0.1, 3), min_size=7, max_size=7),
    st.floats(0, 1),
)
def test_a_clock_adds_up_and_never_runs_back(minutes, weekdays, closed):
    clock = Clock(weekdays=tuple(weekdays), sessions=((3.0, 9.5), (13.0, 22.0)), closed=closed)
    t = np.datetime64("2026-01-01T00:00", "ns") + np.array(minutes) * np.timedelta64(60, "s")
    whole, first, second = (years(clock, t[i], t[j]) for i, j in ((0, 2), (0, 1), (1, 2)))
    np.testing.assert_allclose(whole, first + second, rtol=1e-9, atol=1e-15)
    assert first >= 0 and second >= 0
    weeks = np.datetime64("2026-01-01", "ns") + 52 * np.timedelta64(7 * 86400, "s")
    np.testing.assert_allclose(
        years(clock, np.datetime64("2026-01-01", "ns"), weeks), 364 / 365, rtol=1e-12
    )


def test_business_time_raises_the_volatility_over_a_weekend():
    chain = a_chain().drop(columns="timestamp")
    monday = pd.Timestamp("2026-01-05 08:00")
    friday = pd.Timestamp("2026-01-02 08:00")
    clock = Clock(weekdays=(1,) * 5 + (0,) * 2)
    table = option_chain.clean(chain, now=friday, clock=clock)[0]
    later = option_chain.clean(chain, now=monday, clock=clock)[0]
    gone = (table["time"] - later["time"]).to_numpy()
    np.testing.assert_allclose(gone, 1 / (5 / 7 * 365), rtol=1e-9)
    variance = table["bid_volatility"] ** 2 * table["time"]
    np.testing.assert_allclose(variance, later["bid_volatility"] ** 2 * later["time"], rtol=1e-8)


# -- arrays ---------------------------------------------------------------------------------------


def test_sides():
    table = option_chain.clean(a_chain())[0]
    out, both = (option_chain.quotes(table, side=s) for s in ("out", "both"))
    assert ((np.asarray(out.log_moneyness) >= 0) == (np.asarray(out.sign) > 0)).all()
    assert both.num_quotes == 2 * out.num_quotes
    first = table.index[0]  # a call at 70, in the money
    worse = table.copy()
    worse.loc[first + 1, ["bid_volatility", "ask_volatility"]] = np.nan
    tightest = option_chain.quotes(worse, side="tightest")
    assert tightest.num_quotes == out.num_quotes and tightest.sign[0] == 1
    assert bool(tightest.observed.all())
    assert not bool(option_chain.quotes(worse).observed.all())


def test_volatilities_have_all_digits_in_single_precision_too():
    exact = option_chain.clean(a_chain())[0]
    with jax.enable_x64(False):
        again = option_chain.clean(a_chain())[0]
    columns = ["bid_volatility", "ask_volatility"]
    np.testing.assert_array_equal(again[columns], exact[columns])


@pytest.mark.parametrize("unit", ["cash", "coin"])
def test_prices_come_back_in_their_unit(unit):
    discount = 0.97 if unit == "cash" else 1.0
    table = option_chain.clean(a_chain(unit, discount))[0]
    quotes = option_chain.quotes(table)
    found = option_chain.in_unit(quotes, quotes.bid, unit, discount)
    kind = np.where(np.asarray(quotes.sign) > 0, "call", "put")
    keys = pd.DataFrame({"strike": quotes.strike, "type": kind}).round(6)
    expected = table.assign(code=table.groupby("expiry").ngroup())
    expected = keys.assign(code=quotes.expiry).merge(expected, on=["code", "strike", "type"])
    np.testing.assert_allclose(found, expected["bid"], rtol=1e-9)
    np.testing.assert_array_equal(
        option_chain.in_unit(quotes, quotes.bid, "volatility"), quotes.bid
    )


def test_quotes_from_arrays():
    quotes = quote_arrays.from_arrays([90, 100, 110, 100], [1, 1, 1, 0.5], [98, 98, 98, 99.0], 0.2)
    np.testing.assert_array_equal(quotes.times, [0.5, 1.0])
    np.testing.assert_array_equal(quotes.forwards, [99.0, 98.0])
    np.testing.assert_array_equal(quotes.expiry, [1, 1, 1, 0])
    np.testing.assert_array_equal(quotes.sign, [-1, 1, 1, 1])
    np.testing.assert_allclose(quotes.strike, [90, 100, 110, 100])
    np.testing.assert_allclose(quotes.total_variance, [0.04, 0.04, 0.04, 0.02])
    with pytest.raises(DataError, match="one value per expiry"):
        quote_arrays.from_arrays([90, 100], 1.0, [98, 99.0], 0.2)
    with pytest.raises(DataError, match="strike"):
        quote_arrays.from_arrays([-90, 100], 1.0, 98, 0.2)


def test_quotes_are_a_pytree():
    quotes = option_chain.quotes(option_chain.clean(option_tables.btc_2021())[0])

    @jax.jit
    def loss(q, level):
        error = quote_arrays.errors_in_spreads(q, level)
        return jnp.sum(jnp.where(q.observed, error, 0.0) ** 2)

    batch = jax.tree.map(lambda x: jnp.stack([x, x]), quotes)
    np.testing.assert_allclose(
        jax.vmap(loss, (0, None))(batch, 0.9), [float(loss(quotes, 0.9))] * 2, rtol=1e-12
    )
    np.testing.assert_array_equal(batch.forward, np.stack([quotes.forward] * 2))
    held_out = quote_arrays.hold_out(quotes, np.arange(49) % 2)
    slope = jax.grad(loss, 1)(held_out, 0.9)
    expected = (2 * (0.9 - quotes.mid) / quotes.half_spread**2)[::2].sum()
    np.testing.assert_allclose(slope, expected, rtol=1e-9)


@pytest.mark.slow
def test_quotes_are_selected_and_padded():
    quotes = option_chain.quotes(option_chain.clean(a_chain())[0])
    delta = np.asarray(quote_arrays.call_delta(quotes))
    truth = norm.cdf(
        -np.asarray(quotes.log_moneyness) / (np.asarray(quotes.mid) * np.sqrt(quotes.time))
        + np.asarray(quotes.mid) * np.sqrt(quotes.time) / 2
    )
    np.testing.assert_allclose(delta, truth, rtol=1e-12)
    some = quote_arrays.select(quotes, (0.2, 0.8), (0.1, np.inf))
    inside = (delta >= 0.2) & (delta <= 0.8) & (np.asarray(quotes.time) >= 0.1)
    assert some.num_quotes == inside.sum() > 0 and some.num_expiries == 2
    np.testing.assert_allclose(some.strike, np.asarray(quotes.strike)[inside], rtol=1e-12)
    longer = quote_arrays.pad(some, 40, 6)
    assert (longer.num_quotes, longer.num_expiries) == (40, 6)
    assert (np.diff(np.asarray(longer.times)) > 0).all() and bool((longer.time > 0).all())
    for field in ("mid", "strike", "time", "sign"):
        back = quote_arrays.compact(longer)
        np.testing.assert_allclose(getattr(back, field), getattr(some, field), rtol=1e-12)
    with pytest.raises(DataError, match="pad to more"):
        quote_arrays.pad(quotes, 5, 3)


# -- tables ---------------------------------------------------------------------------------------


def test_the_typed_tables_are_the_published_ones():
    """Counts, sums and corners, taken from the sources and not from the tables."""
    btc, report = option_chain.clean(option_tables.btc_2021())
    assert report.empty and btc.groupby("time").size().tolist() == [12, 13, 15, 9]
    np.testing.assert_allclose([btc["bid"].sum(), btc["ask"].sum()], [46.3592, 47.1592], rtol=1e-12)
    assert btc["strike"].sum() == 4_080_000
    dax, report = option_chain.clean(option_tables.dax_2002(), level="mark")
    assert report.empty and dax.groupby("time").size().tolist() == [13] * 8
    np.testing.assert_allclose(dax["mark"].sum(), 31.9254, rtol=1e-12)
    np.testing.assert_allclose(dax["forward"] * dax["discount"], 4468.17, rtol=1e-12)
    quotes = option_chain.quotes(dax, level="mark")
    assert quotes.num_quotes == 104 and float(quotes.mid[0]) == 0.6625
