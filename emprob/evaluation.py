"""What one run of a program says: its log-factors as terms, and the dimensions they live on.

    log-factor = <natural, statistics> + offset

Array layout, aligned from the right:  [times..., enumerated variables..., plates...][statistics].
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from emprob.families import Family


@dataclass(frozen=True)
class Plate:
    """A plate, or the time axis of a scan (`is_time`), at array dimension `dim` (negative)."""

    name: str
    dim: int
    size: int
    is_time: bool = False


@dataclass(frozen=True)
class Variable:
    """An enumerated latent: its values lie along array dimension `dim` (negative)."""

    name: str
    site: str
    dim: int
    size: int
    plates: frozenset[str]


@dataclass(frozen=True)
class Slot:
    """One latent of a scan's carry.

    Attributes:
        previous: dimension of the value carried into a step.
        following: dimension that the same slot refers to after the step (a new variable, or
            another slot's `previous`, for lags).
        entry: dimension of the variable that fills the slot before the first step.
        size: number of values.
    """

    previous: int
    following: int
    entry: int
    size: int


@dataclass(frozen=True)
class Chain:
    """A scan whose steps `start..start+length-1` are one axis; earlier ones are unrolled."""

    name: str
    start: int
    length: int
    slots: tuple[Slot, ...]


class Term(NamedTuple):
    """One evaluated log-factor (see the module's formula), every array in the common layout.

    Attributes:
        natural: table, or (layout, statistics) in family form.
        coefficient: mask times scale; over (layout, reinterpreted) in family form.
        offset: constant.
        arguments: of an exponential family's distribution, over (layout, reinterpreted, event).
        value: (layout, event).
        origin: reference point of the statistics.
    """

    natural: Array
    coefficient: Array
    offset: Array
    arguments: dict[str, Array]
    value: Array
    origin: Array


class TermSpec(NamedTuple):
    """What is static about a term."""

    name: str
    site: str
    plates: frozenset[str]
    time: str | None
    family: Family | None  # exponential family of the site, if it is one
    in_family_form: bool
    own: str | None  # the variable whose prior this is
    reinterpreted: int  # batch dimensions counted as event (to_event)
    event_dim: int  # of the base distribution
    cls: type  # of the base distribution
    folded: bool = False  # a masked event was summed: the statistics cannot be told apart


class Unwrapped(NamedTuple):
    """A distribution without its wrappers, and what they said."""

    base: Any
    mask: Array | None  # over batch and reinterpreted dimensions
    reinterpreted: int


@dataclass
class Evaluation:
    """Everything one run of the program says."""

    terms: dict[str, Term] = field(default_factory=dict)
    specs: dict[str, TermSpec] = field(default_factory=dict)
    plates: dict[str, Plate] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    atoms: dict[str, Array] = field(default_factory=dict)
    chains: dict[str, Chain] = field(default_factory=dict)
    log_priors: dict[str, Array] = field(default_factory=dict)
    priors: dict[str, Unwrapped] = field(default_factory=dict)
    deterministics: dict[str, Array] = field(default_factory=dict)
    evidence: set[str] = field(default_factory=set)
    returned: Any = None

    @property
    def log_prior(self) -> Array:
        """Log-density of the parameters, constrained space, no Jacobian."""
        return sum(self.log_priors.values(), jnp.zeros(()))


def sum_event(x: Array, ndim: int) -> Array:
    """Sum the last `ndim` dimensions."""
    return x.sum(tuple(range(-ndim, 0))) if ndim else x


def event_sizes(value: Array, event_dim: int, reinterpreted: int) -> tuple[int, ...]:
    """Sizes of the dimensions that `to_event` made part of the event."""
    end = value.ndim - event_dim
    return value.shape[end - reinterpreted : end]


def flatten_event(x: Array, event: tuple[int, ...]) -> Array:
    """(*batch, *event', P) -> (*batch, prod(event) P), event' broadcast to event."""
    batch = x.shape[: x.ndim - 1 - len(event)]
    return jnp.broadcast_to(x, (*batch, *event, x.shape[-1])).reshape(*batch, -1)


def arguments_of(base: Any) -> dict[str, Array]:
    """The arguments that a distribution was made from, by name."""
    names = [n for n in type(base).arg_constraints if n in vars(base)]
    given = {"covariance_matrix", "precision_matrix"} & set(names)
    return {n: jnp.asarray(getattr(base, n)) for n in names if not (given and n == "scale_tril")}


def distribution(term: Term, spec: TermSpec) -> Any:
    """A term's base distribution again, its batch in the common layout."""
    return spec.cls(**term.arguments, validate_args=False)


def statistics_of(term: Term, spec: TermSpec) -> tuple[Array, Array]:
    """Statistics (layout, P + 1), the last of them one, and log h (layout,).

    Both weighted; but one weight of all rows is left to the naturals, which are fewer.
    """
    family, d = spec.family, distribution(term, spec)
    assert family is not None
    statistics = family.statistics(d, term.value, term.origin)
    ones = jnp.ones((*statistics.shape[:-1], 1), statistics.dtype)
    statistics = jnp.concatenate([statistics, ones], -1)
    weight, log_base = term.coefficient, family.log_base(d, term.value)
    if weight.size > 1:
        statistics = jnp.where(weight[..., None] == 0, 0.0, weight[..., None] * statistics)
    log_base = jnp.where(weight == 0, 0.0, weight * log_base)
    r = spec.reinterpreted
    if r:
        event = event_sizes(term.value, spec.event_dim, r)
        statistics = flatten_event(statistics, event)
        log_base = sum_event(jnp.broadcast_to(log_base, (*log_base.shape[:-r], *event)), r)
    return statistics, log_base
