"""Where a fit begins: data-driven random starts for any program.

A start is made by an M-step: latents get random posterior weights that follow what is observed
beside them, and the M-step turns the weights into parameters on the data's own scale, whatever the
emission. The first start takes k-means++ labels; the others draw a rule for the labels and how
sharply the weights follow them, so that small, wide and overlapping components are all tried.
Parameters that no closed form covers begin at the program's own values (a `param`'s initial value,
a draw from the prior) with jitter.

Source: Arthur and Vassilvitskii (2007), SODA (k-means++); Biernacki, Celeux and Govaert (2003),
Computational Statistics and Data Analysis 41(3-4), for many different short runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions.transforms import IdentityTransform

from emprob.estep.enumerate import log_partition_of, with_naturals
from emprob.evaluation import Evaluation
from emprob.hurried import Hurried
from emprob.model import LatentModel
from emprob.mstep.auto import Auto as AutoMStep
from emprob.mstep.closed_form import ClosedForm, covered
from emprob.types import Params, Posterior
from emprob.work import is_compiling

JITTER = 0.3  # sd of the noise on starts that were given or drawn, unconstrained space
MSTEPS = 8  # M-steps of a start whose parameters are not all in closed form
EDGE = 100.0  # |u| of a start that lies on the edge of its support
LEAK = 0.15  # weight of a latent that its label leaves to all values, first start
LEAKS = (0.001, 0.5)  # between which the others draw theirs
LOCAL = 0.67  # share of the starts of a series that look at moving means and spreads


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
            seeding = FIRST if i == 0 else _draw_seeding(rng)
            start = _seeded(model, jitter(model, base, rng), seeding, rng)
            origin = f"seeded from the data, {seeding.name}"
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


def _seeded(
    model: LatentModel, params: Params, seeding: "Seeding", rng: np.random.Generator
) -> Params:
    """One M-step in closed form from random weights that follow the data."""
    static = model.notes.value.static
    labelled = {k: v for k, v in static.variables.items() if v.site not in model.structure.on_grid}
    if not labelled:
        return params
    values = jax.tree.map(np.asarray, _observed(model, params))
    tilts = {}
    for name, variable in labelled.items():
        tilts[name] = jnp.asarray(_tilt(variable, static, values, seeding, rng))
    return _first_mstep(model, params, tilts)


@jax.jit
def _observed(model: LatentModel, params: Params) -> dict[str, Array]:
    """The observed value of each term."""
    out = model.evaluate(params)
    return {k: t.value for k, t in out.terms.items() if out.specs[k].own is None}


def _tilt(
    variable: Any, static: Evaluation, values: dict, seeding: "Seeding", rng: np.random.Generator
) -> np.ndarray:
    """Log-weights (times..., variables..., plates...) of a latent's values."""
    dims = [v.dim for v in static.variables.values()] + [p.dim for p in static.plates.values()]
    shape = [1] * -min(dims)
    for plate in variable.plates:
        shape[static.plates[plate].dim] = static.plates[plate].size
    rows = int(np.prod(shape))
    features = _features(variable, static, values, shape)
    in_time = [static.plates[p].is_time for p in variable.plates]
    if features is not None and any(in_time) and rng.uniform() < LOCAL:
        features = _local(features, shape, rng)
    if features is None:
        labels = rng.integers(variable.size, size=rows)
    else:
        labels = seeding.labels(features, variable.size, rng)
    weights = np.full((rows, variable.size), seeding.leak / variable.size)
    weights[np.arange(rows), labels] += 1 - seeding.leak
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
    width = int(min(max(steps // rng.integers(10, 60), 3), 50, steps))
    series = x.reshape(steps, -1)
    kernel = np.ones(width) / width
    same = lambda v: np.convolve(v, kernel, "same")  # noqa: E731
    smooth = lambda a: np.apply_along_axis(same, 0, a)  # noqa: E731
    mean = smooth(series)
    spread = np.log(np.sqrt(np.maximum(smooth((series - mean) ** 2), 1e-12)))
    both = [f.reshape(len(x), -1) for f in (mean, spread)]
    both = [f / np.where(f.std(0) > 0, f.std(0), 1.0) for f in both]
    return np.concatenate(both, 1)


def _weighted(model: LatentModel, params: Params, tilts: dict[str, Array]) -> Params:
    """M-steps from the weights that the factors have when the latents follow the tilts alone."""
    out = model.evaluate(params)
    naturals = {k: jnp.zeros_like(t.natural) for k, t in out.terms.items()}

    def log_z(naturals: dict[str, Array]) -> Array:
        return log_partition_of(with_naturals(out, naturals), tilts=tilts)

    posterior = Posterior(*jax.value_and_grad(log_z)(naturals))
    if len(covered(model)) == len(model.params):
        return ClosedForm()(model, params, posterior)
    return jax.lax.fori_loop(0, MSTEPS, lambda _, p: AutoMStep()(model, p, posterior), params)


_first_mstep = Hurried(_weighted, lambda model, params, _: is_compiling(model, params))


# -- labels: (rows, columns) -> (rows,), values 0..k-1 ------------------------------------------


def _nearest(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The nearest of k centres."""
    return _gaps(x, _centres(x, k, rng)).argmin(1)


def _unequal(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The nearest of k centres, each with a reach of its own."""
    return (_gaps(x, _centres(x, k, rng)) / np.exp(2 * rng.normal(size=k))).argmin(1)


def _rings(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Shells of random size about a row: components that differ in spread."""
    gap = _gaps(x, x[rng.integers(len(x))][None])[:, 0]
    rank = gap.argsort(kind="stable").argsort() / len(x)
    return np.searchsorted(rng.dirichlet(np.ones(k)).cumsum()[:-1], rank, side="right")


def _blocks(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Runs of neighbouring rows, whatever is observed; unequal shares."""
    length = np.exp(rng.uniform(0, np.log(max(len(x) / k, 1))))
    block = np.cumsum(rng.uniform(size=len(x)) < 1 / length)
    return rng.choice(k, size=block[-1] + 1, p=rng.dirichlet(np.ones(k)))[block]


def _gaps(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances (rows, centres)."""
    return np.stack([((x - c) ** 2).sum(1) for c in centres], 1)


def _centres(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: rows drawn with probability growing with distance."""
    sample = x if len(x) <= 5000 else x[rng.choice(len(x), 5000, replace=False)]
    centres = [sample[rng.integers(len(sample))]]
    for _ in range(1, k):
        gap = _gaps(sample, np.stack(centres)).min(1)
        total = gap.sum()
        p = gap / total if total > 0 else None
        centres.append(sample[rng.choice(len(sample), p=p)])
    return np.stack(centres)


@dataclass(frozen=True)
class Seeding:
    """How a start weighs the values of the latents.

    Attributes:
        name: of the rule, for the table of starts.
        labels: rows (rows, columns), k and a generator to labels (rows,).
        leak: share of the weight that all values get alike; the rest is the label's.
    """

    name: str
    labels: Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
    leak: float


RULES = {"near centres": (_nearest, 0.5), "unequal centres": (_unequal, 0.2),
         "rings": (_rings, 0.2), "blocks": (_blocks, 0.1)}  # fmt: skip
FIRST = Seeding("near centres", _nearest, LEAK)


def _draw_seeding(rng: np.random.Generator) -> Seeding:
    name = str(rng.choice(list(RULES), p=[share for _, share in RULES.values()]))
    return Seeding(name, RULES[name][0], float(np.exp(rng.uniform(*np.log(LEAKS)))))
