"""Read a published month, Parquet or CSV, one file or several, as Arrow batches whose rows are numbered as in it."""

import codecs
import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tipline import files
from tipline.arrays import Rows
from tipline.errors import TiplineError, shorten_text, summarize_exception
from tipline.ingest.schema import Csv, is_text_type
from tipline.ingest.texts import is_utf8

MAGIC = b"PAR1"
LABELS = "_labels"  # the folder of a downloaded month that has its labels, if they come in files of their own
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}  # by the first bytes of a file
BATCH_ROWS = 2**17
BLOCK_BYTES = 2**21  # of CSV that are parsed at a time; a malformed line becomes a Python object
BUFFER_BYTES = 2**20  # column chunks are read through buffers; without them, a whole row group is held in memory
MAX_HEADER_BYTES, MAX_LINE_BYTES = 2**20, 2**26  # published lines have less than 1 kB
MAX_SURPLUS_FIELDS = 20  # TLC lines have up to two blank fields more than the header
MAX_RECORD_LINES = 100  # of a row with line ends in its fields; more are taken for a stray quote
MAX_RAW_BYTES = 1000  # kept of each value of a quarantined row of Parquet
# Nulls take almost no space: a file of a kilobyte can claim billions of rows.
MIN_ROW_LIMIT, MAX_ROWS_PER_BYTE = 2**20, 8
MAX_REPEATED_BYTES = 200  # published times have 19
RAGGED, NOT_UTF8 = "number of fields is not the header's", "not UTF-8"
LINE_END = re.compile(rb"\r\n|\r|\n")

QuarantinedRow = tuple[int, str, str]  # row number, reason, published text


@dataclass(frozen=True)
class Batch:
    """Some rows of a published month."""

    rows: Rows  # their numbers in the file, from 0
    values: pa.RecordBatch  # the requested columns as published
    malformed: Sequence[QuarantinedRow] = ()  # lines of the same block that cannot be split into fields
    list_texts: Callable[[], list[str]] | None = None  # the rows as text; None for Parquet

    def format_rows(self, indices: Sequence[int]) -> list[str]:
        """Return the published text of rows; for Parquet, their values as JSON."""
        if self.list_texts is not None:
            texts = self.list_texts() if indices else []
            return [texts[index] for index in indices]
        taken = self.values.take(pa.array(indices, pa.int64()))
        columns = [convert_to_json(column) for column in taken.columns]
        rows = (dict(zip(taken.schema.names, row, strict=True)) for row in zip(*columns, strict=True))
        return [json.dumps(row, default=str, ensure_ascii=False) for row in rows]


