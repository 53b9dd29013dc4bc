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
# # State space: a hidden level, missing years, a forecast
#
# A quantity drifts, and you see it through noise: a level, a trend, a volatility. That is a state
# space, and in NumPyro it is a `scan` with a continuous latent in it. emprob integrates the path of
# the latent out: exactly where the program is linear and Gaussian, as it is here. What is left is a
# likelihood of a few parameters, which EM climbs in a moment.
#
# The example is the oldest of the subject, the yearly flow of the Nile at Aswan: how fast does its
# level change, what happened in the years that are missing, and what comes next? At the end NUTS
# runs on **the same program**.

# %%
# %matplotlib inline
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.contrib.control_flow import scan
from statsmodels.datasets import nile

import emprob as ep

jax.config.update("jax_enable_x64", True)
pd.set_option("display.precision", 3)

# %% tags=["parameters"]
NUM_WARMUP, NUM_DRAWS = 500, 1000
NUM_AHEAD = 10
NUM_FORECASTS = 2000

# %%
table = nile.load_pandas().data
flow = pd.Series(table["volume"].to_numpy(), index=table["year"].astype(int), name="flow")
flow.describe().to_frame().T

# %% [markdown]
# ## The program
#
# The level `x` takes a random step each year, and the flow is the level plus noise. The two
# standard deviations are all there is to estimate. Nothing is known of the level before the first
# year, so its prior is as wide as you please: a *diffuse* start.


# %%
def local_level(y):
    level_sd = numpyro.sample("level_sd", dist.HalfNormal(200.0))
    noise_sd = numpyro.sample("noise_sd", dist.HalfNormal(200.0))

    def year(x, y):
        x = numpyro.sample("x", dist.Normal(x, level_sd))
        numpyro.sample("y", dist.Normal(x, noise_sd), obs=y)
        return x, None

    scan(year, numpyro.sample("x0", dist.Normal(1000.0, 1e5)), y)


# %%
model = ep.bind(local_level, flow)
model

# %% [markdown]
# The plan says of `x` that it is a chain and that its log-density is quadratic, so the integral
# over it is exact. That is not assumed from the word "Normal": emprob takes the second derivatives
# of the log-density in the latent and sees that they do not depend on it. Were the flow a count,
# the plan would say `Laplace` instead, and nothing else in this notebook would change.
#
# ## Fit

# %%
fit = ep.fit(model, key=0, progress=False)
print(fit)
fit.summary()

# %% [markdown]
# The prior is weak, and the answer near that of maximum likelihood. For the published one, leave
# the prior out: `prior=False`.

# %%
likeliest = ep.fit(ep.bind(local_level, flow, prior=False), init=fit.params, progress=False)
pd.DataFrame(
    {  # Durbin and Koopman (2012), Time Series Analysis by State Space Methods, chapter 2
        "prior": {k: v**2 for k, v in fit.params.items()},
        "no prior": {k: v**2 for k, v in likeliest.params.items()},
        "printed in the book": {"level_sd": 1469.1, "noise_sd": 15099.0},
    }
).rename(index={"level_sd": "variance of the level", "noise_sd": "variance of the noise"})

# %% [markdown]
# ## The level
#
# `fit.posterior["x"]` is the law of the whole path. Three views of it matter, and they are easily
# confused:
#
# - **predicted**: the level of a year given the flows *before* it. It is what a forecaster had.
# - **filtered**: given the flows up to *and with* that year.
# - **smoothed** (`mean`, `variance`): given *all* flows, later ones too. The best account of what
#   happened, and no basis for judging forecasts.

# %%
x = fit.posterior["x"]
views = pd.DataFrame(
    {
        ("predicted", "mean"): x.predicted_mean, ("predicted", "sd"): x.predicted_variance**0.5,
        ("filtered", "mean"): x.filtered_mean, ("filtered", "sd"): x.filtered_variance**0.5,
        ("smoothed", "mean"): x.mean, ("smoothed", "sd"): x.sd,
    },
    index=flow.index,
)  # fmt: skip
views.loc[[1871, 1872, 1898, 1899, 1900, 1970]].round(1)

# %% [markdown]
# In the first year the prediction knows nothing, and its standard deviation is that of the diffuse
# start. In the last year filtered and smoothed agree: there is no later flow to learn from. In
# between, smoothing knows more than filtering, and its standard deviation is smaller.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True, layout="constrained")
ep.plot_states(fit, "x", ax=axes[0])
axes[0].set(ylabel="flow", xlabel="")
axes[1].plot(flow, ".", color="0.6", markersize=4)
axes[1].plot(flow.index, x.filtered_mean, color="#D55E00", lw=1.2, label="filtered")
axes[1].plot(flow.index, x.mean, color="#0072B2", lw=1.2, label="smoothed")
axes[1].spines[["top", "right"]].set_visible(False)
axes[1].legend(frameon=False);

