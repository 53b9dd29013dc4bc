"""What is known of continuous latents: means, covariances, draws; also without the future."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.integral import quadrature
from emprob.integral.block import Slot
from emprob.integral.expectation import Problem, Solution, problem, rest_factors, solve
from emprob.integral.integral import Integral, cell_sums, log_jacobian, values_of
from emprob.model import LatentModel, layout, log_factor
from emprob.partition import gaussian_chain
from emprob.partition.plates import log_partition
from emprob.partition.reduce import Reduce, log_sum_exp
from emprob.types import Params


class Moments(NamedTuple):
    """Of one site; E is the size of its event.

    Attributes:
        mean, variance: shaped as the site.
        covariance: within an event, (..., E, E).
        pairwise: cov(z_{t-1}, z_t), (T - 1, ..., E, E) of a chain, else None.
    """

    mean: Array
    variance: Array
    covariance: Array
    pairwise: Array | None


def branch_probabilities(
    model: LatentModel, params: Params, tables: list[Array], reduce: Reduce = log_sum_exp
) -> list[Array]:
    """For each integral, the posterior of its branches (B, S): a gradient of log Z."""
    out = model.evaluate(params)

    def total(tables: list[Array]) -> Array:
        return log_partition(rest_factors(model, out, tables), layout(out), reduce)

    return jax.grad(total)(tables)


@partial(jax.jit, static_argnames="index")
def moments(model: LatentModel, params: Params, index: int) -> dict[str, Moments]:
    """Of every site of one integral."""
    integral, data = model.structure.integrals[index], model.data.integrals[index]
    count = len(model.structure.integrals)
    solutions = [solve(model, params, i) for i in range(count)]
    branch = branch_probabilities(model, params, [s.value for s in solutions])[index]
    return _moments(integral, data, solutions[index], branch)


def _moments(integral: Integral, data, solution: Solution, branch: Array) -> dict[str, Moments]:
    a, b, *shape = solution.atoms.shape
    points = jax.vmap(lambda z: values_of(integral, data, z))(solution.atoms.reshape(a * b, *shape))
    share = (solution.weights * branch).reshape(a * b, -1)
    found = {}
    for slot in integral.block.slots:
        weights = _along_series(slot, integral, share, points[slot.site].ndim - 1)
        found[slot.site] = _site_moments(points[slot.site], weights, slot, integral)
    return found


def _along_series(slot: Slot, integral: Integral, share: Array, ndim: int) -> Array:
    """(A, S) -> (A, ...), to be multiplied with values of a site."""
    full = [1] * ndim
    for n, axis in zip(integral.block.series, slot.axes, strict=True):
        full[axis + slot.timed] = n
    order = sorted(range(len(slot.axes)), key=lambda i: slot.axes[i])
    share = share.reshape(len(share), *integral.block.series)
    return share.transpose(0, *(i + 1 for i in order)).reshape(len(share), *full)


def _site_moments(values: Array, weights: Array, slot: Slot, integral: Integral) -> Moments:
    mean = (weights * values).sum(0)
    apart = values - mean
    variance = (weights * apart**2).sum(0)
    rank = values.ndim - 1
    last = rank - 1
    plated = [axis + slot.timed for axis in slot.axes] + ([0] if slot.timed else [])
    if last in plated or rank == 0:  # a scalar event
        apart, weights = apart[..., None], weights[..., None]
    one = jnp.broadcast_to(weights[..., :1], (*apart.shape[:-1], 1))[..., None]
    covariance = (one * apart[..., :, None] * apart[..., None, :]).sum(0)
    pairwise = None
    if slot.timed and integral.block.is_chain:
        before, after = apart[:, :-1, ..., :, None], apart[:, 1:, ..., None, :]
        pairwise = (one[:, 1:] * before * after).sum(0)
    return Moments(mean, variance, covariance, pairwise)


# -- draws --------------------------------------------------------------------------------------


def draw(p: Problem, solution: Solution, branch: Array, key: Array) -> Array:
    """A draw of the coordinates (S, T, D), the branches given one-hot (B, S)."""
    drawn = p.integral.rule.draw(p, solution, key)
    return (branch[:, :, None, None] * drawn).sum(0)


def gaussian_draw(around: quadrature.Around, key: Array) -> Array:
    """Exact draws of a Gaussian (B, S, T, D): the simulation smoother."""
    noise = jax.random.normal(key, around.z.shape, around.z.dtype)
    diag, below = around.precision
    each = jax.vmap(jax.vmap(gaussian_chain.draw))
    return around.z + each(diag, below, around.gradient, noise)


def atom_draw(solution: Solution, key: Array) -> Array:
    """Draws from positively weighted atoms (B, S, T, D)."""
    logs = jnp.log(jnp.maximum(solution.weights, 0.0))
    pick = jax.random.categorical(key, logs, axis=0)
    index = pick[None, :, :, None, None]
    return jnp.take_along_axis(solution.atoms, index, axis=0)[0]


@partial(jax.jit, static_argnames="num")
def draws(model: LatentModel, params: Params, key: Array, num: int) -> dict[str, Array]:
    """Joint draws of the continuous latents, by site (num, ...)."""
    from emprob.partition.reduce import Sampler

    count = len(model.structure.integrals)
    problems = [problem(model, params, i) for i in range(count)]
    solutions = [p.integral.rule.solve(p) for p in problems]
    tables = [s.value for s in solutions]

    def one(key: Array) -> dict[str, Array]:
        first, *keys = jax.random.split(key, count + 1)
        branches = branch_probabilities(model, params, tables, Sampler(first))
        found: dict[str, Array] = {}
        for i, k in enumerate(keys):
            z = draw(problems[i], solutions[i], branches[i], k)
            found |= values_of(problems[i].integral, model.data.integrals[i], z)
        return found

    return jax.lax.map(one, jax.random.split(key, num))


# -- without the future -------------------------------------------------------------------------


class Filtered(NamedTuple):
    """Means and variances of one site given the data up to t, and up to t - 1; (T, ...)."""

    mean: Array
    variance: Array
    predicted_mean: Array
    predicted_variance: Array


@partial(jax.jit, static_argnames="index")
def filtered(model: LatentModel, params: Params, index: int) -> dict[str, Filtered]:
    """Of every site of one chain. Exact for Gaussian chains; around the mode for Laplace's."""
    integral = model.structure.integrals[index]
    lag = integral.block.lag
    total: list[Array] | None = None
    for offset in range(lag):
        parts = _filtered_from(model, params, index, offset)
        total = parts if total is None else [t + p for t, p in zip(total, parts, strict=True)]
    assert total is not None
    sites = [_by_site(integral, x) for x in total]
    return {k: Filtered(*(s[k] for s in sites)) for k in integral.sites}


