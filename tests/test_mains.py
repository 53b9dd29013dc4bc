"""What every gallery `main` runs in: its precision, its compiler's hurry, and what it leaves."""

import importlib
import inspect
import pkgutil

import jax
import pytest

import emprob.models
from emprob.models import _report

PROGRAMS = [m.name for m in pkgutil.iter_modules(emprob.models.__path__) if m.name[0] != "_"]
MAINS = [
    name for name in PROGRAMS if hasattr(importlib.import_module(f"emprob.models.{name}"), "main")
]


@_report.entry
def seen(argv=None):
    return jax.config.read("jax_enable_x64"), jax.config.read(_report.HURRY)


@_report.entry
def broken(argv=None):
    raise OSError("disk full")


@pytest.mark.parametrize(("argv", "hurry"), [([], False), (["--quick"], True)])
@pytest.mark.parametrize("double", [True, False])
def test_main_runs_in_double_precision_and_hurries_if_quick(argv, hurry, double):
    with jax.enable_x64(double):
        assert seen(argv) == (True, hurry)
        assert jax.config.read("jax_enable_x64") is double
    assert jax.config.read(_report.HURRY) is False


def test_main_keeps_the_users_hurry_and_undoes_its_own_on_an_error():
    with pytest.raises(OSError, match="disk full"):
        broken(["--quick"])
    assert jax.config.read(_report.HURRY) is False
    jax.config.update(_report.HURRY, True)
    try:
        assert seen([])[1]
        assert jax.config.read(_report.HURRY)
    finally:
        jax.config.update(_report.HURRY, False)


@pytest.mark.parametrize("name", MAINS)
def test_every_main_is_entered_so_and_says_its_options(name, capsys):
    main = importlib.import_module(f"emprob.models.{name}").main
    assert inspect.unwrap(main) is not main, "not wrapped in _report.entry"
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--quick" in capsys.readouterr().out
