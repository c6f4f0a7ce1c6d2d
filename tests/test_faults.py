"""Whatever dies, fills up or changes while months are scored: what is published is whole, and the next run goes on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow.dataset
import pytest
from distributed import LocalCluster

from tests import workbench
from tests.conftest import missing
from tests.test_disk_full import mount
from tests.test_score import another_champion, assert_whole, folder, manifest, parts
from tipline import cluster, files, processes, storage
from tipline.model import artifact, pyfunc
from tipline.paths import Paths, month_name
from tipline.scoring import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = workbench.MLFLOW_WARNINGS

GROUP_ROWS = 110
PARTS = -(-5000 // GROUP_ROWS)
BAD, GOOD = "2024-01", workbench.MONTHS[:3]
KILLS = 10
# A guard against hanging, far beyond what anything here takes.
PATIENCE = 120

# Put behind the code that a champion carries: something that happens before the rows of a block are scored.
BEFORE = """
import time
_probabilities = Model.probabilities

class OddRateCodeError(Exception):
    def __init__(self, code, why):
        super().__init__(f"no such rate code: {{code}}")

def _year(trips):
    return pc.mode(pc.year(trips["pickup_datetime"]))[0]["mode"].as_py()

def probabilities(self, trips):
    {fault}
    return _probabilities(self, trips)

Model.probabilities = probabilities
"""
SLOW, SLOWER = "time.sleep(0.01)", "time.sleep(0.03)"
RAISES = f"if _year(trips) == {BAD[:4]}: raise "
# Slowly enough for the nanny, which looks ten times a second, to end it near its limit.
EATS = f"kept = []\n    while _year(trips) == {BAD[:4]}: kept.append(b'x' * 2**23); time.sleep(0.002)"


@dataclass(frozen=True)
class Champion:
    """A model's files, and the predictions that it makes, by path."""

    contents: dict[str, bytes]
    parts: dict[str, bytes]

    def crown(self, paths: Paths, fault: str = "") -> str:
        """Make it the champion, with something that happens before each block; return its digest."""
        code = self.contents[artifact.CODE] + (BEFORE.format(fault=fault).encode() if fault else b"")
        return crown(paths, self.contents | {artifact.CODE: code})

    def of(self, month: str) -> dict[str, bytes]:
        """The predictions of a month, by file name."""
        start = f"{month_name(month)}/"
        return {name.removeprefix(start): data for name, data in self.parts.items() if name.startswith(start)}


@dataclass(frozen=True)
class Prepared:
    """A project whose months are many small parts, published by one champion and by another; not to be changed."""

    paths: Paths
    first: Champion
    by_second: Paths
    second: Champion

    @property
    def digest(self) -> str:
        """Of the first champion."""
        return artifact.hash_artifact(self.first.contents)


def crown(paths: Paths, contents: dict[str, bytes]) -> str:
    """Make a model the champion; return its digest."""
    for name, data in contents.items():
        (paths.champion / name).write_bytes(data)
    digest = artifact.hash_artifact(contents)
    files.write_json(paths.champion_ref, workbench.read_json(paths.champion_ref) | {"digest": digest})
    return digest


def champion(paths: Paths) -> Champion:
    """The champion of a scored project."""
    return Champion(artifact.read_artifact(paths.champion), parts(paths))


@pytest.fixture(scope="module")
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Score everything with two champions, uninterrupted."""
    paths = workbench.copy_project(workbench.scored(request), tmp_path_factory.mktemp("first"))
    with pytest.MonkeyPatch.context() as patched:
        workbench.small_row_groups(patched, GROUP_ROWS)
        workbench.prepare_again(paths, *workbench.MONTHS)
        patched.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
        workbench.run(paths, "score")
        other = workbench.copy_project(paths, tmp_path_factory.mktemp("second"))
        another_champion(other)
        workbench.run(other, "score")
    return Prepared(paths, champion(paths), other, champion(other))


@pytest.fixture
def project(prepared: Prepared, tmp_path: Path) -> Paths:
    """A project of the test's own, published by the first champion."""
    return workbench.copy_project(prepared.paths, tmp_path)


@pytest.fixture
def on_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command use the session's workers."""
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))


@dataclass(frozen=True)
class Run:
    """A `tipline score` that runs."""

    process: subprocess.Popen[bytes]
    printed: Path

    def ended(self) -> tuple[int, str]:
        """Wait for it; give its exit code and what it printed, which is never a stack trace."""
        code = self.process.wait(PATIENCE)
        printed = self.printed.read_text()
        assert "Traceback" not in printed
        assert "defect" not in printed
        return code, printed


