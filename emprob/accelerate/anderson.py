"""Anderson acceleration with damping, restarts and monotonicity: DAAREM."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.accelerate.composition import check_count, check_em
from emprob.accelerate.safeguard import Point, Proposal, advance, begin
from emprob.accelerate.secants import Secants, no_secants, with_secant
from emprob.em import EM
from emprob.model import LatentModel
from emprob.types import Info, Params, State

GROWTH = 1.2  # alpha of the paper
WAIT = 25.0  # its kappa: accepted steps after which the damping is half gone
FINDING = 40  # bisections for the ridge


class _Memory(NamedTuple):
    """What Anderson carries.

    Attributes:
        secants: the differences since the last restart.
        accepted: the paper's s: accepted steps, less those that a bad cycle takes away.
        reference: the objective at the last restart.
    """

    secants: Secants
    accepted: Array
    reference: Array


@dataclass(frozen=True)
class Anderson:
    """DAAREM: the combination of the last EM maps whose move is smallest, damped at first.

    With F and X the differences of moves f and positions x, the next point is
    `x + f - (X + F) g`, where g is the ridge solution of `min |f - F g|`, in the metric of the
    complete-data information (free of units; EM's scores give its inner products). The ridge is
    such that |g| is `sqrt(d)` of the undamped one, and d goes from 0 to 1 with the steps that are
    accepted: `d = 1 / (1 + 1.2^(25 - s))`. The differences are forgotten every `memory` steps.
    The paper lets the objective fall a little; here it may not.

    Attributes:
        method: the EM to accelerate; its E-step must be deterministic and memoryless.
        memory: differences between restarts, at most; never more than half of the parameters.

    Source: Henderson & Varadhan (2019), Journal of Computational and Graphical Statistics 28(4).
    """

    method: EM = field(default_factory=EM)
    memory: int = 10

    def __post_init__(self):
        check_em("Anderson", self.method)
        check_count("Anderson", "memory", self.memory)

    def init(self, model: LatentModel, params: Params) -> State:
        return begin(self, model, params)

    def step(self, model: LatentModel, state: State) -> tuple[State, Info]:
        return advance(self, model, state)

    def blank(self, point: Point) -> _Memory:
        rows = max(min(self.memory, (point.u.size + 1) // 2), 1)
        zero = jnp.zeros_like(point.step.gain)
        return _Memory(no_secants(point, rows), zero, jnp.full_like(zero, -jnp.inf))

    def learn(self, memory: _Memory, old: Point, new: Point, accepted: Array) -> _Memory:
        """One more difference; after a full cycle, forget them and judge the cycle."""
        s, rows = memory.secants, len(memory.secants.u)
        count = memory.accepted + accepted
        full = s.count == rows
        objective = new.step.objective
        worse = full & (objective < memory.reference)
        count = jnp.where(worse, jnp.maximum(count - rows, -2 * WAIT), count)
        s = s._replace(count=jnp.where(full, 0, s.count))
        reference = jnp.where(full, objective, memory.reference)
        return _Memory(with_secant(s, old, new, accepted), count, reference)

    def propose(self, memory: _Memory, point: Point) -> Proposal:
        s = memory.secants
        share = 1.0 / (1.0 + GROWTH ** (WAIT - memory.accepted))
        free, ridged = _coefficients(s, point, share)
        change = point.move - (s.u + s.move).T @ ridged
        undamped = point.move - (s.u + s.move).T @ free
        usable = jnp.isfinite(change).all() & (s.count > 0)
        change = jnp.where(usable, change, s.stretch * point.move)
        return Proposal(change, jnp.nan_to_num(point.score @ undamped), memory)


def _coefficients(s: Secants, point: Point, share: Array) -> tuple[Array, Array]:
    """Least squares and its ridge solution, whose squared length is `share` of the other's."""
    products = s.move @ s.score.T
    used = s.used[:, None] & s.used[None, :]
    products = jnp.where(used, (products + products.T) / 2, 0.0)
    target = jnp.where(s.used, (s.move @ point.score + s.score @ point.move) / 2, 0.0)
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0.0))
    size = jnp.where(size > 0, size, 1.0)
    values, axes = jnp.linalg.eigh(products / size[:, None] / size[None, :])
    along = axes.T @ (target / size)
    kept = values > 1e-12 * jnp.maximum(values[-1], 1e-300)

    def solved(ridge: Array) -> Array:
        return axes @ jnp.where(kept, along / jnp.where(kept, values + ridge, 1.0), 0.0)

    free = solved(jnp.zeros(()))
    wanted = share * jnp.sum(free**2)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        short = jnp.sum(solved(jnp.exp(middle)) ** 2) < wanted
        return jnp.where(short, low, middle), jnp.where(short, middle, high)

    ends = jnp.full((), -35.0, values.dtype), jnp.full((), 25.0, values.dtype)
    low, high = jax.lax.fori_loop(0, FINDING, halve, ends)
    return free / size, solved(jnp.exp((low + high) / 2)) / size
