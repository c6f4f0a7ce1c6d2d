"""A model is one run and one version, whatever the registry has been through; the alias says which one scores."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tests import workbench
from tipline import cluster, files
from tipline.commands import promote
from tipline.errors import TiplineError, UsageError, hide_secrets
from tipline.model import artifact
from tipline.registry import history, model_versions, store, training_runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS
NAME = "tip-probability"


@pytest.fixture
def trained(request: pytest.FixtureRequest, tmp_path: Path, mlflow_store: Path) -> Paths:
    """A project with a challenger and an empty store."""
    del mlflow_store
    return workbench.copy_project(workbench.trained(request), tmp_path)


@pytest.fixture
def project(trained: Paths) -> Paths:
    """A project whose first version is registered and champion."""
    workbench.run(trained, "register")
    return trained


@pytest.fixture
def complete(request: pytest.FixtureRequest, tmp_path: Path, mlflow_store: Path) -> Paths:
    """A project in which all stages have run, but whose registry is empty."""
    del mlflow_store
    return workbench.copy_project(workbench.scored(request), tmp_path)


def client(paths: Paths) -> MlflowClient:
    address = store.get_store_address(paths)
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    return MlflowClient()


def versions(paths: Paths) -> list[int]:
    return [int(version.version) for version in model_versions.list_versions(client(paths), NAME)]


def champion(paths: Paths) -> int | None:
    found = model_versions.get_champion(client(paths), NAME)
    return int(found.version) if found else None


def runs(paths: Paths, experiment: str) -> list[Any]:
    found = client(paths).get_experiment_by_name(f"tipline/{experiment}")
    return list(client(paths).search_runs([found.experiment_id])) if found else []


def digest(folder: Path) -> str:
    return artifact.hash_artifact(artifact.read_artifact(folder))


def ref(paths: Paths) -> Any:
    return workbench.read_json(paths.champion_ref)


def train_another(paths: Paths, c: float = 0.01) -> str:
    """Train with another C; return the new challenger's digest."""
    workbench.change_settings(paths, train={"params": {"C": c}})
    workbench.run(paths, "train")
    return digest(paths.challenger)


def test_the_first_model_is_one_run_one_version_and_champion(trained: Paths) -> None:
    workbench.run(trained, "register")
    assert versions(trained) == [1]
    assert champion(trained) == 1
    assert len(runs(trained, "train")) == 1
    assert ref(trained) == {
        "name": NAME,
        "version": 1,
        "run": runs(trained, "train")[0].info.run_id,
        "digest": digest(trained.challenger),
    }
    assert digest(trained.champion) == digest(trained.challenger)
    assert {path.name for path in trained.champion.iterdir()} == {*artifact.FILES, artifact.TRAINING, "ref.json"}


def test_registering_again_makes_nothing(project: Paths) -> None:
    written = {path: path.stat().st_mtime_ns for path in project.champion.iterdir()}
    workbench.run(project, "register")
    assert versions(project) == [1]
    assert len(runs(project, "train")) == 1
    assert {path: path.stat().st_mtime_ns for path in project.champion.iterdir()} == written


def test_the_run_tells_of_the_training(project: Paths) -> None:
    run = runs(project, "train")[0]
    training = workbench.read_json(project.challenger / artifact.TRAINING)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == training["name"] == f"{training['params']['rows']:,}x7 C=1.0 logistic_regression"
    assert run.data.params == {name: str(value) for name, value in training["params"].items()}
    assert run.data.params["estimator.C"] == "1.0"
    assert run.data.metrics == pytest.approx(training["metrics"])
    assert set(run.data.metrics) == {"train.log_loss", "train.baseline_log_loss", "train.skill", "train.auc"}
    tags = run.data.tags
    assert tags["tipline.digest"] == digest(project.challenger)
    assert tags["tipline.data"] == training["data"]
    assert tags["dvc.stage"] == "train"
    assert tags["tipline.git"].removesuffix("-dirty") == tags["mlflow.source.git.commit"]
    assert [file.path for file in client(project).list_artifacts(run.info.run_id)] == ["learning_curve.png"]


