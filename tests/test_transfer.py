"""Downloads arrive complete and in one version; what has arrived is not requested twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import s3fs

from tests import factory, servers
from tipline.errors import NotPublishedError, TiplineError
from tipline.ingest import transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

MONTH = "2009-01"
MONTHS = [f"2009-{month:02}" for month in range(1, 7)]
OLD = b"a,b\n" + np.random.default_rng(1).bytes(1_000_000).replace(b"\x00", b"1")
NEW = b"a,b\n" + np.random.default_rng(2).bytes(1_000_000).replace(b"\x00", b"1")
CHUNK = 100_000
HALF = len(OLD) // 2
SOURCE = "s3://tlc/trips/{month}.csv"


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(transfer, "CHUNK", CHUNK)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def shelf() -> Iterator[servers.Shelf]:
    """A web server that has one file."""
    with servers.shelf() as server:
        server.files["/trips.csv"] = OLD
        server.files[f"/{MONTH}.csv"] = OLD
        yield server


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "2009-01.part"


def download(shelf: servers.Shelf, part: Path) -> bytes:
    transfer.download_file(shelf.address("/trips.csv"), part, MONTH)
    assert list(part.parent.glob("*.part*")) == [part]
    return part.read_bytes()


def interrupt(shelf: servers.Shelf, part: Path) -> None:
    """Leave a part of the file."""
    shelf.before = [lambda: None] * 5 + [lambda: setattr(shelf, "status", 503)]
    with pytest.raises(TiplineError, match="503"):
        download(shelf, part)
    shelf.status = 200
    shelf.log.clear()
    assert 0 < part.stat().st_size < len(OLD)
    assert OLD.startswith(part.read_bytes())


def list_files(paths: Paths) -> dict[str, bytes]:
    found = factory.contents(paths.root / "data")
    return {name: data for name, data in found.items() if not name.endswith(".lock")}


def read_months(paths: Paths) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (paths.root / "data" / "raw").glob("*/*")}


def start_tipline(paths: Paths, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    program = Path(sys.executable).parent / "tipline"
    environment = os.environ | options.pop("env", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    return subprocess.Popen([program, *arguments], cwd=paths.root, env=environment, text=True, **streams)


def wait_for(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


# ---- connections that break ----


def test_a_broken_connection_is_resumed(shelf: servers.Shelf, part: Path) -> None:
    shelf.cut_after, shelf.cuts = CHUNK // 2, 3
    assert download(shelf, part) == OLD
    starts = [int(span[6:].split("-")[0]) for span in shelf.list_ranges()]
    assert starts == sorted(starts)
    assert len(starts) - len(set(starts)) == 3  # only the ranges that were cut are requested again


def test_a_connection_that_makes_no_progress_is_given_up(shelf: servers.Shelf, part: Path) -> None:
    interrupt(shelf, part)
    size = part.stat().st_size
    shelf.cut_after = 10
    with pytest.raises(TiplineError, match="could not be fetched"):
        download(shelf, part)
    assert part.stat().st_size == size
    assert len(shelf.list_ranges()) == transfer.TRIES


def test_a_silent_server_is_asked_again(
    shelf: servers.Shelf, part: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.2)
    shelf.before = [lambda: None] * 3 + [lambda: setattr(shelf, "silent_after", 0)]
    threading.Timer(1, lambda: setattr(shelf, "silent_after", None)).start()
    with caplog.at_level(logging.INFO, "tipline"):
        assert download(shelf, part) == OLD
    assert any("Trying again" in message for message in caplog.messages)


@pytest.mark.parametrize("cuts", [0, 1])
def test_a_server_without_ranges_sends_the_whole_file(shelf: servers.Shelf, part: Path, cuts: int) -> None:
    shelf.has_ranges, shelf.cut_after, shelf.cuts = False, HALF, cuts
    assert download(shelf, part) == OLD


@pytest.mark.parametrize("name", ["states_length", "states_version"])
def test_a_server_that_states_little_is_trusted(shelf: servers.Shelf, part: Path, name: str) -> None:
    setattr(shelf, name, False)
    assert download(shelf, part) == OLD


def test_a_redirect_is_followed(shelf: servers.Shelf, part: Path) -> None:
    shelf.moved["/trips.csv"] = "/there.csv"
    shelf.files["/there.csv"] = OLD
    assert download(shelf, part) == OLD


@pytest.mark.parametrize("statuses", [[403, 403], [500], [503, 502, 504], [429], [408, 425]])
def test_a_temporary_refusal_is_waited_for(shelf: servers.Shelf, part: Path, statuses: list[int]) -> None:
    shelf.statuses = list(statuses)
    assert download(shelf, part) == OLD


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (410, 1), (401, 1), (400, 1), (403, 5), (429, 5), (503, 5)])
def test_a_lasting_refusal_is_an_error(shelf: servers.Shelf, part: Path, status: int, tries: int) -> None:
    shelf.status = status
    is_absent = status in {403, 404, 410}
    with pytest.raises(NotPublishedError if is_absent else TiplineError) as raised:
        download(shelf, part)
    assert raised.value.exit_code == (5 if is_absent else 1)
    # fsspec asks with GET if a server refuses HEAD
    assert len(shelf.log) in {tries, 2 * tries}


def test_the_pauses_grow(
    shelf: servers.Shelf, part: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(transfer, "LONGEST_PAUSE_SECONDS", 0.1)
    shelf.status = 500
    with caplog.at_level(logging.INFO, "tipline"), pytest.raises(TiplineError, match="500 Internal Server Error"):
        download(shelf, part)
    pauses = [float(line.split()[-2]) for line in caplog.messages if "Trying again" in line]
    assert len(pauses) == transfer.TRIES - 1
    assert max(pauses) <= 0.1


def test_a_server_that_cannot_be_trusted_is_not_asked_again(
    shelf: servers.Shelf, part: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = shelf.address("/trips.csv").replace("http:", "https:")  # it does not speak TLS
    with caplog.at_level(logging.INFO, "tipline"), pytest.raises(TiplineError, match="could not be fetched"):
        transfer.download_file(address, part, MONTH)
    assert caplog.messages == []


# ---- versions and checksums ----


@pytest.mark.parametrize("manners", [{}, {"has_ranges": False}, {"headers": {"ETag": 'W/"weak"'}}], ids=str)
@pytest.mark.parametrize("newer", [NEW, NEW + b"more", NEW[:-5000]], ids=["same size", "larger", "smaller"])
@pytest.mark.parametrize("when", [1, 2, 4])
def test_two_versions_are_never_mixed(
    shelf: servers.Shelf, part: Path, manners: dict[str, Any], newer: bytes, when: int
) -> None:
    for name, value in manners.items():
        setattr(shelf, name, dict(value) if isinstance(value, dict) else value)
    shelf.before = [lambda: None] * when + [lambda: shelf.files.update({"/trips.csv": newer})]
    if "headers" in manners:
        shelf.before[-1] = lambda: (shelf.files.update({"/trips.csv": newer}), shelf.headers.update(ETag='W/"other"'))
    assert download(shelf, part) == newer


def test_a_file_that_changes_at_each_request_is_given_up(shelf: servers.Shelf, part: Path) -> None:
    shelf.before = [lambda data=data: shelf.files.update({"/trips.csv": data}) for data in [OLD, NEW] * 50]  # type: ignore[misc]
    with pytest.raises(TiplineError, match=r"412|changed at its source"):
        download(shelf, part)


@pytest.mark.parametrize("name", ["Content-MD5", "Digest"])
@pytest.mark.parametrize("is_right", [True, False])
def test_stated_checksums_are_compared(shelf: servers.Shelf, part: Path, name: str, is_right: bool) -> None:  # noqa: FBT001
    data = OLD if is_right else NEW
    shelf.headers = {name: {"Content-MD5": servers.md5(data), "Digest": f"SHA-256={servers.sha256(data)}"}[name]}
    if is_right:
        assert download(shelf, part) == OLD
        return
    with pytest.raises(TiplineError, match="checksum"):
        download(shelf, part)
    assert list(part.parent.glob("*.part*")) == []


@pytest.mark.parametrize("value", ["nonsense", "", "=,=,,md5", "crc32c=AAAAAA==", "md5=eA=="])
def test_unknown_checksums_are_ignored(shelf: servers.Shelf, part: Path, value: str) -> None:
    shelf.headers = {"Digest": value, "Content-MD5": value}
    assert download(shelf, part) == OLD


# ---- resuming an earlier run ----


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_is_resumed(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, end: signal.Signals
) -> None:
    large = OLD * 20
    shelf.files[f"/{MONTH}.csv"] = large
    paths = make_project(source=shelf.address("/{month}.csv"))
    part = paths.staging / "parts" / f"{MONTH}.part"
    shelf.before = [lambda: None] * 3 + [lambda: setattr(shelf, "silent_after", 0)]
    with start_tipline(paths, "download", MONTH) as process:
        wait_for(lambda: part.exists() and part.stat().st_size > 0)
        wait_for(lambda: len(shelf.log) == 4)
        process.send_signal(end)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if end == signal.SIGINT else -9)
    assert "Traceback" not in printed
    assert not paths.raw(MONTH).exists()
    size = part.stat().st_size
    shelf.silent_after = None
    shelf.log.clear()
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_months(paths) == {MONTH: large}
    assert shelf.list_ranges()[0].startswith(f"bytes={size}-")
    assert set(list_files(paths)) == {f"raw/{MONTH}/{MONTH}.csv", f"raw/{MONTH}.json"}


def test_a_complete_part_is_not_requested_again(shelf: servers.Shelf, part: Path) -> None:
    interrupt(shelf, part)
    part.write_bytes(OLD)
    assert download(shelf, part) == OLD
    assert shelf.list_ranges() == []


@pytest.mark.parametrize(
    "change",
    ["", "[1, 2]", "\x00", {"address": "http://elsewhere/"}, {"size": 1}, {"version": None}, {"version": "x"}],
    ids=str,
)
def test_a_part_with_another_note_is_not_resumed(
    shelf: servers.Shelf, part: Path, change: str | dict[str, Any]
) -> None:
    interrupt(shelf, part)
    note = transfer.get_note(part)
    note.write_text(json.dumps(json.loads(note.read_text()) | change) if isinstance(change, dict) else change)
    part.write_bytes(b"x" * HALF)
    assert download(shelf, part) == OLD


def test_two_processes_do_not_fetch_the_same_month(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf
) -> None:
    shelf.silent_after = 0
    paths = make_project(source=shelf.address("/{month}.csv"))
    with start_tipline(paths, "download", MONTH) as process:
        wait_for(lambda: bool(shelf.log))
        code, printed = run_cli(paths.root, "download", MONTH)
        process.kill()
    assert code == 1
    assert "Another process is fetching this month." in printed


# ---- several months ----


def test_several_months_are_fetched_at_the_same_time(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf
) -> None:
    shelf.files |= {f"/{month}.csv": OLD + month.encode() for month in MONTHS}
    meeting = threading.Barrier(4)
    shelf.before = [lambda: meeting.wait(30)] * 4
    paths = make_project(source=shelf.address("/{month}.csv"))
    assert run_cli(paths.root, "download", *MONTHS, MONTHS[0])[0] == 0
    assert read_months(paths) == {month: OLD + month.encode() for month in MONTHS}


@pytest.mark.parametrize(("trouble", "code"), [({}, 5), ({"2009-02": b"<html>"}, 4), ({"2009-02": b""}, 4)])
def test_a_failed_month_does_not_stop_the_others(
    run_cli: Run,
    make_project: MakeProject,
    shelf: servers.Shelf,
    caplog: pytest.LogCaptureFixture,
    trouble: dict[str, bytes],
    code: int,
) -> None:
    good = {month: OLD for month in MONTHS if month not in {"2009-02", "2009-05"}}
    shelf.files |= {f"/{month}.csv": data for month, data in (good | trouble).items()}
    paths = make_project(source=shelf.address("/{month}.csv"))
    ended, printed = run_cli(paths.root, "download", *MONTHS)
    assert ended == code
    assert read_months(paths) == good
    assert "2 of 6 months failed." in printed
    assert sorted(message[:7] for message in caplog.messages if "to do:" in message) == ["2009-02", "2009-05"]
    shelf.files |= {f"/{month}.csv": OLD for month in MONTHS}
    assert run_cli(paths.root, "download", *MONTHS)[0] == 0
    assert set(read_months(paths)) == set(MONTHS)


@pytest.mark.parametrize("months", [MONTHS, MONTHS[:1]], ids=["several", "one"])
@pytest.mark.parametrize("trouble", ["no answer", "pause"])
def test_ctrl_c_ends_downloads_that_wait(
    make_project: MakeProject, shelf: servers.Shelf, trouble: str, months: list[str]
) -> None:
    shelf.files |= {f"/{month}.csv": OLD for month in MONTHS}
    if trouble == "pause":
        shelf.status = 503
    else:
        shelf.silent_after = 0
    paths = make_project(source=shelf.address("/{month}.csv"))
    with start_tipline(paths, "download", *months) as process:
        wait_for(lambda: len(shelf.log) >= min(len(months), 4))
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=15)
    assert process.returncode == 130, printed
    assert printed.splitlines()[-1].startswith("tipline download: interrupted")
    assert "Traceback" not in printed
    assert read_months(paths) == {}


# ---- what is kept ----


def test_an_unchanged_month_is_kept(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    paths = make_project(source=shelf.address("/{month}.csv"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    before = list_files(paths)
    shelf.log.clear()
    with caplog.at_level(logging.INFO, "tipline"):
        assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert shelf.count_sent_bytes() <= 1
    assert f"{MONTH}: unchanged at the source, kept" in caplog.messages
    assert list_files(paths) == before


@pytest.mark.parametrize(
    "change",
    [
        *("published again", "other bytes", "no file", "no folder", "no manifest", "no json"),
        *('{"address": "elsewhere"}', '{"upstream": null}', '{"name": "../../params.yaml"}', '{"sha256": 1}'),
    ],
)
def test_a_month_that_may_differ_is_fetched_again(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, change: str
) -> None:
    paths = make_project(source=shelf.address("/{month}.csv"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    file, manifest = paths.raw(MONTH) / f"{MONTH}.csv", paths.raw_manifest(MONTH)
    actions: dict[str, Callable[[], object]] = {
        "published again": lambda: shelf.files.update({f"/{MONTH}.csv": NEW}),
        "other bytes": lambda: file.write_bytes(NEW),
        "no file": file.unlink,
        "no folder": lambda: shutil.rmtree(paths.raw(MONTH)),
        "no manifest": manifest.unlink,
        "no json": lambda: manifest.write_bytes(b"{\xff"),
    }
    actions.get(
        change, lambda: manifest.write_text(json.dumps(json.loads(manifest.read_text()) | json.loads(change)))
    )()
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    data = shelf.files[f"/{MONTH}.csv"]
    assert read_months(paths) == {MONTH: data}
    found = json.loads(manifest.read_text())
    assert found["sha256"] == hashlib.sha256(data).hexdigest()
    assert found["upstream"] == {"size": len(data), "version": servers.etag(data)}


def test_a_manifest_is_not_replaced_before_its_month(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf
) -> None:
    paths = make_project(source=shelf.address("/{month}.csv"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    before = list_files(paths)
    shelf.files[f"/{MONTH}.csv"] = NEW
    paths.raw(MONTH).parent.chmod(0o500)
    try:
        if os.geteuid():
            assert run_cli(paths.root, "download", MONTH)[0] == 1
            assert list_files(paths) == before
    finally:
        paths.raw(MONTH).parent.chmod(0o700)
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_months(paths) == {MONTH: NEW}


def run_with_small_files(paths: Paths, *arguments: str) -> tuple[int, str]:
    """Run tipline where no file may be larger than 1 MB."""
    code = (
        "import resource, sys; from tipline.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=paths.root, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["http", "path", "demo"])
def test_a_full_disk_leaves_the_earlier_download(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, tmp_path: Path, kind: str
) -> None:
    source = {"http": shelf.address("/{month}.csv"), "path": "../{month}.csv", "demo": "demo"}[kind]
    shelf.files[f"/{MONTH}.csv"] = OLD[:1000]
    (tmp_path / f"{MONTH}.csv").write_bytes(OLD[:1000])
    paths = make_project(source=source, demo={"rows": 500})
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    before = list_files(paths)
    shelf.files |= {f"/{MONTH}.csv": OLD * 3, "/2009-02.csv": OLD[:1000]}
    (tmp_path / f"{MONTH}.csv").write_bytes(OLD * 3)
    make_project(source=source, demo={"rows": 60_000})
    code, printed = run_with_small_files(paths, "download", MONTH)
    assert code == 1
    assert "File too large" in printed
    assert "Traceback" not in printed
    assert list_files(paths) == before
    if kind == "http":
        assert run_with_small_files(paths, "download", MONTH, "2009-02")[0] == 4
        assert set(read_months(paths)) == {MONTH, "2009-02"}


def test_secrets_are_sent_and_written_nowhere(
    shelf: servers.Shelf, part: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/trips.csv?X-Amz-Expires=60&X-Amz-Signature=0ff1ce&sig=0ff1ce&v=1"
    shelf.files[path] = OLD
    shelf.before = [lambda: None] * 5 + [lambda: setattr(shelf, "status", 503)]
    with caplog.at_level(logging.INFO, "tipline"), pytest.raises(TiplineError, match="503") as raised:
        transfer.download_file(shelf.address(path, "me:0ff1ce@"), part, MONTH)
    assert all("authorization" in request.headers for request in shelf.log)
    note = transfer.get_note(part).read_text()
    assert "://***@127.0.0.1" in note
    assert "X-Amz-Expires=60&X-Amz-Signature=***&sig=***&v=1" in note
    assert "0ff1ce" not in "".join(caplog.messages) + str(raised.value) + note


def test_a_proxy_of_the_environment_is_used(shelf: servers.Shelf, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", shelf.address(""))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    shelf.files["http://tlc.invalid/trips.csv"] = OLD
    transfer.download_file("http://tlc.invalid/trips.csv", part, MONTH)
    assert part.read_bytes() == OLD


def test_a_terminal_shows_a_bar_and_a_file_lines(make_project: MakeProject, shelf: servers.Shelf) -> None:
    paths = make_project(source=shelf.address("/{month}.csv"))
    with start_tipline(paths, "download", MONTH) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "\r" not in printed
    assert f"{MONTH}: fetching 1.0 MB\n" in printed
    shelf.files[f"/{MONTH}.csv"] = NEW
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 100))
    with start_tipline(paths, "download", MONTH, stdout=its, stderr=its) as process:
        os.close(its)
        screen = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while data := os.read(ours, 65536):
                screen += data
    os.close(ours)
    assert process.returncode == 0
    assert f"\r{MONTH}:".encode() in screen


# ---- peeks ----


@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 4096), (500, 100), (-8, 8), (-4096, 4096), (-4096, 100)])
def test_a_peek_reads_no_more_than_it_needs(shelf: servers.Shelf, start: int, length: int) -> None:
    stated, data = transfer.peek_bytes(shelf.address("/trips.csv"), start, length)
    assert data == OLD[start:][:length]
    assert (stated.size, stated.version) == (len(OLD), servers.etag(OLD))
    assert shelf.count_sent_bytes() <= length


def test_a_peek_at_a_local_file(tmp_path: Path) -> None:
    address = str(tmp_path / "trips.csv")
    Path(address).write_bytes(OLD)
    assert transfer.peek_bytes(address, 10, 10)[1] == OLD[10:20]
    assert transfer.peek_bytes(address, -10, 10)[1] == OLD[-10:]
    assert transfer.peek_bytes(address, -len(OLD) * 2, 10)[1] == OLD[:10]
    with pytest.raises(NotPublishedError):
        transfer.peek_bytes(f"{address}.gz", 0, 1)
    with pytest.raises(TiplineError, match="a folder"):
        transfer.peek_bytes(str(tmp_path), 0, 1)


@pytest.mark.parametrize("data", [b"", b"a,b\n"])
@pytest.mark.parametrize("start", [0, -1000])
def test_a_peek_at_a_small_file(shelf: servers.Shelf, data: bytes, start: int) -> None:
    shelf.files["/trips.csv"] = data
    assert transfer.peek_bytes(shelf.address("/trips.csv"), start, 1000)[1] == data


def test_a_peek_at_the_end_needs_ranges(shelf: servers.Shelf) -> None:
    shelf.has_ranges = False
    with pytest.raises(transfer.NoRangeError):
        transfer.peek_bytes(shelf.address("/trips.csv"), -8, 8)
    assert transfer.peek_bytes(shelf.address("/trips.csv"), 0, 8)[1] == OLD[:8]


# ---- S3 ----


@pytest.fixture(scope="session")
def _gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Gateway]:
    with servers.gateway(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(_gateway: servers.Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[servers.Gateway]:
    """A real S3 server that has one object, and its keys in the environment only."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    settings = servers.KEYS | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in (settings | {"AWS_ENDPOINT_URL": f"http://{_gateway.place}"}).items():
        monkeypatch.setenv(name, value)
    if _gateway.process is None:
        _gateway.start()
    _gateway.put("tlc", f"trips/{MONTH}.csv", OLD)
    s3fs.S3FileSystem.clear_instance_cache()
    yield _gateway
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_month_is_fetched_from_s3_and_kept(run_cli: Run, make_project: MakeProject, s3: servers.Gateway) -> None:
    paths = make_project(source=SOURCE)
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_months(paths) == {MONTH: OLD}
    assert json.loads(paths.raw_manifest(MONTH).read_text()) == {
        "address": f"s3://tlc/trips/{MONTH}.csv",
        "name": f"{MONTH}.csv",
        "bytes": len(OLD),
        "sha256": hashlib.sha256(OLD).hexdigest(),
        "upstream": {"size": len(OLD), "version": servers.etag(OLD)},
    }
    changed = paths.raw_manifest(MONTH).stat().st_mtime_ns
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert paths.raw_manifest(MONTH).stat().st_mtime_ns == changed
    s3.put("tlc", f"trips/{MONTH}.csv", NEW)
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_months(paths) == {MONTH: NEW}
    assert transfer.peek_bytes(f"s3://tlc/trips/{MONTH}.csv", -8, 8)[1] == NEW[-8:]


