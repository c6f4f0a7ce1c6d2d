"""A published month is fetched whole, with a manifest, or not at all, with a reason."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import servers, workbench
from tests.workbench import read_json, read_tree
from tipline import files
from tipline.errors import TiplineError
from tipline.ingest import source, transfer
from tipline.paths import Paths

RunCli = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]

pytestmark = pytest.mark.usefixtures("_short_pauses")
MONTH = "2009-01"
CSV, NEW_CSV = b"a,b\n1,2\n" * 1000, b"a,b\n3,4\n" * 2000
PAGE = b"<!DOCTYPE html>\n<html><body>Sign in, please</body></html>\n"


@pytest.fixture
def shelf() -> Iterator[servers.Shelf]:
    """A web server without HEAD that has one month."""
    with servers.shelf() as server:
        server.files[f"/{MONTH}.csv"] = CSV
        yield server


def read_data(paths: Paths) -> dict[str, bytes]:
    """All files below data/ but unfinished downloads and locks."""
    return {name: data for name, data in read_tree(paths.root / "data").items() if not name.startswith(".staging/")}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("store/{month}.csv", "/home/me/project/store/2009-01.csv"),
        ("file:///store/{month}.csv", "/store/2009-01.csv"),
        ("https://example.org/{month}.parquet?v=1", "https://example.org/2009-01.parquet?v=1"),
        ("HTTPS://Example.org/{month}", "https://Example.org/2009-01"),
        ("s3://bucket/{month}/a b.csv", "s3://bucket/2009-01/a b.csv"),
    ],
)
def test_addresses_are_filled_in(tmp_path: Path, written: str, meant: str) -> None:
    assert source.format_address(written, MONTH, tmp_path / "project") == meant.replace("/home/me", str(tmp_path))


@pytest.mark.parametrize("beginning", ["../", "file://{tmp_path}/"])
def test_a_local_file_is_copied(run_cli: RunCli, make_project: MakeProject, tmp_path: Path, beginning: str) -> None:
    path = tmp_path / "run #1" / "2009-01#1?a.csv"
    path.parent.mkdir()
    path.write_bytes(CSV)
    paths = make_project(source=beginning.replace("{tmp_path}", str(tmp_path)) + "run #1/{month}#1?a.csv")
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert read_tree(paths.raw(MONTH)) == {path.name: CSV}
    shown = "../run #1/2009-01#1?a.csv" if beginning == "../" else str(path)
    expected = {"address": shown, "name": path.name, "bytes": len(CSV), "sha256": files.hash_file(path)}
    assert read_json(paths.raw_manifest(MONTH)) == expected


def test_in_a_temporary_experiment_a_relative_path_starts_at_the_project(
    run_cli: RunCli, make_project: MakeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "2009-01.csv").write_bytes(CSV)
    paths = make_project(source="../{month}.csv")
    copied = paths.root / ".dvc" / "tmp" / "exps" / "one"
    (copied / ".dvc").mkdir(parents=True)
    (copied / "dvc.yaml").touch()
    for name in ("params.yaml", "features.py"):
        shutil.copyfile(paths.root / name, copied / name)
    monkeypatch.setenv("DVC_ROOT", str(paths.root))
    assert run_cli(copied, "download", MONTH)[0] == 0
    assert (copied / "data" / "raw" / MONTH / "2009-01.csv").is_file()


@pytest.mark.parametrize(
    ("pattern", "code", "what"),
    [
        ("../store/{month}.parquet", 5, "store/2009-01.parquet"),
        ("../stoer/{month}.parquet", 1, "project/../stoer"),
        ("../store/folder-{month}", 5, "does not have this month"),
        ("../store/{month}*.csv", 5, "does not have this month"),
        ("demo", 5, "2010-05"),
        ("http://127.0.0.1:99999/{month}", 1, "http://127.0.0.1:99999/2009-01"),
        ("http://127.0.0.1:9/{month}", 1, "http://127.0.0.1:9/2009-01"),
    ],
)
def test_a_month_that_is_missing_and_a_source_that_cannot_be_reached_are_named(
    run_cli: RunCli, make_project: MakeProject, tmp_path: Path, pattern: str, code: int, what: str
) -> None:
    (tmp_path / "store" / "folder-2009-01").mkdir(parents=True)
    months = [*workbench.MONTHS, "2010-05"]
    paths = make_project(source=pattern, months=months)
    ended, printed = run_cli(paths.root, "download", "2010-05" if pattern == "demo" else MONTH)
    assert ended == code
    assert what in printed
    assert [word in printed for word in ("Traceback", "defect", "to do:")] == [False, False, True]
    assert read_data(paths) == {}


@pytest.mark.parametrize("pattern", ["/t/{month}.csv", "/?month={month}", "/get?month={month}", "/{month}"])
def test_a_month_is_fetched_from_a_server(
    run_cli: RunCli, make_project: MakeProject, shelf: servers.Shelf, pattern: str
) -> None:
    path = pattern.replace("{month}", MONTH)
    paths = make_project(source=shelf.address(pattern).replace("http", "HTTP"))
    for shelf.files[path] in (CSV, NEW_CSV):
        assert run_cli(paths.root, "download", MONTH)[0] == 0
        data = shelf.files[path]
        (file,) = paths.raw(MONTH).iterdir()
        assert file.read_bytes() == data
        known = {"address": shelf.address(path), "name": file.name, "bytes": len(data), "sha256": files.hash_file(file)}
        upstream = {"size": len(data), "version": servers.etag(data), "modified": None}
        assert read_json(paths.raw_manifest(MONTH)) == known | {"upstream": upstream}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda paths: (paths.raw(MONTH) / f"{MONTH}.csv").write_bytes(NEW_CSV),
        lambda paths: shutil.rmtree(paths.raw(MONTH)),
        lambda paths: paths.raw_manifest(MONTH).write_bytes(b"{\xff"),
        {"address": "elsewhere"},
        {"name": "../../params.yaml"},
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
    assert run_cli(paths.root, "download")[0] == 4  # of the other months, the server has none
    assert read_data(paths) == before


pq.write_table(pa.table({"a": [1]}), parquet := pa.BufferOutputStream())
PARQUET = parquet.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "bad", "what"),
    [
        ("2009-01.parquet", PAGE, "This is a web page"),
        ("2009-01.csv", b"\xef\xbb\xbf\r\n\r\n" + PAGE, "This is a web page"),
        ("2009-01.csv", b"<?xml version='1.0'?><Error>, denied</Error>", "This is a web page"),
        ("2009-01", PARQUET[:-1], "damaged or cut off"),
        ("2009-01.csv", b"PK\x03\x04\x00\x00, , ,", "neither a Parquet file nor a CSV"),
        ("2009-01.csv", b"", "neither a Parquet file nor a CSV"),
        ("2009-01.csv", b"to be published soon\n", "neither a Parquet file nor a CSV"),
        ("2009-01.csv", 404, "does not have this month"),
        ("2009-01.csv", 503, "503 Service Unavailable"),
    ],
)
def test_a_file_that_is_no_month_is_refused_and_an_earlier_download_stays(
    run_cli: RunCli, make_project: MakeProject, shelf: servers.Shelf, name: str, bad: bytes | int, what: str
) -> None:
    paths = make_project(source=shelf.address("/" + name.replace(MONTH, "{month}")))
    for _ in range(2):
        kept = read_data(paths)
        shelf.status = bad if isinstance(bad, int) else 200
        shelf.files[f"/{name}"] = bad if isinstance(bad, bytes) else CSV
        code, printed = run_cli(paths.root, "download", MONTH)
        assert code == (5 if bad == 404 else 1)
        assert what in printed
        assert shelf.address(f"/{name}") in printed
        assert read_data(paths) == kept
        shelf.status, shelf.files[f"/{name}"] = 200, PARQUET if name.endswith("parquet") else CSV
        assert run_cli(paths.root, "download", MONTH)[0] == 0


@pytest.mark.parametrize("address", ["http://me:0ff1ce@{server}/a.csv?sig=0ff1ce", "http://me:0ff1ce@/a.csv"])
def test_secrets_in_an_address_are_sent_but_not_written(
    shelf: servers.Shelf, tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.files["/a.csv?sig=0ff1ce"], shelf.cut_after = CSV, 1000
    address = address.replace("{server}", f"127.0.0.1:{shelf.server_address[1]}")
    with pytest.raises(TiplineError, match="could not be fetched") as raised:
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
