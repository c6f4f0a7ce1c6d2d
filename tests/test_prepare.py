"""A published month becomes the one schema: no row lost, each with its number, what cannot be read set apart."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests import factory
from tests.factory import line
from tipline.errors import TiplineError
from tipline.ingest import prepare, readers, simulate
from tipline.ingest.conform import Conformer
from tipline.ingest.schema import load_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

MONTH = "2009-01"
BAD_LINE = "VTS,2009-01-15 12:00:00"
# By hand from the column descriptions of the TLC, for the test's own reading.
VENDORS = {"1": "CMT", "2": "VTS"}
PAYMENTS = {"0": "flex fare", "1": "credit", "2": "cash", "3": "no charge", "4": "dispute"}
WORDS = {
    "CASH": "cash",
    "Cash": "cash",
    "CREDIT": "credit",
    "Credit": "credit",
    "No Charge": "no charge",
    "Dispute": "dispute",
}


@dataclass
class Prepared:
    """What `prepare` made of a file."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def trips(self) -> pa.Table:
        return pq.read_table(self.folder / "trips.parquet")

    @property
    def rows(self) -> list[int]:
        numbers: list[int] = self.trips["row"].to_pylist()
        return numbers

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.folder / "_quarantine.parquet").to_pylist()
        return found

    def values(self, name: str) -> list[Any]:
        found: list[Any] = self.trips[name].to_pylist()
        return found


def prepared(path: Path, name: str = "prepared") -> Prepared:
    folder = path.parent / name
    folder.mkdir()
    return Prepared(folder, prepare.prepare_month(path, folder, load_schema(), MONTH))


def conformer_of(month: readers.ParquetMonth | readers.CsvMonth) -> Conformer:
    return Conformer(load_schema(), load_schema().match(month.schema, "here").names, MONTH)


def csv_of(folder: Path, *lines: str) -> Prepared:
    return prepared(factory.write_csv(folder / "month.csv", lines))


def tpep_of(folder: Path, *rows: Mapping[str, Any], **types: Any) -> Prepared:
    return prepared(factory.write_tpep(folder / "month.parquet", *rows, **types))


def demo_of(folder: Path, rows: int, month: str = MONTH) -> Path:
    simulate.simulate_month(folder / "demo.parquet", month, rows, 1)
    return folder / "demo.parquet"


def sizes(path: Path) -> list[int]:
    """Rows of each row group of a Parquet file."""
    found = pq.read_metadata(path)
    return [found.row_group(group).num_rows for group in range(found.num_row_groups)]


def number(text: str) -> float | None:
    return float(text) if text else None


# ---- real files ----


@pytest.fixture(scope="module")
def hour(tlc: Path) -> Path:
    return tlc / "hour" / "yellow_tripdata_2009-01.csv"


@pytest.fixture(scope="module")
def prepared_hour(hour: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("hour")
    return Prepared(folder, prepare.prepare_month(hour, folder, load_schema(), MONTH))


@pytest.fixture(scope="module")
def published_hour(hour: Path) -> list[dict[str, str]]:
    """The hour as Python's own csv module reads it."""
    with hour.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row]


@pytest.mark.parametrize("row", [0, 1, 4, 17, 999, 5000, 10621, 16384, 21239, 21241])
def test_a_row_of_the_published_hour_is_what_its_line_says(
    prepared_hour: Prepared, published_hour: list[dict[str, str]], row: int
) -> None:
    said = published_hour[row]
    assert prepared_hour.trips.slice(row, 1).to_pylist() == [
        {
            "row": row,
            "vendor": said["vendor_name"],
            "pickup_datetime": dt.datetime.fromisoformat(said["Trip_Pickup_DateTime"]),
            "dropoff_datetime": dt.datetime.fromisoformat(said["Trip_Dropoff_DateTime"]),
            "passenger_count": int(said["Passenger_Count"]),
            "trip_distance": float(said["Trip_Distance"]),
            "rate_code": None,
            "trip_type": None,
            "payment_type": WORDS[said["Payment_Type"]],
            "fare_amount": float(said["Fare_Amt"]),
            "extra": float(said["surcharge"]),
            "mta_tax": number(said["mta_tax"]),
            "tolls_amount": float(said["Tolls_Amt"]),
            "improvement_surcharge": None,
            "congestion_surcharge": None,
            "airport_fee": None,
            "cbd_congestion_fee": None,
            "pickup_location_id": None,
            "dropoff_location_id": None,
            "tip_amount": float(said["Tip_Amt"]),
            "total_amount": float(said["Total_Amt"]),
        }
    ]


