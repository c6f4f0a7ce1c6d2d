"""`tipline verify`: whether published predictions are what their manifests say, by hashing and counting all again.

Blocks are checked several at once, in threads: hashing, Arrow and numpy let go of Python's lock. A thread holds one
block, and no more of months than counts is kept.
"""

from __future__ import annotations

import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tipline import files, formats, processes
from tipline.errors import TiplineError, UsageError, format_count, summarize_exception
from tipline.ingest import columns
from tipline.model import artifact, pyfunc
from tipline.monitoring.counts import BANDS, Counts, assign_band, sum_groups
from tipline.paths import month_name
from tipline.scoring import plan, worker
from tipline.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from tipline.config import PartialSettings
    from tipline.model.pyfunc import Probabilities
    from tipline.monitoring.counts import Sums
    from tipline.paths import Paths
    from tipline.scoring.plan import Block, Locations

    Rows = np.ndarray[tuple[int], np.dtype[np.int64]]

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)
EXACTLY = 1e-9  # of a sum, relative: additions in another order


@dataclass(frozen=True)
class Manifest:
    """What a month's manifest says."""

    key: dict[str, Any]
    rows: int
    parts: list[dict[str, Any]]
    counts: Counts
    version: int

    @classmethod
    def of(cls, value: Any) -> Manifest:  # noqa: ANN401 (whatever stands in the file)
        """Read what `score` wrote; one of MALFORMED where it is something else."""
        key = {name: value["key"][name] for name in ("trips", "model", "format")}
        parts = [{name: part[name] for name in ("name", "rows", "bytes", "sha256")} for part in value["parts"]]
        return cls(key, int(value["rows"]), parts, Counts.from_json(value["counts"]), value["made"]["version"])


@dataclass
class Found:
    """What a part holds, and what is wrong with it."""

    faults: list[TiplineError] = field(default_factory=list)
    ends: tuple[int, int] | None = None  # its first and its last row number, where it has rows
    probability: float = 0.0
    bands: Rows = field(default_factory=lambda: np.zeros(BANDS, np.int64))
    counts: Counts | None = None  # None where something is wrong, or there is no model to count by


@dataclass
class Month:
    """A month whose parts are being checked."""

    month: str
    locations: Locations
    data: bytes | None
    manifest: Manifest | None = None
    spec: dict[str, Any] | None = None
    faults: list[TiplineError] = field(default_factory=list)
    parts: list[Future[Found]] = field(default_factory=list)
    trips: Future[list[TiplineError]] | None = None  # None where the prepared month is not there to compare with

    @property
    def folder(self) -> str:
        """Its folder in both locations."""
        return month_name(self.month)

    def fault(self, what: str, name: str = files.MANIFEST) -> TiplineError:
        """Something wrong with a file of the month's predictions."""
        folder = self.locations.predictions.address(self.folder)
        todo = f"Remove {folder} and score the month again: dvc repro score"
        return TiplineError(what, f"{folder}/{name}", todo)


def run(
    settings: PartialSettings, paths: Paths, months: Sequence[str] = (), trips: str = "", predictions: str = ""
) -> Iterator[str]:
    """Check the published months; give a line about each, and what is wrong with it.

    Parameters
    ----------
    months
        Default: those of `months` that are published.
    trips_place, predictions
        Where prepared months and predictions are; default: the project's folders.

    Raises
    ------
    UsageError
        Where a month that was asked for has no predictions.
    TiplineError
        At the end, where something is wrong; or where there are no predictions at all.
    """
    locations = plan.Locations.resolve(paths, trips, predictions)
    published = locations.predictions.list_folders()
    there = [month for month in dict.fromkeys(months or settings.months) if month_name(month) in published]
    check_there(locations, months, there)
    model = champion(paths)
    wrong = []
    with ThreadPoolExecutor(processes.count_cpus()) as pool:
        for month in ahead(begin(pool, locations, month, model) for month in there):
            faults, line = finish(month)
            yield f"{month.month}: {line}"
            yield from (f"  {text}" for fault in faults for text in str(fault).splitlines())
            wrong += [month.month] * bool(faults)
    yield from (f"{month}: not scored yet" for month in settings.months if not months and month not in there)
    if wrong:
        what = f"The predictions of {len(wrong)} of {len(there)} months are not what their manifests say."
        raise TiplineError(what, ", ".join(wrong), "What is wrong with each, and what to do, stands above.")


