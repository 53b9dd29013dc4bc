"""Market regimes: a hidden Markov chain under daily returns.

    z_1 ~ initial,   z_t | z_{t-1} ~ A[z_{t-1}],   y_t | z_t ~ Normal(mu[z_t], sigma[z_t]^2)

or a Student-t law with the same location and scale and shared degrees of freedom. The expected
length of a visit to regime k is 1 / (1 - A[k, k]) days.

`python -m emprob.models.regimes` is the whole story on ten years of the S&P 500: the plan, the fit
from several starts, standard errors, how long regimes last, NUTS on the same program beside the
fit, a figure, and the draws for ArviZ.

Source: Hamilton (1989), Econometrica 57(2); Ryden, Terasvirta and Asbrink (1998), Journal of
Applied Econometrics 13(3), for daily returns; Bulla (2011), Quantitative Finance 11(10), for
Student-t regimes. Priors: conjugate and weak; each transition counts as seen once before.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.contrib.control_flow import scan

import emprob as ep
from emprob.models import _report

DAYS_PER_YEAR = 252


def gaussian_regimes(returns: Any, num_states: int = 3) -> None:
    """Normal returns in every regime.

    Args:
        returns: (T,), in percent; NaN is a missing day.
        num_states: K.
    """
    initial, transition, mu, sigma = _parameters(num_states)
    _chain(returns, initial, transition, lambda z: dist.Normal(mu[z], sigma[z]))


def student_regimes(returns: Any, num_states: int = 2) -> None:
    """Student-t returns in every regime, degrees of freedom shared.

    Args:
        returns: (T,), in percent; NaN is a missing day.
        num_states: K.
    """
    initial, transition, mu, sigma = _parameters(num_states)
    # Juarez and Steel (2010), Journal of Business and Economic Statistics 28(1).
    df = numpyro.sample("df", dist.Gamma(2.0, 0.1))
    _chain(returns, initial, transition, lambda z: dist.StudentT(df, mu[z], sigma[z]))


def _parameters(num_states: int) -> tuple:
    """The parameters of both programs, and the expected duration of a visit."""
    initial = numpyro.sample("initial", dist.Dirichlet(2 * jnp.ones(num_states)))
    with numpyro.plate("regime", num_states):
        transition = numpyro.sample("A", dist.Dirichlet(2 * jnp.ones(num_states)))
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        variance = numpyro.sample("variance", dist.InverseGamma(2.0, 1.0))
    sigma = numpyro.deterministic("sigma", jnp.sqrt(variance))
    stay = jnp.diagonal(transition, axis1=-2, axis2=-1)
    numpyro.deterministic("duration", 1 / (1 - stay))
    return initial, transition, mu, sigma


def _chain(returns: Any, initial: Any, transition: Any, emission: Callable) -> None:
    def day(carry, y):
        z, t = carry
        law = jnp.where(t == 0, initial, transition[z])
        z = numpyro.sample("z", dist.Categorical(law), infer={"enumerate": "parallel"})
        numpyro.sample("y", emission(z), obs=y)
        return (z, t + 1), None

    scan(day, (0, 0), returns)


PROGRAMS = {"gaussian": gaussian_regimes, "student": student_regimes}

# Two calm regimes and a turbulent one, close to what daily index returns show.
TRUTH = {
    "initial": np.array([0.4, 0.4, 0.2]),
    "A": np.array([[0.97, 0.025, 0.005], [0.02, 0.96, 0.02], [0.01, 0.04, 0.95]]),
    "mu": np.array([0.1, 0.0, -0.15]),
    "variance": np.array([0.2, 1.0, 6.0]),
}


def simulate(key: Any, length: int = 2000, df: float = np.inf, truth: dict | None = None) -> tuple:
    """Draw a series from the model.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        df: degrees of freedom of the returns; infinite: normal.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        returns (T,) and the states (T,).
    """
    truth = TRUTH if truth is None else truth
    rng = np.random.default_rng(np.asarray(jax.random.key_data(_key(key))))
    cumulative = truth["A"].cumsum(1)
    uniforms = rng.uniform(size=length)
    states = np.zeros(length, int)
    states[0] = np.searchsorted(truth["initial"].cumsum(), uniforms[0])
    for t in range(1, length):
        states[t] = np.searchsorted(cumulative[states[t - 1]], uniforms[t])
    noise = rng.standard_normal(length) if np.isinf(df) else rng.standard_t(df, length)
    return truth["mu"][states] + np.sqrt(truth["variance"][states]) * noise, states


def _key(key: Any) -> Any:
    return jax.random.key(key) if isinstance(key, int) else key


def load(years: float = 20.0) -> pd.Series:
    """Daily log returns of the S&P 500 in percent, the last `years` of 1999-2018.

    Needs the package `arch` (pip install "emprob[gallery]").
    """
    try:
        from arch.data import sp500
    except ImportError as error:
        raise ImportError(
            'this data set is in the package arch: pip install "emprob[gallery]"'
        ) from error
    price = sp500.load()["Adj Close"]
    returns = 100 * np.log(price).diff().dropna()
    return returns.rename("return").iloc[-round(years * DAYS_PER_YEAR) :]


# -- the main job -------------------------------------------------------------------------------


def order(found: ep.Fit) -> np.ndarray:
    """States by volatility, calm first."""
    return np.argsort(found.params["variance"])


def beside_smaller(
    found: ep.Fit, law: str, returns: np.ndarray, num_states: int, opt: _report.Options
) -> pd.DataFrame:
    """The fit's log-likelihood and BIC beside those of one state less."""
    rows = {f"{num_states} states": _row(found)}
    if num_states > 2:
        smaller = ep.fit(
            ep.bind(PROGRAMS[law], returns, num_states - 1), key=opt.seed,
            num_starts=opt.num_starts, max_steps=3000, progress=opt.progress,
        )  # fmt: skip
        rows = {f"{num_states - 1} states": _row(smaller)} | rows
    return pd.DataFrame(rows).T


