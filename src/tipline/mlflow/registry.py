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

from tipline import files, pyfunc
from tipline.errors import TiplineError, UsageError, hide, said
from tipline.mlflow import tracking, training, trouble
from tipline.mlflow.training import FOREIGN, MODEL
from tipline.models import foreign, modelfiles, trust
from tipline.months import contract

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tipline.layout import Layout
    from tipline.mlflow.tracking import Client, Run, Version
    from tipline.params import Settings

CHAMPION = "champion"
# What the gate said of a version last, or when it was promoted.
VERDICT = "tipline.verdict"


def by_alias(client: Client, name: str) -> Version | None:
    """The version that the alias `champion` names, None where there is none."""
    return trouble.if_there(client.get_model_version_by_alias, name, CHAMPION)


def by_number(client: Client, name: str, number: int, where: str) -> Version:
    """The version of this number.

    Raises
    ------
    UsageError
        Where there is none; the message lists those that there are.
    """
    found = trouble.if_there(client.get_model_version, name, str(number))
    if found is None:
        there = ", ".join(str(version.version) for version in versions(client, name)) or "none yet"
        what = f"{name} has no version {number}; there are: {there}."
        raise UsageError(what, where, "Name one of these, or train and register first: dvc repro register")
    return found


def versions(client: Client, name: str, digest: str | None = None) -> list[Version]:
    """All versions, or those of one model digest, newest first."""
    query = f"name = '{name}'" + (f" and tags.`{tracking.DIGEST}` = '{digest}'" if digest else "")
    return sorted(client.search_model_versions(query), key=lambda version: -int(version.version))


def of_digest(client: Client, name: str, digest: str) -> Version | None:
    """The version of a model, the first one where a person has made more; None where there is none."""
    return next(reversed(versions(client, name, digest)), None)


def run_of(client: Client, version: Version) -> Run | None:
    """The run of a version, None where it has none or it is gone."""
    return trouble.if_there(client.get_run, version.run_id) if version.run_id else None


def called(version: Version) -> str:
    """A version in a message."""
    return f"{version.name} version {version.version}"


def named(version: Version) -> dict[str, Any]:
    """A version as the files have it, models/champion/ref.json say; one that was never adopted has no digest."""
    digest = version.tags.get(tracking.DIGEST)
    return {"name": version.name, "version": int(version.version), "run": version.run_id, "digest": digest}


def digest_of(version: Version) -> str:
    """The digest of a version's model.

    Raises
    ------
    TiplineError
        For a version that was not adopted.
    """
    if tracking.DIGEST not in version.tags:
        what = "This version was not registered by tipline: it has no digest to check its files by."
        raise TiplineError(what, called(version), f"Run: tipline promote {version.version}")
    return str(version.tags[tracking.DIGEST])


def ensure_version(client: Client, layout: Layout, name: str, folder: Path) -> Version:
    """The version of the model in a folder, with its run; both are made if the registry has no such digest."""
    found = of_digest(client, name, modelfiles.digest_in(folder))
    if found is None:
        return make_version(client, name, training.ensure_run(client, layout, folder))
    if found.run_id and folder == layout.challenger and tracking.joined(None):
        tracking.carry_experiment(client, client.get_run(found.run_id))
        names = tracking.joined(found.tags.get(tracking.EXPERIMENT))
        client.set_model_version_tag(name, str(found.version), tracking.EXPERIMENT, names)
    return found


def version_of_run(client: Client, name: str, run: Run) -> Version:
    """The version of a run's model, made if the registry has none of its digest; equal models share one."""
    return of_digest(client, name, run.data.tags[tracking.DIGEST]) or make_version(client, name, run)


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
    first = of_digest(client, name, tags[tracking.DIGEST])
    if first is None or first.version == made.version:
        return made
    client.delete_model_version(name, str(made.version))
    return first


def contents(version: Version) -> dict[str, bytes]:
    """The bytes of a version's files, held against its digest, by name."""
    with fetched(version) as folder:
        return modelfiles.read(folder)


