"""Errors keep their three parts on the way from a worker, and messages are one line that a terminal can show."""

from __future__ import annotations

import pickle

import pytest

from tipline import errors
from tipline.evaluation.intervals import Ratio

KINDS = [errors.TiplineError, *errors.TiplineError.__subclasses__()]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_back_from_a_worker_as_it_was(kind: type[errors.TiplineError]) -> None:
    back = pickle.loads(pickle.dumps(kind("It is wrong.", "here", "Mend it.")))  # noqa: S301 (our own)
    assert type(back) is kind
    assert back.parts == ("It is wrong.", "here", "Mend it.")
    assert str(back) == "It is wrong.\n  where: here\n  to do: Mend it."


@pytest.mark.parametrize(("number", "words"), [(0, "0 rows"), (1, "1 row"), (2000, "2,000 rows")])
def test_one_of_a_thing_is_not_many(number: int, words: str) -> None:
    assert errors.format_count(number, "row") == words


def test_what_is_shown_is_short_and_obeyed_by_no_terminal() -> None:
    assert errors.shorten_text("a\nb\x1b[31m") == "a b\\x1b[31m"
    assert errors.shorten_text("x" * 100) == "x" * errors.SHOWN_LETTERS + "…"


def test_of_one_month_that_fails_the_error_is_its_own() -> None:
    own = errors.NotPublishedError("It is not there.", "2009-01", "Wait.")
    assert errors.combine_failures({"2009-01": own}, 1) is own
    other = errors.TiplineError("It is broken.", "2009-02", "Mend it.")
    assert errors.combine_failures({"2009-01": own}, 2).exit_code == errors.NotPublishedError.exit_code
    assert (
        errors.combine_failures({"2009-01": own, "2009-02": other}, 2).exit_code == errors.MonthsFailedError.exit_code
    )


def test_a_single_block_shows_no_scatter_and_so_no_power() -> None:
    alone = Ratio.estimate([0.1], [1.0])  # type: ignore[arg-type]
    assert alone.power(0.01) == 0
    assert not alone.lower() > -1
