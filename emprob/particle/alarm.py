"""Whether a particle filter can be trusted, in words."""

from typing import Any

import numpy as np

LEAST_SIZE = 0.02  # share of the particles
LEAST_COUNT = 10.0  # particles, or paths
WIDEST = 1.0  # standard deviation of the log-evidence


def alarms(paths: Any, num_particles: int) -> tuple[str, ...]:
    """What is wrong with a run of the filter; empty where nothing is.

    Args:
        paths: paths.Paths, its arrays concrete.
        num_particles: of its settings.

    Returns:
        One sentence for each trouble: what was found, where, and what to do.
    """
    found = []
    ess, distinct = np.asarray(paths.ess), np.asarray(paths.distinct)
    value, variance = float(paths.log_evidence), float(paths.log_evidence_variance)
    if not np.isfinite(value):
        return (
            "Particle filter: the log-evidence is not finite: no particle is compatible with the "
            "data at some step. Use Guided(), or check the parameters.",
        )
    least = max(LEAST_COUNT, LEAST_SIZE * num_particles)
    worst = int(np.argmin(ess))
    if ess[worst] < least:
        found.append(
            f"Particle filter: the effective sample size is {ess[worst]:.1f} of {num_particles} "
            f"at step {worst} (below {least:.0f} at {np.sum(ess < least)} of {len(ess)} steps): "
            "the draws stand on a few particles. Use Guided(), or more particles."
        )
    few = min(LEAST_COUNT, _num_paths(paths) / 2)
    worst = int(np.argmin(distinct))
    if distinct[worst] < few:
        found.append(
            f"Paths: {_num_paths(paths)} paths go through {distinct[worst]} different particles "
            f"at step {worst}: they are not independent draws. Use more particles, or Guided()."
        )
    if variance > WIDEST**2:
        found.append(
            f"Log-evidence: its Monte Carlo standard deviation is {variance**0.5:.2g}, above "
            f"{WIDEST}: independent filters disagree. Use more particles, or Guided()."
        )
    return tuple(found)


def _num_paths(paths: Any) -> int:
    return len(next(iter({**paths.atoms, **paths.discrete}.values())))
