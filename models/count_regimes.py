"""Regimes of counts: a hidden Markov chain under Poisson numbers.

    z_1 ~ law,   z_t | z_{t-1} ~ A[z_{t-1}],   y_t | z_t ~ Poisson(rate[z_t])

The law of z_1 is free, or the stationary law of A, which makes it a function of A.

Source: Zucchini, MacDonald and Langrock (2016), Hidden Markov Models for Time Series, 2nd edition,
chapters 3 and 4: earthquakes of magnitude 7 and above in the world by year, 1900-2006. Their
maxima of the likelihood: -342.3183 and -329.4603 for two and three stationary states, -341.8787
and -328.5275 with a free start; they come out with `ep.bind(..., prior=False)`.
"""

from collections.abc import Sequence
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

# fmt: off
EARTHQUAKES = (
    13, 14, 8, 10, 16, 26, 32, 27, 18, 32, 36, 24, 22, 23, 22, 18, 25, 21, 21, 14, 8, 11, 14, 23,
    18, 17, 19, 20, 22, 19, 13, 26, 13, 14, 22, 24, 21, 22, 26, 21, 23, 24, 27, 41, 31, 27, 35, 26,
    28, 36, 39, 21, 17, 22, 17, 19, 15, 34, 10, 15, 22, 18, 15, 20, 15, 22, 19, 16, 30, 27, 29, 23,
    20, 16, 21, 21, 25, 16, 18, 15, 18, 14, 10, 15, 8, 15, 6, 11, 8, 7, 18, 16, 13, 12, 13, 20, 15,
    16, 12, 18, 15, 16, 13, 15, 16, 11, 11,
)
# fmt: on
FIRST_YEAR = 1900


def free_start(counts: Any, num_states: int = 2) -> None:
    """The law of the first state is a parameter of its own.

    Args:
        counts: (T,).
        num_states: K.
    """
    initial = numpyro.sample("initial", dist.Dirichlet(jnp.ones(num_states)))
    transition, rate = _parameters(counts, num_states)
    _chain(counts, initial, transition, rate)


def stationary_start(counts: Any, num_states: int = 2) -> None:
    """The law of the first state is the stationary law of the transition matrix.

    Args:
        counts: (T,).
        num_states: K.
    """
    transition, rate = _parameters(counts, num_states)
    initial = numpyro.deterministic("stationary", stationary_law(transition))
    _chain(counts, initial, transition, rate)


def stationary_law(transition: Any) -> Any:
    """The law with law @ A = law, by (A' - I + 1 1') law = 1.

    Args:
        transition: A, (K, K), rows sum to one; or (..., K, K).

    Returns:
        (..., K).

    Source: Zucchini, MacDonald and Langrock (2016), exercise 1.9.
    """
    k = transition.shape[-1]
    matrix = jnp.swapaxes(transition, -1, -2) - jnp.eye(k) + jnp.ones((k, k))
    ones = jnp.ones((*transition.shape[:-2], k, 1))
    return jnp.linalg.solve(matrix, ones)[..., 0]


def _parameters(counts: Any, num_states: int) -> tuple:
    with numpyro.plate("regime", num_states):
        transition = numpyro.sample("A", dist.Dirichlet(jnp.ones(num_states)))
        # One year's worth of the mean count.
        rate = numpyro.sample("rate", dist.Gamma(jnp.nanmean(counts) / 10, 0.1))
    return transition, rate


def _chain(counts: Any, initial: Any, transition: Any, rate: Any) -> None:
    def year(carry, y):
        z, t = carry
        law = jnp.where(t == 0, initial, transition[z])
        z = numpyro.sample("z", dist.Categorical(law), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Poisson(rate[z]), obs=y)
        return (z, t + 1), None

    scan(year, (0, 0), counts)


TRUTH = {
    "initial": np.array([0.5, 0.5]),
    "A": np.array([[0.93, 0.07], [0.13, 0.87]]),
    "rate": np.array([15.0, 26.0]),
}


def simulate(key: Any, length: int = 1000, truth: dict | None = None) -> tuple:
    """Draw a series of counts.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        counts (T,) and the states (T,).
    """
    truth = TRUTH if truth is None else truth
    key = jax.random.key(key) if isinstance(key, int) else key
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    states = np.zeros(length, int)
    states[0] = rng.choice(len(truth["rate"]), p=truth["initial"])
    for t in range(1, length):
        states[t] = rng.choice(len(truth["rate"]), p=truth["A"][states[t - 1]])
    return rng.poisson(truth["rate"][states]), states


def load() -> pd.Series:
    """Earthquakes of magnitude 7 and above by year, 107 counts from 1900 to 2006."""
    years = pd.RangeIndex(FIRST_YEAR, FIRST_YEAR + len(EARTHQUAKES), name="year")
    return pd.Series(EARTHQUAKES, index=years, name="earthquakes")


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Maximum likelihood with both starts, then MAP beside NUTS; returns the latter fit."""
    p = _report.parser("Regimes of earthquake counts", num_starts=10)
    p.add_argument("--states", type=int, default=2, help="number of states")
    args = p.parse_args(argv)
    opt = _report.options(args)
    counts = load()
    y = counts.to_numpy()
    for program in (free_start, stationary_start):
        _report.heading(f"Maximum likelihood, {program.__name__.replace('_', ' ')}")
        model = ep.bind(program, y, args.states, prior=False)
        print(model)
        _report.show(_report.fit(model, opt).summary())
    model = ep.bind(stationary_start, y, args.states)
    _report.heading("With the prior, as NUTS has it")
    found = _report.fit(model, opt)
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, counts, comparison), opt.out / "count_regimes.png"),
            _report.save_draws(source.to_arviz(), opt.out / "count_regimes.nc"),
        ]
    )
    return found


def draw(found: ep.Fit, counts: pd.Series, comparison: Any) -> Any:
    """The counts shaded by regime, and EM against NUTS."""
    import matplotlib.pyplot as plt

    from emprob import plot

    tall = 2 if comparison is not None else 1
    figure, axes = plt.subplots(tall, 1, figsize=(8, 4 * tall), layout="constrained", squeeze=False)
    names = [f"{r:.1f} a year" for r in found.params["rate"]]
    plot.plot_marginals(found, x=counts.index.to_numpy(), ax=axes[0, 0], site="z", labels=names)
    axes[0, 0].set(xlabel="year", ylabel="earthquakes")
    if comparison is not None:
        plot.plot_forest(comparison, ax=axes[1, 0])
    return figure


if __name__ == "__main__":
    main()
