"""Run many random hostile months through check, prepare and download; the smallest month that fails is saved.

Usage: python -m benchmarks.fuzz [months] [seed]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzzing import Project, months


def main() -> None:
    count, number = (int(argument) for argument in [*sys.argv[1:], *("20000", "1")[len(sys.argv) - 1 :]])
    started, outcomes, failure = time.perf_counter(), Counter[str](), Path("fuzz-failure.bin")
    options = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder, "project"))

        @seed(number)
        @settings(max_examples=count, phases=[Phase.generate, Phase.shrink], **options)  # type: ignore[arg-type]
        @given(data=months())
        def check_month(data: bytes) -> None:
            try:
                faults = project.find_all_faults(data)
            except EOFError:
                failure.write_bytes(data)
                printed = (project.paths.root / "printed").read_text(encoding="utf-8", errors="replace")
                sys.exit(f"The process crashed or hung on {failure}:\n{printed[-5000:]}")
            is_prepared = any(project.paths.prepared("2009-01").glob("*"))
            outcomes["fault" if faults else "prepared" if is_prepared else "refused"] += 1
            if faults:
                failure.write_bytes(data)
                raise ValueError(faults)

        try:
            check_month()
        finally:
            print(f"{outcomes.total():,} months in {time.perf_counter() - started:,.0f} s: {dict(outcomes)}")


if __name__ == "__main__":
    main()