def convert_to_json(array: pa.Array) -> list[Any]:
    """Convert values to what JSON can hold; cut long text, which need not be UTF-8 in Parquet."""
    if pa.types.is_dictionary(array.type):
        values = convert_to_json(array.dictionary)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if is_text_type(array.type):
        texts = pc.binary_slice(array.cast(pa.large_binary()), 0, MAX_RAW_BYTES).to_pylist()
        return [None if text is None else decode_text(text) for text in texts]
    # Arrow's times reach further than Python's.
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
        """Yield the columns `names`, at most BATCH_ROWS rows at a time, however large the row groups are."""
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
        """Choose the text columns to read dictionary-encoded: decoding takes longer than everything else.

        Categories, and text views, for which Arrow has few functions; all if there is a long text, which may be in each
        row; and none if Arrow cannot read them this way.
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
    """A month in CSV, every field as text; `rows`, without blank lines, is complete once all batches have been read.

    Rows with another number of fields than the header are malformed, unless all surplus fields are blank.
    """

    def __init__(self, path: Path, dialect: Csv) -> None:
        self.path, self.rows, self.dialect = path, 0, dialect
        # `csv` of Python, for the header and for blocks that Arrow refuses.
        self._options: dict[str, Any] = {"delimiter": dialect.delimiter, "quotechar": dialect.quote, "strict": True}
        self._options |= {} if dialect.quote else {"quoting": csv.QUOTE_NONE}
        self._quote = (dialect.quote or "").encode()
        with open_text(path, dialect.encoding) as file:
            head = file.read(MAX_HEADER_BYTES)
        self._start = end.end() if (end := LINE_END.search(head)) else len(head)
        line = head[: self._start]
        if len(line) >= MAX_HEADER_BYTES:
            raise pa.ArrowInvalid(f"its first line has {MAX_HEADER_BYTES:,} bytes or more, so it is not a CSV file")
        if not is_utf8(line):
            raise pa.ArrowInvalid(f"its header is not {dialect.encoding.upper()}")
        names = self._split(line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n"))
        self.schema = pa.schema([(name, pa.string()) for name in names])

    def batches(self, names: Sequence[str], categories: Sequence[str]) -> Iterator[Batch]:  # noqa: ARG002 (of Parquet)
        """Yield the columns `names` as text, block by block."""
        indices = [self.schema.names.index(name) for name in names]
        for block in self._read_blocks():
            arrays, malformed = self._parse_block(block, indices)
            count, lost = len(arrays[0]) + len(malformed), [row - self.rows for row, _, _ in malformed]
            rows = np.delete(np.arange(self.rows, self.rows + count), lost)
            values = pa.RecordBatch.from_arrays(arrays, names=list(names))
            yield Batch(rows, values, malformed, partial(self._list_texts, block, lost))
            self.rows += count

    def _read_blocks(self) -> Iterator[bytes]:
        """Yield the lines below the header in blocks of about BLOCK_BYTES, cut where no field is open."""
        rest, skipped = b"", self._start
        with open_text(self.path, self.dialect.encoding) as file:
            while data := file.read(BLOCK_BYTES):
                rest, skipped = rest + data[skipped:], max(skipped - len(data), 0)
                end = self._find_end(rest)
                if end:
                    yield rest[:end]
                rest = rest[end:]
                if len(rest) > MAX_LINE_BYTES:
                    raise pa.ArrowInvalid(f"no line ends within {MAX_LINE_BYTES:,} bytes")
        if rest:
            yield rest

    def _find_end(self, data: bytes) -> int:
        """Return where to cut: behind the last line end with an even number of quotes before it, or one stray quote."""
        last = end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if self._quote and self._quote in data:  # to count takes much longer
            count = data.count(self._quote, 0, end)
            while end and count % 2:
                before = max(data.rfind(b"\n", 0, end - 1), data.rfind(b"\r", 0, end - 1)) + 1
                count, end = count - data.count(self._quote, before, end), before
        return end or (last if len(data) > BLOCK_BYTES else 0)

    def _parse_block(self, block: bytes, indices: Sequence[int]) -> tuple[list[pa.Array], list[QuarantinedRow]]:
        """Return the fields at `indices` and the malformed lines; line by line only if Arrow refuses the block."""
        width, first = len(self.schema), re.search(rb"[^\r\n]+", block)
        has_quotes = bool(self._quote) and self._quote in block
        with contextlib.suppress(pa.ArrowInvalid, UnicodeDecodeError, csv.Error):
            count = len(self._split(first.group())) if first else width
            expected = count if width <= count <= width + MAX_SURPLUS_FIELDS else width
            arrays = self._parse_fields(block, expected, [*indices, *range(width, expected)], has_quotes=has_quotes)
            is_blank = all(surplus.null_count == len(surplus) for surplus in arrays[len(indices) :])
            # A stray quote could hide line ends; where there are some in fields, each row is looked at.
            if is_blank and (not has_quotes or len(arrays[0]) == sum(map(bool, LINE_END.split(block)))):
                return arrays[: len(indices)], []
        good: list[list[str]] = []
        malformed: list[QuarantinedRow] = []
        for row, (text, fields) in enumerate(self._split_rows(block), self.rows):
            if fields is None:
                malformed.append((row, NOT_UTF8, decode_text(text)))
            elif len(fields) < width or any(field.strip() for field in fields[width:]):
                malformed.append((row, RAGGED, decode_text(text)))
            else:
                good.append(fields)
        return [pa.array([fields[index] or None for fields in good], pa.string()) for index in indices], malformed

    def _list_texts(self, block: bytes, lost: Collection[int]) -> list[str]:
        return [decode_text(text) for row, (text, _) in enumerate(self._split_rows(block)) if row not in lost]

    def _split_rows(self, block: bytes) -> Iterator[tuple[bytes, list[str] | None]]:
        """Yield the text and the fields of each row; a row that is not UTF-8 has no fields, but None.

        A line whose quotes do not pair is joined with the next ones if this makes a row, or else read as it stands.
        """
        lines, index, width = LINE_END.split(block), 0, len(self.schema)
        while index < len(lines):
            text, taken = lines[index], 1
            if text and self._quote:
                limit = min(len(lines) - index, MAX_RECORD_LINES)
                while text.count(self._quote) % 2 and taken < limit:
                    text, taken = text + b"\n" + lines[index + taken], taken + 1
                with contextlib.suppress(csv.Error, ValueError):
                    fields = self._split(text)
                    if taken == 1 or len(fields) == width:
                        yield text, fields
                        index += taken
                        continue
            text = lines[index]
            if text:
                yield text, text.decode().split(self.dialect.delimiter) if is_utf8(text) else None
            index += 1

    def _split(self, text: bytes) -> list[str]:
        """Split a row into fields; raise if it is not UTF-8, its quotes do not pair, or it is not one row."""
        rows = list(csv.reader(io.StringIO(text.decode(), newline=""), **self._options))
        if len(rows) != 1:
            raise csv.Error("its first line is blank")
        return rows[0]

    def _parse_fields(self, data: bytes, width: int, indices: Sequence[int], *, has_quotes: bool) -> list[pa.Array]:
        """Return the fields at `indices` as text, blank ones as null; raise if a row does not have `width` fields."""
        names = [str(index) for index in range(width)]
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            # One block, because a line must not be longer than a block.
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self.dialect.delimiter,
                quote_char=self.dialect.quote if has_quotes else False,
                newlines_in_values=has_quotes,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=[names[index] for index in indices],
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        return [column.combine_chunks() for column in table.columns]


def open_text(path: Path, encoding: str) -> Any:  # noqa: ANN401 (a file of Arrow's or of a codec)
    """Open a file whose decompressed text is read as UTF-8."""
    with path.open("rb") as file:
        compression = find_compression(file.read(4))
    stream = pa.input_stream(str(path), compression=compression)
    return stream if encoding == "utf-8" else codecs.EncodedFile(stream, "utf-8", encoding)


def find_compression(head: bytes) -> str | None:
    return next((name for start, name in COMPRESSIONS.items() if head.startswith(start)), None)


def decompress_head(head: bytes) -> bytes:
    """Return the beginning of the text of a file, from its own beginning."""
    if not (compression := find_compression(head)):
        return head
    stream, text = pa.CompressedInputStream(pa.BufferReader(head), compression), b""
    with contextlib.suppress(OSError):  # it is cut off
        while part := stream.read(2**16):
            text += part
    return text


def decode_text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


class Month:
    """A month, one file or several in the order of their names; folders such as region=EU are columns, too."""

    def __init__(self, path: Path, parts: Sequence[ParquetMonth | CsvMonth]) -> None:
        self.parts, self.folders = parts, [read_pairs(part.path.relative_to(path)) for part in parts]
        self.path = path if len(parts) > 1 or any(self.folders) else parts[0].path
        self.schemas = [
            pa.schema([*part.schema, *((name, pa.string()) for name in pairs)])
            for part, pairs in zip(parts, self.folders, strict=True)
        ]
        self.schema = self.schemas[0]
        first, *names = (sorted(schema.names) for schema in self.schemas)
        for part, found in zip(parts[1:], names, strict=True):
            if found != first:
                both = " and ".join(str(one.path.relative_to(path)) for one in (parts[0], part))
                other = ", ".join(sorted({*found} ^ {*first})) or "one of them twice"
                raise pa.ArrowInvalid(f"the columns of {both} differ: {shorten_text(other)}")

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def batches(self, names: Sequence[str], categories: Sequence[str]) -> Iterator[Batch]:
        """Yield the columns `names` file by file; see the classes of the files."""
        first = 0
        for part, pairs in zip(self.parts, self.folders, strict=True):
            own = [name for name in names if name not in pairs]
            for batch in part.batches(own, categories):
                values = [
                    pa.array([pairs[name]] * len(batch.rows), pa.string()) if name in pairs else batch.values[name]
                    for name in names
                ]
                malformed = [(row + first, reason, text) for row, reason, text in batch.malformed]
                columns = pa.RecordBatch.from_arrays(values, names=list(names))
                yield replace(batch, rows=batch.rows + first, values=columns, malformed=malformed)
            first += part.rows


def read_pairs(path: Path) -> dict[str, str]:
    """Return names and values of the folders such as region=EU in a relative path."""
    pairs = (name.partition("=") for name in path.parts[:-1] if "=" in name)
    return {key: unquote(value) for key, _, value in pairs}


def list_files(folder: Path) -> list[Path]:
    """List the published files of a downloaded month, in the order in which their rows are numbered."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and folder / LABELS not in path.parents)


