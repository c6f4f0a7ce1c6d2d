"""Where prepared months are read and predictions kept: a folder of this machine, or a bucket that all machines see.

Names are relative to a place's root, with slashes. A file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import files
from tipline.errors import TiplineError, UsageError, hide_secrets, summarize_exception

if TYPE_CHECKING:
    import io
    import os
    from collections.abc import Iterable, Iterator, Sequence

SCHEME = "s3://"
# Three tries, some seconds in all, for a server that does not answer; s3fs itself waits longer for one that is busy.
PATIENCE = {"retries": {"mode": "standard", "max_attempts": 3}, "connect_timeout": 5, "read_timeout": 60}
FOOTER_BYTES = 1 << 16  # holds the footer of a month of 20 row groups; a longer one takes a second request
AT_ONCE = 16


class Storage(ABC):
    """A folder of folders, one a month. It travels to the workers: small, and nothing open in it."""

    @abstractmethod
    def check_access(self) -> None:
        """Find out whether this process can use the place.

        Raises
        ------
        TiplineError
            Where it cannot.
        """

    @abstractmethod
    def address(self, name: str = "") -> str:
        """A path or an address, for a person."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A small file's bytes, None where it is not there."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Put a file in its place; it need not survive a power cut before `publish`."""

    @abstractmethod
    def list_sizes(self, folder: str) -> dict[str, int]:
        """The files of a folder and their bytes, hidden ones too; none where it is not there."""

    @abstractmethod
    def list_folders(self) -> list[str]:
        """The folders of the root, sorted."""

    @abstractmethod
    def remove_folder(self, folder: str) -> None:
        """Remove a folder with its files, if it is there."""

    @abstractmethod
    def remove_files(self, names: Iterable[str]) -> None:
        """Remove files, those that are there."""

    @abstractmethod
    def get_state(self, name: str) -> str | None:
        """The file's length, a dash, and what differs when it is replaced; None where it is not there."""

    @abstractmethod
    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[io.BufferedIOBase]:
        """A file that is read in pieces."""

    @abstractmethod
    @contextlib.contextmanager
    def open_parquet(
        self, name: str, state: str | None, columns: Sequence[str] = (), groups: Sequence[int] = ()
    ) -> Iterator[pq.ParquetFile]:
        """An open Parquet file in this state, of which these columns of these row groups are to be read."""

    @abstractmethod
    def publish_folder(self, staged: Storage, source: str, folder: str) -> None:
        """Move a finished folder of a place of the same kind here, in place of the one that is here."""

    @abstractmethod
    def recover(self, staged: Storage) -> None:
        """Finish what a crash in `publish` left, where the next `publish` would not."""

    def read_json(self, name: str) -> Any:  # noqa: ANN401 (anything that json can hold)
        """A json file's value, None where it is not there or is no json."""
        data = self.read(name)
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            return None

    def write_json(self, name: str, value: Any) -> None:  # noqa: ANN401 (anything that json can hold)
        """Write a json file."""
        self.write(name, files.format_json(value).encode())

    def count_group_rows(self, name: str, state: str | None) -> list[int]:
        """The rows of each row group of a Parquet file in this state."""
        with self._reading(name, state), self.open_parquet(name, state) as file:
            return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]

    def read_row_group(self, name: str, group: int, columns: Sequence[str], state: str | None) -> pa.Table:
        """The columns of a row group; those that the file has not are left out.

        Raises
        ------
        TiplineError
            Where the file cannot be read, or is no longer as it was when `state` was asked for.
        """
        with self._reading(name, state), self.open_parquet(name, state, columns, [group]) as file:
            table = file.read_row_group(group, columns=list(columns), use_threads=False)
        self._check(name, state)
        return table

    def hash_file(self, name: str) -> str:
        """Hex digest of a file that need not fit in memory.

        Raises
        ------
        TiplineError
            Where it cannot be read.
        """
        with self._reading(name, self.get_state(name)), self.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _check(self, name: str, state: str | None) -> None:
        """Refuse a file that is another one now."""
        if (now := self.get_state(name)) is None:
            raise explain_missing(self.address(name))
        if now != state:
            todo = "Let nothing else write there, and run it again: the month is then scored as it is now."
            raise TiplineError("This file changed while it was being used.", self.address(name), todo)

    @contextlib.contextmanager
    def _reading(self, name: str, state: str | None) -> Iterator[None]:
        """Turn what Arrow says of a file into what a person is told."""
        try:
            yield
        except FileNotFoundError as error:
            raise explain_missing(self.address(name)) from error
        except (pa.ArrowException, OSError) as error:
            self._check(name, state)
            todo = f"Make it again: dvc repro -f prepare@{name.partition('/')[0].removeprefix('month=')}"
            raise TiplineError(
                f"This file cannot be read: {summarize_exception(error)}.", self.address(name), todo
            ) from error


