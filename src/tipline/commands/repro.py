"""Run `dvc repro` for `tipline month` in a process that ends when this one ends, whatever ended it."""

from __future__ import annotations

import _thread
import contextlib
import itertools
import json
import logging
import os
import re
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
POLLS_PER_INTERRUPT = 10


def run_repro(root: Path) -> int:
    """Run `dvc repro` in a project and return its exit code.

    Waits for another DVC command of the project first. The programs of this environment come first on the PATH,
    because the stages call `tipline`, and cron does not activate an environment.
    """
    wait_for_dvc(root)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # Nothing is written to the pipe: it ends when this process ends, also by `kill -9`.
    command, environment = [sys.executable, "-m", __name__], {**os.environ, "PATH": path}
    with subprocess.Popen(command, cwd=root, env=environment, stdin=subprocess.PIPE) as process:  # noqa: S603 (fixed)
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal has interrupted DVC, too, which lets its stage end first
            raise


def wait_for_dvc(root: Path) -> None:
    """Wait for the DVC commands that run stages of a project, and unlock what ended ones have left locked."""
    repository = next((folder for folder in (root, *root.parents) if (folder / ".dvc").is_dir()), root)
    path, has_logged = repository / ".dvc" / "tmp" / "rwlock", False
    if is_damaged(path):
        time.sleep(POLL_SECONDS)
        if is_damaged(path):  # a running command would have completed it by now
            path.unlink(missing_ok=True)
    while holders := re.findall(r'"pid": (\d+)', path.read_text(encoding="utf-8") if path.is_file() else ""):
        if not any(is_running_dvc(int(pid)) for pid in holders):
            path.unlink(missing_ok=True)  # DVC itself would take a zombie for a running command
            return
        if not has_logged:
            log.info("waiting for another DVC command to end: process %s", ", ".join(sorted(set(holders))))
        has_logged = True
        time.sleep(POLL_SECONDS)


def is_damaged(path: Path) -> bool:
    """Whether DVC was killed while it wrote a lock file."""
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def is_running_dvc(pid: int) -> bool:
    """Whether a process runs DVC; a zombie does not, nor does a later process with the same number."""
    try:
        return any("dvc" in word or __name__ in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:  # a zombie's command line cannot be read
        return False


def end_with_parent() -> None:
    """Wait for the end of the parent; then end the running stage, so that DVC releases its locks and ends."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    for count in itertools.count():
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        if count % POLLS_PER_INTERRUPT == 0:  # seldom, because DVC may be writing its locks
            _thread.interrupt_main()
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = ["dvc", "--wait-for-lock", "repro"]
    runpy.run_module("dvc", run_name="__main__", alter_sys=True)
