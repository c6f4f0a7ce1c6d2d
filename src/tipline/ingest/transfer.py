"""Bytes from an address (a path, http, https, s3) through fsspec: resumed, verified, or an error in words."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import hashlib
import logging
import random
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import fsspec
import fsspec.asyn
from botocore import exceptions as boto

from tipline import files, progress
from tipline.errors import NotPublishedError, TiplineError, hide_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping

T = TypeVar("T")
log = logging.getLogger(__name__)

TRIES = 5
PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_WISH_SECONDS = 60.0  # of a server that says when to come back
CONNECT_SECONDS = 20.0
READ_SECONDS = 60.0

CHUNK = 1 << 20
PARTIAL, FORBIDDEN, FAILED = 206, 403, 500
GONE = {404, 410}
STALE = {412, 416}  # the file is another one now, or ends before the part does
PASSING = {FORBIDDEN, 408, 425, 429}  # forbidden: so says the TLC's network to those who are too fast
ALGORITHMS = {"md5": "md5", "sha": "sha1", "sha-256": "sha256", "sha-512": "sha512"}
ERRORS = (OSError, ValueError, aiohttp.ClientError, boto.BotoCoreError)
CUT = (
    *(ConnectionError, TimeoutError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError),
    *(boto.ConnectionError, boto.HTTPClientError),
)
UNTRUSTED = (aiohttp.ClientSSLError, boto.SSLError)
NO_KEYS = (PermissionError, boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)
TODO = "Check `source` in params.yaml, or try again later."
TODO_KEYS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary ones) or AWS_PROFILE, and "
    "AWS_ENDPOINT_URL for a server other than Amazon's; FSSPEC_S3_ANON=true reads a public bucket without keys."
)


@dataclasses.dataclass(frozen=True)
class Stated:
    """What a source says of a file: bytes, ETag (else when it changed), hex digests by the names of hashlib."""

    size: int | None
    version: str | None
    checksums: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Answer:
    """Bytes of a file from `start` on, which need not be the place that was asked for; below 0: nobody knows."""

    stated: Stated
    start: int
    read: Callable[[], bytes]
    close: Callable[[], object]


class NoRangeError(TiplineError):
    """The server sends whole files only."""


class DamagedError(TiplineError):
    """What arrived is not what the source states."""


class AgainError(Exception):
    """A failure that may pass; `last` is the error if it does not, `wish` the seconds that the server asks for."""

    def __init__(self, last: TiplineError, wish: float = 0.0) -> None:
        super().__init__(str(last))
        self.last, self.wish = last, wish


class StaleError(AgainError):
    """The bytes that are here are no beginning of the file that the source has now."""


def peek_bytes(place: str, start: int, length: int) -> tuple[Stated, bytes]:
    """At most `length` bytes from `start` on (below 0: of the last -start bytes); no more than those are sent.

    Raises
    ------
    NoRangeError
        Where the server sends the file from its beginning whatever is asked for.
    TiplineError
        As `download`.
    """

    def attempt() -> tuple[Stated, bytes]:
        try:
            with contextlib.closing(ask(place, start, length)) as answer:
                return answer.stated, head(answer, start, length, hide_secrets(place))
        except StaleError:
            return Stated(None, None), b""  # the file is empty, or ends before `start`

    return persist(attempt, hide_secrets(place))


def head(answer: Answer, start: int, length: int, where: str) -> bytes:
    """The first bytes of an answer, if they are those that were asked for."""
    size = answer.stated.size
    if answer.start != (start if start >= 0 or size is None else max(size + start, 0)):
        what = "The server sends whole files only: the footer of a Parquet file does not come alone."
        raise NoRangeError(what, where, "`tipline download` fetches the month and checks it.")
    data = bytearray()
    while len(data) < length and (piece := answer.read()):
        data += piece
    return bytes(data[:length])


def download_file(place: str, part: Path, label: str) -> Stated:
    """Bring a file to `part`, going on where an earlier run ended if the source still has the same version.

    The part is kept where the network fails or the user interrupts, and removed where the disk is full or the bytes
    are wrong. `label` is what the progress is called.

    Raises
    ------
    NotPublishedError
        Where the source does not have the file.
    TiplineError
        Where it cannot be reached, refuses, or sends something else than it states.
    """
    try:
        stated = persist(lambda: fill(place, part, label), label, lambda: size_of(part))
        verify(part, stated, hide_secrets(place))
    except DamagedError:
        forget(part)
        raise
    except OSError as error:
        if error.errno in files.DISK_FULL_ERRORS:
            forget(part)  # the person needs the room
            error.filename = str(part)
        raise
    note_of(part).unlink(missing_ok=True)
    return stated


def fill(place: str, part: Path, label: str) -> Stated:
    """One attempt to bring the rest of a file; a part that does not fit any more is dropped."""
    began = remembered(place, part)
    try:
        start = resume_at(part, began)
        with contextlib.closing(ask(place, start, version=began.version if began else None)) as answer:
            stated = joined(place, began, answer) if answer.start else answer.stated
            pour(answer, place, part, stated, label)
        if stated.size is not None and size_of(part) != stated.size:
            kind = AgainError if size_of(part) < stated.size else StaleError
            what = f"{size_of(part):,} bytes arrived, {stated.size:,} were stated."
            raise kind(TiplineError(what, hide_secrets(place), TODO))
    except StaleError:
        forget(part)
        raise
    return stated


def joined(place: str, began: Stated | None, answer: Answer) -> Stated:
    """What is known of a file whose beginning is here, if the answer goes on with the very same one."""
    now = answer.stated
    if answer.start < 0 or began is None or now.version != began.version:
        what = "The file changed at its source while it was fetched."
        raise StaleError(TiplineError(what, hide_secrets(place), TODO))
    return dataclasses.replace(began, checksums=began.checksums | now.checksums)


def pour(answer: Answer, place: str, part: Path, stated: Stated, label: str) -> None:
    """Write what arrives behind what is there."""
    with part.open("r+b" if answer.start else "wb") as file:
        file.seek(answer.start)
        # After what does not fit is gone, before anything new arrives: a kill in between leaves nothing to mistake.
        note_of(part).unlink(missing_ok=True)
        if stated.version and not stated.version.startswith("W/"):  # a weak ETag may stay where bytes change
            files.write_json(note_of(part), {"address": hide_secrets(place)} | dataclasses.asdict(stated))
        if not sys.stderr.isatty():
            size = "a file of unknown size" if stated.size is None else f"{stated.size / 1e6:,.1f} MB"
            log.info(
                "%s: %s %s", label, f"resumed at {answer.start / 1e6:,.1f} MB of" if answer.start else "fetching", size
            )
        with progress.show_progress(stated.size, "B", label, answer.start) as add:
            while data := answer.read():
                file.write(data)
                add(len(data))


def verify(part: Path, stated: Stated, where: str) -> None:
    """Hold the bytes against the checksums that the source states."""
    for algorithm, expected in stated.checksums.items():
        with part.open("rb") as file:
            found = hashlib.file_digest(file, functools.partial(hashlib.new, algorithm, usedforsecurity=False))
        if found.hexdigest() != expected:
            what = f"The bytes that arrived have another {algorithm} checksum than the source states."
            raise DamagedError(what, where, "Try again; tell whoever publishes it if this stays.")


# ---- the part and the note beside it ----


def note_of(part: Path) -> Path:
    """Where it is written what a part is the beginning of."""
    return part.with_name(f"{part.name}.json")


def remembered(place: str, part: Path) -> Stated | None:
    """What the source stated when the part was begun, None where there is nothing to go on with."""
    match files.try_read_json(note_of(part)):
        case {"address": old, "size": int() | None as size, "version": str(version), "checksums": dict(checksums)}:
            if old == hide_secrets(place) and part.is_file() and checksums.keys() <= set(ALGORITHMS.values()):
                return Stated(size, version, checksums)
    return None


def resume_at(part: Path, began: Stated | None) -> int:
    """Where to go on: of a whole part the last byte is asked for again, to learn whether the file is still the same."""
    if began is None:
        return 0
    return size_of(part) if began.size is None else max(min(size_of(part), began.size - 1), 0)


def size_of(part: Path) -> int:
    """Bytes that are here."""
    return part.stat().st_size if part.exists() else 0


def forget(part: Path) -> None:
    """Remove a part and its note."""
    note_of(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


# ---- one request ----


def ask(place: str, start: int, length: int | None = None, version: str | None = None) -> Answer:
    """Open a file at `start` (below 0: so far from its end), of the version that `start` belongs to."""
    if place.startswith("/"):
        return ask_here(place, start)
    asked = {}
    if start or length is not None:
        asked["Range"] = f"bytes={start}" + ("" if start < 0 else f"-{'' if length is None else start + length - 1}")
    s3 = place.startswith("s3:")
    if start and version:
        asked["IfMatch" if s3 else "If-Range"] = version
    response = wait(place, (get_s3 if s3 else get_http)(place, asked))
    stated, begin = understand(response.status, response.headers, s3=s3)
    if "content-encoding" in response.headers:
        response.content.set_read_chunk_size(CHUNK)  # aiohttp unpacks no more at once than its buffer holds
    close = functools.partial(fsspec.asyn.get_loop().call_soon_threadsafe, response.close)
    return Answer(stated, begin, lambda: wait(place, response.content.readany()), close)


def ask_here(place: str, start: int) -> Answer:
    """Open a file of this machine."""
    with telling(place):
        file = Path(place).open("rb")  # noqa: SIM115 (closed by the caller)
    size = Path(place).stat().st_size
    begin = file.seek(start if start >= 0 else max(size + start, 0))
    return Answer(Stated(size, None), begin, functools.partial(file.read, CHUNK), file.close)


async def get_http(place: str, asked: Mapping[str, str]) -> aiohttp.ClientResponse:
    """The answer of a web server, with fsspec's session and settings (FSSPEC_HTTP_...)."""
    # aiohttp throws away what it holds when a connection is cut: with a buffer of 1 it takes nothing more in before
    # what is there was read. trust_env: proxies and .netrc, as curl and pip do.
    client = {"timeout": client_timeout(), "read_bufsize": 1, "trust_env": True}
    filesystem = fsspec.filesystem("http", client_kwargs=client)
    session = await filesystem.set_session()
    # Of packed bytes neither length nor place could be compared.
    headers = filesystem.kwargs.get("headers", {}) | {"Accept-Encoding": "identity"} | asked
    options = filesystem.kwargs | {"headers": headers}
    response: aiohttp.ClientResponse = await session.get(filesystem.encode_url(place), **options)
    response.raise_for_status()
    return response


