"""Expectation-maximisation: an E-step and an M-step, composed."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from emprob.estep.auto import Auto as AutoEStep
from emprob.model import LatentModel
from emprob.mstep.auto import Auto as AutoMStep
from emprob.objective import dot, score, subtract
from emprob.simulation.draws import increase
from emprob.types import EStep, Info, MStep, Params, SimulatedEStep, State


@dataclass(frozen=True)
class EM:
    """E-step, M-step, repeat.

    Attributes:
        estep: gives the weights. `ep.Auto()` chooses by the program; those by simulation
            (`ep.MonteCarlo()`, `ep.SAEM()`, `ep.Particle()`, `ep.Variational()`) are asked for.
        mstep: does not decrease Q + log prior. `ep.Auto()` chooses by the program.
    """

    estep: EStep = field(default_factory=AutoEStep)
    mstep: MStep = field(default_factory=AutoMStep)

    def __post_init__(self):
        from emprob.auto import Auto

        if isinstance(self.estep, Auto):
            object.__setattr__(self, "estep", AutoEStep())
        if isinstance(self.mstep, Auto):
            object.__setattr__(self, "mstep", AutoMStep())
        parts: list[tuple[str, Any, Any]] = [
            ("estep", self.estep, EStep | SimulatedEStep),
            ("mstep", self.mstep, MStep),
        ]
        for name, part, kind in parts:
            if not isinstance(part, kind) or isinstance(part, type):
                what = {"estep": "EStep", "mstep": "MStep"}[name]
                raise ValueError(f"EM({name}={part!r}): expected an {what} such as ep.Auto().")

    @property
    def noisy(self) -> bool:
        """Whether the E-step draws anew at every step."""
        return isinstance(self.estep, SimulatedEStep)

    def init(self, model: LatentModel, params: Params, key: Array | None = None) -> State:
        if isinstance(self.estep, SimulatedEStep):
            assert key is not None
            return State(params, self.estep.init(model, params, key))
        return State(params, jnp.full((), jnp.nan))

    def map(self, model: LatentModel, params: Params) -> tuple[Params, "Step"]:
        """One EM map, and what it saw on the way."""
        posterior = self.estep(model, params)
        u = model.unconstrain(params)
        gradient, log_prior = score(model, u, posterior)
        new = self.mstep(model, params, posterior)
        move = subtract(model.unconstrain(new), u)
        return new, Step(posterior.log_partition, log_prior, u, gradient, move)

    def step(self, model: LatentModel, state: State) -> tuple[State, Info]:
        if isinstance(self.estep, SimulatedEStep):
            return noisy_step(model, self.estep, self.mstep, state)
        new, step = self.map(model, state.params)
        gain = step.gain
        info = make_info(step, gain, state.memory, 1)
        return State(new, gain), info


def noisy_step(
    model: LatentModel, estep: SimulatedEStep, mstep: MStep, state: State
) -> tuple[State, Info]:
    """Draw, maximise, and take the step if what it promises is more than noise.

    The promise is the mean over draws of log p(y, z | new) - log p(y, z | old), which no increase
    of the log-likelihood falls short of (Jensen's inequality).
    """
    old = state.params
    posterior, memory = estep.update(model, old, state.memory)
    new = estep.confined(model, old, mstep(model, old, posterior), memory)
    atoms = {k: v for group in posterior.atoms for k, v in group.items()}
    rises = increase(model, old, new, atoms)
    log_prior = model.log_prior(old)
    gain, error = estep.promise(rises, memory)
    gain = gain + model.log_prior(new) - log_prior
    taken = estep.adopts(gain, error)
    params = {k: jnp.where(taken, new[k], old[k]) for k in old}
    value, nan = posterior.log_partition, jnp.full((), jnp.nan)
    distance = jnp.sqrt(2.0 * jnp.maximum(gain, 0.0))
    info = Info(value + log_prior, value, gain, nan, distance, jnp.asarray(1), error)
    return State(params, memory), info


class Step(NamedTuple):
    """One EM map from `u`: the score there, and the move it made (unconstrained)."""

    log_likelihood: Array
    log_prior: Array
    u: Params
    score: Params
    move: Params

    @property
    def objective(self) -> Array:
        """Log-posterior, or log-likelihood without prior."""
        return self.log_likelihood + self.log_prior

    @property
    def gain(self) -> Array:
        """Score times move: twice the first-order promise of the complete-data quadratic."""
        return dot(self.score, self.move)


def make_info(step: Step, gain: Array, previous_gain: Array, num_maps: int) -> Info:
    """What to tell of a step: the distance to the optimum is estimated from two gains.

    With I_c the complete-data information and r EM's rate, score' I_c^-1 score = gain, and the
    distance in standard errors is sqrt(gain / (1 - r)); the ratio of two gains is r^2. Where the
    M-step did not move, or not uphill, its gain says nothing: the score alone does, in units in
    which the information of an observation is about one.
    """
    rate = gain / previous_gain
    r = jnp.sqrt(jnp.clip(jnp.where(jnp.isfinite(rate), rate, 0.9999), 0.0, 0.9999))
    plain = jnp.sqrt(dot(step.score, step.score) / (1.0 + jnp.abs(step.objective)))
    distance = jnp.where(gain > 0, jnp.sqrt(jnp.maximum(gain, 0.0) / (1.0 - r)), plain)
    return Info(
        step.objective,
        step.log_likelihood,
        gain,
        rate,
        distance,
        jnp.asarray(num_maps),
    )
