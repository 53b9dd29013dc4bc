"""Observed information from differences of the score, where Louis' identity is lost in noise.

Both need nothing but draws z of the latents. Louis takes the information as a difference, that of
the complete data less the covariance of its score: where the latents hide all but a share f of what
complete data would tell, n draws know it to a relative error of sqrt(2 / n) / f. The score is known
to sqrt(1 / (n f)) standard errors, and its difference over two standard errors tells the
information by a factor of sqrt(1 / f) better, from gradients alone.

Source: Dempster, Laird and Rubin (1977), JRSS B 39, for the score as a mean over draws; Jamshidian
and Jennrich (2000), JRSS B 62(2), for its differences.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from emprob.coordinates import as_arrays, coordinates_of, in_double
from emprob.curvature import report_of
from emprob.louis import Batches, joined
from emprob.report import UncertaintyReport
from emprob.simulation.draws import batch_weights

REACH = 1.0  # standard errors to either side of the estimate
LEAST_SHARE = 0.02  # of the complete data's information, which a step is told from


class End(NamedTuple):
    """What a step leads to.

    Attributes:
        step: (F,), as it was taken.
        scores: (G, F), the mean score of every batch there.
        log_weights: (G, S), see `Sample`.
    """

    step: np.ndarray
    scores: np.ndarray
    log_weights: np.ndarray


def secant(
    model: Any,
    params: Mapping[str, Any],
    samples: Sequence[Batches],
    report: UncertaintyReport,
    look: Callable[[np.ndarray], End],
) -> UncertaintyReport:
    """The observed information at `params`.

    Args:
        model: a bound model with plain integrals.
        params: by site, constrained.
        samples: moments of draws there.
        report: by Louis' identity from them.
        look: at a step (F,) away in the coordinates of the information.

    Returns:
        The report; each of its `replicas` is without one of the chains, at every point.
    """
    centre, steps = joined(samples), directions(joined(samples), report)
    ends = [(look(step), look(-step)) for step in steps]
    chains = len(samples[0].score)

    def found(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.tile(kept, len(samples))
        score = _mean(centre.score[at], centre.log_weights[at])
        moves = np.stack([up.step - down.step for up, down in ends])
        falls = np.stack([
            _mean(down.scores[kept], down.log_weights[kept])
            - _mean(up.scores[kept], up.log_weights[kept])
            for up, down in ends
        ])  # fmt: skip
        return score, _information(moves, falls, report.free)

    score, matrix = found(np.ones(chains, bool))
    without = [found(np.arange(chains) != g) for g in range(chains)]
    scores, matrices = (np.stack(x) for x in zip(*without, strict=True))
    with jax.enable_x64(True):
        model, values = in_double(model), as_arrays(params)
        w = coordinates_of(model, values)
        return report_of(model, values, w, score, matrix, (scores, matrices))


def _mean(scores: Any, log_weights: Any) -> np.ndarray:
    return np.asarray(batch_weights(log_weights)) @ scores / len(scores)


def _information(moves: np.ndarray, falls: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The symmetric matrix (F, F) that takes moves to falls of the score, over what is free."""
    matrix = np.eye(len(free))
    own = np.linalg.solve(moves[:, free], falls[:, free])
    matrix[np.ix_(free, free)] = 0.5 * (own + own.T)
    return matrix


def directions(samples: Batches, report: UncertaintyReport) -> list[np.ndarray]:
    """Steps (F,) of about a standard error, one for each free coordinate, uncorrelated.

    The principal axes of the information relative to that of the complete data; of one that Louis'
    identity does not see, the step is that of the least share.
    """
    free = report.free
    kept = np.ix_(free, free)
    weights = np.asarray(batch_weights(samples.log_weights))
    complete = -np.tensordot(weights, samples.hessian, 1)[kept] / len(weights)
    values, vectors = np.linalg.eigh(0.5 * (complete + complete.T))
    root = vectors / np.sqrt(np.maximum(values, 1e-10 * values.max()))  # complete^(-1/2)
    shares, axes = np.linalg.eigh(root.T @ report.information @ root)
    found = root @ axes / np.sqrt(np.maximum(shares, LEAST_SHARE))
    steps = np.zeros((len(values), len(free)))
    steps[:, free] = REACH * found.T
    return list(steps)
