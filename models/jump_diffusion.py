"""Jump-diffusion: a Brownian day, and a random number of normal jumps on top of it.

    n_t ~ Poisson(rate),   r_t | n_t ~ Normal(mu + n_t m, sigma^2 + n_t d^2)

for the log return of a day. The number of jumps is latent; up to `max_jumps` are summed out
exactly, so the fit is EM on a mixture whose weights, means and variances are tied. The same law
with the size of the jumps left in,

    x_t ~ Normal(0, 1),   r_t | n_t, x_t ~ Normal(mu + n_t m + sqrt(n_t) d x_t, sigma^2),

has a continuous latent for every day. That integral is still known in closed form, which makes it a
test of the methods for integrals that are not: SAEM draws x, sums out n at each draw, and has to
arrive at the same maximum, within the Monte Carlo error that it states.

The likelihood is unbounded as sigma goes to 0 with mu at one of the returns; what is found here is
the largest interior maximum.

Data: daily returns of the S&P 500 in percent (package arch).

Source: Merton (1976), Journal of Financial Economics 3(1-2); Press (1967), Journal of Business
40(3), and Ball and Torous (1983), Journal of Financial and Quantitative Analysis 18(1), for the
likelihood; Kuhn and Lavielle (2005), Computational Statistics and Data Analysis 49(4), for SAEM.
Priors: weak, in units of percent a day.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from jax.scipy.special import gammaln
from scipy import optimize, stats
from scipy.special import logsumexp

import emprob as ep
from emprob.models import _report, regimes
from emprob.models._draws import generator

MAX_JUMPS = 10  # a Poisson law with mean 1 has 1e-8 of its mass above


def jump_counts(returns: Any, max_jumps: int = MAX_JUMPS) -> None:
    """Returns given the number of jumps.

    Args:
        returns: (T,), in percent; NaN is a missing day.
        max_jumps: of a day.
    """
    mu, sigma, rate, m, d = _parameters()
    with numpyro.plate("day", len(returns)):
        n = numpyro.sample("n", _counts(rate, max_jumps))
        law = dist.Normal(mu + n * m, jnp.sqrt(sigma**2 + n * d**2))
        numpyro.sample("r", law, obs=returns)


def jump_sizes(returns: Any, max_jumps: int = MAX_JUMPS) -> None:
    """Returns given the number of jumps and their standardised sum x.

    Args:
        returns: (T,), in percent; NaN is a missing day.
        max_jumps: of a day.
    """
    mu, sigma, rate, m, d = _parameters()
    with numpyro.plate("day", len(returns)):
        n = numpyro.sample("n", _counts(rate, max_jumps))
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("r", dist.Normal(mu + n * m + jnp.sqrt(n) * d * x, sigma), obs=returns)


def _parameters() -> tuple:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    rate = numpyro.sample("rate", dist.Gamma(1.0, 1.0))
    m = numpyro.sample("m", dist.Normal(0.0, 2.0))
    d = numpyro.sample("d", dist.HalfNormal(3.0))
    numpyro.deterministic("volatility", jnp.sqrt(sigma**2 + rate * (m**2 + d**2)))
    return mu, sigma, rate, m, d


def _counts(rate: Any, max_jumps: int) -> dist.Distribution:
    """A Poisson law, cut off where it has no mass left."""
    n = jnp.arange(max_jumps + 1.0)
    return dist.Categorical(logits=n * jnp.log(rate)[..., None] - gammaln(n + 1))


TRUTH = {
    "mu": np.array(0.05), "sigma": np.array(0.6), "rate": np.array(0.3), "m": np.array(-0.2),
    "d": np.array(1.5),
}  # fmt: skip


def simulate(key: Any, length: int = 2000, truth: dict | None = None) -> tuple:
    """Draw returns from the model.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        returns (T,) and the numbers of jumps (T,).
    """
    p = TRUTH if truth is None else truth
    rng = generator(key)
    n = rng.poisson(p["rate"], length)
    jumps = n * p["m"] + np.sqrt(n) * p["d"] * rng.normal(size=length)
    return p["mu"] + p["sigma"] * rng.normal(size=length) + jumps, n


def load(years: float = 20.0) -> pd.Series:
    """Daily log returns of the S&P 500 in percent, the last `years` of 1999-2018.

    Needs the package `arch` (pip install "emprob[gallery]").
    """
    return regimes.load(years)


# -- the likelihood, another way ------------------------------------------------------------------


def log_likelihood(returns: Any, params: Any, max_jumps: int = 30) -> float:
    """The log-likelihood of Poisson many jumps, without emprob.

    Args:
        returns: (T,), none missing.
        params: mu, sigma, rate, m, d, in this order, or by site.
        max_jumps: where the sum stops.
    """
    if isinstance(params, dict):
        params = [params[k] for k in ("mu", "sigma", "rate", "m", "d")]
    mu, sigma, rate, m, d = map(float, params)
    n = np.arange(max_jumps + 1.0)[:, None]
    law = stats.norm.logpdf(np.asarray(returns), mu + n * m, np.sqrt(sigma**2 + n * d**2))
    return float(logsumexp(law + stats.poisson.logpmf(n, rate), axis=0).sum())


def maximum(returns: Any, start: dict) -> tuple[dict[str, float], float]:
    """The maximum of `log_likelihood` by quasi-Newton steps with numerical derivatives.

    Args:
        returns: (T,), none missing.
        start: parameters by site.
    """
    w0 = [start["mu"], np.log(start["sigma"]), np.log(start["rate"]), start["m"],
          np.log(start["d"])]  # fmt: skip

    def params(w: np.ndarray) -> list:
        return [w[0], np.exp(w[1]), np.exp(w[2]), w[3], np.exp(w[4])]

    found = optimize.minimize(
        lambda w: -log_likelihood(returns, params(w)), w0, method="BFGS", options={"gtol": 1e-5}
    )
    return dict(zip(("mu", "sigma", "rate", "m", "d"), params(found.x))), -float(found.fun)


# -- the main job ---------------------------------------------------------------------------------


def agreement(exact: ep.Fit, drawn: ep.Fit) -> pd.DataFrame:
    """The exact maximum beside that of SAEM, the gap in stated Monte Carlo and in standard errors.

    Given the counts the sizes are Gaussian, and `fit` finds that: where its end is told by the
    simulated likelihood, the Monte Carlo error is none, and a gap in it has no meaning.

    Args:
        exact: the fit of `jump_counts`.
        drawn: that of `jump_sizes` by SAEM.
    """
    one, two = exact.summary(), drawn.summary()
    table = pd.DataFrame(
        {"exact": one["estimate"], "SAEM": two["estimate"], "Monte Carlo error": two["mc_error"]}
    )
    table["gap in errors"] = (table["SAEM"] - table["exact"]) / table["Monte Carlo error"]
    table["gap / se"] = (table["SAEM"] - table["exact"]) / one["se"]
    return table.assign(se=one["se"], **{"se by SAEM": two["se"]})


def by_simulation(exact: ep.Fit, returns: pd.Series, opt: _report.Options, estep: Any) -> ep.Fit:
    """SAEM on the program that has the sizes of the jumps as latents, from far off.

    Args:
        exact: the fit of `jump_counts`.
        returns: (T,), in percent.
        opt: sizes of the run.
        estep: an `ep.SAEM`.
    """
    _report.heading("The sizes of the jumps as latents, drawn by SAEM")
    model = ep.bind(jump_sizes, returns)
    found = ep.fit(model, ep.EM(estep), key=opt.seed, init=TRUTH, progress=opt.progress)
    print(found)
    _report.show(agreement(exact, found))
    return found


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Jumps summed out beside NUTS; the same law by SAEM; which days jumped."""
    p = _report.parser("Jump-diffusion of the S&P 500", num_starts=1)
    p.add_argument("--years", type=float, default=4.0, help="the last years of 1999-2018")
    args = p.parse_args(argv)
    opt = _report.options(args)
    returns = load(args.years)
    print(f"S&P 500, {len(returns)} daily log returns in percent, {returns.index[0]:%d %B %Y} to "
          f"{returns.index[-1]:%d %B %Y}")  # fmt: skip
    model = ep.bind(jump_counts, returns)
    _report.heading("The plan")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    again = log_likelihood(returns, found.params)
    normal = stats.norm.logpdf(returns, *stats.norm.fit(returns)).sum()
    print(f"\nlog-likelihood {found.log_likelihood:.6f}; summed by scipy {again:.6f}; "
          f"of a normal law {normal:.2f}")  # fmt: skip
    short = ep.NUTS(num_chains=4, num_warmup=20, max_tree_depth=4)
    few = ep.SAEM(kernel=short, burn_in=5, averaging=5, window=32, final_draws=64)
    by_simulation(found, returns, opt, few if args.quick else ep.SAEM())
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, returns), opt.out / "jump_diffusion.png"),
            _report.save_draws(source.to_arviz(), opt.out / "jump_diffusion.nc"),
        ]
    )
    return found


