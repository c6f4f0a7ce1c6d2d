"""Raw batches brought to the schema's schema; what cannot be read is set apart, with the reason."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tipline.errors import TiplineError
from tipline.ingest.columns import TYPES
from tipline.ingest.readers import is_utf8
from tipline.ingest.schema import Column, Schema, is_text_type
from tipline.model.pyfunc import view_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tipline.ingest.readers import Apart, Batch, Rows

QUARANTINE = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])
# Bounds on what a category holds in memory; published ones have a dozen values of a dozen letters.
MOST_VALUES, LONGEST_VALUE = 10_000, 200
EXPECTED = {
    "timestamp": "a time",
    "number": "a number",
    "integer": "a whole number",
    "category": f"a word of at most {LONGEST_VALUE} letters",
}


# What Arrow reads of text; Python reads more.
NUMBER = r"(?i)^[-+]?([0-9.]+(e[-+]?[0-9]+)?|nan|inf|infinity)$"
TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?)?$"


class Vocabulary:
    """The dictionary of a category: the schema's values first, then what else a month writes, as it comes."""

    def __init__(self, column: Column, where: str) -> None:
        self.column = column
        self.where = where
        self.values = list(column.aliases)
        self.met: dict[str, int | None] = {}

    def code(self, alias: str) -> int | None:
        """The code of a published alias, None for a blank one."""
        if alias not in self.met:
            canonical = self.column.canonical(alias)
            if canonical is not None and canonical not in self.values:
                self.values.append(canonical)
            self.met[alias] = None if canonical is None else self.values.index(canonical)
            if len(self.met) > MOST_VALUES:
                what = f"A category has more than {MOST_VALUES:,} different values; the schema expects a few words."
                raise TiplineError(what, self.where, "Check the file, and the column's type in the schema.")
        return self.met[alias]

    def encode(self, array: pa.Array) -> tuple[pa.Array, list[int]]:
        """Code an array by the canonical values; the few distinct aliases are looked at, not the rows.

        Returns
        -------
        tuple
            The coded array, and the places of values that are too long or too broken to be one of a category.
        """
        coded = array if pa.types.is_dictionary(array.type) else pc.dictionary_encode(array)
        # As bytes: Parquet may call text what is not UTF-8.
        values = coded.dictionary.cast(pa.large_binary()) if is_text_type(coded.dictionary.type) else coded.dictionary
        aliases = [as_text(value) for value in values.to_pylist()]
        odd = [index for index, text in enumerate(aliases) if text is None]
        codes = pa.array([None if text is None else self.code(text) for text in aliases], pa.int32())
        unreadable = places(pc.is_in(coded.indices, pa.array(odd, coded.indices.type))) if odd else []
        indices = codes.take(coded.indices)
        return pa.DictionaryArray.from_arrays(indices, pa.array(self.values, pa.string())), unreadable


def places(mask: pa.BooleanArray) -> list[int]:
    """Where a mask is true."""
    found: list[int] = np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False)).tolist()  # noqa: FBT003
    return found


def as_text(value: object) -> str | None:
    """A published value as text, None for what is no word.

    Whole numbers are the same where nulls made their column double; NaN is blank.
    """
    if isinstance(value, bytes):
        return value.decode() if is_word(value) else None
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value) if value.is_integer() else value)
    return "" if value is None else str(value)


def is_word(value: bytes) -> bool:
    """Whether some bytes can be the value of a category."""
    return len(value) <= 4 * LONGEST_VALUE and is_utf8(value) and len(value.decode()) <= LONGEST_VALUE


