"""Bytes arrive whole and of one version, whatever a server does; what has arrived is not asked for twice."""

from __future__ import annotations

import base64
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
from tipline import errors
from tipline.errors import NotPublishedError, TiplineError
from tipline.ingest import simulate, transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

MONTH = "2009-01"
MONTHS = [f"2009-{month:02}" for month in range(1, 7)]
OLD = b"a,b\n" + np.random.default_rng(1).bytes(1_000_000).replace(b"\x00", b"1")
NEW = b"a,b\n" + np.random.default_rng(2).bytes(1_000_000).replace(b"\x00", b"1")
HALF = len(OLD) // 2


@pytest.fixture(autouse=True)
def _soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def shelf() -> Iterator[servers.Shelf]:
    """A web server that has one file."""
    with servers.shelf() as server:
        server.files["/trips.csv"] = OLD
        yield server


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Where bytes gather."""
    return tmp_path / "2009-01.part"


def bring(shelf: servers.Shelf, part: Path) -> bytes:
    """Download the file of the shelf; nothing is left beside it."""
    transfer.download_file(shelf.address("/trips.csv"), part, MONTH)
    assert list(part.parent.glob("*.part*")) == [part]
    return part.read_bytes()


def asked_from(span: str) -> int:
    """The first byte of a range to the end."""
    assert span.startswith("bytes=")
    assert span.endswith("-")
    return int(span[6:-1])


# ---- connections that break ----


def test_after_a_cut_only_the_rest_is_asked_for(shelf: servers.Shelf, part: Path) -> None:
    shelf.cut_after, shelf.cuts = HALF, 1
    assert bring(shelf, part) == OLD
    first, second = shelf.log
    assert first.span == ""
    assert HALF - 2 <= asked_from(second.span) <= HALF
    assert second.headers["if-range"] == servers.etag(OLD)


def test_a_connection_that_breaks_again_and_again_gets_there(shelf: servers.Shelf, part: Path) -> None:
    shelf.cut_after = 100_000
    assert bring(shelf, part) == OLD
    assert len(shelf.log) > transfer.TRIES
    assert sum(request.sent for request in shelf.log) < len(OLD) + 100


def test_a_connection_that_gets_no_further_is_given_up_and_what_arrived_is_kept(
    shelf: servers.Shelf, part: Path
) -> None:
    shelf.cut_after, shelf.has_ranges = HALF, False
    with pytest.raises(TiplineError, match="the connection was cut before the end"):
        bring(shelf, part)
    assert len(shelf.log) == transfer.TRIES
    assert OLD.startswith(part.read_bytes())
    assert part.stat().st_size > HALF - 10
    shelf.cut_after, shelf.has_ranges = None, True
    assert bring(shelf, part) == OLD
    assert asked_from(shelf.log[-1].span) > HALF - 10


def test_a_server_that_falls_silent_is_left_and_asked_for_the_rest(
    shelf: servers.Shelf, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.2)
    shelf.silent_after = HALF
    assert bring(shelf, part) == OLD
    assert shelf.spans() == ["", f"bytes={HALF}-"]


def test_a_server_without_ranges_sends_all_again(shelf: servers.Shelf, part: Path) -> None:
    shelf.cut_after, shelf.cuts, shelf.has_ranges = HALF, 1, False
    assert bring(shelf, part) == OLD
    assert [request.status for request in shelf.log] == [200, 200]


def test_a_server_that_promises_too_much_is_asked_anew(shelf: servers.Shelf, part: Path) -> None:
    shelf.promised_too_much = 1000
    shelf.before = [lambda: None, lambda: setattr(shelf, "promised_too_much", 0)]
    assert bring(shelf, part) == OLD
    assert [request.status for request in shelf.log] == [200, 416, 200]


def test_a_range_that_does_not_say_where_it_lies_is_not_taken(shelf: servers.Shelf, part: Path) -> None:
    shelf.cut_after, shelf.cuts, shelf.says_where_a_range_lies = HALF, 1, False
    assert bring(shelf, part) == OLD
    assert [request.status for request in shelf.log] == [200, 206, 200]


@pytest.mark.parametrize("cuts", [0, 1])
def test_what_a_server_packs_is_unpacked_and_never_put_together(shelf: servers.Shelf, part: Path, cuts: int) -> None:
    shelf.packs, shelf.cut_after, shelf.cuts = True, HALF, cuts
    assert bring(shelf, part) == OLD
    assert shelf.spans() == [""] * (cuts + 1)
    assert shelf.log[0].headers["accept-encoding"] == "identity"


def test_a_file_that_moved_is_followed(shelf: servers.Shelf, part: Path) -> None:
    shelf.moved["/trips.csv"] = "/there.csv"
    shelf.files["/there.csv"] = OLD
    shelf.cut_after, shelf.cuts = HALF, 1
    assert bring(shelf, part) == OLD
    assert [request.status for request in shelf.log] == [302, 200, 302, 206]


# ---- refusals ----


@pytest.mark.parametrize("statuses", [[403, 403], [500], [503, 502, 504], [429], [408, 425]])
def test_a_refusal_that_passes_is_waited_for(shelf: servers.Shelf, part: Path, statuses: list[int]) -> None:
    shelf.statuses = list(statuses)
    assert bring(shelf, part) == OLD
    assert [request.status for request in shelf.log] == [*statuses, 200]


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (410, 1), (401, 1), (400, 1), (403, 5), (429, 5), (503, 5)])
def test_a_refusal_that_stays_is_an_error(shelf: servers.Shelf, part: Path, status: int, tries: int) -> None:
    shelf.status = status
    absent = status in {403, 404, 410}
    with pytest.raises(NotPublishedError if absent else TiplineError) as raised:
        bring(shelf, part)
    assert raised.value.exit_code == (5 if absent else 1)
    assert len(shelf.log) == tries


def test_what_a_403_may_mean_is_said(run_cli: Run, make_project: MakeProject, shelf: servers.Shelf) -> None:
    shelf.status = 403
    code, printed = run_cli(make_project(source=shelf.address("/{month}.csv")).root, "download", MONTH)
    assert code == 5
    shelf.files[f"/{MONTH}.csv"] = OLD
    code, printed = run_cli(make_project(source=shelf.address("/{month}.csv")).root, "download", MONTH)
    assert code == 5
    assert "The server refuses this month: 403 Forbidden." in printed
    assert "has not got" in printed
    assert "too fast" in printed


def test_the_pauses_grow_and_the_server_may_ask_for_longer_ones(
    shelf: servers.Shelf, part: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(transfer, "LONGEST_PAUSE_SECONDS", 0.3)
    monkeypatch.setattr(transfer, "LONGEST_WISH_SECONDS", 1.2)
    shelf.statuses = [500, 500, 500, 429]
    wishes = ["0", "tomorrow", "-1", "86400"]
    shelf.before = [lambda wish=wish: shelf.headers.update({"Retry-After": wish}) for wish in wishes]  # type: ignore[misc]
    with caplog.at_level(logging.INFO, "tipline"):
        assert bring(shelf, part) == OLD
    pauses = [float(line.split()[-2]) for line in caplog.messages if "Trying again" in line]
    assert [
        low <= pause <= high
        for pause, (low, high) in zip(pauses, [(0.1, 0.2), *[(0.1, 0.3)] * 2, (1.2, 1.2)], strict=True)
    ]
    assert max(pauses[:3]) <= 0.3
    assert pauses[3] == 1.2


def test_a_server_that_cannot_be_trusted_is_not_asked_again(
    shelf: servers.Shelf, part: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = shelf.address("/trips.csv").replace("http:", "https:")  # it does not speak TLS
    with caplog.at_level(logging.INFO, "tipline"), pytest.raises(TiplineError, match="could not be fetched"):
        transfer.download_file(place, part, MONTH)
    assert caplog.messages == []


# ---- two versions ----


def become(shelf: servers.Shelf, data: bytes) -> Callable[[], None]:
    """What publishes other bytes at the same address."""
    return lambda: shelf.files.update({"/trips.csv": data})


@pytest.mark.parametrize(
    "manners",
    [
        {},
        {"heeds_versions": False},
        {"states_version": False},
        {"heeds_versions": False, "has_ranges": False},
        {"says_where_a_range_lies": False},
        {"headers": {"ETag": 'W/"weak"'}},
    ],
    ids=str,
)
@pytest.mark.parametrize("newer", [NEW, NEW + b"more", NEW[:-5000]], ids=["same size", "larger", "smaller"])
def test_two_versions_are_never_put_together(
    shelf: servers.Shelf, part: Path, manners: dict[str, Any], newer: bytes
) -> None:
    for name, value in manners.items():
        setattr(shelf, name, value)
    shelf.cut_after, shelf.cuts = HALF, 1
    shelf.before = [lambda: None, become(shelf, newer)]
    assert bring(shelf, part) == newer


def test_a_file_that_changes_at_each_request_is_given_up(shelf: servers.Shelf, part: Path) -> None:
    shelf.cut_after, shelf.heeds_versions = HALF, False
    shelf.before = [become(shelf, data) for data in [OLD, NEW] * 10]
    with pytest.raises(TiplineError):
        bring(shelf, part)
    assert len(shelf.log) <= 2 * transfer.TRIES


# ---- what is stated is held against what arrived ----


def stated(data: bytes) -> dict[str, str]:
    """Each way to state a checksum."""
    sha = base64.b64encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode()
    return {
        "Content-MD5": servers.md5(data),
        "Digest": f"unixsum=30637, SHA-256={servers.sha256(data)}",
        "digest": f"md5={servers.md5(data)}",
        "DIGEST": f"adler32=03da0195,sha={sha}",
        "Repr-Digest": f"sha-256=:{servers.sha256(data)}:, unknown=:abcd:",
        "x-amz-checksum-sha256": servers.sha256(data),
    }


@pytest.mark.parametrize("name", list(stated(b"")))
@pytest.mark.parametrize("cuts", [0, 1])
def test_a_checksum_is_held_against_the_bytes(shelf: servers.Shelf, part: Path, name: str, cuts: int) -> None:
    shelf.headers = {name: stated(OLD)[name]}
    # What is of an answer, not of the file, stands in the whole answer only.
    whole_only = name in {"Content-MD5", "x-amz-checksum-sha256"}
    shelf.before = [lambda: None, lambda: shelf.headers.clear() if whole_only else None]
    shelf.cut_after, shelf.cuts = HALF, cuts
    assert bring(shelf, part) == OLD
    part.unlink()
    shelf.headers = {name: stated(NEW)[name]}
    shelf.before = [lambda: None, lambda: shelf.headers.clear() if whole_only else None]
    shelf.cuts = cuts
    with pytest.raises(transfer.DamagedError, match="checksum"):
        bring(shelf, part)
    assert list(part.parent.glob("*.part*")) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-MD5": "nonsense"},
        {"Content-MD5": ""},
        {"Digest": "sha-256=abcd"},
        {"Digest": "=,=,,md5"},
        {"Digest": "crc32c=AAAAAA=="},
        {"x-amz-checksum-sha256": f"{servers.sha256(b'')}-12"},
    ],
    ids=str,
)
def test_what_is_no_checksum_is_passed_over(shelf: servers.Shelf, part: Path, headers: dict[str, str]) -> None:
    shelf.headers = headers
    assert bring(shelf, part) == OLD


def test_the_checksum_of_a_range_is_not_that_of_the_file(shelf: servers.Shelf, part: Path) -> None:
    shelf.cut_after, shelf.cuts = HALF, 1
    shelf.before = [lambda: None, lambda: shelf.headers.update({"Content-MD5": servers.md5(OLD[HALF:])})]
    assert bring(shelf, part) == OLD


def test_a_server_that_promises_too_little_is_found_out(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, tmp_path: Path
) -> None:
    simulate.simulate_month(tmp_path / "trips", MONTH, 1000, 1)
    shelf.files[f"/{MONTH}.parquet"] = (tmp_path / "trips").read_bytes()
    shelf.promised_too_little = 10
    paths = make_project(source=shelf.address("/{month}.parquet"))
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert "damaged or cut off" in printed
    assert left(paths) == {}


# ---- going on with what an earlier run left ----


def left(paths: Paths) -> dict[str, bytes]:
    """All files below data/ but the locks."""
    found = factory.contents(paths.root / "data")
    return {name: data for name, data in found.items() if not name.endswith(".lock")}


def tipline(paths: Paths, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell's background jobs ignore, children do too
    program = Path(sys.executable).parent / "tipline"
    environment = os.environ | options.pop("env", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    return subprocess.Popen([program, *arguments], cwd=paths.root, env=environment, text=True, **streams)


def part_of(paths: Paths, month: str = MONTH) -> Path:
    return paths.staging / "parts" / f"{month}.part"


def wait_for(happened: Callable[[], bool]) -> None:
    """Until something is so."""
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


def has_half(path: Path) -> bool:
    return path.exists() and path.stat().st_size >= HALF


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_download_that_is_killed_goes_on_where_it_was(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, end: signal.Signals
) -> None:
    shelf.files[f"/{MONTH}.csv"] = OLD
    shelf.silent_after = HALF
    paths = make_project(source=shelf.address("/{month}.csv"))
    with tipline(paths, "download", MONTH) as process:
        wait_for(lambda: has_half(part_of(paths)))
        process.send_signal(end)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if end == signal.SIGINT else -9)
    assert "Traceback" not in printed
    assert not paths.raw(MONTH).exists()
    shelf.silent_after = None
    code, _ = run_cli(paths.root, "download", MONTH)
    assert code == 0
    assert (paths.raw(MONTH) / f"{MONTH}.csv").read_bytes() == OLD
    assert shelf.spans() == ["", f"bytes={HALF}-"]
    assert set(left(paths)) == {f"raw/{MONTH}/{MONTH}.csv", f"raw/{MONTH}.json"}


def test_a_part_that_was_whole_already_is_not_sent_again(shelf: servers.Shelf, part: Path) -> None:
    interrupted(shelf, part)
    part.write_bytes(OLD)
    assert bring(shelf, part) == OLD
    assert shelf.log[-1].sent == 1


def interrupted(shelf: servers.Shelf, part: Path) -> None:
    """Leave half of the file."""
    shelf.cut_after, shelf.has_ranges = HALF, False
    with pytest.raises(TiplineError):
        bring(shelf, part)
    shelf.cut_after, shelf.has_ranges = None, True
    shelf.log.clear()
    assert OLD.startswith(part.read_bytes())
    assert 0 < part.stat().st_size <= HALF


def rewritten(**values: Any) -> Callable[[str], str]:
    """What changes a note beside a part."""
    return lambda text: json.dumps(json.loads(text) | values)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "",
        lambda _: "[1, 2]",
        lambda _: "\x00",
        lambda text: text[:-5],
        rewritten(address="http://elsewhere/trips.csv"),
        rewritten(size=str(len(OLD))),
        rewritten(size=len(OLD) + 1),
        rewritten(version=None),
        rewritten(version=servers.etag(NEW)),
        rewritten(checksums=None),
        rewritten(checksums={"crc": "1"}),
    ],
)
def test_a_part_whose_note_does_not_fit_is_begun_anew(
    shelf: servers.Shelf, part: Path, change: Callable[[str], str]
) -> None:
    interrupted(shelf, part)
    note = part.with_name(f"{part.name}.json")
    note.write_text(change(note.read_text()))
    part.write_bytes(b"x" * HALF)
    assert bring(shelf, part) == OLD


def test_a_part_of_no_stated_version_is_not_taken_for_an_earlier_one(shelf: servers.Shelf, part: Path) -> None:
    interrupted(shelf, part)
    shelf.files["/trips.csv"] = NEW
    shelf.cut_after, shelf.has_ranges, shelf.states_version = HALF, False, False
    with pytest.raises(TiplineError):
        bring(shelf, part)
    shelf.files["/trips.csv"] = OLD
    shelf.cut_after, shelf.has_ranges, shelf.states_version = None, True, True
    assert bring(shelf, part) == OLD


def test_a_part_without_a_note_is_begun_anew(shelf: servers.Shelf, part: Path) -> None:
    part.write_bytes(b"x" * HALF)
    assert bring(shelf, part) == OLD
    assert shelf.spans() == [""]


def test_two_processes_do_not_fetch_the_same_month(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf
) -> None:
    shelf.files[f"/{MONTH}.csv"] = OLD
    shelf.silent_after = HALF
    paths = make_project(source=shelf.address("/{month}.csv"))
    with tipline(paths, "download", MONTH) as process:
        wait_for(lambda: has_half(part_of(paths)))
        code, printed = run_cli(paths.root, "download", MONTH)
        process.kill()
    assert code == 1
    assert "Another process is fetching this month." in printed


# ---- several months ----


def read_raw(paths: Paths) -> dict[str, bytes]:
    """The fetched files by month."""
    return {path.parent.name: path.read_bytes() for path in (paths.root / "data" / "raw").glob("*/*")}


def test_several_months_are_fetched_at_once(run_cli: Run, make_project: MakeProject, shelf: servers.Shelf) -> None:
    shelf.files |= {f"/{month}.csv": OLD + month.encode() for month in MONTHS}
    meeting = threading.Barrier(4)
    shelf.before = [lambda: meeting.wait(30)] * 4
    paths = make_project(source=shelf.address("/{month}.csv"))
    code, _ = run_cli(paths.root, "download", *MONTHS, MONTHS[0])
    assert code == 0
    assert read_raw(paths) == {month: OLD + month.encode() for month in MONTHS}
    assert len(shelf.log) == len(MONTHS)


@pytest.mark.parametrize(("trouble", "code"), [({}, 5), ({"2009-02": b"<html>"}, 4), ({"2009-02": b""}, 4)])
def test_a_month_that_fails_lets_the_others_finish(
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
    assert read_raw(paths) == good
    assert "2 of 6 months failed." in printed
    assert "2009-02, 2009-05" in printed
    told = [message for message in caplog.messages if "to do:" in message]
    assert sorted(message[:7] for message in told) == ["2009-02", "2009-05"]
    assert all("where:" in message for message in told)
    shelf.files |= {f"/{month}.csv": OLD for month in MONTHS}
    assert run_cli(paths.root, "download", *MONTHS)[0] == 0
    assert set(read_raw(paths)) == set(MONTHS)


def test_simulated_months_are_made_at_once_too(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project(demo={"rows": 500, "seed": 7})
    assert run_cli(paths.root, "download", "2009-01", "2009-02")[0] == 0
    assert set(read_raw(paths)) == {"2009-01", "2009-02"}
    assert run_cli(paths.root, "download", "2009-01", "2010-05")[0] == 5


def test_ctrl_c_ends_all_downloads_and_keeps_what_arrived(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf
) -> None:
    shelf.files |= {f"/{month}.csv": OLD for month in MONTHS}
    shelf.silent_after = HALF
    paths = make_project(source=shelf.address("/{month}.csv"))
    with tipline(paths, "download", *MONTHS) as process:
        wait_for(lambda: all(has_half(part_of(paths, month)) for month in MONTHS[:4]))
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "interrupted" in printed
    assert "Traceback" not in printed
    assert "Trying again" not in printed
    assert len(shelf.log) == 4
    assert read_raw(paths) == {}
    shelf.silent_after = None
    assert run_cli(paths.root, "download", *MONTHS)[0] == 0
    assert shelf.spans().count(f"bytes={HALF}-") == 4
    assert read_raw(paths) == dict.fromkeys(MONTHS, OLD)


@pytest.mark.parametrize("months", [MONTHS, MONTHS[:1]], ids=["several", "one"])
@pytest.mark.parametrize("trouble", ["no answer", "pause"])
def test_ctrl_c_ends_what_only_waits(
    make_project: MakeProject, shelf: servers.Shelf, trouble: str, months: list[str]
) -> None:
    shelf.files |= {f"/{month}.csv": OLD for month in MONTHS}
    if trouble == "pause":
        shelf.status, shelf.headers = 503, {"Retry-After": "59"}
    else:
        shelf.silent_after = 0
    paths = make_project(source=shelf.address("/{month}.csv"))
    with tipline(paths, "download", *months) as process:
        wait_for(lambda: len(shelf.log) == min(len(months), 4))
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=15)
    assert process.returncode == 130
    assert printed.splitlines()[-1].startswith("tipline download: interrupted")
    assert "Traceback" not in printed


# ---- what is kept, and what is mended ----


def test_a_month_that_is_the_same_upstream_is_kept(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.files[f"/{MONTH}.csv"] = OLD
    paths = make_project(source=shelf.address("/{month}.csv"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    before = left(paths)
    shelf.log.clear()
    with caplog.at_level(logging.INFO, "tipline"):
        assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert [request.sent for request in shelf.log] == [1]
    assert f"{MONTH}: unchanged upstream, kept" in caplog.messages
    assert left(paths) == before


def spoil(paths: Paths, trouble: str, shelf: servers.Shelf) -> None:
    """Make it necessary to fetch a month again."""
    file, manifest = paths.raw(MONTH) / f"{MONTH}.csv", paths.raw_manifest(MONTH)
    if trouble == "published anew":
        shelf.files[f"/{MONTH}.csv"] = NEW
    elif trouble == "other bytes":
        file.write_bytes(NEW)
    elif trouble == "no file":
        file.unlink()
    elif trouble == "no folder":
        shutil.rmtree(paths.raw(MONTH))
    elif trouble == "no manifest":
        manifest.unlink()
    elif trouble == "no json":
        manifest.write_bytes(b"{\xff")
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | json.loads(trouble)))


@pytest.mark.parametrize(
    "trouble",
    [
        *("published anew", "other bytes", "no file", "no folder", "no manifest", "no json"),
        '{"address": "elsewhere"}',
        '{"upstream": null}',
        '{"upstream": {"size": 1, "version": "x"}}',
        '{"name": "../../params.yaml"}',
        '{"sha256": 1}',
    ],
)
def test_a_month_that_is_not_surely_the_same_is_fetched_again(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, trouble: str
) -> None:
    shelf.files[f"/{MONTH}.csv"] = OLD
    paths = make_project(source=shelf.address("/{month}.csv"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    spoil(paths, trouble, shelf)
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    data = shelf.files[f"/{MONTH}.csv"]
    assert shelf.log[-1].sent == len(data)
    assert read_raw(paths) == {MONTH: data}
    manifest = json.loads(paths.raw_manifest(MONTH).read_text())
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["upstream"] == {"size": len(data), "version": servers.etag(data)}


def test_where_the_server_states_no_version_a_month_is_fetched_again(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf
) -> None:
    shelf.files[f"/{MONTH}.csv"] = OLD
    shelf.states_version = False
    paths = make_project(source=shelf.address("/{month}.csv"))
    for _ in range(2):
        assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert [request.sent for request in shelf.log] == [len(OLD)] * 2


def test_a_receipt_is_not_replaced_before_its_month_is(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf
) -> None:
    shelf.files[f"/{MONTH}.csv"] = OLD
    paths = make_project(source=shelf.address("/{month}.csv"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    in_the_way = paths.staging / "raw" / f"{MONTH}.old"
    in_the_way.write_bytes(b"")
    before = left(paths)
    shelf.files[f"/{MONTH}.csv"] = NEW
    assert run_cli(paths.root, "download", MONTH)[0] == 1
    assert left(paths) == before
    in_the_way.unlink()
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_raw(paths) == {MONTH: NEW}


# ---- a full disk ----


@contextlib.contextmanager
def little_room(paths: Paths) -> Iterator[bool]:
    """Put data/ on a disk of 2 MB, if this user may; whether that is so."""
    data = paths.root / "data"
    data.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(data)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(data)], check=True)  # noqa: S607


def run_with_small_files(paths: Paths, *arguments: str) -> tuple[int, str]:
    """Run tipline where no file may be larger than 1 MB."""
    code = (
        "import resource, sys; from tipline.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=paths.root, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("limit", ["disk", "file"])
@pytest.mark.parametrize("kind", ["http", "path", "demo"])
def test_a_disk_that_fills_up_leaves_the_earlier_download_and_nothing_half_written(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, tmp_path: Path, kind: str, limit: str
) -> None:
    pattern = {"http": shelf.address("/{month}.csv"), "path": "../{month}.csv", "demo": "demo"}[kind]
    shelf.files[f"/{MONTH}.csv"] = OLD[:1000]
    (tmp_path / f"{MONTH}.csv").write_bytes(OLD[:1000])
    paths = make_project(source=pattern, demo={"rows": 500})
    with little_room(paths) as mounted:
        assert run_cli(paths.root, "download", MONTH)[0] == 0
        before = left(paths)
        shelf.files[f"/{MONTH}.csv"] = OLD * 3
        (tmp_path / f"{MONTH}.csv").write_bytes(OLD * 3)
        make_project(source=pattern, demo={"rows": 60_000})
        full = mounted and limit == "disk"
        code, printed = (run_cli if full else lambda _, *rest: run_with_small_files(paths, *rest))(
            paths.root, "download", MONTH
        )
        assert code == 1
        assert ("No space left on device" if full else "File too large") in printed
        assert "Traceback" not in printed
        assert left(paths) == before


def test_a_disk_that_fills_up_is_each_months_own_trouble(make_project: MakeProject, shelf: servers.Shelf) -> None:
    shelf.files |= {"/2009-01.csv": OLD * 3, "/2009-02.csv": OLD[:1000]}
    paths = make_project(source=shelf.address("/{month}.csv"))
    code, printed = run_with_small_files(paths, "download", "2009-01", "2009-02")
    assert code == 4
    assert "2009-01: File too large." in printed
    assert "Traceback" not in printed
    assert read_raw(paths) == {"2009-02": OLD[:1000]}


# ---- secrets and proxies ----


def test_passwords_and_signatures_are_sent_and_written_nowhere(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    query = "X-Amz-Expires=60&X-Amz-Signature=0ff1ce&sig=0ff1ce&v=1"
    path = f"/{MONTH}.csv?{query}"
    shelf.files[path] = OLD
    paths = make_project(source=shelf.address("/{month}.csv?" + query, "me:0ff1ce@"))
    shelf.statuses = [503]
    with caplog.at_level(logging.INFO, "tipline"):
        assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert all("authorization" in request.headers for request in shelf.log)
    manifest = paths.raw_manifest(MONTH).read_text()
    assert "://***@127.0.0.1" in manifest
    assert "X-Amz-Expires=60&X-Amz-Signature=***&sig=***&v=1" in manifest
    shelf.log.clear()
    with caplog.at_level(logging.INFO, "tipline"):
        assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert [request.sent for request in shelf.log] == [1]
    shelf.files[path] = NEW
    shelf.cut_after, shelf.has_ranges = HALF, False
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert any(name.endswith(".part.json") for name in left(paths))
    everything = "".join(caplog.messages) + printed + b"".join(left(paths).values()).decode("latin-1")
    assert "0ff1ce" not in everything.replace(OLD.decode("latin-1"), "").replace(NEW.decode("latin-1"), "")


@pytest.mark.parametrize("place", ["http://me:0ff1ce@/{month}.csv", "http://me:0ff1ce@127.0.0.1:99999/{month}.csv"])
def test_a_password_in_an_address_that_cannot_be_is_not_printed(
    run_cli: Run, make_project: MakeProject, place: str
) -> None:
    code, printed = run_cli(make_project(source=place).root, "download", MONTH)
    assert code == 1
    assert "could not be fetched" in printed
    assert "0ff1ce" not in printed


@pytest.mark.parametrize("place", ["ftp://me:0ff1ce@127.0.0.1/a.csv", "http://127.0.0.1:99999/a.csv?sig=0ff1ce"])
def test_a_password_in_an_address_that_a_server_names_is_not_printed(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, place: str
) -> None:
    shelf.moved[f"/{MONTH}.csv"] = place
    code, printed = run_cli(make_project(source=shelf.address("/{month}.csv")).root, "download", MONTH)
    assert code == 1
    assert "could not be fetched" in printed
    assert "***" in printed
    assert "0ff1ce" not in printed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://example.org/2009-01.csv?v=1&design=2", "https://example.org/2009-01.csv?v=1&design=2"),
        ("https://me:p@ss:w0rd@example.org/a@b.csv", "https://***@example.org/a@b.csv"),
        (
            "cannot open 'https://h/x?api_key=1&Key=2&b=3', sorry",
            "cannot open 'https://h/x?api_key=***&Key=***&b=3', sorry",
        ),
        (
            "https://h/x?AWSAccessKeyId=A&Signature=b%2F&Expires=1",
            "https://h/x?AWSAccessKeyId=***&Signature=***&Expires=1",
        ),
        ("/data/me@home/2009-01.csv", "/data/me@home/2009-01.csv"),
        ("s3://bucket/a@b/2009-01.csv", "s3://bucket/a@b/2009-01.csv"),
    ],
)
def test_what_is_secret_in_a_text_is_hidden(text: str, shown: str) -> None:
    assert errors.hide_secrets(text) == shown


def test_a_proxy_that_the_environment_names_is_used(
    shelf: servers.Shelf, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", shelf.address(""))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    shelf.files["http://tlc.invalid/trips.csv"] = OLD
    transfer.download_file("http://tlc.invalid/trips.csv", part, MONTH)
    assert part.read_bytes() == OLD


# ---- what a person sees ----


def test_on_a_terminal_there_is_a_bar_and_elsewhere_there_are_lines(
    make_project: MakeProject, shelf: servers.Shelf
) -> None:
    shelf.files[f"/{MONTH}.csv"] = OLD
    shelf.cut_after, shelf.cuts = HALF, 2
    paths = make_project(source=shelf.address("/{month}.csv"))
    with tipline(paths, "download", MONTH) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "\r" not in printed
    assert f"{MONTH}: fetching 1.0 MB\n" in printed
    assert f"{MONTH}: resumed at 0.5 MB of 1.0 MB\n" in printed
    shelf.files[f"/{MONTH}.csv"] = NEW
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 100))
    with tipline(paths, "download", MONTH, stdout=its, stderr=its) as process:
        os.close(its)
        screen = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while data := os.read(ours, 65536):
                screen += data
    os.close(ours)
    assert process.returncode == 0
    assert f"\r{MONTH}:".encode() in screen
    assert b"B/s" in screen
    assert b"fetching" not in screen


# ---- a look at a part of a file ----


@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 4096), (500, 100), (-8, 8), (-4096, 4096), (-4096, 100)])
def test_a_peek_reads_what_is_asked_for_and_no_more(shelf: servers.Shelf, start: int, length: int) -> None:
    known, data = transfer.peek_bytes(shelf.address("/trips.csv"), start, length)
    assert data == OLD[start:][:length]
    assert (known.size, known.version) == (len(OLD), servers.etag(OLD))
    assert shelf.log[0].sent == (-start if start < 0 else length)


def test_a_peek_at_a_file_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "trips.csv").write_bytes(OLD)
    place = str(tmp_path / "trips.csv")
    assert transfer.peek_bytes(place, 10, 10) == (transfer.Stated(len(OLD), None), OLD[10:20])
    assert transfer.peek_bytes(place, -10, 10)[1] == OLD[-10:]
    assert transfer.peek_bytes(place, -len(OLD) * 2, 10)[1] == OLD[:10]
    with pytest.raises(NotPublishedError):
        transfer.peek_bytes(f"{place}.gz", 0, 1)
    with pytest.raises(TiplineError, match="a folder"):
        transfer.peek_bytes(str(tmp_path), 0, 1)


@pytest.mark.parametrize(("start", "length"), [(0, 1000), (-1000, 1000), (-1000, 10)])
def test_a_peek_at_a_file_that_is_smaller(shelf: servers.Shelf, start: int, length: int) -> None:
    shelf.files["/trips.csv"] = b"a,b\n"
    for shelf.has_ranges in (True, False):
        known, data = transfer.peek_bytes(shelf.address("/trips.csv"), start, length)
        assert data == b"a,b\n"[:length]
        assert known.size == 4


@pytest.mark.parametrize("start", [0, -100])
def test_a_peek_at_nothing(shelf: servers.Shelf, start: int) -> None:
    shelf.files["/trips.csv"] = b""
    assert transfer.peek_bytes(shelf.address("/trips.csv"), start, 100)[1] == b""


@pytest.mark.parametrize("start", [-8, 8])
def test_a_peek_into_a_file_that_is_only_sent_whole_says_so(shelf: servers.Shelf, start: int) -> None:
    shelf.has_ranges = False
    with pytest.raises(transfer.NoRangeError):
        transfer.peek_bytes(shelf.address("/trips.csv"), start, 8)
    assert transfer.peek_bytes(shelf.address("/trips.csv"), 0, 8)[1] == OLD[:8]
    shelf.states_length = False
    with pytest.raises(transfer.NoRangeError):
        transfer.peek_bytes(shelf.address("/trips.csv"), start, 8)


def test_a_peek_at_a_packed_file_does_not_mix_up_places(shelf: servers.Shelf) -> None:
    shelf.packs = True
    assert transfer.peek_bytes(shelf.address("/trips.csv"), 0, 8)[1] == OLD[:8]
    with pytest.raises(transfer.NoRangeError):
        transfer.peek_bytes(shelf.address("/trips.csv"), -8, 8)


def test_a_peek_is_tried_again_and_fails_as_a_download_does(shelf: servers.Shelf) -> None:
    shelf.statuses = [403, 500]
    assert transfer.peek_bytes(shelf.address("/trips.csv"), -8, 8)[1] == OLD[-8:]
    with pytest.raises(NotPublishedError):
        transfer.peek_bytes(shelf.address("/none.csv"), -8, 8)
    shelf.status = 500
    with pytest.raises(TiplineError, match="500 Internal Server Error"):
        transfer.peek_bytes(shelf.address("/trips.csv"), -8, 8)


# ---- S3 ----


@pytest.fixture(scope="session")
def _gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Gateway]:
    with servers.gateway(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The keys of the S3 server in the environment, and nowhere else."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name, value in (
        servers.KEYS | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    ).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # which would go on with the keys of another test
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(_gateway: servers.Gateway, _keys: None, monkeypatch: pytest.MonkeyPatch) -> servers.Gateway:
    """A real S3 server that has one object."""
    if _gateway.process is None:
        _gateway.start()
    _gateway.put("tlc", f"trips/{MONTH}.csv", OLD)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{_gateway.place}")
    return _gateway


@pytest.fixture
def line(s3: servers.Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Line]:
    """A line to the S3 server that breaks in the middle of the first object."""
    with servers.line(s3.port) as server:
        server.cut_after = 4 * HALF
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        yield server


SOURCE = "s3://tlc/trips/{month}.csv"
LARGE = OLD * 4  # more than lies about in buffers when a line is cut


def ranges(line: servers.Line) -> list[str]:
    """The ranges that were asked for over a line."""
    heads = b"".join(line.asked).decode("latin-1").split("\r\n")
    return [head.split(": ")[1] for head in heads if head.lower().startswith("range: ")]


def test_a_month_is_fetched_from_s3_and_kept(run_cli: Run, make_project: MakeProject, s3: servers.Gateway) -> None:
    paths = make_project(source=SOURCE)
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_raw(paths) == {MONTH: OLD}
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
    assert read_raw(paths) == {MONTH: NEW}


def test_several_months_are_fetched_from_s3_at_once(
    run_cli: Run, make_project: MakeProject, s3: servers.Gateway
) -> None:
    for month in MONTHS[:5]:
        s3.put("tlc", f"several/{month}.csv", OLD + month.encode())
    paths = make_project(source="s3://tlc/several/{month}.csv")
    assert run_cli(paths.root, "download", *MONTHS)[0] == 5
    assert read_raw(paths) == {month: OLD + month.encode() for month in MONTHS[:5]}


def test_a_line_to_s3_that_breaks_is_gone_on_with(part: Path, s3: servers.Gateway, line: servers.Line) -> None:
    s3.put("tlc", "large.csv", LARGE)
    transfer.download_file("s3://tlc/large.csv", part, MONTH)
    assert part.read_bytes() == LARGE
    (span,) = ranges(line)
    assert asked_from(span) > HALF
    assert sum(line.passed) < len(LARGE) + 3 * HALF
    assert f"if-match: {servers.etag(LARGE)}" in b"".join(line.asked).decode("latin-1").lower()


def test_an_object_that_is_overwritten_meanwhile_is_fetched_anew(
    part: Path, s3: servers.Gateway, line: servers.Line
) -> None:
    s3.put("tlc", "large.csv", LARGE)
    line.at_cut = lambda: s3.put("tlc", "large.csv", NEW * 4)
    transfer.download_file("s3://tlc/large.csv", part, MONTH)
    assert part.read_bytes() == NEW * 4
    assert len(ranges(line)) == 1


def test_an_s3_server_that_dies_half_way_is_gone_on_with_when_it_is_back(
    run_cli: Run, make_project: MakeProject, s3: servers.Gateway, line: servers.Line
) -> None:
    s3.put("tlc", f"large/{MONTH}.csv", LARGE)
    line.at_cut = s3.kill
    paths = make_project(source="s3://tlc/large/{month}.csv")
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert "could not be fetched" in printed
    assert read_raw(paths) == {}
    have = part_of(paths).stat().st_size
    assert have > HALF
    s3.start()
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_raw(paths) == {MONTH: LARGE}
    assert ranges(line)[-1] == f"bytes={have}-"


@pytest.mark.parametrize(
    ("source", "code", "what"),
    [
        ("s3://tlc/trips/none-{month}.csv", 5, "does not have this month"),
        ("s3://tlc/{month}", 5, "does not have this month"),
        ("s3://no-such-bucket/{month}.csv", 1, "The bucket does not exist."),
        ("s3://{month}", 1, "could not be fetched"),
        ("s3://A_B/{month}", 1, "could not be fetched"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_what_s3_does_not_have_is_named(
    run_cli: Run, make_project: MakeProject, source: str, code: int, what: str
) -> None:
    paths = make_project(source=source)
    ended, printed = run_cli(paths.root, "download", MONTH)
    assert ended == code
    assert what in printed
    assert source.replace("{month}", MONTH) in printed
    assert left(paths) == {}


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wr0ng"}, "signature"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not exist in our records"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "Unable to locate credentials"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "Partial credentials"),
        ({"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_keys_that_do_not_open_s3_are_named_but_not_printed(
    run_cli: Run, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str | None], what: str
) -> None:
    for name, value in keys.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    paths = make_project(source=SOURCE)
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert what in printed
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "FSSPEC_S3_ANON=true"):
        assert name in printed
    assert "wr0ng" not in printed
    assert servers.KEYS["AWS_SECRET_ACCESS_KEY"] not in printed
    assert left(paths) == {}


def test_a_public_bucket_is_read_without_keys(make_project: MakeProject, shelf: servers.Shelf) -> None:
    shelf.files[f"/tlc/trips/{MONTH}.csv"] = OLD
    paths = make_project(source=SOURCE)
    where = {"AWS_ENDPOINT_URL": shelf.address(""), "AWS_EC2_METADATA_DISABLED": "true", "FSSPEC_S3_ANON": "true"}
    with tipline(paths, "download", MONTH, env=where) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert read_raw(paths) == {MONTH: OLD}
    assert "authorization" not in shelf.log[0].headers


@pytest.fixture
def bucket(_keys: None, shelf: servers.Shelf, monkeypatch: pytest.MonkeyPatch) -> servers.Shelf:
    """A server that speaks enough of S3 to be wrong in it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", shelf.address(""))
    shelf.files["/tlc/trips.csv"] = OLD
    return shelf


