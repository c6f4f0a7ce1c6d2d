"""Measure `prepare` of a month without labels, and with labels in files of their own, in random order.

Usage: python benchmarks/labels.py [trips] [folder]

With 14000000 trips, the size of a month of yellow taxis in 2009, it writes the table in docs/monthly.md.

There are 1.1 labels per trip, in two pieces, joined by a text of 20 digits; a tenth are duplicates. Each case runs in
its own process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tipline.ingest import prepare, simulate
from tipline.ingest.labels import LabelFiles
from tipline.ingest.readers import LABELS
from tipline.ingest.schema import Column, Schema, load_schema

MONTH = "2009-01"
PIECES = ("first", "second")
FULL = 14_000_000
PAGE = Path(__file__).parent.parent / "docs" / "monthly.md"
MARKERS = ("<!-- labels.py: begin -->", "<!-- labels.py: end -->")


def create_schema() -> Schema:
    """Return tipline's own schema with an identifier, and a tip that a trip may lack."""
    schema = load_schema()
    trip_id = Column(type="identifier", meaning="identifier", names={MONTH: ("trip_id",)})
    tip = schema.columns["tip_amount"].model_copy(update={"required": False})
    return schema.model_copy(update={"columns": schema.columns | {"trip_id": trip_id, "tip_amount": tip}})


def write_month(folder: Path, trips: int) -> None:
    """Write a month without tips, and its labels below it."""
    path = folder / "trips.parquet"
    simulate.simulate_month(path, MONTH, trips, seed=1)
    table, random = pq.read_table(path), np.random.default_rng(1)
    # An odd factor permutes the numbers of 64 bits.
    keys = np.arange(trips, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    texts = pc.utf8_lpad(pa.array(keys).cast(pa.string()), 20, "0")
    pq.write_table(table.drop_columns("Tip_Amt").append_column("trip_id", texts), path)
    order = np.concatenate([random.permutation(trips), random.integers(0, trips, trips // 10)])
    (folder / LABELS).mkdir()
    for name, rows in zip(PIECES, np.array_split(order, len(PIECES)), strict=True):
        labels = {"trip_id": texts.take(pa.array(rows)), "tip_amount": table["Tip_Amt"].take(pa.array(rows))}
        pq.write_table(pa.table(labels), folder / LABELS / f"{name}.parquet")


def measure_case(folder: Path, *, with_labels: bool) -> dict[str, Any]:
    """Prepare the month in this process; return CPU seconds, the most memory held in MiB, and what became of labels."""
    labels = LabelFiles(folder / LABELS, ("trip_id",), ("tip_amount",)) if with_labels else None
    with tempfile.TemporaryDirectory(dir=folder.parent) as target:
        start = time.process_time()
        manifest = prepare.prepare_month(folder, Path(target), create_schema(), MONTH, labels)
        seconds = time.process_time() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    return {"seconds": seconds, "MiB": peak, "labels": manifest.get("labels", {})}


def main() -> None:
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure_case(Path(sys.argv[2]), with_labels=sys.argv[3] == "with")))
        return
    arguments = dict(enumerate(sys.argv[1:]))
    trips = int(arguments.get(0, "1000000"))
    with tempfile.TemporaryDirectory(dir=arguments.get(1)) as name:
        folder = Path(name, "month")
        folder.mkdir()
        subprocess.run([sys.executable, __file__, "--write", str(folder), str(trips)], check=True)
        table = ["| `prepare` of a month | CPU seconds | most memory, MiB |", "| --- | ---: | ---: |"]
        for case in ("without", "with"):
            command = [sys.executable, __file__, "--case", str(folder), case]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            table.append(f"| {trips:,} trips {case} labels | {found['seconds']:.1f} | {found['MiB']:,.0f} |")
    print("\n".join([*table, ", ".join(f"{count:,} {name}" for name, count in found["labels"].items())]))
    if trips == FULL:
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKERS[0])
        block = "\n".join([MARKERS[0], "", *table, "", MARKERS[1]])
        PAGE.write_text(before + block + rest.partition(MARKERS[1])[2], encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_month(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
