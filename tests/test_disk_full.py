"""A disk that fills up in the middle of `prepare` leaves what was whole, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from tests import factory, workbench
from tests.conftest import missing
from tipline.ingest import prepare, simulate
from tipline.ingest.schema import load_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROWS = 12_000
# Runs a command of tipline that may write no file larger than so many bytes: a full disk without mounting one.
LIMITED = """
import resource, signal, sys
limit = int(sys.argv.pop(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from tipline import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def mount(*arguments: str) -> bool:
    """Mount something; return False without the right to."""
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0  # noqa: S607


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small disk."""
    (folder := tmp_path / "disk").mkdir()
    if not mount("-t", "tmpfs", "-o", "size=12m", "none", str(folder)):
        missing("no right to mount a small disk")
    yield folder
    monkeypatch.chdir(tmp_path)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def publish_month(folder: Path, month: str, rows: int) -> None:
    """Write a month at its source: CSV of 2009 or Parquet of today."""
    folder.mkdir(exist_ok=True)
    if month == "2024-01":
        simulate.simulate_month(folder / f"{month}.data", month, rows, 1)
        return
    times = [f"{month}-15 {row // 3600 % 24:02}:{row // 60 % 60:02}:{row % 60:02}" for row in range(rows)]
    lines = [factory.line(Trip_Pickup_DateTime=time, Fare_Amt=row / 100) for row, time in enumerate(times)]
    factory.write_csv(folder / f"{month}.data", lines)


def measure_prepared(source: Path, month: str, folder: Path) -> int:
    """Return the bytes that the prepared month takes."""
    folder.mkdir()
    prepare.prepare_month(source / f"{month}.data", folder, load_schema(), month)
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("month", ["2009-01", "2024-01"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_a_full_disk_leaves_nothing_half_written(
    disk: Path,
    tmp_path: Path,
    run_cli: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    month: str,
    share: float,
) -> None:
    workbench.small_row_groups(monkeypatch, 2000)
    source = tmp_path / "source"
    paths = workbench.write_project(disk / "project", source=str(source / "{month}.data"))
    for one in (month, "2009-02"):
        publish_month(source, one, 50)
        assert run_cli(paths.root, "download", one)[0] == 0
        assert run_cli(paths.root, "prepare", one)[0] == 0
    publish_month(source, month, ROWS)
    assert run_cli(paths.root, "download", month)[0] == 0
    trips = paths.root / "data" / "trips"
    before, free = workbench.read_tree(trips), os.statvfs(disk)
    with (paths.root / "ballast").open("wb") as file:
        room = int(share * measure_prepared(source, month, tmp_path / "needed"))
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - room)

    code, output = run_cli(paths.root, "prepare", month)
    assert code == 1
    assert "No space left on device" in output
    assert "no half-written file is left" in output
    assert "Traceback" not in output
    assert workbench.read_tree(trips) == before
    assert not [path for path in (paths.staging / "trips").iterdir() if path.is_dir()]

    (paths.root / "ballast").unlink()
    assert run_cli(paths.root, "prepare", month)[0] == 0
    assert pq.read_metadata(paths.prepared_file(month)).num_rows == ROWS
    after = workbench.read_tree(trips)
    assert after.keys() == before.keys()
    assert not [name for name in before if after[name] != before[name] and "2009-02" in name]


def test_a_file_that_may_not_grow_leaves_nothing_half_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    paths = workbench.write_project(tmp_path / "project", source=str(source / "{month}.data"))
    publish_month(source, "2009-01", ROWS)
    workbench.run_month(paths, "download", "2009-01")
    limit = measure_prepared(source, "2009-01", tmp_path / "needed") // 2
    command = [sys.executable, "-c", LIMITED, str(limit), "prepare", "2009-01"]
    done = subprocess.run(command, cwd=paths.root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "no half-written file is left" in done.stderr
    assert not paths.prepared("2009-01").exists()
    assert not [path for path in (paths.staging / "trips").iterdir() if path.is_dir()]
