"""`Fit`: what a run hands back, and everything that can be asked of it."""

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
import pandas as pd

from emprob import criteria, predictive, uncertainty
from emprob.curvature import NoCurvature, TooManyParameters
from emprob.errors import ModelError
from emprob.keys import as_key
from emprob.report import UncertaintyReport
from emprob.types import Status


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """The result of a run. Values are NumPy arrays, constrained, in the program's order.

    Attributes:
        model: what was fitted; None in a fit that was loaded without it.
        method: the algorithm (its repr, in a loaded fit).
        params: estimates by site.
        objective: log posterior density of the parameters, constrained space, without Jacobian;
            with `prior=False` the log-likelihood.
        log_likelihood: log Z, the latents summed out.
        status: how the run ended.
        message: that in a sentence, with the names of sites.
        score_norm: estimated distance to the optimum in standard errors.
        num_steps, num_maps: steps, and E-steps in them.
        seconds: by part of the run.
        trace: per-step arrays by name.
        start_rows: a row for each start.
        information: the uncertainty report, if the driver made one.
        rows: the table that summaries are made of, in a loaded fit.
        simulated: of an E-step by simulation: draws of the latents at the estimate, and the Monte
            Carlo error of the log-likelihood (`settle.SimulationReport`).
    """

    model: Any
    method: Any
    params: dict[str, np.ndarray]
    objective: float
    log_likelihood: float
    status: Status
    message: str = ""
    score_norm: float = float("nan")
    num_steps: int = 0
    num_maps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    trace: dict[str, np.ndarray] = field(default_factory=dict)
    start_rows: tuple[dict, ...] = ()
    information: UncertaintyReport | None = None
    rows: pd.DataFrame | None = None
    simulated: Any = None
    counts: Mapping[str, int] | None = None

    # -- how it ended -----------------------------------------------------------------------

    @property
    def converged(self) -> bool:
        """Whether the parameters are at an optimum."""
        return self.status.ok

    @property
    def starts(self) -> pd.DataFrame:
        """A row for each start."""
        return pd.DataFrame(list(self.start_rows))

    # -- uncertainty ------------------------------------------------------------------------

    @cached_property
    def uncertainty(self) -> UncertaintyReport:
        """The observed information at the estimate, and what it says.

        Raises:
            TooManyParameters: the information matrix would be too large.
        """
        if self.information is not None:
            return self.information
        return uncertainty.information(self._bound("uncertainty"), self.params)

    def covariance(self, method: str = "observed") -> pd.DataFrame:
        """Covariance of the parameters, constrained scale; see `standard_errors`."""
        model = self._bound("covariance")
        return uncertainty.covariance(model, self.params, method, self.uncertainty)

    def standard_errors(self, method: str = "observed") -> dict[str, np.ndarray]:
        """Standard errors by site, deterministic sites included, constrained scale.

        Args:
            method: "observed" (information), "score" (outer product of scores) or "sandwich".

        Returns:
            NaN where an entry is at a boundary of its support or the data do not determine it.
        """
        model = self._bound("standard_errors")
        return uncertainty.standard_errors(model, self.params, method, self.uncertainty)

    @cached_property
    def _table(self) -> pd.DataFrame:
        if self.rows is not None:
            return self.rows
        model = self._bound("summary")
        try:
            return uncertainty.table(model, self.params, self.uncertainty)
        except TooManyParameters:
            return uncertainty.table_without_errors(model, self.params, "too many parameters")
        except NoCurvature:
            return uncertainty.table_without_errors(model, self.params, "no curvature")

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """Estimates, standard errors and Wald intervals, by entry.

        Args:
            level: of the intervals. They are symmetric on the scale of the entry's bounds (log,
                log-odds), so that they stay inside the support; `attrs["intervals"]` says so.

        Returns:
            Columns estimate, se, lower, upper (constrained scale), gradient (the score,
            unconstrained scale) and note: 'boundary' or 'unidentified', or nothing. After an
            E-step by simulation also mc_error and se_error: the Monte Carlo standard errors of the
            estimate and of its standard error.
        """
        frame = uncertainty.summary_of(self._table, level)
        frame.attrs["status"] = self.status.word
        frame.attrs["message"] = self.message
        return frame

    # -- criteria ---------------------------------------------------------------------------

    @cached_property
    def _counts(self) -> Mapping[str, int]:
        if self.counts is not None:
            return self.counts
        model = self._bound("aic, bic")
        df = criteria.degrees_of_freedom(model, self.params)
        return {"df": df, "num_observations": int(model.notes.value.num_observations)}

    @property
    def df(self) -> int:
        """Number of free parameters, those at a boundary included."""
        return self._counts["df"]

    @property
    def num_observations(self) -> int:
        """Number of observed values that are not missing."""
        return self._counts["num_observations"]

    @property
    def aic(self) -> float:
        """Akaike's criterion, smaller is better."""
        return criteria.aic(self.log_likelihood, self.df)

    @property
    def bic(self) -> float:
        """Schwarz's criterion, smaller is better."""
        return criteria.bic(self.log_likelihood, self.df, self.num_observations)

    @cached_property
    def entropy(self) -> float:
        """Entropy of the latents' joint posterior, in nats."""
        return criteria.posterior_entropy(self._bound("entropy, icl"), self.params)

    @property
    def icl(self) -> float:
        """BIC plus twice the entropy of the latents' posterior, smaller is better."""
        return criteria.icl(self.log_likelihood, self.df, self.num_observations, self.entropy)

    # -- latents and draws --------------------------------------------------------------------

    @cached_property
    def posterior(self) -> Any:
        """Posterior of the latents at the estimate, by site; from draws if the E-step drew them."""
        from emprob.drawn import DrawnPosterior
        from emprob.posterior import marginals

        if self.simulated is not None:
            model = self._bound("posterior")
            return DrawnPosterior(model, self.params, self.simulated.draws)
        return marginals(self._bound("posterior"), self.params)

    def sample(self, key: Any, n: int = 1000) -> dict[str, np.ndarray]:
        """Draws of parameters and latents.

        Parameters from the Gaussian approximation at the optimum, made in unconstrained space and
        mapped back, so that they stay inside their supports; latents from their exact posterior at
        each draw (after an E-step by simulation: its draws at the estimate). What is at a boundary
        or not determined keeps its estimate.

        Args:
            key: an int or a JAX key. The same key gives the same numbers.
            n: number of draws.

        Returns:
            By site, (n, *shape).
        """
        model, key = self._bound("sample"), as_key(key)
        first, second = jax.random.split(key)
        draws = self._draw_params(first, n)
        if self.simulated is not None:
            return draws | self.posterior.joint(second, n)
        if model.latents:
            discrete = [k for k in model.latents if k not in model.structure.continuous]
            values = {k: self.posterior[k].values for k in discrete}
            draws |= predictive.latents_at(model, draws, values, second)
        return draws

    def _draw_params(self, key: Any, n: int) -> dict[str, np.ndarray]:
        size = self.uncertainty.square_root().shape[1]
        with jax.enable_x64(True):
            normals = np.asarray(jax.random.normal(key, (n, size), "float64"))
        return predictive.params_at(self._bound("sample"), self.params, self.uncertainty, normals)

    def predict(
        self, key: Any, n: int = 100, *, args: tuple | None = None, kwargs: Mapping | None = None,
        draws: Mapping[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Replicates of the observed sites: the program with its observed values hidden.

        Latents are drawn anew from their laws, parameters as in `sample`. In a scan whose body
        reads the series from its inputs (an autoregression on `xs`), each step is drawn given the
        observed past.

        Args:
            key: an int or a JAX key.
            n: number of replicates.
            args: new arguments of the program, all of them; None: those of the fit.
            kwargs: that go with them.
            draws: parameters to use, by site (n, *shape), instead of the approximation's; a value
                of the site's own shape stands for all replicates (`fit.params`: plug-in).

        Returns:
            By observed site, (n, *shape).
        """
        model, key = self._bound("predict"), as_key(key)
        first, second = jax.random.split(key)
        if draws is None:
            draws = self._draw_params(first, n)
        elif unknown := set(self.params) ^ (set(draws) - set(model.latents)):
            raise ValueError(
                f"draws: expected sites {list(self.params)}, these differ: {sorted(unknown)}"
            )
        else:
            draws = {k: _repeated(k, draws[k], v.shape, n) for k, v in self.params.items()}
        if kwargs is not None and args is None:
            args = ()
        return predictive.replicates(model, draws, second, args, kwargs or {})

    def forecast(self, steps: int, key: Any, n: int = 1000, **kwargs: Any) -> Any:
        """Draws of the next steps of a chain, see `emprob.forecast`."""
        from emprob.forecast import forecast

        return forecast(self, steps, key, n, **kwargs)

    def to_arviz(self, key: Any = None, n: int = 1000) -> Any:
        """An `xarray.DataTree` for ArviZ: one chain of draws from the Gaussian approximation.

        Args:
            key: as of `sample`. None: no random numbers; evenly spread points of the approximation
                for the parameters, and no latents.
            n: number of draws.

        Returns:
            Groups posterior, observed_data and, where there are independent observations,
            log_likelihood (pointwise, the latents summed out); attributes with the status.
        """
        from emprob.export import fit_to_datatree

        model = self._bound("to_arviz")
        if key is None:
            normals = predictive.spread_normals(n, self.uncertainty.square_root().shape[1])
            draws = predictive.params_at(model, self.params, self.uncertainty, normals)
        else:
            draws = self.sample(key, n)
        return fit_to_datatree(self, draws)

    # -- files ------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the numbers of the fit to one file, all or nothing; `load` reads it."""
        from emprob.export import save

        save(self, path)

    # -- looks ------------------------------------------------------------------------------

    def plot_trace(self, ax: Any = None, **kwargs: Any) -> Any:
        """The objective by step; returns the Axes."""
        from emprob import plot

        return plot.plot_trace(self, ax=ax, **kwargs)

    def plot_marginals(self, ax: Any = None, **kwargs: Any) -> Any:
        """The posterior of the latents; returns the Axes."""
        from emprob import plot

        return plot.plot_marginals(self, ax=ax, **kwargs)

    def __repr__(self) -> str:
        name = self._program_name
        return (
            f"Fit({name}: {self.status.word}, objective {self.objective:.6g}, "
            f"log-likelihood {self.log_likelihood:.6g}, score norm {self.score_norm:.2g}, "
            f"{self.num_steps} steps)"
        )

    @property
    def _program_name(self) -> str:
        return "loaded" if self.model is None else self.model.notes.value.program_name

    def _repr_html_(self) -> str:
        colour = "#2e7d32" if self.converged else "#c62828"
        badge = (
            f'<span style="background:{colour};color:white;padding:2px 8px;border-radius:8px">'
            f"{html.escape(self.status.word)}</span>"
        )
        try:
            table = self.summary().to_html(escape=True, float_format="{:.4g}".format, na_rep="")
        except (ModelError, ValueError, FloatingPointError) as error:
            table = f"<p>{html.escape(str(error))}</p>"
        return (
            f"<div><p>{badge} <b>{html.escape(self._program_name)}</b> "
            f"{html.escape(self.message)}</p><p>{html.escape(repr(self))}</p>"
            f"{_curve(self.trace.get('objective', np.zeros(0)))}{table}</div>"
        )

    def _bound(self, what: str) -> Any:
        if self.model is None:
            raise ModelError(
                f"{what}: this fit was loaded without its model, so only its numbers are there. "
                "Bind the program to the data again and pass it: ep.load(path, model=model)."
            )
        return self.model


def load(path: Any, model: Any = None) -> Fit:
    """Read a fit from a file.

    Args:
        path: written by `Fit.save`.
        model: the same program bound to the same data; None: the numbers only.

    Raises:
        CheckpointError: no such file, damaged, or of another model or data (which field differs).
    """
    from emprob.export import load

    return load(path, model)


def _repeated(name: str, value: Any, shape: tuple[int, ...], n: int) -> np.ndarray:
    value = np.asarray(value, float)
    if value.shape == shape:
        return np.broadcast_to(value, (n, *shape))
    if value.shape[1:] == shape and value.shape[0] >= n:
        return value[:n]
    raise ValueError(
        f"draws: site '{name}': expected shape {shape} or ({n}, ...) before it, got {value.shape}"
    )


def _curve(objective: np.ndarray) -> str:
    """The objective by step, as a small inline drawing."""
    y = np.asarray(objective, float)
    y = y[np.isfinite(y)]
    if y.size < 2:
        return ""
    y = y[np.unique(np.linspace(0, y.size - 1, 200).astype(int))]
    spread = np.ptp(y) or 1.0
    points = " ".join(
        f"{200 * i / (y.size - 1):.1f},{38 - 36 * (v - y.min()) / spread:.1f}"
        for i, v in enumerate(y)
    )
    return (
        '<svg width="204" height="40" role="img" aria-label="objective by step">'
        f'<polyline points="{points}" fill="none" stroke="#1f77b4" stroke-width="1.5"/></svg>'
    )
