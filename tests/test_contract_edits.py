"""What is new in a year is an edit of the schema: months on which it does not bear are left alone."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import factory, workbench
from tests.conftest import ROOT, settings_values
from tests.story import Story, start
from tipline import cluster, files
from tipline.ingest import simulate
from tipline.model import artifact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]
    Edit = Callable[[dict[str, Any]], None]

OLD, TODAY, NEW = "2009-01", "2024-01", "2026-01"
CONTRACT = "schema.yaml"
WEATHER = {"type": "number", "meaning": "for rain", "unit": "dollars", "names": {NEW: "Weather_fee"}, "range": [0, 9]}
HAILED = {
    "type": "category",
    "meaning": "how it was hailed",
    "names": {NEW: "hailed"},
    "aliases": {"app": ["a"], "street": ["s"]},
}


def edit(root: Path, change: Edit) -> None:
    """Change the project's own schema."""
    values = yaml.safe_load((root / CONTRACT).read_text())
    change(values)
    (root / CONTRACT).write_text(yaml.safe_dump(values, sort_keys=False))


def add_columns(values: dict[str, Any]) -> None:
    """What a new year brings: an era, a fee and a category."""
    values["eras"][NEW] = "the fee for rain"
    values["columns"] |= {"weather_fee": WEATHER, "hailed": HAILED}


@pytest.fixture
def project(run_cli: Run, make_project: MakeProject) -> Paths:
    """A project with its own schema, and a month of 2009 and one of today prepared."""
    paths = make_project(schema=CONTRACT)
    shutil.copyfile(ROOT / "src/tipline/months/schema.yaml", paths.root / CONTRACT)
    words: list[dict[str, Any]] = [{}, {"Payment_Type": "Prepaid"}, {"Payment_Type": None}, {"Payment_Type": "CASH"}]
    factory.write_2009(paths.raw(OLD) / "month.parquet", *words)
    factory.write_tpep(paths.raw(TODAY) / "month.parquet", {}, {"payment_type": 2}, {"payment_type": 9})
    for month in (OLD, TODAY):
        assert run_cli(paths.root, "prepare", month)[0] == 0
    return paths


def state(paths: Paths, month: str) -> dict[str, tuple[int, int, bytes]]:
    """Which files a prepared month is: inode, time and bytes of each."""
    found = {}
    for path in paths.prepared(month).iterdir():
        facts = path.stat()
        found[path.name] = (facts.st_ino, facts.st_mtime_ns, path.read_bytes())
    return found


def manifest(paths: Paths, month: str) -> dict[str, Any]:
    """The manifest of a prepared month."""
    found: dict[str, Any] = json.loads((paths.prepared(month) / "_manifest.json").read_text())
    return found


def values(paths: Paths, month: str, column: str) -> list[Any]:
    """A column of a prepared month."""
    found: list[Any] = pq.read_table(paths.prepared_file(month))[column].to_pylist()
    return found


def prepared_anew(paths: Paths, run_cli: Run, caplog: pytest.LogCaptureFixture) -> set[str]:
    """Prepare both months; give those that were not kept."""
    anew = set()
    for month in (OLD, TODAY):
        before = state(paths, month)
        caplog.clear()
        code, printed = run_cli(paths.root, "prepare", month)
        assert code == 0, printed
        kept = "kept, prepared before" in caplog.text
        assert kept == (state(paths, month) == before)
        if not kept:
            anew.add(month)
    return anew


# ---- edits that bear on no month that is there ----


def new_column(values: dict[str, Any]) -> None:
    add_columns(values)


def new_value(values: dict[str, Any]) -> None:
    values["columns"]["payment_type"]["aliases"]["crypto"] = ["7", "BTC"]


def new_spelling(values: dict[str, Any]) -> None:
    values["columns"]["payment_type"]["aliases"]["cash"].append("coins")


def new_name(values: dict[str, Any]) -> None:
    values["eras"][NEW] = "fares under another name"
    values["columns"]["fare_amount"]["names"][NEW] = ["base_fare", "Fare"]


def new_words_about_it(values: dict[str, Any]) -> None:
    values["version"] += 1
    values["eras"][OLD] = "said in other words"
    values["columns"]["fare_amount"] |= {"meaning": "the fare", "unit": "US dollars"}


def new_ignored_name(values: dict[str, Any]) -> None:
    values["ignored"].append("weather")


def now_required(values: dict[str, Any]) -> None:
    values["columns"]["mta_tax"]["required"] = True


def now_known_late(values: dict[str, Any]) -> None:
    values["columns"]["tolls_amount"]["known_after_outcome"] = True


def column_gone_that_no_month_has(values: dict[str, Any]) -> None:
    del values["columns"]["cbd_congestion_fee"]


