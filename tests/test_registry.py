"""A model is one run and one version, whatever happened to the registry; the alias says which version scores."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tests import servers, workbench
from tipline import files
from tipline.commands import promote
from tipline.errors import TiplineError, UsageError
from tipline.model import artifact
from tipline.paths import Paths
from tipline.registry import champion, location, model_card, model_versions, store

RunCli = Callable[..., tuple[int, str]]
pytestmark = workbench.MLFLOW_WARNINGS
NAME = "tip-probability"
TRAINED: dict[bytes, dict[str, bytes]] = {}  # the challengers of this process, by settings and code


@pytest.fixture
def project(registered_project: Paths) -> Paths:
    return registered_project


def client(paths: Paths) -> MlflowClient:
    address = location.get_store_address(paths)
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    return MlflowClient()


def list_versions(paths: Paths) -> list[int]:
    return [int(version.version) for version in model_versions.list_versions(client(paths), NAME)]


def get_champion(paths: Paths) -> int | None:
    version = model_versions.get_champion(client(paths), NAME)
    return int(version.version) if version else None


def list_changes(paths: Paths) -> list[champion.Change]:
    return champion.list_changes(client(paths), NAME)


def list_runs(paths: Paths, experiment: str) -> list[Any]:
    found = client(paths).get_experiment_by_name(f"tipline/{experiment}")
    return list(client(paths).search_runs([found.experiment_id])) if found else []


def read_ref(paths: Paths) -> Any:
    return workbench.read_json(paths.champion_ref)


def train_another(paths: Paths, c: float = 0.01, *stages: str) -> str:
    """Train with another C, run further stages; return the new challenger's digest.

    The projects of the session have the same samples: a model that an earlier test trained is brought back.
    """
    workbench.change_settings(paths, train={"params": {"C": c}})
    key = paths.params.read_bytes() + (paths.root / "features.py").read_bytes()
    if key in TRAINED:
        shutil.rmtree(paths.challenger, ignore_errors=True)
        paths.challenger.mkdir(parents=True)
        for name, data in TRAINED[key].items():
            (paths.challenger / name).write_bytes(data)
    else:
        workbench.run(paths, "train")
        TRAINED[key] = workbench.read_tree(paths.challenger)
    workbench.run(paths, *stages)
    return artifact.read_digest(paths.challenger)


def force_promotion(paths: Paths, version: int) -> None:
    promote.run(workbench.load_settings(paths), paths, str(version), "test")


def use_new_store(paths: Paths, template: Path) -> None:
    """Replace the store by an empty one; under another name, because MLflow keeps databases open."""
    new = shutil.copyfile(template, paths.root / f"new-{len(list(paths.root.glob('new-*.db')))}.db")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{new}"


# ---- the challenger ----


def test_the_first_model_is_one_run_and_one_version_and_becomes_champion(trained_project: Paths) -> None:
    paths = trained_project
    workbench.run(paths, "register")
    (run,) = list_runs(paths, "train")
    digest = artifact.read_digest(paths.challenger)
    assert (list_versions(paths), get_champion(paths)) == ([1], 1)
    assert read_ref(paths) == {"name": NAME, "version": 1, "run": run.info.run_id, "digest": digest, "months": None}
    assert artifact.read_digest(paths.champion) == digest
    assert {path.name for path in paths.champion.iterdir()} == {*workbench.MODEL_FILES, artifact.TRAINING, "ref.json"}
    written = {path: path.stat().st_mtime_ns for path in paths.champion.iterdir()}
    workbench.run(paths, "register")
    assert (list_versions(paths), len(list_runs(paths, "train"))) == ([1], 1)
    assert {path: path.stat().st_mtime_ns for path in paths.champion.iterdir()} == written


def test_the_training_run_shows_the_training(trained_project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "register")
    for name in ("soft-cat", "hard-dog"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        workbench.run(trained_project, "register")
    (run,) = list_runs(trained_project, "train")
    training = workbench.read_json(trained_project.challenger / artifact.TRAINING)
    assert (run.info.status, run.info.run_name) == ("FINISHED", training["name"])
    assert run.data.params == {name: str(value) for name, value in training["params"].items()}
    assert run.data.metrics == pytest.approx(training["metrics"])
    tags = run.data.tags
    assert tags["tipline.digest"] == artifact.read_digest(trained_project.challenger)
    assert (tags["tipline.data"], tags["dvc.stage"]) == (training["data"], "register")
    assert tags["dvc.exp"] == "hard-dog"  # the last one
    assert tags["tipline.git"].removesuffix("-dirty") == tags["mlflow.source.git.commit"]
    assert [file.path for file in client(trained_project).list_artifacts(run.info.run_id)] == ["learning_curve.png"]


def test_equal_models_share_a_version_and_another_model_leaves_the_champion(project: Paths) -> None:
    before = read_ref(project)
    workbench.run(project, "train", "register")
    assert train_another(project, 0.01, "register") != before["digest"]
    train_another(project, 1.0, "register")
    assert (list_versions(project), len(list_runs(project, "train"))) == ([2, 1], 2)
    assert (get_champion(project), read_ref(project)) == (1, before)


def test_a_challenger_of_symlinks_as_dvc_may_lay_them_out_is_logged(trained_project: Paths) -> None:
    cache = trained_project.root / "cache"
    cache.mkdir()
    for index, path in enumerate(sorted(trained_project.challenger.iterdir())):
        path.rename(cache / str(index))
        path.symlink_to(cache / str(index))
    workbench.run(trained_project, "register")
    assert list_versions(trained_project) == [1]


def test_a_failed_run_is_completed_by_the_next_one(trained_project: Paths) -> None:
    picture = trained_project.learning_curve.with_suffix(".png")
    picture.rename(picture.with_suffix(".away"))
    with pytest.raises((OSError, MlflowException, TiplineError)):
        workbench.run(trained_project, "register")
    assert [run.info.status for run in list_runs(trained_project, "train")] == ["FAILED"]
    picture.with_suffix(".away").rename(picture)
    workbench.run(trained_project, "register")
    assert [run.info.status for run in list_runs(trained_project, "train")] == ["FINISHED"]
    assert list_versions(trained_project) == [1]


def test_an_experiments_copy_logs_a_run_and_no_version(
    project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = workbench.copy_project(project, tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(project.root))
    monkeypatch.setenv("DVC_EXP_NAME", "other-c")
    digest = train_another(copy, 0.01, "register")
    assert (list_versions(project), get_champion(project), read_ref(copy)["version"]) == ([1], 1, 1)
    assert [change.how for change in list_changes(project)] == ["first"]
    monkeypatch.delenv("DVC_ROOT")
    promote.run(workbench.load_settings(project), project, "other-c", "test")
    version = client(project).get_model_version_by_alias(NAME, "champion")
    assert (version.version, model_versions.get_digest(version)) == (2, digest)


# ---- the champion ----


@pytest.mark.parametrize("where", ["promote", "MLflow's page"])
def test_a_promoted_versions_own_files_are_fetched(project: Paths, where: str) -> None:
    second = train_another(project, 0.01, "register")
    registered = {
        name: (project.challenger / name).read_bytes() for name in (*workbench.MODEL_FILES, artifact.TRAINING)
    }
    train_another(project, 0.1)  # what is in the workspace is neither of them
    if where == "promote":
        force_promotion(project, 2)
    else:
        client(project).set_registered_model_alias(NAME, "champion", "2")
    assert read_ref(project)["version"] == 1
    workbench.run(project, "register")
    assert (read_ref(project)["version"], read_ref(project)["digest"]) == (2, second)
    assert {name: (project.champion / name).read_bytes() for name in registered} == registered


def test_a_pinned_version_scores_whatever_the_alias_says(project: Paths) -> None:
    second = train_another(project, 0.01, "register")
    workbench.change_settings(project, score={"model": 2})
    workbench.run(project, "register")
    assert (read_ref(project)["digest"], get_champion(project)) == (second, 1)
    workbench.change_settings(project, score={"model": 3})
    with pytest.raises(UsageError, match=r"no version 3\. Versions: 2, 1.*\n  where: params.yaml, score.model"):
        workbench.run(project, "register")
    assert artifact.read_digest(project.champion) == second


@pytest.mark.parametrize("damage", ["changed", "lost"])
def test_damaged_files_in_the_registry_are_refused(project: Paths, damage: str) -> None:
    train_another(project, 0.01, "register")
    second = (project.challenger / "estimator.skops").read_bytes()
    for path in (project.root / "mlartifacts").rglob("estimator.skops"):
        if path.read_bytes() == second:
            path.unlink() if damage == "lost" else path.write_bytes(second + b" ")
    before = workbench.read_tree(project.champion)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    train_another(project, 0.1)  # otherwise the challenger's own files would do
    with pytest.raises(TiplineError, match="not those that were registered"):
        workbench.run(project, "register")
    shutil.rmtree(project.root / "mlartifacts")
    with pytest.raises(TiplineError, match="version 2"):
        workbench.run(project, "register")
    assert workbench.read_tree(project.champion) == before


@pytest.fixture
def thief() -> Iterator[servers.Shelf]:
    """A server that is not MLflow's, and keeps what it is asked for."""
    with servers.shelf() as server:
        yield server


