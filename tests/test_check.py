"""`tipline check` says how a month would be understood, from its header or footer alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import factory, servers
from tipline.ingest import prepare, transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

MONTH = "2024-01"


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def shelf() -> Iterator[servers.Shelf]:
    with servers.shelf() as running:
        yield running


def large_month(folder: Path, rows: int = 60_000) -> bytes:
    """Give a month of today's format of some megabytes."""
    path = factory.write_tpep(folder / "large.parquet", *({"fare_amount": row / 7} for row in range(rows)))
    pq.write_table(pq.read_table(path), path, compression="none", use_dictionary=False, row_group_size=rows // 3)
    return path.read_bytes()


def part(printed: str, month: str, name: str) -> str:
    """What is said under a name, of a month, on one line."""
    block = re.split(r"^(?=20\d\d-\d\d  )", printed, flags=re.MULTILINE)
    (mine,) = [text for text in block if text.startswith(month)]
    found = re.search(rf"^  {name} +(.*(?:\n {{11}}.*)*)", mine, flags=re.MULTILINE)
    assert found, mine
    return " ".join(found[1].split())


def test_a_footer_tells_rows_columns_and_types(run_cli: Run, make_project: MakeProject, tmp_path: Path) -> None:
    factory.write_tpep(tmp_path / "m" / f"{MONTH}.parquet", {}, {"weather": 1}, weather=pa.int64())
    code, printed = run_cli(make_project().root, "check", f"{tmp_path}/m/{{month}}.parquet", MONTH)
    assert code == 0
    assert re.match(rf"{MONTH}  Parquet, [\d.]+ kB, 2 rows in 1 row group\n", printed)
    assert part(printed, MONTH, "era").startswith("2020-08: the airport fee")
    columns = part(printed, MONTH, "columns").split(", ")
    assert {"vendor = VendorID", "pickup_datetime = tpep_pickup_datetime", "airport_fee = Airport_fee"} < set(columns)
    assert "trip_distance" in columns
    assert part(printed, MONTH, "added") == "weather: left behind"
    assert part(printed, MONTH, "lost") == "trip_type, cbd_congestion_fee"
    assert "VendorID is int32, read as category" in part(printed, MONTH, "retyped")
    assert part(printed, MONTH, "fetched") == "no"
    assert part(printed, MONTH, "scoring").startswith("2 rows in 1 part,")


def test_a_header_tells_columns_and_about_how_many_rows(
    run_cli: Run, make_project: MakeProject, tmp_path: Path, tlc: Path
) -> None:
    source = f"{tlc}/hour/yellow_tripdata_{{month}}.csv"
    code, printed = run_cli(make_project().root, "check", source, "2009-01")
    assert code == 0
    told = re.match(r"2009-01  CSV, 2\.\d MB, about ([\d,]+) rows\n", printed)
    assert told
    assert int(told[1].replace(",", "")) == pytest.approx(21_242, rel=0.02)
    assert part(printed, "2009-01", "era").startswith("2009-01: ")
    assert "vendor = vendor_name" in part(printed, "2009-01", "columns")
    small = factory.write_csv(tmp_path / "2009-03.csv", [factory.line()] * 3)
    code, printed = run_cli(make_project().root, "check", str(small), "2009-03")
    assert (code, printed.splitlines()[0]) == (0, "2009-03  CSV, 0.6 kB, about 3 rows")


def test_what_check_says_is_what_prepare_does(run_cli: Run, make_project: MakeProject, tlc: Path) -> None:
    paths = make_project()
    for month in ("2022-01", "2023-02", "2024-01"):
        path = tlc / "green" / f"green_tripdata_{month}.parquet"
        paths.raw(month).mkdir(parents=True)
        (paths.raw(month) / path.name).write_bytes(path.read_bytes())
        assert run_cli(paths.root, "prepare", month)[0] == 0
        manifest = factory.manifest_of(paths.prepared(month))
        printed = run_cli(paths.root, "check", str(path), month)[1]
        assert f"{manifest['rows_in']:,} rows" in printed
        assert part(printed, month, "era").startswith(manifest["era"])
        named = {key: column["name"] for key, column in manifest["mapping"]["columns"].items()}
        told = (text.partition(" = ") for text in part(printed, month, "columns").split(", "))
        assert {key: name or key for key, _, name in told} == named


def test_only_the_ends_of_a_remote_month_are_fetched(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, tmp_path: Path
) -> None:
    data = large_month(tmp_path)
    shelf.files = {f"/{MONTH}.parquet": data, "/2009-01.csv": (tmp_path / "x").name.encode()}
    code, printed = run_cli(make_project().root, "check", shelf.address("/{month}.parquet"), MONTH)
    assert code == 0
    assert "60,000 rows in 3 row groups" in printed
    assert len(shelf.log) == 2
    assert sum(request.sent for request in shelf.log) <= 2**17 < len(data) / 20


def test_a_long_footer_is_fetched_whole(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, tmp_path: Path
) -> None:
    path = factory.write_tpep(tmp_path / "m.parquet", *[{}] * 600)
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    shelf.files = {"/m": path.read_bytes()}
    code, printed = run_cli(make_project().root, "check", shelf.address("/m"), MONTH)
    assert (code, len(shelf.log)) == (0, 3)
    assert "600 rows in 300 row groups" in printed


def test_a_csv_file_is_read_from_a_server_that_has_no_ranges(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf
) -> None:
    lines = "\r\n".join([",".join(factory.RAW_2009), "", *[factory.line()] * 50_000])
    shelf.files = {"/2009-01": lines.encode()}
    shelf.has_ranges = False
    code, printed = run_cli(make_project().root, "check", shelf.address("/{month}"), "2009-01")
    assert code == 0
    assert re.search(r"about (49,99\d|50,00\d) rows", printed)


def test_a_parquet_file_on_a_server_that_has_no_ranges_is_not_fetched_for_its_footer(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, tmp_path: Path
) -> None:
    shelf.files = {"/m": large_month(tmp_path)}
    shelf.has_ranges = False
    code, printed = run_cli(make_project().root, "check", shelf.address("/m"), MONTH)
    assert code == 1
    assert "sends whole files only" in printed


def test_a_month_on_s3_is_looked_into(
    run_cli: Run, make_project: MakeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s3"
    folder.mkdir()
    with servers.gateway(folder) as gateway:
        settings = {"AWS_ENDPOINT_URL": f"http://{gateway.place}", "AWS_EC2_METADATA_DISABLED": "true"}
        for name, value in (servers.KEYS | settings).items():
            monkeypatch.setenv(name, value)
        gateway.put("months", f"{MONTH}.parquet", large_month(tmp_path))
        code, printed = run_cli(make_project().root, "check", "s3://months/{month}.parquet", MONTH, "2024-02")
    assert code == 5
    assert "60,000 rows in 3 row groups" in printed
    assert "2024-02  not published" in printed


def test_a_fetched_month_that_has_changed_upstream_is_named_with_what_to_do(
    run_cli: Run, make_project: MakeProject, shelf: servers.Shelf, tmp_path: Path
) -> None:
    address = shelf.address("/{month}.parquet")
    paths = make_project(source=address)
    months = {
        name: factory.write_tpep(tmp_path / name, *({"fare_amount": row} for row in range(rows))).read_bytes()
        for rows, name in ((1, MONTH), (500, "x"))
    }
    shelf.files = {f"/{MONTH}.parquet": months[MONTH]}
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    printed = run_cli(paths.root, "check", address, MONTH)[1]
    assert part(printed, MONTH, "fetched") == "yes, and unchanged upstream"
    shelf.files = {f"/{MONTH}.parquet": months["x"]}
    code, printed = run_cli(paths.root, "check", address, MONTH)
    assert code == 0
    told = part(printed, MONTH, "fetched")
    assert f"CHANGED upstream (bytes {len(months[MONTH])} -> {len(months['x'])}" in told
    assert servers.etag(months["x"]) in told
    assert told.endswith(f"dvc repro -f download@{MONTH}")
    assert run_cli(paths.root, "download", MONTH)[0] == 0
    assert next(paths.raw(MONTH).iterdir()).read_bytes() == months["x"]
    printed = run_cli(paths.root, "check", shelf.address("/other/../{month}.parquet"), MONTH)[1]
    assert "from elsewhere" in printed or "nothing" in printed or "does not have" in printed


def test_each_month_is_told_by_itself_and_the_exit_code_speaks_for_all(
    run_cli: Run, make_project: MakeProject, tmp_path: Path
) -> None:
    paths, source = make_project(), f"{tmp_path}/m/{{month}}"
    factory.write_tpep(tmp_path / "m" / MONTH, {})
    table = pq.read_table(tmp_path / "m" / MONTH)
    pq.write_table(table.drop_columns(["payment_type"]), tmp_path / "m" / "2024-02")
    code, printed = run_cli(paths.root, "check", source, MONTH, "2024-02", "2024-03")
    assert code == 4
    assert f"{MONTH}  Parquet" in printed
    assert "2024-02  cannot be prepared" in printed
    assert "payment_type (as Payment_Type)" in printed
    assert "2024-03  not published" in printed
    assert run_cli(paths.root, "check", source, MONTH, "2024-03")[0] == 5
    assert run_cli(paths.root, "check", source, "2024-02")[0] == 1
    assert run_cli(paths.root, "check", source, "2024-03")[0] == 5
    assert factory.contents(paths.root / "data") == {}


NO_MONTHS = {
    "web page": (b"<!doctype html><title>no</title>", "web page"),
    "binary": (b"\x00\x01\x02" * 100, "neither a Parquet file nor a CSV"),
    "cut Parquet": (b"PAR1" + b"x" * 500, "cannot be read"),
    "footer without end": (b"PAR1" + b"\xff" * 500 + b"\xff\xff\xff\x7fPAR1", "cannot be read"),
    "other table": (b"a,b\r\n1,2\r\n", "lacks columns"),
    "empty": (b"", "neither a Parquet file nor a CSV"),
    "not UTF-8": (b"vendor_name,\xff\xfe\r\n", "not UTF-8"),
}


@pytest.mark.parametrize("case", NO_MONTHS)
def test_what_is_no_month_is_said_to_be_none(
    run_cli: Run, make_project: MakeProject, tmp_path: Path, case: str
) -> None:
    data, words = NO_MONTHS[case]
    (tmp_path / "month").write_bytes(data)
    code, printed = run_cli(make_project().root, "check", str(tmp_path / "month"), MONTH)
    assert code == 1
    assert words in printed
    assert "to do:" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", MONTH), "no address with {month}"),
        (("/tmp/month.csv", MONTH, "2024-02"), "{month}"),  # noqa: S108 (never opened)
        (("/tmp/{month}", "2024-13"), "not a month"),  # noqa: S108
        (("ftp://127.0.0.1/{month}", MONTH), "ftp"),
    ],
)
def test_a_source_or_month_that_makes_no_sense_is_a_usage_error(
    run_cli: Run, make_project: MakeProject, arguments: tuple[str, ...], words: str
) -> None:
    code, printed = run_cli(make_project().root, "check", *arguments)
    assert code == 2
    assert words in printed


def test_the_expected_parts_are_those_that_prepare_writes(
    run_cli: Run, make_project: MakeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "ROW_GROUP_ROWS", 7)
    path = factory.write_tpep(tmp_path / "m", *[{}] * 50)
    printed = run_cli(make_project().root, "check", str(path), MONTH)[1]
    assert part(printed, MONTH, "scoring").startswith("50 rows in 8 parts")
