"""Convert published batches to the schema, and quarantine the rows that cannot be read."""

import contextlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tipline.errors import TiplineError, shorten_text
from tipline.ingest import texts
from tipline.ingest.columns import TYPES
from tipline.ingest.readers import Batch, convert_to_json
from tipline.ingest.schema import Column, Schema, is_text_type, normalize_name

QUARANTINE = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])
# Bounds on what a category holds in memory; published ones have a dozen short values.
MAX_VALUES, MAX_LETTERS = 10_000, 200
# By type: what a value is not if it cannot be read, and the forms that are accepted.
EXPECTED = {
    "timestamp": ("a time", "2009-01-31 23:59:59, also with T, fractions and, in a column with a zone, Z or an offset"),
    "number": ("a number", "12.5, -3, 1e3"),
    "integer": ("a whole number", "12, -3, 12.0; less than 2**31"),
    "boolean": ("true or false", "true, t, yes, y, 1; false, f, no, n, 0"),
    "category": (f"a word of at most {MAX_LETTERS} letters", "text; a whole number such as 1 or 1.0"),
    "identifier": ("text or a whole number", "text; a whole number"),
}


def find_indices(encoded: pa.DictionaryArray, codes: list[int]) -> list[int]:
    if not codes:
        return []
    mask = pc.is_in(encoded.indices, pa.array(codes, encoded.indices.type))
    indices: list[int] = np.flatnonzero(mask.to_numpy(zero_copy_only=False)).tolist()
    return indices


class Conformer:
    """Convert the batches of a month to the schema, and count what is unusual; `names` are those of `Schema.match`."""

    def __init__(self, schema: Schema, names: Mapping[str, str], month: str) -> None:
        self.schema, self.names, self.month = schema, dict(names), month
        self.arrow_schema = schema.arrow_schema
        self.quarantined: Counter[str] = Counter()
        self.filled: Counter[str] = Counter()
        self.out_of_range: Counter[str] = Counter()
        self.outside_month = 0
        self.unknown_aliases: Counter[str] = Counter()
        self.examples: dict[str, str] = {}  # by reason, the first value that cannot be read
        self.nulls = frozenset(map(normalize_name, ("", *schema.csv.null_values)))
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
            arrays[name], unreadable = self._cast(name, published)
            if unreadable:
                reason = f"{name} is not {EXPECTED[column.type][0]}"
                self.examples.setdefault(reason, shorten_text(convert_to_json(published.slice(unreadable[0], 1))[0]))
                reasons = dict.fromkeys(unreadable, reason) | reasons
        quarantined = self._quarantine(batch, reasons)
        if reasons:
            keep = pa.array(np.isin(np.arange(len(batch.rows)), list(reasons), invert=True))
            arrays = {name: array.filter(keep) for name, array in arrays.items()}
        filled = [self._fill_nulls(name, column, arrays[name]) for name, column in self.schema.columns.items()]
        trips = pa.RecordBatch.from_arrays([arrays["row"], *filled], schema=self.arrow_schema)
        self._count_unusual(trips)
        return trips, quarantined

    def _cast(self, name: str, array: pa.Array) -> tuple[pa.Array, list[int]]:
        """Return a column in its type, and the indices of values that cannot be read, null in it."""
        column = self.schema.columns[name]
        if column.type == "category":
            return self._encode(name, array)
        if column.type in {"number", "integer"} and self.schema.csv.decimal != "." and is_text_type(array.type):
            array = pc.replace_substring(array, self.schema.csv.decimal, ".")
        return cast_column(array, column, (*column.formats, *self.schema.csv.timestamp_formats), self.nulls)

    def _encode(self, name: str, array: pa.Array) -> tuple[pa.Array, list[int]]:
        """Encode a category by its distinct values: first the schema's values, then others as the month has them."""
        encoded = encode_values(array)
        column, known = self.schema.columns[name], self.aliases[name]
        words = texts.list_texts(encoded.dictionary)
        aliases = [None if word is None or len(word) > MAX_LETTERS else word for word in words]
        new = [alias for alias in aliases if alias is not None and alias not in known]
        known |= {alias: column.canonical(alias, self.nulls) for alias in new}
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
        published = zip(reasons, batch.format_rows(list(reasons)), strict=True)
        found = [(int(batch.rows[index]), reasons[index], text) for index, text in published]
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
            elif column.type == "category" and not column.open and len(trips[name].dictionary) > len(column.aliases):
                unknown = trips[name].filter(pc.greater_equal(trips[name].indices, len(column.aliases)))
                counts = {f"{name}: {pair['values']}": pair["counts"] for pair in unknown.value_counts().to_pylist()}
                self.unknown_aliases.update(counts)


