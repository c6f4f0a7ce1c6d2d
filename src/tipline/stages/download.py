"""download@month: fetch the published file of a month, and its labels, with a manifest that says where from."""

import logging
import shutil
from collections.abc import Mapping
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from tipline import files
from tipline.config import Settings
from tipline.errors import NotPublishedError
from tipline.ingest import source
from tipline.ingest.readers import LABELS
from tipline.paths import Paths

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Fetch a month, and its labels if there are some, into data/raw/, unless the server still states what is there.

    Raises NotPublishedError if the source does not have the month, TiplineError if it cannot be fetched or is not a
    published month, or if another process is fetching it.
    """
    parts, folder, manifest = paths.staging / "parts", paths.raw(month), paths.raw_manifest(month)
    with files.hold_lock(parts / f"{month}.lock", "fetching this month"), logging_redirect_tqdm():
        fetched = files.try_read_json(manifest) or {}
        labels = fetched.pop("labels", None)
        is_kept = source.is_unchanged(settings.source, month, paths.workspace, folder, fetched)
        has_labels, labels_are_kept = check_labels(settings, paths, month, labels)
        if is_kept and labels_are_kept:
            log.info("%s: unchanged at the source, kept", month)
            return
        with (
            files.replace_file(manifest) as new_manifest,
            files.replace_folder(folder, paths.staging / "raw") as staged,
        ):
            if is_kept:
                shutil.copytree(folder, staged, ignore=shutil.ignore_patterns(LABELS), dirs_exist_ok=True)
            else:
                demo, part = settings.demo.model_dump(), parts / f"{month}.part"
                fetched = source.fetch_month(settings.source, month, staged, paths.workspace, demo, part)
            if has_labels:
                address, part = str(settings.labels.source), parts / f"{month}.labels.part"
                labels = source.fetch_month(address, month, staged / LABELS, paths.workspace, {}, part)
                fetched["labels"] = labels
            files.write_json(new_manifest, fetched)  # renamed after the folder
    for one in [fetched, *([labels] if has_labels else [])]:
        log.info("%s: %s bytes from %s", month, f"{one['bytes']:,}", one["address"])


def check_labels(settings: Settings, paths: Paths, month: str, known: Mapping[str, Any] | None) -> tuple[bool, bool]:
    """Return whether the labels' source has the month, and whether nothing has changed there since `known`."""
    address, home = settings.labels.source, paths.workspace
    if address is None:
        return False, known is None
    try:
        source.check_published(address, month, home)
    except NotPublishedError:
        if known is not None:  # not removed without a word
            raise
        log.info("%s: no labels yet", month)
        return False, True
    return True, known is not None and source.is_unchanged(address, month, home, paths.raw(month) / LABELS, known)
