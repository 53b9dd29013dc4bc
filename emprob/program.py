"""Run a NumPyro program and read off its log-factors.

Only this file, `scan.py` and `unwrapped.py` touch NumPyro's internals. One run, at given values of
the parameters and with the discrete latents replaced by all their values (each on an array
dimension of its own), gives one `Term` for every factor of the joint density:

    log-factor = <natural, statistics> + offset

`natural` is what the parameters move, the rest are constants of the data. In table form the natural
is the log-probability and the statistics a weight (mask and scale); in family form (exponential
families whose parameters do not vary along a plate of the data) the bracket contracts a trailing
axis, the statistics are made from the value when they are needed, and their last entry is one.

Array layout, aligned from the right:  [times..., enumerated variables..., plates...][statistics].
"""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.distributions.distribution import (
    Unit,
    validation_enabled,
)
from numpyro.primitives import _PYRO_STACK, Messenger

from emprob.alignment import aligned, fold_loose
from emprob.densities import log_density
from emprob.errors import ModelError
from emprob.evaluation import (
    Evaluation,
    Plate,
    Term,
    TermSpec,
    Unwrapped,
    Variable,
    arguments_of,
    event_sizes,
    flatten_event,
    sum_event,
)
from emprob.families import Family, family_of
from emprob.unwrapped import unwrap

# NumPyro keeps its handlers in one stack for all threads, so programs run one at a time.
ONE_AT_A_TIME = threading.RLock()
MAX_STATISTICS = 400  # wider statistics (a long one-hot) are cheaper as a table


@dataclass(frozen=True)
class Context:
    """Where in the program a site stands: at top level, in an unrolled step, in a scan's body.

    Attributes:
        suffix: appended to the names of terms and variables ("@0" in an unrolled step).
        time: name of the scan, inside its vectorised body.
        index: which slice of a parameter with a time axis is meant (None: it has none).
        dry: only carry data forward, record nothing.
    """

    suffix: str = ""
    time: str | None = None
    index: Any = None
    dry: bool = False


class Interpreter(Messenger):
    """The effect handler that turns a program into an `Evaluation`.

    Args:
        roles: role of each unobserved site ("parameter", "latent", "continuous", "grid", "delta");
            observed discrete sites with missing entries have role "partial".
        params: value of each parameter and continuous latent, constrained space, by site; nodes
            (K,) of a latent on a grid.
        depth: number of array dimensions that plates use.
        missing: names of observed sites that hold NaN.
        families: names of terms that are put into family form.
        origins: reference point of the statistics, by site.
        invariant: names of scan-body terms that do not vary in time.
        timed: names of parameters that stand inside a scan, with time as their first axis.
    """

    def __init__(
        self,
        roles: Mapping[str, str],
        params: Mapping[str, Array],
        depth: int,
        missing: frozenset[str] = frozenset(),
        families: frozenset[str] = frozenset(),
        origins: Mapping[str, Array] | None = None,
        invariant: frozenset[str] = frozenset(),
        timed: frozenset[str] = frozenset(),
    ):
        super().__init__(None)
        self.roles, self.params, self.depth = roles, params, depth
        self.missing, self.families = missing, families
        self.origins, self.invariant = origins or {}, invariant
        self.out = Evaluation()
        self.context = Context()
        self.timed = timed
        self.values: dict[int, tuple[Any, str]] = {}  # id(value) -> variable; keeps value alive
        self.held: dict[int, tuple[Any, Any]] = {}  # id(value) -> continuous latent, or its slot
        self.plain: dict[str, Array] = {}  # what each variable looks like when not enumerated
        self.num_dims = 0
        self.probe = jnp.zeros((), int)  # added to every latent, to see what depends on latents

    # -- dimensions -------------------------------------------------------------------------

    def new_dim(self) -> int:
        """The next free array dimension for an enumerated variable."""
        self.num_dims += 1
        return -self.depth - self.num_dims

    def variable_of(self, value: Any) -> str | None:
        """Name of the variable whose enumerated value this object is, if any."""
        if type(value).__name__ == "LatentPath":
            return value._site
        hit = self.values.get(id(value))
        return hit[1] if hit is not None else None

    def remember(self, value: Any, name: str) -> Any:
        self.values[id(value)] = (value, name)
        return value

    # -- messages ---------------------------------------------------------------------------

    def process_message(self, msg: dict) -> None:
        kind = msg["type"]
        if kind == "control_flow":
            from emprob.scan import interpret_scan

            interpret_scan(self, msg)
        elif kind == "plate":
            self._plate(msg)
        elif kind == "param":
            msg["value"] = self._parameter_value(msg["name"])
        elif kind == "sample":
            self._sample(msg)

    def postprocess_message(self, msg: dict) -> None:
        if msg["type"] == "deterministic" and not self.context.suffix and not self.context.time:
            self.out.deterministics[msg["name"]] = msg["value"]

    def _plate(self, msg: dict) -> None:
        size, subsample = msg["args"]
        if subsample is not None and subsample != size:
            raise ModelError(
                f"plate '{msg['name']}': subsample_size={subsample} of {size}. Exact EM needs "
                "every element; remove subsample_size."
            )

    def _parameter_value(self, name: str) -> Array:
        value = self.params[name]
        index = self.context.index
        return index(name, value) if index is not None and name in self.timed else value

    def _sample(self, msg: dict) -> None:
        name, fn = msg["name"], unwrap(msg["fn"], self._masks())
        role = self.roles.get(name, "observed" if msg["is_observed"] else "parameter")
        if self.context.dry:
            self._dry(msg, fn, role)
        elif role == "delta":
            msg["value"] = msg["fn"].sample(jax.random.key(0))
        elif role == "parameter":
            self._parameter(msg, fn)
        elif role in ("latent", "partial"):
            self._latent(msg, fn, role)
        elif role == "grid":
            self._on_grid(msg, fn)
        elif role == "continuous":
            self._continuous(msg, fn)
        else:
            self._observed(msg, fn)

    def _masks(self) -> list:
        """Masks of the handlers inside this one that act, outermost first."""
        inner = _PYRO_STACK[_PYRO_STACK.index(self) + 1 :]
        return [h.mask for h in inner if isinstance(h, handlers.mask) and h.mask is not True]

    def _dry(self, msg: dict, fn: Unwrapped, role: str) -> None:
        """Only carry data forward: latents at their first value, no factors."""
        if role in ("parameter", "continuous"):
            msg["value"] = self._parameter_value(msg["name"])
        elif role in ("latent", "partial"):
            first = fn.base.enumerate_support(expand=False)[0]
            msg["value"] = jnp.broadcast_to(first, msg["fn"].batch_shape)
        elif role == "delta":
            msg["value"] = msg["fn"].sample(jax.random.key(0))

    def _parameter(self, msg: dict, fn: Unwrapped) -> None:
        name = msg["name"]
        msg["value"] = value = self._parameter_value(name)
        log_prob = _scaled(msg, msg["fn"].log_prob(value))
        batch = jnp.shape(value)[: jnp.ndim(value) - msg["fn"].event_dim]
        if log_prob.size > math.prod(batch):
            self._conditional_prior(msg, fn, log_prob)
            return
        key = name + self.context.suffix
        self.out.log_priors[key] = jnp.sum(log_prob)
        self.out.priors[name] = fn

    def _conditional_prior(self, msg: dict, fn: Unwrapped, log_prob: Array) -> None:
        """A parameter's prior that varies with a latent is a factor of the sum over the latent."""
        nothing = jnp.zeros(())
        plates = self._frames(msg)
        self._record(msg, fn, log_prob, jnp.ones(()), nothing, nothing, own=None, plates=plates)
        key = msg["name"] + self.context.suffix
        self.out.terms[key] = self.out.terms[key]._replace(arguments={})
        self.out.specs[key] = self.out.specs[key]._replace(family=None)

    def _frames(self, msg: dict) -> frozenset[str]:
        names = set()
        for frame in msg["cond_indep_stack"]:
            plate = Plate(frame.name, frame.dim, frame.size)
            known = self.out.plates.setdefault(frame.name, plate)
            if known != plate:
                raise ModelError(
                    f"plate '{frame.name}' is used with dim={known.dim}, size={known.size} and "
                    f"again with dim={plate.dim}, size={plate.size}. Give the plates two names."
                )
            names.add(frame.name)
        if self.context.time is not None:
            names.add(self.context.time)
        return frozenset(names)

    def _latent(self, msg: dict, fn: Unwrapped, role: str) -> None:
        atoms = _atoms(msg["name"], fn)
        name, value, plates = self._enumerated(msg, atoms)
        natural = log_density(fn.base, value)
        coefficient, offset = jnp.ones(()), jnp.zeros(())
        if fn.mask is not None:
            coefficient = fn.mask.astype(natural.dtype)
            offset = jnp.where(fn.mask, 0.0, -jnp.log(float(len(atoms))))
        if role == "partial":
            self.out.evidence.add(msg["name"])
            seen = msg["value"]
            agrees = jnp.isnan(seen) | (jnp.nan_to_num(seen) == value)
            offset = offset + jnp.where(agrees, 0.0, -jnp.inf)
        _refuse_scale(msg)
        msg["value"] = value
        self._record(msg, fn, natural, coefficient, offset, value, own=name, plates=plates)

    def _enumerated(self, msg: dict, atoms: Array) -> tuple[str, Array, frozenset[str]]:
        """A latent as a variable: its name, its atoms (K,) on a new dimension, its plates."""
        name = msg["name"] + self.context.suffix
        plates = self._frames(msg)
        dim = self.new_dim()
        self.out.variables[name] = Variable(name, msg["name"], dim, len(atoms), plates)
        self.out.atoms[name] = atoms
        value = atoms.reshape((-1,) + (1,) * (-dim - 1)) + self.probe.astype(atoms.dtype)
        self.remember(value, name)
        self.plain[name] = jnp.broadcast_to(atoms[0], msg["fn"].batch_shape)
        return name, value, plates

    def _on_grid(self, msg: dict, fn: Unwrapped) -> None:
        """A continuous latent summed over common nodes: the trapezoid rule for its integral."""
        _refuse_scale(msg)
        nodes = self._parameter_value(msg["name"])
        name, value, plates = self._enumerated(msg, nodes)
        steps = jnp.diff(nodes)
        room = 0.5 * (jnp.append(steps, 0.0) + jnp.insert(steps, 0, 0.0))
        natural = log_density(fn.base, value) + jnp.log(room).reshape(value.shape)
        seen = jnp.ones(()) if fn.mask is None else fn.mask.astype(natural.dtype)
        nothing, msg["value"] = jnp.zeros(()), value
        self._record(msg, fn, natural, seen, nothing, value, own=name, plates=plates)

    def _continuous(self, msg: dict, fn: Unwrapped) -> None:
        """A continuous latent at a given value: a factor of the complete data, as if observed."""
        name = msg["name"]
        _refuse_scale(msg)
        msg["value"] = value = self._parameter_value(name)
        self.held[id(value)] = (value, name)
        self._observed(msg, fn)

    def _observed(self, msg: dict, fn: Unwrapped) -> None:
        name, base = msg["name"], fn.base
        plates = self._frames(msg)
        if isinstance(base, Unit):
            natural = jnp.asarray(base.log_factor)
            self._record(
                msg,
                fn,
                natural,
                _weight(msg, fn.mask),
                jnp.zeros(()),
                jnp.zeros(()),
                own=None,
                plates=plates,
            )
            return
        value, mask = jnp.asarray(msg["value"]), fn.mask
        if name in self.missing:
            value, mask = _without_nan(value, base, fn.reinterpreted, mask)
        coefficient = _weight(msg, mask)
        if name + self.context.suffix in self.families:
            self._record_family(msg, fn, value, coefficient, plates)
            return
        natural, folded = log_density(base, value), False
        if fn.reinterpreted:
            natural, coefficient, folded = _reduce_event(natural, coefficient, value, fn)
        self._record(
            msg,
            fn,
            natural,
            coefficient,
            jnp.zeros(()),
            value,
            own=None,
            plates=plates,
            folded=folded,
        )

    def _record_family(
        self, msg: dict, fn: Unwrapped, value: Array, weight: Array, plates: frozenset[str]
    ) -> None:
        family, base, r = _family(fn.base), fn.base, fn.reinterpreted
        origin = self.origins.get(msg["name"], jnp.zeros(()))
        eta, log_normalizer = family.natural(base, origin)
        natural = jnp.concatenate([eta, -log_normalizer[..., None]], -1)
        if r:  # the event dimensions join the statistics axis
            natural = flatten_event(natural, event_sizes(value, base.event_dim, r))
            weight = weight.reshape((1,) * r) if weight.ndim == 0 else weight
        self._record(
            msg,
            fn,
            natural,
            weight,
            jnp.zeros(()),
            value,
            own=None,
            plates=plates,
            in_family_form=True,
            origin=origin,
        )

    def _record(self, msg, fn, natural, coefficient, offset, value, *, own, plates,
                in_family_form=False, folded=False, origin=None) -> None:  # fmt: skip
        name = msg["name"] + self.context.suffix
        if name in self.out.terms:
            raise ModelError(
                f"site '{msg['name']}' occurs twice in the program. Give each site its own name."
            )
        family = family_of(fn.base)
        arguments = {} if family is None else arguments_of(fn.base)
        origin = jnp.zeros(()) if origin is None else origin
        self.out.terms[name] = Term(natural, coefficient, offset, arguments, value, origin)
        self.out.specs[name] = TermSpec(
            name, msg["name"], plates, self.context.time, family, in_family_form, own,
            fn.reinterpreted, fn.base.event_dim, type(fn.base), folded,
        )  # fmt: skip


