"""`tipline explain MONTH ROW`: one prediction, walked back to what was published and to what made it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tipline import files
from tipline.errors import TiplineError, UsageError, summarize_exception
from tipline.ingest import columns, prepare, readers
from tipline.model import artifact
from tipline.model.external import ExternalModel
from tipline.paths import month_folder
from tipline.registry import model_versions, store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tipline.config import Settings
    from tipline.model.artifact import Model
    from tipline.paths import Paths

WIDTH = 24
MOST = 2**62


def run(settings: Settings, paths: Paths, month: str, row: int) -> Iterator[str]:
    """Give the lines: prediction, contributions, model, prepared row, published row, source.

    Raises
    ------
    UsageError
        Where the month has no prediction for such a row; for a row that was set apart, with the reason.
    TiplineError
        Where a file on the way back is missing.
    """
    folder = month_folder(paths.predictions, month)
    if month not in settings.months or not 0 <= row <= MOST:
        what = "The month is not among `months`." if month not in settings.months else "There is no such row."
        raise UsageError(what, f"month {month}, row {row}", "Name a month of params.yaml and a row of its predictions.")
    manifest = files.read_json(folder / files.MANIFEST, "Run: dvc repro score")
    group, stored = prediction(paths, month, row, manifest)
    trip = prepared(paths, month, row, group)
    yield f"{month}, row {row:,}: tip_probability {stored!r}"
    yield from section("prediction", of_prediction(paths, folder, manifest, group))
    contents, training, of_run = model_of(settings, paths, manifest)
    if contents is None:
        yield from section("model", {"digest": manifest["key"]["model"], "files": "neither here nor in the registry"})
    else:
        loaded = artifact.load_model(contents, manifest["key"]["model"])
        yield from section("why (log-odds)", contributions(loaded, trip, stored))
        yield from section("model", of_model(manifest, training, of_run))
    yield from section("prepared row", {"file": shown(paths, paths.prepared_file(month)), "row group": group} | trip)
    yield from section("published row", published_row(paths, month, row))
    yield from section("source", files.read_json(paths.raw_manifest(month), f"Run: dvc repro download@{month}"))


def section(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    """A heading, and a line a value."""
    yield f"\n{title}"
    for name, value in values.items():
        yield f"  {name:{WIDTH}} {value if value is not None else '-'}"


def shown(paths: Paths, path: Path) -> str:
    """A path as seen from the project's folder."""
    return str(path.relative_to(paths.root))