def count_outside(array: pa.Array, low: float, high: float) -> int:
    # numpy, because Arrow's comparisons take four times as long.
    values = array.drop_null().to_numpy() if array.null_count else array.to_numpy()
    return int(np.count_nonzero(values < low) + np.count_nonzero(values > high))


def cast_column(
    array: pa.Array, column: Column, forms: Sequence[str], nulls: Collection[str]
) -> tuple[pa.Array, list[int]]:
    """Cast as Arrow does, or else by the text of each value; return the indices of those that cannot be read, too."""
    with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        values = cast_directly(array, column)
        if column.type == "identifier":
            values = pc.if_else(pc.is_in(pc.utf8_lower(values), pa.array(sorted(nulls))), None, values)
        return values, []
    encoded = encode_values(array)
    values, unreadable = read_values(texts.list_texts(encoded.dictionary), column, forms, nulls)
    return values.take(encoded.indices), find_indices(encoded, unreadable)


def cast_directly(array: pa.Array, column: Column) -> pa.Array:
    """Cast an array as Arrow does, which raises an error if it refuses a value; NaN counts as missing, as in pandas."""
    type_, target = array.type, TYPES[column.type]
    is_number = pa.types.is_integer(type_) or pa.types.is_floating(type_)
    if pa.types.is_dictionary(type_):  # not decoded, because one long text may be in every row
        return cast_directly(array.dictionary, column).take(array.indices)
    if column.type == "timestamp" and not is_number:  # seconds or milliseconds; the schema says which
        if pa.types.is_timestamp(type_) and type_.tz:
            array = pc.local_timestamp(array.cast(pa.timestamp(type_.unit, str(column.zone))))
        return pc.cast(array, options=pc.CastOptions(target, allow_time_truncate=True))
    if column.type == "identifier" and is_text_type(type_):
        return pc.utf8_trim_whitespace(array.cast(pa.large_binary()).cast(target))
    if column.type == "boolean" and pa.types.is_boolean(type_):
        return array
    if column.type in {"timestamp", "boolean"} or (column.type == "identifier" and not is_number):
        raise pa.ArrowInvalid("Arrow would read 2 as true, and round a long decimal")
    if not pa.types.is_integer(type_):
        array = array.cast(pa.float64())
        # A sum is NaN if a value is, and faster than a look at each.
        if math.isnan(pc.sum(array).as_py() or 0):
            array = pc.if_else(pc.is_nan(array), None, array)
    return array.cast(pa.int64()).cast(target) if column.type == "identifier" else array.cast(target)


def read_values(
    given: Sequence[str | None], column: Column, forms: Sequence[str], nulls: Collection[str]
) -> tuple[pa.Array, list[int]]:
    """Read values by their text; return the indices of those that cannot be read, null in the array."""
    words, target = [(text or "").strip() for text in given], TYPES[column.type]
    if column.type == "timestamp":
        values, is_read = texts.read_times(words, forms, str(column.zone) if column.zone else None)
    elif column.type in {"number", "integer"}:
        numbers, nulls = texts.read_numbers(words), {*nulls, "nan"}
        is_read = ~np.isnan(numbers)
        if column.type == "integer":
            is_read &= (numbers >= -(2**31)) & (numbers < 2**31) & (np.trunc(numbers) == numbers)
        values = pa.array(np.where(is_read, numbers, 0), mask=~is_read).cast(target)
    else:
        found = [texts.BOOLEANS.get(word.casefold()) if column.type == "boolean" else word or None for word in words]
        values, is_read = pa.array(found, target), np.array([one is not None for one in found], np.bool_)
    is_missing = np.array([text is not None and normalize_name(text) in nulls for text in given], np.bool_)
    return pc.if_else(pa.array(is_read & ~is_missing), values, None), np.flatnonzero(~is_read & ~is_missing).tolist()


def encode_values(array: pa.Array) -> pa.DictionaryArray:
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
