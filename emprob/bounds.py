"""Find index data that run out of the array they index: JAX would clamp them silently.

The traced program is walked once. What is computed from data alone is evaluated, but only where
an indexing operation needs it, and compared with the size of the indexed axis. What an offending
index flows into tells the site.
"""

import linecache
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from emprob.dependence import scan_sizes

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Outside(NamedTuple):
    """One index array that leaves its axis: its least and largest value, the axis' size."""

    least: int
    most: int
    size: int
    line: str

    def __str__(self) -> str:
        value = self.most if self.most >= self.size else self.least
        line = f" At {self.line}." if self.line else ""
        return (
            f"an index of {value} into an axis of size {self.size}. Labels must run from 0 to "
            f"{self.size - 1}; JAX would clamp the others silently.{line} Recode the labels "
            "(pd.factorize), or make the array longer."
        )


class Datum:
    """What is computed from data alone, evaluated on demand.

    Args:
        compute: gives the value.
        over_time: whether the value has the time axis of a scan in front.
    """

    def __init__(self, compute: Any, over_time: bool = False):
        self._compute, self.over_time, self._value = compute, over_time, None

    def value(self) -> Any:
        if self._value is None:
            self._value = self._compute()
        return self._value


class Atom(NamedTuple):
    """What is known of a variable: its data, if it is that, and the offenders that reach it."""

    datum: Datum | None
    reached: frozenset[Outside]


def outside_indices(closed: ClosedJaxpr) -> list[frozenset[Outside]]:
    """For each output of a traced program: the offending index arrays that reach it."""
    unknown = Atom(None, frozenset())
    inputs = [unknown] * len(closed.jaxpr.invars)
    return [a.reached for a in _walk(closed.jaxpr, [_given(c) for c in closed.consts], inputs)]


def _given(value: Any) -> Atom:
    return Atom(Datum(lambda: value), frozenset())


def _walk(jaxpr: Jaxpr, consts: Sequence[Atom], inputs: Sequence[Atom]) -> list[Atom]:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(v: Any) -> Atom:
        return _given(v.val) if isinstance(v, Literal) else env[v]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _outputs(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _outputs(eqn: Any, atoms: list[Atom]) -> list[Atom]:
    name = eqn.primitive.name
    if name == "scan":
        return _scan(eqn, atoms)
    for key in _CALLS:
        inner = eqn.params.get(key)
        jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
        if isinstance(jaxpr, Jaxpr) and len(jaxpr.invars) == len(atoms):
            consts = inner.consts if isinstance(inner, ClosedJaxpr) else []
            return _walk(jaxpr, [_given(c) for c in consts], atoms)
    reached = frozenset().union(*(a.reached for a in atoms))
    if name in ("gather", "dynamic_slice"):
        reached |= _offenders(eqn, atoms)
    if any(a.datum is None for a in atoms):
        return [Atom(None, reached)] * len(eqn.outvars)
    data = [a.datum for a in atoms if a.datum is not None]
    whole = Datum(lambda: _bind(eqn, data))
    over_time = any(d.over_time for d in data)
    return [
        Atom(Datum(lambda i=i: whole.value()[i], over_time), reached)
        for i in range(len(eqn.outvars))
    ]


def _bind(eqn: Any, data: list[Datum]) -> list:
    def apply(*values: Any) -> list:
        out = eqn.primitive.bind(*values, **eqn.params)
        return list(out) if eqn.primitive.multiple_results else [out]

    axes = [0 if d.over_time else None for d in data]
    if any(a == 0 for a in axes):
        apply = jax.vmap(apply, in_axes=axes)
    return apply(*[jnp.asarray(d.value()) for d in data])


def _scan(eqn: Any, atoms: list[Atom]) -> list[Atom]:
    """The body once: its inputs over time as they are, its carry taken as not data."""
    consts, carry = scan_sizes(eqn)
    body = eqn.params["jaxpr"]
    state = [Atom(None, a.reached) for a in atoms[consts : consts + carry]]
    xs = [_over_time(a) for a in atoms[consts + carry :]]
    fixed = [_given(c) for c in body.consts]
    while True:
        out = _walk(body.jaxpr, fixed, [*atoms[:consts], *state, *xs])
        new = [Atom(None, s.reached | o.reached) for s, o in zip(state, out)]
        if new == state:
            return [Atom(None, a.reached) for a in out]
        state = new


def _over_time(atom: Atom) -> Atom:
    if atom.datum is None or atom.datum.over_time:  # a scan in a scan is not followed
        return Atom(None, atom.reached)
    return Atom(Datum(atom.datum.value, True), atom.reached)


def _offenders(eqn: Any, atoms: list[Atom]) -> frozenset[Outside]:
    shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    if eqn.primitive.name == "gather":
        if eqn.params.get("fill_value") is not None or atoms[1].datum is None:
            return frozenset()
        axes = eqn.params["dimension_numbers"].start_index_map
        index = np.asarray(atoms[1].datum.value())
        columns = [index[..., i] for i in range(len(axes))]
    else:
        axes = [i for i, a in enumerate(atoms[1:]) if a.datum is not None]
        columns = [np.asarray(atoms[1 + i].datum.value()) for i in axes]  # pyright: ignore
    found = set()
    for axis, column in zip(axes, columns, strict=True):
        least, most = (int(column.min()), int(column.max())) if column.size else (0, 0)
        if least < 0 or most > shape[axis] - sizes[axis]:
            found.add(Outside(least, most, shape[axis], _line(eqn)))
    return frozenset(found)


def _line(eqn: Any) -> str:
    """Where in the program: 'file:line: code', or '' where JAX does not tell."""
    try:
        from jax._src import source_info_util

        frame = source_info_util.user_frame(eqn.source_info.traceback)
    except (ImportError, AttributeError, TypeError):
        return ""
    if frame is None:
        return ""
    code = linecache.getline(frame.file_name, frame.start_line).strip()
    return f"{Path(frame.file_name).name}:{frame.start_line}: {code}".rstrip(": ")
