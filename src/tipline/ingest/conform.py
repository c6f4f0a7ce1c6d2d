"""Convert published batches to the schema, and quarantine the rows that cannot be read."""

import contextlib
import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tipline.errors import TiplineError
from tipline.ingest.columns import TYPES
from tipline.ingest.readers import Batch, is_utf8
from tipline.ingest.schema import Column, Schema, is_text_type

QUARANTINE = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])
# Bounds on what a category holds in memory; published ones have a dozen short values.
MAX_VALUES, MAX_LETTERS = 10_000, 200
EXPECTED = {
    "timestamp": "a time",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "category": f"a word of at most {MAX_LETTERS} letters",
}
BOOLEANS = {"true": True, "t": True, "yes": True, "y": True, "1": True}
BOOLEANS |= {"false": False, "f": False, "no": False, "n": False, "0": False}
# What Arrow reads; Python alone would also accept 1_000 or 2009-W01.
NUMBER = re.compile(rb"[-+]?([0-9.]+(e[-+]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)
TIME = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?)?")


def format_alias(value: object) -> str | None:
    """Return a published value as text, "" for a missing one, None for what cannot be a word.

    A whole number has the same text if nulls have made its column double.
    """
    if isinstance(value, bytes):
        is_word = len(value) <= 4 * MAX_LETTERS and is_utf8(value) and len(value.decode()) <= MAX_LETTERS
        return value.decode() if is_word else None
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value) if value.is_integer() else value)
    return "" if value is None else str(value)


def find_indices(encoded: pa.DictionaryArray, codes: list[int]) -> list[int]:
    """Return the indices of an array at which one of some codes of its dictionary is."""
    if not codes:
        return []
    mask = pc.is_in(encoded.indices, pa.array(codes, encoded.indices.type))
    indices: list[int] = np.flatnonzero(mask.to_numpy(zero_copy_only=False)).tolist()
    return indices


