"""The sample size is chosen on paired differences, and the reason says what the figures do."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.pipeline import Pipeline

from tests import workbench
from tipline import cluster
from tipline.config import LearningCurve
from tipline.errors import UsageError
from tipline.training import learning_curve
from tipline.training.learning_curve import Examples, Study, choose_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS


def create_study(sums: Any, baseline: Any) -> Study:
    """Make a study from sums of losses, shape (sizes, repeats, days), and the baseline's, shape (days,)."""
    sums, baseline = np.asarray(sums, float), np.asarray(baseline, float)
    sizes = tuple(100 * 2**place for place in range(len(sums)))
    figures = {"validation.auc": np.full(sums.shape[:2], 0.7), "fit_seconds": np.full(sums.shape[:2], 0.1)}
    of_baseline = {"validation.log_loss": float(baseline.mean()) / 100, "validation.auc": 0.6}
    return Study(sizes, {"validation": sums}, {"validation": baseline}, figures, of_baseline)


def create_noisy_study(behind: list[float], repeats: int = 5, days: int = 10, noise: float = 0.001) -> Study:
    """Make a study whose sizes have `behind` less skill than the largest, plus noise; 100 rows per day."""
    generator = np.random.default_rng(3)
    baseline, common = generator.uniform(40, 60, days), generator.uniform(30, 50, days)
    shape = (repeats, days)
    sums = [common + baseline * (one + generator.normal(0, noise, shape)) for one in [*behind, 0.0]]
    return create_study(sums, baseline)


# ---- the study ----


@pytest.mark.parametrize(
    ("smallest", "pool", "sizes", "max_rows", "expected"),
    [
        (500, 100_001, 7, None, (500, 1077, 2321, 5000, 10772, 23208, 50_000)),
        (100, 206, 30, None, (100, 101, 102, 103)),
        (100, 20_000, 3, 400, (100, 200, 400)),
        (100, 200, 5, None, (100,)),
        (100, 20_000, 1, None, (100,)),
    ],
)
def test_sizes_are_evenly_spaced_on_a_log_scale_up_to_half_the_pool(
    smallest: int, pool: int, sizes: int, max_rows: int | None, expected: tuple[int, ...]
) -> None:
    settings = LearningCurve(min_gain=0.1, smallest=smallest, sizes=sizes, repeats=2, max_rows=max_rows)
    assert learning_curve.choose_sizes(settings, pool) == expected


def create_examples(rows: int, seed: int) -> Examples:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, 2))
    labels = inputs[:, 0] + generator.normal(size=rows) > 0
    days, segment = generator.integers(0, 7, rows).astype(np.int32), generator.random(rows) < 0.3
    return Examples(inputs, labels, days, segment, generator.random(rows))


def run_small_study(sizes: tuple[int, ...], seed: int = 9) -> Study:
    pool, *scored = (create_examples(rows, seed) for seed, rows in enumerate((400, 200, 300)))
    orders = learning_curve.shuffle_rows(pool.labels, 3, sizes[0], seed)
    with joblib.parallel_config("sequential"):
        validation = dict(zip(("held_out", "validation"), scored, strict=True))
        return learning_curve.run_study(Pipeline([("lr", LogisticRegression())]), pool, validation, sizes, orders)


@pytest.mark.parametrize(("name", "rows", "seed"), [("held_out", 200, 1), ("validation", 300, 2)])
def test_figures_are_those_of_plain_scikit_learn(name: str, rows: int, seed: int) -> None:
    study, pool, scored = run_small_study((50, 200)), create_examples(400, 0), create_examples(rows, seed)
    first = np.random.default_rng(9).permutation(400)[:50]
    model = LogisticRegression().fit(pool.inputs[first], pool.labels[first])
    for part, mask in ((name, np.full(rows, fill_value=True)), (f"{name}.segment", scored.segment)):
        scores, labels = model.predict_proba(scored.inputs[mask])[:, 1], scored.labels[mask]
        expected = log_loss(labels, scores), roc_auc_score(labels, scores), brier_score_loss(labels, scores)
        found = [study.figures[f"{part}.{figure}"][0, 0] for figure in ("log_loss", "auc", "brier")]
        assert found == pytest.approx(expected)
        assert study.baseline[f"{part}.log_loss"] == pytest.approx(log_loss(labels, scored.baseline[mask]))
    losses = np.where(scored.labels, 1, -1) * (model.predict_proba(scored.inputs)[:, 1] - ~scored.labels)
    assert study.losses[name].shape == (2, 3, 7)
    assert study.losses[name][0, 0] == pytest.approx(np.bincount(scored.days, -np.log(losses)))
    assert study.baseline_losses[name].sum() == pytest.approx(rows * log_loss(scored.labels, scored.baseline))
    assert (study.figures["fit_seconds"] > 0).all()


