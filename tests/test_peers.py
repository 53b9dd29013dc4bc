"""EM's path beside scikit-learn's and hmmlearn's: equal log-likelihoods, iteration by iteration.

The peers' own regularisation is switched off. scikit-learn: ``reg_covar=0``. hmmlearn:
``startprob_prior = transmat_prior = 1`` (flat Dirichlet), ``means_weight = 0``,
``covars_prior = 0``, and ``covars_weight = 0`` (both of its rules clip ``covars_weight - 1`` and
``covars_weight - D`` at zero; the default ``covars_prior = 0.01`` of "diag" would move every step);
``lambdas_prior = lambdas_weight = 0``, ``emissionprob_prior = 1``. Implementation: "log".
"""

import warnings
from itertools import islice

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hmmlearn.hmm import CategoricalHMM, GaussianHMM, PoissonHMM
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import emprob as ep

NUM_STEPS = 10
TOLERANCE = 1e-8
KINDS = ("full", "tied", "diag", "spherical")


def flat(support, event=()):
    return dist.ImproperUniform(support, (), event)


def log_likelihoods(model, init):
    """emprob's log-likelihood at the start of each step."""
    path = islice(ep.steps(model, ep.EM(), init=init), NUM_STEPS)
    return np.array([float(info.log_likelihood) for _, info in path])


def assert_equal_paths(ours, theirs):
    assert len(ours) == len(theirs) == NUM_STEPS
    assert ours[-1] > ours[0] + 1.0, "nothing was learnt, so nothing was compared"
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE)


# -- emissions ----------------------------------------------------------------------------------


def shapes(kind, K, D):
    """Event shape, support and whether it is one for all states, of each covariance type."""
    return {
        "full": (constraints.positive_definite, (D, D), True),
        "tied": (constraints.positive_definite, (D, D), False),
        "diag": (constraints.positive, (D,), True),
        "spherical": (constraints.positive, (), True),
    }[kind]


def gaussian_parameters(kind, K, D):
    support, event, per_state = shapes(kind, K, D)
    if kind == "diag":
        support = constraints.independent(support, 1)
    with numpyro.plate("states", K):
        mu = numpyro.sample("mu", flat(constraints.real_vector, (D,)))
        scale = numpyro.sample("scale", flat(support, event)) if per_state else None
    if scale is None:
        scale = numpyro.sample("scale", flat(support, event))
    return mu, scale


def gaussian(kind, mu, scale, z):
    if kind == "full":
        return dist.MultivariateNormal(mu[z], covariance_matrix=scale[z])
    if kind == "tied":
        return dist.MultivariateNormal(mu[z], covariance_matrix=scale)
    if kind == "diag":
        return dist.Normal(mu[z], scale[z]).to_event(1)
    return dist.Normal(mu[z], scale[z][..., None]).to_event(1)


def start(kind, K, D, rng):
    """A start for emprob (scales) and its covariances as the peers write them."""
    mu = rng.normal(scale=1.5, size=(K, D))
    if kind in ("full", "tied"):
        roots = rng.normal(size=(K, D, D))
        covariance = np.eye(D) + 0.3 * roots @ roots.swapaxes(1, 2)
        covariance = covariance if kind == "full" else covariance[0]
        return mu, covariance, covariance
    scale = rng.uniform(0.7, 1.6, size=(K, D) if kind == "diag" else K)
    return mu, scale, scale**2


def clusters(n, K, D, rng):
    centres = rng.normal(scale=2.0, size=(K, D))
    z = rng.integers(K, size=n)
    return centres[z] + rng.normal(size=(n, D)) @ np.diag(rng.uniform(0.5, 1.5, D))


# -- scikit-learn -------------------------------------------------------------------------------


def mixture(y, kind, K):
    N, D = y.shape
    pi = numpyro.sample("pi", flat(constraints.simplex, (K,)))
    mu, scale = gaussian_parameters(kind, K, D)
    with numpyro.plate("rows", N):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", gaussian(kind, mu, scale, z), obs=y)


