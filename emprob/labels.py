"""Label switching: which permutations of components leave a model as it is, and their undoing.

Nothing is asked of the user. The axes of the parameters that carry a component's label are found
by trying: at random parameters, a transposition of two labels along the right axes, all at once,
leaves the objective where it is. Starts, bootstrap refits and NUTS chains are aligned by the same
function.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import linear_sum_assignment

from emprob.precision import working

Axis = tuple[str, int]

MAX_TRIALS = 4000
MANY = 20  # draws, from which on their own spread is known


@dataclass(frozen=True)
class LabelGroup:
    """Labels that can be exchanged.

    Attributes:
        axes: (parameter, axis) pairs that are permuted together; a transition matrix has two.
        size: number of labels along each axis.
        labels: those that are exchangeable with one another.
    """

    axes: tuple[Axis, ...]
    size: int
    labels: tuple[int, ...]

    def axes_of(self, name: str) -> tuple[int, ...]:
        """The axes of one parameter that carry the label."""
        return tuple(axis for param, axis in self.axes if param == name)


# -- finding ------------------------------------------------------------------------------------


@jax.jit
def _objective(model: Any, params: Mapping[str, Array]) -> Array:
    return model.objective(params)


def latent_sizes(model: Any, params: Mapping[str, Any]) -> set[int]:
    """Numbers of values that the discrete latents take."""
    nodes = model.structure.on_grid
    sizes: set[int] = set()

    def collect(params: Mapping[str, Array]) -> Array:
        out = model.evaluate(params)
        sizes.update(v.size for v in out.variables.values() if v.site not in nodes)
        return jnp.zeros(())

    jax.eval_shape(collect, {k: jnp.asarray(v) for k, v in params.items()})
    return {k for k in sizes if k > 1}


def random_point(model: Any, params: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Constrained parameters at a random unconstrained point, no two numbers alike."""
    rng = np.random.default_rng(seed)
    u = model.unconstrain({k: jnp.asarray(v, float) for k, v in params.items()})
    random = {k: jnp.asarray(rng.uniform(-1.0, 1.0, np.shape(v))) for k, v in u.items()}
    return {k: np.array(v) for k, v in model.constrain(random).items()}


def symmetry(model: Any, params: Mapping[str, Any]) -> tuple[LabelGroup, ...]:
    """Find the labels that can be exchanged without a change of the objective.

    Args:
        model: a bound model; its objective is evaluated at a random point.
        params: by site, constrained; only their shapes matter.

    Returns:
        The groups, those with the fewest axes first; empty where the program tells its components
        apart (by a prior, an order constraint, or data).
    """
    with working(model):
        sizes = latent_sizes(model, params)
        points = [random_point(model, params, seed) for seed in (1, 2)]
        groups: list[LabelGroup] = []
        for size in sorted(sizes):
            groups += _groups(model, points, size)
    return tuple(groups)


def _groups(model: Any, points: Sequence[Mapping], size: int) -> Iterator[LabelGroup]:
    candidates = [
        (name, axis)
        for name, value in points[0].items()
        for axis, length in enumerate(np.shape(value))
        if length == size
    ]
    levels = [_objective(model, dict(p)) for p in points]

    def unchanged(axes: Sequence[Axis], pair: tuple[int, int]) -> bool:
        order = np.arange(size)
        order[list(pair)] = order[list(pair[::-1])]
        return all(
            _equal(_objective(model, permute(p, axes, order)), level)
            for p, level in zip(points, levels)
        )

    return _exchangeable(candidates, size, unchanged)


def _exchangeable(candidates: Sequence[Axis], size: int, unchanged) -> Iterator[LabelGroup]:
    """Smallest sets of axes along which some two neighbours, then which others, can be swapped."""
    found: list[set[Axis]] = []
    pairs = [(i, i + 1) for i in range(size - 1)]
    trials = 0
    for count in range(1, len(candidates) + 1):
        for axes in itertools.combinations(candidates, count):
            if any(f <= set(axes) for f in found):
                continue
            if (trials := trials + 1) > MAX_TRIALS:
                return
            if any(unchanged(axes, pair) for pair in pairs):
                found.append(set(axes))
                yield from _orbits(axes, size, unchanged)


def _orbits(axes: tuple[Axis, ...], size: int, unchanged) -> Iterator[LabelGroup]:
    orbits: list[list[int]] = []
    for label in range(size):
        home = next((o for o in orbits if unchanged(axes, (o[0], label))), None)
        if home is None:
            orbits.append([label])
        else:
            home.append(label)
    for orbit in orbits:
        if len(orbit) > 1:
            yield LabelGroup(axes, size, tuple(orbit))


