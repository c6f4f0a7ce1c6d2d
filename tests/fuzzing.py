"""Hostile months: seeds, mutations, and a child process that runs commands on them and outlives none of its crashes.

A case is a seed, a number, and mutations with a number each; the same case is the same bytes every time.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import importlib
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests import factory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Mutation = Callable[[random.Random, bytes], bytes]

ROOT = Path(__file__).parent.parent
MONTH = "2009-01"
ROWS = 60
HANG = 20.0  # seconds; an honest case takes a twentieth of one
# MiB above what the child held before: for small inputs, and what the project promises for any.
TIGHT, BOUND = 600, 1500
LONGEST_MESSAGE = 10_000
FIELD = 10_000_000
FORMAT = "format"  # the check of a file's format after its download, which has no command of its own
THREE_PARTS = re.compile(r"tipline \w+: [^\n]+\n  where: [^\n]+\n  to do: [^\n]+\n\Z")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Case:
    """A hostile month: a seed with its number, and mutations with theirs."""

    seed: str
    number: int = 0
    mutations: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """The file's name."""
        return "yellow.parquet" if self.seed.startswith("parquet") else "yellow.csv"

    def data(self) -> bytes:
        """The file's bytes."""
        data = SEEDS[self.seed](dice_of(self.number))
        for name, number in self.mutations:
            data = MUTATIONS[name](dice_of(number), data)
        return data


def draw(dice: random.Random) -> Case:
    """A random case."""
    seed = dice.choice(sorted(SEEDS))
    cheap = [name for name in sorted(MUTATIONS) if suits(name, seed)]
    names = dice.choices(cheap, [WEIGHTS.get(name, 10) for name in cheap], k=dice.choice([0, 1, 1, 1, 2, 2, 3]))
    return Case(seed, dice.randrange(2**16), tuple((name, dice.randrange(2**32)) for name in names))


def dice_of(number: int) -> random.Random:
    """Luck that is the same every time."""
    return random.Random(number)  # noqa: S311 (no secret)


def suits(mutation: str, seed: str) -> bool:
    """Whether a mutation makes sense for a seed's format."""
    return mutation.partition("_")[0] not in {"parquet", "csv"} or mutation.startswith(seed.partition("_")[0])


# ---- seeds ----


def row_2009(dice: random.Random) -> dict[str, Any]:
    """A trip of 2009 with some luck of its own."""
    time_ = dt.datetime(2009, 1, 1) + dt.timedelta(seconds=dice.randrange(31 * 86_400))  # noqa: DTZ001 (local time)
    return {
        "vendor_name": dice.choice(["CMT", "VTS", "DDS"]),
        "Trip_Pickup_DateTime": str(time_),
        "Trip_Dropoff_DateTime": str(time_ + dt.timedelta(minutes=9)),
        "Passenger_Count": dice.randrange(7),
        "Payment_Type": dice.choice(["Cash", "CREDIT", "No Charge", "Dispute"]),
        "Fare_Amt": dice.randrange(25, 500) / 10,
        "Tip_Amt": dice.choice([0.0, 1.5, None]),
        "Start_Lat": dice.uniform(40, 41),
    }


def row_today(dice: random.Random) -> dict[str, Any]:
    """A trip of today; a third of the fields that the TLC leaves out are left out."""
    time_ = dt.datetime(2009, 1, 1) + dt.timedelta(seconds=dice.randrange(31 * 86_400))  # noqa: DTZ001
    nulls = ("passenger_count", "RatecodeID", "store_and_fwd_flag", "congestion_surcharge", "Airport_fee")
    return {
        "tpep_pickup_datetime": time_,
        "tpep_dropoff_datetime": time_ + dt.timedelta(minutes=9),
        "payment_type": dice.randrange(6),
        "fare_amount": dice.randrange(25, 500) / 10,
        **({} if dice.random() < 2 / 3 else dict.fromkeys(nulls)),
    }


def csv_bytes(header: str, lines: Iterable[str]) -> bytes:
    """A CSV month as the TLC wrote it."""
    return "".join(f"{text}\r\n" for text in [header, "", *lines]).encode()


def csv_2009(dice: random.Random) -> bytes:
    """The CSV of 2009."""
    return csv_bytes(",".join(factory.RAW_2009), [factory.line(**row_2009(dice)) for _ in range(ROWS)])


def csv_2016(dice: random.Random) -> bytes:
    """The CSV of July 2016: 17 names, rows of 19 fields."""
    names = list(factory.RAW_TPEP)[:17]
    rows = [factory.RAW_TPEP | row_today(dice) for _ in range(ROWS)]
    lines = [",".join("" if row[name] is None else str(row[name]) for name in names) + ",," for row in rows]
    return csv_bytes(",".join(names), lines)


def csv_odd(dice: random.Random) -> bytes:
    """The CSV of 2009 with odd texts in some of its fields."""
    names = list(factory.RAW_2009)
    lines = []
    for _ in range(ROWS):
        odd = {dice.choice(names): dice.choice(ODD_TEXTS) for _ in range(dice.choice([0, 0, 1, 2]))}
        lines.append(factory.line(**row_2009(dice) | odd))
    return csv_bytes(",".join(names), lines)


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """A table as a Parquet file's bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def table_2009(dice: random.Random) -> pa.Table:
    """Today's republished months of 2009: times are text."""
    types = {name: pa.string() if name in factory.TEXT_2009 else pa.float64() for name in factory.RAW_2009}
    types["Passenger_Count"] = pa.int64()
    rows = [factory.RAW_2009 | row_2009(dice) for _ in range(ROWS)]
    return pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))


