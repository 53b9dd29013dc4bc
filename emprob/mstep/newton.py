"""The M-step by Newton's method on Q, in unconstrained space."""

from dataclasses import dataclass

import jax

from emprob.ascent import newton_step, newton_step_by_units
from emprob.model import LatentModel
from emprob.objective import expected_log_joint
from emprob.types import Params, Posterior


@dataclass(frozen=True)
class Newton:
    """Damped Newton steps on Q + log prior, all parameters together.

    Where Q is a sum over units with parameters of their own (the items of a test), the Hessian is
    formed and solved unit by unit.

    Exact in one step where Q is quadratic (regression coefficients with known scale). Never
    decreases Q: the step is shortened as needed.

    Attributes:
        steps: Newton steps per M-step.
        only: names of the parameters to move; None: all.
    """

    steps: int = 2
    only: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"Newton(steps={self.steps}): expected an integer >= 1.")

    def __call__(self, model: LatentModel, params: Params, posterior: Posterior) -> Params:
        names = model.params if self.only is None else self.only
        if not names:
            return params
        u = model.unconstrain(params)
        rest = {k: v for k, v in params.items() if k not in names}

        def q(moving: Params):
            return expected_log_joint(model, {**rest, **model.constrain(moving)}, posterior)

        by_units = set(names) == set(model.structure.separable)
        step = newton_step_by_units if by_units else newton_step
        start = {k: u[k] for k in names}
        moving = jax.lax.fori_loop(0, self.steps, lambda _, x: step(q, x).u, start)
        return {**rest, **model.constrain(moving)}