def test_every_row_of_the_published_hour_is_there_once_and_in_order(
    prepared_hour: Prepared, published_hour: list[dict[str, str]]
) -> None:
    assert prepared_hour.rows == list(range(21_242))
    counts = {name: prepared_hour.manifest[name] for name in ("rows_in", "rows_out", "quarantined")}
    assert counts == {"rows_in": 21_242, "rows_out": 21_242, "quarantined": 0}
    assert prepared_hour.values("payment_type") == [WORDS[line["Payment_Type"]] for line in published_hour]
    assert prepared_hour.values("tip_amount") == [float(line["Tip_Amt"]) for line in published_hour]


def test_what_is_blank_in_the_published_hour_is_missing_and_counted(
    prepared_hour: Prepared, published_hour: list[dict[str, str]]
) -> None:
    assert prepared_hour.trips["mta_tax"].null_count == sum(not line["mta_tax"] for line in published_hour) > 0
    assert prepared_hour.manifest["unknown_columns"] == []
    assert prepared_hour.manifest["unknown_aliases"] == {}


def test_the_published_hour_is_the_same_in_small_blocks(
    hour: Path, prepared_hour: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 50_000)
    prepare.prepare_month(hour, tmp_path, load_schema(), MONTH)
    assert Prepared(tmp_path, {}).trips.equals(prepared_hour.trips)


@pytest.mark.parametrize("month", [f"2009-{number:02}" for number in range(1, 13)])
def test_the_sampled_months_of_2009_go_through(tlc: Path, tmp_path: Path, month: str) -> None:
    path = tlc / "tiny2009" / f"yellow_{month}.parquet"
    manifest = prepare.prepare_month(path, tmp_path, load_schema(), month)
    made, published = Prepared(tmp_path, manifest), pq.read_table(path)
    assert manifest["rows_in"] == manifest["rows_out"] == pq.read_metadata(path).num_rows == len(made.trips)
    assert made.rows == list(range(len(published)))
    for name in ("fare_amount", "trip_distance", "tip_amount", "total_amount", "mta_tax"):
        assert made.values(name) == published[name].to_pylist()
    assert set(made.values("vendor")) == {"CMT", "DDS", "VTS"}
    assert made.values("payment_type") == [
        word.lower().split(" card")[0] for word in published["payment_type"].to_pylist()
    ]
    assert pc.all(pc.equal(made.trips["pickup_datetime"], published["pickup_datetime"])).as_py()
    assert manifest["unknown_columns"] == []
    assert manifest["unknown_aliases"] == {}


@pytest.mark.parametrize("month", ["2009-01", "2009-12", "2024-01", "2025-01"])
def test_simulated_months_are_downloaded_and_prepared(run_cli: Run, make_project: MakeProject, month: str) -> None:
    paths = make_project(demo={"rows": 3000})
    for command in ("download", "prepare"):
        code, printed = run_cli(paths.root, command, month)
        assert (code, "Traceback" in printed) == (0, False)
    (path,) = paths.raw(month).iterdir()
    published, trips = pq.read_table(path), pq.read_table(paths.prepared_file(month))
    assert trips.schema.equals(load_schema().schema)
    assert trips["row"].to_pylist() == list(range(3000))
    vendor, payment, fare, pickup = (
        ("vendor_name", "Payment_Type", "Fare_Amt", "Trip_Pickup_DateTime")
        if month < "2010"
        else ("VendorID", "payment_type", "fare_amount", "tpep_pickup_datetime")
    )
    names = {name: name for name in ("CMT", "VTS", "DDS")} | VENDORS | {"6": "Myle", "7": "Helix"}
    assert trips["vendor"].to_pylist() == [names[str(value)] for value in published[vendor].to_pylist()]
    payments = WORDS | PAYMENTS
    assert trips["payment_type"].to_pylist() == [payments[str(value)] for value in published[payment].to_pylist()]
    assert trips["fare_amount"].equals(published[fare])
    assert trips["pickup_datetime"].equals(published[pickup].cast(pa.timestamp("us")))
    assert (trips["cbd_congestion_fee"].null_count == 0) == (month >= "2025")
    assert (trips["airport_fee"].null_count < 3000) == (month >= "2020")


# ---- columns and aliases ----


def test_a_line_of_2009_becomes_a_trip(tmp_path: Path) -> None:
    assert csv_of(tmp_path, line()).trips.to_pylist() == [{"row": 0} | factory.TRIP_2009]


def test_a_parquet_row_of_2009_becomes_the_same_trip(tmp_path: Path) -> None:
    made = prepared(factory.write_2009(tmp_path / "month.parquet", {}, {"Fare_Amt": 8.0}))
    assert made.trips.to_pylist() == [
        {"row": 0} | factory.TRIP_2009,
        {"row": 1} | factory.TRIP_2009 | {"fare_amount": 8.0},
    ]


