# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # When nothing is exact: five E-steps on one volatility
#
# The volatility of a share index is hidden, moves from day to day, and shows itself only in how far
# returns scatter. The integral over its path has no closed form: not Gaussian, not discrete. Then
# an E-step is either an approximation, with an error that you do not see, or a simulation, with a
# Monte Carlo error that you do. emprob has five to choose from, and this notebook runs them all on
# the same program:
#
# | E-step | what it does with the path | what is not exact |
# | --- | --- | --- |
# | `ep.Laplace()` | a Gaussian around its mode | the law's shape |
# | `ep.MonteCarlo()` | draws by importance sampling, NUTS or particle Gibbs | noise |
# | `ep.SAEM()` | few draws by NUTS, averaged over the steps | noise |
# | `ep.Particle()` | filters forwards, draws paths backwards | noise |
# | `ep.Variational()` | draws from a guide fitted to the law | the law's shape, and noise |
#
# NUTS on the whole program, parameters and path together, runs beside them. And because here the
# hidden state is a single number a day, there is an answer key after all, which no larger model
# would offer.

# %%
# %matplotlib inline
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from jax.scipy.special import expit, logit
from numpyro.contrib.control_flow import scan
from numpyro.infer.autoguide import AutoNormal
from scipy.optimize import minimize

import emprob as ep
from emprob.models import stochastic_volatility as gallery

jax.config.update("jax_enable_x64", True)
pd.set_option("display.precision", 4)
pd.set_option("display.width", 200)

# %% tags=["parameters"]
YEARS = 1.0
NUM_PARTICLES = 128
NUM_FINAL = 2048
NUM_GUIDE = 1000
NUM_WARMUP, NUM_DRAWS = 500, 1500

# %%
returns = gallery.load(YEARS)
fig, ax = plt.subplots(figsize=(9, 2.4), layout="constrained")
ax.plot(returns, color="0.3", lw=0.8)
ax.set(ylabel="return, %", title=f"S&P 500, {len(returns)} days")
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## The program
#
# The log-variance `h` is an autoregression with mean `mu`, and `2 * stay - 1` is what it keeps of
# its distance to that mean from a day to the next.

# %%
PRIORS = {"mu": dist.Normal(0.0, 3.0), "stay": dist.Beta(20.0, 1.5), "sigma": dist.HalfNormal(0.5)}


def volatility(r):
    mu, stay, sigma = (numpyro.sample(name, prior) for name, prior in PRIORS.items())
    phi = 2 * stay - 1

    def day(h, r):
        h = numpyro.sample("h", dist.Normal(mu + phi * (h - mu), sigma))
        numpyro.sample("r", dist.Normal(0.0, jnp.exp(h / 2)), obs=r)
        return h, None

    scan(day, numpyro.sample("h0", dist.Normal(mu, sigma / jnp.sqrt(1 - phi**2))), r)


model = ep.bind(volatility, returns)
model

# %% [markdown]
# ## The answer key
#
# With one hidden number a day, a grid of values of `h` turns the integral into sums: the filter of
# a hidden Markov chain with as many states as points. Maximising it and differentiating it twice
# gives the exact estimate and its standard error. The cost is the square of the number of points,
# and with two hidden numbers a day it would be the fourth power. This is for judging the others.


# %%
@jax.jit
def log_likelihood(mu, stay, sigma):
    phi = 2 * stay - 1
    sd = sigma / jnp.sqrt(1 - phi**2)
    h = mu + sd * jnp.linspace(-6.0, 6.0, 201)
    step = h[1] - h[0]
    move = jnp.exp(dist.Normal(mu + phi * (h[:, None] - mu), sigma).log_prob(h)) * step

    def day(law, r):
        law = (law @ move) * jnp.exp(dist.Normal(0.0, jnp.exp(h / 2)).log_prob(r))
        return law / law.sum(), jnp.log(law.sum())

    start = jnp.exp(dist.Normal(mu, sd).log_prob(h)) * step
    return jax.lax.scan(day, start, jnp.asarray(returns.to_numpy()))[1].sum()


def constrained(u):
    return {"mu": u[0], "stay": expit(u[1]), "sigma": jnp.exp(u[2])}


