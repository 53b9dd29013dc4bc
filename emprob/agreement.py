"""The sentences of a comparison: whether an estimate and its standard error are enough."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

GOOD_SHIFT, FAIR_SHIFT = 0.25, 0.6  # posterior standard deviations
GOOD_OVERLAP, FAIR_OVERLAP = 0.9, 0.75
GOOD_K = 0.7
CONSTANT = "constant"  # note of an entry that is the same number in every draw


def problems(bayes: Any) -> str:
    """What is wrong with the draws, or ''."""
    found = []
    if bayes.divergences:
        found.append(f"{bayes.divergences} divergent transitions")
    if bayes.unreliable:
        found.append(f"R-hat up to {bayes.rhat.max():.3f} ({', '.join(bayes.unreliable[:3])})")
    return " and ".join(found)


def verdict(
    fits: Mapping[str, Any],
    parts: Mapping[str, pd.DataFrame],
    own: pd.DataFrame,
    khat: Mapping[str, float],
    seconds: pd.Series,
    bayes: Any,
    sampled: Sequence[str] = (),
) -> str:
    """One paragraph: for each fit the judgement and its grounds, then time and caveats.

    Args:
        fits: by name.
        parts: by name of the fit, its columns of the table.
        own: the columns of NUTS.
        khat: by name of the fit.
        seconds: by method.
        bayes: the draws.
        sampled: latents that are among the draws and integrated out in the fits.
    """
    sentences = [_one(name, fits[name], parts[name], khat[name]) for name in fits]
    sentences.append(_time(seconds, list(fits)))
    if sampled:
        sentences.append(_left_out(sampled))
    wrong = problems(bayes)
    if wrong:
        sentences.append(f"But NUTS has not converged ({wrong}): it is no yardstick yet.")
    if bayes.num_chains < 2:
        sentences.append("With one chain the convergence of NUTS was not checked.")
    return " ".join(sentences)


def _left_out(sampled: Sequence[str]) -> str:
    names = ", ".join(map(repr, sampled[:4])) + (" ..." if len(sampled) > 4 else "")
    return (
        f"NUTS sampled the latents {names} with the parameters; they are left out of the table, "
        "and k-hat is of the posterior with these latents integrated as in the fit."
    )


def _one(name: str, fit: Any, part: pd.DataFrame, khat: float) -> str:
    part = part.drop(index=list(part.index[(part["note"] == CONSTANT).to_numpy()]))
    missing = list(part.index[part["se"].isna().to_numpy()])
    judged = part.drop(index=missing)
    if judged.empty:
        return f"{name}: no parameter has a standard error, so there is nothing to compare."
    grade, reason = _grade(judged, khat)
    tail = ""
    if missing:
        more = " ..." if len(missing) > 4 else ""
        tail = (
            f" No standard error, so not judged: {', '.join(missing[:4])}{more} (at a boundary or "
            "not determined); take these from NUTS."
        )
    if not fit.status.ok:
        tail += f" The fit did not end at an optimum ({fit.status.word})."
    return f"{name} ± SE {grade}: {reason}{tail}"


def _grade(judged: pd.DataFrame, khat: float) -> tuple[str, str]:
    shift = judged["z_shift"].abs()
    area = judged["overlap"].fillna(0.0)
    largest, least = cast(float, shift.max()), cast(float, area.min())
    if largest <= GOOD_SHIFT and least >= GOOD_OVERLAP:
        grade = "is enough, parameter by parameter"
    elif largest <= FAIR_SHIFT and least >= FAIR_OVERLAP:
        grade = "is roughly right"
    else:
        grade = "is not enough"
    reason = (
        f"the worst parameter is {area.idxmin()} (overlap {least:.2f}), the largest shift of "
        f"the posterior mean {largest:.2f} sd ({shift.idxmax()}). {_tails(khat)}"
    )
    return grade, reason


def _tails(khat: float) -> str:
    if np.isnan(khat):
        return "There is no Gaussian approximation of all parameters together, so no k-hat."
    if khat < GOOD_K:
        return (
            f"Pareto k-hat {khat:.2f} < {GOOD_K}: the Gaussian approximation holds for all "
            "parameters together, tails included."
        )
    return (
        f"Pareto k-hat {khat:.2f} >= {GOOD_K}: for all parameters together the tails of the "
        "posterior are not Gaussian; take tail probabilities and joint intervals from NUTS."
    )


def _time(seconds: pd.Series, names: list[str]) -> str:
    times = ", ".join(f"{n} {seconds[n]:.2g} s" for n in names)
    nuts = seconds.drop(names).iloc[0]
    ratios = [nuts / max(seconds[n], 1e-6) for n in names]
    factors = [f"{r:.2g}" if r < 10 else f"{r:.0f}" for r in (min(ratios), max(ratios))]
    factor = " to ".join(dict.fromkeys(factors))
    what = seconds.attrs["what"]
    return f"Time, {what}: {times}; NUTS {nuts:.2g} s, {factor} times as long."
