"""Runs in MLflow: one per training, with the model; one per learning curve, evaluation and scored month.

Each is looked up by the digest of what it shows, and created only if it is missing.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import mlflow

from tipline import files, git
from tipline.config import Settings
from tipline.errors import UsageError
from tipline.model import artifact, external, loader, pyfunc
from tipline.paths import Paths, month_folder
from tipline.registry import store
from tipline.registry.store import Client, Run

MODEL_URI = "tipline.model_uri"  # tag of training runs: the address of the logged model
EXTERNAL_SPEC = "tipline.model"  # tag of runs and versions of models that tipline did not make: their model.json
DVC_EXPERIMENT = "dvc.exp"  # tag of training runs: the last DVC experiment that led to the model
NOTE = "mlflow.note.content"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "skops")
TYPES = {"category": "string", "timestamp": "datetime"}  # in the signature; numbers are doubles
FIGURES = ("log_loss", "skill", "auc")
TODO = "Run: dvc repro"


@dataclass(frozen=True)
class Record:
    name: str
    digest: str
    params: Mapping[str, Any]
    metrics: Mapping[int, Mapping[str, float | None]]  # by step
    tags: Mapping[str, str]
    artifacts: Sequence[Path] = ()
    model: Path | None = None  # the folder of a model to log


def ensure_runs(client: Client, paths: Paths, experiment: str, *records: Record) -> list[Run]:
    """Return the finished runs of records; create those that are missing, complete those that a killed process left."""
    experiment_id = store.ensure_experiment(client, paths, experiment)
    existing = store.find_runs(experiment_id, records[0].digest if len(records) == 1 else None)
    runs = [(record, existing.get(record.digest)) for record in records]
    return [
        run if run and run.info.status == store.FINISHED else log_run(client, experiment_id, record, run)
        for record, run in runs
    ]


def log_run(client: Client, experiment_id: str, record: Record, run: Run | None) -> Run:
    if run is None:
        revision = git.get_revision()
        tags = {"tipline.git": revision, "mlflow.source.git.commit": revision.removesuffix("-dirty"), **record.tags}
        tags |= {"dvc.stage": os.environ.get("DVC_STAGE", "none"), store.DIGEST: record.digest}
        run = client.create_run(experiment_id, run_name=record.name, tags=tags)
    store.check_artifact_host(str(run.info.artifact_uri), f"run {record.name}")
    with mlflow.start_run(run_id=run.info.run_id):
        mlflow.log_params(dict(record.params))
        for step, values in record.metrics.items():
            mlflow.log_metrics({name: value for name, value in values.items() if value is not None}, step)
        for path in record.artifacts:
            mlflow.log_artifact(str(path))
        if record.model is not None:
            mlflow.set_tag(MODEL_URI, log_model(run.info.run_id, record.model))
    return client.get_run(run.info.run_id)


def format_run_link(text: str, run: Run) -> str:
    return f"[{text}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})"


# ---- training ----


def ensure_training_run(client: Client, paths: Paths, folder: Path) -> Run:
    """Return the run of the model in a folder; create it and log the model if there is none of its digest."""
    digest = artifact.read_digest(folder)
    if (folder / external.FOLDER).is_dir():
        name = f"{files.read_json(folder / pyfunc.SPEC, TODO)['name']}, not made by tipline"
        tags = {EXTERNAL_SPEC: (folder / pyfunc.SPEC).read_text(encoding="utf-8")}
        record = Record(name, digest, {}, {}, tags, model=folder)
    else:
        training = files.read_json(folder / artifact.TRAINING, "Run: dvc repro train")
        pictures = [paths.learning_curve.with_suffix(".png")] if folder == paths.challenger else []
        tags, metrics = {"tipline.data": training["data"]}, {0: training["metrics"]}
        record = Record(training["name"], digest, training["params"], metrics, tags, pictures, folder)
    return ensure_runs(client, paths, "train", record)[0]


def log_model(run_id: str, folder: Path) -> str:
    """Log a model into the active run, one that tipline made as a pyfunc from code; return its address."""
    import pandas as pd  # noqa: PLC0415 (seconds, and only for a new model)
    from mlflow.models import ModelSignature  # noqa: PLC0415
    from mlflow.types import ColSpec, Schema  # noqa: PLC0415

    if (folder / external.FOLDER).is_dir():
        mlflow.log_artifacts(str(folder / external.FOLDER), "model")
        return f"runs:/{run_id}/model"
    columns = files.read_json(folder / pyfunc.SPEC, TODO)["inputs"]
    training = files.read_json(folder / artifact.TRAINING, TODO)
    inputs = Schema([ColSpec(TYPES.get(column["type"], "double"), column["name"]) for column in columns])
    # As in training: when a model is logged again, other versions may be installed.
    versions = {name: installed_version(name) for name in REQUIREMENTS} | training["libraries"]
    with tempfile.TemporaryDirectory() as scratch:
        # MLflow follows symlinks, and DVC's cache, which they may point to, has names without an ending.
        names = (*artifact.list_files(folder), artifact.TRAINING)
        copies = {name: str(shutil.copyfile(folder / name, Path(scratch, name))) for name in names}
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(shutil.copyfile(pyfunc.__file__, Path(scratch, loader.WRAPPER))),
            artifacts=copies,
            signature=ModelSignature(inputs, Schema([ColSpec("float", pyfunc.OUTPUT)])),
            input_example=pyfunc.normalize_frame(pd.DataFrame(training["example"]), columns),
            pip_requirements=[*(f"{name}=={version}" for name, version in versions.items()), *training["requirements"]],
        )
        uri = str(logged.model_uri)
        stored = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(Path(scratch, "stored"))))
        loader.remove_leftovers(stored)
        mlflow.set_tag(loader.FILES, loader.hash_files(loader.read_files(stored, uri)))
    return uri


def list_training_runs(client: Client) -> list[Run]:
    experiment = client.get_experiment_by_name(f"{store.PREFIX}train")
    found = store.find_runs(experiment.experiment_id).values() if experiment else ()
    return [run for run in found if MODEL_URI in run.data.tags]


def find_training_run(client: Client, wanted: str) -> Run:
    """Return the run of a training with this id, name or DVC experiment; raise UsageError unless there is just one."""
    matches = [
        run
        for run in list_training_runs(client)
        if wanted in (run.info.run_id, run.info.run_name, run.data.tags.get(DVC_EXPERIMENT))
    ]
    if len(matches) != 1:
        what = f"{len(matches)} runs with a model are called {wanted!r}."
        ids = ", ".join(run.info.run_id for run in matches) or "none"
        todo = f"Name a version, or a run by its id, name or DVC experiment (mlflow ui). The ids of these: {ids}"
        raise UsageError(what, f"MLflow's experiment {store.PREFIX}train", todo)
    return matches[0]


# ---- learning curve, evaluation, months ----


def describe_curve(settings: Settings, paths: Paths) -> Record:
    """Return the record of the learning curve; its sizes are the steps of its metrics."""
    decision = files.read_json(paths.learning_curve.with_suffix(".json"), TODO)
    shown = [*FIGURES, "skill_low", "skill_high"]
    steps = {size["rows"]: {name: size[name] for name in shown} for size in decision["sizes"]}
    steps[0] = {"baseline_log_loss": decision["baseline"]["log_loss"]}
    params = artifact.describe_settings(settings) | {name: decision[name] for name in ("min_gain", "rows")}
    params["months"] = ", ".join(settings.sample.get_months("train"))
    digest = files.hash_json([params, list(steps.items()), decision["reason"]])  # without the seconds of the fits
    title, tags = artifact.format_title(settings, decision["rows"]), {NOTE: decision["reason"]}
    return Record(title, digest, params, steps, tags, [paths.learning_curve, paths.learning_curve.with_suffix(".png")])


def describe_evaluation(settings: Settings, paths: Paths, links: Mapping[str, str]) -> Record:
    """Return the record of challenger, champion and baseline on the test months; `links` are by role."""
    report = files.read_json(paths.evaluation, TODO)
    months, gate, gain = ", ".join(report["months"]), report["gate"], report["gate"]["gain"] or {}
    metrics = collect_test_metrics(report, "challenger")
    metrics |= {f"test.champion_{name}": report["champion"][name] for name in FIGURES}
    metrics |= {"gate.promote": float(gate["promote"])}
    metrics |= {"gate.gain": gain.get("value"), "gate.gain_lower": gain.get("lower")}
    params = {"months": months, "rows": report["rows"]}
    params |= {f"{role}_digest": digest[:12] for role, digest in report["made"].items()}
    text = " · ".join(f"{role}: {link}" for role, link in links.items())
    tags = {NOTE: f"{report['verdict']} {gate['words']}\n\n{text}"}
    report_and_picture = [paths.evaluation, paths.evaluation.with_suffix(".png")]
    title, digest = f"{settings.train.estimator} on {months}", files.hash_json(report)
    return Record(title, digest, params, {0: metrics}, tags, report_and_picture)


def collect_test_metrics(report: Mapping[str, Any], role: str) -> dict[str, float | None]:
    """Return a model's figures on the test months, named like those of its training."""
    baseline = {"test.baseline_log_loss": report["baseline"]["log_loss"]}
    return {f"test.{name}": report[role][name] for name in FIGURES} | baseline


def describe_months(paths: Paths, link: str) -> dict[str, Record]:
    """Return the record of each scored month; a month that another model scores is another run."""
    # Not the manifest's version: in another registry the same model has another number.
    version, records = files.read_json(paths.champion_ref, TODO)["version"], {}
    for figures in files.read_json(paths.monitoring / "months.json", TODO):
        month = figures["month"]
        key = files.read_json(month_folder(paths.predictions, month) / files.MANIFEST, TODO)["key"]
        drift = {**figures["drift"]["features"], "score": figures["drift"]["score"]} if figures["drift"] else {}
        metrics = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
        metrics |= {f"psi.{name}": value["psi"] for name, value in drift.items()}
        params = {"month": month, "role": figures["role"] or "-", "version": version, "model_digest": key["model"][:12]}
        tags = {NOTE: f"{figures['verdict']}: {figures['reason']}\n\n{link}", "tipline.verdict": figures["verdict"]}
        pictures = [paths.monitoring / name for name in ("index.html", "monitoring.png")]
        shown = {name: value for name, value in figures.items() if name != "made_from"}  # a digest of the key
        title, digest = f"{month}, version {version}", files.hash_json([shown, key])
        records[month] = Record(title, digest, params, {0: metrics}, tags, pictures)
    return records
