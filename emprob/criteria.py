"""Information criteria, and the marginal likelihood of each independent observation.

Conventions: the likelihood is log Z, the latents summed out, the prior not counted; the degrees of
freedom are all free parameters (a simplex of K entries has K - 1), also those that end at a
boundary; the number of observations is the number of observed values that are not missing.
Smaller is better.

Continuous latents are integrated by the model's rules; what is said of discrete latents beside them
is of their marginal posterior.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob import chart
from emprob.coordinates import as_arrays, coordinates_of, flatten, in_double, unflatten
from emprob.errors import ModelError
from emprob.estep.enumerate import inner, with_naturals
from emprob.evaluation import Evaluation
from emprob.integral.expectation import log_integral, rest_factors
from emprob.model import factor_of, layout
from emprob.partition.factors import Factor, Layout
from emprob.partition.plates import log_partition


def degrees_of_freedom(model: Any, params: Mapping[str, Any]) -> int:
    """Number of free parameters: the dimension of unconstrained space."""
    with jax.enable_x64(True):
        u = jax.eval_shape(lambda m, p: m.unconstrain(p), model, as_arrays(params))
    return sum(int(np.prod(x.shape)) for x in u.values())


def aic(log_likelihood: float, df: int) -> float:
    """-2 log L + 2 df. Source: Akaike (1974), IEEE TAC 19(6)."""
    return -2.0 * log_likelihood + 2.0 * df


def bic(log_likelihood: float, df: int, num_observations: int) -> float:
    """-2 log L + df log n. Source: Schwarz (1978), Annals of Statistics 6(2)."""
    return -2.0 * log_likelihood + df * float(np.log(num_observations))


def icl(log_likelihood: float, df: int, num_observations: int, entropy: float) -> float:
    """BIC + twice the entropy of the latents' posterior: it counts against overlap.

    Source: Biernacki, Celeux and Govaert (2000), IEEE TPAMI 22(7); with the posterior's entropy
    McLachlan and Peel (2000), Finite Mixture Models, section 6.10.
    """
    return bic(log_likelihood, df, num_observations) + 2.0 * entropy


# -- entropy ------------------------------------------------------------------------------------


@jax.jit
def _entropy(model: Any, params: Mapping[str, Array]) -> Array:
    out = model.evaluate(params)
    tables = [log_integral(model, params, i) for i in range(len(model.structure.integrals))]
    entered = {t for i in model.structure.integrals for t in i.terms}
    naturals = {k: t.natural for k, t in out.terms.items() if k not in entered}

    def log_z(naturals: dict[str, Array], tables: list[Array], data: Array) -> Array:
        kept = {k: t.natural for k, t in out.terms.items()}
        changed = _scaled_data(with_naturals(out, {**kept, **naturals}), data)
        return log_partition(rest_factors(model, changed, tables), layout(out))

    value, found = jax.value_and_grad(log_z, (0, 1, 2))(naturals, tables, jnp.ones(()))
    weights, branches, constants = found
    counted = sum((jnp.sum(w * t) for w, t in zip(branches, tables, strict=True)), constants)
    return value - inner(weights, naturals) - counted


def _scaled_data(out: Evaluation, scale: Array) -> Evaluation:
    """The constants of the observed factors times a number, to count them once per cell."""
    terms = {
        k: t if out.specs[k].own is not None else t._replace(offset=t.offset * scale)
        for k, t in out.terms.items()
    }
    return replace(out, terms=terms)


def posterior_entropy(model: Any, params: Mapping[str, Any]) -> float:
    """Entropy of p(latents | data, params): log Z - E[log p(data, latents | params)], in nats.

    Of the discrete latents, with the continuous ones integrated out.

    Raises:
        ModelError: all latents are continuous: a differential entropy depends on their units.
    """
    continuous = (*model.structure.continuous, *model.structure.on_grid)
    if continuous and set(model.latents) == set(continuous):
        names = ", ".join(map(repr, continuous))
        raise ModelError(
            f"entropy, icl: expected a discrete latent, got only continuous ones: {names}. Their "
            "entropy changes with their units, so it measures no overlap. Use aic or bic."
        )
    with jax.enable_x64(True):
        return max(float(_entropy(in_double(model), as_arrays(params))), 0.0)


# -- one observation at a time ------------------------------------------------------------------


class Pointwise(NamedTuple):
    """Marginal log-likelihood of independent elements.

    Attributes:
        values: one number for each element, an axis for each plate.
        plates: their names.
        sites: observed sites that an element's likelihood is of.
    """

    values: np.ndarray
    plates: tuple[str, ...]
    sites: tuple[str, ...]


def independent_plates(out: Evaluation) -> tuple[str, ...]:
    """The plates that every latent and every observed factor stands in, outermost first."""
    times = {*out.chains, *(s.time for s in out.specs.values() if s.time is not None)}
    inside = [v.plates for v in out.variables.values()]
    inside += [s.plates for s in out.specs.values() if s.own is None]
    common = frozenset.intersection(*inside) - times if inside else frozenset()
    return tuple(sorted(common, key=lambda n: out.plates[n].dim))


def elementwise(model: Any, params: Mapping[str, Array], plates: tuple[str, ...]) -> Array:
    """log p(observations of an element), an axis for each of the plates."""
    out = model.evaluate(params)
    dims = dict(out.plates)
    for name in plates:
        dims[name] = replace(dims[name], size=1)
    whole = layout(out)
    shape = Layout(dims, whole.variables, whole.chains)
    found = _factors(model, params, out)

    def element(arrays: list[Array], actives: list[Array | None]) -> Array:
        parts = [
            Factor(a, f.plates, m, f.size) for f, a, m in zip(found, arrays, actives, strict=True)
        ]
        return log_partition(parts, shape)

    function: Any = element
    for name in reversed(plates):  # the outermost plate is the first axis
        function = _mapped(function, out.plates[name].dim)
    return function([f.array for f in found], [f.active for f in found])


def _factors(model: Any, params: Mapping[str, Array], out: Evaluation) -> list[Factor]:
    """The factors of the discrete latents, the integrals kept apart by series."""
    integrals = model.structure.integrals
    entered = {t for i in integrals for t in i.terms}
    rest = [factor_of(out, name) for name in out.terms if name not in entered]
    return rest + [_series_factor(model, params, out, i) for i in range(len(integrals))]


def _series_factor(model: Any, params: Mapping[str, Array], out: Evaluation, index: int) -> Factor:
    """An integral's table over branches and the plates of its series."""
    integral = model.structure.integrals[index]
    table = log_integral(model, params, index)
    axes = [(out.variables[v].dim, n) for v, n in integral.branches]
    axes += [(out.plates[p].dim, out.plates[p].size) for p in integral.plates]
    order = sorted(range(len(axes)), key=lambda i: axes[i][0])
    table = table.reshape([n for _, n in axes]).transpose(order)
    shape = [1] * max((-dim for dim, _ in axes), default=0)
    for dim, n in axes:
        shape[dim] = n
    return Factor(table.reshape(shape), frozenset(integral.plates))


