"""Publish files and folders whole or not at all: write beside the target, flush, rename. A manifest is written last."""

import contextlib
import csv
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import psutil

from tipline.errors import TiplineError

log = logging.getLogger(__name__)

# Parquet readers (pyarrow, dask, Spark) skip names that begin with an underscore.
MANIFEST = "_manifest.json"
# A disk, a quota or a file that can take no more.
DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REPLACED = ".replaced"
SWAP_LOCK = ".swap.lock"


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_json(value: Any) -> str:  # noqa: ANN401 (any JSON value)
    """Return the sha256 of a JSON value as hex; the order of keys does not matter."""
    return hash_bytes(json.dumps(value, sort_keys=True).encode())


def describe_file(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def is_described(path: Path, described: Mapping[str, Any], manifest: Path) -> bool:
    """Whether a file is the one that its manifest describes; it is hashed if it is younger than the manifest."""
    if not (path.is_file() and manifest.is_file() and path.stat().st_size == described.get("bytes")):
        return False
    return path.stat().st_mtime_ns <= manifest.stat().st_mtime_ns or hash_file(path) == described.get("sha256")


def flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_token() -> str:
    """Return a name for temporary files that no other process uses, also on a shared file system."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def replace_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path`, flushed by default, if the block succeeds; remove it otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{create_token()}.tmp")
    try:
        yield temporary
        if flush:
            flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if flush:
        flush_to_disk(path.parent)


@contextlib.contextmanager
def replace_folder(folder: Path, staging: Path) -> Iterator[Path]:
    """Yield an empty folder below `staging`; swap it with `folder` if the block succeeds, remove it otherwise.

    Both must be on one file system. Several processes may do this at once: each has a staging folder of its own, and
    the last one to finish wins.
    """
    recover_folders(staging, folder.parent)
    for abandoned in staging.glob(f"*.{socket.gethostname()}-*-*"):
        process = abandoned.name.rsplit("-", 2)[1]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(abandoned, ignore_errors=True)
    staged = staging / f"{folder.name}.{create_token()}"
    staged.mkdir(parents=True)
    try:
        yield staged
        swap_folder(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def swap_folder(staged: Path, folder: Path) -> None:
    """Rename a finished folder into place; the one that it replaces is moved aside first and removed last.

    A crash between the two renames leaves the old folder beside `staged`, where `recover_folders` finds it.
    """
    for file in staged.iterdir():
        flush_to_disk(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    replaced = staged.with_name(f"{folder.name}{REPLACED}")
    with filelock.FileLock(staged.parent / SWAP_LOCK):
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)  # left by a crash after both renames
            folder.rename(replaced)
        staged.rename(folder)
        flush_to_disk(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def recover_folders(staging: Path, parent: Path) -> None:
    """Put back the folders of `parent` that a crash in `swap_folder` has left in `staging`."""
    for replaced in list(staging.glob(f"*{REPLACED}")):
        folder = parent / replaced.name.removesuffix(REPLACED)
        with filelock.FileLock(staging / SWAP_LOCK):
            if folder.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            elif replaced.exists():
                parent.mkdir(parents=True, exist_ok=True)
                replaced.rename(folder)


@contextlib.contextmanager
def hold_lock(path: Path, activity: str, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of the block; raise TiplineError if one is in it, unless this one is to `wait`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout as error:
        if not wait:
            todo = "Wait for it to end, or stop it. What it has finished is kept."
            raise TiplineError(f"Another process is {activity}.", str(path), todo) from error
        log.info("another process is %s, waiting for it to end (%s)", activity, path)
        held = lock.acquire()
    with held:
        yield


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 (any JSON value)
    """Write a JSON file, whole or not at all; keys keep their order, so equal values give equal bytes."""
    write_text(path, format_json(value))


def format_json(value: Any) -> str:  # noqa: ANN401 (any JSON value)
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with equal keys as CSV, whole or not at all."""
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: Path, todo: str) -> Any:  # noqa: ANN401 (any JSON value)
    """Read a JSON file that an earlier stage wrote; if it is missing or damaged, `todo` says how to get it back."""
    if (value := try_read_json(path)) is None:
        raise TiplineError("A file that an earlier stage writes is missing, or is not JSON.", str(path), todo)
    return value


def try_read_json(path: Path) -> Any:  # noqa: ANN401 (any JSON value)
    """Read a JSON file; return None if it is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
