"""Stochastic volatility: the log-variance of returns is a hidden autoregression.

    h_t = mu + phi (h_{t-1} - mu) + sigma e_t,   r_t = exp(h_t / 2) u_t,   e_t, u_t ~ Normal(0, 1)

from the stationary law of h. Given h the returns are normal, but h given the returns is not: the
path is integrated out by Laplace's approximation around its mode, which a block-tridiagonal Newton
iteration finds in a few steps. Two methods by simulation have no such approximation and a Monte
Carlo error instead: SAEM, which draws the path by NUTS, and a particle filter with backward
simulation. NUTS on the whole program samples it as written, with one coordinate for every day. All
are put side by side, with their times.

Two more programs: `leverage`, where a fall of the price goes with a rise of tomorrow's volatility,
and `heavy_tails`, where u_t has a Student-t law.

Data: daily returns of the S&P 500 in percent, less their mean (package arch).

Source: Taylor (1986), Modelling Financial Time Series; Jacquier, Polson and Rossi (1994), Journal
of Business and Economic Statistics 12(4); Shephard and Pitt (1997), Biometrika 84(3), and Skaug and
Yu (2014), Computational Statistics and Data Analysis 76, for Laplace's approximation; Omori, Chib,
Shephard and Nakajima (2007), Journal of Econometrics 140(2), for leverage; Chib, Nardari and
Shephard (2002), Journal of Econometrics 108(2), for heavy tails. Priors: Kim, Shephard and Chib
(1998), Review of Economic Studies 65(3): (phi + 1) / 2 ~ Beta(20, 1.5); Juarez and Steel (2010),
Journal of Business and Economic Statistics 28(1), for degrees of freedom.
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
    mu, phi, sigma = _parameters()

    def day(h, r):
        h = numpyro.sample("h", dist.Normal(mu + phi * (h - mu), sigma))
        numpyro.sample("r", dist.Normal(0.0, jnp.exp(h / 2)), obs=r)
        return h, None

    scan(day, _first("h0", mu, phi, sigma), returns)


def leverage(returns: Any) -> None:
    """The return of a day is correlated with the step to the log-variance of the next, by rho.

    `first` is the log-variance of the first day, and `h` at day t that of day t + 1, which is known
    when day t is over: so the return sees both, and a missing return is none.

    Args:
        returns: (T,), mean zero, in percent; NaN is a missing day.
    """
    mu, phi, sigma = _parameters()
    rho = numpyro.sample("rho", dist.Uniform(-1.0, 1.0))

    def day(h, r):
        middle = mu + phi * (h - mu)
        later = numpyro.sample("h", dist.Normal(middle, sigma))
        sd = jnp.exp(h / 2)
        shock = (later - middle) / sigma
        numpyro.sample("r", dist.Normal(rho * sd * shock, sd * jnp.sqrt(1 - rho**2)), obs=r)
        return later, None

    scan(day, _first("first", mu, phi, sigma), returns)


def heavy_tails(returns: Any) -> None:
    """Student-t returns given the logarithm h of their squared scale.

    Args:
        returns: (T,), mean zero, in percent; NaN is a missing day.
    """
    mu, phi, sigma = _parameters()
    df = numpyro.sample("df", dist.Gamma(2.0, 0.1))

    def day(h, r):
        h = numpyro.sample("h", dist.Normal(mu + phi * (h - mu), sigma))
        numpyro.sample("r", dist.StudentT(df, 0.0, jnp.exp(h / 2)), obs=r)
        return h, None

    scan(day, _first("h0", mu, phi, sigma), returns)


def _parameters() -> tuple:
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    stay = numpyro.sample("stay", dist.Beta(20.0, 1.5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    phi = numpyro.deterministic("phi", 2 * stay - 1)
    numpyro.deterministic("daily_sd", jnp.exp(mu / 2))
    return mu, phi, sigma


def _first(name: str, mu: Any, phi: Any, sigma: Any) -> Any:
    """A log-variance from its stationary law."""
    return numpyro.sample(name, dist.Normal(mu, sigma / jnp.sqrt(1 - phi**2)))


TRUTH = {"mu": np.array(-0.3), "stay": np.array(0.98), "sigma": np.array(0.25)}
LEVERAGE_TRUTH = {**TRUTH, "rho": np.array(-0.6)}
HEAVY_TRUTH = {**TRUTH, "df": np.array(6.0)}


def simulate(
    key: Any, length: int = 2000, missing: float = 0.0, truth: dict | None = None
) -> tuple:
    """Draw returns, some of their days missing at random.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        missing: share of the days that is missing.
        truth: parameters by site; `TRUTH` by default, `LEVERAGE_TRUTH` and `HEAVY_TRUTH` for the
            other programs.

    Returns:
        returns (T,) and the log-variances h (T,) of the same days.
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    phi, rho = 2 * truth["stay"] - 1, truth.get("rho", 0.0)
    steps = rng.normal(size=length + 1)
    h = np.empty(length)
    last = steps[0] * truth["sigma"] / np.sqrt(1 - phi**2)
    for t in range(length):
        h[t] = last
        last = phi * last + truth["sigma"] * steps[t + 1]
    h = h + truth["mu"]
    df = truth.get("df", np.inf)
    scale = np.ones(length) if np.isinf(df) else np.sqrt(df / rng.chisquare(df, length))
    u = scale * (rho * steps[1:] + np.sqrt(1 - rho**2) * rng.normal(size=length))
    r = np.exp(h / 2) * u
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


