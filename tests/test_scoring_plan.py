"""Which parts of which months have to be scored, and what is published: decided from files alone, without a cluster."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tipline import config, files, formats, storage
from tipline.errors import TiplineError, UsageError
from tipline.ingest.columns import PREPARED_FILE
from tipline.monitoring.counts import Counts
from tipline.paths import Paths
from tipline.scoring import plan, worker

MONTH, GROUPS = "2009-01", (3, 3, 2)
MODEL = "m" * 64
SPEC = {
    "inputs": [{"name": "fare", "type": "number"}],
    "target_columns": {"label": "boolean"},
    "baseline": {"by": []},
    "target": "label",
}
SETTINGS = config.PartialSettings(None, None, (MONTH,), None)  # nothing but the project's own folders
PARTS = ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A project with one prepared month of three row groups."""
    paths = Paths(tmp_path)
    folder = paths.prepared(MONTH)
    folder.mkdir(parents=True)
    table = pa.table({"row": pa.array(range(sum(GROUPS)), pa.int64())})
    pq.write_table(table, folder / PREPARED_FILE, row_group_size=GROUPS[0])
    describe_prepared(paths, label="a")
    return paths


def describe_prepared(paths: Paths, **digests: str) -> None:
    """Write the manifest of the prepared month, with these digests of columns."""
    path = paths.prepared_file(MONTH)
    manifest = {"trips": files.describe_file(path), "columns": {"row": "r", "fare": "f", **digests}}
    files.write_json(path.with_name(files.MANIFEST), manifest)


def plan_months(paths: Paths, model: str = MODEL) -> list[plan.Month]:
    """Plan the month; there is none if it is published."""
    planned, failed = plan.plan_months(plan.Locations.resolve(SETTINGS, paths), [MONTH], model, SPEC)
    assert not failed
    return [month.choose_form("compiled") for month in planned]


def score_block(block: plan.Block, rows: int | None = None) -> dict[str, Any]:
    """Do what a worker does, with scores of one half."""
    count = block.rows if rows is None else rows
    numbers = pa.array(range(sum(GROUPS[: block.row_group]), sum(GROUPS[: block.row_group]) + count), pa.int64())
    data = worker.encode_part(numbers, pa.array([0.5] * count, pa.float32()), {})
    part = {"name": block.name, "rows": count, "bytes": len(data), "sha256": files.hash_bytes(data)}
    marker = {
        "key": block.key,
        "form": block.form,
        "counted": block.counted,
        **part,
        "counts": Counts(count, count / 2).to_json(),
    }
    marker["seconds"] = dict.fromkeys(plan.PHASES, 0.25)
    block.locations.staged.write(block.part, data)
    block.locations.staged.write(block.marker, json.dumps(marker).encode())
    return marker


def publish_month(paths: Paths) -> dict[str, Any]:
    (month,) = plan_months(paths)
    month.done |= {block: score_block(block) for block in month.open}
    plan.publish_month(month, {"version": 1})
    manifest: dict[str, Any] = json.loads((paths.predictions / f"month={MONTH}" / files.MANIFEST).read_text())
    return manifest


def test_parts_of_another_form_of_the_model_are_scored_again(paths: Paths) -> None:
    (month,) = plan_months(paths)
    for block in month.choose_form("kernels").open[:2]:
        score_block(block)
    ((again,), _) = plan.plan_months(plan.Locations.resolve(SETTINGS, paths), [MONTH], MODEL, SPEC)
    assert (again.form, len(again.done)) == ("kernels", 2)
    assert again.choose_form("kernels") is again
    other = again.choose_form("compiled")
    assert not other.done
    other.done |= {block: score_block(block) for block in other.open}
    plan.publish_month(other, {})
    manifest = json.loads((paths.predictions / f"month={MONTH}" / files.MANIFEST).read_text())
    assert manifest["form"] == "compiled"
    assert not plan_months(paths)  # whatever the form of a later run


