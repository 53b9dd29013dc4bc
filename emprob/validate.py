"""Static checks of a surveyed program, its data and the arguments of a fit.

All on NumPy values, before anything compiles. Every message says: site, what was found (count,
first index, value), what to do. The parts: `prepare.py` converts arguments, `observed.py` checks
the data of sites, `bounds.py` their labels, `explain.py` words errors of the program itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from emprob.bounds import outside_indices
from emprob.errors import DataError, ModelError, nearest
from emprob.explain import explain
from emprob.observed import Missing, check_sites, check_values
from emprob.plan import describe
from emprob.prepare import Prepared, prepare
from emprob.roles import Survey, survey
from emprob.series import whole_survey
from emprob.space import bijection

__all__ = [
    "Missing",
    "Prepared",
    "check_data",
    "check_indices",
    "check_init",
    "check_parameter",
    "check_repeatable",
    "check_scales",
    "check_sites",
    "check_steps",
    "check_table_size",
    "check_values",
    "explain",
    "prepare",
]

REMEDY = (
    "Give its parameter a prior on the positive numbers (HalfNormal, LogNormal), or use jnp.exp."
)
NUM_PROBES = 3  # draws from the prior at which supports and scales are looked at
POSITIVE = (type(constraints.positive), type(constraints.softplus_positive))


# -- the data -----------------------------------------------------------------------------------


def check_data(
    program: Callable, args: tuple, kwargs: Mapping, found: Survey
) -> dict[str, Missing]:
    """All checks of a program with its data, beyond those of the survey itself.

    Args:
        program: the NumPyro model.
        args: its prepared arguments.
        kwargs: by name.
        found: its survey.

    Returns:
        By observed site, what is missing.

    Raises:
        ModelError, DataError: see `check_sites`, `check_same_sites`, `check_scales` and
            `check_indices`.
    """
    others = probes(program, args, kwargs, found)
    for other in others:
        check_same_sites(found, other, "with the values of its parameters and latents")
    missing = check_sites(found, found.series, others)
    check_scales([found, *others])
    check_indices(program, args, kwargs, found)
    return missing


def probes(program: Callable, args: tuple, kwargs: Mapping, found: Survey) -> list[Survey]:
    """Surveys at other draws from the prior; discrete latents take their other values."""
    moved = {
        n: bijection(s.support)(bijection(s.support).inv(jnp.asarray(s.value, float)) + 0.3)
        for n, s in found.sites.items()
        if s.kind == "param"
    }
    return [survey(program, args, kwargs, moved, seed=k) for k in range(1, NUM_PROBES + 1)]


def check_scales(surveys: Sequence[Survey]) -> None:
    """No draw from the prior may give a distribution a negative scale.

    Raises:
        ModelError: naming the site, the argument and the value.
    """
    for seen in surveys:
        for name, site in seen.sites.items():
            if site.fn is None:
                continue
            base = site.fn.base
            for argument, constraint in type(base).arg_constraints.items():
                value = vars(base).get(argument)
                if not isinstance(constraint, POSITIVE) or value is None:
                    continue
                least = np.min(np.asarray(value))
                if least < 0:
                    raise ModelError(
                        f"site '{name}': the {argument} of its {type(base).__name__} is "
                        f"{least:.4g} at a draw from the prior, but must be positive. " + REMEDY
                    )


def check_indices(program: Callable, args: tuple, kwargs: Mapping, found: Survey) -> None:
    """Index data must stay inside the arrays that they index.

    Raises:
        DataError: naming the site whose distribution they reach.
    """
    free = {
        n: jnp.asarray(s.value, float)
        for n, s in found.sites.items()
        if not s.observed and not s.discrete
    }

    def arguments(values: dict) -> dict:
        seen = whole_survey(program, args, kwargs, values)
        at_once = {
            n: jax.tree.leaves(s.fn.base)
            for n, s in seen.out.sites.items()
            if s.fn is not None and n not in seen.series
        }
        return {**at_once, **{n: s.arguments for n, s in seen.series.items()}}

    try:
        closed, shapes = jax.make_jaxpr(arguments, return_shape=True)(free)
        reached = jax.tree.unflatten(jax.tree.structure(shapes), outside_indices(closed))
    except Exception:  # what cannot be traced like this is reported where it matters
        return
    for name in found.sites:
        for outside in frozenset().union(*reached.get(name, ())):
            raise DataError(f"site '{name}': {outside}")


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
            f"{bytes_text(max_table_bytes)}. Give the latents plates, chain them "
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
