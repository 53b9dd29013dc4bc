"""Find how the continuous latents of a program hang together, by looking at its derivatives.

Nothing is assumed and nothing is parsed. Latents that enter the same log-factor are one group. The
series of a group are the elements of the plates that its latents share; a derivative along a
direction that numbers the series tells to which series each cell of each factor belongs (and
whether to one only), so `b[group]` needs no declaration. One Hessian product tells how many steps
of a scan are tied to one another. A log-density is quadratic if its gradient is linear between
random points, at two random parameters; conjugate if a family's statistics, fitted at a few
points, predict it at two more; smooth, as Laplace's approximation wants it, if its gradient does
not jump (`kink.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob.dependence import dependence
from emprob.estep.conjugate import Conjugate, design
from emprob.estep.gaussian import Gaussian
from emprob.estep.laplace import Laplace
from emprob.estep.unsolved import Unsolved
from emprob.integral import rows, steady
from emprob.integral.block import Block, Slot
from emprob.integral.integral import Integral, IntegralData, field, log_jacobian, values_of
from emprob.integral.kernels import Kernel, candidates
from emprob.integral.kink import curved, gradient, has_kink
from emprob.model import LatentModel, factors, layout, log_factor
from emprob.partition.plates import log_partition
from emprob.space import bijection

MAX_WIDTH = 2000  # coordinates that are integrated as one dense block
SCALES = (1.0, 0.3, 0.1, 0.03)  # of the random latents at which cells are told to series
SPREAD = (1.0, -0.3, 0.1, -0.03, -1.5, 2.5)  # of points at which a gradient is looked at
EXACT = 1e-8  # relative error of a prediction that is rounding


def with_integrals(model: LatentModel, points: Sequence[Mapping], sites: Mapping) -> LatentModel:
    """The model with its groups of continuous latents found and classified.

    Args:
        model: as probed, its continuous latents held at random values.
        points: two random parameters.
        sites: what the survey says about each site, by name.
    """
    if not model.structure.continuous:
        return model
    marks = _marks(model, points[0])
    integrals, data = [], []
    for group in _groups(model.structure.continuous, marks):
        integral, arrays = _classified(model, points, group, marks, sites)
        integrals.append(integral)
        data.append(arrays)
    if len(integrals) == 1 and not isinstance(integrals[0].rule, Unsolved):
        search = steady.found if integrals[0].block.is_chain else rows.found
        integrals[0], data[0] = search(model, points, integrals[0], data[0])
    return _attached(model, integrals, data)


def _attached(model: LatentModel, integrals: Sequence, data: Sequence) -> LatentModel:
    structure = replace(model.structure, integrals=tuple(integrals))
    return replace(model, structure=structure, data=replace(model.data, integrals=tuple(data)))


# -- groups -------------------------------------------------------------------------------------


def _marks(model: LatentModel, params: Mapping) -> dict[str, dict[tuple[str, str], bool]]:
    """By latent: which (term, array) pairs depend on it."""

    def arrays(held: Mapping[str, Array]) -> dict:
        out = model.evaluate(dict(params), held)
        return {k: t._asdict() for k, t in out.terms.items()}

    held = dict(model.data.held)
    closed, shapes = jax.make_jaxpr(arrays, return_shape=True)(held)
    names = jax.tree.leaves({n: n for n in held})
    found = {}
    for name in names:
        flat = dependence(closed.jaxpr, [n == name for n in names])
        tree = jax.tree.unflatten(jax.tree.structure(shapes), flat)
        found[name] = {
            (term, part): mark
            for term, parts in tree.items()
            for part, mark in steady.named(parts)
        }  # fmt: skip
    return found


def _groups(sites: Sequence[str], marks: Mapping) -> list[tuple[str, ...]]:
    """Sites that share a term, together."""
    terms = {s: {t for (t, _), m in marks[s].items() if m} for s in sites}
    groups: list[set[str]] = []
    for site in sites:
        linked = [g for g in groups if any(terms[site] & terms[o] for o in g)]
        groups = [g for g in groups if g not in linked] + [{site}.union(*linked)]
    return [tuple(s for s in sites if s in g) for g in groups]


# -- one group ----------------------------------------------------------------------------------


def _classified(model, points, group, marks, sites) -> tuple[Integral, IntegralData]:
    """The integral of one group of latents: layout, then rule."""
    integral, data = _laid_out(model, points, group, marks, sites)
    unsolved = _tangled(model, integral)
    if unsolved is None:
        lag = _lag(model, points, integral, data)
        integral, data = _with_lag(integral, data, lag, sites)
        unsolved = _too_wide(integral)
    if unsolved is not None:
        integral = replace(integral, rule=unsolved, why=unsolved.why)
        return integral, _with_real(model, points, integral, data, _joint_gradient)
    data = _with_real(model, points, integral, data, gradient)
    quadratic = _is_quadratic(model, points, integral, data)
    integral = replace(integral, quadratic=quadratic)
    if quadratic:
        integral = replace(integral, rule=Gaussian(), why="the log-density is quadratic")
        return integral, data
    found = _conjugate(model, points, integral, data, sites)
    if found is not None:
        return found
    *_, left, right = _spread(integral)
    if has_kink(_attached(model, [integral], [data]), points[0], left, right):
        rule = Unsolved(
            f"the log-density is not smooth in {_names(integral)}: an absolute value or a maximum "
            "stands in it",
            "Write it with a smooth density (a Student-t, or a scale mixture of normals), or use "
            "ep.EM(ep.MonteCarlo()) or ep.nuts.",
        )
        return replace(integral, rule=rule, why=rule.why), data
    return replace(integral, rule=Laplace(), why="neither quadratic nor conjugate"), data


def _laid_out(model, points, group, marks, sites) -> tuple[Integral, IntegralData]:
    """The layout with the most series that the factors allow."""
    frames = [{(f[0], f[1]) for f in sites[s].frames} for s in group]
    common = sorted(frozenset.intersection(*map(frozenset, frames)), key=lambda f: f[1])
    touched = {key for s in group for key, m in marks[s].items() if m}
    terms = tuple(dict.fromkeys(t for t, _ in touched))
    for plates in (common, []):
        block = _block(group, plates, sites)
        integral = Integral(
            block, tuple(sorted(terms)), frozenset(touched), tuple(p for p, _ in plates), False,
            _branches(model, terms), False, None,
        )  # fmt: skip
        data = _data(integral, {s: bijection(sites[s].support) for s in group}, sites)
        cells = _cells(model, points[0], integral, data)
        if cells is not None:
            integral = replace(integral, gathered=bool(cells))
            return integral, data._replace(cells=cells)
    raise AssertionError("one series takes every cell")


def _block(group, plates, sites) -> Block:
    slots = []
    length = 0
    for name in group:
        site = sites[name]
        shape = tuple(bijection(site.support).inverse_shape(site.shape))
        batch = len(site.shape) - site.event_dim
        axes = tuple(batch + dim for _, dim in plates)
        slots.append(Slot(name, shape, axes, site.scan is not None))
        length = max(length, site.length)
    series = tuple(slots[0].shape[a] for a in slots[0].axes)
    return Block(tuple(slots), series, length)


def _data(integral: Integral, transforms: Mapping, sites) -> IntegralData:
    values = {}
    for slot in integral.block.slots:
        site = sites[slot.site]
        u = jnp.broadcast_to(transforms[slot.site].inv(jnp.asarray(site.middle, float)), slot.shape)
        values[slot.site] = jnp.broadcast_to(u, (site.length, *slot.shape)) if slot.timed else u
    centre = integral.block.pack(values)
    return IntegralData(centre, jnp.ones_like(centre), {}, dict(transforms))


def _with_lag(integral, data, lag: int, sites) -> tuple[Integral, IntegralData]:
    if lag == integral.block.lag:
        return integral, data
    integral = replace(integral, block=replace(integral.block, lag=lag))
    fresh = _data(integral, data.transforms, sites)
    return integral, fresh._replace(cells=data.cells)


def _branches(model: LatentModel, terms: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Discrete variables along which some entered factor varies."""
    out, tables = _static(model, terms)
    found = []
    for v in out.variables.values():
        if any(len(t.shape) >= -v.dim and t.shape[v.dim] > 1 for t in tables.values()):
            found.append((v.name, v.size))
    return tuple(found)


