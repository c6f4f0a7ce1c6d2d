"""Raw months of a few rows in the formats of their time, and the prepared values that they stand for."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

TEXT_2009 = {"vendor_name", "Trip_Pickup_DateTime", "Trip_Dropoff_DateTime", "Payment_Type"}
RAW_2009 = {
    "vendor_name": "CMT",
    "Trip_Pickup_DateTime": "2009-01-15 12:00:00",
    "Trip_Dropoff_DateTime": "2009-01-15 12:09:30",
    "Passenger_Count": 2,
    "Trip_Distance": 1.99,
    "Start_Lon": -73.947828,
    "Start_Lat": 40.787172,
    "Rate_Code": None,
    "store_and_forward": None,
    "End_Lon": -73.952943,
    "End_Lat": 40.76771,
    "Payment_Type": "Credit",
    "Fare_Amt": 7.7,
    "surcharge": 0.5,
    "mta_tax": None,
    "Tip_Amt": 1.5,
    "Tolls_Amt": 4.15,
    "Total_Amt": 13.85,
}
TRIP_2009 = {
    "vendor": "CMT",
    "pickup_datetime": dt.datetime(2009, 1, 15, 12, 0, 0),  # noqa: DTZ001 (New York's local time)
    "dropoff_datetime": dt.datetime(2009, 1, 15, 12, 9, 30),  # noqa: DTZ001
    "passenger_count": 2,
    "trip_distance": 1.99,
    "rate_code": None,
    "trip_type": None,
    "payment_type": "credit",
    "fare_amount": 7.7,
    "extra": 0.5,
    "mta_tax": None,
    "tolls_amount": 4.15,
    "improvement_surcharge": None,
    "congestion_surcharge": None,
    "airport_fee": None,
    "cbd_congestion_fee": None,
    "pickup_location_id": None,
    "dropoff_location_id": None,
    "tip_amount": 1.5,
    "total_amount": 13.85,
}

TYPES_TPEP = {
    "VendorID": pa.int32(),
    "tpep_pickup_datetime": pa.timestamp("us"),
    "tpep_dropoff_datetime": pa.timestamp("us"),
    "passenger_count": pa.int64(),
    "trip_distance": pa.float64(),
    "RatecodeID": pa.int64(),
    "store_and_fwd_flag": pa.large_string(),
    "PULocationID": pa.int32(),
    "DOLocationID": pa.int32(),
    "payment_type": pa.int64(),
    "fare_amount": pa.float64(),
    "extra": pa.float64(),
    "mta_tax": pa.float64(),
    "tip_amount": pa.float64(),
    "tolls_amount": pa.float64(),
    "improvement_surcharge": pa.float64(),
    "total_amount": pa.float64(),
    "congestion_surcharge": pa.float64(),
    "Airport_fee": pa.float64(),
}
RAW_TPEP = {
    "VendorID": 2,
    "tpep_pickup_datetime": dt.datetime(2024, 1, 31, 23, 59, 59),  # noqa: DTZ001
    "tpep_dropoff_datetime": dt.datetime(2024, 2, 1, 0, 20, 1),  # noqa: DTZ001
    "passenger_count": 1,
    "trip_distance": 17.5,
    "RatecodeID": 2,
    "store_and_fwd_flag": "N",
    "PULocationID": 132,
    "DOLocationID": 230,
    "payment_type": 1,
    "fare_amount": 70.0,
    "extra": 1.0,
    "mta_tax": 0.5,
    "tip_amount": 10.0,
    "tolls_amount": 6.94,
    "improvement_surcharge": 1.0,
    "total_amount": 93.69,
    "congestion_surcharge": 2.5,
    "Airport_fee": 1.75,
}
TRIP_TPEP = {
    "vendor": "VTS",
    "pickup_datetime": dt.datetime(2024, 1, 31, 23, 59, 59),  # noqa: DTZ001
    "dropoff_datetime": dt.datetime(2024, 2, 1, 0, 20, 1),  # noqa: DTZ001
    "passenger_count": 1,
    "trip_distance": 17.5,
    "rate_code": "JFK",
    "trip_type": None,
    "payment_type": "credit",
    "fare_amount": 70.0,
    "extra": 1.0,
    "mta_tax": 0.5,
    "tolls_amount": 6.94,
    "improvement_surcharge": 1.0,
    "congestion_surcharge": 2.5,
    "airport_fee": 1.75,
    "cbd_congestion_fee": None,
    "pickup_location_id": 132,
    "dropoff_location_id": 230,
    "tip_amount": 10.0,
    "total_amount": 93.69,
}


def line(**values: Any) -> str:
    """Give a line of a 2009 CSV file: `RAW_2009` with these values."""
    return ",".join("" if value is None else str(value) for value in (RAW_2009 | values).values())


def write_csv(path: Path, lines: Iterable[str], header: str = ",".join(RAW_2009)) -> Path:
    """Write a CSV month as the TLC did: lines end in CRLF, the second one is blank."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{text}\r\n" for text in [header, "", *lines]).encode())
    return path


def write_2009(path: Path, *rows: Mapping[str, Any]) -> Path:
    """Write a Parquet month of 2009, its datetimes text: `RAW_2009` with the values of each row."""
    types = {name: pa.string() if name in TEXT_2009 else pa.float64() for name in RAW_2009}
    return write_parquet(path, types | {"Passenger_Count": pa.int64()}, [RAW_2009 | dict(row) for row in rows])


def write_tpep(path: Path, *rows: Mapping[str, Any], **types: Any) -> Path:
    """Write a Parquet month of today: `RAW_TPEP` with the values of each row; `types` are other or further columns."""
    return write_parquet(path, TYPES_TPEP | types, [RAW_TPEP | dict(row) for row in rows])


def write_parquet(path: Path, types: Mapping[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write rows with columns of these types."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(types.items()))), path)
    return path


def manifest_of(folder: Path) -> dict[str, Any]:
    """Read the manifest of a prepared month."""
    manifest: dict[str, Any] = json.loads((folder / "_manifest.json").read_text(encoding="utf-8"))
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    """Give the bytes of all files below a folder, by their paths in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
