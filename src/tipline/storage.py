"""Where prepared months are read and predictions are kept: a folder of this machine, or a bucket that all machines see.

Names are relative to the root, with slashes. A file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from tipline import files
from tipline.errors import TiplineError, UsageError, hide_secrets, summarize_exception

if TYPE_CHECKING:
    import io
    import os
    from collections.abc import Iterable, Iterator, Sequence

SCHEME = "s3://"
AT_ONCE = 16
# Staged parts in a bucket, where no lock tells whether their run still works, are removed after this time.
ABANDONED = timedelta(days=1)
TODO_KEYS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary ones) or AWS_PROFILE, and "
    "AWS_ENDPOINT_URL for a server other than Amazon's, here and on all workers. FSSPEC_S3_ANON=true reads a public "
    "bucket without keys."
)
STORE_ERRORS = (BotoCoreError, ClientError)
FORBIDDEN, CHANGED, BUSY, FAILED = 403, {412, 416}, {408, 429}, 500


class Storage(ABC):
    """A folder with one folder per month. It travels to the workers, so it is small and holds nothing open."""

    @abstractmethod
    def check_access(self) -> None:
        """Check that this process can use the storage.

        Raises
        ------
        TiplineError
            It cannot.
        """

    @abstractmethod
    def address(self, name: str = "") -> str:
        """Return a path or an address for messages."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return the bytes of a small file, or None if it is missing."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file; it need not survive a power cut before `publish_folder`."""

    @abstractmethod
    def list_sizes(self, folder: str) -> dict[str, int]:
        """Return the files of a folder with their sizes in bytes, hidden ones too."""

    @abstractmethod
    def list_folders(self) -> list[str]:
        """Return the folders of the root, sorted."""

    @abstractmethod
    def remove_folder(self, folder: str) -> None:
        """Remove a folder with its files, if it exists."""

    @abstractmethod
    def remove_files(self, names: Iterable[str]) -> None:
        """Remove the files that exist."""

    @abstractmethod
    def is_abandoned(self, folder: str) -> bool:
        """Whether no other run can be working in a staged folder."""

    @abstractmethod
    def get_state(self, name: str) -> str | None:
        """Return a text that changes when the file is replaced, or None if it is missing."""

    @abstractmethod
    @contextlib.contextmanager
    def open_file(self, name: str) -> Iterator[io.BufferedIOBase]:
        """Open a file that is read in pieces."""

    @abstractmethod
    def publish_folder(self, staged: Storage, source: str, folder: str) -> None:
        """Move a finished folder from a storage of the same kind here, in place of the one that is here."""

    @abstractmethod
    def recover(self, staged: Storage) -> None:
        """Complete what a crash in `publish_folder` has left."""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs from writing here, if this kind of storage can."""
        yield

    def read_json(self, name: str) -> Any:  # noqa: ANN401 (any JSON value)
        """Return the value of a JSON file, or None if it is missing or not JSON."""
        data = self.read(name)
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            return None

    def write_json(self, name: str, value: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Write a JSON file."""
        self.write(name, files.format_json(value).encode())

    def count_group_rows(self, name: str, state: str | None) -> list[int]:
        """Return the rows of each row group of a Parquet file in this state."""
        with self._translate(name, state), self.open_file(name) as file:
            metadata = pq.read_metadata(file)
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def read_row_group(self, name: str, group: int, columns: Sequence[str], state: str | None) -> pa.Table:
        """Read columns of a row group; those that the file does not have are left out.

        Only their bytes are read. The file is not mapped into memory, because truncating it would kill the process.

        Raises
        ------
        TiplineError
            The file cannot be read, or is no longer in this state.
        """
        with (
            self._translate(name, state),
            self.open_file(name) as file,
            pq.ParquetFile(file, pre_buffer=True) as parquet,
        ):
            table = parquet.read_row_group(group, columns=list(columns), use_threads=False)
        self._check_state(name, state)
        return table

    def hash_file(self, name: str) -> str:
        """Return the sha256 of a file of any size.

        Raises
        ------
        TiplineError
            It cannot be read.
        """
        with self._translate(name, self.get_state(name)), self.open_file(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _check_state(self, name: str, state: str | None) -> None:
        now = self.get_state(name)
        if now is None:
            raise explain_missing(self.address(name))
        if now != state:
            todo = "Let nothing else write there and run the command again; the month is then scored as it is now."
            raise TiplineError("This file changed while it was being used.", self.address(name), todo)

    @contextlib.contextmanager
    def _translate(self, name: str, state: str | None) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise explain_missing(self.address(name)) from error
        except (pa.ArrowException, OSError) as error:
            self._check_state(name, state)
            todo = f"Prepare it again: dvc repro -f prepare@{name.partition('/')[0].removeprefix('month=')}"
            what = f"This file cannot be read: {summarize_exception(error)}."
            raise TiplineError(what, self.address(name), todo) from error


def explain_missing(address: str) -> TiplineError:
    """Return the error for a file or folder that is missing."""
    todo = "Restore it. Workers on other machines need a location that they all see, such as s3://... (--trips, --to)."
    return TiplineError("This does not exist, or is not visible from here.", address, todo)


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder of this machine, or one that all machines mount at the same path."""

    root: Path

    def check_access(self) -> None:
        if not self.root.is_dir():  # a worker must not create a folder that no other machine sees
            raise explain_missing(self.address())

    def address(self, name: str = "") -> str:
        return str(self.root / name)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        with files.create_file(self.root / name) as temporary:
            temporary.write_bytes(data)

    def list_sizes(self, folder: str) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (self.root / folder).glob("*") if path.is_file()}

    def list_folders(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("*") if path.is_dir())

    def remove_folder(self, folder: str) -> None:
        shutil.rmtree(self.root / folder, ignore_errors=not (self.root / folder).exists())

    def remove_files(self, names: Iterable[str]) -> None:
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def is_abandoned(self, folder: str) -> bool:
        del folder
        return True  # the run that asks holds the lock

    def get_state(self, name: str) -> str | None:
        try:
            found: os.stat_result = (self.root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"

    @contextlib.contextmanager
    def open_file(self, name: str) -> Iterator[io.BufferedIOBase]:
        with pa.OSFile(str(self.root / name)) as file:
            yield file

    def publish_folder(self, staged: Storage, source: str, folder: str) -> None:
        """Swap the folders: at any moment the old month is here or the new one, except between two renames."""
        files.swap_folder(Path(staged.address(source)), self.root / folder)

    def recover(self, staged: Storage) -> None:
        for folder in (self.root, Path(staged.address())):
            folder.mkdir(parents=True, exist_ok=True)
        files.recover_folders(Path(staged.address()), self.root)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with files.wait_for_lock(self.root / ".score.lock", f"Another process is scoring into {self.root}; waiting."):
            yield


@dataclass(frozen=True)
class RemoteStorage(Storage):
    """A folder of an S3 bucket; keys and endpoint come from the environment of each process."""

    root: str

    def check_access(self) -> None:
        self._list("")

    def address(self, name: str = "") -> str:
        return f"{self.root}/{name}".rstrip("/")

    def read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError), self._call(name):
            data: bytes = open_s3().cat_file(self.address(name))
            return data
        return None

    def write(self, name: str, data: bytes) -> None:
        with self._call(name):
            open_s3().pipe_file(self.address(name), bytes(data))

    def list_sizes(self, folder: str) -> dict[str, int]:
        return {get_last_part(info): info["size"] for info in self._list(folder) if info["type"] == "file"}

    def list_folders(self) -> list[str]:
        return sorted(get_last_part(info) for info in self._list("") if info["type"] == "directory")

    def _list(self, folder: str) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError), self._call(folder):
            found: list[dict[str, Any]] = open_s3().ls(self.address(folder), detail=True)
            return [info for info in found if not info["name"].endswith("/")]  # web pages create objects for folders
        return []

    def remove_folder(self, folder: str) -> None:
        """Remove the manifest first, so that the rest is not taken for a complete month."""
        names = self.list_sizes(folder).keys()
        self.remove_files(f"{folder}/{name}" for name in names & {files.MANIFEST})
        self.remove_files(f"{folder}/{name}" for name in names - {files.MANIFEST})

    def remove_files(self, names: Iterable[str]) -> None:
        """Remove files one by one, many at a time, because some stores do not support bulk requests."""

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError), self._call(name):
                open_s3().rm_file(self.address(name))

        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(remove, names))

    def is_abandoned(self, folder: str) -> bool:
        times = [info["LastModified"] for info in self._list(folder) if info["type"] == "file"]
        return all(datetime.now(UTC) - time > ABANDONED for time in times)

    def get_state(self, name: str) -> str | None:
        with contextlib.suppress(FileNotFoundError), self._call(name):
            info = open_s3().info(self.address(name))
            return f"{info['size']}-{info.get('ETag')}-{info.get('LastModified')}"
        return None

    @contextlib.contextmanager
    def open_file(self, name: str) -> Iterator[io.BufferedIOBase]:
        with self._call(name), open_s3().open(self.address(name), "rb", cache_type="none") as file:
            yield file

    def publish_folder(self, staged: Storage, source: str, folder: str) -> None:
        """Copy the files within the store, the manifest last: a month without a manifest is not published.

        Folders cannot be renamed there. For the moment of the copies, a reader that does not look for the manifest may
        find parts of the old month beside parts of the new one.
        """
        names = staged.list_sizes(source).keys() - {files.MANIFEST}
        self.remove_files([f"{folder}/{files.MANIFEST}"])
        self._copy(staged, source, folder, sorted(names))
        self.remove_files(f"{folder}/{name}" for name in self.list_sizes(folder).keys() - names)
        self._copy(staged, source, folder, [files.MANIFEST])
        staged.remove_folder(source)

    def recover(self, staged: Storage) -> None:
        """Nothing to do: a month whose publication was interrupted is still staged and is published again."""

    def _copy(self, staged: Storage, source: str, folder: str, names: Sequence[str]) -> None:
        sources = [staged.address(f"{source}/{name}") for name in names]
        with self._call(folder):
            open_s3().copy(sources, [self.address(f"{folder}/{name}") for name in names])

    @contextlib.contextmanager
    def _call(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, *STORE_ERRORS) as error:
            if isinstance(error, FileNotFoundError) and get_store_answer(error)[1] != "NoSuchBucket":
                raise
            message, _ = explain_store_error(error, self.address(name), "Check --trips and --to, or create the bucket.")
            raise message from error


