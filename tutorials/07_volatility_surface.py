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
# # A volatility surface from sparse and bad quotes
#
# An option chain is a few dozen prices with a spread around each, and some of them are wrong:
# stale, mistyped, left over from another minute. A least-squares fit bends to them. Here a
# calibration is a probabilistic program instead: every quote has a hidden state, good or not, the
# parameters have priors that keep the surface sane, and out come standard errors, a probability for
# each quote to be bad, and NUTS on the same program.
#
# The data are a few dozen Bitcoin options at one instant, which come with the package as a table.

# %%
# %matplotlib inline
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jax.scipy.stats import norm

import emprob as ep
from emprob.models import (
    arbitrage,
    option_chain,
    option_tables,
    quote_noise,
    smile_sabr,
    surface_heston,
    surface_svi,
    surfaces,
)
from emprob.models import surface_plots as draw
from emprob.models.exotic_prices import gaussian_draws, nuts_draws
from emprob.models.option_chain import Clock
from emprob.models.quotes import errors_in_spreads, hold_out, take

jax.config.update("jax_enable_x64", True)
pd.set_option("display.precision", 4)
pd.set_option("display.width", 200)

# %% tags=["parameters"]
NUM_WARMUP, NUM_DRAWS = 300, 300

# %% [markdown]
# ## From an exchange's answer to arrays
#
# The published table has volatilities. An exchange sends something else: names such as
# `BTC-26NOV21-70000-C`, and prices in coin, because the contract is inverse: it pays Bitcoin, not
# dollars. So that we start where a user starts, the table is turned into such an answer first. Four
# quotes are made stale, as if the market had moved and the order had stayed, and some entries are
# plainly broken.

# %%
published = option_chain.quotes(option_chain.clean(option_tables.btc_2021())[0])
EXPIRIES = ["5NOV21", "26NOV21", "31DEC21", "25MAR22"]
STALE = {4: 0.08, 20: -0.10, 28: 0.09, 43: -0.07}  # row: volatility too high or too low
STAMP = pd.Timestamp("2021-10-20 21:24:34", tz="UTC")


def as_exchange_sends(quotes, moved):
    sides = (quotes.bid + moved, quotes.ask + moved)
    bid, ask = (np.asarray(option_chain.in_unit(quotes, v, "coin")) for v in sides)
    fields = (quotes.expiry, quotes.strike, quotes.sign, quotes.forward)
    rows = zip(*(np.asarray(x) for x in fields))
    return [
        {
            "instrument_name": f"BTC-{EXPIRIES[e]}-{k:.0f}-{'C' if s > 0 else 'P'}",
            "bid_price": float(b),
            "ask_price": float(a),
            "underlying_price": float(f),
            "creation_timestamp": 1000 * STAMP.timestamp(),
        }
        for (e, k, s, f), b, a in zip(rows, bid, ask)
    ]


moved = np.zeros(published.num_quotes)
moved[list(STALE)] = list(STALE.values())
answer = as_exchange_sends(published, moved)
answer[11]["bid_price"] = None  # nobody bids
answer[33]["bid_price"], answer[33]["ask_price"] = (  # crossed
    answer[33]["ask_price"],
    answer[33]["bid_price"],
)
answer.append(answer[20])  # sent twice
answer.append({"instrument_name": "BTC-PERPETUAL", "bid_price": 66000.0, "ask_price": 66000.5})
chain = option_chain.deribit_book_summary(answer)
chain[["instrument", "expiry", "strike", "type", "bid", "ask", "unit", "forward"]].head()

# %% [markdown]
# `clean` fills in times to expiry, forwards and implied volatilities, and names every row that
# cannot be used. Nothing disappears without a line in the report: by default a bad row stays in the
# table with its prices missing, and only what has no place on a surface at all is dropped.

# %%
table, report = option_chain.clean(chain, clock=Clock(days_per_year=360))
report

# %%
quotes = option_chain.quotes(table)
print(f"{quotes.num_quotes} places, {int(quotes.observed.sum())} quotes")
seen = np.asarray(quotes.observed) & (moved == 0)
difference = np.abs(quotes.mid - published.mid)[seen].max()
print(f"largest difference to the published volatilities: {difference:.1g}")

# %% [markdown]
# Prices in coin went back to the published volatilities to the last digit. The four stale quotes
# are still there: each is a sound bid and a sound ask, and no rule about a single row can find it.
# Only the other quotes can.
#
# ## Smiles, robust and not
#
# `surface_svi` is a NumPyro program: an SVI slice for each expiry, described by what is seen (its
# lowest volatility, the slopes of its wings, where its lowest point lies and how round it is), a
# random walk over the expiries as the prior of each, and for each quote a latent `state`, good,
# stale or crossed, with a noise of its own width in half-spreads. EM sums the states out.

# %%
robust = ep.bind(surface_svi.surface_svi, quotes)
print(robust)

