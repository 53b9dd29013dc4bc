"""The parameters as one vector of unbounded coordinates, those of `chart.py`, in float64."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from emprob import chart


def in_double(model: Any) -> Any:
    """The same model with float64 arrays: second derivatives in single precision say nothing."""

    def cast(x: Any) -> Any:
        x = jnp.asarray(x)
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, model)


def flatten(model: Any, by_site: Mapping[str, Array]) -> Array:
    """Coordinates by site as one vector (F,), the program's order."""
    return jnp.concatenate([jnp.ravel(by_site[n]) for n in model.params])


def unflatten(model: Any, flat: Array, like: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse of `flatten`; `like` has the shapes."""
    out, start = {}, 0
    for name in model.params:
        size = like[name].size
        out[name] = flat[start : start + size].reshape(like[name].shape)
        start += size
    return out


@jax.jit
def coordinates_of(model: Any, params: Mapping[str, Array]) -> dict[str, Array]:
    """Coordinates by site of constrained values by site."""
    return chart.to_coordinates(model.data.transforms, params)


def as_arrays(params: Mapping[str, Any]) -> dict[str, Array]:
    """Values by site as float64 arrays; call inside `jax.enable_x64(True)`."""
    return {k: jnp.asarray(v, jnp.float64) for k, v in params.items()}


@jax.jit
def outputs_jacobian(model: Any, coordinates: Mapping[str, Array]):
    """Constrained parameters and deterministics, each with its Jacobian (M, F)."""

    def outputs(flat: Array) -> dict[str, dict[str, Array]]:
        w = unflatten(model, flat, coordinates)
        params = chart.from_coordinates(model.data.transforms, w)
        found = model.deterministics(params)
        return {"params": params, "deterministics": {k: v + 0.0 for k, v in found.items()}}

    point = flatten(model, coordinates)
    return outputs(point), jax.jacfwd(outputs)(point)