def open_storage(address: str | Path) -> Storage:
    """Return the storage that a path or an address (`s3://bucket/folder`) names.

    Raises
    ------
    UsageError
        It is neither.
    """
    text = str(address).removeprefix("file://")
    if "://" not in text:
        return LocalStorage(Path(text).resolve())
    if not text.startswith(SCHEME) or not text.removeprefix(SCHEME).strip("/"):
        raise UsageError("This is not a location for months.", text, "Give a path or s3://BUCKET/FOLDER.")
    return RemoteStorage(SCHEME + text.removeprefix(SCHEME).strip("/"))


def get_last_part(info: dict[str, Any]) -> str:
    """Return the name of a file or folder without its path."""
    return str(info["name"]).rpartition("/")[2]


# ---- S3 ----


def open_s3(retries: int = 3) -> Any:  # noqa: ANN401 (fsspec has no types)
    """Return the S3 filesystem of this process.

    Parameters
    ----------
    retries
        Attempts per request for a server that does not answer.
    """
    import fsspec  # noqa: PLC0415 (local folders do without)

    # Stores that only resemble S3 know no trailing checksums, and cached listings would hide what others write.
    config = {"retries": {"mode": "standard", "max_attempts": retries}, "connect_timeout": 5, "read_timeout": 60}
    config |= {"request_checksum_calculation": "when_required"}
    return fsspec.filesystem("s3", use_listings_cache=False, max_concurrency=1, config_kwargs=config)


