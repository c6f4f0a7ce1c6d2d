"""Hostile months: a hypothesis strategy, named cases, and a process that runs commands on them and may crash."""

import contextlib
import decimal
import faulthandler
import io
import multiprocessing
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tests import factory, workbench
from tests.factory import MONTH, RAW_2009, RAW_TPEP, TYPES_TPEP
from tipline.ingest import schema

Draw = st.DrawFn

ROWS = 60
SECONDS = 20.0  # until a command is taken to hang; an honest one takes a twentieth of a second
MEBIBYTES = 600  # above what the process held before
HUGE = 10_000_000
COMMANDS = (["prepare", MONTH], ["check", "published/{month}", MONTH], ["download", MONTH])
THREE_PARTS = re.compile(r"tipline \w+: [^\n]+(\n  [^\n]+){0,40}\n  where: [^\n]+\n  to do: [^\n]+\n\Z")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HEADER = ",".join(RAW_2009).encode()

TYPES_2009 = {name: pa.string() if name in factory.TEXT_2009 else pa.float64() for name in RAW_2009}


def write_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def create_table(*, today: bool = False, rows: int = ROWS) -> pa.Table:
    types, raw = (TYPES_TPEP, RAW_TPEP) if today else (TYPES_2009, RAW_2009)
    return pa.Table.from_pylist([raw] * rows, schema=pa.schema(list(types.items())))


def write_csv(*lines: str, header: bytes = HEADER) -> bytes:
    """A CSV month of 2009: some good lines around others."""
    good = [factory.line(Fare_Amt=number) for number in range(ROWS)]
    return header + "\r\n".join(["", "", *good[:30], *lines, *good[30:], ""]).encode()


WRITE_OPTIONS = {
    "compression": st.sampled_from(["snappy", "zstd"]),
    "use_dictionary": st.booleans(),
    "row_group_size": st.sampled_from([7, ROWS]),
    "data_page_size": st.sampled_from([64, 2**20]),
}
ODD_TEXTS = [
    "", " ", "nan", "-inf", "1e309", "0x10", "1_000", "\uff11\uff12", "9" * 400, "1e", "true", "\\N",
    "0001-01-01 00:00:00", "2009-02-30 00:00:00", "2009-01-01 00:00:00+05:30", "99999-01-01 00:00:00", '"', "\x00",
    "\x1b[31mred", "\u202e", "\ufeff", "😀", "x" * 250, "\x85", "\u2028", "1,2", "\r", "İ", "ß" * 150,
]  # fmt: skip
INTEGERS = [0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63)]
FLOATS = [0.0, float("nan"), float("-inf"), 1e308, 5e-324, 2.0**63, 1e15 + 0.5]
# Type of the values, values, type that is written.
ODD_ARRAYS: list[tuple[pa.DataType, list[Any], pa.DataType]] = [
    *((pa.int64(), INTEGERS, type_) for type_ in (pa.int64(), pa.timestamp("s"), pa.timestamp("ns", "UTC"))),
    (pa.uint64(), [0, 2**64 - 1], pa.uint64()),
    (pa.int32(), [0, 2**31 - 1, -(2**31)], pa.date32()),
    *((pa.float64(), FLOATS, type_) for type_ in (pa.float64(), pa.float16())),
    (pa.decimal256(76, 2), [decimal.Decimal(10) ** 73], pa.decimal256(76, 2)),
    *((pa.string(), ODD_TEXTS, type_) for type_ in (pa.string(), pa.dictionary(pa.int8(), pa.string()))),
    (pa.binary(), [b"\xff\xfe", b"CMT"], pa.binary()),
    (pa.bool_(), [True, False], pa.bool_()),
    (pa.null(), [None], pa.null()),
    (pa.list_(pa.int64()), [[1]], pa.list_(pa.int64())),
]


def draw_csv(draw: Draw) -> bytes:
    fields = st.dictionaries(st.sampled_from(list(RAW_2009)), st.sampled_from(ODD_TEXTS), max_size=3)
    return write_csv(*(factory.line(**odd) for odd in draw(st.lists(fields, max_size=5))))


def draw_parquet(draw: Draw) -> bytes:
    table = create_table(today=draw(st.booleans()))
    for place in draw(st.lists(st.integers(0, len(table.column_names) - 1), max_size=3, unique=True)):
        type_, values, written = draw(st.sampled_from(ODD_ARRAYS))
        few = draw(st.lists(st.sampled_from([*values, None]), min_size=1, max_size=5))
        array = pa.array([few[row % len(few)] for row in range(ROWS)], type_)
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):  # there is no cast between some types
            table = table.set_column(place, table.column_names[place], array.cast(written, safe=False))
    options = draw(st.fixed_dictionaries(WRITE_OPTIONS))
    try:
        return write_bytes(table, **options)
    except pa.ArrowException:  # some types and values cannot be written
        return write_bytes(create_table(), **options)


MEANINGFUL = [b"\x00", b"\r", b"\n", b"\r\r\n", b'"', b"\xef\xbb\xbf", b"\xff", b",", b"\x1a", b"PAR1", b"x"]