def _refuse_scale(msg: dict) -> None:
    if msg["scale"] is not None:
        raise ModelError(
            f"site '{msg['name']}': handlers.scale on a latent has no meaning as a probability. "
            "Scale the observed site instead."
        )


def _family(base: Any) -> Family:
    family = family_of(base)
    assert family is not None
    return family


def _scaled(msg: dict, log_prob: Array) -> Array:
    return log_prob if msg["scale"] is None else msg["scale"] * log_prob


def _weight(msg: dict, mask: Array | None) -> Array:
    weight = jnp.ones(()) if mask is None else mask.astype(float)
    return weight if msg["scale"] is None else weight * msg["scale"]


def _atoms(site: str, fn: Unwrapped) -> Array:
    """Values of a discrete latent (K,)."""
    if fn.reinterpreted or fn.base.event_dim:
        raise ModelError(
            f"site '{site}': a discrete latent with event dimensions cannot be enumerated. "
            "Use a plate instead of to_event."
        )
    try:
        support = fn.base.enumerate_support(expand=False)
    except NotImplementedError:
        raise ModelError(
            f"site '{site}': {type(fn.base).__name__} has no finite list of values to sum over. "
            "Truncate it (dist.Categorical over 0..n) or use a Monte Carlo E-step."
        ) from None
    return jnp.asarray(support).reshape(-1)


