"""Which parts of which months are to be scored, and what is published: decided from files alone, without a cluster."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tipline import files, scoring
from tipline.errors import TiplineError
from tipline.layout import Layout
from tipline.months.trips import TRIPS
from tipline.statistics.counts import Counts

if TYPE_CHECKING:
    from pathlib import Path

MONTH, GROUPS = "2009-01", (3, 3, 2)
MODEL, OTHER_MODEL = "m" * 64, "n" * 64
ROWS = sum(GROUPS)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A project with one prepared month of three row groups."""
    layout = Layout(tmp_path)
    prepare(layout, range(ROWS))
    return layout


def prepare(layout: Layout, rows: range) -> None:
    """Write a prepared month with these row numbers, and its receipt."""
    folder = layout.trips(MONTH)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row": pa.array(rows, pa.int64())}), folder / TRIPS, row_group_size=GROUPS[0])
    files.write_json(folder / files.RECEIPT, {"trips": files.stated(folder / TRIPS)})


def plan(layout: Layout, model: str = MODEL) -> list[scoring.Month]:
    """What is to be scored, where nothing is wrong."""
    planned, failed = scoring.plan(scoring.Places.of(layout), [MONTH], model)
    assert not failed
    return planned


def score(block: scoring.Block, rows: int | None = None) -> dict[str, Any]:
    """Do what a worker does to a block, with scores of one half."""
    count = block.rows if rows is None else rows
    first = sum(GROUPS[: block.row_group])
    numbers = pa.array(range(first, first + count), pa.int64())
    data = scoring.encoded(numbers, pa.array([0.5] * count, pa.float32()))
    made = {
        "key": block.key,
        "state": block.state,
        "name": block.name,
        "rows": count,
        "bytes": len(data),
        "sha256": files.sha256_of(data),
        "counts": Counts(count, count / 2).to_json(),
        "seconds": dict.fromkeys(scoring.PHASES, 0.25),
        "peak_bytes": 1000 + block.row_group,
    }
    block.places.staged.write(block.part, data)
    block.places.staged.write(block.marker, json.dumps(made).encode())
    return made


def publish(layout: Layout, model: str = MODEL) -> dict[str, Any]:
    """Score and publish the month; return its receipt."""
    (month,) = plan(layout, model)
    month.done |= {block.name: score(block) for block in month.open}
    scoring.publish_month(month, {"version": 1})
    receipt: dict[str, Any] = json.loads((layout.predictions / f"month={MONTH}" / files.RECEIPT).read_text())
    return receipt


def names(blocks: list[scoring.Block]) -> list[str]:
    return [block.name for block in blocks]


ALL = ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]


def test_a_month_that_was_never_scored_has_a_part_for_each_row_group(layout: Layout) -> None:
    (month,) = plan(layout)
    assert names(month.open) == ALL
    assert [block.rows for block in month.blocks] == list(GROUPS)


def test_a_published_month_is_not_planned_again(layout: Layout) -> None:
    publish(layout)
    assert plan(layout) == []


def test_another_model_scores_all_again(layout: Layout) -> None:
    publish(layout)
    (month,) = plan(layout, OTHER_MODEL)
    assert names(month.open) == ALL


def test_other_prepared_rows_are_scored_again(layout: Layout) -> None:
    publish(layout)
    prepare(layout, range(1, ROWS + 1))
    (month,) = plan(layout)
    assert names(month.open) == ALL


def test_a_new_format_scores_all_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(layout)
    monkeypatch.setattr(scoring, "FORMAT", scoring.FORMAT + 1)
    (month,) = plan(layout)
    assert names(month.open) == ALL


def test_finished_parts_of_a_killed_run_are_kept(layout: Layout) -> None:
    (month,) = plan(layout)
    score(month.blocks[1])
    (again,) = plan(layout)
    assert names(again.open) == [ALL[0], ALL[2]]
    assert again.done[ALL[1]]["rows"] == GROUPS[1]


def test_a_part_without_its_marker_is_not_finished(layout: Layout) -> None:
    (month,) = plan(layout)
    score(month.blocks[1])
    month.places.staged.remove_files([month.blocks[1].marker])
    assert names(plan(layout)[0].open) == ALL