def density(params: Any, r: np.ndarray) -> np.ndarray:
    """The density of a day's return at r, of the same shape."""
    return np.exp([log_likelihood(np.array([x]), params) for x in r.ravel()]).reshape(r.shape)


def draw(found: ep.Fit, returns: pd.Series) -> Any:
    """The returns by the expected number of jumps, and their law on a logarithmic scale."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    probs = found.posterior["n"].probs
    jumps = probs @ np.arange(probs.shape[-1])
    figure, axes = plt.subplots(2, 1, figsize=(9, 7), layout="constrained")
    points = axes[0].scatter(returns.index, returns, c=jumps, s=6, cmap="viridis")
    figure.colorbar(points, ax=axes[0], label="expected jumps of the day")
    axes[0].set(ylabel="return, %")
    grid = np.linspace(returns.min() - 0.5, returns.max() + 0.5, 241)
    axes[1].hist(returns, bins=80, density=True, color="0.8")
    axes[1].plot(grid, density(found.params, grid), color=COLORS[0], label="jump-diffusion")
    normal = stats.norm.pdf(grid, *stats.norm.fit(returns))
    axes[1].plot(grid, normal, color=COLORS[1], label="normal")
    axes[1].set(yscale="log", ylim=(1e-4, 2), xlabel="return, %", ylabel="density")
    axes[1].legend(frameon=False)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