def test_a_row_of_today_becomes_a_trip(tmp_path: Path) -> None:
    assert tpep_of(tmp_path, {}).trips.to_pylist() == [{"row": 0} | factory.TRIP_TPEP]


def test_the_schema_is_the_contracts_in_every_format(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("csv", "tpep")]
    for made in (csv_of(folders[0], line()), tpep_of(folders[1], {})):
        assert made.trips.schema.equals(load_schema().schema)


def test_columns_that_turned_double_are_read_as_what_they_count(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"passenger_count": 1.0, "RatecodeID": 1.0, "VendorID": 1.0, "payment_type": 2.0, "PULocationID": 265.0},
        {"passenger_count": None, "RatecodeID": None, "VendorID": None, "payment_type": None, "PULocationID": None},
    ]
    names = ("passenger_count", "rate_code", "vendor", "payment_type", "pickup_location_id")
    made = tpep_of(tmp_path, *rows, **{name: pa.float64() for name in rows[0]})
    assert [made.values(name) for name in names] == [
        [1, None],
        ["standard", None],
        ["CMT", None],
        ["cash", "unknown"],
        [265, None],
    ]
    assert made.manifest["unknown_aliases"] == {}


def test_columns_of_nothing_but_nulls_have_no_type_and_are_missing(tmp_path: Path) -> None:
    empty = {"RatecodeID": None, "congestion_surcharge": None, "Airport_fee": None}
    made = tpep_of(tmp_path, empty, **dict.fromkeys(empty, pa.null()))
    missing = {"rate_code": None, "congestion_surcharge": None, "airport_fee": None}
    assert made.trips.to_pylist() == [{"row": 0} | factory.TRIP_TPEP | missing]


def test_a_fee_of_2025_is_kept_and_a_new_column_reported(tmp_path: Path) -> None:
    types = {"cbd_congestion_fee": pa.float64(), "weather": pa.string()}
    made = tpep_of(tmp_path, {"cbd_congestion_fee": 0.75, "weather": "rain"}, **types)
    assert made.values("cbd_congestion_fee") == [0.75]
    assert made.manifest["unknown_columns"] == ["weather"]
    assert made.manifest["mapping"]["columns"]["airport_fee"] == {"name": "Airport_fee", "type": "double"}


def test_a_new_column_is_named_in_the_log(
    run_cli: Run, make_project: MakeProject, caplog: pytest.LogCaptureFixture
) -> None:
    paths = make_project()
    types = {"weather": pa.string()}
    factory.write_tpep(paths.raw(MONTH) / "m.parquet", {"weather": "rain", "payment_type": 9}, **types)
    assert run_cli(paths.root, "prepare", MONTH)[0] == 0
    assert "columns that the schema does not know: weather" in caplog.text
    assert "new aliases: payment_type: 9" in caplog.text


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_text_is_read_in_each_of_its_types(tmp_path: Path, kind: pa.DataType) -> None:
    rows = [{"payment_type": text} for text in ("CASH", "Credit card", None, " ", "cash")]
    made = tpep_of(tmp_path, *rows, payment_type=kind)
    assert made.values("payment_type") == ["cash", "credit", "unknown", "unknown", "cash"]


@pytest.mark.parametrize(("unit", "nanoseconds"), [("s", 0), ("ms", 0), ("us", 0), ("ns", 999)])
def test_times_are_read_in_each_of_their_units(tmp_path: Path, unit: str, nanoseconds: int) -> None:
    seconds = 1_706_745_599
    value = seconds * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit] + nanoseconds
    times = pa.array([value], pa.timestamp(unit))
    table = pa.Table.from_pylist([factory.RAW_TPEP], schema=pa.schema(list(factory.TYPES_TPEP.items())))
    pq.write_table(table.set_column(1, "tpep_pickup_datetime", times), tmp_path / "month.parquet")
    made = prepared(tmp_path / "month.parquet")
    assert made.values("pickup_datetime") == [factory.TRIP_TPEP["pickup_datetime"]]


@pytest.mark.parametrize(
    ("vendor", "word", "payment"),
    [
        ("CMT", "Cash", "cash"),
        ("CMT", "Credit", "credit"),
        ("CMT", "No Charge", "no charge"),
        ("CMT", "Dispute", "dispute"),
        ("DDS", "CASH", "cash"),
        ("DDS", "CREDIT", "credit"),
        ("VTS", "CASH", "cash"),
        ("VTS", "Credit", "credit"),
        (" vts ", "no charge ", "no charge"),
    ],
)
def test_each_vendors_spelling_becomes_the_canonical_value(
    tmp_path: Path, vendor: str, word: str, payment: str
) -> None:
    made = csv_of(tmp_path, line(vendor_name=vendor, Payment_Type=word))
    assert (made.values("vendor"), made.values("payment_type")) == ([vendor.strip().upper()], [payment])
    assert made.manifest["unknown_aliases"] == {}


