"""Samples are exact, the same on any partitioning, nested and uniform, and are in the folder of their role."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import workbench
from tipline.errors import UsageError
from tipline.ingest import prepare, simulate
from tipline.ingest.schema import load_schema
from tipline.paths import Paths
from tipline.training import sampling

MONTH = "2009-01"
ROWS = 20_000


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared month of 20,000 rows."""
    folder = tmp_path_factory.mktemp("trips")
    simulate.simulate_month(folder / "raw.parquet", MONTH, ROWS, 1)
    prepare.prepare_month(folder / "raw.parquet", folder, load_schema(), MONTH)
    return folder / "trips.parquet"


def mix(row: int, month: str, seed: int) -> int:
    """SplitMix64 of a row number in Python's own integers."""
    start = int.from_bytes(hashlib.sha256(f"{month} {seed}".encode()).digest()[:8], "little")
    z = (row * 0x9E3779B97F4A7C15 + start) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize(("month", "seed"), [(MONTH, 1), ("2009-011", 2), (MONTH, 12)])
def test_the_rows_with_the_smallest_hashes_are_taken_in_their_order(trips: Path, month: str, seed: int) -> None:
    largest = sampling.sample_month(pq.ParquetFile(trips), month, ROWS, seed)
    expected = sorted(range(ROWS), key=lambda row: (mix(row, month, seed), row))
    assert largest["row"].to_pylist() == expected
    assert largest[sampling.KEY].to_pylist() == [mix(row, month, seed) for row in expected]
    assert largest.drop_columns([sampling.KEY]).equals(pq.read_table(trips).take(expected))
    for count in (1, 500, ROWS - 1, ROWS + 1, 10**9):
        assert sampling.sample_month(pq.ParquetFile(trips), month, count, seed)["row"].to_pylist() == expected[:count]


@pytest.mark.parametrize(("row_group_size", "step"), [(31, 1), (997, -1)])
def test_partitioning_and_order_of_the_prepared_rows_do_not_matter(
    trips: Path, tmp_path: Path, row_group_size: int, step: int
) -> None:
    head = pq.read_table(trips).slice(0, 3000)
    pq.write_table(head, tmp_path / "whole")
    pq.write_table(head.take(np.arange(3000)[::step]), tmp_path / "parts", row_group_size=row_group_size)
    whole, parts = (
        sampling.sample_month(pq.ParquetFile(tmp_path / name), MONTH, 400, 1) for name in ("whole", "parts")
    )
    assert whole.to_pylist() == parts.to_pylist()


def test_a_month_without_rows_gives_an_empty_sample(trips: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_schema(trips).empty_table(), tmp_path / "trips.parquet")
    sample = sampling.sample_month(pq.ParquetFile(tmp_path / "trips.parquet"), MONTH, 10, 1)
    assert (len(sample), sample.schema.names[-1]) == (0, sampling.KEY)


def make_samples(trips: Path, folder: Path, count: int) -> list[Path]:
    """Write samples of three months with the given number of rows."""
    paths = [folder / str(count) / f"{month}.parquet" for month in ("2009-01", "2009-02", "2009-03")]
    paths[0].parent.mkdir()
    for path in paths:
        pq.write_table(sampling.sample_month(pq.ParquetFile(trips), path.stem, count, 1), path)
    return paths


def test_a_pool_has_all_rows_in_the_order_of_their_keys_and_begins_a_larger_one(trips: Path, tmp_path: Path) -> None:
    paths = make_samples(trips, tmp_path, 500)
    pool = sampling.read_pool(paths)
    keys = pool[sampling.KEY].to_pylist()
    assert len(pool) == 1500
    assert keys == sorted(keys)
    for code, path in enumerate(paths):
        rows = pool.filter(pool[sampling.MONTH].to_numpy() == code)["row"]
        assert rows.to_pylist() == pq.read_table(path)["row"].to_pylist()
    assert sampling.read_pool(paths[::-1]).equals(pool)
    # The pool nests up to where the first of its months runs out.
    bound = min(max(pq.read_table(path)[sampling.KEY].to_pylist()) for path in paths)
    shared = sum(key <= bound for key in keys)
    assert 1000 < shared <= 1500
    large = sampling.read_pool(make_samples(trips, tmp_path, 1000))
    assert pool.slice(0, shared).to_pylist() == large.slice(0, shared).to_pylist()


def test_months_with_different_categories_make_one_pool(tmp_path: Path) -> None:
    for month, words in (("2009-01", ["a", "b"]), ("2009-02", ["c", "a"])):
        codes = pa.array(words).dictionary_encode()
        table = pa.table({"row": [0, 1], "kind": codes, sampling.KEY: pa.array([int(month[-1]), 9], pa.uint64())})
        pq.write_table(table, tmp_path / f"{month}.parquet")
    kinds = sampling.read_pool(list(tmp_path.iterdir()))["kind"]
    assert kinds.to_pylist() == ["a", "c", "b", "a"]
    assert len({tuple(chunk.dictionary.to_pylist()) for chunk in kinds.chunks}) == 1


@pytest.fixture
def prepared_project(make_project: Callable[..., Paths]) -> Paths:
    paths = make_project()
    for stage in ("download", "prepare"):
        workbench.run_month(paths, stage, MONTH)
    return paths


def test_the_stage_writes_the_sample_that_the_settings_ask_for_and_reports_fewer_rows(
    run_cli: Callable[..., tuple[int, str]], prepared_project: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    path, written = prepared_project.sample("train", MONTH), []
    for rows, words in ((5000, ""), (5001, ", all that the month has; sample.rows asks for 5,001")):
        workbench.change_settings(prepared_project, sample={"rows": rows})
        assert run_cli(prepared_project.root, "sample", MONTH)[0] == 0
        assert caplog.messages[-1] == f"{MONTH}: 5,000 rows for train{words}"
        written.append(path.read_bytes())
    assert written[0] == written[1]
    prepared = pq.ParquetFile(prepared_project.prepared_file(MONTH))
    assert pq.read_table(path).equals(sampling.sample_month(prepared, MONTH, 5000, 1))
    with pytest.raises(UsageError, match="2009-05 has no role") as caught:
        workbench.run_month(prepared_project, "sample", "2009-05")
    assert caught.value.parts[1] == "params.yaml, sample.months"


def test_a_month_that_changes_its_role_leaves_no_sample_in_the_other(prepared_project: Paths) -> None:
    paths, roles = prepared_project, {"2001-01": "train", MONTH: "validation", "2009-03": "test"}
    workbench.run_month(paths, "sample", MONTH)
    workbench.change_settings(paths, months=list(roles), sample={"months": roles})
    listed = paths.sample("train", "2001-01")
    for path in (listed, paths.sample("train", "2009-02"), listed.with_name(".2001-01.parquet.host-1-ab.tmp")):
        path.touch()
    (listed.parent / ".gitignore").touch()  # DVC writes it
    workbench.run_month(paths, "sample", MONTH)
    left = {"train/.gitignore", "train/2001-01.parquet", f"validation/{MONTH}.parquet"}
    assert set(workbench.read_tree(paths.root / "data" / "sample")) == left


def test_training_removes_the_samples_of_months_without_a_role(trained_project: Paths) -> None:
    removed = [trained_project.sample(role, "2008-12") for role in ("train", "validation", "test")]
    for path in removed:
        path.touch()
    workbench.run(trained_project, "train")
    assert not any(path.exists() for path in removed)
    assert trained_project.sample("train", "2009-01").is_file()
