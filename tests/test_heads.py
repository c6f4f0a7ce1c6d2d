"""The first lines of every month that the TLC published as CSV come out as what their bytes say."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tipline.ingest import prepare
from tipline.ingest.schema import load_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTRACT = load_schema()  # for the code under test; what is expected is written out here

COLUMNS = [
    "vendor",
    "pickup_datetime",
    "dropoff_datetime",
    "passenger_count",
    "trip_distance",
    "rate_code",
    "trip_type",
    "payment_type",
    "fare_amount",
    "extra",
    "mta_tax",
    "tolls_amount",
    "improvement_surcharge",
    "congestion_surcharge",
    "airport_fee",
    "cbd_congestion_fee",
    "pickup_location_id",
    "dropoff_location_id",
    "tip_amount",
    "total_amount",
]

# What stands where in the lines, written down from the header lines; a dash for what is left behind.
COORDINATES = """vendor pickup_datetime dropoff_datetime passenger_count trip_distance - - rate_code - - - payment_type
    fare_amount extra mta_tax tip_amount tolls_amount total_amount"""
SURCHARGE = """vendor pickup_datetime dropoff_datetime passenger_count trip_distance - - rate_code - - - payment_type
    fare_amount extra mta_tax tip_amount tolls_amount improvement_surcharge total_amount"""
ZONES = """vendor pickup_datetime dropoff_datetime passenger_count trip_distance rate_code - pickup_location_id
    dropoff_location_id payment_type fare_amount extra mta_tax tip_amount tolls_amount improvement_surcharge
    total_amount"""
GREEN = """vendor pickup_datetime dropoff_datetime - rate_code - - - - passenger_count trip_distance fare_amount extra
    mta_tax tip_amount tolls_amount - total_amount payment_type trip_type"""
GREEN_SURCHARGE = """vendor pickup_datetime dropoff_datetime - rate_code - - - - passenger_count trip_distance
    fare_amount extra mta_tax tip_amount tolls_amount - improvement_surcharge total_amount payment_type trip_type"""
GREEN_ZONES = """vendor pickup_datetime dropoff_datetime - rate_code pickup_location_id dropoff_location_id
    passenger_count trip_distance fare_amount extra mta_tax tip_amount tolls_amount - improvement_surcharge
    total_amount payment_type trip_type"""


@dataclass(frozen=True)
class Form:
    """How the files of some months are written, until the next form of their colour.

    Parameters
    ----------
    era
        What the manifest has to say.
    places
        What stands where in a line.
    blank
        Whether the second line is blank.
    surplus
        How many fields the lines have more than the header.
    """

    colour: str
    since: str
    era: str
    places: str
    blank: bool
    surplus: int = 0


FORMS = [
    Form("yellow", "2009-01", "2009-01", COORDINATES, blank=True),
    Form("yellow", "2010-01", "2010-01", COORDINATES, blank=True),
    Form("yellow", "2015-01", "2015-01", SURCHARGE, blank=False),
    Form("yellow", "2016-07", "2016-07", ZONES, blank=False, surplus=2),
    Form("yellow", "2017-01", "2016-07", ZONES, blank=True),
    Form("yellow", "2019-01", "2019-01", f"{ZONES} congestion_surcharge", blank=False),
    Form("green", "2013-08", "2013-08", GREEN, blank=True, surplus=2),
    Form("green", "2015-01", "2015-01", GREEN_SURCHARGE, blank=False, surplus=2),
    Form("green", "2015-07", "2015-01", GREEN_SURCHARGE, blank=False),
    Form("green", "2016-01", "2015-01", GREEN_SURCHARGE, blank=True),
    Form("green", "2016-07", "2016-07", GREEN_ZONES, blank=True, surplus=2),
    Form("green", "2017-01", "2016-07", GREEN_ZONES, blank=True),
    Form("green", "2019-01", "2019-01", f"{GREEN_ZONES} congestion_surcharge", blank=False),
]
WORDS = {
    "vendor": {"CMT": "CMT", "DDS": "DDS", "VTS": "VTS", "1": "CMT", "2": "VTS"},
    "rate_code": {"1": "standard", "2": "JFK", "3": "Newark", "4": "Nassau or Westchester", "5": "negotiated"},
    "trip_type": {"1": "street hail", "2": "dispatch"},
}
PAYMENTS = {
    "2009-01": {
        "CASH": "cash",
        "Cash": "cash",
        "CREDIT": "credit",
        "Credit": "credit",
        "No Charge": "no charge",
        "Dispute": "dispute",
    },
    "2010-01": {
        "CAS": "cash",
        "Cas": "cash",
        "CSH": "cash",
        "CRE": "credit",
        "Cre": "credit",
        "CRD": "credit",
        "NOC": "no charge",
        "DIS": "dispute",
        "NA ": "unknown",
        "UNK": "unknown",
    },
    "numbers": {"1": "credit", "2": "cash", "3": "no charge", "4": "dispute", "5": "unknown", "6": "voided"},
}
WHOLE = ("passenger_count", "pickup_location_id", "dropoff_location_id")


def months(first: str, last: str) -> list[str]:
    """All months from `first` to `last`."""
    return [str(month) for month in pd.period_range(first, last, freq="M")]


HEADS = [("yellow", month) for month in months("2009-01", "2020-06")]
HEADS += [("green", month) for month in months("2013-08", "2020-06")]
every_head = pytest.mark.parametrize(("colour", "month"), HEADS, ids=[f"{colour}-{month}" for colour, month in HEADS])


def form(colour: str, month: str) -> Form:
    """The latest form of a colour that is not later than the month."""
    return max((one for one in FORMS if one.colour == colour and one.since <= month), key=lambda one: one.since)


def value(column: str, text: str, payments: dict[str, str]) -> Any:
    """What one field says."""
    if not text:
        return None
    if column in {"pickup_datetime", "dropoff_datetime"}:
        return dt.datetime.fromisoformat(text)
    words = payments if column == "payment_type" else WORDS.get(column)
    if words:
        return words[text]
    return int(text) if column in WHOLE else float(text)


def data_lines(data: bytes) -> list[str]:
    """The lines below the header that are not blank."""
    return [line for line in data.decode().replace("\r\n", "\n").split("\n")[1:] if line]


def expected(colour: str, month: str, data: bytes) -> list[dict[str, Any]]:
    """The rows that a file's bytes say, in plain Python."""
    its = form(colour, month)
    payments = PAYMENTS.get(its.era, PAYMENTS["numbers"])
    rows = []
    for number, line in enumerate(data_lines(data)):
        fields = line.split(",")
        row: dict[str, Any] = {"row": number, **dict.fromkeys(COLUMNS)}
        assert len(fields) == len(its.places.split()) + its.surplus
        for place, text in zip(its.places.split(), fields, strict=False):
            if place != "-":
                row[place] = value(place, text, payments)
        rows.append(row)
    return rows


