"""Plan which blocks of which months have to be scored.

A part is finished if it was made from the same prepared month, the same model and the same FORMAT. This one rule serves
a killed run, an added month and a new champion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tipline import files, formats
from tipline.errors import TiplineError, UsageError, join_lines, summarize_exception
from tipline.ingest import columns
from tipline.paths import Paths, month_name
from tipline.storage import Storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SCHEMA = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("probability", pa.float32(), nullable=False)])
MARKERS = ".made"
PHASES = ("read", "score", "count", "write")


@dataclass(frozen=True)
class Locations:
    """Storage of prepared months, of predictions, and of parts whose month is not whole yet."""

    trips: Storage
    predictions: Storage
    staged: Storage

    @classmethod
    def resolve(cls, paths: Paths, trips: str = "", to: str = "") -> Locations:
        """Return the locations that the command names; default: the folders of the project."""
        own = open_storage(paths.root / "data" / "trips")
        source = open_storage(trips) if trips else own
        if not to:
            return cls(source, open_storage(paths.predictions), open_storage(paths.staging / "predictions"))
        target = open_storage(to)
        if target in (source, own):
            raise UsageError("The predictions would replace the prepared months.", to, "Name another place with --to.")
        # Inside the target, which may be a file system of its own; readers skip the underscore.
        return cls(source, target, open_storage(target.address("_staging")))


@dataclass(frozen=True)
class Block:
    """One task: a row group of a prepared month, and the part that its predictions go to."""

    month: str
    locations: Locations
    state: str | None  # of the prepared file when the run began
    row_group: int
    rows: int
    key: str  # sha256 of the month's key
    model: str  # digest

    @property
    def trips(self) -> str:
        """The file of the prepared month."""
        return f"{month_name(self.month)}/{columns.PREPARED_FILE}"

    @property
    def name(self) -> str:
        """The name of the part."""
        return f"part-{self.row_group:05d}.parquet"

    @property
    def part(self) -> str:
        """The staged part."""
        return f"{name_staged_folder(self.month, self.key)}/{self.name}"

    @property
    def marker(self) -> str:
        """The staged file that describes the part, written when the part is whole."""
        return f"{name_staged_folder(self.month, self.key)}{MARKERS}/part-{self.row_group:05d}.json"


@dataclass
class Month:
    """A month that is not published with this key yet."""

    month: str
    locations: Locations
    key: dict[str, Any]
    blocks: list[Block]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)  # markers of finished parts by name

    @property
    def staged(self) -> str:
        """Its folder among the staged ones."""
        return name_staged_folder(self.month, files.hash_json(self.key))

    @property
    def open(self) -> list[Block]:
        """The blocks whose parts are not finished."""
        return [block for block in self.blocks if block.name not in self.done]


def name_staged_folder(month: str, key: str) -> str:
    """Name the folder of a month's parts. Runs with equal keys share it, because they write equal parts."""
    return f"{month_name(month)}.{key[:12]}"


def plan_months(locations: Locations, months: Sequence[str], digest: str) -> tuple[list[Month], dict[str, str]]:
    """Find the months that are not published with this model and these prepared rows.

    Returns them with the parts that an earlier run has finished, and the reasons of months that cannot be scored.
    """
    planned, failed = [], {}
    for month in months:
        try:
            key = compute_key(locations, month, digest)
            if not is_published(locations.predictions, month, key):
                check_replaceable(locations.predictions, month)
                blocks = list_blocks(locations, month, key)
                done = dict(find_finished_parts(locations.staged, blocks))
                planned.append(Month(month, locations, key, blocks, done))
        except TiplineError as error:
            failed[month] = join_lines(error)
    return planned, failed


