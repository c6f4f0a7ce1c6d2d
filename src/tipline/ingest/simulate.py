"""Simulate months of yellow-cab trips in the format that the TLC published at their time: offline and repeatable.

Shares and shapes of 2009 are rounded from a 1-in-1000 sample of that year. Later years are invented: vendors, cards and
tips drift slowly and within bounds, and fares step when the city's tariff did.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tipline.errors import NotPublishedError

Array = npt.NDArray[Any]
Trips = SimpleNamespace  # arrays of a chunk of trips, before they are written in the form of their time
CHUNK = 2**18  # rows of a row group, simulated and written at a time; another number gives other trips

FLEX, CREDIT = 0, 1  # then cash, no charge, dispute
CMT, VTS, DDS = 1, 2, 3  # DDS had no number of its own
VENDORS, WORDS = ["CMT", "VTS", "DDS"], ["CREDIT", "Cash", "No Charge", "Dispute"]
LAST_ZONE = 263
# Relative frequencies of the hours of a day, and of 0, 1, 2 and more passengers.
HOURS = np.array([40, 30, 22, 16, 12, 9, 19, 34, 46, 46, 44, 45, 48, 49, 51, 49, 45, 52, 63, 63, 59, 57, 55, 49])
PASSENGERS = np.array([0, 677, 163, 45, 22, 89, 4])
# Before a month: dollars at the start, per unit of distance or time.
TARIFFS = {"2012-09": (2.5, 0.4), "2023-01": (2.5, 0.5), "9999-99": (3.0, 0.7)}

# Published name, attribute of `Trips` (without one: all null), type (without one: double). Files from 2011 on have the
# columns of today, because the TLC wrote all of them again.
YEAR_2009 = """vendor_name:vendor:text Trip_Pickup_DateTime:pickup:text Trip_Dropoff_DateTime:dropoff:text
    Passenger_Count:passengers:integer Trip_Distance:miles Start_Lon Start_Lat Rate_Code store_and_forward End_Lon
    End_Lat Payment_Type:payment:text Fare_Amt:fare surcharge:extra mta_tax Tip_Amt:tip Tolls_Amt Total_Amt:total"""
FROM_2011 = """VendorID:vendor:id tpep_pickup_datetime:pickup:time tpep_dropoff_datetime:dropoff:time
    passenger_count:passengers:integer trip_distance:miles RatecodeID::integer store_and_fwd_flag::text
    PULocationID:start:id DOLocationID:end:id payment_type:payment:integer fare_amount:fare extra:extra mta_tax
    tip_amount:tip tolls_amount improvement_surcharge total_amount:total congestion_surcharge Airport_fee"""
TYPES = {"text": pa.string(), "time": pa.timestamp("us"), "integer": pa.int64(), "id": pa.int32(), "": pa.float64()}


class Dice:
    """Random numbers of a chunk, one stream per name, so that the first rows do not depend on how many follow."""

    def __init__(self, rows: int, *key: int) -> None:
        self.rows, self.key = rows, key

    def normal(self, name: str) -> Array:
        return self._create_stream(name).standard_normal(self.rows)

    def uniform(self, name: str) -> Array:
        return self._create_stream(name).random(self.rows)

    def chance(self, name: str, probability: float | Array) -> Array:
        return self.uniform(name) < probability

    def pick(self, name: str, weights: Sequence[float] | Array) -> Array:
        """Pick indices of `weights`, each as often as it weighs."""
        steps = np.cumsum(weights)
        return np.searchsorted(steps / steps[-1], self.uniform(name), side="right")

    def _create_stream(self, name: str) -> np.random.Generator:
        return np.random.default_rng([*self.key, zlib.crc32(name.encode())])


def simulate_month(path: Path, month: str, rows: int, seed: int) -> None:
    """Write `rows` simulated trips of `month` to a Parquet file; errors as for `get_published_schema`.

    Equal arguments give equal bytes with the same libraries; a smaller file holds the first rows of a larger one.
    """
    schema, attributes = get_published_schema(month), [name for _, name, _ in list_columns(month)]
    with pq.ParquetWriter(path, schema) as writer:
        for chunk, first in enumerate(range(0, rows, CHUNK)):
            dice = Dice(min(CHUNK, rows - first), seed, int(month.replace("-", "")), chunk)
            trips = vars(simulate_trips(month, dice))
            arrays = [
                pa.array(trips[name]).cast(type_) if name else pa.nulls(dice.rows, type_)
                for name, type_ in zip(attributes, schema.types, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def get_published_schema(month: str) -> pa.Schema:
    """Return the schema of the TLC's Parquet file; raise NotPublishedError for a month that is not simulated."""
    if month < "2009" or month.startswith("2010"):
        what = "The simulation has the months of 2009, and those from 2011 on."
        raise NotPublishedError(what, month, "Remove the month from `months` in params.yaml, or change `source` there.")
    return pa.schema([(name, TYPES[type_]) for name, _, type_ in list_columns(month)])


