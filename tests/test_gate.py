"""The gate lets a challenger pass only where the rows show that it is not worse; each rule at its edge."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from tipline.evaluation import gate
from tipline.evaluation.intervals import Ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tipline.evaluation.gate import Rows

LOSS = 0.05
TOLERANCE, SEGMENT_TOLERANCE = 0.002, 0.01
ELSEWHERE = {"train": ["2009-01"], "validation": ["2009-02"]}
MADE_ON: Mapping[str, Any] = {"challenger": ELSEWHERE, "champion": ELSEWHERE}


def make(gains: Any, rows_a_day: int = 1, first: str = "2009-03-01") -> Rows:
    """Make days whose gains, in skill points, are these; all of a day's rows gain the same."""
    days = np.repeat(np.datetime64(first) + np.arange(len(gains)), rows_a_day)
    names, month = np.unique(days.astype("datetime64[M]"), return_inverse=True)
    return gate.Rows(
        [str(name) for name in names],
        month.astype(np.int32),
        days.astype("datetime64[D]").astype(np.int32),
        np.repeat(np.asarray(gains, float) * LOSS, rows_a_day),
        np.full(len(days), LOSS),
        np.arange(len(days)) % 2 == 0,
        {},
    )


def with_segments(rows: Rows, codes: Any) -> Rows:
    codes = np.asarray(codes, np.int32)
    names = [f"kind {number}" for number in range(codes.max() + 1)]
    return dataclasses.replace(rows, segments={"kind": (names, codes)})


def decide(rows: Rows, made_on: Mapping[str, Any] = MADE_ON, tolerance: float = TOLERANCE) -> dict[str, Any]:
    return gate.decide_promotion(rows, made_on, tolerance, SEGMENT_TOLERANCE)


def scattered(days: int, mean: float, deviation: float = 0.003) -> Any:
    """Make gains of exactly this mean and standard deviation."""
    values = np.random.default_rng(1).normal(size=days)
    return mean + deviation * (values - values.mean()) / values.std(ddof=1)


def test_equal_models_pass_and_would_always() -> None:
    verdict = decide(make(np.zeros(30)))
    assert verdict["promote"]
    assert verdict["reasons"] == []
    assert verdict["gain"] == {"value": 0, "lower": 0, "upper": 0, "error": 0, "blocks": 30, "by": "day"}
    assert verdict["power"] == 1


def test_the_bound_is_that_of_a_t_test_over_days() -> None:
    gains = scattered(30, 0.001)
    expected = ttest_1samp(gains, 0, alternative="greater").confidence_interval(0.95).low
    verdict = decide(make(gains, rows_a_day=3))
    assert verdict["gain"]["lower"] == pytest.approx(expected)
    assert verdict["gain"]["blocks"] == 30


def test_a_day_counts_by_what_there_was_to_lose_on_it() -> None:
    rows = make([0.01] * 15 + [0.0] * 15)
    rows.baseline[:15] *= 3
    assert decide(rows)["gain"]["value"] == pytest.approx(0.005 / 2)


@pytest.mark.parametrize(("above", "passes"), [(1e-6, True), (-1e-6, False)])
def test_the_lower_bound_has_to_be_above_the_tolerance(above: float, passes: bool) -> None:  # noqa: FBT001
    lower = decide(make(scattered(30, 0.0)))["gain"]["lower"]
    verdict = decide(make(scattered(30, -TOLERANCE - lower + above)))
    assert verdict["promote"] is passes
    assert any("may be as low as" in reason for reason in verdict["reasons"]) is not passes


def test_at_the_tolerance_itself_it_is_refused() -> None:
    assert not decide(make(np.zeros(30)), tolerance=0.0)["promote"]
    assert decide(make(np.full(30, 1e-9)), tolerance=0.0)["promote"]


@pytest.mark.parametrize(("days", "passes"), [(13, False), (14, True)])
def test_fourteen_days_are_needed(days: int, passes: bool) -> None:  # noqa: FBT001
    verdict = decide(make(np.zeros(days), rows_a_day=100))
    assert verdict["promote"] is passes
    assert verdict["reasons"] == ([] if passes else ["only 13 days to judge on, 14 are needed"])


def test_days_outside_of_the_month_do_not_count_as_more() -> None:
    rows = make(np.zeros(13), rows_a_day=2)
    rows.day[::2] -= 4000 * np.arange(13, dtype=np.int32)
    verdict = decide(rows)
    assert not verdict["promote"]
    assert "days to judge on, 14 are needed" in verdict["reasons"][0]


def test_wrong_clocks_at_the_ends_of_a_month_do_not_make_up_for_its_days() -> None:
    rows = make(np.zeros(14), first="2009-03-10")
    rows.day[0], rows.day[-1] = 0, 99_999
    verdict = decide(rows)
    assert verdict["reasons"] == ["only 12 days to judge on, 14 are needed"]


