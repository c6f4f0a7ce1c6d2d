"""What a user is told when something is wrong, and the exit code that goes with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


SHOWN_LETTERS = 60
SECRETS = re.compile(
    # What stands before the last @, a password with slashes or spaces, too, but no port; what a name gives away.
    r"(?<=://)(?:[^/\s?#]*|[^/\s?#@:]*:(?!\s|\d{1,5}(?:[/\s]|$)).*)(?=@)|"
    r"(?<=[?&;#])((?:[\w.-]*(?:signature|sig|token|secret|pass\w*|pwd|auth\w*|jwt|credential|key(?:id)?)|"
    r"code|odbc_connect)=)[^&;\s'\")]*",
    re.IGNORECASE,
)


class TiplineError(Exception):
    """Something failed for a reason that a person can act on.

    Parameters
    ----------
    what
        What is wrong, in one sentence.
    where
        The file, column, month or setting that it is wrong in.
    todo
        What to do about it.
    """

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


class GateRefusedError(TiplineError):
    """The gate refuses a version."""

    exit_code = 3


class MonthsFailedError(TiplineError):
    """Some months failed; the others are done."""

    exit_code = 4


class NotPublishedError(TiplineError):
    """The source does not have the month (yet)."""

    exit_code = 5


def combine_failures(failed: Mapping[str, TiplineError], asked: int) -> TiplineError:
    """One error for the months that failed, of those that were asked for; each has been told when it happened.

    The error of a single month is its own; where all that failed are not published yet, that is the exit code.
    """
    if asked == 1:
        return next(iter(failed.values()))
    kind = NotPublishedError if all(isinstance(e, NotPublishedError) for e in failed.values()) else MonthsFailedError
    todo = "The reasons stand above; the other months are done. Run it again for these."
    return kind(f"{len(failed)} of {asked} months failed.", ", ".join(sorted(failed)), todo)


def shorten_text(value: object, letters: int = SHOWN_LETTERS) -> str:
    """A name or a type as part of a message: on one line, with nothing in it that a terminal would obey."""
    text = str(value)
    text = (text if len(text) <= letters else f"{text[:letters]}…").replace("\n", " ")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def format_count(number: int, noun: str) -> str:
    """Such as `1 row` or `2,000 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def hide_secrets(text: str) -> str:
    """An address, or a text with addresses in it, without the passwords and signatures."""
    return SECRETS.sub(lambda found: f"{found[1] or ''}***", text)


def join_lines(error: object) -> str:
    """A message without its line ends."""
    return " ".join(str(error).split())


def summarize_exception(error: Exception) -> str:
    """The first line of what a library says, as part of a message."""
    return shorten_text(next(iter(str(error).splitlines()), repr(error)), 300)
