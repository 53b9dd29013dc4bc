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
    name = eqn.primitive.name
    if name == "scan":
        return _scan(eqn, marks)
    if name == "while":
        return _while(eqn.params, marks)
    if name in _TRANSPARENT:
        for key in _CALLS:
            inner = _open(eqn.params.get(key))
            if inner is not None and len(inner.invars) == len(marks):
                return dependence(inner, marks)
    return [True] * len(eqn.outvars)


def _open(jaxpr) -> Jaxpr | None:
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return jaxpr if isinstance(jaxpr, Jaxpr) else None


def scan_sizes(eqn) -> tuple[int, int]:
    """How many inputs of a scan are the same at all steps, and how many it carries.

    Read off the shapes, as JAX has changed the names of the parameters: what goes in or comes out
    by time has an axis less in the body.
    """
    body = _open(eqn.params["jaxpr"])
    assert body is not None

    def by_time(outer, inner) -> int:
        return sum(len(a.aval.shape) > len(b.aval.shape) for a, b in zip(outer, inner, strict=True))

    carry = len(eqn.outvars) - by_time(eqn.outvars, body.outvars)
    return len(eqn.invars) - by_time(eqn.invars, body.invars) - carry, carry


def _scan(eqn, marks: list[bool]) -> list[bool]:
    """Carry to a fixed point: what a loop's state can be reached by after any number of steps."""
    jaxpr, (consts, carry) = _open(eqn.params["jaxpr"]), scan_sizes(eqn)
    assert jaxpr is not None
    while True:
        out = dependence(jaxpr, marks)
        state = [a or b for a, b in zip(marks[consts : consts + carry], out[:carry], strict=True)]
        if state == marks[consts : consts + carry]:
            return out
        marks = marks[:consts] + state + marks[consts + carry :]


def _while(params, marks: list[bool]) -> list[bool]:
    """As for scan; whatever decides when the loop ends reaches all of its state."""
    cond, body = _open(params["cond_jaxpr"]), _open(params["body_jaxpr"])
    assert cond is not None and body is not None
    skip, consts = params["cond_nconsts"], params["body_nconsts"]
    test, fixed, state = marks[:skip], marks[skip : skip + consts], marks[skip + consts :]
    while True:
        out = dependence(body, fixed + state)
        ends = any(dependence(cond, test + state))
        new = [a or b or ends for a, b in zip(state, out, strict=True)]
        if new == state:
            return state
        state = new
