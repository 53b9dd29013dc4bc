"""Stochastic volatility: the log-variance of returns is a hidden autoregression.

    h_t = mu + phi (h_{t-1} - mu) + sigma e_t,   r_t = exp(h_t / 2) u_t,   e_t, u_t ~ Normal(0, 1)

from the stationary law of h. Given h the returns are normal, but h given the returns is not: the
path is integrated out by Laplace's approximation around its mode, which a block-tridiagonal Newton
iteration finds in a few steps. NUTS has no such trick: it samples the program as written, with one
coordinate for every day. The two are put side by side, with their times.

Data: daily returns of the S&P 500 in percent, less their mean (package arch).

Source: Taylor (1986), Modelling Financial Time Series; Jacquier, Polson and Rossi (1994), Journal
of Business and Economic Statistics 12(4); Shephard and Pitt (1997), Biometrika 84(3), and Skaug and
Yu (2014), Computational Statistics and Data Analysis 76, for Laplace's approximation. Priors: Kim,
Shephard and Chib (1998), Review of Economic Studies 65(3): (phi + 1) / 2 ~ Beta(20, 1.5).
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

import emprob as ep
from emprob.models import _report, regimes
from emprob.models._draws import generator


def stochastic_volatility(returns: Any) -> None:
    """Normal returns given their log-variance.

    Args:
        returns: (T,), mean zero, in percent; NaN is a missing day.
    """
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    stay = numpyro.sample("stay", dist.Beta(20.0, 1.5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    phi = numpyro.deterministic("phi", 2 * stay - 1)
    numpyro.deterministic("daily_sd", jnp.exp(mu / 2))

    def day(h, r):
        h = numpyro.sample("h", dist.Normal(mu + phi * (h - mu), sigma))
        numpyro.sample("r", dist.Normal(0.0, jnp.exp(h / 2)), obs=r)
        return h, None

    scan(day, numpyro.sample("h0", dist.Normal(mu, sigma / jnp.sqrt(1 - phi**2))), returns)


TRUTH = {"mu": np.array(-0.3), "stay": np.array(0.98), "sigma": np.array(0.25)}


def simulate(
    key: Any, length: int = 2000, missing: float = 0.0, truth: dict | None = None
) -> tuple:
    """Draw returns, some of their days missing at random.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        missing: share of the days that is missing.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        returns (T,) and the log-variances h (T,).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    phi = 2 * truth["stay"] - 1
    h = np.empty(length)
    last = rng.normal() * truth["sigma"] / np.sqrt(1 - phi**2)
    for t in range(length):
        last = h[t] = phi * last + truth["sigma"] * rng.normal()
    h = h + truth["mu"]
    r = np.exp(h / 2) * rng.normal(size=length)
    return np.where(rng.uniform(size=length) < missing, np.nan, r), h


def load(years: float = 4.0) -> pd.Series:
    """Daily log returns of the S&P 500 in percent less their mean, the last `years` of 1999-2018.

    Needs the package `arch` (pip install "emprob[gallery]").
    """
    returns = regimes.load(years)
    return returns - returns.mean()


def log_likelihood_by_grid(returns: Any, mu: float, phi: float, sigma: float, num: int = 401):
    """The exact log-likelihood, to the accuracy of a grid on the log-variance.

    Laplace's approximation is near it; how near, the main job prints.

    Args:
        returns: (T,), none missing.
        mu, phi, sigma: the parameters.
        num: points of the grid, over six standard deviations either side.

    Source: Kitagawa (1987), Journal of the American Statistical Association 82(400).
    """
    sd = sigma / np.sqrt(1 - phi**2)
    h, step = np.linspace(mu - 6 * sd, mu + 6 * sd, num, retstep=True)
    gaps = h - (mu + phi * (h[:, None] - mu))
    transition = np.exp(-0.5 * (gaps / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi)) * step
    law = np.exp(-0.5 * ((h - mu) / sd) ** 2) / (sd * np.sqrt(2 * np.pi)) * step
    total = 0.0
    for r in np.asarray(returns):
        law = (law @ transition) * np.exp(-0.5 * (h + r**2 * np.exp(-h))) / np.sqrt(2 * np.pi)
        total += np.log(law.sum())
        law /= law.sum()
    return float(total)


