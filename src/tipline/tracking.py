"""Where MLflow's store is, and how a run gets there once and only once."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import filelock

from tipline import git
from tipline.errors import TiplineError

# Read when mlflow is imported. A person's own settings win.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # or a uv.lock in the folder is copied into every model
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # or a server that is down is waited for for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402
import requests  # noqa: E402
from mlflow.entities import Metric, Param  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tipline.layout import Layout

DIGEST = "tipline.digest"
PREFIX = "tipline/"


def store(layout: Layout) -> str:
    """The store's address: MLFLOW_TRACKING_URI, else the database that plain `mlflow ui` opens in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{layout.home / 'mlflow.db'}"


def without_password(address: str) -> str:
    """An address that may be shown."""
    parts = urlsplit(address)
    if parts.password is None and parts.username is None:
        return address
    return parts._replace(netloc=f"…@{parts.hostname}" + (f":{parts.port}" if parts.port else "")).geturl()


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
        if address.startswith("sqlite:///"):
            # Two processes that make a fresh database at once break it for good.
            with filelock.FileLock(layout.home / ".mlflow.lock"):
                MlflowClient().search_experiments(max_results=1)
        yield MlflowClient()
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        # MLflow repeats the address with its password.
        words = str(error).splitlines()[0].replace(address, without_password(address))
        what = f"MLflow's store refuses or cannot be reached: {words[:300]}"
        todo = "Check MLFLOW_TRACKING_URI and that the server runs; then run: dvc repro"
        raise TiplineError(what, without_password(address), todo) from error


def logging_of_mlflow() -> None:
    """Keep the reports of MLflow and of what it stands on for trouble."""
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def experiment(client: MlflowClient, layout: Layout, name: str) -> str:
    """The id of the experiment `tipline/NAME`, made if it is not there."""
    found = client.get_experiment_by_name(PREFIX + name)
    if found is not None:
        return str(found.experiment_id)
    # A server knows where its artifacts go. In a local store the place is fixed now, and by default it would be
    # relative to whatever the working directory is.
    local = (layout.home / "mlartifacts" / name).as_uri() if store(layout).startswith("sqlite:") else None
    return str(client.create_experiment(PREFIX + name, artifact_location=local))


def find_run(client: MlflowClient, experiment_id: str, digest: str) -> str | None:
    """The finished run of this digest, if there is one."""
    query = f"tags.`{DIGEST}` = '{digest}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment_id], query, max_results=1)
    return str(runs[0].info.run_id) if runs else None


def lineage(stage: str) -> dict[str, str]:
    """Tags that say where a run comes from: git revision, DVC stage and experiment."""
    tags = {
        "mlflow.source.git.commit": git.revision().removesuffix("-dirty"),
        "tipline.git": git.revision(),
        "dvc.stage": os.environ.get("DVC_STAGE", stage),
    }
    if "DVC_EXP_NAME" in os.environ:
        tags["dvc.exp"] = os.environ["DVC_EXP_NAME"]
    return tags


@contextlib.contextmanager
def new_run(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Give the id of a new run, which is finished if the block ends well and failed if not."""
    run = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
    status = "FAILED"
    try:
        yield str(run)
        status = "FINISHED"
    finally:
        client.set_terminated(run, status=status)


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


def record(client: MlflowClient, layout: Layout, entry: Entry) -> str:
    """Mirror an entry into MLflow unless a run with its digest is there; return the run's id."""
    experiment_id = experiment(client, layout, entry.experiment)
    return find_run(client, experiment_id, entry.digest) or _write(client, experiment_id, entry, {})


def _write(client: MlflowClient, experiment_id: str, entry: Entry, extra: Mapping[str, str]) -> str:
    tags = {**lineage("record"), DIGEST: entry.digest, **entry.tags, **extra}
    with new_run(client, experiment_id, entry.name, tags) as run:
        log_batch(client, run, entry.metrics, entry.params)
        for step, metrics in entry.series.items():
            log_batch(client, run, metrics, {}, step)
        for path in entry.artifacts:
            client.log_artifact(run, str(path))
        for child in entry.children:
            _write(client, experiment_id, child, {"mlflow.parentRunId": run})
    return run
