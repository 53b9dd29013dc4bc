"""Full Bayesian inference of the same program: NUTS on the parameters, latents integrated out.

The potential is that of the whole program,

    U(u) = -(log Z(params(u)) + log prior(params(u)) + log |d params / du|),

with log Z the exact sum over the latents that EM climbs. The kernel is NumPyro's (`sampler.py`).
"""

import functools
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jax import Array, lax

from emprob import _arviz, start_point
from emprob.bind import with_latents_as_parameters
from emprob.chart import entry_labels
from emprob.errors import ConvergenceWarning
from emprob.keys import as_key
from emprob.labels import LabelGroup, align_labels, apply_labels, find_labels, symmetry
from emprob.precision import to_numpy, working
from emprob.sampler import Draws, Settings, ready, transitions
from emprob.start_point import Start

RHAT_LIMIT = 1.01
ROUNDING = 1e-12  # relative; draws that differ by less are one number


# -- the result ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bayes:
    """Draws from the posterior of the parameters, and how far they can be trusted.

    Attributes:
        model: the bound model.
        samples: by site, (chain, draw, *shape), constrained; parameters in program order, then the
            deterministic sites that are functions of the parameters.
        stats: by quantity, (chain, draw): lp (log-density in unconstrained space), diverging,
            acceptance_rate, n_steps, energy, step_size.
        seconds: 'compile', 'warmup', 'sample' and their sum 'total'.
        num_gradients: gradients of the log-density over all chains, warm-up included.
        groups: labels that can be exchanged, and were aligned across chains and draws.
        settings: of the sampler.
    """

    model: Any
    samples: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    seconds: dict[str, float]
    num_gradients: int
    groups: tuple[LabelGroup, ...] = ()
    settings: Settings = field(default_factory=Settings)

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return self.stats["diverging"].shape[0]

    @property
    def num_samples(self) -> int:
        """Number of draws kept from each chain."""
        return self.stats["diverging"].shape[1]

    @property
    def divergences(self) -> int:
        """Number of draws, warm-up left out, at which the integrator diverged."""
        return int(self.stats["diverging"].sum())

    @functools.cached_property
    def rhat(self) -> pd.Series:
        """Rank-normalised split R-hat of every scalar; NaN with one chain."""
        return self._diagnose(_arviz.rhat, "rhat")

    @functools.cached_property
    def ess(self) -> pd.Series:
        """Bulk effective sample size of every scalar; NaN for a constant."""
        return self._diagnose(_arviz.ess, "ess")

    def _diagnose(self, function: Any, name: str) -> pd.Series:
        with np.errstate(invalid="ignore", divide="ignore"):  # constants have no variance
            parts = {
                k: np.where(constant(v, (0, 1)), np.nan, function(v))
                for k, v in self.samples.items()
            }
        return pd.Series(scalars(parts), name=name, dtype=float)

    @property
    def unreliable(self) -> list[str]:
        """Names of the scalars whose R-hat is above 1.01 (constants are left out)."""
        return [str(k) for k in self.rhat.index[(self.rhat > RHAT_LIMIT).to_numpy()]]

    def scalar_draws(self) -> dict[str, np.ndarray]:
        """Draws of every scalar by its name ('mu[0]'), each (chain, draw)."""
        return scalars(self.samples, lead=2)

    def aligned(
        self, reference: Mapping[str, Any], groups: Sequence[LabelGroup] | None = None
    ) -> "Bayes":
        """The same draws with the labels of components put in the order of a reference.

        Args:
            reference: parameters by site, constrained.
            groups: of exchangeable labels; None: those found when sampling.
        """
        groups = self.groups if groups is None else tuple(groups)
        params = {k: self.samples[k] for k in self.model.params if k in self.samples}
        orders = find_labels(reference, params, groups)
        if all((o == np.arange(o.shape[-1])).all() for o in orders):
            return self
        params = apply_labels(params, groups, orders)
        with working(self.model):
            samples = _with_deterministics(self.model, params)
        return replace(self, samples=samples, groups=groups)

    def summary(self) -> pd.DataFrame:
        """One row per scalar: mean, sd, quantiles, Monte Carlo error, ESS and R-hat."""
        flat = {k: v.ravel() for k, v in self.scalar_draws().items()}
        table = pd.DataFrame(
            {
                "mean": {k: v.mean() for k, v in flat.items()},
                "sd": {k: v.std(ddof=1) for k, v in flat.items()},
                "2.5%": {k: np.quantile(v, 0.025) for k, v in flat.items()},
                "50%": {k: np.quantile(v, 0.5) for k, v in flat.items()},
                "97.5%": {k: np.quantile(v, 0.975) for k, v in flat.items()},
                "mcse": self._diagnose(_arviz.mcse, "mcse"),
                "ess": self.ess,
                "rhat": self.rhat,
            },
            index=list(flat),
        )
        table.index.name = "parameter"
        return table

    def to_arviz(self) -> xr.DataTree:
        """The draws as a tree with posterior, sample_stats and observed_data."""
        return _arviz.to_datatree(
            self.samples,
            sample_stats=self.stats,
            observed_data=getattr(self.model.notes.value, "observed", None),
            attrs={
                "inference_library": "emprob",
                "sampling_time": self.seconds["total"],
                "num_gradients": self.num_gradients,
            },
        )

    def __repr__(self) -> str:
        worst = self.rhat.max()
        return (
            f"Bayes({self.num_chains} chains x {self.num_samples} draws, {len(self.rhat)} scalars, "
            f"R-hat <= {worst:.3f}, ESS >= {self.ess.min():.0f}, "
            f"{self.divergences} divergences, {self.seconds['total']:.1f} s)"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.summary().to_html(float_format='{:.4g}'.format)}"


