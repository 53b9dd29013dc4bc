"""Find out by trying: what is an exponential family, what is constant, where parameters stand.

The program is evaluated at two random parameters. An argument of a distribution that equals, cell
by cell, some entry of a parameter at both points *is* that entry (a gather: `mu[z]`, `A[z_prev]`, a
shared scale); one that moves and equals nothing is a function, and is left to Newton.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from emprob.evaluation import Evaluation, Term, TermSpec, Unwrapped, distribution
from emprob.families import Argument, View
from emprob.model import Assignment, LatentModel
from emprob.program import MAX_STATISTICS

RTOL = 1e-9


class Found(NamedTuple):
    """What probing says about a model (see `Structure`)."""

    families: frozenset[str]
    invariant: frozenset[str]
    assignments: tuple[Assignment, ...]
    cells: dict[str, Array]
    origins: dict[str, Array]


class Probe(NamedTuple):
    """The program evaluated at one point; `static` has the specs and dimensions."""

    params: dict[str, np.ndarray]
    terms: dict[str, Term]
    static: Evaluation
    priors: Mapping[str, Unwrapped] = {}


def probe(
    model: LatentModel,
    points: Sequence[Mapping],
    reach: Mapping[str, Any],
    priors: Mapping[str, Unwrapped],
) -> Found:
    """Evaluate at the given points and find structure.

    Args:
        model: as assembled so far.
        points: two random parameters.
        reach: for each parameter, which arrays of which terms and which priors depend on it.
        priors: the prior of each parameter, at some values of the others.
    """
    steady = [jax.tree.map(bool, _steady(model, dict(p))) for p in points]
    invariant = frozenset(n for n in steady[0] if all(s[n] for s in steady))
    model = replace(model, structure=replace(model.structure, invariant=invariant))
    probes = [_evaluate(model, p)._replace(priors=priors) for p in points]
    reach = _sharpened(model, points, reach, invariant)
    probes = [_first_step(p, invariant) for p in probes]
    held = model.structure.continuous  # a table: their spread may be tiny beside their distance
    families = frozenset(
        n
        for n in probes[0].terms
        if probes[0].static.specs[n].site not in held and _in_family_form(n, probes[0], reach)
    )
    assignments, cells = _assign(model, probes, reach)
    return Found(families, invariant, assignments, cells, _origins(probes[0]))


def _origins(p: Probe) -> dict[str, Array]:
    """Mean of each observed site's values over all but the event: a point near the data."""
    origins = {}
    for name, spec in p.static.specs.items():
        if spec.family is None or spec.own is not None:
            continue
        value = np.asarray(p.terms[name].value, float)
        axes = tuple(range(value.ndim - spec.event_dim))
        if spec.time is not None or spec.site not in origins:
            origins[spec.site] = jnp.asarray(np.where(np.isfinite(m := value.mean(axes)), m, 0.0))
    return origins


def _evaluate(model: LatentModel, params: Mapping[str, Array]) -> Probe:
    static: list[Evaluation] = []
    jax.eval_shape(lambda m, p: static.append(m.evaluate(p)), model, dict(params))
    values = jax.tree.map(np.asarray, _terms(model, dict(params)))
    return Probe({k: np.asarray(v) for k, v in params.items()}, values, static[0])


@jax.jit
def _terms(model: LatentModel, params: Mapping[str, Array]) -> dict[str, Term]:
    """The terms; one function, so that binding data of a known shape compiles nothing."""
    return _without_tables(model.evaluate(params))


def _without_tables(out: Evaluation) -> dict[str, Term]:
    """Terms without the log-probabilities of families, which probing does not look at."""

    def lean(spec: TermSpec, term: Term) -> Term:
        seen = spec.family is not None and spec.own is None
        return term._replace(natural=jnp.zeros(())) if seen else term

    return {k: lean(out.specs[k], t) for k, t in out.terms.items()}


