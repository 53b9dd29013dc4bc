"""Closed-form M-steps: found by the plan, and at the maximum of Q."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emprob as ep
from emprob.bind import random_params
from emprob.mstep.closed_form import covered
from emprob.objective import expected_log_joint

RNG = np.random.default_rng(20260101)
K, N = 2, 14
Y = RNG.normal(0, 2, N)
Y3 = RNG.normal(0, 1, (N, 3)) @ RNG.normal(0, 1, (3, 3))
COUNTS = RNG.poisson(3.0, N)
POSITIVE = RNG.gamma(2.0, 1.5, N)
BITS = RNG.integers(0, 2, N)
LABELS = RNG.integers(0, 4, N)
WORDS = RNG.multinomial(9, [0.2, 0.5, 0.3], N)


def flat(support, event=()):
    return dist.ImproperUniform(support, (), event)


REAL, PLUS = flat(constraints.real), flat(constraints.positive)
COVARIANCE = flat(constraints.positive_definite, (3, 3))
TRIL = flat(constraints.lower_cholesky, (3, 3))
VECTOR = flat(constraints.real_vector, (3,))


@dataclass(frozen=True)
class Case:
    """An emission of a mixture.

    Attributes:
        each: prior of the parameters that every component has of its own.
        shared: prior of the others.
        emission: from the parameters and the component to a distribution.
        jointly: the parameters with closed forms maximise Q together; else one after another.
        newton: parameters that have no closed form, as the plan must say.
    """

    name: str
    data: Any
    each: dict[str, Any]
    emission: Callable
    shared: dict[str, Any] = field(default_factory=dict)
    jointly: bool = True
    newton: tuple[str, ...] = ()


def program(case: Case) -> Callable:
    def mixture(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.array([1.5, 2.5])))
        with numpyro.plate("k", K):
            p = {n: numpyro.sample(n, d) for n, d in case.each.items()}
        p |= {n: numpyro.sample(n, d) for n, d in case.shared.items()}
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", case.emission(p, z), obs=y)

    return mixture


CASES = [
    Case("Normal", Y, {"mu": REAL, "s": PLUS}, lambda p, z: dist.Normal(p["mu"][z], p["s"][z])),
    Case(
        "Normal, shared scale",
        Y,
        {"mu": REAL},
        lambda p, z: dist.Normal(p["mu"][z], p["s"]),
        {"s": PLUS},
    ),
    Case(
        "Normal, shared location",
        Y,
        {"s": PLUS},
        lambda p, z: dist.Normal(p["m"], p["s"][z]),
        {"m": REAL},
        jointly=False,
    ),
    Case(
        "Normal, variance",
        Y,
        {"mu": REAL, "v": dist.InverseGamma(3.0, 2.0)},
        lambda p, z: dist.Normal(p["mu"][z], jnp.sqrt(p["v"][z])),
    ),
    Case(
        "Normal, precision",
        Y,
        {"mu": REAL, "tau": dist.Gamma(3.0, 2.0)},
        lambda p, z: dist.Normal(p["mu"][z], 1 / jnp.sqrt(p["tau"][z])),
    ),
    Case(
        "Normal, normal prior",
        Y,
        {"mu": dist.Normal(1.0, 0.7)},
        lambda p, z: dist.Normal(p["mu"][z], 1.3),
    ),
    Case(
        "Normal, half-normal scale",
        Y,
        {"mu": REAL, "s": dist.HalfNormal(1.0)},
        lambda p, z: dist.Normal(p["mu"][z], p["s"][z]),
        newton=("s",),
    ),
    Case(
        "Normal, tied",
        Y,
        {},
        lambda p, z: dist.Normal(p["mu"][jnp.asarray([0, 0])[z]], p["s"][z]),
        {"mu": dist.Normal(0.0, 3.0).expand([2]).to_event(1), "s": PLUS.expand([2]).to_event(1)},
        jointly=False,
    ),
    Case(
        "Normal, product of two",
        Y,
        {"mu": REAL},
        lambda p, z: dist.Normal(p["mu"][z], p["a"] * 2.5),
        {"a": dist.HalfNormal(1.0)},
        newton=("a",),
    ),
    Case(
        "MVN, full",
        Y3,
        {"mu": VECTOR, "S": COVARIANCE},
        lambda p, z: dist.MultivariateNormal(p["mu"][z], covariance_matrix=p["S"][z]),
    ),
    Case(
        "MVN, tied",
        Y3,
        {"mu": VECTOR},
        lambda p, z: dist.MultivariateNormal(p["mu"][z], covariance_matrix=p["S"]),
        {"S": COVARIANCE},
    ),
    Case(
        "MVN, scale_tril",
        Y3,
        {"mu": VECTOR, "L": TRIL},
        lambda p, z: dist.MultivariateNormal(p["mu"][z], scale_tril=p["L"][z]),
    ),
    Case(
        "MVN, known covariance",
        Y3,
        {"mu": VECTOR},
        lambda p, z: dist.MultivariateNormal(p["mu"][z], covariance_matrix=2.0 * jnp.eye(3)),
    ),
    Case(
        "Normal events",
        Y3,
        {"mu": VECTOR},
        lambda p, z: dist.Normal(p["mu"][z], p["s"]).to_event(1),
        {"s": PLUS},
    ),
    Case(
        "Poisson", COUNTS, {"rate": dist.Gamma(2.0, 0.5)}, lambda p, z: dist.Poisson(p["rate"][z])
    ),
    Case("Bernoulli", BITS, {"p": dist.Beta(2.0, 3.0)}, lambda p, z: dist.Bernoulli(p["p"][z])),
    Case("Binomial", COUNTS, {"p": dist.Beta(2.0, 3.0)}, lambda p, z: dist.Binomial(20, p["p"][z])),
    Case(
        "Categorical",
        LABELS,
        {"p": dist.Dirichlet(1.5 * jnp.ones(4))},
        lambda p, z: dist.Categorical(p["p"][z]),
    ),
    Case(
        "Exponential",
        POSITIVE,
        {"rate": dist.Gamma(2.0, 0.5)},
        lambda p, z: dist.Exponential(p["rate"][z]),
    ),
    Case(
        "Gamma, rate",
        POSITIVE,
        {"rate": dist.Gamma(2.0, 0.5)},
        lambda p, z: dist.Gamma(1.7, p["rate"][z]),
    ),
    Case(
        "LogNormal",
        POSITIVE,
        {"mu": REAL, "s": PLUS},
        lambda p, z: dist.LogNormal(p["mu"][z], p["s"][z]),
    ),
    Case(
        "Multinomial",
        WORDS,
        {"p": dist.Dirichlet(1.5 * jnp.ones(3))},
        lambda p, z: dist.Multinomial(9, p["p"][z], total_count_max=9),
    ),
]


@jax.jit
def _one_mstep(model, params):
    """Q before and after a closed-form M-step, and its gradient there (unconstrained)."""
    posterior = ep.Enumerate()(model, params)
    new = ep.ClosedForm()(model, params, posterior)

    def q(u):
        return expected_log_joint(model, model.constrain(u), posterior)

    before = expected_log_joint(model, params, posterior)
    after, gradient = jax.value_and_grad(q)(model.unconstrain(new))
    return new, before, after, gradient


def check(model, closed, jointly, params=None):
    params = random_params(model, 3) if params is None else params
    new, before, after, gradient = _one_mstep(model, params)
    assert set(covered(model)) == set(closed)
    for name in model.params:
        how = "ClosedForm" if name in closed else "Newton"
        assert model.plan[name].handled_by.startswith(how), (name, model.plan[name])
        if name not in closed:
            np.testing.assert_array_equal(new[name], params[name])
    assert after > before
    if jointly:
        for name in closed:
            np.testing.assert_allclose(gradient[name], 0.0, atol=1e-8)
    return new


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_mstep_maximises_q(case):
    model = ep.bind(program(case), case.data)
    closed = [n for n in ("w", *case.each, *case.shared) if n not in case.newton]
    check(model, closed, case.jointly)


def tied(y):
    """The first and the last of three components have one location."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("two", 2):
        mu = numpyro.sample("mu", dist.Normal(0.0, 4.0))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[jnp.array([0, 1, 0])][z], 1.2), obs=y)


