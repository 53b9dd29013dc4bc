"""Pharmacokinetics: a drug that is absorbed and cleared, by subjects who differ.

    c(t) = dose ka / (V (ka - k)) (exp(-k t) - exp(-ka t)),   k = CL / V
    y_it = c_i(t) + a e_it,   (log ka, log V, log CL)_i ~ Normal(theta, diag(omega^2))

is the concentration at time t after an oral dose, with absorption rate ka, volume V and clearance
CL of each subject. The effects of a subject enter by exponentials of exponentials, so their
integral has no closed form; three coordinates a subject are few enough for adaptive Gauss-Hermite
quadrature (`ep.Laplace(order)`), which is the answer that SAEM, the field's standard method, has to
reach within its Monte Carlo error.

Two further programs are those of published fits: `with_weight` lets clearance depend on the weight
of the subject, `two_effects` lets only clearance and absorption differ between subjects, and the
two be correlated.

Data: concentration of theophylline in the serum of twelve subjects over 25 hours (Boeckmann,
Sheiner and Beal 1994, NONMEM Users Guide, part V; as in Pinheiro and Bates 2000, Mixed-Effects
Models in S and S-PLUS, appendix A.29).

Source: Pinheiro and Bates (1995), Journal of Computational and Graphical Statistics 4(1); Kuhn and
Lavielle (2005), Computational Statistics and Data Analysis 49(4); Comets, Lavenu and Lavielle
(2017), Journal of Statistical Software 80(3). Priors: weak, around one an hour, 30 litres and 3
litres an hour.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.optimize import least_squares
from scipy.special import logsumexp

import emprob as ep
from emprob.models import _report
from emprob.models._draws import generator

CENTER = np.array([0.0, 3.4, 1.1])  # logs of 1/h, litres, litres/h


def concentration(dose: Any, time: Any, ka: Any, V: Any, CL: Any) -> Any:
    """One compartment, first-order absorption; smooth at ka = CL / V and at time 0.

    Args:
        dose, time: (N,), in mg and hours.
        ka, V, CL: (N,), in 1/h, litres and litres/h.
    """
    k = CL / V
    gap = jnp.abs(ka - k) * time
    near = gap < 1e-6
    safe = jnp.where(near, 1.0, gap)
    share = jnp.where(near, 1 - gap / 2, -jnp.expm1(-safe) / safe)
    return dose * ka / V * time * jnp.exp(-jnp.minimum(ka, k) * time) * share


def one_compartment(y: Any, dose: Any, time: Any, subject: Any, num_subjects: int) -> None:
    """Absorption, volume and clearance differ between subjects.

    Args:
        y: concentrations in mg/l (N,); NaN is missing.
        dose: in mg (N,).
        time: in hours (N,).
        subject: (N,), integers 0..S-1.
        num_subjects: S.
    """
    theta, omega, a = _population()
    with numpyro.plate("subject", num_subjects):
        phi = numpyro.sample("phi", dist.Normal(theta, omega).to_event(1))
    _observe(y, dose, time, jnp.exp(phi[subject]), a)


def with_weight(y: Any, dose: Any, time: Any, subject: Any, weight: Any) -> None:
    """The same, and log CL is linear in the weight of the subject; theta is at 70 kg.

    Args:
        y, dose, time, subject: as in `one_compartment`.
        weight: in kg (S,).
    """
    theta, omega, a = _population()
    beta = numpyro.sample("beta", dist.Normal(0.0, 0.1))
    slope = beta * jnp.array([0.0, 0.0, 1.0])
    with numpyro.plate("subject", len(weight)):
        center = theta + slope * (jnp.asarray(weight)[:, None] - 70.0)
        phi = numpyro.sample("phi", dist.Normal(center, omega).to_event(1))
    _observe(y, dose, time, jnp.exp(phi[subject]), a)


def two_effects(y: Any, dose: Any, time: Any, subject: Any, num_subjects: int) -> None:
    """Clearance and absorption differ between subjects, the rate of elimination does not.

    Args:
        y, time, subject, num_subjects: as in `one_compartment`.
        dose: in mg for each kg of the subject (N,), and so are CL and V.
    """
    center = jnp.array([-3.0, 0.0, -2.5])
    beta = numpyro.sample("beta", dist.Normal(center, 1.0).to_event(1))
    omega = numpyro.sample("omega", dist.HalfNormal(jnp.ones(2)).to_event(1))
    R = numpyro.sample("R", dist.LKJCholesky(2, 1.0))
    a = numpyro.sample("a", dist.HalfNormal(2.0))
    with numpyro.plate("subject", num_subjects):
        b = numpyro.sample(
            "b", dist.MultivariateNormal(jnp.zeros(2), scale_tril=omega[..., :, None] * R)
        )
    own = jnp.exp(beta[..., :2] + b[subject])
    CL, ka, k = own[..., 0], own[..., 1], jnp.exp(beta[..., 2])
    with numpyro.plate("sample", len(y)):
        numpyro.sample("y", dist.Normal(concentration(dose, time, ka, CL / k, CL), a), obs=y)


def _population() -> tuple:
    """Means and standard deviations of the logs, and that of the errors."""
    theta = numpyro.sample("theta", dist.Normal(jnp.asarray(CENTER), 1.0).to_event(1))
    omega = numpyro.sample("omega", dist.HalfNormal(jnp.ones(3)).to_event(1))
    a = numpyro.sample("a", dist.HalfNormal(2.0))
    numpyro.deterministic("typical", jnp.exp(theta))
    return theta, omega, a


def _observe(y: Any, dose: Any, time: Any, own: Any, a: Any) -> None:
    c = concentration(dose, time, own[..., 0], own[..., 1], own[..., 2])
    with numpyro.plate("sample", len(y)):
        numpyro.sample("y", dist.Normal(c, a), obs=y)


TRUTH = {
    "theta": np.log([1.5, 32.0, 2.8]), "omega": np.array([0.6, 0.15, 0.25]), "a": np.array(0.7),
}  # fmt: skip
TIMES = (0.25, 0.5, 1.0, 2.0, 3.5, 5.0, 7.0, 9.0, 12.0, 24.0)


def simulate(key: Any, num_subjects: int = 60, truth: dict | None = None) -> tuple:
    """Draw subjects with 320 mg each, sampled at `TIMES`.

    Args:
        key: a key of `jax.random`, or an integer.
        num_subjects: S.
        truth: parameters by site; `TRUTH` by default.

    Returns:
        y, dose, time, subject, all (N,), S, and the logs of ka, V and CL (S, 3).
    """
    truth = TRUTH if truth is None else truth
    rng = generator(key)
    phi = truth["theta"] + truth["omega"] * rng.normal(size=(num_subjects, 3))
    subject = np.repeat(np.arange(num_subjects), len(TIMES))
    time, dose = np.tile(TIMES, num_subjects), np.full(len(subject), 320.0)
    c = np.asarray(concentration(dose, time, *np.exp(phi[subject]).T))
    y = c + truth["a"] * rng.normal(size=len(c))
    return y, dose, time, subject, num_subjects, phi


# -- data -----------------------------------------------------------------------------------------

# Weight in kg, dose in mg/kg, then (hours, mg/l), by subject.
THEOPHYLLINE = (
    (79.6, 4.02, (
        (0, 0.74), (0.25, 2.84), (0.57, 6.57), (1.12, 10.5), (2.02, 9.66), (3.82, 8.58),
        (5.1, 8.36), (7.03, 7.47), (9.05, 6.89), (12.12, 5.94), (24.37, 3.28),
    )),
    (72.4, 4.4, (
        (0, 0), (0.27, 1.72), (0.52, 7.91), (1, 8.31), (1.92, 8.33), (3.5, 6.85), (5.02, 6.08),
        (7.03, 5.4), (9, 4.55), (12, 3.01), (24.3, 0.9),
    )),
    (70.5, 4.53, (
        (0, 0), (0.27, 4.4), (0.58, 6.9), (1.02, 8.2), (2.02, 7.8), (3.62, 7.5), (5.08, 6.2),
        (7.07, 5.3), (9, 4.9), (12.15, 3.7), (24.17, 1.05),
    )),
    (72.7, 4.4, (
        (0, 0), (0.35, 1.89), (0.6, 4.6), (1.07, 8.6), (2.13, 8.38), (3.5, 7.54), (5.02, 6.88),
        (7.02, 5.78), (9.02, 5.33), (11.98, 4.19), (24.65, 1.15),
    )),
    (54.6, 5.86, (
        (0, 0), (0.3, 2.02), (0.52, 5.63), (1, 11.4), (2.02, 9.33), (3.5, 8.74), (5.02, 7.56),
        (7.02, 7.09), (9.1, 5.9), (12, 4.37), (24.35, 1.57),
    )),
    (80, 4, (
        (0, 0), (0.27, 1.29), (0.58, 3.08), (1.15, 6.44), (2.03, 6.32), (3.57, 5.53), (5, 4.94),
        (7, 4.02), (9.22, 3.46), (12.1, 2.78), (23.85, 0.92),
    )),
    (64.6, 4.95, (
        (0, 0.15), (0.25, 0.85), (0.5, 2.35), (1.02, 5.02), (2.02, 6.58), (3.48, 7.09), (5, 6.66),
        (6.98, 5.25), (9, 4.39), (12.05, 3.53), (24.22, 1.15),
    )),
    (70.5, 4.53, (
        (0, 0), (0.25, 3.05), (0.52, 3.05), (0.98, 7.31), (2.02, 7.56), (3.53, 6.59), (5.05, 5.88),
        (7.15, 4.73), (9.07, 4.57), (12.1, 3), (24.12, 1.25),
    )),
    (86.4, 3.1, (
        (0, 0), (0.3, 7.37), (0.63, 9.03), (1.05, 7.14), (2.02, 6.33), (3.53, 5.66), (5.02, 5.67),
        (7.17, 4.24), (8.8, 4.11), (11.6, 3.16), (24.43, 1.12),
    )),
    (58.2, 5.5, (
        (0, 0.24), (0.37, 2.89), (0.77, 5.22), (1.02, 6.41), (2.05, 7.83), (3.55, 10.21),
        (5.05, 9.18), (7.08, 8.02), (9.38, 7.14), (12.1, 5.68), (23.7, 2.42),
    )),
    (65, 4.92, (
        (0, 0), (0.25, 4.86), (0.5, 7.24), (0.98, 8), (1.98, 6.81), (3.6, 5.87), (5.02, 5.22),
        (7.03, 4.45), (9.03, 3.62), (12.12, 2.69), (24.08, 0.86),
    )),
    (60.5, 5.3, (
        (0, 0), (0.25, 1.25), (0.5, 3.96), (1, 7.82), (2, 9.72), (3.52, 9.75), (5.07, 8.57),
        (7.07, 6.59), (9.03, 6.11), (12.05, 4.57), (24.15, 1.17),
    )),
)  # fmt: skip


def load() -> pd.DataFrame:
    """Theophylline: columns subject, weight, dose (mg/kg), time (h) and conc (mg/l), 132 rows."""
    rows = [
        {"subject": i, "weight": weight, "dose": dose, "time": float(t), "conc": float(c)}
        for i, (weight, dose, samples) in enumerate(THEOPHYLLINE)
        for t, c in samples
    ]
    return pd.DataFrame(rows)


def arguments(frame: pd.DataFrame) -> tuple:
    """What `one_compartment` takes, the doses in mg."""
    dose = frame["dose"] * frame["weight"]
    columns = (frame["conc"], dose, frame["time"], frame["subject"])
    return *(c.to_numpy() for c in columns), frame["subject"].nunique()


# Comets, Lavenu and Lavielle: saemix 0.96, user guide, section on theophylline (SAEM, constant
# error, weight on clearance, samples after time 0; -2 log-likelihood by importance sampling).
SAEMIX = {
    "ka": 1.567, "V": 31.475, "CL": 1.581, "beta": 0.008, "a": 0.743, "omega^2 ka": 0.388,
    "omega^2 V": 0.015, "omega^2 CL": 0.070, "-2 log L": 344.8896,
}  # fmt: skip


def log_likelihood(data: tuple, params: dict, num: int = 41, reach: float = 7.0) -> float:
    """The log-likelihood of `one_compartment` by a grid around each subject's mode.

    Without emprob: least squares for the mode, a trapezoidal sum over `num`^3 points.

    Args:
        data: `arguments`, no cell missing.
        params: theta, omega (3,) and a.
        num: points a coordinate.
        reach: of the grid, in standard deviations.
    """
    y, dose, time, subject, num_subjects = data
    theta, omega, a = (np.asarray(params[k], float) for k in ("theta", "omega", "a"))
    z, step = np.linspace(-reach, reach, num, retstep=True)
    nodes = np.stack(np.meshgrid(z, z, z, indexing="ij"), -1).reshape(-1, 3)
    total = 0.0
    for i in range(num_subjects):
        own = subject == i

        def residuals(phi: np.ndarray, own: np.ndarray = own) -> np.ndarray:
            phi = np.atleast_2d(phi)
            ka, V, CL = np.exp(phi.T)[..., None]
            decay = np.exp(-CL / V * time[own]) - np.exp(-ka * time[own])
            c = dose[own] * ka / (V * ka - CL) * decay
            return np.concatenate([(y[own] - c) / a, (phi - theta) / omega], -1)

        mode = least_squares(lambda phi, f=residuals: f(phi)[0], theta)
        root = np.linalg.inv(np.linalg.cholesky(mode.jac.T @ mode.jac)).T
        square = (residuals(mode.x + nodes @ root.T) ** 2).sum(-1)
        total += logsumexp(-square / 2) + np.log(step**3 * np.linalg.det(root))
        total -= own.sum() * np.log(a) + np.log(omega).sum()
        total -= (own.sum() + 3) / 2 * np.log(2 * np.pi)
    return float(total)


# -- the main job ---------------------------------------------------------------------------------


def agreement(exact: ep.Fit, drawn: ep.Fit) -> pd.DataFrame:
    """Quadrature beside SAEM, and the gap in SAEM's stated Monte Carlo errors."""
    one, two = exact.summary(), drawn.summary()
    table = pd.DataFrame(
        {"quadrature": one["estimate"], "SAEM": two["estimate"], "error": two["mc_error"]}
    )
    table["gap in errors"] = (table["SAEM"] - table["quadrature"]) / table["error"]
    return table.assign(se=one["se"], **{"se by SAEM": two["se"]})