def check_there(locations: Locations, asked: Sequence[str], there: Sequence[str]) -> None:
    """Refuse to verify what is not there."""
    where, todo = locations.predictions.address(), "Score first: dvc repro score; or name another place: --predictions"
    missing = [month for month in asked if month not in there]
    if missing:
        raise UsageError(f"There are no predictions of {', '.join(missing)}.", where, todo)
    if not there:
        raise TiplineError("There are no predictions of any month of `months`.", where, todo)


def champion(paths: Paths) -> tuple[str, dict[str, Any]] | None:
    """Digest and model.json of the model in models/champion, None where it is not whole."""
    try:
        contents = artifact.read_artifact(paths.champion)
    except TiplineError:
        return None
    return artifact.hash_artifact(contents), json.loads(contents[pyfunc.SPEC])


def ahead(months: Iterable[Month]) -> Iterator[Month]:
    """Give each month when the next one has begun, so that no thread waits for a month's last block."""
    waiting: list[Month] = []
    for month in months:
        yield from waiting
        waiting = [month]
    yield from waiting


# ---- a month ----


def begin(pool: ThreadPoolExecutor, locations: Locations, name: str, model: tuple[str, dict[str, Any]] | None) -> Month:
    """Look at a month's manifest and files, and have its parts checked."""
    month = Month(name, locations, locations.predictions.read(f"{month_name(name)}/{files.MANIFEST}"))
    month.manifest = manifest = read_manifest(month)
    if manifest is None:
        return month
    if model is not None and model[0] == manifest.key["model"]:
        month.spec = model[1]
    month.faults += list(listing_faults(month, manifest))
    blocks = prepared(month, manifest)
    sizes = locations.predictions.list_sizes(month.folder)
    for part in manifest.parts:
        month.parts.append(pool.submit(check_part, month, part, sizes.get(part["name"]), blocks.get(part["name"])))
    if blocks:
        month.trips = pool.submit(check_trips, month, manifest)
    return month


def read_manifest(month: Month) -> Manifest | None:
    """The manifest; None, with a fault, where it is not one."""
    if month.data is None:
        month.faults.append(month.fault("The month has no manifest."))
        return None
    try:
        value = json.loads(month.data)
        manifest = Manifest.of(value)
    except MALFORMED as error:
        month.faults.append(month.fault(f"The manifest is none that tipline wrote ({summarize_exception(error)})."))
        return None
    if value.get("month") != month.month or manifest.key["format"] != formats.PREDICTIONS:
        what = f"The manifest is of month {value.get('month')}, format {manifest.key['format']}; "
        month.faults.append(month.fault(f"{what}here it has to be {month.month}, {formats.PREDICTIONS}."))
    return manifest


def listing_faults(month: Month, manifest: Manifest) -> Iterator[TiplineError]:
    """Files beside those that the manifest names, and sums that do not add up."""
    predictions = month.locations.predictions
    named = [part["name"] for part in manifest.parts]
    folders = open_storage(predictions.address(month.folder)).list_folders()
    for name in sorted({*predictions.list_sizes(month.folder), *folders} - {*named, files.MANIFEST}):
        if not name.startswith("."):
            yield month.fault("The manifest does not name this: readers of the folder would take its rows, too.", name)
    if len(set(named)) < len(named):
        yield month.fault("The manifest names a part twice.")
    rows = sum(part["rows"] for part in manifest.parts)
    if not rows == manifest.rows == manifest.counts.rows:
        what = f"The manifest has {manifest.rows:,} rows, its counts {manifest.counts.rows:,}, its parts {rows:,}."
        yield month.fault(what)


