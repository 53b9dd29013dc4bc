"""The plan: what a program was found to be, one row per site, for people."""

import html
from dataclasses import dataclass
from typing import Any

import numpy as np

from emprob.estep.unsolved import Unsolved
from emprob.mstep.closed_form import covered

COLUMNS = ("site", "role", "shape", "support", "structure", "handled by")


@dataclass(frozen=True)
class Site:
    """One row of the plan."""

    name: str
    role: str
    shape: tuple[int, ...]
    support: str
    structure: str
    handled_by: str

    @property
    def cells(self) -> tuple[str, ...]:
        shape = "×".join(map(str, self.shape)) or "scalar"
        return (self.name, self.role, shape, self.support, self.structure, self.handled_by)


@dataclass(frozen=True)
class Plan:
    """All rows, in program order."""

    program: str
    objective: str
    sites: tuple[Site, ...]

    def __iter__(self):
        return iter(self.sites)

    def __getitem__(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)

    @property
    def title(self) -> str:
        return f"{self.program}: {self.objective}"

    def to_frame(self):
        """The plan as a pandas DataFrame."""
        import pandas as pd

        rows = [s.cells for s in self.sites]
        return pd.DataFrame(rows, columns=list(COLUMNS)).set_index("site")

    def __str__(self) -> str:
        rows = [COLUMNS, *(s.cells for s in self.sites)]
        widths = [max(len(r[i]) for r in rows) for i in range(len(COLUMNS))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
        ]
        return "\n".join([self.title, *lines])

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{html.escape(c)}</th>" for c in COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(c)}</td>" for c in s.cells)
            + "</tr>"
            for s in self.sites
        )  # fmt: skip
        return (
            f"<p><b>{html.escape(self.title)}</b></p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )


def make_plan(model: Any, found: Any, missing: dict) -> Plan:
    """The plan of a bound program."""
    sites = tuple(
        _row(model, site, found, missing) for site in found.sites.values() if _is_row(site)
    )
    target = "posterior density of the parameters" if model.structure.with_prior else "likelihood"
    program = getattr(model.structure.program, "__name__", "program")
    return Plan(program, f"maximise the {target}, constrained space", sites)


def _is_row(site: Any) -> bool:
    return site.fn is None or type(site.fn.base).__name__ != "Delta"


def _row(model: Any, site: Any, found: Any, missing: dict) -> Site:
    s = model.structure
    role = dict(s.roles).get(site.name, "observed")
    time = () if site.scan is None else (found.lengths[site.scan],)
    shape = (*time, *site.shape)
    if role == "parameter" and site.name in s.fixed:
        role = "fixed"
    if role == "observed" and site.fn is not None and type(site.fn.base).__name__ == "Unit":
        return Site(site.name, "factor", (), "", _structure(site), "part of every objective")
    note = _handled(model, site, role)
    if site.name in missing:
        note = f"{note}; {missing[site.name]}" if note else str(missing[site.name])
    role = {"partial": "latent (partly observed)", "continuous": "latent", "grid": "latent"}.get(
        role, role
    )
    return Site(site.name, role, shape, describe(site.support), _structure(site), note)


def describe(support: Any) -> str:
    """A constraint in words."""
    name = type(support).__name__.strip("_")
    if name == "IndependentConstraint":
        return describe(support.base_constraint)
    if name == "IntegerInterval":
        return f"{{{support.lower_bound}..{np.max(support.upper_bound)}}}"
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
    bounds = {"Interval": "({0.lower_bound}, {0.upper_bound})", "GreaterThan": "> {0.lower_bound}",
              "LessThan": "< {0.upper_bound}"}  # fmt: skip
    return bounds.get(name, words).format(support)


def _structure(site: Any) -> str:
    plates = " × ".join(f"plate '{n}' ({size})" for n, _, size in site.frames)
    if site.scan is None:
        return plates or "global"
    return " × ".join(filter(None, ["chain", plates]))


def _handled(model: Any, site: Any, role: str) -> str:
    if role == "fixed":
        return "held at the given value"
    if role == "continuous":
        return _integrated(model, site.name)
    if role == "grid":
        nodes = np.asarray(model.data.held[site.name])
        return f"Grid: {nodes.size} nodes from {nodes[0]:g} to {nodes[-1]:g}"
    if role in ("latent", "partial"):
        kind = "forward-backward" if site.scan is not None else "sum over values"
        return f"Enumerate: exact, {kind}"
    if role == "parameter":
        return _mstep_of(model, site.name)
    return _form(model, site)


def _integrated(model: Any, name: str) -> str:
    """Which E-step integrates a continuous latent, over what, and why."""
    integral = next(i for i in model.structure.integrals if name in i.sites)
    series, steps, width = integral.block.shape
    layout = f"{series} × {width}" if steps == 1 else f"{series} × chain {steps} × {width}"
    rule = integral.rule
    if isinstance(rule, Unsolved):
        return f"only by simulation, {layout}; {integral.why}"
    exact = ": exact" if rule.capabilities.exact else ""
    return f"{type(rule).__name__}{exact}, {layout}; {integral.why}"


def _mstep_of(model: Any, name: str) -> str:
    places = [a for a in model.structure.assignments if a.param == name]
    if not places:
        return "Newton on Q: not a plain argument of an exponential family with a conjugate prior"
    where = ", ".join(dict.fromkeys(a.term.split("@")[0] for a in places))
    return f"ClosedForm: {places[0].view} of {where}"


def _form(model: Any, site: Any) -> str:
    if site.fn is None:
        return ""
    if any(f.split("@")[0] == site.name for f in model.structure.families):
        return f"{type(site.fn.base).__name__}: sufficient statistics"
    return f"{type(site.fn.base).__name__}: one log-factor per observation"


__all__ = ["Plan", "Site", "covered", "describe", "make_plan"]
