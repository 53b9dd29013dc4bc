"""How a run ended, judged by more than the run itself.

The curvature test, boundary and null directions come from the observed information; collapse from
the parameters; the site to blame for a NaN from one plain evaluation.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.distribution import validation_enabled

from emprob.curvature import information
from emprob.errors import DegeneracyWarning, IdentifiabilityWarning
from emprob.estep.grid import doubts
from emprob.integral.search import failures
from emprob.model import LatentModel, log_factor
from emprob.posterior import marginals
from emprob.types import Params, Status

EMPTY = 1e-10  # weight of a component that explains nothing
FAR = 1e-3  # standard errors from the optimum that no run may call converged
JUDGED = (Status.CONVERGED, Status.MAX_STEPS, Status.STOCHASTIC_PLATEAU)
MAX_INFORMATION = 200  # parameters; above, the curvature test costs more than the fit


def judge(
    model: LatentModel, method: Any, run: Any, report: Any
) -> tuple[Status, str, Any, list[Warning]]:
    """Final status, sentence, the uncertainty report (or None) and warnings."""
    status, message = run.status, run.status.sentence
    warned: list[Warning] = []
    if run.note:
        message = f"{message} ({run.note})"
    collapsed = collapse(model, run.params) or (run.failed and collapse(model, run.failed))
    if collapsed:
        warned.append(DegeneracyWarning(collapsed))
        ended = (Status.NON_FINITE, Status.MAX_STEPS, Status.CONVERGED, Status.OBJECTIVE_DECREASED)
        if status in ended:  # next to a density without bound, an objective that fell is rounding
            proper = status is Status.CONVERGED and np.isfinite(run.objective)
            status = status if proper and _has_prior(model) else Status.DEGENERATE
            message = f"{status.sentence}: {collapsed}"
    elif status is Status.NON_FINITE:
        status = Status.DIVERGED if _has_rate(method) else status
        _, text = blame(model, run.failed or run.params)
        message = f"{status.sentence}. It happened at step {run.num_steps}. {text}".rstrip()
    elif status is Status.OBJECTIVE_DECREASED:
        objective = run.trace["objective"]
        message = (
            f"{message} (by {objective[-2] - objective[-1]:.3g} at step {len(objective) - 1}, from "
            f"{objective[-2]:.8g}; the parameters before it are kept)"
        )
    report = None if collapsed else report
    if report is not None and status in JUDGED:
        status, message = _by_curvature(status, message, report, warned)
    constant = "" if collapsed else constant_data(model)
    empty = empty_components(model, run.params), dead_states(model, run.params)
    lost = "" if collapsed or not np.isfinite(run.objective) else failures(model, run.params)
    doubted = "" if collapsed or not np.isfinite(run.objective) else doubts(model, run.params)
    for note in filter(None, (*empty, constant, lost, doubted)):
        warned.append(DegeneracyWarning(note))
        message = f"{message}; {note}"
    if not model.latents:
        message += "; no latent sites: the objective was maximised directly"
    return status, message, report, warned


def constant_data(model: LatentModel) -> str:
    """A sentence on sites whose data are all equal while a scale is estimated, or ''."""
    scales = [s.name for s in model.plan if s.role == "parameter" and s.support == "positive"]
    observed = model.notes.value.observed.items()
    names = [n for n, x in observed if np.size(x) > 1 and x.dtype.kind == "f" and np.nanstd(x) == 0]
    if not (scales and names):
        return ""
    sites, scales = ", ".join(map(repr, names)), ", ".join(map(repr, scales))
    return f"all values of site {sites} are equal: only its prior keeps {scales} from zero"


def _has_rate(method: Any) -> bool:
    """Whether the length of a step is the user's choice."""
    return getattr(method, "optimizer", None) is not None


def stopped_early(run: Any, report: Any, tol: float) -> bool:
    """Whether a run that calls itself converged is not, by the exact distance to the optimum.

    While EM runs the distance is estimated from two gains; where EM's rate still changes, that
    can be far too small.
    """
    if run.status is not Status.CONVERGED:
        return False
    return report is not None and report.score_norm > max(100 * tol, 1e-5)


def _has_prior(model: LatentModel) -> bool:
    return model.structure.with_prior


