"""Local level: a level that wanders, seen through noise.

    x_t = x_{t-1} + level_sd * e_t,   y_t = x_t + noise_sd * u_t

with a diffuse start: x_0 ~ Normal(first, wide^2), `first` and `wide` from the data, the latter so
wide that it says nothing. A missing year is NaN; the level goes on through it. The ratio
`signal` = level_sd^2 / noise_sd^2 says how fast the past is forgotten.

Data: the flow of the Nile at Aswan, 1871-1970 (Cobb 1978, Biometrika 65(2)); and the same series
with the years 1891-1910 and 1931-1950 taken out.

Source: Durbin and Koopman (2012), Time Series Analysis by State Space Methods, sections 2.2-2.7:
variances 15099 and 1469.1 for all years; Harvey (1989), Forecasting, Structural Time Series Models
and the Kalman Filter. Priors: half-normal, in units of the spread of the data.
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

DIFFUSE = 1e3  # standard deviations of the data
GAPS = ((1891, 1910), (1931, 1950))


def local_level(y: Any) -> None:
    """A random walk in noise.

    Args:
        y: (T,); NaN is missing.
    """
    center, spread = jnp.nanmean(y), jnp.nanstd(y)
    level_sd = numpyro.sample("level_sd", dist.HalfNormal(spread))
    noise_sd = numpyro.sample("noise_sd", dist.HalfNormal(spread))
    numpyro.deterministic("signal", (level_sd / noise_sd) ** 2)

    def year(x, y):
        x = numpyro.sample("x", dist.Normal(x, level_sd))
        numpyro.sample("y", dist.Normal(x, noise_sd), obs=y)
        return x, None

    scan(year, numpyro.sample("x0", dist.Normal(center, DIFFUSE * spread)), y)


TRUTH = {"level_sd": np.array(0.5), "noise_sd": np.array(1.0)}


def simulate(key: Any, length: int = 400, missing: float = 0.0, truth: dict | None = None) -> tuple:
    """Draw a series that starts near 0, some of its values missing at random.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        missing: share of the values that is missing.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        y (T,) and the level x (T,).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    x = np.cumsum(truth["level_sd"] * rng.normal(size=length))
    y = x + truth["noise_sd"] * rng.normal(size=length)
    return np.where(rng.uniform(size=length) < missing, np.nan, y), x


def load() -> pd.Series:
    """Flow of the Nile in 10^8 cubic metres a year, 1871-1970 (100,).

    Needs the package `statsmodels` (pip install "emprob[gallery]").
    """
    try:
        from statsmodels.datasets import nile
    except ImportError as error:
        raise ImportError(
            'this data set is in the package statsmodels: pip install "emprob[gallery]"'
        ) from error
    frame = nile.load_pandas().data
    return pd.Series(frame["volume"].to_numpy(float), frame["year"].astype(int), name="flow")


def with_gaps(flow: pd.Series) -> pd.Series:
    """The series without the years 1891-1910 and 1931-1950: NaN there."""
    gone = np.zeros(len(flow), bool)
    for first, last in GAPS:
        gone |= (flow.index >= first) & (flow.index <= last)
    return flow.mask(gone)


def diffuse_log_likelihood(found: ep.Fit) -> float:
    """The log-likelihood of all but the first observation, given the first.

    It does not depend on how wide the start is; with exactly diffuse starts programs print this
    (KFAS), or this less log(2 pi) / 2 (statsmodels).
    """
    y = found.model.notes.value.observed["y"]
    seen = np.flatnonzero(np.isfinite(y))
    wide = (DIFFUSE * np.nanstd(y)) ** 2
    steps = (seen[0] + 1) * found.params["level_sd"] ** 2
    variance = wide + steps + found.params["noise_sd"] ** 2
    gap = y[seen[0]] - np.nanmean(y)
    first = -0.5 * (np.log(2 * np.pi * variance) + gap**2 / variance)
    return float(found.log_likelihood - first)


# -- the main job ---------------------------------------------------------------------------------


def likeliest(series: dict[str, pd.Series], opt: _report.Options) -> dict[str, ep.Fit]:
    """Maximum likelihood for each series, with a table of the variances."""
    fits = {
        name: ep.fit(ep.bind(local_level, y, prior=False), key=opt.seed, progress=opt.progress)
        for name, y in series.items()
    }
    rows = {
        name: {
            "level variance": found.params["level_sd"] ** 2,
            "noise variance": found.params["noise_sd"] ** 2,
            "log-likelihood, diffuse": diffuse_log_likelihood(found),
            "status": found.status.word,
        }
        for name, found in fits.items()
    }
    _report.show(pd.DataFrame(rows).T, 8)
    return fits


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Maximum likelihood with and without missing years; MAP beside NUTS; a forecast."""
    p = _report.parser("The level of the Nile", num_starts=2)
    p.add_argument("--ahead", type=int, default=10, help="years to forecast")
    args = p.parse_args(argv)
    opt = _report.options(args)
    flow = load()
    _report.heading("Maximum likelihood")
    fits = likeliest({"all years": flow, "years missing": with_gaps(flow)}, opt)
    model = ep.bind(local_level, flow)
    _report.heading("The plan, with the prior, as NUTS has it")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    comparison = _report.beside(found, opt)
    _report.heading(f"Forecast of the next {args.ahead} years")
    ahead = found.forecast(args.ahead, opt.seed + 2, 2000)
    _report.show(ahead.summary("y"), 5)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, fits, ahead), opt.out / "local_level.png"),
            _report.save_draws(source.to_arviz(), opt.out / "local_level.nc"),
        ]
    )
    return found


def draw(found: ep.Fit, fits: dict[str, ep.Fit], ahead: Any) -> Any:
    """The smoothed level with and without the missing years, and the forecast."""
    import matplotlib.pyplot as plt

    from emprob import plot

    figure, axes = plt.subplots(3, 1, figsize=(8, 9), layout="constrained")
    for ax, (name, each) in zip(axes, fits.items()):
        plot.plot_states(each, "x", ax=ax)
        ax.set_title(f"{name}: smoothed level and 95 % band", loc="left", fontsize=10)
    plot.plot_forecast(found, ahead, "y", ax=axes[2])
    for ax in axes:
        ax.set(ylabel="flow, 10^8 m^3")
    return figure


if __name__ == "__main__":
    main()