def prepared(month: Month, manifest: Manifest) -> dict[str, Block]:
    """The row group behind each part; none, with a fault, where the prepared month is not the one that was scored."""
    try:
        key = plan.compute_key(month.locations, month.month, manifest.key["model"])
        blocks = {block.name: block for block in plan.list_blocks(month.locations, month.month, manifest.key)}
    except TiplineError as error:
        month.faults.append(error)
        return {}
    if key["trips"] != manifest.key["trips"]:
        what = "The month was prepared anew after it was scored; its rows cannot be compared."
        where = month.locations.trips.address(month.folder)
        month.faults.append(TiplineError(what, where, "Score it again: dvc repro score"))
        return {}
    if set(blocks) != {part["name"] for part in manifest.parts}:
        has = f"the prepared month has {format_count(len(blocks), 'row group')}"
        what = f"The manifest names {format_count(len(manifest.parts), 'part')}, {has}."
        month.faults.append(month.fault(what))
    return blocks


def check_trips(month: Month, manifest: Manifest) -> list[TiplineError]:
    """Hash the prepared month; what is wrong with it."""
    name = f"{month.folder}/{columns.PREPARED_FILE}"
    try:
        if month.locations.trips.hash_file(name) == manifest.key["trips"]:
            return []
    except TiplineError as error:
        return [error]
    what = "The prepared month's sha256 is not the one that was scored: the file has changed."
    todo = f"Make it again: dvc repro -f prepare@{month.month}"
    return [TiplineError(what, month.locations.trips.address(name), todo)]


def finish(month: Month) -> tuple[list[TiplineError], str]:
    """Wait for a month's parts; what is wrong with it, and a line about it."""
    found = [part.result() for part in month.parts]
    if month.manifest is None:
        faults = month.faults
    else:
        of_trips = month.trips.result() if month.trips else []
        of_parts = [fault for part in found for fault in part.faults]
        faults = [*month.faults, *of_trips, *of_parts, *order_faults(month, month.manifest, found)]
        if not of_parts:
            faults += count_faults(month, month.manifest, found)
    if faults and month.locations.predictions.read(f"{month.folder}/{files.MANIFEST}") != month.data:
        what = "The month was published anew while it was being checked."
        faults = [TiplineError(what, month.locations.predictions.address(month.folder), "Run it again.")]
    return faults, line(month, faults)


def line(month: Month, faults: Sequence[TiplineError]) -> str:
    """What there is to say of a month."""
    if faults or month.manifest is None:
        return format_count(len(faults), "fault")
    text = f"{format_count(month.manifest.rows, 'row')}, {format_count(len(month.manifest.parts), 'part')}, whole"
    if month.spec is None:
        text += f"; made with another model (version {month.manifest.version}): its losses are not counted again"
    return text


def order_faults(month: Month, manifest: Manifest, found: Sequence[Found]) -> Iterator[TiplineError]:
    """Parts whose row numbers do not go on where those of the part before end."""
    last = -1
    for part, one in zip(manifest.parts, found, strict=True):
        if one.ends is not None:
            if one.ends[0] <= last:
                yield month.fault("Row numbers of this part are in an earlier one, too.", part["name"])
            last = one.ends[1]


def count_faults(month: Month, manifest: Manifest, found: Sequence[Found]) -> Iterator[TiplineError]:
    """Hold the manifest's counts against those of the parts."""
    told = manifest.counts
    counts = [part.counts for part in found if part.counts is not None]
    bands = sum((part.bands for part in found), np.zeros(BANDS, np.int64))
    differing = [] if close(told.probability, sum(part.probability for part in found)) else ["probability"]
    if len(counts) == len(found):
        differing += list(differences(told, Counts.merge(counts)))
    elif not may_be(told, bands):
        differing.append("bands")
    if differing:
        yield month.fault(f"The manifest's counts are not those of its rows: {', '.join(differing)}.")


def differences(told: Counts, found: Counts) -> Iterator[str]:
    """What of some counts differs from what was counted; whole numbers exactly, sums of losses but for rounding."""
    if told.rows != found.rows:
        yield "rows"
    if not np.array_equal(told.bands, found.bands):
        yield "bands"
    one, other = (
        {(name, day): sums[name] for day, sums in each.days.items() for name in sums} for each in (told, found)
    )
    keys = {*one, *other}
    yield from (f"group {name}" for name in sorted({key[0] for key in keys if differ(one.get(key), other.get(key))}))
    a, b = told.to_json()["histograms"], found.to_json()["histograms"]
    yield from (f"histogram of {name}" for name in sorted({*a, *b}) if a.get(name) != b.get(name))


