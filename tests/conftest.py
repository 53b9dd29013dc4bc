"""What every test shares: float64, one fixed key, no window, and no trace left in global state."""

import os
import sys

os.environ.setdefault("MPLBACKEND", "Agg")
# What one test compiles, another test, process or run need not compile again.
_CACHE = os.path.join(os.path.dirname(os.path.dirname(__file__)), ".pytest_cache", "compiled")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

jax.config.update("jax_enable_x64", True)


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
def _global_state_unchanged():
    """A fit must leave the user's settings as they were; figures do not pile up."""
    before = (jax.config.jax_enable_x64, jax.config.jax_debug_nans, jax.config.jax_disable_jit)
    yield
    after = (jax.config.jax_enable_x64, jax.config.jax_debug_nans, jax.config.jax_disable_jit)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    assert after == before, "the test changed a global setting of jax"
