"""Versions in MLflow's model registry: find, register, adopt, tag and download them."""

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

from tipline import files, git
from tipline.config import Settings, check_month
from tipline.errors import TiplineError, UsageError, summarize_exception
from tipline.ingest.schema import load_schema
from tipline.model import artifact, external, loader, pyfunc
from tipline.paths import Paths
from tipline.registry import runs, store
from tipline.registry.store import Client, Run, Version

log = logging.getLogger(__name__)

CHAMPION = "champion"
# Tags of versions: what the gate said last, and the months that a model was made on if its model.json does not say.
VERDICT = "tipline.verdict"
MONTHS = "tipline.months"
DESCRIPTION = (
    "The version with the alias `champion` scores: move it, and the next `dvc repro` follows. The description of each "
    "version is its card."
)
FROM_RUN = (store.DIGEST, loader.FILES, runs.EXTERNAL_SPEC)  # tags that a version takes over from its run


def get_champion(client: Client, name: str) -> Version | None:
    model = store.find_model(client, name)
    number = model.aliases.get(CHAMPION) if model else None
    return client.get_model_version(name, str(number)) if number else None


def get_version(client: Client, name: str, number: int, where: str) -> Version:
    """Return the version with a number; raise UsageError with the numbers that exist if there is none."""
    versions = {int(version.version): version for version in list_versions(client, name)}
    if number not in versions:
        numbers = ", ".join(map(str, versions)) or "none yet"
        todo = "Name one of these. To register the model that was trained here, run: dvc repro register"
        raise UsageError(f"{name} has no version {number}. Versions: {numbers}.", where, todo)
    return versions[number]


def list_versions(client: Client, name: str, digest: str | None = None) -> list[Version]:
    """Return all versions, or those of one model digest, newest first."""
    query = f"name = '{name}'" + (f" and tags.`{store.DIGEST}` = '{digest}'" if digest else "")
    return sorted(client.search_model_versions(query), key=lambda version: -int(version.version))


def find_version(client: Client, name: str, digest: str) -> Version | None:
    """Return the version of a model, the oldest if there are several, or None."""
    return next(reversed(list_versions(client, name, digest)), None)


def format_version(version: Version) -> str:
    return f"{version.name} version {version.version}"


def get_digest(version: Version) -> str:
    """Return the digest of a version's model; raise TiplineError for a version that was never adopted."""
    if store.DIGEST not in version.tags:
        what = "tipline did not register this version, so there is no digest to check its files with."
        raise TiplineError(what, format_version(version), f"Run: tipline promote {version.version}")
    return str(version.tags[store.DIGEST])


def get_months(version: Version) -> dict[str, list[str]] | None:
    """Return the months that the tag `tipline.months` names, by role, or None without the tag."""
    tag = version.tags.get(MONTHS)
    try:
        return {"train": [check_month(month.strip()) for month in tag.split(",")], "validation": []} if tag else None
    except ValueError as error:
        where = f"the tag {MONTHS} of {format_version(version)}"
        raise UsageError(f"{error}.", where, "Correct the tag in MLflow, for example: 2009-01,2009-02") from None


# ---- register ----


def register_run(client: Client, name: str, run: Run) -> Version:
    """Return the version of a run's model; create it if the registry has none of its digest."""
    if version := find_version(client, name, run.data.tags[store.DIGEST]):
        return version
    if store.find_model(client, name) is None:
        client.create_registered_model(name, description=DESCRIPTION)
    uri, tags = run.data.tags[runs.MODEL_URI], select_tags(run)
    # Only what MLflow keeps as a logged model has an id.
    model_id = uri.removeprefix("models:/") if uri.startswith("models:/") else None
    return client.create_model_version(name, uri, run.info.run_id, tags, model_id=model_id)


def select_tags(run: Run) -> dict[str, str]:
    return {name: value for name, value in run.data.tags.items() if name in FROM_RUN}


def tag_version(client: Client, version: Version, tags: Mapping[str, str]) -> Version:
    """Set those tags of a version that differ; return the version with them."""
    for name, value in tags.items():
        if version.tags.get(name) != value:
            client.set_model_version_tag(version.name, str(version.version), name, value)
    return client.get_model_version(version.name, str(version.version))


