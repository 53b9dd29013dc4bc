"""Check the data of the observed sites: dtype, shape, missing, infinite, support."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.distribution import Unit

from emprob.errors import DataError
from emprob.plan import describe
from emprob.prepare import HINTS


@dataclass(frozen=True)
class Missing:
    """Entries of a site that are integrated out.

    Attributes:
        site: its name.
        count: entries (whole events of the base distribution) that are NaN or masked.
        total: entries in all.
        first_index: of the first such entry.
        masked: how many of `count` are hidden by a mask of the program.
        nan: whether any value is NaN, hidden or not.
    """

    site: str
    count: int
    total: int
    first_index: tuple[int, ...]
    masked: int = 0
    nan: bool = False

    def __str__(self) -> str:
        masked = f" ({self.masked} masked)" if self.masked else ""
        return (
            f"{self.count} of {self.total} missing{masked}, first at index "
            f"{index_text(self.first_index)}"
        )


def index_text(index: tuple[int, ...]) -> str:
    """An index for people: 2 or (1, 2)."""
    return str(index[0]) if len(index) == 1 else str(tuple(index))


def check_sites(
    found: Any, series: Mapping[str, tuple] | None = None, others: Sequence[Any] = ()
) -> dict[str, Missing]:
    """Check the shape and values of every observed site.

    Args:
        found: the survey of the program.
        series: by site in a scan, its values and mask with time as their first axis. Without it
            only the first step is checked.
        others: surveys at other values of the unobserved sites; a support that differs between
            them is not a fact about the data and is not checked.

    Returns:
        By site, what is missing.

    Raises:
        DataError: dtype, shape, NaN within an event, infinite, outside the support, empty.
    """
    missing = {}
    for name, site in found.sites.items():
        if not site.observed or site.fn is None or isinstance(site.fn.base, Unit):
            continue
        base = site.fn.base
        value = check_dtype(name, site.value)
        check_shape(site, value.shape)
        mask = site.fn.mask
        if series is not None and name in series:
            value, mask = series[name]
        support = None if isinstance(base, dist.Delta) else base.support
        for other in others:
            support = _constant(support, other.sites[name].fn.base.support)
        note = check_values(name, value, support, base.event_dim, mask)
        if note is not None:
            missing[name] = note
    return missing


def _constant(support: Any, other: Any) -> Any:
    """The support, unless it varies with the values of unobserved sites."""
    try:
        return support if support == other else None
    except (TypeError, ValueError):  # bounds of different shapes
        return None


def check_dtype(site: str, value: Any) -> np.ndarray:
    """A site's value as an array of real numbers.

    Raises:
        DataError: any other dtype.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise DataError(
            f"site '{site}': a masked array made inside the program; its mask would be lost. Pass "
            "it as an argument, or fill it with NaN."
        )
    try:
        value = np.asarray(value)
    except ValueError:
        raise DataError(
            f"site '{site}': a ragged list. Pad the rows with NaN to one length."
        ) from None
    kind = value.dtype.kind
    if kind in HINTS and value.dtype.name not in ("bfloat16",):
        raise DataError(
            f"site '{site}': expected real numbers, got dtype {value.dtype}. {HINTS[kind]}"
        )
    return value


def check_shape(site: Any, got: tuple[int, ...]) -> None:
    """The data of a site must have exactly the shape of its plates and event.

    A site in no plate may have data with more batch dimensions than its distribution, which is
    then the same for all of them. Data are never broadcast.

    Raises:
        DataError: naming the plate, and both shapes.
    """
    event = tuple(site.event_shape)
    expected = (*site.batch_shape, *event)
    if math.prod(got) == 0 and math.prod(expected) != 0 or (0 in got):
        raise DataError(f"site '{site.name}' has no observations: its data have shape {got}.")
    if got == expected or (not site.frames and _covers(got, site.batch_shape, event)):
        return
    raise DataError(
        f"site '{site.name}': its data have shape {got}, its distribution under its plates has "
        f"shape {expected}. {_shape_hint(site, got, expected)}"
    )


def _covers(got: tuple[int, ...], batch: tuple[int, ...], event: tuple[int, ...]) -> bool:
    """Whether the distribution broadcasts to the data without stretching them."""
    end = len(got) - len(event)
    if end < 0 or got[end:] != event:
        return False
    try:
        return np.broadcast_shapes(got[:end], batch) == got[:end]
    except ValueError:
        return False


