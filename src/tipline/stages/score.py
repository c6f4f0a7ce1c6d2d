"""score: the champion's probability for every row of every month, out of core, on dask."""

from __future__ import annotations

import json
import logging
import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tqdm.contrib.logging import logging_redirect_tqdm

from tipline import cluster, files, git, progress, pyfunc, scoring
from tipline.errors import MonthsFailedError, TiplineError, counted, one_line
from tipline.models import canary, foreign, modelfiles
from tipline.months import trips

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tipline.cluster import Client
    from tipline.layout import Layout
    from tipline.params import Settings
    from tipline.scoring import Month, Places

log = logging.getLogger(__name__)

LIBRARIES = ("scikit-learn", "numpy", "pyarrow", "skops", "dask")


def run(settings: Settings, layout: Layout, trips: str = "", to: str = "") -> None:
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
    with files.locked(layout.staging / "score.lock", "scoring this project"):
        places = scoring.Places.of(layout, trips, to)
        places.predictions.mend(places.staged)
        ref = files.read_json(layout.ref, "Run: dvc repro register")
        contents = modelfiles.read(layout.champion)
        modelfiles.check(contents, ref["digest"])
        if not to:
            layout.predictions.mkdir(parents=True, exist_ok=True)
            for month in scoring.drop_others(places, settings.months):
                log.info("%s is no longer in `months`: its predictions are removed", month)
        score(settings, places, ref, contents)


def score(settings: Settings, places: Places, ref: dict[str, Any], contents: dict[str, bytes]) -> None:
    """Plan, score, publish."""
    places.trips.reach()
    months, failed = scoring.plan(places, settings.months, ref["digest"])
    scoring.drop_staged(places, months, failed)
    announce(ref, months, failed)
    made = recorded(ref)
    for month in months:
        if not month.open:  # a run was ended before it could publish it
            publish(month, made | {"seconds": 0.0}, failed)
    left = [month for month in months if month.open]
    if left:
        contents = with_canary(contents, left)
        started = time.perf_counter()
        with cluster.connect(settings.score.workers) as client:
            scoring.send_model(client, contents, ref["digest"])
            scoring.reach(client, places)
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
    if first is None or not foreign.is_foreign(contents):
        return contents
    rows = scoring.read_block(first, trips.needed(json.loads(contents[pyfunc.SPEC])))
    return canary.with_canary(contents, rows)


def announce(ref: dict[str, Any], months: Sequence[Month], failed: Mapping[str, str]) -> None:
    """Say what is to be scored, and what an earlier run has done of it."""
    rows = sum(block.rows for month in months for block in month.open)
    named = ", ".join(month.month for month in months) or ("nothing that can be" if failed else "nothing to do")
    log.info("scoring with %s version %s: %s (%s)", ref["name"], ref["version"], named, counted(rows, "row"))
    kept = sum(part["rows"] for month in months for part in month.done.values())
    if kept:
        log.info("%s of a run that did not end are kept", counted(kept, "row"))


def score_months(client: Client, months: Sequence[Month], made: dict[str, Any]) -> dict[str, str]:
    """Score all open blocks at once, publish each month when it is whole; return the months that failed, with why."""
    started = time.perf_counter()
    by_name = {month.month: month for month in months}
    blocks = [block for month in months for block in month.open]
    failed: dict[str, str] = {}
    with logging_redirect_tqdm(), progress.counting(sum(block.rows for block in blocks), " rows") as add:
        for block, result in cluster.each(client, scoring.score_block, blocks, group=lambda block: block.month):
            if isinstance(result, Exception):
                failed[block.month] = one_line(scoring.why(block, result))
                continue
            month = by_name[block.month]
            month.done[block.name] = result
            add(block.rows)
            if not month.open:
                publish(month, made | {"seconds": round(time.perf_counter() - started, 3)}, failed)
    return failed


def publish(month: Month, made: dict[str, Any], failed: dict[str, str]) -> None:
    """Publish a month; where that fails, add it to those that failed."""
    try:
        scoring.publish_month(month, made)
    except (TiplineError, OSError) as error:
        failed[month.month] = f"it is scored, but cannot be published: {one_line(error)}"
    else:
        log.info("%s: published", month.month)


def recorded(ref: dict[str, Any]) -> dict[str, Any]:
    """What the receipts record of this run, and no later run compares."""
    return {
        "name": ref["name"],
        "version": ref["version"],
        "run": ref["run"],
        "git": git.revision(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
