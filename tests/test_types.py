"""Shapes and dtypes of the main array functions, checked by jaxtyping and beartype.

Each wrapper states a contract; a call with arrays that break it raises. Within one wrapper a letter
stands for one size, so that the letters of arguments and results are compared with one another.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from beartype import beartype
from jax import Array
from jaxtyping import Bool, Float, TypeCheckError, jaxtyped
from numpyro.contrib.control_flow import scan

import emprob as ep
from emprob.families import family_of
from emprob.model import contract
from emprob.objective import expected_log_joint
from emprob.partition.chain import chain_factor
from emprob.partition.reduce import log_sum_exp
from emprob.posterior import marginals
from emprob.space import LogRatioTransform
from emprob.types import Posterior

typed = partial(jaxtyped, typechecker=beartype)

T, K, B, N, D = 7, 3, 2, 11, 4  # all different: no letter can stand for another by chance
RNG = np.random.default_rng(20260101)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def simplex(*shape):
    return jnp.asarray(RNG.dirichlet(np.ones(shape[-1]), shape[:-1]))


# -- the checker itself -------------------------------------------------------------------------


@typed
def transposed(x: Float[Array, "a b"]) -> Float[Array, "b a"]:
    return x.T


@typed
def not_transposed(x: Float[Array, "a b"]) -> Float[Array, "b a"]:
    return x


def test_the_checker_sees_wrong_shapes_and_dtypes():
    assert transposed(normal(2, 3)).shape == (3, 2)
    with pytest.raises(TypeCheckError):
        not_transposed(normal(2, 3))
    with pytest.raises(TypeCheckError):
        transposed(normal(2, 3, 4))
    with pytest.raises(TypeCheckError):
        transposed(jnp.zeros((2, 3), int))


# -- chain_factor -------------------------------------------------------------------------------


@typed
def chain_fixed(
    trans: Float[Array, "K K"], emit: Float[Array, "T K"], active: Bool[Array, " T"] | None
) -> Float[Array, " K"]:
    return chain_factor(trans, emit, active)


@typed
def chain_varying(
    trans: Float[Array, "T K K"], emit: Float[Array, "T K"], active: Bool[Array, " T"] | None
) -> Float[Array, " K"]:
    return chain_factor(trans, emit, active)


@typed
def chains_sharing(
    trans: Float[Array, "K K"], emit: Float[Array, "T K B"], active: Bool[Array, "T B"] | None
) -> Float[Array, "K B"]:
    return chain_factor(trans, emit, active)


@typed
def chains_apart(
    trans: Float[Array, "T K K B"], emit: Float[Array, "T K B"], active: Bool[Array, "T B"] | None
) -> Float[Array, "K B"]:
    return chain_factor(trans, emit, active)


CHAINS = {
    "one table": (chain_fixed, (K, K), (T, K), (T,)),
    "a table a step": (chain_varying, (T, K, K), (T, K), (T,)),
    "one table, a batch": (chains_sharing, (K, K), (T, K, B), (T, B)),
    "a table a step and sequence": (chains_apart, (T, K, K, B), (T, K, B), (T, B)),
}


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("case", CHAINS)
def test_chain_factor(case, masked):
    function, trans, emit, active = CHAINS[case]
    live = jnp.asarray(RNG.random(active) < 0.6) if masked else None
    assert jnp.isfinite(function(normal(*trans), normal(*emit), live)).all()


@typed
def chain_weights(
    trans: Float[Array, "K K"], emit: Float[Array, "T K"]
) -> tuple[Float[Array, "K K"], Float[Array, "T K"]]:
    return jax.grad(lambda t, e: jax.nn.logsumexp(chain_factor(t, e)), argnums=(0, 1))(trans, emit)


@pytest.mark.slow
def test_gradient_of_chain_factor_is_a_weight_for_each_cell():
    pairs, singles = chain_weights(normal(K, K), normal(T, K))
    np.testing.assert_allclose(singles.sum(1), np.ones(T), rtol=1e-12)
    np.testing.assert_allclose(pairs.sum(), T, rtol=1e-12)


def test_chain_factor_keeps_single_precision():
    out = chain_factor(normal(K, K).astype(jnp.float32), normal(T, K).astype(jnp.float32))
    assert out.dtype == jnp.float32


# -- elimination and contraction ----------------------------------------------------------------


@typed
def eliminated_first(x: Float[Array, "a b c"]) -> Float[Array, "1 b c"]:
    return log_sum_exp(x, 0)


@typed
def eliminated_middle(x: Float[Array, "a b c"]) -> Float[Array, "a 1 c"]:
    return log_sum_exp(x, 1)


@typed
def eliminated_last(x: Float[Array, "a b c"]) -> Float[Array, "a b 1"]:
    return log_sum_exp(x, -1)


@pytest.mark.parametrize(
    ("function", "axis"), [(eliminated_first, 0), (eliminated_middle, 1), (eliminated_last, -1)]
)
def test_log_sum_exp_keeps_the_axis(function, axis):
    x = normal(2, 3, 4)
    whole = jax.nn.logsumexp(x, axis, keepdims=True)
    np.testing.assert_allclose(function(x), whole, rtol=1e-13)


@typed
def contracted_cells(
    natural: Float[Array, "K 1 P"], statistics: Float[Array, "1 N P"]
) -> Float[Array, "K N"]:
    return contract(natural, statistics)


@typed
def contracted_rows(
    natural: Float[Array, "N P"], statistics: Float[Array, "N P"]
) -> Float[Array, " N"]:
    return contract(natural, statistics)


@typed
def contracted_shared(
    natural: Float[Array, "1 1 P"], statistics: Float[Array, "1 N P"]
) -> Float[Array, "1 N"]:
    return contract(natural, statistics)


@pytest.mark.parametrize(
    ("function", "a", "b"),
    [
        (contracted_cells, (K, 1, D), (1, N, D)),
        (contracted_rows, (N, D), (N, D)),
        (contracted_shared, (1, 1, D), (1, N, D)),
    ],
)
def test_contract_broadcasts_all_but_the_last_axis(function, a, b):
    natural, statistics = normal(*a), normal(*b)
    np.testing.assert_allclose(
        function(natural, statistics), (natural * statistics).sum(-1), rtol=1e-12
    )


# -- families -----------------------------------------------------------------------------------


@typed
def scalar_family(
    d: dist.Distribution, x: Float[Array, "N 1"]
) -> tuple[Float[Array, "N 1 P"], Float[Array, "K P"], Float[Array, " K"]]:
    """Statistics, natural parameters, log-normalizer of K laws of a number."""
    family = family_of(d)
    eta, log_normalizer = family.natural(d, 0.0)
    return family.statistics(d, x, 0.0), eta, log_normalizer


@typed
def vector_family(
    d: dist.Distribution, x: Float[Array, "N 1 D"]
) -> tuple[Float[Array, "N 1 P"], Float[Array, "K P"], Float[Array, " K"]]:
    """The same for laws of a vector."""
    family = family_of(d)
    eta, log_normalizer = family.natural(d, jnp.zeros(x.shape[-1]))
    return family.statistics(d, x, jnp.zeros(x.shape[-1])), eta, log_normalizer


def covariances():
    root = normal(K, D, D)
    return root @ root.swapaxes(-1, -2) + jnp.eye(D)


SCALARS = {
    "Normal": lambda: dist.Normal(normal(K), jnp.exp(normal(K))),
    "Gamma": lambda: dist.Gamma(jnp.exp(normal(K)), jnp.exp(normal(K))),
}


@pytest.mark.parametrize("name", SCALARS)
def test_family_of_numbers(name):
    d, x = SCALARS[name](), jnp.exp(normal(N, 1))
    statistics, eta, log_normalizer = scalar_family(d, x)
    base = family_of(d).log_base(d, x)
    density = (statistics * eta).sum(-1) - log_normalizer + base
    np.testing.assert_allclose(density, d.log_prob(x), rtol=1e-10)


@pytest.mark.slow
def test_family_of_vectors():
    d, x = dist.MultivariateNormal(normal(K, D), covariances()), normal(N, 1, D)
    statistics, eta, log_normalizer = vector_family(d, x)
    base = family_of(d).log_base(d, x)
    density = (statistics * eta).sum(-1) - log_normalizer + base
    np.testing.assert_allclose(density, d.log_prob(x), rtol=1e-10)


# -- the two spaces -----------------------------------------------------------------------------


@typed
def log_ratios(p: Float[Array, "N K"]) -> Float[Array, "N K-1"]:
    return LogRatioTransform().inv(p)


def test_a_simplex_row_has_one_coordinate_less():
    p = simplex(N, K)
    np.testing.assert_allclose(LogRatioTransform()(log_ratios(p)), p, rtol=1e-12)


# -- weights of an E-step -----------------------------------------------------------------------


def mixture(x):
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(K)))
    with numpyro.plate("components", K):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Categorical(share))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def regimes(x):
    with numpyro.plate("components", K):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        A = numpyro.sample("A", dist.Dirichlet(jnp.ones(K)))

    def step(z, x):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
        return z, None

    scan(step, 0, x)


START = {
    mixture: {"share": simplex(K), "mu": normal(K)},
    regimes: {"mu": normal(K), "A": simplex(K, K)},
}


@typed
def posterior_of(model: ep.LatentModel, params: dict[str, Float[Array, "..."]]) -> Posterior:
    return ep.Enumerate()(model, params)


@typed
def scalar(x: Float[Array, ""]) -> Float[Array, ""]:
    return x


@typed
def paired(weight: Float[Array, "*cells"], natural: Float[Array, "*cells"]) -> None:
    """A weight for each cell of a log-factor: the same letters, the same sizes."""


@typed
def weights_of_rows(probs: Float[np.ndarray, "{rows} {states}"], rows: int, states: int) -> None:
    """One row of probabilities for each element of a plate or step of a chain."""


@pytest.mark.slow
@pytest.mark.parametrize(("program", "rows"), [(mixture, N), (regimes, T)])
def test_posterior_weights_have_the_shapes_of_the_naturals(program, rows):
    model = ep.bind(program, np.asarray(normal(rows)))
    params = START[program]
    posterior = posterior_of(model, params)
    terms = model.evaluate(params).terms
    scalar(posterior.log_partition)
    scalar(expected_log_joint(model, params, posterior))
    assert posterior.weights.keys() == terms.keys()
    for name, term in terms.items():
        paired(posterior.weights[name], term.natural)
    probs = marginals(model, params)["z"].probs
    weights_of_rows(probs, rows, K)
    np.testing.assert_allclose(probs.sum(-1), np.ones(rows), rtol=1e-10)