def test_samples_nest_and_follow_the_seed() -> None:
    losses = run_small_study((50, 200)).losses["validation"]
    np.testing.assert_array_equal(run_small_study((50, 100, 200)).losses["validation"][[0, 2]], losses)
    assert (run_small_study((50, 200), seed=10).losses["validation"] != losses).any()


@pytest.mark.parametrize("positive", [True, False])
def test_a_sample_of_one_class_is_refused_before_anything_is_fitted(positive: bool) -> None:  # noqa: FBT001
    labels = (np.arange(1000) >= 20) == positive
    with pytest.raises(UsageError, match=f"All 50 rows of a sample have the label {positive}"):
        learning_curve.shuffle_rows(labels, 20, 50, 1)
    assert len(learning_curve.shuffle_rows(labels, 20, 900, 1)) == 20


def test_rows_of_one_class_have_no_auc_and_an_empty_segment_has_no_figures() -> None:
    rows = dataclasses.replace(create_examples(100, 4), labels=np.zeros(100, bool), segment=np.zeros(100, bool))
    figures, losses = learning_curve.measure_scores({"set": rows.baseline}, {"set": rows})
    assert figures["set.log_loss"] == pytest.approx(-np.log1p(-rows.baseline).mean())
    assert losses["set"].sum() == pytest.approx(100 * figures["set.log_loss"])
    undefined = {"set.auc", *(f"set.segment.{figure}" for figure in ("log_loss", "auc", "brier"))}
    assert {name for name, value in figures.items() if math.isnan(value)} == undefined


# ---- the bound ----


def test_the_bound_is_that_of_a_two_way_bootstrap_drawn_one_by_one() -> None:
    study = create_noisy_study([0.02, 0.003], repeats=6, days=9, noise=0.02)
    mean, upper = learning_curve.bound_excess(study)
    sums, baseline = study.losses["validation"], study.baseline_losses["validation"]
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


# ---- the decision ----


@pytest.mark.parametrize(
    ("behind", "min_gain", "max_rows", "rows", "reason"),
    [
        ([0.1, 0.005, 1e-5], 0.01, None, 200, "200 rows: with 95% confidence, 800 rows add less than 0.01 skill "),
        ([0.1, 0.02, 0.004], 0.2, 300, 100, "100 rows: "),
        ([0.1, 0.02, 0.004], 0.01, None, 400, "400 rows: "),
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
    for size in decision["sizes"][:-1]:
        assert size["rows"] >= rows or size["behind_largest_upper"] >= min_gain


ONE_CLASS = create_noisy_study([-0.1, -0.05])
ONE_CLASS = dataclasses.replace(ONE_CLASS, baseline={**ONE_CLASS.baseline, "validation.auc": math.nan})


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        (create_noisy_study([]), "Only one size was studied"),
        (create_noisy_study([0.2, 0.0], days=1), "5 repeats and 1 day are too few"),
        (create_noisy_study([0.2, 0.0], repeats=1), "1 repeat and 10 days are too few"),
        (create_study(create_noisy_study([0.1, 0.0]).losses["validation"], np.zeros(10)), "leaves nothing to gain"),
        (ONE_CLASS, "have the same label"),
    ],
    ids=["one size", "one day", "one repeat", "a perfect baseline", "one class"],
)
def test_a_study_that_cannot_judge_takes_all_rows_and_says_why(study: Study, reason: str) -> None:
    decision = choose_rows(study, 0.05, 5000)
    assert (decision["rows"], decision["levelled_off"]) == (5000, False)
    assert reason in decision["reason"]
    assert len(study.sizes) > 2 or learning_curve.extrapolate_skill(study, 10_000) is None
    assert json.loads(json.dumps(decision, allow_nan=False)) == decision


