"""Runs of an algorithm on the host: the race of the starts, and one run to its end."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emprob import checkpoint as checkpoints
from emprob.errors import FitError
from emprob.loop import (
    CONVERGED,
    FELL,
    GO,
    NON_FINITE,
    OUT,
    Loop,
    advance,
    advance_all,
    begin,
    each_advance,
    init,
)
from emprob.model import LatentModel
from emprob.precision import to_numpy
from emprob.progress import Progress
from emprob.types import Algorithm, Info, Params, Status
from emprob.verdict import blame, collapse
from emprob.work import is_compiling

CAPACITY = 256  # steps of one compiled call
SHORT = 40  # steps of every start before the best go on
SLOW = 0.3  # seconds of one compiled call, above which the next one is shorter
FINALISTS = 3  # distinct best starts that run to the end


class Clock:
    """Seconds spent compiling, running steps (the last call too), and in all."""

    def __init__(self):
        self.began = time.perf_counter()
        self.compiling = self.running = self.last = 0.0

    def compile(self, call: Callable) -> None:
        """A call that runs no step, so that compiling is timed alone."""
        began = time.perf_counter()
        jax.block_until_ready(call())
        self.compiling += time.perf_counter() - began

    def run(self, call: Callable) -> Any:
        began = time.perf_counter()
        out = jax.block_until_ready(call())
        self.last = time.perf_counter() - began
        self.running += self.last
        return out

    @property
    def seconds(self) -> dict[str, float]:
        total = time.perf_counter() - self.began
        return {"total": total, "compile": self.compiling, "run": self.running}


class Session(NamedTuple):
    """What all runs of one fit share.

    Attributes:
        model: in the width it is computed in.
        max_steps: of a run.
        progress: whether to show a bar.
        callback: called after each chunk.
        rows: the table of starts, filled in as runs end.
        clock: seconds so far.
    """

    model: LatentModel
    max_steps: int
    progress: bool
    callback: Callable[[int, Mapping[str, float]], Any] | None
    rows: list[dict]
    clock: Clock


class Start(NamedTuple):
    """Where a run begins: index, parameters, and what it took to get there."""

    index: int
    params: Params
    count: int
    trace: Info | None


def table(origins: list[str]) -> list[dict]:
    """The table of starts before any of them ran."""
    blank = {"objective": np.nan, "steps": 0, "status": "not run"}
    return [{"start": i, "from": origin, **blank} for i, origin in enumerate(origins)]


def race(session: Session, method: Algorithm, starts: list[Params], tol: float) -> list[Start]:
    """Run every start a little; the distinct best go on."""
    if len(starts) == 1:
        return [Start(0, starts[0], 0, None)]
    model, rows, clock = session.model, session.rows, session.clock
    batch = {k: jnp.stack([s[k] for s in starts]) for k in starts[0]}
    long = SHORT + getattr(method, "warmup", 0)
    short = min(long, session.max_steps)
    # a batch is another program to compile
    if is_compiling(model, starts[0]):
        some_steps, capacity = each_advance, CAPACITY
    else:
        some_steps, capacity = advance_all, long + 1
    clock.compile(lambda: some_steps(model, method, batch, -1, tol, capacity))
    params, objectives, counts, stops, traces = to_numpy(
        clock.run(lambda: some_steps(model, method, batch, short, tol, capacity))
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
    ]


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

    def onward(self, params: Mapping[str, Any] | None = None) -> Start:
        """A start that goes on where this run ended, or from other parameters."""
        arrays = {k: jnp.asarray(v) for k, v in (params or self.params).items()}
        return Start(self.start, arrays, self.num_steps, Info(**self.trace))


def run_from(
    session: Session, method: Algorithm, start: Start, tol: float, path: Any = None
) -> Run:
    """Run one start to the end, in chunks, and say how it ended.

    Args:
        session: what all runs share.
        method: an algorithm.
        start: where it begins.
        tol: distance to the optimum in standard errors at which it ends.
        path: of a checkpoint, or None.
    """
    model = session.model
    method = method if start.trace is None else getattr(method, "onward", method)
    index, loop = start.index, begin(init(model, method, start.params))
    loop = loop._replace(count=loop.count + start.count)
    chunks: list[Info] = [] if start.trace is None else [start.trace]
    with checkpoints.Saver(path, model, method, index) as saver:
        loop, chunks = saver.restore(loop, chunks)
        loop, note = _loop(session, method, loop, chunks, tol, saver)
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
    session.rows[index].update(objective=run.objective, steps=run.num_steps, status=status.word)
    return run


def _loop(session: Session, method, loop: Loop, chunks: list, tol: float, saver):
    """Chunks until something stops the run. Ctrl-C keeps what there is."""
    limit, note = 8, ""
    max_steps, callback, clock = session.max_steps, session.callback, session.clock
    bar = Progress(session.progress, max_steps)

    def chunk(limit: int) -> tuple:
        return advance(session.model, method, loop, limit, max_steps, tol, CAPACITY)

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
