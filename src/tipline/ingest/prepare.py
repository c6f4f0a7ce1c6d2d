"""A published month brought to the one schema, in bounded memory, with no row lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import files, formats
from tipline.errors import TiplineError
from tipline.ingest import readers
from tipline.ingest.columns import PREPARED_FILE, QUARANTINE_FILE
from tipline.ingest.conform import QUARANTINE, Conformer
from tipline.ingest.schema import ROW

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tipline.ingest.schema import Match, Schema

ROW_GROUP_ROWS = 2**20
QUARANTINE_BYTES = 2**26  # of rows set apart that are held until they are written


def find_published_file(folder: Path, month: str) -> Path:
    """The one file of a downloaded month."""
    found = [path for path in folder.glob("*") if path.is_file()]
    if len(found) != 1:
        what = f"Expected one published file, found {len(found)}."
        raise TiplineError(what, str(folder), f"Run: dvc repro -f download@{month}")
    return found[0]


def is_prepared(folder: Path, path: Path, schema: Schema, month: str) -> bool:
    """Whether a folder's files are whole and are what `prepare` would make of a published file now."""
    manifest = files.try_read_json(folder / files.MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != formats.PREPARED:
        return False
    match = schema.match(readers.open_month(path, month).schema, f"{path.name}, month {month}")
    mapping = schema.mapping(match, manifest.get("aliases", {}))
    paths = {"published": path, "trips": folder / PREPARED_FILE, "quarantine": folder / QUARANTINE_FILE}
    return bool(
        manifest.get("mapping", {}).get("digest") == files.hash_json(mapping)
        and all(file.is_file() and manifest.get(name) == files.describe_file(file) for name, file in paths.items())
    )


def prepare_month(path: Path, folder: Path, schema: Schema, month: str) -> dict[str, Any]:
    """Write trips, quarantine and manifest of a published file into an empty folder; return the manifest.

    Raises
    ------
    TiplineError
        Where the file cannot be read, lacks a required column, has a type that cannot be read, or none of its rows
        can be, or where a row would be lost.
    """
    where = f"{path.name}, month {month}"
    published_month = readers.open_month(path, month)
    match = schema.match(published_month.schema, where)
    conformer = Conformer(schema, match.names, month)
    with ThreadPoolExecutor(1) as hashing:
        bytes_in = hashing.submit(files.describe_file, path)
        try:
            rows = write(conformer, published_month, folder)
        except (pa.ArrowException, MemoryError) as error:
            raise readers.explain_damage(error, path.name, month) from error
        except OSError as error:
            # Arrow raises this for a damaged page, too; only the system's own errors carry a number.
            if error.errno is None:
                raise readers.explain_damage(error, path.name, month) from error
            raise
        made = {
            "trips": files.describe_file(folder / PREPARED_FILE),
            "quarantine": files.describe_file(folder / QUARANTINE_FILE),
        }
    if rows["rows_in"] and not rows["rows_out"]:
        reasons = "; ".join(f"{reason} ({n:,} rows)" for reason, n in conformer.quarantined.most_common())
        what = f"None of the month's {rows['rows_in']:,} rows can be read: {reasons}."
        raise TiplineError(what, where, "Check the file; `tipline check` shows how its columns are understood.")
    manifest = {"month": month, **rows, **counts(conformer, match), **described(schema, conformer, match)}
    manifest |= {"published": bytes_in.result(), **made}
    files.write_json(folder / files.MANIFEST, manifest)
    return manifest


def counts(conformer: Conformer, match: Match) -> dict[str, Any]:
    """What was met in a month, as its manifest has it."""
    return {
        "quarantined_by_reason": dict(sorted(conformer.quarantined.items())),
        "filled": dict(sorted(conformer.filled.items())),
        "out_of_range": {name: n for name, n in sorted(conformer.out_of_range.items()) if n},
        "outside_month": conformer.outside_month,
        "unknown_aliases": dict(sorted(conformer.unknown_aliases.items())),
        "unknown_columns": match.unknown,
    }


def described(schema: Schema, conformer: Conformer, match: Match) -> dict[str, Any]:
    """How a month was understood, as its manifest has it."""
    mapping = schema.mapping(match, conformer.aliases)
    columns = {key: {"name": name, "type": str(match.types[key])} for key, name in match.names.items()}
    return {
        "format": formats.PREPARED,
        "schema": schema.version,
        "era": match.era,
        "mapping": {"digest": files.hash_json(mapping), "columns": columns},
        "aliases": conformer.aliases,
    }


def write(conformer: Conformer, month: readers.ParquetMonth | readers.CsvMonth, folder: Path) -> dict[str, int]:
    """Stream the month into trips.parquet and _quarantine.parquet; return the counts of rows.

    A thread writes a row group while the next is read and cast: Arrow does both without Python's lock.
    """
    out = apart = 0
    with (
        pq.ParquetWriter(
            folder / PREPARED_FILE, conformer.arrow_schema, **parquet_options(conformer.arrow_schema)
        ) as trips,
        pq.ParquetWriter(folder / QUARANTINE_FILE, QUARANTINE) as apart_writer,
        ThreadPoolExecutor(1) as writing,
    ):
        written = writing.submit(int)  # nothing yet
        for group, unreadable in grouped(conformed(conformer, month)):
            written.result()
            written = writing.submit(trips.write_table, group, row_group_size=ROW_GROUP_ROWS)
            apart_writer.write_table(unreadable)
            out, apart = out + len(group), apart + len(unreadable)
        written.result()
    if month.rows != out + apart:
        what = f"{month.rows:,} rows were published, {out:,} prepared and {apart:,} set apart: some are lost."
        raise TiplineError(what, str(month.path), "This is a defect of tipline; please report it with the file.")
    return {"rows_in": month.rows, "rows_out": out, "quarantined": apart}


def conformed(
    conformer: Conformer, month: readers.ParquetMonth | readers.CsvMonth
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Batches in the schema with their unreadable rows."""
    columns = conformer.schema.columns
    categories = [name for key, name in conformer.names.items() if columns[key].type == "category"]
    for batch in month.batches(list(conformer.names.values()), categories):
        yield conformer.conform(batch)


def grouped(pairs: Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Gather batches into row groups of about ROW_GROUP_ROWS, each with the rows set apart on the way."""
    good: list[pa.RecordBatch] = []
    bad: list[pa.RecordBatch] = []
    for trips, unreadable in pairs:
        good.append(trips)
        bad.append(unreadable)
        if sum(map(len, good)) >= ROW_GROUP_ROWS or sum(batch.nbytes for batch in bad) >= QUARANTINE_BYTES:
            yield tables(good, bad)
            good, bad = [], []
    if sum(map(len, good)) + sum(map(len, bad)):
        yield tables(good, bad)


def tables(good: list[pa.RecordBatch], bad: list[pa.RecordBatch]) -> tuple[pa.Table, pa.Table]:
    """Batches as one table each; a category's dictionary may have grown between batches."""
    return pa.Table.from_batches(good).unify_dictionaries(), pa.Table.from_batches(bad)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Row numbers and times as differences, which are small; all else repeats enough for a dictionary."""
    delta = [field.name for field in schema if field.name == ROW.name or pa.types.is_timestamp(field.type)]
    return {
        # LZ4 unpacks twice as fast as Snappy, and a prepared month is read again after each promotion.
        "compression": "lz4",
        "use_dictionary": [name for name in schema.names if name not in delta],
        "column_encoding": dict.fromkeys(delta, "DELTA_BINARY_PACKED"),
    }
