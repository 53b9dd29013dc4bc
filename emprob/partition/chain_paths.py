"""What a filter sees of a discrete Markov chain: exact, in log-space, one pass."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from emprob.partition.chain import canonical
from emprob.partition.chain_log import log_inputs, log_sum_exp, log_table


def filter_chain(
    log_init: Array, log_trans: Array, log_emit: Array, active: Array | None = None
) -> tuple[Array, Array]:
    """Filtered state probabilities and one-step-ahead predictive densities, without the future.

    ``log_filtered[t] = log p(z_t | x_0..x_t)``, ``log_predictive[t] = log p(x_t | x_0..x_{t-1})``,
    both given also whatever evidence ``log_init`` holds. It need not be normalised; its mass is
    not counted, so that ``logsumexp(log_init) + sum(log_predictive)`` is the log-partition.

    Args:
        log_init: log-message over the state before the first step, its evidence included,
            (K,) or (K, B).
        log_trans: as for ``chain_factor``.
        log_emit: as for ``chain_factor``.
        active: as for ``chain_factor``.

    Returns:
        log_filtered (T, K) or (T, K, B), and log_predictive (T,) or (T, B). From the first
        impossible observation on both are -inf.

    Raises:
        ValueError: shapes that do not fit together.

    Source: Hamilton (1989), Econometrica 57, the basic filter, eqs. 4.5-4.9.
    """
    if log_init.shape != log_emit.shape[1:]:
        raise ValueError(
            f"log_init: expected {log_emit.shape[1:]} beside log_emit {log_emit.shape}, "
            f"got {log_init.shape}; one entry per state (and sequence) is needed."
        )
    table, emit, live = canonical(log_trans, log_emit, active)

    def step(log_state, xs):
        log_density, step_table, flag = xs
        joint = log_state[:, None] + log_table(table, step_table, flag)
        joint = log_sum_exp(joint, 0) + log_density
        log_norm = log_sum_exp(joint, 0)
        log_state = joint - jnp.where(jnp.isneginf(log_norm), 0.0, log_norm)
        return log_state, (log_state, log_norm)

    start = log_init.reshape(emit.shape[1:])
    mass = log_sum_exp(start, 0)
    start = start - jnp.where(jnp.isneginf(mass), 0.0, mass)
    _, (filtered, predictive) = lax.scan(step, start, log_inputs(table, emit, live))
    return filtered.reshape(log_emit.shape), predictive.reshape(
        log_emit.shape[:1] + log_emit.shape[2:]
    )
