"""Quasi-Newton steps on the objective, with EM as the preconditioner."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array

from emprob.accelerate.composition import check_count, check_em
from emprob.accelerate.safeguard import Point, Proposal, advance, begin
from emprob.accelerate.secants import Secants, no_secants, with_secant
from emprob.em import EM
from emprob.model import LatentModel
from emprob.types import Info, Params, State


@dataclass(frozen=True)
class QuasiNewton:
    """BFGS on the objective, started from EM's own idea of the curvature.

    EM's move is the score times the inverse of the complete-data information. BFGS corrects this
    matrix by the differences of scores between points, towards the inverse of the observed
    information: steps go from EM's to Newton's. It is Jamshidian & Jennrich's QN2, its matrix kept
    as the last `memory` differences (Nocedal's two loops), since the matrix that EM starts from is
    only needed times scores that EM has been given. A step below the objective is replaced by EM's.

    Attributes:
        method: the EM to accelerate; its E-step must be deterministic and memoryless.
        memory: differences to keep.

    Source: Jamshidian & Jennrich (1997), JRSS B 59(3), section 4; Nocedal (1980), Mathematics of
    Computation 35(151).
    """

    method: EM = field(default_factory=EM)
    memory: int = 20

    def __post_init__(self):
        check_em("QuasiNewton", self.method)
        check_count("QuasiNewton", "memory", self.memory)

    def init(self, model: LatentModel, params: Params) -> State:
        return begin(self, model, params)

    def step(self, model: LatentModel, state: State) -> tuple[State, Info]:
        return advance(self, model, state)

    def blank(self, point: Point) -> Secants:
        return no_secants(point, self.memory)

    def learn(self, memory: Secants, old: Point, new: Point, accepted: Array) -> Secants:
        return with_secant(memory, old, new, accepted)

    def propose(self, memory: Secants, point: Point) -> Proposal:
        change = _direction(memory, point)
        uphill = (point.score @ change > 0) & jnp.isfinite(change).all()
        change = jnp.where(uphill & (memory.count > 0), change, memory.stretch * point.move)
        return Proposal(change, point.score @ change, memory)


def _direction(s: Secants, point: Point) -> Array:
    """The inverse BFGS matrix times the score, by the two loops."""
    curvature = -jnp.sum(s.u * s.score, 1)
    scale = jnp.where(s.used & (curvature > 0), 1.0 / jnp.where(curvature > 0, curvature, 1.0), 0.0)
    rows = jnp.arange(len(s.u))

    def down(carry: tuple[Array, Array], i: Array):
        score, change = carry
        a = scale[i] * (s.u[i] @ score)
        return (score + a * s.score[i], change + a * s.move[i]), a

    def up(change: Array, row: tuple[Array, Array]):
        i, a = row
        b = -scale[i] * (s.score[i] @ change)
        return change + (a - b) * s.u[i], None

    (_, change), a = jax.lax.scan(down, (point.score, point.move), rows, reverse=True)
    return jax.lax.scan(up, change, (rows, a))[0]
