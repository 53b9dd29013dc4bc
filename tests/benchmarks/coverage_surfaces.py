"""Coverage of the 95 % intervals of a Heston surface with bad quotes, and NUTS beside one fit.

    python tests/benchmarks/coverage_surfaces.py [--sets 200] [--strikes 15] [--draws 500]

Quotes at four maturities with known parameters; good mids are off by a third of their
half-spread, one in ten by 5 to 20. Prints how often each interval has the truth, its mean width in
standard deviations of the estimates, and the table of estimates and draws side by side.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import emprob as ep
from emprob.models import surface_heston, surfaces
from emprob.models.quotes import Quotes

TRUTH = {"v0": 0.25, "kappa": 3.0, "theta": 0.3, "sigma": 1.2, "rho": -0.4}
TIMES = np.array([0.08, 0.25, 0.6, 1.5])


def quotes(rng: np.random.Generator, strikes: int) -> tuple[Quotes, np.ndarray]:
    """Quotes of the truth with noise, and which are bad."""
    code = np.repeat(np.arange(len(TIMES)), strikes)
    k = np.tile(np.linspace(-1.5, 1.5, strikes), len(TIMES)) * 0.5 * np.sqrt(TIMES)[code]
    blank = np.full(len(k), 0.5)
    half, sign = np.full(len(k), 0.005), np.where(k < 0, -1.0, 1.0)
    columns = (k, TIMES, code, np.ones(len(TIMES)), blank, half, sign)
    made = Quotes(*(jnp.asarray(x) for x in columns))
    true = np.asarray(VOLATILITY(TRUTH, made))
    bad = rng.uniform(size=len(k)) < 0.1
    far = rng.uniform(5, 20, len(k)) * rng.choice([-1, 1], len(k))
    error = np.where(bad, far, rng.normal(size=len(k)) / 3)
    mid = true + error * np.asarray(made.half_spread)
    return Quotes(**{**vars(made), "mid": jnp.asarray(mid)}), bad


VOLATILITY = jax.jit(surface_heston.MODEL.volatility)


def main() -> None:
    """Print the tables."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--sets", type=int, default=200)
    p.add_argument("--strikes", type=int, default=15, help="of each maturity")
    p.add_argument("--draws", type=int, default=500, help="of NUTS; 0: none")
    args = p.parse_args()
    jax.config.update("jax_enable_x64", True)
    rng, truth = np.random.default_rng(0), np.array(list(TRUTH.values()))
    inside, estimates, errors, spent, hits = [], [], [], [], np.zeros(3, int)
    statuses: dict[str, int] = {}
    for _ in range(args.sets):
        made, bad = quotes(rng, args.strikes)
        began = time.perf_counter()
        found = ep.fit(ep.bind(surface_heston.surface_heston, made), progress=False)
        table = found.summary().loc[list(TRUTH)]
        spent.append(time.perf_counter() - began)
        inside.append((table["lower"] <= truth) & (truth <= table["upper"]))
        estimates.append(table["estimate"])
        errors.append(table["se"])
        called = surfaces.bad_probability(found) > 0.5
        hits += [(called & bad).sum(), called.sum(), bad.sum()]
        statuses[found.status.word] = statuses.get(found.status.word, 0) + 1
    spread = np.std(estimates, axis=0)
    print(pd.DataFrame({
        "truth": truth, "mean": np.mean(estimates, axis=0), "sd": spread,
        "mean se / sd": np.mean(errors, axis=0) / spread, "coverage": np.mean(inside, axis=0),
    }, index=list(TRUTH)).round(4).to_string())  # fmt: skip
    print(f"{args.sets} sets, {statuses}, median {1000 * np.median(spent):.0f} ms with binding")
    print(f"bad quotes: precision {hits[0] / hits[1]:.3f}, recall {hits[0] / hits[2]:.3f}")
    if args.draws:
        bayes = ep.nuts(found.model, key=1, init=found, num_samples=args.draws, num_chains=2,
                        progress=False)  # fmt: skip
        comparison = ep.compare(found, bayes)
        print(comparison.table.round(4).to_string(), comparison.verdict, sep="\n")


if __name__ == "__main__":
    main()
