"""`tipline explain MONTH ROW`: trace one prediction back to the published row and to the model that made it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import issparse
from sklearn.preprocessing import OneHotEncoder

from tipline import files
from tipline.config import Settings
from tipline.errors import TiplineError, UsageError
from tipline.ingest import columns, readers
from tipline.ingest.schema import load_schema
from tipline.model import artifact, compiled, golden_rows
from tipline.model.transformers import OTHER
from tipline.paths import Paths, month_folder, month_name
from tipline.scoring import plan
from tipline.storage import Storage


def run(settings: Settings, paths: Paths, month: str, row: int) -> Iterator[str]:
    """Yield the lines: prediction, contributions, model, prepared row, published row, source."""
    if month not in settings.months or not 0 <= row < 2**62:
        what = "The month is not in `months`, or the row number is out of range."
        raise UsageError(what, f"month {month}, row {row}", "Name a month of params.yaml and a row of its predictions.")
    manifest = files.read_json(month_folder(paths.predictions, month) / files.MANIFEST, "Run: dvc repro score")
    locations, folder = plan.Locations.resolve(settings, paths), month_name(month)
    group, stored = find_prediction(locations, month, row, manifest["parts"])
    name, todo = f"{folder}/{columns.PREPARED_FILE}", f"Run: tipline prepare {month}"
    trip, address = read_row(locations.trips, name, row), locations.trips.address(name)
    if trip is None:
        raise TiplineError("The prepared month is not the one that was scored: it has no such row.", address, todo)
    part, made, digest = manifest["parts"][group], manifest["made"], manifest["key"]["model"]
    yield f"{month}, row {row:,}: probability {stored!r}"
    prediction = {
        "file": locations.predictions.address(f"{folder}/{part['name']}").removeprefix(f"{paths.root}/"),
        "sha256": part["sha256"],
        "scored by git revision": made["git"],
        "libraries": ", ".join(f"{name} {version}" for name, version in made["libraries"].items()),
    }
    yield from format_section("prediction", prediction)
    yield from format_section("columns' digests", manifest["key"].get("columns", {}))
    folders = (paths.champion, paths.challenger)
    source = next((one for one in folders if artifact.try_read_digest(one) == digest), None)
    training = (files.try_read_json(source / artifact.TRAINING) if source else None) or {}
    why = {"unknown": "the model has been replaced in this project; to score the month with the champion: dvc repro"}
    if source:
        model, *_ = golden_rows.load_checked_model(artifact.read_artifact(source), digest, "this machine")
        why = explain_score(model, trip, stored)
    yield from format_section("why (log-odds)", why)
    params = training.get("params")
    origin = {
        "version": f"{made['name']} version {made['version']}",
        "run": made["run"],
        "digest": digest,
        "trained": training.get("name", "not by tipline, or unknown"),
        "training sample": f"{params['rows']:,} rows of {params['months']}" if params else None,
        "training sample's digest": training.get("data"),
    }
    yield from format_section("model", origin)
    shown = address.removeprefix(f"{paths.root}/")
    yield from format_section("prepared row", {"file": shown, "row group": group} | trip)
    yield from format_section("published row", read_published_row(settings, paths, month, row))
    fetched = files.read_json(paths.raw_manifest(month), "Run: dvc repro download")
    if "files" in fetched:
        fetched["files"] = f"{len(fetched['files'])}, described in {paths.raw_manifest(month).relative_to(paths.root)}"
    yield from format_section("source", fetched)


def format_section(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n{title}"
    yield from (f"  {name:24} {'-' if value is None else value}" for name, value in values.items())


def read_row(storage: Storage, name: str, row: int) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = storage.read_table(name, [("row", "=", row)]).to_pylist()
    return found[0] if found else None


def find_prediction(locations: plan.Locations, month: str, row: int, parts: list[dict[str, Any]]) -> tuple[int, float]:
    """Return the row group that a row was scored in, and its stored probability."""
    folder = month_name(month)
    for group, part in enumerate(parts):
        found = read_row(locations.predictions, f"{folder}/{part['name']}", row)
        if found:
            return group, float(found["probability"])
    quarantine, what = f"{folder}/{columns.QUARANTINE_FILE}", "The month has no prediction for this row."
    if quarantine.rpartition("/")[2] in locations.trips.list_sizes(folder):
        found = read_row(locations.trips, quarantine, row)
        what = f"This row was quarantined by `prepare`: {found['reason']}." if found else what
    todo = f"Rows are counted from 0; {sum(part['rows'] for part in parts):,} rows of the month have predictions."
    raise UsageError(what, f"month {month}, row {row:,}", todo)


def explain_score(model: artifact.Model, trip: Mapping[str, Any], stored: float) -> dict[str, Any]:
    """Return the columns that the preprocessing sees and, if the model has them, what each adds to the log-odds."""
    types = columns.list_input_columns(model.spec)
    batch = pa.RecordBatch.from_pylist([{name: trip.get(name) for name in types}], schema=pa.schema(types))
    probability = float(model.probabilities(batch)[0])
    comparison = "as stored" if probability == stored else f"the stored one is {stored!r}"
    values = {str(name): value for name, value in model.derive_frame(batch).iloc[0].items()}
    unseen = find_unseen(model, batch)
    start, added = compute_contributions(model, batch)
    lines = {"start": f"{start:+.6f}"} if added else {}
    for name, value in values.items():
        shown = "missing" if pd.isna(value) else str(value)
        shown += ", as (other): training does not have it" * (name in unseen)
        lines[name] = f"{added[name]:+.6f}   {shown}" if added else shown
    if added:
        lines["sum"] = f"{start + sum(added.values()):+.6f}"
    else:
        comparison += "; no contributions, because the model is neither linear nor of LightGBM or XGBoost"
    if calibration := model.spec.get("calibration"):
        lines[f"before {calibration['method']}"] = f"{model.uncalibrated(batch)[0]:.9g}"
    return lines | {"probability": f"{probability!r}, {comparison}"}


def find_unseen(model: artifact.Model, batch: pa.RecordBatch) -> list[str]:
    """Return the columns whose category in the first row is one that training does not have."""
    preprocess = None if model.is_external else model.estimator.named_steps.get("preprocess")
    for kind, step, names in getattr(preprocess, "transformers_", ()):
        if kind == "categories" and hasattr(step, "named_steps"):
            levels = step["unseen"].transform(model.derive_frame(batch.slice(0, 1))[names]).iloc[0]
            return [str(name) for name in names if levels[name] == OTHER]
    return []


def compute_contributions(model: artifact.Model, batch: pa.RecordBatch) -> tuple[float, dict[str, float]]:
    """Return the log-odds that all rows start from, and what each column adds to those of the first row.

    Coefficient times value for a logistic regression, SHAP values for LightGBM and XGBoost, nothing for other models.
    """
    if model.is_external or "preprocess" not in model.estimator.named_steps:
        return 0.0, {}
    preprocess, classifier = model.estimator["preprocess"], model.estimator[-1]
    inputs = preprocess.transform(model.derive_frame(batch.slice(0, 1)))
    inputs = inputs.toarray() if issparse(inputs) else np.asarray(inputs)
    package = type(classifier).__module__.partition(".")[0]
    if package == "lightgbm":
        *added, start = np.asarray(classifier.predict(inputs, pred_contrib=True))[0]
    elif package == "xgboost":
        import xgboost  # noqa: PLC0415 (an extra)

        *added, start = classifier.get_booster().predict(xgboost.DMatrix(inputs), pred_contribs=True)[0].astype(float)
    elif type(classifier).__name__ == "LogisticRegression":
        added, start = classifier.coef_[0] * inputs[0], classifier.intercept_[0]
    else:
        return 0.0, {}
    terms, sums = iter(added), dict[str, float]()
    for _, transformer, names in preprocess.transformers_:
        encoder = compiled.find_encoder(transformer)
        for index, name in enumerate(names):
            width = len(encoder.categories_[index]) if isinstance(encoder, OneHotEncoder) else 1
            sums[str(name)] = float(sum(next(terms) for _ in range(width)))
    return float(start), sums


def read_published_row(settings: Settings, paths: Paths, month: str, row: int) -> dict[str, Any]:
    """Read the published row: the line of a CSV file, the values of a Parquet file."""
    published = readers.open_month(paths.raw(month), month, load_schema(paths.root / settings.schema_).csv)
    text = readers.read_row(published, row)
    lines = {"file": published.path.relative_to(paths.root), **readers.describe_published(published.path)}
    if text is None:
        return lines | {"values": "the published file has no such row: it is not the one that was prepared"}
    return lines | (json.loads(text) if readers.is_parquet(readers.list_files(paths.raw(month))[0]) else {"line": text})
