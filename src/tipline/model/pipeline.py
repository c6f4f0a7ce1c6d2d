"""The scikit-learn pipeline: built from the settings, fitted, saved as the same bytes each time."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import json
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from tipline.errors import TiplineError, UsageError, join_lines, shorten_text, summarize_exception
from tipline.ingest.target import parse_target
from tipline.model import pyfunc
from tipline.model.artifact import CODE, FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tipline.config import Settings, Train
    from tipline.evaluation.metrics import Labels
    from tipline.ingest.schema import Schema

ESTIMATORS: dict[str, Callable[..., Any]] = {
    "logistic_regression": LogisticRegression,
    "hist_gradient_boosting": HistGradientBoostingClassifier,
}
# lbfgs, scikit-learn's default, stops 7e-5 nats above the minimum on a million trips, more than the gains that the
# learning curve weighs. newton-cholesky gets within 1e-8 in twice the time.
DEFAULTS: dict[str, dict[str, Any]] = {"logistic_regression": {"solver": "newton-cholesky", "max_iter": 1000}}
WHERE = "params.yaml, train"


def create_spec(settings: Settings, schema: Schema) -> dict[str, Any]:
    """Return what model.json holds before the fit; of the baseline, only its columns.

    The gate does not judge the model on any of the months that it is made on.
    """
    sized = settings.train.rows == "auto" or settings.train.calibration
    return {
        "format": FORMAT,
        "target": settings.model.target,
        "target_columns": {name: schema.columns[name].type for name in parse_target(settings.model.target).columns},
        "time": schema.time,
        "features": [create_feature(name, schema, settings.model.categories) for name in settings.model.columns],
        "baseline": {"by": list(settings.evaluate.baseline)},
        "months": {
            "train": settings.sample.get_months("train"),
            "validation": settings.sample.get_months("validation") if sized else [],
        },
    }


def create_feature(name: str, schema: Schema, categories: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Describe a feature: a category by its values, a timestamp by its hour, a number by its plausible range."""
    column = schema.columns[name]
    if column.type == "category":
        return {"name": name, "kind": "category", "categories": list(categories[name])}
    if column.type == "timestamp":
        return {"name": name, "kind": "hour"}
    return {"name": name, "kind": "number", "range": list(column.range) if column.range else None}


def build_pipeline(spec: Sequence[Mapping[str, Any]], train: Train, root: Path) -> Pipeline:
    """Build the unfitted pipeline: categories one-hot, numbers imputed and scaled, then the estimator.

    Histogram gradient boosting takes codes and missing values as they are. Raises UsageError if the estimator or one
    of its parameters is unknown, or the user's code fails.
    """
    classifier = create_classifier(train, root)
    if isinstance(classifier, HistGradientBoostingClassifier):
        if classifier.categorical_features == "from_dtype":
            classifier.set_params(categorical_features=[feature["kind"] == "category" for feature in spec])
        return Pipeline([("classifier", classifier)])
    coded, plain = split_features(spec)
    values = [np.arange(pyfunc.count_levels(spec[index]), dtype=float) for index in coded]
    # Sparse columns take a third of the memory, but not every estimator accepts them.
    sparse = isinstance(classifier, LogisticRegression)
    one_hot = OneHotEncoder(categories=values, handle_unknown="ignore", sparse_output=sparse)
    # A column that no training row has is kept: a month of another era may have it, and `pyfunc.fold` counts on it.
    impute = SimpleImputer(strategy="median", keep_empty_features=True)
    scaled = Pipeline([("impute", impute), ("scale", StandardScaler())])
    parts = [("categories", one_hot, coded), ("numbers", scaled, plain)]
    # Otherwise the share of zeros in the data decides whether sparse columns stay sparse.
    columns = ColumnTransformer([part for part in parts if part[2]], sparse_threshold=1.0)
    return Pipeline([("columns", columns), ("classifier", classifier)])


