"""A team's MLflow: PostgreSQL, S3, users, for real; what a writer, a reader, a wrong password and a dying server do."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests import servers, stories, workbench
from tests.servers import Line, Team
from tests.stories import Story
from tipline import cluster
from tipline.model import artifact
from tipline.paths import Paths
from tipline.registry import model_versions

Run = Callable[..., tuple[int, str]]
pytestmark = [pytest.mark.in_order, *workbench.MLFLOW_WARNINGS]  # one server, whose runs are counted
MONTHS = ["2009-01", "2009-02", "2009-03"]
KINDS = ("train", "learning_curve", "evaluate", "monitor")
NAME = "tip-probability"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with servers.team(tmp_path_factory.mktemp("team")) as running:
        yield running


def act_as(monkeypatch: pytest.MonkeyPatch, server: Team, user: str, line: Line | None = None) -> None:
    for name, value in server.client(user).items():
        monkeypatch.setenv(name, value)
    if line is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", line.address)


def mlflow_client(server: Team) -> MlflowClient:
    return MlflowClient(server.address, server.address)


def runs(server: Team, experiment: str) -> list[Any]:
    found = mlflow_client(server).get_experiment_by_name(f"tipline/{experiment}")
    return list(mlflow_client(server).search_runs([found.experiment_id])) if found else []


def assert_told(code: int, printed: str, *words: str) -> None:
    """One message of three lines behind what was logged, without a trace, a secret or the words of a library."""
    assert code == 1, printed
    for word in words:
        assert word in printed
    for word in ("Traceback", "defect", "ConnectionPool", *servers.PASSWORDS.values()):
        assert word not in printed
    assert [line.split(":")[0].strip() for line in printed.splitlines()[-2:]] == ["where", "to do"], printed


# ---- the whole life of a team's project, with the real `dvc` ----


def set_keys(story: Story) -> None:
    for name, value in zip(("access_key_id", "secret_access_key"), servers.KEYS.values(), strict=True):
        stories.dvc(story, "remote", "modify", "--local", "team", name, value)


@pytest.fixture(scope="module")
def writer(request: pytest.FixtureRequest, server: Team, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A project whose first `dvc repro` was a writer's, pushed to the team's S3."""
    story = stories.start(tmp_path_factory.mktemp("writer") / "project", **stories.SMALL)
    story.environment = server.client("writer") | {cluster.ADDRESS: request.getfixturevalue("dask_address")}
    server.s3.make("dvc")
    stories.dvc(story, "remote", "add", "--default", "team", "s3://dvc/tipline")
    stories.dvc(story, "remote", "modify", "team", "endpointurl", f"http://{server.s3.place}")
    set_keys(story)
    story.repro("first")
    stories.commit(story, "scored")
    stories.dvc(story, "push", "--quiet")
    return story


