"""Settings of the particle methods."""

from dataclasses import dataclass

from emprob.particle.guided import Automatic
from emprob.particle.proposal import Proposal


@dataclass(frozen=True)
class Settings:
    """How many particles, drawn from where.

    Attributes:
        num_particles: in all.
        num_paths: drawn backwards from the filter.
        num_islands: independent filters that share the particles; the spread of their evidence
            is what the variance of the log-evidence is estimated from.
        threshold: resample where the effective sample size is below this share of the particles.
        proposal: where particles are drawn from.
        horizon: steps that a backward draw looks ahead where the carry never forgets (a function of
            all noises); None: such a program is refused.
    """

    num_particles: int = 1024
    num_paths: int = 64
    num_islands: int = 8
    threshold: float = 0.5
    proposal: Proposal = Automatic()
    horizon: int | None = None

    def __post_init__(self):
        if self.num_islands < 1 or self.num_particles % self.num_islands:
            raise ValueError(
                f"Settings(num_particles={self.num_particles}, num_islands={self.num_islands}): "
                "expected a number of particles that the islands share evenly."
            )
        if self.num_paths < 1:
            raise ValueError(f"Settings(num_paths={self.num_paths}): expected an integer >= 1.")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"Settings(threshold={self.threshold}): expected a share in [0, 1].")