def table_today(dice: random.Random) -> pa.Table:
    """A month of today's columns."""
    rows = [factory.RAW_TPEP | row_today(dice) for _ in range(ROWS)]
    return pa.Table.from_pylist(rows, schema=pa.schema(list(factory.TYPES_TPEP.items())))


def options_of(dice: random.Random) -> dict[str, Any]:
    """Some way to write Parquet."""
    return {
        "compression": dice.choice(["snappy", "zstd", "none", "gzip", "lz4", "brotli"]),
        "use_dictionary": dice.choice([True, True, False]),
        "data_page_version": dice.choice(["1.0", "2.0"]),
        "row_group_size": dice.choice([7, 25, ROWS]),
        "data_page_size": dice.choice([64, 2**20]),
        "dictionary_pagesize_limit": dice.choice([64, 2**20]),
        "write_statistics": dice.random() < 0.5,
        "store_schema": dice.random() < 0.8,
        "use_deprecated_int96_timestamps": dice.random() < 0.1,
        "write_page_checksum": dice.random() < 0.2,
    }


def parquet_2009(dice: random.Random) -> bytes:
    """Parquet with times as text, written in some way."""
    return parquet_bytes(table_2009(dice), **options_of(dice))


def parquet_today(dice: random.Random) -> bytes:
    """Parquet of today, written in some way."""
    return parquet_bytes(table_today(dice), **options_of(dice))


