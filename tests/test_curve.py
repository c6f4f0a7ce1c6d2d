"""The size of the sample is chosen on paired differences, and the words say what the figures do."""

from __future__ import annotations

import csv
import json
import math
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import Pipeline

from tests import pipeline
from tipline import cluster, curve, plots
from tipline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.layout import Layout

pytestmark = pipeline.MLFLOW_WARNINGS


def synthetic(losses: Any, sizes: tuple[int, ...], days: Any, baseline: float = 0.5) -> curve.Study:
    """Make a study of which only the losses matter, shape (sizes, repeats, rows)."""
    losses = np.asarray(losses, np.float32)
    nothing: Any = np.empty((0, 0))
    data = curve.Data((nothing, nothing), (nothing, nothing), np.asarray(days), baseline)
    figures: Any = np.full(losses.shape[:2], 0.7)
    return curve.Study(data, sizes, losses, figures, figures)


def noisy(behind: list[float], rows: int = 2000, days: int = 10, noise: float = 0.01) -> curve.Study:
    """Make a study whose sizes have losses `behind` above the largest size's, but for a little noise."""
    generator = np.random.default_rng(3)
    common = generator.exponential(0.3, rows)
    losses = [[common + one + generator.normal(0, noise, rows) for _ in range(5)] for one in [*behind, 0.0]]
    sizes = tuple(100 * 2**place for place in range(len(behind) + 1))
    return synthetic(losses, sizes, np.arange(rows) % days)


def test_sizes_are_evenly_spaced_on_a_log_scale() -> None:
    assert curve.sizes(100, 10_000, 3) == (100, 1000, 10_000)
    assert curve.sizes(500, 50_000, 7) == (500, 1077, 2321, 5000, 10772, 23208, 50_000)


@pytest.mark.parametrize(("largest", "count"), [(100, 5), (103, 30), (10_000, 1)])
def test_sizes_are_different_and_begin_with_the_smallest(largest: int, count: int) -> None:
    sizes = curve.sizes(100, largest, count)
    assert sizes[0] == 100
    assert max(sizes) <= largest
    assert list(sizes) == sorted(set(sizes))
    assert len(sizes) <= count


def test_both_ends_are_studied() -> None:
    for count in (2, 3, 10, 30):
        sizes = curve.sizes(50, 4999, count)
        assert (sizes[0], sizes[-1]) == (50, 4999)


def test_the_excess_of_a_small_case_is_that_by_hand() -> None:
    # Two repeats, four rows on two days; above the largest size by:
    #   repeat 0: .2 .0 | .1 .1    repeat 1: .4 .2 | .0 .2
    study = synthetic(
        [[[0.3, 0.1, 0.2, 0.2], [0.5, 0.3, 0.1, 0.3]], [[0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]]],
        (10, 20),
        [0, 0, 1, 1],
        baseline=0.5,
    )
    mean, upper = curve.excess(study)
    expected = (0.1 + 0.2) / 2
    of_repeats = ((0.1 - expected) ** 2 + (0.2 - expected) ** 2) / 1 / 2
    # Sums a day, mean of the repeats: (.2 + .6) / 2 and (.2 + .2) / 2; two rows a day.
    residuals = [0.4 - 2 * expected, 0.2 - 2 * expected]
    of_days = (residuals[0] ** 2 + residuals[1] ** 2) * 2 / 1 / 4**2
    bound = expected + student.ppf(0.95, 1) * math.sqrt(of_repeats + of_days)
    assert mean == pytest.approx([expected / 0.5, 0], abs=1e-6)
    assert upper == pytest.approx([bound / 0.5, 0], abs=1e-6)


def test_the_standard_error_counts_days_as_blocks() -> None:
    study = noisy([0.01])
    moved = study.losses.copy()
    moved[0] += np.where(study.data.days < 5, 0.05, -0.05).astype(np.float32)
    by_day = synthetic(moved, study.sizes, study.data.days)
    (mean, upper), (mean_by_day, upper_by_day) = curve.excess(study), curve.excess(by_day)
    assert mean_by_day[0] == pytest.approx(mean[0], abs=1e-4)
    assert upper_by_day[0] > upper[0] + 0.05


