"""Object stores: the filesystem of each in this process, and their errors in words."""

from __future__ import annotations

import asyncio
import errno
import importlib
import logging
import os
import pkgutil
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tipline.errors import TiplineError, UsageError, hide_secrets, list_causes, summarize_exception

Answer = tuple[int, str, str]  # HTTP status (0: none), error code, text

CONNECT_SECONDS, READ_SECONDS = 5, 60
NO_BUCKET = "NoSuchBucket"
# What fsspec's filesystems call the version of a file and the time of its last change.
TIMES = ("Last-Modified", "LastModified", "last_modified", "updated")  # of http, s3fs, adlfs, gcsfs
VERSIONS = ("generation", "ETag", "etag", *TIMES)  # of gcsfs, of http and s3fs, of adlfs
REFUSED, CHANGED, BUSY, FAILED = {401, 403}, {412, 416}, {408, 429}, 500


@dataclass(frozen=True)
class Store:
    """What differs between the kinds of stores."""

    title: str
    package: str  # that fsspec needs
    extra: str  # of tipline, which installs it
    open: Callable[[int], Any]  # with a number of retries
    read_answer: Callable[[BaseException], Answer | None]  # of the server, if this error holds it
    errors: tuple[str, ...]  # beside OSError, ValueError and aiohttp's
    no_credentials: tuple[str, ...]  # errors before anything is asked
    server: str  # variables that name the server
    todo: str  # for credentials that are refused


def find_store(address: str) -> Store | None:
    """Return the kind of store of an address, or None for paths and web servers."""
    return STORES.get(address.partition("://")[0])


def get_store(address: str) -> Store:
    return STORES[address.partition("://")[0]]


def open_store(address: str, retries: int = 3) -> Any:  # noqa: ANN401 (fsspec has no types)
    """Return the filesystem of an address; a request without an answer is repeated `retries` times."""
    store = get_store(address)
    # Otherwise gcsfs asks about each bucket over gRPC, which servers other than Google's do not speak.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        importlib.import_module(store.package)
    except ImportError as error:
        what = f"{store.title} needs the package {store.package}: {summarize_exception(error)}."
        todo = f"Install it, here and on all workers: pip install 'tipline[{store.extra}]'"
        raise UsageError(what, hide_secrets(address), todo) from error
    return store.open(retries)


def copy_files(filesystem: Any, sources: Sequence[str], targets: Sequence[str]) -> None:  # noqa: ANN401
    """Copy files of a store; raise a FileNotFoundError if one is missing."""
    import fsspec.asyn  # noqa: PLC0415 (paths do not need it)

    filesystem.copy(list(sources), list(targets))
    if hasattr(filesystem, "service_client"):
        fsspec.asyn.sync(filesystem.loop, wait_for_azure, filesystem, targets)


def list_errors(address: str) -> tuple[type[Exception], ...]:
    """Return the errors by which the filesystem of an address reports failures."""
    import aiohttp  # noqa: PLC0415

    store = find_store(address)
    return OSError, ValueError, aiohttp.ClientError, *map(pkgutil.resolve_name, store.errors if store else ())


def read_answer(error: BaseException, address: str) -> Answer:
    """Return the server's answer that led to an error of a store."""
    answers = map(get_store(address).read_answer, list_causes(error))
    words = getattr(error, "strerror", None) or str(error) or repr(error)
    return next((answer for answer in answers if answer), (0, "", str(words)))


def is_missing(error: Exception, address: str) -> bool:
    """Whether an error says that a file is missing in a bucket that exists."""
    return isinstance(error, FileNotFoundError) and read_answer(error, address)[1] != NO_BUCKET


def explain_store_error(error: Exception, address: str, todo: str) -> tuple[TiplineError, bool]:
    """Return the message for an error of a store, and whether it may pass; `todo` is for a bucket that is missing."""
    store, (status, code, words) = get_store(address), read_answer(error, address)
    where, words = hide_secrets(address), hide_secrets(words).strip(" .")
    if code == NO_BUCKET:
        return TiplineError("The bucket does not exist.", where, todo), False
    if status in REFUSED or find_cause(error, PermissionError, *map(pkgutil.resolve_name, store.no_credentials)):
        return TiplineError(f"{store.title} refuses these credentials: {words}.", where, store.todo), False
    if status in CHANGED:
        return TiplineError("This file changed while it was being used.", where, "Run the command again."), True
    todo = f"Check the address, {store.server} and the network, here and on the workers; then run the command again."
    may_pass = status >= FAILED or status in BUSY or not status
    return TiplineError(f"{store.title} cannot be used: {words}.", where, todo), may_pass


def find_cause(error: BaseException, *kinds: type[BaseException]) -> BaseException | None:
    """Return the first error of these kinds among an error and those that led to it, or None."""
    return next((cause for cause in list_causes(error) if isinstance(cause, kinds)), None)


# ---- S3 ----