def explain_store_error(error: Exception, address: str, todo: str) -> tuple[TiplineError, bool]:
    """Return the message for an error of S3, and whether it may pass.

    Parameters
    ----------
    todo
        What to do about a bucket that does not exist.
    """
    status, code, words = get_store_answer(error)
    where, words = hide_secrets(address), hide_secrets(words)
    if code == "NoSuchBucket":
        return TiplineError("The bucket does not exist.", where, todo), False
    if status == FORBIDDEN or find_cause(
        error, PermissionError, NoCredentialsError, PartialCredentialsError, ProfileNotFound
    ):
        return TiplineError(f"S3 refuses these keys: {words}.", where, TODO_KEYS), False
    if status in CHANGED:
        return TiplineError("This file changed while it was being used.", where, "Run the command again."), True
    todo = "Check the address, AWS_ENDPOINT_URL and the network, here and on the workers; then run the command again."
    may_pass = status >= FAILED or status in BUSY or not status
    return TiplineError(f"S3 cannot be used: {words}.", where, todo), may_pass


def get_store_answer(error: Exception) -> tuple[int, str, str]:
    """Return HTTP status (0: none), error code and text of the answer that led to an error of S3."""
    answer = find_cause(error, ClientError)
    if isinstance(answer, ClientError):
        status, found = answer.response["ResponseMetadata"]["HTTPStatusCode"], answer.response["Error"]
        words = f"{status} {found.get('Code', '')} {found.get('Message', '')}"
        return int(status), str(found.get("Code", "")), words.strip(" .")
    words = getattr(error, "strerror", None) or str(error) or repr(error)
    return 0, "", str(words).rstrip(".")


def find_cause(error: BaseException | None, *kinds: type[BaseException]) -> BaseException | None:
    """Return the first error of these kinds among an error and those that led to it, or None."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error
