"""The user's code file, and the estimator that `train` names."""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from tipline.config import ESTIMATOR_FORMS, Train
from tipline.errors import ReportedCode, UsageError, shorten_text
from tipline.model import pyfunc

ESTIMATORS: dict[str, Callable[..., Any]] = {
    "logistic_regression": LogisticRegression,
    "hist_gradient_boosting": HistGradientBoostingClassifier,
}
# lbfgs, scikit-learn's default, stops 7e-5 nats above the minimum on a million trips, more than the gains that the
# learning curve weighs. newton-cholesky gets within 1e-8 in twice the time.
DEFAULTS: dict[str, dict[str, Any]] = {"logistic_regression": {"solver": "newton-cholesky", "max_iter": 1000}}
WHERE = "params.yaml, train"
TODO = "Correct the function or its parameters."


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