async def get_s3(place: str, asked: Mapping[str, str]) -> aiohttp.ClientResponse:
    """The answer of an S3 server, with the keys and the endpoint that the environment names."""
    # Trying again is done here, for all kinds of sources alike.
    config = {"retries": {"max_attempts": 0}, "connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    filesystem = fsspec.filesystem("s3", config_kwargs=config)
    filesystem.retries = 1
    bucket, key, _ = filesystem.split_path(place)
    call = filesystem._call_s3  # noqa: SLF001 (fsspec's way to name coroutines)
    answer = await call("get_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED", **asked)
    # The bare stream: botocore's own check would tell of a wrong checksum when the bytes are in the part already.
    response: aiohttp.ClientResponse = answer["Body"].raw_stream
    return response


def client_timeout() -> aiohttp.ClientTimeout:
    """No limit on the whole transfer, which may be large, but on each wait within it."""
    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)


def wait(place: str, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run something on fsspec's loop; it ends early by Ctrl-C in the main thread, by `cancel` in the others."""
    with telling(place):
        return asyncio.run_coroutine_threadsafe(coroutine, fsspec.asyn.get_loop()).result()


def cancel_all() -> None:
    """End all that waits for the network now, in whatever thread: CancelledError is raised there."""
    loop = fsspec.asyn.get_loop()
    loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])


