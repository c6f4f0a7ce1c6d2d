"""MLflow's store: its address, connecting to it, and its experiments and runs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

import filelock
import mlflow
from mlflow import entities

from tipline import files
from tipline.errors import TiplineError, hide_secrets
from tipline.registry import client_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tipline.paths import Paths

# The names that the rest of tipline uses for MLflow's types.
Client: TypeAlias = mlflow.MlflowClient
Run: TypeAlias = entities.Run
Version: TypeAlias = entities.model_registry.ModelVersion

log = logging.getLogger(__name__)

DIGEST = "tipline.digest"  # tag of runs and versions: the digest of the model, or of what a run shows
PREFIX = "tipline/"  # of the names of experiments
SQLITE = "sqlite:///"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
# Columns of MLflow's database that hold paths, as addresses or plain.
PATH_COLUMNS = {"experiments": "artifact_location", "logged_models": "artifact_location"}
PATH_COLUMNS |= {"runs": "artifact_uri", "model_versions": "storage_location"}


def get_store_address(paths: Paths) -> str:
    """Return MLFLOW_TRACKING_URI, or else the database that plain `mlflow ui` opens in the project.

    A relative database belongs to the workspace: `dvc exp run --temp` works in a copy, which DVC deletes. The address
    is built as text, because SQLAlchemy's URL objects encode it and MLflow then creates a folder of the encoded name.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DATABASE}"
    database, question_mark, query = address.removeprefix(SQLITE).partition("?")
    if not address.startswith(SQLITE) or database.startswith("/"):
        return address
    return format_address(paths.workspace / (unquote(database) or DATABASE)) + question_mark + query


def format_address(database: Path) -> str:
    """Return the address of an SQLite file; only what SQLAlchemy would read as something else is encoded."""
    return SQLITE + re.sub(r"\?|%(?=[0-9a-fA-F]{2})", lambda found: quote(found[0]), str(database))


def get_database_path(paths: Paths) -> Path | None:
    """Return the file of an SQLite store, or None for any other store."""
    address = get_store_address(paths)
    return Path(unquote(address.removeprefix(SQLITE).partition("?")[0])) if address.startswith(SQLITE) else None


@contextlib.contextmanager
def connect_store(paths: Paths) -> Iterator[Client]:
    """Yield a client of the store; create its database first if that is missing.

    Raises TiplineError, also for the block, if the store cannot be reached or refuses something.
    """
    address = get_store_address(paths)
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    with client_errors.translate_errors(address):
        if database := get_database_path(paths):
            if is_missing(database):
                create_database(paths, database)
            with contextlib.closing(sqlite3.connect(database)) as connection, connection:
                check_database(connection, database)
                follow_move(connection, database.parent, paths.workspace)
        yield Client()


@contextlib.contextmanager
def lock_store(paths: Paths) -> Iterator[None]:
    """Let one process at a time look for something missing in this database, or workspace, and create it."""
    path = get_database_path(paths) or paths.workspace / DATABASE
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.stem}.lock")):
        yield


def is_missing(database: Path) -> bool:
    """Whether a database has yet to be created; a file without content counts as missing."""
    return not database.is_file() or not database.stat().st_size


def create_database(paths: Paths, database: Path) -> None:
    """Create MLflow's tables in a file beside the database and rename it.

    The creation takes seconds. Whatever ends it halfway leaves a file that MLflow never accepts again.
    """
    with lock_store(paths):
        for abandoned in database.parent.glob(f".{database.name}.*.tmp*"):
            abandoned.unlink()
        if is_missing(database):
            with files.replace_file(database) as temporary:
                Client(format_address(temporary)).search_experiments(max_results=1)


def check_database(connection: sqlite3.Connection, database: Path) -> None:
    """Raise TiplineError for a database whose creation was cut off: it has tables and not one experiment."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    queries = [f"SELECT 1 FROM {table} LIMIT 1" for table in tables & {"experiments", "registered_models"}]  # noqa: S608
    if queries and not any(connection.execute(query).fetchone() for query in queries):
        what = "The creation of MLflow's database was interrupted; the file holds no runs and cannot be used."
        todo = "Unless another program is creating it right now, delete this file and run the command again."
        raise TiplineError(what, str(database), todo)


def follow_move(connection: sqlite3.Connection, home: Path, project: Path) -> None:
    """Replace the absolute paths in a database that was moved or copied together with its artifacts.

    MLflow has no command for it. Without it a moved project loses its models, and a copy writes into the original.
    """
    query = "SELECT artifact_location FROM experiments WHERE name = ?"
    row = connection.execute(query, (f"{PREFIX}train",)).fetchone()
    old, is_own, _ = str(row[0] if row else "").rpartition(f"/{ARTIFACTS}/train")
    if not is_own or old == home.as_uri() or not (home == project or (home / ARTIFACTS).is_dir()):
        return
    pairs = ((old, home.as_uri()), (url2pathname(urlsplit(old).path), str(home)))
    for (table, column), (before, after) in itertools.product(PATH_COLUMNS.items(), pairs):
        change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
        connection.execute(change, (after, len(before) + 1, len(before) + 1, f"{before}/"))


def check_artifact_host(address: str, where: str) -> None:
    """Refuse an artifact location at another host than MLflow's server: MLflow would send its password there."""
    location, server = urlsplit(address), urlsplit(mlflow.get_tracking_uri())
    if location.scheme not in {"http", "https", "mlflow-artifacts"} or not location.hostname:
        return
    scheme = server.scheme if location.scheme == "mlflow-artifacts" else location.scheme
    if (scheme, location.hostname, location.port) != (server.scheme, server.hostname, server.port):
        what = f"Its files are at {hide_secrets(address)}, and MLflow would send its password there."
        raise TiplineError(what, where, "Promote another version, and tell the person who runs MLflow's server.")


def find_model(client: Client, name: str) -> entities.model_registry.RegisteredModel | None:
    """Return a registered model with its tags and aliases, or None.

    By a search, because a server with users answers a question for a model that does not exist as if it were forbidden.
    """
    return next(iter(client.search_registered_models(f"name = '{name}'")), None)


def ensure_experiment(client: Client, paths: Paths, name: str) -> str:
    """Return the id of the experiment `tipline/NAME`; create it, or restore it if it was deleted."""
    experiment = client.get_experiment_by_name(PREFIX + name)
    if experiment is None:
        # By default a database's artifacts go where the working directory happens to be. A server has its own place.
        database = get_database_path(paths)
        location = (database.parent / ARTIFACTS / name).as_uri() if database else None
        return str(client.create_experiment(PREFIX + name, artifact_location=location))
    if experiment.lifecycle_stage != entities.LifecycleStage.ACTIVE:
        client.restore_experiment(experiment.experiment_id)
        log.info("The experiment %s%s had been deleted in MLflow. It is restored.", PREFIX, name)
    return str(experiment.experiment_id)


def find_runs(experiment_id: str, digest: str | None = None) -> dict[str, Run]:
    """Return the runs of an experiment by digest, or that of one digest; of several a finished one, the oldest."""
    query = f"tags.`{DIGEST}` = '{digest}'" if digest else ""
    runs = cast(list[Run], mlflow.search_runs([experiment_id], query, output_format="list"))
    runs.sort(key=lambda run: (is_finished(run), -run.info.start_time))
    return {run.data.tags[DIGEST]: run for run in runs if DIGEST in run.data.tags}


def is_finished(run: Run) -> bool:
    """Whether a run has ended well."""
    return str(run.info.status) == "FINISHED"
