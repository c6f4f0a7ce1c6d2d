"""Warn about a feature that alone does nearly as well as the model: it may be known only after the outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tipline.evaluation.histograms import assign_bins
from tipline.evaluation.metrics import NEXT_TO_NOTHING, compute_log_loss, read_labels
from tipline.ingest.columns import get_baseline_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from tipline.model.pyfunc import Floats, Probabilities

# Share of the model's gain over the overall rate. The best real feature that is not in the baseline reaches a small
# part of it; one that gives the label away reaches all of it.
SUSPICIOUS = 0.9
SMOOTHING = 1.0  # rows of the overall rate that the rate of each bin is mixed with


def measure_columns_alone(
    rows: pa.RecordBatch, spec: Mapping[str, Any], losses: Probabilities | Floats
) -> list[dict[str, Any]]:
    """Return each `feature` and the `share` of the model's gain over the overall rate that it reaches alone.

    A feature alone predicts the rate of its bin in the model's `reference`. `losses` are the model's. The largest share
    comes first; the list is empty if the model gains nothing.
    """
    labels, _ = read_labels(rows, spec["target"])
    rate = labels.mean()
    overall = float(compute_log_loss(np.full(len(rows), rate), labels).mean())
    gain = overall - float(losses.mean(dtype=np.float64))
    if gain <= NEXT_TO_NOTHING:
        return []
    shares = []
    for name, bins in spec["reference"]["features"].items():
        codes = assign_bins(rows[name], bins)
        rates = (np.bincount(codes, labels) + SMOOTHING * rate) / (np.bincount(codes) + SMOOTHING)
        alone = float(compute_log_loss(rates.take(codes), labels).mean())
        shares.append({"feature": name, "share": (overall - alone) / gain})
    return sorted(shares, key=lambda one: (-one["share"], one["feature"]))


def format_warnings(shares: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each suspicious feature. Columns of the baseline may do as well as the model."""
    known = get_baseline_columns(spec["baseline"])
    return [
        f"{one['feature']} alone reaches {one['share']:.0%} of the model's gain over the overall rate. "
        "Check that it is known before the outcome."
        for one in shares
        if one["share"] >= SUSPICIOUS and one["feature"] not in known
    ]
