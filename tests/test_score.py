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

from tests import pipeline
from tipline import cluster, files, progress, scoring, workers
from tipline.errors import MonthsFailedError, TiplineError
from tipline.models import modelfiles
from tipline.stages import score
from tipline.statistics.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tipline.layout import Layout

pytestmark = pipeline.MLFLOW_WARNINGS
PARTS = -(-5000 // pipeline.GROUP_ROWS)


@pytest.fixture
def on_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let stages use the session's cluster, which outlives the tests as a team's does."""
    address = pipeline.dask_cluster(request)
    monkeypatch.setenv(cluster.ADDRESS, address)
    return address


@pytest.fixture
def done(request: pytest.FixtureRequest) -> Layout:
    """The session's scored project, to read from."""
    return pipeline.scored(request)


@pytest.fixture
def project(done: Layout, tmp_path: Path) -> Layout:
    """A scored project of the test's own."""
    return pipeline.copy(done, tmp_path)


def folder(layout: Layout, month: str) -> Path:
    return layout.predictions / f"month={month}"


def receipt(layout: Layout, month: str) -> Any:
    return pipeline.read_json(folder(layout, month) / files.RECEIPT)


def mtimes(layout: Layout) -> dict[str, int]:
    paths = (path for path in layout.predictions.rglob("*") if path.is_file())
    return {str(path.relative_to(layout.predictions)): path.stat().st_mtime_ns for path in paths}


def parts(layout: Layout) -> dict[str, bytes]:
    """All parts, without the receipts: these say how long it took."""
    return {name: data for name, data in pipeline.tree(layout.predictions).items() if name.endswith(".parquet")}


def assert_whole(layout: Layout, month: str) -> None:
    """The receipt names exactly the files that are there, and their digests."""
    told = receipt(layout, month)
    there = {path.name for path in folder(layout, month).iterdir()}
    assert there == {part["name"] for part in told["parts"]} | {files.RECEIPT}
    for part in told["parts"]:
        path = folder(layout, month) / part["name"]
        assert (part["bytes"], part["sha256"]) == (path.stat().st_size, files.sha256(path))


def another_champion(layout: Layout, c: float = 0.01) -> str:
    """Train with another parameter and crown the model; return its digest."""
    pipeline.change(layout, train={"params": {"C": c}})
    pipeline.run(layout, "train")
    contents = modelfiles.read(layout.challenger)
    for name, data in contents.items():
        (layout.champion / name).write_bytes(data)
    ref = pipeline.read_json(layout.ref) | {"version": 2, "digest": modelfiles.digest(contents)}
    files.write_json(layout.ref, ref)
    return str(ref["digest"])


@pytest.mark.parametrize("month", pipeline.MONTHS)
def test_each_row_joins_to_one_trip_and_has_the_models_probability(done: Layout, month: str) -> None:
    trips = pipeline.trips(done, month)
    predictions = pq.read_table(folder(done, month))
    merged = predictions.to_pandas().merge(trips.to_pandas(), on="row", how="outer", validate="1:1", indicator="side")
    assert len(merged) == len(trips) == 5000
    assert set(merged["side"]) == {"both"}
    contents = modelfiles.read(done.champion)
    expected = modelfiles.load(contents, pipeline.read_json(done.ref)["digest"]).probabilities(trips)
    np.testing.assert_array_equal(predictions["row"], trips["row"])
    assert predictions["tip_probability"].to_numpy().tobytes() == expected.tobytes()
    assert expected.std() > 0.1


def test_predictions_are_two_typed_columns(done: Layout) -> None:
    for path in sorted(folder(done, "2009-01").glob("part-*.parquet")):
        schema = pq.read_schema(path)
        assert schema.equals(scoring.SCHEMA)
        assert [str(type_) for type_ in schema.types] == ["int64", "float"]
        assert [field.nullable for field in schema] == [False, False]


def test_the_whole_folder_reads_as_one_table_with_the_month(done: Layout) -> None:
    frame = pd.read_parquet(done.predictions)
    assert set(frame.columns) == {"row", "tip_probability", "month"}
    assert frame["month"].value_counts().to_dict() == dict.fromkeys(pipeline.MONTHS, 5000)
    table = pyarrow.dataset.dataset(done.predictions, partitioning="hive").to_table()
    assert len(table) == 5000 * len(pipeline.MONTHS)
    assert set(table["month"].to_pylist()) == set(pipeline.MONTHS)


def test_each_row_group_is_a_part(done: Layout) -> None:
    assert PARTS > 1
    for month in pipeline.MONTHS:
        names = [path.name for path in sorted(folder(done, month).glob("*.parquet"))]
        assert names == [f"part-{number:05d}.parquet" for number in range(PARTS)]
        lengths = [pq.read_metadata(folder(done, month) / name).num_rows for name in names]
        assert lengths == [1700, 1700, 1600]


@pytest.mark.parametrize("month", pipeline.MONTHS)
def test_the_receipt_says_what_was_made_from_what(done: Layout, month: str) -> None:
    told = receipt(done, month)
    ref = pipeline.read_json(done.ref)
    assert_whole(done, month)
    assert (told["month"], told["rows"]) == (month, 5000)
    assert told["key"] == {
        "trips": files.sha256(done.trips_file(month)),
        "model": modelfiles.digest(modelfiles.read(done.champion)),
        "format": scoring.FORMAT,
    }
    made = told["made"]
    assert (made["name"], made["version"], made["run"]) == (ref["name"], ref["version"], ref["run"])
    assert set(made["libraries"]) == set(score.LIBRARIES)
    assert made["seconds"] > 0
    trips = pipeline.batch(pipeline.trips(done, month))
    scores = pq.read_table(folder(done, month))["tip_probability"].to_numpy()
    expected = Counts.of(trips, pipeline.read_json(done.champion / "model.json"), scores, month)
    counted = Counts.from_json(told["counts"])
    np.testing.assert_array_equal(counted.bands, expected.bands)
    assert counted.days.keys() == expected.days.keys()
    assert {name: sums[:2] for name, sums in counted.groups().items()} == {
        name: sums[:2] for name, sums in expected.groups().items()
    }
    assert counted.to_json()["histograms"] == expected.to_json()["histograms"]


def test_a_second_run_scores_nothing(project: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cluster.ADDRESS, "tcp://127.0.0.1:1")  # it would fail where it needed a cluster
    before = mtimes(project)
    pipeline.run(project, "score")
    assert mtimes(project) == before


@pytest.mark.usefixtures("on_cluster")
def test_only_an_added_month_is_scored(project: Layout) -> None:
    before = mtimes(project)
    pipeline.change(project, months=["2011-02", *pipeline.MONTHS])
    for stage in ("download", "prepare"):
        pipeline.run_month(project, stage, "2011-02")
    pipeline.run(project, "score")
    after = mtimes(project)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in set(after) - set(before)} == {"month=2011-02"}
    assert_whole(project, "2011-02")
    assert len(pq.read_table(folder(project, "2011-02"))) == 5000