@contextlib.contextmanager
def fetched(version: Version) -> Iterator[Path]:
    """The files of a version, held against its digest, in a folder that does not outlive the block."""
    with tempfile.TemporaryDirectory(prefix="tipline-") as folder:
        fetch(version, Path(folder))
        yield Path(folder)


def fetch(version: Version, folder: Path) -> None:
    """Put the files of a version into an empty folder, and hold them against its digest.

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
        raise TiplineError(what, called(version), "Promote another version: tipline promote VERSION")


@contextlib.contextmanager
def downloaded(version: Version) -> Iterator[Path]:
    """The files of a version, as MLflow logged them, looked at.

    Raises
    ------
    TiplineError
        Where they are not there, are no model, or are not to be run.
    """
    source, where = str(version.source), called(version)
    if source.startswith(("http:", "https:")):  # MLflow would show that server its own password
        raise trust.refused(f"its files lie at {hide(source)}", where)
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"models:/{version.name}/{version.version}"
        try:
            root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=f"{scratch}/model"))
        except (MlflowException, OSError) as error:
            if trouble.away(error):
                raise
            what = f"The files of this version cannot be had, or are no MLflow model: {said(error)}."
            todo = "Bring MLflow's artifacts back, or promote another version: tipline promote VERSION"
            raise TiplineError(what, where, todo) from error
        trust.tidy(root)
        check(version, root)
        yield root


def check(version: Version, root: Path) -> None:
    """Refuse files of a version that were changed after they were registered, or could run what they should not."""
    where = called(version)
    logged = trust.read(root, where)
    trust.check_registered(logged, version.tags.get(trust.FILES), where)
    if tracking.DIGEST in version.tags and FOREIGN not in version.tags:
        trust.check_own(logged, where)
    else:
        trust.check_foreign(logged, where)


def adopt(client: Client, settings: Settings, layout: Layout, version: Version) -> Version:
    """A version with a digest: our own as it is; another is looked at once, and tagged with what scoring needs.

    Raises
    ------
    UsageError
        Where it cannot be given prepared trips.
    """
    if tracking.DIGEST in version.tags:
        return version
    if own := tags_of_run(client, version):
        return tag(client, version, own)
    where = called(version)
    trained = files.read_json(layout.challenger / pyfunc.SPEC, "Run: dvc repro train")
    with downloaded(version) as root:
        features = foreign.features(root, contract.load(layout.root / settings.contract), where)
        shutil.copytree(root, root.parent / "adopted" / foreign.FOLDER)
        # It says nothing of what its scores are to be counted by: the challenger's baseline is what there is.
        spec = {name: trained[name] for name in ("target", "time", "baseline")} | {"name": where, "features": features}
        files.write_json(root.parent / "adopted" / pyfunc.SPEC, spec)
        tags = {tracking.DIGEST: modelfiles.digest_in(root.parent / "adopted"), FOREIGN: json.dumps(spec)}
    return tag(client, version, tags)


def tags_of_run(client: Client, version: Version) -> dict[str, str]:
    """The tags of a version that a person has made, in MLflow's page, of a run of tipline's; empty for any other."""
    run = run_of(client, version)
    return of_version(run.data.tags) if run and run.data.tags.get(MODEL) == version.source else {}


def of_version(tags: Mapping[str, str]) -> dict[str, str]:
    """Those tags of a training run that its version has, too."""
    kept = (tracking.DIGEST, trust.FILES, FOREIGN, tracking.EXPERIMENT)
    return {tag: tags[tag] for tag in kept if tag in tags}


def tag(client: Client, version: Version, tags: Mapping[str, str]) -> Version:
    """Give a version tags; return it with them."""
    for name, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), name, value)
    return client.get_model_version(version.name, str(version.version)) if tags else version


def promote(client: Client, version: Version) -> None:
    """Let the alias `champion` name a version."""
    client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
