"""Parquet months in every schema that the TLC has published become one schema; what cannot be read is refused."""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from tests import factory
from tests.factory import COLUMNS, DOUBLE, INT32, INT64, RAW_TPEP, SCHEMA, TYPES_TPEP, prepare_file, prepare_tpep
from tests.fuzzing import encode_number
from tipline.ingest import prepare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

MONTH, TEXT = factory.MONTH, pa.string()

# ---- small months in every schema of the official files, 2009-01 to 2025-01 ----

# The months whose schema differs from that of the month before.
CHANGES = """2010-01 2010-02 2010-04 2011-01 2011-02 2011-03 2011-04 2012-12 2013-01 2013-05 2013-06 2014-01 2014-02
    2014-08 2014-09 2018-01 2018-02 2018-06 2018-07 2018-09 2018-10 2018-11 2018-12 2019-01 2020-08 2020-10 2020-11
    2023-02 2025-01""".split()  # noqa: SIM905 (shorter)
MONTHS = [str(month) for month in pd.period_range("2009-01", "2025-01", freq="M")]
CASES = sorted({"2009-01", "2014-08", *CHANGES, *(MONTHS[MONTHS.index(month) - 1] for month in CHANGES)})
ERAS = {"2009-01": "2009-01", "2010-01": "2010-01", "2011-01": "2020-08", "2025-01": "2025-01"}
# Our name and the published one, in the order of the files.
KEYS_2009 = """vendor pickup_datetime dropoff_datetime passenger_count trip_distance longitude latitude rate_code flag
    to_longitude to_latitude payment_type fare_amount extra mta_tax tip_amount tolls_amount total_amount""".split()  # noqa: SIM905
NAMES_2009 = dict(zip(KEYS_2009, factory.RAW_2009, strict=True))
NAMES_2010 = {key: key for key in KEYS_2009} | {
    "vendor": "vendor_id", "flag": "store_and_fwd_flag", "extra": "surcharge", "longitude": "pickup_longitude",
    "latitude": "pickup_latitude", "to_longitude": "dropoff_longitude", "to_latitude": "dropoff_latitude",
}  # fmt: skip
KEYS_TODAY = """vendor pickup_datetime dropoff_datetime passenger_count trip_distance rate_code flag pickup_location_id
    dropoff_location_id payment_type fare_amount extra mta_tax tip_amount tolls_amount improvement_surcharge
    total_amount congestion_surcharge airport_fee""".split()  # noqa: SIM905
NAMES_TODAY = dict(zip(KEYS_TODAY, RAW_TPEP, strict=True))
WORDS_2009 = {"cash": "CASH", "credit": "Credit", "no charge": "No Charge", "dispute": "Dispute"}
WORDS_EARLY_2010 = {"cash": "Cas", "credit": "CRE", "no charge": "NOC", "dispute": "DIS"}
WORDS_LATE_2010 = {"cash": "CSH", "credit": "CRD", "no charge": "NOC", "dispute": "DIS"}
CODES = {
    "payment_type": {"credit": 1, "cash": 2, "no charge": 3, "dispute": 4},
    "vendor": {"CMT": 1, "VTS": 2},
    "rate_code": {"standard": 1, "JFK": 2, "negotiated": 5},
}
# The first row of each month, then what differs in the others; times are seconds since the month began.
FIRST: dict[str, Any] = {
    "vendor": "CMT", "pickup_datetime": 60, "dropoff_datetime": 660, "passenger_count": 2, "trip_distance": 1.99,
    "longitude": -73.95, "latitude": 40.77, "rate_code": "standard", "flag": None, "to_longitude": -73.96,
    "to_latitude": 40.78, "payment_type": "credit", "fare_amount": 7.7, "extra": 0.5, "mta_tax": 0.5,
    "tolls_amount": 4.15, "improvement_surcharge": 0.3, "congestion_surcharge": 2.5, "airport_fee": 1.25,
    "cbd_congestion_fee": 0.75, "pickup_location_id": 132, "dropoff_location_id": 230, "tip_amount": 1.5,
    "total_amount": 14.35,
}  # fmt: skip
TRIPS = [
    FIRST,
    FIRST | {"payment_type": "cash", "tip_amount": 0.0, "total_amount": 12.85, "vendor": "VTS", "rate_code": "JFK"},
    FIRST | {"payment_type": "no charge", "passenger_count": None, "mta_tax": None, "rate_code": None},
    FIRST | {"payment_type": "dispute", "fare_amount": -7.7, "rate_code": "negotiated", "pickup_location_id": 265},
    # The blank payments from 2019 on, which have blank vendors, too.
    FIRST | {"payment_type": None, "vendor": None, "passenger_count": None, "rate_code": None, "dropoff_datetime": 61},
]


