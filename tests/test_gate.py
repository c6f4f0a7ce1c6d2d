"""The gate lets a challenger pass only if the rows show that it is not worse; each rule at its edge."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from tipline.evaluation import gate
from tipline.evaluation.gate import Rows
from tipline.evaluation.intervals import Ratio

LOSS = 0.7  # more than log(2): each row went against the odds of the baseline
TOLERANCE, SEGMENT_TOLERANCE = 0.002, 0.01
ELSEWHERE = {"train": ["2009-01"], "validation": ["2009-02"]}
MADE_ON: Mapping[str, Any] = {"challenger": ELSEWHERE, "champion": ELSEWHERE}


def create_rows(gains: Any, rows_per_day: int = 2, first: str = "2009-03-01") -> Rows:
    """Make days with these gains in skill points; all rows of a day gain the same."""
    days = np.repeat(np.datetime64(first) + np.arange(len(gains)), rows_per_day)
    names, month = np.unique(days.astype("datetime64[M]"), return_inverse=True)
    return gate.Rows(
        [str(name) for name in names],
        month.astype(np.int32),
        days.astype("datetime64[D]").astype(np.int32),
        np.repeat(np.asarray(gains, float) * LOSS, rows_per_day),
        np.full(len(days), LOSS),
        np.arange(len(days)) % 2 == 0,
        {},
    )


def add_segments(rows: Rows, codes: Any) -> Rows:
    codes = np.asarray(codes, np.int32)
    names = [f"kind {number}" for number in range(codes.max() + 1)]
    return dataclasses.replace(rows, segments={"kind": (names, codes)})


def decide(rows: Rows, made_on: Mapping[str, Any] = MADE_ON, tolerance: float = TOLERANCE) -> dict[str, Any]:
    return gate.decide_promotion(rows, made_on, tolerance, SEGMENT_TOLERANCE)


def scatter(days: int, mean: float, deviation: float = 0.003) -> Any:
    """Make gains of exactly this mean and standard deviation."""
    values = np.random.default_rng(1).normal(size=days)
    return mean + deviation * (values - values.mean()) / values.std(ddof=1)


# ---- the gain ----


def test_the_bound_is_that_of_days_in_order_weighed_by_their_baseline_loss() -> None:
    gains = scatter(30, 0.001)
    # Four full weeks: the four slowest cosines, and four degrees of freedom.
    waves = [np.cos(np.pi * wave * (np.arange(30) + 0.5) / 30) @ gains for wave in (1, 2, 3, 4)]
    expected = gains.mean() - student.ppf(0.95, 4) * np.sqrt(2 * np.square(waves).mean()) / 30
    verdict = decide(create_rows(gains, rows_per_day=3))
    assert (verdict["gain"]["lower"], verdict["gain"]["blocks"]) == (pytest.approx(expected), 30)
    rows = create_rows([0.01] * 15 + [0.0] * 15)
    rows.baseline[:30] *= 3
    assert decide(rows)["gain"]["value"] == pytest.approx(0.005 / 2)


@pytest.mark.parametrize(("above", "passes"), [(1e-6, True), (-1e-6, False)])
def test_the_lower_bound_has_to_be_above_the_tolerance(above: float, passes: bool) -> None:  # noqa: FBT001
    lower = decide(create_rows(scatter(30, 0.0)))["gain"]["lower"]
    verdict = decide(create_rows(scatter(30, -TOLERANCE - lower + above)))
    assert verdict["promote"] is passes
    assert any("may be as low as" in reason for reason in verdict["reasons"]) is not passes
    assert decide(create_rows(np.full(30, max(above, 0))), tolerance=0.0)["promote"] is passes


def test_power_is_how_often_equal_models_pass() -> None:
    days, deviation = 14, 0.004
    gains = np.random.default_rng(3).normal(0, deviation, (20_000, days))
    bounds = np.array([Ratio.estimate(each, np.ones(days)).bounds()[0] for each in gains])
    # With the error known, as in a verdict, the power is that of a noncentral t.
    power = Ratio(0.0, deviation / np.sqrt(days), 2).power(TOLERANCE)
    assert power == pytest.approx((bounds > -TOLERANCE).mean(), abs=0.012)
    gain = decide(create_rows(scatter(days, 0.0, deviation)))
    assert gain["power"] == Ratio(0.0, gain["gain"]["error"], 2).power(TOLERANCE)
    assert Ratio(0.0, 0.0, days).power(0.0) == 0


# ---- days and months ----


def test_fourteen_days_in_the_month_are_needed() -> None:
    verdict = decide(create_rows(np.zeros(14), rows_per_day=100))
    assert (verdict["promote"], verdict["reasons"], verdict["power"]) == (True, [], 1)
    assert verdict["gain"] == {"value": 0, "lower": 0, "upper": 0, "error": 0, "blocks": 14, "by": "day"}
    few = create_rows(np.zeros(14), rows_per_day=2)
    few.baseline[24:] = few.gain[24:] = 0.01
    assert decide(few)["reasons"] == ["only 24 rows went against the baseline's odds, 25 are needed"]
    wrong = create_rows(np.zeros(13), rows_per_day=2)
    wrong.day[::2] -= 4000 * np.arange(13, dtype=np.int32)
    assert decide(wrong)["reasons"] == ["only 13 days to judge on, 14 are needed"]
    ends = create_rows(np.zeros(14), first="2009-03-10")
    ends.day[:2], ends.day[-2:] = 0, 99_999
    assert decide(ends)["reasons"] == ["only 12 days to judge on, 14 are needed"]


@pytest.mark.parametrize(
    ("days", "heavy", "weight", "words"),
    [
        (28, slice(0, 2), 1000, "one day has 97% of the weight"),
        (184, slice(122, 184), 100, "one month has 95% of the weight"),
    ],
)
def test_a_block_with_nearly_all_weight_shows_no_scatter(days: int, heavy: slice, weight: float, words: str) -> None:
    rows = create_rows(np.full(days, 0.01))
    rows.baseline[heavy] *= weight
    rows.gain[heavy] *= weight
    assert decide(rows)["reasons"][0].startswith(words)


@pytest.mark.parametrize(("days", "by", "blocks"), [(31 + 30 + 31 + 30 + 31, "day", 153), (184, "month", 6)])
def test_six_months_or_more_are_the_blocks(days: int, by: str, blocks: int) -> None:
    verdict = decide(create_rows(scatter(days, 0.01)))
    assert (verdict["gain"]["by"], verdict["gain"]["blocks"]) == (by, blocks)
    assert len(verdict["months"]) == (5 if by == "day" else 6)
    assert verdict["promote"]


@pytest.mark.parametrize(
    ("purpose", "role", "word"), [("train", "challenger", "trained"), ("validation", "champion", "sized or calibrated")]
)
def test_a_month_without_rows_or_that_a_model_was_made_on_is_dropped(purpose: str, role: str, word: str) -> None:
    rows = create_rows([-0.5] * 31 + [0.001] * 30)
    rows = dataclasses.replace(rows, names=[*rows.names, "2009-05"])
    verdict = decide(rows, {**MADE_ON, role: {**ELSEWHERE, purpose: ["2009-03"]}})
    assert (verdict["promote"], verdict["months"]) == (True, ["2009-04"])
    why = f"the {role} was {word} on it"
    assert verdict["dropped"] == {"2009-03": why, "2009-05": "it has no row with a known target"}
    assert "Judged on 2009-04; says nothing about months to come." in verdict["words"]
    assert f"Not judged on 2009-03: {why}." in verdict["words"]
    assert not decide(rows)["promote"]


# ---- what cannot be judged ----


@pytest.mark.parametrize(("role", "months"), [("challenger", None), ("champion", {}), ("champion", {"train": []})])
def test_a_model_without_known_months_is_refused(role: str, months: Any) -> None:
    (reason,) = decide(create_rows(np.ones(31)), {**MADE_ON, role: months})["reasons"]
    assert f"it is not known which months the {role} was made on" in reason
    assert "tipline.months=2009-01,2009-02" in reason


@pytest.mark.parametrize(
    ("name", "rows", "value", "reason"),
    [
        ("baseline", slice(None), 1e-7, "the baseline leaves nothing to gain on these rows"),
        ("labels", slice(None), True, "all rows have the same label"),
    ],
)
def test_rows_that_cannot_judge_are_refused(name: str, rows: Any, value: Any, reason: str) -> None:
    given = create_rows(np.ones(31))
    getattr(given, name)[rows] = value
    verdict = decide(given)
    assert (verdict["promote"], verdict["reasons"]) == (False, [reason])


# ---- segments ----


def test_segments_that_are_shown_worse_veto_and_the_worst_are_named() -> None:
    rows = add_segments(create_rows(np.full(31, 0.02), rows_per_day=100), np.arange(3100) % 2)
    rows.gain[::2], rows.gain[1::2] = -0.02 * LOSS, 0.06 * LOSS
    verdict = decide(rows)
    assert verdict["gain"]["lower"] > 0
    assert verdict["reasons"] == ["it is worse on 1 segment: kind kind 0 (gain below -0.0200)"]
    assert [segment["veto"] for segment in verdict["segments"]] == [True, False]
    kinds = np.arange(15_500) % 5
    rows = add_segments(create_rows(np.zeros(31), rows_per_day=500), kinds)
    rows.gain[:] = -0.03 * (kinds + 1) * LOSS
    reason = decide(rows)["reasons"][-1]
    assert reason.startswith("it is worse on 5 segments: kind kind 4 (gain below -0.1500), kind kind 3 (")
    assert reason.endswith("kind kind 2 (gain below -0.0900) and 2 more")


def test_a_segment_that_is_not_shown_worse_does_not_veto() -> None:
    rows = add_segments(create_rows(np.zeros(30), rows_per_day=100), np.arange(3000) % 2)
    rows.gain[::2] = np.repeat(scatter(30, -0.02, deviation=0.05), 50) * LOSS
    rows.gain[1::2] = -rows.gain[::2]
    verdict = decide(rows)
    assert verdict["segments"][0]["gain"] == pytest.approx(-0.02)
    assert verdict["segments"][0]["upper"] > -SEGMENT_TOLERANCE
    assert verdict["promote"]
    # The unit is the baseline of all rows.
    rows = add_segments(create_rows(np.zeros(31), rows_per_day=100), np.arange(3100) % 2)
    rows.baseline[::2] = LOSS / 1e6  # as with cash, which almost never tips
    rows.gain[::2] = -0.004 * LOSS
    assert decide(rows)["segments"][0]["why"] == "only 0 rows went against the baseline's odds, 25 are needed"
    rows.baseline[::100] = LOSS
    segments = decide(rows)["segments"]
    assert [segment["gain"] for segment in segments] == pytest.approx([-0.004 / 0.51, 0], rel=1e-3)
    assert not any(segment["veto"] for segment in segments)


def test_more_segments_have_wider_bounds() -> None:
    gains = np.repeat(scatter(30, 0.0), 12 * 40)
    rows = dataclasses.replace(create_rows(np.zeros(30), rows_per_day=12 * 40), gain=gains)
    few, some, many = (decide(add_segments(rows, np.arange(len(gains)) % kinds)) for kinds in (2, 6, 12))
    assert few["segments"][0]["upper"] < some["segments"][0]["upper"] < many["segments"][0]["upper"]


@pytest.mark.parametrize(
    ("days", "rows_per_day", "inside", "why"),
    [
        (20, 100, 999, "fewer than 1,000 rows"),
        (20, 100, 1000, None),
        (30, 100, 1300, "only 13 days to judge on, 14 are needed"),
        (30, 100, 1400, None),
        (184, 20, 153 * 20, "only 5 months to judge on, 6 are needed"),
        (30, 100, 3000, "all rows are in it"),
    ],
)
def test_a_segment_needs_rows_days_and_months(days: int, rows_per_day: int, inside: int, why: str | None) -> None:
    rows = create_rows(np.full(days, -0.5), rows_per_day)
    codes = np.arange(days * rows_per_day) < inside
    if inside <= 1000:
        codes = np.random.default_rng(1).permutation(codes)
    segment = decide(add_segments(rows, codes))["segments"][-1]
    assert (segment["rows"], segment["why"]) == (inside, why)
    assert (segment["veto"], segment["gain"] is None) == (why is None, why is not None)
