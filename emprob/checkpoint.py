"""Save a run while it runs, and go on from where it stopped, to the same bits."""

import contextlib
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emprob import store
from emprob.errors import CheckpointError
from emprob.types import Info

EVERY = 5.0  # seconds between saves


def identity(model: Any, method: Any) -> dict[str, str]:
    """What a checkpoint must agree on: program, data, method, float width."""
    s = model.structure
    args = [np.asarray(x) for x in model.data.leaves] + list(model.data.fixed.values())
    return {
        "program": getattr(s.program, "__qualname__", type(s.program).__name__),
        "roles": repr(s.roles),
        "data_hash": store.fingerprint({str(i): np.asarray(x) for i, x in enumerate(args)}),
        "method": repr(method),
        "width": s.dtype,
    }


class Saver:
    """A context in which one process may write one checkpoint; without a path it does nothing."""

    def __init__(self, path: Any, model: Any, method: Any, index: int):
        self.path = None if path is None else _for_start(path, index)
        self.expect = identity(model, method) if path is not None else {}
        self.last = time.monotonic()
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "Saver":
        if self.path is not None:
            self.stack.enter_context(store.lock(self.path))
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stack.close()

    def restore(self, loop: Any, chunks: list) -> tuple[Any, list]:
        """The saved run, if there is one; else what was given."""
        if self.path is None or not self.path.exists():
            return loop, chunks
        arrays, _ = store.read(self.path, expect=self.expect)
        leaves, treedef = jax.tree.flatten(loop)
        saved = [arrays["loop"][str(i)] for i in range(len(leaves))]
        loop = jax.tree.unflatten(treedef, [jnp.asarray(x) for x in saved])
        loop = loop._replace(stop=jnp.zeros_like(loop.stop))  # a higher max_steps goes on
        return loop, [Info(*(arrays["trace"][f] for f in Info._fields))]

    def save(self, loop: Any, chunks: list) -> None:
        """Write if enough time has passed or the run has stopped; a failure is one warning."""
        if self.path is None or (int(loop.stop) == 0 and time.monotonic() - self.last < EVERY):
            return
        leaves = jax.tree.leaves(loop)
        trace = {f: np.concatenate([getattr(c, f) for c in chunks]) for f in Info._fields}
        arrays = {"loop": {str(i): np.asarray(x) for i, x in enumerate(leaves)}, "trace": trace}
        try:
            store.write(self.path, arrays, self.expect)
        except CheckpointError as error:
            warnings.warn(f"the run goes on without checkpoints: {error}", stacklevel=2)
            self.path = None
        self.last = time.monotonic()


def _for_start(path: Any, index: int):
    from pathlib import Path

    path = Path(path)
    return path if index == 0 else path.with_name(f"{path.stem}.start{index}{path.suffix}")
