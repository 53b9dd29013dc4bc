"""Two short published option surfaces, typed in, as tables that `option_chain` reads.

- `btc_2021`: 49 out-of-the-money Bitcoin options at Deribit, bid and ask volatilities of
  21 October 2021 in the Python package `stochvolmodels` 2.6.0 (copyright 2024 Artur Sepp, MIT).
- `dax_2002`: 104 implied volatilities of the DAX on 5 July 2002, in the calibration test of the
  test-suite of QuantLib (`hestonmodel.cpp`, BSD-3-Clause; the data were collected by A. Sepp).
"""

from typing import Any

import numpy as np
import pandas as pd

# label: expiry, years, forward. The times count 360 days a year up to 08:00 UTC.
BTC_EXPIRIES = {
    "2w": ("2021-11-05", 0.04289242541152263, 67106.44399999999),
    "1m": ("2021-11-26", 0.10122575874485597, 67843.219),
    "2m": ("2021-12-31", 0.1984479809670782, 68689.48000000001),
    "3m": ("2022-03-25", 0.4317813143004115, 70617.77892857141),
}
# (strike, bid, ask); puts below the forward, calls above it.
BTC_VOLATILITIES = {
    "2w": (
        (52000, 0.9231, 0.9399), (56000, 0.8835, 0.8944), (58000, 0.8695, 0.8967),
        (60000, 0.8621, 0.8856), (64000, 0.855, 0.8744), (66000, 0.8589, 0.8774),
        (70000, 0.8822, 0.9006), (72000, 0.8856, 0.9047), (74000, 0.8944, 0.9144),
        (75000, 0.8996, 0.9202), (90000, 0.9607, 0.9762), (95000, 0.9718, 1.0151),
    ),
    "1m": (
        (45000, 0.9475, 0.972), (48000, 0.9211, 0.9401), (55000, 0.8917, 0.9092),
        (58000, 0.8863, 0.9014), (64000, 0.8873, 0.9041), (65000, 0.8913, 0.9079),
        (70000, 0.9012, 0.917), (75000, 0.9102, 0.9264), (80000, 0.9244, 0.9417),
        (85000, 0.9377, 0.952), (90000, 0.9494, 0.9602), (100000, 0.9755, 0.9899),
        (120000, 1.0317, 1.0585),
    ),
    "2m": (
        (38000, 0.9882, 1.0167), (42000, 0.9595, 0.9739), (46000, 0.94, 0.9568),
        (52000, 0.9247, 0.9372), (56000, 0.914, 0.9285), (60000, 0.9131, 0.9261),
        (64000, 0.9109, 0.9261), (70000, 0.9168, 0.9225), (75000, 0.9244, 0.9358),
        (80000, 0.9305, 0.9362), (85000, 0.941, 0.9558), (90000, 0.9544, 0.9637),
        (100000, 0.9682, 0.9823), (140000, 1.047, 1.0664), (160000, 1.0887, 1.1144),
    ),
    "3m": (
        (35000, 1.0052, 1.0204), (40000, 0.981, 0.9968), (60000, 0.9593, 0.9683),
        (80000, 0.9722, 0.976), (100000, 0.9924, 0.9963), (120000, 1.013, 1.0173),
        (150000, 1.0419, 1.047), (250000, 1.1222, 1.1411), (300000, 1.1489, 1.1736),
    ),
}  # fmt: skip

DAX_SPOT = 4468.17
DAX_DATE = "2002-07-05"
DAX_DAYS = (13, 41, 75, 165, 256, 345, 524, 703)
DAX_RATES = (0.0357, 0.0349, 0.0341, 0.0355, 0.0359, 0.0368, 0.0386, 0.0401)
# (strike, volatility at each of DAX_DAYS)
DAX_VOLATILITIES = (
    (3400, (0.6625, 0.4875, 0.4204, 0.3667, 0.3431, 0.3267, 0.3121, 0.3121)),
    (3600, (0.6007, 0.4543, 0.3967, 0.3511, 0.3279, 0.3154, 0.2984, 0.2921)),
    (3800, (0.5084, 0.4221, 0.3718, 0.3327, 0.3155, 0.3027, 0.2919, 0.2889)),
    (4000, (0.4541, 0.3869, 0.3492, 0.3149, 0.2963, 0.2926, 0.2819, 0.28)),
    (4200, (0.406, 0.3607, 0.333, 0.2999, 0.2887, 0.2811, 0.2751, 0.2775)),
    (4400, (0.3726, 0.3396, 0.3108, 0.2781, 0.2788, 0.2722, 0.2661, 0.2686)),
    (4500, (0.355, 0.3277, 0.3012, 0.2781, 0.2781, 0.2661, 0.2661, 0.2681)),
    (4600, (0.3428, 0.3209, 0.2958, 0.274, 0.2688, 0.2627, 0.258, 0.262)),
    (4800, (0.3302, 0.3062, 0.2799, 0.2631, 0.2573, 0.2533, 0.2504, 0.2544)),
    (5000, (0.3343, 0.2959, 0.2705, 0.254, 0.2504, 0.2464, 0.2448, 0.2462)),
    (5200, (0.346, 0.2845, 0.2624, 0.2463, 0.2425, 0.2385, 0.2373, 0.2422)),
    (5400, (0.3857, 0.286, 0.2578, 0.2399, 0.2357, 0.2327, 0.2312, 0.2351)),
    (5600, (0.3976, 0.286, 0.2607, 0.2356, 0.2297, 0.2268, 0.2241, 0.232)),
)


def btc_2021() -> pd.DataFrame:
    """Bitcoin at Deribit, 21 October 2021: 49 quotes with bid and ask, four expiries."""
    rows = [
        {
            "expiry": expiry, "strike": float(strike),
            "type": "put" if strike < forward else "call", "bid": bid, "ask": ask,
            "unit": "volatility", "forward": forward, "time": time,
        }
        for label, (expiry, time, forward) in BTC_EXPIRIES.items()
        for strike, bid, ask in BTC_VOLATILITIES[label]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def dax_2002() -> pd.DataFrame:
    """The DAX, 5 July 2002: 104 volatilities without a spread (in `mark`), eight expiries.

    Times are days / 365, rates are continuous, and there is no dividend.
    """
    start = pd.Timestamp(DAX_DATE)
    rows = []
    for i, (days, rate) in enumerate(zip(DAX_DAYS, DAX_RATES)):
        discount = float(np.exp(-rate * days / 365))
        forward = DAX_SPOT / discount
        shared: dict[str, Any] = {
            "expiry": (start + pd.Timedelta(days=days)).strftime("%Y-%m-%d"), "unit": "volatility",
            "forward": forward, "spot": DAX_SPOT, "discount": discount, "time": days / 365,
        }  # fmt: skip
        for strike, volatilities in DAX_VOLATILITIES:
            kind = "put" if strike < forward else "call"
            rows.append({**shared, "strike": float(strike), "type": kind, "mark": volatilities[i]})
    return pd.DataFrame(rows)
