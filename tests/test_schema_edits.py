"""An edit of the schema prepares only those months again that it affects."""

import shutil
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import factory, workbench
from tests.conftest import ROOT, settings_values
from tipline import cluster, files
from tipline.ingest import simulate
from tipline.ingest.schema import load_schema
from tipline.model import artifact
from tipline.paths import Paths
from tipline.stages import prepare as stage
from tipline.storage import Storage

Run = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]

OLD, TODAY, NEW = "2009-01", "2024-01", "2026-01"
SCHEMA = "schema.yaml"
PACKAGED = ROOT / "src/tipline/ingest/schema.yaml"
WEATHER = {"type": "number", "meaning": "for rain", "unit": "dollars", "names": {NEW: "Weather_fee"}, "range": [0, 9]}
HAILED = {"type": "category", "meaning": "how it was hailed", "names": {NEW: "hailed"}}
HAILED |= {"aliases": {"app": ["a"], "street": ["s"]}}
Edit = dict[str, Any]  # dotted keys -> the new value; None removes a key, a list is appended to a list
NEW_COLUMNS: Edit = {f"eras.{NEW}": "the fee for rain", "columns.weather_fee": WEATHER, "columns.hailed": HAILED}

HARMLESS: dict[str, Edit] = {
    "new columns": NEW_COLUMNS,
    "new alias": {"columns.payment_type.aliases.cash": ["coins"]},
    "new name": {f"eras.{NEW}": "other names", f"columns.fare_amount.names.{NEW}": "base_fare"},
    "new words": {"version": 9, f"eras.{OLD}": "the first", "columns.fare_amount.meaning": "fare"},
    "now required": {"columns.mta_tax.required": True},
    "a column gone that no month has": {"columns.cbd_congestion_fee": None},
}
# Each edit, and the months that it affects.
HARMFUL: dict[str, tuple[Edit, set[str]]] = {
    "value renamed": (
        {"columns.payment_type.aliases.credit": None, "columns.payment_type.aliases.card": ["credit", "1"]},
        {OLD, TODAY},
    ),
    "alias forgotten": ({"columns.payment_type.aliases.voided": None, "columns.rate_code.aliases.JFK": None}, {TODAY}),
    "filled differently": ({"columns.payment_type.fill": "cash"}, {OLD, TODAY}),
    "other range": ({"columns.airport_fee.range": None}, {TODAY}),
    "unknown alias understood": ({"columns.payment_type.aliases.in advance": ["prepaid"]}, {OLD}),
    "unknown alias known": ({"columns.payment_type.aliases.Prepaid": ["Prepaid"]}, {OLD}),
    "column removed": ({"columns.airport_fee": None, "ignored": ["airport_fee"]}, {TODAY}),
    "column added": ({"ignored": None, "columns.stored": HAILED | {"names": {OLD: "store_and_fwd_flag"}}}, {TODAY}),
    "category opened": ({"columns.payment_type.open": True}, {OLD, TODAY}),
    "other type": ({"columns.passenger_count.type": "number"}, {OLD, TODAY}),
}


def edit_schema(root: Path, edit: Edit) -> None:
    values = yaml.safe_load((root / SCHEMA).read_text())
    for keys, value in edit.items():
        *sections, last = keys.split(".")
        section = reduce(getitem, sections, values)
        section[last] = section[last] + value if isinstance(section.get(last), list) and value else value
        if value is None:
            del section[last]
    (root / SCHEMA).write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.fixture
def project(run_cli: Run, make_project: MakeProject) -> Paths:
    """A project with its own schema, in which a month of 2009 and one of today are prepared."""
    paths = make_project(schema=SCHEMA)
    shutil.copyfile(PACKAGED, paths.root / SCHEMA)
    words: list[dict[str, Any]] = [{}, {"Payment_Type": "Prepaid"}, {"Payment_Type": None}, {"Payment_Type": "CASH"}]
    factory.write_2009(paths.raw(OLD) / "month.parquet", *words)
    factory.write_tpep(paths.raw(TODAY) / "month.parquet", {}, {"payment_type": 2}, {"payment_type": 9})
    for month in (OLD, TODAY):
        assert run_cli(paths.root, "prepare", month)[0] == 0
    return paths


def read_state(paths: Paths, month: str) -> dict[str, tuple[int, int, bytes]]:
    """Inode, time and bytes of each file of a prepared month."""
    found = {path.name: (path.stat(), path.read_bytes()) for path in paths.prepared(month).iterdir()}
    return {name: (stat.st_ino, stat.st_mtime_ns, data) for name, (stat, data) in found.items()}


def prepare(paths: Paths, month: str) -> bool:
    """Prepare a month unless it is prepared; return whether it was not."""
    settings, trips = workbench.load_settings(paths), Storage(str(paths.prepared(month).parent))
    schema = load_schema(paths.root / SCHEMA)
    before, is_new = read_state(paths, month), stage.prepare_month(settings, paths, schema, trips, month, force=False)
    assert (read_state(paths, month) != before) == is_new
    return is_new


def prepare_again(paths: Paths) -> set[str]:
    return {month for month in (OLD, TODAY) if prepare(paths, month)}


def test_edits_that_affect_no_month_keep_the_files(project: Paths) -> None:
    text = (project.root / SCHEMA).read_text()
    (project.root / SCHEMA).write_text("# A comment.\n" + text.replace("type: number", "type: number  # a double"))
    (project.raw(OLD) / "month.parquet").rename(project.raw(OLD) / "yellow.parquet")
    assert prepare_again(project) == set()
    for name, edit in HARMLESS.items():  # one after the other, and so all at once in the end
        edit_schema(project.root, edit)
        assert prepare_again(project) == set(), name