def _mapped(function: Any, dim: int) -> Any:
    """Map over one array dimension, kept with size one; arrays that do not have it are shared."""

    def axis(x: Array | None) -> int | None:
        varies = x is not None and x.ndim >= -dim and x.shape[dim] > 1
        return dim if varies else None

    def over(arrays: list[Array], actives: list[Array | None]) -> Array:
        axes = ([axis(a) for a in arrays], [axis(m) for m in actives])
        keep = lambda x, a: x if a is None else jnp.expand_dims(x, dim)  # noqa: E731
        each = lambda arrays, actives: function(  # noqa: E731
            [keep(x, a) for x, a in zip(arrays, axes[0], strict=True)],
            [keep(x, a) for x, a in zip(actives, axes[1], strict=True)],
        )
        if not any(a is not None for a in axes[0] + axes[1]):  # a plate of one element
            return function(arrays, actives)[None]
        return jax.vmap(each, in_axes=axes)(arrays, actives)

    return over


def _plates_of(model: Any, params: Mapping[str, Array]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    static: list[Evaluation] = []

    def trace(model: Any, params: Mapping[str, Array]) -> Array:
        static[:] = [model.evaluate(params)]
        return jnp.zeros(())

    jax.eval_shape(trace, model, params)
    out = static[0]
    plates = independent_plates(out)
    if not plates:
        raise ValueError(
            "the program has no plate that all its latents and observations stand in, so there are "
            "no independent observations to take one at a time. Put the independent units under "
            "one numpyro.plate."
        )
    for integral in model.structure.integrals:
        if integral.gathered or not set(plates) <= set(integral.plates):
            names = ", ".join(map(repr, integral.sites))
            raise ModelError(
                f"pointwise log-likelihood: the latents {names} are integrated over all elements "
                f"of {', '.join(map(repr, plates))} together, so the elements have no likelihood "
                "of their own. Use aic or bic."
            )
    observed = (s.site for s in out.specs.values() if s.own is None or s.site in out.evidence)
    latents = model.structure.continuous
    return plates, tuple(dict.fromkeys(site for site in observed if site not in latents))


@partial(jax.jit, static_argnames="plates")
def _pointwise(model: Any, params: Mapping[str, Array], plates: tuple[str, ...]) -> Array:
    return elementwise(model, params, plates)


def pointwise(model: Any, params: Mapping[str, Any]) -> Pointwise:
    """Marginal log-likelihood of each independent element, the latents summed out.

    Raises:
        ValueError: there is no plate that holds all latents and observations; a `ModelError`
            where continuous latents of its elements are integrated together.
    """
    with jax.enable_x64(True):
        model, values = in_double(model), as_arrays(params)
        plates, sites = _plates_of(model, values)
        return Pointwise(np.asarray(_pointwise(model, values, plates)), plates, sites)


@partial(jax.jit, static_argnames="plates")
def _pointwise_draws(model: Any, draws: Mapping[str, Array], plates: tuple[str, ...]) -> Array:
    return jax.lax.map(lambda p: elementwise(model, p, plates), dict(draws))


def pointwise_draws(model: Any, draws: Mapping[str, Any]) -> Pointwise:
    """As `pointwise`, at many parameters: draws (n, *shape) by site -> values (n, ...).

    Raises:
        ValueError: there is no plate that holds all latents and observations; a `ModelError`
            where continuous latents of its elements are integrated together.
    """
    with jax.enable_x64(True):
        model, values = in_double(model), as_arrays(draws)
        plates, sites = _plates_of(model, {k: v[0] for k, v in values.items()})
        return Pointwise(np.asarray(_pointwise_draws(model, values, plates)), plates, sites)


@partial(jax.jit, static_argnames="plates")
def _scores(model: Any, coordinates: Mapping[str, Array], plates: tuple[str, ...]) -> Array:
    """(N, F): two reverse passes, for the recursions of chains have no forward derivative."""

    def weighted(flat: Array, multipliers: Array) -> Array:
        params = chart.from_coordinates(model.data.transforms, unflatten(model, flat, coordinates))
        return jnp.vdot(multipliers, elementwise(model, params, plates))

    point = flatten(model, coordinates)
    params = chart.from_coordinates(model.data.transforms, coordinates)
    shape = jax.eval_shape(lambda: elementwise(model, params, plates)).shape
    score = lambda multipliers: jax.grad(weighted)(point, multipliers)  # noqa: E731
    return jax.jacrev(score)(jnp.ones(shape)).reshape(point.size, -1).T


def pointwise_scores(model: Any, params: Mapping[str, Any]) -> np.ndarray:
    """Derivatives of `pointwise`, (elements, F), in the coordinates of `chart.py`."""
    with jax.enable_x64(True):
        model, values = in_double(model), as_arrays(params)
        plates, _ = _plates_of(model, values)
        return np.asarray(_scores(model, coordinates_of(model, values), plates))
