"""Every row is scored once and joins back to its trip; only what is out of date is scored."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from distributed import Client

from tests import workbench
from tipline import cluster, files, formats, processes, storage
from tipline.errors import TiplineError
from tipline.model import artifact
from tipline.paths import Paths
from tipline.scoring import plan, worker
from tipline.stages import score

Run = Callable[..., tuple[int, str]]

pytestmark = workbench.MLFLOW_WARNINGS
NOWHERE = "tcp://127.0.0.1:1"  # an address where scoring fails if it needs a cluster


on_cluster = pytest.mark.usefixtures("_on_cluster")


def get_folder(paths: Paths, month: str) -> Path:
    return paths.predictions / f"month={month}"


def read_manifest(paths: Paths, month: str) -> Any:
    return workbench.read_json(get_folder(paths, month) / files.MANIFEST)


def get_mtimes(paths: Paths) -> dict[str, int]:
    found = (path for path in paths.predictions.rglob("*") if path.is_file())
    return {str(path.relative_to(paths.predictions)): path.stat().st_mtime_ns for path in found}


def read_parts(paths: Paths) -> dict[str, bytes]:
    """Read all parts, without the manifests, which say how long it took."""
    return {name: data for name, data in workbench.read_tree(paths.predictions).items() if name.endswith(".parquet")}


def assert_whole(paths: Paths, month: str) -> None:
    """The folder holds exactly the files in the manifest, with their digests."""
    manifest = read_manifest(paths, month)
    names = {path.name for path in get_folder(paths, month).iterdir()}
    assert names == {part["name"] for part in manifest["parts"]} | {files.MANIFEST}
    for part in manifest["parts"]:
        path = get_folder(paths, month) / part["name"]
        assert files.describe_file(path) == {"bytes": part["bytes"], "sha256": part["sha256"]}


def promote_another_model(paths: Paths, c: float = 0.01) -> str:
    """Train with another parameter and make the model the champion; return its digest."""
    workbench.change_settings(paths, train={"params": {"C": c}})
    workbench.run(paths, "train")
    contents = artifact.read_artifact(paths.challenger)
    for name, data in contents.items():
        (paths.champion / name).write_bytes(data)
    ref = workbench.read_json(paths.champion_ref) | {"version": 2, "digest": artifact.hash_artifact(contents)}
    files.write_json(paths.champion_ref, ref)
    return str(ref["digest"])


# ---- what is written ----


def test_each_row_joins_to_one_trip_and_has_the_models_probability(scored_template: Paths) -> None:
    contents = artifact.read_artifact(scored_template.champion)
    model = artifact.load_model(contents, artifact.hash_artifact(contents))
    for month in workbench.MONTHS:
        trips, folder = workbench.read_prepared(scored_template, month), get_folder(scored_template, month)
        predictions, expected = pq.read_table(folder), model.probabilities(workbench.as_batch(trips))
        np.testing.assert_array_equal(predictions["row"], trips["row"])
        assert len(set(predictions["row"].to_pylist())) == len(trips) == 5000
        assert predictions["probability"].to_numpy().tobytes() == expected.tobytes()
        assert expected.std() > 0.1
        names = sorted(path.name for path in folder.glob("*.parquet"))
        assert names == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
        assert [pq.read_metadata(folder / name).num_rows for name in names] == [1700, 1700, 1600]
        assert all(pq.read_schema(folder / name).equals(plan.SCHEMA) for name in names)
    frame = pd.read_parquet(scored_template.predictions)
    assert set(frame.columns) == {"row", "probability", "month"}
    assert frame["month"].value_counts().to_dict() == dict.fromkeys(workbench.MONTHS, 5000)


def test_the_manifest_says_what_was_made_from_what(scored_template: Paths) -> None:
    paths, month = scored_template, "2009-02"
    manifest, ref = read_manifest(paths, month), workbench.read_json(paths.champion_ref)
    assert_whole(paths, month)
    assert (manifest["month"], manifest["rows"]) == (month, 5000)
    read, made = ["row", *workbench.load_settings(paths).model.columns], manifest["made"]
    digests = workbench.read_json(paths.prepared(month) / files.MANIFEST)["columns"]
    columns = {name: digests[name] for name in read}
    assert manifest["key"] == {"columns": columns, "model": ref["digest"], "format": formats.PREDICTIONS}
    assert manifest["form"] == "compiled"
    assert all(made[name] == ref[name] for name in ("name", "version", "run"))
    trained = workbench.read_json(scored_template.champion / artifact.TRAINING)["libraries"]
    assert set(made["libraries"]) == {*trained, *score.LIBRARIES}
    assert made["seconds"] > 0


# ---- what is scored ----


def test_only_new_and_changed_months_are_scored_and_an_unlisted_one_is_removed(
    scored_project: Paths, monkeypatch: pytest.MonkeyPatch, dask_address: str
) -> None:
    before = get_mtimes(scored_project)
    monkeypatch.setenv(cluster.ADDRESS, NOWHERE)
    workbench.run(scored_project, "score")
    assert get_mtimes(scored_project) == before
    monkeypatch.setenv(cluster.ADDRESS, dask_address)
    workbench.change_settings(scored_project, months=["2011-02", *workbench.MONTHS[:3]])
    workbench.small_row_groups(monkeypatch, 2600)
    workbench.run_month(scored_project, "download", "2011-02")
    workbench.run_month(scored_project, "prepare", "2011-02")
    workbench.prepare_again(scored_project, "2009-02")
    workbench.run(scored_project, "score")
    after, scored = get_mtimes(scored_project), ("2009-02", "2011-02")
    names = ("part-00000.parquet", "part-00001.parquet", files.MANIFEST)
    assert {name for name in after if after[name] != before.get(name)} == {
        f"month={month}/{name}" for month in scored for name in names
    }
    assert {name[6:13] for name in after} == {"2009-01", "2009-03", *scored}
    for month in scored:
        assert_whole(scored_project, month)


@on_cluster
@pytest.mark.parametrize("damage", ["overwritten", "missing", "not prepared", "{}"])
def test_a_failing_month_leaves_the_others_published(scored_project: Paths, run_cli: Run, damage: str) -> None:
    before = workbench.read_tree(get_folder(scored_project, "2009-02"))
    digest = promote_another_model(scored_project)
    trips, manifest = scored_project.prepared_file("2009-02"), scored_project.prepared("2009-02") / files.MANIFEST
    if damage == "overwritten":
        data = trips.read_bytes()
        trips.write_bytes(data[:4] + b"\xff" * 20_000 + data[20_004:])
    elif damage == "{}":
        manifest.write_text(damage)
    else:
        (trips if damage == "missing" else manifest).unlink()
    code, output = run_cli(scored_project.root, "score")
    assert code == 4, output
    assert "1 of 4 months failed: 2009-02: " in output
    assert "run it again (dvc repro)" in output
    assert "Traceback" not in output
    assert "defect" not in output
    assert workbench.read_tree(get_folder(scored_project, "2009-02")) == before
    for month in set(workbench.MONTHS) - {"2009-02"}:
        assert_whole(scored_project, month)
        manifest = read_manifest(scored_project, month)
        assert (manifest["key"]["model"], manifest["made"]["version"]) == (digest, 2)


def test_other_files_among_predictions_are_not_replaced(scored_project: Paths, run_cli: Run, tmp_path: Path) -> None:
    mine = tmp_path / "place" / "month=2009-01" / "my.csv"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    code, output = run_cli(scored_project.root, "score", "--to", str(tmp_path / "place"))
    assert code == 4
    assert f"This file is not a prediction and would be lost. where: {mine}" in output
    assert mine.read_text() == "x"
    names = sorted(path.name for path in (tmp_path / "place").glob("month=*"))
    assert names == [f"month={month}" for month in workbench.MONTHS]


@pytest.mark.parametrize("kind", ["trips", "predictions"])
def test_months_of_tipline_0_1_are_refused_with_one_message(scored_project: Paths, run_cli: Run, kind: str) -> None:
    folder = scored_project.root / "data" / kind
    for manifest in folder.glob(f"*/{files.MANIFEST}"):
        manifest.rename(manifest.with_name("_receipt.json"))
    before = workbench.read_tree(folder)
    code, output = run_cli(scored_project.root, "score")
    assert code == 1
    assert "These months were written by tipline 0.1." in output
    assert f"where: {folder}\n" in output
    assert ("dvc repro prepare" if kind == "trips" else "Remove this folder") in output
    assert workbench.read_tree(folder) == before


@on_cluster
@pytest.mark.parametrize("name", workbench.MODEL_FILES)
def test_a_champion_that_was_tampered_with_is_refused(
    scored_project: Paths, run_cli: Run, tmp_path: Path, name: str
) -> None:
    trace = tmp_path / "planted code has run"
    planted = f"\nopen({str(trace)!r}, 'w').close()\n" if name == workbench.CODE else " "
    with (scored_project.champion / name).open("a") as file:
        file.write(planted)
    (get_folder(scored_project, "2009-03") / files.MANIFEST).unlink()
    before = workbench.read_tree(scored_project.predictions)
    code, output = run_cli(scored_project.root, "score")
    assert code == 1
    assert "digest differs" in output
    assert "dvc repro register" in output
    assert workbench.read_tree(scored_project.predictions) == before
    assert not trace.exists()


# ---- the cluster ----


def test_models_leave_the_workers_of_a_long_lived_cluster(scored_project: Paths, dask_address: str) -> None:
    contents = artifact.read_artifact(scored_project.champion)
    digest = artifact.hash_artifact(contents)

    def count_models(dask_worker: Any) -> int:
        return sum(name.startswith(worker.PLUGIN) for name in dask_worker.plugins)

    with Client(dask_address) as client:
        before = list(client.run(count_models).values())  # left by drivers that other tests have killed
        with worker.send_model(client, contents, digest):
            with worker.send_model(client, contents, digest):
                assert [*client.run(count_models).values()] == [count + 2 for count in before]
            assert [*client.run(count_models).values()] == [count + 1 for count in before]
            assert client.submit(lambda: worker.get_worker_model(digest, "compiled").spec, pure=False).result()
        with pytest.raises(TiplineError, match="digest differs"), worker.send_model(client, contents, "0" * 64):
            pass
        assert list(client.run(count_models).values()) == before


@pytest.mark.parametrize("address", [NOWHERE, "no such place"])
def test_a_scheduler_that_does_not_answer_is_named(
    scored_project: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    monkeypatch.setenv(cluster.ADDRESS, address)
    promote_another_model(scored_project)
    before = workbench.read_tree(scored_project.predictions)
    code, output = run_cli(scored_project.root, "score")
    assert code == 1
    assert "scheduler does not answer" in output
    assert address in output
    assert "unset DASK_SCHEDULER_ADDRESS" in output
    assert workbench.read_tree(scored_project.predictions) == before


def test_a_scheduler_without_workers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    with workbench.scheduler(tmp_path) as address:
        monkeypatch.setenv(cluster.ADDRESS, address)
        with pytest.raises(TiplineError, match="no workers") as caught, cluster.connect_client(2):
            pass
    assert caught.value.parts[1] == address


@pytest.mark.parametrize("can_fork", [True, False])
def test_a_local_cluster_is_reached_from_here_only_and_ends_and_its_workers_import_no_pandas(
    *, can_fork: bool, scored_template: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CAN_FORK", can_fork)
    forkserver._forkserver._stop()  # type: ignore[attr-defined] # one that an earlier test has started
    locations = plan.Locations.resolve(workbench.load_settings(scored_template), scored_template, to=str(tmp_path))
    contents = artifact.read_artifact(scored_template.champion)
    digest, here = artifact.hash_artifact(contents), psutil.Process()
    key = plan.compute_key(plan.read_prepared(locations.trips, "2009-01"), digest, artifact.read_spec(contents))
    block = plan.list_blocks(locations, "2009-01", key)[0]
    before = set(here.children(recursive=True))
    with cluster.connect_client(1) as client, worker.send_model(client, contents, digest) as form:
        ((_, marker),) = cluster.run_tasks(client, worker.score_block, [replace(block, form=form)])
        ((modules, environment),) = client.run(lambda: (set(sys.modules), dict(os.environ))).values()
        started = set(here.children(recursive=True)) - before
        connections = [found for process in (here, *started) for found in process.net_connections("inet")]
    assert marker["rows"] == block.rows
    assert "tipline.scoring.worker" in modules
    assert "pandas" not in modules
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["MALLOC_MMAP_THRESHOLD_"] == str(1 << 28)
    listening = [found.laddr.ip for found in connections if found.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3  # scheduler, its dashboard, worker
    assert set(listening) == {"127.0.0.1"}
    # The resource tracker and the forkserver stay; they are children of this process.
    assert not [process for process in started if process.is_running() and process.ppid() != here.pid]


ROLES = ("CLIENT", "NANNY", "SCHEDULER", "WORKER")
SETTINGS = {  # of a user's dask, meant for another cluster
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
    "DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME": "tls",
    "DASK_DISTRIBUTED__DASHBOARD__LINK": "{NO_SUCH_VARIABLE}",
    "DASK_TEMPORARY_DIRECTORY": "/proc/nowhere",
    **{f"DASK_DISTRIBUTED__{role}__PRELOAD": '["no_such_module"]' for role in ROLES},
}
# What all processes of a run see of macOS. The modules that have another half there are imported before.
MACOS = """
import os, sys, sysconfig, urllib.request, psutil
sysconfig.get_config_vars()
sys.platform = "darwin"
del os.sched_getaffinity, os.sched_setaffinity, os.posix_fadvise, os.posix_fallocate, os.copy_file_range
"""


def test_a_local_cluster_ignores_dask_settings_and_needs_nothing_that_macos_lacks(
    scored_project: Paths, scored_template: Paths, tmp_path: Path
) -> None:
    shutil.rmtree(scored_project.predictions)
    workbench.change_settings(scored_project, cluster={"n_workers": None})
    (tmp_path / "sitecustomize.py").write_text(MACOS)
    command, environment = [str(Path(sys.executable).with_name("tipline")), "score"], os.environ | SETTINGS
    environment["PYTHONPATH"] = str(tmp_path)  # of the workers, too, which are spawned
    done = subprocess.run(
        command, cwd=scored_project.root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read_parts(scored_project) == read_parts(scored_template)


def test_an_interrupt_is_ignored_during_the_block_only() -> None:
    before = signal.getsignal(signal.SIGINT)
    with processes.ignore_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_project_that_moves_to_places_with_its_months_keeps_manifests_and_what_is_not_there(
    scored_project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"prepared": str(tmp_path / "trips"), "predictions": str(tmp_path / "predictions")}
    for name in ("trips", "predictions"):
        shutil.copytree(scored_project.root / "data" / name, tmp_path / name)
    shutil.rmtree(tmp_path / "predictions" / "month=2024-01")
    workbench.change_settings(scored_project, storage=places)
    monkeypatch.setenv(cluster.ADDRESS, NOWHERE)
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    workbench.run(scored_project, "prepare")
    assert {path.name for path in scored_project.trips.glob("*/*")} == {files.MANIFEST}
    before = read_parts(scored_project)
    with pytest.raises(TiplineError, match="does not answer"):  # one month has to be scored
        workbench.run(scored_project, "score")
    assert read_parts(scored_project) == before
    settings = workbench.load_settings(scored_project)
    score.mirror_manifests(storage.open_storage(places["predictions"]), scored_project, settings.months)
    assert {name.partition("/")[0] for name in read_parts(scored_project)} == {"month=2024-01"}
