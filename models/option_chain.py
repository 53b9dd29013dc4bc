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

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from emprob.errors import DataError, nearest
from emprob.models._clock import Clock, years
from emprob.models._deribit import Instrument, deribit_book_summary, deribit_instrument
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
UNITS = ("cash", "coin", "volatility")
SIGNS = {"call": 1.0, "c": 1.0, "1": 1.0, "1.0": 1.0, "put": -1.0, "p": -1.0, "-1": -1.0,
         "-1.0": -1.0}  # fmt: skip
# A row with one of these has no place of its own on a surface, not even an empty one.
UNPLACED = ("no strike", "no type", "no unit", "no discount", "no time", "expired", "no forward",
            "duplicated")  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What counts as a bad quote beyond what cannot be.

    Attributes:
        least_volatility, most_volatility: an implied volatility outside is absurd.
        widest: largest distance from bid to ask, as volatility.
    """

    least_volatility: float = 0.01
    most_volatility: float = 5.0
    widest: float = np.inf


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


# -- forwards -----------------------------------------------------------------------------------


def parity_forwards(chain: pd.DataFrame) -> pd.DataFrame:
    """Forward of every expiry from calls and puts of the same strike.

    Call minus put is discount * (strike's distance to the forward); a pair gives a forward with an
    error of its bid-ask spread, and the weighted median over strikes bears stale pairs. With three
    strikes or more and a NaN discount, the discount is the median slope over pairs of strikes
    (Theil 1950, Sen 1968).

    Args:
        chain: from `read`; units "cash" and "coin" are used.

    Returns:
        One row per expiry with a pair: `forward`, `discount`, `error` (weighted median half-width
        of the pairs' forwards between bid and ask), `pairs`.
    """
    pairs = _pairs(chain[chain["unit"].isin(["cash", "coin"])])
    rows = {expiry: _parity(own) for expiry, own in pairs.groupby("expiry", sort=True)}
    columns = ["forward", "discount", "error", "pairs"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("expiry")


def _pairs(chain: pd.DataFrame) -> pd.DataFrame:
    """Strikes whose call and put both have two sides, with the difference of their mids."""
    same, used = ["expiry", "strike", "unit"], ["bid", "ask", "discount"]
    sound = chain[(chain["bid"] > 0) & (chain["ask"] >= chain["bid"]) & (chain["strike"] > 0)]
    sound = sound.drop_duplicates([*same, "type"], keep="last")
    calls, puts = (sound.loc[sound["type"] == kind, [*same, *used]] for kind in ("call", "put"))
    both = calls.merge(puts, on=same, suffixes=("", "_put"))
    middle = (both["bid"] + both["ask"] - both["bid_put"] - both["ask_put"]) / 2
    width = (both["ask"] - both["bid"] + both["ask_put"] - both["bid_put"]) / 2
    return both.assign(difference=middle, width=width)


def _parity(pairs: pd.DataFrame) -> tuple[float, float, float, int]:
    """Forward, discount, error and number of pairs of one expiry."""
    strike, difference = pairs["strike"].to_numpy(), pairs["difference"].to_numpy()
    coin = (pairs["unit"] == "coin").to_numpy()
    given = pairs["discount"].dropna()
    discount = float(given.median()) if len(given) else _slope(strike[~coin], -difference[~coin])
    with np.errstate(divide="ignore", invalid="ignore"):
        forward = np.where(coin, strike / (1 - difference), strike + difference / discount)
        width = pairs["width"].to_numpy() * np.where(coin, forward**2 / strike, 1 / discount)
    # A pair without any spread is no better than the best of the others.
    weight = 1 / np.maximum(width, max(1e-6 * np.median(strike), 1e-300)) ** 2
    middle = _weighted_median(forward, weight)
    return middle, discount, _weighted_median(width, weight), len(pairs)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Median slope over pairs; NaN with fewer than three points."""
    first, second = np.triu_indices(len(x), 1)
    if len(x) < 3:
        return np.nan
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def _weighted_median(x: np.ndarray, weight: np.ndarray) -> float:
    known = np.isfinite(x) & np.isfinite(weight)
    x, weight = x[known], weight[known]
    if not len(x):
        return np.nan
    order = np.argsort(x)
    share = np.cumsum(weight[order]) / weight.sum()
    return float(x[order][np.searchsorted(share, 0.5)])


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
    reasons = _reasons(table, level, limits)
    unplaced = np.any([reasons[name] for name in UNPLACED], axis=0)
    wrong = np.any(list(reasons.values()), axis=0)
    dropped = wrong if bad == "drop" else unplaced
    report = _report(table, reasons, dropped)
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


# -- what is wrong ------------------------------------------------------------------------------


def _reasons(table: pd.DataFrame, level: str, limits: Limits) -> dict[str, np.ndarray]:
    """Which rows have which fault, (N,) booleans by name, in the order of the report."""
    found = {**_faults_of_place(table), **(_faults_of_mid(table) if level == "mid" else
                                           _faults_of_mark(table))}  # fmt: skip
    middle, width = _middle(table, level), table["ask_volatility"] - table["bid_volatility"]
    found["absurd volatility"] = (middle < limits.least_volatility) | (
        middle > limits.most_volatility
    )
    found["wide"] = width > limits.widest
    found = {name: np.asarray(which, bool) for name, which in found.items()}
    found["duplicated"] = _duplicated(table, np.any(list(found.values()), axis=0))
    return found


def _faults_of_place(table: pd.DataFrame) -> dict[str, Any]:
    """Why a row has no place on the surface."""
    strike, time, forward = table["strike"], table["time"], table["forward"]
    return {
        "no strike": ~(np.isfinite(strike) & (strike > 0)),
        "no type": table["type"].isna(),
        "no unit": ~table["unit"].isin(UNITS),
        "no discount": ~(np.isfinite(table["discount"]) & (table["discount"] > 0)),
        "no time": ~np.isfinite(time) | table["expiry"].isna(),
        "expired": time <= 0,
        "no forward": ~(np.isfinite(forward) & (forward > 0)),
    }


def _faults_of_mid(table: pd.DataFrame) -> dict[str, Any]:
    """What is wrong with bid and ask."""
    bid, ask, found = table["bid"], table["ask"], {}
    found["no bid"] = ~(np.isfinite(bid) & (bid > 0))
    found["no ask"] = ~(np.isfinite(ask) & (ask > 0))
    found["crossed"] = bid > ask
    placed = ~np.any(list(_faults_of_place(table).values()), axis=0)
    for side in ("bid", "ask"):
        sound = placed & ~found[f"no {side}"]
        found[f"{side} without an implied volatility"] = sound & table[f"{side}_volatility"].isna()
    return found


def _faults_of_mark(table: pd.DataFrame) -> dict[str, Any]:
    """What is wrong with the mark."""
    quoted = np.isfinite(table["mark"]) & (table["mark"] > 0)
    known = np.isfinite(table["mark_volatility"]) & (table["mark_volatility"] > 0)
    placed = ~np.any(list(_faults_of_place(table).values()), axis=0)
    return {
        "no mark": ~quoted & ~known,
        "mark without an implied volatility": placed & quoted & ~known,
    }


def _middle(table: pd.DataFrame, level: str) -> pd.Series:
    if level == "mark":
        return table["mark_volatility"]
    return (table["bid_volatility"] + table["ask_volatility"]) / 2


def _duplicated(table: pd.DataFrame, faulty: np.ndarray) -> np.ndarray:
    """All but one of the rows of an option: the last of the tightest sound ones stays."""
    width = (table["ask_volatility"] - table["bid_volatility"]).to_numpy()
    width = np.where(np.isnan(width), np.inf, width)
    order = np.lexsort((-np.arange(len(table)), width, faulty))
    same = table[["expiry", "strike", "type"]].iloc[order].duplicated().to_numpy()
    out = np.zeros(len(table), bool)
    out[order] = same
    nameless = table[["expiry", "strike", "type"]].isna().any(axis=1).to_numpy()
    return out & ~nameless


DETAILS = {
    "no strike": ("strike",),
    "no discount": ("discount",),
    "no unit": ("unit",),
    "no time": ("time",),
    "expired": ("expiry", "time"),
    "no forward": ("forward",),
    "no bid": ("bid",),
    "no ask": ("ask",),
    "no mark": ("mark",),
    "absurd volatility": ("bid_volatility", "ask_volatility", "mark_volatility"),
    "duplicated": ("expiry", "strike", "type"),
}


def _report(table: pd.DataFrame, reasons: dict, dropped: np.ndarray) -> pd.DataFrame:
    """One row for every reason of every bad row."""
    names = table["instrument"].to_numpy(object)
    parts = []
    for reason, which in reasons.items():
        bad = np.flatnonzero(which)
        columns = DETAILS.get(reason, ("bid", "ask"))
        shown = [[f"{c} {_short(x)}" for x in table[c].iloc[bad].tolist()] for c in columns]
        parts.append(pd.DataFrame({
            "at": bad, "row": table.index[bad], "instrument": names[bad], "reason": reason,
            "detail": [", ".join(words) for words in zip(*shown)],
            "action": np.where(dropped[bad], "dropped", "missing"),
        }))  # fmt: skip
    parts = [part for part in parts if len(part)]
    columns = ["row", "instrument", "reason", "detail", "action"]
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts).sort_values("at", kind="stable", ignore_index=True)[columns]


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


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
        middle=_middle(table, level),
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
