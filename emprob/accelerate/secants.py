"""What successive points teach: differences of positions, scores and EM's moves."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from emprob.accelerate.safeguard import Point

GROWTH = 2.0  # of the stretch with each step that curves upwards
LARGEST = 64.0


class Secants(NamedTuple):
    """Differences between successive points, the newest in the last row.

    EM's move is the score times the inverse of the complete-data information, so inner products
    of `move` with `score` are lengths in the metric of that information: free of units.

    Attributes:
        u, score, move: (M, P), unconstrained.
        count: rows in use; none after a step along which the objective curves upwards, where a
            model with a maximum has nothing to say.
        stretch: how far to follow EM's move while there is none.
    """

    u: Array
    score: Array
    move: Array
    count: Array
    stretch: Array

    @property
    def used(self) -> Array:
        """(M,), whether a row is in use."""
        rows = len(self.u)
        return jnp.arange(rows) >= rows - self.count


def no_secants(point: Point, rows: int) -> Secants:
    """An empty memory of so many rows."""
    blank = jnp.zeros((rows, point.u.size), point.u.dtype)
    return Secants(blank, blank, blank, jnp.zeros((), int), jnp.ones_like(point.step.gain))


def with_secant(s: Secants, old: Point, new: Point, accepted: Array) -> Secants:
    """The newest difference in, the oldest out; a refused proposal forgets all before."""
    u, score, move = new.u - old.u, new.score - old.score, new.move - old.move
    downwards = u @ score < 0
    count = jnp.where(accepted, jnp.minimum(s.count + 1, len(s.u)), 1)
    further = jnp.where(accepted, jnp.minimum(GROWTH * s.stretch, LARGEST), 1.0)
    return Secants(
        _push(s.u, u),
        _push(s.score, score),
        _push(s.move, move),
        jnp.where(downwards, count, 0),
        jnp.where(downwards, 1.0, further),
    )


def _push(rows: Array, row: Array) -> Array:
    return jnp.concatenate([rows[1:], row[None]])
