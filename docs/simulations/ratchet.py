"""Twenty challengers in a row: what `tipline promote` lets pass with and without the best champion so far.

Usage: python docs/simulations/ratchet.py [--runs N] [--into docs/statistics.md]

All challengers are judged on the same test months with the gate's own code. Each is as good as the champion of the
start, or each is worse than the champion that it meets by half of the tolerance. The table is written into
docs/statistics.md, between its markers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tables import replace_table

from tipline.evaluation import gate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tipline.arrays import Floats

TOLERANCE, DAYS, CHALLENGERS = 0.005, 30, 20
# Skill points: the scatter of a day's gain between models that differ little, and as in docs/simulations/gate.py.
SCATTER = (0.0025, 0.0097)
LOSS, A_DAY = 0.7, 2
MADE_ON = {role: {"train": ["2009-01"]} for role in ("challenger", "champion")}
DATES = np.datetime64("2010-01-01") + np.arange(DAYS)


def passes(gains: Floats) -> bool:
    """Ask the gate, given each day's gain."""
    days = DATES.astype("datetime64[D]").astype(np.int32).repeat(A_DAY)
    none = np.zeros(len(days), np.int32)
    labels = np.arange(len(days)) % 2 == 0
    rows = gate.Rows(["2010-01"], none, days, LOSS * gains.repeat(A_DAY), np.full(len(days), LOSS), labels, {})
    return bool(gate.decide_promotion(rows, MADE_ON, TOLERANCE, 1.0)["promote"])


def run(random: np.random.Generator, scatter: float, step: float, *, is_ratchet: bool) -> tuple[int, float]:
    """Return how many challengers pass, and the true skill of the last champion, that of the first being zero."""
    history: list[tuple[float, Floats]] = [(0.0, random.normal(0, scatter / np.sqrt(2), DAYS))]
    for _ in range(CHALLENGERS):
        skill = history[-1][0] + step
        seen = skill + random.normal(0, scatter / np.sqrt(2), DAYS)
        best = max(history, key=lambda one: one[1].mean())[1]
        if passes(seen - history[-1][1]) and (not is_ratchet or passes(seen - best)):
            history.append((skill, seen))
    return len(history) - 1, history[-1][0]


def table(runs: int) -> Iterator[str]:
    """Lay the table out."""
    pairs = "pass, against the champion alone | skill at the end | pass now | skill at the end"
    yield f"| scatter of a day | challengers | {pairs} |"
    yield f"| ---: | --- |{' ---: |' * 4}"
    for scatter in SCATTER:
        for name, step in (("equal", 0.0), (f"each worse by {TOLERANCE / 2}", -TOLERANCE / 2)):
            cells = []
            for is_ratchet in (False, True):
                random = np.random.default_rng(2009)
                found = np.array([run(random, scatter, step, is_ratchet=is_ratchet) for _ in range(runs)]).mean(axis=0)
                cells += [f"{found[0]:.1f} of {CHALLENGERS}", f"{found[1]:+.4f}"]
            yield f"| {scatter} | {name} | {' | '.join(cells)} |"


def main() -> None:
    """Simulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--into", type=Path, default=Path(__file__).parents[1] / "statistics.md")
    given = parser.parse_args()
    replace_table(given.into, "ratchet", "\n".join(table(given.runs)))


if __name__ == "__main__":
    main()
