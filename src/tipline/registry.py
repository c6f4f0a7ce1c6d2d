"""Models as versions in MLflow's registry: register, resolve, promote."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from tipline import contract, files, foreign, modelfiles, pyfunc, tracking
from tipline.errors import TiplineError, UsageError, said

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.layout import Layout
    from tipline.params import Settings

CHAMPION = "champion"
# On versions that tipline did not make: what their model.json says.
FOREIGN = "tipline.model"
# What the gate said of a version last, or when it was promoted.
VERDICT = "tipline.verdict"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "skops")
SPEC_TYPES = {"category": DataType.string, "hour": DataType.datetime, "number": DataType.double}


def by_alias(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that the alias `champion` names, None where there is none."""
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


def by_number(client: MlflowClient, name: str, number: int, where: str) -> ModelVersion:
    """The version of this number.

    Raises
    ------
    UsageError
        Where there is none; the message lists those that there are.
    """
    try:
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        there = ", ".join(str(version.version) for version in versions(client, name)) or "none yet"
        what = f"{name} has no version {number}; there are: {there}."
        raise UsageError(what, where, "Name one of these, or train and register first: dvc repro register") from error


def versions(client: MlflowClient, name: str, digest: str | None = None) -> list[ModelVersion]:
    """All versions, or those of one model digest, newest first."""
    query = f"name = '{name}'" + (f" and tags.`{tracking.DIGEST}` = '{digest}'" if digest else "")
    return sorted(client.search_model_versions(query), key=lambda version: -int(version.version))


def digest_of(version: ModelVersion) -> str:
    """The digest of a version's model.

    Raises
    ------
    TiplineError
        For a version that was not adopted.
    """
    if tracking.DIGEST not in version.tags:
        what = "This version was not registered by tipline: it has no digest to check its files by."
        raise TiplineError(what, f"{version.name} version {version.version}", "Run: tipline promote VERSION")
    return str(version.tags[tracking.DIGEST])


def ensure_version(
    client: MlflowClient, layout: Layout, name: str, folder: Path, pictures: Sequence[Path]
) -> ModelVersion:
    """The version of the model in a folder, with its run; both are made if the registry has no such digest."""
    digest = modelfiles.digest_in(folder)
    found = versions(client, name, digest)
    if found:
        return found[0]
    tags = {tracking.DIGEST: digest}
    if (folder / foreign.FOLDER).is_dir():
        run, uri = log_adopted(client, layout, folder, digest)
        tags[FOREIGN] = (folder / pyfunc.SPEC).read_text(encoding="utf-8")
    else:
        run, uri = log_training(client, layout, folder, digest, pictures)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Only what MLflow keeps as a logged model has an id.
    model_id = uri.removeprefix("models:/") if uri.startswith("models:/") else None
    return client.create_model_version(name, source=uri, run_id=run, tags=tags, model_id=model_id)


def log_training(
    client: MlflowClient, layout: Layout, folder: Path, digest: str, pictures: Sequence[Path]
) -> tuple[str, str]:
    """Log the training of a model and the model itself; return the run's id and the model's address."""
    training = files.read_json(folder / modelfiles.TRAINING, "Run: dvc repro train")
    experiment = tracking.experiment(client, layout, "train")
    tags = {**tracking.lineage("train"), tracking.DIGEST: digest, "tipline.data": training["data"]}
    with tracking.new_run(client, experiment, training["name"], tags) as run:
        tracking.log_batch(client, run, training["metrics"], training["params"])
        for picture in pictures:
            client.log_artifact(run, str(picture))
        with mlflow.start_run(run_id=run):
            logged = log_model(folder, training)
    return run, str(logged.model_uri)


def log_model(folder: Path, training: Mapping[str, Any]) -> Any:  # noqa: ANN401 (mlflow's ModelInfo)
    """Log the pyfunc, from code, into the active run."""
    spec = json.loads((folder / pyfunc.SPEC).read_text(encoding="utf-8"))
    logged = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(folder / modelfiles.CODE),
        artifacts={name: str(folder / name) for name in (pyfunc.ESTIMATOR, pyfunc.SPEC, modelfiles.TRAINING)},
        signature=signature(spec["features"]),
        input_example=example(spec["features"], training["example"]),
        pip_requirements=[f"{package}=={installed(package)}" for package in REQUIREMENTS],
    )
    if logged.signature is None:  # MLflow only warns (https://github.com/mlflow/mlflow/issues/25593)
        raise TiplineError("MLflow logged the model without a signature.", str(folder), "Please report it.")
    return logged


