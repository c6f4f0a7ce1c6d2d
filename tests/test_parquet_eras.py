"""Parquet months in every schema that the TLC has published become one schema; what cannot be read is refused."""

import datetime as dt
import decimal
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests import factory
from tests.factory import COLUMNS, DOUBLE, INT32, INT64, RAW_TPEP, TYPES_TPEP, prepare_file, prepare_tpep
from tests.fuzzing import encode_number
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
    "payment_type": {"credit": 1, "cash": 2, "no charge": 3, "dispute": 4, "unknown": 5},
    "vendor": {"CMT": 1, "VTS": 2, "Myle": 6},
    "rate_code": {"standard": 1, "JFK": 2, "Newark": 3, "Nassau or Westchester": 4, "negotiated": 5},
    "trip_type": {"street hail": 1, "dispatch": 2},
}
CODES["rate_code"] |= {"group": 6, "unknown": 99}
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
    assert made.trips.schema.equals(factory.STORED)
    assert made.counts == (5, 5, 0)
    assert (manifest["filled"], manifest["out_of_range"]) == ({"payment_type": 1}, {"fare_amount": 1})
    assert (manifest["outside_month"], manifest["unknown_aliases"], manifest["unknown_columns"]) == (0, {}, [])
    # The era of a file is that of its latest names: the files from 2011 on have today's.
    assert manifest["era"] == ERAS[max(since for since in ERAS if since <= month)]
    columns = {key: {"name": names[key], "type": str(types[key])} for key in names if key in COLUMNS}
    assert manifest["mapping"]["columns"] == columns


OLD = {"version": "1.0", "data_page_version": "1.0", "row_group_size": 2, "use_dictionary": False}


@pytest.mark.parametrize("options", [{"store_schema": False, "use_deprecated_int96_timestamps": True}, OLD])
def test_other_writers_of_parquet_make_no_difference(tmp_path: Path, options: dict[str, Any]) -> None:
    made = prepare_table(tmp_path, create_table("2018-07"), "2018-07", **options)
    assert made.trips.to_pylist() == expect_trips("2018-07")


@pytest.mark.parametrize("month", ["2022-01", "2023-02", "2024-01"])
def test_an_official_green_month_comes_out_row_by_row(tlc: Path, tmp_path: Path, month: str) -> None:
    published = pq.read_table(tlc / "green" / f"green_tripdata_{month}.parquet")
    made, rows = prepare_table(tmp_path, published, month), len(published)
    assert (made.counts, made.values("row")) == ((rows, rows, 0), list(range(rows)))
    names = {key: column["name"] for key, column in made.manifest["mapping"]["columns"].items()}
    assert names["pickup_datetime"] == "lpep_pickup_datetime"
    for key, name in names.items():
        if key in CODES:
            words: dict[Any, Any] = {code: word for word, code in CODES[key].items()}
            words[None] = "unknown" if key == "payment_type" else None
            assert made.values(key) == [words[code] for code in published[name].to_pylist()]
        else:
            assert made.trips[key].cast(published[name].type).equals(published[name])


# ---- types ----

NOON = dt.datetime.fromisoformat("2024-01-31 12:34:56")
TEXT_VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "vendor": (["1", "CMT", None, " "], ["CMT", "CMT", None, None]),
    "payment_type": (["CRD", "2", None, ""], ["credit", "cash", "unknown", "unknown"]),
    "fare_amount": (["7.70", " 8 ", None, "NaN"], [7.7, 8.0, None, None]),
    "passenger_count": (["1", "2.0", None, ""], [1, 2, None, None]),
    "pickup_datetime": (["2024-01-31T12:34:56", " 2024-01-31 12:34:56.0000007 ", None, " "], [NOON, NOON, None, None]),
}


