"""The evidence of a program against closed forms."""

import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from scipy.special import betaln

import emprob as ep
from emprob.models._evidence import log_evidence


def normal_mean(y):
    mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu, 0.7), obs=y)


def coin(heads):
    share = numpyro.sample("share", dist.Beta(2.0, 3.0))
    with numpyro.plate("toss", len(heads)):
        numpyro.sample("heads", dist.Bernoulli(share), obs=heads)


def test_evidence_of_a_normal_mean_is_that_of_the_joint_normal():
    y = np.array([0.3, 1.2, -0.4, 2.0, 0.9])
    found = log_evidence(ep.fit(ep.bind(normal_mean, y), progress=False))
    covariance = 0.49 * np.eye(5) + 4.0
    exact = stats.multivariate_normal(np.ones(5), covariance).logpdf(y)
    assert found.khat < 0.3
    assert abs(found.log - exact) < 4 * found.error
    assert 0 < found.error < 0.01


def test_evidence_of_a_share_is_a_ratio_of_beta_functions():
    heads = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0])
    found = log_evidence(ep.fit(ep.bind(coin, heads), progress=False))
    exact = betaln(2 + 3, 3 + 7) - betaln(2, 3)
    assert found.khat < 0.7
    assert abs(found.log - exact) < 4 * found.error
    assert 0 < found.error < 0.02
