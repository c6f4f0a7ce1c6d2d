"""Draw random samples that nest: the rows with the smallest hashes of month, row number and seed."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tipline.arrays import Values, mix_bits
from tipline.config import Settings
from tipline.errors import TiplineError
from tipline.ingest.columns import add_missing_columns, encode_categories
from tipline.ingest.target import parse_target
from tipline.paths import ROLES, Paths

KEY = "sample_key"  # column of a sample: the hash of each row
MONTH = "sample_month"  # column of a pool: which of its months each row is from, as a code
AVAILABLE = b"tipline.rows"  # in the metadata of a sample: the number of rows of its month


def compute_keys(rows: Values, month: str, seed: int) -> Values:
    """Return uniform 64-bit hashes of row numbers, different ones for each row, month and seed.

    SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators") of the row number, a
    bijection, started at a digest of month and seed.
    """
    start = int.from_bytes(hashlib.sha256(f"{month} {seed}".encode()).digest()[:8], "little")
    return mix_bits(rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start))


def sample_month(file: pq.ParquetFile, month: str, rows: int, seed: int) -> pa.Table:
    """Return the rows of a prepared month with the smallest keys, ordered by key: its first n are the sample of size n.

    Reads one row group at a time. The schema's metadata have the number of rows of the month.
    """
    sample = file.schema_arrow.append(pa.field(KEY, pa.uint64())).empty_table()
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        table = table.append_column(KEY, pa.array(compute_keys(table["row"].to_numpy(), month, seed)))
        # Most rows are dropped before the rest is copied.
        sample = take_smallest(pa.concat_tables([sample, take_smallest(table, rows)]), rows)
    return sample.replace_schema_metadata({AVAILABLE: str(file.metadata.num_rows)})


def take_smallest(table: pa.Table, count: int) -> pa.Table:
    return table.take(np.argsort(table[KEY].to_numpy())[:count])


def remove_unlisted_samples(settings: Settings, paths: Paths) -> None:
    """Remove samples of months that lost their role, which DVC keeps and a clone does not have, and temporary files."""
    for role in ROLES:
        listed = {paths.sample(role, month) for month in settings.sample.get_months(role)}
        for path in paths.sample(role, "").parent.glob("*"):
            if path not in listed and path.suffix in {".parquet", ".tmp"}:
                path.unlink()


def list_samples(settings: Settings, paths: Paths, role: str) -> list[Path]:
    """Return the samples of the months of a role, in order of time; raise TiplineError if one is missing."""
    samples = [paths.sample(role, month) for month in settings.sample.get_months(role)]
    for path in samples:
        if not path.is_file():
            what = f"{path.stem} has the role {role}, but its sample is missing."
            raise TiplineError(what, str(path), f"Run: dvc repro sample@{path.stem}")
    return samples


def read_pool(samples: Sequence[Path]) -> pa.Table:
    """Read samples, named by month, as one that nests, ordered by key; `sample_month` is the position of the month."""
    tables = [pq.read_table(path) for path in sorted(samples)]
    for code, table in enumerate(tables):
        tables[code] = table.append_column(MONTH, pa.array(np.full(len(table), code, np.int32)))
    pool = encode_categories(pa.concat_tables(tables, promote_options="default"))
    return pool.take(np.argsort(pool[KEY].to_numpy(), kind="stable"))


def read_role(settings: Settings, paths: Paths, role: str, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """Read the rows of a role whose target is known, as one batch; columns of `types` that it lacks are null."""
    pool, target = read_pool(list_samples(settings, paths, role)), settings.model.target
    pool = add_missing_columns(pool, types).combine_chunks()
    batches = pool.filter(parse_target(target).evaluate(pool).is_valid()).combine_chunks().to_batches()
    if not batches:
        what = f"No sampled row of the `{role}` months has a label: a column of {target!r} is missing in each."
        raise TiplineError(what, "params.yaml, sample.months", f"Give the role {role} to other months.")
    return batches[0]
