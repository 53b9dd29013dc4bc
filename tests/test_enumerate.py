"""The exact E-step against full enumeration, on programs of every structure it claims."""

import importlib.util
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.ops.indexing import Vindex
from scipy import stats

import emprob as ep
from emprob.objective import expected_log_joint
from emprob.posterior import marginals

_spec = importlib.util.spec_from_file_location(
    "brute", pathlib.Path(__file__).with_name("brute.py")
)
brute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(brute)

TOL = 1e-10
RNG = np.random.default_rng(20260101)


# -- programs -----------------------------------------------------------------------------------


def components(K, *, chain=True):
    pi = numpyro.sample("pi", dist.Dirichlet(2.0 * jnp.ones(K)))
    with numpyro.plate("k", K):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        A = numpyro.sample("A", dist.Dirichlet(1.5 * jnp.ones(K))) if chain else None
    s = numpyro.sample("s", dist.HalfNormal(2.0))
    return pi, mu, s, A


def chain_where(y, K=3):
    pi, mu, s, A = components(K)

    def body(carry, y):
        z, t = carry
        z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, pi, A[z])))
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)
        return (z, t + 1), None

    scan(body, (0, 0), y)


def chain_entry_site(y, K=3):
    pi, mu, s, A = components(K)

    def body(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)
        return z, None

    scan(body, numpyro.sample("z0", dist.Categorical(pi)), y)


def chain_constant(y, K=3):
    _, mu, s, A = components(K)

    def body(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)
        return z, None

    scan(body, 0, y)


def mixture(y, K=3):
    pi, mu, s, _ = components(K, chain=False)
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)


def two_sites(y, K=2):
    pi, mu, s, _ = components(K, chain=False)
    rho = numpyro.sample("rho", dist.Beta(2.0, 2.0))
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        b = numpyro.sample("b", dist.Bernoulli(jnp.where(z == 0, rho, 0.3)))
        numpyro.sample("y", dist.Normal(mu[z] + shift * b, s), obs=y)


def nested(y, K=2):
    pi, mu, s, A = components(K)
    with numpyro.plate("group", y.shape[0], dim=-2):
        g = numpyro.sample("g", dist.Categorical(pi))
        with numpyro.plate("member", y.shape[1], dim=-1):
            z = numpyro.sample("z", dist.Categorical(A[g]))
            numpyro.sample("y", dist.Normal(mu[z], s), obs=y)


def global_and_plate(y, K=2):
    pi, mu, s, A = components(K)
    g = numpyro.sample("g", dist.Categorical(pi))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(A[g]))
        numpyro.sample("y", dist.Normal(mu[z] + 0.5 * g, s), obs=y)


def local_in_scan(y, K=2):
    pi, mu, s, A = components(K)
    rho = numpyro.sample("rho", dist.Beta(2.0, 2.0))

    def body(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        c = numpyro.sample("c", dist.Bernoulli(jnp.where(z == 0, rho, 0.6)))
        numpyro.sample("y", dist.Normal(mu[z], jnp.where(c == 1, 3.0 * s, s)), obs=y)
        return z, None

    scan(body, numpyro.sample("z0", dist.Categorical(pi)), y)


def ragged(y, lengths, K=2):
    pi, mu, s, A = components(K)

    def body(carry, y):
        z, t = carry
        with numpyro.plate("sequences", len(lengths)), handlers.mask(mask=t < lengths):
            probs = jnp.where(t == 0, pi, A[z])
            z = numpyro.sample("z", dist.Categorical(probs))
            numpyro.sample("y", dist.Normal(mu[z], s), obs=y)
        return (z, t + 1), None

    scan(body, (jnp.zeros(len(lengths), int), 0), y)


def history_two(y, K=2):
    _, mu, s, _ = components(K, chain=False)
    with numpyro.plate("i", K, dim=-2), numpyro.plate("j", K, dim=-1):
        A2 = numpyro.sample("A2", dist.Dirichlet(1.5 * jnp.ones(K)))

    def body(carry, y):
        before, last = carry
        z = numpyro.sample("z", dist.Categorical(Vindex(A2)[before, last]))
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)
        return (last, z), None

    scan(body, (0, 1), y)


def factorial(y, K=2):
    _, mu, s, A = components(K)
    with numpyro.plate("l", K):
        B = numpyro.sample("B", dist.Dirichlet(jnp.ones(K)))

    def body(carry, y):
        w, x = carry
        w = numpyro.sample("w", dist.Categorical(A[w]))
        x = numpyro.sample("x", dist.Categorical(B[x]))
        numpyro.sample("y", dist.Normal(mu[w] - 0.7 * mu[x], s), obs=y)
        return (w, x), None

    scan(body, (0, 0), y)


