"""download@month: fetch the published file of a month, with a manifest that says where it came from."""

import logging

from tqdm.contrib.logging import logging_redirect_tqdm

from tipline import files
from tipline.config import Settings
from tipline.ingest import source
from tipline.paths import Paths

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Fetch a month into data/raw/, unless its server still states what is there.

    Raises NotPublishedError if the source does not have the month, TiplineError if it cannot be fetched or is not a
    published month, or if another process is fetching it.
    """
    parts, folder, manifest = paths.staging / "parts", paths.raw(month), paths.raw_manifest(month)
    with files.hold_lock(parts / f"{month}.lock", "fetching this month"), logging_redirect_tqdm():
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
