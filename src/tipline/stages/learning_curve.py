"""learning_curve: how many rows the model needs. Fits on the `train` months, scores on the `validation` months."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pyarrow.parquet as pq

from tipline import cluster, files
from tipline.evaluation import baseline, metrics
from tipline.ingest import columns
from tipline.ingest.schema import load_schema
from tipline.model import pyfunc
from tipline.model.pipeline import build_pipeline, create_spec, try_pipeline
from tipline.monitoring import plots
from tipline.training import learning_curve, sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)

# A fifth of the `train` rows is held out: rows of the same months that no repeat is fitted on.
HELD_OUT = 5


def run(settings: Settings, paths: Paths) -> None:
    """Write the study's table, picture and decision, and models/sample_size.json."""
    sampling.remove_unlisted_samples(settings, paths)
    spec, curve = create_spec(settings, load_schema(paths.root / settings.schema_)), settings.learning_curve
    types = columns.list_needed_columns(spec)
    train, validation = (sampling.read_role(settings, paths, role, types) for role in ("train", "validation"))
    pool = train.slice(0, len(train) - len(train) // HELD_OUT)
    parts = {"pool": pool, "held_out": train.slice(len(pool)), "validation": validation}
    segment, examples = build_examples(spec, settings.evaluate.baseline, parts)
    fitted_on, sizes = examples.pop("pool"), learning_curve.choose_sizes(curve, len(pool))
    orders = learning_curve.shuffle_rows(fitted_on.labels, curve.repeats, curve.smallest, settings.sample.seed)
    pipeline = build_pipeline(spec["features"], settings.train, paths.root)
    try_pipeline(pipeline, fitted_on.inputs, fitted_on.labels)
    client = cluster.connect_client(settings.cluster.n_workers)
    with client, joblib.parallel_config("dask", scatter=[fitted_on, examples]):
        study = learning_curve.run_study(pipeline, fitted_on, examples, sizes, orders)
    samples = sampling.list_samples(settings, paths, "train")
    available = sum(int(pq.read_metadata(path).metadata[sampling.AVAILABLE]) for path in samples)
    decision = {
        **learning_curve.choose_rows(study, curve.min_gain, len(train), curve.max_rows),
        "segment": segment,
        "available": available,
        "power_law": learning_curve.extrapolate_skill(study, available),
    }
    files.write_csv(paths.learning_curve, decision["sizes"])
    files.write_json(paths.learning_curve.with_suffix(".json"), decision)
    plots.plot_learning_curve(paths.learning_curve.with_suffix(".png"), decision)
    files.write_json(paths.sample_size, {"rows": decision["rows"]})
    log.info("%s", decision["reason"])


def build_examples(
    spec: Mapping[str, Any], by: tuple[str, ...], parts: Mapping[str, pa.RecordBatch]
) -> tuple[str, dict[str, learning_curve.Examples]]:
    """Return the segment, which is the baseline's group with most positive labels in the pool, and each part's rows."""
    rule = baseline.fit_baseline(parts["pool"], spec["target"], by)
    groups = {name: baseline.group_rows(part, by) for name, part in parts.items()}
    labels = {name: metrics.read_labels(part, spec["target"])[0] for name, part in parts.items()}
    names, codes = groups["pool"]
    segment = names[int(np.argmax(np.bincount(codes, labels["pool"])))]
    return segment, {
        name: learning_curve.Examples(
            pyfunc.build_matrix(part, spec["features"]),
            labels[name],
            metrics.rank_values(metrics.read_days(part[spec["time"]])),
            np.array(groups[name][0])[groups[name][1]] == segment,
            baseline.predict_baseline(part, rule),
        )
        for name, part in parts.items()
    }
