"""The green Parquet months as published, each with other types, are one schema and one data set once prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from tipline.ingest import prepare
from tipline.ingest.schema import load_schema

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {"2022-01": 62_495, "2023-02": 64_809, "2024-01": 56_551}
every_month = pytest.mark.parametrize("month", ROWS)
# By hand, from the column descriptions of the TLC.
PAYMENTS = {1: "credit", 2: "cash", 3: "no charge", 4: "dispute", 5: "unknown", None: "unknown"}
VENDORS = {1: "CMT", 2: "VTS", 6: "Myle", None: None}
RATES = {
    1: "standard",
    2: "JFK",
    3: "Newark",
    4: "Nassau or Westchester",
    5: "negotiated",
    6: "group",
    99: "unknown",
    None: None,
}
TRIP_TYPES = {1: "street hail", 2: "dispatch", None: None}
SAME = {
    "lpep_pickup_datetime": "pickup_datetime",
    "lpep_dropoff_datetime": "dropoff_datetime",
    "trip_distance": "trip_distance",
    "fare_amount": "fare_amount",
    "extra": "extra",
    "mta_tax": "mta_tax",
    "tolls_amount": "tolls_amount",
    "tip_amount": "tip_amount",
    "total_amount": "total_amount",
    "improvement_surcharge": "improvement_surcharge",
    "congestion_surcharge": "congestion_surcharge",
    "passenger_count": "passenger_count",
    "PULocationID": "pickup_location_id",
    "DOLocationID": "dropoff_location_id",
}
CODED: list[tuple[str, str, dict[Any, Any]]] = [
    ("payment_type", "payment_type", PAYMENTS),
    ("VendorID", "vendor", VENDORS),
    ("RatecodeID", "rate_code", RATES),
    ("trip_type", "trip_type", TRIP_TYPES),
]


@dataclass
class Green:
    """The three months: published, and as prepared."""

    source: Path
    trips: Path
    manifests: dict[str, dict[str, Any]]

    def published(self, month: str) -> pa.Table:
        """The file as it is."""
        return pq.read_table(self.source / f"green_tripdata_{month}.parquet")

    def prepared(self, month: str) -> pa.Table:
        """What came of it."""
        return pq.ParquetFile(self.trips / f"month={month}" / "trips.parquet").read()


@pytest.fixture(scope="module")
def green(tlc: Path, tmp_path_factory: pytest.TempPathFactory) -> Green:
    """The three months, prepared once."""
    trips, manifests = tmp_path_factory.mktemp("green") / "trips", {}
    for month in ROWS:
        folder = trips / f"month={month}"
        folder.mkdir(parents=True)
        path = tlc / "green" / f"green_tripdata_{month}.parquet"
        manifests[month] = prepare.prepare_month(path, folder, load_schema(), month)
    return Green(tlc / "green", trips, manifests)


@every_month
def test_no_row_of_a_green_month_is_lost(green: Green, month: str) -> None:
    manifest = green.manifests[month]
    assert (manifest["rows_in"], manifest["rows_out"], manifest["quarantined"]) == (ROWS[month], ROWS[month], 0)
    assert green.prepared(month)["row"].to_pylist() == list(range(ROWS[month]))
    assert (manifest["unknown_columns"], manifest["unknown_aliases"]) == ([], {})


@every_month
@pytest.mark.parametrize(("published", "name"), SAME.items())
def test_numbers_and_times_of_a_green_month_are_what_was_published(
    green: Green, month: str, published: str, name: str
) -> None:
    was, now = green.published(month)[published], green.prepared(month)[name]
    # Nothing of this is filled in these months: `extra` is never missing.
    assert now.cast(was.type).equals(was)
    assert now.null_count == was.null_count


@every_month
@pytest.mark.parametrize(("published", "name", "words"), CODED, ids=[name for _, name, _ in CODED])
def test_codes_of_a_green_month_become_words_row_by_row(
    green: Green, month: str, published: str, name: str, words: dict[Any, Any]
) -> None:
    codes = green.published(month)[published].to_pylist()
    assert green.prepared(month)[name].to_pylist() == [words[code] for code in codes]


@every_month
def test_the_counts_of_a_green_month_are_those_of_pandas(green: Green, month: str) -> None:
    published = green.published(month).to_pandas()
    counted = published["payment_type"].map(PAYMENTS).fillna("unknown").value_counts().to_dict()
    made = {pair["values"]: pair["counts"] for pair in green.prepared(month)["payment_type"].value_counts().to_pylist()}
    assert made == counted
    begin = pd.Timestamp(f"{month}-01")
    inside = published["lpep_pickup_datetime"].between(begin, begin + pd.offsets.MonthBegin(1), inclusive="left")
    manifest = green.manifests[month]
    assert manifest["outside_month"] == int((~inside).sum())
    assert manifest["filled"] == {"payment_type": int(published["payment_type"].isna().sum())}
    assert manifest["out_of_range"]["fare_amount"] == int((~published["fare_amount"].between(0, 500)).sum())


@every_month
def test_a_blank_payment_stays_in_the_month_as_unknown(green: Green, month: str) -> None:
    published, made = green.published(month), green.prepared(month)
    blank = published["payment_type"].is_null()
    assert pc.sum(blank).as_py() > 3000
    assert set(made.filter(blank)["payment_type"].to_pylist()) == {"unknown"}
    assert made.filter(blank)["passenger_count"].null_count == len(made.filter(blank))
    # Of green cabs, those with a blank payment still have a vendor; a column is blank only where it was published so.
    assert made["vendor"].null_count == published["VendorID"].null_count


@every_month
def test_a_blank_payment_with_a_blank_vendor_is_a_row_all_the_same(green: Green, month: str, tmp_path: Path) -> None:
    published = green.published(month)
    blank = published["payment_type"].is_null()
    vendors = pc.if_else(blank, None, published["VendorID"])
    place = published.schema.get_field_index("VendorID")
    path = tmp_path / f"green_tripdata_{month}.parquet"
    pq.write_table(published.set_column(place, published.field(place), vendors), path)
    manifest = prepare.prepare_month(path, tmp_path, load_schema(), month)
    made = pq.read_table(tmp_path / "trips.parquet")
    assert (manifest["rows_out"], manifest["quarantined"]) == (ROWS[month], 0)
    assert made["vendor"].is_null().equals(blank)
    assert set(made.filter(blank)["payment_type"].to_pylist()) == {"unknown"}


def test_the_types_of_the_three_months_differ_and_their_prepared_schemas_do_not(green: Green) -> None:
    published = {month: green.published(month).schema for month in ROWS}
    assert published["2022-01"].field("ehail_fee").type == pa.null()
    assert published["2023-02"].field("ehail_fee").type == pa.float64()
    assert {str(schema.field("payment_type").type) for schema in published.values()} == {"double", "int64"}
    assert {str(schema.field("VendorID").type) for schema in published.values()} == {"int32", "int64"}
    for month in ROWS:
        assert green.prepared(month).schema.equals(load_schema().schema)
        assert green.manifests[month]["era"] == "2019-01"
        columns = green.manifests[month]["mapping"]["columns"]
        assert {key: one["type"] for key, one in columns.items()} == {
            key: str(published[month].field(one["name"]).type) for key, one in columns.items()
        }


def test_the_three_months_are_one_data_set_for_arrow(green: Green) -> None:
    together = pyarrow.dataset.dataset(green.trips, partitioning="hive").to_table()
    assert len(together) == sum(ROWS.values())
    counts = together["month"].value_counts().to_pylist()
    assert {pair["values"]: pair["counts"] for pair in counts} == ROWS
    assert set(together.schema.names) == {*load_schema().schema.names, "month"}


def test_the_three_months_are_one_frame_for_pandas(green: Green) -> None:
    frame = pd.read_parquet(green.trips)
    assert len(frame) == sum(ROWS.values())
    assert not frame.duplicated(["month", "row"]).any()
    assert frame.groupby("month", observed=True)["total_amount"].sum().round(2).to_dict() == {
        month: round(float(pc.sum(green.published(month)["total_amount"]).as_py()), 2) for month in ROWS
    }
