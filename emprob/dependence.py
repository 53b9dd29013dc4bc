"""Which outputs of a traced function depend on which inputs."""

from collections.abc import Sequence

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_TRANSPARENT = {"pjit", "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
                "remat", "checkpoint", "remat2"}  # fmt: skip


def dependence(jaxpr: Jaxpr, sources: Sequence[bool]) -> list[bool]:
    """True for each output of `jaxpr` that some input marked in `sources` can reach.

    Calls are followed into; loops and branches are taken as all-to-all, which errs on the safe
    side.
    """
    tainted = {v for v, s in zip(jaxpr.invars, sources, strict=True) if s}

    def is_tainted(atom) -> bool:
        return not isinstance(atom, Literal) and atom in tainted

    for eqn in jaxpr.eqns:
        marks = [is_tainted(v) for v in eqn.invars]
        if not any(marks):
            continue
        for v, mark in zip(eqn.outvars, _outputs(eqn, marks), strict=True):
            if mark:
                tainted.add(v)
    return [is_tainted(v) for v in jaxpr.outvars]


def _outputs(eqn, marks: list[bool]) -> list[bool]:
    if eqn.primitive.name in _TRANSPARENT:
        for key in _CALLS:
            inner = eqn.params.get(key)
            if isinstance(inner, ClosedJaxpr):
                inner = inner.jaxpr
            if isinstance(inner, Jaxpr) and len(inner.invars) == len(marks):
                return dependence(inner, marks)
    return [True] * len(eqn.outvars)
