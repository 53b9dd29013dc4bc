"""The driver: starts, the loop, stopping, and a status that cannot lie."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from emprob import checkpoint as checkpoints
from emprob.accelerate import Squarem
from emprob.edge import Snapped, snapped
from emprob.em import EM
from emprob.errors import ConvergenceWarning, FitError, PrecisionWarning
from emprob.estep.conjugate import Conjugate
from emprob.estep.gaussian import Gaussian
from emprob.estep.laplace import Laplace
from emprob.keys import as_key
from emprob.map import MAP
from emprob.model import LatentModel
from emprob.precision import to_numpy, working
from emprob.progress import Progress
from emprob.result import Fit
from emprob.starts import make_starts
from emprob.types import Algorithm, Info, Params, State, Status
from emprob.validate import check_init, check_steps
from emprob.verdict import MAX_INFORMATION, blame, collapse, curvature_of, judge, stopped_early

CAPACITY = 256  # steps of one compiled call
SHORT = 40  # steps of every start before the best go on
SLOW = 0.3  # seconds of one compiled call, above which the next one is shorter
FINALISTS = 3  # distinct best starts that run to the end
DECREASE = 1e-9  # relative fall of the objective that is more than rounding
DECREASE_32 = 1e-5  # in float32


def fit(
    model: LatentModel,
    method: Algorithm | None = None,
    *,
    key: Any = None,
    init: Mapping[str, Any] | None = None,
    num_starts: int = 1,
    max_steps: int = 1000,
    tol: float = 1e-6,
    progress: bool = True,
    callback: Callable[[int, Mapping[str, float]], Any] | None = None,
    checkpoint: Any = None,
    dtype: Any = None,
) -> Fit:
    """Fit a bound program.

    Args:
        model: from `bind`.
        method: an algorithm, such as `ep.EM()` or `ep.Squarem(ep.EM())`. None: Squarem over EM, or
            MAP where nothing is latent.
        key: a PRNG key or int for the starts; None: 0 (the same starts each time).
        init: starting values by site, constrained space; some or all parameters.
        num_starts: number of starts. All run a little as one batch, the best run to the end.
        max_steps: limit on the steps of the final run; 0 evaluates the start.
        tol: stop when the estimated distance to the optimum is below `tol` standard errors.
        progress: show a progress bar.
        callback: called after each chunk with the step and a dict of floats; True stops.
        checkpoint: a path; the run is saved there and goes on from there.
        dtype: float width of the run; None: float64, whatever the notebook has set. float32 is for
            a GPU, and warns where it is too coarse for `tol`.

    Returns:
        The result. It is returned whole whatever happened; `status` says what did.

    Raises:
        ModelError, ValueError: bad arguments, before anything compiles.
        FitError: there is no finite start.
    """
    check_steps(max_steps, tol, num_starts)
    method = choose(model, method)
    model = with_rule(model, method)
    if dtype is not None:
        model = with_dtype(model, dtype)
    with working(model):
        model = _in_width(model)
        init = check_init(init, model)
        clock = Clock()
        starts, origins = make_starts(model, as_key(0 if key is None else key), num_starts, init)
        finalists, rows = _race(model, method, starts, origins, max_steps, tol, clock)
        runs = [
            _run(model, method, start, max_steps, tol, progress, callback, checkpoint, rows, clock)
            for start in finalists
        ]
        best = max(runs, key=lambda r: (not collapse(model, r.params), r.objective))
        for tighter in (1e-2 * tol, 1e-4 * tol):
            if not stopped_early(model, best, tol):
                break
            arrays = {k: jnp.asarray(v) for k, v in best.params.items()}
            again = Start(best.start, arrays, best.num_steps, Info(**best.trace))
            best = _run(
                model, method, again, max_steps, tighter, progress, callback, None, rows, clock
            )
        if _wants_polish(model, method, best):
            arrays = {k: jnp.asarray(v) for k, v in best.params.items()}
            again = Start(best.start, arrays, best.num_steps, Info(**best.trace))
            best = _run(model, MAP(), again, max_steps, tol, progress, callback, None, rows, clock)
        edge = _edge(model, best)
        if edge is not None:
            arrays = {k: jnp.asarray(v) for k, v in edge.params.items()}
            again = Start(best.start, arrays, best.num_steps, Info(**best.trace))
            steps = best.num_steps + SHORT
            best = _run(model, method, again, steps, tol, progress, callback, None, rows, clock)
            best = best._replace(edge=edge.labels)
        return _result(model, method, best, rows, clock)


def steps(
    model: LatentModel, method: Algorithm | None = None, *, key: Any = None, init=None
) -> Iterator[tuple[State, Info]]:
    """The loop in the user's hands: an endless iterator of states and what each step said.

    `info` describes the parameters that the step started from; `state.params` are the new ones.
    """
    method = choose(model, method)
    model = with_rule(model, method)
    with working(model):
        model = _in_width(model)
        init = check_init(init, model)
        starts, _ = make_starts(model, as_key(0 if key is None else key), 1, init)
        state = _init(model, method, starts[0])
    while True:
        with working(model):
            state, info = _step(model, method, state)
        yield state, info


def choose(model: LatentModel, method: Algorithm | None) -> Algorithm:
    """The method for a model, checked."""
    if method is None:
        return MAP() if not model.latents or needs_ascent(model) else Squarem(EM())
    if not isinstance(method, Algorithm) or isinstance(method, type):
        raise ValueError(
            f"method={method!r}: expected an algorithm such as ep.EM(), ep.MAP() or "
            "ep.Squarem(ep.EM())."
        )
    try:
        hash(method)
    except TypeError as error:
        raise ValueError(
            f"method={method!r} has a setting that cannot be hashed ({error}). Settings are "
            "numbers, tuples, names and optax transformations; arrays belong in the model."
        ) from None
    return method


def with_rule(model: LatentModel, method: Algorithm) -> LatentModel:
    """The model integrating its continuous latents as the method's E-step says."""
    inner = getattr(method, "method", method)
    rule = getattr(inner, "estep", None)
    if not isinstance(rule, Gaussian | Laplace | Conjugate):
        return model
    integrals = tuple(rule.applied(i) for i in model.structure.integrals)
    return replace(model, structure=replace(model.structure, integrals=integrals))


