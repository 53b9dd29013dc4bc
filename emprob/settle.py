"""The end of a run by simulation: where its optimum is, how well that is known, and log Z there.

A run of EM on draws stops where the increase of the objective is lost in the noise. From there,
Newton's steps with Louis' information and score from one large sample lead to the point at which
the score is zero up to its Monte Carlo error, and that error, carried through the information,
is the Monte Carlo error of the estimate.

Source: McCulloch (1997), JASA 92 (Monte Carlo Newton-Raphson); Louis (1982).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emprob import chart
from emprob.curvature import (
    UncertaintyReport,
    as_arrays,
    coordinates_of,
    flatten,
    jackknife,
    unflatten,
)
from emprob.estep.unsolved import Unsolved
from emprob.importance import corrected
from emprob.louis import louis
from emprob.model import LatentModel
from emprob.precision import to_numpy
from emprob.types import Params, SimulatedEStep

MAX_NEWTON = 10
ENOUGH = 1000  # draws of the importance sampler for log Z
LONGEST = 1.0  # of a step, in any coordinate (logs and log-odds)


@dataclass(frozen=True)
class Simulated:
    """What the draws at the estimate say.

    Attributes:
        draws: of the continuous latents given the data, by site (A, ...).
        log_likelihood: an estimate of log Z, or NaN.
        error: its Monte Carlo standard error.
        khat: Pareto k of the importance weights behind it; NaN where there are none.
        how: in words, how log Z was estimated.
        distance: to the optimum before the last step, in standard errors.
        noise: what Monte Carlo error alone makes of that distance.
    """

    draws: dict[str, np.ndarray] = field(repr=False)
    log_likelihood: float
    error: float
    khat: float
    how: str
    distance: float
    noise: float


class Settled(NamedTuple):
    """Parameters, the report and draws there, whether the score is zero up to its noise."""

    params: dict[str, np.ndarray]
    report: UncertaintyReport
    draws: dict[str, np.ndarray]
    distance: float
    noise: float
    at_optimum: bool
    memory: Any


@partial(jax.jit, static_argnames="estep")
def sample(model: LatentModel, estep: SimulatedEStep, params: Params, memory: Any):
    """Draws by site, (A, ...), an estimate of log Z or NaN, and the memory after them."""
    return estep.sample(model, params, memory)


def settle(model: LatentModel, estep: Any, params: Mapping[str, Any], memory: Any) -> Settled:
    """Newton's steps on one large sample after another, until they are within its noise."""
    at = {k: np.asarray(v) for k, v in params.items()}
    for left in reversed(range(MAX_NEWTON)):
        arrays = {k: jnp.asarray(v) for k, v in at.items()}
        atoms, _, memory = sample(model, estep, arrays, memory)
        report = louis(model, at, atoms, estep.num_batches)
        noise = _noise(report)
        near = report.score_norm <= max(2.0 * noise, 0.02)
        if near or left == 0 or not np.isfinite(report.score_norm):
            break
        at = moved(model, at, report.newton_step())
    if near:
        at = moved(model, at, report.newton_step())
    return Settled(at, report, to_numpy(atoms), report.score_norm, noise, bool(near), memory)


def _noise(report: UncertaintyReport) -> float:
    """Monte Carlo error of a Newton step, in standard errors of the parameters."""
    steps = [r.newton_step()[report.free] for r in report.without]
    root = np.linalg.cholesky(_definite(report.information))
    return float(np.sqrt((jackknife([root.T @ s for s in steps]) ** 2).sum()))


def _definite(matrix: np.ndarray) -> np.ndarray:
    """The matrix with its negative curvature taken as none."""
    values, vectors = np.linalg.eigh(matrix)
    least = 1e-10 * max(values.max(initial=0.0), 1e-300)
    return (vectors * np.maximum(values, least)) @ vectors.T


def moved(model: LatentModel, params: Mapping[str, Any], step: np.ndarray) -> dict[str, Any]:
    """Parameters a step away in the coordinates of the information, no coordinate by more than 1.

    Args:
        model: a bound model.
        params: by site, constrained.
        step: (F,).
    """
    step = step * min(1.0, LONGEST / max(np.abs(step).max(initial=0.0), 1e-300))
    with jax.enable_x64(True):
        w = coordinates_of(model, as_arrays(params))
        flat = flatten(model, w) + jnp.asarray(step)
        found = chart.from_coordinates(model.data.transforms, unflatten(model, flat, w))
        return {k: np.asarray(v) for k, v in found.items()}


class Evidence(NamedTuple):
    """An estimate of log Z with its standard error, k-hat, and how it was made."""

    value: float
    error: float
    khat: float
    how: str


def evidence(model: LatentModel, params: Mapping[str, Any], key: Any, num: int) -> Evidence:
    """log Z by importance sampling from the Gaussian around the mode, where there is one."""
    if any(isinstance(i.rule, Unsolved) for i in model.structure.integrals):
        return Evidence(np.nan, np.nan, np.nan, "no estimate of log Z for these latents")
    found = corrected(model, {k: jnp.asarray(v) for k, v in params.items()}, key, num)
    return Evidence(found.value, found.error, found.khat, f"importance sampling, {num} draws")
