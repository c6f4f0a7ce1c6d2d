"""Samples are exact, the same on any partitioning, nested, uniform, and lie in one role's folder."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import factory
from tipline.ingest import prepare, simulate
from tipline.ingest.schema import load_schema
from tipline.training import sampling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

MONTH = "2009-01"
ROWS = 20_000


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared month of 20,000 rows."""
    folder = tmp_path_factory.mktemp("trips")
    simulate.simulate_month(folder / "raw.parquet", MONTH, ROWS, 1)
    prepare.prepare_month(folder / "raw.parquet", folder, load_schema(), MONTH)
    return folder / "trips.parquet"


def rows_of(table: pa.Table) -> list[int]:
    found: list[int] = table["row"].to_pylist()
    return found


def mixed(row: int, month: str, seed: int) -> int:
    """SplitMix64 of a row number in Python's own whole numbers."""
    start = int.from_bytes(hashlib.sha256(f"{month} {seed}".encode()).digest()[:8], "little")
    z = (row * 0x9E3779B97F4A7C15 + start) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def numbers_and_hashes(*pairs: tuple[int, int]) -> tuple[Any, Any]:
    """Hashes and row numbers as `smallest` takes them, from pairs of them."""
    hashes, rows = zip(*pairs, strict=True)
    return np.array(hashes, np.uint64), np.array(rows, np.int64)


# ---- one month ----


@pytest.mark.parametrize("count", [1, 2, 100, 7777, ROWS - 1, ROWS])
def test_a_sample_has_as_many_rows_as_asked_each_once(trips: Path, count: int) -> None:
    rows = rows_of(sampling.sample_month(trips, MONTH, count, 1))
    assert len(rows) == count
    assert len(set(rows)) == count
    assert set(rows) <= set(range(ROWS))


def test_the_rows_with_the_smallest_hashes_are_taken_in_their_order(trips: Path) -> None:
    sample = sampling.sample_month(trips, MONTH, 500, 1)
    expected = sorted(range(ROWS), key=lambda row: (mixed(row, MONTH, 1), row))[:500]
    assert rows_of(sample) == expected
    assert sample[sampling.KEY].to_pylist() == [mixed(row, MONTH, 1) for row in expected]
    assert sample[sampling.KEY].type == pa.uint64()


def test_a_sampled_row_is_the_prepared_row(trips: Path) -> None:
    whole = pq.read_table(trips)
    sample = sampling.sample_month(trips, MONTH, 300, 1)
    assert sample.schema.names == [*whole.schema.names, sampling.KEY]
    same = whole.take(rows_of(sample))
    assert sample.drop_columns([sampling.KEY]).to_pylist() == same.to_pylist()


def test_the_same_month_and_seed_give_the_same_sample(trips: Path) -> None:
    first, second = (sampling.sample_month(trips, MONTH, 1000, 1) for _ in range(2))
    assert first.equals(second)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(trips: Path) -> None:
    largest = sampling.sample_month(trips, MONTH, 8000, 1)
    for count in (1, 500, 4000):
        assert sampling.sample_month(trips, MONTH, count, 1).to_pylist() == largest.slice(0, count).to_pylist()


@pytest.mark.parametrize("row_group_size", [31, 400, 997, 2999])
def test_the_sample_is_the_same_on_any_partitioning(trips: Path, tmp_path: Path, row_group_size: int) -> None:
    head = pq.read_table(trips).slice(0, 3000)
    for name, size in (("whole", 3000), ("parts", row_group_size)):
        pq.write_table(head, tmp_path / name, row_group_size=size)
    whole, parts = (sampling.sample_month(tmp_path / name, MONTH, 400, 1) for name in ("whole", "parts"))
    assert rows_of(whole) == rows_of(parts)
    assert whole.to_pylist() == parts.to_pylist()