def get_names(month: str) -> dict[str, str]:
    """Our name of each column, and the published one."""
    if month < "2011":
        return NAMES_2009 if month < "2010" else NAMES_2010
    fee = {"airport_fee": "Airport_fee" if month >= "2023-02" else "airport_fee"}
    return NAMES_TODAY | fee | ({"cbd_congestion_fee": "cbd_congestion_fee"} if month >= "2025" else {})


def get_types(month: str) -> dict[str, pa.DataType]:
    """The published type of each column; columns of nothing but nulls had none."""
    types = dict.fromkeys(get_names(month), DOUBLE)
    if month < "2011":
        code = DOUBLE if month < "2010" else INT64 if month in {"2010-02", "2010-03"} else TEXT
        types |= dict.fromkeys(["vendor", "pickup_datetime", "dropoff_datetime", "payment_type"], TEXT)
        return types | {"passenger_count": INT64, "rate_code": code, "flag": DOUBLE if month < "2010" else TEXT}
    congestion = "2011-01 2011-03 2012-12 2013-05 2014-01 2018-01 2018-06 2018-09 2018-11".split()  # noqa: SIM905
    has_airport = month >= "2020-11" or month in {"2011-01", "2018-01", "2020-08", "2020-09"}
    types |= {
        "improvement_surcharge": pa.null() if month == "2014-08" else DOUBLE,
        "congestion_surcharge": DOUBLE if month >= "2019-01" or month in congestion else pa.null(),
        "airport_fee": DOUBLE if has_airport else pa.null(),
        "payment_type": INT64,
        "flag": pa.large_string() if month >= "2023-02" else TEXT,
    }
    types |= dict.fromkeys(["pickup_datetime", "dropoff_datetime"], pa.timestamp("us"))
    ids = INT32 if month >= "2023-02" else INT64
    types |= dict.fromkeys(["vendor", "pickup_location_id", "dropoff_location_id"], ids)
    return types | dict.fromkeys(["passenger_count", "rate_code"], DOUBLE if "2018-07" <= month < "2023-02" else INT64)


def publish(month: str, column: str, value: Any, type_: pa.DataType) -> Any:
    """A value as files of the month have it."""
    if value is None or type_ == pa.null():
        return None
    if column.endswith("datetime"):
        time = dt.datetime.fromisoformat(f"{month}-01") + dt.timedelta(seconds=value)
        return str(time) if type_ == TEXT else time
    if column == "payment_type" and type_ == TEXT:
        return (WORDS_2009 if month < "2010" else WORDS_EARLY_2010 if month < "2010-08" else WORDS_LATE_2010)[value]
    if column in CODES and not (column == "vendor" and type_ == TEXT):
        return str(CODES[column][value]) if type_ == TEXT else CODES[column][value]
    return value


def create_table(month: str) -> pa.Table:
    """TRIPS as a month of its time."""
    columns = {
        get_names(month)[key]: pa.array([publish(month, key, trip[key], type_) for trip in TRIPS], type_)
        for key, type_ in get_types(month).items()
    }
    if month in {"2010-02", "2010-03"}:
        columns["__index_level_0__"] = pa.array(range(len(TRIPS)), INT64)
    return pa.table(columns)


