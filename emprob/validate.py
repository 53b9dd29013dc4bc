"""Static checks of a surveyed program, its data and the arguments of a fit.

All on NumPy values, before anything compiles. Every message says: site, what was found (count,
first index, value), what to do.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.distribution import Unit

from emprob.errors import DataError, ModelError, nearest
from emprob.explain import explain
from emprob.plan import describe
from emprob.prepare import HINTS, Prepared, prepare

__all__ = [
    "Missing",
    "Prepared",
    "check_init",
    "check_parameter",
    "check_repeatable",
    "check_shape",
    "check_sites",
    "check_steps",
    "check_table_size",
    "check_values",
    "explain",
    "prepare",
]


@dataclass(frozen=True)
class Missing:
    """Entries of a site that are integrated out.

    Attributes:
        site: its name.
        count: entries (whole events of the base distribution) that are NaN or masked.
        total: entries in all.
        first_index: of the first such entry.
        masked: how many of `count` are hidden by a mask of the program.
    """

    site: str
    count: int
    total: int
    first_index: tuple[int, ...]
    masked: int = 0

    def __str__(self) -> str:
        masked = f" ({self.masked} masked)" if self.masked else ""
        return (
            f"{self.count} of {self.total} missing{masked}, first at index "
            f"{index_text(self.first_index)}"
        )


def index_text(index: tuple[int, ...]) -> str:
    """An index for people: 2 or (1, 2)."""
    return str(index[0]) if len(index) == 1 else str(tuple(index))


# -- observed sites -----------------------------------------------------------------------------


def check_sites(
    found: Any, series: Mapping[str, tuple] | None = None, shifted: Any = None
) -> dict[str, Missing]:
    """Check the shape and values of every observed site.

    Args:
        found: the survey of the program.
        series: by site in a scan, its values and mask with time as their first axis. Without it
            only the first step is checked.
        shifted: a survey at other values of the unobserved sites; a support that differs between
            the two is not a fact about the data and is not checked.

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
        if shifted is not None and name in shifted.sites:
            support = _constant(support, shifted.sites[name].fn.base.support)
        note = check_values(name, value, support, base.event_dim, mask)
        if note is not None:
            missing[name] = note
    return missing


def _constant(support: Any, other: Any) -> Any:
    """The support, unless it varies with the values of unobserved sites."""
    try:
        return support if support == other else None
    except Exception:  # constraints of arrays of different shapes
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
    return Missing(site, int(gone.sum()), int(gone.size), first, int(hidden.sum()))


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
    return some


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
        gone = gone.any(tuple(range(-extra, 0)))
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


# -- the program --------------------------------------------------------------------------------


def check_repeatable(first: Any, second: Any) -> None:
    """Two runs with the same seed must agree.

    Raises:
        ModelError: the sites, their data or their distributions differ.
    """
    check_same_sites(first, second, "between two runs with the same seed")
    for name, site in first.sites.items():
        other = second.sites[name]
        if site.fn is None or other.fn is None:
            continue
        here, there = _numbers(site), _numbers(other)
        if len(here) != len(there) or not all(map(_equal, here, there)):
            raise ModelError(
                f"site '{name}': two runs with the same seed give different data or arguments of "
                "its distribution. The program draws random numbers outside numpyro.sample, or "
                "changes something outside itself; pass such numbers in as arguments."
            )


def check_same_sites(first: Any, second: Any, when: str) -> None:
    """The two surveys must have the same sites, in the same plates.

    Raises:
        ModelError: naming the sites that come and go.
    """
    differ = [n for n in {**first.sites, **second.sites}
              if n not in first.sites or n not in second.sites
              or first.sites[n].frames != second.sites[n].frames
              or first.sites[n].observed != second.sites[n].observed]  # fmt: skip
    if differ:
        raise ModelError(
            f"the sites of the program change {when}: {', '.join(map(repr, differ[:6]))}. Every "
            "run must have the same sites in the same plates; use masks or jnp.where."
        )


def _numbers(site: Any) -> list:
    value = [site.value] if site.observed else []
    return [*value, *jax.tree.leaves(site.fn.base)]


