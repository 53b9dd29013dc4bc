"""Draws from a fit: parameters, latents, and replicates of the data.

Parameters come from the Gaussian approximation at the optimum, in the coordinates of `chart.py`,
mapped back to their supports; latents from their exact posterior at each draw; data from the
program itself, with its observed values hidden.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpyro import handlers
from numpyro.distributions.distribution import Unit
from numpyro.primitives import Messenger
from scipy.special import ndtri
from scipy.stats import qmc

from emprob import chart
from emprob.arguments import split
from emprob.bounds import outside_indices
from emprob.coordinates import as_arrays, coordinates_of, flatten, in_double, unflatten
from emprob.errors import DataError
from emprob.explain import explain
from emprob.precision import to_numpy
from emprob.report import UncertaintyReport

BATCH = 16  # replicates that are formed together: memory


# -- parameters and latents ---------------------------------------------------------------------


@jax.jit
def _params_at(model: Any, coordinates: Mapping[str, Array], moves: Array) -> dict[str, Array]:
    point = flatten(model, coordinates)

    def one(move: Array) -> dict[str, Array]:
        w = unflatten(model, point + move, coordinates)
        return chart.from_coordinates(model.data.transforms, w)

    return jax.vmap(one)(moves)


def params_at(
    model: Any, params: Mapping[str, Any], report: UncertaintyReport, normals: np.ndarray
) -> dict[str, np.ndarray]:
    """Draws of the parameters from standard normals, (n, P') -> (n, *shape) by site.

    Entries at a boundary, and directions that the data do not determine, keep their estimates.
    """
    root = report.square_root()
    with jax.enable_x64(True):
        model = in_double(model)
        w = coordinates_of(model, as_arrays(params))
        out = _params_at(model, w, jnp.asarray(normals @ root.T))
        return {k: np.asarray(out[k]) for k in model.params}


def spread_normals(num: int, dim: int) -> np.ndarray:
    """Standard normals (num, dim) without randomness: a Sobol' sequence, centred and whitened."""
    if dim == 0:
        return np.zeros((num, 0))
    power = max(int(np.ceil(np.log2(max(num, 2)))), 1)
    u = qmc.Sobol(dim, scramble=False).random_base2(power)[:num]
    x = ndtri(u + 0.5 ** (power + 1))
    x = x - x.mean(0)
    if num > 2 * dim:
        x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / num)).T
    return x


@jax.jit
def _latents_at(model: Any, params: Mapping[str, Array], keys: Array) -> dict[str, Array]:
    from emprob.integral.moments import draws
    from emprob.posterior import _draws

    def one(inputs: tuple) -> dict[str, Array]:
        found = _draws(model, *inputs, 1)
        if model.structure.continuous:
            found |= draws(model, *inputs, 1)
        return {k: v[0] for k, v in found.items()}

    return lax.map(one, (dict(params), keys))


def latents_at(
    model: Any, params: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray], key: Array
) -> dict[str, np.ndarray]:
    """One exact draw of all latents at each draw of the parameters, (n, ...) by site.

    Args:
        model: a bound model.
        params: draws by site, (n, *shape), constrained.
        values: of each discrete latent, (K,).
        key: for all draws.
    """
    with jax.enable_x64(True):
        num = len(next(iter(params.values())))
        keys = jax.random.split(key, num)
        found = to_numpy(_latents_at(in_double(model), as_arrays(params), keys))
        return {k: values[k][found[k]] if k in values else found[k] for k in model.latents}


# -- replicates of the data ---------------------------------------------------------------------


class Unobserve(Messenger):
    """Replace the observed values of a program by draws, inside its scans too."""

    def __init__(self):
        super().__init__(None)
        self.dtypes: dict[str, Any] = {}

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "control_flow":
            body, *rest = msg["args"]
            msg["args"] = (partial(self._inside, body), *rest)
        elif msg["type"] == "sample" and msg["is_observed"] and not _is_factor(msg):
            self.dtypes[msg["name"]] = jnp.asarray(msg["value"]).dtype
            msg["is_observed"], msg["value"] = False, None

    def postprocess_message(self, msg: dict) -> None:
        dtype = self.dtypes.get(msg.get("name", ""))
        if msg["type"] == "sample" and dtype is not None and msg["value"].dtype != dtype:
            msg["value"] = msg["value"].astype(dtype)  # as the data, for a carry

    def _inside(self, body: Callable, *args: Any) -> Any:
        inner = type(self)()
        inner.dtypes = self.dtypes
        with inner:
            return body(*args)