def needs_ascent(model: LatentModel) -> bool:
    """Whether some integral is Laplace's approximation, whose weights alone do not climb it."""
    return any(
        isinstance(i.rule, Laplace) and not i.quadratic and not i.rule.adaptive(i)
        for i in model.structure.integrals
    )


def _wants_polish(model: LatentModel, method: Algorithm, run: "Run") -> bool:
    """An approximate E-step brings EM near the optimum of its objective; Newton's does the rest."""
    exact = all(i.rule.capabilities.exact for i in model.structure.integrals)
    size = sum(np.size(v) for v in run.params.values())
    good = run.status in (Status.CONVERGED, Status.OBJECTIVE_DECREASED)
    return not exact and good and not isinstance(method, MAP) and size <= MAX_INFORMATION


def _edge(model: LatentModel, run: "Run") -> Snapped | None:
    """Where a run goes on that crept towards the end of a half-line."""
    if run.status not in (Status.CONVERGED, Status.OBJECTIVE_DECREASED, Status.MAX_STEPS):
        return None
    report = curvature_of(model, run)
    if report is None or not report.null_vectors or collapse(model, run.params):
        return None
    return snapped(model, run.params, run.objective, report)


def with_dtype(model: LatentModel, dtype: Any) -> LatentModel:
    """The model computing in another float width."""
    name = np.dtype(dtype).name
    if name not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: expected float32 or float64.")
    return replace(model, structure=replace(model.structure, dtype=name))


def _in_width(model: LatentModel) -> LatentModel:
    if model.structure.dtype == "float64":
        return model
    cast = lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x  # noqa: E731
    return jax.tree.map(cast, model)


# -- compiled pieces ----------------------------------------------------------------------------


class Loop(NamedTuple):
    """A run between two host calls.

    Attributes:
        state: the algorithm's.
        params: the parameters that `info` describes, all finite.
        objective: there.
        count: steps accepted so far.
        stop: 0 go on, 1 converged, 2 objective fell, 3 not finite, 4 out of steps.
    """

    state: State
    params: Params
    objective: Array
    count: Array
    stop: Array


