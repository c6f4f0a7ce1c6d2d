"""S3: the client of this process, and its errors in words."""

from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

from tipline.errors import TiplineError, hide_secrets, list_causes

TODO_KEYS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary ones) or AWS_PROFILE, and "
    "AWS_ENDPOINT_URL for a server other than Amazon's, here and on all workers. FSSPEC_S3_ANON=true reads a public "
    "bucket without keys."
)
STORE_ERRORS = (BotoCoreError, ClientError)
NO_KEYS = (PermissionError, NoCredentialsError, PartialCredentialsError, ProfileNotFound)
FORBIDDEN, CHANGED, BUSY, FAILED = 403, {412, 416}, {408, 429}, 500


def open_s3(retries: int = 3) -> Any:  # noqa: ANN401 (fsspec has no types)
    """Return the S3 filesystem of this process; a request without an answer is repeated `retries` times."""
    # Stores that only resemble S3 know no trailing checksums, and cached listings would hide what others write.
    config = {"retries": {"mode": "standard", "max_attempts": retries}, "connect_timeout": 5, "read_timeout": 60}
    config |= {"request_checksum_calculation": "when_required"}
    return fsspec.filesystem("s3", use_listings_cache=False, max_concurrency=1, config_kwargs=config)


def explain_store_error(error: Exception, address: str, todo: str) -> tuple[TiplineError, bool]:
    """Return the message for an error of S3, and whether it may pass; `todo` is for a bucket that does not exist."""
    status, code, words = get_store_answer(error)
    where, words = hide_secrets(address), hide_secrets(words)
    if code == "NoSuchBucket":
        return TiplineError("The bucket does not exist.", where, todo), False
    if status == FORBIDDEN or find_cause(error, *NO_KEYS):
        return TiplineError(f"S3 refuses these keys: {words}.", where, TODO_KEYS), False
    if status in CHANGED:
        return TiplineError("This file changed while it was being used.", where, "Run the command again."), True
    todo = "Check the address, AWS_ENDPOINT_URL and the network, here and on the workers; then run the command again."
    may_pass = status >= FAILED or status in BUSY or not status
    return TiplineError(f"S3 cannot be used: {words}.", where, todo), may_pass


def get_store_answer(error: Exception) -> tuple[int, str, str]:
    """Return HTTP status (0: none), error code and text of the answer that led to an error of S3."""
    answer = find_cause(error, ClientError)
    if isinstance(answer, ClientError):
        status, found = answer.response["ResponseMetadata"]["HTTPStatusCode"], answer.response["Error"]
        words = f"{status} {found.get('Code', '')} {found.get('Message', '')}"
        return int(status), str(found.get("Code", "")), words.strip(" .")
    words = getattr(error, "strerror", None) or str(error) or repr(error)
    return 0, "", str(words).rstrip(".")


def find_cause(error: Exception, *kinds: type[BaseException]) -> BaseException | None:
    """Return the first error of these kinds among an error and those that led to it, or None."""
    return next((cause for cause in list_causes(error) if isinstance(cause, kinds)), None)