def prediction(paths: Paths, month: str, row: int, manifest: Mapping[str, Any]) -> tuple[int, float]:
    """The row group that a row was scored in, and its stored probability."""
    folder = month_folder(paths.predictions, month)
    for group, part in enumerate(manifest["parts"]):
        path = folder / part["name"]
        if not path.is_file():
            raise TiplineError("A part of the predictions is missing.", str(path), "Run: tipline verify")
        try:
            found = pq.read_table(path, filters=[("row", "=", row)], partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise TiplineError(
                f"This part cannot be read: {summarize_exception(error)}.", str(path), "Run: tipline verify"
            ) from error
        if len(found):
            return group, float(found["tip_probability"][0].as_py())
    raise no_such_row(paths, month, row, manifest["rows"])


def no_such_row(paths: Paths, month: str, row: int, rows: int) -> UsageError:
    """Why there is no prediction for a row."""
    where, todo = f"month {month}, row {row:,}", f"Rows are counted from 0; {rows:,} of the month have predictions."
    apart = paths.prepared(month) / columns.QUARANTINE_FILE
    found = pq.read_table(apart, filters=[("row", "=", row)], partitioning=None).to_pylist() if apart.is_file() else []
    if found:
        return UsageError(f"This row was set apart when the month was prepared: {found[0]['reason']}.", where, todo)
    return UsageError("The month has no prediction for this row.", where, todo)


def prepared(paths: Paths, month: str, row: int, group: int) -> dict[str, Any]:
    """The prepared row, by column."""
    path = paths.prepared_file(month)
    try:
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(group)
    except FileNotFoundError as error:
        raise TiplineError("The prepared month is not there.", str(path), f"Run: dvc repro prepare@{month}") from error
    found: list[dict[str, Any]] = table.filter(pc.equal(table["row"], row)).to_pylist()
    if not found:
        what = "The prepared month is not the one that was scored: the row is elsewhere in it."
        raise TiplineError(what, str(path), "Run: dvc repro score")
    return found[0]


def of_prediction(paths: Paths, folder: Path, manifest: Mapping[str, Any], group: int) -> dict[str, Any]:
    """Where the prediction lies, and what of its making is on record."""
    part, made = manifest["parts"][group], manifest["made"]
    return {
        "file": shown(paths, folder / part["name"]),
        "sha256": part["sha256"],
        "scored by git revision": made["git"],
        "prepared month's sha256": manifest["key"]["trips"],
        "libraries": ", ".join(f"{name} {version}" for name, version in made["libraries"].items()),
    }


def model_of(
    settings: Settings, paths: Paths, manifest: Mapping[str, Any]
) -> tuple[dict[str, bytes] | None, dict[str, Any], dict[str, str]]:
    """Files, training and the run's tags of the model that made a month's predictions.

    The files are this project's where it still has them, else the registry's.
    """
    digest = manifest["key"]["model"]
    here = [folder for folder in (paths.champion, paths.challenger) if artifact.try_read_digest(folder) == digest]
    tags: dict[str, str] = {}
    try:
        with store.connect_store(paths) as client:
            found = model_versions.list_versions(client, settings.model.name, digest)
            if found and found[0].run_id:
                tags = dict(client.get_run(found[0].run_id).data.tags)
            if found and not here:
                with model_versions.open_files(found[0]) as folder:
                    return artifact.read_artifact(folder), training_of(folder), tags
    except TiplineError as error:
        tags = {"tipline.git": f"unknown: {error.parts[0]}"}
    return (artifact.read_artifact(here[0]), training_of(here[0]), tags) if here else (None, {}, tags)


def training_of(folder: Path) -> dict[str, Any]:
    """What is told of a model's training; nothing of one that tipline did not make."""
    return files.try_read_json(folder / artifact.TRAINING) or {}


def of_model(manifest: Mapping[str, Any], training: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    """Version, run, training sample and git revision."""
    made, params = manifest["made"], training.get("params", {})
    return {
        "version": f"{made['name']} version {made['version']}",
        "run": made["run"],
        "digest": manifest["key"]["model"],
        "trained": training.get("name", "not by tipline"),
        "training sample": f"{params['rows']:,} rows of {params['months']}" if params else None,
        "training sample's digest": training.get("data"),
        "trained by git revision": tags.get("tipline.git"),
    }


def contributions(model: Model, trip: Mapping[str, Any], stored: float) -> dict[str, Any]:
    """What each feature adds for a linear model; for others, what they are given."""
    types = columns.list_feature_columns(model.features)
    batch = pa.RecordBatch.from_pylist([dict(trip)], schema=pa.schema(types))
    again = float(model.probabilities(batch)[0])
    linear = getattr(model, "linear", None)  # a model carries its own code, and that may be older than this
    if linear is None:
        told: dict[str, Any] = {name: f"{trip.get(name)}" for name in types} | before(model, batch)
        return told | {"probability": f"{again!r}; no contributions: not a linear model, or older than this command"}
    added = linear.contributions(batch, model.features)
    told = {"start": f"{linear.intercept:+.6f}"}
    for feature, values in zip(model.features, added, strict=True):
        told[feature["name"]] = f"{values[0]:+.6f}   {seen(feature, trip.get(feature['name']))}"
    odds = linear.intercept + sum(float(values[0]) for values in added)
    same = "as stored" if again == stored else f"the stored one is {stored!r}"
    return told | {"sum": f"{odds:+.6f}"} | before(model, batch) | {"probability": f"{again!r}, {same}"}


def before(model: Model, trip: pa.RecordBatch) -> dict[str, str]:
    """The probability that a calibration has corrected; nothing for a model without one."""
    calibration = model.spec.get("calibration")
    if calibration is None or isinstance(model, ExternalModel):
        return {}
    return {f"before {calibration['method']}": f"{model.uncalibrated(trip)[0]:.9g}"}


def seen(feature: Mapping[str, Any], value: Any) -> str:  # noqa: ANN401 (a value of any column)
    """A value as the model sees it."""
    if value is None:
        return "missing"
    if feature["kind"] == "hour":
        return f"{value}, hour {value.hour}"
    if feature["kind"] == "category":
        return str(value) if value in feature["categories"] else f"{value}, not one that the model tells apart"
    low, high = feature["range"] or (value, value)
    return str(value) if low <= value <= high else f"{value}, taken as {min(max(value, low), high):g}"


def published_row(paths: Paths, month: str, row: int) -> dict[str, Any]:
    """The row as it was published: text of CSV, values of Parquet."""
    path = prepare.find_published_file(paths.raw(month), month)
    text = readers.read_row(readers.open_month(path, month), row)
    told = {"file": shown(paths, path), "sha256": files.hash_file(path), "row": f"{row:,}"}
    if text is None:
        return told | {"values": "the published file has no such row: it is not the one that was prepared"}
    try:
        values = json.loads(text)
    except ValueError:
        return told | {"line": text}
    return told | values if isinstance(values, dict) else told | {"line": text}