@contextlib.contextmanager
def scoring_process(paths: Paths) -> Iterator[Run]:
    """Run `tipline score` while the block runs."""
    with tempfile.NamedTemporaryFile(suffix=".printed") as printed:
        path = Path(printed.name)
        with workbench.running("tipline", "score", folder=paths.root, printed=path) as process:
            yield Run(process, path)


def score(paths: Paths) -> tuple[int, str]:
    """Run `tipline score` to its end."""
    with scoring_process(paths) as run:
        return run.ended()


def staged(paths: Paths) -> Path:
    """The folder of parts whose month is not whole yet."""
    return paths.staging / "predictions"


def markers(paths: Paths) -> int:
    """How many blocks of unpublished months are done."""
    return len(list(staged(paths).rglob("part-*.json")))


def published_by(paths: Paths, month: str) -> str:
    """The digest of the model that a whole month was published by."""
    assert_whole(paths, month)
    assert manifest(paths, month)["rows"] == 5000
    return str(manifest(paths, month)["key"]["model"])


def assert_published(paths: Paths, champions: dict[str, Champion], months: Any = workbench.MONTHS) -> None:
    """Each month is whole, readable, and byte for byte what one of these models, by digest, predicts."""
    for month in months:
        made = champions[published_by(paths, month)].of(month)
        there = workbench.read_tree(folder(paths, month))
        assert {name: data for name, data in there.items() if name != files.MANIFEST} == made
        read = pyarrow.dataset.dataset(folder(paths, month), schema=plan.SCHEMA).to_table()
        assert len(set(read["row"].to_pylist())) == len(read) == 5000


def assert_clean(paths: Paths) -> None:
    """Nothing is left of what went wrong before."""
    assert list(staged(paths).iterdir()) == []
    assert {path.name for path in paths.predictions.iterdir()} == {month_name(month) for month in workbench.MONTHS}


def finished(paths: Paths) -> dict[str, int]:
    """The parts of the champion that need not be scored again, and when each was written."""
    digest, found = workbench.read_json(paths.champion_ref)["digest"], {}
    manifests = [*staged(paths).rglob(files.MANIFEST), *paths.predictions.rglob(files.MANIFEST)]
    for marker in [*staged(paths).rglob("part-*.json"), *manifests]:
        told = workbench.read_json(marker)
        month = marker.parent.name.removeprefix("month=").partition(".")[0]
        key = {"trips": files.hash_file(paths.prepared_file(month)), "model": digest, "format": plan.FORMAT}
        if told["key"] in (key, files.hash_json(key)):
            for part in told.get("parts", [told]):
                path = marker.parent.with_name(marker.parent.name.removesuffix(plan.MARKERS)) / part["name"]
                if path.exists():
                    found[f"{month_name(month)}/{path.name}"] = path.stat().st_mtime_ns
    return found


# ---- the driver dies ----