def expect_trips(month: str) -> list[dict[str, Any]]:
    """TRIPS as `prepare` should give them: what the month's schema cannot hold is missing."""
    kept = {key for key, type_ in get_types(month).items() if type_ != pa.null() and key in COLUMNS}
    time = dt.datetime.fromisoformat(f"{month}-01")
    rows = []
    for row, trip in enumerate(TRIPS):
        times = {key: time + dt.timedelta(seconds=trip[key]) for key in ("pickup_datetime", "dropoff_datetime")}
        values = {key: trip[key] if key in kept else None for key in COLUMNS} | times
        rows.append({"row": row} | values | {"payment_type": trip["payment_type"] or "unknown"})
    return rows


def prepare_table(folder: Path, table: pa.Table, month: str = MONTH, **options: Any) -> factory.Prepared:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "month.parquet", **options)
    return prepare_file(folder / "month.parquet", month)


def test_each_change_of_the_schemas_is_tested_on_both_sides() -> None:
    schemas = {month: create_table(month).schema for month in MONTHS}
    assert [b for a, b in itertools.pairwise(MONTHS) if not schemas[a].equals(schemas[b])] == CHANGES


@pytest.mark.parametrize("month", CASES)
def test_the_same_trips_come_out_of_each_months_schema(tmp_path: Path, month: str) -> None:
    made = prepare_table(tmp_path, create_table(month), month)
    manifest, names, types = made.manifest, get_names(month), get_types(month)
    assert made.trips.to_pylist() == expect_trips(month)
    assert made.trips.schema.equals(SCHEMA.arrow_schema)
    assert made.counts == (5, 5, 0)
    assert (manifest["filled"], manifest["out_of_range"]) == ({"payment_type": 1}, {"fare_amount": 1})
    assert (manifest["outside_month"], manifest["unknown_aliases"], manifest["unknown_columns"]) == (0, {}, [])
    # The era of a file is that of its latest names: the files from 2011 on have today's.
    assert manifest["era"] == ERAS[max(since for since in ERAS if since <= month)]
    columns = {key: {"name": names[key], "type": str(types[key])} for key in names if key in COLUMNS}
    assert manifest["mapping"]["columns"] == columns


WRITERS: list[dict[str, Any]] = [
    {"store_schema": False, "use_deprecated_int96_timestamps": True},
    {"version": "1.0", "data_page_version": "1.0", "compression": "gzip"},
    {"row_group_size": 2, "use_dictionary": False, "data_page_version": "2.0"},
]


@pytest.mark.parametrize("month", ["2009-01", "2010-02", "2014-08", "2018-07", "2025-01"])
@pytest.mark.parametrize("options", WRITERS, ids=["int96", "1.0", "row groups of 2"])
def test_other_writers_of_parquet_make_no_difference(tmp_path: Path, month: str, options: dict[str, Any]) -> None:
    assert prepare_table(tmp_path, create_table(month), month, **options).trips.to_pylist() == expect_trips(month)


def test_an_empty_month_is_prepared(tmp_path: Path) -> None:
    made = prepare_table(tmp_path, create_table("2024-08").slice(0, 0))
    assert (made.counts, len(made.trips)) == ((0, 0, 0), 0)
    assert made.trips.schema.equals(SCHEMA.arrow_schema)


# ---- three official green months ----

GREEN = {"2022-01": 62_495, "2023-02": 64_809, "2024-01": 56_551}
SAME = """trip_distance fare_amount extra mta_tax tolls_amount tip_amount total_amount improvement_surcharge
    congestion_surcharge passenger_count""".split()  # noqa: SIM905
