"""SQUAREM: two EM maps, squared extrapolation."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.accelerate.composition import check_em
from emprob.choice import choose
from emprob.em import EM, Step, make_info
from emprob.model import LatentModel
from emprob.objective import dot, subtract
from emprob.types import Info, Params, State


class _Memory(NamedTuple):
    bound: Array


@dataclass(frozen=True)
class Squarem:
    """SQUAREM: extrapolate two EM maps, keep the result only if the objective allows.

    The steplength of Varadhan & Roland (2008), scheme S3, in the metric of the complete-data
    information, which needs no information matrix: EM's moves and the scores give
    `alpha^2 = <score_0, r> / <score_1 - score_0, v>`. That makes it free of units. A step is taken
    only if the objective does not fall below that of the first map; the bound on `alpha` grows
    fourfold when it was reached and the step was good, and shrinks fourfold when it was not.

    Attributes:
        method: the EM to accelerate; its E-step must be deterministic and memoryless.
    """

    method: EM = field(default_factory=EM)

    def __post_init__(self):
        check_em("Squarem", self.method)

    def init(self, model: LatentModel, params: Params) -> State:
        return State(params, _Memory(jnp.full((), 4.0)))

    def step(self, model: LatentModel, state: State) -> tuple[State, Info]:
        """Two maps, the extrapolation, and a third map from there; compiled as one map."""
        bound = state.memory.bound
        shapes = jax.eval_shape(lambda p: self.method.map(model, p)[1], state.params)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def body(carry: tuple, i: Array):
            params, s0, s1 = carry
            new, seen = self.method.map(model, params)
            s0, s1 = choose(i == 0, seen, s0), choose(i == 1, seen, s1)
            alpha = jnp.minimum(_steplength(s0, s1), bound)
            candidate = _extrapolated(model, s0, s1, alpha, new)
            return (choose(i == 1, candidate, new), s0, s1), (new, seen.objective, alpha)

        (third, s0, s1), (maps, objectives, alphas) = jax.lax.scan(
            body, (state.params, blank, blank), jnp.arange(3)
        )
        second, alpha = {k: v[1] for k, v in maps.items()}, alphas[1]
        slack = 1e-12 * (1.0 + jnp.abs(s1.objective))
        good = (objectives[2] >= s1.objective - slack) & _finite(third)
        grown = jnp.where(good & (alpha >= bound), 4.0 * bound, bound)
        bound = jnp.where(good, grown, jnp.maximum(bound / 4.0, 1.0))
        info = make_info(s0, s0.gain, s0.gain * s0.gain / s1.gain, 3)
        return State(choose(good, third, second), _Memory(bound)), info


def _steplength(s0: Step, s1: Step) -> Array:
    change = subtract(s1.move, s0.move)
    curvature = dot(subtract(s1.score, s0.score), change)
    ratio = s0.gain / jnp.where(curvature > 0, curvature, jnp.inf)
    alpha = jnp.sqrt(jnp.maximum(ratio, 0.0))
    return jnp.where(jnp.isfinite(alpha), jnp.maximum(alpha, 1.0), 1.0)


def _extrapolated(model: LatentModel, s0: Step, s1: Step, alpha: Array, second: Params) -> Params:
    """u + 2 alpha r + alpha^2 v, constrained; what EM holds at exactly zero stays there."""
    change = subtract(s1.move, s0.move)
    u = {k: s0.u[k] + 2 * alpha * s0.move[k] + alpha**2 * change[k] for k in s0.u}
    params = model.constrain(u)
    params = {k: jnp.where(jnp.isfinite(v), v, second[k]) for k, v in params.items()}
    return {k: jnp.where(second[k] == 0, second[k], v) for k, v in params.items()}


def _finite(params: Params) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(v).all() for v in jax.tree.leaves(params)]))
