"""What MLflow's store answers when it does not do what it is asked: told in our words, or passed over."""

from __future__ import annotations

import contextlib
import http
import logging
import os
import re
import sqlite3
from typing import TYPE_CHECKING, TypeVar

import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from tipline.errors import TiplineError, hide_secrets, shorten_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Found = TypeVar("Found")

log = logging.getLogger(__name__)

# What a store may raise.
FAILURES = (MlflowException, SQLAlchemyError, sqlite3.Error, requests.RequestException)
# What brings the modules that stores, and places of artifacts, are reached by.
DRIVERS = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "pymysql": "pymysql",
    "pyodbc": "pyodbc",
    "boto3": "boto3",
    "azure": "azure-storage-blob azure-identity",
    "google": "google-cloud-storage",
}
AGAIN = "then run the command again, which goes on from there."
# MLflow tells of most of what goes wrong below it in text alone.
STATUS = re.compile(r"too many (\d{3}) error|error code (\d{3})|\b(\d{3}) (?:Client|Server) Error")
BUSY = {http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS}
SLOW = re.compile(r"timed out|timeout exception")
CUT = re.compile(r"ConnectionPool|Connection (?:broken|aborted)")
REASON = re.compile(
    r"\[Errno -?\d+\] ([\w ]+)|(Remote end closed connection|Connection broken)|"
    r"(?:!= \d+\. Response body: '|Response text: )(.*)"
)


@contextlib.contextmanager
def translate_errors(address: str) -> Iterator[None]:
    """Tell of what goes wrong at the store in this block.

    Raises
    ------
    TiplineError
        Where it cannot be reached or refuses.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if words := without_driver(error, address):
            raise words from error
        raise
    except FAILURES as error:
        raise of(error, address) from error


@contextlib.contextmanager
def skip_if_forbidden(otherwise: str | None = None) -> Iterator[None]:
    """End the block where the server does not let this user do what is in it; `otherwise` is logged then."""
    try:
        yield
    except MlflowException as error:
        if status_of(error) != http.HTTPStatus.FORBIDDEN:
            raise
        if otherwise:
            log.warning("you may not write to MLflow: %s", otherwise)


def find_or_none(ask: Callable[..., Found], *of: str) -> Found | None:
    """What a client has of this, None where MLflow says that there is no such thing."""
    try:
        return ask(*of)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return None


def without_driver(error: ModuleNotFoundError, address: str) -> TiplineError | None:
    """The error for a store whose driver is not installed, None for any other module."""
    package = DRIVERS.get((error.name or "").partition(".")[0])
    if package is None:
        return None
    todo = f"Install it beside tipline: uv pip install '{package}'; or name another store in MLFLOW_TRACKING_URI."
    return TiplineError(f"This store needs {error.name}, which is not installed.", hide_secrets(address), todo)


def of(error: Exception, address: str) -> TiplineError:
    """What went wrong at MLflow's store, without passwords."""
    status, text, user = status_of(error), hide_secrets(str(error)), os.environ.get("MLFLOW_TRACKING_USERNAME")
    where = hide_secrets(address) + (f", as user {user}" if user else "")
    if status == http.HTTPStatus.UNAUTHORIZED:
        todo = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of your account there."
        return TiplineError("MLflow's server does not know this user with this password.", where, todo)
    if status == http.HTTPStatus.FORBIDDEN:
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
    runs = "that the file is a database and yours to write" if address.startswith("sqlite:") else "that the server runs"
    todo = f"Check MLFLOW_TRACKING_URI, and {runs}; {AGAIN}"
    return TiplineError(f"MLflow's {kind}: {reason(text)}.", where, todo)


def reason(text: str) -> str:
    """What matters in a message of MLflow's: the system's words, the server's, or else the first line."""
    found = REASON.search(text)
    words = next(filter(None, found.groups()), "") if found else next(iter(text.splitlines()), "")
    return shorten_text(words, 300).strip("'.") or "no reason given"


def status_of(error: BaseException) -> int:
    """HTTP's status of an answer of MLflow's server, 0 where there is none."""
    if isinstance(error, MlflowException) and error.error_code != "INTERNAL_ERROR":
        return int(error.get_http_status_code())
    found = STATUS.search(str(error))
    return int(next(filter(None, found.groups()))) if found else 0


def is_unreachable(error: BaseException) -> bool:
    """Whether MLflow's server did not answer, or is in trouble itself."""
    status, text = status_of(error), str(error)
    return in_trouble(status) or (status == 0 and bool(SLOW.search(text) or CUT.search(text)))


def in_trouble(status: int) -> bool:
    """Whether an answer says that the server cannot answer."""
    return status in BUSY or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR
