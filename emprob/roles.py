"""What each site of a program is: parameter, latent, observed.

A survey runs the program once, plainly, with every scan's body run at its first step only. An
unobserved sample site is latent if it is discrete, or its prior depends on another unobserved
site, or it shares a plate or a scan with an observed site, or it is the first state of a scan's
chain; else it is a parameter.
`numpyro.param` sites are parameters.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.distribution import Unit
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from emprob.dependence import dependence
from emprob.errors import ModelError, nearest
from emprob.evaluation import Unwrapped
from emprob.program import ONE_AT_A_TIME
from emprob.space import bijection, forward
from emprob.unwrapped import unwrap


@dataclass
class SurveyedSite:
    """One site as a plain run of the program sees it."""

    name: str
    kind: str  # "sample", "param", "deterministic"
    observed: bool
    value: Any
    support: Any
    frames: tuple[tuple[str, int, int], ...]
    scan: int | None
    batch_ndim: int
    fn: Unwrapped | None = None
    batch_shape: tuple[int, ...] = ()
    event_shape: tuple[int, ...] = ()
    length: int = 0  # of the scan that holds the site

    @property
    def event_dim(self) -> int:
        return len(self.event_shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the site's value, at one time step."""
        if self.kind == "sample" and not self.observed:
            return (*self.batch_shape, *self.event_shape)
        return np.shape(self.value)

    @property
    def middle(self) -> Any:
        """A point near the middle of an unobserved site's prior, at one time step."""
        fn = self.fn
        assert fn is not None
        shape = self.shape
        transform = bijection(self.support)
        zero = forward(transform, jnp.zeros(transform.inverse_shape(shape)))
        try:
            mean = jnp.broadcast_to(fn.base.mean, shape)
        except (NotImplementedError, AttributeError, TypeError, ValueError):
            return zero
        inside = jnp.isfinite(mean).all() & jnp.isfinite(transform.inv(mean)).all()
        return jnp.where(inside, mean, zero)

    @property
    def discrete(self) -> bool:
        return bool(self.fn is not None and self.fn.base.support.is_discrete)


@dataclass
class Survey:
    """All sites in program order, the length of each scan, and what is observed in scans.

    `series` has, by observed site of a scan, its values and mask with time as their first axis;
    `deterministics` the shape of each deterministic site where no latent is enumerated; `carried`
    the sites whose value fills the carry of a scan before its first step.
    """

    sites: dict[str, SurveyedSite] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    series: dict[str, tuple[np.ndarray, np.ndarray | None]] = field(default_factory=dict)
    deterministics: dict[str, tuple[int, ...]] = field(default_factory=dict)
    carried: set[str] = field(default_factory=set)

    @property
    def has_states(self) -> bool:
        """Whether some scan has continuous latents of its own, which a carry may hold."""
        free = [s for s in self.sites.values() if not s.observed and s.kind == "sample"]
        return any(s.scan is not None and not s.discrete for s in free)


