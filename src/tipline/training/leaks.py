"""A feature that alone does nearly as well as the whole model may be known only after the fact: it is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tipline.evaluation import histograms, metrics
from tipline.ingest.columns import get_baseline_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from tipline.evaluation.metrics import Labels
    from tipline.model.pyfunc import Codes, Floats, Probabilities

# Of what the model gains over the overall rate. Next to the baseline's columns, whose part is known, a real model's
# best feature reaches a small part of it; one that tells the target reaches all of it, and more.
SUSPICIOUS = 0.9
SMOOTHING = 1.0


def measure_columns_alone(
    rows: pa.RecordBatch, spec: Mapping[str, Any], losses: Probabilities | Floats
) -> list[dict[str, Any]]:
    """How much of the model's gain over the overall tip rate each feature reaches alone, the most first.

    Parameters
    ----------
    rows
        Those that the model is fitted on; their target is known.
    spec
        model.json with `reference`: a feature alone is the tip rate of its bin there.
    losses
        The model's log-loss of each row.

    Returns
    -------
    list
        `feature` and `share`; empty where the model gains nothing.
    """
    labels, _ = metrics.read_labels(rows, spec["target"])
    overall = float(metrics.compute_log_loss(np.full(len(rows), labels.mean()), labels).mean())
    gain = overall - float(losses.mean(dtype=np.float64))
    if gain <= metrics.NEXT_TO_NOTHING:
        return []
    bins = spec["reference"]["features"]
    found = [
        {"feature": name, "share": (overall - alone(histograms.assign_bins(rows[name], bins[name]), labels)) / gain}
        for name in bins
    ]
    return sorted(found, key=lambda one: (-one["share"], one["feature"]))


def alone(codes: Codes, labels: Labels) -> float:
    """Mean log-loss of the tip rate of each row's bin, which a row of the overall rate smooths."""
    rows, tips = np.bincount(codes), np.bincount(codes, labels)
    rates = (tips + SMOOTHING * labels.mean()) / (rows + SMOOTHING)
    return float(metrics.compute_log_loss(rates.take(codes), labels).mean())


def format_warnings(found: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> list[str]:
    """A sentence about each feature that alone does nearly as well as the model, but for the baseline's columns."""
    known = get_baseline_columns(spec["baseline"])
    return [
        f"{one['feature']} alone reaches {one['share']:.0%} of what the model gains over the overall tip rate. "
        "Is it known before the trip is paid for?"
        for one in found
        if one["share"] >= SUSPICIOUS and one["feature"] not in known
    ]
