"""Simulated paths of Black–Scholes, Merton, Heston and Bates, on the forward.

    dx = -v / 2 dt + sqrt(v) dB + jumps,   dv = kappa (theta - v) dt + sigma sqrt(v) dW,
    dB dW = rho dt,   x = log(S / F)

so that exp(x) is a martingale. A jump falls at the end of its step.

Paths come in pairs, mirrored (`Antithetic`) or alone (`Independent`): the last axis is 2 or 1, and
errors are those of means over pairs. Everything is differentiable in the parameters for a fixed
key; the number of jumps, a discrete variable, passes its derivative on through the paths' weights.

Source: Andersen (2008), Journal of Computational Finance 11(3), sections 3.2 and 4 (quadratic
exponential scheme, martingale correction); Lord, Koekkoek and van Dijk (2010), Quantitative Finance
10(2) (full truncation); Foerster et al. (2018), ICML (weights that are one, with the score).
"""

from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, log_ndtr

from emprob.models.pricing.characteristic import Bates, BlackScholes, Heston, Merton

SWITCH = 1.5  # of Andersen's schemes; any number from 1 to 2


class Paths(NamedTuple):
    """N pairs of paths on D intervals; P is 2 for mirrored pairs, else 1.

    Attributes:
        times: (D + 1,), years, from zero.
        log_ratio: (D + 1, N, P), log of the level over its forward; zero at first.
        variance: (D + 1, N, P), instantaneous.
        integrated: (D, N, P), variance integrated over each interval.
        jumps: (D, N, P), sum of the log jumps of each interval.
        weights: (N, P), ones; their derivative is that of the likelihood of the jumps' number.
    """

    times: Any
    log_ratio: Any
    variance: Any
    integrated: Any
    jumps: Any
    weights: Any


# -- random numbers -----------------------------------------------------------------------------


class Noise(Protocol):
    """Where the random numbers come from."""

    def normals(self, key: Any, num_pairs: int) -> Any:
        """Standard normals (N, P)."""
        ...

    def uniforms(self, key: Any, shape: tuple[int, ...]) -> Any:
        """Uniform numbers between zero and one, (*shape, P)."""
        ...


@dataclass(frozen=True)
class Antithetic:
    """Pairs of paths from z and -z."""

    def normals(self, key: Any, num_pairs: int) -> Any:
        z = jax.random.normal(key, (num_pairs,))
        return jnp.stack([z, -z], -1)

    def uniforms(self, key: Any, shape: tuple[int, ...]) -> Any:
        u = jax.random.uniform(key, shape)
        return jnp.stack([u, 1.0 - u], -1)


@dataclass(frozen=True)
class Independent:
    """Single paths."""

    def normals(self, key: Any, num_pairs: int) -> Any:
        return jax.random.normal(key, (num_pairs, 1))

    def uniforms(self, key: Any, shape: tuple[int, ...]) -> Any:
        return jax.random.uniform(key, (*shape, 1))


# -- steps of the diffusion ---------------------------------------------------------------------


class Move(NamedTuple):
    """One step: change of x, variance at its end, variance integrated over it; all (N, P)."""

    shift: Any
    variance: Any
    integrated: Any


class Scheme(Protocol):
    """A discretisation of Heston's model; `substeps` between two dates."""

    substeps: int

    def step(self, law: Heston, variance: Any, dt: Any, z: Any, z_variance: Any) -> Move:
        """One step of length `dt` with independent normals `z` and `z_variance`."""
        ...


@dataclass(frozen=True)
class FullTruncation:
    """Euler's steps with the variance cut off at zero in drift and diffusion.

    Attributes:
        substeps: between two dates. The bias is of first order in their length.
    """

    substeps: int = 8

    def step(self, law: Heston, variance: Any, dt: Any, z: Any, z_variance: Any) -> Move:
        now = jnp.maximum(variance, 0.0)
        spread = root(now * dt)
        both = law.rho * z_variance + root(1 - law.rho**2) * z
        later = variance + law.kappa * (law.theta - now) * dt + law.sigma * spread * z_variance
        return Move(-0.5 * now * dt + spread * both, later, now * dt)


