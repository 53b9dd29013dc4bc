"""Q, its score, and ascent steps on a function of unconstrained parameters."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from emprob.estep.enumerate import inner
from emprob.model import LatentModel, naturals
from emprob.types import Params, Posterior


def expected_log_joint(model: LatentModel, params: Mapping[str, Array], posterior: Posterior):
    """Q(params) + log prior: sum_s <w_s, l_s(params)>, w fixed."""
    values, log_prior = naturals(model, params, posterior.atoms)
    return inner(posterior.weights, values) + log_prior


def score(model: LatentModel, u: Params, posterior: Posterior) -> tuple[Params, Array]:
    """Gradient of the objective at u (unconstrained), by Fisher's identity that of Q; log prior."""

    def q(v: Params) -> tuple[Array, Array]:
        values, log_prior = naturals(model, model.constrain(v), posterior.atoms)
        return inner(posterior.weights, values) + log_prior, log_prior

    return jax.grad(q, has_aux=True)(u)


def dot(a: Mapping[str, Array], b: Mapping[str, Array]) -> Array:
    """Inner product of two parameter trees."""
    return sum((jnp.sum(a[k] * b[k]) for k in a), jnp.zeros(()))


def subtract(a: Mapping[str, Array], b: Mapping[str, Array]) -> Params:
    """a - b, by site."""
    return {k: a[k] - b[k] for k in a}


SHRINK = 0.3
NUM_SHRINKS = 12


class Ascent(NamedTuple):
    """A step: where it leads, and value and gradient where it began."""

    u: Params
    value: Array
    gradient: Params


def newton_step_by_units(f: Callable[[Params], Array], u: Params) -> Ascent:
    """As `newton_step`, where f is a sum over the first axis that all of u share.

    The Hessian is a block for each unit, found in as many products as a unit has coordinates.
    """
    shapes = {k: v.shape for k, v in u.items()}
    units = next(iter(shapes.values()))[0]
    sizes = [v.size // units for v in u.values()]
    ends = np.cumsum(sizes)[:-1]
    flat = jnp.concatenate([v.reshape(units, -1) for v in u.values()], 1)

    def unravel(x: Array) -> Params:
        parts = jnp.split(x, ends, axis=1)
        return {k: p.reshape(shapes[k]) for k, p in zip(shapes, parts, strict=True)}

    def g(x: Array) -> Array:
        return f(unravel(x))

    (value, gradient), push = jax.linearize(jax.value_and_grad(g), flat)
    basis = jnp.eye(flat.shape[1], dtype=flat.dtype)
    columns = jax.vmap(lambda e: push(jnp.broadcast_to(e, flat.shape))[1])(basis)
    hessian = jnp.where(jnp.isfinite(columns).all((0, 2))[:, None, None],
                        jnp.moveaxis(columns, 0, -1), _plain(gradient))  # fmt: skip
    step = jax.vmap(_direction)(hessian, gradient)
    longest = 5.0 / jnp.maximum(jnp.max(jnp.abs(step) / (1.0 + jnp.abs(flat))), 5.0)
    step = jnp.where(jnp.isfinite(step).all(), step * longest, 0.0)
    shorter = _backtrack(
        lambda x: g(x.reshape(flat.shape)), flat.ravel(), step.ravel(), value, gradient.ravel()
    )
    return Ascent(unravel(flat + shorter * step), value, unravel(gradient))


def newton_step(f: Callable[[Params], Array], u: Params) -> Ascent:
    """One damped Newton step uphill; `f` does not decrease.

    Directions in which f curves upwards are followed by the absolute value of the curvature (so
    the step is uphill), a Hessian that is not finite is replaced by the gradient's length, and the
    step is shortened until f has grown by a share of what the gradient promises.
    """
    flat, unravel = ravel_pytree(u)
    if flat.size == 0:  # a simplex of one share
        return Ascent(u, f(u), u)

    def g(x: Array) -> Array:
        return f(unravel(x))

    (value, gradient), push = jax.linearize(jax.value_and_grad(g), flat)
    hessian = jax.vmap(lambda e: push(e)[1])(jnp.eye(flat.size, dtype=flat.dtype))
    hessian = jnp.where(jnp.isfinite(hessian).all(), hessian, _plain(gradient))
    step = _direction(hessian, gradient)
    longest = 5.0 / jnp.maximum(jnp.max(jnp.abs(step) / (1.0 + jnp.abs(flat))), 5.0)
    step = jnp.where(jnp.isfinite(step).all(), step * longest, 0.0)
    new = flat + _backtrack(g, flat, step, value, gradient) * step
    return Ascent(unravel(new), value, unravel(gradient))


def _plain(gradient: Array) -> Array:
    """What stands in for a Hessian that is not finite: then the gradient is followed.

    A second derivative of a clipped probability can be 0 * inf.
    """
    eye = jnp.eye(gradient.shape[-1], dtype=gradient.dtype)
    return -eye * jnp.maximum(jnp.abs(gradient).max(), 1e-3)


def _direction(hessian: Array, gradient: Array) -> Array:
    """Newton's step; along the absolute value of the curvature where it is not all downwards."""
    scale = jnp.sqrt(jnp.maximum(jnp.abs(jnp.diagonal(hessian)), 1e-12))
    scaled, slope = -hessian / scale[:, None] / scale[None, :], gradient / scale
    root = jnp.linalg.cholesky(scaled)
    strong = jnp.diagonal(root).min() > 1e-3  # NaN where some curvature is not downwards

    def by_root(_: None) -> Array:
        return jax.scipy.linalg.cho_solve((root, True), slope)

    def by_axes(_: None) -> Array:
        curvature, axes = jnp.linalg.eigh(scaled)
        size = jnp.maximum(jnp.abs(curvature), 1e-8 * jnp.max(jnp.abs(curvature)) + 1e-300)
        return axes @ ((axes.T @ slope) / size)

    return jax.lax.cond(strong, by_root, by_axes, None) / scale


def _backtrack(g: Callable, x: Array, step: Array, value: Array, gradient: Array) -> Array:
    """The first of 1, 0.3, 0.09, ... that gains enough; 0 if none does."""
    promised = gradient @ step
    slack = 1e-14 * (1.0 + jnp.abs(value))

    def bad(carry: tuple[Array, Array]) -> Array:
        t, tries = carry
        gained = g(x + t * step) - value
        good = gained >= 1e-4 * t * promised - slack
        return ~good & (tries < NUM_SHRINKS)

    t, tries = jax.lax.while_loop(
        bad, lambda c: (c[0] * SHRINK, c[1] + 1), (jnp.ones(()), jnp.zeros((), int))
    )
    return jnp.where(tries < NUM_SHRINKS, t, 0.0)
