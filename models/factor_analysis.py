"""Factor analysis: many variables that a few factors make move together.

    z_n ~ Normal(0, I_k),   x_nj | z_n ~ Normal(mu_j + W_j z_n, sd_j^2)

Probabilistic principal components have one sd for all variables. W is determined up to a rotation
of the factors, so its upper triangle is zero here: the j-th of the first k variables has only the
first j factors. What is left is the sign of each factor. A missing cell is NaN and drops out.

Data: the chemistry of 178 wines, standardised (Forina et al. 1986, Vitis 25), and the covariances
of six tests of ability (Smith and Stanley 1983, Journal of Personality and Social Psychology 45(2);
Bartholomew and Knott 1999, Latent Variable Models and Factor Analysis).

Source: Lawley and Maxwell (1971), Factor Analysis as a Statistical Method; Rubin and Thayer (1982),
Psychometrika 47(1), for EM; Tipping and Bishop (1999), JRSS B 61(3), for principal components.
Priors: weak, in units of the spread of the data.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

import emprob as ep
from emprob.models import _report
from emprob.models._draws import generator


def factor_analysis(x: Any, num_factors: int = 2) -> None:
    """Every variable has its own noise.

    Args:
        x: (N, D); NaN is missing.
        num_factors: k.
    """
    spread = jnp.nanstd(x, 0)
    sd = numpyro.sample("sd", dist.HalfNormal(2 * spread).to_event(1))
    _factors(x, num_factors, sd)


def principal_components(x: Any, num_factors: int = 2) -> None:
    """All variables have the same noise.

    Args:
        x: (N, D); NaN is missing.
        num_factors: k.
    """
    sd = numpyro.sample("sd", dist.HalfNormal(2 * jnp.nanstd(x)))
    _factors(x, num_factors, sd)


def _factors(x: Any, num_factors: int, sd: Any) -> None:
    n, d = x.shape
    center, spread = jnp.nanmean(x, 0), jnp.nanstd(x, 0)
    mu = numpyro.sample("mu", dist.Normal(center, 10 * spread).to_event(1))
    rows, columns = np.tril_indices(d, 0, num_factors)
    loading = numpyro.sample("loading", dist.Normal(0.0, 2 * spread[rows]).to_event(1))
    W = jnp.zeros((*loading.shape[:-1], d, num_factors)).at[..., rows, columns].set(loading)
    W = numpyro.deterministic("W", W)
    with numpyro.plate("row", n, dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([num_factors]).to_event(1))
        with numpyro.plate("variable", d, dim=-1):
            numpyro.sample("x", dist.Normal(mu + (W * z).sum(-1), sd), obs=x)


TRUTH = {
    "W": np.array([[1.0, 0.0], [0.8, 0.5], [-0.5, 0.9], [0.3, -0.7], [0.9, 0.2], [0.0, 0.6]]),
    "mu": np.array([0.0, 1.0, -1.0, 2.0, 0.5, 0.0]),
    "sd": np.array([0.5, 0.6, 0.4, 0.7, 0.8, 0.5]),
}


def simulate(
    key: Any, num_rows: int = 500, missing: float = 0.0, truth: dict | None = None
) -> tuple:
    """Draw rows, some of their cells missing at random.

    Args:
        key: a key of `jax.random`, or an integer.
        num_rows: N.
        missing: share of the cells that is missing.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        x (N, D) and the factors z (N, k).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    z = rng.normal(size=(num_rows, truth["W"].shape[1]))
    x = truth["mu"] + z @ truth["W"].T
    x = x + truth["sd"] * rng.normal(size=x.shape)
    return np.where(rng.uniform(size=x.shape) < missing, np.nan, x), z


# -- data -----------------------------------------------------------------------------------------

# Lower triangle of the covariances of general, picture, blocks, maze, reading and vocab; n = 112.
ABILITY = (
    24.641, 5.991, 6.700, 33.520, 18.137, 149.831, 6.023, 1.782, 19.424, 12.711, 20.755, 4.936,
    31.430, 4.757, 52.604, 29.701, 7.204, 50.753, 9.075, 66.762, 135.292,
)  # fmt: skip


