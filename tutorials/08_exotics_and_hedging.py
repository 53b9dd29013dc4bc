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
# # Exotic options and hedges when the parameters are uncertain
#
# Vanillas are quoted, exotics are not. Their price comes from a model that was fitted to the
# vanillas, and inherits whatever the quotes left open. This notebook fits Heston's model to Bitcoin
# options, prices five exotics by simulation, and asks four questions:
#
# - How far is the price off because it was simulated?
# - How far because the parameters are only known up to the quotes' noise?
# - Which quotes is it made of, and which options would hedge it?
# - What is left of a hedge that trades on some dates only, and pays for it?

# %%
# %matplotlib inline
import os
from dataclasses import replace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the compiler thinks aloud

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import emprob as ep
from emprob.models import (
    exotic_prices,
    hedging,
    option_chain,
    option_tables,
    quote_noise,
    surface_heston,
    surface_plots,
)
from emprob.models.pricing import american, exotics, paths

jax.config.update("jax_enable_x64", True)
pd.set_option("display.precision", 4)
pd.set_option("display.width", 200)
pd.set_option("display.max_columns", 20)

# %% tags=["parameters"]
NUM_PAIRS = 5000
NUM_WARMUP, NUM_DRAWS = 300, 500
NUM_PRICED = 500
NUM_PATHS = 2000

# %% [markdown]
# ## The market
#
# Bitcoin options of one day, as implied volatilities with bid and ask, all of them good. Five
# parameters, and one for the width of the noise in half-spreads. (For quotes that may be stale or
# crossed take `quote_noise.indicator`, as the tutorial on surfaces does.)

# %%
chain, report = option_chain.clean(option_tables.btc_2021())
quotes = option_chain.quotes(chain)
model = ep.bind(surface_heston.surface_heston, quotes, quote_noise.gaussian)
fit = ep.fit(model, key=0, num_starts=2, progress=False)
print(fit)
fit.summary()

# %% [markdown]
# ## One exotic, two ways
#
# A call on the mean of the next thirteen weekly closes. `paths.simulate` draws mirrored pairs of
# paths by Andersen's scheme; a payoff is a function of paths, and `estimate` makes a price and its
# standard error of it.

# %%
law = surface_heston.law({k: jnp.asarray(v) for k, v in fit.params.items()})
years = 0.25
weeks = years * np.arange(1, 14) / 13
forwards = exotic_prices.forward_curve(quotes, np.concatenate([[0.0], weeks]))
spot = float(forwards[0])
drawn = paths.simulate(law, jax.random.key(1), weeks, NUM_PAIRS)
plain = exotics.estimate(exotics.asian(drawn, forwards, spot))
better = exotics.asian_price(law, jax.random.key(1), weeks, forwards, spot, num_pairs=NUM_PAIRS)
table = pd.DataFrame([plain, better], ["simulated", "with a control"], ["price", "error"], float)
table.assign(ratio=lambda t: (t["error"].iloc[0] / t["error"]) ** 2)

# %% [markdown]
# The control is the same call on the *geometric* mean. Under Heston's model the log of that mean is
# affine in the state, so its price is an integral, without simulation. The column `ratio` is how
# many times as many paths the plain estimate would need for the same error.
#
# A barrier is watched all the time, paths are drawn at dates. Between two dates a path is nearly a
# Brownian bridge, whose probability of touching the barrier is known. Without it, the price depends
# on how often one looks:

# %%
rows = {}
for count in (13, 52, 208):
    dates = years * np.arange(1, count + 1) / count
    curve = exotic_prices.forward_curve(quotes, np.concatenate([[0.0], dates]))
    watched = paths.simulate(law, jax.random.key(2), dates, NUM_PAIRS)
    rows[count] = {
        name: float(exotics.estimate(exotics.knock_out(
            watched, curve, spot, 0.7 * spot, -1.0, -1.0, monitor)).value)
        for name, monitor in (("at dates", exotics.AtDates()), ("bridge", exotics.Always()))
    }
pd.DataFrame(rows).T.rename_axis("dates")

# %% [markdown]
# An American put needs a policy: when to exercise. It is learnt by regression on some paths and
# used on others, so that the price is a lower bound, and not an optimistic one. Its European sister
# is the same put without the choice, on the same paths.