def test_dvcs_names_are_tags(trained: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "register")
    monkeypatch.setenv("DVC_EXP_NAME", "soft-cat")
    workbench.run(trained, "register")
    tags = runs(trained, "train")[0].data.tags
    assert (tags["dvc.stage"], tags["dvc.exp"]) == ("register", "soft-cat")


def test_the_model_has_signature_example_and_pinned_requirements(project: Paths) -> None:
    version = client(project).get_model_version(NAME, "1")
    assert version.tags["tipline.digest"] == digest(project.challenger)
    assert version.run_id == runs(project, "train")[0].info.run_id
    uri = f"models:/{NAME}/1"
    info = mlflow.models.get_model_info(uri)
    types = {column.name: column.type.name for column in info.signature.inputs}
    assert types == {
        "vendor": "string",
        "pickup_datetime": "datetime",
        "passenger_count": "double",
        "trip_distance": "double",
        "payment_type": "string",
        "fare_amount": "double",
        "extra": "double",
    }
    assert [(column.name, column.type.name) for column in info.signature.outputs] == [("tip_probability", "float")]
    root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    example = json.loads((root / "input_example.json").read_text())
    assert example["columns"] == list(types)
    assert len(example["data"]) == 5
    pinned = (root / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in pinned] == list(training_runs.REQUIREMENTS)
    assert not [line for line in pinned if "==" not in line]


def test_an_equal_model_is_the_same_version(project: Paths) -> None:
    workbench.run(project, "train", "register")
    train_another(project)
    workbench.run(project, "register")
    train_another(project, 1.0)
    workbench.run(project, "register")
    assert versions(project) == [2, 1]
    assert len(runs(project, "train")) == 2


def test_another_model_is_version_2_and_the_champion_stays(project: Paths) -> None:
    before = ref(project)
    assert train_another(project) != before["digest"]
    workbench.run(project, "register")
    assert versions(project) == [2, 1]
    assert champion(project) == 1
    assert ref(project) == before
    assert digest(project.champion) == before["digest"]


@pytest.mark.parametrize("number", ["2", None])
def test_promoting_brings_the_versions_own_files(project: Paths, number: str | None) -> None:
    first, second = digest(project.challenger), train_another(project)
    workbench.run(project, "register")
    registered = {name: (project.challenger / name).read_bytes() for name in (*artifact.FILES, artifact.TRAINING)}
    train_another(project, 0.1)  # what lies in the workspace is neither of them
    promote.run(workbench.load_settings(project), project, number, "test")
    assert champion(project) == 2
    assert ref(project)["digest"] == first
    workbench.run(project, "register")
    assert ref(project)["digest"] == second
    assert ref(project)["version"] == 2
    assert {name: (project.champion / name).read_bytes() for name in registered} == registered


def test_promoting_back_is_a_roll_back(project: Paths) -> None:
    first, second = digest(project.challenger), train_another(project)
    workbench.run(project, "register")
    for number, expected in ((2, second), (1, first)):
        promote.run(workbench.load_settings(project), project, str(number), "test")
        workbench.run(project, "register")
        assert (ref(project)["version"], ref(project)["digest"]) == (number, expected)


def test_an_alias_set_in_mlflow_is_followed(project: Paths) -> None:
    second = train_another(project)
    workbench.run(project, "register")
    client(project).set_registered_model_alias(NAME, "champion", "2")
    workbench.run(project, "register")
    assert ref(project)["digest"] == digest(project.champion) == second


@pytest.mark.parametrize("number", ["3", "0", "-1"])
def test_a_version_that_does_not_exist_is_refused_with_those_that_do(
    project: Paths, run_cli: Callable[..., tuple[int, str]], number: str
) -> None:
    train_another(project)
    workbench.run(project, "register")
    code, printed = run_cli(project.root, "promote", "--", number)
    assert code == 2, printed
    assert f"no version {number}; there are: 2, 1." in printed
    assert champion(project) == 1


