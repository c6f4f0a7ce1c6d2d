"""The model that MLflow loads: a scikit-learn pipeline from a DataFrame of prepared columns to probabilities.

This file is logged with each model and does without tipline. It loads the pipeline from `estimator.skops` after it has
imported the code files of the model, `transformers.py` and the user's, under names that hold their sha256: two versions
of a file can be loaded in one process.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

    import pandas as pd
    from sklearn.pipeline import Pipeline

    Floats = np.ndarray[tuple[int], np.dtype[np.float64]]

ESTIMATOR = "estimator.skops"
SPEC = "model.json"
OUTPUT = "probability"
# Packages whose classes a skops file may name. Functions are listed one by one, because one like `pandas.read_pickle`
# runs code.
PACKAGES = {"sklearn", "numpy", "scipy", "pandas", "lightgbm", "xgboost", "catboost"}
FUNCTIONS = {
    "collections.OrderedDict",
    "functools.partial",  # its function has to be trusted, too
    "scipy._lib.array_api_compat.numpy._aliases.asarray",
    "sklearn.utils.validation.check_array",
}
EDGE = 2.0**-53  # how far a probability is kept from 0 and 1, so that its log-odds are finite
# The pandas type of a column, by its type in the schema. A number may be missing, so none is an integer.
DTYPES = {"category": "str", "timestamp": "datetime64[us]"}


def name_module(name: str, data: bytes) -> str:
    """Return the name that a code file is imported under."""
    return f"{Path(name).stem}_{hashlib.sha256(data).hexdigest()[:12]}"


def get_code_folder() -> Path:
    """Return the folder that code files of models are imported from; all processes of this user share it."""
    folder = Path(tempfile.gettempdir(), f"tipline-code-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        problem = "Somebody else could change the code in this folder; remove it"
        raise PermissionError(errno.EACCES, problem, str(folder))
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # processes that this one spawns get the path, too
    return folder


def install_code(name: str, data: bytes) -> ModuleType:
    """Import a code file of a model as a module that other processes started from here can import, too."""
    module = name_module(name, data)
    if module not in sys.modules:
        path = get_code_folder() / f"{module}.py"
        if not path.is_file() or path.read_bytes() != data:
            scratch = path.with_suffix(f".{os.getpid()}")
            scratch.write_bytes(data)
            scratch.replace(path)
        importlib.invalidate_caches()
    return importlib.import_module(module)


def list_code(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in sorted(files.items()) if name.endswith(".py")}


def is_trusted(name: str, modules: Iterable[str] = ()) -> bool:
    """Whether a type in a skops file may be loaded: of the model's code, a class of a package, a listed function."""
    module, _, attribute = name.rpartition(".")
    if name in FUNCTIONS or module in modules:
        return True
    if name.partition(".")[0] not in PACKAGES:
        return False
    try:
        return isinstance(getattr(importlib.import_module(module), attribute, None), type)
    except ImportError:
        return False


def list_untrusted_types(dump: bytes, code: Mapping[str, bytes]) -> list[str]:
    """Return the types in a skops file that may not be loaded in a model with these code files."""
    import skops.io  # noqa: PLC0415 (imports all of scikit-learn and scipy, which takes seconds)

    modules = [name_module(name, data) for name, data in code.items()]
    return sorted(name for name in skops.io.get_untrusted_types(data=dump) if not is_trusted(name, modules))


def load_estimator(files: Mapping[str, bytes]) -> Pipeline:
    """Import the code files of a model, then load its pipeline; skops refuses what is not trusted."""
    import skops.io  # noqa: PLC0415 (see above)

    modules = [install_code(name, data).__name__ for name, data in list_code(files).items()]
    types = skops.io.get_untrusted_types(data=files[ESTIMATOR])
    return skops.io.loads(files[ESTIMATOR], trusted=[name for name in types if is_trusted(name, modules)])


def normalize_frame(frame: pd.DataFrame, inputs: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Return the model's columns in its types: numbers as doubles, timestamps in microseconds, categories as text."""
    return frame[[column["name"] for column in inputs]].astype(
        {column["name"]: DTYPES.get(column["type"], "float64") for column in inputs}
    )


def predict_rows(estimator: Pipeline, spec: Mapping[str, Any], frame: pd.DataFrame) -> Floats:
    """Return the calibrated probability of each row of a frame that has the model's columns."""
    scores = estimator.predict_proba(normalize_frame(frame, spec["inputs"]))[:, 1]
    return apply_calibration(np.asarray(scores, np.float64), spec["calibration"])


def log_odds(probabilities: Floats) -> Floats:
    """Compute log(p / (1 - p)), finite for probabilities of 0 and 1, too."""
    inside: Floats = np.clip(probabilities, EDGE, 1 - EDGE)
    odds: Floats = np.log(inside / (1 - inside))
    return odds


def apply_logistic(odds: Floats) -> Floats:
    """Compute 1 / (1 + exp(-odds)) in place."""
    np.negative(odds, out=odds)
    with np.errstate(over="ignore"):
        np.exp(odds, out=odds)
    odds += 1
    return np.reciprocal(odds, out=odds)


def apply_calibration(probabilities: Floats, calibration: Mapping[str, Any] | None) -> Floats:
    """Correct probabilities by the calibration in model.json, which keeps the order of rows."""
    if calibration is None:
        return probabilities
    if calibration["method"] == "sigmoid":
        return apply_logistic(calibration["slope"] * log_odds(probabilities) + calibration["intercept"])
    result: Floats = np.interp(probabilities, calibration["x"], calibration["y"])
    return result


# MLflow runs this file to load the model. A dask worker does not use MLflow and does not wait 3 s for its import.
if "mlflow" in sys.modules:
    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel, PythonModelContext

    class LoggedModel(PythonModel):  # type: ignore[misc]
        def load_context(self, context: PythonModelContext) -> None:
            files = {name: Path(path).read_bytes() for name, path in context.artifacts.items()}
            self.spec, self.estimator = json.loads(files[SPEC]), load_estimator(files)

        def predict(
            self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
        ) -> pd.DataFrame:
            """Return a frame with the column `probability` for a frame of prepared rows."""
            del context, params
            scores = predict_rows(self.estimator, self.spec, model_input).astype(np.float32)
            return pd.DataFrame({OUTPUT: scores}, index=model_input.index)

    set_model(LoggedModel())
