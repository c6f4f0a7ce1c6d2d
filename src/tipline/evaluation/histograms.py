"""Histograms of features, over bins that a model carries: counted while scoring as they were where it was made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tipline.evaluation.times import read_microseconds
from tipline.model.pyfunc import fill_nulls, hour_of_day, view_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tipline.model.pyfunc import Codes, Floats

    Rows = np.ndarray[tuple[int], np.dtype[np.int64]]

HOURS = 24
# Numbers fall into so many equal cells, a multiplication each; bins are runs of cells, so no row is searched for.
CELLS = 1024
# A block's numbers and hours are looked at in about so many rows, evenly spaced: enough for shares to 0.2 points.
SEEN_ROWS = 2**17
CHUNK_ROWS = 2**15
NEW_NAMES = 20
FEW = 12
NO_TIME = -(2**63)


@dataclass(eq=False)
class Histogram:
    """Rows of a feature by bin; histograms of parts add up.

    Attributes
    ----------
    counts
        Of a category: by the values that the reference has, all others last. Of an hour: 24. Of a number: by bin.
        Hours and numbers are estimates in a block of more than twice SEEN_ROWS rows.
    missing
        Rows without a value.
    new
        Of a category: the values that the reference does not have. As json only the NEW_NAMES most frequent, so those
        of a month are of the most frequent ones of its parts.
    """

    counts: Rows
    missing: int = 0
    new: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Histogram) -> Histogram:
        """The histogram of both parts' rows."""
        new = Counter(self.new) + Counter(other.new)
        return Histogram(self.counts + other.counts, self.missing + other.missing, new)

    def to_json(self) -> dict[str, Any]:
        """As json."""
        # A column of free text must not fill the manifests.
        most = sorted(self.new.items(), key=lambda item: (-item[1], item[0]))[:NEW_NAMES]
        return {"counts": self.counts.tolist(), "missing": self.missing, "new": dict(sorted(most))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Histogram:
        """The histogram that `to_json` wrote."""
        return cls(np.array(value["counts"], np.int64), value["missing"], dict(value["new"]))


def count_column(column: pa.Array, bins: Mapping[str, Any]) -> Histogram:
    """Count one feature's rows in the bins that `drift.reference` found for it."""
    if bins["kind"] == "category":
        return of_categories(column, bins["values"])
    step = max(1, len(column) // SEEN_ROWS)
    codes = assign_bins(column, bins, step)
    counts = np.bincount(codes, minlength=count_bins(bins) + 1)[:-1] * step
    return Histogram(counts, int(column.null_count))


def of_categories(column: pa.Array, values: list[str]) -> Histogram:
    """Count the rows of each value."""
    names = column.dictionary.to_pylist()
    codes = fill_nulls(column.indices, len(names))
    counts = occurrences(codes, len(names) + 1)
    by_name = {name: int(count) for name, count in zip(names, counts, strict=False) if count}
    new = {name: count for name, count in by_name.items() if name not in values}
    known = [by_name.get(value, 0) for value in values]
    return Histogram(np.array([*known, sum(new.values())], np.int64), int(counts[-1]), new)


def occurrences(codes: Codes, below: int) -> Rows:
    """How often each code is there."""
    counts = np.zeros(below, np.int64)
    for start in range(0, len(codes), CHUNK_ROWS):
        part = codes[start : start + CHUNK_ROWS]
        # A comparison for each of a few codes takes a third of the time.
        few = [np.count_nonzero(part == code) for code in range(below)] if below <= FEW else None
        counts += np.bincount(part, minlength=below) if few is None else few
    return counts


def count_bins(bins: Mapping[str, Any]) -> int:
    """How many bins there are, without the one for missing values."""
    return {"category": len(bins.get("values", ())) + 1, "hour": HOURS}.get(bins["kind"]) or len(bins["starts"])


def assign_bins(column: pa.Array, bins: Mapping[str, Any], step: int = 1) -> Codes:
    """The bin of every step-th row, `size` for a missing value."""
    if bins["kind"] == "category":
        return category_bins(column, bins["values"])[::step]
    if bins["kind"] == "hour":
        times = read_microseconds(column, NO_TIME)[::step]
        return np.where(times == NO_TIME, np.int32(HOURS), hour_of_day(times))
    of_cell = np.searchsorted(bins["starts"], np.arange(CELLS), side="right") - 1
    places: Codes = np.append(of_cell, count_bins(bins)).astype(np.int32)
    return places.take(assign_cells(read_numbers(column)[::step], bins["low"], bins["high"]))


def category_bins(column: pa.Array, values: list[str]) -> Codes:
    """The place of each row's value among these, one behind them for others, two for a missing one."""
    known = {value: place for place, value in enumerate(values)}
    others, missing = len(values), len(values) + 1
    names = column.dictionary.to_pylist()
    places: Codes = np.array([*(known.get(name, others) for name in names), missing], np.int32)
    return places.take(fill_nulls(column.indices, len(names)))


def read_numbers(column: pa.Array) -> Floats:
    """A column's values as doubles, NaN for missing ones."""
    doubles = column.cast(pa.float64())
    return view_values(doubles.fill_null(nan) if doubles.null_count else doubles)


def assign_cells(values: Floats, low: float, high: float) -> Codes:
    """The cell of each value, of CELLS equal ones; what is beyond the ends is in the outer ones, NaN in none."""
    inside = np.clip(values, low, high)
    inside -= low
    inside *= CELLS / (high - low) if high > low else 0.0
    np.minimum(inside, CELLS - 1, out=inside)
    np.copyto(inside, CELLS, where=np.isnan(inside))
    codes: Codes = inside.astype(np.int32)
    return codes
