"""Equal models have equal bytes, and nothing of a model runs before its digest is checked."""

from __future__ import annotations

import json
import sys
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

    Save = Callable[..., dict[str, bytes]]

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


def create_spec(paths: Paths) -> dict[str, Any]:
    return pipeline.create_spec(workbench.load_settings(paths), load_schema())


@pytest.fixture
def fit(trips: pa.RecordBatch, trained_template: Paths, tmp_path: Path) -> Callable[..., Pipeline]:
    """A function that fits an estimator; those of `own` are in the project's folder."""
    (tmp_path / f"own_{tmp_path.name}.py").write_text(OWN_MODULE)
    (tmp_path / "own_import.py").write_text("import sys\nsys.exit(0)\n")

    def fitted(estimator: str = "logistic_regression", **parameters: Any) -> Pipeline:
        named = estimator.replace("own:", f"own_{tmp_path.name}:")
        train = Train(rows="auto", estimator=named, params=parameters, calibration=None, seed=0)
        unfitted = pipeline.build_pipeline(features, train, tmp_path)
        return pipeline.fit_pipeline(unfitted, pyfunc.build_matrix(trips, features), labels)

    labels, _ = metrics.read_labels(trips, "tip_amount > 0")
    features = create_spec(trained_template)["features"]
    return fitted


@pytest.fixture
def save(fit: Callable[..., Pipeline], trained_template: Paths, tmp_path: Path) -> Save:
    """A function that fits and saves an estimator and returns the model's files."""

    def saved(estimator: str = "logistic_regression", **parameters: Any) -> dict[str, bytes]:
        (tmp_path / "model").mkdir(exist_ok=True)
        pipeline.save_model(tmp_path / "model", fit(estimator, **parameters), create_spec(trained_template))
        return artifact.read_artifact(tmp_path / "model")

    return saved


@pytest.mark.parametrize("estimator", ["logistic_regression", "hist_gradient_boosting"])
def test_equal_fits_give_equal_bytes_that_predict_like_the_fitted_model(
    save: Save, fit: Callable[..., Pipeline], trips: pa.RecordBatch, estimator: str
) -> None:
    contents = save(estimator)
    inputs = pyfunc.build_matrix(trips, json.loads(contents[pyfunc.SPEC])["features"])
    assert save(estimator) == contents
    dump, expected = contents[pyfunc.ESTIMATOR], fit(estimator).predict_proba(inputs)
    assert pipeline.make_canonical(dump) == dump
    loaded = artifact.load_model(contents, artifact.hash_artifact(contents))
    np.testing.assert_array_equal(pyfunc.Model(contents).estimator.predict_proba(inputs), expected)
    np.testing.assert_allclose(loaded.probabilities(trips), expected[:, 1], atol=1e-7)


def test_spec_describes_the_features(trained_template: Paths) -> None:
    described: dict[str, dict[str, Any]] = {
        "vendor": {"kind": "category", "categories": ["CMT", "DDS", "VTS"]},
        "pickup_datetime": {"kind": "hour"},
        "payment_type": {"kind": "category", "categories": ["cash", "credit", "dispute", "no charge"]},
    }
    for name in ("passenger_count", "trip_distance", "fare_amount", "extra"):
        described[name] = {"kind": "number", "range": list(load_schema().columns[name].range or ())}
    features = workbench.read_json(trained_template.challenger / pyfunc.SPEC)["features"]
    assert {feature.pop("name"): feature for feature in features} == described


