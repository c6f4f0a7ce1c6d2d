"""`tipline status`: where the project stands, and each thing that is wrong with the command that mends it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from tests import servers, workbench
from tipline import cluster, files
from tipline.commands import checks, promote, status
from tipline.errors import TiplineError
from tipline.model import artifact, pyfunc
from tipline.registry import model_versions, store

if TYPE_CHECKING:
    from collections.abc import Callable

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]

pytestmark = workbench.MLFLOW_WARNINGS
NAME = "tip-probability"
MONTH = "2009-02"


@pytest.fixture
def complete(request: pytest.FixtureRequest, tmp_path: Path, mlflow_store: Path) -> Paths:
    """A project in which all stages have run and whose model is registered."""
    del mlflow_store
    paths = workbench.copy_project(workbench.scored(request), tmp_path)
    workbench.run(paths, "register")
    return paths


def client(paths: Paths) -> MlflowClient:
    mlflow.set_tracking_uri(store.get_store_address(paths))
    mlflow.set_registry_uri(store.get_store_address(paths))
    return MlflowClient()


def lines_of(paths: Paths) -> list[str]:
    """The lines of the status, and at their end the error, if there is one."""
    lines = []
    try:
        for line in status.run(workbench.load_settings(paths), paths):
            lines.append(line)  # noqa: PERF402 (an error may come after some)
    except TiplineError as error:
        lines.append(f"error       {error.parts[1]}")
    return lines


def status_of(paths: Paths) -> dict[str, str]:
    return {line[:12].strip(): line[12:] for line in lines_of(paths)}


def told(paths: Paths, kind: str) -> list[str]:
    """What is wrong, or the hints."""
    return [line[12:] for line in lines_of(paths) if line.startswith(kind)]


def another_version(paths: Paths) -> None:
    """Train with another C and register that."""
    workbench.change_settings(paths, train={"params": {"C": 0.01}})
    workbench.run(paths, "train", "register")


# ---- where the project stands ----


def test_before_anything_ran_nothing_is_wrong(make_project: Callable[..., Paths], mlflow_store: Path) -> None:
    del mlflow_store
    said = status_of(make_project(months=list(workbench.MONTHS)))
    assert said["champion"] == "none yet"
    assert said["challenger"].startswith("none yet")
    assert said["not scored"] == ", ".join(workbench.MONTHS)
    assert said["evaluation"] == said["last month"] == "none yet"
    assert said["next"] == "dvc repro"
    assert re.fullmatch(r"(\d) of \1 fine", said["checks"])
    assert "wrong" not in said


def test_when_all_is_done(complete: Paths, run_cli: Run) -> None:
    workbench.run(complete, "record")
    code, printed = run_cli(complete.root, "status")
    said = {line[:12].strip(): line[12:] for line in printed.splitlines()}
    skill = workbench.read_json(complete.evaluation)["challenger"]["skill"]
    name = client(complete).get_run(workbench.read_json(complete.ref)["run"]).info.run_name
    assert said["champion"] == f"version 1: {name}, skill {skill:.4f}"
    assert said["challenger"].startswith("version 1: ")
    assert said["months"] == "4, 4 scored with models/champion"
    assert said["not scored"] == "-"
    assert said["evaluation"] == workbench.read_json(complete.evaluation)["verdict"]
    last = workbench.read_json(complete.monitoring / "months.json")[-1]
    assert said["last month"].startswith(f"2024-01: 5,000 rows, mean probability {last['mean_probability']:.4f}")
    assert said["next"] == "nothing to do"
    assert said["checks"] == "8 of 8 fine"
    assert (code, len(printed.splitlines())) == (0, 13)


def test_after_a_promotion_it_says_to_run_dvc(complete: Paths) -> None:
    another_version(complete)
    promote.run(workbench.load_settings(complete), complete, "2", "test")
    said = status_of(complete)
    assert said["champion"].startswith("version 2: ")
    assert said["next"].startswith("dvc repro: the champion is version 2, the predictions are version 1's")
    assert "wrong" not in said


def test_months_that_are_not_scored_are_named_and_nothing_wrong(complete: Paths) -> None:
    shutil.rmtree(complete.predictions / f"month={MONTH}")
    workbench.change_settings(complete, months=[*workbench.MONTHS, "2024-02"])
    said = status_of(complete)
    assert said["not scored"] == f"{MONTH}, 2024-02"
    assert said["months"] == "5, 3 scored with models/champion"
    assert said["next"] == "dvc repro: 2 months to score"
    assert "wrong" not in said


def test_a_foreign_version_does_not_stop_it(complete: Paths) -> None:
    source = (complete.root / "mlartifacts").as_uri()
    number = str(client(complete).create_model_version(NAME, source=source).version)
    client(complete).set_registered_model_alias(NAME, "champion", number)
    assert f"version {number}" in status_of(complete)["champion"]


def test_a_run_that_was_deleted_for_good_does_not_stop_it(complete: Paths) -> None:
    version = client(complete).get_model_version(NAME, "1")
    client(complete).delete_run(version.run_id)
    client(complete)._tracking_client.store._hard_delete_run(version.run_id)  # as `mlflow gc` does
    said = status_of(complete)
    assert said["champion"] == "version 1: its run is gone"
    assert "wrong" not in said


# ---- what is wrong ----


def test_a_store_that_cannot_be_reached_does_not_hide_the_rest(
    complete: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://person:geheim@127.0.0.1:{servers.free_port()}")
    shutil.rmtree(complete.challenger)
    code, printed = run_cli(complete.root, "status")
    assert code == 1
    assert f"champion    {NAME} version 1, as models/champion/ has it" in printed
    assert "months      4, 4 scored with models/champion" in printed
    assert re.search(r"^wrong       store: .*cannot be reached.*MLFLOW_TRACKING_URI", printed, re.MULTILINE)
    assert "wrong       challenger: " in printed
    assert "geheim" not in printed
    assert "Traceback" not in printed


def test_a_lost_alias_is_told_and_register_brings_it_back(complete: Paths) -> None:
    client(complete).delete_registered_model_alias(NAME, "champion")
    assert [line.partition(":")[0] for line in told(complete, "wrong")] == ["alias"]
    workbench.run(complete, "register")
    assert told(complete, "wrong") == []


@pytest.mark.parametrize("spoil", ["change", "remove", "remove all"])
def test_champion_files_that_are_not_there_or_others_are_told_and_register_brings_them(
    complete: Paths, spoil: str
) -> None:
    if spoil == "remove all":
        shutil.rmtree(complete.champion)
    elif spoil == "remove":
        (complete.champion / pyfunc.SPEC).unlink()
    else:
        (complete.champion / pyfunc.SPEC).write_text((complete.champion / pyfunc.SPEC).read_text() + " ")
    wrong = told(complete, "wrong")
    assert [line.partition(":")[0] for line in wrong] == ["champion"]
    assert wrong[0].endswith("; dvc repro register")
    workbench.run(complete, "register")
    assert told(complete, "wrong") == []


def test_a_challenger_that_is_not_whole_is_told(complete: Paths) -> None:
    (complete.challenger / artifact.CODE).unlink()
    assert told(complete, "wrong")[0].startswith("challenger: models/challenger/ is not whole")
    assert status_of(complete)["next"].startswith("dvc repro: models/challenger is missing")
    workbench.run(complete, "train")
    assert told(complete, "wrong") == []


def test_a_challenger_that_was_changed_is_a_hint(complete: Paths) -> None:
    (complete.challenger / artifact.CODE).write_text("changed")
    assert told(complete, "hint")[0].startswith("challenger: models/challenger/ is in no version")
    assert told(complete, "wrong") == []


def test_files_that_the_registry_has_lost_are_told_with_a_command_that_registers_anew(complete: Paths) -> None:
    shutil.rmtree(complete.root / "mlartifacts")
    wrong = told(complete, "wrong")
    assert [line.partition(":")[0] for line in wrong] == ["artifacts"]
    command = wrong[0][wrong[0].index("python -c") :].removesuffix(" && dvc repro")
    shell(complete.root, command)
    workbench.run(complete, "register")
    assert told(complete, "wrong") == []
    assert model_versions.get_champion(client(complete), NAME) is not None


def shell(folder: Path, command: str) -> None:
    """Run a command as a person with an activated environment does."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    who = {f"GIT_{role}_{what}": "t@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    arguments, environment = ["/bin/sh", "-c", command], {**os.environ, **who, "PATH": path}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_predictions_that_were_cut_off_are_told_and_scored_again(
    complete: Paths, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = next((complete.predictions / f"month={MONTH}").glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    assert told(complete, "wrong") == [f"predictions: predictions are not as their manifests say: {MONTH}; dvc repro"]
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
    workbench.run(complete, "score")
    assert told(complete, "wrong") == []


def test_a_prepared_month_that_was_cut_off_is_told_and_prepared_again(complete: Paths) -> None:
    os.truncate(complete.prepared_file(MONTH), 100)
    expected = f"predictions: prepared months are lost or damaged: {MONTH}; dvc repro -f prepare@{MONTH}"
    assert told(complete, "wrong") == [expected]
    workbench.prepare_again(complete, MONTH)
    assert told(complete, "wrong") == []


def test_a_model_of_another_scikit_learn_is_wrong_where_it_is_needed(complete: Paths) -> None:
    linear = workbench.read_json(complete.champion / pyfunc.SPEC)
    of_another_release(complete.champion / pyfunc.ESTIMATOR)
    assert not [line for line in told(complete, "wrong") if line.startswith("libraries")]
    files.write_json(complete.champion / pyfunc.SPEC, linear | {"linear": None})
    wrong = [line for line in told(complete, "wrong") if line.startswith("libraries")]
    assert "was made with scikit-learn 0.1" in wrong[0]
    assert "requirements.lock" in wrong[0]


def of_another_release(estimator: Path) -> None:
    """Let a skops file say that it was made with scikit-learn 0.1."""
    with zipfile.ZipFile(estimator) as archive:
        contents = {entry: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(estimator, "w") as archive:
        for entry, data in contents.items():
            version = rb'("_sklearn_version": \{[^{}]*?"content": "\\")[^"\\]*'
            archive.writestr(entry, re.sub(version, rb"\g<1>0.1.0", data))


def test_other_libraries_than_the_models_are_a_hint(complete: Paths) -> None:
    workbench.change_settings(complete, train={"params": {"C": 0.01}})
    workbench.run(complete, "train")
    training = workbench.read_json(complete.challenger / "training.json")
    training["libraries"]["numpy"] = "1.0.7"  # as if it had been trained where numpy is another one
    files.write_json(complete.challenger / "training.json", training)
    workbench.run(complete, "register")
    client(complete).set_registered_model_alias(NAME, "champion", "2")
    workbench.run(complete, "register")
    hint = told(complete, "hint")[0]
    assert hint.startswith(f"libraries: the champion was made with numpy 1.0.7 (here {installed('numpy')}); uv pip ")
    assert "numpy==1.0.7" in hint
    assert told(complete, "wrong") == []


def test_a_disk_too_small_for_the_months_to_come_is_told(complete: Paths) -> None:
    workbench.change_settings(complete, months=[*workbench.MONTHS, "2024-02"])
    assert told(complete, "wrong") == []
    manifest = workbench.read_json(complete.raw_manifest(MONTH))
    files.write_json(complete.raw_manifest(MONTH), manifest | {"bytes": 10**18})
    assert re.match(r"disk: \S+ GB are free, the months to come need about \S+ GB; dvc gc ", told(complete, "wrong")[0])


def test_a_scheduler_that_does_not_answer_is_told(
    complete: Paths, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "SCHEDULER_SECONDS", 1)
    monkeypatch.setenv(cluster.ADDRESS, f"tcp://127.0.0.1:{servers.free_port()}")
    assert told(complete, "wrong")[0].startswith("scheduler: The dask scheduler does not answer")
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
    assert status_of(complete)["checks"] == "9 of 9 fine"


def test_git_and_dvc_are_hints(complete: Paths) -> None:
    shell(complete.root, "git init -q && dvc init -q && git add -f params.yaml dvc.yaml")
    hints = told(complete, "hint")
    assert [hint.partition(":")[0] for hint in hints] == ["remote", "git"]
    assert "git add params.yaml models/promotions.jsonl" in hints[1]
    assert told(complete, "wrong") == []
    remote, commit = (hint.partition("; ")[2] for hint in hints)
    shell(complete.root, remote.replace("NAME ADDRESS", "kept ../kept"))
    shell(complete.root, f"{commit} -q -m test")
    assert told(complete, "hint") == []
