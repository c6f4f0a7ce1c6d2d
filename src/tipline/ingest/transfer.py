"""Download files through fsspec (paths, https, buckets): in ranges, resumed, checked, retried."""

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import fsspec
import tenacity
from tqdm import tqdm

from tipline import files, remote
from tipline.errors import NotPublishedError, TemporaryError, TiplineError, hide_secrets, list_causes

T = TypeVar("T")
log = logging.getLogger(__name__)

RANGE_BYTES = 4 << 20  # of one request
ATTEMPTS, PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5, 1.0, 30.0
CONNECT_SECONDS, READ_SECONDS = 20.0, 30.0
GONE, FORBIDDEN = {404, 410}, 403
TEMPORARY = {408, 425, 429, *range(500, 600)}
LOST_CONNECTION = (ConnectionError, TimeoutError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
TODO = "Check this address in params.yaml, or try again later."
MISSING = "The source does not have this month."
TODO_MISSING = (
    "Check the month and this address in params.yaml. The TLC publishes a month about two months after it ends."
)


@dataclass(frozen=True)
class FileState:
    """What a source states about a file: size in bytes, and ETag or else the time of the last change."""

    size: int | None
    version: str | None
    modified: str | None = field(default=None, compare=False)  # the time of the last change, for people


class NoRangeError(TiplineError):
    """The server sends whole files only."""


class RefusedError(TemporaryError, NotPublishedError):
    """The server refuses a month: it does not have it yet, or requests come too fast."""


def fetch_state(address: str) -> FileState:
    """Ask a source about a file; errors as for `download_file`."""
    return retry_attempts(address, functools.partial(request_state, address), hide_secrets(address))


@contextlib.contextmanager
def open_preview(address: str) -> Iterator[tuple[FileState, Any]]:
    """Open a file of which only the bytes that are read are fetched; NoRangeError if the server cannot do that."""
    state = fetch_state(address)
    with explain_errors(address), open_file(address, state) as file:
        yield state, file


def download_file(address: str, part: Path, label: str) -> FileState:
    """Download a file to `part`; resume an earlier download if the source still states the same version.

    An interrupt or a failure of the network keeps the part for the next run, a full disk removes it. Raises
    NotPublishedError if the source does not have the file, TiplineError if it fails or sends something else.
    """
    download = functools.partial(download_rest, address, part, label)
    try:
        try:
            state = retry_attempts(address, download, label, lambda: part.stat().st_size if part.exists() else 0)
        except NoRangeError:
            state = retry_attempts(address, functools.partial(download, as_stream=True), label)
    except OSError as error:
        if error.errno in files.DISK_FULL_ERRORS:
            remove_part(part)
            error.filename = str(part)
        raise
    get_note(part).unlink(missing_ok=True)
    return state


def retry_attempts(
    address: str, attempt: Callable[[], T], label: str, get_progress: Callable[[], int] = lambda: 0
) -> T:
    """Repeat an attempt after temporary failures; give up after ATTEMPTS of them without progress."""

    def log_pause(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        what = error.parts[0] if isinstance(error, TiplineError) else error
        log.info("%s: %s Trying again in %.1f s.", label, what, state.upcoming_sleep)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TemporaryError),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(PAUSE_SECONDS, LONGEST_PAUSE_SECONDS),
        before_sleep=log_pause,
        reraise=True,
    )
    while True:
        before = get_progress()
        try:
            return retrying(explain_errors(address)(attempt))
        except TemporaryError:
            if get_progress() <= before:
                raise


def download_rest(address: str, part: Path, label: str, *, as_stream: bool = False) -> FileState:
    """Append to a part what is missing; begin again if it belongs to another version."""
    state, where = request_state(address), hide_secrets(address)
    # Ranges are joined under one version; the bytes may change under a weak ETag.
    as_stream = as_stream or not state.size or (state.version or "W/").startswith("W/")
    note = {"address": where, "size": state.size, "version": state.version}
    if as_stream or files.try_read_json(get_note(part)) != note:
        remove_part(part)
    with part.open("ab") as target, open_file(address, state, as_stream=as_stream) as file:
        start = target.tell()
        if not as_stream:
            files.write_json(get_note(part), note)
            file.seek(start)
        size = "a file of unknown size" if state.size is None else f"{state.size / 1e6:,.1f} MB"
        log.info("%s: %s %s", label, f"resuming at {start / 1e6:,.1f} MB of" if start else "fetching", size)
        # `disable=None`: a bar on a terminal alone.
        options: dict[str, Any] = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}
        with tqdm(desc=label, total=state.size, initial=start, **options) as bar:
            while data := file.read(RANGE_BYTES):
                target.write(data)
                bar.update(len(data))
                if len(data) < RANGE_BYTES and not as_stream:
                    break  # the last range, or the file of another version
        arrived = target.tell()
    if request_state(address) != state:
        remove_part(part)
        raise TemporaryError("The file changed at its source during the download.", where, TODO)
    if state.size is not None and arrived != state.size:
        if arrived > state.size:
            remove_part(part)
        raise TemporaryError(f"{arrived:,} bytes arrived, but the source states {state.size:,}.", where, TODO)
    return state


def get_note(part: Path) -> Path:
    """Return the file that says which version a part is the beginning of; a part without it is not resumed."""
    return part.with_name(f"{part.name}.json")