@pytest.mark.parametrize("type_", [TEXT, pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), TEXT)], ids=str)
def test_text_of_each_type_is_read(tmp_path: Path, type_: pa.DataType) -> None:
    rows = [{NAMES_TODAY[key]: texts[row] for key, (texts, _) in TEXT_VALUES.items()} for row in range(4)]
    made = prepare_tpep(tmp_path, *rows, **dict.fromkeys(rows[0], type_))
    assert [made.values(key) for key in TEXT_VALUES] == [expected for _, expected in TEXT_VALUES.values()]
    assert made.counts == (4, 4, 0)


NUMBER_TYPES = [pa.int8(), pa.uint16(), INT32, pa.uint64(), pa.float32(), DOUBLE, pa.dictionary(pa.int8(), INT64)]
NUMBER_TYPES += [pa.dictionary(INT32, DOUBLE), pa.decimal128(10, 2), pa.decimal256(40, 2)]
NUMBER_VALUES: dict[str, list[Any]] = {
    "passenger_count": [1, 2, None],
    "fare_amount": [1.0, 2.0, None],
    "rate_code": ["standard", "JFK", None],
    "payment_type": ["credit", "cash", "unknown"],
}


@pytest.mark.parametrize("type_", NUMBER_TYPES, ids=str)
def test_numbers_of_each_type_are_read(tmp_path: Path, type_: pa.DataType) -> None:
    rows = [{NAMES_TODAY[key]: value for key in NUMBER_VALUES} for value in (1, 2, None)]
    made = prepare_tpep(tmp_path, *rows, **dict.fromkeys(rows[0], type_))
    assert {key: made.values(key) for key in NUMBER_VALUES} == NUMBER_VALUES
    assert (made.counts, made.manifest["unknown_aliases"]) == ((3, 3, 0), {})


def test_decimals_are_read_to_the_cent_and_long_codes_without_an_exponent(tmp_path: Path) -> None:
    fares = [decimal.Decimal(text) for text in ("7.70", "429490.21", "-2.50")]
    rows = [{"fare_amount": fare, "passenger_count": 1, "VendorID": 10_000_000} for fare in fares]
    types = dict.fromkeys(rows[0], pa.decimal128(18, 2)) | {"VendorID": DOUBLE}
    made = prepare_tpep(tmp_path, *rows, rows[0] | {"passenger_count": fares[0]}, **types)
    assert made.values("fare_amount") == [7.7, 429490.21, -2.5]
    assert made.values("vendor") == ["10000000"] * 3
    assert made.manifest["quarantined_by_reason"] == {"passenger_count is not a whole number": 1}


TIME_TYPES = [pa.timestamp(unit, zone) for unit in ("s", "ns") for zone in (None, "America/New_York", "UTC")]
TIME_TYPES += [pa.timestamp("ms"), pa.date32(), pa.date64()]


@pytest.mark.parametrize("type_", TIME_TYPES, ids=str)
def test_times_are_the_local_time_of_their_zone_and_dates_are_midnight(tmp_path: Path, type_: pa.DataType) -> None:
    times = pa.array([NOON, None], pa.timestamp("us"))
    noon = dt.datetime.combine(NOON, dt.time()) if pa.types.is_date(type_) else NOON
    if noon == NOON and type_.tz:  # whatever its own zone, New York's time comes out, as the schema says
        times = pc.assume_timezone(times, "America/New_York").cast(pa.timestamp("us", type_.tz))
    times = times.cast(type_, safe=False)
    if type_ == pa.timestamp("ns"):
        times = pc.add(times, pa.scalar(999, pa.duration("ns")))
    table = pa.Table.from_pylist([RAW_TPEP] * 2, schema=pa.schema(list(TYPES_TPEP.items())))
    made = prepare_table(tmp_path, table.set_column(1, "tpep_pickup_datetime", times))
    assert (made.values("pickup_datetime"), made.counts) == ([noon, None], (2, 2, 0))