@pytest.mark.parametrize("change", ["nothing", "format", "a longer part"])
def test_a_published_month_is_scored_again_only_if_it_differs(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    manifest = publish_month(paths)
    assert manifest["key"] == {"columns": {"row": "r", "fare": "f"}, "model": MODEL, "format": formats.PREDICTIONS}
    assert manifest["made"] == {"version": 1, "worker_seconds": dict.fromkeys(plan.PHASES, 0.75)}
    if change == "format":
        monkeypatch.setattr(formats, "PREDICTIONS", formats.PREDICTIONS + 1)
    elif change == "a longer part":
        with (paths.predictions / f"month={MONTH}" / PARTS[0]).open("ab") as file:
            file.write(b"x")
    planned = [(block.name, block.rows) for month in plan_months(paths) for block in month.open]
    assert planned == ([] if change == "nothing" else [*zip(PARTS, GROUPS, strict=True)])


def test_labels_that_arrive_later_score_nothing_again_and_say_that_the_counts_are_old(paths: Paths) -> None:
    (month,) = plan_months(paths)
    score_block(month.choose_form("compiled").blocks[1])
    describe_prepared(paths, label="b", other="c")
    (month,) = plan_months(paths)
    assert [block.name for block in month.open] == [PARTS[0], PARTS[2]]
    manifest = publish_month(paths)
    assert (manifest["counted"], manifest["counts"]["rows"]) == (None, sum(GROUPS))
    shutil.rmtree(paths.predictions)
    assert publish_month(paths)["counted"] == month.counted
    describe_prepared(paths, label="b", fare="g")
    assert len(plan_months(paths)) == 1


def test_identifiers_stand_beside_the_predictions_and_are_part_of_the_key(paths: Paths) -> None:
    publish_month(paths)
    planned, _ = plan.plan_months(plan.Locations.resolve(SETTINGS, paths), [MONTH], MODEL, SPEC, ["parcel_id"])
    assert planned[0].key["id_columns"] == ["parcel_id"]
    assert {block.id_columns for block in planned[0].open} == {("parcel_id",)}
    numbers, scores = pa.array([0, 1], pa.int64()), pa.array([0.25, 0.5], pa.float32())
    data = worker.encode_part(numbers, scores, {"parcel_id": pa.array(["a", None])})
    expected = {"row": [0, 1], "probability": [0.25, 0.5], "parcel_id": ["a", None]}
    assert pq.read_table(pa.BufferReader(data)).to_pydict() == expected


@pytest.mark.parametrize("damage", ["", "cut", "other bytes", "no part", "no marker"])
def test_finished_parts_are_kept_if_they_are_what_their_marker_says(paths: Paths, damage: str) -> None:
    (month,) = plan_months(paths)
    score_block(month.blocks[1])
    staged = paths.staging / "predictions"
    part = staged / month.blocks[1].part
    data = part.read_bytes()
    if damage in {"no part", "no marker"}:
        (part if damage == "no part" else staged / month.blocks[1].marker).unlink()
    elif damage:
        part.write_bytes(data[:-1] if damage == "cut" else bytes(reversed(data)))
    (again,) = plan_months(paths)
    assert [block.name for block in again.open] == (PARTS if damage else [PARTS[0], PARTS[2]])
    assert [marker["rows"] for marker in again.done.values()] == ([] if damage else [GROUPS[1]])


def test_what_a_killed_worker_began_is_not_published(paths: Paths) -> None:
    (month,) = plan_months(paths)
    month.locations.staged.write(f"{month.staged}/.part-00000.parquet.1.tmp", b"begun")
    publish_month(paths)
    assert {path.name for path in (paths.predictions / f"month={MONTH}").iterdir()} == {*PARTS, files.MANIFEST}
    assert month.locations.staged.list_folders() == []


def test_incomplete_months_are_not_published(paths: Paths) -> None:
    (month,) = plan_months(paths)
    month.done |= {block: score_block(block, 2) for block in month.blocks}
    with pytest.raises(TiplineError, match="do not have the month's rows"):
        plan.publish_month(month, {})
    month.done |= {block: score_block(block) for block in month.blocks}
    month.locations.staged.remove_files([month.blocks[2].part])
    with pytest.raises(TiplineError, match="are missing"):
        plan.publish_month(month, {})
    assert not paths.predictions.exists()


def test_staged_parts_of_other_models_are_removed_and_failed_months_are_left_alone(paths: Paths) -> None:
    (other,), (now,) = plan_months(paths, "n" * 64), plan_months(paths)
    for block in (other.blocks[0], now.blocks[0]):
        score_block(block)
    plan.remove_stale_staging(now.locations, [now], [MONTH])
    assert len(now.locations.staged.list_folders()) == 4
    plan.remove_stale_staging(now.locations, [now], [])
    assert now.locations.staged.list_folders() == [now.staged, now.staged + plan.MARKERS]


@pytest.mark.parametrize("address", ["ftp://bucket/trips", "s3://", "gs:///"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(UsageError, match="s3://BUCKET/FOLDER"):
        storage.open_storage(address)


@pytest.mark.parametrize(
    ("address", "package", "extra"), [("gs://bucket/trips", "gcsfs", "gcs"), ("az://bucket/trips", "adlfs", "azure")]
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, address: str, package: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"needs the package {package}(.|\n)*'tipline\[{extra}\]'"):
        storage.open_storage(address).check_access()


@pytest.mark.parametrize("trips", ["az://bucket/trips", "data/trips", ""])
def test_predictions_never_replace_the_months(paths: Paths, monkeypatch: pytest.MonkeyPatch, trips: str) -> None:
    monkeypatch.chdir(paths.root)
    with pytest.raises(UsageError, match="would replace the prepared months"):
        plan.Locations.resolve(SETTINGS, paths, trips, f"{trips or 'data/trips'}/")
