"""A published month as a stream of Arrow batches, each row with its number in the file."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tipline.errors import TiplineError, summarize_exception
from tipline.ingest.schema import is_text_type

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MAGIC = b"PAR1"
BATCH_ROWS = 2**17
BLOCK_BYTES = 2**24
# Column chunks are read through buffers of this size: without, a huge row group is held in memory, all its bytes.
BUFFER_BYTES = 2**20
# No published line has 1 kB; where no line ends for so long, it is no CSV.
HEADER_BYTES, LINE_BYTES = 2**20, 2**26
# The TLC's rows have up to two fields more than the header, all of them blank.
SURPLUS_FIELDS = 20
LONGEST_RAW = 1000  # bytes of a value that are kept where a row of Parquet is set apart
# Nulls take next to no room: a file of a kilobyte can hold billions of rows of nothing.
FEW_ROWS, ROWS_A_BYTE = 2**20, 8
LONGEST_REPEATED = 200  # bytes; published times have 19
RAGGED = "number of fields is not the header's"
NOT_UTF8 = "not UTF-8"
LINE_END = re.compile(rb"\r\n|\r|\n")

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


class Apart(NamedTuple):
    """A line that cannot even be split into fields."""

    row: int
    reason: str
    text: str


@dataclass(frozen=True)
class Batch:
    """Rows of a published month: the columns that were asked for."""

    rows: Rows  # their numbers in the file
    values: pa.RecordBatch  # as published
    apart: Sequence[Apart] = ()  # lines among them that could not be split; `rows` and `values` go without these
    lines: Lines | None = None  # the text that the rows were read from, where there was one

    def raw(self, places: Sequence[int]) -> list[str]:
        """The published text of rows, or their values as json where they were not published as text."""
        if self.lines is not None:
            return [self.lines.text(int(self.rows[place])) for place in places]
        taken = self.values.take(pa.array(places, pa.int64()))
        columns = [plain_values(column) for column in taken.columns]
        rows = (dict(zip(taken.schema.names, row, strict=True)) for row in zip(*columns, strict=True))
        return [json.dumps(row, default=str, ensure_ascii=False) for row in rows]


def longest(coded: pa.DictionaryArray) -> int:
    """The bytes of the longest text of a dictionary."""
    return pc.max(pc.binary_length(coded.dictionary.cast(pa.large_binary()))).as_py() or 0


def plain_values(array: pa.Array) -> list[Any]:
    """Values that json can hold, long text cut.

    Arrow's times reach further than Python's, and Parquet may call text what is not UTF-8.
    """
    if pa.types.is_dictionary(array.type):
        values = plain_values(array.dictionary)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if is_text_type(array.type):
        cut = pc.binary_slice(array.cast(pa.large_binary()), 0, LONGEST_RAW)
        return [None if value is None else value.decode(errors="backslashreplace") for value in cut.to_pylist()]
    found: list[Any] = (array.cast(pa.string()) if pa.types.is_temporal(array.type) else array).to_pylist()
    return found


class Lines:
    """The lines of a block of text that are not blank, split when they are first asked for; rows count from `first`."""

    def __init__(self, data: bytes, first: int) -> None:
        self._data, self._first = data, first
        self._split: list[bytes] | None = None

    def all(self) -> list[bytes]:
        """Each line without its end."""
        if self._split is None:
            self._split = [line for line in LINE_END.split(self._data) if line]
        return self._split

    def text(self, row: int) -> str:
        """A line as text."""
        return self.all()[row - self._first].decode(errors="backslashreplace")


class ParquetMonth:
    """A month in Parquet. Rows are numbered from 0 in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with pq.ParquetFile(path) as file:
            self.schema = file.schema_arrow
            self.rows = file.metadata.num_rows
        if self.rows > FEW_ROWS + ROWS_A_BYTE * path.stat().st_size:
            message = f"the footer says {self.rows:,} rows, in {path.stat().st_size:,} bytes"
            raise pa.ArrowInvalid(message)

    def batches(self, names: Sequence[str], categories: Sequence[str]) -> Iterator[Batch]:
        """Yield the columns `names`, at most BATCH_ROWS rows at a time, whatever the row groups are.

        Text columns among `categories` come dictionary-coded, as they lie in the file: decoding them costs more than
        all the rest.
        """
        texts = [name for name in names if is_text_type(self.schema.field(name).type)]
        coded = self._coded(texts, categories) if texts else []
        first = 0
        with pq.ParquetFile(self.path, read_dictionary=coded, buffer_size=BUFFER_BYTES) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(names), use_threads=False):
                yield Batch(np.arange(first, first + len(batch)), without_views(batch.select(list(names))))
                first += len(batch)
            # Last: Arrow ends the process where it is asked about a chunk that reading has not found to be sound.
            check_counts(file.metadata, names)
        if first != self.rows:
            message = f"the footer says {self.rows:,} rows, there are {first:,}"
            raise pa.ArrowInvalid(message)

    def _coded(self, texts: Sequence[str], categories: Sequence[str]) -> list[str]:
        """Which text columns to read dictionary-coded: the categories, but all where a dictionary holds a long text.

        No batch could hold that in each of its rows. None in an encoding that Arrow cannot read so; the TLC uses none.
        """
        with pq.ParquetFile(self.path, read_dictionary=list(texts), buffer_size=BUFFER_BYTES) as file:
            try:
                long = any(longest(column) > LONGEST_REPEATED for column in heads(file, texts))
            except (pa.ArrowNotImplementedError, OSError):  # where the pages are damaged, reading them says so
                return []
        return [name for name in texts if long or name in categories]


