"""The scikit-learn pipeline: from a DataFrame of prepared columns to probabilities, built and fitted."""

import contextlib
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.utils import get_tags
from threadpoolctl import threadpool_limits

from tipline.arrays import Labels
from tipline.config import ESTIMATOR_FORMS, Settings, Train
from tipline.config import Model as ModelSettings
from tipline.errors import ReportedCode, TiplineError, UsageError, shorten_text
from tipline.ingest.schema import Schema
from tipline.ingest.target import parse_target
from tipline.model import pyfunc
from tipline.model.artifact import FORMAT, TRANSFORMERS
from tipline.model.transformers import MISSING, OTHER, name_values

ESTIMATORS: dict[str, Callable[..., Any]] = {
    "logistic_regression": LogisticRegression,
    "hist_gradient_boosting": HistGradientBoostingClassifier,
}
# lbfgs, scikit-learn's default, stops 7e-5 nats above the minimum on a million trips, more than the gains that the
# learning curve weighs. newton-cholesky gets within 1e-8 in twice the time.
DEFAULTS: dict[str, dict[str, Any]] = {"logistic_regression": {"solver": "newton-cholesky", "max_iter": 1000}}
WHERE = "params.yaml, train"
TODO = "Correct the function or its parameters."
NO_VALUE = "(no value in the sample)"
KINDS = ("category", "hour", "number")


@dataclass(frozen=True)
class BuiltPipeline:
    """A pipeline, fitted or not, and what it is made of."""

    pipeline: Pipeline
    features: list[dict[str, str]]  # name and kind of the columns after the user's function
    code: dict[str, bytes]  # the code files that it needs


def create_spec(settings: Settings, schema: Schema) -> dict[str, Any]:
    """Return what model.json holds before the fit; of the baseline, only its columns."""
    sized = settings.train.rows == "auto" or settings.train.calibration
    return {
        "format": FORMAT,
        "target": settings.model.target,
        "target_columns": {name: schema.columns[name].type for name in parse_target(settings.model.target).columns},
        "time": schema.time,
        "inputs": [{"name": name, "type": schema.columns[name].type} for name in settings.model.columns],
        "baseline": {"by": list(settings.evaluate.baseline)},
        "months": {
            "train": settings.sample.get_months("train"),
            "validation": settings.sample.get_months("validation") if sized else [],
        },
    }


def build_pipeline(settings: Settings, schema: Schema, root: Path, frame: pd.DataFrame) -> BuiltPipeline:
    """Build the unfitted pipeline for a frame of training rows: the user's function, preprocessing, classifier."""
    model, code = settings.model, root / settings.model.code
    functions = load_functions(code)
    files, steps = {TRANSFORMERS.name: TRANSFORMERS.read_bytes()}, []
    is_own = settings.train.estimator in functions and settings.train.estimator not in ESTIMATORS
    if model.features:
        if model.features not in functions:
            what = f"{model.features} is no function of {code.name} once the file has run; a decorator may replace it."
            raise UsageError(what, "params.yaml, model.features", "Define it with `def`, under this name.")
        step = create_step("apply_features", function=functions[model.features])
        with ReportedCode(model.features, "params.yaml, model.features", TODO):
            frame = step.transform(frame)
        steps.append(("features", step))
    if model.features or is_own:
        files[code.name] = code.read_bytes()
    features = describe_columns(frame, model)
    classifier = create_classifier(settings.train, functions)
    if not is_own:
        steps.append(("preprocess", build_preprocessing(classifier, features, frame, settings, schema)))
    return BuiltPipeline(Pipeline([*steps, ("classifier", classifier)]), features, files)


def create_step(name: str, **arguments: Any) -> Any:  # noqa: ANN401 (arguments of any function)
    """Create a step from a class or a function of `transformers.py`, as the model will carry it."""
    found = getattr(pyfunc.install_code(TRANSFORMERS.name, TRANSFORMERS.read_bytes()), name)
    return found(**arguments) if isinstance(found, type) else FunctionTransformer(found, kw_args=arguments or None)


