"""Where NUTS starts, and in which metric: the density of the whole program near a point.

Everything here is about one flat unconstrained vector u (P,), sites in program order.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpyro.distributions.transforms import IdentityTransform, IndependentTransform

from emprob.chart import coordinate_labels
from emprob.errors import ModelError, nearest
from emprob.estep.unsolved import is_solved
from emprob.hurried import Hurried
from emprob.posterior import marginals
from emprob.space import LogRatioTransform
from emprob.uncertainty import unconstrained_covariance
from emprob.work import FEW, cells

NEAREST = 1e-4  # how close to a corner of a simplex or an end of an interval a chain starts
WIDEST = 3.0  # standard deviation, at most, on the log or logit scale
FLATTEST = 1e-4  # eigenvalue, at least, of the scaled information
CANDIDATES = 10
MOST_DENSE = 200  # coordinates up to which second derivatives are taken in all of them together


@dataclass(frozen=True)
class Start:
    """Where the chains start.

    Attributes:
        params: the point they start around, constrained, by site.
        chains: (chain, P), unconstrained.
        covariance: the first inverse mass matrix, (P, P), or its diagonal (P,).
        informed: whether the point was given.
    """

    params: dict[str, np.ndarray]
    chains: Array
    covariance: Array
    informed: bool


def with_prior(model: Any) -> Any:
    """The same model with the program's prior in its objective."""
    return replace(model, structure=replace(model.structure, with_prior=True))


