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
# # Quickstart: your own model, by EM and by NUTS
#
# You have a NumPyro program with discrete latent variables. This notebook shows what emprob does
# with it: find the estimates by EM in a moment, attach standard errors, describe the latents, and
# then run NUTS on **the same program** to see where the fast answer can be trusted.
#
# The example is a regime model of real daily S&P 500 returns. Nothing in it comes from emprob: it
# is plain NumPyro, written below.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from arch.data import sp500
from numpyro.contrib.control_flow import scan

import emprob as ep

jax.config.update("jax_enable_x64", True)
pd.set_option("display.precision", 3)

# %% tags=["parameters"]
START, END = "2006", "2010"
NUM_STARTS = 8
NUM_WARMUP, NUM_DRAWS = 500, 1000
NUM_SIMULATED = 16

# %% [markdown]
# ## The data
#
# Daily log returns in percent, from a data set in the package `arch`. A pandas series goes into
# the model as it is.

# %%
price = sp500.load()["Adj Close"]
returns = (100 * np.log(price).diff()).loc[START:END].rename("return")
dates = returns.index.to_numpy()
returns.describe().to_frame().T

# %% [markdown]
# ## The program
#
# Each day is in one of two states. The state follows a Markov chain with transition matrix `A`,
# and each state has its own mean and its own volatility. The sum over all paths of states is not
# in the program: emprob sees that `z` is a discrete chain and does it exactly.
#
# The priors are weak. `duration` is the expected number of days that a visit to a state lasts; as
# it is a function of the parameters, it gets an estimate and a standard error like they do.
#
# Without returns the program simulates. That is the usual NumPyro idiom, and comes in handy at
# the end.


# %%
def regimes(returns=None, num_days=None):
    initial = numpyro.sample("initial", dist.Dirichlet(jnp.array([2.0, 2.0])))
    with numpyro.plate("state", 2):
        A = numpyro.sample("A", dist.Dirichlet(jnp.array([2.0, 2.0])))
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    numpyro.deterministic("duration", 1 / (1 - jnp.diagonal(A)))

    def day(carry, y):
        z, t = carry
        z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, initial, A[z])))
        numpyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)
        return (z, t + 1), None

    scan(day, (0, 0), returns, length=num_days)


# %% [markdown]
# ## Bind it, and read the plan
#
# `ep.bind` runs the program on the data, finds out what each site is, and checks both. What it
# returns is the model; what it shows is the plan.

# %%
model = ep.bind(regimes, returns)
model

# %% [markdown]
# One row per site:
#
# - **role**: what is estimated (`parameter`), what is summed out (`latent`), what is data
#   (`observed`). If a role is not what you meant, say so with `latents=[...]`.
# - **structure**: how it repeats. `z` is a chain along the days.
# - **handled by**: how. A parameter with `ClosedForm` is solved for exactly in each M-step,
#   because emprob recognised the argument that it stands for and a prior that fits. `sigma` has a
#   prior that does not, so it takes Newton steps. For `z` the E-step is the exact
#   forward-backward recursion.
#
# `ep.check` tries the bound program at random parameters, before you spend any time on a fit.

# %%
ep.check(model)

# %% [markdown]
# ## Fit
#
# EM finds a local optimum, so use several starts. They run as one compiled batch; the best of them
# go on to the end. With `progress=True`, the default, a bar shows how it goes.

# %%
fit = ep.fit(model, key=0, num_starts=NUM_STARTS, progress=False)
print(fit)
print(fit.message)
print(f"{fit.seconds['total']:.0f} s, compiling included; EM itself ran {fit.seconds['run']:.2f} s")

# %% [markdown]
# The status is worth reading. *Converged* is not "the objective hardly moved": it says that the
# gradient is zero, measured as the distance to the optimum in standard errors (the score norm).
# Anything else, such as a collapsed component, a saddle or too few steps, has its own status, and
# the message names the site.
#
# Do the starts agree?

# %%
fit.starts

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
fit.plot_trace(ax=axes[0])
ep.plot_starts(fit, ax=axes[1]);

# %% [markdown]
# On the left, the objective approaches its end and the score norm falls with it, down to rounding.
# On the right, every start that ended at the same height found the same optimum.
#
# ## Estimates and standard errors

# %%
fit.summary()