def _row(found: ep.Fit) -> dict:
    return {
        "log-likelihood": found.log_likelihood, "parameters": found.df, "BIC": found.bic,
        "status": found.status.word, "seconds": found.seconds["total"],
    }  # fmt: skip


def durations(found: ep.Fit) -> pd.DataFrame:
    """How long each regime lasts, and how often it rules."""
    rows = found.summary()
    share = found.posterior["z"].probs.mean(0)
    wanted = {
        "mean return %": "mu", "volatility % a day": "sigma", "days": "duration",
    }  # fmt: skip
    table = {}
    for k in order(found):
        line = {title: rows.loc[f"{site}[{k}]", "estimate"] for title, site in wanted.items()}
        line |= {f"95% {e}": rows.loc[f"duration[{k}]", e] for e in ("lower", "upper")}
        table[f"z = {k}"] = line | {"share of days": share[k]}
    return pd.DataFrame(table).T


def draw(found: ep.Fit, returns: pd.Series, comparison: Any) -> Any:
    """The series shaded by regime, the smoothed probabilities, and EM against NUTS."""
    import matplotlib.pyplot as plt

    from emprob import plot

    k = len(found.params["mu"])
    heights = [2.6] + k * [0.7] + ([4.6] if comparison is not None else [])
    figure, axes = plt.subplots(
        len(heights), 1, figsize=(9, sum(heights) + 1), layout="constrained", height_ratios=heights
    )
    dates = returns.index.to_numpy()
    names = [f"volatility {s:.2g} % a day" for s in np.sqrt(found.params["variance"])]
    plot.plot_marginals(found, x=dates, ax=axes[0], site="z", labels=names)
    axes[0].set(xlabel="", ylabel="return, %")
    for ax, state in zip(axes[1:], order(found)):
        _probability(found, dates, int(state), ax)
    if comparison is not None:
        plot.plot_forest(comparison, ax=axes[-1], names=_rows(comparison))
    return figure


def _probability(found: ep.Fit, dates: np.ndarray, state: int, ax: Any) -> None:
    from emprob.plot import COLORS

    sigma = np.sqrt(found.params["variance"][state])
    ax.fill_between(
        dates, found.posterior["z"].probs[:, state], color=COLORS[state], linewidth=0, alpha=0.8
    )
    ax.set(ylim=(0, 1), yticks=(0, 1), xlim=(dates[0], dates[-1]), ylabel=f"P({sigma:.2g} %)")
    ax.tick_params(labelbottom=False)
    ax.spines[["top", "right"]].set_visible(False)


def _rows(comparison: Any) -> list[str]:
    """All but the start, of which one day tells little, and the variances, which sigma shows."""
    return [r for r in comparison.table.index if not r.startswith(("initial", "variance"))]


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Fit, compare, draw; returns the fit."""
    p = _report.parser("Regimes of the S&P 500: EM beside NUTS", num_starts=10, num_samples=1000)
    p.add_argument("--law", choices=tuple(PROGRAMS), default="gaussian", help="of the returns")
    p.add_argument("--states", type=int, default=3, help="number of regimes")
    p.add_argument("--years", type=float, default=10.0, help="the last years of 1999-2018")
    args = p.parse_args(argv)
    opt = _report.options(args)
    returns = load(min(args.years, 2.0) if args.quick else args.years)
    y = returns.to_numpy()
    print(f"S&P 500, {len(y)} daily log returns in percent, {returns.index[0]:%d %B %Y} to "
          f"{returns.index[-1]:%d %B %Y}")  # fmt: skip
    model = ep.bind(PROGRAMS[args.law], y, args.states)
    _report.heading(f"The plan: {args.law} returns, {args.states} states")
    print(model)
    _report.heading(f"EM from {opt.num_starts} starts")
    found = _report.fit(model, opt)
    _report.show(found.starts.sort_values("objective", ascending=False))
    if not args.quick:
        _report.heading("Is one state less enough?")
        _report.show(beside_smaller(found, args.law, y, args.states, opt), 7)
    _report.heading("Estimates, standard errors by observed information")
    _report.show(found.summary())
    _report.heading("Regimes")
    _report.show(durations(found))
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, returns, comparison), opt.out / "regimes.png"),
            _report.save_draws(source.to_arviz(), opt.out / "regimes.nc"),
        ]
    )
    return found


if __name__ == "__main__":
    main()