@pytest.mark.usefixtures("on_cluster")
def test_another_champion_scores_all_months_again(project: Layout) -> None:
    before = parts(project)
    digest = another_champion(project)
    pipeline.run(project, "score")
    after = parts(project)
    assert set(after) == set(before)
    assert not [name for name in before if before[name] == after[name]]
    for month in pipeline.MONTHS:
        assert_whole(project, month)
        assert receipt(project, month)["key"]["model"] == digest
        assert receipt(project, month)["made"]["version"] == 2


@pytest.mark.usefixtures("on_cluster")
def test_only_a_month_that_was_prepared_anew_is_scored_again(project: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mtimes(project)
    pipeline.small_row_groups(monkeypatch, 2600)
    pipeline.prepare_anew(project, "2009-02")
    pipeline.run(project, "score")
    changed = {name for name, made in mtimes(project).items() if before.get(name) != made}
    assert changed == {f"month=2009-02/{name}" for name in ("part-00000.parquet", "part-00001.parquet", files.RECEIPT)}
    assert_whole(project, "2009-02")


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize("damage", ["a part is missing", "a part is cut off", "no receipt", "an empty receipt"])
def test_a_damaged_month_is_scored_again(project: Layout, done: Layout, damage: str) -> None:
    part, told = folder(project, "2009-02") / "part-00001.parquet", folder(project, "2009-02") / files.RECEIPT
    if damage == "a part is missing":
        part.unlink()
    elif damage == "a part is cut off":
        part.write_bytes(part.read_bytes()[:-100])
    elif damage == "no receipt":
        told.unlink()
    else:
        told.write_text("")
    pipeline.run(project, "score")
    assert parts(project) == parts(done)
    assert_whole(project, "2009-02")


def test_a_killed_run_goes_on_where_it_was(
    project: Layout, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.small_row_groups(monkeypatch, 110)
    pipeline.prepare_anew(project, *pipeline.settings(project).months)
    before = {month: pipeline.tree(folder(project, month)) for month in pipeline.MONTHS}
    (tmp_path / "uninterrupted").mkdir()
    uninterrupted = pipeline.copy(project, tmp_path / "uninterrupted")

    staged = project.staging / "predictions"
    with pipeline.running("tipline", "score", folder=project.root) as process:
        pipeline.wait_for(lambda: len(list(staged.rglob("part-*.json"))) > 20)
        with pytest.raises(TiplineError, match="Another process is scoring"):
            pipeline.run(project, "score")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    for month in pipeline.MONTHS:
        if pipeline.tree(folder(project, month)) != before[month]:
            assert_whole(project, month)
    parts_made = [
        staged / marker.parent.name.removesuffix(scoring.MARKERS) / f"{marker.stem}.parquet"
        for marker in staged.rglob("part-*.json")
    ]
    made = {
        f"{part.parent.name.partition('.')[0]}/{part.name}": part.stat().st_mtime_ns
        for part in parts_made
        if part.exists()
    }
    assert made

    monkeypatch.setenv(cluster.ADDRESS, pipeline.dask_cluster(request))
    pipeline.run(project, "score")
    pipeline.run(uninterrupted, "score")
    assert len(parts(project)) == 46 * len(pipeline.MONTHS)
    assert parts(project) == parts(uninterrupted)
    after = mtimes(project)
    assert {name: after[name] for name in made} == made
    for month in pipeline.MONTHS:
        assert_whole(project, month)
        told = (receipt(layout, month) for layout in (project, uninterrupted))
        first, second = ({name: value for name, value in one.items() if name != "made"} for one in told)
        assert first == second


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.usefixtures("on_cluster")
def test_a_crash_between_the_two_renames_is_mended(project: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {month: pipeline.tree(folder(project, month)) for month in pipeline.MONTHS}
    digest = another_champion(project)
    rename = Path.rename

    def crash(path: Path, target: Path) -> Path:
        if target == folder(project, "2009-02"):
            raise Crash
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        with pytest.raises(Crash):
            pipeline.run(project, "score")
    assert not folder(project, "2009-02").exists()

    places = scoring.Places.of(project)
    places.predictions.mend(places.staged)
    assert pipeline.tree(folder(project, "2009-02")) == before["2009-02"]
    pipeline.run(project, "score")
    for month in pipeline.MONTHS:
        assert_whole(project, month)
        assert receipt(project, month)["key"]["model"] == digest
    assert not list((project.staging / "predictions").glob("*"))


def test_a_crash_before_the_old_month_is_removed_keeps_the_new_one(project: Layout) -> None:
    old = project.staging / "predictions" / "month=2009-02.old"
    shutil.copytree(folder(project, "2009-01"), old)
    before = pipeline.tree(project.predictions)
    pipeline.run(project, "score")
    assert pipeline.tree(project.predictions) == before
    assert not old.exists()


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize("damage", ["cut off", "overwritten", "not there", "not prepared"])
def test_a_failing_month_leaves_the_others_published(
    project: Layout, run_cli: Callable[..., tuple[int, str]], damage: str
) -> None:
    before = pipeline.tree(folder(project, "2009-02"))
    digest = another_champion(project)
    trips = project.trips_file("2009-02")
    data = trips.read_bytes()
    if damage == "cut off":
        trips.write_bytes(data[: len(data) // 2])
    elif damage == "overwritten":
        trips.write_bytes(data[:4] + b"\xff" * 20_000 + data[20_004:])
    elif damage == "not there":
        trips.unlink()
    else:
        (project.trips("2009-02") / files.RECEIPT).unlink()
    code, printed = run_cli(project.root, "score")
    assert code == MonthsFailedError.exit_code == 4, printed
    assert "1 of 4 months failed: 2009-02: " in printed
    assert "run it again (dvc repro)" in printed
    assert "Traceback" not in printed
    assert "defect" not in printed
    assert pipeline.tree(folder(project, "2009-02")) == before
    for month in set(pipeline.MONTHS) - {"2009-02"}:
        assert_whole(project, month)
        assert receipt(project, month)["key"]["model"] == digest


def test_a_local_cluster_and_a_remote_one_give_the_same_bytes(project: Layout, done: Layout, on_cluster: str) -> None:
    name = scoring.plugin_name(pipeline.read_json(project.ref)["digest"])
    with Client(on_cluster) as client:
        loaded = client.run(lambda dask_worker: name in dask_worker.plugins)
    assert list(loaded.values()) == [True, True]
    shutil.rmtree(project.predictions)
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv(cluster.ADDRESS)
        pipeline.run(project, "score")
    assert parts(project) == parts(done)


def test_a_scheduler_that_is_not_there_is_told_in_seconds(
    project: Layout, run_cli: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    monkeypatch.setenv(cluster.ADDRESS, address)
    another_champion(project)
    before = pipeline.tree(project.predictions)
    started = time.monotonic()
    code, printed = run_cli(project.root, "score")
    assert time.monotonic() - started < 10
    assert code == 1
    assert "scheduler does not answer" in printed
    assert address in printed
    assert "unset DASK_SCHEDULER_ADDRESS" in printed
    assert pipeline.tree(project.predictions) == before


def test_an_address_that_is_none_is_told(
    project: Layout, run_cli: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
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
    with pipeline.scheduler(tmp_path) as address:
        monkeypatch.setenv(cluster.ADDRESS, address)
        started = time.monotonic()
        with pytest.raises(TiplineError, match="no workers") as caught, cluster.connect(2):
            pass
    assert time.monotonic() - started < 10
    assert caught.value.parts[1] == address


def test_a_local_cluster_listens_on_this_machine_only_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    here = psutil.Process()
    before = set(here.children(recursive=True))
    with cluster.connect(1) as client:
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
    *, forked: bool, done: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    monkeypatch.setattr(workers, "FORKED", forked)
    places, contents = scoring.Places.of(done, to=str(tmp_path)), modelfiles.read(done.champion)
    digest = modelfiles.digest(contents)
    blocks = scoring.blocks_of(places, "2009-01", scoring.key_of(places, "2009-01", digest))
    with cluster.connect(1) as client:
        scoring.send_model(client, contents, digest)
        made = dict(cluster.each(client, scoring.score_block, blocks[:1]))
        ((modules, environment),) = client.run(lambda: (set(sys.modules), dict(os.environ))).values()
    assert made[blocks[0]]["rows"] == blocks[0].rows
    assert "tipline.scoring" in modules
    assert "pandas" not in modules
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["MALLOC_MMAP_THRESHOLD_"] == str(1 << 28)


def test_a_month_that_is_taken_off_the_list_loses_its_predictions(project: Layout) -> None:
    before = mtimes(project)
    pipeline.change(project, months=list(pipeline.MONTHS[:3]))
    pipeline.run(project, "score")
    assert mtimes(project) == {name: made for name, made in before.items() if "2024-01" not in name}


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize("name", modelfiles.FILES)
def test_a_champion_that_was_tampered_with_is_refused(
    project: Layout, run_cli: Callable[..., tuple[int, str]], tmp_path: Path, name: str
) -> None:
    trace = tmp_path / "planted code has run"
    planted = f"\nopen({str(trace)!r}, 'w').close()\n" if name == modelfiles.CODE else " "
    with (project.champion / name).open("a") as file:
        file.write(planted)
    (folder(project, "2009-03") / files.RECEIPT).unlink()
    before = pipeline.tree(project.predictions)
    code, printed = run_cli(project.root, "score")
    assert code == 1
    assert "digest differs" in printed
    assert "dvc repro register" in printed
    assert pipeline.tree(project.predictions) == before
    assert not trace.exists()


def test_without_a_champion_scoring_says_what_to_run(project: Layout, run_cli: Callable[..., tuple[int, str]]) -> None:
    shutil.rmtree(project.champion)
    code, printed = run_cli(project.root, "score")
    assert code == 1
    assert "dvc repro register" in printed


def test_progress_is_plain_lines_where_no_terminal_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    with caplog.at_level("INFO", "tipline"), progress.counting(4000, " rows") as add:
        add(1000)
        add(3000)
    lines = caplog.messages
    assert [line.partition(" rows, ")[0] for line in lines] == ["1.00k of 4.00k", "4.00k of 4.00k"]
    assert all(" rows/s, " in line and line.endswith(" left") for line in lines)
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


def test_progress_is_now_and_then_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "tipline"), progress.counting(100, " rows") as add:
        for _ in range(50):
            add(1)
    assert not caplog.messages


@pytest.mark.usefixtures("on_cluster")
def test_a_year_of_months_in_any_order_is_scored(project: Layout) -> None:
    year = [f"2009-{number:02d}" for number in (7, 12, 3, 1, 11, 9, 2, 5, 10, 4, 8, 6)]
    pipeline.change(project, months=year, demo={"rows": 300})
    pipeline.run(project, "download", "prepare", "score", "monitor")
    frame = pd.read_parquet(project.predictions)
    assert frame["month"].value_counts().to_dict() == dict.fromkeys(year, 300)
    told = pipeline.read_json(project.monitoring / "months.json")
    assert [month["month"] for month in told] == sorted(year)
    assert {month["rows"] for month in told} == {300}


def test_files_that_are_no_predictions_are_not_replaced(
    project: Layout, run_cli: Callable[..., tuple[int, str]], tmp_path: Path
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
        f"month={month}" for month in pipeline.MONTHS
    ]


@pytest.mark.parametrize("place", ["trips", "predictions"])
def test_a_receipt_that_is_none_stops_its_month_alone(
    project: Layout,
    run_cli: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    on_cluster: str,
    place: str,
) -> None:
    monkeypatch.setenv(cluster.ADDRESS, on_cluster)
    (project.root / "data" / place / "month=2009-02" / files.RECEIPT).write_text("{}")
    code, printed = run_cli(project.root, "score")
    assert code == (4 if place == "trips" else 0)
    assert ("no receipt of a prepared month" in printed) == (place == "trips")
    if place == "predictions":
        assert_whole(project, "2009-02")


def test_ctrl_c_while_workers_start_is_answered_when_they_are_there() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end")

    with pytest.raises(KeyboardInterrupt), workers.interrupts_later():
        interrupted()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before
