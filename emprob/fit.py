"""The driver: starts, the loop, stopping, and a status that cannot lie."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emprob import noisy
from emprob.accelerate import QuasiNewton
from emprob.edge import Snapped, snapped
from emprob.em import EM
from emprob.errors import ConvergenceWarning, PrecisionWarning
from emprob.estep.fixed_key import FixedKey
from emprob.estep.laplace import Laplace
from emprob.integral.begin import begun
from emprob.keys import as_key
from emprob.loop import init as begin_state
from emprob.loop import step
from emprob.map import MAP
from emprob.model import LatentModel
from emprob.precision import working
from emprob.report import UncertaintyReport
from emprob.result import Fit
from emprob.runs import SHORT, Clock, Run, Session, Start, race, run_from, table
from emprob.starts import make_starts
from emprob.types import Algorithm, Info, State, Status
from emprob.validate import check_init, check_steps
from emprob.verdict import collapse, curvature_of, judge, stopped_early


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
        method: an algorithm, such as `ep.EM()` or `ep.QuasiNewton(ep.EM())`. None:
            QuasiNewton over EM, or MAP where nothing is latent.
        key: a PRNG key or int for the starts; None: 0 (the same starts each time).
        init: starting values by site, constrained space; some or all parameters, and latents that
            are integrated around their mode: the search for it begins there.
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
    if getattr(method, "noisy", False):
        noisy.check(model, method, num_starts, checkpoint)
    if dtype is not None:
        model = with_dtype(model, dtype)
    with working(model):
        model = _in_width(model)
        model, init = begun(model, init)
        init = check_init(init, model)
        starts, origins = make_starts(model, as_key(0 if key is None else key), num_starts, init)
        rows, clock = table(origins), Clock()
        session = Session(model, max_steps, progress, callback, rows, clock)
        if getattr(method, "noisy", False):
            return _fit_noisily(session, method, starts[0], as_key(0 if key is None else key))
        finalists = race(session, method, starts, tol)
        runs = [run_from(session, method, start, tol, checkpoint) for start in finalists]
        best = max(runs, key=lambda r: (not collapse(model, r.params), r.objective))
        report = None
        if not isinstance(_estep_of(method), FixedKey):  # its objective is not the model's own
            best, report = _finished(session, method, best, tol)
        return _result(session, method, best, report)


def _fit_noisily(session: Session, method: Any, params: Mapping, key: Any) -> Fit:
    """EM on draws: the run, its plateau, and what is known of the estimate."""
    first, second = jax.random.split(key)
    start = Start(0, dict(params), 0, None)
    run, method, memory = noisy.run_noisily(session, method, start, first)
    run, report, simulated = noisy.finished(session, method, run, memory, second)
    session.rows[0].update(objective=run.objective, steps=run.num_steps)
    fit = _result(session, method, run, report)
    value = fit.log_likelihood if simulated is None else simulated.log_likelihood
    return replace(fit, simulated=simulated, log_likelihood=value)


def _finished(
    session: Session, method: Algorithm, best: Run, tol: float
) -> tuple[Run, UncertaintyReport | None]:
    """Go on where a run stopped early, is only near its optimum, or creeps towards an edge."""
    model = session.model
    report = curvature_of(model, best)
    for tighter in (1e-2 * tol, 1e-4 * tol):
        if not stopped_early(best, report, tol):
            break
        best = run_from(session, method, best.onward(), tighter)
        report = curvature_of(model, best)
    if _wants_polish(model, method, best, report, tol):
        best = run_from(session, MAP(), best.onward(), tol)
        report = curvature_of(model, best)
    edge = _edge(model, best, report)
    if edge is not None:
        more = session._replace(max_steps=best.num_steps + SHORT)
        best = run_from(more, method, best.onward(edge.params), tol)._replace(edge=edge.labels)
        report = curvature_of(model, best)
    return best, report


def steps(
    model: LatentModel, method: Algorithm | None = None, *, key: Any = None, init=None
) -> Iterator[tuple[State, Info]]:
    """The loop in the user's hands: an endless iterator of states and what each step said.

    `info` describes the parameters that the step started from; `state.params` are the new ones.
    """
    method = choose(model, method)
    model = with_rule(model, method)
    key = as_key(0 if key is None else key)
    with working(model):
        model = _in_width(model)
        model, init = begun(model, init)
        init = check_init(init, model)
        starts, _ = make_starts(model, key, 1, init)
        drawing = None
        if getattr(method, "noisy", False):
            assert isinstance(method, EM)
            method = replace(method, estep=noisy.prepared(method.estep, model, starts[0], key))
            drawing = jax.random.key_data(key)
        state = begin_state(model, method, starts[0], drawing)
    while True:
        with working(model):
            state, info = step(model, method, state)
        yield state, info


def choose(model: LatentModel, method: Algorithm | None) -> Algorithm:
    """The method for a model, checked."""
    if method is None:
        return MAP() if not model.latents or needs_ascent(model) else QuasiNewton(EM())
    if not isinstance(method, Algorithm) or isinstance(method, type):
        raise ValueError(
            f"method={method!r}: expected an algorithm such as ep.EM(), ep.MAP() or "
            "ep.QuasiNewton(ep.EM())."
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
    """The model as the method's E-step wants it: its rule of integration, what it can evaluate."""
    adapted = getattr(_estep_of(method), "adapted", None)
    return model if adapted is None else adapted(model)


def _estep_of(method: Any) -> Any:
    """The E-step of an EM, however it is accelerated; None of other algorithms."""
    while hasattr(method, "method"):
        method = method.method
    return getattr(method, "estep", None)


def needs_ascent(model: LatentModel) -> bool:
    """Whether some integral is Laplace's approximation, whose weights alone do not climb it."""
    return any(
        isinstance(i.rule, Laplace) and not i.quadratic and not i.rule.adaptive(i)
        for i in model.structure.integrals
    )


def _wants_polish(
    model: LatentModel, method: Algorithm, run: Run, report: UncertaintyReport | None, tol: float
) -> bool:
    """An approximate E-step brings EM near the optimum of its objective; Newton's does the rest."""
    if all(i.rule.capabilities.exact for i in model.structure.integrals):
        return False
    good = run.status in (Status.CONVERGED, Status.OBJECTIVE_DECREASED)
    near = report is not None and report.score_norm <= max(100 * tol, 1e-5)
    return good and not near and report is not None and not isinstance(method, MAP)


def _edge(model: LatentModel, run: Run, report: UncertaintyReport | None) -> Snapped | None:
    """Where a run goes on that crept towards the end of a half-line."""
    if run.status not in (Status.CONVERGED, Status.OBJECTIVE_DECREASED, Status.MAX_STEPS):
        return None
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
    narrow = {"float64": jnp.float32, "int64": jnp.int32}
    return jax.tree.map(lambda x: x.astype(narrow.get(x.dtype.name, x.dtype)), model)


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


def _result(session: Session, method, run: Run, report: UncertaintyReport | None) -> Fit:
    model, rows, clock = session.model, session.rows, session.clock
    status, message, report, warned = judge(model, method, run, report)
    rows[run.start]["status"] = status.word
    params = {k: run.params[k] for k in model.params}
    last = run.trace["log_likelihood"]
    here = run.trace["objective"] == run.objective  # a step that was refused is not the result's
    finite = last[np.isfinite(last) & (here if here.any() else True)]
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
