"""Equal models have equal bytes, and nothing of a model runs before its digest is checked."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.base import clone

from tests import workbench
from tipline.config import Train
from tipline.errors import TiplineError, UsageError
from tipline.evaluation import metrics
from tipline.ingest.schema import load_schema
from tipline.model import artifact, pipeline, pyfunc

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa
    from sklearn.pipeline import Pipeline

    from tipline.paths import Paths

ESTIMATORS = ("logistic_regression", "hist_gradient_boosting")
# A classifier that is its own class: skops would have to import this module to load it.
OWN_MODULE = """
import sys
from sklearn.linear_model import LogisticRegression

class Own(LogisticRegression):
    pass

def stronger(C=10.0):
    return LogisticRegression(C=C, max_iter=500)

def untrusted():
    return Own()

def leave():
    sys.exit(0)

def broken():
    return {}["no such key"]

def no_classifier():
    return "a string"
"""


@pytest.fixture(scope="module")
def trips(trained_template: Paths) -> pa.RecordBatch:
    return workbench.as_batch(workbench.read_prepared(trained_template, "2009-01"))


@pytest.fixture(scope="module")
def features(trained_template: Paths) -> list[dict[str, Any]]:
    features: list[dict[str, Any]] = create_spec(trained_template)["features"]
    return features


def create_spec(paths: Paths) -> dict[str, Any]:
    return pipeline.create_spec(workbench.load_settings(paths), load_schema())


@pytest.fixture
def fit(trips: pa.RecordBatch, features: list[dict[str, Any]], tmp_path: Path) -> Callable[..., Pipeline]:
    """A function that fits an estimator; those of `own` are in the project's folder."""
    (tmp_path / f"own_{tmp_path.name}.py").write_text(OWN_MODULE)

    def fitted(estimator: str = "logistic_regression", **parameters: Any) -> Pipeline:
        named = estimator.replace("own:", f"own_{tmp_path.name}:")
        train = Train(rows="auto", estimator=named, params=parameters, calibration=None, seed=0)
        unfitted = pipeline.build_pipeline(features, train, tmp_path)
        return pipeline.fit_pipeline(unfitted, pyfunc.build_matrix(trips, features), labels)

    labels, _ = metrics.read_labels(trips, "tip_amount > 0")
    return fitted


