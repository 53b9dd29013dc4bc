"""A program bound to data: `LatentModel`, and what can be asked of it.

Everything is a function of the parameters by way of the program's log-factors: their sum-product
is `log_partition`, its gradient the weights, the inner product of weights and naturals is Q.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions.transforms import Transform

from emprob import space
from emprob.contraction import contract
from emprob.evaluation import Evaluation, Term, TermSpec, statistics_of
from emprob.partition.factors import Factor, Layout
from emprob.program import Interpreter, run
from emprob.types import Atoms, Params


@dataclass(frozen=True)
class Same:
    """Wraps what goes along with a model but does not make it another one."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same)

    def __hash__(self) -> int:
        return 0


class Assignment(NamedTuple):
    """A parameter that stands, as it is, in an argument of a term's distribution.

    Attributes:
        param, term, argument, view: names; `view` is the parametrisation that was matched.
        shared: the other arguments cancel from the update (see `Argument.shared_ratio`).
    """

    param: str
    term: str
    argument: str
    view: str
    shared: bool


@dataclass(frozen=True)
class Structure:
    """What is static about a bound program; two fits with equal structure share compiled code."""

    program: Callable
    treedef: Any
    static: tuple
    roles: tuple[tuple[str, str], ...]
    params: tuple[str, ...]  # free parameters, program order
    fixed: tuple[str, ...]
    depth: int
    missing: frozenset[str]
    families: frozenset[str]
    invariant: frozenset[str]
    timed: frozenset[str]
    with_prior: bool
    assignments: tuple[Assignment, ...] = ()
    dtype: str = "float64"
    integrals: tuple[Any, ...] = ()  # groups of continuous latents (integral.Integral)
    separable: tuple[str, ...] = ()  # parameters of which Q is a sum over their first axis

    @property
    def latents(self) -> tuple[str, ...]:
        kinds = ("latent", "partial", "grid", "continuous")
        return tuple(n for n, r in self.roles if r in kinds)

    @property
    def on_grid(self) -> tuple[str, ...]:
        """Names of the continuous latents that are summed over common nodes."""
        return tuple(n for n, r in self.roles if r == "grid")

    @property
    def continuous(self) -> tuple[str, ...]:
        """Names of the continuous latents that are integrated, or simulated."""
        return tuple(n for n, r in self.roles if r == "continuous")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Data:
    """The arrays of a model."""

    leaves: tuple[Array, ...]
    fixed: dict[str, Array]
    origins: dict[str, Array]
    transforms: dict[str, Transform]
    cells: dict[str, Array]  # assignment -> index of the parameter's unit in each cell
    held: dict[str, Array] = field(default_factory=dict)  # continuous latents: a value, or nodes
    integrals: tuple[Any, ...] = ()  # integral.IntegralData


@dataclass(frozen=True)
class LatentModel:
    """A NumPyro program and its data, validated. Make one with `bind`.

    A pytree: arrays in `data`, the rest static. Parameters are dicts by site.
    """

    data: Data
    structure: Structure
    notes: Same  # the plan, coordinates, initial values

    # -- what the program says -------------------------------------------------------------

    def evaluate(
        self, params: Mapping[str, Array], latents: Mapping[str, Array] | None = None
    ) -> Evaluation:
        """Run the program at `params` (constrained), discrete latents enumerated.

        Args:
            params: by site.
            latents: values of continuous latents; those not given are held somewhere.
        """
        s = self.structure
        args, kwargs = arguments(s.treedef, s.static, self.data.leaves)
        interpreter = Interpreter(
            dict(s.roles), {**self.data.fixed, **self.data.held, **params, **(latents or {})},
            s.depth, s.missing, s.families, self.data.origins, s.invariant, s.timed,
        )  # fmt: skip
        return run(s.program, args, kwargs, interpreter)

    def log_prior(self, params: Mapping[str, Array]) -> Array:
        """Log prior density, constrained space, no Jacobian; 0 with `prior=False`."""
        return self.evaluate(params).log_prior if self.structure.with_prior else jnp.zeros(())

    def log_partition(self, params: Mapping[str, Array]) -> Array:
        """log Z = log p(data | params), the latents summed and integrated out."""
        from emprob.integral.expectation import log_z

        return log_z(self, params)

    def objective(self, params: Mapping[str, Array]) -> Array:
        """What `fit` maximises: log Z, plus the log prior unless `prior=False`."""
        from emprob.integral.expectation import log_z

        out = self.evaluate(params)
        value = log_z(self, params, out=out)
        return value + out.log_prior if self.structure.with_prior else value

    def deterministics(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """The program's deterministic sites that are functions of the parameters alone."""
        out = self.evaluate(params)
        keep = self.notes.value.deterministics
        return {k: v for k, v in out.deterministics.items() if k in keep}

    # -- the two spaces ---------------------------------------------------------------------

    def constrain(self, u: Mapping[str, Array]) -> Params:
        """Unconstrained -> constrained, by site."""
        return space.constrain(self.data.transforms, u)

    def unconstrain(self, params: Mapping[str, Array]) -> Params:
        """Constrained -> unconstrained, by site."""
        return space.unconstrain(self.data.transforms, params)

    def log_jacobian(self, u: Mapping[str, Array]) -> Array:
        """log |d params / du|."""
        return space.log_jacobian(self.data.transforms, u)

    # -- looks ------------------------------------------------------------------------------

    @property
    def params(self) -> tuple[str, ...]:
        """Names of the free parameters, program order."""
        return self.structure.params

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the latent sites, program order."""
        return self.structure.latents

    @property
    def plan(self):
        """One row per site: role, shape, support, structure, E-step, M-step and why."""
        return self.notes.value.plan

    def __repr__(self) -> str:
        return str(self.plan)

    def _repr_html_(self) -> str:
        return self.plan._repr_html_()


jax.tree_util.register_dataclass(
    LatentModel, data_fields=["data"], meta_fields=["structure", "notes"]
)


def with_rules(model: LatentModel, applied: Callable[[Any], Any]) -> LatentModel:
    """The model with every integral changed by a function."""
    integrals = tuple(applied(i) for i in model.structure.integrals)
    return replace(model, structure=replace(model.structure, integrals=integrals))


class StaticArray:
    """An array that a program needs at tracing time (a size, a number of classes)."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self._key = (array.shape, array.dtype.str, hash(array.tobytes()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticArray) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class Static:
    """Any other argument; compared by value if hashable, else by identity."""

    def __init__(self, value: Any):
        self.value = value
        try:
            self._key: Any = (type(value), value, hash(value))
        except TypeError:
            self._key = id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key if isinstance(self._key, int) else self._key[2])