def _shape_hint(site: Any, got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What to do, by the plate that disagrees."""
    num_event = len(site.event_shape)
    if math.prod(got) == math.prod(expected) and len(got) != len(expected):
        return f"Reshape the data to {expected}: nothing is broadcast."
    for plate, dim, size in site.frames:
        axis = len(got) - num_event + dim
        length = got[axis] if 0 <= axis < len(got) else None
        if length != size:
            what = "no axis for it" if length is None else f"length {length} along it"
            return (
                f"Plate '{plate}' (dim {dim}) has size {size}, the data have {what}. Give both "
                "the same length; nothing is broadcast."
            )
    plates = [f"'{p}' (dim {d}, size {n})" for p, d, n in site.frames]
    return (
        f"Plates: {', '.join(plates) or 'none'}. A batch dimension that no plate accounts for "
        "comes from the distribution's arguments: check their shapes, such as (n, 1) beside (n,)."
    )


def check_values(
    site: str, values: Any, support: Any, event_dim: int, mask: Any = None
) -> Missing | None:
    """Check the numbers of one site.

    Args:
        site: its name.
        values: (*batch, *event); a leading time axis counts as batch.
        support: of the base distribution, or None where it is not known.
        event_dim: of the base distribution.
        mask: bool, broadcastable to `batch`; False hides an entry.

    Returns:
        What is missing, or None.

    Raises:
        DataError: see the rows of `check_sites`.
    """
    values = check_dtype(site, values)
    batch = values.shape[: values.ndim - event_dim]
    if values.size == 0:
        raise DataError(f"site '{site}' has no observations: its data have shape {values.shape}.")
    hidden = np.zeros(batch, bool)
    if mask is not None:
        hidden = np.broadcast_to(
            ~np.asarray(mask, bool), np.broadcast_shapes(batch, np.shape(mask))
        )
    if hidden.shape != batch:  # a mask that also runs over dimensions the data do not have
        hidden = hidden.all(tuple(range(hidden.ndim - len(batch)))).reshape(batch)
    if values.dtype.kind in "iub":
        gone = hidden
    else:
        _check_infinite(site, values)
        gone = hidden | _missing_events(site, values, hidden, event_dim)
    if gone.all():
        raise DataError(
            f"site '{site}': all {gone.size} entries are missing or masked. Remove the site, or "
            "pass data for it."
        )
    _check_support(site, values, support, event_dim, gone)
    if not gone.any():
        return None
    first = tuple(int(i) for i in np.argwhere(gone)[0])
    nan = values.dtype.kind == "f" and bool(np.isnan(values).any())
    return Missing(site, int(gone.sum()), int(gone.size), first, int(hidden.sum()), nan)


def _check_infinite(site: str, values: np.ndarray) -> None:
    bad = np.isinf(values)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"site '{site}': {int(bad.sum())} of {values.size} values are infinite, first "
            f"{values[index]} at index {index_text(index)}. Remove them, or set them to NaN "
            "(missing)."
        )


def _missing_events(
    site: str, values: np.ndarray, hidden: np.ndarray, event_dim: int
) -> np.ndarray:
    """Which events are NaN; an event that is partly NaN cannot be integrated out."""
    nan = np.isnan(values)
    if not event_dim:
        return nan
    axes = tuple(range(-event_dim, 0))
    whole, some = nan.all(axes), nan.any(axes)
    partly = some & ~whole & ~hidden
    if partly.any():
        event = tuple(int(i) for i in np.argwhere(partly)[0])
        rest = tuple(int(i) for i in np.argwhere(nan[event])[0])
        raise DataError(
            f"site '{site}': {int(partly.sum())} of {partly.size} events are NaN in part, first at "
            f"index {index_text((*event, *rest))}. An event of shape "
            f"{values.shape[values.ndim - event_dim :]} must be wholly observed or wholly NaN: "
            "drop or fill these rows, or use independent univariate sites."
        )
    return np.asarray(some)


def _check_support(
    site: str, values: np.ndarray, support: Any, event_dim: int, gone: np.ndarray
) -> None:
    if support is None:
        return
    hole = gone.reshape(gone.shape + (1,) * event_dim)
    finite = np.nan_to_num(values) if values.dtype.kind == "f" else values
    try:
        with jax.enable_x64(True):
            inside = np.asarray(support(np.where(hole, np.nan_to_num(finite), finite)))
    except Exception:  # a support that cannot be asked
        return
    extra = support.event_dim - event_dim
    if extra > 0:  # a support over more dimensions than the event
        gone = np.asarray(gone.any(tuple(range(-extra, 0))))
    try:
        bad = ~np.broadcast_to(inside, gone.shape) & ~gone
    except ValueError:
        return
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        value = values[index]
        raise DataError(
            f"site '{site}': {int(bad.sum())} of {bad.size} values lie outside its support "
            f"({describe(support)}), first {np.array2string(np.asarray(value), threshold=8)} at "
            f"index {index_text(index)}. Correct them, set them to NaN (missing), or choose a "
            "distribution whose support holds them."
        )
