"""Plan which blocks of which months have to be scored, and publish the months whose parts are finished.

A part is finished if it was made from the same columns of the prepared month, the same model in the same form, and the
same FORMAT. This one rule serves a killed run, an added month and a new champion.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from tipline import files, formats
from tipline.config import PartialSettings, Settings
from tipline.errors import TiplineError, UsageError, join_lines, summarize_exception
from tipline.ingest import columns
from tipline.ingest.columns import PREPARED_FILE
from tipline.monitoring.counts import Counts
from tipline.paths import Paths, month_name
from tipline.storage import Storage, open_place, open_storage

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
    def resolve(cls, settings: Settings | PartialSettings, paths: Paths, trips: str = "", to: str = "") -> Locations:
        """Return the locations that the command names, or else those of params.yaml; default: the project's folders."""
        places = settings.storage
        own = open_place(places.prepared, paths, paths.trips)
        source = open_storage(trips) if trips else own
        if not to and places.predictions is None:
            return cls(source, open_storage(paths.predictions), open_storage(paths.staging / "predictions"))
        target = open_storage(to) if to else open_place(places.predictions, paths, paths.predictions)
        if target in (source, own):
            raise UsageError("The predictions would replace the prepared months.", to, "Name another place with --to.")
        # Inside the target, which may be a file system of its own; readers skip the underscore.
        return cls(source, target, open_storage(target.address("_staging")))


@dataclass(frozen=True)
class Block:
    """One task: a row group of a prepared month, and the part that its predictions go to."""

    locations: Locations
    month: str
    trips: str  # the file of the prepared month
    state: str | None  # of that file when the run began
    row_group: int
    rows: int
    key: str  # sha256 of the month's key
    counted: str  # digest of what is counted beside the scores; see `compute_counted`
    model: str  # digest
    staged: str  # the folder of the month's finished parts
    id_columns: tuple[str, ...]  # of the prepared month, written beside the predictions
    form: str  # of the model, the same for all workers; see `artifact.FORMS`

    @property
    def name(self) -> str:
        return f"part-{self.row_group:05d}.parquet"

    @property
    def part(self) -> str:
        return f"{self.staged}/{self.name}"

    @property
    def marker(self) -> str:
        """The staged file that describes the part, written when the part is whole."""
        return f"{self.staged}{MARKERS}/{self.name}.json"


@dataclass
class Month:
    """A month that is not published with this key yet."""

    locations: Locations
    month: str
    key: dict[str, Any]
    counted: str  # see `compute_counted`
    staged: str  # the folder of its finished parts
    blocks: list[Block]
    form: str = ""  # of the model that scores it, empty while it is not decided
    done: dict[Block, dict[str, Any]] = field(default_factory=dict)  # the markers of finished parts

    @property
    def open(self) -> list[Block]:
        return [block for block in self.blocks if block not in self.done]

    def choose_form(self, form: str) -> Month:
        """Return the month with the blocks and finished parts of one form of the model."""
        if form == self.form:
            return self
        staged = name_staged_folder(self.month, self.key, form)
        blocks = [replace(block, staged=staged, form=form) for block in self.blocks]
        done = find_finished_parts(self.locations.staged, staged, blocks)
        return replace(self, staged=staged, blocks=blocks, form=form, done=done)


def name_staged_folder(month: str, key: Mapping[str, Any] | None, form: str = "") -> str:
    """Name the folder of a month's parts. Runs with equal keys and forms share it, because they write equal parts."""
    return f"{month_name(month)}.{files.hash_json(key)[:12]}{form and '-'}{form}"


def plan_months(
    locations: Locations, months: Sequence[str], digest: str, spec: Mapping[str, Any], id_columns: Sequence[str] = ()
) -> tuple[list[Month], dict[str, str]]:
    """Return the months that are not published with this key, and the reasons of months that cannot be scored.

    `digest` is the model's, `spec` its model.json.
    """
    planned, failed, folders = [], {}, locations.staged.list_folders()
    for month in months:
        try:
            manifest = read_prepared(locations.trips, month)
            key, counted = compute_key(manifest, digest, spec, id_columns), compute_counted(manifest, spec)
            if not is_published(locations.predictions, month, key):
                check_replaceable(locations.predictions, month)
                staged = name_staged_folder(month, key)
                blocks = list_blocks(locations, month, key, counted)
                undecided = Month(locations, month, key, counted, staged, blocks)
                forms = [name.removeprefix(f"{staged}-") for name in folders if name.startswith(f"{staged}-")]
                started = [undecided.choose_form(form) for form in forms if not form.endswith(MARKERS)]
                planned.append(max([undecided, *started], key=lambda month: len(month.done)))
        except TiplineError as error:
            failed[month] = join_lines(error)
    return planned, failed