def test_the_whole_pipeline_runs_against_a_teams_server_without_the_keys_of_its_artifacts(
    server: Team, writer: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not [name for name in os.environ if name.startswith("AWS_") and "KEY" in name]
    assert writer.repros["first"].code == 0, writer.repros["first"].output
    assert not (writer.root / "mlflow.db").exists()
    act_as(monkeypatch, server, "writer")
    counts = {"train": 1, "learning_curve": 1, "evaluate": 1, "monitor": 3}
    assert {name: len(runs(server, name)) for name in KINDS} == counts
    version = mlflow_client(server).get_model_version_by_alias(NAME, "champion")
    assert version.source.startswith("models:/")
    assert model_versions.get_digest(version) == stories.ref(writer.root)["digest"]
    stored = server.s3.make("mlflow").find("mlflow/artifacts")
    assert [path for path in stored if path.endswith(workbench.CODE)], stored
    assert "presigned" not in (server.folder / "log").read_text()  # nor a way to the bucket


def test_a_clone_pulls_and_runs_only_what_it_has_to(
    server: Team, writer: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories.git(writer, "clone", "--quiet", str(writer.root), str(tmp_path / "clone"))
    cloned = Story(tmp_path / "clone", environment=server.client("writer"))
    set_keys(cloned)
    stories.dvc(cloned, "pull", "--quiet")
    cloned.repro("again")
    assert cloned.repros["again"].code == 0, cloned.repros["again"].output
    assert cloned.repros["again"].stages == ["register", "record"]
    assert stories.ref(cloned.root)["digest"] == stories.ref(writer.root)["digest"]
    assert stories.scores(cloned.root) == stories.scores(writer.root)
    assert not (cloned.root / "mlflow.db").exists()
    act_as(monkeypatch, server, "writer")
    assert (len(runs(server, "train")), len(runs(server, "monitor"))) == (1, len(MONTHS))


# ---- mishaps, with the stages in this process ----


@pytest.fixture
def project(scored_template: Paths, tmp_path: Path) -> Paths:
    return workbench.copy_project(scored_template, tmp_path)


def new_model(paths: Paths, c: float, name: str | None = None) -> str:
    """Train a model that no other test has, under a name that no other test has; give its digest."""
    workbench.change_settings(paths, model={"name": name or f"C={c}"}, train={"params": {"C": c}})
    workbench.run(paths, "train")
    return artifact.read_digest(paths.challenger)


def describe_model(server: Team, name: str) -> list[dict[str, Any]]:
    """All that is registered of a model and its versions."""
    client = mlflow_client(server)
    return [dict(found) for found in (client.get_registered_model(name), *model_versions.list_versions(client, name))]


def test_a_reader_scores_and_may_not_promote(
    server: Team, project: Paths, monkeypatch: pytest.MonkeyPatch, run_cli: Run, caplog: pytest.LogCaptureFixture
) -> None:
    act_as(monkeypatch, server, "writer")
    first = new_model(project, 3.1)
    workbench.run(project, "register")
    second = new_model(project, 3.2, "C=3.1")
    act_as(monkeypatch, server, "reader")
    for command in ("register", "score", "record"):
        caplog.clear()
        assert run_cli(project.root, command)[0] == 0, caplog.text
        assert ("No write access to MLflow" in caplog.text) == (command in {"register", "record"})
    assert stories.ref(project.root)["digest"] == first
    written = workbench.read_json(project.predictions / "month=2024-01/_manifest.json")
    assert written["key"]["model"] == first
    act_as(monkeypatch, server, "writer")
    workbench.run(project, "register")
    before = describe_model(server, "C=3.1")
    assert {found["tags"].get("tipline.digest") for found in before[1:]} == {first, second}
    act_as(monkeypatch, server, "reader")
    assert_told(*run_cli(project.root, "promote", "2", "--force", "x"), "does not let this user", "as user reader")
    assert describe_model(server, "C=3.1") == before


def test_a_wrong_password_is_told(server: Team, project: Paths, monkeypatch: pytest.MonkeyPatch, run_cli: Run) -> None:
    act_as(monkeypatch, server, "writer")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "some other password")
    for command in ("register", "promote", "record"):
        code, printed = run_cli(project.root, command)
        assert_told(code, printed, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD", "as user writer")
        assert "some other password" not in printed


@pytest.mark.parametrize(("status", "words"), [(500, "reached: too many 500"), (404, "MLflow refused the request")])
def test_what_a_server_answers_is_told_in_words(
    make_project: Callable[..., Paths], monkeypatch: pytest.MonkeyPatch, run_cli: Run, status: int, words: str
) -> None:
    class Anything(dict[str, bytes]):
        def get(self, *_: Any) -> Any:
            return b"<html>sorry</html>"

    with servers.shelf() as shelf:
        shelf.files, shelf.status = Anything(), status
        address = shelf.address("", "writer:the password of writer@")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert_told(*run_cli(make_project().root, "promote"), words, f"http://***@127.0.0.1:{shelf.server_address[1]}")
    assert len(shelf.log) == 1  # no second try


# Of each of these the server has done what it was asked for, and the client does not know it. Each with its own C.
@pytest.mark.parametrize(
    "case",
    [
        ("register", "mlflow-artifacts", 0.3, "cut"),
        ("register", "alias", 0.6, "cut"),
        ("register", "logged-models", 1.1, "kill"),
        ("record", "log-batch", 1.2, "kill"),
        ("register", "model-versions/create", 2.1, "silence"),
    ],
)
def test_a_mishap_is_told_and_mended_by_the_next_run(
    server: Team, project: Paths, monkeypatch: pytest.MonkeyPatch, run_cli: Run, case: tuple[str, str, float, str]
) -> None:
    command, step, c, mishap = case
    digest = new_model(project, c)
    with servers.line(server.port) as line:
        act_as(monkeypatch, server, "writer", line)
        if command == "record":
            workbench.run(project, "register", "evaluate", "score", "monitor")
        line.cut_at = step.encode()
        with monkeypatch.context() as patience:
            if mishap == "silence":
                patience.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
            line.at_cut = {"cut": lambda: None, "kill": server.kill, "silence": lambda: time.sleep(3)}[mishap]
            assert_told(*run_cli(project.root, command), "failed or cannot be reached", line.address)
        assert line.cuts == 0
        if mishap == "kill":
            assert server.process is None
            server.start()
            assert "RUNNING" in {run.info.status for kind in KINDS for run in runs(server, kind)}
        assert run_cli(project.root, command) == (0, "")
    (run,) = [run for run in runs(server, "train") if run.data.tags.get("tipline.digest") == digest]
    (version,) = model_versions.list_versions(mlflow_client(server), f"C={c}")
    assert (version.run_id, version.tags["tipline.digest"]) == (run.info.run_id, digest)
    assert {run.info.status for kind in KINDS for run in runs(server, kind)} == {"FINISHED"}
