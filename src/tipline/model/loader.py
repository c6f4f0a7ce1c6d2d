"""Decide whether a registered model may be loaded by inspecting its files. Nothing here runs them.

A model that tipline made has to equal what was registered, file by file, and to be built as tipline builds models. An
external model may use MLflow loaders that read data or plain code, never a pickle.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import shutil
import zipfile
import zlib
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

import yaml

from tipline.errors import TiplineError, UsageError, shorten_text
from tipline.files import hash_bytes, hash_json
from tipline.model import pyfunc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# The tag of runs and versions that holds the digest of all logged files.
FILES = "tipline.files"
MODEL = "MLmodel"
# MLflow writes this file, with the name and number of a version, into what it downloads and into its own store.
MLFLOW_NOTE = "registered_model_meta"
COMPILED = "__pycache__"
FLAVOR = "python_function"
FROM_CODE = "mlflow.pyfunc.loaders.code_model"
CODE = "pyfunc.py"
TRAINING = "training.json"
OWN_ARTIFACTS = {name: f"artifacts/{name}" for name in (pyfunc.ESTIMATOR, pyfunc.SPEC, TRAINING)}
OWN_FILES = {
    *(MODEL, CODE, *OWN_ARTIFACTS.values(), "conda.yaml", "python_env.yaml", "requirements.txt"),
    *("input_example.json", "serving_input_example.json"),
}
OWN_SETTINGS = {"artifacts", "cloudpickle_version", "code", "env", "loader_module", "model_code_path", "python_version"}
# MLflow loaders that may run, each with the flavor, the setting and the value that keep it from loading a pickle.
LOADERS = {
    FROM_CODE: (FLAVOR, "model_code_path", r".+\.py"),
    "mlflow.sklearn": ("sklearn", "serialization_format", "skops"),
    "mlflow.xgboost": ("xgboost", "model_class", r"xgboost\.(core|sklearn)\.\w+"),
    "mlflow.lightgbm": ("lightgbm", "model_class", r"lightgbm\.basic\.Booster"),
    "mlflow.catboost": ("catboost", "save_format", "cbm|json|onnx"),
    "mlflow.onnx": ("onnx", "data", r"[\w.-]+"),
}
ENDINGS = re.compile(r"\.(pkl|pickle|cloudpickle|joblib|dill|pt|pth|pyc|pyo)(\.\w+)?$", re.IGNORECASE)
# A pickle without any of these opcodes is plain data.
CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1", "EXT2", "EXT4"}
PICKLE = re.compile(rb"\x80[\x02-\x05]")
ARCHIVE = b"PK\x03\x04"
SCHEMA = "schema.json"
# Errors that a malicious file may cause in the code that reads it.
DAMAGE = (
    *(AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
# An archive may unpack to this many bytes, or to this many times its own size.
UNPACKED_BYTES, UNPACKED_TIMES = 1 << 26, 20
TODO = "Promote another version; if you know who made this one, tell them."


def refuse_model(reason: str, where: str) -> TiplineError:
    """Return the error for a model that must not be loaded."""
    return TiplineError(f"This model is refused and was not loaded: {reason}.", where, TODO)


def remove_leftovers(root: Path) -> None:
    """Remove what MLflow and Python write beside a model's files, in the store, too.

    MLflow's note holds the version number, which differs between registries. Python would run compiled code instead of
    the file that was checked.
    """
    (root / MLFLOW_NOTE).unlink(missing_ok=True)
    for folder in sorted(root.rglob(COMPILED)):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


def read_files(root: Path, where: str) -> dict[str, bytes]:
    """Return all files below a folder, by relative path.

    Raises
    ------
    TiplineError
        One is a symbolic link, whose target may lie outside the model.
    """
    paths = sorted(root.rglob("*"))
    links = [path for path in paths if path.is_symlink()]
    if links:
        raise refuse_model(f"{shorten_text(links[0].relative_to(root))} is a link", where)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def hash_files(logged: Mapping[str, bytes]) -> str:
    """Return the digest of the names and contents of all files of a logged model."""
    return hash_json({name: hash_bytes(data) for name, data in logged.items()})


def check_registered(logged: Mapping[str, bytes], expected: str | None, where: str) -> None:
    """Compare the files of a version with the digest in its tag.

    Raises
    ------
    TiplineError
        They differ. A version that was registered without tipline has no such tag and is inspected instead.
    """
    if expected is not None and hash_files(logged) != expected:
        what = "The files of this version are not those that were registered. They were not loaded."
        raise TiplineError(what, where, TODO)


def check_own_model(logged: Mapping[str, bytes], where: str) -> None:
    """Inspect a model that tipline made, as MLflow logged it.

    Raises
    ------
    TiplineError
        It is not built as tipline builds models, or its estimator must not be loaded.
    """
    raise_first(find_own_objections(logged, read_flavors(logged, where)), where)
    check_estimator({name: logged[path] for name, path in OWN_ARTIFACTS.items()}, where)


def check_external_model(logged: Mapping[str, bytes], where: str) -> None:
    """Inspect an external model, as MLflow logged it.

    Raises
    ------
    TiplineError
        Loading it could run anything but MLflow's own loaders or readable code.
    """
    raise_first(find_external_objections(logged, read_flavors(logged, where)), where)


def check_estimator(own: Mapping[str, bytes], where: str) -> None:
    """Inspect the estimator among the files of a model that tipline made.

    Raises
    ------
    TiplineError
        It has types that tipline does not load, or scoring needs it and it was made with another scikit-learn.
    """
    raise_first(find_estimator_objections(own), where)


def find_estimator_objections(own: Mapping[str, bytes]) -> Iterator[str]:
    """Yield what forbids loading an estimator.

    A linear model is scored from model.json with any scikit-learn; its golden rows show that this is right.
    """
    dump = own[pyfunc.ESTIMATOR]
    reason = explain_unloadable(dump) or (None if is_linear(own) else find_other_sklearn(dump))
    if reason:
        yield f"{pyfunc.ESTIMATOR} {reason}"


def is_linear(own: Mapping[str, bytes]) -> bool:
    """Whether a model is scored from model.json alone."""
    return json.loads(own[pyfunc.SPEC]).get("linear") is not None


def raise_first(reasons: Iterator[str], where: str) -> None:
    """Refuse a model for the first of the reasons, if there is one."""
    try:
        reason = next(reasons, None)
    except DAMAGE as error:
        reason = f"its files are not as MLflow writes them ({type(error).__name__})"
    if reason:
        raise refuse_model(reason, where)


def find_own_objections(logged: Mapping[str, bytes], found: Mapping[str, Any]) -> Iterator[str]:
    """Yield how a model differs from what tipline builds."""
    yield from find_objections(logged, found)
    extra, missing = sorted(set(logged) - OWN_FILES), sorted({CODE, *OWN_ARTIFACTS.values()} - set(logged))
    if extra or missing:
        yield (f"it has no {missing[0]}" if missing else f"tipline's models have no file {shorten_text(extra[0])}")
    settings = found[FLAVOR]
    if set(found) != {FLAVOR} or settings["loader_module"] != FROM_CODE:
        yield f"MLmodel names a loader that tipline's models do not use: {format_flavors(found)}"
    if get_file_name(settings["model_code_path"]) != CODE:
        yield f"MLmodel names code other than {CODE}: {shorten_text(settings['model_code_path'])}"
    if {name: entry["path"] for name, entry in settings["artifacts"].items()} != OWN_ARTIFACTS:
        yield "MLmodel names artifacts that tipline's models do not have"
    others = sorted(str(key) for key, value in settings.items() if key not in OWN_SETTINGS and value)
    if others:
        yield f"MLmodel has a setting that tipline's models do not have: {shorten_text(others[0])}"


def read_flavors(logged: Mapping[str, bytes], where: str) -> dict[str, dict[str, Any]]:
    """Return the flavors in MLmodel with their settings.

    Raises
    ------
    UsageError
        There is no MLmodel.
    TiplineError
        It has no flavor python_function.
    """
    if MODEL not in logged:
        raise UsageError(
            "The files of this version are not an MLflow model.", where, "Use a version that MLflow logged."
        )
    try:
        found = yaml.safe_load(logged[MODEL])["flavors"]
        if isinstance(found[FLAVOR], dict) and all(isinstance(settings, dict) for settings in found.values()):
            return dict(found)
    except (yaml.YAMLError, *DAMAGE):
        pass
    raise refuse_model("MLmodel does not say how it is loaded as python_function", where)


def find_objections(logged: Mapping[str, bytes], found: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Yield what forbids loading a model with MLflow: its settings in MLmodel, and files that could run code unseen."""
    loader = found[FLAVOR].get("loader_module")
    if loader not in LOADERS:
        yield f"MLmodel names the loader {shorten_text(loader)}, which is not one of {', '.join(LOADERS)}"
        return
    if any(settings.get("code") for settings in found.values()):
        yield "it has modules of its own (code_paths), which would replace installed modules of the same name"
    flavor, setting, safe = LOADERS[loader]
    value = found.get(flavor, {}).get(setting)
    if not re.fullmatch(safe, str(value)):
        yield f"MLmodel says {setting}: {shorten_text(value)} for {flavor}, which lets {loader} load a pickle"
    opened, beside = [*list_artifacts(found), *list_opened_files(found)], list_opened_files(found)
    outside = [path for path in opened if not is_within(path, logged) or (path in beside and "/" in path)]
    if outside:
        yield f"MLmodel names {shorten_text(outside[0])}, which is not where MLflow puts files of a model"
    if [name for name in logged if get_file_name(name) == MODEL] != [MODEL]:
        yield "it contains a second model"
    for name, data in logged.items():
        if ENDINGS.search(name) or is_pickle(data):
            yield f"{shorten_text(name)} is a pickle or compiled code, which could run anything"