@pytest.mark.parametrize(
    ("days", "heavy", "weight", "words"),
    [
        (28, slice(0, 1), 1000, "one day has 97% of the weight"),
        (184, slice(61, 92), 100, "one month has 95% of the weight"),
    ],
)
def test_a_block_with_nearly_all_weight_shows_no_scatter(days: int, heavy: slice, weight: float, words: str) -> None:
    rows = make(np.full(days, 0.01))
    rows.baseline[heavy] *= weight
    rows.gain[heavy] *= weight
    verdict = decide(rows)
    assert not verdict["promote"]
    assert verdict["reasons"][0].startswith(words)


def test_a_month_without_a_row_is_named_as_such() -> None:
    rows = make(np.zeros(31))
    verdict = decide(dataclasses.replace(rows, names=["2009-03", "2009-04"]))
    assert verdict["promote"]
    assert verdict["months"] == ["2009-03"]
    assert verdict["dropped"] == {"2009-04": "it has no row with a known target"}


@pytest.mark.parametrize("role", ["challenger", "champion"])
@pytest.mark.parametrize("months", [None, {}, {"train": []}])
def test_a_model_without_known_months_is_refused(role: str, months: Any) -> None:
    (reason,) = decide(make(np.ones(31)), {**MADE_ON, role: months})["reasons"]
    assert f"it is not known which months the {role} was made on" in reason
    assert "tipline.months=2009-01,2009-02" in reason


def test_the_unit_of_a_segment_is_the_baseline_of_all_rows() -> None:
    rows = with_segments(make(np.zeros(31), rows_a_day=100), np.arange(3100) % 2)
    rows.baseline[::2] = LOSS / 1e6  # as on cash, where next to nobody tips
    rows.gain[::2] = -0.004 * LOSS
    verdict = decide(rows)
    assert [segment["gain"] for segment in verdict["segments"]] == pytest.approx([-0.008, 0], rel=1e-3)
    assert not any(segment["veto"] for segment in verdict["segments"])


def test_power_is_that_of_a_t_test_with_a_known_error() -> None:
    generator, days, deviation = np.random.default_rng(3), 14, 0.004
    gains = generator.normal(0, deviation, (20_000, days))
    bounds = gains.mean(axis=1) - student.ppf(0.95, days - 1) * gains.std(axis=1, ddof=1) / np.sqrt(days)
    power = Ratio(0.0, deviation / np.sqrt(days), days).power(TOLERANCE)
    assert power == pytest.approx((bounds > -TOLERANCE).mean(), abs=0.012)
    assert Ratio(0.0, 0.0, days).power(0.0) == 0


@pytest.mark.parametrize(("days", "by", "blocks"), [(31 + 30 + 31 + 30 + 31, "day", 153), (184, "month", 6)])
def test_from_six_months_on_months_are_what_is_independent(days: int, by: str, blocks: int) -> None:
    verdict = decide(make(scattered(days, 0.01)))
    assert (verdict["gain"]["by"], verdict["gain"]["blocks"]) == (by, blocks)
    assert len(verdict["months"]) == (5 if by == "day" else 6)
    assert verdict["promote"]


def test_months_that_differ_are_no_thirty_proofs_each() -> None:
    gains = np.repeat([0.03, -0.02, 0.03, -0.02, 0.03, -0.02], 30)
    verdict = decide(make(gains))
    assert verdict["gain"]["value"] > 0.003
    assert not verdict["promote"]


@pytest.mark.parametrize(
    ("purpose", "role", "word"),
    [("train", "challenger", "trained"), ("validation", "champion", "sized or calibrated")],
)
def test_a_month_that_a_model_was_made_on_is_dropped_and_named(purpose: str, role: str, word: str) -> None:
    made_on = {**MADE_ON, role: {**ELSEWHERE, purpose: ["2009-03"]}}
    rows = make([-0.5] * 31 + [0.001] * 30)
    verdict = decide(rows, made_on)
    assert verdict["promote"]
    assert verdict["months"] == ["2009-04"]
    assert verdict["dropped"] == {"2009-03": f"the {role} was {word} on it"}
    assert "Judged on 2009-04; says nothing about months to come." in verdict["words"]
    assert f"Not judged on 2009-03: the {role} was {word} on it." in verdict["words"]
    assert not decide(rows)["promote"]


def test_no_month_left_is_refused() -> None:
    verdict = decide(make(np.ones(31)), {**MADE_ON, "champion": {"train": ["2009-03"]}})
    assert not verdict["promote"]
    assert verdict["reasons"] == ["no month is left to judge on"]
    assert verdict["gain"] is None


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["gain", "baseline"])
def test_a_loss_that_is_none_is_refused(what: str, wrong: float) -> None:
    rows = make(np.ones(31))
    getattr(rows, what)[7] = wrong
    verdict = decide(rows)
    assert not verdict["promote"]
    assert verdict["reasons"] == ["some rows have no log-loss"]


