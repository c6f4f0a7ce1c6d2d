"""Labels in files of their own are joined to the trips by identifier, late and in pieces, and every one is counted."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import factory, servers, workbench
from tests.conftest import ROOT
from tests.test_dialects import create_schema
from tipline import files
from tipline.errors import TiplineError, UsageError
from tipline.ingest import labels as labels_module
from tipline.ingest import prepare, transfer
from tipline.ingest.labels import LabelFiles
from tipline.ingest.readers import LABELS
from tipline.ingest.schema import Schema
from tipline.paths import Paths, month_folder
from tipline.storage import Storage

pytestmark = workbench.MLFLOW_WARNINGS
MONTH, LATE = "2025-01", "2024-01"
ID, CODE = {"type": "identifier"}, {"type": "identifier"}
SCHEMA = create_schema({"trip": ID, "code": CODE, "tip": {"type": "number"}, "late": {"type": "boolean"}})
PAID = create_schema({"trip": ID, "payment": {"type": "category", "aliases": {"cash": ["cash", "1"], "card": ["2"]}}})
NONE = {"incomplete": 0, "duplicates": 0, "conflicting": 0, "unmatched": 0, "replaced": 0, "unlabelled": 0}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_csv(path, rows)


def join(
    folder: Path, trips: pa.Table, pieces: list[list[dict[str, Any]]], on: str, columns: str, schema: Schema = SCHEMA
) -> factory.Prepared:
    """Prepare trips with the labels of some CSV files."""
    (folder / "month").mkdir(parents=True)
    trips = trips.append_column("sent", pa.array(["2025-01-02 03:04:05"] * len(trips)))
    pq.write_table(trips, folder / "month" / "trips.parquet")
    for number, piece in enumerate(pieces):
        write_csv(folder / "month" / LABELS / f"{number}.csv", piece)
    source = LabelFiles(folder / "month" / LABELS, tuple(on.split()), tuple(columns.split()))
    prepared, storage = month_folder(folder, MONTH), Storage(str(folder))
    prepared.mkdir()
    manifest = prepare.prepare_month(folder / "month", prepared, schema, MONTH, source)
    assert prepare.find_prepared(storage, folder / "month", schema, MONTH, source) == manifest
    assert prepare.find_prepared(storage, folder / "month", schema, MONTH) is None
    return factory.Prepared(prepared, manifest)


@pytest.mark.parametrize("numbers", [[1, 22, 333, 22], ["a", "bb", "a text of more than 16 letters", "bb"]])
def test_the_last_label_counts_and_duplicates_conflicts_and_unmatched_labels_are_counted(
    tmp_path: Path, numbers: list[Any]
) -> None:
    one, two, three = numbers[:3]
    trips = pa.table({"trip": [*numbers, None], "tip": [None, None, 9.5, None, 7.5]})
    first = [{"trip": one, "tip": 1}, {"trip": f" {two} ", "tip": 2}, {"trip": "nobody", "tip": 3}]
    second = [{"trip": two, "tip": "2.0"}, {"trip": one, "tip": 5}, {"trip": "", "tip": 6}, {"trip": three, "tip": "?"}]
    made = join(tmp_path, trips, [first, second], "trip", "tip")
    assert made.values("tip") == [5, 2, 9.5, 2, 7.5]
    counts = {"rows": 7, "incomplete": 2, "duplicates": 2, "conflicting": 1, "unmatched": 1, "matched": 3}
    assert made.manifest["labels"] == NONE | counts
    assert made.counts == (5, 5, 0)


def test_two_columns_are_one_key_and_the_file_replaces_labels_of_the_trips(tmp_path: Path) -> None:
    trips = pa.table({"trip": ["ab", "a", "a", "x"], "code": ["c", "bc", None, "y"], "tip": [1.0, 2.0, 3.0, None]})
    trips = trips.append_column("late", pa.array([True, None, True, None]))
    rows = [{"trip": "a", "code": "bc", "tip": 5, "late": "no"}, {"trip": "ab", "code": "c", "tip": 6, "late": "yes"}]
    made = join(tmp_path, trips, [rows], "trip code", "tip late")
    assert [made.values("tip"), made.values("late")] == [[6, 5, 3, None], [True, False, True, None]]
    assert made.manifest["labels"] == NONE | {"rows": 2, "matched": 2, "replaced": 1, "unlabelled": 1}


def test_values_of_categories_are_those_of_the_schema_and_an_edit_of_them_prepares_again(tmp_path: Path) -> None:
    trips = pa.table({"trip": ["a", "b", "c"], "payment": ["voucher", None, None]})
    made = join(
        tmp_path, trips, [[{"trip": "b", "payment": "1"}, {"trip": "c", "payment": "3"}]], "trip", "payment", PAID
    )
    assert made.values("payment") == ["voucher", "cash", "3"]
    edited = PAID.model_copy(deep=True)
    edited.columns["payment"].aliases["coin"] = ("3",)
    source = LabelFiles(tmp_path / "month" / LABELS, ("trip",), ("payment",))
    assert prepare.find_prepared(Storage(str(tmp_path)), tmp_path / "month", PAID, MONTH, source)
    assert prepare.find_prepared(Storage(str(tmp_path)), tmp_path / "month", edited, MONTH, source) is None
    write_csv(source.folder / "1.csv", [{"trip": "a", "payment": "2"}])
    assert prepare.find_prepared(Storage(str(tmp_path)), tmp_path / "month", PAID, MONTH, source) is None


@pytest.mark.parametrize("bits", [64, 3, 0])
def test_every_label_is_the_one_of_its_identifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Also if many hashes have their first parts in common."""

    def hash_badly(columns: pa.RecordBatch) -> Any:
        first, second = hash_rows(columns)
        return first % np.uint64(2**bits) if bits < 64 else first, second

    hash_rows = labels_module.hash_rows
    monkeypatch.setattr(labels_module, "hash_rows", hash_badly)
    workbench.small_row_groups(monkeypatch, 100)
    random = np.random.default_rng(bits)
    texts = ["".join(random.choice(list("ab é\0"), random.integers(1, 30))) for _ in range(300)]
    texts = sorted({text.strip() for text in texts if text.strip(" \0")})
    rows = [{"trip": texts[i], "tip": int(i % 7)} for i in random.integers(0, len(texts) // 2, 400)]
    expected = {row["trip"]: float(row["tip"]) for row in rows}
    (tmp_path / "labels").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labels" / "a")
    labels = labels_module.Labels(LabelFiles(tmp_path / "labels", ("trip",), ("tip",)), SCHEMA, MONTH)
    trips = pa.record_batch({"trip": pa.array(texts), "tip": pa.nulls(len(texts), pa.float64())})
    filled = pa.Table.from_batches([labels.fill(trips.slice(0, 99)), labels.fill(trips.slice(99))])
    assert filled["tip"].to_pylist() == [expected.get(text) for text in texts]
    assert labels.counts == NONE | {
        "rows": 400,
        "duplicates": 400 - len(expected),
        "matched": len(expected),
        "unlabelled": len(texts) - len(expected),
    }


@pytest.mark.parametrize("lacking", ["trip", "tip"])
def test_label_files_without_a_column_stop_with_one_message(tmp_path: Path, lacking: str) -> None:
    row = {name: 1 for name in ("trip", "tip", "note") if name != lacking}
    with pytest.raises(TiplineError, match=f"lacks columns that the schema needs: {lacking}") as caught:
        join(tmp_path, pa.table({"trip": ["1"]}), [[row]], "trip", "tip")
    assert caught.value.parts[1] == f"labels 0.csv, month {MONTH}"


@pytest.mark.parametrize("pieces", [[[{"trip": "", "tip": ""}]], [[{"trip": "b", "tip": 1}]]])
def test_labels_of_no_trip_change_nothing(tmp_path: Path, pieces: Any) -> None:
    made = join(tmp_path, pa.table({"trip": ["a"], "tip": [1.5]}), pieces, "trip", "tip")
    assert (made.values("tip"), made.manifest["labels"]["matched"]) == ([1.5], 0)


# ---- the stages ----


def write_schema(paths: Paths) -> str:
    """Write tipline's own schema with an identifier and a tip that may be missing."""
    values = yaml.safe_load((ROOT / "src/tipline/ingest/schema.yaml").read_text())
    values["columns"]["trip_id"] = {"type": "identifier", "meaning": "identifier", "names": {"2009-01": "trip_id"}}
    values["columns"]["tip_amount"]["required"] = False
    (paths.root / "schema.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return "schema.yaml"


def read_month(paths: Paths) -> dict[str, Any]:
    months: list[dict[str, Any]] = workbench.read_json(paths.monitoring / "months.json")
    return next(month for month in months if month["month"] == LATE)


@pytest.mark.usefixtures("_on_cluster")
def test_a_month_is_scored_without_labels_and_counted_again_when_they_arrive(
    scored_project: Paths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    run_cli: Callable[..., tuple[int, str]],
) -> None:
    workbench.small_row_groups(monkeypatch)
    paths, published, late = scored_project, tmp_path / "published", tmp_path / "labels"
    published_with_labels = read_month(paths)
    (raw,) = paths.raw(LATE).iterdir()
    month = pq.read_table(raw, partitioning=None)
    month = month.append_column("trip_id", pa.array(range(len(month))))
    for folder in (published, late):
        folder.mkdir()
    pq.write_table(month.drop_columns("tip_amount"), published / f"{LATE}.parquet")
    workbench.change_settings(
        paths,
        source="../published/{month}.parquet",
        schema=write_schema(paths),
        labels={"source": "../labels/{month}-*.csv", "on": ["trip_id"]},
    )
    shutil.rmtree(paths.predictions / f"month={LATE}")

    def run_stages() -> dict[str, Any]:
        caplog.clear()
        for stage in ("download", "prepare"):
            workbench.run_month(paths, stage, LATE)
        workbench.run(paths, "score", "monitor")
        return read_month(paths)

    assert run_stages()["labelled_rows"] == 0
    assert f"{LATE}: no labels yet" in caplog.messages
    predictions = workbench.read_tree(paths.predictions)
    for command in (("verify", LATE), ("explain", LATE, "7")):
        code, printed = run_cli(paths.root, *command)
        assert code == 0, printed

    labels = [{"trip_id": f"{row}", "tip": tip} for row, tip in enumerate(month["tip_amount"].to_pylist())]
    random = np.random.default_rng(0)
    shuffled = [labels[row] for row in random.permutation(len(labels))]
    wrong = [{"trip_id": row["trip_id"], "tip": row["tip"] + 1} for row in shuffled[3000:3100]]
    write_labels = [[*shuffled[:3000], *wrong], [*shuffled[3000:], *shuffled[:50], {"trip_id": "x", "tip": 1}]]
    for number, piece in enumerate(write_labels):
        write_csv(
            late / f"{LATE}-{number}.csv", [{"trip_id": row["trip_id"], "tip_amount": row["tip"]} for row in piece]
        )
        found = run_stages()
        assert found["labelled_rows"] == (3100, 5000)[number]
        assert workbench.read_tree(paths.predictions) == predictions
        assert f"counting again, because labels, groups or times have changed: {LATE}" in caplog.messages
    assert found | {"unusual": []} == published_with_labels
    assert found["unusual"] == ["1.9% labels that contradict each other"]
    counts = workbench.read_json(paths.prepared(LATE) / files.MANIFEST)["labels"]
    expected = {"rows": 5151, "duplicates": 150, "conflicting": 100, "unmatched": 1, "matched": 5000}
    assert counts == NONE | expected
    with (paths.monitoring / "prepared.csv").open(newline="") as file:
        rows = {row["month"]: row["labels"] for row in csv.DictReader(file)}
    assert [rows["2009-01"], rows[LATE][:22]] == ["", "rows: 5151; incomplete"]


def test_a_target_that_the_schema_fills_is_refused(make_project: Callable[..., Paths]) -> None:
    paths = make_project(labels={"source": "{month}.csv", "on": ["trip_id"]})
    model = {"target": "extra > 0", "columns": ["vendor"]}
    workbench.change_settings(paths, schema=write_schema(paths), model=model)
    with pytest.raises(UsageError, match="fills missing values of extra, so trips without a label would seem to have"):
        workbench.load_settings(paths)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with servers.shelf() as server:
        yield server


def test_labels_are_fetched_with_the_month_or_when_they_arrive(
    run_cli: Callable[..., tuple[int, str]],
    make_project: Callable[..., Paths],
    shelf: servers.Shelf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths = make_project()
    where: dict[str, Any] = {"source": shelf.address("/labels/{month}.csv"), "on": ["trip_id"]}
    months = [*workbench.MONTHS, MONTH]
    workbench.change_settings(
        paths, source=shelf.address("/{month}.csv"), schema=write_schema(paths), labels=where, months=months
    )
    data, labels = b"a,b\n1,2\n" * 1000, b"trip_id,tip_amount\n1,2\n" * 1000
    shelf.files[f"/{MONTH}.csv"] = data

    def download() -> tuple[int, str, list[str]]:
        shelf.log.clear()
        caplog.clear()
        code, printed = run_cli(paths.root, "download", MONTH)
        return code, printed, [request.path for request in shelf.log if request.method == "GET" and request.sent]

    code, _, _ = download()
    assert (code, f"{MONTH}: no labels yet" in caplog.messages) == (0, True)
    without = workbench.read_tree(paths.root / "data/raw")
    shelf.files[f"/labels/{MONTH}.csv"], shelf.cut_after = labels, 100
    assert download()[0] == 1
    assert workbench.read_tree(paths.root / "data/raw") == without
    assert not [path for path in (paths.staging / "raw").iterdir() if path.is_dir()]
    shelf.cut_after = None
    for fetched in (labels, labels * 2):
        shelf.files[f"/labels/{MONTH}.csv"] = fetched
        code, printed = run_cli(paths.root, "upstream")
        assert (code, f"{MONTH}: labels: {'new' if fetched == labels else f'{MONTH}.csv: size'}" in printed) == (
            6,
            True,
        )
        assert download()[0] == 0
        assert workbench.read_tree(paths.raw(MONTH)) == {f"{MONTH}.csv": data, f"{LABELS}/{MONTH}.csv": fetched}
        entry = workbench.read_json(paths.raw_manifest(MONTH))["labels"]
        assert (entry["address"], entry["bytes"]) == (shelf.address(f"/labels/{MONTH}.csv"), len(fetched))
    before = workbench.read_tree(paths.root / "data/raw")
    shelf.files[f"/labels/{MONTH}.csv"] = b"<html>, sorry</html>"
    code, printed, _ = download()
    assert (code, where["source"].replace("{month}", MONTH) in printed) == (1, True)
    del shelf.files[f"/labels/{MONTH}.csv"]
    code, printed, _ = download()
    assert (code, "The source does not have this month" in printed) == (5, True)
    assert workbench.read_tree(paths.root / "data/raw") == before
    workbench.change_settings(paths, labels={"source": None, "on": []})
    assert download()[0] == 0
    assert workbench.read_tree(paths.root / "data/raw") == without
