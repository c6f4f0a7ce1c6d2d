"""score: the champion's probability for every row of every month, out of core, on dask."""

from __future__ import annotations

import json
import logging
import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tqdm.contrib.logging import logging_redirect_tqdm

from tipline import cluster, files, git, progress
from tipline.errors import MonthsFailedError, TiplineError, format_count, join_lines
from tipline.ingest import columns
from tipline.model import artifact, external, golden_rows, pyfunc
from tipline.scoring import plan, publish, worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tipline.cluster import Client
    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.scoring.plan import Locations
from tipline.scoring.plan import Month

log = logging.getLogger(__name__)

LIBRARIES = ("scikit-learn", "numpy", "pyarrow", "skops", "dask")


def run(settings: Settings, paths: Paths, trips: str = "", to: str = "") -> None:
    """Score the months that are not published with this champion.

    Parameters
    ----------
    trips, to
        Where prepared months and predictions are; default: the project's folders. Predictions elsewhere than there
        are never removed, also of months that are in `months` no more.

    Raises
    ------
    MonthsFailedError
        Where some months could not be scored; the others are published.
    TiplineError
        Where another run is scoring, or the model's files are not the registered ones.
    """
    with files.hold_lock(paths.staging / "score.lock", "scoring this project"):
        locations = plan.Locations.resolve(paths, trips, to)
        locations.predictions.recover(locations.staged)
        ref = files.read_json(paths.champion_ref, "Run: dvc repro register")
        contents = artifact.read_artifact(paths.champion)
        artifact.check_digest(contents, ref["digest"])
        if not to:
            paths.predictions.mkdir(parents=True, exist_ok=True)
            for month in publish.remove_unlisted_months(locations, settings.months):
                log.info("%s is no longer in `months`: its predictions are removed", month)
        score(settings, locations, ref, contents)


def score(settings: Settings, locations: Locations, ref: dict[str, Any], contents: dict[str, bytes]) -> None:
    """Plan, score, publish."""
    locations.trips.check_access()
    months, failed = plan.plan_months(locations, settings.months, ref["digest"])
    publish.remove_stale_staging(locations, months, failed)
    announce(ref, months, failed)
    made = recorded(ref)
    for month in months:
        if not month.open:  # a run was ended before it could publish it
            publish_or_record(month, made | {"seconds": 0.0}, failed)
    left = [month for month in months if month.open]
    if left:
        contents = with_canary(contents, left)
        started = time.perf_counter()
        with cluster.connect_client(settings.cluster.n_workers) as client:
            worker.send_model(client, contents, ref["digest"])
            worker.check_access(client, locations)
            ready = time.perf_counter()
            failed |= score_months(client, left, made)
            ended = time.perf_counter()
        log.info("%.1f s, and %.1f s for the workers' start", ended - ready, ready - started)
    if failed:
        reasons = "; ".join(f"{month}: {why}" for month, why in failed.items())
        what = f"{len(failed)} of {len(settings.months)} months failed: {reasons}"
        others = "None is published, but" if len(failed) == len(settings.months) else "The others are published and"
        todo = f"{others} finished parts are kept; mend the cause and run it again (dvc repro)."
        raise MonthsFailedError(what, "score", todo)


def with_canary(contents: dict[str, bytes], months: Sequence[Month]) -> dict[str, bytes]:
    """The model's files; one that tipline did not make gets canary rows here, from the first that are to be scored."""
    first = next((block for month in months for block in month.blocks), None)
    if first is None or not external.is_external(contents):
        return contents
    rows = worker.read_block(first, columns.list_needed_columns(json.loads(contents[pyfunc.SPEC])))
    return golden_rows.score_golden_rows(contents, rows)


def announce(ref: dict[str, Any], months: Sequence[Month], failed: Mapping[str, str]) -> None:
    """Say what is to be scored, and what an earlier run has done of it."""
    rows = sum(block.rows for month in months for block in month.open)
    named = ", ".join(month.month for month in months) or ("nothing that can be" if failed else "nothing to do")
    log.info("scoring with %s version %s: %s (%s)", ref["name"], ref["version"], named, format_count(rows, "row"))
    kept = sum(part["rows"] for month in months for part in month.done.values())
    if kept:
        log.info("%s of a run that did not end are kept", format_count(kept, "row"))


def score_months(client: Client, months: Sequence[Month], made: dict[str, Any]) -> dict[str, str]:
    """Score all open blocks at once, publish each month when it is whole; return the months that failed, with why."""
    started = time.perf_counter()
    by_name = {month.month: month for month in months}
    blocks = [block for month in months for block in month.open]
    failed: dict[str, str] = {}
    with logging_redirect_tqdm(), progress.show_progress(sum(block.rows for block in blocks), " rows") as add:
        for block, result in cluster.run_tasks(client, worker.score_block, blocks, group=lambda block: block.month):
            if isinstance(result, Exception):
                failed[block.month] = join_lines(plan.explain_failure(block, result))
                continue
            month = by_name[block.month]
            month.done[block.name] = result
            add(block.rows)
            if not month.open:
                publish_or_record(month, made | {"seconds": round(time.perf_counter() - started, 3)}, failed)
    return failed


def publish_or_record(month: Month, made: dict[str, Any], failed: dict[str, str]) -> None:
    """Publish a month; where that fails, add it to those that failed."""
    try:
        publish.publish_month(month, made)
    except (TiplineError, OSError) as error:
        failed[month.month] = f"it is scored, but cannot be published: {join_lines(error)}"
    else:
        log.info("%s: published", month.month)


def recorded(ref: dict[str, Any]) -> dict[str, Any]:
    """What the manifests record of this run, and no later run compares."""
    return {
        "name": ref["name"],
        "version": ref["version"],
        "run": ref["run"],
        "git": git.get_revision(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