def differ(one: Sums | None, other: Sums | None) -> bool:
    """Whether two sums are not of the same rows."""
    if one is None or other is None or one[:2] != other[:2]:
        return True
    return not (close(one.probability, other.probability) and close(one.loss, other.loss))


def may_be(told: Counts, bands: Rows) -> bool:
    """Whether a month with so many rows a band can have such counts."""
    labelled = told.bands[:, :2].sum()
    return np.array_equal(told.bands.sum(axis=1), bands) and sum_groups(told.groups()).rows == int(labelled)


def close(one: float, other: float) -> bool:
    """Whether two sums of the same numbers are equal."""
    return math.isclose(one, other, rel_tol=EXACTLY)


# ---- a part, in a thread ----


def check_part(month: Month, part: Mapping[str, Any], size: int | None, block: Block | None) -> Found:
    """Hash and count one part, and hold its rows against those of the prepared month."""
    try:
        table = read_part(month, part, size)
        scores = table["tip_probability"].combine_chunks().to_numpy()
        if not ((scores >= 0) & (scores <= 1)).all():  # NaN is not, either
            raise month.fault("Not all of its values are probabilities.", part["name"])
        found = Found(probability=float(scores.sum(dtype=np.float64)))
        found.bands = np.bincount(assign_band(scores), minlength=BANDS)
        if block is not None:
            compare(month, block, table["row"].combine_chunks().to_numpy(), scores, found)
    except TiplineError as error:
        return Found([error])
    return found


def read_part(month: Month, part: Mapping[str, Any], size: int | None) -> pa.Table:
    """A part whose bytes, schema and number of rows are those of the manifest."""
    name = part["name"]
    if size != part["bytes"]:
        there = "is not there" if size is None else f"has {size:,} bytes"
        raise month.fault(f"The part {there}, the manifest says {format_count(part['bytes'], 'byte')}.", name)
    data = month.locations.predictions.read(f"{month.folder}/{name}") or b""
    if files.hash_bytes(data) != part["sha256"]:
        raise month.fault("The part's sha256 is not the one in the manifest: its bytes have changed.", name)
    try:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            table = file.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise month.fault(
            f"The part is no Parquet file that can be read: {summarize_exception(error)}.", name
        ) from error
    if not table.schema.equals(plan.SCHEMA):
        raise month.fault(f"The part has other columns: {', '.join(map(str, table.schema))}.", name)
    if len(table) != part["rows"]:
        raise month.fault(f"The part has {format_count(len(table), 'row')}, the manifest says {part['rows']:,}.", name)
    return table


def compare(month: Month, block: Block, rows: Rows, scores: Probabilities, found: Found) -> None:
    """Hold the row numbers of a part against those of the row group, and count by its target."""
    types: dict[str, pa.DataType] = {}
    if month.spec is not None:  # features only where the model has something to compare them with
        types = columns.list_needed_columns(
            month.spec if month.spec.get("reference") else {**month.spec, "features": []}
        )
    batch = worker.read_block(block, types)
    check_rows(month, block, rows, batch["row"].to_numpy())
    if len(rows):
        found.ends = (int(rows[0]), int(rows[-1]))
    if month.spec is not None:
        found.counts = Counts.from_rows(batch, month.spec, scores, month.month) if len(rows) else Counts()


def check_rows(month: Month, block: Block, rows: Rows, expected: Rows) -> None:
    """Refuse row numbers that are not those of the prepared rows, each once."""
    if len(rows) != len(expected):
        raise month.fault(
            f"The part has {format_count(len(rows), 'row')}, the prepared month {len(expected):,}.", block.name
        )
    others = np.flatnonzero(rows != expected)
    if len(others):
        first = f"{rows[others[0]]:,} instead of {expected[others[0]]:,}"
        words = "number is not that" if len(others) == 1 else "numbers are not those"
        what = f"{len(others):,} row {words} of the prepared month, the first {first}."
        raise month.fault(what, block.name)
    if (np.diff(rows) <= 0).any():
        raise month.fault("Row numbers are there twice, or not in order.", block.name)