def parquet_delta(dice: random.Random) -> bytes:
    """Parquet with encodings that the TLC does not use."""
    text = dice.choice(["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
    encodings = {
        "Trip_Pickup_DateTime": text,
        "Passenger_Count": "DELTA_BINARY_PACKED",
        "Fare_Amt": "BYTE_STREAM_SPLIT",
    }
    options = options_of(dice) | {"use_dictionary": ["Payment_Type"], "column_encoding": encodings}
    return parquet_bytes(table_2009(dice), **options)


def parquet_odd(dice: random.Random) -> bytes:
    """Parquet in which some columns are of an odd type, with odd values."""
    table = table_today(dice) if dice.random() < 0.5 else table_2009(dice)
    for _ in range(dice.choice([1, 1, 2, 3])):
        column = dice.randrange(table.num_columns)
        table = table.set_column(column, table.column_names[column], odd_array(dice, len(table)))
    if dice.random() < 0.1:
        table = table.append_column(dice.choice(ODD_NAMES), odd_array(dice, len(table)))
    if dice.random() < 0.05:
        table = table.slice(0, 0)
    options = options_of(dice)
    try:
        return parquet_bytes(table, **options)
    except (pa.ArrowException, OSError):  # there is no Parquet of some types and values
        return parquet_bytes(table_today(dice), **options)


ODD_TEXTS = [
    "", " ", "\t", "nan", "inf", "-inf", "1e309", "-1e-400", "0x10", "1_000", "\uff11\uff12", "9" * 400, "1e", "٣",
    "9223372036854775808", "2147483648", "-2147483649", "true", "None", "null", "\\N", "0001-01-01 00:00:00",
    "9999-12-31 23:59:59", "2009-02-30 00:00:00", "2009-01-01T00:00:00Z", "2009-01-01 00:00:00.123456789",
    "2009-01-01 00:00:00+05:30", "99999-01-01 00:00:00", "-0001-01-01 00:00:00", "2009-01-01", "24:00:00", '"', "'",
    '"2009-01-01"', "\x00", "a\x00b", "\x1b[31mred", "\u202e", "\ufeff", "é", "😀", "x" * 250, "=1+1", "\x0b", "\x85",
    "\u2028", "1,2", "\r", "ﬀ", "İ", "ß" * 150,
]  # fmt: skip
ODD_NAMES = ["", "a.b", "vendor_name.x", "row", "\n", '"', "\x00", "\x1b[2J", "n" * 10_000, "é", "VendorID "]
INTEGERS = [0, 1, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -0.0, 1.5, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324, 2.0**63, 2**31, 1e15 + 0.5]
DAYS = [0, 14_245, -719_162, 2_932_896, 2**31 - 1, -(2**31)]
DECIMALS = [decimal.Decimal(text) for text in ("0", "7.70", "-1", "99999999.99", "0.01")]


def odd_array(dice: random.Random, rows: int) -> pa.Array:
    """An array of an odd type, some of its values at the ends of what it holds."""
    make = dice.choice([ints, floats, times, dates, decimals, texts, others, nested])
    return make(dice, rows)


def some(dice: random.Random, values: Sequence[Any], rows: int) -> list[Any]:
    """Values at random, some missing."""
    few = dice.sample(list(values), dice.randrange(1, len(values) + 1))
    return [dice.choice([*few, None]) for _ in range(rows)]


def ints(dice: random.Random, rows: int) -> pa.Array:
    bits, signed = dice.choice([8, 16, 32, 64]), dice.random() < 0.5
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = [value for value in [*INTEGERS, low, high] if low <= value <= high]
    return pa.array(some(dice, values, rows), getattr(pa, f"{'' if signed else 'u'}int{bits}")())


def floats(dice: random.Random, rows: int) -> pa.Array:
    kind = dice.choice([pa.float16(), pa.float32(), pa.float64(), pa.float64()])
    return pa.array(some(dice, FLOATS, rows), pa.float64()).cast(kind, safe=False)


def times(dice: random.Random, rows: int) -> pa.Array:
    zone = dice.choice([None, None, "UTC", "America/New_York", "+05:30", "Nowhere/Land", ""])
    kind = pa.timestamp(dice.choice(["s", "ms", "us", "ns"]), zone)
    return pa.array(some(dice, [*INTEGERS, 1_230_768_000, 1_230_768_000_000_000], rows), pa.int64()).cast(kind)


def dates(dice: random.Random, rows: int) -> pa.Array:
    if dice.random() < 0.5:
        return pa.array(some(dice, DAYS, rows), pa.int32()).cast(pa.date32())
    milliseconds = [day * 86_400_000 for day in [*DAYS, 2**36, -(2**36)]]
    return pa.array(some(dice, milliseconds, rows), pa.int64()).cast(pa.date64())


def decimals(dice: random.Random, rows: int) -> pa.Array:
    kind = dice.choice([pa.decimal128(10, 2), pa.decimal128(38, 2), pa.decimal256(76, 2), pa.decimal128(38, -20)])
    values = some(dice, DECIMALS if kind.scale > 0 else [decimal.Decimal("1e37")], rows)
    if kind.precision == 76 and dice.random() < 0.5:
        values[0] = decimal.Decimal(10) ** 73
    return pa.array(values, kind)


def texts(dice: random.Random, rows: int) -> pa.Array:
    values: Sequence[Any] = [*ODD_TEXTS, "2009-01-01 00:00:00", "7.7", "1"]
    if dice.random() < 0.3:  # bytes that are not UTF-8, in a column that says they are text
        raw = pa.array(some(dice, [b"\xff\xfe", b"CMT", b"\xc3", b"\xed\xa0\x80"], rows), pa.binary())
        return pa.Array.from_buffers(pa.string(), rows, raw.buffers(), raw.null_count)
    kind = dice.choice([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
    return pa.array(some(dice, values, rows), pa.string()).cast(kind)


def others(dice: random.Random, rows: int) -> pa.Array:
    kinds: list[tuple[pa.DataType, list[Any]]] = [
        (pa.bool_(), [True, False]),
        (pa.binary(), [b"\xff", b""]),
        (pa.binary(4), [b"abcd"]),
        (pa.null(), [None]),
        (pa.time64("us"), [0, 86_399_999_999]),
        (pa.duration("us"), [0, 2**62]),
        (pa.dictionary(pa.int32(), pa.int64()), [1, 2]),
    ]
    kind, values = dice.choice(kinds)
    return pa.array(some(dice, values, rows), kind)


def nested(dice: random.Random, rows: int) -> pa.Array:
    text = pa.string()
    kinds: list[tuple[pa.DataType, Any]] = [
        (pa.list_(pa.list_(text)), [["x"], []]),
        (pa.struct([("vendor_name", text), ("x", pa.int64())]), {"vendor_name": "CMT", "x": 1}),
        (pa.map_(text, pa.int64()), [("x", 1)]),
        (pa.struct([("a", pa.struct([("b", pa.list_(text))]))]), {"a": {"b": ["x"]}}),
    ]
    kind, value = dice.choice(kinds)
    return pa.array(some(dice, [value], rows), kind)


SEEDS: dict[str, Callable[[random.Random], bytes]] = {
    made.__name__: made
    for made in (csv_2009, csv_2016, csv_odd, parquet_2009, parquet_today, parquet_delta, parquet_odd)
}


# ---- mutations ----


def flip(dice: random.Random, data: bytes) -> bytes:
    """Other bytes in a few places."""
    return overwritten(dice, data, [dice.randrange(len(data)) for _ in range(dice.choice([1, 1, 2, 5, 20]))])


def flip_bits(dice: random.Random, data: bytes) -> bytes:
    """One bit changed in a few places."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5])):
        changed[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def overwritten(dice: random.Random, data: bytes, places: Sequence[int]) -> bytes:
    changed = bytearray(data)
    for place in places:
        if place < len(data):
            changed[place] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
    return bytes(changed)


def cut(dice: random.Random, data: bytes) -> bytes:
    """The end missing."""
    return data[: dice.choice([dice.randrange(len(data)), len(data) - 1 - dice.randrange(min(20, len(data)))])]


def remove(dice: random.Random, data: bytes) -> bytes:
    """A piece missing."""
    start, size = dice.randrange(len(data)), dice.choice([1, 2, 10, 1000])
    return data[:start] + data[start + size :]


def duplicate(dice: random.Random, data: bytes) -> bytes:
    """A piece twice, or a hundred times."""
    start, size = dice.randrange(len(data)), dice.choice([1, 10, 1000])
    return data[:start] + data[start : start + size] * dice.choice([2, 2, 100]) + data[start + size :]


def splice(dice: random.Random, data: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    other = SEEDS[dice.choice(sorted(SEEDS))](dice)
    return data[: dice.randrange(len(data))] + other[dice.randrange(len(other)) :]


def insert(dice: random.Random, data: bytes) -> bytes:
    """Bytes that mean something to somebody, in a few places."""
    strange = [
        b"\x00",
        b"\r",
        b"\n",
        b"\r\r\n",
        b'"',
        b"'",
        b"\xef\xbb\xbf",
        b"\xff",
        b",",
        b"\x1a",
        b"PAR1",
        b"\\",
        b"\t",
    ]
    for _ in range(dice.choice([1, 2, 10])):
        place = dice.randrange(len(data) + 1)
        data = data[:place] + dice.choice(strange) * dice.choice([1, 1, 3, 300]) + data[place:]
    return data


def blank_out(dice: random.Random, data: bytes) -> bytes:
    """A piece of nothing but one byte."""
    start, size = dice.randrange(len(data)), min(dice.choice([4, 100, 5000]), len(data))
    return data[:start] + dice.choice([b"\x00", b"\xff", b","]) * size + data[start + size :]


def csv_encoding(dice: random.Random, data: bytes) -> bytes:
    """Text in another encoding."""
    text = data.decode(errors="replace")
    name = dice.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp037", "utf-7"])
    return text.replace("a", "é", dice.choice([0, 1, -1])).encode(name, errors="replace")


def csv_long(dice: random.Random, data: bytes) -> bytes:
    """A long line, field or run of commas somewhere."""
    place = dice.randrange(len(data))
    return (
        data[:place]
        + dice.choice([b"x", b",", b" ", b"9", b"\xff"]) * dice.choice([5000, 70_000, 3_000_000])
        + data[place:]
    )


def csv_field(dice: random.Random, data: bytes) -> bytes:
    """One field of ten megabytes."""
    fields = data.split(b",")
    fields[dice.randrange(len(fields))] = dice.choice([b"x", b"9", b" ", b"\xc3\xa9"]) * FIELD
    return b",".join(fields)


def csv_header(dice: random.Random, data: bytes) -> bytes:
    """A hostile header above good lines."""
    header, end, rest = data.partition(b"\r\n")
    names = header.split(b",")
    place = dice.randrange(len(names))
    name = names[place]
    tail = dice.choice([b"\n", b'"', b"\x00", b"\xff", b"\r", b"x" * 2000, b" " * 2000])
    hostile: list[list[bytes]] = [
        [*names, *[b""] * dice.choice([1, 19, 1000, 100_000])],
        [*names[:place], name, *names[place:]],
        [*names[:place], *names[place + 1 :]],
        [*names[:place], name + tail, *names[place + 1 :]],
        [*names, *[b"\x1b[2J%d" % n for n in range(dice.choice([1, 5000]))]],
        dice.sample(names, len(names)),
        [b""],
    ]
    return b",".join(dice.choice(hostile)) + end + rest


def parquet_data_bytes(dice: random.Random, data: bytes) -> bytes:
    """Other bytes above the footer."""
    return overwritten(dice, data, [dice.randrange(4, footer_start(data)) for _ in range(dice.choice([1, 2, 8]))])


def parquet_footer_bytes(dice: random.Random, data: bytes) -> bytes:
    """Other bytes in the footer."""
    start = footer_start(data)
    return overwritten(dice, data, [dice.randrange(start, len(data)) for _ in range(dice.choice([1, 1, 2, 8]))])


def parquet_footer_integer(dice: random.Random, data: bytes) -> bytes:
    """A footer of which one number lies: of rows, of bytes, of a place, of a type."""
    start = footer_start(data)
    footer = tampered(dice, data[start:-8])
    return data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def parquet_footer_length(dice: random.Random, data: bytes) -> bytes:
    """A footer whose length lies."""
    length = int.from_bytes(data[-8:-4], "little")
    wrong = dice.choice([0, 1, 7, length - 1, length + 1, len(data), len(data) - 8, 2**31 - 1, 2**31, 2**32 - 1])
    return data[:-8] + (wrong % 2**32).to_bytes(4, "little") + data[-4:]


def parquet_page_bytes(dice: random.Random, data: bytes) -> bytes:
    """Other bytes in the headers of pages, and where their values begin."""
    places = page_starts(data)
    return overwritten(dice, data, [dice.choice(places) + dice.randrange(60) for _ in range(dice.choice([1, 2, 5]))])


def parquet_page_integer(dice: random.Random, data: bytes) -> bytes:
    """A page header of which one number lies: of values, of bytes packed or unpacked, of an encoding."""
    start = dice.choice(page_starts(data))
    header = data[start : start + thrift_end(data[start:])]
    changed = tampered(dice, header)
    # All that follows keeps its place.
    return data[:start] + changed + data[start + len(changed) :]


MUTATIONS: dict[str, Mutation] = {
    made.__name__: (lambda dice, data, made=made: made(dice, data) if len(data) > 12 else data)  # type: ignore[misc]
    for made in (
        flip, flip_bits, cut, remove, duplicate, splice, insert, blank_out,
        csv_encoding, csv_long, csv_field, csv_header,
        parquet_data_bytes, parquet_footer_bytes, parquet_footer_integer, parquet_footer_length,
        parquet_page_bytes, parquet_page_integer,
    )
}  # fmt: skip
WEIGHTS = {
    "csv_field": 1, "csv_long": 3, "csv_header": 20,
    "parquet_data_bytes": 40, "parquet_page_bytes": 30, "parquet_page_integer": 30, "parquet_footer_integer": 30,
    "parquet_footer_length": 3, "cut": 5,
}  # fmt: skip


# ---- named cases ----


def with_header(header: bytes) -> bytes:
    """A good month of 2009 under another header."""
    return header + csv_2009(dice_of(1)).partition(b"\r\n")[2]


def with_value(**values: Any) -> bytes:
    """A CSV month of 2009, one line with these values between good ones."""
    good = [factory.line(**row_2009(dice_of(number))) for number in range(5)]
    return csv_bytes(NAMES_2009, [*good, factory.line(**values), *good])


def with_column(name: str, values: pa.Array, **options: Any) -> bytes:
    """A Parquet month of 2009 in which one column is replaced; nothing tells Arrow which types were written."""
    rows = len(values)
    table = pa.table({key: pa.repeat(table_2009(dice_of(1))[key][0], rows) for key in factory.RAW_2009})
    place = table.column_names.index(name)
    return parquet_bytes(table.set_column(place, name, values), **{"store_schema": False} | options)


def repeated(value: Any, rows: int) -> pa.Array:
    """One value in many rows, held once."""
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array([value]))


def bomb(column: str, size: int, rows: int = 50_000) -> bytes:
    """A Parquet month with one long text that a dictionary repeats in every row."""
    return with_column(column, repeated("7" * size, rows), dictionary_pagesize_limit=2**30, compression="zstd")


def packed(size: int, values: int) -> bytes:
    """A Parquet month with long texts that differ a little, a page each, packed a thousandfold."""
    texts = pa.array([str(number) + " " * size for number in range(values)])
    options = {"use_dictionary": False, "compression": "zstd", "write_statistics": False, "write_batch_size": 1}
    return with_column("Trip_Pickup_DateTime", texts, **options)


def shared_prefix(size: int, values: int) -> bytes:
    """A Parquet month with texts that are all the beginning of the one before: a page of 1 kB that holds megabytes."""
    encoding = {"use_dictionary": False, "column_encoding": {"Trip_Pickup_DateTime": "DELTA_BYTE_ARRAY"}}
    return with_column("Trip_Pickup_DateTime", pa.repeat("7" * size, values), compression="zstd", **encoding)


def renamed(*names: bytes) -> bytes:
    """A Parquet month whose first columns' names are other bytes of the same length."""
    data = parquet_bytes(table_2009(dice_of(1)), compression="none", store_schema=False)
    start = footer_start(data)
    footer = data[start:]
    for old, new in zip(factory.RAW_2009, names, strict=False):
        footer = footer.replace(old.encode(), new.ljust(len(old), b"_")[: len(old)])
    return data[:start] + footer


def nothing(rows: int) -> bytes:
    """A Parquet month of very many rows that are all null, which takes a few hundred bytes."""
    types = {name: pa.float64() for name in factory.RAW_2009}
    sink = io.BytesIO()
    batch = pa.record_batch([pa.nulls(rows, kind) for kind in types.values()], names=list(types))
    with pq.ParquetWriter(sink, batch.schema, compression="zstd", data_page_version="2.0") as writer:
        writer.write_batch(batch)
    return sink.getvalue()


NAMES_2009 = ",".join(factory.RAW_2009)
HEADER_2009 = NAMES_2009.encode()
CSV, PARQUET = "yellow.csv", "yellow.parquet"
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no bytes": (CSV, lambda: b""),
    "only a newline": (CSV, lambda: b"\r\n"),
    "only a header": (CSV, lambda: HEADER_2009),
    "NUL bytes alone": (CSV, lambda: b"\x00" * 100_000),
    "a million commas": (CSV, lambda: with_header(b"," * 1_000_000)),
    "a good header and a million commas": (CSV, lambda: with_header(HEADER_2009 + b"," * 1_000_000)),
    "a good header and 900 names": (CSV, lambda: with_header(HEADER_2009 + b"".join(b",n%d" % n for n in range(900)))),
    "a name of a megabyte": (CSV, lambda: with_header(HEADER_2009 + b",," + b"n" * 1_000_000)),
    "a name of nine hundred kilobytes": (CSV, lambda: with_header(HEADER_2009 + b"," + b"n" * 900_000)),
    "a header without an end": (CSV, lambda: b"n" * 70_000_000),
    "names twice": (CSV, lambda: with_header(HEADER_2009 + b"," + HEADER_2009)),
    "unknown names twice": (CSV, lambda: with_header(HEADER_2009 + b",weather,weather")),
    "a name with a newline": (CSV, lambda: with_header(HEADER_2009.replace(b"Tip_Amt", b"Tip\n_Amt"))),
    "a name in quotes": (CSV, lambda: with_header(b",".join(b'"%s"' % name for name in HEADER_2009.split(b",")))),
    "a name with NUL": (CSV, lambda: with_header(HEADER_2009.replace(b"Tip_Amt", b"Tip\x00_Amt"))),
    "a name that a terminal obeys": (CSV, lambda: with_header(HEADER_2009 + b",\x1b]0;owned\x07\x1b[2J")),
    "a header of blanks": (CSV, lambda: with_header(b" " * 1000)),
    "lines end in CR": (CSV, lambda: csv_2009(dice_of(1)).replace(b"\r\n", b"\r")),
    "lines end in CR CR LF": (CSV, lambda: csv_2009(dice_of(1)).replace(b"\r\n", b"\r\r\n")),
    "UTF-16": (CSV, lambda: csv_2009(dice_of(1)).decode().encode("utf-16")),
    "Latin-1": (CSV, lambda: with_value(vendor_name="Caf\xe9").decode().encode("latin-1")),
    "Latin-1 in a line of too few fields": (CSV, lambda: csv_2009(dice_of(1)) + b"\xe9,1\r\n"),
    "EBCDIC": (CSV, lambda: csv_2009(dice_of(1)).decode().encode("cp037")),
    "NUL in a field": (CSV, lambda: with_value(vendor_name="a\x00b", Fare_Amt="\x007.7", Start_Lat="\x00")),
    "an open quote": (CSV, lambda: with_value(vendor_name='"')),
    "10 MB in a category": (CSV, lambda: with_value(vendor_name="x" * FIELD)),
    "10 MB in a number": (CSV, lambda: with_value(Fare_Amt="9" * FIELD)),
    "10 MB in a time": (CSV, lambda: with_value(Trip_Pickup_DateTime="2009" * (FIELD // 4))),
    "10 MB in an ignored column": (CSV, lambda: with_value(Start_Lat="9" * FIELD)),
    "10 MB in each field": (CSV, lambda: csv_bytes(NAMES_2009, [",".join(["9" * (FIELD // 4)] * 18)])),
    "10 MB of commas": (CSV, lambda: with_value(vendor_name="," * FIELD)),
    "a line of 100 MB": (CSV, lambda: with_value(vendor_name="x" * 100_000_000)),
    "300,000 lines of one letter": (CSV, lambda: csv_bytes(NAMES_2009, []) + b"x\n" * 300_000),
    "300,000 lines that end in CR": (CSV, lambda: csv_bytes(NAMES_2009, []) + b"x\r" * 300_000),
    "16 MB of blank lines": (CSV, lambda: csv_bytes(NAMES_2009, [factory.line()]) + b"\n" * 16_000_000),
    "no field is readable, all differ": (CSV, lambda: csv_bytes(NAMES_2009, unreadable_lines(10_000))),
    "numbers too large, all differ": (CSV, lambda: csv_bytes(NAMES_2009, large_lines(5_000))),
    "a category with many values": (CSV, lambda: csv_bytes(NAMES_2009, many_values(12_000))),
    "10 MB in a category of Parquet": (PARQUET, lambda: with_long("vendor_name", "x")),
    "10 MB in a time of Parquet": (PARQUET, lambda: with_long("Trip_Pickup_DateTime", "2")),
    "10 MB in a number of Parquet": (PARQUET, lambda: with_long("Fare_Amt", "9")),
    "10 MB in an ignored column of Parquet": (PARQUET, lambda: with_long("store_and_forward", "9")),
    "10 MB in each row, in a category": (PARQUET, lambda: bomb("vendor_name", FIELD)),
    "10 MB in each row, in a time": (PARQUET, lambda: bomb("Trip_Pickup_DateTime", FIELD)),
    "10 MB in each row, in a number": (PARQUET, lambda: bomb("Fare_Amt", FIELD)),
    "10 MB in each row, in an ignored column": (PARQUET, lambda: bomb("store_and_forward", FIELD)),
    "100 kB in each row, in a time": (PARQUET, lambda: bomb("Trip_Pickup_DateTime", 100_000)),
    "two million rows of nothing": (PARQUET, lambda: nothing(2_000_000)),
    "names that are not UTF-8": (PARQUET, lambda: renamed(b"\xff\xfe\xff")),
    "names with newlines and NUL": (PARQUET, lambda: renamed(b"\n\x1b[2J", b"\x00\x07")),
    "no row groups": (PARQUET, lambda: parquet_bytes(table_2009(dice_of(1)).slice(0, 0))),
    "2000 columns": (PARQUET, lambda: parquet_bytes(pa.table({f"n{n}": [1] for n in range(2000)}))),
    "a name of 10 MB": (
        PARQUET,
        lambda: parquet_bytes(table_2009(dice_of(1)).append_column("n" * FIELD, [[1] * ROWS])),
    ),
    "nothing but magic": (PARQUET, lambda: b"PAR1" * 3),
    "a footer of 2 GB": (PARQUET, lambda: b"PAR1" + b"\x00" * 100 + (2**31 - 1).to_bytes(4, "little") + b"PAR1"),
}


# What no look at footer and dictionaries foresees: these end in a message where memory is bounded from outside.
UNFORESEEN: dict[str, tuple[str, Callable[[], bytes]]] = {
    "200 MB of text in pages of 4 MB": (PARQUET, lambda: packed(2**22, 50)),
    "a value of 400 MB": (PARQUET, lambda: packed(400_000_000, 1)),
    "prefixes that make 1 GB": (PARQUET, lambda: shared_prefix(10_000, 100_000)),
}


def with_long(column: str, letter: str) -> bytes:
    """A Parquet month of 2009 with one field of ten megabytes."""
    return with_column(column, pa.array(["1", letter * FIELD, "3"]), use_dictionary=False)


def unreadable_lines(count: int) -> Iterator[str]:
    """Lines in which no field but the vendor can be read, each another text."""
    columns = [name for name in factory.RAW_2009 if name not in {"vendor_name", "Payment_Type", "Rate_Code"}]
    return (factory.line(**{name: f"x{number}{name}" for name in columns}) for number in range(count))


def large_lines(count: int) -> Iterator[str]:
    """Lines with numbers and days that look well and that nothing holds."""
    values = ("Passenger_Count", "Trip_Pickup_DateTime", "Trip_Dropoff_DateTime")
    texts = ("{0}000000000", "2009-02-30 00:00:00.{0:06}", "2009-02-29 00:00:00.{0:06}")
    rows = (dict(zip(values, (text.format(number) for text in texts), strict=True)) for number in range(count))
    return (factory.line(**row) for row in rows)


def many_values(count: int) -> Iterator[str]:
    """Lines with another vendor each."""
    return (factory.line(vendor_name=f"v{number}") for number in range(count))


# ---- the parts of a Parquet file ----


def footer_start(data: bytes) -> int:
    """Where the footer begins, if the file's end is to be believed; near its end if not."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return start if 4 < start < len(data) - 8 else max(5, len(data) - 100)


def page_starts(data: bytes) -> list[int]:
    """Where headers of pages begin, by their looks: Arrow's reader of footers ends the process on some damaged ones."""
    return [match.start() for match in re.finditer(rb"\x15[\x00\x04\x06]\x15", data)] or [4]


def tampered(dice: random.Random, struct: bytes) -> bytes:
    """A struct of Thrift's compact protocol with one of its numbers changed."""
    numbers = thrift_numbers(struct)
    if not numbers:
        return struct
    start, end = dice.choice(numbers)
    value = dice.choice([0, 1, -1, 2, 100, 2**15, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**63), 2**63 - 1])
    return struct[:start] + varint((value << 1) ^ (value >> 63)) + struct[end:]


def varint(value: int) -> bytes:
    """A number as Thrift's compact protocol writes it, not yet zigzag."""
    value %= 2**64
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


class Thrift:
    """The places of all numbers in a struct of Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.numbers: list[tuple[int, int]] = []

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def struct(self) -> None:
        while True:
            head = self.data[self.at]
            self.at += 1
            if head == 0:
                return
            if head >> 4 == 0:
                self.varint()
            self.value(head & 15)

    def value(self, kind: int, *, alone: bool = True) -> None:
        start = self.at
        if kind in {1, 2}:
            self.at += 0 if alone else 1
        elif kind == 3:
            self.at += 1
        elif kind in {4, 5, 6}:
            self.varint()
            self.numbers.append((start, self.at))
        elif kind == 7:
            self.at += 8
        elif kind == 8:
            size = self.varint()
            self.at += size
        elif kind in {9, 10}:
            self.list()
        elif kind == 12:
            self.struct()
        else:
            raise ValueError(kind)

    def list(self) -> None:
        head = self.data[self.at]
        self.at += 1
        size = head >> 4 if head >> 4 < 15 else self.varint()
        for _ in range(size):
            self.value(head & 15, alone=False)


def thrift_numbers(struct: bytes) -> list[tuple[int, int]]:
    """Beginning and end of each number of a struct, as far as it can be read."""
    reader = Thrift(struct)
    with contextlib.suppress(IndexError, ValueError, RecursionError):
        reader.struct()
    return [(start, end) for start, end in reader.numbers if end <= len(struct)]


def thrift_end(data: bytes) -> int:
    """The length of the struct that some bytes begin with."""
    reader = Thrift(data)
    with contextlib.suppress(IndexError, ValueError, RecursionError):
        reader.struct()
    return min(reader.at, len(data))


# ---- running ----


@dataclass(frozen=True)
class Result:
    """What became of one command on one file.

    Parameters
    ----------
    code
        Its exit code; None where the process did not come through.
    printed
        All that it printed, or how the process ended.
    peak
        Most memory held at a time, in MiB above what was held before.
    seconds
        How long it took.
    """

    code: int | None
    printed: str
    peak: float = 0.0
    seconds: float = 0.0


class Child:
    """A project folder and a process that runs commands in it; a process that dies or hangs is replaced."""

    def __init__(self, root: Path) -> None:
        from tests.conftest import settings_values
        from tipline.paths import Paths

        self.paths = Paths(root)
        root.mkdir(parents=True, exist_ok=True)
        (root / "dvc.yaml").touch()
        (root / "params.yaml").write_text(yaml.safe_dump(settings_values()))
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def put(self, name: str, data: bytes) -> Path:
        """Make a file the one published file of the month, and nothing of it prepared."""
        for folder in (self.paths.raw(MONTH), self.paths.prepared(MONTH), self.paths.staging):
            shutil.rmtree(folder, ignore_errors=True)
        self.paths.raw(MONTH).mkdir(parents=True)
        path = self.paths.raw(MONTH) / name
        path.write_bytes(data)
        return path

    def run(self, *arguments: str, room: int = 0) -> Result:
        """Run a command; `room` is how many MiB of address space it may take, 0: as many as it likes."""
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps([room, *arguments]) + "\n")
        process.stdin.flush()
        started = time.perf_counter()
        ready, _, _ = select.select([process.stdout], [], [], HANG)
        answer = process.stdout.readline() if ready else ""
        if answer:
            return Result(**json.loads(answer))
        if ready:
            process.wait()  # it has ended by itself
        code = process.poll()
        self.stop()
        printed = (self.paths.root / "printed").read_text(errors="replace")[-2000:]
        ended = "hangs" if code is None else f"ended with code {code}"
        return Result(None, f"{ended}: {printed}", seconds=time.perf_counter() - started)

    def _start(self) -> subprocess.Popen[str]:
        from tipline.ingest.schema import load_schema

        # Read now, as the process does: somebody may edit the schema during a long run.
        self.schema = load_schema().schema
        command = [sys.executable, "-m", "tests.fuzzing", str(self.paths.root)]
        # A crash shows where in Python it happened; warnings are errors, as in the tests.
        flags = {"PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": "error"}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | flags, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self._process

    def stop(self) -> None:
        """End the process."""
        if self._process:
            if self._process.poll() is None and self._process.stdin:
                self._process.send_signal(signal.SIGKILL)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._process.wait()
            self._process = None


def faults(child: Child, command: str, result: Result, bound: float = TIGHT) -> list[str]:
    """What is wrong with the outcome of a command on the file that was `put`."""
    found = []
    if result.code is None:
        return [result.printed]
    if "Traceback" in result.printed or "defect of tipline" in result.printed:
        found.append("an error without a message of its own")
    if result.code not in {0, 1}:
        found.append(f"exit code {result.code}")
    if len(result.printed) > LONGEST_MESSAGE:
        found.append(f"{len(result.printed):,} letters printed")
    if CONTROL.search(result.printed):
        found.append("control characters printed")
    if result.code == 1 and not THREE_PARTS.search(result.printed):
        found.append("not a message of three lines")
    if result.peak > bound:
        found.append(f"{result.peak:,.0f} MiB")
    if any(path.is_file() for path in child.paths.staging.rglob("*")):
        found.append("something is left in the staging folder")
    if command == "prepare":
        found += prepared_faults(child) if result.code == 0 else half_written(child)
    return found


def half_written(child: Child) -> list[str]:
    """What a command that failed has left of a month."""
    return [f"left behind: {path}" for path in child.paths.prepared(MONTH).parent.rglob("*")]


def prepared_faults(child: Child) -> list[str]:
    """What is wrong with a month that is said to be prepared."""
    folder = child.paths.prepared(MONTH)
    manifest = json.loads((folder / "_manifest.json").read_text(encoding="utf-8"))
    trips, apart = (pq.read_table(folder / name) for name in ("trips.parquet", "_quarantine.parquet"))
    found = []
    try:
        trips.validate(full=True)
        apart.validate(full=True)
    except pa.ArrowInvalid as error:
        found.append(f"what was written is not valid: {error}")
    if not trips.schema.equals(child.schema):
        found.append("the schema is not the schema's")
    if (len(trips), len(apart)) != (manifest["rows_out"], manifest["quarantined"]):
        found.append("the manifest's counts are not those of the files")
    rows = sorted([*trips["row"].to_pylist(), *apart["row"].to_pylist()])
    if rows != list(range(manifest["rows_in"])):
        found.append("rows in are not rows out and rows in quarantine, each once")
    return found


# ---- the process ----


def serve(root: Path) -> None:
    """Run the commands that come on the standard input, a line each, and answer with a line each."""
    answers = os.fdopen(os.dup(1), "w")
    printed = os.open(root / "printed", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.chdir(root)
    for name in ("cli", "params", "months.source", "stages.prepare", "commands.check"):
        importlib.import_module(f"tipline.{name}")
    settle()
    for line in sys.stdin:
        os.ftruncate(printed, 0)
        os.lseek(printed, 0, os.SEEK_SET)
        room, *arguments = json.loads(line)
        answer = answered(arguments, room)
        sys.stdout.flush()
        sys.stderr.flush()
        said = (root / "printed").read_bytes().decode(errors="replace")
        answers.write(json.dumps(answer | {"printed": said}) + "\n")
        answers.flush()


def settle() -> None:
    """Read settings and schema once, and leave flushing to the disk: nine tenths of a small month's time."""
    from tipline import config, files
    from tipline.ingest.schema import load_schema

    config.load_settings, load_schema = cache(config.load_settings), cache(load_schema)
    files.flush_to_disk = lambda path: None  # noqa: ARG005 (as it is called)


def answered(arguments: list[str], room: int) -> dict[str, Any]:
    """Run one command; say how it went."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
    before, started = memory("VmRSS"), time.perf_counter()
    with address_space(room):
        code = checked_format(arguments[1]) if arguments[0] == FORMAT else command_code(arguments)
    peak = (memory("VmHWM") - before) / 1024
    return {"code": code, "peak": peak, "seconds": time.perf_counter() - started}


def command_code(arguments: list[str]) -> int:
    from tipline import cli

    return cli.main(arguments)


def checked_format(path: str) -> int:
    """The check of a downloaded file; any other exception than its own ends the process."""
    from tipline.errors import TiplineError
    from tipline.ingest import source

    try:
        source.check_format(Path(path), "here")
    except TiplineError as error:
        sys.stderr.write(f"tipline {FORMAT}: {error}\n")
        return error.exit_code
    return 0


@contextlib.contextmanager
def address_space(room: int) -> Iterator[None]:
    """Bound the process's address space to what it has and some MiB more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if room:
        resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") * 1024 + room * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@cache
def status_line(name: str) -> re.Pattern[str]:
    return re.compile(rf"{name}:\s+(\d+) kB")


def memory(name: str) -> int:
    """A figure of the process's memory, in KiB."""
    found = status_line(name).search(Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found.group(1))


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