def test_promoting_with_an_empty_registry_says_what_to_run(
    trained: Paths, run_cli: Callable[..., tuple[int, str]]
) -> None:
    for arguments in ((), ("1",)):
        code, printed = run_cli(trained.root, "promote", *arguments)
        assert code == 2, printed
        assert "dvc repro register" in printed


def test_a_pinned_version_scores_whatever_the_alias_says(project: Paths) -> None:
    second = train_another(project)
    workbench.run(project, "register")
    workbench.change_settings(project, score={"version": 2})
    workbench.run(project, "register")
    assert (ref(project)["version"], ref(project)["digest"]) == (2, second)
    assert champion(project) == 1
    workbench.change_settings(project, score={"version": 3})
    with pytest.raises(UsageError, match="no version 3; there are: 2, 1") as caught:
        workbench.run(project, "register")
    assert caught.value.parts[1] == "params.yaml, score.version"
    assert digest(project.champion) == second


def test_a_registry_that_was_lost_is_refilled_with_the_champion(
    project: Paths, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = digest(project.challenger), train_another(project)
    workbench.run(project, "register")
    # Files without their registry, as in a fresh clone. In another folder, because MLflow keeps databases open.
    (tmp_path / "clone").mkdir()
    clone = workbench.copy_project(project, tmp_path / "clone")
    shutil.copyfile(request.getfixturevalue("mlflow_template"), clone.root / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert versions(clone) == []
    workbench.run(clone, "register")
    found = model_versions.get_champion(client(clone), NAME)
    assert found is not None
    assert model_versions.get_digest(found) == ref(clone)["digest"] == digest(clone.champion) == first
    assert {model_versions.get_digest(one) for one in model_versions.list_versions(client(clone), NAME)} == {
        first,
        second,
    }
    assert ref(clone)["version"] == int(found.version)
    assert ref(clone)["run"] == found.run_id


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def unreachable() -> str:
    return f"http://person:geheim@127.0.0.1:{closed_port()}"


def assert_told_in_words(code: int, printed: str) -> None:
    assert code == 1
    assert "cannot be reached" in printed
    assert "MLFLOW_TRACKING_URI" in printed
    assert "geheim" not in printed
    assert "person" not in printed
    assert "Traceback" not in printed
    assert len(printed.splitlines()) == 3, printed


def test_a_registry_that_cannot_be_reached_is_told_in_seconds(trained: Paths) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("tipline")), "register"],
        cwd=trained.root,
        env=os.environ | {"MLFLOW_TRACKING_URI": unreachable()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert time.monotonic() - started < 20
    assert_told_in_words(done.returncode, done.stdout)
    assert not trained.ref.exists()


@pytest.mark.parametrize("command", ["promote", "record"])
def test_other_commands_too_tell_of_a_registry_that_cannot_be_reached(
    complete: Paths, run_cli: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unreachable())
    started = time.monotonic()
    assert_told_in_words(*run_cli(complete.root, command))
    assert time.monotonic() - started < 10


def test_a_store_in_a_folder_that_does_not_exist_is_made_or_told(
    trained: Paths, run_cli: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'no such folder' / 'mlflow.db'}")
    assert run_cli(trained.root, "register")[0] == 0  # MLflow makes the folder
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'a file' / 'mlflow.db'}")
    code, printed = run_cli(trained.root, "register")
    assert code == 1
    assert "a file" in printed
    assert "defect" not in printed


def test_a_database_that_is_none_is_told(trained: Paths, run_cli: Callable[..., tuple[int, str]]) -> None:
    (trained.root / "mlflow.db").write_text("this is a text file, and longer than a page header is" * 100)
    code, printed = run_cli(trained.root, "status")
    assert code == 1
    assert "cannot be reached" in printed
    assert "defect" not in printed


