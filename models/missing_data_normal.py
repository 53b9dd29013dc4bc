"""Multivariate normal data with holes: mean and covariance from rows of which parts are missing.

    y_n ~ Normal(mu, Sigma),   of which some cells are NaN, whichever they are

Three programs of the same law. NumPyro scores a vector as a whole, so a vector with a hole in it
(`MultivariateNormal` observed with a NaN) is left out as a whole; these three use what is there.

- `saturated`: factors under independent noise of one size, in units c_j of each variable's spread,
      z_n ~ Normal(0, I_{D-1}),   y_nj | z_n ~ Normal(mu_j + W_j z_n, (sd c_j)^2).
  With D - 1 factors, W W' + sd^2 diag(c)^2 is any covariance matrix there is (sd^2 is the least
  eigenvalue of the scaled one), and given z the cells are independent: a missing cell drops out.
- `by_pattern`: no latent at all; rows with the same holes have a normal law of the cells they have.
- `imputed`: NumPyro's own idiom; every missing cell is a latent, put into its hole. The latents are
  one dense block, whose cost grows with the cube of the number of holes: for small data.

All are valid if whether a cell is missing depends on what is observed only (missing at random).

Source: Rubin (1976), Biometrika 63(3); Little and Rubin (2019), Statistical Analysis with Missing
Data, chapter 8; Tipping and Bishop (1999), JRSS B 61(3), section 3.2, for D - 1 factors; Murray
(1977), JRSS B 39(1), discussion of Dempster, Laird and Rubin, for twelve rows with two maxima.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

import emprob as ep
from emprob.models import _report
from emprob.models._draws import generator

# Correlation 0.5 or -0.5 fits equally well; 0 is a saddle between them.
MURRAY = np.array(
    [[1, 1], [1, -1], [-1, 1], [-1, -1], [2, np.nan], [2, np.nan], [-2, np.nan], [-2, np.nan],
     [np.nan, 2], [np.nan, 2], [np.nan, -2], [np.nan, -2]]
)  # fmt: skip


def saturated(y: Any) -> None:
    """Any covariance, by one factor less than there are variables.

    Args:
        y: (N, D), D > 1; NaN is missing.
    """
    n, d = y.shape
    center, spread = jnp.nanmean(y, 0), jnp.nanstd(y, 0)
    mu = numpyro.sample("mu", dist.Normal(center, 10 * spread).to_event(1))
    rows, columns = np.tril_indices(d, 0, d - 1)
    loading = numpyro.sample("loading", dist.Normal(0.0, 2 * spread[rows]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    W = jnp.zeros((*loading.shape[:-1], d, d - 1)).at[..., rows, columns].set(loading)
    noise = sd[..., None, None] ** 2 * jnp.diag(spread**2)
    numpyro.deterministic("Sigma", W @ jnp.swapaxes(W, -1, -2) + noise)
    with numpyro.plate("row", n, dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([d - 1]).to_event(1))
        with numpyro.plate("variable", d, dim=-1):
            numpyro.sample("y", dist.Normal(mu + (W * z).sum(-1), sd * spread), obs=y)


@dataclass(frozen=True)
class Patterns:
    """Which cells are there.

    Attributes:
        columns: for each pattern of holes, the columns that rows with it have.
        width: D.
    """

    columns: tuple[tuple[int, ...], ...]
    width: int


def by_pattern(patterns: Patterns, *rows: Any) -> None:
    """One normal law for each pattern of holes.

    Args:
        patterns: see `split`.
        *rows: for each pattern, the cells that are there (N_p, D_p).
    """
    width = patterns.width
    mu, root = _normal(width)
    Sigma = root @ jnp.swapaxes(root, -1, -2)
    for i, (y, which) in enumerate(zip(rows, patterns.columns, strict=True)):
        j = np.array(which)
        law = dist.MultivariateNormal(mu[..., j], Sigma[..., j[:, None], j])
        with numpyro.plate(f"rows {i}", len(y)):
            numpyro.sample(f"y {i}", law, obs=y)


def imputed(y: Any, row: Any, column: Any) -> None:
    """Every missing cell is a latent; bind with `latents=("x",)`.

    Args:
        y: (N, D), with anything in the holes.
        row: (M,), of the holes.
        column: (M,), of the holes.
    """
    mu, root = _normal(y.shape[1])
    # Not a prior: the law of x is what the rows make of it.
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([len(row)]).to_event(1).mask(False))
    full = jnp.asarray(y).at[row, column].set(x)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.MultivariateNormal(mu, scale_tril=root), obs=full)


def _normal(width: int) -> tuple:
    """Mean and Cholesky factor."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1000.0).expand([width]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(1000.0).expand([width]).to_event(1))
    R = numpyro.sample("R", dist.LKJCholesky(width, 1.0))
    root = sd[..., :, None] * R
    numpyro.deterministic("Sigma", root @ jnp.swapaxes(root, -1, -2))
    return mu, root


def split(y: np.ndarray) -> tuple[Patterns, list[np.ndarray]]:
    """The patterns of holes, and the rows that have each; empty rows are left out."""
    there = np.isfinite(y)
    kinds = [k for k in np.unique(there, axis=0) if k.any()]
    rows = [y[(there == k).all(1)][:, k] for k in kinds]
    columns = tuple(tuple(int(j) for j in np.flatnonzero(k)) for k in kinds)
    return Patterns(columns, y.shape[1]), rows


