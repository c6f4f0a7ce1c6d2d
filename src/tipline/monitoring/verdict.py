"""What a month's counts say of the scores: figures, intervals by day, drift, and whether to keep the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tipline.errors import format_count
from tipline.evaluation import baseline as rule
from tipline.evaluation.intervals import MIN_DAYS, MIN_ROWS, Ratio
from tipline.evaluation.metrics import NEXT_TO_NOTHING, compute_skill, divide_or_none
from tipline.ingest.columns import get_baseline_columns
from tipline.monitoring import drift
from tipline.monitoring.counts import BANDS, OTHER, Sums, sum_baseline_loss, sum_groups

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tipline.evaluation.metrics import Counted
    from tipline.monitoring.counts import Counts

RELIABILITY_GROUPS = 10
KEEP, RETRAIN, NO_LABELS = "keep", "retrain", "no labels"
BOUNDS = ("low", "high")
NESTED = ("groups", "calibration", "drift")


def summarize_month(counts: Counts, spec: Mapping[str, Any]) -> dict[str, Any]:
    """All that monitoring tells of a month; what its rows do not tell is None.

    Parameters
    ----------
    counts
        Of the month.
    spec
        model.json of the model that scored it.

    Returns
    -------
    dict
        Plain values by name; `groups`, `calibration` and `drift` are nested. `refitted_`: over the baseline refitted on
        the month. `_low` and `_high`: one-sided 95% bounds by day, together an interval of 90%; None under MIN_DAYS
        days.
    """
    groups = counts.groups()
    total, of_other_days = sum_groups(groups), losses_of_other_days(counts, spec["baseline"])
    drift_found = drifts(counts, spec.get("reference"))
    found: dict[str, Any] = {
        **counts.figures(spec["baseline"]),
        **skill_bounds(
            "skill", counts, [sum_baseline_loss(spec["baseline"], groups) for groups in counts.days.values()]
        ),
        "days": len(counts.days.keys() - {OTHER}),
        "refitted_log_loss": (
            refitted := divide_or_none(sum(of_other_days), total.rows) if len(counts.days) > 1 else None
        ),
        "refitted_skill": compute_skill(divide_or_none(total.loss, total.rows), refitted),
        **skill_bounds("refitted_skill", counts, of_other_days),
        **tips(counts, total),
        "drifted": "; ".join(drifted(drift_found)),
        "groups": {name: of_group(name, sums, spec["baseline"]) for name, sums in sorted(groups.items())},
        "calibration": reliability(counts.bands),
        "drift": drift_found,
    }
    decision, reason = verdict(found, get_baseline_columns(spec["baseline"]))
    return {**found, "verdict": decision, "reason": reason}


def bounds(counts: Counts, name: str, numerators: list[float], denominators: list[float]) -> dict[str, float | None]:
    """The two one-sided 95% bounds of a ratio of sums by day; None of too few days, or where there is no ratio."""
    estimate = Ratio.estimate(np.array(numerators), np.array(denominators))
    there = len(counts.days.keys() - {OTHER}) >= MIN_DAYS and not math.isnan(estimate.error)
    values = (estimate.lower(), estimate.upper()) if there else (None, None)
    return {f"{name}_{bound}": value for bound, value in zip(BOUNDS, values, strict=True)}


def skill_bounds(name: str, counts: Counts, of_baseline: list[float]) -> dict[str, float | None]:
    """The bounds of the skill over a baseline that has these sums of log-losses by day."""
    days = [sum_groups(groups) for groups in counts.days.values()]
    if sum(of_baseline) < NEXT_TO_NOTHING * sum(day.rows for day in days):
        return dict.fromkeys((f"{name}_{bound}" for bound in BOUNDS), None)
    gains = [other - day.loss for other, day in zip(of_baseline, days, strict=True)]
    return bounds(counts, name, gains, of_baseline)


def losses_of_other_days(counts: Counts, baseline: Mapping[str, Any]) -> list[float]:
    """Of each day, the log-losses of the baseline refitted on the other days: its own would know the answers."""
    total, smoothing = counts.groups(), baseline.get("smoothing", 0.0)
    losses = []
    for groups in counts.days.values():
        own = {name: groups.get(name, Sums()) for name in total}
        others = {name: (of.rows - own[name].rows, of.tips - own[name].tips) for name, of in total.items()}
        losses.append(sum_baseline_loss(rule.compute_rates(others, smoothing), groups))
    return losses


def tips(counts: Counts, total: Sums) -> dict[str, float | None]:
    """Tips of the rows with a known target, those that the scores expected, and the difference with its bounds."""
    days = [sum_groups(groups) for groups in counts.days.values()]
    excess = [day.tips - day.probability for day in days]
    of_row = bounds(counts, "excess_tips", excess, [float(day.rows) for day in days])
    return {
        "tips": total.tips if total.rows else None,
        "expected_tips": total.probability if total.rows else None,
        "excess_tips": total.tips - total.probability if total.rows else None,
        **{name: None if value is None else value * total.rows for name, value in of_row.items()},
    }


def of_group(name: str, sums: Sums, baseline: Mapping[str, Any]) -> dict[str, Any]:
    """A group's rows with a known target, and how well they are scored; under MIN_ROWS it is not judged."""
    loss, of_baseline = sums.loss / sums.rows, rule.sum_group_loss(baseline, name, sums.rows, sums.tips) / sums.rows
    return {
        "rows": sums.rows,
        "tip_rate": sums.tips / sums.rows,
        "mean_probability": sums.probability / sums.rows,
        "log_loss": loss,
        "skill": compute_skill(loss, of_baseline) if sums.rows >= MIN_ROWS else None,
    }


