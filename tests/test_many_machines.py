"""Months in a bucket are scored by machines that share nothing with the driver but that bucket."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import s3fs
from distributed import Client

from tests import servers, workbench
from tests.conftest import ROOT, missing
from tests.test_score import another_champion
from tipline import cluster, files, storage
from tipline.errors import TiplineError
from tipline.model import artifact
from tipline.scoring import plan, worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]

pytestmark = workbench.MLFLOW_WARNINGS
SMALL_GROUP = 500
NUMBERS = itertools.count()
SETTINGS = servers.KEYS | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
APART = 'mount -t tmpfs none "$0" && mkdir "$0/scratch" && cd "$0/scratch" && exec "$@"'


# ---- machines ----


def apart(folder: Path) -> list[str]:
    """How to start a process that finds nothing in a folder: it has a file system of its own there."""
    command = [
        "unshare",
        *([] if os.geteuid() == 0 else ["--map-root-user"]),
        "--mount",
        "sh",
        "-c",
        APART,
        str(folder),
    ]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        missing("no mount namespaces (unshare --mount)")
    return command


@contextlib.contextmanager
def worker(address: str, folder: Path, told: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dask worker` where `folder` is not to be seen."""
    dask, quiet = str(Path(sys.executable).with_name("dask")), subprocess.DEVNULL
    command = [*apart(folder), dask, "worker", address, *workbench.LOCAL, "--nthreads", "1"]
    process = subprocess.Popen(command, env=os.environ | told, start_new_session=True, stdout=quiet, stderr=quiet)
    try:
        yield process
    finally:
        end(process, signal.SIGTERM)


def end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End a worker with the processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass
class Team:
    """A scheduler, workers apart, and an S3 server."""

    address: str
    folder: Path  # what workers do not see
    gateway: servers.Gateway

    @property
    def told(self) -> dict[str, str]:
        """What each machine's environment says of the store."""
        return SETTINGS | {"AWS_ENDPOINT_URL": f"http://{self.gateway.place}"}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Two workers that see nothing of the tests' folder."""
    base, folder = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("team")
    with servers.gateway(folder) as gateway, workbench.scheduler(folder) as address, contextlib.ExitStack() as stack:
        made = Team(address, base, gateway)
        for _ in range(2):
            stack.enter_context(worker(address, base, made.told))
        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        yield made