def _by_site(integral: Integral, steps: Array) -> dict[str, Array]:
    """(S, steps, step width) -> (T, ...) by site."""
    plain = replace(integral.block, lag=1)
    return plain.unpack(plain.grouped(steps))


def _filtered_from(model: LatentModel, params: Params, index: int, offset: int) -> list[Array]:
    """The filter at the last step of each position; zero at the others, (S, steps, step width)."""
    model = _shifted(model, index, offset)
    integral, data = model.structure.integrals[index], model.data.integrals[index]
    block = integral.block
    p = problem(model, params, index)
    around = integral.rule.around(p)
    z = quadrature.mode_of(around)[0]
    last = (jnp.arange(block.num_steps) + offset) % block.lag == block.lag - 1
    full = _potentials(model, params, index, z, data.real, jnp.ones(block.num_steps), 1.0)
    prior = _potentials(model, params, index, z, data.real, 1.0 - last, 1.0)
    out = jax.vmap(gaussian_chain.filter)(full, prior)
    diagonal = lambda c: jnp.diagonal(c, axis1=-2, axis2=-1)  # noqa: E731
    found = (
        z + out.means, diagonal(out.covariances),
        z + out.predicted_means, diagonal(out.predicted_covariances),
    )  # fmt: skip
    return [block.by_step(x) * last[None, :, None] for x in found]


