"""`check(model)`: a diagnosis of a bound program that a person can read, before any fit."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emprob.bind import random_params
from emprob.curvature import MAX_COORDINATES, information
from emprob.estep.unsolved import is_solved
from emprob.model import LatentModel, log_factor
from emprob.precision import working
from emprob.types import Params

POINTS = 5  # random parameters at which the program is tried
FAR = 1e6  # |mean| / sd of data that should be standardised


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis: 'ok', 'note' or 'problem', about a site or the whole."""

    level: str
    site: str
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings; true if none is a problem."""

    program: str
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that should be mended before a fit."""
        return tuple(f for f in self.findings if f.level == "problem")

    def __str__(self) -> str:
        lines = [f"  {f.level:8}{f.site + ': ' if f.site else ''}{f.text}" for f in self.findings]
        return "\n".join([f"check of {self.program}", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def check(model: LatentModel) -> Diagnosis:
    """Try a bound program at random parameters and say what was found.

    Counts, missing values, which parameters have no closed form, whether every log-density and
    gradient is finite, whether data are far from zero for their spread, and whether the data
    determine all parameters (the rank of the information at random points).
    """
    with working(model):
        points = [random_params(model, seed) for seed in range(11, 11 + POINTS)]
        findings = [*_counts(model), *_missing(model), *_roles(model), *_scales(model)]
        if is_solved(model):
            findings += [*_finite(model, points), *_identified(model, points)]
    return Diagnosis(model.notes.value.program_name, tuple(findings))


def _counts(model: LatentModel) -> list[Finding]:
    size = sum(np.size(v) for v in model.notes.value.initial.values())
    n = model.notes.value.num_observations
    text = f"{size} parameters, {n} observations, latents: {', '.join(model.latents) or 'none'}"
    level = "note" if n < size else "ok"
    return [Finding(level, "", text + ("; fewer observations than parameters" if n < size else ""))]


def _missing(model: LatentModel) -> list[Finding]:
    return [Finding("note", n, str(m)) for n, m in model.notes.value.missing.items()]


def _roles(model: LatentModel) -> list[Finding]:
    found = []
    for site in model.plan:
        if site.role == "latent" and site.handled_by.startswith("only by simulation"):
            found.append(Finding("note", site.name, site.handled_by))
        elif site.role == "parameter" and site.handled_by.startswith("Newton"):
            found.append(Finding("ok", site.name, site.handled_by))
    return found


def _scales(model: LatentModel) -> list[Finding]:
    found = []
    for name, x in model.notes.value.observed.items():
        x = np.asarray(x, float)
        spread = np.nanstd(x)
        if spread == 0 and x.size > 1:
            found.append(Finding("problem", name, "all values are equal: no spread to estimate"))
        elif spread > 0 and abs(np.nanmean(x)) > FAR * spread:
            found.append(Finding("note", name, "far from zero for its spread; subtract a constant"))
    return found


@jax.jit
def _tables(model: LatentModel, params: Params) -> tuple[dict[str, Any], Any]:
    """By term whether it has a NaN, and the gradient of the objective."""
    out = model.evaluate(params)
    bad = {k: jnp.isnan(log_factor(t, out.specs[k])).any() for k, t in out.terms.items()}
    u = model.unconstrain(params)
    return bad, jax.grad(lambda v: model.objective(model.constrain(v)))(u)


def _finite(model: LatentModel, points: list[Params]) -> list[Finding]:
    bad: set[str] = set()
    for p in points:
        terms, gradient = _tables(model, p)
        bad |= {k.split("@")[0] for k, v in terms.items() if bool(v)}
        bad |= {k for k, v in gradient.items() if not np.isfinite(np.asarray(v)).all()}
    if not bad:
        return [Finding("ok", "", f"log-densities and gradients finite at {POINTS} random points")]
    return [Finding("problem", n, "not finite at some random parameters") for n in sorted(bad)]


def _identified(model: LatentModel, points: Sequence[Mapping]) -> list[Finding]:
    size = sum(np.size(v) for v in points[0].values())
    if size > min(MAX_COORDINATES, 200):
        return [Finding("note", "", f"identifiability not tried: {size} parameters")]
    common = None
    for p in points[:3]:
        directions = set(information(model, p).null_directions)
        common = directions if common is None else common & directions
    if common:
        return [Finding("problem", "", f"the data do not determine {d}") for d in sorted(common)]
    return [Finding("ok", "", "no flat direction at random points")]
