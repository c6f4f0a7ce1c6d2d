"""Decide whether a registered model may be loaded by inspecting its files. Nothing here runs them.

A model that tipline made has to equal what was registered, and tipline itself loads its code and its estimator. MLflow
loads an external model, with a loader that reads data or plain code, from files of formats that hold no pickle.
"""

import io
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import yaml

from tipline.errors import TiplineError, UsageError, shorten_text
from tipline.files import hash_bytes, hash_json
from tipline.model import pyfunc

FILES = "tipline.files"  # the tag of runs and versions that holds the digest of all logged files
MODEL = "MLmodel"
MLFLOW_NOTE = "registered_model_meta"
COMPILED = "__pycache__"
FLAVOR = "python_function"
WRAPPER = "pyfunc.py"
TRAINING = "training.json"
ARTIFACTS = "artifacts/"
CODE = re.compile(rf"{ARTIFACTS}([^/]+\.py)")
NEEDED = {WRAPPER, *(f"{ARTIFACTS}{name}" for name in (pyfunc.ESTIMATOR, pyfunc.SPEC, TRAINING))}
OWN_FILES = {MODEL, *NEEDED, "conda.yaml", "python_env.yaml", "requirements.txt"}
OWN_FILES |= {"input_example.json", "serving_input_example.json"}
# MLflow loaders that may run, each with the flavor, the setting and the value that keep it from loading a pickle.
LOADERS = {
    "mlflow.pyfunc.loaders.code_model": (FLAVOR, "model_code_path", r".+\.py"),
    "mlflow.sklearn": ("sklearn", "serialization_format", "skops"),
    "mlflow.xgboost": ("xgboost", "model_class", r"xgboost\.(core|sklearn)\.\w+"),
    "mlflow.lightgbm": ("lightgbm", "model_class", r"lightgbm\.basic\.Booster"),
    "mlflow.catboost": ("catboost", "save_format", "cbm|json|onnx"),
    "mlflow.onnx": ("onnx", "data", r"[\w.-]+"),
}
# Files of a model: what MLflow writes beside it, plain code, and data that no reader takes for a pickle.
NAMES = {MODEL, ".python-version"}
ENDINGS = {
    *(".py", ".txt", ".md", ".json", ".yaml", ".yml", ".toml", ".lock", ".csv", ".parquet"),
    *(".skops", ".ubj", ".xgb", ".lgb", ".cb", ".cbm", ".onnx", ".safetensors"),
}
PICKLE = re.compile(rb"\x80[\x02-\x05]")
# Each scikit-learn estimator stores its version, as JSON within JSON.
SKLEARN_VERSION = re.compile(r'"_sklearn_version":\s*\{[^{}]*?"content":\s*"\\"(\d+\.\d+)')
# Errors that a malicious file may cause in the code that reads it.
DAMAGE = (
    *(AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(yaml.YAMLError, zipfile.BadZipFile, zlib.error),
)
# An archive may unpack to this many bytes, or to this many times its own size.
UNPACKED_BYTES, UNPACKED_TIMES = 1 << 26, 20
TODO = "Promote another version; if you know who made this one, tell them."


def refuse_model(reason: str, where: str) -> TiplineError:
    return TiplineError(f"This model is refused and was not loaded: {reason}.", where, TODO)


def remove_leftovers(root: Path) -> None:
    """Remove MLflow's note, which differs between registries, and compiled code, which Python would run unchecked."""
    (root / MLFLOW_NOTE).unlink(missing_ok=True)
    for folder in sorted(root.rglob(COMPILED)):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


def read_files(root: Path, where: str) -> dict[str, bytes]:
    """Return all files below a folder, by relative path. Refuse a link, whose target may lie outside the model."""
    paths = sorted(root.rglob("*"))
    if link := next((path for path in paths if path.is_symlink()), None):
        raise refuse_model(f"{shorten_text(link.relative_to(root))} is a link", where)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def hash_files(logged: Mapping[str, bytes]) -> str:
    """Return the digest of the names and contents of all files of a logged model."""
    return hash_json({name: hash_bytes(data) for name, data in logged.items()})


def check_own_model(logged: Mapping[str, bytes], where: str) -> None:
    """Refuse a model of tipline's, as MLflow logged it, that could run other code or has other files."""
    code = {found[1]: data for name, data in logged.items() if (found := CODE.fullmatch(name))}
    check_external_model(logged, where, code, logged.get(f"{ARTIFACTS}{pyfunc.SPEC}", b"{}"))
    extra = sorted(name for name in set(logged) - OWN_FILES if not CODE.fullmatch(name))
    missing = sorted(NEEDED - set(logged))
    if extra or missing:
        reason = f"it has no {missing[0]}" if missing else f"tipline's models have no file {shorten_text(extra[0])}"
        raise refuse_model(reason, where)


def check_external_model(
    logged: Mapping[str, bytes], where: str, code: Mapping[str, bytes] | None = None, spec: bytes = b"{}"
) -> None:
    """Refuse a model whose loading could run anything but MLflow's own loaders, readable code and trusted types."""
    if MODEL not in logged:
        what = "The files of this version are not an MLflow model."
        raise UsageError(what, where, "Use a version that MLflow logged.")
    try:
        reason = find_objection(logged)
    except DAMAGE as error:
        reason = f"MLmodel does not say how it is loaded as {FLAVOR} ({type(error).__name__})"
    if reason:
        raise refuse_model(reason, where)
    for name, data in logged.items():
        if name.endswith(".skops") or zipfile.is_zipfile(io.BytesIO(data)):
            check_skops(name, data, where, code or {}, spec)


def find_objection(logged: Mapping[str, bytes]) -> str | None:
    """Say why MLflow must not load a model: its settings in MLmodel, or a file that could run code unseen."""
    flavors = yaml.safe_load(logged[MODEL])["flavors"]
    loader = flavors[FLAVOR]["loader_module"]
    if loader not in LOADERS:
        return f"MLmodel names the loader {shorten_text(loader)}, which is not one of {', '.join(LOADERS)}"
    flavor, setting, safe = LOADERS[loader]
    value = str(flavors[flavor].get(setting))
    if not re.fullmatch(safe, value):
        return f"MLmodel says {setting}: {shorten_text(value)} for {flavor}, which lets {loader} load a pickle"
    if any(settings.get("code") for settings in flavors.values()):
        return "it has modules of its own (code_paths), which would replace installed modules of the same name"
    # MLflow's loaders would look for a second MLmodel beside a file in a subfolder, and load a pickle if there is none.
    opened = [settings[key] for settings in flavors.values() for key in ("data", "model_path") if settings.get(key)]
    given = [entry["path"] for entry in (flavors[FLAVOR].get("artifacts") or {}).values()]
    outside = [path for path in opened if path not in logged or "/" in path]
    outside += [path for path in given if not any(f"{name}/".startswith(f"{path}/") for name in logged)]
    if outside:
        return f"MLmodel names {shorten_text(outside[0])}, which is not where MLflow puts files of a model"
    for name, data in logged.items():
        if (name not in NAMES and PurePosixPath(name).suffix not in ENDINGS) or PICKLE.match(data):
            known = ", ".join(sorted(ENDINGS))
            return f"{shorten_text(name)} may be a pickle, compiled code or a second model; files may end in {known}"
    return None


def check_skops(name: str, dump: bytes, where: str, code: Mapping[str, bytes], spec: bytes = b"{}") -> None:
    """Refuse a skops file that has types neither trusted nor of the model's `code`, or is of another scikit-learn.

    A linear model is scored from `spec`, its model.json, with any scikit-learn: its golden rows show that it is right.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(dump)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > max(UNPACKED_BYTES, UNPACKED_TIMES * len(dump)):
                raise refuse_model(f"{shorten_text(name)} unpacks to far more than its size", where)
            schema = archive.read("schema.json").decode()
        versions = set() if json.loads(spec).get("linear") else set(SKLEARN_VERSION.findall(schema))
        untrusted = pyfunc.list_untrusted_types(dump, code)
    except DAMAGE as error:
        what = f"{shorten_text(name)} is not a readable skops file ({type(error).__name__})"
        raise refuse_model(what, where) from error
    packages = {name.partition(".")[0] for name in untrusted} & pyfunc.PACKAGES
    if missing := sorted(package for package in packages if not find_spec(package)):
        what = f"The model needs a package that is not installed: {', '.join(missing)}."
        todo = "Install the requirements.txt that MLflow shows with the model, here and on all workers."
        raise TiplineError(what, where, todo)
    if untrusted:
        types = shorten_text(", ".join(untrusted))
        raise refuse_model(f"{shorten_text(name)} has types that tipline does not load: {types}", where)
    # Estimators keep their form within a minor version.
    here = ".".join(version("scikit-learn").split(".")[:2])
    if others := sorted(versions - {here}):
        raise refuse_model(f"{shorten_text(name)} was made with scikit-learn {others[0]}, this is {here}", where)
