"""Months in a bucket are scored by machines that share nothing with the driver but that bucket."""

import contextlib
import datetime as dt
import functools
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from tests import servers, stories, workbench
from tests.conftest import ROOT, missing
from tests.test_score import NOWHERE, promote_another_model, read_parts
from tipline import cluster, files, storage
from tipline.errors import TiplineError
from tipline.paths import Paths

RunCli = Callable[..., tuple[int, str]]

pytestmark = workbench.MLFLOW_WARNINGS
NUMBERS = itertools.count()
TIPLINE_SCORE = [str(Path(sys.executable).with_name("tipline")), "score"]
KINDS = ("s3", "gs", "abfs")
# Start a process that finds nothing in a folder: it has a file system of its own there.
ISOLATE = 'mount -t tmpfs none "$0" && mkdir "$0/scratch" && cd "$0/scratch" && exec "$@"'


@contextlib.contextmanager
def start_worker(address: str, folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dask worker` where `folder` is hidden; end it with the processes that it started."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *user, "--mount", "sh", "-c", ISOLATE, str(folder)]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        missing("no mount namespaces (unshare --mount)")
    dask, quiet = str(Path(sys.executable).with_name("dask")), subprocess.DEVNULL
    command += [dask, "worker", address, *workbench.LOCAL, "--nthreads", "1"]
    process = subprocess.Popen(
        command, env=os.environ | environment, start_new_session=True, stdout=quiet, stderr=quiet
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass
class Team:
    """A scheduler, workers that see nothing of `folder`, and servers of buckets."""

    address: str
    folder: Path
    stores: dict[str, servers.ObjectStore]

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for store in self.stores.values() for name, value in store.environment.items()}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    base, folder = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("team")
    with (
        servers.object_stores(folder) as stores,
        workbench.scheduler(folder) as address,
        contextlib.ExitStack() as stack,
    ):
        team = Team(address, base, stores)
        for _ in range(2):
            stack.enter_context(start_worker(address, base, team.environment))
        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)
            seen = client.run(os.listdir, str(base))
        assert list(seen.values()) == [["scratch"], ["scratch"]]
        yield team


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, team: Team, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.ObjectStore]:
    store = team.stores[request.param]
    store.connect(monkeypatch)
    monkeypatch.setenv(cluster.ADDRESS, team.address)
    yield store
    store.clear()
    servers.forget_stores()


@pytest.fixture(scope="module")
def expected(scored_template: Paths, dask_address: str, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project scored on this machine in blocks of 500 rows, so that there is time to do something in the middle."""
    paths = workbench.copy_project(scored_template, tmp_path_factory.mktemp("here"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        workbench.prepare_small_blocks(paths, monkeypatch, dask_address)
        workbench.run(paths, "score")
    return paths


@pytest.fixture
def project(expected: Paths, tmp_path: Path) -> Paths:
    return workbench.copy_unscored(expected, tmp_path)


@dataclass
class Bucket:
    """The prepared months of a project in a bucket."""

    name: str
    server: servers.ObjectStore

    @property
    def root(self) -> str:
        return f"{self.server.scheme}://{self.name}"

    @property
    def options(self) -> tuple[str, ...]:
        return ("--trips", f"{self.root}/trips", "--to", f"{self.root}/predictions")

    def read_tree(self, folder: str = "predictions") -> dict[str, bytes]:
        start, store = f"{self.name}/{folder}/", self.server.open()
        return {name.removeprefix(start): store.cat_file(name) for name in sorted(store.find(start))}

    def list_states(self) -> dict[str, str | None]:
        predictions = storage.open_storage(f"{self.root}/predictions")
        return {name: predictions.get_state(name) for name in self.read_tree()}

    def list_staged(self) -> list[str]:
        return list(self.server.open().find(f"{self.name}/predictions/_staging"))


@pytest.fixture
def bucket(store: servers.ObjectStore, project: Paths) -> Bucket:
    bucket = Bucket(f"tips-{next(NUMBERS)}", store)
    opened = store.make(bucket.name)
    for name, data in workbench.read_tree(project.root / "data" / "trips").items():
        opened.pipe_file(f"{bucket.name}/trips/{name}", data)
    return bucket


def assert_whole(bucket: Bucket, paths: Paths) -> None:
    """The bucket has the predictions of a local run, manifests that list them, and nothing else."""
    found = bucket.read_tree()
    assert {name: data for name, data in found.items() if name.endswith(".parquet")} == read_parts(paths)
    storage_ = storage.open_storage(f"{bucket.root}/predictions")
    for month in workbench.MONTHS:
        manifest = storage_.read_json(f"month={month}/{files.MANIFEST}")
        here = workbench.read_json(paths.predictions / f"month={month}" / files.MANIFEST)
        assert all(manifest[name] == here[name] for name in ("key", "rows", "parts"))
        del found[f"month={month}/{files.MANIFEST}"]
    assert all(name.endswith(".parquet") for name in found)


def score(run_cli: RunCli, paths: Paths, bucket: Bucket) -> str:
    code, output = run_cli(paths.root, "score", *bucket.options)
    assert code == 0, output
    return output


# ---- it works ----


def test_dvc_repro_keeps_months_in_a_bucket_and_their_manifests_here(
    team: Team, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, server = stories.copy_first(tmp_path_factory, tmp_path / "here"), team.stores["s3"]
    server.connect(monkeypatch)
    store = server.make("whole")
    places = {"prepared": "s3://whole/trips", "predictions": "s3://whole/predictions"}
    story = stories.copy_first(tmp_path_factory, tmp_path / "there")
    story.environment = team.environment | {cluster.ADDRESS: team.address}
    story.settings(**stories.SMALL, storage=places)

    def repro(name: str, *stages: str) -> None:
        story.repro(name)
        assert story.repros[name].code == 0, story.repros[name].output
        assert not stages or story.repros[name].stages == list(stages)
        found = {path.name for part in ("trips", "predictions") for path in (story.root / "data" / part).rglob("*.*")}
        assert found == {files.MANIFEST}
        done = story.run("tipline", "verify")
        assert done.returncode == 0, done.stdout + done.stderr

    # The samples are drawn again, from the bucket. They are equal, so the model stays.
    samples = [f"sample@{month}" for month in stories.MONTHS]
    repro("moved", "prepare", *samples, "register", "score", "monitor")
    for folder in ("trips", "predictions"):
        names = {
            path.relative_to(here.root / "data" / folder) for path in (here.root / "data" / folder).rglob("*.parquet")
        }
        assert names
        for name in names:
            assert store.cat_file(f"whole/{folder}/{name}") == (here.root / "data" / folder / name).read_bytes()
    repro("second", "register")
    story.settings(
        **stories.SMALL | {"months": [*stories.MONTHS, "2024-01"], "train": {"params": {"C": 0.01}}}, storage=places
    )
    with workbench.running("dvc", "repro", folder=story.root, environment=story.environment) as killed:
        workbench.wait_for(lambda: store.exists(f"whole/trips/month=2024-01/{files.MANIFEST}"), 120)
        os.killpg(killed.pid, signal.SIGKILL)
    repro("month added")
    assert story.run("tipline", "promote", "2", "--force", "test").returncode == 0
    repro("promoted", "register", "evaluate", "score", "monitor", "record")
    explained = story.run("tipline", "explain", "2024-01", "7")
    assert (explained.returncode, "s3://whole/predictions/month=2024-01/part-" in explained.stdout) == (0, True)


def test_predictions_in_a_bucket_are_those_of_this_machine_until_another_champion_replaces_them(
    bucket: Bucket, project: Paths, expected: Paths, run_cli: RunCli, dask_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workbench.running("tipline", "score", *bucket.options, folder=project.root) as killed:
        workbench.wait_for(lambda: any(".made/" in name for name in bucket.list_staged()), 120)
        os.killpg(killed.pid, signal.SIGKILL)
    scored = re.findall(r"scored ([\d,]+) rows", score(run_cli, project, bucket))
    assert len(scored) == 1
    assert int(scored[0].replace(",", "")) < 5000 * len(workbench.MONTHS)  # the rest is kept
    assert_whole(bucket, expected)
    assert not project.predictions.exists()
    frame = pd.read_parquet(f"{bucket.name}/predictions", filesystem=bucket.server.open())
    assert frame["month"].value_counts().to_dict() == dict.fromkeys(workbench.MONTHS, 5000)
    before = bucket.list_states()
    with monkeypatch.context() as patched:
        patched.setenv(cluster.ADDRESS, NOWHERE)
        score(run_cli, project, bucket)
    assert bucket.list_states() == before
    promote_another_model(project)
    other = f"{bucket.name}/predictions/_staging/month=2009-01.0123456789ab/part-00000.parquet"
    bucket.server.open().pipe_file(other, b"of another run, which may go on")
    score(run_cli, project, bucket)
    assert bucket.list_staged() == [other]
    monkeypatch.setattr(storage, "ABANDONED_AFTER", dt.timedelta(seconds=-60))
    score(run_cli, project, bucket)
    found = bucket.read_tree()
    assert not [name for name, data in read_parts(expected).items() if found[name] == data]
    monkeypatch.setenv(cluster.ADDRESS, dask_address)
    workbench.run(project, "score")
    assert_whole(bucket, project)


# ---- faults ----


class Crash(BaseException):
    """The end of the process."""


def crash() -> None:
    raise Crash


def act_at(patched: pytest.MonkeyPatch, moment: str, number: int, action: Callable[[], Any]) -> None:
    """Do something before or after the call of a number to a method of the storage of predictions."""
    when, _, method = moment.partition(" ")
    function, calls = getattr(storage.Storage, method), itertools.count(1)

    def call(self: storage.Storage, *arguments: Any) -> None:
        is_now = self.root.endswith("/predictions") and next(calls) == number
        if is_now and when == "before":
            action()
        function(self, *arguments)
        if is_now and when == "after":
            action()

    patched.setattr(storage.Storage, method, call)


@pytest.mark.parametrize(
    ("store", "moment"),
    [("s3", "before _copy_files"), ("gs", "after _copy_files"), ("abfs", "after write")],
    indirect=["store"],
)
def test_a_crash_while_the_last_month_is_published_is_repaired_without_scoring(
    bucket: Bucket, project: Paths, expected: Paths, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with monkeypatch.context() as patched:
        act_at(patched, moment, len(workbench.MONTHS), crash)
        with pytest.raises(Crash):
            run_cli(project.root, "score", *bucket.options)
    monkeypatch.setenv(cluster.ADDRESS, NOWHERE)
    score(run_cli, project, bucket)
    assert not bucket.list_staged()
    assert_whole(bucket, expected)
    trips, predictions = bucket.options[1], bucket.options[3]
    code, output = run_cli(project.root, "verify", "--trips", trips, "--predictions", predictions)
    assert code == 0, output


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_two_clones_with_one_model_that_score_to_one_bucket_both_end_well(
    bucket: Bucket, project: Paths, expected: Paths, tmp_path: Path
) -> None:
    (tmp_path / "clone").mkdir()
    clone, command = workbench.copy_project(project, tmp_path / "clone"), ("tipline", "score", *bucket.options)
    printed = [tmp_path / "first.txt", tmp_path / "second.txt"]
    with (
        workbench.running(*command, folder=project.root, printed=printed[0]) as first,
        workbench.running(*command, folder=clone.root, printed=printed[1]) as second,
    ):
        codes = first.wait(120), second.wait(120)
    assert codes == (0, 0), [path.read_text() for path in printed]
    assert not bucket.list_staged()
    assert_whole(bucket, expected)


@pytest.mark.parametrize(("store", "method"), [("gs", "remove_files"), ("abfs", "_copy_files")], indirect=["store"])
def test_a_run_that_overtakes_another_one_while_it_replaces_a_month_leaves_the_month_whole(
    bucket: Bucket, run_cli: RunCli, tmp_path: Path, dask_address: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    project = Paths(tmp_path / "project")
    score(run_cli, project, bucket)
    promote_another_model(project)
    (tmp_path / "clone").mkdir()
    clone = workbench.copy_project(project, tmp_path / "clone")
    other = functools.partial(subprocess.run, [*TIPLINE_SCORE, *bucket.options], cwd=clone.root, check=True)
    act_at(monkeypatch, f"before {method}", 1, other)
    score(run_cli, project, bucket)
    assert not bucket.list_staged()
    monkeypatch.setenv(cluster.ADDRESS, dask_address)
    workbench.run(project, "score")
    assert_whole(bucket, project)


# ---- messages ----


def fail(run_cli: RunCli, project: Paths, *options: str) -> tuple[int, str]:
    """Return exit code and message of a run that fails."""
    code, output = run_cli(project.root, "score", *options)
    assert "Traceback" not in output
    assert "defect" not in output
    assert "to do:" in output
    return code, output


def set_on_workers(team: Team, values: dict[str, str]) -> None:
    def change() -> None:
        os.environ.update(values)
        for kind in fsspec.registry.values():
            kind.clear_instance_cache()

    with Client(team.address) as client:
        client.run(change)


@pytest.mark.parametrize(("where", "fault"), [("driver", "keys"), ("workers", "address")])
def test_a_store_that_cannot_be_used_is_explained(
    team: Team, bucket: Bucket, project: Paths, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, where: str, fault: str
) -> None:
    values = bucket.server.forge_keys() if fault == "keys" else bucket.server.locate(servers.free_port())
    if where == "driver":
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        servers.forget_stores()
    else:
        set_on_workers(team, values)
    try:
        code, output = fail(run_cli, project, *bucket.options)
    finally:
        set_on_workers(team, bucket.server.environment)
    assert code == 1
    assert ("refuses these credentials: " if fault == "keys" else "cannot be used: ") in output
    assert f"{bucket.root}/" in output
    assert next(iter(values)) in output.split("to do:")[1]
    assert ("from the worker at tcp://" in output) == (where == "workers")


@pytest.mark.parametrize(
    ("store", "trips", "to", "code", "message"),
    [
        *((kind, "", f"{kind}://nowhere", 1, f"does not exist.\n  where: {kind}://nowhere") for kind in KINDS),
        ("abfs", "ROOT/elsewhere", "", 4, "no manifest. where: ROOT/elsewhere/month=2009-01"),
        (
            "s3",
            "data/trips",
            "",
            1,
            "cannot be seen from here.\n  where: PROJECT/data/trips, from the worker at tcp://",
        ),
        ("s3", "", "data/to", 1, "cannot be seen from here.\n  where: PROJECT/data/to/_staging, from the worker at"),
    ],
    indirect=["store"],
)
def test_places_that_cannot_be_used_are_explained(
    bucket: Bucket, project: Paths, run_cli: RunCli, trips: str, to: str, code: int, message: str
) -> None:
    given = bucket.options[1], bucket.options[3]
    trips, to = (new.replace("ROOT", bucket.root) or old for new, old in zip((trips, to), given, strict=True))
    found, output = fail(run_cli, project, "--trips", trips, "--to", to)
    assert found == code
    assert message.replace("ROOT", bucket.root).replace("PROJECT", str(project.root)) in output


# ---- docs/cluster.md ----


def read_block(heading: str, language: str) -> str:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    return text.partition("\n## ")[0].partition(f"```{language}\n")[2].partition("```")[0]


def test_machines_with_the_certificates_of_the_page_score_and_others_are_refused(
    project: Paths, expected: Paths, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["sh", "-ec", read_block("TLS", "sh")], cwd=tmp_path, check=True, capture_output=True)  # noqa: S607
    config = tmp_path / "tls.yaml"
    config.write_text(read_block("TLS", "yaml").replace("/etc/dask", str(tmp_path)))
    file = tmp_path / "scheduler.json"
    with monkeypatch.context() as patched, contextlib.ExitStack() as stack:
        patched.setenv("DASK_CONFIG", str(config))
        command = ("dask", "scheduler", "--protocol", "tls", *workbench.LOCAL, "--port", "0", "--scheduler-file")
        stack.enter_context(workbench.running(*command, str(file)))
        workbench.wait_for(lambda: file.exists() and file.stat().st_size)
        address = workbench.read_json(file)["address"]
        assert address.startswith("tls://")
        stack.enter_context(workbench.running("dask", "worker", address, *workbench.LOCAL, "--nthreads", "1"))
        patched.setenv(cluster.ADDRESS, address)
        done = subprocess.run(TIPLINE_SCORE, cwd=project.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert read_parts(project) == read_parts(expected)
        shutil.rmtree(project.predictions)
        patched.setattr(cluster, "WAIT_SECONDS", 1)
        for refused in (address, address.replace("tls://", "tcp://")):  # this process has no certificate
            patched.setenv(cluster.ADDRESS, refused)
            code, output = fail(run_cli, project)
            assert code == 1
            assert f"where: {refused}" in output


# ---- requests ----


NAME = "month=2009-02/trips.parquet"


def test_only_the_needed_bytes_of_a_block_are_fetched_and_damage_is_explained(
    store: servers.ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, numbers, data = 12_000, np.random.default_rng(0), io.BytesIO()
    table = pa.table({name: numbers.random(rows) for name in "abcdefgh"})
    pq.write_table(table, data, row_group_size=rows // 4)
    store.put("months", f"trips/{NAME}", data.getvalue())
    months = storage.open_storage(f"{store.scheme}://months/trips")
    state = months.get_state(NAME)
    with servers.line(store.port) as line:
        for name, value in store.locate(line.server_address[1]).items():
            monkeypatch.setenv(name, value)
        servers.forget_stores()
        assert months.count_group_rows(NAME, state) == [rows // 4] * 4
        line.asked.clear()
        before = sum(line.passed)
        part = table.slice(rows // 2, rows // 4).select(["b", "c", "g"])
        assert months.read_row_group(NAME, 2, ["b", "c", "g"], state).equals(part)
        footer = pq.read_metadata(data).row_group(2)
        needed = sum(footer.column(column).total_compressed_size for column in (1, 2, 6))
        assert needed < sum(line.passed) - before < needed + 8000
        ranges = re.findall(rb"(?i)^(?:x-ms-)?range: bytes=", b"".join(line.asked), re.MULTILINE)
        assert len(ranges) == 2  # `b` and `c` lie side by side
        assert store.scheme != "s3" or sorted(line.requests()) == ["GET", "GET", "HEAD", "HEAD"]
    store.connect(monkeypatch)
    for broken in (data.getvalue()[:-1] + b"2", data.getvalue()[:-8] + b"\xff\xff\xff\x7fPAR1", b"1", b""):
        store.put("months", f"trips/{NAME}", broken)
        with pytest.raises(TiplineError, match="changed"):
            months.read_row_group(NAME, 3, ["b"], state)
        with pytest.raises(TiplineError, match="cannot be read"):
            months.count_group_rows(NAME, months.get_state(NAME))
