"""Log-densities: NumPyro's values, and the derivatives that NumPyro's have not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import special, stats

from emprob.densities import log_density
from emprob.families.numerics import log_factorial, softplus

COUNTS = np.array([0, 1, 2, 5, 7])
LOG_ODDS = np.array([-40.0, -3.0, 0.0, 0.4, 35.0])
LAWS = {
    "bernoulli": (lambda x: dist.BernoulliLogits(x), COUNTS % 2, LOG_ODDS),
    "binomial": (lambda x: dist.BinomialLogits(x, 7), COUNTS, LOG_ODDS),
    "binomial of probs": (lambda x: dist.BinomialProbs(x, 7), COUNTS, np.linspace(0.05, 0.9, 5)),
    "poisson": (lambda x: dist.Poisson(x), COUNTS, np.array([1e-3, 0.5, 2.0, 9.0, 80.0])),
    "student": (lambda x: dist.StudentT(4.0, x, 1.3), COUNTS, np.array([0.0, 0.5, 2.0, 3.0, 9.0])),
}


@pytest.mark.parametrize("name", LAWS)
def test_values_are_numpyros(name):
    law, value, x = LAWS[name]
    np.testing.assert_allclose(
        log_density(law(x), value), law(x).log_prob(value), rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize("trials", [1, 6])
def test_log_odds_of_zero_have_their_derivatives(trials):
    """NumPyro's first derivative at 0 is off by half of the trials: `max(x, 0)` has a kink."""
    law = dist.BernoulliLogits if trials == 1 else lambda x: dist.BinomialLogits(x, trials)
    f = lambda x: log_density(law(x), 1)  # noqa: E731
    slopes = [f]
    for _ in range(4):
        slopes.append(jax.grad(slopes[-1]))
    found = [float(g(0.0)) for g in slopes[1:]]
    # of x - n log(1 + e^x), whose Taylor series is known
    np.testing.assert_allclose(found, [1 - trials / 2, -trials / 4, 0.0, trials / 8], atol=1e-14)
    assert float(jax.grad(lambda x: law(x).log_prob(1))(0.0)) != pytest.approx(found[0])


def test_infinite_log_odds_are_certain():
    f = lambda x, y: log_density(dist.BinomialLogits(x, 3, validate_args=False), y)  # noqa: E731
    assert float(f(jnp.inf, 3)) == 0.0 and float(f(-jnp.inf, 0)) == 0.0
    assert float(f(jnp.inf, 2)) < -1e300 and float(f(-jnp.inf, 1)) < -1e300


@pytest.mark.parametrize(
    "count", [np.arange(6.0), np.array([4095.0, 4096.0, 1e6]), np.array([0.5, 3.0, 1e-9])]
)
def test_log_factorial(count):
    """Looked up, too large for the table, and not whole: jitted or not, and its slope."""
    exact = special.gammaln(count + 1)
    for f in (log_factorial, jax.jit(log_factorial), jax.vmap(log_factorial)):
        np.testing.assert_allclose(f(jnp.asarray(count)), exact, rtol=1e-14, atol=1e-15)
    slope = jax.vmap(jax.grad(log_factorial))(jnp.asarray(count))
    np.testing.assert_allclose(slope, special.digamma(count + 1), rtol=1e-12)


def test_softplus_to_the_last_digits():
    x = np.concatenate([np.linspace(-40, 40, 2001), [0.0, -700.0, 700.0]])
    exact = np.logaddexp(0.0, x.astype(np.longdouble)).astype(float)
    np.testing.assert_allclose(softplus(jnp.asarray(x)), exact, rtol=1e-15)
    np.testing.assert_allclose(jax.vmap(jax.grad(softplus))(x), stats.logistic.cdf(x), rtol=1e-14)
