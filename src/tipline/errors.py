"""Errors with three parts (what happened, where, what to do), their exit codes, and text for messages."""

from __future__ import annotations

import contextlib
import re

SHOWN_LETTERS = 60
SECRETS = re.compile(
    # Everything before the last @ of an address (a password may hold slashes and spaces), but not a port.
    r"(?<=://)(?:[^/\s?#]*|[^/\s?#@:]*:(?!\s|\d{1,5}(?:[/\s]|$)).*)(?=@)|"
    # The value of a query parameter whose name says that it is a secret.
    r"(?<=[?&;#])((?:[\w.-]*(?:signature|sig|token|secret|pass\w*|pwd|auth\w*|jwt|credential|key(?:id)?)|"
    r"code|odbc_connect)=)[^&;\s'\")]*",
    re.IGNORECASE,
)


class TiplineError(Exception):
    """A failure that a person can act on: what happened, which file, column or setting is affected, what to do."""

    exit_code = 1

    def __init__(self, what: str, where: str, todo: str) -> None:
        super().__init__(f"{what}\n  where: {where}\n  to do: {todo}")
        self.parts = (what, where, todo)

    def __reduce__(self) -> tuple[type[TiplineError], tuple[str, str, str]]:
        """Keep the three parts when an error travels back from a dask worker."""
        return type(self), self.parts


class UsageError(TiplineError):
    """The command line or params.yaml asks for something that makes no sense."""

    exit_code = 2


class DaskConfigError(UsageError, ImportError):
    """dask cannot be imported with the user's configuration. The forkserver passes over errors of import."""


class GateRefusedError(TiplineError):
    """The gate refuses a version."""

    exit_code = 3


class MonthsFailedError(TiplineError):
    """Some months failed; the rest are done."""

    exit_code = 4


class NotPublishedError(TiplineError):
    """The source does not have the month (yet)."""

    exit_code = 5


class TemporaryError(TiplineError):
    """A failure that may pass."""


class RepublishedError(TiplineError):
    """Months were published again since they were fetched."""

    exit_code = 6


class ReportedCode(contextlib.AbstractContextManager[None]):
    """Report any error of code that is not tipline's, SystemExit included, as a UsageError or another kind."""

    def __init__(self, name: str, where: str, todo: str, kind: type[TiplineError] = UsageError) -> None:
        self.name, self.where, self.todo, self.kind = name, where, todo, kind

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception | SystemExit) and not isinstance(error, TiplineError):
            what = f"{self.name} failed: {type(error).__name__}: {summarize_exception(error)}."
            raise self.kind(what, self.where, self.todo) from error


def shorten_text(value: object, letters: int = SHOWN_LETTERS) -> str:
    """Make a name or a type fit into a message: one line, without control characters."""
    text = str(value)
    text = (text if len(text) <= letters else f"{text[:letters]}…").replace("\n", " ")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def format_count(number: int, noun: str) -> str:
    """Format a count: `1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def hide_secrets(text: str) -> str:
    """Replace passwords and signatures in addresses by asterisks."""
    return SECRETS.sub(lambda found: f"{found[1] or ''}***", text)


def join_lines(error: object) -> str:
    return " ".join(str(error).split())


def summarize_exception(error: BaseException) -> str:
    """Return the first line of another library's message, without a full stop."""
    return shorten_text(next(iter(str(error).splitlines()), repr(error)).rstrip("."), 300)


def list_causes(error: BaseException) -> list[BaseException]:
    """Return an error and those that led to it, the first cause last."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    return chain
