"""Parameters that creep towards the end of a half-line: a variance whose estimate is zero.

EM and Newton approach such an optimum for ever, because the score in the logarithm dies out with
the parameter. Whether the objective is as high at the end itself is one evaluation.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from emprob import chart
from emprob.model import LatentModel
from emprob.report import UncertaintyReport

FARTHER = (1e2, 1e4, 1e8)  # how much farther, to see whether the objective knows the entry at all
NEARER = 1e-2  # how much nearer to its bound an entry is put, and then once more to see
SLACK = 1e-9  # relative fall of the objective that is rounding


@jax.jit
def _objective(model: LatentModel, params: Mapping[str, Array]) -> Array:
    return model.objective(params)


class Snapped(NamedTuple):
    """Parameters with some entries at the end of their half-line, and the labels of these."""

    params: dict[str, np.ndarray]
    labels: tuple[str, ...]


def snapped(
    model: LatentModel, params: Mapping[str, Any], objective: float, report: UncertaintyReport
) -> Snapped | None:
    """The parameters with those nearer to their bound that belong there; None if there are none.

    Args:
        model: a bound model.
        params: by site, constrained.
        objective: there.
        report: the curvature there; it names entries along which the objective is flat.
    """
    flat = {next(iter(v)) for v in report.null_vectors if len(v) == 1}
    moved, found = {k: np.array(v, float) for k, v in params.items()}, []
    for name in model.params:
        low, high = chart.bounds(model.data.transforms[name], moved[name].shape)
        for i, label in enumerate(chart.entry_labels(name, moved[name].shape)):
            bounds = low.ravel()[i], high.ravel()[i]
            if label not in flat or not np.isfinite(bounds[0]) or np.isfinite(bounds[1]):
                continue
            near, nearer = (_moved(moved, name, i, bounds[0], NEARER**n) for n in (1, 2))
            ends = [float(_objective(model, p)) for p in (near, nearer)]
            slack = SLACK * (1.0 + abs(objective))
            if min(ends) >= objective - slack and not _unknown(
                model, [_moved(moved, name, i, bounds[0], far) for far in FARTHER], objective, slack
            ):
                moved, found = near, [*found, label]
    return Snapped(moved, tuple(found)) if found else None


def _unknown(model: LatentModel, far: Sequence[dict], objective: float, slack: float) -> bool:
    """Whether the objective is the same however far an entry is from its bound: no data see it."""
    return all(abs(float(_objective(model, p)) - objective) <= slack for p in far)


def _moved(params: Mapping, name: str, i: int, low: float, factor: float) -> dict:
    """The parameters with one entry nearer to its lower bound."""
    trial = {k: v.copy() for k, v in params.items()}
    flat = trial[name].reshape(-1)
    flat[i] = low + factor * (flat[i] - low)
    return trial
