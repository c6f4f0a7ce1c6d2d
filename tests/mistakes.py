"""Deliberate mistakes in the core (metrics, gate, planning of parts, manifests): each has to make a test fail.

Usage: python -m tests.mistakes [WORD...]      all of them, or those whose file or text has one of the words

Each is made in a copy of `src/`, and the tests that it names run against that copy; one that no test notices ends this
with exit code 1. `make mistakes` runs it; tests/test_mistakes.py sees that each still fits the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "tipline"
AT_ONCE = 2


class Mistake(NamedTuple):
    """Text of a file, what takes its place, and the tests (as pytest takes them) that are to notice."""

    file: str
    right: str
    wrong: str
    tests: str


def of(file: str, tests: str, *pairs: tuple[str, str]) -> list[Mistake]:
    """Mistakes in one file, for the same tests."""
    return [Mistake(file, right, wrong, tests) for right, wrong in pairs]


MISTAKES = [
    *of(
        "statistics/metrics.py",
        "tests/test_metrics.py tests/test_counts.py",
        ("return filled(amount, 0) > 0, known", "return filled(amount, 0) >= 0, known"),
        ("np.maximum(of_truth, EDGE)", "np.maximum(of_truth, EDGE / 2)"),
        ("np.subtract(probabilities, ~tipped", "np.subtract(probabilities, tipped"),
        ("return 1 - loss / baseline", "return baseline - loss"),
        ("or baseline < NEXT_TO_NOTHING", "or baseline < 0"),
        ("(below + no / 2)", "(below + no)"),
        ("below = np.cumsum(no) - no", "below = np.cumsum(no)"),
    ),
    *of(
        "statistics/gate.py",
        "tests/test_gate.py",
        ("if not gain.lower() > -tolerance:", "if not gain.upper() > -tolerance:"),
        ("if not gain.lower() > -tolerance:", "if not gain.lower() >= -tolerance:"),
        ('"veto": upper < -tolerance', '"veto": lower < -tolerance'),
        ("if there[0] < MIN_DAYS:", "if there[0] <= MIN_DAYS:"),
        ("if inside.sum() < MIN_ROWS:", "if inside.sum() <= MIN_ROWS:"),
        ("confidence = 1 - (1 - CONFIDENCE) / max(", "confidence = CONFIDENCE + 0 * max("),
        ("units = np.full(len(rows.gain), rows.baseline.mean())", "units = rows.baseline"),
        ("if share > MOST_OF_ONE:", "if share > 1:"),
        ("days[rows] = np.clip(self.day[rows], low, high)", "pass"),
        ("for purpose in PURPOSES", 'for purpose in ("fit",)'),
        (">= MIN_MONTHS:\n            return cls", "> MIN_MONTHS:\n            return cls"),
    ),
    *of(
        "statistics/intervals.py",
        "tests/test_gate.py",
        ("math.sqrt(blocks / (blocks - 1) *", "math.sqrt("),
        ("student.ppf(confidence, self.blocks - 1)", "student.ppf(1 - (1 - confidence) / 2, self.blocks - 1)"),
    ),
    *of(
        "statistics/counts.py",
        "tests/test_counts.py",
        ("bands[:, 2] = np.bincount(band(scores[~known])", "bands[:, 2] = np.bincount(band(scores[known])"),
        ("total.probability += part.probability", "total.probability = part.probability"),
        ("days *= len(self.groups)", "days *= len(self.groups) + 1"),
        ("np.minimum(unsigned, len(self.days) - 1,", "np.minimum(unsigned, len(self.days) - 2,"),
        ("no + yes, yes, probability, loss)", "no, yes, probability, loss)"),
    ),
    *of(
        "scoring.py",
        "tests/test_parts.py",
        ('return {"trips": sha256, "model": digest, "format": FORMAT}', 'return {"trips": sha256, "format": FORMAT}'),
        ('return {"trips": sha256, "model": digest, "format": FORMAT}', 'return {"model": digest, "format": FORMAT}'),
        ("return bool(told == dict(key)) and all(", "return bool(told == dict(key)) or all("),
        ('if sum(part["rows"] for part in parts) != rows:', "if False:"),
        ('made["bytes"] == there[block.name] and files', 'made["bytes"] == there[block.name] or files'),
        ('(made["key"], made.get("state")) != (block.key, block.state)', 'made["key"] != block.key'),
        ("return [block for block in self.blocks if block.name not in self.done]", "return self.blocks"),
        ("if size != expected:", "if size is None:"),
        ('"rows": rows,\n        "parts"', '"rows": len(parts),\n        "parts"'),
        ('max((part["peak_bytes"] for part in parts), default=0)', 'parts[0]["peak_bytes"]'),
        ("staged.remove_files(f", "list(f"),
    ),
]


def notice(mistake: Mistake) -> tuple[Mistake, bool, str]:
    """Make a mistake in a copy; whether a test fails, and what pytest said last."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "src", "tipline")
        shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / mistake.file
        path.write_text(path.read_text(encoding="utf-8").replace(mistake.right, mistake.wrong, 1), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(copy.parent)}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mistake.tests.split()]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return mistake, done.returncode == 1, (done.stdout.strip().splitlines() or [done.stderr])[-1]


def main() -> int:
    """Make all mistakes, say which were noticed."""
    words = sys.argv[1:]
    chosen = [one for one in MISTAKES if not words or any(word in f"{one.file} {one.right}" for word in words)]
    missed = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mistake, noticed, said in pool.map(notice, chosen):
            missed += not noticed
            sys.stdout.write(f"{'noticed' if noticed else 'MISSED '} {mistake.file}: {mistake.wrong!r}: {said}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - missed} of {len(chosen)} mistakes were noticed\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
