"""The first lines of each of the 221 months that the TLC published as CSV come out as what their bytes say."""

# ruff: noqa: FBT003 (a table)

import datetime as dt
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from tests import factory
from tests.factory import COLUMNS, prepare_file

# The columns of the lines, written down from the headers; a dash for what is left out.
COORDINATES = """vendor pickup_datetime dropoff_datetime passenger_count trip_distance - - rate_code - - - payment_type
    fare_amount extra mta_tax tip_amount tolls_amount total_amount"""
SURCHARGE = COORDINATES.replace("total_amount", "improvement_surcharge total_amount")
ZONES = """vendor pickup_datetime dropoff_datetime passenger_count trip_distance rate_code - pickup_location_id
    dropoff_location_id payment_type fare_amount extra mta_tax tip_amount tolls_amount improvement_surcharge
    total_amount"""
GREEN = """vendor pickup_datetime dropoff_datetime - rate_code - - - - passenger_count trip_distance fare_amount extra
    mta_tax tip_amount tolls_amount - total_amount payment_type trip_type"""
GREEN_SURCHARGE = GREEN.replace("total_amount", "improvement_surcharge total_amount")
GREEN_ZONES = GREEN_SURCHARGE.replace("- - - -", "pickup_location_id dropoff_location_id")


class Format(NamedTuple):
    """The format of a colour's months, until its next one."""

    colour: str
    since: str
    era: str
    columns: str
    is_blank: bool  # the second line
    surplus: int = 0  # fields of the lines beyond the header


FORMATS = [
    Format("yellow", "2009-01", "2009-01", COORDINATES, True),
    Format("yellow", "2010-01", "2010-01", COORDINATES, True),
    Format("yellow", "2015-01", "2015-01", SURCHARGE, False),
    Format("yellow", "2016-07", "2016-07", ZONES, False, 2),
    Format("yellow", "2017-01", "2016-07", ZONES, True),
    Format("yellow", "2019-01", "2019-01", f"{ZONES} congestion_surcharge", False),
    Format("green", "2013-08", "2013-08", GREEN, True, 2),
    Format("green", "2015-01", "2015-01", GREEN_SURCHARGE, False, 2),
    Format("green", "2015-07", "2015-01", GREEN_SURCHARGE, False),
    Format("green", "2016-01", "2015-01", GREEN_SURCHARGE, True),
    Format("green", "2016-07", "2016-07", GREEN_ZONES, True, 2),
    Format("green", "2017-01", "2016-07", GREEN_ZONES, True),
    Format("green", "2019-01", "2019-01", f"{GREEN_ZONES} congestion_surcharge", False),
]
RATES = {"1": "standard", "2": "JFK", "3": "Newark", "4": "Nassau or Westchester", "5": "negotiated"}
VENDORS = {"CMT": "CMT", "DDS": "DDS", "VTS": "VTS", "1": "CMT", "2": "VTS"}
TYPES = {"1": "street hail", "2": "dispatch"}
WORDS_2009 = {"CASH": "cash", "CREDIT": "credit", "NO CHARGE": "no charge", "DISPUTE": "dispute"}
WORDS_2010 = {"CAS": "cash", "CSH": "cash", "CRE": "credit", "CRD": "credit", "NOC": "no charge", "DIS": "dispute"}
WORDS_2010 |= {"NA ": "unknown", "UNK": "unknown"}
NUMBERS = {"1": "credit", "2": "cash", "3": "no charge", "4": "dispute", "5": "unknown", "6": "voided"}
INTEGERS = ("passenger_count", "pickup_location_id", "dropoff_location_id")
HEADS = [("yellow", str(month)) for month in pd.period_range("2009-01", "2020-06", freq="M")]
HEADS += [("green", str(month)) for month in pd.period_range("2013-08", "2020-06", freq="M")]


def find_format(colour: str, month: str) -> Format:
    return max((one for one in FORMATS if one.colour == colour and one.since <= month), key=lambda one: one.since)