def split_features(features: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Return the positions of the features that are codes, and of those that are numbers."""
    coded = [index for index, feature in enumerate(features) if pyfunc.count_levels(feature)]
    return coded, [index for index in range(len(features)) if index not in coded]


class UserCode(contextlib.AbstractContextManager[None]):
    """Report any error of the user's own code, SystemExit included, as a mistake in params.yaml."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception | SystemExit):
            what = f"{self.name} failed: {type(error).__name__}: {summarize_exception(error)}."
            raise UsageError(what, f"{WHERE}.estimator", "Correct the function or its parameters.") from error


def create_classifier(train: Train, root: Path) -> Any:  # noqa: ANN401 (whatever the user's function returns)
    """Create the estimator that `train` names, with its parameters and the seed."""
    factory = ESTIMATORS.get(train.estimator) or import_function(train.estimator, root)
    params = {**DEFAULTS.get(train.estimator, {}), **train.params}
    check_parameters(train.estimator, factory, params)
    with UserCode(train.estimator):
        classifier = factory(**params)
    if not hasattr(classifier, "predict_proba") or not hasattr(classifier, "get_params"):
        what = f"{train.estimator} returned {shorten_text(repr(classifier))}, which is not a scikit-learn classifier."
        raise UsageError(what, f"{WHERE}.estimator", "Return one that has predict_proba.")
    if "random_state" in classifier.get_params() and classifier.random_state is None:
        classifier.set_params(random_state=train.seed)
    return classifier


def import_function(name: str, root: Path) -> Callable[..., Any]:
    """Import the function that `module:function` names; modules in the project's folder are found."""
    module, _, function = name.partition(":")
    found = None
    sys.path.insert(0, str(root))
    with UserCode(name):
        try:
            found = getattr(importlib.import_module(module), function, None)
        except ModuleNotFoundError as error:
            if not module.startswith(str(error.name)):  # the module lacks one that it imports
                raise
        finally:
            sys.path.remove(str(root))
    if not callable(found):
        todo = f"Use {', '.join(ESTIMATORS)} or module:function."
        raise UsageError(f"There is no estimator {name!r}.", f"{WHERE}.estimator", todo)
    return found  # type: ignore[no-any-return]


def check_parameters(name: str, factory: Callable[..., Any], params: Mapping[str, Any]) -> None:
    """Refuse parameters that an estimator does not take, and name the nearest that it does take."""
    signature = inspect.signature(factory)
    try:
        signature.bind(**params)
    except TypeError as error:
        known, unknown = sorted(signature.parameters), [key for key in params if key not in signature.parameters]
        near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
        todo = f"Did you mean {near[0]}?" if near else f"It has: {', '.join(known)}."
        raise UsageError(f"{name} cannot be called: {error}.", f"{WHERE}.params", todo) from error


def fit_pipeline(pipeline: Pipeline, inputs: pyfunc.Matrix, labels: Labels) -> Pipeline:
    """Fit a pipeline in place on `inputs` of shape (rows, features), with one BLAS thread: equal rows give equal bytes.

    Raises TiplineError if scikit-learn refuses the parameters or the rows, or the solver does not converge.
    """
    try:
        with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            fitted: Pipeline = pipeline.fit(inputs, labels)
    except (ValueError, TypeError) as error:
        what = f"The model cannot be fitted: {join_lines(error)}"
        raise TiplineError(what, f"{WHERE}, on {len(labels):,} rows", "Correct train.params or the sample.") from error
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        limit = getattr(pipeline[-1], "max_iter", "its default")
        what = f"The fit on {len(labels):,} rows did not converge within max_iter={limit}."
        raise TiplineError(what, f"{WHERE}.params", "Raise max_iter or lower C.")
    return fitted


def fold(estimator: Pipeline, features: Sequence[Mapping[str, Any]]) -> pyfunc.Linear | None:
    """Fold a fitted logistic regression behind the built-in preprocessing; return None for anything else."""
    classifier = estimator[-1]
    if type(classifier).__name__ != "LogisticRegression" or "columns" not in estimator.named_steps:
        return None
    steps = estimator["columns"].named_transformers_
    weights = iter(classifier.coef_[0])
    terms: dict[int, pyfunc.Floats | tuple[float, float]] = {}
    intercept = float(classifier.intercept_[0])
    coded, plain = split_features(features)
    for index in coded:
        terms[index] = np.array([next(weights) for _ in range(pyfunc.count_levels(features[index]))] + [0.0])
    for place, index in enumerate(plain):
        scaler, median = steps["numbers"]["scale"], steps["numbers"]["impute"].statistics_[place]
        slope = next(weights) / scaler.scale_[place]
        intercept -= slope * scaler.mean_[place]
        terms[index] = (float(slope), float(median))
    return pyfunc.Linear(intercept, tuple(terms[index] for index in range(len(features))))


def save_model(folder: Path, pipeline: Pipeline, spec: Mapping[str, Any]) -> None:
    """Write the model's three files; model.json also holds a linear model in its folded form.

    Raises UsageError if the estimator has types that tipline would refuse to load.
    """
    estimator = make_canonical(skops.io.dumps(pipeline))
    untrusted = sorted(set(skops.io.get_untrusted_types(data=estimator)) - set(pyfunc.TRUSTED))
    if untrusted:
        what = f"The estimator has types that tipline does not load: {', '.join(untrusted)}."
        raise UsageError(what, f"{WHERE}.estimator", "Use another estimator of scikit-learn.")
    (folder / pyfunc.ESTIMATOR).write_bytes(estimator)
    linear = fold(pipeline, spec["features"])
    save_spec(folder, {**spec, "linear": linear and linear.to_json(), "calibration": None})
    (folder / CODE).write_bytes(Path(pyfunc.__file__).read_bytes())


def save_spec(folder: Path, spec: Mapping[str, Any]) -> None:
    """Write model.json with one line per key."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in spec.items())
    (folder / pyfunc.SPEC).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def make_canonical(dump: bytes) -> bytes:
    """Remove from a skops dump what differs between dumps of equal estimators.

    skops names nodes and array files by memory addresses, and zip entries hold the time. Here nodes and files are
    numbered in order of appearance; entries have one date and no compression.
    """
    with zipfile.ZipFile(io.BytesIO(dump)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    schema = contents.pop("schema.json").decode()
    numbers: dict[str, str] = {}
    addresses = r'(?<="__id__": )\d+|(?<="file": ")\d+(?=\.npy")'
    schema = re.sub(addresses, lambda found: numbers.setdefault(found[0], str(len(numbers))), schema)
    arrays = sorted((int(numbers[name.removesuffix(".npy")]), data) for name, data in contents.items())
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("schema.json"), schema)
        for number, data in arrays:
            archive.writestr(zipfile.ZipInfo(f"{number}.npy"), data)
    return result.getvalue()