def reliability(bands: Counted) -> list[dict[str, Any]]:
    """Predicted and realised tip rate of up to ten groups of rows, by score; a score counts as its band's middle.

    The groups have about the same variance p (1 - p) of the number of tips, and so are about as sure: of as many rows
    each, most would be of those that next to never tip.
    """
    middles, rows = (np.arange(BANDS) + 0.5) / BANDS, bands[:, :2].sum(axis=1)
    variance = rows * middles * (1 - middles)
    before = (np.cumsum(variance) - variance / 2) / max(variance.sum(), 1e-9)
    group = (before * RELIABILITY_GROUPS).astype(int)
    sums = [np.bincount(group, weights) for weights in (rows, rows * middles, bands[:, 1])]
    return [
        {"rows": int(of), "predicted": expected / of, "realised": tips / of}
        for of, expected, tips in zip(*(of_groups.tolist() for of_groups in sums), strict=True)
        if of
    ]


def drifts(counts: Counts, reference: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """PSI of each feature and of the score; missing values and new categories. None of a model without a reference."""
    if reference is None:
        return None
    features = {}
    for name, of_reference in reference["features"].items():
        histogram = counts.histograms.get(name)
        found = [] if histogram is None else drift.scale_histogram(histogram, counts.rows)
        features[name] = {
            **drift.judge_drift(of_reference, found),
            "missing_rate": divide_or_none(histogram.missing, counts.rows) if histogram else None,
            "reference_missing_rate": divide_or_none(of_reference["counts"][-1], reference["rows"]),
            "new": histogram.new if histogram else {},
        }
    rows = np.add.reduceat(counts.bands.sum(axis=1), reference["score"]["starts"])
    return {"features": features, "score": drift.judge_drift(reference["score"], rows.tolist())}


def drifted(found: Mapping[str, Any] | None) -> list[str]:
    """What is flagged."""
    if found is None:
        return []
    return [name for name, of in {**found["features"], "score": found["score"]}.items() if of["flagged"]]


def verdict(month: Mapping[str, Any], by: list[str]) -> tuple[str, str]:
    """Keep or retrain, by realised skill alone, and the reason in a sentence; flagged drift is told beside it."""
    decision, reason = realised(month, " and ".join(by))
    if month["drifted"]:
        reason += f" Drift: {month['drifted'].replace(';', ',')}; it does not decide."
    return decision, reason


def realised(month: Mapping[str, Any], by: str) -> tuple[str, str]:
    """What realised skill says."""
    if not month["labelled_rows"]:
        return NO_LABELS, "No row's target is known: nothing shows what the scores were worth."
    if month["skill"] is None:
        return KEEP, f"The tip rate by {by} leaves nothing to gain: skill says nothing here."
    if month["skill_high"] is None:
        days = f"on {format_count(month['days'], 'day')}" if month["days"] else "of a model without days"
        return KEEP, f"Skill {month['skill']:.1%} {days}: under {MIN_DAYS} days nothing is shown."
    if month["skill_high"] < 0:
        return RETRAIN, f"Shown worse than the tip rate by {by}: skill {ranged(month, 'skill')}."
    if (month["refitted_skill_high"] or 0) < 0:
        now = ranged(month, "refitted_skill")
        return RETRAIN, f"Shown worse than the month's own tip rate by {by} (of its other days): skill {now}."
    shown = "Shown better than" if month["skill_low"] > 0 else "Not shown better or worse than"
    return KEEP, f"{shown} the tip rate by {by}: skill {ranged(month, 'skill')}."


def ranged(month: Mapping[str, Any], name: str) -> str:
    """A figure with its bounds."""
    return f"{month[name]:.1%} ({month[name + '_low']:.1%} to {month[name + '_high']:.1%})"
