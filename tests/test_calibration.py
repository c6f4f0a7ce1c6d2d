"""A calibration brings probabilities closer to the outcomes, keeps the order of rows, and is part of the model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests import workbench
from tipline.errors import TiplineError, UsageError
from tipline.evaluation import metrics
from tipline.ingest import columns
from tipline.model import artifact, golden_rows, pyfunc
from tipline.training import calibration, sampling

if TYPE_CHECKING:
    from tipline.model.pyfunc import Floats
    from tipline.paths import Paths

METHODS = ("sigmoid", "isotonic")


def simulate(seed: int, rows: int = 40_000) -> tuple[Floats, Floats, metrics.Labels]:
    """Return overconfident probabilities, the true ones, and labels."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(1, 3, rows)
    true = pyfunc.apply_logistic(0.4 * odds - 0.7)
    return pyfunc.apply_logistic(odds.copy()), true, generator.random(rows) < true


@pytest.mark.parametrize("method", METHODS)
def test_other_rows_are_calibrated_and_keep_their_order(method: str) -> None:
    given, _, labels = simulate(1)
    other, true, happened = simulate(2)
    fitted = json.loads(json.dumps(calibration.fit_calibration(method, given, labels)))
    corrected = pyfunc.apply_calibration(other, fitted)
    assert np.abs(corrected - true).mean() < 0.02 < np.abs(other - true).mean()
    assert log_loss(happened, corrected) < log_loss(happened, other)
    assert (np.diff(corrected[np.argsort(other)]) >= 0).all()
    if method == "sigmoid":
        assert (fitted["slope"], fitted["intercept"]) == (pytest.approx(0.4, abs=0.02), pytest.approx(-0.7, abs=0.05))
        assert roc_auc_score(happened, corrected) == roc_auc_score(happened, other)


def test_rows_that_a_threshold_separates_leave_the_loss_finite() -> None:
    given = np.linspace(0, 1, 2000)
    with pytest.raises(UsageError, match="a sigmoid would be infinitely steep"):
        calibration.fit_calibration("sigmoid", given, given > 0.5)
    fitted = calibration.fit_calibration("isotonic", given, given > 0.5)
    scores = pyfunc.apply_calibration(np.array([0.0, 0.25, 0.75, 1.0]), fitted)
    assert (scores[:2] < 0.01).all()
    assert (scores[2:] > 0.99).all()
    assert np.isfinite(metrics.compute_log_loss(scores.astype(np.float32), np.array([True, True, False, False]))).all()


def test_no_probability_becomes_certain() -> None:
    fitted = calibration.fit_calibration("isotonic", np.repeat([0.1, 0.9], 1000), np.arange(2000) > 1500)
    scores = pyfunc.apply_calibration(np.array([0.0, 0.1, 0.9, 1.0]), fitted)
    assert scores.tolist() == [1 / 2002, 1 / 2002, 0.499, 0.499]
    same = pyfunc.apply_calibration(np.array([0.0, 0.5, 1.0]), {"method": "sigmoid", "slope": 1.0, "intercept": 0.0})
    np.testing.assert_allclose(same, [0, 0.5, 1], atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("given", "labels", "message"),
    [
        (np.linspace(0, 1, 999), np.arange(999) > 500, "999 rows are too few"),
        (np.linspace(0, 1, 1000), np.zeros(1000, dtype=bool), "All 1,000 rows to calibrate on have the label False"),
        (np.linspace(0, 1, 1000), np.ones(1000, dtype=bool), "All 1,000 rows to calibrate on have the label True"),
        (np.full(1000, 0.3), np.arange(1000) > 500, "the same probability"),
    ],
)
def test_rows_that_cannot_calibrate_are_refused(
    method: str, given: Floats, labels: metrics.Labels, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        calibration.fit_calibration(method, given, labels)
    assert caught.value.parts[1] == "params.yaml, train.calibration"


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_ranks_the_wrong_way_round_is_refused(method: str) -> None:
    given, _, labels = simulate(3)
    wrong = {"sigmoid": (1 - given, labels), "isotonic": (np.sort(given), np.sort(labels)[::-1])}
    with pytest.raises(TiplineError, match="wrong way round"):
        calibration.fit_calibration(method, *wrong[method])


@pytest.mark.parametrize("estimator", ["logistic_regression", "hist_gradient_boosting"])
@pytest.mark.parametrize("method", METHODS)
def test_training_calibrates_on_the_validation_months(trained_project: Paths, method: str, estimator: str) -> None:
    training = workbench.read_json(trained_project.challenger / artifact.TRAINING)
    workbench.change_settings(trained_project, train={"estimator": estimator, "params": {}})
    workbench.run(trained_project, "train")
    before = artifact.read_artifact(trained_project.challenger)
    workbench.change_settings(trained_project, train={"calibration": method})
    workbench.run(trained_project, "train")
    contents = artifact.read_artifact(trained_project.challenger)
    assert contents[pyfunc.ESTIMATOR] == before[pyfunc.ESTIMATOR]
    assert artifact.hash_artifact(contents) != artifact.hash_artifact(before)
    model = pyfunc.Model(contents)
    assert golden_rows.check_golden_rows(model, "here") == 0
    types = columns.list_needed_columns(model.spec)
    rows = sampling.read_role(workbench.load_settings(trained_project), trained_project, "validation", types)
    labels, _ = metrics.read_labels(rows, "tip_amount > 0")
    scores, uncalibrated = model.probabilities(rows), model.uncalibrated(rows)
    # A calibrated model promises exactly as many tips as there were on the rows of the calibration.
    assert scores.mean() == pytest.approx(labels.mean(), abs=1e-3)
    assert uncalibrated.mean() != pytest.approx(labels.mean(), abs=1e-3)
    assert scores.tobytes() == pyfunc.apply_calibration(uncalibrated, model.calibration).astype("f4").tobytes()
    assert model.predict(rows.to_pandas())["probability"].to_numpy().tobytes() == scores.tobytes()
    now = workbench.read_json(trained_project.challenger / artifact.TRAINING)
    assert now["params"]["calibration"] == method
    assert now["data"] != training["data"]
