"""Random effects: groups that differ, in level or in slope, with the variances estimated.

    y_n = mu + b_g(n) + e_n,                                b_j ~ Normal(0, tau^2)
    y_n = beta_0 + b_g(n),0 + (beta_1 + b_g(n),1) x_n + e_n,    b_j ~ Normal(0, D R D)

with e_n ~ Normal(0, sigma^2), D = diag(sd) and R a correlation matrix. The effects b are integrated
out exactly, so the objective is that of maximum likelihood in lme4 (`REML = FALSE`) with
`ep.bind(..., prior=False)`.

Data: how reaction time grows with days of little sleep (Belenky et al. 2003, Journal of Sleep
Research 12(1); as in Bates et al. 2015, with days 0 to 9), and the yield of batches of dyestuff
(Davies and Goldsmith 1972, Statistical Methods in Research and Production, table 6.1), beside
simulated yields in which the batches differ less than chance would make them (Box and Tiao 1973,
Bayesian Inference in Statistical Analysis, section 5.1.2): there the variance between batches is 0.

Source: Laird and Ware (1982), Biometrics 38(4); Bates, Maechler, Bolker and Walker (2015), Journal
of Statistical Software 67(1). Priors: weak, in units of the spread of y; Lewandowski, Kurowicka and
Joe (2009), Journal of Multivariate Analysis 100(9), for the correlation.
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


def random_intercept(y: Any, group: Any, num_groups: int) -> None:
    """Groups that differ in level.

    Args:
        y: (N,); NaN is missing.
        group: (N,), integers 0..J-1.
        num_groups: J.
    """
    center, spread = jnp.nanmean(y), jnp.nanstd(y)
    mu = numpyro.sample("mu", dist.Normal(center, 10 * spread))
    tau = numpyro.sample("tau", dist.HalfNormal(2 * spread))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2 * spread))
    with numpyro.plate("group", num_groups):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("observation", len(y)):
        numpyro.sample("y", dist.Normal(mu + b[group], sigma), obs=y)


def random_slopes(y: Any, x: Any, group: Any, num_groups: int) -> None:
    """Groups that differ in level and slope, and the two are correlated.

    Args:
        y: (N,); NaN is missing.
        x: (N,).
        group: (N,), integers 0..J-1.
        num_groups: J.
    """
    beta, sd, sigma = _line(y, x)
    R = numpyro.sample("R", dist.LKJCholesky(2, 2.0))
    numpyro.deterministic("correlation", R[..., 1, 0])
    with numpyro.plate("group", num_groups):
        b = numpyro.sample(
            "b", dist.MultivariateNormal(jnp.zeros(2), scale_tril=sd[..., :, None] * R)
        )
    _observe(y, x, beta, b[group], sigma)


def uncorrelated_slopes(y: Any, x: Any, group: Any, num_groups: int) -> None:
    """The same with R = I."""
    beta, sd, sigma = _line(y, x)
    with numpyro.plate("group", num_groups):
        b = numpyro.sample("b", dist.Normal(jnp.zeros(2), sd).to_event(1))
    _observe(y, x, beta, b[group], sigma)


def _line(y: Any, x: Any) -> tuple:
    """The common line and the standard deviations, level first."""
    spread = jnp.nanstd(y)
    scale = spread / jnp.stack([jnp.ones(()), jnp.std(x)])
    center = jnp.stack([jnp.nanmean(y), jnp.zeros(())])
    beta = numpyro.sample("beta", dist.Normal(center, 10 * scale).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(2 * scale).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2 * spread))
    return beta, sd, sigma


def _observe(y: Any, x: Any, beta: Any, b: Any, sigma: Any) -> None:
    line = beta + b
    with numpyro.plate("observation", len(y)):
        numpyro.sample("y", dist.Normal(line[..., 0] + line[..., 1] * x, sigma), obs=y)


TRUTH = {
    "beta": np.array([250.0, 10.0]), "sd": np.array([25.0, 6.0]), "correlation": np.array(0.3),
    "sigma": np.array(25.0),
}  # fmt: skip


def simulate(
    key: Any, num_groups: int = 100, num_each: int = 10, truth: dict | None = None
) -> tuple:
    """Draw groups of equal size from the model with slopes, x = 0, 1, ... in each.

    Args:
        key: a key of `jax.random`, or an integer.
        num_groups: J.
        num_each: observations of a group.
        truth: parameters by site, the correlation as a number; `TRUTH` by default.

    Returns:
        y (N,), x (N,), group (N,) and the effects (J, 2).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    R = np.array([[1.0, truth["correlation"]], [truth["correlation"], 1.0]])
    root = truth["sd"][:, None] * np.linalg.cholesky(R)
    b = rng.normal(size=(num_groups, 2)) @ root.T
    group = np.repeat(np.arange(num_groups), num_each)
    x = np.tile(np.arange(float(num_each)), num_groups)
    line = truth["beta"] + b[group]
    y = line[:, 0] + line[:, 1] * x + truth["sigma"] * rng.normal(size=x.shape)
    return y, x, group, b


