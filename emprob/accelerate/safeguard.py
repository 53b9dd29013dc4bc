"""The step that accelerators share: look further than EM goes, and stay there if it is higher.

One EM map at a point gives the objective there, the score and EM's move. A rule makes of these, and
of what it remembers, the next point to look at. The map at that point is both the judge of the step
and the material of the next one, so an accepted step costs one map; a refused one costs a second,
at the point where EM itself goes, which cannot be lower.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from emprob.choice import choose
from emprob.em import EM, Step, make_info
from emprob.model import LatentModel
from emprob.types import Info, Params, State

SLACK = 1e-12  # relative fall of the objective that is rounding
SLACK_32 = 1e-6  # in float32
LONGEST = 5.0  # change of a coordinate, in units of one plus its size


class Point(NamedTuple):
    """A point and the EM map from it.

    Attributes:
        params, following: constrained: the point, and where EM goes from it.
        step: what EM saw there.
    """

    params: Params
    following: Params
    step: Step

    @property
    def u(self) -> Array:
        """Unconstrained (P,), in the order of the sites; so are score and move."""
        return _flat(self.step.u)

    @property
    def score(self) -> Array:
        return _flat(self.step.score)

    @property
    def move(self) -> Array:
        return _flat(self.step.move)


class Proposal(NamedTuple):
    """Where to look next.

    Attributes:
        change: from the current point, unconstrained (P,).
        decrement: estimate of the squared distance to the optimum in standard errors; 0 for none.
        memory: the rule's.
    """

    change: Array
    decrement: Array
    memory: Any


class Rule(Protocol):
    """What makes one accelerator different from another. Memory is a pytree of arrays."""

    @property
    def method(self) -> EM: ...

    def blank(self, point: Point) -> Any:
        """The memory before the first point."""
        ...

    def learn(self, memory: Any, old: Point, new: Point, accepted: Array) -> Any:
        """The memory after a step from `old` to `new`, which was the proposal or else EM's."""
        ...

    def propose(self, memory: Any, point: Point) -> Proposal:
        """Where to look from `point`."""
        ...


class Track(NamedTuple):
    """What a safeguarded accelerator carries.

    Attributes:
        point: at the parameters of the state; blank before the first step.
        candidate: where to look next, constrained.
        rate: EM's at the point, squared.
        memory: the rule's.
        known: whether there was a step.
    """

    point: Point
    candidate: Params
    rate: Array
    memory: Any
    known: Array


class _Search(NamedTuple):
    """Points looked at until one is adopted; `seen` and its rate are of the first."""

    track: Track
    seen: Step
    rate: Array
    at: Params
    proposed: Array  # whether `at` is the candidate, and not EM's point
    maps: Array
    moved: Array


def begin(rule: Rule, model: LatentModel, params: Params) -> State:
    """The state before the first step; no map is made."""
    shapes = jax.eval_shape(lambda p: look(rule.method, model, p), params)
    point = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    rate = jnp.zeros_like(point.step.gain)
    return State(params, Track(point, params, rate, rule.blank(point), jnp.asarray(False)))


def look(method: EM, model: LatentModel, params: Params) -> Point:
    """The EM map at `params`."""
    return Point(params, *method.map(model, params))


def advance(rule: Rule, model: LatentModel, state: State) -> tuple[State, Info]:
    """One step: the proposal unless the objective falls there, then EM's.

    A loop around one map, which is compiled once: the first step begins by looking at the start.
    """
    track: Track = state.memory
    no, yes, zero = jnp.asarray(False), jnp.asarray(True), jnp.zeros((), int)
    at = choose(track.known, track.candidate, state.params)
    search = _Search(track, track.point.step, track.rate, at, yes, zero, no)
    search = jax.lax.while_loop(lambda s: ~s.moved, lambda s: _looked(rule, model, s), search)
    track, gain = search.track, search.seen.gain
    info = make_info(search.seen, gain, gain / search.rate, 0)._replace(num_maps=search.maps)
    return State(track.point.params, track), info


def _looked(rule: Rule, model: LatentModel, search: _Search) -> _Search:
    """One map, and what follows from it: adopt the point, or look where EM goes."""
    old = search.track
    new = look(rule.method, model, search.at)
    first = ~old.known
    adopt = first | ~search.proposed | _no_lower(new, old.point)
    learnt = rule.learn(old.memory, old.point, new, search.proposed)
    memory = choose(first, old.memory, learnt)
    track = choose(adopt, _track(rule, model, memory, old.point, new, first), old)
    seen, rate = choose(first, (new.step, track.rate), (search.seen, search.rate))
    at = choose(first, track.candidate, old.point.following)
    return _Search(track, seen, rate, at, first, search.maps + 1, adopt & ~first)


def _track(
    rule: Rule, model: LatentModel, memory: Any, old: Point, new: Point, first: Array
) -> Track:
    proposal = rule.propose(memory, new)
    gain, left = new.step.gain, jnp.where(first, jnp.nan, _unexplained(old, new))
    # EM's rate r is 1 - gain / decrement; the latest step shows a rate of its own
    left = jnp.minimum(left, gain / jnp.maximum(proposal.decrement, gain))
    candidate = moved(model, new, proposal.change)
    return Track(new, candidate, (1.0 - left) ** 2, proposal.memory, jnp.asarray(True))


def _unexplained(old: Point, new: Point) -> Array:
    """One minus EM's rate, along a step: Rayleigh's quotient of two scores and two moves."""
    slope = new.score - old.score
    down = -(new.u - old.u) @ slope
    quotient = (new.move - old.move) @ slope / jnp.where(down > 0, down, jnp.nan)
    return jnp.clip(quotient, 0.0, 1.0)


def moved(model: LatentModel, point: Point, change: Array) -> Params:
    """A point moved, constrained; what EM holds at exactly zero stays there."""
    u, unravel = ravel_pytree(point.step.u)
    reach = jnp.max(jnp.abs(change) / (LONGEST * (1.0 + jnp.abs(u))), initial=1.0)
    params = model.constrain(unravel(u + change / reach))
    return kept(params, point.following)


def kept(params: Params, safe: Params) -> Params:
    """Parameters, of `safe` where they are not finite or where it is zero."""
    return {k: jnp.where(jnp.isfinite(v) & (safe[k] != 0), v, safe[k]) for k, v in params.items()}


def _no_lower(new: Point, old: Point) -> Array:
    objective = old.step.objective
    slack = (SLACK if objective.dtype == jnp.float64 else SLACK_32) * (1.0 + jnp.abs(objective))
    finite = [jnp.isfinite(v).all() for v in jax.tree.leaves((new.params, new.following))]
    return (new.step.objective >= objective - slack) & jnp.all(jnp.stack(finite))


def _flat(tree: Params) -> Array:
    return ravel_pytree(tree)[0]