NOT_BEARING: list[Edit] = [
    new_column,
    new_value,
    new_spelling,
    new_name,
    new_words_about_it,
    new_ignored_name,
    now_required,
    now_known_late,
    column_gone_that_no_month_has,
]


@pytest.mark.parametrize("change", NOT_BEARING)
def test_an_edit_for_other_months_keeps_the_very_files(
    run_cli: Run, project: Paths, caplog: pytest.LogCaptureFixture, change: Edit
) -> None:
    edit(project.root, change)
    assert prepared_anew(project, run_cli, caplog) == set()


def test_a_comment_in_the_contract_keeps_the_very_files(
    run_cli: Run, project: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    text = (project.root / CONTRACT).read_text()
    (project.root / CONTRACT).write_text("# A comment.\n" + text.replace("type: number", "type: number  # a double"))
    assert prepared_anew(project, run_cli, caplog) == set()


def test_all_of_a_new_year_at_once_keeps_the_old_months(
    run_cli: Run, project: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    for change in NOT_BEARING:
        edit(project.root, change)
    assert prepared_anew(project, run_cli, caplog) == set()


# ---- edits that bear on a month ----


def spelling_of_2009_moved(values: dict[str, Any]) -> None:
    aliases = values["columns"]["payment_type"]["aliases"]
    aliases["credit"].remove("credit")
    aliases["card"] = ["credit"]


def spelling_of_today_moved(values: dict[str, Any]) -> None:
    aliases = values["columns"]["payment_type"]["aliases"]
    aliases["credit"].remove("1")
    aliases["card"] = ["1"]


def value_renamed(values: dict[str, Any]) -> None:
    aliases = values["columns"]["payment_type"]["aliases"]
    aliases["card"] = aliases.pop("credit")


def spelling_forgotten(values: dict[str, Any]) -> None:
    values["columns"]["payment_type"]["aliases"]["cash"].remove("2")


def filled_otherwise(values: dict[str, Any]) -> None:
    values["columns"]["payment_type"]["fill"] = "cash"


def filled_no_more(values: dict[str, Any]) -> None:
    del values["columns"]["extra"]["fill"]


def other_range(values: dict[str, Any]) -> None:
    values["columns"]["airport_fee"]["range"] = [0, 1]


def unknown_word_understood(values: dict[str, Any]) -> None:
    values["columns"]["payment_type"]["aliases"]["in advance"] = ["prepaid"]


def unknown_word_understood_as_it_is(values: dict[str, Any]) -> None:
    values["columns"]["payment_type"]["aliases"]["Prepaid"] = ["Prepaid"]


def column_taken_out(values: dict[str, Any]) -> None:
    del values["columns"]["airport_fee"]
    values["ignored"].append("airport_fee")


def column_taken_in(values: dict[str, Any]) -> None:
    values["ignored"].remove("store_and_fwd_flag")
    values["columns"]["stored"] = HAILED | {"names": {TODAY: "store_and_fwd_flag"}}
    values["eras"][TODAY] = "stored trips"


def other_type(values: dict[str, Any]) -> None:
    values["columns"]["passenger_count"]["type"] = "number"


def column_renamed(values: dict[str, Any]) -> None:
    values["columns"] = {("fare" if key == "extra" else key): one for key, one in values["columns"].items()}


BEARING: list[tuple[Edit, set[str]]] = [
    (spelling_of_2009_moved, {OLD}),
    (spelling_of_today_moved, {TODAY}),
    (value_renamed, {OLD, TODAY}),
    (spelling_forgotten, {TODAY}),
    (filled_otherwise, {OLD, TODAY}),
    (filled_no_more, {OLD, TODAY}),
    (other_range, {TODAY}),
    (unknown_word_understood, {OLD}),
    (unknown_word_understood_as_it_is, {OLD}),
    (column_taken_out, {TODAY}),
    (column_taken_in, {TODAY}),
    (other_type, {OLD, TODAY}),
    (column_renamed, {OLD, TODAY}),
]


@pytest.mark.parametrize(("change", "months"), BEARING)
def test_an_edit_that_bears_on_a_month_prepares_it_anew(
    run_cli: Run, project: Paths, caplog: pytest.LogCaptureFixture, change: Edit, months: set[str]
) -> None:
    edit(project.root, change)
    if change is column_renamed:
        columns = ["vendor", "pickup_datetime", "trip_distance", "payment_type", "fare_amount"]
        workbench.change_settings(project, model={"columns": columns})
    assert prepared_anew(project, run_cli, caplog) == months
    assert prepared_anew(project, run_cli, caplog) == set()


def test_an_unknown_word_is_understood_once_the_contract_has_it(run_cli: Run, project: Paths) -> None:
    assert values(project, OLD, "payment_type") == ["credit", "Prepaid", "unknown", "cash"]
    assert manifest(project, OLD)["unknown_aliases"] == {"payment_type: Prepaid": 1}
    edit(project.root, unknown_word_understood)
    assert run_cli(project.root, "prepare", OLD)[0] == 0
    assert values(project, OLD, "payment_type") == ["credit", "in advance", "unknown", "cash"]
    assert manifest(project, OLD)["unknown_aliases"] == {}


def test_a_month_that_lacks_what_is_now_required_is_refused_and_left_as_it_is(run_cli: Run, project: Paths) -> None:
    before = state(project, OLD)
    edit(project.root, lambda values: values["columns"]["airport_fee"].update(required=True))
    code, printed = run_cli(project.root, "prepare", OLD)
    assert code == 1
    assert "needs: airport_fee (as airport_fee)" in printed
    assert f"month {OLD}" in printed
    assert state(project, OLD) == before
    assert run_cli(project.root, "prepare", TODAY)[0] == 0


# ---- what is damaged is never kept ----


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [(name, damage) for name in ("trips.parquet", "_quarantine.parquet") for damage in (cut, flip, remove, empty)]
DAMAGES += [("_manifest.json", damage) for damage in (cut, flip, remove, empty)]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_prepared_month_that_is_damaged_is_prepared_again(
    run_cli: Run, project: Paths, name: str, damage: Callable[[Path], None]
) -> None:
    good = factory.contents(project.prepared(OLD))
    damage(project.prepared(OLD) / name)
    code, printed = run_cli(project.root, "prepare", OLD)
    assert code == 0, printed
    assert factory.contents(project.prepared(OLD)) == good


def test_a_month_whose_published_bytes_changed_is_prepared_again(run_cli: Run, project: Paths) -> None:
    factory.write_2009(project.raw(OLD) / "month.parquet", {"Fare_Amt": 9.5})
    assert run_cli(project.root, "prepare", OLD)[0] == 0
    assert values(project, OLD, "fare_amount") == [9.5]


def test_a_published_file_under_another_name_is_the_same_month(
    run_cli: Run, project: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    (project.raw(OLD) / "month.parquet").rename(project.raw(OLD) / "yellow.parquet")
    assert prepared_anew(project, run_cli, caplog) == set()


# ---- the new month ----


def write_new_month(path: Path, rows: int = 3000) -> None:
    """A simulated month of 2026 that has the new columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    simulate.simulate_month(path, NEW, rows, 1)
    table = pq.read_table(path)
    table = table.append_column("Weather_fee", pa.array([(row % 4) / 2 for row in range(rows)]))
    table = table.append_column("hailed", pa.array(["A", "s", None][row % 3] for row in range(rows)))
    pq.write_table(table, path)


def test_a_month_with_the_new_columns_comes_out_with_them(run_cli: Run, project: Paths) -> None:
    write_new_month(project.raw(NEW) / "month.parquet", 12)
    assert run_cli(project.root, "prepare", NEW)[0] == 0
    assert manifest(project, NEW)["unknown_columns"] == ["Weather_fee", "hailed"]
    edit(project.root, add_columns)
    assert run_cli(project.root, "prepare", NEW)[0] == 0
    assert values(project, NEW, "weather_fee") == [0.0, 0.5, 1.0, 1.5] * 3
    assert values(project, NEW, "hailed") == ["app", "street", None] * 4
    made = manifest(project, NEW)
    assert (made["unknown_columns"], made["unknown_aliases"], made["era"]) == ([], {}, NEW)
    assert "weather_fee" not in pq.read_schema(project.prepared_file(OLD)).names


def test_a_fee_that_old_months_lack_is_trained_on_and_scored_as_if_they_had_been_prepared_anew(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
    kept = new_year(tmp_path / "kept")
    for month in workbench.MONTHS[:3]:
        assert "weather_fee" not in pq.read_schema(kept.prepared_file(month)).names
    (tmp_path / "anew").mkdir()
    anew = workbench.copy_project(kept, tmp_path / "anew")
    workbench.prepare_again(anew, *workbench.MONTHS[:3])
    assert "weather_fee" in pq.read_schema(anew.prepared_file(OLD)).names
    results = [rest_of(paths) for paths in (kept, anew)]
    assert results[0] == results[1]
    assert len([name for name in results[0] if "/part-" in name]) == 4


def new_year(folder: Path) -> Paths:
    """A project whose schema gained its columns after three months were prepared, and before the fourth was."""
    folder.mkdir()
    columns = [*settings_values()["model"]["columns"], "weather_fee", "hailed"]
    categories = settings_values()["model"]["categories"] | {"hailed": ["app", "street"]}
    paths = workbench.write_project(folder / "project", schema=CONTRACT, train={"rows": 1500})
    shutil.copyfile(ROOT / "src/tipline/months/schema.yaml", paths.root / CONTRACT)
    workbench.change_settings(paths, months=list(workbench.MONTHS[:3]), demo={"rows": 2000})
    workbench.run(paths, "download", "prepare")
    before = [state(paths, month) for month in workbench.MONTHS[:3]]
    edit(paths.root, add_columns)
    workbench.change_settings(
        paths, months=[*workbench.MONTHS[:3], NEW], model={"columns": columns, "categories": categories}
    )
    write_new_month(paths.raw(NEW) / "month.parquet")
    workbench.run(paths, "prepare")
    assert [state(paths, month) for month in workbench.MONTHS[:3]] == before
    return paths


def rest_of(paths: Paths) -> dict[str, Any]:
    """Run what comes after `prepare`, with the challenger as champion; give model, evaluation and scores."""
    workbench.run(paths, "sample", "train")
    shutil.copytree(paths.challenger, paths.champion)
    digest = artifact.read_digest(paths.champion)
    files.write_json(paths.champion_ref, {"name": "tip-probability", "version": 1, "run": "none", "digest": digest})
    workbench.run(paths, "evaluate", "score", "monitor")
    found = {name: (paths.challenger / name).read_bytes() for name in artifact.FILES}
    scores = factory.contents(paths.predictions)
    found |= {name: data for name, data in scores.items() if "/part-" in name}
    report = workbench.read_json(paths.evaluation)
    del report["made"]["rows"]  # the digest of the sample's file, which has the empty column or has it not
    return found | {"evaluation": report}


# ---- with dvc ----


@pytest.fixture(scope="module")
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A project in which all stages have run, told to dvc; then the schema's edit for a new month, and that month."""
    story = start(tmp_path_factory.mktemp("story") / "project")
    paths = workbench.copy_project(workbench.scored(request), story.root.parent)
    shutil.copyfile(ROOT / "src/tipline/months/schema.yaml", story.root / CONTRACT)
    workbench.change_settings(paths, schema=CONTRACT, source="published/{month}.parquet", cluster={"n_workers": 1})
    workbench.run(paths, "params")
    story.manifests["before"] = manifests(story)
    assert story.run("dvc", "commit", "--force").returncode == 0
    story.manifests["digests before"] = outputs(story)
    edit(story.root, add_columns)
    write_new_month(story.root / "published" / f"{NEW}.parquet", 1500)
    workbench.change_settings(paths, months=[*workbench.MONTHS, NEW])
    story.repro("new year", "score", "evaluate")
    return story


def manifests(story: Story) -> dict[str, str]:
    """The manifests of the published scores."""
    found = story.root.glob("data/predictions/month=*/_manifest.json")
    return {path.parent.name: path.read_text() for path in found}


def outputs(story: Story) -> dict[str, str]:
    """The digests of all that there is, as dvc.lock has them."""
    stages = yaml.safe_load((story.root / "dvc.lock").read_text())["stages"]
    return {one["path"]: one["md5"] for stage in stages.values() for one in stage.get("outs", [])}


def test_an_edit_for_a_new_month_scores_that_month_alone(story: Story) -> None:
    assert story.repros["new year"].code == 0, story.repros["new year"].output
    after = dict(story.manifests["new year"])
    assert json.loads(after.pop(f"month={NEW}"))["rows"] == 1500
    assert after == story.manifests["before"]
    assert len(after) == len(workbench.MONTHS)


def test_an_edit_for_a_new_month_downloads_samples_and_evaluates_nothing_again(story: Story) -> None:
    ran = story.repros["new year"].stages
    assert [name for name in ran if name.startswith("download")] == [f"download@{NEW}"]
    assert not [name for name in ran if name.startswith(("sample", "evaluate"))]
    for month in workbench.MONTHS:
        assert f"{month}: kept, prepared before" in story.repros["new year"].output


def test_an_edit_for_a_new_month_leaves_the_digests_of_all_else(story: Story) -> None:
    before, now = story.manifests["digests before"], outputs(story)
    new = {f"data/trips/month={NEW}", f"data/raw/{NEW}", f"data/raw/{NEW}.json"}
    assert set(now) - set(before) == new
    changed = {path for path, digest in before.items() if now[path] != digest}
    # The curve's report says how long it took; the champion's names a run of a registry that is new here.
    reports = {path for path in changed if path.startswith("reports/learning_curve")}
    assert changed - reports - {"models/champion"} == {"data/predictions"}


def test_the_new_month_has_its_new_columns_and_the_old_ones_have_not(story: Story) -> None:
    names = {
        month: pq.read_schema(story.root / f"data/trips/month={month}/trips.parquet").names
        for month in (*workbench.MONTHS, NEW)
    }
    assert [month for month, columns in names.items() if "weather_fee" in columns] == [NEW]
    told = json.loads((story.root / f"data/trips/month={NEW}/_manifest.json").read_text())
    assert (told["era"], told["unknown_columns"]) == (NEW, [])