def read_prepared(trips: Storage, month: str) -> dict[str, Any]:
    """Return the manifest of a prepared month; raise a TiplineError without one that suits its file."""
    folder, todo = month_name(month), f"Run: tipline prepare {month}"
    manifest, where = trips.read_json(f"{folder}/{files.MANIFEST}"), trips.address(f"{folder}/{files.MANIFEST}")
    if manifest is None:
        raise TiplineError("The month is not prepared: it has no manifest.", where, todo)
    try:
        expected, _ = int(manifest["trips"]["bytes"]), dict(manifest["columns"])
    except (KeyError, TypeError, ValueError) as error:
        raise TiplineError("This is not the manifest of a month that this tipline prepared.", where, todo) from error
    size = trips.list_sizes(folder).get(PREPARED_FILE, 0)
    if size != expected:
        what = f"The prepared month has {size:,} bytes; its manifest says {expected:,}."
        raise TiplineError(what, trips.address(f"{folder}/{PREPARED_FILE}"), todo)
    return dict(manifest)


def compute_key(
    prepared: Mapping[str, Any], digest: str, spec: Mapping[str, Any], id_columns: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what predictions are made from: digests of the columns that are read and of the model, and the format.

    `prepared` is the manifest of the prepared month. A column that it lacks is read as nulls.
    """
    names = ["row", *columns.list_input_columns(spec), *id_columns]
    ids = {"id_columns": [*id_columns]} if id_columns else {}
    return {"columns": pick_digests(prepared, names), "model": digest, "format": formats.PREDICTIONS, **ids}


def compute_counted(prepared: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """Return the digest of what is counted beside the scores of a month: labels, groups and times, and the format."""
    digests = pick_digests(prepared, columns.list_counted_columns(spec))
    return files.hash_json([digests, spec["target"], spec["baseline"]["by"], formats.COUNTS])


def pick_digests(prepared: Mapping[str, Any], names: Iterable[str]) -> dict[str, str | None]:
    return {name: prepared["columns"].get(name) for name in names}


def check_scored(prepared: Mapping[str, Any], key: Mapping[str, Any], where: str) -> None:
    """Raise a TiplineError if predictions with this key were made from other values than the prepared month has."""
    if pick_digests(prepared, key["columns"]) != key["columns"]:
        what = "The month was prepared again after it was scored, with other values in columns that the model reads."
        raise TiplineError(what, where, "Score it again: dvc repro score")


def check_replaceable(predictions: Storage, month: str) -> None:
    """Refuse to replace a folder that holds other files than predictions."""
    names = predictions.list_sizes(month_name(month))
    if others := [name for name in names if not name.startswith(("part-", files.MANIFEST, "."))]:
        where, todo = predictions.address(f"{month_name(month)}/{min(others)}"), "Move it, or use another place (--to)."
        raise TiplineError("This file is not a prediction and would be lost.", where, todo)


def refuse_old_months(storage: Storage, todo: str) -> None:
    """Refuse months of tipline 0.1, whose manifests had other names. It wrote all months of a folder or none."""
    months = [name for name in storage.list_folders() if name.startswith("month=")]
    names = storage.list_sizes(months[0]) if months else {}
    if any(name.startswith("_") and name.endswith(".json") and name != files.MANIFEST for name in names):
        raise TiplineError("These months were written by tipline 0.1.", storage.address(), todo)


def list_blocks(locations: Locations, month: str, key: Mapping[str, Any], counted: str = "") -> list[Block]:
    trips, digest, staged = f"{month_name(month)}/{PREPARED_FILE}", files.hash_json(key), name_staged_folder(month, key)
    state, ids = locations.trips.get_state(trips), tuple(key.get("id_columns", ()))
    return [
        Block(locations, month, trips, state, group, rows, digest, counted, key["model"], staged, ids, "")
        for group, rows in enumerate(locations.trips.count_group_rows(trips, state))
    ]


def find_finished_parts(storage: Storage, staged: str, blocks: Sequence[Block]) -> dict[Block, dict[str, Any]]:
    """Return the markers of parts that an earlier run has finished from the same key."""
    sizes, done = storage.list_sizes(staged), {}
    for block in blocks:
        marker = storage.read_json(block.marker) if block.name in sizes else None
        if marker and (marker["key"], marker.get("form")) == (block.key, block.form):
            data = storage.read(block.part) or b""
            if (len(data), files.hash_bytes(data)) == (marker["bytes"], marker["sha256"]):
                done[block] = marker
    return done


def is_published(predictions: Storage, month: str, key: Mapping[str, Any]) -> bool:
    manifest = predictions.read_json(f"{month_name(month)}/{files.MANIFEST}")
    try:
        is_same, parts = manifest["key"] == dict(key), {part["name"]: part["bytes"] for part in manifest["parts"]}
    except (KeyError, TypeError):  # no manifest, or not one that `score` wrote
        return False
    sizes = predictions.list_sizes(month_name(month))
    return bool(is_same and all(sizes.get(name) == size for name, size in parts.items()))


def publish_month(month: Month, made: Mapping[str, Any]) -> None:
    """Publish a month; `made` are facts about this run that no later run compares.

    Raises a TiplineError if parts are missing or do not have the rows of the month.
    """
    staged, predictions = month.locations.staged, month.locations.predictions
    parts, rows = [month.done[block] for block in month.blocks], sum(block.rows for block in month.blocks)
    if sum(part["rows"] for part in parts) != rows:
        raise TiplineError("The parts do not have the month's rows.", f"month {month.month}", "Run: dvc repro -f score")
    sizes, is_whole = staged.list_sizes(month.staged), False
    if all(sizes.get(part["name"]) == part["bytes"] for part in parts):
        # Left by a worker that was killed while it wrote.
        staged.remove_files(f"{month.staged}/{name}" for name in sizes.keys() - {part["name"] for part in parts})
        seconds = {phase: round(sum(part["seconds"][phase] for part in parts), 3) for phase in PHASES}
        manifest = {
            "month": month.month,
            "key": month.key,
            "form": month.form,
            "rows": rows,
            "parts": [{name: part[name] for name in ("name", "rows", "bytes", "sha256")} for part in parts],
            # None if labels came between the runs that made the parts.
            "counted": month.counted if {part["counted"] for part in parts} <= {month.counted} else None,
            "counts": Counts.merge(Counts.from_json(part["counts"]) for part in parts).to_json(),
            "made": {**made, "worker_seconds": seconds},
        }
        with contextlib.suppress(FileNotFoundError):  # another run has just removed the parts
            predictions.publish_folder(staged, month.staged, month_name(month.month), manifest)
            is_whole = True
    if not is_whole and not is_published(predictions, month.month, month.key):
        todo = "Run it again, with a place that this machine and all workers share (--to)."
        raise TiplineError("Parts that workers wrote are missing.", staged.address(month.staged), todo)
    prefix = name_staged_folder(month.month, month.key)  # parts of other forms are not needed any more
    for folder in [name for name in staged.list_folders() if name.startswith(prefix)]:
        staged.remove_folder(folder)


def remove_stale_staging(locations: Locations, months: Sequence[Month], failed: Iterable[str]) -> None:
    """Remove parts that earlier runs have left: of published months, and of other models or other prepared rows."""
    kept = (*(month.staged for month in months), *(f"{month_name(month)}." for month in failed))
    for name in locations.staged.list_folders():
        if name.startswith(kept):
            continue
        month = name.partition(".")[0].removeprefix("month=")
        manifest = locations.predictions.read_json(f"{month_name(month)}/{files.MANIFEST}")
        key = manifest.get("key") if isinstance(manifest, dict) else None
        if name.startswith(name_staged_folder(month, key)) or locations.staged.is_abandoned(name):
            locations.staged.remove_folder(name)


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
