"""Parquet months in every schema that the TLC ever published give one schema; what cannot be read is refused."""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import factory, parquet_months
from tipline.ingest import prepare
from tipline.ingest.schema import load_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

CONTRACT = load_schema()
MONTH = "2026-02"
MONTHS = parquet_months.years()
BESIDE = [MONTHS[MONTHS.index(month) - 1] for month in parquet_months.CHANGES]
CASES = sorted({"2009-01", "2024-08", *BESIDE, *parquet_months.CHANGES})
# The era of a file is that of its latest names: the files of 2011 on have today's.
ERAS = {"2009-01": "2009-01", "2010-01": "2010-01", "2011-01": "2020-08", "2025-01": "2025-01"}


def made_of(path: Path, month: str = MONTH) -> tuple[dict[str, Any], pa.Table]:
    """Prepare a file; give manifest and trips."""
    folder = path.parent / f"{path.stem} made"
    folder.mkdir()
    return prepare.prepare_month(path, folder, CONTRACT, month), pq.read_table(folder / "trips.parquet")


def tpep_of(folder: Path, rows: list[dict[str, Any]], types: Mapping[str, pa.DataType]) -> tuple[Any, pa.Table]:
    """Prepare rows of today with columns of these types."""
    return made_of(factory.write_tpep(folder / "month.parquet", *rows, **types))


def values(rows: pa.Table, name: str) -> list[Any]:
    """A column as Python has it."""
    found: list[Any] = rows[name].to_pylist()
    return found


# ---- the schemas of the official months ----


def test_every_change_of_the_table_is_a_case_with_both_its_sides() -> None:
    schemas = {month: parquet_months.table(month).schema for month in MONTHS}
    changed = [after for before, after in itertools.pairwise(MONTHS) if not schemas[before].equals(schemas[after])]
    assert changed == parquet_months.CHANGES
    assert len(CASES) >= len(changed) + 1


@pytest.mark.parametrize("month", CASES)
def test_the_same_trips_come_out_of_each_months_schema(tmp_path: Path, month: str) -> None:
    path = parquet_months.write(tmp_path / "month.parquet", month)
    manifest, rows = made_of(path, month)
    assert rows.to_pylist() == [{name: trip[name] for name in rows.column_names} for trip in canonical(month)]
    assert rows.schema.equals(CONTRACT.schema)
    assert (manifest["rows_in"], manifest["rows_out"], manifest["quarantined"]) == (5, 5, 0)
    assert manifest["filled"] == {"payment_type": 1}
    assert manifest["out_of_range"] == {"fare_amount": 1}
    assert (manifest["outside_month"], manifest["unknown_aliases"], manifest["unknown_columns"]) == (0, {}, [])


@pytest.mark.parametrize("month", CASES)
def test_the_receipt_names_era_and_published_types_of_each_schema(tmp_path: Path, month: str) -> None:
    manifest, _ = made_of(parquet_months.write(tmp_path / "month.parquet", month), month)
    assert manifest["era"] == ERAS[max(since for since in ERAS if since <= month)]
    names, types = parquet_months.names(month), parquet_months.types(month)
    assert manifest["mapping"]["columns"] == {
        column: {"name": names[column], "type": str(types[column])}
        for column in names
        if column not in parquet_months.LEFT_BEHIND
    }


def canonical(month: str) -> list[dict[str, Any]]:
    """The trips of a month, with nothing for columns that come later."""
    return [dict.fromkeys(CONTRACT.columns) | trip for trip in parquet_months.canonical(month)]


@pytest.mark.parametrize("month", ["2009-01", "2010-02", "2014-08", "2018-07", "2023-02", "2025-01"])
@pytest.mark.parametrize(
    "options",
    [
        {"store_schema": False},
        {"store_schema": False, "use_deprecated_int96_timestamps": True},
        {"version": "1.0", "data_page_version": "1.0", "compression": "gzip"},
        {"row_group_size": 2, "use_dictionary": False, "data_page_version": "2.0"},
    ],
    ids=["no arrow schema", "int96", "1.0", "row groups of 2"],
)
def test_other_writers_of_parquet_make_no_difference(tmp_path: Path, month: str, options: dict[str, Any]) -> None:
    _, rows = made_of(parquet_months.write(tmp_path / "month.parquet", month, **options), month)
    assert rows.to_pylist() == [{name: trip[name] for name in rows.column_names} for trip in canonical(month)]


