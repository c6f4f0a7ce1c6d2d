"""Bulk scoring: which blocks of which months are to be scored, one block on a worker, publishing a month.

A part is done if it was made from the same prepared month, the same model and the same FORMAT; that one rule serves
a killed run, an added month and a new champion.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tipline import files, formats
from tipline.errors import TiplineError, UsageError, join_lines, summarize_exception
from tipline.ingest import columns
from tipline.paths import Paths, month_name
from tipline.storage import LocalStorage, Storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


log = logging.getLogger(__name__)


SCHEMA = pa.schema(
    [pa.field("row", pa.int64(), nullable=False), pa.field("tip_probability", pa.float32(), nullable=False)]
)
MARKERS = ".made"
PHASES = ("read", "score", "count", "write")


@dataclass(frozen=True)
class Locations:
    """Where prepared months come from, where predictions go, and where they wait until a month is whole."""

    trips: Storage
    predictions: Storage
    staged: Storage

    @classmethod
    def resolve(cls, paths: Paths, trips: str = "", to: str = "") -> Locations:
        """The project's own folders, or those that the command names.

        Raises
        ------
        UsageError
            Where one is no place, or both are the same: predictions would replace the months.
        """
        source = open_storage(trips or paths.root / "data" / "trips")
        if not to:
            return cls(source, LocalStorage(paths.predictions), LocalStorage(paths.staging / "predictions"))
        target = open_storage(to)
        if target in (source, open_storage(paths.root / "data" / "trips")):
            raise UsageError("The predictions would replace the prepared months.", to, "Name another place with --to.")
        # In the place itself, which may be a file system of its own; readers pass over the underscore.
        return cls(source, target, open_storage(target.address("_staging")))


@dataclass(frozen=True)
class Block:
    """One task: a row group of a prepared month, and the part that its predictions go to."""

    month: str
    locations: Locations
    state: str | None  # of the prepared file, when the run began
    row_group: int
    rows: int
    key: str
    model: str  # digest

    @property
    def trips(self) -> str:
        """The prepared month's file."""
        return f"{month_name(self.month)}/{columns.PREPARED_FILE}"

    @property
    def name(self) -> str:
        """The part's file."""
        return f"part-{self.row_group:05d}.parquet"

    @property
    def part(self) -> str:
        """The part among the staged files."""
        return f"{staged_name(self.month, self.key)}/{self.name}"

    @property
    def marker(self) -> str:
        """What was made, written when the part is whole."""
        return f"{staged_name(self.month, self.key)}{MARKERS}/part-{self.row_group:05d}.json"


@dataclass
class Month:
    """A month that is not published with this key yet."""

    month: str
    locations: Locations
    key: dict[str, Any]
    blocks: list[Block]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def staged(self) -> str:
        """Its folder among the staged ones."""
        return staged_name(self.month, files.hash_json(self.key))

    @property
    def open(self) -> list[Block]:
        """The blocks whose parts are not there yet."""
        return [block for block in self.blocks if block.name not in self.done]


def staged_name(month: str, key: str) -> str:
    """Where a month's parts wait: apart for each key, so that a worker of a run that was killed cannot meddle."""
    return f"{month_name(month)}.{key[:12]}"


# ---- what is to be done ----


def plan_months(locations: Locations, months: Sequence[str], digest: str) -> tuple[list[Month], dict[str, str]]:
    """The months that are not published with this model and their prepared rows, with the parts that are done.

    Returns
    -------
    tuple
        The months to score, and why others, whose prepared rows are missing or damaged, cannot be.
    """
    planned, failed = [], {}
    for month in months:
        try:
            key = compute_key(locations, month, digest)
            if not is_published(locations.predictions, month, key):
                refuse_other_files(locations.predictions, month)
                blocks = list_blocks(locations, month, key)
                planned.append(
                    Month(month, locations, key, blocks, dict(find_finished_parts(locations.staged, blocks)))
                )
        except TiplineError as error:
            failed[month] = join_lines(error)
    return planned, failed