# ---- power law ----


def test_a_power_law_is_recovered_with_an_exponent_within_its_bounds() -> None:
    sizes = np.array([100, 300, 1000, 3000, 10_000])
    curves = [0.9 + 2.0 * sizes**-0.5, 0.5 + 9.0 * sizes**-1.2, 1 + sizes**-3.0, 1 + sizes**-0.05, [0.7] * 5]
    limits, slopes, exponents = learning_curve.fit_power_law(sizes.tolist(), np.array(curves), np.ones(5))
    assert limits[[0, 1, 4]] == pytest.approx([0.9, 0.5, 0.7])
    assert slopes[[0, 1, 4]] == pytest.approx([2.0, 9.0, 0.0])
    assert exponents[:4] == pytest.approx([0.5, 1.2, 1.5, 0.3])


def test_an_extrapolation_goes_to_the_available_rows_and_counts_the_sizes_that_it_misses() -> None:
    behind = [2 * size**-0.5 - 2 * 1600**-0.5 for size in (100, 200, 400, 800)]
    law = learning_curve.extrapolate_skill(create_noisy_study(behind), 1_000_000)
    assert law is not None
    assert (law["rows"][0], law["rows"][-1]) == (100, 1_000_000)
    assert law["exponent"] == pytest.approx(0.5, abs=0.05)
    assert law["misses"] == 0
    assert all(low < skill < high for low, skill, high in zip(law["low"], law["skill"], law["high"], strict=True))
    bent = learning_curve.extrapolate_skill(create_noisy_study([0.3, 0.3, 0.3, 0.0]), 100)
    assert bent is not None
    assert bent["rows"][-1] == 1600
    assert bent["misses"] > 0


# ---- the stage ----


@pytest.fixture
def project(trained_project: Paths, dask_address: str, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv(cluster.ADDRESS, dask_address)
    return trained_project


def read_decision(paths: Paths) -> Any:
    return workbench.read_json(paths.learning_curve.with_suffix(".json"))


def test_the_stage_writes_table_picture_decision_and_size(trained_template: Paths) -> None:
    decision = read_decision(trained_template)
    with trained_template.learning_curve.open(newline="") as file:
        table = list(csv.DictReader(file))
    # 600 of the 3,000 rows are held out.
    assert [int(row["rows"]) for row in table] == [200, 490, 1200]
    for row, size in zip(table, decision["sizes"], strict=True):
        assert {name: float(value) if value else None for name, value in row.items()} == size
    assert trained_template.learning_curve.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert workbench.read_json(trained_template.sample_size) == {"rows": decision["rows"]}
    assert decision["segment"] == "credit"
    assert decision["available"] == 5000
    assert decision["sizes"][0]["validation.log_loss"] > decision["sizes"][2]["validation.log_loss"]


def test_one_worker_gives_the_same_decision_as_two(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_decision(project), project.sample_size.read_bytes()
    monkeypatch.delenv(cluster.ADDRESS)
    workbench.change_settings(project, cluster={"n_workers": 1})
    workbench.run(project, "learning_curve")
    after = read_decision(project), project.sample_size.read_bytes()
    for decision, _ in (before, after):
        for figures in decision["sizes"]:
            assert figures.pop("fit_seconds") > 0
    assert after == before


@pytest.mark.parametrize(
    ("sections", "code", "message"),
    [
        ({"learning_curve": {"smallest": 1201}}, 2, "has 1,200 rows, fewer than `smallest`, 1,201"),
        ({"train": {"params": {"max_iter": 1}}}, 1, "did not converge within max_iter=1"),
        ({"train": {"params": {"C": -1}}}, 1, "The model cannot be fitted: The 'C' parameter"),
    ],
)
def test_a_failed_study_leaves_the_earlier_files(
    project: Paths, run_cli: Callable[..., tuple[int, str]], sections: dict[str, Any], code: int, message: str
) -> None:
    before = workbench.read_tree(project.root / "reports") | workbench.read_tree(project.root / "models")
    workbench.change_settings(project, **sections)
    found, printed = run_cli(project.root, "learning_curve")
    assert found == code
    assert message in printed
    assert f"params.yaml, {next(iter(sections))}" in printed
    assert workbench.read_tree(project.root / "reports") | workbench.read_tree(project.root / "models") == before