# -- data -----------------------------------------------------------------------------------------

# Average reaction time in milliseconds, days 0 to 9, by subject.
REACTIONS = {
    308: (249.56, 258.7047, 250.8006, 321.4398, 356.8519, 414.6901, 382.2038, 290.1486, 430.5853,
          466.3535),
    309: (222.7339, 205.2658, 202.9778, 204.707, 207.7161, 215.9618, 213.6303, 217.7272, 224.2957,
          237.3142),
    310: (199.0539, 194.3322, 234.32, 232.8416, 229.3074, 220.4579, 235.4208, 255.7511, 261.0125,
          247.5153),
    330: (321.5426, 300.4002, 283.8565, 285.133, 285.7973, 297.5855, 280.2396, 318.2613, 305.3495,
          354.0487),
    331: (287.6079, 285, 301.8206, 320.1153, 316.2773, 293.3187, 290.075, 334.8177, 293.7469,
          371.5811),
    332: (234.8606, 242.8118, 272.9613, 309.7688, 317.4629, 309.9976, 454.1619, 346.8311,
          330.3003, 253.8644),
    333: (283.8424, 289.555, 276.7693, 299.8097, 297.171, 338.1665, 332.0265, 348.8399, 333.36,
          362.0428),
    334: (265.4731, 276.2012, 243.3647, 254.6723, 279.0244, 284.1912, 305.5248, 331.5229,
          335.7469, 377.299),
    335: (241.6083, 273.9472, 254.4907, 270.8021, 251.4519, 254.6362, 245.4523, 235.311, 235.7541,
          237.2466),
    337: (312.3666, 313.8058, 291.6112, 346.1222, 365.7324, 391.8385, 404.2601, 416.6923,
          455.8643, 458.9167),
    349: (236.1032, 230.3167, 238.9256, 254.922, 250.7103, 269.7744, 281.5648, 308.102, 336.2806,
          351.6451),
    350: (256.2968, 243.4543, 256.2046, 255.5271, 268.9165, 329.7247, 379.4445, 362.9184,
          394.4872, 389.0527),
    351: (250.5265, 300.0576, 269.8939, 280.5891, 271.8274, 304.6336, 287.7466, 266.5955,
          321.5418, 347.5655),
    352: (221.6771, 298.1939, 326.8785, 346.8555, 348.7402, 352.8287, 354.4266, 360.4326,
          375.6406, 388.5417),
    369: (271.9235, 268.4369, 257.2424, 277.6566, 314.8222, 317.2135, 298.1353, 348.1229, 340.28,
          366.5131),
    370: (225.264, 234.5235, 238.9008, 240.473, 267.5373, 344.1937, 281.1481, 347.5855, 365.163,
          372.2288),
    371: (269.8804, 272.4428, 277.8989, 281.7895, 279.1705, 284.512, 259.2658, 304.6306, 350.7807,
          369.4692),
    372: (269.4117, 273.474, 297.5968, 310.6316, 287.1726, 329.6076, 334.4818, 343.2199, 369.1417,
          364.1236),
}  # fmt: skip

