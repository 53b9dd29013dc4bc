"""Pictures of one series out of several, for the state-space models."""

from typing import Any

import numpy as np
import pandas as pd

from emprob.plot import COLORS


def draw_ahead(ax: Any, ahead: Any, frame: pd.DataFrame, entry: int, shown: int = 40) -> None:
    """The last steps of one column of `frame`, and its forecast with a 95 % interval.

    Args:
        ax: axes.
        ahead: a `Forecast` of the site 'y', whose columns are those of `frame`.
        frame: the series, indexed by time in equal steps.
        entry: which column.
        shown: how many steps of the past.
    """
    time = frame.index.to_numpy()
    later = time[-1] + (time[-1] - time[-2]) * np.arange(1, ahead.steps + 1)
    rows = ahead.summary("y").xs(entry, level="entry")
    color = COLORS[entry % len(COLORS)]
    ax.plot(time[-shown:], frame.to_numpy()[-shown:, entry], color="0.35", lw=1)
    ax.plot(later, rows["mean"], color=color, lw=1.5)
    ax.fill_between(later, rows["lower"], rows["upper"], color=color, alpha=0.2, lw=0)
    ax.set_title(f"{frame.columns[entry]}: forecast, 95 % interval", loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
