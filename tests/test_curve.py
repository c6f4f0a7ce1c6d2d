"""The size of the sample is chosen on paired differences, and the words say what the figures do."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tests import workbench
from tipline import cluster
from tipline.config import Budget
from tipline.errors import UsageError
from tipline.training import fits, learning_curve, sampling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS
NO_BUDGET = Budget(rows=None, megabytes=None)
ALL = learning_curve.Bound.of(5000, NO_BUDGET, 100)


def synthetic(sums: Any, baseline: Any) -> learning_curve.Study:
    """Make a study of which only the sums of losses matter, shape (sizes, repeats, days)."""
    sums, baseline = np.asarray(sums, float), np.asarray(baseline, float)
    sizes = tuple(100 * 2**place for place in range(len(sums)))
    figures: Any = {"validation.auc": np.full(sums.shape[:2], 0.7), "fit_seconds": np.full(sums.shape[:2], 0.1)}
    of_baseline = {"validation.log_loss": float(baseline.mean()) / 100, "validation.auc": 0.6}
    return learning_curve.Study(sizes, {"size": sums}, {"size": baseline}, figures, of_baseline)


def of_one_class(study: learning_curve.Study) -> learning_curve.Study:
    """Make it a study on rows that all tipped: the bolder the better."""
    return dataclasses.replace(study, of_baseline={**study.of_baseline, "validation.auc": math.nan})


def noisy(behind: list[float], repeats: int = 5, days: int = 10, noise: float = 0.001) -> learning_curve.Study:
    """Make a study whose sizes have `behind` less skill than the largest, but for a little noise; 100 rows a day."""
    generator = np.random.default_rng(3)
    baseline = generator.uniform(40, 60, days)
    common = generator.uniform(30, 50, days)
    shape = (repeats, days)
    return synthetic(
        [common + baseline * (one + generator.normal(0, noise, shape)) for one in [*behind, 0.0]], baseline
    )


# ---- the study ----


def test_sizes_are_evenly_spaced_on_a_log_scale() -> None:
    assert fits.choose_sizes(100, 10_000, 3) == (100, 1000, 10_000)
    assert fits.choose_sizes(500, 50_000, 7) == (500, 1077, 2321, 5000, 10772, 23208, 50_000)


@pytest.mark.parametrize(("largest", "count"), [(100, 5), (103, 30), (10_000, 1), (4999, 30)])
def test_sizes_are_different_and_have_both_ends(largest: int, count: int) -> None:
    sizes = fits.choose_sizes(100, largest, count)
    assert (sizes[0], sizes[-1]) == (100, largest if count > 1 else 100)
    assert list(sizes) == sorted(set(sizes))
    assert len(sizes) <= count


def examples(rows: int, seed: int) -> fits.Examples:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, 2))
    labels = inputs[:, 0] + generator.normal(size=rows) > 0
    days, segment = generator.integers(0, 7, rows).astype(np.int32), generator.random(rows) < 0.3
    return fits.Examples(inputs, labels, days, segment, generator.random(rows))


def small_study(sizes: tuple[int, ...], seed: int = 9) -> learning_curve.Study:
    validation = {"held_out": examples(200, 1), "size": examples(300, 2)}
    pool = examples(400, 0)
    orders = fits.shuffle_rows(pool.labels, 3, sizes[0], seed)
    with joblib.parallel_config("sequential"):
        return fits.run_study(Pipeline([("classifier", LogisticRegression())]), pool, validation, sizes, orders)


@pytest.mark.parametrize(("name", "rows", "seed"), [("held_out", 200, 1), ("size", 300, 2)])
def test_the_figures_are_those_of_plain_scikit_learn(name: str, rows: int, seed: int) -> None:
    study, pool, scored = small_study((50, 200)), examples(400, 0), examples(rows, seed)
    first = np.random.default_rng(9).permutation(400)[:50]
    model = LogisticRegression().fit(pool.inputs[first], pool.labels[first])
    for part, mask in ((name, np.full(rows, fill_value=True)), (f"{name}.segment", scored.segment)):
        scores, labels = model.predict_proba(scored.inputs[mask])[:, 1], scored.labels[mask]
        expected = log_loss(labels, scores), roc_auc_score(labels, scores), brier_score_loss(labels, scores)
        found = [study.figures[f"{part}.{figure}"][0, 0] for figure in ("log_loss", "auc", "brier")]
        assert found == pytest.approx(expected)
        assert study.of_baseline[f"{part}.log_loss"] == pytest.approx(log_loss(labels, scored.baseline[mask]))
    scores = model.predict_proba(scored.inputs)[:, 1]
    for day in range(7):
        rows_of_day = scored.days == day
        expected_sum = log_loss(scored.labels[rows_of_day], scores[rows_of_day], normalize=False, labels=[False, True])
        assert study.sums[name][0, 0, day] == pytest.approx(expected_sum)
    assert study.sums[name].shape == (2, 3, 7)
    assert study.baseline[name].sum() == pytest.approx(rows * log_loss(scored.labels, scored.baseline))
    assert (study.figures["fit_seconds"] > 0).all()


def test_samples_nest_and_follow_the_seed() -> None:
    study = small_study((50, 200))
    np.testing.assert_array_equal(small_study((50, 100, 200)).sums["size"][[0, 2]], study.sums["size"])
    assert (small_study((50, 200), seed=10).sums["size"] != study.sums["size"]).any()


def test_a_sample_of_one_class_is_refused_before_anything_is_fitted() -> None:
    labels = np.zeros(1000, dtype=bool)
    labels[:20] = True
    with pytest.raises(UsageError, match="None of the 50 rows of a sample tipped"):
        fits.shuffle_rows(labels, 20, 50, 1)
    with pytest.raises(UsageError, match="All of the 50 rows of a sample tipped"):
        fits.shuffle_rows(~labels, 20, 50, 1)
    assert len(fits.shuffle_rows(labels, 20, 900, 1)) == 20


def test_rows_of_one_class_have_no_auc_and_an_empty_segment_has_no_figures() -> None:
    scored = examples(100, 4)
    none = fits.Examples(scored.inputs, np.zeros(100, bool), scored.days, np.zeros(100, bool), scored.baseline)
    sorted_rows, ends = none.blocks()
    figures = fits.Scorer({"size": (0, *ends)}).figures(sorted_rows.baseline, sorted_rows.labels)
    assert math.isnan(figures["validation.auc"])
    assert figures["validation.log_loss"] == pytest.approx(-np.log1p(-scored.baseline).mean())
    assert all(math.isnan(figures[f"validation.segment.{figure}"]) for figure in ("log_loss", "auc", "brier"))
    assert sum(figures[f"validation.day{day}"] for day in range(7)) == pytest.approx(
        100 * figures["validation.log_loss"]
    )


# ---- the bound ----


def test_the_bound_is_that_of_a_two_way_bootstrap_drawn_one_by_one() -> None:
    study = noisy([0.02, 0.003], repeats=6, days=9, noise=0.02)
    mean, upper = learning_curve.excess(study)
    sums, baseline = study.sums["size"], study.baseline["size"]
    generator, draws = np.random.default_rng(1), []
    for _ in range(6000):
        repeats, days = generator.integers(0, 6, 6), generator.integers(0, 9, 9)
        paired = (sums - sums[-1])[:, repeats][:, :, days]
        draws.append(paired.mean(axis=1).sum(axis=1) / baseline[days].sum())
    expected = mean + (np.quantile(draws, 0.95, axis=0) - mean) * math.sqrt(6 / 5) * student.ppf(0.95, 5) / norm.ppf(
        0.95
    )
    assert mean == pytest.approx((sums - sums[-1]).sum(axis=(1, 2)) / 6 / baseline.sum())
    assert upper[:-1] == pytest.approx(expected[:-1], abs=0.001)
    assert (upper[:-1] - mean[:-1] > 0.004).all()
    assert upper[-1] == mean[-1] == 0


def test_rows_that_all_sizes_share_do_not_widen_the_bound() -> None:
    study = noisy([0.01])
    harder = synthetic(study.sums["size"] + np.random.default_rng(1).uniform(0, 500, 10), study.baseline["size"])
    assert learning_curve.excess(harder)[1] == pytest.approx(learning_curve.excess(study)[1])


@pytest.mark.parametrize("axis", [1, 2])
def test_repeats_and_days_both_widen_the_bound(axis: int) -> None:
    study = noisy([0.01], repeats=10)
    sums = study.sums["size"].copy()
    shift = np.where(np.arange(10) < 5, 2.0, -2.0)
    sums[0] += shift[:, None] if axis == 1 else shift
    moved = synthetic(sums, study.baseline["size"])
    (mean, upper), (mean_moved, upper_moved) = learning_curve.excess(study), learning_curve.excess(moved)
    assert mean_moved == pytest.approx(mean)
    assert upper_moved[0] > upper[0] + 0.01


# ---- the decision ----


def test_a_curve_that_has_levelled_off_gives_the_smallest_size_that_is_enough() -> None:
    decision = learning_curve.choose_size(noisy([0.1, 0.005, 0.00001]), 0.01, ALL, 7)
    assert (decision["rows"], decision["levelled_off"]) == (200, True)
    assert "200 rows: with 95% confidence, 800 rows add less than 0.01 skill points" in decision["reason"]
    assert decision["sizes"][1]["behind_largest_upper"] < 0.01 < decision["sizes"][0]["behind_largest_upper"]
    assert decision["sizes"][1]["well_specified_nats"] == 7 / 400
    assert "7 parameters loses p/(2n) = 0.017500 nats" in decision["sanity"]


def test_a_smaller_tolerance_takes_a_larger_size() -> None:
    study = noisy([0.1, 0.02, 0.004])
    chosen = [learning_curve.choose_size(study, min_gain, ALL, None)["rows"] for min_gain in (0.2, 0.05, 0.01, 0.001)]
    assert chosen == [100, 200, 400, 5000]


def test_a_curve_that_has_not_levelled_off_takes_all_rows_and_says_so() -> None:
    decision = learning_curve.choose_size(noisy([0.1, 0.05, 0.02]), 0.001, ALL, None)
    assert (decision["rows"], decision["levelled_off"], decision["sanity"]) == (5000, False, None)
    assert "has not levelled off" in decision["reason"]
    assert "all 5,000 rows of the sample are used, and a larger sample would help" in decision["reason"]


def test_a_small_gain_that_is_uncertain_is_not_ruled_out() -> None:
    assert learning_curve.choose_size(noisy([0.0], noise=0.05), 0.001, ALL, None)["rows"] == 5000


def test_a_smaller_size_that_is_better_is_enough() -> None:
    decision = learning_curve.choose_size(noisy([-0.05, -0.02]), 0.001, ALL, None)
    assert decision["rows"] == 100
    assert "at most 0.00000" in decision["reason"]


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        (noisy([]), "One size alone says nothing about smaller ones"),
        (noisy([0.2, 0.0], days=1), "Of 5 repeats and 1 day there is no telling"),
        (noisy([0.2, 0.0], repeats=1), "Of 1 repeat and 10 days there is no telling"),
        (synthetic(noisy([0.1, 0.0]).sums["size"], np.zeros(10)), "The baseline leaves nothing to gain"),
        (of_one_class(noisy([-0.1, -0.05])), "All of the `validation` rows tipped, or none"),
    ],
    ids=["one size", "one day", "one repeat", "a perfect baseline", "one class"],
)
def test_what_cannot_be_told_takes_all_rows_and_says_why(study: learning_curve.Study, reason: str) -> None:
    decision = learning_curve.choose_size(study, 0.05, ALL, 3)
    assert (decision["rows"], decision["levelled_off"]) == (5000, False)
    assert reason in decision["reason"]
    assert len(study.sizes) > 2 or learning_curve.extrapolate_skill(study, 10_000) is None
    assert json.loads(json.dumps(decision, allow_nan=False)) == decision


@pytest.mark.parametrize(
    ("budget", "rows", "words"),
    [
        ({"rows": 300, "megabytes": None}, 300, "the 300 rows of the budget are used"),
        ({"rows": 3000, "megabytes": 0.1}, 1000, "1,000 rows that the budget of 0.1 MB holds at 100 bytes a row are"),
        ({"rows": 8000, "megabytes": 10}, 5000, "all 5,000 rows of the sample are used"),
    ],
)
def test_a_budget_binds_where_the_curve_does_not_level_off(budget: dict[str, Any], rows: int, words: str) -> None:
    bound = learning_curve.Bound.of(5000, Budget(**budget), 100)
    decision = learning_curve.choose_size(noisy([0.1]), 0.001, bound, None)
    assert decision["rows"] == rows
    assert words in decision["reason"]
    assert learning_curve.choose_size(noisy([0.0001]), 0.01, bound, None)["rows"] == 100


# ---- power law ----


def test_a_power_law_is_found_again() -> None:
    sizes = (100, 300, 1000, 3000, 10_000)
    curves = np.array([0.9 + 2.0 * np.array(sizes) ** -0.5, 0.5 + 9.0 * np.array(sizes) ** -1.2, [0.7] * 5])
    limits, slopes, exponents = learning_curve.power_law(sizes, curves, np.ones(5))
    assert limits == pytest.approx([0.9, 0.5, 0.7])
    assert slopes == pytest.approx([2.0, 9.0, 0.0])
    assert exponents[:2] == pytest.approx([0.5, 1.2])


@pytest.mark.parametrize(("power", "exponent"), [(3.0, 1.5), (0.05, 0.3)])
def test_the_exponent_stays_within_its_bounds(power: float, exponent: float) -> None:
    sizes = np.array([100, 300, 1000, 3000])
    assert learning_curve.power_law(sizes.tolist(), (1 + sizes**-power)[None], np.ones(4))[2] == pytest.approx(exponent)


def test_an_extrapolation_goes_to_the_rows_there_are_and_tells_where_it_does_not_fit() -> None:
    behind = [2 * size**-0.5 - 2 * 1600**-0.5 for size in (100, 200, 400, 800)]
    law = learning_curve.extrapolate_skill(noisy(behind), 1_000_000)
    assert law is not None
    assert (law["rows"][0], law["rows"][-1]) == (100, 1_000_000)
    assert law["exponent"] == pytest.approx(0.5, abs=0.05)
    assert law["misses"] == 0
    assert all(low < skill < high for low, skill, high in zip(law["low"], law["skill"], law["high"], strict=True))
    bent = learning_curve.extrapolate_skill(noisy([0.3, 0.3, 0.3, 0.0]), 100)
    assert bent is not None
    assert bent["rows"][-1] == 1600
    assert bent["misses"] > 0


# ---- what a fit takes ----


def test_the_cost_is_measured_and_parameters_are_those_that_the_rows_tell_apart() -> None:
    generator = np.random.default_rng(1)
    inputs = np.column_stack([generator.integers(0, 3, 5000), generator.normal(size=5000)])
    labels = generator.random(5000) < 0.5

    def cost(first: Any, width: int) -> fits.Cost:
        steps = [("columns", first), ("classifier", LogisticRegression())]
        return fits.Cost.of(Pipeline(steps), inputs[:, :width].copy, labels)

    # One of three values: two columns of three and the intercept are all that there is to tell apart.
    assert cost(OneHotEncoder(sparse_output=False), 1).parameters == 3
    plain = cost(StandardScaler(), 2)
    assert plain.parameters == 3
    assert 16 < plain.bytes_a_row < 200
    assert plain == cost(StandardScaler(), 2)
    boosted = fits.Cost.of(Pipeline([("classifier", HistGradientBoostingClassifier(max_iter=2))]), inputs.copy, labels)
    assert boosted.parameters is None


# ---- the stage ----


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
    return workbench.copy_project(workbench.trained(request), tmp_path)


def test_the_stage_writes_table_picture_decision_and_size(project: Paths) -> None:
    decision = workbench.read_json(project.learning_curve.with_suffix(".json"))
    with project.learning_curve.open(newline="") as file:
        table = list(csv.DictReader(file))
    # Of 3,000 rows 600 are held out.
    assert [int(row["rows"]) for row in table] == [200, 490, 1200]
    for row, size in zip(table, decision["sizes"], strict=True):
        assert {name: float(value) if value else None for name, value in row.items()} == size
    assert project.learning_curve.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert workbench.read_json(project.sample_size) == {"rows": decision["rows"]}
    assert decision["segment"] == "credit"
    assert decision["available"] == 5000
    assert decision["sizes"][0]["validation.log_loss"] > decision["sizes"][2]["validation.log_loss"]


def test_the_same_sample_gives_the_same_decision(project: Paths) -> None:
    before = workbench.read_json(project.learning_curve.with_suffix(".json"))
    size = project.sample_size.read_bytes()
    workbench.run(project, "learning_curve")
    after = workbench.read_json(project.learning_curve.with_suffix(".json"))
    for decision in (before, after):
        for figures in decision["sizes"]:
            assert figures.pop("fit_seconds") > 0
    assert after == before
    assert project.sample_size.read_bytes() == size


def test_a_smallest_size_above_the_largest_is_refused(project: Paths, run_cli: Callable[..., tuple[int, str]]) -> None:
    before = workbench.read_tree(project.root / "reports") | workbench.read_tree(project.root / "models")
    workbench.change_settings(project, learning_curve={"smallest": 1201})
    with pytest.raises(UsageError, match=r"has 1,200 rows, fewer than learning_curve\.smallest, 1,201"):
        workbench.run(project, "learning_curve")
    code, printed = run_cli(project.root, "learning_curve")
    assert code == 2
    assert "params.yaml, learning_curve.smallest" in printed
    assert workbench.read_tree(project.root / "reports") | workbench.read_tree(project.root / "models") == before


def test_a_budget_is_the_largest_size_studied_and_the_most_that_is_chosen(project: Paths) -> None:
    workbench.change_settings(project, learning_curve={"smallest": 300, "budget": {"rows": 300, "megabytes": None}})
    workbench.run(project, "learning_curve")
    decision = workbench.read_json(project.learning_curve.with_suffix(".json"))
    assert [size["rows"] for size in decision["sizes"]] == [300]
    assert workbench.read_json(project.sample_size) == {"rows": 300}
    assert "One size alone" in decision["reason"]


def test_a_sample_that_does_not_say_how_many_rows_its_month_has_counts_its_own(project: Paths, tmp_path: Path) -> None:
    sample = project.sample("train", "2009-01")
    assert sampling.count_available([sample, sample]) == 10_000
    pq.write_table(pq.read_table(sample).replace_schema_metadata(None), tmp_path / "older.parquet")
    assert sampling.count_available([tmp_path / "older.parquet"]) == 3000
