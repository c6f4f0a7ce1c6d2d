"""Small Parquet months in every schema of the official files, 2009-01 to 2025-01, and the trips that they hold."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INT32, INT64, DOUBLE, TEXT = pa.int32(), pa.int64(), pa.float64(), pa.string()

# The months from which a file's schema is another than that of the month before.
CHANGES = """2010-01 2010-02 2010-04 2011-01 2011-02 2011-03 2011-04 2012-12 2013-01 2013-05 2013-06 2014-01 2014-02
    2014-08 2014-09 2018-01 2018-02 2018-06 2018-07 2018-09 2018-10 2018-11 2018-12 2019-01 2020-08 2020-10 2020-11
    2023-02 2025-01""".split()  # noqa: SIM905 (shorter)

NAMES_2009 = {
    "vendor": "vendor_name",
    "pickup_datetime": "Trip_Pickup_DateTime",
    "dropoff_datetime": "Trip_Dropoff_DateTime",
    "passenger_count": "Passenger_Count",
    "trip_distance": "Trip_Distance",
    "longitude": "Start_Lon",
    "latitude": "Start_Lat",
    "rate_code": "Rate_Code",
    "flag": "store_and_forward",
    "to_longitude": "End_Lon",
    "to_latitude": "End_Lat",
    "payment_type": "Payment_Type",
    "fare_amount": "Fare_Amt",
    "extra": "surcharge",
    "mta_tax": "mta_tax",
    "tip_amount": "Tip_Amt",
    "tolls_amount": "Tolls_Amt",
    "total_amount": "Total_Amt",
}
NAMES_2010 = {
    "vendor": "vendor_id",
    "pickup_datetime": "pickup_datetime",
    "dropoff_datetime": "dropoff_datetime",
    "passenger_count": "passenger_count",
    "trip_distance": "trip_distance",
    "longitude": "pickup_longitude",
    "latitude": "pickup_latitude",
    "rate_code": "rate_code",
    "flag": "store_and_fwd_flag",
    "to_longitude": "dropoff_longitude",
    "to_latitude": "dropoff_latitude",
    "payment_type": "payment_type",
    "fare_amount": "fare_amount",
    "extra": "surcharge",
    "mta_tax": "mta_tax",
    "tip_amount": "tip_amount",
    "tolls_amount": "tolls_amount",
    "total_amount": "total_amount",
}
NAMES_TODAY = {
    "vendor": "VendorID",
    "pickup_datetime": "tpep_pickup_datetime",
    "dropoff_datetime": "tpep_dropoff_datetime",
    "passenger_count": "passenger_count",
    "trip_distance": "trip_distance",
    "rate_code": "RatecodeID",
    "flag": "store_and_fwd_flag",
    "pickup_location_id": "PULocationID",
    "dropoff_location_id": "DOLocationID",
    "payment_type": "payment_type",
    "fare_amount": "fare_amount",
    "extra": "extra",
    "mta_tax": "mta_tax",
    "tip_amount": "tip_amount",
    "tolls_amount": "tolls_amount",
    "improvement_surcharge": "improvement_surcharge",
    "total_amount": "total_amount",
    "congestion_surcharge": "congestion_surcharge",
    "airport_fee": "airport_fee",
}
WORDS_2009 = {"cash": "CASH", "credit": "Credit", "no charge": "No Charge", "dispute": "Dispute"}
WORDS_EARLY_2010 = {"cash": "Cas", "credit": "CRE", "no charge": "NOC", "dispute": "DIS"}
WORDS_LATE_2010 = {"cash": "CSH", "credit": "CRD", "no charge": "NOC", "dispute": "DIS"}
NUMBERS = {"credit": 1, "cash": 2, "no charge": 3, "dispute": 4}
VENDORS = {"CMT": 1, "VTS": 2}
RATES = {"standard": 1, "JFK": 2, "negotiated": 5}

# The month's first row's values, then what is different in the others; times are seconds since the month began.
FIRST: dict[str, Any] = {
    "vendor": "CMT",
    "pickup_datetime": 60,
    "dropoff_datetime": 660,
    "passenger_count": 2,
    "trip_distance": 1.99,
    "longitude": -73.95,
    "latitude": 40.77,
    "rate_code": "standard",
    "flag": None,
    "to_longitude": -73.96,
    "to_latitude": 40.78,
    "payment_type": "credit",
    "fare_amount": 7.7,
    "extra": 0.5,
    "mta_tax": 0.5,
    "tolls_amount": 4.15,
    "improvement_surcharge": 0.3,
    "congestion_surcharge": 2.5,
    "airport_fee": 1.25,
    "cbd_congestion_fee": 0.75,
    "pickup_location_id": 132,
    "dropoff_location_id": 230,
    "tip_amount": 1.5,
    "total_amount": 14.35,
}
OTHERS: list[dict[str, Any]] = [
    {"payment_type": "cash", "tip_amount": 0.0, "total_amount": 12.85, "vendor": "VTS", "rate_code": "JFK"},
    {"payment_type": "no charge", "passenger_count": None, "mta_tax": None, "rate_code": None},
    {"payment_type": "dispute", "fare_amount": -7.7, "rate_code": "negotiated", "pickup_location_id": 265},
    # The blank payments of 2019 on, which have blank vendors, too.
    {"payment_type": None, "vendor": None, "passenger_count": None, "rate_code": None, "dropoff_datetime": 61},
]
TRIPS = [FIRST, *(FIRST | other for other in OTHERS)]
LEFT_BEHIND = {"longitude", "latitude", "to_longitude", "to_latitude", "flag"}


def years() -> list[str]:
    """All months of the table and the next year's first."""
    return [f"{year}-{month:02}" for year in range(2009, 2025) for month in range(1, 13)] + ["2025-01"]


