"""The rule that a model has to beat: the rate of positive labels by the values of some categories.

The rate by one feature is such a rule, too. If it does nearly as well as the model, it may give the label away.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from tipline.evaluation.histograms import assign_bins
from tipline.evaluation.metrics import NEXT_TO_NOTHING, compute_log_loss, read_labels
from tipline.ingest.columns import get_baseline_columns
from tipline.model.pyfunc import fill_nulls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from tipline.model.pyfunc import Codes, Floats, Probabilities

SMOOTHING = 10.0  # rows of the overall rate that the rate of each group is mixed with
# Share of the model's gain over the overall rate. The best real feature that is not in the baseline reaches a small
# part of it; one that gives the label away reaches all of it.
SUSPICIOUS = 0.9
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
    rows, positive = np.bincount(codes, None, len(names)), np.bincount(codes, labels, len(names))
    counts = {name: (int(row), int(yes)) for name, row, yes in zip(names, rows, positive, strict=True)}
    return {"by": list(by), "smoothing": SMOOTHING, **compute_rates(counts, SMOOTHING)}


def compute_rates(counts: Mapping[str, tuple[int, int]], smoothing: float) -> dict[str, Any]:
    """Compute `overall` and `rates` from rows and positive rows by group; groups without rows have no rate."""
    counts = {name: counted for name, counted in sorted(counts.items()) if counted[0]}
    overall = sum(positive for _, positive in counts.values()) / max(sum(rows for rows, _ in counts.values()), 1)
    rates = {name: (yes + smoothing * overall) / (rows + smoothing) for name, (rows, yes) in counts.items()}
    return {"overall": overall, "rates": rates}


def get_rate(baseline: Mapping[str, Any], name: str) -> float:
    """Return the rate of a group."""
    return float(baseline["rates"].get(name, baseline["overall"]))


def sum_group_loss(baseline: Mapping[str, Any], name: str, rows: float, positive: float) -> float:
    """Return the sum of the baseline's log-losses over rows of a group."""
    yes, no = compute_log_loss(np.full(2, get_rate(baseline, name)), np.array([True, False]))
    return float(positive * yes + (rows - positive) * no)


def predict_baseline(trips: pa.RecordBatch, baseline: Mapping[str, Any]) -> Floats:
    """Return the baseline's probability for each row."""
    names, codes = group_rows(trips, get_baseline_columns(baseline))
    rates: Floats = np.array([get_rate(baseline, name) for name in names]).take(codes)
    return rates


def find_leaks(trips: pa.RecordBatch, spec: Mapping[str, Any], losses: Probabilities | Floats) -> list[str]:
    """Return a warning for each feature that alone does nearly as well as the model, the worst first.

    A feature alone predicts the rate of its bin in the model's `reference`, mixed with one row of the overall rate.
    `losses` are the model's. Columns of the baseline may do as well as the model.
    """
    labels, _ = read_labels(trips, spec["target"])
    rate = labels.mean()
    overall = float(compute_log_loss(np.full(len(trips), rate), labels).mean())
    gain = overall - float(losses.mean(dtype=np.float64))
    if gain <= NEXT_TO_NOTHING:
        return []
    shares = {}
    for name, bins in spec["reference"]["features"].items():
        codes = assign_bins(trips[name], bins)
        rates = (np.bincount(codes, labels) + rate) / (np.bincount(codes) + 1)
        shares[name] = (overall - float(compute_log_loss(rates.take(codes), labels).mean())) / gain
    return [
        f"{name} alone reaches {share:.0%} of the model's gain over the overall rate. "
        "Check that it is known before the outcome."
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
        if share >= SUSPICIOUS and name not in get_baseline_columns(spec["baseline"])
    ]
