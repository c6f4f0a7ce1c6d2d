"""The scikit-learn pipeline: built from the settings, fitted, saved as the same bytes each time."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import json
import sys
import warnings
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import skops.io
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils import get_tags
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
TRIAL_ROWS, MIN_TRIAL_ROWS = 500, 50  # of a trial, and of each label in it


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

    Estimators that accept missing values, such as forests and boosting, take codes and numbers as they are. Raises
    UsageError if the estimator or one of its parameters is unknown, or the user's code fails.
    """
    classifier = create_classifier(train, root)
    if getattr(classifier, "categorical_features", None) == "from_dtype":  # histogram gradient boosting
        classifier.set_params(categorical_features=[feature["kind"] == "category" for feature in spec])
    if get_tags(classifier).input_tags.allow_nan:
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
    # On the class, because a stack has it only once it is fitted.
    if not hasattr(type(classifier), "predict_proba") or not hasattr(classifier, "get_params"):
        what = f"{train.estimator} returned {shorten_text(repr(classifier))}, which is not a scikit-learn classifier."
        raise UsageError(what, f"{WHERE}.estimator", "Return one that has predict_proba.")
    return classifier.set_params(**list_defaults(classifier, train.seed))


def list_defaults(classifier: Any, seed: int) -> dict[str, int]:  # noqa: ANN401 (a classifier of any package)
    """Return the seed and one thread for all parts of an estimator that leave them open.

    LightGBM and XGBoost would start a thread per core in each of as many processes. `n_jobs` in `params` allows more.
    """
    params, defaults = classifier.get_params(), {}
    for name in (name for name, value in params.items() if value is None):
        part, _, parameter = name.rpartition("__")
        package = type(params.get(part, classifier)).__module__.partition(".")[0]
        if parameter == "random_state":
            defaults[name] = seed
        elif parameter == "n_jobs" and package in {"lightgbm", "xgboost"}:
            defaults[name] = 1
    return defaults


def import_function(name: str, root: Path) -> Callable[..., Any]:
    """Import the class or function that `package.module.Class` or `module:function` names.

    Modules in the project's folder are found.
    """
    module, _, function = name.partition(":") if ":" in name else name.rpartition(".")
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
        todo = f"Use {', '.join(ESTIMATORS)}, the import path of a class or module:function."
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


def fit_pipeline(pipeline: Pipeline, inputs: pyfunc.Matrix, labels: Labels, *, must_converge: bool = True) -> Pipeline:
    """Fit a pipeline in place on `inputs` of shape (rows, features), with one BLAS thread: equal rows give equal bytes.

    Raises TiplineError if the estimator refuses the parameters or the rows, or the solver does not converge.
    """
    try:
        with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            fitted: Pipeline = pipeline.fit(inputs, labels)
    except Exception as error:  # LightGBM, for example, has its own
        what = f"The model cannot be fitted: {join_lines(error)}"
        raise TiplineError(what, f"{WHERE}, on {len(labels):,} rows", "Correct train.params or the sample.") from error
    if must_converge and any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
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


def dump_estimator(pipeline: Pipeline) -> bytes:
    """Return a fitted pipeline as skops bytes; raise UsageError if it has types that tipline would refuse to load."""
    estimator = make_canonical(skops.io.dumps(pipeline))
    untrusted = sorted(name for name in skops.io.get_untrusted_types(data=estimator) if not pyfunc.is_trusted(name))
    if untrusted:
        what = f"The estimator has types that tipline does not load: {', '.join(untrusted)}."
        todo = f"Use another estimator, of classes of {', '.join(sorted(pyfunc.PACKAGES))} alone."
        raise UsageError(what, f"{WHERE}.estimator", todo)
    return estimator


def list_packages(dump: bytes) -> set[str]:
    """Return the installed packages that the types in a skops file come from."""
    modules = {name.partition(".")[0] for name in skops.io.get_untrusted_types(data=dump)}
    installed = packages_distributions()
    return {package for module in modules for package in installed.get(module, ())}


def try_pipeline(pipeline: Pipeline, inputs: pyfunc.Matrix, labels: Labels) -> None:
    """Fit on few rows, save and load, so that an estimator that tipline cannot use is refused before the long study.

    Raises UsageError if it cannot be saved or scores differently when it is loaded. Too few rows are no reason.
    """
    chosen = np.concatenate([np.flatnonzero(labels == label)[: TRIAL_ROWS // 2] for label in (False, True)])
    if np.bincount(labels[chosen], minlength=2).min() < MIN_TRIAL_ROWS:
        return
    fitted = fit_pipeline(clone(pipeline), inputs[chosen], labels[chosen], must_converge=False)
    loaded = pyfunc.load_estimator(dump_estimator(fitted))
    if not np.array_equal(*(each.predict_proba(inputs[chosen]) for each in (fitted, loaded))):
        what = "The estimator gives other probabilities after it was saved and loaded."
        raise UsageError(what, f"{WHERE}.estimator", "Use another estimator.")


def save_model(folder: Path, pipeline: Pipeline, spec: Mapping[str, Any]) -> None:
    """Write the model's three files; model.json also holds a linear model in its folded form."""
    (folder / pyfunc.ESTIMATOR).write_bytes(dump_estimator(pipeline))
    linear = fold(pipeline, spec["features"])
    save_spec(folder, {**spec, "linear": linear and linear.to_json(), "calibration": None})
    (folder / CODE).write_bytes(Path(pyfunc.__file__).read_bytes())


def save_spec(folder: Path, spec: Mapping[str, Any]) -> None:
    """Write model.json with one line per key."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in spec.items())
    (folder / pyfunc.SPEC).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def make_canonical(dump: bytes) -> bytes:
    """Remove from a skops dump what differs between dumps of equal estimators.

    skops names nodes and files by memory addresses, and zip entries hold the time. Here nodes and files are numbered in
    order of appearance; entries have one date and no compression. Plain values get a number each: whether equal ones
    are one object in memory is chance.
    """
    with zipfile.ZipFile(io.BytesIO(dump)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    numbers: dict[object, int] = {}

    def renumber(node: Any) -> Any:  # noqa: ANN401 (any JSON value)
        if isinstance(node, list):
            return [renumber(part) for part in node]
        if not isinstance(node, dict):
            return node
        changed = dict(node)
        if "__id__" in node:
            key = len(numbers) if node.get("__loader__") == "JsonNode" else f"{node['__id__']}"
            changed["__id__"] = numbers.setdefault(key, len(numbers))
        if "file" in node:
            name = Path(node["file"])
            changed["file"] = f"{numbers.setdefault(name.stem, len(numbers))}{name.suffix}"
        return {name: value if name in {"__id__", "file"} else renumber(value) for name, value in changed.items()}

    schema = json.dumps(renumber(json.loads(contents.pop("schema.json"))))
    arrays = sorted((numbers[Path(name).stem], Path(name).suffix, data) for name, data in contents.items())
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("schema.json"), schema)
        for number, ending, data in arrays:
            archive.writestr(zipfile.ZipInfo(f"{number}{ending}"), data)
    return result.getvalue()
