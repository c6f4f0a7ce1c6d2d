"""The rule that a model has to beat: the rate of positive labels by the values of some categories."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tipline.arrays import Codes, Floats, fill_nulls
from tipline.evaluation.metrics import EDGE, read_labels

SMOOTHING = 10.0  # rows of the overall rate that the rate of each group is mixed with
MISSING = "(missing)"
SEPARATOR = " | "


def group_rows(trips: pa.RecordBatch, by: Sequence[str]) -> tuple[list[str], Codes]:
    """Return the names of all groups, and the group of each row as a position among them.

    A group is named by its values, with ` | ` between them and `(missing)` for a missing one. Not all names have rows.
    """
    values = [[*trips[column].dictionary.to_pylist(), MISSING] for column in by]
    first, *more = (fill_nulls(trips[column].indices, len(names) - 1) for column, names in zip(by, values, strict=True))
    codes: Codes = first
    for column_codes, names in zip(more, values[1:], strict=True):
        codes = codes * np.int32(len(names)) + column_codes
    return [SEPARATOR.join(parts) for parts in itertools.product(*values)], codes


def fit_baseline(trips: pa.RecordBatch, target: str, by: Sequence[str]) -> dict[str, Any]:
    """Fit the smoothed rates on prepared trips whose target is known; a group without a rate gets the `overall` one."""
    labels, _ = read_labels(trips, target)
    names, codes = group_rows(trips, by)
    rows, positive = (np.bincount(codes, weights, len(names)).astype(int).tolist() for weights in (None, labels))
    counts = dict(zip(names, zip(rows, positive, strict=True), strict=True))
    return {"by": list(by), "smoothing": SMOOTHING, **compute_rates(counts, SMOOTHING)}


def compute_rates(counts: Mapping[str, tuple[int, int]], smoothing: float) -> dict[str, Any]:
    """Compute `overall` and `rates` from rows and positive rows by group; groups without rows have no rate."""
    counts = {name: counted for name, counted in sorted(counts.items()) if counted[0]}
    overall = sum(positive for _, positive in counts.values()) / max(sum(rows for rows, _ in counts.values()), 1)
    rates = {name: (yes + smoothing * overall) / (rows + smoothing) for name, (rows, yes) in counts.items()}
    return {"overall": overall, "rates": rates}


def sum_group_loss(baseline: Mapping[str, Any], name: str, rows: float, positive: float) -> float:
    """Return the sum of the baseline's log-losses over rows of a group."""
    rate = float(baseline["rates"].get(name, baseline["overall"]))
    yes, no = (-math.log(max(likelihood, float(EDGE))) for likelihood in (rate, 1 - rate))
    return positive * yes + (rows - positive) * no


def predict_baseline(trips: pa.RecordBatch, baseline: Mapping[str, Any]) -> Floats:
    names, codes = group_rows(trips, baseline["by"])
    rates: Floats = np.array([baseline["rates"].get(name, baseline["overall"]) for name in names], float)
    return rates.take(codes)