MOVED = {"lpep_pickup_datetime": "pickup_datetime", "lpep_dropoff_datetime": "dropoff_datetime"}
MOVED |= {"PULocationID": "pickup_location_id", "DOLocationID": "dropoff_location_id"}
RATES = ["standard", "JFK", "Newark", "Nassau or Westchester", "negotiated", "group"]
WORDS: dict[str, tuple[str, dict[Any, Any]]] = {
    "payment_type": ("payment_type", dict(enumerate(["credit", "cash", "no charge", "dispute", "unknown"], 1))),
    "VendorID": ("vendor", {1: "CMT", 2: "VTS", 6: "Myle"}),
    "RatecodeID": ("rate_code", dict(enumerate(RATES, 1)) | {99: "unknown"}),
    "trip_type": ("trip_type", {1: "street hail", 2: "dispatch"}),
}


@pytest.mark.parametrize("month", GREEN)
def test_a_green_month_comes_out_row_by_row(tlc: Path, tmp_path: Path, month: str) -> None:
    published = pq.read_table(tlc / "green" / f"green_tripdata_{month}.parquet")
    made = prepare_table(tmp_path, published, month)
    manifest, trips, rows = made.manifest, made.trips, GREEN[month]
    assert made.counts == (rows, rows, 0)
    assert made.values("row") == list(range(rows))
    assert (manifest["unknown_columns"], manifest["unknown_aliases"]) == ([], {})
    for column, name in (dict(zip(SAME, SAME, strict=True)) | MOVED).items():
        assert trips[name].cast(published[column].type).equals(published[column])
    for column, (name, words) in WORDS.items():
        missing = "unknown" if column == "payment_type" else None
        assert trips[name].to_pylist() == [words.get(code, missing) for code in published[column].to_pylist()]
    frame, begin = published.to_pandas(), pd.Timestamp(f"{month}-01")
    inside = frame["lpep_pickup_datetime"].between(begin, begin + pd.offsets.MonthBegin(1), inclusive="left")
    assert manifest["outside_month"] == int((~inside).sum())
    assert manifest["filled"] == {"payment_type": int(frame["payment_type"].isna().sum())}
    assert manifest["out_of_range"]["fare_amount"] == int((~frame["fare_amount"].between(0, 500)).sum())


def test_months_of_all_schemas_are_one_data_set(tlc: Path, tmp_path: Path) -> None:
    for month in {*CASES, *GREEN}:
        folder, path = tmp_path / "trips" / f"month={month}", tmp_path / "month.parquet"
        folder.mkdir(parents=True)
        green = tlc / "green" / f"green_tripdata_{month}.parquet"
        pq.write_table(pq.read_table(green) if month in GREEN else create_table(month), path)
        prepare.prepare_month(path, folder, SCHEMA, month)
    together = pyarrow.dataset.dataset(tmp_path / "trips", partitioning="hive").to_table()
    rows = 5 * len({*CASES} - {*GREEN}) + sum(GREEN.values())
    assert len(together) == len(pd.read_parquet(tmp_path / "trips")) == rows
    assert set(together.schema.names) == {"row", "month", *COLUMNS}
    assert {"credit", "cash", "no charge", "dispute", "unknown"} == set(together["payment_type"].to_pylist())


# ---- types ----

NAMES = {"VendorID": "vendor", "RatecodeID": "rate_code", "PULocationID": "pickup_location_id"}
NAMES |= {"tpep_pickup_datetime": "pickup_datetime", "tpep_dropoff_datetime": "dropoff_datetime"}
TEXTS = [
    TEXT,
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), TEXT),
    pa.dictionary(INT32, pa.large_string()),
]
TEXT_VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "VendorID": (["1", "CMT", None, " "], ["CMT", "CMT", None, None]),
    "payment_type": (["CRD", "2", None, ""], ["credit", "cash", "unknown", "unknown"]),
    "fare_amount": (["7.70", " 8 ", None, "NaN"], [7.7, 8.0, None, None]),
    "passenger_count": (["1", "2.0", None, ""], [1, 2, None, None]),
    "tpep_pickup_datetime": (
        ["2024-01-31 23:59:59", "2024-01-31T00:00:01", None, " 2024-01-31 00:00:01.123456789 "],
        ["2024-01-31 23:59:59", "2024-01-31 00:00:01", None, "2024-01-31 00:00:01.123456"],
    ),
}


