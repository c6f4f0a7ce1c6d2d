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

from tipline import files, pyfunc
from tipline.errors import TiplineError, UsageError, hide, said
from tipline.mlflow import tracking
from tipline.models import foreign, modelfiles, trust
from tipline.months import contract

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.layout import Layout
    from tipline.params import Settings

CHAMPION = "champion"
# On versions that tipline did not make: what their model.json says.
FOREIGN = "tipline.model"
# On training runs: the address of the logged model.
MODEL = "tipline.model_uri"
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
    found = versions(client, name, modelfiles.digest_in(folder))
    if not found:
        return version_of_run(client, name, training_run(client, layout, folder, pictures))
    if found[-1].run_id and folder == layout.challenger and tracking.joined(None):
        tracking.carry_experiment(client, client.get_run(found[-1].run_id))
        names = tracking.joined(found[-1].tags.get(tracking.EXPERIMENT))
        client.set_model_version_tag(name, str(found[-1].version), tracking.EXPERIMENT, names)
    return found[-1]


def training_run(client: MlflowClient, layout: Layout, folder: Path, pictures: Sequence[Path]) -> Run:
    """The run of the model in a folder, the model logged in it; made if there is none of this digest."""
    digest = modelfiles.digest_in(folder)
    experiment = tracking.experiment(client, layout, "train")
    found = tracking.find_run(client, experiment, digest)
    of_now = folder == layout.challenger  # a champion that is brought back was not made by the experiment that runs now
    if found is not None and tracking.finished(found) and MODEL in found.data.tags:
        if of_now:
            tracking.carry_experiment(client, found)
        return client.get_run(found.info.run_id)
    told = training_of(folder)
    lineage = tracking.lineage("train")
    if not of_now:
        lineage.pop(tracking.EXPERIMENT, None)
    tags = {**lineage, tracking.DIGEST: digest, **told["tags"]}
    with tracking.open_run(client, experiment, told["name"], tags, found) as run:
        tracking.log_batch(client, run, told["metrics"], told["params"])
        for picture in pictures:
            client.log_artifact(run, str(picture))
        client.set_tag(run, MODEL, log_files(client, folder, run))
    return client.get_run(run)


def training_of(folder: Path) -> dict[str, Any]:
    """What the run of a model shows: of one that tipline did not make, its name."""
    if (folder / foreign.FOLDER).is_dir():
        spec = (folder / pyfunc.SPEC).read_text(encoding="utf-8")
        name = f"{json.loads(spec)['name']}, not made by tipline"
        return {"name": name, "metrics": {}, "params": {}, "tags": {FOREIGN: spec}}
    training: dict[str, Any] = files.read_json(folder / modelfiles.TRAINING, "Run: dvc repro train")
    return training | {"tags": {"tipline.data": training["data"]}}


def log_files(client: MlflowClient, folder: Path, run: str) -> str:
    """Log a model into a run: our own as a pyfunc, another as the files that MLflow had; return its address."""
    if (folder / foreign.FOLDER).is_dir():
        client.log_artifacts(run, str(folder / foreign.FOLDER), "model")
        return f"runs:/{run}/model"
    with mlflow.start_run(run_id=run):
        logged = log_model(folder, training_of(folder))
    return str(logged.model_uri)


def run_named(client: MlflowClient, wanted: str) -> Run:
    """The finished run of a training that has this id, name or DVC experiment.

    Raises
    ------
    UsageError
        Where there is none, or more than one.
    """
    experiment = client.get_experiment_by_name(f"{tracking.PREFIX}train")
    runs = client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
    found = [run for run in runs if MODEL in run.data.tags and wanted in names_of(run)]
    if len(found) == 1:
        return found[0]
    where = f"MLflow's experiment {tracking.PREFIX}train"
    if not found:
        todo = "Name a version's number, or a run: by its id, its name, or the DVC experiment that made it (mlflow ui)."
        raise UsageError(f"There is no run {wanted!r} with a model.", where, todo)
    ids = ", ".join(run.info.run_id for run in found)
    raise UsageError(f"{len(found)} runs are called {wanted!r}.", where, f"Name one by its id: {ids}")


def names_of(run: Run) -> list[str]:
    """What a person may call a run."""
    names = (run.info.run_id, run.info.run_name, *run.data.tags.get(tracking.EXPERIMENT, "").split(", "))
    return [name for name in names if name]


def version_of_run(client: MlflowClient, name: str, run: Run) -> ModelVersion:
    """The version of a run's model, made if the registry has none of its digest; equal models share one."""
    tags = of_version(run.data.tags)
    found = versions(client, name, tags[tracking.DIGEST])
    if found:
        return found[-1]
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    uri = run.data.tags[MODEL]
    # Only what MLflow keeps as a logged model has an id.
    model_id = uri.removeprefix("models:/") if uri.startswith("models:/") else None
    made = client.create_model_version(name, source=uri, run_id=run.info.run_id, tags=tags, model_id=model_id)
    first = versions(client, name, tags[tracking.DIGEST])[-1]
    if first.version != made.version:  # another client of the same server was at it, too
        client.delete_model_version(name, str(made.version))
    return first


