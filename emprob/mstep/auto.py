"""The default M-step: closed forms where they exist, Newton on the rest (ECM)."""

from dataclasses import dataclass

from emprob.model import LatentModel
from emprob.mstep.closed_form import covered, stages, updated
from emprob.mstep.gradient import Gradient
from emprob.mstep.newton import Newton
from emprob.types import Params, Posterior

MAX_NEWTON = 200  # free parameters; above, the Hessian costs more than it saves


@dataclass(frozen=True)
class Auto:
    """Decide by the program: `ClosedForm` for what it covers, `Newton` for the rest.

    Closed forms of locations, probabilities and rates come first, those of scales last, given all
    others: with coefficients by Newton in between, the M-step of a linear-Gaussian chain is exact.
    With more than 200 parameters without a closed form, `Gradient` (L-BFGS) instead of Newton.
    """

    def __call__(self, model: LatentModel, params: Params, posterior: Posterior) -> Params:
        closed = covered(model)
        rest = tuple(n for n in model.params if n not in closed)
        locations, scales = stages(model)
        params = updated(model, params, posterior, locations)
        if rest:
            size = sum(params[n].size for n in rest)
            mstep = Newton(only=rest) if size <= MAX_NEWTON else Gradient(only=rest)
            params = mstep(model, params, posterior)
        return updated(model, params, posterior, scales)
