"""Bulk scoring: which blocks of which months are to be scored, one block on a worker, publishing a month.

A part is done if it was made from the same prepared month, the same model and the same FORMAT; that one rule serves
a killed run, an added month and a new champion.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from distributed import WorkerPlugin, get_worker

from tipline import files, modelfiles, trips
from tipline.errors import TiplineError
from tipline.layout import Layout, month_folder
from tipline.metrics import Counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from distributed import Worker

    from tipline.pyfunc import Model

# Raised when the predictions' files change for the same input and model; they are all scored again then.
FORMAT = 1

SCHEMA = pa.schema(
    [pa.field("row", pa.int64(), nullable=False), pa.field("tip_probability", pa.float32(), nullable=False)]
)
PLUGIN = "tipline-model"


@dataclass(frozen=True)
class Block:
    """One task: a row group of a prepared month, and the part that its predictions go to."""

    month: str
    trips: Path
    row_group: int
    rows: int
    part: Path
    key: str

    @property
    def marker(self) -> Path:
        """What was made, written when the part is whole; the leading dot hides it from Parquet readers."""
        return self.part.with_name(f".{self.part.stem}.json")


@dataclass
class Month:
    """A month that is not published with this key yet."""

    month: str
    key: dict[str, Any]
    staged: Path
    folder: Path
    blocks: list[Block]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def open(self) -> list[Block]:
        """The blocks whose parts are not there yet."""
        return [block for block in self.blocks if block.part.name not in self.done]


def plan(layout: Layout, months: list[str], digest: str) -> tuple[list[Month], dict[str, str]]:
    """The months that are not published with this model and their prepared rows, with the parts that are done.

    Returns
    -------
    tuple
        The months to score, and why others, whose prepared rows are missing or damaged, cannot be.
    """
    planned, failed = [], {}
    for month in months:
        try:
            receipt = files.read_json(layout.trips(month) / files.RECEIPT, f"Run: dvc repro prepare@{month}")
            key = {"trips": receipt["trips"]["sha256"], "model": digest, "format": FORMAT}
            if not is_published(month_folder(layout.predictions, month), key):
                planned.append(plan_month(layout, month, key))
        except TiplineError as error:
            failed[month] = " ".join(str(error).split())
    return planned, failed


def plan_month(layout: Layout, month: str, key: Mapping[str, Any]) -> Month:
    """Blocks of a month, and those of them that an earlier run has finished."""
    staged = month_folder(layout.staging / "predictions", month)
    trips = layout.trips_file(month)
    try:
        with pq.ParquetFile(trips) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        what = f"The prepared month cannot be read: {str(error).splitlines()[0]}."
        raise TiplineError(what, str(trips), f"Run: dvc repro -f prepare@{month}") from error
    name = files.digest_of(key)
    blocks = [
        Block(month, trips, group, count, staged / f"part-{group:05d}.parquet", name)
        for group, count in enumerate(rows)
    ]
    planned = Month(month, dict(key), staged, month_folder(layout.predictions, month), blocks)
    planned.done = dict(finished(blocks))
    return planned


def finished(blocks: list[Block]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of an earlier run that can be kept: the marker names the same key, the part has its length."""
    for block in blocks:
        made = files.read_json_if_any(block.marker)
        whole = made is not None and block.part.is_file() and block.part.stat().st_size == made["bytes"]
        if whole and made["key"] == block.key:
            yield block.part.name, made


def is_published(folder: Path, key: Mapping[str, Any]) -> bool:
    """Whether a month's predictions are there, whole, and made from this key."""
    receipt = files.read_json_if_any(folder / files.RECEIPT)
    if receipt is None:
        return False
    parts = receipt["parts"]
    sizes = {path.name: path.stat().st_size for path in folder.glob("part-*.parquet")}
    whole = all(sizes.get(part["name"]) == part["bytes"] for part in parts)
    return bool(receipt["key"] == dict(key)) and whole


