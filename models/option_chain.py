"""Option chains: a tidy table of quotes, its bad rows named, and the arrays of a program.

    chain = option_chain.read("chain.parquet")          # or a CSV, a DataFrame, Deribit's JSON
    table, report = option_chain.clean(chain)           # what is bad, row by row, and why
    quotes = option_chain.quotes(table)                 # for every pricing program

One row is one option. Columns of the table (bold: needed; the rest has defaults):

| column | meaning |
|---|---|
| instrument | a name; made of the others by default |
| underlying | one per chain; "" by default |
| **expiry** | instant (UTC) or date; any label where `time` is given |
| **strike** | positive |
| **type** | "call" or "put"; also C, P, 1, -1 |
| bid, ask | in the unit of the row; NaN is missing |
| mark | settlement or model price, same unit; used where it is asked for by `level="mark"` |
| mark_volatility | the same as implied volatility, which goes first |
| unit | "cash" (default; paid today in the strike's currency), "coin" or "volatility" |
| forward | of the expiry; else from put-call parity, else spot / discount |
| spot | of the underlying |
| discount | of the expiry; 1 by default, NaN: from put-call parity |
| timestamp | instant of the quote (UTC) |
| time | years to expiry; else from `timestamp` to `expiry` by a `Clock` |

A price in "coin" is paid in units of the underlying (an inverse contract), "volatility" is an
implied one. Dates are midnight UTC. Further columns are kept. European options only: parity and
the implied volatilities rely on it.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from emprob.errors import DataError, nearest
from emprob.models import _faults
from emprob.models._clock import Clock, years
from emprob.models._deribit import Instrument, deribit_book_summary, deribit_instrument
from emprob.models._faults import UNITS, Limits, middle_volatility
from emprob.models._parity import parity_forwards
from emprob.models.pricing.black import black, implied_volatility
from emprob.models.quotes import Quotes

__all__ = [
    "Clock",
    "Instrument",
    "Limits",
    "clean",
    "deribit_book_summary",
    "deribit_instrument",
    "parity_forwards",
    "quotes",
    "read",
    "years",
]

NEEDED = ("expiry", "strike", "type")
DEFAULTS = {
    "underlying": "",
    "bid": np.nan,
    "ask": np.nan,
    "mark": np.nan,
    "mark_volatility": np.nan,
    "unit": "cash",
    "forward": np.nan,
    "spot": np.nan,
    "discount": 1.0,
    "timestamp": pd.NaT,
    "time": np.nan,
}
COLUMNS = ("instrument", *NEEDED, *DEFAULTS)
NUMBERS = ("strike", "bid", "ask", "mark", "mark_volatility", "forward", "spot", "discount", "time")
SIGNS = {"call": 1.0, "c": 1.0, "1": 1.0, "1.0": 1.0, "put": -1.0, "p": -1.0, "-1": -1.0,
         "-1.0": -1.0}  # fmt: skip


# -- reading ------------------------------------------------------------------------------------


def read(source: Any, names: dict[str, str] | None = None) -> pd.DataFrame:
    """A tidy table from a DataFrame or a file.

    Args:
        source: a DataFrame, or the path of a `.csv` or `.parquet` file.
        names: columns of the source to rename, as {"implied_volatility": "mark_volatility"}.

    Returns:
        A copy with every column of `COLUMNS`, numbers as floats, instants in UTC. What is no
        number becomes NaN, for `clean` to report. The index is that of the source.

    Raises:
        DataError: where a needed column is missing or a file has another format.
    """
    table = _load(source).rename(columns=names or {})
    for name in NEEDED:
        if name not in table:
            got = nearest(name, map(str, table.columns))
            raise DataError(f"chain: expected a column {name!r}; rename one with `names`.{got}")
    given = [name for name in DEFAULTS if name in table]
    table = table.assign(**{k: v for k, v in DEFAULTS.items() if k not in given})
    for name in NUMBERS:
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    table["timestamp"] = pd.to_datetime(table["timestamp"], errors="coerce", utc=True)
    table["expiry"] = _instants(table["expiry"])
    kind = table["type"].astype(str).str.strip().str.lower().map(SIGNS)
    table["type"] = kind.map({1.0: "call", -1.0: "put"})
    table["unit"] = table["unit"].astype(str).str.strip().str.lower()
    if "instrument" not in table:
        table["instrument"] = _names(table)
    rest = [c for c in table.columns if c not in COLUMNS]
    return table[[*COLUMNS, *rest]]


def _load(source: Any) -> pd.DataFrame:
    if isinstance(source, pd.DataFrame):
        return source.copy()
    path = Path(source)
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"chain: expected a DataFrame or a file {' or '.join(readers)}, got "
                        f"{path.name!r}; read it with pandas and pass the DataFrame")  # fmt: skip
    return readers[path.suffix.lower()](path)


def _instants(expiry: pd.Series) -> pd.Series:
    """Instants, NaT where an entry is none; labels as they are where no entry is an instant."""
    if pd.api.types.is_numeric_dtype(expiry):
        return expiry
    instants = pd.to_datetime(expiry, errors="coerce", utc=True, format="ISO8601")
    return instants if instants.notna().any() else expiry


def _names(table: pd.DataFrame) -> pd.Series:
    expiry = table["expiry"]
    if pd.api.types.is_datetime64_any_dtype(expiry):
        expiry = expiry.dt.strftime("%d%b%y").str.upper()
    kind = table["type"].map({"call": "C", "put": "P"}).fillna("?")
    strike = table["strike"].map("{:g}".format)
    parts = [table["underlying"].astype(str), expiry.astype(str), strike, kind]
    return pd.Series(["-".join(filter(None, p)) for p in zip(*parts)], table.index, dtype=object)


# -- cleaning -----------------------------------------------------------------------------------


def clean(
    chain: pd.DataFrame, bad: str = "missing", level: str = "mid", now: Any = None,
    clock: Clock = Clock(), limits: Limits = Limits(),
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Fill in times, forwards and implied volatilities, and name every bad row.

    Args:
        chain: a table that `read` accepts.
        bad: "missing" keeps bad rows without their prices, "drop" leaves them out. Rows without a
            place of their own (no strike, expired, duplicated, ...) are left out either way.
        level: "mid" wants bid and ask, "mark" wants the mark.
        now: instant of the quotes without `timestamp`, UTC.
        clock: of the times that are not given.
        limits: what is absurd.

    Returns:
        The table, with `forward_from` ("given", "parity", "spot") and the implied volatilities
        `bid_volatility`, `ask_volatility`, `mark_volatility`; and the report: one row for every
        reason of every bad row, with `row` (index in the source), `instrument`, `reason`,
        `detail`, `action` ("missing" or "dropped").

    Raises:
        DataError: with several underlyings, or an option that does not exist.
    """
    _one_of("bad", bad, ("missing", "drop"))
    _one_of("level", level, ("mid", "mark"))
    table = read(chain)
    if table["underlying"].dropna().nunique() > 1:
        found = ", ".join(sorted(map(repr, table["underlying"].dropna().unique())))
        raise DataError(f"chain: expected one underlying, got {found}; select one of them")
    table = _with_forwards(_with_times(table, now, clock))
    table = _with_volatilities(table)
    reasons = _faults.reasons(table, level, limits)
    unplaced = np.any([reasons[name] for name in _faults.UNPLACED], axis=0)
    wrong = np.any(list(reasons.values()), axis=0)
    dropped = wrong if bad == "drop" else unplaced
    report = _faults.report(table, reasons, dropped)
    emptied = ["bid", "ask", "mark", *(f"{side}_volatility" for side in ("bid", "ask", "mark"))]
    table.loc[wrong, emptied] = np.nan
    return table[~dropped], report


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise DataError(f"{name}: got {value!r}.{nearest(str(value), known)}")


