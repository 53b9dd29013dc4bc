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
# # Random effects: what belongs to the group, what to chance
#
# Measurements come in groups: patients, schools, batches, funds. Each group has its own level,
# perhaps its own slope. A model that gives every group a parameter of its own overfits; one that
# gives none overlooks the differences. Random effects are latent variables with a law whose
# variance is estimated, and that variance says how much the groups should borrow from each other.
#
# Here they are plain NumPyro. emprob sees that the effects are latent and the density is
# quadratic in them, and integrates them out exactly: a fit is the maximum likelihood of `lme4`.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

import emprob as ep
from emprob.models import random_effects

jax.config.update("jax_enable_x64", True)
pd.set_option("display.precision", 3)

# %% tags=["parameters"]
NUM_WARMUP, NUM_DRAWS = 500, 1000

# %% [markdown]
# ## The data
#
# Average reaction times of people who were allowed to sleep three hours a night, day after day.

# %%
# Belenky et al. (2003), Journal of Sleep Research 12(1)
sleep = random_effects.load()
subject, num_people = random_effects.codes(sleep["subject"])
reaction, days = sleep["reaction"].to_numpy(), sleep["days"].to_numpy()
print(f"{len(sleep)} measurements of {num_people} people, {sleep['days'].nunique()} days each")
sleep.head(3)

# %% [markdown]
# ## The program
#
# Every person has a level `b[j, 0]` and a slope `b[j, 1]`, relative to the line `beta` of all
# people. Level and slope may be correlated. `b[subject]` picks the person of each measurement.


