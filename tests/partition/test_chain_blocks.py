"""A long chain in blocks of time gives what the step-by-step recursion and log-space give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emprob.partition import chain_blocks as blocks
from emprob.partition.chain import canonical, chain_factor
from emprob.partition.chain_log import log_value, log_weights


def tables(steps, num_states, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    trans = 0.8 * np.eye(num_states) + 0.2 * rng.dirichlet(np.ones(num_states), num_states)
    return jnp.log(trans), jnp.asarray(spread * rng.normal(size=(steps, num_states)))


def value_and_weights(log_trans, log_emit, cotangent):
    value = lambda a, e: cotangent @ chain_factor(a, e)  # noqa: E731
    return jax.jit(jax.value_and_grad(value, (0, 1)))(log_trans, log_emit)


def in_log_space(log_trans, log_emit, cotangent):
    table, emit, _ = canonical(log_trans, log_emit, None)
    value = cotangent @ log_value(table, emit, None)[:, 0]
    pairs, marginals = log_weights(table, emit, None, cotangent[:, None])
    return value, (pairs[0, :, :, 0], marginals[:, :, 0])


def assert_close(ours, theirs, rtol=1e-9, atol=1e-11):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


@pytest.fixture(autouse=True)
def _short_chains_too(monkeypatch):
    monkeypatch.setattr(blocks, "MIN_STEPS", 64)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [64, 150, 257, 401])
@pytest.mark.parametrize("num_states", [1, 2, 3, 4, 8])
def test_blocks_equal_log_space(steps, num_states):
    log_trans, log_emit = tables(steps, num_states)
    assert blocks.suits(*canonical(log_trans, log_emit, None))
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=num_states))  # of either sign
    ours = value_and_weights(log_trans, log_emit, cotangent)
    assert_close(ours, in_log_space(log_trans, log_emit, cotangent))


def test_lengths_with_and_without_a_tail_are_covered():
    tails = {steps % blocks.num_blocks(steps) == 0 for steps in (64, 150, 257, 401)}
    assert tails == {True, False}


@pytest.mark.parametrize("num_states", [2, 3])
def test_splitting_and_joining_is_the_identity(num_states):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(203, num_states, 1)))
    np.testing.assert_array_equal(blocks.join(blocks.split(x)), x)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [50.0, 400.0])
def test_extreme_densities_fall_back_to_log_space(spread):
    log_trans, log_emit = tables(203, 3, spread=spread)
    cotangent = jnp.array([0.2, 0.5, 0.3])
    ours = value_and_weights(log_trans, log_emit, cotangent)
    assert_close(ours, in_log_space(log_trans, log_emit, cotangent))


@pytest.mark.slow
def test_a_chain_that_only_moves_on():
    """States that cannot return, and data that speak for the wrong one for a long while."""
    log_trans = jnp.log(jnp.array([[0.99, 0.01, 0.0], [0.0, 0.98, 0.02], [0.0, 0.0, 1.0]]))
    _, log_emit = tables(260, 3, spread=1.0)
    log_emit = log_emit.at[20:120, 2].add(30.0)
    cotangent = jnp.array([1.0, 0.0, 0.0])
    ours = value_and_weights(log_trans, log_emit, cotangent)
    assert_close(ours, in_log_space(log_trans, log_emit, cotangent))


def test_impossible_data():
    log_trans, log_emit = tables(128, 2)
    log_emit = log_emit.at[77].set(-jnp.inf)
    value, weights = value_and_weights(log_trans, log_emit, jnp.array([0.5, 0.5]))
    assert value == -jnp.inf
    assert all(np.isfinite(w).all() for w in weights)


def test_a_message_that_no_step_confirms_is_not_trusted():
    """The blocks' entry messages are checked against the masses found step by step."""
    first = jnp.array([[0.3, 0.2], [0.3, 0.6]])
    entries = jnp.array([[0.25, 0.5], [0.75, 0.5]])
    assert not blocks.disagree(first, entries)
    assert blocks.disagree(first, entries.at[0, 0].add(1e-5))


@pytest.mark.slow
def test_single_precision():
    log_trans, log_emit = (x.astype(jnp.float32) for x in tables(300, 3))
    cotangent = jnp.ones(3, jnp.float32)
    value, weights = value_and_weights(log_trans, log_emit, cotangent)
    assert value.dtype == jnp.float32
    exact = in_log_space(*(x.astype(jnp.float64) for x in (log_trans, log_emit, cotangent)))
    assert_close((value, weights), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_second_derivatives_and_batches():
    log_trans, log_emit = tables(100, 2)
    value = lambda a: chain_factor(a, log_emit).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(value))
    step = 1e-5 * jnp.array([[1.0, -1.0], [0.5, 2.0]])
    numeric = (gradient(log_trans + step) - gradient(log_trans - step)) / 2
    product = jax.jvp(jax.grad(value), (log_trans,), (step,))[1]
    np.testing.assert_allclose(product, numeric, rtol=1e-6)
    starts = jnp.stack([log_trans, log_trans.T])
    batch = jax.jit(jax.vmap(jax.grad(value)))(starts)
    assert_close(batch, jnp.stack([gradient(x) for x in starts]))
