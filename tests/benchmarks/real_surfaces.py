"""Robust fits of every family of surfaces to real quotes.

    python tests/benchmarks/real_surfaces.py [FILE ...] [--families NAME ...] [--starts 4]

The tables of Bitcoin, 2021, and the DAX, 2002, and every FILE: an option chain that
`option_chain.read` knows, or a snapshot of Deribit as CSV with the columns instrument_name,
timestamp, bid_price, ask_price and futures_price. Of a FILE the two-sided options out of the money
between 5 and 95 delta and beyond a week are fitted. Each family begins at `surfaces.Model.starts`.

Prints a row for each fit: objective, status, steps, seconds of binding, starts and fits together,
the first time and again with everything compiled; how many quotes are called bad; root mean square
and median of the errors in volatility points, over all quotes, and their median in half-spreads (as
`quote_noise.spreads` has them, 0.005 where a table has none); the worst error at the money,
relative, of all expiries, against the mids of the `NEAREST` quotes to the money, of which a bad one
is not the median; and at how many expiries the surface is free of arbitrage on a dense grid.
"""

import argparse
import importlib
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import emprob as ep
from emprob.models import _report, arbitrage, option_chain, quote_noise, surfaces
from emprob.models.quotes import Quotes, select

FAMILIES = ("smile_sabr", "surface_svi", "surface_heston", "surface_bates", "implied_density")
TABLES = ("btc_2021", "dax_2002")
DELTAS, WEEK = (0.05, 0.95), 7 / 365
NEAREST = 3
SNAPSHOT = {"instrument_name": "instrument", "bid_price": "bid", "ask_price": "ask",
            "futures_price": "forward"}  # fmt: skip


def load(source: str) -> Quotes:
    """Quotes of a table by name, or of a file."""
    if source in TABLES:
        return surfaces.load(source)
    table = pd.read_csv(source)
    if "instrument_name" in table:
        table = snapshot(table)
    cleaned, report = option_chain.clean(table)
    print(f"{Path(source).stem}: {len(table)} rows; " + ", ".join(
        f"{count} {reason}" for reason, count in report["reason"].value_counts().items()
    ))  # fmt: skip
    return select(option_chain.quotes(cleaned), DELTAS, (WEEK, np.inf))


def snapshot(table: pd.DataFrame) -> pd.DataFrame:
    """A chain from a snapshot of Deribit; columns that the names of the options have are theirs."""
    table = table.rename(columns=SNAPSHOT)[["timestamp", *SNAPSHOT.values()]]
    names = [option_chain.deribit_instrument(name) for name in table["instrument"]]
    return table.assign(
        underlying=[n.underlying for n in names], expiry=[n.expiry for n in names],
        strike=[n.strike for n in names], type=np.where([n.sign > 0 for n in names], "call", "put"),
        unit=[n.unit for n in names],
        forward=table.groupby(pd.Series([n.expiry for n in names], table.index))[
            "forward"].transform("median"),
    )  # fmt: skip


def fitted(model: surfaces.Model, quotes: Quotes, starts: int) -> tuple[ep.Fit, float]:
    """A fit, and the seconds that it took with all that comes before."""
    opt = _report.Options(Path(), 0, starts, 0, 0, 0, progress=False)
    began = time.perf_counter()
    found = surfaces.fit(model, quotes, opt)
    return found, time.perf_counter() - began


def at_the_money(model: surfaces.Model, found: ep.Fit, quotes: Quotes) -> float:
    """The worst relative error at the money: median over the nearest quotes of each expiry."""
    ratio = np.asarray(model.volatility(found.params, quotes) / quotes.mid)
    k, code = np.abs(np.asarray(quotes.log_moneyness)), np.asarray(quotes.expiry)
    worst = 0.0
    for e in range(quotes.num_expiries):
        own = np.flatnonzero((code == e) & np.isfinite(ratio))
        nearest = own[np.argsort(k[own])[:NEAREST]]
        worst = max(worst, abs(np.median(ratio[nearest]) - 1))
    return worst


def row(model: surfaces.Model, quotes: Quotes, starts: int) -> dict:
    """What is printed of a family and a surface."""
    _, first = fitted(model, quotes, starts)
    found, again = fitted(model, quotes, starts)
    volatility = model.volatility(found.params, quotes)
    errors = surfaces.errors(quotes, volatility)
    spreads = np.abs(np.asarray((volatility - quotes.mid) / quote_noise.spreads(quotes)))
    law = model.surface({k: jnp.asarray(v) for k, v in found.params.items()}, quotes)
    checked = arbitrage.check(law, quotes.times, float(surfaces.level(quotes)))
    return {
        "objective": found.objective, "status": found.status.word, "steps": found.num_steps,
        "first s": first, "again s": again,
        "bad": int((surfaces.bad_probability(found) > surfaces.BAD).sum()),
        "rms points": errors["rms, points"], "median points": errors["median, points"],
        "half-spreads": np.nanmedian(spreads),
        "at the money": at_the_money(model, found, quotes),
        "free": f"{int(checked['free'].sum())}/{len(checked)}",
    }  # fmt: skip


def main() -> None:
    """Print the tables."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("files", nargs="*", help="option chains, CSV")
    p.add_argument("--families", nargs="*", default=FAMILIES, choices=FAMILIES)
    p.add_argument("--tables", nargs="*", default=TABLES, choices=TABLES)
    p.add_argument("--starts", type=int, default=4, help="of a fit")
    args = p.parse_args()
    jax.config.update("jax_enable_x64", True)
    for source in (*args.tables, *args.files):
        quotes, rows = load(source), {}
        observed = int(np.sum(quotes.observed))
        print(f"\n{Path(source).stem}: {observed} quotes, {quotes.num_expiries} expiries")
        for name in args.families:
            model = importlib.import_module(f"emprob.models.{name}").MODEL
            rows[name] = row(model, quotes, args.starts)
            print(pd.DataFrame({name: rows[name]}).T.to_string(header=len(rows) == 1), flush=True)


if __name__ == "__main__":
    main()
