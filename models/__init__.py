"""The gallery: one NumPyro program a file, with data, a source and a reference answer.

Installed as `emprob.models`; run one with `python -m emprob.models.NAME`.
"""

if __name__ != "emprob.models":
    # A second import path would make second copies of every class in the gallery.
    raise ImportError(
        f"the gallery was imported as {__name__!r}; import it as 'emprob.models' "
        "(pip install -e . makes that name known)"
    )
