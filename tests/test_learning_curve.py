"""The sample size is chosen on paired differences, and the reason says what the figures do."""

import csv
import dataclasses
import json
import math
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import Pipeline

from tests import workbench
from tipline.config import LearningCurve
from tipline.errors import UsageError
from tipline.model.pipeline import BuiltPipeline
from tipline.paths import Paths
from tipline.training import learning_curve
from tipline.training.learning_curve import Examples, Study, choose_rows

pytestmark = workbench.MLFLOW_WARNINGS


def create_noisy_study(behind: list[float], repeats: int = 5, days: int = 10, noise: float = 0.001) -> Study:
    """Make a study whose sizes have `behind` less skill than the largest, plus noise; 100 rows per day."""
    generator = np.random.default_rng(3)
    baseline: Any = generator.uniform(40, 60, days)
    common = generator.uniform(30, 50, days)
    skills = [*behind, 0.0]
    sums: Any = np.array([common + baseline * (one + generator.normal(0, noise, (repeats, days))) for one in skills])
    sizes = tuple(100 * 2**place for place in range(len(sums)))
    figures = {"auc": np.full(sums.shape[:2], 0.7), "fit_seconds": np.full(sums.shape[:2], 0.1)}
    return Study(sizes, sums, baseline, figures, {"log_loss": float(baseline.mean()) / 100, "auc": 0.6})


@pytest.mark.parametrize(
    ("settings", "pool", "expected"),
    [
        ({"smallest": 500, "sizes": 7, "max_rows": None}, 100_001, (500, 1077, 2321, 5000, 10772, 23208, 50_000)),
        ({"smallest": 100, "sizes": 30, "max_rows": None}, 206, (100, 101, 102, 103)),
        ({"smallest": 100, "sizes": 3, "max_rows": 400}, 20_000, (100, 200, 400)),
        ({"smallest": 100, "sizes": 5, "max_rows": None}, 200, (100,)),
    ],
)
def test_sizes_are_evenly_spaced_on_a_log_scale_up_to_half_the_pool(
    settings: dict[str, Any], pool: int, expected: tuple[int, ...]
) -> None:
    assert learning_curve.choose_sizes(LearningCurve(min_gain=0.1, repeats=2, **settings), pool) == expected


def test_a_pool_that_is_too_small_for_the_smallest_sample_is_refused() -> None:
    curve = LearningCurve(min_gain=0.1, repeats=2, smallest=1501, sizes=3, max_rows=None)
    with pytest.raises(UsageError, match="has 1,500 rows, fewer than `smallest`, 1,501"):
        learning_curve.choose_sizes(curve, 3000)


def create_examples(rows: int, seed: int) -> Examples:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, 2))
    labels = inputs[:, 0] + generator.normal(size=rows) > 0
    days = generator.integers(0, 7, rows).astype(np.int32)
    return Examples(pd.DataFrame(inputs), labels, days, generator.random(rows))


def run_small_study(sizes: tuple[int, ...], seed: int = 9) -> Study:
    pool, scored = create_examples(400, 0), create_examples(300, 2)
    orders = learning_curve.shuffle_rows(pool.labels, 3, sizes[0], seed)
    with joblib.parallel_config("sequential"):
        built = BuiltPipeline(Pipeline([("lr", LogisticRegression())]), [], {})
        return learning_curve.run_study(built, pool.frame, pool.labels, scored, sizes, orders)


def test_figures_are_those_of_plain_scikit_learn_and_samples_nest() -> None:
    study, pool, scored = run_small_study((50, 200)), create_examples(400, 0), create_examples(300, 2)
    first = np.random.default_rng(9).permutation(400)[:50]
    model = LogisticRegression().fit(pool.frame.iloc[first], pool.labels[first])
    scores, labels = model.predict_proba(scored.frame)[:, 1], scored.labels
    found = [study.figures[figure][0, 0] for figure in ("log_loss", "auc")]
    assert found == pytest.approx([log_loss(labels, scores), roc_auc_score(labels, scores)])
    assert study.baseline["log_loss"] == pytest.approx(log_loss(labels, scored.baseline))
    likelihood = model.predict_proba(scored.frame)[np.arange(300), scored.labels.astype(int)]
    assert study.losses[0, 0] == pytest.approx(np.bincount(scored.days, -np.log(likelihood)))
    assert study.baseline_losses.sum() == pytest.approx(300 * log_loss(scored.labels, scored.baseline))
    assert (study.figures["fit_seconds"] > 0).all()
    more = run_small_study((50, 100, 200)).losses
    np.testing.assert_array_equal(more[[0, 2]], study.losses)
    assert (run_small_study((50, 200), seed=10).losses != study.losses).any()


