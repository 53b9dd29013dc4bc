"""Exotic options when the model's parameters are known only up to noisy quotes.

A surface is fitted to vanillas; an exotic that no quote pins down is then priced by simulation. Its
price is a function of the parameters P(theta), theta is uncertain, and so is the price:

    draws:           P(theta_s), theta_s from NUTS, or from the fit's Gaussian approximation
    delta method:    sd^2 = g' H^-1 g,   g = dP / dtheta, H the observed information
    to the quotes:   dP / dq = g' H^-1 d^2 L / dtheta dq,   L the objective of the fit

The last line is the derivative of the price through the calibration, without a second calibration:
theta(q) is where dL / dtheta = 0. Everything uses the same random numbers at every theta, so that
what differs is the parameters; the Monte Carlo error of the price is told beside it.

Data: Bitcoin options of 21 October 2021 (`option_tables.btc_2021`), Heston's surface.

Source: the implicit function theorem; Christianson (1994), Optimization Methods and Software 3(4),
for derivatives of optima; Cont (2006), Mathematical Finance 16(3), for what model uncertainty does
to prices of exotics; Föllmer and Sondermann (1986) for hedges of least variance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array

import emprob as ep
from emprob import chart
from emprob.coordinates import as_arrays, coordinates_of, flatten, in_double, unflatten
from emprob.errors import ModelError
from emprob.model import arguments
from emprob.models import _report, surface_heston, surface_plots, surfaces
from emprob.models._draws import nuts_draws
from emprob.models.pricing import affine, black, exotics, fourier, paths
from emprob.models.quotes import Quotes

Price = Callable[[Mapping[str, Array]], Array]  # parameters by site -> (C,) prices


# -- draws ---------------------------------------------------------------------------------------


def gaussian_draws(found: ep.Fit, key: Any, n: int = 500) -> dict[str, np.ndarray]:
    """Draws (n, ...) by site from the Gaussian approximation of a fit, parameters only."""
    drawn = found.sample(key, n)
    return {name: drawn[name] for name in found.model.params}


def distribution(price: Price, draws: Mapping[str, Any], batch: int = 4) -> np.ndarray:
    """Prices at draws of the parameters.

    Args:
        price: from parameters to (C,) prices.
        draws: (S, ...) by site.
        batch: draws that are priced together; more is faster until memory ends.

    Returns:
        (S, C).
    """
    with jax.enable_x64(True):
        draws = {k: jnp.asarray(v) for k, v in draws.items()}
        return np.asarray(_each(price, draws, batch))


@partial(jax.jit, static_argnames=("price", "batch"))
def _each(price: Price, draws: Mapping[str, Array], batch: int) -> Array:
    return jax.lax.map(price, draws, batch_size=batch)


# -- derivatives through the calibration -----------------------------------------------------------


def slopes(price: Price, found: ep.Fit) -> np.ndarray:
    """Derivatives (C, F) of prices in the fit's own coordinates, those of `found.uncertainty`."""
    with jax.enable_x64(True):
        model, coordinates = _at(found)
        return np.asarray(_slopes(model, coordinates, price))


def _at(found: ep.Fit) -> tuple[Any, dict[str, Array]]:
    model = in_double(found.model)
    return model, coordinates_of(model, as_arrays(found.params))


@partial(jax.jit, static_argnames="price")
def _slopes(model: Any, coordinates: Mapping[str, Array], price: Price) -> Array:
    def priced(flat: Array) -> Array:
        w = unflatten(model, flat, coordinates)
        return price(chart.from_coordinates(model.data.transforms, w))

    return jax.jacfwd(priced)(flatten(model, coordinates))


def spread(price: Price, found: ep.Fit) -> np.ndarray:
    """Standard deviations (C,) of prices by the delta method."""
    return np.linalg.norm(slopes(price, found) @ found.uncertainty.square_root(), axis=1)