def test_all_schemas_are_one_dataset_once_they_are_prepared(tmp_path: Path) -> None:
    for month in CASES:
        folder = tmp_path / "trips" / f"month={month}"
        folder.mkdir(parents=True)
        path = parquet_months.write(tmp_path / f"{month}.parquet", month)
        prepare.prepare_month(path, folder, CONTRACT, month)
    together = pq.read_table(tmp_path / "trips")
    assert len(together) == 5 * len(CASES)
    assert {*together["payment_type"].to_pylist()} == {"credit", "cash", "no charge", "dispute", "unknown"}


def test_a_parquet_month_without_rows_is_an_empty_month(tmp_path: Path) -> None:
    pq.write_table(parquet_months.table("2024-08").slice(0, 0), tmp_path / "month.parquet")
    manifest, rows = made_of(tmp_path / "month.parquet")
    assert (manifest["rows_in"], len(rows)) == (0, 0)
    assert rows.schema.equals(CONTRACT.schema)


# ---- types ----

TEXTS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]
TEXT_COLUMNS: dict[str, tuple[str, list[Any], list[Any]]] = {
    "VendorID": ("vendor", ["1", "CMT", None, " "], ["CMT", "CMT", None, None]),
    "payment_type": ("payment_type", ["CRD", "2", None, ""], ["credit", "cash", "unknown", "unknown"]),
    "fare_amount": ("fare_amount", ["7.70", " 8 ", None, "NaN"], [7.7, 8.0, None, None]),
    "passenger_count": ("passenger_count", ["1", "2.0", None, ""], [1, 2, None, None]),
    "tpep_pickup_datetime": (
        "pickup_datetime",
        ["2024-01-31 23:59:59", "2024-01-31T00:00:01", None, " 2024-01-31 00:00:01 "],
        ["2024-01-31 23:59:59", "2024-01-31 00:00:01", None, "2024-01-31 00:00:01"],
    ),
}


@pytest.mark.parametrize("type_", TEXTS, ids=str)
@pytest.mark.parametrize("column", TEXT_COLUMNS)
def test_text_of_every_type_is_read_as_each_type_of_the_schema(tmp_path: Path, column: str, type_: pa.DataType) -> None:
    name, texts, expected = TEXT_COLUMNS[column]
    manifest, rows = tpep_of(tmp_path, [{column: text} for text in texts], {column: type_})
    found = values(rows, name)
    assert [str(value) if isinstance(value, dt.datetime) else value for value in found] == expected
    assert manifest["quarantined"] == 0
    assert rows.schema.equals(CONTRACT.schema)


NUMBER_TYPES = [
    pa.int8(),
    pa.uint16(),
    pa.int32(),
    pa.uint64(),
    pa.float32(),
    pa.float64(),
    pa.dictionary(pa.int8(), pa.int64()),
    pa.dictionary(pa.int32(), pa.float64()),
]


@pytest.mark.parametrize("type_", NUMBER_TYPES, ids=str)
@pytest.mark.parametrize(
    ("column", "name", "expected"),
    [
        ("VendorID", "vendor", ["CMT", "VTS", None]),
        ("RatecodeID", "rate_code", ["standard", "JFK", None]),
        ("payment_type", "payment_type", ["credit", "cash", "unknown"]),
        ("passenger_count", "passenger_count", [1, 2, None]),
        ("PULocationID", "pickup_location_id", [1, 2, None]),
        ("fare_amount", "fare_amount", [1.0, 2.0, None]),
    ],
)
def test_numbers_of_every_type_are_read(
    tmp_path: Path, type_: pa.DataType, column: str, name: str, expected: list[Any]
) -> None:
    manifest, rows = tpep_of(tmp_path, [{column: value} for value in (1, 2, None)], {column: type_})
    assert values(rows, name) == expected
    assert (manifest["quarantined"], manifest["unknown_aliases"]) == (0, {})


