"""A linear-Gaussian chain whose steps are all alike: visit the data once, then work on moments.

With v = (z_{t-1}, z_t, x_t), x_t the inputs of step t, the factors of a step are one quadratic,
c + g'v + v'Hv / 2, the same at every step with the same missing cells. Derivatives of the program
at a series of one step give it. The E-step is then a recursion over constant blocks, and all that
the M-step needs are the moments of v summed over steps: a few atoms with these moments, each the
program at one step, stand for the whole series, however long it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob.dependence import dependence
from emprob.evaluation import Evaluation, Plate
from emprob.integral.integral import Integral, cell_sums, field
from emprob.model import LatentModel, log_factor
from emprob.partition import gaussian_chain

MAX_PATTERNS = 64  # of missing cells
EXACT = 1e-9


@dataclass(frozen=True)
class Steady:
    """The static side.

    Attributes:
        leaves: which of the program's arrays are inputs of the steps.
        shapes: of each at one step.
    """

    leaves: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]

    def log_integral(self, model: LatentModel, params: Mapping, index: int) -> Array:
        """The log-integral, (1, 1), differentiable in the parameters."""
        integral, data = model.structure.integrals[index], model.data.integrals[index].steady
        constant, diag, below, h = _chain(integral, data, quadratic(model, params, index))
        return (constant + gaussian_chain.log_integral(diag, below, h)).reshape(1, 1)

    def solve(self, model: LatentModel, params: Mapping, index: int) -> tuple[Array, "Atoms"]:
        """The log-integral (1, 1) and the atoms."""
        integral, data = model.structure.integrals[index], model.data.integrals[index].steady
        constant, diag, below, h = _chain(integral, data, quadratic(model, params, index))
        total, moments = gaussian_chain.integrate(diag, below, h)
        return (constant + total).reshape(1, 1), _atoms(model, integral, data, moments)

    def single(self, integral: Integral) -> Integral:
        """The integral over one step."""
        return integral

    def one_step(self, plates: Mapping[str, Plate]) -> dict[str, Plate]:
        """The plates of a series of one step."""
        return {k: replace(p, size=1) if p.is_time else p for k, p in plates.items()}


class SteadyData(NamedTuple):
    """The arrays.

    Attributes:
        inputs: (T, P), missing cells zero.
        pattern: (T,), which pattern of missing cells a step has.
        seen: (M, P), of each pattern.
        counts: (M,), number of its steps.
        middle: (P,), a point near the inputs.
    """

    inputs: Array
    pattern: Array
    seen: Array
    counts: Array
    middle: Array


class Quadratic(NamedTuple):
    """The factors of a step around v0, by pattern: (M,), (M, V), (M, V, V); and those of the start.

    Attributes:
        value, slope, curve: of a step.
        first_value, first_slope, first_curve: of the first state alone: scalar, (D,), (D, D).
    """

    value: Array
    slope: Array
    curve: Array
    first_value: Array
    first_slope: Array
    first_curve: Array


# -- one step of the program --------------------------------------------------------------------


def is_timed(out: Evaluation, name: str) -> bool:
    """Whether a factor stands in the scan."""
    return out.specs[name].time is not None


def _array(number: int) -> str:
    """The key of one of the program's arrays among values by site."""
    return f"@{number}"


def at_step(integral: Integral, leaves: Sequence[Array], v: Array, seen: Array) -> dict:
    """Values of the latents, and of the program's arrays under `@number`, at one step.

    Args:
        integral: a steady one.
        leaves: the program's arrays.
        v: (V,).
        seen: (P,) bool; what is not seen becomes NaN.
    """
    width = integral.block.step_width
    one = replace(integral.block, length=1)
    values: dict[str, Array] = dict(one.unpack(v[: 2 * width].reshape(1, 2, width)))
    return values | placed(integral.steady, leaves, jnp.where(seen, v[2 * width :], jnp.nan))


def placed(alike: Any, leaves: Sequence[Array], inputs: Array) -> dict[str, Array]:
    """The inputs (P,) of one step or row as the program's arrays, under `@number`."""
    values, start = {}, 0
    for i, shape in zip(alike.leaves, alike.shapes, strict=True):
        size = int(np.prod(shape, dtype=int))
        values[_array(i)] = inputs[start : start + size].reshape(1, *shape).astype(leaves[i].dtype)
        start += size
    return values


