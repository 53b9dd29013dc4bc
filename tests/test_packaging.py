"""The package as it is installed: its list of packages, its extras, and what importing it does."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = CONFIG["project"]["optional-dependencies"]


def run(code, cwd=ROOT, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def packages_in(folder, name):
    """Dotted names of the packages under `folder`, symlinks not followed."""
    return {
        ".".join((name, *Path(here).relative_to(folder).parts))
        for here, _, files in os.walk(folder)
        if "__init__.py" in files
    }


def requirements():
    lists = {"": CONFIG["project"]["dependencies"], **EXTRAS}
    return [(extra, Requirement(text)) for extra, texts in lists.items() for text in texts]


def test_packages_list_is_the_tree():
    tree = packages_in(ROOT / "emprob", "emprob") | packages_in(ROOT / "models", "emprob.models")
    assert sorted(CONFIG["tool"]["setuptools"]["packages"]) == sorted(tree)


def test_editors_see_the_gallery_where_it_is_installed():
    assert (ROOT / "emprob" / "models").resolve() == ROOT / "models"
    assert CONFIG["tool"]["setuptools"]["package-dir"] == {"emprob.models": "models"}


@pytest.mark.slow
def test_version_is_written_once():
    done = run("import emprob; print(emprob.__version__)")
    assert done.stdout.strip() == CONFIG["project"]["version"], done.stderr


@pytest.mark.parametrize(("extra", "requirement"), requirements(), ids=str)
def test_declared_bounds_admit_what_is_installed(extra, requirement):
    if requirement.name == "emprob":
        assert requirement.extras <= set(EXTRAS) - {extra}
        return
    assert str(requirement.specifier), "a requirement without a bound"
    if requirement.marker is not None and not requirement.marker.evaluate():
        pytest.skip("for another Python")
    try:
        installed = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        assert extra, f"{requirement.name} is a dependency and is not installed"
        pytest.skip("not installed")
    assert requirement.specifier.contains(installed, prereleases=True)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_every_python_gets_one_arviz(python):
    hits = [
        requirement
        for extra, requirement in requirements()
        if requirement.name == "arviz" and requirement.marker.evaluate({"python_version": python})
    ]
    assert len(hits) == 1
    assert hits[0].specifier.contains("0.23.4") == (python == "3.11")


def test_a_second_import_path_of_the_gallery_is_refused():
    done = run("import models")
    assert done.returncode != 0
    assert "ImportError" in done.stderr and "emprob.models" in done.stderr


@pytest.mark.slow
def test_import_touches_no_device_no_flag_and_no_environment():
    code = """
import os, sys
import jax, numpy, numpyro
from jax._src import xla_bridge
flags, environment, random = dict(jax.config.values), dict(os.environ), numpy.random.get_state()
printing = numpy.get_printoptions()
import emprob
assert not xla_bridge.backends_are_initialized(), "a device was touched"
changed = {k for k, v in jax.config.values.items() if k in flags and v != flags[k]}
assert not changed, f"flags changed: {changed}"
assert dict(os.environ) == environment
assert numpy.get_printoptions() == printing
assert (numpy.random.get_state()[1] == random[1]).all()
heavy = {"arviz", "matplotlib.pyplot", "IPython", "statsmodels", "arch"} & set(sys.modules)
assert not heavy, f"imported too early: {heavy}"
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_import_warns_of_nothing():
    done = run("import jax, numpyro, warnings; warnings.simplefilter('error'); import emprob")
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_readme_gives_the_commands_that_ci_runs():
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line.split("'")[1] for line in script if line.startswith("readme '")]
    assert len(commands) == 2
    for command in commands:
        assert command in (ROOT / "README.md").read_text()
