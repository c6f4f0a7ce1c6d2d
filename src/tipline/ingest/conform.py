"""Convert published batches to the schema, and quarantine the rows that cannot be read."""

import contextlib
import math
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tipline.arrays import Values
from tipline.errors import TiplineError, shorten_text
from tipline.ingest import times
from tipline.ingest.columns import TIME, TYPES
from tipline.ingest.readers import Batch, convert_to_json, decode_text, is_utf8
from tipline.ingest.schema import Column, Schema, is_text_type, normalize_name

QUARANTINE = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])
# Bounds on what a category holds in memory; published ones have a dozen short values.
MAX_VALUES, MAX_LETTERS = 10_000, 200
# By type: what a value is not if it cannot be read, and the forms that are accepted.
EXPECTED = {
    "timestamp": (
        "a time",
        "2009-01-31 23:59:59, also with T, fractions and, if the column has a zone, Z or an offset",
    ),
    "number": ("a number", "12.5, -3, 1e3"),
    "integer": ("a whole number", "12, -3, 12.0; less than 2**31"),
    "boolean": ("true or false", "true, t, yes, y, 1; false, f, no, n, 0"),
    "category": (f"a word of at most {MAX_LETTERS} letters", "text; a whole number such as 1 or 1.0"),
    "identifier": ("text or a whole number", "text; a whole number"),
}
BOOLEANS = {"true": True, "t": True, "yes": True, "y": True, "1": True}
BOOLEANS |= {"false": False, "f": False, "no": False, "n": False, "0": False}


def format_alias(value: object, longest: int = MAX_LETTERS) -> str | None:
    """Return a published value as text, "" for a missing one, None for what cannot be a word.

    A whole number has the same text if nulls have made its column double.
    """
    if isinstance(value, bytes):
        is_word = len(value) <= 4 * longest and is_utf8(value) and len(value.decode()) <= longest
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
        type_ = self.schema.columns[name].type
        if type_ == "category":
            return self._encode(name, array)
        if type_ == "identifier":
            return cast_identifiers(array, self.nulls)
        if type_ == "timestamp":
            zone = self.schema.columns[name].zone
            return cast_times(array, self.schema.list_formats(name), str(zone) if zone else None, self.nulls)
        if type_ == "number" and self.schema.csv.decimal != "." and is_text_type(array.type):
            array = pc.replace_substring(array, self.schema.csv.decimal, ".")
        return cast_column(array, TYPES[type_], self.nulls)

    def _encode(self, name: str, array: pa.Array) -> tuple[pa.Array, list[int]]:
        """Encode a category by its distinct values: first the schema's values, then others as the month has them."""
        encoded = encode_values(array)
        values, column, known = encoded.dictionary, self.schema.columns[name], self.aliases[name]
        if is_text_type(values.type):  # as bytes, because Parquet may declare as text what is not UTF-8
            values = values.cast(pa.large_binary())
        aliases = [format_alias(value) for value in values.to_pylist()]
        known |= {
            alias: column.canonical(alias, self.nulls) for alias in aliases if alias is not None and alias not in known
        }
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


def cast_column(array: pa.Array, target: pa.DataType, nulls: Collection[str]) -> tuple[pa.Array, list[int]]:
    """Cast an array to numbers or booleans; return it and the indices of values that cannot be read, null in it.

    A float's NaN counts as missing, because pandas writes it for null, and so do the texts `nulls`.
    """
    if pa.types.is_boolean(array.type) or not pa.types.is_boolean(target):  # Arrow reads 2 as true
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            if pa.types.is_dictionary(array.type):  # not decoded, because one long text may be in every row
                return cast_values(array.dictionary, target).take(array.indices), []
            return cast_values(array, target), []
    encoded = encode_values(array)
    values, unreadable = parse_values(encoded.dictionary, target, nulls)
    return values.take(encoded.indices), find_indices(encoded, unreadable)


def cast_identifiers(array: pa.Array, nulls: Collection[str]) -> tuple[pa.Array, list[int]]:
    """Return texts and whole numbers as text without blanks around it, and the indices of other values."""
    if not pa.types.is_dictionary(array.type):
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            values = array.cast(pa.large_binary()) if is_text_type(array.type) else cast_values(array, pa.int64())
            texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
            return pc.if_else(pc.is_in(pc.utf8_lower(texts), pa.array(sorted(nulls))), None, texts), []
    encoded = encode_values(array)
    values, unreadable = parse_words(encoded.dictionary, nulls, sys.maxsize)
    return pa.array(values, pa.string()).take(encoded.indices), find_indices(encoded, unreadable)


