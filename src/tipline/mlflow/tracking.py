"""Where MLflow's store is, and how a run gets there once and only once."""

from __future__ import annotations

import contextlib
import http
import itertools
import logging
import os
import re
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import filelock

from tipline import git
from tipline.errors import TiplineError, shortened

# Read when mlflow is imported. A person's own settings win.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # or a uv.lock in the folder is copied into every model
    # A server that is down would be waited for for four minutes; and a version whose making was not answered for,
    # asked for again, is there twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",  # or clients need a way to the server's bucket
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password, where the address has one
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402
import requests  # noqa: E402
from mlflow.entities import Metric, Param  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402
from sqlalchemy import make_url  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow.entities import Run

    from tipline.layout import Layout

DIGEST = "tipline.digest"
PREFIX = "tipline/"
SQLITE = "sqlite:///"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
PARENT = "mlflow.parentRunId"
MONITOR = "monitor"
# The DVC experiments that came to this, joined with commas.
EXPERIMENT = "dvc.exp"
AGAIN = "then run the command again, which goes on from there."
SECRET = re.compile(r"(?<=://)[^/].*(?=@)|(?<=\?)[^\s'\")]+")
# MLflow tells of most of what goes wrong below it in text alone.
STATUS = re.compile(r"too many (\d{3}) error|error code (\d{3})|\b(\d{3}) (?:Client|Server) Error")
BUSY = {http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS}
SLOW = re.compile(r"timed out|timeout exception")
CUT = re.compile(r"ConnectionPool|Connection (?:broken|aborted)")
REASON = re.compile(
    r"\[Errno -?\d+\] ([\w ]+)|(Remote end closed connection|Connection broken)|"
    r"(?:!= \d+\. Response body: '|Response text: )(.*)"
)


def store(layout: Layout) -> str:
    """The store's address: MLFLOW_TRACKING_URI, else the database that plain `mlflow ui` opens in the project."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DATABASE}"
    if not address.startswith(SQLITE):
        return address
    # A relative path is one of the project: `dvc exp run --temp` works in a copy, which is deleted then.
    place = make_url(address)
    return place.set(database=str(layout.home / (place.database or DATABASE))).render_as_string(hide_password=False)


def without_password(text: str) -> str:
    """An address, or a text with addresses in it, that may be shown."""
    return SECRET.sub("…", text)


@contextlib.contextmanager
def connect(layout: Layout) -> Iterator[MlflowClient]:
    """Give a client of the store, made first where it is a new database.

    Raises
    ------
    TiplineError
        Where the store, in this block, cannot be reached or refuses.
    """
    address = store(layout)
    logging_of_mlflow()
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    try:
        if database := database_of(layout):
            with alone(layout):  # two processes that make a fresh database at once break it for good
                MlflowClient().search_experiments(max_results=1)
                follow_move(database, layout.home)
        yield MlflowClient()
    except ModuleNotFoundError as error:
        todo = f"Install it beside tipline, or name another store: uv pip install {error.name}"
        raise TiplineError(f"This store needs {error.name}.", without_password(address), todo) from error
    except (MlflowException, SQLAlchemyError, sqlite3.Error, requests.RequestException) as error:
        raise trouble(error, address) from error


@contextlib.contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Wait until no other process writes to this workspace or database what it has found missing."""
    stores = {layout.home / DATABASE, database_of(layout) or layout.home / DATABASE}
    with contextlib.ExitStack() as stack:
        for path in sorted(stores):
            stack.enter_context(filelock.FileLock(path.with_name(f".{path.stem}.lock")))
        yield


def database_of(layout: Layout) -> Path | None:
    """The file of the store, None where it is no sqlite database."""
    address = store(layout)
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


def trouble(error: Exception, address: str) -> TiplineError:
    """What went wrong at MLflow's store, in words of ours, without passwords."""
    status, text, user = status_of(error), without_password(str(error)), os.environ.get("MLFLOW_TRACKING_USERNAME")
    where = without_password(address) + (f", as user {user}" if user else "")
    if status == http.HTTPStatus.UNAUTHORIZED:
        todo = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of your account there."
        return TiplineError("MLflow's server does not know this user with this password.", where, todo)
    if forbidden(error):
        todo = "Ask whoever runs the server for the right to do it (docs/team.md)."
        return TiplineError(f"MLflow's server does not let this user do that: {reason(text)}.", where, todo)
    if in_trouble(status):
        todo = f"Look into the server's log, or ask whoever runs it; {AGAIN}"
        return TiplineError(f"MLflow's server is in trouble itself (HTTP {status}).", where, todo)
    if SLOW.search(text):
        seconds = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        todo = f"See whether it is well, or give it longer with MLFLOW_HTTP_REQUEST_TIMEOUT; {AGAIN}"
        return TiplineError(f"MLflow's server is too slow: no answer within {seconds} s.", where, todo)
    kind = "server cannot be reached, or broke off" if CUT.search(text) else "store refuses or cannot be reached"
    todo = f"Check MLFLOW_TRACKING_URI, and that the server runs; {AGAIN}"
    return TiplineError(f"MLflow's {kind}: {reason(text)}.", where, todo)