def test_untyped_columns_are_all_missing_and_an_unknown_nested_one_is_reported(tmp_path: Path) -> None:
    keys = ["dropoff_datetime", "passenger_count", "airport_fee", "vendor"]
    types = {NAMES_TODAY[key]: pa.null() for key in keys} | {"weather": pa.struct([("fare_amount", INT64)])}
    made = prepare_tpep(tmp_path, dict.fromkeys(types), **types)
    assert [made.values(key) for key in keys] == [[None]] * 4
    assert (made.manifest["unknown_columns"], made.values("fare_amount")) == (["weather"], [70.0])


# ---- refusals ----


def check_refused(run_cli: Run, paths: Paths, *words: str) -> None:
    code, printed = run_cli(paths.root, "prepare", MONTH)
    assert code == 1, printed
    assert [word for word in (f"month {MONTH}", *words) if word not in printed] == []
    assert [word for word in ("Traceback", "TIPLINE_DEBUG") if word in printed] == []
    assert factory.contents(paths.root / "data" / "trips") == {}
    assert list(paths.staging.rglob("*.parquet")) == []


@pytest.mark.parametrize(
    ("column", "type_", "value", "expected"),
    [
        ("VendorID", pa.timestamp("us"), NOON, "vendor has the type category and expects text or numbers"),
        (
            "tpep_pickup_datetime",
            INT64,
            1,
            "expects timestamps, dates or text. It holds '1', for example",
        ),
        ("passenger_count", pa.date32(), NOON.date(), "has the type integer and expects numbers or text"),
        ("passenger_count", pa.struct([("a", INT64)]), {"a": 1}, "has the type integer and expects numbers or text"),
        ("fare_amount", pa.binary(), b"1", "the schema's fare_amount has the type number and expects numbers or text"),
        ("fare_amount", pa.duration("us"), dt.timedelta(1), "has the type number and expects numbers or text"),
    ],
)
def test_an_unreadable_type_is_refused(
    run_cli: Run, make_project: MakeProject, column: str, type_: pa.DataType, value: Any, expected: str
) -> None:
    paths = make_project()
    path = factory.write_tpep(paths.raw(MONTH) / "month.parquet", {column: value}, **{column: type_})
    published = str(pq.read_schema(path).field(column).type)
    check_refused(run_cli, paths, f"{column!r} is of type {published[:40]}", expected)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("column", "texts", "words"),
    [
        (
            "Trip_Pickup_DateTime",
            ["15/01/2009"] * 3,
            ["3 of 3 rows (100.0%) cannot", "is not a time: 3 rows, for example '15/01/2009'"],
        ),
        ("Payment_Type", [f"word {n}" for n in range(10_001)], ["more than 10,000 different", "column Payment_Type"]),
    ],
)
def test_a_month_of_other_data_is_refused(
    run_cli: Run, make_project: MakeProject, kind: str, column: str, texts: list[str], words: list[str]
) -> None:
    paths = make_project()
    path, rows = paths.raw(MONTH) / f"month.{kind}", [{column: text} for text in texts]
    if kind == "csv":
        factory.write_csv(path, [factory.line(**row) for row in rows])
    else:
        factory.write_2009(path, *rows)
    check_refused(run_cli, paths, *words)


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("places", [1, 2], ids=["file", "file and row group"])
def test_a_footer_with_a_wrong_number_of_rows_is_refused(
    run_cli: Run, make_project: MakeProject, rows: int, places: int
) -> None:
    """The count of rows stands before the list of row groups; that of the row group before its file offset."""
    paths = make_project()
    path = factory.write_tpep(paths.raw(MONTH) / "month.parquet", {}, {}, {})
    data = path.read_bytes()
    for end in (b"\x19\x1c", b"\x26\x08")[:places]:
        assert data.count(b"\x16" + encode_number(3) + end) == 1
        data = data.replace(b"\x16" + encode_number(3) + end, b"\x16" + encode_number(rows) + end)
    path.write_bytes(data)
    assert pq.read_metadata(path).num_rows == rows
    check_refused(run_cli, paths, "cannot be read", "month.parquet")