def minus_log_posterior(u):
    p = constrained(u)
    return -log_likelihood(**p) - sum(PRIORS[k].log_prob(v) for k, v in p.items())


start = np.array([0.0, float(logit(0.97)), np.log(0.3)])
best = minimize(
    jax.jit(minus_log_posterior), start, jac=jax.jit(jax.grad(minus_log_posterior)), method="BFGS"
).x
exact = {k: float(v) for k, v in constrained(best).items()}
slope = jnp.array([1.0, exact["stay"] * (1 - exact["stay"]), exact["sigma"]])
exact_se = slope * jnp.sqrt(jnp.diag(jnp.linalg.inv(jax.hessian(minus_log_posterior)(best))))
exact_se = dict(zip(exact, map(float, exact_se), strict=True))
pd.DataFrame({"estimate": exact, "se": exact_se})

# %%
print(f"exact log-likelihood at the estimate: {log_likelihood(**exact):.4f}")

# %% [markdown]
# ## Laplace
#
# The default. Its mode and curvature of a whole path take a few Newton steps, and the result is a
# smooth function, so the optimum is found to many digits. Digits are not accuracy: they say nothing
# of the approximation.

# %%
laplace = ep.fit(model, key=0, progress=False)
print(laplace)
laplace.summary()

# %% [markdown]
# `ep.importance` looks at the error: it weighs draws of that Gaussian by how wrong it is. The mean
# weight corrects the likelihood, and k-hat, the tail index of the weights, tells whether that
# correction can be believed.

# %%
weighed = ep.importance(laplace, key=1)
print(weighed.sentence)

# %% [markdown]
# ## Four by simulation
#
# They start at Laplace's answer, as you would in practice. A particle filter that lost its
# particles would say so in a warning.

# %%
SIMULATED = {
    "importance": ep.MonteCarlo(ep.Importance(), final_draws=NUM_FINAL),
    "SAEM": ep.SAEM(final_draws=NUM_FINAL),
    "particles": ep.Particle(num_particles=NUM_PARTICLES, final_draws=NUM_FINAL),
    "variational": ep.Variational(AutoNormal, num_first=NUM_GUIDE, final_draws=NUM_FINAL),
}
fits = {"Laplace": laplace}
for seed, (name, estep) in enumerate(SIMULATED.items(), 2):
    with warnings.catch_warnings(record=True) as said:
        fits[name] = ep.fit(model, ep.EM(estep), key=seed, init=laplace.params, progress=False)
    print(f"{name}: {fits[name].status.value}, {fits[name].num_steps} steps")
    for w in said:
        print("  warning:", w.message)

# %% [markdown]
# A run by simulation does not converge to a point. It takes steps while the gain in the objective
# stands out of its noise, uses more draws when it does not, and stops at its *plateau*, where the
# largest number of draws cannot tell the next gain from nothing. Importance sampling was there at
# once and particles almost: Laplace's answer was that near. SAEM does not ask; it averages over a
# fixed number of steps. The variational run went away: what it climbs has its top elsewhere.
#
# From the plateau a few Newton steps lead to where the score is zero up to noise, and what the
# noise makes of the estimate is in `mc_error`, beside `se`, which is about the data. `se_error` is
# the noise of `se` itself.

# %%
fits["particles"].summary()

# %%
pd.DataFrame(
    {
        name: {
            "log-likelihood": fit.simulated.log_likelihood,
            "its Monte Carlo error": fit.simulated.error,
            "k-hat": fit.simulated.khat,
            "distance to the optimum, se": fit.simulated.distance,
            "of which noise, se": fit.simulated.noise,
            "log-likelihood by": fit.simulated.how,
            "errors by": fit.simulated.information,
        }
        for name, fit in fits.items()
        if fit.simulated is not None
    }
)

# %% [markdown]
# Read this table first of all. Where importance weights have a k-hat below a half, as here, the
# end of a run uses the simulated likelihood itself, with draws of its own, whatever E-step brought
# it there: the first three columns differ by noise alone. Where they have not, it ends with draws
# of the E-step: rougher, and it says so. The variational column says *a lower bound*: its number
# is no likelihood, its optimum is that of the bound, and so are its standard errors, from
# differences of the bound's score.
#
# ## NUTS on the same program
#
# Parameters and path together, one coordinate for every day.

