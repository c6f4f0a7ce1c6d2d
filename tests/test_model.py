"""Equal models have equal bytes, and nothing of a model runs before its digest is checked."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import skops.io

from tests import workbench
from tests.conftest import ROOT
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


def train(estimator: str, **parameters: Any) -> Train:
    return Train(rows="auto", estimator=estimator, params=parameters, calibration=None, seed=0)


def fitted(trips: pa.RecordBatch, features: list[dict[str, Any]], wanted: Train, root: Path) -> Pipeline:
    labels, _ = metrics.read_labels(trips, "tip_amount")
    return pipeline.fit_pipeline(
        pipeline.build_pipeline(features, wanted, root), pyfunc.build_matrix(trips, features), labels
    )


@pytest.fixture
def save(trips: pa.RecordBatch, trained_template: Paths, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """A function that fits and saves an estimator and returns the model's files."""

    def saved(estimator: str = "logistic_regression", **parameters: Any) -> dict[str, bytes]:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        spec = create_spec(trained_template)
        fit = fitted(trips, spec["features"], train(estimator, **parameters), tmp_path)
        pipeline.save_model(folder, fit, spec)
        return artifact.read_artifact(folder)

    return saved


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_three_fits_give_the_same_bytes(save: Callable[..., dict[str, bytes]], estimator: str) -> None:
    first, second, third = (save(estimator) for _ in range(3))
    assert first == second == third
    assert artifact.hash_artifact(first) == artifact.hash_artifact(third)


FIT_AGAIN = """
import sys
from pathlib import Path
from tests import workbench
from tests.test_model import ESTIMATORS, create_spec, fitted, train
from tipline.model import pipeline
from tipline.paths import Paths

paths, spec = Paths(Path(sys.argv[1])), create_spec(Paths(Path(sys.argv[1])))
trips = workbench.as_batch(workbench.read_prepared(paths, "2009-01"))
for estimator in ESTIMATORS:
    folder = Path(sys.argv[2]) / estimator
    folder.mkdir()
    pipeline.save_model(folder, fitted(trips, spec["features"], train(estimator), paths.root), spec)
"""