@jax.jit
def _steady(model: LatentModel, params: Mapping[str, Array]) -> dict[str, Array]:
    """Of each scan-body term: is the parameters' part the same at every step?

    Only this comes out of the compiled call: the tables by time can be large.
    """
    out = model.evaluate(params)
    flags = {}
    for name, spec in out.specs.items():
        if spec.time is None:
            continue
        term = out.terms[name]
        observed = spec.family is not None and spec.own is None
        arrays = list(term.arguments.values()) if observed else [term.natural]
        flags[name] = jnp.all(jnp.stack([jnp.all(a == a[:1]) for a in arrays]))
    return flags


def _sharpened(model, points, reach: Mapping[str, Any], invariant: frozenset[str]) -> dict:
    """Keep only the parameters that really move a term.

    `where(t == 0, pi, A[z])` depends on `pi` to the eye of the data flow, but after the first
    step it does not move with it.
    """
    model = replace(model, structure=replace(model.structure, invariant=invariant))
    sharp = {}
    for name, (terms, priors) in reach.items():
        moved = _moved(model, dict(points[0]), {**points[0], name: points[1][name]})
        again = _moved(model, dict(points[1]), {**points[1], name: points[0][name]})
        moved = jax.tree.map(lambda a, b: bool(a) or bool(b), moved, again)
        merged = {k: jax.tree.map(lambda a, b: a and b, v, moved[k]) for k, v in terms.items()}
        sharp[name] = (merged, priors)
    return sharp


@jax.jit
def _moved(model: LatentModel, a: Mapping[str, Array], b: Mapping[str, Array]) -> Any:
    """Which arrays of which terms differ between two parameters."""
    differ = lambda x, y: jnp.any((x != y) & ~(jnp.isnan(x) & jnp.isnan(y)))  # noqa: E731
    first = {k: t._asdict() for k, t in _without_tables(model.evaluate(a)).items()}
    second = {k: t._asdict() for k, t in _without_tables(model.evaluate(b)).items()}
    return jax.tree.map(differ, first, second)


def _first_step(p: Probe, invariant: frozenset[str]) -> Probe:
    def cut(name: str, term: Term) -> Term:
        if name not in invariant:
            return term
        return term._replace(arguments={k: v[:1] for k, v in term.arguments.items()})

    return p._replace(terms={k: cut(k, t) for k, t in p.terms.items()})


# -- families -----------------------------------------------------------------------------------


def _depends(reach: Mapping[str, Any], name: str, part: str) -> bool:
    """Whether any parameter reaches some array of a term."""
    return any(any(jax.tree.leaves(terms[name][part])) for terms, _ in reach.values())


def _in_family_form(name: str, p: Probe, reach: Mapping[str, Any]) -> bool:
    """An observed exponential family whose parameters do not vary along some data axis."""
    spec, term = p.static.specs[name], p.terms[name]
    if spec.family is None or spec.own is not None or spec.folded:
        return False
    if any(_depends(reach, name, part) for part in ("value", "coefficient", "offset")):
        return False
    if _constants_move(name, spec, reach):
        return False
    d = distribution(p.terms[name], p.static.specs[name])
    width = _width(spec, d, term)
    data = np.prod(term.value.shape[: term.value.ndim - spec.event_dim])
    layout = len(d.batch_shape) - spec.reinterpreted
    cells = [d.batch_shape[i] for i in range(layout)]
    size = term.value.shape[:layout]
    varies = np.prod([c for c, n in zip(cells, size, strict=True) if n > 1])
    rows = data / max(np.prod(term.value.shape[layout : term.value.ndim - spec.event_dim]), 1)
    return bool(rows > 1 and varies < rows and width <= MAX_STATISTICS)


def _constants_move(name: str, spec: TermSpec, reach: Mapping[str, Any]) -> bool:
    constants = set(spec.family.constants) if spec.family else set()
    return any(
        terms[name]["arguments"].get(c, False) for terms, _ in reach.values() for c in constants
    )