def sensitivities(price: Price, found: ep.Fit) -> tuple:
    """Derivatives of prices in everything that the fit was given, through the calibration.

    What the data do not determine, or is at a boundary, is held where it is. The prior's part is
    in it: a quote that the prior contradicts moves the price less.

    Args:
        price: from parameters to (C,) prices.
        found: a fit at its optimum, of a program of quotes.

    Returns:
        The program's arguments with a derivative (C, ...) in the place of every array of real
        numbers, zero for others: of `ep.bind(program, quotes)`, `[0].mid` is (C, N), the change
        of the prices for one unit of each quoted volatility.

    Raises:
        ModelError: the program was bound to no arrays.
    """
    if not found.model.data.leaves:
        raise ModelError(
            "the program's arguments hold no arrays that are data to the fit; expected the quotes "
            "among them. Pass them to `ep.bind`, after the program."
        )
    root = found.uncertainty.square_root()
    moves = slopes(price, found) @ root @ root.T
    with jax.enable_x64(True):
        model, coordinates = _at(found)
        leaves = _through(model, coordinates, jnp.asarray(moves))
        s = model.structure
        return arguments(s.treedef, s.static, tuple(np.asarray(x) for x in leaves))[0]


@jax.jit
def _through(model: Any, coordinates: Mapping[str, Array], moves: Array) -> tuple[Array, ...]:
    """moves (C, F) times d^2 L / dw dq, for every array q of the data."""
    leaves = model.data.leaves
    real = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    point = flatten(model, coordinates)

    def along(values: list[Array], move: Array) -> Array:
        data = list(leaves)
        for i, value in zip(real, values):
            data[i] = value
        other = replace(model, data=replace(model.data, leaves=tuple(data)))

        def objective(flat: Array) -> Array:
            w = unflatten(other, flat, coordinates)
            return other.objective(chart.from_coordinates(other.data.transforms, w))

        return jax.jvp(objective, (point,), (move,))[1]

    found = jax.vmap(jax.grad(along), (None, 0))([leaves[i] for i in real], moves)
    out = [jnp.zeros((len(moves), *x.shape)) for x in leaves]
    for i, value in zip(real, found):
        out[i] = value
    return tuple(out)


# -- hedges --------------------------------------------------------------------------------------


def vanilla_hedge(in_volatility: Any, quotes: Quotes) -> np.ndarray:
    """How many of each quoted option replicate the exposure to every quoted volatility.

    Args:
        in_volatility: (C, N), `sensitivities(...)[0].mid`.
        quotes: N options.

    Returns:
        (C, N), undiscounted sensitivity over vega; zero where the quote is missing.
    """
    deviation = quotes.mid * jnp.sqrt(quotes.time)
    vega = black.vega(quotes.forward, quotes.strike, deviation) * jnp.sqrt(quotes.time)
    use = np.asarray(quotes.observed & (vega > 0))
    return np.where(use, in_volatility / np.where(use, vega, 1.0), 0.0)


def hedge_ratios(exotic: Any, instruments: Any, root: Any) -> tuple[np.ndarray, np.ndarray]:
    """Positions of least variance in a few instruments, against moves of the parameters.

    Args:
        exotic: (C, F), slopes of what is to be hedged.
        instruments: (M, F), slopes of what it is hedged with.
        root: (F, R), a root of the covariance of the parameters: `found.uncertainty.square_root()`
            against errors of estimation, or one of day-to-day changes of the fits.

    Returns:
        Units (C, M) to hold against one exotic sold, and the standard deviation (C,) that is left.
    """
    target, used = (np.asarray(x) @ np.asarray(root) for x in (exotic, instruments))
    units = np.linalg.lstsq(used.T, target.T, rcond=1e-10)[0].T
    return units, np.linalg.norm(target - units @ used, axis=1)


# -- the contracts of the gallery ----------------------------------------------------------------

NAMES = ("Asian call", "down-and-out put", "lookback call", "cliquet", "variance swap")


