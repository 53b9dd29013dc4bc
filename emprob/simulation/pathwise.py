"""log Z by importance sampling as a smooth function of the parameters.

The draws are those of the Gaussian around the mean, which moves with the parameters while the
random numbers stay: then the derivatives of log Z follow the posterior instead of being told from
draws of it, and their noise comes only from what is not Gaussian. The observed information of a
long chain is known from hundreds of draws, where Louis' identity takes a hundred thousand.

Source: Durbin and Koopman (1997), Biometrika 84(3); Kristensen et al. (2016), JSS 70(5), for exact
derivatives through the mode.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from emprob import chart
from emprob.coordinates import as_arrays, coordinates_of, flatten, in_double, unflatten
from emprob.curvature import report_of
from emprob.estep.conjugate import Conjugate
from emprob.hurried import Hurried
from emprob.integral.expectation import Problem, problem, rest_factors
from emprob.model import LatentModel, layout
from emprob.partition.plates import log_partition
from emprob.report import UncertaintyReport
from emprob.simulation.draws import over_atoms
from emprob.simulation.gaussian import around_mean, mirrored

BATCHES = 8
MANY_BATCHES = 32  # where their number costs nothing: an error told by eight is itself uncertain
PER_BATCH = 128  # draws, each with its mirror image
LEAST = 8
FEW = 1_200_000  # coordinates of all draws, for which the code is compiled in a hurry
COORDINATES = 100_000  # of all draws of a batch, over all branches: time
ALL_COORDINATES = 7_200_000  # of all batches, where no sum is done anew for one that is left out


def draws_per_batch(model: LatentModel) -> int:
    """Fewer draws of more latents: their sum is known the better.

    Of one long series it is not, as a weight is that of the whole path: there they are as many as
    time allows.
    """
    size = sum(g.num_branches * prod(g.shape) for g in model.structure.integrals)
    if is_one_series(model):
        return max(LEAST, min(PER_BATCH, ALL_COORDINATES // MANY_BATCHES // size))
    return max(LEAST, min(PER_BATCH, COORDINATES // size))


def is_one_series(model: LatentModel) -> bool:
    """Whether Z is a mean of weights: one integral, of one series without branches."""
    groups = model.structure.integrals
    return len(groups) == 1 and not groups[0].branches and groups[0].block.num_series == 1


def log_weights(p: Problem, noise: Array) -> Array:
    """log(density / Gaussian) at draws and their mirror images, differentiable, (num, 2, B, S).

    Args:
        p: the integral.
        noise: (num, B, S, T, D).
    """
    g = around_mean(p)
    return over_atoms(jax.checkpoint(lambda e: mirrored(g, p.f, e)[1]), noise)


def log_z(model: LatentModel, params: Mapping, noises: list[Array], counts: Array) -> Array:
    """log Z by importance sampling.

    Args:
        model: with plain integrals.
        params: constrained space.
        noises: of each integral, (G, num, B, S, T, D).
        counts: (G,), how often each batch counts.
    """
    tables = []
    for i, noise in enumerate(noises):
        p = problem(model, params, i)
        if isinstance(p.integral.rule, Conjugate):
            tables.append(p.integral.rule.log_integral(p))
            continue
        batches, num = noise.shape[:2]
        logs = log_weights(p, noise.reshape(-1, *noise.shape[2:]))
        logs = logs.reshape(batches, 2 * num, *logs.shape[2:])
        weight = counts[:, None, None, None]
        total = jax.nn.logsumexp(logs, (0, 1), b=jnp.broadcast_to(weight, logs.shape))
        tables.append(total - jnp.log(2 * num * counts.sum()))
    out = model.evaluate(params)
    return log_partition(rest_factors(model, out, tables), layout(out))


class Curves(NamedTuple):
    """log Z, score (F,) and Hessian (F, F) of log Z + log prior."""

    value: Any
    score: Any
    hessian: Any


def num_batches(model: LatentModel) -> int:
    """Independent batches, whose spread tells the Monte Carlo error."""
    return MANY_BATCHES if is_one_series(model) else BATCHES


def curves(model: LatentModel, coordinates: Mapping, key: Array, num: int) -> Curves:
    """With all batches, and without each of them; first axis 1 + their number."""
    if not is_one_series(model):
        return _curves(model, coordinates, key, num)
    each, prior = jax.tree.map(np.asarray, _curves_by_batch(model, coordinates, key, num))
    counts = np.concatenate([np.ones((1, MANY_BATCHES)), 1.0 - np.eye(MANY_BATCHES)])
    return jax.tree.map(lambda *x: np.stack(x), *[_joined(each, prior, c) for c in counts])


def _joined(each: Curves, prior: Curves, counts: np.ndarray) -> Curves:
    """Derivatives of log(mean of Z over batches) + log prior from those of every batch's log Z."""
    with np.errstate(divide="ignore"):
        logs = each.value + np.log(counts)
    share = np.exp(logs - logs.max())
    value = logs.max() + np.log(share.sum() / counts.sum())
    share = share / share.sum()
    score = share @ each.score
    square = np.einsum("g,gi,gj->ij", share, each.score, each.score)
    hessian = np.tensordot(share, each.hessian, 1) + square - np.outer(score, score)
    return Curves(value, score + prior.score, hessian + prior.hessian)


