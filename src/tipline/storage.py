"""Storage for prepared months and predictions: a folder of a bucket that all machines reach, or a local folder.

Names are relative to the root and use slashes. A file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from tipline import files, remote
from tipline.errors import TiplineError, UsageError, summarize_exception
from tipline.paths import Paths

REQUESTS = 16  # at the same time
# A bucket has no locks. Younger staged files may belong to a run with another model that is still going on.
ABANDONED_AFTER = dt.timedelta(days=1)
MISSING = (FileNotFoundError, NotADirectoryError)
DATES = ("LastModified", "last_modified", "mtime")  # what s3fs, adlfs and gcsfs call the last change, as a datetime


@dataclass(frozen=True)
class Storage:
    """A folder with one folder per month: of a bucket, or of this machine or a disk that all machines share.

    It travels to the workers, so it holds no open connection; every process takes keys and endpoint from its own
    environment.
    """

    root: str

    @property
    def is_local(self) -> bool:
        """Whether it is a folder, in which files are renamed and locked."""
        return "://" not in self.root

    @property
    def _filesystem(self) -> Any:  # noqa: ANN401 (fsspec is untyped)
        return fsspec.filesystem("file") if self.is_local else remote.open_store(self.root)

    def address(self, name: str = "") -> str:
        return f"{self.root}/{name}".rstrip("/")

    def check_access(self) -> None:
        """Raise a TiplineError if this process cannot use the storage.

        A local folder has to exist: a worker must not create one that other machines do not see.
        """
        self._list("")
        if self.is_local and not Path(self.root).is_dir():
            todo = "Prepare months (dvc repro) or mount the folder; workers elsewhere need a bucket (--trips, --to)."
            raise TiplineError("This folder is missing, or cannot be seen from here.", self.root, todo)

    def hold_lock(self) -> contextlib.AbstractContextManager[None]:
        """Wait until no other run stages files here, and keep others out; nothing in a bucket, which has no locks."""
        if not self.is_local:
            return contextlib.nullcontext()
        return files.hold_lock(Path(self.root) / ".lock", "scoring to this place", wait=True)

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, or None if it is missing."""
        with contextlib.suppress(*MISSING), self._explain_errors(name):
            return bytes(self._filesystem.cat_file(self.address(name)))
        return None

    def read_json(self, name: str) -> Any:  # noqa: ANN401 (any JSON value)
        """Return the value of a JSON file, or None if it is missing or not JSON."""
        try:
            return json.loads(self.read(name) or b"")
        except ValueError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file. It may be lost in a power cut until its folder is published."""
        if self.is_local:
            with files.replace_file(Path(self.address(name)), flush=False) as temporary:
                temporary.write_bytes(data)
            return
        with self._explain_errors(name):
            self._filesystem.pipe_file(self.address(name), bytes(data))

    def _list(self, folder: str) -> list[dict[str, Any]]:
        """List a folder, without the empty object by which some tools mark a folder of a bucket."""
        with contextlib.suppress(*MISSING), self._explain_errors(folder):
            filesystem, address = self._filesystem, self.address(folder)
            own = filesystem._strip_protocol(address)  # noqa: SLF001 (fsspec has no other name for it)
            entries = [entry for entry in filesystem.ls(address, detail=True) if entry["name"][-1] != "/"]
            return [entry | {"name": entry["name"].rpartition("/")[2]} for entry in entries if entry["name"] != own]
        return []

    def list_sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of each file in a folder, hidden ones included; empty if the folder is missing."""
        return {entry["name"]: entry["size"] for entry in self._list(folder) if entry["type"] == "file"}

    def has_files(self, folder: str, described: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a folder has the files that its manifest describes; local files that changed since are hashed."""
        if self.is_local:
            manifest = Path(self.address(f"{folder}/{files.MANIFEST}"))
            return all(files.is_described(manifest.with_name(name), described[name], manifest) for name in described)
        sizes = self.list_sizes(folder)
        return all(sizes.get(name) == one["bytes"] for name, one in described.items())

    def list_folders(self) -> list[str]:
        """Return the names of the folders of the root, sorted."""
        return sorted({entry["name"] for entry in self._list("") if entry["type"] == "directory"})

    def is_abandoned(self, folder: str) -> bool:
        """Whether no other run works on a staged folder: nothing in it is recent. Local folders are locked."""
        changed = [] if self.is_local else [file for file in self._list(folder) if file["type"] == "file"]
        limit = dt.datetime.now(dt.UTC) - ABANDONED_AFTER
        return all(min(file[name] for name in DATES if name in file) < limit for file in changed)

    def remove_files(self, names: Iterable[str]) -> None:
        """Remove files; missing ones are skipped. One request per file, because not every store takes bulk deletes."""
        filesystem = self._filesystem  # fsspec would open one per thread

        def remove_file(name: str) -> None:
            with contextlib.suppress(*MISSING), self._explain_errors(name):
                filesystem.rm_file(self.address(name))

        with ThreadPoolExecutor(REQUESTS) as threads:
            list(threads.map(remove_file, names))

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and its files, the manifest first: after a crash the rest is not taken for a whole month."""
        self.remove_files([f"{folder}/{files.MANIFEST}"])
        self.remove_files(f"{folder}/{name}" for name in self.list_sizes(folder))
        if self.is_local:
            shutil.rmtree(self.address(folder), ignore_errors=True)

    def publish_folder(self, staged: Storage, source: str, folder: str, manifest: Mapping[str, Any]) -> None:
        """Move a folder of finished parts from `staged` here, with its manifest, replacing the folder of that name.

        A bucket cannot rename folders, so the parts are copied and the manifest, without which a folder is not
        published, is written last. Meanwhile, readers that ignore it can see old parts beside new ones. Raises a
        FileNotFoundError if the parts are not staged any more, unless another run has published the same ones.
        """
        data = files.format_json(manifest).encode()
        if self.is_local:  # only between two renames neither the old month nor the new one is in place
            staged.write(f"{source}/{files.MANIFEST}", data)
            files.swap_folder(Path(staged.address(source)), Path(self.address(folder)))
            return
        published = self.read_json(f"{folder}/{files.MANIFEST}")
        made_from = {name: manifest.get(name) for name in ("key", "form")}
        if isinstance(published, dict) and any(published.get(name) != made_from[name] for name in made_from):
            self.remove_files([f"{folder}/{files.MANIFEST}"])
        names = {part["name"]: part["sha256"] for part in manifest["parts"]}
        try:
            self._copy_files(staged, source, folder, list(names))
        except FileNotFoundError:
            # The other run's manifest may just have been removed above, so it is written again.
            if any(files.hash_bytes(self.read(f"{folder}/{name}") or b"") != names[name] for name in names):
                raise
        self.remove_files(f"{folder}/{name}" for name in self.list_sizes(folder).keys() - {*names, files.MANIFEST})
        self.write(f"{folder}/{files.MANIFEST}", data)

    def upload_folder(self, source: Path, folder: str) -> None:
        """Copy a local folder with its manifest here, replacing the folder of that name; the manifest comes last."""
        names = [path.name for path in source.iterdir() if path.name != files.MANIFEST]
        if self.is_local:
            with files.replace_folder(Path(self.address(folder)), Path(self.address("_staging"))) as staged:
                shutil.copytree(source, staged, dirs_exist_ok=True)
            return
        self.remove_files([f"{folder}/{files.MANIFEST}"])
        for name in names:
            with self._explain_errors(f"{folder}/{name}"):
                self._filesystem.put_file(str(source / name), self.address(f"{folder}/{name}"))
        self.write(f"{folder}/{files.MANIFEST}", (source / files.MANIFEST).read_bytes())

    def _copy_files(self, staged: Storage, source: str, folder: str, names: Sequence[str]) -> None:
        sources = [staged.address(f"{source}/{name}") for name in names]
        with self._explain_errors(folder):
            remote.copy_files(self._filesystem, sources, [self.address(f"{folder}/{name}") for name in names])

    def recover_folders(self, staged: Storage) -> None:
        """Put back folders that a crash in `publish_folder` has left in `staged`; in a bucket there are none."""
        if self.is_local:
            files.recover_folders(Path(staged.root), Path(self.root))

    def get_state(self, name: str) -> str | None:
        """Return a file's length, a dash, and what changes when it is replaced; None if it is missing."""
        with contextlib.suppress(*MISSING), self._explain_errors(name):
            info = self._filesystem.info(self.address(name))
            return "-".join(str(info[key]) for key in ("size", *remote.VERSIONS, "ino", "mtime") if key in info)
        return None

    def hash_file(self, name: str) -> str:
        """Return the sha256 of a file that need not fit in memory; raise a TiplineError if it cannot be read."""
        with self._open(name, self.get_state(name)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextlib.contextmanager
    def open_parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """Open a Parquet file of which only what is read is fetched; raise a TiplineError if it cannot be read."""
        with self._open(name, self.get_state(name)) as file, pq.ParquetFile(file, pre_buffer=True) as parquet:
            yield parquet

    def read_table(self, name: str, filters: Sequence[tuple[str, str, Any]] | None = None) -> pa.Table:
        """Read the rows of a Parquet file that pass the filters; raise a TiplineError if it cannot be read."""
        with self._open(name, self.get_state(name)) as file:
            return pq.read_table(file, filters=filters)

    def count_group_rows(self, name: str, state: str | None) -> list[int]:
        """Return the number of rows of each row group of a Parquet file."""
        footer = _read_footer(self, name, state)
        return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    def read_row_group(
        self, name: str, group: int, columns: Sequence[str], state: str | None, text: Sequence[str] = ()
    ) -> pa.Table:
        """Read columns of a row group of a Parquet file; columns that the file does not have are left out.

        Only the bytes of these columns are fetched. Those of `text` keep the dictionaries of the file. Raises a
        TiplineError if the file cannot be read, or is not in the state that `get_state` returned when the run began.
        """
        footer = _read_footer(self, name, state)
        text = [column for column in text if column in footer.schema.names]
        with self._open(name, state) as file:
            month = pq.ParquetFile(file, metadata=footer, pre_buffer=True, read_dictionary=text)
            table = month.read_row_group(group, list(columns), use_threads=False)
        self._check_state(name, state)
        return table

    @contextlib.contextmanager
    def _open(self, name: str, state: str | None) -> Iterator[Any]:
        """Open a file of which ranges are read, each with one request; turn errors of reading into TiplineErrors."""
        try:
            with self._explain_errors(name), self._filesystem.open(self.address(name), cache_type="none") as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            self._check_state(name, state)
            what = f"This file cannot be read: {summarize_exception(error)}."
            raise TiplineError(what, self.address(name), advise_verify(name)) from error

    def _check_state(self, name: str, state: str | None) -> None:
        """Refuse a file that was removed or replaced since the run began."""
        if (now := self.get_state(name)) is None:
            todo = (
                f"{advise_verify(name)}. Workers that do not see this machine's folders need a bucket (--trips, --to)."
            )
            raise TiplineError("This file is missing, or cannot be seen from here.", self.address(name), todo)
        if now != state:
            todo = "Make sure that nothing else writes there, and run it again."
            raise TiplineError("This file changed while it was being used.", self.address(name), todo)

    @contextlib.contextmanager
    def _explain_errors(self, name: str) -> Iterator[None]:
        """Turn errors of a store into TiplineErrors; those of the system and of Arrow and FileNotFoundErrors stay."""
        if self.is_local:
            yield
            return
        try:
            yield
        except TiplineError:
            raise
        except remote.list_errors(self.root) as error:
            # Arrow raises OSError for damaged pages, without a number and without an answer of the store.
            is_damage = type(error) is OSError and error.errno is None and not remote.read_answer(error, self.root)[0]
            if is_damage or isinstance(error, pa.ArrowException) or remote.is_missing(error, self.root):
                raise
            todo = "Check --trips and --to, or create the bucket."
            raise remote.explain_store_error(error, self.address(name), todo)[0] from error


@functools.lru_cache(maxsize=16)
def _read_footer(storage: Storage, name: str, state: str | None) -> pq.FileMetaData:
    """Read the footer of a Parquet file; cached, because a worker scores block after block of a month."""
    with storage._open(name, state) as file:  # noqa: SLF001
        return pq.read_metadata(file)


def advise_verify(name: str) -> str:
    return f"Run: tipline verify {name.partition('/')[0].removeprefix('month=')}"


def open_storage(address: str | Path) -> Storage:
    """Return the storage at a path or an address such as `s3://bucket/folder`; raise a UsageError for anything else."""
    text = str(address).removeprefix("file://")
    scheme, separator, place = text.partition("://")
    if not separator:
        return Storage(str(Path(text).resolve()))
    if scheme not in remote.STORES or not place.strip("/"):
        known = ", ".join(f"{name}://BUCKET/FOLDER" for name in remote.STORES)
        raise UsageError("Months cannot be stored there.", text, f"Give a path or one of {known}.")
    return Storage(f"{'abfs' if scheme == 'az' else scheme}://{place.strip('/')}")


def open_place(place: str | None, paths: Paths, default: Path) -> Storage:
    """Return the storage at an address or a path relative to params.yaml; without one, at a folder of the project."""
    if place is None:
        return open_storage(default)
    return open_storage(place if "://" in place else paths.workspace / place)
