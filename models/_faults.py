"""What is wrong with the rows of an option chain, and the report that says so."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

UNITS = ("cash", "coin", "volatility")
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


def reasons(table: pd.DataFrame, level: str, limits: Limits) -> dict[str, np.ndarray]:
    """Which rows have which fault, (N,) booleans by name, in the order of the report."""
    quoted = _faults_of_mid if level == "mid" else _faults_of_mark
    found = {**_faults_of_place(table), **quoted(table)}
    middle = middle_volatility(table, level)
    found["absurd volatility"] = ~(
        middle.isna() | middle.between(limits.least_volatility, limits.most_volatility)
    )
    found["wide"] = table["ask_volatility"] - table["bid_volatility"] > limits.widest
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


def middle_volatility(table: pd.DataFrame, level: str) -> pd.Series:
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


def report(table: pd.DataFrame, found: dict, dropped: np.ndarray) -> pd.DataFrame:
    """One row for every reason of every bad row."""
    names = table["instrument"].to_numpy(object)
    parts = []
    for reason, which in found.items():
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