def _width(spec: TermSpec, d: Any, term: Term) -> int:
    event = term.value.shape[term.value.ndim - spec.event_dim - spec.reinterpreted :]
    family = spec.family
    assert family is not None
    wide = jax.eval_shape(lambda: family.statistics(d, jnp.zeros(term.value.shape), jnp.zeros(())))
    inner = int(np.prod(event[: spec.reinterpreted])) if spec.reinterpreted else 1
    return (wide.shape[-1] + 1) * inner


# -- assignments --------------------------------------------------------------------------------


def _assign(model: LatentModel, probes: Sequence[Probe], reach: Mapping[str, Any]):
    """The parameters with a closed-form update, and the cells where each of them stands."""
    assignments: list[Assignment] = []
    cells: dict[str, Array] = {}
    for param in model.structure.params:
        found = _places(model, param, probes, reach)
        for a, index in found or ():
            assignments.append(a)
            cells[cell_key(a)] = jnp.asarray(index)
    return tuple(assignments), cells


def cell_key(a: Assignment) -> str:
    """The name under which an assignment's cells are kept in `Data.cells`."""
    return f"{a.param}|{a.term}|{a.argument}"


def _places(model, param: str, probes, reach) -> list[tuple[Assignment, np.ndarray]] | None:
    """Every place of a parameter, or None if it does something that no closed form covers."""
    terms, priors = reach[param]
    if any(mark and key.split("@")[0] != param for key, mark in priors.items()):
        return None
    places, views = [], set()
    for name, parts in terms.items():
        touched = {k for k, v in parts.items() if any(jax.tree.leaves(v))}
        if not touched:
            continue
        spec = probes[0].static.specs[name]
        if spec.family is None or spec.folded or touched & {"value", "coefficient", "offset"}:
            return None
        if _constants_move(name, spec, reach):
            return None
        place = _place(param, name, spec, parts["arguments"], probes)
        if place is None:
            return None
        places.append(place)
        views.add(place[0].view)
    if not places or len(views) > 1 or len({a.argument for a, _ in places}) > 1:
        return None
    if not _conjugate(model, param, places[0][0], probes):
        return None
    shared = _flat_prior(model, param, probes) and len(places) == 1
    return [(a._replace(shared=shared and _shares_rest(a, i, probes)), i) for a, i in places]


def _shares_rest(a: Assignment, index: np.ndarray, probes) -> bool:
    family = probes[0].static.specs[a.term].family
    argument = family.arguments[a.argument]
    return _group_shares(index, a.term, argument.exact_given, argument, probes)


def _flat_prior(model: LatentModel, param: str, probes) -> bool:
    prior = probes[0].priors.get(param)
    if prior is None or not model.structure.with_prior or prior.mask is not None:
        return True
    return type(prior.base).__name__ in ("ImproperUniform", "Uniform")


def _place(param: str, name: str, spec: TermSpec, marks: Mapping[str, bool], probes):
    """The one argument of a term in which a parameter stands, and the index of each cell."""
    touched = {k for k, m in marks.items() if m}
    assert spec.family is not None
    for key, argument in spec.family.arguments.items():
        for view_name, view in argument.views.items():
            index = _match(param, name, argument, view, probes)
            if index is None:
                continue
            other = touched - _attributes(key)
            if other or not _group_shares(index, name, argument.requires, argument, probes):
                return None
            return Assignment(param, name, key, view_name, False), index
    return None


def _attributes(argument: str) -> set[str]:
    """Constructor arguments that a family's argument may be given by."""
    aliases = {
        "probs": {"probs", "logits"},
        "covariance_matrix": {"covariance_matrix", "precision_matrix", "scale_tril"},
    }
    return aliases.get(argument, {argument})


