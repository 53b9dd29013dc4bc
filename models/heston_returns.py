"""Heston's model seen through daily returns: the variance is a hidden square-root diffusion.

    dS / S = m dt + sqrt(v) dB,   dv = kappa (theta - v) dt + xi sqrt(v) dW,   dB dW = rho dt

A day is one step. Given the variances v and w at its two ends, the log return is normal,

    r = m - V / 2 + (rho / xi) (w - v - kappa (theta - V)) + sqrt((1 - rho^2) V) u,

with V the variance integrated over the day, here by the trapezoid (v + w) / 2. The law of w given
v is a noncentral chi-squared; here it is that of the square of a normal variable with the same mean
and variance. The latent x is that variable, the volatility: w = x^2. Its steps have nearly the same
spread everywhere, which matters to Laplace's approximation. With the log-variance as latent, whose
steps are small where the variance is large, the mode of the path is far from all its probability.

No E-step is exact. Laplace's approximation and a particle filter with backward simulation are put
side by side, and beside a grid, which one hidden number a day still allows. `simulate` draws from
the diffusion itself, in many small steps.

Units: returns in percent a day, v in percent squared a day. `kappa_year`, `xi_year` and
`volatility` are those of option pricing: per year, with v as a decimal.

Data: daily returns of the S&P 500 in percent (package arch).

Source: Heston (1993), Review of Financial Studies 6(2); Cox, Ingersoll and Ross (1985),
Econometrica 53(2), for the moments of v; Andersen (2008), Journal of Computational Finance 11(3),
for both steps of the discretisation, the first after Broadie and Kaya (2006), Operations Research
54(2); Eraker, Johannes and Polson (2003), Journal of Finance 58(3), for estimates from daily
returns. Priors: weak.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.contrib.control_flow import scan
from scipy import stats

import emprob as ep
from emprob.models import _report, regimes
from emprob.models._draws import generator

DAYS = 252.0


def heston(returns: Any) -> None:
    """Returns given the volatility at both ends of each day.

    `first` is the volatility before the first day, and `x` at day t that at its end.

    Args:
        returns: (T,), in percent; NaN is a missing day.
    """
    drift, theta, kappa, xi, rho = _parameters()

    def day(x, r):
        v = x**2
        mean = theta + (v - theta) * jnp.exp(-kappa)
        later = numpyro.sample("x", _root_law(mean, _variance_of_variance(v, theta, kappa, xi)))
        w = later**2
        integral = 0.5 * (v + w)
        shock = (w - v - kappa * (theta - integral)) / xi
        middle = drift - integral / 200 + rho * shock
        numpyro.sample("r", dist.Normal(middle, jnp.sqrt((1 - rho**2) * integral)), obs=r)
        return later, None

    # the stationary mean and variance of v
    scan(day, numpyro.sample("first", _root_law(theta, theta * xi**2 / (2 * kappa))), returns)


def _parameters() -> tuple:
    drift = numpyro.sample("drift", dist.Normal(0.0, 0.5))
    theta = numpyro.sample("theta", dist.LogNormal(0.0, 1.0))
    kappa = numpyro.sample("kappa", dist.LogNormal(-3.5, 1.0))
    xi = numpyro.sample("xi", dist.HalfNormal(0.5))
    rho = numpyro.sample("rho", dist.Uniform(-1.0, 1.0))
    numpyro.deterministic("volatility", jnp.sqrt(DAYS * theta) / 100)
    numpyro.deterministic("kappa_year", DAYS * kappa)
    numpyro.deterministic("xi_year", DAYS * xi / 100)
    return drift, theta, kappa, xi, rho


def _variance_of_variance(v: Any, theta: Any, kappa: Any, xi: Any) -> Any:
    """That of v a day later, by the square-root diffusion."""
    decay = jnp.exp(-kappa)
    return xi**2 / kappa * (1 - decay) * (v * decay + 0.5 * theta * (1 - decay))


def _root_law(mean: Any, variance: Any) -> dist.Normal:
    """The normal law of a variable whose square has these moments.

    There is one if the variance is at most twice the squared mean, as it is for every v where
    4 kappa theta > xi^2; above, the mean alone is kept.
    """
    square = jnp.sqrt(jnp.maximum(mean**2 - 0.5 * variance, 1e-4 * mean**2))
    return dist.Normal(jnp.sqrt(square), jnp.sqrt(mean - square))


TRUTH = {
    "drift": np.array(0.04), "theta": np.array(1.0), "kappa": np.array(0.03),
    "xi": np.array(0.2), "rho": np.array(-0.6),
}  # fmt: skip


def simulate(key: Any, length: int = 2000, truth: dict | None = None, per_day: int = 50) -> tuple:
    """Draw returns from the diffusion, not from its discretisation.

    Euler's steps, many a day, with the variance cut off at zero in drift and diffusion.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        truth: parameters by site; `TRUTH` by default.
        per_day: steps a day.

    Returns:
        returns (T,) in percent, and the variances at the end of each day (T,).

    Source: Lord, Koekkoek and van Dijk (2010), Quantitative Finance 10(2), "full truncation".
    """
    p = TRUTH if truth is None else truth
    rng = generator(key)
    theta, kappa, xi, rho = (float(p[k]) for k in ("theta", "kappa", "xi", "rho"))
    dt = 1.0 / per_day
    v = rng.gamma(2 * kappa * theta / xi**2, xi**2 / (2 * kappa))
    r, ends = np.empty(length), np.empty(length)
    for t in range(length):
        dw, db = np.sqrt(dt) * rng.normal(size=(2, per_day))
        moved = 0.0
        for one, other in zip(dw, db, strict=True):
            now = max(v, 0.0)
            noise = rho * one + np.sqrt(1 - rho**2) * other
            moved += (p["drift"] - now / 200) * dt + np.sqrt(now) * noise
            v += kappa * (theta - now) * dt + xi * np.sqrt(now) * one
        r[t], ends[t] = moved, max(v, 0.0)
    return r, ends


def start(returns: Any) -> dict[str, np.ndarray]:
    """Where a fit should begin: half-lives of weeks, and the variance of the data.

    A constant variance is a flat top of its own, with no rho; start away from it.

    Args:
        returns: (T,), in percent.
    """
    sd = float(np.nanstd(returns))
    found = {"drift": float(np.nanmean(returns)), "theta": sd**2, "kappa": 0.03, "xi": 0.15 * sd,
             "rho": -0.3}  # fmt: skip
    return {k: np.array(v) for k, v in found.items()}


def load(years: float = 4.0) -> pd.Series:
    """Daily log returns of the S&P 500 in percent, the last `years` of 1999-2018.

    Needs the package `arch` (pip install "emprob[gallery]").
    """
    return regimes.load(years).rename("S&P 500")


def drawn(key: Any = 6, length: int = 252) -> pd.Series:
    """Returns of a year drawn from the diffusion, for a quick look.

    A few months of real returns do not tell rho from -1, where the density has no bound.

    Args:
        key: of `simulate`.
        length: T.
    """
    days = pd.bdate_range("2001-01-01", periods=length)
    return pd.Series(simulate(key, length)[0], days, name="A draw of Heston's model at TRUTH")


def log_likelihood_by_grid(returns: Any, params: Any, num: int = 301) -> float:
    """The exact log-likelihood of the program, to the accuracy of a grid on the volatility.

    The density of a return has no bound where both volatilities are near zero, which a point of the
    grid may meet: compare two numbers of points.

    Args:
        returns: (T,), none missing.
        params: by site.
        num: points of the grid, over eight standard deviations either side of the start's law.

    Source: Kitagawa (1987), Journal of the American Statistical Association 82(400).
    """
    m, theta, kappa, xi, rho = (float(params[k]) for k in TRUTH)
    start = _root_law(theta, theta * xi**2 / (2 * kappa))
    loc, sd = float(start.loc), float(start.scale)
    x, step = np.linspace(loc - 8 * sd, loc + 8 * sd, num, retstep=True)
    v, w = x[:, None] ** 2, x**2
    mean = theta + (v - theta) * np.exp(-kappa)
    law = _root_law(mean, _variance_of_variance(v, theta, kappa, xi))
    transition = stats.norm.pdf(x, np.asarray(law.loc), np.asarray(law.scale)) * step
    integral = 0.5 * (v + w)
    middle = m - integral / 200 + rho / xi * (w - v - kappa * (theta - integral))
    spread = np.sqrt((1 - rho**2) * integral)
    here = stats.norm.pdf(x, loc, sd) * step
    total = 0.0
    for r in np.asarray(returns):
        here = here @ (transition * np.exp(-0.5 * ((r - middle) / spread) ** 2) / spread)
        total += np.log(here.sum()) - 0.5 * np.log(2 * np.pi)
        here /= here.sum()
    return float(total)


# -- the main job ---------------------------------------------------------------------------------


def side_by_side(laplace: ep.Fit, particle: ep.Fit) -> pd.DataFrame:
    """Both estimates with their standard errors, and the gap in standard and Monte Carlo errors."""
    one, two = laplace.summary(), particle.summary()
    gap = two["estimate"] - one["estimate"]
    return pd.DataFrame(
        {
            "Laplace": one["estimate"], "se": one["se"], "Particle": two["estimate"],
            "se by particles": two["se"], "Monte Carlo error": two["mc_error"],
            "gap / se": gap / one["se"], "gap / mc": gap / two["mc_error"],
        }
    )  # fmt: skip


def by_particles(
    laplace: ep.Fit, returns: pd.Series, opt: _report.Options, estep: ep.Particle
) -> ep.Fit:
    """The particle filter from the fit by Laplace, and both beside each other."""
    _report.heading("The same program by particles")
    found = ep.fit(
        laplace.model, ep.EM(estep), key=opt.seed, init=laplace.params, progress=opt.progress
    )
    print(found)
    print(found.message)
    _report.show(side_by_side(laplace, found))
    exact = [log_likelihood_by_grid(returns, fit.params) for fit in (laplace, found)]
    print(
        f"\nlog-likelihood by Laplace {laplace.log_likelihood:.3f}, exact by a grid "
        f"{exact[0]:.3f}; by {found.simulated.how} {found.log_likelihood:.3f} (Monte Carlo error "
        f"{found.simulated.error:.2g}), exact by a grid {exact[1]:.3f}"
    )
    return found


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Laplace beside particles, then NUTS with the path integrated out; the volatility."""
    p = _report.parser("Heston's model of the S&P 500", num_starts=1, num_samples=2000)
    p.add_argument("--years", type=float, default=4.0, help="the last years of 1999-2018")
    args = p.parse_args(argv)
    opt = _report.options(args)
    returns = drawn() if args.quick else load(args.years)
    print(f"{returns.name}, {len(returns)} daily log returns in percent, "
          f"{returns.index[0]:%d %B %Y} to {returns.index[-1]:%d %B %Y}")  # fmt: skip
    model = ep.bind(heston, returns)
    _report.heading("The plan")
    print(model)
    found = ep.fit(model, key=opt.seed, init=start(returns), progress=opt.progress)
    print(found)
    print(found.message)
    _report.show(found.summary())
    if args.quick:
        print("\ndrawn with " + ", ".join(f"{k} {float(v):g}" for k, v in TRUTH.items()))
    few = ep.Particle(num_particles=32, num_filters=4, num_draws=32, max_draws=32, final_draws=64)
    particle = by_particles(found, returns, opt, few if args.quick else ep.Particle())
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, particle, returns), opt.out / "heston_returns.png"),
            _report.save_draws(source.to_arviz(), opt.out / "heston_returns.nc"),
        ]
    )
    return found


def draw(laplace: ep.Fit, particle: ep.Fit, returns: pd.Series) -> Any:
    """The returns, and the yearly volatility by both methods."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    figure, axes = plt.subplots(2, 1, figsize=(9, 6.5), sharex=True, layout="constrained")
    dates = returns.index.to_numpy()
    axes[0].plot(dates, returns, color="0.4", lw=0.7)
    axes[0].set(ylabel="return, %")
    for i, (name, fit) in enumerate({"Laplace": laplace, "particles": particle}.items()):
        x = fit.posterior["x"]
        low, middle, high = (np.sqrt(DAYS) * (x.mean + z * x.sd) for z in (-1.96, 0.0, 1.96))
        axes[1].plot(dates, middle, color=COLORS[i], lw=1.2, ls=("-", "--")[i], label=name)
        axes[1].fill_between(dates, low, high, color=COLORS[i], alpha=0.15, lw=0)
    axes[1].set(ylabel="volatility, % a year")
    axes[1].legend(frameon=False, ncols=2)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
