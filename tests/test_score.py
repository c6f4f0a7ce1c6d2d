"""Every row is scored once, joins back to its trip, and survives whatever happens on the way."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil  # type: ignore[import-untyped]
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from distributed import Client

from tests import workbench
from tipline import cluster, files, processes, progress
from tipline.errors import MonthsFailedError, TiplineError
from tipline.model import artifact
from tipline.monitoring.counts import Counts
from tipline.scoring import plan, worker
from tipline.stages import score

if TYPE_CHECKING:
    from collections.abc import Callable

    from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS
PARTS = -(-5000 // workbench.GROUP_ROWS)


@pytest.fixture
def on_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let stages use the session's cluster, which outlives the tests as a team's does."""
    address = workbench.dask_cluster(request)
    monkeypatch.setenv(cluster.ADDRESS, address)
    return address


@pytest.fixture
def done(request: pytest.FixtureRequest) -> Paths:
    """The session's scored project, to read from."""
    return workbench.scored(request)


@pytest.fixture
def project(done: Paths, tmp_path: Path) -> Paths:
    """A scored project of the test's own."""
    return workbench.copy_project(done, tmp_path)


def folder(paths: Paths, month: str) -> Path:
    return paths.predictions / f"month={month}"


def manifest(paths: Paths, month: str) -> Any:
    return workbench.read_json(folder(paths, month) / files.MANIFEST)


def mtimes(paths: Paths) -> dict[str, int]:
    found = (path for path in paths.predictions.rglob("*") if path.is_file())
    return {str(path.relative_to(paths.predictions)): path.stat().st_mtime_ns for path in found}


def parts(paths: Paths) -> dict[str, bytes]:
    """All parts, without the manifests: these say how long it took."""
    return {name: data for name, data in workbench.read_tree(paths.predictions).items() if name.endswith(".parquet")}


def assert_whole(paths: Paths, month: str) -> None:
    """The manifest names exactly the files that are there, and their digests."""
    told = manifest(paths, month)
    there = {path.name for path in folder(paths, month).iterdir()}
    assert there == {part["name"] for part in told["parts"]} | {files.MANIFEST}
    for part in told["parts"]:
        path = folder(paths, month) / part["name"]
        assert (part["bytes"], part["sha256"]) == (path.stat().st_size, files.hash_file(path))


def another_champion(paths: Paths, c: float = 0.01) -> str:
    """Train with another parameter and crown the model; return its digest."""
    workbench.change_settings(paths, train={"params": {"C": c}})
    workbench.run(paths, "train")
    contents = artifact.read_artifact(paths.challenger)
    for name, data in contents.items():
        (paths.champion / name).write_bytes(data)
    ref = workbench.read_json(paths.champion_ref) | {"version": 2, "digest": artifact.hash_artifact(contents)}
    files.write_json(paths.champion_ref, ref)
    return str(ref["digest"])


@pytest.mark.parametrize("month", workbench.MONTHS)
def test_each_row_joins_to_one_trip_and_has_the_models_probability(done: Paths, month: str) -> None:
    trips = workbench.read_prepared(done, month)
    predictions = pq.read_table(folder(done, month))
    merged = predictions.to_pandas().merge(trips.to_pandas(), on="row", how="outer", validate="1:1", indicator="side")
    assert len(merged) == len(trips) == 5000
    assert set(merged["side"]) == {"both"}
    contents = artifact.read_artifact(done.champion)
    expected = artifact.load_model(contents, workbench.read_json(done.ref)["digest"]).probabilities(trips)
    np.testing.assert_array_equal(predictions["row"], trips["row"])
    assert predictions["tip_probability"].to_numpy().tobytes() == expected.tobytes()
    assert expected.std() > 0.1


def test_predictions_are_two_typed_columns(done: Paths) -> None:
    for path in sorted(folder(done, "2009-01").glob("part-*.parquet")):
        schema = pq.read_schema(path)
        assert schema.equals(plan.SCHEMA)
        assert [str(type_) for type_ in schema.types] == ["int64", "float"]
        assert [field.nullable for field in schema] == [False, False]