def explain_missing(address: str) -> TiplineError:
    """What it means that a file is not there."""
    todo = "Bring it back; workers that do not share this machine's folders need places such as s3://… (--trips, --to)."
    return TiplineError("This file is not there, or cannot be seen from here.", address, todo)


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder of this machine, or one that all machines mount at the same path."""

    root: Path

    def check_access(self) -> None:
        """A worker must not make a folder of its own, which the others do not see."""
        if not self.root.is_dir():
            todo = "Prepare months (dvc repro) or mount it; workers on other machines need s3://… (--trips, --to)."
            raise TiplineError("This folder is not there, or cannot be seen from here.", self.address(), todo)

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
        if (self.root / folder).exists():
            shutil.rmtree(self.root / folder)

    def remove_files(self, names: Iterable[str]) -> None:
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def get_state(self, name: str) -> str | None:
        try:
            found: os.stat_result = (self.root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[io.BufferedIOBase]:
        with (self.root / name).open("rb") as file:
            yield file

    @contextlib.contextmanager
    def open_parquet(
        self, name: str, state: str | None, columns: Sequence[str] = (), groups: Sequence[int] = ()
    ) -> Iterator[pq.ParquetFile]:
        """Not mapped into memory: a file that is cut meanwhile would end the process."""
        del columns, groups, state
        with pq.ParquetFile(self.root / name) as file:
            yield file

    def publish_folder(self, staged: Storage, source: str, folder: str) -> None:
        """Rename the folder in; at any moment the old month is here or the new one, but for between two renames."""
        if not isinstance(staged, LocalStorage):
            raise TypeError(staged)
        files.swap_folder(staged.root / source, self.root / folder)

    def recover(self, staged: Storage) -> None:
        """Put the month that a crash between the two renames left aside back in its place; make both folders."""
        for folder in (self.root, Path(staged.address())):
            folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(Path(staged.address()).glob("month=*.old")):
            folder = self.root / old.name.partition(".")[0]
            if folder.exists():
                shutil.rmtree(old)
            else:
                old.rename(folder)


@dataclass(frozen=True)
class RemoteStorage(Storage):
    """A folder of a bucket of S3, by s3fs; keys and endpoint come from the environment of each process."""

    root: str

    def address(self, name: str = "") -> str:
        return f"{self.root}/{name}".rstrip("/")

    @property
    def _filesystem(self) -> Any:  # noqa: ANN401 (fsspec carries no types)
        import fsspec  # noqa: PLC0415 (not for folders)

        # Stores that only look like S3 know no trailing checksums; listings that are kept would hide what others do.
        # Small files are fetched without asking for their length first (max_concurrency).
        config = PATIENCE | {"request_checksum_calculation": "when_required"}
        return fsspec.filesystem("s3", use_listings_cache=False, max_concurrency=1, config_kwargs=config)

    def check_access(self) -> None:
        self._list("")

    def read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError), self._speaking(name):
            data: bytes = self._filesystem.cat_file(self.address(name))
            return data
        return None

    def write(self, name: str, data: bytes) -> None:
        with self._speaking(name):
            self._filesystem.pipe_file(self.address(name), bytes(data))

    def list_sizes(self, folder: str) -> dict[str, int]:
        return {_last(info): info["size"] for info in self._list(folder) if info["type"] == "file"}

    def list_folders(self) -> list[str]:
        return sorted(_last(info) for info in self._list("") if info["type"] == "directory")

    def _list(self, folder: str) -> list[dict[str, Any]]:
        """What a folder holds, but for the empty object that stores' pages make for the folder itself."""
        with contextlib.suppress(FileNotFoundError), self._speaking(folder):
            found: list[dict[str, Any]] = self._filesystem.ls(self.address(folder), detail=True)
            return [info for info in found if not info["name"].endswith("/")]
        return []

    def remove_folder(self, folder: str) -> None:
        """The manifest first: what is left by a crash is not taken for a whole month."""
        names = self.list_sizes(folder).keys()
        self.remove_files(f"{folder}/{name}" for name in names & {files.MANIFEST})
        self.remove_files(f"{folder}/{name}" for name in names - {files.MANIFEST})

    def remove_files(self, names: Iterable[str]) -> None:
        """Many requests at once: not every store takes one request for many."""
        filesystem = self._filesystem

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError), self._speaking(name):
                filesystem.rm_file(self.address(name))

        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(remove, names))

    def get_state(self, name: str) -> str | None:
        with contextlib.suppress(FileNotFoundError), self._speaking(name):
            info = self._filesystem.info(self.address(name))
            return f"{info['size']}-{info.get('ETag')}-{info.get('LastModified')}"
        return None

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[io.BufferedIOBase]:
        with self._speaking(name), self._filesystem.open(self.address(name)) as file:
            yield file

    @contextlib.contextmanager
    def open_parquet(
        self, name: str, state: str | None, columns: Sequence[str] = (), groups: Sequence[int] = ()
    ) -> Iterator[pq.ParquetFile]:
        """Only the bytes of these columns and row groups are fetched, all at once.

        A file's footer is fetched once by a process. fsspec's own way (`fsspec.parquet`) asks for the length and for a
        million bytes of the footer each time.
        """
        from fsspec.parquet import AlreadyBufferedFile  # noqa: PLC0415 (not for folders)

        address = self.address(name)
        if state is None:
            raise FileNotFoundError(address)
        footer = _footer(self, name, state)
        spans = _spans(footer, columns, groups, address)
        data = dict(zip(spans, self._fetch(name, spans), strict=True))
        options = {"cache_type": "parts", "cache_options": {"data": data}, "size": _length(state)}
        with (
            AlreadyBufferedFile(None, address, "rb", **options) as opened,
            pq.ParquetFile(opened, metadata=footer) as file,
        ):
            yield file

    def _fetch(self, name: str, spans: Iterable[tuple[int, int]]) -> list[bytes]:
        """Parts of a file, each from the first byte to before the second."""
        starts, ends = [start for start, _ in spans], [end for _, end in spans]
        with self._speaking(name):
            paths = [self.address(name)] * len(starts)
            found: list[bytes] = self._filesystem.cat_ranges(paths, starts, ends, on_error="raise")
            return found

    def recover(self, staged: Storage) -> None:
        """Nothing: the staged folder of a month that was being published is whole, and it is published again."""

    def publish_folder(self, staged: Storage, source: str, folder: str) -> None:
        """Copy the files within the store, the manifest last; a folder without a manifest is not published.

        There are no renames of folders there: a reader that does not look for the manifest can meet, for the moment
        that the copies take, parts of the old month beside parts of the new one.
        """
        names = staged.list_sizes(source).keys() - {files.MANIFEST}
        self.remove_files([f"{folder}/{files.MANIFEST}"])
        self._copy(staged, source, folder, sorted(names))
        self.remove_files(f"{folder}/{name}" for name in self.list_sizes(folder).keys() - names)
        self._copy(staged, source, folder, [files.MANIFEST])
        staged.remove_folder(source)

    def _copy(self, staged: Storage, source: str, folder: str, names: Sequence[str]) -> None:
        """Copy files from another place of the store, many at once."""
        sources = [staged.address(f"{source}/{name}") for name in names]
        with self._speaking(folder):
            self._filesystem.copy(sources, [self.address(f"{folder}/{name}") for name in names])

    @contextlib.contextmanager
    def _speaking(self, name: str) -> Iterator[None]:
        """Turn what the store's library says into what a person is told; a file that is not there stays that."""
        from tipline.ingest import transfer  # noqa: PLC0415 (not for folders)

        try:
            yield
        except transfer.ERRORS as error:
            if (message := _told(error, self.address(name))) is None:
                raise
            raise message from error


