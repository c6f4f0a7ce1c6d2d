"""A model as files: their names, the digest that names it, and how it is loaded.

Apart from `model`, because most of the pipeline needs no more than this, and scikit-learn takes seconds to import.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tipline.errors import TiplineError
from tipline.files import hash_bytes, hash_json
from tipline.model import external, loader, pyfunc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tipline.config import Settings

    Model = pyfunc.Model | external.ExternalModel

CODE = loader.CODE
# What makes a model: estimator, features and baseline, and the code that computes the features.
FILES = (pyfunc.ESTIMATOR, pyfunc.SPEC, CODE)
# Told of the training, beside the model; not part of its digest.
TRAINING = loader.TRAINING


def read_artifact(folder: Path) -> dict[str, bytes]:
    """The bytes of the model's files, by name; of a model that tipline did not make, all that MLflow logged.

    Raises
    ------
    TiplineError
        Where one is missing.
    """
    logged = sorted(path for path in (folder / external.FOLDER).rglob("*") if path.is_file())
    names = [*(path.relative_to(folder).as_posix() for path in logged), pyfunc.SPEC] if logged else FILES
    try:
        return {name: (folder / name).read_bytes() for name in names}
    except FileNotFoundError as error:
        raise TiplineError("A file of the model is missing.", str(error.filename), "Run: dvc repro") from error


def hash_artifact(files: Mapping[str, bytes]) -> str:
    """The digest that names a model, from the bytes of its files; model.json is part of our own models alone."""
    names = [name for name in files if name != pyfunc.SPEC] if external.is_external(files) else FILES
    return hash_json({name: hash_bytes(files[name]) for name in names})


def read_digest(folder: Path) -> str:
    """The digest of the model in a folder; TiplineError where one of its files is missing."""
    return hash_artifact(read_artifact(folder))


def try_read_digest(folder: Path) -> str | None:
    """The digest of the model in a folder, None where one of its files is missing."""
    try:
        return read_digest(folder)
    except TiplineError:
        return None


def check_digest(files: Mapping[str, bytes], expected: str) -> None:
    """Hold the model's files against the digest that they were registered with.

    Raises
    ------
    TiplineError
        Where they differ.
    """
    if hash_artifact(files) != expected:
        what = "The model's files are not those that were registered: their digest differs."
        raise TiplineError(what, f"digest {expected[:12]}", "Run: dvc repro register")


def load_model(files: Mapping[str, bytes], expected: str) -> Model:
    """The model, run by the code that it carries.

    Raises
    ------
    TiplineError
        Where the files are not those that `expected` is the digest of, or are not to be loaded; nothing of them has run
        then.
    """
    check_digest(files, expected)
    if external.is_external(files):
        return external.ExternalModel(files)
    if not loader.is_linear(files):  # its estimator is loaded, by the list of types in its own code
        loader.check_estimator(files, f"digest {expected[:12]}")
    module = ModuleType(f"tipline_model_{expected[:12]}")
    # dataclasses look their module up by name
    sys.modules[module.__name__] = module
    exec(compile(files[CODE], f"{expected[:12]}/{CODE}", "exec"), module.__dict__)  # noqa: S102 (digest checked above)
    loaded: pyfunc.Model = module.Model(files)
    return loaded


# ---- what a person is told of a model ----


def format_title(settings: Settings, rows: int) -> str:
    """A model's name: rows x columns, then the parameters, then the estimator; MLflow's lists show 20 characters."""
    chosen = [f"{name}={value}" for name, value in settings.train.params.items()]
    calibrated = [settings.train.calibration] if settings.train.calibration else []
    return " ".join([f"{rows:,}x{len(settings.model.columns)}", *chosen, settings.train.estimator, *calibrated])


def describe_settings(settings: Settings) -> dict[str, Any]:
    """What sets models apart, by the names that MLflow shows: estimator, its parameters, columns."""
    chosen = {f"estimator.{name}": value for name, value in settings.train.params.items()}
    return {"estimator": settings.train.estimator, **chosen, "columns": ", ".join(settings.model.columns)}
