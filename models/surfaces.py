"""What the volatility surfaces share: the unit of volatility, held-out quotes, errors, `run`.

A surface is a function of log-moneyness (...,) and the expiry's code (...,) that gives volatility,
see `arbitrage.Surface`. Every model has `program(quotes, ...)` and `surface(params, quotes)`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array

import emprob as ep
from emprob.models import (
    _draws,
    _evidence,
    _report,
    _starts,
    arbitrage,
    option_chain,
    option_tables,
    quote_noise,
    surface_plots,
)
from emprob.models._starts import SMILES, Parts
from emprob.models.arbitrage import Surface
from emprob.models.quotes import Quotes, errors_in_spreads, hold_out

Params = Mapping[str, Any]
MIDDLE = 0.3  # share of the quotes that are near the money
BAD = 0.5  # probability above which a quote is called bad
OVER = 200  # draws that the probability is averaged over


def level(quotes: Quotes) -> Array:
    """Volatility near the money, a scalar: the unit of the priors.

    The median of the mids that are closest to the money in standard deviations, so that a few wild
    quotes do not move it.
    """
    distance = jnp.abs(quotes.log_moneyness) / jnp.sqrt(quotes.time)
    distance = jnp.where(quotes.observed, distance, jnp.nan)
    near = distance <= jnp.nanquantile(distance, MIDDLE)
    return jnp.nanmedian(jnp.where(near, quotes.mid, jnp.nan))


def held_out(quotes: Quotes, key: Any, share: float = 0.2) -> np.ndarray:
    """Which quotes (N,) are kept from a fit: a share of the strikes of every expiry."""
    key = jax.random.key(key) if isinstance(key, int) else key
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    out = np.zeros(quotes.num_quotes, bool)
    for e in range(quotes.num_expiries):
        rows = np.flatnonzero((np.asarray(quotes.expiry) == e) & np.asarray(quotes.observed))
        out[rng.choice(rows, int(share * len(rows)), replace=False)] = True
    return out


def errors(quotes: Quotes, volatility: Any, kept: Any = None) -> pd.Series:
    """Errors of a surface at the quotes that are there.

    Args:
        quotes: N options.
        volatility: (N,), of the fit.
        kept: (N,), booleans; by default all.

    Returns:
        Number of quotes, root mean square and median error in volatility points, the same in
        half-spreads, and the share of quotes inside bid and ask.
    """
    kept = np.ones(quotes.num_quotes, bool) if kept is None else np.asarray(kept)
    kept = kept & np.asarray(quotes.observed)
    points = 100 * np.abs(np.asarray(volatility - quotes.mid))[kept]
    spread = np.abs(np.asarray(errors_in_spreads(quotes, volatility)))[kept]
    return pd.Series({
        "quotes": kept.sum(), "rms, points": np.sqrt((points**2).mean()),
        "median, points": np.median(points), "median, half-spreads": np.median(spread),
        "inside the quotes": (spread <= 1).mean(),
    })  # fmt: skip


def bad_probability(found: ep.Fit) -> np.ndarray:
    """Probability (N,) that a quote is not good, of a fit with `quote_noise.indicator`."""
    return 1.0 - np.asarray(found.posterior["state"].smoothed)[:, 0]


@dataclass(frozen=True)
class Model:
    """A family of surfaces.

    Attributes:
        name: of the files.
        program: NumPyro program of quotes and a noise.
        surface: volatility as a function of (params, quotes).
        priors: arguments of the program that choose its prior, by a word for them, first the usual.
        parts: what of a surface is fitted by itself for a start.
        in_units: names of the parameters that are in units of `level`, where parts have their own.
    """

    name: str
    program: Callable[..., None]
    surface: Callable[[Params, Quotes], Surface]
    priors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parts: Parts = SMILES
    in_units: tuple[str, ...] = ()

    @property
    def usual(self) -> Mapping[str, Any]:
        """Arguments of the usual prior: given, so that all priors share compiled code."""
        return next(iter(self.priors.values()), {})

    def volatility(self, params: Params, quotes: Quotes) -> Array:
        """Volatility (N,) at the quotes' places."""
        return self.surface(params, quotes)(quotes.log_moneyness, quotes.expiry)

    def start(self, quotes: Quotes, key: Any, **prior: Any) -> dict[str, Array]:
        """The first of `starts`: each part by itself."""
        return self.starts(quotes, key, **prior)[0]

    def starts(self, quotes: Quotes, key: Any, **prior: Any) -> list[dict[str, Array]]:
        """Where a robust fit begins that bad quotes shall not move; pass one as `init`.

        Each part by least trimmed squares, then the noise for these; see `_starts.starts`.

        Args:
            quotes: N options, NaN mids are missing.
            key: a key of `jax.random`, or an integer.
            prior: arguments of the program; by default `usual`.

        Returns:
            Two, with values of all parameters of the program with `quote_noise.indicator`.
        """
        key = jax.random.key(key) if isinstance(key, int) else key
        given = dict(prior or self.usual)
        found = _starts.starts(self.program, self.parts.subsets, level, self.in_units, given,
                               quotes, self.parts.of(quotes), key)  # fmt: skip
        return [{name: x[i] for name, x in found.items()} for i in range(2)]