def remove_part(part: Path) -> None:
    get_note(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


# ---- fsspec ----


def open_filesystem(address: str) -> Any:  # noqa: ANN401 (fsspec has no types)
    """Return the fsspec filesystem of an address, without its own retries."""
    if address.startswith("/"):
        return fsspec.filesystem("file")
    if remote.find_store(address):
        return remote.open_store(address, retries=0)
    # No limit on the whole transfer; proxies and .netrc as in curl and pip; compressed bytes have no stable ranges.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    client = {"timeout": timeout, "trust_env": True, "headers": {"Accept-Encoding": "identity"}}
    return fsspec.filesystem("http", client_kwargs=client)


def request_state(address: str) -> FileState:
    filesystem = open_filesystem(address)
    try:
        info = filesystem.info(address)
    except FileNotFoundError as error:
        missing = error
    else:
        if info["type"] == "directory":
            raise TiplineError("This is a folder, not a file.", hide_secrets(address), "Name the month's file.")
        found = ((info.get(name) for name in names) for names in (remote.VERSIONS, remote.TIMES))
        return FileState(info["size"], *(next((str(value) for value in values if value), None) for values in found))
    if remote.find_store(address):
        filesystem.ls(address)  # adlfs says only here that the whole bucket is missing
    raise missing


def list_files(address: str) -> list[tuple[str, str]]:
    """List the files below a folder, or those that an address with `*` names, without those of a system.

    Returns addresses and names below the fixed part, sorted; raises NotPublishedError if there are none.
    """
    filesystem, base = open_filesystem(address), address.partition("*")[0]
    base = base if base == address else base.rpartition("/")[0]
    with explain_errors(address):
        found = filesystem.glob(address, detail=True) if "*" in address else filesystem.find(address, detail=True)
        folders = [path for path, info in found.items() if info["type"] == "directory"]
        paths = {path for path in found if path not in folders}.union(*map(filesystem.find, folders))
    root = filesystem._strip_protocol(base)  # noqa: SLF001 (fsspec has no other name for it)
    names = {path: path.removeprefix(root).strip("/") for path in sorted(paths)}
    listed = [
        (path if path.startswith("/") else filesystem.unstrip_protocol(path), name)
        for path, name in names.items()
        if not any(part.startswith(("_", ".")) for part in name.split("/"))
    ]
    if not listed:
        raise NotPublishedError(MISSING, hide_secrets(address), TODO_MISSING)
    return listed


def open_file(address: str, state: FileState, *, as_stream: bool = False) -> Any:  # noqa: ANN401 (fsspec has no types)
    filesystem = open_filesystem(address)
    options: dict[str, Any] = {"block_size": 0 if as_stream else RANGE_BYTES, "cache_type": "none"}
    if address.startswith("http"):  # s3fs adds If-Match itself
        condition = {"If-Range": state.version} if state.version and not as_stream else {}
        options |= {"size": state.size, "headers": filesystem.kwargs.get("headers", {}) | condition}
    return filesystem.open(address, "rb", **options)


# ---- failures ----


@contextlib.contextmanager
def explain_errors(address: str) -> Iterator[None]:
    """Turn errors of fsspec and its libraries into messages; a full disk is reported as it is."""
    try:
        yield
    except TiplineError:
        raise
    except remote.list_errors(address) as error:
        if isinstance(error, OSError) and error.errno in files.DISK_FULL_ERRORS:
            raise
        raise (explain_http_error if address.startswith("http") else explain_error)(error, address) from error


def explain_error(error: Exception, address: str) -> TiplineError:
    is_local = address.startswith("/")
    if isinstance(error, FileNotFoundError) and (is_local or remote.is_missing(error, address)):
        return NotPublishedError(MISSING, hide_secrets(address), TODO_MISSING)
    if is_local:
        return TiplineError(f"The month could not be read: {error}.", address, TODO)
    final, may_pass = remote.explain_store_error(error, address, "Check this address in params.yaml.")
    return TemporaryError(*final.parts) if may_pass else final


def explain_http_error(error: Exception, address: str) -> TiplineError:
    where = hide_secrets(address)
    if isinstance(error, ValueError) and re.search("range requests|Cannot seek", str(error)):
        what = "The server sends whole files only, so the footer of a Parquet file cannot be read alone."
        return NoRangeError(what, where, "`tipline download` fetches the month and checks it.")
    # fsspec reports any failure as a FileNotFoundError.
    cause = remote.find_cause(error, aiohttp.ClientError) or list_causes(error)[-1]
    status, words = (cause.status, cause.message) if isinstance(cause, aiohttp.ClientResponseError) else (0, str(cause))
    if status in GONE or isinstance(cause, FileNotFoundError):
        return NotPublishedError(MISSING, where, TODO_MISSING)
    if isinstance(cause, aiohttp.ClientPayloadError):
        words = "the connection was cut before the end"
    words = hide_secrets(f"{status or ''} {words or repr(cause)}".strip(" ."))
    if status == FORBIDDEN:
        todo = "The TLC's server answers this for months that it does not have yet and to fast requests. Try later."
        return RefusedError(f"The server refuses this month: {words}.", where, todo)
    is_lost = isinstance(cause, LOST_CONNECTION) and not isinstance(cause, aiohttp.ClientSSLError)
    kind = TemporaryError if is_lost or status in TEMPORARY else TiplineError
    return kind(f"The month could not be fetched: {words}.", where, TODO)
