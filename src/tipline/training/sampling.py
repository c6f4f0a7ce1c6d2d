"""Exact random samples that nest: the rows with the smallest hash of month, row number and seed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tipline.errors import TiplineError
from tipline.ingest.columns import add_missing_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tipline.config import Settings
    from tipline.paths import Paths

KEY = "sample_key"
# In a sample's schema: how many rows the month has.
OF_ROWS = b"tipline.rows"
# The column of each row's place among the months.
MONTH = "month"

Keys = np.ndarray[tuple[int], np.dtype[np.uint64]]
Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


def keys(rows: Numbers, month: str, seed: int) -> Keys:
    """Uniform 64-bit hashes of row numbers, other ones for each month and seed.

    SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators") of the row number,
    started at a digest of month and seed.
    """
    start = int.from_bytes(hashlib.sha256(f"{month} {seed}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def sample_month(trips: Path, month: str, rows: int, seed: int) -> pa.Table:
    """The `rows` rows of a prepared month with the smallest keys, in the order of their keys, ties by row number.

    The first n of them are the sample of size n, so a larger sample contains the smaller. Reads a row group at a
    time and holds at most three samples. A month with fewer rows gives them all.

    Returns
    -------
    pa.Table
        The prepared columns and `sample_key` (uint64); the month's rows stand in the schema's metadata.
    """
    kept: pa.Table | None = None
    with pq.ParquetFile(trips) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            of_group = keys(table["row"].to_numpy(), month, seed)
            # The smallest of all are among the smallest of each group: most rows go before they are copied.
            places = smallest(of_group, table["row"].to_numpy(), rows)
            chosen = table.take(places).append_column(KEY, pa.array(of_group[places]))
            kept = chosen if kept is None else first(pa.concat_tables([kept, chosen]), rows)
        empty = file.schema_arrow.append(pa.field(KEY, pa.uint64())).empty_table()
        of_rows = {OF_ROWS: str(file.metadata.num_rows).encode()}
    return (empty if kept is None else first(kept, rows)).replace_schema_metadata(of_rows)


def smallest(hashes: Keys, rows: Numbers, count: int) -> Numbers:
    """Places of the `count` smallest hashes, ties by row number."""
    places = np.arange(len(hashes))
    if len(hashes) > count:
        places = np.flatnonzero(hashes <= np.partition(hashes, count - 1)[count - 1])
    return places[np.lexsort((rows[places], hashes[places]))][:count]


def first(table: pa.Table, count: int) -> pa.Table:
    """The `count` rows of a table with the smallest keys, in their order."""
    return table.take(smallest(table[KEY].to_numpy(), table["row"].to_numpy(), count))


def read_pool(samples: Sequence[Path]) -> pa.Table:
    """The samples of several months, named by month, as one that nests: ordered by key, ties by month."""
    tables = [pq.read_table(path) for path in sorted(samples)]
    pool = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    return pool.take(np.argsort(pool[KEY].to_numpy(), kind="stable"))


def count_available(samples: Sequence[Path]) -> int:
    """How many rows the months of these samples have; of a sample that does not say so, its own rows."""
    files = [pq.read_metadata(path) for path in samples]
    return sum(int((file.metadata or {}).get(OF_ROWS, file.num_rows)) for file in files)


def list_samples(settings: Settings, paths: Paths, role: str) -> list[Path]:
    """The samples of a role's months, in order of time.

    Raises
    ------
    TiplineError
        Where one is missing.
    """
    found = [paths.sample(role, month) for month in settings.sample.get_months(role)]
    for path in found:
        if not path.is_file():
            raise TiplineError(f"There is no sample of {path.stem}.", str(path), f"Run: dvc repro sample@{path.stem}")
    return found


def read_role(settings: Settings, paths: Paths, role: str, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """The pool of a role's months, the rows whose target is known; columns of `types` that no month has are null.

    Raises
    ------
    TiplineError
        Where there is no such row, or a sample is missing.
    """
    return known(settings, role, add_missing_columns(read_pool(list_samples(settings, paths, role)), types))


def read_role_by_month(settings: Settings, paths: Paths, role: str, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """`of_role` in order of the months, with each row's place among them in the column `month`."""
    tables = [add_missing_columns(pq.read_table(path), types) for path in list_samples(settings, paths, role)]
    placed = [
        table.append_column(MONTH, pa.array(np.full(len(table), at, np.int32))) for at, table in enumerate(tables)
    ]
    return known(settings, role, pa.concat_tables(placed, promote_options="default").unify_dictionaries())


def known(settings: Settings, role: str, trips: pa.Table) -> pa.RecordBatch:
    """The rows whose target is known, as one batch."""
    batches = labelled(trips, settings.model.target).combine_chunks().to_batches()
    if not batches:
        what = f"None of the sampled rows has a known {settings.model.target}."
        todo = f"Give the role {role} to other months in params.yaml."
        raise TiplineError(what, ", ".join(settings.sample.get_months(role)), todo)
    return batches[0]


def labelled(trips: pa.Table, target: str) -> pa.Table:
    """The rows whose target is known."""
    return trips.filter(trips[target].is_valid())