def encode_values(array: pa.Array) -> pa.DictionaryArray:
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def cast_values(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Cast an array; raise if Arrow refuses a value."""
    if not (pa.types.is_boolean(target) or pa.types.is_integer(array.type)):
        array = array.cast(pa.float64())
    # A sum is NaN if a value is, and faster than a look at each.
    if pa.types.is_floating(array.type) and math.isnan(pc.sum(array).as_py() or 0):
        array = pc.if_else(pc.is_nan(array), None, array)
    return array.cast(target)


def parse_values(values: pa.Array, target: pa.DataType, nulls: Collection[str]) -> tuple[pa.Array, list[int]]:
    """Cast the values that the target can hold; return the indices of the rest, which are null."""
    if pa.types.is_boolean(target):
        words, unreadable = parse_words(values, nulls)
        found = [word and BOOLEANS.get(word.casefold()) for word in words]
        return pa.array(found, target), unreadable + [i for i, word in enumerate(words) if word and found[i] is None]
    values, unreadable = parse_numbers(values, nulls) if is_text_type(values.type) else (values, [])
    values = values.cast(pa.float64(), safe=False)
    values = pc.if_else(pc.is_nan(values), None, values)  # NaN is not equal to itself
    found = values.cast(target, safe=False)
    fits = pc.equal(found.cast(values.type, safe=False), values).fill_null(fill_value=True)
    refused = np.flatnonzero(~fits.to_numpy(zero_copy_only=False)).tolist()
    return pc.if_else(fits, found, None), unreadable + refused


def parse_words(
    values: pa.Array, nulls: Collection[str], longest: int = MAX_LETTERS
) -> tuple[list[str | None], list[int]]:
    """Return values as text, None for missing ones and for those at the returned indices, which are no words."""
    given = (values.cast(pa.large_binary()) if is_text_type(values.type) else values).to_pylist()
    words = [format_alias(value, longest) for value in given]
    known = [None if word is None or normalize_name(word) in nulls else word.strip() for word in words]
    return known, [index for index, word in enumerate(words) if word is None]


def parse_numbers(texts: pa.Array, nulls: Collection[str]) -> tuple[pa.Array, list[int]]:
    """Parse texts as numbers, blanks around them removed; return the indices of those that are none."""
    import pandas as pd  # noqa: PLC0415 (half a second, and most months do without)

    words = decode_texts(texts)
    found = pd.to_numeric(pd.Series(words, dtype="str").str.strip(), errors="coerce").to_numpy(np.float64)
    return pa.array(found), find_unreadable(words, ~np.isnan(found), {*nulls, "nan"})


def decode_texts(texts: pa.Array) -> list[str]:
    """Return texts, "" for a missing one; Parquet may declare as text what is not UTF-8."""
    return [decode_text(text or b"") for text in texts.cast(pa.large_binary()).to_pylist()]


def find_unreadable(words: Sequence[str], is_read: Values, nulls: Collection[str]) -> list[int]:
    """Return the indices of words that could not be read and do not stand for a missing value."""
    return [index for index in np.flatnonzero(~is_read).tolist() if normalize_name(words[index]) not in nulls]


def cast_times(
    array: pa.Array, forms: Sequence[str], zone: str | None, nulls: Collection[str]
) -> tuple[pa.Array, list[int]]:
    """Convert an array to local times of `zone`; return them and the indices of values that cannot be read.

    What is finer than microseconds is cut off.
    """
    cut = partial(pc.cast, options=pc.CastOptions(TIME, allow_time_truncate=True))
    if pa.types.is_timestamp(array.type) and array.type.tz:
        return cut(pc.local_timestamp(array.cast(pa.timestamp(array.type.unit, zone)))), []
    with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if not any(test(array.type) for test in (pa.types.is_dictionary, pa.types.is_integer, pa.types.is_floating)):
            return cut(array), []
    encoded = encode_values(array)
    given = encoded.dictionary
    if pa.types.is_floating(given.type):  # as text, a float could have an exponent
        given = pc.if_else(pc.is_finite(given), given, None).cast(pa.decimal128(38, 6))
    texts = decode_texts(given if is_text_type(given.type) else given.cast(pa.string()))
    found, is_read = times.read_times(texts, forms, zone)
    return found.take(encoded.indices), find_indices(encoded, find_unreadable(texts, is_read, nulls))
