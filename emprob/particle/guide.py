"""A Gaussian chain around the mode of the latents, and what it says of each step.

The log-density of the latents, expanded to second order around its mode, is a sum of quadratics of
L + 1 neighbouring steps each. Eliminating the steps from the last to the first gives the law of a
step given the L before it and all data (where to draw from), and the quadratic that the later steps
leave on the earlier ones (the lookahead: what the later data say of the state).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emprob.errors import ModelError
from emprob.estep.gaussian import Gaussian
from emprob.estep.laplace import Laplace
from emprob.integral.expectation import problem
from emprob.integral.integral import values_of
from emprob.model import LatentModel
from emprob.particle.body import Body, Latents
from emprob.particle.coordinates import Coordinates
from emprob.partition.gaussian import cholesky, inverse, symmetric
from emprob.simulation.gaussian import near_fixed
from emprob.types import Params


class Guide(NamedTuple):
    """The Gaussian law of a step's coordinates given those of the L before it, as deviations.

    Attributes:
        mode: (S, D).
        offset: (S, D); the mean is offset - gain @ window.
        gain: (S, D, L D).
        root: lower triangular, of the covariance, (S, D, D).
        precision, linear: of the lookahead, on the window that ends with this step, (S, L D, L D)
            and (S, L D).
        real: (S, D), 1 for a coordinate that some factor depends on.
    """

    mode: Array
    offset: Array
    gain: Array
    root: Array
    precision: Array
    linear: Array
    real: Array


def obstacle(model: LatentModel) -> str | None:
    """What is in the way of a Gaussian around the mode of all latents; None if nothing is."""
    known = {s for g in model.structure.integrals for s in g.sites}
    for name in model.latents:
        if name not in known:
            return f"latent '{name}' is discrete, so there is no Gaussian around a mode"
    for g in model.structure.integrals:
        if not isinstance(g.rule, Gaussian | Laplace) or g.branches:
            names = ", ".join(map(repr, g.sites))
            return f"the log-density has no Gaussian around its mode in {names}; {g.why}"
    return None


def mode_of(model: LatentModel, params: Params) -> Latents:
    """The mode of all latents, by site.

    Raises:
        ModelError: some latent is discrete, or its log-density has no smooth mode.
    """
    trouble = obstacle(model)
    if trouble is not None:
        raise ModelError(f"Guided(): {trouble}. Use Bootstrap().")
    found: Latents = {}
    for i, g in enumerate(model.structure.integrals):
        mode = near_fixed(problem(model, params, i)).centre
        found |= values_of(g, model.data.integrals[i], mode[0])
    return found


def guides(
    body: Body, mode: Latents, outside: Coordinates, inside: Coordinates, reach: int
) -> tuple[Guide, Guide]:
    """The guides of the entry and of each step, time first.

    Args:
        body: of the program.
        mode: by site.
        outside: coordinates of the latents outside the scan.
        inside: of those inside it, equally wide.
        reach: L, steps that a factor reaches back.
    """
    first = outside.pack({k: mode[k] for k in outside.sites})
    path = jax.vmap(inside.pack)({k: mode[k] for k in inside.sites})
    precision, linear = _factors(body, first, path, outside, inside, reach)
    series, width = first.shape
    zero = jnp.zeros((series, reach * width))
    message = jnp.zeros((series, reach * width, reach * width)), zero

    def step(message: tuple, inputs: tuple) -> tuple[tuple, Guide]:
        own, slope, here = inputs
        return _eliminated(own, slope, here, *message)

    message, steps = lax.scan(step, message, (precision, linear, path), reverse=True)

    def entry(w: Array) -> Array:
        u = first + w[0]
        found = body.entry.weigh((), (), outside.unpack(u))
        return found.own + found.observed + outside.log_jacobian(u)

    own, slope = _expanded(entry, (1, series, width))
    before = reach * width
    own = jnp.pad(own, ((0, 0), (before, 0), (before, 0)))
    slope = jnp.pad(slope, ((0, 0), (before, 0)))
    return _eliminated(own, slope, first, *message)[1], steps


def _eliminated(
    own: Array, slope: Array, mode: Array, precision: Array, linear: Array
) -> tuple[tuple, Guide]:
    """Integrate a step out of its own factor and of what the later steps have left.

    Args:
        own: minus the Hessian of the step's factors on the L + 1 steps that end here, (S, K, K).
        slope: their gradient, (S, K).
        mode: (S, D).
        precision: left by the later steps on the last L of these steps, (S, L D, L D).
        linear: likewise, (S, L D).
    """
    d = mode.shape[1]
    total = own.at[:, d:, d:].add(precision)
    slope = slope.at[:, d:].add(linear)
    here = symmetric(total[:, -d:, -d:])
    real = (jnp.abs(here).sum(-1) > 0).astype(here.dtype)
    cov = inverse(here + jnp.eye(d) * (1.0 - real)[:, None, :])[0]
    side = total[:, -d:, :-d]
    gain = jnp.einsum("sij,sjk->sik", cov, side)
    offset = jnp.einsum("sij,sj->si", cov, slope[:, -d:])
    left = symmetric(total[:, :-d, :-d] - jnp.einsum("sji,sjk->sik", side, gain))
    rest = slope[:, :-d] - jnp.einsum("sji,sj->si", side, offset)
    root = cholesky(symmetric(cov))
    return (left, rest), Guide(mode, offset, gain, root, precision, linear, real)


# -- factors ------------------------------------------------------------------------------------


def _expanded(f: Callable[[Array], Array], shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """Minus the Hessian (S, K, K) and the gradient (S, K) at zero of a function that is separate.

    Args:
        f: (blocks, S, D) -> (S,).
        shape: (blocks, S, D); K = blocks * D.
    """
    blocks, series, d = shape
    size = blocks * d
    slope, push = jax.linearize(jax.grad(lambda w: f(w).sum()), jnp.zeros(shape))
    directions = jnp.eye(size).reshape(size, blocks, 1, d)
    columns = jax.vmap(lambda v: push(jnp.broadcast_to(v, shape)))(directions)
    by_series = lambda x: jnp.moveaxis(x, -2, 0).reshape(series, -1)  # noqa: E731
    hessian = jnp.stack([by_series(c) for c in columns], -1)
    return -hessian, by_series(slope)


def _at(xs: Any, t: int) -> Any:
    return jax.tree.map(lambda v: v[t], xs)


def _factors(
    body: Body, first: Array, path: Array, outside: Coordinates, inside: Coordinates, reach: int
) -> tuple[Array, Array]:
    """The quadratic of every step around the mode, (T, S, K, K) and (T, S, K)."""
    shape = (reach + 1, first.shape[0], first.shape[1])

    def along(carry: Any, xs: Any, path: Array, moves: Array) -> Array:
        """Log-density of the last of a few steps, from a carry."""
        last = len(path) - 1
        for j in range(last):
            latents = inside.unpack(path[j] + moves[j])
            carry = body.step.weigh(carry, _at(xs, j), latents).carry
        u = path[last] + moves[last]
        found = body.step.weigh(carry, _at(xs, last), inside.unpack(u))
        return found.own + found.observed + inside.log_jacobian(u)

    def early(s: int) -> tuple[Array, Array]:
        """A step whose window reaches the entry."""

        def f(w: Array) -> Array:
            latents = outside.unpack(first + w[reach - s - 1])
            carry = body.entry.weigh((), (), latents).carry
            return along(carry, body.xs, path[: s + 1], w[reach - s :])

        return _expanded(f, shape)

    def late(carry: Any, xs: Any, path: Array) -> tuple[Array, Array]:
        return _expanded(lambda w: along(carry, xs, path, w), shape)

    parts = [early(s) for s in range(min(reach, body.length))]
    parts = [tuple(x[None] for x in part) for part in parts]
    if body.length > reach:
        start = body.entry.weigh((), (), outside.unpack(first)).carry
        parts.append(jax.vmap(late)(*_windows(body, start, path, inside, reach)))
    precision, linear = (jnp.concatenate(x) for x in zip(*parts, strict=True))
    return precision, linear


def _windows(
    body: Body, start: Any, path: Array, inside: Coordinates, reach: int
) -> tuple[Any, Any, Array]:
    """For every step from L on: the carry L steps before at the mode, inputs and path since."""

    def step(carry: Any, inputs: tuple) -> tuple[Any, Any]:
        x, u = inputs
        return body.step.weigh(carry, x, inside.unpack(u)).carry, carry

    count = body.length - reach
    _, carries = lax.scan(step, start, (body.xs, path))
    index = jnp.arange(count)[:, None] + jnp.arange(reach + 1)
    xs, paths = jax.tree.map(lambda v: v[index], (body.xs, path))
    return jax.tree.map(lambda v: v[:count], carries), xs, paths
