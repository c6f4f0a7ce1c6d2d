"""Counts of parts add up to those of the whole, and the figures are those of the rows."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from tests import workbench
from tests.test_baseline import BY, TARGET, batch, coded
from tipline.arrays import CHUNK_ROWS, Probabilities
from tipline.evaluation import metrics
from tipline.model import artifact
from tipline.monitoring import counts
from tipline.monitoring.counts import Counts, Histogram, Sums
from tipline.paths import Paths

RATES = {"by": [BY], "overall": 0.4, "rates": {"cash": 0.1, "credit": 0.9}}
SPEC: dict[str, Any] = {"target": TARGET, "baseline": RATES, "time": "pickup_datetime"}
DAY = 86_400_000_000
JUDGED = ("positive_rate", "log_loss", "baseline_log_loss", "skill", "auc")


def floats(*values: float) -> Probabilities:
    return np.array(values, dtype=np.float32)


def count_rows(trips: pa.RecordBatch, scores: Probabilities) -> Counts:
    return Counts.from_rows(trips, SPEC, scores, trips)


def test_counts_of_parts_add_up_to_those_of_the_whole(trained_template: Paths) -> None:
    contents = artifact.read_artifact(trained_template.challenger)
    model = artifact.load_model(contents, artifact.hash_artifact(contents))
    trips = workbench.as_batch(workbench.read_prepared(trained_template, "2009-03"))
    scores = model.probabilities(trips)
    whole = Counts.from_rows(trips, model.spec, scores, trips, "2009-03")
    parts = [
        Counts.from_rows(
            trips.slice(low, high - low), model.spec, scores[low:high], trips.slice(low, high - low), "2009-03"
        )
        for low, high in itertools.pairwise([0, 0, 1, 777, 778, 3001, 5000])
    ]
    written = [json.dumps(part.to_json()) for part in parts]
    merged = Counts.merge(Counts.from_json(json.loads(text)) for text in written)
    assert json.dumps(merged.to_json()) == json.dumps(Counts.merge(parts).to_json())
    assert [json.dumps(part.to_json()) for part in parts] == written
    found, expected = merged.to_json(), whole.to_json()
    assert found["rows"] == expected["rows"] == len(trips)
    assert len(whole.days) >= 31
    assert whole.histograms.keys() == {feature["name"] for feature in model.spec["features"]}
    assert [found[name] for name in ("bands", "histograms")] == [expected[name] for name in ("bands", "histograms")]
    assert found["probability"] == pytest.approx(expected["probability"], rel=1e-12)
    assert found["days"].keys() == expected["days"].keys()
    for day, groups in whole.days.items():
        assert merged.days[day] == {name: pytest.approx(sums, rel=1e-6) for name, sums in groups.items()}


def test_days_are_those_of_the_month_and_all_other_rows_are_apart() -> None:
    first = int(np.datetime64("2009-02-01", "us").astype(int))
    times = [first, first + DAY - 1, first + 27 * DAY, first + 28 * DAY, first - 1, -(DAY * 9), None]
    tips = [0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    trips = batch(["cash"] * 7, tips, pickup_datetime=pa.array(times, pa.timestamp("us")))
    days = Counts.from_rows(trips, SPEC, floats(0.75, *[0.5] * 6), trips, "2009-02").days
    assert days["1"]["cash"] == pytest.approx((2, 1, 1.25, -math.log(0.25) - math.log(0.5)))
    in_days = {day: groups["cash"][:2] for day, groups in days.items()}
    assert in_days == {"1": (2, 1), "28": (1, 0), counts.OTHER: (4, 1)}
    assert count_rows(trips, floats(*[0.5] * 7)).days[counts.OTHER]["cash"][:2] == (7, 2)


def test_auc_is_exact_for_scores_at_the_centres_of_bands() -> None:
    generator, rows = np.random.default_rng(7), CHUNK_ROWS + 3  # chunks are counted as one
    labels = generator.random(rows) < 0.4
    centres = np.minimum(generator.integers(0, counts.BANDS, rows) + 100 * labels, counts.BANDS - 1)
    scores = ((centres + 0.5) / counts.BANDS).astype(np.float32)
    bands = count_rows(batch(["cash"] * rows, labels.astype(float).tolist()), scores).bands
    assert bands.sum() == rows
    assert metrics.compute_auc(bands) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    for one_class in (0, 1):
        assert metrics.compute_auc(np.where(np.arange(3) == one_class, bands, 0)) is None


def test_certainty_that_proves_wrong_costs_much_but_not_all() -> None:
    certain = np.array([0, 1, 0, 1], np.float32)
    loss = metrics.compute_log_loss(certain, np.array([True, False, False, True]))
    assert np.isfinite(loss).all()
    np.testing.assert_allclose(loss[:2], 24 * math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(loss[2:], 0)


def test_rows_without_labels_are_scored_but_not_judged() -> None:
    scores, tips = floats(0.1, 0.9, 0.8, 0.3), [-1.0, None, 3.0, None]  # a negative tip is none
    counted = count_rows(batch(["cash", "credit", "credit", "cash"], tips), scores)
    figures = counted.figures(RATES)
    judged = count_rows(batch(["cash", "credit"], [0.0, 3.0]), scores[[0, 2]]).figures(RATES)
    assert (figures["rows"], figures["labelled_rows"]) == (4, 2)
    assert figures["mean_probability"] == pytest.approx(0.525)
    assert np.flatnonzero(counted.bands[:, 2]).tolist() == [300, 900]
    twice = Counts.merge([Counts.from_json(json.loads(json.dumps(counted.to_json())))] * 2).unlabelled
    assert twice == {"credit": pytest.approx((2, 0, 1.8, 0)), "cash": pytest.approx((2, 0, 0.6, 0))}
    assert {name: figures[name] for name in JUDGED} == {name: judged[name] for name in JUDGED}
    for rows in (0, 2):
        unknown = count_rows(batch(["cash"] * rows, [None] * rows), floats(*[0.25] * rows)).figures(RATES)
        known = {"rows": rows, "labelled_rows": 0, "mean_probability": 0.25 if rows else None}
        assert unknown == known | dict.fromkeys(JUDGED)


# ---- features ----

NUMBER = {"kind": "number", "edges": [10.0, 1000.0]}


def test_numbers_fall_into_bins_with_open_ends_and_times_into_hours() -> None:
    times = pa.array(np.array(["2009-02-03T10:59", "2009-02-03T23:00", "1969-12-31T23:30", "NaT"], "datetime64[us]"))
    hours = counts.count_column(times, {"kind": "hour"})
    assert (np.flatnonzero(hours.counts).tolist(), hours.counts.sum(), hours.missing) == ([10, 23], 3, 1)
    values = pa.array([-5.0, 0.0, 9.999, 10.0, 999.0, 1000.0, 1e300, math.inf, None])
    counted = counts.count_column(values, NUMBER)
    assert (counted.counts.tolist(), counted.missing) == ([3, 2, 3], 1)
    assert counts.assign_bins(values, NUMBER)[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3]
    assert counts.count_column(pa.array([7, 7]), {"kind": "number", "edges": []}).counts.tolist() == [2]


def test_values_that_the_reference_does_not_have_are_named() -> None:
    bins = {"kind": "category", "values": ["a", "b"]}
    column = coded(["b", "c", None, "a", "c", "d"], [*"abcd", "unused"])
    counted = counts.count_column(column, bins)
    assert (counted.counts.tolist(), counted.missing, counted.new) == ([1, 1, 3], 1, {"c": 2, "d": 1})
    assert counts.assign_bins(column, bins)[0].tolist() == [1, 2, 3, 0, 2, 2]


def test_free_text_keeps_its_most_frequent_values_only() -> None:
    names = [f"value {number:03d}" for number in range(300)]
    counted = counts.count_column(coded([*names, "value 299"], names), {"kind": "category", "values": []})
    read = Histogram.from_json((counted + counted).to_json())
    assert (len(read.new), read.new["value 299"], read.counts.tolist()) == (counts.MAX_NEW_NAMES, 4, [602])


def test_the_numbers_of_a_large_block_are_estimated_from_evenly_spaced_rows() -> None:
    rows = 4 * counts.SAMPLED_ROWS + 3
    values = np.random.default_rng(1).random(rows) * 1024
    counted = counts.count_column(pa.array(values), NUMBER).counts
    assert counted.sum() == pytest.approx(rows, abs=4)
    shares = np.histogram(values, [0, 10, 1000, 1024])[0] / rows
    np.testing.assert_allclose(counted / counted.sum(), shares, atol=0.002)


def test_counts_that_an_older_tipline_wrote_can_be_read() -> None:
    # Parts of an unfinished run may have them; `monitor` counts such a month again.
    value = Counts(rows=3, days={"1": {"cash": Sums(3, 1, 0.5, 0.2)}}).to_json()
    del value["unlabelled"]
    assert Counts.from_json(value).unlabelled == {}
