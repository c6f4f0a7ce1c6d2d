"""Bounds by day hold where days resemble the day before, and say when data are too few."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from tipline.evaluation.intervals import Ratio, find_shortage

RUNS = 2000


def draw_days(days: int, rho: float) -> list[Ratio]:
    """Estimate from simulated days, each with a correlation with the day before, as independent and as days."""
    steps = np.random.default_rng(7).normal(size=(RUNS, days)) * np.sqrt(1 - rho**2)
    steps[:, 0] /= np.sqrt(1 - rho**2)
    return [
        Ratio.estimate(each, np.ones(days), are_days=are_days)
        for are_days in (False, True)
        for each in lfilter([1], [1, -rho], steps)
    ]


@pytest.mark.parametrize(("rho", "plain"), [(0.0, (0.98, 1.02)), (0.3, (0.45, 0.65))])
def test_the_variance_of_a_mean_is_right_on_average_where_days_are_correlated(
    rho: float, plain: tuple[float, float]
) -> None:
    ratios = draw_days(28, rho)
    truth = np.var([ratio.value for ratio in ratios[:RUNS]])
    independent, by_day = (
        np.mean([ratio.error**2 for ratio in some]) / truth for some in (ratios[:RUNS], ratios[RUNS:])
    )
    assert plain[0] - 0.05 < independent < plain[1] + 0.05
    assert by_day == pytest.approx(1, abs=0.2 if rho else 0.05)


@pytest.mark.parametrize("days", [14, 31])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_a_bound_is_wrong_in_about_one_of_twenty_cases(days: int, rho: float) -> None:
    ratios = draw_days(days, rho)
    independent, by_day = (
        np.mean([ratio.bounds()[1] < 0 for ratio in some]) for some in (ratios[:RUNS], ratios[RUNS:])
    )
    assert by_day == pytest.approx(0.05, abs=0.02)
    assert bool(independent > 0.07) is (rho > 0)


def test_known_values() -> None:
    # The one cosine of two days is (1, -1) / sqrt(2).
    for are_days in (False, True):
        ratio = Ratio.estimate(np.array([1.0, 3.0]), np.ones(2), are_days=are_days)
        assert [ratio.value, ratio.error, ratio.freedom] == pytest.approx([2, 1, 1])
    assert [Ratio.estimate(np.ones(days), np.ones(days)).freedom for days in (2, 13, 14, 31)] == [1, 1, 2, 4]
    for days, value in ((0, math.nan), (1, 1.0)):
        ratio = Ratio.estimate(np.ones(days), np.ones(days))
        assert ratio.value == pytest.approx(value, nan_ok=True)
        assert math.isnan(ratio.error)


@pytest.mark.parametrize(
    ("days", "surprises", "heaviest", "words"),
    [
        (1, 1000, 1.0, "only 1 day to judge on, 14 are needed"),
        (13, 1000, 1.0, "only 13 days to judge on, 14 are needed"),
        (14, 25, 1.0, None),
        (14, 1, 1.0, "only 1 row went against the baseline's odds, 25 are needed"),
        (14, 25, 4.3, None),
        (14, 25, 4.4, "one day has 25% of the weight, so the scatter between days is not known"),
    ],
)
def test_what_is_too_few(days: int, surprises: int, heaviest: float, words: str | None) -> None:
    weights = np.ones(days)
    weights[0] = heaviest
    assert find_shortage(weights, days, surprises) == words
