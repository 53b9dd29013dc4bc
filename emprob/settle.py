"""The end of a run by simulation: where its optimum is, how well that is known, and log Z there.

A run of EM on draws stops where the increase of the objective is lost in the noise. From there,
Newton's steps lead to the point at which the score is zero up to its Monte Carlo error; that error,
carried through the information by a jackknife over batches, is the Monte Carlo error of the
estimate. Score and information come from the simulated likelihood where importance sampling can be
trusted (`simulation/pathwise.py`), else from draws of the E-step, as many as it takes: by Louis'
identity (`louis.py`), or by differences of the score (`secant.py`).

Source: McCulloch (1997), JASA 92 (Monte Carlo Newton-Raphson).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emprob import chart
from emprob.agreement import GOOD_K
from emprob.coordinates import as_arrays, coordinates_of, flatten, unflatten
from emprob.estep.unsolved import is_solved
from emprob.importance import STEADY_K, corrected
from emprob.louis import batch_moments_at, batch_scores_at, effective_count, louis
from emprob.model import LatentModel
from emprob.precision import to_numpy
from emprob.report import UncertaintyReport, jackknife
from emprob.secant import End, secant
from emprob.simulation.draws import evened
from emprob.simulation.fitted import fitted_evidence
from emprob.simulation.pathwise import draws_per_batch, num_batches, pathwise
from emprob.types import Params, Sample, SimulatedEStep

MAX_NEWTON = 12
FINITE_K = 0.5  # Pareto k of weights above which their variance is not finite
LONG = 1500  # latents of an integral, above which draws of the posterior take hours
MAX_SAMPLES = 16  # of the E-step's final draws, for Louis' identity
PATIENCE = 4  # samples after which it is given up, where the information is lost in noise
LONGEST = 1.0  # of a step, in any coordinate (logs and log-odds)
LEAST_COUNT = 8.0  # batches, if they counted alike, for a spread that tells an error
BLURRED = 0.5  # error of the information, relative to it: the most that steps are told with
CLEAR = 0.1  # standard errors of the parameters: noise of which no more samples are needed
ENOUGH = 1000  # draws of the importance sampler for log Z
LOUIS = "Louis' identity"
SECANT = "differences of the score over a standard error to either side"


@dataclass(frozen=True)
class SimulationReport:
    """What the draws at the estimate say.

    Attributes:
        draws: of the continuous latents given the data, by site (A, ...).
        log_likelihood: an estimate of log Z, or NaN.
        error: its Monte Carlo standard error.
        khat: Pareto k of the importance weights behind it; NaN where there are none.
        how: in words, how log Z was estimated.
        distance: to the optimum before the last step, in standard errors.
        noise: what Monte Carlo error alone makes of that distance.
        information: in words, where score, standard errors and their errors come from.
    """

    draws: dict[str, np.ndarray] = field(repr=False)
    log_likelihood: float
    error: float
    khat: float
    how: str
    distance: float
    noise: float
    information: str


class Evidence(NamedTuple):
    """An estimate of log Z with its standard error, k-hat, and how it was made."""

    value: float
    error: float
    khat: float
    how: str


NONE = Evidence(np.nan, np.nan, np.nan, "no estimate of log Z for these latents")


class Settled(NamedTuple):
    """Parameters, the report there, and whether the score is zero up to its noise."""

    params: dict[str, np.ndarray]
    report: UncertaintyReport
    distance: float
    noise: float
    at_optimum: bool
    information: str = ""


@partial(jax.jit, static_argnames="estep")
def sample(model: LatentModel, estep: SimulatedEStep, params: Params, memory: Any):
    """Draws, and the memory after them."""
    return estep.sample(model, params, memory)


def settle(model: LatentModel, estep: Any, params: Mapping[str, Any], memory: Any, key: Any):
    """Newton's steps until they are within their noise.

    Args:
        model: with plain integrals.
        estep: as it draws at the end of a run.
        params: by site, constrained.
        memory: of the E-step.
        key: of the simulated likelihood.
    """
    most = trusted(model)
    if estep.unbiased and is_solved(model) and evidence(model, params, key, ENOUGH).khat < most:
        num = draws_per_batch(model)
        count = 2 * num_batches(model) * num
        text = f"the simulated likelihood, {count} draws around the mean"
        look = lambda at: pathwise(model, at, key, num)[0]  # noqa: E731
        found = climbed(model, params, look)
        khat = evidence(model, found.params, key, ENOUGH).khat
        if found.at_optimum and khat < most:
            lean = "" if khat < STEADY_K else f"; k-hat {khat:.2f} > {STEADY_K}: errors lean low"
            report = widened(found.report, khat, count)
            return found._replace(report=report, information=text + lean)
    samples = Samples(model, estep, memory)
    return climbed(model, params, samples)._replace(information=samples.text)


def trusted(model: LatentModel) -> float:
    """The largest k-hat of weights that the simulated likelihood is believed with.

    Above a half their variance is not finite: on 500 days of Heston's model, with a k-hat of 0.6,
    the estimate was ten stated errors off. Draws of the posterior do better, in time that long
    series do not have.
    """
    longest = max(prod(g.shape[1:]) for g in model.structure.integrals)
    return FINITE_K if longest <= LONG else GOOD_K


def widened(report: UncertaintyReport, khat: float, num: int) -> UncertaintyReport:
    """With Monte Carlo errors that fall with the draws as num^(k - 1), where that is slower.

    Source: Vehtari et al. (2024), JMLR 25(72), for the rate.
    """
    if report.replicas is None or not khat > FINITE_K:
        return report
    factor = num ** (khat - FINITE_K)
    apart = [x.mean(0) + factor * (x - x.mean(0)) for x in report.replicas]
    return replace(report, replicas=(apart[0], apart[1]))


def climbed(model: LatentModel, params: Mapping, look: Callable) -> Settled:
    """Newton's steps, each on the report that `look` gives of the last parameters."""
    at = {k: np.asarray(v) for k, v in params.items()}
    for left in reversed(range(MAX_NEWTON)):
        report = look(at)
        noise = noise_of(report)
        near = report.score_norm <= max(2.0 * noise, 0.01)
        if near or left == 0 or not np.isfinite(report.score_norm):
            break
        at = moved(model, at, report.newton_step())
    if near:
        at = moved(model, at, report.newton_step())
    return Settled(at, report, report.score_norm, noise, bool(near))


