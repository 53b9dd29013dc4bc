"""Newton's steps up a function of unconstrained parameters, which never fall."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from emprob.choice import choose
from emprob.types import Params

SHRINK = 0.3
NUM_SHRINKS = 12
LONGEST = 5.0  # change of a coordinate, in units of one plus its size


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
    step = _bounded(jax.vmap(_direction)(hessian, gradient), flat, value)
    shorter = _backtrack(
        lambda x: g(x.reshape(flat.shape)), flat.ravel(), step.ravel(), value, gradient.ravel()
    )
    return Ascent(unravel(flat + shorter * step), value, unravel(gradient))


class Stand(NamedTuple):
    """A point of an ascent and what Newton's method sees there.

    Attributes:
        x: (P,).
        value, gradient: of the function, scalar and (P,).
        step: Newton's from there (P,), uphill or nothing.
        known: whether the function was looked at; else only `x` means something.
    """

    x: Array
    value: Array
    gradient: Array
    step: Array
    known: Array

    @property
    def promise(self) -> Array:
        """First-order gain of the step; the squared distance to the maximum in its own units."""
        return self.gradient @ self.step

    @property
    def rounding(self) -> Array:
        """A change of the value that says nothing."""
        return _rounding(self.value)


def unseen(x: Array) -> Stand:
    """A point that was not looked at."""
    zero = jnp.zeros_like(x)
    return Stand(x, jnp.zeros((), x.dtype), zero, zero, jnp.asarray(False))


def look(g: Callable[[Array], Array], x: Array) -> Stand:
    """Value, gradient and Hessian from one pass, and the step that they ask for.

    Directions in which g curves upwards are followed by the absolute value of the curvature (so
    the step is uphill); a Hessian that is not finite is replaced by the gradient's length.
    """
    (value, gradient), push = jax.linearize(jax.value_and_grad(g), x)
    hessian = jax.vmap(lambda e: push(e)[1])(jnp.eye(x.size, dtype=x.dtype))
    hessian = jnp.where(jnp.isfinite(hessian).all(), hessian, _plain(gradient))
    step = _bounded(_direction(hessian, gradient), x, value)
    return Stand(x, value, gradient, step, jnp.asarray(True))


def newton_step(f: Callable[[Params], Array], u: Params) -> Ascent:
    """One damped Newton step uphill; `f` does not decrease.

    The step is shortened until f has grown by a share of what the gradient promises.
    """
    flat, unravel = ravel_pytree(u)
    if flat.size == 0:  # a simplex of one share
        return Ascent(u, f(u), u)

    def g(x: Array) -> Array:
        return f(unravel(x))

    at = look(g, flat)
    new = flat + _backtrack(g, flat, at.step, at.value, at.gradient) * at.step
    return Ascent(unravel(new), at.value, unravel(at.gradient))


def climb(g: Callable[[Array], Array], start: Stand) -> tuple[Stand, Stand]:
    """One damped Newton step, where a look costs little more than a value.

    The look that judges a step is the next step's own; a step that promises less than rounding is
    taken without one.

    Returns:
        Where the step began, looked at, and where it ends.
    """

    def going(carry: tuple[Stand, Stand, Array, Array]) -> Array:
        here, _, share, refused = carry
        worth = here.promise > here.rounding
        return ~here.known | (worth & refused & (share > SHRINK ** (NUM_SHRINKS - 0.5)))

    def further(carry: tuple[Stand, Stand, Array, Array]) -> tuple[Stand, Stand, Array, Array]:
        here, _, share, _ = carry
        new = look(g, here.x + share * here.step)  # which is `here` as long as it is not known
        good = _enough(new.value, here.value, share * here.promise)
        ahead = choose(good | ~here.known, new, here)
        share = jnp.where(here.known, SHRINK * share, share)
        return choose(here.known, here, new), ahead, share, ~(here.known & good)

    carry = (start, start, jnp.ones((), start.x.dtype), jnp.asarray(True))
    here, ahead, _, _ = jax.lax.while_loop(going, further, carry)
    return here, choose(here.promise > here.rounding, ahead, unseen(here.x + here.step))


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


def _bounded(step: Array, x: Array, value: Array) -> Array:
    """A step in proportion to where it begins; none where it or the value is not finite."""
    longest = LONGEST / jnp.maximum(jnp.max(jnp.abs(step) / (1.0 + jnp.abs(x))), LONGEST)
    return jnp.where(jnp.isfinite(value) & jnp.isfinite(step).all(), step * longest, 0.0)


def _rounding(value: Array) -> Array:
    return 1e-14 * (1.0 + jnp.abs(value))


def _enough(new: Array, old: Array, promised: Array) -> Array:
    """Whether a step gained its share of what the gradient promised, but for rounding."""
    return new - old >= 1e-4 * promised - _rounding(old)


def _backtrack(g: Callable, x: Array, step: Array, value: Array, gradient: Array) -> Array:
    """The first of 1, 0.3, 0.09, ... that gains enough; 0 if none does."""
    promised = gradient @ step

    def bad(carry: tuple[Array, Array]) -> Array:
        t, tries = carry
        return ~_enough(g(x + t * step), value, t * promised) & (tries < NUM_SHRINKS)

    t, tries = jax.lax.while_loop(
        bad, lambda c: (c[0] * SHRINK, c[1] + 1), (jnp.ones(()), jnp.zeros((), int))
    )
    return jnp.where(tries < NUM_SHRINKS, t, 0.0)
