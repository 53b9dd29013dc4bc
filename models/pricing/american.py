"""American and Bermudan options by regression on simulated paths (Longstaff and Schwartz).

The value of waiting is regressed on functions of the level and the variance, backwards from date
to date; the policy that follows is then used on paths of its own. Its price there is a lower bound
of the true one, apart from the error that is told: nothing of the paths that made the policy is
left in it.

Here prices are discounted, because when to exercise depends on it. The gradient of a price holds
the policy, which changes nothing to first order at the best one, so that `jax.jacfwd` of
`american` gives the greeks.

Source: Longstaff and Schwartz (2001), Review of Financial Studies 14(1); Glasserman (2003), Monte
Carlo Methods in Financial Engineering, sections 8.6 and 8.7; Piterbarg (2004), Risk 17(8), for the
derivative under a fixed policy; Rasmussen (2005), Journal of Computational Finance 9(1), for
controls taken at the time of exercise.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emprob.models.pricing.exotics import Estimate, estimate
from emprob.models.pricing.paths import (
    Antithetic,
    Noise,
    Paths,
    QuadraticExponential,
    Scheme,
    levels,
    simulate,
)


class Basis(Protocol):
    """Functions of the state on which the value of waiting is regressed."""

    def features(self, level: Any, variance: Any, strike: Any) -> Any:
        """(B, *shape) of arrays of a common shape."""
        ...


@dataclass(frozen=True)
class Polynomials:
    """Powers of the log moneyness and of the volatility, up to a total degree.

    Attributes:
        degree: of the log moneyness, and of both together.
        variance_degree: of the volatility; 0 for a law with a constant one.
    """

    degree: int = 4
    variance_degree: int = 0

    def features(self, level: Any, variance: Any, strike: Any) -> Any:
        k, v = jnp.log(level / strike), jnp.sqrt(variance)
        pairs = [(i, j) for j in range(self.variance_degree + 1) for i in range(self.degree + 1)]
        return jnp.stack([k**i * v**j for i, j in pairs if i + j <= self.degree])


class Policy(NamedTuple):
    """Exercise where the payoff is at least the regressed value of waiting.

    Attributes:
        coefficients: (D - 1, B), for all dates but the last.
        shift, scale: (D - 1, B), what the features are standardised by.
    """

    coefficients: Any
    shift: Any
    scale: Any


def policy(
    paths: Paths, forwards: Any, discounts: Any, strike: Any, sign: Any, basis: Basis
) -> Policy:
    """The policy by regression, over the paths that are in the money, backwards.

    Args:
        paths: on the D dates of possible exercise.
        forwards: scalar, or (D + 1,) with the spot first.
        discounts: (D,), value today of one at each date.
        strike, sign: scalars.
        basis: of the regression.
    """
    underlying, paid = _flat(paths, forwards, discounts, strike, sign)
    variance = paths.variance[1:].reshape(underlying.shape)

    def back(cash: Any, now: tuple) -> tuple[Any, tuple]:
        level, v, exercise = now
        features = basis.features(level, v, strike)
        inside = (exercise > 0).astype(level.dtype)
        rule = _regress(features, cash, inside)
        stop = (exercise > 0) & (exercise >= _waiting(rule, features))
        return jnp.where(stop, exercise, cash), rule

    rows = (underlying[:-1], variance[:-1], paid[:-1])
    _, rules = jax.lax.scan(back, paid[-1], rows, reverse=True)
    return jax.lax.stop_gradient(Policy(*rules))


def _flat(paths: Paths, forwards: Any, discounts: Any, strike: Any, sign: Any) -> tuple[Any, Any]:
    """Levels and discounted payoffs at the dates, (D, N * P)."""
    underlying = levels(paths, forwards)[1:]
    underlying = underlying.reshape(len(underlying), -1)
    discounts = jnp.asarray(discounts)
    return underlying, discounts[:, None] * jnp.maximum(sign * (underlying - strike), 0.0)


def _regress(features: Any, target: Any, inside: Any) -> tuple[Any, Any, Any]:
    """Least squares over the paths inside; directions without variation are left out."""
    count = jnp.maximum(inside.sum(), 1.0)
    shift = (features * inside).sum(1) / count
    spread = jnp.sqrt((((features - shift[:, None]) * inside) ** 2).sum(1) / count)
    varies = spread > 1e-9 * (1 + jnp.abs(shift))
    shift = jnp.where(varies, shift, 0.0)
    scale = jnp.where(varies, spread, jnp.maximum(jnp.abs(features).max(1), 1e-300))
    x = (features - shift[:, None]) / scale[:, None] * inside
    values, vectors = jnp.linalg.eigh(x @ x.T / count)
    keep = values > 1e-11 * values[-1]
    inverse = jnp.where(keep, 1.0 / jnp.where(keep, values, 1.0), 0.0)
    coefficients = vectors @ (inverse * (vectors.T @ (x @ target / count)))
    return coefficients, shift, scale


def _waiting(rule: tuple[Any, Any, Any], features: Any) -> Any:
    """The regressed value of waiting."""
    coefficients, shift, scale = rule
    return coefficients @ ((features - shift[:, None]) / scale[:, None])


class Exercise(NamedTuple):
    """What a policy does on paths; all (N, P).

    Attributes:
        cash: discounted payoff.
        date: index 0..D-1 of the date of exercise, D where there was none.
        ratio: exp(x) at the date of exercise, or at the last: a variable of mean one.
    """

    cash: Any
    date: Any
    ratio: Any


def exercise(
    rules: Policy,
    paths: Paths,
    forwards: Any,
    discounts: Any,
    strike: Any,
    sign: Any,
    basis: Basis,
) -> Exercise:
    """Use a policy, on paths of its own.

    Args:
        rules: from `policy`.
        paths, forwards, discounts, strike, sign, basis: as there.
    """
    underlying, paid = _flat(paths, forwards, discounts, strike, sign)
    variance = paths.variance[1:].reshape(underlying.shape)

    def stops(level: Any, v: Any, value: Any, rule: Policy) -> Any:
        return (value > 0) & (value >= _waiting(rule, basis.features(level, v, strike)))

    early = jax.lax.map(lambda x: stops(*x), (underlying[:-1], variance[:-1], paid[:-1], rules))
    stop = jnp.concatenate([early, jnp.ones_like(early[:1])])
    first = jnp.argmax(stop, axis=0)
    cash, ratio = (
        jnp.take_along_axis(x, first[None], axis=0)[0]
        for x in (paid, jnp.exp(paths.log_ratio[1:]).reshape(underlying.shape))
    )
    date = jnp.where(cash > 0, first, len(paid))
    shape = paths.weights.shape
    return Exercise(cash.reshape(shape), date.reshape(shape), ratio.reshape(shape))


@partial(jax.jit, static_argnames=("num_pairs", "basis", "scheme", "noise"))
def american(
    law: Any,
    key: Any,
    dates: Any,
    forwards: Any,
    discounts: Any,
    strike: Any,
    sign: Any = -1.0,
    num_pairs: int = 10_000,
    basis: Basis = Polynomials(),
    scheme: Scheme = QuadraticExponential(),
    noise: Noise = Antithetic(),
) -> Estimate:
    """A lower bound of the price today, discounted, with its standard error.

    exp(x), stopped when the option is exercised, has mean one and is the control.

    Args:
        law: BlackScholes, Merton, Heston or Bates.
        key: of `jax.random`.
        dates: (D,), years, where exercise is possible; it is now, too.
        forwards: scalar, or (D + 1,) with the spot first.
        discounts: (D,), value today of one at each date.
        strike, sign: scalars.
        num_pairs: N, of the paths that make the policy and of those that price it, each.
        basis: of the regression.
        scheme, noise: see `paths.simulate`.
    """
    first, second = jax.random.split(key)
    learn = simulate(law, first, dates, num_pairs, scheme, noise)
    rules = policy(learn, forwards, discounts, strike, sign, basis)
    paths = simulate(law, second, dates, num_pairs, scheme, noise)
    out = exercise(rules, paths, forwards, discounts, strike, sign, basis)
    later = estimate(out.cash, paths.weights, (out.ratio,), (1.0,))
    spot = jnp.ravel(jnp.asarray(forwards))[0]
    now = jnp.maximum(sign * (spot - strike), 0.0)
    best = later.value >= now
    return Estimate(jnp.where(best, later.value, now), jnp.where(best, later.error, 0.0))
