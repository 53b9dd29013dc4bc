"""Bad input and faults: each case is found, named, and says what to do. Through the public API.

Every test's id is the case's number in the list of faults that the package promises to handle.
"""

import importlib
import signal
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest
import xarray as xr
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask as masked

import emprob as ep

N = 12
RNG = np.random.default_rng(7)
Y = np.concatenate([RNG.normal(-2, 0.7, N // 2), RNG.normal(2, 0.7, N - N // 2)])


# -- the programs -------------------------------------------------------------------------------


def normal(y, seen=None):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    s = numpyro.sample("s", dist.LogNormal(0, 1))
    seen = True if seen is None else seen
    with numpyro.plate("n", len(y)), masked(mask=seen):
        numpyro.sample("y", dist.Normal(mu, s), obs=y)


def mixture(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.full(2, 2.0)))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]))
    s2 = numpyro.sample("s2", dist.InverseGamma(2.0, 1.0).expand([2]))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], jnp.sqrt(s2[z])), obs=y)


def positive(y, n=N):
    a = numpyro.sample("a", dist.LogNormal(0, 1))
    with numpyro.plate("n", n):
        numpyro.sample("y", dist.Gamma(a, 1.0), obs=y)


def counts(y):
    rate = numpyro.sample("rate", dist.Gamma(1.0, 1.0))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def coins(y):
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Bernoulli(p), obs=y)


def vectors(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.MultivariateNormal(mu, jnp.eye(2)), obs=y)


def line(y, x):
    b = numpyro.sample("b", dist.Normal(0, 5))
    with numpyro.plate("n", N):
        numpyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


def groups(y, g):
    a = numpyro.sample("a", dist.Normal(0, 5).expand([5]))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(a[g], 1.0), obs=y)


def chain(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(2)).expand([2]))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(p[z]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(step, 0, y)


def three_states(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)).expand([3]))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([3]))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(p[z]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(step, 0, y)


def plane(y, x):
    b = numpyro.sample("b", dist.Normal(0, 5).expand([2]).to_event(1))
    with numpyro.plate("n", len(x)):
        numpyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)


AT = {"mu": 0.3, "s": 1.2}


def refused(error, *words, program=normal, args=(Y,), **options):
    """Binding raises this error, and its message holds these words."""
    with pytest.raises(error) as caught:
        ep.bind(program, *args, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@jax.jit
def value_and_slope(model, at):
    return jax.value_and_grad(lambda p: model.objective(p))(at)


def objective(program, *args, at=AT, **kwargs):
    """The objective and its gradient at a fixed point, without a fit."""
    model = ep.bind(program, *args, **kwargs)
    at = {k: jnp.asarray(v, float) for k, v in at.items()}
    return value_and_slope(model, at)


def fit(program, *args, prior=True, **options):
    return ep.fit(ep.bind(program, *args, prior=prior), progress=False, **options)


def with_hole(y, *where):
    y = np.array(y, float)
    y[list(where)] = np.nan
    return y


@pytest.fixture(scope="module")
def good():
    """A model with latents, and its fit."""
    model = ep.bind(mixture, Y)
    return model, ep.fit(model, ep.EM(), progress=False)


# -- data ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_1_nan_is_missing():
    model = ep.bind(normal, with_hole(Y, 2))
    assert "y" in repr(model) and "1 of 12 missing, first at index 2" in repr(model)
    here, there = objective(normal, with_hole(Y, 2)), objective(normal, np.delete(Y, 2))
    np.testing.assert_allclose(here[0], there[0], rtol=1e-12)
    for name in AT:
        np.testing.assert_allclose(here[1][name], there[1][name], rtol=1e-10)


@pytest.mark.slow
def test_1_nan_within_an_event():
    rows = np.stack([Y, Y], 1)
    rows[3, 1] = np.nan
    refused(ep.DataError, "'y'", "1 of 12", "(3, 1)", "drop", program=vectors, args=(rows,))
    rows[3] = np.nan
    at = {"mu": [0.1, 0.2]}
    here, there = objective(vectors, rows, at=at), objective(vectors, np.delete(rows, 3, 0), at=at)
    np.testing.assert_allclose(here[0], there[0], rtol=1e-12)


def test_1_missing_count_is_integrated_out():
    y = np.array([1.0, 2.0, 0.0, 4.0])
    at = {"rate": 1.5}
    here = objective(counts, with_hole(y, 1), at=at)
    np.testing.assert_allclose(here[0], objective(counts, np.delete(y, 1), at=at)[0], rtol=1e-12)


def test_2_nan_under_a_mask():
    seen = np.arange(N) != 4
    here = objective(normal, with_hole(Y, 4), seen)
    there = objective(normal, np.delete(Y, 4))
    np.testing.assert_allclose(here[0], there[0], rtol=1e-12)
    assert all(np.isfinite(g) for g in here[1].values())
    assert "1 masked" in repr(ep.bind(normal, with_hole(Y, 4), seen))


@pytest.mark.parametrize("hidden", ["nan", "mask"])
def test_3_nothing_is_seen(hidden):
    args = (Y * np.nan,) if hidden == "nan" else (Y, np.zeros(N, bool))
    refused(ep.DataError, "'y'", "all 12", "missing or masked", args=args)


def test_4_infinite():
    y = Y.copy()
    y[[3, 5]] = np.inf, -np.inf
    refused(ep.DataError, "'y'", "2 of 12", "inf at index 3", "NaN", args=(y,))
    refused(ep.DataError, "'y'", "inf at index 3", program=chain, args=(y,))


def test_5_empty():
    refused(ep.DataError, "'n'", "size 0", "no observations", args=(Y[:0],))

    def bare(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal()), 1.0), obs=y)

    refused(ep.DataError, "'y' has no observations", program=bare, args=([],))