# Yield in grams of standard colour, five preparations of each of six batches.
DYESTUFF = {
    "A": (1545, 1440, 1440, 1520, 1580), "B": (1540, 1555, 1490, 1560, 1495),
    "C": (1595, 1550, 1605, 1510, 1560), "D": (1445, 1440, 1595, 1465, 1545),
    "E": (1595, 1630, 1515, 1635, 1625), "F": (1520, 1455, 1450, 1480, 1445),
}  # fmt: skip
DYESTUFF2 = {
    "A": (7.298, 3.846, 2.434, 9.566, 7.990), "B": (5.220, 6.556, 0.608, 11.788, -0.892),
    "C": (0.110, 10.386, 13.434, 5.510, 8.166), "D": (2.212, 4.852, 7.092, 9.288, 4.980),
    "E": (0.282, 9.014, 4.458, 9.446, 7.198), "F": (1.722, 4.782, 8.106, 0.758, 3.758),
}  # fmt: skip


def load() -> pd.DataFrame:
    """The sleep study: columns reaction (ms), days and subject, 180 rows."""
    rows = [
        {"reaction": value, "days": float(day), "subject": subject}
        for subject, values in REACTIONS.items()
        for day, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def load_dyestuff(table: dict | None = None) -> pd.DataFrame:
    """Yields of batches: columns yield and batch, 30 rows; `DYESTUFF` by default."""
    table = DYESTUFF if table is None else table
    rows = [{"yield": float(v), "batch": batch} for batch, vs in table.items() for v in vs]
    return pd.DataFrame(rows)


def codes(labels: Any) -> tuple[np.ndarray, int]:
    """Labels as integers 0..J-1 in order of appearance, and J."""
    found, names = pd.factorize(pd.Series(labels))
    return found, len(names)


# -- the main job ---------------------------------------------------------------------------------


def batches(opt: _report.Options) -> pd.DataFrame:
    """The two tables of dyestuff by maximum likelihood."""
    rows = {}
    for name, table in {"Dyestuff": DYESTUFF, "Dyestuff2": DYESTUFF2}.items():
        frame = load_dyestuff(table)
        model = ep.bind(
            random_intercept, frame["yield"].to_numpy(), *codes(frame["batch"]), prior=False
        )
        found = ep.fit(model, key=opt.seed, progress=False)
        rows[name] = {
            "log-likelihood": found.log_likelihood, "mu": found.params["mu"],
            "tau^2": found.params["tau"] ** 2, "sigma^2": found.params["sigma"] ** 2,
            "status": found.status.word,
        }  # fmt: skip
    return pd.DataFrame(rows).T


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Dyestuff by maximum likelihood; the sleep study by MAP beside NUTS; returns its fit."""
    p = _report.parser("Random effects: the sleep study and dyestuff", num_starts=1)
    opt = _report.options(p.parse_args(argv))
    _report.heading("Batches of dyestuff, maximum likelihood")
    _report.show(batches(opt), 7)
    frame = load()
    group, num_groups = codes(frame["subject"])
    y, x = frame["reaction"].to_numpy(), frame["days"].to_numpy()
    model = ep.bind(random_slopes, y, x, group, num_groups)
    _report.heading("The sleep study: the plan")
    print(model)
    found = _report.fit(model, opt)
    _report.show(found.summary())
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, frame), opt.out / "random_effects.png"),
            _report.save_draws(source.to_arviz(), opt.out / "random_effects.nc"),
        ]
    )
    return found


def draw(found: ep.Fit, frame: pd.DataFrame) -> Any:
    """Each subject alone by least squares, and the line that borrows from the others."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    group, num_groups = codes(frame["subject"])
    lines = found.params["beta"] + found.posterior["b"].mean
    figure, axes = plt.subplots(
        3, num_groups // 3, figsize=(11, 6), sharex=True, sharey=True, layout="constrained"
    )
    days = np.array([0.0, frame["days"].max()])
    for j, ax in enumerate(axes.flat):
        own = frame[group == j]
        slope, level = np.polyfit(own["days"], own["reaction"], 1)
        ax.plot(own["days"], own["reaction"], ".", color="0.3", markersize=4)
        ax.plot(days, level + slope * days, color=COLORS[1], linewidth=1, label="alone")
        ax.plot(days, lines[j, 0] + lines[j, 1] * days, color=COLORS[0], label="random effects")
        ax.set_title(own["subject"].iloc[0], fontsize=9)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.supxlabel("days of little sleep")
    figure.supylabel("reaction time, ms")
    return figure


if __name__ == "__main__":
    main()