def curvature_of(model: LatentModel, run: Any) -> Any:
    """The uncertainty report at the end of a run, or None where there is none."""
    size = sum(np.size(v) for v in run.params.values())
    if size > MAX_INFORMATION or not np.isfinite(run.objective):
        return None
    try:
        return information(model, run.params, run.edge)
    except (ValueError, np.linalg.LinAlgError):  # the curvature is not finite
        return None


def _by_curvature(status: Status, message: str, report: Any, warned: list[Warning]):
    if status is Status.CONVERGED and report.score_norm > FAR:
        status = Status.MAX_STEPS
        message = f"not converged: {report.score_norm:.2g} standard errors from the optimum"
    elif status is Status.CONVERGED and report.negative_directions:
        status = Status.SADDLE
        message = f"{status.sentence}, along {'; '.join(report.negative_directions)}"
    elif status is Status.CONVERGED and report.boundary:
        status = Status.AT_BOUNDARY
        message = f"{status.sentence}: {', '.join(report.boundary)}"
    if report.null_directions:
        text = "; ".join(report.null_directions)
        warned.append(IdentifiabilityWarning(f"the data do not determine {text}"))
        message += f"; not identified: {text}"
    return status, message


def empty_components(model: LatentModel, params: Mapping[str, Any]) -> str:
    """A sentence on values of a latent in plates that have no weight left, or ''."""
    found = []
    for a in model.structure.assignments:
        if (a.argument, a.view) != ("probs", "probs") or a.term not in model.latents:
            continue
        if not model.plan[a.term].structure.startswith("plate"):
            continue  # a transition or a start of probability zero is no empty component
        weights = np.asarray(params[a.param], float)
        for index in np.argwhere(weights < EMPTY).tolist():
            found.append(f"{a.param}[{', '.join(map(str, index))}]")
    if not found:
        return ""
    shown = ", ".join(found[:6]) + (", ..." if len(found) > 6 else "")
    return f"empty components: {shown}. Use fewer components, or a prior on their weights"


def dead_states(model: LatentModel, params: Mapping[str, Any]) -> str:
    """A sentence on values that a latent of a chain takes at no time, or ''."""
    laws = [
        np.asarray(params[a.param], float)
        for a in model.structure.assignments
        if (a.argument, a.view) == ("probs", "probs") and a.term in model.latents
    ]
    if not any((law < EMPTY).any() for law in laws):
        return ""  # every value is entered from every other: spare the smoother
    found = []
    for site, marginal in marginals(model, params).items():
        if not marginal.is_chain:
            continue
        visits = marginal.probs.reshape(-1, marginal.probs.shape[-1]).sum(0)
        found += [f"{site} = {k}" for k in np.flatnonzero(visits < EMPTY)]
    if not found:
        return ""
    return f"empty components: {', '.join(found)} at no time. Use fewer states, or a prior"


def collapse(model: LatentModel, params: Mapping[str, Any]) -> str:
    """A sentence on components that collapsed, or ''."""
    found = []
    for a in model.structure.assignments:
        value = np.asarray(params[a.param], float)
        if a.term.split("@")[0] in (*model.structure.continuous, *model.structure.on_grid):
            continue  # integrated out: a variance of zero is a value like others
        if a.view not in ("scale", "variance", "scale_tril", "covariance_matrix"):
            continue
        spread = _spread(model, a.term)
        bad = _tiny(value, a.view, spread)
        for i in bad:
            name = f"{a.param}[{i}]" if value.ndim else a.param
            found.append(_collapse_text(name, a.term.split("@")[0]))
    return "; ".join(dict.fromkeys(found or _collapsed_scales(model, params)))


def _collapse_text(name: str, site: str) -> str:
    return f"{name} collapsed: the variance is unbounded below at site '{site}'"


def _collapsed_scales(model: LatentModel, params: Mapping[str, Any]) -> list[str]:
    """The same for scales that stand in no closed form, found at the sites themselves."""
    spreads = [_spread(model, n) for n in model.notes.value.observed]
    small = {
        n: np.flatnonzero(np.asarray(params[n], float).ravel() < 1e-7 * max(spreads, default=1.0))
        for n in model.params
        if getattr(model.data.transforms[n].codomain, "lower_bound", None) is not None
    }
    small = {n: i for n, i in small.items() if i.size}
    if not small:
        return []
    found = []
    for term, scale in _scales(model, _arrays(params)).items():
        if scale < 1e-7 * _spread(model, term):
            for name, entries in small.items():
                scalar = np.ndim(params[name]) == 0
                names = [name] if scalar else [f"{name}[{i}]" for i in entries]
                found += [_collapse_text(n, term.split("@")[0]) for n in names]
    return found


