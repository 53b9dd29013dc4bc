"""A variational family for the continuous latents: a NumPyro guide, run and weighed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpyro import handlers
from numpyro import sample as sample_site
from numpyro.distributions import ImproperUniform, biject_to
from numpyro.infer import init_to_value
from numpyro.infer.autoguide import AutoGuide

from emprob.errors import ModelError
from emprob.model import LatentModel, arguments
from emprob.program import ONE_AT_A_TIME


class Drawn(NamedTuple):
    """Latents by site, and the log-density of the guide there."""

    latents: dict[str, Array]
    log_density: Array


class Guide(NamedTuple):
    """A guide ready to run.

    Attributes:
        program: the guide's function.
        args, kwargs: its arguments.
        start: its parameters, unconstrained, by name.
        transforms: unconstrained -> constrained, by name.
        sites: of the latents.
    """

    program: Callable
    args: tuple
    kwargs: dict
    start: dict[str, Array]
    transforms: dict[str, Any]
    sites: tuple[str, ...]

    def draw(self, free: dict[str, Array], key: Array) -> Drawn:
        """One draw at given (unconstrained) parameters of the guide; differentiable in them.

        The log-density is differentiated along the path of the draw alone: what is left out has
        the expectation zero, and without it the gradient's noise ends where the guide is right
        (Roeder, Wu and Duvenaud, 2017, NeurIPS).
        """
        values = {k: self.transforms[k](v) for k, v in free.items()}
        tape = self._tape(values, key)
        drawn = {n: x["value"] for n, x in tape.items() if x["type"] == "sample" and _is_random(x)}
        again = self._tape({**lax.stop_gradient(values), **drawn}, key)
        total = jnp.zeros(())
        for site in again.values():
            if site["type"] == "sample" and not site["is_observed"]:
                total = total + jnp.sum(site["fn"].log_prob(site["value"]))
        return Drawn({n: tape[n]["value"] for n in self.sites}, total)

    def _tape(self, data: dict, key: Array) -> dict:
        return _trace(handlers.substitute(self.program, data=data), key, self.args, self.kwargs)


def _is_random(site: dict) -> bool:
    return not site["is_observed"] and type(site["fn"]).__name__ not in ("Delta", "Unit")


def _trace(program: Callable, key: Array, args: tuple, kwargs: dict) -> dict:
    with ONE_AT_A_TIME:
        return handlers.trace(handlers.seed(program, key)).get_trace(*args, **kwargs)


def guide_of(model: LatentModel, family: Any) -> Guide:
    """A guide for a model's continuous latents.

    Args:
        model: a bound model.
        family: an AutoGuide class such as `AutoNormal`, or a guide of the user's, called with the
            program's arguments, whose sites have the latents' names and shapes.
    """
    s = model.structure
    sites = s.continuous
    if isinstance(family, type) and issubclass(family, AutoGuide):
        shapes = tuple((n, tuple(model.data.held[n].shape)) for n in sites)
        supports = {n: _support(model, n) for n in sites}
        program, args, kwargs = _automatic(family, shapes, _Supports(supports)), (), {}
    else:
        program = family
        args, kwargs = arguments(s.treedef, s.static, model.data.leaves)
    tape = _trace(program, jax.random.PRNGKey(0), args, kwargs)
    _check(tape, model)
    params = {n: x for n, x in tape.items() if x["type"] == "param"}
    transforms = {n: biject_to(x["kwargs"].get("constraint", _real())) for n, x in params.items()}
    start = {n: transforms[n].inv(jnp.asarray(x["value"], float)) for n, x in params.items()}
    return Guide(program, args, kwargs, start, transforms, sites)


def _real() -> Any:
    from numpyro.distributions import constraints

    return constraints.real


def _support(model: LatentModel, name: str) -> Any:
    for integral, data in zip(model.structure.integrals, model.data.integrals, strict=True):
        if name in integral.sites:
            kernel = getattr(integral.rule, "kernel", None)
            return data.transforms[name].codomain if kernel is None else kernel.support
    raise AssertionError(name)


class _Supports:
    """Supports by site, one of a kind for the cache."""

    def __init__(self, supports: dict[str, Any]):
        self.supports = supports
        self._key = tuple((k, repr(v)) for k, v in supports.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Supports) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.lru_cache(maxsize=64)
def _automatic(family: type, shapes: tuple, supports: _Supports) -> Callable:
    """An AutoGuide over sites of these shapes and supports; made outside of any tracing."""

    def latents() -> None:
        for name, shape in shapes:
            event = supports.supports[name].event_dim
            batch = shape[: len(shape) - event]
            law = ImproperUniform(supports.supports[name], batch, shape[len(shape) - event :])
            sample_site(name, law.to_event(len(batch)))

    middle = {n: _middle(supports.supports[n], shape) for n, shape in shapes}
    with jax.ensure_compile_time_eval(), ONE_AT_A_TIME:
        guide = family(latents, init_loc_fn=init_to_value(values=middle))
        with handlers.seed(rng_seed=0):
            guide()
    return guide


def _middle(support: Any, shape: tuple[int, ...]) -> Array:
    transform = biject_to(support)
    return transform(jnp.zeros(transform.inverse_shape(shape)))


def _check(tape: dict, model: LatentModel) -> None:
    for name in model.structure.continuous:
        expected = model.data.held[name].shape
        if name not in tape:
            known = [n for n, x in tape.items() if x["type"] == "sample"]
            raise ModelError(
                f"guide: expected a sample site '{name}' of shape {expected}, its sites are "
                f"{known}. Name the guide's sites as the program's latents; a latent of a scan "
                "has time as its first axis."
            )
        found = jnp.shape(tape[name]["value"])
        if found != expected:
            raise ModelError(
                f"guide: site '{name}': expected shape {expected}, got {found}. A latent of a scan "
                "has time as its first axis."
            )
