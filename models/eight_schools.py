"""Eight schools: how much the effect of coaching differs between schools.

    theta_j ~ Normal(mu, tau^2),   y_j ~ Normal(theta_j, s_j^2),   s_j known

The example to remember when a standard deviation is estimated by its mode: with so few schools the
most likely tau is exactly 0, the schools are all alike, and no standard error says how far tau may
be from that. With theta integrated out NUTS has only (mu, tau) to explore, and the funnel in which
it gets caught in the program as written is gone.

Source: Rubin (1981), Journal of Educational Statistics 6(4), data; Gelman, Carlin, Stern, Dunson,
Vehtari and Rubin (2013), Bayesian Data Analysis, section 5.5; Gelman (2006), Bayesian Analysis
1(3), for the half-Cauchy prior.
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

SCHOOLS = ("A", "B", "C", "D", "E", "F", "G", "H")
EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


def schools(y: Any, s: Any) -> None:
    """Effects that differ between schools.

    Args:
        y: estimated effects (J,); NaN is a school without a result.
        s: their standard errors (J,).
    """
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, s), obs=y)


TRUTH = {"mu": np.array(5.0), "tau": np.array(8.0)}


def simulate(key: Any, num_schools: int = 200, truth: dict | None = None) -> tuple:
    """Draw schools with the standard errors of the eight, again and again.

    Args:
        key: a key of `jax.random`, or an integer.
        num_schools: J.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        y (J,), s (J,) and the effects theta (J,).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    s = np.resize(ERRORS, num_schools)
    theta = rng.normal(truth["mu"], truth["tau"], num_schools)
    return rng.normal(theta, s), s, theta


def load() -> pd.DataFrame:
    """The eight schools: columns effect and error."""
    return pd.DataFrame({"effect": EFFECTS, "error": ERRORS}, index=list(SCHOOLS))


def exact_posterior(y: Any, s: Any, grid: np.ndarray | None = None) -> dict[str, float]:
    """Posterior means and standard deviations of mu and tau by quadrature.

    mu given tau is normal, so only tau needs a grid.

    Args:
        y: (J,).
        s: (J,).
        grid: angles in (0, 1) of tau = 5 tan(pi a / 2), evenly spaced; 20 000 by default.
    """
    y, s = np.asarray(y, float), np.asarray(s, float)
    angle = (np.arange(20_000) + 0.5) / 20_000 if grid is None else grid
    tau = 5 * np.tan(np.pi * angle / 2)  # the prior is uniform in the angle
    precision = 1 / (s**2 + tau[:, None] ** 2)
    total = 1 / 25 + precision.sum(1)
    mean = (precision * y).sum(1) / total
    log_weight = 0.5 * (np.log(precision).sum(1) - (precision * y**2).sum(1))
    log_weight += 0.5 * (total * mean**2 - np.log(total))
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    found = {"mu": weight @ mean, "tau": weight @ tau}
    found["sd of mu"] = np.sqrt(weight @ (1 / total + mean**2) - found["mu"] ** 2)
    found["sd of tau"] = np.sqrt(weight @ tau**2 - found["tau"] ** 2)
    return {k: float(v) for k, v in found.items()}


# -- the main job ---------------------------------------------------------------------------------


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Fit, and see why this fit should not be trusted; returns the fit."""
    p = _report.parser("Eight schools: a mode that misleads", num_starts=1, num_samples=4000)
    opt = _report.options(p.parse_args(argv))
    frame = load()
    y, s = frame["effect"].to_numpy(), frame["error"].to_numpy()
    model = ep.bind(schools, y, s)
    _report.heading("The plan")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    _report.heading("The exact posterior, by quadrature over tau")
    _report.show(pd.Series(exact_posterior(y, s)).to_frame("exact"))
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(y, s), opt.out / "eight_schools.png"),
            _report.save_draws(source.to_arviz(), opt.out / "eight_schools.nc"),
        ]
    )
    return found


def draw(y: np.ndarray, s: np.ndarray) -> Any:
    """The objective along tau, and what each tau would make of the schools."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    model = ep.bind(schools, y, s)
    grid = np.linspace(0.02, 25.0, 120)
    profile, effects = [], []
    for tau in grid:
        precision = 1 / (s**2 + tau**2)
        mu = (precision * y).sum() / (precision.sum() + 1 / 25)
        params = {"mu": jnp.asarray(mu), "tau": jnp.asarray(tau)}
        profile.append(float(model.objective(params)))
        effects.append((y / s**2 + mu / tau**2) / (1 / s**2 + 1 / tau**2))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    axes[0].plot(grid, np.exp(np.array(profile) - max(profile)), color=COLORS[0])
    axes[0].set(xlabel="tau", ylabel="posterior density at the best mu", ylim=(0, None))
    axes[1].plot(grid, effects)
    for name, end in zip(SCHOOLS, effects[-1]):
        axes[1].annotate(name, (grid[-1], end), xytext=(4, -3), textcoords="offset points")
    axes[1].set(xlabel="tau", ylabel="expected effect in each school")
    return figure


if __name__ == "__main__":
    main()
