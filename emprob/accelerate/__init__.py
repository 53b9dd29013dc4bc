"""Accelerators: algorithms made of an EM."""

from emprob.accelerate.anderson import Anderson
from emprob.accelerate.annealed import Annealed
from emprob.accelerate.damped import Damped
from emprob.accelerate.handover import HandOver
from emprob.accelerate.quasi_newton import QuasiNewton
from emprob.accelerate.squarem import Squarem

__all__ = ["Anderson", "Annealed", "Damped", "HandOver", "QuasiNewton", "Squarem"]