def _static(model: LatentModel, terms: Sequence[str]):
    """Specs and shapes of some factors' tables, nothing computed."""
    seen: list = []

    def tables(model: LatentModel, held: Mapping) -> dict[str, Array]:
        initial = {k: jnp.asarray(v) for k, v in model.notes.value.initial.items()}
        out = model.evaluate(initial, held)
        seen[:] = [out]
        return {k: log_factor(out.terms[k], out.specs[k]) for k in terms}

    shapes = jax.eval_shape(tables, model, dict(model.data.held))
    return seen[0], shapes


def _names(integral: Integral) -> str:
    return ", ".join(map(repr, integral.sites))


def _tangled(model: LatentModel, integral: Integral) -> Unsolved | None:
    """Discrete latents must stand in the plates of the series, or be global."""
    if not integral.branches:
        return None
    out, _ = _static(model, ())
    slots = {s.previous for c in out.chains.values() for s in c.slots}
    for name, _ in integral.branches:
        v = out.variables[name]
        deeper = v.plates - set(integral.plates)
        chain = v.dim in slots or any(out.plates[p].is_time for p in v.plates)
        if deeper or chain or integral.gathered or integral.block.is_chain:
            return Unsolved(
                f"latents {_names(integral)} and the discrete latent '{v.site}' meet in a factor, "
                f"and '{v.site}' has more than one value for each element: the exact sum has a "
                "branch for every combination",
                "Use ep.EM(ep.MonteCarlo()) or ep.EM(ep.Particle()), which draw the one and sum "
                "the other out, or ep.nuts.",
            )
    return None


