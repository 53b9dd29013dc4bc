"""One run of EM on draws: more of them when a step is lost in the noise, then its plateau."""

import warnings
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emprob.em import EM
from emprob.errors import DegeneracyWarning, ModelError
from emprob.loop import GO, NON_FINITE, OUT, STALLED, advance, begin, init
from emprob.precision import to_numpy
from emprob.progress import Progress
from emprob.runs import CAPACITY, SLOW, Run, Session, Start
from emprob.settle import SimulationReport, evidence_of, final_draws, settle
from emprob.types import Info, SimulatedEStep, Status


def run_noisily(session: Session, method: EM, start: Start, key: Any) -> tuple[Run, EM, Any]:
    """Steps until the largest number of draws cannot tell the next from noise.

    Args:
        session: what all runs share.
        method: an EM whose E-step draws.
        start: where it begins.
        key: of its draws.

    Returns:
        The run, the method as it ended (with its number of draws), and the E-step's memory.
    """
    model, clock = session.model, session.clock
    method = replace(method, estep=prepared(method.estep, model, start.params, key))
    loop = begin(init(model, method, start.params, jax.random.key_data(key)))
    chunks: list[Info] = []
    bar, limit, note = Progress(session.progress, session.max_steps), 4, ""

    def chunk(limit: int):
        return advance(model, method, loop, limit, session.max_steps, 0.0, CAPACITY)

    try:
        clock.compile(lambda: chunk(0))
        while int(loop.stop) == GO:
            used, loop, trace = clock.run(lambda limit=limit: chunk(limit))
            used = int(used)
            chunks.append(jax.tree.map(lambda x, used=used: np.asarray(x)[:used], trace))
            bar.update(int(loop.count), chunks[-1])
            told = {k: float(getattr(chunks[-1], k)[-1]) for k in ("objective", "gain", "error")}
            if session.callback is not None and session.callback(int(loop.count), told):
                note = "stopped by the callback"
                break
            limit = limit if clock.last > SLOW else min(CAPACITY, 2 * limit)
            if int(loop.stop) == STALLED and (more := _drawing(method).grown()) is not None:
                method = replace(method, estep=more)
                loop = loop._replace(stop=jnp.zeros_like(loop.stop))
                clock.compile(lambda: chunk(0))
    except KeyboardInterrupt:
        note = "interrupted by the keyboard"
    finally:
        bar.close()
    return _run(loop, chunks, note, start), method, loop.state.memory


def prepared(estep: Any, model: Any, params: Any, key: Any) -> Any:
    """The E-step with what it has to find out before it compiles."""
    prepare = getattr(estep, "prepared", None)
    return estep if prepare is None else prepare(model, params, jax.random.key_data(key))


def sized(estep: Any, model: Any, params: Any, key: Any) -> Any:
    """The E-step as large as its draws at the end of a run have to be."""
    size = getattr(estep, "sized", None)
    return estep if size is None else size(model, params, key)


def _run(loop: Any, chunks: list[Info], note: str, start: Start) -> Run:
    trace = {
        k: np.concatenate([getattr(c, k) for c in chunks]) if chunks else np.zeros(0)
        for k in Info._fields
    }
    ends = {STALLED: Status.STOCHASTIC_PLATEAU, OUT: Status.MAX_STEPS,
            NON_FINITE: Status.NON_FINITE}  # fmt: skip
    status = Status.INTERRUPTED if note else ends.get(int(loop.stop), Status.INTERRUPTED)
    params = to_numpy(loop.params)
    return Run(params, float(loop.objective), status, note, int(loop.count), trace, start.index)


def _drawing(method: EM) -> SimulatedEStep:
    assert isinstance(method.estep, SimulatedEStep)
    return method.estep


@jax.jit
def _log_prior(model: Any, params: Any) -> Any:
    return model.log_prior(params)


def finished(session: Session, method: EM, run: Run, memory: Any, key: Any) -> tuple:
    """Settle where the score is zero up to its noise: the run, its report, what the draws say."""
    model = session.model
    estep = _drawing(method).final()
    if run.status in (Status.NON_FINITE, Status.INTERRUPTED):
        return run, None, None
    estep = sized(estep, model, run.params, key)
    try:
        settled = session.clock.run(lambda: settle(model, estep, run.params, memory, key))
    except KeyboardInterrupt:
        note = "interrupted by the keyboard before its end was settled"
        return run._replace(status=Status.INTERRUPTED, note=note), None, None
    except np.linalg.LinAlgError:
        note = "its curvature is not finite, so its end was not settled"
        return run._replace(status=Status.MAX_STEPS, note=note), None, None
    params = settled.params
    draws, memory = final_draws(model, estep, params, memory)
    found = evidence_of(model, estep, params, memory, draws, key)
    for alarm in estep.alarms(model, params, memory):
        warnings.warn(DegeneracyWarning(alarm), stacklevel=4)
    log_prior = float(_log_prior(model, {k: jnp.asarray(v) for k, v in params.items()}))
    ended = run.status in (Status.STOCHASTIC_PLATEAU, Status.MAX_STEPS)
    status = Status.STOCHASTIC_PLATEAU if settled.at_optimum else Status.MAX_STEPS
    run = run._replace(
        params=params, objective=found.value + log_prior, status=status if ended else run.status
    )
    said = SimulationReport(
        draws, found.value, found.error, found.khat, found.how,
        settled.distance, settled.noise, settled.information,
    )  # fmt: skip
    return run, settled.report, said


def check(model: Any, method: Any, num_starts: int, checkpoint: Any) -> None:
    """What runs on draws cannot do."""
    if not model.structure.integrals:
        names = ", ".join(map(repr, model.latents)) or "none"
        raise ModelError(
            f"{method.estep!r}: expected a program with continuous latents, got the latents "
            f"{names}. Sums over discrete latents are exact: use ep.EM()."
        )
    if num_starts > 1:
        raise ValueError(
            f"num_starts={num_starts}: the objective of {method.estep!r} is known with noise, or "
            "not at all, so starts cannot be ranked. Choose the start with ep.Laplace() and pass "
            "it as init=."
        )
    if checkpoint is not None:
        raise ValueError("checkpoint: not for E-steps by simulation. Pass init=fit.params instead.")
