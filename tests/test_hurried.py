"""Code that is compiled in a hurry computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emprob import hurried


@pytest.fixture
def curved():
    """A function of its own for every test: JAX keeps compiled code by function."""

    def curved(x, n):
        return jax.hessian(lambda y: jnp.sum(jnp.sin(y) ** n / (1.0 + y**2)))(x)

    return curved


@pytest.fixture
def both(curved):
    return hurried.Hurried(curved, lambda x, n: x.size <= 10, static_argnums=1)


def test_both_kinds_give_the_same_numbers(both):
    x = jnp.linspace(-1.0, 2.0, 7)
    np.testing.assert_allclose(both.quick(x, 3), both.thorough(x, 3), rtol=1e-12, atol=1e-14)


def test_little_work_is_done_in_a_hurry_and_much_is_not(both):
    both(jnp.ones(10), 2)
    assert (both.quick._cache_size(), both.thorough._cache_size()) == (1, 0)
    both(jnp.ones(11), 2)
    assert (both.quick._cache_size(), both.thorough._cache_size()) == (1, 1)
    assert both._cache_size() == 2


def test_inside_other_code_it_is_compiled_as_that_is(both):
    x = jnp.linspace(-1.0, 2.0, 7)
    np.testing.assert_allclose(jax.jit(lambda y: both(y, 3))(x), both(x, 3), rtol=1e-12)
    assert (both.quick._cache_size(), both.thorough._cache_size()) == (1, 0)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="options of the compiler for CPUs")
def test_options_that_this_compiler_does_not_know_are_left_out(monkeypatch):
    known = hurried.options()
    assert known and known.items() <= hurried.OPTIONS.items()
    monkeypatch.setattr(hurried, "OPTIONS", {**known, "xla_of_another_year": 1})
    hurried.options.cache_clear()
    assert hurried.options() == known
    monkeypatch.setattr(hurried, "OPTIONS", {"xla_of_another_year": 1})
    hurried.options.cache_clear()
    assert hurried.options() is None
    hurried.options.cache_clear()
