"""How far a month's rows are from those that a model was fitted on: the population stability index (PSI).

PSI is the sum over bins of (p - q) ln(p / q), p and q the shares of a bin (Kullback and Leibler's divergence, both
ways). Below 0.1 counts as stable (Siddiqi 2006, "Credit Risk Scorecards"), whatever the number of rows: with millions
of them any difference is significant. What days of the reference itself differ by is not drift, either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tipline.evaluation import histograms, times
from tipline.evaluation.histograms import CELLS
from tipline.evaluation.intervals import MIN_DAYS
from tipline.monitoring.counts import BANDS, assign_band

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from tipline.evaluation.histograms import Histogram
    from tipline.evaluation.metrics import Counted
    from tipline.model.pyfunc import Codes, Floats, Probabilities

BINS = 10
TAIL = 0.001
DRAWS = 500
QUANTILE = 0.99
LARGE = 0.1


def build_reference(rows: pa.RecordBatch, spec: Mapping[str, Any], scores: Probabilities) -> dict[str, Any]:
    """What later months are compared with: bins and rows of each feature and of the score.

    Parameters
    ----------
    rows
        Those that the model is fitted on.
    spec
        model.json so far: `features`, `time`.

    Returns
    -------
    dict
        `rows`, `days`, `features` and `score`; of these two the bins, `counts` (the last one of missing values) and
        `psi_bound`, the 99% quantile of the PSI between days drawn from the reference, null under MIN_DAYS days.
    """
    days = times.rank_values(times.read_days(rows[spec["time"]])) if "time" in spec else np.zeros(len(rows), np.int32)
    features = {}
    for feature in spec["features"]:
        bins = bins_of(rows[feature["name"]], feature["kind"])
        codes = histograms.assign_bins(rows[feature["name"]], bins)
        features[feature["name"]] = bins | described(codes, days, histograms.count_bins(bins) + 1)
    starts = equal_starts(np.bincount(assign_band(scores), minlength=BANDS))
    of_score = (np.searchsorted(starts, assign_band(scores), side="right") - 1).astype(np.int32)
    score = {"starts": starts, **described(of_score, days, len(starts))}
    return {"rows": len(rows), "days": int(days.max(initial=-1)) + 1, "features": features, "score": score}


def bins_of(column: pa.Array, kind: str) -> dict[str, Any]:
    """The bins of a feature: values of a category, hours, or about BINS bins of about as many rows of a number."""
    if kind == "category":
        return {"kind": kind, "values": sorted(set(column.drop_null().unique().to_pylist()))}
    if kind == "hour":
        return {"kind": kind}
    values = histograms.read_numbers(column)
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [TAIL, 1 - TAIL]).tolist() if len(values) else (0.0, 0.0)
    # A cell and a half more at both ends: what is beyond them is apart from a value that many rows have there.
    margin = 1.5 * (high - low or 1.0) / (CELLS - 3)
    low, high = low - margin, high + margin
    starts = equal_starts(np.bincount(histograms.assign_cells(values, low, high), minlength=CELLS))
    return {"kind": kind, "low": low, "high": high, "starts": starts}


def equal_starts(counts: np.ndarray[Any, np.dtype[np.int64]]) -> list[int]:
    """Where runs of cells begin that hold about a tenth of the rows each; a cell that alone does is its own run."""
    total = counts.sum()
    ends = np.searchsorted(np.cumsum(counts), np.arange(1, BINS) / BINS * total) if total else []
    heavy = np.flatnonzero(counts * BINS >= max(total, 1))
    starts = {0, *(int(end) + 1 for end in ends), *heavy.tolist(), *(heavy + 1).tolist()}
    return sorted(start for start in starts if start < len(counts))


def described(codes: Codes, days: Codes, size: int) -> dict[str, Any]:
    """Rows by bin, and how far days drawn at random are from them."""
    by_day = np.bincount(days * size + codes, minlength=(int(days.max(initial=0)) + 1) * size).reshape(-1, size)
    return {"counts": by_day.sum(axis=0).tolist(), "psi_bound": bootstrap_bound(by_day)}


def bootstrap_bound(by_day: Counted) -> float | None:
    """The 99% quantile of the PSI between two draws of as many days, with replacement; None of too few days."""
    days = len(by_day)
    if days < MIN_DAYS:
        return None
    generator = np.random.default_rng(0)
    # Two at a time: against the reference itself, what it has by chance would not count.
    one, other = (generator.multinomial(days, np.full(days, 1 / days), DRAWS) @ by_day for _ in range(2))
    return float(np.quantile(compute_psi(one, other), QUANTILE))


def compute_psi(expected: Any, found: Any) -> Floats:  # noqa: ANN401 (whatever numpy takes)
    """The population stability index of rows by bin, along the last axis, against those of the reference.

    Half a row of the reference is added to each bin, to the other's shares as much: an empty bin costs what one row in
    the reference could have, not infinity (Krichevsky and Trofimov 1981, "The performance of universal encoding").
    """
    expected, found = np.asarray(expected, float), np.asarray(found, float)
    share = 0.5 / np.maximum(expected.sum(axis=-1, keepdims=True), 1)
    one, other = (rows / np.maximum(rows.sum(axis=-1, keepdims=True), 1) + share for rows in (expected, found))
    values: Floats = ((other - one) * np.log(other / one)).sum(axis=-1)
    return values


def scale_histogram(histogram: Histogram, rows: int) -> list[float]:
    """Rows by bin, those with a missing value last; hours and numbers, seen in some rows only, stand for all."""
    seen = int(histogram.counts.sum())
    scale = (rows - histogram.missing) / seen if seen else 0.0
    return [*(histogram.counts * scale).tolist(), histogram.missing]


def judge_drift(of_reference: Mapping[str, Any], found: list[float]) -> dict[str, Any]:
    """PSI, its bound and whether it is flagged: null without rows, or where the reference has no bound."""
    limit = of_reference["psi_bound"]
    value = float(compute_psi(of_reference["counts"], found)) if sum(found) else None
    flagged = None if value is None or limit is None else bool(value >= LARGE and value > limit)
    return {"psi": value, "psi_bound": limit, "flagged": flagged}