def test_the_whole_folder_reads_as_one_table_with_the_month(done: Paths) -> None:
    frame = pd.read_parquet(done.predictions)
    assert set(frame.columns) == {"row", "tip_probability", "month"}
    assert frame["month"].value_counts().to_dict() == dict.fromkeys(workbench.MONTHS, 5000)
    table = pyarrow.dataset.dataset(done.predictions, partitioning="hive").to_table()
    assert len(table) == 5000 * len(workbench.MONTHS)
    assert set(table["month"].to_pylist()) == set(workbench.MONTHS)


def test_each_row_group_is_a_part(done: Paths) -> None:
    assert PARTS > 1
    for month in workbench.MONTHS:
        names = [path.name for path in sorted(folder(done, month).glob("*.parquet"))]
        assert names == [f"part-{number:05d}.parquet" for number in range(PARTS)]
        lengths = [pq.read_metadata(folder(done, month) / name).num_rows for name in names]
        assert lengths == [1700, 1700, 1600]


@pytest.mark.parametrize("month", workbench.MONTHS)
def test_the_receipt_says_what_was_made_from_what(done: Paths, month: str) -> None:
    told = manifest(done, month)
    ref = workbench.read_json(done.ref)
    assert_whole(done, month)
    assert (told["month"], told["rows"]) == (month, 5000)
    assert told["key"] == {
        "trips": files.hash_file(done.prepared_file(month)),
        "model": artifact.hash_artifact(artifact.read_artifact(done.champion)),
        "format": plan.FORMAT,
    }
    made = told["made"]
    assert (made["name"], made["version"], made["run"]) == (ref["name"], ref["version"], ref["run"])
    assert set(made["libraries"]) == set(score.LIBRARIES)
    assert made["seconds"] > 0
    trips = workbench.as_batch(workbench.read_prepared(done, month))
    scores = pq.read_table(folder(done, month))["tip_probability"].to_numpy()
    expected = Counts.from_rows(trips, workbench.read_json(done.champion / "model.json"), scores, month)
    counted = Counts.from_json(told["counts"])
    np.testing.assert_array_equal(counted.bands, expected.bands)
    assert counted.days.keys() == expected.days.keys()
    assert {name: sums[:2] for name, sums in counted.groups().items()} == {
        name: sums[:2] for name, sums in expected.groups().items()
    }
    assert counted.to_json()["histograms"] == expected.to_json()["histograms"]


def test_a_second_run_scores_nothing(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cluster.ADDRESS, "tcp://127.0.0.1:1")  # it would fail where it needed a cluster
    before = mtimes(project)
    workbench.run(project, "score")
    assert mtimes(project) == before


@pytest.mark.usefixtures("on_cluster")
def test_only_an_added_month_is_scored(project: Paths) -> None:
    before = mtimes(project)
    workbench.change_settings(project, months=["2011-02", *workbench.MONTHS])
    for stage in ("download", "prepare"):
        workbench.run_month(project, stage, "2011-02")
    workbench.run(project, "score")
    after = mtimes(project)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in set(after) - set(before)} == {"month=2011-02"}
    assert_whole(project, "2011-02")
    assert len(pq.read_table(folder(project, "2011-02"))) == 5000


@pytest.mark.usefixtures("on_cluster")
def test_another_champion_scores_all_months_again(project: Paths) -> None:
    before = parts(project)
    digest = another_champion(project)
    workbench.run(project, "score")
    after = parts(project)
    assert set(after) == set(before)
    assert not [name for name in before if before[name] == after[name]]
    for month in workbench.MONTHS:
        assert_whole(project, month)
        assert manifest(project, month)["key"]["model"] == digest
        assert manifest(project, month)["made"]["version"] == 2


