"""The posterior of the latents at given parameters: marginals, paths, draws.

Every one of them is a gradient of log Z in a tilt (an extra log-factor of zeros on one latent):
with sums it is the marginal, with maxima the most likely configuration, with sampled weights an
exact joint draw.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Marginal:
    """The posterior of one latent.

    Attributes:
        name: the site.
        probs: (N..., K) or (T, ..., K), P(z = k | all data): for a chain, smoothed.
        values: (K,) the values that the latent takes.
    """

    name: str
    probs: np.ndarray
    values: np.ndarray
    is_chain: bool
    owner: "LatentPosterior"

    @property
    def smoothed(self) -> np.ndarray:
        """P(z_t | y_1..y_T), (T, ..., K). Uses the future: not for backtests."""
        return self.probs

    @property
    def filtered(self) -> np.ndarray:
        """P(z_t | y_1..y_t), (T, ..., K). Uses no later observation (the parameters may)."""
        self._only_chain("filtered")
        return self.owner.filtered[self.name]

    @property
    def pairwise(self) -> np.ndarray:
        """P(z_{t-1} = i, z_t = j | all data), (T-1, ..., K, K)."""
        self._only_chain("pairwise")
        return self.owner.pairwise(self.name)

    @property
    def mean(self) -> np.ndarray:
        """Posterior mean of the latent's value."""
        return self.probs @ self.values

    @property
    def variance(self) -> np.ndarray:
        """Posterior variance of the latent's value."""
        return self.probs @ self.values**2 - self.mean**2

    @property
    def mode(self) -> np.ndarray:
        """The most probable value of each element on its own."""
        return self.values[self.probs.argmax(-1)]

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of each element's marginal, in nats."""
        p = np.where(self.probs > 0, self.probs, 1.0)
        return -(p * np.log(p)).sum(-1)

    def most_likely_path(self) -> np.ndarray:
        """The jointly most likely values of this latent (Viterbi), with all other latents'."""
        return self.values[self.owner.most_likely[self.name]]

    def sample(self, key: Any, num: int = 1) -> np.ndarray:
        """Exact joint draws, (num, N...) or (num, T, ...)."""
        return self.values[self.owner.sample_indices(key, num)[self.name]]

    def _only_chain(self, what: str) -> None:
        if not self.is_chain:
            raise AttributeError(f"latent '{self.name}' is not a chain: it has no '{what}'.")

    def __repr__(self) -> str:
        return f"Marginal({self.name!r}, probs {self.probs.shape})"


@dataclass(frozen=True)
class GridMarginal(Marginal):
    """The posterior of a continuous latent on common nodes.

    Attributes:
        name: the site.
        probs: (N..., K), weights of the nodes; they sum to one.
        values: (K,) the nodes.
        shape: of the site.
    """

    shape: tuple[int, ...] = ()

    @property
    def mean(self) -> np.ndarray:
        """Posterior mean, shaped as the site."""
        return (self.probs @ self.values).reshape(self.shape)

    @property
    def variance(self) -> np.ndarray:
        """Posterior variance, shaped as the site."""
        gaps = self.values - (self.probs @ self.values)[..., None]
        return (self.probs * gaps**2).sum(-1).reshape(self.shape)

    @property
    def sd(self) -> np.ndarray:
        """Posterior standard deviation, shaped as the site."""
        return np.sqrt(self.variance)

    @property
    def density(self) -> np.ndarray:
        """(N..., K), posterior density at the nodes."""
        return self.probs / np.gradient(self.values)

    @property
    def entropy(self) -> np.ndarray:
        """Differential entropy of each element's marginal, in nats."""
        p = np.where(self.probs > 0, self.probs, 1.0)
        return -(p * np.log(p / np.gradient(self.values))).sum(-1).reshape(self.shape)

    def sample(self, key: Any, num: int = 1) -> np.ndarray:
        """Joint draws of nodes, (num, *shape)."""
        return super().sample(key, num).reshape(num, *self.shape)

    def __repr__(self) -> str:
        return f"GridMarginal({self.name!r}, mean {self.shape})"


@dataclass(frozen=True)
class ContinuousMarginal:
    """The posterior of one continuous latent.

    Attributes:
        name: the site.
    """

    name: str
    is_chain: bool
    owner: "LatentPosterior"

    def _moment(self, which: str) -> np.ndarray:
        return getattr(self.owner.moments(self.name), which)

    @property
    def mean(self) -> np.ndarray:
        """Posterior mean, shaped as the site; for a chain, smoothed."""
        return self._moment("mean")

    @property
    def variance(self) -> np.ndarray:
        """Posterior variance of every entry."""
        return self._moment("variance")

    @property
    def sd(self) -> np.ndarray:
        """Posterior standard deviation of every entry."""
        return np.sqrt(self.variance)

    @property
    def covariance(self) -> np.ndarray:
        """Posterior covariance within each event, (..., E, E)."""
        return self._moment("covariance")

    @property
    def pairwise_covariance(self) -> np.ndarray:
        """cov(z_{t-1}, z_t | all data), (T - 1, ..., E, E)."""
        self._only_chain("pairwise_covariance")
        return self._moment("pairwise")

    @property
    def smoothed_mean(self) -> np.ndarray:
        """E[z_t | y_1..y_T]. Uses the future: not for backtests."""
        return self.mean

    @property
    def smoothed_variance(self) -> np.ndarray:
        """var(z_t | y_1..y_T)."""
        return self.variance

    def _filtered(self, which: str) -> np.ndarray:
        self._only_chain(f"filtered_{which}")
        return getattr(self.owner.filtered_moments(self.name), which)

    @property
    def filtered_mean(self) -> np.ndarray:
        """E[z_t | y_1..y_t], (T, ...). Uses no later observation (the parameters may)."""
        return self._filtered("mean")

    @property
    def filtered_variance(self) -> np.ndarray:
        """var(z_t | y_1..y_t), (T, ...)."""
        return self._filtered("variance")

    @property
    def predicted_mean(self) -> np.ndarray:
        """E[z_t | y_1..y_{t-1}], (T, ...)."""
        return self._filtered("predicted_mean")

    @property
    def predicted_variance(self) -> np.ndarray:
        """var(z_t | y_1..y_{t-1}), (T, ...)."""
        return self._filtered("predicted_variance")

    def sample(self, key: Any, num: int = 1) -> np.ndarray:
        """Joint draws, (num, ...): for a chain, of whole paths (the simulation smoother)."""
        return self.owner.draw(key, num)[self.name]

    def _only_chain(self, what: str) -> None:
        if not self.is_chain:
            raise AttributeError(f"latent '{self.name}' is not in a scan: it has no '{what}'.")

    def __repr__(self) -> str:
        return f"ContinuousMarginal({self.name!r}, mean {self.mean.shape})"


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