def log_model(folder: Path, training: Mapping[str, Any]) -> Any:  # noqa: ANN401 (mlflow's ModelInfo)
    """Log the pyfunc, from code, into the active run."""
    spec = json.loads((folder / pyfunc.SPEC).read_text(encoding="utf-8"))
    used = training.get("libraries", {})  # a lost registry is given the model again when others are installed
    logged = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(folder / modelfiles.CODE),
        artifacts={name: str(folder / name) for name in (pyfunc.ESTIMATOR, pyfunc.SPEC, modelfiles.TRAINING)},
        signature=signature(spec["features"]),
        input_example=example(spec["features"], training["example"]),
        pip_requirements=[f"{package}=={used.get(package) or installed(package)}" for package in REQUIREMENTS],
    )
    if logged.signature is None:  # MLflow only warns (https://github.com/mlflow/mlflow/issues/25593)
        raise TiplineError("MLflow logged the model without a signature.", str(folder), "Please report it.")
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(mlflow.artifacts.download_artifacts(artifact_uri=logged.model_uri, dst_path=scratch))
        mlflow.set_tag(trust.FILES, trust.digest(trust.read(kept, logged.model_uri)))
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
    """The files of a version, as MLflow logged them, looked at.

    Raises
    ------
    TiplineError
        Where they are not there, are no model, or are not to be run.
    """
    source, where = str(version.source), f"{version.name} version {version.version}"
    if source.startswith(("http:", "https:")):  # MLflow would show that server its own password
        raise trust.refused(f"its files lie at {hide(source)}", where)
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"models:/{version.name}/{version.version}"
        try:
            root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=f"{scratch}/model"))
        except (MlflowException, OSError) as error:
            if tracking.away(error):
                raise
            what = f"The files of this version cannot be had, or are no MLflow model: {said(error)}."
            todo = "Bring MLflow's artifacts back, or promote another version."
            raise TiplineError(what, where, todo) from error
        # MLflow's note of the version's number: the same model has another one elsewhere.
        (root / trust.NOTE).unlink(missing_ok=True)
        check(version, root)
        yield root


def check(version: ModelVersion, root: Path) -> None:
    """Look at the files of a version before anything of them runs.

    Raises
    ------
    TiplineError
        Where they were changed after they were registered, or could run what they should not.
    """
    where = f"{version.name} version {version.version}"
    logged = trust.read(root, where)
    trust.check_registered(logged, version.tags.get(trust.FILES), where)
    if tracking.DIGEST in version.tags and FOREIGN not in version.tags:
        trust.check_own(logged, where)
    else:
        trust.check_foreign(logged, where)


def adopt(client: MlflowClient, settings: Settings, layout: Layout, version: ModelVersion) -> ModelVersion:
    """A version with a digest: our own as it is; another is looked at once, and tagged with what scoring needs.

    Raises
    ------
    UsageError
        Where it cannot be given prepared trips.
    """
    if tracking.DIGEST in version.tags:
        return version
    if own := tags_of_run(client, version):
        return tagged(client, version, own)
    where = f"{version.name} version {version.version}"
    trained = files.read_json(layout.challenger / pyfunc.SPEC, "Run: dvc repro train")
    with downloaded(version) as root:
        features = foreign.features(root, contract.load(layout.root / settings.contract), where)
        shutil.copytree(root, root.parent / "adopted" / foreign.FOLDER)
        # It says nothing of what its scores are to be counted by: the challenger's baseline is what there is.
        spec = {name: trained[name] for name in ("target", "time", "baseline")} | {"name": where, "features": features}
        files.write_json(root.parent / "adopted" / pyfunc.SPEC, spec)
        tags = {tracking.DIGEST: modelfiles.digest_in(root.parent / "adopted"), FOREIGN: json.dumps(spec)}
    return tagged(client, version, tags)


def tags_of_run(client: MlflowClient, version: ModelVersion) -> dict[str, str]:
    """The tags of a version that a person has made, in MLflow's page, of a run of tipline's; empty for any other."""
    try:
        tags = client.get_run(version.run_id).data.tags if version.run_id else {}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return of_version(tags) if tags.get(MODEL) == version.source else {}


def of_version(tags: Mapping[str, str]) -> dict[str, str]:
    """Those tags of a training run that its version has, too."""
    kept = (tracking.DIGEST, trust.FILES, FOREIGN, tracking.EXPERIMENT)
    return {tag: tags[tag] for tag in kept if tag in tags}


def tagged(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> ModelVersion:
    """A version, with tags that it is given."""
    for name, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), name, value)
    return client.get_model_version(version.name, str(version.version))


def promote(client: MlflowClient, version: ModelVersion) -> None:
    """Let the alias `champion` name a version."""
    client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