FEW = {  # a look, not a result
    "SAEM": ep.SAEM(ep.NUTS(num_chains=2), burn_in=5, averaging=5, window=16, final_draws=64),
    "Particle": ep.Particle(num_particles=32, num_filters=4, num_draws=32, max_draws=32,
                            final_draws=64),
}  # fmt: skip
MANY = {"SAEM": ep.SAEM(), "Particle": ep.Particle()}


def by_simulation(found: ep.Fit, opt: _report.Options, esteps: dict) -> dict[str, ep.Fit]:
    """The same program by other E-steps, from the fit by Laplace; all side by side.

    Args:
        found: the fit by Laplace.
        opt: sizes of the run.
        esteps: by name.

    Returns:
        All fits by name, Laplace first.
    """
    fits = {"Laplace": found}
    for name, estep in esteps.items():
        fits[name] = ep.fit(
            found.model, ep.EM(estep), key=opt.seed, init=found.params, progress=opt.progress
        )
        print(fits[name])
    _report.show(side_by_side(fits))
    return fits


def side_by_side(fits: dict[str, ep.Fit]) -> pd.DataFrame:
    """Estimates with their standard errors (se) and Monte Carlo errors (mc), a row each fit.

    The log-likelihood of a method by simulation is an estimate with a Monte Carlo error, that of
    Laplace an approximation, whose error `ep.importance` tells.
    """
    rows = {}
    for name, fit in fits.items():
        row = {}
        for site, line in fit.summary().iterrows():
            row |= {f"{site}": line["estimate"], f"{site} se": line["se"]}
            if fit.simulated is not None:
                row[f"{site} mc"] = line["mc_error"]
        row["log-likelihood"] = fit.log_likelihood
        row["ll mc"] = np.nan if fit.simulated is None else fit.simulated.error
        rows[name] = row | {"seconds": sum(fit.seconds.values())}
    return pd.DataFrame(rows)


def programs(found: ep.Fit, returns: pd.Series, opt: _report.Options) -> dict[str, ep.Fit]:
    """Leverage and heavy tails beside the plain program; AIC and BIC.

    Args:
        found: the fit of `stochastic_volatility`.
        returns: (T,), its data.
        opt: sizes of the run.
    """
    fits = {"plain": found}
    for program in (leverage, heavy_tails):
        _report.heading(program.__name__)
        fits[program.__name__] = _report.fit(ep.bind(program, returns), opt)
        _report.show(fits[program.__name__].summary())
    table = {
        k: {"log-likelihood": f.log_likelihood, "AIC": f.aic, "BIC": f.bic} for k, f in fits.items()
    }
    _report.heading("Three programs, log-likelihood by Laplace")
    _report.show(pd.DataFrame(table).T, digits=7)
    return fits


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Laplace on the path beside SAEM, particles and NUTS; leverage and heavy tails; a forecast."""
    # The draws of the program as written depend on each other for long: it takes many.
    p = _report.parser("Stochastic volatility of the S&P 500", num_starts=1, num_samples=4000)
    p.add_argument("--years", type=float, default=4.0, help="the last years of 1999-2018")
    p.add_argument("--ahead", type=int, default=20, help="days to forecast")
    args = p.parse_args(argv)
    opt = _report.options(args)
    returns = load(min(args.years, 0.5) if args.quick else args.years)
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
    _report.heading("The same program by simulation")
    by_simulation(found, opt, FEW if args.quick else MANY)
    programs(found, returns, opt)
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
