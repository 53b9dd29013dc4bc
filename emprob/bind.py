"""Bind a NumPyro program to data: `bind`, which finds the structure and validates it.

Nothing is asked of the user that can be read off the program: roles by `roles.py`, which terms are
exponential families with parameters that do not vary along the data, which do not vary in time,
and where each parameter stands, all by evaluating the program at a few random parameters.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob.arguments import prepared, split
from emprob.dependence import dependence
from emprob.errors import ModelError
from emprob.estep.enumerate import log_partition_of
from emprob.evaluation import Evaluation
from emprob.explain import explain
from emprob.fixed import fixed_values, whole_shape
from emprob.integral.find import with_integrals
from emprob.model import (
    Data,
    LatentModel,
    Same,
    Structure,
    arguments,
)
from emprob.partition.factors import MAX_TABLE_BYTES, TableTooLarge
from emprob.plan import make_plan
from emprob.probe import probe
from emprob.roles import (
    Survey,
    assign_roles,
    is_partial,
    labels_in_use,
    prior_dependence,
    survey,
)
from emprob.separable import with_separable
from emprob.space import bijection, forward
from emprob.validate import check_data, check_repeatable, check_table_size


@dataclass(frozen=True)
class Notes:
    """What goes along with a model: for people, not for compiled code."""

    plan: Any
    initial: dict[str, np.ndarray]
    coords: dict[str, Any]
    missing: dict[str, Any]
    num_observations: int
    program_name: str
    deterministics: tuple[str, ...]
    static: Evaluation
    atoms: dict[str, np.ndarray]
    observed: dict[str, np.ndarray] = field(default_factory=dict)
    survey: Any = None


def bind(
    program: Callable,
    *args: Any,
    latents: Sequence[str] | None = None,
    fixed: Mapping[str, Any] | None = None,
    prior: bool = True,
    **kwargs: Any,
) -> LatentModel:
    """Bind a NumPyro program to its data, find its structure, and validate both.

    Args:
        program: a NumPyro model; it is called as `program(*args, **kwargs)`.
        *args: its arguments. Arrays (NumPy, JAX, pandas, polars, xarray, lists of numbers) are
            data; everything else is static. NaN in an observed array is missing.
        latents: names of the latent sites; None: by the rule of `roles.py`.
        fixed: values (constrained space) of parameters that are not estimated.
        prior: True: the objective is the posterior density of the parameters in the constrained
            space, without Jacobian. False: the likelihood.
        **kwargs: its keyword arguments, as `*args`.

    Returns:
        The model. Its `repr` is the plan.

    Raises:
        ModelError: the program's structure cannot be fitted as it stands.
        DataError: the data do not fit the program.
    """
    args, kwargs, coords = prepared(program, args, kwargs)
    with jax.enable_x64(True):
        found = _survey(program, args, kwargs)
        missing = _check_data(program, args, kwargs, found)
        roles = _roles(program, args, kwargs, found, latents)
        held = fixed_values(fixed, roles, found)
        model = _assemble(program, args, kwargs, found, roles, held, missing, prior)
        return _with_structure(model, found, coords, missing)


def _with_structure(model: LatentModel, found: Survey, coords, missing) -> LatentModel:
    """An assembled model with everything that is found by evaluating it."""
    model, out_shapes = _check_shapes(model)
    model = _probe(model, out_shapes, found)
    points = [random_params(model, seed) for seed in (1, 2)]
    model = with_separable(with_integrals(model, points, found.sites), points[0])
    statics = _statics(model, found)
    return replace(model, notes=Same(_notes(model, statics, found, coords, missing)))


def on_nodes(model: LatentModel, nodes: Mapping[str, Array]) -> LatentModel:
    """The same program and data with some continuous latents summed over nodes, by site (K,)."""
    s, notes = model.structure, model.notes.value
    roles = {n: "grid" if n in nodes else r for n, r in s.roles}
    leaves = tuple(np.asarray(x) for x in model.data.leaves)
    args, kwargs = arguments(s.treedef, s.static, leaves)
    fixed = {k: np.asarray(v) for k, v in model.data.fixed.items()}
    with jax.enable_x64(True):
        fresh = _assemble(
            s.program, args, kwargs, notes.survey, roles, fixed, notes.missing, s.with_prior
        )
        held = {**fresh.data.held, **{k: jnp.asarray(v, float) for k, v in nodes.items()}}
        fresh = replace(fresh, data=replace(fresh.data, held=held))
        return _with_structure(fresh, notes.survey, notes.coords, notes.missing)


def _held(roles: Mapping[str, str], found: Survey) -> dict[str, Array]:
    """Continuous latents, which have no values to sum over, at values no two of which are alike."""
    held, rng = {}, np.random.default_rng(0)
    for name in [n for n, r in roles.items() if r == "continuous"]:
        transform = bijection(found.sites[name].support)
        shape = transform.inverse_shape(whole_shape(found.sites[name], found))
        held[name] = forward(transform, jnp.asarray(rng.uniform(-1.0, 1.0, shape)))
    return held


def _survey(program: Callable, args: tuple, kwargs: Mapping) -> Survey:
    try:
        first = survey(program, args, kwargs)
        check_repeatable(first, survey(program, args, kwargs))
    except Exception as error:
        raise explain(error) from error
    return first


def _check_data(program: Callable, args: tuple, kwargs: Mapping, found: Survey) -> dict:
    try:
        return check_data(program, args, kwargs, found)
    except Exception as error:
        raise explain(error) from error


def _roles(program, args, kwargs, found: Survey, latents) -> dict[str, str]:
    try:
        dependent = prior_dependence(program, args, kwargs, found) if latents is None else set()
    except Exception as error:
        raise explain(error) from error
    roles = assign_roles(found, dependent, latents)
    holed = [n for n, s in found.sites.items() if is_partial(s, observed_value(found, n))]
    for name in labels_in_use(program, args, kwargs, found, holed):
        roles[name] = "partial"
    if not any(s.observed for s in found.sites.values()):
        raise ModelError(
            "the program has no observed site, so the objective is the prior alone. Pass the data "
            "that the program conditions on (obs=...)."
        )
    return roles


def observed_value(found: Survey, name: str) -> Any:
    """The whole data of an observed site, with time first if it stands in a scan."""
    return found.series[name][0] if name in found.series else found.sites[name].value


def _assemble(program, args, kwargs, found, roles, fixed, missing, prior) -> LatentModel:
    treedef, static, leaves = split(args, kwargs, frozen=False)
    named = [n for n, r in roles.items() if r == "parameter"]
    sites = [s for n, s in found.sites.items() if roles.get(n) != "parameter" and s.fn is not None]
    structure = Structure(
        program=program,
        treedef=treedef,
        static=static,
        roles=tuple(roles.items()),
        params=tuple(n for n in named if n not in fixed),
        fixed=tuple(fixed),
        depth=max([s.batch_ndim for s in sites] + [0]),
        missing=frozenset(n for n, m in missing.items() if m.nan)
        - {n for n, r in roles.items() if r == "partial"},
        families=frozenset(),
        invariant=frozenset(),
        timed=frozenset(
            n
            for n, r in roles.items()
            if r in ("parameter", "continuous") and found.sites[n].scan is not None
        ),  # fmt: skip
        with_prior=prior,
    )
    transforms = {n: bijection(found.sites[n].support) for n in structure.params}
    fixed = {k: jnp.asarray(v) for k, v in fixed.items()}
    data = Data(leaves, fixed, {}, transforms, {}, _held(roles, found))
    initial = {n: np.broadcast_to(found.sites[n].value, whole_shape(found.sites[n], found))
               for n in structure.params}  # fmt: skip
    return LatentModel(data, structure, Same(SimpleNamespace(initial=initial, args=(args, kwargs))))


def _check_shapes(model: LatentModel) -> tuple[LatentModel, Any]:
    """Trace the program with the latents enumerated; data it reads while tracing become static."""
    initial = {k: jnp.asarray(v, float) for k, v in model.notes.value.initial.items()}
    for frozen in (False, True):
        args, kwargs = model.notes.value.args
        treedef, static, leaves = split(args, kwargs, frozen)
        structure = replace(model.structure, treedef=treedef, static=static)
        model = replace(model, structure=structure, data=replace(model.data, leaves=leaves))
        try:
            jax.eval_shape(lambda m, p: log_partition_of(m.evaluate(p)), model, initial)
            return model, initial
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError,
                jax.errors.TracerIntegerConversionError, jax.errors.TracerBoolConversionError,
                jax.errors.NonConcreteBooleanIndexError) as error:  # fmt: skip
            if frozen:
                raise explain(error) from error
        except TableTooLarge as error:
            _refuse_table(model, initial, error)
            raise ModelError(str(error)) from error
        except Exception as error:
            raise explain(error) from error
    raise AssertionError("unreachable")


def _refuse_table(model: LatentModel, initial: Mapping[str, Array], error: TableTooLarge) -> None:
    """Name the latents whose joint table is too large."""
    found: list = []
    jax.eval_shape(lambda m, p: found.extend(m.evaluate(p).variables.values()), model, initial)
    shape = error.shape
    meeting = {v.name: v.size for v in found if len(shape) >= -v.dim and shape[v.dim] > 1}
    batch = math.prod(shape) // max(math.prod(meeting.values()), 1)
    check_table_size(meeting, MAX_TABLE_BYTES, batch)


def random_params(model: LatentModel, seed: int) -> dict[str, Array]:
    """Parameters at a random unconstrained point, no two numbers alike."""
    u = model.unconstrain({k: jnp.asarray(v, float) for k, v in model.notes.value.initial.items()})
    rng = np.random.default_rng(seed)
    return model.constrain({k: jnp.asarray(rng.uniform(-1.0, 1.0, v.shape)) for k, v in u.items()})


def _probe(model: LatentModel, initial: Mapping[str, Array], found: Survey) -> LatentModel:
    """Find families, what does not vary in time, and where the parameters stand."""
    points = [random_params(model, seed) for seed in (1, 2)]
    priors = {n: fn for n in model.params if (fn := found.sites[n].fn) is not None}
    seen = probe(model, points, _reach(model, initial), priors)
    structure = replace(
        model.structure, families=seen.families, invariant=seen.invariant,
        assignments=seen.assignments,
    )  # fmt: skip
    data = replace(model.data, cells=seen.cells, origins=seen.origins)
    return replace(model, structure=structure, data=data)


def _reach(model: LatentModel, initial: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """For each parameter: which arrays of which terms, and which priors, depend on it."""

    def everything(params: Mapping[str, Array]) -> Any:
        out = model.evaluate(params)
        return {k: t._asdict() for k, t in out.terms.items()}, out.log_priors

    closed, shapes = jax.make_jaxpr(everything, return_shape=True)(dict(initial))
    names = jax.tree.leaves({n: n for n in initial})
    reach = {}
    for name in names:
        marks = dependence(closed.jaxpr, [n == name for n in names])
        reach[name] = jax.tree.unflatten(jax.tree.structure(shapes), marks)
    return reach


def _notes(model, statics, found: Survey, coords, missing) -> Notes:
    observed = {
        n: np.asarray(observed_value(found, n))
        for n, s in found.sites.items()
        if s.observed and s.fn is not None and np.size(s.value)
    }
    program = model.structure.program
    statics, plain = statics
    return Notes(
        plan=make_plan(model, found, missing),
        initial=model.notes.value.initial,
        coords=coords,
        missing=missing,
        num_observations=_count(model, found, missing),
        program_name=getattr(program, "__name__", type(program).__name__),
        deterministics=plain,
        static=statics,
        atoms=_atoms(model, found),
        observed=observed,
        survey=found,
    )


def _count(model, found: Survey, missing) -> int:
    """Number of observed scalars' events: plate elements times time steps, less the missing."""
    total = 0
    for name, site in found.sites.items():
        if not site.observed or site.fn is None or not np.size(site.value):
            continue
        steps = 1 if site.scan is None else found.lengths[site.scan]
        total += steps * int(np.prod(np.shape(site.value)[: site.batch_ndim] or (1,)))
        if name in missing:
            total -= missing[name].count
    return total