def open_s3(retries: int) -> Any:  # noqa: ANN401
    import fsspec  # noqa: PLC0415

    # Stores that only resemble S3 know no trailing checksums, and cached listings would hide what others write.
    config: dict[str, Any] = {"retries": {"mode": "standard", "max_attempts": retries}}
    config |= {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    config |= {"request_checksum_calculation": "when_required"}
    filesystem = fsspec.filesystem("s3", use_listings_cache=False, max_concurrency=1, config_kwargs=config)
    if not retries:
        filesystem.retries = 1  # s3fs repeats what botocore has given up
    return filesystem


def read_s3_answer(cause: BaseException) -> Answer | None:
    from botocore.exceptions import ClientError  # noqa: PLC0415

    if not isinstance(cause, ClientError):
        return None
    status, found = cause.response["ResponseMetadata"]["HTTPStatusCode"], cause.response["Error"]
    code = str(found.get("Code", ""))
    return int(status), code, f"{status} {code} {found.get('Message', '')}"


# ---- Google Cloud Storage ----


def open_gcs(retries: int) -> Any:  # noqa: ANN401
    import aiohttp  # noqa: PLC0415
    import fsspec  # noqa: PLC0415
    from gcsfs.retry import retry_request  # noqa: PLC0415

    for name in ("gcsfs", "google.auth"):  # they log tracebacks of errors that they raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    options = {"requests_timeout": timeout, "session_kwargs": {"trust_env": True}}
    filesystem = fsspec.filesystem("gs", use_listings_cache=False, **options)
    # gcsfs repeats six times, for half a minute, and has no setting for it.
    request = retry_request(retries=retries + 1)(type(filesystem)._request.__wrapped__)  # noqa: SLF001
    filesystem._request = types.MethodType(request, filesystem)  # noqa: SLF001
    return filesystem


def read_gcs_answer(cause: BaseException) -> Answer | None:
    from gcsfs.retry import HttpError  # noqa: PLC0415

    text = str(cause)
    if isinstance(cause, FileNotFoundError):  # its text is the address; one that names no object lists or uploads
        return 404, NO_BUCKET if re.search("(^|/)b/[^/]+/o$", text) else "", text
    if isinstance(cause, OSError) and text.startswith("Forbidden: "):
        return 403, "", f"403 {text.partition(chr(10))[2]}"
    if isinstance(cause, FileExistsError):
        return 412, "", text
    if isinstance(cause, HttpError) and cause.code:
        refused = cause.__cause__  # of a token
        words = summarize_exception(refused) if refused else text.removesuffix(f", {cause.code}")
        return int(cause.code), "", f"{cause.code} {words}"
    return None


# ---- Azure ----


def open_azure(retries: int) -> Any:  # noqa: ANN401
    import fsspec  # noqa: PLC0415

    logging.getLogger("azure").setLevel(logging.CRITICAL)  # warnings about each source of credentials
    filesystem = fsspec.filesystem("abfs", use_listings_cache=False)
    # adlfs passes no options to the client, which waits for 15 seconds before it repeats a request.
    policy = filesystem.service_client._config.retry_policy  # noqa: SLF001
    policy.total_retries, policy.initial_backoff, policy.increment_base, policy.random_jitter_range = retries, 1, 1, 1
    return filesystem


async def wait_for_azure(filesystem: Any, paths: Sequence[str]) -> None:  # noqa: ANN401
    """Wait for files that Azure copies after it has answered."""
    for path in paths:
        container, name, _ = filesystem.split_path(path)
        async with filesystem.service_client.get_blob_client(container, name) as blob:
            while (status := (await blob.get_blob_properties()).copy.status) == "pending":  # noqa: ASYNC110
                await asyncio.sleep(1)  # the server sends no event
        if status in {"aborted", "failed"}:
            raise OSError(errno.EIO, f"the copy was {status}", path)


def read_azure_answer(cause: BaseException) -> Answer | None:
    from azure.core.exceptions import HttpResponseError  # noqa: PLC0415

    if not isinstance(cause, HttpResponseError) or cause.status_code is None:
        return None
    status, code = cause.status_code, getattr(cause, "error_code", None) or ""
    code = str(getattr(code, "value", code))  # of an enumeration
    return status, NO_BUCKET if code == "ContainerNotFound" else code, f"{status} {code} {summarize_exception(cause)}"


S3 = Store(
    "S3",
    "s3fs",
    "s3",
    open_s3,
    read_s3_answer,
    ("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError"),
    tuple(
        f"botocore.exceptions:{name}" for name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
    ),
    "AWS_ENDPOINT_URL",
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary ones) or AWS_PROFILE, and "
    "AWS_ENDPOINT_URL for a server other than Amazon's, here and on all workers. FSSPEC_S3_ANON=true reads a public "
    "bucket without keys.",
)
GCS = Store(
    "Google Cloud Storage",
    "gcsfs",
    "gcs",
    open_gcs,
    read_gcs_answer,
    ("gcsfs.retry:HttpError", "gcsfs.retry:NonRetryableError", "google.auth.exceptions:GoogleAuthError"),
    ("gcsfs.retry:NonRetryableError", "google.auth.exceptions:RefreshError"),
    "STORAGE_EMULATOR_HOST",
    "Set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account's key or run `gcloud auth application-default "
    "login`, here and on all workers. FSSPEC_GS_TOKEN=anon reads a public bucket.",
)
AZURE = Store(
    "Azure Blob Storage",
    "adlfs",
    "azure",
    open_azure,
    read_azure_answer,
    ("azure.core.exceptions:AzureError",),
    ("azure.core.exceptions:ClientAuthenticationError", "builtins:ValueError"),
    "AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_NAME",
    "Set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN (or `az login`, or a "
    "role of the machine), or else AZURE_STORAGE_CONNECTION_STRING, here and on all workers. AZURE_STORAGE_ANON=true "
    "reads a public container.",
)
STORES = {"s3": S3, "gs": GCS, "abfs": AZURE, "az": AZURE}
