"""One suite over every E-step, M-step and accelerator: the promises that all of them share."""

import importlib
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan

import emprob as ep
from emprob.types import Algorithm

loop = importlib.import_module("emprob.loop")

ADAM = optax.adam(0.005)
MSTEPS = {
    "Auto": ep.Auto(),
    "ClosedForm": ep.ClosedForm(),
    "Newton": ep.Newton(),
    "Gradient": ep.Gradient(),
    "Gradient(adam)": ep.Gradient(ADAM, steps=5),
}
ESTEPS = {"Auto": ep.Auto(), "Enumerate": ep.Enumerate()}
EMS = {f"EM({e}, {m})": ep.EM(ESTEPS[e], MSTEPS[m]) for e in ESTEPS for m in MSTEPS if (
    e == "Auto" or m == "Auto"
)}  # fmt: skip
METHODS = {
    **EMS,
    **{f"Squarem({n})": ep.Squarem(em) for n, em in EMS.items() if n.startswith("EM(Auto")},
    "Damped": ep.Damped(ep.EM()),
    "Damped(0.5)": ep.Damped(ep.EM(), factor=0.5),
    "Anderson": ep.Anderson(ep.EM()),
    "Anderson(Newton)": ep.Anderson(ep.EM(mstep=ep.Newton()), memory=3),
    "QuasiNewton": ep.QuasiNewton(ep.EM()),
    "QuasiNewton(Newton)": ep.QuasiNewton(ep.EM(mstep=ep.Newton()), memory=3),
    "HandOver": ep.HandOver(ep.EM()),
    "HandOver(QuasiNewton)": ep.HandOver(ep.QuasiNewton(ep.EM())),
    "Annealed": ep.Annealed(ep.EM()),
    "Annealed(HandOver)": ep.Annealed(ep.HandOver(ep.Squarem(ep.EM())), start=0.5, growth=1.2),
    "MAP": ep.MAP(),
    "MAP(adam)": ep.MAP(ADAM),
    "MAP(lbfgs)": ep.MAP(optax.lbfgs()),
}
# An optimiser with a fixed step size stops short of the optimum, and says so.
LOOSE = {n for n in METHODS if "adam" in n}
# The default run has one of each kind; the rest goes with -m "".
QUICK = {
    "EM(Auto, Auto)", "EM(Auto, Gradient(adam))", "Squarem(EM(Auto, Auto))", "MAP",
    "Damped", "Anderson", "QuasiNewton", "HandOver", "Annealed",
}  # fmt: skip
CALLS = {"mixture": 0, "chain": 0}  # a program runs only while it is traced


def mixture(y):
    CALLS["mixture"] += 1
    pi = numpyro.sample("pi", dist.Dirichlet(2.0 * jnp.ones(2)))
    with numpyro.plate("k", 2):
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    s = numpyro.sample("s", dist.InverseGamma(2.0, 1.0))
    with numpyro.plate("n", y.shape[0]):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.Normal(mu[z], jnp.sqrt(s)), obs=y)


def chain(y):
    CALLS["chain"] += 1
    with numpyro.plate("k", 2):
        A = numpyro.sample("A", dist.Dirichlet(2.0 * jnp.ones(2)))
        rate = numpyro.sample("rate", dist.Gamma(2.0, 0.2))

    def body(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Poisson(rate[z]), obs=y)
        return z, None

    scan(body, 0, y)


def _mixture_data(seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(40) < 0.4, rng.normal(-2, 0.8, 40), rng.normal(2, 0.8, 40))


def _chain_data(seed):
    rng = np.random.default_rng(seed)
    states = np.repeat(rng.integers(0, 2, 8), 6)
    return rng.poisson(np.where(states == 0, 2.0, 9.0))


PROGRAMS = {"mixture": (mixture, _mixture_data), "chain": (chain, _chain_data)}
STARTS = {
    "mixture": {"pi": np.array([0.5, 0.5]), "mu": np.array([-1.0, 1.0]), "s": np.array(1.0)},
    "chain": {"A": np.array([[0.7, 0.3], [0.3, 0.7]]), "rate": np.array([3.0, 7.0])},
}
TOL = 1e-7
ALL = [
    pytest.param(p, m, id=f"{p}-{m}", marks=() if m in QUICK else pytest.mark.exhaustive)
    for p in PROGRAMS
    for m in METHODS
]


def run(model, method, start, **more):
    options = {"tol": TOL, "max_steps": 3000, "progress": False} | more
    return ep.fit(model, method, init=start, **options)


@pytest.fixture(scope="module")
def models():
    """Each program bound twice, to data of the same shape."""
    return {n: [ep.bind(p, data(s)) for s in (1, 2)] for n, (p, data) in PROGRAMS.items()}


@pytest.fixture(scope="module")
def optima(models):
    """The optimum of each program, found from the same start by Newton's method."""
    return {n: run(models[n][0], ep.MAP(), STARTS[n], tol=1e-9) for n in PROGRAMS}


