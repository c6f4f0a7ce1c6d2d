"""Hostile months: a hypothesis strategy, named cases, and a process that runs commands on them and may crash."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from tests import factory
from tests.factory import MONTH, RAW_2009, RAW_TPEP, TYPES_TPEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Draw = st.DrawFn

ROWS = 60
SECONDS = 20.0  # until a command is taken to hang; an honest one takes a twentieth of a second
MEBIBYTES = 600  # above what the process held before
LONGEST_MESSAGE = 10_000
HUGE = 10_000_000
THREE_PARTS = re.compile(r"tipline \w+: [^\n]+\n  where: [^\n]+\n  to do: [^\n]+\n\Z")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HEADER = ",".join(RAW_2009)

# ---- honest months ----

TYPES_2009 = {name: pa.string() if name in factory.TEXT_2009 else pa.float64() for name in RAW_2009}


def write_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def create_table(*, today: bool = False, rows: int = ROWS) -> pa.Table:
    types, raw = (TYPES_TPEP, RAW_TPEP) if today else (TYPES_2009, RAW_2009)
    return pa.Table.from_pylist([raw] * rows, schema=pa.schema(list(types.items())))


def write_csv(*lines: str, header: bytes = HEADER.encode(), count: int = ROWS) -> bytes:
    """A CSV month of 2009: some good lines around others."""
    good = [factory.line(Fare_Amt=number) for number in range(count)]
    return (
        header + "".join(f"\r\n{text}" for text in ["", *good[: count // 2], *lines, *good[count // 2 :], ""]).encode()
    )


def write_csv_2016() -> bytes:
    """The CSV of July 2016: 17 names, lines of 19 fields."""
    names = list(RAW_TPEP)[:17]
    return "".join(
        f"{line}\r\n" for line in [",".join(names), *[",".join(str(RAW_TPEP[n]) for n in names) + ",,"] * ROWS]
    ).encode()


WRITE_OPTIONS: dict[str, list[Any]] = {
    "compression": ["snappy", "zstd", "none", "gzip", "lz4", "brotli"],
    "use_dictionary": [True, False, ["Payment_Type"]],
    "column_encoding": [None, {"Trip_Pickup_DateTime": "DELTA_BYTE_ARRAY", "Fare_Amt": "BYTE_STREAM_SPLIT"}],
    "data_page_version": ["1.0", "2.0"],
    "row_group_size": [7, 25, ROWS],
    "data_page_size": [64, 2**20],
    "dictionary_pagesize_limit": [64, 2**20],
    "store_schema": [True, False],
    "write_page_checksum": [False, True],
}

# ---- odd values and types ----

ODD_TEXTS = [
    "", " ", "\t", "nan", "-inf", "1e309", "-1e-400", "0x10", "1_000", "\uff11\uff12", "9" * 400, "1e", "٣",
    "true", "null", "\\N", "0001-01-01 00:00:00", "9999-12-31 23:59:59", "2009-02-30 00:00:00", "2009-01-01T00:00:00Z",
    "2009-01-01 00:00:00.123456789", "2009-01-01 00:00:00+05:30", "99999-01-01 00:00:00", "24:00:00", '"', "\x00",
    "\x1b[31mred", "\u202e", "\ufeff", "é", "😀", "x" * 250, "=1+1", "\x85", "\u2028", "1,2", "\r", "ﬀ", "İ", "ß" * 150,
]  # fmt: skip
INTEGERS = [0, 1, -1, 2**31 - 1, 2**31, 2**53 + 1, 2**62, 2**63 - 1, -(2**63)]
FLOATS = [0.0, 1.5, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324, 2.0**63, 2**31, 1e15 + 0.5]
NESTED = pa.struct([("vendor_name", pa.string()), ("x", pa.list_(pa.int64()))])
ODD_ARRAYS: list[
    tuple[pa.DataType, list[Any], pa.DataType | None]
] = [  # type of the values, values, type that is written
    *((pa.int64(), INTEGERS, type_) for type_ in (None, pa.timestamp("s"), pa.timestamp("us", "UTC"), pa.date64())),
    *((pa.int64(), INTEGERS, pa.timestamp(unit, "America/New_York")) for unit in ("ms", "ns")),
    (pa.int8(), [-128, 0, 127], None),
    (pa.uint64(), [0, 2**64 - 1], None),
    (pa.int32(), [0, -719_162, 2_932_896, 2**31 - 1, -(2**31)], pa.date32()),
    *((pa.float64(), FLOATS, type_) for type_ in (None, pa.float32(), pa.float16())),
    (pa.decimal128(10, 2), [decimal.Decimal("7.70"), decimal.Decimal("99999999.99")], None),
    (pa.decimal256(76, 2), [decimal.Decimal(10) ** 73], None),
    *((pa.string(), ODD_TEXTS, type_) for type_ in (None, pa.large_string(), pa.string_view())),
    (pa.string(), ODD_TEXTS, pa.dictionary(pa.int8(), pa.string())),
    (pa.binary(), [b"\xff\xfe", b"CMT", b"\xed\xa0\x80"], pa.binary()),
    (pa.bool_(), [True, False], None),
    (pa.null(), [None], None),
    (pa.time64("us"), [dt.time(1)], None),
    (NESTED, [{"vendor_name": "CMT", "x": [1]}], None),
    (pa.map_(pa.string(), pa.int64()), [[("x", 1)]], None),
]


def draw_odd_array(draw: Draw, rows: int) -> pa.Array:
    type_, values, written = draw(st.sampled_from(ODD_ARRAYS))
    few = draw(st.lists(st.sampled_from([*values, None]), min_size=1, max_size=5))
    array = pa.array([few[row % len(few)] for row in range(rows)], type_)
    if written == pa.binary():  # bytes that are not UTF-8, in a column that is declared as text
        return pa.Array.from_buffers(pa.string(), rows, array.buffers(), array.null_count)
    return array.cast(written, safe=False) if written else array


def draw_csv(draw: Draw) -> bytes:
    fields = st.dictionaries(st.sampled_from(list(RAW_2009)), st.sampled_from(ODD_TEXTS), max_size=3)
    return write_csv(*(factory.line(**odd) for odd in draw(st.lists(fields, max_size=5))))


def draw_parquet(draw: Draw) -> bytes:
    table = create_table(today=draw(st.booleans()))
    for name in draw(st.lists(st.sampled_from(table.column_names), max_size=3, unique=True)):
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):  # there is no cast between some types
            table = table.set_column(table.column_names.index(name), name, draw_odd_array(draw, len(table)))
    options = {name: draw(st.sampled_from(values)) for name, values in WRITE_OPTIONS.items()}
    try:
        return write_bytes(table, **options)
    except (pa.ArrowException, OSError, ValueError):  # some types, values and options cannot be written
        return write_bytes(create_table(), **{name: options[name] for name in ("compression", "row_group_size")})


# ---- mutations ----

MEANINGFUL = [b"\x00", b"\r", b"\n", b"\r\r\n", b'"', b"\xef\xbb\xbf", b"\xff", b",", b"\x1a", b"PAR1", b"\\", b"\t"]
LIES = [0, 1, -1, 2, 100, 2**15, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**63), 2**63 - 1]
ENCODINGS = ["utf-16", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp037"]


def change_bytes(draw: Draw, data: bytes) -> bytes:
    """Change bytes anywhere or near the end, where the footer is."""
    changed, nearest = bytearray(data), draw(st.sampled_from([len(data), 2000, 100]))
    for place in draw(st.lists(st.integers(1, min(nearest, len(data))), min_size=1, max_size=8)):
        changed[-place] = draw(st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 255)))
    return bytes(changed)


def cut_piece(draw: Draw, data: bytes) -> bytes:
    """Remove a piece, or everything after its beginning, or repeat it."""
    start, size = draw(st.integers(0, len(data) - 1)), draw(st.sampled_from([1, 10, 1000, len(data)]))
    repeated = data[start : start + size] * draw(st.sampled_from([0, 0, 2, 50]))
    return data[:start] + repeated[: 10**6] + data[start + size :]


def insert_bytes(draw: Draw, data: bytes) -> bytes:
    start = draw(st.integers(0, len(data)))
    inserted = draw(st.sampled_from([*MEANINGFUL, b"x", b" ", b"9"])) * draw(st.sampled_from([1, 3, 300, 70_000]))
    return data[:start] + inserted + data[start:]


def encode_text(draw: Draw, data: bytes) -> bytes:
    text = data.decode(errors="replace").replace("a", "é", draw(st.sampled_from([0, 1, -1])))
    return text.encode(draw(st.sampled_from(ENCODINGS)), errors="replace")


def change_header(draw: Draw, data: bytes) -> bytes:
    header, end, rest = data.partition(b"\r\n")
    names = draw(st.permutations(header.split(b",")))
    names = (
        names[draw(st.integers(0, 2)) :]
        + names[: draw(st.integers(0, 2))]
        + [b""] * draw(st.sampled_from([0, 1, 19, 100_000]))
    )
    names[0] += draw(st.sampled_from([b"", b"\n", b'"', b"\x00", b"\xff", b"\x1b[2J", b"x" * 100_000]))
    return b",".join(names) + end + rest


def change_number(draw: Draw, data: bytes) -> bytes:
    """Let a number of the footer be another one."""
    start = find_footer(data)
    return replace_number(data, draw(st.integers(start, len(data) - 9)), draw(st.sampled_from(LIES)))


COMMON = [change_bytes, change_bytes, cut_piece, insert_bytes]
KINDS: list[tuple[Callable[[Draw], bytes], list[Callable[[Draw, bytes], bytes]]]] = [
    (draw_csv, [*COMMON, encode_text, change_header, change_header]),
    (lambda _: write_csv_2016(), [*COMMON, encode_text, change_header]),
    (draw_parquet, [*COMMON, change_number, change_number]),
]


@st.composite
def months(draw: Draw) -> bytes:
    """The bytes of a month, honest or hostile."""
    create, mutations = draw(st.sampled_from(KINDS))
    data = create(draw)
    for mutate in draw(st.lists(st.sampled_from(mutations), max_size=3)):
        data = mutate(draw, data) if len(data) > 12 else data
    return data


# ---- the footer of Parquet: a struct of Thrift's compact protocol, and its length ----


def find_footer(data: bytes) -> int:
    """Where the footer begins, or a place near the end if its length is nonsense."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return start if 4 < start < len(data) - 8 else max(1, len(data) - 100)


