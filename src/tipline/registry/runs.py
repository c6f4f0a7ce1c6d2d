"""Runs in MLflow: one per training, with the model; one per learning curve, evaluation and scored month.

Each is looked up by the digest of what it shows, and created only if it is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from tipline import files, git
from tipline.errors import TiplineError, UsageError
from tipline.model import artifact, external, loader, pyfunc
from tipline.paths import month_folder
from tipline.registry import store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.model_card import ModelEntry
    from tipline.registry.store import Client, Run

    Steps = Mapping[int, Mapping[str, float | None]]  # metrics by step

MODEL_URI = "tipline.model_uri"  # tag of training runs: the address of the logged model
EXTERNAL_SPEC = "tipline.model"  # tag of runs and versions of models that tipline did not make: their model.json
DVC_EXPERIMENT = "dvc.exp"  # tag of runs and versions: the DVC experiments that led to them, joined with commas
NOTE = "mlflow.note.content"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "skops")
# Kind of feature -> its types in the signature and in the example.
TYPES = {"category": ("string", "str"), "hour": ("datetime", "datetime64[ns]"), "number": ("double", "float64")}
FIGURES = ("log_loss", "skill", "auc")
# Figures of the learning curve that are in its table alone; MLflow's page draws a chart for every metric.
IN_TABLE = (".brier", ".segment.auc")
TODO = "Run: dvc repro"


@dataclass(frozen=True)
class Record:
    """What one run shows. `is_trial` means that DVC experiments lead to such runs."""

    experiment: str
    name: str
    digest: str
    params: Mapping[str, Any]
    steps: Steps
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: Sequence[Path] = ()
    is_trial: bool = True


def ensure_runs(client: Client, paths: Paths, records: Sequence[Record]) -> list[Run]:
    """Return the runs of records of one experiment; create those that are missing."""
    if not records:
        return []
    experiment = store.ensure_experiment(client, paths, records[0].experiment)
    existing = store.find_runs(client, experiment, records[0].digest if len(records) == 1 else None)
    return [ensure_run(client, experiment, record, existing.get(record.digest)) for record in records]


def ensure_run(
    client: Client, experiment: str, record: Record, run: Run | None, log_model: Callable[[str], None] | None = None
) -> Run:
    """Return the finished run of a record; create one, or complete the one that a killed process left."""
    if run is not None and store.is_finished(run):
        return add_experiment_name(client, run) if record.is_trial else run
    if run is None:
        revision, trial = git.get_revision(), os.environ.get("DVC_EXP_NAME") if record.is_trial else None
        tags = {"tipline.git": revision, "mlflow.source.git.commit": revision.removesuffix("-dirty"), **record.tags}
        tags |= {"dvc.stage": os.environ.get("DVC_STAGE", record.experiment), store.DIGEST: record.digest}
        tags |= {DVC_EXPERIMENT: trial} if trial else {}
        run = client.create_run(experiment, run_name=record.name, tags=tags)
    run_id = str(run.info.run_id)
    store.check_artifact_host(str(run.info.artifact_uri), f"run {record.name}")
    try:
        log_metrics(client, run_id, record.steps, record.params)
        for path in record.artifacts:
            client.log_artifact(run_id, str(path))
        if log_model is not None:
            log_model(run_id)
    except BaseException:
        with contextlib.suppress(MlflowException):  # the first error matters more
            client.set_terminated(run_id, status="FAILED")
        raise
    client.set_terminated(run_id)
    return client.get_run(run_id)


def log_metrics(client: Client, run_id: str, steps: Steps, params: Mapping[str, Any]) -> None:
    """Log metrics by step, and params, in one call; a metric that is None is left out."""
    now = int(time.time() * 1000)
    pairs = [(step, name, value) for step, values in steps.items() for name, value in values.items()]
    metrics = [Metric(name, float(value), now, step) for step, name, value in pairs if value is not None]
    client.log_batch(run_id, metrics, [Param(name, str(value)) for name, value in params.items()])


def add_experiment_name(client: Client, run: Run) -> Run:
    """Add the DVC experiment that runs now to those that led to a run; return the run with it."""
    now, names = os.environ.get("DVC_EXP_NAME"), list_experiment_names(run)
    if not now or now in names:
        return run
    client.set_tag(run.info.run_id, DVC_EXPERIMENT, ", ".join([*names, now]))
    return client.get_run(run.info.run_id)


def list_experiment_names(run: Run) -> list[str]:
    """Return the DVC experiments that led to a run."""
    return [name for name in run.data.tags.get(DVC_EXPERIMENT, "").split(", ") if name]


def format_run_link(text: str, run: Run) -> str:
    """Return a link to a run's page."""
    return f"[{text}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})"


