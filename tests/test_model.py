"""Equal models have equal bytes, and nothing of a model runs before its digest is checked."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests import workbench
from tipline.errors import TiplineError, UsageError
from tipline.evaluation import metrics
from tipline.ingest.schema import load_schema
from tipline.model import artifact, persistence, pipeline, pyfunc
from tipline.paths import Paths

Fit = Callable[..., pipeline.BuiltPipeline]
Save = Callable[..., dict[str, bytes]]

CODE = """
import sys
from sklearn.linear_model import LogisticRegression

def scale(trips):
    return trips[["fare_amount"]].fillna(0) * 2.0

def stronger(C=10.0):
    return LogisticRegression(C=C, max_iter=500)

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


@pytest.fixture
def fit(trips: pa.RecordBatch, make_project: Callable[..., Paths]) -> Fit:
    """A function that fits an estimator, with CODE as the user's code file."""

    def fitted(
        estimator: str = "logistic_regression", features: str | None = None, **parameters: Any
    ) -> pipeline.BuiltPipeline:
        paths = make_project(train={"estimator": estimator, "params": parameters}, model={"features": features})
        (paths.root / "features.py").write_text(CODE)
        settings = workbench.load_settings(paths)
        frame = artifact.read_frame(trips, pipeline.create_spec(settings, load_schema())["inputs"])
        built = pipeline.build_pipeline(settings, load_schema(), paths.root, frame)
        pipeline.fit_pipeline(built.pipeline, frame, metrics.read_labels(trips, "tip_amount > 0")[0])
        return built

    return fitted


@pytest.fixture
def save(fit: Fit, make_project: Callable[..., Paths]) -> Save:
    """A function that fits and saves an estimator and returns the model's files."""

    def saved(*arguments: Any, **parameters: Any) -> dict[str, bytes]:
        built, paths = fit(*arguments, **parameters), make_project()
        spec = pipeline.create_spec(workbench.load_settings(paths), load_schema()) | {"features": built.features}
        folder = paths.root / "model"
        folder.mkdir(exist_ok=True)
        persistence.save_model(folder, built, spec)
        return artifact.read_artifact(folder)

    return saved


@pytest.mark.parametrize("estimator", ["logistic_regression", "hist_gradient_boosting"])
def test_equal_fits_give_equal_bytes_that_predict_like_the_fitted_model(
    save: Save, fit: Fit, trips: pa.RecordBatch, estimator: str
) -> None:
    contents = save(estimator)
    frame = artifact.read_frame(trips, json.loads(contents[pyfunc.SPEC])["inputs"])
    assert save(estimator) == contents
    dump, expected = contents[pyfunc.ESTIMATOR], fit(estimator).pipeline.predict_proba(frame)
    assert persistence.make_canonical(dump) == dump
    loaded = artifact.load_model(contents, artifact.hash_artifact(contents))
    np.testing.assert_array_equal(artifact.Model(contents).estimator.predict_proba(frame), expected)
    np.testing.assert_allclose(loaded.probabilities(trips), expected[:, 1], atol=1e-7)


def test_the_users_code_is_part_of_a_model_that_uses_it(save: Save) -> None:
    assert set(save()) == {pyfunc.ESTIMATOR, pyfunc.SPEC, "transformers.py"}
    for contents in (save(features="scale"), save("stronger", "scale")):
        assert contents["features.py"] == CODE.encode()


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    # estimator: parameters, message
    "no_such_module_here.make": ({}, ("There is no estimator", "train.estimator", "import path")),
    "json.__name__": ({}, ("There is no estimator", "train.estimator", "a function of model.code")),
    "stronger": ({"depth": 3}, (r"stronger cannot be called.*'depth'", "train.params", "It has: C.")),
    "no_classifier": ({}, ("not a scikit-learn classifier", "train.estimator", "predict_proba")),
    "leave": ({}, ("leave failed: SystemExit: 0", "train.estimator", "Correct the function")),
    "broken": ({}, ("broken failed: KeyError: 'no such key'", "train.estimator", "Correct the function")),
    "hist_gradient_boosting": ({"max_lea": 1}, ("cannot.*'max_lea'", "train.params", ", max_leaf_nodes, ")),
}


@pytest.mark.parametrize("estimator", REFUSED)
def test_estimator_that_cannot_be_used_is_refused(fit: Fit, estimator: str) -> None:
    parameters, (what, where, todo) = REFUSED[estimator]
    with pytest.raises(UsageError, match=what) as caught:
        fit(estimator, **parameters)
    assert where in caught.value.parts[1]
    assert todo in caught.value.parts[2]


def test_sample_of_one_class_is_refused(fit: Fit, trips: pa.RecordBatch) -> None:
    built = fit()
    inputs = [{"name": name, "type": "number"} for name in ("fare_amount", "extra")]
    with pytest.raises(TiplineError, match="The fit failed"):
        pipeline.fit_pipeline(built.pipeline, artifact.read_frame(trips, inputs), np.zeros(len(trips), dtype=bool))


def test_own_function_creates_the_estimator(fit: Fit) -> None:
    classifier = fit("stronger", "scale", C=3.0).pipeline[-1]
    assert (classifier.C, classifier.max_iter, classifier.random_state) == (3.0, 500, 0)


def test_changed_or_missing_files_are_refused_before_they_run(save: Save, make_project: Callable[..., Paths]) -> None:
    contents = save("stronger", "scale")
    expected, folder = artifact.hash_artifact(contents), make_project().root
    trace = folder / "planted code has run"
    planted = f"\nopen({str(trace)!r}, 'w').close()\n".encode()
    for name in contents:
        changed = contents | {name: contents[name] + (planted if name.endswith(".py") else b" ")}
        with pytest.raises(TiplineError, match="digest differs"):
            artifact.load_model(changed, expected)
        assert not trace.exists()
    changed = contents | {"features.py": contents["features.py"] + planted}
    # The digest is its own, but the types of the estimator name the module of the code that it was fitted with.
    with pytest.raises(TiplineError, match="types that tipline does not load: features_"):
        artifact.load_model(changed, artifact.hash_artifact(changed))
    assert not trace.exists()
    (folder / "model" / pyfunc.SPEC).unlink()
    with pytest.raises(TiplineError, match=r"model\.json") as caught:
        artifact.read_artifact(folder / "model")
    assert caught.value.parts[2] == "Run: dvc repro"


def test_model_of_another_tipline_is_refused(trained_template: Paths) -> None:
    contents = artifact.read_artifact(trained_template.challenger)
    contents[pyfunc.SPEC] = json.dumps(json.loads(contents[pyfunc.SPEC]) | {"format": 7}).encode()
    with pytest.raises(TiplineError, match=r"has the format.*this tipline reads the formats 5 to 6") as caught:
        artifact.load_model(contents, artifact.hash_artifact(contents))
    assert "Train it again" in caught.value.parts[2]
