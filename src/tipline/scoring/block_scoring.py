"""Bulk scoring: which blocks of which months are to be scored, one block on a worker, publishing a month.

A part is done if it was made from the same prepared month, the same model and the same FORMAT; that one rule serves
a killed run, an added month and a new champion.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import cluster, files
from tipline.cluster import WorkerPlugin, get_worker
from tipline.errors import TiplineError, UsageError, join_lines, summarize_exception
from tipline.ingest import columns
from tipline.model import artifact, golden_rows
from tipline.monitoring.counts import Counts
from tipline.paths import Paths, month_name
from tipline.storage import LocalStorage, Storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tipline.cluster import Client, Worker
    from tipline.model.artifact import Model

log = logging.getLogger(__name__)

# Raised when the predictions' files or manifests change for the same input and model; all are scored again then.
FORMAT = 2

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
    def of(cls, paths: Paths, trips: str = "", to: str = "") -> Locations:
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
    places: Locations
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
    places: Locations
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


def plan_months(places: Locations, months: Sequence[str], digest: str) -> tuple[list[Month], dict[str, str]]:
    """The months that are not published with this model and their prepared rows, with the parts that are done.

    Returns
    -------
    tuple
        The months to score, and why others, whose prepared rows are missing or damaged, cannot be.
    """
    planned, failed = [], {}
    for month in months:
        try:
            key = compute_key(places, month, digest)
            if not is_published(places.predictions, month, key):
                refuse_other_files(places.predictions, month)
                blocks = list_blocks(places, month, key)
                planned.append(Month(month, places, key, blocks, dict(find_finished_parts(places.staged, blocks))))
        except TiplineError as error:
            failed[month] = join_lines(error)
    return planned, failed


def compute_key(places: Locations, month: str, digest: str) -> dict[str, Any]:
    """What the predictions of a month are made from.

    Raises
    ------
    TiplineError
        Where the month is not prepared, or its file has not the length that its manifest says.
    """
    folder, todo = month_name(month), f"Run: dvc repro -f prepare@{month}"
    manifest = places.trips.json(f"{folder}/{files.MANIFEST}")
    where = places.trips.address(f"{folder}/{files.MANIFEST}")
    if manifest is None:
        raise TiplineError("The month is not prepared: it has no manifest.", where, todo)
    try:
        expected, sha256 = int(manifest["trips"]["bytes"]), str(manifest["trips"]["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise TiplineError("This is no manifest of a prepared month.", where, todo) from error
    size = places.trips.sizes(folder).get(columns.PREPARED_FILE)
    if size != expected:
        what = f"The prepared month has {size or 0:,} bytes, its manifest says {expected:,}."
        raise TiplineError(what, places.trips.address(f"{folder}/{columns.PREPARED_FILE}"), todo)
    return {"trips": sha256, "model": digest, "format": FORMAT}


def refuse_other_files(predictions: Storage, month: str) -> None:
    """Refuse to put predictions in place of what is none: a folder is replaced as a whole."""
    ours = ("part-", files.MANIFEST, ".")
    strangers = [name for name in predictions.sizes(month_name(month)) if not name.startswith(ours)]
    if strangers:
        where = predictions.address(f"{month_name(month)}/{min(strangers)}")
        raise TiplineError("This is no prediction, and would be lost.", where, "Move it, or name another place (--to).")


def list_blocks(places: Locations, month: str, key: Mapping[str, Any]) -> list[Block]:
    """A month's row groups."""
    name = f"{month_name(month)}/{columns.PREPARED_FILE}"
    state, digest = places.trips.state(name), files.hash_json(key)
    groups = places.trips.groups(name, state)
    return [Block(month, places, state, group, rows, digest, key["model"]) for group, rows in enumerate(groups)]