def _without_nan(
    value: Array, base: Any, reinterpreted: int, mask: Array | None
) -> tuple[Array, Array]:
    """Replace NaN by a value of the support and mask the factor there (whole base events)."""
    seen = ~jnp.isnan(value)
    if base.event_dim:
        seen = seen.all(tuple(range(-base.event_dim, 0)))
    hole = seen.reshape(seen.shape + (1,) * base.event_dim)
    value = jnp.where(hole, value, base.support.feasible_like(value))
    value = value.astype(int) if base.support.is_discrete else value
    return value, seen if mask is None else seen & mask


def _reduce_event(
    natural: Array, coefficient: Array, value: Array, fn: Unwrapped
) -> tuple[Array, Array, bool]:
    """Sum a table over its reinterpreted dimensions, masked elements left out."""
    r = fn.reinterpreted
    end = value.ndim - fn.base.event_dim
    event = value.shape[end - r : end]
    natural = jnp.broadcast_to(natural, (*natural.shape[:-r], *event))
    if coefficient.ndim == 0:
        return sum_event(natural, r), coefficient, False
    if all(n == 1 for n in coefficient.shape[coefficient.ndim - r :]):
        outer = coefficient.shape[: coefficient.ndim - r]
        return sum_event(natural, r), coefficient.reshape(outer), False
    kept = jnp.where(coefficient == 0, 0.0, natural)
    return sum_event(coefficient * kept, r), jnp.ones(()), True


def run(program: Callable, args: tuple, kwargs: Mapping, interpreter: Interpreter) -> Evaluation:
    """Run the program under the interpreter and align every term to the common layout."""
    with ONE_AT_A_TIME, validation_enabled(False), handlers.seed(rng_seed=0), interpreter:
        interpreter.out.returned = program(*args, **kwargs)
    out = interpreter.out
    rank = interpreter.depth + interpreter.num_dims
    times = [c.name for c in out.chains.values()]
    for i, time in enumerate(times):
        chain = out.chains[time]
        out.plates[time] = Plate(time, -(rank + 1 + i), chain.length, is_time=True)
    for name, term in out.terms.items():
        out.terms[name] = fold_loose(aligned(term, out.specs[name], rank, times), name, out)
    return out