def test_codes_of_today_become_the_words_of_2009(tmp_path: Path) -> None:
    codes = range(7)
    made = tpep_of(tmp_path, *[{"payment_type": code, "VendorID": 1 + code % 2} for code in codes])
    words = ["flex fare", "credit", "cash", "no charge", "dispute", "unknown", "voided"]
    assert made.values("payment_type") == words
    assert made.values("vendor") == ["CMT", "VTS"] * 3 + ["CMT"]


def test_an_unknown_spelling_is_kept_and_counted(tmp_path: Path) -> None:
    words = ["Prepaid", "Cash", " Prepaid", "Voucher"]
    made = csv_of(tmp_path, *[line(Payment_Type=word) for word in words])
    assert made.values("payment_type") == ["Prepaid", "cash", "Prepaid", "Voucher"]
    assert made.manifest["unknown_aliases"] == {"payment_type: Prepaid": 2, "payment_type: Voucher": 1}
    assert made.manifest["quarantined"] == 0


def test_spellings_that_appear_late_are_kept_in_every_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_ROWS", 2)
    words = ["Cash", "Cash", "Prepaid", "Cash", "Voucher", "Prepaid", "Credit"]
    made = prepared(factory.write_2009(tmp_path / "month.parquet", *[{"Payment_Type": word} for word in words]))
    assert made.values("payment_type") == ["cash", "cash", "Prepaid", "cash", "Voucher", "Prepaid", "credit"]
    assert made.manifest["unknown_aliases"] == {"payment_type: Prepaid": 2, "payment_type: Voucher": 1}


# ---- missing and odd values ----


def test_nan_counts_as_missing(tmp_path: Path) -> None:
    nan = float("nan")
    row = {"fare_amount": nan, "extra": nan, "passenger_count": nan, "RatecodeID": nan}
    made = tpep_of(tmp_path, row, {}, passenger_count=pa.float64(), RatecodeID=pa.float64())
    assert made.values("fare_amount") == [None, 70.0]
    assert made.values("passenger_count") == [None, 1]
    assert made.values("rate_code") == [None, "JFK"]
    assert made.values("extra") == [0.0, 1.0]
    assert made.manifest["out_of_range"] == {}
    assert made.manifest["unknown_aliases"] == {}


def test_nan_in_text_counts_as_missing(tmp_path: Path) -> None:
    texts = ["nan", "NaN", "", "7.7"]
    made = csv_of(tmp_path, *[line(Fare_Amt=text, Passenger_Count=text.replace("7.7", "2.0")) for text in texts])
    assert made.values("fare_amount") == [None, None, None, 7.7]
    assert made.values("passenger_count") == [None, None, None, 2]
    assert made.manifest["quarantined"] == 0


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("unreadable", [[], ["x"]])
def test_nan_in_text_counts_as_missing_beside_what_cannot_be_read(
    tmp_path: Path, kind: pa.DataType, unreadable: list[str]
) -> None:
    texts = ["NaN", "2.0", *unreadable, None]
    rows = [{"fare_amount": text, "passenger_count": text} for text in texts]
    made = tpep_of(tmp_path, *rows, fare_amount=kind, passenger_count=kind)
    assert made.values("fare_amount") == [None, 2.0, None]
    assert made.values("passenger_count") == [None, 2, None]
    assert [apart["row"] for apart in made.quarantine] == [2 for _ in unreadable]


def test_a_missing_payment_is_unknown_and_a_missing_extra_nothing_both_counted(tmp_path: Path) -> None:
    lines = [line(Payment_Type=None), line(Payment_Type="  "), line(surcharge=None), line(mta_tax=None)]
    made = csv_of(tmp_path, *lines)
    assert made.values("payment_type") == ["unknown", "unknown", "credit", "credit"]
    assert made.values("extra") == [0.5, 0.5, 0.0, 0.5]
    assert made.values("mta_tax") == [None] * 4
    assert made.manifest["filled"] == {"extra": 1, "payment_type": 2}
    assert made.manifest["unknown_aliases"] == {}


def test_nothing_missing_fills_nothing(tmp_path: Path) -> None:
    assert csv_of(tmp_path, line()).manifest["filled"] == {}