def constant(draws: np.ndarray, axis: tuple[int, ...] | None = None) -> Any:
    """Whether draws are one number up to rounding, as the corner of a correlation matrix."""
    least, most = draws.min(axis), draws.max(axis)
    return most - least <= ROUNDING * np.maximum(np.abs(least), np.abs(most))


def scalars(params: Mapping[str, Any], lead: int = 0) -> dict[str, Any]:
    """Every scalar of arrays by site, (*lead, *shape), under its name: 'mu', 'A[0,1]'."""
    out: dict[str, Any] = {}
    for name, value in params.items():
        value = np.asarray(value)
        flat = value.reshape(*value.shape[:lead], -1)
        labels = entry_labels(name, value.shape[lead:])
        out.update((label, flat[..., i]) for i, label in enumerate(labels))
    return out


def nuts(
    model: Any,
    *,
    key: Any,
    init: Any = None,
    num_warmup: int = 500,
    num_samples: int = 1000,
    num_chains: int = 2,
    progress: bool = True,
    dense_mass: bool | None = None,
    target_accept: float = 0.8,
) -> Bayes:
    """Sample the parameters' posterior by NUTS, the discrete latents summed out exactly.

    Continuous latents whose integral is exact (Gaussian, conjugate) are integrated out. All others
    are sampled together with the parameters, as in the program as written.

    The program's prior counts here even if the model was bound with `prior=False`. A
    `numpyro.param` site has no prior: its density is flat on the constrained scale. The posterior
    may then be improper; a direction that the data leave flat is refused, but an impropriety that
    shows only far out (a mixture whose component may be empty) is not found.

    Exchangeable labels of components are aligned across chains and draws, to `init` if it is
    given, else to the draw of highest density.

    Args:
        model: made by `bind`.
        key: an integer seed or a key of `jax.random`.
        init: a `Fit`, or parameters by site (constrained): the chains start at draws from the
            Gaussian approximation there, and its covariance is the first inverse mass matrix.
            Latents that are sampled start around their posterior mean given the parameters; where
            there are more than 200 coordinates their own variances are their first mass matrix.
            Without it: from the best of several random points each.
        num_warmup: transitions of each chain that adapt step size and mass matrix.
        num_samples: draws kept from each chain.
        num_chains: chains, which take turns.
        progress: show a bar that goes away.
        dense_mass: adapt a full mass matrix, else its diagonal. None: a full one up to 200
            coordinates.
        target_accept: acceptance probability that the step size is adapted to.

    Returns:
        The draws. Trouble is a warning, never an exception once there are draws.

    Raises:
        ModelError: the posterior is improper along a direction, or not finite at the start.

    Warns:
        ConvergenceWarning: divergent transitions, or an R-hat above 1.01.

    Source: Hoffman and Gelman (2014), JMLR 15; NumPyro's iterative implementation, Phan, Pradhan
    and Jankowiak (2019).
    """
    _check_counts(num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains)
    integrated, model = model, with_latents_as_parameters(model)
    few = start_point.num_coordinates(model) <= start_point.MOST_DENSE
    settings = Settings(num_warmup, few if dense_mass is None else dense_mass, target_accept)
    with working(model):
        clock = {"compile": -time.perf_counter(), "warmup": 0.0, "sample": 0.0}
        target = start_point.with_prior(model)
        first, second = jax.random.split(as_key(key))
        integrated = start_point.with_prior(integrated)
        at = start_point.prepare(target, first, init, num_chains, integrated)
        states = ready(
            settings, target, at.chains, at.covariance, jax.random.split(second, num_chains)
        )
        clock["compile"] += time.perf_counter()
        draws = transitions(settings, target, states, num_samples, clock, progress)
        bayes = _result(settings, target, at, draws, clock)
    _warn(bayes)
    return bayes


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        least = 0 if name == "num_warmup" else 1
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}: expected an integer, {least} or more, got {value!r}.")