def reason(text: str) -> str:
    """What matters in a message of MLflow's: the system's words, the server's, or else the first line."""
    found = REASON.search(text)
    words = next(filter(None, found.groups()), "") if found else next(iter(text.splitlines()), "")
    return shortened(words, 300).strip("'.") or "no reason given"


def status_of(error: BaseException) -> int:
    """HTTP's status of an answer of MLflow's server, 0 where there is none."""
    if isinstance(error, MlflowException) and error.error_code != "INTERNAL_ERROR":
        return int(error.get_http_status_code())
    found = STATUS.search(str(error))
    return int(next(filter(None, found.groups()))) if found else 0


def away(error: BaseException) -> bool:
    """Whether MLflow's server did not answer, or is in trouble itself."""
    status, text = status_of(error), str(error)
    return in_trouble(status) or (status == 0 and bool(SLOW.search(text) or CUT.search(text)))


def in_trouble(status: int) -> bool:
    """Whether an answer says that the server cannot answer."""
    return status in BUSY or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR


def forbidden(error: BaseException) -> bool:
    """Whether MLflow's server knows the user, and does not let it do this."""
    return status_of(error) == http.HTTPStatus.FORBIDDEN


def logging_of_mlflow() -> None:
    """Keep the reports of MLflow and of what it stands on for trouble."""
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def experiment(client: MlflowClient, layout: Layout, name: str) -> str:
    """The id of the experiment `tipline/NAME`, made if it is not there."""
    found = client.get_experiment_by_name(PREFIX + name)
    if found is not None:
        return str(found.experiment_id)
    # A server knows where its artifacts go. A database's are kept beside it, named now: by default the place would be
    # relative to whatever the working directory is.
    database = database_of(layout)
    local = (database.parent / ARTIFACTS / name).as_uri() if database else None
    return str(client.create_experiment(PREFIX + name, artifact_location=local))


def find_run(client: MlflowClient, experiment_id: str, digest: str, parent: str | None = None) -> Run | None:
    """The run of this digest, a finished one where there is one; None where there is none."""
    below = f" and tags.`{PARENT}` = '{parent}'" if parent else ""
    runs = client.search_runs([experiment_id], f"tags.`{DIGEST}` = '{digest}'{below}", max_results=100)
    return min(runs, key=lambda run: (not finished(run), run.info.start_time), default=None)


def finished(run: Run) -> bool:
    """Whether a run has ended well."""
    return str(run.info.status) == "FINISHED"


def lineage(stage: str) -> dict[str, str]:
    """Tags that say where a run comes from: git revision, DVC stage and experiment."""
    tags = {
        "mlflow.source.git.commit": git.revision().removesuffix("-dirty"),
        "tipline.git": git.revision(),
        "dvc.stage": os.environ.get("DVC_STAGE", stage),
    }
    return tags | ({EXPERIMENT: joined(None)} if joined(None) else {})


@contextlib.contextmanager
def open_run(
    client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str], found: Run | None = None
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
    client: MlflowClient, run: str, metrics: Mapping[str, float | None], params: Mapping[str, Any], step: int = 0
) -> None:
    """Log params and metrics in one call; a metric that is None has no value and is left out."""
    now = int(time.time() * 1000)
    values = [Metric(key, float(value), now, step) for key, value in metrics.items() if value is not None]
    client.log_batch(run, values, [Param(key, str(value)) for key, value in params.items()])


@dataclass(frozen=True)
class Entry:
    """What one run in MLflow shows.

    Attributes
    ----------
    digest
        Of what the run tells; a run with this digest is not made again.
    series
        Metrics by step, which MLflow draws as a line.
    children
        Runs that are shown below this one.
    """

    experiment: str
    name: str
    digest: str
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[int, Mapping[str, float | None]] = field(default_factory=dict)
    artifacts: Sequence[Path] = ()
    children: Sequence[Entry] = ()


def record(client: MlflowClient, layout: Layout, entry: Entry, parent: str | None = None) -> str:
    """Mirror an entry into MLflow unless a run with its digest is there; return the run's id."""
    experiment_id = experiment(client, layout, entry.experiment)
    found = find_run(client, experiment_id, entry.digest, parent)
    if found is not None and finished(found):
        if entry.experiment != MONITOR:  # no experiment has scored these months
            carry_experiment(client, found)
        return str(found.info.run_id)
    below = {PARENT: parent} if parent else {}
    tags = {**lineage("record"), DIGEST: entry.digest, **entry.tags, **below}
    with open_run(client, experiment_id, entry.name, tags, found) as run:
        log_batch(client, run, entry.metrics, entry.params)
        for step, metrics in entry.series.items():
            log_batch(client, run, metrics, {}, step)
        for path in entry.artifacts:
            client.log_artifact(run, str(path))
        for child in entry.children:
            record(client, layout, child, run)
    return run


def carry_experiment(client: MlflowClient, run: Run) -> None:
    """Add the name of the DVC experiment that runs now to a run that it has come to, too."""
    names = joined(run.data.tags.get(EXPERIMENT))
    if names != run.data.tags.get(EXPERIMENT, ""):
        client.set_tag(run.info.run_id, EXPERIMENT, names)


def joined(names: str | None) -> str:
    """Names of DVC experiments, with the one that runs now."""
    now = os.environ.get("DVC_EXP_NAME")
    return ", ".join(dict.fromkeys([*(names.split(", ") if names else []), *([now] if now else [])]))
