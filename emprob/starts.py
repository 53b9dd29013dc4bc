"""Where a fit begins: data-driven random starts for any program.

A start is made by an M-step: latents get random posterior weights that follow the data (k-means++
seeding on what is observed beside them), and the M-step turns the weights into parameters on the
data's own scale, whatever the emission. Parameters that no closed form covers begin at the
program's own values (a `param`'s initial value, a draw from the prior) with jitter.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions.transforms import IdentityTransform

from emprob.estep.enumerate import log_partition_of, with_naturals
from emprob.model import LatentModel
from emprob.mstep.auto import Auto as AutoMStep
from emprob.mstep.closed_form import ClosedForm, covered
from emprob.program import Evaluation
from emprob.types import Params, Posterior

JITTER = 0.3  # sd of the noise on starts that were given or drawn, unconstrained space
MSTEPS = 8  # M-steps of a start whose parameters are not all in closed form
EDGE = 100.0  # |u| of a start that lies on the edge of its support
SHARPNESS = 0.85  # weight of the seeded value of a latent


def make_starts(
    model: LatentModel, key: Array, num_starts: int, init: Mapping[str, Any] | None
) -> tuple[list[Params], list[str]]:
    """`num_starts` starting points and a word on where each comes from."""
    base = {k: jnp.asarray(v, float) for k, v in model.notes.value.initial.items()}
    given = {k: jnp.asarray(v, float) for k, v in (init or {}).items()}
    starts, origins = [], []
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    for i in range(num_starts):
        rng = np.random.default_rng([seed, i])
        if init is not None and i == 0 and set(given) == set(base):
            start, origin = {**base, **given}, "init"
        elif init is not None and set(given) == set(base):
            start, origin = jitter(model, {**base, **given}, rng), "init + jitter"
        else:
            start, origin = _seeded(model, jitter(model, base, rng), rng), "seeded from the data"
            start = {**_repaired(model, start, base), **given}
        starts.append(start)
        origins.append(origin)
    return starts, origins


def _repaired(model: LatentModel, start: Params, base: Params) -> Params:
    """Replace what is not finite or sits on the edge of its support, such as a scale of zero."""
    u, fixed = model.unconstrain(start), {}
    for name, value in start.items():
        transform = model.data.transforms[name]
        far = jnp.abs(u[name]) > EDGE if not isinstance(transform, IdentityTransform) else False
        bad = ~jnp.isfinite(u[name]) | far
        same = u[name].shape == value.shape
        bad = bad | ~jnp.isfinite(value) if same else bad.any() | ~jnp.isfinite(value).all()
        fixed[name] = jnp.where(bad, base[name], value)
    return fixed


def jitter(model: LatentModel, params: Params, rng: np.random.Generator) -> Params:
    """Gaussian noise in unconstrained space; exact zeros stay."""
    u = model.unconstrain(params)
    moved = model.constrain({k: v + JITTER * rng.normal(size=v.shape) for k, v in u.items()})
    return {k: jnp.where(params[k] == 0, params[k], moved[k]) for k in params}


def _seeded(model: LatentModel, params: Params, rng: np.random.Generator) -> Params:
    """One M-step in closed form from random weights that follow the data."""
    if not model.latents:
        return params
    static = model.notes.value.static
    values = jax.tree.map(np.asarray, _observed(model, params))
    tilts = {}
    for name, variable in static.variables.items():
        tilts[name] = jnp.asarray(_tilt(name, variable, static, values, rng))
    return _first_mstep(model, params, tilts)


@jax.jit
def _observed(model: LatentModel, params: Params) -> dict[str, Array]:
    """The observed value of each term."""
    out = model.evaluate(params)
    return {k: t.value for k, t in out.terms.items() if out.specs[k].own is None}


def _tilt(name: str, variable: Any, static: Evaluation, values: dict, rng) -> np.ndarray:
    """Log-weights (times..., variables..., plates...) of a latent's values."""
    dims = [v.dim for v in static.variables.values()] + [p.dim for p in static.plates.values()]
    shape = [1] * -min(dims)
    for plate in variable.plates:
        shape[static.plates[plate].dim] = static.plates[plate].size
    rows = int(np.prod(shape))
    features = _features(variable, static, values, shape)
    in_time = [static.plates[p].is_time for p in variable.plates]
    if features is not None and any(in_time) and rng.uniform() < 0.67:
        features = _local(features, shape, rng)
    if features is None:
        labels = rng.integers(variable.size, size=rows)
    else:
        labels = _kmeans_plus_plus(features, variable.size, rng)
    weights = np.full((rows, variable.size), (1 - SHARPNESS) / variable.size)
    weights[np.arange(rows), labels] += SHARPNESS
    weights *= rng.uniform(0.5, 1.5, weights.shape)
    weights = np.log(weights).reshape(*shape, variable.size)
    return np.swapaxes(weights, variable.dim - 1, -1)[..., 0]