def _by_batch(
    model: LatentModel, coordinates: Mapping, key: Array, num: int
) -> tuple[Curves, Curves]:
    """Of log Z by each batch alone, first axis MANY_BATCHES; and of log prior."""
    point = flatten(model, coordinates)
    shape = model.structure.integrals[0].shape

    def params(flat: Array) -> dict[str, Array]:
        w = unflatten(model, flat, coordinates)
        return chart.from_coordinates(model.data.transforms, w)

    def curved(f: Callable) -> Curves:
        (value, score), push = jax.linearize(jax.value_and_grad(f), point)
        return Curves(value, score, lax.map(lambda e: push(e)[1], jnp.eye(point.size)))

    def batch(key: Array) -> Curves:
        noise = jax.random.normal(key, (1, num, *shape))
        return curved(lambda flat: log_z(model, params(flat), [noise], jnp.ones(1)))

    prior = curved(lambda flat: jnp.asarray(model.log_prior(params(flat)), point.dtype))
    return lax.map(batch, jax.random.split(key, MANY_BATCHES)), prior


def _are_few(model: LatentModel, coordinates: Mapping, key: Array, num: int) -> bool:
    return MANY_BATCHES * num * prod(model.structure.integrals[0].shape) <= FEW


_curves_by_batch = Hurried(_by_batch, _are_few, static_argnums=3)


@partial(jax.jit, static_argnames="num")
def _curves(model: LatentModel, coordinates: Mapping, key: Array, num: int) -> Curves:
    """With all batches, and without each of them; first axis 1 + BATCHES."""
    point = flatten(model, coordinates)
    keys = jax.random.split(key, len(model.structure.integrals))
    noises = [
        jax.random.normal(k, (BATCHES, num, *g.shape))
        for k, g in zip(keys, model.structure.integrals, strict=True)
    ]

    def objective(flat: Array, counts: Array) -> tuple[Array, Array]:
        w = unflatten(model, flat, coordinates)
        params = chart.from_coordinates(model.data.transforms, w)
        value = log_z(model, params, noises, counts)
        return value + model.log_prior(params), value

    def one(counts: Array) -> Curves:
        slope = jax.grad(objective, has_aux=True)
        score, push, value = jax.linearize(lambda x: slope(x, counts), point, has_aux=True)
        return Curves(value, score, lax.map(push, jnp.eye(point.size)))

    counts = jnp.concatenate([jnp.ones((1, BATCHES)), 1.0 - jnp.eye(BATCHES)])
    return lax.map(one, counts)


def pathwise(
    model: LatentModel, params: Mapping[str, Any], key: Array, num: int
) -> tuple[UncertaintyReport, float]:
    """The observed information at `params` from the simulated likelihood, and log Z.

    Args:
        model: with plain integrals, every integral solved.
        params: by site, constrained.
        key: of the random numbers.
        num: draws in each batch, each with its mirror image.
    """
    with jax.enable_x64(True):
        model, values = in_double(model), as_arrays(params)
        w = coordinates_of(model, values)
        found = jax.tree.map(np.asarray, curves(model, w, key, num))
        full, rest = (Curves(*(x[i] for x in found)) for i in (0, slice(1, None)))
        report = report_of(
            model, values, w, full.score, -full.hessian, (rest.score, -rest.hessian)
        )  # fmt: skip
        return report, float(full.value)
