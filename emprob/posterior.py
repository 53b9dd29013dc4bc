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

from emprob.estep.enumerate import log_partition_of
from emprob.filtering import filter_chains, pairwise
from emprob.model import LatentModel
from emprob.partition.plates import Reduce, Sampler, log_sum_exp, maximum
from emprob.precision import to_numpy, working
from emprob.program import Evaluation, Variable
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


def _weights(out: Evaluation, reduce: Reduce) -> dict[str, Array]:
    """Gradient of log Z in a tilt of every variable, as (time, plates..., K) arrays."""
    grads = jax.grad(lambda t: log_partition_of(out, reduce, t))(tilts_of(out))
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
    return _by_site(out, _weights(out, log_sum_exp))


@jax.jit
def _most_likely(model: LatentModel, params: Params) -> dict[str, Array]:
    out = model.evaluate(params)
    return {k: v.argmax(-1) for k, v in _by_site(out, _weights(out, maximum)).items()}


@partial(jax.jit, static_argnames="num")
def _draws(model: LatentModel, params: Params, key: Array, num: int) -> dict[str, Array]:
    out = model.evaluate(params)

    def one(key: Array) -> dict[str, Array]:
        return {k: v.argmax(-1) for k, v in _by_site(out, _weights(out, Sampler(key))).items()}

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


class LatentPosterior(Mapping[str, Marginal]):
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

    def _atoms(self) -> dict[str, tuple[np.ndarray, bool]]:
        static = self.model.notes.value.static
        return {
            v.site: (
                self.model.notes.value.atoms[v.site],
                bool(v.plates & set(static.chains)) or "@" in n,
            )
            for n, v in static.variables.items()
        }

    def __getitem__(self, name: str) -> Marginal:
        atoms = self._atoms()
        if name not in atoms:
            raise KeyError(
                f"no latent site '{name}'; the latents are {', '.join(map(repr, atoms))}"
            )
        values, is_chain = atoms[name]
        return Marginal(name, self.smoothed[name], values, is_chain, self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._atoms())

    def __len__(self) -> int:
        return len(self._atoms())

    def __repr__(self) -> str:
        return f"LatentPosterior({', '.join(self)})"


def marginals(model: LatentModel, params: Mapping[str, Any]) -> LatentPosterior:
    """The posterior of every latent at `params` (constrained space)."""
    return LatentPosterior(model, params)


def sample_paths(model: LatentModel, params: Mapping[str, Any], key: Any, num: int = 1):
    """Exact joint draws of all latents, by site: (num, N...) or (num, T, ...)."""
    posterior = marginals(model, params)
    return {k: posterior[k].values[v] for k, v in posterior.sample_indices(key, num).items()}