@pytest.fixture
def save(fit: Callable[..., Pipeline], trained_template: Paths, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """A function that fits and saves an estimator and returns the model's files."""

    def saved(estimator: str = "logistic_regression", **parameters: Any) -> dict[str, bytes]:
        (tmp_path / "model").mkdir(exist_ok=True)
        pipeline.save_model(tmp_path / "model", fit(estimator, **parameters), create_spec(trained_template))
        return artifact.read_artifact(tmp_path / "model")

    return saved


def test_equal_fits_give_equal_bytes(save: Callable[..., dict[str, bytes]]) -> None:
    for estimator in ESTIMATORS:
        assert save(estimator) == save(estimator)
    assert artifact.hash_artifact(save(C=1.0)) != artifact.hash_artifact(save(C=0.5))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_saved_model_predicts_like_the_fitted_one(
    save: Callable[..., dict[str, bytes]],
    fit: Callable[..., Pipeline],
    trips: pa.RecordBatch,
    features: list[dict[str, Any]],
    estimator: str,
) -> None:
    contents, inputs = save(estimator), pyfunc.build_matrix(trips, features)
    dump, expected = contents[pyfunc.ESTIMATOR], fit(estimator).predict_proba(inputs)
    assert pipeline.make_canonical(dump) == dump
    with zipfile.ZipFile(io.BytesIO(dump)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    loaded = artifact.load_model(contents, artifact.hash_artifact(contents))
    np.testing.assert_array_equal(pyfunc.Model(contents).estimator.predict_proba(inputs), expected)
    np.testing.assert_allclose(loaded.probabilities(trips), expected[:, 1], atol=1e-7)


def test_spec_describes_the_features(save: Callable[..., dict[str, bytes]]) -> None:
    columns = load_schema().columns
    described: dict[str, dict[str, Any]] = {
        "vendor": {"kind": "category", "categories": ["CMT", "DDS", "VTS"]},
        "pickup_datetime": {"kind": "hour"},
        "passenger_count": {"kind": "number", "range": list(columns["passenger_count"].range or ())},
        "trip_distance": {"kind": "number", "range": list(columns["trip_distance"].range or ())},
        "payment_type": {"kind": "category", "categories": ["cash", "credit", "dispute", "no charge"]},
        "fare_amount": {"kind": "number", "range": list(columns["fare_amount"].range or ())},
        "extra": {"kind": "number", "range": list(columns["extra"].range or ())},
    }
    assert json.loads(save()[pyfunc.SPEC])["features"] == [{"name": name} | value for name, value in described.items()]


NO_ESTIMATOR = ("There is no estimator", "params.yaml, train.estimator", "module:function")
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    # estimator: parameters, message
    "no_such_module_here:make": ({}, NO_ESTIMATOR),
    "json:no_such_function": ({}, NO_ESTIMATOR),
    "json:__name__": ({}, NO_ESTIMATOR),
    "own:stronger": ({"depth": 3}, (r"stronger cannot be called.*'depth'", "train.params", "It has: C.")),
    "own:no_classifier": ({}, ("not a scikit-learn classifier", "train.estimator", "predict_proba")),
    "own:untrusted": ({}, (r"types that tipline does not load: own_\w+\.Own", "train.estimator", "another estimator")),
    "own:leave": ({}, (r"own_\w+:leave failed: SystemExit: 0", "train.estimator", "Correct the function")),
    "own:broken": ({}, (r"own_\w+:broken failed: KeyError: 'no such key'", "train.estimator", "Correct the function")),
    "hist_gradient_boosting": ({"max_lea": 1}, ("cannot.*'max_lea'", "train.params", "Did you mean max_leaf_nodes?")),
    "logistic_regression": ({"max_itre": 1}, ("cannot.*'max_itre'", "train.params", "Did you mean max_iter?")),
    "logistic_regression ": ({"zzz": 1}, ("cannot be called.*'zzz'", "train.params", "It has: C,")),
}


@pytest.mark.parametrize("estimator", REFUSED)
def test_estimator_that_cannot_be_used_is_refused(
    save: Callable[..., dict[str, bytes]], tmp_path: Path, estimator: str
) -> None:
    parameters, (what, where, todo) = REFUSED[estimator]
    with pytest.raises(UsageError, match=what) as caught:
        save(estimator.strip(), **parameters)
    assert where in caught.value.parts[1]
    assert todo in caught.value.parts[2]
    assert not list((tmp_path / "model").iterdir())
    assert str(tmp_path) not in sys.path


def test_module_that_exits_is_refused(fit: Callable[..., Pipeline], tmp_path: Path) -> None:
    (tmp_path / "own_import.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UsageError, match="SystemExit"):
        fit("own_import:make")
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("parameters", "what", "todo"),
    [
        ({"C": -1}, "C", "train.params"),
        ({"C": "much"}, "C", "train.params"),
        ({"solver": "none such"}, "solver", "train.params"),
        ({"max_iter": 1}, "max_iter=1", "Raise max_iter"),
    ],
)
def test_fit_that_fails_or_does_not_converge_is_refused(
    fit: Callable[..., Pipeline], parameters: dict[str, Any], what: str, todo: str
) -> None:
    with pytest.raises(TiplineError, match=what) as caught:
        fit(**parameters)
    assert todo in caught.value.parts[2]


def test_sample_of_one_class_is_refused(fit: Callable[..., Pipeline]) -> None:
    unfitted, labels = clone(fit()), np.zeros(1000, dtype=bool)
    with pytest.raises(TiplineError, match="class"):
        pipeline.fit_pipeline(unfitted, np.zeros((1000, 7)), labels)


def test_own_function_creates_the_estimator(fit: Callable[..., Pipeline], tmp_path: Path) -> None:
    classifier = fit("own:stronger", C=3.0)[-1]
    assert (classifier.C, classifier.max_iter, classifier.random_state) == (3.0, 500, 0)
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("name", artifact.FILES)
def test_changed_files_are_refused_before_they_run(
    save: Callable[..., dict[str, bytes]], tmp_path: Path, name: str
) -> None:
    contents = save()
    expected = artifact.hash_artifact(contents)
    assert contents[artifact.CODE] == Path(pyfunc.__file__).read_bytes()
    trace = tmp_path / "planted code has run"
    planted = f"\nopen({str(trace)!r}, 'w').close()\n".encode()
    changed = contents | {name: contents[name] + (planted if name == artifact.CODE else b" ")}
    with pytest.raises(TiplineError, match="digest differs"):
        artifact.load_model(changed, expected)
    assert not trace.exists()
    if name == artifact.CODE:  # the code does run where the digest is its own: the test can fail
        artifact.load_model(changed, artifact.hash_artifact(changed))
        assert trace.exists()


def test_missing_file_is_named(save: Callable[..., dict[str, bytes]], tmp_path: Path) -> None:
    save()
    (tmp_path / "model" / pyfunc.SPEC).unlink()
    with pytest.raises(TiplineError, match=r"model\.json") as caught:
        artifact.read_artifact(tmp_path / "model")
    assert caught.value.parts[2] == "Run: dvc repro"


def test_models_side_by_side_keep_their_own_code(save: Callable[..., dict[str, bytes]], trips: pa.RecordBatch) -> None:
    contents = save()
    code = contents[artifact.CODE].replace(b"return np.reciprocal(odds, out=odds)", b"return np.full_like(odds, 0.25)")
    other = contents | {artifact.CODE: code}
    assert other != contents
    first, second = (artifact.load_model(files, artifact.hash_artifact(files)) for files in (contents, other))
    before = first.probabilities(trips)
    assert (second.probabilities(trips) == 0.25).all()
    assert first.probabilities(trips).tobytes() == before.tobytes()
    assert not (before == 0.25).any()


@pytest.mark.parametrize("version", [None, 4])
def test_model_of_another_tipline_is_refused(trained_template: Paths, version: int | None) -> None:
    contents = artifact.read_artifact(trained_template.challenger)
    spec = json.loads(contents[pyfunc.SPEC]) | {"format": version}
    contents[pyfunc.SPEC] = json.dumps(spec).encode()
    with pytest.raises(TiplineError, match=r"made by.*this tipline reads format 3") as caught:
        artifact.load_model(contents, artifact.hash_artifact(contents))
    assert "Train it again" in caught.value.parts[2]
