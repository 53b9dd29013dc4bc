"""Parameters of which Q is a sum over units: a Hessian of small blocks instead of a dense one.

Items of a test, series of a panel: each has parameters of its own, and no log-factor holds those of
two. It shows in two products with the Hessian of randomly weighted log-factors: numbering the units
of a direction then numbers the units of the answer.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob.model import LatentModel, naturals
from emprob.mstep.closed_form import covered
from emprob.types import Params

LEAST = 8  # units, below which a dense Hessian is as good
EXACT = 1e-9


def with_separable(model: LatentModel, point: Mapping[str, Array]) -> LatentModel:
    """The model with its separable parameters named, if all without a closed form are."""
    closed = covered(model)
    names = tuple(n for n in model.params if n not in closed)
    u = {k: v for k, v in model.unconstrain(point).items() if k in names}
    sizes = {v.shape[0] if v.ndim else 0 for v in u.values()}
    if len(sizes) != 1 or min(sizes) < LEAST:
        return model
    rng = np.random.default_rng(3)
    number = jnp.asarray(rng.uniform(1.0, 2.0, sizes.pop()))
    move = {k: jnp.asarray(rng.normal(size=v.shape)) for k, v in u.items()}
    rest = {k: v for k, v in point.items() if k not in names}
    plain, numbered = _curved(model, u, rest, move, number)
    gaps, whole = 0.0, 0.0
    for k in u:
        expected = np.asarray(_times(number, plain[k]))
        gaps = max(gaps, float(np.abs(np.asarray(numbered[k]) - expected).max()))
        whole = max(whole, float(np.abs(expected).max()))
    if not np.isfinite(gaps) or gaps > EXACT * whole:
        return model
    return replace(model, structure=replace(model.structure, separable=names))


def _times(number: Array, x: Array) -> Array:
    return number.reshape((-1,) + (1,) * (x.ndim - 1)) * x


@jax.jit
def _curved(model: LatentModel, u: Params, rest: Params, move: Params, number: Array) -> Any:
    """Products of a randomly weighted Hessian with a direction, and with the same numbered."""

    def q(u: Params) -> Array:
        values, log_prior = naturals(model, {**rest, **model.constrain(u)})
        total = log_prior
        for i, k in enumerate(sorted(values)):
            weight = jax.random.uniform(jax.random.key(i), values[k].shape, minval=0.5)
            total = total + jnp.sum(weight * jnp.where(jnp.isfinite(values[k]), values[k], 0.0))
        return total

    _, push = jax.linearize(jax.grad(q), u)
    return push(move), push({k: _times(number, v) for k, v in move.items()})