# ---- what a source states ----


def understand(status: int, headers: Mapping[str, str], *, s3: bool) -> tuple[Stated, int]:
    """What the headers of an answer state of the file, and where in it the answer begins; -1 if they do not say."""
    start, size, version = 0, headers.get("content-length", ""), headers.get("etag") or headers.get("last-modified")
    if status == PARTIAL:
        found = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", headers.get("content-range", ""))
        start, size = (int(found[1]), found[2]) if found else (-1, "")
    if not s3 and headers.get("content-encoding", "identity") != "identity":
        return Stated(None, None), min(start, 0)  # aiohttp unpacks it: these are length and digests of other bytes
    found_sums = checksums(headers, whole=status != PARTIAL) | (s3_md5(headers) if s3 else {})
    return Stated(int(size) if size.isdigit() else None, version, found_sums), start


def checksums(headers: Mapping[str, str], *, whole: bool) -> dict[str, str]:
    """The digests of the file: Digest and Repr-Digest are of all of it in any answer, the others of what is sent."""
    fields = [field.partition("=") for name in ("digest", "repr-digest") for field in headers.get(name, "").split(",")]
    pairs = [(ALGORITHMS.get(name.strip().lower(), ""), value.strip(" :")) for name, _, value in fields]
    if whole:
        pairs += [("md5", headers.get("content-md5", "")), ("sha256", headers.get("x-amz-checksum-sha256", ""))]
    return {name: digest for name, value in pairs if name and (digest := hexadecimal(name, value))}


