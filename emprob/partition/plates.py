"""The log-partition of a program with plates and chains, by variable elimination.

The plated sum-product of Obermeyer et al. (2019), "Tensor variable elimination for plated factor
graphs", with one more rule: the time axis of a scan is a plate whose variables are eliminated by a
chain recursion. Pure array code. What "eliminate" means is a parameter (`Reduce`): with
log-sum-exp the gradient of the result in a factor is its posterior weight; with the maximum, the
most likely configuration; with a sampled weight, an exact draw from the posterior.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from emprob.partition.chains import eliminate_chains
from emprob.partition.factors import Factor, Layout, eliminate, sum_plates
from emprob.partition.reduce import Reduce, log_sum_exp


def log_partition(factors: Sequence[Factor], layout: Layout, reduce: Reduce = log_sum_exp) -> Array:
    """log of the sum over all variables of exp(sum of factors), a scalar.

    Raises:
        ValueError: if the plates cannot be eliminated one after the other.
    """
    total = jnp.zeros(())
    todo = list(factors)
    carried = {s.following for c in layout.chains.values() for s in c.slots}
    while todo:
        leaf = max((f.plates for f in todo), key=len)
        here = [f for f in todo if f.plates == leaf]
        todo = [f for f in todo if f.plates != leaf]
        local = [d for d, plates in layout.variables.items() if plates == leaf]
        here = eliminate(here, [d for d in local if d not in carried], reduce)
        for time in leaf & set(layout.chains):
            here = eliminate_chains(here, layout, time, leaf, reduce)
        for factor in here:
            summed = sum_plates(factor, layout)
            if summed.plates or any(n > 1 for n in summed.array.shape):
                todo.append(summed)
            else:
                total = total + summed.array.reshape(())
        if todo and max((f.plates for f in todo), key=len) == leaf:
            total, todo = _eliminate_global(total, todo, layout, leaf, reduce)
    return total


def _eliminate_global(total, todo, layout, leaf, reduce):
    if leaf:
        raise ValueError(
            f"plates {sorted(leaf)} cannot be eliminated: two latents of different plates meet in "
            "one factor, and neither plate contains the other."
        )
    here = eliminate(todo, list(layout.variables), reduce)
    return total + sum(f.array.reshape(()) for f in here), []
