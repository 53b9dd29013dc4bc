"""Do E-steps by simulation land where they say? Twenty keys each, on programs with an exact answer.

    python tests/benchmarks/bench_simulated.py [keys] [E-step ...]
    python tests/benchmarks/bench_simulated.py volatility [FILE] [method ...]
    python tests/benchmarks/bench_simulated.py heston [keys] [days]

For every E-step and program: the share of estimates within two of their own Monte Carlo standard
errors of the exact optimum, the standard deviation of (estimate - optimum) / error (one, if the
errors are right), the mean error in standard errors of the estimate, and seconds of a warm fit.
Score and information are from draws of the E-step, by Louis' identity: these programs are Gaussian
(the third given the number of jumps, which is summed out), where the simulated likelihood around
the mode, which `fit` prefers, has no Monte Carlo error.

`volatility` fits stochastic volatility to one long series of daily returns, by maximum likelihood
from Laplace's fit, as `fit` comes: what every E-step says beside the exact maximum, which a grid on
the log-variance gives, and beside NUTS on the posterior. FILE (.csv) has returns in percent in its
last column, after a header; without it, the S&P 500 of the last eleven years of 1999-2018 (package
arch). Gaps are in stated Monte Carlo errors (mc) and in standard errors (se); the log-likelihood is
that stated, and the exact one at the estimate.

`heston` fits returns drawn from Heston's diffusion by particles, with several keys: gaps to the
maximum of the posterior density, by a grid on the volatility, in stated Monte Carlo errors, and the
gaps of that maximum to the truth in standard errors.
"""

import sys
import time
import warnings
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.infer.autoguide import AutoMultivariateNormal
from scipy import optimize

