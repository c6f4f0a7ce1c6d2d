"""Measure `prepare` on a month of 2009 in one row group, with times as text, beside Arrow reading and writing alone.

Usage: python benchmarks/prepare.py [rows] [rounds] [folder]

Reading and writing alone takes the same columns of the same files with the same options, on one core. Each figure is
the median of some rounds, each in its own process; the cases take turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tipline.ingest import columns, prepare, readers, simulate
from tipline.ingest.schema import load_schema

MONTH = "2009-01"
CASES = {"prepare, one core": 1, "prepare, two cores": 2, "read and write alone, one core": 1}


def read_month(path: Path) -> None:
    """Read a month as `prepare` does."""
    month, schema = readers.ParquetMonth(path), load_schema()
    names = schema.match(month.schema, MONTH).names
    categories = [name for key, name in names.items() if schema.columns[key].type == "category"]
    for _ in month.batches(list(names.values()), categories):
        pass


def write_again(prepared: Path, copy: Path) -> float:
    """Return the seconds that writing the prepared rows takes, without reading them."""
    file, seconds = pq.ParquetFile(prepared), 0.0
    with pq.ParquetWriter(copy, file.schema_arrow, **prepare.choose_parquet_options(file.schema_arrow)) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group).unify_dictionaries()
            start = time.perf_counter()
            writer.write_table(table, row_group_size=prepare.ROW_GROUP_ROWS)
            seconds += time.perf_counter() - start
    return seconds


def measure_case(case: str, folder: Path) -> dict[str, float]:
    """Run a case in this process; return seconds and the most memory held, in MiB."""
    cores = CASES[case]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    pa.set_cpu_count(cores)
    path, target = folder / "month.parquet", folder / f"prepared on {cores}"
    start = time.perf_counter()
    if case.startswith("prepare"):
        target.mkdir(exist_ok=True)
        prepare.prepare_month(path, target, load_schema(), MONTH)
        seconds = time.perf_counter() - start
    else:
        read_month(path)
        seconds = time.perf_counter() - start
        seconds += write_again(target / columns.PREPARED_FILE, folder / "copy.parquet")
    # Not ru_maxrss, which counts what the parent held.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return {"seconds": seconds, "MiB": int(status.partition("VmHWM:")[2].split()[0]) / 2**10}


def run_case(case: str, folder: Path) -> dict[str, float]:
    """Run a case in a new process."""
    command = [sys.executable, __file__, "--case", case, str(folder)]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def main() -> None:
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure_case(sys.argv[2], Path(sys.argv[3]))))
        return
    arguments = dict(enumerate(sys.argv[1:]))
    rows, rounds = int(arguments.get(0, "14000000")), int(arguments.get(1, "3"))
    with tempfile.TemporaryDirectory(dir=arguments.get(2)) as name:
        folder = Path(name)
        simulate.simulate_month(folder / "groups.parquet", MONTH, rows, seed=1)
        pq.write_table(pq.read_table(folder / "groups.parquet"), folder / "month.parquet", row_group_size=rows)
        runs = [{case: run_case(case, folder) for case in CASES} for _ in range(rounds)]
    print(f"{rows:,} rows of 2009 in one row group, medians of {rounds} rounds")
    medians = {case: statistics.median(figures[case]["seconds"] for figures in runs) for case in CASES}
    for case, seconds in medians.items():
        memory = max(figures[case]["MiB"] for figures in runs)
        print(f"  {case:32} {seconds:6.2f} s {rows / seconds / 1e6:6.2f} million rows/s {memory:6.0f} MiB peak")
    one, two, plain = medians.values()
    print(f"one core to reading and writing alone: {one / plain:.2f}; two cores to one: {one / two:.2f} times as fast")


if __name__ == "__main__":
    main()
