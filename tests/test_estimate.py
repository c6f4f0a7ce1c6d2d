"""Skill is estimated from the scores; a gap to the realised loss is concept drift."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.test_baseline import BY, TARGET, batch
from tipline.arrays import Probabilities
from tipline.monitoring import drift, estimate, verdict
from tipline.monitoring.counts import Counts

RATES = {"by": [BY], "overall": 0.4, "rates": {"cash": 0.1, "credit": 0.8}}
SPEC: dict[str, Any] = {"target": TARGET, "baseline": RATES, "time": "pickup_datetime", "features": []}


def draw(
    seed: int, rows: int = 4000, days: int = 28, *, known: float = 1.0, flipped: float = 0.0
) -> tuple[pa.RecordBatch, Probabilities]:
    """Draw rows of February 2009 whose scores are calibrated, but for a share of flipped labels."""
    generator = np.random.default_rng(seed)
    cash = generator.random(rows) < 0.5
    logits = np.where(cash, -2.2, 1.4) + generator.normal(0, 1, rows)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    tips = ((generator.random(rows) < scores) != (generator.random(rows) < flipped)).astype(float)
    start = np.datetime64("2009-02-01", "us").astype(np.int64)
    times = start + (generator.random(rows) * days * 86_400e6).astype(np.int64)
    missing = generator.random(rows) >= known
    labels = [None if lacks else tip for lacks, tip in zip(missing, tips.tolist(), strict=True)]
    payments = ["cash" if one else "credit" for one in cash]
    return batch(payments, labels, pickup_datetime=pa.array(times, pa.timestamp("us"))), scores


def count(trips: pa.RecordBatch, scores: Probabilities) -> Counts:
    counts = Counts.from_rows(trips, SPEC, scores, trips, "2009-02")
    return Counts.from_json(json.loads(json.dumps(counts.to_json())))


def make_spec(trips: pa.RecordBatch, scores: Probabilities) -> dict[str, Any]:
    return {**SPEC, "reliability": json.loads(json.dumps(estimate.measure_reliability(trips, SPEC, scores)))}


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return make_spec(*draw(0))


def test_the_interval_holds_the_realised_skill_and_concept_drift_is_rare() -> None:
    held, named = 0, 0
    for seed in range(100, 160, 2):
        month = verdict.summarize_month(count(*draw(seed)), make_spec(*draw(seed + 1)))
        held += month["estimated_skill_low"] <= month["skill"] <= month["estimated_skill_high"]
        named += month["concept_drift"]
        assert month["estimated_auc"] == pytest.approx(month["auc"], abs=0.03)
    assert held >= 24  # of 30, at 90%
    assert named <= 3


def test_flipped_labels_are_concept_drift(spec: dict[str, Any]) -> None:
    month = verdict.summarize_month(count(*draw(1, flipped=0.2)), spec)
    assert month["concept_drift"]
    assert month["estimated_skill"] > month["skill"]
    assert f"Concept drift: the log-loss is {month['excess_log_loss']:.0%} above what" in month["reason"]


def test_a_month_without_labels_has_the_estimate_of_the_same_month_with_labels(spec: dict[str, Any]) -> None:
    without, labelled = (verdict.summarize_month(count(*draw(2, known=known)), spec) for known in (0, 1))
    for name in ("estimated_skill", "estimated_log_loss", "estimated_auc", "estimated_skill_low"):
        assert without[name] == pytest.approx(labelled[name], rel=1e-6)
    assert (without["verdict"], without["concept_drift"]) == ("no labels", None)
    words = f"cannot be judged. Estimated skill {without['estimated_skill']:.1%} ("
    assert words in without["reason"]
    assert without["reason"].endswith("reliability on validation rows; labels decide.")
    assert "Estimated" not in labelled["reason"]
    partial = verdict.summarize_month(count(*draw(2, known=0.5)), spec)
    assert f"Estimated skill of all rows {labelled['estimated_skill']:.1%} (" in partial["reason"]


def test_drift_and_unseen_values_make_the_estimate_untrustworthy(spec: dict[str, Any]) -> None:
    trips, scores = draw(3)
    known = SPEC | {"features": [{"name": BY, "kind": "category"}]}
    spec = spec | {"reference": drift.build_reference(trips, known, scores, trips)}
    unseen = trips.set_column(0, BY, batch(["no charge"] * len(trips), [None] * len(trips))[BY])
    unseen = unseen.set_column(1, "tip_amount", pa.nulls(len(trips), pa.float64()))
    month = verdict.summarize_month(Counts.from_rows(unseen, spec, scores, unseen, "2009-02"), spec)
    assert f"Estimate not trustworthy: drift in {BY}; {BY} has values that training did not" in month["reason"]
    assert "in 100.0% of the rows." in month["reason"]
    same = verdict.summarize_month(Counts.from_rows(trips, spec, scores, trips, "2009-02"), spec)
    assert same["estimate_unsafe"] == ""


@pytest.mark.parametrize(("rows", "days"), [(1, 1), (300, 1), (0, 1)])
def test_small_months_have_an_estimate_but_no_concept_drift(spec: dict[str, Any], rows: int, days: int) -> None:
    month = verdict.summarize_month(count(*draw(4, rows, days)), spec)
    assert (month["estimated_skill"] is None, month["concept_drift"]) == (rows == 0, None)


def test_without_a_reliability_there_is_no_estimate() -> None:
    trips, scores = draw(5, known=0)
    assert {verdict.summarize_month(count(trips, scores), SPEC)[name] for name in estimate.FIGURES} == {None}
    trips, scores = draw(5)
    for tip in (0.0, 1.0):
        one_class = trips.set_column(1, "tip_amount", pa.array([tip] * len(trips)))
        assert estimate.measure_reliability(one_class, SPEC, scores) is None


def test_a_constant_score_and_few_validation_days_give_no_more_than_they_know() -> None:
    trips, scores = draw(6)
    constant = np.full_like(scores, 0.5)
    month = verdict.summarize_month(count(trips, constant), make_spec(trips, constant))
    assert (month["estimated_auc"], month["concept_drift"]) == (pytest.approx(0.5), False)
    assert month["estimated_log_loss"] == pytest.approx(np.log(2), rel=1e-5)
    month = verdict.summarize_month(count(trips, scores), make_spec(*draw(7, days=13)))
    assert month["estimated_skill"] is not None
    assert (month["estimated_skill_low"], month["concept_drift"]) == (None, None)