def register_foreign(paths: Paths) -> str:
    """Register a version as somebody would without tipline."""
    mlflow_client = client(paths)
    version = mlflow_client.create_model_version(NAME, source=(paths.root / "mlartifacts").as_uri())
    return str(version.version)


def test_a_version_that_is_no_model_is_not_promoted(project: Paths, run_cli: Callable[..., tuple[int, str]]) -> None:
    number = register_foreign(project)
    code, printed = run_cli(project.root, "promote", number)
    assert code == 2
    assert "are no MLflow model" in printed
    assert f"version {number}" in printed
    assert champion(project) == 1


def test_a_version_that_is_no_model_promoted_in_mlflow_is_refused(project: Paths) -> None:
    before = workbench.read_tree(project.champion)
    client(project).set_registered_model_alias(NAME, "champion", register_foreign(project))
    with pytest.raises(TiplineError, match="are no MLflow model"):
        workbench.run(project, "register")
    assert workbench.read_tree(project.champion) == before


def test_files_changed_in_the_artifact_store_are_refused(project: Paths) -> None:
    train_another(project)
    workbench.run(project, "register")
    changed = [
        path
        for path in (project.root / "mlartifacts").rglob("estimator.skops")
        if path.read_bytes() == (project.challenger / "estimator.skops").read_bytes()
    ]
    assert changed
    for path in changed:
        path.write_bytes(path.read_bytes() + b" ")
    before = workbench.read_tree(project.champion)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    train_another(project, 0.1)  # or the challenger's own files would do
    with pytest.raises(TiplineError, match="not those that were registered"):
        workbench.run(project, "register")
    assert workbench.read_tree(project.champion) == before


def test_files_missing_in_the_artifact_store_are_told(project: Paths, run_cli: Callable[..., tuple[int, str]]) -> None:
    train_another(project)
    workbench.run(project, "register")
    promote.run(workbench.load_settings(project), project, "2", "test")
    train_another(project, 0.1)
    shutil.rmtree(project.root / "mlartifacts")
    before = workbench.read_tree(project.champion)
    code, printed = run_cli(project.root, "register")
    assert code == 1
    assert "defect" not in printed
    assert workbench.read_tree(project.champion) == before