import emprob as ep
from emprob import settle
from emprob.models import heston_returns as hr
from emprob.models import jump_diffusion
from emprob.models import stochastic_volatility as sv

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
    """By name: the program, one with the same likelihood that is exact, and where both start."""
    rng = np.random.default_rng(5)
    y = 1.0 + 1.2 * rng.normal(size=8)[GROUP] + rng.normal(size=48)
    x = np.cumsum(0.5 * rng.normal(size=60)) + 0.8 * rng.normal(size=60)
    r, _ = jump_diffusion.simulate(1, 300)
    effects, chain = ep.bind(intercepts, y, GROUP), ep.bind(level, x)
    sizes = ep.bind(jump_diffusion.jump_sizes, r)
    return {
        "random intercepts": (effects, effects, None),
        "local level": (chain, chain, None),
        "sizes of jumps": (sizes, ep.bind(jump_diffusion.jump_counts, r), jump_diffusion.TRUTH),
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
WITH_BRANCHES = {"MonteCarlo(NUTS)", "SAEM"}
CHAINS_ONLY = {"MonteCarlo(ParticleGibbs)", "Particle(Guided)", "Particle(Bootstrap)"}


def applies(program, name):
    if program == "sizes of jumps":
        return name in WITH_BRANCHES
    return program == "local level" or name not in CHAINS_ONLY


def row(model, exact, init, estep, keys):
    exact = ep.fit(exact, init=init, tol=1e-9, progress=False).summary()
    z, size, seconds = [], [], []
    for key in range(keys):
        began = time.perf_counter()
        fit = ep.fit(model, ep.EM(estep), key=key, init=init, progress=False)
        seconds.append(time.perf_counter() - began)
        table = fit.summary()
        z.append((table["estimate"] - exact["estimate"]) / table["mc_error"])
        size.append(table["mc_error"] / exact["se"])
    z = np.array(z)
    inside = (np.abs(z) <= 2.0).mean()
    return inside, z.std(), np.mean(size), np.median(seconds[1:] or seconds)


# -- one long series --------------------------------------------------------------------------

LONG = {
    "MonteCarlo(Importance)": ep.MonteCarlo(ep.Importance()),
    "SAEM": ep.SAEM(),
    "Particle": ep.Particle(),
}


def exact_maximum(returns, start):
    """The maximum of the likelihood by a grid, and its standard errors, both for mu, phi, sigma."""

    def parts(w):
        return w[0], np.tanh(w[1]), np.exp(w[2])

    def loss(w):
        return -sv.log_likelihood_by_grid(returns, *parts(w))

    w0 = [start["mu"], np.arctanh(start["phi"]), np.log(start["sigma"])]
    found = optimize.minimize(loss, w0, method="BFGS", options={"gtol": 1e-4})
    best = np.array(parts(found.x))
    h = 0.1 * np.sqrt(np.diag(found.hess_inv))
    moves = np.diag(h)
    curve = np.array([[loss(found.x + a + b) - loss(found.x + a - b) - loss(found.x - a + b)
                       + loss(found.x - a - b) for b in moves] for a in moves])  # fmt: skip
    errors = np.sqrt(np.diag(np.linalg.inv(curve / (4 * np.outer(h, h)))))
    return best, errors * [1.0, 1 - best[1] ** 2, best[2]], -found.fun


def told(name, values, errors, best, se, rest):
    """A row of the table."""
    gaps = (values - best) / se
    cells = [f"{v:9.5f}{e:9.5f}{(v - b) / e if e > 0 else np.nan:7.2f}{g:7.2f}"
             for v, e, b, g in zip(values, errors, best, gaps, strict=True)]  # fmt: skip
    print(f"{name:24}" + "".join(cells) + rest, flush=True)


def fitted(name, method, model, returns, best, se, **settings):
    """Fit and print the row."""
    began = time.perf_counter()
    fit = ep.fit(model, method, progress=False, **settings)
    took, table = time.perf_counter() - began, fit.summary()
    values = table.loc[["mu", "phi", "sigma"], "estimate"].to_numpy()
    simulated, errors = fit.simulated, np.full(3, np.nan)
    said = f"{fit.log_likelihood:11.3f}{np.nan:7.3f}"
    if simulated is not None:
        errors = table.loc[["mu", "phi", "sigma"], "mc_error"].to_numpy()
        said = f"{simulated.log_likelihood:11.3f}{simulated.error:7.3f}"
    exact = sv.log_likelihood_by_grid(returns, *values)
    told(name, values, errors, best, se, f"{said}{exact:11.3f}{took:8.1f}")
    print("   ", fit.message, "" if simulated is None else simulated.information, flush=True)
    return fit


def by_nuts(laplace, returns, best, se):
    """The posterior, which has priors in it, of the same program as written."""
    path = {site: laplace.posterior[site].mean for site in ("h0", "h")}
    began = time.perf_counter()
    bayes = ep.nuts(
        ep.bind(sv.stochastic_volatility, returns), key=1, init={**laplace.params, **path},
        num_warmup=500, num_samples=1000, num_chains=2, dense_mass=False, progress=False,
    )  # fmt: skip
    took = time.perf_counter() - began
    draws = {k: np.asarray(v, float).reshape(2, -1) for k, v in bayes.samples.items()
             if k in ("mu", "stay", "sigma")}  # fmt: skip
    draws["phi"] = 2 * draws.pop("stay") - 1
    ess = {k: _ess(draws[k]) for k in ("mu", "phi", "sigma")}
    values, sds = (np.array([f(draws[k]) for k in ess]) for f in (np.mean, np.std))
    told("NUTS (posterior mean)", values, sds / np.sqrt(list(ess.values())), best, se,
         f"{np.nan:11.3f}{np.nan:7.3f}{sv.log_likelihood_by_grid(returns, *values):11.3f}"
         f"{took:8.1f}")  # fmt: skip
    print("    posterior sd", np.round(sds, 5), bayes)


def _ess(draws):
    from numpyro.diagnostics import effective_sample_size

    return float(effective_sample_size(draws))


def volatility(arguments):
    """The table of one series."""
    files = [a for a in arguments if a.endswith(".csv")]
    if files:
        returns = np.loadtxt(files[0], delimiter=",", skiprows=1, usecols=-1)
    else:
        returns = sv.load(11.0).to_numpy()
    names = [a for a in arguments if a not in files] or [*LONG, "NUTS"]
    returns = returns - returns.mean()
    model = ep.bind(sv.stochastic_volatility, returns, prior=False)
    start = ep.fit(model, init=sv.TRUTH, progress=False)  # compiled
    at = {k: float(v) for k, v in start.params.items()}
    began = time.perf_counter()
    best, se, value = exact_maximum(returns, at | {"phi": 2 * at["stay"] - 1})
    took = time.perf_counter() - began
    print(f"{len(returns)} returns; mu, phi, sigma: estimate, mc, gap / mc, gap / se, each; "
          "log-likelihood, mc, exact there; seconds, compiling included")  # fmt: skip
    told("exact (grid)", best, np.full(3, np.nan), best, se,
         f"{value:11.3f}{np.nan:7.3f}{value:11.3f}{took:8.1f}")  # fmt: skip
    print("    standard errors", np.round(se, 5))
    laplace = fitted("Laplace", None, model, returns, best, se, init=sv.TRUTH)
    for key, name in enumerate(names):  # keys of their own: the end of a run draws from the key
        if name == "NUTS":
            by_nuts(laplace, returns, best, se)
        else:
            fitted(name, ep.EM(LONG[name]), model, returns, best, se, key=key, init=laplace.params)


def heston_maximum(model, returns, start, num=201):
    """The maximum of the posterior density by a grid on the volatility, by site, and its value."""

    def params(w):
        values = (w[0], *np.exp(w[1:4]), np.tanh(w[4]))
        return dict(zip(hr.TRUTH, values, strict=True))

    def loss(w):
        p = params(w)
        with jax.enable_x64(True):  # for differences
            log_prior = float(model.log_prior({k: jnp.asarray(v) for k, v in p.items()}))
        return -hr.log_likelihood_by_grid(returns, p, num) - log_prior

    def slope(w):  # over steps that are wide beside the roughness that the grid has
        steps = np.diag([0.01, 0.05, 0.05, 0.05, 0.05])
        return np.array([(loss(w + h) - loss(w - h)) / (2 * h.sum()) for h in steps])

    p = [float(start[k]) for k in hr.TRUTH]
    w0 = np.array([p[0], *np.log(p[1:4]), np.arctanh(p[4])])
    found = optimize.minimize(loss, w0, method="BFGS", jac=slope, options={"gtol": 0.2})
    return params(found.x), -float(found.fun)


def heston(arguments):
    """Particles on one series, key by key."""
    keys, days = (int(a) for a in (*arguments, *("3", "500")[len(arguments) :]))
    returns = hr.simulate(6, days)[0]
    model = ep.bind(hr.heston, returns)
    laplace = ep.fit(model, key=1, init=hr.start(returns), progress=False)
    best, value = heston_maximum(model, returns, laplace.params)
    names, table = list(hr.TRUTH), laplace.summary()
    se = table.loc[names, "se"].to_numpy()
    exact = np.array([best[k] for k in names])
    line = lambda x: " ".join(f"{v:8.4f}" for v in x)  # noqa: E731
    print(f"{'':30}" + " ".join(f"{k:>8}" for k in names))
    truth = np.array([float(hr.TRUTH[k]) for k in names])
    for name, x in {"truth": truth, "exact (grid)": exact, "se by Laplace": se,
                    "Laplace": table.loc[names, "estimate"],
                    "(exact - truth) / se": (exact - truth) / se}.items():  # fmt: skip
        print(f"{name:30}{line(x)}", flush=True)
    print(f"log-posterior at the exact maximum {value:.3f}")
    for key in range(1, keys + 1):
        began = time.perf_counter()
        fit = ep.fit(model, ep.EM(ep.Particle()), key=key, init=laplace.params, progress=False)
        took, rows = time.perf_counter() - began, fit.summary().loc[names]
        errors, gap = rows["mc_error"].to_numpy(), rows["estimate"].to_numpy() - exact
        print(f"{f'Particle, key {key}':30}{line(rows['estimate'])}  {took:.0f} s")
        for name, x in {"  mc": errors, "  gap / mc": gap / errors, "  gap / se": gap / se}.items():
            print(f"{name:30}{line(x)}")
        exact_there = hr.log_likelihood_by_grid(returns, fit.params)
        told = fit.simulated
        print(f"  log-likelihood {told.log_likelihood:.3f} +- {told.error:.3f}, exact there "
              f"{exact_there:.3f}; {fit.message}; {told.information}", flush=True)  # fmt: skip


def main():
    if sys.argv[1:2] == ["heston"]:
        warnings.simplefilter("ignore")
        heston(sys.argv[2:])
        return
    if sys.argv[1:2] == ["volatility"]:
        warnings.simplefilter("ignore")
        volatility(sys.argv[2:])
        return
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    names = sys.argv[2:] or list(ESTEPS)
    print(f"{'program':20}{'E-step':28}{'in 2':>6}{'sd(z)':>7}{'error/SE':>10}{'s':>7}")
    warnings.simplefilter("ignore")
    for program, (model, exact, init) in models().items():
        for name in filter(partial(applies, program), names):
            with mock.patch.object(settle, "is_solved", lambda _: False):
                found = row(model, exact, init, ESTEPS[name], keys)
            numbers = "{:6.2f}{:7.2f}{:10.4f}{:7.2f}".format(*found)
            print(f"{program:20}{name:28}{numbers}", flush=True)


if __name__ == "__main__":
    main()