def _with_times(table: pd.DataFrame, now: Any, clock: Clock) -> pd.DataFrame:
    """Years to expiry, where they are not given."""
    if not pd.api.types.is_datetime64_any_dtype(table["expiry"]):
        return table
    start = table["timestamp"]
    if now is not None:
        start = start.fillna(pd.to_datetime(now, utc=True))
    instants = (t.dt.tz_convert(None).to_numpy("datetime64[ns]") for t in (start, table["expiry"]))
    return table.assign(time=table["time"].fillna(pd.Series(years(clock, *instants), table.index)))


def _with_forwards(table: pd.DataFrame) -> pd.DataFrame:
    """Forward and discount, where they are not given, and where the forward is from."""
    given, discount = table["forward"], table["discount"]
    parity = parity_forwards(table[(table["time"] > 0) & (given.isna() | discount.isna())])
    discount = discount.fillna(table["expiry"].map(parity["discount"]).astype(float))
    by_parity = table["expiry"].map(parity["forward"]).astype(float)
    by_spot = table["spot"] / discount
    choices = [given.notna(), by_parity.notna(), by_spot.notna()]
    source = np.select(choices, ["given", "parity", "spot"], "")
    forward = given.fillna(by_parity).fillna(by_spot)
    return table.assign(forward=forward, discount=discount, forward_from=source)


def _with_volatilities(table: pd.DataFrame) -> pd.DataFrame:
    """Implied volatilities of bid, ask and mark, NaN where there are none."""
    sides = {f"{side}_volatility": _implied(table, side) for side in ("bid", "ask", "mark")}
    sides["mark_volatility"] = table["mark_volatility"].fillna(sides["mark_volatility"])
    return table.assign(**sides)


def _implied(table: pd.DataFrame, side: str) -> pd.Series:
    """Implied volatility of one side (N,)."""
    columns = (table[name].to_numpy() for name in (side, "unit", "forward", "discount"))
    price = pd.Series(undiscounted(*columns), table.index)
    sign = table["type"].map({"call": 1.0, "put": -1.0})
    sound = (table["strike"] > 0) & (table["forward"] > 0) & (table["time"] > 0) & sign.notna()
    arguments = [x.where(sound, 1.0).to_numpy(float) for x in
                 (price, table["forward"], table["strike"], table["time"], sign)]  # fmt: skip
    with jax.enable_x64(True):
        found = np.asarray(_implied_padded(arguments), float)
    quoted = (table["unit"] == "volatility").to_numpy()
    found = np.where(quoted, table[side], np.where(sound & ~quoted, found, np.nan))
    return pd.Series(found, table.index)


