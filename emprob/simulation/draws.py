"""Draws of the continuous latents as the atoms of a posterior.

Discrete latents are never drawn: they are summed out at every draw of the others, which makes the
weights those of Rao and Blackwell. With z the latents that are drawn,

    log p(y, z | params) = log Z of the program in which z is held,

its mean over draws is Q, and its gradient in the program's log-factors the weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.integral.expectation import evaluate_all
from emprob.model import LatentModel, factors, layout
from emprob.partition.plates import log_partition
from emprob.types import Atoms, Params, Posterior, Sample

CELLS = 500_000  # coordinates of latents that are evaluated together: memory


def plain(model: LatentModel) -> LatentModel:
    """The model whose integrals are all evaluated at given values, step by step and row by row."""
    integrals = tuple(replace(i, steady=None) for i in model.structure.integrals)
    data = tuple(d._replace(steady=None) for d in model.data.integrals)
    return replace(
        model,
        structure=replace(model.structure, integrals=integrals),
        data=replace(model.data, integrals=data),
    )


def log_joint(model: LatentModel, params: Mapping[str, Array], latents: Mapping[str, Array]):
    """log p(y, z | params) of one draw, the discrete latents summed out."""
    out = model.evaluate(params, latents)
    return log_partition(factors(out), layout(out))


def over_atoms(f, atoms):
    """`f` of every draw (a tree, first axis A); as many at a time as memory allows."""
    leaves = jax.tree.leaves(atoms)
    count, size = leaves[0].shape[0], sum(v[0].size for v in leaves)
    batch = max(1, CELLS // max(size, 1))
    return jax.vmap(f)(atoms) if batch >= count else lax.map(f, atoms, batch_size=batch)


def by_integral(model: LatentModel, atoms: Atoms) -> tuple[Atoms, ...]:
    """The atoms of each group of latents."""
    return tuple({s: atoms[s] for s in i.sites} for i in model.structure.integrals)


def posterior_at(
    model: LatentModel, params: Params, atoms: Atoms, shares: Array, value: Array
) -> Posterior:
    """Weights of every log-factor at draws of the latents.

    Args:
        model: see `plain`.
        params: constrained space.
        atoms: by site, (A, ...).
        shares: (A,), what each draw counts; they sum to one and may be negative.
        value: log Z, or an estimate of it, or NaN.
    """
    grouped = by_integral(model, atoms)
    out, axes = evaluate_all(model, params, grouped)
    naturals = {k: t.natural for k, t in out.terms.items()}
    still = {k: jax.tree.map(lambda _: None, t) for k, t in out.terms.items()}
    marks = {**still, **axes}

    def expected(naturals: dict[str, Array]) -> Array:
        terms = {k: t._replace(natural=naturals[k]) for k, t in out.terms.items()}

        def one(terms: dict) -> Array:
            at = replace(out, terms=terms)
            return log_partition(factors(at), layout(at))

        return shares @ jax.vmap(one, in_axes=(marks,), axis_size=len(shares))(terms)

    return Posterior(value, jax.grad(expected)(naturals), grouped)


def increase(model: LatentModel, old: Params, new: Params, atoms: Atoms) -> Array:
    """log p(y, z | new) - log p(y, z | old) of every draw, the priors left out, (A,)."""
    return over_atoms(lambda z: log_joint(model, new, z) - log_joint(model, old, z), atoms)


def alike(batches: int) -> Array:
    """Log-weights of batches that all count the same, (G, 1)."""
    return jnp.zeros((batches, 1))


def batch_weights(log_weights: Any) -> Array:
    """What each of G batches counts: (G,), of mean one.

    A batch drawn by a particle filter counts by the filter's estimate of the evidence: that makes
    means over batches unbiased, however few the particles. With several series each batch has an
    evidence of each; the product of all would leave one batch, while

        w_g = 1 + sum_s (Z_gs / mean_g Z_gs - 1)

    has the same expectation for everything that is a sum over series, as scores are, and a
    variance that is a sum too. It can be negative.

    Args:
        log_weights: (G, S).

    Source: Andrieu, Doucet and Holenstein (2010), JRSS B 72(3), theorem 2, for the weights.
    """
    shares = len(log_weights) * jax.nn.softmax(jnp.asarray(log_weights), 0)
    return 1.0 + (shares - 1.0).sum(1)


def evened(drawn: Sample) -> Atoms:
    """As many draws that all count alike: those of a batch as often as it counts.

    Weights below zero count as none.
    """
    weights = jnp.maximum(batch_weights(drawn.log_weights), 0.0)
    count = len(next(iter(drawn.atoms.values())))
    each = count // len(weights)
    ends = jnp.cumsum(weights) / weights.sum() * count
    place = jnp.arange(count) + 0.5
    batch = jnp.minimum(jnp.searchsorted(ends, place), len(weights) - 1)
    return {k: v[batch * each + jnp.arange(count) % each] for k, v in drawn.atoms.items()}


def mean_and_error(values: Array, weights: Array) -> tuple[Array, Array]:
    """Mean over draws (A, ...) and its standard error, from the means of independent batches.

    Args:
        values: of the draws, batch after batch.
        weights: (G,) of the batches, of mean one.
    """
    batches = len(weights)
    means = values.reshape(batches, -1, *values.shape[1:]).mean(1)
    weights = weights.reshape(-1, *(1,) * (means.ndim - 1))
    mean = (weights * means).mean(0)
    square = (weights**2 * (means - mean) ** 2).sum(0)
    return mean, jnp.sqrt(square / (batches * (batches - 1)))