# %%
rate = 0.1
discounts = jnp.exp(-rate * weeks)
growth = spot * jnp.exp(rate * np.concatenate([[0.0], weeks]))
put = american.american(
    law, jax.random.key(3), weeks, growth, discounts, 1.1 * spot, -1.0, NUM_PAIRS,
    american.Polynomials(4, 2),
)
held = paths.simulate(law, jax.random.split(jax.random.key(3))[1], weeks, NUM_PAIRS)
european = exotics.estimate(
    discounts[-1] * exotics.vanilla(held, growth, 1.1 * spot, -1.0),
    controls=jnp.exp(held.log_ratio[-1])[None], means=(1.0,),
)
pd.DataFrame([put, european], ["American", "European"], ["price", "error"], float)

# %% [markdown]
# ## Greeks
#
# With the random numbers fixed, a price is a function like any other, and `jax.jacfwd` gives its
# derivatives. Payoffs that jump, such as a barrier looked at on dates, have none that are of use;
# with the bridge they do.

# %%
def barrier_put(parameters, level):
    walk = paths.simulate(replace(law, **parameters), jax.random.key(2), weeks, NUM_PAIRS)
    curve = level * forwards / spot
    payoff = exotics.knock_out(walk, curve, spot, 0.7 * spot, -1.0, -1.0)
    return exotics.estimate(payoff).value


names = ("v0", "kappa", "theta", "sigma", "rho")
greeks, delta = jax.jit(jax.jacfwd(barrier_put, (0, 1)))({n: getattr(law, n) for n in names}, spot)
pd.Series({"spot": float(delta), **{n: float(greeks[n]) for n in names}}, name="derivative")

# %% [markdown]
# ## Uncertain parameters
#
# `exotic_prices.valuation` prices five contracts at once as a function of the parameters, in
# percent of the spot. The same random numbers serve every draw of the parameters, so what moves is
# the parameters. The draws are those of the fit's Gaussian approximation and of NUTS on the same
# program.

# %%
price, estimate = exotic_prices.valuation(quotes, 0, years, num_pairs=NUM_PAIRS)
bayes = ep.nuts(
    model, key=1, init=fit, num_warmup=NUM_WARMUP, num_samples=NUM_DRAWS, num_chains=1,
    progress=False,
)
draws = {
    "Gaussian approximation": exotic_prices.gaussian_draws(fit, 0, NUM_PRICED),
    "NUTS": exotic_prices.nuts_draws(bayes, NUM_PRICED),
}
values = {name: exotic_prices.distribution(price, d) for name, d in draws.items()}
at = estimate({k: jnp.asarray(v) for k, v in fit.params.items()})
exotic_prices.uncertainty(at, exotic_prices.spread(price, fit), values)

# %% [markdown]
# Where the three standard deviations agree, the first, which needs one derivative, is enough. They
# are small here because this chain is quoted tightly and Heston's model is taken as true: what the
# model itself may get wrong is not in them. For the barrier and the lookback the error of the
# simulation is larger still: there, more paths come before better parameters. The variance swap has
# none, because its control is itself.

# %%
which = exotic_prices.NAMES.index("down-and-out put")
surface_plots.plot_exotic_prices(
    {k: v[:, which] for k, v in values.items()}, float(at.value[which]),
    label="down-and-out put, percent of the spot",
);

# %% [markdown]
# ## Which quotes is a price made of?
#
# The parameters are where the gradient of the objective is zero, so the implicit function theorem
# gives their derivative in every quote. `sensitivities` multiplies it with the derivative of the
# price: one solve, no bumps, no second calibration. A bump of one quote, refitted, as a check on
# the variance swap, whose price has no simulation error:

# %%
moved = np.asarray(exotic_prices.sensitivities(price, fit)[0].mid)
swap, quote, step = exotic_prices.NAMES.index("variance swap"), 20, 1e-3
bumped = []
for change in (step, -step):
    moved_mid = quotes.mid + change * (np.arange(quotes.num_quotes) == quote)
    again = ep.bind(
        surface_heston.surface_heston, replace(quotes, mid=moved_mid), quote_noise.gaussian
    )
    other = ep.fit(again, key=0, init=fit.params, tol=1e-9, progress=False)
    bumped.append(float(estimate({k: jnp.asarray(v) for k, v in other.params.items()}).value[swap]))