GO, CONVERGED, FELL, NON_FINITE, OUT = range(5)


@partial(jax.jit, static_argnames="method")
def _init(model: LatentModel, method: Algorithm, params: Params) -> State:
    return method.init(model, params)


@partial(jax.jit, static_argnames="method")
def _step(model: LatentModel, method: Algorithm, state: State) -> tuple[State, Info]:
    return method.step(model, state)


def _loop_core(model, method, loop: Loop, limit, max_steps, tol, capacity: int):
    """Up to `limit` evaluations; each describes the current parameters and proposes the next."""
    blank = jnp.zeros(capacity, loop.objective.dtype)
    trace = Info(blank, blank, blank, blank, blank, jnp.zeros(capacity, int))

    decide = _decide if getattr(method, "monotone", True) else _decide_freely

    def going(carry):
        i, loop, _ = carry
        return (i < limit) & (loop.stop == GO)

    def advance(carry):
        i, loop, trace = carry
        new, info = method.step(model, loop.state)
        trace = jax.tree.map(lambda t, x: t.at[i].set(x), trace, info)
        return i + 1, decide(loop, new, info, max_steps, tol), trace

    return jax.lax.while_loop(going, advance, (jnp.zeros((), int), loop, trace))


def _decide(loop: Loop, new: State, info: Info, max_steps, tol) -> Loop:
    """Judge the evaluation of `loop.state.params`; adopt the proposal unless it is time to stop."""
    finite = jnp.isfinite(info.objective)
    rounding = DECREASE if info.objective.dtype == jnp.float64 else DECREASE_32
    fell = info.objective < loop.objective - rounding * (1.0 + jnp.abs(loop.objective))
    stop = jnp.where(info.score_norm <= tol, CONVERGED, GO)
    stop = jnp.where((stop == GO) & (loop.count >= max_steps), OUT, stop)
    stop = jnp.where(fell, FELL, stop)
    stop = jnp.where(finite, stop, NON_FINITE)
    ok = finite & ~fell
    params = {k: jnp.where(ok, v, loop.params[k]) for k, v in loop.state.params.items()}
    objective = jnp.where(ok, info.objective, loop.objective)
    go = stop == GO
    state = jax.tree.map(lambda a, b: jnp.where(go, a, b), new, loop.state)
    return _strong(Loop(state, params, objective, loop.count + go, stop))


def _decide_freely(loop: Loop, new: State, info: Info, max_steps, tol) -> Loop:
    """As `_decide`, for a method that may go down on its way: the best parameters are kept."""
    stop = jnp.where(info.score_norm <= tol, CONVERGED, GO)
    stop = jnp.where((stop == GO) & (loop.count >= max_steps), OUT, stop)
    stop = jnp.where(jnp.isfinite(info.objective), stop, NON_FINITE)
    best = info.objective > loop.objective
    params = {k: jnp.where(best, v, loop.params[k]) for k, v in loop.state.params.items()}
    objective = jnp.where(best, info.objective, loop.objective)
    go = stop == GO
    state = jax.tree.map(lambda a, b: jnp.where(go, a, b), new, loop.state)
    return Loop(state, params, objective, loop.count + go, stop)


@partial(jax.jit, static_argnames=("method", "capacity"))
def _advance(model, method, loop: Loop, limit, max_steps, tol, capacity: int):
    return _loop_core(model, method, loop, limit, max_steps, tol, capacity)


@partial(jax.jit, static_argnames=("method", "capacity"))
def _advance_all(model, method, params: Params, limit, tol, capacity: int):
    """Every start some steps, as one batch."""

    def one(params: Params):
        loop = _begin(method.init(model, params))
        _, loop, trace = _loop_core(model, method, loop, limit + 1, limit, tol, capacity)
        return loop.params, loop.objective, loop.count, loop.stop, trace

    return jax.vmap(one)(params)


def _begin(state: State) -> Loop:
    zero = jnp.zeros((), int)
    return _strong(Loop(state, state.params, jnp.full((), -jnp.inf), zero, zero))


