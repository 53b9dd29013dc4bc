"""Item response: one ability a person, and how each question depends on it.

    theta_i ~ Normal(0, 1)
    one parameter:   P(y_ij = 1) = logit^-1(slope (theta_i - difficulty_j))
    two parameters:  P(y_ij = 1) = logit^-1(intercept_j + slope_j theta_i)

Rasch's model is the first with `fixed={"slope": 1.0}`. The ability is integrated out by adaptive
Gauss-Hermite quadrature (marginal maximum likelihood). A question that somebody was not asked is
NaN and drops out of the likelihood.

Data: section 6 of the Law School Admission Test, 1000 people and five questions, as the counts of
the 32 patterns of answers (Bock and Lieberman 1970, Psychometrika 35(2)).

Source: Rasch (1960); Birnbaum (1968), in Lord and Novick, Statistical Theories of Mental Test
Scores; Bock and Aitkin (1981), Psychometrika 46(4), for EM. Priors: weak; abilities and slopes of
unlike sign are ruled out by slope > 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

import emprob as ep
from emprob.models import _report
from emprob.models._draws import generator

# Counts of the patterns 00000, 00001, ..., 11111.
PATTERNS = (
    3, 6, 2, 11, 1, 1, 3, 4, 1, 8, 0, 16, 0, 3, 2, 15,
    10, 29, 14, 81, 3, 28, 15, 80, 16, 56, 21, 173, 11, 61, 28, 298,
)  # fmt: skip


def one_parameter(answers: Any) -> None:
    """Questions that differ in difficulty only.

    Args:
        answers: (N, J), 0 or 1; NaN is a question that was not asked.
    """
    slope = numpyro.sample("slope", dist.LogNormal(0.0, 1.0))
    difficulty = numpyro.sample(
        "difficulty", dist.Normal(0.0, 3.0).expand([answers.shape[1]]).to_event(1)
    )
    _answers(answers, lambda theta: slope * (theta - difficulty))


def two_parameter(answers: Any) -> None:
    """Questions that differ in difficulty and in how well they tell abilities apart.

    Args:
        answers: (N, J), 0 or 1; NaN is a question that was not asked.
    """
    items = answers.shape[1]
    slope = numpyro.sample("slope", dist.LogNormal(0.0, 1.0).expand([items]).to_event(1))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 3.0).expand([items]).to_event(1))
    numpyro.deterministic("difficulty", -intercept / slope)
    _answers(answers, lambda theta: intercept + slope * theta)


def _answers(answers: Any, logits: Any) -> None:
    n, items = answers.shape
    with numpyro.plate("person", n, dim=-2):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("item", items, dim=-1):
            numpyro.sample("answer", dist.Bernoulli(logits=logits(theta)), obs=answers)


TRUTH = {
    "slope": np.array([0.8, 1.5, 1.0, 2.0, 0.6, 1.2]),
    "intercept": np.array([1.5, -0.5, 0.0, 1.0, -1.0, 0.5]),
}


def simulate(
    key: Any, num_people: int = 1000, missing: float = 0.0, truth: dict | None = None
) -> tuple:
    """Draw answers from the model with two parameters, some of them not asked for.

    Args:
        key: a key of `jax.random`, or an integer.
        num_people: N.
        missing: share of the questions that is not asked, at random.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        answers (N, J) and the abilities (N,).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    theta = rng.normal(size=num_people)
    rate = 1 / (1 + np.exp(-(truth["intercept"] + truth["slope"] * theta[:, None])))
    answers = (rng.uniform(size=rate.shape) < rate).astype(float)
    return with_missing(answers, missing, rng), theta


def with_missing(answers: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The answers with a share of the cells, drawn at random, replaced by NaN."""
    return np.where(rng.uniform(size=answers.shape) < share, np.nan, answers)


def load() -> pd.DataFrame:
    """Section 6 of the test: one row a person (1000, 5), 1 is right."""
    patterns = [[(i >> s) & 1 for s in (4, 3, 2, 1, 0)] for i in range(32)]
    columns = [f"question {j}" for j in range(1, 6)]
    return pd.DataFrame(np.repeat(patterns, PATTERNS, axis=0), columns=columns).astype(float)


# -- the main job ---------------------------------------------------------------------------------


def by_model(answers: np.ndarray, opt: _report.Options) -> pd.DataFrame:
    """Rasch, one and two parameters by maximum likelihood."""
    cases = {
        "Rasch": (one_parameter, {"slope": 1.0}), "one parameter": (one_parameter, None),
        "two parameters": (two_parameter, None),
    }  # fmt: skip
    rows = {}
    for name, (program, fixed) in cases.items():
        model = ep.bind(program, answers, prior=False, fixed=fixed)
        found = ep.fit(model, key=opt.seed, max_steps=3000, progress=False)
        rows[name] = {
            "log-likelihood": found.log_likelihood, "parameters": found.df, "BIC": found.bic,
            "status": found.status.word,
        }  # fmt: skip
    return pd.DataFrame(rows).T


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Three models by maximum likelihood; two parameters by MAP beside NUTS, with 20 % missing."""
    p = _report.parser("Item response: the Law School Admission Test", num_starts=1)
    args = p.parse_args(argv)
    opt = _report.options(args)
    answers = load().to_numpy()
    if not args.quick:
        _report.heading("Maximum likelihood")
        _report.show(by_model(answers, opt), 8)
    some = with_missing(answers, 0.2, np.random.default_rng(opt.seed))
    model = ep.bind(two_parameter, some)
    _report.heading("Two parameters, a fifth of the answers taken away: the plan")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found), opt.out / "item_response.png"),
            _report.save_draws(source.to_arviz(), opt.out / "item_response.nc"),
        ]
    )
    return found


def draw(found: ep.Fit) -> Any:
    """How the chance of a right answer grows with ability, by question, and the abilities."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    p, theta = found.params, found.posterior["theta"]
    grid = np.linspace(-4, 4, 200)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for j, (a, b) in enumerate(zip(p["slope"], p["intercept"])):
        rate = 1 / (1 + np.exp(-(b + a * grid)))
        axes[0].plot(grid, rate, color=COLORS[j % len(COLORS)], label=f"question {j + 1}")
    axes[0].set(xlabel="ability", ylabel="chance of a right answer", ylim=(0, 1))
    axes[0].legend(frameon=False)
    mean = np.ravel(theta.mean)
    order = np.argsort(mean)
    sd = np.sqrt(np.ravel(theta.variance))[order]
    axes[1].fill_between(
        range(len(mean)), mean[order] - 2 * sd, mean[order] + 2 * sd, color=COLORS[0], alpha=0.25
    )
    axes[1].plot(mean[order], color=COLORS[0])
    axes[1].set(xlabel="people by ability", ylabel="ability, two standard deviations each way")
    return figure


if __name__ == "__main__":
    main()