@pytest.mark.parametrize("type_", TEXTS, ids=str)
@pytest.mark.parametrize("column", TEXT_VALUES)
def test_text_of_each_type_is_read(tmp_path: Path, column: str, type_: pa.DataType) -> None:
    texts, expected = TEXT_VALUES[column]
    made = prepare_tpep(tmp_path, *[{column: text} for text in texts], **{column: type_})
    found = made.values(NAMES.get(column, column))
    assert [str(value) if isinstance(value, dt.datetime) else value for value in found] == expected
    assert made.counts == (4, 4, 0)
    assert made.trips.schema.equals(SCHEMA.arrow_schema)


NUMBER_TYPES = [pa.int8(), pa.uint16(), INT32, pa.uint64(), pa.float32(), DOUBLE, pa.dictionary(pa.int8(), INT64)]
NUMBER_TYPES += [pa.dictionary(INT32, DOUBLE), pa.decimal128(10, 2), pa.decimal256(40, 2)]
NUMBER_VALUES: dict[str, list[Any]] = {
    "VendorID": ["CMT", "VTS", None],
    "RatecodeID": ["standard", "JFK", None],
    "payment_type": ["credit", "cash", "unknown"],
    "passenger_count": [1, 2, None],
    "PULocationID": [1, 2, None],
    "fare_amount": [1.0, 2.0, None],
}


DECIMAL = ("passenger_count", "PULocationID", "fare_amount")
NUMBER_CASES = [(column, type_) for column in NUMBER_VALUES for type_ in NUMBER_TYPES]
NUMBER_CASES = [
    (column, type_) for column, type_ in NUMBER_CASES if column in DECIMAL or not pa.types.is_decimal(type_)
]


@pytest.mark.parametrize(("column", "type_"), NUMBER_CASES, ids=str)
def test_numbers_of_each_type_are_read(tmp_path: Path, type_: pa.DataType, column: str) -> None:
    made = prepare_tpep(tmp_path, *[{column: value} for value in (1, 2, None)], **{column: type_})
    assert made.values(NAMES.get(column, column)) == NUMBER_VALUES[column]
    assert (made.counts, made.manifest["unknown_aliases"]) == ((3, 3, 0), {})


@pytest.mark.parametrize("type_", [INT64, DOUBLE, pa.dictionary(pa.int8(), DOUBLE)], ids=str)
def test_long_codes_have_the_same_text_in_each_type(tmp_path: Path, type_: pa.DataType) -> None:
    made = prepare_tpep(tmp_path, *[{"VendorID": code} for code in (1_234_567, 10_000_000, None)], VendorID=type_)
    assert made.values("vendor") == ["1234567", "10000000", None]
    assert made.manifest["unknown_aliases"] == {"vendor: 1234567": 1, "vendor: 10000000": 1}


def test_decimals_are_read_to_the_cent_and_as_whole_numbers(tmp_path: Path) -> None:
    amounts = [None if text is None else decimal.Decimal(text) for text in ("7.70", "-2.50", "429490.21", None)]
    type_ = pa.decimal128(18, 2)
    assert prepare_tpep(tmp_path / "a", *[{"fare_amount": amount} for amount in amounts], fare_amount=type_).values(
        "fare_amount"
    ) == [7.7, -2.5, 429490.21, None]
    made = prepare_tpep(tmp_path / "b", {}, {"passenger_count": amounts[1]}, passenger_count=type_)
    assert made.manifest["quarantined_by_reason"] == {"passenger_count is not a whole number": 1}


NOON = dt.datetime.fromisoformat("2024-01-31 12:34:56")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "America/New_York", "UTC"])
def test_times_are_the_local_time_of_their_zone(tmp_path: Path, unit: str, zone: str | None) -> None:
    times = pa.array([NOON, None], pa.timestamp("us"))
    times = (pc.assume_timezone(times, zone) if zone else times).cast(pa.timestamp(unit, zone))
    table = pa.Table.from_pylist([RAW_TPEP] * 2, schema=pa.schema(list(TYPES_TPEP.items())))
    made = prepare_table(tmp_path, table.set_column(1, "tpep_pickup_datetime", times))
    assert (made.values("pickup_datetime"), made.counts) == ([NOON, None], (2, 2, 0))


