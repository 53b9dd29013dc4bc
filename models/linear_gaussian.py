"""A linear Gaussian state space: a vector autoregression seen through noise, cells missing.

    x_t = Phi x_{t-1} + e_t,    e_t ~ Normal(0, Q)
    y_tj = x_tj + u_tj,         u_tj ~ Normal(0, noise_sd_j^2)

with Phi and Q full and all of them unknown; x_0 ~ Normal(0, START^2 I). Q is written by its
standard deviations and the Cholesky factor of its correlations, as a NumPyro program does, and Q
itself is a deterministic site with an estimate and a standard error like the rest.

Data: growth of real consumption and income and the change of unemployment in the United States by
quarters 1959-2009, standardised (macrodata of statsmodels, from the FRED database).

Source: Shumway and Stoffer (1982), Journal of Time Series Analysis 3(4): EM for Phi, Q and R with
missing cells; the same authors' Time Series Analysis and Its Applications (2017), section 6.4.
Priors: weak, for standardised series; that of noise_sd keeps off zero, where the likelihood may
send it (Chung et al. 2013, Psychometrika 78(4)).
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
from emprob.models import _report, _series, dynamic_factor
from emprob.models._draws import generator

START = 3.0  # standard deviations: the series are standardised
SERIES = ("realcons", "realdpi", "unemp")


def linear_gaussian(y: Any) -> None:
    """A vector autoregression in noise.

    Args:
        y: (T, D), standardised; NaN is missing.
    """
    d = y.shape[1]
    Phi = numpyro.sample("Phi", dist.Normal(0.0, 0.5).expand([d, d]).to_event(2))
    state_sd = numpyro.sample("state_sd", dist.HalfNormal(1.0).expand([d]).to_event(1))
    R = numpyro.sample("R", dist.LKJCholesky(d, 2.0))
    noise_sd = numpyro.sample("noise_sd", dist.Gamma(2.0, 4.0).expand([d]).to_event(1))
    root = state_sd[..., :, None] * R
    numpyro.deterministic("Q", root @ jnp.swapaxes(root, -1, -2))

    def step(x, y):
        x = numpyro.sample("x", dist.MultivariateNormal(Phi @ x, scale_tril=root))
        numpyro.sample("y", dist.Normal(x, noise_sd).to_event(1), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, START).expand([d]).to_event(1)), y)


TRUTH = {
    "Phi": np.array([[0.8, 0.1, 0.0], [-0.2, 0.6, 0.2], [0.0, 0.3, 0.5]]),
    "Q": np.array([[0.30, 0.10, 0.00], [0.10, 0.40, -0.10], [0.00, -0.10, 0.20]]),
    "noise_sd": np.array([0.4, 0.5, 0.3]),
}


def simulate(key: Any, length: int = 400, missing: float = 0.0, truth: dict | None = None) -> tuple:
    """Draw series that start at zero, some of their cells missing at random.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        missing: share of the cells that is missing.
        truth: Phi, Q and noise_sd; `TRUTH` by default.

    Returns:
        y (T, D) and the states x (T, D).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    d = len(truth["Q"])
    shocks = rng.multivariate_normal(np.zeros(d), truth["Q"], length)
    x = np.zeros((length, d))
    for t in range(length):
        x[t] = truth["Phi"] @ x[t - 1] * (t > 0) + shocks[t]
    y = x + truth["noise_sd"] * rng.normal(size=x.shape)
    return np.where(rng.uniform(size=y.shape) < missing, np.nan, y), x


def load() -> pd.DataFrame:
    """Three standardised series (202, 3), by quarter, from `dynamic_factor.load`."""
    return dynamic_factor.load()[list(SERIES)]


def with_gaps(frame: pd.DataFrame, share: float = 0.1, key: int = 0) -> pd.DataFrame:
    """The series with a share of their cells missing at random, and all of 1974."""
    gone = np.random.default_rng(key).uniform(size=frame.shape) < share
    quarter = frame.index.to_numpy()
    gone |= ((quarter >= 1974) & (quarter < 1975))[:, None]
    return frame.mask(gone)


# -- the main job ---------------------------------------------------------------------------------


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """EM with cells missing, how it predicts them, NUTS beside it, a forecast."""
    p = _report.parser("A vector autoregression in noise, with cells missing", num_starts=2)
    p.add_argument("--ahead", type=int, default=8, help="quarters to forecast")
    args = p.parse_args(argv)
    opt = _report.options(args)
    frame = load()
    model = ep.bind(linear_gaussian, with_gaps(frame))
    _report.heading("The plan")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    print(f"\nlargest eigenvalue of Phi: {spectral_radius(found):.3f}")
    print(f"share of hidden cells in their 95 % interval: {coverage(found, frame):.0%}")
    comparison = _report.beside(found, opt)
    ahead = found.forecast(args.ahead, opt.seed + 2, 2000)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, ahead, frame), opt.out / "linear_gaussian.png"),
            _report.save_draws(source.to_arviz(), opt.out / "linear_gaussian.nc"),
        ]
    )
    return found


def spectral_radius(found: ep.Fit) -> float:
    """Largest modulus of the eigenvalues of Phi; below one the states are stationary."""
    return float(np.abs(np.linalg.eigvals(found.params["Phi"])).max())


def coverage(found: ep.Fit, frame: pd.DataFrame) -> float:
    """Share of the cells that were taken out which lie in their 95 % intervals."""
    gone = np.isnan(found.model.notes.value.observed["y"])
    x = found.posterior["x"]
    sd = np.sqrt(x.variance + found.params["noise_sd"] ** 2)
    return float((np.abs(frame.to_numpy() - x.mean) < 1.96 * sd)[gone].mean())


def draw(found: ep.Fit, ahead: Any, frame: pd.DataFrame) -> Any:
    """Each series with its state and what was hidden, and beside it the forecast."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(frame.columns), 2, figsize=(11, 8), layout="constrained", width_ratios=[2.4, 1]
    )
    for j, row in enumerate(axes):
        _state(found, frame, j, row[0])
        _series.draw_ahead(row[1], ahead, frame, j)
    axes[0, 0].legend(frameon=False, ncols=3, fontsize=8, loc="upper right")
    return figure


def _state(found: ep.Fit, frame: pd.DataFrame, j: int, ax: Any) -> None:
    """One series, its hidden cells, and its state with a 95 % band."""
    from emprob.plot import COLORS

    x, time = found.posterior["x"], frame.index.to_numpy()
    values = frame.to_numpy()[:, j]
    gone = np.isnan(found.model.notes.value.observed["y"][:, j])
    low, high = (x.mean[:, j] + sign * 1.96 * x.sd[:, j] for sign in (-1, 1))
    ax.plot(time[~gone], values[~gone], ".", color="0.6", markersize=4, label="seen")
    ax.plot(time[gone], values[gone], "x", color="black", markersize=5, label="hidden")
    ax.plot(time, x.mean[:, j], color=COLORS[j], lw=1.2, label="state, smoothed")
    ax.fill_between(time, low, high, color=COLORS[j], alpha=0.2, lw=0)
    ax.set_title(frame.columns[j], loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