@pytest.mark.parametrize("label", [True, False])
def test_one_class_is_refused(label: bool) -> None:  # noqa: FBT001
    rows = make(np.ones(31))
    rows.labels[:] = label
    assert decide(rows)["reasons"] == ["all rows have the same label"]


def test_a_baseline_without_anything_to_gain_is_refused() -> None:
    rows = make(np.ones(31))
    rows.baseline[:] = 1e-7
    assert decide(rows)["reasons"] == ["the baseline leaves nothing to gain on these rows"]


def test_a_segment_that_is_shown_worse_vetoes() -> None:
    rows = with_segments(make(np.full(31, 0.02), rows_a_day=100), np.arange(3100) % 2)
    rows.gain[::2] = -0.02 * LOSS
    rows.gain[1::2] = 0.06 * LOSS
    verdict = decide(rows)
    assert verdict["gain"]["lower"] > 0
    assert not verdict["promote"]
    assert verdict["reasons"] == ["it is worse on 1 segment: kind kind 0 (gain below -0.0200)"]
    assert [segment["veto"] for segment in verdict["segments"]] == [True, False]


def test_of_many_worse_segments_the_worst_are_named() -> None:
    rows = with_segments(make(np.full(31, -0.02), rows_a_day=500), np.arange(15_500) % 5)
    for kind in range(5):
        rows.gain[kind::5] = -0.03 * (kind + 1) * LOSS
    reason = decide(rows)["reasons"][-1]
    assert reason.startswith("it is worse on 5 segments: kind kind 4 (gain below -0.1500), kind kind 3 (")
    assert reason.endswith("kind kind 2 (gain below -0.0900) and 2 more")


def test_a_segment_that_may_be_worse_or_not_does_not_veto() -> None:
    rows = with_segments(make(np.zeros(30), rows_a_day=100), np.arange(3000) % 2)
    rows.gain[::2] = np.repeat(scattered(30, -0.02, deviation=0.05), 50) * LOSS
    rows.gain[1::2] = -rows.gain[::2]
    verdict = decide(rows)
    first = verdict["segments"][0]
    assert first["gain"] == pytest.approx(-0.02)
    assert first["upper"] > -SEGMENT_TOLERANCE
    assert verdict["promote"]


def test_the_more_segments_the_wider_their_bounds() -> None:
    gains = np.repeat(scattered(30, 0.0), 12 * 40)

    def bound(kinds: int) -> float:
        rows = dataclasses.replace(make(np.zeros(30), rows_a_day=12 * 40), gain=gains)
        return float(decide(with_segments(rows, np.arange(len(gains)) % kinds))["segments"][0]["upper"])

    assert bound(2) < bound(6) < bound(12)


@pytest.mark.parametrize(("rows_of_it", "why"), [(999, "fewer than 1,000 rows"), (1000, None)])
def test_a_segment_needs_a_thousand_rows(rows_of_it: int, why: str | None) -> None:
    rows = make(np.zeros(20), rows_a_day=100)
    codes = np.random.default_rng(1).permutation(np.arange(2000) < rows_of_it)
    segment = decide(with_segments(rows, codes))["segments"][1]
    assert (segment["rows"], segment["why"]) == (rows_of_it, why)
    assert (segment["gain"] is None) is (why is not None)


@pytest.mark.parametrize(("days", "judged"), [(13, False), (14, True)])
def test_a_segment_needs_fourteen_days(days: int, judged: bool) -> None:  # noqa: FBT001
    rows = make(np.full(30, -0.5), rows_a_day=100)
    segment = decide(with_segments(rows, np.arange(3000) < days * 100))["segments"][1]
    assert segment["days"] == days
    assert segment["veto"] is judged
    assert (segment["why"] is None) is judged


def test_a_segment_of_few_months_is_not_judged_where_months_are() -> None:
    rows = make(np.zeros(184), rows_a_day=20)
    segment = decide(with_segments(rows, rows.month < 5))["segments"][1]
    assert segment["why"] == "only 5 months to judge on, 6 are needed"


def test_what_all_rows_are_in_is_no_segment() -> None:
    rows = with_segments(make(np.full(30, -1.0), rows_a_day=100), np.zeros(3000))
    segment = decide(rows)["segments"][0]
    assert segment["why"] == "all rows are in it"
    assert not segment["veto"]


def test_the_power_is_how_often_equal_models_pass() -> None:
    random = np.random.default_rng(1)
    told = decide(make(scattered(30, 0.0, deviation=0.005)))["power"]
    seen = np.mean([decide(make(random.normal(0, 0.005, 30)))["promote"] for _ in range(400)])
    assert 0.3 < told < 0.9
    assert seen == pytest.approx(told, abs=0.1)
