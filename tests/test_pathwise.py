"""The simulated likelihood of one long series: batches joined after they are summed."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import emprob as ep
from emprob.coordinates import coordinates_of, flatten, unflatten
from emprob.simulation import pathwise
from emprob.simulation.draws import plain

pytestmark = pytest.mark.exhaustive


def volatility(y):
    phi = numpyro.sample("phi", dist.Beta(20.0, 1.5))
    s = numpyro.sample("s", dist.HalfNormal(1.0))

    def step(h, y):
        h = numpyro.sample("h", dist.Normal(phi * h, s))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=y)
        return h, None

    scan(step, numpyro.sample("h0", dist.Normal(0.0, 1.0)), y)


@pytest.fixture(scope="module")
def chain():
    y = np.random.default_rng(4).standard_t(4, size=15)
    model = plain(ep.bind(volatility, y))
    return model, coordinates_of(model, {"phi": jnp.array(0.9), "s": jnp.array(0.6)})


def at(model, w, move):
    flat = flatten(model, w) + jnp.asarray(move)
    return pathwise.curves(model, unflatten(model, flat, w), jax.random.PRNGKey(0), 3)


def log_prior(model, w):
    return float(model.log_prior(pathwise.chart.from_coordinates(model.data.transforms, w)))


def test_score_and_hessian_are_those_of_the_joined_value(chain):
    """With all batches, and without each of them."""
    model, w = chain
    assert pathwise.is_one_series(model)
    found, h = at(model, w, np.zeros(2)), 1e-5
    assert found.value.shape == (1 + pathwise.MANY_BATCHES,)
    for i, e in enumerate(h * np.eye(2)):
        up, down = at(model, w, e), at(model, w, -e)
        priors = [log_prior(model, unflatten(model, flatten(model, w) + x, w)) for x in (e, -e)]
        slope = (up.value - down.value + priors[0] - priors[1]) / (2 * h)
        np.testing.assert_allclose(found.score[:, i], slope, rtol=1e-6, atol=1e-7)
        curve = (up.score - down.score) / (2 * h)
        np.testing.assert_allclose(found.hessian[:, i], curve, rtol=1e-5, atol=1e-6)


def test_the_joined_value_is_the_mean_over_batches(chain):
    model, w = chain
    found = at(model, w, np.zeros(2))
    full, rest, count = found.value[0], found.value[1:], pathwise.MANY_BATCHES
    # sum over g of the mean without g is the full mean, as often as there are batches
    assert np.exp(rest - full).mean() == pytest.approx(1.0, abs=1e-10)
    each = np.log(count - (count - 1) * np.exp(rest - full))  # of batch g alone
    assert np.exp(each).mean() == pytest.approx(1.0, abs=1e-10) and each.std() > 1e-4


def test_its_mean_is_the_likelihood_by_particles(chain):
    model, w = chain
    params = pathwise.chart.from_coordinates(model.data.transforms, w)
    found = ep.Particle(num_particles=512).log_evidence(model, params, None, jax.random.PRNGKey(1))
    told = at(model, w, np.zeros(2)).value
    count = len(told) - 1
    error = np.sqrt((count - 1) / count * ((told[1:] - told[1:].mean()) ** 2).sum())
    assert abs(told[0] - found.value) < 4 * np.hypot(error, found.error)