def load() -> pd.DataFrame:
    """The wines, every variable with mean 0 and standard deviation 1 (178, 13).

    Needs the package `scikit-learn` (pip install "emprob[gallery]").
    """
    try:
        from sklearn.datasets import load_wine
    except ImportError as error:
        raise ImportError(
            'this data set is in the package scikit-learn: pip install "emprob[gallery]"'
        ) from error
    frame = load_wine(as_frame=True).data
    return (frame - frame.mean()) / frame.std(ddof=0)


def load_ability() -> np.ndarray:
    """The correlation matrix of the six tests of ability (6, 6), of 112 people."""
    covariance = np.zeros((6, 6))
    covariance[np.tril_indices(6)] = ABILITY
    covariance = covariance + np.tril(covariance, -1).T
    sd = np.sqrt(np.diag(covariance))
    return covariance / np.outer(sd, sd)


def rows_with(covariance: np.ndarray, num_rows: int) -> np.ndarray:
    """Rows whose mean is 0 and whose covariance (divisor N) is as given, exactly.

    A normal law sees nothing else of its data, so the fit is that of the covariance.
    """
    d = len(covariance)
    raw = np.random.default_rng(0).normal(size=(num_rows, d))
    basis = np.linalg.qr(raw - raw.mean(0))[0]
    return np.sqrt(num_rows) * basis @ np.linalg.cholesky(covariance).T


def chi_square(found: ep.Fit, correlation: np.ndarray, num_rows: int) -> float:
    """Bartlett's statistic against free correlations, with n - 1 rows as is the custom."""
    d, k = found.params["sd"].shape[0], _width(found)
    W = np.zeros((d, k))
    W[np.tril_indices(d, 0, k)] = found.params["loading"]
    fitted = W @ W.T + np.diag(found.params["sd"] ** 2)
    ratio = np.linalg.solve(fitted, correlation)
    gap = np.trace(ratio) - np.linalg.slogdet(ratio)[1] - d
    return float((num_rows - 1 - (2 * d + 5) / 6 - 2 * k / 3) * gap)


def _width(found: ep.Fit) -> int:
    return found.posterior["z"].mean.shape[-1]


# -- the main job ---------------------------------------------------------------------------------


def by_number(x: np.ndarray, numbers: Sequence[int], opt: _report.Options) -> pd.DataFrame:
    """Both programs by maximum likelihood with more and more factors."""
    rows = {}
    for program in (principal_components, factor_analysis):
        for k in numbers:
            found = ep.fit(
                ep.bind(program, x, k, prior=False), key=opt.seed, num_starts=opt.num_starts,
                max_steps=3000, progress=False,
            )  # fmt: skip
            rows[f"{program.__name__}, {k}"] = {
                "log-likelihood": found.log_likelihood, "parameters": found.df, "BIC": found.bic,
                "status": found.status.word,
            }  # fmt: skip
    return pd.DataFrame(rows).T


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Maximum likelihood by number of factors; two factors by MAP beside NUTS."""
    p = _report.parser("Factors of the chemistry of wine", num_starts=2)
    args = p.parse_args(argv)
    opt = _report.options(args)
    frame = load()
    if not args.quick:
        _report.heading("Maximum likelihood, by number of factors")
        _report.show(by_number(frame.to_numpy(), (1, 2, 3), opt), 8)
    model = ep.bind(factor_analysis, frame.to_numpy(), 2)
    _report.heading("Two factors, with the prior, as NUTS has it: the plan")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, frame), opt.out / "factor_analysis.png"),
            _report.save_draws(source.to_arviz(), opt.out / "factor_analysis.nc"),
        ]
    )
    return found


def draw(found: ep.Fit, frame: pd.DataFrame) -> Any:
    """The wines in the plane of the factors, and what each variable is made of."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    z = found.posterior["z"].mean.reshape(len(frame), -1)
    W = found.summary().filter(like="W[", axis=0)["estimate"].to_numpy().reshape(-1, z.shape[1])
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    axes[0].plot(z[:, 0], z[:, 1], ".", color=COLORS[0])
    axes[0].set(xlabel="factor 1", ylabel="factor 2", title="178 wines")
    for j in range(2):
        axes[1].barh(np.arange(len(W)) + 0.4 * j, W[:, j], 0.4, color=COLORS[j],
                     label=f"factor {j + 1}")  # fmt: skip
    axes[1].set_yticks(np.arange(len(W)) + 0.2, frame.columns, fontsize=8)
    axes[1].set(xlabel="loading")
    axes[1].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
