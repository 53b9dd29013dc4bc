"""The E-step on common nodes: a continuous latent as one that takes the nodes' values."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions.transforms import IdentityTransform

from emprob.errors import DataError, ModelError
from emprob.estep.enumerate import Enumerate
from emprob.integral.expectation import expectation
from emprob.integral.integral import Integral
from emprob.model import LatentModel, log_factor
from emprob.types import Capabilities, Params, Posterior

OUTSIDE = 1e-6  # posterior weight of an end node above which mass is cut off
COARSE = 0.8  # spacings in a posterior standard deviation, below which the sum is not the integral
AGREES = 1e-9  # relative difference of log-factors that is rounding

_ADAPTED: dict[tuple, tuple[weakref.ref, LatentModel]] = {}


@dataclass(frozen=True)
class Grid:
    """Integrate one-dimensional latents of a plate by the trapezoid rule on common nodes.

    All elements of the plate share the nodes, so that factors of an exponential family and their
    expected counts are matrix products: 50 items and 5000 people cost milliseconds a step. For
    smooth densities the error falls faster than any power of the spacing; with a spacing of one
    posterior standard deviation it is 5e-9. The end of a fit says where mass lies outside of the
    nodes, or where a posterior is too narrow for them.

    Latents with an exact rule of their own that are not of this kind keep it.

    Attributes:
        low, high: the first and the last node.
        num: how many.

    Source: Bock and Aitkin (1981), Psychometrika 46(4); Trefethen and Weideman (2014), SIAM Review
    56(3), for the rule.
    """

    low: float = -6.0
    high: float = 6.0
    num: int = 61

    def __post_init__(self):
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"Grid(low={self.low}, high={self.high}): expected two numbers, low < high."
            )
        if self.num < 3:
            raise ValueError(f"Grid(num={self.num}): expected an integer >= 3.")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exact=True, deterministic=True, memoryless=True)

    @property
    def nodes(self) -> np.ndarray:
        """(num,)."""
        return np.linspace(self.low, self.high, self.num)

    def __call__(self, model: LatentModel, params: Params) -> Posterior:
        if model.structure.integrals:
            return expectation(model, params)
        return Enumerate()(model, params)

    def adapted(self, model: LatentModel) -> LatentModel:
        """The model with its one-dimensional latents on the nodes; made once for each model."""
        if model.structure.on_grid:
            return model
        key = (id(model.data), model.structure, self)
        if key not in _ADAPTED:
            forget = weakref.ref(model.data, lambda _: _ADAPTED.pop(key, None))
            _ADAPTED[key] = (forget, self._made(model))
        return _ADAPTED[key][1]

    def _made(self, model: LatentModel) -> LatentModel:
        from emprob.bind import on_nodes

        reasons = {i: _obstacle(model, i) for i in model.structure.integrals}
        sites = [i.sites[0] for i, why in reasons.items() if not why]
        refused = [why for i, why in reasons.items() if why and not i.rule.capabilities.exact]
        if refused or not sites:
            why = (refused or [w for w in reasons.values() if w] or ["no latent is continuous"])[0]
            raise ModelError(
                f"{self!r}: {why}. Expected one real latent to each element of a plate. Use "
                "ep.Laplace(), or ep.Auto(), which chooses by the program."
            )
        try:
            found = on_nodes(model, dict.fromkeys(sites, jnp.asarray(self.nodes)))
        except (ModelError, DataError) as error:
            raise _not_broadcast(
                sites, f"with the nodes on an axis at its left: {error}"
            ) from error
        _check_alignment(model, found)
        return found


def _obstacle(model: LatentModel, integral: Integral) -> str:
    """Why a group of latents cannot be put on the nodes, or ''."""
    names, site = ", ".join(map(repr, integral.sites)), integral.block.slots[0].site
    data = model.data.integrals[model.structure.integrals.index(integral)]
    if integral.block.is_chain or any(s.timed for s in integral.block.slots):
        return f"latent {names} is a path in a scan"
    if len(integral.sites) > 1:
        return f"latents {names} meet in a factor, so they have more than one dimension together"
    if integral.gathered:
        return f"latent {names} is read by an index, not element by element in its plate"
    if integral.block.shape[1:] != (1, 1):
        return f"latent {names} has more than one dimension in each element of its plate"
    if not isinstance(data.transforms[site], IdentityTransform):
        return f"latent {names} does not take all real values, or stands under to_event"
    return ""


# -- a program that is not written by broadcasting ------------------------------------------------


def _check_alignment(model: LatentModel, found: LatentModel) -> None:
    """Every log-factor at each of a few nodes must be that of the latent at this value."""
    from emprob.bind import random_params

    sites = found.structure.on_grid
    few = jnp.asarray([-0.7, 0.4, 1.1])
    held = {**found.data.held, **dict.fromkeys(sites, few)}
    small = replace(found, data=replace(found.data, held=held))
    with jax.enable_x64(True):
        params = random_params(model, 1)
        gaps = jax.tree.map(np.asarray, _gaps(model, small, params))
    for name, gap in gaps.items():
        if not (np.isnan(gap).all() or np.nanmax(gap) < AGREES):
            raise _not_broadcast(sites, f"at site '{name}', whose log-density is another there.")


def _not_broadcast(sites: Sequence[str], what: str) -> ModelError:
    return ModelError(
        f"Grid: the program does not compute element by element from the latent "
        f"{', '.join(map(repr, sites))} {what} Use plates with dim=..., and broadcasting instead "
        "of reshaping or indexing the latent; or ep.Laplace()."
    )


@jax.jit
def _gaps(model: LatentModel, small: LatentModel, params: Mapping[str, Array]) -> dict[str, Array]:
    """Relative difference of each factor's mean, at every node."""
    out = small.evaluate(params)
    dims = {v.site: v.dim for v in out.variables.values()}
    few = small.data.held[small.structure.on_grid[0]]
    own = set(small.structure.on_grid)
    gaps: dict[str, Any] = {n: [] for n in out.terms if out.specs[n].site not in own}
    for k in range(few.size):
        values = {n: jnp.full_like(model.data.held[n], few[k]) for n in own}
        plain = model.evaluate(params, values)
        for name, at in gaps.items():
            table = log_factor(out.terms[name], out.specs[name])
            for dim in (dims[n] for n in own):
                if table.ndim >= -dim and table.shape[dim] > 1:
                    table = jax.lax.index_in_dim(table, k, table.ndim + dim)
            there = log_factor(plain.terms[name], plain.specs[name]).mean()
            at.append(jnp.abs(table.mean() - there) / (1.0 + jnp.abs(there)))
    return {k: jnp.stack(v) for k, v in gaps.items()}


