"""How far the integral over the latents is from exact, by importance sampling.

The latents are drawn from the Gaussian around their mean (the one around the mode, which Laplace's
approximation is made of, is worse where the density is skewed), and each draw is weighted by what
the program says over what the Gaussian says. The mean weight is an unbiased estimate of the
integral, whatever the shape of the integrand; how well it can be trusted shows in the tail of the
weights.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from emprob import _arviz
from emprob.agreement import GOOD_K
from emprob.errors import ModelError
from emprob.estep.conjugate import Conjugate
from emprob.integral.expectation import Problem, problem, rest_factors
from emprob.keys import as_key
from emprob.model import layout
from emprob.partition.plates import log_partition
from emprob.precision import working
from emprob.simulation.gaussian import around_mean_fixed, mirrored

FEWEST = 100  # draws: a fifth of them are the tail
MOST_COLUMNS = 64  # series whose weights' tails are fitted
STEADY_K = 0.25  # Pareto k of weights above which the error of their variance is not finite
AGREE = 1e-9  # relative difference that is rounding


@dataclass(frozen=True)
class ImportanceReport:
    """The log-likelihood of a fit's parameters, corrected by importance sampling.

    Attributes:
        log_evidence: log Z by importance sampling.
        error: its Monte Carlo standard error, to first order.
        laplace: log Z as the fit has it, by the E-step's approximation.
        khat: Pareto k of the weights, of the worst series; below 0.7 `error` can be relied on.
        num_draws: from the Gaussian, each with its mirror image.
        sentence: all that in words.
    """

    log_evidence: float
    error: float
    laplace: float
    khat: float
    num_draws: int
    sentence: str

    def __repr__(self) -> str:
        return f"ImportanceReport({self.sentence})"


def importance(fit: Any, key: Any, n: int = 1000) -> ImportanceReport:
    """Correct a fit's log-likelihood for the approximation of the integral over its latents.

    At the fit's parameters, which are not moved. Every series (an element of a plate, a chain) is
    integrated by itself, so the weights of many short series are tame where those of one long chain
    vary.

    Args:
        fit: of a program with continuous latents, by an E-step that integrates around the mode.
        key: an int or a JAX key. The same key gives the same numbers.
        n: draws; each counts with its mirror image, which cancels the skewness to first order.

    Returns:
        The report; its error is zero, up to rounding, where the latents are Gaussian.

    Raises:
        ModelError: the model has no continuous latents.
        ValueError: fewer than 100 draws.

    Source: Durbin and Koopman (1997), Biometrika 84(3), for state space models; Vehtari et al.
    (2024), JMLR 25(72), for k-hat.
    """
    model = fit._bound("importance")
    if not model.structure.integrals:
        latents = ", ".join(map(repr, model.latents)) or "none"
        raise ModelError(
            f"importance: expected a model with continuous latents, got the latents {latents}. "
            "Sums over discrete latents are exact: there is nothing to correct."
        )
    if n < FEWEST:
        raise ValueError(f"n: expected {FEWEST} draws or more, got {n!r}.")
    with working(model):
        params = {k: jnp.asarray(v) for k, v in fit.params.items()}
        found = corrected(model, params, as_key(key), int(n))
    return ImportanceReport(*found, int(n), _sentence(*found, int(n)))


class Corrected(NamedTuple):
    """log Z by importance sampling, its error, log Z by the E-step's rule, and the worst k-hat."""

    value: float
    error: float
    rough: float
    khat: float


def corrected(model: Any, params: dict[str, Array], key: Array, num: int) -> Corrected:
    """log Z of a model by importance sampling."""
    found = jax.tree.map(np.asarray, _corrected(model, params, key, num))
    khats = [_worst_khat(x) for x in found.log_ratios]
    values = float(found.log_evidence), float(found.error), float(found.laplace)
    return Corrected(*values, max(khats, default=0.0))


class _Found(NamedTuple):
    """Log Z both ways, and the log-ratios of each integral, (n, 2, B, S)."""

    log_evidence: Any
    error: Any
    laplace: Any
    log_ratios: Any


