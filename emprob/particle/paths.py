"""What an E-step by particles asks for: paths of the latents, and the evidence."""

from functools import partial
from typing import NamedTuple

import jax
from jax import Array, lax

from emprob.model import LatentModel
from emprob.particle.body import body_of
from emprob.particle.filter import effective_sizes, log_evidence, num_ancestors, run_filter
from emprob.particle.settings import Settings
from emprob.particle.smoother import Drawn, draw_paths, reach_of
from emprob.types import Params


class Paths(NamedTuple):
    """Equally weighted draws of the latents given the data, and what the filter says.

    Attributes:
        atoms: continuous latents by site, (A, T, ...) or (A, ...), as `model.evaluate` takes them.
        discrete: the other latents, likewise.
        log_evidence: log of an unbiased estimate of the evidence, scalar.
        by_series: likewise of each series, (S,); their sum is `log_evidence`.
        log_evidence_variance: of its Monte Carlo error, scalar; NaN with one island.
        ess: (T,), effective sample size of the filter after each step, of the worst series.
        distinct: (T,), particles of each step that the paths go through, of the worst series.
        ancestors: (T,), particles of each step with offspring at the end of the filter, likewise.
    """

    atoms: dict[str, Array]
    discrete: dict[str, Array]
    log_evidence: Array
    by_series: Array
    log_evidence_variance: Array
    ess: Array
    distinct: Array
    ancestors: Array


@partial(jax.jit, static_argnames="settings")
def smooth(
    model: LatentModel, params: Params, key: Array, settings: Settings = Settings()
) -> Paths:
    """Filter, and draw paths backwards; no derivatives.

    Args:
        model: a bound model whose program has one scan.
        params: constrained space.
        key: of `jax.random`.
        settings: how.

    Raises:
        ModelError: the program has a structure that no particle filter here can run.
    """
    model, params = lax.stop_gradient((model, dict(params)))
    body = body_of(model, params)
    reach = reach_of(body, settings.horizon)
    plan = settings.proposal.plan(model, params, body)
    forwards, backwards = jax.random.split(key)
    history = run_filter(body, plan, forwards, settings)
    value, variance = log_evidence(history, settings.num_islands)
    drawn = draw_paths(body, history, backwards, settings.num_paths, reach)
    atoms, discrete = by_kind(model, drawn)
    return Paths(
        atoms, discrete, value.sum(), value, variance.sum(), effective_sizes(history),
        drawn.distinct, num_ancestors(history),
    )  # fmt: skip


def by_kind(model: LatentModel, drawn: Drawn) -> tuple[dict[str, Array], dict[str, Array]]:
    """Continuous and discrete latents of paths."""
    both = {**drawn.entry, **drawn.steps}
    continuous = set(model.structure.continuous)
    atoms = {k: v for k, v in both.items() if k in continuous}
    return atoms, {k: v for k, v in both.items() if k not in continuous}
