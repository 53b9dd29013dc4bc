"""Natural parameters times statistics: the same numbers and derivatives whichever way is taken."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emprob.contraction import FEW_COLUMNS, FEW_STATISTICS, contract

N, B = 7, 4
SHAPES = {
    "rows and states": ((1, 3), (N, 1)),
    "many states": ((1, FEW_COLUMNS + 1), (N, 1)),
    "series side by side": ((1, 3, 1), (N, 1, B)),
    "naturals of every row": ((N, 3), (N, 1)),
    "one distribution": ((1,), (N,)),
    "one row": ((3,), (1,)),
    "crossed": ((1, 2, B), (N, 2, 1)),
}


@pytest.fixture(params=[2, FEW_STATISTICS + 1], ids="{} statistics".format)
def num(request):
    return request.param


@pytest.fixture(params=SHAPES, ids=str)
def arrays(request, num):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(*shape, num))) for shape in SHAPES[request.param]]


def plain(natural, statistics):
    return (natural * statistics).sum(-1)


def test_values_and_sums_over_axes(arrays):
    np.testing.assert_allclose(contract(*arrays), plain(*arrays), rtol=1e-13)
    table = plain(*arrays)
    summed = contract(*arrays, (-table.ndim,))
    np.testing.assert_allclose(summed, table.sum(0, keepdims=True), rtol=1e-12)


def test_derivatives_forwards_backwards_and_twice(arrays):
    weight = jnp.asarray(np.random.default_rng(1).normal(size=plain(*arrays).shape))

    def derivatives(f, natural, statistics):
        loss = lambda a, b: (weight * jnp.sin(f(a, b))).sum()  # noqa: E731
        slope = jax.grad(loss, (0, 1))
        moved = (natural + 1.0, statistics - 1.0)
        both = jnp.stack([natural, -natural])
        return (
            slope(natural, statistics),
            jax.jvp(loss, (natural, statistics), moved),
            jax.jvp(slope, (natural, statistics), moved),
            jax.grad(lambda a: slope(a, statistics)[0].sum())(natural),
            jax.vmap(jax.grad(loss), (0, None))(both, statistics),
        )

    ours, theirs = (jax.jit(partial(derivatives, f))(*arrays) for f in (contract, plain))
    close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
    jax.tree.map(close, ours, theirs)
