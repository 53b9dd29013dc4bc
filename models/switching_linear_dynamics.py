"""Switching linear dynamics: a level that wanders, and a hidden regime that sets how much.

    s_t | s_{t-1} ~ A[s_{t-1}],   x_t ~ Normal(x_{t-1}, q(s_t)^2),   y_t ~ Normal(x_t, r(s_t)^2)

with q(s) = sd_0 ratio_0^s and r(s) = sd_1 ratio_1^s for the regimes s = 0 (calm) and 1. Given the
regimes the model is linear and Gaussian, given the level it is a hidden Markov chain; together the
exact law of the level is a mixture with a component for every path of the regimes, 2^T of them. So
the plan says 'only by simulation'. Paths of the level are drawn, by particle Gibbs or a particle
filter with backward simulation, and the regimes are summed out exactly at every one of them
(Rao-Blackwell): the E-step never draws a regime.

Data: quarterly inflation of US consumer prices, 1959-2009, in percent a year (package statsmodels).

Source: Kim (1993), Journal of Business and Economic Statistics 11(3), for regimes in the level's
and the noise's variance of inflation; Kim and Nelson (1999), State-Space Models with Regime
Switching; Chen and Liu (2000), JRSS B 62(3), for Rao-Blackwell; Lindsten, Jordan and Schon (2014),
JMLR 15, for particle Gibbs with ancestor sampling. Priors: weak, in units of the spread of y.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.contrib.control_flow import scan
from scipy import stats
from scipy.special import logsumexp

import emprob as ep
from emprob.models import _report
from emprob.models._draws import generator


def switching_level(y: Any) -> None:
    """A local level whose steps and noise depend on the regime.

    Args:
        y: (T,); NaN is missing.
    """
    center, spread = _units(y)
    with numpyro.plate("regime", 2):
        A = numpyro.sample("A", dist.Dirichlet(1.0 + 8.0 * jnp.eye(2)))
    sd = numpyro.sample("sd", dist.HalfNormal(spread).expand([2]).to_event(1))
    ratio = numpyro.sample("ratio", dist.LogNormal(jnp.log(3.0), 0.5).expand([2]).to_event(1))
    q, r = sd[..., 0], sd[..., 1]
    more_q, more_r = ratio[..., 0], ratio[..., 1]

    def quarter(carry, y):
        s, x = carry
        s = numpyro.sample("s", dist.Categorical(A[s]))
        x = numpyro.sample("x", dist.Normal(x, q * more_q**s))
        numpyro.sample("y", dist.Normal(x, r * more_r**s), obs=y)
        return (s, x), None

    s0 = numpyro.sample("s0", dist.Categorical(jnp.array([0.5, 0.5])))
    x0 = numpyro.sample("x0", dist.Normal(center, 2 * spread))
    scan(quarter, (s0, x0), y)


def _units(y: Any) -> tuple:
    return jnp.nanmean(y), jnp.nanstd(y)


TRUTH = {
    "A": np.array([[0.95, 0.05], [0.1, 0.9]]), "sd": np.array([0.2, 0.4]),
    "ratio": np.array([4.0, 3.0]),
}  # fmt: skip


def simulate(key: Any, length: int = 300, truth: dict | None = None) -> tuple:
    """Draw a series from the model; the level starts at 0.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        y (T,), the levels (T,) and the regimes (T,).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    s, regimes = int(rng.integers(2)), np.empty(length, int)
    for t in range(length):
        s = regimes[t] = rng.choice(2, p=truth["A"][s])
    q, r = (truth["sd"][:, None] * truth["ratio"][:, None] ** regimes)[:, :]
    level = np.cumsum(q * rng.normal(size=length))
    return level + r * rng.normal(size=length), level, regimes


def load() -> pd.Series:
    """Inflation in percent a year, 1959:2 to 2009:3, 202 quarters.

    Needs the package `statsmodels` (pip install "emprob[gallery]").
    """
    try:
        from statsmodels.datasets import macrodata
    except ImportError as error:
        raise ImportError(
            'this data set is in the package statsmodels: pip install "emprob[gallery]"'
        ) from error
    frame = macrodata.load_pandas().data
    quarters = pd.PeriodIndex.from_fields(
        year=frame["year"].astype(int), quarter=frame["quarter"].astype(int), freq="Q"
    )
    price = pd.Series(np.log(frame["cpi"].to_numpy()), quarters.to_timestamp())
    return 400 * price.diff().dropna().rename("inflation")


def log_likelihood_by_paths(y: Any, params: dict) -> float:
    """The log-likelihood of a short series: a Kalman filter for every path of the regimes.

    Args:
        y: (T,), none missing, T at most 16 or so: there are 2^T paths.
        params: A, sd, ratio.

    Returns:
        The exact value, without emprob.
    """
    y, A = np.asarray(y, float), np.asarray(params["A"], float)
    s = (np.arange(2 ** len(y))[:, None] >> np.arange(len(y))) & 1
    total = np.log(A.mean(0))[s[:, 0]] + np.log(A)[s[:, :-1], s[:, 1:]].sum(1)
    q, r = np.asarray(params["sd"])[:, None, None] * np.asarray(params["ratio"])[:, None, None] ** s
    mean, variance = np.full(len(s), y.mean()), np.full(len(s), 4 * y.var())
    for t in range(len(y)):
        variance = variance + q[:, t] ** 2
        seen = variance + r[:, t] ** 2
        total += stats.norm.logpdf(y[t], mean, np.sqrt(seen))
        gain = variance / seen
        mean, variance = mean + gain * (y[t] - mean), variance * (1 - gain)
    return float(logsumexp(total))