def describe_published(path: Path, describe: Callable[[Path], dict[str, Any]] = files.describe_file) -> dict[str, Any]:
    """Return bytes and sha256 of a published month; of several files, their sum and a digest of names and digests."""
    if path.is_file():
        return describe(path)
    described = {str(one.relative_to(path)): describe(one) for one in list_files(path)}
    if len(described) == 1:
        return next(iter(described.values()))
    return {"bytes": sum(one["bytes"] for one in described.values()), "sha256": files.hash_json(described)}


def find_published(path: Path) -> dict[str, Any]:
    """Describe a downloaded month as `describe_published` does; hash only files that are younger than its manifest."""
    manifest = path.with_name(f"{path.name}.json")
    known = files.try_read_json(manifest) or {}
    listed = {one.get("name"): one for one in known.get("files", [known])}

    def describe(file: Path) -> dict[str, Any]:
        one = listed.get(str(file.relative_to(path)))
        if one and files.is_described(file, one, manifest):
            return {name: one[name] for name in ("bytes", "sha256")}
        return files.describe_file(file)

    return describe_published(path, describe)


def open_month(path: Path, month: str, dialect: Csv) -> Month:
    """Open a published month, a file or a folder of files; their first bytes decide the format, not their names."""
    paths = list_files(path) if path.is_dir() else [path]
    if not paths:
        raise TiplineError("The month has no published file.", str(path), f"Run: tipline download {month}")
    parts: list[ParquetMonth | CsvMonth] = []
    try:
        for one in paths:
            name = one.name
            parts.append(ParquetMonth(one) if is_parquet(one) else CsvMonth(one, dialect))
        name = path.name
        return Month(path, parts)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise explain_damage(error, name, month) from error


