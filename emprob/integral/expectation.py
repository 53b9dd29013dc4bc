"""log Z and the weights of a program with continuous latents: integrate, then eliminate the rest.

Each integral turns its log-factors into one table over discrete branches and series; the table is a
factor like any other, and `partition` eliminates what is discrete. The weights on the factors at
the integral's atoms are, once more, the gradient of log Z.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.estep.unsolved import Unsolved
from emprob.evaluation import Evaluation, Term
from emprob.integral import steady
from emprob.integral.hoist import Hoisted, as_it_is, hoisted
from emprob.integral.integral import Integral, field, series_sums, values_of
from emprob.model import LatentModel, factor_of, layout
from emprob.partition.factors import Factor
from emprob.partition.plates import log_partition
from emprob.partition.reduce import Reduce, log_sum_exp
from emprob.types import Atoms, Params, Posterior


class Problem(NamedTuple):
    """What a rule needs to integrate.

    Attributes:
        integral: static side.
        f: log-density of the coordinates, (B, S, T, D) -> (B, S).
        fixed: the same with derivatives in the parameters cut off.
        centre, real: (B, S, T, D).
    """

    integral: Integral
    f: Hoisted
    fixed: Hoisted
    centre: Array
    real: Array


class Solution(NamedTuple):
    """A posterior as atoms.

    Attributes:
        value: (B, S) log-integral.
        atoms: (A, B, S, T, D).
        weights: (A, B, S); they sum to one over the atoms and may be negative.
    """

    value: Array
    atoms: Array
    weights: Array


def problem(model: LatentModel, params: Mapping[str, Array], index: int) -> Problem:
    """The integral of a model at given parameters."""
    integral, data = model.structure.integrals[index], model.data.integrals[index]
    held = lax.stop_gradient(dict(params))
    centre = jnp.broadcast_to(data.centre, integral.shape)
    fields = field(model, params, index), field(lax.stop_gradient(model), held, index)
    solved = not isinstance(integral.rule, Unsolved)  # else its branches may not even add up
    f, fixed = (hoisted(f, centre) if solved else as_it_is(f) for f in fields)
    return Problem(integral, f, fixed, centre, jnp.broadcast_to(data.real, integral.shape))


def log_integral(model: LatentModel, params: Mapping[str, Array], index: int) -> Array:
    """The log-integral of every branch and series, (B, S), differentiable in the parameters."""
    if model.structure.integrals[index].steady is not None:
        return model.structure.integrals[index].steady.log_integral(model, params, index)
    p = problem(model, params, index)
    return p.integral.rule.log_integral(p)


def table_factor(model: LatentModel, out: Evaluation, index: int, table: Array) -> Factor:
    """A table (B, S) as a factor over branches and series."""
    integral = model.structure.integrals[index]
    if not integral.branches:
        return Factor(table.sum(), frozenset())
    sizes = [n for _, n in integral.branches] + list(integral.block.series)
    dims = [out.variables[v].dim for v, _ in integral.branches]
    dims += [out.plates[p].dim for p in integral.plates]
    rank = max(-d for d in dims)
    order = sorted(range(len(dims)), key=lambda i: dims[i])
    table = table.reshape(sizes).transpose(order)
    shape = [1] * rank
    for i in order:
        shape[dims[i]] = sizes[i]
    return Factor(table.reshape(shape), frozenset(integral.plates))


def rest_factors(model: LatentModel, out: Evaluation, tables: list[Array]) -> list[Factor]:
    """The factors that no integral enters, and one for each integral."""
    entered = {t for i in model.structure.integrals for t in i.terms}
    rest = [factor_of(out, name) for name in out.terms if name not in entered]
    return rest + [table_factor(model, out, i, t) for i, t in enumerate(tables)]


def log_z(
    model: LatentModel,
    params: Mapping[str, Array],
    reduce: Reduce = log_sum_exp,
    tilts: Mapping[str, Array] | None = None,
    out: Evaluation | None = None,
) -> Array:
    """log Z = log p(data | params): integrals by their rules, sums exactly."""
    out = model.evaluate(params) if out is None else out
    tables = [log_integral(model, params, i) for i in range(len(model.structure.integrals))]
    extra = [Factor(t, out.variables[name].plates) for name, t in (tilts or {}).items()]
    return log_partition(rest_factors(model, out, tables) + extra, layout(out), reduce)


# -- the E-step ---------------------------------------------------------------------------------


def solve(model: LatentModel, params: Params, index: int) -> Solution:
    """Integrate one group of latents by its rule."""
    p = problem(model, params, index)
    return p.integral.rule.solve(p)


def expectation(model: LatentModel, params: Params) -> Posterior:
    """log Z, the atoms of the continuous latents, and the weights of every log-factor at them."""
    groups = model.structure.integrals
    solutions: list[Any] = [
        solve(model, params, i) if g.steady is None else g.steady.solve(model, params, i)
        for i, g in enumerate(groups)
    ]
    out = model.evaluate(params)
    rest = {k: t.natural for k, t in out.terms.items() if k not in _entered(model)}

    def total(rest: dict[str, Array], tables: list[Array]) -> Array:
        terms = {k: t._replace(natural=rest.get(k, t.natural)) for k, t in out.terms.items()}
        changed = replace(out, terms=terms)
        return log_partition(rest_factors(model, changed, tables), layout(out))

    tables = [s[0] for s in solutions]
    value, (weights, branches) = jax.value_and_grad(total, (0, 1))(rest, tables)
    atoms = []
    for i, (solution, branch) in enumerate(zip(solutions, branches, strict=True)):
        if groups[i].steady is None:
            points, at = atom_weights(model, params, i, solution, branch, out)
        else:
            points = solution[1].values
            there, axes = evaluate_at(model, params, i, points, out)
            at = steady.weights(model, i, solution[1], there, axes)
        atoms.append(points)
        weights = {**weights, **at}
    return Posterior(value, weights, tuple(atoms))


def _entered(model: LatentModel) -> set[str]:
    return {t for i in model.structure.integrals for t in i.terms}


def atom_weights(
    model: LatentModel,
    params: Params,
    index: int,
    solution: Solution,
    branch: Array,
    out: Evaluation,
) -> tuple[Atoms, dict[str, Array]]:
    """The atoms by site (A * B, ...), and the weight of every entered log-factor at them.

    Args:
        model: a bound model.
        params: constrained space.
        index: of the integral.
        solution: of the integral.
        branch: (B, S), posterior probability of each branch.
        out: the program at any value of the latents.
    """
    integral, data = model.structure.integrals[index], model.data.integrals[index]
    a, b, *shape = solution.atoms.shape
    points = jax.vmap(lambda z: values_of(integral, data, z))(solution.atoms.reshape(a * b, *shape))
    share = solution.weights * branch  # (A, B, S)
    own = jnp.eye(b)[None, :, :, None] * share[:, :, None, :]  # of branch b', at an atom of b
    own = own.reshape(a * b, b, -1)
    out, axes = evaluate_at(model, params, index, points, out)
    naturals = {k: out.terms[k].natural for k in integral.terms}
    moving = {k: axes[k].natural for k in integral.terms}

    def expected(naturals: dict[str, Array]) -> Array:
        def one(terms: dict[str, Term], naturals: dict[str, Array], share: Array) -> Array:
            kept = {k: t._replace(natural=naturals[k]) for k, t in terms.items()}
            at = replace(out, terms={**out.terms, **kept})
            sums = series_sums(integral, data.cells, at)
            return jnp.sum(share * sums.reshape(b, -1))

        terms = {k: out.terms[k] for k in integral.terms}
        return jax.vmap(one, in_axes=(axes, moving, 0))(terms, naturals, own).sum()

    return points, jax.grad(expected)(naturals)


def evaluate_at(
    model: LatentModel, params: Mapping[str, Array], index: int, atoms: Atoms, out: Evaluation
) -> tuple[Evaluation, dict[str, Any]]:
    """The program at every atom of one integral.

    Args:
        model: a bound model.
        params: constrained space.
        index: of the integral.
        atoms: by site, (A, ...).
        out: the program at any value of the latents.

    Returns:
        The evaluation; of the terms that the integral enters, arrays that depend on its values
        have a first axis of atoms. And those axes: a `Term` of 0 or None for each such term.
    """
    integral = model.structure.integrals[index]
    terms = {k: out.terms[k] for k in integral.terms}
    axes = {k: _axes(k, t, integral) for k, t in terms.items()}
    marks = jax.tree.leaves(axes, is_leaf=lambda x: x is None)

    def run(values: Atoms) -> list[Array]:
        changed, latents = steady.with_leaves(model, values)
        found = changed.evaluate(params, latents)
        return jax.tree.leaves({k: found.terms[k] for k in integral.terms})

    leaves = jax.vmap(run, in_axes=(0,), out_axes=marks)(atoms)
    stacked = jax.tree.unflatten(jax.tree.structure(terms), leaves)
    plates = out.plates if integral.steady is None else integral.steady.one_step(out.plates)
    return replace(out, terms={**out.terms, **stacked}, plates=plates), axes


def evaluate_all(
    model: LatentModel, params: Mapping[str, Array], atoms: tuple[Atoms, ...]
) -> tuple[Evaluation, dict[str, Any]]:
    """As `evaluate_at`, with every integral at its own atoms."""
    out, axes = model.evaluate(params), {}
    for i, points in enumerate(atoms):
        out, found = evaluate_at(model, params, i, points, out)
        axes |= found
    return out, axes


def _axes(name: str, term: Term, integral: Integral) -> Term:
    def axis(part: str) -> int | None:
        return 0 if (name, part) in integral.moving else None

    arguments = {k: axis(f"arguments.{k}") for k in term.arguments}
    plain = {k: axis(k) for k in ("natural", "coefficient", "offset", "value", "origin")}
    return Term(arguments=arguments, **plain)  # pyright: ignore[reportArgumentType]
