"""learning_curve: how many rows the model needs, fitted on `train` and scored on `validation` months."""

import logging

import joblib
import pyarrow.parquet as pq

from tipline import cluster, files
from tipline.config import Settings
from tipline.evaluation import baseline, metrics
from tipline.ingest import columns
from tipline.ingest.schema import load_schema
from tipline.model import artifact, persistence, pipeline
from tipline.monitoring import plots
from tipline.paths import Paths
from tipline.training import learning_curve, sampling

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths) -> None:
    sampling.remove_unlisted_samples(settings, paths)
    schema, curve = load_schema(paths.root / settings.schema_), settings.learning_curve
    spec = pipeline.create_spec(settings, schema)
    types = columns.list_needed_columns(spec)
    pool, rows = (sampling.read_role(settings, paths, role, types) for role in ("train", "validation"))
    frame, labels = artifact.read_frame(pool, spec["inputs"]), metrics.read_labels(pool, spec["target"])[0]
    validation = learning_curve.Examples(
        artifact.read_frame(rows, spec["inputs"]),
        metrics.read_labels(rows, spec["target"])[0],
        metrics.rank_values(metrics.read_days(rows[spec["time"]])),
        baseline.predict_baseline(rows, baseline.fit_baseline(pool, spec["target"], settings.evaluate.baseline)),
    )
    sizes = learning_curve.choose_sizes(curve, len(pool))
    orders = learning_curve.shuffle_rows(labels, curve.repeats, curve.smallest, settings.sample.seed)
    built = pipeline.build_pipeline(settings, schema, paths.root, frame)
    persistence.try_pipeline(built, frame, labels)
    with (
        cluster.connect_client(settings.cluster.n_workers, settings.cluster.factory) as client,
        joblib.parallel_config("dask", client=client, scatter=[frame, labels, validation]),
    ):
        study = learning_curve.run_study(built, frame, labels, validation, sizes, orders)
    samples = sampling.list_samples(settings, paths, "train")
    available = sum(int(pq.read_metadata(path).metadata[sampling.AVAILABLE]) for path in samples)
    decision = learning_curve.choose_rows(study, curve.min_gain, len(pool), curve.max_rows)
    decision = learning_curve.extend_decision(study, decision, available)
    files.write_csv(paths.learning_curve, decision["sizes"])
    files.write_json(paths.learning_curve.with_suffix(".json"), decision)
    plots.plot_learning_curve(paths.learning_curve.with_suffix(".png"), decision)
    files.write_json(paths.sample_size, {"rows": decision["rows"]})
    log.info("%s", decision["reason"])
