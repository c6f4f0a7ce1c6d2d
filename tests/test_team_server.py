"""A team's MLflow: PostgreSQL, S3, users, for real; what a writer, a reader, a wrong password and a dying server do."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from tests import servers, stories, workbench
from tests.stories import Story, start
from tipline import cluster
from tipline.errors import hide_secrets
from tipline.model import artifact
from tipline.registry import history, model_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import Line, Team
    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]

pytestmark = [pytest.mark.in_order, *workbench.MLFLOW_WARNINGS]  # one server, whose runs are counted
MONTHS = ["2009-01", "2009-02", "2009-03"]
KINDS = ("train", "learning_curve", "evaluate", "monitor")
NAME = "tip-probability"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The server, started once."""
    with servers.team(tmp_path_factory.mktemp("team")) as running:
        yield running


def act_as(monkeypatch: pytest.MonkeyPatch, server: Team, user: str, line: Line | None = None) -> None:
    """Be one of the server's users, perhaps over a line."""
    for name, value in server.client(user).items():
        monkeypatch.setenv(name, value)
    if line is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", line.address)


def mlflow_client(server: Team) -> MlflowClient:
    """Look at the server as whoever is acting."""
    mlflow.set_tracking_uri(server.address)
    mlflow.set_registry_uri(server.address)
    return MlflowClient()


def runs(server: Team, experiment: str) -> list[Any]:
    found = mlflow_client(server).get_experiment_by_name(f"tipline/{experiment}")
    return list(mlflow_client(server).search_runs([found.experiment_id])) if found else []


def champion(root: Path) -> Any:
    return workbench.read_json(root / "models/champion/ref.json")["digest"]


def assert_told(code: int, printed: str, *words: str) -> None:
    """One message of three lines behind what was logged, without a trace, a secret or the words of a library."""
    assert code == 1, printed
    for word in words:
        assert word in printed
    for word in ("Traceback", "defect", "ConnectionPool", *servers.PASSWORDS.values()):
        assert word not in printed
    assert [line.split(":")[0].strip() for line in printed.splitlines()[-2:]] == ["where", "to do"], printed


# ---- the whole life of a team's project, with the real `dvc` ----


def remote(story: Story, server: Team) -> None:
    """Tell DVC the keys of its own bucket, in this clone only."""
    for name, value in zip(("access_key_id", "secret_access_key"), servers.KEYS.values(), strict=True):
        story.run("dvc", "remote", "modify", "--local", "team", name, value)
    server.s3.make("dvc")


def commit(story: Story) -> None:
    story.run("git", "add", "--all")
    story.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "scored")


