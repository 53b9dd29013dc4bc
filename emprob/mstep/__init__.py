"""M-steps: parameters that do not decrease Q + log prior."""

from emprob.mstep.auto import Auto
from emprob.mstep.closed_form import ClosedForm
from emprob.mstep.gradient import Gradient
from emprob.mstep.newton import Newton

__all__ = ["Auto", "ClosedForm", "Gradient", "Newton"]