def precisions(kind, covariance):
    return np.linalg.inv(covariance) if kind in ("full", "tied") else 1.0 / covariance


def scikit_learn_path(y, kind, weights, mu, covariance):
    """One EM iteration per call of `fit`; `score` is the mean log-likelihood after it."""
    peer = GaussianMixture(
        len(weights), covariance_type=kind, reg_covar=0.0, tol=0.0, max_iter=1, warm_start=True,
        weights_init=weights, means_init=mu, precisions_init=precisions(kind, covariance),
        init_params="random", random_state=0,
    )  # fmt: skip
    path = []
    for _ in range(NUM_STEPS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            peer.fit(y)
        path.append(peer.score(y) * len(y))
    return np.array(path), peer


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_mixture_follows_scikit_learn(kind):
    rng = np.random.default_rng(1)
    K, D = 3, 2
    y = clusters(400, K, D, rng)
    weights = np.array([0.2, 0.3, 0.5])
    mu, scale, covariance = start(kind, K, D, rng)
    theirs, peer = scikit_learn_path(y, kind, weights, mu, covariance)
    model = ep.bind(mixture, y, kind, K)
    path = list(
        islice(
            ep.steps(model, ep.EM(), init={"pi": weights, "mu": mu, "scale": scale}), NUM_STEPS + 1
        )
    )
    # emprob speaks of the parameters before a step, scikit-learn's score of those after it.
    ours = np.array([float(info.log_likelihood) for _, info in path[1:]])
    assert_equal_paths(ours, theirs)
    params = path[NUM_STEPS - 1][0].params
    np.testing.assert_allclose(params["mu"], peer.means_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(params["pi"], peer.weights_, rtol=1e-7)


@pytest.mark.exhaustive
def test_gaussian_mixture_in_blocks_of_rows_follows_scikit_learn():
    """Long plates are taken block by block, the last one shorter."""
    rng = np.random.default_rng(2)
    K, D = 5, 3
    y = clusters(10_007, K, D, rng)
    mu, scale, covariance = start("full", K, D, rng)
    weights = np.full(K, 1 / K)
    theirs, _ = scikit_learn_path(y, "full", weights, mu, covariance)
    model = ep.bind(mixture, y, "full", K)
    init = {"pi": weights, "mu": mu, "scale": scale}
    path = islice(ep.steps(model, ep.EM(), init=init), 1, NUM_STEPS + 1)
    assert_equal_paths(np.array([float(info.log_likelihood) for _, info in path]), theirs)


# -- hmmlearn -----------------------------------------------------------------------------------


def regimes(y, seen, family, K):
    """A hidden Markov chain per sequence, ragged lengths by a mask.

    Args:
        y: (T, B, ...) padded sequences.
        seen: (T, B) bool.
        family: of the emissions; see `emission`.
        K: number of states.
    """
    pi = numpyro.sample("pi", flat(constraints.simplex, (K,)))
    with numpyro.plate("from", K):
        A = numpyro.sample("A", flat(constraints.simplex, (K,)))
    emission = parameters_of(family, y, K)

    def body(carry, inputs):
        z, t = carry
        y, seen = inputs
        with numpyro.plate("sequences", y.shape[0]), numpyro.handlers.mask(mask=seen):
            z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, pi, A[z])))
            numpyro.sample("y", emission(z), obs=y)
        return (z, t + 1), None

    scan(body, (jnp.zeros(y.shape[1], int), 0), (y, seen))


def parameters_of(family, y, K):
    """Sample a family's parameters; gives the distribution of an observation in a state."""
    if family == "poisson":
        with numpyro.plate("states", K):
            rate = numpyro.sample("rate", flat(constraints.positive))
        return lambda z: dist.Poisson(rate[z])
    if family == "categorical":
        with numpyro.plate("states", K):
            probs = numpyro.sample("probs", flat(constraints.simplex, (4,)))
        return lambda z: dist.Categorical(probs[z])
    mu, scale = gaussian_parameters(family, K, y.shape[-1])
    return lambda z: gaussian(family, mu, scale, z)


