"""Find which rows carry a month's loss, and what would help. The groups are those of the baseline."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from tipline.evaluation.metrics import LARGE_SHARE

MAX_NAMED_GROUPS = 3
KEEP, RETRAIN, RECALIBRATE, CHECK_SOURCE, NO_LABELS = "keep", "retrain", "recalibrate", "check source", "no labels"
ADVICE = {
    RETRAIN: "train on later months: sample.months in params.yaml",
    RECALIBRATE: "set train.calibration, and give a later month the role validation: params.yaml",
    CHECK_SOURCE: "check where these values come from, or train on months that have them",
}
Figures = Mapping[str, Any]


def find_cause(
    month: Figures, baseline: Figures, measure_skill: Callable[[Collection[str]], Figures]
) -> dict[str, Any] | None:
    """Return the groups that carry much of the loss: their shares of rows and loss, and the skill without them.

    These are values that training never had, if they carry a tenth of the loss or have all rows, or the one value that
    all rows have where training had several; otherwise, in a month that is significantly worse than the baseline, the
    group that costs most, if the month is not worse without it, as `measure_skill` measures it.
    """
    groups: Mapping[str, Figures] = month["groups"]
    unseen = [name for name in groups if name not in baseline["rates"]]
    cause = describe_groups(unseen, groups)
    if unseen and (cause["loss_share"] >= LARGE_SHARE or len(unseen) == len(groups)):
        return {**cause, "unseen": True, **measure_skill(unseen)}
    if len(groups) == 1 < len(baseline["rates"]):
        return {**describe_groups(groups, groups), "unseen": False, **measure_skill(groups)}
    if is_negative(month["skill_high"]):
        worst = max(groups, key=lambda name: groups[name]["excess_loss"])
        rest = measure_skill([worst])
        if rest["skill"] is not None and not is_negative(rest["skill_high"]):
            return {**describe_groups([worst], groups), "unseen": False, **rest}
    return None


def is_negative(bound: float | None) -> bool:
    return bound is not None and bound < 0


def describe_groups(names: Collection[str], groups: Mapping[str, Figures]) -> dict[str, Any]:
    shares = {share: sum(groups[name][share] for name in names) for share in ("row_share", "loss_share")}
    return {"groups": sorted(names, key=lambda name: -groups[name]["rows"]), **shares}


def format_cause(cause: Figures, by: str) -> str:
    """Return sentences about the rows of a cause; `by` names the baseline's columns."""
    names = cause["groups"]
    values = " or ".join(names[:MAX_NAMED_GROUPS])
    if len(names) > MAX_NAMED_GROUPS:
        values = f"one of {len(names)} values such as {names[0]}"
    share, never = cause["row_share"], ", never seen in training" if cause["unseen"] else ""
    if share == 1:
        return f"All rows have {by} {values}{never}."
    words = f"{share:.1%} of the rows have {by} {values}{never}; they carry {cause['loss_share']:.0%} of the loss."
    if cause["skill"] is None:
        return words
    low, high = cause["skill_low"], cause["skill_high"]
    bounds = f" ({low:.1%} to {high:.1%})" if low is not None else ""
    return f"{words} Without them: skill {cause['skill']:.1%}{bounds}."


def choose_verdict(month: Figures) -> str:
    """Choose what helps a month that is significantly worse than the baseline, or than this month's own rates.

    Checking the source, if the month is not worse without the values that training never had; a calibration, if the
    scores would beat the baseline with the positive rate of each group of scores; otherwise, a new model.
    """
    cause = month["cause"]
    if cause and cause["unseen"] and not is_negative(cause["skill_high"]):
        return CHECK_SOURCE
    best = min(month[name] for name in ("baseline_log_loss", "refitted_log_loss") if month[name] is not None)
    rows, rates = (np.array([group[name] for group in month["calibration"]]) for name in ("rows", "observed"))
    entropies = -sum(share * np.log(np.maximum(share, np.finfo(float).tiny)) for share in (rates, 1 - rates))
    return RECALIBRATE if len(rows) and np.average(entropies, weights=rows) < best else RETRAIN
