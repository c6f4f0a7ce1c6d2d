"""Where MLflow's store is, and how a run gets there once and only once."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import filelock
import mlflow
from mlflow import entities
from mlflow.exceptions import MlflowException
from sqlalchemy import make_url

from tipline import git
from tipline.registry import client_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tipline.paths import Paths

# What the rest of tipline calls MLflow's types by.
Client: TypeAlias = mlflow.MlflowClient
Run: TypeAlias = entities.Run
Version: TypeAlias = entities.model_registry.ModelVersion

DIGEST = "tipline.digest"
PREFIX = "tipline/"
SQLITE = "sqlite:///"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
PARENT = "mlflow.parentRunId"
# The DVC experiments that came to this, joined with commas.
EXPERIMENT = "dvc.exp"


def get_store_address(paths: Paths) -> str:
    """The store's address: MLFLOW_TRACKING_URI, else the database that plain `mlflow ui` opens in the project."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DATABASE}"
    if not address.startswith(SQLITE):
        return address
    # A relative path is one of the project: `dvc exp run --temp` works in a copy, which is deleted then.
    place = make_url(address)
    return place.set(database=str(paths.workspace / (place.database or DATABASE))).render_as_string(hide_password=False)


@contextlib.contextmanager
def connect_store(paths: Paths) -> Iterator[Client]:
    """Give a client of the store, made first where it is a new database.

    Raises
    ------
    TiplineError
        Where the store, in this block, cannot be reached or refuses.
    """
    address = get_store_address(paths)
    for name in ("mlflow", "alembic", "urllib3"):  # their reports are for trouble
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    with client_errors.translate_errors(address):
        if database := get_database_path(paths):
            with lock_store(paths):  # two processes that make a fresh database at once break it for good
                Client().search_experiments(max_results=1)
                follow_move(database, paths.workspace)
        yield Client()


@contextlib.contextmanager
def lock_store(paths: Paths) -> Iterator[None]:
    """Wait until no other process writes to this workspace or database what it has found missing."""
    stores = {paths.workspace / DATABASE, get_database_path(paths) or paths.workspace / DATABASE}
    with contextlib.ExitStack() as stack:
        for path in sorted(stores):
            stack.enter_context(filelock.FileLock(path.with_name(f".{path.stem}.lock")))
        yield


def get_database_path(paths: Paths) -> Path | None:
    """The file of the store, None where it is no sqlite database."""
    address = get_store_address(paths)
    return Path(str(make_url(address).database)) if address.startswith(SQLITE) else None


# Where MLflow's database has paths: as an address or as a plain one.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def follow_move(database: Path, project: Path) -> None:
    """Let a database that was moved or copied together with its artifacts name the folder that they are in now.

    MLflow keeps absolute paths, and has no command that changes them: a moved project would have lost its models, and a
    copied one would write among the original's.
    """
    home = database.parent
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        found = connection.execute(query, (f"{PREFIX}train",)).fetchone()
        then, own, _ = str(found[0] if found else "").rpartition(f"/{ARTIFACTS}/train")
        if not own or then == home.as_uri() or not (home == project or (home / ARTIFACTS).is_dir()):
            return
        pairs = ((then, home.as_uri()), (url2pathname(urlsplit(then).path), str(home)))
        for (table, column), (old, new) in itertools.product(PLACES, pairs):
            change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
            connection.execute(change, (new, len(old) + 1, len(old) + 1, f"{old}/"))


def ensure_experiment(client: Client, paths: Paths, name: str) -> str:
    """The id of the experiment `tipline/NAME`, made if it is not there."""
    found = client.get_experiment_by_name(PREFIX + name)
    if found is not None:
        return str(found.experiment_id)
    # A server knows where its artifacts go. A database's are kept beside it, named now: by default the place would be
    # relative to whatever the working directory is.
    database = get_database_path(paths)
    local = (database.parent / ARTIFACTS / name).as_uri() if database else None
    return str(client.create_experiment(PREFIX + name, artifact_location=local))


def find_run(client: Client, experiment_id: str, digest: str, parent: str | None = None) -> Run | None:
    """The run of this digest, a finished one where there is one; None where there is none."""
    below = f" and tags.`{PARENT}` = '{parent}'" if parent else ""
    runs = client.search_runs([experiment_id], f"tags.`{DIGEST}` = '{digest}'{below}", max_results=100)
    return min(runs, key=lambda run: (not is_finished(run), run.info.start_time), default=None)


def is_finished(run: Run) -> bool:
    """Whether a run has ended well."""
    return str(run.info.status) == "FINISHED"


def collect_lineage(stage: str) -> dict[str, str]:
    """Tags that say where a run comes from: git revision, DVC stage and experiment."""
    revision = git.get_revision()
    tags = {
        "mlflow.source.git.commit": revision.removesuffix("-dirty"),
        "tipline.git": revision,
        "dvc.stage": os.environ.get("DVC_STAGE", stage),
    }
    return tags | ({EXPERIMENT: join_experiment_names(None)} if join_experiment_names(None) else {})


@contextlib.contextmanager
def open_run(
    client: Client, experiment_id: str, name: str, tags: Mapping[str, str], found: Run | None = None
) -> Iterator[str]:
    """Give the id of a run that is to be written, a new one or one that was not finished.

    It is finished if the block ends well and failed if not. A killed process leaves it as it is; the next one of the
    same digest goes on with it: what is logged twice is the same.
    """
    begun = found or client.create_run(experiment_id, run_name=name, tags=dict(tags))
    run = str(begun.info.run_id)
    try:
        yield run
    except BaseException:
        with contextlib.suppress(MlflowException):  # why the block failed matters more, a dead server say
            client.set_terminated(run, status="FAILED")
        raise
    client.set_terminated(run)


def log_batch(
    client: Client, run: str, metrics: Mapping[str, float | None], params: Mapping[str, Any], step: int = 0
) -> None:
    """Log params and metrics in one call; a metric that is None has no value and is left out."""
    now = int(time.time() * 1000)
    values = [entities.Metric(key, float(value), now, step) for key, value in metrics.items() if value is not None]
    client.log_batch(run, values, [entities.Param(key, str(value)) for key, value in params.items()])


def add_experiment_name(client: Client, run: Run) -> None:
    """Add the name of the DVC experiment that runs now to a run that it has come to, too."""
    names = join_experiment_names(run.data.tags.get(EXPERIMENT))
    if names != run.data.tags.get(EXPERIMENT, ""):
        client.set_tag(run.info.run_id, EXPERIMENT, names)


def join_experiment_names(names: str | None) -> str:
    """Names of DVC experiments, with the one that runs now."""
    now = os.environ.get("DVC_EXP_NAME")
    return ", ".join(dict.fromkeys([*(names.split(", ") if names else []), *([now] if now else [])]))