def _strong(loop: Loop) -> Loop:
    """No weak types: with them the second call of a run would compile anew."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), loop)


class Clock:
    """Seconds spent compiling, running steps, and in all."""

    def __init__(self):
        self.began = time.perf_counter()
        self.compiling = self.running = 0.0

    def compile(self, call: Callable) -> None:
        """A call that runs no step, so that compiling is timed alone."""
        began = time.perf_counter()
        jax.block_until_ready(call())
        self.compiling += time.perf_counter() - began

    def run(self, call: Callable) -> Any:
        began = time.perf_counter()
        out = jax.block_until_ready(call())
        self.running += time.perf_counter() - began
        return out

    @property
    def seconds(self) -> dict[str, float]:
        total = time.perf_counter() - self.began
        return {"total": total, "compile": self.compiling, "run": self.running}


# -- starts -------------------------------------------------------------------------------------


class Start(NamedTuple):
    """Where a run begins: index, parameters, and what it took to get there."""

    index: int
    params: Params
    count: int
    trace: Info | None


def _race(model, method, starts: list[Params], origins: list[str], max_steps, tol, clock):
    """Run every start a little; the distinct best go on. Rows of the table of starts."""
    rows: list[dict] = [
        {"start": i, "from": origins[i], "objective": np.nan, "steps": 0, "status": "not run"}
        for i in range(len(starts))
    ]
    if len(starts) == 1:
        return [Start(0, starts[0], 0, None)], rows
    batch = {k: jnp.stack([s[k] for s in starts]) for k in starts[0]}
    short = min(SHORT, max_steps)
    clock.compile(lambda: _advance_all(model, method, batch, -1, tol, SHORT + 1))
    params, objectives, counts, stops, traces = to_numpy(
        clock.run(lambda: _advance_all(model, method, batch, short, tol, SHORT + 1))
    )
    words = {GO: "dropped", OUT: "dropped", CONVERGED: "converged", FELL: "objective fell",
             NON_FINITE: "not finite"}  # fmt: skip
    for i, row in enumerate(rows):
        row.update(
            objective=float(objectives[i]), steps=int(counts[i]), status=words[int(stops[i])]
        )
    ranked = np.where(np.isfinite(objectives), objectives, -np.inf)
    for i, row in enumerate(rows):
        if collapse(model, {k: v[i] for k, v in params.items()}):
            row["status"] = "collapsed"
            ranked[i] -= 1e12  # an unbounded likelihood wins every race
    order = np.argsort(-ranked, kind="stable")
    chosen: list[int] = []
    for i in order:
        distinct = all(abs(objectives[i] - objectives[j]) > 1e-3 for j in chosen)
        if distinct and len(chosen) < FINALISTS and np.isfinite(objectives[i]):
            chosen.append(int(i))
    chosen = chosen or [int(order[0])]
    return [
        Start(
            i,
            {k: jnp.asarray(v[i]) for k, v in params.items()},
            int(counts[i]),
            Info(*(t[i, : counts[i]] for t in traces)),
        )
        for i in chosen
    ], rows


# -- one run ------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A finished run on the host."""

    params: dict[str, np.ndarray]
    objective: float
    status: Status
    note: str
    num_steps: int
    trace: dict[str, np.ndarray]
    start: int
    failed: dict[str, np.ndarray] | None = None  # where a value was not finite
    edge: tuple[str, ...] = ()  # labels of entries that are at the end of a half-line


def _run(model, method, start: Start, max_steps, tol, progress, callback, path, rows, clock):
    """Run one start to the end, in chunks, and say how it ended."""
    index, loop = start.index, _begin(_init(model, method, start.params))
    loop = loop._replace(count=loop.count + start.count)
    chunks: list[Info] = [] if start.trace is None else [start.trace]
    with checkpoints.Saver(path, model, method, index) as saver:
        loop, chunks = saver.restore(loop, chunks)
        loop, note = _loop(
            model, method, loop, chunks, max_steps, tol, progress, callback, saver, clock
        )
    trace = {
        k: np.concatenate([getattr(c, k) for c in chunks]) if chunks else np.zeros(0)
        for k in Info._fields
    }
    status = _status(int(loop.stop), note)
    if not np.isfinite(float(loop.objective)):
        _refuse_start(model, loop.state.params)
    failed = to_numpy(loop.state.params) if status is Status.NON_FINITE else None
    run = Run(
        to_numpy(loop.params), float(loop.objective), status, note, int(loop.count), trace, index,
        failed,
    )  # fmt: skip
    rows[index].update(objective=run.objective, steps=run.num_steps, status=status.word)
    return run


