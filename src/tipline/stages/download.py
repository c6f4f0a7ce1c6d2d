"""download@month: the published file of a month, and a manifest that says where it came from."""

from __future__ import annotations

import logging
import time
from concurrent import futures
from typing import TYPE_CHECKING

from tipline import files
from tipline.errors import TiplineError, combine_failures
from tipline.ingest import source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)

AT_ONCE = 4


def run_months(settings: Settings, paths: Paths, months: Sequence[str]) -> None:
    """Fetch months, a few at a time; each succeeds or fails by itself.

    Raises
    ------
    NotPublishedError
        The source does not have some of them, and nothing else is wrong.
    MonthsFailedError
        Some failed for another reason. The error of a single month is raised as it is.
    """
    if len(months) == 1:
        run(settings, paths, months[0])
        return
    from tqdm.contrib.logging import logging_redirect_tqdm  # noqa: PLC0415 (only several months show bars)

    with logging_redirect_tqdm(), futures.ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(run, settings, paths, month): month for month in dict.fromkeys(months)}
        try:
            failed = collect_failures(running)
        except BaseException:
            stop(pool, running)
            raise
    if failed:
        raise combine_failures(failed, len(running))


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Fetch a month into data/raw/, unless its server still has what is there.

    Raises
    ------
    NotPublishedError
        The source does not have the month.
    TiplineError
        It cannot be fetched, is not a published month, or another process is fetching it.
    """
    parts = paths.staging / "parts"
    folder, manifest = paths.raw(month), paths.raw_manifest(month)
    with files.hold_lock(parts / f"{month}.lock", "fetching this month"):
        if source.is_unchanged(settings.source, month, paths.workspace, folder, manifest):
            log.info("%s: unchanged at the source, kept", month)
            return
        with (
            files.replace_file(manifest) as new_manifest,
            files.replace_folder(folder, paths.staging / "raw") as new_folder,
        ):
            demo, part = settings.demo.model_dump(), parts / f"{month}.part"
            fetched = source.fetch_month(settings.source, month, new_folder, paths.workspace, demo, part)
            files.write_json(new_manifest, fetched)  # on disk before the folder is renamed, renamed after it
    log.info("%s: %s bytes from %s", month, f"{fetched['bytes']:,}", fetched["address"])


def collect_failures(running: Mapping[futures.Future[None], str]) -> dict[str, TiplineError]:
    """Return the errors by month and log each as it comes; a defect is raised at once."""
    failed = {}
    for future in futures.as_completed(running):
        month, error = running[future], future.exception()
        if isinstance(error, OSError):
            todo = "Fix the cause and run it again; no half-written file is left."
            error = TiplineError(f"{error.strerror or error}.", str(error.filename or month), todo)
        if isinstance(error, TiplineError):
            failed[month] = error
            log.error("%s: %s", month, error)
        elif error is not None:
            raise error
    return failed


def stop(pool: futures.Executor, running: Mapping[futures.Future[None], str]) -> None:
    """End all downloads; what has arrived is kept for the next run."""
    from tipline.ingest import transfer  # noqa: PLC0415

    pool.shutdown(wait=False, cancel_futures=True)
    while not all(future.done() for future in running):
        transfer.cancel_all()  # repeated, because a month may be between two requests
        time.sleep(0.05)
