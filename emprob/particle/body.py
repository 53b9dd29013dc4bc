"""A program's scan as pure functions of one particle, by running the program's own body.

The part of the program outside the scan is the entry: it draws the latents that stand there (the
first states), weighs them, and gives the first carry. It runs once; the body then closes over what
it computed from the parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Literal, jaxpr_as_fun

from emprob.dependence import dependence
from emprob.errors import ModelError
from emprob.model import LatentModel
from emprob.particle.layout import Layout, by_series, common_plates, latent_axes, leaf_axes
from emprob.particle.sites import Factor, Record, Scan, Sites, run
from emprob.types import Params

Latents = dict[str, Array]


class Weighed(NamedTuple):
    """A step at given latents.

    Attributes:
        carry: after it.
        own: log-density of its latents given the carry before, by series (S,).
        observed: that of its observations, (S,).
    """

    carry: Any
    own: Array
    observed: Array


class Stage(NamedTuple):
    """One kind of step, of one particle.

    Attributes:
        propose: (key, carry, x) -> latents, drawn given the carry.
        weigh: (carry, x, latents) -> Weighed.
        shapes: of the latents.
    """

    propose: Callable[[Array, Any, Any], Latents]
    weigh: Callable[[Any, Any, Latents], Weighed]
    shapes: Mapping[str, Any]


@dataclass(frozen=True)
class Body:
    """A program at given parameters, as a Markov chain of carries.

    Attributes:
        entry: what stands outside the scan; its carry and x are ignored.
        step: the scan's body.
        xs: inputs of the body, time first.
        length: T.
        layout: where the series are.
        reach: number of steps after which the carry has forgotten the one before them, given the
            latents in between; None: it never does.
    """

    entry: Stage
    step: Stage
    xs: Any
    length: int
    layout: Layout
    reach: int | None


class _Abstract(NamedTuple):
    """What tracing the body shows of it."""

    own: dict[str, Factor]
    observed: dict[str, Factor]
    latents: dict[str, Any]
    carry: Any


def body_of(model: LatentModel, params: Params) -> Body:
    """The scan of a program as functions.

    Args:
        model: a bound model; its program has one scan.
        params: constrained space.

    Raises:
        ModelError: no scan, several scans, or sites outside the scan that depend on its latents.
    """
    params = {**model.data.fixed, **params}
    outside = _outside(model, params)
    found: list = []

    def at_scan(sites: Sites, scan: Scan) -> Any:
        found.append(_Inside(sites, scan, model.structure.timed))
        found[0].trace()
        return found[0].nothing

    key = jax.random.key(0)
    run(model, params, key, {}, at_scan)
    if not found:
        raise ModelError(
            "particle methods: the program has no scan. Use another E-step, such as "
            "ep.MonteCarlo()."
        )
    inside: _Inside = found[0]
    _refuse_used_after(model, params, inside.nothing)
    _refuse_captured(model, params, outside)
    layout, reach = _structure(model, outside, inside)
    return Body(
        _entry(model, params, outside, inside, layout), _step(inside, layout),
        inside.inputs, inside.scan.length, layout, reach,
    )  # fmt: skip


# -- outside the scan ---------------------------------------------------------------------------


class _Outside(NamedTuple):
    latents: dict[str, Any]
    own: dict[str, Factor]
    observed: dict[str, Factor]
    entering: list[bool]  # leaves of the first carry that are computed from latents


def _placeholder(sites: Sites, scan: Scan, timed: Any = frozenset()) -> Any:
    """The final carry and outputs of the scan, all zero."""
    return _Inside(sites, scan, timed).nothing


def _outside(model: LatentModel, params: Params) -> _Outside:
    """The sites outside the scan, and which of the carry their latents reach; nothing computed."""
    seen: list = []

    def entry(key: Array, given: Latents) -> Any:
        inits: list = []

        def at_scan(sites: Sites, scan: Scan) -> Any:
            inits.append(scan.init)
            return _placeholder(sites, scan, model.structure.timed)

        sites = run(model, params, key, given, at_scan)
        seen[:] = [sites.record]
        return sites.record.latents, jax.tree.leaves(inits)

    key = jax.random.key(0)
    latents, _ = jax.eval_shape(lambda key: entry(key, {}), key)
    record: Record = seen[0]
    zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in latents.items()}
    closed = jax.make_jaxpr(lambda given: entry(key, given)[1])(zeros)
    marks = dependence(closed.jaxpr, [True] * len(closed.jaxpr.invars))
    return _Outside(latents, record.own, record.observed, marks)


def _refuse_used_after(model: LatentModel, params: Params, nothing: Any) -> None:
    """No site outside the scan may depend on what comes out of it."""

    def factors(outputs: Any) -> dict[str, Array]:
        record = run(model, params, jax.random.key(0), {}, lambda *_: outputs).record
        return {k: f.table for k, f in {**record.own, **record.observed}.items()}

    closed, shapes = jax.make_jaxpr(factors, return_shape=True)(nothing)
    marks = dependence(closed.jaxpr, [True] * len(closed.jaxpr.invars))
    for name, mark in zip(sorted(shapes), marks, strict=True):
        if mark:
            raise ModelError(
                f"site '{name}' stands after the scan and depends on its path, so no step of a "
                "particle filter can weigh it. Move it into the scan's body, or use "
                "ep.MonteCarlo()."
            )


def _refuse_captured(model: LatentModel, params: Params, outside: _Outside) -> None:
    """The body may see latents outside the scan through its carry only."""
    if not outside.latents:
        return

    def total(given: Latents) -> Any:
        totals: list = []

        def at_scan(sites: Sites, scan: Scan) -> Any:
            inside = _Inside(sites, scan, model.structure.timed)
            held = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), inside.carry)
            record = Record(timed=inside.at(0)[1])
            carry, _ = sites.call(scan, held, inside.at(0)[0], jax.random.key(0), record)
            tables = [f.table for f in (*record.own.values(), *record.observed.values())]
            totals.append((carry, tables))
            return inside.nothing

        run(model, params, jax.random.key(0), given, at_scan)
        return totals[0]

    zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in outside.latents.items()}
    for name in zeros:
        closed = jax.make_jaxpr(lambda z, n=name: total({**zeros, n: z}))(zeros[name])
        if any(dependence(closed.jaxpr, [True])):
            raise ModelError(
                f"latent '{name}' stands outside the scan and its body uses it without carrying "
                "it. Put it in the scan's first carry and pass it on."
            )


# -- inside the scan ----------------------------------------------------------------------------


class _Inside:
    """The body of a scan, seen from inside the program's run."""

    def __init__(self, sites: Sites, scan: Scan, timed: frozenset[str]):
        self.sites, self.scan = sites, scan
        self.inputs = (scan.xs, {k: v for k, v in sites.params.items() if k in timed})
        self.carry = jax.eval_shape(lambda: scan.init)
        for _ in range(2):  # the first step may widen a type or broadcast a shape
            self.carry = self._after()

    def at(self, t: int) -> tuple[Any, dict]:
        return jax.tree.map(lambda v: v[t], self.inputs)

    def fitted(self, carry: Any) -> Any:
        """A carry in the shapes and types that last."""

        def fit(v: Any, like: Any) -> Array:
            v = jnp.asarray(v)
            if v.shape == like.shape and v.dtype == like.dtype:
                return v  # itself, so that a latent in the carry is known as such
            return jnp.broadcast_to(v, like.shape).astype(like.dtype)

        return jax.tree.map(fit, carry, self.carry)

    def _call(self, key: Array, carry: Any, x: Any, given: Latents) -> tuple[Any, Any, Record]:
        record = Record(given, x[1])
        carry, y = self.sites.call(self.scan, carry, x[0], key, record)
        return carry, y, record

    def _after(self) -> Any:
        key = jax.random.key(0)
        carry, y = jax.eval_shape(
            lambda carry: self._call(key, carry, self.at(0), {})[:2], self.carry
        )

        def widened(a: Any, b: Any) -> Any:
            shape = jnp.broadcast_shapes(a.shape, b.shape)
            return jax.ShapeDtypeStruct(shape, jnp.result_type(a.dtype, b.dtype))

        self.y = y
        return jax.tree.map(widened, self.carry, carry)

    @property
    def nothing(self) -> Any:
        """The final carry and outputs, all zero."""
        carry = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), self.carry)
        ys = jax.tree.map(lambda a: jnp.zeros((self.scan.length, *a.shape), a.dtype), self.y)
        return carry, ys

    def trace(self) -> None:
        """The body as closed expressions, which need the program's run no more."""
        key, x = jax.random.key(0), jax.eval_shape(lambda: self.at(0))
        seen: list[Record] = []

        def propose(key: Array, carry: Any, x: Any) -> Latents:
            return self._call(key, carry, x, {})[2].latents

        self.propose, self.latents = _closed(propose, key, self.carry, x)

        def weigh(carry: Any, x: Any, latents: Latents) -> Any:
            after, _, record = self._call(key, carry, x, latents)
            seen[:] = [record]
            tables = [
                {k: f.table for k, f in part.items()} for part in (record.own, record.observed)
            ]
            return self.fitted(after), *tables

        self.jaxpr = jax.make_jaxpr(weigh)(self.carry, x, self.latents).jaxpr
        self.weigh, _ = _closed(weigh, self.carry, x, self.latents)
        self.own, self.observed = seen[0].own, seen[0].observed


