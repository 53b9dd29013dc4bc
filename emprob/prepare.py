"""Turn one argument of a program into NumPy arrays, whatever library it came from.

Every array is copied once and made read-only: nothing that the caller holds can change under a
fit, nor can a fit change it. Missing entries (NA, null, masked) become NaN.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emprob.errors import DataError

HINTS = {
    "O": "Pass numbers: .astype(float), or pd.factorize(x)[0] for labels.",
    "U": "Code labels as integers: pd.factorize(x)[0].",
    "S": "Code labels as integers: pd.factorize(x)[0].",
    "T": "Code labels as integers: pd.factorize(x)[0].",
    "M": "Pass a number of days or years since a date of yours as floats.",
    "m": "Divide by a unit, such as np.timedelta64(1, 'D'), to get floats.",
    "V": "Pass one plain array per field.",
    "c": "Pass the real and imaginary parts as two real arrays.",
}
CATEGORY = "Code its categories as integers: x.cat.codes (-1 is missing: check for it first)."


class Prepared(NamedTuple):
    """An argument with its arrays converted, and the labels that it carried."""

    value: Any
    coords: dict[str, Any]


def prepare(name: str, value: Any) -> Prepared:
    """Convert one argument of a program.

    Args:
        name: of the argument, for messages.
        value: arrays of NumPy, JAX, pandas, polars, xarray, (nested) lists or tuples of numbers,
            and pytrees of these are converted: floats to float64, integers to int64, bool kept.
            Strings, None, Python numbers and any other object stay as they are.

    Returns:
        The converted value, and its index, columns or coordinates.

    Raises:
        DataError: a ragged list, or a dtype that is not a real number.
    """
    library = type(value).__module__.partition(".")[0]
    if library == "pandas" and hasattr(value, "dtype" if hasattr(value, "dtype") else "dtypes"):
        return _from_pandas(name, value)
    if library == "xarray":
        return _from_xarray(name, value)
    if library == "polars" and hasattr(value, "to_numpy"):
        columns = {"columns": np.asarray(value.columns)} if hasattr(value, "columns") else {}
        return Prepared(to_array(name, value.to_numpy()), columns)
    if isinstance(value, Mapping) and type(value) in (dict, Mapping):
        return _from_items(name, value.items(), dict)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return _from_sequence(name, value)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return Prepared(value, {})  # a PRNG key
    if isinstance(value, np.generic | str | bytes | type) or callable(value):
        return Prepared(value, {})
    if isinstance(value, np.ndarray | jax.Array) or hasattr(value, "__array__"):
        return Prepared(to_array(name, value), {})
    leaves, treedef = jax.tree.flatten(value)
    if treedef == jax.tree.structure(0):
        return Prepared(value, {})
    return Prepared(treedef.unflatten([prepare(name, x).value for x in leaves]), {})


def to_array(name: str, x: Any) -> np.ndarray:
    """A read-only copy as float64, int64 or bool; masked entries become NaN.

    Raises:
        DataError: the dtype is not a real number, or an integer does not fit in 64 bits.
    """
    mask = np.ma.getmaskarray(x) if isinstance(x, np.ma.MaskedArray) else None
    a = np.asarray(np.ma.getdata(x) if mask is not None else x)
    if jnp.issubdtype(a.dtype, jnp.floating) or (mask is not None and mask.any()):
        _require_real(name, a.dtype)
        out = a.astype(np.float64)
        if mask is not None:
            out[mask] = np.nan
    elif a.dtype.kind == "b":
        out = a.copy()
    elif a.dtype.kind in "iu":
        if a.dtype == np.uint64 and a.size and a.max() > np.iinfo(np.int64).max:
            raise DataError(f"{name}: {a.max()} does not fit in int64. Pass floats.")
        out = a.astype(np.int64)
    else:
        _require_real(name, a.dtype)
        out = a.astype(np.float64)
    out.flags.writeable = False
    return out


def _require_real(name: str, dtype: np.dtype) -> None:
    if dtype.kind in HINTS and not jnp.issubdtype(dtype, jnp.floating):
        raise DataError(f"{name}: expected real numbers, got dtype {dtype}. {HINTS[dtype.kind]}")


def _from_pandas(name: str, value: Any) -> Prepared:
    if not hasattr(value, "columns"):
        coords = {"index": np.asarray(value.index)} if hasattr(value, "index") else {}
        return Prepared(_pandas_column(name, value), coords)
    columns = [_pandas_column(f"{name}, column {c!r}", value[c]) for c in value.columns]
    table = np.stack(columns, -1) if columns else np.zeros(value.shape)
    coords = {"index": np.asarray(value.index), "columns": np.asarray(value.columns)}
    return Prepared(to_array(name, table), coords)


def _pandas_column(name: str, column: Any) -> np.ndarray:
    """One Series (or Index); NA of the nullable types becomes NaN."""
    if str(column.dtype) == "category":
        raise DataError(f"{name}: expected real numbers, got dtype category. {CATEGORY}")
    kind = getattr(column.dtype, "kind", "O")
    if kind not in "biufc" or isinstance(column.dtype, np.dtype):
        return to_array(name, column.to_numpy())
    if bool(np.asarray(column.isna()).any()):
        return to_array(name, column.to_numpy(dtype=float, na_value=np.nan))
    return to_array(name, column.to_numpy(dtype={"b": bool, "c": complex}.get(kind)))


def _from_xarray(name: str, value: Any) -> Prepared:
    if not hasattr(value, "dtype"):
        raise DataError(
            f"{name}: expected an array, got xarray.{type(value).__name__}. Pass one of its "
            "variables: ds['name']."
        )
    coords = {str(d): np.asarray(value.coords[d]) for d in value.dims if d in value.coords}
    return Prepared(to_array(name, value.values), coords)


def _from_items(name: str, items: Any, build: Any) -> Prepared:
    prepared = {k: prepare(f"{name}[{k!r}]", v) for k, v in items}
    coords = {str(k): p.coords for k, p in prepared.items() if p.coords}
    return Prepared(build((k, p.value) for k, p in prepared.items()), coords)


def _from_sequence(name: str, value: list | tuple) -> Prepared:
    """Nested numbers are an array; anything else is a pytree."""
    if not _is_numbers(value):
        items = _from_items(name, enumerate(value), dict)
        return Prepared(type(value)(items.value.values()), items.coords)
    try:
        return Prepared(to_array(name, np.asarray(value)), {})
    except ValueError:
        lengths = [len(v) if isinstance(v, list | tuple) else 1 for v in value]
        raise DataError(
            f"{name}: a ragged list, its rows have lengths {lengths[:6]}"
            f"{'...' if len(lengths) > 6 else ''}. Pad the rows with NaN to one length (missing), "
            "or pass the lengths and mask the padding in the program."
        ) from None


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(_is_numbers(v) for v in value)
    return isinstance(value, bool | int | float | complex | np.number | np.bool_)