class ModelPlugin(WorkerPlugin):
    """Carries the model's files to each worker and loads them there once, also after a worker's restart."""

    name = PLUGIN

    def __init__(self, contents: Mapping[str, bytes], digest: str) -> None:
        self.contents = dict(contents)
        self.digest = digest
        self.model: Model | None = None

    def setup(self, worker: Worker) -> None:
        """Check the digest, then load."""
        del worker
        self.model = modelfiles.load(self.contents, self.digest)

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the loaded model."""
        return {"contents": self.contents, "digest": self.digest, "model": None}


def score_block(block: Block) -> dict[str, Any]:
    """Score one block on a worker: write the part, then its marker; return the marker.

    Returns
    -------
    dict
        key, name, rows, bytes and sha256 of the part, counts.
    """
    loaded: Model = get_worker().plugins[PLUGIN].model  # type: ignore[attr-defined]
    target, by = loaded.spec["target"], loaded.spec["baseline"]["by"]
    types = trips.needed(loaded.spec)
    with pq.ParquetFile(block.trips) as file:
        table = file.read_row_group(block.row_group, columns=["row", *types], use_threads=False)
    batches = trips.with_columns(table, types).combine_chunks().to_batches()
    parts = [loaded.probabilities(batch) for batch in batches]
    counts = Counts.sum(Counts.of(batch, target, by, scores) for batch, scores in zip(batches, parts, strict=True))
    return publish_part(block, table["row"], pa.chunked_array([pa.array(part) for part in parts], pa.float32()), counts)


def publish_part(block: Block, rows: pa.ChunkedArray, scores: pa.ChunkedArray, counts: Counts) -> dict[str, Any]:
    """Write a part and, when it is whole, its marker."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table([rows, scores], schema=SCHEMA),
        sink,
        compression="lz4",
        use_dictionary=False,
        column_encoding={"row": "DELTA_BINARY_PACKED", "tip_probability": "PLAIN"},
        row_group_size=len(rows),
    )
    data = sink.getvalue()
    block.part.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(block.part) as temporary:
        temporary.write_bytes(data)
    made = {
        "key": block.key,
        "name": block.part.name,
        "rows": len(rows),
        "bytes": len(data),
        "sha256": files.sha256_of(data),
        "counts": counts.to_json(),
    }
    files.write_json(block.marker, made)
    return made


def publish_month(month: Month, made: Mapping[str, Any]) -> None:
    """Put a month whose parts are all done in its place, the receipt written last.

    Parameters
    ----------
    made
        What is recorded of this run and not compared later: version, run, libraries, seconds.
    """
    parts = [month.done[block.part.name] for block in month.blocks]
    rows = sum(block.rows for block in month.blocks)
    if sum(part["rows"] for part in parts) != rows:
        raise TiplineError("The parts do not have the month's rows.", f"month {month.month}", "Run: dvc repro -f score")
    counts = Counts.sum(Counts.from_json(part["counts"]) for part in parts)
    kept = {block.part.name for block in month.blocks}
    month.staged.mkdir(parents=True, exist_ok=True)
    for path in month.staged.iterdir():
        if path.name not in kept:
            path.unlink()
    receipt = {
        "month": month.month,
        "key": month.key,
        "rows": rows,
        "parts": [{name: part[name] for name in ("name", "rows", "bytes", "sha256")} for part in parts],
        "counts": counts.to_json(),
        "made": dict(made),
    }
    files.write_json(month.staged / files.RECEIPT, receipt)
    files.swap_in(month.staged, month.folder)


def mend(layout: Layout) -> None:
    """Finish what a crash between the two renames of a publication left: the month that stood there goes back."""
    for old in sorted((layout.staging / "predictions").glob("month=*.old")):
        folder = layout.predictions / old.name.removesuffix(".old")
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


def drop_others(layout: Layout, months: list[str]) -> list[str]:
    """Remove the predictions of months that are scored no more; return their names."""
    kept = {month_folder(layout.predictions, month).name for month in months}
    others = [folder for folder in sorted(layout.predictions.glob("month=*")) if folder.name not in kept]
    for folder in others:
        shutil.rmtree(folder)
    return [folder.name.removeprefix("month=") for folder in others]
