"""The progress bar: objective, distance to the optimum, steps per second."""

from typing import Any

from emprob.types import Info


class Progress:
    """A tqdm bar that leaves no trace, or nothing."""

    def __init__(self, shown: bool, total: int):
        self.bar: Any = None
        if shown and total:
            from tqdm.auto import tqdm

            self.bar = tqdm(
                total=total, unit="step", leave=False, delay=1.0, mininterval=0.2, desc="fit"
            )

    def update(self, count: int, info: Info) -> None:
        """Move to `count` steps and show the last evaluation."""
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"objective {info.objective[-1]:.6g}, score {info.score_norm[-1]:.1e}",
                refresh=False,
            )
            self.bar.update(count - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
