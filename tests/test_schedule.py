"""The files of docs/schedule, run as their hosts would run them: workflows, a cron line, a webhook of a real MLflow."""

import base64
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
import yaml
from cryptography.fernet import Fernet

from tests import servers, stories, warm, workbench
from tests.conftest import ROOT
from tests.stories import Story
from tests.workbench import wait_for
from tipline.ingest import simulate
from tipline.paths import Paths

FOLDER = ROOT / "docs/schedule"
SECRET = "the secret of the webhook"  # noqa: S105 (of the tests alone)


def read_steps(name: str) -> list[str]:
    """Return the shell scripts of a workflow."""
    workflow = yaml.safe_load((FOLDER / name).read_text())["jobs" if name == "github.yml" else "routine"]
    if name == "github.yml":
        return [step["run"] for step in workflow["routine"]["steps"] if "run" in step]
    return ["\n".join(workflow["script"])]


def publish(store: Path, month: str) -> None:
    simulate.simulate_month(store / f"{month}.parquet", month, 5000, 2009)


def clone(folder: Path, name: str) -> Story:
    """Clone the repository as a host does, with an environment that is ready."""
    stories.git(Story(folder), "clone", "--quiet", "origin.git", name)
    (folder / name / ".venv").mkdir()
    (folder / name / ".venv/bin").symlink_to(os.environ[warm.FOLDER])
    (folder / name / ".venv/.ready").touch()
    return Story(folder / name)


def read_log(folder: Path) -> list[str]:
    log = stories.git(Story(folder), "--git-dir", "origin.git", "log", "--format=:%s", "--name-only", "main")
    return log.removeprefix(":").split("\n:")


def test_workflows_score_a_new_month_once_commit_it_and_then_nothing(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    project, store = stories.copy_first(tmp_path_factory, tmp_path / "project"), tmp_path / "store"
    store.mkdir()
    for month in stories.MONTHS:
        publish(store, month)
    workbench.change_settings(Paths(project.root), source="../store/{month}.parquet")
    shutil.copytree(FOLDER, project.root / "docs/schedule")
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copyfile(ROOT / name, project.root / name)
    project.repro("moved")
    stories.dvc(project, "remote", "add", "--default", "kept", "../remote")
    stories.commit(project, "source")
    for command in ("init --quiet --bare --initial-branch main ../origin.git", "push --quiet ../origin.git HEAD:main"):
        stories.git(project, *command.split())
    github = clone(tmp_path, "github")
    assert github.run("dvc", "pull", "--run-cache", "--allow-missing").returncode == 0  # nothing is pushed yet
    stories.dvc(project, "push", "--run-cache")

    publish(store, "2009-04")
    github.environment = {"BRANCH": "main"}
    for step in read_steps("github.yml"):
        done = github.run("bash", "-e", "-c", step)
        assert done.returncode == 0, done.stdout + done.stderr
    assert stories.MONTHS[-1] not in re.findall(r"(\S+): published", done.stderr)  # only the new one is scored
    subject, changed = read_log(tmp_path)[0].split("\n\n")
    assert subject.endswith("[skip ci]")
    assert changed.split() == ["dvc.lock", "params.yaml"]

    before = read_log(tmp_path)
    line = (FOLDER / "crontab").read_text().splitlines()[-1].split(maxsplit=5)[5].replace("/srv/taxi", str(github.root))
    cron = subprocess.run(["/bin/sh", "-c", line], env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, check=False)
    log = (github.root / "routine.log").read_text()
    assert cron.returncode == 0, log
    assert "does not have this month" in log
    assert read_log(tmp_path) == before

    publish(store, "2009-05")
    gitlab = clone(tmp_path, "gitlab")
    stories.git(gitlab, "checkout", "--quiet", "--detach")
    variables = yaml.safe_load((FOLDER / "gitlab.yml").read_text())["routine"]["variables"]
    assert {"BRANCH", "PUSH_URL"} < {*variables}
    gitlab.environment = {"BRANCH": "main", "PUSH_URL": str(tmp_path / "origin.git")}
    for step in read_steps("gitlab.yml"):
        done = gitlab.run("bash", "-e", "-c", step)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(read_log(tmp_path)) == len(before) + 1
    months = sorted(path.name for path in gitlab.root.glob("data/predictions/month=*"))
    assert months == [f"month={month}" for month in (*stories.MONTHS, "2009-04", "2009-05")]


def test_the_dockerfile_copies_what_the_installation_needs(tmp_path: Path) -> None:
    """There is no docker here: the files are copied and the project is built from them; RUN lines are parsed only."""
    text = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert next(word for word, _ in lines) == "FROM"
    for word, rest in lines:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
                copy(ROOT / source, tmp_path / (source if target == "./" else target))
        if word == "RUN":
            subprocess.run(["/bin/sh", "-n", "-c", rest], check=True)
        if word == "CMD":
            assert os.access(ROOT / json.loads(rest)[0], os.X_OK)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('wheel'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "wheel").glob("tipline-*.whl"))