def simulate(lengths, K, draw, rng):
    """Sequences from a chain: a list of arrays (T_b, ...)."""
    out = []
    for length in lengths:
        z = [int(rng.integers(K))]
        for _ in range(length - 1):
            z.append(z[-1] if rng.random() < 0.8 else int(rng.integers(K)))
        out.append(np.array([draw(k) for k in z]))
    return out


def padded(sequences):
    """(T, B, ...) with zeros after the end, and (T, B) whether an entry is data."""
    longest = max(map(len, sequences))
    y = np.zeros((longest, len(sequences), *sequences[0].shape[1:]), sequences[0].dtype)
    seen = np.zeros(y.shape[:2], bool)
    for b, s in enumerate(sequences):
        y[: len(s), b], seen[: len(s), b] = s, True
    return y, seen


def chain_start(K, rng):
    A = 0.6 * np.eye(K) + 0.4 * rng.dirichlet(np.ones(K), K)
    return {"pi": rng.dirichlet(np.ones(K) * 3), "A": A}


def hmmlearn_path(peer, init, sequences):
    """`monitor_.history`: the log-likelihood before each M-step."""
    peer.startprob_, peer.transmat_ = init["pi"], init["A"]
    rows = np.concatenate(sequences)
    rows = rows if rows.ndim == 2 else rows[:, None]
    peer.fit(rows, [len(s) for s in sequences])
    return np.array(peer.monitor_.history)


LENGTHS = {"one": (300,), "ragged": (80, 120, 37, 1)}
SETTINGS = {"n_iter": NUM_STEPS, "tol": -np.inf, "init_params": ""}


@pytest.mark.slow
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_hmm_follows_hmmlearn(kind, lengths):
    rng = np.random.default_rng(3)
    K, D = 3, 2
    centres = rng.normal(scale=1.5, size=(K, D))
    sequences = simulate(lengths, K, lambda k: centres[k] + rng.normal(size=D), rng)
    init = chain_start(K, rng)
    mu, scale, covariance = start(kind, K, D, rng)
    peer = GaussianHMM(
        K, kind, startprob_prior=1.0, transmat_prior=1.0, means_weight=0.0, covars_prior=0.0,
        covars_weight=0.0, min_covar=0.0, **SETTINGS,
    )  # fmt: skip
    peer.n_features = D
    peer.means_, peer.covars_ = mu, covariance
    theirs = hmmlearn_path(peer, init, sequences)
    model = ep.bind(regimes, *padded(sequences), kind, K)
    assert_equal_paths(log_likelihoods(model, {**init, "mu": mu, "scale": scale}), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_poisson_hmm_follows_hmmlearn(lengths):
    rng = np.random.default_rng(4)
    K = 2
    sequences = simulate(lengths, K, lambda k: rng.poisson((3.0, 11.0)[k]), rng)
    init, rate = chain_start(K, rng), np.array([4.0, 7.0])
    peer = PoissonHMM(K, lambdas_prior=0.0, lambdas_weight=0.0, **SETTINGS)
    peer.lambdas_ = rate[:, None]
    theirs = hmmlearn_path(peer, init, sequences)
    model = ep.bind(regimes, *padded(sequences), "poisson", K)
    assert_equal_paths(log_likelihoods(model, {**init, "rate": rate}), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_categorical_hmm_follows_hmmlearn(lengths):
    rng = np.random.default_rng(5)
    K, tables = 2, np.array([[0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.3, 0.5]])
    sequences = simulate(lengths, K, lambda k: rng.choice(4, p=tables[k]), rng)
    init, probs = chain_start(K, rng), rng.dirichlet(np.ones(4) * 5, K)
    peer = CategoricalHMM(K, emissionprob_prior=1.0, n_features=4, **SETTINGS)
    peer.emissionprob_ = probs
    theirs = hmmlearn_path(peer, init, sequences)
    model = ep.bind(regimes, *padded(sequences), "categorical", K)
    assert_equal_paths(log_likelihoods(model, {**init, "probs": probs}), theirs)
