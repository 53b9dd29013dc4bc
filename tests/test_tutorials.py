"""The tutorials: what is stored is what the code prints, and the code still runs.

The structural tests read files only. The slow one runs each notebook in a fresh kernel, at the
small sizes below; with `EMPROB_FULL_TUTORIALS` set, as it is stored.
"""

import os
import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
TIMEOUT = 600
NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*")
TYPED = re.compile(r"`[^`]*`|\]\([^)]*\)|S&P 500")  # code, links and names are not claims

# What a notebook's cell tagged "parameters" becomes when sizes should be small.
QUICK = {
    "01_quickstart": """
START, END = "2008", "2008"
NUM_STARTS = 2
NUM_WARMUP, NUM_DRAWS = 60, 60
NUM_SIMULATED = 2
""",
    "02_state_space": """
NUM_WARMUP, NUM_DRAWS = 60, 60
NUM_AHEAD = 5
NUM_FORECASTS = 120
""",
    "03_random_effects": """
NUM_WARMUP, NUM_DRAWS = 60, 60
""",
    "04_when_nothing_is_exact": """
YEARS = 0.4
NUM_PARTICLES = 32
NUM_FINAL = 256
NUM_GUIDE = 200
NUM_WARMUP, NUM_DRAWS = 60, 60
""",
    "07_volatility_surface": """
jax.config.update("jax_disable_most_optimizations", True)
NUM_WARMUP, NUM_DRAWS = 60, 60
""",
    "08_exotics_and_hedging": """
NUM_PAIRS = 500
NUM_WARMUP, NUM_DRAWS = 60, 60
NUM_PRICED = 40
NUM_PATHS = 100
""",
}

every_tutorial = pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)


def stored(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def problems(notebook):
    """Error and stderr outputs, by cell."""
    found = []
    for number, cell in enumerate(code_cells(notebook), 1):
        for out in cell.outputs:
            if out.output_type == "error":
                found.append(f"cell {number}: {out.ename}: {out.evalue}")
            elif out.output_type == "stream" and out.name == "stderr":
                found.append(f"cell {number}, stderr: {out.text}")
    return found


def printed(cell):
    """Everything that a reader of a code cell sees."""
    texts = [cell.source]
    for out in cell.outputs:
        texts.append(out.get("text", ""))
        texts += [v for k, v in out.get("data", {}).items() if k.startswith("text/")]
    return "\n".join(texts)


def unsupported_numbers(notebook):
    """Numbers in the prose that no cell above shows."""
    seen, found = "", []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            seen += printed(cell)
        else:
            found += [n for n in NUMBER.findall(TYPED.sub("", cell.source)) if n not in seen]
    return found


def execute(notebook):
    client = nbclient.NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()


def with_sizes(notebook, sizes):
    """Replace the one cell tagged "parameters"; each name that it sets must still be set."""
    (cell,) = [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", [])]
    names = [set(re.findall(r"\b[A-Z_]{3,}\b", text)) for text in (cell.source, sizes)]
    assert names[0] == names[1], "the small sizes set other names than the notebook does"
    cell.source = sizes.strip()


def test_there_are_tutorials_and_each_is_a_pair():
    assert SCRIPTS
    assert {p.stem for p in SCRIPTS} == {p.stem for p in FOLDER.glob("*.ipynb")}


@every_tutorial
def test_notebook_and_script_have_the_same_cells(script):
    ours, theirs = jupytext.read(script), stored(script)
    assert [(c.cell_type, c.source) for c in ours.cells] == [
        (c.cell_type, c.source) for c in theirs.cells
    ], "run: jupytext --sync, and execute the notebook again"


@every_tutorial
def test_stored_notebook_ran_once_in_order_without_complaint(script):
    notebook = stored(script)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert not problems(notebook)


@every_tutorial
def test_stored_notebook_shows_figures_and_no_trace_of_this_machine(script):
    cells = code_cells(stored(script))
    figures = [o for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
    assert figures
    for cell in cells:
        text = printed(cell)
        assert "it/s" not in text and "step/s" not in text, "debris of a progress bar"
        assert str(Path.home()) not in text and str(FOLDER.parents[1]) not in text


@every_tutorial
def test_every_number_in_the_prose_is_shown_by_a_cell_above(script):
    assert unsupported_numbers(stored(script)) == []


def test_a_typed_number_and_a_complaint_are_found():
    v4 = nbformat.v4
    loud = v4.new_output("stream", name="stderr", text="FutureWarning")
    cell = v4.new_code_cell("x = 2", outputs=[v4.new_output("stream", text="0.41"), loud])
    prose = v4.new_markdown_cell("It is 0.41, not 0.43; `7` is code and the S&P 500 a name.")
    notebook = v4.new_notebook(cells=[cell, prose])
    assert unsupported_numbers(notebook) == ["0.43"]
    assert problems(notebook) == ["cell 1, stderr: FutureWarning"]


def test_the_table_of_tutorials_is_complete():
    text = (FOLDER / "README.md").read_text()
    assert re.findall(r"\]\((\d\w+)\.ipynb\)", text) == [p.stem for p in SCRIPTS]


@pytest.mark.slow
@every_tutorial
def test_notebook_runs_in_a_fresh_kernel(script):
    notebook = stored(script)
    quick = not os.environ.get("EMPROB_FULL_TUTORIALS")
    if quick:
        with_sizes(notebook, QUICK[script.stem])
    execute(notebook)
    # Draws as few as the quick ones rightly draw a warning about convergence.
    complaints = problems(notebook)
    assert not [c for c in complaints if not (quick and "ConvergenceWarning" in c)]