def _closed(f: Callable, *args: Any) -> tuple[Callable, Any]:
    """A function as the expression it traces to, and the shapes of its outputs."""
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    flat, treedef = jaxpr_as_fun(closed), jax.tree.structure(shapes)
    return lambda *args: jax.tree.unflatten(treedef, flat(*jax.tree.leaves(args))), shapes


# -- both ---------------------------------------------------------------------------------------


def _entry(model, params, outside: _Outside, inside: _Inside, layout: Layout) -> Stage:
    def at_scan(inits: list) -> Callable:
        def note(_: Sites, scan: Scan) -> Any:
            inits.append(inside.fitted(scan.init))
            return inside.nothing

        return note

    def propose(key: Array, carry: Any, x: Any) -> Latents:
        return run(model, params, key, {}, at_scan([])).record.latents

    def weigh(carry: Any, x: Any, latents: Latents) -> Weighed:
        inits: list = []
        record = run(model, params, jax.random.key(0), latents, at_scan(inits)).record
        own, observed = list(record.own.values()), list(record.observed.values())
        return Weighed(inits[0], by_series(layout, own), by_series(layout, observed))

    return Stage(propose, weigh, outside.latents)


def _step(inside: _Inside, layout: Layout) -> Stage:
    def weigh(carry: Any, x: Any, latents: Latents) -> Weighed:
        after, *tables = inside.weigh(carry, x, latents)
        known = inside.own, inside.observed
        parts = [
            by_series(layout, [k[n]._replace(table=t) for n, t in found.items()])
            for k, found in zip(known, tables, strict=True)
        ]
        return Weighed(after, *parts)

    return Stage(inside.propose, weigh, inside.latents)


