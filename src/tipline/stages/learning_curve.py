"""learning_curve: how many rows the model needs, studied on the `fit` months and scored on the `size` months."""

from __future__ import annotations

import csv
import logging
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pyarrow.compute as pc

from tipline import cluster, contract, curve, files, metrics, model, plots, pyfunc, sampling
from tipline.errors import TiplineError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout) -> None:
    """Write the study's table, picture and decision, and models/sample_size.json."""
    fit, size = (trips_of(settings, layout, role) for role in ("fit", "size"))
    study = measure(settings, layout.root, fit, size)
    decision = curve.decide(study, settings.learning_curve.min_gain, len(fit))
    write_table(layout.learning_curve, decision["sizes"])
    files.write_json(layout.learning_curve.with_suffix(".json"), decision)
    plots.learning_curve(layout.learning_curve.with_suffix(".png"), decision)
    files.write_json(layout.sample_size, {"rows": decision["rows"]})
    log.info("%s", decision["reason"])


def trips_of(settings: Settings, layout: Layout, role: str) -> pa.RecordBatch:
    """The sampled rows of a role whose target is known."""
    pool = sampling.read_pool([layout.sample(role, month) for month in settings.sample.of(role)])
    known = sampling.labelled(pool, settings.model.target).combine_chunks().to_batches()
    if not known:
        what = f"None of the sampled rows has a known {settings.model.target}."
        raise TiplineError(what, f"the {role} months", "Give this role to other months in params.yaml.")
    return known[0]


def measure(settings: Settings, root: Path, fit: pa.RecordBatch, size: pa.RecordBatch) -> curve.Study:
    """Run the study on the project's dask client."""
    wanted, target = settings.learning_curve, settings.model.target
    if len(fit) // 2 < wanted.smallest:
        what = (
            f"The sample has {len(fit):,} rows; half of it is less than learning_curve.smallest, {wanted.smallest:,}."
        )
        raise UsageError(what, "params.yaml, learning_curve.smallest", "Lower it, or raise sample.rows.")
    known = contract.load()
    spec = model.features(settings.model, known)
    pipeline = model.build(spec, settings.train, root)
    fit_data, size_data = ((pyfunc.matrix(trips, spec), metrics.labels(trips, target)[0]) for trips in (fit, size))
    baseline = metrics.fit_baseline(fit, target, settings.baseline.by, settings.baseline.smoothing)
    loss = metrics.losses(metrics.baseline_probabilities(size, baseline), size_data[1]).mean()
    data = curve.Data(fit_data, size_data, days_of(size[known.time]), float(loss))
    of_sizes = curve.sizes(wanted.smallest, len(fit) // 2, wanted.sizes)
    with cluster.connect(settings.score.workers), joblib.parallel_config("dask"):
        return curve.study(pipeline, data, of_sizes, wanted.repeats, settings.sample.seed)


def days_of(times: pa.Array) -> curve.Rows:
    """The day of each time, as codes from 0; a missing time counts as 1970-01-01."""
    days = pc.floor_temporal(times, unit="day").cast("int64").fill_null(0)
    return np.unique(days.to_numpy(), return_inverse=True)[1]


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """The figures of each size as CSV."""
    with files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
