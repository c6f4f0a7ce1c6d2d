"""prepare@month: a published month brought to the one schema, in bounded memory, with no row lost."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import contract as contracts
from tipline import files, raw
from tipline.conform import QUARANTINE, Conformer, quarantine
from tipline.errors import TiplineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tipline.contract import Contract
    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)

TRIPS = "trips.parquet"
QUARANTINED = "_quarantine.parquet"
ROW_GROUP_ROWS = 2**20
RAGGED = "number of fields is not the header's"


def run(settings: Settings, layout: Layout, month: str) -> None:
    """Prepare one month into data/trips/."""
    del settings
    started = time.perf_counter()
    with files.replacing_folder(layout.trips(month), layout.staging / "trips") as folder:
        receipt = prepare(published(layout.raw(month), month), folder, contracts.load(), month)
    seconds = time.perf_counter() - started
    log.info("%s: %s, in %.1f s", month, summary(receipt), seconds)


def published(folder: Path, month: str) -> Path:
    """The one file of a downloaded month."""
    found = [path for path in folder.glob("*") if path.is_file()]
    if len(found) != 1:
        what = f"Expected one published file, found {len(found)}."
        raise TiplineError(what, str(folder), f"Run: dvc repro -f download@{month}")
    return found[0]


def prepare(path: Path, folder: Path, contract: Contract, month: str) -> dict[str, Any]:
    """Write trips, quarantine and receipt of a published file into an empty folder; return the receipt.

    Raises
    ------
    TiplineError
        Where the file cannot be read, lacks a required column, or a row would be lost.
    """
    where = f"{path.name}, month {month}"
    published_month = raw.open_month(path, where)
    conformer = Conformer(contract, contract.match(published_month.names, where))
    try:
        rows = write(conformer, published_month, folder)
    except pa.ArrowException as error:
        raise raw.damaged(error, where) from error
    except OSError as error:
        # Arrow raises this for a damaged page, too; only the system's own errors carry a number.
        if error.errno is None:
            raise raw.damaged(error, where) from error
        raise
    receipt = {
        "month": month,
        **rows,
        "quarantined_by_reason": dict(sorted(conformer.quarantined.items())),
        "filled": dict(sorted(conformer.filled.items())),
        "out_of_range": {name: n for name, n in sorted(conformer.out_of_range.items()) if n},
        "new_spellings": dict(sorted(conformer.new_spellings.items())),
        "unknown_columns": contract.unknown(published_month.names),
        "columns": conformer.found,
        "published": {"bytes": path.stat().st_size, "sha256": files.sha256(path)},
        "trips": {"bytes": (folder / TRIPS).stat().st_size, "sha256": files.sha256(folder / TRIPS)},
    }
    files.write_json(folder / files.RECEIPT, receipt)
    return receipt


def write(conformer: Conformer, month: raw.ParquetMonth | raw.CsvMonth, folder: Path) -> dict[str, int]:
    """Stream the month into trips.parquet and _quarantine.parquet; return the counts of rows.

    Raises
    ------
    TiplineError
        Where rows in are not rows out and rows in quarantine.
    """
    out = apart = 0
    with (
        pq.ParquetWriter(folder / TRIPS, conformer.schema, **parquet_options(conformer.schema)) as trips,
        pq.ParquetWriter(folder / QUARANTINED, QUARANTINE) as apart_writer,
    ):
        for group, unreadable in grouped(conformed(conformer, month)):
            trips.write_table(group, row_group_size=ROW_GROUP_ROWS)
            apart_writer.write_table(unreadable)
            out, apart = out + len(group), apart + len(unreadable)
    if month.rows != out + apart:
        what = f"{month.rows:,} rows were published, {out:,} prepared and {apart:,} set apart: some are lost."
        raise TiplineError(what, str(month.path), "This is a defect of tipline; please report it with the file.")
    return {"rows_in": month.rows, "rows_out": out, "quarantined": apart}


def conformed(
    conformer: Conformer, month: raw.ParquetMonth | raw.CsvMonth
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Batches in the schema with their unreadable rows; last, the lines that could not even be split."""
    columns = conformer.contract.columns
    categories = [name for key, name in conformer.found.items() if columns[key].type == "category"]
    for rows, batch in month.batches(list(conformer.found.values()), categories):
        yield conformer.conform(rows, batch)
    lines = month.unreadable
    if lines:
        conformer.quarantined[RAGGED] += len(lines)
        none = pa.RecordBatch.from_pylist([], schema=conformer.schema)
        yield none, quarantine([row for row, _ in lines], [RAGGED] * len(lines), [text for _, text in lines])


def grouped(pairs: Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Gather batches into row groups of about ROW_GROUP_ROWS, each with the rows set apart on the way."""
    good: list[pa.RecordBatch] = []
    bad: list[pa.RecordBatch] = []
    for trips, unreadable in pairs:
        good.append(trips)
        bad.append(unreadable)
        if sum(map(len, good)) >= ROW_GROUP_ROWS:
            yield tables(good, bad)
            good, bad = [], []
    if sum(map(len, good)) + sum(map(len, bad)):
        yield tables(good, bad)


def tables(good: list[pa.RecordBatch], bad: list[pa.RecordBatch]) -> tuple[pa.Table, pa.Table]:
    """Batches as one table each; a category's dictionary may have grown between batches."""
    return pa.Table.from_batches(good).unify_dictionaries(), pa.Table.from_batches(bad)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Row numbers as differences take next to no space; all else repeats enough for a dictionary."""
    names = [name for name in schema.names if name != "row"]
    # LZ4 unpacks twice as fast as Snappy, and a prepared month is read again after each promotion.
    return {"compression": "lz4", "use_dictionary": names, "column_encoding": {"row": "DELTA_BINARY_PACKED"}}


def summary(receipt: dict[str, Any]) -> str:
    """One line about a prepared month."""
    odd = sum(receipt["out_of_range"].values())
    text = f"{receipt['rows_in']:,} rows, {receipt['quarantined']:,} set apart, {odd:,} odd values kept"
    if receipt["new_spellings"]:
        text += f", new spellings: {', '.join(receipt['new_spellings'])}"
    if receipt["unknown_columns"]:
        text += f", columns that the contract does not know: {', '.join(receipt['unknown_columns'])}"
    return text