class Surveyor(Messenger):
    """Run a program plainly and note its sites.

    Args:
        values: values for some unobserved sites; the rest are drawn.
        seed: another number, other draws.
        labels: what the program sees of some observed labels.
    """

    def __init__(
        self, values: Mapping[str, Array] | None = None, seed: int = 0,
        labels: Mapping[str, Array] | None = None,
    ):  # fmt: skip
        super().__init__(None)
        self.values, self.seed, self.labels = values, seed, labels or {}
        self.carries: list[Any] = []  # of each scan, after its first step
        self.out = Survey()
        self.plates: dict[str, int] = {}  # met so far, for messages
        self.scan: int | None = None
        self.recorded: dict[str, tuple] | None = None  # while a whole series is recorded

    def process_message(self, msg: dict) -> None:
        kind = msg["type"]
        if self.recorded is not None:
            self._record(msg)
            return
        if kind == "control_flow":
            self._scan(msg)
        elif kind == "plate":
            size, subsample = msg["args"]
            self.plates[msg["name"]] = size
            if subsample is not None and subsample != size:
                raise ModelError(
                    f"plate '{msg['name']}': subsample_size={subsample} of {size}. Exact EM "
                    "needs every element; remove subsample_size."
                )
        elif kind == "param" and self.values and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        elif kind == "sample" and not msg["is_observed"]:
            name, values = msg["name"], self.values or {}
            msg["value"] = values[name] if name in values else draw(name, msg["fn"], self.seed)

    def _record(self, msg: dict) -> None:
        """One step of a series: unobserved sites as at the first step, observed ones noted."""
        known = self.out.sites.get(msg.get("name", ""))
        if msg["type"] == "param" or (msg["type"] == "sample" and not msg["is_observed"]):
            msg["value"] = known.value if known is not None else msg["value"]
        elif msg["type"] == "sample" and not isinstance(unwrap(msg["fn"]).base, Unit):
            mask = unwrap(msg["fn"]).mask
            assert self.recorded is not None
            self.recorded[msg["name"]] = (jnp.asarray(msg["value"]), mask)

    def postprocess_message(self, msg: dict) -> None:
        self._note(msg)
        if msg["type"] == "deterministic":
            self.out.deterministics[msg["name"]] = np.shape(msg["value"])
        if msg["type"] == "sample" and msg["is_observed"]:
            msg["value"] = self.labels.get(
                msg["name"], _label(msg["value"], unwrap(msg["fn"]).base)
            )

    def _note(self, msg: dict) -> None:
        if msg["type"] not in ("sample", "param") or self.recorded is not None:
            return
        name = msg["name"]
        if name in self.out.sites:
            raise ModelError(f"site '{name}' occurs twice in the program. Rename one of the two.")
        frames = tuple((f.name, f.dim, f.size) for f in msg["cond_indep_stack"])
        if msg["type"] == "param":
            support = msg["kwargs"].get("constraint", constraints.real)
            site = SurveyedSite(name, "param", False, msg["value"], support, frames, self.scan, 0)
        else:
            fn = msg["fn"]
            site = SurveyedSite(
                name, "sample", msg["is_observed"], msg["value"], fn.support, frames, self.scan,
                _batch_ndim(msg), unwrap(fn), tuple(fn.batch_shape),
                tuple(fn.event_shape),
            )  # fmt: skip
        if self.scan is not None:
            site.length = self.out.lengths[self.scan]
        self.out.sites[name] = site

    def _scan(self, msg: dict) -> None:
        f, init, xs, length, _ = msg["args"]
        leaves = jax.tree.leaves(xs)
        length = int(length) if length is not None else int(jnp.shape(leaves[0])[0])
        if length == 0:
            raise ModelError("scan: a series of length 0. There must be at least one time step.")
        if self.scan is not None:
            raise ModelError("a scan inside a scan is not supported. Merge the two bodies.")
        self.scan = len(self.out.lengths)
        self.out.lengths.append(length)
        try:
            carry, y = f(init, jax.tree.map(lambda x: x[0], xs))
        finally:
            self.scan = None
        self.carries.append(carry)
        if self.values is None:
            self.out.series |= self._series(f, init, xs, length)
        repeat = lambda v: jnp.broadcast_to(jnp.asarray(v), (length, *jnp.shape(v)))  # noqa: E731
        msg["value"] = ((length, None, carry), (PytreeTrace({}), jax.tree.map(repeat, y)))
        starts = {id(leaf) for leaf in jax.tree.leaves(init)}
        self.out.carried |= {s.name for s in self.out.sites.values() if id(s.value) in starts}

    def _series(self, f: Callable, init: Any, xs: Any, length: int) -> dict[str, tuple]:
        """Observed values and masks of all steps of a scan."""

        def step(carry: Any, x: Any) -> tuple[Any, dict]:
            self.recorded = {}
            with handlers.seed(rng_seed=0):
                after, _ = f(carry, x)
            fit = lambda new, old: jnp.broadcast_to(new, old.shape).astype(old.dtype)  # noqa: E731
            return jax.tree.map(fit, after, carry), self.recorded

        try:
            _, series = jax.lax.scan(step, jax.tree.map(jnp.asarray, init), xs, length=length)
        finally:
            self.recorded = None
        return jax.tree.map(np.asarray, series)


def _batch_ndim(msg: dict) -> int:
    """Batch dimensions of a site; data in no plate may have more than their distribution."""
    fn = msg["fn"]
    data = np.ndim(msg["value"]) - fn.event_dim if msg["is_observed"] else 0
    return max(len(fn.batch_shape), data)


def _label(value: Any, base: Any) -> Any:
    """What the program sees of observed labels that are floats (so that NaN can be unknown)."""
    finite = getattr(base, "has_enumerate_support", False)
    if not finite or base.event_dim or jnp.asarray(value).dtype.kind != "f":
        return value
    return jnp.nan_to_num(value).astype(int)


def draw(name: str, fn: Any, seed: int = 0) -> Array:
    """Some value in the support of a distribution; of a finite one, the `seed`-th.

    The latter has size one in every plate, as it will have when it is enumerated: a plain run then
    costs no more than one element.
    """
    base = unwrap(fn).base
    if base.support.is_discrete:
        try:
            atoms = base.enumerate_support(expand=False)
            return jnp.broadcast_to(atoms[seed % len(atoms)], (1,) * len(fn.shape()))
        except NotImplementedError:
            return fn.sample(jax.random.key(seed))
    centre = _centre(fn)
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    spread = 0.1 if seed == 0 else 1.0
    return forward(bijection(fn.support), centre + spread * rng.normal(size=centre.shape))


def _centre(fn: Any) -> Array:
    """The prior mean in unconstrained space, or zero where there is none.

    No prior is sampled: drawing a Dirichlet or a Gamma takes seconds to compile.
    """
    transform = bijection(fn.support)
    zero = jnp.zeros(transform.inverse_shape(fn.shape()))
    try:
        centre = transform.inv(jnp.broadcast_to(fn.mean, fn.shape()))
    except (NotImplementedError, AttributeError, TypeError, ValueError):
        return zero
    return jnp.where(jnp.isfinite(centre), centre, zero)


