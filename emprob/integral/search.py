"""Whether the search for the modes of continuous latents ended at them.

A run does not ask: it costs one more search. The verdict does, once, at the end.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob.estep.laplace import Laplace
from emprob.integral.expectation import problem
from emprob.integral.quadrature import find_mode, log_gaussian, precision
from emprob.model import LatentModel

SMALL = 1e-6  # squared distance to the mode, in posterior standard deviations


@partial(jax.jit, static_argnames="index")
def _failed(model: LatentModel, params: Mapping[str, Array], index: int) -> Array:
    """(S,): no point was reached where the gradient is zero and the density curves downwards."""
    p = problem(model, params, index)
    mode = find_mode(p.fixed, p.centre, p.real)
    there = precision(p.fixed, mode.z, p.real)
    volume = log_gaussian(there, jnp.zeros_like(mode.z), p.real)
    good = (mode.decrement < SMALL) & jnp.isfinite(volume) & jnp.isfinite(p.fixed(mode.z))
    return ~good.all(0)


def failures(model: LatentModel, params: Mapping[str, Any]) -> str:
    """A sentence on latents whose posterior mode was not found, with how many; or ''."""
    values = {k: jnp.asarray(v, float) for k, v in params.items()}
    found = []
    for i, group in enumerate(model.structure.integrals):
        if group.quadratic or not isinstance(group.rule, Laplace):
            continue
        failed = np.asarray(_failed(model, values, i))
        if failed.any():
            names = ", ".join(map(repr, group.sites))
            found.append(
                f"the posterior mode of {names} was not found in {failed.sum()} of {failed.size} "
                f"series, first in number {failed.argmax()}: there the density rises for ever or "
                "its top is flat, and the integral by Laplace is not to be trusted"
            )
    return "; ".join(found)