@pytest.mark.parametrize("type_", [pa.int64(), pa.float64(), pa.dictionary(pa.int8(), pa.float64())], ids=str)
def test_long_numbers_of_a_category_are_told_apart_whatever_their_type(tmp_path: Path, type_: pa.DataType) -> None:
    codes = [1_234_567, 1_234_568, 10_000_000, None]
    manifest, rows = tpep_of(tmp_path, [{"VendorID": code} for code in codes], {"VendorID": type_})
    assert values(rows, "vendor") == ["1234567", "1234568", "10000000", None]
    assert manifest["unknown_aliases"] == {"vendor: 1234567": 1, "vendor: 1234568": 1, "vendor: 10000000": 1}


@pytest.mark.parametrize("type_", [pa.decimal128(10, 2), pa.decimal256(40, 2), pa.decimal128(18, 4)], ids=str)
def test_decimal_amounts_are_read_to_the_cent(tmp_path: Path, type_: pa.DataType) -> None:
    amounts = [decimal.Decimal("7.70"), decimal.Decimal("-2.50"), decimal.Decimal("429490.21"), None]
    _, rows = tpep_of(tmp_path, [{"fare_amount": amount} for amount in amounts], {"fare_amount": type_})
    assert values(rows, "fare_amount") == [7.7, -2.5, 429490.21, None]


def test_decimal_counts_are_read_and_those_that_are_no_whole_number_set_apart(tmp_path: Path) -> None:
    counts = [decimal.Decimal("1.00"), decimal.Decimal("1.50"), None]
    rows_in = [{"passenger_count": count} for count in counts]
    manifest, rows = tpep_of(tmp_path, rows_in, {"passenger_count": pa.decimal128(10, 2)})
    assert values(rows, "passenger_count") == [1, None]
    assert manifest["quarantined_by_reason"] == {"passenger_count is not a whole number": 1}


NOON = dt.datetime.fromisoformat("2024-01-31 12:34:56")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("type_", ["plain", "America/New_York", "UTC"])
def test_times_are_the_wall_clock_of_their_zone(tmp_path: Path, unit: str, type_: str) -> None:
    # 12:34:56 of that zone; a file that says UTC is taken at its word.
    zone = None if type_ == "plain" else type_
    times = pa.array([NOON, None], pa.timestamp("us"))
    if zone:
        times = pa.compute.assume_timezone(times, zone)
    table = pa.Table.from_pylist([factory.RAW_TPEP] * 2, schema=pa.schema(list(factory.TYPES_TPEP.items())))
    table = table.set_column(1, "tpep_pickup_datetime", times.cast(pa.timestamp(unit, zone)))
    pq.write_table(table, tmp_path / "month.parquet")
    manifest, rows = made_of(tmp_path / "month.parquet")
    assert values(rows, "pickup_datetime") == [NOON, None]
    assert manifest["quarantined"] == 0


@pytest.mark.parametrize("type_", [pa.date32(), pa.date64()], ids=str)
def test_a_date_is_its_midnight(tmp_path: Path, type_: pa.DataType) -> None:
    _, rows = tpep_of(tmp_path, [{"tpep_pickup_datetime": NOON.date()}, {}], {"tpep_pickup_datetime": type_})
    assert values(rows, "pickup_datetime")[0] == dt.datetime.combine(NOON.date(), dt.time())


@pytest.mark.parametrize("column", ["tpep_dropoff_datetime", "passenger_count", "fare_amount", "VendorID"])
def test_a_column_of_no_type_is_nothing_but_missing(tmp_path: Path, column: str) -> None:
    manifest, rows = tpep_of(tmp_path, [{column: None}], {column: pa.null()})
    name = {"VendorID": "vendor", "tpep_dropoff_datetime": "dropoff_datetime"}.get(column, column)
    assert values(rows, name) == [None]
    assert manifest["mapping"]["columns"][name]["type"] == "null"


