"""Observed information from draws of the latents, by Louis' identity, with its Monte Carlo error.

With z drawn given the data, S the score and H the Hessian of log p(y, z | params) + log prior,

    score of the objective = E[S],    information = -E[H] - cov(S),

over draws that come in independent batches, each with its weight, whose spread says how well both
are known.

Source: Louis (1982), JRSS B 44(2).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from emprob import chart
from emprob.coordinates import as_arrays, coordinates_of, flatten, in_double, unflatten
from emprob.curvature import report_of
from emprob.report import UncertaintyReport
from emprob.simulation.draws import batch_weights, log_joint, over_atoms
from emprob.types import Atoms, Sample


class Batches(NamedTuple):
    """Of every batch of draws, over all F coordinates of the parameters.

    Attributes:
        score: (G, F), mean.
        square: (G, F, F), mean outer product of the scores.
        hessian: (G, F, F), mean.
        log_weights: (G, S), log of what they count, see `Sample`.
    """

    score: np.ndarray | Array
    square: np.ndarray | Array
    hessian: np.ndarray | Array
    log_weights: np.ndarray | Array


@jax.jit
def batch_moments(
    model: Any, coordinates: Mapping[str, Array], atoms: Atoms, log_weights: Array
) -> Batches:
    """Scores and Hessians by batch.

    Args:
        model: with plain integrals.
        coordinates: of the parameters, by site (see `chart.py`).
        atoms: by site, (G, draws, ...).
        log_weights: (G, S).
    """
    point = flatten(model, coordinates)

    joint = partial(_joint, model, coordinates)

    def one(z: Atoms) -> tuple[Array, Array, Array]:
        scores = over_atoms(lambda x: jax.grad(joint)(point, x), z)

        def mean(flat: Array) -> Array:
            each = lambda f: over_atoms(jax.checkpoint(lambda x: joint(f, x)), z)  # noqa: E731
            return jax.grad(lambda f: each(f).mean())(flat)

        score, push = jax.linearize(mean, point)
        hessian = lax.map(push, jnp.eye(point.size))
        return score, scores.T @ scores / len(scores), hessian

    scores, squares, hessians = lax.map(one, atoms)
    return Batches(scores, squares, hessians, log_weights)


def _joint(model: Any, coordinates: Mapping[str, Array], flat: Array, z: Atoms) -> Array:
    """log p(y, z | params) + log prior."""
    w = unflatten(model, flat, coordinates)
    params = chart.from_coordinates(model.data.transforms, w)
    return log_joint(model, params, z) + model.log_prior(params)


@jax.jit
def batch_scores(model: Any, coordinates: Mapping[str, Array], atoms: Atoms) -> Array:
    """The mean score of every batch, (G, F); arguments as of `batch_moments`."""
    point = flatten(model, coordinates)
    joint = partial(_joint, model, coordinates)

    def mean(z: Atoms) -> Array:
        return jax.grad(lambda flat: over_atoms(lambda x: joint(flat, x), z).mean())(point)

    return lax.map(mean, atoms)


def combined(batches: Batches) -> tuple[np.ndarray, np.ndarray]:
    """Score (F,) and information (F, F) of all draws."""
    weights = np.asarray(batch_weights(batches.log_weights))
    score, square, hessian = (np.tensordot(weights, x, 1) / len(weights) for x in batches[:3])
    return score, -hessian - square + np.outer(score, score)


def batch_moments_at(model: Any, params: Mapping[str, Any], drawn: Sample) -> Batches:
    """Scores and Hessians by batch, in float64.

    Args:
        model: a bound model with plain integrals.
        params: by site, constrained.
        drawn: of the latents there.
    """
    with jax.enable_x64(True):
        model = in_double(model)
        w = coordinates_of(model, as_arrays(params))
        return jax.tree.map(np.asarray, batch_moments(model, w, _split(drawn), drawn.log_weights))


def batch_scores_at(model: Any, params: Mapping[str, Any], drawn: Sample) -> np.ndarray:
    """The mean score of every batch, (G, F), in float64; arguments as of `batch_moments_at`."""
    with jax.enable_x64(True):
        model = in_double(model)
        return np.asarray(
            batch_scores(model, coordinates_of(model, as_arrays(params)), _split(drawn))
        )


def _split(drawn: Sample) -> Atoms:
    """By batch, (G, draws, ...)."""
    count = len(drawn.log_weights)
    return {k: jnp.asarray(v).reshape(count, -1, *np.shape(v)[1:]) for k, v in drawn.atoms.items()}


def joined(samples: Sequence[Batches]) -> Batches:
    """One sample of several."""
    return Batches(*(np.concatenate(x) for x in zip(*samples, strict=True)))


def effective_count(samples: Sequence[Batches]) -> float:
    """How many batches that count alike would know as much."""
    weights = batch_weights(np.concatenate([s.log_weights for s in samples]))
    return float(len(weights) / np.mean(np.asarray(weights) ** 2))


def louis(model: Any, params: Mapping[str, Any], samples: Sequence[Batches]) -> UncertaintyReport:
    """The observed information at `params`, from draws of the latents there.

    Args:
        model: a bound model with plain integrals.
        params: by site, constrained.
        samples: of the same independent chains, one after another.

    Returns:
        The report, with the `replicas` that its Monte Carlo errors are computed from.
    """
    found = joined(samples)
    count = len(samples[0].score)
    chain = np.arange(len(found.score)) % count
    without = [combined(Batches(*(x[chain != g] for x in found))) for g in range(count)]
    scores, matrices = (np.stack(x) for x in zip(*without, strict=True))
    score, information = combined(found)
    with jax.enable_x64(True):
        model, values = in_double(model), as_arrays(params)
        w = coordinates_of(model, values)
        return report_of(model, values, w, score, information, (scores, matrices))
