"""What every test shares: float64, one fixed key, no window, and no trace left in global state."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
# Most of a test is compiling, and compiling in a hurry takes less than half the time: an empty
# XLA_FLAGS tests what users run. XLA ends a process that names a flag which it does not know.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    hurry = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
    os.environ.setdefault("XLA_FLAGS", hurry)

import hypothesis
import jax
import pytest

# The same examples every time: a test that fails on one machine fails on all.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")
jax.config.update("jax_enable_x64", True)
if not jax.config.jax_compilation_cache_dir:
    # What one test compiles, another test, process or run need not compile again.
    cache = Path(__file__).parent.parent / ".pytest_cache" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def key():
    """The one key of the test suite; split it for more."""
    return jax.random.key(20260101)


@pytest.fixture(autouse=True, scope="module")
def _compiled_code_goes_with_its_module():
    """Thousands of compiled programs in one process exhaust the kernel's memory maps."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _compiled_code_goes_before_there_is_too_much():
    """Within a long module too: 65530 maps are the kernel's default limit, and XLA aborts there."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _global_state_unchanged():
    """A fit must leave the user's settings as they were; figures do not pile up."""
    before = (jax.config.jax_enable_x64, jax.config.jax_debug_nans, jax.config.jax_disable_jit)
    yield
    after = (jax.config.jax_enable_x64, jax.config.jax_debug_nans, jax.config.jax_disable_jit)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    assert after == before, "the test changed a global setting of jax"
