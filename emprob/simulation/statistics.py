"""Sufficient statistics of the latents, found by looking at the log-joint's values.

Where log p(y, z | params) = <S(z), phi(params)>, with no more than P statistics for whatever
latents, its values at P parameters say all that it says at any others. So a draw z is, to Q, a sum
of P fixed reference draws with signed shares a(z):

    log p(y, z | params) = sum_r a_r(z) log p(y, z_r | params)    for all params,

and the average of a(z) is the average of the statistics. Nothing has to be known of S or phi.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from emprob.model import LatentModel
from emprob.simulation.draws import log_joint, over_atoms
from emprob.types import Atoms, Params

MANY = 48  # draws and parameters among which the statistics are looked for
MOST = 32  # statistics; above, the draws themselves are kept
RANK = 1e-9  # relative singular value that is rounding
EXACT = 1e-6  # of the log-joint's spread over draws


class Reference(NamedTuple):
    """Draws and parameters that span the log-joint.

    Attributes:
        atoms: by site, (R, ...).
        params: by site, (R, ...).
        inverse: (R, R), values at `params` (R,) -> shares of `atoms` (R,).
    """

    atoms: Atoms
    params: Params
    inverse: Array


def values(model: LatentModel, atoms: Atoms, params: Params) -> Array:
    """log p(y, z_r | params_j), (draws, parameters)."""
    each = lambda z: lax.map(lambda p: log_joint(model, p, z), params)  # noqa: E731
    return over_atoms(each, atoms)


def spread_params(model: LatentModel, params: Params, key: Array, num: int) -> Params:
    """Parameters around given ones, at random in unconstrained space, (num, ...)."""
    u = model.unconstrain(params)
    keys = dict(zip(u, jax.random.split(key, len(u)), strict=True))
    move = {k: 0.5 * jax.random.normal(keys[k], (num, *v.shape), v.dtype) for k, v in u.items()}
    return jax.vmap(model.constrain)({k: u[k] + move[k] for k in u})


def number_of_statistics(model: LatentModel, params: Params, atoms: Atoms, key: Array) -> int:
    """How many statistics there are, or 0 where there are too many.

    Args:
        model: with plain integrals.
        params: constrained space.
        atoms: at least MANY + 4 draws by site.
        key: of the parameters that are tried.
    """
    found = np.asarray(_table(model, params, atoms, key))
    table, rest = found[:MANY, :MANY], found[MANY:]
    if not np.isfinite(found).all():
        return 0
    singular = np.linalg.svd(table, compute_uv=False)
    rank = int((singular > RANK * singular[0]).sum())
    if rank > MOST:
        return 0
    shares = np.linalg.lstsq(table.T, rest[:, :MANY].T, rcond=RANK)[0]
    error = np.abs(shares.T @ found[:MANY, MANY:] - rest[:, MANY:]).max()
    return rank if error <= EXACT * (1.0 + np.abs(rest - rest.mean(0)).max()) else 0


@jax.jit
def _table(model: LatentModel, params: Params, atoms: Atoms, key: Array) -> Array:
    points = spread_params(model, params, key, MANY + 4)
    return values(model, {k: v[: MANY + 4] for k, v in atoms.items()}, points)


def reference(model: LatentModel, params: Params, atoms: Atoms, key: Array, num: int) -> Reference:
    """The `num` draws and parameters, of many, whose values are the least alike."""
    points = spread_params(model, params, key, MANY)
    table = values(model, {k: v[:MANY] for k, v in atoms.items()}, points)
    rows = pivots(table, num)
    columns = pivots(table[rows].T, num)
    take = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
    inverse = jnp.linalg.inv(table[rows][:, columns].T)
    return Reference(take(atoms, rows), take(points, columns), inverse)


def pivots(table: Array, num: int) -> Array:
    """Indices of the rows that elimination with pivots takes first, (num,)."""

    def step(left: Array, _: Any) -> tuple[Array, Array]:
        size = (left**2).sum(1)
        index = jnp.argmax(size)
        row = left[index] / jnp.sqrt(size[index])
        left = left - (left @ row)[:, None] * row
        return left.at[index].set(0.0), index

    return lax.scan(step, table, None, length=num)[1]


def shares(model: LatentModel, ref: Reference, atoms: Atoms) -> Array:
    """Mean over draws of the shares of the reference draws that stand for them, (R,)."""
    found = values(model, atoms, ref.params)
    return ref.inverse @ found.mean(0)