@jax.jit
def _scales(model: LatentModel, params: Params) -> dict[str, jax.Array]:
    """Smallest scale of every observed term that has one."""
    out = _evaluate(model, params)
    seen = {
        term: out.terms[term].arguments.get("scale")
        for term, spec in out.specs.items()
        if spec.own is None and spec.site in model.notes.value.observed
    }
    return {term: jnp.min(scale) for term, scale in seen.items() if scale is not None}


def _evaluate(model: LatentModel, params: Mapping[str, Any]) -> Any:
    """The program's terms, whatever the values: NumPyro's own checks would raise."""
    with validation_enabled(False):
        return model.evaluate(_arrays(params))


def _arrays(params: Mapping[str, Any]) -> Params:
    return {k: jnp.asarray(v, float) for k, v in params.items()}


def _spread(model: LatentModel, term: str) -> float:
    x = model.notes.value.observed.get(term.split("@")[0])
    if x is None or not np.size(x):
        return 1.0
    x = np.asarray(x, float)
    sd = float(np.nanstd(x)) if np.isfinite(x).any() else 1.0
    return sd if sd > 0 else max(float(np.nanmax(np.abs(x))), 1.0)


def _tiny(value: np.ndarray, view: str, spread: float) -> list[int]:
    if view in ("scale", "variance"):
        scale = np.atleast_1d(value if view == "scale" else np.sqrt(np.abs(value))).ravel()
        return [int(i) for i in np.flatnonzero(scale < 1e-7 * spread)]
    matrices = value.reshape(-1, *value.shape[-2:])
    if view == "scale_tril":
        smallest = np.abs(np.diagonal(matrices, axis1=-2, axis2=-1)).min(-1)
    else:
        finite = np.where(np.isfinite(matrices), matrices, 0.0)
        smallest = np.sqrt(np.abs(np.linalg.eigvalsh(finite)).min(-1))
    return [int(i) for i in np.flatnonzero(smallest < 1e-7 * spread)]


def blame(model: LatentModel, params: Params) -> tuple[str | None, str]:
    """The first site whose log-density is not finite at `params`, and a sentence."""
    out = _evaluate(model, params)
    for name, value in out.log_priors.items():
        if not np.isfinite(float(value)):
            at = np.asarray(params.get(name.split("@")[0], np.nan))
            return name, f"The prior of '{name}' is {float(value)} at {at}."
    for name, term in out.terms.items():
        table = np.asarray(log_factor(term, out.specs[name]))
        bad = np.isnan(table) if out.specs[name].own else ~np.isfinite(table)
        if bad.any() and (np.isnan(table).any() or _all_states(table, out)):
            at = {k: np.asarray(v).tolist() for k, v in term.arguments.items() if np.size(v) < 8}
            site = out.specs[name].site
            return site, (
                f"The log-density of site '{site}' is not finite in {int(bad.sum())} places; its "
                f"distribution's arguments are {at}. Check its parents, or start elsewhere (init=)."
            )
    lost = failures(model, params) or _without_slope(model, params)
    return None, f"{lost[:1].upper()}{lost[1:]}." if lost else ""


def _without_slope(model: LatentModel, params: Params) -> str:
    """Parameters in which the objective has no derivative."""
    slope = _slope(model, {k: jnp.asarray(v) for k, v in params.items()})
    bad = [repr(k) for k in model.params if not np.isfinite(np.asarray(slope[k])).all()]
    if not bad:
        return ""
    return (
        f"the derivative of the objective in {', '.join(bad)} is not a number, while the objective "
        "is one: some function in the program has no derivative there (a root at zero, 0 ** p). "
        "Write it in another way, or start elsewhere (init=)"
    )


@jax.jit
def _slope(model: LatentModel, params: Params) -> Params:
    return jax.grad(model.objective)(params)


def _all_states(table: np.ndarray, out: Any) -> bool:
    """Some observation is impossible under every value of the latents."""
    dims = [v.dim for v in out.variables.values()]
    axes = tuple(table.ndim + d for d in dims if table.ndim >= -d)
    return bool((~np.isfinite(table)).all(axes).any()) if axes else True
