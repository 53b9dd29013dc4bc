"""Interpret `numpyro.contrib.control_flow.scan` as a Markov chain.

The body runs once per unrolled first step (until every latent of the carry is filled), and then
once for all remaining steps: vectorised over time by `vmap`, with the latents of the carry given
as all their values on dimensions of their own. What does not vary in time keeps no time axis, so
a constant transition matrix stays (K, K).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpyro import handlers
from numpyro.ops.pytree import PytreeTrace

from emprob.dependence import dependence
from emprob.errors import ModelError
from emprob.evaluation import Chain, Evaluation, Slot, Term, TermSpec
from emprob.program import Context, Interpreter

MAX_UNROLLED = 12


class Body(NamedTuple):
    """A scan's pieces: body function, inputs by time, number of steps."""

    f: Callable
    xs: Any
    length: int

    def at(self, t: int) -> Any:
        return jax.tree.map(lambda x: x[t], self.xs)


class LatentPath:
    """Stands for a latent that left its scan; any use of it is an error with a name."""

    def __init__(self, site: str):
        self._site = site

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ModelError(
            f"the path of latent '{self._site}' is used outside its scan. Move the sites that "
            "depend on it into the scan's body."
        )

    __jax_array__ = __array__ = __getitem__ = __add__ = __radd__ = __mul__ = __rmul__ = _refuse
    __sub__ = __rsub__ = __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __iter__ = _refuse
    __hash__ = object.__hash__


def interpret_scan(interp: Interpreter, msg: dict) -> None:
    """Set the value of a `control_flow` message and record the scan's factors."""
    f, init, xs, length, reverse = msg["args"]
    if interp.context.time is not None or interp.context.suffix or interp.context.dry:
        raise ModelError("a scan inside a scan is not supported. Merge the two bodies.")
    if reverse:
        raise ModelError("scan(reverse=True) is not supported. Reverse the inputs instead.")
    body = Body(f, xs, _length(xs, length))
    carry, ys, start = init, [], 0
    while start < body.length:
        trial = _steady(interp, body, carry, start)
        if trial is not None:
            carry, rest = trial
            ys.append(rest)
            break
        carry, y = _run(interp, body.f, carry, body.at(start), _unrolled(start))
        ys.append(jax.tree.map(lambda v: v if _is_latent(interp, v) else jnp.asarray(v)[None], y))
        start += 1
        if start > MAX_UNROLLED:
            raise ModelError(
                f"the carry of a scan does not settle within {MAX_UNROLLED} steps: it mixes "
                "latents of ever more steps."
            )
    carry = jax.tree.map(lambda v: _escape(interp, v), carry)
    ys = jax.tree.map(lambda *v: _join(interp, v), *ys) if ys else None
    msg["value"] = ((body.length, None, carry), (PytreeTrace({}), ys))


def _length(xs: Any, length: int | None) -> int:
    sizes = {jnp.shape(x)[0] for x in jax.tree.leaves(xs)}
    if length is not None:
        sizes.add(int(length))
    if len(sizes) != 1:
        raise ModelError(f"scan: inputs of different lengths {sorted(sizes)}.")
    return sizes.pop()


def _unrolled(t: int) -> Context:
    return Context(suffix=f"@{t}", index=lambda _, value: value[t])


def _run(interp: Interpreter, f: Callable, carry: Any, x: Any, context: Context) -> Any:
    """One call of the body under the interpreter, in the given context."""
    outer, interp.context = interp.context, context
    try:
        with handlers.seed(rng_seed=0):
            return f(carry, x)
    finally:
        interp.context = outer


def _is_latent(interp: Interpreter, value: Any) -> bool:
    return interp.variable_of(value) is not None


def _escape(interp: Interpreter, value: Any) -> Any:
    name = interp.variable_of(value)
    return value if name is None else LatentPath(name)


def _join(interp: Interpreter, parts: tuple) -> Any:
    for part in parts:
        if isinstance(part, LatentPath):
            return part
        if _is_latent(interp, part):
            return _escape(interp, part)
    return jnp.concatenate([jnp.asarray(p) for p in parts])


# -- the steady part ----------------------------------------------------------------------------