def test_a_curve_that_has_levelled_off_gives_the_smallest_size_that_is_enough() -> None:
    decision = curve.decide(noisy([0.1, 0.01, 0.00001]), 0.01, 5000)
    assert decision["rows"] == 400
    assert decision["levelled_off"]
    assert "400 rows: with 95% confidence, 800 rows add less than 0.01 skill" in decision["reason"]
    assert [size["rows"] for size in decision["sizes"]] == [100, 200, 400, 800]
    assert decision["sizes"][2]["behind_largest_upper"] < 0.01 < decision["sizes"][1]["behind_largest_upper"]


def test_a_curve_that_has_not_levelled_off_takes_all_rows_and_says_so() -> None:
    decision = curve.decide(noisy([0.1, 0.05, 0.02]), 0.001, 5000)
    assert decision["rows"] == 5000
    assert not decision["levelled_off"]
    assert "has not levelled off" in decision["reason"]
    assert "All 5,000 rows" in decision["reason"]


def test_a_small_gain_that_is_uncertain_is_not_ruled_out() -> None:
    decision = curve.decide(noisy([0.0], days=3, rows=30, noise=0.5), 0.001, 5000)
    assert not decision["levelled_off"]
    assert decision["rows"] == 5000


def test_equal_losses_need_no_more_than_the_smallest_size() -> None:
    losses = np.broadcast_to(np.random.default_rng(1).exponential(0.4, 60), (3, 2, 60))
    decision = curve.decide(synthetic(losses, (100, 200, 400), np.arange(60) % 4), 0.001, 5000)
    assert (decision["rows"], decision["levelled_off"]) == (100, True)
    assert "at most 0.00000" in decision["reason"]


def test_a_smaller_size_that_is_better_is_enough() -> None:
    decision = curve.decide(noisy([-0.05, -0.02]), 0.001, 5000)
    assert decision["rows"] == 100
    assert "at most 0.00000" in decision["reason"]


def test_one_size_alone_says_nothing_about_smaller_ones() -> None:
    decision = curve.decide(noisy([]), 0.001, 5000)
    assert (decision["rows"], decision["levelled_off"]) == (5000, False)
    assert len(decision["sizes"]) == 1


def test_one_day_is_one_block() -> None:
    decision = curve.decide(noisy([0.2, 0.000001], days=1), 0.05, 5000)
    assert (decision["rows"], decision["levelled_off"]) == (200, True)
    assert all(math.isfinite(size["behind_largest_upper"]) for size in decision["sizes"])


@pytest.mark.parametrize("baseline", [0.0, 1e-9])
def test_a_baseline_that_leaves_nothing_takes_all_rows(baseline: float, tmp_path: Path) -> None:
    study = noisy([0.1, 0.0])
    decision = curve.decide(synthetic(study.losses, study.sizes, study.data.days, baseline), 0.01, 5000)
    assert decision["rows"] == 5000
    assert not decision["levelled_off"]
    assert "leaves nothing to gain" in decision["reason"]
    for size in decision["sizes"]:
        assert {size[name] for name in ("skill", "skill_low", "skill_high", "behind_largest")} == {None}
        assert size["log_loss"] > 0
    assert json.loads(json.dumps(decision, allow_nan=False)) == decision
    plots.learning_curve(tmp_path / "curve.png", decision)


def test_figures_of_a_size_are_over_its_repeats() -> None:
    losses = [[[0.2, 0.4], [0.4, 0.6]], [[0.1, 0.1], [0.1, 0.1]]]
    first = curve.decide(synthetic(losses, (100, 200), [0, 1]), 0.001, 5000)["sizes"][0]
    assert first["log_loss"] == pytest.approx(0.4)
    assert (first["skill_low"], first["skill"], first["skill_high"]) == pytest.approx((0, 0.2, 0.4), abs=1e-6)
    assert first["auc"] == pytest.approx(0.7)