class Slot(NamedTuple):
    """Stands where an array goes in the static part of the arguments."""

    index: int


def arguments(treedef: Any, static: tuple, leaves: tuple) -> tuple[tuple, dict]:
    """Put the arrays back into the program's arguments."""

    def value(x: Any) -> Any:
        if isinstance(x, Slot):
            return leaves[x.index]
        return x.array if isinstance(x, StaticArray) else x.value

    return jax.tree.unflatten(treedef, [value(x) for x in static])


def naturals(
    model: LatentModel, params: Mapping[str, Array], atoms: tuple[Atoms, ...] = ()
) -> tuple[dict[str, Array], Array]:
    """The natural of every term, at every atom it depends on, and the log prior (or 0)."""
    from emprob.integral.expectation import evaluate_all

    out, _ = evaluate_all(model, params, atoms)
    log_prior = out.log_prior if model.structure.with_prior else jnp.zeros(())
    return {k: t.natural for k, t in out.terms.items()}, log_prior


def log_factor(term: Term, spec: TermSpec, summed: tuple[int, ...] = ()) -> Array:
    """<natural, statistics> + offset; a masked entry counts zero whatever its natural is.

    Args:
        term: one log-factor.
        spec: its static side.
        summed: dimensions of the layout (negative) to sum over, kept with size one; only of terms
            in family form that vary along them.
    """
    if spec.in_family_form:
        statistics, log_base = statistics_of(term, spec)
        natural = term.natural
        if term.coefficient.size == 1:
            weight = term.coefficient.reshape(())
            natural = jnp.where(weight == 0, 0.0, weight * natural)
        table = contract(natural, statistics, summed)
        if not summed:
            return table + log_base
        shape = jnp.broadcast_shapes(term.natural.shape[:-1], statistics.shape[:-1])
        sizes = [n if i - len(shape) in summed else 1 for i, n in enumerate(shape)]
        whole = jnp.broadcast_to(log_base, jnp.broadcast_shapes(log_base.shape, tuple(sizes)))
        return table + whole.sum(summed, keepdims=True)
    if term.coefficient.size == 1:
        return term.coefficient * term.natural + term.offset
    kept = jnp.where(term.coefficient == 0, 0.0, term.natural)
    return term.coefficient * kept + term.offset


def _loose_plates(out: Evaluation, name: str) -> frozenset[str]:
    """Plates over which a term in family form is summed whatever is eliminated.

    Those of none of the variables that it varies with: items of a test, given a person's ability.
    """
    term, spec = out.terms[name], out.specs[name]
    if not spec.in_family_form or spec.time is not None or out.chains:
        return frozenset()
    rank = term.natural.ndim - 1
    arrays = (term.natural, term.value, term.coefficient)
    shape = jnp.broadcast_shapes(*(x.shape[:rank] for x in arrays if x.ndim >= rank))
    met = [v.plates for v in out.variables.values() if shape[v.dim] > 1]
    if not met:
        return frozenset()
    kept = frozenset[str]().union(*met)
    return frozenset(p for p in spec.plates - kept if shape[out.plates[p].dim] > 1)


def factors(out: Evaluation) -> list[Factor]:
    """The evaluated terms as factors to be eliminated."""
    return [factor_of(out, name) for name in out.terms]


def factor_of(out: Evaluation, name: str) -> Factor:
    """One evaluated term as a factor; a masked latent's mask is kept apart, its table small."""
    term, spec = out.terms[name], out.specs[name]
    loose = _loose_plates(out, name)
    if loose:
        dims = tuple(out.plates[p].dim for p in loose)
        return Factor(log_factor(term, spec, dims), spec.plates - loose)
    if spec.own is not None and term.coefficient.size > 1 and spec.site not in out.evidence:
        size = out.variables[spec.own].size
        return Factor(term.natural, spec.plates, term.coefficient > 0, size)
    return Factor(log_factor(term, spec), spec.plates)


def layout(out: Evaluation) -> Layout:
    """Names to dimensions, for the elimination."""
    return Layout(out.plates, {v.dim: v.plates for v in out.variables.values()}, out.chains)
