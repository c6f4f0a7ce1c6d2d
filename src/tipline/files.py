"""How files are published: written beside their place, flushed, renamed in; a folder's receipt is written last."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import filelock

from tipline.errors import TiplineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Parquet readers (pyarrow, dask, Spark) pass over names that begin with an underscore.
MANIFEST = "_receipt.json"
# The system's errors of a disk, a quota or a file that can take no more.
DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def hash_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_bytes(data: bytes) -> str:
    """Hex digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """Length and digest of a file, as receipts have them."""
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def hash_json(value: Any) -> str:  # noqa: ANN401 (anything that json can hold)
    """Hex digest of a json value, whatever the order of its keys."""
    return hash_bytes(json.dumps(value, sort_keys=True).encode())


def flush_to_disk(path: Path) -> None:
    """Ask the disk to keep a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def create_file(path: Path) -> Iterator[Path]:
    """Give a temporary path; rename it to `path` if the block ends well, remove it if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """`placing`, and what is renamed in survives a power cut."""
    with create_file(path) as temporary:
        yield temporary
        flush_to_disk(temporary)
    flush_to_disk(path.parent)


@contextlib.contextmanager
def replace_folder(folder: Path, staging: Path) -> Iterator[Path]:
    """Give an empty folder under `staging`; rename it to `folder` if the block ends well.

    Both must be on one file system.
    """
    staged = staging / folder.name
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        swap_folder(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def swap_folder(staged: Path, folder: Path) -> None:
    """Rename a finished folder into its place; what stood there is moved aside first and removed last.

    A crash between the two renames leaves the old folder beside `staged`, under the name that `aside` gives.
    """
    for file in staged.iterdir():
        flush_to_disk(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        # Left by a crash after both renames; a rename onto a folder that holds something fails.
        shutil.rmtree(get_backup_path(staged), ignore_errors=True)
        folder.rename(get_backup_path(staged))
    staged.rename(folder)
    flush_to_disk(folder.parent)
    shutil.rmtree(get_backup_path(staged), ignore_errors=True)


def get_backup_path(staged: Path) -> Path:
    """Where the folder that `staged` replaces waits until the new one is in its place."""
    return staged.with_name(f"{staged.name}.old")


@contextlib.contextmanager
def hold_lock(path: Path, what: str) -> Iterator[None]:
    """Keep other processes out of the block.

    Raises
    ------
    TiplineError
        At once, where another process is in it: `what` says what that is doing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        todo = "Wait for it to end, or stop it; what it has finished is kept."
        raise TiplineError(f"Another process is {what}.", str(path), todo) from error
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, whole or not at all; one that a crash cut off before is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        data = (b"" if file.read(1) in {b"", b"\n"} else b"\n") + line.encode() + b"\n"
        try:
            while data:  # of a full disk, the first write may take a part
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 (anything that json can hold)
    """Write a json file, whole or not at all; keys keep their order, so equal values are equal bytes."""
    write_text(path, format_json(value))


def format_json(value: Any) -> str:  # noqa: ANN401 (anything that json can hold)
    """A json value as the files have it."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of the same keys as CSV, whole or not at all."""
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: Path, todo: str) -> Any:  # noqa: ANN401 (anything that json can hold)
    """Read a json file that tipline wrote.

    Raises
    ------
    TiplineError
        Where it is not there or is no json; `todo` says how to get it back.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TiplineError("A file that an earlier stage writes is missing.", str(path), todo) from error
    except json.JSONDecodeError as error:
        raise TiplineError(f"This file is not valid json: {error}.", str(path), todo) from error


def try_read_json(path: Path) -> Any:  # noqa: ANN401 (anything that json can hold)
    """`read_json`, None where the file is not there or is no json."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
