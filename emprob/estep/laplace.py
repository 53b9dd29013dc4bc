"""E-steps around the mode: adaptive Gauss-Hermite quadrature, and Laplace's approximation."""

from dataclasses import dataclass, replace

from jax import Array

from emprob.estep.conjugate import Conjugate
from emprob.estep.gaussian import gaussian_solution
from emprob.estep.unsolved import Unsolved
from emprob.integral import quadrature
from emprob.integral.curved import evidence_of_one
from emprob.integral.expectation import Problem, Solution, expectation
from emprob.integral.integral import Integral
from emprob.integral.moments import atom_draw, gaussian_draw
from emprob.model import LatentModel, with_rules
from emprob.types import Capabilities, Params, Posterior

MAX_WIDTH = 3  # coordinates of a series for which a product rule is cheap
MAX_NODES = 400  # of that rule


@dataclass(frozen=True)
class Laplace:
    """Integrate smooth latents around their mode.

    Up to three coordinates to a plate element: adaptive Gauss-Hermite quadrature with `order` nodes
    a coordinate. Chains, and longer vectors: Laplace's approximation of the integral. The objective
    is that approximation; its derivatives are exact, but those of one vector in no plate have eight
    digits, and the second ones six (`integral/curved.py`).

    Seven nodes can miss a log-likelihood by 0.01 where a posterior is far from Gaussian (five
    binary items, LSAT7); fifteen are right there to 3e-5.

    Attributes:
        order: nodes a coordinate, fewer if their product is above 400. One node is Laplace's
            approximation.

    Source: Pinheiro & Bates (1995), Journal of Computational and Graphical Statistics 4, eq. 2.6.
    """

    order: int = 15

    def __post_init__(self):
        if self.order < 1:
            raise ValueError(f"Laplace(order={self.order}): expected an integer >= 1.")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exact=False, deterministic=True, memoryless=True)

    def __call__(self, model: LatentModel, params: Params) -> Posterior:
        return expectation(model, params)

    def adapted(self, model: LatentModel) -> LatentModel:
        """The model with every group of latents integrated by this rule."""
        return with_rules(model, self.applied)

    def applied(self, integral: Integral) -> Integral:
        """The group by this rule; a conjugate one stays exact, a rough one is refused."""
        if isinstance(integral.rule, Unsolved):
            integral.rule.applied(integral)
        if isinstance(integral.rule, Conjugate):
            return integral
        return replace(integral, rule=self)

    def adaptive(self, integral: Integral) -> bool:
        """Whether a group is integrated by quadrature rather than by Laplace's approximation."""
        _, steps, width = integral.block.shape
        return self.order > 1 and steps == 1 and width <= MAX_WIDTH

    def nodes(self, integral: Integral) -> int:
        """Nodes a coordinate for a group of latents, an odd number where it is cut."""
        limit = int(MAX_NODES ** (1.0 / integral.block.width) + 1e-9)
        return min(self.order, limit - 1 + limit % 2)

    def around(self, p: Problem) -> quadrature.Around:
        if p.integral.quadratic:
            return quadrature.gaussian_around(p.f, p.fixed, p.centre, p.real)
        return quadrature.laplace_around(p.f, p.fixed, p.centre, p.real)

    def by_differences(self, integral: Integral) -> bool:
        """Whether derivatives of the evidence are differences of the program's gradient."""
        *batch, steps, width = integral.shape
        one = batch == [1, 1] and steps == 1
        return one and width > MAX_WIDTH and not integral.quadratic

    def log_integral(self, p: Problem) -> Array:
        if self.by_differences(p.integral):
            return evidence_of_one(p.f, p.centre, p.real)
        around = self.around(p)
        if self.adaptive(p.integral):
            return quadrature.adaptive(p.f, around, self.nodes(p.integral))[0]
        return quadrature.evidence(around, p.real)

    def solve(self, p: Problem) -> Solution:
        around = self.around(p)
        if self.adaptive(p.integral):
            return Solution(*quadrature.adaptive(p.f, around, self.nodes(p.integral)))
        return gaussian_solution(around, quadrature.evidence(around, p.real))

    def draw(self, p: Problem, solution: Solution, key: Array) -> Array:
        """Draws (B, S, T, D): of the nodes with quadrature, else of the Gaussian at the mode."""
        if self.adaptive(p.integral):
            return atom_draw(solution, key)
        return gaussian_draw(self.around(p), key)
