"""One dynamic factor: many series that move with one hidden index.

    f_t = phi f_{t-1} + e_t,   y_tj = loading_j f_t + u_tj,
    e_t ~ Normal(0, 1),   u_tj ~ Normal(0, variance_j)

from the stationary law, f_0 ~ Normal(0, 1 / (1 - phi^2)). The factor has innovations of unit
variance, and the first series loads on it positively; otherwise its scale and sign would be free.
Any cell may be missing: a series that starts late, or is published late (a ragged edge), or a
quarter without any.

Data: growth of real consumption, investment and income, and the changes of unemployment and of the
three-month rate, in the United States by quarters 1959-2009, standardised (macrodata of
statsmodels, from the FRED database of the Federal Reserve Bank of St. Louis).

Source: Stock and Watson (1989), NBER Macroeconomics Annual 4; Banbura and Modugno (2014), Journal
of Applied Econometrics 29(1), for EM with missing cells. Priors: weak, for standardised series;
that of the variances keeps off zero, where the likelihood may send one (a Heywood case).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.contrib.control_flow import scan

import emprob as ep
from emprob.models import _report, _series
from emprob.models._draws import generator


def dynamic_factor(y: Any) -> None:
    """Standardised series, one autoregressive factor.

    Args:
        y: (T, D); NaN is missing.
    """
    d = y.shape[1]
    first = numpyro.sample("first", dist.HalfNormal(1.0))
    others = numpyro.sample("others", dist.Normal(0.0, 1.0).expand([d - 1]).to_event(1))
    loading = numpyro.deterministic("loading", jnp.append(first, others))
    variance = numpyro.sample("variance", dist.InverseGamma(2.0, 0.2).expand([d]).to_event(1))
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))

    def quarter(f, y):
        f = numpyro.sample("f", dist.Normal(phi * f, 1.0))
        numpyro.sample("y", dist.Normal(loading * f, jnp.sqrt(variance)).to_event(1), obs=y)
        return f, None

    scan(quarter, numpyro.sample("f0", dist.Normal(0.0, 1 / jnp.sqrt(1 - phi**2))), y)


TRUTH = {
    "first": np.array(0.5),
    "others": np.array([0.8, -0.4, 0.3, 0.0]),
    "variance": np.array([0.4, 0.2, 0.6, 0.5, 0.3]),
    "phi": np.array(0.7),
}


def simulate(key: Any, length: int = 400, missing: float = 0.0, truth: dict | None = None) -> tuple:
    """Draw series, some of their cells missing at random.

    Args:
        key: a key of `jax.random`, or an integer.
        length: T.
        missing: share of the cells that is missing.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        y (T, D) and the factor f (T,).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    phi = truth["phi"]
    f = np.empty(length)
    last = rng.normal() / np.sqrt(1 - phi**2)
    for t in range(length):
        last = f[t] = phi * last + rng.normal()
    loading = np.append(truth["first"], truth["others"])
    y = f[:, None] * loading + np.sqrt(truth["variance"]) * rng.normal(size=(length, len(loading)))
    return np.where(rng.uniform(size=y.shape) < missing, np.nan, y), f


def load() -> pd.DataFrame:
    """Five standardised series (202, 5), by quarter: 1959.25 is the second of 1959.

    Needs the package `statsmodels` (pip install "emprob[gallery]").
    """
    try:
        from statsmodels.datasets import macrodata
    except ImportError as error:
        raise ImportError(
            'this data set is in the package statsmodels: pip install "emprob[gallery]"'
        ) from error
    raw = macrodata.load_pandas().data
    growth = np.log(raw[["realcons", "realinv", "realdpi"]]).diff()
    change = raw[["unemp", "tbilrate"]].diff()
    frame = growth.join(change).set_axis(raw["year"] + (raw["quarter"] - 1) / 4).iloc[1:]
    return ((frame - frame.mean()) / frame.std(ddof=0)).rename_axis("quarter")


