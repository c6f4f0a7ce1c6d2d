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

from tests import pipeline
from tipline import files
from tipline.commands import promote, rollback
from tipline.errors import TiplineError, UsageError
from tipline.mlflow import promotions, registry, tracking, training
from tipline.models import modelfiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.layout import Layout

    Run = Callable[..., tuple[int, str]]

pytestmark = pipeline.MLFLOW_WARNINGS
NAME = "tip-probability"


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, mlflow_store: Path) -> Layout:
    """A project in which all months are scored with its first version."""
    del mlflow_store
    layout = pipeline.copy(pipeline.scored(request), tmp_path)
    layout.promotions.unlink()  # of another registry
    shutil.rmtree(layout.champion)
    pipeline.run(layout, "register")
    return layout


def train_another(layout: Layout, c: float) -> str:
    """Train and register a version with another C; return its digest."""
    pipeline.change(layout, train={"params": {"C": c}})
    pipeline.run(layout, "train", "register")
    return modelfiles.digest_in(layout.challenger)


def client(layout: Layout) -> MlflowClient:
    return MlflowClient(tracking.store(layout), tracking.store(layout))


def champion(layout: Layout) -> int:
    found = registry.by_alias(client(layout), NAME)
    assert found is not None
    return int(found.version)


def moves(layout: Layout) -> list[tuple[str, int | None, int]]:
    """How, from which version and to which the champion moved."""
    return [
        (change["how"], change["from"] and change["from"]["version"], change["to"]["version"])
        for change in promotions.history(layout, NAME)
    ]


def force(layout: Layout, version: int) -> None:
    promote.run(pipeline.settings(layout), layout, str(version), "a test")


def back(layout: Layout) -> None:
    rollback.run(pipeline.settings(layout), layout)


def test_the_first_champion_is_a_line_and_a_second_run_adds_none(project: Layout) -> None:
    pipeline.run(project, "register")
    assert moves(project) == [("first", None, 1)]
    line = json.loads(project.promotions.read_text())
    assert line["who"] == promotions.who(project)
    assert line["when"].endswith("Z")
    assert line["to"] == {
        "version": 1,
        "digest": modelfiles.digest_in(project.champion),
        "run": pipeline.read_json(project.ref)["run"],
    }


