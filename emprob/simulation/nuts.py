"""Draws of the latents by NumPyro's NUTS, its chains kept from one E-step to the next."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpyro.infer.hmc import hmc

from emprob.model import LatentModel
from emprob.simulation.target import Target, potential_of, targets
from emprob.types import Atoms, Params


class Chains(NamedTuple):
    """Of one target: NumPyro's states of all lanes (C * L), and the latents where they stand."""

    states: Any
    own: Any


@dataclass(frozen=True)
class NUTS:
    """NUTS on the latents given data and parameters.

    Series that are independent given the parameters are sampled as lanes of one batch, each with
    its own step size. Where the latents have a mode, the coordinates are those of the Gaussian
    around it at the current parameters, in which a long chain is as easy as a short one.

    Attributes:
        num_chains: independent chains; their means tell the Monte Carlo error.
        num_warmup: transitions before the first E-step, which adapt step size and mass matrix.
        num_discarded: transitions at the start of each E-step that forget the last parameters.
        max_tree_depth: of a trajectory.
    """

    num_chains: int = 16
    num_warmup: int = 100
    num_discarded: int = 2
    max_tree_depth: int = 8

    @property
    def num_batches(self) -> int:
        return self.num_chains

    @property
    def evidence(self) -> bool:
        """Whether the draws come with an estimate of log Z."""
        return False

    def init(self, model: LatentModel, params: Params, key: Array) -> list[Chains]:
        """Chains that have forgotten where they began."""
        found = []
        for target, k in zip(targets(model, params), _keys(key)):
            found.append(self._warm(target, k))
        return found

    def draw(
        self, model: LatentModel, params: Params, state: list[Chains], key: Array, num: int
    ) -> tuple[Atoms, Array, list[Chains]]:
        """`num` draws by site, (num, ...), chain after chain; NaN; and the chains after them."""
        atoms: Atoms = {}
        after = []
        for target, chain in zip(targets(model, params), state, strict=True):
            drawn, chain = self._draw(target, chain, -(-num // self.num_chains))
            atoms |= drawn
            after.append(chain)
        return atoms, jnp.full((), jnp.nan), after

    def _warm(self, target: Target, key: Array) -> Chains:
        init, sample = _kernel(self)
        lanes, width = target.start.shape
        potential = potential_of(target, self.num_chains)
        first, second = jax.random.split(key)
        noise = jax.random.normal(first, (self.num_chains * lanes, width), target.start.dtype)
        u = jnp.tile(target.start, (self.num_chains, 1)) + 0.5 * noise
        keys = jax.random.split(second, len(u))

        def begin(u: Array, key: Array) -> Any:
            return init(
                u, self.num_warmup, step_size=0.5, model_args=(potential,), rng_key=key,
                max_tree_depth=self.max_tree_depth,
            )  # fmt: skip

        states = jax.vmap(begin)(u, keys)
        step = jax.vmap(lambda s: sample(s, (potential,)))
        states = lax.fori_loop(0, self.num_warmup, lambda _, s: step(s), states)
        return Chains(states, target.own(self._shaped(states.z, lanes)))

    def _draw(self, target: Target, chains: Chains, num: int) -> tuple[Atoms, Chains]:
        _, sample = _kernel(self)
        lanes = target.start.shape[0]
        potential = potential_of(target, self.num_chains)
        step = jax.vmap(lambda s: sample(s, (potential,)))
        u = target.coordinates(chains.own).reshape(chains.states.z.shape)
        states = _moved(chains.states, u, potential)
        states = lax.fori_loop(0, self.num_discarded, lambda _, s: step(s), states)

        def one(states: Any, _: None) -> tuple[Any, dict[str, Array]]:
            states = step(states)
            return states, target.values(self._shaped(states.z, lanes))

        states, drawn = lax.scan(one, states, None, length=num)
        atoms = {k: jnp.swapaxes(v, 0, 1).reshape(-1, *v.shape[2:]) for k, v in drawn.items()}
        return atoms, Chains(states, target.own(self._shaped(states.z, lanes)))

    def _shaped(self, u: Array, lanes: int) -> Array:
        return u.reshape(self.num_chains, lanes, -1)


def _moved(states: Any, u: Array, potential: Any) -> Any:
    """The states at other coordinates, of another density."""
    value, slope = jax.vmap(jax.value_and_grad(potential))(u)
    return states._replace(z=u, potential_energy=value, z_grad=slope)


@functools.cache
def _kernel(settings: NUTS) -> tuple[Any, Any]:
    return hmc(potential_fn_gen=lambda potential: potential, algo="NUTS")


def _keys(key: Array):
    while True:
        key, one = jax.random.split(key)
        yield one
