"""Any classifier of scikit-learn trains, persists, registers, scores on workers and serves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression

from tests import workbench
from tipline import files
from tipline.errors import TiplineError
from tipline.model import artifact, loader, pipeline
from tipline.registry import store

if TYPE_CHECKING:
    from tipline.paths import Paths

pytestmark = [*workbench.MLFLOW_WARNINGS, pytest.mark.usefixtures("_on_cluster")]
FEW = {"n_estimators": 5}
CODE = """
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

PARTS = [("boosting", GradientBoostingClassifier(n_estimators=5)), ("linear", LogisticRegression())]

def calibrated(**params): return CalibratedClassifierCV(RandomForestClassifier(n_estimators=5), **params)
def voting(): return VotingClassifier(PARTS, voting="soft")
def stacking(): return StackingClassifier(PARTS)
def splines(): return make_pipeline(SplineTransformer(), LogisticRegression())
def sgd(): return make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss"))
def unknown(): return Mine()

class Mine(LogisticRegression):
    pass
"""


def use_estimator(paths: Paths, estimator: str, params: dict[str, Any]) -> None:
    (paths.root / "mine.py").write_text(CODE)
    workbench.change_settings(paths, train={"estimator": estimator, "params": params})


@pytest.mark.parametrize(
    ("estimator", "params"),
    [
        ("sklearn.ensemble.RandomForestClassifier", FEW),
        ("sklearn.ensemble.ExtraTreesClassifier", FEW | {"class_weight": "balanced"}),
        ("sklearn.ensemble.GradientBoostingClassifier", FEW),
        ("sklearn.ensemble.HistGradientBoostingClassifier", {"max_iter": 5, "monotonic_cst": [0, 0, 0, 0, 0, 1, 0]}),
        ("lightgbm.LGBMClassifier", FEW | {"subsample": 0.5, "subsample_freq": 1, "verbose": -1}),
        ("xgboost.XGBClassifier", FEW | {"subsample": 0.5}),
        ("mine:calibrated", {"cv": 2}),
        ("mine:voting", {}),
        ("mine:stacking", {}),
        ("mine:splines", {}),
        ("mine:sgd", {}),
    ],
)
def test_an_estimator_goes_the_whole_way(scored_project: Paths, estimator: str, params: dict[str, Any]) -> None:
    paths = scored_project
    use_estimator(paths, estimator, params)
    workbench.run(paths, "train")
    first = artifact.read_artifact(paths.challenger)
    workbench.run(paths, "train")
    assert artifact.read_artifact(paths.challenger) == first
    for name, data in first.items():
        (paths.champion / name).write_bytes(data)
    ref = workbench.read_json(paths.champion_ref) | {"digest": artifact.hash_artifact(first)}
    files.write_json(paths.champion_ref, ref)
    workbench.run(paths, "register", "evaluate", "score")
    trips = workbench.read_prepared(paths, "2009-02")
    stored = pq.read_table(paths.predictions / "month=2009-02")["probability"].to_numpy()
    expected = artifact.load_model(first, artifact.hash_artifact(first)).probabilities(trips)
    assert stored.tobytes() == expected.tobytes()
    assert len(np.unique(stored)) > 2
    with store.connect_store(paths):
        served = mlflow.pyfunc.load_model("models:/tip-probability/1")
        frame = trips.to_pandas()[served.metadata.get_input_schema().input_names()]
        frame = frame.astype(dict.fromkeys(("vendor", "payment_type"), "str") | {"passenger_count": "float64"})
        pinned = Path(mlflow.pyfunc.get_model_dependencies("models:/tip-probability/1")).read_text()
    packages = set(re.findall(r"^(\w+)[\w-]*==", pinned, re.MULTILINE))
    assert packages & {"lightgbm", "xgboost"} == {"lightgbm", "xgboost"} & {estimator.partition(".")[0]}
    np.testing.assert_array_equal(served.predict(frame)["probability"], expected)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        ("mine:unknown", "has types that tipline does not load: mine.Mine"),
        ("sklearn.ensemble.RandomForest", "There is no estimator 'sklearn.ensemble.RandomForest'"),
        ("sklearn.svm.LinearSVC", "is not a scikit-learn classifier"),
        ("not_installed.Classifier", "There is no estimator 'not_installed.Classifier'"),
    ],
)
def test_anything_else_is_refused_by_name(trained_project: Paths, estimator: str, message: str) -> None:
    use_estimator(trained_project, estimator, {})
    with pytest.raises(TiplineError, match=message):
        workbench.run(trained_project, "learning_curve")


@pytest.mark.parametrize("estimator", ["lightgbm.LGBMClassifier", "xgboost.XGBClassifier"])
def test_a_parameter_that_the_package_refuses_is_one_message(trained_project: Paths, estimator: str) -> None:
    use_estimator(trained_project, estimator, {"objective": "nonsense"})
    with pytest.raises(TiplineError, match=r"The model cannot be fitted: .*nonsense"):
        workbench.run(trained_project, "learning_curve")


def test_a_package_that_is_not_installed_is_named() -> None:
    kind = type("CatBoostClassifier", (LogisticRegression,), {"__module__": "catboost.core"})
    with pytest.raises(TiplineError, match="a package that is not installed: catboost"):
        loader.check_skops("estimator.skops", skops.io.dumps(kind()), "version 1")


@pytest.mark.parametrize(("params", "threads"), [({}, 1), ({"n_jobs": 2}, 2)])
def test_boosting_uses_one_thread_unless_told_otherwise(
    trained_project: Paths, params: dict[str, Any], threads: int
) -> None:
    workbench.change_settings(trained_project, train={"estimator": "xgboost.XGBClassifier", "params": params})
    classifier = pipeline.create_classifier(workbench.load_settings(trained_project).train, trained_project.root)
    assert (classifier.n_jobs, classifier.random_state) == (threads, 0)
