"""Raw batches brought to the contract's schema; what cannot be read is set apart, with the reason."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tipline.contract import ARROW_TYPES, Column, Contract
from tipline.raw import is_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tipline.raw import Rows

QUARANTINE = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])
EXPECTED = {"timestamp": "a time", "number": "a number", "integer": "a whole number"}


class Vocabulary:
    """The dictionary of a category: the contract's values first, then what else a month writes, as it comes."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.values = list(column.spellings)
        self._known: dict[str, int | None] = {}

    def code(self, spelling: str) -> int | None:
        """The code of a published spelling, None for a blank one."""
        if spelling not in self._known:
            canonical = self.column.canonical(spelling)
            if canonical is not None and canonical not in self.values:
                self.values.append(canonical)
            self._known[spelling] = None if canonical is None else self.values.index(canonical)
        return self._known[spelling]

    def encode(self, array: pa.Array) -> pa.Array:
        """Code an array by the canonical values; the few distinct spellings are looked at, not the rows."""
        coded = array if pa.types.is_dictionary(array.type) else pc.dictionary_encode(array)
        spellings = [as_text(value) for value in coded.dictionary.to_pylist()]
        codes = pa.array([self.code(spelling) for spelling in spellings], pa.int32())
        return pa.DictionaryArray.from_arrays(codes.take(coded.indices), pa.array(self.values, pa.string()))


def as_text(value: object) -> str:
    """A published value as text: whole numbers the same where nulls made their column double; NaN is blank."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:g}"
    return str(value)


class Conformer:
    """Brings the batches of one month to the schema, and counts what it meets.

    Parameters
    ----------
    contract
        The schema.
    found
        Canonical to published names, as `Contract.match` gives them.
    """

    def __init__(self, contract: Contract, found: Mapping[str, str]) -> None:
        self.contract = contract
        self.found = dict(found)
        self.schema = contract.schema
        self.quarantined: Counter[str] = Counter()
        self.filled: Counter[str] = Counter()
        self.out_of_range: Counter[str] = Counter()
        self.new_spellings: Counter[str] = Counter()
        self._vocabularies = {name: Vocabulary(c) for name, c in contract.columns.items() if c.type == "category"}

    def conform(self, rows: Rows, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return the batch in the schema, and its unreadable rows as QUARANTINE, the published values as json."""
        arrays = {"row": pa.array(rows)}
        reasons: dict[int, str] = {}
        for name, column in self.contract.columns.items():
            raw = batch.column(self.found[name]) if name in self.found else None
            arrays[name], unreadable = self._read(name, column, raw, len(batch))
            for index in unreadable:
                reasons.setdefault(index, f"{name} is not {EXPECTED[column.type]}")
        apart = sorted(reasons)
        raw_rows = [
            json.dumps(value, default=str, ensure_ascii=False)
            for value in batch.take(pa.array(apart, pa.int64())).to_pylist()
        ]
        unreadable = quarantine(rows[apart], [reasons[index] for index in apart], raw_rows)
        self.quarantined.update(reasons.values())
        if apart:
            keep = pa.array(np.isin(np.arange(len(rows)), apart, invert=True))
            arrays = {name: array.filter(keep) for name, array in arrays.items()}
        filled = [self._fill(name, column, arrays[name]) for name, column in self.contract.columns.items()]
        trips = pa.RecordBatch.from_arrays([arrays["row"], *filled], schema=self.schema)
        self._count_odd(trips)
        return trips, unreadable

    def _read(self, name: str, column: Column, raw: pa.Array | None, count: int) -> tuple[pa.Array, list[int]]:
        if raw is None:
            return pa.nulls(count, ARROW_TYPES[column.type]), []
        if column.type == "category":
            return self._vocabularies[name].encode(raw), []
        return cast(raw, ARROW_TYPES[column.type])

    def _fill(self, name: str, column: Column, array: pa.Array) -> pa.Array:
        if column.fill is None or not array.null_count:
            return array
        self.filled[name] += array.null_count
        if column.type != "category":
            return array.fill_null(column.fill)
        code = self._vocabularies[name].code(str(column.fill))
        values = pa.array(self._vocabularies[name].values, pa.string())
        return pa.DictionaryArray.from_arrays(array.indices.fill_null(code), values)

    def _count_odd(self, trips: pa.RecordBatch) -> None:
        for name, column in self.contract.columns.items():
            if column.range is not None:
                low, high = column.range
                odd = pc.or_(pc.less(trips[name], low), pc.greater(trips[name], high))
                self.out_of_range[name] += odd.true_count
            elif column.type == "category" and len(self._vocabularies[name].values) > len(column.spellings):
                new = pc.greater_equal(trips[name].indices, len(column.spellings))
                values = trips[name].filter(new).value_counts().to_pylist()
                self.new_spellings.update({f"{name}: {pair['values']}": pair["counts"] for pair in values})


def cast(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Cast an array; return it and the places whose values cannot be read, which are null in it.

    A float's NaN counts as missing: files written by pandas have it for null, and 1.0 for 1 beside it.
    """
    try:
        if is_text(array.type) and not pa.types.is_timestamp(target):
            array = array.cast(pa.float64())
        if pa.types.is_floating(array.type) and pc.any(pc.is_nan(array)).as_py():
            array = pc.if_else(pc.is_nan(array), None, array)
        # Cutting nanoseconds off a time loses nothing that the TLC ever recorded.
        return array.cast(target, safe=not pa.types.is_timestamp(array.type)), []
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return cast_each(array, target)


def cast_each(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """`cast` for a batch with a value that Arrow refuses: one by one, blanks around text removed."""
    values: list[Any] = []
    unreadable = []
    for index, value in enumerate(array.to_pylist()):
        text = value.strip() if isinstance(value, str) else value
        try:
            if isinstance(text, str) and text and not pa.types.is_timestamp(target):
                text = pa.scalar(text).cast(pa.float64()).as_py()
            missing = text in (None, "") or (isinstance(text, float) and math.isnan(text))
            values.append(None if missing else pa.scalar(text).cast(target).as_py())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            values.append(None)
            unreadable.append(index)
    return pa.array(values, target), unreadable


def quarantine(rows: Sequence[int] | Rows, reasons: Sequence[str], raw: Sequence[str]) -> pa.RecordBatch:
    """Rows that cannot be read: number, reason, published text."""
    columns = (rows, reasons, raw)
    arrays = [pa.array(column, type_) for column, type_ in zip(columns, QUARANTINE.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=QUARANTINE)
