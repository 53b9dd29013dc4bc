"""NumPyro's NUTS kernel in a loop that compiles once per structure of a program.

`numpyro.infer.MCMC` compiles again for every new data set. Here the model is an argument of jitted
functions at module level, static only in `Settings`: a second run, on other data of the same
shape, on other starts or of another length, compiles nothing.
"""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpyro.infer.hmc import hmc

from emprob.start_point import potential

CHUNK = 100  # transitions between two looks of the host


@dataclass(frozen=True)
class Settings:
    """What is static about a run of NUTS; runs with equal settings share compiled code."""

    num_warmup: int = 500
    dense_mass: bool = True
    target_accept: float = 0.8
    max_tree_depth: int = 10


class Draws(NamedTuple):
    """What every transition leaves behind; leading axes (chain, draw) once they are joined."""

    u: np.ndarray | Array
    num_steps: np.ndarray | Array
    diverging: np.ndarray | Array
    accept_prob: np.ndarray | Array
    potential: np.ndarray | Array
    energy: np.ndarray | Array
    step_size: np.ndarray | Array


@functools.cache
def _kernel(settings: Settings) -> tuple[Any, Any]:
    def potential_of(model: Any) -> Any:
        return functools.partial(potential, model)

    return hmc(potential_fn_gen=potential_of, algo="NUTS")


@functools.partial(jax.jit, static_argnums=0)
def _begin(settings: Settings, model: Any, chains: Array, covariance: Array, keys: Array) -> Any:
    """The state of every chain before its first transition; covariance (P, P), or (P,)."""
    init, _ = _kernel(settings)
    if settings.dense_mass:
        inverse_mass = covariance if covariance.ndim == 2 else jnp.diag(covariance)
    else:
        inverse_mass = jnp.diagonal(covariance) if covariance.ndim == 2 else covariance

    def one(u: Array, key: Array) -> Any:
        return init(
            u, settings.num_warmup, inverse_mass_matrix=inverse_mass, step_size=0.5,
            dense_mass=settings.dense_mass, target_accept_prob=settings.target_accept,
            max_tree_depth=settings.max_tree_depth, model_args=(model,), rng_key=key,
        )  # fmt: skip

    return lax.map(lambda x: one(*x), (chains, keys))


@functools.partial(jax.jit, static_argnums=0)
def _advance(settings: Settings, model: Any, states: Any, count: Array) -> Any:
    """`count` <= CHUNK transitions of every chain, one chain after the other.

    Under vmap every chain would wait for the longest trajectory, at every transition.
    """
    _, sample = _kernel(settings)

    def one(state: Any) -> tuple[Any, Draws]:
        empty = jax.tree.map(lambda x: jnp.zeros((CHUNK, *x.shape), x.dtype), _look(state))

        def step(i: Array, carry: tuple[Any, Draws]) -> tuple[Any, Draws]:
            state, draws = carry
            state = sample(state, (model,))
            return state, jax.tree.map(lambda all_, x: all_.at[i].set(x), draws, _look(state))

        return lax.fori_loop(0, count, step, (state, empty))

    return lax.map(one, states)


def _look(state: Any) -> Draws:
    return Draws(
        state.z, state.num_steps, state.diverging, state.accept_prob, state.potential_energy,
        state.energy, state.adapt_state.step_size,
    )  # fmt: skip


def ready(settings: Settings, model: Any, chains: Array, covariance: Array, keys: Array) -> Any:
    """Start the chains, and take no transition: what that costs is compiling."""
    states = _begin(settings, model, chains, covariance, keys)
    return jax.block_until_ready(_advance(settings, model, states, jnp.asarray(0)))[0]


def transitions(
    settings: Settings, model: Any, states: Any, num_samples: int, clock: dict, progress: bool
) -> Draws:
    """All transitions, warm-up included, as NumPy arrays (chain, draw, ...)."""
    parts: list[Draws] = []
    for phase, count in _schedule(settings.num_warmup, num_samples, progress):
        begun = time.perf_counter()
        states, draws = _advance(settings, model, states, jnp.asarray(count))
        parts.append(Draws(*[np.asarray(x)[:, :count] for x in draws]))
        clock[phase] += time.perf_counter() - begun
    clock["total"] = sum(clock.values())
    return Draws(*[np.concatenate(x, 1) for x in zip(*parts)])


def _schedule(num_warmup: int, num_samples: int, progress: bool) -> Iterator[tuple[str, int]]:
    from tqdm.auto import tqdm

    total = num_warmup + num_samples
    with tqdm(
        total=total, desc="NUTS", disable=not progress, leave=False, delay=1.0, mininterval=0.2
    ) as bar:
        for phase, length in (("warmup", num_warmup), ("sample", num_samples)):
            for begin in range(0, length, CHUNK):
                count = min(CHUNK, length - begin)
                yield phase, count
                bar.update(count)
