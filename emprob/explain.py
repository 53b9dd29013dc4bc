"""Say which site of a program an error came from, and what to do about it."""

import linecache
import re
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpyro

from emprob.errors import DataError, ModelError

TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
BROADCAST = re.compile(
    r"[Ii]ncompatible (shapes|batch|dimensions)|broadcast|shapes must be equal|must be .*broadcast"
)
INVALID = re.compile(r"(\w+) distribution got invalid (\w+) parameter")
LIBRARIES = tuple(
    str(Path(str(m.__file__)).parent) for m in (jax, numpyro) if m.__file__ is not None
) + (str(Path(__file__).parent),)
SITE = re.compile(r"""(?:sample|param|plate|deterministic|factor)\(\s*f?["']([^"']+)["']""")


class Place(NamedTuple):
    """Where in the user's program an error arose.

    Attributes:
        site: name of the site, or None.
        message: NumPyro's message of that site, or None.
        plate: name and size of the plate being made, or None.
        line: "file:line: code" of the program, or "".
        plates: name -> size of the plates met so far.
    """

    site: str | None
    message: dict | None
    plate: tuple[str | None, Any] | None
    line: str
    plates: dict[str, Any]


def explain(error: BaseException) -> Exception:
    """A `ModelError` or `DataError` that names the site, from an error raised in a program.

    Args:
        error: whatever running the program raised. Keep it as the cause:
            `raise explain(error) from error`.
    """
    if isinstance(error, ModelError | DataError):
        return error
    place = find_place(error)
    text = str(error).strip().split("\n")[0] or type(error).__name__
    where = f"site '{place.site}'" if place.site else "the program"
    line = f" At {place.line}." if place.line else ""
    if isinstance(error, TRACED):
        return ModelError(
            f"{where}: a Python `if`, loop, index or conversion needs the number of a parameter or "
            f"latent, which is symbolic while the program is traced.{line} Use jnp.where or "
            f"jax.lax.cond for branches and jnp functions for conversions. ({text})"
        )
    if place.plate is not None:
        return _plate_error(place, error, text)
    if isinstance(error, NotImplementedError) and "control flow" in str(error):
        return ModelError(
            f"scan under a plate is not supported.{line} Move the plate inside the scan's body."
        )
    invalid = INVALID.search(str(error))
    if invalid is not None:
        return ModelError(
            f"{where}: the {invalid[2]} of its {invalid[1]} is outside what it allows, at a draw "
            f"from the prior.{line} If a parameter stands there, give it a prior with the same "
            "support (HalfNormal or LogNormal for a scale, Dirichlet for probabilities); if data "
            "do, correct them."
        )
    if BROADCAST.search(str(error)):
        return _shape_error(place, where, line, text)
    return ModelError(f"{where}: the program raised {type(error).__name__}: {text}.{line}")


def _plate_error(place: Place, error: BaseException, text: str) -> Exception:
    assert place.plate is not None
    name, size = place.plate
    if isinstance(size, int) and size <= 0:
        return DataError(
            f"plate '{name}' has size {size}: its sites have no observations. Pass at least one."
        )
    if isinstance(error, AssertionError):
        return ModelError(
            f"plate '{name}': its dim is already taken by a plate around it. Give nested plates "
            f"different dims, or leave dim out. At {place.line}."
        )
    return ModelError(f"plate '{name}': {text}. At {place.line}.")


def _shape_error(place: Place, where: str, line: str, text: str) -> Exception:
    msg = place.message
    if msg is None or not msg.get("cond_indep_stack"):
        return DataError(
            f"{where}: arrays of the program do not fit together: {text}.{line} Compare the "
            "shapes of the data with one another and with the sizes of the plates."
        )
    inside = {f.name: f"'{f.name}' (dim {f.dim}, size {f.size})" for f in msg["cond_indep_stack"]}
    around = {n: f"'{n}' (size {size})" for n, size in place.plates.items()}
    plates = ", ".join({**around, **inside}.values())
    return DataError(
        f"{where}: its distribution has batch shape {tuple(msg['fn'].batch_shape)}, which does not "
        f"fit the plates {plates}.{line} Make each array as long along a plate's dim as "
        "the plate."
    )


def find_place(error: BaseException) -> Place:
    """The deepest site, plate and line of the program in a traceback."""
    site, message, plate, line = None, None, None, ""
    plates: dict[str, Any] = {}
    for frame, number in traceback.walk_tb(error.__traceback__):
        file, here = frame.f_code.co_filename, frame.f_locals
        if not file.startswith(LIBRARIES) and "importlib" not in file:
            text = _statement(file, number)
            line = f"{Path(file).name}:{number}: {text.splitlines()[0].strip() if text else ''}"
            found = SITE.search(text)
            site, message, plate = (found[1] if found else None), None, None
        msg = here.get("msg")
        plates = getattr(here.get("surveyor"), "plates", plates)
        if isinstance(msg, dict) and msg.get("type") in ("sample", "param") and "name" in msg:
            site, message = msg["name"], msg
        elif _is_in(frame, "sample") and isinstance(here.get("name"), str):
            site = here["name"]
        elif frame.f_code.co_qualname.startswith("plate.") and "size" in here:
            plate = (here.get("name"), here["size"])
    return Place(site, message, plate, line.rstrip(": "), plates)


def _is_in(frame: FrameType, function: str) -> bool:
    code = frame.f_code
    return code.co_name == function and code.co_filename.endswith("primitives.py")


def _statement(file: str, number: int) -> str:
    """A source line, with the next ones while its brackets are open."""
    text = ""
    for i in range(number, number + 6):
        text += linecache.getline(file, i)
        if text.count("(") <= text.count(")"):
            break
    return text
