"""What of a registered model may run: its files are looked at before anything of it does, and nothing here runs them.

A model that was made here has to be what was registered, file by file, and built as tipline builds models. One that was
not may use MLflow's loaders that read data or code in the open, never a pickle.
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

# The tag of runs and versions with the digest of all files, as they were logged.
FILES = "tipline.files"
MODEL = "MLmodel"
# MLflow's own, of the name and number that a version was fetched by; written into what is fetched, also in the store.
NOTE = "registered_model_meta"
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
# MLflow's loaders that may run, each with the setting, of which flavor, that keeps it from loading a pickle.
LOADERS = {
    FROM_CODE: (FLAVOR, "model_code_path", r".+\.py"),
    "mlflow.sklearn": ("sklearn", "serialization_format", "skops"),
    "mlflow.xgboost": ("xgboost", "model_class", r"xgboost\.(core|sklearn)\.\w+"),
    "mlflow.lightgbm": ("lightgbm", "model_class", r"lightgbm\.basic\.Booster"),
    "mlflow.catboost": ("catboost", "save_format", "cbm|json|onnx"),
    "mlflow.onnx": ("onnx", "data", r"[\w.-]+"),
}
ENDINGS = re.compile(r"\.(pkl|pickle|cloudpickle|joblib|dill|pt|pth|pyc|pyo)(\.\w+)?$", re.IGNORECASE)
# Without one of these a pickle is data.
CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1", "EXT2", "EXT4"}
PICKLE = re.compile(rb"\x80[\x02-\x05]")
ARCHIVE = b"PK\x03\x04"
SCHEMA = "schema.json"
# What a file that is made to mislead may bring about in what reads it.
DAMAGE = (
    *(AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
# What an archive may unpack to, whatever its size, and in sizes of its own.
UNPACKED_BYTES, UNPACKED_TIMES = 1 << 26, 20
TODO = "Promote another version; if you know who made this one, tell them."


def refuse_model(reason: str, where: str) -> TiplineError:
    """The error for a model of which nothing may run."""
    return TiplineError(f"This model is refused, and nothing of it has run: {reason}.", where, TODO)


def remove_leftovers(root: Path) -> None:
    """Take out of a copy of a model's files what MLflow and Python leave beside them, also in the store.

    The note is of the version's number: the same model has another one elsewhere. Compiled code would be run in
    place of the file that it stands for, whatever is in it.
    """
    (root / NOTE).unlink(missing_ok=True)
    for folder in sorted(root.rglob(COMPILED)):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


def read_files(root: Path, where: str) -> dict[str, bytes]:
    """The bytes of all files below a folder that is tidy, by path.

    Raises
    ------
    TiplineError
        Where one is a link: what it names need not be the model's.
    """
    paths = sorted(root.rglob("*"))
    links = [path for path in paths if path.is_symlink()]
    if links:
        raise refuse_model(f"{shorten_text(links[0].relative_to(root))} is a link", where)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def hash_files(logged: Mapping[str, bytes]) -> str:
    """The digest of all files of a logged model and of their names."""
    return hash_json({name: hash_bytes(data) for name, data in logged.items()})


def check_registered(logged: Mapping[str, bytes], expected: str | None, where: str) -> None:
    """Hold the files of a version against the tag that it was registered with.

    Raises
    ------
    TiplineError
        Where they differ. Versions of an earlier tipline have no such tag: only their digest tells then.
    """
    if expected is not None and hash_files(logged) != expected:
        what = "The registry's files of this version are not those that were registered. Nothing of them has run."
        raise TiplineError(what, where, TODO)


def check_own_model(logged: Mapping[str, bytes], where: str) -> None:
    """Look at a model that was made here, as MLflow logged it.

    Raises
    ------
    TiplineError
        Where it is not built as tipline builds models, or its estimator is not to be loaded.
    """
    raise_first(own_objections(logged, flavors(logged, where)), where)
    check_estimator({name: logged[path] for name, path in OWN_ARTIFACTS.items()}, where)


def check_external_model(logged: Mapping[str, bytes], where: str) -> None:
    """Look at a model that tipline did not make, as MLflow logged it.

    Raises
    ------
    TiplineError
        Where it could run anything but MLflow's loaders on data, or code that everybody can read.
    """
    raise_first(foreign_objections(logged, flavors(logged, where)), where)


def check_estimator(own: Mapping[str, bytes], where: str) -> None:
    """Look at the estimator of a model that was made here, given its model's files.

    Raises
    ------
    TiplineError
        Where the estimator has types that tipline does not load, or is from another scikit-learn and is needed.
    """
    raise_first(estimator_objections(own), where)


def estimator_objections(own: Mapping[str, bytes]) -> Iterator[str]:
    """What in an estimator is not to be loaded.

    A linear model stands in model.json, too, and is scored from there, whatever scikit-learn is here: its canary holds.
    """
    dump = own[pyfunc.ESTIMATOR]
    reason = unloadable(dump) or (None if is_linear(own) else find_other_sklearn(dump))
    if reason:
        yield f"{pyfunc.ESTIMATOR} {reason}"


def is_linear(own: Mapping[str, bytes]) -> bool:
    """Whether a model that was made here is scored without its estimator."""
    return json.loads(own[pyfunc.SPEC]).get("linear") is not None


def raise_first(reasons: Iterator[str], where: str) -> None:
    """Refuse a model for the first of some reasons, if there is one."""
    try:
        reason = next(reasons, None)
    except DAMAGE as error:
        reason = f"its files are not as MLflow writes them ({type(error).__name__})"
    if reason:
        raise refuse_model(reason, where)


def own_objections(logged: Mapping[str, bytes], found: Mapping[str, Any]) -> Iterator[str]:
    """What in a model is not as tipline builds it."""
    yield from objections(logged, found)
    strangers, missing = sorted(set(logged) - OWN_FILES), sorted({CODE, *OWN_ARTIFACTS.values()} - set(logged))
    if strangers or missing:
        yield (
            f"it has no {missing[0]}" if missing else f"{shorten_text(strangers[0])} is no file of a model of tipline's"
        )
    settings = found[FLAVOR]
    if set(found) != {FLAVOR} or settings["loader_module"] != FROM_CODE:
        yield f"MLmodel names another loader than tipline's models have: {named(found)}"
    if name_of(settings["model_code_path"]) != CODE:
        yield f"MLmodel names other code than {CODE}: {shorten_text(settings['model_code_path'])}"
    if {name: entry["path"] for name, entry in settings["artifacts"].items()} != OWN_ARTIFACTS:
        yield "MLmodel names other artifacts than a model of tipline's has"
    others = sorted(str(key) for key, value in settings.items() if key not in OWN_SETTINGS and value)
    if others:
        yield f"MLmodel has a setting that tipline's models have not: {shorten_text(others[0])}"


def flavors(logged: Mapping[str, bytes], where: str) -> dict[str, dict[str, Any]]:
    """The flavors that MLmodel names, with their settings.

    Raises
    ------
    UsageError
        Where there is no MLmodel.
    TiplineError
        Where it says nothing of how the model is loaded.
    """
    if MODEL not in logged:
        raise UsageError("The files of this version are no MLflow model.", where, "Name one that MLflow has logged.")
    try:
        found = yaml.safe_load(logged[MODEL])["flavors"]
        if isinstance(found[FLAVOR], dict) and all(isinstance(settings, dict) for settings in found.values()):
            return dict(found)
    except (yaml.YAMLError, *DAMAGE):
        pass
    raise refuse_model("MLmodel says nothing of how it is loaded as python_function", where)


def objections(logged: Mapping[str, bytes], found: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Why a model is not to be loaded by MLflow: by what MLmodel says, and by files that hide what they would run."""
    loader = found[FLAVOR].get("loader_module")
    if loader not in LOADERS:
        yield f"MLmodel names the loader {shorten_text(loader)}, which is not one of {', '.join(LOADERS)}"
        return
    if any(settings.get("code") for settings in found.values()):
        yield "it brings modules of its own (code_paths), which would stand in for others of the same name"
    flavor, setting, safe = LOADERS[loader]
    value = found.get(flavor, {}).get(setting)
    if not re.fullmatch(safe, str(value)):
        yield f"MLmodel says {setting}: {shorten_text(value)} of {flavor}, by which {loader} may load a pickle"
    opened, beside = [*artifacts(found), *loaded(found)], loaded(found)
    outside = [path for path in opened if not within(path, logged) or (path in beside and "/" in path)]
    if outside:
        yield f"MLmodel names {shorten_text(outside[0])}, which is not where MLflow puts a file of a model"
    if [name for name in logged if name_of(name) == MODEL] != [MODEL]:
        yield "it has another model in it"
    for name, data in logged.items():
        if ENDINGS.search(name) or is_pickle(data):
            yield f"{shorten_text(name)} is a pickle or compiled code, which could run anything"


