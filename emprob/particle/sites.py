"""Run a program with its latents drawn, or given, and note the log-density of what it meets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.distributions.distribution import Unit, validation_enabled
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from emprob.densities import log_density
from emprob.errors import ModelError
from emprob.model import LatentModel, arguments
from emprob.program import ONE_AT_A_TIME, _without_nan
from emprob.types import Params
from emprob.unwrapped import unwrap


class Factor(NamedTuple):
    """The log-density of one site.

    Attributes:
        table: over the site's batch.
        plates: (name, dimension, size) of every plate it stands in.
        batch_ndim: dimensions of a value of the site that are batch.
    """

    table: Array
    plates: tuple[tuple[str, int, int], ...]
    batch_ndim: int


@dataclass
class Record:
    """What one call of the program, or of its scan's body, leaves behind.

    Attributes:
        given: values of latents; those that are not given are drawn.
        timed: parameters at this time step.
        latents: value of every latent that was met.
        own: log-density of each latent given what went before.
        observed: that of each observed site.
    """

    given: Mapping[str, Array] = field(default_factory=dict)
    timed: Mapping[str, Array] = field(default_factory=dict)
    latents: dict[str, Array] = field(default_factory=dict)
    own: dict[str, Factor] = field(default_factory=dict)
    observed: dict[str, Factor] = field(default_factory=dict)


class Scan(NamedTuple):
    """The pieces of a `scan` in a program: its body, first carry, inputs and length."""

    f: Callable
    init: Any
    xs: Any
    length: int


class Sites(Messenger):
    """The effect handler.

    Args:
        model: a bound model.
        params: constrained space, the fixed ones included.
        given: values of the latents outside the scan.
        at_scan: called with this handler and the scan's pieces; gives the scan's final carry and
            outputs.
    """

    def __init__(
        self, model: LatentModel, params: Params, given: Mapping[str, Array], at_scan: Callable
    ):
        super().__init__(None)
        self.roles, self.missing = dict(model.structure.roles), model.structure.missing
        self.params, self.at_scan, self.record = params, at_scan, Record(given)
        self.num_scans, self.is_inside = 0, False

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "control_flow":
            self._scan(msg)
        elif msg["type"] == "param":
            msg["value"] = self._parameter(msg["name"])
        elif msg["type"] == "sample":
            self._sample(msg)

    def call(self, scan: Scan, carry: Any, x: Any, key: Array, record: Record) -> tuple[Any, Any]:
        """One call of the scan's body; what it meets is noted in `record`."""
        outer, self.record, self.is_inside = self.record, record, True
        try:
            with handlers.seed(rng_seed=key):
                return scan.f(carry, x)
        finally:
            self.record, self.is_inside = outer, False

    def _scan(self, msg: dict) -> None:
        f, init, xs, length, reverse = msg["args"]
        self.num_scans += 1
        if self.is_inside or self.num_scans > 1:
            raise ModelError(
                "particle methods: expected one scan, got another one inside or after it. Merge "
                "the bodies of the two."
            )
        if reverse:
            raise ModelError("scan(reverse=True) is not supported. Reverse the inputs instead.")
        leaves = jax.tree.leaves(xs)
        length = int(length) if length is not None else int(jnp.shape(leaves[0])[0])
        init = jax.tree.map(jnp.asarray, init)
        carry, ys = self.at_scan(self, Scan(f, init, xs, length))
        msg["value"] = ((length, None, carry), (PytreeTrace({}), ys))

    def _parameter(self, name: str) -> Array:
        return self.record.timed[name] if name in self.record.timed else self.params[name]

    def _sample(self, msg: dict) -> None:
        name = msg["name"]
        role = self.roles.get(name, "observed" if msg["is_observed"] else "parameter")
        if role == "delta":
            msg["value"] = msg["fn"].sample(jax.random.key(0))
        elif role == "parameter":
            msg["value"] = self._parameter(name)
        elif role == "partial":
            self._partial(msg)
        elif role == "observed":
            self._observed(msg)
        else:
            self._latent(msg)

    def _latent(self, msg: dict) -> None:
        name = msg["name"]
        if msg["scale"] is not None:
            raise ModelError(
                f"site '{name}': handlers.scale on a latent has no meaning as a probability. "
                "Scale the observed site instead."
            )
        value = self.record.given[name] if name in self.record.given else _drawn(msg)
        msg["value"] = self.record.latents[name] = value
        self.record.own[name] = _factor(msg, value, None)

    def _partial(self, msg: dict) -> None:
        """Labels that are known in part: the rest is a latent."""
        name, seen = msg["name"], jnp.asarray(msg["value"])
        unknown = jnp.isnan(seen)
        value = self.record.given[name] if name in self.record.given else _drawn(msg)
        value = jnp.where(unknown, value, jnp.nan_to_num(seen).astype(value.dtype))
        msg["value"] = self.record.latents[name] = value
        self.record.own[name] = _factor(msg, value, unknown)
        self.record.observed[name] = _factor(msg, value, ~unknown)

    def _observed(self, msg: dict) -> None:
        name, fn = msg["name"], unwrap(msg["fn"])
        value, mask = jnp.asarray(msg["value"]), None
        if name in self.missing:
            value, mask = _without_nan(value, fn.base, fn.reinterpreted, None)
        self.record.observed[name] = _factor(msg, value, mask)


def _drawn(msg: dict) -> Array:
    """A draw of a latent from its law given what went before."""
    try:
        return jnp.asarray(msg["fn"].sample(msg["kwargs"]["rng_key"]))
    except NotImplementedError:
        raise ModelError(
            f"site '{msg['name']}': {type(msg['fn']).__name__} cannot be sampled, so no particle "
            "can be drawn from it. Give the latent a proper distribution."
        ) from None


def _factor(msg: dict, value: Array, keep: Array | None) -> Factor:
    """Log-density of a value over the batch of a site; masked entries count zero."""
    fn = unwrap(msg["fn"])
    batch = tuple(msg["fn"].batch_shape)
    plates = tuple((f.name, f.dim, f.size) for f in msg["cond_indep_stack"])
    if isinstance(fn.base, Unit):
        table, masks = jnp.asarray(fn.base.log_factor), [fn.mask]
    else:
        table, masks = log_density(fn.base, value), [fn.mask, keep]
    for mask in masks:
        if mask is not None:
            table = jnp.where(mask, table, 0.0)
    r = fn.reinterpreted
    if r:
        event = tuple(msg["fn"].event_shape)[:r]
        outer = jnp.broadcast_shapes(table.shape[: table.ndim - r], batch)
        table = jnp.broadcast_to(table, (*outer, *event)).sum(tuple(range(-r, 0)))
    table = jnp.broadcast_to(table, jnp.broadcast_shapes(table.shape, batch))
    if msg["scale"] is not None:
        table = table * msg["scale"]
    return Factor(table, plates, len(batch))


def run(
    model: LatentModel, params: Params, key: Array, given: Mapping[str, Array], at_scan: Callable
) -> Sites:
    """Run the program; latents outside its scan are drawn with `key` unless given."""
    s = model.structure
    args, kwargs = arguments(s.treedef, s.static, model.data.leaves)
    sites = Sites(model, {**model.data.fixed, **params}, given, at_scan)
    with ONE_AT_A_TIME, validation_enabled(False), sites, handlers.seed(rng_seed=key):
        s.program(*args, **kwargs)
    return sites