def test_a_promotion_is_a_line_with_who_why_and_the_verdict(
    project: Layout, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = train_another(project, 0.01)
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    assert run_cli(project.root, "promote", "2", "--force", "asked for")[0] == 0
    pipeline.run(project, "register")
    assert moves(project) == [("first", None, 1), ("promote", 1, 2)]
    line = json.loads(project.promotions.read_text().splitlines()[-1])
    assert (line["who"], line["reason"], line["to"]["digest"]) == ("ann", "asked for", second)
    assert "The gate refuses it" in line["verdict"]
    assert line["from"]["digest"] == json.loads(project.promotions.read_text().splitlines()[0])["to"]["digest"]


def test_what_the_gate_refuses_is_no_line(project: Layout, run_cli: Run) -> None:
    train_another(project, 1e-6)
    assert run_cli(project.root, "promote", "2")[0] == 3
    assert moves(project) == [("first", None, 1)]


def test_an_alias_moved_in_mlflow_is_noticed_once_and_by_nobody_else(project: Layout, tmp_path: Path) -> None:
    train_another(project, 0.01)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    pipeline.run(project, "register")
    pipeline.run(project, "register")
    assert moves(project) == [("first", None, 1), ("noticed", 1, 2)]
    assert promotions.history(project, NAME)[-1]["who"] is None
    # Another clone, which has not pulled that line, at the same registry.
    (tmp_path / "clone").mkdir()
    other = pipeline.copy(project, tmp_path / "clone")
    other.promotions.write_text(project.promotions.read_text().splitlines(keepends=True)[0])
    os.environ["MLFLOW_TRACKING_URI"] = tracking.store(project)
    pipeline.run(other, "register")
    assert pipeline.read_json(other.ref)["version"] == 2
    assert moves(other) == [("first", None, 1)]


def test_a_line_that_could_not_be_written_is_noticed_by_the_next_run(project: Layout) -> None:
    train_another(project, 0.01)
    kept = project.promotions.read_bytes()
    project.promotions.unlink()
    project.promotions.mkdir()  # what stands in the line's way
    with pytest.raises(OSError, match="directory"):
        force(project, 2)
    assert champion(project) == 2
    project.promotions.rmdir()
    project.promotions.write_bytes(kept)
    pipeline.run(project, "register")
    assert moves(project) == [("first", None, 1), ("noticed", 1, 2)]
    assert "refuses" in promotions.history(project, NAME)[-1]["verdict"]


def test_a_change_back_is_a_line_though_another_clone_wrote_the_change_before(project: Layout, tmp_path: Path) -> None:
    train_another(project, 0.01)
    (tmp_path / "clone").mkdir()
    other = pipeline.copy(project, tmp_path / "clone")
    os.environ["MLFLOW_TRACKING_URI"] = tracking.store(project)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    pipeline.run(project, "register")
    client(project).set_registered_model_alias(NAME, "champion", "1")
    pipeline.run(other, "register")
    pipeline.run(project, "register")
    assert moves(project) == [("first", None, 1), ("noticed", 1, 2)]
    assert moves(other) == [("first", None, 1), ("noticed", 2, 1)]


def test_lines_that_git_has_merged_out_of_order_are_read_in_order_of_time(project: Layout) -> None:
    train_another(project, 0.01)
    force(project, 2)
    back(project)
    lines = [json.loads(line) for line in project.promotions.read_text().splitlines()]
    for second, line in enumerate(lines):
        line["when"] = f"2026-11-22T10:00:0{second}Z"
    project.promotions.write_text("".join(json.dumps(lines[place]) + "\n" for place in (0, 2, 1)))
    assert moves(project) == [("first", None, 1), ("promote", 1, 2), ("rollback", 2, 1)]


def test_a_lost_registry_does_not_choose_between_files_and_log(
    project: Layout, run_cli: Run, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    train_another(project, 0.01)
    force(project, 2)  # models/champion/ is still version 1
    (tmp_path / "clone").mkdir()
    clone = pipeline.copy(project, tmp_path / "clone")
    (clone.root / "mlflow.db").write_bytes(request.getfixturevalue("_mlflow_template").read_bytes())
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    code, printed = run_cli(clone.root, "register")
    assert code == 1
    assert "models/champion/ has version 1" in printed
    assert "ends with version 2" in printed
    assert run_cli(clone.root, "promote")[0] == 0  # the newest there, the challenger, is what the log names
    assert run_cli(clone.root, "register")[0] == 0
    assert pipeline.read_json(clone.ref)["digest"] == modelfiles.digest_in(clone.challenger)


def test_a_line_that_was_cut_off_is_passed_over_and_ended(project: Layout) -> None:
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


def test_each_rollback_takes_one_change_back(project: Layout) -> None:
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


def test_a_rollback_of_a_change_made_in_mlflow(project: Layout) -> None:
    train_another(project, 0.01)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    back(project)
    assert moves(project) == [("first", None, 1), ("noticed", 1, 2), ("rollback", 2, 1)]


def test_a_champion_that_is_no_model_can_be_rolled_back(project: Layout) -> None:
    client(project).create_model_version(NAME, source=(project.root / "data").as_uri())
    client(project).set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(TiplineError):
        pipeline.run(project, "register")
    back(project)
    assert champion(project) == 1
    pipeline.run(project, "register")


def test_after_a_rollback_the_months_of_the_withdrawn_version_are_named_and_scored_again(
    project: Layout,
    run_cli: Run,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", pipeline.dask_cluster(request))
    before = pipeline.tree(project.predictions)
    train_another(project, 0.01)
    force(project, 2)
    pipeline.run(project, "register")
    away = project.root / "away"
    away.mkdir()
    for month in pipeline.MONTHS[2:]:  # these cannot be scored with version 2
        project.trips(month).rename(away / month)
    assert run_cli(project.root, "score")[0] == 4
    for month in pipeline.MONTHS[2:]:
        (away / month).rename(project.trips(month))
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
    after = {name: data for name, data in pipeline.tree(project.predictions).items() if name.endswith(".parquet")}
    assert after == parts
    assert promotions.history(project, NAME)[-1]["reason"] == "wrong"


def test_a_copy_for_experiments_writes_no_line_and_makes_no_version(
    project: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    copied = pipeline.copy(project, tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(project.root))
    monkeypatch.setenv("DVC_EXP_NAME", "other-c")
    digest = train_another(copied, 0.01)
    assert [int(version.version) for version in registry.versions(client(project), NAME)] == [1]
    assert champion(project) == 1
    assert moves(project) == [("first", None, 1)]
    assert pipeline.read_json(copied.ref)["version"] == 1
    monkeypatch.delenv("DVC_ROOT")
    promote.run(pipeline.settings(project), project, "other-c", "a test")
    found = registry.by_alias(client(project), NAME)
    assert found is not None
    assert (found.version, found.tags["dvc.exp"], registry.digest_of(found)) == (2, "other-c", digest)


def test_a_version_made_in_mlflows_page_of_a_run_is_one_of_ours(
    project: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    copied = pipeline.copy(project, tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(project.root))
    digest = train_another(copied, 0.01)
    monkeypatch.delenv("DVC_ROOT")
    run = next(run for run in client(project).search_runs(["1"]) if run.data.tags["tipline.digest"] == digest)
    uri = run.data.tags[training.MODEL]
    client(project).create_model_version(NAME, uri, run.info.run_id, model_id=uri.removeprefix("models:/"))
    client(project).set_registered_model_alias(NAME, "champion", "2")
    pipeline.run(project, "register")
    assert pipeline.read_json(project.ref)["digest"] == digest
    assert modelfiles.digest_in(project.champion) == digest
    assert moves(project)[-1] == ("noticed", 1, 2)


def test_a_run_that_is_not_there_or_not_one_is_a_usage_error(
    project: Layout, run_cli: Run, monkeypatch: pytest.MonkeyPatch
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
    project: Layout, run_cli: Run, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    train_another(project, 0.01)
    force(project, 2)
    pipeline.run(project, "register")
    (tmp_path / "clone").mkdir()
    clone = pipeline.copy(project, tmp_path / "clone")
    template = request.getfixturevalue("_mlflow_template")
    (clone.root / "mlflow.db").write_bytes(template.read_bytes())
    shutil.rmtree(clone.champion)
    pipeline.change(clone, train={"params": {"C": 0.5}})
    pipeline.run(clone, "train")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    code, printed = run_cli(clone.root, "register")
    assert code == 1
    assert "is neither in MLflow's registry nor in models/champion/" in printed
    assert not clone.champion.exists()
    assert run_cli(clone.root, "promote")[0] == 1
    assert run_cli(clone.root, "promote", "--force", "begin anew")[0] == 0
    assert run_cli(clone.root, "register")[0] == 0
    assert moves(clone)[-1][0] == "promote"