def test_a_sample_of_one_class_is_refused_before_anything_is_fitted() -> None:
    labels = np.arange(1000) < 20
    with pytest.raises(UsageError, match="All 50 rows of a sample have the label False"):
        learning_curve.shuffle_rows(labels, 20, 50, 1)
    assert len(learning_curve.shuffle_rows(labels, 20, 900, 1)) == 20


def test_rows_of_one_class_have_no_auc() -> None:
    rows = dataclasses.replace(create_examples(100, 4), labels=np.zeros(100, bool))
    figures, _ = learning_curve.measure_scores(rows.baseline, rows)
    assert (math.isfinite(figures["log_loss"]), math.isnan(figures["auc"])) == (True, True)


def test_the_bound_is_that_of_a_two_way_bootstrap_drawn_one_by_one() -> None:
    study = create_noisy_study([0.02, 0.003], repeats=6, days=9, noise=0.02)
    mean, upper = learning_curve.bound_excess(study)
    sums, baseline = study.losses, study.baseline_losses
    generator, draws = np.random.default_rng(1), []
    for _ in range(6000):
        repeats, days = generator.integers(0, 6, 6), generator.integers(0, 9, 9)
        paired = (sums - sums[-1])[:, repeats][:, :, days]
        draws.append(paired.mean(axis=1).sum(axis=1) / baseline[days].sum())
    widened = math.sqrt(6 / 5) * student.ppf(0.95, 5) / norm.ppf(0.95)
    expected = mean + (np.quantile(draws, 0.95, axis=0) - mean) * widened
    assert mean == pytest.approx((sums - sums[-1]).sum(axis=(1, 2)) / 6 / baseline.sum())
    assert upper[:-1] == pytest.approx(expected[:-1], abs=0.001)
    assert (upper[:-1] - mean[:-1] > 0.004).all()
    assert upper[-1] == mean[-1] == 0


@pytest.mark.parametrize(
    ("behind", "min_gain", "max_rows", "rows", "reason"),
    [
        ([0.1, 0.005, 1e-5], 0.01, None, 200, "200 rows: with 95% confidence, 800 rows add less than 0.01 skill "),
        ([0.1, 0.02, 0.004], 0.001, None, 5000, "The curve has not levelled off: no smaller size is shown"),
        ([0.001], 0.001, 8000, 5000, "all 5,000 rows of the sample are used. A larger sample would help"),
        ([0.1], 0.001, 300, 300, "so the 300 rows that learning_curve.max_rows allows are used. A larger sample"),
        ([-0.05, -0.02], 0.001, None, 100, "(at most 0.00000)"),
    ],
)
def test_the_smallest_size_that_is_enough_is_chosen_or_as_many_as_allowed(
    behind: list[float], min_gain: float, max_rows: int | None, rows: int, reason: str
) -> None:
    decision = choose_rows(create_noisy_study(behind), min_gain, 5000, max_rows)
    assert (decision["rows"], decision["levelled_off"]) == (rows, "levelled" not in decision["reason"])
    assert reason in decision["reason"]


STUDY = create_noisy_study([0.2, 0.0])


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        (create_noisy_study([]), "The curve has not levelled off: no smaller size is shown"),
        (create_noisy_study([0.2, 0.0], days=1), "One day is too few"),
        (dataclasses.replace(STUDY, baseline={"log_loss": 0.0}), "leaves nothing to gain"),
        (dataclasses.replace(STUDY, baseline={**STUDY.baseline, "auc": math.nan}), "have the same label"),
    ],
)
def test_a_study_that_cannot_judge_takes_all_rows_and_says_why(study: Study, reason: str) -> None:
    decision = choose_rows(study, 0.05, 5000)
    assert (decision["rows"], decision["levelled_off"]) == (5000, False)
    assert reason in decision["reason"]
    extended = learning_curve.extend_decision(study, decision, 10_000)
    assert (extended["fitted_curve"], extended["needed"], extended["dip"]) == (None, None, None)
    assert json.loads(json.dumps(decision, allow_nan=False)) == decision


def test_curves_of_the_family_are_recovered_with_an_exponent_within_its_bounds() -> None:
    sizes = np.array([100, 300, 1000, 3000, 10_000, 30_000])
    known = learning_curve.Curves(*np.array([[0.5, 3.0, 200, 0.8], [0.2, 9.0, 50, 1.1]]).T)
    curves = [*known.predict(sizes), 1 + 1e6 * sizes**-3.0, [0.7] * 6]
    found = learning_curve.fit_mmf(sizes.tolist(), np.array(curves), np.ones(6))
    assert found.limit[[0, 1, 3]] == pytest.approx([0.5, 0.2, 0.7], abs=0.03)
    assert found.exponent[:3] == pytest.approx([0.8, 1.1, 1.2], abs=0.051)
    assert found.predict(sizes)[[0, 1, 3]] == pytest.approx(np.array(curves)[[0, 1, 3]], abs=0.01)
    rows = known.find_rows(10_000, 0.01)
    gained = known.predict(np.array([10_000])) - np.diag(known.predict(rows))[:, None]
    assert gained == pytest.approx(np.full((2, 1), 0.01))
    assert found.find_rows(10_000, 0.5)[[0, 3]].tolist() == [math.inf, math.inf]