def heads(file: pq.ParquetFile, texts: Sequence[str]) -> Iterator[pa.DictionaryArray]:
    """The first row of each row group, text column after text column, with its dictionary.

    A row group after the other: what reads it holds the pages of its columns until it is gone.
    """
    for group in range(file.num_row_groups):
        for batch in itertools.islice(file.iter_batches(1, [group], columns=list(texts), use_threads=False), 1):
            yield from batch.columns


def check_counts(footer: pq.FileMetaData, names: Sequence[str]) -> None:
    """Refuse a footer that says fewer rows than its columns have: Arrow would leave out the others without a word.

    Raises
    ------
    pa.ArrowInvalid
        Naming the first such column.
    """
    indices = {footer.schema.column(index).path: index for index in range(footer.num_columns)}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for name in names:
            values = group.column(indices[name]).num_values
            if values != group.num_rows:
                message = f"the footer says {group.num_rows:,} rows in a row group whose {name} has {values:,}"
                raise pa.ArrowInvalid(message)


def without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch whose text is plain: Arrow has next to no functions for views of text."""
    views = [pa.types.is_string_view(type_) for type_ in batch.schema.types]
    if not any(views):
        return batch
    pairs = zip(batch.columns, views, strict=True)
    arrays = [array.cast(pa.large_string()) if is_view else array for array, is_view in pairs]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


class CsvMonth:
    """A month in CSV: every field is text here. Rows are numbered from 0, blank lines not counted.

    Lines whose number of fields is not the header's are set apart, unless all fields that they have too many are
    blank. `rows` counts all once the batches are through.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            head = file.readline(HEADER_BYTES)
        end = LINE_END.search(head)
        self._start = end.end() if end else len(head)
        self.schema = read_header(head)
        self.rows = 0

    def batches(self, names: Sequence[str], categories: Sequence[str]) -> Iterator[Batch]:
        """Yield the columns `names` as text, a block at a time; `categories` is there for symmetry with Parquet."""
        del categories
        places = [self.schema.names.index(name) for name in names]
        for data in itertools.chain.from_iterable(map(pieces, self._blocks())):
            block = Block(data, self.rows, len(self.schema))
            parsed, apart = block.parse(places)
            rows = len(parsed) + len(apart)
            numbers = np.arange(self.rows, self.rows + rows)
            good = np.setdiff1d(numbers, [line.row for line in apart], assume_unique=True) if apart else numbers
            values = pa.RecordBatch.from_arrays(parsed.columns, names=list(names))
            yield Batch(good, values, apart, block.lines)
            self.rows += rows

    def _blocks(self) -> Iterator[bytes]:
        """The lines below the header in blocks of about BLOCK_BYTES, no line cut."""
        rest = b""
        with self.path.open("rb") as file:
            file.seek(self._start)
            while data := file.read(BLOCK_BYTES):
                end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
                if end:
                    yield rest + data[:end]
                rest = data[end:] if end else rest + data
                if len(rest) > LINE_BYTES:
                    message = f"no line ends within {LINE_BYTES:,} bytes"
                    raise pa.ArrowInvalid(message)
        if rest:
            yield rest


