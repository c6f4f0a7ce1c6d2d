"""The figures that merge over parts are those of scikit-learn on all rows."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests import pipeline
from tipline import metrics, modelfiles
from tipline.metrics import Counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tipline.pyfunc import Probabilities

TARGET, BY = "tip_amount", "payment_type"
PAYMENTS = ["cash", "credit", "no charge"]
BASELINE = {"by": BY, "overall": 0.4, "rates": {"cash": 0.1, "credit": 0.9}}


def batch(payments: Sequence[str | None], tips: Sequence[float | None]) -> pa.RecordBatch:
    """Make prepared trips with only the columns that are counted."""
    codes = pa.array([None if name is None else PAYMENTS.index(name) for name in payments], pa.int32())
    coded = pa.DictionaryArray.from_arrays(codes, pa.array(PAYMENTS))
    return pa.RecordBatch.from_arrays([coded, pa.array(tips, pa.float64())], names=[BY, TARGET])


def floats(*values: float) -> Probabilities:
    return np.array(values, dtype=np.float32)


@pytest.fixture(scope="module")
def march(request: pytest.FixtureRequest) -> tuple[pa.RecordBatch, Probabilities, Any]:
    """Demo trips of a month that the model was not fitted on, their probabilities, the model's baseline."""
    layout = pipeline.trained(request)
    contents = modelfiles.read(layout.challenger)
    loaded = modelfiles.load(contents, modelfiles.digest(contents))
    trips = pipeline.batch(pipeline.trips(layout, "2009-03"))
    return trips, loaded.probabilities(trips), loaded.spec["baseline"]


def tipped_of(trips: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.bool_]]:
    tips: np.ndarray[Any, np.dtype[np.bool_]] = trips[TARGET].to_numpy(zero_copy_only=False) > 0
    return tips


def test_counts_of_parts_add_up_to_those_of_the_whole(march: tuple[pa.RecordBatch, Probabilities, Any]) -> None:
    trips, scores, _ = march
    whole = Counts.of(trips, TARGET, BY, scores)
    edges = [0, 1, 777, 778, 3001, len(trips)]
    parts = [
        Counts.of(trips.slice(low, high - low), TARGET, BY, scores[low:high]) for low, high in itertools.pairwise(edges)
    ]
    merged = Counts.sum(parts)
    assert merged.rows == whole.rows == len(trips)
    np.testing.assert_array_equal(merged.bands, whole.bands)
    assert merged.probability == pytest.approx(whole.probability, rel=1e-12)
    assert set(merged.groups) == set(whole.groups)
    assert len(whole.groups) > 2
    for name, (rows, tips, loss) in whole.groups.items():
        assert merged.groups[name][:2] == (rows, tips)
        assert merged.groups[name][2] == pytest.approx(loss, rel=1e-9)


def test_adding_parts_up_leaves_them_as_they_were() -> None:
    part = Counts.of(batch(["cash"], [1.0]), TARGET, BY, floats(0.5))
    Counts.sum([part, part])
    assert (part.rows, part.bands.sum(), part.groups["cash"][0]) == (1, 1, 1)


def test_counts_survive_json(march: tuple[pa.RecordBatch, Probabilities, Any]) -> None:
    trips, scores, baseline = march
    counts = Counts.of(trips, TARGET, BY, scores)
    read = Counts.from_json(json.loads(json.dumps(counts.to_json())))
    assert (read.rows, read.probability, read.groups) == (counts.rows, counts.probability, counts.groups)
    np.testing.assert_array_equal(read.bands, counts.bands)
    assert read.figures(baseline) == counts.figures(baseline)


