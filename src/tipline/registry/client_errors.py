"""Errors of the MLflow client, distinguished by error code, HTTP status and exception type."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from typing import TYPE_CHECKING

import mlflow
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from tipline.errors import TiplineError, hide_secrets, list_causes, summarize_exception

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

UNAUTHORIZED, FORBIDDEN = 401, 403
SERVER_FAILURES = {408, 429, *range(500, 600)}
NO_CONNECTION = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
# Module that a store or a place of artifacts needs -> what to install.
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient", "pymysql": "pymysql"}
DRIVERS |= {"boto3": "boto3", "azure": "azure-storage-blob azure-identity", "google": "google-cloud-storage"}


@contextlib.contextmanager
def translate_errors(address: str) -> Iterator[None]:
    """Raise TiplineError for what goes wrong in the block at the store of this address."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = DRIVERS.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        todo = f"Install it: uv pip install '{package}'. Or name another store in MLFLOW_TRACKING_URI."
        raise TiplineError(f"This store needs {error.name}, which is missing.", hide_secrets(address), todo) from error
    except (MlflowException, requests.RequestException, SQLAlchemyError, sqlite3.Error) as error:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        what, todo = explain_error(error, address)
        raise TiplineError(what, hide_secrets(address) + (f", as user {user}" if user else ""), todo) from error


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
    """Return the HTTP status that an error stands for, or None if it stands for none."""
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
    has_no_answer = any(isinstance(cause, (requests.Timeout, *NO_CONNECTION)) for cause in list_causes(error))
    return has_no_answer or get_status(error) in SERVER_FAILURES


def explain_error(error: BaseException, address: str) -> tuple[str, str]:
    """Say what happened and what to do about it."""
    status, again = get_status(error), "Then run the command again; it resumes."
    reason = hide_secrets(summarize_exception(list_causes(error)[-1])).partition(". ")[0]
    if status == UNAUTHORIZED:
        what = "MLflow's server does not accept this user name and password."
        todo = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of your account there."
    elif status == FORBIDDEN:
        what = f"MLflow's server does not let this user do that: {reason}."
        todo = "Ask the person who runs the server for the permission (docs/team.md)."
    elif is_unreachable(error):
        what = f"MLflow's server failed or cannot be reached: {reason}."
        seconds = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        todo = f"Check MLFLOW_TRACKING_URI and the server, or raise MLFLOW_HTTP_REQUEST_TIMEOUT={seconds}. {again}"
    elif address.startswith("http") or status is not None:
        what, todo = f"MLflow refused the request: {reason}.", f"Check MLFLOW_TRACKING_URI. {again}"
    else:
        what = f"MLflow {mlflow.__version__} cannot use this database: {reason}."
        todo = (
            f"Check that MLFLOW_TRACKING_URI names a database that you may write to. {again} For a database of a newer "
            "MLflow, upgrade MLflow here. For one of an older MLflow, save a copy and run: mlflow db upgrade ADDRESS"
        )
    return what, todo
