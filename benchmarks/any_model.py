"""How fast tipline scores with any pipeline, beside `predict_proba` on ready DataFrames in as many processes.

Usage: python benchmarks/any_model.py PROJECT [--rounds N]

The project has been through its pipeline; its champion scores its months. Both sides leave out imports and the start of
processes: tipline's seconds are those from the first task to the last published month, predict_proba's are those of the
slowest process, whose frames were read before. Medians of the rounds, in turns, with the ratio of their speeds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

if TYPE_CHECKING:
    from threading import Barrier

WORKERS = 2
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def time_tipline(project: Path) -> float:
    """Return the seconds that `tipline score` takes once its workers have the model."""
    shutil.rmtree(project / "data" / "predictions", ignore_errors=True)
    command = [str(Path(sys.executable).with_name("tipline")), "score"]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    manifests = (project / "data" / "predictions").glob("*/_manifest.json")
    return max(float(json.loads(path.read_text())["made"]["seconds"]) for path in manifests)


def predict_blocks(project: Path, blocks: list[tuple[Path, int]], ready: Barrier, is_encoded: bool) -> float:  # noqa: FBT001
    """Read some row groups as DataFrames, wait for the other processes, return the seconds of predict_proba.

    With `is_encoded`, the rows are ready matrices: without the time of the preprocessing.
    """
    from tipline.ingest.columns import encode_categories, list_input_columns  # noqa: PLC0415
    from tipline.model import artifact  # noqa: PLC0415

    model = artifact.Model(artifact.read_artifact(project / "models" / "champion"), use_compiled=False)
    names, frames = list(list_input_columns(model.spec)), []
    for path, group in blocks:
        table = encode_categories(pq.ParquetFile(path).read_row_group(group, names)).combine_chunks()
        frames += [artifact.read_frame(batch, model.spec["inputs"]) for batch in table.to_batches()]
    steps = [model.estimator[:-1].transform, model.estimator[-1].predict_proba]
    encode, predict = steps if is_encoded else (lambda frame: frame, model.estimator.predict_proba)
    ranges = [(frame, start) for frame in frames for start in range(0, len(frame), artifact.BATCH_ROWS)]
    parts = [encode(frame.iloc[start : start + artifact.BATCH_ROWS]) for frame, start in ranges]
    ready.wait()
    started = time.perf_counter()
    for part in parts:
        predict(part)
    return time.perf_counter() - started


def time_predict_proba(project: Path, *, is_encoded: bool = False) -> float:
    """Return the seconds of the slowest of as many processes."""
    months = sorted((project / "data" / "trips").glob("month=*/trips.parquet"))
    blocks = [(path, group) for path in months for group in range(pq.ParquetFile(path).num_row_groups)]
    context = multiprocessing.get_context("spawn")
    os.environ |= THREADS  # the processes inherit it
    with context.Manager() as manager, context.Pool(WORKERS) as pool:
        ready: Any = manager.Barrier(WORKERS)
        parts = [(project, blocks[n::WORKERS], ready, is_encoded) for n in range(WORKERS)]
        return max(pool.starmap(predict_blocks, parts, chunksize=1))


def main() -> None:
    """Print the medians and the ratio of the speeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds = [(time_tipline(options.project), time_predict_proba(options.project)) for _ in range(options.rounds)]
    ours, plain = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    print(f"tipline {ours:.2f} s, predict_proba {plain:.2f} s: {plain / ours:.2f} of its speed")


if __name__ == "__main__":
    main()
