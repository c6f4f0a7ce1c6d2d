"""External models are scored through their own `predict`, or refused with a reason before anything is scored."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from tests import workbench
from tipline.model import artifact, external, loader
from tipline.paths import Paths
from tipline.registry import model_versions, store

Cli = Callable[..., tuple[int, str]]

pytestmark = [
    *workbench.MLFLOW_WARNINGS,
    pytest.mark.filterwarnings("ignore:.*pickle.*"),
    pytest.mark.filterwarnings("ignore:.*Saving scikit-learn models.*"),
]
NAME = "tip-probability"
SAFE: dict[str, Any] = {"serialization_format": "skops", "skops_trusted_types": ["numpy.dtype"]}
PICKLE: dict[str, Any] = {"serialization_format": "cloudpickle", "skops_trusted_types": None}
INPUTS = Schema([ColSpec(DataType.string, "payment_type"), ColSpec(DataType.double, "fare_amount")])
SIGNATURE = ModelSignature(INPUTS, Schema([TensorSpec(np.dtype("float64"), (-1, 2))]))


@pytest.fixture
def project(registered_project: Paths) -> Paths:
    return registered_project


def frame(paths: Paths, month: str) -> pd.DataFrame:
    read: pd.DataFrame = workbench.read_prepared(paths, month).select(INPUTS.input_names()).to_pandas()
    return read.astype({"payment_type": "str"})


def fitted(paths: Paths) -> Any:
    one_hot = OneHotEncoder(handle_unknown="ignore")
    columns = make_column_transformer((one_hot, ["payment_type"]), remainder="passthrough")
    model = make_pipeline(columns, LogisticRegression(max_iter=1000))
    return model.fit(frame(paths, "2009-01"), workbench.read_prepared(paths, "2009-01")["tip_amount"].to_numpy() > 0)


def add_version(paths: Paths, model: Any, signature: ModelSignature | None, **logged: Any) -> int:
    """Register a scikit-learn model with MLflow alone; return the version number."""
    logged = SAFE | logged | {"signature": signature, "pip_requirements": ["scikit-learn"]}
    with store.connect_store(paths) as client:
        experiment = client.create_experiment("elsewhere", (paths.root / "elsewhere").as_uri())
        with mlflow.start_run(experiment_id=experiment):
            info = mlflow.sklearn.log_model(model, name="model", **logged)
        return int(mlflow.register_model(info.model_uri, NAME).version)


@pytest.mark.usefixtures("_on_cluster")
@pytest.mark.parametrize("flag", ["", "--trust-code"], ids=["skops", "pickle"])
def test_external_version_scores_all_months_and_survives_a_lost_registry(
    project: Paths, run_cli: Cli, mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    """A pickle, too, once it was promoted with --trust-code."""
    model = fitted(project)
    number = add_version(project, model, SIGNATURE, pyfunc_predict_fn="predict_proba", **(PICKLE if flag else SAFE))
    if flag:
        code, output = run_cli(project.root, "promote", str(number), "--force", "test")
        assert code == 1
        assert "serialization_format: cloudpickle for sklearn, which lets mlflow.sklearn load a pickle" in output
    assert run_cli(project.root, "promote", str(number), "--force", "test", *flag.split())[0] == 0
    for stage in ("register", "evaluate", "score", "monitor", "record"):
        assert run_cli(project.root, stage)[0] == 0
    for month in workbench.MONTHS:
        expected = model.predict_proba(frame(project, month))[:, 1].astype(np.float32)
        written = pq.read_table(project.predictions / f"month={month}")["probability"].to_numpy()
        assert written.tobytes() == expected.tobytes()
    ref = workbench.read_json(project.champion_ref)
    assert (ref["version"], ref["digest"]) == (number, artifact.read_digest(project.champion))
    assert workbench.read_json(project.monitoring / "months.json")[0]["skill"] is not None

    # A new, empty registry gets the same champion back; nothing is scored again.
    template = workbench.read_tree(project.predictions)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copyfile(mlflow_template, tmp_path / 'fresh.db')}")
    shutil.rmtree(project.root / "elsewhere")
    assert run_cli(project.root, "register")[0] == 0
    with store.connect_store(project) as client:
        again = client.get_model_version_by_alias(NAME, model_versions.CHAMPION)
        assert model_versions.get_digest(again) == ref["digest"]
        shutil.rmtree(project.champion)
    assert run_cli(project.root, "register")[0] == 0
    assert artifact.read_digest(project.champion) == ref["digest"]
    assert run_cli(project.root, "score")[0] == 0
    assert workbench.read_tree(project.predictions) == template


UNFIT = {"tip_amount": DataType.double, "weather": DataType.double, "passenger_count": DataType.long}
UNFIT |= {"payment_type": DataType.double}
REASONS = (
    "tip_amount is known only after the outcome; weather is not a column of the schema; "
    "passenger_count is declared long, it has to be double; payment_type is declared double, it has to be string"
)


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (None, "no signature"),
        (ModelSignature(Schema([ColSpec(type_, name) for name, type_ in UNFIT.items()])), REASONS),
    ],
)
def test_signature_that_prepared_rows_cannot_fill_is_refused(
    project: Paths, run_cli: Cli, signature: ModelSignature | None, words: str
) -> None:
    number = add_version(project, LogisticRegression(), signature)
    code, output = run_cli(project.root, "promote", str(number))
    assert (code, words in output, f"{NAME} version {number}" in output) == (2, True, True), output
    with store.connect_store(project) as client:
        assert int(client.get_model_version_by_alias(NAME, model_versions.CHAMPION).version) == 1


@pytest.mark.usefixtures("_on_cluster")
def test_classes_are_not_probabilities_and_nothing_is_scored(project: Paths, run_cli: Cli) -> None:
    number = add_version(project, fitted(project), SIGNATURE)  # its predict returns booleans
    before = workbench.read_tree(project.predictions)
    assert run_cli(project.root, "promote", str(number), "--force", "test")[0] == 0
    assert run_cli(project.root, "register")[0] == 0
    code, output = run_cli(project.root, "score")
    assert code == 4
    assert "returns an array of bool" in output
    assert f"{NAME} version {number}" in output
    assert workbench.read_tree(project.predictions) == before


def test_one_float_per_row_counts_as_probabilities() -> None:
    columns = np.array([[0.75, 0.25], [0.5, 0.5]])
    for given in ([0.25, 0.5], np.array([0.25, 0.5]), columns, pd.DataFrame({"p": [0.25, 0.5]})):
        scores = external.extract_scores(given)
        assert scores is not None
        assert scores.tolist() == [0.25, 0.5]
    for given in (np.array([0, 1]), np.array(["yes", "no"]), np.zeros((2, 3))):
        assert external.extract_scores(given) is None


UNPICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
CODE = f"""import os, mlflow
assert os.environ[{UNPICKLE!r}] == "False"
class Half(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [0.5] * len(model_input)
mlflow.models.set_model(Half())"""


def test_a_model_of_code_is_loaded_where_mlflow_may_not_unpickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half.py").write_text(CODE)
    with monkeypatch.context() as saving:
        saving.setenv(UNPICKLE, "False")
        mlflow.pyfunc.save_model(tmp_path / "model", python_model=str(tmp_path / "half.py"), pip_requirements=[])
    monkeypatch.setenv(UNPICKLE, "True")
    files = {f"mlflow/{name}": data for name, data in loader.read_files(tmp_path / "model", "").items()}
    predict = external.load_predict(files, {"name": "half", "inputs": []})
    assert predict(pd.DataFrame({"x": [1.0, 2.0]})).tolist() == [0.5, 0.5]
