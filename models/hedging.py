"""A sold option, hedged at discrete dates with costs, on paths of Heston's model.

The seller takes the premium and holds units of the underlying's future and of one liquid vanilla.
At date j the wealth is

    premium - value_j + sum over i < j of [delta_i (F_i+1 - F_i) + units_i (O_i+1 - O_i)] - costs_j

Positions come from the seller's own law, the paths and all market prices from another: how much a
wrong parameter costs is found by giving two. The variance of the day is taken as known to the
seller (it is read from a liquid option). Everything is on the forward and undiscounted, and the
market has no drift, so that the mean of the wealth without costs is the premium's error.

    strategy             delta                          units
    Unhedged             0                              0
    Delta                P_F                            0
    MinimumVariance      P_F + P_v rho sigma / F        0
    DeltaVega            P_F - units O_F                P_v / O_v

Source: Bakshi, Cao and Chen (1997), Journal of Finance 52(5), for delta and delta-vega hedges under
stochastic volatility; Föllmer and Sondermann (1986) for least variance; Leland (1985), Journal of
Finance 40(5), for costs; Bertsimas, Kogan and Lo (2000), Journal of Financial Economics 55(2), for
the error of discrete dates, which falls with the root of their number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from emprob.models import _report, surface_plots
from emprob.models.pricing import fourier, paths
from emprob.models.pricing.characteristic import Heston


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Vanilla:
    """A European option.

    Attributes:
        strike: positive.
        expiry: years from the beginning.
        sign: +1.0 call, -1.0 put.
    """

    strike: Any
    expiry: Any
    sign: Any = 1.0


class Exposure(NamedTuple):
    """An option along paths, (D + 1, N): value, derivatives by the forward and the variance."""

    value: Any
    delta: Any
    vega: Any


class Market(NamedTuple):
    """N paths on D + 1 dates.

    Attributes:
        times: (D + 1,), years, from zero.
        forward, variance: (D + 1, N).
    """

    times: Any
    forward: Any
    variance: Any


def market(
    law: Heston,
    key: Any,
    years: float,
    forward: Any = 100.0,
    num_dates: int = 63,
    num_paths: int = 1000,
    substeps: int = 4,
) -> Market:
    """Independent paths of the future and its variance.

    Args:
        law: of the paths.
        key: of `jax.random`.
        years: to the last date.
        forward: at the first.
        num_dates: D, equally spaced.
        num_paths: N.
        substeps: of the simulation between two dates.
    """
    dates = years * np.arange(1, num_dates + 1) / num_dates
    scheme = paths.QuadraticExponential(substeps)
    drawn = paths.simulate(law, key, dates, num_paths, scheme, paths.Independent())
    levels = paths.levels(drawn, forward)
    return Market(drawn.times, levels[..., 0], drawn.variance[..., 0])


@jax.jit
def exposure(law: Heston, option: Vanilla, seen: Market) -> Exposure:
    """Value and derivatives of an option along paths; after its expiry, what it paid.

    Args:
        law: its `v0` is replaced by the variance of each path and date.
        option: expires at a date, or after the last.
        seen: (D + 1, N).
    """

    def value(forward: Any, variance: Any, left: Any) -> Any:
        return fourier.price(
            replace(law, v0=variance), forward, option.strike, left, option.sign, fourier.NODES
        )

    both = jax.vmap(jax.value_and_grad(value, (0, 1)), (0, 0, None))

    def day(now: tuple) -> Exposure:
        forward, variance, left = now
        found, (delta, vega) = both(forward, variance, jnp.maximum(left, 1e-6))
        intrinsic = jnp.maximum(option.sign * (forward - option.strike), 0.0)
        alive = left > 1e-6
        return Exposure(*(jnp.where(alive, a, b)
                          for a, b in ((found, intrinsic), (delta, 0.0), (vega, 0.0))))  # fmt: skip

    return jax.lax.map(day, (seen.forward, seen.variance, option.expiry - seen.times))


# -- strategies -----------------------------------------------------------------------------------


class Strategy(Protocol):
    """What is held against one option sold."""

    def positions(
        self, law: Heston, forward: Any, sold: Exposure, used: Exposure
    ) -> tuple[Any, Any]:
        """Futures and units of the other option, (D + 1, N)."""
        ...


@dataclass(frozen=True)
class Unhedged:
    """Nothing is held."""

    def positions(self, law: Heston, forward: Any, sold: Exposure, used: Exposure) -> tuple:
        return jnp.zeros_like(forward), jnp.zeros_like(forward)


@dataclass(frozen=True)
class Delta:
    """The derivative by the forward at fixed variance."""

    def positions(self, law: Heston, forward: Any, sold: Exposure, used: Exposure) -> tuple:
        return sold.delta, jnp.zeros_like(forward)


@dataclass(frozen=True)
class MinimumVariance:
    """The future alone, with the part of the variance's moves that it explains."""

    def positions(self, law: Heston, forward: Any, sold: Exposure, used: Exposure) -> tuple:
        return sold.delta + sold.vega * law.rho * law.sigma / forward, jnp.zeros_like(forward)


@dataclass(frozen=True)
class DeltaVega:
    """The other option against the variance, the future against what is left.

    Attributes:
        most: units of the other option at most, where it has hardly any vega.
    """

    most: float = 5.0

    def positions(self, law: Heston, forward: Any, sold: Exposure, used: Exposure) -> tuple:
        there = used.vega > 0
        units = jnp.where(there, sold.vega / jnp.where(there, used.vega, 1.0), 0.0)
        units = jnp.clip(units, -self.most, self.most)
        return sold.delta - units * used.delta, units


