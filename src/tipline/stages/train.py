"""train: the model, fitted on the sample of the `train` months; files only, the same bytes for the same inputs."""

from __future__ import annotations

import logging
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import UsageError
from tipline.evaluation import baseline, metrics
from tipline.ingest import columns
from tipline.ingest.schema import load_schema
from tipline.model import artifact, golden_rows, pyfunc
from tipline.model import pipeline as model_pipeline
from tipline.monitoring import drift
from tipline.monitoring.counts import Counts
from tipline.training import calibration, leaks, sampling

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)

EXAMPLE_ROWS = 5
# What a model's figures may hang on.
LIBRARIES = ("scikit-learn", "scipy", "numpy", "pyarrow", "skops")


def run(settings: Settings, paths: Paths) -> None:
    """Fit on the first rows of the sample and write models/challenger/."""
    spec = model_pipeline.create_spec(settings, load_schema(paths.root / settings.schema_))
    pool = sampling.read_role(settings, paths, "train", columns.list_needed_columns(spec))
    rows = rows_to_use(settings, paths, len(pool))
    roles = ["train", "validation"] if settings.train.calibration else ["train"]
    sample_files = [path for role in roles for path in sampling.list_samples(settings, paths, role)]
    with files.replace_folder(paths.challenger, paths.staging / "models") as folder:
        training = fit(settings, paths, spec, pool.slice(0, rows), folder)
        training["data"] = files.hash_json({"rows": rows} | {path.stem: files.hash_file(path) for path in sample_files})
        files.write_json(folder / artifact.TRAINING, training)
    for warning in training["warnings"]:
        log.warning("%s", warning)
    log.info("%s: training skill %.4f over the baseline", training["name"], training["metrics"]["train.skill"] or 0)


def rows_to_use(settings: Settings, paths: Paths, there: int) -> int:
    """The number in params.yaml, else the learning curve's choice.

    Raises
    ------
    UsageError
        Where the sample has fewer rows.
    """
    rows = settings.train.rows
    if rows == "auto":
        rows = int(files.read_json(paths.sample_size, "Run: dvc repro learning_curve")["rows"])
    if rows > there:
        what = f"train.rows asks for {rows:,} rows, the sample has {there:,} with a known target."
        raise UsageError(what, "params.yaml, train.rows", "Lower it, or raise sample.rows.")
    return rows


def fit(settings: Settings, paths: Paths, spec: dict[str, Any], rows: pa.RecordBatch, folder: Path) -> dict[str, Any]:
    """Fit, save the model's files, return what is told of the training."""
    features = spec["features"]
    labels, _ = metrics.read_labels(rows, spec["target"])
    pipeline = model_pipeline.fit_pipeline(
        model_pipeline.build_pipeline(features, settings.train, paths.root), pyfunc.build_matrix(rows, features), labels
    )
    rule = baseline.fit_baseline(rows, spec["target"], settings.evaluate.baseline)
    model_pipeline.save_model(folder, pipeline, spec | {"baseline": rule})
    if settings.train.calibration:
        calibrate(settings, paths, folder)
    saved = pyfunc.Model(artifact.read_artifact(folder))
    scores = saved.probabilities(rows)
    figures = Counts.from_rows(rows, saved.spec, scores).figures(rule)
    saved.spec["reference"] = drift.build_reference(rows, saved.spec, scores)
    model_pipeline.save_spec(folder, golden_rows.add_golden_rows(saved, rows))
    probed = leaks.measure_columns_alone(rows, saved.spec, metrics.compute_log_loss(scores, labels))
    return {
        **described(settings, rows, figures),
        # What each feature alone reaches of what the model gains, and which of them should be looked at.
        "alone": probed,
        "warnings": leaks.format_warnings(probed, saved.spec),
        "libraries": {package: version(package) for package in LIBRARIES},
        "example": example(settings, rows),
    }


def described(settings: Settings, rows: pa.RecordBatch, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Name, parameters and metrics of the training."""
    return {
        "name": artifact.format_title(settings, len(rows)),
        "params": {
            **artifact.describe_settings(settings),
            "calibration": settings.train.calibration,
            "rows": len(rows),
            "months": ", ".join(settings.sample.get_months("train")),
        },
        "metrics": {f"train.{name}": figures[name] for name in ("log_loss", "baseline_log_loss", "skill", "auc")},
    }


def example(settings: Settings, rows: pa.RecordBatch) -> list[dict[str, Any]]:
    """The first rows, as json: what MLflow shows of the model's input."""
    return [
        {name: str(value) if isinstance(value, datetime) else value for name, value in row.items()}
        for row in rows.select(list(settings.model.columns)).slice(0, EXAMPLE_ROWS).to_pylist()
    ]


def calibrate(settings: Settings, paths: Paths, folder: Path) -> None:
    """Calibrate the saved model on the sample of the `validation` months, which it was not fitted on."""
    saved, method = pyfunc.Model(artifact.read_artifact(folder)), settings.train.calibration or ""
    rows = sampling.read_role(settings, paths, "validation", columns.list_needed_columns(saved.spec))
    labels, _ = metrics.read_labels(rows, settings.model.target)
    fitted = calibration.fit_calibration(method, saved.uncalibrated(rows), labels)
    model_pipeline.save_spec(folder, saved.spec | {"calibration": fitted})
