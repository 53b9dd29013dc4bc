"""Implied volatilities of a million options beside the libraries that find them, one at a time.

Run ``python tests/benchmarks/bench_implied.py [number of options]``. The options are out of the
money on one forward, a year to go: volatilities log-uniform from 0.02 to 2, strikes 1.5 standard
deviations wide within e^3 of the forward; prices are our own, which the tests hold against 60
digits. Every library runs in a process of its own with one thread, float64, CPU; the first call
(compiling) is apart, then the least of the calls counts, in wall and in CPU milliseconds, of which
CPU is the one to trust on a busy machine. The error is that of the volatility, relative.

Peers are imported by the interpreter in ``IMPLIED_PYTHON`` (this one by default):
``pip install fast-vollib lbriv iv-engine pyvolr quantkit-rs polars-vol vanilla-option-pricers``;
py_vollib_vectorized, which asks for NumPy 1 and an old numba, by the one in ``VOLLIB_PYTHON``.
One that does not run is skipped with a line that says so.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

SINGLE = {
    "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_ENABLE_X64": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}  # fmt: skip
SECONDS = 6.0


# -- the libraries: each returns a function of nothing that gives the volatilities ---------------


def emprob_whole(price, forward, strike, sign):
    import jax
    import jax.numpy as jnp

    from emprob.models.pricing.black import implied_volatility

    run = jax.jit(implied_volatility)
    values = [jnp.asarray(v) for v in (price, forward, strike, 1.0 + 0 * price, sign)]
    return lambda: run(*values).block_until_ready()


def emprob_numpy(price, forward, strike, sign):
    """The same from NumPy and back, as the others are called."""
    import jax
    import numpy as np

    from emprob.models.pricing.black import implied_volatility

    run = jax.jit(implied_volatility)
    years = 1.0 + 0 * price
    return lambda: np.asarray(run(price, forward, strike, years, sign))


def letters(sign):
    import numpy as np

    return np.where(sign > 0, "c", "p")


def py_vollib_vectorized(price, forward, strike, sign):
    from py_vollib_vectorized import vectorized_implied_volatility_black as run

    flag, years = letters(sign), 1.0 + 0 * price
    return lambda: run(price, forward, strike, 0.0, years, flag, return_as="numpy")


def fast_vollib(price, forward, strike, sign):
    from fast_vollib import fast_implied_volatility_black as run

    flag, years = letters(sign), 1.0 + 0 * price
    return lambda: run(price, forward, strike, 0.0, years, flag, return_as="numpy")


def lbriv(price, forward, strike, sign):
    import numpy as np
    from lbriv import vectorized_implied_vol_strikes as run

    call, put = sign > 0, sign < 0
    sides = [(price[c], strike[c], q) for c, q in ((call, 1), (put, -1))]

    def both():
        out = np.empty_like(price)
        for c, (p, k, q) in zip((call, put), sides):
            out[c] = run(p, float(forward[0]), k, q)
        return out

    return both


def iv_engine(price, forward, strike, sign):
    import numpy as np
    from iv_engine import implied_volatilities as run

    call, put, years = sign > 0, sign < 0, 1.0 + 0 * price

    def both():
        out = np.empty_like(price)
        for c, is_call in ((call, True), (put, False)):
            out[c] = run(price[c], forward[c], strike[c], years[c], is_call, False)
        return out

    return both


def pyvolr(price, forward, strike, sign):
    from pyvolr.black76 import implied_vol as run

    flag, years = letters(sign), 1.0 + 0 * price
    return lambda: run(price, flag, F=forward, K=strike, T=years, r=0.0)


def quantkit(price, forward, strike, sign):
    import numpy as np
    from quantkit import implied_vol_batch as run
    from quantkit import set_num_threads

    set_num_threads(1)
    call, put, years, none = sign > 0, sign < 0, 1.0 + 0 * price, 0 * price

    def both():
        out = np.empty_like(price)
        for c, side in ((call, True), (put, False)):
            out[c] = run(
                price[c], forward[c], strike[c], none[c], years[c], side, None, errors="nan"
            )
        return out

    return both


def polars_vol(price, forward, strike, sign):
    import polars as pl
    from polars_vol import implied_vol

    frame = pl.DataFrame(
        {"p": price, "k": strike, "f": forward, "t": 1 + 0 * price, "r": 0 * price, "c": sign > 0}
    )
    what = implied_vol("p", "k", "f", "t", "r", "c").alias("v")
    return lambda: frame.select(what)["v"].to_numpy()


def vanilla_option_pricers(price, forward, strike, sign):
    import numpy as np
    from vanilla_option_pricers import infer_bsm_ivols_from_slice_prices as run

    kind = np.where(sign > 0, "C", "P")
    return lambda: run(1.0, float(forward[0]), 1.0, strike, kind, price)


PEERS = {
    f.__name__: f
    for f in (
        emprob_whole, emprob_numpy, py_vollib_vectorized, fast_vollib, lbriv, iv_engine, pyvolr,
        quantkit, polars_vol, vanilla_option_pricers,
    )
}  # fmt: skip


# -- one library, in a process of its own ------------------------------------------------------


def measure(name, path):
    """First call, then the least wall and CPU milliseconds, and the errors; one line of JSON."""
    import numpy as np

    warnings.simplefilter("ignore")
    data = np.load(path)
    price, forward, strike, sign = (data[k] for k in ("price", "forward", "strike", "sign"))
    begin = time.perf_counter()
    try:
        run = PEERS[name](price, forward, strike, sign)
    except ImportError as error:
        print(json.dumps({"skipped": str(error)}))
        return
    found = np.asarray(run(), float).ravel()
    first, wall, cpu = time.perf_counter() - begin, [], []
    while len(wall) < 3 or (sum(wall) < SECONDS and len(wall) < 40):
        w, c = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    known = np.isfinite(found)
    error = np.abs(found / data["volatility"] - 1)[known]
    print(json.dumps({
        "first_ms": 1e3 * first, "wall_ms": 1e3 * min(wall), "cpu_ms": 1e3 * min(cpu),
        "median": float(np.median(error)), "worst": float(error.max()),
        "none": int((~known).sum()), "calls": len(wall),
    }))  # fmt: skip


def options(count):
    """The options, and the volatilities that were put in."""
    import jax
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    from emprob.models.pricing.black import black

    rng = np.random.default_rng(1)
    s = np.exp(rng.uniform(np.log(0.02), np.log(2.0), count))
    strike = 100 * np.exp(np.clip(1.5 * s * rng.normal(size=count), -3, 3))
    sign, forward = np.where(strike > 100, 1.0, -1.0), np.full(count, 100.0)
    price = np.asarray(jax.jit(black)(forward, strike, s, sign))
    return {"price": price, "forward": forward, "strike": strike, "sign": sign, "volatility": s}


def main(count):
    import numpy as np
    import pandas as pd

    peers = os.environ.get("IMPLIED_PYTHON", sys.executable)
    vollib = os.environ.get("VOLLIB_PYTHON", peers)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "options.npz")
        np.savez(path, **options(count))
        for name in PEERS:
            python = sys.executable if name.startswith("emprob") else peers
            python = vollib if name == "py_vollib_vectorized" else python
            done = subprocess.run(
                [python, __file__, name, path], env={**os.environ, **SINGLE},
                capture_output=True, text=True, timeout=1200,
            )  # fmt: skip
            try:
                rows[name] = json.loads(done.stdout.strip().splitlines()[-1])
            except (IndexError, ValueError):
                rows[name] = {"skipped": done.stderr.strip().splitlines()[-1][:150]}
            print(name, rows[name], flush=True)
    table = pd.DataFrame({k: v for k, v in rows.items() if "skipped" not in v}).T
    own = table.loc["emprob_whole", "cpu_ms"]
    table["emprob's share"] = own / table["cpu_ms"]
    print(f"\n{count} options, one thread, milliseconds")
    print(table.to_string(float_format=lambda v: f"{v:.3g}"))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(*sys.argv[1:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else 1_000_000)
