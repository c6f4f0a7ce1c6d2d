"""What `tipline score` costs beside the blocks themselves: planning, the scheduler's work for each task, publishing.

Usage: python benchmarks/tasks.py [tasks] [folder]

These run on the driver, one after the other: they say how many workers one driver can keep busy. The tasks do nothing
but return a marker as large as a real one. Months are of 14 blocks.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tipline import cluster, files
from tipline.ingest import columns
from tipline.monitoring.counts import BANDS, Counts, Sums
from tipline.paths import month_name
from tipline.scoring import plan, publish
from tipline.storage import LocalStorage

GROUPS, ROWS = 14, 1000
MODEL = "0" * 64


def prepared(places: plan.Locations, month: str) -> None:
    """Write a prepared month of 14 small row groups."""
    folder = Path(locations.trips.address(month_name(month)))
    folder.mkdir(parents=True)
    table = pa.table({"row": pa.array(np.arange(GROUPS * ROWS))})
    pq.write_table(table, folder / columns.PREPARED_FILE, row_group_size=ROWS)
    files.write_json(
        folder / files.MANIFEST, {"month": month, "trips": files.describe_file(folder / columns.PREPARED_FILE)}
    )


def made(block: plan.Block) -> dict[str, Any]:
    """A marker, with rows in every band as those of a real block."""
    days = {str(day): dict.fromkeys(("cash", "credit"), Sums(1, 1, 0.1, 0.1)) for day in range(1, 32)}
    counts = Counts(ROWS, 0.5, np.ones((BANDS, 3), np.int64), days)
    part = {"name": block.name, "rows": block.rows, "bytes": 4, "sha256": MODEL, "counts": counts.to_json()}
    return {"key": block.key, "state": block.state, "seconds": dict.fromkeys(plan.PHASES, 0.1), **part} | {
        "peak_bytes": 1
    }


def measure(places: plan.Locations, months: list[str]) -> dict[str, float]:
    """Seconds a month to plan, a task to run, a month to publish."""
    start = time.perf_counter()
    planned, _ = plan.plan_months(places, months, MODEL)
    plan = time.perf_counter() - start
    blocks = [block for month in planned for block in month.blocks]
    with cluster.connect_client(2) as client:
        list(cluster.run_tasks(client, made, blocks[:2]))
        start = time.perf_counter()
        results = list(cluster.run_tasks(client, made, blocks))
        tasks = time.perf_counter() - start
    for block, told in results:
        locations.staged.write(block.part, b"part")
        next(month for month in planned if month.month == block.month).done[block.name] = told
    start = time.perf_counter()
    for month in planned:
        publish.publish_month(month, {})
    publish = time.perf_counter() - start
    return {"plan": plan / len(planned), "task": tasks / len(blocks), "publish": publish / len(planned)}


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    count = -(-int(given.get(0, "1700")) // GROUPS)
    months = [f"{2009 + index // 12}-{index % 12 + 1:02d}" for index in range(count)]
    with tempfile.TemporaryDirectory(dir=given.get(1)) as name:
        root = Path(name)
        places = plan.Locations(
            LocalStorage(root / "trips"), LocalStorage(root / "predictions"), LocalStorage(root / "staged")
        )
        for month in months:
            prepared(places, month)
        told = measure(places, months)
    print(json.dumps({name: f"{seconds * 1000:.2f} ms" for name, seconds in told.items()}))
    busy = told["task"] + (told["plan"] + told["publish"]) / GROUPS
    print(f"the driver is busy for {busy * 1000:.2f} ms a block of a million rows: {1e-6 / busy * 1e6:.0f} blocks/s")


if __name__ == "__main__":
    main()
