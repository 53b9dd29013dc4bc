"""Derivatives of any price, of any order, by automatic differentiation.

    greeks(black_scholes, spot=100.0, strike=strikes, time=0.5, volatility=0.2)
    greeks(price, {"delta": "forward", "vega": "law.v0"}, law=heston, forward=..., strike=...)

A Greek is named by the arguments it is a derivative by, with spaces between: "spot spot" is gamma,
"spot volatility" vanna, "-time" theta, which counts down. A name with dots goes into a dataclass.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from emprob.errors import ModelError

STANDARD = {
    "delta": "spot",
    "gamma": "spot spot",
    "vega": "volatility",
    "theta": "-time",
    "rho": "rate",
    "vanna": "spot volatility",
    "volga": "volatility volatility",
    "charm": "spot -time",
}


def _get(arguments: Mapping[str, Any], name: str) -> Any:
    first, *rest = name.split(".")
    value = arguments[first]
    for part in rest:
        value = getattr(value, part)
    return value


def _put(value: Any, path: list[str], new: Any) -> Any:
    if not path:
        return new
    inner = _put(getattr(value, path[0]), path[1:], new)
    return dataclasses.replace(value, **{path[0]: inner})


def _derivative(price: Callable, arguments: Mapping[str, Any], names: list[str]) -> Array:
    if not names:
        return price(**arguments)
    name = names[0].removeprefix("-")
    first, *rest = name.split(".")

    def along(x: Array) -> Array:
        changed = {**arguments, first: _put(arguments[first], rest, x)}
        return _derivative(price, changed, names[1:])

    here = jnp.asarray(_get(arguments, name))
    here = here.astype(jnp.result_type(here, float))
    slope = jax.jvp(along, (here,), (jnp.ones_like(here),))[1]
    return -slope if names[0].startswith("-") else slope


def _check(arguments: Mapping[str, Any], which: Mapping[str, str]) -> None:
    for greek, what in which.items():
        for name in what.split():
            try:
                _get(arguments, name.removeprefix("-"))
            except (KeyError, AttributeError):
                raise ModelError(
                    f"Greek {greek!r}: expected arguments among {sorted(arguments)}, got {what!r}. "
                    "Pass the argument by name, or leave this Greek out."
                ) from None


def greeks(
    price: Callable[..., Array], which: Mapping[str, str] | None = None, /, **arguments: Any
) -> dict[str, Array]:
    """Derivatives of a price by its arguments.

    Args:
        price: elementwise in those of its arguments that are arrays; it is called by keywords.
        which: what each Greek is a derivative by; `STANDARD` by default, as far as the arguments
            given allow it.
        **arguments: all arguments of `price` that are not at their default.

    Returns:
        The Greeks by name, each with the shape of the price.

    Raises:
        ModelError: a Greek asks for an argument that was not given.
    """
    if which is None:
        which = {
            greek: what
            for greek, what in STANDARD.items()
            if all(n.removeprefix("-") in arguments for n in what.split())
        }
    _check(arguments, which)
    return {greek: _derivative(price, arguments, what.split()) for greek, what in which.items()}