def test_the_order_of_the_prepared_rows_does_not_matter(trips: Path, tmp_path: Path) -> None:
    whole = pq.read_table(trips)
    pq.write_table(whole.take(np.arange(ROWS)[::-1]), tmp_path / "backwards", row_group_size=999)
    backwards = sampling.sample_month(tmp_path / "backwards", MONTH, 700, 1)
    assert rows_of(backwards) == rows_of(sampling.sample_month(trips, MONTH, 700, 1))


def test_rows_keep_their_numbers_where_some_were_set_apart(trips: Path, tmp_path: Path) -> None:
    whole = pq.read_table(trips)
    pq.write_table(whole.slice(100), tmp_path / "rest")
    assert min(rows_of(sampling.sample_month(tmp_path / "rest", MONTH, ROWS, 1))) == 100
    all_rows = rows_of(sampling.sample_month(trips, MONTH, ROWS, 1))
    rest = rows_of(sampling.sample_month(tmp_path / "rest", MONTH, 5000, 1))
    assert rest == [row for row in all_rows if row >= 100][:5000]


def test_another_month_or_seed_gives_another_sample(trips: Path) -> None:
    keys = [(MONTH, 1), ("2009-02", 1), (MONTH, 2), (MONTH, 12), ("2009-011", 2)]
    samples = {tuple(rows_of(sampling.sample_month(trips, month, 50, seed))) for month, seed in keys}
    assert len(samples) == len(keys)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("month", [MONTH, "2024-01"])