def _loop(
    model, method, loop: Loop, chunks: list, max_steps, tol, progress, callback, saver, clock
):
    """Chunks until something stops the run. Ctrl-C keeps what there is."""
    limit, note = 8, ""
    bar = Progress(progress, max_steps)

    def chunk(limit: int) -> tuple:
        return _advance(model, method, loop, limit, max_steps, tol, CAPACITY)

    try:
        clock.compile(lambda: chunk(0))
        while int(loop.stop) == GO:
            began = time.perf_counter()
            used, loop, trace = clock.run(lambda limit=limit: chunk(limit))
            used, seconds = int(used), time.perf_counter() - began
            chunks.append(jax.tree.map(lambda x, used=used: np.asarray(x)[:used], trace))
            bar.update(int(loop.count), chunks[-1])
            saver.save(loop, chunks)
            if callback is not None and callback(int(loop.count), _told(chunks[-1])):
                note = "stopped by the callback"
                break
            limit = max(1, limit // 2) if seconds > SLOW else min(CAPACITY, 4 * limit)
    except KeyboardInterrupt:
        note = "interrupted by the keyboard"
    finally:
        bar.close()
    return loop, note


def _told(info: Info) -> dict[str, float]:
    return {k: float(getattr(info, k)[-1]) for k in ("objective", "log_likelihood", "score_norm")}


def _status(stop: int, note: str) -> Status:
    if note and stop == GO:
        return Status.INTERRUPTED
    return {
        CONVERGED: Status.CONVERGED,
        FELL: Status.OBJECTIVE_DECREASED,
        NON_FINITE: Status.NON_FINITE,
        OUT: Status.MAX_STEPS,
    }.get(stop, Status.INTERRUPTED)


def _refuse_start(model: LatentModel, params: Params) -> None:
    """No finite iterate at all: name the sites to blame."""
    site, text = blame(model, params)
    raise FitError(f"the objective is not finite at the start. {text}", site, 0)


def _coarse(objective: float) -> list[Warning]:
    """float32 cannot tell log-likelihoods apart that differ by less than its spacing."""
    spacing = float(np.spacing(np.float32(abs(objective))))
    if spacing < 1e-4:
        return []
    return [
        PrecisionWarning(
            f"float32 steps of the objective near {objective:.6g} are {spacing:.2g} wide; the fit "
            "can stop that far below its maximum. Use dtype='float64'."
        )
    ]


def _result(model, method, run: Run, rows: list[dict], clock: Clock) -> Fit:
    status, message, report, warned = judge(model, method, run)
    rows[run.start]["status"] = status.word
    params = {k: run.params[k] for k in model.params}
    last = run.trace["log_likelihood"]
    finite = last[np.isfinite(last)]
    if model.structure.dtype == "float32":
        warned = [*warned, *_coarse(run.objective)]
    for warning in warned:
        warnings.warn(warning, stacklevel=3)
    if not status.ok and status is not Status.DEGENERATE:
        warnings.warn(ConvergenceWarning(f"{status.word}: {message}"), stacklevel=3)
    score = report.score_norm if report is not None else float(run.trace["score_norm"][-1])
    return Fit(
        model=model,
        method=method,
        params=params,
        objective=run.objective,
        log_likelihood=float(finite[-1]) if finite.size else float("nan"),
        status=status,
        message=message,
        score_norm=float(score),
        num_steps=run.num_steps,
        num_maps=int(np.sum(run.trace["num_maps"])),
        seconds=clock.seconds,
        trace=run.trace,
        start_rows=tuple(rows),
        information=report,
    )