class Samples:
    """Reports from draws: more samples while the noise is what they mostly show.

    By Louis' identity, or by differences of the score where that is lost in noise.
    """

    def __init__(self, model: LatentModel, estep: Any, memory: Any):
        self.model, self.estep, self.memory = model, estep, memory
        self.text = LOUIS

    def __call__(self, params: Mapping[str, Any]) -> UncertaintyReport:
        found = []
        for count in range(1, MAX_SAMPLES + 1):
            found.append(batch_moments_at(self.model, params, self._draw(params)))
            if count & (count - 1):
                continue  # look at 1, 2, 4, ... samples
            report = louis(self.model, params, found)
            self.text = LOUIS
            if _says_enough(report, found):
                return report
            if count >= PATIENCE and blur_of(report) > BLURRED:
                self.text = SECANT
                return secant(self.model, params, found, report, partial(self._look, params))
        return report

    def _draw(self, params: Mapping[str, Any]) -> Sample:
        arrays = {k: jnp.asarray(v) for k, v in params.items()}
        drawn, self.memory = sample(self.model, self.estep, arrays, self.memory)
        return drawn

    def _look(self, params: Mapping[str, Any], step: np.ndarray) -> End:
        step = shortened(step)
        there = moved(self.model, params, step)
        drawn = self._draw(there)
        scores = batch_scores_at(self.model, there, drawn)
        return End(step, scores, np.asarray(drawn.log_weights))


def _says_enough(report: UncertaintyReport, found: list) -> bool:
    """Whether the noise is small, or the way to the optimum much longer than it."""
    noise = noise_of(report)
    known = blur_of(report) <= BLURRED and effective_count(found) >= LEAST_COUNT
    far = report.score_norm > 4.0 * noise and report.identified
    return (noise <= CLEAR and known) or far


def noise_of(report: UncertaintyReport) -> float:
    """Monte Carlo error of a Newton step, in standard errors of the parameters."""
    steps = [r.newton_step()[report.free] for r in report.without]
    root = np.linalg.cholesky(_definite(report.information))
    return float(np.sqrt((jackknife([root.T @ s for s in steps]) ** 2).sum()))


def blur_of(report: UncertaintyReport) -> float:
    """Monte Carlo error of the information, relative to it, in the worst direction."""
    inverse = np.linalg.inv(np.linalg.cholesky(_definite(report.information)))
    apart = np.stack([inverse @ (r.information - report.information) @ inverse.T
                      for r in report.without])  # fmt: skip
    count = len(apart)
    square = (count - 1) / count * np.einsum("gij,gkj->ik", apart, apart)
    return float(np.sqrt(np.linalg.eigvalsh(square).max(initial=0.0)))


def _definite(matrix: np.ndarray) -> np.ndarray:
    """The matrix with its negative curvature taken as none."""
    values, vectors = np.linalg.eigh(matrix)
    least = 1e-10 * max(values.max(initial=0.0), 1e-300)
    return (vectors * np.maximum(values, least)) @ vectors.T


def shortened(step: np.ndarray) -> np.ndarray:
    """No coordinate by more than `LONGEST`."""
    return step * min(1.0, LONGEST / max(np.abs(step).max(initial=0.0), 1e-300))


def moved(model: LatentModel, params: Mapping[str, Any], step: np.ndarray) -> dict[str, Any]:
    """Parameters a step away in the coordinates of the information, no coordinate by more than 1.

    Args:
        model: a bound model.
        params: by site, constrained.
        step: (F,).
    """
    with jax.enable_x64(True):
        w = coordinates_of(model, as_arrays(params))
        flat = flatten(model, w) + jnp.asarray(shortened(step))
        found = chart.from_coordinates(model.data.transforms, unflatten(model, flat, w))
        return {k: np.asarray(v) for k, v in found.items()}


def evidence(model: LatentModel, params: Mapping[str, Any], key: Any, num: int) -> Evidence:
    """log Z by importance sampling from a Gaussian, where there is one."""
    if not is_solved(model):
        return NONE
    found = corrected(model, {k: jnp.asarray(v) for k, v in params.items()}, key, num)
    return Evidence(found.value, found.error, found.khat, f"importance sampling, {num} draws")


def final_draws(model: LatentModel, estep: Any, params: Mapping, memory: Any) -> tuple:
    """Draws of the latents at the estimate that all count alike, by site (A, ...); the memory."""
    arrays = {k: jnp.asarray(v) for k, v in params.items()}
    drawn, memory = sample(model, estep, arrays, memory)
    return to_numpy(evened(drawn)), memory


def evidence_of(
    model: LatentModel, estep: Any, params: Mapping, memory: Any, draws: Mapping, key: Any
) -> Evidence:
    """log Z as the E-step estimates it, or from a Gaussian fitted to its draws."""
    found = estep.log_evidence(model, params, memory, key)
    if np.isfinite(found.value):
        return found
    fitted = fitted_evidence(model, params, draws, key)
    return found if fitted is None else Evidence(*fitted, "importance sampling around the draws")