# %%
with warnings.catch_warnings(record=True) as said:
    bayes = ep.nuts(
        model, key=6, init=laplace, num_warmup=NUM_WARMUP, num_samples=NUM_DRAWS, progress=False
    )
print(bayes)
for w in said:
    print("warning:", w.message)

# %% [markdown]
# ## Side by side


# %%
def row(fit):
    cells, summary = {}, fit.summary()
    noisy = fit.simulated is not None
    for site in PRIORS:
        cells[site, "estimate"] = summary.loc[site, "estimate"]
        cells[site, "se"] = summary.loc[site, "se"]
        cells[site, "mc error"] = summary.loc[site, "mc_error"] if noisy else 0.0
    cells["log-likelihood", "value"] = fit.log_likelihood
    cells["log-likelihood", "mc error"] = fit.simulated.error if noisy else 0.0
    at = log_likelihood(**{k: float(fit.params[k]) for k in PRIORS})
    cells["log-likelihood", "exact there"] = float(at)
    cells["seconds", ""] = sum(fit.seconds.values())
    return cells


def nuts_row(bayes):
    cells = {}
    for site, line in bayes.summary().loc[list(PRIORS)].iterrows():
        cells[site, "estimate"], cells[site, "se"] = line["mean"], line["sd"]
        cells[site, "mc error"] = line["sd"] / np.sqrt(line["ess"])
    return cells | {("seconds", ""): sum(bayes.seconds.values())}


key_row = {(k, "estimate"): v for k, v in exact.items()}
key_row |= {(k, "se"): v for k, v in exact_se.items()}
key_row["log-likelihood", "value"] = float(log_likelihood(**exact))
rows = {"exact": key_row} | {k: row(f) for k, f in fits.items()} | {"NUTS": nuts_row(bayes)}
table = pd.DataFrame.from_dict(rows, orient="index")
table.columns = pd.MultiIndex.from_tuples(table.columns)
table = table[[*PRIORS, "log-likelihood", "seconds"]]
table

# %% [markdown]
# Thin bars are standard errors (of NUTS, posterior deviations) times two, thick ones Monte Carlo
# errors times two, and the dotted line is the exact estimate.

# %%
COLORS = dict(zip(rows, ["0.2", *plt.rcParams["axes.prop_cycle"].by_key()["color"]], strict=False))
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
for ax, site in zip(axes, PRIORS, strict=True):
    for at, name in enumerate(table.index):
        value, se, error = table.loc[name, site]
        ax.plot([value - 1.96 * se, value + 1.96 * se], [at, at], color=COLORS[name], lw=1.2)
        if error > 0:
            ends = [value - 1.96 * error, value + 1.96 * error]
            ax.plot(ends, [at, at], color=COLORS[name], lw=6, alpha=0.45, solid_capstyle="butt")
        ax.plot(value, at, "o", color=COLORS[name], markersize=4)
    ax.axvline(exact[site], color="0.2", lw=0.6, ls=":")
    ax.set_title(site, loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_yticks(range(len(table)), table.index)
axes[0].invert_yaxis()

# %% [markdown]
# Importance sampling, SAEM and particles agree with the exact estimate to about a hundredth of a
# standard error, Laplace to a twentieth: more draws would buy digits that the data cannot fill.
# What parts the three from it are one to three of the Monte Carlo errors that they state. Such
# errors are themselves estimated, from weights whose long tail a sample may miss: a Monte Carlo
# error from one run is an order of magnitude.
#
# NUTS gives means, not modes, of a skewed posterior, so its row need not agree; its bars are longer
# where the posterior has a tail. Its effective sample size, the smallest of all coordinates, says
# how rough its numbers still are.
#
# The variational fit is somewhere else altogether. Column "exact there" is the true log-likelihood
# at each estimate, and its own is far below the rest. Why?

# %%
paths = {"Laplace": laplace.posterior["h"], "particles": fits["particles"].posterior["h"],
         "variational": fits["variational"].posterior["h"]}  # fmt: skip
h_nuts = bayes.samples["h"].reshape(-1, len(returns))
fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=[2, 1], layout="constrained")
axes[0].plot(returns.index, returns.abs(), ".", color="0.7", markersize=3, label="|return|, %")
for name, h in paths.items():
    axes[0].plot(returns.index, np.exp(h.mean / 2), color=COLORS[name], lw=1.2, label=name)
