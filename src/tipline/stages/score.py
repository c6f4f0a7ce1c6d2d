"""score: the champion's probability for every row of every month, out of core, on dask."""

from __future__ import annotations

import logging
import platform
import time
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import filelock
from distributed import as_completed

from tipline import cluster, files, git, modelfiles, scoring
from tipline.errors import MonthsFailedError, TiplineError
from tipline.progress import Progress

if TYPE_CHECKING:
    from distributed import Client, Future

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)

LIBRARIES = ("scikit-learn", "numpy", "pyarrow", "skops", "dask")


def run(settings: Settings, layout: Layout) -> None:
    """Score the months that are not published with this champion.

    Raises
    ------
    MonthsFailedError
        Where some months could not be scored; the others are published.
    TiplineError
        Where another run is scoring, or the model's files are not the registered ones.
    """
    layout.staging.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(layout.staging / "score.lock", timeout=0):
            score(settings, layout)
    except filelock.Timeout as error:
        todo = "Wait for it to end, or stop it; what it has finished is kept."
        raise TiplineError("Another run is scoring this project.", str(layout.staging / "score.lock"), todo) from error


def score(settings: Settings, layout: Layout) -> None:
    """Plan, score, publish."""
    ref = files.read_json(layout.ref, "Run: dvc repro register")
    contents = modelfiles.read(layout.champion)
    modelfiles.check(contents, ref["digest"])
    layout.predictions.mkdir(parents=True, exist_ok=True)
    scoring.mend(layout)
    for month in scoring.drop_others(layout, list(settings.months)):
        log.info("%s is no longer in `months`: its predictions are removed", month)
    months, failed = scoring.plan(layout, list(settings.months), ref["digest"])
    rows = sum(block.rows for month in months for block in month.open)
    named = ", ".join(month.month for month in months) or "nothing to do"
    log.info("scoring with %s version %s: %s (%s rows)", ref["name"], ref["version"], named, f"{rows:,}")
    kept = sum(part["rows"] for month in months for part in month.done.values())
    if kept:
        log.info("%s rows of a run that did not end are kept", f"{kept:,}")
    if months:
        started = time.perf_counter()
        with cluster.connect(settings.score.workers) as client:
            client.register_plugin(scoring.ModelPlugin(contents, ref["digest"]))
            failed |= score_months(client, months, recorded(ref))
        seconds = time.perf_counter() - started
        log.info("%s rows in %.1f s, workers' start included", f"{rows:,}", seconds)
    if failed:
        what = f"{len(failed)} of {len(settings.months)} months failed: " + "; ".join(
            f"{month}: {why}" for month, why in failed.items()
        )
        todo = "The others are published and finished parts are kept; mend the cause and run dvc repro again."
        raise MonthsFailedError(what, "score", todo)


def score_months(client: Client, months: list[scoring.Month], made: dict[str, Any]) -> dict[str, str]:
    """Score all open blocks at once, publish each month when it is whole; return the months that failed, with why."""
    started = time.perf_counter()
    by_name = {month.month: month for month in months}
    waiting = Counter({month.month: len(month.open) for month in months})
    progress = Progress(sum(block.rows for month in months for block in month.open))
    blocks: dict[Future[Any], scoring.Block] = {
        client.submit(scoring.score_block, block, pure=False, retries=1): block
        for month in months
        for block in month.open
    }
    failed: dict[str, str] = {}
    for month in months:
        if not waiting[month.month]:
            scoring.publish_month(month, made)
    for future in as_completed(blocks):
        block = blocks.pop(future)
        if future.status != "finished":
            failed[block.month] = " ".join(str(future.exception() or future.status).split())
            continue
        by_name[block.month].done[block.part.name] = future.result()
        waiting[block.month] -= 1
        progress.add(block.rows)
        if not waiting[block.month]:
            seconds = round(time.perf_counter() - started, 3)
            scoring.publish_month(by_name[block.month], made | {"seconds": seconds})
            progress.say(f"{block.month}: published")
    progress.close()
    return failed


def recorded(ref: dict[str, Any]) -> dict[str, Any]:
    """What the receipts record of this run, and no later run compares."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {
        "name": ref["name"],
        "version": ref["version"],
        "run": ref["run"],
        "git": git.revision(),
        "python": platform.python_version(),
        "libraries": libraries,
    }
