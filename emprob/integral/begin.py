"""Where the search for the mode of continuous latents begins: at values that the user gives."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from emprob.estep.laplace import Laplace
from emprob.integral.integral import Integral, IntegralData, values_of
from emprob.model import LatentModel
from emprob.validate import check_parameter


def begun(
    model: LatentModel, init: Mapping[str, Any] | None
) -> tuple[LatentModel, Mapping[str, Any] | None]:
    """The model with its latents beginning at what `init` has for them, and the rest of `init`.

    A search from afar may end at another mode than the one that is known from a simpler model, or
    from a neighbouring day. It begins anew at these values at whatever parameters: an objective
    does not depend on the way that a run takes.

    Args:
        model: bound, with the rules of integration of the fit.
        init: by site, constrained; latents that are integrated around their mode, and parameters.

    Raises:
        ModelError: a wrong shape, or outside the support.
    """
    if not isinstance(init, Mapping):
        return model, init
    pairs = zip(model.structure.integrals, model.data.integrals, strict=True)
    data = tuple(_moved(group, arrays, init) for group, arrays in pairs)
    latents = {s for g in model.structure.integrals if _searched(g) for s in g.sites}
    rest = {k: v for k, v in init.items() if k not in latents}
    return replace(model, data=replace(model.data, integrals=data)), rest or None


def _searched(group: Integral) -> bool:
    return isinstance(group.rule, Laplace) and not group.quadratic


def _moved(group: Integral, data: IntegralData, init: Mapping[str, Any]) -> IntegralData:
    given = {k: v for k, v in init.items() if k in group.sites}
    if not given or not _searched(group):
        return data
    values = values_of(group, data, data.centre)
    for name, value in given.items():
        shape, support = np.shape(values[name]), getattr(data.transforms[name], "codomain", None)
        values[name] = jnp.asarray(check_parameter("init", name, value, shape, support))
    inside = {k: jnp.asarray(data.transforms[k].inv(v)) for k, v in values.items()}
    return data._replace(centre=group.block.pack(inside))