def find_external_objections(logged: Mapping[str, bytes], found: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the same for an external model, and look into archives (skops files, pickles as torch writes them)."""
    yield from find_objections(logged, found)
    for name, data in logged.items():
        if zipfile.is_zipfile(io.BytesIO(data)):
            is_skops = SCHEMA in list_entries(data)
            reason = explain_unloadable(data) or find_other_sklearn(data) if is_skops else explain_pickled_entry(data)
            if reason:
                yield f"{shorten_text(name)} {reason}"


def list_opened_files(found: Mapping[str, dict[str, Any]]) -> list[str]:
    """List the files that MLflow's loaders open; in a subfolder they would read a second MLmodel there."""
    keys = ("data", "model_path", "pickled_model")
    named_so = [str(settings[key]) for settings in found.values() for key in keys if settings.get(key)]
    code = found[FLAVOR].get("model_code_path")
    return [*named_so, get_file_name(code)] if code else named_so


def list_artifacts(found: Mapping[str, dict[str, Any]]) -> list[str]:
    """List the files and folders that a model logged from code receives."""
    return [str(entry.get("path")) for entry in (found[FLAVOR].get("artifacts") or {}).values()]


def is_within(path: str, logged: Mapping[str, bytes]) -> bool:
    """Whether a path names a file or folder of the model."""
    return any(name == path or name.startswith(f"{path}/") for name in logged)


def get_file_name(path: object) -> str:
    """Return the last part of a path."""
    return str(path).rpartition("/")[2]


def format_flavors(found: Mapping[str, dict[str, Any]]) -> str:
    """Format loader and flavors for a message."""
    return shorten_text(f"{found[FLAVOR].get('loader_module')} ({', '.join(str(flavor) for flavor in found)})")


def list_entries(data: bytes) -> dict[str, int]:
    """Return the entries of an archive with their unpacked sizes in bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def explain_pickled_entry(data: bytes) -> str | None:
    """Say that an archive contains a pickle, or return None."""
    return "contains a pickle, which could run anything" if any(map(ENDINGS.search, list_entries(data))) else None


def is_pickle(data: bytes) -> bool:
    """Whether bytes are a pickle that calls something; its opcodes are read and not executed."""
    if data.startswith(ARCHIVE):  # may look like opcodes by chance; entries are inspected by name
        return False
    if PICKLE.match(data):
        return True
    calls = False
    try:
        for instruction, _, _ in pickletools.genops(data):
            calls = calls or instruction.name in CALLS
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError):
        return False
    return calls


def explain_unloadable(dump: bytes) -> str | None:
    """Say why a skops file must not be loaded, by tipline's own list of types, or return None."""
    import skops.io  # noqa: PLC0415 (imports all of scikit-learn and scipy, which takes seconds)

    try:
        if sum(list_entries(dump).values()) > max(UNPACKED_BYTES, UNPACKED_TIMES * len(dump)):
            return "unpacks to far more than its size"
        untrusted = sorted(set(skops.io.get_untrusted_types(data=dump)) - set(pyfunc.TRUSTED))
    except DAMAGE as error:
        return f"is not a readable skops file ({type(error).__name__})"
    return f"has types that tipline does not load: {shorten_text(', '.join(untrusted))}" if untrusted else None


def find_other_sklearn(dump: bytes) -> str | None:
    """Say that a skops file was made with another scikit-learn, or return None."""
    here = truncate_version(installed("scikit-learn"))
    with zipfile.ZipFile(io.BytesIO(dump)) as archive:
        schema = archive.read(SCHEMA).decode(errors="replace")
    # Each scikit-learn estimator stores the version, as JSON within JSON.
    found = {
        truncate_version(text)
        for text in re.findall(r'"_sklearn_version":\s*\{[^{}]*?"content":\s*"\\"([^"\\]*)', schema)
    }
    others = sorted(found - {here})
    return f"was made with scikit-learn {shorten_text(others[0])}, this is {here}" if others else None


def truncate_version(version: str) -> str:
    """Return major and minor version; scikit-learn's estimators keep their form within a minor version."""
    return ".".join(version.split(".")[:2])
