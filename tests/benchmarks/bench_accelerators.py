"""Maps and seconds of EM and its accelerators on five problems on which EM is slow.

Run ``python tests/benchmarks/bench_accelerators.py [problem ...]``; without names, all problems.
Data are simulated with fixed seeds. All methods go from the same start to the same tolerance (1e-6
standard errors from the optimum, as `ep.fit` judges it). A map is one E-step with its M-step; a
Newton step counts as one map for the gradient and one more for each column of the Hessian. Seconds
are of the compiled steps, the least of three fits after the first, in one thread. The objectives
must agree to 1e-8, or the row says so.
"""

import os

for pool in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{pool}_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
    + os.environ.get("XLA_FLAGS", "")
)
os.environ["JAX_ENABLE_X64"] = "1"

import sys  # noqa: E402
import warnings  # noqa: E402

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
import pandas as pd  # noqa: E402
from numpyro.contrib.control_flow import scan  # noqa: E402

import emprob as ep  # noqa: E402
from emprob.models.factor_analysis import factor_analysis  # noqa: E402
from emprob.models.missing_data_normal import saturated  # noqa: E402
from emprob.models.random_effects import random_slopes  # noqa: E402
from emprob.models.random_effects import simulate as simulate_groups  # noqa: E402

TOL = 1e-6
REPEATS = 3


# -- the problems ---------------------------------------------------------------------------------


def mixture(y, K):
    pi = numpyro.sample("pi", dist.Dirichlet(2.0 * jnp.ones(K)))
    with numpyro.plate("components", K):
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        scale = numpyro.sample("scale", dist.HalfNormal(5.0))
    with numpyro.plate("rows", y.shape[0]):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.Normal(mu[z], scale[z]), obs=y)


def overlapping_mixture():
    """Three normal laws of which neighbours are 1.8 standard deviations apart."""
    rng = np.random.default_rng(1)
    z = rng.choice(3, 3000, p=[0.3, 0.4, 0.3])
    y = np.array([-2.0, 0.0, 2.0])[z] + np.array([1.1, 1.0, 1.2])[z] * rng.normal(size=3000)
    start = {"pi": np.full(3, 1 / 3), "mu": np.array([-1.5, 0.2, 1.5]), "scale": np.ones(3)}
    return ep.bind(mixture, y, 3), start


def hmm(y, K):
    with numpyro.plate("states", K):
        A = numpyro.sample("A", dist.Dirichlet(1.5 * jnp.ones(K)))
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        scale = numpyro.sample("scale", dist.HalfNormal(5.0))

    def body(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(mu[z], scale[z]), obs=y)
        return z, None

    scan(body, 0, y)


def slow_chain():
    """Two regimes of five steps, one standard deviation apart."""
    rng = np.random.default_rng(2)
    z = np.zeros(1000, int)
    for t in range(1, 1000):
        z[t] = z[t - 1] if rng.random() < 0.8 else 1 - z[t - 1]
    y = z - 0.5 + rng.normal(size=1000)
    start = {
        "A": np.array([[0.8, 0.2], [0.2, 0.8]]), "mu": np.array([-0.4, 0.4]), "scale": np.ones(2)
    }  # fmt: skip
    return ep.bind(hmm, y, 2), start


def weak_factors():
    """Two factors behind ten variables, with more noise than signal."""
    rng = np.random.default_rng(3)
    W = rng.normal(size=(10, 2)) * np.array([0.7, 0.5])
    W[0, 1] = 0.0
    sd = rng.uniform(0.7, 1.3, 10)
    x = rng.normal(size=(300, 2)) @ W.T + sd * rng.normal(size=(300, 10))
    return ep.bind(factor_analysis, x, 2), None


def small_effects():
    """Slopes whose spread is small beside the noise."""
    truth = {
        "beta": np.array([250.0, 10.0]), "sd": np.array([10.0, 4.0]), "correlation": np.array(0.3),
        "sigma": np.array(25.0),
    }  # fmt: skip
    y, x, group, _ = simulate_groups(4, 100, 5, truth)
    return ep.bind(random_slopes, y, x, group, 100), None


def missing_normal():
    """Half of the cells of four correlated variables are missing."""
    rng = np.random.default_rng(5)
    root = np.linalg.cholesky(0.6 * np.ones((4, 4)) + 0.4 * np.eye(4))
    y = rng.normal(size=(200, 4)) @ root.T
    y[rng.random(y.shape) < 0.5] = np.nan
    return ep.bind(saturated, y[np.isfinite(y).any(1)]), None


PROBLEMS = {
    f.__name__: f
    for f in (overlapping_mixture, slow_chain, weak_factors, small_effects, missing_normal)
}
METHODS = {
    "EM": ep.EM(),
    "Squarem": ep.Squarem(ep.EM()),
    "Damped": ep.Damped(ep.EM()),
    "Anderson": ep.Anderson(ep.EM()),
    "QuasiNewton": ep.QuasiNewton(ep.EM()),
    "HandOver(EM)": ep.HandOver(ep.EM()),
    "HandOver(QuasiNewton)": ep.HandOver(ep.QuasiNewton(ep.EM())),
}


def measure(model, start, method):
    """Maps, seconds and objective of one method."""
    options = {"init": start, "tol": TOL, "max_steps": 20000, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ep.fit(model, method, **options)
        again = [ep.fit(model, method, **options).seconds["run"] for _ in range(REPEATS)]
    return found, min(again)


def rows(name):
    model, start = PROBLEMS[name]()
    for label, method in METHODS.items():
        found, seconds = measure(model, start, method)
        print(f"{name}, {label}: {found.num_maps} maps, {seconds:.3g} s", file=sys.stderr)
        yield {
            "problem": name, "method": label, "maps": found.num_maps, "seconds": seconds,
            "objective": found.objective, "status": found.status.word,
            "score norm": found.score_norm,
        }  # fmt: skip


def main(names):
    table = pd.DataFrame([row for name in names or PROBLEMS for row in rows(name)])
    best = table.groupby("problem")["objective"].transform("max")
    table["short by"] = best - table["objective"]
    em = table[table["method"] == "EM"].set_index("problem")["maps"]
    table["times fewer maps"] = table["problem"].map(em) / table["maps"]
    with pd.option_context("display.width", 160, "display.max_rows", None):
        print(table.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
        print(table.groupby("method", sort=False)["times fewer maps"].median())


if __name__ == "__main__":
    main(sys.argv[1:])
