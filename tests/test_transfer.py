"""Downloads arrive whole and of one version, whatever a server does; what has arrived is not fetched twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import servers
from tests.workbench import read_json, read_tree, wait_for
from tipline.errors import NotPublishedError, TiplineError
from tipline.ingest import transfer
from tipline.paths import Paths

RunCli = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]
Keys = dict[str, str | None]

MONTH = "2009-01"
RANGE = 100_000
OLD = b"a,b\n" + np.random.default_rng(1).bytes(10 * RANGE).replace(b"\x00", b"1")
NEW = b"a,b\n" + np.random.default_rng(2).bytes(10 * RANGE).replace(b"\x00", b"1")
FIRST = transfer.RANGE_BYTES
LARGE = b"a,b\n" + np.random.default_rng(3).bytes(2 * FIRST).replace(b"\x00", b"1")
LACKING = ("heeds_versions", "states_version", "has_ranges", "says_where_a_range_lies", "states_length")
MANNERS: list[dict[str, Any]] = [{}, {"packs": True}, *({name: False} for name in LACKING)]
MANNERS += [{"headers": {"ETag": 'W/"weak"'}}, {"moved": {"/trips.csv": f"/{MONTH}.csv"}}]


class StallingAnswer(servers.Answer):
    """Answer nothing to a request for the second range."""

    def send(self, body: bytes, request: servers.Request) -> None:
        if request.span.startswith(f"bytes={FIRST}-"):
            self.server.may_end.wait(20)
        else:
            super().send(body, request)


@pytest.fixture(autouse=True)
def _fast(_short_pauses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RANGE_BYTES", RANGE)


@pytest.fixture
def shelf() -> Iterator[servers.Shelf]:
    """A web server with one file."""
    with servers.shelf() as server:
        server.files |= {"/trips.csv": OLD, f"/{MONTH}.csv": OLD}
        yield server


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "2009-01.part"


def download(shelf: servers.Shelf, part: Path) -> bytes:
    """Download the file of the shelf; nothing but the part is left."""
    transfer.download_file(shelf.address("/trips.csv"), part, MONTH)
    assert list(part.parent.glob("*.part*")) == [part]
    return part.read_bytes()


def list_starts(shelf: servers.Shelf) -> list[int]:
    return [int(span[6:].partition("-")[0]) for span in shelf.list_ranges() if span]


def fail_after(shelf: servers.Shelf, requests: int, **manners: Any) -> None:
    shelf.act_at(requests, lambda: vars(shelf).update(manners))


def test_a_file_is_fetched_in_ranges_and_after_a_cut_only_the_rest(
    shelf: servers.Shelf, part: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fail_after(shelf, 4, cut_after=RANGE // 2, cuts=7)
    assert download(shelf, part) == OLD
    assert list_starts(shelf) == [0, RANGE, 2 * RANGE, *[3 * RANGE] * 8, *range(4 * RANGE, len(OLD), RANGE)]
    assert len(shelf.log) == 18 + 1 + 7 + 1  # it is asked about before, after each cut, and at the end
    headers = {"if-range": servers.etag(OLD), "accept-encoding": "identity"}
    assert headers.items() <= shelf.log[1].headers.items()
    assert f"{MONTH}: fetching 1.0 MB" in caplog.messages
    assert f"{MONTH}: resuming at 0.3 MB of 1.0 MB" in caplog.messages


def test_a_connection_without_progress_is_given_up_and_the_part_is_kept(shelf: servers.Shelf, part: Path) -> None:
    fail_after(shelf, 4, cut_after=RANGE // 2)
    with pytest.raises(TiplineError, match="the connection was cut before the end"):
        download(shelf, part)
    assert part.read_bytes() == OLD[: 3 * RANGE]
    assert list_starts(shelf).count(3 * RANGE) <= 2 * transfer.ATTEMPTS
    shelf.cut_after = None
    shelf.log.clear()
    assert download(shelf, part) == OLD
    assert list_starts(shelf)[0] == 3 * RANGE


@pytest.mark.parametrize("statuses", [[403] * 4, [500] * 2, [503, 502, 504, 500], [429] * 4, [408, 425]], ids=str)
def test_a_temporary_refusal_is_waited_for(
    shelf: servers.Shelf, part: Path, statuses: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    shelf.statuses = list(statuses)  # of HEAD and GET by turns
    assert download(shelf, part) == OLD
    assert len([line for line in caplog.messages if "Trying again in" in line]) == len(statuses) // 2


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (410, 1), (401, 1), (400, 1), (403, 5), (429, 5), (503, 5)])
def test_a_lasting_refusal_is_an_error(shelf: servers.Shelf, part: Path, status: int, attempts: int) -> None:
    shelf.status = status
    is_absent = status in {403, 404, 410}
    with pytest.raises(NotPublishedError if is_absent else TiplineError) as raised:
        download(shelf, part)
    assert raised.value.exit_code == (5 if is_absent else 1)
    assert ("does not have yet and to fast requests" in str(raised.value)) == (status == 403)
    assert len(shelf.log) == 2 * attempts


@pytest.mark.parametrize("manners", MANNERS, ids=str)
@pytest.mark.parametrize("newer", [OLD, NEW, NEW + b"more", NEW[: -RANGE // 20], NEW[:4]], ids=len)
@pytest.mark.parametrize("requests", [1, 5])
def test_any_kind_of_server_is_read_and_two_versions_are_never_joined(
    shelf: servers.Shelf, part: Path, manners: dict[str, Any], newer: bytes, requests: int
) -> None:
    vars(shelf).update(manners)
    # Without a length the end of the connection is the end of the file.
    shelf.cut_after, shelf.cuts = RANGE // 2, int(shelf.states_length)
    shelf.act_at(requests, lambda: shelf.files.update(dict.fromkeys(shelf.files, newer)))
    assert download(shelf, part) == shelf.files["/trips.csv"]


@pytest.mark.parametrize(
    ("change", "data", "fetched"),
    [
        (str, OLD, 0),
        (str, OLD + b"more", len(OLD)),
        (lambda _: None, b"x" * RANGE, len(OLD)),
        (lambda _: "[1, 2]", b"x" * RANGE, len(OLD)),
        (lambda text: text[:-5], b"x" * RANGE, len(OLD)),
        (lambda text: text.replace("127.0.0.1", "elsewhere"), b"x" * RANGE, len(OLD)),
        (lambda text: text.replace(str(len(OLD)), f"{len(OLD) + 1}"), b"x" * RANGE, len(OLD)),
        (lambda text: text.replace(servers.etag(OLD)[1:-1], servers.etag(NEW)[1:-1]), b"x" * RANGE, len(OLD)),
    ],
)
def test_a_part_is_resumed_only_if_its_note_fits(
    shelf: servers.Shelf, part: Path, change: Callable[[str], str | None], data: bytes, fetched: int
) -> None:
    note = change(json.dumps({"address": shelf.address("/trips.csv"), "size": len(OLD), "version": servers.etag(OLD)}))
    if note is not None:
        part.with_name(f"{part.name}.json").write_text(note)
    part.write_bytes(data)
    assert download(shelf, part) == OLD
    assert shelf.count_sent_bytes() == fetched


def start_tipline(paths: Paths, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs ignore it, and so their children
    command, pipe = [str(Path(sys.executable).with_name("tipline")), *arguments], subprocess.PIPE
    env = os.environ | environment
    return subprocess.Popen(command, cwd=paths.root, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def read_raw(paths: Paths) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (paths.root / "data" / "raw").glob("*/*")}


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_download_is_resumed(
    run_cli: RunCli, make_project: MakeProject, shelf: servers.Shelf, end: signal.Signals
) -> None:
    shelf.files[f"/{MONTH}.csv"] = LARGE
    shelf.RequestHandlerClass = StallingAnswer
    paths = make_project(source=shelf.address("/{month}.csv"))
    with start_tipline(paths, "download", MONTH) as process:
        wait_for(lambda: list_starts(shelf).count(FIRST) == 1)
        assert "Another process is fetching this month." in run_cli(paths.root, "download", MONTH)[1]
        process.send_signal(end)
        printed, _ = process.communicate(timeout=15)
    assert process.returncode == (130 if end == signal.SIGINT else -9)
    assert "Traceback" not in printed
    assert end == signal.SIGKILL or "tipline download: interrupted" in printed
    assert read_raw(paths) == {}
    shelf.RequestHandlerClass = servers.Answer
    shelf.log.clear()
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_raw(paths) == {MONTH: LARGE}
    assert 0 not in list_starts(shelf)
    left = {name for name in read_tree(paths.root / "data") if not name.endswith(".lock")}
    assert left == {f"raw/{MONTH}/{MONTH}.csv", f"raw/{MONTH}.json"}


@pytest.mark.parametrize("manners", [{"has_ranges": False}, {"states_length": False}, {"packs": True}], ids=str)
def test_a_preview_where_only_whole_files_are_sent(shelf: servers.Shelf, manners: dict[str, bool]) -> None:
    vars(shelf).update(manners)
    with pytest.raises(transfer.NoRangeError), transfer.open_preview(shelf.address("/trips.csv")) as (_, file):  # noqa: PT012
        assert file.read(4096) == OLD[:4096]
        file.seek(5000)
        file.read(8)


# ---- buckets ----


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, servers.ObjectStore]]:
    with servers.object_stores(tmp_path_factory.mktemp("stores")) as found:
        yield found


KINDS = ("s3", "gs", "abfs")


@pytest.fixture(params=KINDS)
def store(
    request: pytest.FixtureRequest, stores: dict[str, servers.ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> Iterator[servers.ObjectStore]:
    """A real server with one object."""
    store = stores[request.param]
    store.connect(monkeypatch)
    store.put("tlc", f"trips/{MONTH}.csv", OLD)
    yield store
    servers.forget_stores()


def get_source(store: servers.ObjectStore, month: str = "{month}") -> str:
    return f"{store.scheme}://tlc/trips/{month}.csv"


def test_a_month_is_fetched_from_a_bucket_and_kept(
    run_cli: RunCli, make_project: MakeProject, store: servers.ObjectStore
) -> None:
    paths, address = make_project(source=get_source(store)), get_source(store, MONTH)
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_raw(paths) == {MONTH: OLD}
    manifest, state = read_json(paths.raw_manifest(MONTH)), transfer.fetch_state(address)
    stated = {"size": len(OLD), "version": state.version, "modified": state.modified}
    assert (manifest["address"], manifest["upstream"]) == (address, stated)
    with transfer.open_preview(address) as (_, file):
        file.seek(5)
        assert file.read(9) == OLD[5:14]
    changed = paths.raw_manifest(MONTH).stat().st_mtime_ns
    assert "1 month kept" in run_cli(paths.root, "download")[1]
    assert paths.raw_manifest(MONTH).stat().st_mtime_ns == changed
    store.put("tlc", f"trips/{MONTH}.csv", NEW)
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_raw(paths) == {MONTH: NEW}
    assert run_cli(paths.root, "download", "2009-02")[0] == 5
    listed = [(address, f"{MONTH}.csv")]
    assert [transfer.list_files(get_source(store, name)) for name in ("2009*", "*-01")] == [listed] * 2
    assert transfer.list_files(address.rpartition("/")[0]) == listed


@pytest.mark.parametrize("newer", [OLD, NEW], ids=["same", "changed"])
def test_a_cut_connection_to_a_bucket_is_resumed_unless_the_object_changes(
    part: Path, store: servers.ObjectStore, monkeypatch: pytest.MonkeyPatch, newer: bytes
) -> None:
    with servers.line(store.port) as line:
        line.cut_after = 5 * RANGE
        if newer != OLD:
            line.at_cut = lambda: store.put("tlc", f"trips/{MONTH}.csv", newer)
        for name, value in store.locate(line.server_address[1]).items():
            monkeypatch.setenv(name, value)
        transfer.download_file(get_source(store, MONTH), part, MONTH)
    assert part.read_bytes() == newer
    assert line.cuts == 0
    assert (sum(line.passed) < len(OLD) + 2 * RANGE) == (newer == OLD)
    if store.scheme == "s3":
        assert f"if-match: {servers.etag(OLD)}" in b"".join(line.asked).decode("latin-1").lower()


AWS = [*servers.KEYS, "FSSPEC_S3_ANON=true"]
GOOGLE = ["GOOGLE_APPLICATION_CREDENTIALS", "FSSPEC_GS_TOKEN=anon"]
AZURE = ["AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ANON=true"]
FORGED: Keys = {}  # stands for those of the store


@pytest.mark.parametrize(
    ("store", "place", "keys", "words"),
    [
        *((kind, "tlc/none-{month}", None, ["does not have this month", "tlc/none-2009-01"]) for kind in KINDS),
        *((kind, "nowhere/{month}", None, ["The bucket does not exist.", "nowhere/2009-01"]) for kind in KINDS),
        ("s3", "A_B/{month}", None, ["S3 cannot be used"]),
        ("abfs", "A_B/{month}", None, ["Azure Blob Storage cannot be used: 400 "]),
        ("s3", "tlc/{month}", FORGED, ["403 Forbidden", *AWS]),
        ("gs", "tlc/{month}", FORGED, ["401 ", *GOOGLE]),
        ("abfs", "tlc/{month}", FORGED, ["403 ", *AZURE]),
        ("s3", "tlc/{month}", dict.fromkeys(servers.KEYS), ["Unable to locate credentials", *AWS]),
        ("s3", "tlc/{month}", {"AWS_SECRET_ACCESS_KEY": None}, ["Partial credentials", *AWS]),
        ("s3", "tlc/{month}", {"AWS_PROFILE": "nobody"}, ["The config profile (nobody) could not be found", *AWS]),
        ("abfs", "tlc/{month}", {AZURE[0]: None}, ["Must provide either a connection_string", *AZURE]),
        ("abfs", "tlc/{month}", {AZURE[0]: "nonsense"}, ["Connection string", *AZURE]),
    ],
    indirect=["store"],
)
def test_what_a_store_refuses_is_explained_and_keys_are_not_printed(
    run_cli: RunCli,
    make_project: MakeProject,
    monkeypatch: pytest.MonkeyPatch,
    store: servers.ObjectStore,
    place: str,
    keys: Keys | None,
    words: list[str],
) -> None:
    for name, value in (store.forge_keys() if keys is FORGED else keys or {}).items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    servers.forget_stores()
    paths = make_project(source=f"{store.scheme}://{place}.csv")
    ended, printed = run_cli(paths.root, "download", MONTH)
    assert (ended, [word for word in words if word not in printed]) == (5 if "none" in place else 1, [])
    assert [word for word in ("wr0ng", "wr0ng", servers.KEYS["AWS_SECRET_ACCESS_KEY"]) if word in printed] == []
    assert "Traceback" not in printed
    assert read_raw(paths) == {}


def test_a_busy_public_bucket_is_read_without_keys(make_project: MakeProject, shelf: servers.Shelf) -> None:
    shelf.files[f"/tlc/trips/{MONTH}.csv"] = OLD
    shelf.statuses = [503, 500, 429]
    paths = make_project(source="s3://tlc/trips/{month}.csv")
    environment = {"FSSPEC_S3_ANON": "true", "AWS_ENDPOINT_URL": shelf.address(""), "AWS_EC2_METADATA_DISABLED": "true"}
    with start_tipline(paths, "download", MONTH, **environment) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert printed.count("Trying again in") == 3
    assert read_raw(paths) == {MONTH: OLD}
    assert "authorization" not in shelf.log[0].headers


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in DVC
@pytest.mark.parametrize(
    ("store", "address"), [("gs", "gs://dvc/tips"), ("abfs", "azure://dvc/tips")], indirect=["store"]
)
def test_dvc_keeps_its_files_in_a_bucket(
    store: servers.ObjectStore, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo

    store.make("dvc")
    monkeypatch.chdir(tmp_path)
    repo, file = Repo.init(no_scm=True), tmp_path / "month"
    with repo.config.edit() as config:
        config["remote"]["team"], config["core"]["remote"] = {"url": address}, "team"
    file.write_text("rows")
    repo.add(str(file))
    assert repo.push() == 1
    file.unlink()
    shutil.rmtree(repo.cache.local.path)
    repo.pull()
    assert file.read_text() == "rows"
