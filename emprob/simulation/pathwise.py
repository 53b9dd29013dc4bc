"""log Z by importance sampling as a smooth function of the parameters.

The draws are those of the Gaussian around the mode, which moves with the parameters while the
random numbers stay: then the derivatives of log Z follow the posterior instead of being told from
draws of it, and their noise comes only from what is not Gaussian. The observed information of a
long chain is known from hundreds of draws, where Louis' identity takes a hundred thousand.

Source: Durbin and Koopman (1997), Biometrika 84(3); Kristensen et al. (2016), JSS 70(5), for exact
derivatives through the mode.
"""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from emprob import chart
from emprob.curvature import (
    UncertaintyReport,
    as_arrays,
    coordinates_of,
    flatten,
    in_double,
    report_of,
    unflatten,
)
from emprob.estep.conjugate import Conjugate
from emprob.integral.expectation import Problem, problem, rest_factors
from emprob.model import LatentModel, layout
from emprob.partition.plates import log_partition
from emprob.simulation.draws import over_atoms
from emprob.simulation.gaussian import mirrored, near

BATCHES = 8
PER_BATCH = 128  # draws, each with its mirror image
LEAST = 8
COORDINATES = 100_000  # of all draws of a batch, over all branches: time


def draws_per_batch(model: LatentModel) -> int:
    """Fewer draws of more latents: their sum is known the better."""
    size = sum(g.num_branches * prod(g.shape) for g in model.structure.integrals)
    return max(LEAST, min(PER_BATCH, COORDINATES // size))


def log_weights(p: Problem, noise: Array) -> Array:
    """log(density / Gaussian) at draws and their mirror images, differentiable, (num, 2, B, S).

    Args:
        p: the integral.
        noise: (num, B, S, T, D).
    """
    g = near(p)
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


@partial(jax.jit, static_argnames="num")
def curves(model: LatentModel, coordinates: Mapping, key: Array, num: int) -> Curves:
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
        num: draws in each of 8 batches, each with its mirror image.
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