def test_figures_are_those_of_scikit_learn(march: tuple[pa.RecordBatch, Probabilities, Any]) -> None:
    trips, scores, baseline = march
    figures = Counts.of(trips, TARGET, BY, scores).figures(baseline)
    tipped = tipped_of(trips)
    of_baseline = log_loss(tipped, metrics.baseline_probabilities(trips, baseline))
    assert figures["rows"] == figures["labelled_rows"] == len(trips)
    assert figures["mean_probability"] == pytest.approx(scores.mean(dtype=float), rel=1e-9)
    assert figures["tip_rate"] == pytest.approx(tipped.mean())
    assert figures["log_loss"] == pytest.approx(log_loss(tipped, scores.astype(float)), rel=1e-5)
    assert figures["baseline_log_loss"] == pytest.approx(of_baseline, rel=1e-5)
    assert figures["skill"] == pytest.approx(1 - log_loss(tipped, scores.astype(float)) / of_baseline, abs=1e-4)
    assert figures["auc"] == pytest.approx(roc_auc_score(tipped, scores), abs=1e-3)


def test_auc_is_exact_for_scores_at_the_centres_of_bands() -> None:
    generator = np.random.default_rng(7)
    tipped = generator.random(4000) < 0.4
    centres = generator.integers(0, metrics.BANDS, 4000)
    centres[tipped] = np.minimum(centres[tipped] + 100, metrics.BANDS - 1)
    scores = ((centres + 0.5) / metrics.BANDS).astype(np.float32)
    trips = batch(["cash"] * 4000, tipped.astype(float).tolist())
    area = metrics.auc(Counts.of(trips, TARGET, BY, scores).bands)
    assert area == pytest.approx(roc_auc_score(tipped, scores), abs=1e-12)


@pytest.mark.parametrize(("score", "band"), [(0.0, 0), (0.0004, 0), (0.0016, 1), (0.9996, 999), (1.0, 999)])
def test_a_score_is_counted_in_its_band(score: float, band: int) -> None:
    counts = Counts.of(batch(["cash"], [2.5]), TARGET, BY, floats(score))
    assert np.argwhere(counts.bands).tolist() == [[band, 1]]


@pytest.mark.parametrize("tip", [0.0, 2.0])
def test_one_class_alone_has_no_auc(tip: float) -> None:
    figures = Counts.of(batch(["cash", "credit"], [tip, tip]), TARGET, BY, floats(0.2, 0.8)).figures(BASELINE)
    assert figures["auc"] is None
    assert figures["log_loss"] is not None


def test_a_baseline_that_leaves_nothing_to_gain_gives_no_skill() -> None:
    counts = Counts.of(batch(["cash", "credit"], [0.0, 1.0]), TARGET, BY, floats(0.2, 0.8))
    perfect = {"by": BY, "overall": 0.5, "rates": {"cash": 0.0, "credit": 1.0}}
    assert counts.figures(perfect)["skill"] is None
    assert counts.figures(perfect)["log_loss"] == pytest.approx(-math.log(0.8), rel=1e-6)
    assert counts.figures(BASELINE)["skill"] == pytest.approx(1 - math.log(0.8) / math.log(0.9), rel=1e-5)


def test_skill_is_what_is_taken_off_the_baselines_loss() -> None:
    assert metrics.skill(0.3, 0.4) == pytest.approx(0.25)
    assert metrics.skill(0.5, 0.4) == pytest.approx(-0.25)
    assert metrics.skill(0.0, 0.4) == 1
    assert metrics.skill(None, 0.4) is None
    assert metrics.skill(0.3, None) is None


def test_rows_without_a_target_are_scored_but_not_judged() -> None:
    trips = batch(["cash", "credit", "credit", "cash"], [0.0, None, 3.0, None])
    counts = Counts.of(trips, TARGET, BY, floats(0.1, 0.9, 0.8, 0.3))
    figures = counts.figures(BASELINE)
    judged = Counts.of(batch(["cash", "credit"], [0.0, 3.0]), TARGET, BY, floats(0.1, 0.8)).figures(BASELINE)
    assert (figures["rows"], figures["labelled_rows"]) == (4, 2)
    assert figures["mean_probability"] == pytest.approx(0.525)
    for name in ("tip_rate", "log_loss", "baseline_log_loss", "skill", "auc"):
        assert figures[name] == judged[name], name


