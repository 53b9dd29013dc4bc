"""The M-step in closed form: a ratio of sums for every parameter that stands alone somewhere.

Where a parameter is an argument of an exponential family, the conditional maximiser of Q is a sum
of numerators over a sum of denominators, taken over all cells in which the parameter stands, plus
the pseudo-counts of a conjugate prior. Locations go before scales, which makes the pair exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from emprob.contraction import LETTERS, squeezed
from emprob.evaluation import Evaluation, Term, distribution
from emprob.families import Argument, View
from emprob.integral.expectation import evaluate_all
from emprob.model import Assignment, LatentModel
from emprob.probe import cell_key
from emprob.space import TINY
from emprob.types import Params, Posterior

EDGE = 1e-16  # the least distance from one


@dataclass(frozen=True)
class ClosedForm:
    """Exact conditional updates; parameters without one stay where they are."""

    def __call__(self, model: LatentModel, params: Params, posterior: Posterior) -> Params:
        for stage in stages(model):
            params = updated(model, params, posterior, stage)
        return params


def updated(
    model: LatentModel, params: Params, posterior: Posterior, names: Sequence[str]
) -> Params:
    """The parameters with some of them, one apart from the other, at their maximisers of Q."""
    if not names:
        return params
    seen = evaluate_all(model, params, posterior.atoms)
    return {**params, **{k: _update(model, seen, params, posterior, k) for k in names}}


def covered(model: LatentModel) -> tuple[str, ...]:
    """Names of the parameters that have a closed form."""
    return tuple(dict.fromkeys(a.param for a in model.structure.assignments))


def stages(model: LatentModel) -> tuple[list[str], list[str]]:
    """Parameters with a closed form: locations, probabilities and rates; then scales."""
    first, last = [], []
    for a in model.structure.assignments:
        (first if a.argument in ("loc", "probs", "rate") else last).append(a.param)
    return list(dict.fromkeys(first)), list(dict.fromkeys(last))


def _update(
    model: LatentModel, seen: tuple, params: Params, posterior: Posterior, name: str
) -> Array:
    """The maximiser of Q in one parameter, constrained space."""
    out, _ = seen
    places = [a for a in model.structure.assignments if a.param == name]
    argument, view = _argument(out, places[0])
    old = params[name]
    canonical = view.to_canonical(old)
    event = canonical.shape[canonical.ndim - argument.event_dim :]
    units = canonical.size // _prod(event)
    pairs = [_all_sums(model, seen, posterior, a, argument, units) for a in places]
    num, den = pairs[0]
    for more in pairs[1:]:
        num, den = num + more[0], den + more[1]
    num, den = _with_prior(model, out, name, view, argument, canonical.shape, num, den)
    flat = canonical.reshape(units, *event)
    known = _informed(den, num.ndim)
    new = argument.maximiser(num, _safe(den, argument))
    new = jnp.where(known, new, flat).reshape(canonical.shape)
    new = _within(model, out, name, view.from_canonical(new).reshape(old.shape))
    moved = jnp.where(jnp.isfinite(new), new, old)
    return moved.astype(old.dtype)


def _argument(out: Evaluation, a: Assignment) -> tuple[Argument, View]:
    family = out.specs[a.term].family
    assert family is not None
    argument = family.arguments[a.argument]
    return argument, argument.views[a.view]


def _prod(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def _safe(den: Array, argument: Argument) -> Array:
    """A denominator that can be divided by; where it was not, the result is not used."""
    if not argument.solve:
        return jnp.where(den > 0, den, 1.0)
    empty = jnp.trace(den, axis1=-2, axis2=-1)[..., None, None] <= 0
    return jnp.where(empty, jnp.eye(den.shape[-1]), den)


def _informed(den: Array, ndim: int) -> Array:
    """Units with any data or prior behind them."""
    weight = den if den.ndim <= ndim else jnp.trace(den, axis1=-2, axis2=-1)[..., None]
    weight = weight.reshape(weight.shape + (1,) * (ndim - weight.ndim))
    return weight > 0


def _all_sums(model, seen: tuple, posterior, a: Assignment, argument: Argument, units: int):
    """Numerator and denominator of one place, over all atoms of the latents it depends on."""
    out, axes = seen
    weight, axis = posterior.weights[a.term], axes.get(a.term)
    if axis is None or axis.natural is None:
        return _sums(model, out, weight, a, argument, units)

    def one(term: Term, weight: Array):
        at = replace(out, terms={**out.terms, a.term: term})
        return _sums(model, at, weight, a, argument, units)

    num, den = jax.vmap(one, in_axes=(axis, 0))(out.terms[a.term], weight)
    return num.sum(0), den.sum(0)


def _sums(model, out, weight: Array, a: Assignment, argument: Argument, units: int):
    """Numerator and denominator of one place, summed over the cells of each unit."""
    origin, index = _origin(model, out, a.term), model.data.cells[cell_key(a)]
    S, n, d = expected_statistics(out, weight, a.term, origin)
    ratio = argument.ratio
    if a.shared and argument.shared_ratio is not None:
        ratio = argument.shared_ratio
    num, den = ratio(S, n, d, origin)
    e = argument.event_dim
    extra = den.ndim - (num.ndim - e)  # event dimensions of the denominator
    batch = jnp.broadcast_shapes(
        num.shape[: num.ndim - e], den.shape[: den.ndim - extra], index.shape
    )
    cells = jnp.where(index < 0, units, index)
    cells = jnp.broadcast_to(cells, batch).reshape(-1)

    def total(x: Array, tail: int) -> Array:
        shape = x.shape[x.ndim - tail :]
        x = jnp.broadcast_to(x, (*batch, *shape)).reshape(-1, *shape)
        return jax.ops.segment_sum(x, cells, units + 1)[:units]

    return total(num, e), total(den, extra)


def _origin(model: LatentModel, out: Evaluation, term: str) -> Array:
    spec = out.specs[term]
    return jnp.zeros(()) if spec.own else model.data.origins.get(spec.site, jnp.zeros(()))


def expected_statistics(
    out: Evaluation, weight: Array, name: str, origin: Array
) -> tuple[Array, Array, Any]:
    """S = sum w T(x), n = sum w for every cell of a term's distribution, and the distribution.

    Returns:
        S (*cells, P), n (*cells,), and the distribution with its batch aligned to the cells.
    """
    spec, term = out.specs[name], out.terms[name]
    family = spec.family
    assert family is not None
    d = distribution(term, spec)
    if spec.in_family_form:
        layout = weight.shape[:-1]
        event = _event_sizes(term.value, spec)
        S = weight.reshape(*layout, *event, -1)
        return S[..., :-1], S[..., -1], d
    T = family.statistics(d, term.value, origin)
    weight = weight.reshape(weight.shape + (1,) * spec.reinterpreted)
    return _reduced(weight, T, d.batch_shape), _reduced_count(weight, T, d.batch_shape), d


def _event_sizes(value: Array, spec) -> tuple[int, ...]:
    end = value.ndim - spec.event_dim
    return value.shape[end - spec.reinterpreted : end]


def _reduced(weight: Array, T: Array, cells: tuple[int, ...]) -> Array:
    """sum of w T over the axes on which the cells do not vary; axes of size one are kept."""
    rank = weight.ndim
    full = jnp.broadcast_shapes(weight.shape, T.shape[:-1])
    cells = (1,) * (rank - len(cells)) + tuple(cells)

    w, iw = squeezed(weight, rank)
    t, it = squeezed(T, rank)
    keep = [i for i in range(rank) if cells[i] > 1 and full[i] > 1]
    result = jnp.einsum(f"{iw},{it}Z->{''.join(LETTERS[i] for i in keep)}Z", w, t)
    lost = _prod(
        tuple(
            full[i] for i in range(rank) if i not in keep and max(weight.shape[i], T.shape[i]) == 1
        )
    )
    shape = tuple(full[i] if i in keep else 1 for i in range(rank))
    return result.reshape(*shape, T.shape[-1]) * lost


def _reduced_count(weight: Array, T: Array, cells: tuple[int, ...]) -> Array:
    ones = jnp.ones((*(1,) * (T.ndim - 1), 1), weight.dtype)
    full = jnp.broadcast_to(ones, (*T.shape[:-1], 1))
    return _reduced(weight, full, cells)[..., 0]


def _with_prior(model, out, name, view: View, argument, shape, num, den):
    """Add the pseudo-counts of the parameter's prior.

    A sum below zero means that the density grows without bound towards the edge of the support
    (a Dirichlet or Beta with shapes below one): the update goes as near to the edge as
    unconstrained space reaches, so that the objective stays a number.
    """
    prior = out.priors.get(name)
    if prior is not None and model.structure.with_prior and prior.mask is None:
        batch = shape[: len(shape) - argument.event_dim]
        pseudo = view.conjugate(prior.base, num.shape[1:])
        assert pseudo is not None
        num = num + _per_unit(pseudo.num, batch, num)
        den = den + _per_unit(pseudo.den, batch, den)
    if view.support is constraints.simplex or argument.event_dim == 1 and not argument.solve:
        total = jnp.maximum(num, 0.0).sum(-1, keepdims=True)
        return jnp.where(num < 0, TINY * total, num), total
    if argument.event_dim == 0 and view.support is not constraints.real:
        num = jnp.where((num < 0) & (den > 0), TINY * den, num)
        if view.support is constraints.unit_interval:
            num = jnp.where((num > den) & (den > 0), (1 - EDGE) * den, num)
    return num, den


def _per_unit(x: Any, batch: tuple[int, ...], like: Array) -> Array:
    event = like.shape[1:]
    return jnp.broadcast_to(jnp.asarray(x, like.dtype), (*batch, *event)).reshape(-1, *event)


def _within(model: LatentModel, out: Evaluation, name: str, value: Array) -> Array:
    """Cut at the bounds of a uniform prior: Q is unimodal in one argument."""
    prior = out.priors.get(name)
    if prior is None or not model.structure.with_prior:
        return value
    base = prior.base
    return jnp.clip(value, base.low, base.high) if _is_uniform(base) else value


def _is_uniform(base: Any) -> bool:
    return type(base) is dist.Uniform
