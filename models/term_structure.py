"""The term structure of interest rates: dynamic Nelson-Siegel.

    y_t(m) = L_t + S_t a(m) + C_t (a(m) - exp(-decay m)) + u_t(m)
    u_t(m) ~ Normal(0, noise_sd_m^2)
    a(m) = (1 - exp(-decay m)) / (decay m)

for maturities of m months. Level, slope and curvature, x_t = (L_t, S_t, C_t), are hidden
autoregressions with correlated shocks,

    x_t = mean + phi * (x_{t-1} - mean) + e_t,   e_t ~ Normal(0, Q)

from their stationary law. `decay` bends the loadings, so it has no closed form; the factors are
still Gaussian given it and integrated out exactly. A maturity that is not quoted is NaN.

Data: simulated, eight maturities over twenty years of months, with parameters near the estimates
of the first source for US Treasuries. The longest maturity is not issued for five years, and other
quotes are missing at random.

Source: Diebold and Li (2006), Journal of Econometrics 130(2); Diebold, Rudebusch and Aruoba (2006),
Journal of Econometrics 131(1-2), for the state space. Priors: weak, in percent a year.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.contrib.control_flow import scan

import emprob as ep
from emprob.models import _report
from emprob.models._draws import generator

MATURITIES = (3, 6, 12, 24, 36, 60, 84, 120)  # months
FACTORS = ("level", "slope", "curvature")


def loadings(decay: Any, months: Any) -> Any:
    """What a unit of level, slope and curvature adds to the yield of each maturity (M, 3)."""
    x = decay * months
    slope = (1 - jnp.exp(-x)) / x
    return jnp.stack([jnp.ones_like(x), slope, slope - jnp.exp(-x)], -1)


def nelson_siegel(yields: Any, months: Any) -> None:
    """Three factors for all maturities.

    Args:
        yields: (T, M), percent a year; NaN is not quoted.
        months: maturities (M,).
    """
    decay = numpyro.sample("decay", dist.LogNormal(jnp.log(0.06), 0.5))
    mean = numpyro.sample("mean", dist.Normal(jnp.array([5.0, -2.0, 0.0]), 3.0).to_event(1))
    phi = numpyro.sample("phi", dist.Beta(10.0, 1.0).expand([3]).to_event(1))
    shock_sd = numpyro.sample("shock_sd", dist.HalfNormal(1.0).expand([3]).to_event(1))
    R = numpyro.sample("R", dist.LKJCholesky(3, 2.0))
    noise_sd = numpyro.sample("noise_sd", dist.Gamma(2.0, 10.0).expand([len(months)]).to_event(1))
    root = shock_sd[..., :, None] * R
    Q = root @ jnp.swapaxes(root, -1, -2)
    numpyro.deterministic("Q", Q)
    F = loadings(decay, jnp.asarray(months, float))

    def month(x, y):
        x = numpyro.sample("x", dist.MultivariateNormal(mean + phi * (x - mean), scale_tril=root))
        numpyro.sample("y", dist.Normal(F @ x, noise_sd).to_event(1), obs=y)
        return x, None

    stationary = Q / (1 - phi[..., :, None] * phi[..., None, :])
    start = dist.MultivariateNormal(mean, covariance_matrix=stationary)
    scan(month, numpyro.sample("x0", start), yields)


TRUTH = {
    "decay": np.array(0.06),
    "mean": np.array([7.0, -2.0, -0.3]),
    "phi": np.array([0.97, 0.94, 0.85]),
    "Q": np.array([[0.090, -0.050, 0.030], [-0.050, 0.250, 0.020], [0.030, 0.020, 0.600]]),
    "noise_sd": np.array([0.20, 0.08, 0.10, 0.08, 0.07, 0.07, 0.09, 0.12]),
}


def simulate(key: Any, length: int = 240, missing: float = 0.0, truth: dict | None = None) -> tuple:
    """Draw yields of `MATURITIES`, some of their cells missing at random.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        missing: share of the cells that is missing.
        truth: decay, mean, phi, Q and noise_sd; `TRUTH` by default.

    Returns:
        yields (T, M) and the factors x (T, 3).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    phi, Q = truth["phi"], truth["Q"]
    shocks = rng.multivariate_normal(np.zeros(3), Q, length)
    x = np.empty((length, 3))
    last = rng.multivariate_normal(np.zeros(3), Q / (1 - np.outer(phi, phi)))
    for t in range(length):
        last = x[t] = phi * last + shocks[t]
    x = x + truth["mean"]
    F = np.asarray(loadings(float(truth["decay"]), np.array(MATURITIES, float)))
    y = x @ F.T + truth["noise_sd"] * rng.normal(size=(length, len(MATURITIES)))
    return np.where(rng.uniform(size=y.shape) < missing, np.nan, y), x