@pytest.mark.parametrize(("edit", "months"), HARMFUL.values(), ids=HARMFUL)
def test_an_edit_that_affects_a_month_prepares_it_again(project: Paths, edit: Edit, months: set[str]) -> None:
    edit_schema(project.root, edit)
    assert prepare_again(project) == months
    assert prepare_again(project) == set()


def test_a_changed_month_or_schema_is_followed_or_refused(run_cli: Run, project: Paths) -> None:
    def read_payments() -> list[str]:
        return list(pq.read_table(project.prepared_file(OLD))["payment_type"].to_pylist())

    assert read_payments() == ["credit", "Prepaid", "unknown", "cash"]
    edit_schema(project.root, HARMFUL["unknown alias understood"][0])
    assert run_cli(project.root, "prepare", OLD)[0] == 0
    assert read_payments() == ["credit", "in advance", "unknown", "cash"]
    assert factory.manifest_of(project.prepared(OLD))["unknown_aliases"] == {}
    before = read_state(project, OLD)
    edit_schema(project.root, {"columns.airport_fee.required": True})
    code, printed = run_cli(project.root, "prepare", OLD)
    assert (code, "needs: airport_fee (as airport_fee)" in printed) == (1, True)
    assert read_state(project, OLD) == before
    assert run_cli(project.root, "prepare", TODAY)[0] == 0
    factory.write_tpep(project.raw(TODAY) / "month.parquet", {"fare_amount": 9.5})
    assert run_cli(project.root, "prepare", TODAY)[0] == 0
    assert pq.read_table(project.prepared_file(TODAY))["fare_amount"].to_pylist() == [9.5]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def change(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:500] + bytes([data[500] ^ 0xFF]) + data[501:])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("trips.parquet", cut),
        ("trips.parquet", change),
        ("_quarantine.parquet", Path.unlink),
        ("_manifest.json", cut),
        ("_manifest.json", lambda path: path.write_bytes(b"")),
        ("_manifest.json", lambda path: path.rename(path.with_name("_receipt.json"))),  # as tipline 0.1 called it
    ],
)
def test_a_damaged_month_is_prepared_again(project: Paths, name: str, damage: Callable[[Path], Any]) -> None:
    good = factory.contents(project.prepared(OLD))
    damage(project.prepared(OLD) / name)
    assert prepare(project, OLD)
    assert factory.contents(project.prepared(OLD)) == good


def write_new_month(path: Path, rows: int = 1500) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    simulate.simulate_month(path, NEW, rows, 1)
    table = pq.read_table(path)
    table = table.append_column("Weather_fee", pa.array([(row % 4) / 2 for row in range(rows)]))
    pq.write_table(table.append_column("hailed", pa.array(["A", "s", None][row % 3] for row in range(rows))), path)


def test_old_months_without_a_new_column_train_and_score_as_if_they_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dask_address: str
) -> None:
    monkeypatch.setenv(cluster.ADDRESS, dask_address)
    old = workbench.MONTHS[:3]
    kept = workbench.write_project(tmp_path / "project", schema=SCHEMA, train={"rows": 1500}, demo={"rows": 2000})
    shutil.copyfile(PACKAGED, kept.root / SCHEMA)
    workbench.change_settings(kept, months=list(old))
    workbench.run(kept, "download", "prepare")
    before = [read_state(kept, month) for month in old]
    edit_schema(kept.root, NEW_COLUMNS)
    model = settings_values()["model"]
    model["columns"] += ["weather_fee", "hailed"]
    model["categories"]["hailed"] = ["app", "street"]
    workbench.change_settings(kept, months=[*old, NEW], model=model)
    write_new_month(kept.raw(NEW) / "month.parquet")
    workbench.run(kept, "prepare")
    assert [read_state(kept, month) for month in old] == before
    trips, manifest = pq.read_table(kept.prepared_file(NEW)), factory.manifest_of(kept.prepared(NEW))
    assert trips["weather_fee"].to_pylist()[:4] == [0.0, 0.5, 1.0, 1.5]
    assert trips["hailed"].to_pylist()[:3] == ["app", "street", None]
    assert (manifest["unknown_columns"], manifest["unknown_aliases"], manifest["era"]) == ([], {}, NEW)

    (tmp_path / "again").mkdir()
    again = workbench.copy_project(kept, tmp_path / "again")
    workbench.prepare_again(again, *old)
    assert "weather_fee" in pq.read_schema(again.prepared_file(OLD)).names
    results = [score_project(paths) for paths in (kept, again)]
    assert results[0] == results[1]
    assert len([name for name in results[0] if "/part-" in name]) == 4


def score_project(paths: Paths) -> dict[str, Any]:
    """Run the stages after `prepare` with the challenger as champion; return the model's files and the predictions."""
    workbench.run(paths, "sample", "train")
    shutil.copytree(paths.challenger, paths.champion)
    digest = artifact.read_digest(paths.champion)
    ref = {"name": "tip-probability", "version": 1, "run": "none", "digest": digest, "months": None}
    files.write_json(paths.champion_ref, ref)
    workbench.run(paths, "score")
    model = {name: (paths.challenger / name).read_bytes() for name in workbench.MODEL_FILES}
    return model | {name: data for name, data in factory.contents(paths.predictions).items() if "/part-" in name}