@pytest.mark.usefixtures("on_cluster")
def test_only_a_month_that_was_prepared_anew_is_scored_again(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mtimes(project)
    workbench.small_row_groups(monkeypatch, 2600)
    workbench.prepare_again(project, "2009-02")
    workbench.run(project, "score")
    changed = {name for name, made in mtimes(project).items() if before.get(name) != made}
    assert changed == {f"month=2009-02/{name}" for name in ("part-00000.parquet", "part-00001.parquet", files.MANIFEST)}
    assert_whole(project, "2009-02")


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize("damage", ["a part is missing", "a part is cut off", "no manifest", "an empty manifest"])
def test_a_damaged_month_is_scored_again(project: Paths, done: Paths, damage: str) -> None:
    part, told = folder(project, "2009-02") / "part-00001.parquet", folder(project, "2009-02") / files.MANIFEST
    if damage == "a part is missing":
        part.unlink()
    elif damage == "a part is cut off":
        part.write_bytes(part.read_bytes()[:-100])
    elif damage == "no manifest":
        told.unlink()
    else:
        told.write_text("")
    workbench.run(project, "score")
    assert parts(project) == parts(done)
    assert_whole(project, "2009-02")


def test_a_killed_run_goes_on_where_it_was(
    project: Paths, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.small_row_groups(monkeypatch, 110)
    workbench.prepare_again(project, *workbench.load_settings(project).months)
    before = {month: workbench.read_tree(folder(project, month)) for month in workbench.MONTHS}
    (tmp_path / "uninterrupted").mkdir()
    uninterrupted = workbench.copy_project(project, tmp_path / "uninterrupted")

    staged = project.staging / "predictions"
    with workbench.running("tipline", "score", folder=project.root) as process:
        workbench.wait_for(lambda: len(list(staged.rglob("part-*.json"))) > 20)
        with pytest.raises(TiplineError, match="Another process is scoring"):
            workbench.run(project, "score")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    for month in workbench.MONTHS:
        if workbench.read_tree(folder(project, month)) != before[month]:
            assert_whole(project, month)
    parts_made = [
        staged / marker.parent.name.removesuffix(plan.MARKERS) / f"{marker.stem}.parquet"
        for marker in staged.rglob("part-*.json")
    ]
    made = {
        f"{part.parent.name.partition('.')[0]}/{part.name}": part.stat().st_mtime_ns
        for part in parts_made
        if part.exists()
    }
    assert made

    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
    workbench.run(project, "score")
    workbench.run(uninterrupted, "score")
    assert len(parts(project)) == 46 * len(workbench.MONTHS)
    assert parts(project) == parts(uninterrupted)
    after = mtimes(project)
    assert {name: after[name] for name in made} == made
    for month in workbench.MONTHS:
        assert_whole(project, month)
        told = (manifest(paths, month) for paths in (project, uninterrupted))
        first, second = ({name: value for name, value in one.items() if name != "made"} for one in told)
        assert first == second


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.usefixtures("on_cluster")
def test_a_crash_between_the_two_renames_is_mended(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {month: workbench.read_tree(folder(project, month)) for month in workbench.MONTHS}
    digest = another_champion(project)
    rename = Path.rename

    def crash(path: Path, target: Path) -> Path:
        if target == folder(project, "2009-02"):
            raise Crash
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        with pytest.raises(Crash):
            workbench.run(project, "score")
    assert not folder(project, "2009-02").exists()

    places = plan.Locations.resolve(project)
    locations.predictions.recover(locations.staged)
    assert workbench.read_tree(folder(project, "2009-02")) == before["2009-02"]
    workbench.run(project, "score")
    for month in workbench.MONTHS:
        assert_whole(project, month)
        assert manifest(project, month)["key"]["model"] == digest
    assert not list((project.staging / "predictions").glob("*"))


def test_a_crash_before_the_old_month_is_removed_keeps_the_new_one(project: Paths) -> None:
    old = project.staging / "predictions" / "month=2009-02.old"
    shutil.copytree(folder(project, "2009-01"), old)
    before = workbench.read_tree(project.predictions)
    workbench.run(project, "score")
    assert workbench.read_tree(project.predictions) == before
    assert not old.exists()


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize("damage", ["cut off", "overwritten", "not there", "not prepared"])
def test_a_failing_month_leaves_the_others_published(
    project: Paths, run_cli: Callable[..., tuple[int, str]], damage: str
) -> None:
    before = workbench.read_tree(folder(project, "2009-02"))
    digest = another_champion(project)
    trips = project.prepared_file("2009-02")
    data = trips.read_bytes()
    if damage == "cut off":
        trips.write_bytes(data[: len(data) // 2])
    elif damage == "overwritten":
        trips.write_bytes(data[:4] + b"\xff" * 20_000 + data[20_004:])
    elif damage == "not there":
        trips.unlink()
    else:
        (project.prepared("2009-02") / files.MANIFEST).unlink()
    code, printed = run_cli(project.root, "score")
    assert code == MonthsFailedError.exit_code == 4, printed
    assert "1 of 4 months failed: 2009-02: " in printed
    assert "run it again (dvc repro)" in printed
    assert "Traceback" not in printed
    assert "defect" not in printed
    assert workbench.read_tree(folder(project, "2009-02")) == before
    for month in set(workbench.MONTHS) - {"2009-02"}:
        assert_whole(project, month)
        assert manifest(project, month)["key"]["model"] == digest


def test_a_local_cluster_and_a_remote_one_give_the_same_bytes(project: Paths, done: Paths, on_cluster: str) -> None:
    name = worker.plugin_name(workbench.read_json(project.champion_ref)["digest"])
    with Client(on_cluster) as client:
        loaded = client.run(lambda dask_worker: name in dask_worker.plugins)
    assert list(loaded.values()) == [True, True]
    shutil.rmtree(project.predictions)
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv(cluster.ADDRESS)
        workbench.run(project, "score")
    assert parts(project) == parts(done)


def test_a_scheduler_that_is_not_there_is_told_in_seconds(
    project: Paths, run_cli: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    monkeypatch.setenv(cluster.ADDRESS, address)
    another_champion(project)
    before = workbench.read_tree(project.predictions)
    started = time.monotonic()
    code, printed = run_cli(project.root, "score")
    assert time.monotonic() - started < 10
    assert code == 1
    assert "scheduler does not answer" in printed
    assert address in printed
    assert "unset DASK_SCHEDULER_ADDRESS" in printed
    assert workbench.read_tree(project.predictions) == before


def test_an_address_that_is_none_is_told(
    project: Paths, run_cli: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    monkeypatch.setenv(cluster.ADDRESS, "no such place")
    another_champion(project)
    code, printed = run_cli(project.root, "score")
    assert code == 1
    assert "no such place" in printed
    assert "defect" not in printed


def test_a_scheduler_without_workers_is_told_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    with workbench.scheduler(tmp_path) as address:
        monkeypatch.setenv(cluster.ADDRESS, address)
        started = time.monotonic()
        with pytest.raises(TiplineError, match="no workers") as caught, cluster.connect_client(2):
            pass
    assert time.monotonic() - started < 10
    assert caught.value.parts[1] == address


def test_a_local_cluster_listens_on_this_machine_only_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    here = psutil.Process()
    before = set(here.children(recursive=True))
    with cluster.connect_client(1) as client:
        assert len(client.scheduler_info()["workers"]) == 1
        started = set(here.children(recursive=True)) - before
        connections = [found for process in (here, *started) for found in process.net_connections("inet")]
        listening = [found.laddr.ip for found in connections if found.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3  # scheduler, its dashboard, worker
    assert set(listening) == {"127.0.0.1"}
    # What this process has started itself stays: the resource tracker, and what the next workers are forked from.
    assert not [process for process in started if process.is_running() and process.ppid() != here.pid]


@pytest.mark.parametrize("forked", [True, False])
def test_a_worker_of_this_machine_waits_for_no_pandas_and_has_one_thread(
    *, forked: bool, done: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    monkeypatch.setattr(processes, "FORKED", forked)
    places, contents = plan.Locations.resolve(done, to=str(tmp_path)), artifact.read_artifact(done.champion)
    digest = artifact.hash_artifact(contents)
    blocks = plan.list_blocks(places, "2009-01", plan.compute_key(places, "2009-01", digest))
    with cluster.connect_client(1) as client:
        worker.send_model(client, contents, digest)
        made = dict(cluster.run_tasks(client, worker.score_block, blocks[:1]))
        ((modules, environment),) = client.run(lambda: (set(sys.modules), dict(os.environ))).values()
    assert made[blocks[0]]["rows"] == blocks[0].rows
    assert "tipline.scoring.worker" in modules
    assert "pandas" not in modules
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["MALLOC_MMAP_THRESHOLD_"] == str(1 << 28)


def test_a_month_that_is_taken_off_the_list_loses_its_predictions(project: Paths) -> None:
    before = mtimes(project)
    workbench.change_settings(project, months=list(workbench.MONTHS[:3]))
    workbench.run(project, "score")
    assert mtimes(project) == {name: made for name, made in before.items() if "2024-01" not in name}


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize("name", artifact.FILES)
def test_a_champion_that_was_tampered_with_is_refused(
    project: Paths, run_cli: Callable[..., tuple[int, str]], tmp_path: Path, name: str
) -> None:
    trace = tmp_path / "planted code has run"
    planted = f"\nopen({str(trace)!r}, 'w').close()\n" if name == artifact.CODE else " "
    with (project.champion / name).open("a") as file:
        file.write(planted)
    (folder(project, "2009-03") / files.MANIFEST).unlink()
    before = workbench.read_tree(project.predictions)
    code, printed = run_cli(project.root, "score")
    assert code == 1
    assert "digest differs" in printed
    assert "dvc repro register" in printed
    assert workbench.read_tree(project.predictions) == before
    assert not trace.exists()


def test_without_a_champion_scoring_says_what_to_run(project: Paths, run_cli: Callable[..., tuple[int, str]]) -> None:
    shutil.rmtree(project.champion)
    code, printed = run_cli(project.root, "score")
    assert code == 1
    assert "dvc repro register" in printed


def test_progress_is_plain_lines_where_no_terminal_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    with caplog.at_level("INFO", "tipline"), progress.show_progress(4000, " rows") as add:
        add(1000)
        add(3000)
    lines = caplog.messages
    assert [line.partition(" rows, ")[0] for line in lines] == ["1.00k of 4.00k", "4.00k of 4.00k"]
    assert all(" rows/s, " in line and line.endswith(" left") for line in lines)
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


def test_progress_is_now_and_then_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "tipline"), progress.show_progress(100, " rows") as add:
        for _ in range(50):
            add(1)
    assert not caplog.messages


@pytest.mark.usefixtures("on_cluster")
def test_a_year_of_months_in_any_order_is_scored(project: Paths) -> None:
    year = [f"2009-{number:02d}" for number in (7, 12, 3, 1, 11, 9, 2, 5, 10, 4, 8, 6)]
    workbench.change_settings(project, months=year, demo={"rows": 300})
    workbench.run(project, "download", "prepare", "score", "monitor")
    frame = pd.read_parquet(project.predictions)
    assert frame["month"].value_counts().to_dict() == dict.fromkeys(year, 300)
    told = workbench.read_json(project.monitoring / "months.json")
    assert [month["month"] for month in told] == sorted(year)
    assert {month["rows"] for month in told} == {300}


def test_files_that_are_no_predictions_are_not_replaced(
    project: Paths, run_cli: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    mine = tmp_path / "place" / "month=2009-01" / "my.csv"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    code, printed = run_cli(project.root, "score", "--to", str(tmp_path / "place"))
    assert code == 4
    assert f"This is no prediction, and would be lost. where: {mine}" in printed
    assert mine.read_text() == "x"
    assert_whole(project, "2009-02")
    assert sorted(path.name for path in (tmp_path / "place").glob("month=*")) == [
        f"month={month}" for month in workbench.MONTHS
    ]


@pytest.mark.parametrize("place", ["trips", "predictions"])
def test_a_receipt_that_is_none_stops_its_month_alone(
    project: Paths,
    run_cli: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    on_cluster: str,
    place: str,
) -> None:
    monkeypatch.setenv(cluster.ADDRESS, on_cluster)
    (project.root / "data" / place / "month=2009-02" / files.MANIFEST).write_text("{}")
    code, printed = run_cli(project.root, "score")
    assert code == (4 if place == "trips" else 0)
    assert ("no manifest of a prepared month" in printed) == (place == "trips")
    if place == "predictions":
        assert_whole(project, "2009-02")


def test_ctrl_c_while_workers_start_is_answered_when_they_are_there() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end")

    with pytest.raises(KeyboardInterrupt), processes.defer_interrupts():
        interrupted()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before
