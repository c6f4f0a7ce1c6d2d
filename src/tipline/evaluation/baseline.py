"""The one-line rule that a model has to beat: the tip rate by a category, or by several together."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from tipline.evaluation.metrics import compute_log_loss, read_labels
from tipline.ingest.columns import get_baseline_columns
from tipline.model.pyfunc import fill_nulls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from tipline.model.pyfunc import Codes, Floats

# Rows of the overall rate that each group's own rate is mixed with.
SMOOTHING = 10.0
MISSING = "(missing)"
BETWEEN = " | "


def group_rows(trips: pa.RecordBatch, by: Sequence[str]) -> tuple[list[str], Codes]:
    """The groups of the rows, by name, and each row's place among them.

    A group is named by its values, ` | ` between them; a missing one is `(missing)`. There are names without rows.
    """
    values = [[*trips[column].dictionary.to_pylist(), MISSING] for column in by]
    codes = [fill_nulls(trips[column].indices, len(names) - 1) for column, names in zip(by, values, strict=True)]
    together = codes[0]
    for more, names in zip(codes[1:], values[1:], strict=True):
        together = together * np.int32(len(names)) + more
    return [BETWEEN.join(parts) for parts in itertools.product(*values)], together


def fit_baseline(trips: pa.RecordBatch, target: str, by: Sequence[str], smoothing: float = SMOOTHING) -> dict[str, Any]:
    """The tip rate by group, mixed with `smoothing` rows of the overall rate.

    Parameters
    ----------
    trips
        Prepared trips whose target is known.
    by
        The categories' columns.

    Returns
    -------
    dict
        `by`, `smoothing`, `overall`, and `rates`; a group that is not among them has the overall rate.
    """
    labels, _ = read_labels(trips, target)
    names, codes = group_rows(trips, by)
    rows, tips = (np.bincount(codes, weights, len(names)) for weights in (None, labels))
    rates = compute_rates(
        {name: (int(of), int(tip)) for name, of, tip in zip(names, rows, tips, strict=True)}, smoothing
    )
    return {"by": list(by), "smoothing": smoothing, **rates}


def compute_rates(rows_and_tips: Mapping[str, tuple[int, int]], smoothing: float) -> dict[str, Any]:
    """`overall` and `rates` of rows and tips by group; of groups without rows there is no rate."""
    there = {name: counted for name, counted in sorted(rows_and_tips.items()) if counted[0]}
    overall = sum(tips for _, tips in there.values()) / max(sum(rows for rows, _ in there.values()), 1)
    rates = {name: (tips + smoothing * overall) / (rows + smoothing) for name, (rows, tips) in there.items()}
    return {"overall": overall, "rates": rates}


def get_rate(baseline: Mapping[str, Any], name: str) -> float:
    """The tip rate of a group."""
    return float(baseline["rates"].get(name, baseline["overall"]))


def sum_group_loss(baseline: Mapping[str, Any], name: str, rows: float, tips: float) -> float:
    """Sum of the baseline's log-losses over so many rows of a group, of which so many tipped."""
    yes, no = compute_log_loss(np.full(2, get_rate(baseline, name)), np.array([True, False]))
    return float(tips * yes + (rows - tips) * no)


def predict_baseline(trips: pa.RecordBatch, baseline: Mapping[str, Any]) -> Floats:
    """The baseline's probability of each row."""
    names, codes = group_rows(trips, get_baseline_columns(baseline))
    values: Floats = np.array([get_rate(baseline, name) for name in names]).take(codes)
    return values
