"""The clock of an expiry: calendar time, or time in which trading counts more than the rest."""

from dataclasses import dataclass
from typing import Any

import numpy as np

DAY = np.timedelta64(1, "D")
HOUR = np.timedelta64(3600 * 10**9, "ns")


@dataclass(frozen=True)
class Clock:
    """How much variance time the hours of the calendar carry, relative to one another.

    The weights are normalised so that `days_per_year` days of ordinary weeks are one year: a
    volatility keeps its size, whatever the clock. The default is calendar time, actual/365.

    Attributes:
        weekdays: seven weights, Monday first.
        holidays: dates, as ISO strings or `datetime.date`.
        holiday: weight of a holiday, in place of its weekday's.
        sessions: (start, end) of trading in hours UTC.
        closed: weight of the hours outside the sessions, relative to those inside.
        days_per_year: of the calendar.
    """

    weekdays: tuple[float, ...] = (1.0,) * 7
    holidays: tuple[Any, ...] = ()
    holiday: float = 0.0
    sessions: tuple[tuple[float, float], ...] = ((0.0, 24.0),)
    closed: float = 0.0
    days_per_year: float = 365.0


def years(clock: Clock, start: Any, end: Any) -> np.ndarray:
    """Years from one instant to another by a clock.

    Args:
        clock: weights of the hours.
        start: (N,) or scalar, `datetime64`, UTC.
        end: (N,) or scalar, the same.

    Returns:
        (N,), negative where the end is first, NaN where an instant is missing.
    """
    start, end = np.broadcast_arrays(*(np.asarray(t, "datetime64[ns]") for t in (start, end)))
    known = ~(np.isnat(start) | np.isnat(end))
    out = np.full(start.shape, np.nan)
    if not known.any():
        return out
    both = np.stack([start[known], end[known]])
    passed = _weighted_hours(clock, both)
    week = sum(clock.weekdays) * _hours_within_day(clock, np.array(24.0))
    out[known] = (passed[1] - passed[0]) / (week / 7 * clock.days_per_year)
    return out


def _weighted_hours(clock: Clock, instants: np.ndarray) -> np.ndarray:
    """Weighted hours from the first midnight before all instants to each of them."""
    day = instants.astype("datetime64[D]")
    first = day.min()
    calendar = np.arange(first, day.max() + 2 * DAY, DAY)
    # 1 January 1970, day 0 of the calendar, was a Thursday.
    weight = np.asarray(clock.weekdays, float)[(calendar.astype(int) + 3) % 7]
    holidays = np.asarray(clock.holidays, "datetime64[D]")
    weight = np.where(np.isin(calendar, holidays), clock.holiday, weight)
    whole = np.concatenate([[0.0], np.cumsum(weight) * _hours_within_day(clock, np.array(24.0))])
    index = (day - first).astype(int)
    return whole[index] + weight[index] * _hours_within_day(clock, (instants - day) / HOUR)


def _hours_within_day(clock: Clock, hour: np.ndarray) -> np.ndarray:
    """Weighted hours from midnight to an hour of the day."""
    inside = sum(np.clip(hour, start, end) - start for start, end in clock.sessions)
    return inside + clock.closed * (hour - inside)