# %% [markdown]
# What the standard errors rest on: the curvature of the objective at the optimum (the observed
# information, with the latents summed out), carried to each quantity by the delta method. They are
# as good as the claim that the posterior is Gaussian near its top. The intervals are symmetric on
# the log scale for a volatility and on the log-odds scale for a probability, so they never leave
# the support; for a derived quantity such as `duration` they are symmetric as it stands. The column
# `gradient` is the score of each parameter, which should be zero.
#
# Look at `initial`: a single day tells us about it, and its interval admits as much. If the data
# did not determine a parameter at all, its standard error would be missing and the `note` would
# say so.
#
# ## The latents
#
# Which state is the turbulent one? The labels are arbitrary, so ask the estimates.

# %%
calm, wild = np.argsort(fit.params["sigma"])
names = np.array(["", ""], dtype=object)
names[calm], names[wild] = "calm", "turbulent"
z = fit.posterior["z"]
path = z.most_likely_path()
autumn = pd.DataFrame(
    {
        "return": returns.to_numpy(),
        "filtered": z.filtered[:, wild],
        "smoothed": z.probs[:, wild],
        "path": names[path],
    },
    index=returns.index,
)
autumn.loc["2008-08-25":"2008-09-19"]

# %% [markdown]
# - **Filtered**: the probability of the turbulent state given the returns *up to that day*. It is
#   what you could have known in the evening, apart from the parameters, which come from the whole
#   sample.
# - **Smoothed** (`probs`): given *all* returns, later ones included. It is the better account of
#   what happened, and no basis for a trading rule.
# - **Path**: the single most likely sequence of states as a whole. It is not the same as taking
#   the likelier state of each day on its own.
#
# In the table, the smoothed probability moves first: it has seen what came next.

# %%
figure, axes = plt.subplots(
    2, 1, figsize=(10, 5.5), sharex=True, layout="constrained", height_ratios=[1.4, 1]
)
fit.plot_marginals(x=dates, ax=axes[0], labels=list(names))
axes[0].set(ylabel="return, %", xlabel="")
axes[1].plot(dates, z.filtered[:, wild], color="0.65", linewidth=0.9, label="filtered")
axes[1].plot(dates, z.probs[:, wild], color="#D55E00", linewidth=1.3, label="smoothed")
axes[1].fill_between(
    dates, -0.08, -0.03, where=path == wild, color="#D55E00", linewidth=0, label="most likely path"
)
axes[1].set(ylabel="P(turbulent)", ylim=(-0.1, 1.03), xlim=dates[[0, -1]])
axes[1].spines[["top", "right"]].set_visible(False)
axes[1].legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1));

# %% [markdown]
# `z.pairwise`, `z.entropy` and `z.sample(key, num)` (exact draws of whole paths) are there too.
#
# ## Missing days
#
# NaN is missing: the day passes without an observation, and the chain goes on. Here a whole month
# of the crisis is hidden, and some days at random.

# %%
hidden = np.random.default_rng(0).random(len(returns)) < 0.05
hidden |= (returns.index >= "2008-10-01") & (returns.index < "2008-11-01")
gaps = ep.bind(regimes, returns.mask(hidden))
gaps_fit = ep.fit(gaps, init=fit.params, progress=False)
print(gaps_fit.status.word, "with", hidden.sum(), "of", len(returns), "days missing")
pd.DataFrame(
    {
        ("all days", "estimate"): fit.summary()["estimate"],
        ("all days", "se"): fit.summary()["se"],
        ("with gaps", "estimate"): gaps_fit.summary()["estimate"],
        ("with gaps", "se"): gaps_fit.summary()["se"],
    }
)

# %%
through = pd.Series(gaps_fit.posterior["z"].probs[:, wild], index=returns.index)
through.loc["2008-10"].describe()[["count", "min", "max"]].rename("P(turbulent), month hidden")

# %% [markdown]
# The states of the hidden days are still inferred, from the days around them.
#
# ## Holding a parameter fixed
#
# Does the mean return differ between the states, or from zero? Fix it and see what the fit loses.

# %%
flat = ep.bind(regimes, returns, fixed={"mu": np.zeros(2)})
flat_fit = ep.fit(flat, init={k: v for k, v in fit.params.items() if k != "mu"}, progress=False)
pd.DataFrame(
    {
        name: {"log-likelihood": f.log_likelihood, "parameters": f.df, "AIC": f.aic, "BIC": f.bic}
        for name, f in {"free mean": fit, "mean fixed at zero": flat_fit}.items()
    }
).T.astype({"parameters": int})

