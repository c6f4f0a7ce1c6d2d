"""learning_curve: how many rows the model needs, studied on the `fit` months and scored on the `size` months."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pyarrow.compute as pc

from tipline import cluster, contract, curve, files, metrics, model, plots, pyfunc, sampling, trips
from tipline.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout) -> None:
    """Write the study's table, picture and decision, and models/sample_size.json."""
    known = contract.load(layout.root / settings.contract)
    spec = model.spec(settings, known)
    types = {known.time: contract.ARROW_TYPES["timestamp"], **trips.needed(spec)}
    fit, size = (sampling.of_role(settings, layout, role, types) for role in ("fit", "size"))
    study = measure(settings, layout.root, spec["features"], (fit, size), known.time)
    decision = curve.decide(study, settings.learning_curve.min_gain, len(fit))
    files.write_csv(layout.learning_curve, decision["sizes"])
    files.write_json(layout.learning_curve.with_suffix(".json"), decision)
    plots.learning_curve(layout.learning_curve.with_suffix(".png"), decision)
    files.write_json(layout.sample_size, {"rows": decision["rows"]})
    log.info("%s", decision["reason"])


def measure(
    settings: Settings,
    root: Path,
    features: list[dict[str, Any]],
    rows: tuple[pa.RecordBatch, pa.RecordBatch],
    time: str,
) -> curve.Study:
    """Run the study on the project's dask client, on the rows to fit on and the rows to score on."""
    wanted, target = settings.learning_curve, settings.model.target
    fit, size = rows
    if len(fit) // 2 < wanted.smallest:
        what = (
            f"The sample has {len(fit):,} rows; half of it is less than learning_curve.smallest, {wanted.smallest:,}."
        )
        raise UsageError(what, "params.yaml, learning_curve.smallest", "Lower it, or raise sample.rows.")
    pipeline = model.build(features, settings.train, root)
    fit_data, size_data = ((pyfunc.matrix(part, features), metrics.labels(part, target)[0]) for part in rows)
    baseline = metrics.fit_baseline(fit, target, settings.baseline.by, settings.baseline.smoothing)
    loss = metrics.losses(metrics.baseline_probabilities(size, baseline), size_data[1]).mean()
    data = curve.Data(fit_data, size_data, days_of(size[time]), float(loss))
    of_sizes = curve.sizes(wanted.smallest, len(fit) // 2, wanted.sizes)
    with cluster.connect(settings.score.workers), joblib.parallel_config("dask"):
        return curve.study(pipeline, data, of_sizes, wanted.repeats, settings.sample.seed)


def days_of(times: pa.Array) -> curve.Rows:
    """The day of each time, as codes from 0; a missing time counts as 1970-01-01."""
    days = pc.floor_temporal(times, unit="day").cast("int64").fill_null(0)
    return np.unique(days.to_numpy(), return_inverse=True)[1]
