"""A fit as a file, and as an ArviZ tree."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from emprob import criteria, store
from emprob._arviz import to_datatree
from emprob.checkpoint import identity
from emprob.curvature import NoCurvature, TooManyParameters
from emprob.errors import CheckpointError
from emprob.report import UncertaintyReport
from emprob.result import Fit
from emprob.types import Status

SAME = ("program", "roles", "data_hash")  # what a file and a model must agree on
NUMBERS = ("objective", "log_likelihood", "score_norm", "num_steps", "num_maps")
KIND = "fit"


# -- files --------------------------------------------------------------------------------------


def save(fit: Fit, path: Any) -> None:
    """Write a fit: parameters, trace, table, information, and what it is a fit of."""
    model = fit._bound("save")
    arrays: dict[str, Any] = {"params": fit.params, "trace": fit.trace}
    table = fit._table
    arrays["table"] = {c: table[c].to_numpy(float) for c in table.columns if c != "note"}
    meta = {
        **identity(model, fit.method),
        "kind": KIND,
        "status": fit.status.name,
        "message": fit.message,
        "numbers": {k: getattr(fit, k) for k in NUMBERS},
        "seconds": fit.seconds,
        "start_rows": list(fit.start_rows),
        "labels": list(table.index),
        "notes": list(table["note"]),
        "order": list(fit.params),
        "counts": dict(fit._counts),
    }
    try:
        arrays["information"], meta["report"] = _packed(fit.uncertainty)
    except (TooManyParameters, NoCurvature):
        meta["report"] = None
    store.write(path, arrays, meta)


def _packed(report: UncertaintyReport) -> tuple[dict[str, Any], dict[str, Any]]:
    values = {f.name: getattr(report, f.name) for f in fields(report)}
    replicas = values.pop("replicas")
    arrays = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
    if replicas is not None:
        arrays["scores"], arrays["matrices"] = replicas
    return arrays, {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}


def _unpacked(arrays: Mapping[str, Any], rest: Mapping[str, Any]) -> UncertaintyReport:
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()}
    arrays = dict(arrays)
    replicas = (arrays.pop("scores"), arrays.pop("matrices")) if "scores" in arrays else None
    return UncertaintyReport(**arrays, **plain, replicas=replicas)


def load(path: Any, model: Any = None) -> Fit:
    """Read what `save` wrote; see `emprob.load`."""
    expect = {"kind": KIND}
    if model is not None:
        found = identity(model, None)
        expect |= {k: found[k] for k in SAME}
    arrays, meta = store.read(path, expect)
    table = pd.DataFrame(arrays["table"], index=meta["labels"])
    table["note"] = meta["notes"]
    report = meta["report"]
    fit = Fit(
        model=model,
        method=meta["method"],
        params={k: arrays["params"][k] for k in meta["order"]},
        status=Status[meta["status"]],
        message=meta["message"],
        seconds=meta["seconds"],
        trace=arrays.get("trace", {}),
        start_rows=tuple(meta["start_rows"]),
        information=None if report is None else _unpacked(arrays["information"], report),
        rows=table,
        counts=meta["counts"],
        **meta["numbers"],
    )
    if model is not None:
        _check_objective(path, fit)
    return fit


@jax.jit
def _objective(model: Any, params: Mapping[str, Any]) -> Any:
    return model.objective(params)


def _check_objective(path: Any, fit: Fit) -> None:
    """Two programs of one name and shape differ in what they say at the estimate."""
    from emprob.precision import working

    with working(fit.model):
        found = float(_objective(fit.model, {k: jnp.asarray(v) for k, v in fit.params.items()}))
    if np.isfinite(found) and abs(found - fit.objective) > 1e-5 * (1 + abs(fit.objective)):
        raise CheckpointError(
            f"{path}: the field 'objective' differs: expected {found!r} at the saved parameters, "
            f"got {fit.objective!r}. The file belongs to another version of the program; fit again."
        )


# -- ArviZ --------------------------------------------------------------------------------------


def fit_to_datatree(fit: Fit, draws: Mapping[str, np.ndarray]) -> Any:
    """Draws as one chain, the observed data, and the pointwise log-likelihood if there is one."""
    observed = {k: np.asarray(v) for k, v in fit.model.notes.value.observed.items()}
    log_likelihood, dims = _log_likelihood(fit, draws, observed)
    return to_datatree(
        {k: v[None] for k, v in draws.items()},
        observed_data=observed,
        log_likelihood=log_likelihood,
        dims=dims,
        attrs={
            "inference_library": "emprob",
            "program": fit._program_name,
            "method": repr(fit.method),
            "status": fit.status.word,
            "message": fit.message,
            "converged": int(fit.converged),
            "objective": float(fit.objective),
            "log_likelihood_at_estimate": float(fit.log_likelihood),
            "draws": "from the Gaussian approximation at the optimum, in unconstrained space",
        },
    )


def _log_likelihood(fit: Fit, draws: Mapping, observed: Mapping):
    params = {k: draws[k] for k in fit.params}
    try:
        found = criteria.pointwise_draws(fit.model, params)
    except ValueError:  # no independent observations: no such group
        return None, None
    name = " & ".join(found.sites)
    dims = {name: found.plates}
    if name in observed and observed[name].shape != found.values.shape[1:]:
        dims = None
    return {name: found.values[None]}, dims
