"""The M-step by any Optax transformation on Q, in unconstrained space."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from emprob.choice import choose
from emprob.model import LatentModel
from emprob.objective import expected_log_joint
from emprob.types import Params, Posterior


@lru_cache(maxsize=1)
def default_optimizer() -> optax.GradientTransformationExtraArgs:
    """L-BFGS with a line search; one object, so that equal settings share compiled code."""
    return optax.lbfgs()


@dataclass(frozen=True)
class Gradient:
    """Steps of an Optax transformation on Q + log prior.

    The step that does not raise Q is not taken, so the objective cannot fall. Make a
    transformation once and reuse it: `optax.adam(1e-2)` in a notebook cell is a new object each
    time the cell runs, and compiles anew.

    Attributes:
        optimizer: any `optax.GradientTransformation`; None: L-BFGS.
        steps: updates per M-step, from a fresh optimiser state.
        only: names of the parameters to move; None: all.
    """

    optimizer: Any = None
    steps: int = 5
    only: tuple[str, ...] | None = field(default=None)

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"Gradient(steps={self.steps}): expected an integer >= 1.")
        optimizer = self.optimizer
        if optimizer is not None and not (
            hasattr(optimizer, "init") and hasattr(optimizer, "update")
        ):
            raise ValueError(
                f"Gradient(optimizer={optimizer!r}): expected an optax transformation, such as "
                "optax.adam(1e-2)."
            )

    def __call__(self, model: LatentModel, params: Params, posterior: Posterior) -> Params:
        names = model.params if self.only is None else self.only
        if not names:
            return params
        u = model.unconstrain(params)
        rest = {k: v for k, v in params.items() if k not in names}

        def loss(moving: Params):
            return -expected_log_joint(model, {**rest, **model.constrain(moving)}, posterior)

        optimizer = default_optimizer() if self.optimizer is None else self.optimizer
        start = {k: u[k] for k in names}
        moving = ascend(loss, start, optimizer, self.steps)
        return {**rest, **model.constrain(moving)}


def ascend(loss: Callable, start: Params, optimizer: Any, steps: int) -> Params:
    """A few optimiser updates downhill on `loss`; the best point seen, never worse than start."""
    transform = optax.with_extra_args_support(optimizer)

    def update(carry, _):
        x, state, best, lowest = carry
        value, grad = jax.value_and_grad(loss)(x)
        updates, state = transform.update(grad, state, x, value=value, grad=grad, value_fn=loss)
        x = optax.apply_updates(x, updates)
        after = loss(x)
        better = after < lowest
        best = choose(better, x, best)
        return (x, state, best, jnp.where(better, after, lowest)), None

    carry = (start, transform.init(start), start, loss(start))
    (_, _, best, _), _ = jax.lax.scan(update, carry, None, length=steps)
    return best
