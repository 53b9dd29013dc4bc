"""Files that survive a crash: nested dictionaries of arrays and a JSON header in one `.npz`.

A file is written beside its target, flushed to the disk and renamed over it, so that a reader finds
the old content or the new one, never half of either. Nothing is pickled: a file from a stranger can
be refused, it cannot run code. `numpy.load` reads the arrays too.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from emprob.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

FORMAT = "emprob"
FORMAT_VERSION = 1

Tree = Mapping[str, Any]

_HEADER = "header.json"
_RESERVED = ("format", "format_version", "emprob_version", "tree")
_TEMPORARY = ".emprob-tmp"
_LOCK = ".emprob-lock"
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,  # json and npy headers, among others
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
)


def write(path: str | os.PathLike, arrays: Tree, meta: Mapping[str, Any]) -> None:
    """Write arrays and metadata to one file, all or nothing.

    The header records the version of the format, of `emprob`, and `float_width`: the widest float
    among the arrays, in bits, unless `meta` gives one.

    Args:
        path: the file; its folder must exist. Whatever was there is replaced.
        arrays: nested dictionaries with string keys; leaves are anything `numpy.asarray` makes into
            a boolean, number, date or string array.
        meta: what JSON can hold (tuples come back as lists); by convention with `model_hash` and
            `data_hash`, see `fingerprint`.

    Raises:
        CheckpointError: the file cannot be written (read-only folder, full disk). The previous file
            is untouched, the temporary one is gone.
        TypeError: a key is not a string, or a leaf or a value of `meta` cannot be stored.
        ValueError: `meta` uses a name of the header.
    """
    target = Path(os.path.realpath(path))
    leaves: dict[str, np.ndarray] = {}
    tree = _flatten(arrays, (), leaves)
    header = _header(tree, leaves, meta)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        _remove_strays(target)
        _write_archive(temporary, header, leaves)
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written: {error.strerror or error}. Expected a folder that "
            "exists and has room; choose another path or free space. The previous file is intact."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def read(
    path: str | os.PathLike, expect: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `write` wrote.

    Args:
        path: the file.
        expect: fields of the header and the value each must have, such as
            `{"model_hash": ..., "data_hash": ..., "float_width": 64}`.

    Returns:
        The nested dictionary of NumPy arrays, and the metadata: that of `write` with
        `format_version`, `emprob_version` and `float_width`.

    Raises:
        CheckpointError: there is no such file, it is truncated or damaged, it is not ours, it has
            another format version, or a field of `expect` differs (named, with both values).
        TypeError: a value of `expect` cannot be written as JSON.
    """
    path = Path(path)
    # As JSON gives them back, so that a tuple expected equals the list stored.
    wanted = json.loads(
        json.dumps({**(expect or {}), "format_version": FORMAT_VERSION}, default=_plain)
    )
    try:
        with zipfile.ZipFile(path) as archive:
            header = _read_header(path, archive)
            meta = _checked_meta(path, header, wanted)
            return _unflatten(header["tree"], archive), meta
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file. Expected a file saved by emprob.") from error
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path}: truncated, damaged, or not a file saved by emprob ({error}). "
            "Use another copy, or delete it and fit again."
        ) from error


@contextlib.contextmanager
def lock(path: str | os.PathLike) -> Iterator[None]:
    """Hold the right to write a checkpoint for as long as the block runs.

    The lock is a file beside `path` that holds the writer's process id. On POSIX systems the kernel
    frees it when the writer dies, however it dies, and the next writer takes it over. Elsewhere a
    stale lock file has to be deleted by hand; the error says so.

    Args:
        path: the checkpoint.

    Raises:
        CheckpointError: another writer holds it (its process id is named), or the folder cannot be
            written to.
    """
    target = Path(os.path.realpath(path))
    name = target.with_name(f".{target.name}{_LOCK}")
    try:
        descriptor = _acquire(name)
    except OSError as error:
        raise CheckpointError(
            f"{target}: no lock file can be made: {error.strerror or error}. "
            "Expected a folder that exists and can be written to; choose another path."
        ) from error
    try:
        yield
    finally:
        # Unlinked while still locked, so that no one takes over a file that is about to go.
        with contextlib.suppress(OSError):
            name.unlink()
        os.close(descriptor)


def fingerprint(tree: Any) -> str:
    """The SHA-256 of a nested dictionary of arrays: names, types, shapes and bits.

    Args:
        tree: nested dictionaries with string keys, or one leaf; leaves are arrays, numbers, strings
            or None. The order of the keys does not count.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: a leaf is none of these.
    """
    digest = hashlib.sha256()
    _feed(digest, tree)
    return digest.hexdigest()