# ---- training ----


def ensure_training_run(client: Client, paths: Paths, folder: Path) -> Run:
    """Return the run of the model in a folder; create it and log the model if there is none of its digest."""
    digest, is_external = artifact.read_digest(folder), (folder / external.FOLDER).is_dir()
    if is_external:
        name = f"{files.read_json(folder / pyfunc.SPEC, TODO)['name']}, not made by tipline"
        tags = {EXTERNAL_SPEC: (folder / pyfunc.SPEC).read_text(encoding="utf-8")}
        record = Record("train", name, digest, {}, {}, tags, is_trial=False)
    else:
        training = files.read_json(folder / artifact.TRAINING, "Run: dvc repro train")
        is_trial = folder == paths.challenger  # and not a champion that is restored
        pictures = [paths.learning_curve.with_suffix(".png")] if is_trial else []
        tags, metrics = {"tipline.data": training["data"]}, {0: training["metrics"]}
        record = Record("train", training["name"], digest, training["params"], metrics, tags, pictures, is_trial)

    def log_model(run_id: str) -> None:
        if is_external:
            client.log_artifacts(run_id, str(folder / external.FOLDER), "model")
            uri = f"runs:/{run_id}/model"
        else:
            with mlflow.start_run(run_id=run_id):
                uri = log_own_model(folder)
        client.set_tag(run_id, MODEL_URI, uri)

    experiment = store.ensure_experiment(client, paths, record.experiment)
    return ensure_run(client, experiment, record, store.find_runs(client, experiment, digest).get(digest), log_model)


def log_own_model(folder: Path) -> str:
    """Log a model that tipline made into the active run, as a pyfunc from code; return its address."""
    from mlflow.models import ModelSignature  # noqa: PLC0415 (seconds, and only for a new model)
    from mlflow.types import ColSpec, Schema  # noqa: PLC0415

    features = files.read_json(folder / pyfunc.SPEC, TODO)["features"]
    training = files.read_json(folder / artifact.TRAINING, TODO)
    inputs = Schema([ColSpec(TYPES[feature["kind"]][0], feature["name"]) for feature in features])
    used = training.get("libraries", {})  # when a model is logged again, other versions may be installed
    with tempfile.TemporaryDirectory() as scratch:
        # MLflow follows symlinks, and DVC's cache, which they may point to, has names without an ending.
        copies = {
            name: shutil.copyfile(folder / name, Path(scratch, name)) for name in (*artifact.FILES, artifact.TRAINING)
        }
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(copies.pop(artifact.CODE)),
            artifacts={name: str(copy) for name, copy in copies.items()},
            signature=ModelSignature(inputs, Schema([ColSpec("float", pyfunc.OUTPUT)])),
            input_example=create_example(features, training["example"]),
            pip_requirements=[f"{name}=={used.get(name) or installed_version(name)}" for name in REQUIREMENTS],
        )
        if logged.signature is None:  # MLflow only warns (https://github.com/mlflow/mlflow/issues/25593)
            raise TiplineError("MLflow logged the model without a signature.", str(folder), "Please report it.")
        uri = str(logged.model_uri)
        stored = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(Path(scratch, "stored"))))
        loader.remove_leftovers(stored)
        mlflow.set_tag(loader.FILES, loader.hash_files(loader.read_files(stored, uri)))
    return uri