def test_two_processes_may_begin_with_a_fresh_store_at_once(trained: Paths, tmp_path: Path) -> None:
    (trained.root / "mlflow.db").unlink()
    other = tmp_path / "other"
    other.mkdir()
    second = workbench.copy_project(trained, other)
    workbench.change_settings(second, train={"params": {"C": 0.5}})
    workbench.run(second, "train")
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{trained.root / 'mlflow.db'}"}
    processes = [
        subprocess.Popen(
            [str(Path(sys.executable).with_name("tipline")), "register"],
            cwd=paths.root,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for paths in (trained, second)
    ]
    printed = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    digests = {model_versions.get_digest(version) for version in model_versions.list_versions(client(trained), NAME)}
    assert digests == {digest(trained.challenger), digest(second.challenger)}
    assert ref(trained)["digest"] == ref(second)["digest"]
    assert len(history.history(trained, NAME) + history.history(second, NAME)) == 1


def test_a_failed_run_is_marked_and_gone_on_with(trained: Paths) -> None:
    picture = trained.learning_curve.with_suffix(".png")
    picture.rename(picture.with_suffix(".away"))
    with pytest.raises((OSError, MlflowException, TiplineError)):
        workbench.run(trained, "register")
    assert [run.info.status for run in runs(trained, "train")] == ["FAILED"]
    assert versions(trained) == []
    picture.with_suffix(".away").rename(picture)
    workbench.run(trained, "register")
    assert versions(trained) == [1]
    assert [run.info.status for run in runs(trained, "train")] == ["FINISHED"]


def test_record_makes_each_run_once(complete: Paths) -> None:
    workbench.run(complete, "register", "record")
    counts = {name: len(runs(complete, name)) for name in ("train", "learning_curve", "evaluate", "monitor")}
    assert counts == {"train": 1, "learning_curve": 1 + 3, "evaluate": 1, "monitor": len(workbench.MONTHS)}
    workbench.run(complete, "record")
    assert {name: len(runs(complete, name)) for name in counts} == counts


def test_a_study_made_again_is_the_same_run_though_its_fits_took_other_seconds(complete: Paths) -> None:
    workbench.run(complete, "register", "record")
    report = complete.learning_curve.with_suffix(".json")
    decision = workbench.read_json(report)
    for size in decision["sizes"]:
        size["fit_seconds"] += 1
    files.write_json(report, decision)
    workbench.run(complete, "record")
    assert len(runs(complete, "learning_curve")) == 1 + len(decision["sizes"])


def test_the_curve_is_a_run_with_a_child_for_each_size(complete: Paths) -> None:
    workbench.run(complete, "register", "record")
    decision = workbench.read_json(complete.learning_curve.with_suffix(".json"))
    found = runs(complete, "learning_curve")
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = {int(run.data.params["rows"]): run for run in found if "mlflow.parentRunId" in run.data.tags}
    assert len(parents) == 1
    parent = parents[0]
    assert parent.data.tags["mlflow.note.content"] == f"{decision['reason']}\n\n{decision['sanity']}"
    assert parent.info.run_name == f"{decision['rows']:,}x7 C=1.0 logistic_regression"
    assert parent.data.params["rows"] == str(decision["rows"])
    assert parent.data.metrics["size.baseline_log_loss"] == pytest.approx(decision["baseline"]["validation.log_loss"])
    artifacts = {file.path for file in client(complete).list_artifacts(parent.info.run_id)}
    assert artifacts == {"learning_curve.csv", "learning_curve.png"}
    for name in ("held_out.skill", "validation.skill"):
        history = client(complete).get_metric_history(parent.info.run_id, name)
        assert {point.step: point.value for point in history} == {
            size["rows"]: pytest.approx(size[name]) for size in decision["sizes"]
        }
    for size in decision["sizes"]:
        child = children[size["rows"]]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.metrics["validation.log_loss"] == pytest.approx(size["validation.log_loss"])


def test_the_evaluation_is_a_run_and_on_the_training_run(complete: Paths) -> None:
    workbench.run(complete, "register", "record")
    report = workbench.read_json(complete.evaluation)
    run = runs(complete, "evaluate")[0]
    assert run.data.tags["mlflow.note.content"].startswith(f"{report['verdict']} {report['gate']['words']}")
    for name, kind in {"": "challenger", "champion_": "champion", "baseline_": "baseline"}.items():
        assert run.data.metrics[f"test.{name}log_loss"] == pytest.approx(report[kind]["log_loss"])
    training = runs(complete, "train")[0]
    assert training.data.metrics["test.skill"] == pytest.approx(report["challenger"]["skill"])
    assert training.data.tags["test.months"] == "2009-03"
    artifacts = {file.path for file in client(complete).list_artifacts(training.info.run_id)}
    assert "evaluation.png" in artifacts


def test_each_month_is_a_run_and_another_one_for_another_model(
    complete: Paths, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
    workbench.run(complete, "register", "record")
    months = workbench.read_json(complete.monitoring / "months.json")
    found = {run.data.params["month"]: run for run in runs(complete, "monitor")}
    for month in months:
        run = found[month["month"]]
        assert run.data.params["role"] == (month["role"] or "-")
        assert run.data.params["model_digest"] == ref(complete)["digest"][:12]
        assert run.data.metrics["skill"] == pytest.approx(month["skill"])
        assert run.data.metrics["rows"] == month["rows"]
        assert run.data.metrics["skill_low"] == pytest.approx(month["skill_low"])
        assert run.data.metrics["psi.fare_amount"] == month["drift"]["features"]["fare_amount"]["psi"]
        assert run.data.tags["tipline.verdict"] == month["verdict"]
        assert run.data.tags["mlflow.note.content"].startswith(f"{month['verdict']}: {month['reason']}")
    train_another(complete)
    workbench.run(complete, "register")
    promote.run(workbench.load_settings(complete), complete, "2", "test")
    workbench.run(complete, "register", "evaluate", "score", "monitor", "record")
    assert len(runs(complete, "monitor")) == 2 * len(months)
    assert len(runs(complete, "evaluate")) == 2


def test_months_are_recorded_under_the_number_that_the_registry_has_now(complete: Paths) -> None:
    workbench.run(complete, "register")
    for path in complete.predictions.glob("month=*/_manifest.json"):
        manifest = workbench.read_json(path)
        manifest["made"]["version"] = 7  # the number that a registry, lost since, had given the champion
        files.write_json(path, manifest)
    workbench.run(complete, "record")
    assert {run.data.params["version"] for run in runs(complete, "monitor")} == {"1"}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("sqlite:////tmp/a/mlflow.db", "sqlite:////tmp/a/mlflow.db"),
        ("https://mlflow.example.org:5000", "https://mlflow.example.org:5000"),
        ("https://me:secret@mlflow.example.org:5000/x", "https://***@mlflow.example.org:5000/x"),
        ("postgresql://me:se@cret@db/mlflow", "postgresql://***@db/mlflow"),
        ("https://token@host", "https://***@host"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert hide_secrets(address) == shown


def test_a_store_whose_driver_is_not_installed_is_told_with_the_package(
    make_project: Callable[..., Paths], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql://me:secret@127.0.0.1/mlflow")
    with pytest.raises(TiplineError, match="not installed") as caught, store.connect_store(make_project()):
        pass
    assert "uv pip install 'mysqlclient'" in str(caught.value)
    assert "mysql://***@127.0.0.1/mlflow" in str(caught.value)


@pytest.mark.usefixtures("mlflow_store")
def test_another_module_that_is_missing_is_not_told_as_the_stores(
    make_project: Callable[..., Paths], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ModuleNotFoundError, match="elsewhere"), store.connect_store(make_project()):
        importlib.import_module("elsewhere")


def test_artifacts_lie_in_the_project_whatever_the_working_directory(
    trained: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    workbench.run(trained, "register")
    assert list((trained.root / "mlartifacts" / "train").iterdir())
    assert not list(elsewhere.iterdir())


def test_a_moved_project_has_its_models_and_pictures_where_it_is_now(project: Paths, tmp_path: Path) -> None:
    moved = type(project)(tmp_path / "moved to")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    project.root.rename(moved.root)
    with store.connect_store(moved):
        pass
    (run,) = runs(moved, "train")
    assert run.info.artifact_uri.startswith((moved.root / "mlartifacts").as_uri())
    assert [one.path for one in client(moved).list_artifacts(run.info.run_id)] == ["learning_curve.png"]
    assert "tip_probability" in mlflow.pyfunc.load_model(f"models:/{NAME}/1").metadata.signature.outputs.input_names()
    workbench.run(moved, "register")
    assert versions(moved) == [1]


def test_files_of_the_kept_champion_that_were_changed_are_fetched_anew(project: Paths) -> None:
    expected = digest(project.champion)
    (project.champion / artifact.CODE).write_text("changed")
    workbench.run(project, "register")
    assert digest(project.champion) == ref(project)["digest"] == expected
    assert files.MANIFEST not in {path.name for path in project.champion.iterdir()}


def test_an_example_row_may_have_missing_values() -> None:
    features = [
        {"name": "vendor", "kind": "category"},
        {"name": "pickup_datetime", "kind": "hour"},
        {"name": "passenger_count", "kind": "number"},
    ]
    full = {"vendor": "CMT", "pickup_datetime": "2009-01-02 03:04:05", "passenger_count": 2}
    frame = training_runs.example(features, [full, dict.fromkeys(full)])
    assert frame.isna().to_numpy().tolist() == [[False] * 3, [True] * 3]
    assert [dtype.kind for dtype in frame.dtypes] == ["O", "M", "f"]