@pytest.mark.slow
def test_ties_within_a_site():
    check(ep.bind(tied, Y), ("w", "mu"), jointly=True)


def two_series(y, x):
    """One rate stands in two observed sites."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("k", 2):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Poisson(rate[z]), obs=y)
        numpyro.sample("x", dist.Poisson(rate[1 - z]), obs=x)


@pytest.mark.slow
def test_ties_between_sites():
    check(ep.bind(two_series, COUNTS, COUNTS[::-1].copy()), ("w", "rate"), jointly=True)


def regimes(y):
    """The first state's law is a row of the same matrix that moves the chain."""
    with numpyro.plate("k", 2):
        A = numpyro.sample("A", dist.Dirichlet(jnp.array([2.0, 1.5])))
        mu = numpyro.sample("mu", REAL)
    v = numpyro.sample("v", dist.InverseGamma(2.0, 1.0))

    def body(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(mu[z], jnp.sqrt(v)), obs=y)
        return z, None

    scan(body, 0, y)


@pytest.mark.slow
def test_chain_with_unrolled_first_step():
    check(ep.bind(regimes, Y), ("A", "mu", "v"), jointly=True)


def test_fixed_parameters_stay():
    model = ep.bind(program(CASES[0]), Y, fixed={"s": np.array([0.8, 1.4])})
    new = check(model, ("w", "mu"), jointly=True)
    assert set(new) == {"w", "mu"}
    assert model.plan["s"].handled_by == "held at the given value"


def test_without_prior_the_counts_are_plain():
    """prior=False: the M-step is the weighted share and mean, written out."""
    model = ep.bind(program(CASES[0]), Y, prior=False)
    params = random_params(model, 3)
    new = check(model, ("w", "mu", "s"), jointly=True, params=params)
    w, mu, s = (np.asarray(params[n]) for n in ("w", "mu", "s"))
    density = w * np.exp(-0.5 * ((Y[:, None] - mu) / s) ** 2) / s
    r = density / density.sum(1, keepdims=True)
    mean = (r * Y[:, None]).sum(0) / r.sum(0)
    sd = np.sqrt((r * (Y[:, None] - mean) ** 2).sum(0) / r.sum(0))
    for name, want in {"w": r.mean(0), "mu": mean, "s": sd}.items():
        np.testing.assert_allclose(new[name], want, rtol=1e-10)


@pytest.mark.slow
def test_missing_rows_do_not_count():
    """NaN rows leave the estimates as without them; the weights of the components too."""
    gaps = Y.copy()
    gaps[[2, 5]] = np.nan
    case = CASES[0]
    with_gaps = ep.bind(program(case), gaps, prior=False)
    without = ep.bind(program(case), np.delete(Y, [2, 5]), prior=False)
    params = random_params(with_gaps, 3)
    a, b = _one_mstep(with_gaps, params)[0], _one_mstep(without, params)[0]
    for name in ("mu", "s"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-10)