# -- whether the nodes were the right ones --------------------------------------------------------


def doubts(model: LatentModel, params: Mapping[str, Any]) -> str:
    """A sentence on latents that the nodes do not hold, or do not resolve; or ''."""
    from emprob.posterior import marginals

    if not model.structure.on_grid:
        return ""
    posterior, found = marginals(model, params), []
    for name in model.structure.on_grid:
        marginal = posterior[name]
        probs, nodes = marginal.probs.reshape(-1, marginal.values.size), marginal.values
        ends = probs[:, [0, -1]].max(1)
        if ends.max() > OUTSIDE:
            found.append(
                f"latent '{name}' has mass outside of the grid: in {(ends > OUTSIDE).sum()} of "
                f"{len(ends)} elements an end node has weight, up to {ends.max():.2g}. Use a wider "
                "ep.Grid(low, high, num), or ep.Laplace()"
            )
        narrow = np.sqrt(marginal.variance.min()) / (nodes[1] - nodes[0])
        if narrow < COARSE:
            found.append(
                f"the nodes are too far apart for latent '{name}': the least posterior sd is "
                f"{narrow:.2g} of their spacing, and the sum is not the integral. Use more nodes, "
                "ep.Grid(num=...), or ep.Laplace()"
            )
    return "; ".join(found)
