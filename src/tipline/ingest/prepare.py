"""Convert a published month to the schema, in bounded memory and without losing a row."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import files, formats
from tipline.errors import TiplineError
from tipline.ingest import readers
from tipline.ingest.columns import PREPARED_FILE, QUARANTINE_FILE
from tipline.ingest.conform import QUARANTINE, Conformer
from tipline.ingest.labels import LabelFiles, Labels
from tipline.ingest.schema import ROW, Match, Schema
from tipline.paths import month_name
from tipline.storage import Storage

# A row group is what a worker scores at once. Narrow months have many rows in one; wide ones would fill its memory.
ROW_GROUP_ROWS, ROW_GROUP_BYTES = 2**20, 2**28
TEXT_BYTES = 32  # of an identifier, about
QUARANTINE_BYTES = 2**26  # of quarantined rows that are held before they are written


def find_prepared(
    trips: Storage, path: Path, schema: Schema, month: str, label_files: LabelFiles | None = None
) -> dict[str, Any] | None:
    """Return the manifest of a month in storage that is what `prepare_month` would make of `path` now, or None."""
    folder = month_name(month)
    manifest = trips.read_json(f"{folder}/{files.MANIFEST}")
    if not isinstance(manifest, dict) or manifest.get("format") != formats.PREPARED:
        return None
    mapping = schema.describe_mapping(match_month(path, schema, month)[1], manifest.get("aliases", {}))
    known = manifest.get("label_files", {})
    is_whole = (
        manifest.get("mapping", {}).get("digest") == files.hash_json(mapping)
        and manifest.get("published") == readers.find_published(path)
        and known == (label_files.describe(schema, month, known.get("aliases", {})) if label_files else {})
        and trips.has_files(folder, {PREPARED_FILE: manifest["trips"], QUARANTINE_FILE: manifest["quarantine"]})
    )
    return manifest if is_whole else None


def match_month(path: Path, schema: Schema, month: str) -> tuple[readers.Month, Match]:
    """Open a published month, a file or a folder of files, and map its columns to the schema's; see `Schema.match`."""
    published = readers.open_month(path, month, schema.csv)
    where, get_example = f"{published.path.name}, month {month}", partial(readers.get_example, published)
    # Several files have the same names, but may have other types.
    matches = [schema.match(one, where, get_example) for one in published.schemas]
    return published, matches[0]


def prepare_month(
    path: Path, folder: Path, schema: Schema, month: str, label_files: LabelFiles | None = None
) -> dict[str, Any]:
    """Write the files of a prepared month into an empty folder, return its manifest; raise if a row would be lost."""
    published, match = match_month(path, schema, month)
    conformer = Conformer(schema, match.names, month)
    labels = Labels(label_files, schema, month) if label_files else None
    with ThreadPoolExecutor(1) as hashing:
        published_file = hashing.submit(readers.describe_published, path)
        with readers.report_damage(published.path.name, month):
            counts = write_month(conformer, published, folder, labels)
        digests = hashing.submit(hash_columns, folder / PREPARED_FILE)
        trips_file = files.describe_file(folder / PREPARED_FILE)
    manifest = {
        "month": month,
        **counts,
        "quarantined_by_reason": dict(sorted(conformer.quarantined.items())),
        "examples": conformer.examples,
        "filled": dict(sorted(conformer.filled.items())),
        "out_of_range": {name: count for name, count in sorted(conformer.out_of_range.items()) if count},
        "outside_month": conformer.outside_month,
        "unknown_aliases": dict(sorted(conformer.unknown_aliases.items())),
        "unknown_columns": match.unknown,
        "format": formats.PREPARED,
        "schema": schema.version,
        "era": match.era,
        "mapping": {
            "digest": files.hash_json(schema.describe_mapping(match, conformer.aliases)),
            "columns": {key: {"name": name, "type": str(match.types[key])} for key, name in match.names.items()},
        },
        "aliases": conformer.aliases,
        "published": published_file.result(),
        "columns": digests.result(),
        "trips": trips_file,
        "quarantine": files.describe_file(folder / QUARANTINE_FILE),
    }
    if labels and label_files:
        described = label_files.describe(schema, month, labels.aliases)
        manifest |= {"labels": labels.counts, "label_files": described}
    files.write_json(folder / files.MANIFEST, manifest)
    return manifest