def load(key: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Twenty simulated years of months with holes (240, 8), columns by maturity; the factors.

    The longest maturity is not issued in years 11-15, and 5 % of the other quotes are missing.
    """
    y, x = simulate(key, 240, 0.05)
    y[120:180, -1] = np.nan
    return pd.DataFrame(y, columns=list(MATURITIES)).rename_axis("month"), x


# -- the main job ---------------------------------------------------------------------------------


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Fit with quotes missing, compare with the truth and with NUTS, forecast the curve."""
    p = _report.parser("Dynamic Nelson-Siegel", num_starts=1)
    p.add_argument("--ahead", type=int, default=12, help="months to forecast")
    args = p.parse_args(argv)
    opt = _report.options(args)
    frame, factors = load(opt.seed)
    model = ep.bind(nelson_siegel, frame, np.array(MATURITIES, float))
    _report.heading("The plan")
    print(model)
    found = _report.fit(model, opt)
    _report.heading("Estimates beside the truth")
    _report.show(beside_truth(found))
    inside = np.abs(factors - found.posterior["x"].mean) < 1.96 * found.posterior["x"].sd
    print(f"\nshare of the factors in their 95 % band: {inside.mean():.0%}")
    comparison = _report.beside(found, opt)
    ahead = found.forecast(args.ahead, opt.seed + 2, 1000)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, ahead, factors), opt.out / "term_structure.png"),
            _report.save_draws(source.to_arviz(), opt.out / "term_structure.nc"),
        ]
    )
    return found


def beside_truth(found: ep.Fit) -> pd.DataFrame:
    """The estimates, and the parameters that the data were made with."""
    from emprob.chart import entry_labels

    truth = {}
    for site, value in TRUTH.items():
        truth |= dict(zip(entry_labels(site, value.shape), value.ravel()))
    table = found.summary().loc[list(truth), ["estimate", "se", "lower", "upper"]]
    return table.assign(truth=pd.Series(truth))


def draw(found: ep.Fit, ahead: Any, factors: np.ndarray) -> Any:
    """The factors with the truth, the yields with those not quoted, the curve to come."""
    import matplotlib.pyplot as plt

    from emprob import plot
    from emprob.plot import COLORS

    figure, axes = plt.subplots(3, 1, figsize=(9, 10), layout="constrained")
    plot.plot_states(found, "x", ax=axes[0])
    for k in range(3):
        axes[0].plot(factors[:, k], color="black", lw=0.8, ls=":")
    axes[0].legend(axes[0].get_lines()[:3], FACTORS, frameon=False, ncols=3)
    title = "Factors: smoothed, with 95 % band; dotted: the truth"
    axes[0].set_title(title, loc="left", fontsize=10)
    _longest_maturity(found, axes[1])
    now, later = _curve(found, found.posterior["x"].mean[-1]), ahead.summary("y")
    rows = later.loc[ahead.steps]
    axes[2].plot(MATURITIES, now, color="0.35", marker="o", label="last month, fitted")
    axes[2].plot(MATURITIES, rows["mean"], color=COLORS[0], marker="o",
                 label=f"in {ahead.steps} months, with 95 % interval")  # fmt: skip
    axes[2].fill_between(MATURITIES, rows["lower"], rows["upper"], color=COLORS[0], alpha=0.2, lw=0)
    axes[2].set(xlabel="maturity, months", ylabel="percent a year")
    axes[2].legend(frameon=False)
    axes[2].set_title("The yield curve", loc="left", fontsize=10)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _curve(found: ep.Fit, x: np.ndarray) -> np.ndarray:
    F = np.asarray(loadings(float(found.params["decay"]), np.array(MATURITIES, float)))
    return x @ F.T


def _longest_maturity(found: ep.Fit, ax: Any) -> None:
    """The longest maturity through the years without it."""
    from emprob.plot import COLORS

    F = np.asarray(loadings(float(found.params["decay"]), np.array(MATURITIES, float)))[-1]
    x = found.posterior["x"]
    covariance = x.covariance.reshape(len(x.mean), 3, 3)
    sd = np.sqrt(np.einsum("i,tij,j->t", F, covariance, F) + found.params["noise_sd"][-1] ** 2)
    middle, time = x.mean @ F, np.arange(len(x.mean))
    y = found.model.notes.value.observed["y"]
    ax.plot(time, middle, color=COLORS[0], lw=1, label="given all quotes, 95 % interval")
    ax.fill_between(time, middle - 1.96 * sd, middle + 1.96 * sd, color=COLORS[0], alpha=0.2, lw=0)
    ax.plot(time, y[:, -1], ".", color="0.3", markersize=3, label="quoted")
    ax.set(xlabel="month", ylabel="percent a year")
    ax.set_title(f"Yield of {MATURITIES[-1]} months", loc="left", fontsize=10)
    ax.legend(frameon=False)


if __name__ == "__main__":
    main()
