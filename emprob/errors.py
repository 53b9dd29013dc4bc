"""What can go wrong, by kind.

Trouble in the program or the data is raised before anything compiles (`ModelError`, `DataError`).
Trouble that only a run shows is a `Status` in a full result and one of the warnings below.
Every message says: site, what was expected, what came, what to do.
"""

import difflib
from collections.abc import Iterable


class ModelError(ValueError):
    """The program has a structure that cannot be fitted as it stands."""


class DataError(ValueError):
    """The data do not fit the program: shape, support, dtype, missing or empty."""


class FitError(RuntimeError):
    """There is no finite iterate to return.

    Attributes:
        site: the first site to blame, or None.
        iteration: the step at which it happened.
    """

    def __init__(self, message: str, site: str | None = None, iteration: int = 0):
        super().__init__(message)
        self.site = site
        self.iteration = iteration


class CheckpointError(RuntimeError):
    """A saved fit cannot be read, or belongs to another model, data set or version."""


class ConvergenceWarning(UserWarning):
    """The run stopped before it reached an optimum."""


class DegeneracyWarning(UserWarning):
    """A component, state or variance collapsed or is empty."""


class IdentifiabilityWarning(UserWarning):
    """The data do not determine some direction of the parameters."""


class PrecisionWarning(UserWarning):
    """Floating-point spacing is too coarse for the tolerance asked for."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence 'did you mean ...?' for a misspelt name, with all known names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"{hint} Known: {', '.join(map(repr, known)) or 'none'}."