def test_values_out_of_range_are_counted_and_kept(tmp_path: Path) -> None:
    rows = [{}, {"Fare_Amt": -5.0}, {"Fare_Amt": 429_490.2, "Passenger_Count": 208}, {"Trip_Distance": 259_777.0}]
    made = prepared(factory.write_2009(tmp_path / "month.parquet", *rows))
    assert made.values("fare_amount") == [7.7, -5.0, 429_490.2, 7.7]
    assert made.values("passenger_count") == [2, 2, 208, 2]
    assert made.values("trip_distance") == [1.99, 1.99, 1.99, 259_777.0]
    assert made.manifest["out_of_range"] == {"fare_amount": 2, "passenger_count": 1, "trip_distance": 1}
    assert made.manifest["rows_out"] == 4


def test_the_ends_of_a_range_are_not_odd(tmp_path: Path) -> None:
    made = csv_of(tmp_path, line(Fare_Amt=0, Passenger_Count=0), line(Fare_Amt=500, Passenger_Count=9))
    assert made.manifest["out_of_range"] == {}


# ---- what cannot be read ----


@pytest.mark.parametrize(
    ("published", "text", "reason"),
    [
        ("Trip_Pickup_DateTime", "2009-01-32 12:00:00", "pickup_datetime is not a time"),
        ("Trip_Pickup_DateTime", "noon", "pickup_datetime is not a time"),
        ("Trip_Dropoff_DateTime", "12:09:30", "dropoff_datetime is not a time"),
        ("Fare_Amt", "7.7.7", "fare_amount is not a number"),
        ("Fare_Amt", "$7", "fare_amount is not a number"),
        ("Passenger_Count", "1.5", "passenger_count is not a whole number"),
        ("Passenger_Count", "9999999999", "passenger_count is not a whole number"),
        ("Passenger_Count", "two", "passenger_count is not a whole number"),
    ],
)
def test_a_value_that_cannot_be_read_sets_its_row_apart(tmp_path: Path, published: str, text: str, reason: str) -> None:
    odd = line(**{published: text, "Tip_Amt": 0.25})
    made = csv_of(tmp_path, line(), odd, line(Fare_Amt=9.5))
    assert made.rows == [0, 2]
    assert made.values("fare_amount") == [7.7, 9.5]
    (apart,) = made.quarantine
    assert (apart["row"], apart["reason"]) == (1, reason)
    assert apart["raw"] == odd
    assert made.manifest["quarantined_by_reason"] == {reason: 1}
    assert (made.manifest["rows_in"], made.manifest["rows_out"], made.manifest["quarantined"]) == (3, 2, 1)


def test_text_datetimes_of_parquet_are_set_apart_too(tmp_path: Path) -> None:
    times = ["2009-01-01 00:00:00", "never", None, " 2009-01-01 00:00:01 "]
    path = factory.write_2009(tmp_path / "month.parquet", *[{"Trip_Pickup_DateTime": time} for time in times])
    made = prepared(path)
    assert made.rows == [0, 2, 3]
    assert made.values("pickup_datetime")[1:] == [None, dt.datetime(2009, 1, 1, 0, 0, 1)]  # noqa: DTZ001
    assert [apart["row"] for apart in made.quarantine] == [1]


def test_blanks_around_a_value_do_not_count(tmp_path: Path) -> None:
    made = csv_of(tmp_path, line(Fare_Amt=" 7.7 ", Passenger_Count=" 2", Trip_Pickup_DateTime="2009-01-15 12:00:00 "))
    assert made.trips.to_pylist() == [{"row": 0} | factory.TRIP_2009]


def test_a_row_with_two_unreadable_values_is_set_apart_once(tmp_path: Path) -> None:
    made = csv_of(tmp_path, line(Fare_Amt="x", Trip_Pickup_DateTime="y"), line())
    assert made.rows == [1]
    assert [(apart["row"], apart["reason"]) for apart in made.quarantine] == [(0, "pickup_datetime is not a time")]


def test_a_row_set_apart_counts_neither_as_odd_nor_as_filled(tmp_path: Path) -> None:
    made = csv_of(tmp_path, line(Trip_Pickup_DateTime="x", Fare_Amt=-5, Payment_Type=None), line())
    assert made.manifest["out_of_range"] == {}
    assert made.manifest["filled"] == {}


