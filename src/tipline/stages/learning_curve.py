"""learning_curve: how many rows the model needs, studied on the `train` months and scored on the `validation` months."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np

from tipline import cluster, files
from tipline.errors import UsageError
from tipline.evaluation import baseline, metrics, times
from tipline.ingest import columns
from tipline.ingest.schema import load_schema
from tipline.model import pipeline as model_pipeline
from tipline.model import pyfunc
from tipline.monitoring import plots
from tipline.training import fits, learning_curve, sampling

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)

# Of the `train` rows, the last fifth is held out: rows of the same months that no repeat is fitted on.
HELD_OUT = 5
OF_SAMPLE = "raise sample.rows: a fifth is held out, half of the rest is the most"


def run(settings: Settings, paths: Paths) -> None:
    """Write the study's table, picture and decision, and models/sample_size.json."""
    spec = model_pipeline.create_spec(settings, load_schema(paths.root / settings.schema_))
    fit, size = (
        sampling.read_role(settings, paths, role, columns.list_needed_columns(spec)) for role in ("train", "validation")
    )
    available = sampling.count_available(sampling.list_samples(settings, paths, "train"))
    decision = study(settings, paths.root, spec, (fit, size), available)
    files.write_csv(paths.learning_curve, decision["sizes"])
    files.write_json(paths.learning_curve.with_suffix(".json"), decision)
    plots.plot_learning_curve(paths.learning_curve.with_suffix(".png"), decision)
    files.write_json(paths.sample_size, {"rows": decision["rows"]})
    for words in filter(None, (decision["reason"], decision["sanity"])):
        log.info("%s", words)


def study(
    settings: Settings, root: Path, spec: dict[str, Any], rows: tuple[pa.RecordBatch, pa.RecordBatch], available: int
) -> dict[str, Any]:
    """Run the study on the project's dask client, and decide.

    Parameters
    ----------
    rows
        Those of the `train` months and those of the `validation` months.
    available
        How many the `train` months have.
    """
    wanted, (fit, size) = settings.learning_curve, rows
    pool, held_out = fit.slice(0, len(fit) - len(fit) // HELD_OUT), fit.slice(len(fit) - len(fit) // HELD_OUT)
    largest = at_least(wanted.smallest, min(len(pool) // 2, wanted.max_rows or len(pool)), OF_SAMPLE)
    segment, parts = examples(settings, spec, {"pool": pool, "held_out": held_out, "validation": size})
    orders = fits.shuffle_rows(parts["pool"].labels, wanted.repeats, wanted.smallest, settings.sample.seed)
    pipeline, first = model_pipeline.build_pipeline(spec["features"], settings.train, root), pool.slice(0, largest)
    cost = fits.Cost.of(pipeline, lambda: pyfunc.build_matrix(first, spec["features"]), parts["pool"].labels[:largest])
    bound = learning_curve.Bound.of(len(fit), wanted.max_rows)
    most = at_least(wanted.smallest, min(largest, bound.rows), "raise learning_curve.max_rows")
    of_sizes = fits.choose_sizes(wanted.smallest, most, wanted.sizes)
    with cluster.connect_client(settings.cluster.n_workers), joblib.parallel_config("dask"):
        made = fits.run_study(pipeline, parts.pop("pool"), parts, of_sizes, orders)
    return {
        **learning_curve.choose_size(made, wanted.min_gain, bound, cost.parameters),
        "bytes_a_row": cost.bytes_a_row,
        "segment": segment,
        "available": available,
        "power_law": learning_curve.extrapolate_skill(made, available),
    }


def at_least(smallest: int, largest: int, otherwise: str) -> int:
    """The largest size to study, unless it is too small; `otherwise` is what helps then."""
    if largest >= smallest:
        return largest
    what = f"The largest sample to study has {largest:,} rows, fewer than learning_curve.smallest, {smallest:,}."
    raise UsageError(what, f"{learning_curve.WHERE}.smallest", f"Lower it, or {otherwise}.")


def examples(
    settings: Settings, spec: dict[str, Any], parts: Mapping[str, pa.RecordBatch]
) -> tuple[str, dict[str, fits.Examples]]:
    """The rows as the study takes them, and its segment: the baseline's group with most tips in the pool."""
    target, by = spec["target"], settings.evaluate.baseline
    rule = baseline.fit_baseline(parts["pool"], target, by)
    groups = {name: baseline.group_rows(part, by) for name, part in parts.items()}
    labels = {name: metrics.read_labels(part, target)[0] for name, part in parts.items()}
    names, codes = groups["pool"]
    segment = names[int(np.argmax(np.bincount(codes, labels["pool"])))]
    return segment, {
        name: fits.Examples(
            pyfunc.build_matrix(part, spec["features"]),
            labels[name],
            times.rank_values(times.read_days(part[spec["time"]])),
            np.array(groups[name][0])[groups[name][1]] == segment,
            baseline.predict_baseline(part, rule),
        )
        for name, part in parts.items()
    }