LEVELS = {"btc_2021": "mid", "dax_2002": "mark"}  # where a table has its volatilities


def load(name: str) -> Quotes:
    """Quotes of a table of `option_tables`: `btc_2021` or `dax_2002`."""
    table, level = getattr(option_tables, name)(), LEVELS[name]
    return option_chain.quotes(option_chain.clean(table, level=level)[0], level=level)


def fit(model: Model, quotes: Quotes, opt: _report.Options, noise=quote_noise.indicator,
        **prior: Any) -> ep.Fit:  # fmt: skip
    """The best fit of a surface from `Model.starts` of several keys; its table has them all.

    Args:
        model: a family.
        quotes: N options, NaN mids are missing.
        opt: sizes of the run.
        noise: law of the mids, a function of `quote_noise`.
        prior: arguments of the program; by default the usual.
    """
    prior = prior or dict(model.usual)
    bound = ep.bind(model.program, quotes, noise, **prior)
    keys = jax.random.split(jax.random.key(opt.seed), (opt.num_starts + 1) // 2)
    starts = [start for key in keys for start in model.starts(quotes, key, **prior)]
    fits = [
        ep.fit(bound, init={n: start[n] for n in bound.params}, max_steps=3000,
               progress=opt.progress)
        for start in starts[:opt.num_starts]
    ]  # fmt: skip
    rows = [{**f.start_rows[0], "start": i, "from": "trimmed"} for i, f in enumerate(fits)]
    return replace(max(fits, key=lambda f: f.objective), start_rows=tuple(rows))


def unseen(model: Model, quotes: Quotes, out: Any, opt: _report.Options,
           noise=quote_noise.indicator, **prior: Any) -> Array:  # fmt: skip
    """Volatilities (N,) of a fit that does not see the quotes in `out` (N,)."""
    rest = hold_out(quotes, out)
    found = fit(model, rest, opt, noise, **prior)
    return model.volatility(found.params, rest)  # in units of the quotes that it saw


def generalisation(model: Model, quotes: Quotes, opt: _report.Options) -> pd.DataFrame:
    """Errors inside and outside of the sample, robust and by least squares, a row each."""
    out = held_out(quotes, opt.seed)
    rows = {}
    for label, noise in (
        ("robust", quote_noise.indicator),
        ("least squares", quote_noise.gaussian),
    ):
        volatility = unseen(model, quotes, out, opt, noise)
        rows[f"{label}, in the sample"] = errors(quotes, volatility, ~out)
        rows[f"{label}, held out"] = errors(quotes, volatility, out)
    return pd.DataFrame(rows).T


def priors_compared(model: Model, quotes: Quotes, opt: _report.Options) -> pd.DataFrame:
    """Median error in half-spreads and log-evidence under the priors of a model, a row each.

    Held out are a share of the strikes of every expiry, and all quotes of one in the middle.
    """
    strikes = held_out(quotes, opt.seed)
    maturity = np.asarray(quotes.expiry) == quotes.num_expiries // 2
    rows = {}
    for label, prior in model.priors.items():
        found = fit(model, quotes, opt, **prior)
        seen = {
            "in the sample": (model.volatility(found.params, quotes), None),
            "strikes": (unseen(model, quotes, strikes, opt, **prior), strikes),
            "a maturity": (unseen(model, quotes, maturity, opt, **prior), maturity),
        }
        row = {n: errors(quotes, v, kept)["median, half-spreads"] for n, (v, kept) in seen.items()}
        evidence = _evidence.log_evidence(found, opt.seed)
        rows[label] = row | dict(zip(("log-evidence", "error", "k-hat"), evidence))
    return pd.DataFrame(rows).T


def band(model: Model, quotes: Quotes, k: np.ndarray, draws: Params, share: float = 0.95) -> tuple:
    """Pointwise interval of the volatility (E, G), (E, G) over draws of the parameters (S, ...)."""
    code = np.broadcast_to(np.arange(len(k))[:, None], k.shape)
    paths = jax.jit(jax.vmap(lambda p: model.surface(p, quotes)(k, code)))(dict(draws))
    tail = (1 - share) / 2
    return tuple(np.nanquantile(np.asarray(paths), q, axis=0) for q in (tail, 1 - tail))


def run(model: Model, argv: Sequence[str] | None, title: str, table: str = "btc_2021") -> ep.Fit:
    """Fit real quotes, flag the bad ones, check arbitrage, hold quotes out, NUTS beside it."""
    p = _report.parser(title, num_starts=4, num_samples=500)
    p.add_argument("--table", default=table, choices=tuple(LEVELS), help="of quotes")
    args = p.parse_args(argv)
    opt, quotes = _report.options(args), load(args.table)
    _report.heading("The plan")
    print(ep.bind(model.program, quotes, quote_noise.indicator, **model.usual))
    _report.heading(f"Robust fit of {int(quotes.observed.sum())} quotes by EM")
    found = fit(model, quotes, opt)
    print(found, found.message, sep="\n")
    _report.show(found.summary())
    _report.show(optima(found), digits=7)
    print("Optima less than two below the best disagree on what is bad: ask the draws of NUTS.")
    bad = bad_probability(found)
    volatility = model.volatility(found.params, quotes)
    _report.show(flagged(quotes, volatility, bad))
    _report.heading("Arbitrage on a dense grid")
    law = model.surface(found.params, quotes)
    _report.show(arbitrage.check(law, quotes.times, float(level(quotes))))
    _report.heading("Held-out quotes")
    _report.show(generalisation(model, quotes, opt))
    if model.priors:
        _report.heading("Priors compared: median errors in half-spreads, held out but the first")
        _report.show(priors_compared(model, quotes, opt))
        print("An evidence with a k-hat above 0.7 cannot be relied on: several optima, long tails.")
    comparison = _report.beside(found, opt)
    if comparison is not None:
        _report.heading("Bad quotes, at the estimate and over the draws")
        over_draws = bad_over_draws(model, quotes, _draws.nuts_draws(comparison.bayes, OVER))
        _report.show(doubtful(quotes, bad, over_draws))
    _report.say_where(_files(model, quotes, found, comparison, opt))
    return found


def flagged(quotes: Quotes, volatility: Any, bad: np.ndarray) -> pd.DataFrame:
    """The quotes that are called bad: years, strike, mid, fit, error in half-spreads."""
    rows = np.flatnonzero(bad > BAD)
    return pd.DataFrame({
        "years": quotes.time, "strike": quotes.strike, "mid": quotes.mid, "fit": volatility,
        "half-spreads": errors_in_spreads(quotes, volatility), "bad": bad,
    }).iloc[rows]  # fmt: skip


def optima(found: ep.Fit) -> pd.DataFrame:
    """Where the starts of a fit ended: objectives, how far below the best, and by how many."""
    ended = found.starts.loc[found.starts["status"] == "converged", "objective"].round(2)
    counts = ended.value_counts().sort_index(ascending=False)
    values = counts.index.to_numpy(float)
    return pd.DataFrame({
        "objective": values, "below the best": values.max(initial=-np.inf) - values,
        "starts": counts.to_numpy(),
    })  # fmt: skip


def bad_over_draws(model: Model, quotes: Quotes, draws: Params) -> np.ndarray:
    """Probability (N,) that a quote is not good, over draws of all parameters (S, ...)."""

    def one(p):
        width = quote_noise.widths(p["width"], p["excess"])
        volatility = model.volatility(p, quotes)
        return 1.0 - quote_noise.responsibilities(quotes, volatility, p["share"], width)[:, 0]

    every = jax.jit(lambda all_of_them: jax.lax.map(one, all_of_them))(dict(draws))
    return np.asarray(every).mean(0)


def doubtful(quotes: Quotes, bad: np.ndarray, over_draws: np.ndarray) -> pd.DataFrame:
    """Quotes that are bad at the estimate or over the draws: years, strike, both probabilities."""
    rows = np.flatnonzero(np.maximum(bad, over_draws) > BAD)
    return pd.DataFrame({
        "years": quotes.time, "strike": quotes.strike, "at the estimate": bad,
        "over the draws": over_draws,
    }).iloc[rows]  # fmt: skip


def _files(model: Model, quotes: Quotes, found: ep.Fit, comparison: Any, opt) -> list:
    """Figures and draws of a run."""
    k = surface_plots.grid(quotes)
    code = np.broadcast_to(np.arange(len(k))[:, None], k.shape)
    fitted = model.surface(found.params, quotes)(k, code)
    interval = (
        None if comparison is None else band(model, quotes, k, _draws.nuts_draws(comparison.bayes))
    )
    bad = bad_probability(found)
    smiles = surface_plots.plot_smiles(quotes, k, fitted, interval, bad)
    residuals = surface_plots.plot_residuals(quotes, model.volatility(found.params, quotes), bad)
    source = found if comparison is None else comparison.bayes
    return [
        _report.save_figure(smiles, opt.out / f"{model.name}.png"),
        _report.save_figure(residuals, opt.out / f"{model.name}_residuals.png"),
        _report.save_draws(source.to_arviz(), opt.out / f"{model.name}.nc"),
    ]