def test_lines_with_too_few_or_too_many_fields_are_set_apart_with_their_text(tmp_path: Path) -> None:
    long = line(Fare_Amt=2) + ",,x"
    made = csv_of(tmp_path, BAD_LINE, line(Fare_Amt=1), long, line(Fare_Amt=3), "", line(Fare_Amt=4))
    assert made.quarantine == [
        {"row": 0, "reason": readers.RAGGED, "raw": BAD_LINE},
        {"row": 2, "reason": readers.RAGGED, "raw": long},
    ]
    assert made.rows == [1, 3, 4]
    assert made.values("fare_amount") == [1.0, 3.0, 4.0]
    assert made.manifest["quarantined_by_reason"] == {readers.RAGGED: 2}
    assert (made.manifest["rows_in"], made.manifest["rows_out"], made.manifest["quarantined"]) == (5, 3, 2)


@pytest.mark.parametrize("block_bytes", [300, 1000, 7777, 2**24])
def test_row_numbers_hold_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", block_bytes)
    dice = np.random.default_rng(block_bytes)
    kinds = ["ragged", *dice.choice(["good", "ragged", "blank", "unreadable"], 400, p=[0.7, 0.1, 0.1, 0.1]), "ragged"]
    lines: list[str] = []
    good: list[int] = []
    bad: list[int] = []
    for kind in kinds:
        row = len(good) + len(bad)
        texts = {
            "good": line(Fare_Amt=row),
            "ragged": f"row,{row}",
            "blank": "",
            "unreadable": line(Fare_Amt=f"{row}x"),
        }
        lines.append(texts[str(kind)])
        if kind != "blank":
            (good if kind == "good" else bad).append(row)
    made = csv_of(tmp_path, *lines)
    assert made.rows == good
    assert made.values("fare_amount") == good
    assert sorted(apart["row"] for apart in made.quarantine) == bad
    assert all(str(apart["row"]) in apart["raw"] for apart in made.quarantine)
    assert made.manifest["rows_in"] == len(good) + len(bad)


@pytest.mark.parametrize("field", ["vendor_name", "Payment_Type", "store_and_forward"])
def test_a_stray_quote_swallows_no_lines(tmp_path: Path, field: str) -> None:
    lines = [line(Fare_Amt=row, **({field: '"x'} if row in {1, 4} else {})) for row in range(6)]
    made = csv_of(tmp_path, *lines)
    assert made.values("fare_amount") == [0, 1, 2, 3, 4, 5]
    assert made.manifest["rows_in"] == 6


def test_a_last_line_without_an_end_is_read(tmp_path: Path) -> None:
    path = factory.write_csv(tmp_path / "month.csv", [line(), line(Fare_Amt=3)])
    path.write_bytes(path.read_bytes().removesuffix(b"\r\n"))
    assert prepared(path).values("fare_amount") == [7.7, 3.0]


def test_a_header_with_a_mark_and_blanks_is_read(tmp_path: Path) -> None:
    header = "\ufeff" + ", ".join(name.upper() for name in factory.RAW_2009)
    made = prepared(factory.write_csv(tmp_path / "month.csv", [line()], header))
    assert made.trips.to_pylist() == [{"row": 0} | factory.TRIP_2009]


def test_a_month_without_rows_is_an_empty_month(tmp_path: Path) -> None:
    made = csv_of(tmp_path)
    assert (made.manifest["rows_in"], len(made.trips), made.quarantine) == (0, 0, [])
    assert made.trips.schema.equals(load_schema().schema)


# ---- streaming ----


def test_row_groups_are_no_larger_than_they_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = demo_of(tmp_path, 5000)
    whole = prepared(path, "whole")
    monkeypatch.setattr(readers, "BATCH_ROWS", 300)
    monkeypatch.setattr(prepare, "ROW_GROUP_ROWS", 1000)
    made = prepared(path, "parts")
    assert max(sizes(made.folder / "trips.parquet")) <= 1000
    assert len(sizes(made.folder / "trips.parquet")) >= 5
    assert made.trips.equals(whole.trips)
    assert sizes(whole.folder / "trips.parquet") == [5000]


def test_text_that_arrow_cannot_read_dictionary_coded_is_read_all_the_same(tmp_path: Path) -> None:
    path = factory.write_2009(tmp_path / "delta.parquet", {}, {"vendor_name": "VTS"})
    encodings = dict.fromkeys(factory.TEXT_2009, "DELTA_BYTE_ARRAY")
    pq.write_table(pq.read_table(path), path, use_dictionary=False, column_encoding=encodings)
    assert prepared(path).values("vendor") == ["CMT", "VTS"]


def test_small_batches_are_gathered_into_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_ROWS", 100)
    monkeypatch.setattr(prepare, "ROW_GROUP_ROWS", 2000)
    path = demo_of(tmp_path, 5000)
    assert sizes(prepared(path).folder / "trips.parquet") == [2000, 2000, 1000]
    month = readers.open_month(path, "here")
    conformer = conformer_of(month)
    held = [len(group) for group, _ in prepare.grouped(prepare.conformed(conformer, month))]
    assert held == [2000, 2000, 1000]


