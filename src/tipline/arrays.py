"""Arrow columns as numpy arrays, without pandas, whose import takes half a second in every worker."""

from typing import Any

import numpy as np
import pyarrow as pa

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Codes = np.ndarray[tuple[int], np.dtype[np.int32]]
Probabilities = np.ndarray[tuple[int], np.dtype[np.float32]]
Labels = np.ndarray[tuple[int], np.dtype[np.bool_]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
Values = np.ndarray[tuple[int], Any]

CHUNK_ROWS = 2**15  # of a step of the arithmetic: few enough that its columns stay in the cache of a core
HOUR_MICROSECONDS = 3_600_000_000
VIEWS: dict[Any, np.dtype[Any]] = {pa.int32(): np.dtype("i4"), pa.int64(): np.dtype("i8"), pa.float64(): np.dtype("f8")}


def view_values(column: pa.Array) -> Values:
    """Return the values of a column without a copy, those of nulls arbitrary."""
    dtype = VIEWS.get(column.type)
    if dtype is None or not len(column):
        values: Values = column.to_numpy(zero_copy_only=False)
        return values
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)


def unpack_booleans(array: pa.BooleanArray) -> Labels:
    """Return booleans as one byte each, those of nulls arbitrary; Arrow's `to_numpy` would import pandas."""
    packed = array.cast(pa.int8())
    labels: Labels = np.frombuffer(packed.buffers()[1] or b"", np.bool_, len(packed), packed.offset)
    return labels


def fill_nulls(column: pa.Array, value: float) -> Values:
    """Return a column's values with `value` for nulls; Arrow's `fill_null` would import pandas."""
    if not column.null_count:
        return view_values(column)
    if column.type not in VIEWS:
        return view_values(column.fill_null(value))
    filled: Values = np.where(unpack_booleans(column.is_valid()), view_values(column), value)
    return filled


def hour_of_day(times: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Codes:
    """Return the hour of the day of microseconds since 1970."""
    codes: Codes = (times // HOUR_MICROSECONDS).astype(np.int32)
    # Not `% 24`: numpy divides with vector instructions and takes remainders without.
    codes -= codes // 24 * 24
    return codes


def mix_bits(values: Values) -> Values:
    """Return a permutation of 64-bit numbers in which each bit depends on all bits: the end of SplitMix64."""
    values = (values ^ (values >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> 27)) * np.uint64(0x94D049BB133111EB)
    mixed: Values = values ^ (values >> 31)
    return mixed