def extend(study: Study, min_gain: float = 0.01, available: int = 1_000_000) -> Any:
    decision = choose_rows(study, min_gain, 2 * study.sizes[-1])
    return learning_curve.extend_decision(study, decision, available)


FALL = [5 * size**-0.7 - 5 * 6400**-0.7 for size in (100, 200, 400, 800, 1600, 3200)]


def test_a_fitted_curve_goes_to_the_available_rows_and_counts_the_sizes_that_it_misses() -> None:
    fitted = extend(create_noisy_study(FALL))["fitted_curve"]
    assert (fitted["rows"][0], fitted["rows"][-1], fitted["misses"]) == (100, 1_000_000, 0)
    lines = (fitted["low"], fitted["skill"], fitted["high"])
    assert all(low < skill < high for low, skill, high in zip(*lines, strict=True))
    bent = extend(create_noisy_study([0.3, 0.3, 0.3, 0.3, 0.0]), available=100)["fitted_curve"]
    assert (bent["rows"][-1], bent["misses"] > 0) == (3200, True)
    assert json.loads(json.dumps(bent, allow_nan=False)) == bent


def test_the_rows_that_another_gain_needs_are_told_with_an_interval() -> None:
    decision = extend(create_noisy_study(FALL, noise=0.001), min_gain=0.003)
    true = (12_800**-0.7 - 0.003 / 5) ** (-1 / 0.7)
    needed = decision["needed"]
    assert needed["low"] < true < needed["high"] < 64_000
    assert decision["reason"].endswith(
        f"To gain another 0.003 skill points over 12,800 rows, about {needed['rows']:,.0f} rows "
        f"({needed['low']:,.0f} to {needed['high']:,.0f}) would be needed."
    )


@pytest.mark.parametrize(
    ("behind", "min_gain", "reason"),
    [
        (FALL, 0.5, "The fitted curve levels off before another 0.5 skill points."),
        (FALL, 0.005, "further than 64,000 rows, 10 times the largest sample studied."),
        (FALL[3:], 0.01, "cannot be said from fewer than 5 sizes."),
    ],
)
def test_the_reason_says_why_the_rows_that_another_gain_needs_cannot_be_told(
    behind: list[float], min_gain: float, reason: str
) -> None:
    decision = extend(create_noisy_study(behind), min_gain)
    assert (decision["needed"], decision["reason"].endswith(reason)) == (None, True), decision["reason"]


def test_a_size_that_is_worse_than_a_smaller_one_is_a_dip() -> None:
    decision = extend(create_noisy_study([0.3, 0.02, 0.05, 0.03]))
    assert (decision["dip"]["rows"], decision["dip"]["smaller"]) == (400, 200)
    assert decision["dip"]["behind"] == pytest.approx(0.03, abs=0.003)
    assert 0 < decision["dip"]["behind_lower"] < decision["dip"]["behind"]
    assert "The curve dips: with 95% confidence, 400 rows have at least 0.0" in decision["reason"]
    assert extend(create_noisy_study([0.3, 0.02, 0.0201, 0.01]))["dip"] is None


def test_the_stage_writes_table_picture_decision_and_size(trained_template: Paths) -> None:
    decision = workbench.read_json(trained_template.learning_curve.with_suffix(".json"))
    with trained_template.learning_curve.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["rows"]) for row in table] == [200, 548, 1500]
    for row, size in zip(table, decision["sizes"], strict=True):
        assert {name: float(value) if value else None for name, value in row.items()} == size
    assert trained_template.learning_curve.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert workbench.read_json(trained_template.sample_size) == {"rows": decision["rows"]}
    assert decision["available"] == 5000
    assert decision["reason"].endswith("cannot be said from fewer than 5 sizes.")
    assert decision["sizes"][0]["log_loss"] > decision["sizes"][2]["log_loss"]


def test_one_worker_gives_the_same_decision_as_two(trained_project: Paths) -> None:
    path = trained_project.learning_curve.with_suffix(".json")
    before = workbench.read_json(path)
    workbench.change_settings(trained_project, cluster={"n_workers": 1})
    workbench.run(trained_project, "learning_curve")
    after = workbench.read_json(path)
    for decision in (before, after):
        for figures in decision["sizes"]:
            assert figures.pop("fit_seconds") > 0
    assert after == before
