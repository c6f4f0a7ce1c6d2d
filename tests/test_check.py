"""`tipline check` shows how a month would be read, from its header or footer alone."""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import factory, servers
from tipline.paths import Paths

Run = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]

MONTH = "2024-01"


@pytest.fixture
def check(run_cli: Run, make_project: MakeProject) -> Run:
    """Run `tipline check` in a project."""
    return lambda *arguments: run_cli(make_project().root, "check", *map(str, arguments))


def read_fact(printed: str, month: str, name: str) -> str:
    """Return the text after a name, of a month, on one line."""
    blocks = re.split(r"^(?=20\d\d-\d\d  )", printed, flags=re.MULTILINE)
    (block,) = [text for text in blocks if text.startswith(month)]
    found = re.search(rf"^  {name} +(.*(?:\n {{11}}.*)*)", block, flags=re.MULTILINE)
    assert found, block
    return " ".join(found[1].split())


def test_a_footer_shows_rows_columns_and_types(check: Run, tmp_path: Path) -> None:
    factory.write_tpep(tmp_path / "m" / f"{MONTH}.parquet", {}, {"weather": 1}, weather=pa.int64())
    code, printed = check(f"{tmp_path}/m/{{month}}.parquet", MONTH)
    assert code == 0
    assert re.match(rf"{MONTH}  Parquet, [\d,]+ bytes, 2 rows in 1 row group\n", printed)
    assert read_fact(printed, MONTH, "era").startswith("2020-08: the airport fee")
    columns = read_fact(printed, MONTH, "columns").split(", ")
    assert {"vendor = VendorID", "airport_fee = Airport_fee", "trip_distance"} < set(columns)
    assert read_fact(printed, MONTH, "ignored") == "weather"
    assert read_fact(printed, MONTH, "absent") == "trip_type, cbd_congestion_fee"
    assert "VendorID is int32, read as category" in read_fact(printed, MONTH, "retyped")


def test_a_header_shows_columns_and_about_how_many_rows(check: Run, tmp_path: Path, tlc: Path) -> None:
    code, printed = check(f"{tlc}/hour/yellow_tripdata_{{month}}.csv", "2009-01")
    assert code == 0
    title = re.match(r"2009-01  CSV, [\d,]+ bytes, about ([\d,]+) rows\n", printed)
    assert title
    assert int(title[1].replace(",", "")) == pytest.approx(21_242, rel=0.02)
    assert "vendor = vendor_name" in read_fact(printed, "2009-01", "columns")
    assert read_fact(printed, "2009-01", "retyped") == "-"
    code, printed = check(factory.write_csv(tmp_path / "2009-03.csv", [factory.line()] * 3), "2009-03")
    assert (code, printed.splitlines()[0].rpartition(", ")[2]) == (0, "about 3 rows")


def test_check_shows_what_prepare_does(run_cli: Run, make_project: MakeProject, tlc: Path) -> None:
    paths, month = make_project(), "2023-02"
    path = tlc / "green" / f"green_tripdata_{month}.parquet"
    paths.raw(month).mkdir(parents=True)
    (paths.raw(month) / path.name).write_bytes(path.read_bytes())
    assert run_cli(paths.root, "prepare", month)[0] == 0
    manifest = factory.manifest_of(paths.prepared(month))
    printed = run_cli(paths.root, "check", str(path), month)[1]
    assert f"{manifest['rows_in']:,} rows" in printed
    assert read_fact(printed, month, "era").startswith(manifest["era"])
    names = {key: column["name"] for key, column in manifest["mapping"]["columns"].items()}
    pairs = (text.partition(" = ") for text in read_fact(printed, month, "columns").split(", "))
    assert {key: name or key for key, _, name in pairs} == names


def test_only_the_ends_of_a_remote_month_are_fetched_and_a_server_without_ranges_is_told(
    check: Run, tmp_path: Path
) -> None:
    large = factory.write_tpep(tmp_path / "large.parquet", *({"fare_amount": row / 7} for row in range(60_000)))
    pq.write_table(pq.read_table(large), large, compression="none", use_dictionary=False, row_group_size=20_000)
    groups = factory.write_tpep(tmp_path / "m.parquet", *[{}] * 600)
    pq.write_table(pq.read_table(groups), groups, row_group_size=2)
    lines = "\r\n".join([",".join(factory.RAW_2009), "", *[factory.line()] * 50_000])
    with servers.shelf() as shelf:
        shelf.files = {"/2009-01": lines.encode(), f"/{MONTH}": large.read_bytes(), "/2024-02": groups.read_bytes()}
        code, printed = check(shelf.address("/{month}"), MONTH)
        assert (code, len(shelf.list_ranges())) == (0, 2)
        assert "60,000 rows in 3 row groups" in printed
        assert shelf.count_sent_bytes() <= 2**17 < large.stat().st_size / 20
        code, printed = check(shelf.address("/{month}"), "2024-02")
        assert (code, len(shelf.list_ranges())) == (0, 5)  # a long footer is fetched whole
        assert "600 rows in 300 row groups" in printed
        shelf.has_ranges = False
        code, printed = check(shelf.address("/{month}"), "2009-01", MONTH)
    assert code == 4
    assert re.search(r"about (49|50),\d\d\d rows", printed)
    assert f"{MONTH}  cannot be previewed" in printed


def test_each_month_is_shown_by_itself_and_the_exit_code_is_for_all(check: Run, tmp_path: Path) -> None:
    source = f"{tmp_path}/m/{{month}}"
    table = pq.read_table(factory.write_tpep(tmp_path / "m" / MONTH, {}))
    pq.write_table(table.drop_columns(["payment_type"]), tmp_path / "m" / "2024-02")
    code, printed = check(source, MONTH, "2024-02", "2024-03")
    assert code == 4
    for line in (f"{MONTH}  Parquet", "2024-02  cannot be prepared", "2024-03  not published"):
        assert line in printed
    assert "payment_type (as Payment_Type)" in printed
    assert [check(source, *months)[0] for months in ((MONTH, "2024-03"), ("2024-02",))] == [5, 1]
    assert not (tmp_path / "project" / "data").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!doctype html><title>no</title>", "web page"),
        (b"\x00\x01\x02" * 100, "neither a Parquet file nor a CSV"),
        (b"PAR1" + b"\xff" * 500 + b"\xff\xff\xff\x7fPAR1", "cannot be read"),
        (b"a,b\r\n1,2\r\n", "lacks columns"),
        (b"", "neither a Parquet file nor a CSV"),
        (b"vendor_name,\xff\xfe\r\n", "not UTF-8"),
    ],
)
def test_a_file_that_is_not_a_month(check: Run, tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "month").write_bytes(data)
    code, printed = check(tmp_path / "month", MONTH)
    assert code == 1
    assert words in printed
    assert "to do:" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", MONTH), "address with {month}"),
        (("/tmp/month.csv", MONTH, "2024-02"), "{month}"),  # noqa: S108 (never opened)
        (("/tmp/{month}", "2024-13"), "not a month"),  # noqa: S108
        (("ftp://127.0.0.1/{month}", MONTH), "ftp"),
    ],
)
def test_a_source_or_month_that_makes_no_sense_is_a_usage_error(
    check: Run, arguments: tuple[str, ...], words: str
) -> None:
    code, printed = check(*arguments)
    assert code == 2
    assert words in printed
