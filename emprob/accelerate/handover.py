"""From EM to Newton's method, where Newton's method is at home."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.accelerate.anderson import Anderson
from emprob.accelerate.composition import check_share, em_of
from emprob.accelerate.damped import Damped
from emprob.accelerate.quasi_newton import QuasiNewton
from emprob.accelerate.squarem import Squarem
from emprob.em import EM
from emprob.estep.laplace import Laplace
from emprob.map import MAP
from emprob.model import LatentModel
from emprob.types import Info, Params, State


class _Memory(NamedTuple):
    """The inner method's memory and Newton's, and whether Newton has taken over."""

    inner: Any
    newton: Any
    over: Array


@dataclass(frozen=True)
class HandOver:
    """EM far from the optimum, Newton's method on log Z + log prior near it.

    EM, or an accelerator of it, runs until it believes itself within `distance` standard errors of
    the optimum. From there damped Newton steps on the exact Hessian double the correct digits. A
    Newton step counts as one map for the gradient, and one for each column of the Hessian.

    Attributes:
        method: an EM, or an accelerator of one, whose objective is the log Z of the model.
        finish: how to end; `MAP()` with Newton's steps.
        distance: to the optimum in standard errors at which to change.

    Source: Redner & Walker (1984), SIAM Review 26(2), section 5; Lange (1995), JRSS B 57(2).
    """

    method: EM | Squarem | Anderson | QuasiNewton | Damped = field(default_factory=EM)
    finish: MAP = field(default_factory=MAP)
    distance: float = 0.5

    def __post_init__(self):
        em = em_of("HandOver", self.method, (Squarem, Anderson, QuasiNewton, Damped))
        if not (em.estep.capabilities.exact or isinstance(em.estep, Laplace)):
            raise ValueError(
                f"HandOver over {em.estep!r}: Newton's steps climb the log Z of the model, which "
                f"this E-step does not give. Use ep.QuasiNewton({em!r})."
            )
        if not (isinstance(self.finish, MAP) and self.finish.monotone):
            raise ValueError(
                f"HandOver(finish={self.finish!r}): expected ep.MAP(), which takes Newton's steps."
            )
        check_share("HandOver", "distance", self.distance, 0.0, float("inf"))

    def init(self, model: LatentModel, params: Params) -> State:
        inner, newton = (m.init(model, params).memory for m in (self.method, self.finish))
        return State(params, _Memory(inner, newton, jnp.asarray(False)))

    def step(self, model: LatentModel, state: State) -> tuple[State, Info]:
        """A step of either method; both are compiled, one runs."""
        return jax.lax.cond(state.memory.over, self._newton, self._em, model, state)

    def _em(self, model: LatentModel, state: State) -> tuple[State, Info]:
        inner, _, over = state.memory
        new, info = self.method.step(model, State(state.params, inner))
        near = over | (info.score_norm <= self.distance)
        newton = self.finish.init(model, new.params).memory
        return State(new.params, _Memory(new.memory, newton, near)), of_one_type(info)

    def _newton(self, model: LatentModel, state: State) -> tuple[State, Info]:
        new, info = self.finish.step(model, State(state.params, state.memory.newton))
        columns = sum(v.size for v in model.unconstrain(state.params).values())
        memory = state.memory._replace(newton=new.memory)
        return State(new.params, memory), of_one_type(info._replace(num_maps=1 + columns))


def of_one_type(info: Info) -> Info:
    """Arrays of one type, whichever method they come from."""
    kinds = [info.objective.dtype] * len(info)
    kinds[Info._fields.index("num_maps")] = jnp.asarray(0).dtype
    return Info(*(jax.lax.convert_element_type(x, k) for x, k in zip(info, kinds, strict=True)))
