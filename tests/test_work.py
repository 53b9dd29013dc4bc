"""How much a model computes decides how it is compiled, and nothing else."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import emprob as ep
from emprob import loop, work

X = jnp.linspace(-1.0, 1.0, 30)
Y = np.sin(2.0 * np.asarray(X)) + 0.1 * np.cos(40.0 * np.arange(30))


def curve(rate, bend, terms):
    """A long program of short arrays."""
    out = 0.0 * X
    for i in range(terms):
        out = out + bend * (rate * X + 0.1 * i) / (1.0 + (rate * X + i) ** 2)
    return out


def mixed_curve(y, terms=120):
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(2)))
    rate = numpyro.sample("rate", dist.Normal(1.0, 0.5))
    bend = numpyro.sample("bend", dist.HalfNormal(1.0))
    width = numpyro.sample("width", dist.HalfNormal(1.0))
    with numpyro.plate("point", len(y)):
        z = numpyro.sample("z", dist.Categorical(share), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(curve(rate, bend, terms), width * (1.0 + 4.0 * z)), obs=y)


def size(model):
    return work.size_of(model, model.notes.value.initial)


def test_operations_are_those_of_the_program_and_cells_those_of_the_data():
    short, long = (size(ep.bind(mixed_curve, Y, n)) for n in (10, 120))
    assert long.operations - short.operations >= 110 * 5
    assert long.cells == short.cells >= 2 * len(Y)


def test_only_long_programs_of_short_tables_are_compiling(monkeypatch):
    short, long = (ep.bind(mixed_curve, Y, n) for n in (10, 120))
    start = long.notes.value.initial
    assert work.is_compiling(long, start)
    assert not work.is_compiling(short, start)
    monkeypatch.setattr(work, "FEW", 10)
    assert not work.is_compiling(long, start)


@pytest.mark.slow
def test_starts_one_after_the_other_end_where_a_batch_of_them_does(monkeypatch):
    y = np.where(np.arange(30) % 5 == 0, Y + np.cos(7.0 * np.arange(30)), Y)
    model = ep.bind(mixed_curve, y, 3)
    batches = loop.advance_all._cache_size()
    together = ep.fit(model, key=3, num_starts=4, progress=False)
    assert loop.advance_all._cache_size() == batches + 1
    monkeypatch.setattr(work, "LONG", 1)
    alone = ep.fit(model, key=3, num_starts=4, progress=False)
    assert loop.advance_all._cache_size() == batches + 1
    assert alone.objective == pytest.approx(together.objective, abs=1e-8)
    np.testing.assert_allclose(alone.starts["objective"], together.starts["objective"], atol=1e-6)
    assert list(alone.starts["status"]) == list(together.starts["status"])
