"""`tipline check` shows how a month would be read, from its first rows, and drafts a schema from them."""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import factory, servers, workbench
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
    found = re.search(rf"^  {name} +(.*)", block, flags=re.MULTILINE)
    assert found, block
    return " ".join(found[1].split())


def test_a_month_of_parquet_is_shown_with_what_its_columns_become(check: Run, tmp_path: Path) -> None:
    factory.write_tpep(tmp_path / "m" / f"{MONTH}.parquet", {}, {"weather": 1, "payment_type": 9}, weather=pa.int64())
    code, printed = check(f"{tmp_path}/m/{{month}}.parquet", MONTH)
    assert code == 0
    assert re.match(rf"{MONTH}  Parquet, [\d,]+ bytes, 2 rows in 1 row group\n", printed)
    assert read_fact(printed, MONTH, "era").startswith("2020-08: the airport fee")
    assert read_fact(printed, MONTH, "vendor") == "category VendorID, int32: '2' -> VTS"
    time = "timestamp tpep_pickup_datetime, timestamp[us]: '2024-01-31 23:59:59.000000' -> 2024-01-31 23:59:59.000000"
    assert read_fact(printed, MONTH, "pickup_datetime") == time
    assert read_fact(printed, MONTH, "quarantined") == "0 of the first 2 rows"
    assert read_fact(printed, MONTH, "unknown") == "payment_type: 9 (1)"
    assert read_fact(printed, MONTH, "ignored") == "weather"
    assert read_fact(printed, MONTH, "absent") == "trip_type, cbd_congestion_fee"


def test_a_month_of_csv_is_shown_with_what_cannot_be_read(check: Run, tmp_path: Path, tlc: Path) -> None:
    code, printed = check(f"{tlc}/hour/yellow_tripdata_{{month}}.csv", "2009-01")
    assert code == 0
    title = re.match(r"2009-01  CSV, [\d,]+ bytes, about ([\d,]+) rows\n", printed)
    assert title
    assert int(title[1].replace(",", "")) == pytest.approx(21_242, rel=0.02)
    assert read_fact(printed, "2009-01", "quarantined") == "0 of the first 1,000 rows"
    lines = [factory.line(Fare_Amt="7,70"), factory.line(Trip_Pickup_DateTime="31/01/2009 1:02:03 PM"), factory.line()]
    code, printed = check(factory.write_csv(tmp_path / "2009-03.csv", [*lines, *lines[1:2]]), "2009-03")
    assert (code, read_fact(printed, "2009-03", "quarantined")) == (0, "3 of the first 4 rows")
    for words in (
        "pickup_datetime is not a time: 2 rows, for example '31/01/2009 1:02:03 PM'; accepted: 2009-01-31 23:59:59",
        "in the schema, pickup_datetime: {type: timestamp, formats: ['%d/%m/%Y %I:%M:%S %p']}",
        "number of fields is not the header's: 1 row",
    ):
        assert words in printed


def test_check_shows_what_prepare_does(run_cli: Run, make_project: MakeProject, tlc: Path) -> None:
    month = "2023-02"
    paths = make_project(months=[*workbench.MONTHS, month])
    path = tlc / "green" / f"green_tripdata_{month}.parquet"
    paths.raw(month).mkdir(parents=True)
    (paths.raw(month) / path.name).write_bytes(path.read_bytes())
    assert run_cli(paths.root, "prepare", month)[0] == 0
    manifest = factory.manifest_of(paths.prepared(month))
    printed = run_cli(paths.root, "check", str(path), month)[1]
    assert f"{manifest['rows_in']:,} rows" in printed
    assert read_fact(printed, month, "era").startswith(manifest["era"])
    for key, column in manifest["mapping"]["columns"].items():
        assert f" {column['name']}, {column['type']}: " in read_fact(printed, month, key)


def test_only_the_first_rows_of_a_remote_month_are_fetched_and_a_server_without_ranges_is_told(
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
        assert code == 0
        assert "60,000 rows in 3 row groups" in printed
        assert 0 < shelf.count_sent_bytes() < large.stat().st_size / 2
        code, printed = check(shelf.address("/{month}"), "2024-02")
        assert code == 0
        assert "600 rows in 300 row groups" in printed
        shelf.has_ranges = False
        code, printed = check(shelf.address("/{month}"), "2009-01", MONTH)
    assert code == 4
    assert re.search(r"about (49|50),\d\d\d rows", printed)
    assert f"{MONTH}  The server sends whole files only" in printed


def test_each_month_is_shown_by_itself_and_the_exit_code_is_for_all(check: Run, tmp_path: Path) -> None:
    source = f"{tmp_path}/m/{{month}}"
    table = pq.read_table(factory.write_tpep(tmp_path / "m" / MONTH, {}))
    pq.write_table(table.drop_columns(["payment_type"]), tmp_path / "m" / "2024-02")
    code, printed = check(source, MONTH, "2024-02", "2024-03")
    assert code == 4
    for line in (f"{MONTH}  Parquet", "2024-02  The month lacks columns", "2024-03  The source does not have"):
        assert line in printed
    assert "payment_type (as Payment_Type)" in printed
    assert [check(source, month)[0] for month in ("2024-02", "2024-03")] == [1, 5]
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
        (b'vendor_name,"open\r\n', "unexpected end of data"),
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
