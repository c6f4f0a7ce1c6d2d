"""Estimate how good a month's scores are before its labels arrive.

The model's reliability on validation rows says how often, and at which loss, scores of a bin come true:
confidence-based performance estimation (NannyML's CBPE), from the bands that scoring counts. It holds while
labels follow the scores as they did then. A significant gap to the realised loss is concept drift.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import stdtrit

from tipline.arrays import Probabilities
from tipline.evaluation import metrics
from tipline.evaluation.baseline import group_rows, predict_baseline, sum_group_loss
from tipline.evaluation.intervals import CONFIDENCE, MIN_DAYS
from tipline.monitoring.counts import BANDS, Counts, Sums, assign_band, group_bands

BINS = 20
CERTAIN = 0.995  # one-sided, by which a gap is concept drift: one month in a hundred by chance
MANY_NEW = 0.01
FIGURES = (
    *("estimated_log_loss", "estimated_auc", "estimated_skill", "estimated_skill_low", "estimated_skill_high"),
    *("estimate_unsafe", "excess_log_loss", "concept_drift"),
)


def measure_reliability(rows: pa.RecordBatch, spec: Mapping[str, Any], scores: Probabilities) -> dict[str, Any] | None:
    """Describe how scores of labelled rows came true, in bins of bands; None for rows of one label.

    The errors are standard deviations per row of realised minus estimated, by day; None under MIN_DAYS days.
    """
    labels, _ = metrics.read_labels(rows, spec["target"])
    if labels.all() or not labels.any():
        return None
    bands = assign_band(scores)
    # Bins have about the same sum of p (1 - p), and rows.
    by_band = np.bincount(bands, minlength=BANDS).astype(np.int64)
    found = np.flatnonzero(by_band)
    _, first = np.unique(group_bands(by_band, BINS)[found], return_index=True)
    starts = [0, *found[first[1:]].tolist()]
    codes = np.searchsorted(starts, bands, side="right") - 1
    losses, rates = metrics.compute_log_loss(scores, labels), predict_baseline(rows, spec["baseline"])
    counts, positive, loss = (np.bincount(codes, weights, len(starts)) for weights in (None, labels, losses))
    names, groups = group_rows(rows, spec["baseline"]["by"])
    members, yeses, sums = (np.bincount(groups, weights, len(names)) for weights in (None, labels, scores))
    rest = 1 - sums / np.maximum(members, 1)
    shifts = (yeses - sums) / np.maximum(sums * rest, metrics.NEXT_TO_NOTHING)
    expected = scores * (1 + (shifts * rest).take(groups))
    yes, no = (metrics.compute_log_loss(rates, np.full(len(rates), label)) for label in (True, False))
    # Of skill = 1 - loss / baseline_loss, to the first order.
    ratio = losses.sum(dtype=np.float64) / max(float(np.where(labels, yes, no).sum()), metrics.NEXT_TO_NOTHING)
    gaps = losses - (loss / counts).take(codes), (labels - expected) * (yes - no)
    days = metrics.rank_values(metrics.read_days(rows[spec["time"]]))
    daily = [np.bincount(days, gap).astype(float) for gap in (gaps[0], ratio * gaps[1] - gaps[0])]
    count, errors = len(daily[0]), list[float | None]([None, None])
    if count >= MIN_DAYS:
        errors = [float(np.sqrt(count / (count - 1) * (gap @ gap)) / len(rows) ** 0.5) for gap in daily]
    return {
        "starts": starts,
        "rows": counts.astype(int).tolist(),
        "positive": positive.astype(int).tolist(),
        "loss": loss.tolist(),
        "shifts": {names[i]: float(shifts[i]) for i in np.flatnonzero(members)},
        "days": count,
        "loss_error": errors[0],
        "skill_error": errors[1],
    }


def estimate_month(counts: Counts, spec: Mapping[str, Any], month: Mapping[str, Any]) -> dict[str, Any]:
    """Return the estimated figures of all rows, and whether the realised ones in `month` contradict them; or None."""
    found, reliability = dict[str, Any].fromkeys(FIGURES), spec.get("reliability")
    if not reliability or not counts.rows:
        return found
    places = np.searchsorted(reliability["starts"], np.arange(BANDS), side="right") - 1
    known = np.array(reliability["rows"], float)
    rate, loss = ((np.array(reliability[name]) / known).take(places) for name in ("positive", "loss"))
    rows, labelled = counts.bands.sum(axis=1), counts.bands[:, :2].sum(axis=1)
    estimated = float(rows @ loss) / counts.rows
    baseline_loss = estimate_baseline_loss(counts, spec) / counts.rows
    skill = metrics.compute_skill(estimated, baseline_loss)
    found |= {"estimated_log_loss": estimated, "estimated_skill": skill, "estimate_unsafe": list_doubts(counts, month)}
    found["estimated_auc"] = metrics.compute_auc(np.stack([rows * (1 - rate), rows * rate], axis=1))
    if skill is not None and reliability["skill_error"] is not None:
        width = compute_width(reliability, "skill_error", counts.rows, CONFIDENCE) / baseline_loss
        found |= {"estimated_skill_low": skill - width, "estimated_skill_high": skill + width}
    if month["log_loss"] is not None:
        expected = float(labelled @ loss) / int(labelled.sum())
        found["excess_log_loss"] = (month["log_loss"] - expected) / expected if expected else None
        if month["days"] >= MIN_DAYS and reliability["loss_error"] is not None:
            width = compute_width(reliability, "loss_error", int(labelled.sum()), CERTAIN)
            found["concept_drift"] = bool(abs(month["log_loss"] - expected) > width + metrics.NEXT_TO_NOTHING)
    return found


def estimate_baseline_loss(counts: Counts, spec: Mapping[str, Any]) -> float:
    """Return the baseline's expected loss if as many rows of each group are positive as its corrected scores say."""
    groups, total = counts.groups(), 0.0
    for name, sums in counts.unlabelled.items():
        groups[name] = groups.get(name, Sums()) + sums
    for name, one in groups.items():
        shift = spec["reliability"]["shifts"].get(name, 0.0)
        positive = one.probability * (1 + shift * (1 - one.probability / one.rows))
        total += sum_group_loss(spec["baseline"], name, one.rows, min(max(positive, 0.0), one.rows))
    return total


