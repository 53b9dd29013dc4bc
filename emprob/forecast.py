"""Forecasts of a chain: the same program on data that go on with missing values.

The steps ahead are missing observations, so their states are drawn from the exact posterior (the
simulation smoother, or the discrete chain's sampler) and their data from the program, at each draw
of the parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pandas as pd

from emprob import predictive
from emprob.bind import bind
from emprob.errors import DataError
from emprob.keys import as_key
from emprob.model import LatentModel, arguments


@dataclass(frozen=True, eq=False, repr=False)
class Forecast:
    """Draws of what comes after the data.

    Attributes:
        draws: by observed site and latent of the chain, (n, h, ...).
        steps: h.
        length: number of steps in the data.
    """

    draws: Mapping[str, np.ndarray]
    steps: int
    length: int

    def summary(self, site: str, level: float = 0.95) -> pd.DataFrame:
        """Mean, standard deviation and equal-tailed interval of a site, by step ahead and entry."""
        if site not in self.draws:
            raise KeyError(f"no site '{site}' in the forecast; it has {', '.join(self.draws)}")
        x = self.draws[site].reshape(len(self.draws[site]), self.steps, -1)
        tail = (1 - level) / 2
        low, high = np.quantile(x, [tail, 1 - tail], axis=0)
        names = [(h + 1, e) for h in range(self.steps) for e in range(x.shape[-1])]
        columns = {"mean": x.mean(0), "sd": x.std(0), "lower": low, "upper": high}
        index: Any = pd.MultiIndex.from_tuples(names, names=["step", "entry"])
        if x.shape[-1] == 1:
            index = pd.Index([h for h, _ in names], name="step")
        return pd.DataFrame({k: v.ravel() for k, v in columns.items()}, index=index)

    def __repr__(self) -> str:
        sites = ", ".join(f"{k} {v.shape}" for k, v in self.draws.items())
        return f"Forecast({self.steps} steps: {sites})"


def forecast(
    fit: Any, steps: int, key: Any, n: int = 1000, *, args: tuple | None = None,
    draws: Mapping[str, Any] | None = None, kwargs: Mapping | None = None,
) -> Forecast:  # fmt: skip
    """Draw the next steps of a chain, parameter uncertainty included.

    Args:
        fit: of a program with a scan.
        steps: how many steps ahead.
        key: an int or a JAX key.
        n: number of draws.
        args: the program's arguments for all steps, NaN in the observations to come; None: those
            of the fit, each series of observations longer by `steps` missing values.
        draws: parameters to use, by site (n, *shape); None: the Gaussian approximation at the
            optimum.
        kwargs: that go with `args`.

    Raises:
        DataError: the program has no scan, or inputs in time that are not observations.
    """
    model, key = fit._bound("forecast"), as_key(key)
    length = _length(model)
    if args is None:
        args, kwargs = _extended(model, length, steps)
    s = model.structure
    fixed = {k: np.asarray(v) for k, v in model.data.fixed.items()}
    longer = bind(s.program, *args, latents=s.latents or None, fixed=fixed, prior=s.with_prior,
                  **(kwargs or {}))  # fmt: skip
    first, second, third = jax.random.split(key, 3)
    found = fit._draw_params(first, n) if draws is None else dict(draws)
    values = longer.notes.value.atoms
    states = predictive.latents_at(longer, found, values, second)
    data = predictive.completions(longer, {**found, **states}, third)
    timed = {k: v for k, v in states.items() if k in longer.structure.timed or _in_time(longer, k)}
    ahead = {k: v[:, length:] for k, v in {**data, **timed}.items() if v.shape[1] == length + steps}
    return Forecast(ahead, steps, length)


def _in_time(model: LatentModel, site: str) -> bool:
    static = model.notes.value.static
    return any(v.site == site and v.plates & set(static.chains) for v in static.variables.values())


def _length(model: LatentModel) -> int:
    lengths = {i.block.length for i in model.structure.integrals if i.block.length}
    chains = model.notes.value.static.chains.values()
    lengths |= {c.start + c.length for c in chains}
    if len(lengths) != 1:
        raise DataError(
            f"forecast: expected a program with one scan, found {len(lengths)} lengths of scans. "
            "Use fit.predict for replicates of the data."
        )
    return lengths.pop()


def _extended(model: LatentModel, length: int, steps: int) -> tuple[tuple, dict]:
    """The program's arguments with every series of observations longer by missing values."""
    s = model.structure
    leaves = tuple(np.asarray(x) for x in model.data.leaves)
    args, kwargs = arguments(s.treedef, s.static, leaves)
    observed = [np.asarray(v) for v in model.notes.value.observed.values()]

    def extended(x: Any) -> Any:
        if not isinstance(x, np.ndarray) or x.ndim == 0 or len(x) != length:
            return x
        if not any(v.size == x.size and _equal(v.reshape(x.shape), x) for v in observed):
            raise DataError(
                f"forecast: an input of shape {x.shape} runs in time and is not observed: its "
                "values ahead are needed. Pass args= with all inputs, NaN where y is to come."
            )
        more = np.full((steps, *x.shape[1:]), np.nan)
        return np.concatenate([x.astype(float), more])

    args, kwargs = jax.tree.map(extended, (args, kwargs), is_leaf=lambda v: v is None)
    return args, kwargs


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.astype(float), b.astype(float), equal_nan=True)
