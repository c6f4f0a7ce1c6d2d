"""How fast `prepare` is on a month of 2009 in one row group, its times text, beside plain Arrow doing half of the work.

Usage: python benchmarks/prepare.py [rows] [rounds] [folder]

The baseline reads the same columns of the same file, and writes the same columns of the prepared file with the same
options, on one core, with nothing in between; what it needs of the prepared file is read outside its time. Each figure
is the median of some rounds, each in a process of its own, the cases taking turns.
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
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import files
from tipline.ingest import columns, prepare, readers, simulate
from tipline.ingest.conform import Conformer
from tipline.ingest.schema import load_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

MONTH = "2009-01"
CASES = {"prepare, one core": 1, "prepare, two cores": 2, "read and write alone, one core": 1, "parts, one core": 1}


def make(path: Path, rows: int) -> None:
    """Write a simulated month as one row group."""
    many = path.with_name("groups.parquet")
    simulate.simulate_month(many, MONTH, rows, seed=1)
    pq.write_table(pq.read_table(many), path, row_group_size=rows)
    many.unlink()


def batches(path: Path) -> Iterator[readers.Batch]:
    """Read the month as `prepare` does."""
    month, known = readers.ParquetMonth(path), load_schema()
    names = known.match(month.schema, MONTH).names
    return month.batches(
        list(names.values()), [name for key, name in names.items() if known.columns[key].type == "category"]
    )


def read(path: Path) -> float:
    """Return the seconds that reading takes."""
    start = time.perf_counter()
    for _ in batches(path):
        pass
    return time.perf_counter() - start


def write(prepared: Path, copy: Path) -> float:
    """Return the seconds that writing the prepared rows takes."""
    file, seconds = pq.ParquetFile(prepared), 0.0
    with pq.ParquetWriter(copy, file.schema_arrow, **prepare.parquet_options(file.schema_arrow)) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group).unify_dictionaries()
            start = time.perf_counter()
            writer.write_table(table, row_group_size=prepare.ROW_GROUP_ROWS)
            seconds += time.perf_counter() - start
    return seconds


def cast(path: Path) -> float:
    """Return the seconds that casting and counting take."""
    known = load_schema()
    conformer = Conformer(known, known.match(readers.ParquetMonth(path).schema, MONTH).names, MONTH)
    seconds = 0.0
    for batch in batches(path):
        start = time.perf_counter()
        conformer.conform(batch)
        seconds += time.perf_counter() - start
    return seconds


def digests(*paths: Path) -> float:
    """Return the seconds that the digests of files take."""
    start = time.perf_counter()
    for path in paths:
        files.describe_file(path)
    return time.perf_counter() - start


def peak() -> float:
    """Most memory that this process ever held, in MiB; `ru_maxrss` would count what its parent held, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def measure(case: str, folder: Path) -> dict[str, float]:
    """Run one case in this process."""
    cores = CASES[case]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    pa.set_cpu_count(cores)
    path, prepared = folder / "month.parquet", folder / "prepared" / columns.PREPARED_FILE
    if case.startswith("prepare"):
        target = folder / ("prepared" if cores == 1 else "two")
        target.mkdir(exist_ok=True)
        start, cpu = time.perf_counter(), time.process_time()
        prepare.prepare_month(path, target, load_schema(), MONTH)
        told = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    elif case.startswith("read and write"):
        told = {"read": read(path), "write": write(prepared, folder / "copy.parquet")}
        told["seconds"] = told["read"] + told["write"]
    else:
        told = {"cast": cast(path), "digests": digests(path, prepared)}
    return told | {"MiB": peak()}


def run(case: str, folder: Path) -> dict[str, float]:
    """Run one case in a process of its own."""
    command = [sys.executable, __file__, "--case", case, str(folder)]
    told: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return told


def report(rows: int, told: dict[str, dict[str, float]], best: dict[str, float]) -> None:
    """Print figures and ratios."""
    one, two, plain, parts = (told[case] for case in CASES)
    print(f"{rows:,} rows of 2009 in one row group, medians")
    for case, figures in told.items():
        if "seconds" in figures:
            speed = rows / figures["seconds"] / 1e6
            print(f"  {case:32} {figures['seconds']:6.2f} s {speed:6.2f} million rows/s {figures['MiB']:6.0f} MiB peak")
    print(f"one core to reading and writing alone: {one['seconds'] / plain['seconds']:.2f}", end=" ")
    print(f"({best['prepare, one core'] / best['read and write alone, one core']:.2f} of the quickest rounds)")
    print(f"two cores to one: {one['seconds'] / two['seconds']:.2f} times as fast")
    print(f"of one core: read {plain['read']:.2f} s, cast and count {parts['cast']:.2f} s,", end=" ")
    print(f"write {plain['write']:.2f} s, digests {parts['digests']:.2f} s")


def main() -> None:
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
        return
    given = dict(enumerate(sys.argv[1:]))
    rows, rounds = int(given.get(0, "14000000")), int(given.get(1, "3"))
    with tempfile.TemporaryDirectory(dir=given.get(2)) as name:
        folder = Path(name)
        make(folder / "month.parquet", rows)
        runs = [{case: run(case, folder) for case in CASES} for _ in range(rounds)]
    told = {
        case: {name: statistics.median(one[case][name] for one in runs) for name in runs[0][case]} for case in CASES
    }
    best = {case: min(one[case].get("seconds", 0.0) for one in runs) for case in CASES}
    report(rows, told, best)


if __name__ == "__main__":
    main()
