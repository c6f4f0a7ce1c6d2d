"""Any classifier of scikit-learn trains, persists, registers, scores on workers and serves."""

import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression

from tests import workbench
from tipline import files
from tipline.errors import TiplineError
from tipline.model import artifact, loader, pipeline, pyfunc
from tipline.paths import Paths
from tipline.registry import store

pytestmark = [*workbench.MLFLOW_WARNINGS, pytest.mark.usefixtures("_on_cluster")]
FEW = {"n_estimators": 5}
BOOSTING = {"catboost", "lightgbm", "xgboost"}
CODE = """
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, StackingClassifier, VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, SplineTransformer, StandardScaler
PARTS = [("boosting", GradientBoostingClassifier(n_estimators=5)), ("linear", LogisticRegression())]
def on_frame(*steps):
    numbers = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
    columns = ["passenger_count", "trip_distance", "fare_amount", "extra"]
    words = OneHotEncoder(handle_unknown="ignore")
    return make_pipeline(make_column_transformer((words, ["vendor", "payment_type"]), (numbers, columns)), *steps)
def calibrated(**params): return on_frame(CalibratedClassifierCV(RandomForestClassifier(n_estimators=5), **params))
def voting(): return on_frame(VotingClassifier(PARTS, voting="soft"))
def stacking(): return on_frame(StackingClassifier(PARTS))
def splines(): return make_pipeline(make_column_transformer((SplineTransformer(), ["extra"])), LogisticRegression())
def sgd(): return on_frame(SGDClassifier(loss="log_loss"))
def lambdas(): return on_frame(Lambdas())
def gadget(): return on_frame(FunctionTransformer(inverse_func=pd.read_pickle), LogisticRegression())
class Lambdas(LogisticRegression):
    def fit(self, X, y):
        self.function_ = lambda value: value
        return super().fit(X, y)
"""


def use_estimator(paths: Paths, estimator: str, params: dict[str, Any]) -> None:
    (paths.root / "features.py").write_text(CODE)
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
        ("catboost.CatBoostClassifier", FEW),
        ("calibrated", {"cv": 2}),
        ("voting", {}),
        ("stacking", {}),
        ("splines", {}),
        ("sgd", {}),
    ],
)
def test_an_estimator_goes_the_whole_way(scored_project: Paths, estimator: str, params: dict[str, Any]) -> None:
    paths = scored_project
    use_estimator(paths, estimator, params)
    workbench.run(paths, "train")
    first = artifact.read_artifact(paths.challenger)
    workbench.run(paths, "train")
    assert artifact.read_artifact(paths.challenger) == first
    for path in paths.champion.glob("*.py"):
        path.unlink()
    for name, data in first.items():
        (paths.champion / name).write_bytes(data)
    ref = workbench.read_json(paths.champion_ref) | {"digest": artifact.hash_artifact(first)}
    files.write_json(paths.champion_ref, ref)
    workbench.run(paths, "register", "evaluate", "score")
    trips = workbench.as_batch(workbench.read_prepared(paths, "2009-02"))
    stored = pq.read_table(paths.predictions / "month=2009-02")["probability"].to_numpy()
    expected = artifact.load_model(first, artifact.hash_artifact(first)).probabilities(trips)
    assert stored.tobytes() == expected.tobytes()
    assert len(np.unique(stored)) > 2
    with store.connect_store(paths):
        served = mlflow.pyfunc.load_model("models:/tip-probability/1")
        frame = pd.read_parquet(paths.prepared_file("2009-02"))[served.metadata.get_input_schema().input_names()]
        pinned = Path(mlflow.pyfunc.get_model_dependencies("models:/tip-probability/1")).read_text()
    packages = set(re.findall(r"^(\w+)[\w-]*==", pinned, re.MULTILINE))
    assert packages & BOOSTING == BOOSTING & {estimator.partition(".")[0]}
    np.testing.assert_array_equal(served.predict(frame)["probability"], expected)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        ("lambdas", r"cannot be loaded in another process: .*<lambda>"),
        ("gadget", r"types that tipline does not load: pandas\.\S*read_pickle"),
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
    with pytest.raises(TiplineError, match=r"The fit failed: .*nonsense"):
        workbench.run(trained_project, "learning_curve")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type("Classifier", (LogisticRegression,), {"__module__": "not_installed.core"})
    monkeypatch.setattr(pyfunc, "PACKAGES", {*pyfunc.PACKAGES, "not_installed"})
    with pytest.raises(TiplineError, match="a package that is not installed: not_installed"):
        loader.check_skops("estimator.skops", skops.io.dumps(kind()), "version 1", {})


@pytest.mark.parametrize(("params", "threads"), [({}, 1), ({"n_jobs": 2}, 2)])
def test_boosting_uses_one_thread_unless_told_otherwise(
    trained_project: Paths, params: dict[str, Any], threads: int
) -> None:
    workbench.change_settings(trained_project, train={"estimator": "xgboost.XGBClassifier", "params": params})
    classifier = pipeline.create_classifier(workbench.load_settings(trained_project).train, {})
    assert (classifier.n_jobs, classifier.random_state) == (threads, 0)