@dataclass(frozen=True)
class QuadraticExponential:
    """Andersen's QE-M: two moments of the variance matched, exp(x) a martingale at every step.

    `sigma` must be positive. Where the switch between the two schemes falls moves with the
    parameters; pathwise derivatives leave that out, which is small, since both schemes have the
    same mean and variance there: measured on a call of a year, one to three percent of a derivative
    at steps of a quarter (fourteen of the one in `rho`), within the noise at steps of a week.

    Attributes:
        substeps: between two dates. The bias is small up to a step of about a quarter of a year.
    """

    substeps: int = 1

    def step(self, law: Heston, variance: Any, dt: Any, z: Any, z_variance: Any) -> Move:
        ratio = law.rho / law.sigma
        half = 0.5 * dt * (law.kappa * ratio - 0.5)
        k1, k2 = half - ratio, half + ratio
        k3 = k4 = 0.5 * dt * (1 - law.rho**2)
        later, log_mean = _variance_step(law, variance, dt, z_variance, k2 + 0.5 * k4)
        plain = -law.rho * law.kappa * law.theta * dt / law.sigma
        start = jnp.where(
            jnp.isfinite(log_mean), -log_mean - (k1 + 0.5 * k3) * variance, plain
        )  # fmt: skip
        spread = root(k3 * variance + k4 * later)
        shift = start + k1 * variance + k2 * later + spread * z
        return Move(shift, later, 0.5 * dt * (variance + later))


def _variance_step(law: Heston, variance: Any, dt: Any, z: Any, slope: Any) -> tuple[Any, Any]:
    """The variance a step later, and log E exp(slope * it), infinite where there is none."""
    gone = -jnp.expm1(-law.kappa * dt)
    mean = variance + (law.theta - variance) * gone
    mean = jnp.maximum(mean, 1e-300)
    rest = variance * (1 - gone) + 0.5 * law.theta * gone
    psi = law.sigma**2 * gone / law.kappa * rest / mean**2
    quadratic = psi <= SWITCH
    near, log_near = _quadratic(mean, jnp.clip(psi, 1e-14, SWITCH), z, slope)
    far, log_far = _exponential(mean, jnp.maximum(psi, SWITCH), z, slope)
    return jnp.where(quadratic, near, far), jnp.where(quadratic, log_near, log_far)


def _quadratic(mean: Any, psi: Any, z: Any, slope: Any) -> tuple[Any, Any]:
    """a (b + z)^2, and the log of its exponential moment."""
    inverse = 2.0 / psi
    b2 = inverse - 1.0 + jnp.sqrt(inverse) * jnp.sqrt(inverse - 1.0)
    a = mean / (1.0 + b2)
    left = 1.0 - 2.0 * slope * a
    exists = left > 0
    left = jnp.where(exists, left, 1.0)
    moment = slope * b2 * a / left - 0.5 * jnp.log(left)
    return a * (jnp.sqrt(b2) + z) ** 2, jnp.where(exists, moment, jnp.inf)


def _exponential(mean: Any, psi: Any, z: Any, slope: Any) -> tuple[Any, Any]:
    """Zero with probability p, else exponential; z by way of its distribution function."""
    p = (psi - 1.0) / (psi + 1.0)
    scale = mean / (1.0 - p)  # 1 / beta
    value = scale * jnp.maximum(jnp.log1p(-p) - log_ndtr(-z), 0.0)
    left = 1.0 - slope * scale
    exists = left > 0
    moment = jnp.log(p + (1.0 - p) / jnp.where(exists, left, 1.0))
    return value, jnp.where(exists, moment, jnp.inf)


