"""Measure how fast months are simulated, beside pyarrow writing the same tables.

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


def write_again(path: Path) -> float:
    """Return the seconds that writing a file again takes, without reading it."""
    file, seconds = pq.ParquetFile(path), 0.0
    with pq.ParquetWriter(path.with_suffix(".copy"), file.schema_arrow) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            start = time.perf_counter()
            writer.write_table(table)
            seconds += time.perf_counter() - start
    return seconds


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000_000
    unit = 1 if sys.platform == "darwin" else 1024
    with tempfile.TemporaryDirectory() as folder:
        for month in ("2009-01", "2024-01"):
            path = Path(folder, f"{month}.parquet")
            start = time.perf_counter()
            simulate.simulate_month(path, month, rows, seed=1)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
            speeds = f"{rows / seconds / 1e6:.2f} million rows/s; writing alone {rows / write_again(path) / 1e6:.2f}"
            print(f"{month}: {speeds}; most memory so far {peak:.0f} MiB")


if __name__ == "__main__":
    main()