class Conformer:
    """Brings the batches of one month to the schema, and counts what it meets.

    `names` are canonical to published ones, as `Schema.match` gives them.
    """

    def __init__(self, schema: Schema, names: Mapping[str, str], month: str) -> None:
        self.schema = schema
        self.names = dict(names)
        self.arrow_schema = schema.arrow_schema
        self.begin, self.last = (pa.scalar(time, pa.timestamp("us")).value for time in bounds(month))
        self.quarantined: Counter[str] = Counter()
        self.filled: Counter[str] = Counter()
        self.out_of_range: Counter[str] = Counter()
        self.outside_month = 0
        self.unknown_aliases: Counter[str] = Counter()
        # Batches are of few sizes: a column that the month has not is the same nulls, in the same memory, each time.
        self._nulls = lru_cache(maxsize=8)(pa.nulls)
        self._vocabularies = {
            name: Vocabulary(column, f"column {self.names.get(name)}, month {month}")
            for name, column in schema.columns.items()
            if column.type == "category"
        }

    @property
    def aliases(self) -> dict[str, dict[str, str | None]]:
        """What each category met, and the value that it stands for."""
        return {
            name: {alias: self.schema.columns[name].canonical(alias) for alias in sorted(vocabulary.met)}
            for name, vocabulary in self._vocabularies.items()
            if name in self.names
        }

    def conform(self, batch: Batch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return the batch in the schema, and its unreadable rows as QUARANTINE."""
        arrays = {"row": pa.array(batch.rows)}
        reasons: dict[int, str] = {}
        for name, column in self.schema.columns.items():
            raw = batch.values.column(self.names[name]) if name in self.names else None
            arrays[name], unreadable = self._read(name, column, raw, len(batch.rows))
            for index in unreadable:
                reasons.setdefault(index, f"{name} is not {EXPECTED[column.type]}")
        apart = sorted(reasons)
        unreadable_rows = quarantine(batch.rows[apart], [reasons[index] for index in apart], batch.raw(apart))
        self.quarantined.update(reasons.values())
        if apart:
            keep = np.ones(len(batch.rows), dtype=bool)
            keep[apart] = False
            arrays = {name: array.filter(pa.array(keep)) for name, array in arrays.items()}
        filled = [self._fill(name, column, arrays[name]) for name, column in self.schema.columns.items()]
        trips = pa.RecordBatch.from_arrays([arrays["row"], *filled], schema=self.arrow_schema)
        self._count_odd(trips)
        return trips, self._with_lines(unreadable_rows, batch.apart)

    def _with_lines(self, unreadable: pa.RecordBatch, lines: Sequence[Apart]) -> pa.RecordBatch:
        """Unreadable rows and lines that could not be split, in the order of the file."""
        if not lines:
            return unreadable
        self.quarantined.update(line.reason for line in lines)
        both = pa.Table.from_batches([unreadable, quarantine(*(list(part) for part in zip(*lines, strict=True)))])
        return both.sort_by("row").combine_chunks().to_batches()[0]

    def _read(self, name: str, column: Column, raw: pa.Array | None, count: int) -> tuple[pa.Array, list[int]]:
        if raw is None:
            return self._nulls(count, TYPES[column.type]), []
        if column.type == "category":
            return self._vocabularies[name].encode(raw)
        return cast(raw, TYPES[column.type])

    def _fill(self, name: str, column: Column, array: pa.Array) -> pa.Array:
        if column.fill is None or not array.null_count:
            return array
        self.filled[name] += array.null_count
        if column.type != "category":
            return array.fill_null(column.fill)
        vocabulary = self._vocabularies[name]
        code = vocabulary.values.index(str(column.fill))
        return pa.DictionaryArray.from_arrays(array.indices.fill_null(code), pa.array(vocabulary.values, pa.string()))

    def _count_odd(self, trips: pa.RecordBatch) -> None:
        self.outside_month += outside(trips[self.schema.time].cast(pa.int64()), self.begin, self.last)
        for name, column in self.schema.columns.items():
            if column.range is not None:
                self.out_of_range[name] += outside(trips[name], *column.range)
            elif column.type == "category" and len(self._vocabularies[name].values) > len(column.aliases):
                new = pc.greater_equal(trips[name].indices, len(column.aliases))
                values = trips[name].filter(new).value_counts().to_pylist()
                self.unknown_aliases.update({f"{name}: {pair['values']}": pair["counts"] for pair in values})


def bounds(month: str) -> tuple[dt.datetime, dt.datetime]:
    """The first and the last microsecond of a month; local time of wherever the data come from."""
    begin = dt.datetime.fromisoformat(f"{month}-01")
    return begin, (begin + dt.timedelta(days=31)).replace(day=1) - dt.timedelta(microseconds=1)


def outside(array: pa.Array, low: float, high: float) -> int:
    """How many values are below `low` or above `high`."""
    if array.null_count == len(array):
        return 0
    # By numpy: Arrow's comparisons take four times as long.
    values = view_values(array.drop_null() if array.null_count else array)
    return int(np.count_nonzero(values < low) + np.count_nonzero(values > high))


def cast(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Cast an array; return it and the places whose values cannot be read, which are null in it.

    A float's NaN counts as missing: files written by pandas have it for null, and 1.0 for 1 beside it.
    """
    if pa.types.is_timestamp(array.type) and array.type.tz:
        array = pc.local_timestamp(array)
    try:
        # The few distinct values where they are coded: one long one may stand in every row.
        if pa.types.is_dictionary(array.type):
            return cast_all(array.dictionary, target).take(array.indices), []
        return cast_all(array, target), []
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return cast_each(array, target)


def cast_all(array: pa.Array, target: pa.DataType) -> pa.Array:
    """`cast` where all can be read."""
    if is_text_type(array.type) and not pa.types.is_timestamp(target):
        array = array.cast(pa.float64())
    if pa.types.is_decimal(array.type) or pa.types.is_float16(array.type):
        array = array.cast(pa.float64())
    # A sum is NaN where a value is, and quicker than a look at each.
    if pa.types.is_floating(array.type) and math.isnan(pc.sum(array).as_py() or 0):
        array = pc.if_else(pc.is_nan(array), None, array)
    # Cutting nanoseconds off a time loses nothing that the TLC ever recorded; its days and years have to fit.
    return pc.cast(array, options=pc.CastOptions(target, allow_time_truncate=pa.types.is_timestamp(target)))


def cast_each(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """`cast` for a batch with a value that Arrow refuses: each distinct value once, blanks around text removed."""
    coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    values, unreadable = coded.dictionary, list[int]()
    if is_text_type(values.type):
        values, unreadable = cast_text(values, target)
    if pa.types.is_integer(target):
        unreadable += places(pc.invert(fits(values)))
        values = pc.if_else(fits(values), values, None)
    parts, refused = cast_halves(values, target, 0)
    indices = pa.array([*unreadable, *refused], coded.indices.type)
    return pa.concat_arrays(parts).take(coded.indices), places(pc.is_in(coded.indices, indices))


def cast_text(texts: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Texts one by one as times or as numbers; the places of those that are neither, nor blank.

    By Python: Arrow's refusals take a hundred times as long, and a month may hold nothing else.
    """
    # As bytes: Parquet may call text what is not UTF-8.
    texts = pc.ascii_trim_whitespace(texts.cast(pa.large_string()))
    kind = target if pa.types.is_timestamp(target) else pa.float64()
    read, form = (dt.datetime.fromisoformat, TIME) if pa.types.is_timestamp(kind) else (float, NUMBER)
    likely = pc.match_substring_regex(texts.cast(pa.large_binary()), form)
    unreadable = places(pc.and_(pc.invert(likely), pc.greater(pc.binary_length(texts), 0)))
    values: list[object] = []
    for index, text in enumerate(pc.if_else(likely, texts, None).to_pylist()):
        try:
            values.append(None if text is None else read(text))
        except ValueError:
            values.append(None)
            unreadable.append(index)
    numbers = pa.array(values, kind)
    return (numbers if kind == target else pc.if_else(pc.is_nan(numbers), None, numbers)), unreadable


def fits(numbers: pa.Array) -> pa.BooleanArray:
    """Which numbers are whole and no larger than an integer column holds."""
    numbers = numbers.cast(pa.float64(), safe=False)
    within = pc.and_(pc.greater_equal(numbers, -(2**31)), pc.less(numbers, 2**31))
    return pc.or_(pc.is_nan(numbers), pc.and_(within, pc.equal(numbers, pc.trunc(numbers))))


def cast_halves(values: pa.Array, target: pa.DataType, first: int) -> tuple[list[pa.Array], list[int]]:
    """Cast what can be cast, halving until each value that Arrow refuses is alone; return parts and refused places."""
    try:
        return [cast_all(values, target)], []
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if len(values) == 1:
            return [pa.nulls(1, target)], [first]
    half = len(values) // 2
    left, refused = cast_halves(values[:half], target, first)
    right, more = cast_halves(values[half:], target, first + half)
    return left + right, refused + more


def quarantine(rows: Sequence[int] | Rows, reasons: Sequence[str], raw: Sequence[str]) -> pa.RecordBatch:
    """Rows that cannot be read: number, reason, published text."""
    columns = (rows, reasons, raw)
    arrays = [pa.array(column, type_) for column, type_ in zip(columns, QUARANTINE.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=QUARANTINE)
