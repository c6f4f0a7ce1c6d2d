"""`tipline verify`: check that published predictions are what their manifests say, several parts at once in threads."""

from __future__ import annotations

import functools
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AliasPath, BaseModel, Field

from tipline import files, formats, processes
from tipline.errors import TiplineError, UsageError, format_count, summarize_exception
from tipline.ingest import columns
from tipline.paths import month_name
from tipline.scoring import plan, worker
from tipline.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tipline.config import PartialSettings
    from tipline.paths import Paths
    from tipline.scoring.plan import Block, Locations


class Part(BaseModel):
    """A file of predictions, as the manifest lists it."""

    name: str
    rows: int
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The fields of a manifest that are checked."""

    month: str
    trips: str = Field(validation_alias=AliasPath("key", "trips"))  # sha256 of the prepared file
    format: int = Field(validation_alias=AliasPath("key", "format"))
    rows: int
    counted: int = Field(validation_alias=AliasPath("counts", "rows"))
    parts: list[Part]


@dataclass(frozen=True)
class Month:
    """A published month."""

    name: str
    folder: str  # in both locations
    locations: Locations

    def describe_problem(self, what: str, file: str = files.MANIFEST) -> TiplineError:
        """Return an error about one of its files."""
        folder = self.locations.predictions.address(self.folder)
        return TiplineError(what, f"{folder}/{file}", f"Remove {folder} and score the month again: dvc repro score")


def run(
    settings: PartialSettings, paths: Paths, months: Sequence[str] = (), trips: str = "", predictions: str = ""
) -> Iterator[str]:
    """Check published months; yield a line about each, followed by its problems. Raises at the end if there are any.

    If params.yaml is so broken that it has no months, all published months are checked.
    """
    locations = plan.Locations.resolve(paths, trips, predictions)
    published = [name.removeprefix("month=") for name in locations.predictions.list_folders() if "month=" in name]
    requested = list(dict.fromkeys(months or settings.months or published))
    missing = [month for month in requested if month not in published]
    if missing == requested or (months and missing):
        what = f"There are no predictions of {', '.join(missing) or 'any month'}."
        todo = "Score first (dvc repro score), or name the location: --predictions"
        raise (UsageError if months else TiplineError)(what, locations.predictions.address(), todo)
    wrong = []
    with ThreadPoolExecutor(processes.count_cpus()) as pool:
        for name in [month for month in requested if month not in missing]:
            summary, problems = check_month(pool, Month(name, month_name(name), locations))
            yield f"{name}: {summary}"
            yield from (f"  {line}" for problem in problems for line in str(problem).splitlines())
            wrong += [name] * bool(problems)
    yield from (f"{name}: not scored yet" for name in missing)
    if wrong:
        what = f"The predictions of {format_count(len(wrong), 'month')} are not what their manifests say."
        raise TiplineError(what, ", ".join(wrong), "The problems and what to do about each are printed above.")


def check_month(pool: ThreadPoolExecutor, month: Month) -> tuple[str, list[TiplineError]]:
    """Check one month; return a summary and the problems."""
    predictions, problems = month.locations.predictions, list[TiplineError]()
    data = predictions.read(f"{month.folder}/{files.MANIFEST}")
    try:
        manifest = read_manifest(month, data)
    except TiplineError as error:
        return "1 problem", [error]
    problems += check_manifest(month, manifest)
    blocks: dict[str, Block] = {}
    try:
        blocks = find_blocks(month, manifest)
    except TiplineError as error:
        problems.append(error)
    check = functools.partial(check_part, month, blocks)
    problems += [problem for problem in pool.map(check, manifest.parts) if problem is not None]
    if problems and predictions.read(f"{month.folder}/{files.MANIFEST}") != data:
        what, where = "The month was published again while it was checked.", predictions.address(month.folder)
        problems = [TiplineError(what, where, "Run the command again.")]
    whole = f"{format_count(manifest.rows, 'row')}, {format_count(len(manifest.parts), 'part')}, whole"
    return format_count(len(problems), "problem") if problems else whole, problems


def read_manifest(month: Month, data: bytes | None) -> Manifest:
    """Read what `score` wrote."""
    if data is None:
        is_old = plan.is_old_month(month.locations.predictions, month.folder)
        raise month.describe_problem("tipline 0.1 made these predictions." if is_old else "The month has no manifest.")
    try:
        return Manifest.model_validate_json(data)
    except ValueError as error:
        raise month.describe_problem(f"tipline did not write this manifest: {summarize_exception(error)}.") from error


def check_manifest(month: Month, manifest: Manifest) -> Iterator[TiplineError]:
    """Check that a manifest belongs to its month, adds up, and lists all that readers of the folder would use."""
    if (manifest.month, manifest.format) != (month.name, formats.PREDICTIONS):
        yield month.describe_problem(f"The manifest is of month {manifest.month}, format {manifest.format}.")
    in_parts = sum(part.rows for part in manifest.parts)
    if not manifest.rows == in_parts == manifest.counted:
        numbers = f"its parts {in_parts:,}, its counts {manifest.counted:,}"
        yield month.describe_problem(f"The manifest has {manifest.rows:,} rows, {numbers}.")
    predictions, names = month.locations.predictions, {part.name for part in manifest.parts}
    folders = open_storage(predictions.address(month.folder)).list_folders()
    for name in sorted({*predictions.list_sizes(month.folder), *folders} - {*names, files.MANIFEST}):
        if not name.startswith("."):
            yield month.describe_problem("The manifest does not list this; readers of the folder would use it.", name)


def find_blocks(month: Month, manifest: Manifest) -> dict[str, Block]:
    """Return the row group behind each part; refuse a prepared month that is not the one that was scored."""
    key, trips = plan.compute_key(month.locations, month.name, ""), month.locations.trips
    if key["trips"] != manifest.trips:
        what = "The month was prepared again after it was scored, so its rows cannot be compared."
        raise TiplineError(what, trips.address(month.folder), "Score it again: dvc repro score")
    if trips.hash_file(file := f"{month.folder}/{columns.PREPARED_FILE}") != manifest.trips:
        what, todo = "The prepared file has changed since it was scored.", f"dvc repro -f prepare@{month.name}"
        raise TiplineError(what, trips.address(file), f"Prepare the month again: {todo}")
    blocks = {block.name: block for block in plan.list_blocks(month.locations, month.name, key)}
    if set(blocks) != {part.name for part in manifest.parts}:
        numbers = f"{format_count(len(manifest.parts), 'part')}, the prepared month has {len(blocks):,} row groups"
        raise month.describe_problem(f"The manifest lists {numbers}.")
    return blocks


def check_part(month: Month, blocks: Mapping[str, Block], part: Part) -> TiplineError | None:
    """Compare one part with the manifest and its row numbers with those of its block; return the problem."""
    try:
        data = month.locations.predictions.read(f"{month.folder}/{part.name}")
        if data is None:
            return month.describe_problem("The part is missing.", part.name)
        if (len(data), files.hash_bytes(data)) != (part.bytes, part.sha256):
            what = f"The part's sha256 is not the one in the manifest; it has {len(data):,} of {part.bytes:,} bytes."
            return month.describe_problem(what, part.name)
        rows = pq.read_table(io.BytesIO(data), columns=["row"], use_threads=False)["row"].to_numpy()
        expected = worker.read_block(blocks[part.name], {})["row"].to_numpy() if part.name in blocks else rows
    except TiplineError as error:
        return error
    except (pa.ArrowException, OSError) as error:
        return month.describe_problem(f"This is not valid Parquet: {summarize_exception(error)}.", part.name)
    if len(rows) != part.rows or not np.array_equal(rows, expected):
        what = f"Its {len(rows):,} row numbers are not those of the prepared month ({len(expected):,} rows)."
        return month.describe_problem(what, part.name)
    return None