def is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextlib.contextmanager
def report_damage(name: str, month: str) -> Iterator[None]:
    """Turn the errors of Arrow that a damaged file brings about into a message."""
    try:
        yield
    except (pa.ArrowException, MemoryError, OSError) as error:
        # Arrow raises OSError for a damaged page, too, without the number that errors of the system have.
        if getattr(error, "errno", None) is not None:
            raise
        raise explain_damage(error, name, month) from error


def explain_damage(error: Exception, name: str, month: str) -> TiplineError:
    what = f"The published month cannot be read: {summarize_exception(error)}."
    todo = f"Download the month again (tipline download {month}), or ask its publisher."
    return TiplineError(what, f"{name}, month {month}", todo)


def read_row(month: Month, row: int) -> str | None:
    """Return a published row, as text for CSV and as JSON for Parquet; None if there is no such row."""
    for batch in month.batches(month.schema.names, []):
        if len(found := np.flatnonzero(batch.rows == row)):
            return batch.format_rows(found.tolist())[0]
    return None


def get_example(month: Month, name: str) -> object:
    """Return the first value of a column for a message, or None if it has none that can be read."""
    with contextlib.suppress(pa.ArrowException, OSError, KeyError):  # damaged or nested
        for batch in month.batches([name], []):
            if len(found := batch.values[name].drop_null()):
                return convert_to_json(found.slice(0, 1))[0]
    return None