# -- a flat vector ------------------------------------------------------------------------------


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Unconstrained shape of every parameter, program order."""
    initial, transforms = model.notes.value.initial, model.data.transforms
    return {n: tuple(transforms[n].inverse_shape(np.shape(initial[n]))) for n in model.params}


def ravel(model: Any, u: Mapping[str, Array]) -> Array:
    """Unconstrained values by site -> (P,)."""
    return jnp.concatenate([jnp.ravel(u[n]) for n in model.params])


def unravel(model: Any, u: Array) -> dict[str, Array]:
    """(P,) -> unconstrained values by site."""
    out, begin = {}, 0
    for name, shape in shapes(model).items():
        size = int(np.prod(shape))
        out[name] = u[begin : begin + size].reshape(shape)
        begin += size
    return out


def coordinate_names(model: Any) -> list[str]:
    """Name of every unconstrained coordinate, 'mu[0]'."""
    initial = model.notes.value.initial
    sites = shapes(model).items()
    return [label for n, s in sites for label in coordinate_labels(n, np.shape(initial[n]), s)]


def potential(model: Any, u: Array) -> Array:
    """-(log Z + log prior + log |d params / du|) at u (P,), with the prior if the model has it."""
    sites = unravel(model, u)
    return -(model.objective(model.constrain(sites)) + model.log_jacobian(sites))


@jax.jit
def potentials(model: Any, u: Array) -> Array:
    """The potential at (n, P) points, (n,); inf where it is not a number."""
    values = lax.map(functools.partial(potential, model), u)
    return jnp.where(jnp.isfinite(values), values, jnp.inf)


def _hessian(model: Any, u: Array) -> Array:
    """Second derivatives of the potential, (P, P), one direction after the other."""
    gradient = jax.grad(functools.partial(potential, model))
    matrix = lax.map(lambda e: jax.jvp(gradient, (u,), (e,))[1], jnp.eye(u.size, dtype=u.dtype))
    return (matrix + matrix.T) / 2


def _is_little(model: Any, u: Array) -> bool:
    params = jax.eval_shape(lambda m, u: m.constrain(unravel(m, u)), model, u)
    return cells(model, params) * u.size <= FEW


hessian = Hurried(_hessian, _is_little)


# -- starts -------------------------------------------------------------------------------------


def prepare(model: Any, key: Array, init: Any, num_chains: int, integrated: Any = None) -> Start:
    """Starting points and metric from a fit, from given parameters, or from nothing.

    Args:
        model: what is sampled.
        key: of `jax.random`.
        init: a `Fit`, values by site, or None.
        num_chains: how many points.
        integrated: the same program with its continuous latents integrated out, where `model` has
            them as parameters: says where latents begin that `init` has no values for.
    """
    if init is None:
        return _uninformed(model, key, num_chains)
    inside = model if integrated is None else integrated
    if getattr(init, "simulated", None) is not None and inside.params != model.params:
        return _from_draws(model, inside, key, init, num_chains)
    if not is_solved(inside) and not set(model.params) <= set(dict(init)):
        names = [n for n in model.params if n not in inside.params]
        raise ModelError(
            f"init: there is no integral over the latents {', '.join(map(repr, names))}, so no "
            "place for them to begin. Pass a fit by an E-step by simulation, or no init."
        )
    params = given(model, init, inside)
    if not is_solved(inside):
        return _as_given(model, key, params, num_chains)
    if inside.params != model.params:  # a mean of latents is no mode: no curvature to judge by
        return _wide(model, inside, key, params, num_chains)
    return _informed(model, key, params, num_chains)


def num_coordinates(model: Any) -> int:
    """P, the length of the flat vector."""
    return sum(int(np.prod(shape)) for shape in shapes(model).values())


def given(model: Any, init: Any, integrated: Any = None) -> dict[str, np.ndarray]:
    """The parameters of a fit or a dict, checked against the model's.

    Latents that became parameters begin at their posterior mean at the given parameters, unless
    values are given.

    Raises:
        ModelError: a name is missing or unknown, or a shape is wrong.
    """
    params = dict(init if isinstance(init, Mapping) else init.params)
    for name in params:
        if name not in model.params:
            raise ModelError(
                f"init: the model has no free parameter '{name}'.{nearest(name, model.params)}"
            )
    needed = model.params if integrated is None else integrated.params
    for name in (n for n in model.params if n in params or n in needed):
        shape = np.shape(model.notes.value.initial[name])
        if name not in params:
            raise ModelError(f"init: a value for parameter '{name}' of shape {shape} is missing.")
        if np.shape(params[name]) != shape:
            raise ModelError(
                f"init: parameter '{name}' has shape {shape}, got {np.shape(params[name])}."
            )
    missing = [n for n in model.params if n not in params]
    if integrated is not None and missing:
        posterior = marginals(integrated, {n: params[n] for n in integrated.params})
        params |= {n: posterior[n].mean for n in missing}
    return {n: np.asarray(params[n], float) for n in model.params}


def _centre(model: Any, params: Mapping[str, np.ndarray]) -> Array:
    """Given parameters as (P,), inside their supports.

    Raises:
        ModelError: the log-density is not finite there.
    """
    inside = {n: jnp.asarray(_interior(params[n], model.data.transforms[n])) for n in model.params}
    u = ravel(model, model.unconstrain(inside))
    if not np.isfinite(potentials(model, u[None])[0]):
        raise ModelError("init: the log-density is not finite there. Pass other values.")
    return u


def _as_given(model: Any, key: Array, params: dict, num_chains: int) -> Start:
    """Near given values of all coordinates, with nothing known of their scales."""
    u = _centre(model, params)
    noise = 0.1 * np.asarray(jax.random.normal(key, (num_chains, u.size)))
    chains = np.asarray(u) + _shrink(model, np.asarray(u), noise)
    return Start(params, jnp.asarray(chains), jnp.ones(u.size), False)


def _informed(model: Any, key: Array, params: dict, num_chains: int) -> Start:
    u = _centre(model, params)
    information = np.asarray(hessian(model, u))
    check_proper(model, [np.asarray(u)], [information])
    covariance = regularized_inverse(information, bounded(model))
    noise = np.asarray(jax.random.normal(key, (num_chains, u.size)))
    moves = noise @ np.linalg.cholesky(covariance).T
    chains = np.asarray(u) + _shrink(model, np.asarray(u), moves)
    return Start(params, jnp.asarray(chains), jnp.asarray(covariance), True)


def _wide(model: Any, integrated: Any, key: Array, params: dict, num_chains: int) -> Start:
    """Many latents among the coordinates: second derivatives are taken in the others only.

    The parameters move by their Gaussian approximation, the latents from their mean to a draw of
    their posterior at the given parameters.
    """
    first, second = jax.random.split(key)
    own = _informed(integrated, first, {n: params[n] for n in integrated.params}, num_chains)
    return _joined(model, integrated, own, marginals(integrated, own.params), second, params)


def _from_draws(model: Any, integrated: Any, key: Array, fit: Any, num_chains: int) -> Start:
    """The same, of a fit by simulation: its Gaussian approximation, its draws of the latents."""
    first, second = jax.random.split(key)
    centre = ravel(integrated, integrated.unconstrain(fit.params))
    covariance = unconstrained_covariance(fit.model, fit.params, fit.uncertainty)
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(covariance)))
    noise = np.asarray(jax.random.normal(first, (num_chains, len(root))))
    chains = centre + jnp.asarray(noise @ root.T)
    own = Start(dict(fit.params), chains, jnp.asarray(covariance), True)
    latents = [n for n in model.params if n not in fit.params]
    params = {**fit.params, **{n: fit.posterior[n].mean for n in latents}}
    params = {n: np.asarray(params[n], float) for n in model.params}
    return _joined(model, integrated, own, fit.posterior, second, params)


def _joined(
    model: Any, integrated: Any, own: Start, posterior: Any, key: Array, params: dict
) -> Start:
    """Starts of the parameters, and latents that go with them."""
    num_chains = len(own.chains)
    u = _centre(model, params)
    draws = posterior.draw(key, num_chains)
    draws = {n: jnp.asarray(_interior(draws[n], model.data.transforms[n])) for n in draws}
    moved = jax.vmap(lambda row: unravel(integrated, row))(own.chains)
    moved |= jax.vmap(lambda values: latent_coordinates(model, values))(draws)
    chains = jnp.concatenate([moved[n].reshape(num_chains, -1) for n in model.params], 1)
    steps = _shrink(model, np.asarray(u), np.asarray(chains - u))
    variance = unravel(integrated, jnp.diagonal(own.covariance))
    variance |= {n: _latent_variance(model, n, posterior[n]) for n in draws}
    return Start(params, u + jnp.asarray(steps), ravel(model, variance), True)


def latent_coordinates(model: Any, values: Mapping[str, Array]) -> dict[str, Array]:
    """Values of some sites -> unconstrained, by site."""
    return {n: model.data.transforms[n].inv(x) for n, x in values.items()}


def _latent_variance(model: Any, name: str, posterior: Any) -> Array:
    """Variance of every unconstrained coordinate, to first order; 1 where they mix entries."""
    transform = model.data.transforms[name]
    inner = transform.base_transform if isinstance(transform, IndependentTransform) else transform
    mean = jnp.asarray(_interior(posterior.mean, transform))
    if inner.domain.event_dim or inner.codomain.event_dim:
        return jnp.ones(transform.inverse_shape(mean.shape))
    _, slope = jax.jvp(inner.inv, (mean,), (jnp.ones_like(mean),))
    variance = slope**2 * jnp.asarray(posterior.variance)
    return jnp.where(jnp.isfinite(variance) & (variance > 0), variance, 1.0)


def _shrink(model: Any, u: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Halve the moves that the density does not bear: a Gaussian is wrong far out."""
    level = float(potentials(model, jnp.asarray(u)[None])[0])
    allowance = level + u.size + 10.0 * np.sqrt(u.size)
    for _ in range(12):
        bad = ~(np.asarray(potentials(model, jnp.asarray(u + moves))) < allowance)
        if not bad.any():
            return moves
        moves = np.where(bad[:, None], moves / 2, moves)
    return np.where(bad[:, None], 0.0, moves)