def survey(program: Callable, args: tuple, kwargs: Mapping, values=None, seed: int = 0) -> Survey:
    """Run the program once and note its sites."""
    surveyor = Surveyor(values, seed)
    with ONE_AT_A_TIME, handlers.seed(rng_seed=0), surveyor:
        program(*args, **kwargs)
    return surveyor.out


def prior_dependence(program: Callable, args: tuple, kwargs: Mapping, found: Survey) -> set[str]:
    """Names of unobserved sample sites whose prior depends on another unobserved site."""
    free = {
        n: jnp.asarray(s.value, float)
        for n, s in found.sites.items()
        if not s.observed and not s.discrete
    }

    def priors(values: dict) -> dict:
        again = survey(program, args, kwargs, values)
        return {
            n: jax.tree.leaves(s.fn.base)
            for n, s in again.sites.items()
            if s.fn is not None and not s.observed
        }

    closed, shapes = jax.make_jaxpr(priors, return_shape=True)(free)
    order = list(jax.tree.leaves({n: n for n in free}))
    dependent = set()
    for source in order:
        marks = dependence(closed.jaxpr, [n == source for n in order])
        tree = jax.tree.unflatten(jax.tree.structure(shapes), marks)
        dependent |= {n for n, leaves in tree.items() if n != source and any(leaves)}
    return dependent


def labels_in_use(
    program: Callable, args: tuple, kwargs: Mapping, found: Survey, names: Sequence[str]
) -> set[str]:
    """Which observed labels the program goes on to use: a missing one is then a latent.

    One that nothing depends on integrates to one, and is left out.
    """
    if not names:
        return set()
    bases = {n: s.fn.base for n, s in found.sites.items() if s.fn is not None}
    labels = {n: jnp.asarray(_label(found.sites[n].value, bases[n])) for n in names}

    def consumers(labels: dict) -> list:
        surveyor = Surveyor({}, 0, labels)
        with ONE_AT_A_TIME, handlers.seed(rng_seed=0), surveyor, handlers.trace() as trace:
            program(*args, **kwargs)
        sites = [s.fn.base for s in surveyor.out.sites.values() if s.fn is not None]
        plain = [m["value"] for m in trace.values() if m["type"] == "deterministic"]
        return jax.tree.leaves((sites, plain, surveyor.carries))

    closed = jax.make_jaxpr(consumers)(labels)
    order = jax.tree.leaves({n: n for n in labels})
    return {n for n in order if any(dependence(closed.jaxpr, [n == m for m in order]))}


def assign_roles(
    found: Survey, dependent: set[str], latents: Sequence[str] | None
) -> dict[str, str]:
    """Role of each unobserved site, by the rule of the module's head or as told."""
    unobserved = [s for s in found.sites.values() if not s.observed]
    if latents is not None:
        known = [s.name for s in unobserved if s.kind == "sample"]
        for name in latents:
            if name not in known:
                raise ModelError(
                    f"latents={tuple(latents)!r}: the program has no unobserved sample site "
                    f"'{name}'.{nearest(name, known)}"
                )
    shared_plates = {f[0] for s in found.sites.values() if _is_data(s) for f in s.frames}
    shared_scans = {s.scan for s in found.sites.values() if _is_data(s) and s.scan is not None}
    roles = {}
    for site in unobserved:
        beside_data = any(f[0] in shared_plates for f in site.frames) or site.scan in shared_scans
        beside_data |= site.name in found.carried and found.has_states
        roles[site.name] = _role(site, site.name in dependent or beside_data, latents)
    return roles


def _is_data(site: SurveyedSite) -> bool:
    return site.observed and not isinstance(site.fn.base if site.fn else None, Unit)


def _role(site: SurveyedSite, by_rule: bool, latents: Sequence[str] | None) -> str:
    if site.kind == "param":
        return "parameter"
    if site.fn is not None and isinstance(site.fn.base, dist.Delta):
        return "delta"
    if site.discrete:
        if latents is not None and site.name not in latents:
            raise ModelError(
                f"site '{site.name}' is discrete and unobserved: it can only be latent, but "
                f"latents={tuple(latents)!r} leaves it out. Name it too, or observe it."
            )
        return "latent"
    if latents is not None:
        return "continuous" if site.name in latents else "parameter"
    return "continuous" if by_rule else "parameter"


def is_partial(site: SurveyedSite, value: Any) -> bool:
    """An observed discrete site whose missing entries can be summed over."""
    if not site.observed or not site.discrete or site.fn is None or site.event_dim:
        return False
    if not site.fn.base.has_enumerate_support:  # a missing count sums to one by itself
        return False
    value = np.asarray(value)
    return value.dtype.kind == "f" and bool(np.isnan(value).any())