def fees(month: str) -> dict[str, pa.DataType]:
    """The columns that were nothing but nulls in some months from 2011 on, and so had no type."""
    congestion = "2011-01 2011-03 2012-12 2013-05 2014-01 2018-01 2018-06 2018-09 2018-11".split()  # noqa: SIM905
    airport = {"2011-01", "2018-01", "2020-08", "2020-09"}
    return {
        "improvement_surcharge": pa.null() if month == "2014-08" else DOUBLE,
        "congestion_surcharge": DOUBLE if month >= "2019-01" or month in congestion else pa.null(),
        "airport_fee": DOUBLE if month >= "2020-11" or month in airport else pa.null(),
    }


def types(month: str) -> dict[str, pa.DataType]:
    """The types of a month's columns, by our names for them, in the order of the file; double where none is said."""
    if month < "2011":
        code = DOUBLE if month < "2010" else INT64 if month in {"2010-02", "2010-03"} else TEXT
        words = dict.fromkeys(["vendor", "pickup_datetime", "dropoff_datetime", "payment_type"], TEXT)
        flag = DOUBLE if month < "2010" else TEXT
        return dict.fromkeys(NAMES_2009, DOUBLE) | words | {"passenger_count": INT64, "rate_code": code, "flag": flag}
    ids = INT32 if month >= "2023-02" else INT64
    counted = DOUBLE if "2018-07" <= month < "2023-02" else INT64
    found = dict.fromkeys(NAMES_TODAY, DOUBLE) | fees(month)
    found |= dict.fromkeys(["pickup_datetime", "dropoff_datetime"], pa.timestamp("us"))
    found |= dict.fromkeys(["vendor", "pickup_location_id", "dropoff_location_id"], ids)
    found |= dict.fromkeys(["passenger_count", "rate_code"], counted)
    found |= {"payment_type": INT64, "flag": pa.large_string() if month >= "2023-02" else TEXT}
    return found | ({"cbd_congestion_fee": DOUBLE} if month >= "2025" else {})


def names(month: str) -> dict[str, str]:
    """The names of a month's columns."""
    if month < "2011":
        return NAMES_2009 if month < "2010" else NAMES_2010
    fee = {"airport_fee": "Airport_fee"} if month >= "2023-02" else {}
    return NAMES_TODAY | fee | ({"cbd_congestion_fee": "cbd_congestion_fee"} if month >= "2025" else {})


def published(month: str, column: str, value: Any) -> Any:
    """A value as files of the month write it."""
    type_ = types(month)[column]
    if value is None or type_ == pa.null():
        return None
    if column in {"pickup_datetime", "dropoff_datetime"}:
        time = moment(month, value)
        return str(time) if type_ == TEXT else time
    if column == "payment_type":
        words = WORDS_2009 if month < "2010" else WORDS_EARLY_2010 if month < "2010-08" else WORDS_LATE_2010
        return words[value] if type_ == TEXT else NUMBERS[value]
    if column == "vendor":
        return value if type_ == TEXT else VENDORS[value]
    if column == "rate_code":
        return str(RATES[value]) if type_ == TEXT else RATES[value]
    return value


def moment(month: str, seconds: int) -> dt.datetime:
    """A time in a month."""
    return dt.datetime.fromisoformat(f"{month}-01") + dt.timedelta(seconds=seconds)


def table(month: str) -> pa.Table:
    """The trips as a month of that time."""
    arrays = {
        names(month)[column]: pa.array([published(month, column, trip[column]) for trip in TRIPS], type_)
        for column, type_ in types(month).items()
    }
    if month in {"2010-02", "2010-03"}:
        arrays["__index_level_0__"] = pa.array(range(len(TRIPS)), INT64)
    return pa.table(arrays)


def write(path: Path, month: str, **options: Any) -> Path:
    """Write the trips as a month of that time, one row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(month), path, **options)
    return path


def canonical(month: str) -> list[dict[str, Any]]:
    """The trips as `prepare` should give them, but for what the schema of the month cannot hold."""
    return [{"row": row, **held(month, trip)} for row, trip in enumerate(TRIPS)]


def held(month: str, trip: Mapping[str, Any]) -> dict[str, Any]:
    """What a month's schema can hold of a trip."""
    able = {column for column, type_ in types(month).items() if type_ != pa.null()} - LEFT_BEHIND
    kept = {name: value if name in able else None for name, value in trip.items() if name not in LEFT_BEHIND}
    times = {name: moment(month, trip[name]) for name in ("pickup_datetime", "dropoff_datetime")}
    return kept | times | {"payment_type": trip["payment_type"] or "unknown", "trip_type": None}