@pytest.fixture
def store(team: Team, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[s3fs.S3FileSystem]:
    """The store as a person sees it; the driver's environment names it, and the team's scheduler."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name, value in team.told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(cluster.ADDRESS, team.address)
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3fs.S3FileSystem(use_listings_cache=False)
    s3fs.S3FileSystem.clear_instance_cache()


def scored_here(paths: Paths, address: str) -> Paths:
    """Score on the session's workers, which share the disk."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(cluster.ADDRESS, address)
        workbench.run(paths, "score")
    return paths


@pytest.fixture(scope="module")
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project, scored on this machine with the model that it trained."""
    paths = workbench.copy_project(workbench.trained(request), tmp_path_factory.mktemp("here"))
    shutil.copytree(paths.challenger, paths.champion)
    digest = artifact.read_digest(paths.challenger)
    files.write_json(paths.champion_ref, {"name": "tips", "version": 1, "run": "0" * 32, "digest": digest})
    return scored_here(paths, workbench.dask_cluster(request))


@pytest.fixture(scope="module")
def done_in_small_blocks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, done: Paths
) -> Paths:
    """The same months in 10 blocks each: time to do something in the middle."""
    paths = workbench.copy_project(done, tmp_path_factory.mktemp("small"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        workbench.small_row_groups(monkeypatch, SMALL_GROUP)
        workbench.prepare_again(paths, *workbench.MONTHS)
    return scored_here(paths, workbench.dask_cluster(request))


@pytest.fixture
def project(done: Paths, tmp_path: Path) -> Paths:
    """A project of the test's own, whose months are prepared and not scored here."""
    return unscored(done, tmp_path)


@pytest.fixture
def small_blocks(done_in_small_blocks: Paths, tmp_path: Path) -> Paths:
    """A project of the test's own with many blocks, not scored here."""
    return unscored(done_in_small_blocks, tmp_path)


def unscored(paths: Paths, folder: Path) -> Paths:
    """A copy without predictions."""
    made = workbench.copy_project(paths, folder)
    shutil.rmtree(made.predictions)
    return made


@dataclass
class Bucket:
    """A project's months in a bucket of their own."""

    name: str
    store: s3fs.S3FileSystem
    gateway: servers.Gateway

    @property
    def options(self) -> tuple[str, ...]:
        """What `tipline score` is told."""
        return ("--trips", f"s3://{self.name}/trips", "--to", f"s3://{self.name}/predictions")

    def upload(self, paths: Paths) -> None:
        """Put the prepared months there."""
        for name, data in workbench.read_tree(paths.root / "data" / "trips").items():
            self.gateway.put(self.name, f"trips/{name}", data)

    def tree(self, folder: str = "predictions") -> dict[str, bytes]:
        """All objects below a folder."""
        start = f"{self.name}/{folder}/"
        return {name.removeprefix(start): self.store.cat_file(name) for name in sorted(self.store.find(start))}

    def names(self, folder: str) -> list[str]:
        """The names of all objects below a folder."""
        start = f"{self.name}/{folder}/"
        return sorted(name.removeprefix(start) for name in self.store.find(start))

    def manifest(self, month: str) -> Any:
        """A published month's manifest."""
        return json.loads(self.store.cat_file(f"{self.name}/predictions/month={month}/{files.MANIFEST}"))

    def changed(self) -> dict[str, Any]:
        """When each prediction was last written."""
        found = self.store.find(f"{self.name}/predictions/", detail=True)
        return {name: info["LastModified"] for name, info in found.items()}


@pytest.fixture
def bucket(request: pytest.FixtureRequest, team: Team, store: s3fs.S3FileSystem) -> Bucket:
    """The months of the test's project in a bucket of the test's own."""
    name = "project" if "project" in request.fixturenames else "small_blocks"
    made = Bucket(f"tips-{next(NUMBERS)}", store, team.gateway)
    made.upload(request.getfixturevalue(name))
    return made


def parts(paths: Paths) -> dict[str, bytes]:
    """The predictions of a project, without the manifests: these say how long it took."""
    return {name: data for name, data in workbench.read_tree(paths.predictions).items() if name.endswith(".parquet")}


def assert_whole(bucket: Bucket, paths: Paths) -> None:
    """The bucket has the predictions of a local run, manifests that name them, and nothing else."""
    expected, found = parts(paths), bucket.tree()
    assert {name: data for name, data in found.items() if name.endswith(".parquet")} == expected
    for month in workbench.load_settings(paths).months:
        told = bucket.manifest(month)
        folder = f"month={month}"
        assert told["rows"] == sum(part["rows"] for part in told["parts"]) == 5000
        for part in told["parts"]:
            data = found.pop(f"{folder}/{part['name']}")
            assert (part["bytes"], part["sha256"]) == (len(data), files.hash_bytes(data))
        del found[f"{folder}/{files.MANIFEST}"]
    assert not found


# ---- it works ----


def test_the_workers_see_nothing_of_the_drivers_files(team: Team) -> None:
    with Client(team.address) as client:
        seen = client.run(os.listdir, str(team.folder))
    assert list(seen.values()) == [["scratch"], ["scratch"]]
    assert len(list(team.folder.iterdir())) > 1


def test_predictions_in_a_bucket_are_those_of_this_machine(
    team: Team, bucket: Bucket, project: Paths, done: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed = run_cli(project.root, "score", *bucket.options)
    assert code == 0, printed
    assert_whole(bucket, done)
    assert not project.predictions.exists()
    for month in workbench.MONTHS:
        here = workbench.read_json(done.predictions / f"month={month}" / files.MANIFEST)
        assert bucket.manifest(month)["key"] == here["key"]

    frame = pd.read_parquet(f"s3://{bucket.name}/predictions")
    assert frame["month"].value_counts().to_dict() == dict.fromkeys(workbench.MONTHS, 5000)
    found = pyarrow.dataset.dataset(f"{bucket.name}/predictions", filesystem=bucket.store, partitioning="hive")
    assert found.count_rows() == 5000 * len(workbench.MONTHS)

    digest = workbench.read_json(project.champion_ref)["digest"]
    with Client(team.address) as client:
        carried = client.run(lambda dask_worker: dask_worker.plugins[worker.plugin_name(digest)].contents)
    assert list(carried.values()) == [artifact.read_artifact(project.champion)] * 2

    before = bucket.changed()
    monkeypatch.setenv(cluster.ADDRESS, "tcp://127.0.0.1:1")  # it would fail where it needed a cluster
    code, printed = run_cli(project.root, "score", *bucket.options)
    assert code == 0, printed
    assert bucket.changed() == before


def test_workers_refuse_a_model_that_is_not_the_one_named(team: Team, project: Paths) -> None:
    contents, digest = artifact.read_artifact(project.champion), workbench.read_json(project.champion_ref)["digest"]
    changed = contents | {artifact.CODE: contents[artifact.CODE] + b"#"}
    with Client(team.address) as client, pytest.raises(TiplineError, match="digest differs"):
        worker.send_model(client, changed, digest)


def test_another_champion_replaces_the_months_in_a_bucket(
    request: pytest.FixtureRequest, bucket: Bucket, project: Paths, done: Paths, run_cli: Run
) -> None:
    assert run_cli(project.root, "score", *bucket.options)[0] == 0
    digest = another_champion(project)
    code, printed = run_cli(project.root, "score", *bucket.options)
    assert code == 0, printed
    assert {bucket.manifest(month)["key"]["model"] for month in workbench.MONTHS} == {digest}
    found = bucket.tree()
    assert not [name for name, data in parts(done).items() if found[name] == data]
    assert_whole(bucket, scored_here(project, workbench.dask_cluster(request)))


@pytest.mark.parametrize("local", ["trips", "predictions"])
def test_a_bucket_and_a_folder_can_be_mixed_on_one_machine(
    project: Paths, bucket: Bucket, done: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch, local: str
) -> None:
    monkeypatch.delenv(cluster.ADDRESS)
    options = bucket.options[2:] if local == "trips" else (*bucket.options[:2], "--to", str(project.root / "a" / "b"))
    code, printed = run_cli(project.root, "score", *options)
    assert code == 0, printed
    if local == "trips":
        assert_whole(bucket, done)
    else:
        assert {n: d for n, d in workbench.read_tree(project.root / "a").items() if n.endswith("t")} == {
            f"b/{name}": data for name, data in parts(done).items()
        }
        assert [path.name for path in (project.root / "a").iterdir() if list(path.iterdir())] == ["b"]


# ---- faults ----


def staged(bucket: Bucket) -> list[str]:
    """The parts that are finished and not published."""
    return [name for name in bucket.names("predictions/_staging") if f"{plan.MARKERS}/" in name]


def test_a_driver_that_is_killed_loses_no_finished_part(
    bucket: Bucket, small_blocks: Paths, done_in_small_blocks: Paths, run_cli: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with workbench.running("tipline", "score", *bucket.options, folder=small_blocks.root) as driver:
        workbench.wait_for(lambda: len(staged(bucket)) > 5)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    with caplog.at_level("INFO", "tipline"):
        code, printed = run_cli(small_blocks.root, "score", *bucket.options)
    assert code == 0, printed
    (kept,) = re.findall(r"([\d,]+) rows of a run that did not end are kept", caplog.text)
    assert int(kept.replace(",", "")) > 5 * SMALL_GROUP / 2  # a part and its marker
    assert_whole(bucket, done_in_small_blocks)


def test_a_machine_that_is_lost_in_the_middle_does_no_harm(
    team: Team, bucket: Bucket, small_blocks: Paths, done_in_small_blocks: Paths
) -> None:
    command = ("tipline", "score", *bucket.options)
    with worker(team.address, team.folder, team.told) as lost, Client(team.address) as client:
        client.wait_for_workers(3, timeout=60)
        others = [pid for pid in client.run(os.getpid).values() if os.getpgid(pid) != lost.pid]
        with workbench.running(*command, folder=small_blocks.root) as driver:
            workbench.wait_for(lambda: len(staged(bucket)) > 5)
            end(lost, signal.SIGKILL)
            os.kill(others[0], signal.SIGKILL)  # its nanny starts another
            assert driver.wait(120) == 0
        client.wait_for_workers(2, timeout=60)
    assert_whole(bucket, done_in_small_blocks)


def test_a_month_that_is_replaced_while_it_is_scored_fails_by_name(
    bucket: Bucket, small_blocks: Paths, done_in_small_blocks: Paths, run_cli: Run
) -> None:
    name = f"{bucket.name}/trips/month=2024-01/trips.parquet"
    data = bucket.store.cat_file(name)

    def replace() -> None:
        workbench.wait_for(lambda: len(staged(bucket)) > 5)
        bucket.gateway.put(bucket.name, "trips/month=2024-01/trips.parquet", data[:-1] + b"2")

    with ThreadPoolExecutor(1) as threads:
        replacing = threads.submit(replace)
        code, printed = run_cli(small_blocks.root, "score", *bucket.options)
        replacing.result()
    assert code == 4
    assert "1 of 4 months failed: 2024-01: This file changed while it was being used." in printed
    assert name in printed
    published = {found.split("/")[0] for found in bucket.names("predictions")} - {"_staging"}
    assert published == {f"month={month}" for month in workbench.MONTHS[:3]}
    bucket.gateway.put(bucket.name, "trips/month=2024-01/trips.parquet", data)
    code, printed = run_cli(small_blocks.root, "score", *bucket.options)
    assert code == 0, printed
    assert_whole(bucket, done_in_small_blocks)


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("copies", [7, 8])  # of the last month: the parts, the manifest
def test_a_crash_while_a_month_is_published_is_mended_without_scoring(
    bucket: Bucket, project: Paths, done: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    left = [copies]
    copy = storage.RemoteStorage._copy

    def crash(self: storage.RemoteStorage, staged: storage.Storage, source: str, folder: str, names: list[str]) -> None:
        left[0] -= 1
        if not left[0]:
            raise Crash
        copy(self, staged, source, folder, names)

    with monkeypatch.context() as patched:
        patched.setattr(storage.RemoteStorage, "_copy", crash)
        with pytest.raises(Crash):
            run_cli(project.root, "score", *bucket.options)
    monkeypatch.setenv(cluster.ADDRESS, "tcp://127.0.0.1:1")  # it would fail where it needed a cluster
    code, printed = run_cli(project.root, "score", *bucket.options)
    assert code == 0, printed
    assert not bucket.names("predictions/_staging")
    assert_whole(bucket, done)


# ---- what a person is told ----


def told(run_cli: Run, project: Paths, *options: str) -> tuple[int, str]:
    """Exit code and message of a run that fails, which it does at once and in words."""
    started = time.monotonic()
    code, printed = run_cli(project.root, "score", *options)
    assert time.monotonic() - started < 30
    assert "Traceback" not in printed
    assert "defect" not in printed
    assert "to do:" in printed
    return code, printed


def on_workers(team: Team, name: str, value: str) -> None:
    """Change the environment of the workers."""

    def change() -> None:
        os.environ[name] = value
        s3fs.S3FileSystem.clear_instance_cache()

    with Client(team.address) as client:
        client.run(change)


@pytest.mark.parametrize("where", ["driver", "workers"])
def test_wrong_keys_are_told(
    team: Team, bucket: Bucket, project: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    name = "AWS_SECRET_ACCESS_KEY"
    if where == "driver":
        monkeypatch.setenv(name, "wrong")
        s3fs.S3FileSystem.clear_instance_cache()
    else:
        on_workers(team, name, "wrong")
    try:
        code, printed = told(run_cli, project, *bucket.options)
    finally:
        on_workers(team, name, team.told[name])
    assert code == 1
    assert "refuses these keys" in printed
    assert f"s3://{bucket.name}/" in printed
    assert "AWS_ACCESS_KEY_ID" in printed
    assert ("from the worker at tcp://" in printed) == (where == "workers")


def test_a_bucket_that_does_not_exist_is_told(bucket: Bucket, project: Paths, run_cli: Run) -> None:
    for options in (
        ("--trips", "s3://nowhere/trips", *bucket.options[2:]),
        (*bucket.options[:2], "--to", "s3://nowhere"),
    ):
        code, printed = told(run_cli, project, *options)
        assert code == 1
        assert "The bucket does not exist." in printed
        assert "where: s3://nowhere" in printed


@pytest.mark.parametrize("where", ["driver", "workers"])
def test_a_store_that_is_down_is_told(
    team: Team, bucket: Bucket, project: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    name, down = "AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers.free_port()}"
    if where == "driver":
        monkeypatch.setenv(name, down)
        s3fs.S3FileSystem.clear_instance_cache()
    else:
        on_workers(team, name, down)
    try:
        code, printed = told(run_cli, project, *bucket.options)
    finally:
        on_workers(team, name, team.told[name])
    assert code == 1
    assert f'Could not connect to the endpoint URL: "{down}/' in printed
    assert name in printed.split("to do:")[1]


def test_months_that_are_not_in_the_bucket_are_told(bucket: Bucket, project: Paths, run_cli: Run) -> None:
    code, printed = told(run_cli, project, "--trips", f"s3://{bucket.name}/elsewhere", *bucket.options[2:])
    assert code == 4
    assert f"not prepared: it has no manifest. where: s3://{bucket.name}/elsewhere/month=2009-01" in printed


@pytest.mark.parametrize("local", ["trips", "predictions", "both"])
def test_folders_that_the_workers_do_not_see_are_told(bucket: Bucket, project: Paths, run_cli: Run, local: str) -> None:
    options = {"trips": bucket.options[2:], "predictions": bucket.options[:2], "both": ()}[local]
    code, printed = told(run_cli, project, *options)
    assert code == 1
    assert "cannot be seen from here" in printed
    assert f"where: {project.root}" in printed
    assert "from the worker at tcp://" in printed
    assert "s3://" in printed.split("to do:")[1]


@pytest.mark.parametrize("address", ["gs://bucket/trips", "s3://", "s3:///"])
def test_an_address_that_is_no_place_is_told(project: Paths, run_cli: Run, address: str) -> None:
    code, printed = told(run_cli, project, "--trips", address)
    assert code == 2
    assert f"where: {address}" in printed


@pytest.mark.parametrize("both", ["s3://bucket/trips", "data/trips"])
def test_predictions_never_replace_the_months(project: Paths, run_cli: Run, both: str) -> None:
    before = workbench.read_tree(project.root / "data" / "trips")
    code, printed = told(run_cli, project, "--trips", both, "--to", f"{both}/")
    assert code == 2
    assert "would replace the prepared months" in printed
    assert workbench.read_tree(project.root / "data" / "trips") == before


# ---- what docs/cluster.md says ----


def block(heading: str, language: str, number: int = 0) -> str:
    """A code block of the page, by its section."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)
    return found[number]


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in a folder, with this environment's programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", "-ec", script]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


def test_the_pages_check_names_every_worker(bucket: Bucket, project: Paths) -> None:
    script = block("A pair of machines by hand", "sh", 3).partition("\n")[2].replace("BUCKET", bucket.name)
    made = shell(script, project.root)
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r"(tcp://127\.0\.0\.1:\d+ \S+ \S+\n){2}", made.stdout)
    made = shell(script.replace(f"s3://{bucket.name}", "s3://nowhere"), project.root)
    assert made.returncode == 1
    assert "The bucket does not exist." in made.stderr


def test_machines_with_the_pages_certificates_score_and_others_are_refused(
    project: Paths, done: Paths, run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shell(block("TLS between them", "sh"), tmp_path)
    assert made.returncode == 0, made.stderr
    config = tmp_path / "tls.yaml"
    config.write_text(block("TLS between them", "yaml").replace("/etc/dask", str(tmp_path)))
    file = tmp_path / "scheduler.json"
    with monkeypatch.context() as told, contextlib.ExitStack() as stack:
        told.setenv("DASK_CONFIG", str(config))
        command = ("dask", "scheduler", "--protocol", "tls", *workbench.LOCAL, "--port", "0", "--scheduler-file")
        stack.enter_context(workbench.running(*command, str(file)))
        workbench.wait_for(lambda: file.exists() and file.stat().st_size)
        address = workbench.read_json(file)["address"]
        assert address.startswith("tls://")
        stack.enter_context(workbench.running("dask", "worker", address, *workbench.LOCAL, "--nthreads", "1"))
        told.setenv(cluster.ADDRESS, address)
        scored = shell("tipline score", project.root)
        assert scored.returncode == 0, scored.stderr
        assert parts(project) == parts(done)
        shutil.rmtree(project.predictions)
        told.setattr(cluster, "WAIT_SECONDS", 1)
        for refused in (address, address.replace("tls://", "tcp://")):  # without the certificate
            told.setenv(cluster.ADDRESS, refused)
            code, printed = run_cli(project.root, "score")
            assert code == 1
            assert "The dask scheduler does not answer" in printed
            assert f"where: {refused}" in printed


# ---- what is asked of the store ----


@pytest.fixture
def line(team: Team, store: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Line]:
    """A line to the store that counts."""
    del store
    with servers.line(team.gateway.port) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server


@pytest.mark.usefixtures("store")
def test_a_footer_of_any_length_is_fetched_and_a_broken_one_is_told(
    team: Team, line: servers.Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, data = pa.table({"a": range(100), "b": range(100)}), io.BytesIO()
    pq.write_table(table, data, row_group_size=10)
    place, name = storage.open_storage("s3://months/trips"), "month=2009-02/trips.parquet"
    monkeypatch.setattr(storage, "FOOTER_BYTES", 100)
    team.gateway.put("months", f"trips/{name}", data.getvalue())
    state = place.get_state(name)
    line.asked.clear()
    assert place.count_group_rows(name, state) == [10] * 10
    assert line.requests() == ["GET", "GET"]
    assert place.read_row_group(name, 3, ["b"], state).equals(table.slice(30, 10).select(["b"]))
    for broken in (data.getvalue()[:-1] + b"2", data.getvalue()[:-8] + b"\xff\xff\xff\x7fPAR1", b"1", b""):
        team.gateway.put("months", f"trips/{name}", broken)
        with pytest.raises(TiplineError, match="changed"):
            place.read_row_group(name, 3, ["b"], state)
        with pytest.raises(TiplineError, match="cannot be read"):
            place.count_group_rows(name, place.get_state(name))


@pytest.mark.usefixtures("store")
def test_only_the_needed_bytes_of_a_block_are_fetched(team: Team, line: servers.Line) -> None:
    rows = 100_000
    numbers = np.random.default_rng(0)
    table = pa.table({name: numbers.random(rows) for name in "abcdefgh"})
    data = io.BytesIO()
    pq.write_table(table, data, row_group_size=rows // 4)
    team.gateway.put("months", "trips/month=2009-01/trips.parquet", data.getvalue())
    place, name = storage.open_storage("s3://months/trips"), "month=2009-01/trips.parquet"
    state = place.get_state(name)
    assert place.count_group_rows(name, state) == [rows // 4] * 4
    assert line.requests() == ["HEAD", "GET"]
    line.asked.clear()
    before = sum(line.passed)
    assert place.read_row_group(name, 2, ["b", "c", "g"], state).equals(
        table.slice(rows // 2, rows // 4).select(["b", "c", "g"])
    )
    footer = pq.read_metadata(data).row_group(2)
    needed = sum(footer.column(column).total_compressed_size for column in (1, 2, 6))
    assert needed < sum(line.passed) - before < needed + 5000
    assert sorted(line.requests()) == ["GET", "GET", "HEAD"]
    line.asked.clear()
    place.write("month=2009-01/part", b"12")
    assert place.read("month=2009-01/part") == b"12"
    assert place.read("month=2009-01/none") is None
    assert line.requests() == ["PUT", "GET", "GET"]
