"""Where prepared months are read and predictions kept: a folder of this machine, or a bucket that all machines see.

Names are relative to a place's root, with slashes. A file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import files
from tipline.errors import TiplineError, said

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence


class Place(ABC):
    """A folder of folders, one a month. It travels to the workers: small, and nothing open in it."""

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
    def sizes(self, folder: str) -> dict[str, int]:
        """The files of a folder and their bytes, hidden ones too; none where it is not there."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The folders of the root, sorted."""

    @abstractmethod
    def remove(self, folder: str) -> None:
        """Remove a folder with its files, if it is there."""

    @abstractmethod
    def remove_file(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def state(self, name: str) -> str | None:
        """What differs when a file is replaced or written to, None where it is not there."""

    @abstractmethod
    @contextlib.contextmanager
    def parquet(self, name: str, columns: Sequence[str] | None, groups: Sequence[int]) -> Iterator[pq.ParquetFile]:
        """An open Parquet file, of which these row groups and columns (None: all) are to be read."""

    @abstractmethod
    def publish(self, staged: Place, folder: str) -> None:
        """Move a finished folder here from a place of the same kind, in place of the one that is here."""

    @abstractmethod
    def mend(self, staged: Place) -> None:
        """Finish what a crash in `publish` left, where the next `publish` would not."""

    def json(self, name: str) -> Any:  # noqa: ANN401 (anything that json can hold)
        """A json file's value, None where it is not there or is no json."""
        data = self.read(name)
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            return None

    def write_json(self, name: str, value: Any) -> None:  # noqa: ANN401 (anything that json can hold)
        """Write a json file."""
        self.write(name, files.json_text(value).encode())

    def groups(self, name: str) -> list[int]:
        """The rows of each row group of a Parquet file."""
        with self._reading(name), self.parquet(name, [], []) as file:
            return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]

    def table(self, name: str, group: int, columns: Sequence[str], state: str | None) -> pa.Table:
        """The columns of a row group; those that the file has not are left out.

        Raises
        ------
        TiplineError
            Where the file cannot be read, or is no longer as it was when `state` was asked for.
        """
        before = self.state(name)
        with self._reading(name), self.parquet(name, columns, [group]) as file:
            table = file.read_row_group(group, columns=list(columns), use_threads=False)
        if not state == before == self.state(name):
            todo = "Let nothing else write there, and run it again: the month is then scored as it is now."
            raise TiplineError("This file changed while it was being used.", self.address(name), todo)
        return table

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Turn what Arrow says of a file into what a person is told."""
        try:
            yield
        except FileNotFoundError as error:
            todo = "Bring it back; workers that do not share this machine's folders need places such as s3://…"
            raise TiplineError("A file is not there, or not for this worker.", self.address(name), todo) from error
        except (pa.ArrowException, OSError) as error:
            todo = "Make it again: dvc repro -f prepare@MONTH"
            raise TiplineError(f"This file cannot be read: {said(error)}.", self.address(name), todo) from error


@dataclass(frozen=True)
class Folder(Place):
    """A folder of this machine, or one that all machines mount at the same path."""

    root: Path

    def address(self, name: str = "") -> str:
        """The path."""
        return str(self.root / name)

    def read(self, name: str) -> bytes | None:
        """See `Place.read`."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """See `Place.write`."""
        with files.placing(self.root / name) as temporary:
            temporary.write_bytes(data)

    def sizes(self, folder: str) -> dict[str, int]:
        """See `Place.sizes`."""
        return {path.name: path.stat().st_size for path in (self.root / folder).glob("*") if path.is_file()}

    def folders(self) -> list[str]:
        """See `Place.folders`."""
        return sorted(path.name for path in self.root.glob("*") if path.is_dir())

    def remove(self, folder: str) -> None:
        """See `Place.remove`."""
        if (self.root / folder).exists():
            shutil.rmtree(self.root / folder)

    def remove_file(self, name: str) -> None:
        """See `Place.remove_file`."""
        (self.root / name).unlink(missing_ok=True)

    def state(self, name: str) -> str | None:
        """See `Place.state`."""
        try:
            found: os.stat_result = (self.root / name).stat()
        except FileNotFoundError:
            return None
        return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"

    @contextlib.contextmanager
    def parquet(self, name: str, columns: Sequence[str] | None, groups: Sequence[int]) -> Iterator[pq.ParquetFile]:
        """See `Place.parquet`. Not mapped into memory: a file that is cut meanwhile would end the process."""
        del columns, groups
        with pq.ParquetFile(self.root / name) as file:
            yield file

    def publish(self, staged: Place, folder: str) -> None:
        """Rename the folder in; at any moment the old month is here or the new one, but for between two renames."""
        if not isinstance(staged, Folder):
            raise TypeError(staged)
        files.swap_in(staged.root / folder, self.root / folder)

    def mend(self, staged: Place) -> None:
        """Put the month that a crash between the two renames left aside back in its place."""
        for old in sorted(Path(staged.address()).glob("month=*.old")):
            folder = self.root / old.name.removesuffix(".old")
            if folder.exists():
                shutil.rmtree(old)
            else:
                old.rename(folder)


@dataclass(frozen=True)
class Bucket(Place):
    """A folder of an object store, by fsspec; keys and endpoint come from the environment of each process."""

    root: str

    def address(self, name: str = "") -> str:
        """The address."""
        return f"{self.root}/{name}".rstrip("/")

    @property
    def _filesystem(self) -> Any:  # noqa: ANN401 (fsspec carries no types)
        import fsspec  # noqa: PLC0415 (not for folders)

        protocol = self.root.partition("://")[0]
        # Stores that only look like S3 know no trailing checksums; listings that are kept would hide what others do.
        options = {"config_kwargs": {"request_checksum_calculation": "when_required"}} if protocol == "s3" else {}
        return fsspec.filesystem(protocol, use_listings_cache=False, **options)

    def read(self, name: str) -> bytes | None:
        """See `Place.read`."""
        with self._speaking(name):
            try:
                data: bytes = self._filesystem.cat_file(self.address(name))
            except FileNotFoundError:
                return None
            return data

    def write(self, name: str, data: bytes) -> None:
        """See `Place.write`."""
        with self._speaking(name):
            self._filesystem.pipe_file(self.address(name), bytes(data))

    def sizes(self, folder: str) -> dict[str, int]:
        """See `Place.sizes`."""
        return {_last(info): info["size"] for info in self._list(folder) if info["type"] == "file"}

    def folders(self) -> list[str]:
        """See `Place.folders`."""
        return sorted(_last(info) for info in self._list("") if info["type"] == "directory")

    def _list(self, folder: str) -> list[dict[str, Any]]:
        with self._speaking(folder):
            try:
                found: list[dict[str, Any]] = self._filesystem.ls(self.address(folder), detail=True)
            except FileNotFoundError:
                return []
            return found

    def remove(self, folder: str) -> None:
        """See `Place.remove`. One by one: not every store knows how to remove many at once."""
        for name in self.sizes(folder):
            self.remove_file(f"{folder}/{name}")

    def remove_file(self, name: str) -> None:
        """See `Place.remove_file`."""
        with self._speaking(name), contextlib.suppress(FileNotFoundError):
            self._filesystem.rm_file(self.address(name))

    def state(self, name: str) -> str | None:
        """See `Place.state`."""
        with self._speaking(name):
            try:
                info = self._filesystem.info(self.address(name))
            except FileNotFoundError:
                return None
            return f"{info['size']}-{info.get('ETag')}-{info.get('LastModified')}"

    @contextlib.contextmanager
    def parquet(self, name: str, columns: Sequence[str] | None, groups: Sequence[int]) -> Iterator[pq.ParquetFile]:
        """See `Place.parquet`. Only the bytes of these columns and row groups are fetched, all at once."""
        from fsspec.parquet import open_parquet_file  # noqa: PLC0415 (not for folders)

        with (
            self._speaking(name),
            open_parquet_file(
                self.address(name), fs=self._filesystem, columns=columns, row_groups=list(groups), engine="pyarrow"
            ) as opened,
            pq.ParquetFile(opened) as file,
        ):
            yield file

    def mend(self, staged: Place) -> None:
        """Nothing: a month that was being copied is not published, its staged folder is whole."""

    def publish(self, staged: Place, folder: str) -> None:
        """Copy the files within the store, the receipt last; a folder without a receipt is not published.

        There are no renames of folders there: a reader that does not look for the receipt can meet, for the seconds
        that the copies take, parts of the old month beside parts of the new one. A crash in between leaves the staged
        folder whole, and the next run publishes it again.
        """
        receipt = f"{folder}/{files.RECEIPT}"
        self.remove_file(receipt)
        names = [name for name in staged.sizes(folder) if name != files.RECEIPT]
        for name in names:
            self._copy_from(staged, f"{folder}/{name}")
        for name in self.sizes(folder).keys() - set(names):
            self.remove_file(f"{folder}/{name}")
        self._copy_from(staged, receipt)
        staged.remove(folder)

    def _copy_from(self, staged: Place, name: str) -> None:
        with self._speaking(name):
            self._filesystem.copy(staged.address(name), self.address(name))

    @contextlib.contextmanager
    def _speaking(self, name: str) -> Iterator[None]:
        """Turn what the store's library says into what a person is told."""
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 (not for folders)

        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, BotoCoreError) as error:
            todo = "Check the address, the keys and the endpoint (AWS_…), here and on the workers; then run it again."
            raise TiplineError(f"The store does not do it: {said(error)}.", self.address(name), todo) from error


def _last(info: dict[str, Any]) -> str:
    """A file's or folder's own name."""
    return str(info["name"]).rstrip("/").rpartition("/")[2]


def place(address: str | Path) -> Place:
    """The place that a path or an address (`s3://bucket/folder`) names."""
    text = str(address).removeprefix("file://")
    return Bucket(text.rstrip("/")) if "://" in text else Folder(Path(text).resolve())