def clone(story: Story, root: Path, server: Team, environment: dict[str, str]) -> Story:
    """Clone the project elsewhere, and pull what DVC keeps."""
    done = story.run("git", "clone", "--quiet", str(story.root), str(root))
    assert done.returncode == 0, done.stderr
    cloned = Story(root, environment=environment)
    remote(cloned, server)
    done = cloned.run("dvc", "pull", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    return cloned


@pytest.fixture(scope="module")
def writer(request: pytest.FixtureRequest, server: Team, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A project whose first `dvc repro` was a writer's, pushed to the team's S3."""
    story = start(tmp_path_factory.mktemp("writer") / "project", **stories.SMALL)
    story.environment = server.client("writer") | {cluster.ADDRESS: request.getfixturevalue("dask_address")}
    story.run("dvc", "remote", "add", "--default", "team", "s3://dvc/tipline")
    story.run("dvc", "remote", "modify", "team", "endpointurl", f"http://{server.s3.place}")
    remote(story, server)
    story.repro("first")
    commit(story)
    pushed = story.run("dvc", "push", "--quiet")
    assert pushed.returncode == 0, pushed.stdout + pushed.stderr
    return story


def test_the_whole_pipeline_runs_against_a_teams_server_without_the_keys_of_its_artifacts(
    server: Team, writer: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not [name for name in os.environ if name.startswith("AWS_") and "KEY" in name]
    assert writer.repros["first"].code == 0, writer.repros["first"].output
    assert not (writer.root / "mlflow.db").exists()
    act_as(monkeypatch, server, "writer")
    assert {name: len(runs(server, name)) for name in KINDS} == {
        "train": 1,
        "learning_curve": 1,
        "evaluate": 1,
        "monitor": 3,
    }
    version = model_versions.get_champion(mlflow_client(server), NAME)
    assert version is not None
    assert version.source.startswith("models:/")
    assert model_versions.get_digest(version) == champion(writer.root)
    stored = servers_files(server)
    assert [path for path in stored if path.endswith(artifact.CODE)], stored
    assert "presigned" not in (server.folder / "log").read_text()  # nor a way to the bucket


def servers_files(server: Team) -> list[str]:
    """What lies in the server's bucket."""
    found: list[str] = server.s3.make("mlflow").find("mlflow/artifacts")
    return found


@pytest.mark.parametrize("has_server", [True, False], ids=["the team's registry", "an empty registry"])
def test_a_clone_pulls_and_runs_only_what_it_has_to(
    server: Team, writer: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_server: bool
) -> None:
    cloned = clone(writer, tmp_path / "clone", server, server.client("writer") if has_server else {})
    cloned.repro("again")
    assert cloned.repros["again"].code == 0, cloned.repros["again"].output
    assert cloned.repros["again"].stages == ["register", "record"]
    assert champion(cloned.root) == champion(writer.root)
    assert workbench.read_tree(cloned.root / "data/predictions") == workbench.read_tree(
        writer.root / "data/predictions"
    )
    assert (cloned.root / "mlflow.db").exists() != has_server
    if has_server:
        act_as(monkeypatch, server, "writer")
        assert len(runs(server, "train")) == 1
        assert len(runs(server, "monitor")) == len(MONTHS)
    else:
        shown = cloned.run("tipline", "status").stdout
        assert "champion    version 1: " in shown


# ---- mishaps, with the stages in this process ----


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Paths:
    """A project in which all is made and nothing is in MLflow, with a model name of its own."""
    return workbench.copy_project(request.getfixturevalue("scored_template"), tmp_path)


def new_model(paths: Paths, c: float, name: str | None = None) -> str:
    """Train a model that no other test has, under a name that no other test has; give its digest."""
    workbench.change_settings(paths, model={"name": name or f"C={c}"}, train={"params": {"C": c}})
    workbench.run(paths, "train")
    return artifact.read_digest(paths.challenger)


def assert_whole(server: Team, digest: str, name: str) -> None:
    """One run and one version of a model, and nothing that was not finished."""
    of_model = [run for run in runs(server, "train") if run.data.tags.get("tipline.digest") == digest]
    assert [run.info.status for run in of_model] == ["FINISHED"]
    versions = model_versions.list_versions(mlflow_client(server), name)
    assert [(version.run_id, version.tags["tipline.digest"]) for version in versions] == [
        (of_model[0].info.run_id, digest)
    ]
    every = [run for kind in KINDS for run in runs(server, kind)]
    assert {run.info.status for run in every} == {"FINISHED"}


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
    assert champion(project.root) == first
    written = workbench.read_json(project.predictions / "month=2024-01/_manifest.json")
    assert written["key"]["model"] == first
    act_as(monkeypatch, server, "writer")
    workbench.run(project, "register")
    before = seen(server, "C=3.1"), history.list_changes(mlflow_client(server), "C=3.1")
    assert [tags["tipline.digest"] for _, tags, _ in before[0]] == [second, first]
    act_as(monkeypatch, server, "reader")
    assert_told(*run_cli(project.root, "promote", "2", "--force", "x"), "does not let this user", "as user reader")
    assert (seen(server, "C=3.1"), history.list_changes(mlflow_client(server), "C=3.1")) == before


def seen(server: Team, name: str) -> list[tuple[int, dict[str, str], int]]:
    """Versions of a model with their tags, and which one is the champion."""
    found = model_versions.get_champion(mlflow_client(server), name)
    assert found is not None
    versions = model_versions.list_versions(mlflow_client(server), name)
    return [(int(version.version), dict(version.tags), int(found.version)) for version in versions]


def test_a_wrong_password_is_told(server: Team, project: Paths, monkeypatch: pytest.MonkeyPatch, run_cli: Run) -> None:
    act_as(monkeypatch, server, "writer")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "some other password")
    for command in ("register", "promote", "record"):
        code, printed = run_cli(project.root, command)
        assert_told(code, printed, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD", "as user writer")
        assert "some other password" not in printed


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, "MLflow's server failed: too many 500"),
        (429, "MLflow's server failed: too many 429"),
        (401, "does not accept this user name and password"),
        (403, "does not let this user do that"),
        (404, "MLflow refused the request"),
    ],
)
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://ann:pa/ss@w@[::1]:5000/a", "https://***@[::1]:5000/a"),
        ("postgresql://host/db?user=ann&password=word", "postgresql://host/db?user=ann&password=***"),
        ("sqlite:////home/ann@home/mlflow.db", "sqlite:////home/ann@home/mlflow.db"),
        ("no answer from http://ann:word@host:1/api", "no answer from http://***@host:1/api"),
    ],
)
def test_no_password_of_an_address_is_shown(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown


# Of each of these the server has done what it was asked for, and the client does not know it.
STEPS = {
    "runs/create": 0.1,
    "mlflow-artifacts": 0.3,
    "logged-models": 0.4,
    "model-versions/create": 0.5,
    "alias": 0.6,
}


@pytest.mark.parametrize("step", STEPS)
def test_a_line_that_breaks_anywhere_in_register_is_told_and_mended_by_the_next_run(
    server: Team, project: Paths, monkeypatch: pytest.MonkeyPatch, run_cli: Run, step: str
) -> None:
    digest = new_model(project, STEPS[step])
    with servers.line(server.port) as line:
        act_as(monkeypatch, server, "writer", line)
        line.cut_at = step.encode()
        assert_told(*run_cli(project.root, "register"), "cannot be reached, or it closed the connection", line.address)
        assert line.cuts == 0
        assert run_cli(project.root, "register") == (0, "")
    assert_whole(server, digest, f"C={STEPS[step]}")


@pytest.mark.parametrize(("command", "step", "c"), [("register", "logged-models", 1.1), ("record", "log-batch", 1.2)])
def test_a_server_that_is_killed_is_told_and_the_next_run_mends_it(
    server: Team, project: Paths, monkeypatch: pytest.MonkeyPatch, run_cli: Run, command: str, step: str, c: float
) -> None:
    digest = new_model(project, c)
    with servers.line(server.port) as line:
        act_as(monkeypatch, server, "writer", line)
        if command == "record":
            workbench.run(project, "register", "evaluate", "score", "monitor")
        line.cut_at, line.at_cut = step.encode(), server.kill
        try:
            assert_told(*run_cli(project.root, command), "cannot be reached, or it closed the connection", line.address)
        finally:
            assert server.process is None
            server.start()
        assert "RUNNING" in {run.info.status for kind in KINDS for run in runs(server, kind)}
        assert run_cli(project.root, command) == (0, "")
    assert_whole(server, digest, f"C={c}")


def test_a_server_that_does_not_answer_is_told_and_the_next_run_mends_it(
    server: Team, project: Paths, monkeypatch: pytest.MonkeyPatch, run_cli: Run
) -> None:
    digest = new_model(project, 2.1)
    with servers.line(server.port) as line:
        act_as(monkeypatch, server, "writer", line)
        line.cut_at, line.at_cut = b"model-versions/create", lambda: time.sleep(3)
        with monkeypatch.context() as impatient:
            impatient.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
            assert_told(*run_cli(project.root, "register"), "did not answer within 2 s", line.address)
        assert run_cli(project.root, "register") == (0, "")
    assert_whole(server, digest, "C=2.1")
