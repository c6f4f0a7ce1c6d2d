"""`tipline month`: add a published month, run the pipeline, print the verdict and what to commit."""

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from tipline import files
from tipline.config import Settings
from tipline.errors import TiplineError, UsageError, format_count
from tipline.ingest import source
from tipline.paths import Paths

log = logging.getLogger(__name__)


class ReproFailedError(TiplineError):
    """`dvc repro` failed, and has printed why."""


def run(settings: Settings, paths: Paths, month: str) -> Iterator[str]:
    """Add a month to params.yaml unless it is listed, run `dvc repro`, and yield the lines to print.

    `next` is the last listed month until it has a verdict, then the month after it.
    """
    if month == "next":
        month = max(settings.months)
        judged = {one["month"] for one in files.try_read_json(paths.monitoring / "months.json") or ()}
        if month in judged:
            year, number = divmod(12 * int(month[:4]) + int(month[5:]), 12)
            month = f"{year}-{number + 1:02d}"
    if not paths.raw_manifest(month).is_file():
        source.check_published(settings.source, month, paths.workspace)
    if month in settings.months:
        yield f"{month} is in params.yaml"
    else:
        files.write_text(paths.params, insert_month(paths.params.read_bytes().decode(), month, str(paths.params)))
        yield f"{month} is published; added it to params.yaml"
    run_repro(paths, f"month {month}", f"tipline month {month}")
    months = files.read_json(paths.monitoring / "months.json", "Run: dvc repro monitor")
    yield from format_month(next(one for one in months if one["month"] == month))
    yield from ("to commit:", "  git add params.yaml dvc.lock", f'  git commit -m "Score {month}"')
    yield from ("to share, if there are remotes:", "  git push", "  dvc push")


def insert_month(text: str, month: str, where: str) -> str:
    """Insert a line after the last earlier month in the text of params.yaml, and change nothing else."""
    values = yaml.safe_load(text)
    months = values["months"]
    place = max((number for number, other in enumerate(months, 1) if other < month), default=0)
    section = re.search(r"^months:", text, re.MULTILINE)
    neighbour = re.compile(rf"""^( *- +)(["']?){months[max(place - 1, 0)]}\2(?!\S)[^\r\n]*""", re.MULTILINE)
    if section and (line := neighbour.search(text, section.start())):
        new, end = f"{line[1]}{line[2]}{month}{line[2]}", "\r\n" if "\r\n" in text else "\n"
        at, added = (line.end(), f"{end}{new}") if place else (line.start(), f"{new}{end}")
        changed = text[:at] + added + text[at:]
        if yaml.safe_load(changed) == values | {"months": [*months[:place], month, *months[place:]]}:
            return changed
    what = f"Cannot add {month}, because the list `months` does not have one month per line."
    raise UsageError(what, where, f'Add it by hand, for example as - "{month}", and run the command again.')


def get_environment() -> dict[str, str]:
    """Return the environment with its programs first on the PATH: stages call `tipline`, and cron activates nothing."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return os.environ | {"PATH": path}


def run_repro(paths: Paths, where: str, resume: str) -> None:
    """Run `dvc repro`; wait for that of another `tipline month` first. Raises ReproFailedError if it fails.

    DVC inherits the lock, so it lasts until DVC ends, also if this process is killed before.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro"]
    paths.staging.mkdir(parents=True, exist_ok=True)
    with (paths.staging / "month.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for the `dvc repro` of another `tipline month` to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        remove_stale_lock(paths.root)
        options: dict[str, Any] = {"cwd": paths.root, "env": get_environment()}
        with subprocess.Popen(command, pass_fds=[lock.fileno()], **options) as process:  # noqa: S603 (fixed)
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.wait()  # the terminal has interrupted DVC, too, which lets its stage end first
                raise
    if code:
        todo = f"Fix the cause, which is printed above, then resume: {resume}"
        raise ReproFailedError("`dvc repro` failed.", where, todo)


def remove_stale_lock(root: Path) -> None:
    """Remove DVC's lock of files unless a DVC command holds it.

    DVC stops at one that was damaged by a kill, and if another process has the number of a killed one now.
    """
    folder = next((folder for folder in (root, *root.parents) if (folder / ".dvc").is_dir()), root)
    lock = folder / ".dvc" / "tmp" / "rwlock"
    for pid in re.findall(r'"pid": (\d+)', lock.read_text(encoding="utf-8") if lock.is_file() else ""):
        with contextlib.suppress(psutil.Error):
            if any(Path(word).name == "dvc" for word in psutil.Process(int(pid)).cmdline()):
                return
    lock.unlink(missing_ok=True)


def format_month(month: dict[str, Any]) -> list[str]:
    """Format an entry of reports/monitoring/months.json: rows and figures, then the verdict."""
    names = ("mean_probability", "positive_rate", "log_loss", "skill", "auc")
    figures = [f"{name.replace('_', ' ')} {month[name]:.4f}" for name in names if month.get(name) is not None]
    return [
        f"last month  {month['month']}: {', '.join([format_count(month['rows'], 'row'), *figures])}",
        f"verdict     {month['verdict']}: {month['reason']}",
    ]
