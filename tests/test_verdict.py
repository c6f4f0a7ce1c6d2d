"""A month's figures and its verdict, from counts."""

from typing import Any

import numpy as np
import pytest

from tipline.evaluation import baseline
from tipline.monitoring import causes, verdict
from tipline.monitoring.counts import BANDS, Counts, Sums, assign_band

BASELINE = {"by": ["payment_type"], "smoothing": 10, "overall": 0.2, "rates": {"cash": 0.1, "credit": 0.9}}
ROWS = {"cash": 70, "credit": 30}


def make_month(skill: float, days: int = 28, rates: dict[str, float] | None = None) -> Counts:
    """Make a month whose scores take this share off the losses of positive rates, by default the baseline's.

    Days differ by a tip, and by two points of skill.
    """
    rates = rates or {"cash": 0.1, "credit": 0.9}
    counts = Counts(rows=days * sum(ROWS.values()))
    for day in range(days):
        counts.days[str(day + 1)] = groups = {}
        for name, rate in rates.items():
            tips = round(ROWS[name] * rate) + ((-1) ** day if rate > 0 else 0)
            loss = baseline.sum_group_loss({"overall": 0, "rates": rates}, name, ROWS[name], tips)
            groups[name] = Sums(ROWS[name], tips, ROWS[name] * rate, (1 - skill + 0.02 * (-1) ** (day // 2)) * loss)
    return counts


def summarize(counts: Counts, **spec: Any) -> dict[str, Any]:
    return verdict.summarize_month(counts, {"baseline": BASELINE} | spec)


@pytest.mark.parametrize(
    ("skill", "expected", "reason"),
    [
        (0.1, "keep", "Significantly better than the positive rate by payment_type: skill 10"),
        (-0.1, "retrain", "Significantly worse than the positive rate by payment_type: skill -10.0% ("),
        (0.0, "keep", "Not significantly different from the positive rate by payment_type: skill "),
    ],
)
def test_the_verdict_rests_on_skill(skill: float, expected: str, reason: str) -> None:
    month = summarize(make_month(skill))
    assert (month["verdict"], month["skill"]) == (expected, pytest.approx(skill, abs=1e-3))
    assert month["reason"].startswith(reason)
    assert month["skill_low"] < month["skill"] < month["skill_high"]
    groups = month["groups"]
    assert (groups["cash"]["rows"], groups["cash"]["skill"]) == (1960, pytest.approx(skill, abs=1e-3))
    assert (groups["credit"]["rows"], groups["credit"]["skill"]) == (840, pytest.approx(skill, abs=1e-3))
    assert sum(group["row_share"] for group in groups.values()) == pytest.approx(1)
    assert sum(group["loss_share"] for group in groups.values()) == pytest.approx(1)
    assert groups["credit"]["positive_rate"] == pytest.approx(0.9)


def test_a_model_that_the_refitted_baseline_beats_is_to_be_retrained() -> None:
    # Far better than rates that no longer hold, worse than those that do.
    month = summarize(make_month(-0.2, rates={"cash": 0.3, "credit": 0.6}))
    assert month["skill_low"] > 0.05
    assert (month["verdict"], month["refitted_skill_high"] < 0) == ("retrain", True)
    assert "worse than this month's positive rate by payment_type (leave-one-day-out): skill -" in month["reason"]


@pytest.mark.parametrize(("days", "words"), [(0, ""), (1, "only 1 day to"), (13, "only 13 days to")])
def test_under_fourteen_days_a_month_is_not_judged(days: int, words: str) -> None:
    month = summarize(make_month(-0.5, days=days))
    names = [f"{name}_{bound}" for name in ("skill", "refitted_skill", "excess_positive") for bound in ("low", "high")]
    assert {month[name] for name in names} == {None}
    assert month["verdict"] == ("keep" if days else "no labels")
    assert words in month["reason"]
    assert summarize(make_month(-0.5, days=14))["verdict"] == "retrain"
    undated = summarize(Counts(days={"other": {"cash": Sums(100, 10, 10.0, 40.0)}}))
    assert (undated["verdict"], undated["days"], undated["refitted_skill"]) == ("keep", 0, None)
    assert undated["reason"].startswith("Not enough data: only 0 days to judge on, 14 are needed.")
    counts = make_month(-0.5, days=13)
    counts.days["other"] = counts.days["1"]
    assert summarize(counts)["skill_high"] is None


def test_under_twenty_five_surprises_and_with_a_day_of_most_weight_a_month_is_not_judged() -> None:
    counts, surprises = make_month(-0.5, days=14, rates={"cash": 0.0}), "only 24 rows went against the baseline's odds"
    for day in range(14):  # the baseline finds a tip in cash less likely
        tips = 1 if day < 4 else 2
        counts.days[str(day + 1)]["cash"] = Sums(70, tips, 7.0, 10.0)
    assert summarize(counts)["reason"].startswith(f"Not enough data: {surprises}, 25 are needed. The skill of these")
    counts.days["1"]["cash"] = Sums(70, 2, 7.0, 10.0)
    assert summarize(counts)["skill_high"] is not None
    counts.days["1"] = {"credit": Sums(400, 200, 360.0, 300.0)}  # a no of a card is one, too
    assert "one day has 77% of the weight" in summarize(counts)["reason"]


def test_bounds_are_by_day_in_order_of_time_around_the_skill_of_all_rows() -> None:
    counts = make_month(0.1)
    month = summarize(counts)
    counts.days = dict(reversed(counts.days.items()))
    bounds = [(one["skill_low"], one["skill_high"]) for one in (month, summarize(counts))]
    assert bounds[0] == pytest.approx(bounds[1])
    counts.days["other"] = {"cash": Sums(70, 7, 7.0, 40.0)}
    other = summarize(counts)
    assert (other["skill"] < month["skill"], other["days"]) == (True, 28)
    assert other["skill_high"] - other["skill"] == pytest.approx(month["skill_high"] - month["skill"])


@pytest.mark.parametrize(
    ("rates", "expected"), [({"cash": 0.3}, "retrain"), ({"credit": 0.5}, "retrain"), ({"cash": 1.0}, "keep")]
)
def test_a_month_of_one_group_or_of_one_class_is_judged(rates: dict[str, float], expected: str) -> None:
    month = summarize(make_month(-0.5, rates=rates))
    assert (month["verdict"], month["skill_low"] <= month["skill"] <= month["skill_high"]) == (expected, True)


def test_where_the_baseline_leaves_nothing_to_gain_the_model_is_kept() -> None:
    month = summarize(make_month(0.0, rates={"cash": 0.0}), baseline=BASELINE | {"rates": {"cash": 0.0}})
    assert (month["skill"], month["skill_low"], month["refitted_skill"], month["verdict"]) == (None, None, None, "keep")
    assert (month["positive"], month["groups"].keys()) == (0, {"cash"})
    assert "leaves nothing to gain" in month["reason"]


def test_calibration_groups_are_by_score_and_hold_all_labelled_rows() -> None:
    generator = np.random.default_rng(5)
    scores = generator.beta(0.2, 0.5, 50_000).astype(np.float32)
    bands = np.zeros((BANDS, 3), np.int64)
    np.add.at(bands, (assign_band(scores), (generator.random(50_000) < scores).astype(int)), 1)
    bands[500, 2] = 10**6
    groups = verdict.compute_calibration(bands)
    assert (len(groups), sum(group["rows"] for group in groups)) == (10, 50_000)
    predicted = [group["predicted"] for group in groups]
    assert predicted == sorted(predicted)
    assert [group["observed"] for group in groups] == pytest.approx(predicted, abs=0.05)
    assert verdict.compute_calibration(np.zeros((BANDS, 3), np.int64)) == []


def test_drift_does_not_decide() -> None:
    counts = make_month(0.1)
    counts.bands[800, 2] = counts.rows
    score = {"edges": [500], "counts": [900, 100], "psi_bound": 0.02}
    month = summarize(counts, reference={"rows": 1000, "features": {}, "score": score})
    assert month["drift"]["score"]["flagged"] is True
    assert (month["drifted"], month["verdict"]) == ("score", "keep")
    assert month["reason"].endswith("Drift in score; drift alone does not change the verdict.")


# ---- who carries the loss ----


def add_group(counts: Counts, name: str, rows: int, tips: int, loss: float) -> Counts:
    """Add a group with this loss per row to each day."""
    for groups in counts.days.values():
        groups[name] = Sums(rows, tips, 0.01 * rows, rows * loss)
    counts.rows += rows * len(counts.days)
    return counts


def test_a_value_that_training_never_had_is_named_and_the_source_is_to_be_checked() -> None:
    month = summarize(add_group(make_month(0.1), "flex fare", 5, 1, 5.0))
    assert month["skill_high"] < 0
    cause = month["cause"]
    assert (cause["groups"], cause["unseen"], cause["row_share"]) == (["flex fare"], True, pytest.approx(5 / 105))
    assert cause["loss_share"] == pytest.approx(month["groups"]["flex fare"]["loss_share"])
    assert (cause["skill"], cause["skill_low"] > 0) == (pytest.approx(0.1, abs=1e-3), True)
    assert month["verdict"] == "check source"
    words = f"they carry {cause['loss_share']:.0%} of the loss. Without them: skill 10.0% ("
    assert f"4.8% of the rows have payment_type flex fare, never seen in training; {words}" in month["reason"]
    assert month["reason"].endswith(f"Advice: {causes.ADVICE['check source']}.")


def test_a_month_of_one_unseen_value_says_so() -> None:
    month = summarize(add_group(Counts(days={str(day): {} for day in range(1, 29)}), "(missing)", 100, 20, 0.5))
    assert "All rows have payment_type (missing), never seen in training. Advice: check where" in month["reason"]
    assert month["cause"]["skill"] is None


def test_a_month_of_one_known_value_says_so() -> None:
    month = summarize(make_month(0.1, rates={"cash": 0.1}))
    assert "All rows have payment_type cash. Advice: check where these values come from" in month["reason"]


def test_a_small_loss_or_a_known_value_is_no_cause() -> None:
    assert summarize(add_group(make_month(0.1), "flex fare", 1, 0, 0.3))["cause"] is None
    assert summarize(make_month(0.1))["cause"] is None
    assert summarize(Counts())["cause"] is None


def test_the_group_that_costs_a_month_its_skill_is_named() -> None:
    counts = make_month(0.1)
    for groups in counts.days.values():
        groups["credit"] = groups["credit"]._replace(loss=2 * groups["credit"].loss)
    month = summarize(counts)
    assert (month["cause"]["groups"], month["cause"]["unseen"]) == (["credit"], False)
    assert (month["verdict"], "never seen" in month["reason"]) == ("retrain", False)
    assert "30.0% of the rows have payment_type credit; they carry" in month["reason"]


@pytest.mark.parametrize(("observed", "expected"), [(0.02, "recalibrate"), (0.24, "retrain")])
def test_scores_that_rank_well_are_to_be_recalibrated(observed: float, expected: str) -> None:
    # The bands say how well the scores separate: at 0.3 nearly all rows, or as many as everywhere, are negative.
    counts = make_month(-0.1)
    counts.bands[300, :2] = [round(1960 * (1 - observed)), round(1960 * observed)]
    counts.bands[900, :2] = [84, 756] if expected == "recalibrate" else [638, 202]
    assert summarize(counts)["verdict"] == expected