def _told(error: Exception, address: str) -> TiplineError | None:
    """What a store's error means; None where a file is not there."""
    from tipline.ingest import transfer  # noqa: PLC0415 (not for folders)

    status, code, _, words = transfer.read_facts(error)
    if code == "NoSuchBucket":
        return TiplineError("The bucket does not exist.", address, "Check --trips and --to, or make the bucket.")
    if isinstance(error, FileNotFoundError):
        return None
    if status == transfer.FORBIDDEN or isinstance(error, transfer.NO_KEYS):
        todo = f"{transfer.TODO_KEYS} Workers on other machines need them, too."
        return TiplineError(f"The store refuses these keys: {hide_secrets(words)}.", address, todo)
    if status in transfer.STALE:
        return TiplineError("This file changed while it was being used.", address, "Run it again.")
    todo = "Check the address, AWS_ENDPOINT_URL and the network, here and on the workers; then run it again."
    return TiplineError(f"The store cannot be used: {hide_secrets(words)}.", address, todo)


@functools.lru_cache(maxsize=16)
def _footer(bucket: RemoteStorage, name: str, state: str) -> pq.FileMetaData:
    """The footer of a Parquet file; a worker is given block after block of a month."""
    size = _length(state)
    (tail,) = bucket._fetch(name, [(max(size - FOOTER_BYTES, 0), size)])  # noqa: SLF001 (a method that lru_cache keeps)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail.endswith(b"PAR1") and len(tail) < length <= size:
        (tail,) = bucket._fetch(name, [(size - length, size)])  # noqa: SLF001
    return pq.read_metadata(pa.BufferReader(tail))


