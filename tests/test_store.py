"""Files that survive a crash."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from emprob import __version__, store
from emprob.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[1]
ARRAYS = {
    "params": {"mu": np.linspace(-1.0, 1.0, 7), "θ/α": np.eye(3, order="F"), "s": np.float64(2.5)},
    "counts": np.arange(5, dtype=np.int16)[None],
    "params/mu": np.array([True, False]),
    "empty": {},
    "none": np.zeros((0, 3), np.float32),
    "names": np.array(["a", "ü"]),
    "dates": np.array(["2020-01-31", "NaT"], "datetime64[D]"),
}
META = {"model_hash": "m1", "data_hash": "d1", "tol": 1e-6, "steps": np.int64(3), "sites": ("a",)}


def same(left, right):
    if isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            same(left[key], right[key])
    else:
        left = np.asarray(left)
        assert left.dtype == right.dtype and left.shape == right.shape
        assert left.tobytes() == right.tobytes()


def in_process(code, *args):
    head = "import warnings; warnings.simplefilter('ignore')\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_round_trip_keeps_names_types_shapes_and_bits(tmp_path):
    store.write(tmp_path / "fit.npz", ARRAYS, META)
    arrays, meta = store.read(tmp_path / "fit.npz")
    same(ARRAYS, arrays)
    assert meta == {
        "model_hash": "m1",
        "data_hash": "d1",
        "tol": 1e-6,
        "steps": 3,
        "sites": ["a"],
        "format_version": 1,
        "emprob_version": __version__,
        "float_width": 64,
    }
    assert os.listdir(tmp_path) == ["fit.npz"]


leaves = hnp.arrays(
    dtype=hnp.scalar_dtypes(), shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
)
trees = st.recursive(
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), leaves, max_size=3),
    lambda inner: st.dictionaries(st.text("ab/.%", max_size=4), inner | leaves, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(tree=trees)
def test_round_trip_of_any_tree(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("any") / "x"
    store.write(path, tree, {})
    same(tree, store.read(path)[0])


def test_numpy_reads_the_arrays_and_jax_arrays_can_be_written(tmp_path):
    store.write(tmp_path / "fit.npz", {"params": {"mu": jnp.arange(3.0)}}, {})
    with np.load(tmp_path / "fit.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["params/mu"], [0.0, 1.0, 2.0])


def test_the_mode_follows_the_umask_and_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    before = os.umask(0o027)
    try:
        store.write(tmp_path / "link", {}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("leaf", [object(), [object()], jnp.ones(2, jnp.bfloat16), None])
def test_what_would_need_pickle_is_refused_before_a_file_is_touched(tmp_path, leaf):
    with pytest.raises(TypeError, match="params/mu"):
        store.write(tmp_path / "x", {"params": {"mu": leaf}}, {})
    assert not os.listdir(tmp_path)


def test_a_random_key_of_jax_is_refused(tmp_path):
    with pytest.raises(TypeError):
        store.write(tmp_path / "x", {"key": jax.random.key(0)}, {})


@pytest.mark.parametrize(
    ("arrays", "meta", "error", "words"),
    [
        ({1: np.ones(2)}, {}, TypeError, "strings"),
        ({}, {"f": object()}, TypeError, "JSON"),
        ({}, {"tree": 1}, ValueError, "tree"),
        ({}, {"format_version": 7}, ValueError, "format_version"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, arrays, meta, error, words):
    with pytest.raises(error, match=words):
        store.write(tmp_path / "x", arrays, meta)
    assert not os.listdir(tmp_path)


def test_float_width_is_that_of_the_arrays_unless_given(tmp_path):
    path = tmp_path / "x"
    store.write(path, {"a": np.ones(2, np.float32), "b": np.arange(2)}, {})
    assert store.read(path)[1]["float_width"] == 32
    store.write(path, {"a": np.ones(2, np.float32)}, {"float_width": 64})
    assert store.read(path, {"float_width": 64})[1]["float_width"] == 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_hash", "m2"),
        ("data_hash", "d2"),
        ("float_width", 32),
        ("emprob_version", "9"),
        ("absent", 1),
    ],
)
def test_the_field_that_differs_is_named(tmp_path, field, value):
    path = tmp_path / "fit.npz"
    store.write(path, ARRAYS, META)
    store.read(path, {"model_hash": "m1", "sites": ("a",), "steps": np.int32(3)})
    with pytest.raises(CheckpointError, match=f"'{field}' differs.*{value}"):
        store.read(path, {"model_hash": "m1", field: value})
    with pytest.raises(TypeError, match="JSON"):
        store.read(path, {field: object()})


def test_another_format_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FORMAT_VERSION", 2)
    store.write(tmp_path / "x", ARRAYS, META)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format_version"):
        store.read(tmp_path / "x")


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    path = tmp_path / "fit.npz"
    store.write(path, ARRAYS, META)
    whole = path.read_bytes()
    cuts = np.random.default_rng(0).choice(len(whole), 200, replace=False)
    for cut in {0, 1, len(whole) - 1, *cuts.tolist()}:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="truncated"):
            store.read(path)


def test_a_flipped_bit_never_gives_other_numbers(tmp_path):
    path = tmp_path / "fit.npz"
    arrays = {"a": np.arange(64.0), "b": {"c": np.arange(9)}}
    store.write(path, arrays, META)
    whole = path.read_bytes()
    refused = 0
    for position in np.random.default_rng(1).choice(len(whole), 400, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            same(arrays, store.read(path)[0])  # dates and flags of the archive carry nothing
        except CheckpointError:
            refused += 1
    assert refused > 200


def test_files_that_are_not_ours_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        store.read(tmp_path / "nothing")
    with pytest.raises(CheckpointError):
        store.read(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="not a file saved by emprob"):
        store.read(tmp_path / "text")
    np.savez(tmp_path / "plain.npz", a=np.ones(2))
    with pytest.raises(CheckpointError, match="not a file saved by emprob"):
        store.read(tmp_path / "plain.npz")


def test_a_pickle_inside_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "x", tmp_path / "mark"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (mark,))

    np.save(tmp_path / "bomb.npy", np.array([Bomb()], object), allow_pickle=True)
    header = {"format": "emprob", "format_version": 1, "tree": {"a": "a.npy"}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.write(tmp_path / "bomb.npy", "a.npy")
    with pytest.raises(CheckpointError, match="allow_pickle=False"):
        store.read(path)
    assert not mark.exists()


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        store.write(tmp_path / "no" / "x", ARRAYS, META)
    with (
        pytest.raises(CheckpointError, match="no lock file can be made"),
        store.lock(tmp_path / "no" / "x"),
    ):
        pass


def test_a_folder_that_cannot_be_written_to():
    with pytest.raises(CheckpointError, match="cannot be written"):
        store.write("/proc/x.npz", ARRAYS, META)  # read-only for root as well


@pytest.mark.slow
def test_a_full_disk_leaves_the_previous_file_and_no_temporary(tmp_path):
    path = tmp_path / "fit.npz"
    store.write(path, {"a": np.arange(3)}, {"n": 1})
    done = in_process(
        """
        import resource, signal, sys
        import numpy as np
        from emprob import store
        from emprob.errors import CheckpointError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            store.write(sys.argv[1], {"a": np.zeros(100_000)}, {"n": 2})
        except CheckpointError as error:
            print(error)
        """,
        path,
    )
    assert "cannot be written: File too large" in done.stdout, done.stderr
    assert store.read(path)[1]["n"] == 1
    assert os.listdir(tmp_path) == ["fit.npz"]


def test_an_interrupt_while_writing_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "fit.npz"
    store.write(path, {}, {"n": 1})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(path, {}, {"n": 2})
    monkeypatch.undo()
    assert store.read(path)[1]["n"] == 1
    assert os.listdir(tmp_path) == ["fit.npz"]


def test_only_strays_of_dead_writers_of_this_file_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = tmp_path / f".fit.npz.{dead.pid}.00000000.emprob-tmp"
    kept = [
        tmp_path / f".fit.npz.{os.getpid()}.00000000.emprob-tmp",
        tmp_path / f".other.npz.{dead.pid}.00000000.emprob-tmp",
        tmp_path / f".fit.npz.{dead.pid}.{os.getpid()}.00000000.emprob-tmp",  # of fit.npz.<digits>
        tmp_path / f".fit.npz.{dead.pid}.txt",
    ]
    for path in [gone, *kept]:
        path.touch()
    store.write(tmp_path / "fit.npz", {}, {})
    assert set(tmp_path.iterdir()) == {tmp_path / "fit.npz", *kept}


@pytest.mark.slow
def test_kill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "fit.npz"
    done = in_process(
        """
        import os, random, signal, sys, time
        import numpy as np
        from emprob import store
        path, strays = sys.argv[1], 0
        random.seed(0)
        store.write(path, {"a": np.full(100_000, 0), "b": {"c": np.full(50_000, 0)}}, {"n": 0})
        for _ in range(15):
            child = os.fork()
            if not child:
                n = store.read(path)[1]["n"]
                while True:
                    n += 1
                    arrays = {"a": np.full(100_000, n), "b": {"c": np.full(50_000, n)}}
                    store.write(path, arrays, {"n": n})
            first = os.stat(path).st_ino
            while os.stat(path).st_ino == first:
                time.sleep(0.001)
            time.sleep(random.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            strays += sum(name.endswith("-tmp") for name in os.listdir(os.path.dirname(path)))
            arrays, meta = store.read(path)
            assert (arrays["a"] == meta["n"]).all() and (arrays["b"]["c"] == meta["n"]).all()
        print(meta["n"], strays)
        """,
        path,
    )
    assert done.returncode == 0, done.stderr
    written, strays = map(int, done.stdout.split())
    assert written >= 15, "the writers wrote nothing"
    assert strays > 0, "no kill fell into a writing: the test showed nothing"
    store.write(path, {}, {})
    assert os.listdir(tmp_path) == ["fit.npz"]


def test_a_second_writer_is_refused_and_the_lock_goes_with_the_first(tmp_path):
    path = tmp_path / "fit.npz"
    with store.lock(path):
        with (
            pytest.raises(CheckpointError, match=f"process {os.getpid()} is writing"),
            store.lock(path),
        ):
            pass
        with store.lock(tmp_path / "other.npz"):
            store.write(path, {}, {})
    assert os.listdir(tmp_path) == ["fit.npz"]
    with store.lock(path):
        pass


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    path = tmp_path / "fit.npz"
    code = (
        "import sys, time; from emprob import store\n"
        "with store.lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"process {holder.pid}"), store.lock(path):
            pass
        holder.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == [".fit.npz.emprob-lock"]
    with store.lock(path):
        assert (tmp_path / ".fit.npz.emprob-lock").read_text() == str(os.getpid())
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_the_lock_is_exclusive_among_many(tmp_path):
    code = """
        import os, sys, time
        from emprob import store
        from emprob.errors import CheckpointError
        path, end, held = sys.argv[1], time.time() + 1.0, 0
        for _ in range(3):
            if not os.fork():
                break
        while time.time() < end:
            try:
                with store.lock(path):
                    os.close(os.open(path + ".inside", os.O_CREAT | os.O_EXCL))
                    os.unlink(path + ".inside")
                    held += 1
            except CheckpointError:
                pass
        os.write(1, f"{held}\\n".encode())
    """
    done = in_process(code, tmp_path / "x")
    assert "FileExistsError" not in done.stderr, done.stderr
    deadline = time.time() + 5
    while os.listdir(tmp_path) and time.time() < deadline:
        time.sleep(0.1)
    counts = [int(line) for line in done.stdout.split()]
    assert len(counts) == 4 and sum(counts) > 100
    assert not os.listdir(tmp_path)


def test_fingerprint_sees_names_types_shapes_and_bits():
    base = {"y": np.arange(6.0), "x": {"a": None, "b": "text", "c": 3}}
    prints = {
        store.fingerprint(tree)
        for tree in [
            base,
            {**base, "y": np.arange(6.0).reshape(2, 3)},
            {**base, "y": np.arange(6.0, dtype=np.float32)},
            {**base, "y": np.nextafter(np.arange(6.0), 9.0)},
            {"z": base["y"], "x": base["x"]},
            {**base, "x": {**base["x"], "a": "null"}},
            {**base, "x": {"a": None, "b": "text"}, "c": 3},
        ]
    }
    assert len(prints) == 7
    assert store.fingerprint(dict(reversed(base.items()))) == store.fingerprint(base)
    assert store.fingerprint(np.eye(3, order="F")[::2]) == store.fingerprint(np.eye(3)[::2].copy())
    with pytest.raises(TypeError):
        store.fingerprint({"f": object()})