# ---- MLflow's webhook ----


class Mlflow(servers.Program):
    """A real `mlflow server` that may send webhooks to this machine."""

    def start(self, database: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_MODEL_CATALOG_URI": "",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        }
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--backend-store-uri", f"sqlite:///{database}"]
        self.run([*command, "--artifacts-destination", str(self.folder / "artifacts")], environment)
        requests.get(f"http://{self.place}/health", timeout=120)


@pytest.fixture
def registry(tmp_path: Path, mlflow_template: Path) -> Iterator[mlflow.MlflowClient]:
    database = Path(shutil.copyfile(mlflow_template, tmp_path / "mlflow.db"))
    server = Mlflow(tmp_path)
    try:
        server.start(database)
        yield mlflow.MlflowClient(f"http://{server.place}", f"http://{server.place}")
    finally:
        server.kill()


class Receiver(servers.Program):
    def start(self, *command: str) -> None:
        place = [sys.executable, str(FOLDER / "webhook.py"), "127.0.0.1", str(self.port)]
        self.run([*place, *command], {**os.environ, "WEBHOOK_SECRET": SECRET, "DVC_NO_ANALYTICS": "1"})

    @contextmanager
    def running(self, *command: str) -> Iterator[str]:
        try:
            self.start(*command)
            yield f"http://{self.place}/"
        finally:
            self.kill()


def sign(body: bytes, sent: float, secret: str = SECRET) -> dict[str, str]:
    digest = hmac.digest(secret.encode(), f"id.{int(sent)}.".encode() + body, hashlib.sha256)
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"X-MLflow-Delivery-Id": "id", "X-MLflow-Timestamp": str(int(sent)), "X-MLflow-Signature": signature}


def test_a_new_champion_in_mlflow_runs_dvc_repro(registry: Any, tmp_path: Path) -> None:
    from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent

    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo run >> runs; sleep 1\n    always_changed: true\n")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    runs = tmp_path / "runs"

    def count_runs() -> int:
        log = (tmp_path / "log").read_text()
        return len(re.findall(r"ended with 0", log))

    with Receiver(tmp_path).running(*dvc, "--wait-for-lock", "repro", "--quiet") as address:
        wait_for(lambda: count_runs() == 1)
        registry.create_registered_model("tip-probability")
        for number in range(2):
            registry.create_model_version("tip-probability", f"s3://models/{number}")
        events = [WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)]
        registry.create_webhook("tipline", address, events, secret=SECRET)
        registry.set_registered_model_alias("tip-probability", "candidate", "1")
        for version in ("1", "2") * 3:  # together
            registry.set_registered_model_alias("tip-probability", "champion", version)
        wait_for(lambda: count_runs() == 3)
        body = json.dumps(
            {"entity": "model_version_alias", "action": "created", "data": {"alias": "champion"}}
        ).encode()
        for headers in (
            {},
            sign(body, time.time(), "another"),
            sign(body, time.time() - 900),
            sign(b"{}", time.time()),
        ):
            assert requests.post(address, body, headers=headers, timeout=20).status_code == 401
        other = body.replace(b"champion", b"candidate")
        assert requests.post(address, other, headers=sign(other, time.time()), timeout=20).status_code == 204
        assert requests.post(address, body, headers=sign(body, time.time()), timeout=20).status_code == 204
        wait_for(lambda: count_runs() == 4)
    assert runs.read_text() == "run\n" * 4
