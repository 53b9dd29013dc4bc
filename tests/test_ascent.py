"""Newton's ascent, where the look that judges a step is the next step's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emprob.ascent import climb, look, newton_step, unseen

FUNCTIONS = {  # from where Newton's whole step overshoots, leaves the domain, or goes down
    "square root": (lambda x: -jnp.sqrt(1 + x @ x), [3.0, -1.0], [0.0, 0.0]),
    "logarithm": (lambda x: jnp.sum(jnp.log(x) - x), [5.0, 0.01], [1.0, 1.0]),
    "curved upwards": (lambda x: jnp.sum(jnp.cos(x)), [2.5, -2.0], [0.0, 0.0]),
    "five": (lambda x: -jnp.sum((x - jnp.arange(5.0)) ** 4 + x**2), [9.0] * 5, None),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_climbs_to_the_top(name):
    g, start, top = FUNCTIONS[name]
    step = jax.jit(lambda s: climb(g, s))
    at, values = unseen(jnp.asarray(start)), []
    for _ in range(60):
        before = at
        here, at = step(at)
        np.testing.assert_array_equal(here.x, before.x)
        np.testing.assert_allclose(here.value, g(here.x), rtol=1e-15)
        values.append(float(here.value))
    assert np.all(np.diff(values) >= -1e-13 * (1 + np.abs(values[:-1])))
    np.testing.assert_allclose(jax.grad(g)(at.x), 0.0, atol=1e-7)
    if top is not None:
        np.testing.assert_allclose(at.x, top, atol=1e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_goes_where_the_plain_step_goes(name):
    g, start, _ = FUNCTIONS[name]
    at, u = unseen(jnp.asarray(start)), {"x": jnp.asarray(start)}
    for _ in range(6):
        at, u = climb(g, at)[1], newton_step(lambda u: g(u["x"]), u).u
        np.testing.assert_allclose(at.x, u["x"], rtol=1e-10, atol=1e-10)


def test_one_look_for_each_step_but_the_first():
    looks = []

    def g(x):
        jax.debug.callback(lambda x: looks.append(float(x[0])), x)
        return -jnp.sum(jnp.cosh(x))

    at = unseen(jnp.asarray([1.0]))
    counts = []
    for _ in range(5):
        looks.clear()
        at = jax.block_until_ready(climb(g, at)[1])
        jax.effects_barrier()
        counts.append(len(set(looks)))
    assert counts == [2, 1, 1, 0, 1]  # the fourth step promises less than rounding


def test_what_is_not_finite_goes_nowhere():
    here, ahead = climb(lambda x: jnp.sum(jnp.log(x)), unseen(jnp.asarray([-1.0, 1.0])))
    assert np.isnan(here.value)
    np.testing.assert_array_equal(ahead.x, here.x)
    assert np.isfinite(look(lambda x: jnp.sum(x), jnp.ones(3)).step).all()