def test_without_any_target_only_the_probabilities_are_told() -> None:
    figures = Counts.of(batch(["cash", "credit"], [None, None]), TARGET, BY, floats(0.25, 0.75)).figures(BASELINE)
    assert (figures["rows"], figures["labelled_rows"], figures["mean_probability"]) == (2, 0, 0.5)
    for name in ("tip_rate", "log_loss", "baseline_log_loss", "skill", "auc"):
        assert figures[name] is None, name


def test_no_rows_give_no_figures() -> None:
    figures = Counts().figures(BASELINE)
    assert (figures.pop("rows"), figures.pop("labelled_rows")) == (0, 0)
    assert set(figures.values()) == {None}


def test_a_missing_category_is_a_group_of_its_own() -> None:
    trips = batch(["cash", None, None, "no charge"], [0.0, 1.0, 0.0, 0.0])
    counts = Counts.of(trips, TARGET, BY, floats(0.1, 0.5, 0.5, 0.2))
    assert {name: group[:2] for name, group in counts.groups.items()} == {
        "cash": (1, 0),
        "no charge": (1, 0),
        metrics.MISSING: (2, 1),
    }


def test_baseline_rates_are_smoothed_with_rows_of_the_overall_rate() -> None:
    trips = batch(["cash", "cash", "cash", "credit", None], [0.0, 0.0, 1.0, 2.0, 0.0])
    baseline = metrics.fit_baseline(trips, TARGET, BY, 2)
    assert baseline["by"] == BY
    assert baseline["overall"] == pytest.approx(0.4)
    assert baseline["rates"] == {
        metrics.MISSING: pytest.approx((0 + 2 * 0.4) / (1 + 2)),
        "cash": pytest.approx((1 + 2 * 0.4) / (3 + 2)),
        "credit": pytest.approx((1 + 2 * 0.4) / (1 + 2)),
    }


def test_without_smoothing_the_baseline_is_the_plain_rate() -> None:
    baseline = metrics.fit_baseline(batch(["cash", "cash", "credit"], [0.0, 1.0, 1.0]), TARGET, BY, 0)
    assert baseline["rates"] == {"cash": 0.5, "credit": 1.0}


def test_an_unseen_or_missing_category_has_the_overall_rate() -> None:
    trips = batch(["no charge", None, "credit"], [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(metrics.baseline_probabilities(trips, BASELINE), [0.4, 0.4, 0.9])
    figures = Counts.of(trips, TARGET, BY, floats(0.5, 0.5, 0.5)).figures(BASELINE)
    expected = -(math.log(0.4) + math.log(0.6) + math.log(0.9)) / 3
    assert figures["baseline_log_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_missing_category_that_was_seen_has_its_own_rate() -> None:
    baseline = BASELINE | {"rates": {"cash": 0.1, metrics.MISSING: 0.7}}
    values = metrics.baseline_probabilities(batch([None, "cash"], [1.0, 0.0]), baseline)
    np.testing.assert_array_equal(values, [0.7, 0.1])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_certainty_that_proves_wrong_costs_much_but_not_all(kind: type[np.floating[Any]]) -> None:
    certain: Any = np.array([0, 1, 0, 1], kind)
    loss = metrics.losses(certain, np.array([True, False, False, True]))
    assert np.isfinite(loss).all()
    np.testing.assert_allclose(loss[:2], 24 * math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(loss[2:], 0)


def test_rows_with_a_negative_tip_count_as_no_tip() -> None:
    tipped, known = metrics.labels(batch(["cash"] * 4, [-1.0, 0.0, 0.01, None]), TARGET)
    assert (tipped.tolist(), known.tolist()) == ([False, False, True, False], [True, True, True, False])