def test_fresh_process_gives_the_same_bytes(
    save: Callable[..., dict[str, bytes]], trained_template: Paths, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    arguments = [sys.executable, "-c", FIT_AGAIN, str(trained_template.root), str(folder)]
    subprocess.run(arguments, cwd=ROOT, check=True)
    for estimator in ESTIMATORS:
        assert artifact.read_digest(folder / estimator) == artifact.hash_artifact(save(estimator)), estimator


def test_another_parameter_gives_another_digest(save: Callable[..., dict[str, bytes]]) -> None:
    assert artifact.hash_artifact(save(C=1.0)) != artifact.hash_artifact(save(C=0.5))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_canonical_dumps_load_and_predict_the_same(
    trips: pa.RecordBatch, features: list[dict[str, Any]], estimator: str, tmp_path: Path
) -> None:
    fit = fitted(trips, features, train(estimator), tmp_path)
    dump = pipeline.make_canonical(skops.io.dumps(fit))
    assert pipeline.make_canonical(dump) == dump
    with zipfile.ZipFile(io.BytesIO(dump)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    loaded = skops.io.loads(dump, trusted=list(pyfunc.TRUSTED))
    inputs = pyfunc.build_matrix(trips, features)
    np.testing.assert_array_equal(loaded.predict_proba(inputs), fit.predict_proba(inputs))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_loaded_model_predicts_like_the_fitted_one(
    save: Callable[..., dict[str, bytes]],
    trips: pa.RecordBatch,
    features: list[dict[str, Any]],
    estimator: str,
    tmp_path: Path,
) -> None:
    contents = save(estimator)
    loaded = artifact.load_model(contents, artifact.hash_artifact(contents))
    expected = fitted(trips, features, train(estimator), tmp_path).predict_proba(pyfunc.build_matrix(trips, features))[
        :, 1
    ]
    np.testing.assert_allclose(loaded.probabilities(trips), expected, atol=1e-7)


def test_spec_describes_the_features(save: Callable[..., dict[str, bytes]]) -> None:
    spec = json.loads(save()[pyfunc.SPEC])
    known = load_schema()
    assert spec["features"] == [
        {"name": "vendor", "kind": "category", "categories": ["CMT", "DDS", "VTS"]},
        {"name": "pickup_datetime", "kind": "hour"},
        {"name": "passenger_count", "kind": "number", "range": list(known.columns["passenger_count"].range or ())},
        {"name": "trip_distance", "kind": "number", "range": list(known.columns["trip_distance"].range or ())},
        {"name": "payment_type", "kind": "category", "categories": ["cash", "credit", "dispute", "no charge"]},
        {"name": "fare_amount", "kind": "number", "range": list(known.columns["fare_amount"].range or ())},
        {"name": "extra", "kind": "number", "range": list(known.columns["extra"].range or ())},
    ]


@pytest.mark.parametrize("estimator", ["no_such_module_here:make", "json:no_such_function"])
def test_unknown_estimator_is_refused(features: list[dict[str, Any]], tmp_path: Path, estimator: str) -> None:
    with pytest.raises(UsageError, match="no estimator") as caught:
        pipeline.build_pipeline(features, train(estimator), tmp_path)
    assert caught.value.parts[1] == "params.yaml, train.estimator"
    assert "module:function" in caught.value.parts[2]
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("estimator", "parameter", "hint"),
    [
        ("logistic_regression", "max_itre", "Did you mean max_iter?"),
        ("hist_gradient_boosting", "learning_rat", "Did you mean learning_rate?"),
        ("logistic_regression", "zzz", "It has: C,"),
    ],
)
def test_unknown_parameter_is_refused_with_the_nearest(
    features: list[dict[str, Any]], tmp_path: Path, estimator: str, parameter: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=f"cannot be called.*'{parameter}'") as caught:
        pipeline.build_pipeline(features, train(estimator, **{parameter: 1}), tmp_path)
    assert hint in caught.value.parts[2]


@pytest.mark.parametrize("parameters", [{"C": -1}, {"C": "much"}, {"solver": "none such"}])
def test_bad_parameter_value_is_reported_by_scikit_learn(
    trips: pa.RecordBatch, features: list[dict[str, Any]], tmp_path: Path, parameters: dict[str, Any]
) -> None:
    with pytest.raises(TiplineError, match=next(iter(parameters))) as caught:
        fitted(trips, features, train("logistic_regression", **parameters), tmp_path)
    assert "train.params" in caught.value.parts[2]


def test_fit_that_does_not_converge_is_refused(
    trips: pa.RecordBatch, features: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(TiplineError, match="max_iter=1") as caught:
        fitted(trips, features, train("logistic_regression", max_iter=1), tmp_path)
    assert "Raise max_iter" in caught.value.parts[2]


def test_sample_of_one_class_is_refused(trips: pa.RecordBatch, features: list[dict[str, Any]], tmp_path: Path) -> None:
    pipeline_ = pipeline.build_pipeline(features, train("logistic_regression"), tmp_path)
    with pytest.raises(TiplineError, match="class"):
        pipeline.fit_pipeline(pipeline_, pyfunc.build_matrix(trips, features), np.zeros(len(trips), dtype=bool))


def test_own_function_creates_the_estimator(
    trips: pa.RecordBatch, features: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "own_estimators.py").write_text(OWN_MODULE)
    fit = fitted(trips, features, train("own_estimators:stronger", C=3.0), tmp_path)
    assert (fit[-1].C, fit[-1].max_iter, fit[-1].random_state) == (3.0, 500, 0)
    assert str(tmp_path) not in sys.path


def test_own_function_refuses_unknown_parameters(features: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "own_estimators_2.py").write_text(OWN_MODULE)
    with pytest.raises(UsageError, match=r"stronger cannot be called.*'depth'"):
        pipeline.build_pipeline(features, train("own_estimators_2:stronger", depth=3), tmp_path)


def test_own_function_must_return_a_classifier(features: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "own_estimators_3.py").write_text(OWN_MODULE)
    with pytest.raises(UsageError, match="not a scikit-learn classifier") as caught:
        pipeline.build_pipeline(features, train("own_estimators_3:no_classifier"), tmp_path)
    assert "predict_proba" in caught.value.parts[2]


def test_estimator_that_would_not_load_is_not_saved(
    trips: pa.RecordBatch, features: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "own_estimators_4.py").write_text(OWN_MODULE)
    fit = fitted(trips, features, train("own_estimators_4:untrusted"), tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"own_estimators_4\.Own"):
        pipeline.save_model(folder, fit, {"features": features})
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", artifact.FILES)
def test_changed_files_are_refused_before_they_run(
    save: Callable[..., dict[str, bytes]], tmp_path: Path, name: str
) -> None:
    contents = save()
    expected = artifact.hash_artifact(contents)
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
    code = contents[artifact.CODE].decode()
    other = contents | {
        artifact.CODE: code.replace("return np.reciprocal(odds, out=odds)", "return np.full_like(odds, 0.25)").encode()
    }
    assert other != contents
    first, second = (artifact.load_model(files, artifact.hash_artifact(files)) for files in (contents, other))
    before = first.probabilities(trips)
    assert (second.probabilities(trips) == 0.25).all()
    assert first.probabilities(trips).tobytes() == before.tobytes()
    assert not (before == 0.25).any()


def test_digest_covers_every_file(trained_template: Paths) -> None:
    contents = artifact.read_artifact(trained_template.challenger)
    assert contents[artifact.CODE] == Path(pyfunc.__file__).read_bytes()
    for name in artifact.FILES:
        assert artifact.hash_artifact(contents | {name: contents[name] + b" "}) != artifact.hash_artifact(contents)


@pytest.mark.parametrize("version", [None, 3])
def test_model_of_another_tipline_is_refused(trained_template: Paths, version: int | None) -> None:
    contents = artifact.read_artifact(trained_template.challenger)
    spec = json.loads(contents[pyfunc.SPEC]) | {"format": version}
    contents[pyfunc.SPEC] = json.dumps(spec).encode()
    with pytest.raises(TiplineError, match=r"made by.*this tipline reads format 2") as caught:
        artifact.load_model(contents, artifact.hash_artifact(contents))
    assert "Train it again" in caught.value.parts[2]


@pytest.mark.parametrize("name", ["leave", "broken"])
def test_error_in_a_function_of_ones_own_is_reported_as_such(
    features: list[dict[str, Any]], tmp_path: Path, name: str
) -> None:
    (tmp_path / f"own_{name}.py").write_text(OWN_MODULE)
    with pytest.raises(
        UsageError, match=rf"own_{name}:{name} failed: (SystemExit: 0|KeyError: 'no such key')"
    ) as caught:
        pipeline.build_pipeline(features, train(f"own_{name}:{name}"), tmp_path)
    assert "train.estimator" in caught.value.parts[1]


def test_error_while_ones_own_module_is_imported_is_reported_as_such(
    features: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "own_import.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UsageError, match="SystemExit"):
        pipeline.build_pipeline(features, train("own_import:make"), tmp_path)
    assert str(tmp_path) not in sys.path
