"""E-steps: weights on the log-factors at given parameters."""

from emprob.estep.auto import Auto
from emprob.estep.enumerate import Enumerate

__all__ = ["Auto", "Enumerate"]