def test_6_one_observation():
    with pytest.warns(ep.DegeneracyWarning, match="s collapsed.*'y'"):
        out = fit(normal, Y[:1], prior=False)
    assert out.status is ep.Status.DEGENERATE
    assert "variance is unbounded" in out.message and not out.converged


@pytest.mark.slow
def test_7_constant_data():
    with pytest.warns(ep.DegeneracyWarning, match="'s'"):
        out = fit(normal, np.ones(N), tol=1e-3)
    assert out.status.ok and np.isfinite(out.objective)
    np.testing.assert_allclose(np.log(out.params["s"]), -(N + 1), rtol=1e-3)
    with pytest.warns(ep.DegeneracyWarning, match="s collapsed"):
        flat = fit(normal, np.ones(N), prior=False)
    assert flat.status is ep.Status.DEGENERATE


@pytest.mark.parametrize(
    ("program", "data", "words"),
    [
        (positive, np.r_[1.0, -2.0, np.ones(N - 2)], ("positive", "-2", "index 1")),
        (coins, np.array([0, 1, 2]), ("boolean", "2", "index 2")),
        (counts, np.array([1.0, 1.5]), ("integer", "1.5", "index 1")),
    ],
)
def test_8_outside_the_support(program, data, words):
    refused(ep.DataError, "'y'", "1 of", *words, program=program, args=(data,))


def test_8_integers_as_floats_are_fine():
    ep.bind(counts, np.array([1.0, 3.0]))


def test_9_a_column_is_not_a_vector():
    refused(ep.DataError, "'y'", "(12, 1)", "(12,)", "broadcast", args=(Y[:, None],))
    refused(ep.DataError, "'y'", "(1, 12)", "'n'", "broadcast", args=(Y[None],))
    args = (Y, Y[:, None])
    refused(ep.DataError, "'y'", "(12,)", "(12, 12)", "'n'", program=line, args=args)


@pytest.mark.parametrize("size", [N - 2, N + 3])
def test_10_length_against_plate(size):
    args = (np.abs(Y), size)
    refused(ep.DataError, "'y'", "'n'", f"size {size}", "12", program=positive, args=args)