axes[0].plot(returns.index, np.exp(h_nuts.mean(0) / 2), color=COLORS["NUTS"], lw=1.2, ls="--",
             label="NUTS")  # fmt: skip
axes[0].set_title("exp(h / 2), h at its mean", loc="left", fontsize=10)
axes[0].legend(frameon=False, fontsize=8)
for name, h in paths.items():
    axes[1].plot(returns.index, h.sd, color=COLORS[name], lw=1.2)
axes[1].plot(returns.index, h_nuts.std(0), color=COLORS["NUTS"], lw=1.2, ls="--")
axes[1].set_title("standard deviation of h", loc="left", fontsize=10)
axes[1].set_ylim(0)
axes[1].xaxis.set_major_locator(plt.MaxNLocator(4))
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)

# %%
pd.DataFrame(
    {name: {"mean sd of h": h.sd.mean()} for name, h in paths.items()}
    | {"NUTS": {"mean sd of h": h_nuts.std(0).mean()}}
)

# %% [markdown]
# The guide takes every day's `h` as independent of the others. But the days are strongly
# correlated, and a guide without correlations is nearest to a law without them: so the bound
# rewards parameters that make the days independent, a small `stay` and a large `sigma`. Variational
# EM does not only misjudge the posterior of the path, it carries the error into the estimates. No
# Monte Carlo error shows that, because it is not noise. Compare the bounds of several guides, and
# with a likelihood where you can get one, before you believe any.
#
# ## Where the noise begins
#
# Starting far away shows what an E-step by simulation does with its draws.

# %%
far = ep.fit(
    model, ep.EM(SIMULATED["importance"]), key=7, init={"mu": 0.5, "stay": 0.9, "sigma": 0.15},
    progress=False,
)  # fmt: skip
print(far)
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
ax.plot(np.abs(far.trace["gain"]), "o-", markersize=3, label="gain that a step promises")
ax.plot(far.trace["error"], "o-", markersize=3, label="its Monte Carlo error")
ax.set(yscale="log", xlabel="step, taken or refused")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)

# %%
pd.DataFrame(
    {
        "from Laplace": fits["importance"].summary()["estimate"],
        "from afar": far.summary()["estimate"],
        "Monte Carlo error": far.summary()["mc_error"],
    }
)

# %% [markdown]
# The promised gains fall, step by step, until they are as small as their error; the number of draws
# jumps, the error falls, more steps are taken, and then nothing is left to tell.
#
# ## Which answer to trust
#
# - **Laplace first.** It is the fastest, has no noise, and starts the others. Ask `ep.importance`
#   for its k-hat: where that is good, so is the correction, and if the correction is small against
#   the differences in log-likelihood that you care about, you are done.
# - **k-hat good, digits wanted:** importance sampling. Independent draws, no tuning, and an
#   estimate of the likelihood with an error, for AIC and for comparing programs.
# - **k-hat bad**, or densities that are not smooth, or a discrete latent beside the path:
#   particles, for any `scan`. The likelihood is unbiased on its own scale. Watch the warnings.
# - **No scan, or many parameters with statistics:** SAEM with NUTS draws. It gives no likelihood of
#   its own; the one in its column is by importance sampling.
# - **Variational** when nothing else is affordable, and with a guide that can hold the
#   correlations. Its number is a bound: never put it beside a likelihood, or into AIC.
# - **NUTS on everything** when the posterior is the answer, not an estimate. It needs many draws
#   here, and its effective sample size says how many.
#
# In all of them: an estimate is known when its Monte Carlo error is small *beside its standard
# error*, and a log-likelihood when its error is small beside the difference that decides. And an
# error that is stated is noise only; bias has to be looked for, by k-hat, by a second method, or,
# if ever there is one, by an answer key.