def test_all_parts_of_a_month_are_as_likely(trips: Path, month: str, seed: int) -> None:
    rows = np.array(rows_of(sampling.sample_month(trips, month, 5000, seed)))
    for parts in (rows * 10 // ROWS, rows % 10):
        seen = np.bincount(parts, minlength=10)
        # Drawn without putting back; 27.9 is passed once in a thousand times with nine degrees of freedom.
        chi_square = ((seen - 500) ** 2 / 500).sum() / (1 - 5000 / ROWS)
        assert chi_square < 27.9


def test_the_order_within_a_sample_says_nothing_of_the_row(trips: Path) -> None:
    rows = rows_of(sampling.sample_month(trips, MONTH, ROWS, 1))
    assert abs(np.corrcoef(rows, np.arange(ROWS))[0, 1]) < 4 / ROWS**0.5


@pytest.mark.parametrize("count", [ROWS, ROWS + 1, 10**9])
def test_a_month_with_fewer_rows_gives_them_all(trips: Path, count: int) -> None:
    assert sorted(rows_of(sampling.sample_month(trips, MONTH, count, 1))) == list(range(ROWS))


def test_no_more_than_two_samples_are_held_beside_a_row_group(
    trips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pq.read_table(trips), tmp_path / "parts", row_group_size=1000)
    held = []
    first = sampling.first

    def watched(table: pa.Table, count: int) -> pa.Table:
        held.append(len(table))
        return first(table, count)

    monkeypatch.setattr(sampling, "first", watched)
    sampling.sample_month(tmp_path / "parts", MONTH, 100, 1)
    assert max(held) == 200


def test_a_month_without_rows_gives_an_empty_sample(tmp_path: Path) -> None:
    pq.write_table(load_schema().schema.empty_table(), tmp_path / "trips.parquet")
    sample = sampling.sample_month(tmp_path / "trips.parquet", MONTH, 10, 1)
    assert (len(sample), sample.schema.names[-1]) == (0, sampling.KEY)


# ---- smallest ----


def test_ties_are_broken_by_row_number() -> None:
    hashes, rows = numbers_and_hashes((5, 9), (5, 3), (1, 7), (5, 1), (9, 0))
    assert sampling.smallest(hashes, rows, 3).tolist() == [2, 3, 1]
    assert sampling.smallest(hashes, rows, 2).tolist() == [2, 3]


def test_all_hashes_equal_gives_the_first_rows() -> None:
    hashes, rows = numbers_and_hashes(*[(7, row) for row in (4, 2, 0, 3, 1)])
    assert rows[sampling.smallest(hashes, rows, 3)].tolist() == [0, 1, 2]


def test_the_largest_hashes_are_no_trouble() -> None:
    hashes, rows = numbers_and_hashes((2**64 - 1, 0), (2**63, 1), (2**63 - 1, 2))
    assert sampling.smallest(hashes, rows, 3).tolist() == [2, 1, 0]


@pytest.mark.parametrize("count", [3, 4])
def test_more_than_there_are_gives_all_in_order(count: int) -> None:
    hashes, rows = numbers_and_hashes((3, 0), (1, 1), (2, 2))
    assert sampling.smallest(hashes, rows, count).tolist() == [1, 2, 0]


# ---- several months ----


@pytest.fixture
def samples(trips: Path, tmp_path: Path) -> Callable[[int], list[Path]]:
    """Give a function that samples so many rows of three months into a folder."""

    def make(count: int) -> list[Path]:
        folder = tmp_path / str(count)
        folder.mkdir(exist_ok=True)
        for month in ("2009-01", "2009-02", "2009-03"):
            pq.write_table(sampling.sample_month(trips, month, count, 1), folder / f"{month}.parquet")
        return sorted(folder.iterdir())

    return make


def test_a_pool_has_all_rows_in_the_order_of_their_keys(samples: Callable[[int], list[Path]]) -> None:
    pool = sampling.read_pool(samples(500))
    keys = pool[sampling.KEY].to_pylist()
    assert len(pool) == 1500
    assert keys == sorted(keys)


def test_a_pool_does_not_depend_on_the_order_of_its_files(samples: Callable[[int], list[Path]]) -> None:
    paths = samples(500)
    assert sampling.read_pool(paths).equals(sampling.read_pool(paths[::-1]))


def test_the_beginning_of_a_pool_is_the_same_in_a_pool_of_larger_samples(
    samples: Callable[[int], list[Path]],
) -> None:
    paths = samples(500)
    small, large = (sampling.read_pool(samples(count)) for count in (500, 1000))
    # The pool nests up to where the first of its months runs out.
    bound = min(max(pq.read_table(path)[sampling.KEY].to_pylist()) for path in paths)
    shared = sum(key <= bound for key in small[sampling.KEY].to_pylist())
    assert 1000 < shared <= 1500
    assert small.slice(0, shared).to_pylist() == large.slice(0, shared).to_pylist()


def test_the_beginning_of_a_pool_mixes_the_months(samples: Callable[[int], list[Path]]) -> None:
    paths = samples(2000)
    keys = {path: set(pq.read_table(path)[sampling.KEY].to_pylist()) for path in paths}
    first = sampling.read_pool(paths).slice(0, 1500)[sampling.KEY].to_pylist()
    shares = [sum(key in keys[path] for key in first) for path in paths]
    assert sum(shares) == 1500
    assert min(shares) > 400


def test_equal_keys_in_a_pool_are_in_order_of_their_months(tmp_path: Path) -> None:
    paths = [tmp_path / f"{month}.parquet" for month in ("2009-02", "2009-01")]
    for path in paths:
        keys = np.arange(1000, dtype=np.uint64) // np.uint64(10)
        pq.write_table(pa.table({"row": np.arange(1000), "month": [path.stem] * 1000, sampling.KEY: keys}), path)
    expected = sorted((row // 10, month, row) for row in range(1000) for month in ("2009-01", "2009-02"))
    for order in (paths, paths[::-1]):
        pool = sampling.read_pool(order).select([sampling.KEY, "month", "row"])
        assert [tuple(row.values()) for row in pool.to_pylist()] == expected


def test_months_of_different_spellings_make_one_pool(tmp_path: Path) -> None:
    for month, words in (("2009-01", ["a", "b"]), ("2009-02", ["c", "a"])):
        codes = pa.array(words).dictionary_encode()
        table = pa.table({"row": [0, 1], "kind": codes, sampling.KEY: pa.array([int(month[-1]), 9], pa.uint64())})
        pq.write_table(table, tmp_path / f"{month}.parquet")
    kinds = sampling.read_pool(list(tmp_path.iterdir()))["kind"]
    assert kinds.to_pylist() == ["a", "c", "b", "a"]
    assert len({tuple(chunk.dictionary.to_pylist()) for chunk in kinds.chunks}) == 1


def test_rows_without_a_target_are_left_out(trips: Path) -> None:
    table = pq.read_table(trips).slice(0, 4)
    place = table.schema.names.index("tip_amount")
    holed = table.set_column(place, "tip_amount", pa.array([1.0, None, 0.0, None]))
    assert rows_of(sampling.labelled(holed, "tip_amount")) == [0, 2]


# ---- the stage ----


@pytest.fixture
def prepared_project(run_cli: Run, make_project: MakeProject) -> Paths:
    paths = make_project()
    for command in ("download", "prepare"):
        assert run_cli(paths.root, command, MONTH)[0] == 0
    return paths


def test_the_stage_writes_the_sample_that_the_settings_ask_for(run_cli: Run, prepared_project: Paths) -> None:
    paths = prepared_project
    assert run_cli(paths.root, "sample", MONTH)[0] == 0
    sample = pq.read_table(paths.sample("train", MONTH))
    assert sample.equals(sampling.sample_month(paths.prepared_file(MONTH), MONTH, 3000, 1))


def test_the_stage_writes_the_same_bytes_each_time(run_cli: Run, prepared_project: Paths) -> None:
    written = []
    for _ in range(2):
        assert run_cli(prepared_project.root, "sample", MONTH)[0] == 0
        written.append(factory.contents(prepared_project.root / "data" / "sample"))
    assert written[0] == written[1]
    assert list(written[0]) == [f"fit/{MONTH}.parquet"]


@pytest.mark.parametrize(("rows", "notices"), [(5000, 0), (5001, 1)])
def test_fewer_rows_than_asked_for_are_noticed(
    run_cli: Run,
    make_project: MakeProject,
    prepared_project: Paths,
    caplog: pytest.LogCaptureFixture,
    rows: int,
    notices: int,
) -> None:
    make_project(sample={"rows": rows})
    assert run_cli(prepared_project.root, "sample", MONTH)[0] == 0
    assert pq.read_metadata(prepared_project.sample("train", MONTH)).num_rows == 5000
    assert f"{MONTH}: 5,000 rows for fit" in caplog.text
    assert caplog.text.count(f"fewer than the {rows:,} asked for") == notices


@pytest.mark.parametrize("role", ["size", "evaluate"])
def test_a_month_that_changes_its_role_leaves_no_sample_in_the_other(
    run_cli: Run, make_project: MakeProject, prepared_project: Paths, role: str
) -> None:
    paths = prepared_project
    assert run_cli(paths.root, "sample", MONTH)[0] == 0
    roles = {
        "size": {"2001-01": "train", MONTH: "size", "2009-03": "test"},
        "evaluate": {"2001-01": "train", "2001-02": "validation", MONTH: "evaluate"},
    }[role]
    make_project(months=list(roles), sample={"months": roles})
    bystander = paths.sample("train", "2009-02")
    bystander.touch()
    assert run_cli(paths.root, "sample", MONTH)[0] == 0
    assert sorted(factory.contents(paths.root / "data" / "sample")) == sorted(
        [f"{role}/{MONTH}.parquet", "fit/2009-02.parquet"]
    )


def test_a_month_without_a_role_is_a_usage_error(run_cli: Run, prepared_project: Paths) -> None:
    code, printed = run_cli(prepared_project.root, "sample", "2009-05")
    assert code == 2
    assert "2009-05 has no role" in printed
    assert "params.yaml, sample.months" in printed
    assert not (prepared_project.root / "data" / "sample").exists()