def _implied_padded(arguments: list[np.ndarray]) -> np.ndarray:
    """Implied volatilities, compiled once for all chains of about a size."""
    n = len(arguments[0])
    size = 1 << max(6, (max(n, 1) - 1).bit_length())
    padded = [np.pad(x, (0, size - n), constant_values=1.0) for x in arguments]
    return np.asarray(_implied_volatility(*padded))[:n]


@jax.jit
def _implied_volatility(price: Any, forward: Any, strike: Any, time: Any, sign: Any) -> Any:
    return implied_volatility(price, forward, strike, time, sign)


def undiscounted(price: Any, unit: Any, forward: Any, discount: Any) -> Any:
    """Forward value of a price in the currency of the strike.

    A price in coin is worth price * spot = price * forward * discount today, as a coin earns
    nothing: its forward value is price * forward.

    Args:
        price: (N,), in the units.
        unit: (N,), strings; NaN comes out where it is not "cash" or "coin".
        forward, discount: (N,).

    Returns:
        (N,), float.
    """
    scales = [1 / np.asarray(discount, float), np.asarray(forward, float)]
    known = [np.asarray(unit) == "cash", np.asarray(unit) == "coin"]
    return np.asarray(price, float) * np.select(known, scales, np.nan)


def in_unit(quotes: Quotes, volatility: Any, unit: str, discount: Any = 1.0) -> Any:
    """Prices of quotes at some volatilities, in the unit in which an exchange quotes.

    Args:
        quotes: N options.
        volatility: (N,).
        unit: "cash", "coin" or "volatility".
        discount: (E,) or scalar.

    Returns:
        (N,).
    """
    _one_of("unit", unit, UNITS)
    if unit == "volatility":
        return jnp.asarray(volatility)
    deviation = volatility * jnp.sqrt(quotes.time)
    value = black(quotes.forward, quotes.strike, deviation, quotes.sign)
    factors = jnp.broadcast_to(jnp.asarray(discount, float), quotes.times.shape)
    return value / quotes.forward if unit == "coin" else value * factors[quotes.expiry]


# -- arrays -------------------------------------------------------------------------------------


def quotes(table: pd.DataFrame, side: str = "out", level: str = "mid") -> Quotes:
    """The arrays of a cleaned table.

    Args:
        table: the first result of `clean`.
        side: "out" takes puts below the forward and calls above; "tightest" takes, of call and put
            of a strike, the one with the smaller spread; "both" takes all.
        level: "mid" of the volatilities of bid and ask, or "mark".

    Returns:
        Quotes by expiry and strike. Time and forward of an expiry are medians over its rows.

    Raises:
        DataError: for a table that is not from `clean`, or without rows.
    """
    _one_of("side", side, ("out", "tightest", "both"))
    _one_of("level", level, ("mid", "mark"))
    if "bid_volatility" not in table or not len(table):
        raise DataError("quotes: expected rows with a column 'bid_volatility', got "
                        f"{len(table)} rows; pass the table that `clean` returns")  # fmt: skip
    expiries = table.groupby("expiry", sort=False)[["time", "forward"]].median()
    expiries = expiries.sort_values("time")
    table = table.assign(
        code=table["expiry"].map(pd.Series(range(len(expiries)), expiries.index)).astype(int),
        sign=table["type"].map({"call": 1.0, "put": -1.0}),
        middle=middle_volatility(table, level),
        spread=(table["ask_volatility"] - table["bid_volatility"]) / 2,
    )
    forward = expiries["forward"].to_numpy()
    table = table.assign(k=np.log(table["strike"] / forward[table["code"]]))
    table = _sides(table, side).sort_values(["code", "strike", "sign"], kind="stable")
    columns = {name: jnp.asarray(table[name].to_numpy(copy=True)) for name in
               ("k", "code", "middle", "spread", "sign")}  # fmt: skip
    return Quotes(
        log_moneyness=columns["k"], times=jnp.asarray(expiries["time"].to_numpy(copy=True)),
        expiry=columns["code"], forwards=jnp.asarray(forward.copy()), mid=columns["middle"],
        half_spread=columns["spread"], sign=columns["sign"],
    )  # fmt: skip


def _sides(table: pd.DataFrame, side: str) -> pd.DataFrame:
    if side == "both":
        return table
    if side == "out":
        return table[table["sign"] == np.where(table["k"] >= 0, 1.0, -1.0)]
    missing = table["middle"].isna()
    ranked = table.assign(missing=missing).sort_values(["missing", "spread"], kind="stable")
    return ranked.drop_duplicates(["code", "strike"]).drop(columns="missing")