def create_example(features: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a few rows with the types of the signature."""
    import pandas as pd  # noqa: PLC0415 (only for a new model)

    return pd.DataFrame(list(rows)).astype({feature["name"]: TYPES[feature["kind"]][1] for feature in features})


def find_training_run(client: Client, wanted: str) -> Run:
    """Return the run of a training with this id, name or DVC experiment; raise UsageError unless there is just one."""
    where = f"{store.PREFIX}train"
    experiment = client.get_experiment_by_name(where)
    runs = store.find_runs(client, experiment.experiment_id).values() if experiment else []
    names = ((run, {run.info.run_id, run.info.run_name, *list_experiment_names(run)}) for run in runs)
    matches = [run for run, its_names in names if wanted in its_names and MODEL_URI in run.data.tags]
    if not matches:
        todo = "Name a version number, or a run by its id, its name or the DVC experiment that made it (mlflow ui)."
        raise UsageError(f"There is no run {wanted!r} with a model.", f"MLflow's experiment {where}", todo)
    if len(matches) > 1:
        todo = f"Name one by its id: {', '.join(run.info.run_id for run in matches)}"
        raise UsageError(f"{len(matches)} runs are called {wanted!r}.", f"MLflow's experiment {where}", todo)
    return matches[0]


# ---- learning curve, evaluation, months ----


def describe_curve(settings: Settings, paths: Paths) -> Record:
    """Return the record of the learning curve; its sizes are the steps of its metrics."""
    decision = files.read_json(paths.learning_curve.with_suffix(".json"), TODO)
    sizes, baseline = {size["rows"]: size for size in decision["sizes"]}, decision["baseline"]
    shown = [name for name in decision["sizes"][0] if name != "rows" and not name.endswith(IN_TABLE)]
    steps = {rows: {name: size[name] for name in shown} for rows, size in sizes.items()}
    steps[0] = {f"{part}.baseline_log_loss": baseline[f"{part}.log_loss"] for part in ("held_out", "validation")}
    params = artifact.describe_settings(settings) | {name: decision[name] for name in ("min_gain", "rows", "segment")}
    params["months"] = ", ".join(settings.sample.get_months("train"))
    # The seconds of the fits differ each time that the same study is made.
    digest = files.hash_json({**decision, "sizes": [{**size, "fit_seconds": None} for size in decision["sizes"]]})
    title, pictures = artifact.format_title(settings, decision["rows"]), [paths.learning_curve.with_suffix(".png")]
    tags = {NOTE: decision["reason"]}
    return Record("learning_curve", title, digest, params, steps, tags, [paths.learning_curve, *pictures])


def describe_evaluation(settings: Settings, paths: Paths, entries: Mapping[str, ModelEntry]) -> Record:
    """Return the record of challenger, champion, baseline and majority on the test months."""
    report = files.read_json(paths.evaluation, TODO)
    months, gate, gain = ", ".join(report["months"]), report["gate"], report["gate"]["gain"] or {}
    metrics = collect_test_metrics(report, "challenger")
    metrics |= {f"test.champion_{name}": report["champion"][name] for name in FIGURES}
    metrics |= {"test.majority_log_loss": report["majority"]["log_loss"], "gate.promote": float(gate["promote"])}
    metrics |= {"gate.gain": gain.get("value"), "gate.gain_lower": gain.get("lower")}
    digests = {role: entry.digest for role, entry in entries.items()}
    params = {"months": months, "rows": report["rows"]} | {f"{role}_digest": digests[role][:12] for role in digests}
    text = " · ".join(f"{role}: {entry.link}" for role, entry in entries.items())
    tags = {NOTE: f"{report['verdict']} {gate['words']}\n\n{text}"}
    title, digest = f"{settings.train.estimator} on {months}", files.hash_json([report, digests])
    pictures = [paths.evaluation, paths.evaluation.with_suffix(".png")]
    return Record("evaluate", title, digest, params, {0: metrics}, tags, pictures)


def collect_test_metrics(report: Mapping[str, Any], role: str) -> dict[str, float | None]:
    """Return a model's figures on the test months, named like those of its training."""
    baseline = {"test.baseline_log_loss": report["baseline"]["log_loss"]}
    return {f"test.{name}": report[role][name] for name in FIGURES} | baseline


def describe_months(settings: Settings, paths: Paths, link: str) -> dict[str, Record]:
    """Return the record of each scored month; a month that another model scores is another run."""
    # Not the manifest's version: in another registry the same model has another number.
    version, records = files.read_json(paths.champion_ref, TODO)["version"], {}
    for figures in files.read_json(paths.monitoring / "months.json", TODO):
        month = figures["month"]
        if month not in settings.months:
            continue
        key = files.read_json(month_folder(paths.predictions, month) / files.MANIFEST, TODO)["key"]
        drift = {**figures["drift"]["features"], "score": figures["drift"]["score"]} if figures["drift"] else {}
        metrics = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
        metrics |= {f"psi.{name}": value["psi"] for name, value in drift.items()}
        title = f"{month}, " + (f"model {key['model'][:12]}" if version is None else f"version {version}")
        params = {"month": month, "role": figures["role"] or "-", "version": version, "model_digest": key["model"][:12]}
        tags = {NOTE: f"{figures['verdict']}: {figures['reason']}\n\n{link}", "tipline.verdict": figures["verdict"]}
        pictures = [paths.monitoring / name for name in ("index.html", "monitoring.png")]
        digest = files.hash_json([figures, key])
        records[month] = Record("monitor", title, digest, params, {0: metrics}, tags, pictures, is_trial=False)
    return records
