"""Natural parameters times statistics: the same numbers and derivatives whichever way is taken."""

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


@pytest.fixture(params=[2, FEW_STATISTICS, FEW_STATISTICS + 1], ids="{} statistics".format)
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
    if all(x.shape[0] == table.shape[0] for x in arrays):
        return  # only what varies is summed with a product
    summed = plain(*arrays).sum(0, keepdims=True)
    np.testing.assert_allclose(contract(*arrays, (-table.ndim,)), summed, rtol=1e-12)


def test_derivatives_forwards_backwards_and_twice(arrays):
    weight = jnp.asarray(np.random.default_rng(1).normal(size=plain(*arrays).shape))

    def loss(f):
        return lambda *x: (weight * jnp.sin(f(*x))).sum()

    for transform in (
        lambda f: jax.grad(f, (0, 1))(*arrays),
        lambda f: jax.jvp(f, arrays, [x + 1.0 for x in arrays]),
        lambda f: jax.hessian(f, (0, 1))(*arrays),
        lambda f: jax.vmap(jax.grad(f), (0, None))(jnp.stack([arrays[0], -arrays[0]]), arrays[1]),
    ):
        ours, theirs = transform(loss(contract)), transform(loss(plain))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), ours, theirs
        )