def _feed(digest, tree: Any) -> None:
    if isinstance(tree, Mapping):
        digest.update(f"{{{len(tree)}".encode())
        for key in sorted(tree):
            digest.update(json.dumps(key).encode())
            _feed(digest, tree[key])
    elif tree is None:
        digest.update(b"null")
    else:
        array = _as_array(tree, ())
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())


def _as_array(leaf: Any, keys: tuple[str, ...]) -> np.ndarray:
    array = np.asarray(leaf)
    # Other kinds (objects, records, extension floats) need pickle, or come back as something else.
    if array.dtype.kind not in "biufcSUmM":
        raise TypeError(
            f"{'/'.join(keys) or 'leaf'}: expected numbers, booleans, dates or strings, got "
            f"{type(leaf).__name__} of dtype {array.dtype}; convert it to one of these"
        )
    return array


def _flatten(tree: Tree, keys: tuple[str, ...], leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    """Collect the leaves under their member names; return the tree with names in their place."""
    names: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise TypeError(f"{'/'.join(keys)}: expected keys that are strings, got {key!r}")
        here = (*keys, key)
        if isinstance(value, Mapping):
            names[key] = _flatten(value, here, leaves)
        else:
            # Quoted, so that {"a/b": ...} and {"a": {"b": ...}} have different members.
            names[key] = "/".join(quote(part, safe="") for part in here) + ".npy"
            leaves[names[key]] = _as_array(value, here)
    return names


def _header(tree: Tree, leaves: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bytes:
    from emprob import __version__  # the package imports this module

    taken = sorted(set(meta) & set(_RESERVED))
    if taken:
        raise ValueError(f"meta: the names {taken} belong to the header; choose others")
    widths = [8 * leaf.dtype.itemsize for leaf in leaves.values() if leaf.dtype.kind == "f"]
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "emprob_version": __version__,
        "float_width": max(widths, default=0),
        **meta,
        "tree": tree,
    }
    return json.dumps(header, default=_plain).encode()


def _plain(value: Any) -> Any:
    """NumPy scalars as Python's own, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"meta: {type(value).__name__} cannot be written as JSON: {value!r}")


def _write_archive(path: Path, header: bytes, leaves: Mapping[str, np.ndarray]) -> None:
    with open(path, "xb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            archive.writestr(_HEADER, header)
            for name, leaf in leaves.items():
                with archive.open(name, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, leaf, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_strays(target: Path) -> None:
    """Remove what writers of this file that were killed have left behind."""
    stray = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.[0-9a-f]{{8}}{re.escape(_TEMPORARY)}")
    # What cannot be listed or removed does not hinder the writing; that reports its own errors.
    with contextlib.suppress(OSError):
        for path in target.parent.iterdir():
            match = stray.fullmatch(path.name)
            if match and not _alive(int(match[1])):
                path.unlink()


def _alive(pid: int) -> bool:
    if sys.platform == "win32":  # there, signal 0 is not a question but Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _acquire(name: Path) -> int:
    """Open and lock the lock file; returns its descriptor."""
    if sys.platform == "win32":
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            raise _held(name, f"; if that process is gone, delete {name}") from None
    else:
        descriptor = _acquire_posix(name)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _acquire_posix(name: Path) -> int:
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder may have removed the file between our open and our lock: then ours is
            # nameless, and somebody else may hold the one that has the name.
            if os.path.samestat(os.fstat(descriptor), os.stat(name)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise _held(name, "") from None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _held(name: Path, remedy: str) -> CheckpointError:
    try:
        pid = name.read_text() or "unknown"
    except OSError:
        pid = "unknown"
    return CheckpointError(
        f"{name}: process {pid} is writing this checkpoint. "
        f"Wait for it, or give this run a path of its own{remedy}."
    )


def _read_header(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    header = json.loads(archive.read(_HEADER)) if _HEADER in archive.namelist() else None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a file saved by emprob: it has none of its headers.")
    return header


def _checked_meta(
    path: Path, header: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    meta = {key: value for key, value in header.items() if key not in ("format", "tree")}
    for field, value in wanted.items():
        found = meta.get(field, "nothing")
        if field not in meta or found != value:
            raise CheckpointError(
                f"{path}: the field {field!r} differs: expected {value!r}, got {found!r}. The file "
                "belongs to another model, data set, precision or version; fit again, or give the "
                "one that it was made with."
            )
    return meta


def _unflatten(names: Mapping[str, Any], archive: zipfile.ZipFile) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for key, name in names.items():
        if isinstance(name, dict):
            arrays[key] = _unflatten(name, archive)
        else:
            # All bytes first: the archive's checksum is verified before anything is parsed.
            member = io.BytesIO(archive.read(name))
            arrays[key] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays
