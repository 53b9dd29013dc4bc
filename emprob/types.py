"""The vocabulary: what steps pass to one another, and how a run can end."""

import enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax import Array

Params = dict[str, Array]
Atoms = dict[str, Array]  # by continuous latent, (A, ...)


class Posterior(NamedTuple):
    """What an E-step says at one value of the parameters.

    Attributes:
        log_partition: log Z = log p(data | params), scalar.
        weights: by log-factor, d log Z / d natural: the expected statistics. Where a natural
            depends on continuous latents, with a first axis of their atoms.
        atoms: for each group of continuous latents, its atoms (A, ...) by site.
    """

    log_partition: Array
    weights: dict[str, Array]
    atoms: tuple[Atoms, ...] = ()


class Sample(NamedTuple):
    """Draws of the latents given the data, in independent batches, one after another.

    Attributes:
        atoms: by continuous latent, (A, ...).
        log_weights: (G, S), log of what each of G batches counts in each of S series that are
            independent given the parameters; zeros where batches count alike.
        log_partition: an estimate of log Z, or NaN.
    """

    atoms: Atoms
    log_weights: Array
    log_partition: Array


class State(NamedTuple):
    """What an algorithm carries from step to step. `memory` is its own."""

    params: Params
    memory: Any


class Info(NamedTuple):
    """What one step says to the person; of a run, each with an axis of steps, on the host.

    Attributes:
        objective: log-posterior (or log-likelihood) at the parameters the step started from.
        log_likelihood: log Z there.
        gain: score dot step, the first-order increase promised by the step, >= 0 for EM.
        rate: ratio of the last two gains (the square of EM's linear rate, near the optimum).
        score_norm: estimated distance to the optimum in standard errors, there.
        num_maps: E-steps the step used.
        error: Monte Carlo standard error of `gain`, the increase of Q; 0 where nothing is drawn.
    """

    objective: np.ndarray | Array
    log_likelihood: np.ndarray | Array
    gain: np.ndarray | Array
    rate: np.ndarray | Array
    score_norm: np.ndarray | Array
    num_maps: np.ndarray | Array
    error: np.ndarray | Array | float = 0.0


class Capabilities(NamedTuple):
    """What an E-step promises; checked where parts are composed."""

    exact: bool
    deterministic: bool
    memoryless: bool


@runtime_checkable
class EStep(Protocol):
    """Weights on the log-factors at given parameters. A frozen, hashable dataclass of settings."""

    @property
    def capabilities(self) -> Capabilities: ...

    def __call__(self, model: Any, params: Params) -> Posterior: ...


@runtime_checkable
class SimulatedEStep(Protocol):
    """An E-step that draws, and remembers from step to step. A frozen, hashable dataclass.

    Attributes:
        num_batches: independent batches of its draws, whose spread tells the Monte Carlo error.
        evidence: whether it estimates log Z; else the objective is not known while it runs.
        unbiased: whether its draws are of the posterior, so that its optimum is that of log Z.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def num_batches(self) -> int: ...

    @property
    def evidence(self) -> bool: ...

    @property
    def unbiased(self) -> bool: ...

    def adapted(self, model: Any) -> Any:
        """The model as the E-step wants it."""
        ...

    def init(self, model: Any, params: Params, key: Array) -> Any:
        """The memory before the first step."""
        ...

    def update(self, model: Any, params: Params, memory: Any) -> tuple[Posterior, Any]:
        """The posterior, and the memory after it."""
        ...

    def sample(self, model: Any, params: Params, memory: Any) -> tuple[Sample, Any]:
        """Draws, and the memory after them."""
        ...

    def log_evidence(self, model: Any, params: Params, memory: Any, key: Array) -> Any:
        """log Z at an estimate, with its error (`settle.Evidence`)."""
        ...

    def alarms(self, model: Any, params: Params, memory: Any) -> tuple[str, ...]:
        """What is wrong with the draws at an estimate, in words."""
        ...

    def promise(self, rises: Array, memory: Any) -> tuple[Array, Array]:
        """Mean over the draws of what a step gains at each (A,), and its standard error."""
        ...

    def adopts(self, gain: Array, error: Array) -> Array:
        """Whether a step is taken that promises an increase of Q, known up to an error."""
        ...

    def confined(self, model: Any, old: Params, new: Params, memory: Any) -> Params:
        """The M-step's parameters, as far as the E-step lets them go."""
        ...

    def grown(self) -> Any:
        """The E-step with more draws, or None."""
        ...

    def final(self) -> Any:
        """The E-step as it draws at the end of a run."""
        ...


@runtime_checkable
class MStep(Protocol):
    """Parameters that do not decrease Q + log prior. A frozen, hashable dataclass of settings."""

    def __call__(self, model: Any, params: Params, posterior: Posterior) -> Params: ...


@runtime_checkable
class Algorithm(Protocol):
    """A map from state to state that climbs the objective. A frozen, hashable dataclass.

    What `fit` asks for besides, where it is there: `monotone` (False: steps may go down), `noisy`
    (it draws, and `init` takes a key), and `may_fall`, `warmup` and `onward`, as in `Annealed`.
    """

    def init(self, model: Any, params: Params) -> State: ...

    def step(self, model: Any, state: State) -> tuple[State, Info]: ...


class Status(enum.Enum):
    """How a run ended, with a sentence."""

    CONVERGED = "converged: the score is zero within the tolerance"
    MAX_STEPS = "not converged: stopped at max_steps"
    OBJECTIVE_DECREASED = "not converged: the objective fell, so a step is wrong"
    NON_FINITE = "stopped: a value became NaN or infinite; the last finite iterate is kept"
    AT_BOUNDARY = "converged at the boundary of the parameter space"
    DEGENERATE = "degenerate: the likelihood grows without bound or a component collapsed"
    SADDLE = "not a maximum: the score is zero, but the objective curves upwards"
    STOCHASTIC_PLATEAU = "stationary within Monte Carlo error"
    DIVERGED = "stopped: the parameters run away; reduce the step size"
    INTERRUPTED = "interrupted: the result so far"

    @property
    def sentence(self) -> str:
        return self.value

    @property
    def word(self) -> str:
        return self.name.lower()

    @property
    def ok(self) -> bool:
        """Whether the parameters are at an optimum."""
        return self in (Status.CONVERGED, Status.AT_BOUNDARY, Status.STOCHASTIC_PLATEAU)
