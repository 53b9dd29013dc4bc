"""What a family is: statistics, natural parameters, and arguments with closed forms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array


class Natural(NamedTuple):
    """Natural parameters, flattened event: eta (*batch, P), log_normalizer (*batch,)."""

    eta: Array
    log_normalizer: Array


class Pseudo(NamedTuple):
    """Pseudo-counts of a prior, in the shape of the canonical parameter.

    `bounded` says that the prior cuts the parameter's natural range: the ratio is the mode only
    if it lies inside the prior's support.
    """

    num: Any
    den: Any
    bounded: bool = False


def _elementwise(support):
    """The constraint under NumPyro's reinterpreted batch dimensions."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


@dataclass(frozen=True, eq=False)
class View:
    """One parametrisation of an argument.

    Attributes:
        to_canonical, from_canonical: the maps to and from the canonical value.
        support: where the parameter lives.
        pseudo_counts: of a proper conjugate prior on this parametrisation, or None.
    """

    to_canonical: Callable[[Any], Array]
    from_canonical: Callable[[Any], Array]
    support: Any
    pseudo_counts: Callable[[Any, tuple[int, ...]], Pseudo | None] = lambda prior, shape: None

    def conjugate(
        self, prior: dist.Distribution | None, shape: tuple[int, ...] = ()
    ) -> Pseudo | None:
        """Pseudo-counts of a prior.

        Args:
            prior: unwrapped; None is no prior at all.
            shape: of the parameter, for a vector whose unwrapped prior is a scalar.

        Returns:
            Pseudo-counts that broadcast to the parameter's shape; None if not conjugate.
        """
        if prior is None:
            return Pseudo(0.0, 0.0)
        if isinstance(prior, dist.ImproperUniform):
            return Pseudo(
                0.0, 0.0, bounded=_elementwise(prior.support) != _elementwise(self.support)
            )
        if type(prior) is dist.Uniform:
            return Pseudo(0.0, 0.0, bounded=True)
        return self.pseudo_counts(prior, shape)


@dataclass(frozen=True, eq=False)
class Argument:
    """An argument of a distribution whose conditional M-step is a ratio of sums.

    Attributes:
        ratio: `(S, n, d, origin) -> (num, den)` per cell, S (*batch, P), n (*batch,); `d` holds
            the current values of the other arguments. `den` broadcasts against `num`, except
            with `solve`, where num is (*batch, D) and den (*batch, D, D).
        canonical: the canonical value that `d` has now.
        views: parametrisations by name; the first is the argument itself.
        event_dim: trailing dimensions that belong to the argument.
        exact_given: if the cells of a tie group share these arguments, they cancel, and taking
            the arguments in their order reaches the joint maximum (under flat priors). Otherwise
            the update is the conditional maximum.
        shared_ratio: the ratio without what cancels, for that case and a flat prior; it is
            better conditioned. None: the same as `ratio`.
        requires: if the cells of a tie group, or the rows of a cell, do not share these, the
            ratio is not the maximum at all.
        solve: canonical = den^-1 num with a matrix den.
    """

    ratio: Callable[[Array, Array, Any, Any], tuple[Array, Array]]
    canonical: Callable[[Any], Array]
    views: Mapping[str, View]
    event_dim: int = 0
    exact_given: tuple[str, ...] = ()
    shared_ratio: Callable[[Array, Array, Any, Any], tuple[Array, Array]] | None = None
    requires: tuple[str, ...] = ()
    solve: bool = False

    def maximiser(self, num: Array, den: Array) -> Array:
        """The canonical value at which the summed numerators and denominators balance."""
        if not self.solve or jnp.ndim(den) < jnp.ndim(num) + 1:
            return num / den
        return jnp.linalg.solve(den, num[..., None])[..., 0]


@dataclass(frozen=True, eq=False)
class Family:
    """An exponential family.

    Attributes:
        statistics: `(d, x, origin) -> (*shape, P)` for x of (*shape, *event).
        natural: `(d, origin) -> Natural`.
        log_base: `(d, x) -> log h(x)`, (*shape,); depends on `constants` at most.
        arguments: those with a closed form, in the order of updating.
        constants: attributes that must be known constants for the family to apply.
    """

    name: str
    statistics: Callable[[Any, Any, Any], Array]
    natural: Callable[[Any, Any], Natural]
    log_base: Callable[[Any, Any], Array]
    arguments: Mapping[str, Argument]
    constants: tuple[str, ...] = ()

    def log_prob(self, d: dist.Distribution, x: Any, origin: Any = 0.0) -> Array:
        """The log-density by way of statistics and natural parameters."""
        natural = self.natural(d, origin)
        product = (self.statistics(d, x, origin) * natural.eta).sum(-1)
        return product - natural.log_normalizer + self.log_base(d, x)