@dataclass
class Head:
    """The first lines of a published month, and what `prepare` made of them."""

    path: Path
    data: bytes
    manifest: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The prepared rows."""
        found: list[dict[str, Any]] = pq.read_table(self.path.parent / "made" / "trips.parquet").to_pylist()
        return found


def prepared(path: Path, data: bytes, month: str) -> Head:
    """Write these bytes there and prepare them."""
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    (path.parent / "made").mkdir()
    return Head(path, data, prepare.prepare_month(path, path.parent / "made", CONTRACT, month))


def published(tlc: Path, colour: str, month: str) -> bytes:
    """The head of a month, byte for byte, without the last line, which is cut off."""
    data = (tlc / "heads" / f"{colour}_tripdata_{month}.csv").read_bytes()
    return data[: data.rindex(b"\n") + 1]


@pytest.fixture(scope="module")
def head(tlc: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Head]:
    """Give a function that prepares the head of a month, once."""
    folder = tmp_path_factory.mktemp("heads")

    @cache
    def of(colour: str, month: str) -> Head:
        name = f"{colour}_tripdata_{month}.csv"
        return prepared(folder / name.removesuffix(".csv") / name, published(tlc, colour, month), month)

    return of


def test_every_head_there_is_is_tested(tlc: Path) -> None:
    names = {path.name for path in (tlc / "heads").iterdir()}
    assert names == {f"{colour}_tripdata_{month}.csv" for colour, month in HEADS}
    assert len(HEADS) == 138 + 83


@every_head
def test_each_row_of_a_head_is_what_its_bytes_say(head: Callable[..., Head], colour: str, month: str) -> None:
    made = head(colour, month)
    rows = expected(colour, month, made.data)
    assert made.rows[0] == rows[0]
    assert made.rows == rows
    assert len(rows) >= 3


@every_head
def test_a_head_loses_no_row_and_is_all_understood(head: Callable[..., Head], colour: str, month: str) -> None:
    made = head(colour, month)
    lines = len([line for line in made.data.split(b"\n")[1:] if line.strip()])
    manifest = made.manifest
    assert (manifest["rows_in"], manifest["rows_out"], manifest["quarantined"]) == (lines, lines, 0)
    assert (manifest["filled"], manifest["unknown_aliases"], manifest["unknown_columns"]) == ({}, {}, [])
    assert pq.read_metadata(made.path.parent / "made" / "_quarantine.parquet").num_rows == 0


@every_head
def test_a_head_has_its_era_and_the_schema_of_all_others(head: Callable[..., Head], colour: str, month: str) -> None:
    made = head(colour, month)
    assert made.manifest["era"] == form(colour, month).era
    schema = pq.read_schema(made.path.parent / "made" / "trips.parquet")
    assert schema.equals(CONTRACT.schema)
    assert schema.names == ["row", *COLUMNS]


@every_head
def test_a_head_is_written_as_the_table_of_the_eras_says(tlc: Path, colour: str, month: str) -> None:
    header, second, *lines = published(tlc, colour, month).replace(b"\r\n", b"\n").split(b"\n")
    its = form(colour, month)
    assert (second == b"") == its.blank
    assert (b", " in header) == (month.startswith("2014") and colour == "yellow")
    assert lines[1].count(b",") - header.count(b",") == its.surplus


# ---- ten first rows, written out ----


def at(text: str) -> dt.datetime:
    """A time as it is prepared."""
    return dt.datetime.fromisoformat(text)


FIRST: dict[tuple[str, str], dict[str, Any]] = {
    ("yellow", "2009-01"): {
        "row": 0,
        "vendor": "VTS",
        "pickup_datetime": at("2009-01-04 02:52:00"),
        "dropoff_datetime": at("2009-01-04 03:02:00"),
        "passenger_count": 1,
        "trip_distance": 2.63,
        "payment_type": "cash",
        "fare_amount": 8.9,
        "extra": 0.5,
        "tip_amount": 0.0,
        "tolls_amount": 0.0,
        "total_amount": 9.4,
    },
    ("yellow", "2010-02"): {
        "row": 0,
        "vendor": "CMT",
        "pickup_datetime": at("2010-02-13 01:46:36"),
        "dropoff_datetime": at("2010-02-13 01:50:06"),
        "passenger_count": 1,
        "trip_distance": 0.5,
        "rate_code": "standard",
        "payment_type": "credit",
        "fare_amount": 4.1,
        "extra": 0.5,
        "mta_tax": 0.5,
        "tip_amount": 1.0,
        "tolls_amount": 0.0,
        "total_amount": 6.1,
    },
    ("yellow", "2010-09"): {
        "row": 0,
        "vendor": "VTS",
        "pickup_datetime": at("2010-09-15 06:52:00"),
        "dropoff_datetime": at("2010-09-15 06:56:00"),
        "passenger_count": 1,
        "trip_distance": 0.39,
        "rate_code": "standard",
        "payment_type": "cash",
        "fare_amount": 3.7,
        "extra": 0.0,
        "mta_tax": 0.5,
        "tip_amount": 0.0,
        "tolls_amount": 0.0,
        "total_amount": 4.2,
    },
    ("yellow", "2011-05"): {
        "row": 0,
        "vendor": "CMT",
        "pickup_datetime": at("2011-05-13 20:48:53"),
        "dropoff_datetime": at("2011-05-13 20:59:28"),
        "passenger_count": 1,
        "trip_distance": 0.0,
        "rate_code": "standard",
        "payment_type": "credit",
        "fare_amount": 9.3,
        "extra": 0.5,
        "mta_tax": 0.5,
        "tip_amount": 2.05,
        "tolls_amount": 0.0,
        "total_amount": 12.35,
    },
    ("yellow", "2014-03"): {
        "row": 0,
        "vendor": "CMT",
        "pickup_datetime": at("2014-03-01 01:07:38"),
        "dropoff_datetime": at("2014-03-01 01:16:26"),
        "passenger_count": 1,
        "trip_distance": 2.0,
        "rate_code": "standard",
        "payment_type": "credit",
        "fare_amount": 9.0,
        "extra": 0.5,
        "mta_tax": 0.5,
        "tip_amount": 2.0,
        "tolls_amount": 0.0,
        "total_amount": 12.0,
    },
    ("yellow", "2015-01"): {
        "row": 0,
        "vendor": "VTS",
        "pickup_datetime": at("2015-01-15 19:05:39"),
        "dropoff_datetime": at("2015-01-15 19:23:42"),
        "passenger_count": 1,
        "trip_distance": 1.59,
        "rate_code": "standard",
        "payment_type": "credit",
        "fare_amount": 12.0,
        "extra": 1.0,
        "mta_tax": 0.5,
        "tip_amount": 3.25,
        "tolls_amount": 0.0,
        "improvement_surcharge": 0.3,
        "total_amount": 17.05,
    },
    ("yellow", "2016-07"): {
        "row": 0,
        "vendor": "CMT",
        "pickup_datetime": at("2016-07-10 06:56:05"),
        "dropoff_datetime": at("2016-07-10 06:59:53"),
        "passenger_count": 1,
        "trip_distance": 0.5,
        "rate_code": "standard",
        "payment_type": "credit",
        "fare_amount": 4.5,
        "extra": 1.0,
        "mta_tax": 0.5,
        "tip_amount": 2.7,
        "tolls_amount": 0.0,
        "improvement_surcharge": 0.3,
        "pickup_location_id": 263,
        "dropoff_location_id": 236,
        "total_amount": 9.0,
    },
    ("yellow", "2019-01"): {
        "row": 0,
        "vendor": "CMT",
        "pickup_datetime": at("2019-01-01 00:46:40"),
        "dropoff_datetime": at("2019-01-01 00:53:20"),
        "passenger_count": 1,
        "trip_distance": 1.5,
        "rate_code": "standard",
        "payment_type": "credit",
        "fare_amount": 7.0,
        "extra": 0.5,
        "mta_tax": 0.5,
        "tip_amount": 1.65,
        "tolls_amount": 0.0,
        "improvement_surcharge": 0.3,
        "congestion_surcharge": None,  # not charged before February
        "pickup_location_id": 151,
        "dropoff_location_id": 239,
        "total_amount": 9.95,
    },
    ("green", "2013-08"): {
        "row": 0,
        "vendor": "VTS",
        "pickup_datetime": at("2013-08-01 08:14:37"),
        "dropoff_datetime": at("2013-08-01 09:09:06"),
        "passenger_count": 1,
        "trip_distance": 0.0,
        "rate_code": "standard",
        "trip_type": None,  # two fields too many, and this one blank
        "payment_type": "cash",
        "fare_amount": 21.25,
        "extra": 0.0,
        "mta_tax": 0.0,
        "tip_amount": 0.0,
        "tolls_amount": 0.0,
        "total_amount": 21.25,
    },
    ("green", "2016-07"): {
        "row": 0,
        "vendor": "VTS",
        "pickup_datetime": at("2016-07-01 00:01:22"),
        "dropoff_datetime": at("2016-07-01 00:38:57"),
        "passenger_count": 1,
        "trip_distance": 7.14,
        "rate_code": "standard",
        "trip_type": "street hail",
        "payment_type": "credit",
        "fare_amount": 28.0,
        "extra": 0.0,
        "mta_tax": 0.5,
        "tip_amount": 5.76,
        "tolls_amount": 0.0,
        "improvement_surcharge": 0.3,
        "pickup_location_id": 7,
        "dropoff_location_id": 41,
        "total_amount": 34.56,
    },
}


@pytest.mark.parametrize(("colour", "month"), FIRST)
def test_the_first_row_of_ten_eras_is_this(head: Callable[..., Head], colour: str, month: str) -> None:
    assert head(colour, month).rows[0] == dict.fromkeys(COLUMNS) | FIRST[colour, month]


# ---- these tests can fail ----


@pytest.mark.parametrize(
    ("colour", "month", "names", "swapped"),
    [
        ("yellow", "2009-01", b"Fare_Amt,surcharge", b"surcharge,Fare_Amt"),
        ("yellow", "2014-03", b" tolls_amount, total_amount", b" total_amount, tolls_amount"),
        ("yellow", "2016-07", b"improvement_surcharge,total_amount", b"total_amount,improvement_surcharge"),
        ("green", "2013-08", b"Payment_type,Trip_type ", b"Trip_type ,Payment_type"),
    ],
)
def test_two_names_that_change_places_are_seen(
    tlc: Path, tmp_path: Path, colour: str, month: str, names: bytes, swapped: bytes
) -> None:
    data = published(tlc, colour, month)
    mutated = data.replace(names, swapped, 1)
    assert mutated != data
    assert prepared(tmp_path / "head" / "month.csv", mutated, month).rows != expected(colour, month, data)


def test_fields_beyond_the_header_shift_columns_in_pandas_and_not_here(head: Callable[..., Head]) -> None:
    made = head("yellow", "2016-07")
    totals = [float(line.split(",")[16]) for line in data_lines(made.data)]
    shifted = pd.read_csv(made.path)["total_amount"]
    assert shifted.isna().all()
    assert [row["total_amount"] for row in made.rows] == totals


@pytest.mark.parametrize("month", ["2016-07", "2016-12"])
def test_a_field_beyond_the_header_that_says_something_sets_its_line_apart(
    tlc: Path, tmp_path: Path, month: str
) -> None:
    lines = published(tlc, "yellow", month).split(b"\r\n")
    lines[2] = lines[2].removesuffix(b",") + b",7"
    made = prepared(tmp_path / "head" / "month.csv", b"\r\n".join(lines), month)
    assert [row["row"] for row in made.rows] == [0, *range(2, len(lines) - 2)]
    (apart,) = pq.read_table(tmp_path / "head" / "made" / "_quarantine.parquet").to_pylist()
    assert (apart["row"], apart["raw"]) == (1, lines[2].decode())


# ---- whole samples ----


@pytest.mark.parametrize(("month", "rows"), [("2013-01", 997), ("2015-01", 1999)])
def test_every_row_of_a_sample_is_what_its_bytes_say(tlc: Path, tmp_path: Path, month: str, rows: int) -> None:
    data = (tlc / "samples" / f"yellow_tripdata_{month}.csv").read_bytes()
    made = prepared(tmp_path / "sample" / "month.csv", data, month)
    assert made.rows == expected("yellow", month, data)
    assert (len(made.rows), made.manifest["rows_in"], made.manifest["quarantined"]) == (rows, rows, 0)
    assert made.manifest["unknown_columns"] == []
    assert made.manifest["unknown_aliases"] == {}
