"""Deterministic annealing: EM from a smoothed posterior to the real one."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.accelerate.anderson import Anderson
from emprob.accelerate.composition import check_share, em_of
from emprob.accelerate.damped import Damped
from emprob.accelerate.handover import HandOver, of_one_type
from emprob.accelerate.quasi_newton import QuasiNewton
from emprob.accelerate.squarem import Squarem
from emprob.em import EM, Step, make_info
from emprob.errors import ModelError
from emprob.estep.auto import Auto
from emprob.estep.enumerate import Enumerate, log_partition_of, posterior_of
from emprob.evaluation import Evaluation
from emprob.model import LatentModel
from emprob.objective import score, subtract
from emprob.types import Info, Params, State


class _Memory(NamedTuple):
    """The inner method's memory, and the steps so far (no further than it matters)."""

    inner: Any
    count: Array


@dataclass(frozen=True)
class Annealed:
    """EM whose posterior is flat at first: proportional to p(y, z | params)^beta, beta rising to 1.

    A flat posterior blurs the optima that depend on the start. One EM step is taken at each of
    `beta = start, start * growth, ...`; from beta = 1 on it is the method as it is. While beta < 1
    the objective, which is told as it is at beta = 1, may fall, and no distance to the optimum is
    told (inf). At a low beta all components become one; a little noise on the log-probabilities,
    the same in every run, lets them part again as beta rises.

    Attributes:
        method: an EM whose latents are discrete, or an accelerator of one.
        start: the first beta, between 0 and 1.
        growth: of beta at each step, above 1.
        jitter: standard deviation of the noise; none from beta = 1 on.

    Source: Ueda & Nakano (1998), Neural Networks 11(2), section 3; Rose (1998), Proceedings of the
    IEEE 86(11), for the noise.
    """

    method: EM | Squarem | Anderson | QuasiNewton | Damped | HandOver = field(default_factory=EM)
    start: float = 0.2
    growth: float = 1.1
    jitter: float = 0.01

    def __post_init__(self):
        em = self._em
        if not isinstance(em.estep, Auto | Enumerate):
            raise ValueError(
                f"Annealed over {em.estep!r}: only sums over discrete latents are annealed. Use "
                "ep.Enumerate() or ep.Auto(), or several starts: ep.fit(..., num_starts=10)."
            )
        check_share("Annealed", "start", self.start, 0.0, 1.0)
        check_share("Annealed", "growth", self.growth, 1.0, float("inf"))
        if not 0.0 <= self.jitter < float("inf"):
            raise ValueError(f"Annealed(jitter={self.jitter!r}): expected a number >= 0.")

    @property
    def _em(self) -> EM:
        return em_of("Annealed", self.method, (Squarem, Anderson, QuasiNewton, Damped, HandOver))

    @property
    def warmup(self) -> int:
        """Steps until beta is 1."""
        return math.ceil(-math.log(self.start) / math.log(self.growth))

    @property
    def onward(self) -> Any:
        """The method that goes on with a run that has been annealed."""
        return self.method

    def may_fall(self, state: State) -> Array:
        """Whether a step with beta < 1, which may lower the objective, led to the state."""
        return state.memory.count <= self.warmup

    def init(self, model: LatentModel, params: Params) -> State:
        if model.structure.continuous:
            names = ", ".join(map(repr, model.structure.continuous))
            raise ModelError(
                f"Annealed: {names} is continuous; only sums over discrete latents are annealed. "
                "Use several starts instead: ep.fit(..., num_starts=10)."
            )
        return State(params, _Memory(self.method.init(model, params).memory, jnp.zeros((), int)))

    def step(self, model: LatentModel, state: State) -> tuple[State, Info]:
        """One step at the state's beta; both kinds are compiled, one runs."""
        tempered = state.memory.count < self.warmup
        return jax.lax.cond(tempered, self._tempered, self._plain, model, state)

    def _plain(self, model: LatentModel, state: State) -> tuple[State, Info]:
        inner, count = state.memory
        new, info = self.method.step(model, State(state.params, inner))
        count = jnp.full_like(count, self.warmup + 1)
        return State(new.params, _Memory(new.memory, count)), of_one_type(info)

    def _tempered(self, model: LatentModel, state: State) -> tuple[State, Info]:
        params, (inner, count) = state
        out = model.evaluate(params)
        beta = self.start * self.growth**count
        key = jax.random.fold_in(jax.random.key(0), count)
        posterior = posterior_of(jittered(tempered(out, beta), self.jitter, key))
        u = model.unconstrain(params)
        slope, log_prior = score(model, u, posterior)
        new = self._em.mstep(model, params, posterior)
        move = subtract(model.unconstrain(new), u)
        step = Step(log_partition_of(out), log_prior, u, slope, move)
        far = jnp.full_like(step.gain, jnp.inf)
        info = make_info(step, step.gain, 0.0 * far, 2)._replace(score_norm=far)
        return State(new, _Memory(inner, count + 1)), of_one_type(info)


def tempered(out: Evaluation, beta: Array) -> Evaluation:
    """The program with all its log-factors times beta."""
    terms = {
        k: t._replace(natural=beta * t.natural, offset=beta * t.offset)
        for k, t in out.terms.items()
    }
    return replace(out, terms=terms)


def jittered(out: Evaluation, size: float, key: Array) -> Evaluation:
    """The program with noise on the log-probability of every value of every latent."""
    terms = dict(out.terms)
    for name, spec in out.specs.items():
        if spec.own is None:
            continue
        key, own = jax.random.split(key)
        variable = out.variables[spec.own]
        sizes = {variable.dim: variable.size}
        sizes |= {out.plates[p].dim: out.plates[p].size for p in spec.plates}
        rank = max(terms[name].offset.ndim, *(-d for d in sizes))
        shape = [sizes.get(d, 1) for d in range(-rank, 0)]
        noise = size * jax.random.normal(own, shape, terms[name].natural.dtype)
        terms[name] = terms[name]._replace(offset=terms[name].offset + noise)
    return replace(out, terms=terms)