def with_leaves(model: LatentModel, values: Mapping) -> tuple[LatentModel, dict[str, Array]]:
    """The model on the arrays among `values`, and the latents among them."""
    leaves = tuple(values.get(_array(i), x) for i, x in enumerate(model.data.leaves))
    latents = {k: v for k, v in values.items() if k in model.structure.continuous}
    return replace(model, data=replace(model.data, leaves=leaves)), latents


def _step(model: LatentModel, params: Mapping, index: int, v: Array, seen: Array):
    """Log-factors of one step, and of the first state alone, at v."""
    integral, data = model.structure.integrals[index], model.data.integrals[index]
    changed, latents = with_leaves(model, at_step(integral, model.data.leaves, v, seen))
    out = changed.evaluate(params, latents)
    sums = {True: jnp.zeros(()), False: jnp.zeros(())}
    for name in integral.terms:
        table = log_factor(out.terms[name], out.specs[name])
        part = cell_sums(integral, data.cells, out, name, table).sum()
        sums[is_timed(out, name)] = sums[is_timed(out, name)] + part
    return sums[True], sums[False]


def _middle(integral: Integral, data: SteadyData) -> Array:
    return jnp.concatenate([jnp.zeros(2 * integral.block.step_width), data.middle])


def derivatives(f: Callable[[Array], Array], x: Array) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian."""
    (value, slope), push = jax.linearize(jax.value_and_grad(f), x)
    return value, slope, jax.vmap(lambda e: push(e)[1])(jnp.eye(x.size, dtype=x.dtype))


def quadratic(model: LatentModel, params: Mapping, index: int) -> Quadratic:
    """The factors' values and derivatives around the middle, differentiable in the parameters."""
    integral, data = model.structure.integrals[index], model.data.integrals[index].steady
    width, v0 = integral.block.step_width, _middle(integral, data)

    steps = jax.vmap(
        lambda seen: derivatives(lambda v: _step(model, params, index, v, seen)[0], v0)
    )(data.seen)
    seen = data.seen[0]
    first = derivatives(
        lambda z: _step(model, params, index, v0.at[:width].set(z), seen)[1], v0[:width]
    )
    return Quadratic(*steps, *first)


# -- the chain ----------------------------------------------------------------------------------


def _chain(integral: Integral, data: SteadyData, q: Quadratic):
    """Constant, diag (T + 1, D, D), below (T, D, D) and h (T + 1, D) of the posterior."""
    d = integral.block.step_width
    x = (data.inputs - data.middle) * data.seen[data.pattern]
    curve, slope = q.curve[data.pattern], q.slope[data.pattern]
    pull = jnp.einsum("tij,tj->ti", curve[:, : 2 * d, 2 * d :], x) + slope[:, : 2 * d]
    diag = jnp.zeros((len(x) + 1, d, d), x.dtype)
    diag = diag.at[0].add(-q.first_curve)
    diag = diag.at[:-1].add(-curve[:, :d, :d]).at[1:].add(-curve[:, d : 2 * d, d : 2 * d])
    h = jnp.zeros((len(x) + 1, d), x.dtype).at[0].add(q.first_slope)
    h = h.at[:-1].add(pull[:, :d]).at[1:].add(pull[:, d:])
    own = jnp.einsum("ti,tij,tj->t", x, curve[:, 2 * d :, 2 * d :], x)
    constant = q.value[data.pattern].sum() + (slope[:, 2 * d :] * x).sum() + 0.5 * own.sum()
    return constant + q.first_value, diag, -curve[:, d : 2 * d, :d], h


class Atoms(NamedTuple):
    """What stands for the series: values (A, ...) and the weight of each kind of factor (A,).

    Attributes:
        values: by latent, and by number of an array of the program.
        steps: weight on the factors of the scan.
        start: weight on those of the first state alone.
    """

    values: dict
    steps: Array
    start: Array