def test_by_default_a_row_group_is_about_a_million_rows() -> None:
    assert prepare.ROW_GROUP_ROWS == 2**20
    assert prepare.ROW_GROUP_ROWS % readers.BATCH_ROWS == 0


def test_the_row_groups_of_the_published_file_do_not_matter(tmp_path: Path) -> None:
    one = demo_of(tmp_path, 5000)
    many = tmp_path / "many.parquet"
    pq.write_table(pq.read_table(one), many, row_group_size=700)
    made = [prepared(path, path.stem) for path in (one, many)]
    assert factory.contents(made[0].folder)["trips.parquet"] == factory.contents(made[1].folder)["trips.parquet"]


def test_one_huge_row_group_is_streamed_in_bounded_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "CHUNK", 2**20)
    path = demo_of(tmp_path, 300_000)
    assert sizes(path) == [300_000]
    decoded = pq.read_table(path).nbytes
    monkeypatch.setattr(readers, "BATCH_ROWS", 4096)
    month = readers.open_month(path, "here")
    conformer = conformer_of(month)
    before = peak = pa.total_allocated_bytes()
    rows = 0
    for trips, _ in prepare.conformed(conformer, month):
        assert len(trips) <= 4096
        rows += len(trips)
        peak = max(peak, pa.total_allocated_bytes())
    assert rows == 300_000
    # The compressed columns of a row group are held; the decoded rows, twice as large, never are.
    assert peak - before < decoded / 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_same_month_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    path = demo_of(tmp_path, 4000)
    if kind == "csv":
        path = factory.write_csv(
            tmp_path / "m.csv", [line(Payment_Type=f"kind {n % 7}") for n in range(200)] + [BAD_LINE]
        )
    first, second = (factory.contents(prepared(path, name).folder) for name in ("first", "second"))
    assert first == second
    assert set(first) == {"trips.parquet", "_quarantine.parquet", "_manifest.json"}


# ---- the manifest, and failures ----