def _structure(model: LatentModel, outside: _Outside, inside: _Inside) -> tuple[Layout, int | None]:
    """Where the series are, and how far the carry remembers."""
    tied = [*outside.own.values(), *inside.own.values(), *inside.observed.values()]
    if outside.own:
        tied += outside.observed.values()
    plates = common_plates(tied)
    if not _separate(model, {p[0] for p in plates}, {*outside.own, *inside.own}):
        plates = ()
    entry = {k: latent_axes(f, plates) for k, f in outside.own.items()}
    step = {k: latent_axes(f, plates) for k, f in inside.own.items()}
    links, sources = _links(inside)
    varies = _varies(links, sources, outside.entering)
    carry = _carry_axes(inside, plates, step, varies)
    layout = Layout(plates, entry, step, carry)
    if any(v and a is None for v, a in zip(varies, carry, strict=True)):
        layout = Layout((), entry, step, tuple(() if v else None for v in varies)).joint()
    return layout, _reach(links, varies)


def _separate(model: LatentModel, plates: set[str], latents: set[str]) -> bool:
    """Whether the elements of the plates are independent, as the derivatives at `bind` say."""
    groups = [g for g in model.structure.integrals if latents & set(g.sites)]
    return all(plates <= set(g.plates) and not g.gathered for g in groups)


def _links(inside: _Inside) -> tuple[np.ndarray, list[bool]]:
    """Leaves of the carry after a step by leaves before it that reach them; and by latents."""
    counts = [len(jax.tree.leaves(v)) for v in (inside.carry, inside.inputs, inside.latents)]
    size, total = counts[0], sum(counts)
    rows = [dependence(inside.jaxpr, [i == j for j in range(total)])[:size] for i in range(size)]
    latents = [j >= counts[0] + counts[1] for j in range(total)]
    links = np.array(rows, bool).reshape(size, size).T
    return links, dependence(inside.jaxpr, latents)[:size]


def _varies(links: np.ndarray, sources: list[bool], entering: list[bool]) -> list[bool]:
    """Which leaves of the carry are not the same for all particles at some step."""
    varies = np.array(sources, bool) | np.array(entering, bool)
    for _ in range(len(varies)):
        varies = varies | (links & varies).any(1)
    return varies.tolist()


def _reach(links: np.ndarray, varies: list[bool]) -> int | None:
    """Smallest L such that the L-th power of the links is zero."""
    keep = np.array(varies, bool)
    links = links[keep][:, keep].astype(int)
    power = links
    for reach in range(1, len(links) + 1):
        if not power.any():
            return reach
        power = ((power @ links) > 0).astype(int)
    return 1 if not len(links) else None


def _carry_axes(inside: _Inside, plates, step: Mapping, varies: list[bool]) -> tuple:
    """Of each leaf of the carry: from the latent that it is, else from its shape."""
    jaxpr = inside.jaxpr
    shapes = [a.shape for a in jax.tree.leaves(inside.carry)]
    size = len(shapes)
    names = sorted(inside.latents)
    first = len(jaxpr.invars) - len(names)
    known = {jaxpr.invars[first + i]: step[n] for i, n in enumerate(names)}
    for _ in range(size):  # a lag is the leaf that it comes from
        for i in range(size):
            found = _known(known, jaxpr.outvars[i])
            if found is not None:
                known.setdefault(jaxpr.invars[i], found)
    axes = []
    for i, varying in enumerate(varies):
        own = _known(known, jaxpr.outvars[i])
        found = own if own is not None else leaf_axes(shapes[i], plates)
        axes.append(found if varying else None)
    return tuple(axes)


def _known(axes: Mapping, atom: Any) -> Any:
    return None if isinstance(atom, Literal) else axes.get(atom)
