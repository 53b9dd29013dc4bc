"""The posterior of one latent, as users see it: discrete, on a grid, or continuous."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from emprob.posterior import LatentPosterior


@dataclass(frozen=True)
class Marginal:
    """The posterior of one latent.

    Attributes:
        name: the site.
        probs: (N..., K) or (T, ..., K), P(z = k | all data): for a chain, smoothed.
        values: (K,) the values that the latent takes.
    """

    name: str
    probs: np.ndarray
    values: np.ndarray
    is_chain: bool
    owner: "LatentPosterior"

    @property
    def smoothed(self) -> np.ndarray:
        """P(z_t | y_1..y_T), (T, ..., K). Uses the future: not for backtests."""
        return self.probs

    @property
    def filtered(self) -> np.ndarray:
        """P(z_t | y_1..y_t), (T, ..., K). Uses no later observation (the parameters may)."""
        self._only_chain("filtered")
        return self.owner.filtered[self.name]

    @property
    def pairwise(self) -> np.ndarray:
        """P(z_{t-1} = i, z_t = j | all data), (T-1, ..., K, K)."""
        self._only_chain("pairwise")
        return self.owner.pairwise(self.name)

    @property
    def mean(self) -> np.ndarray:
        """Posterior mean of the latent's value."""
        return self.probs @ self.values

    @property
    def variance(self) -> np.ndarray:
        """Posterior variance of the latent's value."""
        return self.probs @ self.values**2 - self.mean**2

    @property
    def mode(self) -> np.ndarray:
        """The most probable value of each element on its own."""
        return self.values[self.probs.argmax(-1)]

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of each element's marginal, in nats."""
        p = np.where(self.probs > 0, self.probs, 1.0)
        return -(p * np.log(p)).sum(-1)

    def most_likely_path(self) -> np.ndarray:
        """The jointly most likely values of this latent (Viterbi), with all other latents'."""
        return self.values[self.owner.most_likely[self.name]]

    def sample(self, key: Any, num: int = 1) -> np.ndarray:
        """Exact joint draws, (num, N...) or (num, T, ...)."""
        return self.values[self.owner.sample_indices(key, num)[self.name]]

    def _only_chain(self, what: str) -> None:
        if not self.is_chain:
            raise AttributeError(f"latent '{self.name}' is not a chain: it has no '{what}'.")

    def __repr__(self) -> str:
        return f"Marginal({self.name!r}, probs {self.probs.shape})"


@dataclass(frozen=True)
class GridMarginal(Marginal):
    """The posterior of a continuous latent on common nodes.

    Attributes:
        name: the site.
        probs: (N..., K), weights of the nodes; they sum to one.
        values: (K,) the nodes.
        shape: of the site.
    """

    shape: tuple[int, ...] = ()

    @property
    def mean(self) -> np.ndarray:
        """Posterior mean, shaped as the site."""
        return (self.probs @ self.values).reshape(self.shape)

    @property
    def variance(self) -> np.ndarray:
        """Posterior variance, shaped as the site."""
        gaps = self.values - (self.probs @ self.values)[..., None]
        return (self.probs * gaps**2).sum(-1).reshape(self.shape)

    @property
    def sd(self) -> np.ndarray:
        """Posterior standard deviation, shaped as the site."""
        return np.sqrt(self.variance)

    @property
    def density(self) -> np.ndarray:
        """(N..., K), posterior density at the nodes."""
        return self.probs / np.gradient(self.values)

    @property
    def entropy(self) -> np.ndarray:
        """Differential entropy of each element's marginal, in nats."""
        p = np.where(self.probs > 0, self.probs, 1.0)
        return -(p * np.log(p / np.gradient(self.values))).sum(-1).reshape(self.shape)

    def sample(self, key: Any, num: int = 1) -> np.ndarray:
        """Joint draws of nodes, (num, *shape)."""
        return super().sample(key, num).reshape(num, *self.shape)

    def __repr__(self) -> str:
        return f"GridMarginal({self.name!r}, mean {self.shape})"


@dataclass(frozen=True)
class ContinuousMarginal:
    """The posterior of one continuous latent.

    Attributes:
        name: the site.
    """

    name: str
    is_chain: bool
    owner: "LatentPosterior"

    def _moment(self, which: str) -> np.ndarray:
        return getattr(self.owner.moments(self.name), which)

    @property
    def mean(self) -> np.ndarray:
        """Posterior mean, shaped as the site; for a chain, smoothed."""
        return self._moment("mean")

    @property
    def variance(self) -> np.ndarray:
        """Posterior variance of every entry."""
        return self._moment("variance")

    @property
    def sd(self) -> np.ndarray:
        """Posterior standard deviation of every entry."""
        return np.sqrt(self.variance)

    @property
    def covariance(self) -> np.ndarray:
        """Posterior covariance within each event, (..., E, E)."""
        return self._moment("covariance")

    @property
    def pairwise_covariance(self) -> np.ndarray:
        """cov(z_{t-1}, z_t | all data), (T - 1, ..., E, E)."""
        self._only_chain("pairwise_covariance")
        return self._moment("pairwise")

    @property
    def smoothed_mean(self) -> np.ndarray:
        """E[z_t | y_1..y_T]. Uses the future: not for backtests."""
        return self.mean

    @property
    def smoothed_variance(self) -> np.ndarray:
        """var(z_t | y_1..y_T)."""
        return self.variance

    def _filtered(self, which: str) -> np.ndarray:
        self._only_chain(f"filtered_{which}")
        return getattr(self.owner.filtered_moments(self.name), which)

    @property
    def filtered_mean(self) -> np.ndarray:
        """E[z_t | y_1..y_t], (T, ...). Uses no later observation (the parameters may)."""
        return self._filtered("mean")

    @property
    def filtered_variance(self) -> np.ndarray:
        """var(z_t | y_1..y_t), (T, ...)."""
        return self._filtered("variance")

    @property
    def predicted_mean(self) -> np.ndarray:
        """E[z_t | y_1..y_{t-1}], (T, ...)."""
        return self._filtered("predicted_mean")

    @property
    def predicted_variance(self) -> np.ndarray:
        """var(z_t | y_1..y_{t-1}), (T, ...)."""
        return self._filtered("predicted_variance")

    def sample(self, key: Any, num: int = 1) -> np.ndarray:
        """Joint draws, (num, ...): for a chain, of whole paths (the simulation smoother)."""
        return self.owner.draw(key, num)[self.name]

    def _only_chain(self, what: str) -> None:
        if not self.is_chain:
            raise AttributeError(f"latent '{self.name}' is not in a scan: it has no '{what}'.")

    def __repr__(self) -> str:
        return f"ContinuousMarginal({self.name!r}, mean {self.mean.shape})"