# %% [markdown]
# Smaller is better. AIC keeps the means free and BIC, which charges more for a parameter, does not:
# the turbulent state's negative mean is hard to tell from zero, as its interval above said.
# (Strictly, both criteria are meant for maximum likelihood. With priors as weak as these the
# difference is slight, and `ep.bind(..., prior=False)` leaves them out.)
#
# ## NUTS on the same program
#
# `ep.nuts` takes the same model. The latents are summed out exactly, so it samples the parameters
# alone, and it starts from the fit. (The program also runs through `numpyro.infer.MCMC` as it is.)

# %%
bayes = ep.nuts(
    model, key=1, init=fit, num_warmup=NUM_WARMUP, num_samples=NUM_DRAWS, progress=False
)
print(bayes)

# %%
comparison = ep.compare(fit, bayes)
comparison.table

# %%
print(comparison.verdict)

# %%
comparison.plot();

# %% [markdown]
# ## Where the fast answer can be trusted
#
# Read the table from right to left:
#
# - `rhat` and `ess` first: draws that have not converged are no yardstick.
# - `overlap` is the area that the estimate with its standard error, as a normal law, has in common
#   with the posterior: one means that they are the same. `z_shift` says how far the posterior
#   mean is from the estimate, in posterior standard deviations.
# - The verdict's Pareto k-hat judges the normal approximation of *all* parameters together.
#
# Sort the rows, and the pattern shows. Every day speaks about the means, and there estimate and
# standard error say what NUTS says. About the transition probabilities only the few changes of
# state speak: their posterior is skewed, and so is that of the durations that follow from them. A
# skewed law has its mode beside its mean, so for these rows report the interval of NUTS.

# %%
comparison.table.sort_values("overlap")[["estimate", "se", "mean", "sd", "z_shift", "overlap"]]

# %% [markdown]
# ## A check where the truth is known
#
# Take the estimates for the truth, let the same program simulate, and fit what it made. If the
# standard errors are right, the estimates scatter as widely as they say (`sd of estimates` beside
# `mean se`), and nearly all intervals contain the truth.

# %%
simulate = numpyro.infer.Predictive(
    numpyro.handlers.condition(regimes, jax.tree.map(jnp.asarray, fit.params)),
    num_samples=NUM_SIMULATED,
)
worlds = simulate(jax.random.key(2), None, len(returns))
refits = [
    ep.fit(ep.bind(regimes, np.asarray(y)), init=fit.params, progress=False) for y in worlds["y"]
]
tables = [f.summary() for f in refits]
truth = fit.summary()["estimate"]
inside = [(t["lower"] < truth) & (truth < t["upper"]) for t in tables]
print("statuses:", {f.status.word for f in refits})
pd.DataFrame(
    {
        "truth": truth,
        "mean estimate": pd.concat([t["estimate"] for t in tables], axis=1).mean(axis=1),
        "sd of estimates": pd.concat([t["estimate"] for t in tables], axis=1).std(axis=1),
        "mean se": pd.concat([t["se"] for t in tables], axis=1).mean(axis=1),
        f"in interval, of {NUM_SIMULATED}": pd.concat(inside, axis=1).sum(axis=1),
    }
)

# %%
right = [
    (f.posterior["z"].most_likely_path() == states).mean()
    for f, states in zip(refits, np.asarray(worlds["z"]))
]
print(f"days whose state the most likely path gets right: {np.mean(right):.0%}")

# %% [markdown]
# A handful of simulated series is a smoke test, not a study of coverage; raise `NUM_SIMULATED` for
# that. Only the first fit compiles: the others have data of the same shape.
#
# ## Keep it
#
# A fit is saved as one file of plain arrays. Loading checks that it belongs to the model.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "regimes.npz"
    fit.save(file)
    print(f"{file.stat().st_size / 1024:.0f} KiB")
    again = ep.load(file, model=model)
print(again)
print("same estimates:", all(np.array_equal(again.params[k], v) for k, v in fit.params.items()))

# %% [markdown]
# For ArviZ, both results turn into a tree of labelled arrays: of the fit, draws from its normal
# approximation with exact draws of the latents; of NUTS, its own draws. Either goes into
# `to_netcdf` and into the plots of ArviZ.

# %%
trees = {"fit": fit.to_arviz(key=3, n=200), "nuts": bayes.to_arviz()}
for name, tree in trees.items():
    print(name, {group: dict(child.sizes) for group, child in tree.children.items()})

# %% [markdown]
# ## Your own program
#
# Replace `regimes` by your program, and `returns` by your data. The order of calls stays:
# `ep.bind`, read the plan, `ep.check`, `ep.fit` with several starts, `summary()`, then `ep.nuts`
# and `ep.compare` once, to learn how far the fast answer carries on data like yours.
