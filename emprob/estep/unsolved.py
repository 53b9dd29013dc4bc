"""What stands in for an E-step where no exact or approximate integral is known."""

from dataclasses import dataclass
from typing import Any, NoReturn

from emprob.errors import ModelError
from emprob.types import Capabilities


@dataclass(frozen=True)
class Unsolved:
    """The rule of latents that can only be simulated; every integral it is asked for is refused.

    Attributes:
        why: what is in the way of an integral.
        remedy: what to do.
    """

    why: str
    remedy: str = "Use an E-step by simulation, such as ep.EM(ep.MonteCarlo()), or ep.nuts."

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exact=False, deterministic=True, memoryless=True)

    def _refuse(self, *_: Any) -> NoReturn:
        raise ModelError(f"{self.why}. {self.remedy}")

    applied = around = log_integral = solve = draw = _refuse


def is_solved(model: Any) -> bool:
    """Whether every group of continuous latents has an integral, exact or around its mode."""
    return not any(isinstance(i.rule, Unsolved) for i in model.structure.integrals)
