"""The model as files: their names, the digest that identifies the model, and how it is loaded.

Separate from `pipeline`, because most of tipline needs no more than this and scikit-learn takes a second to import.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tipline.errors import TiplineError
from tipline.model import external, loader, pyfunc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tipline.config import Settings

    Model = pyfunc.Model | external.ExternalModel

# The format of model.json. Models of tipline 0.1 have none.
FORMAT = 3
CODE = loader.CODE
# The files that make up the model: estimator, features and baseline, and the code that computes the features.
FILES = (pyfunc.ESTIMATOR, pyfunc.SPEC, CODE)
# Facts about the training, kept beside the model; not part of its digest.
TRAINING = loader.TRAINING


def read_artifact(folder: Path) -> dict[str, bytes]:
    """Return the model's files by name; for an external model, everything that MLflow logged.

    Raises TiplineError if one is missing.
    """
    logged = sorted(path for path in (folder / external.FOLDER).rglob("*") if path.is_file())
    names = [*(path.relative_to(folder).as_posix() for path in logged), pyfunc.SPEC] if logged else FILES
    try:
        return {name: (folder / name).read_bytes() for name in names}
    except FileNotFoundError as error:
        raise TiplineError("A file of the model is missing.", str(error.filename), "Run: dvc repro") from error


def hash_artifact(files: Mapping[str, bytes]) -> str:
    """Return the digest that identifies a model; model.json is not part of an external model's digest."""
    names = [name for name in files if name != pyfunc.SPEC] if external.is_external(files) else FILES
    return loader.hash_files({name: files[name] for name in names})


def read_digest(folder: Path) -> str:
    """Return the digest of the model in a folder. Raises TiplineError if a file is missing."""
    return hash_artifact(read_artifact(folder))


def try_read_digest(folder: Path) -> str | None:
    """Return the digest of the model in a folder, or None if a file is missing."""
    try:
        return read_digest(folder)
    except TiplineError:
        return None


def check_digest(files: Mapping[str, bytes], expected: str) -> None:
    """Raise TiplineError if the model's files do not have the digest that was registered."""
    if hash_artifact(files) != expected:
        what = "The model's files are not those that were registered: their digest differs."
        raise TiplineError(what, f"digest {expected[:12]}", "Run: dvc repro register")


def load_model(files: Mapping[str, bytes], expected: str) -> Model:
    """Load a model, with the code that it carries.

    Raises TiplineError if the files do not have the digest `expected` or may not be loaded; nothing of them has run.
    """
    check_digest(files, expected)
    if external.is_external(files):
        return external.ExternalModel(files)
    where, spec = f"digest {expected[:12]}", json.loads(files[pyfunc.SPEC])
    if (found := spec.get("format")) != FORMAT:
        maker = "tipline 0.1" if found is None else f"a tipline whose model format is {found}"
        what = f"This model was made by {maker}; this tipline reads format {FORMAT}."
        todo = "Train it again with this tipline (dvc repro train register), then promote the new version."
        raise TiplineError(what, where, todo)
    if not spec.get("linear"):
        loader.check_skops(pyfunc.ESTIMATOR, files[pyfunc.ESTIMATOR], where)
    module = ModuleType(f"tipline_model_{expected[:12]}")
    sys.modules[module.__name__] = module  # dataclasses look their module up by name
    exec(compile(files[CODE], f"{expected[:12]}/{CODE}", "exec"), module.__dict__)  # noqa: S102 (digest checked above)
    loaded: pyfunc.Model = module.Model(files)
    return loaded


def format_title(settings: Settings, rows: int) -> str:
    """Name a model: rows x columns, parameters, estimator. MLflow's lists show the first 20 characters."""
    params = [f"{name}={value}" for name, value in settings.train.params.items()]
    calibration = [settings.train.calibration] if settings.train.calibration else []
    return " ".join([f"{rows:,}x{len(settings.model.columns)}", *params, settings.train.estimator, *calibration])


def describe_settings(settings: Settings) -> dict[str, Any]:
    """Return the parameters that MLflow shows: estimator, its parameters, columns."""
    params = {f"estimator.{name}": value for name, value in settings.train.params.items()}
    return {"estimator": settings.train.estimator, **params, "columns": ", ".join(settings.model.columns)}
