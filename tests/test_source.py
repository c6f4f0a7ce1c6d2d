"""A published month is fetched whole, with a manifest, or not at all, with a reason."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import factory, servers
from tests.workbench import read_json, read_tree
from tipline import files
from tipline.errors import TiplineError
from tipline.ingest import simulate, source, transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tipline.paths import Paths

    RunCli = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

MONTH = "2009-01"
MONTHS = [f"2009-{month:02}" for month in range(1, 7)]
CSV, NEW_CSV = b"a,b\n1,2\n" * 1000, b"a,b\n3,4\n" * 2000
PAGE = b"<!DOCTYPE html>\n<html><body>Sign in, please</body></html>\n"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def shelf() -> Iterator[servers.Shelf]:
    """A web server without HEAD that has one month."""
    with servers.shelf() as server:
        server.files[f"/{MONTH}.csv"] = CSV
        yield server


@pytest.fixture
def published(tmp_path: Path) -> bytes:
    """The bytes of a Parquet month."""
    path = tmp_path / "published.parquet"
    simulate.simulate_month(path, MONTH, 1000, 1)
    return path.read_bytes()


def read_data(paths: Paths) -> dict[str, bytes]:
    """All files below data/ but unfinished downloads and locks."""
    found = read_tree(paths.root / "data")
    return {name: data for name, data in found.items() if not name.startswith(".staging/")}


def read_raw(paths: Paths) -> dict[str, bytes]:
    """The fetched files by month."""
    return {path.parent.name: path.read_bytes() for path in (paths.root / "data" / "raw").glob("*/*")}


def assert_refused(printed: str, paths: Paths) -> None:
    """Nothing but a message is left."""
    assert "Traceback" not in printed
    assert "defect" not in printed
    assert "to do:" in printed
    assert read_data(paths) == {}


# ---- addresses ----


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("store/{month}.csv", "/home/me/project/store/2009-01.csv"),
        ("../store/{month}.csv", "/home/me/store/2009-01.csv"),
        ("/store/{month}/{month}.csv", "/store/2009-01/2009-01.csv"),
        ("file:///store/{month}.csv", "/store/2009-01.csv"),
        ("https://example.org/{month}.parquet?v=1", "https://example.org/2009-01.parquet?v=1"),
        ("HTTPS://Example.org/{month}", "https://Example.org/2009-01"),
        ("s3://bucket/{month}/a b.csv", "s3://bucket/2009-01/a b.csv"),
    ],
)
def test_addresses_are_filled_in(tmp_path: Path, written: str, meant: str) -> None:
    assert source.format_address(written, MONTH, tmp_path / "project") == meant.replace("/home/me", str(tmp_path))


@pytest.mark.parametrize("beginning", ["http://127.0.0.1:99999/", "http:///", "http://127.0.0.1:{closed}/"])
def test_a_server_that_cannot_be_reached_is_named(run_cli: RunCli, make_project: MakeProject, beginning: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        beginning = beginning.replace("{closed}", str(unused.getsockname()[1]))
    paths = make_project(source=beginning + "{month}.parquet")
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert f"{beginning}2009-01.parquet" in printed
    assert_refused(printed, paths)


# ---- local files and the simulation ----


@pytest.mark.parametrize("name", ["2009-01.csv", "2009-01", "2009-01/trips.csv", "run #1/2009-01#1?a.csv"])
@pytest.mark.parametrize("beginning", ["../store/", "{tmp_path}/store/", "file://{tmp_path}/store/"])
def test_a_local_file_is_copied(
    run_cli: RunCli, make_project: MakeProject, tmp_path: Path, beginning: str, name: str
) -> None:
    path = tmp_path / "store" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(CSV)
    paths = make_project(source=beginning.replace("{tmp_path}", str(tmp_path)) + name.replace(MONTH, "{month}"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_tree(paths.raw(MONTH)) == {path.name: CSV}
    expected = {"address": str(path), "name": path.name, "bytes": len(CSV), "sha256": files.hash_file(path)}
    assert read_json(paths.raw_manifest(MONTH)) == expected


def test_in_a_temporary_experiment_a_relative_path_starts_at_the_project(
    run_cli: RunCli, make_project: MakeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory.write_csv(tmp_path / "store" / "2009-01.csv", [factory.line()])
    paths = make_project(source="../store/{month}.csv")
    copied = paths.root / ".dvc" / "tmp" / "exps" / "one"
    (copied / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(paths.root / name, copied / name)
    monkeypatch.setenv("DVC_ROOT", str(paths.root))
    assert run_cli(copied, "download", MONTH)[0] == 0
    assert (copied / "data" / "raw" / MONTH / "2009-01.csv").is_file()


@pytest.mark.parametrize(
    ("pattern", "code", "what"),
    [
        ("../store/{month}.parquet", 5, "store/2009-01.parquet"),
        ("../store/{month}/trips.csv", 5, "store/2009-01/trips.csv"),
        ("../stoer/{month}.parquet", 1, "project/../stoer"),
        ("../stoer/yellow_{month}/{month}.csv", 1, "project/../stoer"),
        ("../store/folder-{month}", 1, "This is a folder"),
        ("demo", 5, "2010-05"),
    ],
)
def test_a_local_month_that_is_missing(
    run_cli: RunCli, make_project: MakeProject, tmp_path: Path, pattern: str, code: int, what: str
) -> None:
    (tmp_path / "store" / "folder-2009-01").mkdir(parents=True)
    paths = make_project(source=pattern)
    ended, printed = run_cli(paths.root, "download", "2010-05" if pattern == "demo" else MONTH)
    assert ended == code
    assert what in printed
    assert_refused(printed, paths)


def test_a_simulated_month_has_a_manifest(run_cli: RunCli, make_project: MakeProject) -> None:
    paths = make_project(demo={"rows": 500, "seed": 7})
    assert run_cli(paths.root, "download", MONTH, "2009-02")[0] == 0
    (path,) = paths.raw(MONTH).iterdir()
    assert read_json(paths.raw_manifest(MONTH)) == {
        "address": "demo:2009-01?rows=500&seed=7",
        "name": "yellow_tripdata_2009-01.parquet",
        "bytes": path.stat().st_size,
        "sha256": files.hash_file(path),
    }
    assert set(read_raw(paths)) == {"2009-01", "2009-02"}


# ---- a server ----


@pytest.mark.parametrize("pattern", ["/t/{month}.csv", "/?month={month}", "/get?month={month}", "/{month}"])
def test_a_month_is_fetched_from_a_server_and_kept(
    run_cli: RunCli, make_project: MakeProject, shelf: servers.Shelf, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    path = pattern.replace("{month}", MONTH)
    paths = make_project(source=shelf.address(pattern).replace("http", "HTTP"))
    for shelf.files[path] in (CSV, NEW_CSV):
        for times in range(2):
            caplog.clear()
            with caplog.at_level(logging.INFO, "tipline"):
                assert run_cli(paths.root, "download", MONTH)[0] == 0
            assert (f"{MONTH}: unchanged at the source, kept" in caplog.messages) == bool(times)
        data = shelf.files[path]
        (file,) = paths.raw(MONTH).iterdir()
        assert file.read_bytes() == data
        assert read_json(paths.raw_manifest(MONTH)) == {
            "address": shelf.address(path),
            "name": file.name,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "upstream": {"size": len(data), "version": servers.etag(data)},
        }


@pytest.mark.parametrize(
    "spoil",
    [
        lambda paths: (paths.raw(MONTH) / f"{MONTH}.csv").write_bytes(NEW_CSV),
        lambda paths: shutil.rmtree(paths.raw(MONTH)),
        lambda paths: paths.raw_manifest(MONTH).unlink(),
        lambda paths: paths.raw_manifest(MONTH).write_bytes(b"{\xff"),
        {"address": "elsewhere"},
        {"upstream": None},
        {"upstream": {"size": 1, "version": "x"}},
        {"name": "../../params.yaml"},
        {"sha256": 1},
    ],
)
def test_a_month_that_may_have_changed_is_fetched_again(
    run_cli: RunCli, make_project: MakeProject, shelf: servers.Shelf, spoil: object
) -> None:
    paths = make_project(source=shelf.address("/{month}.csv"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    before, manifest = read_data(paths), paths.raw_manifest(MONTH)
    if callable(spoil):
        spoil(paths)
    elif isinstance(spoil, dict):
        manifest.write_text(json.dumps(read_json(manifest) | spoil))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_data(paths) == before


CASES = {
    "page for Parquet": ("2009-01.parquet", PAGE, "This is a web page"),
    "page for CSV": ("2009-01.csv", PAGE, "This is a web page"),
    "page after blank lines": ("2009-01.csv", b"\xef\xbb\xbf\r\n\r\n" + PAGE, "This is a web page"),
    "error of a storage": ("2009-01.csv", b"<?xml version='1.0'?><Error>, denied</Error>", "This is a web page"),
    "Parquet cut off": ("2009-01.parquet", None, "damaged or cut off"),
    "Parquet cut off, without suffix": ("2009-01", None, "damaged or cut off"),
    "empty Parquet": ("2009-01.parquet", b"", "damaged or cut off"),
    "compressed": ("2009-01.csv", b"PK\x03\x04\x00\x00, , ,", "neither a Parquet file nor a CSV"),
    "empty": ("2009-01.csv", b"", "neither a Parquet file nor a CSV"),
    "words": ("2009-01.csv", b"to be published soon\n", "neither a Parquet file nor a CSV"),
    "not there": ("2009-01.csv", 404, "does not have this month"),
    "out of order": ("2009-01.csv", 503, "503 Service Unavailable"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_is_no_month_is_refused_and_an_earlier_download_stays(
    run_cli: RunCli, make_project: MakeProject, shelf: servers.Shelf, published: bytes, case: str
) -> None:
    name, bad, what = CASES[case]
    paths = make_project(source=shelf.address("/" + name.replace(MONTH, "{month}")))
    for before in (None, CSV if name.endswith("csv") else published):
        if before is not None:
            shelf.status, shelf.files[f"/{name}"] = 200, before
            assert run_cli(paths.root, "download", MONTH)[0] == 0
        kept = read_data(paths)
        shelf.status = bad if isinstance(bad, int) else 200
        shelf.files[f"/{name}"] = bad if isinstance(bad, bytes) else published[:-1]
        code, printed = run_cli(paths.root, "download", MONTH)
        assert code == (5 if bad == 404 else 1)
        assert what in printed
        assert shelf.address(f"/{name}") in printed
        assert read_data(paths) == kept


@pytest.mark.parametrize(("bad", "code"), [({}, 5), ({"2009-02": PAGE}, 4), ({"2009-02": b""}, 4)])
def test_a_month_that_fails_lets_the_others_finish(
    run_cli: RunCli,
    make_project: MakeProject,
    shelf: servers.Shelf,
    caplog: pytest.LogCaptureFixture,
    bad: dict[str, bytes],
    code: int,
) -> None:
    good = {month: CSV for month in MONTHS if month not in {"2009-02", "2009-05"}}
    shelf.files |= {f"/{month}.csv": data for month, data in (good | bad).items()}
    meeting = threading.Barrier(4)
    shelf.before.extend([lambda: meeting.wait(30)] * 4)  # four at a time
    paths = make_project(source=shelf.address("/{month}.csv"))
    ended, printed = run_cli(paths.root, "download", *MONTHS, MONTHS[0])
    assert ended == code
    assert read_raw(paths) == good
    assert "2 of 6 months failed." in printed
    reasons = [message for message in caplog.messages if "to do:" in message]
    assert sorted(message[:7] for message in reasons) == ["2009-02", "2009-05"]


# ---- a full disk ----


def run_with_small_files(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run tipline where no file may be larger than 1 MB."""
    code = (
        "import resource, sys; from tipline.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["http", "path", "demo"])
def test_a_full_disk_leaves_the_earlier_download_and_no_part(
    run_cli: RunCli, make_project: MakeProject, shelf: servers.Shelf, tmp_path: Path, kind: str
) -> None:
    pattern = {"http": shelf.address("/{month}.csv"), "path": "../{month}.csv", "demo": "demo"}[kind]
    (tmp_path / f"{MONTH}.csv").write_bytes(CSV)
    paths = make_project(source=pattern, demo={"rows": 500})
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    before = read_tree(paths.root / "data")
    shelf.files[f"/{MONTH}.csv"] = CSV * 500
    (tmp_path / f"{MONTH}.csv").write_bytes(CSV * 500)
    make_project(source=pattern, demo={"rows": 60_000})
    code, printed = run_with_small_files(paths.root, "download", MONTH)
    assert code == 1
    assert "File too large" in printed
    assert "Traceback" not in printed
    assert read_tree(paths.root / "data") == before


def test_a_full_disk_fails_one_month_alone(make_project: MakeProject, shelf: servers.Shelf) -> None:
    shelf.files |= {"/2009-01.csv": CSV * 500, "/2009-02.csv": CSV}
    paths = make_project(source=shelf.address("/{month}.csv"))
    code, printed = run_with_small_files(paths.root, "download", "2009-01", "2009-02")
    assert code == 4
    assert "2009-01: File too large." in printed
    assert "Traceback" not in printed
    assert read_raw(paths) == {"2009-02": CSV}


# ---- secrets ----


def test_secrets_in_the_environment_are_sent_but_not_written(make_project: MakeProject, shelf: servers.Shelf) -> None:
    shelf.files[f"/{MONTH}.csv?token=0ff1ce"] = CSV
    paths = make_project(source=shelf.address("/{month}.csv"))
    secrets = {"headers": {"Authorization": "Bearer 0ff1ce"}, "params": {"token": "0ff1ce"}}
    environment = os.environ | {"FSSPEC_HTTP": json.dumps(secrets)}
    command = [str(Path(sys.executable).with_name("tipline")), "download", MONTH]
    done = subprocess.run(command, cwd=paths.root, env=environment, capture_output=True, check=True)
    assert {request.headers.get("authorization") for request in shelf.log} == {"Bearer 0ff1ce"}
    assert b"0ff1ce" not in done.stdout + done.stderr + b"".join(read_tree(paths.root / "data").values())


@pytest.mark.parametrize(
    "address", ["http://me:0ff1ce@{server}/a.csv?sig=0ff1ce", "http://me:0ff1ce@/a.csv", "http://me:0ff1ce@{server}9/a"]
)
def test_secrets_in_an_address_are_sent_but_not_written(
    shelf: servers.Shelf, tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.files["/a.csv?sig=0ff1ce"], shelf.cut_after = CSV, 1000
    address = address.replace("{server}", f"127.0.0.1:{shelf.server_address[1]}")
    with caplog.at_level(logging.INFO, "tipline"), pytest.raises(TiplineError, match="could not be fetched") as raised:
        transfer.download_file(address, tmp_path / "part", MONTH)
    assert "***" in str(raised.value)
    assert all("authorization" in request.headers for request in shelf.log)
    assert "0ff1ce" not in str(raised.value) + "".join(caplog.messages)
    assert all(b"0ff1ce" not in data for data in read_tree(tmp_path).values())


@pytest.mark.parametrize("address", ["ftp://me:0ff1ce@127.0.0.1/a.csv", "http://127.0.0.1:99999/a.csv?sig=0ff1ce"])
def test_a_password_in_a_redirect_is_not_printed(
    run_cli: RunCli, make_project: MakeProject, shelf: servers.Shelf, address: str
) -> None:
    shelf.moved[f"/{MONTH}.csv"] = address
    code, printed = run_cli(make_project(source=shelf.address("/{month}.csv")).root, "download", MONTH)
    assert code == 1
    assert "***" in printed
    assert "0ff1ce" not in printed