def with_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """What might have been known in early 2009: the same series with holes.

    The interest rate starts in 1965, income has no figures for 1980, there are none at all for
    1995, and consumption, investment and income of the last two quarters are not out yet.
    """
    gaps, quarter = frame.copy(), frame.index.to_numpy()
    gaps.loc[quarter < 1965, "tbilrate"] = np.nan
    gaps.loc[(quarter >= 1980) & (quarter < 1981), "realdpi"] = np.nan
    gaps.loc[(quarter >= 1995) & (quarter < 1996)] = np.nan
    gaps.iloc[-2:, :3] = np.nan
    return gaps


# -- the main job ---------------------------------------------------------------------------------


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """The fit with every cell beside that with holes; NUTS; a forecast."""
    p = _report.parser("A common factor of five macroeconomic series", num_starts=2)
    p.add_argument("--ahead", type=int, default=8, help="quarters to forecast")
    args = p.parse_args(argv)
    opt = _report.options(args)
    frame = load()
    model = ep.bind(dynamic_factor, with_gaps(frame))
    _report.heading("The plan")
    print(model)
    found = _report.fit(model, opt)
    _report.heading("With holes, and with every cell")
    whole = ep.fit(ep.bind(dynamic_factor, frame), key=opt.seed, progress=opt.progress)
    _report.show(beside_each_other({"with holes": found, "every cell": whole}))
    comparison = _report.beside(found, opt)
    ahead = found.forecast(args.ahead, opt.seed + 2, 2000)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, ahead, frame), opt.out / "dynamic_factor.png"),
            _report.save_draws(source.to_arviz(), opt.out / "dynamic_factor.nc"),
        ]
    )
    return found


def beside_each_other(fits: dict[str, ep.Fit]) -> pd.DataFrame:
    """Estimates and standard errors of several fits, in columns."""
    columns = {
        (name, part): found.summary()[part]
        for name, found in fits.items()
        for part in ("estimate", "se")
    }
    print(", ".join(f"{k}: {f.status.word} at {f.log_likelihood:.4f}" for k, f in fits.items()))
    return pd.DataFrame(columns)


def draw(found: ep.Fit, ahead: Any, frame: pd.DataFrame) -> Any:
    """The factor, the hidden cells beside what is inferred of them, and two forecasts."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    figure, axes = plt.subplot_mosaic(
        [["factor", "factor"], ["cells", "first"], ["cells", "second"]], figsize=(10, 9),
        layout="constrained",
    )  # fmt: skip
    f, time = found.posterior["f"], frame.index.to_numpy()
    axes["factor"].plot(time, f.mean, color=COLORS[0], lw=1.2)
    axes["factor"].fill_between(
        time, f.mean - 1.96 * f.sd, f.mean + 1.96 * f.sd, color=COLORS[0], alpha=0.2, lw=0
    )
    axes["factor"].axhline(0, color="0.7", lw=0.8, zorder=0)
    axes["factor"].set_title("The factor: smoothed, 95 % band", loc="left", fontsize=10)
    _hidden(found, frame, axes["cells"])
    for place, name in (("first", "realcons"), ("second", "unemp")):
        _series.draw_ahead(axes[place], ahead, frame, list(frame).index(name))
    for ax in axes.values():
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _hidden(found: ep.Fit, frame: pd.DataFrame, ax: Any) -> None:
    """Each cell that was taken out against its mean given what was left."""
    from emprob.plot import COLORS

    seen = found.model.notes.value.observed["y"]
    f = found.posterior["f"]
    loading = np.append(found.params["first"], found.params["others"])
    middle = loading * f.mean.reshape(-1, 1)
    half = 1.96 * np.sqrt(loading**2 * f.variance.reshape(-1, 1) + found.params["variance"])
    for j, name in enumerate(frame):
        gone = ~np.isfinite(seen[:, j])
        ax.errorbar(
            frame.to_numpy()[gone, j], middle[gone, j], half[gone, j], fmt="o", markersize=4,
            alpha=0.7, color=COLORS[j], label=name, elinewidth=0.6,
        )  # fmt: skip
    ends = np.array(ax.get_xlim())
    ax.plot(ends, ends, color="0.5", lw=1)
    ax.set(xlabel="hidden value", ylabel="inferred, 95 % interval", xlim=ends)
    ax.set_title("The cells that were taken out", loc="left", fontsize=10)
    ax.legend(frameon=False, fontsize=8, loc="lower right")


if __name__ == "__main__":
    main()
