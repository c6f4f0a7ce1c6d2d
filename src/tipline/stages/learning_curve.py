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
from tipline.model import artifact
from tipline.model.persistence import try_pipeline
from tipline.model.pipeline import build_pipeline, create_spec
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
    schema, curve = load_schema(paths.root / settings.schema_), settings.learning_curve
    spec = create_spec(settings, schema)
    types = columns.list_needed_columns(spec)
    train, validation = (sampling.read_role(settings, paths, role, types) for role in ("train", "validation"))
    pool = train.slice(0, len(train) - len(train) // HELD_OUT)
    parts = {"pool": pool, "held_out": train.slice(len(pool)), "validation": validation}
    segment, examples = build_examples(spec, settings.evaluate.baseline, parts)
    fitted_on, sizes = examples.pop("pool"), learning_curve.choose_sizes(curve, len(pool))
    orders = learning_curve.shuffle_rows(fitted_on.labels, curve.repeats, curve.smallest, settings.sample.seed)
    built = build_pipeline(settings, schema, paths.root, fitted_on.frame)
    try_pipeline(built, fitted_on.frame, fitted_on.labels)
    plugin = learning_curve.CodePlugin(built.code)
    with (
        cluster.connect_client(settings.cluster.n_workers) as client,
        cluster.register_plugin(client, plugin, f"tipline-code-{files.create_token()}"),
        joblib.parallel_config("dask", scatter=[fitted_on, examples]),
    ):
        study = learning_curve.run_study(built.pipeline, fitted_on, examples, sizes, orders)
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
            artifact.read_frame(part, spec["inputs"]),
            labels[name],
            metrics.rank_values(metrics.read_days(part[spec["time"]])),
            np.array(groups[name][0])[groups[name][1]] == segment,
            baseline.predict_baseline(part, rule),
        )
        for name, part in parts.items()
    }