def foreign_objections(logged: Mapping[str, bytes], found: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """`objections`, and what is in archives: estimators as skops writes them, pickles as torch does."""
    yield from objections(logged, found)
    for name, data in logged.items():
        if zipfile.is_zipfile(io.BytesIO(data)):
            is_skops = SCHEMA in entries(data)
            reason = unloadable(data) or find_other_sklearn(data) if is_skops else pickled_entry(data)
            if reason:
                yield f"{shorten_text(name)} {reason}"


def loaded(found: Mapping[str, dict[str, Any]]) -> list[str]:
    """The files that MLflow's loaders open; they look for another MLmodel beside those that are not beside this one."""
    keys = ("data", "model_path", "pickled_model")
    named_so = [str(settings[key]) for settings in found.values() for key in keys if settings.get(key)]
    code = found[FLAVOR].get("model_code_path")
    return [*named_so, name_of(code)] if code else named_so


def artifacts(found: Mapping[str, dict[str, Any]]) -> list[str]:
    """The files and folders that a model from code is given."""
    return [str(entry.get("path")) for entry in (found[FLAVOR].get("artifacts") or {}).values()]


def within(path: str, logged: Mapping[str, bytes]) -> bool:
    """Whether a path is one of the model's files or folders."""
    return any(name == path or name.startswith(f"{path}/") for name in logged)


def name_of(path: object) -> str:
    """The last part of a path."""
    return str(path).rpartition("/")[2]


def named(found: Mapping[str, dict[str, Any]]) -> str:
    """The flavors and the loader of a model, for a message."""
    return shorten_text(f"{found[FLAVOR].get('loader_module')} ({', '.join(str(flavor) for flavor in found)})")


def entries(data: bytes) -> dict[str, int]:
    """What is in an archive, with the bytes that it unpacks to."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def pickled_entry(data: bytes) -> str | None:
    """Whether an archive has a pickle in it, in words."""
    return "has a pickle in it, which could run anything" if any(map(ENDINGS.search, entries(data))) else None


def is_pickle(data: bytes) -> bool:
    """Whether bytes are a pickle that calls something; it is read instruction by instruction, and none is obeyed."""
    if data.startswith(ARCHIVE):  # some of these happen to read like instructions; what is in them is looked at
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


def unloadable(dump: bytes) -> str | None:
    """Why a skops file is not to be loaded, in words: by a list of types of ours, not the one that MLmodel carries."""
    import skops.io  # noqa: PLC0415 (it looks at all of scikit-learn and scipy, which takes seconds)

    try:
        if sum(entries(dump).values()) > max(UNPACKED_BYTES, UNPACKED_TIMES * len(dump)):
            return "unpacks to far more than it is"
        strangers = sorted(set(skops.io.get_untrusted_types(data=dump)) - set(pyfunc.TRUSTED))
    except DAMAGE as error:
        return f"is no skops file that can be read ({type(error).__name__})"
    return (
        f"has types that tipline does not load from a file: {shorten_text(', '.join(strangers))}" if strangers else None
    )


def find_other_sklearn(dump: bytes) -> str | None:
    """Of which scikit-learn a skops file is, in words, where that is not the one that is here."""
    here = truncate_version(installed("scikit-learn"))
    with zipfile.ZipFile(io.BytesIO(dump)) as archive:
        schema = archive.read(SCHEMA).decode(errors="replace")
    # Each estimator of scikit-learn's keeps it, as json within json.
    found = {
        truncate_version(text)
        for text in re.findall(r'"_sklearn_version":\s*\{[^{}]*?"content":\s*"\\"([^"\\]*)', schema)
    }
    others = sorted(found - {here})
    return f"was made with scikit-learn {shorten_text(others[0])}, here is {here}" if others else None


def truncate_version(version: str) -> str:
    """The first two numbers of a version: within them scikit-learn's estimators keep their form."""
    return ".".join(version.split(".")[:2])