def signature(features: Sequence[Mapping[str, Any]]) -> ModelSignature:
    """Input: the model's columns of prepared trips, as text, times and doubles. Output: float32 probabilities."""
    columns = [ColSpec(SPEC_TYPES[feature["kind"]], feature["name"]) for feature in features]
    return ModelSignature(Schema(columns), Schema([ColSpec(DataType.float, pyfunc.OUTPUT)]))


def example(features: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A few rows as the signature wants them."""
    types = {"category": "str", "hour": "datetime64[ns]", "number": "float64"}
    frame = pd.DataFrame(list(rows))
    return frame.astype({feature["name"]: types[feature["kind"]] for feature in features})


def fetch(version: ModelVersion, folder: Path) -> None:
    """Put the files of a version into a folder that is not there yet, and hold them against its digest.

    Raises
    ------
    TiplineError
        Where they are not the ones that were registered.
    """
    with downloaded(version) as root:
        if FOREIGN in version.tags:
            shutil.copytree(root, folder / foreign.FOLDER)
            (folder / pyfunc.SPEC).write_text(version.tags[FOREIGN], encoding="utf-8")
        else:
            shutil.copyfile(root / modelfiles.CODE, folder / modelfiles.CODE)
            for name in (pyfunc.ESTIMATOR, pyfunc.SPEC, modelfiles.TRAINING):
                shutil.copyfile(root / "artifacts" / name, folder / name)
    if modelfiles.digest_in(folder) != digest_of(version):
        what = "The registry's files of this version are not those that were registered."
        raise TiplineError(what, f"{version.name} version {version.version}", "Promote another version.")


@contextlib.contextmanager
def downloaded(version: ModelVersion) -> Iterator[Path]:
    """The files of a version, as MLflow logged them.

    Raises
    ------
    TiplineError
        Where they are not there, or are no model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"models:/{version.name}/{version.version}"
        try:
            root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=f"{scratch}/model"))
        except (MlflowException, OSError) as error:
            what = f"The files of this version cannot be had, or are no MLflow model: {said(error)}."
            todo = "Bring MLflow's artifacts back, or promote another version."
            raise TiplineError(what, f"{version.name} version {version.version}", todo) from error
        # MLflow's note of the version's number: the same model has another one elsewhere.
        (root / "registered_model_meta").unlink(missing_ok=True)
        yield root


def adopt(client: MlflowClient, settings: Settings, layout: Layout, version: ModelVersion) -> ModelVersion:
    """A version with a digest: our own as it is; another is looked at once, and tagged with what scoring needs.

    Raises
    ------
    UsageError
        Where it cannot be given prepared trips.
    """
    if tracking.DIGEST in version.tags:
        return version
    where = f"{version.name} version {version.version}"
    trained = files.read_json(layout.challenger / pyfunc.SPEC, "Run: dvc repro train")
    with downloaded(version) as root:
        features = foreign.features(root, contract.load(layout.root / settings.contract), where)
        shutil.copytree(root, root.parent / "adopted" / foreign.FOLDER)
        # It says nothing of what its scores are to be counted by: the challenger's baseline is what there is.
        spec = {name: trained[name] for name in ("target", "time", "baseline")} | {"name": where, "features": features}
        files.write_json(root.parent / "adopted" / pyfunc.SPEC, spec)
        tags = {tracking.DIGEST: modelfiles.digest_in(root.parent / "adopted"), FOREIGN: json.dumps(spec)}
    for name, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), name, value)
    return client.get_model_version(version.name, str(version.version))


def log_adopted(client: MlflowClient, layout: Layout, folder: Path, digest: str) -> tuple[str, str]:
    """Log a model that tipline did not make again, for a registry that has lost it; return run and address."""
    spec = (folder / pyfunc.SPEC).read_text(encoding="utf-8")
    experiment = tracking.experiment(client, layout, "train")
    tags = {**tracking.lineage("train"), tracking.DIGEST: digest}
    with tracking.new_run(client, experiment, f"{json.loads(spec)['name']}, not made by tipline", tags) as run:
        client.log_artifacts(run, str(folder / foreign.FOLDER), "model")
    return run, f"runs:/{run}/model"


def promote(client: MlflowClient, version: ModelVersion) -> None:
    """Let the alias `champion` name a version."""
    client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