def encode_number(value: int) -> bytes:
    """Encode a number: zigzag, seven bits per byte."""
    left, encoded = ((value << 1) ^ (value >> 63)) % 2**64, bytearray()
    while left >= 0x80:
        encoded.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*encoded, left])


def replace_number(data: bytes, place: int, value: int) -> bytes:
    """Replace what is at a place of the footer, if it is a number, and correct the footer's length."""
    start, end = find_footer(data), place
    while data[end] & 0x80 and end < len(data) - 9:
        end += 1
    footer = data[start:place] + encode_number(value) + data[end + 1 : -8]
    return data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


# ---- named cases ----


def with_header(header: bytes) -> Callable[[], bytes]:
    return lambda: write_csv(header=header)


def with_values(**values: str) -> Callable[[], bytes]:
    return lambda: write_csv(factory.line(**values))


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


def pack_texts(size: int, values: int) -> bytes:
    """Long texts that differ a little, one page each, packed a thousandfold."""
    texts = pa.array([str(number) + " " * size for number in range(values)])
    options = {"use_dictionary": False, "compression": "zstd", "write_statistics": False, "write_batch_size": 1}
    return replace_column("Trip_Pickup_DateTime", texts, **options)


def share_prefixes(size: int, values: int) -> bytes:
    """A page of 1 kB that holds megabytes: each text is the beginning of the one before."""
    encoding = {"use_dictionary": False, "column_encoding": {"Trip_Pickup_DateTime": "DELTA_BYTE_ARRAY"}}
    return replace_column("Trip_Pickup_DateTime", pa.repeat("7" * size, values), compression="zstd", **encoding)