def _atoms(model: LatentModel, found: Survey) -> dict[str, np.ndarray]:
    """The values that each discrete latent takes, and the nodes of those on a grid."""
    nodes = {n: np.asarray(model.data.held[n]) for n in model.structure.on_grid}
    sites = {n: found.sites[n] for n in model.latents}
    bases = {n: s.fn.base for n, s in sites.items() if s.fn is not None and s.discrete}
    values = {n: np.asarray(b.enumerate_support(expand=False)).ravel() for n, b in bases.items()}
    return {**nodes, **values}


def _statics(model: LatentModel, found: Survey) -> tuple[Evaluation, tuple[str, ...]]:
    """The static side of an evaluation, and the deterministic sites without latents or time."""
    seen: list[Evaluation] = []

    def collect(params: Mapping[str, Array]) -> Array:
        seen[:] = [model.evaluate(params)]
        return jnp.zeros(())

    jax.eval_shape(collect, {k: jnp.asarray(v) for k, v in model.notes.value.initial.items()})
    out = seen[0]
    plain = tuple(
        n for n, v in out.deterministics.items()
        if isinstance(v, jax.Array) and v.shape == found.deterministics.get(n)
    )  # fmt: skip
    statics = Evaluation(
        specs=out.specs, plates=out.plates, variables=out.variables, chains=out.chains,
        evidence=out.evidence,
    )  # fmt: skip
    return statics, plain


def with_latents_as_parameters(model: LatentModel) -> LatentModel:
    """Where log Z is not exact: its continuous latents as parameters, the discrete summed out."""
    s = model.structure
    discrete = tuple(n for n in model.latents if n not in s.continuous)
    if all(i.rule.capabilities.exact for i in s.integrals):
        return model
    leaves = tuple(np.asarray(x) for x in model.data.leaves)
    args, kwargs = arguments(s.treedef, s.static, leaves)
    fixed = {k: np.asarray(v) for k, v in model.data.fixed.items()}
    return bind(s.program, *args, latents=discrete, fixed=fixed, prior=s.with_prior, **kwargs)