def test_the_receipt_tells_what_is_true_of_the_files(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    path = factory.write_csv(
        paths.raw(MONTH) / "yellow.csv", [line(Payment_Type="Barter"), BAD_LINE, line(Fare_Amt=-1)]
    )
    assert run_cli(paths.root, "prepare", MONTH)[0] == 0
    manifest = json.loads((paths.prepared(MONTH) / "_manifest.json").read_text())
    folder = paths.prepared(MONTH)
    files = {"published": path, "trips": paths.prepared_file(MONTH), "quarantine": folder / "_quarantine.parquet"}
    facts = {
        key: {"bytes": len(file.read_bytes()), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for key, file in files.items()
    }
    mapping = manifest.pop("mapping")
    columns = mapping["columns"]
    assert columns["fare_amount"] == {"name": "Fare_Amt", "type": "string"}
    assert set(columns) == set(factory.TRIP_2009) - {
        "improvement_surcharge",
        "congestion_surcharge",
        "airport_fee",
        "cbd_congestion_fee",
        "pickup_location_id",
        "dropoff_location_id",
        "trip_type",
    }
    assert manifest == {
        "month": MONTH,
        "rows_in": 3,
        "rows_out": 2,
        "quarantined": 1,
        "quarantined_by_reason": {readers.RAGGED: 1},
        "filled": {},
        "out_of_range": {"fare_amount": 1},
        "outside_month": 0,
        "unknown_aliases": {"payment_type: Barter": 1},
        "unknown_columns": [],
        "format": prepare.FORMAT,
        "schema": load_schema().version,
        "era": "2009-01",
        "aliases": {
            "vendor": {"CMT": "CMT"},
            "rate_code": {},
            "payment_type": {"Barter": "Barter", "Credit": "credit"},
        },
        **facts,
    }


def damaged_page(folder: Path) -> bytes:
    """A Parquet month with a good footer whose first pages are overwritten."""
    data = bytearray(demo_of(folder, 5000).read_bytes())
    data[4:2000] = b"\xff" * 1996
    return bytes(data)


def cut_off(folder: Path) -> bytes:
    data = demo_of(folder, 5000).read_bytes()
    return data[: len(data) // 2]


BROKEN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "damaged page": (damaged_page, "cannot be read"),
    "cut off": (cut_off, "cannot be read"),
    "not text": (lambda _: b"\xff\xfe\x00", "cannot be read"),
    "empty": (lambda _: b"", "lacks columns"),
    "another table": (lambda _: b"a,b\n1,2\n", "vendor (as vendor_name or vendor_id or VendorID)"),
}


@pytest.mark.parametrize(("broken", "what"), BROKEN.values(), ids=BROKEN)
def test_a_month_that_cannot_be_prepared_leaves_the_earlier_one(
    run_cli: Run, make_project: MakeProject, tmp_path: Path, broken: Callable[[Path], bytes], what: str
) -> None:
    paths = make_project()
    path = factory.write_2009(paths.raw(MONTH) / "yellow.parquet", {}, {})
    assert run_cli(paths.root, "prepare", MONTH)[0] == 0
    before = factory.contents(paths.prepared(MONTH))
    path.write_bytes(broken(tmp_path))
    code, printed = run_cli(paths.root, "prepare", MONTH)
    assert code == 1
    assert what in printed
    assert f"yellow.parquet, month {MONTH}" in printed
    assert "Traceback" not in printed
    assert factory.contents(paths.prepared(MONTH)) == before
    assert list((paths.root / "data" / "trips").iterdir()) == [paths.prepared(MONTH)]
    assert factory.contents(paths.staging) == {}


@pytest.mark.parametrize("column", ["Payment_Type", "Trip_Pickup_DateTime"])
def test_a_missing_column_is_named_with_the_month(run_cli: Run, make_project: MakeProject, column: str) -> None:
    paths = make_project()
    path = factory.write_2009(paths.raw(MONTH) / "yellow.parquet", {})
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    code, printed = run_cli(paths.root, "prepare", MONTH)
    assert code == 1
    assert column in printed
    assert f"month {MONTH}" in printed
    assert factory.contents(paths.root / "data" / "trips") == {}
    assert factory.contents(paths.staging) == {}


def test_two_columns_for_one_place_are_named(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    factory.write_tpep(paths.raw(MONTH) / "m.parquet", {"airport_fee": 1.0}, airport_fee=pa.float64())
    code, printed = run_cli(paths.root, "prepare", MONTH)
    assert code == 1
    assert "'Airport_fee' and 'airport_fee', are both airport_fee" in printed
    assert MONTH in printed


@pytest.mark.parametrize("files", [[], ["a.parquet", "b.parquet"]])
def test_a_month_is_one_published_file(run_cli: Run, make_project: MakeProject, files: list[str]) -> None:
    paths = make_project()
    paths.raw(MONTH).mkdir(parents=True)
    for name in files:
        factory.write_2009(paths.raw(MONTH) / name, {})
    code, printed = run_cli(paths.root, "prepare", MONTH)
    assert code == 1
    assert f"found {len(files)}" in printed
    assert f"dvc repro -f download@{MONTH}" in printed


def test_a_month_prepared_again_takes_the_place_of_the_old_one(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    paths.prepared(MONTH).mkdir(parents=True)
    (paths.prepared(MONTH) / "stray").touch()
    for rows in (3, 1):
        factory.write_2009(paths.raw(MONTH) / "yellow.parquet", *[{}] * rows)
        assert run_cli(paths.root, "prepare", MONTH)[0] == 0
        assert pq.read_metadata(paths.prepared_file(MONTH)).num_rows == rows
    assert set(factory.contents(paths.prepared(MONTH))) == {"trips.parquet", "_quarantine.parquet", "_manifest.json"}


def test_a_lost_row_is_noticed(tmp_path: Path) -> None:
    class Forgetful(readers.ParquetMonth):
        """A reader that leaves out the last row."""

        def batches(self, *arguments: Any) -> Any:
            for batch in super().batches(*arguments):
                yield readers.Batch(batch.rows[:-1], batch.values.slice(0, len(batch.rows) - 1))

    month = Forgetful(factory.write_2009(tmp_path / "month.parquet", {}, {}, {}))
    conformer = conformer_of(month)
    with pytest.raises(TiplineError, match="3 rows were published, 2 prepared and 0 set apart"):
        prepare.write(conformer, month, tmp_path)


def test_looking_at_the_texts_of_many_row_groups_holds_one_at_a_time(tmp_path: Path) -> None:
    rows = 20_000
    times = pa.array([f"2009-01-01 00:{row // 60 % 60:02}:{row % 60:02}.{row:05}" for row in range(rows)])
    with pq.ParquetWriter(tmp_path / "month.parquet", pa.schema([("time", pa.string())])) as writer:
        for _ in range(20):
            writer.write_table(pa.table({"time": times}))
    held, before = [], pa.total_allocated_bytes()
    with pq.ParquetFile(tmp_path / "month.parquet", read_dictionary=["time"]) as file:
        for head in readers.heads(file, ["time"]):
            assert len(head) == 1
            held.append(pa.total_allocated_bytes() - before)
    assert len(held) == 20
    assert max(held) < 3 * held[0]
