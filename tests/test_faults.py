"""Whatever dies, fills up or changes during scoring: published months are whole, and the next run resumes."""

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests import warm, workbench
from tests.conftest import missing
from tests.test_disk_full import mount
from tests.test_score import assert_whole, get_folder, promote_another_model, read_manifest, read_parts
from tipline import cluster, files
from tipline.model import artifact, golden_rows, pyfunc
from tipline.paths import Paths, month_name
from tipline.scoring import plan

pytestmark = workbench.MLFLOW_WARNINGS

BAD, GOOD = "2024-01", workbench.MONTHS[:3]
ROWS = 110  # of a block
TIMEOUT = 240  # seconds, against hanging

# The user's code of all champions here: something that happens before the rows of a block are scored.
BEFORE = """
import time
class OddRateCodeError(Exception):
    def __init__(self, code, why):
        super().__init__(f"no such rate code: {{code}}")
def _year(trips):
    return trips["pickup_datetime"].dt.year.mode()[0]
def wait(trips):
    {fault}
    return trips
"""
CODE = "features.py"
SLOW, SLOWER = "time.sleep(0.01)", "time.sleep(0.03)"
RAISES = f"if _year(trips) == {BAD[:4]}: raise OddRateCodeError(99, 'unknown to the driver')"
# One block of a month, slowly enough for the nanny, which looks ten times a second, to end it near its limit.
EATS = f"""kept = []
    while _year(trips) == {BAD[:4]} and str(trips["pickup_datetime"].iloc[0]) == "{{first}}":
        kept.append(b'x' * 2**23)
        time.sleep(0.002)"""


@dataclass(frozen=True)
class Champion:
    """A model's files, and the parts that it makes, by path."""

    contents: dict[str, bytes]
    parts: dict[str, bytes]

    def install(self, paths: Paths, fault: str = "") -> str:
        """Make it the champion, with something that happens before each block; return its digest."""
        contents = dict(self.contents)
        if fault:
            contents[CODE] = BEFORE.format(fault=fault).encode()
            old, new = (pyfunc.name_module(CODE, files[CODE]).encode() for files in (self.contents, contents))
            contents[pyfunc.ESTIMATOR] = rename_module(contents[pyfunc.ESTIMATOR], old, new)
        for name, data in contents.items():
            (paths.champion / name).write_bytes(data)
        digest = artifact.hash_artifact(contents)
        files.write_json(paths.champion_ref, workbench.read_json(paths.champion_ref) | {"digest": digest})
        return digest