def describe_columns(frame: pd.DataFrame, model: ModelSettings) -> list[dict[str, str]]:
    """Return name and kind of the columns that the preprocessing sees: category, hour or number."""
    where, columns = "params.yaml, model.categorical", list(map(str, frame.columns))
    if columns != list(dict.fromkeys(frame.columns)):
        what = f"The names of the columns are not different texts: {', '.join(columns)}."
        raise UsageError(what, "params.yaml, model.features", "Give each column a name of its own.")
    if unknown := sorted(set(model.categorical or ()) - set(columns)):
        raise UsageError(f"There is no column {unknown[0]!r}.", where, f"Use some of: {', '.join(columns)}.")
    features: list[dict[str, str]] = []
    for name, values in frame.items():
        if isinstance(values.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(values):
            kind = "category"
        elif pd.api.types.is_datetime64_dtype(values):
            kind = "hour"
        elif pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_complex_dtype(values):
            kind = "number"
        else:
            todo = "Return text, timestamps without a zone, numbers or booleans."
            raise UsageError(f"{name} has the type {values.dtype}.", "params.yaml, model.features", todo)
        if model.categorical is not None and kind != "hour":
            kind = "category" if name in model.categorical else "number"
        if kind == "number" and not pd.api.types.is_numeric_dtype(values):
            raise UsageError(f"{name} is text and not in the list.", where, "Add it, or remove it from model.columns.")
        features.append({"name": str(name), "kind": kind})
    known = [feature["name"] for feature in features if feature["kind"] == "category"]
    for name in sorted(set(model.categories) - set(known)):
        todo = f"Use some of: {', '.join(known) or 'none'}; or make the column a category."
        raise UsageError(f"{name} has values here but is not a category.", "params.yaml, model.categories", todo)
    return features


def build_preprocessing(
    classifier: Any,  # noqa: ANN401 (a classifier of any package)
    features: Sequence[Mapping[str, str]],
    frame: pd.DataFrame,
    settings: Settings,
    schema: Schema,
) -> ColumnTransformer:
    """Build the preprocessing in the form that suits the classifier. docs/own-model.md has a table of both.

    Classifiers that accept missing values get codes of categories, and numbers as they are. The rest get categories and
    hours one-hot, and numbers clipped to their plausible range, imputed and scaled.
    """
    names = {kind: [column["name"] for column in features if column["kind"] == kind] for kind in KINDS}
    levels = [list_levels(frame[name], settings.model.categories.get(name)) for name in names["category"]]
    hours, tags, share = create_step("hour_of_day"), get_tags(classifier).input_tags, settings.model.other_share
    before: list[tuple[str, Any]] = []
    if share:
        known = [values.tolist() for values in levels]
        before = [("unseen", create_step("OtherLevel", share=share, seed=settings.train.seed, levels=known))]
        added = [[OTHER, *[MISSING] * frame[name].hasnans] for name in names["category"]]
        texts = [dict.fromkeys([*name_values(v), *more]) for v, more in zip(known, added, strict=True)]
        levels = [np.array(list(values), object) for values in texts]
    if tags.allow_nan:
        if getattr(classifier, "categorical_features", None) == "from_dtype":  # histogram gradient boosting
            coded = [index for index, values in enumerate(levels) if len(values) <= classifier.max_bins]
            classifier.set_params(categorical_features=coded)
        encoder = OrdinalEncoder(categories=levels, handle_unknown="use_encoded_value", unknown_value=np.nan)
        parts = [("hours", hours, names["hour"]), ("numbers", "passthrough", names["number"])]
    else:
        one_hot = {"handle_unknown": "ignore", "sparse_output": tags.sparse}
        encoder = OneHotEncoder(categories=levels, **one_hot)
        of_day = OneHotEncoder(categories=[np.arange(24.0)] * len(names["hour"]), **one_hot)
        # The plausible range of a number of the schema; derived columns have no limits.
        ranges = [getattr(schema.columns.get(name), "range", None) or (-np.inf, np.inf) for name in names["number"]]
        clip = create_step("clip_numbers", low=[low for low, _ in ranges], high=[high for _, high in ranges])
        # A column that no training row has is kept: a month of another era may have it.
        impute = SimpleImputer(strategy="median", keep_empty_features=True)
        parts = [
            ("hours", Pipeline([("hour", hours), ("encode", of_day)]), names["hour"]),
            ("numbers", Pipeline([("clip", clip), ("impute", impute), ("scale", StandardScaler())]), names["number"]),
        ]
    categories = Pipeline([*before, ("encode", encoder)]) if before else encoder
    parts = [("categories", categories, names["category"]), *parts]
    # Otherwise the share of zeros in the data decides whether sparse columns stay sparse.
    return ColumnTransformer([part for part in parts if part[2]], sparse_threshold=1.0)


def list_levels(values: "pd.Series[Any]", listed: Sequence[str] | None) -> np.ndarray[Any, Any]:
    """Return the categories of a column, in order. A missing value is none of them, so it counts as an unseen one."""
    if pd.api.types.is_numeric_dtype(values):
        return np.array(sorted(values.dropna().unique().tolist()) or [np.inf])  # an encoder needs one at least
    return np.array(listed or sorted(values.dropna().unique().tolist()) or [NO_VALUE], object)


def fit_pipeline(pipeline: Pipeline, frame: pd.DataFrame, labels: Labels, *, must_converge: bool = True) -> Pipeline:
    """Fit a pipeline in place on a frame of training rows, with one BLAS thread: equal rows give equal bytes."""
    report = ReportedCode("The fit", f"{WHERE}, on {len(labels):,} rows", "Correct train.params or the sample.")
    with report, threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted: Pipeline = pipeline.fit(frame, labels)
    if must_converge and any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        limit = getattr(pipeline[-1], "max_iter", "its default")
        what = f"The fit on {len(labels):,} rows did not converge within max_iter={limit}."
        raise TiplineError(what, f"{WHERE}.params", "Raise max_iter or lower C.")
    return fitted


def load_functions(path: Path) -> dict[str, Any]:
    """Import the user's code file as a model carries it; return the functions and classes that it defines."""
    with ReportedCode(path.name, "params.yaml, model.code", TODO):
        module = pyfunc.install_code(path.name, path.read_bytes())
    return {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}


def create_classifier(train: Train, functions: Mapping[str, Any]) -> Any:  # noqa: ANN401 (of any package)
    """Create the estimator that `train` names, with its parameters and the seed; `functions` are the user's."""
    factory = ESTIMATORS.get(train.estimator) or functions.get(train.estimator) or import_class(train.estimator)
    params = {**DEFAULTS.get(train.estimator, {}), **train.params}
    signature = inspect.signature(factory)
    try:
        signature.bind(**params)
    except TypeError as error:
        todo = f"It has: {', '.join(sorted(signature.parameters))}."
        raise UsageError(f"{train.estimator} cannot be called: {error}.", f"{WHERE}.params", todo) from error
    with ReportedCode(train.estimator, f"{WHERE}.estimator", TODO):
        classifier = factory(**params)
    # On the class, because a stack has it only once it is fitted.
    if not hasattr(type(classifier), "predict_proba") or not hasattr(classifier, "get_params"):
        what = f"{train.estimator} returned {shorten_text(repr(classifier))}, which is not a scikit-learn classifier."
        raise UsageError(what, f"{WHERE}.estimator", "Return one that has predict_proba.")
    return classifier.set_params(**list_defaults(classifier, train.seed))


def list_defaults(classifier: Any, seed: int) -> dict[str, Any]:  # noqa: ANN401 (a classifier of any package)
    """Return the seed and one thread for all parts of an estimator that leave them open.

    Boosting libraries would start a thread per core in each process, LightGBM and CatBoost also print a page per fit.
    """
    params: dict[str, Any] = classifier.get_params()
    defaults: dict[str, Any] = {}
    if type(classifier).__module__.startswith("catboost."):  # lists only the parameters that it was given
        quiet = {"random_state": seed, "thread_count": 1, "verbose": False, "allow_writing_files": False}
        return {name: value for name, value in quiet.items() if name not in params}
    for name in [name for name, value in params.items() if value is None]:
        part, separator, parameter = name.rpartition("__")
        package = type(params.get(part, classifier)).__module__.partition(".")[0]
        if parameter == "random_state":
            defaults[name] = seed
        elif parameter == "n_jobs" and package in {"lightgbm", "xgboost"}:
            defaults[name] = 1
            verbose = f"{part}{separator}verbose"
            defaults |= {verbose: -1} if package == "lightgbm" and verbose not in params else {}
    return defaults


def import_class(name: str) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    found = None
    with ReportedCode(name, f"{WHERE}.estimator", TODO), contextlib.suppress(ModuleNotFoundError):
        found = getattr(importlib.import_module(module), attribute, None) if module else None
    if not callable(found):
        raise UsageError(f"There is no estimator {name!r}.", f"{WHERE}.estimator", f"Use {ESTIMATOR_FORMS}.")
    return found  # type: ignore[no-any-return]