def test_10_one_value_is_not_stretched():
    refused(ep.DataError, "'y'", "(1,)", "(12,)", program=positive, args=(np.ones(1), N))


def test_11_two_plates_and_one_array():
    def table(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1):
            numpyro.sample("y", dist.Normal(mu * jnp.ones((4, 3)), 1.0), obs=y)

    words = ("'y'", "'rows'", "'columns'", "size 3", "size 4", "(4, 3)")
    refused(ep.DataError, *words, program=table, args=(np.ones((4, 3)),))


def test_12_ragged():
    refused(ep.DataError, "ragged", "[2, 1]", "Pad", args=([[1.0, 2.0], [3.0]],))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Y.astype(object), ("object", "astype(float)")),
        (Y.astype(str), ("<U", "factorize")),
        (list(Y.astype(str)), ("'y'", "<U", "factorize")),
        (Y.astype("datetime64[s]"), ("datetime64", "floats")),
        (pd.Series(list("ab") * 6, dtype="category"), ("category", "codes")),
        (pd.DataFrame({"a": [1.0], "b": ["x"]}), ("'b'", "factorize")),
    ],
    ids=["object", "string", "list", "datetime", "category", "frame"],
)
def test_13_not_numbers(data, words):
    refused(ep.DataError, "dtype", *words, args=(data,))


@pytest.mark.parametrize(
    "data",
    [
        pd.Series(Y, index=list("abcdefghijkl")),
        pd.Series(Y, dtype="Float64"),
        xr.DataArray(Y, dims="t", coords={"t": np.arange(N)}),
        list(Y),
        tuple(Y),
        jnp.asarray(Y),
        np.asfortranarray(Y).astype(">f8"),
    ],
    ids=["series", "nullable", "xarray", "list", "tuple", "jax", "byte order"],
)
def test_14_other_containers(data):
    np.testing.assert_array_equal(objective(normal, data)[0], objective(normal, Y)[0])


def test_14_labels_become_coordinates():
    model = ep.bind(normal, pd.Series(Y, index=list("abcdefghijkl")))
    (labels,) = model.notes.value.coords.values()
    assert list(labels["index"]) == list("abcdefghijkl")


def test_15_nullable_integers():
    data = pd.Series([1, None, 3, 4], dtype="Int64")
    assert "1 of 4 missing, first at index 1" in repr(ep.bind(normal, data))
    np.testing.assert_allclose(
        objective(normal, data)[0], objective(normal, np.array([1, 3, 4]))[0], rtol=1e-12
    )