def switching_ar(y, K=2):
    pi, mu, s, A = components(K)
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))

    def body(carry, y):
        z, before, mean, t = carry
        z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, pi, A[z])))
        numpyro.sample("y", dist.Normal(mu[z] + phi * before + 0.1 * mean, s), obs=y)
        return (z, y, (mean * t + y) / (t + 1), t + 1), None

    scan(body, (0, 0.0, 0.0, 0), y)


def driven(y, x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([2, 2]).to_event(2))
    s = numpyro.sample("s", dist.HalfNormal(2.0))

    def body(z, inputs):
        y, x = inputs
        logit = beta[z, 0] + beta[z, 1] * x
        logits = jnp.stack([jnp.zeros_like(logit), logit], -1)
        z = numpyro.sample("z", dist.Categorical(logits=logits))
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)
        return z, None

    scan(body, 0, (y, x))


def tree(y, K=2):
    pi, mu, s, A = components(K)
    with numpyro.plate("n", y.shape[0]):
        root = numpyro.sample("root", dist.Categorical(pi))
        left = numpyro.sample("left", dist.Categorical(A[root]))
        right = numpyro.sample("right", dist.Categorical(A[root]))
        leaf = numpyro.sample("leaf", dist.Categorical(A[left]))
        numpyro.sample("y_left", dist.Normal(mu[left], s), obs=y[:, 0])
        numpyro.sample("y_right", dist.Normal(mu[right], s), obs=y[:, 1])
        numpyro.sample("y_leaf", dist.Normal(mu[leaf], s), obs=y[:, 2])


def partly_labelled(y, labels, K=3):
    pi, mu, s, _ = components(K, chain=False)
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi), obs=labels)
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)


def partly_labelled_chain(y, labels, K=2):
    pi, mu, s, A = components(K)

    def body(z, inputs):
        y, label = inputs
        z = numpyro.sample("z", dist.Categorical(A[z]), obs=label)
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)
        return z, None

    scan(body, numpyro.sample("z0", dist.Categorical(pi)), (y, labels))


def with_obs_mask(y, labels, known, K=3):
    pi, mu, s, _ = components(K, chain=False)
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi), obs=labels, obs_mask=known)
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)


# -- restatements that NumPyro's own log_density can evaluate ------------------------------------


def labels_as_factor(y, labels, K=3):
    """`partly_labelled` with a free latent and a factor that forbids what is not observed."""
    pi, mu, s, _ = components(K, chain=False)
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.factor("known", jnp.where(jnp.isnan(labels) | (labels == z), 0.0, -jnp.inf))
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)


def chain_labels_as_factor(y, labels, K=2):
    pi, mu, s, A = components(K)

    def body(z, inputs):
        y, label = inputs
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.factor("known", jnp.where(jnp.isnan(label) | (label == z), 0.0, -jnp.inf))
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)
        return z, None

    scan(body, numpyro.sample("z0", dist.Categorical(pi)), (y, labels))


def mixture_of_present(y, K=3):
    pi, mu, s, _ = components(K, chain=False)
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        with handlers.mask(mask=~np.isnan(y)):
            numpyro.sample("y", dist.Normal(mu[z], s), obs=jnp.nan_to_num(y))


def chain_of_present(y, K=3):
    pi, mu, s, A = components(K)

    def body(carry, y):
        z, t = carry
        z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, pi, A[z])))
        with handlers.mask(mask=~jnp.isnan(y)):
            numpyro.sample("y", dist.Normal(mu[z], s), obs=jnp.nan_to_num(y))
        return (z, t + 1), None

    scan(body, (0, 0), y)


