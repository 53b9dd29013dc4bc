"""The posterior of the latents at given parameters: marginals, paths, draws.

Every one of them is a gradient of log Z in a tilt (an extra log-factor of zeros on one latent):
with sums it is the marginal, with maxima the most likely configuration, with sampled weights an
exact joint draw.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob.errors import ModelError
from emprob.evaluation import Evaluation, Variable
from emprob.filtering import filter_chains, pairwise
from emprob.integral import moments as integrals
from emprob.integral.expectation import log_z
from emprob.marginal import ContinuousMarginal, GridMarginal, Marginal
from emprob.model import LatentModel
from emprob.partition.reduce import Reduce, Sampler, log_sum_exp, maximum
from emprob.precision import to_numpy, working
from emprob.types import Params


def tilt_shape(out: Evaluation, variable: Variable) -> tuple[int, ...]:
    """Shape of a tilt of one variable in the common layout."""
    dims = [v.dim for v in out.variables.values()] + [p.dim for p in out.plates.values()]
    shape = [1] * -min(dims)
    shape[variable.dim] = variable.size
    for plate in variable.plates:
        shape[out.plates[plate].dim] = out.plates[plate].size
    return tuple(shape)


def tilts_of(out: Evaluation) -> dict[str, Array]:
    """A tilt of zero for every variable: log Z is as it was, its gradient the marginals."""
    return {n: jnp.zeros(tilt_shape(out, v)) for n, v in out.variables.items()}


def _weights(
    model: LatentModel, params: Params, out: Evaluation, reduce: Reduce
) -> dict[str, Array]:
    """Gradient of log Z in a tilt of every variable, as (time, plates..., K) arrays."""
    grads = jax.grad(lambda t: log_z(model, params, reduce, t, out))(tilts_of(out))
    return {n: _plain(out, out.variables[n], g) for n, g in grads.items()}


def _plain(out: Evaluation, variable: Variable, x: Array) -> Array:
    """Common layout -> (time?, plates..., K), plates from left to right as the program has them."""
    plates = sorted((out.plates[p] for p in variable.plates), key=lambda p: p.dim)
    axes = [x.ndim + p.dim for p in plates] + [x.ndim + variable.dim]
    rest = [i for i in range(x.ndim) if i not in axes]
    return x.transpose(*axes, *rest).reshape([p.size for p in plates] + [variable.size])


def _by_site(out: Evaluation, values: Mapping[str, Array]) -> dict[str, Array]:
    """Variables of one site joined: the unrolled first steps of a scan, then the rest."""
    sites: dict[str, list[tuple[int, str]]] = {}
    for name, v in out.variables.items():
        if name not in values:
            continue
        step = int(name.split("@")[1]) if "@" in name else 10**9
        sites.setdefault(v.site, []).append((step, name))
    joined = {}
    for site, parts in sites.items():
        arrays = [(values[n][None] if "@" in n else values[n]) for _, n in sorted(parts)]
        joined[site] = arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays)
    return joined


@jax.jit
def _smoothed(model: LatentModel, params: Params) -> dict[str, Array]:
    out = model.evaluate(params)
    return _by_site(out, _weights(model, params, out, log_sum_exp))


@jax.jit
def _most_likely(model: LatentModel, params: Params) -> dict[str, Array]:
    out = model.evaluate(params)
    return {
        k: v.argmax(-1) for k, v in _by_site(out, _weights(model, params, out, maximum)).items()
    }


@partial(jax.jit, static_argnames="num")
def _draws(model: LatentModel, params: Params, key: Array, num: int) -> dict[str, Array]:
    out = model.evaluate(params)

    def one(key: Array) -> dict[str, Array]:
        weights = _weights(model, params, out, Sampler(key))
        return {k: v.argmax(-1) for k, v in _by_site(out, weights).items()}

    return jax.lax.map(one, jax.random.split(key, num))


@jax.jit
def _filtered(model: LatentModel, params: Params) -> tuple[dict[str, Array], dict[str, Array]]:
    out = model.evaluate(params)
    filtered, densities = filter_chains(out)
    plain = {n: _plain(out, out.variables[n], x) for n, x in filtered.items()}
    return _by_site(out, plain), densities


@partial(jax.jit, static_argnames="site")
def _pairwise(model: LatentModel, params: Params, site: str) -> Array:
    out = model.evaluate(params)
    return pairwise(out, site)


def atoms_of(model: LatentModel) -> dict[str, tuple[np.ndarray, bool]]:
    """Of each discrete latent: its values, and whether it is a chain."""
    static = model.notes.value.static
    return {
        v.site: (
            model.notes.value.atoms[v.site],
            bool(v.plates & set(static.chains)) or "@" in n,
        )
        for n, v in static.variables.items()
    }


def _marginal_of(owner: Any, model: LatentModel, name: str) -> Any:
    """The marginal of one latent of a posterior."""
    if name in model.structure.continuous:
        return ContinuousMarginal(name, name in model.structure.timed, owner)
    atoms = atoms_of(model)
    if name not in atoms:
        known = ", ".join(map(repr, model.latents))
        raise KeyError(f"no latent site '{name}'; the latents are {known}")
    values, is_chain = atoms[name]
    if name in model.structure.on_grid:
        shape = model.plan[name].shape
        return GridMarginal(name, owner.smoothed[name], values, is_chain, owner, shape)
    return Marginal(name, owner.smoothed[name], values, is_chain, owner)


class Marginals(Mapping[str, Any]):
    """The posterior of every latent, by site."""

    model: LatentModel

    def __getitem__(self, name: str) -> Any:
        return _marginal_of(self, self.model, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.model.latents)

    def __len__(self) -> int:
        return len(self.model.latents)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"


class LatentPosterior(Marginals):
    """Posteriors of all latents at one value of the parameters, computed when first asked for."""

    def __init__(self, model: LatentModel, params: Mapping[str, Any]):
        self.model = model
        self.params = {k: np.asarray(v) for k, v in params.items()}
        self._cache: dict[str, Any] = {}

    def _get(self, name: str, compute: Any) -> Any:
        if name not in self._cache:
            with working(self.model):
                params = {k: jnp.asarray(v) for k, v in self.params.items()}
                self._cache[name] = to_numpy(compute(params))
        return self._cache[name]

    @property
    def smoothed(self) -> dict[str, np.ndarray]:
        return self._get("smoothed", lambda p: _smoothed(self.model, p))

    @property
    def most_likely(self) -> dict[str, np.ndarray]:
        return self._get("most_likely", lambda p: _most_likely(self.model, p))

    @property
    def filtered(self) -> dict[str, np.ndarray]:
        return self._get("filtered", lambda p: _filtered(self.model, p))[0]

    @property
    def log_predictive(self) -> dict[str, np.ndarray]:
        """log p(y_t | y_1..y_{t-1}) of each chain, by scan."""
        return self._get("filtered", lambda p: _filtered(self.model, p))[1]

    def pairwise(self, site: str) -> np.ndarray:
        return self._get(f"pairwise {site}", lambda p: _pairwise(self.model, p, site))

    def sample_indices(self, key: Any, num: int) -> dict[str, np.ndarray]:
        from emprob.keys import as_key

        with working(self.model):
            params = {k: jnp.asarray(v) for k, v in self.params.items()}
            return to_numpy(_draws(self.model, params, as_key(key), num))

    def _index(self, site: str) -> int:
        groups = self.model.structure.integrals
        return next(i for i, g in enumerate(groups) if site in g.sites)

    def moments(self, site: str) -> integrals.Moments:
        """Means and covariances of a continuous latent."""
        i = self._index(site)
        return self._get(f"moments {i}", lambda p: integrals.moments(self.model, p, i))[site]

    def filtered_moments(self, site: str) -> integrals.Filtered:
        """The same without the future."""
        i = self._index(site)
        if not self.model.structure.integrals[i].block.is_chain:
            raise ModelError(
                f"latent '{site}': a filter needs a chain that is not one dense block."
            )
        return self._get(f"filtered {i}", lambda p: integrals.filtered(self.model, p, i))[site]

    def draw(self, key: Any, num: int) -> dict[str, np.ndarray]:
        """Joint draws of every continuous latent, (num, ...)."""
        from emprob.keys import as_key

        with working(self.model):
            params = {k: jnp.asarray(v) for k, v in self.params.items()}
            return to_numpy(integrals.draws(self.model, params, as_key(key), num))


def marginals(model: LatentModel, params: Mapping[str, Any]) -> LatentPosterior:
    """The posterior of every latent at `params` (constrained space)."""
    return LatentPosterior(model, params)