def _equal(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    rtol = 1e-9 if a.dtype == np.float64 else 1e-5
    return bool(np.isfinite(b) and abs(a - b) <= rtol * (1.0 + abs(b)))


# -- permuting ----------------------------------------------------------------------------------


def permute(params: Mapping[str, Any], axes: Sequence[Axis], order: Any) -> dict[str, np.ndarray]:
    """Reorder the given axes: what stood at `order[k]` comes to k."""
    out = {k: np.asarray(v) for k, v in params.items()}
    for name, axis in axes:
        if name in out:
            out[name] = np.take(out[name], order, axis)
    return out


def find_labels(
    reference: Mapping[str, Any], draws: Mapping[str, Any], groups: Sequence[LabelGroup]
) -> list[np.ndarray]:
    """For every group the order of labels, by draw, that brings it closest to a reference.

    The distance is a sum of squared differences in standard deviations within a label; the best
    order is the Hungarian assignment.

    Args:
        reference: one value by site, constrained.
        draws: by site, (*lead, *shape).
        groups: as found by `symmetry`.

    Returns:
        By group, (*lead, K) integers.

    Source: Stephens (2000), JRSS B 62(4), with a fixed reference; Kuhn (1955).
    """
    orders: list[np.ndarray] = []
    for group in groups:
        orders.append(_orders(reference, draws, group))
        draws = apply_labels(draws, [group], orders[-1:])
    return orders


def _orders(reference: Mapping, draws: Mapping, group: LabelGroup) -> np.ndarray:
    target = _features(reference, group, 0)
    name, _ = group.axes[0]
    lead = np.ndim(draws[name]) - np.ndim(reference[name])
    values = _features(draws, group, lead)
    shape = values.shape[:lead]
    values = values.reshape(-1, *values.shape[lead:])
    orders = _assign(target, values, _first_scale(target, values), group.labels)
    if len(values) >= MANY:
        aligned = np.take_along_axis(values, orders[..., None], 1)
        orders = _assign(target, values, _spread_within(aligned), group.labels)
    return orders.reshape(*shape, group.size)


def _first_scale(target: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Standard deviation of each feature (F,) within a label, before labels are known.

    Sorted values are free of labels: where a feature separates the components, its order
    statistics vary as little as the feature does within one. A feature that does not separate
    them, however wide, must not outvote one that does.
    """
    if len(values) >= MANY:
        return _spread_within(np.sort(values, axis=1))
    return np.concatenate([target[None], values]).reshape(-1, values.shape[-1]).std(0)


def _spread_within(values: np.ndarray) -> np.ndarray:
    """Interquartile standard deviation over the draws, averaged over labels: (n, K, F) -> (F,)."""
    low, high = np.quantile(values, [0.25, 0.75], axis=0)
    within = np.sqrt((((high - low) / 1.349) ** 2).mean(0))
    overall = values.reshape(-1, values.shape[-1]).std(0)
    return np.maximum(within, 1e-3 * overall)


def _features(params: Mapping, group: LabelGroup, lead: int) -> np.ndarray:
    """What belongs to each label, (*lead, K, F): slices; of a matrix the diagonal and the means."""
    parts = []
    for name in dict.fromkeys(name for name, _ in group.axes):
        if name not in params:
            continue
        x = np.asarray(params[name], float)
        first, *rest = [lead + a for a in group.axes_of(name)]
        if rest:
            diagonal = np.diagonal(x, axis1=first, axis2=rest[0])
            parts.append(np.moveaxis(diagonal, -1, lead))
            x = x.mean(first, keepdims=True).swapaxes(first, rest[0]) if len(rest) == 1 else None
        if x is not None:
            parts.append(np.moveaxis(x, first, lead))
    return np.concatenate([p.reshape(*p.shape[: lead + 1], -1) for p in parts], -1)


def _assign(target, values, scale, labels: Sequence[int]) -> np.ndarray:
    """Hungarian assignment of every draw (n, K, F) to the target (K, F): orders (n, K)."""
    index = np.asarray(labels)
    scale = np.where(scale > 0, scale, 1.0)
    a, b = target[index] / scale, values[:, index] / scale
    cost = ((a[None, :, None] - b[:, None]) ** 2).sum(-1)
    orders = np.tile(np.arange(len(target)), (len(values), 1))
    for i in range(len(values)):
        orders[i, index] = index[linear_sum_assignment(cost[i])[1]]
    return orders


def apply_labels(
    draws: Mapping[str, Any], groups: Sequence[LabelGroup], orders: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Reorder the labels of every draw: by site, (*lead, *shape). Sites without labels stay."""
    out = {k: np.asarray(v) for k, v in draws.items()}
    for group, order in zip(groups, orders):
        lead = order.ndim - 1
        for name, axis in group.axes:
            if name in out:
                shape = [1] * out[name].ndim
                shape[:lead], shape[lead + axis] = order.shape[:lead], group.size
                out[name] = np.take_along_axis(out[name], order.reshape(shape), lead + axis)
    return out


def align_labels(
    reference: Mapping[str, Any], draws: Mapping[str, Any], groups: Sequence[LabelGroup]
) -> dict[str, np.ndarray]:
    """Relabel the components of every draw so that they are those of a reference.

    Args:
        reference: one value by site, constrained.
        draws: by site, (*lead, *shape); also sites that carry no label.
        groups: as found by `symmetry`; without groups the draws come back as they are.

    Returns:
        The draws, relabelled.
    """
    return apply_labels(draws, groups, find_labels(reference, draws, groups))
