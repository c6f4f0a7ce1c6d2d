"""Save a fitted pipeline with skops, as the same bytes each time, and try out beforehand that this works."""

import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
from sklearn.base import clone
from skops.io.exceptions import UnsupportedTypeException

from tipline.arrays import Labels
from tipline.errors import ReportedCode, UsageError, summarize_exception
from tipline.model import compiled, pyfunc
from tipline.model.pipeline import TODO, WHERE, BuiltPipeline, fit_pipeline

SCORE_IN_CLEAN_PROCESS = """
import runpy, sys
from pathlib import Path
import numpy, pandas
folder = Path(sys.argv[2])
load = runpy.run_path(sys.argv[1])["load_estimator"]
files = {path.name: path.read_bytes() for path in folder.iterdir()}
scores = load(files).predict_proba(pandas.read_parquet(folder / "rows.parquet"))[:, 1]
numpy.save(folder / "scores.npy", scores)
"""
TRIAL_ROWS, MIN_TRIAL_ROWS = 500, 50  # of a trial, and of each label in it


def dump_estimator(built: BuiltPipeline) -> bytes:
    """Return a fitted pipeline as skops bytes; raise UsageError if it has types that tipline would refuse to load."""
    classifier = built.pipeline[-1]
    if type(classifier).__module__.startswith("catboost."):  # writes the time and a random id into the model
        classifier.get_metadata()["train_finish_time"] = classifier.get_metadata()["model_guid"] = ""
    try:
        estimator = make_canonical(skops.io.dumps(built.pipeline))
    except (TypeError, ValueError, UnsupportedTypeException, NotImplementedError) as error:
        what = f"The estimator cannot be saved: {type(error).__name__}: {summarize_exception(error)}."
        raise UsageError(what, f"{WHERE}.estimator", "Use another estimator.") from error
    if untrusted := pyfunc.list_untrusted_types(estimator, built.code):
        what = f"The estimator has types that tipline does not load: {', '.join(untrusted)}."
        packages = ", ".join(sorted(pyfunc.PACKAGES))
        todo = f"Use another estimator, of classes of {packages} and of model.code alone."
        raise UsageError(what, f"{WHERE}.estimator", todo)
    return estimator


def list_packages(dump: bytes) -> set[str]:
    """Return the installed packages that the types in a skops file come from."""
    modules = {name.partition(".")[0] for name in skops.io.get_untrusted_types(data=dump)}
    installed = packages_distributions()
    return {package for module in modules for package in installed.get(module, ())}


def try_pipeline(built: BuiltPipeline, frame: pd.DataFrame, labels: Labels) -> None:
    """Fit on few rows, save, and load in another process, so that what cannot work is refused before the long study."""
    chosen = np.concatenate([np.flatnonzero(labels == label)[: TRIAL_ROWS // 2] for label in (False, True)])
    rows, wanted = frame.iloc[chosen], labels[chosen]
    if "features" in built.pipeline.named_steps:
        with ReportedCode("On a part of the rows, the function", "params.yaml, model.features", TODO):
            check_row_by_row(built.pipeline["features"].transform, rows)
    if np.bincount(wanted, minlength=2).min() < MIN_TRIAL_ROWS:
        return
    fitted = fit_pipeline(clone(built.pipeline), rows, wanted, must_converge=False)
    scores, saved = fitted.predict_proba(rows)[:, 1], dump_estimator(replace(built, pipeline=fitted))
    with tempfile.TemporaryDirectory(prefix="tipline-") as scratch:
        folder = Path(scratch)
        for name, data in {**built.code, pyfunc.ESTIMATOR: saved}.items():
            (folder / name).write_bytes(data)
        rows.to_parquet(folder / "rows.parquet")
        # -I: neither the working directory nor PYTHONPATH, as on a worker or in a server.
        command = [sys.executable, "-I", "-c", SCORE_IN_CLEAN_PROCESS, pyfunc.__file__, scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it ended without a message"]
            what = f"The estimator was saved, but cannot be loaded in another process: {lines[-1].rstrip('.')}."
            todo = "Import installed packages alone in model.code, or use another estimator."
            raise UsageError(what, f"{WHERE}.estimator", todo)
        same = np.array_equal(np.load(folder / "scores.npy"), scores)
    if not same:
        what = "The estimator gives other probabilities after it was saved and loaded."
        raise UsageError(what, f"{WHERE}.estimator", "Use another estimator.")


def check_row_by_row(function: Callable[[pd.DataFrame], pd.DataFrame], rows: pd.DataFrame) -> None:
    """Raise UsageError if the user's function does not compute each row from that row alone."""
    whole, where = function(rows), "params.yaml, model.features"
    shuffled = rows.iloc[np.random.default_rng(0).permutation(len(rows))]
    halves = [rows.iloc[: len(rows) // 2], rows.iloc[len(rows) // 2 :]]
    for other in (function(shuffled).reindex(rows.index), pd.concat([function(half) for half in halves])):
        for name in whole:
            if name not in other or not whole[name].equals(other[name].astype(whole[name].dtype)):
                what = f"The column {name} of the function depends on other rows: it changes when rows are split."
                raise UsageError(what, where, "Compute each row from its own values.")


def save_model(folder: Path, built: BuiltPipeline, spec: Mapping[str, Any]) -> None:
    """Write the model's files; model.json also holds a linear model in its folded form."""
    (folder / pyfunc.ESTIMATOR).write_bytes(dump_estimator(built))
    for name, data in built.code.items():
        (folder / name).write_bytes(data)
    save_spec(folder, {**spec, "linear": compiled.fold_pipeline(built.pipeline), "calibration": None})


def save_spec(folder: Path, spec: Mapping[str, Any]) -> None:
    """Write model.json with one line per key."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in spec.items())
    (folder / pyfunc.SPEC).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def make_canonical(dump: bytes) -> bytes:
    """Remove from a skops dump what differs between dumps of equal estimators: memory addresses and times.

    Nodes and files are numbered in order of appearance. Plain values get a number each: whether equal ones are one
    object in memory is chance.
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