def _interior(value: np.ndarray, transform: Any) -> np.ndarray:
    """Move what sits at a corner of a simplex or an end of an interval a little inside."""
    inner = transform.base_transform if isinstance(transform, IndependentTransform) else transform
    if isinstance(inner, LogRatioTransform):
        lifted = np.maximum(value, NEAREST)
        return lifted / lifted.sum(-1, keepdims=True)
    codomain = getattr(inner, "codomain", None)
    lower, upper = getattr(codomain, "lower_bound", None), getattr(codomain, "upper_bound", None)
    if lower is None or upper is None:
        return value
    room = NEAREST * (np.asarray(upper) - np.asarray(lower))
    return np.clip(value, lower + room, upper - room)


def _uninformed(model: Any, key: Array, num_chains: int) -> Start:
    """For every chain the best of some points: near the program's draw, and in (-2, 2)."""
    initial = {n: jnp.asarray(model.notes.value.initial[n], float) for n in model.params}
    center = ravel(model, model.unconstrain(initial))
    near, wide = jax.random.split(key)
    shape = (num_chains, CANDIDATES // 2, center.size)
    points = jnp.concatenate(
        [
            center + 0.5 * jax.random.normal(near, shape),
            jax.random.uniform(wide, shape, minval=-2.0, maxval=2.0),
        ],
        axis=1,
    )
    values = np.asarray(potentials(model, points.reshape(-1, center.size)))
    values = values.reshape(num_chains, -1)
    if not np.isfinite(values.min(1)).all():
        raise ModelError(
            f"the log-density is not finite at any of {values[0].size} random points for a chain. "
            "Pass init= (a fit, or parameters by site)."
        )
    chains = points[np.arange(num_chains), values.argmin(1)]
    _check_start(model, chains)
    params = {n: np.asarray(v) for n, v in initial.items()}
    return Start(params, chains, jnp.eye(center.size), False)


def _check_start(model: Any, chains: Array) -> None:
    if unnormalized(model):
        points = np.asarray(chains)[:2]
        check_proper(model, points, [np.asarray(hessian(model, jnp.asarray(u))) for u in points])


# -- the metric ---------------------------------------------------------------------------------


def bounded(model: Any) -> np.ndarray:
    """Which unconstrained coordinates are logs, logits and the like, (P,) booleans."""
    out = []
    for name, shape in shapes(model).items():
        t = model.data.transforms[name]
        inner = t.base_transform if isinstance(t, IndependentTransform) else t
        out += [not isinstance(inner, IdentityTransform)] * int(np.prod(shape))
    return np.array(out)


def regularized_inverse(information: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """The inverse of an information matrix, positive definite whatever it is given.

    Directions that curve upwards count as curving as much downwards, flat ones as wide as
    `WIDEST` (on a log or logit scale) or `FLATTEST` allows.
    """
    diagonal = np.diagonal(information)
    curvature = np.where(logs, np.maximum(diagonal, WIDEST**-2), diagonal)
    scale = 1 / np.sqrt(np.where(curvature > 0, curvature, 1.0))
    values, vectors = np.linalg.eigh(scale[:, None] * information * scale)
    values = np.maximum(np.abs(values), FLATTEST)
    root = scale[:, None] * vectors / np.sqrt(values)
    covariance = root @ root.T
    wide = np.sqrt(np.diagonal(covariance))
    shrink = np.where(logs, np.minimum(1.0, WIDEST / wide), 1.0)
    return shrink[:, None] * covariance * shrink


# -- improper posteriors ------------------------------------------------------------------------


def unnormalized(model: Any) -> list[str]:
    """Parameters whose prior has no finite mass: `numpyro.param` sites and improper priors."""
    priors: dict[str, Any] = {}

    def collect(params: Mapping[str, Array]) -> Array:
        priors.update(model.evaluate(params).priors)
        return jnp.zeros(())

    jax.eval_shape(collect, {k: jnp.asarray(v) for k, v in model.notes.value.initial.items()})
    return [n for n in model.params if n not in priors or _improper(priors[n])]


def _improper(prior: Any) -> bool:
    return prior.mask is not None or type(prior.base).__name__ == "ImproperUniform"


def check_proper(model: Any, points: Any, hessians: Any) -> None:
    """Refuse a posterior that is flat along a direction.

    Raises:
        ModelError: naming the direction.
    """
    if not unnormalized(model):
        return
    # One matrix may be singular at one point; a direction flat at all points is flat everywhere.
    rng = np.random.default_rng(0)
    others = [np.asarray(u) + rng.normal(0.0, 0.3, np.shape(u)) for u in points]
    stack = [*hessians, *(np.asarray(hessian(model, jnp.asarray(u))) for u in others)]
    direction = flat_direction(np.concatenate([h for h in stack if np.isfinite(h).all()]))
    if direction is None:
        return
    names = coordinate_names(model)
    largest = np.argsort(-np.abs(direction))[:4]
    parts = [f"{direction[i]:+.2f} {names[i]}" for i in largest if abs(direction[i]) > 0.05]
    loose = ", ".join(unnormalized(model))
    raise ModelError(
        f"the posterior is improper: the data and the priors leave {' '.join(parts)} (on the "
        f"unconstrained scale) undetermined. Without a proper prior: {loose}. Give one of them a "
        "prior with numpyro.sample, or fix it with bind(fixed=...)."
    )


def flat_direction(stack: np.ndarray) -> np.ndarray | None:
    """A unit vector v (P,) with stack @ v = 0 up to rounding, columns put on one scale; or None."""
    norms = np.linalg.norm(stack, axis=0)
    scale = np.sqrt(np.maximum(norms, 1e-13 * max(norms.max(), 1e-300)))
    rows = np.tile(scale, len(stack) // stack.shape[1])
    _, values, vectors = np.linalg.svd(stack / scale / rows[:, None], full_matrices=False)
    if values[-1] > 1e-8 * values[0]:
        return None
    direction = vectors[-1] / scale
    return direction / np.linalg.norm(direction)