def rename_column(name: bytes) -> bytes:
    data = write_bytes(create_table(), compression="none", store_schema=False)
    start = find_footer(data)
    return data[:start] + data[start:].replace(b"vendor_name", name.ljust(11, b"_"))


def write_unreadable() -> bytes:
    """Lines in which hardly a field can be read, all different."""
    columns, texts = (
        ("Fare_Amt", "Tip_Amt", "Trip_Pickup_DateTime"),
        ("x{}", "{}000000000", "2009-02-30 00:00:00.{:06}"),
    )
    values = {"Passenger_Count": texts[1], "Trip_Dropoff_DateTime": texts[2]} | dict.fromkeys(columns, texts[0])
    return write_csv(*(factory.line(**{name: text.format(n) for name, text in values.items()}) for n in range(10_000)))


NAMES, TEXT_COLUMNS = HEADER.encode(), ("vendor_name", "Trip_Pickup_DateTime", "Fare_Amt", "store_and_forward")
LONG_TEXTS = pa.array(["1", "9" * HUGE, "3"])
HOSTILE: dict[str, Callable[[], bytes]] = {
    "no bytes": lambda: b"",
    "a newline": lambda: b"\r\n",
    "a header alone": lambda: NAMES,
    "NUL bytes": lambda: b"\x00" * 100_000,
    "a header without an end": lambda: b"n" * 70_000_000,
    "a million names": with_header(NAMES + b"," * 1_000_000),
    "900 more names": with_header(NAMES + b"".join(b",n%d" % number for number in range(900))),
    "a name of 900 kB": with_header(NAMES + b"," + b"n" * 900_000),
    "names twice": with_header(NAMES + b"," + NAMES),
    "a name that a terminal obeys": with_header(NAMES + b",\x1b]0;owned\x07\x1b[2J"),
    "CR CR LF": lambda: write_csv().replace(b"\r\n", b"\r\r\n"),
    "UTF-16": lambda: write_csv().decode().encode("utf-16"),
    "Latin-1": lambda: write_csv(factory.line(vendor_name="Caf\xe9")).decode().encode("latin-1"),
    "NUL in fields": with_values(vendor_name="a\x00b", Fare_Amt="\x007.7", Start_Lat="\x00"),
    "an open quote": with_values(vendor_name='"'),
    **{f"10 MB in {column} of CSV": with_values(**{column: "9" * HUGE}) for column in TEXT_COLUMNS},
    "10 MB of commas": with_values(vendor_name="," * HUGE),
    "a line of 100 MB": with_values(vendor_name="x" * 100_000_000),
    "a million lines of one letter": lambda: write_csv() + b"x\n" * 1_000_000,
    "300,000 lines that end in CR": lambda: write_csv() + b"x\r" * 300_000,
    "16 MB of blank lines": lambda: write_csv() + b"\n" * 16_000_000,
    "lines that cannot be read": write_unreadable,
    "a category of many values": lambda: write_csv(*(factory.line(vendor_name=f"v{n}") for n in range(12_000))),
    **{f"10 MB in {name}": partial(replace_column, name, LONG_TEXTS, use_dictionary=False) for name in TEXT_COLUMNS},
    **{f"10 MB in each row of {column}": partial(repeat_text, column, HUGE) for column in TEXT_COLUMNS},
    "two million rows of nothing": lambda: replace_column("Start_Lat", pa.nulls(2_000_000, pa.float64())),
    "names that are not UTF-8": partial(rename_column, b"\xff\xfe\xff"),
    "names with newlines and NUL": partial(rename_column, b"\n\x1b[2J\x00"),
    "no row groups": lambda: write_bytes(create_table(rows=0)),
    "2000 columns": lambda: write_bytes(pa.table({f"n{number}": [1] for number in range(2000)})),
    "a name of 10 MB": lambda: write_bytes(create_table().append_column("n" * HUGE, [[1] * ROWS])),
    "magic alone": lambda: b"PAR1" * 3,
    "a footer of 2 GB": lambda: b"PAR1" + b"\x00" * 100 + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
}
# These end in a message only if memory is limited from outside.
UNFORESEEN: dict[str, Callable[[], bytes]] = {
    "200 MB of text in pages of 4 MB": partial(pack_texts, 2**22, 50),
    "a value of 400 MB": partial(pack_texts, 400_000_000, 1),
    "prefixes that make 1 GB": partial(share_prefixes, 10_000, 100_000),
}