# %% [markdown]
# EM climbs to the optimum that is near, and half a smile explained to the last digit while the
# other half is called bad is an optimum too. `start` begins where bad quotes cannot pull: it fits
# small random subsets of each smile, and keeps the fit that most quotes agree with (least trimmed
# squares).

# %%
found = ep.fit(robust, init=surface_svi.MODEL.start(quotes, 0), progress=False)
least_squares = ep.bind(surface_svi.surface_svi, quotes, quote_noise.gaussian)
plain = ep.fit(least_squares, key=0, progress=False)
bad = 1 - np.asarray(found.posterior["state"].smoothed)[:, 0]
fitted = surface_svi.MODEL.volatility(found.params, quotes)
print(found)
pd.DataFrame(
    {
        "strike": quotes.strike,
        "years": quotes.time,
        "moved, points": 100 * moved,
        "mid less fit, points": 100 * (quotes.mid - fitted),
        "mid less fit, half-spreads": -errors_in_spreads(quotes, fitted),
        "probability bad": bad,
    }
)[(bad > 0.5) | (moved != 0)]

# %%
k = draw.grid(quotes)
code = np.broadcast_to(np.arange(len(k))[:, None], k.shape)
smiles = {name: surface_svi.surface(f.params, quotes)(k, code) for name, f in
          {"robust": found, "least squares": plain}.items()}  # fmt: skip
band = surfaces.band(surface_svi.MODEL, quotes, k, gaussian_draws(found, 1))
figure = draw.plot_smiles(quotes, k, smiles["robust"], band, outlier=bad)
for e, ax in enumerate(figure.axes):
    (dotted,) = ax.plot(k[e], 100 * smiles["least squares"][e], ":", color="black")
figure.axes[0].legend([dotted], ["least squares"], loc="lower right", frameon=False);

# %% [markdown]
# The crosses are the quotes that the fit gives up on. The band holds 95 % of the smiles at draws of
# the parameters from the Gaussian approximation at the optimum. The dotted least-squares smile,
# which has to please everybody, is pulled towards the crosses. How far both are from the market as
# it was published, at the quotes that were not touched, in half-spreads:

# %%
rows = {}
for name, f in {"robust": found, "least squares": plain}.items():
    error = np.abs(errors_in_spreads(published, surface_svi.MODEL.volatility(f.params, quotes)))
    rows[name] = {"median": np.median(error[seen]), "worst": error[seen].max(),
                  "inside bid and ask": (error[seen] <= 1).mean()}  # fmt: skip
pd.DataFrame(rows).T

# %% [markdown]
# The same in a picture of residuals: colour is the error in half-spreads, by expiry and by
# moneyness in standard deviations; beside it the probability that a quote is bad.

# %%
draw.plot_residuals(quotes, fitted, bad);

# %% [markdown]
# ## Parameters over the expiries, with standard errors
#
# Each is in units of the volatility or the standard deviation at the money, so that little changes
# with the expiry. The prior lets the curves walk and keeps them from jumping where quotes are few.

# %%
table_of = found.summary()
columns = {name: table_of.loc[[f"{name}[{e}]" for e in range(4)]] for name in surface_svi.CURVES}
draw.plot_term_structure(
    quotes.times,
    {name: rows["estimate"] for name, rows in columns.items()},
    {name: rows["lower"] for name, rows in columns.items()},
    {name: rows["upper"] for name, rows in columns.items()},
);

# %% [markdown]
# ## A whole expiry is missing
#
# Of the quotes as they were published, the third expiry is taken away. A missing quote is NaN and
# keeps its place, so nothing is compiled again, and the walk over the expiries fills the gap. (A
# program's parameters are in units of the quotes it was fitted to, so these ask for the surface.)

# %%
gap = np.asarray(published.expiry) == 2
rest = hold_out(published, gap)
begin = time.perf_counter()
without = ep.fit(
    ep.bind(surface_svi.surface_svi, rest), init=surface_svi.MODEL.start(rest, 0), progress=False
)  # fmt: skip
print(without.status.word, f"in {time.perf_counter() - begin:.1f} s, with binding the data")
error = 100 * (surface_svi.MODEL.volatility(without.params, rest) - published.mid)
for name, rows in {"fitted": ~gap, "held out": gap}.items():
    print(f"{name}: root mean square error {np.sqrt((error[rows] ** 2).mean()):.2f} points")

# %%
curves = surface_svi.surface(without.params, rest)(k, code)
band = surfaces.band(surface_svi.MODEL, rest, k, gaussian_draws(without, 1))
draw.plot_smiles(rest, k, curves, band, held_out=take(published, gap));

# %% [markdown]
# ## No arbitrage
#
# SVI's slices can have butterflies with a negative price, and consecutive slices can cross. The
# program penalises both on a grid during the fit, and `arbitrage.check` looks again on a dense one,
# with exact derivatives. Beside it SABR, whose formula is an expansion that fails far from the
# money.

