"""A model that somebody else registered is scored through its own `predict`, or refused by name before anything is."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from tests import workbench
from tipline import cluster, files
from tipline.model import artifact, external
from tipline.registry import model_versions, store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

pytestmark = [
    *([workbench.MLFLOW_WARNINGS] if not isinstance(workbench.MLFLOW_WARNINGS, list) else workbench.MLFLOW_WARNINGS),
    pytest.mark.filterwarnings("ignore:.*Saving scikit-learn models.*"),
]
NAME = "tip-probability"
INPUTS = [
    ColSpec(DataType.string, "payment_type"),
    ColSpec(DataType.double, "fare_amount"),
    ColSpec(DataType.datetime, "pickup_datetime"),
]
COLUMNS = [str(spec.name) for spec in INPUTS]


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, mlflow_store: Path) -> Paths:
    """A scored project, its own champion registered as version 1."""
    del mlflow_store
    paths = workbench.copy_project(workbench.scored(request), tmp_path)
    workbench.run(paths, "register")
    return paths


@pytest.fixture
def empty_store(mlflow_template: Path, tmp_path: Path) -> Path:
    """A second database, as a person has it after a loss."""
    return shutil.copyfile(mlflow_template, tmp_path / "fresh.db")


@pytest.fixture
def on_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))


def frame(paths: Paths, month: str) -> pd.DataFrame:
    """A month as a person has it who reads data/trips with pandas."""
    read: pd.DataFrame = workbench.read_prepared(paths, month).select(COLUMNS).to_pandas()
    return read.astype({"payment_type": "str", "pickup_datetime": "datetime64[ns]"})


def fitted(paths: Paths) -> Any:
    """A scikit-learn pipeline of somebody's own."""
    trips = workbench.read_prepared(paths, "2009-01")
    one_hot = ColumnTransformer(
        [("kind", OneHotEncoder(handle_unknown="ignore"), ["payment_type"])], remainder="passthrough"
    )
    given = frame(paths, "2009-01").drop(columns="pickup_datetime")
    model = make_pipeline(one_hot, LogisticRegression(max_iter=1000))
    return model.fit(given, trips["tip_amount"].to_numpy() > 0)


def add_version(paths: Paths, model: Any, signature: ModelSignature | None, **logged: Any) -> int:
    """Register a scikit-learn model as a colleague would who knows nothing of tipline; return its number."""
    with store.connect_store(paths) as client:
        experiment = client.create_experiment("elsewhere", (paths.root / "elsewhere").as_uri())
        with mlflow.start_run(experiment_id=experiment):
            info = mlflow.sklearn.log_model(
                model,
                name="model",
                signature=signature,
                serialization_format="skops",
                skops_trusted_types=["numpy.dtype"],
                pip_requirements=["scikit-learn"],
                **logged,
            )
        return int(mlflow.register_model(info.model_uri, NAME).version)


SIGNATURE = ModelSignature(Schema(INPUTS[:2]), Schema([TensorSpec(np.dtype("float64"), (-1, 2))]))