def test_the_password_is_not_sent_to_another_host(
    project: Paths, thief: servers.Shelf, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = thief.address("")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret of ann")
    experiment = client(project).create_experiment("elsewhere", f"{elsewhere}/artifacts")
    run = client(project).create_run(experiment).info.run_id
    model = client(project).create_logged_model(experiment, "model", source_run_id=run).model_id
    host = elsewhere.removeprefix("http://")
    for source in (f"{elsewhere}/model", f"runs:/{run}/model", f"models:/{model}", f"mlflow-artifacts://{host}/m"):
        with sqlite3.connect(project.root / "mlflow.db") as connection:  # not every server refuses such a location
            version = client(project).create_model_version(NAME, (project.root / "mlartifacts").as_uri()).version
            update = "UPDATE model_versions SET source = ?, storage_location = ? WHERE version = ?"
            connection.execute(update, (source, source, version))
        code, printed = run_cli(project.root, "promote", str(version))
        assert (code, thief.log) == (1, []), printed


# ---- a registry without a champion ----


def test_a_lost_registry_gets_the_champion_back_from_its_files(project: Paths, mlflow_template: Path) -> None:
    first, second = read_ref(project)["digest"], train_another(project, 0.01, "register")
    use_new_store(project, mlflow_template)
    workbench.run(project, "register")
    version = client(project).get_model_version_by_alias(NAME, "champion")
    assert first == model_versions.get_digest(version) == artifact.read_digest(project.champion)
    assert {model_versions.get_digest(one) for one in model_versions.list_versions(client(project), NAME)} == {
        *(first, second)
    }
    ref = read_ref(project)
    assert (ref["digest"], ref["version"], ref["run"]) == (first, int(version.version), version.run_id)
    (change,) = list_changes(project)
    assert (change.how, change.reason) == ("first", "restored from models/champion/")


def test_a_deleted_alias_is_set_to_the_last_champion_of_the_history(project: Paths) -> None:
    second = train_another(project, 0.01, "register")
    force_promotion(project, 2)  # models/champion/ is still version 1
    client(project).delete_registered_model_alias(NAME, "champion")
    workbench.run(project, "register")
    assert (get_champion(project), read_ref(project)["digest"]) == (2, second)
    assert [change.how for change in list_changes(project)] == ["first", "promote"]


def test_deleting_everything_starts_over(scored_project: Paths, caplog: pytest.LogCaptureFixture) -> None:
    paths = scored_project  # its store is empty
    write_lock(paths, "0" * 64)
    for folder in (paths.champion, paths.challenger, paths.predictions):
        shutil.rmtree(folder)
    digest = train_another(paths, 0.01, "register")
    assert "Starting over: nothing is left of the champion in dvc.lock (000000000000)" in caplog.text
    assert read_ref(paths)["digest"] == digest


def write_lock(paths: Paths, digest: str) -> None:
    """Write what matters of dvc.lock."""
    stages = {
        "score": {"params": {"models/champion/ref.json": {"digest": digest}}},
        "register": {"outs": [{"path": "models/champion", "md5": "0123.dir"}]},
    }
    files.write_json(paths.root / "dvc.lock", {"stages": stages})
    (paths.root / ".dvc").mkdir(exist_ok=True)
    (paths.root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")


@pytest.mark.parametrize(
    ("left", "sign"),
    [
        ("predictions", "it has scored month=2009-01 in data/predictions"),
        ("ref", "models/champion/ref.json names it"),
        ("another store", "dvc.lock names it"),
        ("a remote", "dvc.lock names it"),
    ],
)
def test_another_model_is_not_the_first_champion_where_one_was(
    scored_project: Paths, mlflow_template: Path, run_cli: RunCli, left: str, sign: str
) -> None:
    paths = scored_project
    train_another(paths)
    if left != "predictions":
        shutil.rmtree(paths.predictions)
    if left == "ref":
        (paths.champion / workbench.CODE).unlink()
    else:
        shutil.rmtree(paths.champion)
    if left == "another store":
        use_new_store(paths, mlflow_template)
    write_lock(paths, "0" * 64)
    if left == "a remote":  # as in a clone before `dvc pull`
        (paths.root / ".dvc" / "config").write_text("['remote \"store\"']\n    url = /tmp/store\n")
    before = workbench.read_tree(paths.champion)
    code, printed = run_cli(paths.root, "register")
    assert code == 1, printed
    for words in (f"there was one: {sign} (digest ", "MLFLOW_TRACKING_URI", 'tipline promote --force "starting over"'):
        assert words in printed
    assert workbench.read_tree(paths.champion) == before
    assert run_cli(paths.root, "promote")[0] == 1
    assert run_cli(paths.root, "promote", "--force", "starting over")[0] == 0
    assert run_cli(paths.root, "register")[0] == 0
    assert read_ref(paths)["digest"] == artifact.read_digest(paths.challenger)
    (change,) = list_changes(paths)
    assert (change.how, change.reason) == ("promote", "starting over")


def test_another_name_begins_with_its_own_first_champion(scored_project: Paths) -> None:
    digest = train_another(scored_project)
    workbench.change_settings(scored_project, model={"name": "other"})
    workbench.run(scored_project, "register")
    assert (read_ref(scored_project)["name"], read_ref(scored_project)["digest"]) == ("other", digest)


# ---- the store ----


def test_a_file_that_is_no_complete_database_is_reported(
    trained_project: Paths, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text, cut = tmp_path / "text.db", tmp_path / "cut.db"
    text.write_text("this is a text file, and longer than a page header is" * 100)
    with sqlite3.connect(cut) as connection:  # off by a kill
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    for path, words in ((text, "file is not a database"), (cut, "delete this file")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        code, printed = run_cli(trained_project.root, "register")
        assert (code, words in printed, str(path) in printed) == (1, True, True), printed


def test_a_creation_that_is_killed_leaves_no_database(make_project: Callable[..., Paths]) -> None:
    paths = make_project()
    script = (
        "import sys; from pathlib import Path; from tipline.paths import Paths; from tipline.registry import store\n"
    )
    script += "with store.connect_store(Paths(Path(sys.argv[1]))): pass"
    process = subprocess.Popen([sys.executable, "-c", script, str(paths.root)])
    workbench.wait_for(lambda: any(path.stat().st_size for path in paths.root.glob(".mlflow.db.*.tmp")))
    process.kill()
    process.wait()
    assert not (paths.root / "mlflow.db").exists()
    with store.connect_store(paths) as connected:
        assert [experiment.name for experiment in connected.search_experiments()] == ["Default"]
    found = [*paths.root.glob("*mlflow*"), *paths.root.glob(".mlflow*")]
    assert {path.name for path in found} == {"mlflow.db", ".mlflow.lock"}


def test_a_database_of_another_mlflow_is_reported_with_the_upgrade(project: Paths, run_cli: RunCli) -> None:
    other = shutil.copyfile(project.root / "mlflow.db", project.root / "other.db")  # MLflow has checked the first
    with sqlite3.connect(other) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffff00000000'")
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///other.db"
    code, printed = run_cli(project.root, "register")
    assert (code, "upgrade MLflow" in printed.splitlines()[2]) == (1, True), printed


def test_a_deleted_experiment_is_restored(project: Paths, caplog: pytest.LogCaptureFixture) -> None:
    client(project).delete_experiment(client(project).get_experiment_by_name("tipline/train").experiment_id)
    train_another(project, 0.01, "register")
    assert "The experiment tipline/train had been deleted in MLflow. It is restored." in caplog.text
    assert list_versions(project) == [2, 1]


def test_a_project_folder_may_have_any_name(make_project: Callable[..., Paths], tmp_path: Path) -> None:
    name = "données a&b=c, 50% off 100%25 a#b"
    paths = Paths(shutil.copytree(make_project().root, tmp_path / "parent" / name))
    with store.connect_store(paths) as connected:
        store.ensure_experiment(connected, paths, "train")
    assert (paths.root / "mlflow.db").is_file()
    assert [path.name for path in paths.root.parent.iterdir() if any(path.iterdir())] == [name]


def test_artifacts_are_in_the_project_and_follow_it(
    trained_project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    workbench.run(trained_project, "register")
    assert not list(elsewhere.iterdir())
    moved = type(trained_project)(tmp_path / "moved to é")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    trained_project.root.rename(moved.root)
    with store.connect_store(moved):
        pass
    (run,) = list_runs(moved, "train")
    assert run.info.artifact_uri.startswith((moved.root / "mlartifacts").as_uri())
    assert [one.path for one in client(moved).list_artifacts(run.info.run_id)] == ["learning_curve.png"]
    assert "probability" in mlflow.pyfunc.load_model(f"models:/{NAME}/1").metadata.signature.outputs.input_names()
    workbench.run(moved, "register")
    assert list_versions(moved) == [1]


# ---- record ----


def test_record_creates_each_run_once_and_one_for_the_learning_curve(scored_project: Paths) -> None:
    workbench.run(scored_project, "register", "record")
    expected = {"train": 1, "learning_curve": 1, "evaluate": 1, "monitor": len(workbench.MONTHS)}
    assert {name: len(list_runs(scored_project, name)) for name in expected} == expected
    report = scored_project.learning_curve.with_suffix(".json")
    decision = workbench.read_json(report)
    for size in decision["sizes"]:  # the same study, made again
        size["fit_seconds"] += 1
    files.write_json(report, decision)
    workbench.run(scored_project, "record")
    assert {name: len(list_runs(scored_project, name)) for name in expected} == expected
    # The sizes are the steps of one run.
    (run,) = list_runs(scored_project, "learning_curve")
    assert run.data.params["rows"] == str(decision["rows"])
    baseline = decision["baseline"]["log_loss"]
    assert run.data.metrics["baseline_log_loss"] == pytest.approx(baseline)
    paths = {file.path for file in client(scored_project).list_artifacts(run.info.run_id)}
    assert paths == {"learning_curve.csv", "learning_curve.png"}
    points = client(scored_project).get_metric_history(run.info.run_id, "skill")
    sizes = {size["rows"]: pytest.approx(size["skill"]) for size in decision["sizes"]}
    assert {point.step: point.value for point in points} == sizes


def test_the_evaluation_is_a_run_and_is_on_run_and_version_of_the_model(scored_project: Paths) -> None:
    workbench.run(scored_project, "register", "record")
    report = workbench.read_json(scored_project.evaluation)
    (run,), (training,) = list_runs(scored_project, "evaluate"), list_runs(scored_project, "train")
    assert run.data.tags["mlflow.note.content"].startswith(report["verdict"])
    for prefix, role in {"": "challenger", "champion_": "champion", "baseline_": "baseline"}.items():
        assert run.data.metrics[f"test.{prefix}log_loss"] == pytest.approx(report[role]["log_loss"])
    assert training.data.metrics["test.skill"] == pytest.approx(report["challenger"]["skill"])
    assert training.data.tags["test.months"] == "2009-03"
    card = client(scored_project).get_model_version(NAME, "1").description
    assert card.startswith(f"skill {report['challenger']['skill']:.1%} on 2009-03: ")
    assert f"digest `{artifact.read_digest(scored_project.champion)}`" in card
    assert all(f"[{month}](#/experiments/" in card for month in workbench.MONTHS)
    files.write_json(scored_project.evaluation, report | {"rows": 12345})
    workbench.run(scored_project, "record")
    assert "12,345 rows" in client(scored_project).get_model_version(NAME, "1").description


@pytest.mark.parametrize("existing", [None, "A note.", f"old\n\n{model_card.END}\n\nA note."])
def test_a_long_description_is_cut_and_a_persons_text_is_kept(existing: str | None) -> None:
    text = model_card.merge_text(existing, "x" * 9000)
    assert len(text) == model_card.DESCRIPTION_LETTERS
    assert text.endswith("A note." if existing else model_card.END)


def test_each_month_is_a_run_and_another_one_for_another_model(
    scored_project: Paths, dask_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = scored_project
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", dask_address)
    for path in paths.predictions.glob("month=*/_manifest.json"):
        manifest = workbench.read_json(path)  # with the number that another registry gave the champion
        files.write_json(path, manifest | {"made": manifest["made"] | {"version": 7}})
    workbench.run(paths, "register", "record")
    months = workbench.read_json(paths.monitoring / "months.json")
    found = {run.data.params["month"]: run.data for run in list_runs(paths, "monitor")}
    for month in months:
        data = found[month["month"]]
        assert (data.params["role"], data.params["version"]) == (month["role"] or "-", "1")
        assert data.params["model_digest"] == read_ref(paths)["digest"][:12]
        assert (data.metrics["rows"], data.metrics["skill"]) == (month["rows"], pytest.approx(month["skill"]))
        assert data.metrics["psi.fare_amount"] == month["drift"]["features"]["fare_amount"]["psi"]
        assert data.tags["tipline.verdict"] == month["verdict"]
    train_another(paths, 0.01, "register")
    force_promotion(paths, 2)
    workbench.run(paths, "register", "evaluate", "score", "monitor", "record")
    assert (len(list_runs(paths, "monitor")), len(list_runs(paths, "evaluate"))) == (2 * len(months), 2)


def test_the_months_of_a_tag_are_in_ref_json(project: Paths) -> None:
    client(project).set_model_version_tag(NAME, "1", "tipline.months", "2009-01, 2009-02")
    workbench.run(project, "register")
    assert read_ref(project)["months"] == {"train": ["2009-01", "2009-02"], "validation": []}
    client(project).set_model_version_tag(NAME, "1", "tipline.months", "2009-13")
    with pytest.raises(
        UsageError, match=r"'2009-13' is not a month(.|\n)*the tag tipline.months of tip-probability version 1"
    ):
        workbench.run(project, "register")
