"""`tipline check`: what the header or the footer of a month says, before anything else of it is fetched."""

from __future__ import annotations

import math
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import config, files
from tipline.errors import NotPublishedError, TiplineError, UsageError, combine_failures, format_count, hide_secrets, shorten_text
from tipline.ingest import prepare, readers, source, transfer
from tipline.ingest.schema import load_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tipline.config import Settings
    from tipline.ingest.schema import Match, Schema
    from tipline.ingest.transfer import Stated
    from tipline.paths import Paths

HEAD_BYTES = TAIL_BYTES = 2**16
LONGEST_FOOTER = 2**26
FOOTER_END = 8  # its length and PAR1
AT_ONCE = 4
WIDTH = 116
# Bytes a row and rows a second where this project has not prepared or scored anything yet: a sample of 2009 and green
# months (17.9 and 18.3 bytes a row), 18 million simulated rows on two cores.
TRIPS_BYTES, PREDICTIONS_BYTES, SCORED_ROWS = 18.0, 4.1, 1.8e6
TELLING_ROWS = 5_000_000  # with fewer, most of the time is the workers' start


@dataclass(frozen=True)
class Look:
    """What a month's header or footer says."""

    stated: Stated
    schema: pa.Schema
    rows: int | None  # of a CSV file, estimated from its first lines; None where the server states no length
    row_groups: int | None  # None for a CSV file


def run(settings: Settings, paths: Paths, source: str, months: Sequence[str]) -> Iterator[str]:
    """Give lines about months of a source, a few asked for at once.

    Raises
    ------
    UsageError
        Where the source is no address of so many months.
    TiplineError
        At the end, where `prepare` would refuse a month; NotPublishedError where the source has not got it.
    """
    try:
        config.check_source(source, needs_month=len(months) != 1)
    except ValueError as error:
        todo = "Name a path, https:// or s3://, with {month} in it for more than one month."
        raise UsageError(f"{error}.", f"command line, {hide_secrets(source)}", todo) from None
    schema = load_schema(paths.root / settings.schema_)
    rates = measure_rates(paths)
    failed: dict[str, TiplineError] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        looks = {month: pool.submit(look, source, month) for month in dict.fromkeys(months)}
        for month, future in looks.items():
            try:
                found = future.result()
                match = schema.match(found.schema, f"{place_of(source, month)}, month {month}")
                about = describe(found, match, schema) | {"fetched": fetched(paths, source, month, found.stated)}
                yield from lines(month, title(found), about | {"scoring": expected(found.rows, rates)})
            except TiplineError as error:
                failed[month] = error
                if len(looks) == 1:
                    raise
                words = {NotPublishedError: "not published", transfer.NoRangeError: "cannot be looked into"}
                yield from lines(month, words.get(type(error), "cannot be prepared"), {"": str(error)})
    if failed:
        raise combine_failures(failed, len(looks))


def place_of(address: str, month: str) -> str:
    """The address of a month as it may be shown; relative paths start where the command is typed."""
    return hide_secrets(source.format_address(address, month, Path.cwd()))


