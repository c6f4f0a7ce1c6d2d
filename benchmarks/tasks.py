"""What `tipline score` costs beside the blocks themselves: planning, the scheduler's work for each task, publishing.

Usage: python benchmarks/tasks.py [tasks]

These run on the driver, one after the other: they say how many workers one driver can keep busy. The tasks do nothing
but return a marker as large as a real one. Months are of 14 blocks.

Then one worker scores a month of 14 million rows with each of some models, and a table says what 1.7 billion rows
would take on 1, 8 and 64 such workers: the seconds of the blocks shared among the workers, or the driver's own if these
are more, and the start of the run. It is arithmetic: no such cluster was measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bulk import MONTHS, Project

from tipline import cluster, files
from tipline.ingest import columns
from tipline.monitoring.counts import BANDS, Counts, Sums
from tipline.paths import month_name
from tipline.scoring import plan
from tipline.storage import open_storage

GROUPS, ROWS = 14, 1000
MODEL = "0" * 64
WORKERS, ALL_ROWS, BLOCK_ROWS = (1, 8, 64), 1_700_000_000, 2**20
ROWS_SCORED = 14_000_000
MODELS: dict[str, dict[str, Any]] = {
    "logistic regression": {"estimator": "logistic_regression"},
    "HistGradientBoosting, 100 trees of 31 leaves": {"estimator": "hist_gradient_boosting"},
    "LightGBM, 100 trees of 31 leaves": {"estimator": "lightgbm.LGBMClassifier"},
    "ExtraTrees, 100 trees, without kernels": {
        "estimator": "sklearn.ensemble.ExtraTreesClassifier",
        "params": {"max_depth": 8},
    },
}
START = 3.0  # seconds until the first block: imports, the cluster, the model
SPEC = {"inputs": [], "target": "", "target_columns": {}, "baseline": {"by": []}}


def write_prepared(locations: plan.Locations, month: str) -> None:
    """Write a prepared month of 14 small row groups."""
    folder = Path(locations.trips.address(month_name(month)))
    folder.mkdir(parents=True)
    table = pa.table({"row": pa.array(np.arange(GROUPS * ROWS))})
    pq.write_table(table, folder / columns.PREPARED_FILE, row_group_size=ROWS)
    digests = {"trips": files.describe_file(folder / columns.PREPARED_FILE), "columns": {"row": month}}
    manifest = {"month": month, **digests}
    files.write_json(folder / files.MANIFEST, manifest)


def make_marker(block: plan.Block) -> dict[str, Any]:
    """Make a marker with rows in every band, as those of a real block."""
    days = {str(day): dict.fromkeys(("cash", "credit"), Sums(1, 1, 0.1, 0.1)) for day in range(1, 32)}
    counts = Counts(ROWS, 0.5, np.ones((BANDS, 3), np.int64), days)
    part = {"name": block.name, "rows": block.rows, "bytes": 4, "sha256": MODEL, "counts": counts.to_json()}
    return {"key": block.key, "counted": block.counted, "seconds": dict.fromkeys(plan.PHASES, 0.1), **part}


def measure(locations: plan.Locations, months: list[str]) -> dict[str, float]:
    """Return the seconds that a month takes to plan, a task to run, a month to publish."""
    start = time.perf_counter()
    planned, _ = plan.plan_months(locations, months, MODEL, SPEC)
    planning = time.perf_counter() - start
    blocks = [block for month in planned for block in month.blocks]
    with cluster.connect_client(2) as client:
        list(cluster.run_tasks(client, make_marker, blocks[:2]))
        start = time.perf_counter()
        results = list(cluster.run_tasks(client, make_marker, blocks))
        running = time.perf_counter() - start
    for block, marker in results:
        locations.staged.write(block.part, b"part")
        next(month for month in planned if month.month == block.month).done[block] = marker
    start = time.perf_counter()
    for month in planned:
        plan.publish_month(month, {})
    publishing = time.perf_counter() - start
    return {"plan": planning / len(planned), "task": running / len(blocks), "publish": publishing / len(planned)}


def measure_model(made: Project, train: dict[str, Any]) -> tuple[str, float]:
    """Return the form of a model and the seconds of a worker per million rows; the rows are in the page cache."""
    project = replace(made, train={"params": {}} | train)
    project.settings(cluster={"n_workers": 1})
    project.fit()
    project.forget()
    project.tipline("score")
    return project.manifests()[0]["form"], sum(project.phases().values()) / made.rows * 1_000_000


def format_line(name: str, form: str, seconds: float, busy: float) -> str:
    """Return a line of the table; `busy` is what the driver does for each block."""
    cells = list[str]()
    for workers in WORKERS:
        total = START + max(seconds * ALL_ROWS / 1_000_000 / workers, busy * ALL_ROWS / BLOCK_ROWS)
        cells.append(f"{total / 60:.1f}")
    return f"| {name} ({form}) | {seconds:.3f} | {' | '.join(cells)} |"


def main() -> None:
    count = -(-int(sys.argv[1] if len(sys.argv) > 1 else "1700") // GROUPS)
    months = [f"{2009 + index // 12}-{index % 12 + 1:02d}" for index in range(count)]
    with tempfile.TemporaryDirectory() as root:
        locations = plan.Locations(*(open_storage(f"{root}/{name}") for name in ("trips", "predictions", "staged")))
        for month in months:
            write_prepared(locations, month)
        seconds = measure(locations, months)
    print(json.dumps({name: f"{value * 1000:.2f} ms" for name, value in seconds.items()}))
    busy = seconds["task"] + (seconds["plan"] + seconds["publish"]) / GROUPS
    print(f"the driver is busy for {busy * 1000:.2f} ms per block of a million rows: {1 / busy:.0f} blocks/s")
    heads = " | ".join(f"{workers} worker{'s' * (workers > 1)}, min" for workers in WORKERS)
    print(f"\n| model (form) | worker, s per million rows | {heads} |\n| --- |{' ---: |' * (len(WORKERS) + 1)}")
    with tempfile.TemporaryDirectory() as root:
        made = Project(Path(root, "project"), (MONTHS[0],), ROWS_SCORED, MODELS["logistic regression"])
        made.make()
        made.tipline("score")
        for name, train in MODELS.items():
            print(format_line(name, *measure_model(made, train), busy), flush=True)


if __name__ == "__main__":
    main()