# -- cases --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A program, data, parameters, and the latents that full enumeration runs over.

    Attributes:
        latents: by site, shape and number of values.
        chains: sites whose filtered and pairwise probabilities are compared.
        reference: the same density in a form that `log_density` evaluates; None: the program.
        cut: the arguments with the series cut after `t` steps.
        masked: by site, which elements are masked out (each counts a factor K in the enumeration).
    """

    name: str
    program: Callable
    args: tuple
    params: tuple[str, ...]
    latents: dict[str, tuple[tuple[int, ...], int]]
    chains: tuple[str, ...] = ()
    reference: Callable | None = None
    cut: Callable = lambda args, t: tuple(a[:t] for a in args)
    masked: dict[str, Any] = field(default_factory=dict)


def values(K: int) -> dict[str, np.ndarray]:
    """A value for every parameter that a program here may have."""
    rng = np.random.default_rng(K)
    rows = lambda *shape: rng.dirichlet(2.0 * np.ones(K), shape)  # noqa: E731
    return {
        "pi": rows(), "A": rows(K), "B": rows(K), "A2": rows(K, K), "mu": rng.normal(0, 1.5, K),
        "s": np.array(0.8), "rho": np.array(0.35), "shift": np.array(-0.9), "phi": np.array(0.4),
        "beta": rng.normal(0, 1, (2, 2)),
    }  # fmt: skip


SIMPLICES = ("pi", "A", "B", "A2")
MIX = ("pi", "mu", "s")
HMM = ("pi", "mu", "A", "s")
Y5, Y6 = RNG.normal(0, 1.5, 5), RNG.normal(0, 1.5, 6)
LENGTHS = np.array([4, 2, 1])
GAPS = np.array([0.3, np.nan, -1.2, np.nan, 0.8])
LABELS = np.array([np.nan, 2.0, np.nan, 0.0, 1.0])
STATES = np.array([np.nan, 1.0, np.nan, np.nan, 0.0])
OFF = np.arange(4)[:, None] >= LENGTHS


def latent(**sizes: int) -> dict[str, tuple[tuple[int, ...], int]]:
    return {k: ((), v) for k, v in sizes.items()}


CASES = [
    Case("chain, first state by where", chain_where, (Y6,), HMM, {"z": ((6,), 3)}, ("z",)),
    Case(
        "chain, first state a site", chain_entry_site, (Y5,), HMM,
        {**latent(z0=3), "z": ((5,), 3)}, ("z",),
    ),
    Case("chain, first state constant", chain_constant, (Y6,), HMM, {"z": ((6,), 3)}, ("z",)),
    Case("mixture", mixture, (Y5,), MIX, {"z": ((5,), 3)}),
    Case(
        "two sites in a plate", two_sites, (Y5,), (*MIX, "rho", "shift"),
        {"z": ((5,), 2), "b": ((5,), 2)},
    ),
    Case(
        "nested plates", nested, (RNG.normal(0, 1.5, (2, 3)),), HMM,
        {"g": ((2, 1), 2), "z": ((2, 3), 2)},
    ),
    Case(
        "global latent and plate", global_and_plate, (Y5,), HMM, {**latent(g=2), "z": ((5,), 2)}
    ),
    Case(
        "local latent in a scan", local_in_scan, (Y5,), (*HMM, "rho"),
        {**latent(z0=2), "z": ((5,), 2), "c": ((5,), 2)}, ("z",),
    ),
    Case(
        "ragged sequences in a scan", ragged, (RNG.normal(0, 1.5, (4, 3)), LENGTHS), HMM,
        {"z": ((4, 3), 2)}, ("z",), cut=lambda args, t: (args[0][:t], args[1]),
        masked={"z": OFF},
    ),
    Case("history of two", history_two, (Y6,), (*MIX, "A2"), {"z": ((6,), 2)}, ("z",)),
    Case(
        "two chains", factorial, (Y5,), (*HMM, "B"), {"w": ((5,), 2), "x": ((5,), 2)}, ("w", "x")
    ),
    Case("switching autoregression", switching_ar, (Y6,), (*HMM, "phi"), {"z": ((6,), 2)}, ("z",)),
    Case(
        "covariates drive the transitions", driven, (Y6, RNG.normal(size=6)), ("mu", "beta", "s"),
        {"z": ((6,), 2)}, ("z",),
    ),
    Case(
        "tree in a plate", tree, (RNG.normal(0, 1.5, (2, 3)),), HMM,
        dict.fromkeys(("root", "left", "right", "leaf"), ((2,), 2)),
    ),
    Case(
        "partly known labels", partly_labelled, (Y5, LABELS), MIX, {"z": ((5,), 3)},
        reference=labels_as_factor,
    ),
    Case(
        "partly known states", partly_labelled_chain, (Y5, STATES), HMM,
        {**latent(z0=2), "z": ((5,), 2)}, ("z",), reference=chain_labels_as_factor,
    ),
    Case(
        "missing observations", mixture, (GAPS,), MIX, {"z": ((5,), 3)},
        reference=mixture_of_present,
    ),
    Case(
        "missing steps", chain_where, (GAPS,), HMM, {"z": ((5,), 3)}, ("z",),
        reference=chain_of_present,
    ),
]  # fmt: skip
by_name = {c.name: c for c in CASES}


def enumerated(case: Case, args: tuple | None = None) -> Any:
    args = case.args if args is None else args
    steps = np.shape(args[0])[0]
    latents = {
        n: ((steps, *shape[1:]), size) if case.chains and shape else (shape, size)
        for n, (shape, size) in case.latents.items()
    }
    K = max(size for _, size in case.latents.values())
    params = {k: values(K)[k] for k in case.params}
    return brute.Brute(case.reference or case.program, args, params, latents)


QUICK = {"mixture", "chain, first state a site", "partly known labels", "two sites in a plate"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(c, id=c.name, marks=() if c.name in QUICK else pytest.mark.slow) for c in CASES
    ],
)
def pair(request):
    """A case, its enumeration, and the model bound to the same data."""
    case = request.param
    model = ep.bind(case.program, *case.args)
    return case, enumerated(case), model


@jax.jit
def _ours(model, params):
    """Objective, its gradient, and the gradient of Q at the same parameters."""
    names = tuple(n for n in SIMPLICES if n in params)
    zero = {k: jnp.zeros_like(v) for k, v in params.items()}
    at = partial(brute.moved, params, simplices=names)
    value, score = jax.value_and_grad(lambda d: model.objective(at(d)))(zero)
    posterior = ep.Enumerate()(model, params)
    of_q = jax.grad(lambda d: expected_log_joint(model, at(d), posterior))(zero)
    return value, posterior.log_partition + model.log_prior(params), score, of_q


def test_log_partition_and_score(pair):
    case, exact, model = pair
    copies = sum(m.sum() * np.log(case.latents[n][1]) for n, m in case.masked.items())
    value, from_estep, score, of_q = _ours(model, exact.params)
    assert value == pytest.approx(exact.log_z - copies, abs=TOL)
    assert from_estep == pytest.approx(exact.log_z - copies, abs=TOL)
    want = exact.score(tuple(n for n in SIMPLICES if n in exact.params))
    for name in exact.params:
        assert np.abs(want[name]).max() > 1e-3 or name in ("pi",)
        np.testing.assert_allclose(score[name], want[name], atol=TOL, rtol=TOL)
        np.testing.assert_allclose(of_q[name], want[name], atol=TOL, rtol=TOL)


def test_marginals(pair):
    case, exact, model = pair
    posterior = marginals(model, exact.params)
    assert set(posterior) == set(case.latents)
    for name in case.latents:
        want = exact.marginal(name).reshape(posterior[name].probs.shape)
        np.testing.assert_allclose(posterior[name].probs, want, atol=TOL)


def test_most_likely_path(pair):
    case, exact, model = pair
    posterior = marginals(model, exact.params)
    for name, want in exact.best().items():
        seen = ~np.broadcast_to(case.masked.get(name, False), want.shape)
        path = posterior[name].most_likely_path().reshape(want.shape)
        np.testing.assert_array_equal(path[seen], want[seen])


def test_draws_have_the_joint_distribution(pair):
    case, exact, model = pair
    draws = marginals(model, exact.params).sample_indices(7, 4000)
    counts = np.bincount(exact.index_of(draws), minlength=len(exact.probs))
    assert counts[exact.probs == 0].sum() == 0
    # cells of small expectation are pooled, as the chi-square test asks
    order = np.argsort(exact.probs)
    edges = np.unique((np.cumsum(exact.probs[order]) * 40).astype(int), return_index=True)[1]
    seen, expected = (np.add.reduceat(x[order], edges) for x in (counts, 4000 * exact.probs))
    kept = expected > 0
    assert stats.chisquare(seen[kept], expected[kept]).pvalue > 1e-4


CHAINS = [c for c in CASES if c.chains]


@pytest.mark.slow
@pytest.mark.parametrize("case", CHAINS, ids=lambda c: c.name)
def test_pairwise_and_filtered(case):
    exact = enumerated(case)
    posterior = marginals(ep.bind(case.program, *case.args), exact.params)
    for name in case.chains:
        np.testing.assert_allclose(posterior[name].pairwise, exact.pairwise(name), atol=TOL)
    for t in range(1, len(case.args[0]) + 1):
        cut = enumerated(case, case.cut(case.args, t))
        for name in case.chains:
            want = cut.marginal(name)[-1]
            np.testing.assert_allclose(posterior[name].filtered[t - 1], want, atol=TOL)


@pytest.mark.slow
def test_obs_mask_is_the_program_s_own_business():
    """NumPyro replaces masked values of a site by those of a new latent, `z_unobserved`."""
    known = np.array([True, False, True, False, True])
    labels = np.array([0, 0, 2, 0, 1])
    model = ep.bind(with_obs_mask, Y5, labels, known)
    params = {k: jnp.asarray(values(3)[k]) for k in MIX}
    as_nan = np.where(known, labels, np.nan)
    want = brute.Brute(labels_as_factor, (Y5, as_nan), params, {"z": ((5,), 3)})
    assert _ours(model, params)[0] == pytest.approx(want.log_z, abs=TOL)


@pytest.mark.slow
def test_one_step_ahead_densities_add_up():
    case = by_name["chain, first state by where"]
    exact = enumerated(case)
    model = ep.bind(case.program, *case.args)
    ahead = marginals(model, exact.params).log_predictive["time"]
    for t in range(1, 7):
        cut = enumerated(case, (case.args[0][:t],))
        want = cut.log_z - float(model.log_prior(exact.params))
        assert ahead.reshape(-1)[:t].sum() == pytest.approx(want, abs=TOL)