# ---- running commands ----


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int | None  # None if the process crashed or hangs
    printed: str
    peak: float = 0.0  # MiB above what was held before


class Child:
    """A project and a process that runs commands in it; it is replaced if it crashes or hangs."""

    def __init__(self, root: Path, seconds: float = SECONDS) -> None:
        from tests.conftest import settings_values
        from tipline.paths import Paths

        root.mkdir(parents=True, exist_ok=True)
        self.paths, self.published, self.seconds = Paths(root), root / "published" / MONTH, seconds
        (root / "dvc.yaml").touch()
        self.published.parent.mkdir(exist_ok=True)
        (root / "params.yaml").write_text(yaml.safe_dump(settings_values(source="published/{month}")))
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve_commands, args=(theirs, self.paths.root), daemon=True)
        self._process.start()
        theirs.close()
        assert self._connection.recv() == "ready"

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def put(self, data: bytes) -> None:
        """Make some bytes the month: at the source, and in data/raw/."""
        for folder in (self.paths.raw(MONTH), self.paths.prepared(MONTH), self.paths.staging):
            shutil.rmtree(folder, ignore_errors=True)
        self.published.write_bytes(data)
        self.paths.raw(MONTH).mkdir(parents=True)
        (self.paths.raw(MONTH) / "month").write_bytes(data)

    def run(self, *arguments: str, room: int = 0) -> Result:
        """Run a command, with at most `room` MiB of additional address space if that is not 0."""
        self._connection.send((room, arguments))
        try:
            if self._connection.poll(self.seconds):
                return Result(*self._connection.recv())
            how = "hangs"
        except (EOFError, ConnectionResetError):
            how = "crashed"
        self.stop()
        self._start()
        return Result(None, f"{how}: {' '.join(arguments)}")

    def find_faults(self, result: Result) -> list[str]:
        """List what is wrong with a result, whatever the command was."""
        left = [path.name for path in (self.paths.staging / "trips").rglob("*") if path.name != ".swap.lock"]
        faults = {
            "no message of its own": "Traceback" in result.printed or "defect of tipline" in result.printed,
            f"exit code {result.code}": result.code not in {0, 1},
            "a long message": len(result.printed) > LONGEST_MESSAGE,
            "control characters": CONTROL.search(result.printed),
            "not a message of three lines": result.code == 1 and not THREE_PARTS.search(result.printed),
            f"{result.peak:,.0f} MiB": result.peak > MEBIBYTES,
            f"left in staging: {left}": left,
        }
        return [f"{fault}: {result.printed[-500:]}" for fault, is_so in faults.items() if is_so]

    def find_prepared_faults(self, result: Result) -> list[str]:
        """List what is wrong with the prepared month that a result of `prepare` speaks of."""
        folder = self.paths.prepared(MONTH)
        if result.code != 0:
            return [f"left behind: {path}" for path in folder.parent.rglob("*")]
        manifest = json.loads((folder / "_manifest.json").read_text(encoding="utf-8"))
        trips, quarantine = (pq.read_table(folder / name) for name in ("trips.parquet", "_quarantine.parquet"))
        trips.validate(full=True)
        quarantine.validate(full=True)
        rows = sorted([*trips["row"].to_pylist(), *quarantine["row"].to_pylist()])
        faults = {
            "the schema differs": not trips.schema.equals(factory.SCHEMA.arrow_schema),
            "the counts differ": (len(trips), len(quarantine)) != (manifest["rows_out"], manifest["quarantined"]),
            "rows are lost or repeated": rows != list(range(manifest["rows_in"])),
        }
        return [fault for fault, is_so in faults.items() if is_so]

    def find_all_faults(self, data: bytes, *, room: int = 0) -> dict[str, list[str]]:
        """Run every command that reads a month on some bytes; return what is wrong."""
        self.put(data)
        faults = {}
        for arguments in (("check", "published/{month}", MONTH), ("prepare", MONTH), ("download", MONTH)):
            result = self.run(*arguments, room=room)
            faults[arguments[0]] = self.find_faults(result)
            if arguments[0] == "prepare" and not faults["prepare"]:
                faults["prepare"] = self.find_prepared_faults(result)
        return {command: found for command, found in faults.items() if found}