def forward_curve(quotes: Quotes, times: Any) -> Array:
    """Forwards at times, log-linear between the expiries and flat beyond them."""
    return jnp.exp(jnp.interp(times, quotes.times, jnp.log(quotes.forwards)))


def contracts(drawn: paths.Paths, forwards: Any, key: Any) -> Array:
    """Payoffs (C, N, P) of the exotics in `NAMES`, in percent of the spot.

    Args:
        drawn: paths.
        forwards: (D + 1,), the spot first.
        key: of the extremes between the dates.
    """
    spot = forwards[0]
    lowest = 0.7 * spot
    payoffs = [
        exotics.asian(drawn, forwards, spot) / spot,
        exotics.knock_out(drawn, forwards, spot, lowest, -1.0, -1.0) / spot,
        exotics.lookback(drawn, forwards, key, 1.1 * spot) / spot,
        exotics.cliquet(drawn, forwards, -0.02, 0.03, 0.0),
        exotics.realised_variance(drawn, forwards),
    ]
    return 100 * jnp.stack(payoffs)


def controls(drawn: paths.Paths, forwards: Any, law: Any) -> tuple[Array, Array]:
    """What has an exact price under the law, over the spot: payoffs (6, N, P) and means (6,)."""
    spot, last, dates = forwards[0], forwards[-1], drawn.times[1:]
    strikes = spot * jnp.array([0.8, 1.0, 1.2])
    calls = [exotics.vanilla(drawn, forwards, k) / spot for k in strikes]
    mean = exotics.geometric_asian(drawn, forwards, spot) / spot
    realised = exotics.realised_variance(drawn, forwards)
    known = (
        jnp.ones(1), fourier.price(law, last, strikes, dates[-1]) / spot,
        affine.geometric_asian_price(law, dates, forwards, spot)[None] / spot,
        affine.variance_swap_strike(law, dates, forwards)[None],
    )  # fmt: skip
    ratio = jnp.exp(drawn.log_ratio[-1])
    return jnp.stack([ratio, *calls, mean, realised]), jnp.concatenate(known)


def valuation(
    quotes: Quotes, key: Any, years: float, num_dates: int = 26, num_pairs: int = 2000
) -> tuple[Price, Callable[[Mapping[str, Array]], exotics.Estimate]]:
    """Prices of `NAMES` under Heston as functions of the parameters, the random numbers fixed.

    Args:
        quotes: their forwards are used.
        key: of `jax.random`.
        years: to the end of all contracts.
        num_dates: of the contracts, equally spaced.
        num_pairs: of mirrored paths.

    Returns:
        Prices (C,), and the same with their Monte Carlo errors.
    """
    first, second = jax.random.split(jax.random.key(key) if isinstance(key, int) else key)
    dates = years * np.arange(1, num_dates + 1) / num_dates
    forwards = forward_curve(quotes, np.concatenate([[0.0], dates]))

    @jax.jit
    def estimate(params: Mapping[str, Array]) -> exotics.Estimate:
        law = surface_heston.law(params)
        drawn = paths.simulate(law, first, dates, num_pairs)
        payoffs = contracts(drawn, forwards, second)
        variables, means = controls(drawn, forwards, law)
        of = partial(exotics.estimate, weights=drawn.weights, controls=variables, means=means)
        return jax.vmap(of)(payoffs)

    return lambda params: estimate(params).value, estimate


def vanillas(quotes: Quotes) -> tuple[pd.DataFrame, Price]:
    """The options nearest to the money at every expiry, and their prices in percent of the spot."""
    spot, rows = forward_curve(quotes, 0.0), []
    for e in range(quotes.num_expiries):
        here = (quotes.expiry == e) & quotes.observed
        distance = jnp.where(here, jnp.abs(quotes.log_moneyness), jnp.inf)
        rows.append(int(jnp.argmin(distance)))
    at = np.array(rows)
    k, codes, forward = (x[at] for x in (quotes.log_moneyness, quotes.expiry, quotes.forward))

    def price(params: Mapping[str, Array]) -> Array:
        law = surface_heston.law(params)
        return 100 * forward / spot * fourier.calls(law, k, quotes.times, codes)

    frame = pd.DataFrame({"years": quotes.time[at], "strike": quotes.strike[at]})
    return frame, price