class Complete(Unobserve):
    """Draw only the missing values of what is observed."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, Array] = {}

    def process_message(self, msg: dict) -> None:
        value = msg["value"] if msg["type"] == "sample" and msg["is_observed"] else None
        super().process_message(msg)
        if value is not None and not msg["is_observed"]:
            self.seen[msg["name"]] = jnp.asarray(value)

    def postprocess_message(self, msg: dict) -> None:
        seen = self.seen.get(msg.get("name", ""))
        if msg["type"] == "sample" and seen is not None:
            msg["value"] = jnp.where(jnp.isnan(seen), msg["value"], seen)
        super().postprocess_message(msg)


def _is_factor(msg: Mapping) -> bool:
    fn = msg["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Unit)


def replicate(
    program: Callable, args: tuple, kwargs: Mapping, values: Mapping[str, Array], key: Array,
    hidden: frozenset[str], handler: type[Unobserve] = Unobserve,
) -> dict[str, Array]:  # fmt: skip
    """One replicate of every observed site; latents without a value are drawn from their laws."""
    with (
        handlers.trace() as trace,
        handlers.seed(rng_seed=key),
        handlers.substitute(data=dict(values)),
        handler(),
    ):
        program(*args, **kwargs)
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and name not in hidden and not _is_factor(site)
    }


@partial(jax.jit, static_argnames=("program", "treedef", "static", "hidden", "handler"))
def _replicates(program, treedef, static, leaves, fixed, values, keys, hidden, handler=Unobserve):
    from emprob.model import arguments

    args, kwargs = arguments(treedef, static, leaves)

    def one(inputs: tuple) -> dict[str, Array]:
        drawn, key = inputs
        return replicate(program, args, kwargs, {**fixed, **drawn}, key, hidden, handler)

    return lax.map(one, (values, keys), batch_size=min(BATCH, keys.shape[0]))


def replicates(
    model: Any, draws: Mapping[str, np.ndarray], key: Array, args: tuple | None, kwargs: Mapping
) -> dict[str, np.ndarray]:
    """One replicate of the data for each draw of the parameters.

    Args:
        model: a bound model.
        draws: by parameter, (n, *shape), constrained.
        key: for all draws.
        args: new arguments of the program; None: those of the fit.
        kwargs: that go with them.

    Returns:
        By observed site, (n, *shape).

    Raises:
        DataError: the new arguments do not fit the fitted parameters.
    """
    s = model.structure
    hidden = frozenset(n for n, role in s.roles if role != "partial")
    trouble: Exception | None = None
    with jax.enable_x64(True):
        keys = jax.random.split(key, len(next(iter(draws.values()))))
        values = as_arrays(draws)
        bound = (s.treedef, s.static, model.data.leaves)
        if args is not None:
            args, kwargs = _prepared(args, kwargs)
            one = {**model.data.fixed, **{k: v[0] for k, v in values.items()}}
            _check_arguments(s.program, args, kwargs, one, hidden)
        for treedef, static, leaves in [bound] if args is None else _split(args, kwargs):
            try:
                out = _replicates(
                    s.program, treedef, static, leaves, model.data.fixed, values, keys, hidden
                )
                return {k: np.asarray(v) for k, v in out.items()}
            except jax.errors.ConcretizationTypeError as error:
                trouble = error
        assert trouble is not None
        raise trouble


def _prepared(args: tuple, kwargs: Mapping) -> tuple[tuple, dict]:
    from emprob.validate import prepare

    positional = tuple(prepare(f"argument {i}", a).value for i, a in enumerate(args))
    return positional, {k: prepare(k, v).value for k, v in kwargs.items()}


def completions(model: Any, draws: Mapping[str, np.ndarray], key: Array) -> dict[str, np.ndarray]:
    """Draws of the missing data, beside what is observed, at draws of parameters and latents.

    Args:
        model: a bound model.
        draws: by parameter and latent, (n, *shape), constrained.
        key: for all draws.

    Returns:
        By observed site, (n, *shape).
    """
    s = model.structure
    hidden = frozenset(n for n, role in s.roles if role != "partial")
    with jax.enable_x64(True):
        values = {k: jnp.asarray(v) for k, v in draws.items()}
        keys = jax.random.split(key, len(next(iter(values.values()))))
        out = _replicates(
            s.program, s.treedef, s.static, model.data.leaves, model.data.fixed, values, keys,
            hidden, Complete,
        )  # fmt: skip
        return {k: np.asarray(v) for k, v in out.items()}


def _split(args: tuple, kwargs: Mapping) -> list:
    """New arguments as arrays, or, where the program reads them while tracing, as constants."""
    return [split(args, kwargs, frozen) for frozen in (False, True)]


def _check_arguments(
    program: Callable, args: tuple, kwargs: Mapping, values: Mapping, hidden: frozenset[str]
) -> None:
    """New columns and labels must fit the parameters' shapes; JAX would clamp the labels.

    Raises:
        DataError: naming the site, or the program's line.
    """

    def once(values: Mapping[str, Array], key: Array) -> dict[str, Array]:
        return replicate(program, args, kwargs, values, key, hidden)

    try:
        closed, shapes = jax.make_jaxpr(once, return_shape=True)(values, jax.random.key(0))
    except Exception as error:
        sizes = ", ".join(f"'{k}' {np.shape(v)}" for k, v in values.items())
        raise DataError(
            "predict: expected arguments that go with the fitted parameters, of shape "
            f"{sizes}; with these args and kwargs {explain(error)}"
        ) from error
    for name, reached in zip(sorted(shapes), outside_indices(closed), strict=True):
        for outside in reached:
            raise DataError(f"predict: site '{name}': {outside}")