# %%
def sleep_study(reaction, days, subject, num_people):
    beta = numpyro.sample("beta", dist.Normal(jnp.array([300.0, 0.0]), 100.0).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(jnp.array([100.0, 30.0])).to_event(1))
    correlation = numpyro.sample("correlation", dist.Uniform(-1.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(100.0))
    covariance = correlation * sd[0] * sd[1]
    D = jnp.array([[sd[0] ** 2, covariance], [covariance, sd[1] ** 2]])
    with numpyro.plate("person", num_people):
        law = dist.MultivariateNormal(jnp.zeros(2), covariance_matrix=D)
        b = numpyro.sample("b", law)
    with numpyro.plate("measurement", len(reaction)):
        line = beta + b[subject]
        numpyro.sample("y", dist.Normal(line[..., 0] + line[..., 1] * days, sigma), obs=reaction)


# %%
model = ep.bind(sleep_study, reaction, days, subject, num_people, prior=False)
model

# %% [markdown]
# The row of `b` says that it is integrated out as a Gaussian, two numbers a person. With
# `prior=False` the objective is the likelihood, so that the fit can be held against the published
# one.

# %%
fit = ep.fit(model, progress=False)
print(fit)
print(f"{fit.seconds['total']:.0f} s, compiling included; EM itself ran {fit.seconds['run']:.3f} s")

# %%
# lme4, maximum likelihood: Bates et al. (2015), Journal of Statistical Software 67(1)
rows = ["beta[0]", "beta[1]", "sd[0]", "sd[1]", "correlation", "sigma"]
published = [251.405105, 10.467286, 565.477**0.5, 32.6818**0.5, 0.0813, 654.946**0.5]
table = fit.summary().loc[rows, ["estimate", "se", "lower", "upper"]]
table.assign(lme4=published)

# %% [markdown]
# The last column is what `lme4` finds.
#
# ## The effects
#
# The posterior of each person's line, given the estimates. It lies between the person's own
# least-squares line and the line of all people: the less a person's own data say, the more is
# borrowed.

# %%
effects = fit.posterior["b"]
lines = fit.params["beta"] + effects.mean
alone = np.array([np.polyfit(days[subject == j], reaction[subject == j], 1)[::-1]
                  for j in range(num_people)])
figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
for own, shrunk in zip(alone, lines):
    ax.annotate("", shrunk, own, arrowprops={"arrowstyle": "->", "color": "0.6"})
ax.plot(*alone.T, "o", color="0.6", label="each person alone")
ax.plot(*lines.T, "o", label="random effects")
ax.plot(*fit.params["beta"], "k+", markersize=14, label="all people")
ax.set(xlabel="reaction time at the start, ms", ylabel="slope, ms a day")
ax.legend(frameon=False);

# %%
sd = np.sqrt(effects.variance)
order = np.argsort(lines[:, 1])
pd.DataFrame(
    {"person": sleep["subject"].unique()[order], "slope": lines[order, 1], "± sd": sd[order, 1]}
).iloc[[0, 1, -2, -1]]

# %% [markdown]
# The slowest and the fastest to tire, at the two ends.
#
# ## NUTS on the same program
#
# Now with the priors: the same program, once more by EM (the mode of the posterior density) and
# by NUTS. NUTS moves in the parameters only, since the effects stay integrated out.

# %%
posterior = ep.bind(sleep_study, reaction, days, subject, num_people)
mode = ep.fit(posterior, progress=False)
bayes = ep.nuts(posterior, key=1, init=mode, num_warmup=NUM_WARMUP, num_samples=NUM_DRAWS,
                num_chains=2, progress=False)
comparison = ep.compare(mode, bayes)
print(comparison.verdict)

# %%
columns = ["estimate", "se", "mean", "sd", "z_shift", "overlap", "rhat"]
names = [r for r in rows if r in comparison.table.index]
comparison.table.loc[names, columns]

# %%
ep.plot_forest(comparison, names=names);

# %% [markdown]
# ## At the boundary
#
# The second data set is famous for its answer. Six batches of dyestuff, five yields each,
# simulated so that the batches differ less than chance alone would make them.


# %%
def batches(y, batch, num_batches):
    mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
    tau = numpyro.sample("tau", dist.HalfNormal(10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    with numpyro.plate("batch", num_batches):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("yield", len(y)):
        numpyro.sample("y", dist.Normal(mu + b[batch], sigma), obs=y)


# Box and Tiao (1973), Bayesian Inference in Statistical Analysis, section 5.1.2
dyestuff = random_effects.load_dyestuff(random_effects.DYESTUFF2)
batch, num_batches = random_effects.codes(dyestuff["batch"])
y = dyestuff["yield"].to_numpy()
zero = ep.fit(ep.bind(batches, y, batch, num_batches, prior=False), progress=False)
print(zero)
print(zero.message)
zero.summary()

# %% [markdown]
# The most likely standard deviation between batches is zero, and the status says so. It gets no
# standard error: a normal approximation around the end of its support would be wrong. Those of
# `mu` and `sigma` are what they would be without batches.
#
# The likelihood, as a function of `tau`, says more than its maximum. For each `tau` the best `mu`
# and `sigma` come from a fit with `tau` held fixed.

# %%
grid = np.linspace(0.05, 4.0, 12)
profile = [
    ep.fit(ep.bind(batches, y, batch, num_batches, prior=False, fixed={"tau": t}), progress=False)
    for t in grid
]
gain = np.array([p.log_likelihood for p in profile]) - zero.log_likelihood
inside = grid[gain > -1.92]
print(f"within 1.92 of the maximum up to tau = {inside.max():.1f}")
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(grid, gain, "o-")
ax.axhline(-1.92, color="0.6", linewidth=0.8)
ax.set(xlabel="tau", ylabel="log-likelihood below its maximum");

# %% [markdown]
# So zero is the best single value, and the data do not exclude a `tau` well above it. When that
# matters, do not report the zero: give the interval, or the posterior.

# %%
full = ep.bind(batches, y, batch, num_batches)
draws = ep.nuts(full, key=2, num_warmup=NUM_WARMUP, num_samples=NUM_DRAWS, progress=False)
draws.summary().loc[["mu", "tau", "sigma"], ["mean", "sd", "2.5%", "50%", "97.5%"]]

# %% [markdown]
# ## Your own groups
#
# Keep the two lines: a plate of effects with a law, and `b[group]` where the measurements are.
# Missing measurements are NaN. For counts or yes-or-no answers change the observed law: the
# effects are then integrated out by quadrature (`emprob.models.logistic_random_effects`).