def adopt_version(
    client: Client, settings: Settings, paths: Paths, version: Version, *, trust_code: bool = False
) -> Version:
    """Return a version with a digest; check one that tipline did not register, and tag it with what scoring needs."""
    if store.DIGEST in version.tags:
        return version
    for run in runs.list_training_runs(client):
        if run.data.tags[runs.MODEL_URI] == version.source:  # registered in MLflow's page from a run of tipline
            return tag_version(client, version, select_tags(run))
    where = format_version(version)
    # Its scores are compared by the target, the time and the baseline of a model that was trained here.
    own = files.try_read_json(paths.challenger / pyfunc.SPEC)
    own = own or files.read_json(paths.champion / pyfunc.SPEC, "Run: dvc repro train")
    with open_download(version, trust_code=trust_code) as root:
        hidden = {*settings.model.hidden, *own["target_columns"]}
        inputs = external.read_inputs(root, load_schema(paths.root / settings.schema_), hidden, where)
        logged = loader.read_files(root, where)
    digest = external.hash_model({f"{external.FOLDER}/{name}": data for name, data in logged.items()})
    spec = {name: own[name] for name in ("target", "target_columns", "time", "baseline")}
    spec |= {"name": where, "inputs": inputs, "trusted": digest if trust_code else None}
    return tag_version(client, version, {store.DIGEST: digest, runs.EXTERNAL_SPEC: json.dumps(spec)})


def check_known_code(paths: Paths, contents: Mapping[str, bytes], version: Version) -> None:
    """Raise UsageError if a version has code that neither the workspace nor the history of git has, and show it."""
    where = format_version(version)
    if external.is_external(contents):  # a tag that says that it was trusted may be anybody's
        external.check_files(contents, where)
    for name, data in pyfunc.list_code(contents).items():
        own = (paths.root / name, artifact.TRANSFORMERS)
        if not any(path.is_file() and path.read_bytes() == data for path in own) and not git.is_committed(data):
            log.info("%s of %s:\n%s", name, where, data.decode(errors="replace"))
            command = f"tipline promote {version.version} --trust-code"
            todo = f"Read it, above. If it may run here and on the workers: {command}"
            raise UsageError(f"The model carries code that this project does not have: {name}.", where, todo)


# ---- download ----


@contextlib.contextmanager
def open_download(version: Version, *, trust_code: bool = False) -> Iterator[Path]:
    """Yield a folder with the files of a version as MLflow logged them; refuse code that should not run."""
    where, uri = format_version(version), f"models:/{version.name}/{version.version}"
    with tempfile.TemporaryDirectory(prefix="tipline-") as scratch:
        try:
            for location in list_locations(uri):
                store.check_artifact_host(location, where)
            root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=f"{scratch}/model"))
        except (MlflowException, OSError) as error:
            if store.is_unreachable(error):
                raise
            what = f"The files of this version cannot be downloaded: {summarize_exception(error)}."
            todo = "Bring MLflow's artifacts back, or promote another version: tipline promote VERSION"
            raise TiplineError(what, where, todo) from error
        loader.remove_leftovers(root)
        logged = loader.read_files(root, where)
        if version.tags.get(loader.FILES) not in {None, loader.hash_files(logged)}:
            what = "The files of this version are not those that were registered. They were not loaded."
            raise TiplineError(what, where, loader.TODO)
        external_spec = json.loads(version.tags.get(runs.EXTERNAL_SPEC, "{}"))
        if store.DIGEST in version.tags and not external_spec:
            loader.check_own_model(logged, where)
        elif not (trust_code or external_spec.get("trusted")):
            loader.check_external_model(logged, where)
        yield root


def list_locations(uri: str) -> list[str]:
    """Return all addresses that MLflow may download from for an address that refers to others."""
    repository, locations = get_artifact_repository(uri), []
    while repository is not None:
        locations.append(str(repository.artifact_uri))
        if isinstance(repository, RunsArtifactRepository):  # it looks into the run and into the models logged by it
            client = mlflow.MlflowClient()
            outputs = client.get_run(repository.parse_runs_uri(repository.artifact_uri)[0]).outputs
            models = outputs.model_outputs if outputs else []
            locations += [str(client.get_logged_model(model.model_id).artifact_location) for model in models]
        repository = getattr(repository, "repo", None)
    return locations


@contextlib.contextmanager
def open_files(version: Version) -> Iterator[Path]:
    """Yield a temporary folder with a version's model files, checked against its digest."""
    with open_download(version) as root:
        folder = root / loader.ARTIFACTS
        if spec := version.tags.get(runs.EXTERNAL_SPEC):
            folder = root.parent / "adopted"
            shutil.copytree(root, folder / external.FOLDER)
            (folder / pyfunc.SPEC).write_text(spec, encoding="utf-8")
        artifact.check_digest(artifact.read_artifact(folder), get_digest(version), format_version(version))
        yield folder


def read_files(version: Version) -> dict[str, bytes]:
    """Return the bytes of a version's model files by name, checked against its digest."""
    with open_files(version) as folder:
        return artifact.read_artifact(folder)