def hash_columns(path: Path) -> dict[str, str]:
    """Return the sha256 of the encoded values of each column of a Parquet file, which predictions are made from."""
    footer = pq.read_metadata(path)
    digests = {name: hashlib.sha256() for name in footer.schema.names}
    with path.open("rb") as file:
        for group in map(footer.row_group, range(footer.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                offsets = (chunk.dictionary_page_offset, chunk.data_page_offset)
                file.seek(min(offset for offset in offsets if offset is not None))
                digests[chunk.path_in_schema].update(file.read(chunk.total_compressed_size))
    return {name: digest.hexdigest() for name, digest in digests.items()}


def write_month(
    conformer: Conformer, month: readers.Month, folder: Path, labels: Labels | None = None
) -> dict[str, int]:
    """Write the rows and the quarantine of a month; a thread writes a row group while the next one is read and cast."""
    columns, rows_out, quarantined = conformer.schema.columns, 0, 0
    categories = [name for key, name in conformer.names.items() if columns[key].type == "category"]
    read = read_ahead(month.batches(list(conformer.names.values()), categories))
    batches = ((labels.fill(trips) if labels else trips, bad) for trips, bad in map(conformer.conform, read))
    options, group_rows = choose_parquet_options(conformer.arrow_schema), count_group_rows(conformer.arrow_schema)
    with (
        # Without Arrow's own schema, categories are read as text, by pandas for example.
        pq.ParquetWriter(folder / PREPARED_FILE, conformer.arrow_schema, store_schema=False, **options) as trips_writer,
        pq.ParquetWriter(folder / QUARANTINE_FILE, QUARANTINE) as quarantine_writer,
        ThreadPoolExecutor(1) as writing,
    ):
        written = writing.submit(int)  # nothing yet
        for trips, unreadable in gather_row_groups(batches, group_rows):
            written.result()
            written = writing.submit(trips_writer.write_table, trips, row_group_size=group_rows)
            quarantine_writer.write_table(unreadable)
            rows_out, quarantined = rows_out + len(trips), quarantined + len(unreadable)
        written.result()
    if month.rows != rows_out + quarantined:
        what = f"{month.rows:,} rows were published, {rows_out:,} prepared and {quarantined:,} quarantined."
        raise TiplineError(what, str(month.path), "This is a defect of tipline; please report it with the file.")
    return {"rows_in": month.rows, "rows_out": rows_out, "quarantined": quarantined}


def read_ahead(batches: Iterator[readers.Batch]) -> Iterator[readers.Batch]:
    with ThreadPoolExecutor(1) as reading:
        following = reading.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = reading.submit(next, batches, None)
            yield batch


def count_group_rows(schema: pa.Schema) -> int:
    """Return the rows of a row group, from the schema alone: months are the same however they were published."""
    widths = [TEXT_BYTES if field.type == pa.string() else field.type.bit_width / 8 for field in schema]
    batches = max(1, int(ROW_GROUP_BYTES / sum(widths)) // readers.BATCH_ROWS)
    return min(ROW_GROUP_ROWS, batches * readers.BATCH_ROWS)


def gather_row_groups(
    batches: Iterable[tuple[pa.RecordBatch, pa.RecordBatch]], rows: int
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Gather batches into row groups of at least `rows` rows, each with the quarantined rows among them."""
    good: list[pa.RecordBatch] = []
    bad: list[pa.RecordBatch] = []
    for trips, unreadable in itertools.chain(batches, [(None, None)]):
        if trips is not None:
            good.append(trips)
            bad.append(unreadable)
        is_full = sum(map(len, good)) >= rows or sum(batch.nbytes for batch in bad) >= QUARANTINE_BYTES
        if is_full or (trips is None and sum(map(len, good + bad))):
            # The dictionary of a category may have grown between batches.
            yield pa.Table.from_batches(good).unify_dictionaries(), pa.Table.from_batches(bad)
            good, bad = [], []


def choose_parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Choose how to write: row numbers and times as differences, everything else with a dictionary."""
    delta = [field.name for field in schema if field.name == ROW.name or pa.types.is_timestamp(field.type)]
    return {
        # LZ4 unpacks twice as fast as Snappy, and a prepared month is read again after each promotion.
        "compression": "lz4",
        "use_dictionary": [name for name in schema.names if name not in delta],
        "column_encoding": dict.fromkeys(delta, "DELTA_BINARY_PACKED"),
        # Those of categories would take as long as their values.
        "write_statistics": [field.name for field in schema if not pa.types.is_dictionary(field.type)],
    }
