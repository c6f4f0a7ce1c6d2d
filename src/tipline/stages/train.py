"""train: the model, fitted on the sample of the `fit` months; files only, the same bytes for the same inputs."""

from __future__ import annotations

import logging
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tipline import files, pyfunc
from tipline.errors import UsageError
from tipline.models import calibration, canary, leaks, model, modelfiles, sampling
from tipline.months import contract, trips
from tipline.statistics import baseline, drift, metrics
from tipline.statistics.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)

EXAMPLE_ROWS = 5
# What a model's figures may hang on.
LIBRARIES = ("scikit-learn", "scipy", "numpy", "pyarrow", "skops")


def run(settings: Settings, layout: Layout) -> None:
    """Fit on the first rows of the sample and write models/challenger/."""
    spec = model.spec(settings, contract.load(layout.root / settings.contract))
    pool = sampling.of_role(settings, layout, "fit", trips.needed(spec))
    rows = rows_to_use(settings, layout, len(pool))
    roles = ["fit", "size"] if settings.train.calibrates else ["fit"]
    paths = [path for role in roles for path in sampling.paths(settings, layout, role)]
    with files.replacing_folder(layout.challenger, layout.staging / "models") as folder:
        training = fit(settings, layout, spec, pool.slice(0, rows), folder)
        training["data"] = files.digest_of({"rows": rows} | {path.stem: files.sha256(path) for path in paths})
        files.write_json(folder / modelfiles.TRAINING, training)
    for warning in training["warnings"]:
        log.warning("%s", warning)
    log.info("%s: training skill %.4f over the baseline", training["name"], training["metrics"]["train.skill"] or 0)


def rows_to_use(settings: Settings, layout: Layout, there: int) -> int:
    """The number in params.yaml, else the learning curve's choice.

    Raises
    ------
    UsageError
        Where the sample has fewer rows.
    """
    rows = settings.train.rows
    if rows == "auto":
        rows = int(files.read_json(layout.sample_size, "Run: dvc repro learning_curve")["rows"])
    if rows > there:
        what = f"train.rows asks for {rows:,} rows, the sample has {there:,} with a known target."
        raise UsageError(what, "params.yaml, train.rows", "Lower it, or raise sample.rows.")
    return rows


def fit(settings: Settings, layout: Layout, spec: dict[str, Any], rows: pa.RecordBatch, folder: Path) -> dict[str, Any]:
    """Fit, save the model's files, return what is told of the training."""
    features = spec["features"]
    tipped, _ = metrics.labels(rows, spec["target"])
    pipeline = model.fit(model.build(features, settings.train, layout.root), pyfunc.matrix(rows, features), tipped)
    rule = baseline.fit(rows, spec["target"], settings.baseline.by, settings.baseline.smoothing)
    model.save(folder, pipeline, spec | {"baseline": rule})
    if settings.train.calibrates:
        calibrate(settings, layout, folder)
    saved = pyfunc.Model(modelfiles.read(folder))
    scores = saved.probabilities(rows)
    figures = Counts.of(rows, saved.spec, scores).figures(rule)
    saved.spec["reference"] = drift.reference(rows, saved.spec, scores)
    model.save_spec(folder, canary.kept(saved, rows))
    probed = leaks.probe(rows, saved.spec, metrics.losses(scores, tipped))
    return {
        **described(settings, rows, figures),
        # What each feature alone reaches of what the model gains, and which of them should be looked at.
        "alone": probed,
        "warnings": leaks.warnings(probed, saved.spec),
        "libraries": {package: version(package) for package in LIBRARIES},
        "example": example(settings, rows),
    }


def described(settings: Settings, rows: pa.RecordBatch, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Name, parameters and metrics of the training."""
    return {
        "name": modelfiles.title(settings, len(rows)),
        "params": {
            **modelfiles.told(settings),
            "calibration": settings.train.calibration,
            "rows": len(rows),
            "months": ", ".join(settings.sample.of("fit")),
        },
        "metrics": {f"train.{name}": figures[name] for name in ("log_loss", "baseline_log_loss", "skill", "auc")},
    }


def example(settings: Settings, rows: pa.RecordBatch) -> list[dict[str, Any]]:
    """The first rows, as json: what MLflow shows of the model's input."""
    return [
        {name: str(value) if isinstance(value, datetime) else value for name, value in row.items()}
        for row in rows.select(list(settings.model.columns)).slice(0, EXAMPLE_ROWS).to_pylist()
    ]


def calibrate(settings: Settings, layout: Layout, folder: Path) -> None:
    """Calibrate the saved model on the sample of the `size` months, which it was not fitted on."""
    saved = pyfunc.Model(modelfiles.read(folder))
    rows = sampling.of_role(settings, layout, "size", trips.needed(saved.spec))
    tipped, _ = metrics.labels(rows, settings.model.target)
    fitted = calibration.fit(settings.train.calibration, saved.uncalibrated(rows), tipped)
    model.save_spec(folder, saved.spec | {"calibration": fitted})
