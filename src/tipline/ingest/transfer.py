"""Bytes from an address (a path, http, https, s3) through fsspec: resumed, checked, retried."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import logging
import threading
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import aiohttp
import fsspec
import fsspec.asyn
import tenacity

from tipline import files, progress
from tipline.errors import NotPublishedError, TiplineError, hide_secrets
from tipline.s3 import STORE_ERRORS, explain_store_error, find_cause, get_store_answer, open_s3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

T = TypeVar("T")
log = logging.getLogger(__name__)

CHUNK = 1 << 23
TRIES = 5
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
CONNECT_SECONDS, READ_SECONDS = 20.0, 60.0
MISSING, FORBIDDEN, FAILED = {404, 410}, 403, 500
# 403 is what the TLC's network answers to requests that come too fast.
TEMPORARY = {FORBIDDEN, 408, 412, 416, 425, 429}
ALGORITHMS = {"md5": "md5", "sha": "sha1", "sha-256": "sha256", "sha-512": "sha512"}
LOST_CONNECTION = (ConnectionError, TimeoutError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
UNTRUSTED = (aiohttp.ClientSSLError,)
TODO = "Check `source` in params.yaml, or try again later."

cancelled = threading.Event()


@dataclass(frozen=True)
class Stated:
    """What a source states about a file: size in bytes, version (ETag, or time of the last change), hex digests."""

    size: int | None
    version: str | None
    checksums: dict[str, str] = field(default_factory=dict)
    has_ranges: bool = True


class NoRangeError(TiplineError):
    """The server sends whole files only."""


class TemporaryError(Exception):
    """A failure that may pass; `final` is the error if it does not."""

    def __init__(self, final: TiplineError) -> None:
        super().__init__(str(final))
        self.final = final


def peek_bytes(address: str, start: int, length: int) -> tuple[Stated, bytes]:
    """Read at most `length` bytes from `start`, or the last -start bytes.

    Raises
    ------
    NoRangeError
        The server sends whole files only and `start` is not 0.
    TiplineError
        As `download_file`.
    """

    def peek() -> tuple[Stated, bytes]:
        stated = ask(address)
        if stated.size == 0:
            return stated, b""
        begin = start if start >= 0 or stated.size is None else max(stated.size + start, 0)
        if begin and (not stated.has_ranges or stated.size is None):
            raise explain_missing_ranges(address)
        with open_file(address, stated) as file:
            file.seek(begin)
            return stated, read(address, functools.partial(file.read, length))

    return retry(peek, hide_secrets(address))


def download_file(address: str, part: Path, label: str) -> Stated:
    """Download a file to `part`; resume an earlier download if the source still has the same version.

    A failure of the network or an interrupt keeps the part. A full disk or a wrong checksum removes it.

    Parameters
    ----------
    label
        The name shown with the progress.

    Raises
    ------
    NotPublishedError
        The source does not have the file.
    TiplineError
        The source cannot be reached, refuses, or sends something else than it states.
    """
    try:
        try:
            stated = retry(lambda: download_rest(address, part, label), label, lambda: get_size(part))
        except NoRangeError:  # few servers state beforehand that they have no ranges
            stated = retry(lambda: download_rest(address, part, label, has_ranges=False), label)
        check_checksums(part, stated, hide_secrets(address))
    except OSError as error:
        if error.errno in files.DISK_FULL_ERRORS:
            forget_part(part)
            error.filename = str(part)
        raise
    get_note(part).unlink(missing_ok=True)
    return stated


def download_rest(address: str, part: Path, label: str, *, has_ranges: bool = True) -> Stated:
    """Append what is missing to a part; start again if the source has another version."""
    stated = ask(address)
    stated = replace(stated, has_ranges=stated.has_ranges and has_ranges)
    if not is_resumable(address, part, stated):
        forget_part(part)
    start = get_size(part)
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as target:
        if stated.version and not stated.version.startswith("W/") and stated.has_ranges and stated.size:
            files.write_json(get_note(part), {"address": hide_secrets(address), **asdict(stated)})
        size = "a file of unknown size" if stated.size is None else f"{stated.size / 1e6:,.1f} MB"
        log.info("%s: %s %s", label, f"resuming at {start / 1e6:,.1f} MB of" if start else "fetching", size)
        with progress.show_progress(stated.size, "B", label, start) as add:
            for data in read_chunks(address, stated, start):
                target.write(data)
                add(len(data))
    arrived = get_size(part)
    changed = ask(address).version != stated.version
    if changed or arrived != (arrived if stated.size is None else stated.size):
        if changed or arrived > (stated.size or 0):
            forget_part(part)
        what = (
            "The file changed at its source during the download."
            if changed
            else f"{arrived:,} bytes arrived, the source states {stated.size:,}."
        )
        raise TemporaryError(TiplineError(what, hide_secrets(address), TODO))
    return stated


def read_chunks(address: str, stated: Stated, start: int) -> Iterator[bytes]:
    """Yield the bytes of a file from `start`."""
    if stated.size == start:
        return
    with open_file(address, stated) as file:
        file.seek(start)
        while data := read(address, functools.partial(file.read, CHUNK)):
            yield data


def check_checksums(part: Path, stated: Stated, where: str) -> None:
    """Compare the bytes with the checksums that the source states; remove them if they differ.

    Raises
    ------
    TiplineError
        A checksum differs.
    """
    for algorithm, expected in stated.checksums.items():
        with part.open("rb") as file:
            found = hashlib.file_digest(file, functools.partial(hashlib.new, algorithm, usedforsecurity=False))
        if found.hexdigest() != expected:
            forget_part(part)
            what = f"The downloaded bytes do not have the {algorithm} checksum that the source states."
            raise TiplineError(what, where, "Try again; tell the publisher if it stays.")


# ---- the part, and the note beside it ----


def get_note(part: Path) -> Path:
    """Return the file that says which version a part is the beginning of."""
    return part.with_name(f"{part.name}.json")


def is_resumable(address: str, part: Path, stated: Stated) -> bool:
    """Whether a part is the beginning of the version that the source has now."""
    note = files.try_read_json(get_note(part))
    if not isinstance(note, dict) or not stated.version or not stated.has_ranges or stated.size is None:
        return False
    same = (note.get("address"), note.get("version"), note.get("size"))
    return same == (hide_secrets(address), stated.version, stated.size) and get_size(part) <= stated.size


def get_size(part: Path) -> int:
    """Return the bytes that have arrived."""
    return part.stat().st_size if part.exists() else 0


def forget_part(part: Path) -> None:
    """Remove a part and its note."""
    get_note(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


# ---- the source ----


def open_filesystem(address: str) -> Any:  # noqa: ANN401 (fsspec has no types)
    """Return the fsspec filesystem of an address."""
    if address.startswith("/"):
        return fsspec.filesystem("file")
    if address.startswith("s3:"):
        return open_s3(retries=1)
    # No limit on the transfer as a whole, but on each wait; trust_env: proxies and .netrc, as in curl and pip.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return fsspec.filesystem("http", client_kwargs={"timeout": timeout, "trust_env": True})


def ask(address: str) -> Stated:
    """Ask a source about a file."""
    filesystem = open_filesystem(address)
    info = read(address, functools.partial(filesystem.info, address))
    if info["type"] == "directory":
        raise TiplineError("This is a folder, not a file.", hide_secrets(address), "Name the month's file in `source`.")
    changed = info.get("Last-Modified") or info.get("LastModified")
    version = info.get("ETag") or (str(changed) if changed else None)
    return Stated(info["size"], version, decode_checksums(info), info.get("partial", True))


def open_file(address: str, stated: Stated) -> Any:  # noqa: ANN401 (fsspec has no types)
    """Open a file that is read in ranges, or as one stream if the server cannot send ranges."""
    filesystem = open_filesystem(address)
    options: dict[str, Any] = {} if address.startswith("/") else {"cache_type": "none", "block_size": CHUNK}
    if address.startswith("http"):
        headers = {"Accept-Encoding": "identity"}
        if (stated.version or "").startswith('"'):
            headers["If-Match"] = str(stated.version)
        options |= {"headers": headers, "size": stated.size}
        if stated.size is None or not stated.has_ranges:
            options["block_size"] = 0
    return read(address, functools.partial(filesystem.open, address, "rb", **options))


def decode_checksums(info: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests in Content-MD5 and Digest headers as hex, by the names of hashlib."""
    fields = [item.partition("=") for item in str(info.get("Digest", "")).split(",")]
    pairs = [(ALGORITHMS.get(name.strip().lower(), ""), value.strip()) for name, _, value in fields]
    pairs.append(("md5", str(info.get("Content-MD5", ""))))
    found = {}
    for name, value in pairs:
        try:
            digest = base64.b64decode(value, validate=True)
        except ValueError:
            continue
        if name and len(digest) == hashlib.new(name, usedforsecurity=False).digest_size:
            found[name] = digest.hex()
    return found


