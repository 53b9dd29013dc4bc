"""The exact E-step of conjugate latents, by probing."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from emprob.errors import ModelError
from emprob.integral.expectation import Problem, Solution, expectation
from emprob.integral.integral import Field, Integral
from emprob.integral.kernels import Kernel
from emprob.model import LatentModel, with_rules
from emprob.types import Capabilities, Params, Posterior


@dataclass(frozen=True)
class Conjugate:
    """Integrate latents whose posterior is a Gamma, inverse Gamma, Beta or Dirichlet.

    The log-density at as many atoms as the family has statistics, plus one, gives the posterior's
    natural parameters by a small linear solve; the family's log-partition gives the integral, and
    its gradient the expected statistics. Found by probing: there is no table of conjugate pairs.

    Attributes:
        kernel: the family; None: found by `ep.bind`.
    """

    kernel: Kernel | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exact=True, deterministic=True, memoryless=True)

    def __call__(self, model: LatentModel, params: Params) -> Posterior:
        return expectation(model, params)

    def adapted(self, model: LatentModel) -> LatentModel:
        """The model with every group of latents integrated by this rule."""
        return with_rules(model, self.applied)

    def applied(self, integral: Integral) -> Integral:
        """The group as it was found; refused where it is not conjugate."""
        if not isinstance(integral.rule, Conjugate):
            names = ", ".join(map(repr, integral.sites))
            raise ModelError(f"Conjugate(): {names} is not conjugate. Use ep.Laplace().")
        return integral

    def log_integral(self, p: Problem) -> Array:
        return self.probed(p).value

    def solve(self, p: Problem) -> Solution:
        probed = self.probed(p)
        return Solution(probed.value, probed.atoms, probed.weights)

    def draw(self, p: Problem, solution: Solution, key: Array) -> Array:
        """Exact draws (B, S, 1, D)."""
        assert self.kernel is not None
        probed = self.probed(p)
        drawn = self.kernel.draw(key, probed.eta)
        return drawn[:, :, None, :] * probed.given

    def probed(self, p: Problem) -> "Probed":
        assert self.kernel is not None
        first = probe(p.fixed, self.kernel, p.centre)
        return probe(p.f, self.kernel, lax.stop_gradient(first.scale))


class Probed(NamedTuple):
    """A conjugate posterior.

    Attributes:
        value: (B, S) log-integral.
        eta: (B, S, P) natural parameters of z / scale.
        means: (B, S, P) expected statistics of z / scale.
        atoms: (A, B, S, 1, D), and their weights (A, B, S).
        scale: (B, S, 1, D), near the posterior's middle; the input where z has no scale.
        given: (B, S, 1, D), the scale that was used.
    """

    value: Array
    eta: Array
    means: Array
    atoms: Array
    weights: Array
    scale: Array
    given: Array


def probe(f: Field, kernel: Kernel, scale: Array) -> Probed:
    """Fit c + <eta, T> to a log-density through its atoms, and integrate it."""
    scale = scale if kernel.scaled else jnp.ones_like(scale)
    points = kernel.atoms(scale.shape[-1])
    atoms = jnp.asarray(points)[:, None, None, None, :] * scale
    values = jax.vmap(f)(atoms)  # (A, B, S)
    inverse = np.linalg.inv(design(kernel, points))
    found = jnp.einsum("pa,abs->bsp", jnp.asarray(inverse), values)
    eta, c = found[..., :-1], found[..., -1]
    total, means = value_and_means(kernel, eta)
    ones = jnp.ones((*means.shape[:-1], 1), means.dtype)
    weights = jnp.einsum("bsp,pa->abs", jnp.concatenate([means, ones], -1), jnp.asarray(inverse))
    value = c + total
    middle = scale
    if kernel.scaled:
        value = value + jnp.log(scale[..., 0, 0])
        middle = scale * jnp.exp(means[..., 0])[..., None, None]
        middle = jnp.where(jnp.isfinite(middle), middle, scale)
    return Probed(value, eta, means, atoms, weights, middle, scale)


def design(kernel: Kernel, points: np.ndarray) -> np.ndarray:
    """[T, 1] at atoms (A, D) -> (A, A)."""
    with jax.ensure_compile_time_eval():
        t = np.asarray(kernel.statistics(jnp.asarray(points)))
    return np.concatenate([t, np.ones((len(t), 1))], 1)


def value_and_means(kernel: Kernel, eta: Array) -> tuple[Array, Array]:
    """A(eta) and E[T] = dA / d eta."""
    value, push = jax.vjp(kernel.log_partition, eta)
    return value, push(jnp.ones_like(value))[0]