def hexadecimal(algorithm: str, value: str) -> str:
    """A digest in base64 as hex; empty for what is none, such as S3's checksums of checksums."""
    try:
        digest = base64.b64decode(value, validate=True)
    except ValueError:
        return ""
    return digest.hex() if len(digest) == hashlib.new(algorithm, usedforsecurity=False).digest_size else ""


def s3_md5(headers: Mapping[str, str]) -> dict[str, str]:
    """The MD5 that S3's ETag is, but for objects that were sent in several parts or are kept under a key."""
    found = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("etag", ""))
    kms = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    customers = "x-amz-server-side-encryption-customer-algorithm" in headers
    return {"md5": found[1]} if found and not kms and not customers else {}


# ---- trying again, and giving up ----


def persist(attempt: Callable[[], T], label: str, reached: Callable[[], int] = lambda: 0) -> T:
    """Make attempts until one ends well; give up after TRIES of them that got no further than any before."""
    failures = best = 0
    while True:
        try:
            return attempt()
        except AgainError as error:
            failures = 1 if reached() > best else failures + 1
            best = max(best, reached())
            if failures >= TRIES:
                raise error.last from error
            pause = min(PAUSE_SECONDS * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS)
            pause *= random.uniform(0.5, 1)  # noqa: S311 (only so that months do not come back all at once)
            pause = max(pause, min(error.wish, LONGEST_WISH_SECONDS))
            log.info("%s: %s Trying again in %.1f s.", label, error.last.parts[0], pause)
        wait(label, asyncio.sleep(pause))


@contextlib.contextmanager
def telling(place: str) -> Iterator[None]:
    """Turn what the libraries raise into what a person is told."""
    try:
        yield
    except ERRORS as error:
        raise told(error, place) from error


def told(error: Exception, place: str) -> TiplineError | AgainError:
    """What went wrong, in words; an AgainError for what may pass."""
    status, code, headers, words = read_facts(error)
    where, words, s3 = hide_secrets(place), hide_secrets(words), place.startswith("s3:")
    if isinstance(error, IsADirectoryError):
        return TiplineError("This is a folder, not a file.", where, "Let `source` name the month's file.")
    if code == "NoSuchBucket":
        return TiplineError("The bucket does not exist.", where, "Check `source` in params.yaml.")
    if status in GONE:
        todo = "Check the month and `source` in params.yaml; a month appears about two months after it ends."
        return NotPublishedError("The source does not have this month.", where, todo)
    if s3 and (status == FORBIDDEN or isinstance(error, NO_KEYS)):
        return TiplineError(f"S3 cannot be read with the keys at hand: {words}.", where, TODO_KEYS)
    last = TiplineError(f"The month could not be fetched: {words}.", where, TODO)
    if status == FORBIDDEN:
        todo = "The TLC's server says so of months that it has not got yet, and to those who ask too fast: try later."
        last = NotPublishedError(f"The server refuses this month: {words}.", where, todo)
    if status in STALE:
        return StaleError(last)
    cut = isinstance(error, CUT) and not isinstance(error, UNTRUSTED)
    wish = headers.get("retry-after", "")
    passes = cut or status in PASSING or status >= FAILED
    return AgainError(last, float(wish) if wish.isdigit() else 0.0) if passes else last


def read_facts(error: Exception) -> tuple[int, str, Mapping[str, str], str]:
    """Status (0: none), S3's code and the headers of the answer behind an error; the error in words."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, aiohttp.ClientResponseError):
            return link.status, "", link.headers or {}, f"{link.status} {link.message}"
        if isinstance(link, boto.ClientError):
            status, code = link.response["ResponseMetadata"]["HTTPStatusCode"], link.response["Error"].get("Code", "")
            words = f"{status} {code} {link.response['Error'].get('Message', '')}"
            return status, code, link.response["ResponseMetadata"]["HTTPHeaders"], words.strip(" .")
        link = link.__cause__
    words = str(error) or repr(error)
    if isinstance(error, aiohttp.ClientPayloadError):
        words = "the connection was cut before the end"
    elif isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError):
        words = error.strerror or words
    return 404 if isinstance(error, FileNotFoundError) else 0, "", {}, words.rstrip(".")