def read_value(column: str, text: str, era: str) -> Any:
    if not text:
        return None
    if column.endswith("datetime"):
        return dt.datetime.fromisoformat(text)
    payments = {"2009-01": WORDS_2009, "2010-01": WORDS_2010}.get(era, NUMBERS)
    words = {"vendor": VENDORS, "rate_code": RATES, "trip_type": TYPES, "payment_type": payments}
    if column in words:
        return words[column][text.upper()]
    return int(text) if column in INTEGERS else float(text)


def read_rows(colour: str, month: str, data: bytes) -> list[dict[str, Any]]:
    """The rows that a file's bytes say, in plain Python."""
    its = find_format(colour, month)
    rows = []
    for number, line in enumerate(line for line in data.decode().splitlines()[1:] if line):
        fields, columns = line.split(","), its.columns.split()
        assert len(fields) == len(columns) + its.surplus
        values = {
            name: read_value(name, text, its.era) for name, text in zip(columns, fields, strict=False) if name != "-"
        }
        rows.append({"row": number} | dict.fromkeys(COLUMNS) | values)
    return rows


def read_head(tlc: Path, colour: str, month: str) -> bytes:
    """The head of a month without its last line, which is cut off."""
    data = (tlc / "heads" / f"{colour}_tripdata_{month}.csv").read_bytes()
    return data[: data.rindex(b"\n") + 1]


def prepare_bytes(folder: Path, data: bytes, month: str) -> factory.Prepared:
    (folder / "month.csv").write_bytes(data)
    return prepare_file(folder / "month.csv", month)


def test_all_heads_are_tested(tlc: Path) -> None:
    names = {path.name for path in (tlc / "heads").iterdir()}
    assert names == {f"{colour}_tripdata_{month}.csv" for colour, month in HEADS}
    assert len(HEADS) == 221


@pytest.mark.parametrize(("colour", "month"), HEADS, ids=[f"{colour}-{month}" for colour, month in HEADS])
def test_a_head_comes_out_as_its_bytes_say(tlc: Path, tmp_path: Path, colour: str, month: str) -> None:
    its, data = find_format(colour, month), read_head(tlc, colour, month)
    header, second, *lines = data.replace(b"\r\n", b"\n").split(b"\n")
    assert (second == b"", lines[1].count(b",") - header.count(b",")) == (its.is_blank, its.surplus)
    assert (b", " in header) == (colour == "yellow" and month.startswith("2014"))
    made, rows = prepare_bytes(tmp_path, data, month), read_rows(colour, month, data)
    assert made.trips.to_pylist() == rows
    assert made.counts == (len(rows), len(rows), 0)
    assert len(rows) >= 3
    assert made.quarantine == []
    manifest = made.manifest
    assert (manifest["filled"], manifest["unknown_aliases"], manifest["unknown_columns"]) == ({}, {}, [])
    assert manifest["era"] == its.era
    assert made.trips.schema.equals(factory.STORED)
    assert made.trips.schema.names == ["row", *COLUMNS]


def test_a_surplus_field_with_a_value_quarantines_its_line(tlc: Path, tmp_path: Path) -> None:
    lines = read_head(tlc, "yellow", "2016-07").split(b"\r\n")
    lines[2] = lines[2].removesuffix(b",") + b",7"
    made = prepare_bytes(tmp_path, b"\r\n".join(lines), "2016-07")
    assert made.values("row") == [0, *range(2, len(lines) - 2)]
    assert [(row["row"], row["raw"]) for row in made.quarantine] == [(1, lines[2].decode())]


@pytest.mark.parametrize(("month", "rows"), [("2013-01", 997), ("2015-01", 1999)])
def test_each_row_of_a_sample_comes_out_as_its_bytes_say(tlc: Path, tmp_path: Path, month: str, rows: int) -> None:
    data = (tlc / "samples" / f"yellow_tripdata_{month}.csv").read_bytes()
    made = prepare_bytes(tmp_path, data, month)
    assert made.trips.to_pylist() == read_rows("yellow", month, data)
    assert made.counts == (rows, rows, 0)
    assert (made.manifest["unknown_columns"], made.manifest["unknown_aliases"]) == ([], {})
