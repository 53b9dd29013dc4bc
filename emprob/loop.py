"""The compiled loop: steps of an algorithm in one call, each judged before it is adopted."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from emprob.choice import choose
from emprob.hurried import Hurried
from emprob.model import LatentModel
from emprob.types import Algorithm, Info, Params, State
from emprob.work import is_compiling

DECREASE = 1e-9  # relative fall of the objective that is more than rounding
DECREASE_32 = 1e-5  # in float32


class Loop(NamedTuple):
    """A run between two host calls.

    Attributes:
        state: the algorithm's.
        params: the parameters that `info` describes, all finite.
        objective: there.
        count: steps accepted so far.
        stop: 0 go on, 1 converged, 2 objective fell, 3 not finite, 4 out of steps, 5 a step whose
            gain cannot be told from noise.
    """

    state: State
    params: Params
    objective: Array
    count: Array
    stop: Array


GO, CONVERGED, FELL, NON_FINITE, OUT, STALLED = range(6)


@partial(jax.jit, static_argnames="method")
def init(model: LatentModel, method: Algorithm, params: Params, key: Array | None = None) -> State:
    """The algorithm's first state; a key if it draws."""
    return method.init(model, params) if key is None else method.init(model, params, key)  # pyright: ignore


@partial(jax.jit, static_argnames="method")
def step(model: LatentModel, method: Algorithm, state: State) -> tuple[State, Info]:
    """One step."""
    return method.step(model, state)


def _loop_core(model, method, loop: Loop, limit, max_steps, tol, capacity: int):
    """Up to `limit` evaluations; each describes the current parameters and proposes the next."""
    blank = jnp.zeros(capacity, loop.objective.dtype)
    trace = Info(blank, blank, blank, blank, blank, jnp.zeros(capacity, int), blank)
    decide = _decision(method)

    def going(carry):
        i, loop, _ = carry
        return (i < limit) & (loop.stop == GO)

    def advance(carry):
        i, loop, trace = carry
        new, info = method.step(model, loop.state)
        trace = jax.tree.map(lambda t, x: t.at[i].set(x), trace, info)
        return i + 1, decide(loop, new, info, max_steps, tol), trace

    return jax.lax.while_loop(going, advance, (jnp.zeros((), int), loop, trace))


def _decision(method: Algorithm) -> Callable:
    """How a method's steps are judged."""
    if getattr(method, "noisy", False):
        return partial(_decide_noisily, method.estep)  # pyright: ignore
    may_fall = getattr(method, "may_fall", None)
    if may_fall is not None:
        return partial(_decide, may_fall=may_fall)
    return _decide if getattr(method, "monotone", True) else _decide_freely


def _decide(loop: Loop, new: State, info: Info, max_steps, tol, may_fall=None) -> Loop:
    """Judge the evaluation of `loop.state.params`; adopt the proposal unless it is time to stop."""
    finite = jnp.isfinite(info.objective)
    lost = jnp.isnan(info.score_norm) & _stays(loop.state, new)
    rounding = DECREASE if info.objective.dtype == jnp.float64 else DECREASE_32
    fell = info.objective < loop.objective - rounding * (1.0 + jnp.abs(loop.objective))
    fell = fell if may_fall is None else fell & ~may_fall(loop.state)
    stop = jnp.where(info.score_norm <= tol, CONVERGED, GO)
    stop = jnp.where((stop == GO) & (loop.count >= max_steps), OUT, stop)
    stop = jnp.where(fell, FELL, stop)
    stop = jnp.where(finite & ~lost, stop, NON_FINITE)
    ok = finite & ~fell
    params = {k: jnp.where(ok, v, loop.params[k]) for k, v in loop.state.params.items()}
    objective = jnp.where(ok, info.objective, loop.objective)
    go = stop == GO
    state = choose(go, new, loop.state)
    return _strong(Loop(state, params, objective, loop.count + go, stop))


def _stays(old: State, new: State) -> Array:
    """Whether a step moved no parameter, or to no number."""
    stays = [((v == old.params[k]) | jnp.isnan(v)).all() for k, v in new.params.items()]
    return jnp.all(jnp.stack(stays))


def _decide_freely(loop: Loop, new: State, info: Info, max_steps, tol) -> Loop:
    """As `_decide`, for a method that may go down on its way: the best parameters are kept."""
    stop = jnp.where(info.score_norm <= tol, CONVERGED, GO)
    stop = jnp.where((stop == GO) & (loop.count >= max_steps), OUT, stop)
    lost = jnp.isnan(info.score_norm) & _stays(loop.state, new)
    stop = jnp.where(jnp.isfinite(info.objective) & ~lost, stop, NON_FINITE)
    best = info.objective > loop.objective
    params = {k: jnp.where(best, v, loop.params[k]) for k, v in loop.state.params.items()}
    objective = jnp.where(best, info.objective, loop.objective)
    go = stop == GO
    state = choose(go, new, loop.state)
    return Loop(state, params, objective, loop.count + go, stop)


def _decide_noisily(estep: Any, loop: Loop, new: State, info: Info, max_steps, tol) -> Loop:
    """Of a method that draws: the objective is not known, or only an estimate; the state's last."""
    finite = jnp.isfinite(info.gain)
    stop = jnp.where(estep.adopts(info.gain, info.error), GO, STALLED)
    stop = jnp.where((stop == GO) & (loop.count >= max_steps), OUT, stop)
    stop = jnp.where(finite, stop, NON_FINITE)
    state = choose(finite, new, loop.state)
    objective = jnp.where(finite, info.objective, loop.objective)
    return _strong(Loop(state, state.params, objective, loop.count + (stop == GO), stop))


def _advance(model, method, loop: Loop, limit, max_steps, tol, capacity: int):
    """Up to `limit` steps of one run: how many, the loop after them, what they said."""
    return _loop_core(model, method, loop, limit, max_steps, tol, capacity)


advance = Hurried(
    _advance,
    lambda model, method, loop, *_: is_compiling(model, loop.params),
    static_argnames=("method", "capacity"),
)


@partial(jax.jit, static_argnames=("method", "capacity"))
def advance_all(model, method, params: Params, limit, tol, capacity: int):
    """Every start some steps, as one batch."""

    def one(params: Params):
        loop = begin(method.init(model, params))
        _, loop, trace = _loop_core(model, method, loop, limit + 1, limit, tol, capacity)
        return loop.params, loop.objective, loop.count, loop.stop, trace

    return jax.vmap(one)(params)


def each_advance(model, method, params: Params, limit, tol, capacity: int):
    """Every start some steps, one after the other, by the code of a single run."""
    ends = []
    for i in range(len(next(iter(params.values())))):
        loop = begin(init(model, method, {k: v[i] for k, v in params.items()}))
        _, loop, trace = advance(model, method, loop, limit + 1, limit, tol, capacity)
        ends.append((loop.params, loop.objective, loop.count, loop.stop, trace))
    return jax.tree.map(lambda *x: jnp.stack(x), *ends)


def begin(state: State) -> Loop:
    """The loop before its first step."""
    zero = jnp.zeros((), int)
    return _strong(Loop(state, state.params, jnp.full((), -jnp.inf), zero, zero))


def _strong(loop: Loop) -> Loop:
    """No weak types: with them the second call of a run would compile anew."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), loop)
