"""The chain's value and gradient beside hmmlearn's recursions, in one process on one thread.

Run ``python tests/benchmarks/bench_chain.py``. The first call of each is apart, warm calls go
round-robin, the minimum counts. hmmlearn's time is that of the forward and backward passes, the
posteriors and the transition statistics, from the same table of log-densities as ours. Whole EM
steps are in ``bench_em.py``.
"""

import resource
import sys
import time

from bench_em import race  # first: it sets one thread and float64 before JAX is imported

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np
from hmmlearn import _hmmc

from emprob.partition.chain import chain_factor


def tables(steps, num_states, batch, seed=0):
    """Initial law, transition matrix and Gaussian log-densities (T, K, B) of data."""
    rng = np.random.default_rng(seed)
    init = rng.dirichlet(np.ones(num_states))
    trans = 0.9 * np.eye(num_states) + 0.1 * rng.dirichlet(np.ones(num_states), num_states)
    centre = np.repeat(rng.integers(num_states, size=(steps // 10 + 1, batch)), 10, 0)[:steps]
    data = centre + rng.normal(size=(steps, batch))
    emit = -0.5 * (data[:, None] - np.arange(num_states)[:, None]) ** 2
    return init, trans, emit


def hmmlearn_log(init, trans, sequences):
    """The default implementation: log-space recursions in C++."""
    total, pairs = 0.0, 0.0
    for emit in sequences:
        value, forward = _hmmc.forward_log(init, trans, emit)
        backward = _hmmc.backward_log(init, trans, emit)
        gamma = forward + backward
        gamma = np.exp(gamma - gamma.max(1, keepdims=True))
        gamma /= gamma.sum(1, keepdims=True)
        pairs = pairs + np.exp(_hmmc.compute_log_xi_sum(forward, trans, backward, emit))
        total += value
    return total, pairs


def hmmlearn_scaling(init, trans, sequences):
    """The fast implementation: scaled probabilities in C++."""
    total, pairs = 0.0, 0.0
    for emit in sequences:
        density = np.exp(emit)
        value, forward, scaling = _hmmc.forward_scaling(init, trans, density)
        backward = _hmmc.backward_scaling(init, trans, density, scaling)
        gamma = forward * backward
        gamma /= gamma.sum(1, keepdims=True)
        pairs = pairs + _hmmc.compute_scaling_xi_sum(forward, trans, backward, density)
        total += value
    return total, pairs


@jax.jit
@jax.value_and_grad
def chain(parts):
    log_init, log_trans, log_emit = parts
    beta = chain_factor(log_trans, log_emit[1:])
    return jnp.sum(jax.nn.logsumexp(log_init[:, None] + log_emit[0] + beta, 0))


def compare(steps, num_states, batch, rounds):
    """One line: milliseconds of each and our ratios to hmmlearn's two implementations."""
    init, trans, emit = tables(steps, num_states, batch)
    sequences = [np.ascontiguousarray(emit[:, :, b]) for b in range(batch)]
    parts = jax.tree.map(jnp.array, (np.log(init), np.log(trans), emit))
    calls = {
        "emprob": lambda: jax.block_until_ready(chain(parts)),
        "log": lambda: hmmlearn_log(init, trans, sequences),
        "scaling": lambda: hmmlearn_scaling(init, trans, sequences),
    }
    best, values = race(calls, rounds)
    for peer in ("log", "scaling"):
        np.testing.assert_allclose(values["emprob"][0], values[peer][0], rtol=1e-9)
        np.testing.assert_allclose(values["emprob"][1][1], values[peer][1], rtol=1e-6, atol=1e-6)
    ours, log, scaling = (best[name][0] for name in calls)
    print(
        f"T={steps:<7} K={num_states:<2} B={batch:<4} emprob {1e3 * ours:8.3f} ms "
        f"(cpu {1e3 * best['emprob'][1]:8.3f})  log {1e3 * log:8.2f}  scaling {1e3 * scaling:8.2f}"
        f"  ratio to log {ours / log:.3f}, to scaling {ours / scaling:.3f}",
        flush=True,
    )


def timed(fun, *args, rounds=10):
    jax.block_until_ready(fun(*args))
    best = np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(fun(*args))
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def variations():
    """A mask, a transition varying in time, a left-right chain, eight starts: emprob alone."""
    init, trans, emit = tables(100_000, 3, 1)
    log_init, log_trans, emit = jnp.log(init), jnp.log(trans), jnp.array(emit[:, :, 0])

    def scalar(log_trans, emit, active=None):
        return jax.nn.logsumexp(log_init + chain_factor(log_trans, emit, active))

    fun = jax.jit(jax.value_and_grad(scalar, (0, 1)))
    active = jnp.arange(100_000) < 90_000
    varying = jnp.broadcast_to(log_trans, (100_000, 3, 3)) + 0.0
    one_way = jnp.where(jnp.tril(jnp.ones((3, 3), bool), -1), -jnp.inf, log_trans)
    one = timed(fun, log_trans, emit)
    masked, moving = timed(fun, log_trans, emit, active), timed(fun, varying, emit)
    print(f"T=100000 K=3: plain {one:.2f} ms, masked {masked:.2f} ms, varying {moving:.2f} ms")
    print(f"  varying and masked {timed(fun, varying, emit, active):.2f} ms")
    print(f"  left-right (log-space fallback) {timed(fun, one_way, emit):.2f} ms")
    starts = jnp.stack([log_trans + 0.01 * i for i in range(8)])
    tilted = jnp.stack([emit * (1.0 + 0.01 * i) for i in range(8)])
    batch = timed(jax.jit(jax.vmap(jax.value_and_grad(scalar, (0, 1)))), starts, tilted)
    print(f"  vmap over 8 starts {batch:.2f} ms = {batch / one:.2f} times one")
    hessian = timed(jax.jit(jax.hessian(lambda a: scalar(a, emit))), log_trans, rounds=3)
    print(f"  Hessian in the 9 transition entries {hessian:.1f} ms = {hessian / one:.1f} gradients")


def memory():
    """Peak resident growth of T = 1e6, K = 5, with the compiler's own account of it."""
    init, trans, emit = tables(1_000_000, 5, 1)
    parts = jax.tree.map(jnp.array, (np.log(init), np.log(trans), emit))
    del emit
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    compiled = chain.lower(parts).compile()
    stats = compiled.memory_analysis()
    jax.block_until_ready(compiled(parts))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    temp, out = stats.temp_size_in_bytes / 2**20, stats.output_size_in_bytes / 2**20
    print(f"T=1e6 K=5: temporaries {temp:.0f} MB, output {out:.0f} MB, peak grew {grown:.0f} MB")


def main(rounds=20):
    memory()
    for steps, num_states, batch in [(1000, 2, 1), (100_000, 3, 1), (100_000, 8, 1)]:
        compare(steps, num_states, batch, rounds)
    compare(1000, 3, 100, rounds)
    variations()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
