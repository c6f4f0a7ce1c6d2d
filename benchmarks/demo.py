"""How fast the demo simulates a month, beside pyarrow writing the same tables with nothing in between.

Usage: python benchmarks/demo.py [rows]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from tipline.ingest import simulate

MONTHS = ("2009-01", "2024-01")


def peak() -> float:
    """Most memory that this process ever held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def time_month(path: Path, month: str, rows: int) -> float:
    """Return the seconds that the month takes."""
    start = time.perf_counter()
    simulate.simulate_month(path, month, rows, seed=1)
    return time.perf_counter() - start


def write_again(path: Path, copy: Path) -> float:
    """Return the seconds that writing takes; reading the finished tables is left out."""
    file, seconds = pq.ParquetFile(path), 0.0
    with pq.ParquetWriter(copy, file.schema_arrow) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            start = time.perf_counter()
            writer.write_table(table)
            seconds += time.perf_counter() - start
    return seconds


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000_000
    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder, "month.parquet"), Path(folder, "copy.parquet")
        time_month(path, MONTHS[0], 1000)
        before = peak()
        simulated = {}
        for month in MONTHS:
            simulated[month] = time_month(path.with_stem(month), month, rows)
        # Memory is read before the baseline adds its own.
        print(f"{rows:,} rows; peak memory {peak():.0f} MiB, {before:.0f} MiB of it before the first month")
        for month, seconds in simulated.items():
            baseline = write_again(path.with_stem(month), copy)
            print(
                f"{month}: {rows / seconds / 1e6:.2f} million rows/s; writing alone {rows / baseline / 1e6:.2f}; "
                f"ratio {seconds / baseline:.2f}"
            )


if __name__ == "__main__":
    main()