# -- main ----------------------------------------------------------------------------------------


@_report.entry
def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Exotics on Bitcoin: prices, their uncertainty by three ways, sensitivities, hedges."""
    p = _report.parser("Exotic options with uncertain parameters", num_starts=4, num_samples=500)
    p.add_argument("--pairs", type=int, default=4000, help="mirrored paths of each price")
    args = p.parse_args(argv)
    opt = _report.options(args)
    quotes = surfaces.load("btc_2021")
    pairs = min(args.pairs, 500) if args.quick else args.pairs
    _report.heading(f"Heston's surface of {int(quotes.observed.sum())} quotes")
    found = _report.fit(ep.bind(surface_heston.surface_heston, quotes), opt)
    _report.show(found.summary())
    price, estimate = valuation(quotes, opt.seed, 0.25, num_pairs=pairs)
    at = estimate(as_arrays(found.params))
    draws = {"Gaussian approximation": gaussian_draws(found, opt.seed, 500)}
    comparison = _report.beside(found, opt)
    if comparison is not None:
        draws["NUTS"] = nuts_draws(comparison.bayes, 500)
    values = {name: distribution(price, d) for name, d in draws.items()}
    _report.heading("Prices in percent of the spot, three months")
    table = uncertainty(at, spread(price, found), values)
    _report.show(table)
    _say_hedges(price, found, quotes)
    _report.say_where(_files(at, values, opt))
    return table


def uncertainty(at: exotics.Estimate, linear: Any, values: Mapping[str, Any]) -> pd.DataFrame:
    """One row per contract: price, Monte Carlo error, standard deviations over parameters."""
    table = {"price": at.value, "simulation error": at.error, "sd, delta method": linear}
    for name, v in values.items():
        table |= {f"mean, {name}": v.mean(0), f"sd, {name}": v.std(0)}
    return pd.DataFrame({k: np.asarray(v) for k, v in table.items()}, index=list(NAMES))


def _say_hedges(price: Price, found: ep.Fit, quotes: Quotes) -> None:
    _report.heading("One volatility point more in a quote moves the price by")
    moved = 0.01 * np.asarray(sensitivities(price, found)[0].mid)
    total = pd.DataFrame(
        {f"{t:.3f} years": moved[:, np.asarray(quotes.expiry) == e].sum(1)
         for e, t in enumerate(np.asarray(quotes.times))}, index=list(NAMES),
    )  # fmt: skip
    _report.show(total)
    _report.heading("Hedge with the options at the money, per exotic")
    frame, instruments = vanillas(quotes)
    units, left = hedge_ratios(
        slopes(price, found), slopes(instruments, found), found.uncertainty.square_root()
    )
    names = [f"{k:.0f}, {t:.3f} y" for t, k in frame.to_numpy()]
    hedged = pd.DataFrame(units, index=list(NAMES), columns=names)
    _report.show(hedged.assign(**{"sd before": spread(price, found), "sd after": left}))


def _files(at: exotics.Estimate, values: Mapping[str, Any], opt: _report.Options) -> list:
    out = []
    for c, name in enumerate(NAMES):
        figure = surface_plots.plot_exotic_prices(
            {k: v[:, c] for k, v in values.items()}, float(at.value[c]), float(at.error[c]),
            f"{name}, percent",
        )  # fmt: skip
        file = f"exotic_{name.replace(' ', '_').replace('-', '_').lower()}.png"
        out.append(_report.save_figure(figure, opt.out / file))
    return out


if __name__ == "__main__":
    main()