# %% [markdown]
# The smoothed level falls around 1898, the year in which work on the first dam at Aswan began; the
# filtered one follows with a delay.
#
# The path is a path, not a hundred separate levels: neighbours are correlated
# (`x.pairwise_covariance`), and `x.sample` draws whole paths from their joint law. Questions about
# the path as a whole are answered by draws. In which year was the level highest?

# %%
paths = x.sample(1, 4000)
highest = pd.Series(flow.index[paths.argmax(1)]).value_counts(normalize=True)
highest.head(5).rename("P(highest level)").to_frame()

# %% [markdown]
# ## Missing years
#
# A year without a figure is NaN. Take out forty years, the same as in the book.

# %%
gaps = flow.copy()
gaps.loc[1891:1910] = np.nan
gaps.loc[1931:1950] = np.nan
gaps_fit = ep.fit(ep.bind(local_level, gaps), init=fit.params, progress=False)
print(gaps_fit)
pd.concat(
    {"all years": fit.summary(), "forty missing": gaps_fit.summary()}, axis=1
)[[(n, c) for n in ("all years", "forty missing") for c in ("estimate", "se")]]

# %%
ax = ep.plot_states(gaps_fit, "x")
hidden = flow[gaps.isna()]
ax.plot(hidden, "x", color="#D55E00", markersize=4, label="taken out")
ax.set(ylabel="flow", xlabel="")
ax.legend(frameon=False);

# %% [markdown]
# Nothing was filled in: the level goes on through the gap, and its band opens until the data come
# back. How well does that describe the years that were taken out? Their flow is the level plus
# noise, so its standard deviation is made of both.

# %%
level = gaps_fit.posterior["x"]
sd = np.sqrt(level.variance + gaps_fit.params["noise_sd"] ** 2)
score = pd.Series((flow - level.mean) / sd, index=flow.index)[gaps.isna()]
print(f"taken out: {len(score)}; in their 95 % interval: {(score.abs() < 1.96).mean():.0%}")

# %% [markdown]
# ## Forecast
#
# A forecast is missing data at the end. `fit.forecast` draws the parameters from their normal
# approximation, the path from its law given the data, and the flows from the program.

# %%
ahead = fit.forecast(NUM_AHEAD, key=2, n=NUM_FORECASTS)
ahead.summary("y").round(1)

# %%
ax = ep.plot_forecast(fit, ahead, "y")
ax.set(ylabel="flow");

# %% [markdown]
# The mean stays where the level is, because a random walk goes nowhere on average; the interval
# widens. Without the uncertainty of the parameters it would be a little narrower:

# %%
at_estimate = {k: np.full(NUM_FORECASTS, v) for k, v in fit.params.items()}
plug_in = fit.forecast(NUM_AHEAD, key=2, n=NUM_FORECASTS, draws=at_estimate)
pd.DataFrame(
    {
        "sd, parameters uncertain": ahead.summary("y")["sd"],
        "sd, parameters at the estimate": plug_in.summary("y")["sd"],
    }
).iloc[[0, -1]].round(1)

# %% [markdown]
# ## NUTS on the same program
#
# `ep.nuts` samples the two standard deviations, with the hundred levels integrated out by the same
# filter, and starts from the fit.

# %%
bayes = ep.nuts(
    model, key=3, init=fit, num_warmup=NUM_WARMUP, num_samples=NUM_DRAWS, progress=False
)
print(bayes)

# %%
comparison = ep.compare(fit, bayes)
print(comparison.verdict)
comparison.table

# %%
comparison.plot();

# %% [markdown]
# The noise is well determined, and both agree. The level's standard deviation is not: a hundred
# years contain few large changes of the level, its posterior is skewed to the right, and its mean
# lies above its mode. The forecast depends on just that parameter, so give it NUTS's draws and see
# whether it matters:

# %%
draws = {k: v.reshape(-1) for k, v in bayes.samples.items() if k in fit.params}
full = fit.forecast(NUM_AHEAD, key=2, n=len(draws["level_sd"]), draws=draws)
pd.DataFrame(
    {"EM, normal approximation": ahead.summary("y")["sd"], "NUTS": full.summary("y")["sd"]}
).iloc[[0, -1]].round(1)

# %% [markdown]
# Hardly. The fit's draws are normal on the log scale of a standard deviation, so they are skewed to
# the right as well.
#
# ## Your own state space
#
# - Several series: `y` with a column each, `.to_event(1)` on the observation; single cells may be
#   missing. `python -m emprob.models.linear_gaussian` estimates a whole transition matrix so.
# - A vector as state: `MultivariateNormal`, or several `sample` sites in the scan, as for a level
#   and its slope.
# - Two lags: carry the last two states.
# - Many series with the same parameters: a plate inside the scan.
# - Not Gaussian (counts, volatility): write it; the plan says `Laplace`, and
#   `python -m emprob.models.stochastic_volatility` shows how near that is.
