"""The published bytes of a month arrive whole, with a manifest, or not at all, with a reason."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from tests import factory, servers
from tipline import files
from tipline.ingest import simulate, source, transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

MONTH = "2009-01"
PAGE = b"<!DOCTYPE html>\n<html><body>Sign in, please</body></html>\n"


@pytest.fixture(autouse=True)
def _soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def shelf() -> Iterator[servers.Shelf]:
    """A web server."""
    with servers.shelf() as server:
        yield server


@pytest.fixture
def published(tmp_path: Path) -> bytes:
    """The bytes of a Parquet month."""
    path = tmp_path / "published.parquet"
    simulate.simulate_month(path, MONTH, 1000, 1)
    return path.read_bytes()


def manifest(paths: Paths) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(paths.raw_manifest(MONTH).read_text())
    return found


def refused(printed: str, paths: Paths) -> None:
    """Nothing but a message came of it."""
    assert "Traceback" not in printed
    assert "defect" not in printed
    assert "to do:" in printed
    assert published_files(paths) == {}


def published_files(paths: Paths) -> dict[str, bytes]:
    """All below data/ but what waits to be gone on with."""
    found = factory.contents(paths.root / "data")
    return {name: data for name, data in found.items() if not name.startswith(".staging/")}


# ---- local files ----


@pytest.mark.parametrize(
    "name", ["yellow_2009-01.parquet", "2009-01", "2009-01/trips.parquet", "a b#c/2009-01.parquet"]
)
@pytest.mark.parametrize("beginning", ["../store/", "{tmp_path}/store/", "file://{tmp_path}/store/"])
def test_a_local_path_is_copied_byte_for_byte(
    run_cli: Run, make_project: MakeProject, tmp_path: Path, published: bytes, beginning: str, name: str
) -> None:
    path = tmp_path / "store" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(published)
    written = beginning.replace("{tmp_path}", str(tmp_path)) + name.replace(MONTH, "{month}")
    paths = make_project(source=written)
    code, _ = run_cli(paths.root, "download", MONTH)
    assert code == 0
    (copied,) = paths.raw(MONTH).iterdir()
    assert copied.read_bytes() == published
    assert manifest(paths) == {
        "address": str(path),
        "name": copied.name,
        "bytes": len(published),
        "sha256": files.hash_file(path),
    }


def test_a_relative_path_starts_at_the_project_wherever_the_command_is_typed(
    run_cli: Run, make_project: MakeProject, tmp_path: Path
) -> None:
    factory.write_csv(tmp_path / "store" / "2009-01.csv", [factory.line()])
    paths = make_project(source="../store/{month}.csv")
    (paths.root / "data").mkdir()
    code, _ = run_cli(paths.root / "data", "download", MONTH)
    assert code == 0
    assert (paths.raw(MONTH) / "2009-01.csv").is_file()


def test_in_a_copy_of_the_project_a_relative_path_starts_at_the_original(
    run_cli: Run, make_project: MakeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory.write_csv(tmp_path / "store" / "2009-01.csv", [factory.line()])
    paths = make_project(source="../store/{month}.csv")
    copied = paths.root / ".dvc" / "tmp" / "exps" / "one"
    (copied / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        (copied / name).write_bytes((paths.root / name).read_bytes())
    monkeypatch.setenv("DVC_ROOT", str(paths.root))
    assert run_cli(copied, "download", MONTH)[0] == 0
    assert (copied / "data" / "raw" / MONTH / "2009-01.csv").is_file()


def test_a_published_csv_is_taken_as_it_is(run_cli: Run, make_project: MakeProject, tlc: Path) -> None:
    paths = make_project(source=str(tlc / "hour" / "yellow_tripdata_{month}.csv"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    name = f"yellow_tripdata_{MONTH}.csv"
    assert (paths.raw(MONTH) / name).read_bytes() == (tlc / "hour" / name).read_bytes()


def test_a_local_month_that_is_not_there_is_not_published(
    run_cli: Run, make_project: MakeProject, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    paths = make_project(source="../store/{month}.parquet")
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 5
    assert str(tmp_path / "store" / "2009-01.parquet") in printed
    refused(printed, paths)


@pytest.mark.parametrize("source", ["../stoer/{month}.parquet", "../stoer/yellow_{month}/{month}.csv"])
def test_a_folder_written_wrongly_is_no_month_to_wait_for(
    run_cli: Run, make_project: MakeProject, tmp_path: Path, source: str
) -> None:
    paths = make_project(source=source)
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert str(tmp_path / "project" / ".." / "stoer") in printed
    refused(printed, paths)


def test_a_month_may_be_a_folder_that_is_not_there_yet(run_cli: Run, make_project: MakeProject, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    paths = make_project(source="../store/{month}/trips.csv")
    assert run_cli(paths.root, "download", MONTH)[0] == 5


def test_a_folder_is_no_month(run_cli: Run, make_project: MakeProject, tmp_path: Path) -> None:
    factory.write_csv(tmp_path / "store" / "2009-01" / "part.csv", [factory.line()])
    paths = make_project(source="../store/{month}")
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert str(tmp_path / "store" / MONTH) in printed
    refused(printed, paths)


# ---- a server ----


def test_a_month_is_fetched_from_a_server(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, published: bytes
) -> None:
    shelf.files["/trips/yellow_2009-01.parquet"] = published
    paths = make_project(source=shelf.address("/trips/yellow_{month}.parquet"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    path = paths.raw(MONTH) / "yellow_2009-01.parquet"
    assert factory.contents(paths.raw(MONTH)) == {path.name: published}
    assert manifest(paths) == {
        "address": shelf.address("/trips/yellow_2009-01.parquet"),
        "name": path.name,
        "bytes": len(published),
        "sha256": files.hash_file(path),
        "upstream": {"size": len(published), "version": servers.etag(published)},
    }
    assert run_cli(paths.root, "prepare", MONTH)[0] == 0
    assert pq.read_metadata(paths.prepared_file(MONTH)).num_rows == 1000


def test_a_server_that_states_no_length_is_believed(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, published: bytes
) -> None:
    shelf.files["/2009-01.parquet"] = published
    shelf.states_length = False
    paths = make_project(source=shelf.address("/{month}.parquet"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert (paths.raw(MONTH) / "2009-01.parquet").read_bytes() == published


@pytest.mark.parametrize("pattern", ["/?month={month}", "/get?month={month}", "/{month}"])
def test_an_address_need_not_end_in_a_files_name(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, published: bytes, pattern: str
) -> None:
    shelf.files[pattern.replace("{month}", MONTH)] = published
    paths = make_project(source=shelf.address(pattern))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert list(factory.contents(paths.raw(MONTH)).values()) == [published]


def test_the_case_of_the_scheme_does_not_count(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, published: bytes
) -> None:
    shelf.files["/2009-01.parquet"] = published
    paths = make_project(source=shelf.address("/{month}.parquet").replace("http", "HTTP"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0


@pytest.mark.parametrize("status", [404, 410])
def test_a_month_that_the_server_does_not_have_is_not_published(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, status: int
) -> None:
    if status != 404:
        shelf.files["/2009-01.parquet"] = b"no"
        shelf.status = status
    paths = make_project(source=shelf.address("/{month}.parquet"))
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 5
    assert "does not have this month" in printed
    assert shelf.address("/2009-01.parquet") in printed
    refused(printed, paths)


@pytest.mark.parametrize(("status", "what"), [(429, "Too Many Requests"), (500, "500"), (503, "Service Unavailable")])
def test_a_server_that_fails_does_not_count_as_not_published(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, status: int, what: str
) -> None:
    shelf.files["/2009-01.parquet"] = b"no"
    shelf.status = status
    paths = make_project(source=shelf.address("/{month}.parquet"))
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert what in printed
    assert shelf.address("/2009-01.parquet") in printed
    refused(printed, paths)


def test_a_server_that_is_not_there_is_said_to_be_so(run_cli: Run, make_project: MakeProject) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    paths = make_project(source=f"http://127.0.0.1:{port}/{{month}}.parquet")
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert "could not be fetched: Cannot connect to host" in printed
    assert f"http://127.0.0.1:{port}/2009-01.parquet" in printed
    refused(printed, paths)


@pytest.mark.parametrize("beginning", ["http://127.0.0.1:99999/", "http:///"])
def test_an_address_that_cannot_be_is_named(run_cli: Run, make_project: MakeProject, beginning: str) -> None:
    paths = make_project(source=beginning + "{month}.parquet")
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert f"{beginning}2009-01.parquet" in printed
    refused(printed, paths)


@pytest.mark.parametrize("sent", [0, 1000])
def test_a_server_that_falls_silent_is_given_up(
    run_cli: Run,
    make_project: MakeProject,
    shelf: servers.Shelf,
    published: bytes,
    monkeypatch: pytest.MonkeyPatch,
    sent: int,
) -> None:
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.1)
    shelf.files["/2009-01.parquet"] = published
    shelf.silent_after = sent
    shelf.has_ranges = False  # with them it would end well, a little at a time
    paths = make_project(source=shelf.address("/{month}.parquet"))
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert "could not be fetched" in printed
    refused(printed, paths)


def test_a_transfer_that_is_cut_off_is_noticed(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, published: bytes
) -> None:
    shelf.files["/2009-01.parquet"] = published
    shelf.promised_too_much = 1000
    paths = make_project(source=shelf.address("/{month}.parquet"))
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert "could not be fetched: the connection was cut" in printed
    assert shelf.address("/2009-01.parquet") in printed
    refused(printed, paths)


def test_a_csv_that_is_cut_off_is_noticed(run_cli: Run, make_project: MakeProject, shelf: servers.Shelf) -> None:
    shelf.files["/2009-01.csv"] = f"{','.join(factory.RAW_2009)}\n{factory.line()}\n".encode()
    shelf.promised_too_much = 1
    paths = make_project(source=shelf.address("/{month}.csv"))
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    refused(printed, paths)


# ---- what is no month ----


def bad_contents(published: bytes) -> dict[str, tuple[str, bytes, str]]:
    """File name, bytes, message."""
    return {
        "page for Parquet": ("2009-01.parquet", PAGE, "This is a web page, not a Parquet file."),
        "page for CSV": ("2009-01.csv", PAGE, "This is a web page, not a published month."),
        "page after blank lines": ("2009-01.csv", b"\xef\xbb\xbf\r\n\r\n" + PAGE, "This is a web page"),
        "storage's error": ("2009-01.csv", b"<?xml version='1.0'?><Error>, denied</Error>", "This is a web page"),
        "Parquet cut off": ("2009-01.parquet", published[: len(published) // 2], "damaged or cut off"),
        "Parquet cut off, another name": ("2009-01", published[:-1], "damaged or cut off"),
        "Parquet of nothing": ("2009-01.parquet", b"", "damaged or cut off"),
        "packed": ("2009-01.csv", b"PK\x03\x04\x00\x00, , ,", "neither a Parquet file nor a CSV"),
        "nothing": ("2009-01.csv", b"", "neither a Parquet file nor a CSV"),
        "words": ("2009-01.csv", b"to be published soon\n", "neither a Parquet file nor a CSV"),
    }


BAD = list(bad_contents(b""))


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_month_is_refused_and_an_earlier_download_stays(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, published: bytes, case: str
) -> None:
    name, data, what = bad_contents(published)[case]
    paths = make_project(source=shelf.address("/" + name.replace(MONTH, "{month}")))
    shelf.files[f"/{name}"] = data
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert what in printed
    assert shelf.address(f"/{name}") in printed
    refused(printed, paths)
    shelf.files[f"/{name}"] = published if name != "2009-01.csv" else b"a,b\n1,2\n"
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    before = published_files(paths)
    assert len(before) == 2
    shelf.files[f"/{name}"] = data
    assert run_cli(paths.root, "download", MONTH)[0] == 1
    assert published_files(paths) == before


@pytest.mark.parametrize("trouble", ["404", "503", "cut off"])
def test_an_earlier_download_survives_a_server_in_trouble(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, published: bytes, trouble: str
) -> None:
    shelf.files["/2009-01.parquet"] = published
    paths = make_project(source=shelf.address("/{month}.parquet"))
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    before = published_files(paths)
    if trouble == "404":
        shelf.files.clear()
    elif trouble == "503":
        shelf.status = 503
    else:
        shelf.files["/2009-01.parquet"] = published * 2
        shelf.promised_too_much = 1
    code, _ = run_cli(paths.root, "download", MONTH)
    assert code == (5 if trouble == "404" else 1)
    assert published_files(paths) == before


def test_a_month_that_was_published_anew_takes_the_place_of_the_old_one(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, published: bytes, tmp_path: Path
) -> None:
    paths = make_project(source=shelf.address("/{month}.parquet"))
    newer = factory.write_2009(tmp_path / "newer.parquet", {}).read_bytes()
    for data in (published, newer):
        shelf.files["/2009-01.parquet"] = data
        assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert factory.contents(paths.raw(MONTH)) == {"2009-01.parquet": newer}
    assert manifest(paths)["bytes"] == len(newer)


# ---- addresses and the simulation ----


@pytest.mark.parametrize("scheme", ["ftp", "gs", "sftp"])
def test_a_kind_of_address_that_is_not_fetched_is_a_usage_error(
    run_cli: Run, make_project: MakeProject, scheme: str
) -> None:
    paths = make_project(source=f"{scheme}://example.org/{{month}}.parquet")
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 2
    assert f"tipline does not fetch from {scheme}://; use a path, https or s3" in printed
    assert "params.yaml" in printed
    refused(printed, paths)


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
    home = tmp_path / "project"
    assert source.format_address(written, MONTH, home) == meant.replace("/home/me", str(tmp_path))


def test_a_simulated_month_has_a_receipt_of_what_made_it(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project(demo={"rows": 500, "seed": 7})
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    (path,) = paths.raw(MONTH).iterdir()
    assert manifest(paths) == {
        "address": "demo:2009-01?rows=500&seed=7",
        "name": "yellow_tripdata_2009-01.parquet",
        "bytes": path.stat().st_size,
        "sha256": files.hash_file(path),
    }


def test_a_month_that_is_not_simulated_is_not_published(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    code, printed = run_cli(paths.root, "download", "2010-05")
    assert code == 5
    assert "2010-05" in printed
    refused(printed, paths)