def serve_commands(connection: Any, root: Path) -> None:
    """Run the commands that arrive, each with an answer: code, output, and MiB above what was held before."""
    import faulthandler
    import warnings

    from tipline import files
    from tipline.ingest import schema

    printed = os.open(root / "printed", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    faulthandler.enable()
    warnings.simplefilter("error")
    os.chdir(root)
    # Read settings and schema once, and do not flush to the disk: that is most of the time of a small month.
    schema.load_schema = cache(schema.load_schema)
    files.flush_to_disk = lambda path: None  # noqa: ARG005 (as it is called)
    from tipline import cli, config

    config.load_settings = cache(config.load_settings)
    for command in (["check", "published/{month}", MONTH], ["prepare", MONTH], ["download", MONTH]):
        cli.main(command)  # so that what is imported late is not counted
    connection.send("ready")
    while True:
        room, arguments = connection.recv()
        os.ftruncate(printed, 0)
        os.lseek(printed, 0, os.SEEK_SET)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
        before = read_memory("VmRSS")
        with limit_memory(room):
            code = cli.main(list(arguments))
        peak = read_memory("VmHWM") - before
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send((code, (root / "printed").read_bytes().decode(errors="replace"), peak))


@contextlib.contextmanager
def limit_memory(room: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if room:
        resource.setrlimit(resource.RLIMIT_AS, (int(read_memory("VmSize") + room) * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read_memory(name: str) -> float:
    """A figure of this process, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024
