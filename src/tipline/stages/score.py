"""score: the champion's probability for every row of every month, out of core, on dask."""

import contextlib
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from tipline import cluster, files, git
from tipline.config import Settings
from tipline.errors import MonthsFailedError, TiplineError, format_count, join_lines
from tipline.model import artifact
from tipline.months import refuse_experiment
from tipline.paths import Paths, month_name
from tipline.scoring import plan, worker
from tipline.scoring.plan import Month
from tipline.storage import REQUESTS, Storage, open_storage

log = logging.getLogger(__name__)

LIBRARIES = ("numpy", "pyarrow", "dask")


def run(settings: Settings, paths: Paths, trips: str = "", to: str = "") -> None:
    """Score the months that are not published with this champion.

    `trips` and `to` locate prepared months and predictions; default: the project's folders. Only in these, predictions
    of months that are not in `months` any more are removed. Raises a MonthsFailedError if some months cannot be scored.
    """
    locations = plan.Locations.resolve(settings, paths, trips, to)
    plan.refuse_old_months(locations.trips, "Prepare them again with this version: dvc repro prepare")
    plan.refuse_old_months(locations.predictions, "Remove this folder and score again, or name another one (--to).")
    with locations.staged.hold_lock():
        locations.predictions.recover_folders(locations.staged)
        ref = files.read_json(paths.champion_ref, "Run: dvc repro register")
        contents = artifact.read_artifact(paths.champion)
        artifact.check_digest(contents, ref["digest"])
        locations.trips.check_access()
        is_mirrored = not to and settings.storage.predictions is not None
        if not to:
            paths.predictions.mkdir(parents=True, exist_ok=True)
            listed, own = {month_name(month) for month in settings.months}, open_storage(paths.predictions)
            for name in own.list_folders():
                if name.startswith("month=") and name not in listed:
                    own.remove_folder(name)
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
        if is_mirrored and months:
            refuse_experiment(paths, locations.predictions.address(), months[0].month)
        failed |= score_months(settings, months, ref["digest"], contents, made)
        if is_mirrored:
            mirror_manifests(locations.predictions, paths, settings.months)
    if failed:
        what = f"{len(failed)} of {len(settings.months)} months failed: "
        what += "; ".join(f"{month}: {reason}" for month, reason in failed.items())
        todo = "The other months are published, finished parts are kept. Fix the cause and run it again (dvc repro)."
        raise MonthsFailedError(what, "score", todo)


def mirror_manifests(predictions: Storage, paths: Paths, months: Sequence[str]) -> None:
    """Copy the manifests of published months to data/predictions/: there they are DVC's output."""
    names = [f"{month_name(month)}/{files.MANIFEST}" for month in months]
    with ThreadPoolExecutor(REQUESTS) as threads:
        for name, data in zip(names, threads.map(predictions.read, names), strict=True):
            path = paths.predictions / name
            if data is not None and not (path.is_file() and path.read_bytes() == data):
                files.write_text(path, data.decode())


def score_months(
    settings: Settings, months: Sequence[Month], digest: str, contents: dict[str, bytes], made: dict[str, Any]
) -> dict[str, str]:
    """Score all open blocks; publish each month when it is whole. Return the reasons of months that failed."""
    failed, started = dict[str, str](), time.perf_counter()
    names = ", ".join(month.month for month in months) or "nothing to do"
    count = format_count(sum(block.rows for month in months for block in month.open), "row")
    log.info("scoring with %s version %s: %s (%s)", made["name"], made["version"], names, count)
    for month in months:
        if not month.open:
            publish(month, made, started, failed)
    undone = [month for month in months if month.open]
    if not undone:
        return failed
    storages = [undone[0].locations.trips, undone[0].locations.staged]
    rows = sum(block.rows for month in undone for block in month.blocks)  # with those of a run that did not end
    with (
        cluster.connect_client(settings.cluster.n_workers, settings.cluster.factory) as client,
        logging_redirect_tqdm(),
        worker.send_model(client, contents, digest, storages, rows) as form,
    ):
        chosen = {month.month: month.choose_form(form) for month in undone}
        blocks = [block for month in chosen.values() for block in month.open]
        for month in chosen.values():
            if kept := sum(part["rows"] for part in month.done.values()):
                log.info("%s: %s of a run that did not end are kept", month.month, format_count(kept, "row"))
            if not month.open:  # another run has just finished it
                publish(month, made, started, failed)
        started, scored = time.perf_counter(), 0
        total = sum(block.rows for block in blocks)
        with tqdm(total=total, unit=" rows", unit_scale=True, leave=False, disable=None) as bar:
            for block, result in cluster.run_tasks(client, worker.score_block, blocks):
                if isinstance(result, Exception):
                    failed[block.month] = join_lines(plan.explain_failure(block, result))
                    continue
                month = chosen[block.month]
                month.done[block] = result
                scored += block.rows
                bar.update(block.rows)
                if not month.open:
                    publish(month, made, started, failed)
        log.info("scored %s in %.1f s", format_count(scored, "row"), time.perf_counter() - started)
    return failed


def publish(month: Month, made: Mapping[str, Any], started: float, failed: dict[str, str]) -> None:
    """Publish a month, or add the reason to `failed`."""
    try:
        plan.publish_month(month, {**made, "seconds": round(time.perf_counter() - started, 3)})
        log.info("%s: published", month.month)
    except (TiplineError, OSError) as error:
        failed[month.month] = f"it is scored, but cannot be published: {join_lines(error)}"
