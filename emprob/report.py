"""What the curvature at an optimum says: covariances, and what the data do not determine.

The information is scaled to unit diagonal before its rank is judged: a direction with no
information gets NaN and a name, never a large number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

SMALLEST, LARGEST = 1e-8, 1e-6  # limits of the tolerance on relative eigenvalues
ALIGNED = 1e-4  # an output that leans this much on an undetermined direction is undetermined


@dataclass(frozen=True, eq=False)
class UncertaintyReport:
    """What the curvature at an optimum says.

    Attributes:
        labels: of the P free coordinates: log of a positive entry, log-odds of one in an interval,
            log-ratio of a probability to the largest of its row; 'Sigma~[0]' where a coordinate
            is not an entry's own.
        information: (P, P), minus the Hessian of the objective over them.
        eigenvalues: (P,), ascending, of the information scaled to unit diagonal, relative to the
            largest.
        null_directions: along which the objective is flat, in words: '0.707 a -0.707 b'.
        negative_directions: along which it curves upwards: not a maximum.
        null_vectors: the null directions as coefficients by label, unit length.
        boundary: entries at the boundary of their support, held fixed; they have no SE.
        score_norm: sqrt(g' I^-1 g), distance to the optimum in standard errors, over what is
            determined.
        free: (F,) bool, which of all coordinates are free.
        score: (F,) gradient of the objective over all coordinates.
        replicas: where both are means over draws: scores (G, F) and information (G, F, F) without
            each of G batches of the draws.
    """

    labels: tuple[str, ...]
    information: np.ndarray
    eigenvalues: np.ndarray
    null_directions: tuple[str, ...]
    negative_directions: tuple[str, ...]
    null_vectors: tuple[dict[str, float], ...]
    boundary: tuple[str, ...]
    score_norm: float
    free: np.ndarray
    score: np.ndarray
    replicas: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def identified(self) -> bool:
        """Whether the objective has a strict maximum over the free coordinates."""
        return not self.null_directions and not self.negative_directions

    def describe(self) -> str:
        """Sentences; empty if there is nothing to say."""
        parts = []
        if self.null_directions:
            flat = "; ".join(self.null_directions)
            parts.append(f"the data do not determine the direction {flat}")
        if self.negative_directions:
            up = "; ".join(self.negative_directions)
            parts.append(f"the objective curves upwards along {up}")
        if self.boundary:
            shown = ", ".join(self.boundary[:8]) + (", ..." if len(self.boundary) > 8 else "")
            parts.append(f"at the boundary, held fixed: {shown}")
        return ". ".join(p[0].upper() + p[1:] for p in parts) + ("." if parts else "")

    def covariance_of(self, jacobian: np.ndarray, middle: np.ndarray | None = None) -> np.ndarray:
        """Delta method: covariance of outputs with a given Jacobian in all coordinates.

        Args:
            jacobian: (M, F).
            middle: (P, P) outer product of the scores, for the sandwich; None: the information.

        Returns:
            (M, M); NaN in rows and columns of outputs that the data do not determine.
        """
        system = decompose(self.information, tolerance_of(self.score_norm))
        rows = jacobian[:, self.free] / system.scale
        loose = system.vectors[:, ~system.determined]
        length = np.linalg.norm(rows, axis=1)
        unknown = np.linalg.norm(rows @ loose, axis=1) > ALIGNED * np.maximum(length, 1e-300)
        kept, values = system.vectors[:, system.determined], system.values[system.determined]
        if middle is None:
            half = (rows @ kept) / np.sqrt(values)
            out = half @ half.T
        else:
            bread = (rows @ kept) / values @ kept.T / system.scale
            out = bread @ middle @ bread.T
        out[unknown, :] = np.nan
        out[:, unknown] = np.nan
        return out

    def newton_step(self) -> np.ndarray:
        """I^-1 score (F,), zero along what is at a boundary or not determined."""
        root = self.square_root()
        return root @ (root.T @ self.score)

    @cached_property
    def without(self) -> list["UncertaintyReport"]:
        """The reports without each batch of the draws."""
        if self.replicas is None:
            return []
        free = np.ix_(self.free, self.free)
        return [
            replace(self, score=s, information=i[free], replicas=None)
            for s, i in zip(*self.replicas, strict=True)
        ]

    def noise_of(self, jacobian: np.ndarray) -> np.ndarray:
        """Monte Carlo standard errors (M,) of outputs with a given Jacobian (M, F), by jackknife.

        Of the outputs a Newton step away, so that the error of the information counts as well as
        that of the score; zero where nothing was drawn.
        """
        return jackknife([jacobian @ r.newton_step() for r in self.without])

    def square_root(self) -> np.ndarray:
        """(F, P') with B B' = covariance of all coordinates; zero along what is not determined."""
        system = decompose(self.information, tolerance_of(self.score_norm))
        kept, values = system.vectors[:, system.determined], system.values[system.determined]
        root = np.zeros((len(self.free), len(values)))
        root[self.free] = kept / np.sqrt(values) / system.scale[:, None]
        return root


def jackknife(values: Sequence[np.ndarray]) -> np.ndarray:
    """Standard error of a statistic from its values without each of G batches."""
    if not values:
        return np.zeros(())
    x, count = np.stack(values), len(values)
    return np.sqrt((count - 1) / count * ((x - x.mean(0)) ** 2).sum(0))


class System(NamedTuple):
    """Eigen-decomposition of an information matrix scaled to unit diagonal."""

    scale: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    determined: np.ndarray


def decompose(information: np.ndarray, tolerance: float) -> System:
    """The eigenvalues that are above a tolerance, relative to the largest, and all the rest."""
    diagonal = np.abs(np.diag(information))
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(information / scale / scale[:, None])
    largest = max(values.max(initial=0.0), 1e-300)
    return System(scale, values, vectors, values > tolerance * largest)


def tolerance_of(score_norm: float) -> float:
    """Relative eigenvalue below which nothing is determined, at a distance to the optimum."""
    # A flat direction that is curved (a * b) has an eigenvalue as large as the score that is left.
    return float(np.clip(0.1 * score_norm, SMALLEST, LARGEST))