def test_a_study_scores_prefixes_of_the_same_shuffles() -> None:
    generator = np.random.default_rng(5)

    def data(rows: int) -> tuple[Any, Any]:
        inputs = generator.normal(size=(rows, 2))
        return inputs, inputs[:, 0] + generator.normal(size=rows) > 0

    fit, size = data(400), data(300)
    made = curve.Data(fit, size, np.arange(300) % 7, 0.6)
    estimator = Pipeline([("classifier", LogisticRegression())])
    with joblib.parallel_config("sequential"):
        study = curve.study(estimator, made, (50, 200), 3, seed=9)
        larger = curve.study(estimator, made, (50, 100, 200), 3, seed=9)
        other = curve.study(estimator, made, (50, 200), 3, seed=10)
    assert study.losses.shape == (2, 3, 300)
    assert study.aucs.shape == study.seconds.shape == (2, 3)
    np.testing.assert_array_equal(larger.losses[[0, 2]], study.losses)
    assert (other.losses != study.losses).any()
    shuffle = np.random.default_rng(9).permutation(400)
    model = LogisticRegression().fit(fit[0][shuffle[:50]], fit[1][shuffle[:50]])
    scores = model.predict_proba(size[0])[:, 1]
    assert study.losses[0, 0].mean() == pytest.approx(log_loss(size[1], scores), rel=1e-5)
    assert study.aucs[0, 0] == pytest.approx(roc_auc_score(size[1], scores))


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setenv(cluster.ADDRESS, pipeline.dask_cluster(request))
    return pipeline.copy(pipeline.trained(request), tmp_path)


def test_the_stage_writes_table_picture_decision_and_size(project: Layout) -> None:
    decision = pipeline.read_json(project.learning_curve.with_suffix(".json"))
    with project.learning_curve.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["rows"]) for row in table] == [200, 548, 1500]
    for row, size in zip(table, decision["sizes"], strict=True):
        assert {name: float(value) for name, value in row.items()} == size
    assert project.learning_curve.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert pipeline.read_json(project.sample_size) == {"rows": decision["rows"]}
    assert decision["rows"] in {200, 548, 3000}


def test_the_same_sample_gives_the_same_decision(project: Layout) -> None:
    before = pipeline.read_json(project.learning_curve.with_suffix(".json"))
    size = project.sample_size.read_bytes()
    pipeline.run(project, "learning_curve")
    after = pipeline.read_json(project.learning_curve.with_suffix(".json"))
    for decision in (before, after):
        for figures in decision["sizes"]:
            assert figures.pop("fit_seconds") > 0
    assert after == before
    assert project.sample_size.read_bytes() == size


def test_a_smallest_size_above_half_of_the_sample_is_refused(
    project: Layout, run_cli: Callable[..., tuple[int, str]]
) -> None:
    before = pipeline.tree(project.root / "reports") | pipeline.tree(project.root / "models")
    pipeline.change(project, learning_curve={"smallest": 1501})
    with pytest.raises(UsageError, match=r"3,000 rows; half of it is less than learning_curve\.smallest, 1,501"):
        pipeline.run(project, "learning_curve")
    code, printed = run_cli(project.root, "learning_curve")
    assert code == 2
    assert "params.yaml, learning_curve.smallest" in printed
    assert pipeline.tree(project.root / "reports") | pipeline.tree(project.root / "models") == before


def test_half_of_the_sample_may_be_the_only_size(project: Layout) -> None:
    pipeline.change(project, learning_curve={"smallest": 1500})
    pipeline.run(project, "learning_curve")
    decision = pipeline.read_json(project.learning_curve.with_suffix(".json"))
    assert [size["rows"] for size in decision["sizes"]] == [1500]
    assert pipeline.read_json(project.sample_size) == {"rows": 3000}
