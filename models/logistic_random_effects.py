"""Logistic regression with a random intercept: rates that differ between groups.

    b_g ~ Normal(0, tau^2),   y_n | b ~ Binomial(m_n, logit^-1(x_n' beta + b_g(n)))

The integral over b has no closed form. Each group has one b, so it is a one-dimensional integral,
and adaptive Gauss-Hermite quadrature takes it as exactly as wanted: `ep.Laplace(order)`. One node
is Laplace's approximation, which makes tau too small; the table that `by_order` makes shows how
soon more nodes stop to matter.

Data: contagious bovine pleuropneumonia in 15 herds of Ethiopian cattle over four periods (Lesnoff,
Laval, Bonnet, Abdicho, Workalemahu, Kifle, Peyraud, Lancelot and Thiaucourt 2004, Preventive
Veterinary Medicine 64(1); as in Bates et al. 2015, Journal of Statistical Software 67(1)).

Source: Pinheiro and Bates (1995), Journal of Computational and Graphical Statistics 4(1). Priors:
weak.
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


def random_intercept(y: Any, size: Any, x: Any, group: Any, num_groups: int) -> None:
    """Groups whose log-odds differ by a constant.

    Args:
        y: successes (N,); NaN is missing.
        size: trials (N,).
        x: covariates (N, P), a column of ones included.
        group: (N,), integers 0..G-1.
        num_groups: G.
    """
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0).expand([x.shape[1]]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    with numpyro.plate("group", num_groups):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("observation", len(y)):
        numpyro.sample("y", dist.Binomial(size, logits=x @ beta + b[group]), obs=y)


TRUTH = {"beta": np.array([-1.0, 0.8]), "tau": np.array(0.7)}


def simulate(
    key: Any, num_groups: int = 200, num_each: int = 8, truth: dict | None = None
) -> tuple:
    """Draw groups with five trials an observation and one standard normal covariate.

    Args:
        key: a key of `jax.random`, or an integer.
        num_groups: G.
        num_each: observations of a group.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        y (N,), size (N,), x (N, 2), group (N,) and the effects (G,).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    group = np.repeat(np.arange(num_groups), num_each)
    x = np.column_stack([np.ones(len(group)), rng.normal(size=len(group))])
    b = rng.normal(0.0, truth["tau"], num_groups)
    size = np.full(len(group), 5)
    rate = 1 / (1 + np.exp(-(x @ truth["beta"] + b[group])))
    return rng.binomial(size, rate), size, x, group, b


# -- data -----------------------------------------------------------------------------------------

# Herd by herd: (new cases, animals at risk, period).
HERDS = (
    ((2, 14, 1), (3, 12, 2), (4, 9, 3), (0, 5, 4)),
    ((3, 22, 1), (1, 18, 2), (1, 21, 3)),
    ((8, 22, 1), (2, 16, 2), (0, 16, 3), (2, 20, 4)),
    ((2, 10, 1), (0, 10, 2), (2, 9, 3), (0, 6, 4)),
    ((5, 18, 1), (0, 25, 2), (0, 24, 3), (1, 4, 4)),
    ((3, 17, 1), (0, 17, 2), (0, 18, 3), (1, 20, 4)),
    ((8, 16, 1), (1, 10, 2), (3, 9, 3), (0, 5, 4)),
    ((12, 34, 1),),
    ((2, 9, 1), (0, 6, 2), (0, 8, 3), (0, 6, 4)),
    ((1, 22, 1), (1, 22, 2), (0, 18, 3), (2, 22, 4)),
    ((0, 25, 1), (5, 27, 2), (3, 22, 3), (1, 22, 4)),
    ((2, 10, 1), (1, 8, 2), (0, 6, 3), (0, 5, 4)),
    ((1, 21, 1), (2, 24, 2), (0, 19, 3), (0, 23, 4)),
    ((11, 19, 1), (0, 2, 2), (0, 3, 3), (0, 2, 4)),
    ((1, 19, 1), (1, 15, 2), (1, 15, 3), (0, 15, 4)),
)  # fmt: skip


def load() -> pd.DataFrame:
    """The herds: columns incidence, size, herd and period (1 to 4), 56 rows."""
    rows = [
        {"incidence": cases, "size": size, "herd": herd, "period": period}
        for herd, seasons in enumerate(HERDS)
        for cases, size, period in seasons
    ]
    return pd.DataFrame(rows)


def design(period: Any) -> np.ndarray:
    """A column of ones and a column for each period after the first (N, 4)."""
    period = np.asarray(period)[:, None]
    return np.concatenate([np.ones_like(period), period == np.array([2, 3, 4])], 1).astype(float)


def arguments(frame: pd.DataFrame) -> tuple:
    """The arguments of the program for a table like that of `load`."""
    herd = frame["herd"].to_numpy()
    return (
        frame["incidence"].to_numpy(), frame["size"].to_numpy(), design(frame["period"]), herd,
        int(herd.max()) + 1,
    )  # fmt: skip


# -- the main job ---------------------------------------------------------------------------------


def by_order(args: tuple, orders: Sequence[int] = (1, 3, 7, 15, 25)) -> pd.DataFrame:
    """Maximum likelihood with more and more nodes."""
    model, rows = ep.bind(random_intercept, *args, prior=False), {}
    for order in orders:
        found = ep.fit(model, ep.EM(ep.Laplace(order)), max_steps=3000, progress=False)
        names = [f"beta[{j}]" for j in range(args[2].shape[1])]
        rows[order] = {
            "log-likelihood": found.log_likelihood, "tau": found.params["tau"],
            **dict(zip(names, found.params["beta"])), "status": found.status.word,
        }  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis("nodes")


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Maximum likelihood by order, then MAP beside NUTS; returns the latter fit."""
    p = _report.parser("Random intercepts of herds", num_starts=1)
    args = p.parse_args(argv)
    opt = _report.options(args)
    frame = load()
    _report.heading("Maximum likelihood, by number of nodes")
    _report.show(by_order(arguments(frame), (1, 7) if args.quick else (1, 3, 7, 15, 25)), 7)
    model = ep.bind(random_intercept, *arguments(frame))
    _report.heading("The plan, with the prior, as NUTS has it")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    name = "logistic_random_effects"
    _report.say_where(
        [
            _report.save_figure(draw(found, frame), opt.out / f"{name}.png"),
            _report.save_draws(source.to_arviz(), opt.out / f"{name}.nc"),
        ]
    )
    return found


def draw(found: ep.Fit, frame: pd.DataFrame) -> Any:
    """Each herd's own rate beside the rate that borrows from the other herds."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    counts = frame.groupby("herd")[["incidence", "size"]].sum()
    own = counts["incidence"] / counts["size"]
    b = found.posterior["b"]
    sd = np.sqrt(b.variance)
    order = np.argsort(b.mean)
    figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
    ax.errorbar(
        range(len(own)), b.mean[order], 1.96 * sd[order], fmt="o", color=COLORS[0], capsize=3,
        label="herd effect, 95 % given the parameters",
    )  # fmt: skip
    ax.axhline(0, color="0.7", linewidth=0.8)
    ax.set_xticks(range(len(own)), [f"{i + 1}\n{own[i]:.0%}" for i in order])
    ax.set(xlabel="herd, and its share of new cases", ylabel="effect on the log-odds")
    ax.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