def pieces(data: bytes) -> Iterator[bytes]:
    """Whole lines, halved until no piece has many more than BATCH_ROWS: each that cannot be split is an object."""
    end = LINE_END.search(data, len(data) // 2)
    if not end or end.end() == len(data) or max(data.count(b"\n"), data.count(b"\r")) <= BATCH_ROWS:
        yield data
    else:
        yield from pieces(data[: end.end()])
        yield from pieces(data[end.end() :])


class Block:
    """Whole lines of a CSV file whose header has `width` fields; `first` is the row number of the first line."""

    def __init__(self, data: bytes, first: int, width: int) -> None:
        self.data, self.first, self.width = data, first, width
        self.lines = Lines(data, first)

    def parse(self, places: Sequence[int]) -> tuple[pa.RecordBatch, list[Apart]]:
        """The fields at `places` as text, and the lines that cannot be split."""
        expected = self._expected()
        wanted = [*places, *range(self.width, expected)]
        try:
            table = parse(self.data, expected, wanted)
        except (pa.ArrowInvalid, UnicodeDecodeError):
            return self._parse_lines(places)
        if any(column.null_count < len(table) for column in table.columns[len(places) :]):
            return self._parse_lines(places)
        return as_batch(table.select(list(range(len(places))))), []

    def _expected(self) -> int:
        """The number of fields of the first line, where that is the header's or a little more."""
        start = re.search(rb"[^\r\n]+", self.data)
        fields = start.group().count(b",") + 1 if start else self.width
        return fields if self.width <= fields <= self.width + SURPLUS_FIELDS else self.width

    def _parse_lines(self, places: Sequence[int]) -> tuple[pa.RecordBatch, list[Apart]]:
        """`parse` for a block with a line that is not like the others."""
        good, apart = [], []
        for row, line in enumerate(self.lines.all(), self.first):
            fields = line.split(b",", self.width)
            if len(fields) < self.width or (len(fields) > self.width and fields[-1].strip(b", ")):
                apart.append(Apart(row, RAGGED, self.lines.text(row)))
            elif not is_utf8(line):
                apart.append(Apart(row, NOT_UTF8, self.lines.text(row)))
            else:
                good.append(b",".join(fields[: self.width]))
        return as_batch(parse(b"\n".join(good), self.width, places)), apart


def parse(data: bytes, width: int, places: Sequence[int]) -> pa.Table:
    """The fields of lines at some places, as text, blank ones null.

    Raises
    ------
    pa.ArrowInvalid, UnicodeDecodeError
        Where a line has another number of fields, or what was asked for is not UTF-8.
    """
    names = [str(place) for place in range(width)]
    if not data:
        return pa.table({str(place): pa.array([], pa.string()) for place in places})
    return pyarrow.csv.read_csv(
        pa.BufferReader(data),
        # One block: a line that is longer than a block would end it.
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
        # The TLC quotes nothing; a stray quote read as one would swallow all lines up to the next.
        parse_options=pyarrow.csv.ParseOptions(quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[str(place) for place in places],
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def as_batch(table: pa.Table) -> pa.RecordBatch:
    """A table as one batch."""
    arrays = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(arrays, names=table.column_names)


def is_utf8(line: bytes) -> bool:
    """Whether some bytes are text."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_header(line: bytes) -> pa.Schema:
    """The columns that a CSV file's first line names, all of them text."""
    first = LINE_END.split(line)[0]
    if len(first) >= HEADER_BYTES:
        message = f"its first line has {HEADER_BYTES:,} bytes or more, so it is no CSV file"
        raise pa.ArrowInvalid(message)
    if not is_utf8(first):
        message = "its header is not UTF-8"
        raise pa.ArrowInvalid(message)
    return pa.schema([(name, pa.string()) for name in first.decode("utf-8-sig").split(",")])


def open_month(path: Path, month: str) -> ParquetMonth | CsvMonth:
    """Open a published month, by what its bytes are rather than by its name.

    Raises
    ------
    TiplineError
        Where the footer or the header cannot be read.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        return ParquetMonth(path) if magic == MAGIC else CsvMonth(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise explain_damage(error, path.name, month) from error


def explain_damage(error: Exception, name: str, month: str) -> TiplineError:
    """The message for a month whose bytes cannot be read."""
    todo = f"Fetch the month again (dvc repro -f download@{month}), or ask whoever made it."
    return TiplineError(
        f"The published month cannot be read: {summarize_exception(error)}", f"{name}, month {month}", todo
    )


def read_row(month: ParquetMonth | CsvMonth, row: int) -> str | None:
    """A published row, as text or as json, None where there is no such row."""
    # Of CSV, one column is enough to split the lines; the text of the whole line is kept beside it.
    names = month.schema.names if isinstance(month, ParquetMonth) else month.schema.names[:1]
    for batch in month.batches(names, []):
        place = int(np.searchsorted(batch.rows, row))
        if place < len(batch.rows) and batch.rows[place] == row:
            return batch.raw([place])[0]
    return None
