"""Ideal points: where delegates stand, from how they vote.

    theta_i ~ Normal(0, 1)
    for or against:      P(y_ij = 1) = logit^-1(popularity_j + discrimination_j theta_i)
    with abstentions:    u_ij = popularity_j + discrimination_j theta_i + logistic noise,
                         against if u < -width_j, for if u > width_j, else abstain

An abstention in the second is a ballot of its own, cast by those who are nearly indifferent: the
governance of decentralised organisations counts it, as the United Nations do. A ballot that was not
cast is NaN and drops out of the likelihood, which is right if who stays away does not depend on how
they would have voted, given where they stand. Positions are determined up to their sign.

Source: Clinton, Jackman and Rivers (2004), American Political Science Review 98(2), for votes;
Bailey, Strezhnev and Voeten (2017), Journal of Conflict Resolution 61(2), for abstentions; Imai, Lo
and Olmsted (2016), American Political Science Review 110(4), for EM. Priors: as there, weak.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

import emprob as ep
from emprob.models import _report
from emprob.models._draws import generator

AGAINST, ABSTAIN, FOR = 0.0, 1.0, 2.0


def for_or_against(votes: Any) -> None:
    """Votes with two answers.

    Args:
        votes: (N, J), 1 for, 0 against; NaN is no vote.
    """
    n, j = votes.shape
    discrimination, popularity = _proposals(j)
    with numpyro.plate("delegate", n, dim=-2):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("proposal", j, dim=-1):
            law = dist.Bernoulli(logits=popularity + discrimination * theta)
            numpyro.sample("vote", law, obs=votes)


def with_abstentions(votes: Any) -> None:
    """Votes with three answers, abstention in the middle.

    Args:
        votes: (N, J), `AGAINST`, `ABSTAIN` or `FOR`; NaN is no ballot.
    """
    n, j = votes.shape
    discrimination, popularity = _proposals(j)
    width = numpyro.sample("width", dist.HalfNormal(1.0).expand([j]).to_event(1))
    cuts = jnp.stack([-width, width], -1)
    with numpyro.plate("delegate", n, dim=-2):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("proposal", j, dim=-1):
            law = dist.OrderedLogistic(popularity + discrimination * theta, cuts)
            numpyro.sample("vote", law, obs=votes)


def _proposals(num: int) -> tuple:
    discrimination = numpyro.sample(
        "discrimination", dist.Normal(0.0, 2.0).expand([num]).to_event(1)
    )
    popularity = numpyro.sample("popularity", dist.Normal(0.0, 2.0).expand([num]).to_event(1))
    return discrimination, popularity


def simulate(
    key: Any, num_delegates: int = 150, num_proposals: int = 40, turnout: float = 0.6
) -> tuple:
    """Draw votes of an organisation whose proposals mostly pass and in which many stay away.

    Args:
        key: a key of `jax.random`, or an integer.
        num_delegates: N.
        num_proposals: J.
        turnout: mean share of ballots that are cast; some delegates vote always, some hardly ever.

    Returns:
        votes (N, J), as `with_abstentions` takes them, and the truth by site, theta (N,) included.
    """
    rng = generator(key)
    truth = {
        "theta": rng.normal(size=num_delegates),
        "discrimination": rng.normal(0.0, 1.5, num_proposals),
        "popularity": rng.normal(1.0, 1.0, num_proposals),
        "width": rng.uniform(0.2, 0.8, num_proposals),
    }
    u = truth["popularity"] + np.outer(truth["theta"], truth["discrimination"])
    u = u + rng.logistic(size=u.shape)
    votes = np.where(u > truth["width"], FOR, np.where(u < -truth["width"], AGAINST, ABSTAIN))
    diligence = rng.beta(2 * turnout, 2 * (1 - turnout), num_delegates)
    present = rng.uniform(size=votes.shape) < diligence[:, None]
    return np.where(present, votes, np.nan), truth


def without_abstentions(votes: np.ndarray) -> np.ndarray:
    """The same votes for `for_or_against`: abstentions are no votes."""
    return np.select([votes == FOR, votes == AGAINST], [1.0, 0.0], np.nan)


def positions(found: ep.Fit, like: np.ndarray | None = None) -> pd.DataFrame:
    """Each delegate's position: posterior mean and standard deviation given the estimates.

    Args:
        found: a fit of either program.
        like: (N,) positions to be oriented by; None: as the fit has them.
    """
    theta = found.posterior["theta"]
    mean, sd = np.ravel(theta.mean), np.sqrt(np.ravel(theta.variance))
    if like is not None:
        mean = mean * np.sign(mean @ (like - np.mean(like)))
    return pd.DataFrame({"position": mean, "sd": sd})


def recovery(found: ep.Fit, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """How well the positions are found: correlation with the truth, and share inside 1.96 sd."""
    table = positions(found, truth["theta"])
    gap = np.abs(table["position"] - truth["theta"]) / table["sd"]
    return {
        "correlation": float(np.corrcoef(table["position"], truth["theta"])[0, 1]),
        "within 95 %": float((gap < 1.96).mean()), "mean sd": float(table["sd"].mean()),
    }  # fmt: skip


# -- the main job ---------------------------------------------------------------------------------


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Positions with and without the abstentions, beside the truth and NUTS; returns the fit."""
    p = _report.parser("Positions of delegates", num_starts=1, num_samples=500)
    args = p.parse_args(argv)
    opt = _report.options(args)
    votes, truth = simulate(opt.seed, *((40, 6) if args.quick else (150, 40)))
    model = ep.bind(with_abstentions, votes)
    _report.heading(f"{np.isfinite(votes).sum()} ballots of {len(votes)} delegates: the plan")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary().head(12))
    _report.heading("Positions beside the truth")
    rows = {"abstentions counted": recovery(found, truth)}
    if not args.quick:
        binary = ep.bind(for_or_against, without_abstentions(votes))
        rows["abstentions left out"] = recovery(ep.fit(binary, progress=False), truth)
    _report.show(pd.DataFrame(rows).T)
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, truth), opt.out / "ideal_points.png"),
            _report.save_draws(source.to_arviz(), opt.out / "ideal_points.nc"),
        ]
    )
    return found


def draw(found: ep.Fit, truth: dict[str, np.ndarray]) -> Any:
    """Positions, with two standard deviations each way, and what divides the delegates."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    table = positions(found, truth["theta"])
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    axes[0].errorbar(
        truth["theta"], table["position"], 2 * table["sd"], fmt=".", color=COLORS[0],
        ecolor="0.8", elinewidth=0.8,
    )  # fmt: skip
    axes[0].axline((0, 0), slope=1, color="0.5", linewidth=0.8)
    axes[0].set(xlabel="true position", ylabel="estimate")
    sign = np.sign(np.ravel(found.posterior["theta"].mean) @ truth["theta"])
    axes[1].plot(
        truth["discrimination"], sign * found.params["discrimination"], ".", color=COLORS[1]
    )
    axes[1].axline((0, 0), slope=1, color="0.5", linewidth=0.8)
    axes[1].set(xlabel="true discrimination of a proposal", ylabel="estimate")
    return figure


if __name__ == "__main__":
    main()
