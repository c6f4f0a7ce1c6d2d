"""A disk that fills up in the middle of a stage leaves what was whole, and nothing half-written."""

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import factory, workbench
from tests.conftest import missing
from tipline.errors import TiplineError
from tipline.ingest import simulate
from tipline.paths import Paths
from tipline.registry import store

MONTH, FEW, MANY = "2009-01", 200, 12_000
STAGES = ("download", "prepare", "sample")


def test_a_full_disk_under_mlflows_database_is_named(mlflow_store: Path) -> None:
    with (
        pytest.raises(TiplineError, match="the disk is full") as caught,
        store.connect_store(Paths(mlflow_store.parent)),
        contextlib.closing(sqlite3.connect(mlflow_store)) as connection,
    ):
        connection.executescript("PRAGMA max_page_count = 1; CREATE TABLE ballast AS SELECT randomblob(1000000)")
    assert caught.value.parts[2].startswith("Free some space.")


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0  # noqa: S607


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (folder := tmp_path / "disk").mkdir()
    if not mount("-t", "tmpfs", "-o", "size=12m", "none", str(folder)):
        missing("no right to mount a small disk")
    yield folder
    monkeypatch.chdir(tmp_path)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def publish_month(paths: Paths, kind: str, rows: int) -> None:
    """Publish a month beside the project, or let it be simulated."""
    file = paths.root.parent.parent / f"{MONTH}.data"
    source = "demo" if kind == "demo" else str(file.with_name("{month}.data"))
    workbench.change_settings(paths, source=source, demo={"rows": rows}, sample={"rows": max(rows // 2, 100)})
    if kind == "CSV":
        times = [f"{MONTH}-15 {row // 3600 % 24:02}:{row // 60 % 60:02}:{row % 60:02}" for row in range(rows)]
        lines = [factory.line(Trip_Pickup_DateTime=time, Fare_Amt=row / 100) for row, time in enumerate(times)]
        factory.write_csv(file, lines)
    elif kind == "Parquet":
        simulate.simulate_month(file, MONTH, rows, 1)


def read_data(paths: Paths) -> dict[str, bytes]:
    return {name: data for name, data in workbench.read_tree(paths.root / "data").items() if name[0] != "."}


@pytest.mark.parametrize(
    ("stage", "kind", "room"),
    [
        *(("download", kind, 20_000) for kind in ("demo", "CSV", "Parquet")),
        *(("prepare", kind, room) for kind in ("CSV", "Parquet") for room in (0, 40_000)),
        ("sample", "Parquet", 20_000),
    ],
)
def test_a_full_disk_leaves_what_was_there(
    disk: Path,
    run_cli: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    kind: str,
    room: int,
) -> None:
    workbench.small_row_groups(monkeypatch, 2000)
    paths = workbench.write_project(disk / "project")
    publish_month(paths, kind, FEW)
    assert all(run_cli(paths.root, each, MONTH)[0] == 0 for each in STAGES)
    publish_month(paths, kind, MANY)
    assert all(run_cli(paths.root, each, MONTH)[0] == 0 for each in STAGES[: STAGES.index(stage)])
    before, free = read_data(paths), os.statvfs(disk)
    with (paths.root / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - room)
    code, output = run_cli(paths.root, stage, MONTH)
    assert code == 1
    assert "No space left on device" in output
    assert "no half-written file is left" in output
    assert "Traceback" not in output
    assert read_data(paths) == before
    assert not [path for path in paths.staging.rglob("*") if path.is_file() and path.suffix != ".lock"]
    (paths.root / "ballast").unlink()
    assert run_cli(paths.root, stage, MONTH)[0] == 0
    assert read_data(paths).keys() == before.keys()
    assert read_data(paths) != before
