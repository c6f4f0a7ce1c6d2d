"""Which parts of which months are to be scored, and what is published: decided from files alone, without a cluster."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tipline import files
from tipline.errors import TiplineError
from tipline.ingest.columns import PREPARED_FILE
from tipline.monitoring.counts import Counts
from tipline.paths import Paths
from tipline.scoring import plan, publish, worker

if TYPE_CHECKING:
    from pathlib import Path

MONTH, GROUPS = "2009-01", (3, 3, 2)
MODEL, OTHER_MODEL = "m" * 64, "n" * 64
ROWS = sum(GROUPS)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A project with one prepared month of three row groups."""
    paths = Paths(tmp_path)
    prepare(paths, range(ROWS))
    return paths


def prepare(paths: Paths, rows: range) -> None:
    """Write a prepared month with these row numbers, and its manifest."""
    folder = paths.prepared(MONTH)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row": pa.array(rows, pa.int64())}), folder / PREPARED_FILE, row_group_size=GROUPS[0])
    files.write_json(folder / files.MANIFEST, {"trips": files.describe_file(folder / PREPARED_FILE)})


def plan(paths: Paths, model: str = MODEL) -> list[plan.Month]:
    """What is to be scored, where nothing is wrong."""
    planned, failed = plan.plan_months(plan.Locations.resolve(paths), [MONTH], model)
    assert not failed
    return planned


def score(block: plan.Block, rows: int | None = None) -> dict[str, Any]:
    """Do what a worker does to a block, with scores of one half."""
    count = block.rows if rows is None else rows
    first = sum(GROUPS[: block.row_group])
    numbers = pa.array(range(first, first + count), pa.int64())
    data = worker.encode_part(numbers, pa.array([0.5] * count, pa.float32()))
    made = {
        "key": block.key,
        "state": block.state,
        "name": block.name,
        "rows": count,
        "bytes": len(data),
        "sha256": files.hash_bytes(data),
        "counts": Counts(count, count / 2).to_json(),
        "seconds": dict.fromkeys(plan.PHASES, 0.25),
        "peak_bytes": 1000 + block.row_group,
    }
    block.locations.staged.write(block.part, data)
    block.locations.staged.write(block.marker, json.dumps(made).encode())
    return made


def publish(paths: Paths, model: str = MODEL) -> dict[str, Any]:
    """Score and publish the month; return its manifest."""
    (month,) = plan(paths, model)
    month.done |= {block.name: score(block) for block in month.open}
    publish.publish_month(month, {"version": 1})
    manifest: dict[str, Any] = json.loads((paths.predictions / f"month={MONTH}" / files.MANIFEST).read_text())
    return manifest


def names(blocks: list[plan.Block]) -> list[str]:
    return [block.name for block in blocks]


ALL = ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]


def test_a_month_that_was_never_scored_has_a_part_for_each_row_group(paths: Paths) -> None:
    (month,) = plan(paths)
    assert names(month.open) == ALL
    assert [block.rows for block in month.blocks] == list(GROUPS)


def test_a_published_month_is_not_planned_again(paths: Paths) -> None:
    publish(paths)
    assert plan(paths) == []


def test_another_model_scores_all_again(paths: Paths) -> None:
    publish(paths)
    (month,) = plan(paths, OTHER_MODEL)
    assert names(month.open) == ALL


def test_other_prepared_rows_are_scored_again(paths: Paths) -> None:
    publish(paths)
    prepare(paths, range(1, ROWS + 1))
    (month,) = plan(paths)
    assert names(month.open) == ALL


def test_a_new_format_scores_all_again(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(paths)
    monkeypatch.setattr(plan, "FORMAT", plan.FORMAT + 1)
    (month,) = plan(paths)
    assert names(month.open) == ALL


def test_finished_parts_of_a_killed_run_are_kept(paths: Paths) -> None:
    (month,) = plan(paths)
    score(month.blocks[1])
    (again,) = plan(paths)
    assert names(again.open) == [ALL[0], ALL[2]]
    assert again.done[ALL[1]]["rows"] == GROUPS[1]


def test_a_part_without_its_marker_is_not_finished(paths: Paths) -> None:
    (month,) = plan(paths)
    score(month.blocks[1])
    month.locations.staged.remove_files([month.blocks[1].marker])
    assert names(plan(paths)[0].open) == ALL


@pytest.mark.parametrize("damage", ["cut", "other bytes", "gone"])
def test_a_part_that_is_not_what_its_marker_says_is_scored_again(paths: Paths, damage: str) -> None:
    (month,) = plan(paths)
    score(month.blocks[1])
    path = paths.staging / "predictions" / month.blocks[1].part
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else bytes(reversed(data)))
    assert names(plan(paths)[0].open) == ALL


