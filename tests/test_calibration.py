"""A calibration brings probabilities to what happens, keeps the rows in their order, and is part of the model."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests import test_pyfunc, workbench
from tipline.commands import explain
from tipline.errors import TiplineError, UsageError
from tipline.evaluation import metrics
from tipline.ingest import columns
from tipline.model import artifact, golden_rows, pipeline, pyfunc
from tipline.training import calibration, sampling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.model.pyfunc import Floats
    from tipline.paths import Paths

METHODS = ("sigmoid", "isotonic")


def simulated(seed: int, rows: int = 40_000) -> tuple[Floats, Floats, metrics.Labels]:
    """Probabilities that are too sure of themselves, the true ones, and what happened."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(1, 3, rows)
    true = pyfunc.apply_logistic(0.4 * odds - 0.7)
    return pyfunc.apply_logistic(odds.copy()), true, generator.random(rows) < true


def test_the_sigmoid_is_recovered() -> None:
    given, _, labels = simulated(1)
    fitted = calibration.fit_calibration("sigmoid", given, labels)
    assert fitted["slope"] == pytest.approx(0.4, abs=0.02)
    assert fitted["intercept"] == pytest.approx(-0.7, abs=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_other_rows_are_calibrated_and_keep_their_order(method: str) -> None:
    given, _, labels = simulated(1)
    other, true, happened = simulated(2)
    fitted = json.loads(json.dumps(calibration.fit_calibration(method, given, labels)))
    corrected = pyfunc.apply_calibration(other, fitted)
    assert np.abs(corrected - true).mean() < 0.02 < np.abs(other - true).mean()
    assert log_loss(happened, corrected) < log_loss(happened, other)
    assert (np.diff(corrected[np.argsort(other)]) >= 0).all()
    if method == "sigmoid":
        assert roc_auc_score(happened, corrected) == roc_auc_score(happened, other)


def test_rows_that_a_threshold_separates_leave_the_loss_finite() -> None:
    given = np.linspace(0, 1, 2000)
    with pytest.raises(UsageError, match="no sigmoid is so steep"):
        calibration.fit_calibration("sigmoid", given, given > 0.5)
    fitted = calibration.fit_calibration("isotonic", given, given > 0.5)
    scores = pyfunc.apply_calibration(np.array([0.0, 0.25, 0.75, 1.0]), fitted)
    assert (scores[:2] < 0.01).all()
    assert (scores[2:] > 0.99).all()
    assert np.isfinite(metrics.compute_log_loss(scores.astype(np.float32), np.array([True, True, False, False]))).all()


def test_an_isotonic_step_of_one_class_is_no_certainty() -> None:
    given = np.repeat([0.1, 0.9], 1000)
    labels = np.arange(2000) > 1500
    fitted = calibration.fit_calibration("isotonic", given, labels)
    assert pyfunc.apply_calibration(np.array([0.0, 0.1, 0.9, 1.0]), fitted).tolist() == [
        1 / 2002,
        1 / 2002,
        0.499,
        0.499,
    ]


def test_probabilities_of_0_and_1_pass_a_sigmoid() -> None:
    same = pyfunc.apply_calibration(np.array([0.0, 0.5, 1.0]), {"method": "sigmoid", "slope": 1.0, "intercept": 0.0})
    np.testing.assert_allclose(same, [0, 0.5, 1], atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("given", "tipped", "said"),
    [
        (np.linspace(0, 1, 999), np.arange(999) > 500, "999 rows are too few"),
        (np.linspace(0, 1, 1000), np.zeros(1000, dtype=bool), "None of the 1,000 rows"),
        (np.linspace(0, 1, 1000), np.ones(1000, dtype=bool), "All of the 1,000 rows"),
        (np.full(1000, 0.3), np.arange(1000) > 500, "the same probability"),
    ],
)
def test_rows_that_say_nothing_are_refused(method: str, given: Floats, labels: metrics.Labels, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        calibration.fit_calibration(method, given, labels)
    assert caught.value.parts[1] == "params.yaml, train.calibration"


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_a_model_that_ranks_the_wrong_way_round_is_refused(method: str) -> None:
    given, _, labels = simulated(3)
    wrong = {"sigmoid": (1 - given, labels), "isotonic": (np.sort(given), np.sort(labels)[::-1])}
    with pytest.raises(TiplineError, match="wrong way round"):
        calibration.fit_calibration(method, *wrong[method])


@pytest.fixture(
    scope="module", params=itertools.product(("logistic_regression", "hist_gradient_boosting"), METHODS), ids="-".join
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pyfunc.Model:
    estimator, method = request.param
    folder = tmp_path_factory.mktemp("model")
    saved = test_pyfunc.fitted(folder, test_pyfunc.ALL, estimator)
    assert saved.calibration is None
    scores = saved.uncalibrated(test_pyfunc.rows(3000, 1))
    labels = np.random.default_rng(5).random(len(scores)) < scores / 2
    pipeline.save_spec(folder, saved.spec | {"calibration": calibration.fit_calibration(method, scores, labels)})
    return pyfunc.Model(artifact.read_artifact(folder))


def test_a_calibrated_row_scores_the_same_by_any_path(loaded: pyfunc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    given = test_pyfunc.rows(1501, 4)
    whole = loaded.probabilities(given)
    assert (
        whole.tobytes()
        == pyfunc.apply_calibration(loaded.uncalibrated(given), loaded.calibration).astype("f4").tobytes()
    )
    assert whole.mean() == pytest.approx(loaded.uncalibrated(given).mean() / 2, abs=0.03)
    assert loaded.predict(given.to_pandas())["tip_probability"].to_numpy().tobytes() == whole.tobytes()
    edges = [0, 1, 9, 500, 1499, 1501]
    slices = [loaded.probabilities(given.slice(low, high - low)) for low, high in itertools.pairwise(edges)]
    assert np.concatenate(slices).tobytes() == whole.tobytes()
    monkeypatch.setattr(pyfunc, "CHUNK_ROWS", 601)
    assert loaded.probabilities(given).tobytes() == whole.tobytes()


def test_explain_shows_the_probability_before(loaded: pyfunc.Model) -> None:
    given = test_pyfunc.rows(1, 8)
    stored = float(loaded.probabilities(given)[0])
    told = explain.contributions(loaded, given.to_pylist()[0], stored)
    assert loaded.calibration is not None
    before = told[f"before {loaded.calibration['method']}"]
    assert float(before) == pytest.approx(loaded.uncalibrated(given)[0])
    assert float(before) != pytest.approx(stored)
    assert list(told)[-1] == "probability"
    assert repr(stored) in told["probability"]


def test_a_model_of_before_there_was_calibration_loads(tmp_path: Path) -> None:
    saved = test_pyfunc.fitted(tmp_path, test_pyfunc.ALL)
    pipeline.save_spec(tmp_path, {name: value for name, value in saved.spec.items() if name != "calibration"})
    older = pyfunc.Model(artifact.read_artifact(tmp_path))
    given = test_pyfunc.rows(50, 4)
    assert older.probabilities(given).tobytes() == saved.probabilities(given).tobytes()


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Paths:
    return workbench.copy_project(workbench.trained(request), tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_training_calibrates_on_the_size_months(project: Paths, method: str) -> None:
    before = artifact.read_artifact(project.challenger)
    training = workbench.read_json(project.challenger / artifact.TRAINING)
    workbench.change_settings(project, train={"calibration": method})
    workbench.run(project, "train")
    contents = artifact.read_artifact(project.challenger)
    assert contents[pyfunc.ESTIMATOR] == before[pyfunc.ESTIMATOR]
    assert artifact.hash_artifact(contents) != artifact.hash_artifact(before)
    loaded = pyfunc.Model(contents)
    assert golden_rows.check_golden_rows(loaded, "here") == 0
    rows = sampling.read_role(
        workbench.load_settings(project), project, "size", columns.list_needed_columns(loaded.spec)
    )
    labels, _ = metrics.read_labels(rows, "tip_amount")
    # A calibrated model promises as many tips as there were; exactly so on the rows of the calibration.
    assert loaded.probabilities(rows).mean() == pytest.approx(labels.mean(), abs=1e-3)
    assert loaded.uncalibrated(rows).mean() != pytest.approx(labels.mean(), abs=1e-3)
    now = workbench.read_json(project.challenger / artifact.TRAINING)
    assert now["params"]["calibration"] == method
    assert now["data"] != training["data"]


def test_size_months_without_tips_leave_the_earlier_challenger(
    project: Paths, run_cli: Callable[..., tuple[int, str]]
) -> None:
    before = workbench.read_tree(project.challenger)
    path = project.sample("validation", "2009-02")
    sample = pq.read_table(path)
    place = sample.schema.get_field_index("tip_amount")
    pq.write_table(sample.set_column(place, "tip_amount", pa.array(np.zeros(len(sample)))), path)
    workbench.change_settings(project, train={"calibration": "sigmoid"})
    code, printed = run_cli(project.root, "train")
    assert code == UsageError.exit_code
    assert "None of the 3,000 rows to calibrate on tipped." in printed
    assert workbench.read_tree(project.challenger) == before