def _shifted(model: LatentModel, index: int, offset: int) -> LatentModel:
    """The model with one chain's positions beginning elsewhere."""
    integral, data = model.structure.integrals[index], model.data.integrals[index]
    moved = replace(integral.block, offset=offset)
    regroup = lambda x: moved.grouped(integral.block.by_step(x))  # noqa: E731
    integrals, arrays = list(model.structure.integrals), list(model.data.integrals)
    integrals[index] = replace(integral, block=moved)
    arrays[index] = data._replace(centre=regroup(data.centre), real=regroup(data.real))
    return replace(
        model,
        structure=replace(model.structure, integrals=tuple(integrals)),
        data=replace(model.data, integrals=tuple(arrays)),
    )


def _potentials(model, params, index: int, z: Array, real: Array, seen: Array, own: float):
    """Factors by the position they stand in.

    Args:
        model: a bound model.
        params: constrained space.
        index: of the integral.
        z: (S, T, D), the point around which.
        real: (S, T, D).
        seen: (steps,), weight of the observations of each step.
        own: weight of the latents' own factors.
    """
    integral = model.structure.integrals[index]
    steps = jnp.arange(integral.block.num_steps)
    parity = ((steps + integral.block.offset) // integral.block.lag) % 2
    halves = []
    for c in (0, 1):
        here = (parity == c).astype(z.dtype)
        f = _weighted(model, params, index, own * here, seen * here)
        halves.append((quadrature.gradient(f, z[None])[0] * real,
                       quadrature.plain_precision(f, z[None], real[None])))  # fmt: skip
    number = (jnp.arange(z.shape[1]) % 2)[None, :, None]
    (g0, p0), (g1, p1) = halves
    choose = lambda a, b, n: jnp.where(n == 0, a, b)  # noqa: E731
    n4 = number[..., None]
    own_h, carried_h = choose(g0, g1, number), choose(g1, g0, number)[:, :-1]
    own_j, carried_j = choose(p0.diag[0], p1.diag[0], n4), choose(p1.diag[0], p0.diag[0], n4)
    below = choose(p1.below[0], p0.below[0], n4[:, :-1])
    own_j = own_j + jnp.eye(z.shape[-1]) * (1.0 - real)[..., None]
    return gaussian_chain.Potentials(own_j, below, carried_j[:, :-1], own_h, carried_h)


def _weighted(model, params, index: int, own: Array, seen: Array) -> quadrature.Field:
    """The log-density with a weight for each step's factors: the latents' own, and the others."""
    integral, data = model.structure.integrals[index], model.data.integrals[index]
    lead = integral.block.lead

    def at(z: Array) -> Array:
        out = model.evaluate(params, values_of(integral, data, z))
        total = log_jacobian(integral, data, z) * own.sum() / own.size
        for name in integral.terms:
            spec = out.specs[name]
            weight = own if spec.site in integral.sites else seen
            table = log_factor(out.terms[name], spec)
            if spec.time is None:
                weight = weight[0]
            else:
                dim = out.plates[spec.time].dim
                steps = weight[lead:]
                if table.shape[dim] == 1:
                    table = jnp.broadcast_to(table, _with(table.shape, dim, len(steps)))
                weight = steps.reshape(_with((1,) * table.ndim, dim, len(steps)))
            total = total + cell_sums(integral, data.cells, out, name, weight * table).reshape(-1)
        return total

    return lambda z: at(z[0])[None]


def _with(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    full = list(shape)
    full[dim] = size
    return tuple(full)