pd.Series({"implicit": moved[swap, quote], "bump": (bumped[0] - bumped[1]) / (2 * step)})

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharex=True)
for ax, name in zip(axes, ("down-and-out put", "variance swap")):
    row = 0.01 * moved[exotic_prices.NAMES.index(name)]
    for e in range(quotes.num_expiries):
        here = np.asarray(quotes.expiry) == e
        ax.plot(np.asarray(quotes.log_moneyness)[here], row[here], "o-", ms=3,
                color=surface_plots._color(e), label=surface_plots.tenor(float(quotes.times[e])))
    ax.axhline(0, color="0.7", lw=0.8)
    ax.set(title=f"{name}: change for one volatility point", xlabel="log moneyness")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False);

# %% [markdown]
# A few liquid options hedge the parameters' moves: positions of least variance, here in the options
# nearest to the money of every expiry. `after` is the standard deviation that is left.

# %%
listed, instruments = exotic_prices.vanillas(quotes)
units, left = exotic_prices.hedge_ratios(
    exotic_prices.slopes(price, fit), exotic_prices.slopes(instruments, fit),
    fit.uncertainty.square_root(),
)
labels = [f"{k:.0f}, {surface_plots.tenor(t)}" for t, k in listed.to_numpy()]
hedge = pd.DataFrame(units, index=list(exotic_prices.NAMES), columns=labels)
hedge.assign(before=exotic_prices.spread(price, fit), after=left)

# %% [markdown]
# ## A hedge along the way
#
# A call of three months is sold and hedged on simulated paths of a calm year's Heston model: not at
# all, with the future by its delta, with the future at least variance, and with the future and an
# option of half a year against the variance.

# %%
truth = hedging.BITCOIN
sold, used = hedging.Vanilla(110.0, 0.25), hedging.Vanilla(100.0, 0.5)
seen = hedging.market(truth, jax.random.key(4), 0.25, num_dates=90, num_paths=NUM_PATHS)
premium = hedging.exposure(truth, sold, seen).value[0, 0]
wrong = replace(truth, sigma=0.5 * truth.sigma, rho=0.0)
settings = {
    "daily": (truth, {}),
    "weekly": (truth, {"every": 7}),
    "daily, costs": (truth, {"costs": hedging.COSTS}),
    "weekly, costs": (truth, {"costs": hedging.COSTS, "every": 7}),
    "daily, wrong law": (wrong, {}),
}
races = {k: hedging.race(truth, own, seen, sold, used, **s) for k, (own, s) in settings.items()}
pd.DataFrame({
    (label, name): hedging.describe(result, premium)
    for label, race in races.items() for name, result in race.items()
}).T.round(2)

# %%
surface_plots.plot_hedge(
    seen.times, {k: np.asarray(r.wealth).T for k, r in races["daily"].items() if k != "unhedged"}
);

# %% [markdown]
# - The future alone leaves the variance: trading daily instead of weekly helps, but most of the
#   spread stays. With a correlation this weak, the position of least variance is hardly another.
# - With an option against the variance, what is left comes from the dates, and falls roughly with
#   the root of their number. Costs are the other side: a certain loss, larger the more often one
#   trades, that buys a smaller spread.
# - A wrong volatility of variance and a wrong correlation cost the hedge little as long as the
#   variance of the day is read from the market.

# %%
spreads = {
    every: float(np.std(hedging.backtest(
        hedging.DeltaVega(), seen, *(hedging.exposure(truth, o, seen) for o in (sold, used)),
        truth, every=every).wealth[-1]))
    for every in (1, 2, 4, 8, 16)
}
fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
ax.loglog(list(spreads), list(spreads.values()), "o-", label="delta and vega")
ax.loglog(list(spreads), spreads[1] * np.sqrt(list(spreads)), ":", color="0.5", label="root")
ax.set(xlabel="days between trades", ylabel="sd of the profit")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False);

# %% [markdown]
# ## What to take along
#
# - A simulated price has two errors, and the second needs a fit with standard errors. Report both.
# - Common random numbers make a simulated price differentiable and comparable.
# - The derivative through the calibration says which quotes matter, before any of them moves.
# - `python -m emprob.models.exotic_prices` and `python -m emprob.models.hedging` do all this for
#   the whole list.