# -- the main job ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Laplace on the path beside NUTS on the program as written; the volatility and a forecast."""
    # The draws of the program as written depend on each other for long: it takes many.
    p = _report.parser("Stochastic volatility of the S&P 500", num_starts=1, num_samples=4000)
    p.add_argument("--years", type=float, default=4.0, help="the last years of 1999-2018")
    p.add_argument("--ahead", type=int, default=20, help="days to forecast")
    args = p.parse_args(argv)
    opt = _report.options(args)
    returns = load(args.years)
    print(f"S&P 500, {len(returns)} daily log returns in percent, {returns.index[0]:%d %B %Y} to "
          f"{returns.index[-1]:%d %B %Y}")  # fmt: skip
    model = ep.bind(stochastic_volatility, returns)
    _report.heading("The plan")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    mu, stay, sigma = (float(found.params[k]) for k in ("mu", "stay", "sigma"))
    exact = log_likelihood_by_grid(returns, mu, 2 * stay - 1, sigma)
    print(f"\nlog-likelihood by Laplace {found.log_likelihood:.3f}, exact by a grid {exact:.3f}")
    bayes = beside(found, opt)
    ahead = found.forecast(args.ahead, opt.seed + 2, 4000)
    source = found if bayes is None else bayes
    _report.say_where(
        [
            _report.save_figure(
                draw(found, bayes, ahead, returns), opt.out / "stochastic_volatility.png"
            ),
            _report.save_draws(source.to_arviz(), opt.out / "stochastic_volatility.nc"),
        ]
    )
    return found


def beside(found: ep.Fit, opt: _report.Options) -> Any:
    """NUTS on the program as written, from the fit; its draws of all sites; None if not wanted."""
    if opt.num_samples == 0:
        return None
    _report.heading("NUTS on the program as written: every day's log-variance is a coordinate")
    path = {site: found.posterior[site].mean for site in ("h0", "h")}
    # With a coordinate a day, a full mass matrix costs more than it brings.
    bayes = ep.nuts(
        found.model, key=opt.seed + 1, init={**found.params, **path}, num_warmup=opt.num_warmup,
        num_samples=opt.num_samples, num_chains=opt.num_chains, progress=opt.progress,
        dense_mass=False,
    )  # fmt: skip
    print(bayes)
    _report.heading("EM beside NUTS")
    shared = {k: v for k, v in bayes.samples.items() if k not in path}
    comparison = ep.compare(found, replace(bayes, model=found.model, samples=shared))
    _report.show(comparison.table)
    print(f"\n{comparison.verdict}")
    return bayes


def draw(found: ep.Fit, bayes: Any, ahead: Any, returns: pd.Series) -> Any:
    """The returns, the log-variance by both methods, and the forecast of returns."""
    import matplotlib.pyplot as plt

    from emprob import plot
    from emprob.plot import COLORS

    figure, axes = plt.subplots(3, 1, figsize=(9, 9), layout="constrained")
    dates, h = returns.index.to_numpy(), found.posterior["h"]
    for sign in (-1, 1):
        label = "2 exp(h / 2), h at its mean" if sign == 1 else None
        axes[0].plot(dates, sign * 2 * np.exp(h.mean / 2), color=COLORS[0], lw=1, label=label)
    axes[0].plot(dates, returns, ".", color="0.6", markersize=3, label="return, %", zorder=1)
    _path(axes[1], dates, h.mean, h.sd, COLORS[0], "Laplace, at the estimate")
    if bayes is not None:
        draws = bayes.samples["h"].reshape(-1, len(dates))
        _path(axes[1], dates, draws.mean(0), draws.std(0), COLORS[1], "NUTS")
    axes[1].set_title("Log-variance h, 95 % band", loc="left", fontsize=10)
    plot.plot_forecast(found, ahead, "r", ax=axes[2])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[:2]:
        ax.legend(frameon=False, ncols=2)
    return figure


def _path(ax: Any, x: Any, mean: Any, sd: Any, color: str, label: str) -> None:
    ax.plot(x, mean, color=color, lw=1.2, label=label)
    ax.fill_between(x, mean - 1.96 * sd, mean + 1.96 * sd, color=color, alpha=0.2, lw=0)


if __name__ == "__main__":
    main()
