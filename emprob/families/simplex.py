"""Several outcomes: categorical and multinomial."""

import jax
import jax.numpy as jnp

from emprob.families.family import Argument, Family, Natural
from emprob.families.numerics import floor, log, log_factorial, real, uses_logits
from emprob.families.views import SIMPLEX


def _simplex_natural(d, origin):
    log_probs = floor(jax.nn.log_softmax(real(d.logits), -1)) if uses_logits(d) else log(d.probs)
    return Natural(log_probs, jnp.zeros(log_probs.shape[:-1], log_probs.dtype))


def _simplex_probs(d):
    return jax.nn.softmax(real(d.logits), -1) if uses_logits(d) else real(d.probs)


def _one_hot(d, x, origin):
    values = real(d.logits if uses_logits(d) else d.probs)
    return jax.nn.one_hot(jnp.asarray(x).astype(int), values.shape[-1], dtype=values.dtype)


def _categorical_base(d, x):
    """An index out of range has no one-hot column: it must not pass as probability one."""
    size = jnp.shape(d.logits if uses_logits(d) else d.probs)[-1]
    inside = (jnp.asarray(x) >= 0) & (jnp.asarray(x) < size)
    return log(inside.astype(float))


def _log_multinomial(d, x):
    x = real(x)
    return log_factorial(real(d.total_count)) - log_factorial(x).sum(-1)


_SIMPLEX_ARGUMENT = {
    "probs": Argument(
        lambda S, n, d, c: (S, S.sum(-1, keepdims=True)), _simplex_probs, SIMPLEX, event_dim=1
    )
}
CATEGORICAL = Family(
    "categorical", _one_hot, _simplex_natural, _categorical_base, _SIMPLEX_ARGUMENT
)
MULTINOMIAL = Family(
    "multinomial",
    lambda d, x, origin: real(x),
    _simplex_natural,
    _log_multinomial,
    _SIMPLEX_ARGUMENT,
    constants=("total_count",),
)
