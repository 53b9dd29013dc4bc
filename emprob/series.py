"""A survey that runs all steps of a scan, for the index data that only later steps use."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpyro import handlers
from numpyro.ops.pytree import PytreeTrace

from emprob.roles import Surveyor


class Series(NamedTuple):
    """One observed site of a scan: its values and mask with time as their first axis."""

    values: Array
    mask: Array | None
    arguments: list[Array]


class WholeSurveyor(Surveyor):
    """A survey that runs every step of a scan; `series` has the observed sites in scans."""

    def __init__(self, values: Mapping[str, Array] | None = None):
        super().__init__(values)
        self.series: dict[str, Series] = {}

    def _scan(self, msg: dict) -> None:
        f, init, xs, length, _ = msg["args"]
        known = set(self.out.sites)
        length = int(length) if length is not None else jnp.shape(jax.tree.leaves(xs)[0])[0]
        self.scan = len(self.out.lengths)
        self.out.lengths.append(length)

        def step(carry: Any, x: Any) -> tuple[Any, tuple]:
            for name in set(self.out.sites) - known:  # a scan is traced more than once
                del self.out.sites[name]
            with handlers.seed(rng_seed=0):
                after, y = f(carry, x)
            return after, (self._seen(known), y)

        try:
            carry, first = step(init, jax.tree.map(lambda x: x[0], xs))
            sites = dict(self.out.sites)
            carry, rest = _rest(step, carry, xs, length)
        finally:
            self.scan = None
        self.out.sites = sites
        first = jax.tree.map(lambda v: jnp.asarray(v)[None], first)
        seen, ys = first if rest is None else jax.tree.map(_join, first, rest)
        self.series.update(seen)
        msg["value"] = ((length, None, carry), (PytreeTrace({}), ys))

    def _seen(self, known: set[str]) -> dict[str, Series]:
        return {
            n: Series(jnp.asarray(s.value), s.fn.mask, jax.tree.leaves(s.fn.base))
            for n, s in self.out.sites.items()
            if n not in known and s.observed and s.fn is not None
        }


def _rest(step: Callable, carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """Steps 1, 2, ... with a carry of one dtype and shape, as the first step left it."""
    if length < 2:
        return carry, None
    like = jax.tree.map(jnp.asarray, carry)

    def same(carry: Any, x: Any) -> tuple[Any, Any]:
        after, out = step(carry, x)
        after = jax.tree.map(lambda v, k: jnp.asarray(v).astype(k.dtype).reshape(k.shape),
                             after, like)  # fmt: skip
        return after, out

    return lax.scan(same, like, jax.tree.map(lambda x: x[1:], xs), length=length - 1)


def _join(a: Array, b: Array) -> Array:
    return jnp.concatenate([a, b])


def whole_survey(program: Callable, args: tuple, kwargs: Mapping, values=None) -> WholeSurveyor:
    """Run the program once with every step of its scans."""
    surveyor = WholeSurveyor(values)
    with handlers.seed(rng_seed=0), surveyor:
        program(*args, **kwargs)
    return surveyor
