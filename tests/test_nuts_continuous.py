"""NUTS on a program whose continuous latents are integrated out: on its parameters alone."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import emprob as ep

EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])  # Rubin (1981), eight schools
ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(effect, error):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(effect)):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * theta, error), obs=effect)


@pytest.mark.exhaustive
def test_nuts_runs_on_the_integral():
    model = ep.bind(eight_schools, EFFECT, ERROR)
    assert model.latents == ("theta",)
    bayes = ep.nuts(
        model, key=0, num_warmup=400, num_samples=1000, progress=False, target_accept=0.95
    )
    assert set(bayes.samples) == {"mu", "tau"}
    # exact by quadrature: E mu = 4.397, sd mu = 3.318, E tau = 3.597
    mu, tau = bayes.samples["mu"], bayes.samples["tau"]
    assert abs(mu.mean() - 4.39685) < 0.5
    assert abs(mu.std() - 3.317685) < 0.4
    assert abs(tau.mean() - 3.597231) < 0.6
