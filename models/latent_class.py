"""Latent classes: answers to several questions are independent given the class.

    z_n ~ weights,   y_nj | z_n = k ~ Categorical(probs[k, j])

Source: Lazarsfeld and Henry (1968), Latent Structure Analysis; Goodman (1974), Biometrika 61(2),
for the data of Stouffer and Toby (1951), American Journal of Sociology 56(5): 216 respondents, four
dilemmas between friendship and duty. Goodman's two classes have a likelihood-ratio statistic of
2.720 on 6 degrees of freedom; it comes out with `ep.bind(..., prior=False)`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

import emprob as ep
from emprob.models import _report

ITEMS = ("passenger", "drama critic", "doctor", "board of directors")
# Counts of the patterns 0000, 0001, ..., 1111; 0 is the universalistic answer (duty).
PATTERNS = (42, 23, 6, 25, 6, 24, 7, 38, 1, 4, 1, 6, 2, 9, 2, 20)


def latent_class(answers: Any, num_classes: int = 2, num_answers: int = 2) -> None:
    """Every class has its own law of the answers to each item.

    Args:
        answers: (N, J), integers 0..C-1; NaN is an item that was not answered.
        num_classes: K.
        num_answers: C.
    """
    n, items = answers.shape
    weights = numpyro.sample("weights", dist.Dirichlet(2 * jnp.ones(num_classes)))
    # Not the plate of the answers: what shares a plate with data is latent by rule.
    with numpyro.plate("class", num_classes, dim=-2), numpyro.plate("question", items, dim=-1):
        probs = numpyro.sample("probs", dist.Dirichlet(1.5 * jnp.ones(num_answers)))
    with numpyro.plate("respondent", n, dim=-2):
        z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        with numpyro.plate("item", items, dim=-1):
            law = dist.Categorical(probs[z, jnp.arange(items)])
            numpyro.sample("answer", law, obs=answers)


TRUTH = {
    "weights": np.array([0.6, 0.4]),
    "probs": np.stack(
        [
            np.stack([[0.9, 0.8, 0.85, 0.7], [0.1, 0.2, 0.15, 0.3]], -1),
            np.stack([[0.3, 0.2, 0.35, 0.1], [0.7, 0.8, 0.65, 0.9]], -1),
        ]
    ),
}


def simulate(key: Any, num_observations: int = 1000, truth: dict | None = None) -> tuple:
    """Draw answers.

    Args:
        key: a key of `jax.random`, or an integer.
        num_observations: N.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        answers (N, J) and the classes (N,).
    """
    truth = TRUTH if truth is None else truth
    first, second = jax.random.split(jax.random.key(key) if isinstance(key, int) else key)
    z = jax.random.choice(first, len(truth["weights"]), (num_observations,), p=truth["weights"])
    z = np.asarray(z)
    answers = jax.random.categorical(second, jnp.log(truth["probs"][z]), axis=-1)
    return np.asarray(answers), z


def load() -> pd.DataFrame:
    """Stouffer and Toby's answers, one row per respondent (216, 4)."""
    patterns = [[(i >> s) & 1 for s in (3, 2, 1, 0)] for i in range(16)]
    return pd.DataFrame(np.repeat(patterns, PATTERNS, axis=0), columns=list(ITEMS))


def likelihood_ratio(found: ep.Fit, answers: np.ndarray) -> float:
    """Twice the distance of the log-likelihood to that of free pattern probabilities."""
    counts = np.unique(answers, axis=0, return_counts=True)[1]
    return float(2 * ((counts * np.log(counts / counts.sum())).sum() - found.log_likelihood))


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """One to three classes, then MAP beside NUTS with two; returns the latter fit."""
    p = _report.parser("Latent classes of four dilemmas", num_starts=10)
    opt = _report.options(p.parse_args(argv))
    frame = load()
    answers = frame.to_numpy()
    _report.heading("Maximum likelihood")
    rows = {}
    for k in (1, 2) if opt.num_chains == 1 else (1, 2, 3):
        found = _report.fit(ep.bind(latent_class, answers, k, prior=False), opt)
        rows[f"{k} classes"] = {
            "log-likelihood": found.log_likelihood, "parameters": found.df, "BIC": found.bic,
            "G2": likelihood_ratio(found, answers), "status": found.status.word,
        }  # fmt: skip
    _report.show(pd.DataFrame(rows).T, 7)
    model = ep.bind(latent_class, answers, 2)
    _report.heading("The plan, with the prior, as NUTS has it")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found), opt.out / "latent_class.png"),
            _report.save_draws(source.to_arviz(), opt.out / "latent_class.nc"),
        ]
    )
    return found


def draw(found: ep.Fit) -> Any:
    """The probability of the universalistic answer to each item, by class, with 95 % intervals."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    rows = found.summary()
    for k in np.argsort(found.params["probs"][:, 0, 0]):
        labels = [f"probs[{k},{j},0]" for j in range(len(ITEMS))]
        middle = rows.loc[labels, "estimate"].to_numpy()
        errors = np.abs(rows.loc[labels, ["lower", "upper"]].to_numpy().T - middle)
        ax.errorbar(
            np.arange(len(ITEMS)) + 0.08 * (k - 0.5), middle, errors, color=COLORS[k], marker="o",
            capsize=3, label=f"class of {found.params['weights'][k]:.0%}",
        )  # fmt: skip
    ax.set_xticks(range(len(ITEMS)), ITEMS)
    ax.set_ylim(0, 1.03)
    ax.set_ylabel("probability of the universalistic answer")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
