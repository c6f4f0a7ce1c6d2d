"""Read a published month, Parquet or CSV, as Arrow batches whose rows are numbered as in the file."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tipline.errors import TiplineError, summarize_exception
from tipline.ingest.schema import is_text_type

MAGIC = b"PAR1"
BATCH_ROWS = 2**17
BLOCK_BYTES = 2**21  # of CSV that are parsed at a time; a malformed line becomes a Python object
BUFFER_BYTES = 2**20  # column chunks are read through buffers; without them, a whole row group is held in memory
MAX_HEADER_BYTES, MAX_LINE_BYTES = 2**20, 2**26  # published lines have less than 1 kB
MAX_SURPLUS_FIELDS = 20  # TLC lines have up to two blank fields more than the header
MAX_RAW_BYTES = 1000  # kept of each value of a quarantined row of Parquet
# Nulls take almost no space: a file of a kilobyte can claim billions of rows.
MIN_ROW_LIMIT, MAX_ROWS_PER_BYTE = 2**20, 8
MAX_REPEATED_BYTES = 200  # published times have 19
RAGGED, NOT_UTF8 = "number of fields is not the header's", "not UTF-8"
LINE_END = re.compile(rb"\r\n|\r|\n")

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
QuarantinedRow = tuple[int, str, str]  # row number, reason, published text


@dataclass(frozen=True)
class Batch:
    """Some rows of a published month."""

    rows: Rows  # their numbers in the file, from 0
    values: pa.RecordBatch  # the requested columns as published
    malformed: Sequence[QuarantinedRow] = ()  # lines of the same block that cannot be split into fields
    block: bytes | None = None  # the text that the rows were read from; None for Parquet
    first: int = 0  # the row number of the block's first line

    def format_rows(self, indices: Sequence[int]) -> list[str]:
        """Return the published text of rows; for Parquet, their values as JSON."""
        if self.block is not None:
            lines = split_lines(self.block) if indices else []
            return [decode_text(lines[self.rows[index] - self.first]) for index in indices]
        taken = self.values.take(pa.array(indices, pa.int64()))
        columns = [convert_to_json(column) for column in taken.columns]
        rows = (dict(zip(taken.schema.names, row, strict=True)) for row in zip(*columns, strict=True))
        return [json.dumps(row, default=str, ensure_ascii=False) for row in rows]


def convert_to_json(array: pa.Array) -> list[Any]:
    """Convert values to what JSON can hold; cut long text.

    Arrow's times reach further than Python's, and Parquet may declare as text what is not UTF-8.
    """
    if pa.types.is_dictionary(array.type):
        values = convert_to_json(array.dictionary)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if is_text_type(array.type):
        texts = pc.binary_slice(array.cast(pa.large_binary()), 0, MAX_RAW_BYTES).to_pylist()
        return [None if text is None else decode_text(text) for text in texts]
    return list((array.cast(pa.string()) if pa.types.is_temporal(array.type) else array).to_pylist())


class ParquetMonth:
    def __init__(self, path: Path) -> None:
        self.path = path
        with pq.ParquetFile(path) as file:
            self.schema, self.rows = file.schema_arrow, file.metadata.num_rows
        size = path.stat().st_size
        if self.rows > MIN_ROW_LIMIT + MAX_ROWS_PER_BYTE * size:
            raise pa.ArrowInvalid(f"the footer says {self.rows:,} rows, in {size:,} bytes")

    def batches(self, names: Sequence[str], categories: Sequence[str]) -> Iterator[Batch]:
        """Yield the columns `names`, at most BATCH_ROWS rows at a time, however large the row groups are.

        Text columns among `categories` stay dictionary-encoded: decoding them takes longer than everything else.
        """
        first = 0
        with self._open(self._choose_encoded(names, categories)) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(names), use_threads=False):
                yield Batch(np.arange(first, first + len(batch)), batch.select(list(names)))
                first += len(batch)
            # Only now: Arrow aborts the process if asked about a column chunk that is damaged.
            check_counts(file.metadata, names)
        if first != self.rows:
            raise pa.ArrowInvalid(f"the footer says {self.rows:,} rows, there are {first:,}")

    def _open(self, encoded: Sequence[str]) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, read_dictionary=encoded, buffer_size=BUFFER_BYTES)

    def _choose_encoded(self, names: Sequence[str], categories: Sequence[str]) -> list[str]:
        """Choose the text columns to read dictionary-encoded.

        These are the categories, and text views, for which Arrow has few functions: all text columns if there is a long
        text, which may be in every row, and none if Arrow cannot read the encoding this way.
        """
        texts = [name for name in names if is_text_type(self.schema.field(name).type)]
        views = [name for name in texts if pa.types.is_string_view(self.schema.field(name).type)]
        with self._open(texts) as file:
            for group in range(file.num_row_groups if texts else 0):
                try:
                    # Row group by row group, because an iterator holds the pages of its columns until it is deleted.
                    head = next(file.iter_batches(1, [group], columns=texts, use_threads=False), None)
                except (pa.ArrowNotImplementedError, OSError):  # damaged pages are reported when they are read
                    return []
                for column in head.columns if head else ():
                    lengths = pc.binary_length(column.dictionary.cast(pa.large_binary()))
                    if (pc.max(lengths).as_py() or 0) > MAX_REPEATED_BYTES:
                        return texts
        return [name for name in texts if name in {*categories, *views}]


def check_counts(footer: pq.FileMetaData, names: Sequence[str]) -> None:
    """Refuse a footer that says fewer rows than a column has; Arrow would silently leave out the others."""
    indices = {footer.schema.column(index).path: index for index in range(footer.num_columns)}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for name in names:
            if (values := group.column(indices[name]).num_values) != group.num_rows:
                raise pa.ArrowInvalid(f"the footer says {group.num_rows:,} rows where {name} has {values:,}")


class CsvMonth:
    """A month in CSV, every field as text. Blank lines are not counted as rows.

    Lines with another number of fields than the header are malformed, unless all surplus fields are blank. `rows` is
    complete once all batches have been read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        with path.open("rb") as file:
            head = file.readline(MAX_HEADER_BYTES)
        self._start = end.end() if (end := LINE_END.search(head)) else len(head)
        self.schema = read_header(head)

    def batches(self, names: Sequence[str], categories: Sequence[str]) -> Iterator[Batch]:
        """Yield the columns `names` as text, block by block."""
        del categories  # they matter for Parquet alone
        indices = [self.schema.names.index(name) for name in names]
        for block in self._read_blocks():
            arrays, malformed = self._parse_block(block, indices)
            count = len(arrays[0]) + len(malformed)
            rows = np.delete(np.arange(self.rows, self.rows + count), [row - self.rows for row, _, _ in malformed])
            yield Batch(rows, pa.RecordBatch.from_arrays(arrays, names=list(names)), malformed, block, self.rows)
            self.rows += count

    def _read_blocks(self) -> Iterator[bytes]:
        """Yield the lines below the header in blocks of about BLOCK_BYTES, no line cut."""
        rest = b""
        with self.path.open("rb") as file:
            file.seek(self._start)
            while data := file.read(BLOCK_BYTES):
                end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
                if end:
                    yield rest + data[:end]
                rest = data[end:] if end else rest + data
                if len(rest) > MAX_LINE_BYTES:
                    raise pa.ArrowInvalid(f"no line ends within {MAX_LINE_BYTES:,} bytes")
        if rest:
            yield rest

    def _parse_block(self, block: bytes, indices: Sequence[int]) -> tuple[list[pa.Array], list[QuarantinedRow]]:
        """Return the fields at `indices` and the malformed lines; line by line only if Arrow refuses the block."""
        width, first = len(self.schema), re.search(rb"[^\r\n]+", block)
        count = first.group().count(b",") + 1 if first else width
        expected = count if width <= count <= width + MAX_SURPLUS_FIELDS else width
        with contextlib.suppress(pa.ArrowInvalid, UnicodeDecodeError):
            arrays = parse_fields(block, expected, [*indices, *range(width, expected)])
            if all(surplus.null_count == len(surplus) for surplus in arrays[len(indices) :]):
                return arrays[: len(indices)], []
        good: list[bytes] = []
        malformed: list[QuarantinedRow] = []
        for row, line in enumerate(split_lines(block), self.rows):
            fields = line.split(b",", width)
            if len(fields) < width or (len(fields) > width and fields[-1].strip(b", ")):
                malformed.append((row, RAGGED, decode_text(line)))
            elif not is_utf8(line):
                malformed.append((row, NOT_UTF8, decode_text(line)))
            else:
                good.append(b",".join(fields[:width]))
        return parse_fields(b"\n".join(good), width, indices), malformed


