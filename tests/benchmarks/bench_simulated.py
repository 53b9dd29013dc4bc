"""Do E-steps by simulation land where they say? Twenty keys each, on programs with an exact answer.

    python tests/benchmarks/bench_simulated.py [keys] [E-step ...]

For every E-step and program: the share of estimates within two of their own Monte Carlo standard
errors of the exact optimum, the standard deviation of (estimate - optimum) / error (one, if the
errors are right), the mean error in standard errors of the estimate, and seconds of a warm fit.
Score and information are from draws of the E-step, by Louis' identity: these programs are Gaussian,
where the simulated likelihood around the mode, which `fit` prefers, has no Monte Carlo error.
"""

import sys
import time
import warnings
from unittest import mock

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.infer.autoguide import AutoMultivariateNormal

import emprob as ep
from emprob import settle

GROUP = np.repeat(np.arange(8), 6)


def intercepts(y, g):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    s = numpyro.sample("s", dist.HalfNormal(5.0))
    with numpyro.plate("groups", 8):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu + b[g], s), obs=y)


def level(y):
    q = numpyro.sample("q", dist.HalfNormal(2.0))
    r = numpyro.sample("r", dist.HalfNormal(2.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, q))
        numpyro.sample("y", dist.Normal(x, r), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 3.0)), y)


def models():
    rng = np.random.default_rng(5)
    y = 1.0 + 1.2 * rng.normal(size=8)[GROUP] + rng.normal(size=48)
    x = np.cumsum(0.5 * rng.normal(size=60)) + 0.8 * rng.normal(size=60)
    return {
        "random intercepts": ep.bind(intercepts, y, GROUP),
        "local level": ep.bind(level, x),
    }


ESTEPS = {
    "MonteCarlo(NUTS)": ep.MonteCarlo(),
    "MonteCarlo(Importance)": ep.MonteCarlo(ep.Importance()),
    "MonteCarlo(ParticleGibbs)": ep.MonteCarlo(ep.ParticleGibbs()),
    "SAEM": ep.SAEM(),
    "Particle(Guided)": ep.Particle(),
    "Particle(Bootstrap)": ep.Particle(proposal=ep.Bootstrap(), num_particles=256),
    "Variational": ep.Variational(AutoMultivariateNormal),
}
CHAINS_ONLY = {"MonteCarlo(ParticleGibbs)", "Particle(Guided)", "Particle(Bootstrap)"}


def row(model, estep, keys):
    exact = ep.fit(model, ep.EM(), tol=1e-9, progress=False).summary()
    z, size, seconds = [], [], []
    for key in range(keys):
        began = time.perf_counter()
        fit = ep.fit(model, ep.EM(estep), key=key, progress=False)
        seconds.append(time.perf_counter() - began)
        table = fit.summary()
        z.append((table["estimate"] - exact["estimate"]) / table["mc_error"])
        size.append(table["mc_error"] / exact["se"])
    z = np.array(z)
    inside = (np.abs(z) <= 2.0).mean()
    return inside, z.std(), np.mean(size), np.median(seconds[1:] or seconds)


def main():
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    names = sys.argv[2:] or list(ESTEPS)
    print(f"{'program':20}{'E-step':28}{'in 2':>6}{'sd(z)':>7}{'error/SE':>10}{'s':>7}")
    warnings.simplefilter("ignore")
    for program, model in models().items():
        for name in names:
            if name in CHAINS_ONLY and program != "local level":
                continue
            with mock.patch.object(settle, "is_solved", lambda _: False):
                found = row(model, ESTEPS[name], keys)
            numbers = "{:6.2f}{:7.2f}{:10.4f}{:7.2f}".format(*found)
            print(f"{program:20}{name:28}{numbers}", flush=True)


if __name__ == "__main__":
    main()
