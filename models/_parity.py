"""Forwards and discounts of an option chain from put-call parity."""

import numpy as np
import pandas as pd


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