@dataclass(frozen=True)
class Costs:
    """What trading costs, as a share of what is traded.

    Attributes:
        future: of the forward, per unit.
        option: of the option's price, per unit.
    """

    future: float = 0.0
    option: float = 0.0


class Backtest(NamedTuple):
    """The seller's accounts.

    Attributes:
        wealth: (D + 1, N), marked to market, costs taken off; the last is the profit.
        costs: (N,), all that was paid for trading.
    """

    wealth: Any
    costs: Any


@partial(jax.jit, static_argnames=("strategy", "every", "costs"))
def backtest(
    strategy: Strategy,
    seen: Market,
    sold: Exposure,
    used: Exposure,
    law: Heston,
    own: tuple[Exposure, Exposure] | None = None,
    every: int = 1,
    costs: Costs = Costs(),
) -> Backtest:
    """Hedge along paths.

    Args:
        strategy: what is held.
        seen: (D + 1, N), the paths.
        sold, used: market values of the option sold and of the one that hedges.
        law: of the seller.
        own: the seller's own view of both options; by default that of the market.
        every: dates from one change of positions to the next.
        costs: of trading, also for opening and closing the hedge.

    Returns:
        The accounts of one option sold at the market's price.
    """
    view = (sold, used) if own is None else own
    wanted = strategy.positions(law, seen.forward, *view)
    dates = len(seen.times) - 1
    rows = (np.arange(dates) // every) * every
    out, paid = sold.value[0] - sold.value, 0.0
    for held, price, share in zip(
        wanted, (seen.forward, used.value), (costs.future, costs.option), strict=True
    ):
        held = held[rows]
        gains = jnp.cumsum(held * jnp.diff(price, axis=0), axis=0)
        none = jnp.zeros_like(held[:1])
        traded = jnp.abs(jnp.diff(jnp.concatenate([none, held, none]), axis=0))
        spent = jnp.cumsum(share * traded * price, axis=0)
        out = out + jnp.concatenate([none, gains]) - spent
        paid = paid + spent[-1]
    return Backtest(out, paid)


# -- what is shown --------------------------------------------------------------------------------

STRATEGIES: Mapping[str, Strategy] = {
    "unhedged": Unhedged(), "delta": Delta(), "minimum variance": MinimumVariance(),
    "delta and vega": DeltaVega(),
}  # fmt: skip
BITCOIN = Heston(0.55, 4.0, 0.6, 1.8, -0.2)  # the order of size of a calm year
COSTS = Costs(0.0003, 0.01)  # 3 basis points of the future, one percent of the option's price


def describe(result: Backtest, premium: Any) -> dict[str, float]:
    """The profit at the end in percent of the premium: mean and its error, sd, tail, costs."""
    profit = 100 * np.asarray(result.wealth[-1]) / float(premium)
    low = np.quantile(profit, 0.05)
    beyond = profit[profit <= low].mean()
    return {
        "mean": profit.mean(), "its error": profit.std(ddof=1) / np.sqrt(len(profit)),
        "sd": profit.std(ddof=1), "5 % quantile": low, "mean below it": beyond,
        "costs": 100 * float(np.mean(result.costs)) / float(premium),
    }  # fmt: skip


def race(
    truth: Heston, own: Heston, seen: Market, sold: Vanilla, used: Vanilla, **settings: Any
) -> dict[str, Backtest]:
    """All strategies on the same paths.

    Args:
        truth: law of the market prices.
        own: law of the seller.
        seen: paths.
        sold, used: the options.
        **settings: `every` and `costs` of `backtest`.
    """
    values = tuple(exposure(truth, option, seen) for option in (sold, used))
    view = tuple(exposure(own, option, seen) for option in (sold, used))
    return {
        name: backtest(strategy, seen, *values, own, view, **settings)
        for name, strategy in STRATEGIES.items()
    }


@_report.entry
def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """A three-month call on Bitcoin, hedged with the future and an option of half a year."""
    p = _report.parser("A hedge with discrete dates and costs under Heston", num_samples=0)
    p.add_argument("--paths", type=int, default=2000, help="of the market")
    args = p.parse_args(argv)
    opt = _report.options(args)
    num_paths = min(args.paths, 200) if args.quick else args.paths
    sold, used = Vanilla(110.0, 0.25), Vanilla(100.0, 0.5)
    seen = market(BITCOIN, jax.random.key(opt.seed), 0.25, num_dates=90, num_paths=num_paths)
    wrong = replace(BITCOIN, sigma=0.5 * BITCOIN.sigma, rho=0.0)
    tables, daily = {}, {}
    for label, own, settings in (
        ("daily", BITCOIN, {}),
        ("weekly", BITCOIN, {"every": 7}),
        ("daily, costs", BITCOIN, {"costs": COSTS}),
        ("weekly, costs", BITCOIN, {"costs": COSTS, "every": 7}),
        ("daily, wrong sigma and rho", wrong, {}),
    ):
        found = race(BITCOIN, own, seen, sold, used, **settings)
        premium = exposure(BITCOIN, sold, seen).value[0, 0]
        daily = daily or found
        tables |= {(label, name): describe(r, premium) for name, r in found.items()}
    table = pd.DataFrame(tables).T
    _report.heading("Profit of the seller, percent of the premium")
    _report.show(table, 3)
    wealth = {k: np.asarray(r.wealth).T for k, r in daily.items() if k != "unhedged"}
    figure = surface_plots.plot_hedge(seen.times, wealth)
    _report.say_where([_report.save_figure(figure, opt.out / "hedging.png")])
    return table


if __name__ == "__main__":
    main()