def beside_saemix(opt: _report.Options) -> pd.DataFrame:
    """The model of saemix's user guide by maximum likelihood, and what is printed there."""
    frame = load()
    weight = frame.groupby("subject")["weight"].first().to_numpy()
    *data, _ = arguments(frame[frame["time"] > 0])
    model = ep.bind(with_weight, *data, weight, prior=False)
    found = ep.fit(model, ep.Squarem(ep.EM(ep.Laplace(7))), key=opt.seed, progress=opt.progress)
    p = found.params
    logs = p["theta"] - 70 * p["beta"] * np.array([0.0, 0.0, 1.0])  # saemix: at 0 kg
    ours = [*np.exp(logs), p["beta"], p["a"], *p["omega"] ** 2, -2 * found.log_likelihood]
    return pd.DataFrame({"saemix": SAEMIX, "quadrature": dict(zip(SAEMIX, map(float, ours)))})


@_report.entry
def main(argv: Sequence[str] | None = None) -> ep.Fit:
    """Quadrature, SAEM and NUTS on theophylline; saemix's published fit beside ours."""
    p = _report.parser("Pharmacokinetics of theophylline", num_starts=1)
    args = p.parse_args(argv)
    opt = _report.options(args)
    frame = load()
    data = arguments(frame)
    model = ep.bind(one_compartment, *data)
    _report.heading("The plan")
    print(model)
    found = _report.fit(model, opt, ep.Squarem(ep.EM(ep.Laplace(7))))
    _report.show(found.summary())
    grid = log_likelihood(data, found.params)
    print(f"\nlog-likelihood by quadrature {found.log_likelihood:.6f}, by a grid {grid:.6f}")
    _report.heading("SAEM on the same program")
    few = ep.SAEM(kernel=ep.NUTS(num_chains=4), burn_in=5, averaging=5, final_draws=64)
    drawn = ep.fit(
        model, ep.EM(few if args.quick else ep.SAEM()), key=opt.seed, progress=opt.progress
    )
    print(drawn)
    _report.show(agreement(found, drawn))
    if not args.quick:
        _report.heading("saemix's user guide, maximum likelihood")
        _report.show(beside_saemix(opt))
    comparison = _report.beside(found, opt)
    source = found if comparison is None else comparison.bayes
    _report.say_where(
        [
            _report.save_figure(draw(found, frame), opt.out / "pharmacokinetics.png"),
            _report.save_draws(source.to_arviz(), opt.out / "pharmacokinetics.nc"),
        ]
    )
    return found


def draw(found: ep.Fit, frame: pd.DataFrame) -> Any:
    """Each subject's samples, the typical curve, and the subject's own."""
    import matplotlib.pyplot as plt

    from emprob.plot import COLORS

    phi = found.posterior["phi"].mean
    figure, axes = plt.subplots(
        3, 4, figsize=(10, 7), sharex=True, sharey=True, layout="constrained"
    )
    time = np.linspace(0, 25, 201)
    for i, ax in enumerate(axes.flat):
        own = frame[frame["subject"] == i]
        dose = (own["dose"] * own["weight"]).iloc[0]
        laws = {"typical": (found.params["theta"], COLORS[1]), "subject": (phi[i], COLORS[0])}
        ax.plot(own["time"], own["conc"], ".", color="0.3")
        for label, (logs, color) in laws.items():
            ax.plot(time, concentration(dose, time, *np.exp(logs)), color=color, label=label)
        ax.set_title(f"subject {i + 1}", loc="left", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.supxlabel("hours")
    figure.supylabel("theophylline, mg/l")
    return figure


if __name__ == "__main__":
    main()
