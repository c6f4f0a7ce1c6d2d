"""The deliberate mistakes of tests/mistakes.py still fit the code; `make mistakes` makes them."""

from __future__ import annotations

import pytest

from tests.mistakes import MISTAKES, ROOT, SOURCE, Mistake


def test_there_are_thirty_and_no_two_are_the_same() -> None:
    assert len({(one.file, one.right, one.wrong) for one in MISTAKES}) == len(MISTAKES) >= 30


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.wrong)
def test_a_mistake_can_be_made(mistake: Mistake) -> None:
    code = (SOURCE / mistake.file).read_text(encoding="utf-8")
    assert code.count(mistake.right) == 1
    compile(code.replace(mistake.right, mistake.wrong), mistake.file, "exec")
    assert all((ROOT / name).is_file() for name in mistake.tests.split())
