"""The counts that merge over parts, and the figures that follow from them, are those of all rows."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests import workbench
from tests.test_baseline import BY, TARGET, batch, coded
from tipline.evaluation import baseline, histograms, metrics
from tipline.model import artifact
from tipline.monitoring import counts
from tipline.monitoring.counts import Counts

if TYPE_CHECKING:
    from tipline.model.pyfunc import Probabilities

    March = tuple[pa.RecordBatch, Probabilities, dict[str, Any]]

RULE = {"by": [BY], "overall": 0.4, "rates": {"cash": 0.1, "credit": 0.9}}
SPEC: dict[str, Any] = {"target": TARGET, "baseline": RULE, "time": "pickup_datetime"}
DAY = 86_400_000_000


def floats(*values: float) -> Probabilities:
    return np.array(values, dtype=np.float32)


def of(trips: pa.RecordBatch, scores: Probabilities, **spec: Any) -> Counts:
    """Count rows that have no time."""
    return Counts.from_rows(trips, {"target": TARGET, "baseline": RULE} | spec, scores)


@pytest.fixture(scope="module")
def march(request: pytest.FixtureRequest) -> March:
    """Demo trips of a month that the model was not fitted on, their probabilities, model.json."""
    paths = workbench.trained(request)
    contents = artifact.read_artifact(paths.challenger)
    loaded = artifact.load_model(contents, artifact.hash_artifact(contents))
    trips = workbench.as_batch(workbench.read_prepared(paths, "2009-03"))
    return trips, loaded.probabilities(trips), loaded.spec


def tipped_of(trips: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.bool_]]:
    tips: np.ndarray[Any, np.dtype[np.bool_]] = trips[TARGET].to_numpy(zero_copy_only=False) > 0
    return tips


def assert_same(one: Counts, other: Counts) -> None:
    """The same counts, sums but for rounding."""
    np.testing.assert_array_equal(one.bands, other.bands)
    assert one.rows == other.rows
    assert one.probability == pytest.approx(other.probability, rel=1e-12)
    assert one.days.keys() == other.days.keys()
    for day, groups in one.days.items():
        assert groups.keys() == other.days[day].keys()
        for name, sums in groups.items():
            assert sums == pytest.approx(other.days[day][name], rel=1e-6)
    assert one.to_json()["histograms"] == other.to_json()["histograms"]


@pytest.mark.parametrize("edges", [[0, 1, 777, 778, 3001, 5000], [0, 2500, 5000], [0, 0, 5000]])
def test_counts_of_parts_add_up_to_those_of_the_whole(march: March, edges: list[int]) -> None:
    trips, scores, spec = march
    whole = Counts.from_rows(trips, spec, scores, "2009-03")
    parts = [
        Counts.from_rows(trips.slice(low, high - low), spec, scores[low:high], "2009-03")
        for low, high in itertools.pairwise(edges)
    ]
    assert whole.rows == len(trips)
    assert len(whole.days) >= 31
    assert whole.histograms.keys() == {feature["name"] for feature in spec["features"]}
    assert_same(Counts.merge(parts), whole)


def test_adding_parts_up_leaves_them_as_they_were(march: March) -> None:
    trips, scores, spec = march
    part = Counts.from_rows(trips, spec, scores, "2009-03")
    before = json.dumps(part.to_json())
    assert Counts.merge([part, part]).rows == 2 * part.rows
    assert json.dumps(part.to_json()) == before


def test_counts_survive_json(march: March) -> None:
    trips, scores, spec = march
    whole = Counts.from_rows(trips, spec, scores, "2009-03")
    read = Counts.from_json(json.loads(json.dumps(whole.to_json())))
    assert json.dumps(read.to_json()) == json.dumps(whole.to_json())
    assert read.figures(spec["baseline"]) == whole.figures(spec["baseline"])


def test_figures_are_those_of_scikit_learn(march: March) -> None:
    trips, scores, spec = march
    figures = Counts.from_rows(trips, spec, scores).figures(spec["baseline"])
    labels = tipped_of(trips)
    of_baseline = log_loss(labels, baseline.predict_baseline(trips, spec["baseline"]))
    assert figures["rows"] == figures["labelled_rows"] == len(trips)
    assert figures["mean_probability"] == pytest.approx(scores.mean(dtype=float), rel=1e-9)
    assert figures["tip_rate"] == pytest.approx(labels.mean())
    assert figures["log_loss"] == pytest.approx(log_loss(labels, scores.astype(float)), rel=1e-5)
    assert figures["baseline_log_loss"] == pytest.approx(of_baseline, rel=1e-5)
    assert figures["skill"] == pytest.approx(1 - log_loss(labels, scores.astype(float)) / of_baseline, abs=1e-4)
    assert figures["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)


def test_days_are_those_of_the_month_all_others_are_together() -> None:
    first = int(np.datetime64("2009-02-01", "us").astype(int))
    times = [first, first + DAY - 1, first + DAY, first + 27 * DAY, first + 28 * DAY, first - 1, 10**17, None]
    trips = batch(["cash"] * 8, [1.0] * 8, pickup_datetime=pa.array(times, pa.timestamp("us")))
    found = Counts.from_rows(trips, SPEC, floats(*[0.5] * 8), "2009-02")
    assert {day: groups["cash"].rows for day, groups in found.days.items()} == {"1": 2, "2": 1, "28": 1, "other": 4}


def test_a_day_has_rows_tips_probabilities_and_losses_by_group() -> None:
    times = pa.array(np.array(["2009-02-03T10", "2009-02-03T23", "2009-02-03T01"], "datetime64[us]"))
    trips = batch(["cash", "cash", "credit"], [0.0, 2.0, 1.0], pickup_datetime=times)
    found = Counts.from_rows(trips, SPEC, floats(0.25, 0.5, 0.75), "2009-02").days["3"]
    assert found["cash"] == pytest.approx((2, 1, 0.75, -math.log(0.75) - math.log(0.5)))
    assert found["credit"] == pytest.approx((1, 1, 0.75, -math.log(0.75)))


def test_auc_is_exact_for_scores_at_the_centres_of_bands() -> None:
    generator = np.random.default_rng(7)
    labels = generator.random(4000) < 0.4
    centres = generator.integers(0, counts.BANDS, 4000)
    centres[labels] = np.minimum(centres[labels] + 100, counts.BANDS - 1)
    scores = ((centres + 0.5) / counts.BANDS).astype(np.float32)
    area = metrics.compute_auc(of(batch(["cash"] * 4000, labels.astype(float).tolist()), scores).bands)
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize(("score", "band"), [(0.0, 0), (0.0004, 0), (0.0016, 1), (0.9996, 999), (1.0, 999)])
def test_a_score_is_counted_in_its_band(score: float, band: int) -> None:
    assert np.argwhere(of(batch(["cash"], [2.5]), floats(score)).bands).tolist() == [[band, 1]]


@pytest.mark.parametrize("tip", [0.0, 2.0])
def test_one_class_alone_has_no_auc(tip: float) -> None:
    figures = of(batch(["cash", "credit"], [tip, tip]), floats(0.2, 0.8)).figures(RULE)
    assert figures["auc"] is None
    assert figures["log_loss"] is not None


def test_a_baseline_that_leaves_nothing_to_gain_gives_no_skill() -> None:
    found = of(batch(["cash", "credit"], [0.0, 1.0]), floats(0.2, 0.8))
    perfect = {"by": [BY], "overall": 0.5, "rates": {"cash": 0.0, "credit": 1.0}}
    assert found.figures(perfect)["skill"] is None
    assert found.figures(perfect)["log_loss"] == pytest.approx(-math.log(0.8), rel=1e-6)
    assert found.figures(RULE)["skill"] == pytest.approx(1 - math.log(0.8) / math.log(0.9), rel=1e-5)


def test_rows_without_a_target_are_scored_but_not_judged() -> None:
    found = of(batch(["cash", "credit", "credit", "cash"], [0.0, None, 3.0, None]), floats(0.1, 0.9, 0.8, 0.3))
    figures, judged = found.figures(RULE), of(batch(["cash", "credit"], [0.0, 3.0]), floats(0.1, 0.8)).figures(RULE)
    assert (figures["rows"], figures["labelled_rows"]) == (4, 2)
    assert figures["mean_probability"] == pytest.approx(0.525)
    assert found.bands.sum(axis=0).tolist() == [1, 1, 2]
    assert np.flatnonzero(found.bands[:, 2]).tolist() == [300, 900]
    for name in ("tip_rate", "log_loss", "baseline_log_loss", "skill", "auc"):
        assert figures[name] == judged[name], name


def test_without_any_target_only_the_probabilities_are_told() -> None:
    figures = of(batch(["cash", "credit"], [None, None]), floats(0.25, 0.75)).figures(RULE)
    assert (figures["rows"], figures["labelled_rows"], figures["mean_probability"]) == (2, 0, 0.5)
    for name in ("tip_rate", "log_loss", "baseline_log_loss", "skill", "auc"):
        assert figures[name] is None, name


def test_no_rows_give_no_figures() -> None:
    figures = Counts().figures(RULE)
    assert (figures.pop("rows"), figures.pop("labelled_rows")) == (0, 0)
    assert set(figures.values()) == {None}


def test_a_missing_category_is_a_group_of_its_own() -> None:
    found = of(batch(["cash", None, None, "no charge"], [0.0, 1.0, 0.0, 0.0]), floats(0.1, 0.5, 0.5, 0.2))
    expected = {"cash": (1, 0), "no charge": (1, 0), baseline.MISSING: (2, 1)}
    assert {name: sums[:2] for name, sums in found.groups().items()} == expected


# ---- histograms ----

NUMBER = {"kind": "number", "low": 0.0, "high": 1024.0, "starts": [0, 10, 1000]}


def test_numbers_fall_into_bins_with_open_ends() -> None:
    values = pa.array([-5.0, 0.0, 9.999, 10.0, 999.0, 1000.0, 1e300, math.inf, None])
    found = histograms.count_column(values, NUMBER)
    assert (found.counts.tolist(), found.missing) == ([3, 2, 3], 1)
    np.testing.assert_array_equal(histograms.assign_bins(values, NUMBER), [0, 0, 0, 1, 1, 2, 2, 2, 3])


def test_a_constant_number_has_bins_beside_it() -> None:
    found = histograms.count_column(pa.array([7.0, 7.0]), {"kind": "number", "low": 7.0, "high": 7.0, "starts": [0]})
    assert found.counts.tolist() == [2]


def test_hours_and_their_gaps_are_counted() -> None:
    times = pa.array(np.array(["2009-02-03T10:59", "2009-02-03T23:00", "1969-12-31T23:30", "NaT"], "datetime64[us]"))
    found = histograms.count_column(times, {"kind": "hour"})
    assert (np.flatnonzero(found.counts).tolist(), found.counts.sum(), found.missing) == ([10, 23], 3, 1)


def test_values_of_a_category_that_the_reference_does_not_have_are_named() -> None:
    column = coded(["b", "c", None, "a", "c", "d"], ["a", "b", "c", "d", "unused"])
    found = histograms.count_column(column, {"kind": "category", "values": ["a", "b"]})
    assert (found.counts.tolist(), found.missing, found.new) == ([1, 1, 3], 1, {"c": 2, "d": 1})
    codes = histograms.assign_bins(column, {"kind": "category", "values": ["a", "b"]})
    np.testing.assert_array_equal(codes, [1, 2, 3, 0, 2, 2])


def test_a_column_of_free_text_names_the_most_frequent_values_only() -> None:
    names = [f"value {number:03d}" for number in range(300)]
    found = histograms.count_column(coded([*names, "value 299"], names), {"kind": "category", "values": []})
    assert found.counts.tolist() == [301]
    found = histograms.Histogram.from_json(found.to_json())
    assert len(found.new) == histograms.NEW_NAMES
    assert found.new["value 299"] == 2


def test_the_numbers_of_a_large_block_are_estimated_from_evenly_spaced_rows() -> None:
    rows = 4 * histograms.SEEN_ROWS + 3
    values = np.random.default_rng(1).random(rows) * 1024
    found = histograms.count_column(pa.array(values), NUMBER)
    shares = np.histogram(values, [0, 10, 1000, 1024])[0] / rows
    assert found.counts.sum() == pytest.approx(rows, abs=4)
    np.testing.assert_allclose(found.counts / found.counts.sum(), shares, atol=0.002)
