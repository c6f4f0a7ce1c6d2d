"""Months of 200 columns through prepare, score and monitor, from a local disk and from an S3 server.

Usage: PYTHONPATH=. python benchmarks/wide.py [--rows N] [--trees N] [--leaves N] [--folder F]

Two published months of N rows each: a time, 179 numbers and 20 categories with missing values; LightGBM on all of them.
Printed: minutes, the peak of a worker's memory (resident), by how much the local folder grew, and from these what 500
million rows would take on 16 cores. The S3 server is `juicefs gateway`, as in the tests.
"""

import argparse
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from bulk import FIT_ROWS, TOOLS, Project, Ran, run

from tests.servers import object_stores
from tipline import files

NUMBERS, CATEGORIES, MISSING = 179, 20, 0.05
MONTHS = ("2025-01", "2025-02", "2025-03")
SMALL_ROWS = 2_000
LARGE_ROWS, LARGE_CORES = 500_000_000, 16
CHUNK_ROWS = 2**17


def write_month(path: Path, month: str, rows: int, seed: int) -> None:
    """Write a published month in Parquet, in row groups of CHUNK_ROWS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = pa.array([f"value {number}" for number in range(12)])
    writer = None
    for first in range(0, rows, CHUNK_ROWS):
        random, count = np.random.default_rng((seed, first)), min(CHUNK_ROWS, rows - first)
        numbers = random.standard_normal((NUMBERS, count)).round(3)
        odds = numbers[:10].sum(axis=0) / 3 - 1
        numbers[random.random((NUMBERS, count)) < MISSING] = np.nan
        seconds = random.integers(0, 28 * 86_400, count)
        columns = {"at": pa.array(np.datetime64(month, "s") + seconds.astype("m8[s]"))}
        columns |= {f"number_{index}": pa.array(values, from_pandas=True) for index, values in enumerate(numbers)}
        for index in range(CATEGORIES):
            mask = random.random(count) < MISSING
            codes = pa.array(random.integers(0, len(words), count).astype(np.int32), mask=mask)
            columns[f"category_{index}"] = pa.DictionaryArray.from_arrays(codes, words)
        columns["answer"] = pa.array(random.random(count) < 1 / (1 + np.exp(-odds)))
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


class WideProject(Project):
    """A project with a drafted schema and all columns as features."""

    def start(self) -> None:
        super().start()
        for seed, month in enumerate(self.listed):
            rows = self.rows if month != MONTHS[-1] else SMALL_ROWS
            write_month(self.root / "published" / f"{month}.parquet", month, rows, seed)
        source = "published/{month}.parquet"
        params = yaml.safe_load((self.root / "params.yaml").read_text(encoding="utf-8"))
        subprocess.run(
            [TOOLS / "tipline", "check", "--write", "wide.yaml", source, MONTHS[0]], cwd=self.root, check=True
        )
        schema = yaml.safe_load((self.root / "wide.yaml").read_text(encoding="utf-8"))
        features = [name for name in schema["columns"] if name != "answer"]
        params |= {"source": source, "schema": "wide.yaml", "months": self.listed}
        params["model"] |= {"target": "answer", "columns": features, "hidden": [], "categories": {}}
        params["model"] |= {"features": None, "categorical": None}
        params["evaluate"] |= {"baseline": ["category_0"], "segments": []}
        files.write_text(self.root / "params.yaml", yaml.safe_dump(params))


def size_files(folder: Path) -> int:
    """Return the bytes of all files below a folder, those of the server left out."""
    files_below = (path for path in folder.rglob("*") if "server" not in path.relative_to(folder).parts)
    return sum(path.stat().st_size for path in files_below if path.is_file())


def measure_step(name: str, project: Project, rows: int, *command: str, env: Mapping[str, str] | None = None) -> Ran:
    """Run a command; print what it took, and by how much it made the project's folder larger."""
    before = size_files(project.root)
    ran = run([TOOLS / "tipline", *command], project.root, env)
    grown, nanoseconds = (size_files(project.root) - before) / 1e6, ran.seconds / rows * 1e9
    print(
        f"{name:12} {ran.seconds / 60:6.2f} min  {nanoseconds:8,.0f} ns a row  worker {ran.worker:6,.0f} MiB  "
        f"together {ran.together:6,.0f} MiB  on local disk {grown:8,.0f} MB more",
        flush=True,
    )
    return ran


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--trees", type=int, default=500)
    parser.add_argument("--leaves", type=int, default=127)
    parser.add_argument("--folder", type=Path, default=Path("wide"))
    options = parser.parse_args()
    params = {"n_estimators": options.trees, "num_leaves": options.leaves}
    train = {"estimator": "lightgbm.LGBMClassifier", "params": params}
    project = WideProject(options.folder.resolve(), MONTHS, options.rows, train)
    project.start()
    rows = 2 * options.rows + SMALL_ROWS
    for month in project.listed:
        project.tipline("download", month)
    for month in project.listed:
        count = options.rows if month != project.listed[-1] else SMALL_ROWS
        measure_step("prepare", project, count, "prepare", month)
    project.tipline("sample", MONTHS[0])
    measure_step("train", project, FIT_ROWS, "train")
    project.make_champion()
    scored = measure_step("score, local", project, rows, "score")
    measure_step("monitor", project, rows, "monitor")
    with object_stores(project.root / "servers") as stores:
        server = stores["s3"]
        server.start()
        server.make("wide").put(str(project.root / "data" / "trips"), "wide/trips", recursive=True)
        places = ("--trips", "s3://wide/trips", "--to", "s3://wide/predictions")
        measure_step("score, S3", project, rows, "score", *places, env=server.environment)
    minutes = scored.seconds * 2 / LARGE_CORES / rows * LARGE_ROWS / 60
    print(f"{LARGE_ROWS:,} rows on {LARGE_CORES} cores, at the speed of two cores here: {minutes:.0f} min")
    shutil.rmtree(project.root)


if __name__ == "__main__":
    main()
