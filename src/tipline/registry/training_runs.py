"""The run of a training, with its model as a pyfunc; looked up by the model's digest, made if it is not there."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from tipline import files
from tipline.errors import TiplineError, UsageError
from tipline.model import artifact, external, loader, pyfunc
from tipline.registry import store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tipline.paths import Paths
    from tipline.registry.store import Client, Run

EXPERIMENT = "train"
# On runs: the address of the logged model.
MODEL = "tipline.model_uri"
# On runs and versions of models that tipline did not make: what their model.json says.
FOREIGN = "tipline.model"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "skops")
SPEC_TYPES = {"category": DataType.string, "hour": DataType.datetime, "number": DataType.double}


def ensure_run(client: Client, paths: Paths, folder: Path) -> Run:
    """The run of the model in a folder, the model logged in it; made if there is none of this digest."""
    digest = artifact.read_digest(folder)
    experiment = store.ensure_experiment(client, paths, EXPERIMENT)
    found = store.find_run(client, experiment, digest)
    of_now = folder == paths.challenger  # a champion that is brought back was not made by the experiment that runs now
    if found is not None and store.is_finished(found) and MODEL in found.data.tags:
        if of_now:
            store.add_experiment_name(client, found)
        return client.get_run(found.info.run_id)
    shown, tags = told(folder), store.collect_lineage(EXPERIMENT)
    if not of_now:
        tags.pop(store.EXPERIMENT, None)
    tags |= {store.DIGEST: digest, **shown["tags"]}
    with store.open_run(client, experiment, shown["name"], tags, found) as run:
        store.log_batch(client, run, shown["metrics"], shown["params"])
        if of_now:
            client.log_artifact(run, str(paths.learning_curve.with_suffix(".png")))
        client.set_tag(run, MODEL, log_files(client, folder, run))
    return client.get_run(run)


def told(folder: Path) -> dict[str, Any]:
    """What the run of a model shows: of one that tipline did not make, its name."""
    if (folder / external.FOLDER).is_dir():
        spec = (folder / pyfunc.SPEC).read_text(encoding="utf-8")
        name = f"{json.loads(spec)['name']}, not made by tipline"
        return {"name": name, "metrics": {}, "params": {}, "tags": {FOREIGN: spec}}
    training: dict[str, Any] = files.read_json(folder / artifact.TRAINING, "Run: dvc repro train")
    return training | {"tags": {"tipline.data": training["data"]}}


def log_files(client: Client, folder: Path, run: str) -> str:
    """Log a model into a run: our own as a pyfunc, another as the files that MLflow had; return its address."""
    if (folder / external.FOLDER).is_dir():
        client.log_artifacts(run, str(folder / external.FOLDER), "model")
        return f"runs:/{run}/model"
    with mlflow.start_run(run_id=run):
        return log_pyfunc(folder)


def log_pyfunc(folder: Path) -> str:
    """Log a model of our own, from code, into the active run; return its address."""
    spec = json.loads((folder / pyfunc.SPEC).read_text(encoding="utf-8"))
    training = told(folder)
    used = training.get("libraries", {})  # a lost registry is given the model again when others are installed
    with uncompiled():
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(folder / artifact.CODE),
            artifacts={name: str(folder / name) for name in (pyfunc.ESTIMATOR, pyfunc.SPEC, artifact.TRAINING)},
            signature=signature(spec["features"]),
            input_example=example(spec["features"], training["example"]),
            pip_requirements=[f"{package}=={used.get(package) or installed(package)}" for package in REQUIREMENTS],
        )
    address = str(logged.model_uri)
    if logged.signature is None:  # MLflow only warns (https://github.com/mlflow/mlflow/issues/25593)
        raise TiplineError("MLflow logged the model without a signature.", str(folder), "Please report it.")
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=scratch))
        loader.remove_leftovers(kept)
        mlflow.set_tag(loader.FILES, loader.hash_files(loader.read_files(kept, address)))
    return address


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Let Python keep no compiled code: MLflow imports the model's where it lies, which is an output of DVC's."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def signature(features: Sequence[Mapping[str, Any]]) -> ModelSignature:
    """Input: the model's columns of prepared trips, as text, times and doubles. Output: float32 probabilities."""
    columns = [ColSpec(SPEC_TYPES[feature["kind"]], feature["name"]) for feature in features]
    return ModelSignature(Schema(columns), Schema([ColSpec(DataType.float, pyfunc.OUTPUT)]))


def example(features: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A few rows as the signature wants them."""
    types = {"category": "str", "hour": "datetime64[ns]", "number": "float64"}
    return pd.DataFrame(list(rows)).astype({feature["name"]: types[feature["kind"]] for feature in features})


def find_training_run(client: Client, wanted: str) -> Run:
    """The finished run of a training that has this id, name or DVC experiment.

    Raises
    ------
    UsageError
        Where there is none, or more than one.
    """
    experiment = client.get_experiment_by_name(f"{store.PREFIX}{EXPERIMENT}")
    runs = client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
    found = [run for run in runs if MODEL in run.data.tags and wanted in names_of(run)]
    if len(found) == 1:
        return found[0]
    where = f"MLflow's experiment {store.PREFIX}{EXPERIMENT}"
    if not found:
        todo = "Name a version's number, or a run: by its id, its name, or the DVC experiment that made it (mlflow ui)."
        raise UsageError(f"There is no run {wanted!r} with a model.", where, todo)
    ids = ", ".join(run.info.run_id for run in found)
    raise UsageError(f"{len(found)} runs are called {wanted!r}.", where, f"Name one by its id: {ids}")


def names_of(run: Run) -> list[str]:
    """What a person may call a run."""
    names = (run.info.run_id, run.info.run_name, *run.data.tags.get(store.EXPERIMENT, "").split(", "))
    return [name for name in names if name]