def compute_key(locations: Locations, month: str, digest: str) -> dict[str, Any]:
    """What the predictions of a month are made from.

    Raises
    ------
    TiplineError
        Where the month is not prepared, or its file has not the length that its manifest says.
    """
    folder, todo = month_name(month), f"Run: dvc repro -f prepare@{month}"
    manifest = locations.trips.read_json(f"{folder}/{files.MANIFEST}")
    where = locations.trips.address(f"{folder}/{files.MANIFEST}")
    if manifest is None:
        raise TiplineError("The month is not prepared: it has no manifest.", where, todo)
    try:
        expected, sha256 = int(manifest["trips"]["bytes"]), str(manifest["trips"]["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise TiplineError("This is no manifest of a prepared month.", where, todo) from error
    size = locations.trips.list_sizes(folder).get(columns.PREPARED_FILE)
    if size != expected:
        what = f"The prepared month has {size or 0:,} bytes, its manifest says {expected:,}."
        raise TiplineError(what, locations.trips.address(f"{folder}/{columns.PREPARED_FILE}"), todo)
    return {"trips": sha256, "model": digest, "format": formats.PREDICTIONS}


def refuse_other_files(predictions: Storage, month: str) -> None:
    """Refuse to put predictions in place of what is none: a folder is replaced as a whole."""
    ours = ("part-", files.MANIFEST, ".")
    strangers = [name for name in predictions.list_sizes(month_name(month)) if not name.startswith(ours)]
    if strangers:
        where = predictions.address(f"{month_name(month)}/{min(strangers)}")
        raise TiplineError("This is no prediction, and would be lost.", where, "Move it, or name another place (--to).")


def list_blocks(locations: Locations, month: str, key: Mapping[str, Any]) -> list[Block]:
    """A month's row groups."""
    name = f"{month_name(month)}/{columns.PREPARED_FILE}"
    state, digest = locations.trips.get_state(name), files.hash_json(key)
    groups = locations.trips.count_group_rows(name, state)
    return [Block(month, locations, state, group, rows, digest, key["model"]) for group, rows in enumerate(groups)]


def find_finished_parts(staged: Storage, blocks: Sequence[Block]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of an earlier run that can be kept: made from the same key, with the digest that was written down.

    The prepared file must not have been touched since then: no month is made from two states of it.
    """
    there = staged.list_sizes(staged_name(blocks[0].month, blocks[0].key)) if blocks else {}
    for block in blocks:
        made = staged.read_json(block.marker) if block.name in there else None
        if made is None or (made["key"], made.get("state")) != (block.key, block.state):
            continue
        if made["bytes"] == there[block.name] and files.hash_bytes(staged.read(block.part) or b"") == made["sha256"]:
            yield block.name, made


def is_published(predictions: Storage, month: str, key: Mapping[str, Any]) -> bool:
    """Whether a month's predictions are there, whole, and made from this key."""
    manifest = predictions.read_json(f"{month_name(month)}/{files.MANIFEST}")
    try:
        told, parts = manifest["key"], {part["name"]: part["bytes"] for part in manifest["parts"]}
    except (KeyError, TypeError):  # none, or not one that `score` wrote
        return False
    sizes = predictions.list_sizes(month_name(month))
    return bool(told == dict(key)) and all(sizes.get(name) == length for name, length in parts.items())


def explain_failure(block: Block, error: Exception) -> TiplineError:
    """Why a block failed; errors that are not ours say neither what kind they are nor where they were."""
    if isinstance(error, TiplineError):
        return error
    if isinstance(error, OSError) and error.errno in files.DISK_FULL_ERRORS:
        todo = "Free some space and run it again; finished parts are kept."
        return TiplineError(f"The disk is full: {error.strerror}.", block.locations.staged.address(), todo)
    where = f"row group {block.row_group} of {block.locations.trips.address(block.trips)}"
    return TiplineError(
        f"{type(error).__name__}: {summarize_exception(error)}.", where, "Run it again; report it if it stays."
    )