def _atoms(model: LatentModel, integral: Integral, data: SteadyData, moments) -> Atoms:
    d, count = integral.block.step_width, len(data.seen)
    x = jnp.where(data.seen[data.pattern], data.inputs, data.middle)
    v = jnp.concatenate([moments.means[:-1], moments.means[1:], x], 1)  # (T, V)
    kinds, sizes = jax.nn.one_hot(data.pattern, count, dtype=v.dtype), data.counts
    mean = kinds.T @ v / sizes[:, None]
    apart = v - mean[data.pattern]
    covariance = jnp.einsum("tm,ti,tj->mij", kinds, apart, apart)
    before = jnp.einsum("tm,tij->mij", kinds, moments.covariances[:-1])
    after = jnp.einsum("tm,tij->mij", kinds, moments.covariances[1:])
    cross = jnp.einsum("tm,tij->mij", kinds, moments.cross)
    covariance = covariance.at[:, :d, :d].add(before).at[:, d : 2 * d, d : 2 * d].add(after)
    covariance = covariance.at[:, :d, d : 2 * d].add(cross)
    covariance = covariance.at[:, d : 2 * d, :d].add(jnp.swapaxes(cross, 1, 2))
    covariance = covariance / sizes[:, None, None]
    steps = jax.vmap(cloud)(mean, covariance)  # (M, 2V, V)
    each = steps.shape[1]
    place = lambda v, seen: at_step(integral, model.data.leaves, v, seen)  # noqa: E731
    points = jax.vmap(lambda row, seen: jax.vmap(lambda v: place(v, seen))(row))(steps, data.seen)
    points = jax.tree.map(lambda a: a.reshape(count * each, *a.shape[2:]), points)
    first = cloud(moments.means[0], moments.covariances[0])
    first = jnp.concatenate([first, jnp.zeros((len(first), d)) + v[0, d : 2 * d],
                             jnp.zeros((len(first), x.shape[1])) + x[0]], 1)  # fmt: skip
    starts = jax.vmap(lambda v: place(v, data.seen[data.pattern[0]]))(first)
    values = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), points, starts)
    weight = jnp.repeat(sizes / each, each)
    none = jnp.zeros(count * each, v.dtype)
    return Atoms(
        values,
        jnp.concatenate([weight, jnp.zeros(len(first), v.dtype)]),
        jnp.concatenate([none, jnp.full(len(first), 1.0 / len(first), v.dtype)]),
    )


def cloud(mean: Array, covariance: Array) -> Array:
    """Equally weighted points (2V, V) with a mean and a covariance that may be singular."""
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance), 1e-300))
    values, axes = jnp.linalg.eigh(covariance / scale[:, None] / scale)
    root = scale[:, None] * axes * jnp.sqrt(jnp.maximum(values, 0.0) * len(mean))
    return jnp.concatenate([mean + root.T, mean - root.T])


def weights(
    model: LatentModel, index: int, atoms: Atoms, out: Evaluation, axes: Mapping
) -> dict[str, Array]:
    """The weight of every entered log-factor at the atoms.

    Args:
        model: a bound model.
        index: of the integral.
        atoms: that stand for the steps or rows.
        out: the program at the atoms, and
        axes: which of its arrays have them (`expectation.evaluate_at`).
    """
    integral, data = model.structure.integrals[index], model.data.integrals[index]
    naturals = {k: out.terms[k].natural for k in integral.terms}
    single = integral.steady.single(integral)

    def expected(naturals: dict[str, Array]) -> Array:
        total = jnp.zeros(())
        for name in integral.terms:
            share = atoms.steps if is_timed(out, name) else atoms.start

            def one(term, natural, weight, name=name):
                kept = term._replace(natural=natural)
                table = log_factor(kept, out.specs[name])
                return weight * cell_sums(single, data.cells, out, name, table).sum()

            each = jax.vmap(one, in_axes=(axes[name], axes[name].natural, 0))
            total = total + each(out.terms[name], naturals[name], share).sum()
        return total

    return jax.grad(expected)(naturals)


# -- is it steady? ------------------------------------------------------------------------------


