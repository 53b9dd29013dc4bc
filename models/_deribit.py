"""Names and book summaries of options as Deribit publishes them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emprob.errors import DataError

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
NAME = re.compile(
    r"(?P<underlying>[A-Z0-9]+(?P<linear>_[A-Z]+)?)-(?P<day>\d{1,2})(?P<month>[A-Z]{3})"
    r"(?P<year>\d{2})-(?P<strike>\d+(?:d\d+)?)-(?P<type>[CP])"
)
SETTLEMENT_HOUR = 8  # UTC


@dataclass(frozen=True)
class Instrument:
    """An option by its name.

    Attributes:
        underlying: "BTC", or "SOL_USDC" of a contract settled in cash.
        expiry: the instant of settlement, UTC.
        strike: positive.
        sign: +1.0 is a call, -1.0 a put.
        unit: "coin" where the price is in units of the underlying (an inverse contract), else
            "cash".
    """

    underlying: str
    expiry: pd.Timestamp
    strike: float
    sign: float
    unit: str


def deribit_instrument(name: str) -> Instrument:
    """What a name such as "BTC-27MAR26-100000-C" says; "XRP_USDC-30JUN26-0d625-P" has a decimal.

    Raises:
        DataError: for a name that is not that of an option.
    """
    found = NAME.fullmatch(str(name).strip())
    if found is None or found["month"] not in MONTHS:
        raise DataError(f"instrument: expected a name such as 'BTC-27MAR26-100000-C', got "
                        f"{name!r}; futures and perpetuals are no options")  # fmt: skip
    month = MONTHS.index(found["month"]) + 1
    try:
        expiry = pd.Timestamp(
            2000 + int(found["year"]), month, int(found["day"]), SETTLEMENT_HOUR, tz="UTC"
        )
    except ValueError as error:
        raise DataError(f"instrument: {name!r} has no such day ({error}); correct it") from error
    return Instrument(
        underlying=found["underlying"], expiry=expiry,
        strike=float(found["strike"].replace("d", ".")), sign=1.0 if found["type"] == "C" else -1.0,
        unit="cash" if found["linear"] else "coin",
    )  # fmt: skip


def deribit_book_summary(source: Any) -> pd.DataFrame:
    """A chain from the answer to `public/get_book_summary_by_currency`.

    Futures and other instruments that are no options keep a row without strike, for `clean` to
    report.

    Args:
        source: the answer as an object (a mapping with "result", or the list itself), as JSON
            text, or the path of a JSON file.

    Returns:
        One row per instrument with the columns of `option_chain.COLUMNS`. Prices stay in the unit
        of the exchange: coin of inverse contracts, else cash.
    """
    entries = _entries(source)
    rows = [_row(entry) for entry in entries]
    if not rows:
        raise DataError("book summary: expected instruments, got an empty list; ask the exchange "
                        "for another currency or kind")  # fmt: skip
    return pd.DataFrame(rows)


def _entries(source: Any) -> list[dict]:
    if isinstance(source, Path):
        source = source.read_text()
    elif isinstance(source, str) and not source.lstrip().startswith(("{", "[")):
        source = Path(source).read_text()
    content = json.loads(source) if isinstance(source, str | bytes) else source
    content = content.get("result", content) if isinstance(content, dict) else content
    if not isinstance(content, list):
        got = type(content).__name__
        raise DataError(f"book summary: expected a list of instruments under 'result', got {got}; "
                        "pass the exchange's answer as it is")  # fmt: skip
    return content


def _row(entry: dict) -> dict[str, Any]:
    """One instrument; what the exchange does not quote is NaN."""
    number = {k: _number(entry.get(v)) for k, v in NUMBERS.items()}
    stamp = entry.get("creation_timestamp")
    row = {
        "instrument": entry.get("instrument_name"),
        "timestamp": pd.NaT if stamp is None else pd.Timestamp(stamp, unit="ms", tz="UTC"),
        **number,
        "mark_volatility": _number(entry.get("mark_iv")) / 100,
    }
    try:
        name = deribit_instrument(entry.get("instrument_name", ""))
    except DataError:
        nothing = {"underlying": None, "expiry": pd.NaT, "strike": np.nan, "type": None}
        return {**row, **nothing, "unit": "coin"}
    return {
        **row, "underlying": name.underlying, "expiry": name.expiry, "strike": name.strike,
        "type": "call" if name.sign > 0 else "put", "unit": name.unit,
    }  # fmt: skip


NUMBERS = {
    "bid": "bid_price",
    "ask": "ask_price",
    "mark": "mark_price",
    "forward": "underlying_price",
    "open_interest": "open_interest",
    "volume": "volume",
}


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)