# %%
sabr = ep.fit(
    ep.bind(smile_sabr.smile_sabr, quotes), init=smile_sabr.MODEL.start(quotes, 0), progress=False
)
level = float(surfaces.level(quotes))
pd.concat(
    {
        name: arbitrage.check(program.surface(f.params, quotes), quotes.times, level=level)
        for name, program, f in (("SVI", surface_svi, found), ("SABR", smile_sabr, sabr))
    }
)

# %% [markdown]
# Both are free of arbitrage there. They do not agree on what is a bad quote:

# %%
for name, f in {"SVI": found, "SABR": sabr}.items():
    called = 1 - np.asarray(f.posterior["state"].smoothed)[:, 0] > 0.5
    print(f"{name}: {called.sum()} quotes called bad, {called[list(STALE)].sum()} of them stale")

# %% [markdown]
# What a family cannot follow looks like a bad quote to it. SABR has three parameters for a smile,
# SVI has five: ask a family that can follow the market before a quote is thrown away.
#
# ## One law for all expiries
#
# Heston's model prices every strike and every expiry by five numbers, through its characteristic
# function. It cannot follow each smile, and it need not: its parameters mean something, and they
# price what has no quote.

# %%
heston = ep.fit(
    ep.bind(surface_heston.surface_heston, quotes),
    init=surface_heston.MODEL.start(quotes, 0), progress=False,
)  # fmt: skip
print(heston)
heston.summary()

# %% [markdown]
# Standard errors are a parabola's. NUTS on the same program, with the hidden states summed out by
# the same log Z, says whether to believe them.

# %%
bayes = ep.nuts(
    heston.model, key=1, init=heston, num_warmup=NUM_WARMUP, num_samples=NUM_DRAWS, num_chains=1,
    progress=False,
)  # fmt: skip
comparison = ep.compare(heston, bayes)
print(comparison.verdict)
comparison.table

# %% [markdown]
# The surface, with the band of NUTS' draws, and the quotes that this law cannot follow:

# %%
draw.plot_smiles(
    quotes, k, surface_heston.surface(heston.params, quotes)(k, code),
    surfaces.band(surface_heston.MODEL, quotes, k, nuts_draws(bayes)),
    outlier=1 - np.asarray(heston.posterior["state"].smoothed)[:, 0],
);  # fmt: skip

# %% [markdown]
# Read the verdict by rows. For the five parameters of the law, the standard errors are close to the
# spread of the draws. It is the noise whose posterior is lopsided: shares of quotes that are few,
# and widths that few quotes determine. A hedger needs the former, and takes the latter from NUTS.
#
# ## What the market expects
#
# A smile without butterflies is a density: the second derivative of the price in the strike, which
# Durrleman's function, the one that `check` looked at, gives in closed form. Probabilities under
# this density are prices, not forecasts: they contain what insurance costs.
# (`emprob.models.implied_density` fits mixtures of lognormals instead, and their moments come with
# standard errors.)

# %%
x = jnp.linspace(-6, 4, 4001)
law = surface_svi.surface(found.params, quotes)
places = np.arange(4)[:, None], jnp.broadcast_to(x, (4, x.size))
deviation = law(places[1], places[0]) * jnp.sqrt(quotes.times)[:, None]
second = -x / deviation - deviation / 2
density = arbitrage.durrleman(law, quotes.times, x) * norm.pdf(second) / deviation
step = float(x[1] - x[0])
pd.DataFrame(
    {
        "expiry": [draw.tenor(float(t)) for t in quotes.times],
        "area": density.sum(1) * step,
        "mean of price / forward": (density * jnp.exp(x)).sum(1) * step,
        "fall by a fifth or more": (density * (x < np.log(0.8))).sum(1) * step,
        "rise by a quarter or more": (density * (x > np.log(1.25))).sum(1) * step,
    }
)

# %%
for e, row in enumerate(np.asarray(density)):
    plt.plot(x, row, label=draw.tenor(float(quotes.times[e])))
plt.xlim(-1.5, 1.5)
plt.xlabel("log(price / forward)")
plt.ylabel("density")
plt.legend(frameon=False);

# %% [markdown]
# ## A clock of one's own
#
# Variance per hour is lower when few people trade. A `Clock` weighs hours: here weekends count a
# third. Volatilities are per year of that clock, and prices stay what they were.

# %%
business = Clock(weekdays=(1, 1, 1, 1, 1, 1 / 3, 1 / 3), days_per_year=360)
other = option_chain.quotes(option_chain.clean(chain, clock=business)[0])
pd.DataFrame(
    {
        "calendar, years": quotes.times,
        "business, years": other.times,
        "median volatility": [np.nanmedian(quotes.mid[quotes.expiry == e]) for e in range(4)],
        "the same by business time": [np.nanmedian(other.mid[other.expiry == e]) for e in range(4)],
    }
)
