"""Errors of the MLflow client, distinguished by error code, HTTP status and exception type."""

from __future__ import annotations

import contextlib
import http
import logging
import os
import sqlite3
from typing import TYPE_CHECKING, TypeVar

import mlflow
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from tipline.errors import TiplineError, hide_secrets, list_causes, summarize_exception

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Found = TypeVar("Found")

log = logging.getLogger(__name__)

FAILURES = (MlflowException, SQLAlchemyError, sqlite3.Error, requests.RequestException)
NO_CONNECTION = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
SERVER_FAILURES = {http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)}
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
    except FAILURES as error:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        what, todo = explain_error(error, address)
        raise TiplineError(what, hide_secrets(address) + (f", as user {user}" if user else ""), todo) from error


@contextlib.contextmanager
def skip_if_forbidden(warning: str | None = None) -> Iterator[None]:
    """End the block, and log the warning, if the server forbids this user what the block does."""
    try:
        yield
    except MlflowException as error:
        if get_status(error) != http.HTTPStatus.FORBIDDEN:
            raise
        if warning:
            log.warning("No write access to MLflow, so %s", warning)


def find_or_none(query: Callable[..., Found], *arguments: str) -> Found | None:
    """Return the answer of a client's method, or None if MLflow has no such thing."""
    try:
        return query(*arguments)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return None


def get_status(error: BaseException) -> int | None:
    """Return the HTTP status that an error stands for, or None if it stands for none."""
    for cause in list_causes(error):
        if isinstance(cause, requests.RequestException) and cause.response is not None:
            return int(cause.response.status_code)
        if isinstance(cause, requests.exceptions.RetryError):  # raised for answers that say that the server failed
            return int(http.HTTPStatus.INTERNAL_SERVER_ERROR)
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
    status, causes, again = get_status(error), list_causes(error), "Then run the command again; it resumes."
    kinds = {kind for cause in causes for kind in type(cause).__mro__}
    reason = hide_secrets(summarize_exception(causes[-1])).partition(". ")[0].rstrip(".")
    check = f"Check MLFLOW_TRACKING_URI and that the server runs. {again}"
    what = f"MLflow refused the request: {reason}.", check
    if status == http.HTTPStatus.UNAUTHORIZED:
        todo = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of your account there."
        what = "MLflow's server does not accept this user name and password.", todo
    elif status == http.HTTPStatus.FORBIDDEN:
        todo = "Ask the person who runs the server for the permission (docs/team.md)."
        what = f"MLflow's server does not let this user do that: {reason}.", todo
    elif status in SERVER_FAILURES:
        what = f"MLflow's server failed: {reason}.", f"Look into the server's log. {again}"
    elif kinds & {requests.Timeout, TimeoutError}:
        seconds = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        todo = f"Check the server, or allow more time with MLFLOW_HTTP_REQUEST_TIMEOUT. {again}"
        what = f"MLflow's server did not answer within {seconds} s.", todo
    elif kinds & set(NO_CONNECTION):
        what = f"MLflow's server cannot be reached, or it closed the connection: {reason}.", check
    elif kinds & {SQLAlchemyError, sqlite3.Error}:
        todo = f"Check that MLFLOW_TRACKING_URI names a database that you may write to. {again}"
        what = f"MLflow's database cannot be used: {reason}.", todo
    elif status is None and not address.startswith("http"):
        # Without an error of the database itself, MLflow has compared the version of its tables with its own.
        todo = (
            "For a database of a newer MLflow, upgrade MLflow here. For one of an older MLflow, save a copy and run: "
        )
        what = f"MLflow {mlflow.__version__} cannot use this database: {reason}.", f"{todo}mlflow db upgrade ADDRESS"
    return what