def cancel_all() -> None:
    """End all waiting for the network in all threads, which then raise KeyboardInterrupt."""
    cancelled.set()
    loop = fsspec.asyn.get_loop()
    loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])


# ---- failures ----


def retry(attempt: Callable[[], T], label: str, get_progress: Callable[[], int] = lambda: 0) -> T:
    """Repeat attempts until one succeeds; give up after TRIES of them without progress."""
    best, failures = 0, 0

    def has_failed(_: tenacity.RetryCallState) -> bool:
        nonlocal best, failures
        failures = 1 if get_progress() > best else failures + 1
        best = max(best, get_progress())
        return failures >= TRIES

    def announce(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, TemporaryError):
            log.info("%s: %s Trying again in %.1f s.", label, error.final.parts[0], state.upcoming_sleep)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TemporaryError),
        stop=has_failed,
        wait=tenacity.wait_random_exponential(PAUSE_SECONDS, LONGEST_PAUSE_SECONDS),
        before_sleep=announce,
        sleep=wait_or_stop,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except TemporaryError as error:
        raise error.final from error


def wait_or_stop(seconds: float) -> None:
    """Sleep; raise KeyboardInterrupt when all downloads are cancelled."""
    if cancelled.wait(seconds):
        raise KeyboardInterrupt


def read(address: str, call: Callable[[], T]) -> T:
    """Call fsspec and translate its errors."""
    try:
        result = call()
    except (OSError, ValueError, aiohttp.ClientError, *STORE_ERRORS) as error:
        if cancelled.is_set():
            raise KeyboardInterrupt from error
        raise_translated(error, address)
    if result is None or cancelled.is_set():  # fsspec returns None for a task that was cancelled
        raise KeyboardInterrupt
    return result


def raise_translated(error: Exception, address: str) -> NoReturn:
    """Raise the message for an error of fsspec, or a TemporaryError if it may pass."""
    where, answer = hide_secrets(address), find_cause(error, aiohttp.ClientResponseError)
    status = answer.status if isinstance(answer, aiohttp.ClientResponseError) else 0
    if isinstance(error, ValueError) and "range requests" in str(error):
        raise explain_missing_ranges(address) from error
    connection = find_cause(error, *LOST_CONNECTION)
    is_missing = isinstance(error, FileNotFoundError) and get_store_answer(error)[1] != "NoSuchBucket"
    if is_missing and (status in MISSING or not address.startswith("http")):
        todo = "Check the month and `source` in params.yaml. The TLC publishes a month about two months after it ends."
        raise NotPublishedError("The source does not have this month.", where, todo) from error
    if address.startswith("s3:"):
        final, is_temporary = explain_store_error(error, address, "Check `source` in params.yaml.")
        raise (TemporaryError(final) if is_temporary else final) from error
    words = str(connection or error.__cause__ or error)
    if isinstance(answer, aiohttp.ClientResponseError):
        words = f"{status} {answer.message}"
    elif isinstance(connection, aiohttp.ClientPayloadError):
        words = "the connection was cut"
    words = hide_secrets(words or repr(error)).rstrip(".")
    final = TiplineError(f"The month could not be fetched: {words}.", where, TODO)
    if status == FORBIDDEN:
        todo = "The TLC's server says so for months that it does not have yet and to fast requests: try again later."
        final = NotPublishedError(f"The server refuses this month: {words}.", where, todo)
    is_lost = bool(connection) and not find_cause(error, *UNTRUSTED)
    if is_lost or status in TEMPORARY or status >= FAILED:
        raise TemporaryError(final) from error
    raise final from error


def explain_missing_ranges(address: str) -> NoRangeError:
    """Return the error for a server that cannot send a part of a file."""
    what = "The server sends whole files only, so the footer of a Parquet file cannot be read alone."
    return NoRangeError(what, hide_secrets(address), "`tipline download` fetches the month and checks it.")
