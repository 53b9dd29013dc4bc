"""Do 95 % intervals cover the truth 95 times in a hundred? A simulation.

Run ``python tests/benchmarks/coverage.py [data sets] [case ...]``; the cases are hmm, mixture and
mixture_apart, 500 data sets by default.
Each is drawn from known parameters, fitted from these, and the intervals of ``fit.summary()`` are
compared with the truth, entry by entry. Data sets of one shape share what is compiled. A fit that
has exchanged the labels is turned round by the order of its means.

With 500 data sets the share of a right interval lies between 0.93 and 0.97 in 95 of 100 runs.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")

import sys
import time
import warnings

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emprob as ep


def flat(support, event=()):
    return dist.ImproperUniform(support, (), event)


def states():
    with numpyro.plate("states", 2):
        mu = numpyro.sample("mu", flat(constraints.real))
        sigma = numpyro.sample("sigma", flat(constraints.positive))
    return mu, sigma


def hmm(y):
    """Two regimes; the law of the first one is known (one draw says nothing about it)."""
    with numpyro.plate("from", 2):
        A = numpyro.sample("A", flat(constraints.simplex, (2,)))
    mu, sigma = states()

    def body(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)
        return z, None

    start = numpyro.sample("start", dist.Categorical(jnp.full(2, 0.5)))
    scan(body, start, y)


def mixture(y):
    """Two normal components."""
    pi = numpyro.sample("pi", flat(constraints.simplex, (2,)))
    mu, sigma = states()
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)


def draw_hmm(rng, truth, T=500):
    z, y = rng.integers(2), np.empty(T)
    for t in range(T):
        z = int(rng.random() < truth["A"][z, 1])
        y[t] = rng.normal(truth["mu"][z], truth["sigma"][z])
    return y


def draw_mixture(rng, truth, n=400):
    z = (rng.random(n) < truth["pi"][1]).astype(int)
    return rng.normal(truth["mu"][z], truth["sigma"][z])


EMISSION = {"mu": np.array([-1.0, 1.5]), "sigma": np.array([0.8, 1.3])}
APART = {**EMISSION, "mu": np.array([-2.0, 2.5])}
CASES = {
    "hmm": (hmm, draw_hmm, {"A": np.array([[0.9, 0.1], [0.2, 0.8]]), **EMISSION}),
    # components that overlap: n = 400 is small for Wald intervals, which then cover too little
    "mixture": (mixture, draw_mixture, {"pi": np.array([0.4, 0.6]), **EMISSION}),
    "mixture_apart": (mixture, draw_mixture, {"pi": np.array([0.4, 0.6]), **APART}),
}


def by_site(column, truth, swapped):
    """A column of the summary as arrays like the parameters, labels in the order of the truth."""
    out, start = {}, 0
    for name, value in truth.items():
        part = np.asarray(column)[start : start + value.size].reshape(value.shape)
        out[name] = np.flip(part) if swapped else part  # two labels: every axis is turned round
        start += value.size
    return out


def one(program, y, truth):
    """Which entries are covered, by site; None if the fit is not at a maximum."""
    model = ep.bind(program, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = ep.fit(model, init=truth, progress=False)
    if not fit.converged:
        return None
    table = fit.summary()
    swapped = fit.params["mu"][0] > fit.params["mu"][1]
    lower, upper = (by_site(table[c], truth, swapped) for c in ("lower", "upper"))
    return {k: (lower[k] <= v) & (v <= upper[k]) for k, v in truth.items()}


def simulate(name, count):
    """Print the share of covered entries of one program, after every hundred data sets."""
    program, draw, truth = CASES[name]
    rng = np.random.default_rng(20260101)
    began, hits, used = time.perf_counter(), dict.fromkeys(truth, 0.0), 0
    for i in range(1, count + 1):
        covered = one(program, draw(rng, truth), truth)
        if covered is not None:
            hits, used = {k: hits[k] + covered[k] for k in hits}, used + 1
        if i == 1:
            print(f"{name}: first fit {time.perf_counter() - began:.1f} s", flush=True)
        if i % 100 == 0 or i == count:
            seconds = time.perf_counter() - began
            print(f"{name}: {used} fits, {i - used} not converged, {seconds:.0f} s")
            show(truth, hits, used)


def show(truth, hits, used):
    for site, value in hits.items():
        for index in np.ndindex(value.shape):
            entry = f"{site}[{', '.join(map(str, index))}]"
            share = value[index] / used
            print(f"  {entry:<10} truth {truth[site][index]:6.2f}   covered {share:.3f}")


def main(count="500", *names):
    for name in names or CASES:
        simulate(name, int(count))


if __name__ == "__main__":
    main(*sys.argv[1:])
