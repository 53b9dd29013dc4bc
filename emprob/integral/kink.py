"""Whether the gradient of a log-density jumps: absolute values, maxima, clipped values.

Between two points of a smooth function the gradient changes by the integral of the second
derivative; the trapezoidal rule gives it with an error that falls with the cube of the distance.
Across a kink there is a jump that no rule sees, however close the points: halving the interval
where the error is largest ends at the kink, if there is one, within a few dozen steps.
"""

import heapq
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob.integral.integral import field
from emprob.model import LatentModel

PIECES = (0.0, 0.13, 0.24, 0.31, 0.4, 0.47, 0.55, 0.68, 0.81, 1.0)  # of the way, to begin with
JUMP = 1e-3  # of the gradient, relative to its size, that is one
CLOSE = 2.0**-24  # length of an interval, of the whole, in which no smooth function turns that much
MOST_LOOKS = 300  # intervals to look at, before a function counts as smooth


def _total(model: LatentModel, params: Mapping, z: Array) -> Array:
    """The log-density of all series and branches, each branch with a weight of its own."""
    integral = model.structure.integrals[0]
    weights = jnp.asarray(np.random.default_rng(2).uniform(0.5, 1.5, integral.num_branches))
    values = field(model, params, 0)(jnp.broadcast_to(z, integral.shape))
    return (weights[:, None] * values).sum()


gradient = jax.jit(jax.grad(_total, 2))


@jax.jit
def curved(model: LatentModel, params: Mapping, z: Array, move: Array) -> Array:
    """The Hessian of `_total` times a move."""
    return jax.jvp(partial(jax.grad(_total, 2), model, params), (z,), (move,))[1]


def has_kink(model: LatentModel, params: Mapping, start: Array, end: Array) -> bool:
    """Whether the gradient in the latents jumps somewhere on the way between two points.

    Args:
        model: with one integral.
        params: constrained space.
        start: (S, T, D).
        end: (S, T, D).
    """

    def look(t: float) -> tuple[np.ndarray, np.ndarray]:
        z = start + t * (end - start)
        slope = gradient(model, dict(params), z)
        return np.asarray(slope), np.asarray(curved(model, dict(params), z, end - start))

    def error(left: Any, right: Any, length: float) -> float:
        gap = right[0] - left[0] - 0.5 * length * (left[1] + right[1])
        worst = np.abs(gap).max(initial=0.0)
        return float(worst) if np.isfinite(worst) else 0.0

    seen = {t: look(t) for t in PIECES}
    size = max(np.abs(slope).max(initial=0.0) for slope, _ in seen.values())
    queue = [(-error(seen[a], seen[b], b - a), a, b) for a, b in pairwise(PIECES)]
    heapq.heapify(queue)
    for _ in range(MOST_LOOKS):
        worst, left, right = heapq.heappop(queue)
        if -worst <= JUMP * size:
            return False
        if right - left <= CLOSE:
            return True
        middle = 0.5 * (left + right)
        seen[middle] = look(middle)
        for a, b in ((left, middle), (middle, right)):
            heapq.heappush(queue, (-error(seen[a], seen[b], b - a), a, b))
    return False
