"""Published months of a few rows in the formats of 2009 and of today, and the trips that they hold."""

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tipline.ingest import prepare
from tipline.ingest.columns import CATEGORY
from tipline.ingest.schema import load_schema

SCHEMA = load_schema()
# What a prepared file is read as: categories are text.
STORED = pa.schema([field.with_type(pa.string()) if field.type == CATEGORY else field for field in SCHEMA.arrow_schema])
MONTH = "2009-01"
COLUMNS = """vendor pickup_datetime dropoff_datetime passenger_count trip_distance rate_code trip_type payment_type
    fare_amount extra mta_tax tolls_amount improvement_surcharge congestion_surcharge airport_fee cbd_congestion_fee
    pickup_location_id dropoff_location_id tip_amount total_amount""".split()  # noqa: SIM905 (shorter)

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
TRIP_2009 = dict.fromkeys(COLUMNS) | {
    "vendor": "CMT",
    "pickup_datetime": dt.datetime.fromisoformat("2009-01-15 12:00:00"),
    "dropoff_datetime": dt.datetime.fromisoformat("2009-01-15 12:09:30"),
    "passenger_count": 2,
    "trip_distance": 1.99,
    "payment_type": "credit",
    "fare_amount": 7.7,
    "extra": 0.5,
    "tolls_amount": 4.15,
    "tip_amount": 1.5,
    "total_amount": 13.85,
}

INT32, INT64, DOUBLE = pa.int32(), pa.int64(), pa.float64()
# Type and value of each column.
TODAY: dict[str, tuple[pa.DataType, Any]] = {
    "VendorID": (INT32, 2),
    "tpep_pickup_datetime": (pa.timestamp("us"), dt.datetime.fromisoformat("2024-01-31 23:59:59")),
    "tpep_dropoff_datetime": (pa.timestamp("us"), dt.datetime.fromisoformat("2024-02-01 00:20:01")),
    "passenger_count": (INT64, 1),
    "trip_distance": (DOUBLE, 17.5),
    "RatecodeID": (INT64, 2),
    "store_and_fwd_flag": (pa.large_string(), "N"),
    "PULocationID": (INT32, 132),
    "DOLocationID": (INT32, 230),
    "payment_type": (INT64, 1),
    "fare_amount": (DOUBLE, 70.0),
    "extra": (DOUBLE, 1.0),
    "mta_tax": (DOUBLE, 0.5),
    "tip_amount": (DOUBLE, 10.0),
    "tolls_amount": (DOUBLE, 6.94),
    "improvement_surcharge": (DOUBLE, 1.0),
    "total_amount": (DOUBLE, 93.69),
    "congestion_surcharge": (DOUBLE, 2.5),
    "Airport_fee": (DOUBLE, 1.75),
}
TYPES_TPEP = {name: type_ for name, (type_, _) in TODAY.items()}
RAW_TPEP = {name: value for name, (_, value) in TODAY.items()}
TRIP_TPEP = dict.fromkeys(COLUMNS) | {
    name.lower(): value for name, value in RAW_TPEP.items() if name.lower() in COLUMNS
}
TRIP_TPEP |= {
    "vendor": "VTS",
    "pickup_datetime": RAW_TPEP["tpep_pickup_datetime"],
    "dropoff_datetime": RAW_TPEP["tpep_dropoff_datetime"],
    "rate_code": "JFK",
    "payment_type": "credit",
    "pickup_location_id": 132,
    "dropoff_location_id": 230,
}


@dataclass
class Prepared:
    """What `prepare` has made of a file."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def trips(self) -> pa.Table:
        return pq.ParquetFile(self.folder / "trips.parquet").read()

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        return list(pq.ParquetFile(self.folder / "_quarantine.parquet").read().to_pylist())

    @property
    def counts(self) -> tuple[int, int, int]:
        """Rows published, prepared and quarantined."""
        return self.manifest["rows_in"], self.manifest["rows_out"], self.manifest["quarantined"]

    def values(self, name: str) -> list[Any]:
        return list(self.trips[name].to_pylist())


def prepare_file(path: Path, month: str = MONTH, name: str = "prepared") -> Prepared:
    """Prepare a file into a folder beside it."""
    folder = path.parent / name
    folder.mkdir()
    return Prepared(folder, prepare.prepare_month(path, folder, SCHEMA, month))


def prepare_csv(folder: Path, *lines: str) -> Prepared:
    """Prepare lines of 2009."""
    return prepare_file(write_csv(folder / "month.csv", lines))


def prepare_tpep(folder: Path, *rows: Mapping[str, Any], **types: Any) -> Prepared:
    """Prepare rows of today (see `write_tpep`)."""
    return prepare_file(write_tpep(folder / "month.parquet", *rows, **types))


def line(**values: Any) -> str:
    """A line of a 2009 CSV file: `RAW_2009` with these values."""
    return ",".join("" if value is None else str(value) for value in (RAW_2009 | values).values())


def write_csv(path: Path, lines: Iterable[str], header: str = ",".join(RAW_2009)) -> Path:
    """Write a CSV month as the TLC did: lines end in CRLF, the second one is blank."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{text}\r\n" for text in [header, "", *lines]).encode())
    return path


def write_2009(path: Path, *rows: Mapping[str, Any]) -> Path:
    """Write a Parquet month of 2009, its datetimes text: `RAW_2009` with the values of each row."""
    types = {name: pa.string() if name in TEXT_2009 else DOUBLE for name in RAW_2009}
    return write_parquet(path, types | {"Passenger_Count": INT64}, [RAW_2009 | dict(row) for row in rows])


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
    """The bytes of all files below a folder, by their paths in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