KMS = {"x-amz-server-side-encryption": "aws:kms"}
CUSTOMER = {"x-amz-server-side-encryption-customer-algorithm": "AES256"}


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({}, "taken"),
        ({"x-amz-checksum-sha256": servers.sha256(OLD)}, "taken"),
        ({"x-amz-checksum-sha256": servers.sha256(NEW)}, "refused"),
        ({"x-amz-checksum-sha256": f"{servers.sha256(NEW)}-3"}, "taken"),
        ({"ETag": servers.etag(NEW)}, "refused"),
        ({"ETag": servers.etag(NEW)} | KMS, "taken"),
        ({"ETag": servers.etag(NEW)} | CUSTOMER, "taken"),
        ({"ETag": servers.etag(NEW), "x-amz-server-side-encryption": "AES256"}, "refused"),
        ({"ETag": servers.etag(NEW)[:-1] + '-3"'}, "taken"),
        ({"Content-Encoding": "aws-chunked"}, "taken"),
    ],
    ids=str,
)
def test_what_s3_states_is_held_against_the_bytes(
    bucket: servers.Shelf, part: Path, headers: dict[str, str], outcome: str
) -> None:
    bucket.headers = headers
    for bucket.cuts in (0, 1):
        bucket.cut_after = HALF
        if outcome == "taken":
            transfer.download_file("s3://tlc/trips.csv", part, MONTH)
            assert part.read_bytes() == OLD
            part.unlink()
        else:
            with pytest.raises(transfer.DamagedError, match="checksum"):
                transfer.download_file("s3://tlc/trips.csv", part, MONTH)
        assert list(part.parent.glob("*.part*")) == []