# -- the main job ---------------------------------------------------------------------------------

GIBBS = ep.ParticleGibbs(proposal=ep.Bootstrap(), num_particles=32)
SIMULATIONS = {
    "particle Gibbs": ep.MonteCarlo(GIBBS),
    "particle filter": ep.Particle(num_particles=256, proposal=ep.Bootstrap()),
}
QUICK = {
    "particle Gibbs": ep.MonteCarlo(
        replace(GIBBS, num_chains=8, num_particles=16), num_draws=16, max_draws=16, final_draws=256
    ),
    "particle filter": ep.Particle(
        num_particles=256, num_filters=8, num_draws=16, max_draws=16, final_draws=256,
        proposal=ep.Bootstrap(),
    ),
}  # fmt: skip


def agreement(fits: dict[str, ep.Fit]) -> pd.DataFrame:
    """Estimates and Monte Carlo errors of two fits, and their gap in these errors together."""
    one, two = (f.summary() for f in fits.values())
    columns = {}
    for name, rows in zip(fits, (one, two), strict=True):
        columns[name] = rows["estimate"]
        columns[f"its error, {name}"] = rows["mc_error"]
    together = np.hypot(one["mc_error"], two["mc_error"])
    columns["gap in errors"] = (two["estimate"] - one["estimate"]) / together
    return pd.DataFrame(columns | {"se": one["se"]})


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Inflation by two simulated E-steps, NUTS beside them, the level and its regimes."""
    p = _report.parser("Switching linear dynamics of inflation", num_starts=1)
    args = p.parse_args(argv)
    opt = _report.options(args)
    inflation = load()
    print(f"US inflation, {len(inflation)} quarters, {inflation.index[0]:%B %Y} to "
          f"{inflation.index[-1]:%B %Y}")  # fmt: skip
    model = ep.bind(switching_level, inflation.to_numpy())
    _report.heading("The plan")
    print(model)
    fits = {}
    for name, estep in (QUICK if args.quick else SIMULATIONS).items():
        _report.heading(f"By {name}")
        # Two regimes that start alike would stay alike.
        fits[name] = ep.fit(model, ep.EM(estep), key=opt.seed, init=TRUTH, progress=opt.progress)
        print(fits[name])
        print(fits[name].message)
    found, filtered = fits.values()
    _report.heading("Both, with their Monte Carlo errors")
    _report.show(agreement(fits))
    told = filtered.simulated
    print(f"\nlog-likelihood {told.log_likelihood:.3f} +- {told.error:.3f} ({told.how})")
    bayes = beside(found, opt)
    source = found if bayes is None else bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, inflation), opt.out / "switching_linear_dynamics.png"),
            _report.save_draws(source.to_arviz(), opt.out / "switching_linear_dynamics.nc"),
        ]
    )
    return found


def beside(found: ep.Fit, opt: _report.Options) -> Any:
    """NUTS on the level and the parameters, the regimes summed out; None if not wanted."""
    if opt.num_samples == 0:
        return None
    _report.heading("NUTS: every quarter's level is a coordinate, the regimes are summed out")
    bayes = ep.nuts(
        found.model, key=opt.seed + 1, init=found, num_warmup=opt.num_warmup,
        num_samples=opt.num_samples, num_chains=opt.num_chains, progress=opt.progress,
        dense_mass=False,
    )  # fmt: skip
    print(bayes)
    _report.heading("EM beside NUTS")
    shared = {k: v for k, v in bayes.samples.items() if k not in ("x0", "x")}
    comparison = ep.compare(found, replace(bayes, model=found.model, samples=shared))
    _report.show(comparison.table)
    print(f"\n{comparison.verdict}")
    return bayes


def draw(found: ep.Fit, y: pd.Series) -> Any:
    """The series with its level, and the probability of the turbulent regime."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    level, turbulent = found.posterior["x"], found.posterior["s"].probs[:, 1]
    mean, sd = np.ravel(level.mean), np.sqrt(np.ravel(level.variance))
    figure, axes = plt.subplots(
        2, 1, figsize=(9, 6), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    axes[0].plot(y.index, y, ".", color="0.5", markersize=4, label="inflation, % a year")
    axes[0].plot(y.index, mean, color=COLORS[0], label="level, 95 % band")
    axes[0].fill_between(
        y.index, mean - 1.96 * sd, mean + 1.96 * sd, color=COLORS[0], alpha=0.2, lw=0
    )
    axes[0].legend(frameon=False)
    axes[1].fill_between(y.index, turbulent, color=COLORS[1], alpha=0.6, lw=0)
    axes[1].set(ylim=(0, 1), ylabel="turbulent")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