class Entry(NamedTuple):
    """The carry at the first vectorised step: which leaves are latent, filled by what."""

    names: tuple[str | None, ...]  # variable that fills each leaf
    leaves: list
    treedef: Any

    @property
    def latent(self) -> tuple[bool, ...]:
        return tuple(n is not None for n in self.names)


def _entry(interp: Interpreter, carry: Any) -> Entry:
    leaves, treedef = jax.tree.flatten(carry, is_leaf=lambda v: isinstance(v, LatentPath))
    return Entry(tuple(interp.variable_of(v) for v in leaves), leaves, treedef)


class Seen(NamedTuple):
    """What a call of the body leaves behind besides arrays."""

    out: Evaluation
    after: list[str | None]  # variable in each leaf of the carry after the step
    held: list[str | int | None]  # of each data leaf: the continuous latent or earlier leaf in it
    y_names: list[str | None]
    y_tree: Any


class Steps:
    """The body of a scan at the steps from `start` on, as a function of one step's inputs.

    A call takes (x, data in the carry, parameters with a time axis, probe) and returns (terms,
    log priors, data in the carry afterwards, outputs); `seen` is what the last call left behind.
    """

    def __init__(self, interp: Interpreter, body: Body, entry: Entry, start: int):
        self.interp, self.body, self.entry, self.start = interp, body, entry, start
        self.outer, self.outer_dims = interp.out, interp.num_dims
        self.name = _time_name(interp.out)
        filled = dict.fromkeys(n for n in entry.names if n is not None)
        self.dims = {n: interp.new_dim() for n in filled}
        self.first_dim = interp.num_dims
        self.timed = {k: v for k, v in interp.params.items() if k in interp.timed}
        self.data = [jnp.asarray(v) for v, lat in zip(entry.leaves, entry.latent) if not lat]
        self.seen: Seen | None = None

    def __call__(self, inputs: tuple) -> tuple[dict, Any, list, list]:
        x, data, params, probe = inputs
        interp, entry = self.interp, self.entry
        interp.num_dims, interp.probe = self.first_dim, probe
        interp.out = Evaluation(atoms=dict(self.outer.atoms))
        interp.held = {id(v): (v, i) for i, v in enumerate(data)}
        leaves = _merge(entry, self._previous(probe), data)
        context = Context(time=self.name, index=lambda k, _: params[k])
        after, y = _run(interp, self.body.f, entry.treedef.unflatten(leaves), x, context)
        after, ys = jax.tree.leaves(after), jax.tree.leaves(y)
        y_names = [interp.variable_of(v) for v in ys]
        after_names = [interp.variable_of(v) for v in after]
        new_data = [v for v, lat in zip(after, entry.latent) if not lat]
        held = [interp.held.get(id(v), (None, None))[1] for v in new_data]
        self.seen = Seen(interp.out, after_names, held, y_names, jax.tree.structure(y))
        plain = [jnp.zeros(()) if n else jnp.asarray(v) for v, n in zip(ys, y_names)]
        return interp.out.terms, interp.out.log_priors, new_data, plain

    def _previous(self, probe: Array) -> list:
        """Each latent of the carry as its atoms on its `previous` dimension."""
        values: dict[str, Array] = {}
        for name, dim in self.dims.items():
            atoms = self.outer.atoms[name]
            value = atoms.reshape((-1,) + (1,) * (-dim - 1)) + probe.astype(atoms.dtype)
            values[name] = self.interp.remember(value, f"previous {dim}")
        names = zip(self.entry.names, self.entry.leaves)
        return [leaf if n is None else values[n] for n, leaf in names]

    def at_start(self) -> tuple:
        """Inputs of the first of these steps, the probe zero."""
        params = {k: v[self.start] for k, v in self.timed.items()}
        return self.body.at(self.start), self.data, params, jnp.zeros((), int)

    def over_time(self, data: list) -> tuple:
        """Inputs of all of these steps but the probe, time first."""
        xs = jax.tree.map(lambda x: x[self.start :], self.body.xs)
        return xs, data, {k: v[self.start :] for k, v in self.timed.items()}

    def release(self) -> None:
        """Leave the interpreter as it was found."""
        interp = self.interp
        interp.out, interp.num_dims, interp.probe = self.outer, self.outer_dims, jnp.zeros((), int)