def test_s3_that_is_busy_is_waited_for_and_one_that_refuses_is_not(
    bucket: servers.Shelf, part: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    bucket.statuses = [503, 500, 429]
    with caplog.at_level(logging.INFO, "tipline"):
        transfer.download_file("s3://tlc/trips.csv", part, MONTH)
    assert len([message for message in caplog.messages if "Trying again" in message]) == 3
    assert bucket.log[0].headers["x-amz-checksum-mode"] == "ENABLED"
    assert part.read_bytes() == OLD
    assert len(bucket.log) == 4
    bucket.log.clear()
    bucket.status = 403
    with pytest.raises(TiplineError, match="keys at hand") as raised:
        transfer.download_file("s3://tlc/trips.csv", part, MONTH)
    assert raised.value.exit_code == 1
    assert len(bucket.log) == 1


def test_s3_that_says_nothing_is_given_up(bucket: servers.Shelf, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.1)
    bucket.silent_after = 0
    with pytest.raises(TiplineError, match="could not be fetched"):
        transfer.download_file("s3://tlc/trips.csv", part, MONTH)
    assert len(bucket.log) == transfer.TRIES


@pytest.mark.usefixtures("s3")
def test_a_peek_at_an_object() -> None:
    place = f"s3://tlc/trips/{MONTH}.csv"
    known, data = transfer.peek_bytes(place, -8, 8)
    assert (known.size, known.version, data) == (len(OLD), servers.etag(OLD), OLD[-8:])
    assert transfer.peek_bytes(place, 5, 10)[1] == OLD[5:15]
    assert transfer.peek_bytes(place, -2 * len(OLD), 10)[1] == OLD[:10]
    assert transfer.peek_bytes(place, len(OLD), 10)[1] == b""