def look(address: str, month: str) -> Look:
    """Read the first bytes of a month and, of a Parquet file, the last."""
    place = source.format_address(address, month, Path.cwd())
    source.check_folder(address, place, Path.cwd())
    stated, head = transfer.peek_bytes(place, 0, HEAD_BYTES)
    try:
        if head.startswith(readers.MAGIC):
            with pq.ParquetFile(pa.BufferReader(footer(place))) as file:
                return Look(stated, file.schema_arrow, file.metadata.num_rows, file.num_row_groups)
        source.check_head(head, hide_secrets(place))
        first, _, rest = head.partition(b"\n")
        return Look(stated, readers.read_header(first), estimated(stated.size, len(first) + 1, rest), None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise readers.explain_damage(error, hide_secrets(place), month) from error


def footer(place: str) -> bytes:
    """The end of a Parquet file, from where its footer begins or before."""
    _, tail = transfer.peek_bytes(place, -TAIL_BYTES, TAIL_BYTES)
    length = int.from_bytes(tail[-FOOTER_END:-4], "little") + FOOTER_END
    if TAIL_BYTES < length <= LONGEST_FOOTER:
        _, tail = transfer.peek_bytes(place, -length, length)
    return tail


def estimated(size: int | None, header: int, rest: bytes) -> int | None:
    """Rows of a CSV file of so many bytes, were all its lines as long as the first ones."""
    whole = rest if size is not None and size <= header + len(rest) else rest[: rest.rfind(b"\n") + 1]
    rows = len(readers.Lines(whole, 0).all())
    if size is None or not rows:
        return None if size is None else 0
    return round((size - header) * rows / len(whole))


def title(found: Look) -> str:
    """Format, bytes and rows."""
    size = "of unknown length" if found.stated.size is None else format_size(found.stated.size)
    if found.row_groups is None:
        return f"CSV, {size}, " + ("rows unknown" if found.rows is None else f"about {found.rows:,} rows")
    return f"Parquet, {size}, {format_count(found.rows or 0, 'row')} in {format_count(found.row_groups, 'row group')}"


def format_size(count: float) -> str:
    """Bytes as a person reads them."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if count >= unit), (1e3, "kB"))
    return f"{count / unit:,.1f} {name}"


def describe(found: Look, match: Match, schema: Schema) -> dict[str, str]:
    """How `prepare` would understand the month's columns."""
    retyped = [
        f"{match.names[key]} is {shorten_text(type_)}, read as {schema.columns[key].type}"
        for key, type_ in match.types.items()
        if found.row_groups is not None and not schema.columns[key].is_natural(type_)
    ]
    return {
        "era": f"{match.era}: {schema.eras[match.era]}",
        "columns": ", ".join(key if key == name else f"{key} = {name}" for key, name in match.names.items()),
        "added": ", ".join(f"{shorten_text(name)}: left behind" for name in match.unknown[:20]) or "-",
        "lost": ", ".join(match.absent) or "-",
        "retyped": ", ".join(retyped) or "-",
    }


def fetched(paths: Paths, address: str, month: str, stated: Stated) -> str:
    """Whether the month is in data/raw/, and still what the source has."""
    manifest = files.try_read_json(paths.raw_manifest(month))
    if manifest is None or manifest["address"] != place_of(address, month):
        return "no" if manifest is None else f"from elsewhere, {manifest['address']}"
    then = manifest.get("upstream", {"size": manifest["bytes"], "version": None})
    told = [
        f"{what} {before} -> {now}"
        for what, before, now in (("bytes", then["size"], stated.size), ("version", then["version"], stated.version))
        if before is not None and now != before
    ]
    if not told:
        return "yes, and unchanged upstream"
    return f"yes, but CHANGED upstream ({', '.join(told)}); to fetch it again: dvc repro -f download@{month}"


def measure_rates(paths: Paths) -> tuple[float, float, float]:
    """Bytes a prepared row and a scored one take, and rows scored a second, as this project's months have it."""
    trips = [files.try_read_json(path) for path in paths.prepared("*").parent.glob(f"month=*/{files.MANIFEST}")]
    scored = [files.try_read_json(path) for path in paths.predictions.glob(f"month=*/{files.MANIFEST}")]
    prepared = compute_mean([(one["trips"]["bytes"], one["rows_out"]) for one in trips if one])
    written = compute_mean([(sum(part["bytes"] for part in one["parts"]), one["rows"]) for one in scored if one])
    seconds = max((one["made"].get("seconds", 0.0) for one in scored if one), default=0.0)
    rows = sum(one["rows"] for one in scored if one and one["made"].get("seconds"))
    speed = rows / seconds if seconds and rows >= TELLING_ROWS else SCORED_ROWS
    return prepared or TRIPS_BYTES, written or PREDICTIONS_BYTES, speed


def compute_mean(pairs: list[tuple[int, int]]) -> float:
    """Bytes a row, of pairs of bytes and rows."""
    return sum(size for size, _ in pairs) / max(sum(rows for _, rows in pairs), 1)


def expected(rows: int | None, rates: tuple[float, float, float]) -> str:
    """What scoring the month will take."""
    if rows is None:
        return "-"
    trips, predictions, speed = rates
    parts = math.ceil(rows / prepare.ROW_GROUP_ROWS)
    return (
        f"{format_count(rows, 'row')} in {format_count(parts, 'part')}, {format_size(rows * predictions)} of predictions "
        f"beside {format_size(rows * trips)} of prepared trips, about {max(rows / speed, 1):,.0f} s"
    )


def lines(month: str, title: str, about: dict[str, Any]) -> Iterator[str]:
    """A month's lines: a title, then names and what there is to say."""
    yield f"{month}  {title}"
    for name, text in about.items():
        for number, line in enumerate(text.splitlines()):
            before = f"  {'' if number else name:8} "
            yield from textwrap.wrap(line, WIDTH, initial_indent=before, subsequent_indent=" " * 11)
