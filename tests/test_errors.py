"""Errors keep their three parts on the way from a worker, and messages are safe to print."""

import pickle

import pytest

from tipline import errors

KINDS = [errors.TiplineError, *errors.TiplineError.__subclasses__()]


@pytest.mark.parametrize("kind", KINDS)
def test_error_survives_pickling(kind: type[errors.TiplineError]) -> None:
    error = pickle.loads(pickle.dumps(kind("It is wrong.", "here", "Fix it.")))  # noqa: S301 (our own)
    assert type(error) is kind
    assert error.parts == ("It is wrong.", "here", "Fix it.")
    assert str(error) == "It is wrong.\n  where: here\n  to do: Fix it."


@pytest.mark.parametrize(("number", "text"), [(0, "0 rows"), (1, "1 row"), (2000, "2,000 rows")])
def test_counts_have_the_right_plural(number: int, text: str) -> None:
    assert errors.format_count(number, "row") == text


def test_shown_text_is_short_and_without_control_characters() -> None:
    assert errors.shorten_text("a\nb\x1b[31m") == "a b\\x1b[31m"
    assert errors.shorten_text("x" * 100) == "x" * errors.SHOWN_LETTERS + "…"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://user:se/cret@host/x", "https://***@host/x"),
        ("https://host:8080/x?y=1", "https://host:8080/x?y=1"),
        ("s3://b/x?X-Amz-Signature=abc&z=1", "s3://b/x?X-Amz-Signature=***&z=1"),
        ("postgresql://u:p@127.0.0.1/db", "postgresql://***@127.0.0.1/db"),
    ],
)
def test_secrets_are_hidden(text: str, hidden: str) -> None:
    assert errors.hide_secrets(text) == hidden
