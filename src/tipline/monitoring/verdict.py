"""Summarize a month's counts: figures with intervals by day, calibration, drift, and whether to keep the model."""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tipline.arrays import Floats
from tipline.evaluation.baseline import compute_rates, sum_group_loss
from tipline.evaluation.intervals import Ratio, find_shortage
from tipline.evaluation.metrics import Counted, compute_skill, divide_or_none
from tipline.monitoring import causes, drift, estimate
from tipline.monitoring.counts import BANDS, OTHER, Counts, Sums, group_bands, sum_baseline_loss

CALIBRATION_GROUPS = 10
NAMED_FEATURES = 5  # in a sentence, those that drifted most
NESTED = ("groups", "calibration", "drift", "cause", "unusual")  # not in months.csv


def summarize_month(counts: Counts, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return all figures of a month by name; undefined ones are None.

    `spec` is model.json of the model that scored it. Names with `refitted` compare with the baseline refitted on this
    month, leaving out the day that it predicts. `_low` and `_high` are one-sided 95% bounds by day, together a 90%
    interval, and None without enough data.
    """
    baseline, groups = spec["baseline"], counts.groups()
    days, dated = sort_days(counts.days)
    total, *daily = (sum(one.values(), Sums()) for one in (groups, *days))
    losses = np.array([day.loss for day in daily])
    baseline_losses = np.array([sum_baseline_loss(baseline, day) for day in days])
    refitted_losses = np.array(refit_daily_losses(days, groups, baseline.get("smoothing", 0.0)))
    refitted_loss = divide_or_none(sum(refitted_losses.tolist()), total.rows) if len(days) > 1 else None
    drifts = drift.measure_drift(counts, spec["reference"]) if "reference" in spec else None
    month: dict[str, Any] = {
        **counts.figures(baseline),
        "days": dated,
        "refitted_log_loss": refitted_loss,
        "refitted_skill": compute_skill(divide_or_none(total.loss, total.rows), refitted_loss),
        "positive": total.positive if total.rows else None,
        "expected_positive": total.probability if total.rows else None,
        "excess_positive": total.positive - total.probability if total.rows else None,
    }
    excess, rows = np.array([(day.positive - day.probability, day.rows) for day in daily]).reshape(-1, 2).T
    shortage = find_shortage(baseline_losses, dated, count_surprises(counts, baseline))
    for name, numerators, denominators, scale in (
        ("skill", baseline_losses - losses, baseline_losses, 1),
        ("refitted_skill", refitted_losses - losses, refitted_losses, 1),
        ("excess_positive", excess, rows, total.rows),
    ):
        bounds = (None, None) if shortage else bound_ratio(month[name], numerators[:dated], denominators[:dated], scale)
        month[f"{name}_low"], month[f"{name}_high"] = bounds
    judged = {**drifts["features"], "score": drifts["score"]} if drifts else {}
    drifted = sorted((name for name, one in judged.items() if one["flagged"]), key=lambda name: -judged[name]["psi"])
    month["drifted"] = "; ".join(drifted)
    month["groups"] = {name: summarize_group(name, sums, total, baseline) for name, sums in sorted(groups.items())}
    month |= {"calibration": compute_calibration(counts.bands), "drift": drifts}
    month["cause"] = causes.find_cause(month, baseline, partial(measure_skill, counts, baseline))
    by = " and ".join(baseline["by"])
    verdict, reason = judge_month(month, by, shortage)
    if month["cause"]:
        reason += " " + causes.format_cause(month["cause"], by)
    if advice := causes.ADVICE.get(causes.CHECK_SOURCE if verdict == causes.KEEP and month["cause"] else verdict):
        reason += f" Advice: {advice}."
    if drifted:
        more = f" and {len(drifted) - NAMED_FEATURES} more" if len(drifted) > NAMED_FEATURES else ""
        names = ", ".join(drifted[:NAMED_FEATURES]) + more
        reason += f" Drift in {names}; drift alone does not change the verdict."
    month |= estimate.estimate_month(counts, spec, month)
    return {**month, "verdict": verdict, "reason": reason + estimate.describe_estimate(month)}


def sort_days(days: Mapping[str, Mapping[str, Sums]]) -> tuple[list[Mapping[str, Sums]], int]:
    """Return days in order of time, and how many they are; rows without a day come last and are none."""
    names = sorted(days.keys(), key=lambda name: math.inf if name == OTHER else int(name))
    return [days[name] for name in names], len(days.keys() - {OTHER})


def bound_ratio(
    value: float | None, numerators: Floats, denominators: Floats, scale: float = 1
) -> tuple[float | None, float | None]:
    """Return the one-sided 95% bounds of a ratio by day around a value, None where the scatter is not known."""
    ratio = Ratio.estimate(numerators, denominators)
    if value is None or math.isnan(ratio.error):
        return None, None
    low, high = ratio.bounds()
    return value + (low - ratio.value) * scale, value + (high - ratio.value) * scale


def measure_skill(counts: Counts, baseline: Mapping[str, Any], without: Collection[str]) -> dict[str, float | None]:
    """Return the skill of a month without some of its groups, and its bounds."""
    kept = {day: {name: groups[name] for name in groups if name not in without} for day, groups in counts.days.items()}
    rest = Counts(days={day: groups for day, groups in kept.items() if groups})
    days, dated = sort_days(rest.days)
    losses = np.array([sum(sums.loss for sums in groups.values()) for groups in days])
    units = np.array([sum_baseline_loss(baseline, groups) for groups in days])
    skill, shortage = rest.figures(baseline)["skill"], find_shortage(units, dated, count_surprises(rest, baseline))
    low, high = (None, None) if shortage else bound_ratio(skill, (units - losses)[:dated], units[:dated])
    return {"skill": skill, "skill_low": low, "skill_high": high}


def count_surprises(counts: Counts, baseline: Mapping[str, Any]) -> int:
    """Count the rows whose outcome the baseline finds less likely."""
    rates = baseline["rates"]
    return sum(
        one.rows - one.positive if rates.get(name, baseline["overall"]) > 0.5 else one.positive  # noqa: PLR2004
        for name, one in counts.groups().items()
    )


def refit_daily_losses(days: Sequence[Mapping[str, Sums]], total: Mapping[str, Sums], smoothing: float) -> list[float]:
    """Return each day's log-loss of the baseline fitted on the other days: fitted on all, it would know the answers."""
    losses = []
    for day in days:
        own = {name: day.get(name, Sums()) for name in total}
        rest = {name: (sums.rows - own[name].rows, sums.positive - own[name].positive) for name, sums in total.items()}
        losses.append(sum_baseline_loss(compute_rates(rest, smoothing), day))
    return losses


def summarize_group(name: str, sums: Sums, total: Sums, baseline: Mapping[str, Any]) -> dict[str, Any]:
    rows, positive, probability, loss = sums
    means = {"positive_rate": positive / rows, "mean_probability": probability / rows, "log_loss": loss / rows}
    baseline_loss = sum_group_loss(baseline, name, rows, positive)
    shares = {"row_share": rows / total.rows, "loss_share": loss / max(total.loss, 1e-300)}
    skill = compute_skill(loss / rows, baseline_loss / rows)
    return {"rows": rows, **shares, **means, "skill": skill, "excess_loss": loss - baseline_loss}


def compute_calibration(bands: Counted) -> list[dict[str, Any]]:
    """Return predicted and observed positive rates of up to ten groups of rows; a score is the middle of its band."""
    middles, rows = (np.arange(BANDS) + 0.5) / BANDS, bands[:, :2].sum(axis=1)
    group = group_bands(rows, CALIBRATION_GROUPS)
    sums = [np.bincount(group, weights).tolist() for weights in (rows, rows * middles, bands[:, 1])]
    return [
        {"rows": int(count), "predicted": expected / count, "observed": positive / count}
        for count, expected, positive in zip(*sums, strict=True)
        if count
    ]


def judge_month(month: Mapping[str, Any], by: str, shortage: str | None) -> tuple[str, str]:
    """Return the verdict and the reason for it in a sentence. Only skill decides; `shortage` is why it cannot."""
    if not month["labelled_rows"]:
        return causes.NO_LABELS, "No labels are known yet, so the scores cannot be judged."
    if month["skill"] is None:
        return causes.KEEP, f"The positive rate by {by} leaves nothing to gain, so skill is undefined."
    if month["skill_high"] is None:
        return causes.KEEP, f"Not enough data: {shortage}. The skill of these rows is {month['skill']:.1%}."
    verdict, name, what = causes.KEEP, "skill", f"the positive rate by {by}"
    if month["skill_high"] < 0:
        words, verdict = "Significantly worse than", causes.choose_verdict(month)
    elif (month["refitted_skill_high"] or 0) < 0:
        words, verdict, name = "Significantly worse than", causes.choose_verdict(month), "refitted_skill"
        what = f"this month's positive rate by {by} (leave-one-day-out)"
    elif month["skill_low"] > 0:
        words = "Significantly better than"
    else:
        words = "Not significantly different from"
    skill, low, high = (month[f"{name}{bound}"] for bound in ("", "_low", "_high"))
    return verdict, f"{words} {what}: skill {skill:.1%} ({low:.1%} to {high:.1%})."
