"""Compile in a hurry what runs once, or on few numbers.

Derivatives of high order of a small program, and any of a long one, are thousands of operations on
short arrays: half a minute of optimisation for milliseconds of work. Where little is computed (see
`work.py`), XLA is asked to leave most of its optimisation out, which takes half the time or less.
"""

from collections.abc import Callable
from functools import cache, cached_property, update_wrapper
from typing import Any

import jax
from jax.core import Tracer

OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}


@cache
def options() -> dict[str, Any] | None:
    """Those of the options that this version of XLA knows; None if there are none."""
    if jax.default_backend() != "cpu":
        return None
    return {k: v for k, v in OPTIONS.items() if _is_known({k: v})} or None


def _is_known(option: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=option)(0.0)
    except Exception:  # whatever XLA says of an option that it does not know
        return False
    return True


class Hurried:
    """A function that is jitted in a hurry for little work, else as always.

    Args:
        f: of arrays.
        little: of the same positional arguments: whether there is little to be computed.
        settings: of `jax.jit`.
    """

    def __init__(self, f: Callable, little: Callable[..., bool], **settings: Any):
        self.f, self.little, self.settings = f, little, settings
        self.thorough: Any = jax.jit(f, **settings)
        update_wrapper(self, f)

    @cached_property
    def quick(self) -> Any:
        return jax.jit(self.f, compiler_options=options(), **self.settings)

    def __call__(self, *args: Any, **more: Any) -> Any:
        # inside other code, it is compiled as that is
        hurry = not _traced((args, more)) and self.little(*args)
        return (self.quick if hurry else self.thorough)(*args, **more)

    def _cache_size(self) -> int:
        return self.quick._cache_size() + self.thorough._cache_size()


def _traced(tree: Any) -> bool:
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))