def _spans(
    footer: pq.FileMetaData, columns: Sequence[str], groups: Sequence[int], address: str
) -> list[tuple[int, int]]:
    """Where the columns of the row groups lie in the file, those beside each other as one."""
    from fsspec.utils import merge_offset_ranges  # noqa: PLC0415 (not for folders)

    chunks = [footer.row_group(group).column(column) for group in groups for column in range(footer.num_columns)]
    wanted = [chunk for chunk in chunks if chunk.path_in_schema in columns]
    starts = [min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset) for chunk in wanted]
    ends = [start + chunk.total_compressed_size for start, chunk in zip(starts, wanted, strict=True)]
    _, starts, ends = merge_offset_ranges([address] * len(starts), starts, ends, max_gap=FOOTER_BYTES)
    return list(zip(starts, ends, strict=True))


def _length(state: str) -> int:
    """The bytes of a file in this state."""
    return int(state.partition("-")[0])


def _last(info: dict[str, Any]) -> str:
    """A file's or folder's own name."""
    return str(info["name"]).rpartition("/")[2]


def open_storage(address: str | Path) -> Storage:
    """The place that a path or an address (`s3://bucket/folder`) names.

    Raises
    ------
    UsageError
        Where it is neither.
    """
    text = str(address).removeprefix("file://")
    if "://" not in text:
        return LocalStorage(Path(text).resolve())
    if not text.startswith(SCHEME) or not text.removeprefix(SCHEME).strip("/"):
        raise UsageError("This is no place for months.", text, "Give a path or s3://BUCKET/FOLDER.")
    return RemoteStorage(SCHEME + text.removeprefix(SCHEME).strip("/"))