def _features(variable: Any, static: Evaluation, values: dict, shape: list) -> np.ndarray | None:
    """What is observed in the plates of a latent, one row per element; None if nothing is."""
    columns = []
    for name, value in values.items():
        spec = static.specs[name]
        if value.size == 0 or not variable.plates <= spec.plates or not np.size(value) > 1:
            continue
        event = spec.event_dim + spec.reinterpreted
        axes = value.shape[: value.ndim - event]
        axes = (1,) * (len(shape) - len(axes)) + axes
        x = np.asarray(value, float).reshape(*axes, -1)
        keep = [i for i in range(len(shape)) if shape[i] > 1]
        if any(axes[i] != shape[i] for i in keep):
            continue
        rest = [i for i in range(len(shape)) if i not in keep]
        columns.append(x.transpose(*keep, *rest, -1).reshape(int(np.prod(shape)), -1))
    if not columns:
        return None
    x = np.concatenate(columns, 1)
    x = np.where(np.isfinite(x), x, 0.0)
    spread = x.std(0)
    return x / np.where(spread > 0, spread, 1.0)


def _local(x: np.ndarray, shape: list, rng: np.random.Generator) -> np.ndarray:
    """Moving mean and log moving spread: regimes often differ in spread alone."""
    steps = next(n for n in shape if n > 1) if max(shape) > 1 else 1
    width = int(min(max(steps // rng.integers(10, 60), 3), 50))
    series = x.reshape(steps, -1)
    kernel = np.ones(width) / width
    same = lambda v: np.convolve(v, kernel, "same")  # noqa: E731
    smooth = lambda a: np.apply_along_axis(same, 0, a)  # noqa: E731
    mean = smooth(series)
    spread = np.log(np.sqrt(np.maximum(smooth((series - mean) ** 2), 1e-12)))
    both = [f.reshape(len(x), -1) for f in (mean, spread)]
    both = [f / np.where(f.std(0) > 0, f.std(0), 1.0) for f in both]
    return np.concatenate(both, 1)


def _kmeans_plus_plus(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Labels by nearest of k centres, drawn with probability growing with distance."""
    sample = x if len(x) <= 5000 else x[rng.choice(len(x), 5000, replace=False)]
    centres = [sample[rng.integers(len(sample))]]
    for _ in range(1, k):
        gap = np.min([((sample - c) ** 2).sum(1) for c in centres], 0)
        total = gap.sum()
        p = gap / total if total > 0 else None
        centres.append(sample[rng.choice(len(sample), p=p)])
    distance = np.stack([((x - c) ** 2).sum(1) for c in centres], 1)
    return distance.argmin(1)


@jax.jit
def _first_mstep(model: LatentModel, params: Params, tilts: dict[str, Array]) -> Params:
    """M-steps from the weights that the factors have when the latents follow the tilts alone."""
    out = model.evaluate(params)
    naturals = {k: jnp.zeros_like(t.natural) for k, t in out.terms.items()}

    def log_z(naturals: dict[str, Array]) -> Array:
        return log_partition_of(with_naturals(out, naturals), tilts=tilts)

    posterior = Posterior(*jax.value_and_grad(log_z)(naturals))
    if len(covered(model)) == len(model.params):
        return ClosedForm()(model, params, posterior)
    return jax.lax.fori_loop(0, MSTEPS, lambda _, p: AutoMStep()(model, p, posterior), params)