# -- which series a cell belongs to -------------------------------------------------------------


def _cells(model, params, integral: Integral, data: IntegralData) -> dict[str, Array] | None:
    """By term, the series of each cell; {} if the plates say it; None if a cell has several."""
    if integral.block.num_series == 1:
        return {}
    probe = _attached(model, [integral], [data])
    looks = [
        jax.tree.map(np.asarray, _slopes(probe, dict(params), scale * _random(integral, seed)))
        for seed, scale in enumerate(SCALES)
    ]
    out, _ = _static(model, ())
    found, plated = {}, True
    for name in looks[0]:
        moved, number = _numbers([look[name] for look in looks])
        index = np.rint(number).astype(int)
        if np.abs(number - index).max(initial=0.0) > 1e-5:
            return None
        if index.min(initial=0) < 0 or index.max(initial=0) >= integral.block.num_series:
            return None
        expected = _by_plates(integral, out, name, moved.shape)
        if expected is None or (index != expected)[moved].any():
            plated = False
        found[name] = jnp.asarray(index)
    return {} if plated else found


def _numbers(looks: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Which cells move with the latents, and the number of the series that moves each.

    A slope that is small beside the others may be rounding, or that of an exponential that has
    decayed there: such a cell takes its number from a look where it is not small, if there is one.
    """
    shape = looks[0][0].shape
    moved, number = np.zeros(shape, bool), np.zeros(shape)
    for least in (1e-12, 0.0):
        for plain, coded in looks:
            size = np.abs(plain).max(initial=0.0, where=np.isfinite(plain))
            fresh = np.isfinite(plain) & np.isfinite(coded) & ~moved
            fresh &= np.abs(plain) > max(least * size, 1e-250)
            number = np.where(fresh, coded / np.where(fresh, plain, 1.0) - 1.0, number)
            moved |= fresh
    return moved, number


def _by_plates(integral: Integral, out, name: str, shape) -> np.ndarray | None:
    """The series of each cell, if the cells stand in the plates of the series."""
    if not set(integral.plates) <= out.specs[name].plates:
        return None
    numbers = np.arange(integral.block.num_series).reshape(integral.block.series)
    full = [1] * len(shape)
    for axis, p in enumerate(integral.plates):
        full[out.plates[p].dim] = integral.block.series[axis]
    dims = [out.plates[p].dim for p in integral.plates]
    order = np.argsort(dims)
    return np.broadcast_to(numbers.transpose(order).reshape(full), shape)


def _random(integral: Integral, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=integral.block.shape))


@jax.jit
def _slopes(model: LatentModel, params: Mapping, z: Array) -> dict[str, tuple[Array, Array]]:
    """Derivatives of every entered factor: along one direction, and along the same numbered."""
    integral, data = model.structure.integrals[0], model.data.integrals[0]

    def tables(z: Array) -> dict[str, Array]:
        out = model.evaluate(params, values_of(integral, data, z))
        return {k: log_factor(out.terms[k], out.specs[k]) for k in integral.terms}

    direction = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1.5, z.shape[1:]))
    number = 1.0 + jnp.arange(z.shape[0])[:, None, None]
    _, push = jax.linearize(tables, z)
    plain = push(jnp.broadcast_to(direction, z.shape))
    coded = push(number * direction)
    return {k: (plain[k], coded[k]) for k in plain}


# -- derivatives --------------------------------------------------------------------------------


def _joint(model: LatentModel, params: Mapping, z: Array) -> Array:
    """The log-density of everything, the discrete latents summed out."""
    integral, data = model.structure.integrals[0], model.data.integrals[0]
    out = model.evaluate(params, values_of(integral, data, z))
    return log_partition(factors(out), layout(out)) + log_jacobian(integral, data, z).sum()


_joint_gradient = jax.jit(jax.grad(_joint, 2))


def _lag(model, points, integral: Integral, data: IntegralData) -> int:
    """How many steps of a scan are tied to one another; all of them if more than a third is."""
    steps = integral.block.num_positions
    if steps == 1:
        return 1
    probe = _attached(model, [integral], [data])
    z, reach = _random(integral, 3), 1
    for t in dict.fromkeys((0, steps // 2, steps - 1)):
        move = jnp.zeros(integral.block.shape).at[:, t].set(_random(integral, 4)[:, t])
        answer = np.abs(np.asarray(curved(probe, dict(points[0]), z, move))).max((0, 2))
        tied = np.flatnonzero(answer)
        reach = max(reach, *np.abs(tied - t))
    return steps if reach > steps // 3 else int(reach)


def _too_wide(integral: Integral) -> Unsolved | None:
    width = integral.block.width
    if width <= MAX_WIDTH:
        return None
    if integral.block.lag > 1:
        return Unsolved(
            f"latents {_names(integral)}: steps far apart meet in one factor, {width} coordinates "
            "in all",
            "Carry the state itself (centred: z_t ~ Normal(f(z_{t-1}), q)), not a function of all "
            "noises; or use ep.EM(ep.MonteCarlo()) or ep.nuts.",
        )
    return Unsolved(
        f"latents {_names(integral)}: {width} coordinates hang together without a plate or a scan "
        f"that separates them, and up to {MAX_WIDTH} are integrated as one block",
        "Put the latents in the plate whose elements are independent, or use "
        "ep.EM(ep.MonteCarlo()) or ep.nuts.",
    )


def _with_real(model, points, integral: Integral, data: IntegralData, slope) -> IntegralData:
    """Mark the coordinates that no factor sees: padding and masked latents."""
    probe = _attached(model, [integral], [data])
    seen = [np.asarray(slope(probe, dict(points[0]), _random(integral, s))) for s in (5, 6)]
    real = jnp.asarray((seen[0] != 0) | (seen[1] != 0), float)
    return data._replace(real=real)


def _spread(integral: Integral) -> list[Array]:
    """Random points near zero and far from it, every coordinate on both sides.

    Where a log-density is flat at all of a few points, such as a step between them, it looks
    quadratic; where a kink is not between them, smooth.
    """
    side = jnp.sign(_random(integral, 7))
    sizes = [0.5 + jnp.abs(_random(integral, 8 + k)) for k in range(len(SPREAD))]
    return [scale * side * size for scale, size in zip(SPREAD, sizes, strict=True)]


def _is_quadratic(model, points, integral: Integral, data: IntegralData) -> bool:
    """Whether the gradient is linear."""
    probe = _attached(model, [integral], [data])
    first, *others = _spread(integral)
    for params in points:
        slope = np.asarray(gradient(probe, dict(params), first))
        for z in others:
            there = np.asarray(gradient(probe, dict(params), z))
            here = np.asarray(curved(probe, dict(params), first, z - first))
            size = np.abs(here).max() + np.abs(slope).max()
            if not np.abs(there - slope - here).max() <= EXACT * size:
                return False
    return True


# -- conjugacy ----------------------------------------------------------------------------------


def _conjugate(model, points, integral: Integral, data, sites) -> tuple | None:
    """The integral with a conjugate rule, or None."""
    slot = integral.block.slots[0]
    if len(integral.block.slots) > 1 or integral.block.is_chain or slot.timed:
        return None
    shape = tuple(sites[slot.site].shape)
    block = replace(integral.block, slots=(slot._replace(shape=shape),))
    plain = {slot.site: bijection(_real())}
    changed = replace(integral, block=block)
    middle = jnp.ones(block.shape)
    arrays = IntegralData(middle, middle, data.cells, plain)
    probe = _attached(model, [changed], [arrays])
    for kernel in candidates(sites[slot.site].support, block.width):
        errors = [float(_misfit(probe, dict(p), kernel)) for p in points]
        if max(errors) <= EXACT:
            why = f"the posterior is a {kernel.name}"
            return replace(changed, rule=Conjugate(kernel), why=why), arrays
    return None


def _real() -> Any:
    from numpyro.distributions import constraints

    return constraints.real


@partial(jax.jit, static_argnames="kernel")
def _misfit(model: LatentModel, params: Mapping, kernel: Kernel) -> Array:
    """Relative error of a family's prediction at two further points."""
    integral = model.structure.integrals[0]
    f = field(model, params, 0)
    points = kernel.atoms(integral.block.width)
    rng = np.random.default_rng(9)
    mix = rng.dirichlet(np.ones(len(points)), 2)
    both = np.concatenate([points, mix @ points])
    values = jax.vmap(lambda x: f(jnp.broadcast_to(x, integral.shape)))(jnp.asarray(both))
    inverse = jnp.asarray(np.linalg.inv(design(kernel, points)))
    coefficients = jnp.einsum("pa,abs->pbs", inverse, values[: len(points)])
    rows = jnp.asarray(design(kernel, both[len(points) :]))
    predicted = jnp.einsum("ap,pbs->abs", rows, coefficients)
    error = jnp.abs(predicted - values[len(points) :])
    return (error / (1.0 + jnp.abs(values).max(0))).max()