def found(
    model: LatentModel, points: Sequence[Mapping], integral: Integral, data: Any
) -> tuple[Integral, Any]:
    """The integral with its steps' common quadratic, if they have one; else as it is."""
    block = integral.block
    widths = {sum(s.width for s in block.slots if s.timed is t) for t in (False, True)}
    plain = (
        integral.quadratic and block.is_chain and block.lag == 1 and block.num_series == 1
        and len(widths) == 1 and not integral.branches and not integral.gathered
        and bool(jnp.all(data.real == 1)) and block.length > 8
        and not set(model.structure.params) & model.structure.timed
    )  # fmt: skip
    if not plain:
        return integral, data
    leaves = [np.asarray(x) for x in model.data.leaves]
    inputs = [i for i, x in enumerate(leaves) if x.ndim and len(x) == block.length]
    if any(leaves[i].dtype.kind != "f" for i in inputs):
        return integral, data
    steady = Steady(tuple(inputs), tuple(leaves[i].shape[1:] for i in inputs))
    rows = [leaves[i].reshape(block.length, -1) for i in inputs]
    arrays = _data(np.concatenate([*rows, np.zeros((block.length, 0))], 1))
    if arrays is None:
        return integral, data
    moving = integral.moving | moving_with(model, points[0], steady, integral)
    changed = replace(integral, steady=steady, moving=moving)
    more = data._replace(steady=arrays)
    try:
        good = all(_agrees(model, dict(p), changed, more) for p in points)
    except Exception:  # a program that needs to know how long its series is
        good = False
    return (changed, more) if good else (integral, data)


def moving_with(
    model: LatentModel, params: Mapping, steady: Any, integral: Integral
) -> frozenset[tuple[str, str]]:
    """Which arrays of which entered factors depend on the inputs."""

    def arrays(inputs: dict[str, Array]) -> dict:
        out = with_leaves(model, inputs)[0].evaluate(dict(params))
        return {k: out.terms[k]._asdict() for k in integral.terms}

    inputs = {_array(i): model.data.leaves[i] for i in steady.leaves}
    closed, shapes = jax.make_jaxpr(arrays, return_shape=True)(inputs)
    flat = dependence(closed.jaxpr, [True] * len(inputs))
    marks = jax.tree.unflatten(jax.tree.structure(shapes), flat)
    return frozenset((t, part) for t, parts in marks.items() for part, m in named(parts) if m)


def named(parts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The arrays of a term by name, those of its arguments as `arguments.loc`."""
    plain = [(k, v) for k, v in parts.items() if k != "arguments"]
    return plain + [(f"arguments.{k}", v) for k, v in parts["arguments"].items()]


def _data(x: np.ndarray) -> SteadyData | None:
    seen = ~np.isnan(x)
    patterns, index, counts = np.unique(seen, axis=0, return_inverse=True, return_counts=True)
    if len(patterns) > MAX_PATTERNS:
        return None
    filled = np.where(seen, x, 0.0)
    middle = filled.sum(0) / np.maximum(seen.sum(0), 1)
    parts = (filled, index.reshape(-1), patterns, counts.astype(float), middle)
    return SteadyData(*map(jnp.asarray, parts))


def _agrees(model: LatentModel, params: Mapping, integral: Integral, data: Any) -> bool:
    """Whether the common quadratic is the log-density of the whole series, at a random path."""
    structure = replace(model.structure, integrals=(integral,))
    probe = replace(model, structure=structure, data=replace(model.data, integrals=(data,)))
    rng = np.random.default_rng(11)
    z = jnp.asarray(rng.normal(size=integral.block.shape))
    both = _both(probe, params, z, jnp.asarray(rng.normal(size=z.shape)))
    gaps = [np.abs(a - b).max() / (1.0 + np.abs(b).max()) for a, b in both]
    return bool(np.isfinite(gaps).all() and max(gaps) < EXACT)


@jax.jit
def _both(model: LatentModel, params: Mapping, z: Array, move: Array) -> list:
    """Value, gradient and curvature along a direction of the quadratic and of the program."""
    integral, data = model.structure.integrals[0], model.data.integrals[0].steady
    constant, diag, below, h = _chain(integral, data, quadratic(model, params, 0))
    plain = field(model, params, 0)

    def form(z: Array) -> Array:
        z = z[0]
        here = jnp.einsum("ti,tij,tj->", z, diag, z)
        links = jnp.einsum("ti,tij,tj->", z[1:], below, z[:-1])
        return constant + (h * z).sum() - 0.5 * here - links

    def whole(z: Array) -> Array:
        return plain(z[None])[0, 0]

    pairs = []
    for f in (form, whole):
        value, slope = jax.value_and_grad(f)(z)
        pairs.append((value, slope, jax.jvp(jax.grad(f), (z,), (move,))[1]))
    return list(zip(*pairs, strict=True))