def kill_at(paths: Paths, moment: float) -> bool:
    """Kill `tipline score` so many seconds after its start, and that process alone; False where it had ended."""
    with scoring_process(paths) as run:
        driver, end = psutil.Process(run.process.pid), time.monotonic() + moment
        while time.monotonic() < end and is_alive(driver):
            time.sleep(0.002)
        driver.suspend()  # so that it starts no worker that is not looked for below
        workers = driver.children(recursive=True)
        driver.kill()
        if run.ended()[0] == 0:
            return False
        workbench.wait_for(lambda: not any(map(is_alive, workers)))
    return True


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that nobody has reaped yet does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_driver_killed_at_any_moment_leaves_whole_months_and_is_gone_on_with(
    prepared: Prepared, project: Paths, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.change_settings(project, cluster={"n_workers": 1})
    seed = int(os.environ.get("TIPLINE_SEED", time.time_ns() % 1_000_000))
    print(f"TIPLINE_SEED={seed}")  # noqa: T201 (pytest shows it where the test fails)
    chance = random.Random(seed)  # noqa: S311
    turns = itertools.cycle((prepared.second, prepared.first))
    champions = {prepared.digest: prepared.first}

    def another_turn() -> Champion:
        turn = next(turns)
        champions[turn.crown(project, SLOWER)] = turn
        return turn

    # A worker of the driver's own, which ends with it, and workers that stay, by turns.
    addresses = ("", workbench.dask_cluster(request))
    durations = []
    for address in addresses:
        another_turn()
        monkeypatch.setenv(cluster.ADDRESS, address)
        started = time.monotonic()
        assert score(project)[0] == 0
        durations.append(time.monotonic() - started)
    now = another_turn()
    # One moment in each tenth of a run, in any order. A run that goes on with what others have finished may be over
    # before its moment: then comes one that has all before it.
    moments = [durations[tenth % 2] * (tenth + chance.random()) / KILLS for tenth in range(KILLS)]
    waiting = [(addresses[tenth % 2], moment) for tenth, moment in enumerate(moments)]
    chance.shuffle(waiting)
    kept = 0
    while waiting:
        before = finished(project)
        address, moment = waiting[-1]
        monkeypatch.setenv(cluster.ADDRESS, address)
        killed = kill_at(project, moment)
        assert_published(project, champions)
        after = finished(project)
        assert {name: after.get(name) for name in before} == before
        if killed:
            waiting.pop()
            kept += markers(project)
        else:
            waiting[-1] = (address, moment * 0.95)
            now = another_turn()
    assert kept

    before = finished(project)
    assert score(project)[0] == 0
    after = finished(project)
    assert {name: after[name] for name in before} == before
    assert parts(project) == now.parts
    assert_clean(project)


def test_months_that_only_had_to_be_published_are_not_scored_again(
    prepared: Prepared, project: Paths, run_cli: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared.second.crown(project)
    before = workbench.read_tree(project.predictions)

    def publish(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(project.predictions))

    with monkeypatch.context() as patched:
        patched.setattr(storage.LocalStorage, "publish", publish)
        code, printed = run_cli(project.root, "score")
    assert code == 4
    assert "it is scored, but cannot be published: [Errno 30] Read-only file system" in printed
    assert workbench.read_tree(project.predictions) == before
    left = next(staged(project).glob(f"{month_name(BAD)}.*{plan.MARKERS}"))
    left.with_name(left.name.removesuffix(plan.MARKERS)).joinpath(".part-00000.parquet.1.tmp").touch()
    made = finished(project)
    assert len(made) == PARTS * len(workbench.MONTHS)
    monkeypatch.setenv(cluster.ADDRESS, "tcp://127.0.0.1:1")  # it would fail where it needed a cluster
    assert score(project)[0] == 0
    assert finished(project) == made
    assert parts(project) == prepared.second.parts
    assert_clean(project)


def test_a_second_run_is_refused_at_once_and_the_first_ends_well(prepared: Prepared, project: Paths) -> None:
    prepared.second.crown(project, SLOW)
    with scoring_process(project) as first:
        workbench.wait_for(lambda: markers(project))
        code, printed = score(project)
        assert first.process.poll() is None
        assert code == 1
        assert "Another process is scoring" in printed
        assert str(project.staging / "score.lock") in printed
        assert "what it has finished is kept" in printed
        assert first.ended()[0] == 0
    assert parts(project) == prepared.second.parts
    assert_clean(project)


@pytest.mark.parametrize("folder", ["long-" * 20, "missing"])
def test_temporary_files_that_have_no_place_do_no_harm(
    prepared: Prepared, project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """A path that is too long for the name of a socket, by which workers would be forked."""
    if folder != "missing":
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / folder))
    prepared.second.crown(project)
    code, printed = score(project)
    assert code == 0, printed
    assert parts(project) == prepared.second.parts
    assert_clean(project)


def test_a_second_ctrl_c_is_not_needed_and_does_no_harm(prepared: Prepared, project: Paths) -> None:
    prepared.second.crown(project, SLOW)
    # What runs behind a shell's `&` ignores Ctrl-C, and so would the command.
    with processes.handle_interrupts(signal.default_int_handler), scoring_process(project) as run:
        workbench.wait_for(lambda: markers(project))
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        run.process.send_signal(signal.SIGINT)
        code, printed = run.ended()
    assert code == 130
    assert "what is finished is kept" in printed
    assert "Traceback" not in printed
    assert score(project)[0] == 0
    assert parts(project) == prepared.second.parts
    assert_clean(project)


# ---- a worker dies ----


def worker_processes(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The workers of a driver's own cluster."""
    servers = [child for child in psutil.Process(driver.pid).children() if "forkserver" in " ".join(child.cmdline())]
    return [worker for server in servers for worker in server.children()]


def test_killed_workers_change_nothing(prepared: Prepared, project: Paths) -> None:
    prepared.second.crown(project, SLOW)
    with scoring_process(project) as run:
        workbench.wait_for(lambda: markers(project) > 5)
        first, second = worker_processes(run.process)
        first.kill()
        workbench.wait_for(lambda: markers(project) > 30)
        second.kill()
        assert run.process.poll() is None
        assert run.ended()[0] == 0
    assert parts(project) == prepared.second.parts
    assert_clean(project)


def test_rows_that_no_worker_has_memory_for_fail_their_month_alone(
    prepared: Prepared, project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = prepared.second.crown(project, EATS)
    # A block is given up after two deaths instead of four, each of which takes seconds.
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")
    with workbench.scheduler(tmp_path) as address, workbench.workers(address, 2, "--memory-limit", "400MB"):
        monkeypatch.setenv(cluster.ADDRESS, address)
        code, printed = score(project)
    assert code == 4
    assert f"1 of 4 months failed: {BAD}: " in printed
    assert "memory" in printed
    assert "--memory-limit" in printed
    assert_published(project, {digest: prepared.second}, GOOD)
    assert_published(project, {prepared.digest: prepared.first}, [BAD])


# ---- the model ----


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize("error", ["ValueError('no such rate code')", "OddRateCodeError(99, 'unknown to the driver')"])
def test_a_task_that_always_fails_fails_its_month_alone_until_it_is_mended(
    prepared: Prepared, project: Paths, error: str
) -> None:
    digest = prepared.second.crown(project, RAISES + error)
    code, printed = score(project)
    assert code == 4
    assert f"1 of 4 months failed: {BAD}: " in printed
    assert "no such rate code" in printed
    assert str(project.prepared_file(BAD)) in printed
    assert "The others are published" in printed
    assert "run it again" in printed
    assert_published(project, {digest: prepared.second}, GOOD)
    assert_published(project, {prepared.digest: prepared.first}, [BAD])

    prepared.second.crown(project)
    assert score(project)[0] == 0
    assert parts(project) == prepared.second.parts
    assert_clean(project)


def with_canary_moved(contents: dict[str, bytes], steps: int) -> dict[str, bytes]:
    """A model that was trained on a machine whose arithmetic is so many float32 steps away."""
    spec = json.loads(contents[pyfunc.SPEC])
    first = np.float32(spec["canary"][pyfunc.OUTPUT][0])
    spec["canary"][pyfunc.OUTPUT][0] = float((first.view(np.int32) + steps).view(np.float32))
    return contents | {pyfunc.SPEC: files.format_json(spec).encode()}


@pytest.mark.usefixtures("on_cluster")
def test_workers_that_score_the_canary_rows_differently_are_refused(prepared: Prepared, project: Paths) -> None:
    before = workbench.read_tree(project.predictions)
    crown(project, with_canary_moved(prepared.second.contents, 2))
    code, printed = score(project)
    assert code == 1
    assert "canary rows differently from where it was trained, by 2 steps" in printed
    assert "where: tcp://127.0.0.1:" in printed
    assert "to do: Give it the processor and library versions" in printed
    assert workbench.read_tree(project.predictions) == before
    assert not markers(project)


@pytest.mark.usefixtures("on_cluster")
def test_workers_that_are_one_step_away_are_told_of(prepared: Prepared, project: Paths) -> None:
    digest = crown(project, with_canary_moved(prepared.second.contents, 1))
    code, printed = score(project)
    assert code == 0
    assert "one float32 step" in printed
    assert_published(project, {digest: prepared.second})
    assert_clean(project)


# ---- the disk, the scheduler, the input ----


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize(("room", "published"), [(0, workbench.MONTHS), (300_000, workbench.MONTHS), (1_000_000, ())])
def test_a_disk_that_fills_up_leaves_whole_months_and_is_gone_on_with(
    prepared: Prepared, tmp_path: Path, room: int, published: tuple[str, ...]
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        project = workbench.copy_project(prepared.paths, disk)
        for month in set(workbench.MONTHS) - set(published):
            shutil.rmtree(folder(project, month))
        digest = prepared.second.crown(project)
        leave(disk, room)
        code, printed = score(project)
        assert code in {1, 4}
        assert "The disk is full: No space left on device" in printed
        assert str(staged(project)) in printed
        assert "run it again" in printed or "run the command again" in printed
        there = [month for month in workbench.MONTHS if folder(project, month).exists()]
        assert set(there) >= set(published)
        assert 0 < len(there) < 4 or published
        assert_published(project, {digest: prepared.second, prepared.digest: prepared.first}, there)

        before = finished(project)
        assert bool(before) == bool(room)
        (disk / "ballast").unlink()
        assert score(project)[0] == 0
        after = finished(project)
        assert {name: after[name] for name in before} == before
        assert parts(project) == prepared.second.parts
        assert_clean(project)


@contextlib.contextmanager
def small_disk(disk: Path) -> Iterator[Path]:
    """Mount a small disk of its own while the block runs."""
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=256m", "none", str(disk)):
        missing("no right to mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # noqa: S607


def leave(disk: Path, room: int) -> None:
    """Fill a disk but for so many bytes."""
    free = os.statvfs(disk)
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - room)


def test_a_killed_scheduler_ends_the_run_with_one_message_and_another_one_goes_on(
    prepared: Prepared, project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = prepared.second.crown(project, SLOW)
    with workbench.scheduler_process(tmp_path) as (address, scheduler), workbench.workers(address, 2):
        monkeypatch.setenv(cluster.ADDRESS, address)
        with scoring_process(project) as run:
            workbench.wait_for(lambda: markers(project) > 5)
            scheduler.kill()
            killed = time.monotonic()
            code, printed = run.ended()
            assert time.monotonic() - killed < 30
    assert code == 1
    message = [line for line in printed.splitlines() if " rows" not in line]  # but for what was done and is left
    assert len(message) == 3, printed
    assert "The dask scheduler is gone" in printed
    assert f"where: {address}" in printed
    assert "to do: Start it" in printed
    assert "distributed" not in printed
    assert_published(project, {digest: prepared.second, prepared.digest: prepared.first})

    before = finished(project)
    assert before
    with workbench.scheduler(tmp_path) as address, workbench.workers(address, 2):
        monkeypatch.setenv(cluster.ADDRESS, address)
        assert score(project)[0] == 0
    after = finished(project)
    assert {name: after[name] for name in before} == before
    assert parts(project) == prepared.second.parts
    assert_clean(project)


def replace(path: Path) -> None:
    """Put another file of the same length in its place."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def overwrite(path: Path) -> None:
    """Write into it."""
    with path.open("r+b") as file:
        file.seek(4)
        file.write(b"x" * 1000)


def append(path: Path) -> None:
    """Write behind its end."""
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize("fault", [Path.unlink, replace, overwrite, append])
def test_a_prepared_month_that_changes_meanwhile_fails_alone(
    prepared: Prepared, project: Paths, fault: Callable[[Path], None]
) -> None:
    digest = prepared.second.crown(project, SLOW)
    with scoring_process(project) as run:
        workbench.wait_for(lambda: markers(project) > 5)
        fault(project.prepared_file(BAD))
        code, printed = run.ended()
    assert code == 4
    assert f"1 of 4 months failed: {BAD}: " in printed
    assert "This file changed while" in printed or "This file is not there" in printed
    assert f"where: {project.prepared_file(BAD)}" in printed
    assert "to do: " in printed
    assert_published(project, {digest: prepared.second}, GOOD)
    assert_published(project, {prepared.digest: prepared.first}, [BAD])

    # The month comes back as a file that was not there before: no part of the old one is kept.
    project.prepared_file(BAD).unlink(missing_ok=True)
    shutil.copyfile(prepared.paths.prepared_file(BAD), project.prepared_file(BAD))
    before = finished(project)
    assert score(project)[0] == 0
    after = finished(project)
    assert [name for name in before if after[name] == before[name] and BAD in name] == []
    assert {name: after[name] for name in before if BAD not in name} == {
        name: made for name, made in before.items() if BAD not in name
    }
    assert parts(project) == prepared.second.parts
    assert_clean(project)


# ---- who computes ----


@pytest.mark.parametrize(
    "workers", [{"n_workers": 1, "threads_per_worker": 4}, {"n_workers": 8, "threads_per_worker": 1}]
)
def test_threads_give_the_same_bytes(
    prepared: Prepared, project: Paths, monkeypatch: pytest.MonkeyPatch, workers: dict[str, int]
) -> None:
    prepared.second.crown(project)
    with LocalCluster(processes=False, dashboard_address="127.0.0.1:0", **workers) as threads:
        monkeypatch.setenv(cluster.ADDRESS, threads.scheduler_address)
        workbench.run(project, "score")
    assert parts(project) == prepared.second.parts


@pytest.mark.parametrize("workers", [1, 8])
def test_one_worker_and_eight_give_the_same_bytes(prepared: Prepared, project: Paths, workers: int) -> None:
    prepared.second.crown(project)
    workbench.change_settings(project, cluster={"n_workers": workers})
    assert score(project)[0] == 0
    assert parts(project) == prepared.second.parts