def test_parts_made_from_a_file_that_was_touched_since_are_not_mixed_with_new_ones(paths: Paths) -> None:
    (month,) = plan(paths)
    score(month.blocks[1])
    trips = paths.prepared_file(MONTH)
    data = trips.read_bytes()
    trips.unlink()
    trips.write_bytes(data)  # the same bytes, so the same key; but nobody looked at them in between
    assert names(plan(paths)[0].open) == ALL


def test_a_published_part_of_another_length_is_noticed(paths: Paths) -> None:
    publish(paths)
    part = paths.predictions / f"month={MONTH}" / ALL[0]
    part.write_bytes(part.read_bytes() + b"x")
    assert len(plan(paths)) == 1


def test_the_receipt_has_parts_rows_counts_and_what_it_cost(paths: Paths) -> None:
    manifest = publish(paths)
    assert manifest["rows"] == ROWS
    assert [(part["name"], part["rows"]) for part in manifest["parts"]] == list(zip(ALL, GROUPS, strict=True))
    for part in manifest["parts"]:
        published = paths.predictions / f"month={MONTH}" / part["name"]
        assert files.describe_file(published) == {"bytes": part["bytes"], "sha256": part["sha256"]}
    assert (manifest["counts"]["rows"], manifest["counts"]["probability"]) == (ROWS, ROWS / 2)
    assert manifest["key"] == {
        "trips": files.hash_file(paths.prepared_file(MONTH)),
        "model": MODEL,
        "format": plan.FORMAT,
    }
    assert manifest["made"] == {
        "version": 1,
        "worker_seconds": dict.fromkeys(plan.PHASES, 0.75),
        "peak_worker_bytes": 1002,
    }


def test_what_a_killed_worker_had_begun_is_not_published(paths: Paths) -> None:
    (month,) = plan(paths)
    month.locations.staged.write(f"{month.staged}/.part-00000.parquet.1.tmp", b"begun")
    publish(paths)
    there = {path.name for path in (paths.predictions / f"month={MONTH}").iterdir()}
    assert there == {*ALL, files.MANIFEST}
    assert not list((paths.staging / "predictions").iterdir())


def test_parts_that_lack_a_row_are_not_published(paths: Paths) -> None:
    (month,) = plan(paths)
    month.done |= {block.name: score(block, block.rows - (block.row_group == 1)) for block in month.blocks}
    with pytest.raises(TiplineError, match="do not have the month's rows"):
        publish.publish_month(month, {})
    assert not paths.predictions.exists()


def test_parts_that_are_gone_are_not_published(paths: Paths) -> None:
    (month,) = plan(paths)
    month.done |= {block.name: score(block) for block in month.blocks}
    month.locations.staged.remove_files([month.blocks[2].part])
    with pytest.raises(TiplineError, match="are not there"):
        publish.publish_month(month, {})
    assert not paths.predictions.exists()


def test_a_prepared_month_that_has_not_the_length_of_its_receipt_is_told(paths: Paths) -> None:
    with paths.prepared_file(MONTH).open("ab") as file:
        file.write(b"x")
    planned, failed = plan.plan_months(plan.Locations.resolve(paths), [MONTH], MODEL)
    assert not planned
    assert "its manifest says" in failed[MONTH]


def test_a_file_that_is_no_prediction_is_not_lost(paths: Paths) -> None:
    publish(paths)
    (paths.predictions / f"month={MONTH}" / "notes.txt").write_text("mine")
    planned, failed = plan.plan_months(plan.Locations.resolve(paths), [MONTH], OTHER_MODEL)
    assert not planned
    assert "notes.txt" in failed[MONTH]
