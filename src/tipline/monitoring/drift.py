"""Measure how far a month's rows are from a model's training rows with the population stability index (PSI).

PSI is the sum over bins of (p - q) ln(p / q), with p and q the shares of a bin. Below 0.1 counts as stable for any
number of rows (Siddiqi 2006, "Credit Risk Scorecards"): between millions of rows, every difference is significant.
Differences that are usual between days of the reference are no drift either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tipline.arrays import Codes, Floats, Probabilities, Values
from tipline.evaluation import metrics
from tipline.evaluation.intervals import MIN_DAYS
from tipline.monitoring import counts

BINS = 10
MARGIN = 1e-6  # more than the error of a float32
DRAWS = 500
QUANTILE = 0.99
LARGE = 0.1
# Share of the model's gain over the overall rate. The best real feature that is not in the baseline reaches a small
# part of it; one that gives the label away reaches all of it.
SUSPICIOUS = 0.9


def build_reference(
    rows: pa.RecordBatch, spec: Mapping[str, Any], scores: Probabilities, columns: pa.RecordBatch
) -> dict[str, Any]:
    """Describe the training rows, so that later months can be compared with them.

    `spec` is model.json so far, `columns` are those that the preprocessing sees. Features and score have bins, `counts`
    by bin (missing values last), and `psi_bound`, which is None under MIN_DAYS days.
    """
    days, features = metrics.rank_values(metrics.read_days(rows[spec["time"]])), {}
    for feature in spec["features"]:
        column, bins = columns[feature["name"]], {"kind": feature["kind"]}
        if bins["kind"] == "category":
            bins["values"] = sorted(set(column.drop_null().unique().to_pylist()))
        elif bins["kind"] == "number":
            values = counts.read_numbers(column)
            bins["edges"] = choose_edges(values[np.isfinite(values)])
        codes, size = counts.assign_bins(column, bins)
        features[feature["name"]] = bins | count_by_day(codes, days, size + 1)
    bands = counts.assign_band(scores)
    edges = choose_edges(bands)
    codes = np.searchsorted(edges, bands, side="right").astype(np.int32)
    score = {"edges": edges, **count_by_day(codes, days, len(edges) + 1)}
    return {"rows": len(rows), "days": int(days.max()) + 1, "features": features, "score": score}


def choose_edges(column: Values) -> list[float]:
    """Return where bins with about a tenth of the rows begin, but the first; a value with a tenth has its own bin."""
    if not len(column):
        return []
    values, rows = np.unique(column, return_counts=True)
    ends = np.searchsorted(np.cumsum(rows), np.arange(1, BINS) / BINS * rows.sum())
    heavy = np.flatnonzero(rows * BINS >= rows.sum())
    # Beside the values, so that those of a month which are rounded otherwise stay in their bins.
    margin = np.maximum(MARGIN * np.abs(values), np.finfo(float).tiny)
    edges: list[float] = np.unique([*(values - margin)[heavy], *(values + margin)[[*ends, *heavy]]]).tolist()
    return edges


def count_by_day(codes: Codes, days: Codes, size: int) -> dict[str, Any]:
    """Return the rows by bin, and the 99% quantile of the PSI between two samples of days with replacement."""
    n_days, bound = int(days.max()) + 1, None
    by_day = np.bincount(days * size + codes, minlength=n_days * size).reshape(n_days, size)
    if n_days >= MIN_DAYS:
        generator = np.random.default_rng(0)
        # Two samples, because the reference itself differs by chance, too.
        one, other = (generator.multinomial(n_days, np.full(n_days, 1 / n_days), DRAWS) @ by_day for _ in range(2))
        bound = float(np.quantile(compute_psi(one, other), QUANTILE))
    return {"counts": by_day.sum(axis=0).tolist(), "psi_bound": bound}


def compute_psi(expected: Any, observed: Any) -> Floats:  # noqa: ANN401 (whatever numpy takes)
    """Return the PSI between rows by bin of the reference and of a month, along the last axis.

    Each bin gets the share of half a row of the reference on top, so that an empty one does not cost infinity
    (Krichevsky and Trofimov 1981, "The performance of universal encoding").
    """
    expected, observed = np.asarray(expected, float), np.asarray(observed, float)
    share = 0.5 / np.maximum(expected.sum(axis=-1, keepdims=True), 1)
    q, p = (rows / np.maximum(rows.sum(axis=-1, keepdims=True), 1) + share for rows in (expected, observed))
    psi: Floats = ((p - q) * np.log(p / q)).sum(axis=-1)
    return psi


def judge_drift(reference: Mapping[str, Any], rows: Sequence[float]) -> dict[str, Any]:
    """Return the PSI, its bound and whether it is flagged; None without rows or if the reference has no bound."""
    bound = reference["psi_bound"]
    psi = float(compute_psi(reference["counts"], rows)) if sum(rows) else None
    flagged = None if psi is None or bound is None else bool(psi >= LARGE and psi > bound)
    return {"psi": psi, "psi_bound": bound, "flagged": flagged}


def measure_drift(month: counts.Counts, reference: Mapping[str, Any]) -> dict[str, Any]:
    """Return the drift of each feature and of the score, missing rates and new categories."""
    features = {}
    for name, expected in reference["features"].items():
        histogram = month.histograms.get(name) or counts.Histogram(np.zeros(1, np.int64))
        counted = int(histogram.counts.sum())
        scale = (month.rows - histogram.missing) / counted if counted else 0.0  # large blocks count a sample
        features[name] = {
            **judge_drift(expected, [*(histogram.counts * scale).tolist(), histogram.missing]),
            "missing_rate": metrics.divide_or_none(histogram.missing, month.rows),
            "reference_missing_rate": metrics.divide_or_none(expected["counts"][-1], reference["rows"]),
            "new": histogram.new,
        }
    edges = reference["score"]["edges"]
    codes = np.searchsorted(edges, np.arange(counts.BANDS), side="right")
    rows = np.bincount(codes, month.bands.sum(axis=1), len(edges) + 1)
    return {"features": features, "score": judge_drift(reference["score"], rows.tolist())}


def find_leaks(
    trips: pa.RecordBatch, spec: Mapping[str, Any], losses: Probabilities | Floats, columns: pa.RecordBatch
) -> list[str]:
    """Return a warning for each feature that alone does nearly as well as the model, the worst first.

    A feature alone predicts the rate of its bin in the model's `reference`, mixed with one row of the overall rate.
    """
    labels, _ = metrics.read_labels(trips, spec["target"])
    rate = labels.mean()
    overall = float(metrics.compute_log_loss(np.full(len(trips), rate), labels).mean())
    gain = overall - float(losses.mean(dtype=np.float64))
    if gain <= metrics.NEXT_TO_NOTHING:
        return []
    shares = {}
    for name, bins in spec["reference"]["features"].items():
        codes, _ = counts.assign_bins(columns[name], bins)
        rates = (np.bincount(codes, labels) + rate) / (np.bincount(codes) + 1)
        shares[name] = (overall - float(metrics.compute_log_loss(rates.take(codes), labels).mean())) / gain
    return [
        f"{name} alone reaches {share:.0%} of the model's gain over the overall rate. "
        "Check that it is known before the outcome."
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
        if share >= SUSPICIOUS and name not in spec["baseline"]["by"]
    ]