def split_lines(block: bytes) -> list[bytes]:
    """Split CSV into its lines, without their ends and without blank ones."""
    return [line for line in LINE_END.split(block) if line]


def decode_text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def parse_fields(data: bytes, width: int, indices: Sequence[int]) -> list[pa.Array]:
    """Return the fields at `indices` as text, blank ones as null; raise if a line does not have `width` fields."""
    if not data:
        return [pa.array([], pa.string()) for _ in indices]
    names = [str(index) for index in range(width)]
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        # One block, because a line must not be longer than a block.
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
        # The TLC quotes nothing, and a stray quote would swallow all lines up to the next.
        parse_options=pyarrow.csv.ParseOptions(quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[names[index] for index in indices],
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    return [column.combine_chunks() for column in table.columns]


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_header(line: bytes) -> pa.Schema:
    """Return the columns that the first line of a CSV file names, all of them text."""
    first = LINE_END.split(line)[0]
    if len(first) >= MAX_HEADER_BYTES:
        raise pa.ArrowInvalid(f"its first line has {MAX_HEADER_BYTES:,} bytes or more, so it is not a CSV file")
    if not is_utf8(first):
        raise pa.ArrowInvalid("its header is not UTF-8")
    return pa.schema([(name, pa.string()) for name in first.decode("utf-8-sig").split(",")])


Month = ParquetMonth | CsvMonth


def open_month(path: Path, month: str) -> Month:
    """Open a published month; its first bytes decide the format, not its name."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
        return ParquetMonth(path) if magic == MAGIC else CsvMonth(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise explain_damage(error, path.name, month) from error


def explain_damage(error: Exception, name: str, month: str) -> TiplineError:
    what = f"The published month cannot be read: {summarize_exception(error)}."
    todo = f"Download the month again (dvc repro -f download@{month}), or ask its publisher."
    return TiplineError(what, f"{name}, month {month}", todo)


def read_row(month: Month, row: int) -> str | None:
    """Return a published row, as text for CSV and as JSON for Parquet; None if there is no such row."""
    # One column of CSV is enough to split the lines, whose text is kept beside it.
    names = month.schema.names if isinstance(month, ParquetMonth) else month.schema.names[:1]
    for batch in month.batches(names, []):
        if len(found := np.flatnonzero(batch.rows == row)):
            return batch.format_rows(found.tolist())[0]
    return None
