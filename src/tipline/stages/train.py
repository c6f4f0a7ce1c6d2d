"""train: fit the model on the sample of the `train` months. Writes files only; equal inputs give equal bytes."""

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from tipline import files
from tipline.config import Settings
from tipline.errors import UsageError
from tipline.evaluation import metrics
from tipline.evaluation.baseline import fit_baseline
from tipline.ingest.columns import list_needed_columns
from tipline.ingest.schema import load_schema
from tipline.model import artifact, golden_rows, persistence, pyfunc
from tipline.model import pipeline as model_pipeline
from tipline.monitoring import counts, drift, estimate
from tipline.paths import Paths
from tipline.training import calibration, sampling

log = logging.getLogger(__name__)

EXAMPLE_ROWS = 5
LIBRARIES = ("scikit-learn", "scipy", "numpy", "pandas", "pyarrow", "skops")  # another version may give other numbers


def run(settings: Settings, paths: Paths) -> None:
    sampling.remove_unlisted_samples(settings, paths)
    spec = model_pipeline.create_spec(settings, load_schema(paths.root / settings.schema_))
    pool = sampling.read_role(settings, paths, "train", list_needed_columns(spec))
    count = settings.train.rows
    if count == "auto":
        count = int(files.read_json(paths.sample_size, "Run: dvc repro learning_curve")["rows"])
    if count > len(pool):
        what = f"{count:,} training rows are requested, but the sample has {len(pool):,} with a known target."
        raise UsageError(what, "params.yaml, train.rows", "Lower it, or raise sample.rows.")
    rows = pool.slice(0, count)
    samples = [path for role in ("train", "validation") for path in sampling.list_samples(settings, paths, role)]
    data = files.hash_json({"rows": len(rows)} | {path.stem: files.hash_file(path) for path in samples})
    with files.replace_folder(paths.challenger, paths.staging / "models") as folder:
        training = train_model(settings, paths, spec, rows, folder) | {"data": data}
        files.write_json(folder / artifact.TRAINING, training)
    for warning in training["warnings"]:
        log.warning("%s", warning)
    log.info("%s: training skill %.4f over the baseline", training["name"], training["metrics"]["train.skill"] or 0)


def train_model(
    settings: Settings, paths: Paths, spec: dict[str, Any], rows: pa.RecordBatch, folder: Path
) -> dict[str, Any]:
    labels, _ = metrics.read_labels(rows, spec["target"])
    frame, schema = artifact.read_frame(rows, spec["inputs"]), load_schema(paths.root / settings.schema_)
    built = model_pipeline.build_pipeline(settings, schema, paths.root, frame)
    model_pipeline.fit_pipeline(built.pipeline, frame, labels)
    baseline = fit_baseline(rows, spec["target"], settings.evaluate.baseline)
    persistence.save_model(folder, built, spec | {"features": built.features, "baseline": baseline})
    # The pipeline is the model: figures and golden rows are its scores, not those of a compiled form.
    model = artifact.Model(artifact.read_artifact(folder), use_compiled=False)
    others = sampling.read_role(settings, paths, "validation", list_needed_columns(spec))  # it was not fitted on them
    if method := settings.train.calibration:
        outcomes, _ = metrics.read_labels(others, spec["target"])
        model.spec["calibration"] = calibration.fit_calibration(method, model.uncalibrated(others), outcomes)
    scores, derived = model.score_rows(rows)
    model.spec["reference"] = drift.build_reference(rows, model.spec, scores, derived)
    if reliability := estimate.measure_reliability(others, model.spec, model.probabilities(others)):
        model.spec["reliability"] = reliability
    persistence.save_spec(folder, golden_rows.add_golden_rows(model, rows))
    figures = counts.Counts.from_rows(rows, model.spec, scores, derived).figures(baseline)
    packages = persistence.list_packages((folder / pyfunc.ESTIMATOR).read_bytes())
    examples = rows.select(list(settings.model.columns)).slice(0, EXAMPLE_ROWS).to_pylist()
    return {
        "name": artifact.format_title(settings, len(rows)),
        "params": {
            **artifact.describe_settings(settings),
            "calibration": settings.train.calibration,
            "rows": len(rows),
            "months": ", ".join(settings.sample.get_months("train")),
        },
        "metrics": {f"train.{name}": figures[name] for name in ("log_loss", "baseline_log_loss", "skill", "auc")},
        "warnings": drift.find_leaks(rows, model.spec, metrics.compute_log_loss(scores, labels), derived),
        "libraries": {name: version(name) for name in dict.fromkeys((*LIBRARIES, *sorted(packages)))},
        "requirements": list(settings.model.requirements),
        "example": json.loads(json.dumps(examples, default=str)),  # timestamps as text
    }
