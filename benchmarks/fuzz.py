"""The long run of the fuzz tests, by hand: random hostile months through the check of formats and the commands.

Usage: python -m benchmarks.fuzz [cases] [seed] [folder for what fails]
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.fuzzing import BOUND, FORMAT, MONTH, TIGHT, Case, Child, Result, dice_of, draw, faults

SHOWN = 1000  # cases between two lines of progress
LARGE = 1_000_000  # bytes of an input from which on memory is held against the bound for any input


class Extreme(NamedTuple):
    """The largest figure met, and where."""

    figure: float
    what: str


def commands(path: Path) -> dict[str, tuple[str, ...]]:
    """What is run on each file."""
    found: dict[str, tuple[str, ...]] = {FORMAT: (FORMAT, str(path)), "prepare": ("prepare", MONTH)}
    if importlib.util.find_spec("tipline.commands.check"):
        found["check"] = ("check", str(path), MONTH)
    return found


def outcome(result: Result, wrong: list[str]) -> str:
    """One word about a result."""
    if wrong:
        return "FAULT"
    return "accepted" if result.code == 0 else "refused"


class Run:
    """Counts over many cases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        self.kinds: Counter[str] = Counter()
        self.slowest, self.largest = Extreme(0, ""), Extreme(0, "")

    def add(self, child: Child, case: Case) -> None:
        """Run all commands on a case."""
        data = case.data()
        path = child.put(case.name, data)
        self.kinds.update([case.seed, *(name for name, _ in case.mutations)])
        for command, arguments in commands(path).items():
            result = child.run(*arguments)
            wrong = faults(child, command, result, BOUND if len(data) > LARGE else TIGHT)
            self.outcomes[path.suffix, command, outcome(result, wrong)] += 1
            self.slowest = max(self.slowest, Extreme(result.seconds, f"{command} {case}"))
            self.largest = max(self.largest, Extreme(result.peak, f"{command} {case}"))
            if wrong:
                self.keep(case, data, f"{command}: {wrong}\n{result.printed[-1500:]}")

    def keep(self, case: Case, data: bytes, why: str) -> None:
        """Save what fails, and say so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{sum(n for (_, _, word), n in self.outcomes.items() if word == 'FAULT'):05}"
        (self.folder / f"{name}-{case.name}").write_bytes(data)
        (self.folder / f"{name}.txt").write_text(f"{case}\n{why}\n", encoding="utf-8", errors="replace")
        print(f"FAULT {name}: {case}\n  {why[:600]}", flush=True)

    def report(self) -> None:
        """Print the counts."""
        for (suffix, command, word), n in sorted(self.outcomes.items()):
            print(f"{suffix:9} {command:8} {word:9} {n:8,}")
        print(f"most memory: {self.largest.figure:,.0f} MiB more than before, {self.largest.what}")
        print(f"slowest: {self.slowest.figure:.1f} s, {self.slowest.what}", flush=True)


def main() -> None:
    cases, seed, folder = [*sys.argv[1:], *("20000", "1", "fuzz-failures")[len(sys.argv) - 1 :]]
    run, dice, started = Run(Path(folder)), dice_of(int(seed)), time.perf_counter()
    with tempfile.TemporaryDirectory() as place, Child(Path(place, "project")) as child:
        for number in range(1, int(cases) + 1):
            run.add(child, draw(dice))
            if number % SHOWN == 0:
                run.report()
    run.report()
    print(f"{int(cases):,} cases in {time.perf_counter() - started:,.0f} s; {dict(run.kinds.most_common())}")


if __name__ == "__main__":
    main()
