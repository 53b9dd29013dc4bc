"""Markov-switching autoregression: the mean of growth depends on the regime, its swings do not.

    y_t - mu[z_t] = sum_j phi[j] (y_{t-j} - mu[z_{t-j}]) + e_t,   e_t ~ Normal(0, variance)

Five regimes matter at each quarter, the present one and four lags, so four latents travel in the
scan's carry. The lagged regimes of the first quarter follow the stationary law of the chain.
Two simpler programs switch an intercept, or a variance, alone.

Source: Hamilton (1989), Econometrica 57(2): growth of United States real GNP in percent,
1951-1984, table I. The maximum of the likelihood, -181.26339, is also what EViews and statsmodels
report; it comes out with `ep.bind(..., prior=False)`.
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
from emprob.models.count_regimes import stationary_law

ORDER = 4

# Quarterly growth in percent from 1951, second quarter, as in the data of Hamilton's programs.
# fmt: off
GNP_GROWTH = (
    2.59316421, 2.20217133, 0.45827562, 0.9687438, -0.24130757, 0.89647478, 2.05393219, 1.73353648,
    0.93871289, -0.46477833, -0.80983406, -1.39763689, -0.39886093, 1.1918416, 1.45620048,
    2.11808228, 1.08957863, 1.32390273, 0.87296367, -0.19773273, 0.45420215, 0.07221876, 1.1030364,
    0.82097489, -0.05795795, 0.58447772, -1.56192672, -2.05041027, 0.53637183, 2.33676839,
    2.34014559, 1.2339263, 1.8869648, -0.45920792, 0.84940469, 1.70139849, -0.28756312, 0.09594627,
    -0.86080289, 1.03447127, 1.23685944, 1.42004502, 2.22410631, 1.30210173, 1.03517699, 0.9253425,
    -0.16559951, 1.3444382, 1.37500131, 1.73222184, 0.71605635, 2.21032143, 0.85333031, 1.00238776,
    0.42725441, 2.14368343, 1.43789184, 1.57959926, 2.27469826, 1.95962656, 0.25992399, 1.01946914,
    0.49016398, 0.5636338, 0.5959546, 1.43082857, 0.56230122, 1.15388393, 1.68722844, 0.77438205,
    -0.09647045, 1.39600146, 0.13646798, 0.55223715, -0.39944872, -0.61671102, -0.08722561,
    1.2101835, -0.90729755, 2.64916158, -0.0080694, 0.51111895, -0.00401437, 2.16821432, 1.92586732,
    1.03504717, 1.85897219, 2.32004929, 0.25570789, -0.09855274, 0.89073682, -0.55896485,
    0.28350255, -1.31155407, -0.88278776, -1.97454941, 1.01275265, 1.68264723, 1.38271284,
    1.86073637, 0.4447377, 0.41449001, 0.99202275, 1.36283576, 1.59970522, 1.98845816, -0.25684232,
    0.87786949, 3.1095655, 0.85324478, 1.23337317, 0.00314302, -0.09433369, 0.89883322, -0.19036628,
    0.99772376, -2.39120054, 0.06649673, 1.26136017, 1.91637838, -0.3348029, 0.44207108,
    -1.40664911, -1.52129889, 0.29919869, -0.80197448, 0.15204792, 0.98585027, 2.13034606,
    1.34397924, 1.61550522, 2.70930099, 1.24461412, 0.50835466, 0.14802167,
)
# fmt: on


def switching_mean(y: Any, lags: Any, num_states: int = 2) -> None:
    """Hamilton's model.

    Args:
        y: (T,).
        lags: (T, P), column j is y of j + 1 quarters ago.
        num_states: K.
    """
    order = lags.shape[-1]
    transition, mu = _regimes(num_states)
    variance = numpyro.sample("variance", dist.InverseGamma(2.0, 1.0))
    with numpyro.plate("lag", order):
        phi = numpyro.sample("phi", dist.Normal(0.0, 0.5))
    earlier = _earlier_regimes(transition, order)

    def quarter(carry, observed):
        value, past = observed
        z = numpyro.sample("z", dist.Categorical(transition[carry[0]]), infer=PARALLEL)
        swings = [phi[j] * (past[j] - mu[carry[j]]) for j in range(order)]
        numpyro.sample("y", dist.Normal(mu[z] + sum(swings), jnp.sqrt(variance)), obs=value)
        return (z, *carry[:-1]), None

    scan(quarter, earlier, (y, lags))


PARALLEL = {"enumerate": "parallel"}


def _regimes(num_states: int) -> tuple:
    """Transition matrix and means, and how long a regime is expected to last."""
    with numpyro.plate("regime", num_states):
        transition = numpyro.sample("A", dist.Dirichlet(2 * jnp.ones(num_states)))
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    stay = jnp.diagonal(transition, axis1=-2, axis2=-1)
    numpyro.deterministic("duration", 1 / (1 - stay))
    return transition, mu


def _earlier_regimes(transition: Any, order: int) -> tuple:
    """The regimes before the first quarter, latest first."""
    law = stationary_law(transition)
    found = []
    for j in range(order, 0, -1):
        found.append(numpyro.sample(f"z_{j}_before", dist.Categorical(law), infer=PARALLEL))
        law = transition[found[-1]]
    return tuple(reversed(found))


def switching_intercept(y: Any, num_states: int = 2) -> None:
    """y_t ~ Normal(mu[z_t], variance): a level that switches.

    Args:
        y: (T,).
        num_states: K.
    """
    with numpyro.plate("regime", num_states):
        transition = numpyro.sample("A", dist.Dirichlet(2 * jnp.ones(num_states)))
        mu = numpyro.sample("mu", dist.Normal(jnp.nanmean(y), 3 * jnp.nanstd(y)))
    variance = numpyro.sample("variance", dist.InverseGamma(2.0, jnp.nanvar(y)))
    _simple_chain(y, transition, lambda z: dist.Normal(mu[z], jnp.sqrt(variance)))


def switching_variance(y: Any, num_states: int = 2) -> None:
    """y_t ~ Normal(0, variance[z_t]): returns without a mean whose variance switches.

    Args:
        y: (T,).
        num_states: K.
    """
    with numpyro.plate("regime", num_states):
        transition = numpyro.sample("A", dist.Dirichlet(2 * jnp.ones(num_states)))
        variance = numpyro.sample("variance", dist.InverseGamma(2.0, jnp.nanvar(y)))
    _simple_chain(y, transition, lambda z: dist.Normal(0.0, jnp.sqrt(variance[z])))


def _simple_chain(y: Any, transition: Any, emission: Any) -> None:
    law = stationary_law(transition)

    def period(carry, value):
        z, t = carry
        now = jnp.where(t == 0, law, transition[z])
        z = numpyro.sample("z", dist.Categorical(now), infer=PARALLEL)
        numpyro.sample("y", emission(z), obs=value)
        return (z, t + 1), None

    scan(period, (0, 0), y)


def with_lags(y: Any, order: int = ORDER) -> tuple[np.ndarray, np.ndarray]:
    """Split a series (T + order,) into y (T,) and its lags (T, order)."""
    y = np.asarray(y, float)
    lags = np.stack([y[order - j - 1 : len(y) - j - 1] for j in range(order)], 1)
    return y[order:], lags


TRUTH = {
    "A": np.array([[0.9, 0.1], [0.25, 0.75]]),
    "mu": np.array([1.2, -0.4]),
    "phi": np.array([0.0, -0.05, -0.25, -0.2]),
    "variance": np.array(0.6),
}


def simulate(key: Any, length: int = 500, truth: dict | None = None) -> tuple:
    """Draw a series.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        y (T + P,), and the regimes (T + P,). The first P values set the lags.
    """
    truth = TRUTH if truth is None else truth
    key = jax.random.key(key) if isinstance(key, int) else key
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    mu, phi, burn_in = truth["mu"], truth["phi"], 50
    order, total = len(phi), length + len(phi) + burn_in
    states, gap = np.zeros(total, int), np.zeros(total)
    for t in range(1, total):
        states[t] = rng.choice(len(mu), p=truth["A"][states[t - 1]])
        past = gap[max(t - order, 0) : t][::-1]
        gap[t] = phi[: len(past)] @ past + np.sqrt(truth["variance"]) * rng.standard_normal()
    return (mu[states] + gap)[burn_in:], states[burn_in:]


def load() -> pd.Series:
    """Growth of United States real GNP in percent, 135 quarters from 1951 Q2 to 1984 Q4."""
    quarters = pd.period_range("1951Q2", periods=len(GNP_GROWTH), freq="Q", name="quarter")
    return pd.Series(GNP_GROWTH, index=quarters, name="growth")


def load_from_statsmodels(name: str) -> np.ndarray:
    """A series of statsmodels' own tests: `fedfunds` (226,) or `areturns` (521,).

    Needs the packages `statsmodels` and `pytest` (pip install "emprob[test]").
    """
    try:
        from statsmodels.tsa.regime_switching.tests import test_markov_regression as module
    except ImportError as error:
        raise ImportError(
            f"'{name}' is in the tests of statsmodels, which need pytest: "
            'pip install "emprob[test]"'
        ) from error
    return np.asarray(getattr(module, name), float).ravel()


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Maximum likelihood, then MAP beside NUTS; returns the first fit."""
    p = _report.parser("Hamilton's model of GNP growth", num_starts=8)
    opt = _report.options(p.parse_args(argv))
    growth = load()
    y, lags = with_lags(growth)
    _report.heading("Maximum likelihood")
    model = ep.bind(switching_mean, y, lags, prior=False)
    print(model)
    likely = _report.fit(model, opt)
    _report.show(likely.summary())
    paths = [_report.save_figure(draw(likely, growth), opt.out / "markov_switching_ar.png")]
    if opt.num_samples:
        _report.heading("With the prior, as NUTS has it")
        found = _report.fit(ep.bind(switching_mean, y, lags), opt)
        comparison = _report.beside(found, opt)
        axes = comparison.plot()
        paths.append(_report.save_figure(axes.figure, opt.out / "markov_switching_ar_forest.png"))
        tree = comparison.bayes.to_arviz()
        paths.append(_report.save_draws(tree, opt.out / "markov_switching_ar.nc"))
    _report.say_where(paths)
    return likely


def draw(found: ep.Fit, growth: pd.Series) -> Any:
    """Growth shaded by regime, and the probability of a recession."""
    import matplotlib.pyplot as plt

    from emprob import plot

    figure, axes = plt.subplots(2, 1, figsize=(9, 6), layout="constrained", sharex=True)
    dates = growth.index[ORDER:].to_timestamp().to_numpy()
    names = [f"mean {m:.2f} % a quarter" for m in found.params["mu"]]
    plot.plot_marginals(found, x=dates, ax=axes[0], site="z", labels=names)
    axes[0].set(xlabel="", ylabel="GNP growth, %")
    low = int(np.argmin(found.params["mu"]))
    marginal = found.posterior["z"]
    axes[1].plot(dates, marginal.probs[:, low], label="smoothed", color=plot.COLORS[low])
    axes[1].plot(dates, marginal.filtered[:, low], label="filtered", color=plot.GREY, linewidth=0.9)
    axes[1].set_ylabel("probability of recession")
    axes[1].margins(x=0)  # as above: the axis is shared
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.15), ncols=2)
    axes[1].spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
