"""MLflow's store: connecting to it, errors of its client, and its experiments and runs."""

import contextlib
import itertools
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import filelock
import mlflow
import requests
from mlflow import entities
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from tipline import files
from tipline.errors import TiplineError, hide_secrets, list_causes, summarize_exception
from tipline.paths import Paths
from tipline.registry.location import DATABASE, format_address, get_database_path, get_store_address

# The names that the rest of tipline uses for MLflow's types.
Client: TypeAlias = mlflow.MlflowClient
Run: TypeAlias = entities.Run
Version: TypeAlias = entities.model_registry.ModelVersion

log = logging.getLogger(__name__)

DIGEST = "tipline.digest"  # tag of runs and versions: the digest of the model, or of what a run shows
FINISHED = "FINISHED"  # the status of a run that has ended well
PREFIX = "tipline/"  # of the names of experiments
ARTIFACTS = "mlartifacts"
# Columns of MLflow's database that hold paths, as addresses or plain.
PATH_COLUMNS = {"experiments": "artifact_location", "logged_models": "artifact_location"}
PATH_COLUMNS |= {"runs": "artifact_uri", "model_versions": "storage_location"}
UNAUTHORIZED, FORBIDDEN = 401, 403
SERVER_FAILURES = {408, 429, *range(500, 600)}
NO_CONNECTION = (requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


# ---- connecting ----


@contextlib.contextmanager
def connect_store(paths: Paths) -> Iterator[Client]:
    """Yield a client of the store, whose database is created first; report what goes wrong in the block."""
    address = get_store_address(paths)
    for name in ("mlflow", "alembic", "urllib3"):  # MLflow logs tracebacks of errors that it raises
        logging.getLogger(name).setLevel(logging.CRITICAL)
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    try:
        if database := get_database_path(paths):
            if is_missing(database):
                create_database(paths, database)
            with contextlib.closing(sqlite3.connect(database)) as connection, connection:
                check_database(connection, database)
                follow_move(connection, database.parent, paths.workspace)
        yield Client()
    except ModuleNotFoundError as error:
        what = f"MLflow's store needs the module {error.name}, which is missing."
        todo = f"Install the package that has {error.name}, or name another store in MLFLOW_TRACKING_URI."
        raise TiplineError(what, hide_secrets(address), todo) from error
    except (MlflowException, requests.RequestException, SQLAlchemyError, sqlite3.Error) as error:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        what, todo = explain_error(error, address)
        raise TiplineError(what, hide_secrets(address) + (f", as user {user}" if user else ""), todo) from error


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
    """Create MLflow's tables in another file and rename it; one whose creation was cut off would never be accepted."""
    with lock_store(paths):
        for abandoned in database.parent.glob(f".{database.name}.*.tmp*"):
            abandoned.unlink()
        if is_missing(database):
            with files.replace_file(database) as temporary:
                Client(format_address(temporary)).search_experiments(max_results=1)


def check_database(connection: sqlite3.Connection, database: Path) -> None:
    """Raise TiplineError for a database whose creation was cut off: it has tables and not one experiment."""
    table = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
    if table and not connection.execute("SELECT 1 FROM experiments").fetchone():
        what = "The creation of MLflow's database was interrupted; the file holds no runs and cannot be used."
        todo = "Unless another program is creating it right now, delete this file and run the command again."
        raise TiplineError(what, str(database), todo)


def follow_move(connection: sqlite3.Connection, home: Path, project: Path) -> None:
    """Replace the absolute paths in a database that was moved or copied together with its artifacts: MLflow cannot."""
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


# ---- errors of the client, distinguished by error code, HTTP status and exception type ----


@contextlib.contextmanager
def skip_if_forbidden(warning: str | None = None) -> Iterator[None]:
    """End the block, and log the warning, if the server forbids this user what the block does."""
    try:
        yield
    except MlflowException as error:
        if get_status(error) != FORBIDDEN:
            raise
        if warning:
            log.warning("No write access to MLflow, so %s", warning)


def get_status(error: BaseException) -> int | None:
    for cause in list_causes(error):
        if isinstance(cause, requests.RequestException) and cause.response is not None:
            return int(cause.response.status_code)
        if isinstance(cause, requests.exceptions.RetryError):  # raised for answers that say that the server failed
            return 500
    # MLflow gives this code to everything that has no other.
    if isinstance(error, MlflowException) and error.error_code != "INTERNAL_ERROR":
        return int(error.get_http_status_code())
    return None


def is_unreachable(error: BaseException) -> bool:
    """Whether MLflow's server gave no answer, or one that says that it failed."""
    has_no_answer = any(isinstance(cause, NO_CONNECTION) for cause in list_causes(error))
    return has_no_answer or get_status(error) in SERVER_FAILURES


def explain_error(error: BaseException, address: str) -> tuple[str, str]:
    status, again = get_status(error), "Then run the command again; it resumes."
    reason = hide_secrets(summarize_exception(list_causes(error)[-1])).partition(". ")[0]
    if status == UNAUTHORIZED:
        todo = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of your account there."
        return "MLflow's server does not accept this user name and password.", todo
    if status == FORBIDDEN:
        todo = "Ask the person who runs the server for the permission (docs/team.md)."
        return f"MLflow's server does not let this user do that: {reason}.", todo
    if "disk is full" in reason:  # as SQLite says
        return "MLflow's database cannot be written: the disk is full.", f"Free some space. {again}"
    if is_unreachable(error):
        seconds = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        todo = f"Check MLFLOW_TRACKING_URI and the server, or raise MLFLOW_HTTP_REQUEST_TIMEOUT={seconds}. {again}"
        return f"MLflow's server failed or cannot be reached: {reason}.", todo
    if address.startswith("http") or status is not None:
        return f"MLflow refused the request: {reason}.", f"Check MLFLOW_TRACKING_URI. {again}"
    todo = (
        f"Check that MLFLOW_TRACKING_URI names a database that you may write to. {again} For a database of a newer "
        "MLflow, upgrade MLflow here. For one of an older MLflow, save a copy and run: mlflow db upgrade ADDRESS"
    )
    return f"This version of MLflow cannot use this database: {reason}.", todo


# ---- experiments and runs ----


def find_model(client: Client, name: str) -> entities.model_registry.RegisteredModel | None:
    """Return a registered model, or None. It is searched for: a server with users forbids to get a missing one."""
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
    runs.sort(key=lambda run: (run.info.status == FINISHED, -run.info.start_time))
    return {run.data.tags[DIGEST]: run for run in runs if DIGEST in run.data.tags}