def test_nulls_that_turned_whole_numbers_double_are_missing_and_so_is_nan(tmp_path: Path) -> None:
    names = {"passenger_count": "passenger_count", "RatecodeID": "rate_code", "fare_amount": "fare_amount"}
    odd = [1.0, None, float("nan")]
    manifest, rows = tpep_of(
        tmp_path, [dict.fromkeys(names, value) for value in odd], dict.fromkeys(names, pa.float64())
    )
    assert [values(rows, name)[1:] for name in names.values()] == [[None, None]] * 3
    assert [values(rows, name)[0] for name in names.values()] == [1, "standard", 1.0]
    assert manifest["out_of_range"] == {}


@pytest.mark.parametrize("value", [1.5, 3e9, float("inf"), -float("inf")])
def test_a_double_that_is_no_whole_number_sets_its_row_apart(tmp_path: Path, value: float) -> None:
    manifest, rows = tpep_of(tmp_path, [{}, {"passenger_count": value}], {"passenger_count": pa.float64()})
    assert values(rows, "row") == [0]
    assert manifest["quarantined_by_reason"] == {"passenger_count is not a whole number": 1}


@pytest.mark.parametrize(
    "type_", [pa.struct([("a", pa.int64()), ("fare_amount", pa.int64())]), pa.list_(pa.string())], ids=str
)
def test_an_unknown_column_of_any_type_is_reported_and_does_no_harm(tmp_path: Path, type_: pa.DataType) -> None:
    manifest, rows = tpep_of(tmp_path, [{"weather": None}, {}], {"weather": type_})
    assert manifest["unknown_columns"] == ["weather"]
    assert values(rows, "fare_amount") == [70.0, 70.0]


# ---- refusals ----

NESTED: dict[str, tuple[pa.DataType, Any]] = {
    "list": (pa.list_(pa.float64()), [1.0]),
    "struct": (pa.struct([("a", pa.int64())]), {"a": 1}),
    "map": (pa.map_(pa.string(), pa.int64()), [("a", 1)]),
    "binary": (pa.binary(), b"1"),
    "bool": (pa.bool_(), True),
    "time": (pa.time64("us"), dt.time(1, 2)),
    "duration": (pa.duration("us"), dt.timedelta(seconds=1)),
}
EXPECTED = {
    "VendorID": "the schema's vendor is a category and expects text or numbers",
    "tpep_pickup_datetime": "the schema's pickup_datetime is a timestamp and expects timestamps, dates or text",
    "passenger_count": "the schema's passenger_count is a integer and expects numbers or text",
    "fare_amount": "the schema's fare_amount is a number and expects numbers or text",
}
REFUSED = [(column, kind) for column in EXPECTED for kind in NESTED]
NESTED |= {
    "integer": (pa.int64(), 1_706_745_599),
    "double": (pa.float64(), 1_706_745_599.0),
    "timestamp": (pa.timestamp("us"), NOON),
    "date": (pa.date32(), NOON.date()),
}
REFUSED += [("tpep_pickup_datetime", "integer"), ("tpep_pickup_datetime", "double")]
REFUSED += [
    (column, kind) for column in ("fare_amount", "passenger_count", "VendorID") for kind in ("timestamp", "date")
]


def check_refused(run_cli: Run, paths: Paths, *words: str) -> None:
    """`prepare` refuses the month in these words, and leaves nothing."""
    code, printed = run_cli(paths.root, "prepare", MONTH)
    assert code == 1, printed
    for word in (f"month {MONTH}", *words):
        assert word in printed
    assert "Traceback" not in printed
    assert "TIPLINE_DEBUG" not in printed
    assert factory.contents(paths.root / "data" / "trips") == {}
    assert not paths.prepared(MONTH).exists()
    assert list(paths.staging.rglob("*.parquet")) == []


@pytest.mark.parametrize(("column", "kind"), REFUSED)
def test_a_type_that_cannot_be_read_is_refused_with_what_was_expected(
    run_cli: Run, make_project: MakeProject, column: str, kind: str
) -> None:
    paths = make_project()
    type_, value = NESTED[kind]
    path = factory.write_tpep(paths.raw(MONTH) / "month.parquet", {column: value}, **{column: type_})
    published = str(pq.read_schema(path).field(column).type)
    check_refused(run_cli, paths, f"{column!r} is of type {published[:40]}", EXPECTED[column])


