"""A calibration brings probabilities closer to the outcomes, keeps the order of rows, and is part of the model."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests import workbench
from tipline.arrays import Floats, Labels
from tipline.errors import TiplineError, UsageError
from tipline.evaluation import metrics
from tipline.model import artifact, golden_rows, pyfunc
from tipline.paths import Paths
from tipline.training import calibration, sampling

METHODS = ("sigmoid", "isotonic")
RANKED, FEW = np.linspace(0, 1, 1000), np.arange(1000) > 500


def simulate(seed: int, rows: int = 40_000) -> tuple[Floats, Floats, Labels]:
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
    assert (np.diff(corrected[np.argsort(other)]) >= 0).all()
    if method == "sigmoid":
        assert (fitted["slope"], fitted["intercept"]) == (pytest.approx(0.4, abs=0.02), pytest.approx(-0.7, abs=0.05))
        assert roc_auc_score(happened, corrected) == roc_auc_score(happened, other)


def test_no_probability_becomes_certain() -> None:
    with pytest.raises(UsageError, match="a sigmoid would be infinitely steep"):
        calibration.fit_calibration("sigmoid", RANKED, FEW)
    fitted = calibration.fit_calibration("isotonic", np.repeat([0.1, 0.9], 1000), np.arange(2000) > 1500)
    scores = pyfunc.apply_calibration(np.array([0.0, 0.1, 0.9, 1.0]), fitted)
    assert scores.tolist() == [1 / 2002, 1 / 2002, 0.499, 0.499]


@pytest.mark.parametrize(
    ("given", "labels", "message"),
    [
        (RANKED[1:], FEW[1:], "999 rows are too few"),
        (RANKED, np.zeros(1000, dtype=bool), "All 1,000 rows to calibrate on have the label False"),
        (np.full(1000, 0.3), FEW, "the same probability"),
        (RANKED, ~FEW ^ (np.arange(1000) % 10 == 5), "wrong way round"),
    ],
)
def test_rows_that_cannot_calibrate_are_refused(given: Floats, labels: Labels, message: str) -> None:
    for method in METHODS:
        with pytest.raises(TiplineError, match=message):
            calibration.fit_calibration(method, given, labels)


@pytest.mark.parametrize("method", METHODS)
def test_training_calibrates_on_the_validation_months(trained_project: Paths, method: str) -> None:
    before = artifact.read_artifact(trained_project.challenger)
    workbench.change_settings(trained_project, train={"calibration": method})
    workbench.run(trained_project, "train")
    contents = artifact.read_artifact(trained_project.challenger)
    assert contents[pyfunc.ESTIMATOR] == before[pyfunc.ESTIMATOR]
    model = artifact.Model(contents, use_compiled=False)
    assert golden_rows.count_steps(model) == 0
    rows = workbench.as_batch(sampling.read_pool([trained_project.sample("validation", "2009-02")]))
    labels, _ = metrics.read_labels(rows, "tip_amount > 0")
    scores, uncalibrated = model.probabilities(rows), model.uncalibrated(rows)
    # A calibrated model promises exactly as many tips as there were on the rows of the calibration.
    assert scores.mean() == pytest.approx(labels.mean(), abs=1e-3)
    assert uncalibrated.mean() != pytest.approx(labels.mean(), abs=1e-3)
    assert scores.tobytes() == pyfunc.apply_calibration(uncalibrated, model.spec["calibration"]).astype("f4").tobytes()