def test_16_masked_array():
    data = np.ma.masked_array(Y, np.arange(N) == 5)
    np.testing.assert_allclose(
        objective(normal, data)[0], objective(normal, np.delete(Y, 5))[0], rtol=1e-12
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint64", "bool"])
def test_17_narrow_integers(dtype):
    data = np.array([1, 0, 1, 1]).astype(dtype) * np.array(1, dtype)
    if dtype == "int8":
        data = data * np.int8(100)
    wide = objective(normal, data.astype(float))[0]
    np.testing.assert_array_equal(objective(normal, data)[0], wide)


def test_18_beyond_float32():
    big = np.array([1e100, 2e100])  # float32 ends at 3e38
    assert np.isfinite(objective(normal, big, at={"mu": 1e100, "s": 1e100}, prior=False)[0])
    model = ep.bind(counts, np.array([2**40, 2**40 + 1]))
    assert np.isfinite(value_and_slope(model, {"rate": 2.0**40})[0])
    with pytest.raises(ep.DataError, match="int64"):
        ep.bind(counts, np.array([2**64 - 1], np.uint64))


def test_19_complex():
    refused(ep.DataError, "complex", "two real arrays", args=(Y + 1j,))


@pytest.mark.parametrize("scale", [1e8, 1e-8])
def test_20_scale(scale):
    out = fit(normal, scale * Y, prior=False)
    assert out.converged
    np.testing.assert_allclose(out.params["mu"], scale * Y.mean(), rtol=1e-5)
    np.testing.assert_allclose(out.params["s"], scale * Y.std(), rtol=1e-5)


# -- structure ----------------------------------------------------------------------------------


def test_21_duplicate_site():
    def twice(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        mu = numpyro.sample("mu", dist.Normal(mu, 1))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    refused(ep.ModelError, "'mu'", "twice", "Rename", program=twice)


def test_22_plates_clash():
    def one_dim(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", 3, dim=-1), numpyro.plate("columns", 4, dim=-1):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    refused(ep.ModelError, "'columns'", "dim", "taken", program=one_dim)

    def two_sizes(y, x):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        with numpyro.plate("n", len(x)):
            numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    refused(ep.ModelError, "'n'", "size", "two names", program=two_sizes, args=(Y, Y[:5]))


def test_23_nothing_latent():
    out = fit(normal, Y)
    assert out.converged and "no latent sites" in out.message


def test_24_nothing_to_estimate():
    refused(ep.ModelError, "nothing to estimate", fixed=AT)

    def constant(y):
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    refused(ep.ModelError, "nothing to estimate", program=constant)


def test_25_nothing_observed():
    def unseen():
        numpyro.sample("mu", dist.Normal(0, 1))

    refused(ep.ModelError, "no observed site", "obs", program=unseen, args=())


def test_26_unknown_latent():
    refused(ep.ModelError, "'zz'", "'z'", program=mixture, latents=("zz",))


@pytest.mark.slow
def test_27_unknown_parameter(good):
    with pytest.raises(ep.ModelError, match="'mean'.*Known: 'w', 'mu', 's2'"):
        ep.fit(good[0], init={"mean": 0.0})
    with pytest.raises(ep.ModelError, match="'muu'.*Did you mean 'mu'"):
        ep.fit(good[0], init={"muu": 0.0})
    refused(ep.ModelError, "'muu'", "Did you mean 'mu'", fixed={"muu": 1.0})


def test_28_bad_start(good):
    with pytest.raises(ep.ModelError, match=r"'mu' has shape \(2,\), got \(3,\)"):
        ep.fit(good[0], init={"mu": np.zeros(3)})
    with pytest.raises(ep.ModelError, match=r"'s2' must lie.*positive.*\[ ?1. -1.\]"):
        ep.fit(good[0], init={"s2": [1.0, -1.0]})
    with pytest.raises(ep.ModelError, match="'mu'.*nan"):
        ep.fit(good[0], init={"mu": [0.0, np.nan]})
    refused(ep.ModelError, "'s'", "-1", fixed={"s": -1.0})


def test_29_start_without_density():
    with pytest.raises(ep.FitError, match="not finite at the start.*'y'") as caught:
        fit(normal, Y, init={"mu": 0.0, "s": 1e-200})
    assert caught.value.site == "y" and caught.value.iteration == 0


LAWS = [dist.Poisson(2.0), dist.Geometric(0.5)]


@pytest.mark.parametrize("law", LAWS, ids=["30", "31"])
def test_30_31_not_enumerable(law):
    def unbounded(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", len(y)):
            k = numpyro.sample("k", law)
            numpyro.sample("y", dist.Normal(mu + k, 1.0), obs=y)

    refused(ep.ModelError, "'k'", type(law).__name__[:7], "Truncate", program=unbounded)


def test_32_missing_plate():
    def loose(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
        z = numpyro.sample("z", dist.Categorical(jnp.ones((N, 1)) * w))
        numpyro.sample("y", dist.Normal(jnp.where(z == 1, 1.0, -1.0), 1.0), obs=y)

    refused(ep.ModelError, "'z'", "12", "numpyro.plate", program=loose)


def test_33_scan_under_a_plate():
    def outside(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))

        def step(z, y):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            return z, None

        with numpyro.plate("n", 2):
            scan(step, 0, y)

    refused(ep.ModelError, "scan under a plate", "inside", program=outside, args=(np.ones((4, 2)),))


def test_37_table_too_large():
    def joint(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        z = [numpyro.sample(f"z{i}", dist.Categorical(jnp.ones(10) / 10)) for i in range(12)]
        numpyro.sample("y", dist.Normal(a + sum(z), 1.0), obs=y)

    words = ("z0..z11", "10^12 cells", "8 TB", "limit 2 GB")
    refused(ep.ModelError, *words, program=joint, args=(1.0,))


def test_39_python_if():
    def branch(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        scale = 1.0 if mu > 0 else 2.0
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Normal(mu, scale), obs=y)

    refused(ep.ModelError, "jnp.where", "if mu > 0", program=branch)


def test_40_sites_that_come_and_go():
    def sometimes(y):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        if z == 1:
            numpyro.sample("extra", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z, numpyro.sample("s", dist.LogNormal())), obs=y)

    refused(ep.ModelError, "'extra'", "change", program=sometimes, args=(1.0,))


def test_41_hidden_random_numbers():
    rng = np.random.default_rng()

    def hidden(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Normal(mu + rng.normal(), 1.0), obs=y)

    refused(ep.ModelError, "'y'", "same seed", "arguments", program=hidden)


def test_42_subsampling():
    def part(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", len(y), subsample_size=3) as i:
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    refused(ep.ModelError, "'n'", "subsample_size=3", program=part)


def test_43_negative_scale_reachable():
    def negative(y):
        s = numpyro.sample("s", dist.Normal(0, 3))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Normal(0.0, s), obs=y)

    refused(ep.ModelError, "'y'", "scale", "Normal", "LogNormal", program=negative)


# -- runs ---------------------------------------------------------------------------------------


class Spoiled(ep.EM):
    """EM that replaces a parameter by a value of its own at every step."""

    value = np.nan
    name = "mu"

    def step(self, model, state):
        new, info = super().step(model, state)
        bad = jnp.full_like(new.params[self.name], self.value)
        return ep.State({**new.params, self.name: bad}, new.memory), info


class Worse(Spoiled):
    """A wrong step, to a finite place."""

    value = 50.0


class Negative(Spoiled):
    """A step to a variance that is none."""

    value, name = -1.0, "s2"


START = {"w": [0.5, 0.5], "mu": [-1.0, 1.0], "s2": [1.0, 1.0]}


@pytest.mark.slow
@pytest.mark.parametrize("method", [Spoiled(), Negative()], ids=["57", "44"])
def test_44_57_not_finite_in_the_middle(good, method):
    with pytest.warns(ep.ConvergenceWarning, match="non_finite"):
        out = ep.fit(good[0], method, init=START, progress=False)
    assert out.status is ep.Status.NON_FINITE and not out.converged
    assert np.isfinite(out.objective) and all(np.isfinite(v).all() for v in out.params.values())
    np.testing.assert_allclose(out.params["mu"], START["mu"])
    assert f"'{method.name}'" in out.message and "at step 1" in out.message


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::emprob.DegeneracyWarning")
def test_45_46_more_components_than_points():
    assert fit(mixture, Y[:1]).status.ok
    flat = fit(mixture, Y[:1], prior=False, method=ep.EM())
    assert flat.status is ep.Status.DEGENERATE and "s2[" in flat.message


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::emprob.IdentifiabilityWarning")
def test_47_empty_component():
    init = {"w": [1.0, 0.0], "mu": [0.0, 3.0], "s2": [1.0, 1.0]}
    with pytest.warns(ep.DegeneracyWarning, match=r"empty components: w\[1\]"):
        out = fit(mixture, Y, prior=False, method=ep.EM(), init=init)
    assert all(np.isfinite(v).all() for v in out.params.values())
    np.testing.assert_allclose(out.params["mu"][0], Y.mean(), rtol=1e-8)
    slope = value_and_slope(out.model, {k: jnp.asarray(v) for k, v in out.params.items()})[1]
    assert np.isfinite(slope["mu"]).all() and np.isfinite(slope["s2"]).all()


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::emprob.IdentifiabilityWarning")
def test_47_dead_state():
    init = {"p": [[0.7, 0.3, 0.0]] * 2 + [[0.4, 0.3, 0.3]], "mu": [-2.0, 2.0, 0.0]}
    with pytest.warns(ep.DegeneracyWarning, match="empty components: z = 2 at no time"):
        out = fit(three_states, Y, prior=False, method=ep.EM(), init=init)
    assert "z = 2" in out.message and "z = 1" not in out.message
    assert all(np.isfinite(v).all() for v in out.params.values())
    two = {"p": [[0.7, 0.3]] * 2, "mu": [-2.0, 2.0]}
    smaller = fit(chain, Y, prior=False, method=ep.EM(), init=two)
    np.testing.assert_allclose(out.objective, smaller.objective, atol=1e-5)


def test_48_equal_components(good):
    init = {"w": [0.5, 0.5], "mu": [0.1, 0.1], "s2": [2.0, 2.0]}
    with pytest.warns(ep.ConvergenceWarning, match="saddle"):
        out = ep.fit(good[0], ep.EM(), init=init, progress=False)
    assert out.status is ep.Status.SADDLE and "mu" in out.message
    assert good[1].converged  # the default starts are not symmetric


def test_49_labels_across_restarts(good):
    again = ep.fit(good[0], ep.EM(), key=5, progress=False)
    order, other = np.argsort(good[1].params["mu"]), np.argsort(again.params["mu"])
    np.testing.assert_allclose(again.objective, good[1].objective, atol=1e-6)
    for name in good[1].params:
        np.testing.assert_allclose(
            again.params[name][other], good[1].params[name][order], atol=1e-4
        )


def ridge(y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    b = numpyro.sample("b", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def test_50_not_identified():
    with pytest.warns(ep.IdentifiabilityWarning, match="a.*b"):
        out = fit(ridge, Y, prior=False)
    np.testing.assert_allclose(out.params["a"] + out.params["b"], Y.mean(), atol=1e-6)
    errors = out.standard_errors()
    assert np.isnan(errors["a"]).all() and np.isnan(errors["b"]).all()


def test_51_perfect_separation():
    def logit(y, x):
        b = numpyro.sample("b", dist.Normal(0, 1))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=b * x), obs=y)

    with pytest.warns(UserWarning) as told:
        out = fit(logit, Y > 0, Y, prior=False)
    kinds = {w.category for w in told}
    assert ep.IdentifiabilityWarning in kinds
    assert any("b" in str(w.message) and "diverge" in str(w.message) for w in told)
    assert np.isfinite(out.params["b"])


def flat(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    nu = numpyro.sample("nu", dist.ImproperUniform(dist.constraints.real, (), ()))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu + 0.0 * nu, 1.0), obs=y)


@pytest.mark.slow
def test_52_53_improper_priors():
    with pytest.warns(ep.IdentifiabilityWarning, match="nu"):
        out = fit(flat, Y)
    np.testing.assert_allclose(out.params["mu"], Y.mean(), atol=1e-6)
    assert np.isnan(out.standard_errors()["nu"]).all()
    np.testing.assert_allclose(out.standard_errors()["mu"], 1 / np.sqrt(N), rtol=1e-6)
    with pytest.raises(ep.ModelError, match="improper.*nu.*Give one of them a prior"):
        ep.nuts(out.model, key=0, num_warmup=10, num_samples=10)


def test_54_prior_against_data():
    out = fit(line, 1e6 * np.ones(N), np.ones(N))
    assert out.converged
    np.testing.assert_allclose(out.params["b"], N * 1e6 / (N + 1 / 25), rtol=1e-9)


def test_55_out_of_steps(good):
    with pytest.warns(ep.ConvergenceWarning, match="max_steps"):
        out = ep.fit(good[0], ep.EM(), max_steps=2, progress=False)
    assert out.status is ep.Status.MAX_STEPS and not out.converged and out.num_steps == 2
    assert np.isfinite(out.score_norm)


def test_56_objective_falls(good):
    with pytest.warns(ep.ConvergenceWarning, match="objective_decreased"):
        out = ep.fit(good[0], Worse(), init=START, progress=False)
    assert out.status is ep.Status.OBJECTIVE_DECREASED
    assert "at step 1" in out.message and len(out.trace["objective"]) == 2
    np.testing.assert_allclose(out.params["mu"], START["mu"])


def test_58_step_too_long():
    with pytest.warns(ep.ConvergenceWarning, match="step size"):
        out = fit(normal, Y, method=ep.MAP(optax.sgd(1e3)), init={"mu": 3.0, "s": 1.0})
    assert out.status is ep.Status.DIVERGED
    assert all(np.isfinite(v).all() for v in out.params.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tol": 0.0}, "tol=0.0.*> 0"),
        ({"tol": -1}, "tol=-1.*> 0"),
        ({"tol": np.nan}, "tol=nan.*> 0"),
        ({"max_steps": -1}, "max_steps=-1.*>= 0"),
        ({"max_steps": 2.5}, "max_steps=2.5.*integer"),
        ({"num_starts": 0}, "num_starts=0.*>= 1"),
        ({"method": "em"}, "method='em'.*ep.EM"),
        ({"method": ep.EM}, "method=.*ep.EM"),
    ],
)
def test_59_bad_settings(good, options, words):
    with pytest.raises(ValueError, match=words):
        ep.fit(good[0], **options)


def test_59_bad_optimizer():
    with pytest.raises(ValueError, match="optimizer='adam'.*optax"):
        ep.MAP("adam")


@pytest.mark.filterwarnings("ignore::emprob.ConvergenceWarning")
def test_59_no_steps_evaluates_the_start(good):
    out = ep.fit(good[0], ep.EM(), init=START, max_steps=0, progress=False)
    np.testing.assert_allclose(out.params["mu"], START["mu"])
    at = {k: jnp.asarray(v, float) for k, v in START.items()}
    np.testing.assert_allclose(out.objective, good[0].objective(at), rtol=1e-10)


@pytest.mark.filterwarnings("ignore::emprob.ConvergenceWarning")
def test_60_keys(good):
    keys = [3, np.int64(3), jax.random.key(3), jax.random.PRNGKey(3)]
    fits = [ep.fit(good[0], ep.EM(), key=k, max_steps=1, progress=False) for k in keys]
    assert all(f.objective == fits[0].objective for f in fits)
    for bad in (3.0, "3", True, np.zeros(3)):
        with pytest.raises(TypeError, match="key: expected an integer"):
            ep.fit(good[0], ep.EM(), key=bad)


@pytest.fixture
def keyboard():
    """Ctrl-C as in a terminal: a shell's background job has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_61_interrupted(monkeypatch, keyboard):
    def stop(step, told):
        signal.raise_signal(signal.SIGINT)

    with pytest.warns(ep.ConvergenceWarning, match="interrupted"):
        out = fit(normal, Y, method=ep.MAP(optax.sgd(1e-4)), init=AT, callback=stop)
    assert out.status is ep.Status.INTERRUPTED
    assert out.num_steps > 0 and np.isfinite(out.objective)
    # a second one, while the result is being made, is not held back
    made = importlib.import_module("emprob.fit")
    monkeypatch.setattr(made, "judge", lambda *args: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(normal, Y, method=ep.MAP(optax.sgd(1e-4)), init=AT, callback=stop)


@pytest.mark.slow
def test_66_predict_with_what_does_not_fit():
    x = np.stack([Y, np.ones(N)], 1)
    out = fit(plane, Y, x)
    assert out.predict(0, 3, args=(None, x[:4]))["y"].shape == (3, 4)
    words = r"predict: .*'b' \(2,\).*site 'y'.*\(3,\) and \(2,\)"
    with pytest.raises(ep.DataError, match=words):
        out.predict(0, 3, args=(None, np.ones((4, 3))))
    labels = np.arange(N) % 5
    out = fit(groups, Y, labels)
    assert out.predict(0, 3, args=(Y[:4], labels[:4]))["y"].shape == (3, 4)
    with pytest.raises(ep.DataError, match="predict: site 'y': an index of 9 .* 0 to 4"):
        out.predict(0, 3, args=(Y[:3], np.array([0, 9, 1])))


def test_66_predict_without_the_model(good, tmp_path):
    good[1].save(tmp_path / "fit.npz")
    with pytest.raises(ep.ModelError, match="predict: .*loaded without its model.*model=model"):
        ep.load(tmp_path / "fit.npz").predict(0, 2)


def test_66_predict_for_other_data(good):
    draws = good[1].predict(0, 2)
    assert all(np.isfinite(np.asarray(v, float)).all() for v in draws.values())
    with pytest.raises(ep.DataError, match="'y'|axis of size"):
        ep.bind(groups, Y, np.arange(N))


def test_67_nothing_is_changed():
    data, init = Y.copy(), {"mu": np.zeros(()), "s": np.ones(())}
    model = ep.bind(normal, data)
    ep.fit(model, init=init, progress=False)
    np.testing.assert_array_equal(data, Y)
    assert init == {"mu": 0.0, "s": 1.0} and set(init) == {"mu", "s"}
    before = value_and_slope(model, AT)[0]
    data[:] = 99.0  # the caller's array is not the model's
    assert value_and_slope(model, AT)[0] == before


def test_68_again_in_threads_and_widths(good):
    model, first = good
    fits = []
    threads = [
        threading.Thread(target=lambda: fits.append(ep.fit(model, ep.EM(), progress=False)))
        for _ in range(2)
    ]
    with jax.enable_x64(False):
        fits.append(ep.fit(model, ep.EM(), progress=False))
        assert not jax.config.jax_enable_x64
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fits) == 3
    for other in fits:
        for name, value in first.params.items():
            np.testing.assert_array_equal(other.params[name], value)


def test_71_lengths_of_series():
    at = {"p": np.full((2, 2), 0.5), "mu": [-1.0, 1.0]}
    value, _ = objective(chain, np.array([0.4]), at=at, prior=False)
    logs = dist.Normal(jnp.asarray(at["mu"]), 1.0).log_prob(0.4)
    np.testing.assert_allclose(value, jax.nn.logsumexp(logs) - np.log(2), rtol=1e-12)
    refused(ep.DataError, "ragged", "[3, 2]", program=chain, args=([[1.0, 2, 3], [4.0, 5]],))
    with pytest.raises((ep.ModelError, ep.DataError), match="length 0"):
        ep.bind(chain, np.zeros(0))


@pytest.mark.parametrize(("shift", "value"), [(0, "7"), (-7, "-2")])
def test_72_labels_out_of_range(shift, value):
    labels = np.arange(N) % (8 if shift == 0 else 5) + shift
    words = ("'y'", f"index of {value}", "axis of size 5", "0 to 4")
    refused(ep.DataError, *words, program=groups, args=(Y, labels))


def test_72_labels_in_a_series():
    def regimes(y, g):
        a = numpyro.sample("a", dist.Normal(0, 5).expand([5]))

        def step(c, now):
            numpyro.sample("y", dist.Normal(a[now[1]], 1.0), obs=now[0])
            return c, None

        scan(step, 0, (y, g))

    ep.bind(regimes, Y, np.arange(N) % 5)
    words = ("'y'", "index of 11", "axis of size 5")
    refused(ep.DataError, *words, program=regimes, args=(Y, np.arange(N)))


def test_checks_are_silent_on_good_input():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ep.bind(mixture, Y)


def test_a_derivative_that_is_not_a_number_is_named():
    def program(y):
        a = numpyro.sample("a", dist.Normal(0.0, 10.0))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Normal(a + jnp.sqrt(0.0 * a), 1.0), obs=y)

    with pytest.warns(ep.ConvergenceWarning):
        fit = ep.fit(ep.bind(program, np.array([0.3, 1.2])), ep.MAP(), progress=False)
    assert fit.status is ep.Status.NON_FINITE and fit.num_steps < 3
    assert "derivative of the objective in 'a' is not a number" in fit.message