def _steady(interp: Interpreter, body: Body, carry: Any, start: int) -> tuple[Any, Any] | None:
    """Try to take all steps from `start` as one axis; None if the carry has not settled yet."""
    entry = _entry(interp, carry)
    steps = Steps(interp, body, entry, start)
    try:
        at_start = steps.at_start()
        closed, shapes = jax.make_jaxpr(steps, return_shape=True)(at_start)
        seen = steps.seen
        assert seen is not None
        if tuple(n is not None for n in seen.after) != entry.latent:
            return None
        slots = _slots(steps.outer, entry, steps.dims, seen.after, seen.out)
        varying = _varying(closed.jaxpr, at_start, shapes)
        y_names = _refuse_mixing(closed.jaxpr, at_start, shapes, seen.y_names)
        data, last = _data_paths(interp, body, entry, start, steps.data, seen.held)
        terms, log_priors, ys = _vectorised(steps, steps.over_time(data), varying)
        single = steps(at_start)[0] if interp.invariant else {}
    finally:
        steps.release()
    interp.num_dims = steps.first_dim + len(seen.out.variables)
    _adopt(interp, seen.out, steps.name, Chain(steps.name, start, body.length - start, slots))
    _adopt_terms(interp, terms, single, log_priors)
    carry = _merge(entry, [LatentPath(n) if n else None for n in entry.names], last)
    ys = [LatentPath(n) if n else y for y, n in zip(ys, y_names)]
    return entry.treedef.unflatten(carry), seen.y_tree.unflatten(ys)


def _adopt_terms(interp: Interpreter, terms: dict, single: dict, log_priors: dict) -> None:
    """Hand the terms of a body to the program; what does not vary comes from a single step."""
    for key, term in terms.items():
        if key in interp.invariant and single:
            term = _invariant(term, single[key], interp.out.specs[key])
        interp.out.terms[key] = term
    for key, value in log_priors.items():
        interp.out.log_priors[key] = jnp.sum(value)


def _merge(entry: Entry, latent: list, data: list) -> list:
    """Leaves of a carry: latent ones from `latent`, the others from `data` in order."""
    rest = iter(data)
    return [z if lat else next(rest) for z, lat in zip(latent, entry.latent)]


def _time_name(out: Evaluation) -> str:
    n = len(out.chains)
    return "time" if n == 0 else f"time_{n + 1}"


def _slots(known: Evaluation, entry: Entry, dims, after, statics) -> tuple[Slot, ...]:
    """Where each latent of the carry comes from after a step, one slot per distinct latent."""
    slots = {}
    for before, following in zip(entry.names, after):
        if before is None:
            continue
        if following.startswith("previous "):
            dim = int(following.removeprefix("previous "))
        else:
            dim = statics.variables[following].dim
        variable = known.variables[before]
        slot = Slot(dims[before], dim, variable.dim, variable.size)
        if slots.setdefault(before, slot) != slot:
            raise ModelError(
                f"scan: the latent '{variable.site}' stands twice in the carry and the two copies "
                "part ways. Give the copies different initial latents."
            )
    return tuple(slots.values())


def _flags(tree: Any, marks: list[bool]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), marks)


def _sources(at_start: tuple, probe: bool) -> list[bool]:
    x, data, params, zero = at_start
    counts = [len(jax.tree.leaves(part)) for part in (x, data, params)]
    return [not probe] * sum(counts) + [probe]


def _varying(jaxpr, at_start: tuple, shapes: Any) -> Any:
    """For each output of a step: does it depend on anything that varies in time?"""
    return _flags(shapes, dependence(jaxpr, _sources(at_start, probe=False)))


def _refuse_mixing(jaxpr, at_start: tuple, shapes: Any, y_names: list) -> list:
    """Names of the latents behind each output; a carry computed from a latent is an error."""
    mixed = _flags(shapes, dependence(jaxpr, _sources(at_start, probe=True)))
    if any(mixed[2]):
        raise ModelError(
            "scan: an entry of the carry is computed from a latent (it is not the latent itself). "
            "Carry the latent and compute from it inside the body."
        )
    unnamed = "(a function of the scan's latents)"
    return [n or (unnamed if mark else None) for n, mark in zip(y_names, mixed[3])]


