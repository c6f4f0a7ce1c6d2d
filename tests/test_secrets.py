"""No password, key or token reaches a run, a tag, a manifest, a log line or a message, wherever it is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests import servers, workbench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS
# One word in all that is planted: whatever is left of it, cut or quoted, is found.
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


@pytest.fixture(scope="module")
def shelf() -> Iterator[servers.Shelf]:
    with servers.shelf() as server:
        yield server


@pytest.fixture(scope="module")
def project(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shelf: servers.Shelf
) -> tuple[Paths, str]:
    """A project that has run with secrets wherever a person may keep one, and all that it printed."""
    template = request.getfixturevalue("mlflow_template")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    before = workbench.trained(request)
    paths = workbench.copy_project(before, tmp_path_factory.mktemp("secrets"))
    shutil.copyfile(template, paths.root / "mlflow.db")
    for month in MONTHS:
        published = next(path for path in before.raw(month).iterdir())
        shelf.files[f"/{month}.parquet?token=qt{WORD}&v=1"] = published.read_bytes()
    source = shelf.address(f"/{{month}}.parquet?token=qt{WORD}&v=1", f"me:up{WORD}@")
    workbench.change_settings(paths, months=MONTHS, source=source, cluster={"n_workers": 1})
    repository(paths)
    printed = [run(paths, *command) for command in (("download", *MONTHS), *EVERYTHING)]
    return paths, "\n".join(printed)


EVERYTHING = (
    *(("prepare", month) for month in MONTHS[:1]),
    *(("register",), ("evaluate",), ("score",), ("monitor",), ("record",), ("status",)),
    *(("explain", MONTHS[0], "7"), ("verify",)),
)


def repository(paths: Paths) -> None:
    """Put the project under git and DVC, with a password in the addresses of both remotes."""
    address = f"https://me:gp{WORD}@git.invalid/tips.git?access_token=ga{WORD}"
    commands = (
        ("git", "init", "-q"),
        ("git", "remote", "add", "origin", address),
        ("dvc", "init", "-q"),
        ("dvc", "remote", "add", "-q", "-d", "store", f"https://me:dp{WORD}@dvc.invalid/x"),
    )
    for command in commands:
        subprocess.run(command, cwd=paths.root, env=environment(), check=True, capture_output=True)


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | KEPT_IN | {"PATH": path, "DVC_NO_ANALYTICS": "1", "AWS_EC2_METADATA_DISABLED": "true"} | more


def run(paths: Paths, *command: str, fails: bool = False, **more: str) -> str:
    """Run a command of tipline's in a process of its own; return what it printed."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("tipline")), *command],
        cwd=paths.root,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def with_it(paths: Paths) -> list[str]:
    """The files of a project, MLflow's database among them, that have a secret in them."""
    files = (path for path in paths.root.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(paths.root)) for path in files if WORD.encode() in path.read_bytes())


# Where the person has put them.
OWN = [".dvc/config", ".git/config", "params.yaml"]


def test_no_secret_is_in_what_a_whole_run_leaves_and_prints(project: tuple[Paths, str], shelf: servers.Shelf) -> None:
    paths, printed = project
    sent = [request for request in shelf.log if request.status == 200]
    assert any("authorization" in request.headers for request in sent)  # they were used
    assert any(WORD in request.path for request in sent)
    assert with_it(paths) == OWN
    assert WORD not in printed
    assert "://***@127.0.0.1" in paths.raw_manifest(MONTHS[0]).read_text()
    assert (paths.root / "mlartifacts").is_dir()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_no_secret_is_in_the_message_of_a_source_that_refuses(
    project: tuple[Paths, str], shelf: servers.Shelf, status: int
) -> None:
    paths, _ = project
    shelf.status = status
    try:
        printed = run(paths, "download", MONTHS[0], fails=True) + run(
            paths, "check", shelf.address(f"/x{{month}}.csv?sig=cs{WORD}", f"me:cp{WORD}@"), MONTHS[0], fails=True
        )
    finally:
        shelf.status = 200
    assert WORD not in printed
    assert with_it(paths) == OWN


STORES = (
    f"http://me:tp{WORD}@127.0.0.1:9/path?token=tt{WORD}",
    # Not PostgreSQL's: MLflow itself waits very long for a database that is not there.
    f"nonsense://me:tp{WORD}@127.0.0.1:9/mlflow?password=pq{WORD}",
)


@pytest.mark.parametrize("store", STORES)
def test_no_secret_is_in_the_message_of_a_store_that_is_not_there(project: tuple[Paths, str], store: str) -> None:
    paths, _ = project
    printed = run(paths, "record", fails=True, MLFLOW_TRACKING_URI=store)
    assert WORD not in printed
    assert with_it(paths) == OWN


def test_no_secret_is_in_the_message_of_a_bucket_that_refuses(project: tuple[Paths, str]) -> None:
    paths, _ = project
    printed = run(
        paths,
        *("score", "--trips", "s3://tips/trips", "--to", "s3://tips/to"),
        fails=True,
        AWS_ENDPOINT_URL=f"http://me:ep{WORD}@127.0.0.1:9",
    )
    assert WORD not in printed
    assert with_it(paths) == OWN


def test_dvc_is_not_given_a_source_with_a_secret(project: tuple[Paths, str], tmp_path: Path) -> None:
    paths, _ = project
    copied = workbench.copy_project(paths, tmp_path)
    printed = run(copied, "params", fails=True)
    assert "has a password or a token in it" in printed
    assert "netrc" in printed
    assert WORD not in printed
    command = [str(Path(sys.executable).with_name("dvc")), "repro"]
    done = subprocess.run(command, cwd=copied.root, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert WORD not in done.stdout + done.stderr
    lock = copied.root / "dvc.lock"
    assert not lock.exists() or WORD not in lock.read_text()
    assert "dvc.lock" not in with_it(copied)


def test_the_ways_that_are_named_instead_work(project: tuple[Paths, str], shelf: servers.Shelf, tmp_path: Path) -> None:
    paths, _ = project
    copied = workbench.copy_project(paths, tmp_path)
    values = yaml.safe_load(copied.params.read_text())
    copied.params.write_text(yaml.safe_dump(values | {"source": shelf.address("/{month}.parquet")}, sort_keys=False))
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password np{WORD}\n")
    netrc.chmod(0o600)
    shelf.files[f"/{MONTHS[0]}.parquet?token=ft{WORD}"] = shelf.files[f"/{MONTHS[0]}.parquet?token=qt{WORD}&v=1"]
    shelf.log.clear()
    assert "3 months from" in run(copied, "params")
    settings = json.dumps({"params": {"token": f"ft{WORD}"}, "headers": {"X-Key": f"fh{WORD}"}})
    assert WORD not in run(copied, "download", MONTHS[0], NETRC=str(netrc), FSSPEC_HTTP=settings)
    asked = shelf.log[-1]
    assert asked.status == 200
    assert asked.headers["x-key"] == f"fh{WORD}"
    assert asked.headers["authorization"].startswith("Basic ")