def list_columns(month: str) -> list[list[str]]:
    return [f"{column}::".split(":")[:3] for column in (YEAR_2009 if month < "2010" else FROM_2011).split()]


def simulate_trips(month: str, dice: Dice) -> Trips:
    """Simulate a chunk of trips; the shares of VTS and of cards grow over the years, more and more slowly."""
    years = int(month[:4]) - 2009 + (int(month[5:]) - 1) / 12
    cmt = 0.25 + 0.22 * np.exp(-years / 8)
    vendors = [0, cmt, 1 - cmt, 0.06 * (month < "2010")]
    credit, flex = 0.86 - 0.65 * np.exp(-years / 6), 0.05 * (month >= "2021")
    payments = [flex, credit * (1 - flex), (1 - credit) * (1 - flex) - 0.01, 0.007, 0.003]
    pickup, extra = simulate_pickups(month, dice)
    miles = np.exp(0.55 + 0.83 * dice.normal("miles")).round(2)
    minutes = 1.5 + 4 * miles * np.exp(0.3 * dice.normal("pace"))
    start, unit = next(tariff for end, tariff in TARIFFS.items() if month < end)
    trips = Trips(
        vendor=dice.pick("vendor", vendors),
        pickup=pickup,
        dropoff=pickup + np.rint(60 * minutes).astype("m8[s]"),
        passengers=dice.pick("passengers", PASSENGERS),
        miles=miles,
        payment=dice.pick("payment", payments),
        fare=(start + unit * np.rint(4.5 * miles + 0.5 * minutes)).round(2),
        extra=extra,
    )
    add_tips(years, trips, dice)
    trips.fare[dice.chance("fare negative", 1e-4)] *= -1
    trips.miles[dice.chance("miles", 2e-5)] = 259_777
    trips.passengers[dice.chance("many passengers", 2e-5)] = 208
    trips.pickup[dice.chance("clock", 3e-5)] -= np.timedelta64(2924, "D")
    trips.total = np.round(trips.fare + trips.extra + trips.tip, 2)
    if month < "2010":
        trips.pickup = np.where(trips.vendor == VTS, trips.pickup.astype("M8[m]"), trips.pickup)
        trips.vendor = pa.array(VENDORS).take(pa.array(trips.vendor - CMT))
        trips.payment = pa.array(WORDS).take(pa.array(trips.payment - CREDIT))
    else:
        trips.start, trips.end = (1 + np.floor(LAST_ZONE * dice.uniform(name)) for name in ("start", "end"))
        trips.passengers = np.ma.array(trips.passengers, mask=trips.payment == FLEX)  # flex fares come without them
    return trips


def simulate_pickups(month: str, dice: Dice) -> tuple[Array, Array]:
    """Return pickups to the second, in no order, and the surcharges of nights and rush hours."""
    hours = np.arange(np.datetime64(month, "h"), (np.datetime64(month, "M") + np.timedelta64(1, "M")).astype("M8[h]"))
    hour, day = hours.astype(int) % 24, (hours.astype("M8[D]").astype(int) + 3) % 7  # 1970 began on a Thursday
    extra = np.where((hour >= 20) | (hour < 6), 0.5, 1.0 * ((hour >= 16) & (day < 5)))
    picked = dice.pick("hour", HOURS[hour])
    seconds = np.floor(3600 * dice.uniform("second")).astype("m8[s]")
    return hours[picked].astype("M8[s]") + seconds, extra[picked]


def add_tips(years: float, trips: Trips, dice: Dice) -> None:
    """Add tips: the card decides who tips, and among those who pay by card there is a little to learn."""
    hour = trips.pickup.astype("M8[h]").astype(int) % 24
    signal = 0.8 * (trips.vendor == CMT) + 0.6 * np.sin((hour - 10) * (np.pi / 12)) + 0.4 * trips.extra
    signal -= 0.3 * trips.passengers + 0.07 * np.minimum(trips.miles, 20)
    wave = 0.15 * np.sin(years)
    odds = np.exp(3.45 + wave + (1 + wave) * (signal + 0.2))
    labels = dice.chance("tip", np.where(trips.payment == CREDIT, odds / (1 + odds), 0.0003))
    dollars = np.maximum(trips.fare * np.exp(0.4 * dice.normal("generosity") - 1.8), 0.01)
    trips.tip = np.where(dice.chance("whole", 0.5), np.ceil(dollars), dollars.round(2)) * labels
