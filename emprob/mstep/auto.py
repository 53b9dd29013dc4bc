"""The default M-step: closed forms where they exist, then Newton on the rest (ECM)."""

from dataclasses import dataclass

from emprob.model import LatentModel
from emprob.mstep.closed_form import ClosedForm, covered
from emprob.mstep.gradient import Gradient
from emprob.mstep.newton import Newton
from emprob.types import Params, Posterior

MAX_NEWTON = 200  # free parameters; above, the Hessian costs more than it saves


@dataclass(frozen=True)
class Auto:
    """Decide by the program: `ClosedForm` for what it covers, then `Newton` for the rest.

    With more than 200 parameters without a closed form, `Gradient` (L-BFGS) instead of Newton.
    """

    def __call__(self, model: LatentModel, params: Params, posterior: Posterior) -> Params:
        closed = covered(model)
        if closed:
            params = ClosedForm()(model, params, posterior)
        rest = tuple(n for n in model.params if n not in closed)
        if not rest:
            return params
        size = sum(params[n].size for n in rest)
        mstep = Newton(only=rest) if size <= MAX_NEWTON else Gradient(only=rest)
        return mstep(model, params, posterior)