@pytest.mark.parametrize("damage", ["cut", "other bytes", "gone"])
def test_a_part_that_is_not_what_its_marker_says_is_scored_again(layout: Layout, damage: str) -> None:
    (month,) = plan(layout)
    score(month.blocks[1])
    path = layout.staging / "predictions" / month.blocks[1].part
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else bytes(reversed(data)))
    assert names(plan(layout)[0].open) == ALL


def test_parts_made_from_a_file_that_was_touched_since_are_not_mixed_with_new_ones(layout: Layout) -> None:
    (month,) = plan(layout)
    score(month.blocks[1])
    trips = layout.trips_file(MONTH)
    data = trips.read_bytes()
    trips.unlink()
    trips.write_bytes(data)  # the same bytes, so the same key; but nobody looked at them in between
    assert names(plan(layout)[0].open) == ALL


def test_a_published_part_of_another_length_is_noticed(layout: Layout) -> None:
    publish(layout)
    part = layout.predictions / f"month={MONTH}" / ALL[0]
    part.write_bytes(part.read_bytes() + b"x")
    assert len(plan(layout)) == 1


def test_the_receipt_has_parts_rows_counts_and_what_it_cost(layout: Layout) -> None:
    receipt = publish(layout)
    assert receipt["rows"] == ROWS
    assert [(part["name"], part["rows"]) for part in receipt["parts"]] == list(zip(ALL, GROUPS, strict=True))
    for part in receipt["parts"]:
        published = layout.predictions / f"month={MONTH}" / part["name"]
        assert files.stated(published) == {"bytes": part["bytes"], "sha256": part["sha256"]}
    assert (receipt["counts"]["rows"], receipt["counts"]["probability"]) == (ROWS, ROWS / 2)
    assert receipt["key"] == {
        "trips": files.sha256(layout.trips_file(MONTH)),
        "model": MODEL,
        "format": scoring.FORMAT,
    }
    assert receipt["made"] == {
        "version": 1,
        "worker_seconds": dict.fromkeys(scoring.PHASES, 0.75),
        "peak_worker_bytes": 1002,
    }


def test_what_a_killed_worker_had_begun_is_not_published(layout: Layout) -> None:
    (month,) = plan(layout)
    month.places.staged.write(f"{month.staged}/.part-00000.parquet.1.tmp", b"begun")
    publish(layout)
    there = {path.name for path in (layout.predictions / f"month={MONTH}").iterdir()}
    assert there == {*ALL, files.RECEIPT}
    assert not list((layout.staging / "predictions").iterdir())


def test_parts_that_lack_a_row_are_not_published(layout: Layout) -> None:
    (month,) = plan(layout)
    month.done |= {block.name: score(block, block.rows - (block.row_group == 1)) for block in month.blocks}
    with pytest.raises(TiplineError, match="do not have the month's rows"):
        scoring.publish_month(month, {})
    assert not layout.predictions.exists()


def test_parts_that_are_gone_are_not_published(layout: Layout) -> None:
    (month,) = plan(layout)
    month.done |= {block.name: score(block) for block in month.blocks}
    month.places.staged.remove_files([month.blocks[2].part])
    with pytest.raises(TiplineError, match="are not there"):
        scoring.publish_month(month, {})
    assert not layout.predictions.exists()


def test_a_prepared_month_that_has_not_the_length_of_its_receipt_is_told(layout: Layout) -> None:
    with layout.trips_file(MONTH).open("ab") as file:
        file.write(b"x")
    planned, failed = scoring.plan(scoring.Places.of(layout), [MONTH], MODEL)
    assert not planned
    assert "its receipt says" in failed[MONTH]


def test_a_file_that_is_no_prediction_is_not_lost(layout: Layout) -> None:
    publish(layout)
    (layout.predictions / f"month={MONTH}" / "notes.txt").write_text("mine")
    planned, failed = scoring.plan(scoring.Places.of(layout), [MONTH], OTHER_MODEL)
    assert not planned
    assert "notes.txt" in failed[MONTH]