def find_finished_parts(staged: Storage, blocks: Sequence[Block]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of an earlier run that can be kept: made from the same key, with the digest that was written down.

    The prepared file must not have been touched since then: no month is made from two states of it.
    """
    there = staged.sizes(staged_name(blocks[0].month, blocks[0].key)) if blocks else {}
    for block in blocks:
        made = staged.json(block.marker) if block.name in there else None
        if made is None or (made["key"], made.get("state")) != (block.key, block.state):
            continue
        if made["bytes"] == there[block.name] and files.hash_bytes(staged.read(block.part) or b"") == made["sha256"]:
            yield block.name, made


def is_published(predictions: Storage, month: str, key: Mapping[str, Any]) -> bool:
    """Whether a month's predictions are there, whole, and made from this key."""
    manifest = predictions.json(f"{month_name(month)}/{files.MANIFEST}")
    try:
        told, parts = manifest["key"], {part["name"]: part["bytes"] for part in manifest["parts"]}
    except (KeyError, TypeError):  # none, or not one that `score` wrote
        return False
    sizes = predictions.sizes(month_name(month))
    return bool(told == dict(key)) and all(sizes.get(name) == length for name, length in parts.items())


def explain_failure(block: Block, error: Exception) -> TiplineError:
    """Why a block failed; errors that are not ours say neither what kind they are nor where they were."""
    if isinstance(error, TiplineError):
        return error
    if isinstance(error, OSError) and error.errno in files.DISK_FULL_ERRORS:
        todo = "Free some space and run it again; finished parts are kept."
        return TiplineError(f"The disk is full: {error.strerror}.", block.places.staged.address(), todo)
    where = f"row group {block.row_group} of {block.places.trips.address(block.trips)}"
    return TiplineError(
        f"{type(error).__name__}: {summarize_exception(error)}.", where, "Run it again; report it if it stays."
    )


# ---- on a worker ----


def plugin_name(digest: str) -> str:
    """A scheduler may serve several projects at once: each model has its own name there."""
    return f"tipline-model-{digest}"


class ModelPlugin(WorkerPlugin):
    """Carries the model's files to each worker and loads them there once, also after a worker's restart.

    The model's canary rows are scored before anything else. Where they come out otherwise than where the model was
    made, or the model cannot be loaded, every block that the worker is given is refused.
    """

    def __init__(self, contents: Mapping[str, bytes], digest: str) -> None:
        self.name = plugin_name(digest)
        self.contents = dict(contents)
        self.digest = digest
        self.model: Model | None = None
        self.refusal: TiplineError | None = None
        self.canary = 0

    def setup(self, worker: Worker) -> None:
        """Check the digest, load, score the canary."""
        try:
            self.model = artifact.load_model(self.contents, self.digest)
            self.canary = golden_rows.check_golden_rows(self.model, worker.address)
        except TiplineError as error:
            self.refusal = error

    def ready(self) -> Model:
        """The model.

        Raises
        ------
        TiplineError
            Where this worker must not score.
        """
        if self.refusal is not None or self.model is None:
            raise self.refusal or TiplineError("The model is not loaded.", self.name, "Run it again.")
        return self.model

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the loaded model."""
        return {**self.__dict__, "model": None, "refusal": None}


def send_model(client: Client, contents: Mapping[str, bytes], digest: str) -> None:
    """Load the model on all workers.

    Raises
    ------
    TiplineError
        Where one of them cannot load it, or scores the canary rows differently.
    """
    client.register_plugin(ModelPlugin(contents, digest))
    if any(client.run(check_golden_rows_here, plugin_name(digest)).values()):
        log.warning(
            "the model's canary rows come out one float32 step from where it was trained: other hardware or libraries"
        )


def check_access(client: Client, places: Locations) -> None:
    """Let every worker find out whether it can use the places."""
    client.run(check_access_here, places)


def check_access_here(places: Locations, dask_worker: Worker) -> None:
    """Find out whether this worker can use the places."""
    for used in (places.trips, places.staged):
        try:
            used.reach()
        except TiplineError as error:
            what, where, todo = error.parts
            raise TiplineError(what, f"{where}, from the worker at {dask_worker.address}", todo) from error


def check_golden_rows_here(name: str, dask_worker: Worker) -> int:
    """How a worker's canary rows came out."""
    plugin = cast(ModelPlugin, dask_worker.plugins[name])
    plugin.ready()
    return plugin.canary


def get_worker_model(digest: str) -> Model:
    """A model on the worker that runs the task."""
    return cast(ModelPlugin, get_worker().plugins[plugin_name(digest)]).ready()


@contextlib.contextmanager
def time_phase(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the time of the block to a phase."""
    started = time.perf_counter()
    yield
    seconds[phase] = round(seconds.get(phase, 0.0) + time.perf_counter() - started, 6)


def score_block(block: Block) -> dict[str, Any]:
    """Score one block on a worker: write the part, then its marker; return the marker.

    Returns
    -------
    dict
        key, name, rows, bytes and sha256 of the part, counts, seconds by phase, peak_bytes of the worker.
    """
    model, seconds = get_worker_model(block.model), dict[str, float]()
    with time_phase(seconds, "read"):
        batch = read_block(block, columns.list_needed_columns(model.spec))
    with time_phase(seconds, "score"):
        scores = model.probabilities(batch)
    with time_phase(seconds, "count"):
        counts = Counts.of(batch, model.spec, scores, block.month)
    with time_phase(seconds, "write"):
        # Not `pa.array`, which imports pandas first.
        data = encode_part(batch["row"], pa.Array.from_buffers(pa.float32(), len(scores), [None, pa.py_buffer(scores)]))
        block.places.staged.write(block.part, data)
    made = {
        "key": block.key,
        "state": block.state,
        "name": block.name,
        "rows": len(batch),
        "bytes": len(data),
        "sha256": files.hash_bytes(data),
        "counts": counts.to_json(),
        "seconds": seconds,
        "peak_bytes": cluster.get_peak_memory(),
    }
    block.places.staged.write(block.marker, json.dumps(made).encode())
    return made


def read_block(block: Block, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """Row numbers and these columns of a block, as one batch: each column has one dictionary then."""
    names = ["row", *types]
    table = block.places.trips.table(block.trips, block.row_group, names, block.state)
    table = columns.add_missing_columns(table, types).select(names).combine_chunks()
    batches = table.to_batches(max_chunksize=len(table) or 1)
    # An empty table has no batch. Not made before it is known: `from_pylist` imports pandas, half a second.
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def encode_part(rows: pa.Array, scores: pa.Array) -> pa.Buffer:
    """A part's bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table([rows, scores], schema=SCHEMA),
        sink,
        compression="lz4",
        use_dictionary=False,
        column_encoding={"row": "DELTA_BINARY_PACKED", "tip_probability": "PLAIN"},
        row_group_size=len(scores) or 1,
    )
    return sink.getvalue()


# ---- publishing ----


def publish_month(month: Month, made: Mapping[str, Any]) -> None:
    """Put a month whose parts are all done in its place, the manifest written last.

    Parameters
    ----------
    made
        What is recorded of this run and not compared later: version, run, libraries, seconds.
    """
    parts = [month.done[block.name] for block in month.blocks]
    rows = sum(block.rows for block in month.blocks)
    if sum(part["rows"] for part in parts) != rows:
        raise TiplineError("The parts do not have the month's rows.", f"month {month.month}", "Run: dvc repro -f score")
    staged, sizes = month.places.staged, month.places.staged.sizes(month.staged)
    if any(sizes.get(part["name"]) != part["bytes"] for part in parts):
        todo = "Run it again, with a place that all workers and this machine share (--to)."
        raise TiplineError("Parts that workers wrote are not there.", staged.address(month.staged), todo)
    # What a worker that was killed had begun to write.
    staged.remove_files(f"{month.staged}/{name}" for name in sizes.keys() - {part["name"] for part in parts})
    manifest = {
        "month": month.month,
        "key": month.key,
        "rows": rows,
        "parts": [{name: part[name] for name in ("name", "rows", "bytes", "sha256")} for part in parts],
        "counts": Counts.sum(Counts.from_json(part["counts"]) for part in parts).to_json(),
        "made": {
            **made,
            "worker_seconds": {phase: round(sum(part["seconds"][phase] for part in parts), 3) for phase in PHASES},
            "peak_worker_bytes": max((part["peak_bytes"] for part in parts), default=0),
        },
    }
    staged.write_json(f"{month.staged}/{files.MANIFEST}", manifest)
    month.places.predictions.publish(staged, month.staged, month_name(month.month))
    # Last: after a crash in between, the next run finds all parts done and publishes them again.
    staged.remove(month.staged + MARKERS)


def remove_stale_staging(places: Locations, months: Sequence[Month], failed: Iterable[str]) -> None:
    """Remove what runs with other models or other prepared rows have left unfinished."""
    kept = {name for month in months for name in (month.staged, month.staged + MARKERS)}
    uncertain = tuple(f"{month_name(month)}." for month in failed)
    for name in places.staged.folders():
        if name not in kept and not name.startswith(uncertain):
            places.staged.remove(name)


def remove_unlisted_months(places: Locations, months: Sequence[str]) -> list[str]:
    """Remove the predictions of months that are scored no more; return their names."""
    kept = {month_name(month) for month in months}
    others = [name for name in places.predictions.folders() if name.startswith("month=") and name not in kept]
    for name in others:
        places.predictions.remove(name)
    return [name.removeprefix("month=") for name in others]
