"""train: the model, fitted on the sample of the `fit` months; files only, the same bytes for the same inputs."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tipline import baseline, contract, files, metrics, model, modelfiles, pyfunc, sampling, trips
from tipline.counts import Counts
from tipline.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)

EXAMPLE_ROWS = 5


def run(settings: Settings, layout: Layout) -> None:
    """Fit on the first rows of the sample and write models/challenger/."""
    spec = model.spec(settings, contract.load(layout.root / settings.contract))
    pool = sampling.of_role(settings, layout, "fit", trips.needed(spec))
    rows = rows_to_use(settings, layout, len(pool))
    paths = [layout.sample("fit", month) for month in settings.sample.of("fit")]
    with files.replacing_folder(layout.challenger, layout.staging / "models") as folder:
        training = fit(settings, layout.root, spec, pool.slice(0, rows), folder)
        training["data"] = files.digest_of({"rows": rows} | {path.stem: files.sha256(path) for path in paths})
        files.write_json(folder / modelfiles.TRAINING, training)
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


def fit(settings: Settings, root: Path, spec: dict[str, Any], rows: pa.RecordBatch, folder: Path) -> dict[str, Any]:
    """Fit, save the model's files, return what is told of the training."""
    features = spec["features"]
    tipped, _ = metrics.labels(rows, settings.model.target)
    pipeline = model.fit(model.build(features, settings.train, root), pyfunc.matrix(rows, features), tipped)
    rule = baseline.fit(rows, settings.model.target, settings.baseline.by, settings.baseline.smoothing)
    model.save(folder, pipeline, spec | {"baseline": rule})
    model.keep_canary(folder, rows)
    loaded = pyfunc.Model(modelfiles.read(folder))
    figures = Counts.of(rows, loaded.spec, loaded.probabilities(rows)).figures(rule)
    chosen = " ".join(f"{name}={value}" for name, value in settings.train.params.items())
    return {
        "name": f"{settings.train.estimator} {chosen}".strip() + f", {len(rows):,} rows",
        "params": {
            "estimator": settings.train.estimator,
            "rows": len(rows),
            "months": ", ".join(settings.sample.of("fit")),
            "columns": ", ".join(settings.model.columns),
            **{f"params.{name}": value for name, value in settings.train.params.items()},
        },
        "metrics": {f"train.{name}": figures[name] for name in ("log_loss", "baseline_log_loss", "skill", "auc")},
        "example": [
            {name: str(value) if isinstance(value, datetime) else value for name, value in row.items()}
            for row in rows.select(list(settings.model.columns)).slice(0, EXAMPLE_ROWS).to_pylist()
        ],
    }
