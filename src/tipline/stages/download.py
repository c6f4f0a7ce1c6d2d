"""download@month: fetch the published file of a month, with a manifest that says where it came from."""

import logging
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool

from tqdm.contrib.logging import logging_redirect_tqdm

from tipline import files
from tipline.config import Settings
from tipline.errors import TiplineError, combine_failures
from tipline.ingest import source
from tipline.paths import Paths

log = logging.getLogger(__name__)

MONTHS_AT_ONCE = 4


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Fetch a month into data/raw/, unless its server still states what is there.

    Raises NotPublishedError if the source does not have the month, TiplineError if it cannot be fetched or is not a
    published month, or if another process is fetching it.
    """
    parts, folder, manifest = paths.staging / "parts", paths.raw(month), paths.raw_manifest(month)
    with files.hold_lock(parts / f"{month}.lock", "fetching this month"):
        if source.is_unchanged(settings.source, month, paths.workspace, folder, manifest):
            log.info("%s: unchanged at the source, kept", month)
            return
        with (
            files.replace_file(manifest) as new_manifest,
            files.replace_folder(folder, paths.staging / "raw") as staged,
        ):
            demo, part = settings.demo.model_dump(), parts / f"{month}.part"
            fetched = source.fetch_month(settings.source, month, staged, paths.workspace, demo, part)
            files.write_json(new_manifest, fetched)  # renamed after the folder
    log.info("%s: %s bytes from %s", month, f"{fetched['bytes']:,}", fetched["address"])


def run_months(settings: Settings, paths: Paths, months: Sequence[str]) -> None:
    """Fetch months, a few at a time; each succeeds or fails by itself.

    Raises the error of a single month as it is; for several, NotPublishedError if the source does not have some of them
    and nothing else is wrong, otherwise MonthsFailedError.
    """
    distinct, failed = list(dict.fromkeys(months)), dict[str, TiplineError]()

    def try_month(month: str) -> None:
        try:
            run(settings, paths, month)
        except TiplineError as error:
            failed[month] = error
        except OSError as error:
            todo = "Fix the cause and run the command again; no half-written file is left."
            failed[month] = TiplineError(f"{error.strerror or error}.", str(error.filename or month), todo)
        if month in failed and len(distinct) > 1:
            log.error("%s: %s", month, failed[month])

    # Its threads are daemons: Ctrl-C does not wait for servers. What has arrived is kept, as after a kill.
    with logging_redirect_tqdm(), ThreadPool(MONTHS_AT_ONCE) as pool:
        pool.map(try_month, distinct, chunksize=1)
    if failed:
        raise combine_failures(failed, len(distinct))