@pytest.mark.usefixtures("on_cluster")
def test_a_version_of_somebody_elses_scores_all_months_and_comes_back_after_a_loss(
    project: Paths, run_cli: Callable[..., tuple[int, str]], empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fitted(project)
    number = add_version(project, model, SIGNATURE, pyfunc_predict_fn="predict_proba")
    assert run_cli(project.root, "promote", str(number), "--force", "test")[0] == 0
    for stage in ("register", "evaluate", "score", "monitor", "record"):
        code, printed = run_cli(project.root, stage)
        assert code == 0, printed
    for month in workbench.MONTHS:
        expected = model.predict_proba(frame(project, month)[COLUMNS[:2]])[:, 1].astype(np.float32)
        written = pq.read_table(project.predictions / f"month={month}")["tip_probability"].to_numpy()
        assert written.tobytes() == expected.tobytes()
    told = workbench.read_json(project.champion_ref)
    assert (told["version"], told["digest"]) == (number, artifact.read_digest(project.champion))
    assert workbench.read_json(project.monitoring / "months.json")[0]["skill"] is not None

    # A new, empty registry is given the same champion again; nothing is scored for that.
    template = workbench.read_tree(project.predictions)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
    shutil.rmtree(project.root / "elsewhere")
    code, printed = run_cli(project.root, "register")
    assert code == 0, printed
    with store.connect_store(project) as client:
        again = model_versions.get_champion(client, NAME)
        assert again is not None
        assert model_versions.get_digest(again) == told["digest"]
        shutil.rmtree(project.champion)
    assert run_cli(project.root, "register")[0] == 0
    assert artifact.read_digest(project.champion) == told["digest"]
    assert run_cli(project.root, "score")[0] == 0
    assert workbench.read_tree(project.predictions) == template


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([ColSpec(DataType.double, "tip_amount")], "tip_amount is known only after payment"),
        ([ColSpec(DataType.double, "weather")], "weather is no column of the schema"),
        ([ColSpec(DataType.long, "passenger_count")], "passenger_count is declared long, it has to be double"),
        ([ColSpec(DataType.double, "payment_type")], "payment_type is declared double, it has to be string"),
    ],
)
def test_a_signature_that_trips_cannot_be_brought_to_is_refused_by_name(
    project: Paths, run_cli: Callable[..., tuple[int, str]], inputs: list[ColSpec], said: str
) -> None:
    number = add_version(project, LogisticRegression(), ModelSignature(Schema(inputs)))
    code, printed = run_cli(project.root, "promote", str(number))
    assert code == 2
    assert said in printed
    assert f"{NAME} version {number}" in printed
    assert "Traceback" not in printed
    with store.connect_store(project) as client:
        champion = model_versions.get_champion(client, NAME)
        assert champion is not None
        assert int(champion.version) == 1


def test_a_version_without_a_signature_is_refused_also_when_its_alias_was_set_in_mlflow(
    project: Paths, run_cli: Callable[..., tuple[int, str]]
) -> None:
    number = add_version(project, LogisticRegression(), None)
    with store.connect_store(project) as client:
        client.set_registered_model_alias(NAME, model_versions.CHAMPION, str(number))
    before = workbench.read_tree(project.champion)
    code, printed = run_cli(project.root, "register")
    assert code == 2
    assert "no signature" in printed
    assert workbench.read_tree(project.champion) == before


@pytest.mark.usefixtures("on_cluster")
def test_classes_are_no_probabilities_and_nothing_is_scored_with_them(
    project: Paths, run_cli: Callable[..., tuple[int, str]]
) -> None:
    number = add_version(project, fitted(project), SIGNATURE)  # its predict gives truth values
    before = workbench.read_tree(project.predictions)
    assert run_cli(project.root, "promote", str(number), "--force", "test")[0] == 0
    assert run_cli(project.root, "register")[0] == 0
    code, printed = run_cli(project.root, "score")
    assert code == 1
    assert "gives an array of bool" in printed
    assert f"{NAME} version {number}" in printed
    assert workbench.read_tree(project.predictions) == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.array([0.25, 0.5]), [0.25, 0.5]),
        (np.array([[0.75, 0.25], [0.5, 0.5]]), [0.25, 0.5]),
        (pd.DataFrame({"p": [0.25, 0.5]}), [0.25, 0.5]),
        (pd.Series([0.25, 0.5]), [0.25, 0.5]),
        ([0.25, 0.5], [0.25, 0.5]),
        (np.array([0, 1]), None),
        (np.array(["yes", "no"]), None),
        (np.zeros((2, 3)), None),
    ],
)
def test_one_float_a_row_is_what_counts_as_probabilities(given: Any, expected: list[float] | None) -> None:
    scores = external.extract_scores(given)
    assert (None if scores is None else scores.tolist()) == expected


def test_ours_and_theirs_are_told_apart_by_their_files(project: Paths) -> None:
    ours = artifact.read_artifact(project.champion)
    assert not external.is_external(ours)
    assert external.is_external({f"{external.FOLDER}/MLmodel": b""})
    assert files.hash_bytes(ours[artifact.CODE])
