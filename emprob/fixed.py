"""Values that a user gives for parameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from emprob.errors import ModelError, nearest
from emprob.plan import describe
from emprob.roles import Survey


def fixed_values(fixed: Mapping | None, roles: Mapping, found: Survey) -> dict[str, np.ndarray]:
    """Of the parameters that are held, by site."""
    known = [n for n, r in roles.items() if r == "parameter"]
    values = {}
    for name, value in (fixed or {}).items():
        if name not in known:
            raise ModelError(
                f"fixed={name!r}: the program has no parameter of this name.{nearest(name, known)}"
            )
        values[name] = _checked("fixed", name, value, found)
    if len(values) == len(known):
        raise ModelError("nothing to estimate: the program has no free parameter.")
    return values


def _checked(what: str, name: str, value: Any, found: Survey) -> np.ndarray:
    """A value given for a parameter, checked for shape and support."""
    site = found.sites[name]
    shape = whole_shape(site, found)
    value = np.asarray(value, float)
    if value.shape != shape:
        raise ModelError(
            f"{what}: site '{name}' has shape {shape}, got {value.shape}. Pass an array of "
            f"exactly that shape."
        )
    inside = np.asarray(site.support(value))
    if not inside.all():
        raise ModelError(
            f"{what}: site '{name}' must lie in {describe(site.support)}, got {value}."
        )
    return value


def whole_shape(site: Any, found: Survey) -> tuple[int, ...]:
    """Of a site's value, with time first if it stands in a scan."""
    time = () if site.scan is None else (found.lengths[site.scan],)
    return (*time, *site.shape)