def rename_module(dump: bytes, old: bytes, new: bytes) -> bytes:
    """Return a skops file whose types are those of another code file."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(dump)) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(zipfile.ZipInfo(name), source.read(name).replace(old, new))
    return target.getvalue()


@dataclass(frozen=True)
class Template:
    """A project with many small parts, published by one champion; and another champion. Not to be changed."""

    paths: Paths
    first: Champion
    second: Champion

    @property
    def digest(self) -> str:
        return artifact.hash_artifact(self.first.contents)


@pytest.fixture(scope="module")
def template(scored_template: Paths, dask_address: str, tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Score everything with two champions, uninterrupted."""
    paths = workbench.copy_project(scored_template, tmp_path_factory.mktemp("first"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        workbench.small_row_groups(monkeypatch, ROWS)
        workbench.prepare_again(paths, *workbench.MONTHS)
        monkeypatch.setenv(cluster.ADDRESS, dask_address)
        (paths.root / CODE).write_text(BEFORE.format(fault="pass"))
        workbench.change_settings(paths, model={"features": "wait"})
        promote_another_model(paths, 1.0)
        workbench.run(paths, "score")
        other = workbench.copy_project(paths, tmp_path_factory.mktemp("second"))
        promote_another_model(other)
        workbench.run(other, "score")
    first, second = (Champion(artifact.read_artifact(one.champion), read_parts(one)) for one in (paths, other))
    return Template(paths, first, second)


@pytest.fixture
def project(template: Template, tmp_path: Path) -> Paths:
    """A copy of the template, published by the first champion."""
    return workbench.copy_project(template.paths, tmp_path)


on_cluster = pytest.mark.usefixtures("_on_cluster")


@dataclass(frozen=True)
class Run:
    process: subprocess.Popen[bytes]
    printed: Path

    def wait(self) -> tuple[int, str]:
        code, output = self.process.wait(TIMEOUT), self.printed.read_text()
        assert "Traceback" not in output
        assert "defect" not in output
        return code, output


@contextlib.contextmanager
def start_scoring(paths: Paths, *options: str, program: str = "tipline") -> Iterator[Run]:
    with tempfile.NamedTemporaryFile(suffix=".printed") as printed:
        path = Path(printed.name)
        with workbench.running(program, "score", *options, folder=paths.root, printed=path) as process:
            yield Run(process, path)


def score(paths: Paths) -> tuple[int, str]:
    """Score in a fork of a process that has imported what it needs (see tests/warm.py): nothing is killed here."""
    with start_scoring(paths, program=f"{os.environ[warm.FOLDER]}/tipline") as run:
        return run.wait()


def list_markers(folder: Path) -> list[Path]:
    return list(folder.rglob("part-*.json"))


def assert_published(paths: Paths, champions: dict[str, Champion], months: Any = workbench.MONTHS) -> None:
    """Each month is whole, and byte for byte what one of these models, by digest, predicts."""
    found = read_parts(paths)
    for month in months:
        assert_whole(paths, month)
        assert read_manifest(paths, month)["rows"] == 5000
        expected = champions[read_manifest(paths, month)["key"]["model"]].parts
        names = [name for name in {**found, **expected} if name.startswith(f"{month_name(month)}/")]
        assert {name: found.get(name) for name in names} == {name: expected.get(name) for name in names}


def assert_only_bad_failed(project: Paths, template: Template, digest: str, code: int, output: str) -> None:
    """One month keeps the parts of the first champion, the others have those of the second, whose digest is given."""
    assert code == 4
    assert f"1 of 4 months failed: {BAD}: " in output
    assert_published(project, {digest: template.second}, GOOD)
    assert_published(project, {template.digest: template.first}, [BAD])


def find_finished(paths: Paths) -> dict[str, int]:
    """Return the parts of the champion that need not be scored again, and when each was written."""
    digest, found = workbench.read_json(paths.champion_ref)["digest"], {}
    spec, trips = (
        workbench.read_json(paths.champion / pyfunc.SPEC),
        plan.Locations.resolve(workbench.load_settings(paths), paths).trips,
    )
    manifests = [path for folder in (paths.staging, paths.predictions) for path in folder.rglob(files.MANIFEST)]
    for path in [*list_markers(paths.staging), *manifests]:
        content = workbench.read_json(path)
        month = path.parent.name.removeprefix("month=").partition(".")[0]
        key = plan.compute_key(plan.read_prepared(trips, month), digest, spec)
        if content["key"] in (key, files.hash_json(key)):
            for part in content.get("parts", [content]):
                file = path.parent.with_name(path.parent.name.removesuffix(plan.MARKERS)) / part["name"]
                if file.exists():
                    found[f"{month_name(month)}/{file.name}"] = file.stat().st_mtime_ns
    return found


def assert_resumed(paths: Paths, champion: Champion) -> None:
    """The next run keeps what is finished, and leaves the champion's predictions alone."""
    before = find_finished(paths)
    code, output = score(paths)
    assert code == 0, output
    after = find_finished(paths)
    assert {name: after[name] for name in before} == before
    assert read_parts(paths) == champion.parts
    assert not [path for path in (paths.staging / "predictions").iterdir() if path.is_dir()]
    assert {path.name for path in paths.predictions.iterdir()} == {month_name(month) for month in workbench.MONTHS}


# ---- the driver dies ----


def kill_at(paths: Paths, moment: float) -> bool:
    """Kill the driver alone, so many seconds after its start; False if it had ended."""
    with start_scoring(paths) as run:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return run.process.wait(moment) != 0
        driver = psutil.Process(run.process.pid)
        driver.suspend()  # so that it starts no worker that is not looked for below
        workers = driver.children(recursive=True)
        driver.kill()
        killed = run.wait()[0] != 0
        workbench.wait_for(lambda: not any(map(is_alive, workers)))
    return killed


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def test_a_driver_killed_at_any_moment_leaves_whole_months_and_is_resumed(
    template: Template, project: Paths, dask_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.change_settings(project, cluster={"n_workers": 1})
    seed = int(os.environ.get("TIPLINE_SEED", time.time_ns() % 1_000_000))
    print(f"TIPLINE_SEED={seed}")  # noqa: T201 (pytest shows it when the test fails)
    chance = random.Random(seed)  # noqa: S311
    turns = itertools.cycle((template.second, template.first))
    champions = {template.digest: template.first}

    def take_turns() -> Champion:
        turn = next(turns)
        champions[turn.install(project, SLOWER)] = turn
        return turn

    # By turns a worker of the driver's own, which ends with it, and workers that stay.
    durations = {}
    for address in ("", dask_address):
        take_turns()
        monkeypatch.setenv(cluster.ADDRESS, address)
        started = time.monotonic()
        assert score(project)[0] == 0
        durations[address] = time.monotonic() - started
    now = take_turns()
    # One moment in each third of a run, in any order. A run that resumes the work of others may end before its moment:
    # then comes one that has everything to do.
    moments = [(address, end * (n + chance.random()) / 3) for n in range(3) for address, end in durations.items()]
    chance.shuffle(moments)
    kept = 0
    for address, moment in moments:
        monkeypatch.setenv(cluster.ADDRESS, address)
        before = find_finished(project)
        while not kill_at(project, moment):
            now, before, moment = take_turns(), {}, moment * 0.95  # noqa: PLW2901
        assert_published(project, champions)
        after = find_finished(project)
        assert {name: after.get(name) for name in before} == before
        kept += len(list_markers(project.staging))
    assert kept
    assert_resumed(project, now)


@pytest.mark.parametrize("models", ["equal", "different"])
def test_two_clones_that_score_to_one_place_both_end_well_also_without_a_forkserver(
    template: Template, project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: str
) -> None:
    (folder := tmp_path / ("long-" * 20)).mkdir()  # too long for the name of the forkserver's socket
    monkeypatch.setenv("TMPDIR", str(folder))
    (tmp_path / "clone").mkdir()
    clone, place = workbench.copy_project(template.paths, tmp_path / "clone"), tmp_path / "place"
    template.second.install(project, SLOW)
    last = template.second if models == "equal" else template.first
    digest = last.install(clone, SLOW)
    workbench.change_settings(clone, cluster={"n_workers": 4})
    with start_scoring(project, "--to", str(place)) as first:
        workbench.wait_for(lambda: len(list_markers(place)) > 5)
        with start_scoring(clone, "--to", str(place)) as second:
            (code, output), (other_code, other_output) = first.wait(), second.wait()
    assert (code, other_code) == (0, 0), output + other_output
    assert "waiting for it to end" in other_output
    assert ("nothing to do" in other_output) == (models == "equal")
    assert {name: data for name, data in workbench.read_tree(place).items() if name.endswith("t")} == last.parts
    keys = [workbench.read_json(path)["key"]["model"] for path in place.glob(f"month=*/{files.MANIFEST}")]
    assert keys == [digest] * 4


# ---- a worker dies, a model fails ----


def test_killed_workers_change_nothing(template: Template, project: Paths) -> None:
    template.second.install(project, SLOW)
    with start_scoring(project) as run:
        workbench.wait_for(lambda: len(list_markers(project.staging)) > 5)
        children = psutil.Process(run.process.pid).children()
        (server,) = [child for child in children if "forkserver" in " ".join(child.cmdline())]
        first, second = server.children()
        first.kill()
        workbench.wait_for(lambda: len(list_markers(project.staging)) > 30)
        second.kill()
        assert run.wait()[0] == 0
    assert_resumed(project, template.second)


def test_rows_that_no_worker_has_memory_for_fail_their_month_alone(
    template: Template, project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the middle of its month: what runs beside it, and may be given up with it, is of the same month.
    first = workbench.read_prepared(project, BAD)["pickup_datetime"][20 * ROWS].as_py()
    digest = template.second.install(project, EATS.format(first=first))
    # A block is given up after two deaths instead of four, each of which takes seconds.
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")
    with workbench.scheduler(tmp_path) as address, workbench.workers(address, 2, "--memory-limit", "600MB"):
        monkeypatch.setenv(cluster.ADDRESS, address)
        code, output = score(project)
    assert_only_bad_failed(project, template, digest, code, output)
    assert "out of memory" in output
    assert "--memory-limit" in output


@on_cluster
def test_a_task_that_always_fails_fails_its_month_alone(template: Template, project: Paths) -> None:
    digest = template.second.install(project, RAISES)
    code, output = score(project)
    assert_only_bad_failed(project, template, digest, code, output)
    assert "no such rate code" in output
    assert str(project.prepared_file(BAD)) in output


@on_cluster
@pytest.mark.parametrize("steps", [1, 2])
def test_workers_that_score_the_golden_rows_differently_are_refused(
    template: Template, project: Paths, steps: int
) -> None:
    before, contents = workbench.read_tree(project.predictions), template.second.contents
    spec = json.loads(contents[pyfunc.SPEC])
    scores = spec[golden_rows.KEY]["scores"]
    scores[0] = float((np.float32(scores[0]).view(np.int32) + steps).view(np.float32))
    digest = Champion(contents | {pyfunc.SPEC: files.format_json(spec).encode()}, {}).install(project)
    code, output = score(project)
    assert code == steps - 1
    if steps == 1:  # other hardware or libraries; still the same to seven digits
        assert "one float32 step" in output
        assert_published(project, {digest: template.second})
    else:
        assert "golden rows" in output
        assert "where: tcp://127.0.0.1:" in output
        assert workbench.read_tree(project.predictions) == before
        assert not list_markers(project.staging)


# ---- the disk, the scheduler, the input ----


@on_cluster
def test_a_full_disk_leaves_whole_months_and_is_resumed(template: Template, tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    if not mount("-t", "tmpfs", "-o", "size=256m", "none", str(disk)):
        missing("no right to mount a small disk")
    try:
        project = workbench.copy_project(template.paths, disk)
        for month in workbench.MONTHS:
            shutil.rmtree(get_folder(project, month))
        digest = template.second.install(project)
        free = os.statvfs(disk)
        with (disk / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - 1_000_000)
        code, output = score(project)
        assert code in {1, 4}
        assert "No space left on device" in output
        assert str(project.staging) in output
        there = [month for month in workbench.MONTHS if get_folder(project, month).exists()]
        assert len(there) < 4
        assert_published(project, {digest: template.second}, there)
        assert find_finished(project)
        (disk / "ballast").unlink()
        assert_resumed(project, template.second)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # noqa: S607


def test_a_killed_scheduler_ends_the_run_with_one_message_and_the_next_one_resumes(
    template: Template, project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, threads = template.second.install(project, SLOW), ("--nthreads", "4")  # they write the same bytes
    with workbench.scheduler_process(tmp_path) as (address, scheduler), workbench.workers(address, 2, *threads):
        monkeypatch.setenv(cluster.ADDRESS, address)
        with start_scoring(project) as run:
            workbench.wait_for(lambda: len(list_markers(project.staging)) > 5)
            scheduler.kill()
            code, output = run.wait()
    assert code == 1
    message = [line for line in output.splitlines() if " rows" not in line]
    assert len(message) == 3, output
    assert "The dask scheduler is gone" in output
    assert f"where: {address}" in output
    assert_published(project, {digest: template.second, template.digest: template.first})
    monkeypatch.delenv(cluster.ADDRESS)
    assert find_finished(project)
    assert_resumed(project, template.second)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4)
        file.write(b"x" * 1000)


@on_cluster
@pytest.mark.parametrize("fault", [Path.unlink, overwrite])
def test_a_prepared_month_that_changes_during_scoring_fails_alone(
    template: Template, project: Paths, fault: Callable[[Path], None]
) -> None:
    digest = template.second.install(project, SLOW)
    with start_scoring(project) as run:
        workbench.wait_for(lambda: len(list_markers(project.staging)) > 5)
        fault(project.prepared_file(BAD))
        code, output = run.wait()
    assert_only_bad_failed(project, template, digest, code, output)
    assert "This file changed while" in output or "This file is missing" in output
    assert f"where: {project.prepared_file(BAD)}" in output
    # The month comes back as a new file; what was made of the same columns is kept.
    project.prepared_file(BAD).unlink(missing_ok=True)
    shutil.copyfile(template.paths.prepared_file(BAD), project.prepared_file(BAD))
    assert_resumed(project, template.second)
