"""A published month as a stream of Arrow batches, each row with its number in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tipline.errors import TiplineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BATCH_ROWS = 2**17
BLOCK_BYTES = 2**24

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


class ParquetMonth:
    """A month in Parquet. Rows are numbered from 0 in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with pq.ParquetFile(path) as file:
            self.schema = file.schema_arrow
            self.rows = file.metadata.num_rows
        self.names = self.schema.names
        self.unreadable: list[tuple[int, str]] = []

    def batches(self, names: Sequence[str], categories: Sequence[str]) -> Iterator[tuple[Rows, pa.RecordBatch]]:
        """Yield row numbers and the columns `names`, at most BATCH_ROWS rows at a time, whatever the row groups are.

        Text columns among `categories` come dictionary-coded, as they lie in the file: decoding them costs more than
        all the rest.
        """
        coded = [name for name in categories if is_text(self.schema.field(name).type)]
        with pq.ParquetFile(self.path, read_dictionary=coded) as file:
            first = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=list(names)):
                yield np.arange(first, first + len(batch)), batch.select(list(names))
                first += len(batch)


class CsvMonth:
    """A month in CSV: every field is text here. Rows are numbered from 0, blank lines not counted.

    Lines whose number of fields is not the header's are left out of the batches; `unreadable` gathers their row
    numbers and text, `rows` counts both once the batches are through.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open(encoding="utf-8-sig") as file:
            self.names = file.readline().rstrip("\r\n").split(",")
        self.rows = 0
        self.unreadable: list[tuple[int, str]] = []

    def _keep_unreadable(self, line: pyarrow.csv.InvalidRow) -> str:
        # Arrow counts the header as line 1 and does not count blank lines.
        self.unreadable.append((line.number - 2, line.text))
        return "skip"

    def batches(self, names: Sequence[str], categories: Sequence[str]) -> Iterator[tuple[Rows, pa.RecordBatch]]:
        """Yield row numbers and the columns `names` as text; `categories` is there for symmetry with Parquet."""
        del categories
        reader = pyarrow.csv.open_csv(
            self.path,
            # One thread: with several, Arrow does not know the number of an unreadable line.
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            # The TLC quotes nothing; a stray quote read as one would swallow all lines up to the next.
            parse_options=pyarrow.csv.ParseOptions(quote_char=False, invalid_row_handler=self._keep_unreadable),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=list(names),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        first = kept = 0
        for batch in reader:
            rows = self._numbers(first, len(batch))
            yield rows, batch
            first = int(rows[-1]) + 1 if len(rows) else first
            kept += len(batch)
        self.rows = kept + len(self.unreadable)

    def _numbers(self, first: int, count: int) -> Rows:
        """The numbers of the next `count` readable rows, from `first` on."""
        skipped = np.array([row for row, _ in self.unreadable if row >= first], dtype=np.int64)
        numbers = np.arange(first, first + count + len(skipped))
        return np.setdiff1d(numbers, skipped, assume_unique=True)[:count]


def is_text(type_: pa.DataType) -> bool:
    """Whether a type is one of Arrow's text types."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def open_month(path: Path, where: str) -> ParquetMonth | CsvMonth:
    """Open a published month, by what its bytes are rather than by its name.

    Raises
    ------
    TiplineError
        Where the footer or the header cannot be read.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        return ParquetMonth(path) if magic == b"PAR1" else CsvMonth(path)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise damaged(error, where) from error


def damaged(error: Exception, where: str) -> TiplineError:
    """The message for a month whose bytes cannot be read."""
    what = f"The published month cannot be read: {str(error).splitlines()[0]}"
    return TiplineError(what, where, "Fetch the month again: dvc repro -f download@2009-01, for one.")