class Conformer:
    """Convert the batches of a month to the schema, and count what is unusual.

    `names` has the published name of each column that the month has, from `Schema.match`.
    """

    def __init__(self, schema: Schema, names: Mapping[str, str], month: str) -> None:
        self.schema, self.names, self.month = schema, dict(names), month
        self.arrow_schema = schema.arrow_schema
        self.quarantined: Counter[str] = Counter()
        self.filled: Counter[str] = Counter()
        self.out_of_range: Counter[str] = Counter()
        self.outside_month = 0
        self.unknown_aliases: Counter[str] = Counter()
        # Each published alias of a category, and the value that it stands for.
        self.aliases: dict[str, dict[str, str | None]] = {
            name: {} for name, column in schema.columns.items() if column.type == "category" and name in names
        }
        # Batches have few different sizes, so the nulls of columns that the month lacks share their memory.
        self._create_nulls = lru_cache(maxsize=8)(pa.nulls)

    def conform(self, batch: Batch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return the batch in the schema, and its quarantined rows with the columns of QUARANTINE."""
        arrays = {"row": pa.array(batch.rows)}
        reasons: dict[int, str] = {}
        for name, column in self.schema.columns.items():
            if name not in self.names:
                arrays[name] = self._create_nulls(len(batch.rows), TYPES[column.type])
                continue
            published = batch.values.column(self.names[name])
            if column.type == "category":
                arrays[name], unreadable = self._encode(name, published)
            else:
                arrays[name], unreadable = cast_column(published, TYPES[column.type])
            reasons = dict.fromkeys(unreadable, f"{name} is not {EXPECTED[column.type]}") | reasons
        quarantined = self._quarantine(batch, reasons)
        if reasons:
            keep = pa.array(np.isin(np.arange(len(batch.rows)), list(reasons), invert=True))
            arrays = {name: array.filter(keep) for name, array in arrays.items()}
        filled = [self._fill_nulls(name, column, arrays[name]) for name, column in self.schema.columns.items()]
        trips = pa.RecordBatch.from_arrays([arrays["row"], *filled], schema=self.arrow_schema)
        self._count_unusual(trips)
        return trips, quarantined

    def _encode(self, name: str, array: pa.Array) -> tuple[pa.Array, list[int]]:
        """Encode a category by its distinct values: first the schema's values, then others as the month has them."""
        encoded = encode_values(array)
        values, column, known = encoded.dictionary, self.schema.columns[name], self.aliases[name]
        if is_text_type(values.type):  # as bytes, because Parquet may declare as text what is not UTF-8
            values = values.cast(pa.large_binary())
        aliases = [format_alias(value) for value in values.to_pylist()]
        known |= {alias: column.canonical(alias) for alias in aliases if alias is not None and alias not in known}
        if len(known) > MAX_VALUES:
            what = f"A category has more than {MAX_VALUES:,} different values; the schema expects a few words."
            where = f"column {self.names[name]}, month {self.month}"
            raise TiplineError(what, where, "Check the file, and the column's type in the schema.")
        categories = list(dict.fromkeys([*column.aliases, *filter(None, known.values())]))
        codes = {value: code for code, value in enumerate(categories)}
        indices = pa.array([codes.get(known.get(alias or "") or "") for alias in aliases], pa.int32())
        unreadable = find_indices(encoded, [index for index, alias in enumerate(aliases) if alias is None])
        dictionary = pa.array(categories, pa.string())
        return pa.DictionaryArray.from_arrays(indices.take(encoded.indices), dictionary), unreadable

    def _quarantine(self, batch: Batch, reasons: Mapping[int, str]) -> pa.RecordBatch:
        texts = zip(reasons, batch.format_rows(list(reasons)), strict=True)
        found = [(int(batch.rows[index]), reasons[index], text) for index, text in texts]
        found = sorted([*found, *batch.malformed])  # in the order of the file
        self.quarantined.update(reason for _, reason, _ in found)
        arrays = [pa.array([row[place] for row in found], type_) for place, type_ in enumerate(QUARANTINE.types)]
        return pa.RecordBatch.from_arrays(arrays, schema=QUARANTINE)

    def _fill_nulls(self, name: str, column: Column, array: pa.Array) -> pa.Array:
        if column.fill is None or not array.null_count:
            return array
        self.filled[name] += array.null_count
        if column.type != "category":
            return array.fill_null(column.fill)
        code = list(column.aliases).index(str(column.fill))
        dictionary = array.dictionary if len(array.dictionary) else pa.array(list(column.aliases), pa.string())
        return pa.DictionaryArray.from_arrays(array.indices.fill_null(code), dictionary)

    def _count_unusual(self, trips: pa.RecordBatch) -> None:
        begin = np.datetime64(self.month, "M")  # of local time, wherever the data come from
        first, after = (int((begin + months).astype("M8[us]").astype(int)) for months in (0, 1))
        self.outside_month += count_outside(trips[self.schema.time].cast(pa.int64()), first, after - 1)
        for name, column in self.schema.columns.items():
            if column.range is not None:
                self.out_of_range[name] += count_outside(trips[name], *column.range)
            elif column.type == "category" and len(trips[name].dictionary) > len(column.aliases):
                unknown = trips[name].filter(pc.greater_equal(trips[name].indices, len(column.aliases)))
                counts = {f"{name}: {pair['values']}": pair["counts"] for pair in unknown.value_counts().to_pylist()}
                self.unknown_aliases.update(counts)


def count_outside(array: pa.Array, low: float, high: float) -> int:
    # numpy, because Arrow's comparisons take four times as long.
    values = array.drop_null().to_numpy() if array.null_count else array.to_numpy()
    return int(np.count_nonzero(values < low) + np.count_nonzero(values > high))


def cast_column(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Cast an array; return it and the indices of values that cannot be read, which are null in it.

    A float's NaN counts as missing, because pandas writes it for null.
    """
    if pa.types.is_timestamp(array.type) and array.type.tz:
        array = pc.local_timestamp(array)
    if pa.types.is_boolean(array.type) or not pa.types.is_boolean(target):  # Arrow reads 2 as true
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            if pa.types.is_dictionary(array.type):  # not decoded, because one long text may be in every row
                return cast_values(array.dictionary, target).take(array.indices), []
            return cast_values(array, target), []
    encoded = encode_values(array)
    values, unreadable = parse_values(encoded.dictionary, target)
    return values.take(encoded.indices), find_indices(encoded, unreadable)


def encode_values(array: pa.Array) -> pa.DictionaryArray:
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def cast_values(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Cast an array; raise if Arrow refuses a value."""
    is_time = pa.types.is_timestamp(target)
    if not (is_time or pa.types.is_boolean(target) or pa.types.is_integer(array.type)):
        array = array.cast(pa.float64())
    # A sum is NaN if a value is, and faster than a look at each.
    if pa.types.is_floating(array.type) and math.isnan(pc.sum(array).as_py() or 0):
        array = pc.if_else(pc.is_nan(array), None, array)
    # Cutting nanoseconds off a time loses nothing that the TLC has ever recorded.
    return pc.cast(array, options=pc.CastOptions(target, allow_time_truncate=is_time))


def parse_values(values: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Cast the values that the target can hold; return the indices of the rest, which are null."""
    if pa.types.is_boolean(target):
        words = [(format_alias(value) or "").strip().casefold() for value in values.to_pylist()]
        unreadable = [index for index, word in enumerate(words) if word and word not in BOOLEANS]
        return pa.array([BOOLEANS.get(word) for word in words], target), unreadable
    values, unreadable = parse_texts(values, target) if is_text_type(values.type) else (values, [])
    if not pa.types.is_timestamp(target):  # NaN is not equal to itself
        values = values.cast(pa.float64(), safe=False)
        values = pc.if_else(pc.is_nan(values), None, values)
    found = values.cast(target, safe=False)
    fits = pc.equal(found.cast(values.type, safe=False), values).fill_null(fill_value=True)
    refused = np.flatnonzero(~fits.to_numpy(zero_copy_only=False)).tolist()
    return pc.if_else(fits, found, None), unreadable + refused


def parse_texts(texts: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Parse texts as times or numbers, blanks around them removed; return the indices of those that are neither.

    In Python, because Arrow takes a hundred times as long to refuse a text, and a month may have nothing else.
    """
    is_time = pa.types.is_timestamp(target)
    values: list[object] = []
    unreadable: list[int] = []
    for index, text in enumerate(texts.cast(pa.large_binary()).to_pylist()):
        value, stripped = None, (text or b"").strip()
        try:
            if (TIME if is_time else NUMBER).fullmatch(stripped):
                value = dt.datetime.fromisoformat(stripped.decode()) if is_time else float(stripped)
            elif stripped:
                unreadable.append(index)
        except ValueError:  # February 30th, or two decimal points
            unreadable.append(index)
        values.append(value)
    return pa.array(values, target if is_time else pa.float64()), unreadable
