"""Smiles with bad quotes: robust EM against least squares, on simulated SVI slices.

    python tests/benchmarks/robust_smiles.py [--smiles 1000] [--quotes 25] [--bad 0.1]

Smiles are fitted 20 at a time, as a day's, which share the widths of the noise. Every smile has its
own slice and maturity. A good mid is off by a third of its half-spread, a stale one by 5 to 20
half-spreads, a crossed one by 30 to 100, to either side. Prints, for the robust fit from least
trimmed squares (`surfaces.Model.start`, its time included), for least squares of the same program,
and for free least squares of the five raw parameters by SciPy: error of the volatility at the money
and over the quoted range, failures (a volatility at the money off by more than a tenth, or not a
number), and how well bad quotes are found.
"""

import argparse
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.optimize import least_squares

import emprob as ep
from emprob.models import quote_noise, surface_svi, surfaces
from emprob.models.quotes import Quotes

FAILURE = 0.1  # relative error at the money
DAY = 20  # smiles that are fitted at once


def simulate(rng: np.random.Generator, smiles: int, strikes: int, bad: float) -> tuple:
    """Quotes of all smiles, which are bad (N,), true volatilities (N,) and at the money (E,)."""
    times = np.sort(rng.uniform(0.02, 2.0, smiles))
    rows = zip(
        surface_svi.CURVES, surface_svi.CENTRE, surface_svi.SPREAD, surface_svi.TRANSFORMS
    )  # fmt: skip
    walks = {name: (c + 0.5 * s * rng.normal(size=smiles), t) for name, c, s, t in rows}
    truth = {name: np.exp(x) if positive else x for name, (x, positive) in walks.items()}
    level = 0.6
    raw = surface_svi.slices(truth, level, times)
    code = np.repeat(np.arange(smiles), strikes)
    reach = level * np.sqrt(times)[code]
    k = reach * rng.uniform(-2.0, 2.0, len(code))
    true = _volatility(raw, k, code, times)
    half = true * rng.uniform(0.005, 0.02, len(code))
    off = rng.uniform(size=len(code)) < bad
    crossed = rng.uniform(size=len(code)) < 0.25
    far = np.where(crossed, rng.uniform(30, 100, len(code)), rng.uniform(5, 20, len(code)))
    error = np.where(off, far * rng.choice([-1, 1], len(code)), rng.normal(size=len(code)) / 3)
    mid = np.maximum(true + error * half, 0.02)
    quotes = Quotes(*(jnp.asarray(x) for x in (k, times, code, np.ones(smiles), mid, half,
                                               np.where(k < 0, -1.0, 1.0))))  # fmt: skip
    return quotes, off, true, _volatility(raw, np.zeros(smiles), np.arange(smiles), times)


def _volatility(raw, k, code, times) -> np.ndarray:
    a, b, rho, m, sigma = (np.asarray(x)[code] for x in raw)
    w = a + b * (rho * (k - m) + np.sqrt((k - m) ** 2 + sigma**2))
    return np.sqrt(np.maximum(w, 0) / np.asarray(times)[code])


def fitted(quotes: Quotes, noise) -> tuple:
    """Fit of a day's smiles: the fit, volatility at the quotes and at the money, seconds."""
    model = ep.bind(surface_svi.separate_svi, quotes, noise)
    began = time.perf_counter()
    init = surface_svi.SEPARATE.start(quotes, 0) if noise is quote_noise.indicator else None
    found = ep.fit(model, progress=False, max_steps=500, init=init)
    spent = time.perf_counter() - began
    law = surface_svi.surface(found.params, quotes)
    codes = jnp.arange(quotes.num_expiries)
    at = law(quotes.log_moneyness, quotes.expiry), law(jnp.zeros(len(codes)), codes)
    return found, *map(np.asarray, at), spent


def raw_least_squares(quotes: Quotes) -> tuple:
    """The usual way: five free raw parameters of each smile, from the usual start."""
    k, w, code = (np.asarray(x) for x in
                  (quotes.log_moneyness, quotes.total_variance, quotes.expiry))  # fmt: skip
    times, fits = np.asarray(quotes.times), []
    for e in range(quotes.num_expiries):
        own = code == e

        def gap(p, k=k[own], w=w[own]):
            return p[0] + p[1] * (p[2] * (k - p[3]) + np.sqrt((k - p[3]) ** 2 + p[4] ** 2)) - w

        start = [w[own].min() / 2, 0.1, 0.0, 0.0, 0.1]
        bounds = ([-np.inf, 0, -0.999, -2, 1e-4], [np.inf, 5, 0.999, 2, 5])
        fits.append(least_squares(gap, start, bounds=bounds, max_nfev=2000).x)
    raw = np.array(fits).T
    codes = np.arange(len(times))
    return _volatility(raw, k, code, times), _volatility(raw, 0 * times, codes, times)


def row(at_quotes, at_money, true, centre) -> dict:
    """Errors in volatility points, and failures."""
    wrong = ~(np.abs(at_money / centre - 1) < FAILURE)
    points = 100 * np.abs(at_quotes - true)
    return {
        "median at the money": 100 * np.median(np.abs(at_money - centre)),
        "rms at the money": 100 * np.sqrt(np.nanmean((at_money - centre) ** 2)),
        "median, range": np.nanmedian(points), "rms, range": np.sqrt(np.nanmean(points**2)),
        "failures": int(wrong.sum()),
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--smiles", type=int, default=1000)
    p.add_argument("--quotes", type=int, default=25)
    p.add_argument("--bad", type=float, default=0.1)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(args.seed)
    noises = {"robust EM": quote_noise.indicator, "least squares": quote_noise.gaussian}
    found: dict = {label: [] for label in (*noises, "raw least squares")}
    status: Counter = Counter()
    called, off, true, centre = [], [], [], []
    for _ in range(0, args.smiles, DAY):
        quotes, *facts = simulate(rng, DAY, args.quotes, args.bad)
        for kept, fact in zip((off, true, centre), facts):
            kept.append(fact)
        for label, noise in noises.items():
            fit, there, middle, spent = fitted(quotes, noise)
            found[label].append((there, middle, spent))
            status[label, fit.status.word] += 1
            if noise is quote_noise.indicator:
                called.append(surfaces.bad_probability(fit) > 0.5)
        began = time.perf_counter()
        raw = raw_least_squares(quotes)
        found["raw least squares"].append((*raw, time.perf_counter() - began))
    called, off, true, centre = map(np.concatenate, (called, off, true, centre))
    rows = {}
    for label, days in found.items():
        there, middle, spent = zip(*days)
        rows[label] = row(np.concatenate(there), np.concatenate(middle), true, centre)
        rows[label]["ms a smile"] = 1000 * np.median(spent) / DAY
    print(pd.DataFrame(rows).T.to_string(float_format="{:.3f}".format))
    hit = (called & off).sum()
    print(f"{len(centre)} smiles; bad quotes: {off.sum()}, called bad {called.sum()}; precision "
          f"{hit / called.sum():.3f}, recall {hit / off.sum():.3f}")  # fmt: skip
    print({" ".join(k): v for k, v in status.items()})


if __name__ == "__main__":
    main()