@partial(jax.jit, static_argnames="num")
def _corrected(model: Any, params: dict[str, Array], key: Array, num: int) -> _Found:
    out = model.evaluate(params)
    count = len(model.structure.integrals)
    tables, variances, ratios, rough = [], [], [], []
    for i, k in enumerate(jax.random.split(key, count)):
        p = problem(model, params, i)
        rough.append(p.integral.rule.log_integral(p))
        if isinstance(p.integral.rule, Conjugate):  # exact, and not around a mode
            tables.append(rough[-1])
            variances.append(jnp.zeros_like(rough[-1]))
            continue
        logs = log_ratios(p, k, num)
        mean = jax.nn.logsumexp(logs, (0, 1)) - jnp.log(2 * num)
        pairs = jnp.exp(logs - mean).mean(1)  # a draw and its mirror image are not independent
        tables.append(mean)
        variances.append(jnp.var(pairs, 0, ddof=1) / num)
        ratios.append(logs)

    def total(tables: list[Array]) -> Array:
        return log_partition(rest_factors(model, out, tables), layout(out))

    value, shares = jax.value_and_grad(total)(tables)
    parts = [jnp.where(s == 0, 0.0, s**2 * v) for s, v in zip(shares, variances, strict=True)]
    error = sum(jnp.sum(x) for x in parts)
    return _Found(value, jnp.sqrt(jnp.asarray(error)), total(rough), ratios)


def log_ratios(p: Problem, key: Array, num: int) -> Array:
    """log(density / Gaussian) at draws of the Gaussian and at their mirror images.

    Args:
        p: the integral.
        key: of `jax.random`.
        num: draws.

    Returns:
        (num, 2, B, S): the log of their mean estimates the log-integral of every branch and series.
    """
    g = around_mean_fixed(p)

    def one(key: Array) -> Array:
        noise = jax.random.normal(key, g.centre.shape, g.centre.dtype)
        return mirrored(g, p.fixed, noise)[1]

    return lax.map(one, jax.random.split(key, num))


def _worst_khat(logs: np.ndarray) -> float:
    """Largest Pareto k over branches and series of log-ratios (n, 2, B, S).

    Of the columns whose largest weight stands out the most: fitting a tail takes milliseconds, and
    there may be thousands. The largest of n weights with a tail of index k grows like n^k. Where
    the one that was drawn, over their mean, is no more than n^(1/4), that exponent is told and no
    tail is fitted: of weights that are nearly alike it is ill defined, and does not matter.
    """
    columns = logs.reshape(2 * len(logs), -1).T
    largest = columns.max(1)
    share = 1.0 / np.exp(columns - largest[:, None]).sum(1)
    exponents = np.round(1.0 + np.log(share) / np.log(columns.shape[1]), 9)
    worst = [i for i in np.argsort(-share)[:MOST_COLUMNS] if not exponents[i] <= STEADY_K]
    tails = (_arviz.pareto_khat(columns[i])[1] for i in worst)
    return max(exponents[exponents <= STEADY_K].max(initial=0.0), *tails, 0.0)


def _sentence(value: float, error: float, rough: float, khat: float, num: int) -> str:
    gap = value - rough
    if abs(gap) <= 2 * error + AGREE * (1 + abs(value)):
        off = "no difference that these draws can tell"
    else:
        off = f"{abs(gap):.2g} too {'low' if gap > 0 else 'high'}"
    said = (
        f"log-likelihood {value:.4f} by importance sampling ({num} draws, Monte Carlo error "
        f"{error:.2g}), {rough:.4f} by the fit's approximation: {off}."
    )
    if not np.isfinite(khat) or khat >= GOOD_K:
        return (
            f"{said} Pareto k-hat {khat:.2f} >= {GOOD_K}: the weights are too uneven, so neither "
            "the correction nor its error can be relied on."
        )
    return f"{said} Pareto k-hat {khat:.2f} < {GOOD_K}: the correction can be relied on."