def change_bytes(draw: Draw, data: bytes) -> bytes:
    """Change bytes anywhere or near the end, where the footer is."""
    changed, nearest = bytearray(data), draw(st.sampled_from([len(data), 2000, 100]))
    for place in draw(st.lists(st.integers(1, min(nearest, len(data))), min_size=1, max_size=8)):
        changed[-place] = draw(st.integers(0, 255))
    return bytes(changed)


def replace_piece(draw: Draw, data: bytes) -> bytes:
    """Remove a piece, or everything after its beginning, or put something else there."""
    start, size = draw(st.integers(0, len(data))), draw(st.sampled_from([0, 1, 1000, len(data)]))
    new = draw(st.sampled_from([*MEANINGFUL, data[start : start + 300]])) * draw(st.sampled_from([0, 1, 3, 70_000]))
    return data[:start] + new[: 10**6] + data[start + size :]


@st.composite
def months(draw: Draw) -> bytes:
    """The bytes of a month, honest or hostile."""
    data = draw(st.sampled_from([draw_csv, draw_parquet]))(draw)
    for mutate in draw(st.lists(st.sampled_from([change_bytes, replace_piece]), max_size=3)):
        data = mutate(draw, data) if len(data) > 12 else data
    return data


def encode_number(value: int) -> bytes:
    """Encode a number of a Parquet footer, Thrift's compact protocol: zigzag, seven bits per byte."""
    left, encoded = ((value << 1) ^ (value >> 63)) % 2**64, bytearray()
    while left >= 0x80:
        encoded.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*encoded, left])


def change_footer(old: bytes, new: bytes) -> bytes:
    """A Parquet month whose footer has other bytes."""
    data = write_bytes(create_table(), compression="none", store_schema=False)
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert old in data[start:]
    footer = data[start:-8].replace(old, new)
    return data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def lie_about_rows(rows: int) -> bytes:
    """A Parquet month whose footer gives another number of rows and values."""
    return change_footer(b"\x16" + encode_number(ROWS), b"\x16" + encode_number(rows))


def replace_column(name: str, values: pa.Array, **options: Any) -> bytes:
    """A Parquet month of 2009 with one column replaced; Arrow is not told which types were written."""
    first = create_table(rows=1)
    table = pa.table({key: pa.repeat(first[key][0], len(values)) for key in RAW_2009})
    place = table.column_names.index(name)
    return write_bytes(table.set_column(place, name, values), **{"store_schema": False} | options)


def repeat_text(column: str, size: int) -> bytes:
    """Texts of a dictionary whose last one is long and in most rows."""
    codes, texts = [*range(999), *[999] * 50_000], [f"{number}.0" for number in range(999)]
    values = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array([*texts, "7" * size]))
    return replace_column(column, values, dictionary_pagesize_limit=2**30, compression="zstd")


def write_unreadable() -> bytes:
    """Lines in which hardly a field can be read, all different."""
    texts = dict.fromkeys(["Fare_Amt", "Tip_Amt", "Trip_Pickup_DateTime"], "x{}")
    texts |= {"Passenger_Count": "{}000000000", "Trip_Dropoff_DateTime": "2009-02-30 00:00:00.{:06}"}
    return write_csv(*(factory.line(**{name: text.format(n) for name, text in texts.items()}) for n in range(10_000)))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "no bytes": lambda: b"",
    "a header alone": lambda: HEADER,
    "a header without an end": lambda: b"n" * 70_000_000,
    "a million names": partial(write_csv, header=HEADER + b"," * 1_000_000),
    "a name that a terminal obeys": partial(write_csv, header=HEADER + b",\x1b]0;owned\x07\x1b[2J"),
    "CR CR LF": lambda: write_csv().replace(b"\r\n", b"\r\r\n"),
    "UTF-16": lambda: write_csv().decode().encode("utf-16"),
    "Latin-1": lambda: write_csv(factory.line(vendor_name="Caf\xe9")).decode().encode("latin-1"),
    "NUL in fields": partial(write_csv, factory.line(vendor_name="a\x00b", Fare_Amt="\x007.7", Start_Lat="\x00")),
    "an open quote": partial(write_csv, factory.line(vendor_name='"')),
    "a category of 10 MB": partial(write_csv, factory.line(vendor_name="9" * HUGE)),
    "a number of 10 MB": partial(write_csv, factory.line(Fare_Amt="9" * HUGE)),
    "a line of 100 MB": partial(write_csv, factory.line(vendor_name="x" * 100_000_000)),
    "a million lines of one letter": lambda: write_csv() + b"x\n" * 1_000_000,
    "16 MB of blank lines": lambda: write_csv() + b"\n" * 16_000_000,
    "lines that cannot be read": write_unreadable,
    "a category of many values": lambda: write_csv(*(factory.line(vendor_name=f"v{n}") for n in range(12_000))),
    "10 MB in each category of Parquet": partial(repeat_text, "vendor_name", HUGE),
    "10 MB in each number of Parquet": partial(repeat_text, "Fare_Amt", HUGE),
    "two million rows of nothing": lambda: replace_column("Start_Lat", pa.nulls(2_000_000, pa.float64())),
    "names that are not UTF-8": partial(change_footer, b"vendor_name", b"\xff\xfe\xff________"),
    "no row groups": lambda: write_bytes(create_table(rows=0)),
    "2000 columns": lambda: write_bytes(pa.table({f"n{number}": [1] for number in range(2000)})),
    "a name of 10 MB": lambda: write_bytes(create_table().append_column("n" * HUGE, [[1] * ROWS])),
    "a footer of 2 GB": lambda: b"PAR1" + b"\x00" * 100 + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
    "a footer that says -1 rows": partial(lie_about_rows, -1),
    "a footer that says 2**62 rows": partial(lie_about_rows, 2**62),
}


