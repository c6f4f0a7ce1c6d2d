"""The user's code file, and the estimator that `train` names."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class UserFile:
    """The user's code file, `model.code`, imported as a model carries it."""

    name: str
    data: bytes
    functions: Mapping[str, Any]  # the functions and classes that it defines

    @classmethod
    def load(cls, path: Path) -> UserFile:
        """Import the file; raise UsageError if that fails."""
        data = path.read_bytes()
        with ReportedCode(path.name, "params.yaml, model.code", TODO):
            module = pyfunc.install_code(path.name, data)
        values = vars(module).items()
        own = {name: value for name, value in values if getattr(value, "__module__", "") == module.__name__}
        return cls(path.name, data, own)


def create_classifier(train: Train, code: UserFile) -> Any:  # noqa: ANN401 (whatever the user's function returns)
    """Create the estimator that `train` names, with its parameters and the seed."""
    factory = ESTIMATORS.get(train.estimator) or code.functions.get(train.estimator) or import_class(train.estimator)
    params = {**DEFAULTS.get(train.estimator, {}), **train.params}
    check_parameters(train.estimator, factory, params)
    with ReportedCode(train.estimator, f"{WHERE}.estimator", TODO):
        classifier = factory(**params)
    # On the class, because a stack has it only once it is fitted.
    if not hasattr(type(classifier), "predict_proba") or not hasattr(classifier, "get_params"):
        what = f"{train.estimator} returned {shorten_text(repr(classifier))}, which is not a scikit-learn classifier."
        raise UsageError(what, f"{WHERE}.estimator", "Return one that has predict_proba.")
    return classifier.set_params(**list_defaults(classifier, train.seed))


def list_defaults(classifier: Any, seed: int) -> dict[str, Any]:  # noqa: ANN401 (a classifier of any package)
    """Return the seed and one thread for all parts of an estimator that leave them open.

    Boosting libraries would start a thread per core in each of as many processes; `n_jobs` in `params` allows more.
    LightGBM and CatBoost would also print a page per fit, and CatBoost write files into the working directory.
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
