"""The exact E-step of linear-Gaussian latents."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax import Array

from emprob.errors import ModelError
from emprob.integral import quadrature
from emprob.integral.expectation import Problem, Solution, expectation
from emprob.integral.integral import Integral
from emprob.integral.moments import gaussian_draw
from emprob.model import LatentModel, with_rules
from emprob.types import Capabilities, Params, Posterior


@dataclass(frozen=True)
class Gaussian:
    """Integrate latents whose log-density is quadratic, whatever program wrote it.

    Mean and precision are derivatives of the log-factors; a plate is a batch of blocks, a scan a
    block-tridiagonal system, anything else one dense block. The atoms are exact on quadratics.
    """

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exact=True, deterministic=True, memoryless=True)

    def __call__(self, model: LatentModel, params: Params) -> Posterior:
        return expectation(model, params)

    def adapted(self, model: LatentModel) -> LatentModel:
        """The model with every group of latents integrated by this rule."""
        return with_rules(model, self.applied)

    def applied(self, integral: Integral) -> Integral:
        """The group integrated by this rule; refused where it is not Gaussian."""
        if not integral.quadratic:
            names = ", ".join(map(repr, integral.sites))
            raise ModelError(
                f"Gaussian(): the log-density is not quadratic in {names}. Use ep.Laplace()."
            )
        return replace(integral, rule=self)

    def around(self, p: Problem) -> quadrature.Around:
        return quadrature.gaussian_around(p.f, p.fixed, p.centre, p.real)

    def log_integral(self, p: Problem) -> Array:
        return quadrature.evidence(self.around(p), p.real)

    def solve(self, p: Problem) -> Solution:
        around = self.around(p)
        return gaussian_solution(around, quadrature.evidence(around, p.real))

    def draw(self, p: Problem, solution: Solution, key: Array) -> Array:
        """Exact draws (B, S, T, D)."""
        return gaussian_draw(self.around(p), key)


def gaussian_solution(around: quadrature.Around, value: Array) -> Solution:
    """The atoms of the Gaussian around a point, all of one weight."""
    atoms = quadrature.gaussian_atoms(around)
    weights = jnp.full((len(atoms), *value.shape), 1.0 / len(atoms), value.dtype)
    return Solution(value, atoms, weights)
