"""Student-t errors: a normal law whose scale is drawn anew for every observation.

    w_n ~ Gamma(df / 2, df / 2),   y_n | w_n ~ Normal(x_n' beta, sigma^2 / w_n)

so that y_n has a Student-t law with df degrees of freedom. An observation far from the line gets a
small weight E[w_n | y_n] = (df + 1) / (df + r_n^2 / sigma^2): robust regression, with the weights
that EM finds on its way. The same in d dimensions, with one weight for a whole vector.

Data: Brownlee's stack loss (Brownlee 1965, Statistical Theory and Methodology, section 13.12), and
daily returns of the Nasdaq.

Source: Dempster, Laird and Rubin (1980), Multivariate Analysis V; Lange, Little and Taylor (1989),
Journal of the American Statistical Association 84(408), for stack loss; Liu and Rubin (1995),
Statistica Sinica 5(1). Priors: weak; Juarez and Steel (2010), Journal of Business and Economic
Statistics 28(1), for the degrees of freedom.
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


def student_regression(y: Any, x: Any) -> None:
    """Linear regression with Student-t errors.

    Args:
        y: (N,); NaN is missing.
        x: covariates (N, P), a column of ones included.
    """
    beta = numpyro.sample("beta", dist.Normal(0.0, 100.0).expand([x.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    df = numpyro.sample("df", dist.Gamma(2.0, 0.1))
    with numpyro.plate("observation", len(y)):
        w = numpyro.sample("w", dist.Gamma(df / 2, df / 2))
        numpyro.sample("y", dist.Normal(x @ beta, sigma / jnp.sqrt(w)), obs=y)


def multivariate_student(y: Any) -> None:
    """Vectors with a multivariate Student-t law: one weight a row.

    Args:
        y: (N, D).
    """
    d = y.shape[1]
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0).expand([d]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(5.0).expand([d]).to_event(1))
    R = numpyro.sample("R", dist.LKJCholesky(d, 2.0))
    df = numpyro.sample("df", dist.Gamma(2.0, 0.1))
    root = sd[..., :, None] * R
    numpyro.deterministic("Sigma", root @ jnp.swapaxes(root, -1, -2))
    with numpyro.plate("observation", len(y)):
        w = numpyro.sample("w", dist.Gamma(df / 2, df / 2))
        law = dist.MultivariateNormal(mu, scale_tril=root / jnp.sqrt(w)[..., None, None])
        numpyro.sample("y", law, obs=y)


TRUTH = {
    "beta": np.array([1.0, 2.0, -0.5]), "sigma": np.array(1.5), "df": np.array(4.0)
}  # fmt: skip


def simulate(key: Any, num_observations: int = 500, truth: dict | None = None) -> tuple:
    """Draw a regression with standard normal covariates.

    Args:
        key: a key of `jax.random`, or an integer.
        num_observations: N.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        y (N,), x (N, P) and the weights w (N,).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    x = np.column_stack(
        [np.ones(num_observations), rng.normal(size=(num_observations, len(truth["beta"]) - 1))]
    )
    w = rng.gamma(truth["df"] / 2, 2 / truth["df"], num_observations)
    noise = truth["sigma"] / np.sqrt(w) * rng.normal(size=num_observations)
    return x @ truth["beta"] + noise, x, w


def load() -> tuple[np.ndarray, np.ndarray]:
    """Stack loss (21,) and covariates (21, 4): ones, air flow, water temperature, acid.

    Needs the package `statsmodels` (pip install "emprob[gallery]").
    """
    try:
        from statsmodels.datasets import stackloss
    except ImportError as error:
        raise ImportError(
            'this data set is in the package statsmodels: pip install "emprob[gallery]"'
        ) from error
    data = stackloss.load_pandas()
    x = np.column_stack([np.ones(len(data.endog)), data.exog.to_numpy(float)])
    return data.endog.to_numpy(float), x


def load_returns(start: str = "2010") -> pd.Series:
    """Daily log returns of the Nasdaq composite in percent, to 2018.

    Needs the package `arch` (pip install "emprob[gallery]").
    """
    try:
        from arch.data import nasdaq
    except ImportError as error:
        raise ImportError(
            'this data set is in the package arch: pip install "emprob[gallery]"'
        ) from error
    price = nasdaq.load()["Adj Close"]
    return (100 * np.log(price).diff()).dropna().rename("return").loc[start:]


# -- the main job ---------------------------------------------------------------------------------


def by_degrees(y: np.ndarray, x: np.ndarray, opt: _report.Options) -> pd.DataFrame:
    """Maximum likelihood with several fixed degrees of freedom, and with free ones."""
    rows = {}
    for df in (1.1, 4.0, None):
        fixed = None if df is None else {"df": df}
        model = ep.bind(student_regression, y, x, prior=False, fixed=fixed)
        init = least_squares(y, x) | ({"df": np.array(4.0)} if df is None else {})
        found = ep.fit(model, key=opt.seed, init=init, max_steps=3000, progress=False)
        names = [f"beta[{j}]" for j in range(x.shape[1])]
        rows["free" if df is None else f"df = {df}"] = {
            **dict(zip(names, found.params["beta"])), "sigma^2": found.params["sigma"] ** 2,
            "df": found.params.get("df", df), "log-likelihood": found.log_likelihood,
            "status": found.status.word,
        }  # fmt: skip
    return pd.DataFrame(rows).T


def least_squares(y: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """Where a fit may begin: the coefficients and residual spread of least squares."""
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    return {"beta": beta, "sigma": np.std(y - x @ beta)}


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Stack loss by maximum likelihood; returns by MAP beside NUTS; returns the latter fit."""
    p = _report.parser("Student-t errors: stack loss and returns", num_starts=1)
    args = p.parse_args(argv)
    opt = _report.options(args)
    _report.heading("Stack loss, maximum likelihood")
    _report.show(by_degrees(*load(), opt), 6)
    returns = load_returns("2018" if args.quick else "2010")
    y = returns.to_numpy()
    model = ep.bind(student_regression, y, np.ones((len(y), 1)))
    _report.heading(f"{len(y)} returns of the Nasdaq: the plan")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, returns), opt.out / "student_t.png"),
            _report.save_draws(source.to_arviz(), opt.out / "student_t.nc"),
        ]
    )
    return found


def draw(found: ep.Fit, returns: pd.Series) -> Any:
    """The returns against both laws, and the weight that each day was given."""
    import matplotlib.pyplot as plt
    from scipy import stats

    from emprob.plot import COLORS

    y = returns.to_numpy()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    grid = np.linspace(y.min(), y.max(), 400)
    p = found.params
    laws = {
        "Student-t": stats.t(p["df"], p["beta"][0], p["sigma"]), "normal": stats.norm(*_moments(y))
    }  # fmt: skip
    axes[0].hist(y, 60, density=True, color="0.85")
    for color, (name, law) in zip(COLORS, laws.items()):
        axes[0].plot(grid, law.pdf(grid), color=color, label=name)
    axes[0].set(yscale="log", ylim=(1e-4, 2), xlabel="return, %", ylabel="density")
    axes[0].legend(frameon=False)
    axes[1].plot(y, found.posterior["w"].mean, ".", color=COLORS[0], markersize=3)
    axes[1].set(xlabel="return, %", ylabel="expected weight of the day")
    return figure


def _moments(y: np.ndarray) -> tuple[float, float]:
    return float(y.mean()), float(y.std())


if __name__ == "__main__":
    main()
