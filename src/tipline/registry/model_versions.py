"""Models as versions in MLflow's registry: register, resolve, fetch, adopt, promote."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException

from tipline import files
from tipline.errors import TiplineError, UsageError, hide_secrets, summarize_exception
from tipline.ingest.schema import load_schema
from tipline.model import artifact, external, loader, pyfunc
from tipline.registry import client_errors, store, training_runs
from tipline.registry.training_runs import FOREIGN, MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client, Run, Version

CHAMPION = "champion"
# What the gate said of a version last, or when it was promoted.
VERDICT = "tipline.verdict"


def get_champion(client: Client, name: str) -> Version | None:
    """The version that the alias `champion` names, None where there is none."""
    return client_errors.find_or_none(client.get_model_version_by_alias, name, CHAMPION)


def get_version(client: Client, name: str, number: int, where: str) -> Version:
    """The version of this number.

    Raises
    ------
    UsageError
        Where there is none; the message lists those that there are.
    """
    found = client_errors.find_or_none(client.get_model_version, name, str(number))
    if found is None:
        there = ", ".join(str(version.version) for version in list_versions(client, name)) or "none yet"
        what = f"{name} has no version {number}; there are: {there}."
        raise UsageError(what, where, "Name one of these, or train and register first: dvc repro register")
    return found


def list_versions(client: Client, name: str, digest: str | None = None) -> list[Version]:
    """All versions, or those of one model digest, newest first."""
    query = f"name = '{name}'" + (f" and tags.`{store.DIGEST}` = '{digest}'" if digest else "")
    return sorted(client.search_model_versions(query), key=lambda version: -int(version.version))


def find_version(client: Client, name: str, digest: str) -> Version | None:
    """The version of a model, the first one where a person has made more; None where there is none."""
    return next(reversed(list_versions(client, name, digest)), None)


def get_run(client: Client, version: Version) -> Run | None:
    """The run of a version, None where it has none or it is gone."""
    return client_errors.find_or_none(client.get_run, version.run_id) if version.run_id else None


def format_version(version: Version) -> str:
    """A version in a message."""
    return f"{version.name} version {version.version}"


def describe_version(version: Version) -> dict[str, Any]:
    """A version as the files have it, models/champion/ref.json say; one that was never adopted has no digest."""
    digest = version.tags.get(store.DIGEST)
    return {"name": version.name, "version": int(version.version), "run": version.run_id, "digest": digest}


def get_digest(version: Version) -> str:
    """The digest of a version's model.

    Raises
    ------
    TiplineError
        For a version that was not adopted.
    """
    if store.DIGEST not in version.tags:
        what = "This version was not registered by tipline: it has no digest to check its files by."
        raise TiplineError(what, format_version(version), f"Run: tipline promote {version.version}")
    return str(version.tags[store.DIGEST])


def ensure_version(client: Client, paths: Paths, name: str, folder: Path) -> Version:
    """The version of the model in a folder, with its run; both are made if the registry has no such digest."""
    found = find_version(client, name, artifact.read_digest(folder))
    if found is None:
        return make_version(client, name, training_runs.ensure_run(client, paths, folder))
    if found.run_id and folder == paths.challenger and store.join_experiment_names(None):
        store.add_experiment_name(client, client.get_run(found.run_id))
        names = store.join_experiment_names(found.tags.get(store.EXPERIMENT))
        client.set_model_version_tag(name, str(found.version), store.EXPERIMENT, names)
    return found


def register_run(client: Client, name: str, run: Run) -> Version:
    """The version of a run's model, made if the registry has none of its digest; equal models share one."""
    return find_version(client, name, run.data.tags[store.DIGEST]) or make_version(client, name, run)


def make_version(client: Client, name: str, run: Run) -> Version:
    """Register a run's model; another client of the same server that is at it, too, and is first, is joined."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    uri, tags = run.data.tags[MODEL], of_version(run.data.tags)
    # Only what MLflow keeps as a logged model has an id.
    model_id = uri.removeprefix("models:/") if uri.startswith("models:/") else None
    made = client.create_model_version(name, source=uri, run_id=run.info.run_id, tags=tags, model_id=model_id)
    first = find_version(client, name, tags[store.DIGEST])
    if first is None or first.version == made.version:
        return made
    client.delete_model_version(name, str(made.version))
    return first


def read_files(version: Version) -> dict[str, bytes]:
    """The bytes of a version's files, held against its digest, by name."""
    with open_files(version) as folder:
        return artifact.read_artifact(folder)