@pytest.mark.exhaustive
@pytest.mark.parametrize(("program", "name"), ALL)
def test_promises(program, name, models, optima):
    """Monotone, the optimum, no retrace on other data, the same twice, nothing changed."""
    model, other = models[program]
    method, start = METHODS[name], STARTS[program]
    before = {k: v.copy() for k, v in start.items()}
    flags = dict(jax.config.values)
    if name in LOOSE:
        _short_of_the_optimum(model, method, start, optima[program])
        return
    first = run(model, method, start)
    calls, sizes = CALLS[program], _sizes()
    rises = np.diff(first.trace["objective"])[getattr(method, "warmup", 0) :]
    assert rises.min() > -1e-9 * abs(first.objective)
    assert first.converged, first.message
    assert first.objective == pytest.approx(optima[program].objective, abs=1e-6)
    for site, value in optima[program].params.items():
        np.testing.assert_allclose(first.params[site], value, atol=1e-5, rtol=1e-5)

    again = run(model, method, start)
    for site, value in first.params.items():
        np.testing.assert_array_equal(again.params[site], value)
    run(other, method, start)
    assert CALLS[program] == calls, "the program was traced again on data of the same shape"
    assert _sizes() == sizes
    assert dict(jax.config.values) == flags
    for site, value in before.items():
        np.testing.assert_array_equal(start[site], value)


def _short_of_the_optimum(model, method, start, optimum):
    """Monotone for an M-step, near the optimum, and either converged or honest about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ep.ConvergenceWarning)
        # an optimiser may go down on its way, and takes many steps of a fixed length
        wanders = isinstance(method, ep.MAP)
        got = run(model, method, start, max_steps=4000 if wanders else 400)
    assert got.status in (ep.Status.CONVERGED, ep.Status.MAX_STEPS)
    if not wanders:
        assert np.diff(got.trace["objective"]).min() > -1e-9 * abs(got.objective)
    assert optimum.objective - 0.05 < got.objective < optimum.objective + 1e-9


def _sizes() -> dict[str, int]:
    compiled = (loop.advance, loop.advance_all, loop.init)
    return {f.__name__: f._cache_size() for f in compiled}


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_values(name):
    """Equal settings are equal, hash alike and cannot be changed."""
    method = METHODS[name]
    copy = type(method)(**{f: getattr(method, f) for f in method.__dataclass_fields__})
    assert copy == method
    assert hash(copy) == hash(method)
    assert {method: 1}[copy] == 1
    field = next(iter(method.__dataclass_fields__))
    with pytest.raises(AttributeError):
        setattr(method, field, None)
    assert isinstance(method, Algorithm)


def test_different_settings_differ():
    distinct = {m for n, m in METHODS.items()}
    assert len(distinct) == len(METHODS)


def test_defaults_are_equal_by_value():
    """Two methods written out in two notebook cells share compiled code."""
    assert ep.Squarem(ep.EM(mstep=ep.Gradient())) == ep.Squarem(ep.EM(mstep=ep.Gradient()))
    assert ep.EM(ep.Auto(), ep.Auto()) == ep.EM()


@pytest.mark.slow
def test_a_model_bound_twice_shares_compiled_code(models):
    run(models["mixture"][0], ep.EM(), STARTS["mixture"])
    again = ep.bind(mixture, _mixture_data(3))
    calls = CALLS["mixture"]
    run(again, ep.EM(), STARTS["mixture"])
    assert CALLS["mixture"] == calls


@pytest.mark.slow
def test_several_starts_do_not_retrace(models):
    """Starts are drawn by running the program plainly, once; nothing is compiled again."""
    model, other = models["mixture"]
    ep.fit(model, ep.EM(), key=1, num_starts=3, progress=False)
    sizes, calls = _sizes(), CALLS["mixture"]
    ep.fit(other, ep.EM(), key=2, num_starts=3, progress=False)
    assert _sizes() == sizes
    assert CALLS["mixture"] <= calls + 1


def test_threads_give_what_one_thread_gives(models):
    """Two fits at once, in threads, equal the same fits one after the other."""
    jobs = [(models["mixture"][i], STARTS["mixture"]) for i in (0, 1)]
    alone = [run(model, ep.EM(), start) for model, start in jobs]
    together = [None, None]

    def work(i):
        together[i] = run(jobs[i][0], ep.EM(), jobs[i][1])

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(alone, together, strict=True):
        assert b is not None
        for site in a.params:
            np.testing.assert_array_equal(a.params[site], b.params[site])


@pytest.mark.parametrize("x64", [False, True])
def test_precision_of_the_notebook_is_left_alone(x64, models):
    """In a float32 notebook the fit is the same float64 fit, and the notebook stays float32."""
    want = run(models["mixture"][0], ep.EM(), STARTS["mixture"])
    with jax.enable_x64(x64):
        got = run(ep.bind(mixture, _mixture_data(1)), ep.EM(), STARTS["mixture"])
        assert jnp.ones(1).dtype == (jnp.float64 if x64 else jnp.float32)
    for site in want.params:
        assert got.params[site].dtype == np.float64
        np.testing.assert_allclose(got.params[site], want.params[site], rtol=1e-9)


@pytest.mark.slow
def test_data_are_not_mutated():
    y = _mixture_data(1)
    y[3] = np.nan
    kept = y.copy()
    run(ep.bind(mixture, y), ep.EM(), STARTS["mixture"], max_steps=3000)
    np.testing.assert_array_equal(y, kept)


@pytest.mark.slow
def test_steps_and_fit_take_the_same_path(models):
    """`ep.steps` is the loop of `ep.fit` in the user's hands."""
    model, start = models["chain"][0], STARTS["chain"]
    fit = run(model, ep.EM(), start)
    told = []
    for (_, info), _ in zip(ep.steps(model, ep.EM(), init=start), range(6), strict=False):
        told.append(float(info.objective))
    np.testing.assert_allclose(told, fit.trace["objective"][:6], rtol=1e-13)
