"""Measure `dvc repro` with years of months: the first run, one more month, nothing to do.

Usage: python benchmarks/years.py [months] [revision ...]

Simulates 158 months of 14,000 rows, as many as months of a sample of one in a thousand real trips have, in clones of
this repository at each revision (default: HEAD). Prints CPU seconds, which other work on the machine hardly changes,
and seconds by the clock.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
# The command at any revision; older ones have no `cli.start`.
COMMAND = f"""#!{sys.executable}
import sys
from tipline import cli
if __name__ == "__main__":
    sys.exit(getattr(cli, "start", cli.main)())
"""
DEFAULT_MONTHS = ["2009-01", "2009-02", "2009-03", "2009-04", "2009-05", "2024-01"]


def list_months(count: int) -> list[str]:
    """Return consecutive months from 2009-01 on; the simulation has none of 2010."""
    years = [2009, *range(2011, 2100)]
    return [f"{years[number // 12]}-{number % 12 + 1:02}" for number in range(count)]


def write_months(project: Path, months: list[str]) -> None:
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["months"], values["demo"]["rows"], values["sample"]["rows"] = months, 14_000, 10_000
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def run_repro(project: Path) -> tuple[float, float]:
    """Run `dvc repro` as an activated environment does; return CPU seconds, of all processes, and seconds."""
    folders = os.pathsep.join([str(project.parent), str(BIN), os.environ["PATH"]])
    environment = os.environ | {"PATH": folders, "PYTHONPATH": str(project / "src")}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [BIN / "dvc", "repro"], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - started


def measure_revision(revision: str, count: int) -> Iterator[tuple[str, float, float]]:
    with tempfile.TemporaryDirectory() as folder:
        command = Path(folder, "tipline")
        command.write_text(COMMAND)
        command.chmod(0o755)
        for months in (DEFAULT_MONTHS, list_months(count)):
            project = Path(folder, str(len(months)))
            subprocess.run(["git", "clone", "--quiet", ROOT, project], check=True)  # noqa: S607
            subprocess.run(["git", "checkout", "--quiet", revision], cwd=project, check=True)  # noqa: S607
            write_months(project, months)
            yield f"{len(months)} months, first run", *run_repro(project)
            yield f"{len(months)} months, nothing to do", *run_repro(project)
        write_months(project, list_months(count + 1))
        yield "one more month", *run_repro(project)


def main() -> None:
    count, revisions = int(sys.argv[1]) if len(sys.argv) > 1 else 158, sys.argv[2:] or ["HEAD"]
    print("| revision | | CPU s | s |\n| --- | --- | ---: | ---: |")
    for revision in revisions:
        for what, cpu, seconds in measure_revision(revision, count):
            print(f"| {revision} | {what} | {cpu:.1f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
