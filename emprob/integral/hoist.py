"""A log-density with all that does not depend on the latents computed once.

Its derivatives evaluate the program a dozen times. What is about the data and the parameters alone
(a median of the quotes, the logarithm of a scale) would be traced, compiled and run each time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from emprob.integral.integral import Field


class Hoisted(NamedTuple):
    """A log-density of coordinates, (B, S, T, D) -> (B, S).

    Attributes:
        after: of `values` and coordinates; knows no array but those.
        values: what the parameters and the data come to.
    """

    after: Callable[[list[Array], Array], Array]
    values: list[Array]

    def __call__(self, z: Array) -> Array:
        return self.after(self.values, z)


def hoisted(f: Field, z: Array) -> Hoisted:
    """The same function, differentiable in `z` and in whatever else `f` is made of.

    Args:
        f: of coordinates (B, S, T, D).
        z: (B, S, T, D), for its shape.
    """
    closed = jax.make_jaxpr(f)(z)
    first, rest = _parted(closed.jaxpr)
    values = jaxpr_as_fun(ClosedJaxpr(first, closed.consts))()
    after = jaxpr_as_fun(ClosedJaxpr(rest, ()))
    return Hoisted(lambda values, x: after(*values, x)[0], list(values))


def as_it_is(f: Field) -> Hoisted:
    """The function as it was given, not even looked at."""
    return Hoisted(lambda _, z: f(z), [])


def _parted(jaxpr: Jaxpr) -> tuple[Jaxpr, Jaxpr]:
    """What no input enters, as a function of nothing; the rest, of its results and the inputs."""
    moving, first, rest = set(jaxpr.invars), [], []
    for eqn in jaxpr.eqns:
        depends = eqn.effects or any(v in moving for v in _variables(eqn.invars))
        (rest if depends else first).append(eqn)
        moving.update(eqn.outvars if depends else ())
    asked = [v for e in rest for v in _variables(e.invars)] + _variables(jaxpr.outvars)
    passed = list(dict.fromkeys(v for v in asked if v not in moving))
    plain = jaxpr.debug_info.with_unknown_names()
    before = jaxpr.replace(invars=[], outvars=passed, eqns=first, debug_info=plain)
    inputs = [*passed, *jaxpr.invars]
    return before, jaxpr.replace(constvars=[], invars=inputs, eqns=rest, debug_info=plain)


def _variables(atoms: list) -> list:
    return [v for v in atoms if not isinstance(v, Literal)]
