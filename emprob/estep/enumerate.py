"""The exact E-step for discrete latents: weights are the gradient of log Z."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from emprob.estep import blocks
from emprob.evaluation import Evaluation
from emprob.model import LatentModel, factors, layout
from emprob.partition.factors import Factor
from emprob.partition.plates import log_partition
from emprob.partition.reduce import Reduce, log_sum_exp
from emprob.types import Capabilities, Params, Posterior


def log_partition_of(
    out: Evaluation, reduce: Reduce = log_sum_exp, tilts: Mapping[str, Array] | None = None
) -> Array:
    """log Z of an evaluated program.

    Args:
        out: the evaluation.
        reduce: what eliminating a variable means.
        tilts: extra log-factors of single variables, by variable, in the common layout; the
            gradient of log Z in a tilt of zeros is the variable's posterior.
    """
    extra = [Factor(t, out.variables[name].plates) for name, t in (tilts or {}).items()]
    return log_partition(factors(out) + extra, layout(out), reduce)


def with_naturals(out: Evaluation, naturals: dict[str, Array]) -> Evaluation:
    """The same program with other values of its naturals."""
    terms = {k: t._replace(natural=naturals[k]) for k, t in out.terms.items()}
    return replace(out, terms=terms)


@dataclass(frozen=True)
class Enumerate:
    """Sum over all values of every discrete latent, exactly.

    Plates by variable elimination, scans by a forward-backward recursion; one gradient of log Z in
    the log-factors gives every expected statistic.
    """

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exact=True, deterministic=True, memoryless=True)

    def __call__(self, model: LatentModel, params: Params) -> Posterior:
        return posterior_of(model.evaluate(params))


def posterior_of(out: Evaluation) -> Posterior:
    """log Z and its gradient in the naturals of an evaluated program."""
    naturals = {k: t.natural for k, t in out.terms.items()}

    def log_z(naturals: dict[str, Array]) -> Array:
        return log_partition_of(with_naturals(out, naturals))

    plate = blocks.plate_of(out)
    if plate is not None:
        return Posterior(*blocks.value_and_grad(out, plate, log_partition_of))
    return Posterior(*jax.value_and_grad(log_z)(naturals))


def inner(weights: dict[str, Array], naturals: dict[str, Array]) -> Array:
    """Q = sum_s <w_s, l_s>; where a weight is zero its log-factor may be -inf."""
    total = jnp.zeros(())
    for name, w in weights.items():
        total = total + jnp.sum(w * jnp.where(w == 0, 0.0, naturals[name]))
    return total
