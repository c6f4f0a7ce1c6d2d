"""download@month: the published bytes of a month, and a manifest that says where they came from."""

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
    from pathlib import Path

    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)

AT_ONCE = 4


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Fetch one month into data/raw/, unless what is there is still what its server has.

    Raises
    ------
    NotPublishedError
        Where the source does not have the month.
    TiplineError
        Where it cannot be fetched, is no month of trips, or is being fetched by another process.
    """
    parts = paths.staging / "parts"
    with files.hold_lock(parts / f"{month}.lock", "fetching this month"):
        fetch(settings, paths, month, parts / f"{month}.part")


def fetch(settings: Settings, paths: Paths, month: str, part: Path) -> None:
    """Fetch, check and publish a month."""
    folder, manifest = paths.raw(month), paths.raw_manifest(month)
    if source.is_unchanged(settings.source, month, paths.workspace, folder, manifest):
        log.info("%s: unchanged upstream, kept", month)
        return
    with (
        files.replace_file(manifest) as new_manifest,
        files.replace_folder(folder, paths.staging / "raw") as new_folder,
    ):
        told = source.fetch_month(settings.source, month, new_folder, paths.workspace, settings.demo.model_dump(), part)
        files.write_json(new_manifest, told)  # on the disk before the folder is renamed in, renamed in after it
    log.info("%s: %s bytes from %s", month, f"{told['bytes']:,}", told["address"])


def run_months(settings: Settings, paths: Paths, months: Sequence[str]) -> None:
    """Fetch some months, a few at once; each fails by itself.

    Raises
    ------
    NotPublishedError
        Where the source does not have some of them, and nothing else is wrong.
    MonthsFailedError
        Where some failed for other reasons. The error of a single month is raised as it is.
    """
    if len(months) == 1:
        run(settings, paths, months[0])
        return
    from tqdm.contrib.logging import logging_redirect_tqdm  # noqa: PLC0415 (one month has no bars to write between)

    with logging_redirect_tqdm(), futures.ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(run, settings, paths, month): month for month in dict.fromkeys(months)}
        try:
            failed = failures(running)
        except BaseException:
            stop(pool, running)
            raise
    if failed:
        raise combine_failures(failed, len(running))


def failures(running: Mapping[futures.Future[None], str]) -> dict[str, TiplineError]:
    """What went wrong, by month, each told when it happens; a defect of ours is raised at once."""
    failed = {}
    for future in futures.as_completed(running):
        month, error = running[future], future.exception()
        if isinstance(error, OSError):  # a full disk, a missing right
            todo = "Make room, or mend what the system says, and run it again; nothing half-written is left."
            error = TiplineError(f"{error.strerror or error}.", str(error.filename or month), todo)
        if isinstance(error, TiplineError):
            failed[month] = error
            log.error("%s: %s", month, error)
        elif error is not None:
            raise error
    return failed


def stop(pool: futures.Executor, running: Mapping[futures.Future[None], str]) -> None:
    """End all downloads: what has arrived of a month is kept for the next run."""
    from tipline.ingest import transfer  # noqa: PLC0415

    pool.shutdown(wait=False, cancel_futures=True)
    while not all(future.done() for future in running):
        transfer.cancel_all()  # again and again: a month may have been between two requests
        time.sleep(0.05)
