"""Features are counted in the bins that a model carries."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from tests.test_baseline import coded
from tipline.evaluation import histograms
from tipline.evaluation.histograms import Histogram

NUMBER = {"kind": "number", "low": 0.0, "high": 1024.0, "starts": [0, 10, 1000]}


def test_numbers_fall_into_bins_with_open_ends() -> None:
    values = pa.array([-5.0, 0.0, 9.999, 10.0, 999.0, 1000.0, 1e300, math.inf, None])
    counted = histograms.count_column(values, NUMBER)
    assert (counted.counts.tolist(), counted.missing) == ([3, 2, 3], 1)
    np.testing.assert_array_equal(histograms.assign_bins(values, NUMBER), [0, 0, 0, 1, 1, 2, 2, 2, 3])
    constant = {"kind": "number", "low": 7.0, "high": 7.0, "starts": [0]}
    assert histograms.count_column(pa.array([7.0, 7.0]), constant).counts.tolist() == [2]


def test_hours_and_missing_times_are_counted() -> None:
    times = pa.array(np.array(["2009-02-03T10:59", "2009-02-03T23:00", "1969-12-31T23:30", "NaT"], "datetime64[us]"))
    counted = histograms.count_column(times, {"kind": "hour"})
    assert (np.flatnonzero(counted.counts).tolist(), counted.counts.sum(), counted.missing) == ([10, 23], 3, 1)


@pytest.mark.parametrize("names", [["a", "b", "c", "d", "unused"], [*"abcd", *(f"zone {i}" for i in range(20))]])
def test_values_that_the_reference_does_not_have_are_named(names: list[str]) -> None:
    bins = {"kind": "category", "values": ["a", "b"]}
    column = coded(["b", "c", None, "a", "c", "d"], names)
    counted = histograms.count_column(column, bins)
    assert (counted.counts.tolist(), counted.missing, counted.new) == ([1, 1, 3], 1, {"c": 2, "d": 1})
    np.testing.assert_array_equal(histograms.assign_bins(column, bins), [1, 2, 3, 0, 2, 2])


def test_free_text_keeps_its_most_frequent_values_only() -> None:
    names = [f"value {number:03d}" for number in range(300)]
    counted = histograms.count_column(coded([*names, "value 299"], names), {"kind": "category", "values": []})
    assert counted.counts.tolist() == [301]
    read = Histogram.from_json((counted + counted).to_json())
    assert len(read.new) == histograms.MAX_NEW_NAMES
    assert (read.new["value 299"], read.counts.tolist()) == (4, [602])


def test_the_numbers_of_a_large_block_are_estimated_from_evenly_spaced_rows() -> None:
    rows = 4 * histograms.SAMPLED_ROWS + 3
    values = np.random.default_rng(1).random(rows) * 1024
    counted = histograms.count_column(pa.array(values), NUMBER).counts
    assert counted.sum() == pytest.approx(rows, abs=4)
    shares = np.histogram(values, [0, 10, 1000, 1024])[0] / rows
    np.testing.assert_allclose(counted / counted.sum(), shares, atol=0.002)