@jax.jit
def _constrain(model: Any, u: Array) -> dict[str, Array]:
    return jax.vmap(lambda row: model.constrain(start_point.unravel(model, row)))(u)


@jax.jit
def _deterministics(model: Any, params: Mapping[str, Array]) -> dict[str, Array]:
    return lax.map(model.deterministics, params)


def _with_deterministics(model: Any, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the deterministic sites to parameters (chain, draw, *shape)."""
    chains, count = next(iter(params.values())).shape[:2]
    flat = {k: jnp.asarray(v.reshape(-1, *v.shape[2:])) for k, v in params.items()}
    found = to_numpy(_deterministics(model, flat))
    more = {k: v.reshape(chains, count, *v.shape[1:]) for k, v in found.items()}
    return {**params, **more}


def _result(settings, model, at: Start, draws: Draws, clock: dict) -> Bayes:
    """Constrain, align the labels, and only then evaluate the deterministic sites."""
    kept = jax.tree.map(lambda x: x[:, settings.num_warmup :], draws)
    chains, count, size = kept.u.shape
    flat = to_numpy(_constrain(model, jnp.asarray(kept.u.reshape(-1, size))))
    flat = {k: flat[k] for k in model.params}
    flat = {k: v.reshape(chains, count, *v.shape[1:]) for k, v in flat.items()}
    groups = symmetry(model, at.params)
    best = np.unravel_index(np.argmin(kept.potential), kept.potential.shape)
    reference = at.params if at.informed else {k: v[best] for k, v in flat.items()}
    samples = _with_deterministics(model, align_labels(reference, flat, groups))
    stats = {
        "lp": -kept.potential, "diverging": kept.diverging, "acceptance_rate": kept.accept_prob,
        "n_steps": kept.num_steps, "energy": kept.energy, "step_size": kept.step_size,
    }  # fmt: skip
    return Bayes(model, samples, stats, clock, int(draws.num_steps.sum()), groups, settings)


def _warn(bayes: Bayes) -> None:
    problems = []
    if bayes.divergences:
        problems.append(f"{bayes.divergences} divergent transitions (raise target_accept)")
    if bayes.unreliable:
        names = ", ".join(bayes.unreliable[:5]) + (" ..." if len(bayes.unreliable) > 5 else "")
        problems.append(
            f"R-hat above {RHAT_LIMIT} (up to {bayes.rhat.max():.3f}) for {names} (draw more)"
        )
    if problems:
        warnings.warn(
            f"NUTS has not converged: {'; '.join(problems)}. Do not take these draws as the truth.",
            ConvergenceWarning,
            stacklevel=3,
        )