TRUTH = {
    "mu": np.array([1.0, -2.0, 0.5]),
    "Sigma": np.array([[2.0, 0.9, -0.6], [0.9, 1.5, 0.2], [-0.6, 0.2, 1.0]]),
}


def simulate(
    key: Any, num_rows: int = 500, missing: float = 0.3, truth: dict | None = None
) -> tuple:
    """Draw rows; cells of all columns but the first go missing where the first is large.

    Whether a cell is missing depends on the first column, which is always there: missing at random,
    yet the means of what is left are off.

    Args:
        key: a key of `jax.random`, or an integer.
        num_rows: N.
        missing: share of the cells of the other columns that is missing.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        y with NaN (N, D) and y without (N, D).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    full = rng.multivariate_normal(truth["mu"], truth["Sigma"], num_rows)
    rank = full[:, 0].argsort().argsort()[:, None] / num_rows
    gone = rng.uniform(size=full.shape) < np.minimum(2 * missing * rank, 1)
    gone[:, 0] = False
    return np.where(gone, np.nan, full), full


def load() -> pd.DataFrame:
    """Births per woman in 1960, 1980, 2000 and 2010 by country; some were not counted (219, 4).

    World Bank, World Development Indicators, as the package `statsmodels` ships them
    (pip install "emprob[gallery]").
    """
    try:
        from statsmodels.datasets import fertility
    except ImportError as error:
        raise ImportError(
            'this data set is in the package statsmodels: pip install "emprob[gallery]"'
        ) from error
    frame = fertility.load_pandas().data.set_index("Country Name")
    return frame[["1960", "1980", "2000", "2010"]].astype(float)


# -- the main job ---------------------------------------------------------------------------------


def by_treatment(y: np.ndarray, opt: _report.Options) -> pd.DataFrame:
    """Means by maximum likelihood from all cells, from complete rows, and column by column."""
    complete = y[np.isfinite(y).all(1)]
    found = ep.fit(ep.bind(saturated, y, prior=False), key=opt.seed, progress=False)
    rows = {
        f"all {np.isfinite(y).sum()} cells": found.params["mu"],
        f"{len(complete)} complete rows": complete.mean(0), "each column": np.nanmean(y, 0),
    }  # fmt: skip
    return pd.DataFrame(rows).T


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Means with and without the rows that have holes; MAP beside NUTS; returns the fit."""
    p = _report.parser("Normal data with holes: births per woman", num_starts=1)
    opt = _report.options(p.parse_args(argv))
    frame = load()
    y = frame.to_numpy()
    _report.heading("Mean births per woman, by what is done about the holes")
    _report.show(by_treatment(y, opt).set_axis(frame.columns, axis=1))
    model = ep.bind(saturated, y)
    _report.heading("The plan")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    name = "missing_data_normal"
    _report.say_where(
        [
            _report.save_figure(draw(found, frame), opt.out / f"{name}.png"),
            _report.save_draws(source.to_arviz(), opt.out / f"{name}.nc"),
        ]
    )
    return found


def filled(found: ep.Fit, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows with their holes filled by conditional means, and the standard deviations there.

    Args:
        found: a fit of either program.
        y: (N, D) with NaN.

    Returns:
        values (N, D) and standard deviations (N, D), zero where y is known.
    """
    mu = found.params["mu"]
    rows = found.summary()["estimate"]
    d = len(mu)
    Sigma = np.array([[rows[f"Sigma[{i},{j}]"] for j in range(d)] for i in range(d)])
    values, sd = y.copy(), np.zeros_like(y)
    for n, row in enumerate(y):
        there = np.isfinite(row)
        gain = np.linalg.solve(Sigma[np.ix_(there, there)], Sigma[np.ix_(there, ~there)]).T
        values[n, ~there] = mu[~there] + gain @ (row[there] - mu[there])
        left = Sigma[np.ix_(~there, ~there)] - gain @ Sigma[np.ix_(there, ~there)]
        sd[n, ~there] = np.sqrt(np.diag(left))
    return values, sd


def draw(found: ep.Fit, frame: pd.DataFrame) -> Any:
    """Two of the years against each other, with the countries that have only one of them."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    y = frame.to_numpy()
    values, sd = filled(found, y)
    first, last = 1, y.shape[1] - 1
    hole = np.isfinite(y).any(1) & ~np.isfinite(y[:, [first, last]]).all(1)
    figure, ax = plt.subplots(figsize=(6, 4.6), layout="constrained")
    ax.plot(y[:, first], y[:, last], ".", color="0.6", label="both years known")
    ax.errorbar(
        values[hole, first], values[hole, last], 1.96 * sd[hole, last], 1.96 * sd[hole, first],
        fmt="o", color=COLORS[1], markersize=4, elinewidth=0.8, label="filled in, 95 %",
    )  # fmt: skip
    ax.set(xlabel=f"births per woman, {frame.columns[first]}")
    ax.set(ylabel=f"births per woman, {frame.columns[last]}")
    ax.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
