"""Count features in bins that a model carries. Scoring counts them exactly as training counted the reference."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tipline.evaluation.metrics import read_microseconds
from tipline.model.pyfunc import fill_nulls, hour_of_day, view_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tipline.model.pyfunc import Codes, Floats

    Rows = np.ndarray[tuple[int], np.dtype[np.int64]]

HOURS = 24
# Equal cells that numbers fall into by a multiplication. A bin is a run of cells, which saves a search per row.
CELLS = 1024
# Numbers and hours of a block are counted in about this many evenly spaced rows: shares are exact to 0.2 points.
SAMPLED_ROWS = 2**17
CHUNK_ROWS = 2**15  # codes of one chunk stay in a core's cache
MAX_NEW_NAMES = 20
FEW_CODES = 12
NO_TIME = -(2**63)


@dataclass(eq=False)
class Histogram:
    """Rows of a feature by bin. Histograms of blocks add up."""

    # A category: the reference's values, then all others. An hour: 24. A number: its bins.
    counts: Rows
    missing: int = 0
    new: dict[str, int] = field(default_factory=dict)  # rows of values that the reference does not have

    def __add__(self, other: Histogram) -> Histogram:
        """Return the histogram of the rows of both."""
        new = Counter(self.new) + Counter(other.new)
        return Histogram(self.counts + other.counts, self.missing + other.missing, new)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value with the most frequent new values: free text must not fill the manifests."""
        most = sorted(self.new.items(), key=lambda item: (-item[1], item[0]))[:MAX_NEW_NAMES]
        return {"counts": self.counts.tolist(), "missing": self.missing, "new": dict(sorted(most))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Histogram:
        """Return the histogram that `to_json` wrote."""
        return cls(np.array(value["counts"], np.int64), value["missing"], dict(value["new"]))


def count_column(column: pa.Array, bins: Mapping[str, Any]) -> Histogram:
    """Count one feature's rows in the bins that the reference has for it."""
    if bins["kind"] == "category":
        names = column.dictionary.to_pylist()
        *rows, missing = count_codes(fill_nulls(column.indices, len(names)), len(names) + 1).tolist()
        by_name = {name: count for name, count in zip(names, rows, strict=True) if count}
        new = {name: count for name, count in by_name.items() if name not in bins["values"]}
        known = [by_name.get(value, 0) for value in bins["values"]]
        return Histogram(np.array([*known, sum(new.values())], np.int64), missing, new)
    step = max(1, len(column) // SAMPLED_ROWS)
    counts = np.bincount(assign_bins(column, bins, step), minlength=count_bins(bins) + 1)[:-1] * step
    return Histogram(counts, int(column.null_count))


def count_codes(codes: Codes, size: int) -> Rows:
    """Count how often each code below `size` occurs."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(codes), CHUNK_ROWS):
        chunk = codes[start : start + CHUNK_ROWS]
        if size <= FEW_CODES:  # one comparison per code takes a third of the time
            counts += [np.count_nonzero(chunk == code) for code in range(size)]
        else:
            counts += np.bincount(chunk, minlength=size)
    return counts


def count_bins(bins: Mapping[str, Any]) -> int:
    """Return the number of bins, without the one for missing values."""
    return {"category": len(bins.get("values", ())) + 1, "hour": HOURS}.get(bins["kind"]) or len(bins["starts"])


def assign_bins(column: pa.Array, bins: Mapping[str, Any], step: int = 1) -> Codes:
    """Return the bin of every step-th row; missing values get `count_bins(bins)`."""
    if bins["kind"] == "hour":
        times = read_microseconds(column, NO_TIME)[::step]
        return np.where(times == NO_TIME, np.int32(HOURS), hour_of_day(times))
    if bins["kind"] == "number":
        bin_of_code = np.searchsorted(bins["starts"], np.arange(CELLS), side="right") - 1
        codes = assign_cells(read_numbers(column)[::step], bins["low"], bins["high"])
    else:
        names, place = column.dictionary.to_pylist(), {value: i for i, value in enumerate(bins["values"])}
        bin_of_code = np.array([place.get(name, len(place)) for name in names], np.int64)
        codes = fill_nulls(column.indices, len(names))[::step]
    table: Codes = np.append(bin_of_code, count_bins(bins)).astype(np.int32)
    return table.take(codes)


def read_numbers(column: pa.Array) -> Floats:
    """Return a column's values as doubles, missing ones as NaN."""
    doubles = column.cast(pa.float64())
    return view_values(doubles.fill_null(nan) if doubles.null_count else doubles)


def assign_cells(values: Floats, low: float, high: float) -> Codes:
    """Return the cell of each value; values beyond the ends get the outer cells, NaN gets CELLS."""
    scaled = np.clip(values, low, high)
    scaled -= low
    scaled *= CELLS / (high - low) if high > low else 0.0
    np.minimum(scaled, CELLS - 1, out=scaled)
    np.copyto(scaled, CELLS, where=np.isnan(scaled))
    return scaled.astype(np.int32)