@contextlib.contextmanager
def open_files(version: Version) -> Iterator[Path]:
    """The files of a version, held against its digest, in a folder that does not outlive the block."""
    with tempfile.TemporaryDirectory(prefix="tipline-") as folder:
        download_files(version, Path(folder))
        yield Path(folder)


def download_files(version: Version, folder: Path) -> None:
    """Put the files of a version into an empty folder, and hold them against its digest.

    Raises
    ------
    TiplineError
        Where they are not the ones that were registered.
    """
    with open_download(version) as root:
        if FOREIGN in version.tags:
            shutil.copytree(root, folder / external.FOLDER)
            (folder / pyfunc.SPEC).write_text(version.tags[FOREIGN], encoding="utf-8")
        else:
            shutil.copyfile(root / artifact.CODE, folder / artifact.CODE)
            for name in (pyfunc.ESTIMATOR, pyfunc.SPEC, artifact.TRAINING):
                shutil.copyfile(root / "artifacts" / name, folder / name)
    if artifact.read_digest(folder) != get_digest(version):
        what = "The registry's files of this version are not those that were registered."
        raise TiplineError(what, format_version(version), "Promote another version: tipline promote VERSION")


@contextlib.contextmanager
def open_download(version: Version) -> Iterator[Path]:
    """The files of a version, as MLflow logged them, looked at.

    Raises
    ------
    TiplineError
        Where they are not there, are no model, or are not to be run.
    """
    source, where = str(version.source), format_version(version)
    if source.startswith(("http:", "https:")):  # MLflow would show that server its own password
        raise loader.refuse_model(f"its files lie at {hide_secrets(source)}", where)
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"models:/{version.name}/{version.version}"
        try:
            root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=f"{scratch}/model"))
        except (MlflowException, OSError) as error:
            if client_errors.is_unreachable(error):
                raise
            what = f"The files of this version cannot be had, or are no MLflow model: {summarize_exception(error)}."
            todo = "Bring MLflow's artifacts back, or promote another version: tipline promote VERSION"
            raise TiplineError(what, where, todo) from error
        loader.remove_leftovers(root)
        check(version, root)
        yield root


def check(version: Version, root: Path) -> None:
    """Refuse files of a version that were changed after they were registered, or could run what they should not."""
    where = format_version(version)
    logged = loader.read_files(root, where)
    loader.check_registered(logged, version.tags.get(loader.FILES), where)
    if store.DIGEST in version.tags and FOREIGN not in version.tags:
        loader.check_own_model(logged, where)
    else:
        loader.check_external_model(logged, where)


def adopt_version(client: Client, settings: Settings, paths: Paths, version: Version) -> Version:
    """A version with a digest: our own as it is; another is looked at once, and tagged with what scoring needs.

    Raises
    ------
    UsageError
        Where it cannot be given prepared trips.
    """
    if store.DIGEST in version.tags:
        return version
    if own := tags_of_run(client, version):
        return tag_version(client, version, own)
    where = format_version(version)
    trained = files.read_json(paths.challenger / pyfunc.SPEC, "Run: dvc repro train")
    with open_download(version) as root:
        features = external.read_features(root, load_schema(paths.root / settings.schema_), where)
        shutil.copytree(root, root.parent / "adopted" / external.FOLDER)
        # It says nothing of what its scores are to be counted by: the challenger's baseline is what there is.
        spec = {name: trained[name] for name in ("target", "time", "baseline")} | {"name": where, "features": features}
        files.write_json(root.parent / "adopted" / pyfunc.SPEC, spec)
        tags = {store.DIGEST: artifact.read_digest(root.parent / "adopted"), FOREIGN: json.dumps(spec)}
    return tag_version(client, version, tags)


def tags_of_run(client: Client, version: Version) -> dict[str, str]:
    """The tags of a version that a person has made, in MLflow's page, of a run of tipline's; empty for any other."""
    run = get_run(client, version)
    return of_version(run.data.tags) if run and run.data.tags.get(MODEL) == version.source else {}


def of_version(tags: Mapping[str, str]) -> dict[str, str]:
    """Those tags of a training run that its version has, too."""
    kept = (store.DIGEST, loader.FILES, FOREIGN, store.EXPERIMENT)
    return {tag: tags[tag] for tag in kept if tag in tags}


def tag_version(client: Client, version: Version, tags: Mapping[str, str]) -> Version:
    """Give a version tags; return it with them."""
    for name, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), name, value)
    return client.get_model_version(version.name, str(version.version)) if tags else version


def set_champion(client: Client, version: Version) -> None:
    """Let the alias `champion` name a version."""
    client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