def compute_key(locations: Locations, month: str, digest: str) -> dict[str, Any]:
    """Return what the predictions of a month are made from: digests of rows and model, and the format.

    Raises a TiplineError if the month is not prepared, or if its file does not have the length in its manifest.
    """
    folder, todo = month_name(month), f"Run: dvc repro -f prepare@{month}"
    manifest = locations.trips.read_json(f"{folder}/{files.MANIFEST}")
    where = locations.trips.address(f"{folder}/{files.MANIFEST}")
    if manifest is None:
        raise TiplineError("The month is not prepared: it has no manifest.", where, todo)
    try:
        expected, sha256 = int(manifest["trips"]["bytes"]), str(manifest["trips"]["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise TiplineError("This is not the manifest of a prepared month.", where, todo) from error
    size = locations.trips.list_sizes(folder).get(columns.PREPARED_FILE, 0)
    if size != expected:
        what = f"The prepared month has {size:,} bytes; its manifest says {expected:,}."
        raise TiplineError(what, locations.trips.address(f"{folder}/{columns.PREPARED_FILE}"), todo)
    return {"trips": sha256, "model": digest, "format": formats.PREDICTIONS}


def check_replaceable(predictions: Storage, month: str) -> None:
    """Refuse to replace a folder that holds other files than predictions."""
    names = predictions.list_sizes(month_name(month))
    if others := [name for name in names if not name.startswith(("part-", files.MANIFEST, "."))]:
        where, todo = predictions.address(f"{month_name(month)}/{min(others)}"), "Move it, or use another place (--to)."
        raise TiplineError("This file is not a prediction and would be lost.", where, todo)


def refuse_old_months(storage: Storage, todo: str) -> None:
    """Refuse months of tipline 0.1. One look is enough: it wrote all of them, and this version adds none to them."""
    first = next((name for name in storage.list_folders() if name.startswith("month=")), "")
    if first and is_old_month(storage, first):
        raise TiplineError("These months were written by tipline 0.1.", storage.address(), todo)


def is_old_month(storage: Storage, folder: str) -> bool:
    """Whether tipline 0.1 wrote a folder: its manifest had another name, also with an underscore in front."""
    names = storage.list_sizes(folder)
    return any(name.startswith("_") and name.endswith(".json") and name != files.MANIFEST for name in names)


def list_blocks(locations: Locations, month: str, key: Mapping[str, Any]) -> list[Block]:
    """List the row groups of a prepared month as blocks."""
    name = f"{month_name(month)}/{columns.PREPARED_FILE}"
    state, digest = locations.trips.get_state(name), files.hash_json(key)
    groups = locations.trips.count_group_rows(name, state)
    return [Block(month, locations, state, group, rows, digest, key["model"]) for group, rows in enumerate(groups)]


def find_finished_parts(staged: Storage, blocks: Sequence[Block]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and markers of parts that an earlier run has finished from the same key.

    The prepared file must not have been replaced since, so that no month is made from two states of it.
    """
    sizes = staged.list_sizes(name_staged_folder(blocks[0].month, blocks[0].key)) if blocks else {}
    for block in blocks:
        marker = staged.read_json(block.marker) if block.name in sizes else None
        if marker and (marker["key"], marker["state"]) == (block.key, block.state):
            data = staged.read(block.part) or b""
            if (len(data), files.hash_bytes(data)) == (marker["bytes"], marker["sha256"]):
                yield block.name, marker


def is_published(predictions: Storage, month: str, key: Mapping[str, Any]) -> bool:
    """Whether all predictions of a month exist, made from this key."""
    manifest = predictions.read_json(f"{month_name(month)}/{files.MANIFEST}")
    try:
        is_same, parts = manifest["key"] == dict(key), {part["name"]: part["bytes"] for part in manifest["parts"]}
    except (KeyError, TypeError):  # no manifest, or not one that `score` wrote
        return False
    sizes = predictions.list_sizes(month_name(month))
    return bool(is_same and all(sizes.get(name) == size for name, size in parts.items()))


def explain_failure(block: Block, error: Exception) -> TiplineError:
    """Return an error that says which block failed and why."""
    if isinstance(error, TiplineError):
        return error
    if isinstance(error, OSError) and error.errno in files.DISK_FULL_ERRORS:
        todo = "Free some space and run it again; finished parts are kept."
        return TiplineError(f"The disk is full: {error.strerror}.", block.locations.staged.address(), todo)
    what = f"{type(error).__name__}: {summarize_exception(error)}."
    where = f"row group {block.row_group} of {block.locations.trips.address(block.trips)}"
    return TiplineError(what, where, "Run it again; report it if it happens again.")