def compute_width(reliability: Mapping[str, Any], name: str, rows: int, confidence: float) -> float:
    """Return the half-width of a month's interval, which rows beyond the validation's do not narrow: days differ."""
    known = sum(reliability["rows"])
    quantile = float(stdtrit(reliability["days"] - 1, confidence))
    return quantile * float(reliability[name]) * math.sqrt(1 / min(rows, known) + 1 / known)


def list_doubts(counts: Counts, month: Mapping[str, Any]) -> str:
    """Return why the estimate is not to be trusted, in words: drift, and values that training did not have."""
    doubts = [f"drift in {month['drifted'].replace('; ', ', ')}"] if month["drifted"] else []
    for name, one in (month["drift"] or {"features": {}})["features"].items():
        share = int(counts.histograms[name].counts[-1]) / counts.rows if one["new"] else 0
        if share > MANY_NEW:
            doubts.append(f"{name} has values that training did not have in {share:.1%} of the rows")
    return "; ".join(doubts)


def describe_estimate(month: Mapping[str, Any]) -> str:
    """Return sentences for the reason: concept drift, and the estimate of a month that lacks labels."""
    text, skill, low = "", month["estimated_skill"], month["estimated_skill_low"]
    if month["concept_drift"]:
        excess = month["excess_log_loss"]
        where = "above" if excess > 0 else "below"
        text = f" Concept drift: the log-loss is {abs(excess):.0%} {where} what the scores and the reliability suggest."
    if skill is not None and month["labelled_rows"] < month["rows"]:
        bounds = "" if low is None else f" ({low:.1%} to {month['estimated_skill_high']:.1%})"
        of = " of all rows" if month["labelled_rows"] else ""
        text += f" Estimated skill{of} {skill:.1%}{bounds}, from the scores and the model's reliability on validation"
        text += " rows; labels decide."
        text += f" Estimate not trustworthy: {month['estimate_unsafe']}." if month["estimate_unsafe"] else ""
    return text