def test_an_s3_server_that_dies_is_resumed_when_it_is_back(
    run_cli: Run, make_project: MakeProject, s3: servers.Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("tlc", f"large/{MONTH}.csv", OLD * 4)
    paths = make_project(source="s3://tlc/large/{month}.csv")
    with servers.line(s3.port) as line:
        line.cut_after, line.at_cut = 4 * HALF, s3.kill
        monkeypatch.setenv("AWS_ENDPOINT_URL", line.address)
        s3fs.S3FileSystem.clear_instance_cache()
        code, printed = run_cli(paths.root, "download", MONTH)
        assert code == 1
        assert "S3 cannot be used" in printed
        assert read_months(paths) == {}
        size = (paths.staging / "parts" / f"{MONTH}.part").stat().st_size
        assert size > HALF
        s3.start()
        assert run_cli(paths.root, "download", MONTH)[0] == 0
        assert read_months(paths) == {MONTH: OLD * 4}
        assert f"bytes={size}-".encode() in b"".join(line.asked)


@pytest.mark.parametrize(
    ("source", "code", "what"),
    [
        ("s3://tlc/trips/none-{month}.csv", 5, "does not have this month"),
        ("s3://no-such-bucket/{month}.csv", 1, "The bucket does not exist."),
        ("s3://A_B/{month}", 1, "S3 cannot be used"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_what_s3_does_not_have_is_named(
    run_cli: Run, make_project: MakeProject, source: str, code: int, what: str
) -> None:
    paths = make_project(source=source)
    ended, printed = run_cli(paths.root, "download", MONTH)
    assert (ended, what in printed) == (code, True), printed
    assert source.replace("{month}", MONTH) in printed
    assert list_files(paths) == {}


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wr0ng"}, ""),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, ""),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "Unable to locate credentials"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "Partial credentials"),
        ({"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_refused_keys_are_named_but_not_printed(
    run_cli: Run, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str | None], what: str
) -> None:
    for name, value in keys.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    paths = make_project(source=SOURCE)
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert what in printed
    assert "S3 refuses these keys" in printed
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "FSSPEC_S3_ANON=true"):
        assert name in printed
    assert "wr0ng" not in printed
    assert servers.KEYS["AWS_SECRET_ACCESS_KEY"] not in printed
    assert list_files(paths) == {}


def test_a_public_bucket_is_read_without_keys(make_project: MakeProject, shelf: servers.Shelf) -> None:
    shelf.files[f"/tlc/trips/{MONTH}.csv"] = OLD
    shelf.headers = {"Last-Modified": "Thu, 01 Jan 2009 00:00:00 GMT"}
    paths = make_project(source=SOURCE)
    where = {"AWS_ENDPOINT_URL": shelf.address(""), "AWS_EC2_METADATA_DISABLED": "true", "FSSPEC_S3_ANON": "true"}
    with start_tipline(paths, "download", MONTH, env=where) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert read_months(paths) == {MONTH: OLD}
    assert "authorization" not in shelf.log[0].headers