class Result(NamedTuple):
    """What a command did."""

    code: int
    printed: str
    peak: float  # MiB above what was held before


class Project:
    """A project for one month, and a process that runs commands in it; all fails once it crashes or hangs."""

    def __init__(self, root: Path) -> None:
        self.paths = workbench.write_project(root, source="published/{month}")
        self.prepared = self.paths.prepared(MONTH)
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=serve_commands, args=(theirs, root), daemon=True)
        self.process.start()
        theirs.close()
        assert self._connection.recv() == "ready"

    def put(self, data: bytes) -> None:
        """Make some bytes the month: at the source, and in data/raw/."""
        shutil.rmtree(self.paths.root / "data", ignore_errors=True)
        for path in (self.paths.root / "published" / MONTH, self.paths.raw(MONTH) / "month"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def run(self, *arguments: str) -> Result:
        self._connection.send(arguments)
        if not self._connection.poll(SECONDS):
            self.process.kill()
        return Result(*self._connection.recv())  # an EOFError if it has crashed or hangs

    def find_faults(self, result: Result) -> list[str]:
        """List what is wrong with a result, whatever the command was."""
        left = [path.name for path in (self.paths.staging / "trips").rglob("*") if path.name != ".swap.lock"]
        faults = {
            "no message of its own": "Traceback" in result.printed or "defect of tipline" in result.printed,
            f"exit code {result.code}": result.code not in {0, 1},
            "a long message": len(result.printed) > 10_000,
            "control characters": CONTROL.search(result.printed),
            "not a message of three lines": result.code == 1 and not THREE_PARTS.search(result.printed),
            f"{result.peak:,.0f} MiB": result.peak > MEBIBYTES,
            f"left in staging: {left}": left,
        }
        return [f"{fault}: {result.printed[-500:]}" for fault, is_so in faults.items() if is_so]

    def prepare(self) -> tuple[Result, list[str]]:
        """Run `prepare`; list what is wrong with its result and with the month that it has prepared."""
        result = self.run("prepare", MONTH)
        faults = self.find_faults(result)
        if result.code != 0:
            return result, faults + [f"left behind: {path}" for path in self.prepared.parent.rglob("*")]
        manifest, (trips, quarantine) = factory.manifest_of(self.prepared), self.read()
        trips.validate(full=True)
        quarantine.validate(full=True)
        rows = sorted([*trips["row"].to_pylist(), *quarantine["row"].to_pylist()])
        more = {
            "the schema differs": not trips.schema.equals(factory.STORED),
            "the counts differ": (len(trips), len(quarantine)) != (manifest["rows_out"], manifest["quarantined"]),
            "rows are lost or repeated": rows != list(range(manifest["rows_in"])),
        }
        return result, faults + [fault for fault, is_so in more.items() if is_so]

    def read(self) -> list[pa.Table]:
        """The trips and the quarantine."""
        return [pq.read_table(self.prepared / name) for name in ("trips.parquet", "_quarantine.parquet")]

    def find_all_faults(self, data: bytes) -> list[str]:
        """Run every command that reads a month on some bytes; list what is wrong."""
        self.put(data)
        _, faults = self.prepare()
        others = [self.run(*command) for command in COMMANDS[1:]]
        return faults + [fault for result in others for fault in self.find_faults(result)]


def serve_commands(connection: Any, root: Path) -> None:
    """Run the commands that arrive, each with an answer: code, output, and MiB above what was held before."""
    from tipline import cli, config, files

    printed = os.open(root / "printed", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    faulthandler.enable()
    warnings.simplefilter("error")
    os.chdir(root)
    # Read settings and schema once, and do not flush to the disk: that is most of the time of a small month.
    schema.load_schema = cache(schema.load_schema)
    config.load_settings = cache(config.load_settings)
    files.flush_to_disk = lambda path: None  # noqa: ARG005 (as it is called)
    for command in COMMANDS:
        cli.main(command)  # so that what is imported late is not counted
    connection.send("ready")
    while True:
        arguments = connection.recv()
        os.ftruncate(printed, 0)
        os.lseek(printed, 0, os.SEEK_SET)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
        before = read_memory("VmRSS")
        code = cli.main(list(arguments))
        peak = read_memory("VmHWM") - before
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send((code, (root / "printed").read_bytes().decode(errors="replace"), peak))


def read_memory(name: str) -> float:
    """A figure of this process, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024
