"""What the gallery's `main` functions share: options, headings, files, NUTS beside EM."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import jax
import pandas as pd

import emprob as ep

HURRY = "jax_disable_most_optimizations"


@dataclass(frozen=True)
class Options:
    """Sizes of a run.

    Attributes:
        out: folder of the files.
        seed: of every random number.
        num_starts: of the fit.
        num_warmup, num_samples, num_chains: of NUTS; no NUTS with `num_samples=0`.
        progress: whether bars are shown.
    """

    out: Path
    seed: int
    num_starts: int
    num_warmup: int
    num_samples: int
    num_chains: int
    progress: bool


def parser(
    description: str, num_starts: int = 8, num_samples: int = 1000
) -> argparse.ArgumentParser:
    """A parser with the options that every model has."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--out", type=Path, default=Path("emprob-output"), help="folder of the files")
    p.add_argument("--seed", type=int, default=0, help="of every random number")
    p.add_argument("--starts", type=int, default=num_starts, help="starts of the fit")
    p.add_argument("--warmup", type=int, default=500, help="NUTS: warm-up of a chain")
    p.add_argument("--draws", type=int, default=num_samples, help="NUTS: draws of a chain; 0: none")
    p.add_argument("--chains", type=int, default=2, help="NUTS: chains")
    p.add_argument("--quick", action="store_true", help="small sizes: a look, not a result")
    p.add_argument("--no-progress", action="store_true", help="no progress bars")
    return p


def options(args: argparse.Namespace) -> Options:
    """The sizes that were asked for; makes the output folder."""
    args.out.mkdir(parents=True, exist_ok=True)
    starts, warmup, draws, chains = args.starts, args.warmup, args.draws, args.chains
    if args.quick:
        starts, warmup, draws, chains = min(starts, 4), min(warmup, 60), min(draws, 40), 1
    return Options(args.out, args.seed, starts, warmup, draws, chains, not args.no_progress)


def entry(main: Callable) -> Callable:
    """A `main` as a user runs it: in double precision; with `--quick`, compiled in a hurry.

    Most of a quick look is compiling.
    """

    @wraps(main)
    def run(argv: Sequence[str] | None = None) -> Any:
        before = jax.config.read(HURRY)
        quick = "--quick" in (sys.argv[1:] if argv is None else argv)
        jax.config.update(HURRY, quick or before)
        try:
            with jax.enable_x64(True):
                return main(argv)
        finally:
            jax.config.update(HURRY, before)

    return run


def heading(text: str) -> None:
    """Print a title."""
    print(f"\n{text}\n{'-' * len(text)}")


def show(table: pd.DataFrame, digits: int = 4) -> None:
    """Print a whole table."""
    print(table.to_string(float_format=lambda x: f"{x:.{digits}g}", na_rep="-"))


def fit(model: ep.LatentModel, opt: Options, method: Any = None) -> ep.Fit:
    """Fit with several starts and say how it ended."""
    found = ep.fit(
        model, method, key=opt.seed, num_starts=opt.num_starts, max_steps=3000,
        progress=opt.progress,
    )  # fmt: skip
    print(found)
    print(found.message)
    return found


def beside(found: ep.Fit, opt: Options) -> Any:
    """Run NUTS on the fitted program and print the comparison; None if no draws are wanted."""
    if opt.num_samples == 0:
        return None
    heading("NUTS on the same program")
    bayes = ep.nuts(
        found.model, key=opt.seed + 1, init=found, num_warmup=opt.num_warmup,
        num_samples=opt.num_samples, num_chains=opt.num_chains, progress=opt.progress,
    )  # fmt: skip
    print(bayes)
    heading("EM beside NUTS")
    comparison = ep.compare(found, bayes)
    show(comparison.table)
    print(f"\n{comparison.verdict}")
    return comparison


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure and close it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def save_draws(tree: Any, path: Path) -> Path:
    """Write an ArviZ tree as NetCDF."""
    tree.to_netcdf(path)
    return path


def say_where(paths: Sequence[Path]) -> None:
    """Print where the files are."""
    heading("Files")
    for path in paths:
        print(path.resolve())
