"""Each change of champion is one line in models/promotions.jsonl, wherever it was made; a rollback takes one back."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from mlflow.tracking import MlflowClient

from tests import workbench
from tipline import files
from tipline.commands import promote, rollback
from tipline.errors import TiplineError, UsageError
from tipline.model import artifact
from tipline.registry import history, model_versions, store, training_runs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]

pytestmark = workbench.MLFLOW_WARNINGS
NAME = "tip-probability"


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, mlflow_store: Path) -> Paths:
    """A project in which all months are scored with its first version."""
    del mlflow_store
    paths = workbench.copy_project(workbench.scored(request), tmp_path)
    paths.promotions.unlink()  # of another registry
    shutil.rmtree(paths.champion)
    workbench.run(paths, "register")
    return paths


def train_another(paths: Paths, c: float) -> str:
    """Train and register a version with another C; return its digest."""
    workbench.change_settings(paths, train={"params": {"C": c}})
    workbench.run(paths, "train", "register")
    return artifact.read_digest(paths.challenger)


def client(paths: Paths) -> MlflowClient:
    return MlflowClient(store.get_store_address(paths), store.get_store_address(paths))


def champion(paths: Paths) -> int:
    found = model_versions.get_champion(client(paths), NAME)
    assert found is not None
    return int(found.version)


def moves(paths: Paths) -> list[tuple[str, int | None, int]]:
    """How, from which version and to which the champion moved."""
    return [
        (change["how"], change["from"] and change["from"]["version"], change["to"]["version"])
        for change in history.history(paths, NAME)
    ]


def force(paths: Paths, version: int) -> None:
    promote.run(workbench.load_settings(paths), paths, str(version), "a test")


def back(paths: Paths) -> None:
    rollback.run(workbench.load_settings(paths), paths)


def test_the_first_champion_is_a_line_and_a_second_run_adds_none(project: Paths) -> None:
    workbench.run(project, "register")
    assert moves(project) == [("first", None, 1)]
    line = json.loads(project.promotions.read_text())
    assert line["who"] == history.get_user(project)
    assert line["when"].endswith("Z")
    assert line["to"] == {
        "version": 1,
        "digest": artifact.read_digest(project.champion),
        "run": workbench.read_json(project.champion_ref)["run"],
    }


def test_a_promotion_is_a_line_with_who_why_and_the_verdict(
    project: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = train_another(project, 0.01)
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    assert run_cli(project.root, "promote", "2", "--force", "asked for")[0] == 0
    workbench.run(project, "register")
    assert moves(project) == [("first", None, 1), ("promote", 1, 2)]
    line = json.loads(project.promotions.read_text().splitlines()[-1])
    assert (line["who"], line["reason"], line["to"]["digest"]) == ("ann", "asked for", second)
    assert "The gate refuses it" in line["verdict"]
    assert line["from"]["digest"] == json.loads(project.promotions.read_text().splitlines()[0])["to"]["digest"]


def test_what_the_gate_refuses_is_no_line(project: Paths, run_cli: Run) -> None:
    train_another(project, 1e-6)
    assert run_cli(project.root, "promote", "2")[0] == 3
    assert moves(project) == [("first", None, 1)]


def test_an_alias_moved_in_mlflow_is_noticed_once_and_by_nobody_else(project: Paths, tmp_path: Path) -> None:
    train_another(project, 0.01)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    workbench.run(project, "register")
    workbench.run(project, "register")
    assert moves(project) == [("first", None, 1), ("noticed", 1, 2)]
    assert history.history(project, NAME)[-1]["who"] is None
    # Another clone, which has not pulled that line, at the same registry.
    (tmp_path / "clone").mkdir()
    other = workbench.copy_project(project, tmp_path / "clone")
    other.promotions.write_text(project.promotions.read_text().splitlines(keepends=True)[0])
    os.environ["MLFLOW_TRACKING_URI"] = store.get_store_address(project)
    workbench.run(other, "register")
    assert workbench.read_json(other.ref)["version"] == 2
    assert moves(other) == [("first", None, 1)]


def test_a_line_that_could_not_be_written_is_noticed_by_the_next_run(project: Paths) -> None:
    train_another(project, 0.01)
    kept = project.promotions.read_bytes()
    project.promotions.unlink()
    project.promotions.mkdir()  # what stands in the line's way
    with pytest.raises(OSError, match="directory"):
        force(project, 2)
    assert champion(project) == 2
    project.promotions.rmdir()
    project.promotions.write_bytes(kept)
    workbench.run(project, "register")
    assert moves(project) == [("first", None, 1), ("noticed", 1, 2)]
    assert "refuses" in history.history(project, NAME)[-1]["verdict"]


def test_a_change_back_is_a_line_though_another_clone_wrote_the_change_before(project: Paths, tmp_path: Path) -> None:
    train_another(project, 0.01)
    (tmp_path / "clone").mkdir()
    other = workbench.copy_project(project, tmp_path / "clone")
    os.environ["MLFLOW_TRACKING_URI"] = store.get_store_address(project)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    workbench.run(project, "register")
    client(project).set_registered_model_alias(NAME, "champion", "1")
    workbench.run(other, "register")
    workbench.run(project, "register")
    assert moves(project) == [("first", None, 1), ("noticed", 1, 2)]
    assert moves(other) == [("first", None, 1), ("noticed", 2, 1)]


def test_lines_that_git_has_merged_out_of_order_are_read_in_order_of_time(project: Paths) -> None:
    train_another(project, 0.01)
    force(project, 2)
    back(project)
    lines = [json.loads(line) for line in project.promotions.read_text().splitlines()]
    for second, line in enumerate(lines):
        line["when"] = f"2026-11-22T10:00:0{second}Z"
    project.promotions.write_text("".join(json.dumps(lines[place]) + "\n" for place in (0, 2, 1)))
    assert moves(project) == [("first", None, 1), ("promote", 1, 2), ("rollback", 2, 1)]


def test_a_lost_registry_does_not_choose_between_files_and_log(
    project: Paths, run_cli: Run, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    train_another(project, 0.01)
    force(project, 2)  # models/champion/ is still version 1
    (tmp_path / "clone").mkdir()
    clone = workbench.copy_project(project, tmp_path / "clone")
    (clone.root / "mlflow.db").write_bytes(request.getfixturevalue("mlflow_template").read_bytes())
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    code, printed = run_cli(clone.root, "register")
    assert code == 1
    assert "models/champion/ has version 1" in printed
    assert "ends with version 2" in printed
    assert run_cli(clone.root, "promote")[0] == 0  # the newest there, the challenger, is what the log names
    assert run_cli(clone.root, "register")[0] == 0
    assert workbench.read_json(clone.ref)["digest"] == artifact.read_digest(clone.challenger)


def test_a_line_that_was_cut_off_is_passed_over_and_ended(project: Paths) -> None:
    with project.promotions.open("a") as file:
        file.write('{"when": "2026-')
    train_another(project, 0.01)
    force(project, 2)
    assert moves(project) == [("first", None, 1), ("promote", 1, 2)]
    assert len(project.promotions.read_text().splitlines()) == 3


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    files.append_line(path, "one")
    script = (
        "import resource, signal, sys; from pathlib import Path; from tipline import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (6, 6))\n"
        "files.append_line(Path(sys.argv[1]), 'two')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, check=False)
    assert done.returncode == 1
    assert path.read_text() == "one\n"


def test_each_rollback_takes_one_change_back(project: Paths) -> None:
    for number, c in ((2, 0.1), (3, 0.01)):
        train_another(project, c)
        force(project, number)
    back(project)
    assert champion(project) == 2
    back(project)
    assert champion(project) == 1
    with pytest.raises(UsageError, match="no champion before version 1"):
        back(project)
    expected = [("first", None, 1), ("promote", 1, 2), ("promote", 2, 3), ("rollback", 3, 2), ("rollback", 2, 1)]
    assert moves(project) == expected
    force(project, 3)
    back(project)
    assert champion(project) == 1


def test_a_rollback_of_a_change_made_in_mlflow(project: Paths) -> None:
    train_another(project, 0.01)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    back(project)
    assert moves(project) == [("first", None, 1), ("noticed", 1, 2), ("rollback", 2, 1)]


def test_a_champion_that_is_no_model_can_be_rolled_back(project: Paths) -> None:
    client(project).create_model_version(NAME, source=(project.root / "data").as_uri())
    client(project).set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(TiplineError):
        workbench.run(project, "register")
    back(project)
    assert champion(project) == 1
    workbench.run(project, "register")


def test_after_a_rollback_the_months_of_the_withdrawn_version_are_named_and_scored_again(
    project: Paths,
    run_cli: Run,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", workbench.dask_cluster(request))
    before = workbench.read_tree(project.predictions)
    train_another(project, 0.01)
    force(project, 2)
    workbench.run(project, "register")
    away = project.root / "away"
    away.mkdir()
    for month in workbench.MONTHS[2:]:  # these cannot be scored with version 2
        project.prepared(month).rename(away / month)
    assert run_cli(project.root, "score")[0] == 4
    for month in workbench.MONTHS[2:]:
        (away / month).rename(project.prepared(month))
    caplog.clear()
    assert [run_cli(project.root, *command)[0] for command in (("rollback", "--reason", "wrong"), ("register",))] == [
        0,
        0,
    ]
    assert "version 2 had scored 2009-01, 2009-02\n" in caplog.text
    assert re.search(r"from version 2 \(\w{8}\) to version 1 \(\w{8}\); 2009-01, 2009-02, scored by", caplog.text)
    assert run_cli(project.root, "score")[0] == 0
    assert "scoring with tip-probability version 1: 2009-01, 2009-02 (10,000 rows)" in caplog.text
    parts = {name: data for name, data in before.items() if name.endswith(".parquet")}
    after = {name: data for name, data in workbench.read_tree(project.predictions).items() if name.endswith(".parquet")}
    assert after == parts
    assert history.history(project, NAME)[-1]["reason"] == "wrong"


def test_a_copy_for_experiments_writes_no_line_and_makes_no_version(
    project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    copied = workbench.copy_project(project, tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(project.root))
    monkeypatch.setenv("DVC_EXP_NAME", "other-c")
    digest = train_another(copied, 0.01)
    assert [int(version.version) for version in model_versions.list_versions(client(project), NAME)] == [1]
    assert champion(project) == 1
    assert moves(project) == [("first", None, 1)]
    assert workbench.read_json(copied.ref)["version"] == 1
    monkeypatch.delenv("DVC_ROOT")
    promote.run(workbench.load_settings(project), project, "other-c", "a test")
    found = model_versions.get_champion(client(project), NAME)
    assert found is not None
    assert (found.version, found.tags["dvc.exp"], model_versions.get_digest(found)) == (2, "other-c", digest)


def test_a_version_made_in_mlflows_page_of_a_run_is_one_of_ours(
    project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    copied = workbench.copy_project(project, tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(project.root))
    digest = train_another(copied, 0.01)
    monkeypatch.delenv("DVC_ROOT")
    run = next(run for run in client(project).search_runs(["1"]) if run.data.tags["tipline.digest"] == digest)
    uri = run.data.tags[training_runs.MODEL]
    client(project).create_model_version(NAME, uri, run.info.run_id, model_id=uri.removeprefix("models:/"))
    client(project).set_registered_model_alias(NAME, "champion", "2")
    workbench.run(project, "register")
    assert workbench.read_json(project.champion_ref)["digest"] == digest
    assert artifact.read_digest(project.champion) == digest
    assert moves(project)[-1] == ("noticed", 1, 2)


def test_a_run_that_is_not_there_or_not_one_is_a_usage_error(
    project: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed = run_cli(project.root, "promote", "nobody")
    assert code == 2
    assert "no run 'nobody'" in printed
    monkeypatch.setenv("DVC_EXP_NAME", "twice")
    for c in (0.1, 0.01):
        train_another(project, c)
    code, printed = run_cli(project.root, "promote", "twice")
    assert code == 2
    assert "2 runs are called 'twice'" in printed


def test_a_champion_that_is_nowhere_stops_before_another_scores_in_its_name(
    project: Paths, run_cli: Run, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    train_another(project, 0.01)
    force(project, 2)
    workbench.run(project, "register")
    (tmp_path / "clone").mkdir()
    clone = workbench.copy_project(project, tmp_path / "clone")
    template = request.getfixturevalue("mlflow_template")
    (clone.root / "mlflow.db").write_bytes(template.read_bytes())
    shutil.rmtree(clone.champion)
    workbench.change_settings(clone, train={"params": {"C": 0.5}})
    workbench.run(clone, "train")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    code, printed = run_cli(clone.root, "register")
    assert code == 1
    assert "is neither in MLflow's registry nor in models/champion/" in printed
    assert not clone.champion.exists()
    assert run_cli(clone.root, "promote")[0] == 1
    assert run_cli(clone.root, "promote", "--force", "begin anew")[0] == 0
    assert run_cli(clone.root, "register")[0] == 0
    assert moves(clone)[-1][0] == "promote"
