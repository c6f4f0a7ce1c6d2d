"""Time a command with two versions of tipline's source, in turns, as a ratio.

Usage: python benchmarks/editions.py PROJECT SRC PROJECT SRC [--rounds N] [--command COMMAND]

Each project has to have been through its pipeline with its own source. Without --command, `tipline score` is timed,
each time after the predictions were removed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path


def time_command(project: Path, source: Path, command: str) -> float:
    """Return the seconds of a command from start to end."""
    if command == "tipline score":
        shutil.rmtree(project / "data" / "predictions", ignore_errors=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(source), "PATH": path}
    started = time.perf_counter()
    subprocess.run(shlex.split(command), cwd=project, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs=4, type=Path, metavar="PROJECT SRC PROJECT SRC")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--command", default="tipline score")
    options = parser.parse_args()
    pairs = [(options.paths[0], options.paths[1]), (options.paths[2], options.paths[3])]
    rounds = [[time_command(*pair, command=options.command) for pair in pairs] for _ in range(options.rounds)]
    first, second = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    sys.stdout.write(f"{options.command}: {first:.2f} s and {second:.2f} s, ratio {second / first:.2f}\n")


if __name__ == "__main__":
    main()
