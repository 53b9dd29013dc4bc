"""`ep.Auto()`: let the program decide, for E-steps and M-steps alike."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Auto:
    """Choose by the program.

    As an E-step: `emprob.estep.Auto`; as an M-step: `emprob.mstep.Auto`, whose docstrings have
    the decision lists.
    """