def _equal(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def check_table_size(sizes: Mapping[str, int], max_table_bytes: float, batch: int = 1) -> None:
    """The joint table of latents that must be summed together.

    Args:
        sizes: number of values of each latent, by name.
        max_table_bytes: the limit.
        batch: number of such tables (product of plate sizes).

    Raises:
        ModelError: the table would be over the limit.
    """
    cells = math.prod(sizes.values()) * batch
    if 8 * cells > max_table_bytes:
        names = list(sizes)
        shown = ", ".join(names) if len(names) < 5 else f"{names[0]}..{names[-1]}"
        raise ModelError(
            f"enumerating {shown} needs {size_text(cells)} cells ({bytes_text(8 * cells)}), limit "
            f"{bytes_text(max_table_bytes)} (max_table_bytes). Give the latents plates, chain them "
            "with scan, or break the dependence between them."
        )


def size_text(cells: int) -> str:
    """A count for people: 640 or 10^12."""
    if cells < 10**6:
        return str(cells)
    power = math.floor(math.log10(cells))
    lead = f"{cells / 10**power:.2g}"
    return f"10^{power}" if lead == "1" else f"{lead}x10^{power}"


def bytes_text(n: float) -> str:
    """Bytes for people: 8 TB."""
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    i = min(int(math.log10(max(n, 1)) // 3), len(units) - 1)
    return f"{n / 1000**i:.3g} {units[i]}"


# -- arguments of a fit -------------------------------------------------------------------------


def check_parameter(
    what: str, site: str, value: Any, shape: tuple[int, ...], support: Any
) -> np.ndarray:
    """A value given for a parameter: numbers, of its shape, finite, inside its support.

    Args:
        what: the argument it came in, for the message ("init").
        site: name of the parameter.
        value: what was given.
        shape: constrained shape.
        support: the constraint, or None.

    Returns:
        A float64 copy.

    Raises:
        ModelError: otherwise.
    """
    try:
        array = np.array(value, dtype=float)
    except (TypeError, ValueError):
        raise ModelError(
            f"{what}: site '{site}' expects numbers of shape {shape}, got {value!r}."
        ) from None
    if array.shape != tuple(shape):
        raise ModelError(
            f"{what}: site '{site}' has shape {tuple(shape)}, got {array.shape}. Pass an array of "
            "exactly that shape."
        )
    inside = np.isfinite(array).all()
    if inside and support is not None:
        with jax.enable_x64(True):
            inside = np.asarray(support(array)).all()
    if not inside:
        text = describe(support) if support is not None else "the real numbers"
        raise ModelError(
            f"{what}: site '{site}' must lie in its support ({text}), got "
            f"{np.array2string(array, threshold=8)}. Pass a value inside, in the constrained space."
        )
    return array


def check_init(init: Mapping[str, Any] | None, model: Any) -> dict[str, np.ndarray] | None:
    """Starting values, checked against the model's free parameters.

    Raises:
        ModelError: an unknown name (with the nearest ones), a wrong shape, outside the support.
    """
    if init is None:
        return None
    if not isinstance(init, Mapping):
        raise ModelError(
            f"init: expected a dict from site to value, got {type(init).__name__}. Pass, say, "
            "init={'mu': [0.0, 1.0]}, or the `params` of another fit."
        )
    checked = {}
    for name, value in init.items():
        if name not in model.params:
            raise ModelError(
                f"init: the model has no free parameter {name!r}.{nearest(str(name), model.params)}"
            )
        shape = np.shape(model.notes.value.initial[name])
        support = getattr(model.data.transforms[name], "codomain", None)
        checked[name] = check_parameter("init", name, value, shape, support)
    return checked


def check_steps(max_steps: Any, tol: Any, num_starts: Any) -> None:
    """The numbers that steer a run.

    Raises:
        ValueError: naming the argument and its range.
    """
    _check_count("max_steps", max_steps, 0)
    _check_count("num_starts", num_starts, 1)
    number = isinstance(tol, int | float | np.number) and not isinstance(tol, bool)
    if not number or not 0 < tol < math.inf:
        raise ValueError(
            f"tol={tol!r}: expected a number > 0: the distance to the optimum at which to stop, in "
            "standard errors."
        )


def _check_count(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)
    if not whole or value < least:
        raise ValueError(f"{name}={value!r}: expected an integer >= {least}.")