@pytest.mark.parametrize("column", ["VendorID", "tpep_pickup_datetime", "fare_amount", "tip_amount"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_required_column_is_refused_with_its_names(
    run_cli: Run, make_project: MakeProject, column: str, kind: str
) -> None:
    paths = make_project()
    published = {name: value for name, value in factory.RAW_TPEP.items() if name != column}
    if kind == "csv":
        texts = ",".join(str(value) for value in published.values())
        factory.write_csv(paths.raw(MONTH) / "month.csv", [texts], ",".join(published))
    else:
        types = {name: type_ for name, type_ in factory.TYPES_TPEP.items() if name != column}
        factory.write_parquet(paths.raw(MONTH) / "month.parquet", types, [published])
    key = {"VendorID": "vendor", "tpep_pickup_datetime": "pickup_datetime"}.get(column, column)
    names = CONTRACT.names_of(key)
    check_refused(run_cli, paths, f"needs: {key} (as {' or '.join(names)})", f"month.{kind}", "It has: ")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_month_none_of_whose_rows_can_be_read_is_refused(run_cli: Run, make_project: MakeProject, kind: str) -> None:
    paths = make_project()
    rows = [{"Trip_Pickup_DateTime": "15/01/2009 12:00"}] * 3
    if kind == "csv":
        factory.write_csv(paths.raw(MONTH) / "month.csv", [factory.line(**row) for row in rows])
    else:
        factory.write_2009(paths.raw(MONTH) / "month.parquet", *rows)
    check_refused(run_cli, paths, "None of the month's 3 rows can be read", "pickup_datetime is not a time (3 rows)")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_category_with_more_values_than_a_category_has_is_refused(
    run_cli: Run, make_project: MakeProject, kind: str
) -> None:
    paths = make_project()
    rows = [{"Payment_Type": f"word {number}"} for number in range(10_001)]
    if kind == "csv":
        factory.write_csv(paths.raw(MONTH) / "month.csv", [factory.line(**row) for row in rows])
    else:
        factory.write_2009(paths.raw(MONTH) / "month.parquet", *rows)
    check_refused(run_cli, paths, "more than 10,000 different values", "column Payment_Type", "the schema expects")


@pytest.mark.parametrize("rows", [2, 4, 1_000_000])
@pytest.mark.parametrize("group_too", [False, True], ids=["file", "file and row group"])
def test_a_footer_that_lies_about_its_rows_is_refused(
    run_cli: Run,
    make_project: MakeProject,
    rows: int,
    group_too: bool,  # noqa: FBT001
) -> None:
    paths = make_project()
    path = factory.write_tpep(paths.raw(MONTH) / "month.parquet", {}, {}, {})
    lie(path, 3, rows, group_too=group_too)
    assert pq.read_metadata(path).num_rows == rows
    check_refused(run_cli, paths, "cannot be read", "month.parquet")


def lie(path: Path, rows: int, said: int, *, group_too: bool) -> None:
    """Let a footer say another number of rows.

    In Thrift's compact form the count is a field of 64 bits (0x16) after the schema and before the list of one row
    group (0x19 0x1c); the row group's own stands before its file offset (0x26).
    """
    data = path.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[begin:-8]
    footer = replaced(footer, b"\x16" + varint(rows) + b"\x19\x1c", b"\x16" + varint(said) + b"\x19\x1c")
    if group_too:
        footer = replaced(footer, b"\x16" + varint(rows) + b"\x26\x08", b"\x16" + varint(said) + b"\x26\x08")
    path.write_bytes(data[:begin] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    """Replace what is there once."""
    assert data.count(old) == 1
    return data.replace(old, new)


def varint(number: int) -> bytes:
    """A number as Thrift's compact form has it: zigzag, seven bits a byte."""
    left, found = number * 2, bytearray()
    while left >= 128:
        found.append(left % 128 + 128)
        left //= 128
    return bytes([*found, left])