def _match(param: str, name: str, argument: Argument, view: View, probes) -> np.ndarray | None:
    """Index of the parameter's unit in each cell (-1: a constant), or None."""
    indices, tables = [], []
    e = argument.event_dim
    for p in probes:
        value = np.asarray(p.params[param])
        if value.ndim < e:
            return None
        with np.errstate(all="ignore"):
            units = np.asarray(view.to_canonical(jnp.asarray(value)))
            table = np.asarray(
                argument.canonical(distribution(p.terms[name], p.static.specs[name]))
            )
        if units.shape[units.ndim - e :] != table.shape[table.ndim - e :]:
            return None
        batch = table.shape[: table.ndim - e]
        size = int(np.prod(units.shape[units.ndim - e :])) if e else 1
        indices.append(_lookup(units.reshape(-1, size), table.reshape(-1, size)).reshape(batch))
        tables.append(table.reshape(*batch, size))
    if not np.array_equal(indices[0], indices[1]) or not (indices[0] >= 0).any():
        return None
    moved = (tables[0] != tables[1]).any(-1)
    if (moved & (indices[0] < 0)).any():
        return None
    return indices[0]


def _lookup(units: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """For each cell the index of the equal unit, or -1."""
    if not np.isfinite(units).all():
        return np.full(len(cells), -1)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, units.shape[1])
    codes = units @ weights
    order = np.argsort(codes)
    with np.errstate(all="ignore"):
        position = np.searchsorted(codes[order], cells @ weights)
    best = np.full(len(cells), -1)
    for shift in (-1, 0):
        candidate = order[np.clip(position + shift, 0, len(order) - 1)]
        equal = np.isclose(units[candidate], cells, rtol=RTOL, atol=0).all(-1)
        best = np.where((best < 0) & equal, candidate, best)
    return best


def _group_shares(index: np.ndarray, name: str, keys: Sequence[str], argument, probes) -> bool:
    """Whether the cells tied to one unit share some other arguments."""
    p = probes[0]
    d, family = distribution(p.terms[name], p.static.specs[name]), p.static.specs[name].family
    assert family is not None
    for key in keys:
        other = np.asarray(family.arguments[key].canonical(d) if key in family.arguments
                           else getattr(d, key))  # fmt: skip
        tail = family.arguments[key].event_dim if key in family.arguments else 0
        code = np.random.default_rng(0).uniform(0.5, 1.5, other.shape[other.ndim - tail :])
        other = (other * code).sum(tuple(range(other.ndim - tail, other.ndim)))
        if other.ndim == 0 or other.size == 1:
            continue
        try:
            shape = np.broadcast_shapes(index.shape, other.shape)
        except ValueError:
            return False
        i, o = np.broadcast_to(index, shape).ravel(), np.broadcast_to(other, shape).ravel()
        for unit in np.unique(i[i >= 0]):
            if np.ptp(o[i == unit]) > 0:
                return False
    return True


def _conjugate(model: LatentModel, param: str, a: Assignment, probes) -> bool:
    """Whether the parameter's prior, if it counts, has pseudo-counts in this view."""
    argument = probes[0].static.specs[a.term].family.arguments[a.argument]
    prior = probes[0].priors.get(param)
    if prior is None or not model.structure.with_prior:
        return True
    value = argument.views[a.view].to_canonical(jnp.asarray(probes[0].params[param]))
    event = value.shape[value.ndim - argument.event_dim :]
    return _pseudo(argument.views[a.view], prior, event) is not None


def _pseudo(view: View, prior: Unwrapped, event: tuple[int, ...]) -> Any:
    if prior.mask is not None:
        return None if not _always_off(prior.mask) else view.conjugate(None)
    pseudo = view.conjugate(prior.base, event)
    if pseudo is None or (pseudo.bounded and type(prior.base).__name__ != "Uniform"):
        return None
    return pseudo


def _always_off(mask: Any) -> bool:
    return not isinstance(mask, Tracer) and not np.asarray(mask).any()
