"""No password, key or token reaches a run, a tag, a manifest, a log line or a message."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers, warm, workbench
from tests.conftest import ROOT, forget_store
from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS
# Part of every secret, so that what is left of one, cut or quoted, is found.
WORD = "Zq7geheim"
MONTHS = ["2009-01", "2009-02", "2009-03"]
KEPT_IN = {
    "AWS_ACCESS_KEY_ID": f"AK{WORD}",
    "AWS_SECRET_ACCESS_KEY": f"sk/{WORD}+x",
    "AWS_SESSION_TOKEN": f"st{WORD}",
    "MLFLOW_TRACKING_TOKEN": f"mt{WORD}",
    "MLFLOW_TRACKING_PASSWORD": f"mp{WORD}",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": f"fk{WORD}",
}
EVERYTHING = "prepare 2009-01,register,evaluate,score,monitor,record,status,explain 2009-01 7,verify"
# fsspec reads its settings when it is imported: these commands may not be forks (see tests/warm.py).
COLD, READ_AT_IMPORT = Path(sys.executable).parent, {"download", "check", "dvc"}
# Files that the person wrote the secrets into.
OWN = [".dvc/config", ".git/config"]


@pytest.fixture(scope="module")
def shelf() -> Iterator[servers.Shelf]:
    with servers.shelf() as server:
        yield server


@pytest.fixture(scope="module")
def project(
    trained_template: Paths, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory, shelf: servers.Shelf
) -> tuple[Paths, str]:
    """A project that has run with secrets wherever a person may keep one, and everything that it output."""
    folder = tmp_path_factory.mktemp("secrets")
    paths = workbench.copy_project(trained_template, folder)
    shutil.copyfile(mlflow_template, paths.root / "mlflow.db")
    for month in MONTHS:
        published = next(path for path in trained_template.raw(month).iterdir())
        shelf.files[f"/{month}.parquet?token=qt{WORD}"] = published.read_bytes()
    workbench.change_settings(paths, months=MONTHS, source=shelf.address("/{month}.parquet"), cluster={"n_workers": 1})
    (folder / "netrc").write_text(f"machine 127.0.0.1 login me password np{WORD}\n")
    (folder / "netrc").chmod(0o600)
    create_repository(paths)
    commands = [*(f"download {month}" for month in MONTHS), *EVERYTHING.split(",")]
    with forget_store():  # that of an earlier test
        return paths, "\n".join(run(paths, *command.split()) for command in commands)


def create_repository(paths: Paths) -> None:
    """Put the project under git and DVC, with a password in the addresses of both remotes."""
    address = f"https://me:gp{WORD}@git.invalid/tips.git?access_token=ga{WORD}"
    commands = (
        ("git", "init", "-q"),
        ("git", "remote", "add", "origin", address),
        ("dvc", "init", "-q"),
        ("dvc", "remote", "add", "-q", "-d", "store", f"https://me:dp{WORD}@dvc.invalid/x"),
    )
    for command in commands:
        subprocess.run(command, cwd=paths.root, env=create_environment(paths), check=True, capture_output=True)


def create_environment(paths: Paths, **more: str) -> dict[str, str]:
    """Return the environment of a person with secrets in it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = {"params": {"token": f"qt{WORD}"}, "headers": {"X-Key": f"fh{WORD}"}}
    own = {"NETRC": str(paths.root.parent / "netrc"), "FSSPEC_HTTP": json.dumps(options), "PATH": path}
    return os.environ | KEPT_IN | own | {"DVC_NO_ANALYTICS": "1", "AWS_EC2_METADATA_DISABLED": "true"} | more


def run(paths: Paths, *command: str, fails: bool = False, **more: str) -> str:
    """Run a command of tipline, or `dvc`, in its own process and return its output."""
    program, *arguments = command if command[0] == "dvc" else ("tipline", *command)
    done = subprocess.run(
        [str((COLD if command[0] in READ_AT_IMPORT else Path(os.environ[warm.FOLDER])) / program), *arguments],
        cwd=paths.root,
        env=create_environment(paths, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout
    assert "Traceback" not in done.stdout
    assert not fails or WORD not in done.stdout
    return done.stdout


def find_secrets(paths: Paths) -> list[str]:
    """List the files of a project, MLflow's database included, that contain a secret."""
    files = (path for path in paths.root.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(paths.root)) for path in files if WORD.encode() in path.read_bytes())


def test_run_leaves_and_prints_no_secret(project: tuple[Paths, str], shelf: servers.Shelf) -> None:
    paths, output = project
    sent = [request for request in shelf.log if request.status == 200]
    assert any(request.headers.get("authorization", "").startswith("Basic ") for request in sent)  # they were used
    assert any(request.headers.get("x-key") == f"fh{WORD}" for request in sent)
    assert any(WORD in request.path for request in sent)
    assert find_secrets(paths) == OWN
    assert WORD not in output
    assert (paths.root / "mlartifacts").is_dir()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_source_that_refuses_shows_no_secret(project: tuple[Paths, str], shelf: servers.Shelf, status: int) -> None:
    paths, _ = project
    source = shelf.address(f"/x{{month}}.csv?sig=cs{WORD}", f"me:cp{WORD}@")
    shelf.status = status
    try:
        for command in (("download", MONTHS[0]), ("check", source, MONTHS[0])):
            run(paths, *command, fails=True)
    finally:
        shelf.status = 200
    assert find_secrets(paths) == OWN


@pytest.mark.parametrize(
    ("command", "name", "address"),
    [
        (("record",), "MLFLOW_TRACKING_URI", f"http://me:tp{WORD}@127.0.0.1:9/path?token=tt{WORD}"),
        # Not PostgreSQL's, for which MLflow itself waits very long.
        (("record",), "MLFLOW_TRACKING_URI", f"nonsense://me:tp{WORD}@127.0.0.1:9/mlflow?password=pq{WORD}"),
        (
            ("score", "--trips", "s3://tips/trips", "--to", "s3://tips/to"),
            "AWS_ENDPOINT_URL",
            f"http://me:ep{WORD}@127.0.0.1:9",
        ),
    ],
)
def test_server_that_cannot_be_reached_shows_no_secret(
    project: tuple[Paths, str], command: tuple[str, ...], name: str, address: str
) -> None:
    run(project[0], *command, fails=True, **{name: address})
    assert find_secrets(project[0]) == OWN


def test_source_with_a_secret_never_reaches_dvc_lock(project: tuple[Paths, str], tmp_path: Path) -> None:
    copy = workbench.copy_project(project[0], tmp_path)
    shutil.copyfile(project[0].root.parent / "netrc", tmp_path / "netrc")
    shutil.copytree(ROOT / "src", copy.root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    workbench.change_settings(copy, source=f"https://me:up{WORD}@127.0.0.1:9/{{month}}.parquet?token=qt{WORD}")
    output = run(copy, "dvc", "repro", fails=True)
    assert "has a password or token in it" in output
    assert "netrc" in output
    assert not (copy.root / "dvc.lock").exists()
