"""score: the champion's probability for every row of every month, out of core, on dask."""

import contextlib
import logging
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from tipline import cluster, files, git
from tipline.config import Settings
from tipline.errors import MonthsFailedError, TiplineError, format_count, join_lines
from tipline.model import artifact
from tipline.paths import Paths, month_name
from tipline.scoring import plan, worker
from tipline.scoring.plan import Month

log = logging.getLogger(__name__)

LIBRARIES = ("numpy", "pyarrow", "dask")


def run(settings: Settings, paths: Paths, trips: str = "", to: str = "") -> None:
    """Score the months that are not published with this champion.

    `trips` and `to` locate prepared months and predictions; default: the project's folders. Only in these, predictions
    of months that are not in `months` any more are removed. Raises a MonthsFailedError if some months cannot be scored.
    """
    locations = plan.Locations.resolve(paths, trips, to)
    plan.refuse_old_months(locations.trips, "Prepare them again with this version: dvc repro prepare")
    plan.refuse_old_months(locations.predictions, "Remove this folder and score again, or name another one (--to).")
    with locations.staged.hold_lock():
        locations.predictions.recover_folders(locations.staged)
        ref = files.read_json(paths.champion_ref, "Run: dvc repro register")
        contents = artifact.read_artifact(paths.champion)
        artifact.check_digest(contents, ref["digest"])
        locations.trips.check_access()
        if not to:
            paths.predictions.mkdir(parents=True, exist_ok=True)
            listed = {month_name(month) for month in settings.months}
            for name in locations.predictions.list_folders():
                if name.startswith("month=") and name not in listed:
                    locations.predictions.remove_folder(name)
                    log.info("%s: no longer in `months`, predictions removed", name)
        months, failed = plan.plan_months(
            locations, settings.months, ref["digest"], artifact.read_spec(contents), settings.score.id_columns
        )
        plan.remove_stale_staging(locations, months, failed)
        training = files.try_read_json(paths.champion / artifact.TRAINING) or {}
        libraries = {}
        for name in dict.fromkeys((*training.get("libraries", ()), *LIBRARIES)):
            with contextlib.suppress(PackageNotFoundError):  # a compiled model does without some
                libraries[name] = version(name)
        made = {name: ref[name] for name in ("name", "version", "run")}
        made |= {"git": git.get_revision(), "python": platform.python_version(), "libraries": libraries}
        failed |= score_months(settings, months, ref["digest"], contents, made)
    if failed:
        what = f"{len(failed)} of {len(settings.months)} months failed: "
        what += "; ".join(f"{month}: {reason}" for month, reason in failed.items())
        todo = "The other months are published, finished parts are kept. Fix the cause and run it again (dvc repro)."
        raise MonthsFailedError(what, "score", todo)


def score_months(
    settings: Settings, months: Sequence[Month], digest: str, contents: dict[str, bytes], made: dict[str, Any]
) -> dict[str, str]:
    """Score all open blocks; publish each month when it is whole. Return the reasons of months that failed."""
    by_name, blocks = {month.month: month for month in months}, [block for month in months for block in month.open]
    names, rows = ", ".join(by_name) or "nothing to do", sum(block.rows for block in blocks)
    log.info("scoring with %s version %s: %s (%s)", made["name"], made["version"], names, format_count(rows, "row"))
    if kept := sum(part["rows"] for month in months for part in month.done.values()):
        log.info("%s of a run that did not end are kept", format_count(kept, "row"))
    failed, started = dict[str, str](), time.perf_counter()

    def publish_month(month: Month) -> None:
        try:
            plan.publish_month(month, made | {"seconds": round(time.perf_counter() - started, 3)})
            log.info("%s: published", month.month)
        except (TiplineError, OSError) as error:
            failed[month.month] = f"it is scored, but cannot be published: {join_lines(error)}"

    for month in months:
        if not month.open:
            publish_month(month)
    if not blocks:
        return failed
    storages = [blocks[0].locations.trips, blocks[0].locations.staged]
    with (
        cluster.connect_client(settings.cluster.n_workers) as client,
        worker.send_model(client, contents, digest, storages, rows) as form,
        logging_redirect_tqdm(),
        tqdm(total=rows, unit=" rows", unit_scale=True, leave=False, disable=None) as bar,
    ):
        by_name |= {month.month: month.choose_form(form) for month in months if month.open}
        blocks = [block for month in by_name.values() for block in month.open]
        started = time.perf_counter()
        for block, result in cluster.run_tasks(client, worker.score_block, blocks):
            if isinstance(result, Exception):
                failed[block.month] = join_lines(plan.explain_failure(block, result))
                continue
            by_name[block.month].done[block] = result
            bar.update(block.rows)
            if not by_name[block.month].open:
                publish_month(by_name[block.month])
        scored = sum(block.rows for block in blocks if block in by_name[block.month].done)
        log.info("scored %s in %.1f s", format_count(scored, "row"), time.perf_counter() - started)
    return failed
