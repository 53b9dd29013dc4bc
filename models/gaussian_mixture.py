"""Gaussian mixtures, in one dimension and in several, covariances own or shared.

    z_n ~ weights,   y_n | z_n = k ~ Normal(mu[k], Sigma[k])

Source: Roeder (1990), Journal of the American Statistical Association 85(411): velocities of 82
galaxies; Richardson and Green (1997), Journal of the Royal Statistical Society B 59(4), for the
prior of the means; Fraley and Raftery (2007), Journal of Classification 24(2), for the prior of the
variances, which keeps the likelihood's spikes away. With `ep.bind(..., prior=False)` the published
maxima of the likelihood come out: -203.18 for three components, which needs several starts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emprob as ep
from emprob.models import _report

# Kilometres per second, as in R's MASS; there and here the 78th is 26690 where Roeder has 26960.
# fmt: off
GALAXIES = (
    9172, 9350, 9483, 9558, 9775, 10227, 10406, 16084, 16170, 18419, 18552, 18600, 18927, 19052,
    19070, 19330, 19343, 19349, 19440, 19473, 19529, 19541, 19547, 19663, 19846, 19856, 19863,
    19914, 19918, 19973, 19989, 20166, 20175, 20179, 20196, 20215, 20221, 20415, 20629, 20795,
    20821, 20846, 20875, 20986, 21137, 21492, 21701, 21814, 21921, 21960, 22185, 22209, 22242,
    22249, 22314, 22374, 22495, 22746, 22747, 22888, 22914, 23206, 23241, 23263, 23484, 23538,
    23542, 23666, 23706, 23711, 24129, 24285, 24289, 24366, 24717, 24990, 25633, 26690, 26995,
    32065, 32789, 34279,
)
# fmt: on


def gaussian_mixture(y: Any, num_components: int = 3) -> None:
    """Numbers; every component has its own variance.

    Args:
        y: (N,).
        num_components: K.
    """
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(num_components)))
    with numpyro.plate("component", num_components):
        mu = numpyro.sample("mu", _mean_prior(y))
        variance = numpyro.sample("variance", _variance_prior(y, num_components))
    sigma = numpyro.deterministic("sigma", jnp.sqrt(variance))
    _observe(y, weights, lambda z: dist.Normal(mu[z], sigma[z]))


def shared_variance(y: Any, num_components: int = 3) -> None:
    """Numbers; one variance for all components.

    Args:
        y: (N,).
        num_components: K.
    """
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(num_components)))
    with numpyro.plate("component", num_components):
        mu = numpyro.sample("mu", _mean_prior(y))
    variance = numpyro.sample("variance", _variance_prior(y, num_components))
    sigma = numpyro.deterministic("sigma", jnp.sqrt(variance))
    _observe(y, weights, lambda z: dist.Normal(mu[z], sigma))


def multivariate_mixture(y: Any, num_components: int = 2) -> None:
    """Vectors; every component has its own covariance matrix.

    Args:
        y: (N, D).
        num_components: K.
    """
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(num_components)))
    with numpyro.plate("component", num_components):
        mu = numpyro.sample("mu", _mean_vector_prior(y))
        sigma = numpyro.sample("Sigma", _covariance_prior(y, num_components))
    _observe(y, weights, lambda z: dist.MultivariateNormal(mu[z], covariance_matrix=sigma[z]))


def shared_covariance(y: Any, num_components: int = 2) -> None:
    """Vectors; one covariance matrix for all components.

    Args:
        y: (N, D).
        num_components: K.
    """
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(num_components)))
    with numpyro.plate("component", num_components):
        mu = numpyro.sample("mu", _mean_vector_prior(y))
    sigma = numpyro.sample("Sigma", _covariance_prior(y, num_components))
    _observe(y, weights, lambda z: dist.MultivariateNormal(mu[z], covariance_matrix=sigma))


def _observe(y: Any, weights: Any, law: Callable[[Any], dist.Distribution]) -> None:
    """Every observation follows the law of its component z."""
    with numpyro.plate("observation", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("y", law(z), obs=y)


# NaN is a missing value, so the priors look at what is there.


def _mean_prior(y: Any) -> dist.Distribution:
    low, high = jnp.nanmin(y), jnp.nanmax(y)
    return dist.Normal((low + high) / 2, high - low)


def _variance_prior(y: Any, num_components: int) -> dist.Distribution:
    return dist.InverseGamma(1.5, 0.5 * jnp.nanvar(y) / num_components**2)


def _mean_vector_prior(y: Any) -> dist.Distribution:
    low, high = jnp.nanmin(y, axis=0), jnp.nanmax(y, axis=0)
    return dist.MultivariateNormal((low + high) / 2, scale_tril=jnp.diag(high - low))


def _covariance_prior(y: Any, num_components: int) -> dist.Distribution:
    d = y.shape[-1]
    spread = jnp.diag(jnp.nanvar(y, axis=0)) / num_components ** (2 / d)
    return dist.InverseWishart(d + 2.0, spread)


TRUTH = {
    "weights": np.array([0.5, 0.3, 0.2]),
    "mu": np.array([-2.0, 1.0, 4.0]),
    "variance": np.array([0.5, 0.3, 1.0]),
}
TRUTH_2D = {
    "weights": np.array([0.6, 0.4]),
    "mu": np.array([[0.0, 0.0], [3.0, 1.0]]),
    "Sigma": np.array([[[1.0, 0.4], [0.4, 0.5]], [[0.6, -0.3], [-0.3, 1.2]]]),
}


def simulate(key: Any, num_observations: int = 1000, truth: dict | None = None) -> tuple:
    """Draw from a mixture; of vectors if the truth has `Sigma`.

    Args:
        key: a key of `jax.random`, or an integer.
        num_observations: N.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        y (N,) or (N, D), and the labels (N,).
    """
    truth = TRUTH if truth is None else truth
    first, second = jax.random.split(jax.random.key(key) if isinstance(key, int) else key)
    z = jax.random.choice(first, len(truth["weights"]), (num_observations,), p=truth["weights"])
    z = np.asarray(z)
    noise = np.asarray(jax.random.normal(second, (num_observations, *truth["mu"].shape[1:])))
    if "Sigma" in truth:
        roots = np.linalg.cholesky(truth["Sigma"])
        return truth["mu"][z] + np.einsum("nij,nj->ni", roots[z], noise), z
    return truth["mu"][z] + np.sqrt(truth["variance"][z]) * noise, z


def load() -> np.ndarray:
    """Velocities of 82 galaxies in 1000 km/s, (82,)."""
    return np.array(GALAXIES) / 1000


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Choose the number of components, fit, compare, draw; returns the fit."""
    p = _report.parser("A Gaussian mixture for the galaxies", num_starts=20)
    p.add_argument("--components", type=int, default=3, help="number of components")
    args = p.parse_args(argv)
    opt = _report.options(args)
    y = load()
    model = ep.bind(gaussian_mixture, y, args.components)
    _report.heading("The plan")
    print(model)
    _report.heading(f"EM from {opt.num_starts} starts")
    found = _report.fit(model, opt)
    _report.show(found.starts.sort_values("objective", ascending=False))
    _report.heading("Estimates, standard errors by observed information")
    _report.show(found.summary())
    print(f"AIC {found.aic:.2f}, BIC {found.bic:.2f}, ICL {found.icl:.2f}")
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, comparison), opt.out / "gaussian_mixture.png"),
            _report.save_draws(source.to_arviz(), opt.out / "gaussian_mixture.nc"),
        ]
    )
    return found


def draw(found: ep.Fit, comparison: Any) -> Any:
    """The histogram by component, and EM against NUTS."""
    import matplotlib.pyplot as plt

    from emprob import plot

    wide = 2 if comparison is not None else 1
    figure, axes = plt.subplots(
        1, wide, figsize=(6.5 * wide, 5), layout="constrained", squeeze=False
    )
    names = [f"mean {m:.1f}" for m in found.params["mu"]]
    plot.plot_marginals(found, ax=axes[0, 0], site="z", labels=names)
    axes[0, 0].set_xlabel("velocity, 1000 km/s")
    if comparison is not None:
        plot.plot_forest(comparison, ax=axes[0, 1])
    return figure


if __name__ == "__main__":
    main()