def test_nanoseconds_are_cut_off_and_dates_are_midnight(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([RAW_TPEP], schema=pa.schema(list(TYPES_TPEP.items())))
    times = pa.array([1_706_745_599 * 10**9 + 999], pa.timestamp("ns"))
    made = prepare_table(tmp_path / "ns", table.set_column(1, "tpep_pickup_datetime", times))
    assert made.values("pickup_datetime") == [RAW_TPEP["tpep_pickup_datetime"]]
    for type_ in (pa.date32(), pa.date64()):
        made = prepare_tpep(tmp_path / str(type_), {"tpep_pickup_datetime": NOON.date()}, tpep_pickup_datetime=type_)
        assert made.values("pickup_datetime") == [dt.datetime.combine(NOON.date(), dt.time())]


@pytest.mark.parametrize("column", ["tpep_dropoff_datetime", "passenger_count", "fare_amount", "VendorID"])
def test_an_untyped_column_is_all_missing(tmp_path: Path, column: str) -> None:
    made = prepare_tpep(tmp_path, {column: None}, **{column: pa.null()})
    assert made.values(NAMES.get(column, column)) == [None]
    assert made.manifest["mapping"]["columns"][NAMES.get(column, column)]["type"] == "null"


@pytest.mark.parametrize("value", [1.5, 3e9, float("inf"), -float("inf")])
def test_a_double_that_is_not_whole_quarantines_its_row(tmp_path: Path, value: float) -> None:
    made = prepare_tpep(tmp_path, {}, {"passenger_count": value}, passenger_count=DOUBLE)
    assert made.values("row") == [0]
    assert made.manifest["quarantined_by_reason"] == {"passenger_count is not a whole number": 1}


def test_an_unknown_nested_column_is_reported_and_does_no_harm(tmp_path: Path) -> None:
    made = prepare_tpep(tmp_path, {"weather": None}, {}, weather=pa.struct([("a", INT64), ("fare_amount", INT64)]))
    assert made.manifest["unknown_columns"] == ["weather"]
    assert made.values("fare_amount") == [70.0, 70.0]


# ---- refusals ----

NESTED: dict[str, tuple[pa.DataType, Any]] = {
    "list": (pa.list_(DOUBLE), [1.0]),
    "struct": (pa.struct([("a", INT64)]), {"a": 1}),
    "map": (pa.map_(TEXT, INT64), [("a", 1)]),
    "binary": (pa.binary(), b"1"),
    "bool": (pa.bool_(), True),
    "duration": (pa.duration("us"), dt.timedelta(seconds=1)),
}
TIMES: dict[str, tuple[pa.DataType, Any]] = {
    "timestamp": (pa.timestamp("us"), NOON),
    "date": (pa.date32(), NOON.date()),
}
NUMBERS: dict[str, tuple[pa.DataType, Any]] = {"integer": (INT64, 1), "double": (DOUBLE, 1.0)}
EXPECTED = {
    "VendorID": ("the schema's vendor has the type category and expects text or numbers", TIMES),
    "tpep_pickup_datetime": ("has the type timestamp and expects timestamps, dates or text", NUMBERS),
    "passenger_count": ("the schema's passenger_count has the type integer and expects numbers or text", TIMES),
    "fare_amount": ("the schema's fare_amount has the type number and expects numbers or text", TIMES),
}
REFUSED = [(column, kind) for column, (_, more) in EXPECTED.items() for kind in [*NESTED, *more]]


def check_refused(run_cli: Run, paths: Paths, *words: str) -> None:
    """`prepare` refuses the month in these words, and leaves nothing."""
    code, printed = run_cli(paths.root, "prepare", MONTH)
    assert code == 1, printed
    assert [word for word in (f"month {MONTH}", *words) if word not in printed] == []
    assert "Traceback" not in printed
    assert "TIPLINE_DEBUG" not in printed
    assert factory.contents(paths.root / "data" / "trips") == {}
    assert not paths.prepared(MONTH).exists()
    assert list(paths.staging.rglob("*.parquet")) == []


@pytest.mark.parametrize(("column", "kind"), REFUSED)
def test_an_unreadable_type_is_refused(run_cli: Run, make_project: MakeProject, column: str, kind: str) -> None:
    paths = make_project()
    type_, value = (NESTED | TIMES | NUMBERS)[kind]
    path = factory.write_tpep(paths.raw(MONTH) / "month.parquet", {column: value}, **{column: type_})
    published = str(pq.read_schema(path).field(column).type)
    check_refused(run_cli, paths, f"{column!r} is of type {published[:40]}", EXPECTED[column][0])


@pytest.mark.parametrize("column", ["VendorID", "tpep_pickup_datetime", "tip_amount"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_required_column_is_refused(run_cli: Run, make_project: MakeProject, column: str, kind: str) -> None:
    paths = make_project()
    published = {name: value for name, value in RAW_TPEP.items() if name != column}
    if kind == "csv":
        factory.write_csv(paths.raw(MONTH) / "month.csv", [",".join(map(str, published.values()))], ",".join(published))
    else:
        types = {name: type_ for name, type_ in TYPES_TPEP.items() if name != column}
        factory.write_parquet(paths.raw(MONTH) / "month.parquet", types, [published])
    key = NAMES.get(column, column)
    names = " or ".join(SCHEMA.columns[key].list_names())
    check_refused(run_cli, paths, f"needs: {key} (as {names})", f"month.{kind}", "It has: ")


def test_two_columns_with_one_meaning_are_refused(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    factory.write_tpep(paths.raw(MONTH) / "m.parquet", {"airport_fee": 1.0}, airport_fee=DOUBLE)
    check_refused(run_cli, paths, "'Airport_fee' and 'airport_fee', are both airport_fee")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"Trip_Pickup_DateTime": "15/01/2009 12:00"}] * 3,
            ["None of the month's 3 rows can be read", "pickup_datetime is not a time (3 rows)"],
        ),
        (
            [{"Payment_Type": f"word {number}"} for number in range(10_001)],
            ["more than 10,000 different values", "column Payment_Type", "the schema expects"],
        ),
    ],
    ids=["no row can be read", "too many values"],
)
def test_a_month_of_other_data_is_refused(
    run_cli: Run, make_project: MakeProject, kind: str, rows: list[dict[str, Any]], words: list[str]
) -> None:
    paths = make_project()
    if kind == "csv":
        factory.write_csv(paths.raw(MONTH) / "month.csv", [factory.line(**row) for row in rows])
    else:
        factory.write_2009(paths.raw(MONTH) / "month.parquet", *rows)
    check_refused(run_cli, paths, *words)


@pytest.mark.parametrize("rows", [2, 4, 1_000_000])
@pytest.mark.parametrize("places", [1, 2], ids=["file", "file and row group"])
def test_a_footer_with_a_wrong_number_of_rows_is_refused(
    run_cli: Run, make_project: MakeProject, rows: int, places: int
) -> None:
    """The count of rows stands before the list of row groups; that of the row group before its file offset."""
    paths = make_project()
    path = factory.write_tpep(paths.raw(MONTH) / "month.parquet", {}, {}, {})
    data = path.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[begin:-8]
    for end in (b"\x19\x1c", b"\x26\x08")[:places]:
        assert footer.count(b"\x16" + encode_number(3) + end) == 1
        footer = footer.replace(b"\x16" + encode_number(3) + end, b"\x16" + encode_number(rows) + end)
    path.write_bytes(data[:begin] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert pq.read_metadata(path).num_rows == rows
    check_refused(run_cli, paths, "cannot be read", "month.parquet")
