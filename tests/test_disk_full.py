"""A disk that fills up in the middle of `prepare` leaves what was whole as it was, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from tests import factory, workbench
from tests.factory import line
from tipline.ingest import prepare, simulate
from tipline.ingest.schema import load_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]

OTHER = "2009-02"
ROWS = 12_000
SMALL, LARGE = "12m", "64m"
# Runs a command of tipline that may write no file larger than so many bytes: a full disk for those who may not mount.
LIMITED = """
import resource, signal, sys
limit = int(sys.argv.pop(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from tipline import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def write_csv(path: Path, rows: int, month: str) -> None:
    """A CSV month of 2009."""
    times = [f"{month}-15 {row // 3600 % 24:02}:{row // 60 % 60:02}:{row % 60:02}" for row in range(rows)]
    lines = [line(Trip_Pickup_DateTime=time, Fare_Amt=row / 100) for row, time in enumerate(times)]
    factory.write_csv(path, lines)


def write_parquet(path: Path, rows: int, month: str) -> None:
    """A simulated month in the format of its time."""
    simulate.simulate_month(path, month, rows, 1)


# How a month is written, and which.
FORMATS: dict[str, tuple[Callable[[Path, int, str], None], str]] = {
    "CSV of 2009": (write_csv, "2009-01"),
    "Parquet of 2009, times as text": (write_parquet, "2009-01"),
    "Parquet of today": (write_parquet, "2024-01"),
}


@dataclass
class Disk:
    """A project on a disk that can be made full.

    Parameters
    ----------
    layout
        The project.
    run_cli
        Runs a command in this process.
    mounted
        Whether it is a disk of its own; if not, files may not grow beyond `limit` in a process of its own.
    """

    paths: Paths
    run_cli: Run
    mounted: bool
    limit: int = 0

    @property
    def ballast(self) -> Path:
        """What fills the disk."""
        return self.paths.root / "ballast"

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command of tipline there."""
        if not self.limit:
            return self.run_cli(self.paths.root, *arguments)
        command = [sys.executable, "-c", LIMITED, str(self.limit), *arguments]
        done = subprocess.run(command, cwd=self.paths.root, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def leave(self, room: int) -> None:
        """Leave so many bytes."""
        if not self.mounted:
            self.limit = max(room, 1)
            return
        free = os.statvfs(self.paths.root)
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free.f_bavail * free.f_frsize - room, 1))

    def make_room(self) -> None:
        """Exchange the disk for a larger one."""
        self.limit = 0
        if self.mounted:
            mount("-o", f"remount,size={LARGE}", str(self.paths.root.parent))


def mount(*arguments: str) -> bool:
    """Mount; False where one may not."""
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0  # noqa: S607


@pytest.fixture
def disk(
    request: pytest.FixtureRequest, run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Disk]:
    """A project whose source is elsewhere, on a small disk of its own, or under a limit where one may not mount."""
    workbench.small_row_groups(monkeypatch, 2000)
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = request.param == "disk" and mount("-t", "tmpfs", "-o", f"size={SMALL}", "none", str(folder))
    try:
        source = str(tmp_path / "source" / "{month}.data")
        yield Disk(workbench.write_project(folder / "project", source=source), run_cli, mounted)
    finally:
        monkeypatch.chdir(tmp_path)
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def publish(tmp_path: Path, kind: str, rows: int) -> str:
    """Publish a month at the source; give which."""
    write, month = FORMATS[kind]
    (tmp_path / "source").mkdir(exist_ok=True)
    write(tmp_path / "source" / f"{month}.data", rows, month)
    return month


def needed(tmp_path: Path, month: str) -> int:
    """The bytes that the prepared month takes."""
    folder = tmp_path / "needed"
    folder.mkdir()
    prepare.prepare_month(tmp_path / "source" / f"{month}.data", folder, load_schema(), month)
    return sum(path.stat().st_size for path in folder.iterdir())


CASES = [("disk", kind, share) for kind in FORMATS for share in (0.0, 0.5, 0.97)]
CASES += [("limit", "CSV of 2009", 0.5)]


@pytest.mark.parametrize(("disk", "kind", "share"), CASES, indirect=["disk"])
def test_a_disk_that_fills_up_leaves_nothing_half_written(disk: Disk, tmp_path: Path, kind: str, share: float) -> None:
    month = publish(tmp_path, kind, 50)
    (tmp_path / "source" / f"{OTHER}.data").write_bytes((tmp_path / "source" / f"{month}.data").read_bytes())
    for done in (month, OTHER):
        assert disk.run("download", done)[0] == 0
        assert disk.run("prepare", done)[0] == 0
    publish(tmp_path, kind, ROWS)
    assert disk.run("download", month)[0] == 0
    before = factory.contents(disk.paths.root / "data" / "trips")
    disk.leave(int(share * needed(tmp_path, month)))

    code, printed = disk.run("prepare", month)
    assert code == 1
    assert ("No space left on device" if disk.mounted else "File too large") in printed
    assert "nothing half-written is left" in printed
    assert "Traceback" not in printed
    assert "Fetch the month again" not in printed
    assert factory.contents(disk.paths.root / "data" / "trips") == before
    assert list((disk.paths.staging / "trips").iterdir()) == []

    disk.make_room()
    assert disk.run("prepare", month)[0] == 0
    assert pq.read_metadata(disk.paths.prepared_file(month)).num_rows == ROWS
    after = factory.contents(disk.paths.root / "data" / "trips")
    assert [name for name in before if after[name] != before[name] and OTHER in name] == []
    assert set(after) == set(before)
    assert list((disk.paths.staging / "trips").iterdir()) == []