def root(x: Any) -> Any:
    """The square root; zero below zero, with derivative zero at and below it."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


# -- laws ---------------------------------------------------------------------------------------


class Jumps(NamedTuple):
    """A compound Poisson process of normal log jumps; intensity per year."""

    intensity: Any
    mean: Any
    sd: Any


@singledispatch
def parts(law: Any) -> tuple[Any, Jumps | None]:
    """The diffusion (BlackScholes or Heston) and the jumps of a law."""
    raise TypeError(f"expected BlackScholes, Merton, Heston or Bates, got {type(law).__name__}")


@parts.register(BlackScholes)
@parts.register(Heston)
def _diffusion(law: Any) -> tuple[Any, None]:
    return law, None


@parts.register(Merton)
def _merton(law: Merton) -> tuple[BlackScholes, Jumps]:
    return BlackScholes(law.sigma), Jumps(law.intensity, law.jump_mean, law.jump_sd)


@parts.register(Bates)
def _bates(law: Bates) -> tuple[Heston, Jumps]:
    return law.heston, Jumps(law.intensity, law.jump_mean, law.jump_sd)


@singledispatch
def _start(diffusion: Any) -> Any:
    """The variance at time zero."""
    return diffusion.v0


@_start.register(BlackScholes)
def _(diffusion: BlackScholes) -> Any:
    return jnp.asarray(diffusion.sigma) ** 2


@singledispatch
def _step(diffusion: Any, scheme: Scheme, variance: Any, dt: Any, z: Any, other: Any) -> Move:
    return scheme.step(diffusion, variance, dt, z, other)


@_step.register(BlackScholes)
def _(diffusion, scheme, variance, dt, z, other) -> Move:
    total = variance * dt
    return Move(diffusion.sigma * jnp.sqrt(dt) * z - 0.5 * total, variance, total)


def _jump(jumps: Jumps | None, key: Any, dt: Any, z: Any) -> tuple[Any, Any, Any]:
    """Sum of the log jumps, its compensator, and the log-likelihood of their number (N, 1)."""
    if jumps is None:
        return jnp.zeros_like(z), 0.0, jnp.zeros_like(z[:, :1])
    rate = jumps.intensity * dt
    # The number is common to a pair; only the sizes are mirrored.
    count = _poisson(jax.random.uniform(key, z[:, :1].shape), jax.lax.stop_gradient(rate))
    positive = rate > 0
    log_rate = jnp.log(jnp.where(positive, rate, 1.0))
    likelihood = jnp.where(positive, count * log_rate - rate - gammaln(count + 1), -rate)
    size = count * jumps.mean + root(count) * jumps.sd * z
    return size, rate * jnp.expm1(jumps.mean + 0.5 * jumps.sd**2), likelihood


def _poisson(uniform: Any, rate: Any) -> Any:
    """Poisson numbers by inversion; NaN where more than 20 are expected."""
    terms = jnp.arange(64.0)
    positive = jnp.where(rate > 0, rate, 1.0)
    mass = jnp.exp(terms * jnp.log(positive) - rate - gammaln(terms + 1))
    count = (uniform[..., None] > jnp.cumsum(mass)).sum(-1).astype(uniform.dtype)
    return jnp.where(rate > 0, jnp.where(rate <= 20, count, jnp.nan), 0.0)


# -- paths --------------------------------------------------------------------------------------


class _State(NamedTuple):
    x: Any
    variance: Any
    integrated: Any
    jumps: Any
    likelihood: Any


@partial(jax.jit, static_argnames=("num_pairs", "scheme", "noise"))
def simulate(
    law: Any,
    key: Any,
    dates: Any,
    num_pairs: int = 10_000,
    scheme: Scheme = QuadraticExponential(),
    noise: Noise = Antithetic(),
) -> Paths:
    """Draw paths.

    Args:
        law: BlackScholes, Merton, Heston or Bates.
        key: of `jax.random`.
        dates: (D,), years, positive and increasing; the paths are kept on these.
        num_pairs: N.
        scheme: discretisation of the variance; a law without one is exact at the dates.
        noise: `Antithetic()` or `Independent()`.

    Returns:
        N pairs on D intervals.
    """
    diffusion, jumps = parts(law)
    times = jnp.concatenate([jnp.zeros(1), jnp.asarray(dates, float)])
    zero = jnp.zeros_like(noise.normals(key, num_pairs))
    start = jnp.broadcast_to(_start(diffusion), zero.shape).astype(zero.dtype)

    @jax.checkpoint
    def small(state: _State, key_dt: tuple) -> tuple[_State, None]:
        key, dt = key_dt
        keys = jax.random.split(key, 4)
        z, other, third = (noise.normals(k, num_pairs) for k in keys[:3])
        move = _step(diffusion, scheme, state.variance, dt, z, other)
        size, drift, likelihood = _jump(jumps, keys[3], dt, third)
        x = state.x + move.shift + size - drift
        later = _State(x, move.variance, state.integrated + move.integrated,
                       state.jumps + size, state.likelihood + likelihood)  # fmt: skip
        return later, None

    def interval(state: _State, key_dt: tuple) -> tuple[_State, _State]:
        key, dt = key_dt
        keys = jax.random.split(key, scheme.substeps)
        state = state._replace(integrated=zero, jumps=zero)
        lengths = jnp.full(scheme.substeps, dt / scheme.substeps)
        state, _ = jax.lax.scan(small, state, (keys, lengths))
        return state, state

    first = _State(zero, start, zero, zero, zero[:, :1])
    keys = jax.random.split(key, len(times) - 1)
    last, kept = jax.lax.scan(interval, first, (keys, jnp.diff(times)))
    likelihood = last.likelihood
    weights = jnp.exp(likelihood - jax.lax.stop_gradient(likelihood))
    variance = jnp.maximum(jnp.concatenate([start[None], kept.variance]), 0.0)
    return Paths(times, jnp.concatenate([zero[None], kept.x]), variance, kept.integrated,
                 kept.jumps, jnp.broadcast_to(weights, zero.shape))  # fmt: skip


def levels(paths: Paths, forwards: Any) -> Any:
    """Paths of the underlying.

    Args:
        paths: of its log over the forward.
        forwards: scalar, or (D + 1,) with the spot first.

    Returns:
        (D + 1, N, P).
    """
    forwards = jnp.broadcast_to(jnp.asarray(forwards), paths.times.shape)
    return forwards[:, None, None] * jnp.exp(paths.log_ratio)