def _data_paths(
    interp, body: Body, entry: Entry, start: int, data0: list, held: list
) -> tuple[list, list]:
    """Values of the data in the carry before each step from `start` on, and after the last."""
    if all(_is_held(held, i) for i in range(len(held))):
        return _held_paths(interp, start, data0, held)
    plain = [None if n is None else interp.plain[n] for n in entry.names]

    def step(data: list, inputs: tuple) -> tuple[list, list]:
        x, params = inputs
        context = Context(dry=True, index=lambda k, _: params[k])
        leaves = _merge(entry, plain, data)
        after, _ = _run(interp, body.f, entry.treedef.unflatten(leaves), x, context)
        new = [v for v, lat in zip(jax.tree.leaves(after), entry.latent) if not lat]
        new = [jnp.asarray(v).astype(d.dtype).reshape(d.shape) for v, d in zip(new, data)]
        return new, data

    timed = {k: v[start:] for k, v in interp.params.items() if k in interp.timed}
    xs = jax.tree.map(lambda x: x[start:], body.xs)
    last, paths = lax.scan(step, data0, (xs, timed), length=body.length - start)
    return paths, last


def _is_held(held: list, leaf: int) -> bool:
    """Whether a leaf is a continuous latent of some earlier step."""
    for _ in held:
        if not isinstance(held[leaf], int):
            return held[leaf] is not None
        leaf = held[leaf]
    return False


def _held_paths(interp, start: int, data0: list, held: list) -> tuple[list, list]:
    """The same where every leaf is a continuous latent of some earlier step: no loop."""

    def after(leaf: int) -> Array:
        like = data0[leaf]
        if isinstance(held[leaf], int):
            return before(held[leaf])
        value = jnp.asarray(interp.params[held[leaf]])[start:]
        return value.reshape(value.shape[:1] + like.shape).astype(like.dtype)

    def before(leaf: int) -> Array:
        return jnp.concatenate([data0[leaf][None], after(leaf)[:-1]])

    paths = [before(i) for i in range(len(data0))]
    return paths, [after(i)[-1] for i in range(len(data0))]


def _vectorised(step: Callable, inputs: tuple, varying: Any) -> tuple:
    """Run the body over all steps at once; what does not vary gets a time axis of length 1."""

    def flat(inputs: tuple) -> tuple[list, list]:
        leaves = jax.tree.leaves(step((*inputs, jnp.zeros((), int))))
        moving = [v for v, m in zip(leaves, marks) if m]
        still = [v for v, m in zip(leaves, marks) if not m]
        return moving, still

    marks = jax.tree.leaves(varying)
    if jax.tree.leaves(inputs):
        moving, still = jax.vmap(flat, out_axes=(0, None))(inputs)
    else:
        moving, still = flat(inputs)
    moving, still = iter(moving), iter([jnp.asarray(v)[None] for v in still])
    leaves = [next(moving) if m else next(still) for m in marks]
    terms, log_priors, _, ys = jax.tree.unflatten(jax.tree.structure(varying), leaves)
    return terms, log_priors, ys


def _invariant(term: Term, single: Term, spec: TermSpec) -> Term:
    """Replace what was found not to vary in time by its value at one step.

    The table of an observed site has the data in it: it varies, whatever its arguments do.
    """
    arguments = jax.tree.map(lambda x: x[None], single.arguments)
    of_parameters = spec.in_family_form or spec.family is None or spec.own is not None
    natural = single.natural[None] if of_parameters else term.natural
    return term._replace(natural=natural, arguments=arguments)


def _adopt(interp: Interpreter, statics: Evaluation, name: str, chain: Chain) -> None:
    out = interp.out
    for key, plate in statics.plates.items():
        if out.plates.setdefault(key, plate) != plate:
            raise ModelError(f"plate '{key}' is used with two sizes or dims. Rename one.")
    out.variables.update(statics.variables)
    out.atoms.update(statics.atoms)
    out.specs.update(statics.specs)
    out.priors.update(statics.priors)
    out.evidence.update(statics.evidence)
    out.chains[name] = chain
