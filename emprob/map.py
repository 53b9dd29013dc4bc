"""Direct ascent on log Z + log prior, without an E-step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from emprob.ascent import Ascent, climb, unseen
from emprob.estep.fixed_key import FixedKey
from emprob.model import LatentModel
from emprob.objective import dot, subtract
from emprob.types import EStep, Info, Params, SimulatedEStep, State


@dataclass(frozen=True)
class MAP:
    """Climb the objective itself, in unconstrained space.

    Attributes:
        optimizer: an Optax transformation; None: damped Newton steps on the exact Hessian.
        estep: how log Z is found, such as `ep.Laplace(1)` or `ep.Grid()`; None: as `bind` chose.
    """

    optimizer: Any = None
    estep: EStep | None = None

    def __post_init__(self):
        o = self.optimizer
        if o is not None and not (hasattr(o, "init") and hasattr(o, "update")):
            raise ValueError(
                f"MAP(optimizer={o!r}): expected an optax transformation, such as optax.adam(1e-2)."
            )
        e = self.estep
        drawn = type | SimulatedEStep | FixedKey
        if e is not None and (not isinstance(e, EStep) or isinstance(e, drawn)):
            raise ValueError(
                f"MAP(estep={e!r}): expected a deterministic E-step, such as ep.Laplace(1); draws "
                "need ep.EM(estep)."
            )

    @property
    def monotone(self) -> bool:
        """Whether no step may lower the objective: Newton's are shortened, an optimiser's not."""
        return self.optimizer is None

    def init(self, model: LatentModel, params: Params) -> State:
        u = model.unconstrain(params)
        memory = unseen(ravel_pytree(u)[0]) if self.optimizer is None else self.optimizer.init(u)
        return State(params, memory)

    def step(self, model: LatentModel, state: State) -> tuple[State, Info]:
        u = model.unconstrain(state.params)

        def objective(v: Params):
            return model.objective(model.constrain(v))

        (new, value, gradient), memory = self._move(objective, u, state.memory)
        log_prior = model.log_prior(model.constrain(u))
        info = _info(value, value - log_prior, gradient, subtract(new, u), self.optimizer is None)
        return State(model.constrain(new), memory), info

    def _move(self, objective: Callable, u: Params, memory: Any) -> tuple[Ascent, Any]:
        if self.optimizer is None:
            _, unravel = ravel_pytree(u)
            here, ahead = climb(lambda x: objective(unravel(x)), memory)
            return Ascent(unravel(ahead.x), here.value, unravel(here.gradient)), ahead
        value, gradient = jax.value_and_grad(objective)(u)
        loss = lambda v: -objective(v)  # noqa: E731
        down = {k: -g for k, g in gradient.items()}
        transform = optax.with_extra_args_support(self.optimizer)
        updates, memory = transform.update(down, memory, u, value=-value, grad=down, value_fn=loss)
        return Ascent(cast(Params, optax.apply_updates(u, updates)), value, gradient), memory


def _info(value, log_likelihood, gradient: Params, move: Params, is_newton: bool) -> Info:
    """For Newton, score times step is the squared distance in standard errors; else |score|."""
    gain = dot(gradient, move)
    distance = jnp.sqrt(jnp.maximum(gain, 0.0)) if is_newton else jnp.sqrt(dot(gradient, gradient))
    nan = jnp.full((), jnp.nan)
    return Info(value, log_likelihood, gain, nan, distance, jnp.asarray(1))