NO_ESTIMATOR = ("There is no estimator", "params.yaml, train.estimator", "module:function")
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    # estimator: parameters, message
    "no_such_module_here:make": ({}, NO_ESTIMATOR),
    "own_import:make": ({}, ("SystemExit", "train.estimator", "")),
    "json:__name__": ({}, NO_ESTIMATOR),
    "own:stronger": ({"depth": 3}, (r"stronger cannot be called.*'depth'", "train.params", "It has: C.")),
    "own:no_classifier": ({}, ("not a scikit-learn classifier", "train.estimator", "predict_proba")),
    "own:untrusted": ({}, (r"types that tipline does not load: own_\w+\.Own", "train.estimator", "another estimator")),
    "own:leave": ({}, (r"own_\w+:leave failed: SystemExit: 0", "train.estimator", "Correct the function")),
    "own:broken": ({}, (r"own_\w+:broken failed: KeyError: 'no such key'", "train.estimator", "Correct the function")),
    "hist_gradient_boosting": ({"max_lea": 1}, ("cannot.*'max_lea'", "train.params", "Did you mean max_leaf_nodes?")),
}


@pytest.mark.parametrize("estimator", REFUSED)
def test_estimator_that_cannot_be_used_is_refused(save: Save, tmp_path: Path, estimator: str) -> None:
    parameters, (what, where, todo) = REFUSED[estimator]
    with pytest.raises(UsageError, match=what) as caught:
        save(estimator, **parameters)
    assert where in caught.value.parts[1]
    assert todo in caught.value.parts[2]
    assert not list((tmp_path / "model").iterdir())
    assert str(tmp_path) not in sys.path


def test_sample_of_one_class_is_refused(fit: Callable[..., Pipeline]) -> None:
    unfitted, labels = clone(fit()), np.zeros(1000, dtype=bool)
    with pytest.raises(TiplineError, match="class"):
        pipeline.fit_pipeline(unfitted, np.zeros((1000, 7)), labels)


def test_own_function_creates_the_estimator(fit: Callable[..., Pipeline], tmp_path: Path) -> None:
    classifier = fit("own:stronger", C=3.0)[-1]
    assert (classifier.C, classifier.max_iter, classifier.random_state) == (3.0, 500, 0)
    assert str(tmp_path) not in sys.path


def test_changed_or_missing_files_are_refused_before_they_run(save: Save, tmp_path: Path) -> None:
    contents = save()
    expected = artifact.hash_artifact(contents)
    assert contents[artifact.CODE] == Path(pyfunc.__file__).read_bytes()
    trace = tmp_path / "planted code has run"
    planted = f"\nopen({str(trace)!r}, 'w').close()\n".encode()
    for name in artifact.FILES:
        changed = contents | {name: contents[name] + (planted if name == artifact.CODE else b" ")}
        with pytest.raises(TiplineError, match="digest differs"):
            artifact.load_model(changed, expected)
        assert not trace.exists()
    changed = contents | {artifact.CODE: contents[artifact.CODE] + planted}
    artifact.load_model(changed, artifact.hash_artifact(changed))  # the code does run where the digest is its own
    assert trace.exists()
    (tmp_path / "model" / pyfunc.SPEC).unlink()
    with pytest.raises(TiplineError, match=r"model\.json") as caught:
        artifact.read_artifact(tmp_path / "model")
    assert caught.value.parts[2] == "Run: dvc repro"


def test_models_side_by_side_keep_their_own_code(save: Save, trips: pa.RecordBatch) -> None:
    contents = save()
    code = contents[artifact.CODE].replace(b"return np.reciprocal(odds, out=odds)", b"return np.full_like(odds, 0.25)")
    other = contents | {artifact.CODE: code}
    first, second = (artifact.load_model(files, artifact.hash_artifact(files)) for files in (contents, other))
    before = first.probabilities(trips)
    assert (second.probabilities(trips) == 0.25).all()
    assert first.probabilities(trips).tobytes() == before.tobytes()


def test_model_of_another_tipline_is_refused(trained_template: Paths) -> None:
    contents = artifact.read_artifact(trained_template.challenger)
    contents[pyfunc.SPEC] = json.dumps(json.loads(contents[pyfunc.SPEC]) | {"format": 4}).encode()
    with pytest.raises(TiplineError, match=r"made by.*this tipline reads format 3") as caught:
        artifact.load_model(contents, artifact.hash_artifact(contents))
    assert "Train it again" in caught.value.parts[2]
